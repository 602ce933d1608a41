"""python -m demo.pictures [NAME...]: make docs/pictures/*.svg, from real runs, and docs/tutorials.md.

A picture shows what a command prints on a terminal, or a moment in a recording of `mqtool ui` or of the tutorials. Each
picture contains a light and a dark colour scheme, and uses the one that the reader's system prefers. A picture loads no
other files.
"""

import io
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from demo import diagrams, recordings
from demo.recordings import DIRECTORY
from mqtool.broker.embedded import EmbeddedBroker

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

PAGE = Path("docs/tutorials.md")

# Background, foreground, then black, red, green, yellow, blue, magenta, cyan, white: each with enough contrast.
_LIGHT = ("#ffffff #1f2328", "#24292f #cf222e #116329 #7d4e00 #0969da #8250df #1b7c83 #6e7781")
_DARK = ("#0d1117 #e6edf3", "#484f58 #ff7b72 #3fb950 #d29922 #58a6ff #bc8cff #39c5cf #b1bac4")
_FORMAT = """\
<svg class="mqtool" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
text {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px; }}
g text {{ white-space: pre; }}
{styles}
</style>
{chrome}
<g transform="translate({terminal_x}, 8)">
{matrix}
</g>
</svg>
"""
_ID = "m"
#: The width of a character, as rich draws it.
_CHARACTER = 20 * 0.61
#: The height of the title bar that rich draws above the terminal. The pictures omit it.
_TITLE_BAR = 32


def of_command(columns: int, command: str, lines: int | None = None, code: int = 0, **variables: str) -> Console:
    """Run a command on a terminal of this width. Return a `rich.console.Console` with the command and its output, from
    which `svg` makes a picture.

    Args:
        lines: the number of lines of the command's output to show; None: all.
        code: the expected exit code.
        variables: environment variables of the command.

    Raises:
        SystemExit: the command exits with another code.
    """
    ours, theirs = pty.openpty()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": str(columns), "TERM": "xterm-256color", **variables}
    process = subprocess.Popen(["sh", "-c", f"exec {command}"], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    data = b""
    while chunk := _read(ours):
        data += chunk
    os.close(ours)
    if process.wait() != code:
        raise SystemExit(f"{command!r} failed: {data.decode('utf-8', 'replace')}")
    printed = data.decode().replace("\r", "").splitlines()[:lines]
    console = _console(columns, len(printed) + 1)
    console.print(Text(f"$ {command}", "bold"))
    for line in printed:
        console.print(Text.from_ansi(line))
    return console


def of_shop(columns: int, command: str, code: int = 0) -> Console:
    """Run a command as `of_command` does, on a new broker that the commands in `recordings.SHOP` have prepared. While
    the command runs, a worker consumes from a queue of this broker.
    """
    with EmbeddedBroker(management_port=0) as broker, tempfile.TemporaryDirectory() as directory:
        place = {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.management_url or ""}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **place, "PATH": path}
        subprocess.run(["sh", "-ec", recordings.SHOP], cwd=directory, env=environment, check=True, capture_output=True)
        worker = subprocess.Popen(
            ["mqtool", "worker", "-q", "packing", "--exec", "sleep 60", "--ready-file", "ready"],
            cwd=directory, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not Path(directory, "ready").exists():
            time.sleep(0.1)
        try:
            return of_command(columns, command, code=code, **place)
        finally:
            worker.kill()
            worker.wait()


@contextmanager
def browser() -> "Iterator[WebDriver]":
    """Open a browser window of 1280 by 900 pixels. Needs chromium, chromedriver and selenium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as window:
        window.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        yield window


def still(window: "WebDriver", recording: str, path: Path, moment: float | None = None) -> None:
    """Save what a recording shows at one moment as a picture.

    Args:
        moment: the moment to show, as a fraction of the recording's length; None: when the number of visible messages
            is highest.
    """
    window.get("about:blank")  # another fragment alone would not load the page again
    window.get(recording)
    if moment is None:
        moment = max((number / 40 for number in range(1, 40)), key=lambda each: _seek(window, each))
    _seek(window, moment)
    path.write_text(window.execute_script(_PICTURE) + "\n")


def _seek(window: "WebDriver", moment: float) -> int:
    """Show a moment of the recording; return how many messages are visible.

    Args:
        moment: the moment, as a fraction of the recording's length (0 to 1).
    """
    window.execute_script(_SEEK, moment)
    time.sleep(0.2)
    return int(window.execute_script("return document.querySelectorAll('.dot').length"))


_SEEK = """
const time = document.querySelector("#time");
time.value = 1000 * arguments[0];
time.dispatchEvent(new Event("input"));
"""
#: Returns the picture as SVG, with the rules of the page's style that it needs, for light and dark mode.
_PICTURE = """
const svg = document.querySelector("#picture").cloneNode(true);
const isOfPicture = ({ selectorText, conditionText }) => selectorText === undefined
  ? conditionText === "(prefers-color-scheme: dark)"
  : /^:root|\\.(node|arrow|dot|rate|key)|#(picture|head)/.test(selectorText) && !/:(hover|focus)/.test(selectorText);
const rules = [...document.styleSheets[0].cssRules].filter(isOfPicture).map((rule) => rule.cssText);
const style = rules.join("\\n").replace(/ (animation|transition): [^;]*;/g, "");
svg.insertAdjacentHTML("afterbegin", "<style></style>");
svg.querySelector("style").textContent = style;
svg.setAttribute("style", "background: var(--back)");
for (const each of svg.querySelectorAll("[tabindex]")) each.removeAttribute("tabindex");
for (const name of ["role", "aria-label"]) svg.removeAttribute(name);
svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
return new XMLSerializer().serializeToString(svg);
"""


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports an error when the other end is closed
        return b""


def _console(columns: int, rows: int) -> Console:
    return Console(record=True, width=columns, height=rows, file=io.StringIO(), force_terminal=True, highlight=False)


def _theme(ground: str, colours: str) -> TerminalTheme:
    background, foreground, *others = (
        (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)) for colour in f"{ground} {colours}".split()
    )
    return TerminalTheme(background, foreground, others)


def svg(console: Console) -> str:
    """Return one SVG that shows the output recorded by a console, with colours for light and dark mode."""
    light, dark = (
        console.export_svg(theme=_theme(*theme), code_format=_FORMAT, unique_id=_ID, clear=False, title="")
        for theme in (_LIGHT, _DARK)
    )
    rule = re.compile(rf"^\.{_ID}-r\d+ .*$", re.MULTILINE)
    if len(rule.findall(light)) != len(rule.findall(dark)):
        raise SystemExit("the light and the dark picture do not have the same number of styles")
    text = light.replace(
        rule.findall(light)[0], ".screen { fill: #fff; stroke: #d0d7de; }\n" + rule.findall(light)[0], 1
    )
    rules = "\n".join([".screen { fill: #0d1117; stroke: #30363d; }", *rule.findall(dark)])
    text = text.replace("</style>", f"@media (prefers-color-scheme: dark) {{\n{rules}\n}}\n</style>")
    text = re.sub(r'fill="#ffffff" stroke="[^"]*"', 'class="screen"', text)
    text = re.sub(r"<circle[^>]*/>\s*", "", text)
    text = re.sub(r"<g transform=\"translate\(26,22\)\">\s*</g>\s*", "", text)
    text = re.sub(r' clip-path="[^"]*"', "", text).replace("&#160;", " ").replace("</text>", "</text>\n")
    text = re.sub(r'textLength="([^"]*)">(.*?)( *)</text>', _trimmed, text)
    return re.sub(r'viewBox="0 0 (\S+) (\S+)"|(?<=height=")([\d.]+)(?=" rx)', _without_title_bar, text)


def _without_title_bar(match: re.Match[str]) -> str:
    if match[3]:
        return f"{float(match[3]) - _TITLE_BAR:g}"
    return f'viewBox="0 0 {match[1]} {float(match[2]) - _TITLE_BAR:g}"'


def _trimmed(match: re.Match[str]) -> str:
    """Return the replacement for a match of `textLength="…">…</text>` in an SVG: the same markup without the spaces at
    the end of the text, and with the width of the remaining text as textLength.
    """
    length = float(match[1])
    columns = round(length / _CHARACTER)
    return f'textLength="{(columns - len(match[3])) * _CHARACTER:g}">{match[2]}</text>'


PICTURES: dict[str, Callable[[], Console]] = {
    "topology": lambda: of_shop(84, "mqtool topology"),
    "top": lambda: of_shop(84, "mqtool top --once"),
    "doctor": lambda: of_shop(84, "mqtool doctor --between 1s", code=3),
    "tutorial-show": lambda: of_command(84, "mqtool tutorial show routing", 42),
}


#: The plays in the recording of the tutorials of which stills are made.
_STILLS = ("work-queues", "why-queues")


def main() -> None:
    """Make the pictures that are named on the command line, by default all pictures. Then make docs/tutorials.md."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or [recordings.SHOP_AT_WORK, recordings.TUTORIALS, *PICTURES]:
        path = DIRECTORY / f"{name}.svg"
        if name in PICTURES:
            path.write_text(svg(PICTURES[name]()))
            print(path)
            continue
        recording = recordings.make(name).absolute().as_uri()
        with browser() as window:
            if name == recordings.SHOP_AT_WORK:
                still(window, recording, path, 0.45)  # orders are on their way
            else:
                for each in _STILLS:
                    still(window, f"{recording}#{each}", DIRECTORY / f"{each}.svg")
        print(recording)
    PAGE.write_text(diagrams.document())


if __name__ == "__main__":
    # As in demo/recordings.py: programs that a shell starts in the background ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
