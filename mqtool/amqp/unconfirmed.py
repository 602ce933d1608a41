"""Messages that were published and are not confirmed yet."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, repeat
from typing import NamedTuple, cast

from mqtool.errors import MqtoolError, NotConfirmed
from mqtool.message import Confirmation, Message, Receipt


class Route(NamedTuple):
    """How to publish messages, and where to, unless they name an exchange or a routing key themselves."""

    exchange: str = ""
    routing_key: str = ""
    mandatory: bool = False
    persistent: bool = False


def addressed(message: Message, route: Route) -> Message:
    """A message with the route's exchange and routing key, unless it has its own."""
    return replace(
        message,
        exchange=route.exchange if message.exchange is None else message.exchange,
        routing_key=route.routing_key if message.routing_key is None else message.routing_key,
    )


#: Messages, and bytes of their bodies, that may be on their way to the broker or waiting for its confirm.
WINDOW = 10_000
WINDOW_BYTES = 16 * 1024 * 1024
#: Seconds after a reconnection in which a nack may only mean that the queue has no leader yet: a cluster that lost a
#: node chooses another one. And how long to wait before such messages are published again: on another channel, since
#: in RabbitMQ 3.10 one that has met a queue without a leader may nack forever.
_LEADERLESS, _PAUSE = 20.0, 0.25
#: Seconds between two looks at whether to stop, while there is no connection or publishers are blocked.
_LOOK_UP = 0.1
#: What follows a message that is unconfirmed leaves with others: at most this many bytes, or seconds later. Each write
#: costs a system call, and hands the interpreter from one thread to the other and back.
_LOT, _MOMENT = 64 * 1024, 0.001
_FATE = "they may or may not have arrived"


#: With the sequence number of the message. A plain tuple, since one is made for each message.
_Published = tuple[Message, Route, int]
Encode = Callable[[Iterable[Message], Route], bytes]
#: A receipt from a tuple, at half the price.
_receipt = cast(Callable[[tuple[Message, Confirmation, str, int]], Receipt], partial(tuple.__new__, Receipt))


class Publisher:
    """The unconfirmed messages of one channel, in the order in which they were published.

    Args:
        run: runs a function on the I/O thread, soon.
        run_later: does so after this many seconds.
        reopen: starts to open another channel, for which restart() is called.
        hopeless: as ChannelConnection.hopeless.
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
        self._is_reopening = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._wanted_below = 0  # by wait(), which need not be woken before
        self._outstanding: deque[_Published] = deque()
        self._bytes = 0
        self._outbox: list[bytes] = []
        self._outbox_size = 0
        self._is_due = self._is_due_now = False  # the I/O thread will empty the outbox
        # Until restart(), which encodes whatever is outstanding.
        self._encode: Encode = lambda _messages, _route: b""
        self._write: Callable[[list[bytes]], None] = lambda _frames: None
        # Delivery tags, which count from 1 on every channel: of the oldest in _outstanding, less one; and the highest
        # below which the broker has answered for all.
        self._collected = 0
        self._answered = 0
        self._answered_early: set[int] = set()
        self._refused: dict[int, Receipt] = {}
        # Tags of messages to publish once more, the messages that wait for it, and when it is time.
        self._again: set[int] = set()
        self._later: deque[_Published] = deque()
        self._later_at = 0.0
        self._leaderless_until = 0.0
        self._done: list[Receipt] = []
        self._last_answer = time.monotonic()
        self._paused = False
        self._failure: MqtoolError | None = None

    # The caller's side.

    def add(self, messages: Sequence[Message], route: Route, sequence: int = 0, *, waits: bool = False) -> None:
        """Publish messages; they may leave a moment later, together with the next ones.

        Args:
            sequence: the caller's number for the first of them, repeated in its receipt.
            waits: they leave when drain() is called, if not before.

        Raises:
            UsageError, BadData: one cannot be encoded. Nothing was sent.
        """
        with self._lock:
            encoded = self._encode(messages, route)
            if not self._outstanding:
                self._last_answer = time.monotonic()
            self._outstanding.extend(zip(messages, repeat(route), count(sequence)))
            self._bytes += sum([len(message.body) for message in messages])
            self._outbox.append(encoded)
            self._outbox_size += len(encoded)
            if self._is_due and self._outbox_size < _LOT:
                return
            now = (self._outbox_size >= _LOT or self._unanswered() == len(messages)) and not self._is_due_now
            soon = not (now or self._is_due)
            if waits or not (now or soon):
                return
            self._is_due, self._is_due_now = True, now
        if now:
            self._run(self.drain)
        else:
            self._run_later(_MOMENT, self.drain)

    @property
    def has_answers(self) -> bool:
        """Whether collect() would return something."""
        return bool(self._done) or self._answered > self._collected

    @property
    def is_waiting(self) -> bool:
        """Whether there are receipts that the caller has not collected, or that are still to come."""
        return bool(self._done or self._outstanding or self._later)

    @property
    def in_flight(self) -> int:
        """How many messages the broker has not answered for."""
        return len(self._outstanding) - (self._answered - self._collected)

    def is_full(self, window: int) -> bool:
        """Whether the caller should wait: too many messages, or bytes, are unconfirmed."""
        return len(self._outstanding) + len(self._later) >= window or self._bytes >= WINDOW_BYTES

    def collect(self) -> list[Receipt]:
        """The receipts of all messages answered for since the last call, in the order of publishing."""
        with self._changed:
            receipts, self._done = self._done + self._take_answered(), []
        return receipts

    def _take_answered(self) -> list[Receipt]:
        tags = range(self._collected + 1, self._answered + 1)
        self._collected = self._answered
        taken = [self._outstanding.popleft() for _ in tags]
        confirmed = Confirmation.CONFIRMED
        receipts = [_receipt((message, confirmed, "", sequence)) for message, _, sequence in taken]
        if self._refused:
            receipts = [self._refused.pop(tag, receipt) for tag, receipt in zip(tags, receipts, strict=True)]
        if self._again:
            self._later += (published for tag, published in zip(tags, taken, strict=True) if tag in self._again)
            receipts = [receipt for tag, receipt in zip(tags, receipts, strict=True) if tag not in self._again]
            self._again.difference_update(tags)
        self._bytes -= sum([len(receipt.message.body) for receipt in receipts])
        return receipts

    def wait(self, until_below: int, confirm_timeout: float, at_most: float | None = None) -> None:
        """Wait until fewer than N messages are without an answer.

        Args:
            until_below: N; 1 waits for all.
            confirm_timeout: seconds without any answer after which to give up. The time when there is no connection,
                or when the broker blocks publishers, does not count.
            at_most: seconds after which to return all the same.

        Raises:
            NotConfirmed: the broker did not answer in time, or the command is to stop while it cannot answer.
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
                    raise NotConfirmed(f"stopped with {_messages(unanswered)} unconfirmed: {why}", _FATE)
                now = time.monotonic()
                if self._later and now >= self._later_at and not (self._is_reopening or self._paused):
                    self._is_reopening = True
                    self._reopen()
                if deadline is not None and now >= deadline:
                    return
                patience = self._last_answer + confirm_timeout - now
                if self._paused:
                    patience = min(confirm_timeout, _LOOK_UP)
                elif patience <= 0:
                    raise _not_confirmed(unanswered, confirm_timeout)
                if self._later and not self._is_reopening:
                    patience = min(patience, max(self._later_at - now, _PAUSE / 10))
                self._changed.wait(patience if deadline is None else min(patience, deadline - now))

    @property
    def unconfirmed(self) -> list[Message]:
        """The messages without a confirm, oldest first: after a failure, those that may or may not have arrived."""
        with self._changed:
            return [addressed(message, route) for message, route, _ in (*self._outstanding, *self._later)]

    # The connection's side.

    def restart(self, encode: Encode, write: Callable[[list[bytes]], None], *, connection_is_new: bool = False) -> None:
        """Go on with a new channel in confirm mode: publish again what was not confirmed. On the I/O thread.

        Args:
            encode: makes frames for that channel.
            write: sends them, or drops them if the channel is closed. On the I/O thread.
        """
        with self._changed:
            self._done += self._take_answered()
            self._outstanding.extendleft(reversed(self._later))
            self._later.clear()
            if connection_is_new:
                self._leaderless_until = time.monotonic() + _LEADERLESS
            self._is_reopening = False
            self._encode, self._write = encode, write
            self._collected = self._answered = 0
            self._answered_early.clear()
            self._refused.clear()
            self._again.clear()
            self._outbox.clear()
            self._outbox_size = 0
            again = [encode([message], route) for message, route, _ in self._outstanding]
            self._last_answer = time.monotonic()
            self._paused = False
        if again:
            write(again)

    def pause(self) -> None:
        """Stop the clock of confirm_timeout."""
        self._set_paused(is_paused=True)

    def resume(self) -> None:
        """Start the clock of confirm_timeout again, from zero."""
        self._set_paused(is_paused=False)

    def _set_paused(self, *, is_paused: bool) -> None:
        with self._changed:
            self._paused = is_paused
            self._last_answer = time.monotonic()
            self._changed.notify_all()

    def fail(self, failure: MqtoolError) -> None:
        """Let whoever waits know that there will be no more answers."""
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def on_ack(self, tag: int, *, multiple: bool) -> None:
        """Basic.ack from the broker. On the I/O thread."""
        with self._changed:
            self._answer(tag, multiple=multiple)

    def on_nack(self, tag: int, *, multiple: bool) -> None:
        """Basic.nack from the broker. On the I/O thread."""
        with self._changed:
            self._nack([*range(self._answered + 1, tag), tag] if multiple else [tag])
            self._answer(tag, multiple=multiple)

    def _answer(self, tag: int, *, multiple: bool) -> None:
        if multiple:
            self._answered = max(self._answered, tag)
        elif tag == self._answered + 1:
            self._answered = tag
        else:
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
            if tag in self._answered_early:
                continue
            if now < self._leaderless_until:
                self._again.add(tag)
                self._later_at = now + _PAUSE
            else:
                self._refuse(tag, Confirmation.NACKED, "the broker refused it")

    def on_return(self, message_id: str | None, routing_key: str, body: bytes, reason: str) -> None:
        """Basic.return: a mandatory message went to no queue. The broker confirms it right after. On the I/O thread."""
        with self._changed:
            for tag, (message, route, _) in enumerate(self._outstanding, self._collected + 1):
                own_key = route.routing_key if message.routing_key is None else message.routing_key
                if (
                    tag > self._answered
                    and tag not in self._refused
                    and message.message_id == message_id
                    and own_key == routing_key
                    and message.body == body
                ):
                    self._refuse(tag, Confirmation.RETURNED, reason)
                    return

    def _refuse(self, tag: int, confirmation: Confirmation, reason: str) -> None:
        message, route, sequence = self._outstanding[tag - self._collected - 1]
        self._refused.setdefault(tag, Receipt(addressed(message, route), confirmation, reason, sequence))

    def drain(self, after: Iterable[bytes] = ()) -> None:
        """Write what waits, and other frames behind it. On the I/O thread."""
        with self._lock:
            self._is_due = self._is_due_now = False
            ready, self._outbox, self._outbox_size = self._outbox, [], 0
            write = self._write
        if ready := [*ready, *after]:
            write(ready)


def _not_confirmed(count: int, seconds: float) -> NotConfirmed:
    return NotConfirmed(
        f"the broker did not confirm {_messages(count)} within {seconds:g} s",
        f"{_FATE}; --confirm-timeout waits longer",
    )


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count:,} messages"
