"""How the site shows the recordings of docs/pictures/*.html, which `make docs` makes and `make site` may lack.

A line that contains nothing but a link to a recording embeds it, such as

    [Watch it](pictures/tutorials.html#routing)

The reader opens it there; only then is it loaded. Anywhere else, such a link stays a link.
"""

import html
import re
from collections.abc import Callable

_TARGET = r"(?P<address>\S*pictures/(?P<name>[\w-]+)\.html(?P<part>#[^)\s]+)?)"
_IMAGE = r"!\[(?P<alt>[^]]*)\]\((?P<image>[^)\s]+)\)"
_LINK = re.compile(rf"\[(?:{_IMAGE}|(?P<text>[^][]+))\]\({_TARGET}\)")
_LINE = re.compile(rf"^{_LINK.pattern}$", re.MULTILINE)


def with_recordings(text: str, exists: Callable[[str], bool]) -> str:
    """Return a page in Markdown with its recordings. `exists` tells whether the recording of a name has been made.

    Without its recording, a still remains, without a link; a line with a mere link is removed, and in a sentence, the
    words remain.
    """
    return _LINK.sub(lambda link: _linked(link, exists), _LINE.sub(lambda line: _embedded(line, exists), text))


def _embedded(line: re.Match[str], exists: Callable[[str], bool]) -> str:
    if not exists(line["name"]):
        return "" if line["image"] is None else f"![{line['alt']}]({line['image']})"
    title = html.escape(line["alt"] or f"{line['text']}: {(line['part'] or line['name']).lstrip('#')}")
    # Sphinx copies only the images that it knows of: MyST reads what is between blank lines.
    summary = line["text"] if line["image"] is None else f"\n\n![{line['alt']}]({line['image']})\n\n"
    frame = f'<iframe src="{line["address"]}" title="{title}" loading="lazy"></iframe>'
    return f'<details class="recording"><summary>{summary}</summary>{frame}</details>\n'


def _linked(link: re.Match[str], exists: Callable[[str], bool]) -> str:
    """Return a link in HTML: MyST would look for a page of the site, and not know what follows the #."""
    shown = link["text"] if link["image"] is None else f"![{link['alt']}]({link['image']})"
    return f'<a href="{link["address"]}">{shown}</a>' if exists(link["name"]) else shown
