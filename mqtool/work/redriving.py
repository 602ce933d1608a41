"""Dead letters: select them, move them back to the queues that they came from (redrive), or delete them.

A redrive that is killed loses nothing. At most 100 messages are then in both queues, with the same message_id. The next
run continues with the remaining messages.
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
    """Return a function that returns True for a dead letter that meets all of the given conditions.

    Args:
        ids: the message id is in `ids`.
        reason: the reason for dead-lettering contains this text.
        error: the last error contains this text.
        older: the first failure was at least this many seconds ago.
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
    """Move dead letters back to their queues; yield each dead letter once its queue has confirmed it.

    Args:
        source: the dead-letter queue.
        left: called with an explanation for each chosen dead letter that stays: its original queue is unknown or cannot
            be trusted, or does not accept the message.
        to: the queue to move the messages to; None moves each to the queue that it came from.

    Raises:
        NotConfirmed: the broker does not respond, or the queue `to` did not accept a message. This message and the
            remaining ones stay in the dead-letter queue.
    """
    closed = set()  # queues that did not accept a message

    def message_for(delivery: Delivery) -> Message | None:
        if not chosen(delivery):
            return None
        death = history.death_of(delivery)
        target = to or death.queue
        if target is None:
            left(f"{name_of(delivery)} does not say which queue it came from")
        elif to is None and not death.by_broker and dead_letter_queue(target).name != source:
            # The publisher may have set mqtool's headers to write to a queue for which it has no permission.
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

    # Skip dead letters that arrive from now on: they may be the same messages, dead-lettered again.
    until = Until(seen=channel.depth_of(source))
    return iter(Transfer(channel, channel, source, message_for, until=until, goes_on=goes_on))


def drop(channel: Channel, source: str, chosen: Choice) -> Iterator[Delivery]:
    """Delete the chosen dead letters, and yield each."""

    def message_for(delivery: Delivery) -> Message | None:
        return Message(b"") if chosen(delivery) else None

    return iter(Transfer(channel, None, source, message_for, until=Until(seen=channel.depth_of(source))))


def dead_letter_queues(api: Management, vhost: str) -> list[str]:
    """Return the names of dead-letter queues: NAME.dlq, and queues to which an x-dead-letter-exchange routes."""
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
