"""ReopeningTransport: a transport on an I/O thread, which reads all frames, and reconnects after a loss.

A subclass processes the frames, and resumes its work after a reconnection. One lock guards all its state.
"""

import contextlib
import math
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mqtool.address import connection_name
from mqtool.amqp import Address, Backoff
from mqtool.amqp10.refusals import CRASHED, ClosedByBroker, Lost, crashed, too_old
from mqtool.amqp10.transport import Transport
from mqtool.duration import is_news
from mqtool.errors import MqtoolError, StoppedWaiting, Unavailable
from mqtool.silence import Silence

#: Seconds to wait for the broker's reply.
PATIENCE = 20.0
#: Seconds between two checks for signals: Python runs signal handlers only between two steps of the main thread.
_TICK = 0.2
#: Seconds to wait for frames while something is due.
_BRIEFLY = 0.1
#: Errors that mean that the connection is lost, or that the broker has sent data that cannot be decoded.
LOST = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error)
#: Seconds after which a connection counts as stable, so that the next loss starts with a short delay again.
_STEADY = 60.0
#: The connection is not opened again after this many sessions in a row that have crashed before they were of use.
_CRASHES = 3


class ReopeningTransport:
    """A connection that is reopened until it is closed.

    Args:
        threaded: read frames on an I/O thread. If not, the connection is for one thread, which calls run(), and it is
            not reopened.

    Attributes:
        changed: the lock, and the condition that is notified of every change.
        epoch: how many times the connection was reopened.
        failure: the error that ended the connection for good, if any.
        refused: True if the broker ended the session because of an error, while the connection stayed open.
        stopping: True if the command must stop.
        deadline: the time (`time.monotonic()`) from which on waiting calls end as if the command had to stop.
        is_lost: True until a lost connection is open again.
        has_crashed: True once the broker's session has crashed. Receivers then ask for one delivery at a time, so that
            those before one that the broker cannot convert are settled.
        has_progressed: True if an outcome was received or a delivery settled since the connection was opened.
        lacks_a_node: True if a node could not be reached when the connection was opened.
        due_at: the time (`time.monotonic()`) at which to call taken() even if no frame has arrived; None for no time.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        context: ssl.SSLContext | None,
        backoff: Backoff | None,
        notice: Callable[[str], None],
        *,
        threaded: bool = True,
    ) -> None:
        self.changed = threading.Condition()
        self.epoch = 0
        self.failure: MqtoolError | None = None
        self.refused = self.stopping = self.is_lost = False
        self.has_progressed = True
        self.has_crashed = False
        self.lacks_a_node = False
        self.deadline = math.inf
        self.due_at: float | None = None
        self._addresses, self._context, self._backoff, self._notice = list(addresses), context, backoff, notice
        self._attempts: Iterator[tuple[int, float]] = iter(())
        self._silence = Silence()
        self._closing = threading.Event()
        self._crashes = 0
        self._opened_at = time.monotonic()
        self._reader: int | None = threading.get_ident()  # the thread that reads frames
        self.transport = self._opened(again=False)
        try:
            self.begin()
        except (ClosedByBroker, *LOST) as error:
            self.transport.close(politely=False)
            if isinstance(error, ClosedByBroker):
                raise error.translated() from error
            raise Unavailable(f"lost the connection to {self.address}: {_in_words(error)}") from error
        self._thread: threading.Thread | None = None
        if threaded:
            self._reader = None
            self._thread = threading.Thread(target=self._read, name="mqtool-amqp10", daemon=True)
            self._thread.start()

    # For subclasses. All are called on the thread that reads.

    def begin(self) -> None:
        """Begin to use a transport that was just opened."""
        raise NotImplementedError

    def take(self, body: bytes) -> None:
        """Process the body of a frame. Called under the lock."""
        raise NotImplementedError

    def taken(self) -> None:
        """Called under the lock, after the frames of one read."""
        raise NotImplementedError

    def lost(self) -> Callable[[], None]:
        """Under the lock: prepare to resend messages without an outcome; return a function to call once reconnected."""
        raise NotImplementedError

    def reopened(self) -> None:
        """Called under the lock, once the connection is open again."""
        raise NotImplementedError

    @property
    def reads_here(self) -> bool:
        """True if called on the thread that reads frames."""
        return self._reader == threading.get_ident()

    @property
    def address(self) -> Address:
        """The address of the node to which the transport is connected."""
        return self._addresses[0]

    @property
    def hopeless(self) -> str | None:
        """Why a stopping command should not wait for the broker; None if it may wait."""
        if not self.must_stop:
            return None
        if self.is_lost:
            return "the connection is lost"
        return "the broker does not reply" if self._silence.lasts(self.transport.received_at) else None

    @property
    def must_stop(self) -> bool:
        """True if the command must stop, or its deadline has passed."""
        return self.stopping or time.monotonic() >= self.deadline

    def _opened(self, *, again: bool) -> Transport:
        """Connect to the first node that accepts the connection."""
        failure: MqtoolError | None = None
        for address in self._addresses:
            try:
                transport = Transport(address, self._context, connection_name(), logged_in_before=again)
            except MqtoolError as error:
                if failure is None or isinstance(failure, Unavailable):  # a refusal says more than a node that is down
                    failure = error
                continue
            if (version := str(transport.properties.get("version", ""))).startswith("3."):
                transport.close()
                raise too_old(version)
            self._addresses.remove(address)
            self._addresses.insert(0, address)
            self.lacks_a_node = failure is not None
            return transport
        raise failure or Unavailable("no address to connect to")

    def retrying(self, request: Callable[[], Any]) -> Any:
        """Make a request. If the connection is lost in the meantime, repeat it after reconnecting."""
        while True:
            self.wait(lambda: not self.is_lost, None)
            try:
                return request()
            except Lost:
                if self.reads_here:
                    raise
            except ClosedByBroker as error:
                raise error.translated() from error

    # Waiting.

    def until(self, done: Callable[[], bool], epoch: int, patience: float = PATIENCE) -> None:
        """Wait for the broker's reply.

        Args:
            epoch: the value of `epoch` before the request was sent. The connection may be open again by now.

        Raises:
            Lost: the connection was lost after the request.
            Unavailable: the broker has not replied within `patience` seconds, or the command must stop.
        """
        deadline = time.monotonic() + patience
        if self.reads_here:
            self._until_here(done, deadline)
            return

        def has_reply() -> bool:
            self.wait(lambda: done() or self.is_lost or self.epoch != epoch, _TICK if patience < math.inf else None)
            if self.is_lost or self.epoch != epoch:
                raise Lost
            return done()

        for now in self._silence.until(has_reply, lambda: self.must_stop):
            if now > deadline:
                raise Unavailable(f"the broker did not answer within {patience:g} s")

    def _until_here(self, done: Callable[[], bool], deadline: float) -> None:
        """Wait on the I/O thread itself, or on the one that opens the connection."""
        while not done():
            if self._closing.is_set():
                raise Lost
            if time.monotonic() > deadline:
                raise TimeoutError(0, "the broker does not answer")
            self._handle(self.transport.read(_TICK))

    def wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until done() is true, or for a number of seconds. Raises the failure that ended the session."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.changed:
            while not done():
                self.check()
                if timeout is None and (why := self.hopeless):
                    raise StoppedWaiting(f"stopped: {why}")
                left = _TICK if deadline is None else min(_TICK, deadline - time.monotonic())
                if left <= 0:
                    return
                self.changed.wait(left)

    def check(self) -> None:
        """Raise the failure that ended the session, if any."""
        if self.failure is not None and not self.reads_here:
            raise self.failure

    def run(self, seconds: float) -> bool:
        """Without an I/O thread: wait for frames, and process them; return False if there were none."""
        bodies = self.transport.read(seconds)
        self._handle(bodies)
        return bool(bodies)

    # The I/O thread.

    def _read(self) -> None:
        self._reader = threading.get_ident()
        while not self._closing.is_set():
            try:
                self._handle(self.transport.read(1.0 if self.due_at is None else _BRIEFLY))
            except ClosedByBroker as error:
                if (refusal := self._refusal(error)) is not None:
                    self._fail(refusal, refused=True)
                    return
                if not self._reopened(error):
                    return
            except MqtoolError as failure:  # a message is too large
                self._fail(failure)
                return
            except LOST as error:
                self._crashes = 0
                if self._closing.is_set() or not self._reopened(error):
                    return

    def _handle(self, bodies: list[bytes]) -> None:
        if not bodies and not self.stopping and self.due_at is None:
            return
        with self.changed:
            try:
                for body in bodies:
                    self.take(body)
            finally:
                self.changed.notify_all()
            self.taken()

    def _refusal(self, error: ClosedByBroker) -> MqtoolError | None:
        """The error to raise if it would occur again on a new connection; None if it might not.

        RabbitMQ's session crashes each time it is about to deliver a message that it cannot convert to AMQP 1.0.
        """
        if not error.is_temporary:
            return error.translated()
        self.has_crashed |= error.has_crashed
        was_of_use = self.has_progressed or time.monotonic() - self._opened_at >= _STEADY
        self._crashes = (0 if was_of_use else self._crashes) + 1 if error.has_crashed else 0
        return crashed() if self._crashes == _CRASHES else None

    # Reconnecting.

    def _reopened(self, error: BaseException) -> bool:
        """Try to reconnect until an attempt succeeds, attempts run out, or the session is closed."""
        where = self._addresses[0]
        words, lost_at = _in_words(error), time.monotonic()
        with self.changed:
            self.is_lost = True
            resume = self.lost()
            self.changed.notify_all()
        if self._backoff is None:
            self._fail(Unavailable(f"the connection was lost: {words}"))
            return False
        with contextlib.suppress(OSError):
            self.transport.close(politely=False)
        self._notice(f"lost the connection to {where}: {words}")
        # Once the virtual host is deleted, a connection that ends during the login was refused, not lost.
        may_log_in = not _is_of_deleted_vhost(error)
        if self.has_progressed or lost_at - self._opened_at > _STEADY:
            self._attempts, self.has_progressed = enumerate(self._backoff.delays(), 1), False
        said = ""
        for attempt, delay in self._attempts:
            if self._closing.wait(delay):
                return False
            try:
                self._open_again(resume, may_log_in=may_log_in)
            except (ClosedByBroker, MqtoolError, Lost, *LOST) as failure:
                if self._closing.is_set():
                    return False
                may_log_in = may_log_in and not _is_of_deleted_vhost(failure)
                if (final := _final(failure)) is not None:
                    self._fail(final)
                    return False
                if is_news(attempt, why := _in_words(failure), said):
                    self._notice(f"attempt {attempt} to reconnect failed: {why}")
                said = why
            else:
                self._opened_at = time.monotonic()
                self._notice(f"connected again to {self._addresses[0]} after {self._opened_at - lost_at:.1f} s")
                return True
        self._fail(Unavailable(f"gave up reconnecting to {where} after {self._backoff.attempts} attempts"))
        return False

    def _open_again(self, resume: Callable[[], None], *, may_log_in: bool) -> None:
        self.transport = self._opened(again=may_log_in)
        try:
            self.begin()
            resume()
            with self.changed:
                if self._closing.is_set():
                    raise Lost
                self.epoch += 1
                self.is_lost = False
                self.reopened()
                self.taken()
                self.changed.notify_all()
        except BaseException:
            self.transport.close(politely=False)  # its exclusive queues would be locked in the next attempt
            raise

    def _fail(self, failure: MqtoolError, *, refused: bool = False) -> None:
        with self.changed:
            self.failure, self.refused = failure, refused
            self.changed.notify_all()

    def stop(self) -> None:
        """Make waiting calls check whether to stop. Safe to call from a signal handler."""
        self.stopping = True
        self.transport.wake()

    def close(self) -> None:
        """Close the connection. Unsettled deliveries are requeued."""
        if self._closing.is_set():
            return
        self._closing.set()
        self.transport.wake()
        if self._thread is not None:
            self._thread.join(2.0)
        with contextlib.suppress(OSError):
            self.transport.close(politely=not (self.is_lost or self.hopeless))
        if self.failure is None:
            self._fail(Unavailable("the connection is closed"))


def _final(failure: BaseException) -> MqtoolError | None:
    """The error to raise if an attempt to reconnect has failed and no other one might succeed; None if one might."""
    if isinstance(failure, ClosedByBroker):
        return None if failure.is_temporary else failure.translated()
    return failure if isinstance(failure, MqtoolError) and not isinstance(failure, Unavailable) else None


def _is_of_deleted_vhost(error: BaseException) -> bool:
    return isinstance(error, ClosedByBroker) and error.is_of_deleted_vhost


def _in_words(error: BaseException) -> str:
    """Describe why a connection was lost."""
    if isinstance(error, ClosedByBroker) and error.has_crashed:
        return CRASHED
    if isinstance(error, MqtoolError | ClosedByBroker):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, EOFError | Lost):
        return "closed by the other end"
    return "the broker sent something unreadable"
