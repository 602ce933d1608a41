"""The subscriptions of a connection: chunks to the client, as many as it gives credit for."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.model.stream_queue import Reader
from mqtool.broker.embedded.model.stream_segment import UNFILTERED, Chunk, bits_of
from mqtool.broker.embedded.streaming.stream_frames import (
    Code,
    Fields,
    Key,
    MalformedFrame,
    credit_refused,
    frame,
    u32,
    u64,
)
from mqtool.broker.embedded.streaming.stream_requests import partition_of
from mqtool.broker.embedded.streaming.stream_session import Refused, Session, check, find_log

_NONE, _FIRST, _LAST, _NEXT, _OFFSET, _TIMESTAMP = range(6)


class Member(Protocol):
    """A subscription in a group."""

    def activate(self) -> None:
        """Ask the client where to start; then it gets chunks."""

    def step_down(self) -> None:
        """Send no more, and ask the client to finish; `Groups.stepped_down` follows."""


class GroupKey(NamedTuple):
    """What a group is for: a name that consumers of one stream share."""

    vhost: str
    stream: str
    name: str


class _Group:
    """Consumers in the order they came.

    Attributes:
        partition: the place of the stream in a super stream, so that each consumer gets some of the partitions;
            None if it is in none, and the first consumer is the active one.
        active: None while one that was active finishes.
    """

    def __init__(self, partition: int | None) -> None:
        self._partition = partition
        self._finishing: Member | None = None
        self.members: list[Member] = []
        self.active: Member | None = None

    def add(self, member: Member) -> None:
        self.members.append(member)
        if len(self.members) == 1:
            self._activate()
        else:
            self._balance()

    def remove(self, member: Member) -> None:
        self.members.remove(member)
        if member in (self.active, self._finishing):
            self._activate()
        else:
            self._balance()

    def stepped_down(self, member: Member) -> None:
        if member is self._finishing:
            self._activate()

    def _chosen(self) -> Member:
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


class Groups:
    """All groups of a broker."""

    def __init__(self) -> None:
        self._groups: dict[GroupKey, _Group] = {}

    def add(self, key: GroupKey, member: Member, partition: int | None) -> None:
        """Add a consumer, which becomes active now, later, or never."""
        self._groups.setdefault(key, _Group(partition)).add(member)

    def remove(self, key: GroupKey, member: Member) -> None:
        """Remove a consumer; another one may become active."""
        group = self._groups[key]
        group.remove(member)
        if not group.members:
            del self._groups[key]

    def stepped_down(self, key: GroupKey, member: Member) -> None:
        """A consumer that was active has finished."""
        group = self._groups.get(key)
        if group is not None:
            group.stepped_down(member)


class _Place(NamedTuple):
    """Where to start; `value` is an offset or a time in milliseconds."""

    kind: int
    value: int = 0

    @classmethod
    def read(cls, fields: Fields) -> "_Place":
        kind = fields.number(2)
        if kind > _TIMESTAMP:
            raise MalformedFrame
        value = fields.number(8, signed=kind == _TIMESTAMP) if kind >= _OFFSET else 0
        return cls(kind, value)

    def offset_in(self, log: StreamLog) -> int:
        match self.kind:
            case 1:
                return log.first_offset
            case 2:
                return log.last_chunk
            case 4:
                return self.value
            case 5:
                return log.offset_at(self.value)
        return log.end


class Subscription:
    """A client's wish for the chunks of a stream from some place on.

    Attributes:
        number: the client's, for it.
        log: of the stream.
        properties: what the client has said of it, such as the name under which it stores offsets.
        group: the group in which only one is active, if it is in one.
        filters: bits of the filter values of which chunks must have one; None for all chunks.
        is_active: whether it gets chunks.
    """

    def __init__(self, session: Session, number: int, stream: str, log: StreamLog, place: _Place, credit: int) -> None:
        self._session = session
        self.number = number
        self.log = log
        self._place = place
        self._reader: Reader | None = None
        self._read: deque[Chunk] = deque()
        self._correlation = 0
        self.stream = stream
        self.credit = credit
        self.group: GroupKey | None = None
        self.filters: list[int] | None = None
        self.properties: Mapping[str, str] = {}
        self.is_active = False

    def begin(self, place: _Place) -> None:
        """Send chunks from a place on, or from where the client asked for when it subscribed."""
        self._read.clear()
        asked = self._place if place.kind == _NONE else place
        self._reader = Reader(self.log, asked.offset_in(self.log), self.filters)
        self.pump()

    def pump(self) -> None:
        """Send as much as there is, the client gives credit for, and its connection takes."""
        session, read = self._session, self._read
        while self._reader is not None and self.credit > 0 and session.writable:
            if not read:
                read.extend(self._reader.read())
                if not read:
                    return
            self.credit -= 1
            self._deliver(read.popleft())

    def _deliver(self, chunk: Chunk) -> None:
        head = bytes((self.number,))
        if self._session.deliver_version == 2:
            head += u64(self.log.last_chunk)
        self._session.write(frame(Key.DELIVER, head + chunk.raw, self._session.deliver_version))

    # -- one of a group

    def activate(self) -> None:
        """Ask the client where to start."""
        self.is_active = True
        self._tell()

    def step_down(self) -> None:
        """Send no more, and let the client store how far it has come."""
        self.is_active = False
        self._reader = None
        self._tell()

    def _tell(self) -> None:
        # The client's answers come in this order: the number need only be unlike its last ones.
        self._correlation += 1
        body = u32(self.number << 16 | self._correlation & 0xFFFF)
        self._session.write(frame(Key.CONSUMER_UPDATE, body + bytes((self.number, self.is_active))))

    def is_answered_by(self, correlation: int) -> bool:
        """Whether the client's answer is to the last thing it was told."""
        return correlation == self.number << 16 | self._correlation & 0xFFFF


class Subscriptions:
    """The subscriptions of a connection."""

    def __init__(self, session: Session, groups: Groups) -> None:
        self._session = session
        self._groups = groups
        self._subscriptions: dict[int, Subscription] = {}

    def __len__(self) -> int:
        return len(self._subscriptions)

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._subscriptions.values())

    def subscribe(self, fields: Fields, correlation: int) -> None:
        """Take a new subscription."""
        number, stream = fields.number(1), fields.string()
        place, credit = _Place.read(fields), fields.number(2)
        properties = {} if fields.is_done else fields.table()
        session = self._session
        check(session, "read", "queue", stream)
        log = find_log(session, stream)
        if number in self._subscriptions:
            raise Refused(Code.SUBSCRIPTION_ID_ALREADY_EXISTS)
        subscription = Subscription(session, number, stream, log, place, credit)
        subscription.properties, subscription.filters = properties, _filters(properties)
        if properties.get("single-active-consumer") == "true":
            name = properties.get("name", "")
            if not name:
                raise Refused(Code.PRECONDITION_FAILED)
            subscription.group = GroupKey(session.vhost.name, stream, name)
        self._subscriptions[number] = subscription
        log.subscriptions += 1
        session.watch(stream, log)
        session.answer(Key.SUBSCRIBE, correlation)
        if subscription.group is None:
            subscription.begin(place)
        else:
            partition = partition_of(session.vhost, properties.get("super-stream", ""), stream)
            self._groups.add(subscription.group, subscription, partition)

    def unsubscribe(self, fields: Fields, correlation: int) -> None:
        """Forget a subscription."""
        number = fields.number(1)
        fields.end()
        if number not in self._subscriptions:
            raise Refused(Code.SUBSCRIPTION_ID_DOES_NOT_EXIST)
        self._session.answer(Key.UNSUBSCRIBE, correlation)
        self._drop(number)

    def give_credit(self, fields: Fields) -> None:
        """Take credit for more chunks."""
        number, credit = fields.number(1), fields.number(2, signed=True)
        fields.end()
        subscription = self._subscriptions.get(number)
        if subscription is None:
            self._session.write(credit_refused(number))
            return
        subscription.credit += credit
        subscription.pump()

    def updated(self, fields: Fields) -> None:
        """Take a client's answer: where an active consumer starts, or that one has finished."""
        correlation, _code, place = fields.number(4), fields.number(2), _Place.read(fields)
        subscription = self._subscriptions.get(correlation >> 16)
        if subscription is None or subscription.group is None or not subscription.is_answered_by(correlation):
            return
        if subscription.is_active:
            subscription.begin(place)
        else:
            self._groups.stepped_down(subscription.group, subscription)

    def pump(self, stream: str | None = None) -> None:
        """Send what there is, of one stream or all."""
        for subscription in list(self._subscriptions.values()):
            if stream in (None, subscription.stream):
                subscription.pump()

    def forget_stream(self, stream: str) -> bool:
        """Forget the subscriptions to a stream that is gone; returns whether there were any."""
        gone = [number for number, subscription in self._subscriptions.items() if subscription.stream == stream]
        for number in gone:
            self._drop(number)
        return bool(gone)

    def close(self) -> None:
        """Forget all: the connection is closed."""
        for number in list(self._subscriptions):
            self._drop(number)

    def _drop(self, number: int) -> None:
        subscription = self._subscriptions.pop(number)
        subscription.log.subscriptions -= 1
        if subscription.group is not None:
            self._groups.remove(subscription.group, subscription)


def _filters(properties: Mapping[str, str]) -> list[int] | None:
    values = [value for name, value in properties.items() if name.startswith("filter.")]
    bits = [bits_of(value.encode(errors="surrogateescape")) for value in values]
    if bits and properties.get("match-unfiltered") == "true":
        bits.append(UNFILTERED)
    return bits or None
