"""A stream protocol connection for one thread, with one publisher or one subscription. See plain_connection."""

import struct
from collections.abc import Iterable

from mqtool.amqp import Address
from mqtool.benching.plain_connection import SocketWire, Take
from mqtool.errors import AccessRefused, Unavailable, UsageError
from mqtool.message import Delivery, Message
from mqtool.streams.entries import Skipped, body_alone, chunk_entries, decode, encode, parse_chunk
from mqtool.streams.rstream_private import CONFIRM, DELIVER, ERROR, METADATA_UPDATE
from mqtool.streams.session import refusal

_DECLARE_PUBLISHER, _PUBLISH, _SUBSCRIBE, _CREDIT, _TUNE, _CLOSE = 1, 2, 7, 9, 20, 22
_PEER_PROPERTIES, _HANDSHAKE, _AUTHENTICATE, _OPEN = 17, 18, 19, 21
_FRAME_MAX = 1 << 20
_AT_OFFSET = 4
#: The number of chunks that the broker may send in advance.
_CHUNKS = 10
#: The bytes in a publish frame before the first message, and before each message.
_HEAD, _ENTRY = struct.Struct(">HHBI"), struct.Struct(">QI")


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2) + data


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4) + payload


class StreamWire(SocketWire):
    """A connection that uses RabbitMQ's stream protocol. https://www.rabbitmq.com/docs/streams"""

    def _shake_hands(self, address: Address, name: str) -> None:
        self._inbox = b""
        self._replies: dict[int, bytes] = {}  # the latest reply of each kind
        self._asked = self._next_offset = 0
        self._frame_max = _FRAME_MAX
        properties = {"product": "mqtool", "connection_name": name}
        pairs = b"".join(_text(each) for pair in properties.items() for each in pair)
        self._ask(_PEER_PROPERTIES, len(properties).to_bytes(4) + pairs)
        self._ask(_HANDSHAKE)
        login = f"\0{address.user}\0{address.password}".encode()
        try:
            self._ask(_AUTHENTICATE, _text("PLAIN") + _frame(login))
        except Unavailable as error:
            raise AccessRefused(f"the broker refuses the login of {address.user!r}") from error
        tune = self._reply(lambda: self._replies.pop(_TUNE, None))
        self._frame_max = min(int.from_bytes(tune[4:8]) or _FRAME_MAX, _FRAME_MAX)
        # No heartbeats are needed: a run has its own time limits.
        self.send(_frame(struct.pack(">HHII", _TUNE, 1, self._frame_max, 0)))
        self._ask(_OPEN, _text(address.virtual_host))

    def _ask(self, key: int, payload: bytes = b"") -> None:
        """Send a request, and wait until the broker replies that it succeeded.

        Raises:
            ConnectionError: the connection was closed.
            Unavailable: the broker refuses the request.
        """
        self._asked += 1
        self.send(_frame(struct.pack(">HHI", key, 1, self._asked) + payload))
        reply = self._reply(lambda: self._replies.pop(0x8000 | key, None))
        if (code := int.from_bytes(reply[8:10])) != 1:
            raise Unavailable(f"the broker refuses a request of the stream protocol: {refusal(code)}")

    def _say_goodbye(self, patience: float) -> None:
        self.send(_frame(struct.pack(">HHIH", _CLOSE, 1, 0, 1) + _text("OK")))
        self._reply(lambda: self._replies.pop(0x8000 | _CLOSE, None), patience)

    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:  # noqa: ARG002
        self._ask(_DECLARE_PUBLISHER, b"\0" + _text("") + _text(routing_key))

    def template(self, message: Message, stamp: int, *, persistent: bool) -> tuple[bytes, bytes, int]:  # noqa: ARG002
        data = encode(message)
        if (size := _HEAD.size + _ENTRY.size + len(data)) > self._frame_max:
            raise UsageError(
                f"a body of {len(message.body):,} bytes does not fit into a frame of the stream protocol",
                f"the broker's frames have up to {self._frame_max:,} bytes; choose a smaller --size",
            )
        body = len(data) - len(message.body)
        return len(data).to_bytes(4) + data[:body], data[body + stamp :], size

    def publish(self, messages: Iterable[tuple[int, tuple[bytes, bytes, int], bytes]]) -> None:
        pieces: list[bytes] = []
        count = total = 0
        for tag, (start, end, size), stamp in messages:
            if total + size > self._frame_max:
                self._send_batch(pieces, count)
                pieces, count, total = [], 0, 0
            pieces += (tag.to_bytes(8), start, stamp, end)
            count += 1
            total += size
        self._send_batch(pieces, count)

    def _send_batch(self, pieces: list[bytes], count: int) -> None:
        self.send(_frame(_HEAD.pack(_PUBLISH, 1, 0, count) + b"".join(pieces)))

    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:  # noqa: ARG002
        self._take, self._next_offset = take, offset or 0
        self._ask(_SUBSCRIBE, b"\0" + _text(queue) + struct.pack(">HQH", _AT_OFFSET, self._next_offset, _CHUNKS))

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        """Do nothing: streams have no acknowledgements."""

    def offset_of(self, delivery: Delivery) -> int:
        return delivery.delivery_tag

    def _received(self, data: bytes) -> None:
        data, at = self._inbox + data, 0
        while len(data) - at >= 4 and len(data) - at - 4 >= (size := int.from_bytes(data[at : at + 4])):
            self._on_frame(data[at + 4 : at + 4 + size])
            at += 4 + size
        self._inbox = data[at:]

    def _on_frame(self, frame: bytes) -> None:
        key = int.from_bytes(frame[:2])
        if key == CONFIRM:
            self.on_confirm(struct.unpack_from(f">{(len(frame) - 9) // 8}Q", frame, 9))
        elif key == ERROR:
            self.on_nack([number for number, _ in struct.iter_unpack(">QH", frame[9:])])
        elif key == DELIVER:
            self._on_chunk(frame)
        elif key == METADATA_UPDATE:
            raise ConnectionError("the stream has moved, or was deleted")
        elif key == _CLOSE:
            raise ConnectionError("the broker closed the connection")
        else:
            self._replies[key] = frame

    def _on_chunk(self, frame: bytes) -> None:
        chunk = parse_chunk(frame)
        self.send(_frame(struct.pack(">HHBH", _CREDIT, 1, 0, 1)))
        batch = []
        for offset, entry in enumerate(chunk_entries(chunk), chunk.first_offset):
            if offset >= self._next_offset and not isinstance(entry, Skipped):
                body = body_alone(entry)
                batch.append(Delivery(decode(entry).body if body is None else body, "", "", "", False, {}, offset))
        if batch:
            self._next_offset = batch[-1].delivery_tag + 1
            self._take(batch)
