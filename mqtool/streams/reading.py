"""How far one stream has been read, and what the broker is asked for next."""

import struct
from collections.abc import Iterator, Mapping

from rstream import schema
from rstream.constants import OffsetType

from mqtool.message import Delivery
from mqtool.offsets import FIRST, Offset, Start
from mqtool.streams import chunks
from mqtool.streams.entries import body_alone, decode
from mqtool.streams.session import Session

#: Chunks that the broker may send in advance.
_CREDIT = 10
_KEY_CREDIT, _KEY_ANSWER = 9, 0x801A
_CREDIT_FRAME = struct.Struct(">IHHBH")
_ANSWER = struct.Struct(">IHHIHH")
_OK, _NOWHERE = 1, 0


class Reading:
    """A stream that is read.

    Args:
        number: the subscription's, for the broker.
        properties: the subscription's.

    Attributes:
        next: the first offset that we do not have yet.
        printed: the offset of the last message that the caller came back from.
        stored: the offset that the broker keeps.
        since_stored: messages since then.
    """

    def __init__(self, stream: str, number: int, properties: Mapping[str, str]) -> None:
        self.stream = stream
        self.next = 0
        self.printed: int | None = None
        self.stored: int | None = None
        self.since_stored = 0
        self._number = number
        self._properties = dict(properties)
        self._place = FIRST
        self._has_received = False

    @property
    def is_stored(self) -> bool:
        """Whether the broker keeps how far we came."""
        return self.printed in (None, self.stored)

    def begin(self, session: Session, offset: Offset | None = None) -> None:
        """Subscribe: at an offset, or behind what we have.

        Raises:
            MqtoolError: the broker refuses.
        """
        self.session = session
        self._start_at(offset or self._behind())
        place = schema.OffsetSpec.from_params(OffsetType(self._place.start.value), self._place.value)
        session.ask(session.client.subscribe(self.stream, self._number, place, _CREDIT, self._properties), self.stream)

    def go_on(self, correlation: bytes, stored: int | None) -> int | None:
        """Answer to the broker, which has made us the active consumer: behind what is stored, or what we have.

        Returns:
            The offset, if there is one.
        """
        at = self._behind()
        if stored is not None and (not self._has_received or stored >= self.next):
            at = Offset(Start.OFFSET, stored + 1)
        self._start_at(at)
        self._answer(correlation, at)
        return at.value if at.start is Start.OFFSET else None

    def stand_by(self, correlation: bytes) -> None:
        """Answer to the broker that we have finished, and another may go on."""
        self._answer(correlation, None)

    def take(self, chunk: chunks.Chunk) -> Iterator[Delivery]:
        """The messages of a chunk, but for those before the wanted offset: chunks come whole."""
        self.session.send(_CREDIT_FRAME.pack(_CREDIT_FRAME.size - 4, _KEY_CREDIT, 1, self._number, 1))
        wanted, stream = self.next, self.stream
        for offset, record in enumerate(chunks.records(chunk), chunk.first_offset):
            if offset < wanted:
                continue
            if (octets := body_alone(record)) is not None:
                yield Delivery(octets, "", stream, stream, False, {"headers": {"x-stream-offset": offset}}, offset)
            else:
                body, properties, exchange, routing_key = decode(record)
                properties["headers"] = {**properties.get("headers", {}), "x-stream-offset": offset}
                key = stream if routing_key is None else routing_key
                yield Delivery(body, exchange, key, stream, False, properties, offset)
        self._has_received = True
        self.next = max(wanted, chunk.first_offset + chunk.records)

    def _behind(self) -> Offset:
        return Offset(Start.OFFSET, self.next) if self._has_received else self._place

    def _start_at(self, offset: Offset) -> None:
        self._place = offset
        if offset.start is Start.OFFSET:
            self.next = offset.value or 0

    def _answer(self, correlation: bytes, offset: Offset | None) -> None:
        kind = _NOWHERE if offset is None else offset.start.value
        value = b"" if offset is None or offset.value is None else struct.pack(">Q", offset.value)
        number = int.from_bytes(correlation)
        size = _ANSWER.size - 4 + len(value)
        self.session.send(_ANSWER.pack(size, _KEY_ANSWER, 1, number, _OK, kind) + value)
