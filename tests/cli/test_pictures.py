"""What `make pictures` has made is in the project, fits it, and needs nothing from elsewhere."""

import html
import re
from pathlib import Path

import pytest

from demo import diagrams, pictures, screencast
from mqtool.tutorials import pages
from mqtool.tutorials.dialects import NAMES, Dialect
from mqtool.tutorials.stream_dialects import HELLO, TRACKING, StreamDialect

ROOT = Path(__file__).parents[2]


def test_the_page_of_the_tutorials_is_up_to_date() -> None:
    """Its commands and links are those that `tutorial show` has."""
    assert (ROOT / pictures.PAGE).read_text() == diagrams.document(), "make pictures writes it"


@pytest.mark.parametrize("name", pages.NAMES)
def test_a_diagram_names_what_the_tutorial_declares(name: str) -> None:
    """Its exchanges, with their types, and its queues, are those of the default dialect."""
    labels = {
        f"{thing.name}, {thing.type}" if hasattr(thing, "type") else thing.name for thing in NAMES[Dialect.PYTHON]
    }
    labels |= {table[StreamDialect.PYTHON].stream.name for table in (HELLO, TRACKING)}
    drawn = re.findall(r'(?:\{\{|\[\()"(.+?)"', "\n".join(diagrams.DIAGRAMS[name]))
    assert drawn
    assert {label for label in drawn if not label.startswith(("amq.gen-", "mqtool.gen-"))} <= labels


@pytest.mark.parametrize("path", sorted((ROOT / pictures.DIRECTORY).glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_whole_by_itself(path: Path) -> None:
    """It is small, has both colour schemes, and fetches nothing."""
    svg = path.read_text()
    assert len(svg) < (80_000 if "@keyframes" in svg else 30_000)
    assert ("@keyframes" in svg) == ("prefers-reduced-motion" in svg)
    assert "prefers-color-scheme: dark" in svg
    assert set(re.findall(r"https?://[^\s\"':]+", svg)) <= {"http://www.w3.org/2000/svg", "http://127.0.0.1"}
    assert "@font-face" not in svg


def test_the_recording_shows_its_script() -> None:
    """The animated terminal in the README types the commands of demo/screencast.py."""
    svg = (ROOT / pictures.DIRECTORY / "two-minutes.svg").read_text()
    for command in screencast.SCRIPT.strip().splitlines():
        assert html.escape(command) in svg, f"make pictures: {command}"


def test_the_pictures_of_the_documents_are_there() -> None:
    """Every image that a document shows is a file, and every picture is in a document."""
    shown = {
        document.parent.joinpath(image).resolve()
        for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text())
    }
    assert shown == set((ROOT / pictures.DIRECTORY).glob("*.svg"))


def test_the_readme_links_to_files_that_any_viewer_of_the_repository_shows() -> None:
    """Each link to a file leads to one that is in the repository; the recordings, which `make docs` makes, are not."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    files = [ROOT / link for link in links if "://" not in link]
    assert files
    assert [path for path in files if path.suffix == ".html" or not path.exists()] == []
