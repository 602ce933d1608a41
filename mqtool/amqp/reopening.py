"""ReopeningChannel: a channel that is reopened after a loss, and declares its exchanges, queues and bindings again."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from pika import exceptions
from pika.channel import Channel as PikaChannel

from mqtool.amqp import administration, pika_errors
from mqtool.amqp.administration import Request
from mqtool.amqp.io_thread import CHECK_INTERVAL, CONNECTION_LOST, IoThread, Requests
from mqtool.errors import MqtoolError, Unavailable
from mqtool.topology import Binding, Exchange, Queue


class Journal:
    """The exchanges, queues and bindings to set up again when a channel is reopened, in order. Does no I/O."""

    def __init__(self) -> None:
        self._entries: list[Exchange | Queue | Binding] = []
        self._names: dict[str, str] = {}
        self._differing: set[tuple[type, str]] = set()

    def __iter__(self) -> Iterator[Exchange | Queue | Binding]:
        return iter(tuple(self._entries))

    def remember(self, entry: Exchange | Queue | Binding) -> None:
        """Add an exchange, a queue or a binding."""
        self._entries.append(entry)

    @property
    def exchanges(self) -> list[str]:
        """The names of the exchanges."""
        return [entry.name for entry in self._entries if isinstance(entry, Exchange)]

    def renamed(self, queue: str, name: str) -> None:
        """Store the new name of a queue that was named by the broker."""
        self._names[queue] = name

    def current_name(self, queue: str) -> str:
        """The present name of a queue: one named by the broker gets another name with each reconnection."""
        return self._names.get(queue, queue)

    def current(self, binding: Binding) -> Binding:
        """Copy a binding, with the present name of its queue."""
        if binding.to_exchange or binding.destination not in self._names:
            return binding
        return replace(binding, destination=self._names[binding.destination])

    def differs(self, thing: Exchange | Queue) -> bool:
        """True if a queue or exchange is known to have other settings on the broker, and is used as it is."""
        return (type(thing), thing.name) in self._differing

    def set_differs(self, thing: Exchange | Queue) -> None:
        """Remember that a queue or exchange exists with other settings: declaring it would close the channel."""
        self._differing.add((type(thing), thing.name))

    def unset_differs(self, thing: Exchange | Queue) -> None:
        """Undo set_differs(): the queue or exchange was deleted, and can be declared."""
        self._differing.discard((type(thing), thing.name))


def is_named_by_broker(queue: Queue) -> bool:
    """True if the broker chose the name of a queue."""
    return queue.exclusive and queue.name.startswith("amq.")


Thing = TypeVar("Thing", bound=Exchange | Queue)


class ChannelConnection(Protocol):
    """The part of Connection that a ReopeningChannel uses.

    Attributes:
        has_progressed: True if a message was confirmed or a delivery acknowledged since the connection was opened.
        comes_back: True if the connection is reopened after a loss.
        hopeless: the reason why the broker cannot reply, if the command must stop; else None.
    """

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


class ChannelListener:
    """Receives the events of a channel. Its methods are called on the I/O thread unless they say otherwise.

    Attributes:
        consumes: True for a consumer: a queue that is deleted with its last consumer must be declared again for it.
    """

    consumes = False

    def opened(self, *, connection_is_new: bool) -> None:
        """Resume publishing or consuming on the reopened channel. Called on the thread that has opened it."""

    def paused(self) -> None:
        """Handle that the connection is lost, or that the broker blocks publishers (memory or disk alarm)."""

    def resumed(self) -> None:
        """Handle that the broker has unblocked publishers."""

    def cancelled(self, tag: str) -> None:
        """Handle that the broker has cancelled the consumer with this tag."""

    def failed(self, failure: MqtoolError) -> None:
        """Handle that the channel is closed for good. Called on any thread."""

    def closing(self) -> None:
        """Send pending acknowledgements, before the connection is closed. Called on any thread."""


class ReopeningChannel:
    """A channel that is reopened after the connection was lost, or after the broker has closed the channel.

    After a loss, the connection reopens it. After an error, which closes a channel in AMQP, the channel reopens itself.

    Attributes:
        failure: the error that closed the channel for good, if any.
        refused: True if the broker closed the channel because of an error, while the connection stayed open.
        journal: the exchanges, queues and bindings to set up again.
        requests: makes single requests, without repeating them.

    Args:
        strict: reject any difference between what is declared and what exists.
    """

    def __init__(self, connection: ChannelConnection, *, strict: bool) -> None:
        self.failure: MqtoolError | None = None
        self.refused = False
        self.journal = Journal()
        self._connection = connection
        self._strict = strict
        self._listeners: dict[ChannelListener, None] = {}  # in order
        self.requests = Requests(
            connection.io,
            connection.open_pika_channel,
            lambda: connection.hopeless,
            on_refused=self._on_refused,
            on_cancelled=self._on_cancelled,
        )
        self._is_set_up = False
        self._changed = threading.Condition()
        self._opening = threading.RLock()
        self._opener: int | None = None

    @property
    def is_ready(self) -> bool:
        """True if the channel is open, and set up as before."""
        return self._is_set_up and self.requests.pika is not None

    def listen(self, listener: ChannelListener) -> None:
        """Start to pass events to a listener."""
        self._listeners[listener] = None

    def progress(self) -> None:
        """Note that a message was confirmed or a delivery acknowledged."""
        self._connection.has_progressed = True

    def forget(self, listener: ChannelListener) -> None:
        """Stop passing events to a listener."""
        self._listeners.pop(listener, None)

    def tell(self, event: Callable[[ChannelListener], None]) -> None:
        """Call a function, such as a method of ChannelListener, with each listener."""
        for listener in tuple(self._listeners):
            event(listener)

    # For the connection.

    def open(self, *, connection_is_new: bool = False, set_up_topology: bool = True) -> None:
        """Open the channel on the current connection, and set it up as before.

        Args:
            connection_is_new: the connection itself was reopened.
            set_up_topology: also declare the entries of the journal.

        Raises:
            pika.exceptions.AMQPError: the connection is lost.
            MqtoolError: the broker refuses a declaration.
        """
        with self._opening:
            if self.is_ready:
                return  # another thread has opened it
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
        """Note that the connection is lost; it is being opened again."""
        self.requests.pika = None
        self.tell(lambda listener: listener.paused())

    def fail(self, failure: MqtoolError) -> None:
        """Close the channel for good: waiting calls raise this error. Safe to call from any thread."""
        with self._changed:
            if self.failure is not None:
                return
            self.failure = failure
            self._changed.notify_all()
        self.tell(lambda listener: listener.failed(failure))

    # Requests.

    def retrying(self, request: Callable[[], Any]) -> Any:
        """Make a request. If the connection is lost in the meantime, repeat the request on the next one.

        Raises:
            MqtoolError: the broker refuses the request, or the channel is closed for good.
        """
        while True:
            self.wait_until_ready()
            try:
                return request()
            except CONNECTION_LOST:
                continue  # requests.pika is None by now, so this waits for the next channel

    def wait_until_ready(self) -> None:
        """Wait until the channel is open.

        Raises:
            Unavailable: the command must stop, and there is no connection.
            MqtoolError: the channel is closed for good.
        """
        with self._changed:
            while not self._changed.wait_for(lambda: self.is_ready or self.failure is not None, CHECK_INTERVAL):
                if why := self._connection.hopeless:
                    raise Unavailable(f"stopped: {why}")
        if self.failure is not None:
            raise self.failure

    def checked(self, request: Request) -> Any:
        """Make a request. If the broker refuses it and closes the channel, reopen the channel; raise the reason.

        Raises:
            MqtoolError: the broker refuses the request.
            pika.exceptions.AMQPError: the connection is lost.
        """
        try:
            return self.requests.make(request)
        except exceptions.ChannelClosedByBroker as error:
            if self._opener != threading.get_ident():  # else open() is running, and fails
                self._open_after_refusal()
            raise pika_errors.closed_by_broker(error) from error

    def declare(self, thing: Thing, *, exactly: bool = False) -> Thing:
        """Declare an exchange or a queue, or use the existing one if it differs harmlessly; see Channel.declare()."""
        if self.journal.differs(thing):  # declaring it again would close the channel
            try:
                self.requests.make(administration.declare_request(thing, passive=True))
            except exceptions.ChannelClosedByBroker:
                self.journal.unset_differs(thing)
                self._open_after_refusal()
            else:
                return thing
        try:
            answer = self.requests.make(administration.declare_request(thing))
        except exceptions.ChannelClosedByBroker as error:
            failure = pika_errors.closed_by_broker(error)
            self._open_after_refusal()
            if exactly or self._strict or not pika_errors.is_harmless_difference(error):
                raise failure from error
            self._connection.notice(f"using the one that is there: {failure}")
            self.journal.set_differs(thing)
            answer = self.checked(administration.declare_request(thing, passive=True))
        return thing._replace(name=answer.method.queue) if isinstance(thing, Queue) else thing

    def bind(self, binding: Binding) -> None:
        """Bind a queue or an exchange to an exchange."""
        self.checked(administration.binding_request(self.journal.current(binding)))

    def _set_up_again(self) -> None:
        for entry in self.journal:
            if isinstance(entry, Binding):
                self.bind(entry)
            elif isinstance(entry, Queue) and is_named_by_broker(entry):
                self.journal.renamed(entry.name, self.declare(entry._replace(name="")).name)
            else:
                self.declare(entry)

    # Opening it again.

    def open_another(self) -> None:
        """Start to replace the pika channel with a new one. Safe to call from any thread."""

        def leave() -> None:
            left = self.requests.leave()
            if left is None:
                return  # the connection is lost, and its recovery opens another channel
            self.tell(lambda listener: listener.paused())
            self._connection.io.run(lambda: left.close() if left.is_open else None)
            self._open_or_fail()

        threading.Thread(target=leave, daemon=True).start()

    def _open_after_refusal(self) -> None:
        """Open the channel again after the broker has closed it. Only queues that are deleted with their last consumer
        need to be declared again.
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
            pass  # the connection is lost as well, and opens this channel once it is open again
        except MqtoolError as failure:
            self.fail(failure)

    def _on_refused(self, reason: exceptions.ChannelClosedByBroker) -> None:
        """Handle that the broker has closed the channel while no request was pending. Runs on the I/O thread."""
        why = pika_errors.closed_by_broker(reason)
        if not self._connection.comes_back or not pika_errors.is_mended_by_reopening(reason, self.journal.exchanges):
            self.refused = True
            self.fail(why)
            return

        def reopen() -> None:
            self._connection.notice(f"the broker closed the channel: {why}" + (f" ({why.hint})" if why.hint else ""))
            self._open_or_fail()
            if self.is_ready:
                self._connection.notice("opened the channel again")

        self.lost()
        threading.Thread(target=reopen, daemon=True).start()

    def _on_cancelled(self, tag: str) -> None:
        self.tell(lambda listener: listener.cancelled(tag))
