"""Formats benchmark results as text: a table, a histogram, a one-line summary, and warnings."""

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mqtool.benching.comparison import Comparison
from mqtool.benching.plan import BenchPlan
from mqtool.benching.result import BUSY, QUIET, Result
from mqtool.benching.tally import PERCENTILES, Latencies
from mqtool.cli.display import layout, output
from mqtool.spelling import counted

_WIDTH, _BAR, _BARS = 80, 40, 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(result: Result) -> None:
    """Print the result."""
    for line in lines(result):
        output.show(line)


def lines(result: Result) -> Iterator[str]:
    """Yield the lines of the report, each at most 80 characters long."""
    yield quotable(result)
    yield from textwrap.wrap(f"{result.broker}: {result.plan.in_words()}", _WIDTH)
    yield ""
    yield f"{'':<12}{'messages':>14}{'per second':>14}"
    totals = (result.published, result.confirmed, result.received)
    names = _names(result.plan)
    for name, total, rate in zip(names, totals, result.rates, strict=False):
        yield f"{name:<12}{total:>14,}{rate:>14,.0f}"
    yield ""
    yield f"{'latency until':<14}" + "".join(f"{f'p{percentile:g}':>11}" for percentile in PERCENTILES) + f"{'max':>11}"
    for name, latencies in (
        (names[1], result.confirm),
        ("removed" if result.plan.churn else "delivered", result.deliver),
    ):
        points = "".join(f"{duration(latencies.at(at)):>11}" for at in (*PERCENTILES, 100.0))
        yield f"{name:<14}{points}"
    if result.deliver.count:
        yield ""
        yield from histogram(result.deliver)
    yield ""
    yield counts(result)
    if uses := broker_use(result):
        yield uses


def _names(plan: BenchPlan) -> tuple[str, ...]:
    """Return the names of the report's rows."""
    if plan.churn is not None:
        return ("begun", "created")
    return ("published", "replied" if plan.rpc else "confirmed", "received")


def counts(result: Result) -> str:
    """Return a line with the numbers of messages that were lost, duplicated and so on."""
    if result.plan.churn is not None:
        return f"failed {result.unconfirmed:,}"
    lost = "lost or expired" if result.plan.ttl is not None else "lost"
    named = {lost: result.lost, "duplicated": result.duplicated, "out of order": result.out_of_order}
    named |= {"redelivered": result.redelivered}
    rare = {
        "not received yet": result.waiting,
        "rejected": result.nacked,
        "unconfirmed": result.unconfirmed,
        "not sent": result.unsent,
    }
    shown = {**named, **{name: count for name, count in rare.items() if count}}
    return ", ".join(f"{name} {count:,}" for name, count in shown.items())


def broker_use(result: Result) -> str:
    """Return a line of text with the CPU and memory that the broker used; "" if unknown."""
    uses = [] if result.broker_cpu is None else [f"{result.broker_cpu:.2f} CPUs"]
    uses += [] if result.broker_memory is None else [f"{result.broker_memory / (1 << 20):,.0f} MiB of memory"]
    return f"the broker used {' and '.join(uses)}" if uses else ""


def quotable(result: Result) -> str:
    """Return the most important numbers of the result in one line, which the user can copy into a message."""
    plan, rate = result.plan, f"{result.rates[1]:,.0f}"
    if plan.churn is not None:
        return f"{rate} {plan.churn}/s created; latency {_points(result.confirm)}"
    if plan.rpc:
        return f"{rate} replies/s; latency {_points(result.confirm)}; {result.unconfirmed:,} without a reply"
    return f"{rate} confirmed/s; delivered after {_points(result.deliver)}; {result.lost:,} lost"


def _points(latencies: Latencies) -> str:
    at = {"p50": 50.0, "p99": 99.0, "max": 100.0}
    return ", ".join(f"{name} {duration(latencies.at(percentile))}" for name, percentile in at.items())


def remarks(result: Result) -> Iterator[str]:
    """Yield warnings about anything that makes the numbers less reliable."""
    plan = result.plan
    used, waited = result.busiest
    if used > BUSY:
        yield f"a client used {used:.0%} of a CPU, so the client may be slower than the broker; use more processes"
    elif used + waited > BUSY:
        yield (
            f"a client used {used:.0%} of a CPU, and waited for a CPU {waited:.0%} of the time, so this machine may "
            "be slower than the broker; stop other programs, or run bench on another machine"
        )
    if plan.warm_up and result.confirmed and not result.confirm.count:
        yield "the run ended before its --warm-up was over, so no latencies were measured"
    if result.unsent:
        of_it = counted(result.unsent, "message") if plan.churn is None else f"{result.unsent:,} {plan.churn}"
        if plan.rate is None:
            yield (
                f"the run ended early, because nothing was confirmed for {QUIET:g} s: {of_it} of {plan.total:,} missing"
            )
        else:
            yield f"the broker did not keep up with {plan.rate:,.0f}/s: {of_it} not sent"
    if result.reconnects or max(result.gap) > _NOTABLE_GAP + plan.delay:
        confirm, deliver = (f"{each * 1000:,.0f} ms" for each in result.gap)
        again = f"; {counted(result.reconnects, 'reconnect')}" if result.reconnects else ""
        yield f"the longest time without a confirm was {confirm}, and without a delivery {deliver}{again}"
    if result.others:
        verb, pronoun, form = ("was", "it", "is") if result.others == 1 else ("were", "they", "are")
        yield f"{counted(result.others, 'other message')} {verb} received; {pronoun} {form} not counted"
    backlog = result.confirm.at(99) * 10 < result.deliver.at(50)
    if plan.rate is None and backlog:
        yield "consumers were slower than publishers, so messages waited in the queue; limit the rate with --rate"


_NOTABLE_GAP = 0.5


def duration(seconds: float) -> str:
    """Format a latency with three digits: 0.123 ms, 12.3 ms, 1.23 s."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    digits = 2 if value <= 0 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{min(digits, 3)}f} {unit}"


def histogram(latencies: Latencies) -> Iterator[str]:
    """Draw a histogram of the latencies; yield one line per bar."""
    edges = _edges(max(latencies.at(0.1), 1e-6), latencies.at(100))
    bars = latencies.bars(edges)
    most = max(bars)
    for low, high, count in zip(edges, edges[1:], bars, strict=False):
        yield f"{duration(low):>9} – {duration(high):>9} {_bar(count, most):<{_BAR}} {count:>12,}".rstrip()


def _edges(low: float, high: float) -> list[float]:
    """Return the limits of a histogram's bars, in seconds: 0, and then limits that grow by a constant factor."""
    high = max(high * 1.001, low * 1.01)
    ratio = (high / low) ** (1 / _BARS)
    return [0.0, *(low * ratio**number for number in range(1, _BARS)), high]


def _bar(count: int, most: int) -> str:
    eighths = math.ceil(count / most * _BAR * 8) if most else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def show_csv(results: Sequence[Result]) -> None:
    """Print results as CSV, with a header line."""
    if not results:
        return
    text = io.StringIO()
    rows = [_flat(result.as_json()) for result in results]
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    output.show(text.getvalue().removesuffix("\n"))


def _flat(told: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten an object: nested values get names such as confirm_p50; lists and histograms are left out."""
    flat: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}_")
        elif not isinstance(value, list) and name != "histogram":
            flat[before + name] = round(value, 6) if isinstance(value, float) else value
    return flat


def show_steps(name: str, values: Sequence[str], results: Sequence[Result]) -> None:
    """Print a table of the runs of --vary, and a sentence about the value at which throughput stopped growing."""
    rows = []
    for value, result in zip(values, results, strict=False):
        confirm, deliver = result.confirm, result.deliver
        rows.append({
            name: value,
            "confirmed/s": round(result.rates[1]),
            "confirm p50": duration(confirm.at(50)),
            "confirm p99": duration(confirm.at(99)),
            "deliver p50": duration(deliver.at(50)),
            "deliver p99": duration(deliver.at(99)),
            "lost": result.lost,
        })  # fmt: skip
    layout.show_rows(rows, [*rows[0]] if rows else [])
    if len(rows) > 1:
        output.status(_knee(name, values, results))


def _knee(name: str, values: Sequence[str], results: Sequence[Result]) -> str:
    """Say in a sentence up to which rate the broker kept up, or at which value throughput stopped growing."""
    if name == "rate":
        calm = min(result.deliver.at(99) for result in results)
        kept = [
            value
            for value, result in zip(values, results, strict=False)
            if _kept_up(result) and result.deliver.at(99) <= 10 * calm
        ]
        if len(kept) == len(results):
            return "the broker kept up with all these rates"
        return f"the broker kept up with {kept[-1]}/s" if kept else "the broker did not keep up with any of these rates"
    best = max(result.rates[1] for result in results)
    enough = next(value for value, result in zip(values, results, strict=False) if result.rates[1] > 0.95 * best)
    return f"{name} {enough} comes within 5% of the highest throughput"


def _kept_up(result: Result) -> bool:
    """Return True if all messages were sent, and confirmed within 1 s or, if longer, a tenth of the run's duration."""
    duration_of_all = result.plan.duration or 0.0
    return not result.unsent and result.confirm.at(100) < max(1.0, duration_of_all / 10)


def show_comparison(
    names: tuple[str, str],
    compared: Sequence[Comparison],
    runs: Sequence[Sequence[Mapping[str, Any]]],
    *,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Print a comparison: the medians and their spread, and the ratio with its confidence interval."""
    rows = [
        {
            "measure": each.name,
            "a": each.medians[0],
            "b": each.medians[1],
            "ratio": each.ratio,
            "interval": each.interval,
            "differs": each.differs,
        }
        for each in compared
    ]
    if as_json:
        output.show_json({"a": names[0], "b": names[1], "measures": rows, "runs": dict(zip("ab", runs, strict=True))})
        return
    if as_csv:
        for row in ([*rows[0]], *(row.values() for row in rows)) if rows else ():
            output.show(",".join(str(value) for value in row))
        return
    output.show(f"A: {names[0]}, B: {names[1]}, {counted(len(runs[0]), 'run')} and {counted(len(runs[1]), 'run')}")
    output.show("")
    output.show(f"{'':<16}{'A':>10} {'':<21}{'B':>10}")
    for each in compared:
        cells = [f"{_figure(median):>10} {_spread(values):<21}" for median, values in _both(each)]
        output.show(f"{each.name:<16}{''.join(cells)}".rstrip())
    output.show("")
    for each in compared:
        output.show(f"{each.name}: {each.verdict(('A', 'B'))}")


def _both(each: Comparison) -> Iterator[tuple[float, Sequence[float]]]:
    yield from zip(each.medians, (each.a, each.b), strict=True)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"({_figure(min(values))} to {_figure(max(values))})"
