"""The thread that runs pika, and the requests to the broker that are made on it."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from pika import exceptions, spec
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel as PikaChannel

from mqtool.amqp import pika_errors
from mqtool.amqp.administration import Request
from mqtool.errors import Unavailable

T = TypeVar("T")


class Answer(Future[T]):
    """The broker's answer, awaited by one thread and given by the I/O thread.

    Only the first one counts: a channel that closes answers all that waits on it, and the request that was on its way
    there, or pika, which tells twice of a line that breaks in the moment of opening, may come after.
    """

    def give(self, value: T) -> None:
        """The broker has answered."""
        if not self.done():
            self.set_result(value)

    def refuse(self, error: BaseException) -> None:
        """There will be no answer; result() raises this."""
        if not self.done():
            self.set_exception(error)


# pika logs what it also raises; --debug shows it.
_log = logging.getLogger("pika")
_log.addHandler(logging.NullHandler())

_PATIENCE = 2.0


class IoThread:
    """Runs functions one after another, and everything that pika calls back.

    Attributes:
        loop: pika's.

    Args:
        on_death: called with what a callback raised. That ends the thread, and is a bug.
    """

    def __init__(self, on_death: Callable[[Exception], None]) -> None:
        self.loop = IOLoop()
        self._on_death = on_death
        self._thread = threading.Thread(target=self._run, name="mqtool-amqp", daemon=True)
        self._thread.start()

    def run(self, callback: Callable[[], None]) -> None:
        """Run a function soon. From any thread."""
        self.loop.add_callback_threadsafe(callback)

    def run_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run a function after a delay. From any thread."""

        def start() -> None:
            self.loop.call_later(seconds, callback)

        self.run(start)

    def stop(self) -> None:
        """End the thread."""
        self.run(self.loop.stop)
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive():
            self.loop.close()

    def _run(self) -> None:
        try:
            self.loop.start()
        except Exception as error:  # nobody who waits for an answer would ever be woken
            _log.exception("the I/O thread has died")
            self._on_death(error)


CONNECTION_LOST = (exceptions.AMQPConnectionError, exceptions.ChannelWrongStateError)
#: Opens a pika channel on the I/O thread, and calls back when it is open.
OpenPikaChannel = Callable[[Callable[[PikaChannel], None]], PikaChannel]
#: Seconds between two looks at whether waiting has become pointless.
LOOK_UP = 0.1


class Requests:
    """The way to the broker.

    Attributes:
        pika: pika's channel; None while there is none.
        epoch: counts the openings. Delivery tags of an earlier one are no longer valid.

    Args:
        hopeless: as ChannelConnection.hopeless.
        on_refused: the broker closed the channel, but not in answer to a request. On the I/O thread.
        on_cancelled: the broker cancelled the consumer with this tag. On the I/O thread.
    """

    def __init__(
        self,
        io: IoThread,
        open_pika_channel: OpenPikaChannel,
        hopeless: Callable[[], str | None],
        *,
        on_refused: Callable[[exceptions.ChannelClosedByBroker], None],
        on_cancelled: Callable[[str], None],
    ) -> None:
        self.pika: PikaChannel | None = None
        self.epoch = 0
        self._io = io
        self._open_pika_channel = open_pika_channel
        self._hopeless = hopeless
        self._on_refused = on_refused
        self._on_cancelled = on_cancelled
        self._one_at_a_time = threading.Lock()
        # What is waited for, and of which channel. Of the I/O thread: one that was left may still report its end.
        self._answer: Answer[Any] | None = None
        self._asked: PikaChannel | None = None

    def open(self) -> None:
        """Open a channel on the present connection.

        Raises:
            pika.exceptions.AMQPError: the connection is lost.
        """
        opened: Answer[PikaChannel] = Answer()
        with self._one_at_a_time:
            self._io.run(lambda: self._open(opened))
            opened.result()

    def leave(self) -> PikaChannel | None:
        """Do without the present pika channel; return it."""
        left, self.pika = self.pika, None
        return left

    def make(self, request: Request) -> Any:
        """Make one request and wait for its answer.

        Raises:
            pika.exceptions.AMQPError: the broker closed the channel over it, or the connection is lost.
            Unavailable: the command is to stop, and the broker does not answer.
            MqtoolError: it cannot be encoded.
        """
        answer: Answer[Any] = Answer()

        def start() -> None:
            if self.pika is None or not self.pika.is_open:
                self.pika = None
                answer.refuse(exceptions.ConnectionWrongStateError())
                return
            self._asked, self._answer = self.pika, answer
            try:
                request(self.pika, answer.give)
            except CONNECTION_LOST as error:
                self.pika = None  # the connection is closing under it; whoever asked waits for the next channel
                answer.refuse(error)
            except Exception as error:  # pika cannot encode it; raised below, in the caller's thread
                answer.refuse(pika_errors.cannot_encode(error))

        with self._one_at_a_time:
            self._io.run(start)
            while not wait([answer], LOOK_UP).done:
                if why := self._hopeless():
                    raise Unavailable(f"stopped: {why}")
            return answer.result()

    def send(self, epoch: int, method: Callable[[PikaChannel], None]) -> None:
        """Send a method that has no answer, unless it is about an earlier opening. From any thread."""

        def start() -> None:
            if epoch == self.epoch and self.pika is not None and self.pika.is_open:
                method(self.pika)

        self._io.run(start)

    def _open(self, opened: Answer[PikaChannel]) -> None:
        def on_open(pika: PikaChannel) -> None:
            self.epoch += 1  # before anybody uses the channel: older delivery tags must not be taken for its own
            self.pika = pika
            opened.give(pika)

        try:
            pika = self._open_pika_channel(on_open)
        except exceptions.AMQPError as error:
            opened.refuse(error)
            return
        self._asked, self._answer = pika, opened
        pika.add_on_close_callback(self._on_close)
        pika.add_on_cancel_callback(lambda frame: self._on_cancelled(frame.method.consumer_tag))
        pika.add_callback(self._on_get_empty, [spec.Basic.GetEmpty], one_shot=False)

    def _on_close(self, pika: PikaChannel, reason: Exception) -> None:
        """The broker closed the channel, or the connection is lost. On the I/O thread."""
        was_open = pika is self.pika
        if was_open:
            self.pika = None
        if isinstance(reason, exceptions.ChannelClosedByClient):  # it was left
            reason = exceptions.ConnectionWrongStateError()
        answer = self._answer
        if pika is self._asked and answer is not None and not answer.done():
            answer.refuse(reason)
        elif was_open and isinstance(reason, exceptions.ChannelClosedByBroker):
            self._on_refused(reason)

    def _on_get_empty(self, _frame: Any) -> None:
        if self._answer is not None:
            self._answer.give(None)
