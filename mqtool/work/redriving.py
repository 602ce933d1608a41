"""Dead letters: select them, move them back to the queues that they came from (redrive), or delete them.

A redrive that is killed loses nothing. At most 100 messages are then in both queues, with the same message_id. The next
run continues with the remaining messages. From RabbitMQ 4.3 on, a letter over the delivery limit of its queue can be
lost, but only the one in hand.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mqtool import management
from mqtool.amqp import Channel
from mqtool.errors import MqtoolError, NotFound, Unavailable
from mqtool.management import Management, path
from mqtool.message import Delivery, Message
from mqtool.work import history
from mqtool.work.peeking import OverLimit
from mqtool.work.retry_or_dead_letter import dead_letter_queue
from mqtool.work.transfer import NotMoved, QueueTransfer, Until, name_of, redriven, stays

LetterChoice = Callable[[Delivery], bool]


def choice(
    ids: Sequence[str] = (), reason: str | None = None, error: str | None = None, older: float | None = None
) -> LetterChoice:
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


class Origins:
    """Proves from which queue a dead letter came. Its headers name the queue, but any publisher can set these headers.

    The proof is what the broker says of how the dead letter was published last: with the exchange and routing key to
    which the named queue dead-letters; or, to the queue QUEUE.dlq, through the default exchange, as `worker` does. The
    name QUEUE.dlq alone proves nothing: a user with rights on names like `^orders[.]` has none on the queue orders.

    Args:
        source: the queue that holds the dead letters.
        api: returns the management API, which is needed only for dead letters that came through an exchange. May raise
            MqtoolError.
    """

    def __init__(self, source: str, vhost: str, api: Callable[[], Management]) -> None:
        self._source = source
        self._vhost = vhost
        self._api = api
        self._known: dict[str, Mapping[str, Any] | MqtoolError] = {}

    def of(self, letter: Delivery) -> str:
        """Return the queue that a dead letter came from.

        Raises:
            Unproven: there is no proof. The error says why.
        """
        claimed = history.death_of(letter).queue
        if claimed is None:
            raise Unproven(f"{name_of(letter)} does not say which queue it came from")
        try:
            queue = claimed.proven(lambda queue: self._dead_letters_here(queue, letter))
        except NotFound:
            raise Unproven(
                f"{name_of(letter)} says that it came from {claimed.shown()!r}, which does not exist"
            ) from None
        except MqtoolError as error:
            raise Unproven(
                f"{name_of(letter)} says that it came from {claimed.shown()!r}, which cannot be verified: {error}"
            ) from error
        if queue is None:
            through = f" through exchange {letter.exchange!r}" if letter.exchange else ""
            raise Unproven(
                f"{name_of(letter)} says that it came from {claimed.shown()!r}, which does not dead-letter to "
                f"{self._source!r}{through}"
            )
        return queue

    def _dead_letters_here(self, queue: str, letter: Delivery) -> bool:
        if dead_letter_queue(queue).name == self._source and (letter.exchange, letter.routing_key) == (
            "",
            self._source,
        ):
            return True
        if queue not in self._known:
            self._known[queue] = self._arguments_of(queue)
        arguments = self._known[queue]
        if isinstance(arguments, MqtoolError):
            raise arguments
        exchange, key = arguments.get("x-dead-letter-exchange"), arguments.get("x-dead-letter-routing-key")
        return exchange == letter.exchange and key in (None, letter.routing_key)

    def _arguments_of(self, queue: str) -> Mapping[str, Any] | MqtoolError:
        try:
            view = self._api().get(path("queues", self._vhost, queue))
        except MqtoolError as error:
            return error
        arguments: Mapping[str, Any] = management.effective_arguments(view)
        return arguments


class Unproven(MqtoolError):
    """Nothing proves that a dead letter came from the queue that its headers name."""


def redrive(
    channel: Channel,
    origins: Origins | str,
    source: str,
    chosen: LetterChoice,
    left: Callable[[str], None],
    *,
    gets: bool = False,
    over_limit: OverLimit | None = None,
) -> Iterator[Delivery]:
    """Move dead letters back to their queues; yield each dead letter once its queue has confirmed it.

    Args:
        origins: finds the queue that each message came from; or the name of a queue to move all of them to.
        source: the dead-letter queue.
        left: called with an explanation for each chosen dead letter that stays: its original queue is unknown or
            unproven, or does not accept the message, or its headers leave no room for the number of redrives.
        gets, over_limit: see QueueTransfer.

    Raises:
        NotConfirmed: the broker does not respond, or the named queue did not accept a message. This message and the
            remaining ones stay in the dead-letter queue.
    """
    closed = set()  # queues that did not accept a message

    def message_for(delivery: Delivery) -> Message | None:
        if not chosen(delivery):
            return None
        try:
            target = origins if isinstance(origins, str) else origins.of(delivery)
        except Unproven as error:
            left(str(error))
            return None
        if target in closed:
            left(f"{name_of(delivery)} was in {target!r}, too")
            return None
        message = redriven(delivery, target)
        if why := stays(delivery, message, channel.connection.frame_max):
            left(why)
            return None
        return message

    def goes_on(error: NotMoved, message: Message) -> bool:
        is_chosen = isinstance(origins, str)
        if not is_chosen:
            closed.add(message.routing_key)
            left(str(error))
        error.hint = f"{error.hint}; --to names another queue"
        return not is_chosen

    # Skip dead letters that arrive from now on: they may be the same messages, dead-lettered again.
    until = Until(seen=channel.depth_of(source))
    transfer = QueueTransfer(
        channel, channel, source, message_for, until=until, goes_on=goes_on, gets=gets, over_limit=over_limit
    )
    return iter(transfer)


def drop(
    channel: Channel,
    source: str,
    chosen: LetterChoice,
    there: int,
    *,
    gets: bool = False,
    over_limit: OverLimit | None = None,
) -> Iterator[Delivery]:
    """Delete the chosen ones of the first `there` dead letters; yield each. `gets`, `over_limit`: see QueueTransfer.

    Letters that arrive from now on are kept, even if some of the others have left the queue meanwhile.
    """

    def message_for(delivery: Delivery) -> Message | None:
        return Message(b"") if chosen(delivery) else None

    until = Until(seen=min(there, channel.depth_of(source)))
    return iter(QueueTransfer(channel, None, source, message_for, until=until, gets=gets, over_limit=over_limit))


def dead_letter_queues(api: Management, vhost: str) -> list[str]:
    """Return the names of dead-letter queues: NAME.dlq, and queues to which an x-dead-letter-exchange routes.

    Leaves out exclusive queues: only the client that has declared one can receive its messages.
    """
    columns = ("name", "arguments", "effective_policy_definition", "exclusive")
    views = [queue for queue in management.queues(api, vhost, columns) if not queue.get("exclusive")]
    listed = {queue["name"]: management.effective_arguments(queue) for queue in views}
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
