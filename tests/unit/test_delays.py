"""Delays: the wait queues for each delay, and how delays are written."""

import json
import time
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool import ndjson
from mqtool.amqp import Channel
from mqtool.delays.destinations import Destination
from mqtool.delays.wait_queues import LONGEST_IN_QUEUES, SHORTEST_STEP, ThroughQueues, step_of, waits_for
from mqtool.duration import parse_duration
from mqtool.message import Message
from mqtool.topology import Exchange, Queue

delays = st.integers(1, LONGEST_IN_QUEUES)


def waited(delay: int) -> int:
    """Milliseconds that a message waits in total."""
    return sum(wait.milliseconds for wait in waits_for(delay))


@given(delays)
def test_the_ttls_of_wait_queues_exceed_the_delay_by_at_most_25_ms_or_a_300th(delay: int) -> None:
    """The TTLs of the wait queues for a delay add up to at least the delay, and exceed it by at most 25 ms or 1/300 of
    the delay, whichever is longer.
    """
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
def test_the_waiting_times_of_a_delayed_message_add_up_to_its_delay(delay: int) -> None:
    """The times that a delayed message waits in its wait queues add up to its delay, or to 1 ms more. The first queue's
    TTL is rounded up and may be longer, but the message's own expiration takes effect first.
    """
    through = ThroughQueues(cast(Channel, FakeChannel()), Destination(to=Exchange("logs", durable=True)), print)
    place = through.place(Message(b"", "", "logs"), lambda: delay)
    first, *then = waits_for(delay)
    expiration = int(place.properties["expiration"])
    assert min(first.milliseconds, expiration) + sum(wait.milliseconds for wait in then) in (delay, delay + 1)
    assert expiration > first.milliseconds - step_of(delay)


@given(delays)
def test_a_delay_needs_at_most_two_wait_queues(delay: int) -> None:
    """A delay needs at most two wait queues. With two, a message first waits in the one with the longer TTL. Neither
    queue expires for lack of use (x-expires) while a message waits in the first one.
    """
    waits = waits_for(delay)
    assert 1 <= len(waits) <= 2
    assert waits == sorted(waits, key=lambda wait: -wait.milliseconds)
    assert all(waits[0].milliseconds <= wait.unused <= LONGEST_IN_QUEUES for wait in waits)


@pytest.mark.parametrize(
    "delay", ["250ms", "1s", "59s", "1m", "90s", "2m", "5m", "30m", "1h", "2h", "12h", "1d", "30d"]
)
def test_a_round_delay_needs_one_wait_queue(delay: str) -> None:
    """A round delay, such as 250ms, 90s, 30m or 1d, needs only one wait queue, whose TTL is exactly the delay."""
    assert [wait.milliseconds for wait in waits_for(round(parse_duration(delay) * 1000))] == [
        round(parse_duration(delay) * 1000)
    ]


@given(delays, delays)
def test_wait_queues_with_the_same_name_have_the_same_arguments(one: int, other: int) -> None:
    """If two delays use a wait queue with the same name, mqtool declares it with the same arguments for both."""
    waits = {wait.suffix: wait for wait in waits_for(one)}
    assert all(waits.get(wait.suffix, wait) == wait for wait in waits_for(other))


@given(delays, delays)
def test_a_message_with_a_longer_delay_never_waits_for_less_time(one: int, other: int) -> None:
    """mqtool rounds delays up, but a message with a longer delay never waits for less time than a message with a
    shorter delay.
    """
    assert (one > other) <= (waited(one) >= waited(other))


def test_all_delays_up_to_a_minute_need_only_158_wait_queues() -> None:
    """All delays up to a minute that are multiples of 5 ms need only 158 wait queues in total."""
    queues, expected = set(), {10_000: 58, 60_000: 158, 300_000: 293}
    for delay in range(5, max(expected) + 1, 5):
        queues.update(wait.suffix for wait in waits_for(delay))
        assert len(queues) == expected.get(delay, len(queues))


@pytest.mark.parametrize(
    "message", [Message(b"x", delay=5.25), Message(b"x", due=1893456000.125)], ids=["delay", "due time"]
)
def test_a_delay_is_kept_to_the_millisecond_in_ndjson(message: Message) -> None:
    """mqtool writes a message's delay or due time to NDJSON exactly, to the millisecond, and reads the same time back.
    `send --failed-to` and `send --json` rely on this.
    """
    line = ndjson.from_message(message)
    again = ndjson.to_message(line, "line 1")
    assert (again.delay, again.due) == (message.delay, message.due)
    assert {"delay", "at"} & set(json.loads(line)) == {"at" if message.delay is None else "delay"}


def test_times_without_a_time_zone_in_ndjson_are_local() -> None:
    """mqtool reads a time without a time zone in the NDJSON field "at" as local time."""
    due = ndjson.to_message(b'{"body": "", "at": "2030-01-31T12:00"}', "line 1").due
    assert due == time.mktime((2030, 1, 31, 12, 0, 0, 0, 0, -1))
