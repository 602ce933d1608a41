"""The tutorials' names and flags: the table of their authors' choices, once more and by hand."""

import pytest

from mqtool.topology import Exchange, Queue
from mqtool.tutorials.dialects import NAMES, Dialect

QUORUM = {"x-queue-type": "quorum"}


def test_every_dialect_has_names() -> None:
    """So that none of them fails only when it is used."""
    assert set(NAMES) == set(Dialect)
    assert [dialect.value for dialect in Dialect] == ["python", "go", "python-classic", "go-classic"]


@pytest.mark.parametrize("dialect", [Dialect.PYTHON, Dialect.GO])
def test_todays_queues_are_quorum_queues(dialect: Dialect) -> None:
    """All three of them, durable."""
    names = NAMES[dialect]
    for queue, name in ((names.hello, "hello"), (names.task_queue, "task_queue"), (names.rpc_queue, "rpc_queue")):
        assert queue == Queue(name, durable=True, exclusive=False, auto_delete=False, arguments=QUORUM)


@pytest.mark.parametrize("dialect", [Dialect.PYTHON_CLASSIC, Dialect.GO_CLASSIC])
def test_yesterdays_queues_are_classic(dialect: Dialect) -> None:
    """No arguments at all; only the task queue outlives a restart."""
    names = NAMES[dialect]
    assert names.hello == Queue("hello")
    assert names.task_queue == Queue("task_queue", durable=True)
    assert names.rpc_queue == Queue("rpc_queue")


@pytest.mark.parametrize(
    ("dialect", "direct", "topic", "durable"),
    [
        (Dialect.PYTHON, "direct_logs", "topic_logs", False),
        (Dialect.GO, "logs_direct", "logs_topic", False),
        (Dialect.PYTHON_CLASSIC, "direct_logs", "topic_logs", False),
        (Dialect.GO_CLASSIC, "logs_direct", "logs_topic", True),
    ],
)
def test_exchanges(dialect: Dialect, direct: str, topic: str, durable: bool) -> None:
    """Go swaps the words of the names, and once had durable exchanges; none was ever auto-delete."""
    names = NAMES[dialect]
    assert names.fanout == Exchange("logs", "fanout", durable=durable)
    assert names.direct == Exchange(direct, "direct", durable=durable)
    assert names.topic == Exchange(topic, "topic", durable=durable)
    assert names.headers == Exchange("headers_logs", "headers")
