"""Encode and decode frames of the stream protocol."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum

#: The largest frame that the broker proposes, in bytes.
FRAME_MAX = 1_048_576

#: The bit of a command key that marks a response.
RESPONSE = 0x8000

#: The start of a frame: size, key and version.
HEAD = struct.Struct(">IHH")

_ANSWER = struct.Struct(">IHHIH")

#: Encode an integer: unsigned in two, four or eight bytes, or signed in eight.
u16, u32, u64, i64 = (struct.Struct(form).pack for form in (">H", ">I", ">Q", ">q"))


class Key(IntEnum):
    """The command keys of the stream protocol."""

    DECLARE_PUBLISHER = 1
    PUBLISH = 2
    PUBLISH_CONFIRM = 3
    PUBLISH_ERROR = 4
    QUERY_PUBLISHER_SEQUENCE = 5
    DELETE_PUBLISHER = 6
    SUBSCRIBE = 7
    DELIVER = 8
    CREDIT = 9
    STORE_OFFSET = 10
    QUERY_OFFSET = 11
    UNSUBSCRIBE = 12
    CREATE = 13
    DELETE = 14
    METADATA = 15
    METADATA_UPDATE = 16
    PEER_PROPERTIES = 17
    SASL_HANDSHAKE = 18
    SASL_AUTHENTICATE = 19
    TUNE = 20
    OPEN = 21
    CLOSE = 22
    HEARTBEAT = 23
    ROUTE = 24
    PARTITIONS = 25
    CONSUMER_UPDATE = 26
    EXCHANGE_COMMAND_VERSIONS = 27
    STREAM_STATS = 28
    CREATE_SUPER_STREAM = 29
    DELETE_SUPER_STREAM = 30


class Code(IntEnum):
    """The response codes of the stream protocol."""

    OK = 1
    STREAM_DOES_NOT_EXIST = 2
    SUBSCRIPTION_ID_ALREADY_EXISTS = 3
    SUBSCRIPTION_ID_DOES_NOT_EXIST = 4
    STREAM_ALREADY_EXISTS = 5
    STREAM_NOT_AVAILABLE = 6
    SASL_MECHANISM_NOT_SUPPORTED = 7
    AUTHENTICATION_FAILURE = 8
    SASL_ERROR = 9
    AUTHENTICATION_FAILURE_LOOPBACK = 11
    VHOST_ACCESS_FAILURE = 12
    UNKNOWN_FRAME = 13
    FRAME_TOO_LARGE = 14
    INTERNAL_ERROR = 15
    ACCESS_REFUSED = 16
    PRECONDITION_FAILED = 17
    PUBLISHER_DOES_NOT_EXIST = 18
    NO_OFFSET = 19


class MalformedFrame(ValueError):
    """A frame is too short or too long for its fields, of an unknown kind, or out of sequence."""


class Fields:
    """Reads the fields of a frame in order. Every method raises MalformedFrame if the frame is too short."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def _take(self, count: int) -> bytes:
        start = self._position
        self._position += count
        if self._position > len(self._data):
            raise MalformedFrame
        return self._data[start : self._position]

    def number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), signed=signed)

    def string(self) -> str:
        """Read a string. Null is read as the empty string."""
        length = self.number(2, signed=True)
        return self._take(length).decode(errors="surrogateescape") if length > 0 else ""

    def binary(self) -> bytes:
        """Read bytes. Null is read as no bytes."""
        length = self.number(4, signed=True)
        return self._take(length) if length > 0 else b""

    def strings(self) -> list[str]:
        return list(self.each_string())

    def each_string(self) -> Iterator[str]:
        """Read an array of strings, one at a time: a frame can contain half a million."""
        for _ in range(self._count()):
            yield self.string()

    def table(self) -> dict[str, str]:
        """Read an array of keys and values."""
        return {self.string(): self.string() for _ in range(self._count())}

    def _count(self) -> int:
        count = self.number(4)
        # Each item takes at least two bytes, so a false count cannot make the loop run past the end of the frame.
        if count * 2 > len(self._data) - self._position:
            raise MalformedFrame
        return count

    @property
    def is_done(self) -> bool:
        """True if the whole frame has been read."""
        return self._position == len(self._data)

    def end(self) -> None:
        """Raise MalformedFrame unless the whole frame has been read."""
        if not self.is_done:
            raise MalformedFrame


def frame(key: int, body: bytes = b"", version: int = 1) -> bytes:
    """Encode a frame."""
    return HEAD.pack(len(body) + 4, key, version) + body


def answer(key: Key, correlation: int, code: Code, rest: bytes = b"") -> bytes:
    """Encode the response to a request; `rest` contains the encoded fields after the response code."""
    return _ANSWER.pack(len(rest) + 10, key | RESPONSE, 1, correlation, code) + rest


def string(text: str) -> bytes:
    """Encode a string."""
    raw = text.encode(errors="surrogateescape")
    return u16(len(raw)) + raw


def strings(texts: Iterable[str]) -> bytes:
    """Encode an array of strings."""
    encoded = [string(text) for text in texts]
    return u32(len(encoded)) + b"".join(encoded)


def table(pairs: Mapping[str, str]) -> bytes:
    """Encode an array of keys and values."""
    return u32(len(pairs)) + b"".join(string(key) + string(value) for key, value in pairs.items())
