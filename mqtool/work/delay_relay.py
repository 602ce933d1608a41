"""Delay the messages of any client in wait queues, as the delayed message plugin did (`mqtool delayed relay`).

    publishers ──> (tasks) ──> [tasks.relay] ──> mqtool ── x-delay: 5000 ──> wait queues ···5 s···> (tasks.relayed)
                                                    └───── no x-delay ────────────────────────────────────^

Publishers use the exchange `tasks` in the same way as the plugin's. Queues are bound to `tasks.relayed`, which routes
due messages. All queues in between are quorum queues (see delays/wait_queues.py), and a message is acknowledged in
`tasks.relay` once the broker has confirmed it in the next queue. So it is in at least one queue at any time, and relays
can be killed, and can run in parallel. A relay keeps up to _AT_ONCE messages in memory, all of them unacknowledged.

An AMQP 1.0 publisher may send headers that are too large for AMQP 0-9-1. The relay rejects what it cannot publish, and
the broker dead-letters it to `tasks.relay.dlq`. If the relay kept such messages unacknowledged, anyone who may publish
could use up its prefetch.

A wait queue may have no leader: because RabbitMQ was killed just after it had declared the queue, or while a cluster
elects one. Such a queue confirms nothing, and blocks the channel. So before a relay first publishes to a wait queue on
a connection, a thread checks that the queue answers. It uses a separate connection, because RabbitMQ closes that after
half a minute if there is no leader. If the queue does not answer, messages wait in another queue.

A relay must not reconnect, since its deliveries are valid only on one connection. The command starts another relay.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple, Self

from mqtool.amqp import Channel, Connection, Receiving, administration
from mqtool.delays.destinations import Destination, Warn, derived_name, name_for
from mqtool.delays.wait_queues import AT_LEAST_ONCE, LONGEST_IN_QUEUES, RELAY, YOUNG, ThroughQueues, is_numbered
from mqtool.duration import compact_duration
from mqtool.errors import (
    BadData,
    DeclaredDifferently,
    Difference,
    HeadersTooLarge,
    NotFound,
    StoppedWaiting,
    Unavailable,
    UsageError,
)
from mqtool.field_values import FieldValue
from mqtool.message import DUE, QUEUE_HEADERS, Confirmation, Delivery, Message, Receipt, to_publish_again
from mqtool.routing import checked_delay_of
from mqtool.spelling import pasteable
from mqtool.topology import Exchange, Queue
from mqtool.work.dead_letter_declaration import declare_dead_letter_queue
from mqtool.work.held_messages import has_leader
from mqtool.work.transfer import ADDED_BY_BROKER, name_of, not_taken

#: The maximum number of a relay's unacknowledged messages.
_AT_ONCE = 200
#: Seconds to wait for the next delivery before checking whether the relay must stop.
_LOOK = 1.0
#: Seconds to wait for the next delivery while wait queues have not answered, and while messages are unconfirmed. After
#: that, the relay waits for confirms without receiving more deliveries.
_CHECK, _MOMENT = 0.005, 0.05
#: Seconds to wait for an answer from a wait queue before using another queue; the same if half of _AT_ONCE messages are
#: waiting for answers; and before concluding that the queue has no leader.
_SLOW, _PRESSED, _DEAD = 3.0, 0.5, 10.0
#: The maximum number of wait queues to check at the same time.
_ASKED = 200
#: RabbitMQ 4 drops messages after 20 deliveries by default; this keeps them however often relays are killed.
_INTAKE: Mapping[str, FieldValue] = {**AT_LEAST_ONCE, "x-delivery-limit": 2**31 - 1}
#: The plugin's header, in milliseconds; it is negative once the delay is over.
_X_DELAY = "x-delay"
#: The header in which RabbitMQ's interceptor stores the time of publication, in milliseconds since 1970.
_PUBLISHED = "timestamp_in_ms"
#: Headers that the broker or mqtool added if the message has been delayed before.
_NOT_THEIRS = {*QUEUE_HEADERS, DUE, "mqtool-then"}
#: Milliseconds until a message is retried after a queue has rejected it, for example because the queue is full.
_AGAIN = 1000


class RelayNames(NamedTuple):
    """The exchanges and the queue of a relay.

    Attributes:
        entrance: the exchange that clients publish to.
        intake: the queue of messages that no relay has taken yet.
        out: the exchange that routes due messages.
        is_ours: True if the relay declares the exchange `out`.
    """

    entrance: Exchange
    intake: Queue
    out: Exchange
    is_ours: bool

    @classmethod
    def of(cls, name: str, kind: str = "direct", to: str | None = None) -> "RelayNames":
        """Return the relay for an exchange. `kind` and `to` are the type and name of the exchange for due messages.

        Raises:
            UsageError: the exchange for due messages is the relay's own.
        """
        if to == name:
            raise UsageError(f"--to names the relay's own exchange {to!r}", "due messages would return to the relay")
        entrance = Exchange(name, "fanout", durable=True)
        out = Exchange(name_for(entrance, "relayed") if to is None else to, kind, durable=True)
        queue = name_for(entrance, "relay")
        arguments = {**_INTAKE, RELAY: out.name, "x-dead-letter-exchange": derived_name(queue, "dlq")}
        return cls(entrance, Queue(queue, durable=True, arguments=arguments), out, to is None)

    @property
    def dead_letters(self) -> Queue:
        """The queue of messages that no relay can publish. Its exchange has the same name."""
        return Queue(derived_name(self.intake.name, "dlq"), durable=True)

    def declare(self, channel: Channel, *, keep_type: bool) -> None:
        """Declare the exchanges and the queues, and bind the queues.

        Args:
            keep_type: if the exchange for due messages exists, use it whatever its type is.

        Raises:
            NotFound: the exchange for due messages does not exist, and is not declared by the relay.
            DeclaredDifferently: an exchange or a queue exists with other settings.
        """
        if not self.is_ours:
            administration.expect(channel, self.out)
        elif not (keep_type and administration.exists(channel, self.out)):
            self._declare_out(channel)
        try:
            channel.declare(self.entrance, remember=False, exactly=True)
        except DeclaredDifferently as error:
            raise DeclaredDifferently(
                str(error),
                "name another exchange, to which clients then publish; for one of the plugin, see 'mqtool delayed "
                "migrate --help'",
            ) from error
        try:
            channel.declare(self.intake, remember=False, exactly=True)
        except DeclaredDifferently as error:
            hint = f"does it relay to another exchange? Once it is empty: {pasteable('queue delete', self.intake.name)}"
            raise DeclaredDifferently(str(error), hint) from error
        # Not the default exchange, which would require the permission to write to every queue.
        dead_letters = Exchange(self.dead_letters.name, "fanout", durable=True)
        channel.declare(dead_letters, remember=False, exactly=True)
        declare_dead_letter_queue(channel, self.dead_letters)
        channel.bind(self.dead_letters, dead_letters, remember=False)
        channel.bind(self.intake, self.entrance, remember=False)

    def _declare_out(self, channel: Channel) -> None:
        try:
            channel.declare(self.out, remember=False, exactly=True)
        except DeclaredDifferently as error:
            told = Difference.reported_in(str(error))
            if told is not None and told.setting == "alternate-exchange" and not self.out.arguments:
                return  # from 'mqtool delayed migrate'
            hint = f"use it as it is: {pasteable('delayed relay', self.entrance.name)}; or name another exchange"
            raise DeclaredDifferently(str(error), hint) from error


class Taken(NamedTuple):
    """A delivery to relay.

    Attributes:
        delay: its delay in milliseconds; 0 to publish it at once.
        due: its due time, in milliseconds since 1970.
        wait: the milliseconds to wait in wait queues; None if the wait queues have not been chosen yet.
    """

    delivery: Delivery
    delay: int = 0
    due: int = 0
    wait: int | None = None


class WaitQueueChecks:
    """Checks in the background which wait queues have a leader, so that messages for other queues can be relayed.

    Attributes:
        avoided: the queues that do not answer.

    Args:
        connection: the checks use a separate connection to the same broker.
        dead: the queues that are known to have no leader; extended when another one is found.
    """

    def __init__(self, connection: Connection, dead: set[str], warn: Warn) -> None:
        self.avoided = set(dead)
        self._connection = connection
        self._dead = dead
        self._warn = warn
        self._answered: set[str] = set()
        #: For each unanswered check, by queue: its result, and the time when it started (time.monotonic()).
        self._asked: dict[str, tuple[Future[bool], float]] = {}
        self._threads = ThreadPoolExecutor(_ASKED)
        self._lock = threading.Lock()
        self._is_closed = False
        self._beside: Connection | None = None
        self._to_close = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._is_closed = True
        self._to_close.close()
        self._threads.shutdown(wait=False)

    @property
    def are_outstanding(self) -> bool:
        """True if some queues have not answered yet."""
        return bool(self._asked)

    def have_answered(self, queues: Sequence[str]) -> bool:
        """Return True if all these queues are known to have a leader. Start checking those that are not known."""
        unknown = [queue for queue in queues if queue not in self._answered]
        for queue in unknown:
            if queue not in self._asked:
                answer = self._threads.submit(self._has_leader, queue)
                self._asked[queue] = answer, time.monotonic()
        return not unknown

    def have_changed(self, *, is_pressed: bool) -> bool:
        """Return True if, since the last call, any queues have answered or have been added to `avoided`.

        Args:
            is_pressed: many messages wait for answers.

        Raises:
            MqtoolError: the connection was lost.
        """
        before = len(self._asked), len(self.avoided)
        latest = time.monotonic() - (_PRESSED if is_pressed else _SLOW)
        for queue, (answer, since) in list(self._asked.items()):
            if answer.done():
                del self._asked[queue]
                self._hear(queue, has_leader=answer.result())
            elif since < latest and not is_numbered(queue):
                self.avoided.add(queue)
        return before != (len(self._asked), len(self.avoided))

    def _has_leader(self, queue: str) -> bool:
        """Check whether a queue has a leader. Runs on a thread of the pool."""
        while True:
            asked = self._connected()
            try:
                return has_leader(asked, queue, _DEAD)
            except NotFound:
                return True  # it has been deleted: the broker will return the message
            except StoppedWaiting:
                return True  # nobody uses the queue any more
            except Unavailable:  # the connection was closed because another queue has no leader
                with self._lock:
                    if self._beside is asked:
                        self._beside = None

    def _connected(self) -> Connection:
        with self._lock:
            if self._is_closed:
                raise Unavailable("the connection is closed")
            if self._beside is None:
                self._to_close.close()
                self._beside = self._to_close.enter_context(self._connection.beside())
            return self._beside

    def _hear(self, queue: str, *, has_leader: bool) -> None:
        if has_leader:
            self._answered.add(queue)
            self.avoided.discard(queue)
            return
        self.avoided.add(queue)
        self._dead.add(queue)
        self._warn(
            f"wait queue {queue!r} has no leader, so messages wait in another queue; if RabbitMQ was killed just after "
            f"it had declared {queue!r}, it is empty, and can only be deleted: {pasteable('queue delete', queue)}"
        )


class Relay:
    """Moves messages from its queue into wait queues, or to the exchange for due messages.

    Attributes:
        counts: the number of messages that were "delayed", published "at once", or "unroutable".

    Args:
        source: the channel to consume from. Must not reconnect.
        target: the channel to publish to. Must not reconnect.
        user: the user that both channels are logged in as, who may not publish messages with other users' ids.
        counts: the counts of earlier relays, to be continued.
        dead: the wait queues that are known to have no leader, and are not used.
        by_timestamps: delays start at the time in the header timestamp_in_ms, if a message has it.
    """

    def __init__(
        self,
        source: Channel,
        target: Channel,
        names: RelayNames,
        user: str,
        warn: Warn,
        counts: Counter[str],
        dead: set[str],
        *,
        by_timestamps: bool = False,
    ) -> None:
        self.counts = counts
        self._by_timestamps = by_timestamps
        self._source = source
        self._target = target
        self._names = names
        self._user = user
        self._warn = warn
        self._checks = WaitQueueChecks(target.connection, dead, warn)
        self._through = ThroughQueues(target, Destination(to=names.out), warn, self._checks.avoided)
        self._consumer = source.consumer(names.intake, Receiving(_AT_ONCE, acknowledge=False))
        self._deliveries = self._consumer.deliveries()
        #: Published deliveries by the sequence numbers of their messages, each with the earliest time
        #: (time.monotonic()) to acknowledge it once it is confirmed.
        self._on_their_way: dict[int, tuple[Delivery, float]] = {}
        self._sequence = 0
        #: Deliveries to publish next, and those whose wait queue has not answered yet.
        self._next: deque[Taken] = deque()
        self._parked: list[Taken] = []
        self._confirmed: list[Delivery] = []
        #: The tags of deliveries whose headers do not fit into a frame together with those of a delay.
        self._too_large: set[int] = set()
        #: Confirmed deliveries whose wait queue was declared too recently to survive a kill of the broker.
        self._held_back: deque[tuple[Delivery, float]] = deque()
        # The embedded broker writes a declaration to disk before it replies.
        self._young = 0.0 if source.connection.broker_to_show == "the embedded broker" else YOUNG

    def run(self) -> None:
        """Relay messages until the channel is stopped.

        Raises:
            NotConfirmed: the broker did not accept a message, which stays in the relay's queue.
            MqtoolError: the connection was lost, or the queue was deleted.
        """
        with self._checks:
            self._run()

    def _run(self) -> None:
        while True:
            self._sequence = 0
            try:
                for receipt in self._target.publish(self._messages(), mandatory=True, window=_AT_ONCE):
                    self._settle(receipt)
                time.sleep(max([0.0, *(safe - time.monotonic() for _, safe in self._held_back)]))
                self._acknowledge()
                return
            except (BadData, UsageError) as error:  # the message cannot be encoded; earlier ones are confirmed
                delivery, _ = self._on_their_way.popitem()[1]
                if isinstance(error, HeadersTooLarge) and delivery.delivery_tag not in self._too_large:
                    self._too_large.add(delivery.delivery_tag)
                    self._next.append(Taken(delivery))
                    self._warn(f"{name_of(delivery)} is not delayed: {error}")
                    continue
                self._warn(f"{name_of(delivery)} is dead-lettered to {self._names.dead_letters.name!r}: {error}")
                self._source.reject(delivery)
                self._too_large.discard(delivery.delivery_tag)

    def _messages(self) -> Iterator[Message | None]:
        while True:
            self._acknowledge()
            if self._checks.have_changed(is_pressed=len(self._parked) >= _AT_ONCE // 2):
                self._next.extend(self._parked)
                self._parked.clear()
            if self._next:
                yield self._message(self._next.popleft())
            elif self._consumer.arrives(self._patience):
                delivery = next(self._deliveries, None)
                if delivery is None:
                    return
                yield self._message(self._taken(delivery))
            else:
                yield None

    @property
    def _patience(self) -> float:
        if self._checks.are_outstanding:
            return _CHECK
        return _MOMENT if self._on_their_way else _LOOK

    def _taken(self, delivery: Delivery) -> Taken:
        delay = self._delay(delivery)
        if not delay:
            return Taken(delivery)
        began = now = _now()
        if self._by_timestamps and isinstance(published := delivery.headers.get(_PUBLISHED), int):
            began = min(published, now)
        return Taken(delivery, delay, began + delay)

    def _delay(self, delivery: Delivery) -> int:
        """Return a message's delay in milliseconds; 0, with a warning, if its x-delay is not valid."""
        try:
            delay = checked_delay_of(delivery.headers.get(_X_DELAY))
        except ValueError as error:
            self._warn(f"{name_of(delivery)} is not delayed: {error}")
            return 0
        if delay > LONGEST_IN_QUEUES:
            longest = compact_duration(LONGEST_IN_QUEUES / 1000)
            self._warn(f"{name_of(delivery)} is delayed by {longest}, the longest possible delay")
        return min(delay, LONGEST_IN_QUEUES)

    def _message(self, taken: Taken) -> Message | None:
        """Return the message to publish; None if its wait queue has not answered yet."""
        delivery, delay, due, wait = taken
        self._sequence += 1
        self._on_their_way[self._sequence] = delivery, 0.0
        dropped = _NOT_THEIRS | ADDED_BY_BROKER if delivery.delivery_tag in self._too_large else _NOT_THEIRS
        headers = {name: value for name, value in delivery.headers.items() if name not in dropped}
        properties = to_publish_again(delivery.properties, "message_id")
        if properties.get("user_id") != self._user:
            properties["user_id"] = None
        message = Message(delivery.body, delivery.routing_key, self._names.out.name, properties, delivery.message_id)
        message.properties = {**properties, "headers": headers or None}
        if not delay:
            return message
        place = self._through.place(message, lambda: max(1, due - _now()), wait)
        if not self._checks.have_answered(place.queues):
            del self._on_their_way[self._sequence]
            self._sequence -= 1
            self._parked.append(taken._replace(wait=place.milliseconds))
            return None
        self._on_their_way[self._sequence] = delivery, place.since + self._young
        told = {DUE: due, _X_DELAY: -delay} if _X_DELAY in headers else {DUE: due}
        message.exchange = place.exchange
        message.properties = {**place.properties, "headers": {**place.properties["headers"], **told}}
        return message

    def _settle(self, receipt: Receipt) -> None:
        delivery, safe = self._on_their_way.pop(receipt.sequence)
        is_due = receipt.message.exchange == self._names.out.name
        if receipt.confirmation is Confirmation.CONFIRMED:
            self.counts["at once" if is_due else "delayed"] += 1
        elif is_due and receipt.confirmation is Confirmation.RETURNED:
            self.counts["unroutable"] += 1
        elif is_due:
            self._next.append(Taken(delivery, _AGAIN, _now() + _AGAIN))
            return
        else:
            raise not_taken(delivery, receipt)
        if safe > time.monotonic():
            self._held_back.append((delivery, safe))
        else:
            self._confirmed.append(delivery)

    def _acknowledge(self) -> None:
        while self._held_back and self._held_back[0][1] <= time.monotonic():
            self._confirmed.append(self._held_back.popleft()[0])
        if self._confirmed:
            self._source.acknowledge(*self._confirmed)
            self._too_large.difference_update(each.delivery_tag for each in self._confirmed)
            self._confirmed.clear()


def _now() -> int:
    return int(time.time() * 1000)
