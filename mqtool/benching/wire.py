"""The connection of a process of a run: what publishers and consumers need from it, and AMQP 0-9-1.

It is the client that users use, but without its threads, whose switches a benchmark would measure as the broker's
latency; see mqtool/amqp/single_thread.py. The connections for AMQP 1.0 and streams are in separate modules, which are
imported only when needed.
"""

import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from mqtool.amqp import Address, TlsFiles
from mqtool.amqp.administration import Request
from mqtool.amqp.single_thread import SingleThreadConnection
from mqtool.amqp.unconfirmed import Route
from mqtool.message import Delivery, Message

Take = Callable[[list[Delivery]], None]


def ignore(*_: object, **__: object) -> None:
    """Do nothing. The default for functions that are called when something arrives."""


class Wire(Protocol):
    """A connection to publish or consume on. Only wait(), close() and the methods that set the connection up block.

    All methods raise ConnectionError if the connection is lost, and MqtoolError if the broker refuses something.

    Attributes:
        now: the time at which the data being processed arrived, in nanoseconds of the monotonic clock.
        credit: the number of messages that the broker currently accepts.
        on_confirm, on_nack: called with the tags of messages that the broker has confirmed or refused. The same tag may
            be passed more than once.
    """

    now: int
    credit: int
    on_confirm: Callable[[Iterable[int]], None]
    on_nack: Callable[[Iterable[int]], None]

    @abstractmethod
    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Have wait() also wait for a file descriptor, and call a function whenever it is readable."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Wait until something arrives, for up to this long, and call the functions that handle it."""

    @property
    @abstractmethod
    def unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection. Unacknowledged messages return to their queue."""

    @abstractmethod
    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:
        """Prepare to publish to an exchange. With `confirms`, ask the broker to confirm messages."""

    @abstractmethod
    def template(self, message: Message, stamp: int, *, persistent: bool) -> Any:
        """Encode a message for publish(), which will replace the first `stamp` bytes of its body."""

    @abstractmethod
    def publish(self, messages: Iterable[tuple[int, Any, bytes]]) -> None:
        """Publish messages, each given as a tag, a template and a stamp. Tags count up from 1."""

    @abstractmethod
    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:
        """Start consuming. `take` is called with batches of deliveries.

        Args:
            auto: True if the broker expects no acknowledgements.
            offset: where to start in a stream; None for other queues.
        """

    @abstractmethod
    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        """Acknowledge deliveries, given as pairs of delivery tag and `multiple`."""

    @abstractmethod
    def offset_of(self, delivery: Delivery) -> int:
        """Return the offset of a message in a stream."""


class _Body(NamedTuple):
    """A body without its stamp, and the message's properties."""

    rest: bytes
    properties: dict[str, Any]


class AmqpWire(Wire):
    """An AMQP 0-9-1 connection with one channel."""

    def __init__(self, address: Address, tls: TlsFiles) -> None:
        self.now = time.monotonic_ns()
        self.credit = sys.maxsize
        self.on_confirm = self.on_nack = ignore
        self._settled = 0  # all messages up to this tag have been confirmed or refused
        self._route = Route()
        self._connection = SingleThreadConnection(address, tls)

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        self._connection.watch(descriptor, on_readable)

    def wait(self, seconds: float) -> None:
        self._connection.wait(seconds)

    @property
    def unsent(self) -> int:
        return self._connection.unsent

    def close(self) -> None:
        self._connection.close()

    def ask(self, request: Request[object]) -> None:
        """Make a request, and wait for the broker's reply."""
        self._connection.ask(request)

    def open_and_close_channel(self, opened: Callable[[], None]) -> None:
        """Open another channel, call a function, and close the channel."""
        channel = self._connection.open_channel()
        opened()
        self._connection.close_channel(channel)

    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:
        self._route = Route(exchange, routing_key)
        if confirms:
            self._connection.confirm(self._on_ack, self._on_nack)

    def template(self, message: Message, stamp: int, *, persistent: bool) -> _Body:
        self._route = self._route._replace(persistent=persistent)
        return _Body(message.body[stamp:], dict(message.properties))

    def publish(self, messages: Iterable[tuple[int, _Body, bytes]]) -> None:
        self._connection.publish(
            [Message(stamp + rest, properties=properties) for _, (rest, properties), stamp in messages], self._route
        )

    def reply(self, messages: list[Message]) -> None:
        """Publish messages to the queues named by their routing keys."""
        self._connection.publish(messages, Route())

    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:
        def taken(batch: list[Delivery]) -> None:
            self.now = self._connection.received_at
            take(batch)

        arguments = {} if offset is None else {"x-stream-offset": offset}
        self._connection.consume(queue, taken, prefetch=prefetch, auto_ack=auto, arguments=arguments)

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        self._connection.acknowledge(tags)

    def offset_of(self, delivery: Delivery) -> int:
        return int(delivery.headers["x-stream-offset"])

    def _on_ack(self, tag: int, *, multiple: bool) -> None:
        self.now = self._connection.received_at
        self.on_confirm(self._tags(tag, multiple=multiple))

    def _on_nack(self, tag: int, *, multiple: bool) -> None:
        self.on_nack(self._tags(tag, multiple=multiple))

    def _tags(self, tag: int, *, multiple: bool) -> Iterable[int]:
        tags = range(self._settled + 1, tag + 1) if multiple else (tag,)
        if multiple or tag == self._settled + 1:
            self._settled = tag
        return tags
