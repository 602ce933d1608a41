"""Attempts at the goals of hello-world."""

import time

from tests.goals.attempts import Attempts, Plain, Wrong


def _waits(plain: Plain) -> None:
    plain.send(plain.queue("hello"), "Hello World!")
    time.sleep(0.3)  # the receiver starts later
    plain.receive("hello")


def _misspelt(plain: Plain) -> None:
    plain.consume(plain.queue("hallo"))
    plain.send(plain.queue("hello"), "Hello World!")


def _gives_back(plain: Plain) -> None:
    plain.send(plain.queue("hello"), "Hello World!")
    consumer = plain.consume("hello")
    consumer.next()
    consumer.close()


def _three_at_once(plain: Plain) -> None:
    consumer = plain.consume(plain.queue("hello"), auto_ack=True)
    for body in "abc":
        plain.send("hello", body)
    consumer.wait(3)


def _three_to_two(plain: Plain) -> None:
    consumers = [plain.consume(plain.queue("hello"), auto_ack=True) for _ in range(2)]
    for body in "abcd":
        plain.send("hello", body)
    for consumer in consumers:
        consumer.wait(2)


def _another(plain: Plain) -> None:
    """A receiver gets two messages and ends. Then another receiver gets one message."""
    queue = plain.queue("hello")
    for bodies in ("ab", "c"):
        consumer = plain.consume(queue, auto_ack=True)
        for body in bodies:
            plain.send(queue, body)
        consumer.wait(len(bodies))
        if bodies == "ab":
            consumer.close()


def _lost(plain: Plain) -> None:
    plain.send("helo", "Hello?")


def _told_so(plain: Plain) -> None:
    channel = plain.channel()
    channel.basic_publish("", "helo", b"Hello?", mandatory=True)
    channel.connection.process_data_events(0.2)


ATTEMPTS = {
    "waits": Attempts(
        "mqtool send 'Hello World!'; pause; mqtool receive -c 1",
        _waits,
        (
            Wrong("a receiver was already running", "start mqtool receive; mqtool send"),
            Wrong("went to the queue 'hallo', not to 'hello'", "mqtool send -q hallo 'Hello World!'"),
            Wrong("which has no consumer", "mqtool send 'Hello World!'"),
            Wrong("A receiver waits for messages from 'hallo', which is empty", _misspelt),
            Wrong("it was requeued in 'hello'", _gives_back, "has not been acknowledged yet"),
            Wrong("was purged", "mqtool send; mqtool queue purge hello --yes", "which has no consumer"),
            Wrong("was deleted", "mqtool send; mqtool queue delete hello --yes --if-exists"),
            Wrong("published with the routing key 'helo'", "mqtool send -e '' -r helo hi"),
        ),
    ),
    "at-once": Attempts(
        "start mqtool receive; for i in 1 2 3; do mqtool send; done",
        _three_at_once,
        (
            Wrong("had to wait", "mqtool send; mqtool send; mqtool send; pause; pause; mqtool receive -c 3"),
            Wrong("2 receivers shared", _three_to_two),
            Wrong("receiver 1 got 1 of 3 messages", "start mqtool receive; mqtool send"),
            Wrong("receiver 2 got 1 of 3 messages", _another),
            Wrong("went to the queue 'hallo'", "start mqtool receive; mqtool send -q hallo a"),
        ),
    ),
    "no-queue": Attempts(
        "mqtool send -e '' -r helo --no-mandatory 'Hello?'",
        _lost,
        (
            Wrong("went to the queue 'helo', which exists", "mqtool send -q helo 'Hello?'"),
            Wrong("was returned", _told_so),
            Wrong(
                "not to the default exchange",
                "mqtool exchange declare news fanout; mqtool send -e news -r helo 'Hello?'",
            ),
        ),
    ),
}
