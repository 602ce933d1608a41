"""Dead letters: choosing some, moving them back to the queues that they came from (redrive), or removing them.

A redrive that is killed loses nothing. At most 100 messages are in both queues then, with the same message_id, and the
next run continues where it stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

from mqtool import management
from mqtool.amqp import Channel
from mqtool.errors import Unavailable
from mqtool.management import Management
from mqtool.message import Delivery, Message
from mqtool.work import history
from mqtool.work.retry_or_dead_letter import dead_letter_queue
from mqtool.work.transfer import NotMoved, Transfer, Until, name_of, redriven

Choice = Callable[[Delivery], bool]


def choice(
    ids: Sequence[str] = (), reason: str | None = None, error: str | None = None, older: float | None = None
) -> Choice:
    """A condition for dead letters, which all of these must meet.

    Args:
        ids: the message id is one of these.
        reason: part of the reason why it was dead-lettered.
        error: part of the last error.
        older: at least this many seconds have passed since the first failure.
    """
    wanted = frozenset(ids)

    def chosen(letter: Delivery) -> bool:
        death = history.death_of(letter)
        return (
            (not wanted or letter.message_id in wanted)
            and (reason is None or reason in death.reason)
            and (error is None or error in (death.error or ""))
            and (older is None or (death.first is not None and _age(death.first) >= older))
        )

    return chosen


def _age(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()


def redrive(
    channel: Channel, source: str, chosen: Choice, left: Callable[[str], None], to: str | None = None
) -> Iterator[Delivery]:
    """Move dead letters back; yield each once its queue has confirmed it and it has left the dead-letter queue.

    Args:
        source: the dead-letter queue.
        left: called with a sentence about each letter that stays: it does not say where it came from, only its
            publisher may have said so, or that queue does not take it.
        to: the queue to move them to; None is the queue that each came from.

    Raises:
        NotConfirmed: the broker does not answer, or the queue `to` did not take one. It and the rest stay.
    """
    closed = set()  # queues that did not take one

    def message_for(delivery: Delivery) -> Message | None:
        if not chosen(delivery):
            return None
        death = history.death_of(delivery)
        target = to or death.queue
        if target is None:
            left(f"{name_of(delivery)} does not say which queue it came from")
        elif to is None and not death.by_broker and dead_letter_queue(target).name != source:
            # Its publisher can have set mqtool's headers, and may not be permitted to write to that queue.
            left(f"{name_of(delivery)} says that it came from {target!r}, which does not dead-letter to {source!r}")
        elif target in closed:
            left(f"{name_of(delivery)} was in {target!r}, too")
        else:
            return redriven(delivery, target)
        return None

    def goes_on(error: NotMoved, message: Message) -> bool:
        if to is None:
            closed.add(message.routing_key)
            left(str(error))
        error.hint = f"{error.hint}; --to names another queue"
        return to is None

    # Letters that arrive meanwhile may be the same ones, dead-lettered again.
    until = Until(seen=channel.depth_of(source))
    return iter(Transfer(channel, channel, source, message_for, until=until, goes_on=goes_on))


def drop(channel: Channel, source: str, chosen: Choice) -> Iterator[Delivery]:
    """Remove dead letters for good; yield each one.

    Raises:
        Unavailable: the queue does not exist.
    """

    def message_for(delivery: Delivery) -> Message | None:
        return Message(b"") if chosen(delivery) else None

    return iter(Transfer(channel, None, source, message_for, until=Until(seen=channel.depth_of(source))))


def dead_letter_queues(api: Management, vhost: str) -> list[str]:
    """The names of dead-letter queues: NAME.dlq, and queues that an x-dead-letter-exchange routes to.

    Raises:
        Unavailable, AccessRefused: the management API does not answer.
    """
    columns = ("name", "arguments", "effective_policy_definition")
    listed = {queue["name"]: management.effective_arguments(queue) for queue in management.queues(api, vhost, columns)}
    names = {dead_letter_queue(name).name for name in listed} | {name for name in listed if name.endswith(".dlq")}
    exchanges = set()
    for name, arguments in listed.items():
        exchange, key = arguments.get("x-dead-letter-exchange"), arguments.get("x-dead-letter-routing-key")
        if exchange == "" and "x-expires" not in arguments:  # a queue that expires is a wait queue
            names.add(str(key or name))
        elif exchange:
            exchanges.add(str(exchange))
    for exchange in exchanges:
        try:
            names |= management.bound_to(api, vhost, exchange)
        except Unavailable:  # the exchange does not exist
            continue
    return sorted(name for name in names if name in listed)
