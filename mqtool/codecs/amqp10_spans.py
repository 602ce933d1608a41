"""Find the bytes of an encoded AMQP 1.0 value without decoding it."""

from typing import NamedTuple

from mqtool.codecs.amqp10_values import Room

_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}
_PREFIXES = {0xA: 1, 0xB: 4, 0xC: 1, 0xD: 4, 0xE: 1, 0xF: 4}


class Span(NamedTuple):
    """The position of a value's bytes, after its constructor and size."""

    code: int
    start: int
    end: int


def find(data: bytes, offset: int) -> Span:
    """Find the bytes of the value at an offset. The value must not have a descriptor.

    Raises:
        ValueError: the value is cut short, or its type is unknown.
        IndexError: the data ends at the offset.
    """
    code = data[offset]
    start = offset + 1
    width = _WIDTHS.get(code >> 4)
    if width is None:
        prefix = _PREFIXES.get(code >> 4)
        if prefix is None:
            raise ValueError("unknown constructor")
        start += prefix
        width = int.from_bytes(data[start - prefix : start])
    if start + width > len(data):
        raise ValueError("value cut short")
    return Span(code, start, start + width)


def end_of(data: bytes, offset: int, room: Room) -> int:
    """Find the end of the value at an offset. Its descriptors, if any, need room. Raises the errors of find()."""
    values = 1
    while values:
        if data[offset]:
            offset, values = find(data, offset).end, values - 1
        else:
            room.take(1)
            offset, values = offset + 1, values + 1
    return offset
