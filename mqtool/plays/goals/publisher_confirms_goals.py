"""Goals of the publisher-confirms tutorial."""

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.seen import AMQP_1_0, Seen, SeenCopy, SeenMessage

_ORDERS = "orders"


def _returned(seen: Seen) -> str:
    for message in seen.lost("returned"):
        if message.confirms:
            return f"No queue got {message}: the broker returned it (basic.return), and then confirmed it (basic.ack)."
        if message.protocol == AMQP_1_0:
            return f"No queue got {message}. Its publisher knows, because the outcome was 'released'."
    return ""


def _unconfirmed(seen: Seen) -> str:
    returned = seen.lost("returned")
    if not returned:
        return ""
    return (
        f"{returned[-1]} was published without publisher confirms. It was returned, but without a confirm, the "
        "publisher cannot know how long to wait for a return."
    )


def _dropped(seen: Seen) -> str:
    dropped = seen.lost("dropped")
    return (
        f"No queue got {dropped[-1]}, and its publisher was not told. A confirm does not mean that a queue got the "
        "message."
        if dropped
        else ""
    )


def _routed(seen: Seen) -> str:
    got = [each for each in seen.messages if each.queues]
    return (
        f"{got[-1]} reached the queue {sorted(got[-1].queues)[0]!r}. Publish a message that no queue gets."
        if got
        else ""
    )


def _full(seen: Seen) -> str:
    refused = seen.lost("refused")
    return (
        f"{refused[-1]} was refused by its queue (basic.nack). Publish a message that no queue gets." if refused else ""
    )


_RETURNED = Goal(
    "returned",
    "With publisher confirms, publish a message that no queue gets. Let the broker return the message, so that its "
    "publisher notices.",
    _returned,
    (_full, _unconfirmed, _dropped, _routed),
    (
        "The broker confirms even a message that it could not route to any queue. How can the publisher find out?",
        "The mandatory flag: the broker returns (basic.return) a message that no queue gets, and then confirms it.",
        "  mqtool send -e '' -r helo 'Hello?'",
    ),
    only_embedded="RabbitMQ tells only the publisher, not mqtool, whether a message was returned",
)


def _again(seen: Seen) -> str:
    for first in seen.lost("refused"):
        again = [copy for copy in seen.copies_in(_ORDERS) if copy.message.body == first.body and copy.at > first.at]
        if first.confirms and any(_has_made_room(seen, first, each) for each in again):
            return f"The broker refused {first} (basic.nack). It was published again, and reached 'orders'."
    return ""


def _has_made_room(seen: Seen, first: SeenMessage, again: SeenCopy) -> bool:
    """Return True if an order was received, and so made room, after `first` was refused and before `again` arrived."""
    received = [copy.deliveries[-1].ended_at for copy in seen.copies_in(_ORDERS) if copy.received and copy.deliveries]
    return any(first.at < moment < again.at for moment in received)


def _purged(seen: Seen) -> str:
    gone = mistakes.thrown_away(_ORDERS)(seen)
    return f"{gone} Press r to begin this goal again." if gone else ""


def _not_told(seen: Seen) -> str:
    refused = seen.lost("refused")
    if not refused or refused[-1].confirms:
        return ""
    if refused[-1].protocol == AMQP_1_0:
        return f"The broker refused {refused[-1]} over AMQP 1.0, which has no basic.nack. Use AMQP 0-9-1."
    return f"The broker refused {refused[-1]}, and its publisher was not told: it does not use publisher confirms."


def _gave_up(seen: Seen) -> str:
    refused = seen.lost("refused")
    if not refused:
        return ""
    last = refused[-1]
    if any(copy.message.body == last.body and copy.at > last.at for copy in seen.copies_in(_ORDERS)):
        return ""
    if any(not copy.end for copy in seen.copies_in(_ORDERS)):
        return f"The broker refused {refused[-1]} (basic.nack): 'orders' is full. First receive the order in it."
    return f"The broker refused {refused[-1]} (basic.nack), so it is not in the queue. Publish it again."


def _room(seen: Seen) -> str:
    got = seen.copies_in(_ORDERS)
    return (
        f"{got[-1].message} was accepted: there was room. Leave it in 'orders', and publish another order."
        if got
        else ""
    )


_NACKED = Goal(
    "nacked",
    "The queue 'orders' has room for one message, and refuses all others. Publish two orders. When the second one is "
    "refused, receive the first, and publish the second again.",
    _again,
    (_purged, _not_told, _gave_up, mistakes.not_sent_to(_ORDERS), _room),
    (
        "If publishing a message ends without an error, where is the message?",
        "Negative acknowledgement (basic.nack): the broker could not take the message. The publisher has to send the "
        "message again.",
        "one after the other (the second one fails):\n  mqtool send -q orders one\n  mqtool send -q orders two\n"
        "  mqtool receive -q orders -c 1\n  mqtool send -q orders two",
    ),
    queues={_ORDERS: {"x-max-length": 1, "x-overflow": "reject-publish"}},
    only_embedded="RabbitMQ tells only the publisher, not mqtool, whether a queue has refused a message",
)

GOALS = (_RETURNED, _NACKED)
