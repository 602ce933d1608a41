"""The broker to play on: the one that mqtool reaches, else one that it starts for us."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from mqtool.broker import node, state
from mqtool.broker.choice import Kind
from mqtool.cli.display.play_lines import Lines
from mqtool.errors import ExitCode
from mqtool.stage.stage import Stage, undisturbed
from mqtool.stage.waiting import NotSo


@contextmanager
def reachable(lines: Lines, stage: Stage) -> Iterator[str]:
    """The URL of a broker that is there within the block. It is stopped afterwards if we had to start it.

    Raises:
        NotSo: there is none, and none can be started.
    """
    named = _named()
    look = _unseen(stage, "mqtool", "wait", "--timeout", "100ms")
    if look.returncode == ExitCode.OK:
        lines.note(f"The broker: {look.stderr.strip()}.")
        yield _url()
    elif named or look.returncode != ExitCode.TIMED_OUT:
        because = f"\n  {named} names this broker; without it, the demonstration starts one of its own" if named else ""
        raise NotSo(f"no way to the broker\n  {look.stderr.strip().replace(chr(10), f'{chr(10)}  ')}{because}")
    else:
        yield from _started(lines, stage)


def _started(lines: Lines, stage: Stage) -> Iterator[str]:
    (terminal,) = stage.terminals("broker")
    was_running = _unseen(stage, "mqtool", "broker", "status").returncode == ExitCode.OK
    lines.blank()
    try:
        # Not Docker, which might have to download an image first.
        terminal.run(f"mqtool broker up --kind {Kind.NODE if node.find_server() else Kind.EMBEDDED}")
    except BaseException:
        terminal.ask_to_end()
        terminal.end()
        if not was_running:
            _unseen(stage, "mqtool", "broker", "down")
        raise
    try:
        yield _url()
    finally:
        with undisturbed():
            if not was_running:
                lines.blank()
                terminal.run("mqtool broker down")


def _named() -> str | None:
    """The environment variable by which the user names a broker, if they do."""
    return next((name for name in ("MQTOOL_URL", "AMQP_URL") if os.environ.get(name)), None)


def _url() -> str:
    """Where mqtool finds the broker."""
    if (named := _named()) is not None:
        return os.environ[named]
    started = state.load()
    return started.url if started else "amqp://localhost"


def _unseen(stage: Stage, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env=stage.place.whole_environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
