"""Routing tables of the standard exchange types, as pure data structures.

Each table maps bindings to items of the caller's choice: the embedded broker uses queues and exchanges, `mqtool route`
uses names.

    >>> table = TopicTable()
    >>> table.add("kern.*", {}, "kernel")
    >>> sorted(table.match("kern.critical", {}))
    ['kernel']
"""

import decimal
import math
import re
from collections.abc import Collection, Hashable, Mapping, Set
from typing import Any, Generic, Protocol, TypeVar

from mqtool.codecs.field_tables import Decimal, Timestamp, encode_table, is_integer
from mqtool.field_values import FieldValue

#: The longest delay of the delayed message plugin, in milliseconds.
MAX_DELAY = 2**32 - 1
_INTEGER = re.compile(r"[+-]?[0-9]+")

Item = TypeVar("Item", bound=Hashable)
#: Headers that a binding to a headers exchange compares, with the required values.
_Wanted = list[tuple[str, FieldValue]]
#: A value in a form that can be compared with others, and hashed.
_Comparable = tuple[str, object]


class RoutingTable(Protocol[Item]):
    """The bindings of one exchange.

    An item may be bound several times with different keys or arguments; it stays until every binding is removed.
    """

    def add(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:
        """Bind an item."""

    def remove(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:
        """Unbind an item that was bound with the same key and arguments; raise KeyError if it was not."""

    def match(self, key: str, headers: Mapping[str, FieldValue]) -> Collection[Item]:
        """Return the items that a message is routed to, without duplicates."""

    def match_any(self, keys: Collection[str], headers: Mapping[str, FieldValue]) -> Collection[Item]:
        """Return the items that a message with several routing keys is routed to, without duplicates."""


class _Counted(dict[Item, int], Generic[Item]):
    """Items, with the number of times each was added."""

    def add(self, item: Item) -> None:
        self[item] = self.get(item, 0) + 1

    def discard_one(self, item: Item) -> None:
        count = self[item]
        if count == 1:
            del self[item]
        else:
            self[item] = count - 1


class DirectTable(Generic[Item]):
    """Direct exchange: the binding key equals the routing key (AMQP 0-9-1, section 3.1.3.1)."""

    def __init__(self) -> None:
        self._items: dict[str, _Counted[Item]] = {}

    def add(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:  # noqa: ARG002
        self._items.setdefault(key, _Counted()).add(item)

    def remove(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:  # noqa: ARG002
        items = self._items[key]
        items.discard_one(item)
        if not items:
            del self._items[key]

    def match(self, key: str, headers: Mapping[str, FieldValue]) -> Collection[Item]:  # noqa: ARG002
        return self._items.get(key, ())

    def match_any(self, keys: Collection[str], headers: Mapping[str, FieldValue]) -> Collection[Item]:  # noqa: ARG002
        return dict.fromkeys(item for key in keys for item in self._items.get(key, ()))


class FanoutTable(Generic[Item]):
    """Fanout exchange: every message goes to every item, regardless of its routing key (section 3.1.3.2)."""

    def __init__(self) -> None:
        self._items: _Counted[Item] = _Counted()

    def add(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:  # noqa: ARG002
        self._items.add(item)

    def remove(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:  # noqa: ARG002
        self._items.discard_one(item)

    def match(self, key: str, headers: Mapping[str, FieldValue]) -> Collection[Item]:  # noqa: ARG002
        return self._items

    def match_any(self, keys: Collection[str], headers: Mapping[str, FieldValue]) -> Collection[Item]:  # noqa: ARG002
        return self.match("", headers)


def words_of(key: str) -> list[str]:
    """Split a key into words. The empty key has no words, so `*` does not match it."""
    return key.split(".") if key else []


def _pattern_of(key: str) -> list[str]:
    """Split a binding key into words, and normalize adjacent wildcards: every `*` first, then at most one `#`.

    So equivalent keys share a node, and no `#` is followed by a wildcard.
    """
    words: list[str] = []
    after: list[str] = []
    for word in words_of(key):
        if word == "#":
            after = ["#"]
        elif word == "*":
            words.append(word)
        else:
            words += [*after, word]
            after = []
    return words + after


class _Node(Generic[Item]):
    """A node in the trie of patterns. `children` maps the next word of a pattern to its node."""

    __slots__ = ("children", "items")

    def __init__(self) -> None:
        self.children: dict[str, _Node[Item]] = {}
        self.items: _Counted[Item] = _Counted()


class TopicTable(Generic[Item]):
    """Topic exchange: words between dots, `*` for one word and `#` for any number of words (section 3.1.3.3).

    The patterns form a trie. match() reads the key word by word and keeps the set of nodes that can be reached, so its
    cost depends on the key and on the patterns that match so far, not on the number of bindings. A `#` at the end of a
    pattern matches the rest of any key, so match() adds its items at once and goes no further there.

    Attributes:
        steps: how many nodes the last match has compared with a word.
        most_steps: a match that has taken more steps than this stops, and does not return all items.
    """

    def __init__(self) -> None:
        self._root: _Node[Item] = _Node()
        self.steps = 0
        self.most_steps = math.inf

    def add(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:  # noqa: ARG002
        node = self._root
        for word in _pattern_of(key):
            node = node.children.setdefault(word, _Node())
        node.items.add(item)

    def remove(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:  # noqa: ARG002
        path = [self._root]
        words = _pattern_of(key)
        for word in words:
            path.append(path[-1].children[word])
        path[-1].items.discard_one(item)
        for parent, word, node in reversed(list(zip(path, words, path[1:], strict=False))):
            if node.items or node.children:
                break
            del parent.children[word]

    def match(self, key: str, headers: Mapping[str, FieldValue]) -> Collection[Item]:
        return self.match_any((key,), headers)

    def match_any(self, keys: Collection[str], headers: Mapping[str, FieldValue]) -> Collection[Item]:  # noqa: ARG002
        # Items are collected only at the end: thousands of keys can lead to the same node.
        matched: dict[_Node[Item], None] = {}
        self.steps = 0
        for key in keys:
            self._walk(key, matched)
        found: dict[Item, None] = {}
        for node in matched:
            found.update(dict.fromkeys(node.items))
        return found

    def _walk(self, key: str, matched: dict[_Node[Item], None]) -> None:
        """Add the nodes of the patterns that match a key to `matched`."""
        nodes: dict[_Node[Item], bool] = {}
        _enter(nodes, matched, self._root)
        steps, most_steps = self.steps, self.most_steps
        for word in words_of(key):
            steps += len(nodes)
            if steps > most_steps:
                break
            following: dict[_Node[Item], bool] = {}
            for node, stays in nodes.items():
                if stays:
                    following[node] = True
                for step in (word, "*"):
                    child = node.children.get(step)
                    # Only wildcards match the word `#`.
                    if child is not None and step != "#":
                        _enter(following, matched, child)
            nodes = following
        self.steps = steps
        matched.update(dict.fromkeys(nodes))


def _enter(nodes: dict[_Node[Item], bool], matched: dict[_Node[Item], None], node: _Node[Item]) -> None:
    """Add a node to `nodes`. If it has a `#` child, which can match the rest of any key, add that to both."""
    nodes.setdefault(node, False)
    below = node.children.get("#")
    if below is not None:
        matched[below] = None
        if below.children:
            nodes[below] = True


class HeadersTable(Generic[Item]):
    """Headers exchange: compares the binding's arguments with the message's headers (section 3.1.3.4).

    `x-match` is `all` (the default), `any`, `all-with-x` or `any-with-x`; the first two ignore arguments whose names
    start with `x-`. An argument without a value requires only that the header exists.
    """

    def __init__(self) -> None:
        self._bindings: dict[bytes, _HeadersBinding[Item]] = {}
        self.strict_numbers = False

    def add(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:  # noqa: ARG002
        identity = canonical(arguments)
        if identity not in self._bindings:
            self._bindings[identity] = _HeadersBinding(arguments, strict=self.strict_numbers)
        self._bindings[identity].items.add(item)

    def remove(self, key: str, arguments: Mapping[str, FieldValue], item: Item) -> None:  # noqa: ARG002
        identity = canonical(arguments)
        items = self._bindings[identity].items
        items.discard_one(item)
        if not items:
            del self._bindings[identity]

    def match(self, key: str, headers: Mapping[str, FieldValue]) -> Collection[Item]:  # noqa: ARG002
        found: dict[Item, None] = {}
        strict = self.strict_numbers
        # Converted once, not for each binding: one header can be a list of many thousand items.
        given = (
            {(name, _comparable(value, strict=strict)) for name, value in headers.items()} if self._bindings else set()
        )
        for binding in self._bindings.values():
            if binding.match(headers.keys(), given, strict=strict):
                found.update(dict.fromkeys(binding.items))
        return found

    def match_any(self, keys: Collection[str], headers: Mapping[str, FieldValue]) -> Collection[Item]:  # noqa: ARG002
        return self.match("", headers)


class _HeadersBinding(Generic[Item]):
    """The items bound with the same arguments to a headers exchange."""

    def __init__(self, arguments: Mapping[str, FieldValue], *, strict: bool) -> None:
        self.items: _Counted[Item] = _Counted()
        self._is_any = arguments.get("x-match") in ("any", "any-with-x")
        self._wanted = wanted_headers(arguments)
        #: The headers that need only exist, and those that must have a value.
        self._names = {name for name, value in self._wanted if value is None}
        # Converted now: the first message would have to wait for the values of all bindings.
        self._convert(strict=strict)

    def _convert(self, *, strict: bool) -> None:
        self._is_strict = strict
        self._values = {(name, _comparable(value, strict=strict)) for name, value in self._wanted if value is not None}

    def match(self, names: Set[str], given: Set[tuple[str, _Comparable]], *, strict: bool) -> bool:
        """Return True if a message's headers match: their names, and their names with comparable values."""
        if strict is not self._is_strict:
            self._convert(strict=strict)
        if self._is_any:
            return not (names.isdisjoint(self._names) and given.isdisjoint(self._values))
        return self._names <= names and self._values <= given


def wanted_headers(arguments: Mapping[str, FieldValue]) -> _Wanted:
    """Return the headers that a binding to a headers exchange compares, with the required values."""
    with_x = arguments.get("x-match") in ("all-with-x", "any-with-x")
    return [
        (name, value)
        for name, value in arguments.items()
        if name != "x-match" and (with_x or not name.startswith("x-"))
    ]


def header_matches(
    headers: Mapping[str, FieldValue], name: str, wanted: FieldValue, *, strict_numbers: bool = False
) -> bool:
    """True if a header exists and has the value that a binding requires; None accepts any value.

    As in RabbitMQ, numbers are compared by value, not by AMQP type, and a string equals its UTF-8 bytes. The
    items of lists and tables must also have the same AMQP type and order.

    Args:
        strict_numbers: integers, floats and timestamps are never equal to each other, as in RabbitMQ 4.0 and later.
    """
    if name not in headers:
        return False
    value, strict = headers[name], strict_numbers
    if isinstance(value, str) and isinstance(wanted, str):
        return value == wanted
    return wanted is None or _comparable(value, strict=strict) == _comparable(wanted, strict=strict)


def _comparable(value: FieldValue, *, strict: bool) -> _Comparable:
    match value:
        case bool() | None:
            return "atom", value
        case int() | float():
            return _kind_of_number(value) if strict else "number", value
        case str():
            return "octets", value.encode("utf-8", "surrogatepass")
        case bytes():
            return "octets", value
        case _:
            return "typed", encode_table({"": value})


def _kind_of_number(value: float) -> str:
    if isinstance(value, Timestamp):
        return "time"
    return "integer" if isinstance(value, int) else "decimal"


def canonical(arguments: Mapping[str, FieldValue]) -> bytes:
    """Encode a table so that equal tables give equal bytes, regardless of the order of their keys."""
    return encode_table(dict(sorted(arguments.items())))


#: The routing table of each standard exchange type.
TABLES: Mapping[str, type] = {
    "direct": DirectTable,
    "fanout": FanoutTable,
    "topic": TopicTable,
    "headers": HeadersTable,
}


def delay_of(value: FieldValue) -> int:
    """Return the delay in milliseconds that a value of the header x-delay requests; 0 for no delay.

    Raises:
        ValueError: the plugin would fail on this string, float or decimal, and close the connection.
    """
    number = _milliseconds(value)
    return int(number) if number is not None and 1 <= number <= MAX_DELAY else 0


def checked_delay_of(value: FieldValue) -> int:
    """Like delay_of(), but raise an error instead of ignoring an invalid value.

    Raises:
        ValueError: the plugin would fail, or deliver at once although the value is neither None nor a number below 1.
    """
    number = _milliseconds(value)
    if value is not None and (number is None or number > MAX_DELAY):
        raise ValueError(f"x-delay is not a number of milliseconds up to {MAX_DELAY}: {value!r}")
    return int(number) if number is not None and number >= 1 else 0


def _milliseconds(value: Any) -> float | None:
    """Return the number in the header x-delay; None for a type that the plugin ignores. Raises as delay_of() does."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return float(value)  # int() limits the number of digits
    is_text = isinstance(value, str) or type(value) is bytes  # text that is not UTF-8 is decoded as bytes
    is_decimal = isinstance(value, Decimal | decimal.Decimal)  # as the broker and as clients decode it
    if is_text or is_decimal or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"x-delay is not a number of milliseconds: {value!r}")
    return value if isinstance(value, float) or is_integer(value) else None
