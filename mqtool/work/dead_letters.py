"""Dead letters: looking at them, bringing them back, dropping them.

Looking takes them unacknowledged, and they return to their places when the channel closes. A redrive is a transfer to
the queues that they came from (see transfer.py), and so loses nothing when it is killed: at most 100 messages are in
both queues then, with the same message_id, and the next run continues where it stopped.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from mqtool import management
from mqtool.amqp import Channel
from mqtool.errors import Unavailable
from mqtool.management import Management
from mqtool.message import Delivery, Message
from mqtool.work import history, peeking
from mqtool.work.history import Death
from mqtool.work.moving import NotMoved, name_of, redriven
from mqtool.work.retry import dead_letter_queue
from mqtool.work.transfer import Nowhere, Transfer, Until


@dataclass(frozen=True)
class DeadLetter:
    """A delivery from a queue of dead letters."""

    delivery: Delivery

    @cached_property
    def death(self) -> Death:
        """What is known of its death."""
        return history.death_of(self.delivery)

    @property
    def message_id(self) -> str | None:
        """The property of that name."""
        return self.delivery.properties.get("message_id")


Choice = Callable[[DeadLetter], bool]


def choice(
    ids: Sequence[str] = (), reason: str | None = None, error: str | None = None, older: float | None = None
) -> Choice:
    """Choose the dead letters that meet all of the given conditions.

    Args:
        ids: one of these message ids.
        reason: the reason of death, or a part of it.
        error: a part of the last error.
        older: seconds since the first failure, at least.
    """
    wanted = frozenset(ids)

    def chosen(letter: DeadLetter) -> bool:
        death = letter.death
        return (
            (not wanted or letter.message_id in wanted)
            and (reason is None or reason in death.reason)
            and (error is None or error in (death.error or ""))
            and (older is None or (death.first is not None and _age(death.first) >= older))
        )

    return chosen


def _age(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def shown(channel: Channel, queue: str) -> Generator[DeadLetter]:
    """Yield the dead letters as peeking.peek() does: none of them can be acknowledged. Close it to give them back.

    Raises: as peeking.peek() does.
    """
    kind = peeking.kind_of(channel, queue, None, vhost="")
    with closing(peeking.peek(channel, queue, kind)) as deliveries:
        for delivery in deliveries:
            yield DeadLetter(delivery)


def redrive(
    channel: Channel, source: str, chosen: Choice, left: Callable[[str], None], to: str | None = None
) -> Iterator[DeadLetter]:
    """Bring dead letters back; yield each once it is confirmed in its queue and removed from the dead letters.

    Args:
        source: the queue that they are in.
        left: is told of a letter that does not say where it was, or says a queue that does not take it. It stays.
        to: the queue to bring them to; None is where each was before.

    Raises:
        NotConfirmed: the broker does not answer, or the queue `to` did not take one. All that follow are dead letters.
    """
    closed = set()  # queues that did not take a letter

    def message_for(delivery: Delivery) -> Message | None:
        letter = DeadLetter(delivery)
        if not chosen(letter):
            return None
        target = to or letter.death.queue
        if target is None:
            left(f"{name_of(delivery)} does not say which queue it came from")
        elif target in closed:
            left(f"{name_of(delivery)} was in {target!r}, too")
        else:
            return redriven(delivery, target).message
        return None

    def goes_on(error: NotMoved, message: Message) -> bool:
        if to is None:
            closed.add(message.routing_key)
            left(str(error))
        error.hint = f"{error.hint}; --to names another queue"
        return to is None

    # Letters that arrive meanwhile may be the same ones, dead again.
    until = Until(seen=channel.depth_of(source))
    for delivery in Transfer(channel, channel, source, message_for, until=until, goes_on=goes_on):
        yield DeadLetter(delivery)


def drop(channel: Channel, source: str, chosen: Choice) -> Iterator[DeadLetter]:
    """Remove dead letters for good; yield each.

    Raises:
        Unavailable: the queue does not exist.
    """

    def message_for(delivery: Delivery) -> Message | None:
        return Message(b"") if chosen(DeadLetter(delivery)) else None

    until = Until(seen=channel.depth_of(source))
    for delivery in Transfer(channel, Nowhere(), source, message_for, until=until):
        yield DeadLetter(delivery)


def queues_for_letters(api: Management, vhost: str) -> list[str]:
    """The queues that dead letters go to: NAME.dlq, and wherever an x-dead-letter-exchange leads.

    Raises:
        Unavailable, AccessRefused: the management API does not answer.
    """
    columns = ("name", "arguments", "effective_policy_definition")
    listed = {queue["name"]: management.effective_arguments(queue) for queue in management.queues(api, vhost, columns)}
    names = {dead_letter_queue(name).name for name in listed} | {name for name in listed if name.endswith(".dlq")}
    exchanges = set()
    for name, arguments in listed.items():
        exchange, key = arguments.get("x-dead-letter-exchange"), arguments.get("x-dead-letter-routing-key")
        if exchange == "" and "x-expires" not in arguments:  # one that expires is a wait queue, which leads back
            names.add(str(key or name))
        elif exchange:
            exchanges.add(str(exchange))
    for exchange in exchanges:
        try:
            names |= management.bound_to(api, vhost, exchange)
        except Unavailable:  # a queue may name an exchange that does not exist
            continue
    return sorted(name for name in names if name in listed)
