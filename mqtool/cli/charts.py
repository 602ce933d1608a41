"""Charts of blocks: what was measured, as text."""

from collections.abc import Sequence
from itertools import pairwise

from mqtool.plays.stage import Chart

_BLOCKS = " ▁▂▃▄▅▆▇█"


def chart(measured: Chart, width: int, height: int) -> tuple[str, list[str]]:
    """A title that tells the latest and the greatest value, and rows from the top; the latest values at the right.

    Args:
        width, height: in characters, without the title. Where there are more values, a column is the greatest of some.
    """
    values = _fitted(measured.values, width)
    greatest = max(measured.values, default=0.0)
    last = measured.values[-1] if measured.values else 0.0
    title = f"{measured.title}: {_said(last, measured.unit)}, at most {_said(greatest, measured.unit)}"
    eighths = [round(value / greatest * height * 8) if greatest else 0 for value in values]
    # What is there at all shall be seen.
    eighths = [max(1, eighth) if value > 0 else 0 for eighth, value in zip(eighths, values, strict=True)]
    rows = [
        "".join(_BLOCKS[min(8, max(0, eighth - 8 * row))] for eighth in eighths) for row in range(height - 1, -1, -1)
    ]
    return title, rows


def _fitted(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [len(values) * column // width for column in range(width + 1)]
    return [max(values[start:end]) for start, end in pairwise(edges)]


def _said(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}".strip() if value >= 10 or value == int(value) else f"{value:,.1f} {unit}".strip()
