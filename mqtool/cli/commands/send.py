"""mqtool send."""

from typing import Annotated

import typer

from mqtool.amqp import Channel
from mqtool.cli.access import Access
from mqtool.cli.broker_access import dialect_names
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.options import Publishing, UsedQueueOptions, exchange_option
from mqtool.cli.options.queue_options import tutorials_queue
from mqtool.cli.pipe.existence import checked
from mqtool.cli.pipe.publishing import publishing_channel
from mqtool.cli.pipe.source import Addressing
from mqtool.errors import UsageError
from mqtool.topology import Exchange, Queue
from mqtool.tutorials import hello_world
from mqtool.tutorials.dialects import NAMES, Dialect

app = typer.Typer()


@command(
    app,
    "mqtool send 'Hello World!'",
    "tail -f app.log | mqtool send -l -q app",
    "mqtool send --every 500ms --count 10 'order {n}'",
    "mqtool send --json < saved",
    effect=Effect.SENDS,
    instead={"queue": tutorials_queue(NAMES[Dialect.PYTHON].hello)},
    heading="Tutorials",
    aliases=("publish", "pub"),
)
def send(
    queue: UsedQueueOptions,
    publishing: Publishing,
    exchange: Annotated[str | None, exchange_option("Publish to this exchange, and declare nothing")] = None,
    routing_key: Annotated[
        str | None,
        typer.Option(
            "--routing-key",
            "-r",
            help="Routing key (default: the queue's name)",
            rich_help_panel="Topology",
            metavar="KEY",
        ),
    ] = None,
) -> None:
    """Send messages to a queue (tutorial 1)."""
    is_declared = exchange is None and routing_key is None
    if not is_declared:
        _check_no_queue_options(queue)
    names = dialect_names(publishing.broker)
    target: Queue | Exchange = queue.of(names.queue(queue.queue, names.hello))
    if not is_declared:
        target = Exchange(exchange or "", durable=True)

    lines = publishing.broker.lines
    addressing = Addressing("" if queue.queue is not None else exchange, queue.queue or routing_key)
    default = lines.hello if is_declared and queue.queue is None else None
    with publishing_channel(
        publishing, target, addressing, opened=Access.channel_or_session, is_declared=is_declared, default=default
    ) as (channel, outgoing):
        if isinstance(target, Queue):
            target = checked(target, queue, channel, publishing.broker, outgoing.access, publishes=True)
            if isinstance(channel, Channel):
                receipts = hello_world.send(channel, target, outgoing.messages)
            else:
                from mqtool.tutorials import amqp10_hello_world

                receipts = amqp10_hello_world.send(channel, target, outgoing.messages)
        else:
            receipts = channel.publish(outgoing.messages, exchange=target, routing_key=routing_key or "")
        outgoing.report(receipts, lines.sent)


def _check_no_queue_options(queue: UsedQueueOptions) -> None:
    """Raise UsageError if an option describes a queue: with --exchange or --routing-key, `send` uses none."""
    if queue.queue is not None:
        raise UsageError(
            "--queue cannot be combined with --exchange or --routing-key",
            "-q QUEUE publishes to a queue, and -e EXCHANGE -r KEY to an exchange",
        )
    if queue.has_settings:
        raise UsageError(
            "settings of a new queue cannot be combined with --exchange or --routing-key",
            "declare the queue first: mqtool queue declare QUEUE",
        )
