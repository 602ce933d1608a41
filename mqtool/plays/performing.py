"""Performs a play, on a broker started for it or on an existing one."""

import contextlib
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mqtool.amqp import Connection, administration, parse_addresses
from mqtool.broker import embedded_starter, ports
from mqtool.broker.embedded.settings import Settings
from mqtool.errors import MqtoolError, Unavailable
from mqtool.management import Management, queue_totals
from mqtool.stage.stage import Play, Stage, undisturbed
from mqtool.stage.terminal import Audience, Guard, QueueDepth, TerminalPlace

if TYPE_CHECKING:
    from mqtool.management import Management

#: Seconds between readings of the queues' message counts.
_BETWEEN_COUNTS = 0.2


def new_prefix() -> str:
    """Make up a prefix for the names of a play's queues and exchanges on a broker that others also use.

    The prefix is random, so that the play neither uses nor deletes queues and exchanges that are not its own.
    """
    return f"demo.{secrets.token_hex(3)}."


def why_not(play: Play, url: str | None) -> Unavailable | None:
    """Return why a play cannot be performed on the broker at a URL; None if it can.

    Raises:
        MqtoolError: the broker cannot be reached.
    """
    if url is None or not play.protocol:
        return None
    from mqtool.amqp10 import LinkSession

    with _connected(url):  # else no play can be performed
        pass
    try:
        LinkSession(parse_addresses(url)).connection.close()
    except Unavailable as error:  # RabbitMQ speaks AMQP 1.0 from 4.0 on
        return error
    return None


def perform(
    play: Play,
    audience: Audience,
    guard: Guard,
    url: str | None = None,
    directory: Path | None = None,
    *,
    prefix: str | None = None,
) -> int:
    """Perform a play, and delete the queues and exchanges that it declared. Return the number of checks passed.

    Args:
        guard: kills the play's processes if mqtool is killed.
        url: URL of the broker; None for a new embedded one.
        directory: working directory of the commands; None for a temporary one.
        prefix: the prefix of the names of the play's queues and exchanges, from `new_prefix()`, if the caller has to
            know these names; None for a new prefix. Used only on the broker at `url`.
    """
    with tempfile.TemporaryDirectory(prefix="mqtool-tutorial-") as name:
        scratch = Path(name)
        home = directory or scratch / "home"
        home.mkdir(exist_ok=True)
        prefix = "" if url is None else prefix or new_prefix()
        stream_port = ports.free_port() if play.has_streams and url is None else None
        place = TerminalPlace(home, scratch, "", prefix, guard, stream_port, play.protocol)
        own = embedded_broker(scratch / "broker", guard, stream_port, **(_ports() if url is None else {}))
        with (
            own if url is None else _shared(play, url, prefix) as (broker_url, management),
            _counting(management, audience),
            Stage(audience, replace(place, url=broker_url, management=management)) as stage,
            # The audience may act on the broker only if the broker was started for this play.
            audience.on_broker(*((api_of(management), stage.place.environment) if management else (None, None))),
        ):
            play.play(stage)
        return stage.checks


def _ports() -> dict[str, int]:
    """Choose free ports for AMQP and the management API, with the usual difference of 10,000 if possible.

    Commands in other terminals then find the management API, even if they know only the broker's URL.
    """
    port = ports.free_port()
    return {"port": port, "management_port": ports.choose(None, ports.usual_management(None, port)[:1])}


def api_of(management: str) -> "Callable[[], Management]":
    """Return a function that connects to an embedded broker's management API."""

    def find() -> "Management":
        return Management(management, "guest", "guest")

    return find


@contextmanager
def _counting(management: str, audience: Audience) -> Iterator[None]:
    """Context manager: report the queues' message counts to the audience. Does nothing if `management` is empty."""
    over = threading.Event()

    def count() -> None:
        api, columns = api_of(management)(), ("name", "messages_ready", "messages_unacknowledged")
        while management and not over.wait(_BETWEEN_COUNTS):
            with contextlib.suppress(MqtoolError):  # the broker is shutting down
                audience.counted(
                    [QueueDepth(*(each[name] for name in columns)) for each in queue_totals(api, "/", columns)]
                )

    counter = threading.Thread(target=count, name="mqtool-counter", daemon=True)
    counter.start()
    try:
        yield
    finally:
        over.set()
        counter.join()


@contextmanager
def embedded_broker(
    directory: Path, guard: Guard, stream_port: int | None = None, *, port: int = 0, management_port: int = 0
) -> Iterator[tuple[str, str]]:
    """Context manager: run an embedded broker in memory. Yields its URL and the URL of its management API.

    The broker runs in its own process, so that it does not affect the times that plays measure. Port 0 means any free
    port.
    """
    directory.mkdir()
    settings = Settings(port=port, management_port=management_port, stream_port=stream_port)
    broker = embedded_starter.launch(directory, settings)
    guard.started(broker.pid)
    try:
        url, management, *_ = embedded_starter.wait_until_ready(broker, directory)
        yield url, management
    finally:
        with undisturbed():
            broker.kill()  # it stores nothing on disk
            guard.ended(broker.pid)
            broker.wait()


@contextmanager
def _shared(play: Play, url: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Context manager: delete the play's queues and exchanges on exit. Yields the URL, and "" as API URL.

    Raises:
        MqtoolError: the broker cannot be reached.
    """
    with _connected(url):
        pass  # fail before any command runs
    try:
        yield url, ""
    except BaseException:
        with undisturbed(), contextlib.suppress(MqtoolError):  # report the first error
            _remove(play, url, prefix)
        raise
    with undisturbed():
        _remove(play, url, prefix)


def _connected(url: str) -> Connection:
    return Connection(parse_addresses(url), name="mqtool tutorial")


def _remove(play: Play, url: str, prefix: str) -> None:
    """Delete a play's queues and exchanges, with their messages, from a broker that others also use."""
    with _connected(url) as connection:
        channel = connection.channel()
        try:
            for queue in play.queues:
                administration.delete_queue(channel, prefix + queue)
            for exchange in play.exchanges:
                administration.delete_exchange(channel, prefix + exchange)
        except MqtoolError as error:
            names = ", ".join(prefix + name for name in (*play.queues, *play.exchanges))
            raise MqtoolError(f"cannot remove {names} from the broker: {error}") from error
