"""The publishers of a connection: their messages to logs, and the confirms back."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import NamedTuple

from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.model.stream_segment import UNFILTERED, bits_of
from mqtool.broker.embedded.streaming.stream_frames import Code, Fields, Key, MalformedFrame, frame, u16, u32, u64
from mqtool.broker.embedded.streaming.stream_session import Refused, Session, check, check_name, find_log

# RabbitMQ stops reading when more messages of a connection wait for the disk, and goes on when no more than this do.
_TOO_MANY = 50_000
_FEW_ENOUGH = 12_500

# What is appended at once is in one chunk.
_LOT = 4096
_LOT_BYTES = 256 * 1024

_BATCH = 1 << 31
_BATCH_HEAD = struct.Struct(">BHII")
_SIZE = struct.Struct(">I")
_LENGTH = struct.Struct(">h")


@dataclass(frozen=True)
class _Publisher:
    """Attributes: producer: the name under which it is known to the log, "" for none."""

    number: int
    stream: str
    producer: str
    log: StreamLog


class _Messages(NamedTuple):
    """What is to become entries, in lists side by side: a publish has thousands.

    Attributes:
        ids: the publishing ids as they came, eight octets each; in this form they sort like numbers.
        entries: as they will stand in the log.
        records: how many messages are in those entries that are batches, by place.
        filters: bits of the filter values; none if no message has one.
    """

    ids: list[bytes]
    entries: list[bytes]
    records: dict[int, int]
    filters: list[int]

    def part(self, places: Sequence[int]) -> "_Messages":
        """Return some of them."""
        records = {new: self.records[old] for new, old in enumerate(places) if old in self.records}
        filters = [self.filters[each] for each in places] if self.filters else []
        return _Messages([self.ids[each] for each in places], [self.entries[each] for each in places], records, filters)


def _messages(data: bytes, position: int, *, with_filter: bool) -> _Messages:
    """Cut the messages of a publish, and the batches.

    Raises:
        MalformedFrame: one is cut short, or a batch is empty.
    """
    found = ids, entries, records, filters = _Messages([], [], {}, [])
    size_at, end = _SIZE.unpack_from, len(data)
    try:
        while position < end:
            start = position + 8
            if with_filter:
                value = start + 2
                start = value + max(_LENGTH.unpack_from(data, start)[0], 0)
                filters.append(bits_of(data[value:start]))
            size = size_at(data, start)[0]
            if size & _BATCH:
                _, count, _, size = _BATCH_HEAD.unpack_from(data, start)
                if not count:
                    raise MalformedFrame
                records[len(ids)] = count
                size += _BATCH_HEAD.size - 4
            stop = start + 4 + size
            ids.append(data[position : position + 8])
            entries.append(data[start:stop])
            position = stop
    except struct.error as error:
        raise MalformedFrame from error
    if position != end:
        raise MalformedFrame
    return found


def _lots(messages: _Messages) -> Iterator[_Messages]:
    """Cut messages into lots that a chunk has room for."""
    entries = messages.entries
    if len(entries) <= _LOT and sum(map(len, entries)) <= _LOT_BYTES:
        yield messages
        return
    start = size = 0
    for place, entry in enumerate(entries):
        if place > start and (place - start == _LOT or size + len(entry) > _LOT_BYTES):
            yield messages.part(range(start, place))
            start, size = place, 0
        size += len(entry)
    yield messages.part(range(start, len(entries)))


class Publishers:
    """The publishers of a connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._publishers: dict[int, _Publisher] = {}
        self._unconfirmed = 0
        self._is_throttled = False

    @property
    def is_throttled(self) -> bool:
        """Whether so much waits for the disk that nothing should be read from the client."""
        return self._is_throttled

    def __len__(self) -> int:
        return len(self._publishers)

    def declare(self, fields: Fields, correlation: int) -> None:
        """Take a new publisher."""
        number, producer, stream = fields.number(1), fields.string(), fields.string()
        fields.end()
        session = self._session
        if session.broker.alarms:
            raise Refused(Code.PRECONDITION_FAILED)
        check(session, "write", "queue", stream)
        check_name(producer)
        same = (
            each
            for each in self._publishers.values()
            if producer and (each.stream, each.producer) == (stream, producer)
        )
        if number in self._publishers or any(same):
            raise Refused(Code.PRECONDITION_FAILED)
        log = find_log(session, stream)
        self._publishers[number] = _Publisher(number, stream, producer, log)
        session.watch(stream, log)
        session.answer(Key.DECLARE_PUBLISHER, correlation)

    def delete(self, fields: Fields, correlation: int) -> None:
        """Forget a publisher."""
        number = fields.number(1)
        fields.end()
        if self._publishers.pop(number, None) is None:
            raise Refused(Code.PUBLISHER_DOES_NOT_EXIST)
        self._session.answer(Key.DELETE_PUBLISHER, correlation)

    def sequence(self, fields: Fields, correlation: int) -> None:
        """Say which publishing id was a producer's last."""
        producer, stream = fields.string(), fields.string()
        fields.end()
        check(self._session, "read", "queue", stream, u64(0))
        last = find_log(self._session, stream, u64(0)).publishing_ids.get(producer)
        self._session.answer(Key.QUERY_PUBLISHER_SEQUENCE, correlation, rest=u64(last or 0))

    def forget_stream(self, stream: str) -> bool:
        """Forget the publishers of a stream that is gone; returns whether there were any."""
        gone = [number for number, publisher in self._publishers.items() if publisher.stream == stream]
        for number in gone:
            del self._publishers[number]
        return bool(gone)

    # -- messages

    def publish(self, body: bytes, version: int) -> None:
        """Take messages.

        Raises:
            MalformedFrame: they are cut short.
        """
        if len(body) < 5:
            raise MalformedFrame
        messages = _messages(body, 5, with_filter=version == 2)
        publisher = self._publishers.get(body[0])
        if publisher is None:
            self._refuse(body[0], messages.ids, Code.PUBLISHER_DOES_NOT_EXIST)
            return
        try:
            check(self._session, "write", "queue", publisher.stream)
        except Refused as refused:
            self._refuse(publisher.number, messages.ids, refused.code)
            return
        if publisher.log.deleted or not messages.ids:
            return
        new = _new(publisher, messages) if publisher.producer else messages
        if new.ids:
            self._append(publisher, new)
        self._confirm_later(publisher, messages.ids)

    @staticmethod
    def _append(publisher: _Publisher, messages: _Messages) -> None:
        for ids, entries, records, filters in _lots(messages):
            publisher.log.append(
                b"".join(entries),
                entries=len(entries),
                records=len(entries) - len(records) + sum(records.values()),
                producer=publisher.producer or None,
                publishing_id=int.from_bytes(ids[-1]),
                filter_bits=reduce(or_, filters, 0) or UNFILTERED,
            )

    def _confirm_later(self, publisher: _Publisher, ids: list[bytes]) -> None:
        self._unconfirmed += len(ids)
        if self._unconfirmed > _TOO_MANY:
            self._is_throttled = True
            self._session.pace()

        def confirm() -> None:
            self._unconfirmed -= len(ids)
            if self._is_throttled and self._unconfirmed <= _FEW_ENOUGH:
                self._is_throttled = False
                self._session.pace()
            if self._publishers.get(publisher.number) is publisher and not publisher.log.deleted:
                head = bytes((publisher.number,)) + u32(len(ids))
                self._session.write(frame(Key.PUBLISH_CONFIRM, head + b"".join(ids)))

        self._session.broker.ledger.after_commit(confirm)

    def _refuse(self, number: int, ids: list[bytes], code: Code) -> None:
        errors = b"".join(each + u16(code) for each in ids)
        self._session.write(frame(Key.PUBLISH_ERROR, bytes((number,)) + u32(len(ids)) + errors))


def _new(publisher: _Publisher, messages: _Messages) -> _Messages:
    """Return the messages that the log does not have yet; all are confirmed."""
    known = publisher.log.publishing_ids.get(publisher.producer)
    last = b"" if known is None else u64(known)
    places = []
    for place, publishing_id in enumerate(messages.ids):
        if publishing_id > last:
            last = publishing_id
            places.append(place)
    return messages if len(places) == len(messages.ids) else messages.part(places)
