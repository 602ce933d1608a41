"""Faults of messages: refused, unroutable, confirmed late or never, delivered again, and consumers cancelled."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.virtual_host import Routing
from mqtool.broker.embedded.testing.fault import Fault, Scene


@dataclass
class NackPublishes(Fault):
    """The next messages to a queue are refused with a nack, and are not in it."""

    queue: str
    count: int = 1

    def publishing(self, routing: Routing) -> bool:
        """Refuse it if it goes to the queue."""
        if self.used_up or all(queue.name != self.queue for queue in routing.queues):
            return False
        self.count -= 1
        self.used_up = self.count <= 0
        routing.queues = [queue for queue in routing.queues if queue.name != self.queue]
        return True


@dataclass
class ReturnUnroutable(Fault):
    """The next messages go to no queue: those published as mandatory are returned, others are dropped."""

    count: int = 1

    def publishing(self, routing: Routing) -> bool:
        """Let it go nowhere."""
        if not self.used_up:
            self.count -= 1
            self.used_up = self.count <= 0
            routing.queues = []
        return False


@dataclass
class DelayConfirms(Fault):
    """Publishers get their confirms late; or, without a time, only when this is undone."""

    seconds: float | None = None
    _call_later: Callable[[float, Callable[[], object]], object] | None = field(default=None, init=False, repr=False)
    _kept: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False)

    def begin(self, scene: Scene) -> int:
        """Keep them from now on."""
        self._call_later = scene.call_later
        return 0

    def confirming(self, data: bytes, send: Callable[[bytes], None]) -> bool:
        """Keep them for now."""
        self._kept.append(lambda: send(data))
        if self.seconds is not None and self._call_later is not None:
            self._call_later(self.seconds, self._send_next)
        return True

    def _send_next(self) -> None:
        if self._kept:
            self._kept.pop(0)()

    def end(self, scene: Scene) -> None:  # noqa: ARG002
        """Send what was kept."""
        while self._kept:
            self._send_next()


@dataclass
class LoseAcks(Fault):
    """The next acknowledgements are lost: the messages go back to their queue, and come again as redelivered."""

    count: int = 1
    queue: str | None = None

    def acknowledging(self, queue: Queue) -> bool:
        """Lose it if it is for the queue."""
        if self.used_up or self.queue not in (None, queue.name):
            return False
        self.count -= 1
        self.used_up = self.count <= 0
        return True


@dataclass
class CancelConsumers(Fault):
    """The broker cancels all consumers of a queue, as RabbitMQ does when its leader moves."""

    lasts: ClassVar[bool] = False
    queue: str

    def begin(self, scene: Scene) -> int:
        """Cancel them."""
        queues = [vhost.queues[self.queue] for vhost in scene.broker.vhosts.values() if self.queue in vhost.queues]
        cancelled = [(queue, consumer) for queue in queues for consumer in list(queue.consumers)]
        for queue, consumer in cancelled:
            queue.remove_consumer(consumer)
            consumer.cancelled()
        return len(cancelled)
