"""Goals of the hello-world tutorial."""

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.seen import Seen, SeenCopy, at_once

_HELLO = "hello"


def _it_waited(seen: Seen) -> str:
    for copy in seen.copies_in(_HELLO):
        if copy.received and copy.waited:
            return f"{copy.message} waited in the queue 'hello' until {seen.called(copy.receiver)} started and got it."
    return ""


def _a_receiver_was_there(seen: Seen) -> str:
    got = [copy.message for copy in seen.copies_in(_HELLO) if copy.received]
    return (
        f"{got[-1]} did not wait: a receiver was already running. Stop the receiver with Ctrl-C, and send again."
        if got
        else ""
    )


_WAITS = Goal(
    "waits",
    "Send 'Hello World!' to the queue 'hello' while no receiver is running. Then receive it.",
    _it_waited,
    (
        mistakes.thrown_away(_HELLO),
        mistakes.given_back(_HELLO),
        _a_receiver_was_there,
        mistakes.not_sent_to(_HELLO),
        mistakes.not_acknowledged(_HELLO),
        mistakes.nobody_receives(_HELLO),
    ),
    (
        "A letter arrives while nobody is at home. Where does it wait until somebody comes?",
        "The queue: it stores a message until a consumer has received and acknowledged it. Sender and receiver need "
        "not run at the same time.",
        "in one terminal:\n  mqtool send 'Hello World!'\nand then, in another one:\n  mqtool receive",
    ),
)


def _in_order(seen: Seen) -> str:
    copies = [copy for copy in seen.copies_in(_HELLO) if copy.received]
    for first, second, third in zip(copies, copies[1:], copies[2:], strict=False):
        three = (first, second, third)
        delivered = [copy.deliveries[0].at for copy in three]
        is_one = len({copy.receiver for copy in three}) == 1
        if is_one and delivered == sorted(delivered) and not any(copy.surely_waited for copy in three):
            bodies = ", ".join(str(copy.message) for copy in three)
            return (
                f"{seen.called(first.receiver)} was waiting, and got {bodies} as soon as each was sent, in this order."
            )
    return ""


def _some_waited(seen: Seen) -> str:
    waited = [copy.message for copy in seen.copies_in(_HELLO) if copy.received and copy.surely_waited]
    return f"{waited[-1]} had to wait. This time, start the receiver first, and let it run." if waited else ""


def _received(seen: Seen) -> list[SeenCopy]:
    return [copy for copy in seen.copies_in(_HELLO) if copy.received and copy.deliveries]


def _several_receivers(seen: Seen) -> str:
    receivers = at_once(_received(seen))
    return f"{len(receivers)} receivers shared the messages of 'hello'. Let only one receiver run." if receivers else ""


def _too_few(seen: Seen) -> str:
    if not (received := _received(seen)):
        return ""
    receivers = [seen.called(copy.receiver) for copy in received]
    got = receivers.count(receivers[-1])
    return f"{receivers[-1]} got {got} of 3 messages. Let it run, and send more messages." if got < 3 else ""


_AT_ONCE = Goal(
    "at-once",
    "Now start the receiver first, and send three messages while it runs.",
    _in_order,
    (
        mistakes.thrown_away(_HELLO),
        mistakes.given_back(_HELLO),
        _several_receivers,
        _some_waited,
        mistakes.not_sent_to(_HELLO),
        mistakes.nobody_receives(_HELLO),
        _too_few,
    ),
    (
        "Does a receiver have to ask again and again whether there is a message?",
        "A consumer subscribes once; then the broker pushes messages to it, in queue order.",
        "in one terminal:\n  mqtool receive\nin another one, three times:\n  mqtool send 'Hello World!'",
    ),
    patient=(_too_few,),
)


def _lost_without_a_word(seen: Seen) -> str:
    lost = [each for each in seen.lost("dropped") if not each.exchange]
    if not lost or ("hello" in seen.queues and lost[0].routing_key == "hello"):
        return ""
    key = lost[0].routing_key
    return f"The broker dropped {lost[0]}: its routing key was {key!r}, and no queue has that name."


def _queue_was_made(seen: Seen) -> str:
    got = [each for each in seen.published_to("") if each.queues]
    if not got:
        return ""
    queue = got[-1].routing_key
    return f"{got[-1]} went to the queue {queue!r}, which exists. Use a routing key that is not the name of a queue."


def _told(seen: Seen) -> str:
    returned = seen.lost("returned")
    return (
        f"{returned[-1]} was returned: it had the mandatory flag, which 'mqtool send' sets. Publish without this flag."
        if returned
        else ""
    )


_NO_QUEUE = Goal(
    "no-queue",
    "A publisher misspells the name of its queue. Publish a message to the default exchange with a routing key that is "
    "not the name of any queue, such as 'helo'. Without the mandatory flag, nothing tells the publisher.",
    _lost_without_a_word,
    (mistakes.not_published_to(""), _told, _queue_was_made),
    (
        "Who would have to notice that a message has no queue: the sender, the receiver, or the broker?",
        "The default exchange routes to the queue whose name is the routing key. A message that no queue gets is "
        "dropped.",
        "  mqtool send -e '' -r no-such-queue --no-mandatory 'Hello?'",
    ),
    only_embedded="RabbitMQ tells only the publisher, not mqtool, whether a message was returned",
)

GOALS = (_WAITS, _AT_ONCE, _NO_QUEUE)
