"""Delays: which wait queue takes them, how they are written, and what is said where the plugin is missing."""

import json
import time
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool import ndjson
from mqtool.amqp import Channel
from mqtool.delays.delay_plugin import PluginMissing
from mqtool.delays.destinations import Destination
from mqtool.delays.wait_queues import LONGEST_IN_QUEUES, SHORTEST_STEP, ThroughQueues, step_of, waits_for
from mqtool.duration import parse_duration
from mqtool.message import Message
from mqtool.topology import Exchange, Queue

delays = st.integers(1, LONGEST_IN_QUEUES)


def waited(delay: int) -> int:
    """Milliseconds that a message waits in all."""
    return sum(wait.milliseconds for wait in waits_for(delay))


@given(delays)
def test_wait_queues_wait_no_shorter_and_hardly_longer(delay: int) -> None:
    """By less than one step: 25 ms up to a minute, a 300th of the delay at most from there on."""
    excess = waited(delay) - delay
    assert 0 <= excess < step_of(delay)
    assert step_of(delay) <= max(SHORTEST_STEP, delay / 300)


class FakeChannel:
    """Declares and binds nothing."""

    def declare(self, thing: Queue, **_: bool) -> Queue:
        return thing

    def bind(self, *_: object, **__: object) -> None:
        pass


@given(delays)
def test_a_message_expires_when_it_is_due(delay: int) -> None:
    """Its queue waits longer by less than a step, and so does any message before it in the queue."""
    through = ThroughQueues(cast(Channel, FakeChannel()), Destination(to=Exchange("logs", durable=True)), print)
    place = through.place(Message(b"", "", "logs"), lambda: delay)
    first, *then = waits_for(delay)
    expiration = int(place.properties["expiration"])
    assert min(first.milliseconds, expiration) + sum(wait.milliseconds for wait in then) in (delay, delay + 1)
    assert expiration > first.milliseconds - step_of(delay)


@given(delays)
def test_at_most_two_waits(delay: int) -> None:
    """The first is the longer one; each queue outlives the messages that come to it."""
    waits = waits_for(delay)
    assert 1 <= len(waits) <= 2
    assert waits == sorted(waits, key=lambda wait: -wait.milliseconds)
    assert all(waits[0].milliseconds <= wait.unused <= LONGEST_IN_QUEUES for wait in waits)


@pytest.mark.parametrize(
    "delay", ["250ms", "1s", "59s", "1m", "90s", "2m", "5m", "30m", "1h", "2h", "12h", "1d", "30d"]
)
def test_a_round_delay_has_one_wait(delay: str) -> None:
    """Exactly its own."""
    assert [wait.milliseconds for wait in waits_for(round(parse_duration(delay) * 1000))] == [
        round(parse_duration(delay) * 1000)
    ]


@given(delays, delays)
def test_one_name_one_queue(one: int, other: int) -> None:
    """Queues with the same name have the same arguments."""
    waits = {wait.suffix: wait for wait in waits_for(one)}
    assert all(waits.get(wait.suffix, wait) == wait for wait in waits_for(other))


@given(delays, delays)
def test_a_longer_delay_never_waits_shorter(one: int, other: int) -> None:
    """The order of delays is the order of their waits."""
    assert (one > other) <= (waited(one) >= waited(other))


def test_there_are_few_of_them() -> None:
    """Whatever the delays. Delays of up to a minute are rounded up to 25 ms: these include one for each step."""
    queues, expected = set(), {10_000: 58, 60_000: 158, 300_000: 293}
    for delay in range(5, max(expected) + 1, 5):
        queues.update(wait.suffix for wait in waits_for(delay))
        assert len(queues) == expected.get(delay, len(queues))


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
