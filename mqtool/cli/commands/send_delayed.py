"""mqtool send-delayed, receive-delayed; delayed ls, show, cancel, now (and relay, migrate: see delayed_relay.py)."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from mqtool import ndjson
from mqtool import where as conditions
from mqtool.amqp import Channel
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.command_line import Argument, Option
from mqtool.cli.commands import delayed_relay
from mqtool.cli.display import layout, output
from mqtool.cli.options import (
    Broker,
    Commands,
    ExchangeOptions,
    ManagedBroker,
    Publishing,
    UsedQueueOptions,
    Yes,
    ask,
    exchange_option,
)
from mqtool.cli.options.queue_options import checked
from mqtool.cli.options.receiving_options import Receiving, Where
from mqtool.cli.pipe.publishing import publishing_channel, text
from mqtool.cli.pipe.receiving import Matching, receiving_channel
from mqtool.cli.pipe.source import Addressing
from mqtool.delays.delay_plugin import LOSES, can_delay
from mqtool.duration import compact_duration
from mqtool.errors import SomeFailed, UsageError
from mqtool.message import DUE, Delivery, Message
from mqtool.spelling import counted
from mqtool.topology import DELAYED, Exchange
from mqtool.tutorials import delayed_messages
from mqtool.work.pending_delays import Choice, Waiting, WaitingMessages

app = Commands()

#: The default delay in seconds.
DEFAULT_DELAY = 5.0
#: The plugin's header that holds the delay in milliseconds.
X_DELAY = "x-delay"
#: The argument of a delayed exchange that names its routing type.
TYPE_INSIDE = "x-delayed-type"
KeepDelay = Annotated[bool, Option("--keep-delay", help="Delay copies of delayed messages again", panel="Delay")]
RoutingKey = Annotated[
    str | None, Option("--routing-key", "-r", help="Routing key", show_default="delay_queue", panel="Topology")
]


@app.command("mqtool send-delayed --delay 5s 'Hello World!'", "mqtool send-delayed --json < messages.ndjson")
def send_delayed(
    exchange: ExchangeOptions, publishing: Publishing, routing_key: RoutingKey = None, keep_delay: KeepDelay = False
) -> None:
    """Send messages that arrive later, by default after 5 s."""
    names, delays = publishing.broker.names, publishing.delays
    target = exchange.of(names.delay_exchange)
    if keep_delay and (delays.are_given or not publishing.options.as_json):
        raise UsageError("--keep-delay needs --json, and cannot be combined with --delay or --at")
    # With the tutorial's own names, the sender declares the receiver's queue too.
    is_tutorials = target.name == names.delay_exchange.name and routing_key is None
    queue = names.delay_queue if is_tutorials else None
    if not delays.are_given and not publishing.options.as_json:
        delays = delays.changed(delay=DEFAULT_DELAY)
    adapt = None if delays.are_given else partial(_delayed_as_it_says, keep_delay=keep_delay)
    asked, addressing = publishing.changed(delays=delays), Addressing(target.name, routing_key)
    key = names.delay_queue.name
    with publishing_channel(
        asked, target, addressing, opened=Access.channel, leads_to=queue, adapt=adapt, default_key=key
    ) as (channel, outgoing):
        known = _as_known(channel, target)
        outgoing.report(delayed_messages.send(channel, known, key, outgoing.messages, queue), _sent)


@app.command("mqtool receive-delayed", "mqtool receive-delayed -F '%b, %l ms late'")
def receive_delayed(
    queue: UsedQueueOptions,
    receiving: Receiving,
    broker: Broker,
    exchange: Annotated[str | None, exchange_option("Exchange")] = None,
    routing_key: RoutingKey = None,
    where: Where = None,
) -> None:
    """Receive delayed messages; show how late each one arrived.

    With --where, messages that do not match stay in the queue, as with 'mqtool receive'.
    """
    matching = Matching(receiving, where)
    target = queue.of(broker.names.delay_queue)
    delaying = ExchangeOptions(exchange=exchange).of(broker.names.delay_exchange)
    key = broker.names.delay_queue.name if routing_key is None else routing_key

    with receiving_channel(receiving, broker, _received, opened=Access.channel) as (channel, incoming):
        known = _as_known(channel, delaying)
        if known.type == DELAYED and target.arguments.get("x-queue-type") == "quorum":
            output.warning(LOSES)
        target = checked(target, queue, channel, broker, incoming.access)
        if exchange is not None and routing_key is None:
            output.notice(
                f"queue {target.name!r} is bound to exchange {exchange!r} with key {key!r}; to use another key: -r"
            )
        settings = incoming.printed(matching.settings())
        deliveries = delayed_messages.receive(channel, known, key, target, settings)
        incoming.print_all(matching.of(channel, deliveries, settings))


def _as_known(channel: Channel, exchange: Exchange) -> Exchange:
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
    return f" [x] Sent '{text(message)}'{due}"


def _received(delivery: Delivery) -> str:
    late = delivery.lateness
    return " [x] Received " if late is None else f" [x] Received, {late:,} ms late: "


delayed = app.group("delayed", "Show, cancel, deliver or relay delayed messages.")
delayed.makers.update(delayed_relay.app.makers)

AsJson = Annotated[bool, Option("--json", help="Print NDJSON")]
Ids = Annotated[list[str] | None, Argument(metavar="[ID]...", help="Message ids")]
_COLUMNS = ("to", "kind", "wait", "messages", "held_in")


@contextmanager
def _waiting(access: Access) -> Iterator[WaitingMessages]:
    with access.connect() as connection:
        yield WaitingMessages(connection.channel(), access.management(), access.vhost)


@delayed.command("mqtool delayed ls", "mqtool delayed ls --json")
def ls(broker: ManagedBroker, as_json: AsJson = False) -> None:
    """Count waiting messages, by destination and delay."""
    rows: list[dict[str, Any]] = []
    with _waiting(broker.access(reconnects=False)) as waiting:
        for queue, count in waiting.queues():
            wait = compact_duration(queue.seconds) if queue.seconds else None
            row = (queue.to, queue.kind, wait, count, queue.name)
            rows.append(dict(zip(_COLUMNS, row, strict=True)))
        for exchange, count in waiting.exchanges():
            rows.append(dict(zip(_COLUMNS, (exchange, "plugin", None, count, exchange), strict=True)))
    if not layout.show_rows(rows, _COLUMNS, as_json=as_json):
        output.status("no messages are waiting")


@delayed.command("mqtool delayed show", "mqtool delayed show jobs --json")
def show(
    broker: ManagedBroker,
    to: Annotated[str | None, Argument(metavar="[QUEUE]", help="Only those for this queue or exchange")] = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Show waiting messages, and when each is due.

    The messages stay where they are. Showing them has the side effects of 'mqtool peek'. Messages held by the plugin
    cannot be shown.
    """
    shown = 0
    with _waiting(broker.access(reconnects=False)) as waiting, closing(waiting.messages(to)) as messages:
        for each in stopping.until_requested(messages):
            if where is None or where.matches(_record(each)):
                shown += 1
                _show(each, as_json=as_json)
        _say_what_is_hidden(waiting)
    if not shown:
        output.status("no waiting messages found")


def _show(each: Waiting, *, as_json: bool) -> None:
    due = each.queue.due_of(each.delivery)
    if as_json:
        each.message.due = due
        output.show_json_lines(ndjson.from_message(each.message))
        return
    if due is not None:
        when = f"at {datetime.fromtimestamp(due):%Y-%m-%d %H:%M:%S}"
    else:
        when = f"within {compact_duration(each.queue.seconds)}" if each.queue.seconds else "once a relay is running"
    what = f"{each.message.message_id or '(no message id)'}: {when}, to {each.queue.to}: "
    body, rest = output.excerpt(each.message.body)
    output.show(output.one_line(what + body.decode("utf-8", "backslashreplace") + rest))


def _record(each: Waiting) -> conditions.Record:
    return {**conditions.of_message(each.message), "queue": each.queue.name}


def _say_what_is_hidden(waiting: WaitingMessages) -> None:
    for exchange, count in waiting.exchanges():
        output.notice(f"{counted(count)} in exchange {exchange!r} not shown: the plugin does not reveal them")


@delayed.command("mqtool delayed cancel 5f0c…", "mqtool delayed cancel --where 'headers.tenant=a' --yes")
def cancel(broker: ManagedBroker, yes: Yes = False, ids: Ids = None, where: Where = None) -> None:
    """Delete waiting messages for good.

    Messages held by the plugin cannot be cancelled.
    """
    _check(ids, where)
    access = broker.access(reconnects=False)
    ask("delete waiting messages for good", access, yes=yes, hint="pass --yes")
    _take(access, ids, where, WaitingMessages.cancel, "cancelled")


@delayed.command("mqtool delayed now 5f0c…", "mqtool delayed now --where 'routing_key=jobs'")
def now(broker: ManagedBroker, yes: Yes = False, ids: Ids = None, where: Where = None) -> None:
    """Deliver waiting messages now.

    Each message is removed from its wait queue once the broker has confirmed it at its destination. If the command is
    killed, no message is lost, but messages that were already delivered may be delivered again when they are due.
    Messages held by the plugin cannot be delivered early.
    """
    _check(ids, where)
    access = broker.access(reconnects=False)
    ask("deliver waiting messages now", access, yes=yes, is_safe=True)
    stays: list[str] = []
    _take(access, ids, where, lambda waiting, chosen: waiting.deliver(chosen, stays.append), "delivered")
    for why in stays:
        output.warning(why)
    if stays:
        raise SomeFailed(f"{counted(len(stays))} could not be delivered")


def _check(ids: list[str] | None, where: conditions.Where | None) -> None:
    if not ids and where is None:
        raise UsageError("select messages by id, or with --where", "'mqtool delayed show' shows them")


def _take(
    access: Access,
    ids: list[str] | None,
    where: conditions.Where | None,
    take: Callable[[WaitingMessages, Choice], Generator[Waiting]],
    done: str,
) -> None:
    """Cancel or deliver the selected messages, and print how many there were.

    Raises:
        SomeFailed: no waiting message has one of the ids.
    """
    missing, count = set(ids or ()), 0

    def chosen(each: Waiting) -> bool:
        is_chosen = (not ids or each.message.message_id in ids) and (where is None or where.matches(_record(each)))
        if is_chosen:
            missing.discard(each.message.message_id or "")
        return is_chosen

    with _waiting(access) as waiting, closing(take(waiting, chosen)) as taken:
        for count, _ in enumerate(taken, 1):  # noqa: B007
            if stopping.requested() is not None:
                break
        _say_what_is_hidden(waiting)
    output.status(f"{count:,} {done}")
    if missing:
        raise SomeFailed(f"no waiting message has the id {sorted(missing)[0]!r}", "'mqtool delayed show' lists them")
