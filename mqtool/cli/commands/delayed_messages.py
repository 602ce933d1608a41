"""mqtool send-delayed, mqtool receive-delayed."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated

import typer

from mqtool.cli.display.output import WAITING_FOR_MESSAGES
from mqtool.cli.options import (
    Broker,
    DelayOptions,
    ExchangeOptions,
    MessageOptions,
    QueueOptions,
    Receiving,
    live_names,
    takes_groups,
)
from mqtool.cli.pipe import publishing, source
from mqtool.cli.pipe.delaying import held
from mqtool.cli.pipe.source import Addressing
from mqtool.delays.plugin import has_plugin
from mqtool.message import Delivery, Message
from mqtool.topology import Exchange
from mqtool.tutorials import delayed_messages

app = typer.Typer()

#: Seconds, where nothing says otherwise.
DEFAULT_DELAY = 5.0
#: The argument of a delayed exchange that says how it routes.
TYPE_INSIDE = "x-delayed-type"
RoutingKey = Annotated[
    str | None,
    typer.Option("--routing-key", "-r", help="Routing key", rich_help_panel="Topology"),
]


@app.command(epilog="mqtool send-delayed --delay 5s 'Hello World!'\nmqtool send-delayed --json < messages.ndjson")
@takes_groups
def send_delayed(
    exchange: ExchangeOptions,
    options: MessageOptions,
    delays: DelayOptions,
    broker: Broker,
    words: Annotated[list[str] | None, typer.Argument(help="Message words (default: stdin, or 'Hello World!')")] = None,
    routing_key: RoutingKey = None,
) -> None:
    """Send messages that arrive later, in 5 s by default."""
    target = exchange.of(broker.names.delay_exchange)
    if not delays.are_given and not options.as_json:
        delays = delays._replace(delay=DEFAULT_DELAY)
    messages = source.messages(
        words,
        options,
        default=b"Hello World!",
        addressing=Addressing(target.name, routing_key),
        delays=delays,
        adapt=None if delays.are_given else _delayed_as_it_says,
    )
    with broker.access().channel(mandatory=options.mandatory, confirm_timeout=options.confirm_timeout) as channel:
        plugin = has_plugin(channel, target)
        if not plugin:
            target = _without_plugin(target)
        published = held(messages, delays, options, channel, exchange=target, plugin=plugin)
        receipts = delayed_messages.send(channel, target, broker.names.delay_queue.name, published)
        publishing.report(receipts, _sent, options, channel, messages)


@app.command(epilog="mqtool receive-delayed\nmqtool receive-delayed -F '%b, %l ms late'")
@takes_groups
def receive_delayed(
    queue: QueueOptions,
    receiving: Receiving,
    broker: Broker,
    exchange: Annotated[
        str | None,
        typer.Option(
            "--exchange",
            "-e",
            help="Exchange",
            rich_help_panel="Topology",
            autocompletion=live_names.exchanges,
        ),
    ] = None,
    routing_key: RoutingKey = None,
) -> None:
    """Receive delayed messages; show how late each came."""
    write = receiving.writer(_received)
    target = queue.of(broker.names.delay_queue)
    delaying = ExchangeOptions(exchange).of(broker.names.delay_exchange)
    with broker.access().channel() as channel:
        if not has_plugin(channel, delaying):
            delaying = _without_plugin(delaying)
        key = broker.names.delay_queue.name if routing_key is None else routing_key
        deliveries = delayed_messages.receive(channel, delaying, key, target, receiving.settings())
        receiving.print_all(channel, deliveries, write, WAITING_FOR_MESSAGES)


def _without_plugin(exchange: Exchange) -> Exchange:
    """What there is instead where the broker does not know the type: messages have waited in queues when they come."""
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
    return f" [x] Sent '{publishing.text(message)}'{due}"


def _received(delivery: Delivery) -> str:
    late = delivery.lateness
    return " [x] Received " if late is None else f" [x] Received, {late:,} ms late: "
