"""Routing tables of exchange types that send each message to one of their bindings' queues or exchanges.

Each message is hashed, or routed, once. With several routing keys (CC, BCC), x-consistent-hash uses the first one.
"""

import math
from collections.abc import Collection, Mapping
from hashlib import md5
from itertools import islice
from secrets import SystemRandom
from typing import Any

from mqtool.broker.embedded.model.erlang_terms import Term, phash2
from mqtool.codecs.field_tables import encode_table
from mqtool.field_values import FieldValue
from mqtool.routing import FanoutTable

_HASHES = 2**128
#: The range of erlang:phash2/1.
_RANGE = 2**27
#: This many routing keys are hashed. RabbitMQ has no such limit.
_MOST_KEYS = 100


class RandomTable(FanoutTable[Any]):
    """x-random and x-local-random: one of the bindings, chosen at random. All queues are local to this broker."""

    def match(self, key: str, headers: Mapping[str, FieldValue]) -> Collection[Any]:  # noqa: ARG002
        return SystemRandom().choices([*self._items], [*self._items.values()]) if self._items else ()


class ModulusTable(FanoutTable[Any]):
    """x-modulus-hash: the binding whose number, sorted by destination, is the hash of the keys modulo their count."""

    def match_any(self, keys: Collection[str], headers: Mapping[str, FieldValue]) -> Collection[Any]:  # noqa: ARG002
        ends = sorted(self._items, key=lambda end: (end.destination_type, end.name))
        bound = [end for end in ends for _ in range(self._items[end])]
        some: list[Term] = [key.encode(errors="surrogateescape") for key in islice(keys, _MOST_KEYS)]
        hashed = phash2(some) % _RANGE  # as RabbitMQ 4.3 does
        return [bound[hashed % len(bound)]] if bound else ()


class ConsistentHashTable(FanoutTable[Any]):
    """x-consistent-hash: destinations get shares of all hashes by their weights, which are the binding keys.

    If a destination is bound or unbound, only the keys of its own share move. As in RabbitMQ, the first binding of a
    destination determines its weight; once that is removed, the others count for nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[Any, list[str]] = {}
        self._weights: dict[Any, int] = {}

    def add(self, key: str, arguments: Mapping[str, FieldValue], item: Any) -> None:  # noqa: ARG002
        self._keys.setdefault(item, []).append(key)
        self._weights.setdefault(item, int(key))

    def remove(self, key: str, arguments: Mapping[str, FieldValue], item: Any) -> None:  # noqa: ARG002
        self._keys[item].remove(key)
        if key not in self._keys[item]:
            self._weights.pop(item, None)
        if not self._keys[item]:
            del self._keys[item]

    def match_any(self, keys: Collection[str], headers: Mapping[str, FieldValue]) -> Collection[Any]:  # noqa: ARG002
        key = next(iter(keys))

        def draw(item: Any) -> float:  # of destinations with exponential draws, each wins by its weight
            share = (_hash(f"{item.destination_type} {item.name} {key}") + 1) / (_HASHES + 1)
            return -math.log(share) / self._weights[item]

        return [min(self._weights, key=draw)] if self._weights else ()


def _hash(key: str) -> int:
    return int.from_bytes(md5(key.encode(errors="surrogateescape"), usedforsecurity=False).digest())


def hash_input(value: FieldValue) -> str:
    """Return a header or a property as a key to hash; all messages without it have the same one."""
    return value if isinstance(value, str) else encode_table({"": value}).decode("latin-1")
