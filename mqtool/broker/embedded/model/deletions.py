"""Deletes queues and exchanges with many bindings in turns, so that other clients are served meanwhile."""

from collections.abc import Callable, Generator, Iterable, Iterator

from mqtool.broker.embedded.model.clock import Clock, TurnQueue
from mqtool.broker.embedded.model.exchange import BrokerBinding, BrokerExchange
from mqtool.broker.embedded.model.queue import BrokerQueue

#: The maximum number of bindings that are removed at once.
_AT_ONCE = 20

QueueOrExchange = BrokerQueue | BrokerExchange


class Deletions:
    """Deletes the queues and exchanges of a virtual host.

    Args:
        unbind: removes a binding.
        delete_queue: deletes a queue, and returns how many messages were in it; 0 if it has been deleted before.
        delete_exchange: deletes an exchange, unless it has been deleted before.
    """

    def __init__(
        self,
        clock: Clock,
        unbind: Callable[[BrokerBinding], object],
        delete_queue: Callable[[BrokerQueue], int],
        delete_exchange: Callable[[BrokerExchange], object],
    ) -> None:
        self._unbind = unbind
        self._delete_queue = delete_queue
        self._delete_exchange = delete_exchange
        self._waiting: TurnQueue[Iterator[None]] = TurnQueue(clock, self._go_on)

    def soon(self, end: QueueOrExchange) -> None:
        """Delete a queue or an exchange: at once if that is quick, otherwise in turns."""
        self._waiting.add(self.steps(end))

    def _go_on(self, steps: Iterator[None]) -> None:
        for _ in steps:
            self._waiting.add(steps)
            break

    def steps(self, end: QueueOrExchange) -> Generator[None, None, int]:
        """Delete a queue or an exchange in short steps: its bindings, a few in each, then the rest in the last one.

        Returns what `delete_queue` does; 0 for an exchange.
        """
        yield from self._unbinding(end)
        if isinstance(end, BrokerQueue):
            return self._delete_queue(end)
        self._delete_exchange(end)
        return 0

    def of_all(self, queues: Iterable[BrokerQueue], exchanges: Iterable[BrokerExchange]) -> Iterator[None]:
        """Delete queues, and the bindings of exchanges, in short steps."""
        for queue in queues:
            yield from self.steps(queue)
            yield
        for exchange in exchanges:
            yield from self._unbinding(exchange)

    def _unbinding(self, end: QueueOrExchange) -> Iterator[None]:
        while bindings := [*end.inbound, *(end.bindings if isinstance(end, BrokerExchange) else ())]:
            while bindings:
                self._unbind(bindings.pop())
                if len(bindings) % _AT_ONCE == 0:
                    yield
