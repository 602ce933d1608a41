"""A stream's channel: create, publish, consume, keep offsets, as plain blocking calls that outlive their connection."""

import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from mqtool.amqp import CONFIRM_TIMEOUT, STREAMING, Address, Backoff, Receiving
from mqtool.errors import DeclaredDifferently, MqtoolError, NotFound, Unavailable, UsageError
from mqtool.message import Delivery, Message, Receipt
from mqtool.offsets import FIRST, Offset
from mqtool.streams import failures
from mqtool.streams.consumer import Consumer
from mqtool.streams.entries import encode
from mqtool.streams.publisher import Publisher
from mqtool.streams.session import NOWHERE, Session
from mqtool.topology import Stream

#: Pauses between attempts to find a leader: one is chosen a moment after a stream is created, or a node is lost.
_ELECTION = Backoff(first=0.1, attempts=12, longest=1.0)


class StreamChannel:
    """Speaks RabbitMQ's stream protocol; for one thread, and one publisher or consumer at a time.

    Args:
        nodes: the broker's, with their ports for streams.
        backoff: between attempts to reconnect; None does not reconnect.
        strict: fail if a stream exists with other settings.
        encode: makes of a message what the stream stores: AMQP 1.0, unless the tutorial does otherwise.
        filters: values for RabbitMQ's filters (3.13 and later): what is published has the first; what is consumed has
            one of them, but for what else is in the same chunk.
        notice: is told of lost connections.

    Attributes:
        before_acknowledging: called before offsets are stored, and when there are no more messages for now: whoever
            prints them in lots prints the rest.
        stopping: stop() was called.
    """

    refused = False

    def __init__(
        self,
        nodes: Sequence[Address],
        context: ssl.SSLContext | None = None,
        *,
        backoff: Backoff | None = None,
        strict: bool = False,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        encode: Callable[[Message], bytes] = encode,
        filters: Sequence[str] = (),
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.before_acknowledging: Callable[[], None] = lambda: None
        self.notice = notice
        self.stopping = False
        self._nodes = list(nodes)
        self._context = context
        self._backoff = backoff
        self._strict = strict
        self._confirm_timeout = confirm_timeout
        self._encode = encode
        self._filters = filters
        self._stop = threading.Event()
        self._consumer: Consumer | None = None
        self._publisher: Publisher | None = None
        self.session = self._first()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._consumer is not None:
                self._consumer.leave()
        finally:
            self.session.close()

    # Streams.

    def declare(self, stream: Stream) -> Stream:
        """Make sure that a stream exists. One with other settings is used as it is, unless the channel is strict.

        Raises:
            DeclaredDifferently: there is a queue of that name that is not a stream, or the channel is strict.
            AccessRefused: the user lacks the permission.
        """
        _check_name(stream.name)

        if self.session.create(stream.name, stream.arguments):
            return stream
        if not self.exists(stream.name):
            raise DeclaredDifferently(
                f"queue {stream.name!r} is not a stream", "name another with -q, or delete it: mqtool queue delete"
            )
        if self._strict:
            raise DeclaredDifferently(f"stream {stream.name!r} has other settings", "leave out --strict to use it")
        self.notice(f"stream {stream.name!r} has other settings; using the one that is there")
        return stream

    def exists(self, stream: str) -> bool:
        """Whether there is such a stream."""
        _check_name(stream)
        return self.session.exists(stream)

    def stored_offset(self, stream: str, name: str) -> int | None:
        """The offset that the broker keeps under a name; None if there is none.

        Raises:
            NotFound: there is no such stream.
        """
        _check_name(name, "name")
        return self.session.stored_offset(stream, name)

    def store_offset(self, stream: str, name: str, offset: int) -> None:
        """Have the broker keep an offset under a name: that of the last message that somebody is done with.

        Raises:
            NotFound: there is no such stream.
        """
        _check_name(name, "name")
        self.session.store_offset(stream, name, offset)

    def forget_offset(self, stream: str, name: str) -> None:
        """Have whoever uses a name start again. The protocol has no word for that: -1 means it to most clients."""
        self.store_offset(stream, name, NOWHERE)

    # Publishing and consuming.

    def publish(self, messages: Iterable[Message | None], stream: Stream) -> Iterator[Receipt]:
        """Publish messages; yield each one's receipt, in order, once the broker has confirmed it.

        Unconfirmed messages are published again after a reconnection.

        Args:
            messages: None among them says that there is none right now.

        Raises:
            NotFound: there is no such stream.
            NotConfirmed: the broker did not answer in time.
        """
        filter_value = next(iter(self._filters), None)
        self._publisher = Publisher(self, stream.name, self._confirm_timeout, self._encode, filter_value)
        return self._publisher.publish(messages)

    @property
    def unconfirmed(self) -> list[Message]:
        """The messages published but not answered for, oldest first."""
        return [] if self._publisher is None else self._publisher.unconfirmed

    def addressed(self, message: Message) -> Message:
        """A message, for the file of what failed: it can be published again as it is."""
        return message

    def consume(
        self, stream: Stream, offset: Offset = FIRST, receiving: Receiving = STREAMING, track: str | None = None
    ) -> Iterator[Delivery]:
        """Start to read, at once; the iterator returned yields the messages, with their offset as delivery tag.

        After a reconnection it goes on behind the last one.

        Args:
            offset: where to start.
            track: store the offset of the last message that the caller came back from under this name, now and then
                and at the end; start behind the stored offset, if there is one.

        Raises:
            NotFound: there is no such stream.
        """
        self._consumer = Consumer(self, stream.name, receiving, track=track, filters=self._filters)
        self._consumer.start(offset)
        return self._consumer.deliveries()

    def stop(self) -> None:
        """End consuming after the message in hand. From any thread, and from a signal handler."""
        self.stopping = True
        self._stop.set()
        self.session.inbox.put(None)

    # The connection.

    def go_to(self, stream: str, *, to_publish: bool) -> None:
        """Be connected to a node that has the stream; to publish, to its leader.

        Raises:
            NotFound: there is no such stream.
            Unavailable: the node cannot be reached.
        """
        for pause in _ELECTION.delays():
            try:
                nodes = self.session.ask(lambda client: client.query_leader_and_replicas(stream), stream)
                break
            except NotFound:
                raise
            except Unavailable:
                if self.session.lost is not None or self._stop.wait(pause):
                    raise
        else:
            raise Unavailable(f"stream {stream!r} has no leader")
        leader, replicas = nodes
        if self.session.has([leader] if to_publish else [leader, *replicas]):
            return
        other = self.session.beside(leader, self._context)
        self.session.close()
        self.session = other

    def reopen(self, go_on: Callable[[], None]) -> bool:
        """Connect again after a loss, and go on; False if somebody asked to stop meanwhile.

        Raises:
            MqtoolError: it was given up.
        """
        why, where, lost_at = self.session.lost, self.session.address, time.monotonic()
        at = f"{where.host}:{where.port}"
        words = failures.in_words(why) if why is not None else "the stream has moved"
        if self._backoff is None:
            raise Unavailable(f"the connection to {at} was lost: {words}")
        self.notice(f"lost the connection to {at}: {words}")
        for attempt, pause in enumerate(self._backoff.delays(), 1):
            if self._stop.wait(pause):
                return False
            try:
                self.session.close()
                self.session = self._first()
                go_on()
            except NotFound:
                raise
            except Unavailable as failure:
                self.notice(f"attempt {attempt} to reconnect failed: {failure}")
            else:
                self.notice(f"connected again to {at} after {time.monotonic() - lost_at:.1f} s")
                return True
        raise Unavailable(f"gave up reconnecting to {at} after {self._backoff.attempts} attempts")

    def _first(self) -> Session:
        """A session with the first node that answers."""
        failure: MqtoolError | None = None
        for address in self._nodes:
            session = Session(address, self._context)
            try:
                session.open()
            except Unavailable as error:
                failure = failure or error
            else:
                return session
        assert failure is not None
        raise failure


def _check_name(name: str, what: str = "stream's name") -> None:
    """rstream counts characters where the protocol counts octets."""
    if not name or not name.isascii() or len(name) > 255:
        raise UsageError(f"the {what} {name!r} cannot be used", "use 1 to 255 ASCII characters")
