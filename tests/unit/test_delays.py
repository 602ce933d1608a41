"""Delays: which wait queue takes them, how they are written, and what is said where the plugin is missing."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool import ndjson
from mqtool.delays.delay_plugin import PluginMissing
from mqtool.delays.wait_queues import LONGEST_IN_QUEUES, SHORTEST_STEP, step_of, wait_of
from mqtool.message import Message

delays = st.integers(1, LONGEST_IN_QUEUES)


@given(delays)
def test_a_wait_queue_waits_no_shorter_and_hardly_longer(delay: int) -> None:
    """By less than one step: 25 ms up to ten seconds, a two hundredth of the delay at most from there on."""
    excess = wait_of(delay) - delay
    assert 0 <= excess < step_of(delay)
    assert step_of(delay) <= max(SHORTEST_STEP, delay / 200)


@given(delays)
def test_a_wait_queue_takes_its_own_delay(delay: int) -> None:
    """So that retries and exact delays share it, and no delay has two."""
    assert wait_of(wait_of(delay)) == wait_of(delay)


@given(delays, delays)
def test_a_longer_delay_never_waits_in_a_shorter_queue(one: int, other: int) -> None:
    """The order of delays is the order of their wait queues."""
    assert (one > other) <= (wait_of(one) >= wait_of(other))


def test_there_are_not_too_many_of_them() -> None:
    """Four hundred up to ten seconds, and two hundred whenever the delay doubles."""
    assert len({wait_of(delay) for delay in range(1, 10_001)}) == 400
    assert len({wait_of(delay) for delay in range(10_001, 20_001)}) == 200
    assert len({wait_of(delay) for delay in range(20_001, 40_001)}) == 200


@pytest.mark.parametrize("version", ["3.10.8", "4.0.5", "4.2.7"])
def test_what_to_install_where_it_can_be(version: str) -> None:
    """The release for this version of the broker, where to, and how to enable it."""
    error = PluginMissing(f"RabbitMQ {version}")
    assert "is not enabled there" in str(error)
    assert f"the release for {'.'.join(version.split('.')[:2])}," in (error.hint or "")
    assert "rabbitmq-plugins enable rabbitmq_delayed_message_exchange" in (error.hint or "")
    assert error.exit_code == 78


@pytest.mark.parametrize("version", ["4.3.0", "4.10.1", "5.0.0"])
def test_nothing_to_install_where_it_cannot_be(version: str) -> None:
    """RabbitMQ 4.3 and later cannot load it: the other way is named, and no command that would fail."""
    error = PluginMissing(f"RabbitMQ {version}")
    assert f"RabbitMQ {version} cannot have the delayed message plugin" in str(error)
    assert "4.2.0, is for RabbitMQ 4.2" in str(error)
    assert "--via ttl" in (error.hint or "")
    assert "enable" not in (error.hint or "")


@pytest.mark.parametrize("message", [Message(b"x", delay=5.25), Message(b"x", due=1893456000.125)])
def test_a_delay_survives_the_way_through_a_file(message: Message) -> None:
    """What --failed-to writes, send --json reads, to the millisecond."""
    line = ndjson.from_message(message)
    again = ndjson.to_message(line, "line 1")
    assert (again.delay, again.due) == (message.delay, message.due)
    assert {"delay", "at"} & set(json.loads(line)) == {"at" if message.delay is None else "delay"}


def test_times_without_a_zone_are_local() -> None:
    """As on the command line."""
    due = ndjson.to_message(b'{"body": "", "at": "2030-01-31T12:00"}', "line 1").due
    assert due == time.mktime((2030, 1, 31, 12, 0, 0, 0, 0, -1))
