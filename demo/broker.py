"""The broker to play on: the one that mqtool reaches, else one that it starts for us; and leaving no traces there."""

import os
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from demo import interruption
from demo.failure import Failed
from demo.stage import Stage, environment
from mqtool.amqp import Address, Connection, administration, parse_addresses
from mqtool.broker import state
from mqtool.errors import ExitCode, MqtoolError

#: Seconds that a node may take to stop, if we are interrupted while it starts.
_STOP_PATIENCE = 40.0


@contextmanager
def reachable(stage: Stage) -> Iterator[None]:
    """Within the block there is a broker. Stop it afterwards if we had to start it.

    Raises:
        Failed: there is none, and none can be started.
    """
    named = _named()
    look = _unseen("mqtool", "wait", "--timeout", "100ms")
    if look.returncode == ExitCode.OK:
        stage.screen.note(f"The broker: {look.stderr.strip()}.")
        yield
    elif named or look.returncode != ExitCode.TIMED_OUT:
        because = f"\n  {named} names this broker; without it, the demonstration starts one of its own" if named else ""
        raise Failed(f"no way to the broker\n  {look.stderr.strip().replace(chr(10), f'{chr(10)}  ')}{because}")
    else:
        yield from _started(stage)


def _started(stage: Stage) -> Iterator[None]:
    (terminal,) = stage.terminals("broker")
    was_running = _unseen("mqtool", "broker", "status").returncode == ExitCode.OK
    stage.screen.blank()
    try:
        terminal.run("mqtool broker up")
    except BaseException:
        terminal.end(_STOP_PATIENCE)
        if not was_running:
            _unseen("mqtool", "broker", "down")
        raise
    try:
        yield
    finally:
        interruption.ignore()
        if not was_running:
            stage.screen.blank()
            terminal.run("mqtool broker down")


def _named() -> str | None:
    """The environment variable by which the user names a broker, if they do."""
    return next((name for name in ("MQTOOL_URL", "AMQP_URL") if os.environ.get(name)), None)


def _unseen(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def _addresses() -> list[Address]:
    """Where the commands that we play find the broker."""
    if (named := _named()) is not None:
        return parse_addresses(os.environ[named])
    started = state.load()
    return parse_addresses(started.url) if started else [Address()]


def remove(queues: Collection[str], exchanges: Collection[str]) -> None:
    """Delete queues and exchanges, with the messages in them; those that are not there are none to delete.

    Raises:
        Failed: the broker refuses, or there is no way to it.
    """
    try:
        with Connection(_addresses(), name="mqtool demo") as connection:
            channel = connection.channel()
            for queue in queues:
                administration.delete_queue(channel, queue)
            for exchange in exchanges:
                administration.delete_exchange(channel, exchange)
    except MqtoolError as error:
        names = ", ".join([*queues, *exchanges])
        raise Failed(f"cannot remove {names} of an earlier demonstration: {error}") from error
