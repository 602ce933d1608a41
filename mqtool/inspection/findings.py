"""Findings of `doctor`: problems of a broker, how severe they are, and how they are grouped."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

#: Checks, the worst first. Blocked publishers, lost nodes and open access are critical; the others are warnings.
CRITICAL = ("node-down", "partition", "alarm", "guest")
_WORST_FIRST = (
    *CRITICAL,
    *("no-acks", "stands-still", "no-consumer"),
    *("dead-letter-exchange", "no-dead-letter-exchange", "alternate-exchange", "leads-nowhere"),
    *("dead-letter-cycle", "exchange-cycle"),
    *("reader-misses", "reader-behind", "stream-limit"),
    "firehose",
    *("delayed-exchange", "transient", "queue-argument", "global-prefetch", "mirrored", "delivery-limit", "lazy"),
)
#: Findings that are grouped if there are more than this many, and the names to show for a group.
_APART, _NAMED = 3, 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem.

    Attributes:
        check: the name of the check.
        thing: the object with the problem, such as "queue 'jobs'".
        what: what is wrong, as a clause whose subject is the object.
        hint: what to do.
    """

    check: str
    thing: str
    what: str
    hint: str
    vhost: str | None = None

    @classmethod
    def of(cls, kind: str, view: Mapping[str, Any], check: str, what: str, hint: str) -> Self:
        """Create a finding for an object, from the management API's description of it.

        Args:
            kind: "queue", "exchange" …
        """
        return cls(check, f"{kind} {view['name']!r}", what, hint, view["vhost"])

    @property
    def severity(self) -> str:
        """The severity of the problem: "critical" or "warning"."""
        return "critical" if self.check in CRITICAL else "warning"

    @property
    def where(self) -> str:
        """The object, with its virtual host unless that is "/"."""
        return self.thing if self.vhost in (None, "/") else f"{self.thing} in vhost {self.vhost!r}"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings: the worst checks first, equal findings together."""
    ranks = {check: rank for rank, check in enumerate(_WORST_FIRST)}
    return sorted(findings, key=lambda each: (ranks.get(each.check, len(ranks)), *_kind(each)))


def _kind(finding: Finding) -> tuple[str, str, str]:
    """Return a sort key that is equal for findings that report the same problem of different objects."""
    return finding.check, finding.vhost or "", finding.hint


def grouped(findings: Sequence[Finding]) -> Iterator[tuple[Finding, Sequence[Finding]]]:
    """Group sorted findings with the same problem: yield the first finding of each group, and the others.

    Groups of up to three are yielded one finding at a time, because details, such as counts, may differ.
    """
    for _, same in groupby(findings, key=_kind):
        equal = list(same)
        if len(equal) > _APART:
            yield equal[0], equal[1:]
        else:
            yield from ((each, ()) for each in equal)


def others(findings: Sequence[Finding]) -> str:
    """Format the other findings of a group: their number, and the names of up to three objects; "" for none."""
    if not findings:
        return ""
    names = ", ".join(each.thing.partition(" ")[2] for each in findings[:_NAMED])
    return f" (and {len(findings):,} more: {names}{', …' if len(findings) > _NAMED else ''})"
