"""Lines of text for people, with styles where a terminal shows them; in a pipe the same lines without."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mqtool.cli.display import output
from mqtool.cli.display.tables import shortened, terminal

if TYPE_CHECKING:
    from rich.text import Text

#: Pieces of a line: plain text, or text with one of rich's styles.
Line = list[str | tuple[str, str]]

NAME, KEY, DIM, GOOD, BAD = "bold", "cyan", "dim", "green", "red"
#: A name without emphasis, and one that stands in a column.
PLAIN, LABEL = "none", "b"
#: What is cut in the middle where a line is too long, and how much is left of it.
_NAMES, _SHORTEST = (NAME, KEY, PLAIN), 16
_FURTHER = "    "


def shown(name: str) -> str:
    """A name that came from elsewhere: nothing in it can control a terminal or break the line."""
    return name if name.isprintable() and name else repr(name)


def plain(line: Line) -> str:
    """The line without styles."""
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in line)


def fitted(line: Line, width: int) -> list[Line]:
    """The line within a width: long names are cut in the middle; what is still too much goes on below."""
    pieces = [(piece, "") if isinstance(piece, str) else piece for piece in line]
    names = [len(piece) for piece, style in pieces if style in _NAMES]
    room = width - sum(len(piece) for piece, style in pieces if style not in _NAMES)
    longest = max(names, default=0)
    while longest > _SHORTEST and sum(min(name, longest) for name in names) > room:
        longest -= 1
    if sum(min(name, longest) for name in names) > room:  # there will be a second line, with more room
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
    """What may stand on a line of its own: a name; what two spaces separate; a word, if that is too long."""
    if style in (*_NAMES, LABEL):
        yield shortened(piece, longest) if style in _NAMES else piece
        return
    for unit in re.findall(r"\s*\S+(?: \S+)*|\s+$", piece):
        yield from [unit] if len(unit.strip()) <= width else re.findall(r"\s*\S+", unit)


def text(line: Line) -> "Text":
    """The line for rich; never read as markup."""
    from rich.text import Text

    return Text.assemble(*line, no_wrap=True, overflow="ellipsis")


def show(lines: Iterable[Line]) -> None:
    """Print lines to stdout; on a terminal, within its width.

    Raises:
        ReaderGone: nobody reads it any more.
    """
    if not output.is_terminal(1):
        for line in lines:
            output.show(plain(line))
        return
    console = terminal()
    for line in lines:
        whole = plain(line)
        if len(whole) <= console.width:
            console.print(text(line), soft_wrap=True)
            continue
        indent = " " * (len(whole) - len(whole.lstrip())) + _FURTHER
        for number, part in enumerate(fitted(line, console.width - len(indent))):
            console.print(text([indent if number else "", *part]), soft_wrap=True)
