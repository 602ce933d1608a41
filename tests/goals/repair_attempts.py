"""Attempts at the goals of repair: the programs as they are, and fixed."""

import contextlib
import time

import pika

from tests.goals.attempts import Attempts, Plain, Wrong

_EARLY = (
    "copy early_ack -e 's/, auto_ack=True//' -e 's/    print(f\"took/    channel.basic_ack(method.delivery_tag)\\n&/';"
)
_ACK_FIRST = (
    "copy early_ack -e 's/, auto_ack=True//' "
    "-e 's/    print(f\"taking/    channel.basic_ack(method.delivery_tag)\\n&/';"
)
_PAY = "printf '%s\\n' a b c | mqtool send -l -q payments;"
_RENDER = "python no_prefetch.py & python no_prefetch.py & consumers pictures 2; seq 6 | mqtool send -l -q pictures"
_OWN = 's/^replies = .*/replies = channel.queue_declare("", exclusive=True).method.queue/; /queue_declare(replies)/d'
_ASK = (
    "python shared_replies.py 6 & python shared_replies.py 7 & "
    "until mqtool list queues name messages_ready | grep -q 'rpc_queue.*2'; do sleep 0.2; done; start mqtool rpc-server"
)
_MAILS = "printf '%s\\n' ann@example.com nowhere | mqtool send -l -q mails; python requeue_loop.py &"
_PASSIVE = "s/durable=False/passive=True/"


def _cut(plain: Plain) -> None:
    worker = plain.consume("payments", prefetch=1)
    for body in "abc":
        plain.send("payments", body)
    with contextlib.suppress(pika.exceptions.AMQPConnectionError):
        while True:  # until the connection is cut
            worker.channel.connection.process_data_events(0.1)
    worker = plain.consume("payments", prefetch=1)
    for _ in range(3):
        worker.next()
        time.sleep(2)  # the work on a payment takes two seconds
        worker.ack()


def _render(plain: Plain) -> None:
    workers = [plain.consume("pictures", prefetch=1) for _ in range(2)]
    for number in range(6):
        plain.send("pictures", str(number))
    for number in range(1, 4):
        for worker in workers:
            worker.wait(number)
            worker.ack()


def _one_by_one(plain: Plain) -> None:
    """There is no prefetch limit, but each picture is sent only after the previous picture is done."""
    workers = [plain.consume("pictures") for _ in range(2)]
    for number in range(1, 4):
        for worker in workers:
            plain.send("pictures", str(number))
            worker.wait(number)
            worker.ack()
            worker.channel.queue_declare("pictures", passive=True)  # the broker has the acknowledgement now


def _automatic(plain: Plain) -> None:
    plain.send("pictures", "a")
    plain.receive("pictures", auto_ack=True)


def _two_payments(plain: Plain) -> None:
    worker = plain.consume("payments")
    for body in "ab":
        plain.send("payments", body)
    worker.wait(2)


def _publish(plain: Plain) -> None:
    channel = plain.channel()
    channel.confirm_delivery()
    for number in range(6):
        try:
            channel.basic_publish("", "orders", b"%d" % number)
        except pika.exceptions.NackError:
            plain.receive("orders", 2)
            channel.basic_publish("", "orders", b"%d" % number)


def _publish_once(plain: Plain) -> None:
    """The program uses confirms, but does not publish refused orders again."""
    channel = plain.channel()
    channel.confirm_delivery()
    for number in range(6):
        with contextlib.suppress(pika.exceptions.NackError):
            channel.basic_publish("", "orders", b"%d" % number)


def _ask_at_once(plain: Plain, *names: str, questions: str = "67") -> None:
    """Several clients send a request, each with the name of its reply queue. Then a server replies to all of them."""
    clients = [(plain.channel(), name, question) for name, question in zip(names, questions, strict=False)]
    asked = []
    for number, (channel, name, question) in enumerate(clients):
        queue = channel.queue_declare(name).method.queue
        got: list[bytes] = []
        channel.basic_consume(queue, lambda _, _how, _what, body, got=got: got.append(body), auto_ack=True)
        properties = pika.BasicProperties(reply_to=queue, correlation_id=str(number))
        channel.basic_publish("", "rpc_queue", question.encode(), properties)
        channel.connection.process_data_events(0)
        asked.append((channel, queue, got))
    plain.receive("rpc_queue", len(asked))
    for number, (_, queue, _) in enumerate(asked):
        plain.send(queue, "8", correlation_id=str(number))
    for channel, _, got in asked if len({*names}) == len(names) or "" in names else ():
        while not got:  # if all share one queue, another client may get the reply
            channel.connection.process_data_events(0.1)


def _ask_in_turn(plain: Plain) -> None:
    for _ in range(2):
        _ask_at_once(plain, "")


def _never_ack(plain: Plain) -> None:
    """A worker does not acknowledge. There are only two payments, so that `try` does not cut the connection."""
    worker = plain.consume("payments", prefetch=1)
    for body in "ab":
        plain.send("payments", body)
    worker.wait(1)


def _insist(plain: Plain) -> None:
    """A refused order is published again and again, without any consumer."""
    channel = plain.channel()
    channel.confirm_delivery()
    for number in (0, 1, 2, 2, 2):
        with contextlib.suppress(pika.exceptions.NackError):
            channel.basic_publish("", "orders", b"%d" % number)


def _dead(plain: Plain) -> None:
    plain.send("mails", "ann@example.com")
    plain.receive("mails")
    plain.send("mails", "nowhere")
    worker = plain.consume("mails")
    worker.next()
    worker.channel.basic_reject(worker.got[0][0], requeue=False)
    worker.channel.connection.process_data_events(0)


def _swallow(plain: Plain) -> None:
    plain.send("mails", "nowhere")
    plain.receive("mails")


def _invoice(plain: Plain) -> None:
    plain.send("invoices", "42")
    plain.receive("invoices")


def _anew(plain: Plain) -> None:
    plain.channel().queue_delete("invoices")
    plain.queue("invoices", durable=False)
    plain.send("invoices", "42")
    plain.receive("invoices")
    time.sleep(1)


ATTEMPTS = {
    "early-ack": Attempts(
        _EARLY + _PAY + "python early_ack.py; python early_ack.py &",
        _cut,
        (
            Wrong(
                "was acknowledged automatically, as soon as it was delivered",
                "copy early_ack;" + _PAY + "python early_ack.py &",
            ),
            Wrong("the work on a payment takes two seconds", _ACK_FIRST + _PAY + "python early_ack.py &"),
            Wrong("Run the program again", _EARLY + _PAY + "python early_ack.py"),
            Wrong("which has no consumer", _PAY),
            Wrong("Payments sent so far: 2 of 3", _two_payments),
            Wrong("was delivered more than 5 s ago, and is not acknowledged", _never_ack),
        ),
    ),
    "no-prefetch": Attempts(
        "copy no_prefetch -e 's/^channel.basic_consume/channel.basic_qos(prefetch_count=1)\\n&/';" + _RENDER,
        _render,
        (
            Wrong("A worker held", "copy no_prefetch;" + _RENDER),
            Wrong("No picture had to wait", _one_by_one),
            Wrong("Run a second worker", "seq 6 | mqtool send -l -q pictures; mqtool worker -q pictures -c 6"),
            Wrong("acknowledged as soon as they are delivered", _automatic),
            Wrong("which has no consumer", "mqtool send -q pictures a"),
        ),
    ),
    "unconfirmed": Attempts(
        "copy unconfirmed -e 's/^channel = .*/&\\nchannel.confirm_delivery()/' -e 's/^    channel.basic_publish.*/"
        "    while True:\\n        try:\\n        &\\n            break\\n        except pika.exceptions.NackError:\\n"
        "            time.sleep(0.1)/'; python unconfirmed.py & sleep 2; start mqtool receive -q orders",
        _publish,
        (
            Wrong("has gone on without publishing it again", _publish_once),
            Wrong("because the queue is full. Now receive the orders in it", _insist),
            Wrong(
                "the program was not told",
                "copy unconfirmed; python unconfirmed.py; start mqtool receive -q orders; python unconfirmed.py",
            ),
            Wrong("No order was refused", "mqtool send -q orders one"),
            Wrong("not to 'orders'", "mqtool send -q order one"),
        ),
    ),
    "shared-replies": Attempts(
        f"copy shared_replies -e '{_OWN}';" + _ASK,
        lambda plain: _ask_at_once(plain, "", ""),
        (
            Wrong("use the same reply queue", lambda plain: _ask_at_once(plain, "replies", "replies")),
            Wrong("Run the program in two terminals at the same time", lambda plain: _ask_at_once(plain, "")),
            Wrong("where the reply should go", "mqtool send -q rpc_queue 6"),
            Wrong("only after the first one had its reply", _ask_in_turn),
            Wrong(
                "Another client could choose the queue names",
                lambda plain: _ask_at_once(plain, "replies.6", "replies.7"),
            ),
            Wrong("which has no consumer", "copy shared_replies; timeout 5 python shared_replies.py 6"),
        ),
    ),
    "requeue-loop": Attempts(
        "copy requeue_loop -e 's/requeue=True/requeue=False/';" + _MAILS,
        _dead,
        (
            Wrong("has been delivered more than 5 times", "copy requeue_loop;" + _MAILS),
            Wrong("as if it had been sent", _swallow),
            Wrong("Now send an address without an @", "mqtool send -q mails a@b; mqtool receive -q mails -c 1"),
            Wrong("which has no consumer", "mqtool send -q mails nowhere"),
        ),
    ),
    "other-settings": Attempts(
        f"copy other_settings -e '{_PASSIVE}'; python other_settings.py & mqtool send -q invoices 42",
        _invoice,
        (
            Wrong("Now the bookkeepers' programs fail", _anew),
            Wrong("which has no consumer", "copy other_settings; mqtool send -q invoices 42; python other_settings.py"),
            Wrong("not to 'invoices'", "mqtool send -q invoice 42"),
            Wrong("was deleted, but the bookkeepers' programs still use it", "mqtool queue delete invoices --yes"),
        ),
    ),
}
