"""The broker to play on: the one that mqtool reaches, else one that it starts for us; and leaving no traces there."""

import os
import subprocess
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from demo import interruption
from demo.failure import Failed
from demo.stage import Stage, environment
from mqtool.amqp import Address, Connection, parse_addresses
from mqtool.broker import node, state
from mqtool.broker.choice import Kind
from mqtool.errors import ExitCode

#: Seconds that a node may take to stop, if we are interrupted while it starts.
_STOP_PATIENCE = 40.0
_ANSWER_PATIENCE = 30.0


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
        # Not Docker, which might have to download an image first.
        terminal.run(f"mqtool broker up --kind {Kind.NODE if node.find_server() else Kind.EMBEDDED}")
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
        Failed: the broker refuses, or does not answer.
        MqtoolError: there is no way to the broker.
    """
    unanswered = len(queues) + len(exchanges)
    if not unanswered:
        return
    done: Future[None] = Future()

    def answered(_frame: Any) -> None:
        nonlocal unanswered
        unanswered -= 1
        if not unanswered:
            done.set_result(None)

    def closed(_channel: Any, reason: Exception) -> None:
        if not done.done():
            done.set_exception(reason)

    def delete(channel: Any) -> None:
        channel.add_on_close_callback(closed)
        for queue in queues:
            channel.queue_delete(queue, callback=answered)
        for exchange in exchanges:
            channel.exchange_delete(exchange, callback=answered)

    names = ", ".join([*queues, *exchanges])
    with Connection(_addresses(), name="mqtool demo") as connection:
        # mqtool has no command yet that deletes. On the I/O thread, where alone pika may be called.
        connection.run(lambda: (connection.open_pika_channel(delete), None)[1])
        try:
            done.result(_ANSWER_PATIENCE)
        except Exception as error:
            raise Failed(
                f"cannot remove {names} of an earlier demonstration: {error or type(error).__name__}"
            ) from error


def ignore(_: object) -> None:
    """For a callback that shall return nothing."""
