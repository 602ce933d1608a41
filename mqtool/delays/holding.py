"""Turning messages with a delay into what is published instead."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from mqtool.amqp import Channel
from mqtool.delays import LONGEST, Via
from mqtool.delays.delay_plugin import PluginMissing, ThroughPlugin, can_delay, has_plugin
from mqtool.delays.destinations import Destination, Place, Warn, Way
from mqtool.delays.wait_queues import SHORTEST_STEP, ThroughQueues, step_of
from mqtool.duration import compact_duration
from mqtool.errors import BadData
from mqtool.message import DUE, PERSISTENT, Message
from mqtool.topology import DELAYED, Exchange, Queue

#: Messages with short delays that may be on their way to the broker: what queues up there arrives late.
_IN_FLIGHT = 100


@dataclass(slots=True)
class Held(Message):
    """A message on its way to where it is held back; `original` is what its publisher knows, and when it is due."""

    original: Message = field(default_factory=lambda: Message(b""))


class Delaying:
    """Turns messages with a delay into what is published instead.

    Attributes:
        at_fault: after hold() has failed, the message that could not be held back.

    Args:
        channel: the channel that the messages are published on.
        notice: is told which way was taken and why.
        warn: is told what may go wrong there.
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
        self.at_fault: Message | None = None
        self._overdue = 0

    def hold(self, messages: Iterable[Message | None]) -> Iterator[Message | None]:
        """The messages to publish.

        Raises:
            PluginMissing: the user asked for the plugin, and the broker lacks it.
            BadData: a message cannot be held back.
        """
        for message in messages:
            if message is None or (message.delay is None and message.due is None):
                yield message
                continue
            while self._channel.in_flight >= _may_be_in_flight(message):
                yield None
            self.at_fault = message
            yield self._held(message)
            self.at_fault = None
        if self._overdue:
            self._notice(f"{self._overdue:,} messages were already due and sent at once")

    def _held(self, message: Message) -> Message:
        delay = _milliseconds(message)
        if delay <= 0:
            self._overdue += message.due is not None
            return self._as_held(message, 0, None)
        if delay > LONGEST:
            raise BadData(f"a delay of {compact_duration(delay / 1000)} is too long", "at most 2^32 - 1 ms, 49 days")
        way = self.choose(self._destination.of(message))
        place = way.place(message, delay)
        # Declaring has taken time. It counts for a message with a time of arrival, not for one with a delay.
        return self._as_held(message, max(1, _milliseconds(message)), (way, place))

    def _as_held(self, message: Message, delay: int, waiting: tuple[Way, Place] | None) -> Held:
        due = _now() + delay if message.due is None else round(message.due * 1000)
        headers = {**(message.properties.get("headers") or {}), DUE: due}
        original = replace(message, delay=None, due=due / 1000)
        held = Held(message.body, message.routing_key, message.exchange, {**message.properties, "headers": headers})
        held.message_id, held.original = message.message_id, original
        if waiting is not None:
            way, place = waiting
            held.exchange = place.exchange
            held.routing_key = message.routing_key if place.routing_key is None else place.routing_key
            held.properties = way.properties(held, delay)
            held.properties.setdefault("delivery_mode", PERSISTENT)  # what waits must survive a restart
        return held

    def choose(self, target: Exchange | Queue | None = None) -> Way:
        """Choose a way for messages to a target, and say which; raises PluginMissing as hold() does."""
        self._destination.look(self._channel)
        needs_care = self._destination.may_lead_to_quorum_queue(target or self._destination.to)
        if needs_care not in self._ways:
            self._ways[needs_care] = self._chosen(needs_care=needs_care)
        return self._ways[needs_care]

    def _chosen(self, *, needs_care: bool) -> Way:
        """The plugin where it is there, and safe: it can lose messages for a quorum queue when the broker restarts."""
        broker, exchange = self._channel.connection.broker, self._through_plugin.exchange
        if self._via is Via.TTL:
            return self._through_queues
        behind = self._destination.is_delayed_exchange and self._destination.is_classic
        if self._via is Via.AUTO and needs_care and not behind:
            self._notice("messages wait in queues, which lose nothing on the way to a quorum queue")
            return self._through_queues
        asks = has_plugin if self._via is Via.PLUGIN else can_delay
        if asks(self._channel, exchange):
            self._notice(f"messages wait in exchange {exchange.name!r}: {broker} has the type {DELAYED}")
            return self._through_plugin
        if self._via is Via.PLUGIN:
            raise PluginMissing(broker)
        self._notice(f"messages wait in queues: {broker} has no exchange {exchange.name!r} of type {DELAYED}")
        return self._through_queues


def _now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _milliseconds(message: Message) -> int:
    """How long to hold a message back."""
    if message.due is not None:
        return round(message.due * 1000) - _now()
    return round((message.delay or 0) * 1000)


def _may_be_in_flight(message: Message) -> int:
    """The longer the delay, the more messages, as with the steps of the wait queues."""
    return _IN_FLIGHT * step_of(_milliseconds(message)) // SHORTEST_STEP
