"""Styled lines, and tables: drawn on a terminal, as tab-separated columns in a pipe, or as lines of JSON."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mqtool.cli.display import output
from mqtool.spelling import as_text
from mqtool.topology import Binding

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text

    from mqtool.inspection.listing import Row

#: Tables with more rows than this are drawn without rich, which would take seconds.
_MANY = 500
#: The minimum width of a column whose values are shortened.
_NARROWEST = 8
#: The minimum width of a column of sentences.
_NARROWEST_PROSE = 20
_BETWEEN = r"[\t\n\r\\]"
_WRITTEN = {"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"}


def show_rows(
    rows: "Iterable[Row]",
    columns: Sequence[str],
    *,
    narrower: Sequence[Sequence[str]] = (),
    prose: str | None = None,
    as_json: bool = False,
) -> int:
    """Print rows on stdout; return their number. In a pipe, each row is written as soon as it is read.

    Args:
        narrower: the columns to show on a terminal that is too narrow for all columns: the first choice that fits, or
            the last one.
        prose: the only column to wrap on a terminal, if any, since its values need not be copied.
    """
    count = 0
    if not as_json and output.is_terminal(1):
        found = list(rows)
        if narrower:
            columns = next((each for each in (columns, *narrower) if _fits(found, each, prose)), narrower[-1])
        if len(found) > _MANY:
            _draw_many(found, columns)
        elif found:
            draw(table(found, columns, prose=prose))
        return len(found)
    for row in rows:
        count += 1
        if as_json:
            output.show_json({name: row[name] for name in columns})
        else:
            output.show("\t".join(_tabbed(row[name]) for name in columns))
    return count


def _fits(rows: "Sequence[Row]", columns: Sequence[str], prose: str | None) -> bool:
    cells = [[_cell_text(row[name]) for name in columns] for row in rows]
    widths = dict(zip(columns, _widths(columns, cells), strict=True))
    if prose in widths:
        widths[prose] = min(widths[prose], _NARROWEST_PROSE)
    return sum(widths.values()) <= _room(columns)


def _widths(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(columns, *cells, strict=True)]


def _room(columns: Sequence[str]) -> int:
    """Return the width of the terminal without the gaps between these columns."""
    return terminal().width - 2 * (len(columns) - 1)


def _tabbed(value: Any) -> str:
    return re.sub(_BETWEEN, lambda match: _WRITTEN[match[0]], as_text(value))


def table(
    rows: "Sequence[Row]",
    columns: Sequence[str],
    warning: str | None = None,
    *,
    folded: bool = True,
    prose: str | None = None,
) -> "Table":
    """Build a table. The column `warning`, if any, is red. Long values are wrapped if `folded`, otherwise shortened. If
    the column `prose` is shown, only its values are wrapped.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [[_cell_text(row[name]) for name in columns] for row in rows]
    widths, room = _widths(columns, cells), _room(columns)
    is_wide = sum(widths) > room
    longest = max(widths)
    while not folded and longest > _NARROWEST and sum(min(width, longest) for width in widths) > room:
        longest -= 1
    if longest < max(widths):
        cells = [[shortened(cell, longest) for cell in each] for each in cells]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        numbers = any(_is_number(row[name]) for row in rows)
        drawn.add_column(
            name.replace("_", "_\n") if is_wide else name,
            justify="right" if numbers else "left",
            no_wrap=numbers or not folded or (prose in columns and name != prose),
            overflow="fold" if folded else "ellipsis",
            style="bold red" if name == warning else "",
        )
    for each in cells:
        drawn.add_row(*map(Text, each))
    return drawn


def _draw_many(rows: "Sequence[Row]", columns: Sequence[str]) -> None:
    cells = [[_cell_text(row[name]) for name in columns] for row in rows]
    widths = _widths(columns, cells)
    right = [_is_number(rows[0][name]) for name in columns]

    def line(values: Iterable[str]) -> str:
        placed = zip(values, widths, right, strict=True)
        return "  ".join(value.rjust(width) if number else value.ljust(width) for value, width, number in placed)

    output.show(line(columns).rstrip(), style="1")
    for each in cells:
        output.show(line(each).rstrip())


def heads(drawn: "Table") -> int:
    """Return the number of lines in the table's heading."""
    return max(1 + str(column.header).count("\n") for column in drawn.columns)


def shortened(text: str, length: int) -> str:
    """Shorten a name in the middle, since names often differ only in their last letters."""
    if len(text) <= length:
        return text
    after = (length - 1) // 2
    return f"{text[: length - 1 - after]}…{text[len(text) - after :]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell_text(value: Any) -> str:
    if _is_number(value):
        return f"{value:,.1f}" if value % 1 else f"{value:,.0f}"
    return output.one_line(as_text(value))


def terminal(*, on_stderr: bool = False, quiet: bool = False) -> "Console":
    """Create a rich console for stdout or stderr, in colour if is_coloured(). It never interprets text as markup."""
    from rich.console import Console

    colours: Any = "auto" if output.is_coloured(2 if on_stderr else 1) else None
    return Console(color_system=colours, highlight=False, emoji=False, markup=False, stderr=on_stderr, quiet=quiet)


def escaped_lines(console: "Console", what: "RenderableType") -> "list[list[Segment]]":
    """Convert a rich renderable to lines of segments, with control characters escaped."""
    lines = console.render_lines(what, pad=False)
    return [[each._replace(text=output.one_line(each.text)) for each in line] for line in lines]


def show_wrapped(text: str, indent: str = "", *, style: str = "") -> None:
    """Print a sentence on stdout. On a terminal, wrap it between words, and indent all lines but the first."""
    if output.is_terminal(1):
        text = output.broken(output.one_line(text), 0, terminal().width, indent)
    for line in text.split("\n"):
        output.show(line, style=style)


def draw(what: Any) -> None:
    """Print a rich renderable on stdout."""
    console = terminal()
    with console.capture() as captured:
        console.print(what)
    output.write(output.drawn("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())).encode())


#: A line as a list of pieces: plain strings, or strings with their rich style.
Line = list[str | tuple[str, str]]

NAME, KEY, DIM, GOOD, BAD = "bold", "cyan", "dim", "green", "red"
#: Style names for a name without emphasis, and for a name in a column.
PLAIN, LABEL = "none", "b"
#: Styles of names (which are shortened if a line is too long), and the minimum length of a shortened name.
_NAMES, _SHORTEST = (NAME, KEY, PLAIN), 16
_FURTHER = "    "


def shown(name: str) -> str:
    """Return a name from a broker, quoted and escaped if it is empty or contains unprintable characters."""
    return name if name.isprintable() and name else repr(name)


def plain(line: Line) -> str:
    """Return the text of a line without styles."""
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in line)


def fitted(line: Line, width: int) -> list[Line]:
    """Fit a line to a width: shorten long names first, then wrap."""
    pieces = [(piece, "") if isinstance(piece, str) else piece for piece in line]
    names = [len(piece) for piece, style in pieces if style in _NAMES]
    room = width - sum(len(piece) for piece, style in pieces if style not in _NAMES)
    longest = max(names, default=0)
    while longest > _SHORTEST and sum(min(name, longest) for name in names) > room:
        longest -= 1
    if sum(min(name, longest) for name in names) > room:  # a second line is needed anyway, so names may be longer
        longest = max(_SHORTEST, width // 2)
    lines: list[Line] = [[]]
    used = 0
    for piece, style in pieces:
        for word in _units(piece, style, longest, width):
            if used and used + len(word.rstrip()) > width:
                lines.append([])
                used = 0
            placed = word if used or len(lines) == 1 else word.lstrip()
            lines[-1].append((placed, style))
            used += len(placed)
    return lines


def _units(piece: str, style: str, longest: int, width: int) -> Iterator[str]:
    """Split a piece where the line may be broken: at names and double spaces, or between words if necessary."""
    if style in (*_NAMES, LABEL):
        yield shortened(piece, longest) if style in _NAMES else piece
        return
    for unit in re.findall(r"\s*\S+(?: \S+)*|\s+$", piece):
        yield from [unit] if len(unit.strip()) <= width else re.findall(r"\s*\S+", unit)


def rich_text(line: Line) -> "Text":
    """Return a line as a rich.text.Text. Square brackets in it are not markup."""
    from rich.text import Text

    pieces = [(piece, "") if isinstance(piece, str) else piece for piece in line]
    shown = [(output.one_line(text), style) for text, style in pieces]
    return Text.assemble(*shown, no_wrap=True, overflow="ellipsis")


def show_lines(lines: Iterable[Line]) -> None:
    """Print lines on stdout; on a terminal, fit them to its width."""
    if not output.is_terminal(1):
        for line in lines:
            output.show(plain(line))
        return
    console = terminal()
    for line in lines:
        whole = plain(line)
        if len(whole) <= console.width:
            console.print(rich_text(line), soft_wrap=True)
            continue
        indent = " " * (len(whole) - len(whole.lstrip())) + _FURTHER
        for number, part in enumerate(fitted(line, console.width - len(indent))):
            console.print(rich_text([indent if number else "", *part]), soft_wrap=True)


def bound_by(binding: Binding) -> str:
    """Return a binding's routing key or header arguments as text."""
    key = [repr(binding.routing_key)] if binding.routing_key or not binding.arguments else []
    return " ".join([*key, *fields(binding.arguments)])


def fields(values: Mapping[str, Any]) -> list[str]:
    """Return headers or arguments as text, each in the format that the option -H accepts."""
    return [
        f"{shown(name)}={shown(value)}" if isinstance(value, str) else f"{shown(name)}:={json.dumps(value)}"
        for name, value in values.items()
    ]
