"""mqtool send-delayed, mqtool receive-delayed."""

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Annotated

from typer import Option

from mqtool.amqp import Channel
from mqtool.cli.display import output
from mqtool.cli.options import (
    Broker,
    Commands,
    ExchangeOptions,
    Publishing,
    Receiving,
    UsedQueueOptions,
    exchange_option,
)
from mqtool.cli.options.values import Where
from mqtool.cli.pipe.first_use import checked
from mqtool.cli.pipe.matching import Matching
from mqtool.cli.pipe.publishing import publish, text
from mqtool.cli.pipe.receiving import print_deliveries
from mqtool.cli.pipe.source import Addressing
from mqtool.delays.plugin import LOSES, can_delay
from mqtool.errors import UsageError
from mqtool.message import DUE, Delivery, Message
from mqtool.topology import DELAYED, Exchange
from mqtool.tutorials import delayed_messages

app = Commands()

#: Seconds, where nothing says otherwise.
DEFAULT_DELAY = 5.0
#: The plugin's header, in milliseconds.
X_DELAY = "x-delay"
#: The argument of a delayed exchange that says how it routes.
TYPE_INSIDE = "x-delayed-type"
KeepDelay = Annotated[
    bool, Option("--keep-delay", help="Delay copies of delayed messages again", rich_help_panel="Delay")
]
RoutingKey = Annotated[str | None, Option("--routing-key", "-r", help="Routing key", rich_help_panel="Topology")]


@app.command("mqtool send-delayed --delay 5s 'Hello World!'", "mqtool send-delayed --json < messages.ndjson")
def send_delayed(
    exchange: ExchangeOptions, publishing: Publishing, routing_key: RoutingKey = None, keep_delay: KeepDelay = False
) -> None:
    """Send messages that arrive later, in 5 s by default."""
    names, delays = publishing.broker.names, publishing.delays
    target = exchange.of(names.delay_exchange)
    if keep_delay and (delays.are_given or not publishing.options.as_json):
        raise UsageError("--keep-delay is for the messages of --json, with neither --delay nor --at")
    # With names of their own, sender and receiver agree on the queue, too.
    is_tutorials = target.name == names.delay_exchange.name and routing_key is None
    queue = names.delay_queue if is_tutorials else None
    if not delays.are_given and not publishing.options.as_json:
        delays = delays._replace(delay=DEFAULT_DELAY)
    publish(
        publishing._replace(delays=delays),
        lambda channel, messages: delayed_messages.send(
            channel, _as_known(channel, target), names.delay_queue.name, messages, queue
        ),
        _sent,
        to=target,
        leads_to=queue,
        addressing=Addressing(target.name, routing_key),
        adapt=None if delays.are_given else partial(_delayed_as_it_says, keep_delay=keep_delay),
    )


@app.command("mqtool receive-delayed", "mqtool receive-delayed -F '%b, %l ms late'")
def receive_delayed(
    queue: UsedQueueOptions,
    receiving: Receiving,
    broker: Broker,
    exchange: Annotated[str | None, exchange_option("Exchange")] = None,
    routing_key: RoutingKey = None,
    where: Where = None,
) -> None:
    """Receive delayed messages; show how late each came.

    With --where, what does not match stays in the queue, as with 'mqtool receive'.
    """
    matching = Matching(receiving, where)
    target = queue.of(broker.names.delay_queue)
    delaying = ExchangeOptions(exchange).of(broker.names.delay_exchange)
    key = broker.names.delay_queue.name if routing_key is None else routing_key

    def consumer(channel: Channel) -> Iterator[Delivery]:
        known = _as_known(channel, delaying)
        if known.type == DELAYED and target.arguments.get("x-queue-type") == "quorum":
            output.warning(LOSES)
        into_queue = checked(target, queue, channel, broker)
        return matching.of(channel, delayed_messages.receive(channel, known, key, into_queue, matching.settings()))

    print_deliveries(receiving, broker, consumer, _received)


def _as_known(channel: Channel, exchange: Exchange) -> Exchange:
    """The exchange; without the plugin, one that routes the same way: messages then wait in queues before they come."""
    if can_delay(channel, exchange):
        return exchange
    arguments = {name: value for name, value in exchange.arguments.items() if name != TYPE_INSIDE}
    return exchange._replace(type=str(exchange.arguments.get(TYPE_INSIDE, "direct")), arguments=arguments)


def _delayed_as_it_says(message: Message, *, keep_delay: bool) -> Message:
    """For NDJSON: "delay" or "at", else the plugin's header, else the command's own delay; none for a copy.

    The plugin makes x-delay negative when it is over, but not in all its versions.
    """
    if message.delay is not None or message.due is not None:
        return message
    headers = dict(message.properties.get("headers") or {})
    is_copy = message.received and not {X_DELAY, DUE}.isdisjoint(headers)
    milliseconds = headers.pop(X_DELAY, None)
    if is_copy and not keep_delay:
        message.delay = 0.0
    elif type(milliseconds) is int:
        message.delay = (abs(milliseconds) if keep_delay else max(0, milliseconds)) / 1000
    else:
        message.delay = DEFAULT_DELAY
        return message
    message.properties = {**message.properties, "headers": headers}
    return message


def _sent(message: Message) -> str:
    due = "" if message.due is None else f", due at {datetime.fromtimestamp(message.due):%H:%M:%S}"
    return f" [x] Sent '{text(message)}'{due}"


def _received(delivery: Delivery) -> str:
    late = delivery.lateness
    return " [x] Received " if late is None else f" [x] Received, {late:,} ms late: "
