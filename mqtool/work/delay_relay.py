"""Delay the messages of any client in wait queues, as the delayed message plugin did (`mqtool delayed relay`).

    publishers ──> (tasks) ──> [tasks.relay] ──> mqtool ── x-delay: 5000 ──> wait queues ···5 s···> (tasks.relayed)
                                                    └───── no x-delay ────────────────────────────────────^

Publishers use the exchange `tasks`, as they used that of the plugin. Queues are bound to `tasks.relayed`, which routes
due messages. All queues in between are quorum queues (see delays/wait_queues.py), and a message is acknowledged in
`tasks.relay` once the broker has confirmed it in the next queue. So it is in at least one queue at every moment, and
relays can be killed and run side by side. A relay keeps up to _AT_ONCE messages in memory, all of them unacknowledged.

A relay must not reconnect: its deliveries and their due times are of one connection. The command starts another one.
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from mqtool.amqp import Channel, Receiving, administration
from mqtool.delays.destinations import Destination, Warn, name_for
from mqtool.delays.wait_queues import LONGEST_IN_QUEUES, RELAY, YOUNG, ThroughQueues
from mqtool.duration import compact_duration
from mqtool.errors import BadData, DeclaredDifferently, UsageError
from mqtool.message import DUE, Confirmation, Delivery, Message, Receipt
from mqtool.routing import delay_of
from mqtool.spelling import pasteable
from mqtool.topology import Exchange, Queue
from mqtool.work.transfer import name_of, not_taken

#: The maximum number of messages that a relay has taken and not acknowledged.
_AT_ONCE = 200
#: Seconds to wait for the next delivery before looking whether the relay must stop.
_LOOK = 1.0
#: No message is dropped, however often relays are killed: RabbitMQ 4 drops messages after 20 deliveries by default.
_INTAKE = {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}
#: The plugin's header, in milliseconds; it is negative once the delay is over.
_X_DELAY = "x-delay"
#: The header with the time of publication, in milliseconds since 1970, that RabbitMQ's interceptor sets.
_PUBLISHED = "timestamp_in_ms"
#: Headers that the broker or mqtool has added to a message that waited before.
_NOT_THEIRS = {"x-delivery-count", "x-acquired-count", DUE, "mqtool-then"}
#: Milliseconds after which a message is tried again that a queue has rejected, for example because it is full.
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
        """The names for an exchange, and for the type or the name of the exchange for due messages."""
        entrance = Exchange(name, "fanout", durable=True)
        out = Exchange(name_for(entrance, "relayed") if to is None else to, kind, durable=True)
        intake = Queue(name_for(entrance, "relay"), durable=True, arguments={**_INTAKE, RELAY: out.name})
        return cls(entrance, intake, out, to is None)

    def declare(self, channel: Channel, *, keep_type: bool) -> None:
        """Declare them, and bind the queue.

        Args:
            keep_type: use the exchange for due messages as it is, if it exists.

        Raises:
            NotFound: the exchange for due messages does not exist, and is not ours.
            DeclaredDifferently: one of them exists with other settings.
        """
        if not self.is_ours:
            administration.expect(channel, self.out)
        elif not (keep_type and administration.exists(channel, self.out)):
            channel.declare(self.out, remember=False, exactly=True)
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
        channel.bind(self.intake, self.entrance, remember=False)


class Relay:
    """Moves messages from its queue into wait queues, or to the exchange for due messages.

    Attributes:
        counts: the numbers of messages that were "delayed", went on "at once", or were "unroutable".

    Args:
        source: consumes. Must not reconnect.
        target: publishes. Must not reconnect.
        user: the user that both are logged in as, who may not publish messages of other users.
        counts: to go on counting.
        by_timestamps: delays begin at the time in the header timestamp_in_ms, if a message has it.
    """

    def __init__(
        self,
        source: Channel,
        target: Channel,
        names: RelayNames,
        user: str,
        warn: Warn,
        counts: Counter[str],
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
        self._through = ThroughQueues(target, Destination(to=names.out), warn)
        self._consumer = source.consumer(names.intake, Receiving(_AT_ONCE, acknowledge=False))
        self._deliveries = self._consumer.deliveries()
        #: Published deliveries, and from when on each may be acknowledged once it is confirmed (time.monotonic()).
        self._on_their_way: deque[tuple[Delivery, float]] = deque()
        self._again: deque[Delivery] = deque()
        self._confirmed: list[Delivery] = []
        #: Confirmed deliveries whose wait queue is too young to survive a kill of the broker.
        self._held_back: deque[tuple[Delivery, float]] = deque()
        # The embedded broker has a declaration on disk before it replies.
        self._young = 0.0 if source.connection.broker_to_show == "the embedded broker" else YOUNG

    def run(self) -> None:
        """Relay messages until the channel is stopped.

        Raises:
            NotConfirmed: the broker did not accept a message, which stays in the relay's queue.
            MqtoolError: the connection was lost, or the queue was deleted.
        """
        while True:
            try:
                for receipt in self._target.publish(self._messages(), mandatory=True, window=_AT_ONCE):
                    self._settle(receipt)
                time.sleep(max([0.0, *(safe - time.monotonic() for _, safe in self._held_back)]))
                self._acknowledge()
                return
            except (BadData, UsageError) as error:  # it cannot be encoded; those before it are confirmed
                self._warn(f"{name_of(self._on_their_way.pop()[0])} stays in {self._names.intake.name}: {error}")

    def _messages(self) -> Iterator[Message | None]:
        while True:
            self._acknowledge()
            if self._again:
                yield self._message(self._again.popleft(), _AGAIN)
            elif self._consumer.arrives(0 if self._on_their_way else _LOOK):
                delivery = next(self._deliveries, None)
                if delivery is None:
                    return
                yield self._message(delivery, self._delay(delivery))
            else:
                yield None

    def _delay(self, delivery: Delivery) -> int:
        """Return the milliseconds to delay a message; 0 with a warning if the plugin would close its connection."""
        try:
            delay = delay_of(delivery.headers.get(_X_DELAY))
        except ValueError as error:
            self._warn(f"{name_of(delivery)} is not delayed: {error}")
            return 0
        if delay > LONGEST_IN_QUEUES:
            self._warn(f"{name_of(delivery)} is delayed by {compact_duration(LONGEST_IN_QUEUES / 1000)}, the most")
        return min(delay, LONGEST_IN_QUEUES)

    def _message(self, delivery: Delivery, delay: int) -> Message:
        self._on_their_way.append((delivery, 0.0))
        headers = {name: value for name, value in delivery.headers.items() if name not in _NOT_THEIRS}
        properties = {name: value for name, value in delivery.properties.items() if name != "message_id"}
        if properties.get("user_id") != self._user:
            properties["user_id"] = None
        message = Message(delivery.body, delivery.routing_key, self._names.out.name, properties, delivery.message_id)
        message.properties = {**properties, "headers": headers or None}
        if not delay:
            return message
        began = now = int(time.time() * 1000)
        if self._by_timestamps and isinstance(published := headers.get(_PUBLISHED), int):
            began = min(published, now)
        due = began + delay
        place = self._through.place(message, lambda: max(1, due - int(time.time() * 1000)))
        self._on_their_way[-1] = delivery, place.since + self._young
        told = {DUE: due, _X_DELAY: -delay} if _X_DELAY in headers else {DUE: due}
        message.exchange = place.exchange
        message.properties = {**place.properties, "headers": {**place.properties["headers"], **told}}
        return message

    def _settle(self, receipt: Receipt) -> None:
        (delivery, safe), is_due = self._on_their_way.popleft(), receipt.message.exchange == self._names.out.name
        if receipt.confirmation is Confirmation.CONFIRMED:
            self.counts["at once" if is_due else "delayed"] += 1
        elif is_due and receipt.confirmation is Confirmation.RETURNED:
            self.counts["unroutable"] += 1
        elif is_due:
            self._again.append(delivery)
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
            self._confirmed.clear()
