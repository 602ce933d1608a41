"""List and cancel delayed messages and retries that wait on the broker, or deliver them now (`mqtool delayed`)."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from mqtool import management
from mqtool.amqp import Channel, administration
from mqtool.delays.wait_queues import WaitQueue, wait_queue_of
from mqtool.errors import AccessRefused, BadData, HeadersTooLarge, MqtoolError, NotConfirmed, NotFound
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.message import Delivery, Message
from mqtool.topology import DELAYED, Queue
from mqtool.work import history, peeking
from mqtool.work.transfer import NotMoved, move, name_of


class Exclusive(MqtoolError):
    """A queue is exclusive to a connection of another client, so nobody else can receive its messages."""


class Waiting(NamedTuple):
    """A waiting message, as it is in its wait queue (`delivery`), and as it will be published when due (`message`).

    Attributes:
        is_behind: True if it may arrive after it is due, because it is behind messages that are due later.
    """

    queue: WaitQueue
    delivery: Delivery
    message: Message
    is_behind: bool = False


WaitingChoice = Callable[[Waiting], bool]


class WaitingMessages:
    """The waiting messages of a virtual host. `channel` must not reconnect: that would requeue them.

    Args:
        skipped: called with the name of each wait queue whose messages could not be received or requeued, and the
            reason. Anyone may have declared a queue with such a name, or consume from it.
    """

    def __init__(
        self, channel: Channel, api: Management, vhost: str, skipped: Callable[[str, MqtoolError], None]
    ) -> None:
        self._channel = channel
        self._api = api
        self._vhost = vhost
        self._skipped = skipped
        self._holds_messages = self._stopping = False

    def queues(self) -> Iterator[tuple[WaitQueue, int]]:
        """Yield the wait queues that have messages, each with its number of messages."""
        for queue, view in self._wait_queues():
            if view.get("exclusive"):
                self._skipped(queue.name, Exclusive("it is exclusive to another connection"))
                continue
            count = 0
            with self._skipping(queue):
                count = self._channel.depth_of(queue.name)
            if count:
                yield queue, count

    def held(self) -> Iterator[tuple[WaitQueue, int]]:
        """Yield the wait queues with messages that are due, and their number, which may be some seconds old.

        A wait queue holds such messages until their destination accepts them. No client can receive them.
        """
        for queue, view in self._wait_queues():
            if count := view.get("messages_dlx"):
                yield queue, count

    def _wait_queues(self) -> Iterator[tuple[WaitQueue, Json]]:
        """Yield each wait queue, also as the management API describes it."""
        columns = ("name", "arguments", "durable", "exclusive", "type", "messages_dlx")
        views = {view["name"]: view for view in management.queues(self._api, self._vhost, columns)}

        @cache
        def onward(exchange: str) -> set[Any]:
            columns = ("destination", "destination_type")
            try:
                bound = [*management.bindings_from(self._api, self._vhost, exchange, columns)]
            except NotFound:
                return set()
            to = [(each["destination"], each["destination_type"] == "exchange") for each in bound]
            return {name if is_exchange else self._dead_letters_to(views.get(name)) for name, is_exchange in to}

        for view in views.values():
            if view["name"].startswith("mqtool.amq."):  # a name that proves nothing: see wait_queue_of()
                proof = {"x-dead-letter-exchange": self._dead_letters_to(view)}
                view = {**view, "arguments": {**(view.get("arguments") or {}), **proof}}
            queue = wait_queue_of(view, onward)
            # In a stream, which no wait queue is, anyone may have written the exchange and key of a message.
            if queue is not None and view.get("type") != "stream":
                yield queue, view

    def _dead_letters_to(self, view: Json | None) -> str | None:
        """Return a queue's dead-letter exchange; None if it has none, or if the broker does not confirm it."""
        arguments = (view or {}).get("arguments") or {}
        if view is None or not isinstance(exchange := arguments.get("x-dead-letter-exchange"), str):
            return None
        queue = Queue(view["name"], view["durable"], arguments=arguments)
        with suppress(AccessRefused), closing(self._channel.connection.channel()) as asking:
            return exchange if administration.has_arguments(asking, queue) else None
        return None

    @contextmanager
    def _skipping(self, queue: WaitQueue) -> Iterator[None]:
        """Skip a queue from which no messages can be received, so that it does not keep others from being found."""
        try:
            yield
        except NotFound:  # the queue has just expired
            return
        except MqtoolError as error:
            if isinstance(error, NotConfirmed) or self._stopping:
                raise
            if not (self._channel.is_open or self._channel.refused):  # the connection was lost
                raise
            self._skipped(queue.name, error)
            if isinstance(error.__context__, GeneratorExit):  # the caller wants no more queues
                raise error.__context__ from None

    def stop(self) -> None:
        """Make cancel() or deliver() finish the current message, and then end. Call it from a signal handler.

        Raises:
            KeyboardInterrupt: there is no current message.
        """
        if not self._holds_messages:
            raise KeyboardInterrupt
        self._stopping = True
        self._channel.connection.stop()

    def exchanges(self) -> Iterator[tuple[str, int]]:
        """Yield the x-delayed-message exchanges that hold messages, each with its number of messages."""
        for view in management.exchanges(self._api, self._vhost, ("name", "type", "messages_delayed")):
            if view["type"] == DELAYED and (count := view.get("messages_delayed")):
                yield view["name"], count

    def messages(self, to: str | None = None) -> Generator[Waiting]:
        """Yield the messages in wait queues, shortest delay first. Closing the generator requeues them."""
        for queue in self._queues_for(to):
            with (
                self._skipping(queue),
                closing(peeking.peek(self._channel, queue.name, self._kind(queue))) as deliveries,
            ):
                for delivery, is_behind in queue.with_order(deliveries):
                    yield _waiting(queue, delivery)._replace(is_behind=is_behind)

    def cancel(self, chosen: WaitingChoice) -> Generator[Waiting]:
        """Yield the chosen messages; delete them once all messages in their queue have been read."""
        for queue in self._queues_for(None):
            if self._stopping:
                return
            with self._skipping(queue), self._looking(queue) as look:
                for delivery in look.messages():
                    if self._stopping:
                        break
                    waiting = _waiting(queue, delivery)
                    if chosen(waiting):
                        look.remove(delivery)
                        yield waiting

    @contextmanager
    def _looking(self, queue: WaitQueue) -> Iterator[peeking.Look]:
        kind = self._kind(queue)
        self._holds_messages = True
        try:
            with peeking.looking(self._channel, queue.name, kind) as look:
                yield look
        finally:
            self._holds_messages = False

    def deliver(self, chosen: WaitingChoice, left: Callable[[MqtoolError], None]) -> Generator[Waiting]:
        """Publish the chosen messages to their destinations now, delete them from their wait queues, and yield each.

        Args:
            left: called with an error for each chosen message that stays: its destination is not proven (BadData), or
                did not take it (NotMoved).
        """
        publisher = self._channel.connection.channel()

        def delivered(waiting: Waiting) -> bool:
            nonlocal publisher
            if not chosen(waiting):
                return False
            stays = f"{name_of(waiting.delivery)} stays in {waiting.queue.name!r}"
            if waiting.queue.exchange is None:
                is_relay = waiting.queue.kind == "relay"
                when = "a relay delivers it" if is_relay else "if it is true, the broker delivers it when it is due"
                left(
                    BadData(
                        f"{stays}, which says that its messages are for {waiting.queue.to!r}: anyone who declares a "
                        f"queue can say that; {when}"
                    )
                )
                return False
            try:
                move(publisher, waiting.delivery, waiting.message)
            except NotMoved as error:
                left(error)
            except HeadersTooLarge as error:
                left(HeadersTooLarge(f"{stays}: {error}"))
            except MqtoolError as error:
                if not publisher.refused:
                    raise
                # For example, its exchange has been deleted. The broker has closed the channel.
                publisher = self._channel.connection.channel()
                left(NotMoved(f"{stays}: {error}"))
            else:
                return True
            return False

        yield from self.cancel(delivered)

    def _queues_for(self, to: str | None) -> list[WaitQueue]:
        found = [queue for queue, _ in self.queues() if to is None or queue.to == to]
        return sorted(found, key=lambda queue: (queue.seconds, queue.name))

    def _kind(self, queue: WaitQueue) -> peeking.PeekKind:
        return peeking.kind_of(self._channel, queue.name, self._api, self._vhost)


def _waiting(queue: WaitQueue, delivery: Delivery) -> Waiting:
    # Published to its queue, the message would prove any origin that its headers name.
    headers = history.headers_with_origin(delivery, queue.to)
    proven = replace(delivery, properties={**delivery.properties, "headers": headers})
    return Waiting(queue, delivery, queue.original(proven))
