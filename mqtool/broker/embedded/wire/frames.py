"""Frames on the wire (section 4.2.3), and encoders for the few that make up most of the traffic.

basic.deliver and basic.get-ok are put together here rather than by the general encoder, which is far slower.
"""

import struct

from mqtool.broker.embedded.model.message import Message

METHOD = 1
HEADER = 2
BODY = 3
HEARTBEAT = 8
FRAME_END = b"\xce"
FRAME_OVERHEAD = 8
"""The octets of a frame that are not payload: type, channel, size and end."""

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"

FRAME_HEADER = struct.Struct(">BHI")
BETWEEN = struct.Struct(">BBHI")
"""The end of a frame, and the head of the next: type, channel and size."""

BASIC_PUBLISH = b"\x00\x3c\x00\x28"
BASIC_ACK = b"\x00\x3c\x00\x50"
ACCESS_REQUEST = b"\x00\x1e\x00\x0a"
ACCESS_REQUEST_OK = b"\x00\x1e\x00\x0b\x00\x01"
CONNECTION_CLOSE_OK = b"\x00\x0a\x00\x33"
CHANNEL_CLOSE = b"\x00\x14\x00\x28"
CHANNEL_CLOSE_OK = b"\x00\x14\x00\x29"
ACK_SIZE = 13
ACK_FIELDS = struct.Struct(">QB")
_DELIVER = b"\x00\x3c\x00\x3c"
_GET_OK = b"\x00\x3c\x00\x47"
_RETURN = b"\x00\x3c\x00\x32"
_ACK_FRAME = struct.Struct(">BHIHHQBB")
_TAG = struct.Struct(">QB")


def method_frame(channel: int, payload: bytes) -> bytes:
    """Return a method frame around an encoded method."""
    return FRAME_HEADER.pack(METHOD, channel, len(payload)) + payload + FRAME_END


def _content(channel: int, method: bytes, message: Message, frame_max: int) -> bytes:
    """A method that carries content: its frame, the header's and the body's, each at most `frame_max` bytes."""
    header, body = message.header.raw, message.body
    parts = [
        FRAME_HEADER.pack(METHOD, channel, len(method)),
        method,
        BETWEEN.pack(0xCE, HEADER, channel, len(header)),
        header,
    ]
    size, most = len(body), frame_max - FRAME_OVERHEAD
    if 0 < size <= most:
        parts += (BETWEEN.pack(0xCE, BODY, channel, size), body)
    else:
        for start in range(0, size, most):
            chunk = body[start : start + most]
            parts += (BETWEEN.pack(0xCE, BODY, channel, len(chunk)), chunk)
    parts.append(FRAME_END)
    return b"".join(parts)


def deliver(
    channel: int, consumer_tag: bytes, delivery_tag: int, message: Message, frame_max: int, *, redelivered: bool
) -> bytes:
    """basic.deliver with its content; `consumer_tag` is an encoded short string."""
    method = _DELIVER + consumer_tag + _TAG.pack(delivery_tag, redelivered) + message.address
    return _content(channel, method, message, frame_max)


def get_ok(
    channel: int, delivery_tag: int, message: Message, message_count: int, frame_max: int, *, redelivered: bool
) -> bytes:
    """basic.get-ok with its content; `message_count` is the number left in the queue."""
    method = _GET_OK + _TAG.pack(delivery_tag, redelivered) + message.address + message_count.to_bytes(4)
    return _content(channel, method, message, frame_max)


def returned(channel: int, code: int, text: str, message: Message, frame_max: int) -> bytes:
    """basic.return with its content."""
    raw = text.encode()
    method = _RETURN + code.to_bytes(2) + bytes([len(raw)]) + raw + message.address
    return _content(channel, method, message, frame_max)


def ack(channel: int, delivery_tag: int, *, multiple: bool) -> bytes:
    """basic.ack, the broker's confirm."""
    return _ACK_FRAME.pack(METHOD, channel, 13, 60, 80, delivery_tag, multiple, 0xCE)


def nack(channel: int, delivery_tag: int) -> bytes:
    """basic.nack, the broker's refusal of one publish."""
    return _ACK_FRAME.pack(METHOD, channel, 13, 60, 120, delivery_tag, 0, 0xCE)
