"""What each generation of the official tutorials declares.

The tutorials' names and flags differ from language to language, and have changed over the years. A program that
declares a queue with other flags is refused (406 PRECONDITION_FAILED), so whoever shares a broker with one of the
tutorials' scripts must declare as it does. https://www.rabbitmq.com/tutorials
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from mqtool.topology import DELAYED, Exchange, Queue


class Dialect(StrEnum):
    """Whose names and flags to use."""

    PYTHON = "python"
    GO = "go"
    PYTHON_CLASSIC = "python-classic"
    GO_CLASSIC = "go-classic"


def _quorum(name: str) -> Queue:
    return Queue(name, durable=True, arguments={"x-queue-type": "quorum"})


#: As tutorials on the delayed message plugin declare it.
DELAY_EXCHANGE = Exchange("delay_exchange", DELAYED, durable=True, arguments={"x-delayed-type": "direct"})


@dataclass(frozen=True, slots=True)
class Names:
    """The queues and exchanges of the tutorials, as one dialect declares them."""

    hello: Queue
    task_queue: Queue
    rpc_queue: Queue
    fanout: Exchange
    direct: Exchange
    topic: Exchange
    headers: Exchange
    delay_exchange: Exchange
    delay_queue: Queue


_PYTHON = Names(
    hello=_quorum("hello"),
    task_queue=_quorum("task_queue"),
    rpc_queue=_quorum("rpc_queue"),
    fanout=Exchange("logs", "fanout"),
    direct=Exchange("direct_logs", "direct"),
    topic=Exchange("topic_logs", "topic"),
    headers=Exchange("headers_logs", "headers"),
    delay_exchange=DELAY_EXCHANGE,
    delay_queue=Queue("delay_queue", durable=True),
)
_PYTHON_CLASSIC = replace(
    _PYTHON, hello=Queue("hello"), task_queue=Queue("task_queue", durable=True), rpc_queue=Queue("rpc_queue")
)
NAMES = {
    Dialect.PYTHON: _PYTHON,
    Dialect.GO: replace(_PYTHON, direct=Exchange("logs_direct", "direct"), topic=Exchange("logs_topic", "topic")),
    Dialect.PYTHON_CLASSIC: _PYTHON_CLASSIC,
    Dialect.GO_CLASSIC: replace(
        _PYTHON_CLASSIC,
        fanout=Exchange("logs", "fanout", durable=True),
        direct=Exchange("logs_direct", "direct", durable=True),
        topic=Exchange("logs_topic", "topic", durable=True),
    ),
}
