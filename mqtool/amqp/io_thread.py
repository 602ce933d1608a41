"""IoThread runs pika's event loop; Requests uses it to send requests to the broker for other threads."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from pika import exceptions, spec
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel as PikaChannel

from mqtool.amqp import pika_errors
from mqtool.amqp.administration import Reply, Request
from mqtool.errors import NotConfirmed, StoppedWaiting
from mqtool.silence import Silence

T = TypeVar("T")

# pika also logs the errors that it raises; --debug shows them.
_log = logging.getLogger("pika")
_log.addHandler(logging.NullHandler())

#: The exceptions of pika that mean that the connection is lost.
CONNECTION_LOST = (exceptions.AMQPConnectionError, exceptions.ChannelWrongStateError)
#: A function that opens a pika channel on the I/O thread, and calls its argument when the channel is open.
OpenPikaChannel = Callable[[Callable[[PikaChannel], None]], PikaChannel]
#: Seconds between two checks of whether a reply can still arrive.
CHECK_INTERVAL = 0.1
#: Seconds to wait for the thread to end.
_PATIENCE = 2.0


class Answer(Future[T]):
    """A future for the broker's reply to a request. One thread waits for it; the I/O thread sets it.

    Only the first result counts: when a channel closes, its requests fail, and a reply may still arrive after that.
    """

    def give(self, value: T) -> None:
        """Set the reply as the result, unless there already is one."""
        if not self.done():
            self.set_result(value)

    def refuse(self, error: BaseException) -> None:
        """Make result() raise an error, unless there already is a result."""
        if not self.done():
            self.set_exception(error)


class IoThread:
    """The I/O thread, which runs scheduled functions and all of pika's callbacks, one after another.

    Attributes:
        loop: pika's event loop.

    Args:
        on_death: called with the exception that a callback raised, which has ended the thread: a bug in mqtool.
    """

    def __init__(self, on_death: Callable[[Exception], None]) -> None:
        self.loop = IOLoop()
        self._on_death = on_death
        self._is_dead = False
        self._thread = threading.Thread(target=self._run, name="mqtool-amqp", daemon=True)
        self._thread.start()

    def run(self, callback: Callable[[], None]) -> None:
        """Schedule a function on the I/O thread. Safe to call from any thread."""
        self.loop.add_callback_threadsafe(callback)

    def run_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Schedule a function on the I/O thread after a delay. Safe to call from any thread."""

        def start() -> None:
            self.loop.call_later(seconds, callback)

        self.run(start)

    def has_given(self, answer: Answer[Any]) -> bool:
        """Wait a moment for an answer from this thread; return True if it is there.

        Raises:
            pika.exceptions.ConnectionWrongStateError: the thread has died.
        """
        if wait([answer], CHECK_INTERVAL).done:
            return True
        if self._is_dead:
            raise exceptions.ConnectionWrongStateError
        return False

    def stop(self) -> None:
        """Stop the event loop, and wait for the thread to end."""
        self.run(self.loop.stop)
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive():
            self.loop.close()

    def _run(self) -> None:
        try:
            self.loop.start()
        except Exception as error:  # else threads that wait for an answer would wait forever
            _log.exception("the I/O thread has died")
            self._on_death(error)
            self._is_dead = True


class Requests:
    """Makes requests on one channel, one at a time, for threads other than the I/O thread.

    Attributes:
        pika: the current pika channel; None while there is none. Reopening replaces it.
        epoch: the number of times the channel was opened. Delivery tags from an earlier epoch are no longer valid.
        is_unanswered: True if the broker did not reply to the latest request in time.

    Args:
        silence: how long the broker has not replied; shared by all channels of the connection.
        must_stop: returns True if the command must stop. A reply then has a few seconds left to arrive.
        hopeless: returns the reason if the command must stop without waiting for the broker; otherwise None.
        on_refused: called on the I/O thread when the broker closes the channel while no request is pending.
        on_cancelled: called on the I/O thread with the tag of a consumer that the broker has cancelled.
    """

    def __init__(
        self,
        io: IoThread,
        open_pika_channel: OpenPikaChannel,
        silence: Silence,
        must_stop: Callable[[], bool],
        hopeless: Callable[[], str | None],
        *,
        on_refused: Callable[[exceptions.ChannelClosedByBroker], None],
        on_cancelled: Callable[[str], None],
    ) -> None:
        self.pika: PikaChannel | None = None
        self.epoch = 0
        self.is_unanswered = False
        self._io = io
        self._open_pika_channel = open_pika_channel
        self._silence = silence
        self._must_stop = must_stop
        self._hopeless = hopeless
        self._on_refused = on_refused
        self._on_cancelled = on_cancelled
        self._one_at_a_time = threading.Lock()
        # The current request, and its channel: an abandoned channel may still report that it was closed.
        self._answer: Answer[Any] | None = None
        self._asked: PikaChannel | None = None

    def open(self) -> None:
        """Open a channel on the current connection.

        Raises:
            MqtoolError: the broker has closed the channel instead.
            pika.exceptions.AMQPError: the connection is lost.
            Unavailable: the command must stop, and the broker does not reply.
        """
        opened: Answer[None] = Answer()
        with self._one_at_a_time:
            self._io.run(lambda: self._open(opened))
            try:
                for _ in self._waiting_for(opened):
                    pass
                opened.result()
            except exceptions.ChannelClosedByBroker as error:
                raise pika_errors.closed_by_broker(error) from error

    def leave(self) -> PikaChannel | None:
        """Stop using the current pika channel; return it."""
        left, self.pika = self.pika, None
        return left

    def make(self, request: Request[Reply], within: float | None = None) -> Reply:
        """Make a request, and return the broker's reply.

        Args:
            within: the number of seconds to wait for the reply; None for no limit.

        Raises:
            NotConfirmed: the broker has not replied in time.
            pika.exceptions.AMQPError: the broker closed the channel because of the request, or the connection is lost.
            Unavailable: the command must stop, and the broker does not reply.
            MqtoolError: the request cannot be encoded.
        """
        answer: Answer[Reply] = Answer()

        def start() -> None:
            if self.pika is None or not self.pika.is_open:
                self.pika = None
                answer.refuse(exceptions.ConnectionWrongStateError())
                return
            self._asked, self._answer = self.pika, answer
            try:
                request(self.pika, answer.give)
            except CONNECTION_LOST as error:
                self.pika = None  # the connection is closing; the caller waits for the next channel
                answer.refuse(error)
            except Exception as error:  # pika cannot encode it; raised below, in the caller's thread
                answer.refuse(pika_errors.cannot_encode(error))

        with self._one_at_a_time:
            self._io.run(start)
            deadline = None if within is None else time.monotonic() + within
            for now in self._waiting_for(answer):
                if deadline is not None and now > deadline:
                    self.is_unanswered = True
                    raise NotConfirmed(f"the broker did not reply within {within:g} s")
                if why := self._hopeless():
                    raise StoppedWaiting(f"stopped: {why}")
            self.is_unanswered = False
            return answer.result()

    def _waiting_for(self, answer: Answer[Any]) -> Iterator[float]:
        """See Silence.until()."""
        try:
            yield from self._silence.until(lambda: self._io.has_given(answer), self._must_stop)
        except StoppedWaiting:
            self.is_unanswered = True
            raise

    def send(self, epoch: int, method: Callable[[PikaChannel], None]) -> None:
        """Send a method that has no reply, unless the channel was reopened after `epoch`. Any thread may call it."""

        def start() -> None:
            if epoch == self.epoch and self.pika is not None and self.pika.is_open:
                method(self.pika)

        self._io.run(start)

    def requeue(self, epoch: int, tag: int) -> None:
        """Requeue all unacknowledged deliveries up to this tag; see send()."""
        self.send(epoch, lambda pika: pika.basic_nack(tag, multiple=True, requeue=True))

    def _open(self, opened: Answer[None]) -> None:
        def on_open(pika: PikaChannel) -> None:
            self.epoch += 1  # before the channel is used, so that older delivery tags are not mistaken for its own
            self.pika = pika
            opened.give(None)

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
        """Handle the end of a channel, closed by the broker or lost with the connection. Runs on the I/O thread."""
        was_open = pika is self.pika
        if was_open:
            self.pika = None
        if isinstance(reason, exceptions.ChannelClosedByClient):  # after leave()
            reason = exceptions.ConnectionWrongStateError()
        answer = self._answer
        if pika is self._asked and answer is not None and not answer.done():
            answer.refuse(reason)
        elif was_open and isinstance(reason, exceptions.ChannelClosedByBroker):
            self._on_refused(reason)

    def _on_get_empty(self, _frame: Any) -> None:
        if self._answer is not None:
            self._answer.give(None)
