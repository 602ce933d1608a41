"""SingleThreadConnection: a connection with one channel, for a program that must not use threads.

Connection has an I/O thread. Between it and the caller's thread, messages wait for a thread switch, and are collected
for up to a millisecond. A benchmark would measure that as the broker's latency: at 5,000 messages per second, the
median to the confirm was 1.9 instead of 0.3 ms, and the CPU time per message 1.6 times as long. So here, the caller's
own thread runs pika's event loop, by calling wait() whenever it has nothing else to do.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from pika import exceptions
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel as PikaChannel

from mqtool.address import Address, TlsFiles, connection_name
from mqtool.amqp import pika_errors, pika_private
from mqtool.amqp.administration import Reply, Request, prefetch_request
from mqtool.amqp.basic_frames import ConsumerFrames, TakeBatch, delivery_from
from mqtool.amqp.connection import parameters_for
from mqtool.amqp.unconfirmed import Route
from mqtool.errors import MqtoolError, Unavailable
from mqtool.message import Message

#: Seconds to wait for the broker's reply to a request, and for its reply when the connection is closed.
_PATIENCE, _CLOSE_PATIENCE = 20.0, 2.0
#: Reply codes after which to reconnect: the broker is shutting down, or had an internal error.
_TEMPORARY = (320, 541)


class SingleThreadConnection:
    """A connection that is not reopened, and its channel. Its methods call each function passed to them in wait().

    Attributes:
        received_at: when the data being processed arrived, in nanoseconds of the monotonic clock.

    Raises:
        MqtoolError: connecting or logging in has failed.
    """

    def __init__(self, address: Address, tls: TlsFiles) -> None:
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._failure: Exception | None = None
        opened: list[BaseException | None] = []
        context = tls.context() if address.tls else None
        try:
            parameters = parameters_for(address, context, connection_name(), by_certificate=tls.logs_in(address))
            self._pika = pika_private.CONNECTION(
                parameters,
                on_open_callback=lambda _: opened.append(None),
                on_open_error_callback=lambda _, error: opened.append(error),
                on_close_callback=self._on_close,
                custom_ioloop=self._loop,
            )
            while not opened:
                self.wait(_PATIENCE)
            if opened[0] is not None:
                raise pika_errors.connecting(opened[0], address) from opened[0]
            self._channel = self.open_channel()
        except BaseException:
            self._release()
            raise
        self._writer = pika_private.writer(self._channel, int(self._pika.params.frame_max))

    def _on_close(self, pika: object, error: BaseException) -> None:
        self._failure = self._failure or pika_private.failure_of(pika)
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        failure: Exception = pika_errors.closed_by_broker(error)
        if getattr(error, "reply_code", _TEMPORARY[0]) in _TEMPORARY:
            failure = ConnectionError(str(failure))
        self._failure = self._failure or failure

    # The event loop.

    @property
    def received_at(self) -> int:
        return pika_private.received_at(self._pika)

    @property
    def unsent(self) -> int:
        """The number of bytes that the socket has not accepted yet."""
        return pika_private.unsent(self._pika)

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Have wait() also wait for a file descriptor, and call a function whenever it is readable."""
        self._loop.add_handler(descriptor, lambda *_: on_readable(), IOLoop.READ)

    def wait(self, seconds: float) -> None:
        """Wait until something arrives, and process it; return when it is processed, or after a number of seconds.

        Raises:
            ConnectionError: the connection is lost.
            MqtoolError: the broker has closed the channel or the connection because of an error.
        """
        pika_private.run_for(self._loop, seconds)
        if self._failure is not None:
            raise self._failure

    def _wait_for(self, replies: Sequence[Reply], patience: float = _PATIENCE) -> Reply:
        deadline = time.monotonic() + patience
        while not replies:
            if (left := deadline - time.monotonic()) <= 0:
                raise ConnectionError("the broker does not answer")
            self.wait(left)
        return replies[0]

    # Requests.

    def open_channel(self) -> PikaChannel:
        """Open another channel. If the broker closes it, wait() raises the error."""
        opened: list[PikaChannel] = []
        channel = self._pika.channel(on_open_callback=opened.append)
        channel.add_on_close_callback(self._on_channel_close)
        self._wait_for(opened)
        return channel

    def close_channel(self, channel: PikaChannel) -> None:
        """Close a channel, and wait for the broker's reply."""
        closed: list[object] = []
        channel.add_on_close_callback(lambda *_: closed.append(None))
        channel.close()
        self._wait_for(closed)

    def _on_channel_close(self, _channel: PikaChannel, reason: Exception) -> None:
        if isinstance(reason, exceptions.ChannelClosedByBroker):
            self._fail(reason)

    def ask(self, request: Request[Reply]) -> Reply:
        """Make a request on the channel, and return the broker's reply."""
        replies: list[Reply] = []
        request(self._channel, replies.append)
        return self._wait_for(replies)

    # Messages.

    def confirm(self, on_ack: Callable[..., None], on_nack: Callable[..., None]) -> None:
        """Ask for confirms; `on_ack` and `on_nack` are called with a delivery tag and `multiple`."""

        def on_answer(answer: Any) -> None:
            is_ack = answer.method.NAME == "Basic.Ack"
            (on_ack if is_ack else on_nack)(answer.method.delivery_tag, multiple=answer.method.multiple)

        def request(pika: PikaChannel, done: Callable[[object], None]) -> None:
            pika.confirm_delivery(on_answer, callback=done)

        self.ask(request)
        pika_private.take_confirms(self._channel, on_ack)

    def publish(self, messages: Sequence[Message], route: Route) -> None:
        """Send messages in one write."""
        self._writer.write([self._writer.encode(messages, route)])

    def consume(
        self, queue: str, take: TakeBatch, *, prefetch: int, auto_ack: bool, arguments: dict[str, Any] | None = None
    ) -> None:
        """Start consuming. `take` is called with batches of deliveries."""
        if not auto_ack:
            self.ask(prefetch_request(prefetch))

        def on_message(_pika: PikaChannel, method: Any, properties: Any, body: bytes) -> None:
            take([delivery_from(method, properties, body, queue, 0)])

        def request(pika: PikaChannel, done: Callable[[object], None]) -> None:
            tag = pika.basic_consume(queue, on_message, auto_ack=auto_ack, arguments=arguments, callback=done)
            pika_private.take_deliveries(pika, ConsumerFrames(pika.channel_number, tag, queue, 0, take))

        self._channel.add_on_cancel_callback(partial(self._on_cancel, queue))
        self.ask(request)

    def _on_cancel(self, queue: str, _frame: object) -> None:
        self._failure = Unavailable(
            f"the broker cancelled the consumer: queue {queue!r} was deleted, its node is down, "
            "or a message was not acknowledged within the consumer timeout (RabbitMQ 4.3)"
        )

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        """Acknowledge deliveries, given as pairs of delivery tag and `multiple`."""
        self._writer.write((), tags)

    def close(self) -> None:
        """Close the connection. Unacknowledged deliveries are requeued."""
        self._failure = None
        try:
            if self._pika.is_open:
                self._pika.close()
                deadline = time.monotonic() + _CLOSE_PATIENCE
                while time.monotonic() < deadline:
                    self.wait(_CLOSE_PATIENCE)
        except (ConnectionError, MqtoolError):
            pass  # it is closed
        finally:
            self._release()

    def _release(self) -> None:
        self._loop.deactivate_poller()
        self._loop.close()
