"""The AMQP 1.0 client's connection, on the thread of the process, with one link. See wire."""

import select
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from mqtool.amqp import Address, Receiving, TlsFiles
from mqtool.amqp10.link_connection import LinkConnection, new_name
from mqtool.amqp10.link_receiver import OFFSET, Receiver, offset_filter
from mqtool.amqp10.link_sender import OutgoingTransfer, SendingLink
from mqtool.amqp10.refusals import ClosedByBroker
from mqtool.amqp10.reopening_transport import LOST
from mqtool.benching.wire import Take, Wire, ignore
from mqtool.codecs import sections
from mqtool.codecs.amqp10_frames import Accepted
from mqtool.message import Delivery, Message
from mqtool.offsets import Offset, Start


class _Body(NamedTuple):
    """A body without its stamp, and the message's properties."""

    rest: bytes
    properties: dict[str, Any]
    persistent: bool


class _Numbered(OutgoingTransfer):
    """A message whose tag is added to a list when its outcome is known."""

    __slots__ = ("confirmed", "refused")

    def __init__(self, message: Message, data: bytes, to: str, tag: int, confirmed: list[int], refused: list[int]):
        super().__init__(message, data, to, tag, to)
        self.confirmed, self.refused = confirmed, refused

    def decide(self, state: Any) -> None:
        (self.confirmed if isinstance(state, Accepted) else self.refused).append(self.sequence)


class Amqp10Wire(Wire):
    """An AMQP 1.0 connection."""

    def __init__(self, address: Address, tls: TlsFiles) -> None:
        self.now = time.monotonic_ns()
        self.credit = 0
        self.on_confirm = self.on_nack = ignore
        self._take: Take = ignore
        self._watched: dict[int, Callable[[], None]] = {}
        self._to = ""
        self._link: SendingLink | None = None
        self._confirmed: list[int] = []
        self._refused: list[int] = []
        self._receiver: Receiver | None = None
        self._unacknowledged: list[Delivery] = []
        login = address._replace(names_user=not tls.logs_in(address))
        context = tls.context() if address.tls else None
        self._links = LinkConnection([login], context, backoff=None, confirm_timeout=0, notice=ignore, threaded=False)

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        self._watched[descriptor] = on_readable

    def wait(self, seconds: float) -> None:
        transport = self._links.transport
        sources: list[Any] = [transport, *self._watched]
        readable, writable, _ = select.select(sources, sources[:1] if transport.unsent else [], [], seconds)
        if writable or transport in readable:
            self.now = time.monotonic_ns()
            with _translated():
                while self._links.run(0.0):
                    self._report()
        for descriptor, on_readable in self._watched.items():
            if descriptor in readable:
                on_readable()

    def _report(self) -> None:
        """Call the functions that handle what has arrived."""
        if self._link is not None:
            self.credit = self._link.credit - len(self._link.waiting)
        if self._confirmed:
            self.on_confirm([*self._confirmed])
            self._confirmed.clear()
        if self._refused:
            self.on_nack([*self._refused])
            self._refused.clear()
        if self._receiver is not None and (batch := self._receiver.arrived()):
            self._unacknowledged += batch
            self._take(batch)

    @property
    def unsent(self) -> int:
        return self._links.transport.unsent

    def close(self) -> None:
        self._links.close()

    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:  # noqa: ARG002
        self._to = sections.exchange_address(exchange, routing_key)
        with _translated():
            self._link = self._links.sending_link(self._to)
        self.credit = self._link.credit

    def template(self, message: Message, stamp: int, *, persistent: bool) -> _Body:
        return _Body(message.body[stamp:], dict(message.properties), persistent)

    def publish(self, messages: Iterable[tuple[int, _Body, bytes]]) -> None:
        assert self._link is not None
        for tag, (rest, properties, persistent), stamp in messages:
            message = Message(stamp + rest, properties=properties)
            data = sections.encode(message, persistent=persistent)
            self._link.waiting.append(_Numbered(message, data, self._to, tag, self._confirmed, self._refused))
        self._links.pump()
        self.credit = self._link.credit - len(self._link.waiting)

    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:
        self._take = take
        filters = {} if offset is None else {OFFSET: offset_filter(Offset(Start.OFFSET, offset))}
        receiving = Receiving(prefetch, auto_ack=auto, acknowledge=False)
        self._receiver = Receiver(self._links, new_name(), sections.queue_address(queue), receiving, filters)
        with _translated():
            self._links.attach(self._receiver)
        self._links.give_credit(self._receiver)

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:  # noqa: ARG002  # they are all that has arrived
        batch, self._unacknowledged = self._unacknowledged, []
        self._links.settle(batch, Accepted())

    def offset_of(self, delivery: Delivery) -> int:
        return int(delivery.headers["x-stream-offset"])


@contextmanager
def _translated() -> Iterator[None]:
    """Raise a wire's errors."""
    try:
        yield
    except ClosedByBroker as error:
        if error.is_temporary:
            raise ConnectionError(str(error)) from error
        raise error.translated() from error
    except LOST as error:
        raise ConnectionError("the connection was lost") from error
