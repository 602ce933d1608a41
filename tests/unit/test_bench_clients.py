"""The processes of `bench`: what a publisher sends at which time, and what publishers and consumers measure.

Times are given to them here, so a broker or a machine that is slow for a moment cannot change the figures.
"""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from mqtool.amqp import TlsFiles
from mqtool.benching.client_process import SECOND, Orders
from mqtool.benching.clients import BenchConsumer, BenchPublisher
from mqtool.benching.plan import STAMP, BenchPlan, Job
from mqtool.benching.wire import Take, Wire, ignore
from mqtool.message import Delivery, Message

MS = SECOND // 1000
START = 50 * SECOND


class Recorded(Wire):
    """A connection that keeps what it is asked to do."""

    def __init__(self) -> None:
        self.now = START
        self.credit = sys.maxsize
        self.on_confirm = self.on_nack = ignore
        self.waiting_bytes = 0
        self.published: list[tuple[int, Message, int, int, int]] = []
        self.publishing: tuple[str, str, bool] | None = None
        self.consuming: dict[str, Any] = {}
        self.acknowledged: list[tuple[int, bool]] = []
        self.templates: list[tuple[Message, int, bool]] = []
        self.is_closed = False
        self.take: Take = ignore

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:  # noqa: ARG002
        self.watched = descriptor

    def wait(self, seconds: float) -> None:
        pass

    @property
    def unsent(self) -> int:
        return self.waiting_bytes

    def close(self) -> None:
        self.is_closed = True

    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:
        self.publishing = exchange, routing_key, confirms

    def template(self, message: Message, stamp: int, *, persistent: bool) -> Message:
        self.templates.append((message, stamp, persistent))
        return message

    def publish(self, messages: Iterable[tuple[int, Message, bytes]]) -> None:
        self.published += [(tag, template, *STAMP.unpack(stamp)) for tag, template, stamp in messages]

    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:
        self.take = take
        self.consuming = {"queue": queue, "prefetch": prefetch, "auto": auto, "offset": offset}

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        self.acknowledged += tags

    def offset_of(self, delivery: Delivery) -> int:
        return delivery.delivery_tag + 1000

    @property
    def numbers(self) -> list[int]:
        return [number for _, _, _, number, _ in self.published]

    @property
    def due(self) -> list[int]:
        """When each published message was due, in milliseconds after the start."""
        return [(intended - START) // MS for *_, intended in self.published]


@pytest.fixture(autouse=True)
def _own_connection_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTOOL_CONNECTION_NAME", "unchanged")  # the processes set it, so it is set back


def job(role: str, number: int = 0, **settings: Any) -> Job:
    return Job(role, number, BenchPlan(**settings), [], [], TlsFiles(), "logs", "key", "q")


def publisher(number: int = 0, **settings: Any) -> tuple[BenchPublisher, Recorded]:
    client, wire = BenchPublisher(job("publisher", number, **settings), Orders()), Recorded()
    client.open(wire)
    client.start = client.last_event = START
    client.measured_from = START + round(client.plan.warm_up * SECOND)
    return client, wire


def consumer(**settings: Any) -> tuple[BenchConsumer, Recorded]:
    client, wire = BenchConsumer(job("consumer", **settings), Orders()), Recorded()
    client.open(wire)
    client.start = client.last_event = START
    client.measured_from = START + round(client.plan.warm_up * SECOND)
    return client, wire


def delivery(tag: int, number: int, due: int, *, publisher: int = 0, redelivered: bool = False) -> Delivery:
    body = STAMP.pack(publisher, number, due)
    return Delivery(body, "", "q", "q", redelivered=redelivered, properties={}, delivery_tag=tag)


def test_with_a_rate_each_message_carries_the_time_at_which_it_was_due() -> None:
    """A publisher that was held up sends all due messages at once, each with the time at which it should have been
    sent, not the time at which it is sent.
    """
    client, wire = publisher(rate=1000)
    assert client.work(wire, START + 5 * MS) == START + 6 * MS
    assert (wire.numbers, wire.due) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    assert client.work(wire, START + 20 * MS) == START + 21 * MS
    assert wire.due == [*range(21)]
    assert client.work(wire, START + 20 * MS) == START + 21 * MS
    assert len(wire.published) == 21
    wire.now = START + 30 * MS
    wire.on_confirm([1, 11])
    assert [(round(at / 1000), count) for at, count in client.latencies.pairs()] == [(20, 1), (30, 1)]


def test_several_publishers_take_turns() -> None:
    """At 1,000 messages per second, the second of two publishers sends every second message, in the middle between two
    of the first one's.
    """
    first, wire = publisher(rate=1000, publishers=2)
    first.work(wire, START + 7 * MS)
    assert wire.due == [0, 2, 4, 6]
    second, wire = publisher(1, rate=1000, publishers=2)
    assert second.work(wire, START) == START + 1 * MS
    second.work(wire, START + 7 * MS)
    assert wire.due == [1, 3, 5, 7]
    assert {number for _, _, number, _, _ in wire.published} == {1}


def test_a_publisher_waits_for_the_start() -> None:
    """Before the start of the run, no message is published."""
    client, wire = publisher()
    assert client.work(wire, START - 1) == START
    assert wire.published == []


def test_without_a_rate_messages_are_due_when_they_are_sent() -> None:
    """Without a rate, a publisher fills its window at once, and continues when confirms arrive."""
    client, wire = publisher(in_flight=3)
    assert client.work(wire, START + 9 * MS) == START + 9 * MS
    assert (wire.numbers, wire.due) == ([0, 1, 2], [9, 9, 9])
    assert [tag for tag, *_ in wire.published] == [1, 2, 3]
    assert client.work(wire, START + 10 * MS) > START + 10 * MS
    assert len(wire.published) == 3
    wire.on_confirm([1, 2])
    client.work(wire, START + 11 * MS)
    assert wire.due == [9, 9, 9, 11, 11]


@pytest.mark.parametrize(
    ("in_flight", "credit", "unsent", "sent"),
    [(1000, sys.maxsize, 0, 256), (1000, 7, 0, 7), (5, 7, 0, 5), (1000, 0, 0, 0), (5, 7, 1 << 18, 0), (5, 7, 1, 5)],
)
def test_a_publisher_sends_no_more_than_all_limits_allow(in_flight: int, credit: int, unsent: int, sent: int) -> None:
    """The smallest of window, credit and batch limits a write; while the socket holds 256 KiB, nothing is written."""
    client, wire = publisher(in_flight=in_flight)
    wire.credit, wire.waiting_bytes = credit, unsent
    client.work(wire, START)
    assert len(wire.published) == sent


def test_a_publisher_is_done_when_its_share_is_confirmed() -> None:
    """With `--messages 3`, three messages are sent, and the publisher is done once each has been confirmed."""
    client, wire = publisher(messages=3, duration=None)
    client.work(wire, START)
    client.work(wire, START)
    assert wire.numbers == [0, 1, 2]
    wire.on_confirm([1, 2])
    assert not client.is_done(START)
    wire.on_confirm([3])
    assert client.is_done(START)


@pytest.mark.parametrize(("rate", "over_after"), [(None, 1000), (10.0, 3000)])
def test_a_publisher_stops_after_the_duration(rate: float | None, over_after: int) -> None:
    """After `--duration`, nothing is sent; with a rate, messages that were due before are still sent for 2 s."""
    client, wire = publisher(duration=1.0, rate=rate, in_flight=1)
    client.work(wire, START)
    wire.on_confirm([1])
    assert not client.is_done(START + over_after * MS - 1)
    assert client.is_done(START + over_after * MS)
    client.work(wire, START + over_after * MS)
    assert len(wire.published) == 1


def test_a_run_without_an_end_never_ends_by_itself() -> None:
    """Without a duration and before the last message, a publisher is not done, however late it is."""
    client, _ = publisher(messages=3, duration=None)
    assert not client.is_done(START + 10**6 * SECOND)


def test_a_publisher_reports_what_became_of_its_messages() -> None:
    """A report has the numbers of confirmed messages since the last one, and counts of all, of refused and measured
    messages; confirms of unknown messages are ignored.
    """
    client, wire = publisher(rate=1000, warm_up=0.003)
    client.work(wire, START + 9 * MS)
    wire.now = START + 12 * MS
    wire.on_confirm([1, 2, 3, 5, 99])
    wire.on_nack([4, 98])
    wire.on_confirm([6])
    report = client.report()
    assert report.pop("sent_at") > 0
    assert report == {
        "published": 10,
        "confirmed": [[0, 3], [4, 2]],
        "nacked": 1,
        "sent": 7,  # after the warm-up
        "measured": 2,
        "measured_at": START + 12 * MS,
    }
    assert client.latencies.count == 2
    wire.on_confirm([5, 7])  # the first of them again
    assert (client.report()["confirmed"], client.measured) == ([[6, 1]], 3)


def test_after_a_reconnection_tags_begin_again_and_numbers_go_on() -> None:
    """A new connection counts its tags from 1, and the messages keep their numbers. What was in flight may or may not
    have arrived, and is not waited for.
    """
    client, wire = publisher(in_flight=2)
    client.work(wire, START)
    client.lost()
    again = Recorded()
    client.open(again)
    client.work(again, START)
    assert [(tag, number) for tag, _, _, number, _ in again.published] == [(1, 2), (2, 3)]
    again.on_confirm([1])
    assert client.report()["confirmed"] == [[2, 1]]


def test_a_publishers_messages_have_the_settings_of_the_plan() -> None:
    """Exchange, key, confirms, body, expiration and persistence are those of the plan; room for the stamp is kept."""
    _, wire = publisher(ttl=1.5, persistent=False, sizes=(30, 30))
    ((message, stamp, persistent),) = wire.templates
    assert wire.publishing == ("logs", "key", True)
    assert (message.body, message.properties, stamp, persistent) == (
        bytes(30),
        {"expiration": "1500"},
        STAMP.size,
        False,
    )
    _, wire = publisher()
    ((message, _, persistent),) = wire.templates
    assert (message.properties, persistent) == ({}, True)


def test_the_bodies_of_the_plan_take_turns(tmp_path: Any) -> None:
    """With `--bodies`, the lines of the file are sent one after another, and again from the first."""
    file = tmp_path / "bodies"
    file.write_bytes(b"a" * 20 + b"\n" + b"b" * 20)
    client, wire = publisher(bodies=file, in_flight=3)
    client.work(wire, START)
    assert [message.body[:1] for _, message, *_ in wire.published] == [b"a", b"b", b"a"]


def test_requests_are_measured_up_to_their_replies() -> None:
    """With `--rpc`, messages ask for a reply instead of a confirm, and the reply ends the measurement."""
    client, wire = publisher(rpc=True, in_flight=2)
    assert wire.publishing == ("logs", "key", False)
    assert wire.consuming == {"queue": "amq.rabbitmq.reply-to", "prefetch": 0, "auto": True, "offset": None}
    assert wire.templates[0][0].properties == {"reply_to": "amq.rabbitmq.reply-to"}
    client.work(wire, START)
    wire.now = START + 4 * MS
    wire.take([delivery(1, 1, START)])
    assert (client.report()["confirmed"], client.measured) == ([[1, 1]], 1)
    assert [round(at / 1000) for at, _ in client.latencies.pairs()] == [4]


def test_delayed_messages_are_due_after_their_delay() -> None:
    """With `--delay`, the consumer measures from the time at which the delay is over."""
    client, wire = publisher(rate=1000, delay=0.25)
    client.work(wire, START)
    assert wire.due == [250]


def test_a_consumer_measures_from_the_time_at_which_a_message_was_due() -> None:
    """Latencies are counted from the due time, and only after the warm-up; each message is counted by its number."""
    client, wire = consumer(warm_up=0.01)
    wire.now = START + 20 * MS
    wire.take([delivery(1, 0, START), delivery(2, 1, START + 9 * MS), delivery(3, 2, START + 10 * MS)])
    wire.now = START + 25 * MS
    wire.take([delivery(4, 3, START + 11 * MS, redelivered=True), delivery(5, 0, START + 12 * MS, publisher=1)])
    assert [round(at / 1000) for at, _ in client.latencies.pairs()] == [10, 13, 14]
    assert client.report() == {
        "received": 5,
        "runs": [(0, [[0, 3, False], [3, 1, True]]), (1, [[0, 1, False]])],
        "measured": 3,
        "measured_at": START + 25 * MS,
    }
    assert client.report()["runs"] == []
    assert not client.is_done(START + 10**6 * SECOND)


def test_a_consumer_of_delayed_messages_leaves_out_those_of_the_warm_up() -> None:
    """With `--delay`, a message that was published during the warm-up is not measured when it arrives after it."""
    client, wire = consumer(warm_up=0.01, delay=1.0)
    wire.now = START + 1020 * MS
    wire.take([delivery(1, 0, START + 1009 * MS), delivery(2, 1, START + 1010 * MS)])
    assert client.measured == 1


@pytest.mark.parametrize(
    ("acknowledge", "at_once", "in_the_end"),
    [
        (1, [(1, False), (2, False), (3, False)], [(1, False), (2, False), (3, False)]),
        (2, [(2, True)], [(2, True), (3, True)]),
        (3, [(3, True)], [(3, True)]),
        (10, [], [(3, True)]),
        (0, [], []),
    ],
)
def test_a_consumer_acknowledges_as_often_as_it_is_told(
    acknowledge: int, at_once: list[tuple[int, bool]], in_the_end: list[tuple[int, bool]]
) -> None:
    """`--ack 1` acknowledges each message, `--ack N` every N of them together; the rest are acknowledged at the end."""
    client, wire = consumer(acknowledge=acknowledge)
    assert wire.consuming == {"queue": "q", "prefetch": 1000, "auto": acknowledge == 0, "offset": None}
    for batch in ([1, 2], [3]):
        wire.take([delivery(tag, tag - 1, START) for tag in batch])
    assert wire.acknowledged == at_once
    client.leave(wire)
    assert (wire.acknowledged, wire.is_closed) == (in_the_end, True)


def test_a_consumers_report_acknowledges_what_it_counts() -> None:
    """Messages that are reported as received are acknowledged, so at the end of the run none is left in the queue."""
    client, wire = consumer(acknowledge=10)
    wire.take([delivery(1, 0, START), delivery(2, 1, START)])
    assert client.report()["received"] == 2
    assert wire.acknowledged == [(2, True)]
    client.report()
    assert wire.acknowledged == [(2, True)]


def test_after_a_reconnection_a_consumer_acknowledges_only_what_is_new() -> None:
    """Messages of a lost connection cannot be acknowledged on the next one."""
    client, wire = consumer(acknowledge=10)
    wire.take([delivery(1, 0, START)])
    again = Recorded()
    client.open(again)
    client.leave(again)
    assert again.acknowledged == []


def test_a_consumer_of_a_stream_continues_after_the_last_message() -> None:
    """A stream is read from its first message, and after a reconnection from the one after the last that arrived."""
    client, wire = consumer(queue_type="stream")
    assert wire.consuming["offset"] == 0
    wire.take([delivery(1, 0, START), delivery(2, 1, START)])
    again = Recorded()
    client.open(again)
    assert again.consuming["offset"] == 1003


def test_the_connections_of_a_run_have_names() -> None:
    """The broker's list shows each connection of a run with its role and its number, from 1."""
    BenchPublisher(replace(job("publisher"), number=2), Orders())
    assert os.environ["MQTOOL_CONNECTION_NAME"] == "mqtool bench publisher 3"


def test_the_longest_gap_between_two_confirms_is_kept() -> None:
    """The longest time without a confirm is reported with its beginning."""
    client, wire = publisher(rate=1000)
    client.work(wire, START + 3 * MS)
    for at, tag in ((2, 1), (9, 2), (12, 3)):
        wire.now = START + at * MS
        wire.on_confirm([tag])
    assert client._gap == (7 * MS, START + 2 * MS)
