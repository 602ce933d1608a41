"""Recorded messages, and the messages in the bytes of a connection. See README.md."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mqtool.codecs.amqp10_frames import Attach, Target, Transfer, decode_performative
from mqtool.codecs.amqp10_values import decode, encode
from mqtool.codecs.field_tables import decode_short_string

#: Of basic.publish, basic.get-ok and basic.deliver: the bytes before the exchange, after a consumer tag if any.
_METHODS = {(60, 40): (False, 2), (60, 71): (False, 9), (60, 60): (True, 9)}
_HEADER, _PROPERTIES = 0x70, 0x73


def recorded(protocol: str) -> list[dict[str, Any]]:
    """Return the recorded messages of a protocol: amqp091, amqp10 or streams. The values that were hex are bytes."""
    lines = (Path(__file__).parent / "recorded" / f"{protocol}.ndjson").read_text().splitlines()
    encoded = {"properties", "body", "message"}
    return [
        {key: bytes.fromhex(value) if key in encoded else value for key, value in json.loads(line).items()}
        for line in lines
    ]


def messages_091(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the complete messages in one direction of a connection over AMQP 0-9-1; `properties` are still encoded."""
    position, message, size = (8 if data.startswith(b"AMQP") else 0), dict[str, Any](), 0
    while position + 8 <= len(data):
        kind, _, length = struct.unpack_from(">BHI", data, position)
        payload = data[position + 7 : position + 7 + length]
        position += length + 8
        if position > len(data):
            return
        if kind == 1 and (method := struct.unpack_from(">HH", payload)) in _METHODS:
            has_tag, before = _METHODS[method]
            start = decode_short_string(payload, 4)[1] if has_tag else 4
            exchange, after = decode_short_string(payload, start + before)
            message = {"exchange": exchange, "routing_key": decode_short_string(payload, after)[0], "body": b""}
        elif kind == 2 and message:
            (size,) = struct.unpack_from(">Q", payload, 4)
            message["properties"] = payload[12:]
        elif kind == 3 and message:
            message["body"] += payload
        if "properties" in message and len(message["body"]) == size:
            yield message
            message = {}


def messages_10(data: bytes) -> Iterator[bytes]:
    """Yield the messages that a client sends over AMQP 1.0, but for requests to the management node."""
    position, targets, payload = 0, dict[int, str | None](), b""
    while position + 8 <= len(data):
        if data[position : position + 4] == b"AMQP":
            position += 8
            continue
        size, words, kind = struct.unpack_from(">IBB", data, position)
        body = data[position + 4 * words : position + size]
        position += size
        if kind or not body:
            continue
        performative, end = decode_performative(body)
        if isinstance(performative, Attach) and isinstance(performative.target, Target):
            targets[performative.handle] = performative.target.address
        elif isinstance(performative, Transfer):
            payload += body[end:]
            if not performative.more:
                if targets.get(performative.handle) != "/management":
                    yield payload
                payload = b""


def sections(message: bytes) -> list[bytes]:
    """Return the sections of an AMQP 1.0 message but for empty ones, each value encoded as short as its type allows."""
    found, position = [], 0
    while position < len(message):
        section, position = decode(message, position)
        assert hasattr(section, "descriptor")
        if section.descriptor in (_HEADER, _PROPERTIES):
            while section.value and section.value[-1] is None:
                section.value.pop()
        if section.value:
            found.append(encode(section))
    return found
