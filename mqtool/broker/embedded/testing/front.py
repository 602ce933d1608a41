"""The faults as a test in Python has them."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from mqtool.broker.embedded.testing.bench import Bench
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
from mqtool.broker.embedded.testing.fault import Fault
from mqtool.broker.embedded.testing.message_faults import (
    CancelConsumers,
    DelayConfirms,
    LoseAcks,
    NackPublishes,
    ReturnUnroutable,
)

T = TypeVar("T")


class OnBench(Protocol):
    """What asks a broker, on its loop."""

    def __call__(self, ask: Callable[[Bench], T], /) -> T:
        """Return what it returns."""


class Begun:
    """A fault that has begun. It ends with the `with` block, with undo(), with its time, or with the test.

    Attributes:
        met: how many connections, channels or consumers it met.
    """

    def __init__(self, faults: "Faults", number: int, met: int) -> None:
        self._faults = faults
        self._number = number
        self.met = met

    def undo(self) -> None:
        """End it, if it is not over."""
        self._faults.undo(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


class Faults:
    """What can go wrong with a broker, on demand; from any thread.

    Args:
        bench: asks the broker, on its loop.
    """

    def __init__(self, bench: OnBench) -> None:
        self._bench = bench

    def begin(self, fault: Fault) -> Begun:
        """Let a fault happen."""
        begun = self._bench(lambda bench: bench.begin(fault))
        return Begun(self, begun.number, begun.met)

    def undo(self, number: int) -> None:
        """End the fault with this number, if it is in force."""
        self._bench(lambda bench: bench.undo(number))

    def clear(self) -> None:
        """End all faults."""
        self._bench(lambda bench: bench.clear())

    def in_force(self) -> list[dict[str, Any]]:
        """Return the faults in force: their ids, names and arguments."""
        return self._bench(lambda bench: bench.faults())

    # -- connections

    def cut_connections(self, name: str | None = None, *, reset: bool = True) -> int:
        """Cut connections without a word, and return how many.

        Args:
            name: only those whose name matches, such as `orders-*`: their own, or RabbitMQ's for them.
            reset: with a RST; False for a FIN.
        """
        return self.begin(CutConnections(name, reset)).met

    def close_connections(
        self, code: int = 320, text: str = "CONNECTION_FORCED - Closed by a test", name: str | None = None
    ) -> int:
        """Close connections with a code and a text, and return how many."""
        return self.begin(CloseConnections(code, text, name)).met

    def close_channels(
        self, code: int = 406, text: str = "PRECONDITION_FAILED - Closed by a test", name: str | None = None
    ) -> int:
        """Close channels with a code and a text, and return how many."""
        return self.begin(CloseChannels(code, text, name)).met

    def refuse_connections(self, seconds: float | None = None) -> Begun:
        """Refuse new connections, for this long or until undone."""
        return self.begin(RefuseConnections(seconds))

    def go_silent(self, seconds: float | None = None) -> Begun:
        """Read nothing and send nothing, not even heartbeats, for this long or until undone."""
        return self.begin(GoSilent(seconds))

    def slow_down(self, seconds: float = 0.1) -> Begun:
        """Send everything this late, until undone."""
        return self.begin(SlowDown(seconds))

    def block_publishers(self, reason: str = "low on memory", seconds: float | None = None) -> Begun:
        """Block whoever publishes (connection.blocked), for this long or until undone."""
        return self.begin(BlockPublishers(reason, seconds))

    def restart(self, seconds: float = 0.0, *, keep_transient: bool = False) -> Begun:
        """Close all connections, and come back on the same port after this long.

        Args:
            seconds: how long nobody can connect.
            keep_transient: whether transient queues, exchanges and messages survive it.
        """
        return self.begin(Restart(seconds, keep_transient))

    # -- messages

    def nack_publishes(self, queue: str, count: int = 1) -> Begun:
        """Refuse the next messages to a queue with a nack."""
        return self.begin(NackPublishes(queue, count))

    def return_unroutable(self, count: int = 1) -> Begun:
        """Route the next messages to no queue: those published as mandatory are returned."""
        return self.begin(ReturnUnroutable(count))

    def delay_confirms(self, seconds: float | None = None) -> Begun:
        """Send confirms this late; None withholds them until undone."""
        return self.begin(DelayConfirms(seconds))

    def lose_acks(self, count: int = 1, queue: str | None = None) -> Begun:
        """Lose the next acknowledgements, of one queue or of any: the messages come again as redelivered."""
        return self.begin(LoseAcks(count, queue))

    def cancel_consumers(self, queue: str) -> int:
        """Cancel all consumers of a queue, and return how many."""
        return self.begin(CancelConsumers(queue)).met
