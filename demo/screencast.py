"""Makes docs/pictures/two-minutes.svg, an animated terminal, from a real run (`make pictures`).

The picture shows each command being typed, and then its output, line by line as it was printed, but with shorter
pauses. The animation is CSS. Readers who prefer reduced motion see only the last screen. If the picture is opened on
its own, the animation pauses while the pointer is over the picture.
"""

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from demo.pictures import DIRECTORY, svg

#: What is typed. A line that begins with # is a comment, as in a shell.
SCRIPT = """
# mqtool in two minutes. First, start mqtool's own broker
mqtool broker up --kind embedded
# Send a message and receive it, as in RabbitMQ's first tutorial
mqtool send 'Hello World!'
mqtool receive -c 1
# Lines of any program become messages, each confirmed by the broker
seq 1000 | mqtool send -l -q numbers
mqtool list queues
# Look at messages, and leave them in the queue
mqtool peek numbers -c 3
# Run a program for each message
mqtool worker -q numbers -c 8 --shell --exec 'read n; echo $((n * n))'
# Publish by routing key, and see where a message would go
mqtool exchange declare logs topic
mqtool queue declare errors
mqtool exchange bind logs errors '*.error'
mqtool route logs disk.error
mqtool emit-log topic disk.error 'Disk full' -e logs
mqtool receive -q errors -c 1 --json
# Send a message that arrives later
mqtool send-delayed --delay 5s 'Later!'
mqtool receive-delayed -c 1
# What is on the broker, and is it healthy?
mqtool topology
mqtool doctor --between 1s
mqtool broker down
"""
COLUMNS, ROWS = 84, 24
#: Seconds: for a typed character, before and after typing, the longest pause in output, after each command, at the end.
_KEY, _BEFORE, _AFTER, _PAUSE, _READ, _END = 0.04, 0.5, 0.25, 1.5, 1.2, 8.0


class Line(NamedTuple):
    """A line on the terminal.

    Attributes:
        at: when the line appears, in seconds after the start of the animation.
        typed: the number of characters that appear one by one, as if typed; 0 for a line of output.
    """

    text: Text
    at: float
    typed: int = 0


def lines() -> Iterator[Line]:
    """Run the commands of the picture on the embedded broker, in an empty directory; yield the lines to show."""
    with tempfile.TemporaryDirectory() as directory:
        tools = Path(directory, "bin")
        tools.mkdir()
        for name in ("sh", "seq"):
            (tools / name).symlink_to(f"/usr/bin/{name}")
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{tools}", "HOME": directory, "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS), "LINES": str(ROWS), "LANG": "C.UTF-8",
        }  # fmt: skip
        now = 0.0
        for command in SCRIPT.strip().splitlines():
            is_comment = command.startswith("#")
            style = "bright_black" if is_comment else "bold"
            # The first line is there from the beginning, so that the first picture is not empty.
            yield Line(Text.assemble(("$ ", "green"), (command, style)), now, len(command) if now else 0)
            now += _BEFORE + _KEY * len(command) + _AFTER
            if is_comment:
                continue
            last = 0.0
            for at, text in _printed(command, directory, environment):
                now += min(at - last, _PAUSE)
                last = at
                whole = Text.from_ansi(text)
                for part in whole.divide(range(COLUMNS, len(whole), COLUMNS)):  # as a terminal wraps it
                    yield Line(part, now)
            now += _READ


def _printed(command: str, directory: str, environment: dict[str, str]) -> list[tuple[float, str]]:
    """Run a command on a terminal. For each line that it prints, return the time, in seconds after the command's start,
    and the line.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
    started = time.monotonic()
    process = subprocess.Popen(
        ["sh", "-c", command], stdout=theirs, stderr=theirs, cwd=directory, env=environment, start_new_session=True
    )
    os.close(theirs)
    found: list[tuple[float, str]] = []
    rest = b""
    while chunk := _read(ours):
        *whole, rest = (rest + chunk).split(b"\n")
        found += [(time.monotonic() - started, line.decode().rstrip("\r").rpartition("\r")[2]) for line in whole]
    os.close(ours)
    if process.wait() not in (0, 3):  # 3: doctor has found something
        subprocess.run(["mqtool", "broker", "down"], cwd=directory, env=environment, check=False)
        raise SystemExit(f"{command!r} failed: {found}")
    if any(re.search(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", line) for _, line in found):
        raise SystemExit(f"{command!r} moves the cursor, which the picture cannot show")
    return found


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # on Linux, the other end is closed
        return b""


def console(shown: list[Line]) -> Console:
    """Print these lines on a `rich.console.Console` that is tall enough to show all of them; return the console."""
    found = Console(
        record=True, width=COLUMNS, height=len(shown), file=io.StringIO(), force_terminal=True, highlight=False
    )
    for line in shown:
        found.print(line.text, no_wrap=True, crop=True)
    return found


def animated(shown: list[Line]) -> str:
    """Return an animated SVG of a terminal on which these lines appear one by one. The terminal scrolls when full."""
    height, width = 24.4, 12.2  # of a character, as rich draws it
    total = shown[-1].at + _END
    still = svg(console(shown))
    texts: dict[int, list[str]] = {}
    for text, y in re.findall(r'(<text [^>]* y="([\d.]+)"[^>]*>[^<]*\S[^<]*</text>)', still):
        texts.setdefault(round((float(y) - 20) / height), []).append(text)

    def percent(at: float) -> str:
        return f"{at / total * 100:.3f}%"

    groups, covers, rules = [], [], []
    for number, line in enumerate(shown):
        groups.append(f'<g class="a{number}">' + "".join(texts.get(number, [])) + "</g>")
        if line.at:
            frames = f"0%{{visibility:hidden}}{percent(line.at)}{{visibility:visible}}"
            rules.append(f".a{number}{{animation-name:a{number}}}@keyframes a{number}{{{frames}}}")
        if line.typed:
            y, typing, typed = number * height, line.at + _BEFORE, line.at + _BEFORE + _KEY * line.typed
            covers.append(
                f'<g class="c c{number}"><rect class="cover" x="{2 * width}" y="{y:g}" width="1100" height="{height}"/>'
                f'<rect class="cursor" x="{2 * width}" y="{y:g}" width="{width}" height="{height}"/></g>'
            )
            frames = (
                f"0%{{visibility:hidden;transform:none}}{percent(line.at)}{{visibility:visible;transform:none}}"
                f"{percent(typing)}{{visibility:visible;transform:none;animation-timing-function:steps({line.typed})}}"
                f"{percent(typed)}{{visibility:visible;transform:translateX({line.typed * width:g}px)}}"
                f"{percent(typed + _AFTER)}{{visibility:hidden}}"
            )
            rules.append(f".c{number}{{animation-name:c{number}}}@keyframes c{number}{{{frames}}}")

    def scrolled(lines_before: int) -> str:
        return f"transform:translateY({-max(0, lines_before - ROWS) * height:g}px)"

    frames = "".join(f"{percent(line.at)}{{{scrolled(number + 1)}}}" for number, line in enumerate(shown))
    rules.append(f".scroll{{animation-name:scroll}}@keyframes scroll{{{frames}}}")
    style = "\n".join([
        f".scroll{{{scrolled(len(shown))}}}",
        ".c{visibility:hidden}.cover{fill:#fff}.cursor{fill:#1f2328}",
        "@media (prefers-color-scheme: dark){.cover{fill:#0d1117}.cursor{fill:#e6edf3}}",
        "@media (prefers-reduced-motion: no-preference){",
        f"g{{animation:{total:.1f}s step-end infinite}}",
        "svg:hover g{animation-play-state:paused}",
        *rules,
        "}\n</style>",
    ])  # fmt: skip
    screen = f'<rect class="screen" stroke-width="1" x="1" y="1" width="1041" height="{ROWS * height + 14:g}" rx="8"/>'
    head = re.sub(r'viewBox="[^"]*"', f'viewBox="0 0 1043 {ROWS * height + 16:g}"', still.partition("</style>")[0])
    return "\n".join([
        head + style,
        screen,
        f'<svg x="9" y="8" width="1025" height="{ROWS * height:g}"><g class="scroll">',
        *groups,
        *covers,
        "</g></svg>\n</svg>\n",
    ])  # fmt: skip


def main() -> None:
    """Make the picture."""
    shown = list(lines())
    path = DIRECTORY / "two-minutes.svg"
    path.write_text(animated(shown))
    print(f"{path}: {path.stat().st_size:,} bytes, {len(shown)} lines, {shown[-1].at + _END:.0f} s")


if __name__ == "__main__":
    main()
