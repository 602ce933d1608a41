"""python -m demo [NAME...] [--log FILE]: play the demonstrations, all or some, and exit 0 only if all was right."""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from demo import (
    broker,
    delayed_messages,
    headers,
    hello_world,
    interruption,
    log_formats,
    publish_subscribe,
    publisher_confirms,
    real_log,
    routing,
    rpc,
    topics,
    work_queues,
)
from demo.failure import Failed, Interrupted
from demo.screen import Screen
from demo.stage import OUTPUT, Demonstration, Stage
from mqtool.errors import MqtoolError

DEMONSTRATIONS = {
    "hello-world": hello_world.demonstration,
    "work-queues": work_queues.demonstration,
    "publish-subscribe": publish_subscribe.demonstration,
    "routing": routing.demonstration,
    "topics": topics.demonstration,
    "headers": headers.demonstration,
    "rpc": rpc.demonstration,
    "publisher-confirms": publisher_confirms.demonstration,
    "delayed-messages": delayed_messages.demonstration,
    "real-log": real_log.demonstration,
}
_INTRODUCTION = (
    "Several terminals on one screen: what is typed in each, and what mqtool prints there. -q and -e name queues and "
    "exchanges of the demonstration's own; leave them out, and you have the tutorials'."
)


def main() -> int:
    """Play what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which; all without one: {', '.join(DEMONSTRATIONS)}")
    parser.add_argument("--log", metavar="FILE", help="the real log to send (default: $LOG, else one of this machine)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in DEMONSTRATIONS]:
        parser.error(f"there is no demonstration {unknown[0]!r}; there are {', '.join(DEMONSTRATIONS)}")
    log = arguments.log or os.environ.get("LOG")

    interruption.install()
    screen = Screen()
    try:
        _play(screen, [DEMONSTRATIONS[name] for name in arguments.names or DEMONSTRATIONS], Path(log) if log else None)
    except Interrupted as interrupted:
        screen.wrong("interrupted; everything that was started has been ended")
        return interrupted.exit_code
    except (Failed, MqtoolError) as failure:
        screen.wrong(f"The demonstration has failed: {failure}")
        return 1
    return 0


def _play(screen: Screen, demonstrations: Sequence[Demonstration], log: Path | None) -> None:
    if log is not None:
        log_formats.read(log)  # better to say now than at the end that it cannot be read
    OUTPUT.mkdir(exist_ok=True)
    started = time.monotonic()
    checks = 0
    with (
        tempfile.TemporaryDirectory(prefix="mqtool-demo-") as scratch,
        Stage(screen, Path(scratch)) as stage,
        broker.reachable(stage),
    ):
        screen.blank()
        screen.note(_INTRODUCTION)
        for demonstration in demonstrations:
            checks += _play_one(screen, demonstration, Path(scratch), log)
    screen.blank()
    screen.right(
        f"All is right: {len(demonstrations)} demonstration{'s'[: len(demonstrations) != 1]}, {checks} checks, "
        f"{time.monotonic() - started:.0f} s; see {OUTPUT}/."
    )


def _play_one(screen: Screen, demonstration: Demonstration, scratch: Path, log: Path | None) -> int:
    """Play a demonstration on a clean broker, and leave it clean; return how many checks have passed."""
    screen.heading(demonstration.title, demonstration.story)
    broker.remove(demonstration.queues, demonstration.exchanges)
    try:
        with Stage(screen, scratch, log) as stage:
            demonstration.play(stage)
    except BaseException:
        with contextlib.suppress(Failed, MqtoolError):  # what went wrong first is what counts
            broker.remove(demonstration.queues, demonstration.exchanges)
        raise
    broker.remove(demonstration.queues, demonstration.exchanges)
    return stage.checks


if __name__ == "__main__":
    sys.exit(main())
