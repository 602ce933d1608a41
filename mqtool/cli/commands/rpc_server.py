"""mqtool rpc-server."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

import typer

from mqtool.amqp import Channel, Receiving, administration
from mqtool.cli import stopping
from mqtool.cli.access import ChannelOrSession
from mqtool.cli.broker_access import access_to, dialect_names
from mqtool.cli.command_line import command
from mqtool.cli.commands.worker import DedupOptions, ExecOptions
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import TutorialBroker, UsedQueueOptions
from mqtool.cli.options.queue_options import tutorials_queue
from mqtool.cli.options.receiving_options import ReceivingOptions, TimeoutOfRuns
from mqtool.cli.pipe.existence import checked
from mqtool.cli.pipe.receiving import consuming, delivery_writer, print_deliveries_as_script
from mqtool.cli.values import parsed, size
from mqtool.message import ERROR_REPLY, Delivery, Message
from mqtool.topology import Queue
from mqtool.tutorials import rpc
from mqtool.tutorials.dialects import NAMES, Dialect
from mqtool.work import rpc_functions
from mqtool.work.deduplication import Interrupted
from mqtool.work.exec_command import ExecCommand
from mqtool.work.worker import check_in_time

app = typer.Typer()

#: A larger prefetch for fib, which is quick: 2,000 concurrent requests then take 3 s instead of 4.7 s. The scripts of
#: all dialects have a prefetch of 1.
_MANY = Receiving(prefetch=100)


Function = Literal["fib", "add100"]


MaxOutput = Annotated[
    int,
    typer.Option(
        parser=parsed(size),
        metavar="SIZE",
        show_default="128MiB",
        help="Kill a program that prints more, and reply with an error",
        rich_help_panel="Programs",
    ),
]


FunctionOption = Annotated[Function, typer.Option(help="Function to serve: fib, or add100, which takes two seconds")]


@command(
    app,
    "mqtool rpc-server",
    "mqtool rpc-server --function add100",
    effect=Effect.CHANGES,
    instead={"queue": tutorials_queue(NAMES[Dialect.PYTHON].rpc_queue), "timeout": TimeoutOfRuns},
    heading="Tutorials",
    without=("into", "auto_ack"),  # a request must not be acknowledged before its reply is published
)
def rpc_server(
    queue: UsedQueueOptions,
    receiving: ReceivingOptions,
    broker: TutorialBroker,
    programs: ExecOptions,
    dedup: DedupOptions,
    function: FunctionOption = "fib",
    max_output: MaxOutput = 128 << 20,
) -> None:
    """Answer RPC requests (tutorial 6)."""
    lines = broker.lines
    print_deliveries_as_script(receiving.printing, broker)
    write = delivery_writer(receiving, lambda _: " [.] ")
    is_quick = programs.command is None and function == "fib"
    if programs.command is None:
        name = str(function)
        compute = rpc_functions.of_integer(
            rpc_functions.fib_from_0 if is_quick and lines.fib_of_negatives else rpc_functions.FUNCTIONS[function]
        )
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
    names = dialect_names(broker)
    target = queue.of(names.queue(queue.queue, names.rpc_queue))
    handled = dedup.opened()
    answering = lines.answering_add100 if name == "add100" else f" [.] {name}({{n}})"

    def show(request: Delivery) -> None:
        if receiving.printing.has_form:
            write.add(request)
        else:
            write.batched.add(output.encoded(answering.format(n=output.one_line(request.text))))

    access = access_to(broker)
    asked = replace(receiving, timeout=None if programs.command else receiving.timeout)
    stopping.limit_time(asked.timeout)
    with access.channel_or_session() as channel:
        if handled is not None:
            compute = rpc_functions.answering_once(
                compute, handled, channel.cluster, output.notice, lambda: channel.stopping
            )
        answered = rpc_functions.answering_errors(compute)

        def answer_visibly(request: Delivery) -> Message:
            show(request)
            if not is_quick:
                write.flush()  # show the request while it is being computed
            reply = answered(request)
            reply.properties = {**lines.properties, **reply.properties}
            return reply

        many = _MANY if is_quick and broker.dialect is None else rpc.ONE_AT_A_TIME
        settings = asked.settings(many._replace(before_acknowledging=write.flush))
        known = checked(target, queue, channel, broker, access)
        if lines.purges_requests and administration.queue_exists(channel, known):
            administration.purge(channel, known.name)
        waiting = lines.awaiting_add100 if name == "add100" else lines.awaiting_requests
        answers = _serve(channel, known, answer_visibly, settings)
        with consuming(receiving, channel, waiting):
            for request, reply in _until_interrupted(answers, channel):
                check_in_time(channel, request)
                if reply.properties.get("type") == ERROR_REPLY:
                    output.warning(f"answered with an error: {reply.body.decode()}")
                rpc_functions.stop_if_broken(reply)


def _serve(
    channel: ChannelOrSession, queue: Queue, function: rpc.Function, settings: Receiving
) -> Iterator[tuple[Delivery, Message]]:
    if isinstance(channel, Channel):
        return rpc.serve(channel, queue, function, settings)
    from mqtool.tutorials import amqp10_rpc

    return amqp10_rpc.serve(channel, queue, function, settings)


def _until_interrupted(
    answers: Iterator[tuple[Delivery, Message]], channel: ChannelOrSession
) -> Iterator[tuple[Delivery, Message]]:
    """Yield answers until the server is stopped while it waits for another server, without a claim on the request."""
    try:
        yield from answers
    except Interrupted:
        channel.wait_for_confirms()
