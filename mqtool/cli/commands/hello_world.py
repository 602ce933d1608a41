"""mqtool send, mqtool receive."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from typer import Option

from mqtool.amqp import Channel
from mqtool.cli.options import OFFSET, Broker, Commands, Publishing, Receiving, UsedQueueOptions, Where, exchange_option
from mqtool.cli.pipe.first_use import checked
from mqtool.cli.pipe.matching import Matching
from mqtool.cli.pipe.publishing import publish
from mqtool.cli.pipe.receiving import print_deliveries
from mqtool.cli.pipe.source import Addressing
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Exchange, Queue
from mqtool.tutorials import hello_world

app = Commands()


@app.command("mqtool send 'Hello World!'", "tail -f app.log | mqtool send -l -q app", "mqtool send --json < saved")
def send(
    queue: UsedQueueOptions,
    publishing: Publishing,
    exchange: Annotated[str | None, exchange_option("Publish to this exchange, and declare nothing")] = None,
    routing_key: Annotated[
        str | None, Option("-r", help="Routing key (default: the queue's name)", rich_help_panel="Topology")
    ] = None,
) -> None:
    """Send messages to a queue (tutorial 1)."""
    target: Queue | Exchange = queue.of(publishing.broker.names.hello)
    if exchange is not None or routing_key is not None:
        target = Exchange(exchange or "", durable=True)

    def publisher(channel: Channel, messages: Iterable[Message | None]) -> Iterator[Receipt]:
        if isinstance(target, Queue):
            return hello_world.send(channel, checked(target, queue, channel, publishing.broker), messages)
        return channel.publish(messages, exchange=target, routing_key=routing_key or "")

    publish(
        publishing,
        publisher,
        publishing.broker.lines.sent,
        to=target,
        addressing=Addressing("" if queue.queue is not None else exchange, queue.queue or routing_key),
        default=publishing.broker.lines.hello,
    )


@app.command("mqtool receive", "mqtool receive --raw -o app.log", "mqtool receive --json | mqtool send --json -q b")
def receive(
    queue: UsedQueueOptions,
    receiving: Receiving,
    broker: Broker,
    offset: Annotated[
        Any | None, Option(help="Where to start in a stream", rich_help_panel="Receiving", **OFFSET)
    ] = None,
    where: Where = None,
) -> None:
    """Receive messages from a queue (tutorial 1).

    With --where, what does not match stays in the queue: it is held until the command ends, so other consumers do not
    get it before.
    """
    matching = Matching(receiving, where, passes_over=offset is not None)

    def consumer(channel: Channel) -> Iterator[Delivery]:
        target = checked(queue.of(broker.names.hello), queue, channel, broker)
        settings = matching.settings()._replace(offset=offset)
        return matching.of(channel, hello_world.receive(channel, target, settings))

    print_deliveries(receiving, broker, consumer, broker.lines.received)
