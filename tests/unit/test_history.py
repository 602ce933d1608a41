"""The history of a failed message, from its headers: attempts, origin, and why and where it was dead-lettered."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from mqtool.claims import Claimed
from mqtool.message import Delivery
from mqtool.work import history
from mqtool.work.history import Death, Origin

FIRST, LATER = datetime(2026, 1, 31, 12, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
_PUBLISHED = {"mqtool-exchange": "orders", "mqtool-routing-key": "eu"}


def delivery(headers: dict[str, Any] | None = None, exchange: str = "", key: str = "jobs") -> Delivery:
    return Delivery(b"job", exchange, key, "jobs", redelivered=False, properties={"headers": headers}, delivery_tag=1)


def dead_in(queue: object, **more: Any) -> dict[str, Any]:
    """Return the header that the broker adds to a dead letter."""
    return {"x-death": [{"queue": queue, "reason": "expired", "exchange": "", **more}]}


@pytest.mark.parametrize(
    ("count", "failures"),
    [(None, 0), (0, 0), (1, 1), (4, 4), (-1, 0), (True, 0), ("3", 0), (2.5, 0), (2**31 - 2, 2**31 - 2),
     (2**63, 2**31 - 2)],
)  # fmt: skip
def test_the_number_of_an_attempt_is_the_number_of_failed_attempts_plus_1(count: object, failures: int) -> None:
    """The header mqtool-attempts contains the number of failed attempts to handle a message. The number of the
    current attempt is one higher. A value that is not a positive integer counts as 0, and a huge one is reduced so
    that adding 1 does not overflow.
    """
    failed = delivery(None if count is None else {"mqtool-attempts": count})
    assert history.failures_of(failed) == failures
    assert history.attempt_of(failed) == failures + 1


@pytest.mark.parametrize(
    ("headers", "returns"),
    [
        (None, 0),
        ({"mqtool-redrives": 2}, 2),
        ({"mqtool-reason": "rejected"}, 1),
        ({"mqtool-redrives": 2, "mqtool-reason": "rejected"}, 3),
    ],
    ids=["never", "by redrives", "by move", "by redrives and move"],
)
def test_mqtool_counts_how_often_a_dead_letter_was_moved_back(headers: dict[str, Any] | None, returns: int) -> None:
    """mqtool counts how many times a message was moved back from a dead-letter queue to its own queue, whether by
    `dlq redrive` or by `move`.
    """
    assert history.returns_of(delivery(headers)) == returns


def test_a_redrive_increments_the_redrive_count_of_a_dead_letter() -> None:
    """`dlq redrive` increments the header that counts how many times a dead letter has been moved back to its queue,
    whether the message was dead-lettered by mqtool or by the broker. If the header already has the largest possible
    value, which only a publisher can have set, the count starts again at 0.
    """
    most = 2**31 - 2
    for count, after in ((0, 1), (1, 2), (most - 1, most), (most, 0)):
        by_mqtool = delivery({"mqtool-redrives": count, "mqtool-reason": "rejected"})
        assert history.next_return(by_mqtool) == after
        assert history.next_return(delivery({"mqtool-redrives": count} | dead_in("jobs"))) == after
    assert history.next_return(delivery()) == 1


@pytest.mark.parametrize(
    ("returns", "dead", "is_later"),
    [
        (0, 0, False), (1, 0, True), (0, 1, False), (5, 3, True), (3, 5, False),
        (0, 2**31 - 2, True), (2**31 - 2, 0, False), (1, 2**31 - 2, True),
        (2**30 - 1, 0, True), (2**30, 0, False), (2**30 - 2, 2**31 - 2, True), (2**30 - 1, 2**31 - 2, False),
    ],
)  # fmt: skip
def test_a_larger_redrive_count_shows_that_a_copy_was_moved_back_later(
    returns: int, dead: int, *, is_later: bool
) -> None:
    """If a copy of a dead-lettered message has a larger redrive count than the dead letter, mqtool concludes that the
    copy was moved back from the dead-letter queue later. Because the count restarts at 0 after 2,147,483,646, mqtool
    considers the smaller count to be the later one if the two differ by more than half of this number.
    """
    assert history.is_moved_back_since(returns, dead) is is_later


@pytest.mark.parametrize(
    ("headers", "exchange", "key", "origin"),
    [
        (None, "", "jobs", Origin("", "jobs")),
        (_PUBLISHED, "", "jobs", Origin("orders", "eu")),
        (_PUBLISHED, "logs", "jobs", Origin("logs", "jobs")),
        (_PUBLISHED, "", "other", Origin("", "other")),
        (_PUBLISHED | dead_in("jobs.wait.1s"), "", "jobs", Origin("orders", "eu")),
        (_PUBLISHED | dead_in("jobs.wait.1m30s"), "", "jobs", Origin("orders", "eu")),
        (_PUBLISHED | dead_in("other.wait.1s"), "", "jobs", Origin("", "jobs")),
        (_PUBLISHED | dead_in("jobs.wait.1s", exchange="public"), "", "jobs", Origin("", "jobs")),
        (_PUBLISHED | dead_in("jobs"), "", "jobs", Origin("", "jobs")),
        (_PUBLISHED | dead_in("jobs.wait.1s", count=2) | {"x-death": []}, "", "jobs", Origin("orders", "eu")),
        (_PUBLISHED | {"x-death": "jobs.wait.1s"}, "", "jobs", Origin("orders", "eu")),
        (_PUBLISHED | {"x-death": ["jobs"]}, "", "jobs", Origin("orders", "eu")),
        (_PUBLISHED | {"x-death": b"undecoded"}, "", "jobs", Origin("", "jobs")),
        (_PUBLISHED | {"x-death": [{"reason": "expired"}]}, "", "jobs", Origin("orders", "eu")),
        ({"mqtool-exchange": "orders"}, "", "jobs", Origin("orders", "jobs")),
        ({"mqtool-routing-key": ""}, "", "jobs", Origin("", "")),
        ({"mqtool-exchange": 5, "mqtool-routing-key": "k" * 256}, "", "jobs", Origin("", "jobs")),
        ({"mqtool-exchange": "e" * 255, "mqtool-routing-key": "é" * 128}, "", "jobs", Origin("e" * 255, "jobs")),
        ({"mqtool-exchange": "\udcff"}, "", "jobs", Origin("\udcff", "jobs")),
    ],
    ids=[
        "no headers",
        "headers",
        "other exchange",
        "other routing key",
        "wait queue",
        "wait queue with a longer delay",
        "another queue's wait queue",
        "wait queue to which another exchange leads",
        "dead-lettered by its queue",
        "empty x-death",
        "x-death is text",
        "x-death is a list of text",
        "x-death could not be decoded",
        "x-death without a queue",
        "exchange only",
        "empty routing key",
        "invalid exchange and routing key",
        "routing key of 256 bytes",
        "exchange that is not UTF-8",
    ],
)
def test_origin_headers_are_trusted_only_from_the_default_exchange_or_a_wait_queue_for_retries(
    headers: dict[str, Any] | None, exchange: str, key: str, origin: Origin
) -> None:
    """The headers `mqtool-exchange` and `mqtool-routing-key` name the origin of a message: the exchange and routing key
    with which it was first published. mqtool trusts them in a message that came to its queue directly through the
    default exchange, or from a wait queue for the queue's retries. If a header is missing, invalid or not trusted,
    mqtool uses the exchange or routing key of the delivery.
    """
    assert history.origin_of(delivery(headers, exchange, key)) == origin


@pytest.mark.parametrize(
    ("queue", "exchange", "to", "is_kept"),
    [
        ("jobs", "", "archive", True),
        ("jobs", "logs", "archive", False),
        ("jobs", "jobs.mqtool-convert.into", "archive", False),
        ("jobs.mqtool-convert", "jobs.mqtool-convert.into", "jobs", True),
        ("jobs.mqtool-convert", "jobs.mqtool-convert.into", "jobs.mqtool-convert", True),
        ("jobs.mqtool-convert.meanwhile", "jobs.mqtool-convert.into", "jobs", True),
        ("jobs.mqtool-convert", "", "jobs", True),
        ("jobs.mqtool-convert", "logs", "jobs", False),
        ("jobs.mqtool-convert", "jobs.mqtool-convert.into", "archive", False),
        ("jobs.mqtool-convert", "", "archive", False),
    ],
)
def test_a_moved_message_keeps_the_header_mqtool_convert_only_if_mqtool_trusts_it(
    queue: str, exchange: str, to: str, *, is_kept: bool
) -> None:
    """`queue convert` adds the header mqtool-convert to messages. mqtool trusts this header only in a message that
    came through the default exchange or, in a temporary queue of the conversion, through the conversion's own
    exchange. When mqtool moves a message, it renames a header that it does not trust. It also renames the header if
    the message moves from a temporary queue to a queue that does not belong to the conversion.
    """
    properties = {"headers": {"mqtool-convert": {"exchange": "orders"}}}
    held = Delivery(b"job", exchange, queue, queue, redelivered=False, properties=properties, delivery_tag=1)
    name = "mqtool-convert" if is_kept else "mqtool-claimed"
    assert history.headers_with_origin(held, to) == {name: {"exchange": "orders"}}


@pytest.mark.parametrize(
    ("headers", "exchange", "kept"),
    [
        (None, "", {}),
        ({"x": 1}, "logs", {"x": 1}),
        (_PUBLISHED | {"x": 1}, "", _PUBLISHED | {"x": 1}),
        (_PUBLISHED, "logs", {"mqtool-exchange": "logs", "mqtool-routing-key": "jobs"}),
        ({"mqtool-exchange": "orders"}, "", {"mqtool-exchange": "orders", "mqtool-routing-key": "jobs"}),
        ({"mqtool-routing-key": "eu"}, "", {"mqtool-exchange": "", "mqtool-routing-key": "eu"}),
        (_PUBLISHED | dead_in("other"), "", dead_in("other")),
        (_PUBLISHED | dead_in("jobs.wait.1s"), "", _PUBLISHED | dead_in("jobs.wait.1s")),
    ],
    ids=[
        "no headers",
        "no origin",
        "proven origin",
        "forged origin",
        "exchange only",
        "routing key only",
        "dead-lettered elsewhere",
        "from a wait queue",
    ],
)
def test_a_moved_message_keeps_only_origin_headers_that_mqtool_trusts(
    headers: dict[str, Any] | None, exchange: str, kept: dict[str, Any]
) -> None:
    """Any publisher can set the headers mqtool-exchange and mqtool-routing-key, which name a message's original
    exchange and routing key. mqtool therefore trusts them only in a message that came through the default exchange,
    either directly or from a wait queue for retries. When mqtool moves a message, it replaces untrusted values with the
    exchange and the routing key of the delivery. If the broker dead-lettered the message from any other queue, mqtool
    removes both headers.
    """
    given = dict(headers or {})
    assert history.headers_with_origin(delivery(headers, exchange), "elsewhere") == kept
    assert (headers or {}) == given, "the delivery itself was changed"


def test_a_dead_letter_whose_headers_are_too_large_keeps_the_essential_ones() -> None:
    """If the headers of a dead letter are too large, mqtool removes all of them except the number of attempts, the
    original exchange and routing key, the time of the first failure, and how often the dead letter was moved back from
    a dead-letter queue. mqtool keeps all other properties of the dead letter.
    """
    headers = {"mqtool-attempts": 3, "mqtool-first-failure": FIRST, "large": "x" * 1000, **_PUBLISHED}
    large = delivery(headers)
    large.properties = {**large.properties, "message_id": "m"}
    small = history.without_headers(large)
    assert small.properties == {
        "headers": {"mqtool-attempts": 3, "mqtool-first-failure": FIRST, **_PUBLISHED},
        "message_id": "m",
    }
    assert (small.body, small.queue, small.delivery_tag) == (b"job", "jobs", 1)
    forged = history.without_headers(delivery({"mqtool-first-failure": "yesterday"}, "logs"))
    assert forged.headers == {"mqtool-attempts": 0, "mqtool-exchange": "logs", "mqtool-routing-key": "jobs"}
    for moved_back in ({"mqtool-redrives": 3}, {"mqtool-redrives": 2, "mqtool-reason": "rejected"}):
        assert history.without_headers(delivery(moved_back)).headers["mqtool-redrives"] == 3


@pytest.mark.parametrize(
    ("headers", "death"),
    [
        (None, Death("unknown")),
        ({"mqtool-attempts": 2, "mqtool-queue": "jobs"}, Death("unknown")),
        ({"mqtool-redrives": 2}, Death("unknown", redrives=2)),
        (dead_in("jobs"), Death("expired", Claimed("jobs"))),
        (dead_in("jobs", reason="rejected", count=2), Death("rejected", Claimed("jobs"), 2)),
        (dead_in("jobs", reason="rejected"), Death("rejected", Claimed("jobs"), 1)),
        (dead_in("jobs", reason="rejected", count="2") | {"mqtool-attempts": 4}, Death("rejected", Claimed("jobs"), 4)),
        (dead_in("jobs", count=7), Death("expired", Claimed("jobs"))),
        (dead_in(5), Death("expired")),
        (dead_in("jobs", time=FIRST), Death("expired", Claimed("jobs"), first=FIRST)),
        (dead_in("jobs", time=FIRST.replace(tzinfo=None)), Death("expired", Claimed("jobs"), first=FIRST)),
        (dead_in("jobs", time=1), Death("expired", Claimed("jobs"))),
        ({"x-death": [{}]}, Death("unknown")),
        ({"x-death": ["forged", {"reason": "maxlen", "queue": "q"}]}, Death("maxlen", Claimed("q"))),
        (
            {"x-death": [{"reason": "rejected", "queue": "b", "time": LATER, "count": 3},
                         {"reason": "rejected", "queue": "a", "time": FIRST, "count": 2},
                         {"reason": "expired", "queue": "c", "count": 9}],
             "mqtool-attempts": 10, "mqtool-redrives": 1, "mqtool-reason": "rejected"},
            Death("rejected", Claimed("b"), 15, FIRST, redrives=2),
        ),
        (
            {"mqtool-reason": "retries exhausted", "mqtool-queue": "jobs", "mqtool-attempts": 6,
             "mqtool-first-failure": FIRST, "mqtool-last-error": "exit status 1", "mqtool-redrives": 2},
            Death("retries exhausted", Claimed("jobs"), 6, FIRST, "exit status 1", 2),
        ),
        ({"mqtool-reason": 5, "mqtool-queue": 5, "mqtool-first-failure": 5, "mqtool-last-error": 5},
         Death("5", error="5")),
        ({"mqtool-reason": "rejected", "mqtool-last-error": ""}, Death("rejected")),
        ({"mqtool-reason": "rejected", "x-death": "forged"}, Death("rejected")),
    ],
    ids=[
        "no headers", "retried", "redriven", "expired", "rejected twice", "rejected once", "count is text",
        "expired seven times", "queue is a number", "time", "time without a zone", "time is a number",
        "empty entry", "forged entry", "several entries", "by mqtool", "numbers instead of text",
        "empty error", "x-death is text",
    ],
)  # fmt: skip
def test_why_a_message_was_dead_lettered_is_read_from_x_death_or_else_from_mqtools_headers(
    headers: dict[str, Any] | None, death: Death
) -> None:
    """mqtool reads why and where a message was dead-lettered from the newest entry of x-death or, if there is none,
    from the headers that mqtool added. The number of attempts is the number in mqtool-attempts plus the rejections in
    x-death. A header of the wrong type is ignored.
    """
    assert history.death_of(delivery(headers)) == death


def test_the_first_failure_is_the_earliest_in_any_time_zone() -> None:
    """The time of a dead letter's first failure is the earliest time in its x-death header, even if the times are in
    different time zones.
    """
    east = datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=2)))
    times = {"x-death": [{"time": FIRST}, {"time": east}, {"time": LATER.replace(tzinfo=None)}]}
    assert history.death_of(delivery(times)).first == east
