"""Stream subscriptions, which send chunks as the client's credit allows, and groups of single active consumers."""

from collections import deque
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from mqtool.broker.embedded.model.clock import Timer
from mqtool.broker.embedded.model.footprint import SUBSCRIPTION
from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.model.stream_queue import StreamQueueReader
from mqtool.broker.embedded.model.stream_segment import UNFILTERED, ChunkFilters, StoredChunk, bits_of
from mqtool.broker.embedded.model.totals import STREAM
from mqtool.broker.embedded.streaming.stream_frames import (
    RESPONSE,
    Code,
    Fields,
    Key,
    MalformedFrame,
    frame,
    u16,
    u32,
    u64,
)
from mqtool.broker.embedded.streaming.stream_requests import partition_of
from mqtool.broker.embedded.streaming.stream_session import BrokerStreamSession, StreamRefused, check, find_log

#: The memory that a property of a subscription takes besides its characters, in bytes.
_PROPERTY_OVERHEAD = 200

#: If a client does not answer a ConsumerUpdate for this long, the broker closes the connection, as RabbitMQ does.
_ANSWER_MILLISECONDS = 60_000


class _From(IntEnum):
    """The types of offset specifications in the stream protocol."""

    NONE = 0
    FIRST = 1
    LAST = 2
    NEXT = 3
    OFFSET = 4
    TIMESTAMP = 5


class ConsumerGroup:
    """A stream's single active consumers with the same name (RabbitMQ 3.11). Only one of them receives messages.

    Args:
        partition: the stream's index in its super stream, which is used to spread partitions over the consumers.
            None if the stream is not a partition; then the first consumer is the active one.

    Attributes:
        members: the consumers, in the order in which they subscribed.
        active: the active consumer; None while the previous one is stepping down.
    """

    def __init__(self, partition: int | None) -> None:
        self._partition = partition
        self._finishing: StreamSubscription | None = None
        self.members: list[StreamSubscription] = []
        self.active: StreamSubscription | None = None

    def add(self, member: "StreamSubscription") -> None:
        self.members.append(member)
        if len(self.members) == 1:
            self._activate()
        else:
            self._balance()

    def remove(self, member: "StreamSubscription") -> None:
        self.members.remove(member)
        if member in (self.active, self._finishing):
            self._activate()
        else:
            self._balance()

    def stepped_down(self, member: "StreamSubscription") -> None:
        """Activate the next consumer, now that the previous one's client has replied to step_down()."""
        if member is self._finishing:
            self._activate()

    def _chosen(self) -> "StreamSubscription":
        return self.members[(self._partition or 0) % len(self.members)]

    def _activate(self) -> None:
        self._finishing = None
        self.active = self._chosen() if self.members else None
        if self.active is not None:
            self.active.activate()

    def _balance(self) -> None:
        if self.active is not None and self._partition is not None and self._chosen() is not self.active:
            self._finishing, self.active = self.active, None
            self._finishing.step_down()


#: A broker's groups of single active consumers, by virtual host, stream and name.
Groups: TypeAlias = dict[tuple[str, str, str], ConsumerGroup]


class _Start(NamedTuple):
    """Where a subscription starts. `value` is an offset, or a time in milliseconds since 1970."""

    kind: int
    value: int = 0

    @classmethod
    def read(cls, fields: Fields) -> "_Start":
        kind = fields.number(2)
        if kind > _From.TIMESTAMP:
            raise MalformedFrame
        value = fields.number(8, signed=kind == _From.TIMESTAMP) if kind >= _From.OFFSET else 0
        return cls(kind, value)

    def offset_in(self, log: StreamLog) -> int:
        match self.kind:
            case _From.FIRST:
                return log.first_offset
            case _From.LAST:
                return log.last_chunk
            case _From.OFFSET:
                return self.value
            case _From.TIMESTAMP:
                return 0  # the first chunk that is sent begins at the timestamp
        return log.end

    @property
    def since(self) -> int | None:
        """The time to start at, in milliseconds since 1970; None if the start is not a time."""
        return self.value if self.kind == _From.TIMESTAMP else None


class StreamSubscription:
    """A client's subscription to a stream.

    Attributes:
        number: the subscription's id, chosen by the client.
        log: the log of the stream.
        properties: properties set by the client, such as the name under which it stores offsets.
        group: the key of a single active consumer's group; None for other consumers.
        filters: the wanted filter values; None to send all chunks.
        is_active: True for a single active consumer that is its group's active one.
        first: the offset of the first message that the client wants. The first chunk that is sent may begin before it.
        sent: the offset of the last message that was sent; None if none has been sent.
    """

    def __init__(
        self, session: BrokerStreamSession, number: int, stream: str, log: StreamLog, start: _Start, credit: int
    ) -> None:
        self._session = session
        self.number = number
        self.log = log
        self._start = start
        self._reader: StreamQueueReader | None = None
        self._waits = False
        self._held_bytes = 0
        self._read: deque[StoredChunk] = deque()
        self._correlation = 0
        self._unanswered: Timer | None = None
        self.stream = stream
        self.credit = credit
        self.group: tuple[str, str, str] | None = None
        self.filters: ChunkFilters | None = None
        self.properties: Mapping[str, str] = {}
        self.is_active = False
        self.first = 0
        self.sent: int | None = None

    def set_properties(self, properties: Mapping[str, str]) -> None:
        """Set the properties. Until the subscription ends, it and they count as memory held for the client."""
        self.properties, self.filters = properties, _filters(properties)
        self._held_bytes = SUBSCRIPTION + sum(
            len(name) + len(value) + _PROPERTY_OVERHEAD for name, value in properties.items()
        )
        self._session.add_held_bytes(self._held_bytes)

    @property
    def tag(self) -> str:
        """The consumer tag in the management API."""
        return f"stream.subid-{self.number}"

    @property
    def name(self) -> str:
        """The consumer's name in events: the connection's name and the consumer tag."""
        return f"{self._session.name}/{self.tag}"

    def begin(self, start: _Start) -> None:
        """Send chunks from `start` on; if its kind is NONE, from the start given in the Subscribe request."""
        self.drop_chunks()
        asked = self._start if start.kind == _From.NONE else start
        self.first = asked.offset_in(self.log)
        self._reader = StreamQueueReader(self.log, self.first, self.filters, asked.since)
        self.pump()

    def pump(self) -> None:
        """Send chunks as long as there are any, the client has given credit, and its connection is writable."""
        session, read = self._session, self._read
        while self._reader is not None and self.credit > 0 and session.writable and not self._waits:
            if not read:
                read.extend(self._reader.read())
                session.add_held_bytes(sum(len(chunk.raw) for chunk in read))
                if not read:
                    if self._reader.is_tired:
                        self._waits = True
                        session.broker.clock.take_turn(self._go_on)
                    return
            self.credit -= 1
            chunk = read.popleft()
            session.add_held_bytes(-len(chunk.raw))
            head = bytes((self.number,)) + (u64(self.log.last_chunk) if session.deliver_version == 2 else b"")
            session.write(frame(Key.DELIVER, head + chunk.raw, session.deliver_version))
            self.sent = chunk.end - 1
            session.broker.totals.delivered[STREAM, "stream"].delivered += chunk.end - chunk.offset
            if session.vhost.watcher is not None:
                offsets = range(max(chunk.offset, self.first), chunk.end)
                session.vhost.watcher.read(self.stream, offsets, self.name, session)

    def _go_on(self) -> None:
        self._waits = False
        self.pump()

    def end(self) -> None:
        """Stop sending: the subscription has ended."""
        self._stop_timer()
        self._stop()
        self._session.add_held_bytes(-self._held_bytes)
        self._held_bytes = 0

    def _stop(self) -> None:
        self._reader = None
        self.drop_chunks()

    def drop_chunks(self) -> None:
        """Drop chunks that have been read from the log but not sent."""
        self._session.add_held_bytes(-sum(len(chunk.raw) for chunk in self._read))
        self._read.clear()

    def activate(self) -> None:
        """Ask the client of the newly active consumer for the offset to start at."""
        self.is_active = True
        self._send_update()

    def step_down(self) -> None:
        """Stop sending; tell the client to store its offset. Its reply calls ConsumerGroup.stepped_down()."""
        self.is_active = False
        self._stop()
        self._send_update()

    def _send_update(self) -> None:
        # Replies arrive in order, so a correlation id need only differ from recent ones.
        self._correlation += 1
        body = u32(self.number << 16 | self._correlation & 0xFFFF)
        self._session.write(frame(Key.CONSUMER_UPDATE, body + bytes((self.number, self.is_active))))
        if self._unanswered is None:
            self._unanswered = self._session.broker.clock.call_later(_ANSWER_MILLISECONDS, self._not_answered)

    def _not_answered(self) -> None:
        self._unanswered = None
        self._session.force_close("request to client timed out")

    def is_answered(self, correlation: int) -> bool:
        """Handle a reply to a ConsumerUpdate. Returns False if `correlation` is not the id of the latest one."""
        if correlation != self.number << 16 | self._correlation & 0xFFFF:
            return False
        self._stop_timer()
        return True

    def _stop_timer(self) -> None:
        if self._unanswered is not None:
            self._unanswered.cancel()
            self._unanswered = None


class Subscriptions:
    """The subscriptions of a connection."""

    def __init__(self, session: BrokerStreamSession, groups: Groups) -> None:
        self._session = session
        self._groups = groups
        self._subscriptions: dict[int, StreamSubscription] = {}

    def __iter__(self) -> Iterator[StreamSubscription]:
        return iter(self._subscriptions.values())

    def subscribe(self, fields: Fields, correlation: int) -> None:
        """Handle Subscribe. Start sending chunks at once or, to a single active consumer, once it is active."""
        number, stream = fields.number(1), fields.string()
        start, credit = _Start.read(fields), fields.number(2)
        properties = {} if fields.is_done else fields.table()
        session = self._session
        check(session, "read", "queue", stream)
        log = find_log(session, stream)
        if number in self._subscriptions:
            raise StreamRefused(Code.SUBSCRIPTION_ID_ALREADY_EXISTS)
        subscription = StreamSubscription(session, number, stream, log, start, credit)
        if properties.get("single-active-consumer") == "true":
            name = properties.get("name", "")
            if not name:
                raise StreamRefused(Code.PRECONDITION_FAILED)
            subscription.group = (session.vhost.name, stream, name)
        subscription.set_properties(properties)
        self._subscriptions[number] = subscription
        log.subscriptions += 1
        session.watch(stream, log)
        _changed(session)
        session.answer(Key.SUBSCRIBE, correlation)
        if subscription.group is None:
            subscription.begin(start)
        else:
            partition = partition_of(session.vhost, properties.get("super-stream", ""), stream)
            self._groups.setdefault(subscription.group, ConsumerGroup(partition)).add(subscription)

    def unsubscribe(self, fields: Fields, correlation: int) -> None:
        """Handle Unsubscribe: remove a subscription."""
        number = fields.number(1)
        fields.end()
        if number not in self._subscriptions:
            raise StreamRefused(Code.SUBSCRIPTION_ID_DOES_NOT_EXIST)
        self._session.answer(Key.UNSUBSCRIBE, correlation)
        self._drop(number)

    def give_credit(self, fields: Fields) -> None:
        """Handle Credit: send as many more chunks as the client now allows."""
        number, credit = fields.number(1), fields.number(2, signed=True)
        fields.end()
        subscription = self._subscriptions.get(number)
        if subscription is None:
            # This is the only response without a correlation id.
            self._session.write(
                frame(Key.CREDIT | RESPONSE, u16(Code.SUBSCRIPTION_ID_DOES_NOT_EXIST) + bytes((number,)))
            )
            return
        subscription.credit += credit
        subscription.pump()

    def updated(self, fields: Fields) -> None:
        """Handle the client's reply to ConsumerUpdate: start at the offset in it, or activate the next consumer."""
        correlation, _code, start = fields.number(4), fields.number(2), _Start.read(fields)
        subscription = self._subscriptions.get(correlation >> 16)
        if subscription is None or subscription.group is None or not subscription.is_answered(correlation):
            return
        if subscription.is_active:
            subscription.begin(start)
        else:
            self._groups[subscription.group].stepped_down(subscription)

    def pump(self, stream: str | None = None) -> None:
        """Send new chunks of one stream, or of all streams."""
        for subscription in list(self._subscriptions.values()):
            if stream in (None, subscription.stream):
                subscription.pump()

    def forget_stream(self, stream: str) -> bool:
        """Remove the subscriptions to a deleted stream; return True if there were any."""
        gone = [number for number, subscription in self._subscriptions.items() if subscription.stream == stream]
        for number in gone:
            self._drop(number)
        return bool(gone)

    def close(self) -> None:
        """Remove all subscriptions."""
        for number in list(self._subscriptions):
            self._drop(number)

    def _drop(self, number: int) -> None:
        subscription = self._subscriptions.pop(number)
        subscription.log.subscriptions -= 1
        _changed(self._session)
        subscription.end()
        if subscription.group is not None:
            group = self._groups[subscription.group]
            group.remove(subscription)
            if not group.members:
                del self._groups[subscription.group]


def _changed(session: BrokerStreamSession) -> None:
    if session.vhost.watcher is not None:
        session.vhost.watcher.changed()


def _filters(properties: Mapping[str, str]) -> ChunkFilters | None:
    values = {value for name, value in properties.items() if name.startswith("filter.")}
    bits = [bits_of(value.encode(errors="surrogateescape")) for value in values]
    if bits and properties.get("match-unfiltered") == "true":
        bits.append(UNFILTERED)
    return ChunkFilters(bits) if bits else None
