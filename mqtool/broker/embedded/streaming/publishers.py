"""The publishers of a connection: their messages to logs, and the confirms back."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mqtool.broker.embedded.model.stream_log import StreamLog
from mqtool.broker.embedded.streaming.frames import Code, Fields, Key, MalformedFrame, frame, u16, u32, u64
from mqtool.broker.embedded.streaming.session import Refused, Session, check, check_name, find_log

# RabbitMQ stops reading when more messages of a connection wait for the disk, and goes on when no more than this do.
_TOO_MANY = 50_000
_FEW_ENOUGH = 12_500

# What is appended at once is in one chunk.
_LOT = 4096
_LOT_BYTES = 256 * 1024

_BATCH = 1 << 31
_BATCH_HEAD = struct.Struct(">BHII")
_ID_AND_SIZE = struct.Struct(">QI")


@dataclass(frozen=True)
class _Publisher:
    """Attributes: producer: the name under which it is known to the log, "" for none."""

    number: int
    stream: str
    producer: str
    log: StreamLog


class _Published(NamedTuple):
    """What is to become an entry: as it will stand in the log, and how many messages are in it."""

    publishing_id: int
    entry: bytes
    records: int


def _messages(data: bytes, position: int, *, with_filter: bool) -> Iterator[_Published]:
    """Cut the messages of a publish, and the batches.

    Raises:
        MalformedFrame: one is cut short.
    """
    end = len(data)
    try:
        while position < end:
            if with_filter:
                # What it may be filtered by is not kept: clients compare it anyway, as the broker only guesses.
                publishing_id = int.from_bytes(data[position : position + 8])
                length = int.from_bytes(data[position + 8 : position + 10], signed=True)
                position += 10 + max(length, 0)
                size = int.from_bytes(data[position : position + 4])
            else:
                publishing_id, size = _ID_AND_SIZE.unpack_from(data, position)
                position += 8
            records = 1
            if size & _BATCH:
                _, records, _, size = _BATCH_HEAD.unpack_from(data, position)
                size += _BATCH_HEAD.size - 4
            stop = position + 4 + size
            if stop > end or not records:
                raise MalformedFrame
            yield _Published(publishing_id, data[position:stop], records)
            position = stop
    except struct.error as error:
        raise MalformedFrame from error


def _lots(messages: list[_Published]) -> Iterator[list[_Published]]:
    """Cut messages into lots that a chunk has room for."""
    lot: list[_Published] = []
    size = 0
    for message in messages:
        if lot and (len(lot) == _LOT or size + len(message.entry) > _LOT_BYTES):
            yield lot
            lot, size = [], 0
        lot.append(message)
        size += len(message.entry)
    if lot:
        yield lot


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
        messages = list(_messages(body, 5, with_filter=version == 2))
        publisher = self._publishers.get(body[0])
        if publisher is None:
            self._refuse(body[0], messages, Code.PUBLISHER_DOES_NOT_EXIST)
            return
        try:
            check(self._session, "write", "queue", publisher.stream)
        except Refused as refused:
            self._refuse(publisher.number, messages, refused.code)
            return
        if publisher.log.deleted:
            return
        self._append(publisher, _new(publisher, messages) if publisher.producer else messages)
        self._confirm_later(publisher, messages)

    @staticmethod
    def _append(publisher: _Publisher, messages: list[_Published]) -> None:
        for lot in _lots(messages):
            publisher.log.append(
                b"".join([each.entry for each in lot]),
                entries=len(lot),
                records=sum([each.records for each in lot]),
                producer=publisher.producer or None,
                publishing_id=lot[-1].publishing_id,
            )

    def _confirm_later(self, publisher: _Publisher, messages: list[_Published]) -> None:
        self._unconfirmed += len(messages)
        if self._unconfirmed > _TOO_MANY:
            self._is_throttled = True
            self._session.pace()

        def confirm() -> None:
            self._unconfirmed -= len(messages)
            if self._is_throttled and self._unconfirmed <= _FEW_ENOUGH:
                self._is_throttled = False
                self._session.pace()
            if self._publishers.get(publisher.number) is publisher and not publisher.log.deleted:
                ids = struct.pack(f">{len(messages)}Q", *[each.publishing_id for each in messages])
                head = bytes((publisher.number,)) + u32(len(messages))
                self._session.write(frame(Key.PUBLISH_CONFIRM, head + ids))

        self._session.broker.ledger.after_commit(confirm)

    def _refuse(self, number: int, messages: list[_Published], code: Code) -> None:
        errors = b"".join(u64(each.publishing_id) + u16(code) for each in messages)
        self._session.write(frame(Key.PUBLISH_ERROR, bytes((number,)) + u32(len(messages)) + errors))


def _new(publisher: _Publisher, messages: list[_Published]) -> list[_Published]:
    """Return the messages that the log does not have yet; all are confirmed."""
    last = publisher.log.publishing_ids.get(publisher.producer)
    found = []
    for message in messages:
        if last is None or message.publishing_id > last:
            last = message.publishing_id
            found.append(message)
    return found
