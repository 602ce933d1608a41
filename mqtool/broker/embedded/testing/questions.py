"""The API for tests in Python: methods that query a broker's messages, and methods that inject faults."""

import asyncio
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

from mqtool.broker.embedded.testing.connection_faults import (
    BlockPublishers,
    CloseChannels,
    CloseConnections,
    CutConnections,
    GoSilent,
    RefuseConnections,
    Restart,
    SlowDown,
)
from mqtool.broker.embedded.testing.fault import (
    CancelConsumers,
    DelayConfirms,
    Fault,
    LoseAcks,
    NackPublishes,
    ReturnUnroutable,
    checked,
)
from mqtool.broker.embedded.testing.traffic import Messages
from mqtool.broker.embedded.testing.under_test import BrokerUnderTest

#: How many seconds a query waits for the expected messages by default. A busy machine may stand still for two or three.
TIMEOUT = 10.0

_INTERVAL = 0.005
T = TypeVar("T")


class QueueQuestions:
    """Queries about one queue. The `repr` describes the queue's state."""

    def __init__(self, questions: "Questions", name: str) -> None:
        self._questions = questions
        self.name = name

    def messages(self, count: int = 1, timeout: float = TIMEOUT) -> Messages:
        """Return the messages that are ready in the queue.

        Args:
            count: wait until the queue has this many messages.
            timeout: maximum wait in seconds. After this time, return the messages found so far.
        """
        return self._questions.wait_for_count(lambda broker, vhost: broker.ready(vhost, self.name), count, timeout)

    def _happened(self, what: str) -> Messages:
        return self._questions.now(lambda broker, vhost: broker.settled(what, vhost, self.name))

    @property
    def acked(self) -> Messages:
        """The messages acknowledged so far, including automatic acknowledgements."""
        return self._happened("acked")

    @property
    def rejected(self) -> Messages:
        """The messages rejected so far and not requeued."""
        return self._happened("rejected")

    @property
    def requeued(self) -> Messages:
        """The messages that clients have requeued so far."""
        return self._happened("requeued")

    def __repr__(self) -> str:
        return f"<queue {self.name!r}: {self._questions.now(lambda broker, vhost: broker.state(vhost, self.name))}>"


class Questions(ABC):
    """Queries about a virtual host of a broker. The broker must have been started with the setting `recording`.

    On an event loop, queries do not wait for messages: use `await until(...)` there.
    """

    _waiting = False

    @abstractmethod
    def now(self, ask: Callable[[BrokerUnderTest, str], T]) -> T:
        """Call `ask` with the broker and the name of the virtual host, on the broker's event loop."""

    def wait_for_count(self, ask: Callable[[BrokerUnderTest, str], Messages], count: int, timeout: float) -> Messages:
        """Repeat a query until it finds `count` messages or the timeout expires, and return its last result."""
        deadline = time.monotonic() + timeout
        found = self.now(ask)
        while len(found) < count and not self._waiting and not _on_event_loop() and time.monotonic() < deadline:
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
        """Return the messages that clients have published.

        Args:
            exchange, routing_key: only messages published to this exchange, with this routing key; None for any.
            queue: only messages routed to this queue.
            count: wait until this many messages have been published.
            timeout: maximum wait in seconds; use 0 to check that no message was published.
        """
        return self.wait_for_count(
            lambda broker, vhost: broker.recording.find(
                "published", vhost, queue=queue, exchange=exchange, routing_key=routing_key
            ),
            count,
            timeout,
        )

    @property
    def unrouted(self) -> Messages:
        """The messages published so far that were not routed to any queue."""
        return self.now(lambda broker, vhost: broker.recording.find("unrouted", vhost))

    def queue(self, name: str) -> QueueQuestions:
        """Return an object for queries about a queue."""
        return QueueQuestions(self, name)

    def wait_for(self, condition: Callable[[], T], timeout: float = TIMEOUT) -> T:
        """Call a function until it returns a true value, and return this value. Queries in the function do not wait.

        Raises:
            AssertionError: the timeout expired; the error shows the latest events.
            RuntimeError: called on an event loop, where until() must be used instead.
            TypeError: the function is async.
        """
        if _on_event_loop():
            raise RuntimeError("wait_for() would hold up the event loop: await until() instead")
        deadline = time.monotonic() + timeout
        while not (result := self._asked(condition)):
            self._check(deadline, timeout)
            time.sleep(_INTERVAL)
        return result

    async def until(self, condition: Callable[[], T], timeout: float = TIMEOUT) -> T:
        """Wait like wait_for(), but without blocking the event loop.

        Raises:
            AssertionError: the timeout expired; the error shows the latest events.
            TypeError: the function is async.
        """
        deadline = time.monotonic() + timeout
        while not (result := self._asked(condition)):
            self._check(deadline, timeout)
            await asyncio.sleep(_INTERVAL)
        return result

    def _asked(self, condition: Callable[[], T]) -> T:
        self._waiting = True
        try:
            result = condition()
        finally:
            self._waiting = False
        if inspect.iscoroutine(result):
            result.close()  # otherwise Python warns that it was never awaited
            raise TypeError(
                "the condition is an async function, whose result is a coroutine, and that is always true: "
                "pass a function without `async`, such as a lambda that asks the broker"
            )
        return result

    def _check(self, deadline: float, timeout: float) -> None:
        if time.monotonic() > deadline:
            happened = self.now(lambda broker, vhost: broker.describe(vhost))
            raise AssertionError(f"not within {timeout:g} s; {happened}")

    def reset(self) -> None:
        """Undo all faults, purge the queues and clear the recording. Queues, bindings and consumers stay.

        As in RabbitMQ, purging does not remove unacknowledged messages, which are requeued when the consumer's channel
        closes. Therefore, close the connections of the program under test first.
        """
        self.now(lambda broker, vhost: broker.reset(vhost))


def _on_event_loop() -> bool:
    """Return True if the caller runs on an event loop, which must not be blocked."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class AskBroker(Protocol):
    """A function, such as EmbeddedBroker.under_test(), that calls `ask` on the broker's event loop."""

    def __call__(self, ask: Callable[[BrokerUnderTest], T], /) -> T: ...


class BegunFault:
    """An injected fault. It ends when the `with` block or the test ends, when its time is up, or when undo() is called.

    Attributes:
        met: how many connections, channels or consumers the fault affected.
    """

    def __init__(self, faults: "Faults", number: int, met: int) -> None:
        self._faults = faults
        self._number = number
        self.met = met

    def undo(self) -> None:
        """End the fault, if it is active."""
        self._faults.undo(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


class Faults:
    """Methods that inject faults into a broker. They can be called from any thread."""

    def __init__(self, ask: AskBroker) -> None:
        self._ask = ask

    def begin(self, fault: Fault) -> BegunFault:
        started = checked(fault)
        return BegunFault(self, *self._ask(lambda broker: broker.begin(started)))

    def undo(self, number: int) -> None:
        """End the fault with this number, if it is active."""
        self._ask(lambda broker: broker.undo(number))

    def clear(self) -> None:
        """End all faults."""
        self._ask(lambda broker: broker.clear())

    def in_force(self) -> list[dict[str, Any]]:
        """Return the active faults, with their ids, names and arguments."""
        return self._ask(lambda broker: broker.faults())

    def cut_connections(self, name: str | None = None, *, reset: bool = True) -> int:
        """Close the sockets of connections without sending connection.close. Return the number of connections.

        Args:
            name: only connections whose name matches this pattern, such as `orders-*`. The name can be the one that the
                client chose, or RabbitMQ's `HOST:PORT -> HOST:PORT`.
            reset: True to send a TCP RST, False to send a FIN.
        """
        return self.begin(CutConnections(name, reset)).met

    def close_connections(
        self, code: int = 320, text: str = "CONNECTION_FORCED - Closed by a test", name: str | None = None
    ) -> int:
        """Close connections with a reply code and text. Return the number of connections."""
        return self.begin(CloseConnections(code, text, name)).met

    def close_channels(
        self, code: int = 406, text: str = "PRECONDITION_FAILED - Closed by a test", name: str | None = None
    ) -> int:
        """Close channels with a reply code and text. Return the number of channels."""
        return self.begin(CloseChannels(code, text, name)).met

    def refuse_connections(self, seconds: float | None = None) -> BegunFault:
        """Refuse new connections for this many seconds; None means until the fault is undone."""
        return self.begin(RefuseConnections(seconds))

    def go_silent(self, seconds: float | None = None) -> BegunFault:
        """Make the broker hang (read and send nothing) for this many seconds; None means until the fault is undone."""
        return self.begin(GoSilent(seconds))

    def slow_down(self, seconds: float = 0.1) -> BegunFault:
        """Delay everything that the broker sends by this many seconds, until the fault is undone."""
        return self.begin(SlowDown(seconds))

    def block_publishers(self, reason: str = "low on memory", seconds: float | None = None) -> BegunFault:
        """Block publishers (connection.blocked) for this many seconds; None means until the fault is undone."""
        return self.begin(BlockPublishers(reason, seconds))

    def restart(self, seconds: float = 0.0, *, keep_transient: bool = False) -> BegunFault:
        """Simulate a restart: close all connections, then listen on the same ports again.

        Args:
            seconds: refuse new connections for this long.
            keep_transient: keep transient queues, exchanges and messages, which are otherwise lost.
        """
        return self.begin(Restart(seconds, keep_transient))

    def nack_publishes(self, queue: str, count: int = 1) -> BegunFault:
        """Reject the next `count` messages published to a queue, and send basic.nack to the publisher.

        The queue need not exist yet.

        Raises:
            ValueError: the queue does not exist, and its name looks like a misspelling of an existing queue's name.
        """
        return self.begin(NackPublishes(queue, count))

    def return_unroutable(self, count: int = 1) -> BegunFault:
        """Make the next `count` messages unroutable: mandatory messages are returned, others are dropped."""
        return self.begin(ReturnUnroutable(count))

    def delay_confirms(self, seconds: float | None = None) -> BegunFault:
        """Delay publisher confirms by this many seconds; None holds them back until the fault is undone."""
        return self.begin(DelayConfirms(seconds))

    def lose_acks(self, count: int = 1, queue: str | None = None) -> BegunFault:
        """Ignore the next `count` acknowledgements for a queue (any queue if None), and redeliver the messages.

        The queue need not exist yet.

        Raises:
            ValueError: the queue does not exist, and its name looks like a misspelling of an existing queue's name.
        """
        return self.begin(LoseAcks(count, queue))

    def cancel_consumers(self, queue: str) -> int:
        """Cancel all consumers of a queue. Return the number of consumers.

        Raises:
            ValueError: the queue does not exist.
        """
        return self.begin(CancelConsumers(queue)).met
