"""The publishers of a stream connection: append their messages to logs, and send confirms."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import NamedTuple

from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.sectioned import parse_stored
from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.model.stream_segment import UNFILTERED, bits_of, messages_in
from mqtool.broker.embedded.model.totals import STREAM
from mqtool.broker.embedded.streaming.stream_frames import Code, Fields, Key, MalformedFrame, frame, u16, u32, u64
from mqtool.broker.embedded.streaming.stream_session import (
    BrokerStreamSession,
    StreamRefused,
    check,
    check_name,
    find_log,
)

#: Reading stops when more than the first number of a connection's messages are waiting for the disk, and resumes when
#: no more than the second number are. The values are RabbitMQ's.
_TOO_MANY, _FEW_ENOUGH = 50_000, 12_500

#: The maximum number of entries, and of bytes, in one chunk.
_CHUNK = 4096
_CHUNK_BYTES = 256 * 1024

_BATCH = 1 << 31
_BATCH_HEAD = struct.Struct(">BHII")
_SIZE = struct.Struct(">I")
_LENGTH = struct.Struct(">h")


@dataclass(eq=False)
class DeclaredPublisher:
    """A publisher declared by a client.

    Attributes:
        number: the publisher's id, chosen by the client.
        producer: the producer name for deduplication; "" for no deduplication.
        published: the number of messages published.
    """

    number: int
    stream: str
    producer: str
    log: StreamLog
    published: int = 0


class _Messages(NamedTuple):
    """The messages of a publish command, stored as parallel lists because there can be thousands.

    Attributes:
        ids: the publishing ids as eight bytes each, which sort in numeric order.
        entries: the encoded messages and sub-entry batches, as they are stored in the log.
        records: the number of messages in each batch, by the index of its entry.
        filters: the Bloom filter bits of each entry; empty if the command has no filter values.
    """

    ids: list[bytes]
    entries: list[bytes]
    records: dict[int, int]
    filters: list[int]

    def part(self, indexes: Sequence[int]) -> "_Messages":
        records = {new: self.records[old] for new, old in enumerate(indexes) if old in self.records}
        filters = [self.filters[each] for each in indexes] if self.filters else []
        ids, entries = [self.ids[each] for each in indexes], [self.entries[each] for each in indexes]
        return _Messages(ids, entries, records, filters)


def _messages(data: bytes, position: int, *, with_filter: bool) -> Iterator[_Messages]:
    """Decode the messages and batches of a publish command, which start at `position` in `data`.

    Yields them in groups that fit into a chunk. Like RabbitMQ, uses the messages before malformed ones.
    """
    while True:
        found, position = _group(data, position, with_filter=with_filter)
        yield found
        if position == len(data):
            return


def _group(data: bytes, position: int, *, with_filter: bool) -> tuple[_Messages, int]:
    """Decode messages that fit into a chunk; return them with the position after them."""
    found = ids, entries, records, filters = _Messages([], [], {}, [])
    size_at, end, total = _SIZE.unpack_from, len(data), 0
    try:
        while position < end and len(ids) < _CHUNK:
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
            total += stop - start
            if total > _CHUNK_BYTES and ids:
                # This message belongs to the next group.
                records.pop(len(ids), None)
                del filters[len(ids) :]
                break
            ids.append(data[position : position + 8])
            entries.append(data[start:stop])
            position = stop
    except struct.error as error:
        raise MalformedFrame from error
    if position > end:
        raise MalformedFrame
    return found, position


class Publishers:
    """The publishers of a connection.

    Attributes:
        is_throttled: True while the broker must not read from the connection because too many messages are waiting for
            the disk.
    """

    def __init__(self, session: BrokerStreamSession) -> None:
        self._session = session
        self._publishers: dict[int, DeclaredPublisher] = {}
        self._unconfirmed = 0
        self.is_throttled = False

    def __iter__(self) -> Iterator[DeclaredPublisher]:
        return iter(self._publishers.values())

    def declare(self, fields: Fields, correlation: int) -> None:
        """Handle DeclarePublisher."""
        number, producer, stream = fields.number(1), fields.string(), fields.string()
        fields.end()
        session = self._session
        if session.broker.alarms:
            raise StreamRefused(Code.PRECONDITION_FAILED)
        check(session, "write", "queue", stream)
        check_name(producer)
        same = (
            each
            for each in self._publishers.values()
            if producer and (each.stream, each.producer) == (stream, producer)
        )
        if number in self._publishers or any(same):
            raise StreamRefused(Code.PRECONDITION_FAILED)
        log = find_log(session, stream)
        self._publishers[number] = DeclaredPublisher(number, stream, producer, log)
        session.watch(stream, log)
        session.answer(Key.DECLARE_PUBLISHER, correlation)

    def delete(self, fields: Fields, correlation: int) -> None:
        """Handle DeletePublisher."""
        number = fields.number(1)
        fields.end()
        if self._publishers.pop(number, None) is None:
            raise StreamRefused(Code.PUBLISHER_DOES_NOT_EXIST)
        self._session.answer(Key.DELETE_PUBLISHER, correlation)

    def sequence(self, fields: Fields, correlation: int) -> None:
        """Handle QueryPublisherSequence: reply with a producer's last publishing id."""
        producer, stream = fields.string(), fields.string()
        fields.end()
        check(self._session, "read", "queue", stream, u64(0))
        last = find_log(self._session, stream, u64(0)).publishing_ids.get(producer)
        self._session.answer(Key.QUERY_PUBLISHER_SEQUENCE, correlation, rest=u64(last or 0))

    def forget_stream(self, stream: str) -> bool:
        """Remove the publishers of a deleted stream; return True if there were any."""
        gone = [number for number, publisher in self._publishers.items() if publisher.stream == stream]
        for number in gone:
            del self._publishers[number]
        return bool(gone)

    def publish(self, body: bytes, version: int) -> Iterator[None]:
        """Append messages to a stream, one chunk a step; confirm them once they are on disk."""
        if len(body) < 5:
            raise MalformedFrame
        for messages in _messages(body, 5, with_filter=version == 2):
            if messages.ids:
                self._publish(body[0], messages)
            yield

    def _publish(self, number: int, messages: _Messages) -> None:
        publisher = self._publishers.get(number)
        if publisher is None:
            self._refuse(number, messages.ids, Code.PUBLISHER_DOES_NOT_EXIST)
            return
        try:
            check(self._session, "write", "queue", publisher.stream)
        except StreamRefused as refused:
            self._refuse(publisher.number, messages.ids, refused.code)
            return
        if publisher.log.deleted:
            return
        new = _new(publisher, messages) if publisher.producer else messages
        if new.ids:
            self._append(publisher, new)
        self._confirm_later(publisher, messages.ids)

    def _append(self, publisher: DeclaredPublisher, messages: _Messages) -> None:
        vhost, hooks = self._session.vhost, self._session.broker.hooks
        ids, entries, records, filters = messages
        count = len(entries) - len(records) + sum(records.values())
        publisher.published += count
        totals = self._session.broker.totals.published[STREAM]
        totals.received += count
        totals.with_confirm += count
        offset = publisher.log.append(
            b"".join(entries),
            entries=len(entries),
            records=count,
            producer=publisher.producer or None,
            publishing_id=int.from_bytes(ids[-1]),
            filter_bits=reduce(or_, filters, 0) or UNFILTERED,
        )
        if vhost.watcher is not None:
            vhost.watcher.streamed(self._session, publisher.stream, self._decoded(publisher.stream, entries, offset))
        if hooks is not None:
            hooks.streamed(vhost, publisher.stream, self._decoded(publisher.stream, entries, offset))

    def _decoded(self, stream: str, entries: list[bytes], offset: int) -> Iterator[tuple[int, BrokerMessage]]:
        """Yield messages with their offsets, decoding each one lazily."""
        for each, data in messages_in(b"".join(entries), 0, offset, len(entries)):
            yield each, parse_stored(data, stream, self._session.broker.profile)

    def _confirm_later(self, publisher: DeclaredPublisher, ids: list[bytes]) -> None:
        self._unconfirmed += len(ids)
        if self._unconfirmed > _TOO_MANY:
            self.is_throttled = True
            self._session.pace()

        def confirm() -> None:
            self._unconfirmed -= len(ids)
            if self.is_throttled and self._unconfirmed <= _FEW_ENOUGH:
                self.is_throttled = False
                self._session.pace()
            if self._publishers.get(publisher.number) is publisher and not publisher.log.deleted:
                self._session.broker.totals.published[STREAM].confirmed += len(ids)
                head = bytes((publisher.number,)) + u32(len(ids))
                self._session.write(frame(Key.PUBLISH_CONFIRM, head + b"".join(ids)))

        self._session.broker.ledger.after_commit(confirm)

    def _refuse(self, number: int, ids: list[bytes], code: Code) -> None:
        errors = b"".join(each + u16(code) for each in ids)
        self._session.write(frame(Key.PUBLISH_ERROR, bytes((number,)) + u32(len(ids)) + errors))


def _new(publisher: DeclaredPublisher, messages: _Messages) -> _Messages:
    """Return the messages that are not duplicates: those whose publishing ids exceed the producer's last one."""
    known = publisher.log.publishing_ids.get(publisher.producer)
    last = b"" if known is None else u64(known)
    indexes = []
    for index, publishing_id in enumerate(messages.ids):
        if publishing_id > last:
            last = publishing_id
            indexes.append(index)
    return messages if len(indexes) == len(messages.ids) else messages.part(indexes)
