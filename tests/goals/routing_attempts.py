"""Attempts at the goals of routing."""

import time

from tests.goals.attempts import Attempts, Plain, Wrong
from tests.goals.publish_subscribe_attempts import bound

_BOTH = "start mqtool receive-log direct info warning error; start mqtool receive-log direct error;"
_EACH = "for key in info warning error; do mqtool emit-log direct $key $key; done"


def _two(plain: Plain, *keys: str) -> None:
    queues = [
        bound(plain, "direct_logs", "direct", "info", "warning", "error"),
        bound(plain, "direct_logs", "direct", *keys),
    ]
    consumers = [plain.consume(queue, auto_ack=True) for queue in queues]
    for key in ("info", "warning", "error"):
        plain.send(key, key, "direct_logs")
    consumers[0].wait(3)
    consumers[1].wait(len(keys))
    time.sleep(2)


def _all_to_both(plain: Plain) -> None:
    _two(plain, "info", "warning", "error")


def _pretend(plain: Plain) -> None:
    """The second receiver is bound with all keys, but starts later, so it gets only the error."""
    keys = ("info", "warning", "error")
    first = plain.consume(bound(plain, "direct_logs", "direct", *keys), auto_ack=True)
    plain.send("info", "info", "direct_logs")
    plain.send("warning", "warning", "direct_logs")
    second = plain.consume(bound(plain, "direct_logs", "direct", *keys), auto_ack=True)
    plain.send("error", "error", "direct_logs")
    first.wait(3)
    second.wait(1)
    plain.send("info", "again", "direct_logs")
    second.wait(2)


def _mend(plain: Plain) -> None:
    channel = plain.channel()
    channel.queue_bind("errors", "direct_logs", "error")
    channel.queue_unbind("errors", "direct_logs", "eror")
    plain.send("error", "Run.", "direct_logs")


ATTEMPTS = {
    "all-and-errors": Attempts(
        _BOTH + _EACH,
        lambda plain: _two(plain, "error"),
        (
            Wrong("reached both receivers", _all_to_both),
            Wrong("('info') reached both receivers", _pretend),
            Wrong(
                "bound to 'direct_logs' with the key 'err'",
                "start mqtool receive-log direct err; mqtool emit-log direct error Run",
            ),
            Wrong("with the key 'info' yet", _BOTH + "mqtool emit-log direct error Run"),
            Wrong("reached only one receiver", "start mqtool receive-log direct info warning error;" + _EACH),
            Wrong("default exchange", "mqtool send -q error Run"),
        ),
    ),
    "no-errors": Attempts(
        "mqtool exchange bind direct_logs errors error; mqtool exchange unbind direct_logs errors eror --yes;"
        "mqtool emit-log direct error Run",
        _mend,
        (
            Wrong("The publishers are right", "mqtool emit-log direct eror Run"),
            Wrong(
                "still bound with 'eror'",
                "mqtool exchange bind direct_logs errors error; mqtool emit-log direct error Run",
            ),
            Wrong("no queue is bound with that key", "mqtool emit-log direct error Run"),
            Wrong("published to the queue itself", "mqtool send -q errors Run"),
        ),
    ),
}
