"""Charts of a result, as SVG or HTML: latency by percentile, and throughput over time."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

from mqtool.benching.result import Result, Snapshot

_WIDTH, _HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 40, 40
_COLOURS = ("#2563eb", "#dc2626", "#059669")
#: Percentiles marked on the axis, evenly spaced: above each one are a tenth as many messages as above the last.
_NINES = (0.0, 90.0, 99.0, 99.9, 99.99, 99.999)

Point = tuple[float, float]


class Series(NamedTuple):
    """A line in a chart."""

    name: str
    points: Sequence[Point]


class Axis(NamedTuple):
    """An axis: its range, and its marks with their labels. Values are given in the axis's own scale."""

    low: float
    high: float
    marks: Sequence[tuple[float, str]]

    def place(self, value: float, start: float, end: float) -> float:
        """Return the position of a value on a line from start to end."""
        share = (value - self.low) / ((self.high - self.low) or 1)
        return start + min(1.0, max(0.0, share)) * (end - start)


def svg(result: Result) -> str:
    """Return both charts as one SVG image."""
    charts = [
        _chart("Latency by percentile, in ms", *_latency(result)),
        _chart("Messages per second", *_throughput(result.series)),
    ]
    shown = "".join(
        f'<g transform="translate(0,{number * _HEIGHT})">{chart}</g>' for number, chart in enumerate(charts)
    )
    height = _HEIGHT * len(charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{shown}</svg>\n'
    )


def html(result: Result, lines: Iterable[str]) -> str:
    """Return the charts and the lines of the report as an HTML page."""
    title = escape(f"{result.broker}: {result.plan.in_words()}")
    report = escape("\n".join(lines))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body><pre>{report}</pre>\n{svg(result)}</body></html>\n"
    )


def _latency(result: Result) -> tuple[list[Series], Axis, Axis]:
    series = [
        Series(name, [(_nines(at), math.log10(max(value, 1e-6) * 1000)) for at, value in latencies.curve()])
        for name, latencies in (("confirmed", result.confirm), ("delivered", result.deliver))
    ]
    values = [y for each in series for _, y in each.points] or [0.0]
    right = max((x for each in series for x, _ in each.points), default=1.0)
    low, high = math.floor(min(values)), math.ceil(max(values))
    across = Axis(0.0, right, [(_nines(at), f"p{at:g}" if at else "p0") for at in _NINES if _nines(at) <= right])
    return (
        series,
        across,
        Axis(low, max(high, low + 1), [(power, f"{10.0**power:g}") for power in range(low, high + 1)]),
    )


def _nines(percentile: float) -> float:
    """Return the position of a percentile on an axis on which 90, 99 and 99.9 are evenly spaced."""
    return -math.log10(max(1 - percentile / 100, 1e-6))


def _throughput(snapshots: Sequence[Snapshot]) -> tuple[list[Series], Axis, Axis]:
    names = ("published", "confirmed", "received")
    steps = [(one, other) for one, other in pairwise(snapshots) if other.seconds > one.seconds]
    series = [
        Series(name, [(other.seconds, (other[at] - one[at]) / (other.seconds - one.seconds)) for one, other in steps])
        for at, name in enumerate(names, 1)
    ]
    most = max((y for each in series for _, y in each.points), default=1.0)
    long = max((x for each in series for x, _ in each.points), default=1.0)
    return series, _linear(long, " s"), _linear(most, "")


def _linear(high: float, unit: str) -> Axis:
    step = 10 ** math.floor(math.log10(max(high, 1e-9)))
    step = next(step * factor for factor in (0.2, 0.5, 1, 2) if high / (step * factor) <= 6)
    marks = [step * number for number in range(math.ceil(high / step) + 1)]
    return Axis(0.0, marks[-1], [(mark, f"{mark:,g}{unit}") for mark in marks])


def _chart(title: str, series: Sequence[Series], across: Axis, up: Axis) -> str:
    left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
    parts = [f'<text x="{left}" y="{top - 16}" font-size="15">{escape(title)}</text>']
    for value, label in up.marks:
        y = up.place(value, bottom, top)
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for value, label in across.marks:
        x = across.place(value, left, right)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>')
    for number, (each, colour) in enumerate(zip(series, _COLOURS, strict=False)):
        places = [(across.place(x, left, right), up.place(y, bottom, top)) for x, y in each.points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x = right - 100 * (len(series) - number)
        parts.append(f'<text x="{x}" y="{top - 16}" fill="{colour}">{escape(each.name)}</text>')
    return "".join(parts)
