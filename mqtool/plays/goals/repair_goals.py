"""Goals that are reached by fixing a program: each program in mqtool/plays/repair has one defect."""

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal, TrialFault
from mqtool.plays.goals.seen import Seen, SeenCopy, SeenMessage, is_topology_known

_PAYMENTS = "payments"
#: A payment was acknowledged too early if it was held for fewer milliseconds than this: the program works on each for
#: two seconds.
_TAKING = 1500
#: The connection is cut once a worker has held a payment for more than this many milliseconds. A hasty worker has
#: acknowledged it by then.
_A_WHILE = 300
_FIX = "Stop the program, fix it, run it again, and send another three payments."


def _wrong(copy: SeenCopy) -> bool:
    """Return True if the payment was acknowledged too early, so that the worker could have lost it."""
    return copy.is_early or _is_hasty(copy)


def _is_hasty(copy: SeenCopy) -> bool:
    """Return True if a payment was acknowledged sooner than a worker can have done the work on it."""
    return copy.acknowledged and copy.deliveries[-1].held_milliseconds < _TAKING


def _payments(seen: Seen) -> list[SeenCopy]:
    """Return the payments published after the last one that was acknowledged too early; all payments if none was.

    Earlier payments do not count, so that a corrected program can pass.
    """
    copies = seen.copies_in(_PAYMENTS)
    wrong = [number for number, copy in enumerate(copies) if _wrong(copy)]
    return copies[wrong[-1] + 1 :] if wrong else copies


def _working(seen: Seen) -> list[SeenCopy]:
    """Return the unacknowledged payments of all workers, once one of them has been held for 0.3 s.

    The list is empty until then, and until three payments have been published.
    """
    copies = _payments(seen)
    held = [copy for copy in copies if copy.is_held]
    since = [seen.milliseconds - copy.deliveries[-1].milliseconds for copy in held]
    return held if len(copies) >= 3 and max(since, default=0) > _A_WHILE else []


def _may_be_cut(seen: Seen) -> bool:
    return bool(_working(seen)) and not _cut(seen)


def _cut(seen: Seen) -> list[SeenCopy]:
    """Return the payments whose worker's connection was cut."""
    return [copy for copy in _payments(seen) if any(each.end == "requeued: lost" for each in copy.deliveries)]


def _connection_of(seen: Seen) -> str:
    return _working(seen)[0].receiver.rpartition(" (")[0]


def _none_lost(seen: Seen) -> str:
    copies, cut = _payments(seen), _cut(seen)
    if not seen.acted or not cut or not all(copy.acknowledged for copy in copies):
        return ""
    return (
        f"{cut[0].message} was requeued when its worker's connection was cut, and redelivered. All {len(copies)} "
        "payments are acknowledged, and none was acknowledged too early."
    )


def _acknowledged_first(seen: Seen) -> str:
    hasty = [copy for copy in seen.copies_in(_PAYMENTS) if _is_hasty(copy)]
    if not hasty:
        return ""
    seconds = hasty[-1].deliveries[-1].held_milliseconds / 1000
    return (
        f"{hasty[-1].message} was acknowledged {seconds:.1f} s after its delivery, but the work on a payment "
        f"takes two seconds. If the worker ends in between, the payment is lost. {_FIX}"
    )


def _lost(seen: Seen) -> str:
    early = [copy for copy in seen.copies_in(_PAYMENTS) if copy.is_early]
    if not early:
        return ""
    return (
        f"{early[-1].message} was acknowledged automatically, as soon as it was delivered: the payment is lost if the "
        f"worker ends before the work is done. {_FIX}"
    )


def _run_again(seen: Seen) -> str:
    if not seen.acted or all(copy.end for copy in _payments(seen)) or any(copy.is_held for copy in _payments(seen)):
        return ""
    return "The work on some payments is not done yet. Run the program again, and let it finish."


def _send_three(seen: Seen) -> str:
    sent = len(_payments(seen))
    return f"Payments sent so far: {sent} of 3." if 0 < sent < 3 else ""


_EARLY_ACK = Goal(
    "early-ack",
    "early_ack.py loses a payment if it ends while it works on the payment. Fix the program, run it, and send it three "
    "payments. Its connection will be cut while it works. Run it again: no payment may be lost. To send a payment:\n"
    "  mqtool send -q payments ann",
    _none_lost,
    (
        _lost,
        _acknowledged_first,
        mistakes.not_sent_to(_PAYMENTS),
        _run_again,
        mistakes.nobody_receives(_PAYMENTS),
        mistakes.never_acknowledged(_PAYMENTS),
        _send_three,
    ),
    (
        "When does the broker forget a payment: when the payment is delivered, or when the work on it is done?",
        "Message acknowledgement: with auto_ack, a message counts as done as soon as it is sent to the consumer.",
        "remove auto_ack=True, and end take() with:\n  channel.basic_ack(method.delivery_tag)",
    ),
    queues={_PAYMENTS: {}},
    patient=(_send_three,),
    fault=TrialFault(
        "cut", _may_be_cut, "The worker's connection was cut. Run the worker again.", _connection_of, is_repeated=True
    ),
    only_embedded="RabbitMQ lists a new connection only after some seconds, when it is too late to cut it",
    program="early_ack.py",
)

_PICTURES = "pictures"


def _hoarded(seen: Seen) -> tuple[int, SeenCopy | None, int]:
    """Find the worker that held the most pictures at once.

    Returns: how many pictures this worker held; the last of these pictures to be delivered; and the sequence number of
    the last event at which any worker got a picture while it held another. (1, None, 0) if no worker ever held several.
    """
    copies = seen.copies_in(_PICTURES)
    found = [each for copy in copies for each in copy.deliveries]
    most, which, last = 1, None, 0
    for copy in copies:
        for one in copy.deliveries:
            held = [each for each in found if each.receiver == one.receiver and each.at <= one.at]
            count = sum(not each.ended_at or each.ended_at > one.at for each in held)
            last = max(last, one.at) if count > 1 else last
            if count > most:
                most, which = count, copy
    return most, which, last


def _pictures(seen: Seen) -> list[SeenCopy]:
    """Return the pictures published after a worker last held several at once; all pictures if no worker ever did.

    Earlier pictures do not count, so that a corrected program can pass.
    """
    _, _, last = _hoarded(seen)
    return [copy for copy in seen.copies_in(_PICTURES) if copy.at > last]


def _limited(seen: Seen) -> set[str]:
    """Return the workers that finished a task (a picture) while another task still waited in the queue.

    This shows that their prefetch was limited.
    """
    copies = _pictures(seen)
    return {
        held.receiver
        for held in (each for copy in copies for each in copy.deliveries)
        for copy in copies
        if held.ended_at and copy.deliveries and copy.at < held.ended_at < copy.deliveries[0].at
    } - {""}


def _one_at_a_time(seen: Seen) -> str:
    done = [copy for copy in _pictures(seen) if copy.acknowledged]
    workers = {copy.receiver for copy in done} & _limited(seen)
    if len(done) < 6 or len(workers) < 2 or any(copy.is_early for copy in done):
        return ""
    return (
        f"{len(workers)} workers rendered {len(done)} pictures. No worker had more than one picture at a time, "
        "although others were waiting in the queue."
    )


def _none_waited(seen: Seen) -> str:
    done = [copy for copy in _pictures(seen) if copy.acknowledged]
    if len(done) < 6 or len({copy.receiver for copy in done} & _limited(seen)) > 1:
        return ""
    return "No picture had to wait for a busy worker. Send all six without a pause, while two workers run."


def _hoards(seen: Seen) -> str:
    most, which, _ = _hoarded(seen)
    if which is None:
        return ""
    return (
        f"A worker held {most} pictures when it got {which.message}, and can render only one at a time. Stop both "
        "workers, fix the program, run it in two terminals, and send six pictures again."
    )


def _one_renders(seen: Seen) -> str:
    workers = {copy.receiver for copy in _pictures(seen) if copy.received}
    return "One worker rendered all pictures. Run a second worker." if len(workers) == 1 else ""


def _early_pictures(seen: Seen) -> str:
    early = any(copy.is_early for copy in _pictures(seen))
    return "Pictures are acknowledged as soon as they are delivered: a worker that dies loses them." if early else ""


_NO_PREFETCH = Goal(
    "no-prefetch",
    "no_prefetch.py gets all pictures in the queue at once, so that other workers have nothing to do. Fix the "
    "program, run it in two terminals, and send six pictures:\n  seq 6 | mqtool send -l -q pictures",
    _one_at_a_time,
    (
        _early_pictures,
        _hoards,
        mistakes.not_sent_to(_PICTURES),
        mistakes.nobody_receives(_PICTURES),
        _one_renders,
        _none_waited,
    ),
    (
        "How many messages may the broker send to a worker that has not set a limit?",
        "Consumer prefetch (basic.qos): the number of deliveries that a consumer may hold unacknowledged.",
        "before basic_consume:\n  channel.basic_qos(prefetch_count=1)",
    ),
    queues={_PICTURES: {}},
    only_embedded="RabbitMQ does not report when a single message is acknowledged",
    program="no_prefetch.py",
)

_ORDERS = "orders"


def _refused(seen: Seen) -> list[SeenMessage]:
    return [each for each in seen.lost("refused") if each.routing_key == _ORDERS]


def _missing(seen: Seen) -> list[SeenMessage]:
    """Return the refused orders that the same run of the program has not published again successfully."""
    return [
        each
        for each in _refused(seen)
        if not any(
            copy.message.body == each.body and copy.message.connection == each.connection and copy.at > each.at
            for copy in seen.copies_in(_ORDERS)
        )
    ]


def _all_came(seen: Seen) -> str:
    missing = {each.connection for each in _missing(seen)}
    for first in _refused(seen):
        run = [copy.message for copy in seen.copies_in(_ORDERS) if copy.message.connection == first.connection]
        bodies = {each.body for each in run}
        if first.connection not in missing and len(bodies) >= 6 and all(each.confirms for each in (first, *run)):
            return (
                f"{first} was refused (basic.nack), and the program published it again: all {len(bodies)} "
                "orders reached the queue."
            )
    return ""


def _not_told(seen: Seen) -> str:
    untold = [each for each in _refused(seen) if not each.confirms]
    if not untold:
        return ""
    return f"{untold[-1]} was refused. It was published without confirms, so the program was not told."


def _never_again(seen: Seen) -> str:
    left = [
        each
        for each in _refused(seen)
        if (later := [other for other in seen.messages if other.connection == each.connection and other.at > each.at])
        and not any(other.body == each.body for other in later)
    ]
    if not left:
        return ""
    return f"{left[-1]} was refused (basic.nack), and the program has gone on without publishing it again."


def _still_refused(seen: Seen) -> str:
    if not (missing := _missing(seen)) or _never_again(seen):
        return ""
    if any(not copy.end for copy in seen.copies_in(_ORDERS)):
        return f"{missing[-1]} was refused (basic.nack), because the queue is full. Now receive the orders in it."
    return f"{missing[-1]} was refused (basic.nack). The program has to publish it again."


def _none_refused(seen: Seen) -> str:
    if not seen.copies_in(_ORDERS) or _refused(seen):
        return ""
    return "No order was refused. Start receiving only once the queue is full."


_UNCONFIRMED = Goal(
    "unconfirmed",
    "unconfirmed.py says that it has sent six orders, but some of them are lost: the queue 'orders' has room for two. "
    "Fix the program and run it. Some seconds later, receive the orders: all six have to arrive. To receive:\n"
    "  mqtool receive -q orders",
    _all_came,
    (_not_told, _never_again, _still_refused, _none_refused, mistakes.not_sent_to(_ORDERS)),
    (
        "The program goes on after basic_publish(). What does it know about the message then?",
        "Publisher confirms: for each message, the broker tells the publisher whether it has accepted the message "
        "(basic.ack) or not (basic.nack).",
        "after the channel is opened:\n  channel.confirm_delivery()\n"
        "then basic_publish() raises pika.exceptions.NackError: wait a little, and publish the order again",
    ),
    queues={_ORDERS: {"x-max-length": 2, "x-overflow": "reject-publish"}},
    only_embedded="RabbitMQ tells only the publisher, not mqtool, whether a queue has refused a message",
    program="unconfirmed.py",
)

_RPC = "rpc_queue"


def _replied(seen: Seen) -> list[tuple[SeenMessage, SeenMessage, str]]:
    """Return the requests whose clients have received a reply, each with its reply and the name of its reply queue.

    The name is "" for a direct reply. The list is empty if no client has received a reply.
    """
    found = []
    for request in (copy.message for copy in seen.copies_in(_RPC)):
        identity = request.properties.get("correlation_id")
        for reply in seen.messages:
            if reply.at < request.at or reply.properties.get("correlation_id") != identity:
                continue
            if reply.reply_to == request.connection:
                found.append((request, reply, ""))
            queue = str(request.properties.get("reply_to"))
            copy = reply.copy_in(queue)
            if copy is not None and copy.received and copy.receiver.startswith(request.connection):
                found.append((request, reply, queue))
    return found


def _overlapping(seen: Seen) -> list[tuple[tuple[SeenMessage, str], tuple[SeenMessage, str]]]:
    """Return pairs of requests from two clients that were waiting for their replies at the same time.

    Each request comes with the name of its reply queue. The list is empty if there are no such pairs.
    """
    replied = _replied(seen)
    return [
        ((one, its), (other, others))
        for one, reply, its in replied
        for other, others_reply, others in replied
        if one.at < other.at < reply.at and other.at < others_reply.at and one.connection != other.connection
    ]


def _is_own(queue: str) -> bool:
    """Return True if no other client uses the reply queue: the broker chose its name, or the reply was direct."""
    return not queue or queue.startswith("amq.gen-")


def _own_replies(seen: Seen) -> str:
    for (one, its), (other, others) in _overlapping(seen):
        if _is_own(its) and _is_own(others) and (its != others or not its):
            return f"The clients that sent {one} and {other} waited at the same time, and each got its own reply."
        if its != others and one.body == other.body:  # so the queue is not named after the number in the request
            return f"Two clients sent {one} at the same time, and each got its reply from a queue of its own."
    return ""


def _one_after_the_other(seen: Seen) -> str:
    if _overlapping(seen) or len({request.connection for request, _, _ in _replied(seen)}) < 2:
        return ""
    return (
        "The second client sent its request only after the first one had its reply. Stop the server, run the program "
        "in two terminals, and start the server while both clients wait."
    )


def _named_by_the_question(seen: Seen) -> str:
    for (one, its), (other, others) in _overlapping(seen):
        if its != others and one.body != other.body and not (_is_own(its) and _is_own(others)):
            return (
                f"Another client could choose the queue names {its!r} and {others!r}, too. Declare an exclusive queue "
                "with the name '', so that the broker chooses a unique name. If the program makes unique names itself, "
                "run it in two terminals with the same number to show this."
            )
    return ""


def _one_queue(seen: Seen) -> str:
    clients: dict[str, set[str]] = {}
    for copy in seen.copies_in(_RPC):
        clients.setdefault(str(copy.message.properties.get("reply_to")), set()).add(copy.message.connection)
    shared = [queue for queue, some in clients.items() if len(some) > 1]
    if not shared:
        return ""
    return f"Two clients use the same reply queue, {shared[0]!r}, so each client may get the other's reply."


def _one_client(seen: Seen) -> str:
    clients = {copy.message.connection for copy in seen.copies_in(_RPC)}
    return (
        "Only one client has sent a request. Run the program in two terminals at the same time."
        if len(clients) == 1
        else ""
    )


def _nowhere(seen: Seen) -> str:
    lost = [copy.message for copy in seen.copies_in(_RPC) if not copy.message.properties.get("reply_to")]
    return f"The request {lost[0]} does not say where the reply should go (reply_to)." if lost else ""


_SHARED_REPLIES = Goal(
    "shared-replies",
    "If two people run shared_replies.py at the same time, one may get the other's reply, and drop it. Fix the "
    "program. Run it in two terminals, each with a number such as 7, while no server runs. Then start a server: both "
    "programs must get their replies. To start a server:\n  mqtool rpc-server",
    _own_replies,
    (
        mistakes.not_sent_to(_RPC),
        _nowhere,
        _one_queue,
        _named_by_the_question,
        _one_after_the_other,
        _one_client,
        mistakes.nobody_receives(_RPC),
    ),
    (
        "Two consumers on one queue: who gets which message?",
        "Callback queue: each client declares an exclusive queue of its own, with a name that the broker chooses.",
        "declare the queue with:\n  replies = channel.queue_declare('', exclusive=True).method.queue",
    ),
    queues={_RPC: {}},
    program="shared_replies.py",
    only_embedded="RabbitMQ's counters do not say who has received which reply",
)

_MAILS, _MAX_TRIES = "mails", 5


def _out_of_the_way(seen: Seen) -> str:
    dead = [copy for copy in seen.copies_in(_MAILS) if copy.end == "dead-lettered: rejected"]
    good = [copy for copy in seen.copies_in(_MAILS) if copy.acknowledged]
    if not dead or not good or len(dead[-1].deliveries) > _MAX_TRIES:
        return ""
    bad = dead[-1]
    return f"{bad.message} was dead-lettered on delivery number {len(bad.deliveries)}, and {good[0].message} was sent."


def _again_and_again(seen: Seen) -> str:
    for copy in seen.copies_in(_MAILS):
        if len(copy.deliveries) > _MAX_TRIES and not copy.end:
            return f"{copy.message} has been delivered more than {_MAX_TRIES} times, and requeued each time."
    return ""


def _late_dead(seen: Seen) -> str:
    dead = [copy for copy in seen.copies_in(_MAILS) if copy.end == "dead-lettered: rejected"]
    if not dead or len(dead[-1].deliveries) <= _MAX_TRIES:
        return ""
    return (
        f"{dead[-1].message} was delivered {len(dead[-1].deliveries)} times before it was dead-lettered. Now send "
        "another address without an @."
    )


def _swallowed(seen: Seen) -> str:
    for copy in seen.copies_in(_MAILS):
        if copy.acknowledged and "@" not in copy.message.body:
            return f"{copy.message} was acknowledged as if it had been sent. Nobody will notice that it was not."
    return ""


def _only_bad(seen: Seen) -> str:
    dead = [copy for copy in seen.copies_in(_MAILS) if copy.end.startswith("dead-lettered")]
    return f"{dead[0].message} was dead-lettered. Now send an address with an @, too." if dead else ""


def _only_good(seen: Seen) -> str:
    good = [copy for copy in seen.copies_in(_MAILS) if copy.acknowledged]
    return f"{good[0].message} was sent. Now send an address without an @." if good else ""


_REQUEUE_LOOP = Goal(
    "requeue-loop",
    "requeue_loop.py tries forever to send mail to an address without an @. Fix the program, run it, and send it an "
    "address with an @ and one without. The one without has to be dead-lettered. To send the program an address:\n"
    "  mqtool send -q mails ann@example.com",
    _out_of_the_way,
    (
        _swallowed,
        _again_and_again,
        _late_dead,
        mistakes.not_sent_to(_MAILS),
        mistakes.nobody_receives(_MAILS),
        _only_bad,
        _only_good,
    ),
    (
        "Will sending the mail succeed the next time, a tenth of a second later?",
        "Dead lettering: a message that is rejected with requeue=False goes to the dead-letter exchange of its queue.",
        "instead of the program's basic_reject():\n  channel.basic_reject(method.delivery_tag, requeue=False)",
    ),
    queues={"mails.dlq": {}, _MAILS: {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "mails.dlq"}},
    only_embedded="RabbitMQ does not report dead letters one by one",
    program="requeue_loop.py",
)

_INVOICES = "invoices"
_NOT_THE_QUEUE = "Press r to declare the queue as it was, and fix the program."


def _as_declared(seen: Seen) -> bool:
    return "x-max-length" in seen.queues.get(_INVOICES, {}).get("arguments", {})


def _printed(seen: Seen) -> str:
    got = [copy for copy in seen.copies_in(_INVOICES) if copy.received]
    if not got or not _as_declared(seen) or not is_topology_known(seen, got[0]):
        return ""
    return f"{got[0].message} was received, and the queue still has the arguments with which it was first declared."


def _declared_anew(seen: Seen) -> str:
    if _INVOICES not in seen.queues:
        return f"The queue 'invoices' was deleted, but the bookkeepers' programs still use it. {_NOT_THE_QUEUE}"
    if not _as_declared(seen):
        return (
            "The queue 'invoices' was deleted, and declared again without x-max-length. Now the bookkeepers' programs "
            f"fail, because they declare it with x-max-length. {_NOT_THE_QUEUE}"
        )
    return ""


_OTHER_SETTINGS = Goal(
    "other-settings",
    "other_settings.py ends with PRECONDITION_FAILED: the bookkeepers' program has declared the queue 'invoices' with "
    "other arguments. Fix other_settings.py, not the queue. Run it, and send an invoice:\n"
    "  mqtool send -q invoices 42",
    _printed,
    (
        _declared_anew,
        mistakes.not_sent_to(_INVOICES),
        mistakes.nobody_receives(_INVOICES),
        mistakes.not_acknowledged(_INVOICES),
    ),
    (
        "Where are the arguments of a queue stored: in each program, or on the broker?",
        "A queue can be declared again only with the same arguments. passive=True only checks that the queue exists.",
        "instead of the program's declaration:\n  channel.queue_declare('invoices', passive=True)",
    ),
    queues={_INVOICES: {"x-max-length": 100}},
    program="other_settings.py",
)

GOALS = (_EARLY_ACK, _NO_PREFETCH, _UNCONFIRMED, _SHARED_REPLIES, _REQUEUE_LOOP, _OTHER_SETTINGS)
