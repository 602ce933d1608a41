"""Rows for people, as tables; for pipes, as columns with tabs between them; for programs, as JSON lines."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mqtool.cli.display import output
from mqtool.inspection.listing import Row, as_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Rows, from which on a table is drawn more simply.
_MANY = 500
_BETWEEN = re.compile(r"[\t\n\r\\]")
_WRITTEN = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}


def show(rows: Iterable[Row], columns: Sequence[str], *, as_json: bool = False) -> int:
    """Print rows on stdout, and return how many there were. In a pipe each leaves as it comes."""
    count = 0
    if not as_json and output.is_terminal(1):
        found = list(rows)
        if len(found) > _MANY:
            _draw_many(found, columns)
        elif found:
            draw(table(found, columns))
        return len(found)
    for row in rows:
        count += 1
        if as_json:
            output.show(json.dumps({name: row[name] for name in columns}, ensure_ascii=False))
        else:
            output.show("\t".join(_cell(row[name]) for name in columns))
    return count


def _cell(value: Any) -> str:
    """A value without what separates columns and rows."""
    return _BETWEEN.sub(lambda match: _WRITTEN[match[0]], as_text(value))


def table(rows: Sequence[Row], columns: Sequence[str], warning: str | None = None, *, folded: bool = True) -> "Table":
    """A table; nothing in a value can be markup, or reach the terminal's controls.

    Args:
        warning: the column that is red.
        folded: what does not fit goes on below; else the first column is cut in the middle.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [[_shown(row[name]) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    others = sum(widths[1:]) + 2 * (len(columns) - 1)
    is_wide = widths[0] + others > terminal().width
    if is_wide and not folded:
        room = max(terminal().width - others, 8)
        for each in cells:
            each[0] = shortened(each[0], room)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        numbers = any(_is_number(row[name]) for row in rows)
        drawn.add_column(
            name.replace("_", "_\n") if is_wide else name,
            justify="right" if numbers else "left",
            no_wrap=numbers or not folded,
            overflow="fold" if folded else "ellipsis",
            style="bold red" if name == warning else "",
        )
    for each in cells:
        drawn.add_row(*map(Text, each))
    return drawn


def _draw_many(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Columns below each other, as in a table, but without rich, which would take seconds."""
    cells = [[_shown(row[name]) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [_is_number(rows[0][name]) for name in columns]

    def line(values: Iterable[str]) -> str:
        placed = zip(values, widths, right, strict=True)
        return "  ".join(value.rjust(width) if number else value.ljust(width) for value, width, number in placed)

    output.show(output.styled(line(columns).rstrip(), "1", 1))
    for each in cells:
        output.show(line(each).rstrip())


def heads(drawn: "Table") -> int:
    """How many lines the names of its columns take."""
    return max(1 + str(column.header).count("\n") for column in drawn.columns)


def shortened(text: str, length: int) -> str:
    """As much of both its ends as fits: names often differ in the last letters only."""
    if len(text) <= length:
        return text
    after = (length - 1) // 2
    return f"{text[: length - 1 - after]}…{text[len(text) - after :]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if _is_number(value):
        return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"
    return output.one_line(as_text(value))


def terminal(*, on_stderr: bool = False, quiet: bool = False) -> "Console":
    """The terminal at stdout, with colours if they are wanted. No text is taken for markup."""
    from rich.console import Console

    colours: Any = "auto" if output.is_coloured(2 if on_stderr else 1) else None
    return Console(color_system=colours, highlight=False, emoji=False, markup=False, stderr=on_stderr, quiet=quiet)


def draw(what: Any) -> None:
    """Print something of rich's on stdout."""
    console = terminal()
    with console.capture() as captured:
        console.print(what)
    output.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()).encode())
