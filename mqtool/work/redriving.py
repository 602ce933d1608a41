"""Dead letters: choosing among them, bringing them back, dropping them. (To look at them is to peek, see peeking.py.)

A redrive is a transfer to
the queues that they came from (see transfer.py), and so loses nothing when it is killed: at most 100 messages are in
both queues then, with the same message_id, and the next run continues where it stopped.
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
    """Choose the dead letters that meet all of the given conditions.

    Args:
        ids: one of these message ids.
        reason: the reason of death, or a part of it.
        error: a part of the last error.
        older: seconds since the first failure, at least.
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
        if not chosen(delivery):
            return None
        target = to or history.death_of(delivery).queue
        if target is None:
            left(f"{name_of(delivery)} does not say which queue it came from")
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

    # Letters that arrive meanwhile may be the same ones, dead again.
    until = Until(seen=channel.depth_of(source))
    return iter(Transfer(channel, channel, source, message_for, until=until, goes_on=goes_on))


def drop(channel: Channel, source: str, chosen: Choice) -> Iterator[Delivery]:
    """Remove dead letters for good; yield each.

    Raises:
        Unavailable: the queue does not exist.
    """

    def message_for(delivery: Delivery) -> Message | None:
        return Message(b"") if chosen(delivery) else None

    return iter(Transfer(channel, None, source, message_for, until=Until(seen=channel.depth_of(source))))


def dead_letter_queues(api: Management, vhost: str) -> list[str]:
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
