"""Messages that wait at the broker until they are due, in one of two ways; no timer lives in a process.

    plugin   publisher ──> (logs.delayed) ···5 s···> (logs) ──> …         the exchange type x-delayed-message holds them
    ttl      publisher ──> [hello.delay.5s] ···5 s···> [hello]            a wait queue for each delay (wait_queues.py)
             publisher ──> (logs.exchange.delay.5s) ──> [the same] ···5 s···> (logs) ──> …

Either way a message goes on to the exchange that it was for, with its own routing key and headers, so that direct,
topic and headers exchanges route it as if it had been published then. It carries the time when it is due (the header
mqtool-due), by which receivers tell how late it is.

Wait queues are 25 ms apart up to ten seconds, and from there on twice as far whenever the delay doubles; each takes the
delays up to its own. A message's time to live is exact all the same: it comes late, by one such step at most, only if
one with a longer delay lies in front of it in the same queue. On the way to a quorum queue, messages wait in quorum
queues, which keep them until they have arrived; else in classic ones, which are faster by far. An exchange may have
nobody to route to, so on the way there nothing is kept for long: a queue that is not available then misses the message,
with the plugin as well.

https://github.com/rabbitmq/rabbitmq-delayed-message-exchange, https://www.rabbitmq.com/docs/ttl
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Protocol

from mqtool.amqp import Channel
from mqtool.duration import compact_duration
from mqtool.errors import BadData, DeclaredDifferently, UnknownExchangeType
from mqtool.message import DUE, Message
from mqtool.topology import DEFAULT_EXCHANGE, DELAYED, Exchange, Queue
from mqtool.tutorials.delayed_messages import delayed
from mqtool.wait_queues import GRACE, AtLeastOnce, wait_queue

#: The longest delay, in milliseconds: what fits into the 32 bits of the broker's timers. 49 days and 17 hours.
LONGEST = 2**32 - 1
#: The same through wait queues, which must outlive the messages in them.
LONGEST_IN_QUEUES = LONGEST - GRACE
#: Milliseconds between one wait queue and the next, for delays of up to so many milliseconds.
_STEP, _STEP_UP_TO = 25, 10_000
#: Seconds after which a wait queue is declared again, so that its lease does not end.
_LEASE = 60.0
#: Messages from which on the plugin is the wrong tool, by its own account.
_TOO_MANY = 100_000
#: The exchange of type x-delayed-message that leads to queues.
TO_QUEUES = Exchange("mqtool.delayed", DELAYED, durable=True, arguments={"x-delayed-type": "direct"})
#: Headers that have a message copied to further queues.
_COPIES = ("CC", "BCC")

Notice = Callable[[str], None]


class Via(StrEnum):
    """What holds messages back."""

    AUTO = "auto"
    PLUGIN = "plugin"
    TTL = "ttl"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where messages go when they are due, as far as they do not say so themselves.

    Attributes:
        exchange: how it is declared; the default exchange for a queue.
        queue: the queue, how it is declared.
    """

    exchange: Exchange = DEFAULT_EXCHANGE
    queue: Queue | None = None


@dataclass(slots=True)
class Held(Message):
    """A message on its way to where it is held back.

    Attributes:
        original: as it was to be published, due when this one is.
    """

    original: Message = field(default_factory=lambda: Message(b""))


class Way(Protocol):
    """A way to hold messages back."""

    def hold(self, message: Message, milliseconds: int) -> Message:
        """What to publish, so that the message arrives after so long.

        Raises:
            BadData: this way cannot do it.
        """


class PluginMissing(DeclaredDifferently):
    """--via plugin, and the broker has none."""

    def __init__(self, broker: str) -> None:
        super().__init__(
            f"{broker} has no exchanges of type {DELAYED}: the delayed message plugin is not enabled there",
            "RabbitMQ up to 4.2 can have it, 4.3 cannot load it: put rabbitmq_delayed_message_exchange, of its "
            "version (4.2.0 is the last), into its plugins directory, then "
            "'rabbitmq-plugins enable rabbitmq_delayed_message_exchange'; or leave it to queues: --via ttl",
        )


def original(message: Message) -> Message:
    """The message that the user sees, of the one that was published."""
    return message.original if isinstance(message, Held) else message


def has_plugin(channel: Channel, exchange: Exchange) -> bool:
    """Declare an exchange of type x-delayed-message, and tell whether the broker knows the type.

    That is asked on a connection of its own: RabbitMQ closes the connection for a type that it does not know.

    Raises:
        DeclaredDifferently: there is an exchange of another type by that name.
        AccessRefused: the user may not declare it.
    """
    with channel.connection.beside() as beside:
        try:
            beside.channel().declare(exchange)
        except UnknownExchangeType:
            return False
    channel.declare(exchange)  # to be there again after a reconnection
    return True


class Delaying:
    """Turns messages with a delay into what is published instead.

    Args:
        channel: the channel that they are published on, by whoever iterates.
        notice: is told, in a sentence, which way was taken and why.
        plugin: whether the broker has it, if that is known.
    """

    def __init__(
        self, channel: Channel, via: Via, destination: Destination, notice: Notice, *, plugin: bool | None = None
    ) -> None:
        self._plugin = plugin
        self._channel = channel
        self._via = via
        self._destination = destination
        self._notice = notice
        self._way: Way | None = None
        self._overdue = 0

    def hold(self, messages: Iterable[Message | None]) -> Iterator[Message | None]:
        """The messages to publish.

        Raises:
            PluginMissing: the user wants it, and the broker has none.
            BadData: a message cannot be held back.
        """
        for message in messages:
            if message is None or (message.delay is None and message.due is None):
                yield message
            else:
                yield self._held(message)
        if self._overdue:
            self._notice(f"{self._overdue:,} of the messages were due already: sent at once")

    def _held(self, message: Message) -> Message:
        now = int(time.time() * 1000)
        if message.due is not None:
            due = round(message.due * 1000)
            self._overdue += due <= now
        else:
            due = now + round((message.delay or 0) * 1000)
        if due - now > LONGEST:
            raise BadData(
                f"a delay of {compact_duration((due - now) / 1000)} is too long", "at most 2^32 - 1 ms, 49 days"
            )
        headers = {**(message.properties.get("headers") or {}), DUE: due}
        plain = replace(message, delay=None, due=None, properties={**message.properties, "headers": headers})
        if due > now:
            plain = self.choose().hold(plain, due - now)
        return _as_held(plain, replace(message, delay=None, due=due / 1000))

    def choose(self) -> Way:
        """Decide on a way, and say which.

        Raises:
            PluginMissing: the user wants it, and the broker has none.
        """
        if self._way is None:
            self._way = self._chosen()
        return self._way

    def _chosen(self) -> Way:
        broker = self._channel.connection.broker
        if self._via is not Via.TTL:
            way = ThroughPlugin(self._channel, self._destination, self._notice)
            if has_plugin(self._channel, way.exchange) if self._plugin is None else self._plugin:
                self._notice(f"held back by the exchange {way.exchange.name!r}, as {broker} has the type {DELAYED}")
                return way
            if self._via is Via.PLUGIN:
                raise PluginMissing(broker)
            self._notice(f"held back in wait queues, as {broker} has no exchanges of type {DELAYED}")
        return ThroughQueues(self._channel, self._destination, self._notice)


def _as_held(message: Message, original: Message) -> Held:
    return Held(**{each.name: getattr(message, each.name) for each in fields(Message)}, original=original)


class ThroughPlugin:
    """By exchanges of type x-delayed-message, which lead to the exchanges and queues that messages are for.

    Attributes:
        exchange: the one that leads to the destination.
    """

    def __init__(self, channel: Channel, destination: Destination, notice: Notice) -> None:
        self._channel = channel
        self._destination = destination
        self._notice = notice
        self._bound: set[tuple[str, str]] = set()
        self._count = 0
        self.exchange = _leading_to(destination.exchange)

    def hold(self, message: Message, milliseconds: int) -> Message:
        self._count += 1
        if self._count == _TOO_MANY:
            self._notice(
                f"{_TOO_MANY:,} delayed messages: the plugin keeps all in one table, and is not made for so many; "
                "--via ttl is"
            )
        to, key = _addressed(message, self._destination)
        exchange = self.exchange if to == self._destination.exchange.name else _leading_to(Exchange(to, durable=True))
        if exchange.name != to:
            self._bind(exchange, to, key)
        if not to:
            message = replace(message, routing_key=key)
        return replace(delayed(message, milliseconds), exchange=exchange.name)

    def _bind(self, exchange: Exchange, to: str, key: str) -> None:
        """Have the delaying exchange lead on: to an exchange, or to a queue."""
        binding = (exchange.name, key if not to else "")
        if binding in self._bound:
            return
        if exchange != self.exchange and not any(name == exchange.name for name, _ in self._bound):
            self._channel.declare(exchange)
        self._channel.bind(Exchange(to) if to else Queue(key), exchange, binding[1])
        self._bound.add(binding)


class ThroughQueues:
    """By wait queues: see above."""

    def __init__(self, channel: Channel, destination: Destination, notice: Notice) -> None:
        self._channel = channel
        self._destination = destination
        self._notice = notice
        self._waiting = AtLeastOnce(channel, notice)
        self._declared: dict[str, float] = {}
        self._said_expiration = False

    def hold(self, message: Message, milliseconds: int) -> Message:
        if milliseconds > LONGEST_IN_QUEUES:
            raise BadData(
                f"a delay of {compact_duration(milliseconds / 1000)} is too long for a wait queue",
                f"at most {compact_duration(LONGEST_IN_QUEUES / 1000)}; --via plugin takes an hour more",
            )
        if "expiration" in message.properties and not self._said_expiration:
            self._said_expiration = True
            self._notice("a message that comes out of a wait queue has no expiration any more: the property is lost")
        to, key = _addressed(message, self._destination)
        wait = min(wait_of(milliseconds), LONGEST_IN_QUEUES)
        name = (
            f"{to}.exchange.delay.{compact_duration(wait / 1000)}"
            if to
            else f"{key}.delay.{compact_duration(wait / 1000)}"
        )
        if time.monotonic() > self._declared.get(name, 0.0):
            self._declare(name, wait, to, key)
            self._declared[name] = time.monotonic() + _LEASE
        # Without x-death: brokers drop what they believe to go in circles.
        headers = {key: value for key, value in message.properties["headers"].items() if key != "x-death"}
        properties = {**message.properties, "headers": headers, "expiration": str(milliseconds)}
        if to:
            return replace(message, exchange=name, properties=properties)
        return replace(message, exchange="", routing_key=name, properties=properties)

    def _declare(self, name: str, wait: int, to: str, key: str) -> None:
        remember = name not in self._declared
        if not to:
            if self._is_quorum(key):
                self._waiting.declare(
                    lambda at_least_once: wait_queue(name, wait, "", key, at_least_once=at_least_once),
                    remember=remember,
                )
            else:
                self._channel.declare(wait_queue(name, wait, "", key, at_least_once=False), remember=remember)
            return
        queue = self._channel.declare(wait_queue(name, wait, to, at_least_once=False), remember=remember)
        if remember:
            # Not by the default exchange: the routing key must stay that of the message.
            entrance = self._channel.declare(Exchange(name, "fanout", durable=True, auto_delete=True))
            self._channel.bind(queue, entrance)

    def _is_quorum(self, queue: str) -> bool:
        known = self._destination.queue
        return known is None or known.name != queue or known.arguments.get("x-queue-type") == "quorum"


def wait_of(milliseconds: int) -> int:
    """The delay of the wait queue that takes a delay."""
    step, up_to = _STEP, _STEP_UP_TO
    while milliseconds > up_to:
        step, up_to = step * 2, up_to * 2
    return -(-milliseconds // step) * step


def _leading_to(exchange: Exchange) -> Exchange:
    """The exchange of type x-delayed-message in front of another."""
    if exchange.type == DELAYED:
        return exchange
    if not exchange.name:
        return TO_QUEUES
    # It knows no keys: the exchange behind it routes. It goes when that one does.
    return Exchange(
        f"{exchange.name}.delayed", DELAYED, exchange.durable, auto_delete=True, arguments={"x-delayed-type": "fanout"}
    )


def _addressed(message: Message, destination: Destination) -> tuple[str, str]:
    """The exchange and the routing key of a message; the key only matters for the default exchange.

    Raises:
        BadData: copies of it would go elsewhere.
    """
    to = destination.exchange.name if message.exchange is None else message.exchange
    key = message.routing_key
    if key is None:
        key = destination.queue.name if destination.queue else ""
    if not to and any(copies in message.properties["headers"] for copies in _COPIES):
        raise BadData("a message with a header CC or BCC cannot be delayed on its way to a queue", "send it to each")
    return to, key
