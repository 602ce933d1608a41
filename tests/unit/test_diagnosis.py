"""What doctor and top take for a problem, and what not."""

from mqtool.inspection.diagnosis import dropped, forgets_to_acknowledge, has_no_consumer
from mqtool.management.client import Json


def queue(ready: int = 0, unacked: int = 0, consumers: int = 0, **stats: int) -> Json:
    return {
        "name": "jobs",
        "vhost": "/",
        "messages": ready + unacked,
        "messages_ready": ready,
        "messages_unacknowledged": unacked,
        "consumers": consumers,
        "message_stats": stats,
    }


def test_messages_without_a_consumer() -> None:
    """Unless they are meant to lie there: dead letters, messages that wait for a retry, streams."""
    assert has_no_consumer(queue(ready=1))
    assert not has_no_consumer(queue(ready=1, consumers=1))
    assert not has_no_consumer(queue())
    assert not has_no_consumer({**queue(ready=1), "name": "jobs.dlq"})
    assert not has_no_consumer({**queue(ready=1), "type": "stream"})
    waits = {"x-message-ttl": 1000, "x-dead-letter-exchange": ""}
    assert not has_no_consumer({**queue(ready=1), "arguments": waits})
    assert has_no_consumer({"name": "new", "vhost": "/", "messages_ready": 1})


def test_consumers_that_forget_to_acknowledge() -> None:
    """Many in hand and not one acknowledged; one long task each is no sign of it."""
    assert forgets_to_acknowledge(queue(unacked=5, consumers=1))
    assert not forgets_to_acknowledge(queue(unacked=2, consumers=2))
    assert not forgets_to_acknowledge(queue(unacked=5, consumers=1, ack=1))
    assert forgets_to_acknowledge(queue(unacked=5, consumers=1, ack=1), queue(unacked=5, consumers=1, ack=1))
    assert forgets_to_acknowledge(queue(unacked=2, consumers=2), queue(unacked=1, consumers=2))
    assert not forgets_to_acknowledge(queue(unacked=5, consumers=1, ack=2), queue(unacked=5, consumers=1, ack=1))
    assert not forgets_to_acknowledge(queue(ack=1), queue(unacked=5, ack=1))


def test_messages_that_were_dropped() -> None:
    """Neither acknowledged nor there; after a restart more is acknowledged than published, and nothing can be said."""
    assert dropped(queue(ready=2, unacked=1, publish=10, ack=3, deliver_no_ack=1, get_no_ack=1)) == 2
    assert dropped(queue(ready=7, publish=10, ack=3)) == 0
    assert dropped(queue(ack=5)) == 0
