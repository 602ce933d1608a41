"""Near misses: bindings that almost match a message, and the reason why they do not; exchanges with a similar name.

This module only ranks and explains bindings; mqtool.routing decides whether a binding matches.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from heapq import nsmallest
from typing import Any, NamedTuple

from mqtool import management
from mqtool.management import Management
from mqtool.routing import header_matches, wanted_headers, words_of
from mqtool.topology import Binding, Exchange

#: The cost of matching `*`: above 0, so that a literal match is preferred.
_WILDCARD = 0.001
#: Words with at least this similarity count as misspellings of each other, as in difflib.get_close_matches.
_SIMILAR = 0.6


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A binding that almost matched, and the difference: "word 2 is 'info', not 'critical'"."""

    binding: Binding
    reason: str


def nearest(
    bindings: Iterable[tuple[str, Binding]], keys: Sequence[str], headers: Mapping[str, Any], limit: int
) -> list[NearMiss]:
    """Return the bindings that almost matched, the nearest first, with the reasons.

    Args:
        bindings: pairs of an exchange type, as returned by routing_type(), and a binding.
        keys: the message's routing key, then those of its headers CC and BCC.
    """
    ranked = []
    for order, (kind, binding) in enumerate(bindings):
        distance = _distance(kind, binding, keys, headers)
        if distance is not None:
            ranked.append((distance, order, kind, binding))
    closest = nsmallest(limit, ranked, key=lambda entry: entry[:2])
    return [NearMiss(binding, _reason(kind, binding, keys, headers)) for _, _, kind, binding in closest]


def _distance(kind: str, binding: Binding, keys: Sequence[str], headers: Mapping[str, Any]) -> float | None:
    """Return how many words or headers differ, where a misspelling counts as less than 1; None if too many differ."""
    if kind == "topic":
        return min((far for far in (_topic_distance(binding.routing_key, key) for key in keys) if far), default=None)
    if kind == "direct":
        unlike = 1 - max(_similarity(binding.routing_key, key) for key in keys)
        return unlike if unlike < 1 else None
    if kind == "headers":
        wanted = wanted_headers(binding.arguments)
        failing = sum(not header_matches(headers, name, value) for name, value in wanted)
        near = failing < len(wanted) or any(name in headers for name, _ in wanted)
        return failing if near else None
    return None


def _reason(kind: str, binding: Binding, keys: Sequence[str], headers: Mapping[str, Any]) -> str:
    if kind == "topic":
        key = min(keys, key=lambda each: _topic_distance(binding.routing_key, each) or float("inf"))
        return ", ".join(_topic_differences(binding.routing_key, key))
    if kind == "direct":
        key = max(keys, key=lambda each: _similarity(binding.routing_key, each))
        return f"the key is {key!r}, not {binding.routing_key!r}"
    return _header_reason(binding.arguments, headers)


@lru_cache(maxsize=16)
def _matcher(key: str) -> "SequenceMatcher[str]":
    return SequenceMatcher(None, "", key.casefold(), autojunk=False)


def _similarity(pattern: str, key: str) -> float:
    """Return the similarity of two words, from _SIMILAR to 1; 0 if it is less than _SIMILAR."""
    matcher = _matcher(key)  # the matcher caches its analysis of the key
    matcher.set_seq1(pattern.casefold())
    for ratio in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio):
        likeness = ratio()
        if likeness < _SIMILAR:
            return 0.0
    return likeness


def _fits(pattern: str, word: str) -> bool:
    return pattern == "*" or (pattern == word and pattern != "#")


def _costs(pattern: Sequence[str], words: Sequence[str]) -> list[list[float]]:
    """Return edit distances; costs[i][j] compares the pattern's first i parts with the key's first j words."""
    costs = [[float(column) for column in range(len(words) + 1)]]
    for part in pattern:
        above = costs[-1]
        line = [above[0] + (part != "#")]
        for column, word in enumerate(words, 1):
            if part == "#":
                line.append(min(above[column], line[column - 1]))
            else:
                line.append(min(above[column - 1] + _unlike(part, word), above[column] + 1, line[column - 1] + 1))
        costs.append(line)
    return costs


def _unlike(part: str, word: str) -> float:
    if not _fits(part, word):
        return 1
    return _WILDCARD if part == "*" else 0


def _topic_distance(pattern: str, key: str) -> float | None:
    """Return how many words of a key differ from a pattern, minus up to 0.5 for similarity; None if too many differ."""
    parts, words = words_of(pattern), words_of(key)
    distance = _costs(parts, words)[-1][-1]
    if round(distance) > max(1, len(words) // 2):
        return None
    literal = sum(part in words for part in parts if part not in ("*", "#"))
    misspelt = _similarity(pattern, key)
    if not literal and not misspelt and "*" not in parts and "#" not in parts:
        return None
    return distance - 0.5 * misspelt


def _topic_differences(pattern: str, key: str) -> list[str]:
    parts, words = words_of(pattern), words_of(key)
    costs = _costs(parts, words)
    row, column = len(parts), len(words)
    found = []
    while row or column:
        part = parts[row - 1] if row else ""
        here = costs[row][column]
        if part == "#" and here == costs[row - 1][column]:
            row -= 1
        elif part == "#" and column and here == costs[row][column - 1]:
            column -= 1
        elif column and here == costs[row][column - 1] + 1:
            found.append(f"word {column}, {words[column - 1]!r}, is one too many")
            column -= 1
        elif row and column and part != "#" and here == costs[row - 1][column - 1] + _unlike(part, words[column - 1]):
            if not _fits(part, words[column - 1]):
                found.append(f"word {column} is {words[column - 1]!r}, not {part!r}")
            row, column = row - 1, column - 1
        else:
            after = f" after word {column}" if column else ""
            found.append(f"a word for {part!r} is missing{after}")
            row -= 1
    return found[::-1]


def _header_reason(arguments: Mapping[str, Any], headers: Mapping[str, Any]) -> str:
    reasons = []
    for name, value in wanted_headers(arguments):
        if name not in headers:
            reasons.append(f"header {name!r} is missing")
        elif not header_matches(headers, name, value):
            reasons.append(f"header {name!r} is {json.dumps(headers[name])}, not {json.dumps(value)}")
    none_fits = "none fits: " if str(arguments.get("x-match")).startswith("any") and len(reasons) > 1 else ""
    return none_fits + ", ".join(reasons)


class Neighbour(NamedTuple):
    """An exchange with a similar name, and the number of its bindings."""

    name: str
    bindings: int


def bound_neighbour(api: Management, vhost: str, exchange: Exchange) -> Neighbour | None:
    """Return the most similarly named exchange of the same type that has bindings; None if there is none."""
    by_words: dict[str, list[str]] = {}
    for view in management.exchanges(api, vhost, ("name", "type")):
        if view["type"] == exchange.type and view["name"] not in ("", exchange.name):
            by_words.setdefault(_in_order(view["name"]), []).append(view["name"])
    for words in difflib.get_close_matches(_in_order(exchange.name), by_words):
        for name in by_words[words]:
            if bindings := sum(1 for _ in management.bindings_from(api, vhost, name, ("routing_key",))):
                return Neighbour(name, bindings)
    return None


def _in_order(name: str) -> str:
    """Return the words of a name in alphabetical order: both logs_direct and direct_logs become "direct logs"."""
    return " ".join(sorted(re.split(r"[^a-z0-9]+", name.casefold())))
