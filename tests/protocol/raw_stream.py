"""A client of the stream protocol, for tests that send and receive single frames, including invalid ones."""

import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.protocol.raw_client import read_exactly

(
    DECLARE_PUBLISHER,
    PUBLISH,
    PUBLISH_CONFIRM,
    PUBLISH_ERROR,
    QUERY_PUBLISHER,
    DELETE_PUBLISHER,
    SUBSCRIBE,
    DELIVER,
    CREDIT,
    STORE_OFFSET,
    QUERY_OFFSET,
    UNSUBSCRIBE,
    CREATE,
    DELETE,
    METADATA,
    METADATA_UPDATE,
    PEER_PROPERTIES,
    SASL_HANDSHAKE,
    SASL_AUTHENTICATE,
    TUNE,
    OPEN,
    CLOSE,
    HEARTBEAT,
    ROUTE,
    PARTITIONS,
) = range(1, 26)
CONSUMER_UPDATE, EXCHANGE_COMMAND_VERSIONS, STREAM_STATS, CREATE_SUPER_STREAM, DELETE_SUPER_STREAM = range(26, 31)
FIRST, LAST, NEXT = (struct.pack(">H", kind) for kind in (1, 2, 3))
_RESPONSE = 0x8000


def at(offset: int) -> bytes:
    """Encode an offset specification: start at this offset."""
    return struct.pack(">HQ", 4, offset)


def since(milliseconds: int) -> bytes:
    """Encode an offset specification: start at this time."""
    return struct.pack(">Hq", 5, milliseconds)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">H", len(raw)) + raw


def strings(*texts: str) -> bytes:
    return struct.pack(">I", len(texts)) + b"".join(map(string, texts))


def table(pairs: Mapping[str, str]) -> bytes:
    return struct.pack(">I", len(pairs)) + b"".join(string(key) + string(value) for key, value in pairs.items())


class Frame(NamedTuple):
    key: int
    body: bytes


class Answer(NamedTuple):
    code: int
    rest: bytes


@dataclass
class Chunk:
    """The chunk in a deliver frame."""

    subscription: int
    kind: int
    records: int
    timestamp: int
    first_offset: int
    crc: int
    data: bytes
    entries: list[bytes]


def chunk_of(body: bytes) -> Chunk:
    subscription = body[0]
    magic, kind, count, records, timestamp, _epoch, offset, crc, size, _trailer, _unused = struct.unpack_from(
        ">BBHIqQQIIII", body, 1
    )
    assert magic == 0x50
    data = body[49 : 49 + size]
    entries, position = [], 0
    for _ in range(count):
        length = int.from_bytes(data[position : position + 4])
        if length >> 31:  # a batch: its kind, the number of messages, and both sizes
            length = 11 - 4 + int.from_bytes(data[position + 7 : position + 11])
            entries.append(data[position : position + 4 + length])
        else:
            entries.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    assert position == len(data)
    return Chunk(subscription, kind, records, timestamp, offset, crc, data, entries)


class RawStream:
    """A connection to a stream port."""

    def __init__(self, host: str, port: int, connect: Callable[..., Any] = socket.create_connection) -> None:
        self.socket = connect((host, port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # see raw_client.py
        self._kept: list[Frame] = []
        self._last = 0

    def log_in(self, user: str = "guest", password: str = "guest", heartbeat: int = 60) -> None:
        """Go through the handshake up to the command `open`, which is not sent."""
        assert self.request(PEER_PROPERTIES, table({"product": "raw"})).code == 1
        assert self.request(SASL_HANDSHAKE).code == 1
        assert self.authenticate(user, password) == 1
        frame = self.next()
        assert frame.key == TUNE
        self.send(TUNE | _RESPONSE, frame.body[:4] + struct.pack(">I", heartbeat))

    def authenticate(self, user: str, password: str, mechanism: str = "PLAIN") -> int:
        secret = f"\0{user}\0{password}".encode()
        return self.request(SASL_AUTHENTICATE, string(mechanism) + struct.pack(">I", len(secret)) + secret).code

    def send(self, key: int, body: bytes = b"", version: int = 1) -> None:
        self.socket.sendall(struct.pack(">IHH", len(body) + 4, key, version) + body)

    def request(self, key: int, body: bytes = b"", version: int = 1) -> Answer:
        """Send a request, and wait for its response. Other frames that arrive meanwhile are kept."""
        self._last += 1
        self.send(key, struct.pack(">I", self._last) + body, version)
        answer = self.expect(key | _RESPONSE)
        correlation, code = struct.unpack_from(">IH", answer)
        assert correlation == self._last
        return Answer(code, answer[6:])

    def expect(self, key: int) -> bytes:
        """Return the body of the next frame of a kind."""
        for index, frame in enumerate(self._kept):
            if frame.key == key:
                return self._kept.pop(index).body
        while (frame := self._read()).key != key:
            self._kept.append(frame)
        return frame.body

    def next(self) -> Frame:
        return self._kept.pop(0) if self._kept else self._read()

    def _read(self) -> Frame:
        size, key, _version = struct.unpack(">IHH", read_exactly(self.socket, 8))
        return Frame(key, read_exactly(self.socket, size - 4))

    def at_end(self) -> bool:
        """Return True if the broker closes the connection, even if it sends something before."""
        try:
            while True:
                self._read()
        except (EOFError, ConnectionError):
            return True

    def close(self) -> None:
        self.socket.close()

    # -- common operations

    def create(self, stream: str, **arguments: str) -> int:
        return self.request(
            CREATE, string(stream) + table({key.replace("_", "-"): value for key, value in arguments.items()})
        ).code

    def declare_publisher(self, number: int, stream: str, name: str = "") -> int:
        return self.request(DECLARE_PUBLISHER, bytes((number,)) + string(name) + string(stream)).code

    def publish(self, number: int, first: int, *messages: bytes) -> None:
        data = b"".join(
            struct.pack(">QI", first + index, len(message)) + message for index, message in enumerate(messages)
        )
        self.send(PUBLISH, struct.pack(">BI", number, len(messages)) + data)

    def confirmed(self, count: int) -> list[int]:
        """Return the publishing ids in the next confirms, at least `count` of them."""
        ids: list[int] = []
        while len(ids) < count:
            body = self.expect(PUBLISH_CONFIRM)
            (number,) = struct.unpack_from(">I", body, 1)
            ids += struct.unpack_from(f">{number}Q", body, 5)
        return ids

    def subscribe(self, number: int, stream: str, offset: bytes = FIRST, credit: int = 10, **properties: str) -> int:
        body = bytes((number,)) + string(stream) + offset + struct.pack(">H", credit)
        return self.request(SUBSCRIBE, body + (table(properties) if properties else b"")).code

    def chunk(self) -> Chunk:
        return chunk_of(self.expect(DELIVER))

    def entries(self, count: int) -> list[bytes]:
        """Return the next entries, at least `count` of them, from one or more chunks."""
        found: list[bytes] = []
        while len(found) < count:
            found += self.chunk().entries
        return found

    def kept(self, key: int) -> list[Frame]:
        """Return the frames of a kind that arrived while the client waited for another kind."""
        return [frame for frame in self._kept if frame.key == key]


Opener = Callable[..., RawStream]
