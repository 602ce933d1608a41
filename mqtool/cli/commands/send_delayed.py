"""mqtool send-delayed."""

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated

import typer

from mqtool.amqp import Channel
from mqtool.cli.access import Access
from mqtool.cli.broker_access import dialect_names
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.options import ExchangeOptions, Publishing
from mqtool.cli.options.queue_options import tutorials_exchange
from mqtool.cli.pipe.publishing import echo, publishing_channel
from mqtool.cli.pipe.source import Addressing
from mqtool.delays.delay_plugin import can_delay
from mqtool.errors import UsageError
from mqtool.message import DUE, Message
from mqtool.topology import Exchange
from mqtool.tutorials import delayed_messages
from mqtool.tutorials.dialects import NAMES, Dialect

app = typer.Typer()

#: The default delay in seconds.
DEFAULT_DELAY = 5.0


#: The plugin's header that holds the delay in milliseconds.
X_DELAY = "x-delay"


#: The argument of a delayed exchange that names its routing type.
TYPE_INSIDE = "x-delayed-type"


KeepDelay = Annotated[
    bool,
    typer.Option("--keep-delay", help="Delay messages again, as their x-delay headers say", rich_help_panel="Delay"),
]


RoutingKey = Annotated[
    str | None,
    typer.Option(
        "--routing-key", "-r", help="Routing key", show_default="delay_queue", rich_help_panel="Topology", metavar="KEY"
    ),
]


@command(
    app,
    "mqtool send-delayed --delay 5s 'Hello World!'",
    "mqtool send-delayed --json < messages.ndjson",
    effect=Effect.CHANGES,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].delay_exchange)},
    without=("protocol",),
    heading="Tutorials",
)
def send_delayed(
    exchange: ExchangeOptions, publishing: Publishing, routing_key: RoutingKey = None, keep_delay: KeepDelay = False
) -> None:
    """Send messages that arrive later, by default after 5 s."""
    names, delays = dialect_names(publishing.broker), publishing.delays
    target = exchange.of(names.delay_exchange)
    if keep_delay and (delays.are_given or not publishing.options.as_json):
        raise UsageError("--keep-delay needs --json, and cannot be combined with --delay or --at")
    # With the tutorial's own names, the sender declares the receiver's queue too.
    is_tutorials = target.name == names.delay_exchange.name and routing_key is None
    queue = names.delay_queue if is_tutorials else None
    if not delays.are_given and not publishing.options.as_json:
        delays = replace(delays, delay=DEFAULT_DELAY)
    adapt = None if delays.are_given else partial(_delayed_as_it_says, keep_delay=keep_delay)
    asked, addressing = replace(publishing, delays=delays), Addressing(target.name, routing_key)
    key = names.delay_queue.name
    default = publishing.broker.lines.hello if exchange.exchange is None else None
    with publishing_channel(
        asked, target, addressing, opened=Access.channel, leads_to=queue, default=default, adapt=adapt
    ) as (channel, outgoing):
        known = as_known(channel, target)
        outgoing.report(delayed_messages.send(channel, known, key, outgoing.messages, queue), _sent)


def as_known(channel: Channel, exchange: Exchange) -> Exchange:
    """Return the delayed exchange or, if the broker lacks the plugin, an ordinary exchange that routes the same way."""
    if can_delay(channel, exchange):
        return exchange
    arguments = {name: value for name, value in exchange.arguments.items() if name != TYPE_INSIDE}
    return exchange._replace(type=str(exchange.arguments.get(TYPE_INSIDE, "direct")), arguments=arguments)


def _delayed_as_it_says(message: Message, *, keep_delay: bool) -> Message:
    """Set the delay of a message read from NDJSON: its "delay" or "at", else its x-delay header, else the default.

    A received copy of a delayed message gets no delay, except with --keep-delay. Some versions of the plugin make
    x-delay negative once the delay is over.
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
    return echo(" [x] Sent '{body}'", message) + due
