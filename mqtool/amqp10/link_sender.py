"""Sender: publishes messages over a link, and yields the broker's outcome for each.

Outcomes: accepted (confirmed), released (no queue received it), rejected (a queue refused it), modified.
https://www.rabbitmq.com/docs/amqp#outcomes
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqtool.amqp import pika_errors
from mqtool.codecs import sections
from mqtool.codecs.amqp10_frames import (
    UNSETTLED,
    Accepted,
    Attach,
    Disposition,
    Flow,
    Modified,
    Rejected,
    Released,
    Source,
    Target,
)
from mqtool.errors import BadData, MqtoolError, NotConfirmed, StoppedWaiting
from mqtool.message import Confirmation, InBatches, Message, Receipt
from mqtool.spelling import counted

if TYPE_CHECKING:
    from mqtool.amqp10.link_connection import LinkConnection

#: The most messages, and bytes of bodies, that may be waiting for credit or for an outcome.
WINDOW, WINDOW_BYTES = 10_000, 16 * 1024 * 1024
_BATCH_SIZE = 256
_OUTCOMES = (Accepted, Rejected, Released, Modified)
_FATE = "unconfirmed messages may or may not have arrived"


class OutgoingTransfer:
    """An encoded message that is being sent, and its outcome once the broker has reported it.

    Attributes:
        to: the address to which the message goes.
        address: the address of its link; None for a link without an address.
        on_refused: called with the receipt if the broker rejects or releases the message.
        was_sent: True once the message has been sent, even if the connection was lost after that.
    """

    __slots__ = ("address", "confirmation", "data", "message", "on_refused", "reason", "sequence", "to", "was_sent")

    def __init__(self, message: Message, data: bytes, to: str, sequence: int, address: str | None) -> None:
        self.message, self.data, self.to, self.sequence, self.address = message, data, to, sequence, address
        self.confirmation: Confirmation | None = None
        self.reason = ""
        self.was_sent = False
        self.on_refused: Callable[[Receipt], None] = lambda _: None

    def decide(self, state: Any) -> None:
        """Record the outcome."""
        if isinstance(state, Accepted):
            self.confirmation = Confirmation.CONFIRMED
        elif isinstance(state, Released):
            self.confirmation, self.reason = Confirmation.RETURNED, "no queue is bound for it (released)"
        elif isinstance(state, Rejected):
            self.confirmation, self.reason = Confirmation.NACKED, _why(state.error)
        else:
            self.confirmation, self.reason = Confirmation.NACKED, "the broker did not take it (modified)"
        if self.confirmation is not Confirmation.CONFIRMED:
            self.on_refused(self.receipt())

    def receipt(self) -> Receipt:
        message = self.message
        if self.confirmation is not Confirmation.CONFIRMED:
            message = addressed(message, self.to)
        return Receipt(message, self.confirmation or Confirmation.NACKED, self.reason, self.sequence)


def is_unavailable(state: Any) -> bool:
    """True if a message was rejected because its queue has no leader, or if the broker gave no reason."""
    if not isinstance(state, Rejected):
        return False
    return state.error is None or _details(state.error).get("reason") == "unavailable"


def _details(error: Any) -> dict[str, Any]:
    return {str(key): value for key, value in (error.info or {}).items()}


def _why(error: Any) -> str:
    """Describe why a queue rejected a message. RabbitMQ 4.3 names the queue and its limit."""
    if error is None:
        return "the broker refused it (rejected)"
    info = _details(error)
    if "queue" in info:
        return f"queue {info['queue']!r} refused it: {info.get('reason', 'rejected')}"
    return str(error.description or error.condition)


def addressed(message: Message, to: str) -> Message:
    """Copy a message; if it has no exchange and routing key of its own, use those of an address."""
    exchange, key = sections.exchange_and_key(to)
    return replace(
        message,
        exchange=exchange if message.exchange is None else message.exchange,
        routing_key=key if message.routing_key is None else message.routing_key,
    )


class SendingLink:
    """A link to one address, or a link on which each message has its own. Used under the session's lock.

    Attributes:
        waiting: the messages that are waiting for credit.
        credit: the number of messages that the broker currently accepts.
        largest: the maximum size of a message in bytes; 0 if the broker set none.
        default_outcome: the outcome of messages that the broker settles without one; None if the broker set none.
    """

    def __init__(self, name: str, address: str | None) -> None:
        self.name = name
        self.address = address
        self.handle = 0
        self.is_attached = False
        self.waiting: deque[OutgoingTransfer] = deque()
        self.credit = self.largest = 0
        self.default_outcome: Any = None
        self._sent = 0

    def attach(self, handle: int) -> Attach:
        """Reset the link's state, and return the performative that attaches it."""
        self.handle, self.is_attached, self.credit, self._sent = handle, False, 0, 0
        return Attach(
            self.name,
            handle,
            False,
            snd_settle_mode=UNSETTLED,
            source=Source(),
            target=Target(self.address),
            initial_delivery_count=0,
        )

    def attached(self, answer: Attach) -> bool:
        """Process the broker's reply to attach; return False if the broker refuses the link."""
        self.largest = answer.max_message_size or 0
        self.default_outcome = answer.source.default_outcome if isinstance(answer.source, Source) else None
        self.is_attached = answer.target is not None
        return self.is_attached

    is_kept = True

    def is_for(self, role: bool) -> bool:
        """True if `role` is the role of the broker's end of the link: receiver."""
        return role

    def take(self, _delivery_id: int | None, _payload: bytes, *, settled: bool, more: bool) -> None:
        """Never called: nothing is received on this link."""

    def flow(self, flow: Flow) -> None:
        """Process a flow frame, which contains new credit."""
        self.credit = (flow.delivery_count or 0) + (flow.link_credit or 0) - self._sent

    def outcome(self, disposition: Disposition) -> Any:
        """Return the outcome in a disposition of this link's messages; None if they do not have one yet.

        A state such as received is no outcome. If the broker settles a message in such a state, and the link's source
        has no default outcome, the message's outcome is never known.
        """
        for outcome in (disposition.state, self.default_outcome if disposition.settled else None):
            if isinstance(outcome, _OUTCOMES):
                return outcome
        return None

    def pump(self, session: "LinkConnection") -> list[bytes]:
        """Return the frames of all messages that may be sent now."""
        frames: list[bytes] = []
        while self.waiting and self.credit > 0 and self.is_attached:
            transfers = session.transfers(self.handle, self.waiting[0])
            if transfers is None:
                break
            self.waiting.popleft().was_sent = True
            frames += transfers
            self.credit -= 1
            self._sent += 1
        return frames


class Sender:
    """Publishes to one address. Messages with an exchange or a routing key of their own go there instead.

    Attributes:
        address: the address for messages that do not have their own.
        on_refused: called at once with the receipt of a message that the broker rejects or releases. Runs on the
            session's thread, under its lock.
    """

    def __init__(self, session: "LinkConnection", address: str | None, *, persistent: bool) -> None:
        self.address = address
        self.on_refused: Callable[[Receipt], None] = lambda _: None
        self._session = session
        self._persistent = persistent
        self._outstanding: deque[OutgoingTransfer] = deque()
        self._bytes = 0
        self._bad_input: MqtoolError | None = None
        self._exchange, self._key = sections.exchange_and_key(address)

    @property
    def unconfirmed(self) -> list[Message]:
        """The messages without an outcome, oldest first."""
        with self._session.changed:
            return [addressed(each.message, each.to) for each in self._outstanding if each.confirmation is None]

    def addressed(self, message: Message) -> Message:
        """Copy a message; if it has no exchange and routing key of its own, use the sender's."""
        return addressed(message, self.address or "")

    def send(self, messages: Iterable[Message | None], window: int = WINDOW) -> Generator[Receipt]:
        """Publish messages; yield each one's receipt, in order, once the broker has reported its outcome.

        Publishing continues while outcomes are outstanding. After a reconnection, messages without an outcome are
        published again.

        Args:
            messages: None means that there is no message right now, so that receipts can be yielded. At a second None
                in a row, the sender waits up to 0.05 s for outcomes that are missing.
            window: the number of messages without an outcome; 1 waits for each before the next is sent.

        Raises:
            NotConfirmed: the broker did not report an outcome in time.
            MqtoolError: the broker has detached the link, or the connection is lost for good.
        """
        try:
            yield from self._sent(_batches(messages, window), window)
            while self._outstanding:
                self._wait()
                yield from self._collected()
        except MqtoolError:
            self._sort_by_outcome()  # those after a message that will never have one
            yield from self._collected()
            raise
        if (bad_input := self._bad_input) is not None:
            self._bad_input = None
            raise bad_input

    def _sent(self, source: Iterator[list[Message]], window: int) -> Iterator[Receipt]:
        """Send messages, and yield the receipts available so far. Stops reading the input at the first error in it."""
        sequence = 0
        is_idle = False  # True if there was no message last time, either
        while True:
            try:
                if (batch := next(source, None)) is None:
                    return
                before = sequence
                while batch:
                    self.add(batch[0], sequence + 1)
                    del batch[0]
                    sequence += 1
                    if self._is_full(window):
                        self._wait()
                        yield from self._collected()
            except MqtoolError as error:
                if self._session.failure is not None or isinstance(error, NotConfirmed):
                    raise
                self._bad_input = error  # the messages before it still get their outcomes
                return
            self._session.pump()
            if sequence == before:
                self._wait(at_most=0.05 if is_idle else 0)
            is_idle = sequence == before
            yield from self._collected()

    def add(self, message: Message, sequence: int = 0) -> None:
        """Encode a message, and queue it for sending. Raises BadData if it cannot be encoded, or is too large."""
        try:
            self._add(message, sequence)
        except UnicodeEncodeError as error:
            hint = "only a message's body may be any bytes"
            raise BadData("a name, a key or a header is not valid UTF-8", hint) from error

    def _add(self, message: Message, sequence: int) -> None:
        key, exchange = message.routing_key, message.exchange
        own = (key is not None and key != self._key) or (exchange is not None and exchange != self._exchange)
        to = self.address or ""
        if own or self.address is None:
            to = sections.exchange_address(
                self._exchange if exchange is None else exchange, self._key if key is None else key
            )
        link = self._session.sending_link(None if own else self.address)
        data = sections.encode(message, to=to if link.address is None else None, persistent=self._persistent)
        if 0 < link.largest < len(data):
            raise BadData(
                f"the message is {len(data):,} bytes long; the broker takes up to {link.largest:,}",
                pika_errors.SETS_LIMIT,
            )
        outgoing = OutgoingTransfer(message, data, to, sequence, link.address)
        outgoing.on_refused = self.on_refused
        with self._session.changed:
            self._outstanding.append(outgoing)
            self._bytes += len(message.body)
            link.waiting.append(outgoing)

    def flush(self) -> None:
        """Send the added messages, and wait until all of them have been sent. Outcomes may be outstanding.

        Raises:
            NotConfirmed: the broker neither accepts further messages nor reports outcomes in time, or the command must
                stop before it does.
            StoppedWaiting: the command must stop, and no message that was sent lacks its outcome.
        """
        session = self._session
        session.pump()
        links = [session.sending_link(address) for address in {each.address for each in self._outstanding}]
        while any(link.waiting for link in links):
            session.check()
            if why := session.hopeless:
                if unconfirmed := sum(each.was_sent and each.confirmation is None for each in self._outstanding):
                    raise NotConfirmed(f"stopped with {counted(unconfirmed)} unconfirmed: {why}", _FATE)
                raise StoppedWaiting(f"stopped: {why}")
            session.wait(
                lambda: not any(link.waiting for link in links) or session.hopeless is not None, self._patience()
            )
        with self._session.changed:
            while self._outstanding and self._outstanding[0].confirmation is not None:
                self._drop()

    def settle(self) -> None:
        """Wait until all messages have an outcome."""
        while self._outstanding:
            self._wait()
            for _ in self._collected():
                pass

    def _is_full(self, window: int) -> bool:
        return len(self._outstanding) >= window or self._bytes >= WINDOW_BYTES

    def _has_outcome(self) -> bool:
        return bool(self._outstanding) and self._outstanding[0].confirmation is not None

    def _sort_by_outcome(self) -> None:
        with self._session.changed:
            self._outstanding = deque(sorted(self._outstanding, key=lambda each: each.confirmation is None))

    def _collected(self) -> Iterator[Receipt]:
        ready = []
        with self._session.changed:
            while self._has_outcome():
                ready.append(self._drop())
        yield from (each.receipt() for each in ready)

    def _drop(self) -> OutgoingTransfer:
        outgoing = self._outstanding.popleft()
        self._bytes -= len(outgoing.message.body)
        return outgoing

    def _wait(self, at_most: float | None = None) -> None:
        """Wait until the oldest message has an outcome, or for `at_most` seconds."""
        session, deadline = self._session, None if at_most is None else time.monotonic() + at_most
        session.pump()
        session.check()
        while self._outstanding and not self._has_outcome():
            session.check()
            if why := session.hopeless:
                raise NotConfirmed(f"stopped with {self._count()} unconfirmed: {why}", _FATE)
            patience = self._patience()
            left = patience if deadline is None else min(patience, deadline - time.monotonic())
            if left <= 0:
                return
            session.wait(lambda: self._has_outcome() or session.hopeless is not None, left)

    def _patience(self) -> float:
        """Return how many seconds are left for the next outcome. Raises NotConfirmed if none are."""
        left = self._session.patience()
        if left <= 0:
            raise NotConfirmed(
                f"the broker did not confirm {self._count()} within {self._session.confirm_timeout:g} s",
                f"{_FATE}; --confirm-timeout waits longer",
            )
        return left

    def _count(self) -> str:
        return counted(len(self.unconfirmed))


def _batches(messages: Iterable[Message | None], window: int) -> Iterator[list[Message]]:
    """Split messages into batches of those available so far, or of one message if the window is small."""
    if isinstance(messages, InBatches) and window == WINDOW:
        return messages.batches()
    if isinstance(messages, list) and window == WINDOW:
        batches = (messages[start : start + _BATCH_SIZE] for start in range(0, len(messages), _BATCH_SIZE))
        return ([message for message in batch if message is not None] for batch in batches)
    return ([] if message is None else [message] for message in messages)
