"""Terminals that show only ASCII: LC_ALL=C. Lines, boxes and marks that mqtool draws are replaced by similar ASCII.

Received data is never replaced: it goes to stdout byte for byte.
"""

import codecs
import os
import sys
from typing import TextIO

#: The characters that mqtool and rich draw with, and what replaces each.
ASCII = {
    **dict.fromkeys(map(ord, "─━╌═"), "-"),
    **dict.fromkeys(map(ord, "│┃║"), "|"),
    **dict.fromkeys(map(ord, "╭╮╰╯┌┐└┘├┤┬┴┼╞╡╘╛"), "+"),
    **dict.fromkeys(map(ord, "▁▂▃▄▏▎▍▌"), "_"),
    **dict.fromkeys(map(ord, "▅▆▇█▋▊▉■"), "#"),
    ord("□"): "o",
    ord("·"): "-",
    ord("↑"): "^",
    ord("↓"): "v",
    ord("✓"): "*",
    ord("→"): ">",
    ord("×"): "x",
    ord("…"): "...",
    ord("–"): "-",
}
_REPLACED = "mqtool-ascii"


def prepare() -> None:
    """Restrict stdout and stderr to ASCII if they are terminals and LC_ALL=C.

    In the C locale, Python writes UTF-8, because the C locale is usually just the default. LC_ALL=C is set on purpose.
    """
    if os.environ.get("LC_ALL") not in ("C", "POSIX"):
        return
    codecs.register_error(_REPLACED, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            stream.reconfigure(encoding="ascii", errors=_REPLACED)  # type: ignore[union-attr]


def is_ascii(stream: TextIO) -> bool:
    """Return True if a stream is a terminal that shows only ASCII."""
    return stream.errors == _REPLACED


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end
