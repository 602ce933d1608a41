"""mqtool receive."""

from functools import partial
from typing import Annotated, Any

from mqtool.amqp import Channel
from mqtool.cli.access import Access
from mqtool.cli.command_line import Option
from mqtool.cli.options import PROTOCOL, Broker, Commands, UsedQueueOptions
from mqtool.cli.options.queue_options import checked
from mqtool.cli.options.receiving_options import OFFSET, Receiving, Where
from mqtool.cli.pipe.receiving import Matching, receiving_channel
from mqtool.tutorials import hello_world

app = Commands()


@app.command(
    "mqtool receive",
    "mqtool receive --raw -o app.log",
    "mqtool receive --json | mqtool send --json -q b",
    also=PROTOCOL,
)
def receive(
    queue: UsedQueueOptions,
    receiving: Receiving,
    broker: Broker,
    offset: Annotated[Any | None, Option(help="Where to start in a stream", panel="Receiving", **OFFSET)] = None,
    filters: Annotated[
        list[str] | None,
        Option("--filter", metavar="VALUE", help="Only chunks of a stream with VALUE (AMQP 1.0)", panel="Receiving"),
    ] = None,
    sql: Annotated[
        str | None, Option(metavar="CONDITION", help="SQL filter for a stream (RabbitMQ 4.2)", panel="Receiving")
    ] = None,
    where: Where = None,
) -> None:
    """Receive messages from a queue (tutorial 1).

    With --where, messages that do not match stay in the queue, but no other consumer gets them until the command ends.
    """
    matching = Matching(receiving, where, skips=offset is not None)
    settings = matching.settings()._replace(offset=offset)
    opened = partial(Access.channel_or_session, values=filters or (), sql=sql)
    with receiving_channel(receiving, broker, broker.lines.received, opened=opened) as (channel, incoming):
        target = checked(queue.of(broker.names.hello), queue, channel, broker, incoming.access)
        settings = incoming.printed(settings)
        if isinstance(channel, Channel):
            deliveries = hello_world.receive(channel, target, settings)
        else:
            from mqtool.tutorials import amqp10_hello_world

            deliveries = amqp10_hello_world.receive(channel, target, settings)
        incoming.print_all(matching.of(channel, deliveries, settings))
