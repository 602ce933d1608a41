"""Opens a page of mqtool in a browser."""

import os
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path

from mqtool.broker import state
from mqtool.cli.display import output

_REDIRECT = (
    '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={0}"><a href="{0}">mqtool</a>\n'
)


@contextmanager
def opened(url: str) -> Iterator[None]:
    """Context manager: open a page whose address contains a secret, and tell the user if no browser was found.

    All users of the machine can see the command line of the browser. So the browser opens a file, which only this user
    can read, and which redirects to the page. The file is deleted when the `with` block ends.
    """
    directory = state.home()
    state.make(directory)
    descriptor, name = tempfile.mkstemp(".html", "page-", directory)  # with mode 0600
    path = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_REDIRECT.format(escape(url)))
        if not webbrowser.open(path.as_uri()):
            output.notice("no browser was found; open the address yourself")
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
