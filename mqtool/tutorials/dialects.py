"""What each generation of the official tutorials declares.

The tutorials have changed names and flags over the years, and differ from language to language. A program that declares
a queue otherwise than its neighbour is refused (406 PRECONDITION_FAILED), so to share a broker with a tutorial's script
is to speak its dialect. https://www.rabbitmq.com/tutorials
"""

from dataclasses import dataclass, field
from enum import StrEnum

from mqtool.topology import DELAYED, Exchange, Queue


class Dialect(StrEnum):
    """Whose names and flags to use."""

    PYTHON = "python"
    GO = "go"
    PYTHON_CLASSIC = "python-classic"
    GO_CLASSIC = "go-classic"


#: As tutorials on the delayed message plugin declare it; like the queue's, its name is the same in all dialects.
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
    headers: Exchange = field(default_factory=lambda: Exchange("headers_logs", "headers"))
    delay_exchange: Exchange = field(default_factory=lambda: DELAY_EXCHANGE)
    delay_queue: Queue = field(default_factory=lambda: Queue("delay_queue", durable=True))


def _quorum(name: str) -> Queue:
    return Queue(name, durable=True, arguments={"x-queue-type": "quorum"})


def _transient(name: str) -> Queue:
    return Queue(name)


def _durable(name: str) -> Queue:
    return Queue(name, durable=True)


NAMES = {
    Dialect.PYTHON: Names(
        hello=_quorum("hello"),
        task_queue=_quorum("task_queue"),
        rpc_queue=_quorum("rpc_queue"),
        fanout=Exchange("logs", "fanout"),
        direct=Exchange("direct_logs", "direct"),
        topic=Exchange("topic_logs", "topic"),
    ),
    Dialect.GO: Names(
        hello=_quorum("hello"),
        task_queue=_quorum("task_queue"),
        rpc_queue=_quorum("rpc_queue"),
        fanout=Exchange("logs", "fanout"),
        direct=Exchange("logs_direct", "direct"),
        topic=Exchange("logs_topic", "topic"),
    ),
    Dialect.PYTHON_CLASSIC: Names(
        hello=_transient("hello"),
        task_queue=_durable("task_queue"),
        rpc_queue=_transient("rpc_queue"),
        fanout=Exchange("logs", "fanout"),
        direct=Exchange("direct_logs", "direct"),
        topic=Exchange("topic_logs", "topic"),
    ),
    Dialect.GO_CLASSIC: Names(
        hello=_transient("hello"),
        task_queue=_durable("task_queue"),
        rpc_queue=_transient("rpc_queue"),
        fanout=Exchange("logs", "fanout", durable=True),
        direct=Exchange("logs_direct", "direct", durable=True),
        topic=Exchange("logs_topic", "topic", durable=True),
    ),
}
