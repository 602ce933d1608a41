"""Charts of blocks: what was measured, as text."""

from collections.abc import Sequence
from itertools import pairwise

from mqtool.stage.audience import Chart

_BLOCKS = " ▁▂▃▄▅▆▇█"


def chart(values: Sequence[float], width: int, height: int) -> list[str]:
    """A column for each value, as rows from the top; the greatest fills them all.

    Args:
        width, height: in characters. Where there are more values, a column is the greatest of some.
    """
    greatest = max(values, default=0.0)
    # Even the smallest value is visible.
    eighths = [max(1, round(value / greatest * height * 8)) if value > 0 else 0 for value in _fitted(values, width)]
    return ["".join(_BLOCKS[min(8, max(0, eighth - 8 * row))] for eighth in eighths) for row in reversed(range(height))]


def figures(measured: Chart) -> tuple[str, str]:
    """The latest and the greatest value, as one says them."""
    return _said(measured.values[-1:], measured.unit), _said(measured.values, measured.unit)


def _fitted(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [len(values) * column // width for column in range(width + 1)]
    return [max(values[start:end]) for start, end in pairwise(edges)]


def _said(values: Sequence[float], unit: str) -> str:
    value = max(values, default=0.0)
    number = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:,.1f}"
    return f"{number} {unit}".strip()
