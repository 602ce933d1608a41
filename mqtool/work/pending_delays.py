"""List and cancel delayed messages and retries that wait on the broker, or deliver them now (`mqtool delayed`)."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from typing import NamedTuple

from mqtool import management
from mqtool.amqp import Channel
from mqtool.delays.wait_queues import WaitQueue, wait_queue_of
from mqtool.errors import NotFound
from mqtool.management import Management
from mqtool.message import Delivery, Message
from mqtool.topology import DELAYED
from mqtool.work import peeking
from mqtool.work.transfer import move, name_of


class Waiting(NamedTuple):
    """A waiting message, as it is in its wait queue (`delivery`), and as it will be published when due (`message`)."""

    queue: WaitQueue
    delivery: Delivery
    message: Message


WaitingChoice = Callable[[Waiting], bool]


class WaitingMessages:
    """The waiting messages of a virtual host. `channel` must not reconnect: that would requeue them."""

    def __init__(self, channel: Channel, api: Management, vhost: str) -> None:
        self._channel = channel
        self._api = api
        self._vhost = vhost

    def queues(self) -> Iterator[tuple[WaitQueue, int]]:
        """Yield the wait queues that have messages, each with its number of messages."""
        for view in management.queues(self._api, self._vhost, ("name", "arguments")):
            queue = wait_queue_of(view)
            with suppress(NotFound):  # the queue has just expired
                if queue is not None and (count := self._channel.depth_of(queue.name)):
                    yield queue, count

    def exchanges(self) -> Iterator[tuple[str, int]]:
        """Yield the x-delayed-message exchanges that hold messages, each with its number of messages."""
        for view in management.exchanges(self._api, self._vhost, ("name", "type", "messages_delayed")):
            if view["type"] == DELAYED and (count := view.get("messages_delayed")):
                yield view["name"], count

    def messages(self, to: str | None = None) -> Generator[Waiting]:
        """Yield the messages in wait queues, shortest delay first. Closing the generator requeues them."""
        for queue in self._queues_for(to):
            with closing(peeking.peek(self._channel, queue.name, self._kind(queue))) as deliveries:
                for delivery in deliveries:
                    yield Waiting(queue, delivery, queue.original(delivery))

    def cancel(self, chosen: WaitingChoice) -> Generator[Waiting]:
        """Yield the chosen messages; delete them once all messages in their queue have been read."""
        for queue in self._queues_for(None):
            with peeking.looking(self._channel, queue.name, self._kind(queue)) as look:
                for delivery in look.messages():
                    waiting = Waiting(queue, delivery, queue.original(delivery))
                    if chosen(waiting):
                        look.remove(delivery)
                        yield waiting

    def deliver(self, chosen: WaitingChoice, left: Callable[[str], None]) -> Generator[Waiting]:
        """Publish the chosen messages to their destinations now, delete them from their wait queues, and yield each.

        Args:
            left: called with an explanation for each chosen message that stays, as its destination is not proven.
        """

        def delivered(waiting: Waiting) -> bool:
            if not chosen(waiting):
                return False
            if waiting.queue.exchange is None:
                left(
                    f"{name_of(waiting.delivery)} stays in {waiting.queue.name!r}, which says that its messages are "
                    f"for exchange {waiting.queue.to!r}: anyone who declares a queue can say that; a relay delivers it"
                )
                return False
            move(self._channel, waiting.delivery, waiting.message)
            return True

        yield from self.cancel(delivered)

    def _queues_for(self, to: str | None) -> list[WaitQueue]:
        found = [queue for queue, _ in self.queues() if to is None or queue.to == to]
        return sorted(found, key=lambda queue: (queue.seconds, queue.name))

    def _kind(self, queue: WaitQueue) -> peeking.PeekKind:
        return peeking.kind_of(self._channel, queue.name, self._api, self._vhost)
