"""Replays a recording to a test's broker.

    def test_incident(amqp_vhost):
        app.start(amqp_vhost.url)                 # declares its exchanges and queues
        replay(amqp_vhost, "incident.ndjson")     # sends the recorded messages

replay() declares nothing: the program under test must declare exchanges and queues. Each message is held until it can
be routed.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

from mqtool.broker.embedded.testing.replay_client import ReplayClient
from mqtool.errors import BadData, BadExpression, MqtoolError, Unavailable, UsageError
from mqtool.recordings.recording import Changes, RecordedMessage, ReplayPace, Selection, parse_speed, recorded
from mqtool.spelling import did_you_mean
from mqtool.where import Where, parse

#: The arguments that replay() takes after the recording.
_OPTIONS = ("speed", "where", "patience")
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
    """Publish a recording's messages to the exchanges named in it, and wait until all messages are confirmed.

    Args:
        broker: an AMQP URL, or an object with a `url`.
        path: the recording.
        speed: a multiple of the recorded speed; "max" publishes without pauses.
        where: a condition, as for `--where`; only matching messages are published.
        patience: maximum wait in seconds until a message can be routed, for example while the program under test is
            starting.

    Returns:
        The number of published messages.

    Raises:
        BadData: a line is not a message, the recording has no messages, or no message matches `where`.
        MqtoolError: an argument is not valid.
        Unavailable: a message could not be routed in time.
    """
    return _Replay(broker, Path(path), speed, where, patience).run()


def check_names(options: Mapping[str, Any]) -> None:
    """Raise UsageError if any of these names is not an argument of replay()."""
    for name in options:
        if name not in _OPTIONS:
            raise UsageError(
                f"unknown argument {name!r}", did_you_mean(name, _OPTIONS, f"one of {', '.join(_OPTIONS)}")
            )


def explained(error: MqtoolError) -> str:
    """Return an error as the command line shows it: its text, the condition with a mark, and the hint."""
    lines = [str(error)]
    if isinstance(error, BadExpression):
        lines += [f"  {error.text}", f"  {' ' * (error.column - 1)}^"]
    if error.hint:
        lines.append(f"hint: {error.hint}")
    return "\n".join(lines)


@contextmanager
def replaying(broker: HasUrl | str, path: str | Path, **how: Any) -> Iterator[None]:
    """Replay a recording in a thread until the `with` block ends. Takes the arguments of replay().

    Raises the errors of replay(): immediately, if an argument is not valid or the recording has no messages; at the end
    of the block, if the replay failed.
    """
    going = _Replay(broker, Path(path), **how)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            going.run()
        except BaseException as error:  # raised in the caller's thread
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


def _condition(where: object) -> Where | None:
    if where is None:
        return None
    if not isinstance(where, str):
        raise UsageError(f"where must be a condition such as \"routing_key='a'\", not {where!r}")
    return parse(where)


def _speed(speed: object) -> float:
    try:
        return parse_speed(str(speed))
    except ValueError as error:
        raise UsageError(f"speed: {error}") from error


def _seconds(patience: object) -> float:
    if isinstance(patience, bool) or not isinstance(patience, int | float) or not patience >= 0:
        raise UsageError(f"patience must be a number of seconds, at least 0, not {patience!r}")
    return patience


class _Replay:
    """One replay of a file.

    Attributes:
        stopped: an event; if it is set, the replay ends early.
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
        self._where = _condition(where)
        self._pace = ReplayPace(_speed(speed))
        self._patience = _seconds(patience)
        self._check_messages()
        #: Pairs of exchange and routing key known to lead to a queue.
        self._routed: set[tuple[str | None, str | None]] = set()
        self._exchanges: set[str] = set()
        self._count = 0

    def _check_messages(self) -> None:
        """Raise BadData if there is nothing to replay: a test that receives nothing would pass by accident."""
        if next(self._messages(self._where), None) is not None:
            return
        if self._where is not None and next(self._messages(None), None) is not None:
            raise BadData(f"no message of {self._path} matches {self._where.text!r}")
        raise BadData(f"{self._path} has no messages")

    def _messages(self, where: Where | None) -> Iterator[RecordedMessage]:
        found = recorded(self._lines, Selection(where=where), Changes(), str(self._path))
        return (message for message in found if message is not None)

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
        for message in self._messages(self._where):
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
                why = f"exchange {message.exchange!r} has no binding for routing key {message.routing_key!r}"
                if not message.exchange:
                    why = f"queue {message.routing_key!r} does not exist"
            if time.monotonic() > deadline or self.stopped.wait(_LOOK):
                raise Unavailable(f"a message of {self._path} could not be routed: {why}")

    def _missing(self, exchange: str, client: ReplayClient) -> str | None:
        """Return an error message if an exchange does not exist; otherwise None."""
        if exchange and exchange not in self._exchanges:
            if not client.has_exchange(exchange):
                return f"exchange {exchange!r} does not exist"
            self._exchanges.add(exchange)
        return None
