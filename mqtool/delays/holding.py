"""Turning messages with a delay into what is published instead."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from mqtool.amqp import Channel
from mqtool.delays.plugin import PluginMissing, ThroughPlugin, has_plugin
from mqtool.delays.queues import SHORTEST_STEP, ThroughQueues, step_of
from mqtool.delays.via import LONGEST, Via
from mqtool.delays.ways import Destination, Notice, Place, Way
from mqtool.duration import compact_duration
from mqtool.errors import BadData
from mqtool.message import DUE, PERSISTENT, Message
from mqtool.topology import DELAYED

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
    """

    def __init__(self, channel: Channel, via: Via, destination: Destination, notice: Notice) -> None:
        self._channel = channel
        self._via = via
        self._destination = destination
        self._notice = notice
        self._way: Way | None = None
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
        place = self.choose().place(message, delay)
        # Declaring has taken time. It counts for a message with a time of arrival, not for one with a delay.
        return self._as_held(message, max(1, _milliseconds(message)), place)

    def _as_held(self, message: Message, delay: int, place: Place | None) -> Held:
        due = _now() + delay if message.due is None else round(message.due * 1000)
        headers = {**(message.properties.get("headers") or {}), DUE: due}
        original = replace(message, delay=None, due=due / 1000)
        held = Held(message.body, message.routing_key, message.exchange, {**message.properties, "headers": headers})
        held.message_id, held.original = message.message_id, original
        if place is not None:
            held.exchange = place.exchange
            held.routing_key = message.routing_key if place.routing_key is None else place.routing_key
            held.properties = self.choose().properties(held, delay)
            held.properties.setdefault("delivery_mode", PERSISTENT)  # what waits must survive a restart
        return held

    def choose(self) -> Way:
        """Choose a way, and say which; raises PluginMissing as hold() does."""
        if self._way is None:
            self._way = self._chosen()
        return self._way

    def _chosen(self) -> Way:
        broker = self._channel.connection.broker
        if self._via is not Via.TTL:
            way = ThroughPlugin(self._channel, self._destination, self._notice)
            if has_plugin(self._channel, way.exchange):
                self._notice(f"messages wait in exchange {way.exchange.name!r}: {broker} has the type {DELAYED}")
                return way
            if self._via is Via.PLUGIN:
                raise PluginMissing(broker)
            self._notice(f"messages wait in queues: {broker} has no exchange type {DELAYED}")
        return ThroughQueues(self._channel, self._destination, self._notice)


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
