"""Deliveries and confirms, cut by hand from what the socket gives.

pika decodes each with some sixty Python calls. Most deliveries to a consumer have the same shape, so here a message's
first two frames are taken apart by one call, and what they have in common with others is decoded once.
AMQP 0-9-1, sections 2.3.5 and 4.2.
"""

from collections.abc import Callable, ItemsView, Iterator, Mapping
from struct import Struct
from typing import Any, TypeVar

from pika import spec

from mqtool.amqp.tables import decode_short_string
from mqtool.message import Delivery

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
