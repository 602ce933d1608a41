"""mqtool worker --exec: options, and how they become a worker."""

from typing import Annotated, NamedTuple

import typer

from mqtool.amqp import Connection
from mqtool.cli import output, stopping
from mqtool.cli.options import Broker, Receiving, duration
from mqtool.cli.output import WAITING_FOR_MESSAGES
from mqtool.concurrency import Hands
from mqtool.errors import UsageError
from mqtool.programs import Program
from mqtool.retry import Retrying, RetryPolicy
from mqtool.topology import Queue
from mqtool.tutorials.work_queues import FAIR_DISPATCH
from mqtool.worker import ProgramWorker

_PROGRAMS, _RETRIES = "Programs", "Retries"


class ExecOptions(NamedTuple):
    """Which program to run for each message, and how."""

    command: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            rich_help_panel=_PROGRAMS,
            help="Run this for each message: body on stdin, the rest in MQ_* variables; {routing_key}, {exchange}, "
            "{queue}, {message_id} and {attempt} may stand in it. Exit 0 acknowledges, 65 makes it a dead letter, "
            "75 and others retry later, 126 and 127 stop the worker. --timeout then is for each program.",
        ),
    ] = None
    shell: Annotated[
        bool, typer.Option("--shell", help="Have sh read the command: pipes, $MQ_….", rich_help_panel=_PROGRAMS)
    ] = False
    concurrency: Annotated[
        int, typer.Option(min=1, max=1000, help="Run so many at once.", rich_help_panel=_PROGRAMS)
    ] = 1


class RetryOptions(NamedTuple):
    """When to try again what has failed."""

    retries: Annotated[
        int, typer.Option(min=0, help="Try so often again, then make it a dead letter.", rich_help_panel=_RETRIES)
    ] = 5
    backoff: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="1s",
            help="Wait so long before the first retry.",
            rich_help_panel=_RETRIES,
        ),
    ] = "1s"  # type: ignore[assignment]
    backoff_factor: Annotated[
        float, typer.Option(min=1.0, help="Each wait is so many times the one before.", rich_help_panel=_RETRIES)
    ] = 2.0
    backoff_max: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="5m",
            help="No wait is longer.",
            rich_help_panel=_RETRIES,
        ),
    ] = "5m"  # type: ignore[assignment]

    @property
    def policy(self) -> RetryPolicy:
        """How often, and when."""
        return RetryPolicy(self.retries, self.backoff, self.backoff_factor, self.backoff_max)


def work(command: str, exec_options: ExecOptions, retries: RetryOptions, queue: Queue, receiving: Receiving,
         broker: Broker) -> None:  # fmt: skip
    """Run a program for each message, until stopped.

    Raises:
        UsageError: there is no such program, or options contradict each other.
    """
    if receiving.raw or receiving.as_json or receiving.template is not None or receiving.auto_ack:
        raise UsageError("--exec prints what its program prints, and acknowledges what that has done",
                         "leave out --raw, --json, --format and --auto-ack")  # fmt: skip
    program = Program(command, shell=exec_options.shell, timeout=receiving.timeout)
    settings = receiving._replace(timeout=None).settings(FAIR_DISPATCH)
    with broker.connect() as connection:
        channel = connection.channel(strict=broker.strict)
        worker = ProgramWorker(channel, program, _retrying(connection, retries), output.notice)
        with stopping.calling(channel.stop):
            work_through = Hands(channel, worker.handle, exec_options.concurrency).start_consuming(
                channel.declare(queue), settings
            )
            try:
                with receiving.printing(channel, WAITING_FOR_MESSAGES):
                    work_through()
            finally:
                output.status(", ".join(f"{worker.counts[what]:,} {said}" for what, said in _SUMS.items()))


_SUMS = {"done": "done", "retry": "to be retried", "dead": "dead"}


def _retrying(connection: Connection, retries: RetryOptions) -> Retrying:
    return Retrying(connection.channel(), retries.policy, output.notice)
