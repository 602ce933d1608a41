"""Replays a recording to a test's broker.

    def test_incident(amqp_vhost):
        app.start(amqp_vhost.url)                 # declares its exchanges and queues
        replay(amqp_vhost, "incident.ndjson")     # sends the recorded messages

replay() declares nothing: the program under test must declare exchanges and queues. Each message is held until it can
be routed.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from mqtool.broker.embedded.testing.replay_client import ReplayClient
from mqtool.errors import MqtoolError, Unavailable
from mqtool.recordings.recording import Changes, RecordedMessage, ReplayPace, Selection, recorded
from mqtool.where import parse

#: Seconds between attempts to route a message.
_LOOK = 0.02


class HasUrl(Protocol):
    """Any object with an AMQP URL, such as an EmbeddedBroker or a Vhost."""

    @property
    def url(self) -> str: ...


def replay(
    broker: HasUrl | str,
    path: str | Path,
    *,
    speed: float | Literal["max"] = "max",
    where: str | None = None,
    patience: float = 10.0,
) -> int:
    """Publish the messages of a recording to the exchanges named in it, and wait until all are confirmed.

    Args:
        broker: an AMQP URL, or an object with a `url`.
        path: the recording.
        speed: the speed as a multiple of the recorded speed; "max" publishes without pauses.
        where: a condition as for `--where`; only matching messages are published.
        patience: how many seconds to wait until a message can be routed, as the tested program may still be starting.

    Returns:
        The number of messages.

    Raises:
        BadData: a line is not a message.
        Unavailable: a message could not be routed in time.
    """
    return _Replay(broker, Path(path), speed, where, patience).run()


@contextmanager
def replaying(broker: HasUrl | str, path: str | Path, **how: Any) -> Iterator[None]:
    """Replay in a thread until the `with` block ends. Takes replay()'s arguments; raises its errors at the end."""
    going = _Replay(broker, Path(path), **how)
    failures: list[MqtoolError] = []

    def run() -> None:
        try:
            going.run()
        except MqtoolError as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="amqp-recording", daemon=True)
    thread.start()
    try:
        yield
    finally:
        going.stopped.set()
        thread.join()
    if failures:
        raise failures[0]


class _Replay:
    """One replay of a file.

    Attributes:
        stopped: set it to end the replay early.
    """

    def __init__(
        self,
        broker: HasUrl | str,
        path: Path,
        speed: float | Literal["max"] = "max",
        where: str | None = None,
        patience: float = 10.0,
    ) -> None:
        self.stopped = threading.Event()
        self._url = broker if isinstance(broker, str) else broker.url
        self._path = path
        self._lines = path.read_bytes().splitlines()
        self._selection = Selection(where=None if where is None else parse(where))
        self._pace = ReplayPace(float("inf") if speed == "max" else speed)
        self._patience = patience
        #: Pairs of exchange and routing key known to lead to a queue.
        self._routed: set[tuple[str | None, str | None]] = set()
        self._exchanges: set[str] = set()
        self._count = 0

    def run(self) -> int:
        with closing(ReplayClient(self._url, self.stopped)) as client:
            for is_routed, messages in groupby(self._due(), key=self._is_routed):
                # Even these may be unroutable now: a queue may have been deleted, or bound to a headers exchange.
                for message in client.publish(messages) if is_routed else messages:
                    self._publish(message, client)
        return self._count

    def _is_routed(self, message: RecordedMessage) -> bool:
        return (message.exchange, message.routing_key) in self._routed

    def _due(self) -> Iterator[RecordedMessage]:
        for message in recorded(self._lines, self._selection, Changes(), str(self._path)):
            if message is not None:
                left = self._pace.due(message) - time.monotonic()
                if self.stopped.wait(left) if left > 0 else self.stopped.is_set():
                    return
                self._count += 1
                yield message

    def _publish(self, message: Any, client: ReplayClient) -> None:
        """Publish a message, and retry until it is routed. Later messages wait, to keep the order."""
        deadline = time.monotonic() + self._patience
        while True:
            why = self._missing(message.exchange, client)
            if why is None:
                if not client.publish([message]):
                    self._routed.add((message.exchange, message.routing_key))
                    return
                why = f"no queue gets routing key {message.routing_key!r} from exchange {message.exchange!r}"
                if not message.exchange:
                    why = f"queue {message.routing_key!r} does not exist"
            if time.monotonic() > deadline or self.stopped.wait(_LOOK):
                raise Unavailable(f"a message of {self._path} went nowhere: {why}")

    def _missing(self, exchange: str, client: ReplayClient) -> str | None:
        """Return an error message if an exchange does not exist; otherwise None."""
        if exchange and exchange not in self._exchanges:
            if not client.has_exchange(exchange):
                return f"exchange {exchange!r} does not exist"
            self._exchanges.add(exchange)
        return None
