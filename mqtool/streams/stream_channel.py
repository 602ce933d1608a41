"""StreamChannel: create streams, publish, consume, store offsets. Calls block, and resume after a reconnection."""

import math
import queue as queues
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from mqtool.amqp import CONFIRM_TIMEOUT, STREAMING, Address, Backoff, Channel, Receiving
from mqtool.amqp.administration import check_lines
from mqtool.codecs.sections import encode, for_old_streams
from mqtool.duration import is_news
from mqtool.errors import DeclaredDifferently, MqtoolError, NotFound, Unavailable, UsageError
from mqtool.message import Delivery, Message, Receipt
from mqtool.offsets import FIRST, Offset
from mqtool.streams.session import NOWHERE, Inbox, StreamSession, in_words
from mqtool.streams.stream_consumer import StreamConsumer
from mqtool.streams.stream_publisher import StreamPublisher, create_super_stream, is_super_stream
from mqtool.topology import Stream

#: Pauses between checks for a leader, which may not be elected yet after a stream was created or a node was lost.
_ELECTION = Backoff(first=0.1, attempts=12, longest=1.0)

#: Seconds after which a connection counts as stable, so that the next loss starts with a short delay again.
_STEADY = 60.0
#: The maximum number of partitions: ids of subscriptions have one byte, and Session needs one of them for look-ups.
_MOST = 255
#: The maximum length of a name, in bytes.
_LONGEST_NAME = 255


class StreamChannel:
    """A client of RabbitMQ's stream protocol, for one thread, and one publisher or consumer at a time.

    Args:
        nodes: the addresses of the broker's nodes, with their stream ports.
        backoff: the delays between attempts to reconnect; None never reconnects.
        strict: fail if a stream exists with different settings.
        any_settings: give no notice when using a stream with different settings.
        stores_bodies: store only the body of a message without properties, as some tutorials do.
        filters: values for RabbitMQ's stream filters (3.13 and later). Messages are published with the first one. Only
            chunks with one of the values are consumed; they may contain other messages, too.
        single_active: only one of the consumers with the same offset name gets messages (RabbitMQ 3.11 and later).
        by_amqp: opens an AMQP 0-9-1 channel to create super streams, since some brokers have no stream command for it.
        notice: called with a sentence for the user, for example when the connection is lost.

    Attributes:
        stopping: True once stop() has been called.
        has_progressed: True if a chunk or a confirm was received since the connection was opened.
    """

    refused = False

    def __init__(
        self,
        nodes: Sequence[Address],
        context: ssl.SSLContext | None = None,
        *,
        backoff: Backoff | None = None,
        strict: bool = False,
        any_settings: bool = False,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        stores_bodies: bool = False,
        filters: Sequence[str] = (),
        single_active: bool = False,
        by_amqp: Callable[[], AbstractContextManager[Channel]],
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.notice = notice
        self.stopping = False
        self.has_progressed = True
        self._attempts: Iterator[tuple[int, float]] = iter(())
        self._opened_at = time.monotonic()
        self._nodes = list(nodes)
        self._context = context
        self._backoff = backoff
        self._strict = strict
        self._any_settings = any_settings
        self._confirm_timeout = confirm_timeout
        self._stores_bodies = stores_bodies
        self._filters = filters
        self._is_single_active = single_active
        self._by_amqp = by_amqp
        self._stop = threading.Event()
        self._consumer: StreamConsumer | None = None
        self._publisher: StreamPublisher | None = None
        self.inbox: Inbox = queues.SimpleQueue()
        self.session = self._first()
        self._sessions = [self.session]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._consumer is not None:
                self._consumer.leave()
        finally:
            self._close()

    @property
    def cluster_name(self) -> str | None:
        return (self.session.client.server_properties or {}).get("cluster_name")

    def declare(self, stream: Stream) -> Stream:
        """Create a stream. An existing one with different arguments is used as it is, unless the channel is strict.

        Returns:
            The stream; a super stream with its actual partitions.
        """
        _check_name(stream.name)
        check_lines(stream.name)
        if stream.partitions or not self.exists(stream.name):
            there = self.session.partitions(stream.name)
            if there and (stream.partitions or is_super_stream(stream.name, there)):
                return self._as_it_is(stream, there)
            if stream.partitions:
                with self._by_amqp() as channel:
                    create_super_stream(channel, stream)
                return stream
        if self.session.create(stream.name, stream.arguments):
            return stream
        if not self.exists(stream.name):
            raise DeclaredDifferently(f"queue {stream.name!r} is not a stream", "name another stream with -q")
        if self._strict:
            raise DeclaredDifferently(f"stream {stream.name!r} has different settings", "leave out --strict to use it")
        if not self._any_settings:
            self.notice(f"stream {stream.name!r} exists with different settings, and is used as it is")
        return stream

    def _as_it_is(self, stream: Stream, partitions: Sequence[str]) -> Stream:
        if len(partitions) > _MOST:
            raise UsageError(f"super stream {stream.name!r} has more than {_MOST} partitions", "read them one by one")
        if stream.partitions and len(stream.partitions) != len(partitions):
            has = f"super stream {stream.name!r} has {len(partitions)} partition{'s' * (len(partitions) != 1)}"
            if self._strict:
                raise DeclaredDifferently(has, "leave out --strict to use them")
            self.notice(f"{has}; using what is there")
        return stream._replace(partitions=partitions)

    def exists(self, stream: str) -> bool:
        _check_name(stream)
        return self.session.exists(stream)

    def streams_of(self, name: str) -> list[str]:
        """The partitions of a super stream; for any other stream, a list with its own name."""
        if not self.exists(name) and is_super_stream(name, there := self.session.partitions(name)):
            return there
        return [name]

    def stored_offset(self, stream: str, name: str) -> int | None:
        """Return the offset stored under a reader's name; None if there is none."""
        _check_name(name, "name")
        return self.session.stored_offset(stream, name)

    def offsets_of(self, stream: str) -> range:
        """The offsets of a stream's messages."""
        return self.sessions_for([stream], to_publish=False)[0].offsets_of(stream)

    def store_offset(self, stream: str, name: str, offset: int) -> None:
        """Store the offset of the last message that a reader has handled, under the reader's name.

        Raises:
            NotFound: there is no such stream. The broker does not say so: it ignores the offset.
        """
        _check_name(name, "name")
        if not self.exists(stream):
            raise NotFound(f"stream {stream!r} does not exist", "'mqtool list queues name type' shows which streams do")
        self.session.store_offset(stream, name, offset)

    def forget_offset(self, stream: str, name: str) -> None:
        """Reset a reader's offset. Stores -1, which most clients treat as "start over"."""
        self.store_offset(stream, name, NOWHERE)

    def publish(self, messages: Iterable[Message | None], stream: Stream) -> Iterator[Receipt]:
        """Publish messages; yield each one's receipt, in order, once the broker has confirmed it.

        Unconfirmed messages are published again after a reconnection.

        Args:
            messages: None means that there is no message right now. In a super stream, the routing key decides which
                partition gets a message; messages without one go to the partitions in turn.

        Raises:
            NotFound: there is no such stream.
            NotConfirmed: the broker did not confirm in time.
        """
        filter_value = next(iter(self._filters), None)
        streams = stream.partitions or [stream.name]
        exchange = stream.name if stream.partitions else ""
        is_old = self.session.is_before((4, 0))

        def encoded(message: Message) -> bytes:
            if self._stores_bodies and not message.properties and message.message_id is None:
                return message.body
            return encode(for_old_streams(message) if is_old and message.properties else message, exchange=exchange)

        self._publisher = StreamPublisher(self, streams, self._confirm_timeout, encoded, filter_value)
        return self._publisher.publish(messages)

    @property
    def unconfirmed(self) -> list[Message]:
        """The unconfirmed messages, oldest first."""
        return [] if self._publisher is None else self._publisher.unconfirmed

    def addressed(self, message: Message) -> Message:
        """Return the message unchanged. (amqp.Channel adds the exchange and the routing key.)"""
        return message

    def consume(
        self, stream: Stream, offset: Offset = FIRST, receiving: Receiving = STREAMING, track: str | None = None
    ) -> Iterator[Delivery]:
        """Start consuming; return an iterator of the messages. A message's delivery tag is its offset.

        After a reconnection, consuming resumes after the last message received.

        Args:
            offset: where to start.
            track: a name under which to store the offset of the last message that the caller has handled, regularly
                and at the end. If an offset is already stored under this name, start after it.
        """
        if track is not None:
            _check_name(track, "name")
        if self._is_single_active and track is None:
            raise UsageError("a single active consumer needs a name", "give one: --track NAME")
        self._consumer = StreamConsumer(
            self, stream, receiving, track, self._filters, single_active=self._is_single_active
        )
        self._consumer.start(offset)
        return self._consumer.deliveries()

    def stop(self) -> None:
        """Stop consuming after the current message. Safe to call from any thread or a signal handler."""
        self.stopping = True
        self._stop.set()
        self.inbox.put(None)

    def sessions_for(self, streams: Sequence[str], *, to_publish: bool) -> list[StreamSession]:
        """Return a session for each stream: with its leader or, unless `to_publish`, a replica. Closes the others."""
        found = [self._session_for(stream, to_publish=to_publish) for stream in streams]
        for unused in set(self._sessions).difference(found):
            unused.close()
        self._sessions = list(dict.fromkeys(found))
        self.session = found[0]
        return found

    def _session_for(self, stream: str, *, to_publish: bool) -> StreamSession:
        for pause in _ELECTION.delays():
            try:
                leader, replicas = self.session.ask(self.session.client.query_leader_and_replicas(stream), stream)
                break
            except NotFound:
                raise
            except Unavailable:
                if self.is_lost or self._stop.wait(pause):
                    raise
        else:
            raise Unavailable(f"stream {stream!r} has no leader")
        for session in self._sessions:
            if session.has([leader] if to_publish else [leader, *replicas]):
                return session
        self._sessions.append(self.session.beside(leader, self._context))
        return self._sessions[-1]

    @property
    def is_lost(self) -> bool:
        return any(session.lost is not None for session in self._sessions)

    def reopen(self, go_on: Callable[[], None], until: float = math.inf) -> bool:
        """Reconnect, and call `go_on` to resume; return False if stop() was called or `until` has passed."""
        lost = next((session for session in self._sessions if session.lost is not None), self.session)
        why, where, lost_at = lost.lost, lost.address, time.monotonic()
        at = f"{where.host}:{where.port}"
        words = in_words(why) if why is not None else "the stream has moved"
        if self._backoff is None:
            raise Unavailable(f"the connection to {at} was lost: {words}")
        self.notice(f"lost the connection to {at}: {words}")
        if self.has_progressed or lost_at - self._opened_at > _STEADY:
            self._attempts, self.has_progressed = enumerate(self._backoff.delays(), 1), False
        said = ""
        for attempt, pause in self._attempts:
            if self._stop.wait(min(pause, max(0.0, until - time.monotonic()))) or time.monotonic() >= until:
                return False
            try:
                self._close()
                self.inbox = queues.SimpleQueue()
                self.session = self._first()
                self._sessions = [self.session]
                go_on()
            except NotFound:
                raise
            except Unavailable as failure:
                if is_news(attempt, words := str(failure), said):
                    self.notice(f"attempt {attempt} to reconnect failed: {words}")
                said = words
            else:
                self._opened_at = time.monotonic()
                self.notice(f"connected again to {at} after {self._opened_at - lost_at:.1f} s")
                return True
        raise Unavailable(f"gave up reconnecting to {at} after {self._backoff.attempts} attempts")

    def _close(self) -> None:
        for session in self._sessions:
            session.close()

    def _first(self) -> StreamSession:
        """Open a session with the first node that can be reached."""
        failure: MqtoolError | None = None
        for address in self._nodes:
            session = StreamSession(address, self._context, self.inbox)
            try:
                session.open()
            except Unavailable as error:
                failure = failure or error
            else:
                return session
        assert failure is not None
        raise failure


def _check_name(name: str, what: str = "stream's name") -> None:
    """Raise UsageError unless a name is valid."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= _LONGEST_NAME:
        raise UsageError(f"the {what} {name!r} cannot be used", f"use 1 to {_LONGEST_NAME} bytes of UTF-8")
