"""Lines of text for people, with styles where a terminal shows them; in a pipe the same lines without."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mqtool.cli.display import output

if TYPE_CHECKING:
    from rich.text import Text

#: Pieces of a line: plain text, or text with one of rich's styles.
Line = list[str | tuple[str, str]]

NAME, KEY, DIM, GOOD, BAD = "bold", "cyan", "dim", "green", "red"


def shown(name: str) -> str:
    """A name that came from elsewhere: nothing in it can control a terminal or break the line."""
    return name if name.isprintable() and name else repr(name)


def plain(line: Line) -> str:
    """The line without styles."""
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in line)


def text(line: Line) -> "Text":
    """The line for rich; never read as markup."""
    from rich.text import Text

    return Text.assemble(*line, no_wrap=True, overflow="ellipsis")


def show(lines: Iterable[Line]) -> None:
    """Print lines to stdout.

    Raises:
        ReaderGone: nobody reads it any more.
    """
    if not output.is_terminal(1):
        for line in lines:
            output.show(plain(line))
        return
    from mqtool.cli.display.tables import terminal

    console = terminal()
    for line in lines:
        console.print(text(line), soft_wrap=True)
