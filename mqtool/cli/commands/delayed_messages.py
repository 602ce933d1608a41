"""mqtool send-delayed, mqtool receive-delayed."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated

import typer

from mqtool.amqp import Channel
from mqtool.cli.options import (
    Broker,
    ExchangeOptions,
    Publishing,
    QueueOptions,
    Receiving,
    exchange_option,
    takes_groups,
)
from mqtool.cli.pipe.publishing import publish, text
from mqtool.cli.pipe.receiving import print_deliveries
from mqtool.cli.pipe.source import Addressing
from mqtool.delays.plugin import can_delay
from mqtool.message import Delivery, Message
from mqtool.topology import Exchange
from mqtool.tutorials import delayed_messages

app = typer.Typer()

#: Seconds, where nothing says otherwise.
DEFAULT_DELAY = 5.0
#: The argument of a delayed exchange that says how it routes.
TYPE_INSIDE = "x-delayed-type"
RoutingKey = Annotated[str | None, typer.Option("--routing-key", "-r", help="Routing key", rich_help_panel="Topology")]


@app.command(epilog="mqtool send-delayed --delay 5s 'Hello World!'\nmqtool send-delayed --json < messages.ndjson")
@takes_groups
def send_delayed(exchange: ExchangeOptions, publishing: Publishing, routing_key: RoutingKey = None) -> None:
    """Send messages that arrive later, in 5 s by default."""
    names, delays = publishing.broker.names, publishing.delays
    target = exchange.of(names.delay_exchange)
    if not delays.are_given and not publishing.options.as_json:
        delays = delays._replace(delay=DEFAULT_DELAY)
    publish(
        publishing._replace(delays=delays),
        lambda channel, messages: delayed_messages.send(
            channel, _as_known(channel, target), names.delay_queue.name, messages
        ),
        _sent,
        to=target,
        addressing=Addressing(target.name, routing_key),
        adapt=None if delays.are_given else _delayed_as_it_says,
    )


@app.command(epilog="mqtool receive-delayed\nmqtool receive-delayed -F '%b, %l ms late'")
@takes_groups
def receive_delayed(
    queue: QueueOptions,
    receiving: Receiving,
    broker: Broker,
    exchange: Annotated[str | None, exchange_option("Exchange")] = None,
    routing_key: RoutingKey = None,
) -> None:
    """Receive delayed messages; show how late each came."""
    target = queue.of(broker.names.delay_queue)
    delaying = ExchangeOptions(exchange).of(broker.names.delay_exchange)
    key = broker.names.delay_queue.name if routing_key is None else routing_key
    print_deliveries(
        receiving,
        broker,
        lambda channel: delayed_messages.receive(
            channel, _as_known(channel, delaying), key, target, receiving.settings()
        ),
        _received,
    )


def _as_known(channel: Channel, exchange: Exchange) -> Exchange:
    """The exchange; without the plugin, one that routes the same way: messages then wait in queues before they come."""
    if can_delay(channel, exchange):
        return exchange
    arguments = {name: value for name, value in exchange.arguments.items() if name != TYPE_INSIDE}
    return replace(exchange, type=str(exchange.arguments.get(TYPE_INSIDE, "direct")), arguments=arguments)


def _delayed_as_it_says(message: Message) -> Message:
    """For NDJSON: "delay" or "at", else the header of the plugin, else the command's own delay."""
    if message.delay is not None or message.due is not None:
        return message
    headers = dict(message.properties.get("headers") or {})
    if type(headers.get("x-delay")) is not int:
        message.delay = DEFAULT_DELAY
        return message
    message.delay = max(0, headers.pop("x-delay")) / 1000  # negative: it has been delayed before
    message.properties = {**message.properties, "headers": headers}
    return message


def _sent(message: Message) -> str:
    due = "" if message.due is None else f", due at {datetime.fromtimestamp(message.due):%H:%M:%S}"
    return f" [x] Sent '{text(message)}'{due}"


def _received(delivery: Delivery) -> str:
    late = delivery.lateness
    return " [x] Received " if late is None else f" [x] Received, {late:,} ms late: "
