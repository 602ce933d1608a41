"""The bytes of basic.publish, built once and filled in per message.

pika encodes a message with some forty Python calls; at tens of thousands of messages a second that is what limits us.
A stream of messages mostly shares its exchange, routing key and properties, so here their encodings are
kept, and many messages cost one join. AMQP 0-9-1, sections 2.3.5 and 4.2.
"""

import struct
from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Any

from pika import exceptions, frame, spec

from mqtool.amqp import failures
from mqtool.amqp.route import Route
from mqtool.amqp.tables import encode_short_string
from mqtool.message import PERSISTENT, PROPERTIES, Message

_FRAME_START = Struct(">BHI").pack
_HEADER_START = Struct(">BHIHHQH").pack
_FRAME_END = bytes([spec.FRAME_END])
_MESSAGE_ID = PROPERTIES.index("message_id")
#: Of the properties of a message that many may share.
_PLACES = {name: place for place, name in enumerate(PROPERTIES) if place != _MESSAGE_ID}
_SHORT_STRINGS = {*_PLACES} - {"headers", "delivery_mode", "priority", "timestamp"}
#: How many exchanges and routing keys, and sizes, to remember: a topic exchange may see a new key in every message.
_REMEMBERED = 4096


class PublishEncoder:
    """Turns messages into frames for one channel.

    Args:
        channel_number: the channel's number on its connection.
        frame_max: bytes that a frame may have, as negotiated with the broker; 0 for no limit.
    """

    def __init__(self, channel_number: int, frame_max: int) -> None:
        self._channel = channel_number
        self._body_max = (frame_max or 131072) - 8
        self._methods: dict[tuple[str, str, bool], bytes] = {}
        self._properties: Mapping[str, Any] | None = None
        self._persistent = False
        self._flags = 0
        self._before = b""
        self._after = b""
        self._surroundings: dict[tuple[bytes, int, int], tuple[bytes, bytes, bytes]] = {}

    def encode(self, messages: Iterable[Message], route: Route) -> bytes:
        """The frames of some messages.

        Raises:
            UsageError, BadData: a name is longer than 255 bytes, or a property or header cannot be encoded.
        """
        parts: list[bytes] = []
        for message in messages:
            exchange = route.exchange if message.exchange is None else message.exchange
            routing_key = route.routing_key if message.routing_key is None else message.routing_key
            method = self._methods.get((exchange, routing_key, route.mandatory)) or self._method(
                exchange, routing_key, route.mandatory
            )
            if message.properties is not self._properties or route.persistent is not self._persistent:
                self._keep(message.properties, route.persistent)
            body, message_id, id_size = message.body, b"", -1
            if message.message_id is not None:
                try:
                    message_id = message.message_id.encode("utf-8", "surrogateescape")
                except UnicodeEncodeError as error:
                    raise failures.cannot_encode(error) from error
                if (id_size := len(message_id)) > 255:
                    raise failures.too_long("message id", message_id)
            shape = method, len(body), id_size
            before, after, end = self._surroundings.get(shape) or self._surround(*shape)
            if len(body) > self._body_max:
                body = self._divided(body)
            parts += (before, message_id, after, body, end)
        return b"".join(parts)

    def _surround(self, method: bytes, size: int, id_size: int) -> tuple[bytes, bytes, bytes]:
        """What is before the message id, between it and the body, and behind that."""
        flags, before = self._flags, self._before
        if id_size >= 0:
            flags |= spec.BasicProperties.FLAG_MESSAGE_ID
            before += bytes((id_size,))
        header_size = 14 + len(before) + max(0, id_size) + len(self._after)
        if header_size > self._body_max:
            raise failures.headers_too_large(header_size, self._body_max)
        header = _HEADER_START(
            spec.FRAME_HEADER, self._channel, header_size, spec.BasicProperties.INDEX, 0, size, flags
        )
        after, end = self._after + _FRAME_END, b""
        if size:
            after += _FRAME_START(spec.FRAME_BODY, self._channel, min(size, self._body_max))
            end = _FRAME_END
        if len(self._surroundings) >= _REMEMBERED:
            self._surroundings.clear()
        self._surroundings[method, size, id_size] = method + header + before, after, end
        return self._surroundings[method, size, id_size]

    def _divided(self, body: bytes) -> bytes:
        """A body in several frames, without the start of the first and the end of the last."""
        pieces = [body[: self._body_max]]
        for start in range(self._body_max, len(body), self._body_max):
            piece = body[start : start + self._body_max]
            pieces += (_FRAME_END, _FRAME_START(spec.FRAME_BODY, self._channel, len(piece)), piece)
        return b"".join(pieces)

    def _method(self, exchange: str, routing_key: str, mandatory: bool) -> bytes:
        try:
            method = spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
            encoded: bytes = frame.Method(self._channel, method).marshal()
        except exceptions.ShortStringTooLong as error:
            what = "exchange" if len(exchange) > len(routing_key) else "routing key"
            raise failures.too_long(what, error.args[0]) from error
        except UnicodeEncodeError as error:
            raise failures.cannot_encode(error) from error
        if len(self._methods) >= _REMEMBERED:
            self._methods.clear()
        self._methods[(exchange, routing_key, mandatory)] = encoded
        return encoded

    def _keep(self, properties: Mapping[str, Any], persistent: bool) -> None:
        """Encode the properties before and after message_id, in the order that the specification gives them."""
        pieces: dict[bool, list[bytes]] = {False: [], True: []}
        flags = 0
        given = {
            _PLACES[name]: (name, value) for name, value in properties.items() if value is not None and name in _PLACES
        }
        if persistent:
            given.setdefault(_PLACES["delivery_mode"], ("delivery_mode", PERSISTENT))
        try:
            for place in sorted(given):
                name, value = given[place]
                into = pieces[place > _MESSAGE_ID]
                if type(value) is str and name in _SHORT_STRINGS:
                    encode_short_string(into, value)
                else:
                    into += spec.BasicProperties(**{name: value}).encode()[1:]  # the first are its flags
                flags |= 1 << (15 - place)
        except (exceptions.AMQPError, ValueError, TypeError, AttributeError, AssertionError, struct.error) as error:
            raise failures.cannot_encode(error) from error
        self._flags = flags
        self._before, self._after = b"".join(pieces[False]), b"".join(pieces[True])
        self._properties, self._persistent = properties, persistent
        self._surroundings.clear()
