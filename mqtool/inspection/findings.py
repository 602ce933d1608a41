"""Findings of `doctor`: problems with a broker, how severe they are, and how they are grouped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Self

from mqtool.errors import MqtoolError
from mqtool.spelling import counted

#: Checks, the worst first. Blocked publishers, lost nodes and open access are critical; the others are warnings.
CRITICAL = ("node-down", "partition", "alarm", "guest")
_WORST_FIRST = (
    *CRITICAL,
    *("shovel", "federation-link", "no-acks", "stands-still", "no-consumer", "surplus"),
    *("dead-letter-exchange", "no-dead-letter-exchange", "alternate-exchange", "leads-nowhere"),
    *("dead-letter-cycle", "exchange-cycle"),
    *("reader-misses", "reader-behind", "stream-limit"),
    *("permission", "left-over", "firehose"),
    *("small-frames", "amqp10-address", "transient-consumer", "global-prefetch"),
    *("delayed-exchange", "transient", "queue-argument", "queue-type", "binding-key", "policy-setting", "mirrored"),
    *("message-size", "duplicate-header", "message-priority", "priority-limit", "no-priority", "copies"),
    *("message-expiration", "mqtt-header", "integer-type", "header-order", "amqp10-header"),
    *("deprecated-feature", "delivery-count", "delivery-limit", "x-death", "lazy"),
)
#: The maximum number of findings of the same problem to describe one by one.
_APART = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem.

    Attributes:
        check: the name of the check.
        thing: the object with the problem, such as "queue 'jobs'".
        what: what is wrong, such as "is not running"; it is printed after the object.
        hint: what to do.
        client: if the problem is with a client, its connection, user, address, library and version.
        line: where a definitions file defines the object.
    """

    check: str
    thing: str
    what: str
    hint: str
    vhost: str | None = None
    client: Mapping[str, str] | None = None
    line: int | None = None

    @classmethod
    def of(cls, kind: str, view: Mapping[str, Any], check: str, what: str, hint: str) -> Self:
        """Create a finding for an object from the management API; `kind` is a word such as "queue" or "exchange"."""
        return cls(check, f"{kind} {view['name']!r}", what, hint, view["vhost"])

    @property
    def severity(self) -> str:
        """The severity of the problem: "critical" or "warning"."""
        return "critical" if self.check in CRITICAL else "warning"

    def in_default_vhost(self) -> Self:
        """Return a copy whose object is named with the virtual host "/", which `where` leaves out."""
        return replace(self, thing=f"{self.thing} in vhost '/'")

    @property
    def where(self) -> str:
        """Text that identifies the object: its name, its virtual host unless that is "/", and its line in a file."""
        where = self.thing if self.vhost in (None, "/") else f"{self.thing} in vhost {self.vhost!r}"
        return where if self.line is None else f"{where} (line {self.line:,})"


#: What each check looks at, if the user's tags or permissions may hide it.
_LOOKS_AT = {
    "nodes": "alarms and nodes",
    "links": "shovels and federation links",
    "queues": "some queues",
    "readers": "readers of streams",
    "permissions": "permissions",
    "guest": "logins as guest from the network",
    "policies": "policies",
    "clients": "other users' clients",
    "features": "deprecated features",
    "deprecated": "deprecated features",
    "messages": "messages",
}
#: Checks that say nothing about whether the broker works, and need more rights than users have who only monitor it.
_OPTIONAL = ("links", "readers", "deprecated", "permissions", "guest")


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A check that could not be made.

    Attributes:
        check: the name of the check.
        why: the reason.
        hint: what to do; None if nothing can be suggested.
    """

    check: str
    why: str
    hint: str | None = None

    @classmethod
    def because(cls, check: str, error: MqtoolError) -> Self:
        return cls(check, str(error), error.hint)

    @property
    def is_essential(self) -> bool:
        """True if the state of the broker is unknown without this check."""
        return self.check not in _OPTIONAL

    @property
    def things(self) -> str:
        """What the check looks at, such as "alarms and nodes"."""
        return _LOOKS_AT[self.check]

    def __str__(self) -> str:
        return f"{self.things} were not checked: {self.why}"


def not_checked(unchecked: Iterable[Unchecked]) -> str:
    """Name what essential checks could not look at; "" if all of them were made."""
    things = dict.fromkeys(each.things for each in unchecked if each.is_essential)
    return f"not checked: {', '.join(things)}" if things else ""


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by severity, worst first, and put findings of the same problem next to each other."""
    ranks = {check: rank for rank, check in enumerate(_WORST_FIRST)}
    return sorted(findings, key=lambda each: (ranks.get(each.check, len(ranks)), *_kind(each)))


def _kind(finding: Finding) -> tuple[str, str, str]:
    """Return a sort key that is equal for findings that report the same problem in different objects."""
    return finding.check, finding.vhost or "", finding.hint


def grouped(findings: Sequence[Finding]) -> Iterator[Sequence[Finding]]:
    """Group sorted findings that report the same problem in different objects."""
    for _, same in groupby(findings, key=_kind):
        yield list(same)


def said(group: Sequence[Finding], named: int = 3) -> Iterator[str]:
    """Describe each finding of a group in a sentence, since details, such as counts, may differ.

    If there are more than three findings, describe only the first, and add the names of up to `named` others.
    """
    if len(group) <= _APART:
        yield from (f"{each.where} {each.what}" for each in group)
        return
    others = group[1:]
    names = ", ".join(each.thing.partition(" ")[2] for each in others[:named])
    unnamed = f" and {counted(len(others) - named, 'other')}" if len(others) > named else ""
    yield f"{group[0].where} {group[0].what} (and {len(others):,} more: {names}{unnamed})"
