"""Performing a play, on a broker of its own or on one that others use too."""

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mqtool.amqp import Connection, administration, parse_addresses
from mqtool.broker import embedded_starter, ports
from mqtool.broker.embedded.settings import Settings
from mqtool.errors import MqtoolError
from mqtool.stage.stage import APART, Play, Stage, undisturbed
from mqtool.stage.terminal import Audience, Guard, Place


def perform(play: Play, audience: Audience, guard: Guard, url: str | None = None, directory: Path | None = None) -> int:
    """Perform it, and leave nothing behind; return how many checks passed.

    Args:
        guard: ends what runs if we are killed.
        url: the broker; None for an embedded one that is the play's own.
        directory: where commands write; None for a temporary one.

    Raises:
        CheckFailed: a check failed.
        MqtoolError: the broker cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="mqtool-tutorial-") as name:
        scratch = Path(name)
        home = directory or scratch / "home"
        home.mkdir(exist_ok=True)
        stream_port = ports.free_port() if play.has_streams and url is None else None
        with (
            embedded_broker(scratch / "broker", guard, stream_port)
            if url is None
            else _cleared(play, url) as broker_url,
            Stage(audience, Place(home, scratch, broker_url, url is not None, guard, stream_port)) as stage,
        ):
            play.play(stage)
        return stage.checks


@contextmanager
def embedded_broker(directory: Path, guard: Guard, stream_port: int | None = None) -> Iterator[str]:
    """The URL of a broker that keeps nothing, in a process of its own so that measurements do not wait for us.

    Args:
        directory: for its files; it is made.
        guard: ends it if we are killed.
        stream_port: for the stream protocol; None for none.
    """
    directory.mkdir()
    broker = embedded_starter.launch(directory, Settings(port=0, stream_port=stream_port))
    guard.started(broker.pid)
    try:
        yield embedded_starter.wait_until_ready(broker, directory)[0]
    finally:
        with undisturbed():
            broker.kill()  # it has no data to damage
            guard.ended(broker.pid)
            broker.wait()


@contextmanager
def _cleared(play: Play, url: str) -> Iterator[str]:
    """The broker's URL; what the play declares is removed before and after."""
    _remove(play, url)
    try:
        yield url
    except BaseException:
        with undisturbed(), contextlib.suppress(MqtoolError):  # report the first error
            _remove(play, url)
        raise
    with undisturbed():
        _remove(play, url)


def _remove(play: Play, url: str) -> None:
    """Delete what a play declares, with its messages, from a broker that others use.

    Raises:
        MqtoolError: the broker cannot be used, or refuses.
    """
    with Connection(parse_addresses(url), name="mqtool tutorial") as connection:
        channel = connection.channel()
        try:
            for queue in play.queues:
                administration.delete_queue(channel, APART + queue)
            for exchange in play.exchanges:
                administration.delete_exchange(channel, APART + exchange)
        except MqtoolError as error:
            names = ", ".join(APART + name for name in (*play.queues, *play.exchanges))
            raise MqtoolError(f"cannot remove {names} from the broker: {error}") from error
