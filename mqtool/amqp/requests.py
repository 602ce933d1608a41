"""Requests on one channel: made from any thread, carried out on the I/O thread, one by one, each waited for.

It holds pika's channel, of which there is another after each loss; who asks need not know.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pika import exceptions, spec
from pika.channel import Channel as PikaChannel

from mqtool.amqp import failures
from mqtool.amqp.answer import Answer
from mqtool.amqp.declaring import Request

if TYPE_CHECKING:
    from mqtool.amqp.connection import Connection

CONNECTION_LOST = (exceptions.AMQPConnectionError, exceptions.ChannelWrongStateError)


class Requests:
    """The way to the broker.

    Attributes:
        pika: pika's channel; None while there is none.
        epoch: counts the openings; delivery tags of an earlier one mean nothing to the broker any more.

    Args:
        on_refused: the broker has closed the channel, and not as the answer to a request. On the I/O thread.
        on_cancelled: the broker has cancelled the consumer of that tag. On the I/O thread.
    """

    def __init__(
        self,
        connection: "Connection",
        on_refused: Callable[[exceptions.ChannelClosedByBroker], None],
        on_cancelled: Callable[[str], None],
    ) -> None:
        self.pika: PikaChannel | None = None
        self.epoch = 0
        self._connection = connection
        self._on_refused = on_refused
        self._on_cancelled = on_cancelled
        self._left: PikaChannel | None = None
        self._one_at_a_time = threading.Lock()
        self._answer: Answer[Any] | None = None

    def open(self) -> None:
        """Open a channel on the connection's present state.

        Raises:
            pika.exceptions.AMQPError: the connection was lost meanwhile.
        """
        opened: Answer[PikaChannel] = Answer()
        with self._one_at_a_time:
            self._answer = opened
            self._connection.run(lambda: self._open(opened))
            pika = opened.result()
        self.epoch += 1  # before anybody can use it: an older delivery tag must not be taken for one of this channel
        self.pika = pika

    def leave(self) -> PikaChannel | None:
        """Think no more of the channel there is; whatever it still says does not count."""
        self._left, self.pika = self.pika, None
        return self._left

    def make(self, request: Request) -> Any:
        """Make one request and wait for its answer.

        Raises:
            pika.exceptions.AMQPError: the broker has closed the channel for it, or the connection is lost.
            MqtoolError: it cannot be sent.
        """
        answer: Answer[Any] = Answer()

        def start() -> None:
            if self.pika is None or not self.pika.is_open:
                answer.refuse(exceptions.ConnectionWrongStateError())
                return
            try:
                request(self.pika, answer.give)
            except CONNECTION_LOST as error:
                answer.refuse(error)
            except Exception as error:  # pika can make no frame of it; raised below, in the thread of whoever asked
                answer.refuse(failures.cannot_encode(error))

        with self._one_at_a_time:
            self._answer = answer
            self._connection.run(start)
            return answer.result()

    def tell(self, epoch: int, method: Callable[[PikaChannel], None]) -> None:
        """On the I/O thread: a method without an answer, unless it means an earlier opening."""
        if epoch == self.epoch and self.pika is not None and self.pika.is_open:
            method(self.pika)

    def _open(self, opened: Answer[PikaChannel]) -> None:
        try:
            pika = self._connection.open_pika_channel(opened.give)
        except exceptions.AMQPError as error:
            opened.refuse(error)
            return
        pika.add_on_close_callback(self._on_close)
        pika.add_on_cancel_callback(lambda frame: self._on_cancelled(frame.method.consumer_tag))
        pika.add_callback(self._on_get_empty, [spec.Basic.GetEmpty], one_shot=False)

    def _on_close(self, pika: PikaChannel, reason: Exception) -> None:
        """The broker has closed the channel, or the connection is gone. On the I/O thread."""
        if pika is self._left:
            return
        was_open = pika is self.pika
        if was_open:
            self.pika = None
        answer = self._answer
        if answer is not None and not answer.done():
            answer.refuse(reason)
        elif was_open and isinstance(reason, exceptions.ChannelClosedByBroker):
            self._on_refused(reason)

    def _on_get_empty(self, _frame: Any) -> None:
        if self._answer is not None:
            self._answer.give(None)
