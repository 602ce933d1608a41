"""Taps: a private queue that gets copies of other queues' messages, through its own bindings or RabbitMQ's firehose.

    publisher ──> (exchange)─┬─> [jobs] ──────> worker
                             └─> [amq.gen-1] ─> tap

A tap burdens its broker as little as possible. It consumes without acknowledgements and receives messages as fast as
they arrive. If its reader is too slow, the tap drops messages itself, so it can count them. Messages pile up on the
broker only while the tap receives nothing at all; the broker then drops the oldest.

The firehose is RabbitMQ's own message tracing: the exchange amq.rabbitmq.trace gets a copy of every message that is
published (routing key publish.EXCHANGE) or delivered (deliver.QUEUE). https://www.rabbitmq.com/docs/firehose
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from mqtool import management
from mqtool.amqp import Channel, Receiving
from mqtool.amqp.administration import ready_after_deliveries
from mqtool.errors import AccessRefused, MqtoolError, NotFound, Unavailable, UsageError
from mqtool.field_values import FieldValue
from mqtool.management import Management, exchange_path, path
from mqtool.message import Delivery
from mqtool.spelling import pasteable
from mqtool.topology import DELAYED, Binding, Exchange, Queue

#: Limits of the private queue: the number of messages, and the total bytes of their bodies.
_MAX_LENGTH, _MAX_SIZE = 20_000, 128 << 20
#: Share of _MAX_LENGTH above which the broker may already have dropped messages.
_NEARLY_FULL = 0.8
#: How often to switch a firehose, if RabbitMQ forgets it again.
_SWITCHES = 10
#: Seconds within which RabbitMQ may undo a request while it handles one for another virtual host.
_AT_THE_SAME_MOMENT = 0.05


class Tap:
    """A private queue that receives copies of the messages that match its bindings.

    Args:
        bindings: the queue's bindings; their destinations are ignored.
        receiving: how to consume; its `buffer` must be set.
    """

    def __init__(self, channel: Channel, bindings: Iterable[Binding], receiving: Receiving) -> None:
        assert receiving.buffer is not None
        self._channel = channel
        self._beside = channel.connection.channel()
        limits: dict[str, FieldValue] = {
            "x-max-length": _MAX_LENGTH,
            "x-max-length-bytes": _MAX_SIZE,
            "x-overflow": "drop-head",
        }
        try:
            self._queue = channel.declare(Queue(exclusive=True, auto_delete=True, arguments=limits))
            for binding in bindings:
                channel.bind(self._queue, Exchange(binding.source), binding.routing_key, binding.arguments)
            self.deliveries: Iterator[Delivery] = map(_copy, channel.consume(self._queue, receiving))
        except AccessRefused as error:
            raise AccessRefused(str(error), _permissions_for(str(error))) from error

    @property
    def queue(self) -> str:
        """The name of the private queue. It changes when the connection is lost."""
        return self._channel.reopening.journal.current_name(self._queue.name)

    def has_printed_all_of(self, queue: str) -> bool:
        """True if a queue has no ready messages, and all copies that this tap got before that have arrived."""
        return not self._beside.depth_of(queue) and not ready_after_deliveries(self._channel, self.queue)

    def has_backlog(self) -> bool:
        """True if the broker may have dropped messages because too many are waiting. Safe to call while consuming."""
        try:
            return self._beside.depth_of(self.queue) > _MAX_LENGTH * _NEARLY_FULL
        except MqtoolError:
            return False  # the connection was lost, which deleted the queue


def _copy(delivery: Delivery) -> Delivery:
    """Remove the name of the private queue: the message is for whatever its exchange routes it to."""
    delivery.queue = ""
    return delivery


def _permissions_for(refusal: str) -> str:
    exchange = re.search(r"exchange '(.*?)'", refusal)
    if exchange:
        return f"the user needs the permission to read from exchange {exchange[1]!r}; a tap changes nothing there"
    return "the user needs all three permissions on queues named amq.gen-…: a tap has such a queue of its own"


#: Exchange types that copy a message to every queue with a matching binding. Others, such as x-consistent-hash, choose
#: one queue for a message, so a tap would take messages away from the other queues.
_COPYING = ("direct", "topic", "fanout", "headers", "x-recent-history", "x-jms-topic")
#: Exchange types that ignore binding keys, and those that ignore the headers in a binding's arguments.
_IGNORES_KEYS = ("fanout", "headers", "x-recent-history")
_IGNORES_HEADERS = ("direct", "topic", "fanout", "x-recent-history")
#: A test of --where that needs no quotes.
_PLAIN_TEST = re.compile(r"(headers\.[\w-]+|routing_key)=(?!True$|False$|None$)[\w.-]+")
_PREDECLARED = {"amq.direct": "direct", "amq.fanout": "fanout", "amq.topic": "topic", "amq.headers": "headers"}
_FIREHOSE = "the broker's firehose shows it: {}"
_COLUMNS = ("source", "destination_type", "routing_key", "arguments")
#: The maximum number of routing keys to show in a note.
_SHOWN = 5


class Bound(NamedTuple):
    """Bindings for a tap's private queue, and sentences for the user about messages that the bindings miss."""

    bindings: tuple[Binding, ...]
    notes: tuple[str, ...] = ()


def to_exchange(
    api: Callable[[], Management],
    vhost: str,
    exchange: str,
    keys: Iterable[str],
    arguments: Mapping[str, Any],
    ask: Callable[[], str] | None = None,
) -> Bound:
    """Return bindings that copy the messages that an exchange routes.

    Args:
        api: returns the management API, to look up the exchange's type, and the keys bound to a direct exchange if
            `keys` is empty.
        ask: returns the exchange's type if the API is not available. It may raise AccessRefused.
        keys: binding keys; empty, or "#" unless the exchange is direct, for all messages.
        arguments: arguments of each binding, for a headers exchange.

    Raises:
        NotFound: there is no such exchange.
        UsageError: this exchange type does not copy messages to every matching binding, or ignores the keys or the
            headers; or the exchange is direct, has no bindings, and `keys` is empty.
    """
    keys = list(keys)
    named = tuple(Binding(exchange, "", key, arguments) for key in keys)
    if arguments and not named:
        named = (Binding(exchange, "", "", arguments),)
    try:
        kind = _PREDECLARED.get(exchange) or _type_of(api(), vhost, exchange)
    except NotFound:
        raise
    except (Unavailable, AccessRefused) as error:
        with suppress(AccessRefused):
            if ask is not None and (told := ask()) != DELAYED:
                _check_copies(exchange, told)
                _check_selects(exchange, told, keys, arguments)
                if told == "direct" and not named:
                    raise UsageError(
                        f"exchange {exchange!r} is direct, and which keys are bound to it is not known ({error})",
                        f"name keys: {pasteable('tap', exchange, 'KEY')}",
                    ) from error
                return Bound(named or (Binding(exchange, "", "#" if told != "headers" else ""),))
        unknown = (
            f"the type of exchange {exchange!r} is not known ({error}): if it divides messages among its queues, this "
            "tap takes some" + "; if it is direct, name its keys" * (not named)
        )
        return Bound(named or (Binding(exchange, "", "#"),), (unknown,))
    _check_copies(exchange, kind)
    _check_selects(exchange, kind, keys, arguments)
    if named or kind != "direct":
        return Bound(named or (Binding(exchange, "", "#" if kind != "headers" else ""),))
    found = management.bindings_from(api(), vhost, exchange, ("routing_key",))
    keys = sorted({binding["routing_key"] for binding in found})
    if not keys:
        raise UsageError(
            f"nothing is bound to the direct exchange {exchange!r}", f"name keys: {pasteable('tap', exchange, 'KEY')}"
        )
    return Bound(tuple(Binding(exchange, "", key) for key in keys), (_shown(exchange, keys),))


def like_queue(api: Management, vhost: str, queue: str) -> Bound:
    """Return a queue's bindings, for a tap. Raises UsageError if it has none, or an exchange makes no copies."""
    api.get(path("queues", vhost, queue), columns="name")  # for a missing queue, the list of bindings would be empty
    found = [each for each in api.items(path("queues", vhost, queue, "bindings"), _COLUMNS) if each["source"]]
    if not found:
        mark = "'" if '"' in queue else '"'
        raise UsageError(
            f"only the default exchange routes to queue {queue!r}, and a tap cannot bind to it",
            _FIREHOSE.format(pasteable("tap '' --firehose --where=", f"routing_key={mark}{queue}{mark}")),
        )
    for exchange in {each["source"] for each in found}:
        _check_copies(exchange, _PREDECLARED.get(exchange) or _type_of(api, vhost, exchange))
    note = f"not shown: messages that reach {queue!r} through the default exchange; --firehose shows them"
    bindings = (Binding(each["source"], "", each["routing_key"], each.get("arguments") or {}) for each in found)
    return Bound(tuple(bindings), (note,))


def _type_of(api: Management, vhost: str, exchange: str) -> str:
    found = api.get(exchange_path(vhost, exchange))
    return str(found["arguments"].get("x-delayed-type") if found["type"] == DELAYED else found["type"])


def _check_copies(exchange: str, kind: str) -> None:
    if kind not in _COPYING:
        raise UsageError(
            f"exchange {exchange!r} is of type {kind}, which divides messages among its queues: a tap would take some",
            _FIREHOSE.format(pasteable("tap --firehose", exchange)),
        )


def _check_selects(exchange: str, kind: str, keys: list[str], arguments: Mapping[str, Any]) -> None:
    if arguments and kind in _IGNORES_HEADERS:
        ignored, general, word = "headers", "headers.NAME=VALUE", "or" if arguments["x-match"] == "any" else "and"
        tests = [f"headers.{name}={value}" for name, value in arguments.items() if name != "x-match"]
    elif keys and "#" not in keys and kind in _IGNORES_KEYS:
        ignored, general, word = "binding keys", "routing_key~REGEX", "or"
        tests = [f"routing_key={key}" for key in keys]
    else:
        return
    condition = f" {word} ".join(tests) if all(map(_PLAIN_TEST.fullmatch, tests)) else general
    hint = pasteable("tap --where=", condition, exchange)
    if kind == "headers":
        hint = f"to select by headers, use -H; by routing key: {hint}"
    raise UsageError(f"exchange {exchange!r} is of type {kind}, which ignores {ignored}", hint)


def _shown(exchange: str, keys: list[str]) -> str:
    more = f", and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
    keys_now = ", ".join(map(repr, keys[:_SHOWN])) + more
    return f"exchange {exchange!r} is direct; tapping the keys that are bound to it now: {keys_now}"


#: The exchange that gets the firehose's copies.
FIREHOSE_EXCHANGE = "amq.rabbitmq.trace"
_PUBLISHED, _DELIVERED = "publish.", "deliver."
#: The types of the headers in which a copy describes the original message.
_COPY_FIELDS: dict[str, type] = {"exchange_name": str, "routing_keys": list, "properties": dict}


def firehose_of_exchange(exchange: str) -> Binding:
    """Return a binding to the firehose's copies of messages published to an exchange; "#" means all exchanges."""
    return Binding(FIREHOSE_EXCHANGE, "", _PUBLISHED + exchange)


def firehose_of_queue(queue: str) -> Binding:
    """Return a binding to the firehose's copies of messages delivered from a queue."""
    return Binding(FIREHOSE_EXCHANGE, "", _DELIVERED + queue)


def firehose_is_on(api: Management, vhost: str) -> bool:
    """True if the firehose is on in this virtual host."""
    return bool(api.get(path("vhosts", vhost), columns="tracing").get("tracing"))


def switch_firehose(api: Management, vhost: str, *, on: bool) -> None:
    """Switch the firehose of a virtual host on or off. Requires an administrator. A broker restart switches it off.

    If two virtual hosts' firehoses are switched at the same moment, RabbitMQ may forget one of them: ask again.

    Raises:
        NotFound: there is no such virtual host.
        Unavailable: if the firehose was not as it should be after ten requests.
    """
    for _ in range(_SWITCHES):
        api.put(path("vhosts", vhost), {**_metadata(api, vhost), "tracing": on})
        time.sleep(_AT_THE_SAME_MOMENT)
        if firehose_is_on(api, vhost) == on:
            return
    raise Unavailable(f"the firehose of the virtual host {vhost!r} cannot be switched {'on' if on else 'off'}")


def _metadata(api: Management, vhost: str) -> dict[str, Any]:
    """Return what a virtual host would lose in a PUT request that does not contain it."""
    found = api.get(path("vhosts", vhost), columns="metadata").get("metadata") or {}
    kept = {name: found[name] for name in ("description", "tags", "default_queue_type") if name in found}
    if kept.get("default_queue_type") == "undefined":  # RabbitMQ 3.12 would store this word as the type
        del kept["default_queue_type"]
    return kept


def firehose_copies(deliveries: Iterable[Delivery], report: Callable[[str], None]) -> Iterator[Delivery]:
    """Yield the firehose's copies. Skip what others have sent to the tap's queue, and report it once.

    Whoever may publish to the default exchange may publish to this queue, and could forge what original_of() reads.
    """
    is_reported = False
    for delivery in deliveries:
        if _is_from_firehose(delivery):
            yield delivery
        elif not is_reported:
            report("ignoring messages that are not copies of the firehose: someone sent them to mqtool's private queue")
            is_reported = True


def _is_from_firehose(delivery: Delivery) -> bool:
    """True if the broker made this copy. No client may publish to its exchange, but a queue can dead-letter to it."""
    told = delivery.headers
    return (
        delivery.exchange == FIREHOSE_EXCHANGE
        and "x-death" not in told
        and all(isinstance(told.get(name), kind) for name, kind in _COPY_FIELDS.items())
        and isinstance(told["properties"].get("headers", {}), dict)
    )


def original_of(copy: Delivery) -> Delivery:
    """Convert one of firehose_copies() back to the original message."""
    told, queue = copy.headers, ""
    if copy.routing_key.startswith(_DELIVERED):
        queue = copy.routing_key.removeprefix(_DELIVERED)
    exchange, key = str(told.get("exchange_name", "")), str((told.get("routing_keys") or [""])[0])
    properties = dict(told.get("properties") or {})
    if isinstance(time := properties.get("timestamp"), int):
        properties["timestamp"] = time % (1 << 32)  # RabbitMQ sends the time as a signed 32-bit number
    redelivered = bool(told.get("redelivered"))
    return Delivery(copy.body, exchange, key, queue, redelivered, properties, copy.delivery_tag, copy.epoch)
