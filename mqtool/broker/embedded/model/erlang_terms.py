"""Field tables as Erlang terms: their hash (erlang:phash2/2) and their text, which RabbitMQ shows to clients.

All released versions of Erlang compute the same hash (`make_hash2` in erts/emulator/beam/utils.c). It is Bob Jenkins'
hash of 1996: each part of a term is mixed into the hash of the parts before it, with a constant for its type.
"""

import struct
from functools import cache
from hashlib import md5
from typing import Any, TypeAlias

from mqtool.codecs.field_tables import Decimal, Table, Value, encode_table, type_name

#: An Erlang term: binaries are bytes, atoms str, tuples tuple, and lists list.
Term: TypeAlias = "int | float | bytes | str | tuple[Term, ...] | list[Term]"

#: A larger table would take longer than the turn of a client.
_MOST_BYTES = 2000

_MASK = 2**32 - 1
_GOLDEN = 0x9E3779B9
#: Erlang's constants for types of terms are multiples of the golden ratio.
_SMALL, _NIL, _ATOM, _TUPLE, _NEGATIVE, _POSITIVE, _FLOAT, _BINARY = (
    _GOLDEN * number & _MASK for number in (1, 2, 3, 9, 10, 11, 12, 13)
)
_HASH_OF_NIL = 3468870702


def phash2(term: Term) -> int:
    """Return erlang:phash2(Term, 1 bsl 32)."""
    return _hash(term, 0)


def hash_of_table(table: Table) -> bytes:
    """Return the hash of a field table, as RabbitMQ stores the arguments of a binding; a large one has another hash."""
    if len(encoded := encode_table(table)) > _MOST_BYTES:
        return md5(encoded, usedforsecurity=False).digest()[:4]
    return phash2(sorted(_fields(table))).to_bytes(4)  # by name; names are unique


def printed_fields(table: Table) -> list[str]:
    """Return the fields of a table as Erlang prints them, such as `{<<"x-max-length">>,signedint,5}`, or its size."""
    size = len(encode_table(table))
    return [_printed(field) for field in _fields(table)] if size <= _MOST_BYTES else [f"{size} bytes"]


def _printed(term: Any) -> str:
    match term:
        case bytes():
            text = term.decode("latin-1")
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            shown = ",".join(map(str, term)) if not text.isprintable() else f'"{quoted}"' if text else ""
            return f"<<{shown}>>"
        case tuple():
            return f"{{{','.join(map(_printed, term))}}}"
        case list():
            return f"[{','.join(map(_printed, term))}]"
        case _:
            return str(term)


def _fields(table: Table) -> list[Any]:
    return [(name.encode(errors="surrogateescape"), *_typed(value)) for name, value in table.items()]


def _typed(value: Value) -> tuple[str, Any]:
    term: Any = value
    match value:
        case bool() | None:
            term = {True: "true", False: "false", None: "undefined"}[value]
        case str():
            term = value.encode(errors="surrogateescape")
        case Decimal():
            term = (value.scale, value.value)
        case list():
            term = [_typed(item) for item in value]
        case dict():
            term = _fields(value)
    return type_name(value), term


def _hash(term: Any, before: int) -> int:
    match term:
        case str():
            return _mixed(before, _ATOM, _hash_of_atom(term)) if before else _hash_of_atom(term)
        case int() if -(2**27) <= term < 2**27:
            if term < 0:
                before = _mixed(before, _SMALL, -term)
            return _mixed(before, _SMALL, term)
        case int():
            constant, size = _NEGATIVE if term < 0 else _POSITIVE, abs(term)
            return _mixed(before, constant, size, size >> 32)
        case float():
            return _mixed(before, _FLOAT, *struct.unpack(">II", struct.pack(">d", term + 0.0)))
        case bytes():
            return _hash_of_block(term, _BINARY + before & _MASK) if term else _BINARY + before & _MASK
        case tuple():
            before = _mixed(before, _TUPLE, len(term))
            for part in term:
                before = _hash(part, before)
            return before
        case _:
            for part in term:
                before = _hash(part, before)
            return _mixed(before, _NIL, 2) if before else _HASH_OF_NIL


@cache
def _hash_of_atom(name: str) -> int:
    hashed = 0
    for byte in name.encode():
        hashed = (hashed << 4) + byte
        high = hashed & 0xF0000000
        hashed ^= high >> 24 ^ high
    return hashed


def _hash_of_block(block: bytes, before: int) -> int:
    a = b = _GOLDEN
    whole = len(block) - len(block) % 12
    for words in struct.iter_unpack("<III", block[:whole]):
        a, b, before = _mix(a + words[0], b + words[1], before + words[2])
    rest = block[whole:]
    # The length takes the place of the lowest byte of the last word.
    words = struct.unpack("<III", rest[:8].ljust(8, b"\0") + b"\0" + rest[8:].ljust(3, b"\0"))
    return _mix(a + words[0], b + words[1], before + words[2] + len(block))[2]


def _mixed(before: int, constant: int, first: int, second: int = 0) -> int:
    return _mix(constant + first, constant + second, before)[2]


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = (a - b - c ^ (c & _MASK) >> 13) & _MASK
    b = (b - c - a ^ a << 8) & _MASK
    c = (c - a - b ^ b >> 13) & _MASK
    a = (a - b - c ^ c >> 12) & _MASK
    b = (b - c - a ^ a << 16) & _MASK
    c = (c - a - b ^ b >> 5) & _MASK
    a = (a - b - c ^ c >> 3) & _MASK
    b = (b - c - a ^ a << 10) & _MASK
    c = (c - a - b ^ b >> 15) & _MASK
    return a, b, c
