"""The result of a run, and its conversion to JSON."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mqtool.benching.plan import BenchPlan
from mqtool.benching.tally import PERCENTILES, Latencies

#: A client that uses, or waits for, a CPU during more than this fraction of the time may be slower than the broker.
BUSY = 0.9
#: Stop waiting if no confirm or delivery arrives for this many seconds.
QUIET = 10.0


class Snapshot(NamedTuple):
    """The totals at one moment of a run; `seconds` is the time since the start."""

    seconds: float
    published: int
    confirmed: int
    received: int


@dataclass(slots=True)
class Result:
    """The result of a run.

    Attributes:
        confirm, deliver: latencies from the intended time to the confirm and to the delivery.
        rates: messages published, confirmed and received per second after the warm-up.
        lost: confirmed messages that did not arrive.
        waiting: used instead of `lost` if the run was interrupted: confirmed messages that had not arrived yet.
        unconfirmed: messages that the broker did not confirm or reject before the connection was lost or time was up.
        unsent: messages that were not sent because the broker did not keep up or stopped responding.
        others: messages that were received, but are not of this run. Nothing else counts them.
        gap: the longest time in seconds without a confirm, and the longest without a delivery.
        busiest: the largest fractions of the time in which any client used a CPU, and waited for one.
        broker_cpu, broker_memory: CPUs and bytes that the broker used; None if unknown.
        series: snapshots several times a second.
        stopped: True if the run was interrupted.
        failed_commands: commands of --at and --during that ended with another code than 0.
    """

    plan: BenchPlan
    broker: str
    seconds: float
    confirm: Latencies
    deliver: Latencies
    rates: tuple[float, float, float]
    published: int
    confirmed: int
    received: int
    nacked: int
    unconfirmed: int
    unsent: int
    lost: int
    duplicated: int
    redelivered: int
    out_of_order: int
    others: int
    reconnects: int
    gap: tuple[float, float]
    busiest: tuple[float, float]
    waiting: int = 0
    broker_cpu: float | None = None
    broker_memory: int | None = None
    series: list[Snapshot] = field(default_factory=list)
    stopped: bool = False
    failed_commands: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the result as a JSON object. Its latencies can be merged with those of other results."""
        plain = ("broker", "seconds", "published", "confirmed", "received", "nacked", "unconfirmed", "unsent", "lost")
        more = (
            "waiting",
            "duplicated",
            "redelivered",
            "out_of_order",
            "others",
            "reconnects",
            "broker_cpu",
            "broker_memory",
            "stopped",
        )
        return {
            "run": self.plan.in_words(),
            **{name: getattr(self, name) for name in (*plain, *more)},
            "rates": dict(zip(("published", "confirmed", "received"), self.rates, strict=True)),
            "confirm": latencies_as_json(self.confirm),
            "deliver": latencies_as_json(self.deliver),
            "gap": dict(zip(("confirm", "deliver"), self.gap, strict=True)),
            "client_cpu": self.busiest[0],
            "client_cpu_wait": self.busiest[1],
            "series": [list(each) for each in self.series],
        }


def latencies_as_json(latencies: Latencies) -> dict[str, Any]:
    """Return percentiles in milliseconds, and the whole histogram as pairs of microseconds and count."""
    points = {f"p{percentile:g}": percentile for percentile in PERCENTILES}
    told_in_ms = {name: round(latencies.at(at) * 1000, 3) for name, at in points.items()}
    return {**told_in_ms, "max": round(latencies.at(100) * 1000, 3), "histogram": latencies.pairs()}
