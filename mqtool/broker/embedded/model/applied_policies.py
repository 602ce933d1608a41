"""The policies of a virtual host, and how they apply to its queues and exchanges."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import re2

from mqtool.broker.embedded.model.amqp_errors import precondition_failed
from mqtool.broker.embedded.model.footprint import of_value
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.codecs.field_tables import Table
from mqtool.policy_settings import UNSUPPORTED

log = logging.getLogger("mqtool.broker.embedded")

_EVERYTHING = ".*"

#: The memory in bytes that RE2 may use for a stored pattern, such as a policy's, and for the pattern of one request.
#: It also limits how long compiling and matching take.
_STORED_PATTERN, _REQUESTED_PATTERN = 2 * 1024 * 1024, 128 * 1024

#: The size of a compiled pattern, besides its instructions; the most of all compiled patterns, of which each takes some
#: ten bytes; and the most of a virtual host's policies: each queue that is declared is matched with all their patterns.
_PATTERN, _MOST_COMPILED, _MOST_OF_POLICIES = 250, 8_000_000, 2_000_000

#: The longest pattern in a request, in characters.
_LONGEST_REQUESTED = 1000


def _compile(pattern: str, most_bytes: int) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = most_bytes
    try:
        return re2.compile(pattern.encode(errors="surrogateescape"), options)
    except re2.error as error:
        raise ValueError(error.args[0].decode("utf-8", "replace")) from error


class _Patterns:
    """Compiled patterns by their texts, the least recently used first, up to a size of _MOST_COMPILED. Thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def __call__(self, pattern: str) -> Any:
        with self._lock:
            if pattern in self._kept:
                self._kept.move_to_end(pattern)
                return self._kept[pattern]
            self._kept[pattern] = compiled = _compile(pattern, _STORED_PATTERN)
            self._size += _size_of(compiled)
            while self._size > _MOST_COMPILED:
                self._size -= _size_of(self._kept.popitem(last=False)[1])
            return compiled


def _size_of(compiled: Any) -> int:
    return _PATTERN + int(compiled.programsize)


_compiled = _Patterns()


def check_pattern(pattern: str) -> None:
    """Raise ValueError if a regular expression is not valid, or if RE2 does not support it."""
    if pattern != _EVERYTHING:
        _compiled(pattern)


def found(pattern: str, text: str) -> bool:
    """Return True if a valid regular expression matches anywhere in `text`.

    RE2 matches in linear time, so no user's pattern can block the broker. It supports neither lookaround nor
    backreferences.
    """
    return pattern == _EVERYTHING or _is_found(_compiled(pattern), text)


def _is_found(compiled: Any, text: str) -> bool:
    return compiled.search(text.encode(errors="surrogateescape")) is not None


def finder(pattern: str) -> Callable[[str], bool]:
    """Return a function that tells if a regular expression, which is used only once, matches anywhere in a text.

    Raises:
        ValueError: the pattern is not valid, is too long, or needs too much memory.
    """
    if len(pattern) > _LONGEST_REQUESTED:
        raise ValueError(f"longer than {_LONGEST_REQUESTED} characters")
    return partial(_is_found, _compile(pattern, _REQUESTED_PATTERN))


#: The kinds of policies, by their names in queue listings and in the data directory.
USER, OPERATOR = "policy", "operator_policy"

_TO = {
    "classic": {"all", "queues", "classic_queues"},
    "quorum": {"all", "queues", "quorum_queues"},
    "stream": {"all", "queues", "streams"},
    "exchange": {"all", "exchanges"},
}


class Policy(NamedTuple):
    """A policy. `apply_to` is `all`, `queues`, `exchanges` or one type of queue, such as `quorum_queues`."""

    name: str
    pattern: str
    definition: Table
    priority: float = 0
    apply_to: str = "all"

    @property
    def size(self) -> int:
        """A measure of the memory that the policy takes, and of the time that matching a name takes."""
        return of_value(self.definition) + (0 if self.pattern == _EVERYTHING else _size_of(_compiled(self.pattern)))

    def matches(self, name: str, kind: str) -> bool:
        """Return True if the policy applies to an object with this name; `kind` is a queue type or `exchange`."""
        return (
            self.apply_to in _TO[kind] and UNSUPPORTED[kind].isdisjoint(self.definition) and found(self.pattern, name)
        )


class Applied(NamedTuple):
    """The names of the policies that apply to one queue or exchange, if any, and their merged definition."""

    policy: str | None = None
    operator_policy: str | None = None
    definition: Table = {}  # noqa: RUF012 - never modified


NOTHING = Applied()


def _first(policies: Iterable[Policy], name: str, kind: str) -> Policy | None:
    """Return the matching policy with the highest priority, if any."""
    return max((each for each in policies if each.matches(name, kind)), key=lambda each: each.priority, default=None)


class Policies:
    """The policies and operator policies of a virtual host.

    Args:
        when_changed: called after each change; applies the policies to the queues and exchanges.

    Attributes:
        by_kind: the policies by kind (USER or OPERATOR) and name.
    """

    def __init__(self, vhost: str, ledger: Ledger, when_changed: Callable[[], None]) -> None:
        self._vhost = vhost
        self._ledger = ledger
        self._when_changed = when_changed
        self.by_kind: dict[str, dict[str, Policy]] = {USER: {}, OPERATOR: {}}
        self._size = 0

    def put(self, kind: str, policy: Policy) -> None:
        """Store a valid policy, replacing any with the same name. Raises AmqpException if it cannot be stored."""
        if self._size + policy.size - self._size_of(kind, policy.name) > _MOST_OF_POLICIES:
            what = f"too many policies in vhost '{self._vhost}', or too large patterns"
            raise precondition_failed(what)
        value: Table = {"vhost": self._vhost, **policy._asdict()}
        self._ledger.save(kind, (self._vhost, policy.name), value)
        self.restore(kind, policy)

    def restore(self, kind: str, policy: Policy) -> None:
        """Add a policy that was read from the data directory."""
        self._size += policy.size - self._size_of(kind, policy.name)
        self.by_kind[kind][policy.name] = policy
        self._when_changed()

    def delete(self, kind: str, name: str) -> None:
        self._size -= self._size_of(kind, name)
        del self.by_kind[kind][name]
        self._ledger.forget(kind, (self._vhost, name))
        self._when_changed()

    def _size_of(self, kind: str, name: str) -> int:
        policy = self.by_kind[kind].get(name)
        return 0 if policy is None else policy.size

    def applied_to(self, name: str, kind: str) -> Applied:
        """Return the policies that apply to an object with this name; `kind` is a queue type or `exchange`."""
        users, operators = self.by_kind[USER], self.by_kind[OPERATOR]
        if not users and not operators:
            return NOTHING
        user, operator = _first(users.values(), name, kind), _first(operators.values(), name, kind)
        definition = {} if user is None else dict(user.definition)
        for setting, limit in ({} if operator is None else operator.definition).items():
            own = definition.get(setting)
            # Operator policies set only numbers; the smaller number wins.
            definition[setting] = min(own, limit) if isinstance(own, int) and isinstance(limit, int) else limit
        return Applied(user and user.name, operator and operator.name, definition)
