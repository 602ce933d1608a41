"""Sphinx's settings: MyST's Markdown, furo's looks. `make docs` fails on a broken link."""

import re
import shutil
from pathlib import Path
from textwrap import dedent

from sphinx.application import Sphinx

from demo.diagrams import LEGEND
from docs.recordings_in_pages import with_recordings
from mqtool import __version__
from mqtool.tutorials import pages

project = "mqtool"
copyright = "The mqtool founders"  # noqa: A001  # the name that Sphinx reads
release = __version__
extensions = ["myst_parser", "sphinx_copybutton"]
# Commands have a button that copies them; their output has none.
copybutton_selector = "div.highlight-sh pre, div.highlight-bash pre, div.highlight-python pre, div.highlight-ini pre"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "mqtool"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "../mqtool/ui/page/icon.svg"
# '' and -- are what people type.
smartquotes = False
# Headings as targets, as GitHub has them.
myst_heading_anchors = 3


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", show_pictures)
    app.connect("source-read", show_recordings)
    app.connect("build-finished", copy_recordings)


def show_pictures(_app: Sphinx, document: str, source: list[str]) -> None:
    """Replace each Mermaid diagram by the tutorial's text diagram, because Mermaid needs a script from another site."""
    if document == "tutorials":
        pictures = iter([dedent(pages.page(name).picture) for name in pages.NAMES])
        text = source[0].replace(LEGEND, "names in brackets are queues, and names in parentheses are exchanges.")
        source[0] = re.sub(r"```mermaid\n.*?```", lambda _: f"```text\n{next(pictures)}\n```", text, flags=re.DOTALL)


def show_recordings(app: Sphinx, _document: str, source: list[str]) -> None:
    """Embed the recordings that have been made."""
    source[0] = with_recordings(source[0], lambda name: Path(app.srcdir, "pictures", f"{name}.html").exists())


def copy_recordings(app: Sphinx, error: Exception | None) -> None:
    """Copy the recordings to where such links lead."""
    if error is None:
        directory = Path(app.outdir, "pictures")
        directory.mkdir(exist_ok=True)
        for recording in Path(app.srcdir, "pictures").glob("*.html"):
            shutil.copy(recording, directory)
