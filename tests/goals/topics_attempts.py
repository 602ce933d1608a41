"""Attempts at the goals of topics."""

import time

from tests.goals.attempts import Attempts, Plain, Wrong
from tests.goals.publish_subscribe_attempts import bound

_KEYS = ("kern", "kern.disk", "kern.disk.full")
_PUBLISH = "for key in kern kern.disk kern.disk.full; do mqtool emit-log topic $key x; done"


#: A receiver of all keys gets two of the messages. Only the third message reaches the receiver with the right pattern.
_BY_ANOTHER = (
    "start mqtool receive-log topic 'kern.#'; mqtool emit-log topic kern x; mqtool emit-log topic kern.disk.full x;"
    "kill -INT %1; wait %1; sleep 3; start mqtool receive-log topic 'kern.*'; mqtool emit-log topic kern.disk x"
)


def _receive(plain: Plain, *patterns: str) -> None:
    consumer = plain.consume(bound(plain, "topic_logs", "topic", *patterns), auto_ack=True)
    for key in _KEYS:
        plain.send(key, "x", "topic_logs")
    consumer.wait(1)


def _too_late(plain: Plain) -> None:
    """The receiver's pattern matches all keys, but its queue is bound only just before the last message."""
    plain.channel().exchange_declare("topic_logs", "topic")
    plain.send("kern", "x", "topic_logs")
    plain.send("kern.disk.full", "x", "topic_logs")
    consumer = plain.consume(bound(plain, "topic_logs", "topic", "#"), auto_ack=True)
    plain.send("kern.disk", "x", "topic_logs")
    consumer.wait(1)


def _critical(plain: Plain) -> None:
    consumer = plain.consume(bound(plain, "topic_logs", "topic", "kern.*", "*.critical"), auto_ack=True)
    plain.send("kern.critical", "x", "topic_logs")
    consumer.wait(1)


def _two_receivers(plain: Plain) -> None:
    consumers = [
        plain.consume(bound(plain, "topic_logs", "topic", key), auto_ack=True) for key in ("kern.*", "*.critical")
    ]
    plain.send("kern.critical", "x", "topic_logs")
    for each in consumers:
        each.wait(1)
    time.sleep(0.2)


ATTEMPTS = {
    "star": Attempts(
        "start mqtool receive-log topic 'kern.*';" + _PUBLISH,
        lambda plain: _receive(plain, "kern.*"),
        (
            Wrong("'kern.#' also matches 'kern'", "start mqtool receive-log topic 'kern.#';" + _PUBLISH),
            Wrong("'#' also matches 'kern'", _too_late),
            Wrong("'*.disk' also matches 'cron.disk'", lambda plain: _receive(plain, "*.disk")),
            Wrong("matches only itself", lambda plain: _receive(plain, "kern.disk")),
            Wrong(
                "with the key 'kern' yet", "start mqtool receive-log topic 'kern.*'; mqtool emit-log topic kern.disk x"
            ),
            Wrong("reached no queue", _PUBLISH),
            Wrong("'kern' was published before this receiver was started", _BY_ANOTHER),
            Wrong(
                "The receiver has ended. Let it run",
                "start mqtool receive-log topic 'kern.*' -c 1; mqtool emit-log topic kern.disk x; wait %1; sleep 3;"
                "mqtool emit-log topic kern x; mqtool emit-log topic kern.disk.full x",
                "reached no queue",
            ),
        ),
    ),
    "once": Attempts(
        "start mqtool receive-log topic 'kern.*' '*.critical'; mqtool emit-log topic kern.critical x",
        _critical,
        (
            Wrong("reached 2 receivers", _two_receivers),
            Wrong(
                "is bound with 'kern.*' only",
                "start mqtool receive-log topic 'kern.*'; mqtool emit-log topic kern.critical x",
            ),
            Wrong("does not match both", "start mqtool receive-log topic '#'; mqtool emit-log topic kern.info x"),
        ),
    ),
}
