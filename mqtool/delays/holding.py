"""Choose how to delay messages, and rewrite each delayed message so that it waits on the broker."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from mqtool.amqp import Channel
from mqtool.delays import LONGEST, Via
from mqtool.delays.delay_plugin import PluginMissing, ThroughPlugin, can_delay, has_plugin
from mqtool.delays.destinations import DelayPlace, Destination, Warn, expect, is_there
from mqtool.delays.wait_queues import SHORTEST_STEP, ThroughQueues, step_of
from mqtool.duration import compact_duration
from mqtool.errors import BadData
from mqtool.message import DUE, PERSISTENT, Message
from mqtool.spelling import counted
from mqtool.topology import DELAYED, Exchange, Queue

#: The maximum number of unconfirmed messages with the shortest delays: more would wait in buffers on the way to the
#: broker, and be late.
_IN_FLIGHT = 100
#: The number of messages in wait queues at which the user is told how many a broker can move in time.
_MANY = 10_000
#: The two ways to delay messages.
Way = ThroughPlugin | ThroughQueues


class Held(Message):
    """A delayed message, rewritten so that it waits on the broker.

    Attributes:
        original: the message as the publisher wrote it, with its due time.
    """

    __slots__ = ("original",)
    original: Message


class Delaying:
    """Rewrites messages with a delay so that they wait on the broker.

    Args:
        channel: publishes the messages.
        notice: called with a sentence that says which way of delaying was chosen, and why, if nothing waits there yet,
            or what its limits are.
        warn: called with a sentence about the risks of the chosen way.
    """

    def __init__(
        self, channel: Channel, via: Via, destination: Destination, notice: Callable[[str], None], warn: Warn
    ) -> None:
        self._channel = channel
        self._via = via
        self._destination = destination
        self._notice = notice
        self._through_plugin = ThroughPlugin(channel, destination, warn)
        self._through_queues = ThroughQueues(channel, destination, warn)
        self._ways: dict[bool, Way] = {}
        #: Why wait queues were chosen, until a message is put into one.
        self._why = ""
        self._known: set[str] = {""}
        self._overdue = self._in_wait_queues = 0

    def hold(self, messages: Iterable[Message | None]) -> Iterator[Message | None]:
        """Yield the messages to publish; messages with a delay are rewritten.

        Raises:
            PluginMissing: the user chose the plugin, but the broker does not have it.
            BadData: a message cannot be delayed.
        """
        for message in messages:
            if message is None or (message.delay is None and message.due is None):
                yield message
                continue
            while self._channel.in_flight >= _may_be_in_flight(message):
                yield None
            yield self._held(message)
        if self._overdue:
            self._notice(f"already due, so sent at once: {counted(self._overdue)}")

    def _held(self, message: Message) -> Message:
        delay = _milliseconds(message)
        if delay <= 0:
            self._overdue += message.due is not None
            return self._as_held(message, 0, None)
        check_delay(message)
        way = self.choose(self._destination.of(message))
        if way is self._through_queues:
            self._count_in_wait_queues()
            if self._why and self._through_queues.is_new(message, delay):
                self._notice(self._why)
            self._why = ""
        place = way.place(message, lambda: max(1, _milliseconds(message)))
        return self._as_held(message, delay, place)

    def _count_in_wait_queues(self) -> None:
        self._in_wait_queues += 1
        if self._in_wait_queues == _MANY:
            self._notice(
                "many messages for wait queues: a broker moves some 2,000 a second, and messages that are due faster "
                "arrive late ('mqtool help delays')"
            )

    def _as_held(self, message: Message, delay: int, place: DelayPlace | None) -> Held:
        due = _now() + delay if message.due is None else round(message.due * 1000)
        properties = message.properties if place is None else {"delivery_mode": PERSISTENT, **place.properties}
        headers = {**(properties.get("headers") or {}), DUE: due}
        held = Held(message.body, message.routing_key, message.exchange, {**properties, "headers": headers})
        held.message_id, held.original = message.message_id, replace(message, delay=None, due=due / 1000)
        if place is not None:
            held.exchange = place.exchange
            held.routing_key = message.routing_key if place.routing_key is None else place.routing_key
        return held

    def choose(self, target: Exchange | Queue | None = None) -> Way:
        """Choose how to delay messages for a target; tell the user about each new choice.

        Raises:
            NotFound: the target is an exchange that does not exist. Nothing has been declared for it.
            PluginMissing: the user chose the plugin, but the broker does not have it.
        """
        to = self._destination.to
        target = target or to
        if isinstance(target, Exchange) and target.name not in self._known:
            if target is not to or not self._destination.is_declared:
                expect(self._channel, target)
            self._known.add(target.name)
        self._destination.look(self._channel)
        needs_care = self._destination.may_lead_to_quorum_queue(target)
        if needs_care not in self._ways:
            self._ways[needs_care] = self._chosen(needs_care=needs_care)
        return self._ways[needs_care]

    def _chosen(self, *, needs_care: bool) -> Way:
        """Choose the plugin if available. It can lose messages in a restart, so not if `needs_care` (quorum queue)."""
        broker, exchange = self._channel.connection.broker_to_show, self._through_plugin.exchange
        if self._via is Via.TTL:
            return self._through_queues
        # In front of a classic queue, an exchange of type x-delayed-message loses nothing.
        is_safe = exchange == self._destination.to and self._destination.is_classic
        if self._via is Via.AUTO and needs_care and not is_safe:
            self._why = (
                "messages wait in mqtool's wait queues, because the delay plugin can lose messages to a quorum queue "
                "('mqtool help delays')"
            )
            return self._through_queues
        asks = has_plugin if self._via is Via.PLUGIN else can_delay
        is_new = not is_there(self._channel, exchange)
        if asks(self._channel, exchange):
            if is_new:
                self._notice(f"messages wait in exchange {exchange.name!r}: {broker} has the type {DELAYED}")
            return self._through_plugin
        if self._via is Via.PLUGIN:
            raise PluginMissing(self._channel.connection.broker)
        self._why = f"messages wait in queues: {broker} has no exchange {exchange.name!r} of type {DELAYED}"
        return self._through_queues


def _now() -> int:
    return int(time.time() * 1000)


def check_delay(message: Message) -> None:
    """Raise BadData if a message's delay is longer than any broker's timers allow."""
    if (delay := _milliseconds(message)) > LONGEST:
        raise BadData(f"a delay of {compact_duration(delay / 1000)} is too long", "at most 2^32 - 1 ms, 49 days")


def _milliseconds(message: Message) -> int:
    """Return the milliseconds from now until a message is due."""
    if message.due is not None:
        return round(message.due * 1000) - _now()
    return round((message.delay or 0) * 1000)


def _may_be_in_flight(message: Message) -> int:
    """Return the maximum number of unconfirmed messages. It is larger if `message`, the next one, has a long delay."""
    return _IN_FLIGHT * step_of(min(_milliseconds(message), LONGEST)) // SHORTEST_STEP
