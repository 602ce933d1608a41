"""python -m demo [NAME...] [--log FILE]: play the demonstrations, all or some, and exit 0 only if all was right."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from demo import OUTPUT, broker, interruption, log_formats, real_log
from demo.interruption import Interrupted
from mqtool import plays
from mqtool.cli.display import output
from mqtool.cli.display.pace import Pace
from mqtool.cli.display.play_lines import Lines
from mqtool.errors import MqtoolError
from mqtool.plays.playing import perform
from mqtool.stage.guard import Guard
from mqtool.stage.stage import Place, Stage

_REAL_LOG = "real-log"
NAMES = (*plays.NAMES, _REAL_LOG)
_INTRODUCTION = (
    "Several terminals on one screen: what is typed in each, and what mqtool prints there. -q and -e name queues and "
    "exchanges of the demonstration's own; leave them out, and you have the tutorials'."
)


def main() -> int:
    """Play what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all without one: {', '.join(NAMES)}")
    parser.add_argument("--log", metavar="FILE", help="the real log to send (default: $LOG, else one of this machine)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"there is no demonstration {unknown[0]!r}; there are {', '.join(NAMES)}")
    log = arguments.log or os.environ.get("LOG")

    interruption.install()
    try:
        _play(arguments.names or NAMES, Path(log) if log else None)
    except Interrupted as interrupted:
        output.error("interrupted; everything it started has been stopped")
        return interrupted.exit_code
    except MqtoolError as failure:
        output.error(f"The demonstration has failed: {failure}", failure.hint)
        return 1
    return 0


def _play(names: Sequence[str], log: Path | None) -> None:
    if log is not None:
        log_formats.read(log)  # better to say now than at the end that it cannot be read
    guard = Guard()
    OUTPUT.mkdir(exist_ok=True)
    started = time.monotonic()
    checks = 0
    lines = Lines(Pace(auto=True, watched=False))
    with (
        tempfile.TemporaryDirectory(prefix="mqtool-demo-") as scratch,
        Stage(lines, Place(Path(), Path(scratch), {}, False, guard)) as stage,
        broker.reachable(lines, stage) as url,
    ):
        lines.blank()
        lines.note(_INTRODUCTION)
        for name in names:
            is_log = name == _REAL_LOG
            play = real_log.play_of(log, lines.note, lines.table) if is_log else plays.load(name)
            with lines.watching(play.title, play.story):
                # The log's name is the user's, and counts from where they are.
                checks += perform(play, lines, guard, url, Path() if is_log else OUTPUT)
    lines.blank()
    lines.right(
        f"All is right: {len(names)} demonstration{'s'[: len(names) != 1]}, {checks} checks, "
        f"{time.monotonic() - started:.0f} s; see {OUTPUT}/."
    )


if __name__ == "__main__":
    sys.exit(main())
