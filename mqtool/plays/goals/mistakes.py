"""Mistakes that learners can make in many goals. Each function reports a mistake (Said), or returns such a function."""

from mqtool.plays.goals.goal import Said
from mqtool.plays.goals.seen import Seen, SeenMessage

#: After this many milliseconds, a message that is not acknowledged is reported.
_HELD = 5000


def _is_reply(message: SeenMessage) -> bool:
    """Return True if a message was sent to a server-named queue, or as a direct reply, so nobody typed its address."""
    return not message.exchange and (message.routing_key.startswith("amq.") or bool(message.reply_to))


def to_unknown_exchange(seen: Seen) -> str:
    """Report a message that was published to a missing exchange."""
    astray = [each for each in seen.astray if each.at > seen.begun and each.exchange not in seen.exchanges]
    if not astray:
        return ""
    message = astray[-1]
    return f"{message} was published to the exchange {message.exchange!r}, which does not exist. Its channel is closed."


def not_sent_to(queue: str) -> Said:
    """Return a function that says where a message went, if messages were published, but none to this queue."""

    def said(seen: Seen) -> str:
        elsewhere = [each for each in seen.messages if queue not in each.queues and not _is_reply(each)]
        if not elsewhere or seen.copies_in(queue):
            return ""
        message = elsewhere[-1]
        # RabbitMQ's firehose names a queue for every message to the default exchange, even if there is none.
        if queues := message.queues & seen.queues.keys() if seen.looks else message.queues:
            return f"{message} went to the queue {min(queues)!r}, not to {queue!r}."
        if message.exchange:
            return f"{message} was published to the exchange {message.exchange!r}, and no queue got it."
        return f"{message} was published with the routing key {message.routing_key!r}, and no queue has that name."

    return said


def not_published_to(exchange: str) -> Said:
    """Return a function that says where a message went, if messages were published, but none to this exchange."""

    def said(seen: Seen) -> str:
        published = [each for each in seen.messages if not _is_reply(each)]
        if not published or seen.published_to(exchange):
            return ""
        message = published[-1]
        if not exchange:
            return f"{message} was published to the exchange {message.exchange!r}, not to the default exchange ('')."
        if not message.exchange:
            return (
                f"{message} was published to the default exchange, which takes {message.routing_key!r} as the name "
                f"of a queue. Publish to {exchange!r}."
            )
        return f"{message} was published to the exchange {message.exchange!r}, not to {exchange!r}."

    return said


def nobody_receives(queue: str) -> Said:
    """Return a function that reports a message that waits in this queue while the queue has no consumer."""

    def said(seen: Seen) -> str:
        waiting = [copy for copy in seen.copies_in(queue) if not copy.end and not copy.is_held]
        if not waiting or any(each.queue == queue for each in seen.consumers):
            return ""
        others = sorted({each.queue for each in seen.consumers if not seen.depth(each.queue)})
        elsewhere = f" A receiver waits for messages from {others[0]!r}, which is empty." if others else ""
        return f"{waiting[0].message} waits in {queue!r}, which has no consumer.{elsewhere}"

    return said


def given_back(queue: str) -> Said:
    """Return a function that reports a message that was delivered from this queue, and requeued."""

    def said(seen: Seen) -> str:
        for copy in seen.copies_in(queue):
            if not copy.end and copy.deliveries and copy.deliveries[-1].end.startswith("requeued"):
                return f"{copy.message} was delivered, but not acknowledged: it was requeued in {queue!r}."
        return ""

    return said


def not_acknowledged(queue: str) -> Said:
    """Return a function that reports a delivered message of this queue that is not acknowledged yet."""

    def said(seen: Seen) -> str:
        held = next((copy for copy in seen.copies_in(queue) if copy.is_held), None)
        if held is None:
            return ""
        return (
            f"{held.message} was delivered, and has not been acknowledged yet. Its receiver has to acknowledge it "
            "(basic.ack), or to consume with automatic acknowledgement."
        )

    return said


def never_acknowledged(queue: str) -> Said:
    """Return a function that reports a message held too long, if no message of this queue was acknowledged."""

    def said(seen: Seen) -> str:
        copies = seen.copies_in(queue)
        held = next((copy for copy in copies if copy.is_held), None)
        if held is None or any(copy.acknowledged for copy in copies):
            return ""
        if seen.milliseconds - held.deliveries[-1].milliseconds < _HELD:
            return ""
        return f"{held.message} was delivered more than {_HELD // 1000} s ago, and is not acknowledged."

    return said


def not_done(queue: str, advice: str = "") -> Said:
    """Return a function that reports a message that its receiver published again, as for a retry, and acknowledged."""

    def said(seen: Seen) -> str:
        for copy in reversed(seen.copies_in(queue)):
            if copy.acknowledged and (again := copy.republished) is not None:
                where = again.routing_key or again.exchange
                return (
                    f"{copy.message} was not done: {seen.called(copy.receiver)} published it again to {where!r}, as "
                    f"for a retry, and then acknowledged it.{advice and ' '}{advice}"
                )
        return ""

    return said


def thrown_away(queue: str) -> Said:
    """Return a function that reports a message that left this queue without being received."""

    def said(seen: Seen) -> str:
        for copy in seen.copies_in(queue):
            if copy.end == "purged":
                return f"{queue!r} was purged: {copy.message} was deleted, and nobody received it."
            if copy.end.startswith(("discarded", "dead-lettered")):
                return f"{copy.message} left {queue!r} unread ({copy.end})."
            if copy.end == "deleted" or seen.is_without_queue(copy):
                return f"The queue {queue!r} was deleted, and {copy.message} with it."
        return ""

    return said


def _unheard(seen: Seen, exchange: str) -> SeenMessage | None:
    """Return the latest message to an exchange if no queue got it and none is bound with its key now; or None."""
    published = seen.published_to(exchange)
    keys = {each.key for each in seen.bound(exchange)}
    if not published or not published[-1].lost or published[-1].routing_key in keys:
        return None
    return published[-1]


def useless_binding(exchange: str) -> Said:
    """Return a function that reports an unused binding key of this exchange, if no queue got the latest message."""

    def said(seen: Seen) -> str:
        used = {each.routing_key for each in seen.published_to(exchange)}
        keys = sorted(each.key for each in seen.bound(exchange) if each.key not in used and each.key.isalnum())
        if not keys or _unheard(seen, exchange) is None:
            return ""
        return f"A queue is bound to {exchange!r} with the key {keys[0]!r}, but no publisher has used that key."

    return said


def nothing_bound(exchange: str) -> Said:
    """Return a function that reports the latest message to this exchange, if no binding matches."""

    def said(seen: Seen) -> str:
        message = _unheard(seen, exchange)
        if message is None:
            return ""
        key = f" with the key {message.routing_key!r}" if message.routing_key else ""
        return f"{message}{key} reached no queue: no binding of {exchange!r} matches."

    return said
