"""What a test asks: what was published, what became of it, and whether something comes true in time."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from mqtool.broker.embedded.testing.bench import Bench
from mqtool.broker.embedded.testing.calls import on_a_loop
from mqtool.broker.embedded.testing.recording import Messages

TIMEOUT = 2.0
"""How long a question waits for its answer by default, in seconds."""

_INTERVAL = 0.005
T = TypeVar("T")


class QueueQuestions:
    """One queue; `repr` says what it holds."""

    def __init__(self, questions: "Questions", name: str) -> None:
        self._questions = questions
        self.name = name

    def messages(self, count: int = 1, timeout: float = TIMEOUT) -> Messages:
        """Return the messages that are ready in it, once there are this many or the time is up."""
        return self._questions.wait_for_count(lambda bench, vhost: bench.ready(vhost, self.name), count, timeout)

    def _happened(self, what: str) -> Messages:
        return self._questions.now(lambda bench, vhost: bench.recording.find(what, vhost, queue=self.name))

    @property
    def acked(self) -> Messages:
        """The messages acknowledged so far, also automatically."""
        return self._happened("acked")

    @property
    def rejected(self) -> Messages:
        """The messages rejected so far, and not requeued."""
        return self._happened("rejected")

    @property
    def requeued(self) -> Messages:
        """The messages that clients have put back so far."""
        return self._happened("requeued")

    def __repr__(self) -> str:
        return f"<queue {self.name!r}: {self._questions.now(lambda bench, vhost: bench.state(vhost, self.name))}>"


class Questions(ABC):
    """A virtual host of a broker that records what happens.

    On an event loop nothing waits: there, `await until(…)` does.
    """

    _waiting = False

    @abstractmethod
    def now(self, ask: Callable[[Bench, str], T]) -> T:
        """Ask the broker, about a virtual host."""

    def wait_for_count(self, ask: Callable[[Bench, str], Messages], count: int, timeout: float) -> Messages:
        """Ask until there are this many messages, or the time is up; returns the last answer."""
        deadline = time.monotonic() + timeout
        found = self.now(ask)
        while len(found) < count and not self._waiting and not on_a_loop() and time.monotonic() < deadline:
            time.sleep(_INTERVAL)
            found = self.now(ask)
        return found

    def published(
        self,
        exchange: str | None = None,
        routing_key: str | None = None,
        *,
        queue: str | None = None,
        count: int = 1,
        timeout: float = TIMEOUT,
    ) -> Messages:
        """Return what clients have published, once there are this many messages or the time is up.

        Args:
            exchange, routing_key: only what was published there; None for any.
            queue: only what was routed to this queue.
            count: how many messages to wait for.
            timeout: how long at most, in seconds; 0 to say that something was not published.
        """
        return self.wait_for_count(
            lambda bench, vhost: bench.recording.find(
                "published", vhost, queue=queue, exchange=exchange, routing_key=routing_key
            ),
            count,
            timeout,
        )

    @property
    def unrouted(self) -> Messages:
        """The messages published so far that were routed to no queue."""
        return self.now(lambda bench, vhost: bench.recording.find("unrouted", vhost))

    def queue(self, name: str) -> QueueQuestions:
        """Return a queue to ask about."""
        return QueueQuestions(self, name)

    def wait_for(self, condition: Callable[[], T], timeout: float = TIMEOUT) -> T:
        """Wait until a condition holds, and return what it returned. No question in it waits by itself.

        Raises:
            AssertionError: the time is up; says what did happen.
            RuntimeError: called on an event loop.
        """
        if on_a_loop():
            raise RuntimeError("wait_for() would hold up the event loop: await until() instead")
        deadline = time.monotonic() + timeout
        while not (result := self._asked(condition)):
            self._check(deadline, timeout)
            time.sleep(_INTERVAL)
        return result

    async def until(self, condition: Callable[[], T], timeout: float = TIMEOUT) -> T:
        """Do as wait_for() does, on an event loop.

        Raises:
            AssertionError: the time is up; says what did happen.
        """
        deadline = time.monotonic() + timeout
        while not (result := self._asked(condition)):
            self._check(deadline, timeout)
            await asyncio.sleep(_INTERVAL)
        return result

    def _asked(self, condition: Callable[[], T]) -> T:
        self._waiting = True
        try:
            return condition()
        finally:
            self._waiting = False

    def _check(self, deadline: float, timeout: float) -> None:
        if time.monotonic() > deadline:
            told = self.now(lambda bench, vhost: bench.recording.told(vhost))
            raise AssertionError(f"not within {timeout:g} s; {told}")

    def reset(self) -> None:
        """Undo the faults, purge the queues, and forget what happened. Queues, bindings and consumers stay."""
        self.now(lambda bench, vhost: bench.reset(vhost))
