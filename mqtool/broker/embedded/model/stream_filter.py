"""Which filter values a chunk has: a Bloom filter of 128 bits, so that readers can pass the chunk over."""

import zlib
from collections.abc import Iterable

#: Stands for messages without a filter value.
UNFILTERED = 1
_BITS = 127


def bits_of(value: bytes) -> int:
    """The bits that stand for a filter value."""
    if not value:
        return UNFILTERED
    number = zlib.crc32(value)
    return 2 << number % _BITS | 2 << (number >> 16) % _BITS


def has_one_of(chunk: int, wanted: Iterable[int]) -> bool:
    """Whether a chunk may have one of the filter values."""
    return any(chunk & bits == bits for bits in wanted)
