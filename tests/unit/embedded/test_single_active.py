"""A stream client with a single active consumer that does not answer the broker's consumer_update."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.stream_log import Retention, StreamLog
from mqtool.broker.embedded.streaming.subscriptions import ConsumerGroup, StreamSubscription, _Start
from tests.unit.embedded.test_queue import FakeClock


class FakeSession:
    """A connection that records what is sent, and the reason for which it is closed."""

    def __init__(self, clock: FakeClock) -> None:
        self.broker = SimpleNamespace(clock=clock)
        self.sent: list[bytes] = []
        self.reason: str | None = None

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def add_held_bytes(self, count: int) -> None:
        """Do nothing."""

    def force_close(self, reason: str) -> None:
        self.reason = reason


@pytest.mark.parametrize("answers", [True, False])
def test_a_stream_client_that_does_not_answer_consumer_update_is_disconnected(*, answers: bool) -> None:
    """If a stream client does not answer the broker's consumer_update within 60 seconds, the broker disconnects the
    client, as RabbitMQ does.
    """
    clock, ledger = FakeClock(), Ledger()
    log = StreamLog(ledger.segments(0), clock, ledger, Retention())
    session = FakeSession(clock)
    subscription = StreamSubscription(cast(Any, session), 1, "s", log, _Start(1), 1)
    ConsumerGroup(None).add(subscription)
    clock.pass_by(59_999)
    assert (len(session.sent), session.reason) == (1, None)
    if answers:
        assert subscription.is_answered(int.from_bytes(session.sent[0][8:12]))
    clock.pass_by(1)
    assert session.reason == (None if answers else "request to client timed out")
