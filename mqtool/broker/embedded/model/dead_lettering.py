"""Dead-lettering: messages that expire, are rejected or exceed a limit are published again with an `x-death` header."""

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from mqtool.broker.embedded.model.amqp_errors import FailureLog
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, Copies, TimeOfDeath, by_name
from mqtool.broker.embedded.model.clock import Clock, TurnQueue
from mqtool.broker.embedded.model.names import is_too_long
from mqtool.broker.embedded.model.queue import BrokerQueue, Outcome, Settled
from mqtool.codecs.field_tables import Int64, Table, Timestamp, Value

_MAX_COUNT = 2**63 - 1

#: The headers in which RabbitMQ records why and where a message was dead-lettered.
_DEATH_HEADERS = {"x-death"} | {
    f"x-{which}-death-{name}" for which in ("first", "last") for name in ("reason", "queue", "exchange")
}


class DeadLettered(NamedTuple):
    """The source of a dead letter: the queue, the message as it was in that queue, the reason, and the number of failed
    deliveries, which the dead letter carries to the next queue (from RabbitMQ 4.3 on; 0 for earlier ones).
    """

    queue: BrokerQueue
    message: BrokerMessage
    reason: str
    deliveries: int


class DeadLetters:
    """Dead-letters messages of a virtual host's queues, one after another.

    Args:
        publish: called with each dead letter and its source. Publishes the dead letter to the exchange in its address,
            in steps, and returns True if at least one queue accepted it and none refused it.
        failures: logs failures to publish a dead letter.
        trusts_deaths: see Profile.trusts_deaths.
    """

    def __init__(
        self,
        publish: Callable[[BrokerMessage, DeadLettered], Generator[None, None, bool]],
        clock: Clock,
        failures: FailureLog,
        *,
        trusts_deaths: bool,
    ) -> None:
        self._publish = publish
        self._clock = clock
        self._failures = failures
        self._trusts_deaths = trusts_deaths
        self._waiting: TurnQueue[tuple[DeadLettered, Settled]] = TurnQueue(clock, self._handle)

    def add(self, queue: BrokerQueue, message: BrokerMessage, reason: str, deliveries: int, done: Settled) -> None:
        """Dead-letter a message, in a later turn if there are many, then call `done` with the outcome.

        Until then, the message stays on disk as one of its queue, so that it is not lost if the broker is killed.
        """
        self._waiting.add((DeadLettered(queue, message, reason, deliveries), done))

    def _handle(self, each: tuple[DeadLettered, Settled]) -> Iterator[None]:
        source, done = each
        done((yield from self._publish_again(source)))

    def finish(self, until: float) -> int:
        """Dead-letter waiting messages now, because the broker is about to stop; return how many are left.

        A message that is left and is on disk is in its queue again after the restart.

        Args:
            until: when to give up (Clock.elapsed()): messages can be dead-lettered between queues without end.
        """
        return self._waiting.finish(until)

    def _publish_again(self, source: DeadLettered) -> Generator[None, None, Outcome]:
        queue, message, reason, _ = source
        exchange, key = queue.options.dead_letter_exchange, queue.options.dead_letter_routing_key
        if exchange is None or is_too_long(exchange):  # there is no exchange with such a name
            return Outcome.NOT_TAKEN
        now = self._clock.wall()
        try:
            dead = dead_letter(message, queue.name, reason, exchange, key, now, trusts_deaths=self._trusts_deaths)
            taken = yield from self._publish(dead, source)
            return Outcome.TAKEN if taken else Outcome.NOT_TAKEN
        except Exception as error:
            # A failure must not stop the other messages from being dead-lettered, or close a client's connection.
            self._failures.report(f"a message of queue '{queue.name}' cannot be dead-lettered", error)
            return Outcome.FAILED


def dead_letter(
    message: BrokerMessage,
    queue: str,
    reason: str,
    exchange: str,
    routing_key: str | None,
    now: int,
    *,
    trusts_deaths: bool,
) -> BrokerMessage:
    """Build the message to publish to the dead-letter exchange.

    Args:
        queue: the name of the queue that dead-letters the message.
        reason: `rejected`, `expired`, `maxlen` or `delivery_limit`.
        exchange: the dead-letter exchange.
        routing_key: the new routing key; None to keep the old one.
        now: milliseconds since 1970.
        trusts_deaths: see Profile.trusts_deaths.
    """
    if not (trusts_deaths or message.is_dead):
        message = message.replace(
            headers={name: message.headers[name] for name in message.headers if name not in _DEATH_HEADERS}
        )
    headers = dict(message.headers)
    latest, *others = _deaths(message, queue, reason, now, trusts_deaths=trusts_deaths)
    headers["x-death"] = [by_name(latest) if trusts_deaths and "x-death" in headers else latest, *others]
    for name, value in (("reason", reason), ("queue", queue), ("exchange", message.exchange)):
        headers.setdefault(f"x-first-death-{name}", value)
        if not trusts_deaths:
            headers[f"x-last-death-{name}"] = value
    # A new key replaces all old ones, including those in CC, which RabbitMQ 4 keeps as a mere header.
    if routing_key is not None and trusts_deaths:
        headers.pop("CC", None)
    key = message.routing_key if routing_key is None else routing_key
    dead = message.replace(headers=by_name(headers), address=(exchange, key), expires=False)
    dead.is_dead = True
    if routing_key is not None:
        dead.copies = Copies()
    return dead


def _deaths(message: BrokerMessage, queue: str, reason: str, now: int, *, trusts_deaths: bool) -> list[Table]:
    """Build the new x-death header: one entry, with a count, for each queue and reason; the latest comes first."""
    earlier = deaths(message)
    for death in earlier:
        if death.get("queue") == queue and death.get("reason") == reason:
            count = death.get("count")
            # The header may come from a client, with any count.
            more = min(count + 1, _MAX_COUNT) if isinstance(count, int) else 1
            again: Table = {**death, "count": Int64(more), "time": _repeated(death.get("time"), now)}
            return [again, *(other for other in earlier if other is not death)]
    cc, used = message.headers.get("CC"), None if message.copies is None else {*message.copies}
    carbon_copies = [  # BCC stays hidden
        key
        for key in (cc if isinstance(cc, list) else ())
        if isinstance(key, str | bytes) and (used is None or key in used)
    ]
    first: Table = {
        "count": Int64(1),
        "reason": reason,
        "queue": queue,
        "time": TimeOfDeath(now, now),
        "exchange": message.exchange,
        "routing-keys": [message.routing_key, *carbon_copies],
    }
    if message.properties.expiration is not None:
        expiration: Table = {"original-expiration": message.properties.expiration}
        first = first | expiration if trusts_deaths else expiration | first
    return [first, *earlier]


def _repeated(first: Value, now: int) -> Value:
    """Return the time of a repeated death: the time in the header stays that of the first one."""
    if not isinstance(first, Timestamp):
        return first
    return TimeOfDeath(first.first if isinstance(first, TimeOfDeath) else first * 1000, now)


def deaths(message: BrokerMessage) -> list[Table]:
    """Return the entries of a message's x-death header, the latest first."""
    value = message.headers.get("x-death")
    return [death for death in value if isinstance(death, dict)] if isinstance(value, list) else []


def would_cycle(message: BrokerMessage, queue: str) -> bool:
    """Return True if this queue dead-lettered the message before, and no consumer has rejected it then or since.

    Such a message would be dead-lettered in a cycle forever, so the queue must not get it again.
    """
    since: list[Table] = []
    for death in deaths(message):
        since.append(death)
        if death.get("queue") == queue:
            return all(step.get("reason") != "rejected" for step in since)
    return False
