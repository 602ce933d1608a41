"""Recordings: which messages are replayed, where they go, and when each is due."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.errors import BadData
from mqtool.recordings.recording import (
    Changes,
    RecordedMessage,
    ReplayPace,
    Selection,
    parse_moment,
    reconcile,
    recorded,
)


def line(second: float | None = None, **others: object) -> bytes:
    moment = {} if second is None else {"timestamp": f"2026-01-31T12:00:{second:06.3f}Z"}
    return json.dumps({**moment, "exchange": "logs", "routing_key": "key", "body": "x", **others}).encode()


def read(
    *lines: bytes, since: str | None = None, until: str | None = None, changes: Changes | None = None
) -> list[RecordedMessage]:
    selection = Selection(since and parse_moment(since), until and parse_moment(until))
    return [message for message in recorded(lines, selection, changes or Changes()) if message is not None]


class Clock:
    """A clock that advances only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    monotonic = __call__

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def dues(pace: ReplayPace, messages: list[RecordedMessage]) -> list[float]:
    """When the messages are due, in seconds after the first one."""
    all_due = [pace.due(message) for message in messages]
    return [round(due - all_due[0], 6) for due in all_due]


def test_a_replay_keeps_the_recorded_gaps() -> None:
    """`recording replay` keeps the recorded gaps: the time between the first message and any later one is the recorded
    time, divided by the speed.
    """
    messages = read(line(5), line(5.25), line(9))
    assert dues(ReplayPace(clock=Clock()), messages) == [0, 0.25, 4]
    assert dues(ReplayPace(2, clock=Clock()), messages) == [0, 0.125, 2]
    assert dues(ReplayPace(math.inf, clock=Clock()), messages) == [0, 0, 0]


def test_a_late_replayed_message_does_not_delay_later_ones() -> None:
    """If `recording replay` publishes a message late, later messages are not delayed. Their due times depend only on
    the recorded times and on the time at which the first message was published.
    """
    clock = Clock()
    pace = ReplayPace(clock=clock)
    first, second, third = read(line(0), line(1), line(2))
    pace.due(first)
    clock.now += 1.5
    assert pace.due(second) == 1001
    assert pace.due(third) == 1002


def test_a_replayed_message_with_an_earlier_timestamp_is_due_immediately() -> None:
    """If a recorded message has an earlier timestamp than the message before it, `recording replay` publishes it
    immediately. If the timestamp is more than 1 s earlier, or the message is the first of another file, the times of
    later messages are measured from this message.
    """
    assert dues(ReplayPace(clock=Clock()), read(line(3), line(4), line(3.5), line(5))) == [0, 1, 1, 2]
    assert dues(ReplayPace(clock=Clock()), read(line(8), line(9), line(2), line(3))) == [0, 1, 1, 2]
    assert dues(ReplayPace(clock=Clock()), [*read(line(3), line(3.2)), *read(line(3), line(3.2))]) == [0, 0.2, 0.2, 0.4]
    assert dues(ReplayPace(clock=Clock()), [*read(line(3)), *read(line(5))]) == [0, 2]


def test_a_line_without_a_timestamp_is_due_together_with_the_one_before() -> None:
    """If a line of a recording has no timestamp, for example because it was typed by hand, its message is due together
    with that of the line before it.
    """
    assert dues(ReplayPace(clock=Clock()), read(line(), line(3), line(), line(4))) == [0, 0, 0, 1]


def test_a_replay_at_a_fixed_rate_has_no_burst_after_a_pause() -> None:
    """With `--rate 500/s`, `recording replay` sends messages 2 ms apart. After a pause of a minute, it does not catch
    up in a burst, but continues with 2 ms between messages.
    """
    clock = Clock()
    pace, messages = ReplayPace(rate=500, clock=clock), read(*[line(0)] * 5)
    assert dues(pace, messages[:3]) == [0, 0.002, 0.004]
    clock.now += 60
    assert [round(pace.due(message) - clock.now, 6) for message in messages[3:]] == [0, 0.002]


def test_the_options_since_and_until_select_recorded_messages() -> None:
    """`recording replay --since` and `--until` select recorded messages by time, or by a duration after the first
    message. A message at the exact time of `--until` is not selected.
    """
    lines = [line(second, body=str(second)) for second in range(5)]
    for since, until in (
        ("1s", "3s"),
        ("2026-01-31T12:00:01Z", "2026-01-31T12:00:03Z"),
        ("1s", "2026-01-31T12:00:03Z"),
    ):
        assert [message.body for message in read(*lines, since=since, until=until)] == [b"1", b"2"]
    with pytest.raises(BadData, match='line 1 has no "timestamp"'):
        read(line(), since="1s")


def test_a_replayed_message_goes_to_its_exchange_or_queue_unless_another_is_given() -> None:
    """`recording replay` publishes a message to the exchange in the recording. If the recording names no exchange, or
    the message was read from a stream, `recording replay` publishes it to the queue from which it was recorded. The
    command's options can name another destination. If a message was recorded with neither exchange nor queue, and no
    option names a destination, `recording replay` raises BadData.
    """

    def place(*lines: bytes, changes: Changes | None = None) -> tuple[str | None, str | None]:
        [message] = read(*lines, changes=changes)
        return message.exchange, message.routing_key

    assert place(line()) == ("logs", "key")
    assert place(line(exchange="", routing_key="jobs", queue="jobs")) == ("", "jobs")
    assert place(line(exchange=None, queue="jobs")) == ("", "jobs")
    assert place(line(exchange="", routing_key=None, queue="jobs")) == ("", "jobs")
    assert place(line(queue="s", headers={"x-stream-offset": None})) == ("", "s")
    assert place(line(queue="", headers={"x-stream-offset": 5})) == ("logs", "key")
    assert place(line(), changes=Changes("other")) == ("other", "key")
    assert place(line(), changes=Changes("", "jobs")) == ("", "jobs")
    with pytest.raises(BadData, match="line 1 names neither an exchange nor a queue"):
        place(line(exchange=None))


def test_a_replay_drops_and_sets_headers() -> None:
    """`recording replay` first removes the headers that its options say to drop, and then sets those that its options
    add. All other headers keep their values and types. The property user_id is left out.
    """
    given = line(headers={"x-death": [], "n": 1, "raw": {"$bytes": "AA=="}}, properties={"type": "t", "user_id": "app"})
    [message] = read(given, changes=Changes(dropped_headers=["x-death", "none"], headers={"n": 2, "replayed": True}))
    assert message.properties == {"type": "t", "headers": {"n": 2, "raw": b"\0", "replayed": True}}


@pytest.mark.parametrize("bad", ["yesterday", 5, "2026-13-01T00:00:00Z"])
def test_the_error_about_an_invalid_timestamp_names_the_line(bad: object) -> None:
    """An invalid timestamp in a recording raises BadData. The error gives the number of the line."""
    with pytest.raises(BadData, match='line 2 has a "timestamp" that is not a time'):
        read(line(1), line(timestamp=bad))


ids = st.lists(st.sampled_from("abc"), max_size=8)


@given(ids, st.data())
def test_reconcile_reports_each_lost_message_even_if_others_have_the_same_id(
    sent: list[str], data: st.DataObject
) -> None:
    """If messages are lost, and the others arrive in order, `reconcile` reports exactly the lost ones, and nothing
    else, even if several messages have the same id.
    """
    arrived = data.draw(st.lists(st.booleans(), min_size=len(sent), max_size=len(sent)))
    got = [message_id for message_id, is_here in zip(sent, arrived, strict=True) if is_here]
    result = reconcile(sent, got)
    assert (result.sent, result.got) == (len(sent), len(got))
    assert sorted([*got, *result.missing]) == sorted(sent)
    assert (result.doubled, result.unexpected, result.reordered) == ([], [], [])


@given(ids.flatmap(lambda sent: st.tuples(st.just(sent), st.permutations(sent))))
def test_reconcile_reports_a_different_order(sent_and_got: tuple[list[str], list[str]]) -> None:
    """If no message is missing, `reconcile` says that messages arrived out of order if, and only if, their ids
    arrived in a different order from that in which they were sent.
    """
    sent, got = sent_and_got
    result = reconcile(sent, got)
    assert (result.missing, result.doubled, result.unexpected) == ([], [], [])
    assert (result.reordered == []) == (got == sent)


@pytest.mark.parametrize(
    ("sent", "got", "missing"),
    [("aba", "", "aba"), ("aba", "a", "ba"), ("abca", "ba", "ac"), ("abab", "ba", "ab"), ("abca", "bca", "a")],
)
def test_reconcile_reports_missing_messages_in_order_of_sending(sent: str, got: str, missing: str) -> None:
    """`reconcile` reports missing messages in the order in which they were sent, even if several of the sent messages
    have the same id.
    """
    assert "".join(reconcile(sent, got).missing) == missing


@given(ids, ids)
def test_reconcile_reports_ids_that_arrive_more_often_than_they_were_sent(sent: list[str], got: list[str]) -> None:
    """`reconcile` reports an id as unexpected if no message was sent with it, and as doubled if more messages arrive
    with it than were sent.
    """
    result = reconcile(sent, got)
    assert set(result.unexpected) == set(got) - set(sent)
    assert set(result.doubled) == {each for each in got if got.count(each) > max(1, sent.count(each))}
