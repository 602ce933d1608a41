"""mqtool rpc-client."""

import contextlib
import math
import re
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from mqtool.amqp import CONFIRM_TIMEOUT, Channel, Receiving, administration
from mqtool.cli import stopping
from mqtool.cli.access import ChannelOrSession
from mqtool.cli.broker_access import access_to, dialect_names, print_as_script
from mqtool.cli.command_line import Command, command
from mqtool.cli.commands.rpc_server import Function
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.display.delivery_writer import BatchedOutput
from mqtool.cli.invocation import current
from mqtool.cli.options import QueueOptions, queue_option
from mqtool.cli.options.broker_options import PublishingBroker
from mqtool.cli.options.queue_options import tutorials_queue
from mqtool.cli.values import TIME_LIMIT
from mqtool.duration import compact_duration
from mqtool.errors import (
    AccessRefused,
    BadData,
    DeclaredDifferently,
    ExitCode,
    MqtoolError,
    NotFound,
    SomeFailed,
    StoppedWaiting,
    UsageError,
)
from mqtool.message import ERROR_REPLY, Delivery, Message
from mqtool.ndjson import as_json
from mqtool.spelling import counted, starting_a_server
from mqtool.topology import PRIVATE_QUEUE, Queue
from mqtool.tutorials import rpc
from mqtool.tutorials.dialects import NAMES, Dialect, DialectLines
from mqtool.work import rpc_functions

app = typer.Typer()

#: Maximum number of requests to print. Beyond that, they would push the replies off the screen.
_SHOWN = 100
#: The most to print from the end of a program's stderr. rpc-server sends the last 2,000 bytes.
_STDERR_CHARACTERS, _STDERR_LINES = 5000, 100
_INTEGER = re.compile("[+-]?[0-9]+")


class _TakingNegatives(Command):
    """A command with integers as arguments, so -5 is not an option. -num=11, as for a Go script, is the argument 11."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, with the first negative number and the integers that follow it at the end."""
        if "--" in args:
            return super().parse_args(ctx, args)
        args = [re.sub("^--?num=", "", each) for each in args if each not in ("-num", "--num")]
        integers = [re.fullmatch("-?[0-9]+", each) is not None for each in args]
        first = next((n for n, each in enumerate(args) if integers[n] and each.startswith("-")), None)
        if first is not None and not (first and args[first - 1].startswith("--")):
            last = next((n for n in range(first, len(args)) if not integers[n]), len(args))
            args = [*args[:first], *args[last:], "--", *args[first:last]]
        return super().parse_args(ctx, args)


@command(
    app,
    "mqtool rpc-client 30",
    "mqtool rpc-client 1 2 3 --function add100 --timeout 10s",
    effect=Effect.SENDS,
    instead={"queue": tutorials_queue(NAMES[Dialect.PYTHON].rpc_queue, "The server's queue")},
    heading="Tutorials",
    cls=_TakingNegatives,
)
def rpc_client(
    broker: PublishingBroker,
    requests: Annotated[
        list[str] | None,
        typer.Argument(
            help="Integers; several are sent without waiting for replies", show_default="30", metavar="REQUEST..."
        ),
    ] = None,
    queue: Annotated[str | None, queue_option("The server's queue")] = None,
    function: Annotated[Function, typer.Option(help="Function name to show in the output")] = "fib",
    timeout: Annotated[
        float, typer.Option(help="Total time limit (exit 124); requests expire then", **TIME_LIMIT)
    ] = 30.0,
    direct_reply_to: Annotated[
        bool, typer.Option("--direct-reply-to", help="Receive replies through amq.rabbitmq.reply-to")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Print results only, one per line")] = False,
    any_text: Annotated[bool, typer.Option("--text", help="Send any text, not only integers")] = False,
) -> None:
    """Send requests to the RPC server (tutorial 6)."""
    lines, tutorials, is_add100 = broker.lines, dialect_names(broker).rpc_queue, function == "add100"
    asked = _asked(requests, lines, lines.number_add100 if is_add100 else lines.number, queue)
    refused = answered = 0
    statuses: list[int | str] = []
    if not any_text and queue in (None, tutorials.name):
        _check_integers(asked, takes_negatives=is_add100 or lines.fib_of_negatives)
    if not raw:
        print_as_script(broker, on_stderr=lines.on_stderr and not is_add100)
    access = access_to(broker)
    stopping.limit_time(timeout)
    with access.channel_or_session(confirm_timeout=min(timeout, CONFIRM_TIMEOUT)) as channel:
        line = lines.requesting_add100 if is_add100 else lines.requesting
        if broker.dialect is None and not is_add100 and not all(map(_INTEGER.fullmatch, asked)):
            line = " [x] Requesting '{n}'"
        _say(line, asked, replies_on_stderr=lines.on_stderr)
        messages = [
            Message(request.encode("utf-8", "surrogateescape"), properties=dict(lines.properties)) for request in asked
        ]
        channel.connection.deadline = deadline = time.monotonic() + timeout
        stopping.restart_time_limit()
        target = tutorials if queue is None else QueueOptions(queue=queue).of(tutorials)
        reply_queue = rpc.DIRECT_REPLY_TO if direct_reply_to else PRIVATE_QUEUE
        _tell_if_nobody_serves(channel, target, timeout)
        results = BatchedOutput()
        settings = Receiving(timeout=timeout, before_acknowledging=results.flush)
        answers = _call(channel, target, messages, settings, reply_queue)
        try:
            for reply in rpc_functions.in_order(answers, channel, target, len(messages), deadline):
                answered += 1
                if rpc_functions.EXIT_STATUS in reply.headers:
                    results.flush()
                    statuses.append(_show_remote(reply, raw=raw))
                    if len(asked) > 1 and isinstance(statuses[-1], str):
                        output.warning(statuses[-1])
                elif reply.properties.get("type") == ERROR_REPLY:
                    refused += 1
                    results.flush()
                    reason = f": {_excerpt(reply.body)}" if reply.body.strip() else ", but gave no reason"
                    output.warning(f"the server answered with an error{reason}")
                else:
                    got = output.encoded(lines.got.format(body=_in_lines(reply.body)))
                    results.add(_alone(reply) + b"\n" if raw else got)
        finally:
            results.flush()
    if answered < len(asked):
        if not output.speaks_as_script():
            unanswered = counted(len(asked) - answered, "request")
            left = compact_duration(max(1, math.ceil(deadline - time.monotonic())))
            output.notice(f"no reply to {unanswered}, which may stay in queue {target.name!r} for up to {left}")
        stopping.exit_if_requested()
    _raise_failures([status for status in statuses if status != 0], refused, len(asked))


def _say(line: str, requests: list[str], *, replies_on_stderr: bool) -> None:
    """Print a line for each request, unless there are many, or the dialect's script prints none.

    Args:
        replies_on_stderr: with --dialect, print everything after these lines on stderr.
    """
    if line and (len(requests) <= _SHOWN or current().verbose):
        for request in requests:
            output.say(line.format(n=request))
    if replies_on_stderr and output.speaks_as_script():
        output.join_stderr()


def _call(
    channel: ChannelOrSession, queue: Queue, requests: list[Message], settings: Receiving, reply_to: Queue
) -> Iterator[tuple[int, Delivery]]:
    if isinstance(channel, Channel):
        return rpc.call(channel, queue, requests, settings, reply_to)
    from mqtool.tutorials import amqp10_rpc

    return amqp10_rpc.call(channel, queue, requests, settings, reply_to)


def _tell_if_nobody_serves(channel: ChannelOrSession, queue: Queue, timeout: float) -> None:
    if output.speaks_as_script() and not output.is_terminal(2):
        return
    # If there is such an error, the requests fail with it, too.
    with contextlib.suppress(NotFound, AccessRefused, DeclaredDifferently, StoppedWaiting):
        if not administration.depth(channel, queue.name).consumers:
            output.notice(
                f"no server consumes from queue {queue.name!r}; waiting {compact_duration(timeout)} for one: "
                + starting_a_server(queue.name)
            )


def _asked(requests: list[str] | None, lines: DialectLines, number: str, queue: str | None) -> list[str]:
    """Return the requests, or else the tutorial's. Raise UsageError if the user named a queue, which may be real."""
    if requests and (requests[0] or not lines.empty_word_is_missing):
        return requests
    if queue is not None:
        raise UsageError("there is no request", "add one at the end of the command, such as 30")
    return [number]


def _check_integers(requests: list[str], *, takes_negatives: bool) -> None:
    """Raise UsageError if a request is not an integer, which would crash any tutorial server that receives it."""
    accepted = _INTEGER if takes_negatives else re.compile("[0-9]+")
    for request in requests:
        if not accepted.fullmatch(request):
            kind = "an integer" if takes_negatives else "a whole number of 0 or more"
            raise UsageError(
                f"the request {request!r} is not {kind}",
                "other requests crash the tutorials' servers; for a server that accepts text, use --text",
            )


def _show_remote(reply: Delivery, *, raw: bool) -> int | str:
    """Print what the server's program printed, if it has succeeded or printed anything.

    Return its exit status; if this is invalid, return a sentence that says so.
    """
    status: int | str = reply.headers[rpc_functions.EXIT_STATUS]
    if not (isinstance(status, int) and not isinstance(status, bool) and 0 <= status <= 255):
        status = f"the exit status in the reply is invalid: {_excerpt(as_json(status).encode())}"
    if status == 0 or reply.body.strip() or output.speaks_as_script():
        if raw:
            output.show_bytes(_alone(reply).removesuffix(b"\n") + b"\n")
        else:
            output.show(f" [.] Got {_in_lines(reply.body.rstrip())}")
    for line in _end_of(str(reply.headers.get(rpc_functions.STDERR) or "")):
        output.notice(f"the server's program printed on stderr: {line}")
    return status


def _end_of(stderr: str) -> list[str]:
    """Return the last lines of a program's stderr. If lines were left out, the first line says how much there was."""
    lines = stderr[-_STDERR_CHARACTERS:].splitlines()
    if len(stderr) <= _STDERR_CHARACTERS and len(lines) <= _STDERR_LINES:
        return lines
    return [f"… ({len(stderr):,} characters)", *lines[-_STDERR_LINES:]]


def _excerpt(text: bytes) -> str:
    shown, rest = output.excerpt(text)
    return shown.decode("utf-8", "replace") + rest


def _raise_failures(statuses: list[int | str], refused: int, count: int) -> None:
    """Raise an error if any of the requests failed. After a failed program, the exit code is that of the first one.

    Args:
        statuses: the exit statuses of the server's programs that failed, or what is wrong with them.
        refused: the number of requests that the server answered with an error.
        count: the number of requests.
    """
    if statuses:
        status = statuses[0]
        code = ExitCode.FAILED if isinstance(status, str) else status
        if output.speaks_as_script():
            raise SystemExit(code)
        what = status if isinstance(status, str) else f"the server's program failed with exit status {status}"
        if count > 1:
            others = f"; the server refused {refused}" if refused else ""
            what = f"the server's program failed for {len(statuses)} of {count} requests{others}"
        failure = MqtoolError(what)
        failure.exit_code = code
        raise failure
    if refused == count:
        raise BadData("the server refused the request" if count == 1 else f"the server refused all {count} requests")
    if refused:
        raise SomeFailed(f"the server refused {refused} of {count} requests")


def _in_lines(body: bytes) -> str:
    body = output.continued(body) if output.is_terminal(1) else body
    return output.visible(body.decode("utf-8", "replace"))


def _alone(reply: Delivery) -> bytes:
    return output.visible(reply.text).encode() if output.is_terminal(1) else reply.body
