"""The unconfirmed messages of a channel: kept until the broker confirms them, and published again after a reconnection.

Three threads use them: the caller adds messages and collects receipts, the I/O thread writes messages and receives
confirms, and the thread that reconnects has them published again on a new channel. One lock guards them all.
https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count, repeat
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mqtool.codecs.field_tables import encoded_fields
from mqtool.errors import MqtoolError, NotConfirmed
from mqtool.message import PERSISTENT, Confirmation, Message, Receipt

if TYPE_CHECKING:
    from pika import spec

#: The most messages, and bytes of bodies, that may be unconfirmed.
WINDOW, WINDOW_BYTES = 10_000, 16 * 1024 * 1024
#: Seconds after a reconnection, or after connecting to a cluster that lacks a node, in which a nack may only mean that
#: the queue has no leader yet. Such messages are published again after a pause, on another channel: in RabbitMQ 3.10, a
#: channel that has met a queue without a leader may nack everything from then on.
LEADERLESS, _PAUSE = 20.0, 0.25
#: Seconds between two checks whether to stop, while there is no connection or the broker blocks publishers.
_CHECK_INTERVAL = 0.1
#: While messages are unconfirmed, the next ones are collected up to this many bytes, or for this many seconds, and
#: written together: publishing 10,000 messages one by one then takes a quarter less CPU time.
_BATCH_BYTES, _BATCH_SECONDS = 64 * 1024, 0.001
_FATE = "unconfirmed messages may or may not have arrived"


class Route(NamedTuple):
    """Default exchange, routing key and delivery mode for messages without their own; and the mandatory flag."""

    exchange: str = ""
    routing_key: str = ""
    mandatory: bool = False
    persistent: bool = False


def addressed(message: Message, route: Route) -> Message:
    """Copy a message; if it has no exchange or no routing key, use the route's."""
    return replace(
        message,
        exchange=route.exchange if message.exchange is None else message.exchange,
        routing_key=route.routing_key if message.routing_key is None else message.routing_key,
    )


class PublishCall(NamedTuple):
    """The arguments of pika's basic_publish() for one message."""

    exchange: str
    routing_key: str
    body: bytes
    properties: "spec.BasicProperties"
    mandatory: bool


class Encoded(NamedTuple):
    """Messages that are ready to be written: as frames, or as calls of pika's basic_publish(), depending on the writer.

    Attributes:
        size: the size of the messages in bytes.
    """

    size: int
    frames: bytes = b""
    calls: Sequence[PublishCall] = ()


class MessageWriter(Protocol):
    """Sends messages and acknowledgements on one pika channel."""

    def encode(self, messages: Sequence[Message], route: Route) -> Encoded:
        """Encode messages. Safe to call from any thread.

        Raises:
            UsageError, BadData: a message cannot be encoded.
        """

    def write(self, encoded: Iterable[Encoded], acks: Iterable[tuple[int, bool]] = ()) -> None:
        """Send messages, then acknowledgements: pairs of delivery tag and `multiple`. Call it on the I/O thread.

        Does nothing if the channel is closed.
        """


#: A message, where it was published to, and its sequence number. A plain tuple, since one is made for each message.
_Published = tuple[Message, Route, int]


class Unconfirmed:
    """The unconfirmed messages of one channel, in the order in which they were published.

    Attributes:
        dropped: the number of messages that drop() has dropped since the owner last set it to zero.
        on_refused: called at once with the receipt of a message that the broker nacks or returns. Runs on the I/O
            thread, and must not call this object.

    Args:
        run: runs a function on the I/O thread.
        run_later: runs a function on the I/O thread after a number of seconds.
        reopen: starts opening another channel; restart() is called once it is open.
        hopeless: returns the reason if the command must stop without waiting for the broker; otherwise None.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], None]], None],
        run_later: Callable[[float, Callable[[], None]], None],
        reopen: Callable[[], None],
        hopeless: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._run = run
        self._run_later = run_later
        self._reopen = reopen
        self._hopeless = hopeless
        self.dropped = 0
        self.on_refused: Callable[[Receipt], None] = lambda _: None
        self._is_reopening = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._wanted_below = 0  # wait() is not woken while more messages than this are unconfirmed
        self._outstanding: deque[_Published] = deque()
        self._bytes = 0
        self._writer: MessageWriter | None = None  # until restart(), which encodes everything outstanding
        self._outbox: list[Encoded] = []
        self._outbox_size = self._unwritten = 0  # bytes, and messages
        self._is_due = self._is_due_now = False  # the I/O thread is going to empty the outbox
        # Delivery tags count from 1 on every channel. _collected: the tag before that of _outstanding[0].
        # _answered: the highest tag up to which the broker has confirmed or rejected all messages.
        self._collected = 0
        self._answered = 0
        self._answered_early: set[int] = set()
        self._collected_early: set[int] = set()
        self._refused: dict[int, Receipt] = {}
        # The tags of messages to publish again, the messages themselves once collected, and the time when to do so.
        self._again: set[int] = set()
        self._later: deque[_Published] = deque()
        self._later_at = 0.0
        self._leaderless_until = 0.0
        self._done: list[Receipt] = []
        self._last_answer = time.monotonic()
        self._paused = False
        self._failure: MqtoolError | None = None

    # For the caller's thread.

    def add(self, messages: Sequence[Message], route: Route, sequence: int = 0, *, waits: bool = False) -> None:
        """Publish messages, at once or in one write with those that follow within a millisecond.

        Args:
            sequence: the number of the first message, for its receipt.
            waits: leave the messages for a later call to drain().

        Raises:
            UsageError, BadData: a message cannot be encoded. None was sent.
        """
        with self._lock:
            encoded = self._writer.encode(messages, route) if self._writer else Encoded(0)
            if not self._outstanding:
                self._last_answer = time.monotonic()
            self._outstanding.extend(zip(messages, repeat(route), count(sequence)))
            self._bytes += sum([len(message.body) for message in messages])
            if self._writer:
                self._outbox.append(encoded)
                self._outbox_size += encoded.size
                self._unwritten += len(messages)
            if self._is_due and self._outbox_size < _BATCH_BYTES:
                return
            now = (self._outbox_size >= _BATCH_BYTES or self._unanswered() == len(messages)) and not self._is_due_now
            soon = not (now or self._is_due)
            if waits or not (now or soon):
                return
            self._is_due, self._is_due_now = True, now
        if now:
            self._run(self.drain)
        else:
            self._run_later(_BATCH_SECONDS, self.drain)

    @property
    def has_answers(self) -> bool:
        """True if collect() would return receipts."""
        return bool(self._done) or self._answered > self._collected

    @property
    def is_waiting(self) -> bool:
        """True if receipts can be collected, or messages are still unconfirmed."""
        return bool(self._done or self._outstanding or self._later)

    @property
    def in_flight(self) -> int:
        """The number of messages that the broker has not confirmed or rejected yet."""
        return len(self._outstanding) - (self._answered - self._collected) - len(self._answered_early)

    def is_full(self, window: int) -> bool:
        """True if `window` messages or WINDOW_BYTES bytes are unconfirmed, so that no more can be published now."""
        return len(self._outstanding) + len(self._later) >= window or self._bytes >= WINDOW_BYTES

    def collect(self, *, out_of_order: bool = False) -> list[Receipt]:
        """Return the receipts of messages confirmed or rejected since the last call, in publishing order.

        Args:
            out_of_order: add the receipts that wait for those of earlier messages, which may never come after an error.
        """
        with self._changed:
            receipts, self._done = self._done + self._take_answered(), []
            if out_of_order:
                receipts += self._take_early()
        return receipts

    def _take_answered(self) -> list[Receipt]:
        tags = range(self._collected + 1, self._answered + 1)
        self._collected = self._answered
        taken = [self._outstanding.popleft() for _ in tags]
        receipts = [Receipt(message, Confirmation.CONFIRMED, "", sequence) for message, _, sequence in taken]
        if self._refused:
            receipts = [self._refused.pop(tag, receipt) for tag, receipt in zip(tags, receipts, strict=True)]
        if self._again:
            self._later += (published for tag, published in zip(tags, taken, strict=True) if tag in self._again)
        if gone := self._again | self._collected_early:
            receipts = [receipt for tag, receipt in zip(tags, receipts, strict=True) if tag not in gone]
            self._again.difference_update(tags)
            self._collected_early.difference_update(tags)
        self._bytes -= sum([len(receipt.message.body) for receipt in receipts])
        return receipts

    def _take_early(self) -> list[Receipt]:
        # The messages stay in _outstanding: their places there are their delivery tags.
        receipts = []
        for tag in sorted(self._answered_early - self._collected_early - self._again):
            message, _, sequence = self._outstanding[tag - self._collected - 1]
            receipts.append(self._refused.pop(tag, Receipt(message, Confirmation.CONFIRMED, "", sequence)))
            self._collected_early.add(tag)
        self._bytes -= sum([len(receipt.message.body) for receipt in receipts])
        return receipts

    def wait(self, until_below: int, confirm_timeout: float, at_most: float | None = None) -> None:
        """Wait until fewer than `until_below` messages are unconfirmed.

        Args:
            confirm_timeout: seconds without any confirm after which to give up. The time without a connection, or
                while the broker blocks publishers, does not count.
            at_most: seconds after which to return in any case.

        Raises:
            NotConfirmed: the broker did not confirm in time, or the command must stop while the broker cannot reply.
            MqtoolError: the channel was closed for good.
        """
        deadline = None if at_most is None else time.monotonic() + at_most
        with self._changed:
            self._wanted_below = until_below
            while True:
                if self._failure:
                    raise self._failure
                unanswered = self._unanswered()
                if unanswered < until_below and (unanswered == 0 or self._bytes < WINDOW_BYTES or self.has_answers):
                    return
                if unanswered and (why := self._hopeless()):
                    left = unanswered - len(self._answered_early)
                    raise NotConfirmed(f"stopped with {_messages(left)} unconfirmed: {why}", _FATE)
                now = time.monotonic()
                if self._later and now >= self._later_at and not (self._is_reopening or self._paused):
                    self._is_reopening = True
                    self._reopen()
                if deadline is not None and now >= deadline:
                    return
                patience = self._last_answer + confirm_timeout - now
                if self._paused:
                    patience = min(confirm_timeout, _CHECK_INTERVAL)
                elif patience <= 0:
                    raise _not_confirmed(unanswered - len(self._answered_early), confirm_timeout)
                if self._later and not self._is_reopening:
                    patience = min(patience, max(self._later_at - now, _PAUSE / 10))
                self._changed.wait(patience if deadline is None else min(patience, deadline - now))

    @property
    def messages(self) -> list[Message]:
        """The unconfirmed messages, oldest first. After a failure, the broker may or may not have received them."""
        with self._changed:
            waiting = enumerate(self._outstanding, self._collected + 1)
            unconfirmed = (published for tag, published in waiting if not self._is_confirmed(tag))
            return [addressed(message, route) for message, route, _ in (*unconfirmed, *self._later)]

    def _is_confirmed(self, tag: int) -> bool:
        """True if the broker has confirmed a message, or if the receipt of a rejected one has been collected."""
        is_answered = tag <= self._answered or tag in self._answered_early
        return is_answered and tag not in self._refused and tag not in self._again

    # For the connection.

    def restart(self, writer: MessageWriter, *, may_lack_leaders: bool = False) -> None:
        """Publish the unconfirmed messages again, on a new channel in confirm mode. Call it on the I/O thread.

        Args:
            may_lack_leaders: the cluster has just lost a node, so that some queues may have no leader yet.
        """
        with self._changed:
            self._leave_channel()
            if may_lack_leaders:
                self._leaderless_until = time.monotonic() + LEADERLESS
            self._is_reopening = False
            self._writer = writer
            again = [writer.encode([message], route) for message, route, _ in self._outstanding]
            self._last_answer = time.monotonic()
            self._paused = False
        if again:
            writer.write(again)

    def drop(self) -> list[Message]:
        """Drop the messages of a closed channel that the broker has not answered; return them.

        restart() publishes only nacked messages again, whose queue had no leader. The call of set_paused() or fail()
        that follows wakes wait().
        """
        with self._changed:
            waiting = [*enumerate(self._outstanding, self._collected + 1)]
            nacked = [*self._later, *(published for tag, published in waiting if tag in self._again)]
            unanswered = [each for each in waiting if each[0] > self._answered and each[0] not in self._answered_early]
            dropped = [message for _, (message, _, _) in unanswered]
            self.dropped += len(dropped)  # before is_waiting turns false
            self._leave_channel()
            self._outstanding = deque(nacked)
            self._bytes -= sum([len(message.body) for message in dropped])
        return dropped

    def _leave_channel(self) -> None:
        """Keep only unconfirmed messages in _outstanding. They have no delivery tags until they are written again."""
        self._done += self._take_answered() + self._take_early()
        waiting = enumerate(self._outstanding, self._collected + 1)
        self._outstanding = deque(published for tag, published in waiting if tag not in self._collected_early)
        self._outstanding.extendleft(reversed(self._later))
        self._later.clear()
        self._collected = self._answered = 0
        self._answered_early.clear()
        self._collected_early.clear()
        self._refused.clear()
        self._again.clear()
        self._outbox.clear()
        self._outbox_size = self._unwritten = 0

    def set_paused(self, *, is_paused: bool) -> None:
        """Stop the clock of confirm_timeout, or start it again from zero."""
        with self._changed:
            self._paused = is_paused
            self._last_answer = time.monotonic()
            self._changed.notify_all()

    def fail(self, failure: MqtoolError) -> None:
        """End all waiting with an error: there will be no more confirms."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def on_ack(self, tag: int, *, multiple: bool) -> None:
        """Handle basic.ack from the broker. Called on the I/O thread.

        Raises:
            NotConfirmed: the broker confirms a message that was not published, so what it confirms is not known.
        """
        with self._changed:
            self._check(tag)
            self._answer(tag, multiple=multiple)

    def on_nack(self, tag: int, *, multiple: bool) -> None:
        """Handle basic.nack from the broker. Raises NotConfirmed as on_ack(). Called on the I/O thread."""
        with self._changed:
            self._check(tag)
            self._nack([*range(self._answered + 1, tag), tag] if multiple else [tag])
            self._answer(tag, multiple=multiple)

    def _check(self, tag: int) -> None:
        last = self._collected + len(self._outstanding) - self._unwritten
        if not 0 < tag <= last:
            raise NotConfirmed(f"the broker violated the protocol: it confirmed message {tag} of {last}", _FATE)

    def _answer(self, tag: int, *, multiple: bool) -> None:
        if multiple:
            if self._answered_early:
                self._answered_early.difference_update(range(self._answered + 1, tag + 1))
            self._answered = max(self._answered, tag)
        elif tag == self._answered + 1:
            self._answered = tag
        elif tag > self._answered:  # else it was answered before
            self._answered_early.add(tag)
        while self._answered_early and self._answered + 1 in self._answered_early:
            self._answered += 1
            self._answered_early.discard(self._answered)
        self._last_answer = time.monotonic()
        if self._unanswered() < self._wanted_below or self._later:
            self._changed.notify_all()

    def _unanswered(self) -> int:
        return len(self._outstanding) + len(self._later) - (self._answered - self._collected)

    def _nack(self, tags: list[int]) -> None:
        now = time.monotonic()
        for tag in tags:
            if tag <= self._answered or tag in self._answered_early:
                continue
            if now < self._leaderless_until:
                self._again.add(tag)
                self._later_at = now + _PAUSE
            else:
                self._refuse(tag, Confirmation.NACKED, "the broker refused it")

    def on_return(self, returned: Message, reason: str) -> None:
        """Handle basic.return: a mandatory message is unroutable. Its confirm follows. Called on the I/O thread.

        Args:
            returned: the returned message. basic.return has no delivery tag, so the message is found by its content.
        """
        with self._changed:
            waiting = (
                (tag, message, route)
                for tag, (message, route, _) in enumerate(self._outstanding, self._collected + 1)
                if tag > self._answered and tag not in self._refused
            )
            if (tag := most_similar(returned, waiting)) is not None:
                self._refuse(tag, Confirmation.RETURNED, reason)

    def _refuse(self, tag: int, confirmation: Confirmation, reason: str) -> None:
        message, route, sequence = self._outstanding[tag - self._collected - 1]
        if tag not in self._refused:
            self._refused[tag] = Receipt(addressed(message, route), confirmation, reason, sequence)
            self.on_refused(self._refused[tag])

    def drain(self, acks: Iterable[tuple[int, bool]] = ()) -> None:
        """Write the collected messages, then acknowledgements. Call it on the I/O thread."""
        with self._lock:
            self._is_due = self._is_due_now = False
            ready, self._outbox, self._outbox_size, self._unwritten = self._outbox, [], 0, 0
            writer = self._writer
        if writer:
            writer.write(ready, acks)


def most_similar(returned: Message, published: Iterable[tuple[int, Message, Route]]) -> int | None:
    """Return the tag of the published message that the broker has returned; None if it can be none of them.

    It has the same exchange, routing key, message id and body. Of several, it is the first one with the same properties
    and headers or, if the broker has changed these, the first one with the fewest differences.
    """
    best, fewest = None, -1
    differences: dict[tuple[int, bool], int] = {}  # many messages share their properties
    for tag, message, route in published:
        if (
            message.message_id != returned.message_id
            or message.body != returned.body
            or (route.exchange if message.exchange is None else message.exchange) != returned.exchange
            or (route.routing_key if message.routing_key is None else message.routing_key) != returned.routing_key
        ):
            continue
        kind = id(message.properties), route.persistent
        if kind not in differences:
            given = {"delivery_mode": PERSISTENT} if route.persistent else {}
            given |= {name: value for name, value in message.properties.items() if value is not None}
            differences[kind] = len(_fields(given) ^ _fields(returned.properties))
        if best is None or differences[kind] < fewest:
            best, fewest = tag, differences[kind]
        if fewest == 0:
            break
    return best


def _fields(properties: Mapping[str, object]) -> set[tuple[str, bytes]]:
    """Return the encoded properties and headers, without BCC: a broker removes it before it returns the message."""
    return {field for field in encoded_fields(properties) if field[0] != "headers.BCC"}


def _not_confirmed(count: int, seconds: float) -> NotConfirmed:
    return NotConfirmed(
        f"the broker did not confirm {_messages(count)} within {seconds:g} s",
        f"{_FATE}; --confirm-timeout waits longer",
    )


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"
