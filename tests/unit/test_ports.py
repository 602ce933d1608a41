"""The ports on which a new broker listens."""

import random

import pytest

from mqtool.broker.ports import choose, free_port, keep
from mqtool.broker.state import Started


def test_a_new_broker_never_gets_a_free_port_of_a_broker_that_is_being_restarted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A free port that is chosen at random for a new broker is not that of a broker which is being restarted, although
    nothing listens there for a moment.
    """
    reserved, other = free_port(), free_port()
    keep(Started("mine", "embedded", f"amqp://localhost:{reserved}", 0, "", {}))
    monkeypatch.setattr("mqtool.broker.ports._given", set())
    drawn = iter([reserved, other])
    monkeypatch.setattr(random, "randint", lambda *_: next(drawn))
    assert choose(None) == other
