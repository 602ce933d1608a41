"""Attempts at the goals of delayed-messages."""

import time

from tests.goals.attempts import Attempts, Plain, Wrong

_RECEIVE = "start mqtool receive-delayed;"


def _overtake(plain: Plain) -> None:
    plain.queue("due")
    for seconds in (3, 1):
        arguments = {"x-message-ttl": seconds * 1000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "due"}
        plain.queue(f"wait.{seconds}", **arguments)
    consumer = plain.consume("due", auto_ack=True)
    plain.send("wait.3", "first")
    plain.send("wait.1", "second")
    consumer.wait(2)


def _without_delay(plain: Plain) -> None:
    """There are two queues, and the second one is read first."""
    plain.send(plain.queue("one"), "first")
    plain.send(plain.queue("two"), "second")
    time.sleep(1)
    plain.receive("two")
    plain.receive("one")


ATTEMPTS = {
    "overtaken": Attempts(
        _RECEIVE + "mqtool send-delayed --delay 7s first; mqtool send-delayed --delay 1s second",
        _overtake,
        (
            Wrong("was delivered without a delay", _without_delay),
            Wrong(
                "Give the first message the longer delay",
                _RECEIVE + "mqtool send-delayed --delay 1s a; mqtool send-delayed --delay 3s b",
            ),
            Wrong("Now send two", _RECEIVE + "mqtool send-delayed --delay 1s a"),
            Wrong("Nobody has received it yet", "mqtool send-delayed --delay 1s a"),
        ),
    )
}
