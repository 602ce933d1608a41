"""Dead letters: looking at them, bringing them back, dropping them.

    [jobs.dlq] ── get, one by one ──> chosen?  ── yes ──> published to [jobs], confirmed ──> acknowledged here
                                         │
                                         └─ no ──> kept unacknowledged, so that the next get brings the next one

What is not acknowledged goes back to its place when the channel closes, however that comes about. So whoever looks has
taken nothing, and a redrive that is killed has lost nothing: its next run goes on where it was, and at most the one
message in hand is in both queues, with the same message_id.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mqtool import management
from mqtool.amqp import Channel
from mqtool.errors import BadData, NotConfirmed, Unavailable
from mqtool.management import Management
from mqtool.message import Confirmation, Delivery, Message, Outcome, Receipt
from mqtool.work import history
from mqtool.work.history import Death
from mqtool.work.retry import dead_letter_queue

#: Messages on their way to be confirmed, in a redrive.
_WINDOW = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery from a queue of dead letters, and what is known of its death."""

    delivery: Delivery
    death: Death

    @property
    def message_id(self) -> str | None:
        """The property of that name."""
        return self.delivery.properties.get("message_id")


Choice = Callable[[DeadLetter], bool]


def choice(
    ids: Sequence[str] = (), reason: str | None = None, error: str | None = None, older: float | None = None
) -> Choice:
    """Which dead letters to take: those that meet all that is asked for.

    Args:
        ids: one of these message ids; none for any.
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


def letters(channel: Channel, queue: str) -> Iterator[DeadLetter]:
    """The dead letters that are there now, from the oldest; none is acknowledged.

    Raises:
        Unavailable: there is no such queue.
    """
    for _ in range(channel.depth_of(queue)):  # those that come meanwhile may be the same ones, dead again
        delivery = channel.get(queue)
        if delivery is None:
            return
        yield DeadLetter(delivery, history.death_of(delivery))


def redrive(channel: Channel, source: str, chosen: Choice, to: str | None = None) -> Iterator[DeadLetter]:
    """Bring dead letters back; yield each once it is confirmed in its queue and removed from the dead letters.

    Args:
        source: the queue that they lie in.
        to: the queue to bring them to; None where each was before.

    Raises:
        BadData: one does not tell where it was before.
        NotConfirmed: the broker did not take one; it is still among the dead letters, with all that came after it.
    """
    in_hand: list[DeadLetter] = []

    def messages() -> Iterator[Message]:
        for letter in letters(channel, source):
            if chosen(letter):
                target = to or letter.death.queue
                if target is None:
                    raise BadData(
                        f"message {letter.message_id} does not tell where it was before", "name a queue: --to"
                    )
                in_hand.append(letter)
                yield history.redriven(letter.delivery, target)

    receipts: Iterable[Receipt] = channel.publish(messages(), mandatory=True, window=_WINDOW)
    for receipt in receipts:
        letter = in_hand.pop(0)
        if receipt.confirmation is not Confirmation.CONFIRMED:
            raise NotConfirmed(
                f"message {letter.message_id} was not taken by {receipt.message.routing_key!r}: {receipt.reason}",
                f"it is still in {source}; --to names another queue",
            )
        channel.settle(letter.delivery, Outcome.ACK)
        yield letter


def drop(channel: Channel, source: str, chosen: Choice) -> Iterator[DeadLetter]:
    """Remove dead letters for good; yield each.

    Raises:
        Unavailable: there is no such queue.
    """
    for letter in letters(channel, source):
        if chosen(letter):
            channel.settle(letter.delivery, Outcome.ACK)
            yield letter


def queues_for_letters(api: Management, vhost: str) -> list[str]:
    """The queues that dead letters go to: ours (NAME.dlq), and those where an x-dead-letter-exchange leads.

    Raises:
        Unavailable, AccessRefused: the management API cannot tell.
    """
    columns = ("name", "arguments", "effective_policy_definition")
    listed = {queue["name"]: management.effective_arguments(queue) for queue in management.queues(api, vhost, columns)}
    names = {dead_letter_queue(name).name for name in listed} | {name for name in listed if name.endswith(".dlq")}
    exchanges = set()
    for name, arguments in listed.items():
        exchange = arguments.get("x-dead-letter-exchange", arguments.get("dead-letter-exchange"))
        key = arguments.get("x-dead-letter-routing-key", arguments.get("dead-letter-routing-key"))
        if exchange == "" and "x-expires" not in arguments:  # else it is a wait queue, which leads back
            names.add(str(key or name))
        elif exchange:
            exchanges.add(str(exchange))
    for exchange in exchanges:
        try:
            names |= management.bound_to(api, vhost, exchange)
        except Unavailable:  # a queue may name an exchange that does not exist
            continue
    return sorted(name for name in names if name in listed)
