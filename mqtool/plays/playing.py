"""Playing a play: on a broker of its own, or on one that others use too."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mqtool.amqp import Connection, parse_addresses
from mqtool.errors import MqtoolError
from mqtool.plays.removal import remove
from mqtool.stage.audience import Audience
from mqtool.stage.guard import Guard
from mqtool.stage.stage import APART, Place, Play, Stage, undisturbed
from mqtool.stage.waiting import NotSo, wait_until

_START_PATIENCE = 15.0


def perform(play: Play, audience: Audience, guard: Guard, url: str | None = None, directory: Path | None = None) -> int:
    """Play it, and leave nothing behind; return how many checks have passed.

    Args:
        guard: ends what runs if we are killed.
        url: the broker; None for an embedded one that lives as long as the play.
        directory: where commands write; None for one that lives as long as the play.

    Raises:
        NotSo: something was not as it must be.
        MqtoolError: there is no way to the broker.
    """
    with tempfile.TemporaryDirectory(prefix="mqtool-tutorial-") as name:
        scratch = Path(name)
        home = directory or scratch / "home"
        home.mkdir(exist_ok=True)
        with (
            _embedded_broker(scratch, guard) if url is None else _cleared(play, url) as broker_url,
            Stage(audience, Place(home, scratch, {"MQTOOL_URL": broker_url}, url is not None, guard)) as stage,
        ):
            play.play(stage)
        return stage.checks


@contextmanager
def _embedded_broker(scratch: Path, guard: Guard) -> Iterator[str]:
    """The URL of a broker that keeps nothing. A process of its own: what is measured on it must not wait for us."""
    ready, log = scratch / "broker.ready", scratch / "broker.log"
    with log.open("wb") as output:
        broker = subprocess.Popen(
            [sys.executable, "-m", "mqtool.broker.embedded", "--port", "0", "--in-memory", "--ready-file", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    guard.started(broker.pid)
    try:
        wait_until(
            lambda: ready.exists() or broker.poll() is not None, lambda: "the embedded broker to start", _START_PATIENCE
        )
        if not ready.exists():
            raise NotSo(f"the embedded broker does not start: {log.read_text('utf-8', 'replace').strip()[-300:]}")
        yield ready.read_text().split()[0]
    finally:
        with undisturbed():
            broker.kill()  # it keeps nothing that could be damaged
            guard.ended(broker.pid)
            broker.wait()


@contextmanager
def _cleared(play: Play, url: str) -> Iterator[str]:
    """The URL of a broker without any traces of the play, before and after."""
    addresses = parse_addresses(url)
    Connection(addresses).close()
    queues, exchanges = ([APART + name for name in names] for names in (play.queues, play.exchanges))
    remove(addresses, queues, exchanges)
    try:
        yield url
    except BaseException:
        with undisturbed(), contextlib.suppress(MqtoolError):  # what went wrong first is what counts
            remove(addresses, queues, exchanges)
        raise
    with undisturbed():
        remove(addresses, queues, exchanges)
