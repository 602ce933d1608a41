"""What stands between a channel's users and its connection: opens anew after a loss, and sets up again what was there.

After a loss the connection opens it again; after a refusal, which closes a channel in AMQP, it does so itself.
"""

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from pika import exceptions
from pika.channel import Channel as PikaChannel

from mqtool.amqp import declaring, failures
from mqtool.amqp.declaring import Request
from mqtool.amqp.io_thread import IoThread
from mqtool.amqp.journal import Journal, is_named_by_broker
from mqtool.amqp.requests import CONNECTION_LOST, LOOK_UP, Requests
from mqtool.errors import MqtoolError, Unavailable
from mqtool.topology import Binding, Exchange, Queue

Thing = TypeVar("Thing", bound=Exchange | Queue)


class Line(Protocol):
    """What a link needs of its connection."""

    has_progressed: bool

    @property
    def io(self) -> IoThread: ...
    @property
    def notice(self) -> Callable[[str], None]: ...
    @property
    def frame_max(self) -> int: ...
    @property
    def comes_back(self) -> bool: ...
    @property
    def hopeless(self) -> str | None: ...
    def open_pika_channel(self, on_open: Callable[[PikaChannel], None], /) -> PikaChannel: ...


class Listener:
    """Publishes or consumes, and is told what becomes of the channel. On the I/O thread, except opened().

    Attributes:
        consumes: queues that are deleted with their last consumer must be declared again for it.
    """

    consumes = False

    def opened(self, *, connection_is_new: bool) -> None:
        """There is another pika channel: set up again what was there before."""

    def paused(self) -> None:
        """The connection is lost, or the broker blocks publishers: memory or disk alarm."""

    def resumed(self) -> None:
        """The broker accepts messages again."""

    def cancelled(self, tag: str) -> None:
        """The broker has cancelled the consumer with this tag."""

    def failed(self, failure: MqtoolError) -> None:
        """The channel is closed for good. From any thread."""

    def closing(self) -> None:
        """The connection is about to be closed: send what waits. From any thread."""


class Link:
    """A channel's link to its connection.

    Attributes:
        failure: what closed the channel for good, or None.
        refused: the broker closed the channel over what was asked of it; the connection is open.
        journal: what to set up again.
        requests: the way to the broker, without what this adds.

    Args:
        strict: reject any difference between what is declared and what exists.
    """

    def __init__(self, line: Line, *, strict: bool) -> None:
        self.failure: MqtoolError | None = None
        self.refused = False
        self.journal = Journal()
        self._line = line
        self._strict = strict
        self._listeners: dict[Listener, None] = {}  # in order
        self.requests = Requests(
            line.io,
            line.open_pika_channel,
            lambda: line.hopeless,
            on_refused=self._on_refused,
            on_cancelled=self._on_cancelled,
        )
        self._is_set_up = False
        self._changed = threading.Condition()
        self._opening = threading.RLock()
        self._opener: int | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the channel is open, with all that was set up on it."""
        return self._is_set_up and self.requests.pika is not None

    def listen(self, listener: Listener) -> None:
        """Tell this one, too."""
        self._listeners[listener] = None

    def progress(self) -> None:
        """The broker has confirmed something, or gets an acknowledgement."""
        self._line.has_progressed = True

    def forget(self, listener: Listener) -> None:
        """Tell this one no more."""
        self._listeners.pop(listener, None)

    def tell(self, event: Callable[[Listener], None]) -> None:
        """Call a method of every listener."""
        for listener in tuple(self._listeners):
            event(listener)

    # For the connection.

    def open(self, *, connection_is_new: bool = False, set_up_topology: bool = True) -> None:
        """Open the channel on the present connection, and set up again what was there before.

        Raises:
            pika.exceptions.AMQPError: the connection is lost.
            MqtoolError: the broker refuses something.
        """
        with self._opening:
            if self.is_ready:
                return  # by another thread
            self._is_set_up, self._opener = False, threading.get_ident()
            try:
                self.requests.open()
                if set_up_topology:
                    self._set_up_again()
                self.tell(lambda listener: listener.opened(connection_is_new=connection_is_new))
            finally:
                self._opener = None
            with self._changed:
                self._is_set_up = True
                self._changed.notify_all()

    def lost(self) -> None:
        """The connection is lost, and will be opened again."""
        self.requests.pika = None
        self.tell(lambda listener: listener.paused())

    def fail(self, failure: MqtoolError) -> None:
        """The channel is closed for good. From any thread."""
        with self._changed:
            if self.failure is not None:
                return
            self.failure = failure
            self._changed.notify_all()
        self.tell(lambda listener: listener.failed(failure))

    # Requests.

    def retrying(self, request: Callable[[], Any]) -> Any:
        """Make a request; if the connection is lost meanwhile, make it again on the next one.

        Raises:
            MqtoolError: the broker refuses it, or the channel is closed for good.
        """
        while True:
            self.wait_until_ready()
            try:
                return request()
            except CONNECTION_LOST:
                continue  # it has lost its pika channel before it fails, so this waits for the next one

    def wait_until_ready(self) -> None:
        """Wait until the channel is open.

        Raises:
            Unavailable: the command is to stop, and there is no connection.
            MqtoolError: it is closed for good.
        """
        with self._changed:
            while not self._changed.wait_for(lambda: self.is_ready or self.failure is not None, LOOK_UP):
                if why := self._line.hopeless:
                    raise Unavailable(f"stopped: {why}")
        if self.failure is not None:
            raise self.failure

    def checked(self, request: Request) -> Any:
        """Make a request that the broker may refuse by closing the channel; open it again then, and say why.

        Raises:
            MqtoolError: the broker refuses it.
            pika.exceptions.AMQPError: the connection is lost.
        """
        try:
            return self.requests.make(request)
        except exceptions.ChannelClosedByBroker as error:
            if self._opener != threading.get_ident():  # else what is being set up again cannot be
                self._open_after_refusal()
            raise failures.closed_by_broker(error) from error

    def declare(self, thing: Thing, *, exactly: bool = False) -> Thing:
        """Declare an exchange or a queue, or use the one that exists if the difference is harmless."""
        if self.journal.differs(thing):  # declaring it would close the channel once more
            try:
                self.requests.make(declaring.declaration(thing, passive=True))
            except exceptions.ChannelClosedByBroker:
                self.journal.unset_differs(thing)
                self._open_after_refusal()
            else:
                return thing
        try:
            answer = self.requests.make(declaring.declaration(thing))
        except exceptions.ChannelClosedByBroker as error:
            failure = failures.closed_by_broker(error)
            self._open_after_refusal()
            if exactly or self._strict or not failures.is_harmless_difference(error):
                raise failure from error
            self._line.notice(f"using the one that is there: {failure}")
            self.journal.set_differs(thing)
            answer = self.checked(declaring.declaration(thing, passive=True))
        return thing._replace(name=answer.method.queue) if isinstance(thing, Queue) else thing

    def bind(self, binding: Binding) -> None:
        """Bind a queue or an exchange to an exchange."""
        self.checked(declaring.bind(self.journal.current(binding)))

    def _set_up_again(self) -> None:
        for entry in self.journal:
            if isinstance(entry, Binding):
                self.bind(entry)
            elif isinstance(entry, Queue) and is_named_by_broker(entry):
                self.journal.renamed(entry.name, self.declare(entry._replace(name="")).name)
            else:
                self.declare(entry)

    # Opening anew.

    def open_another(self) -> None:
        """Start to open another pika channel in place of this one. From any thread."""

        def leave() -> None:
            left = self.requests.leave()
            if left is None:
                return  # the connection is lost, and there will be another channel anyway
            self.tell(lambda listener: listener.paused())
            self._line.io.run(lambda: left.close() if left.is_open else None)
            self._open_or_fail()

        threading.Thread(target=leave, daemon=True).start()

    def _open_after_refusal(self) -> None:
        """Open the channel that the broker has closed. What was declared still exists, except what is deleted with its
        last consumer.
        """
        if self._opener == threading.get_ident():
            self.requests.open()
            return
        try:
            self.open(set_up_topology=any(listener.consumes for listener in tuple(self._listeners)))
        except MqtoolError as failure:
            self.fail(failure)
            raise

    def _open_or_fail(self) -> None:
        try:
            self.open()
        except exceptions.AMQPError:
            pass  # the connection is lost as well, and opens this link once it is open again
        except MqtoolError as failure:
            self.fail(failure)

    def _on_refused(self, reason: exceptions.ChannelClosedByBroker) -> None:
        """The broker closed the channel, but not in answer to a request. On the I/O thread."""
        why = failures.closed_by_broker(reason)
        if not self._line.comes_back or not failures.is_mended_by_reopening(reason, self.journal.exchanges):
            self.refused = True
            self.fail(why)
            return

        def reopen() -> None:
            self._line.notice(f"the broker closed the channel: {why}" + (f" ({why.hint})" if why.hint else ""))
            self._open_or_fail()
            if self.is_ready:
                self._line.notice("opened the channel again")

        self.lost()
        threading.Thread(target=reopen, daemon=True).start()

    def _on_cancelled(self, tag: str) -> None:
        self.tell(lambda listener: listener.cancelled(tag))
