"""The frames of basic.publish and basic.deliver, coded by hand."""

import struct
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping
from struct import Struct
from typing import Any, TypeVar

from pika import exceptions, frame, spec

from mqtool.amqp import pika_errors
from mqtool.amqp.tables import decode_short_string, encode_short_string
from mqtool.amqp.unconfirmed import Route
from mqtool.message import PERSISTENT, PROPERTIES, Delivery, Message

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
                    raise pika_errors.cannot_encode(error) from error
                if (id_size := len(message_id)) > 255:
                    raise pika_errors.too_long("message id", message_id)
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
            raise pika_errors.headers_too_large(header_size, self._body_max)
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
            raise pika_errors.too_long(what, error.args[0]) from error
        except UnicodeEncodeError as error:
            raise pika_errors.cannot_encode(error) from error
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
            raise pika_errors.cannot_encode(error) from error
        self._flags = flags
        self._before, self._after = b"".join(pieces[False]), b"".join(pieces[True])
        self._properties, self._persistent = properties, persistent
        self._surroundings.clear()


_FRAME = Struct(">BHI")
_BASIC_DELIVER, _BASIC_ACK = (Struct(">I").pack(method.INDEX) for method in (spec.Basic.Deliver, spec.Basic.Ack))
_CONFIRM = Struct(">Q?")
#: How many routes and properties to remember: each message may have its own.
_REMEMBERED = 1024
#: Bytes of a body beyond which it is not worth the copies to wait until all of it is there.
_LARGE = 1 << 20
_LAST_KIND = spec.FRAME_HEARTBEAT

Key = TypeVar("Key")
Value = TypeVar("Value")
TakeLot = Callable[[list[Delivery]], None]


class Properties(Mapping[str, Any]):
    """The properties of a delivery by name; decoded when somebody asks for one."""

    __slots__ = ("_decoded", "_encoded")

    def __init__(self, encoded: bytes) -> None:
        self._encoded = encoded
        self._decoded: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        return self._by_name()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name())

    def __len__(self) -> int:
        return len(self._by_name())

    def items(self) -> ItemsView[str, Any]:
        return self._by_name().items()

    def _by_name(self) -> dict[str, Any]:
        if self._decoded is None:
            self._decoded = vars(spec.BasicProperties().decode(self._encoded))
        return self._decoded


class _Shape:
    """The sizes of a message's method and header frames, and how to take apart a message with such frames."""

    __slots__ = ("header", "method", "size", "unpack")

    def __init__(self, start: int, method: int, header: int) -> None:
        self.method, self.header = method, header
        route, properties = max(0, method - start - 8), max(0, header - 12)
        form = Struct(f">BHI{start}sQ{route}sxBHIHHQ{properties}sx")
        self.unpack, self.size = form.unpack_from, form.size


class Consumed:
    """The deliveries of one consumer.

    Attributes:
        channel: the number of its channel.
        start: what the method of each begins with, before its delivery tag.

    Args:
        take: is given them, in lots.
    """

    def __init__(self, channel: int, consumer_tag: str, queue: str, epoch: int, take: TakeLot) -> None:
        self.channel = channel
        self.start = _start(consumer_tag.encode())
        self._queue = queue
        self._epoch = epoch
        self._take = take
        self._shape = _Shape(len(self.start), 0, 0)
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._routes: dict[bytes, tuple[bool, str, str]] = {}
        self._properties: dict[bytes, Properties] = {}

    def cut(self, data: bytes, position: int) -> int:
        """Cut the deliveries from a position on, and hand them over; return where the first begins that is not ours,
        not whole yet, or has a body of several frames.
        """
        lot: list[Delivery] = []
        channel, start, queue, epoch = self.channel, self.start, self._queue, self._epoch
        routes, seen, frame, end = self._routes, self._properties, _FRAME.unpack_from, len(data)
        shape: _Shape | None = self._shape
        while shape is not None and (end - position >= shape.size or (shape := self._shape_at(data, position))):
            kind, number, method, begins, tag, route, _, _, header, _, _, size, encoded = shape.unpack(data, position)
            if method != shape.method or header != shape.header:
                shape = self._shape_at(data, position)
                continue
            if kind != 1 or number != channel or begins != start:
                break
            after = position + shape.size
            body = b""
            if size:
                if end - after < size + 8 or frame(data, after)[2] != size:
                    break
                body = data[after + 7 : after + 7 + size]
                after += size + 8
            redelivered, exchange, routing_key = routes.get(route) or self._route(route)
            properties = seen.get(encoded) or _remembered(seen, encoded, Properties(encoded))
            lot.append(Delivery(body, exchange, routing_key, queue, redelivered, properties, tag, epoch))
            position = after
        if lot:
            self._take(lot)
        return position

    def is_to_come(self, data: bytes, position: int) -> bool:
        """Whether to wait until the delivery at a position is whole. If its body is large or divided, pika takes it."""
        shape = self._shape_at(data, position)
        if shape is None:
            return True
        body, size = position + shape.size, shape.unpack(data, position)[11]
        return size <= _LARGE and (len(data) < body + 7 or _FRAME.unpack_from(data, body)[2] == size)

    def _shape_at(self, data: bytes, position: int) -> _Shape | None:
        """The shape of the message at a position; None if its first two frames are not whole, or it is not ours."""
        if len(data) < position + 7:
            return None
        kind, number, method = _FRAME.unpack_from(data, position)
        next_frame = position + 8 + method
        if kind != 1 or number != self.channel or not data.startswith(self.start, position + 7):
            return None
        if len(data) < next_frame + 7:
            return None
        header = _FRAME.unpack_from(data, next_frame)[2]
        if len(data) < next_frame + 8 + header:
            return None
        shape = self._shapes.get((method, header))
        if shape is None:
            shape = _remembered(self._shapes, (method, header), _Shape(len(self.start), method, header))
        self._shape = shape
        return shape

    def _route(self, encoded: bytes) -> tuple[bool, str, str]:
        exchange, offset = decode_short_string(encoded, 1)
        routing_key, _ = decode_short_string(encoded, offset)
        return _remembered(self._routes, encoded, (encoded[0] & 1 == 1, exchange, routing_key))


def _remembered(known: dict[Key, Value], key: Key, value: Value) -> Value:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = value
    return value


class Cutter:
    """Takes deliveries and confirms out of what a connection receives, for the consumers and publishers that it knows.

    Attributes:
        confirmed: by the number of a channel, who hears of its confirms: the tag, and whether it is for all up to that.

    Args:
        rest: takes everything else.
    """

    def __init__(self, rest: Callable[[bytes], None]) -> None:
        self.confirmed: dict[int, Callable[..., None]] = {}
        self._rest = rest
        self._consumers: dict[tuple[int, bytes], Consumed] = {}
        self._left = b""

    def add(self, consumed: Consumed) -> None:
        """From now on, cut the deliveries to this consumer."""
        self._consumers[consumed.channel, consumed.start] = consumed

    def remove(self, channel: int, consumer_tag: str) -> None:
        """Leave the deliveries to a consumer to pika."""
        self._consumers.pop((channel, _start(consumer_tag.encode())), None)

    def receive(self, data: bytes) -> int:
        """Take what was received; return how many of its bytes the rest does not get."""
        if self._left:
            data, self._left = self._left + data, b""
        position, end, cut = 0, len(data), 0
        while end - position >= 7:
            kind, channel, size = _FRAME.unpack_from(data, position)
            after = position + 8 + size
            if kind == 1 and self._consumers and (consumed := self._consumer(channel, data, position)) is not None:
                to = consumed.cut(data, position)
                cut += to - position
                if to != position:
                    position = to
                    continue
                if consumed.is_to_come(data, position):
                    break
            if kind > _LAST_KIND:
                after = end  # no frame, but the protocol's name: the broker speaks another version of it
            if after > end:
                break
            if channel in self.confirmed and data.startswith(_BASIC_ACK, position + 7):
                tag, multiple = _CONFIRM.unpack_from(data, position + 11)
                self.confirmed[channel](tag, multiple=multiple)
                cut += after - position
            else:
                self._rest(data[position:after])
            position = after
        self._left = data[position:]
        return cut

    def _consumer(self, channel: int, data: bytes, position: int) -> Consumed | None:
        for consumed in self._consumers.values():
            if consumed.channel == channel and data.startswith(consumed.start, position + 7):
                return consumed
        return None


def _start(consumer_tag: bytes) -> bytes:
    return _BASIC_DELIVER + bytes((len(consumer_tag),)) + consumer_tag
