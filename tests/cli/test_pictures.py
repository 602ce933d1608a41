"""Diagrams and pictures in the documentation are up to date, and need no other file."""

import html
import re
from pathlib import Path
from typing import Any

import pytest

from demo import diagrams, pictures, screencast
from docs.recordings_in_pages import with_recordings
from mqtool.tutorials import pages
from mqtool.tutorials.dialects import NAMES, Dialect
from mqtool.tutorials.stream_dialects import HELLO, TRACKING, StreamDialect
from mqtool.ui.page_server import single_file
from tests.brokers import large
from tests.cli.browser import Page
from tests.cli.test_picture import box, play

ROOT = Path(__file__).parents[2]


def test_the_page_of_the_tutorials_is_up_to_date() -> None:
    """docs/tutorials.md is identical to what `make pictures` generates from the tutorials' diagrams and from the
    commands and links of `tutorial show`.
    """
    assert (ROOT / pictures.PAGE).read_text() == diagrams.document(), "make pictures writes it"


@pytest.mark.parametrize("name", pages.NAMES)
def test_a_diagram_shows_names_and_types_that_the_tutorials_declare(name: str) -> None:
    """Each exchange and queue in a tutorial's diagram has a name and a type that the tutorials' commands declare."""
    labels = {
        f"{thing.name}, {thing.type}" if hasattr(thing, "type") else thing.name for thing in NAMES[Dialect.PYTHON]
    }
    labels |= {table[StreamDialect.PYTHON].stream.name for table in (HELLO, TRACKING)}
    drawn = re.findall(r'(?:\{\{|\[\()"(.+?)"', "\n".join(diagrams.DIAGRAMS[name]))
    assert drawn
    assert {label for label in drawn if not label.startswith(("amq.gen-", "mqtool.gen-"))} <= labels


@pytest.mark.parametrize("path", sorted((ROOT / pictures.DIRECTORY).glob("*.svg")), ids=lambda path: path.stem)
def test_svg_pictures_are_small_and_load_no_other_file(path: Path) -> None:
    """Each SVG picture in the documentation has fewer than 30,000 characters, or fewer than 80,000 if it is animated.
    It has a light and a dark colour scheme, and loads no fonts or images.
    """
    svg = path.read_text()
    assert len(svg) < (80_000 if "@keyframes" in svg else 30_000)
    assert ("@keyframes" in svg) == ("prefers-reduced-motion" in svg)
    assert "prefers-color-scheme: dark" in svg
    assert set(re.findall(r"https?://[^\s\"':]+", svg)) <= {"http://www.w3.org/2000/svg", "http://127.0.0.1"}
    assert "@font-face" not in svg


def test_the_recording_in_the_readme_shows_each_command_of_its_script() -> None:
    """The animated terminal in the README shows every command of demo/screencast.py."""
    svg = (ROOT / pictures.DIRECTORY / "two-minutes.svg").read_text()
    for command in screencast.SCRIPT.strip().splitlines():
        assert html.escape(command) in svg, f"make pictures: {command}"


def test_every_image_shown_in_the_documentation_exists_and_every_picture_is_shown() -> None:
    """Every image that the README or a page of the documentation shows exists, and every SVG picture of the
    documentation is shown in the README or on a page.
    """
    shown = {
        document.parent.joinpath(image).resolve()
        for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text())
    }
    assert shown == set((ROOT / pictures.DIRECTORY).glob("*.svg"))


def test_links_of_the_readme_lead_to_files_in_the_repository() -> None:
    """Every relative link in the README leads to a file in the repository. None leads to an HTML page, because only
    `make docs` creates HTML pages.
    """
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text())
    files = [ROOT / link for link in links if "://" not in link]
    assert files
    assert [path for path in files if path.suffix == ".html" or not path.exists()] == []


@large
def test_a_line_that_is_only_a_link_to_a_recording_embeds_the_recording(chromium: Any, tmp_path: Path) -> None:
    """If a line of a documentation page is only a link to a recording, the page embeds the recording. The recording is
    loaded only when a reader opens it, and begins at the linked scene.
    """
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "tutorials.html").write_bytes(single_file(play()))
    page = tmp_path / "page.html"
    page.write_text(with_recordings("[Watch it](pictures/tutorials.html#work-queues/2)\n", lambda _: True))
    shown = Page(chromium, page.as_uri())
    assert shown.ask("return performance.getEntriesByType('resource').length") == 0
    shown.find("summary")[0].click()
    chromium.switch_to.frame(shown.find("iframe")[0])
    shown.until(lambda: shown.find("#scene") and shown.text("#scene") == "Scene 2", "the scene")
    assert not shown.find("header")[0].is_displayed()
    chromium.switch_to.default_content()
    assert shown.complaints() == []


@large
def test_an_embedded_recording_shows_three_queues_and_its_buttons_on_a_phone(chromium: Any, tmp_path: Path) -> None:
    """On a screen that is 390 pixels wide, a tutorial's recording in a documentation page shows a picture of three
    queues side by side in full, below the title and text of the tutorial's current scene. Nothing covers the button for
    the next scene, even if a long text moves the picture down.
    """
    records = play()
    for topology in (each for each in records if each["kind"] == "topology"):
        (queue,), (link,) = topology["queues"], topology["links"]
        topology["queues"] += [{**queue, "name": name} for name in ("mail", "stock")]
        topology["links"] += [{**link, "to": name} for name in ("mail", "stock")]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "tutorials.html").write_bytes(single_file(records))
    page = tmp_path / "page.html"
    style = (ROOT / "docs" / "_static" / "site.css").read_text()
    body = with_recordings("[Watch it](pictures/tutorials.html#work-queues)\n", lambda _: True)
    page.write_text(f'<!doctype html><meta name="viewport" content="width=device-width"><style>{style}</style>{body}')
    shown = Page(chromium, page.as_uri())
    shown.resize(390)
    shown.find("summary")[0].click()
    chromium.switch_to.frame(shown.find("iframe")[0])
    shown.until(lambda: len(shown.find(".node.q")) == 3 and shown.find("#chapters button"), "the picture")
    frame, buttons, picture = box(shown, "#frame"), box(shown, "#buttons"), box(shown, "#picture")
    assert picture["left"] >= frame["left"] - 1
    assert picture["right"] <= frame["right"] + 1
    assert box(shown, "#narration")["bottom"] <= picture["top"] < picture["bottom"] <= buttons["top"]
    # Also where a long text moves the picture down.
    shown.ask("document.querySelector('#view').style.marginTop = '8rem'")
    assert box(shown, "#picture")["bottom"] > buttons["top"]
    at = box(shown, "#next")
    topmost = "return document.elementFromPoint(...arguments).id"
    assert shown.ask(topmost, at["left"] + 9, at["top"] + 9) == "next"
    chromium.switch_to.default_content()


def test_a_page_does_not_link_to_recordings_that_have_not_been_made() -> None:
    """If the recordings have not been made, a page of the documentation shows still images without links to recordings,
    and has no broken links.
    """
    page = (
        "[Watch it](pictures/tutorials.html#routing)\n\n[![A still](a.svg)](../pictures/messages.html)\n\n"
        "This is a frame of [a recording](pictures/tutorials.html)."
    )
    assert with_recordings(page, lambda _: False) == "\n\n![A still](a.svg)\n\nThis is a frame of a recording."


@pytest.mark.parametrize("name", pages.NAMES)
def test_docs_tutorials_embeds_a_recording_of_each_tutorial(name: str) -> None:
    """For each tutorial, docs/tutorials.md has a line that embeds a recording of the tutorial."""
    assert f"\n[Watch it](pictures/tutorials.html#{name})\n" in (ROOT / pictures.PAGE).read_text()
