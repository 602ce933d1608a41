"""mqtool worker --exec: options, and how they become a worker."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mqtool import ndjson
from mqtool.amqp import Connection
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.display.output import WAITING_FOR_MESSAGES
from mqtool.cli.options import Broker, Receiving, duration, time_limit
from mqtool.cli.pipe.receiving import announced
from mqtool.duration import compact_duration
from mqtool.errors import AccessRefused, ExitCode, Unavailable, UsageError
from mqtool.message import Delivery, Message
from mqtool.topology import Queue
from mqtool.work.functions import Function
from mqtool.work.hands import ONE_EACH, Hands
from mqtool.work.programs import Program
from mqtool.work.retry import Retrying, RetryPolicy
from mqtool.work.runner import CANNOT_RUN, NOT_FOUND
from mqtool.work.worker import CommandBroken, ProgramWorker

#: Headers of a reply that a program has made.
EXIT_STATUS, STDERR = "exit-status", "stderr"

if TYPE_CHECKING:
    from mqtool.work.deduplication import HandledMessages

_PROGRAMS, _RETRIES, _DUPLICATES = "Programs", "Retries", "Duplicates"


class ExecOptions(NamedTuple):
    """Which program to run for each message, and how."""

    command: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            rich_help_panel=_PROGRAMS,
            help="Run COMMAND for each message (mqtool help programs)",
        ),
    ] = None
    shell: Annotated[bool, typer.Option("--shell", help="Run COMMAND with sh", rich_help_panel=_PROGRAMS)] = False

    def function(self, receiving: Receiving) -> tuple[str, Function] | None:
        """The program as the function of an RPC server, with its name; None if none was named.

        Raises:
            UsageError: there is no such program.
        """
        if self.command is None:
            return None
        program = Program(self.command, shell=self.shell, timeout=receiving.timeout, capture=True)

        def run(request: Delivery) -> Message:
            ending = program.run(request)
            headers = {EXIT_STATUS: ending.status, STDERR: ending.stderr.decode("utf-8", "replace")}
            if ending.timed_out is not None:
                headers |= {EXIT_STATUS: ExitCode.TIMED_OUT, STDERR: f"{headers[STDERR]}{ending.reason}\n"}
            return Message(ending.stdout, properties={"headers": headers})

        return self.command.split()[0], run


Concurrency = Annotated[int, typer.Option(min=1, max=1000, help="Run up to N at once", rich_help_panel=_PROGRAMS)]


class RetryOptions(NamedTuple):
    """When to try again what has failed."""

    retries: Annotated[
        int, typer.Option(min=0, help="Retry up to N times, then dead-letter", rich_help_panel=_RETRIES)
    ] = 5
    backoff: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="1s",
            help="Wait before the first retry",
            rich_help_panel=_RETRIES,
        ),
    ] = "1s"  # type: ignore[assignment]
    backoff_factor: Annotated[
        float, typer.Option(min=1.0, help="Multiply the wait by N for each further retry", rich_help_panel=_RETRIES)
    ] = 2.0
    backoff_max: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="5m",
            help="Longest wait",
            rich_help_panel=_RETRIES,
        ),
    ] = "5m"  # type: ignore[assignment]

    @property
    def policy(self) -> RetryPolicy:
        """How often, and when."""
        return RetryPolicy(self.retries, self.backoff, self.backoff_factor, self.backoff_max)


class DedupOptions(NamedTuple):
    """Whether, and how, to do what comes twice only once."""

    deduplicate: Annotated[
        bool,
        typer.Option(
            "--deduplicate",
            rich_help_panel=_DUPLICATES,
            help="Skip messages whose message_id was handled before",
        ),
    ] = False
    store: Annotated[
        Path | None,
        typer.Option(
            "--dedup-store",
            metavar="FILE",
            rich_help_panel=_DUPLICATES,
            show_default="in the state directory",
            help="Where handled ids are kept (SQLite)",
        ),
    ] = None
    window: Annotated[
        float,
        typer.Option(
            "--dedup-window",
            parser=time_limit,
            metavar="DURATION",
            show_default="24h",
            rich_help_panel=_DUPLICATES,
            help="How long to remember an id",
        ),
    ] = "24h"  # type: ignore[assignment]

    def open(self) -> "HandledMessages | None":
        """The store; None if nothing is to be remembered.

        Raises:
            UsageError: it cannot be used, or is named without --deduplicate.
        """
        if not self.deduplicate:
            if self.store is not None:
                raise UsageError("--dedup-store is of no use without --deduplicate")
            return None
        from mqtool.broker import state
        from mqtool.work.deduplication import HandledMessages

        default = state.directory().parents[1] / "handled.sqlite"
        return HandledMessages(self.store or default, self.window)


def work(command: str, shell: bool, concurrency: int, retries: RetryOptions, dedup: DedupOptions, queue: Queue,
         receiving: Receiving, broker: Broker) -> None:  # fmt: skip
    """Run a program for each message, until stopped.

    Raises:
        UsageError: there is no such program, or options contradict each other.
    """
    if receiving.raw or receiving.as_json or receiving.template is not None or receiving.auto_ack:
        raise UsageError("--exec prints what its program prints, and acknowledges what that has done",
                         "leave out --raw, --json, --format and --auto-ack")  # fmt: skip
    program = Program(command, shell=shell, timeout=receiving.timeout, concurrency=concurrency)
    handled = dedup.open()
    settings = receiving._replace(timeout=None).settings(ONE_EACH)
    access = broker.access()
    with access.connect() as connection:
        channel = connection.channel(strict=access.strict)
        worker = ProgramWorker(channel, program, _retrying(connection, retries), output.notice, handled)
        _warn_of_consumer_timeout(access, queue.name, receiving.timeout)
        with stopping.calling(channel.stop):
            work_through = Hands(channel, worker.handle, concurrency).start_consuming(channel.declare(queue), settings)
            try:
                with announced(receiving.ready_file, channel, WAITING_FOR_MESSAGES):
                    work_through()
            finally:
                sums = _SUMS | ({"suppressed": "suppressed"} if handled else {})
                output.status(", ".join(f"{worker.counts[what]:,} {said}" for what, said in sums.items()))


def _warn_of_consumer_timeout(access: Access, queue: str, timeout: float | None) -> None:
    """The broker takes a message from a worker that is too long about it, and gives it to another."""
    if timeout is None:
        return
    from mqtool.management import consumer_timeout

    limit, whose = DEFAULT_CONSUMER_TIMEOUT, "RabbitMQ's, unless it is configured otherwise,"
    try:
        told = consumer_timeout(access.management((1.0, 1.0)), access.vhost, queue)
    except (Unavailable, AccessRefused):  # it is asked for a warning only
        told = None
    if told is not None:
        limit, whose = told, f"that of queue {queue!r}"
    if timeout > limit:
        output.notice(
            f"--timeout of {compact_duration(timeout)} is longer than the consumer timeout; {whose} is "
            f"{compact_duration(limit)}, after which the broker gives the message to another worker"
        )


#: Seconds. https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
DEFAULT_CONSUMER_TIMEOUT = 30 * 60.0

_SUMS = {"done": "done", "retry": "to be retried", "dead": "dead"}


def _retrying(connection: Connection, retries: RetryOptions) -> Retrying:
    return Retrying(connection.channel(), retries.policy, output.notice)


def remembering(handled: "HandledMessages", queue: str, function: Function) -> Function:
    """A function that answers a request that comes again as it did the first time, without doing it again."""

    def answer(request: Delivery) -> Message:
        request_id = request.properties.get("message_id") or request.properties.get("correlation_id")
        if not request_id:
            return function(request)
        before = handled.begin(queue, request_id)
        if before is not None and before.reply is not None:
            output.notice(f"request {request_id} was answered before: the same reply again")
            return ndjson.to_message(before.reply, "the stored reply")
        try:
            reply = function(request)
        except BaseException:
            handled.failed(queue, request_id)
            raise
        handled.done(queue, request_id, ndjson.from_message(reply))
        return reply

    return answer


def stop_if_broken(reply: Message) -> None:
    """Raise if the program that made a reply cannot be run at all.

    Raises:
        CommandBroken: it cannot.
    """
    headers = reply.properties.get("headers") or {}
    if headers.get(EXIT_STATUS) in (CANNOT_RUN, NOT_FOUND):
        raise CommandBroken(f"the program cannot be run: {headers[STDERR].strip()}", "mend --exec")


def show_remote(reply: Delivery, raw: bool) -> int:
    """Print what the server's program said; returns its exit status."""
    status = reply.headers[EXIT_STATUS]
    if raw:
        output.write(reply.body)
    else:
        output.show(f" [.] Got {output.visible(reply.text.rstrip())}")
    for line in str(reply.headers.get(STDERR) or "").splitlines():
        output.notice(f"the server's program said: {output.visible(line)}")
    return status if isinstance(status, int) and 0 <= status <= 255 else ExitCode.FAILED
