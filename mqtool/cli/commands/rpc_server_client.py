"""mqtool rpc-server, mqtool rpc-client."""

import contextlib
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from mqtool.amqp import CONFIRM_TIMEOUT, Channel, administration
from mqtool.amqp import Receiving as ReceivingSettings
from mqtool.amqp import Receiving as Settings
from mqtool.cli import stopping
from mqtool.cli.access import ChannelOrSession
from mqtool.cli.command_line import Argument, Option, size
from mqtool.cli.commands.worker_command import DedupOptions, ExecOptions
from mqtool.cli.display import output
from mqtool.cli.display.delivery_writer import BatchedOutput
from mqtool.cli.invocation import current
from mqtool.cli.options import PROTOCOL, TIME_LIMIT, Broker, Commands, QueueOptions, UsedQueueOptions, queue_option
from mqtool.cli.options.queue_options import checked
from mqtool.cli.options.receiving_options import Receiving
from mqtool.cli.pipe.receiving import consuming, delivery_writer
from mqtool.duration import compact_duration
from mqtool.errors import AccessRefused, BadData, DeclaredDifferently, ExitCode, NotFound, SomeFailed, UsageError
from mqtool.message import Delivery, Message
from mqtool.spelling import pasteable
from mqtool.topology import PRIVATE_QUEUE, Queue
from mqtool.tutorials import rpc
from mqtool.work import rpc_functions
from mqtool.work.exec_command import ExecCommand
from mqtool.work.rpc_functions import ERROR

app = Commands()

#: Maximum number of requests to print. Beyond that, they would push the replies off the screen.
_SHOWN = 100
#: A larger prefetch for fib, which is quick: 2,000 concurrent requests then take 3 s instead of 4.7 s.
_MANY = ReceivingSettings(prefetch=100)
Function = Literal["fib", "add100"]
MaxOutput = Annotated[
    int,
    Option(
        parser=size,
        metavar="SIZE",
        show_default="128MiB",
        help="Kill a program that prints more; its reply is an error",
        panel="Programs",
    ),
]
FunctionOption = Annotated[Function, Option(help="Function: fib, or add100, which takes two seconds")]


@app.command("mqtool rpc-server", "mqtool rpc-server --function add100", without=("into",), also=PROTOCOL)
def rpc_server(
    queue: UsedQueueOptions,
    receiving: Receiving,
    broker: Broker,
    programs: ExecOptions,
    dedup: DedupOptions,
    function: FunctionOption = "fib",
    max_output: MaxOutput = 128 << 20,
) -> None:
    """Answer requests (tutorial 6)."""
    write = delivery_writer(receiving, lambda _: " [.] ")
    is_quick = programs.command is None and function == "fib"
    if programs.command is None:
        name, compute = str(function), rpc_functions.of_integer(rpc_functions.FUNCTIONS[function])
    else:
        name = programs.command.split()[0]
        compute = rpc_functions.of_program(
            ExecCommand(
                programs.command,
                shell=programs.shell,
                timeout=receiving.timeout,
                capture=max_output,
                pass_url=programs.pass_url,
            )
        )
    target = queue.of(broker.names.rpc_queue)
    handled = dedup.opened()
    answering = broker.lines.answering_add100 if name == "add100" else f" [.] {name}({{n}})"

    def show(request: Delivery) -> None:
        if receiving.printing.has_form:
            write.add(request)
        else:
            write.batched.add(output.encoded(answering.format(n=output.one_line(request.text))))

    access = broker.access()
    with access.channel_or_session() as channel:
        if handled is not None:
            compute = rpc_functions.answering_once(compute, handled, channel.cluster, output.notice)
        answered = rpc_functions.answering_errors(compute)

        def answer_visibly(request: Delivery) -> Message:
            show(request)
            if not is_quick:
                write.flush()  # show the request while it is being computed
            return answered(request)

        settings = receiving.changed(timeout=None if programs.command else receiving.timeout).settings(
            (_MANY if is_quick else rpc.ONE_AT_A_TIME)._replace(before_acknowledging=write.flush)
        )
        known = checked(target, queue, channel, broker, access)
        if broker.lines.purges_requests and administration.exists(channel, known):
            administration.purge(channel, known.name)
        waiting = broker.lines.awaiting_add100 if name == "add100" else broker.lines.awaiting_requests
        answers = _serve(channel, known, answer_visibly, settings)
        with consuming(receiving.ready_file, channel, waiting):
            for _, reply in answers:
                if reply.properties.get("type") == ERROR:
                    output.warning(f"answered with an error: {reply.body.decode()}")
                rpc_functions.stop_if_broken(reply)


def _serve(
    channel: ChannelOrSession, queue: Queue, function: rpc.Function, settings: Settings
) -> Iterator[tuple[Delivery, Message]]:
    if isinstance(channel, Channel):
        return rpc.serve(channel, queue, function, settings)
    from mqtool.tutorials import amqp10_rpc

    return amqp10_rpc.serve(channel, queue, function, settings)


@app.command("mqtool rpc-client 30", "mqtool rpc-client 1 2 3 --function add100 --timeout 10s", also=PROTOCOL)
def rpc_client(
    broker: Broker,
    requests: Annotated[
        list[str] | None, Argument(help="Integers; several are sent at once", show_default="30")
    ] = None,
    queue: Annotated[str | None, queue_option("The server's queue")] = None,
    function: FunctionOption = "fib",
    timeout: Annotated[float, Option(help="Total time limit (exit 124)", **TIME_LIMIT)] = 30.0,
    direct_reply_to: Annotated[bool, Option(help="Receive replies through amq.rabbitmq.reply-to")] = False,
    raw: Annotated[bool, Option(help="Print results only, one per line")] = False,
    any_text: Annotated[bool, Option("--text", help="Send any text, not only integers")] = False,
) -> None:
    """Send requests to the RPC server (tutorial 6)."""
    asked = requests or ["30"]
    failed = answered = status = 0
    if not any_text and queue in (None, broker.names.rpc_queue.name):
        _check_integers(asked, function)
    with broker.access().channel_or_session(confirm_timeout=min(timeout, CONFIRM_TIMEOUT)) as channel:
        requesting = broker.lines.requesting_add100 if function == "add100" else " [x] Requesting fib({n})"
        for request in asked if len(asked) <= _SHOWN or current().verbose else ():
            output.status(requesting.format(n=request))
        bodies = [request.encode("utf-8", "surrogateescape") for request in asked]
        target = broker.names.rpc_queue if queue is None else QueueOptions(queue=queue).of(broker.names.rpc_queue)
        reply_queue = rpc.DIRECT_REPLY_TO if direct_reply_to else PRIVATE_QUEUE
        _tell_if_nobody_serves(channel, target, timeout)
        results = BatchedOutput()
        settings = Settings(timeout=timeout, before_acknowledging=results.flush)
        answers = _call(channel, target, bodies, settings, reply_queue)
        for reply in rpc_functions.in_order(answers, channel, target, len(bodies)):
            answered += 1
            if rpc_functions.EXIT_STATUS in reply.headers:
                results.flush()
                status = status or _show_remote(reply, raw=raw)
            elif reply.properties.get("type") == ERROR:
                failed += 1
                results.flush()
                output.warning(f"the server answered with an error: {reply.text}")
            else:
                got = output.encoded(broker.lines.got.format(body=output.visible(reply.text)))
                results.add(_alone(reply) + b"\n" if raw else got)
        results.flush()
    if answered < len(asked):
        stopping.exit_if_requested()
    if status:
        raise SystemExit(status)
    if failed == len(asked):
        raise BadData("the server refused the request" if failed == 1 else f"the server refused all {failed} requests")
    if failed:
        raise SomeFailed(f"the server refused {failed} of {len(asked)} requests")


def _call(
    channel: ChannelOrSession, queue: Queue, requests: list[bytes], settings: Settings, reply_to: Queue
) -> Iterator[tuple[int, Delivery]]:
    if isinstance(channel, Channel):
        return rpc.call(channel, queue, requests, settings, reply_to)
    from mqtool.tutorials import amqp10_rpc

    return amqp10_rpc.call(channel, queue, requests, settings, reply_to)


def _tell_if_nobody_serves(channel: ChannelOrSession, queue: Queue, timeout: float) -> None:
    with contextlib.suppress(NotFound, AccessRefused, DeclaredDifferently):  # the requests will fail with this error
        if not administration.depth(channel, queue.name).consumers:
            server = "mqtool rpc-server" if queue.name == "rpc_queue" else pasteable("rpc-server --queue=", queue.name)
            output.notice(
                f"no server consumes from queue {queue.name!r}; waiting {compact_duration(timeout)} for one: {server}"
            )


def _check_integers(requests: list[str], function: Function) -> None:
    """Raise UsageError if a request is not an integer, which would crash any tutorial server that receives it."""
    for request in requests:
        if not re.fullmatch("[0-9]+" if function == "fib" else "[+-]?[0-9]+", request):
            kind = "a whole number from 0 up" if function == "fib" else "an integer"
            raise UsageError(
                f"the request {request!r} is not {kind}",
                "other requests crash the tutorials' servers; for a server that accepts text, use --text",
            )


def _show_remote(reply: Delivery, *, raw: bool) -> int:
    status = reply.headers[rpc_functions.EXIT_STATUS]
    if raw:
        output.show_bytes(_alone(reply))
    else:
        output.show(f" [.] Got {output.visible(reply.text.rstrip())}")
    for line in str(reply.headers.get(rpc_functions.STDERR) or "").splitlines():
        output.notice(f"the server's program printed on stderr: {line}")
    return status if isinstance(status, int) and 0 <= status <= 255 else ExitCode.FAILED


def _alone(reply: Delivery) -> bytes:
    return output.visible(reply.text).encode() if output.is_terminal(1) else reply.body
