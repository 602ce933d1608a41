"""Dead-lettering: publish expired, rejected and surplus messages again, with an `x-death` header."""

from collections import deque
from collections.abc import Callable

from mqtool.broker.embedded.model.amqp_errors import FailureLog
from mqtool.broker.embedded.model.amqp_message import Dead, Message
from mqtool.broker.embedded.model.clock import Clock
from mqtool.broker.embedded.model.queue import Outcome, Queue, Settled
from mqtool.codecs.field_tables import Int64, Table, Timestamp, Value

_MAX_COUNT = 2**63 - 1

#: The headers in which RabbitMQ says how a message died.
_DEATH_HEADERS = {"x-death"} | {
    f"x-{which}-death-{name}" for which in ("first", "last") for name in ("reason", "queue", "exchange")
}


class DeadLetters:
    """Publishes the dead messages of a virtual host's queues to their dead-letter exchanges, one after the other.

    Args:
        publish: publishes a message to the exchange that it is addressed to; gets the reason too, and returns whether
            a queue took it.
        failures: where a message is reported that cannot be published.
        trusts_deaths: see Profile.
    """

    def __init__(
        self, publish: Callable[[Message, str], bool], clock: Clock, failures: FailureLog, *, trusts_deaths: bool
    ) -> None:
        self._publish = publish
        self._clock = clock
        self._failures = failures
        self._trusts_deaths = trusts_deaths
        self._waiting: deque[tuple[Queue, Message, str, Settled]] = deque()
        self._is_busy = False

    def add(self, queue: Queue, message: Message, reason: str, done: Settled) -> None:
        """Publish a dead message, then call `done` with the outcome.

        A dead letter may cause another one, through any number of queues, so they are not published recursively.
        """
        self._waiting.append((queue, message, reason, done))
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._waiting:
                queue, message, reason, done = self._waiting.popleft()
                done(self._publish_again(queue, message, reason))
        finally:
            self._is_busy = False

    def _publish_again(self, queue: Queue, message: Message, reason: str) -> Outcome:
        exchange, key = queue.options.dead_letter_exchange, queue.options.dead_letter_routing_key
        if exchange is None:
            return Outcome.NOT_TAKEN
        now = self._clock.wall() // 1000
        try:
            dead = dead_letter(message, queue.name, reason, exchange, key, now, trusts_deaths=self._trusts_deaths)
            return Outcome.TAKEN if self._publish(dead, reason) else Outcome.NOT_TAKEN
        except Exception as error:
            # One bad message must not keep the others from being dead-lettered, or close its neighbours' connections.
            self._failures.report(f"a message of queue '{queue.name}' cannot be dead-lettered", error)
            return Outcome.FAILED


def dead_letter(
    message: Message, queue: str, reason: str, exchange: str, routing_key: str | None, now: int, *, trusts_deaths: bool
) -> Message:
    """Return the message to publish to the dead-letter exchange.

    Args:
        queue: the name of the queue that it dies in.
        reason: `rejected`, `expired`, `maxlen` or `delivery_limit`.
        exchange: the dead-letter exchange.
        routing_key: its new routing key; None to keep its own.
        now: seconds since 1970.
        trusts_deaths: see Profile.
    """
    if not (trusts_deaths or isinstance(message, Dead)):
        message = message.replace(
            headers={name: message.headers[name] for name in message.headers if name not in _DEATH_HEADERS}
        )
    headers = dict(message.headers)
    headers["x-death"] = [*_deaths(message, queue, reason, now)]
    for name, value in (("reason", reason), ("queue", queue), ("exchange", message.exchange)):
        headers.setdefault(f"x-first-death-{name}", value)
        if not trusts_deaths:
            headers[f"x-last-death-{name}"] = value
    # A new key replaces all the old ones, those in CC as well.
    if routing_key is not None:
        headers.pop("CC", None)
    headers.pop("BCC", None)
    key = message.routing_key if routing_key is None else routing_key
    return Dead.of(message.replace(headers=headers, address=(exchange, key), expires=False))


def _deaths(message: Message, queue: str, reason: str, now: int) -> list[Value]:
    """Return the new x-death header: the latest death first, one entry with a count for each queue and reason."""
    earlier = deaths(message)
    for death in earlier:
        if death.get("queue") == queue and death.get("reason") == reason:
            count = death.get("count")
            # A client can send any count.
            more = min(count + 1, _MAX_COUNT) if isinstance(count, int) else 1
            again: Table = {**death, "count": Int64(more)}
            return [again, *(other for other in earlier if other is not death)]
    cc = message.headers.get("CC")
    carbon_copies = [key for key in cc if isinstance(key, str | bytes)] if isinstance(cc, list) else []
    first: Table = {
        "count": Int64(1),
        "reason": reason,
        "queue": queue,
        "time": Timestamp(now),
        "exchange": message.exchange,
        "routing-keys": [message.routing_key, *carbon_copies],
    }
    if message.properties.expiration is not None:
        first["original-expiration"] = message.properties.expiration
    return [first, *earlier]


def deaths(message: Message) -> list[Table]:
    """Return the entries of a message's x-death header, the latest first."""
    value = message.headers.get("x-death")
    return [death for death in value if isinstance(death, dict)] if isinstance(value, list) else []


def would_cycle(message: Message, queue: str) -> bool:
    """Return whether a message came back to a queue that it died in before, though no client rejected it on the way.

    It would go round forever, so the queue does not get it.
    """
    since: list[Table] = []
    for death in deaths(message):
        since.append(death)
        if death.get("queue") == queue:
            return all(step.get("reason") != "rejected" for step in since)
    return False
