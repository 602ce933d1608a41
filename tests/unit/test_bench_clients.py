"""The processes of `bench`: when a publisher sends what, and what publishers and consumers measure.

The tests set the times themselves, so a broker or a machine that is slow for a moment cannot change the figures.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from mqtool.amqp import TlsFiles
from mqtool.benching import clients
from mqtool.benching.client_process import SECOND, BenchClient, CommandEnded, Orders
from mqtool.benching.clients import BenchConsumer, BenchPublisher, Churner
from mqtool.benching.plan import STAMP, BenchPlan, Job
from mqtool.benching.wire import AmqpWire, Take, Wire, ignore
from mqtool.errors import MqtoolError, Unavailable
from mqtool.message import Delivery, Message

MS = SECOND // 1000
START = 50 * SECOND
SECRET = "runs-own"


class Recorded(Wire):
    """A connection that records what it is asked to do."""

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
        for tag, template, stamp in messages:
            secret, publisher, number, due = STAMP.unpack(stamp)
            assert secret == SECRET.encode()
            self.published.append((tag, template, publisher, number, due))

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


class Clock:
    """A monotonic clock that advances only when a test or a request advances it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


class Asked(Recorded, AmqpWire):
    """An AMQP 0-9-1 connection that takes 3 ms for each request."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.requests: list[tuple[str, str]] = []
        self.replies: list[Message] = []

    def __getattr__(self, method: str) -> Callable[..., None]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *names, **named: self.requests.append((method, str(names[0] if names else named["queue"])))

    def ask(self, request: Any) -> None:
        request(self, lambda *_: None)
        self.clock.now += 3 * MS

    def open_and_close_channel(self, opened: Callable[[], None]) -> None:
        self.clock.now += 3 * MS
        opened()
        self.clock.now += 3 * MS

    def close(self) -> None:
        self.clock.now += 3 * MS

    def reply(self, messages: list[Message]) -> None:
        self.replies += messages


@pytest.fixture(autouse=True)
def _own_connection_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQTOOL_CONNECTION_NAME", "unchanged")  # so that the value which the processes set is restored


def job(role: str, number: int = 0, **settings: Any) -> Job:
    return Job(role, number, BenchPlan(**settings), [], [], TlsFiles(), "logs", "key", "q", SECRET)


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


def delivery(
    tag: int, number: int, due: int, *, publisher: int = 0, redelivered: bool = False, secret: str = SECRET
) -> Delivery:
    body = STAMP.pack(secret.encode(), publisher, number, due)
    return Delivery(body, "", "q", "q", redelivered=redelivered, properties={}, delivery_tag=tag)


def test_with_a_rate_each_message_carries_the_time_at_which_it_was_due() -> None:
    """If a `bench` publisher with `--rate` is delayed, it sends all overdue messages as soon as it can. Each message
    contains the time at which it was due, not the time at which it is sent.
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


def test_bench_publishers_that_share_a_rate_take_turns() -> None:
    """Two `bench` publishers that share a rate of 1,000 messages per second send in turn, 1 ms apart."""
    first, wire = publisher(rate=1000, publishers=2)
    first.work(wire, START + 7 * MS)
    assert wire.due == [0, 2, 4, 6]
    second, wire = publisher(1, rate=1000, publishers=2)
    assert second.work(wire, START) == START + 1 * MS
    second.work(wire, START + 7 * MS)
    assert wire.due == [1, 3, 5, 7]
    assert {number for _, _, number, _, _ in wire.published} == {1}


def test_a_bench_publisher_waits_for_the_start_of_the_run() -> None:
    """A `bench` publisher sends no message before the start of the run."""
    client, wire = publisher()
    assert client.work(wire, START - 1) == START
    assert wire.published == []


def test_without_a_rate_messages_are_due_when_they_are_sent() -> None:
    """Without `--rate`, a `bench` publisher has no schedule: it sends messages until the limit of unconfirmed
    messages is reached, and then one more for each confirm. A message counts as due at the time at which it is sent.
    The message contains this time, and `bench` measures its latency from this time.
    """
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
def test_a_bench_publisher_exceeds_none_of_its_limits(in_flight: int, credit: int, unsent: int, sent: int) -> None:
    """A `bench` publisher sends at most 256 messages at a time. It exceeds neither the credit that the broker has
    granted nor its limit of unconfirmed messages. While 256 KiB are waiting in its send buffer, it sends no messages.
    """
    client, wire = publisher(in_flight=in_flight)
    wire.credit, wire.waiting_bytes = credit, unsent
    client.work(wire, START)
    assert len(wire.published) == sent


def test_a_bench_publisher_is_done_when_its_messages_are_confirmed() -> None:
    """With `--count 3`, a `bench` publisher sends three messages, and is done once all three have been confirmed."""
    client, wire = publisher(messages=3, duration=None)
    client.work(wire, START)
    client.work(wire, START)
    assert wire.numbers == [0, 1, 2]
    wire.on_confirm([1, 2])
    assert not client.is_done(START)
    wire.on_confirm([3])
    assert client.is_done(START)


@pytest.mark.parametrize(("rate", "over_after"), [(None, 1000), (10.0, 3000)])
def test_a_bench_publisher_stops_after_the_duration(rate: float | None, over_after: int) -> None:
    """Without `--rate`, a `bench` publisher sends no more messages once `--duration` is over. With `--rate`, it has 2
    s more to send messages that were already due.
    """
    client, wire = publisher(duration=1.0, rate=rate, in_flight=1)
    client.work(wire, START)
    wire.on_confirm([1])
    assert not client.is_done(START + over_after * MS - 1)
    assert client.is_done(START + over_after * MS)
    client.work(wire, START + over_after * MS)
    assert len(wire.published) == 1


def test_a_bench_publisher_without_a_duration_sends_all_of_its_messages() -> None:
    """Without `--duration`, a `bench` publisher is not done before it has sent all of its messages, however long it has
    run.
    """
    client, _ = publisher(messages=3, duration=None)
    assert not client.is_done(START + 10**6 * SECOND)


def test_a_bench_publisher_reports_confirmed_and_nacked_messages() -> None:
    """Each time a `bench` publisher reports to `bench`, it lists the messages that were confirmed since its previous
    report. It also reports how many messages have been published and nacked so far, and for how many the latency was
    measured. Confirms with unknown delivery tags are ignored.
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
    wire.on_confirm([5, 7])  # 5 for the second time
    assert (client.report()["confirmed"], client.measured) == ([[6, 1]], 3)


def test_after_a_reconnection_delivery_tags_restart_and_message_numbers_continue() -> None:
    """After a reconnection, the delivery tags of a `bench` publisher start at 1 again, and its message numbers
    continue. The publisher does not wait for confirms of messages that were in flight on the lost connection.
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


def test_the_messages_of_a_bench_publisher_follow_its_options() -> None:
    """The messages of a `bench` publisher have the destination, size, expiration and persistence that its options
    set.
    """
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


def test_bench_sends_the_lines_of_a_file_of_bodies_in_turn(tmp_path: Any) -> None:
    """With `--bodies`, a `bench` publisher sends the lines of the file one after another, and begins again with the
    first line after the last.
    """
    file = tmp_path / "bodies"
    file.write_bytes(b"a" * 20 + b"\n" + b"b" * 20)
    client, wire = publisher(bodies=file, in_flight=3)
    client.work(wire, START)
    assert [message.body[:1] for _, message, *_ in wire.published] == [b"a", b"b", b"a"]


def test_bench_measures_requests_up_to_their_replies() -> None:
    """With `--rpc`, a `bench` publisher sends requests and waits for replies instead of confirms. The latency of a
    request is the time from when it was due until its reply arrives.
    """
    client, wire = publisher(rpc=True, in_flight=2)
    assert wire.publishing == ("logs", "key", False)
    assert wire.consuming == {"queue": "amq.rabbitmq.reply-to", "prefetch": 0, "auto": True, "offset": None}
    assert wire.templates[0][0].properties == {"reply_to": "amq.rabbitmq.reply-to"}
    client.work(wire, START)
    wire.now = START + 4 * MS
    wire.take([delivery(1, 1, START)])
    assert (client.report()["confirmed"], client.measured) == ([[1, 1]], 1)
    assert [round(at / 1000) for at, _ in client.latencies.pairs()] == [4]


def test_bench_messages_are_due_after_their_delay() -> None:
    """With `--delay`, a message that `bench` publishes is due at the end of its delay, so its latency does not include
    the delay.
    """
    client, wire = publisher(rate=1000, delay=0.25)
    client.work(wire, START)
    assert wire.due == [250]


def test_a_bench_consumer_measures_from_the_time_at_which_a_message_was_due() -> None:
    """A `bench` consumer measures each latency from the time at which the message was due, and does not measure
    messages that were due during the warm-up. It reports the sequence numbers of all messages that it received,
    measured or not.
    """
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


def test_a_bench_consumer_does_not_measure_delayed_messages_from_the_warm_up() -> None:
    """With `--delay`, a `bench` consumer does not measure a message that was published during the warm-up, even if
    the message arrives after the warm-up.
    """
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
    ids=["each", "every 2", "every 3", "every 10", "automatic"],
)
def test_the_option_ack_sets_how_many_messages_a_bench_consumer_acknowledges_together(
    acknowledge: int, at_once: list[tuple[int, bool]], in_the_end: list[tuple[int, bool]]
) -> None:
    """With `--ack N`, a `bench` consumer acknowledges N messages at a time, and the rest at the end of the run. With
    `--ack auto`, it uses automatic acknowledgement.
    """
    client, wire = consumer(acknowledge=acknowledge)
    assert wire.consuming == {"queue": "q", "prefetch": 1000, "auto": acknowledge == 0, "offset": None}
    for batch in ([1, 2], [3]):
        wire.take([delivery(tag, tag - 1, START) for tag in batch])
    assert wire.acknowledged == at_once
    client.leave(wire)
    assert (wire.acknowledged, wire.is_closed) == (in_the_end, True)


def test_a_bench_consumer_acknowledges_the_messages_that_it_reports() -> None:
    """When a `bench` consumer with `--ack N` reports how many messages it has received, it acknowledges all of them,
    even if they are fewer than N. At the end of the run, no received message is therefore left in the queue.
    """
    client, wire = consumer(acknowledge=10)
    wire.take([delivery(1, 0, START), delivery(2, 1, START)])
    assert client.report()["received"] == 2
    assert wire.acknowledged == [(2, True)]
    client.report()
    assert wire.acknowledged == [(2, True)]


def test_after_a_reconnection_a_bench_consumer_acknowledges_only_new_deliveries() -> None:
    """After a reconnection, a `bench` consumer does not acknowledge messages that it received on the lost
    connection.
    """
    client, wire = consumer(acknowledge=10)
    wire.take([delivery(1, 0, START)])
    again = Recorded()
    client.open(again)
    client.leave(again)
    assert again.acknowledged == []


def test_a_bench_consumer_of_a_stream_resumes_after_the_last_message_that_it_received() -> None:
    """A `bench` consumer reads a stream from its first message. After a reconnection, it resumes after the last message
    that it received.
    """
    client, wire = consumer(queue_type="stream")
    assert wire.consuming["offset"] == 0
    wire.take([delivery(1, 0, START), delivery(2, 1, START)])
    again = Recorded()
    client.open(again)
    assert again.consuming["offset"] == 1003


def test_the_connections_of_a_bench_run_have_names() -> None:
    """Each connection of a `bench` run has a name, which the broker shows. The name contains the client's role and
    number. The numbers start at 1.
    """
    BenchPublisher(replace(job("publisher"), number=2), Orders())
    assert os.environ["MQTOOL_CONNECTION_NAME"] == "mqtool bench publisher 3"


def test_bench_records_the_longest_time_between_two_confirms() -> None:
    """A `bench` publisher records the longest time between two successive confirms, and the moment at which this time
    began.
    """
    client, wire = publisher(rate=1000)
    client.work(wire, START + 3 * MS)
    for at, tag in ((2, 1), (9, 2), (12, 3)):
        wire.now = START + at * MS
        wire.on_confirm([tag])
    assert client._gap == (7 * MS, START + 2 * MS)


def test_a_bench_publisher_stops_after_the_given_number_of_messages_and_counts_nacks() -> None:
    """A `bench` publisher sends no more messages than `--count` allows. It counts every message that the broker
    nacks, whether the nack arrives before or after the last message was sent.
    """
    client, wire = publisher(rate=1000, messages=5, duration=None)
    client.work(wire, START + 2 * MS)
    wire.on_nack([1])
    client.work(wire, START + 9 * MS)
    client.work(wire, START + 9 * MS)
    wire.on_nack([2, 3])
    report = client.report()
    assert (report["published"], report["sent"], report["nacked"]) == (5, 5, 3)


def test_a_bench_publisher_with_a_rate_does_not_exceed_its_limit_of_unconfirmed_messages() -> None:
    """Even if more messages are due, a `bench` publisher with `--rate` sends no more than its limit of unconfirmed
    messages allows.
    """
    client, wire = publisher(rate=1000, in_flight=3)
    client.work(wire, START + 9 * MS)
    assert wire.numbers == [0, 1, 2]


def test_a_bench_process_with_nothing_to_do_sleeps() -> None:
    """A `bench` process with nothing to do sleeps for 1 s at a time. This applies to a consumer that waits for
    messages, a publisher that waits for confirms, and a publisher whose run is over.
    """
    client, wire = publisher(duration=1.0, in_flight=1)
    client.work(wire, START)
    assert client.work(wire, START + 5) == START + 5 + SECOND
    assert client.work(wire, START + SECOND) == START + 2 * SECOND
    waiting, wire = consumer()
    assert waiting.work(wire, START) == START + SECOND


def test_a_bench_consumer_with_rpc_replies_to_each_request() -> None:
    """With `--rpc`, a `bench` consumer replies to each request by sending the request's body back to the queue in
    reply_to.
    """
    wire = Asked(Clock())
    client = BenchConsumer(job("consumer", rpc=True), Orders())
    client.open(wire)
    body = STAMP.pack(SECRET.encode(), 0, 7, START)
    request = Delivery(body, "", "q", "q", redelivered=False, properties={"reply_to": "answers"}, delivery_tag=1)
    wire.take([request])
    (reply,) = wire.replies
    assert (reply.body, reply.routing_key, reply.properties) == (request.body, "answers", {})


def test_a_bench_consumer_acknowledges_and_counts_messages_from_outside_its_run() -> None:
    """With `--rpc`, a `bench` consumer sends no reply to a message that does not belong to its run, whatever the
    message contains. It acknowledges such messages and counts them separately, but includes them in no other figure.
    """
    wire = Asked(Clock())
    client = BenchConsumer(job("consumer", rpc=True), Orders())
    client.open(wire)
    client.last_event = START
    forged = [delivery(1, 0, START, secret="mallorys"), delivery(2, 2**64 - 1, 0, publisher=65535, secret="12345678")]
    for tag, body in ((3, b""), (4, b"short")):
        forged.append(replace(delivery(tag, 0, 0), body=body, properties={"reply_to": "answers"}))
    wire.take(forged)
    assert wire.acknowledged == [(1, False), (2, False), (3, False), (4, False)]
    assert (wire.replies, client.report(), client._gap, client._others) == (
        [],
        {"received": 0, "runs": [], "measured": 0, "measured_at": START},
        (0, 0),
        4,
    )
    own = replace(delivery(6, 0, START), properties={"reply_to": "answers"})
    wire.take([delivery(5, 1, START, secret="mallorys"), own])
    assert [reply.body for reply in wire.replies] == [own.body]
    assert (client.report()["runs"], client._others) == ([(0, [[0, 1, False]])], 5)


def test_a_bench_publisher_counts_replies_from_outside_its_run() -> None:
    """If a `bench` publisher with `--rpc` receives replies that do not belong to its run, it counts them separately,
    and continues to wait for the replies to its own requests.
    """
    client, wire = publisher(rpc=True, in_flight=2)
    client.work(wire, START)
    wire.take([delivery(1, 0, START, secret="mallorys"), replace(delivery(2, 1, START), body=b"short")])
    assert (client.report()["confirmed"], client._gap, client._others) == ([], (0, 0), 2)


def test_a_bench_consumer_whose_connection_is_lost_ends_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a `bench` consumer cannot send its last acknowledgements at the end of a run because the connection is lost,
    it ends without an error.
    """

    def lost(tags: object) -> None:
        raise ConnectionError

    client, wire = consumer(acknowledge=10)
    wire.take([delivery(1, 0, START)])
    monkeypatch.setattr(wire, "acknowledge", lost)
    client.leave(wire)
    assert wire.is_closed


def test_each_received_message_is_in_exactly_one_report() -> None:
    """During a run, a `bench` consumer repeatedly reports to `bench` which messages it has received. Each message is in
    exactly one of these reports.
    """
    client, wire = consumer()
    wire.take([delivery(1, 0, START)])
    client.report()
    wire.take([delivery(2, 1, START)])
    assert client.report()["runs"] == [(0, [[1, 1, False]])]


@pytest.mark.parametrize(
    ("churn", "requests"),
    [
        ("queues", [("queue_declare", "q-3"), ("queue_delete", "q-3")]),
        ("bindings", [("queue_bind", "q-3"), ("queue_unbind", "q-3")]),
        ("channels", []),
        ("connections", []),
    ],
    ids=["queues", "bindings", "channels", "connections"],
)
def test_churn_measures_each_creation_and_each_removal(
    churn: str, requests: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--churn`, `bench` creates and removes connections, channels, queues or bindings. With `--rate`, it
    measures how long each creation takes from the moment at which the creation was due. It also measures how long
    each removal takes.
    """
    clock = Clock()
    monkeypatch.setattr("time.monotonic_ns", clock)
    client, wire = (
        Churner(job("publisher", 3, churn=churn, rate=100, publishers=4, warm_up=0.02), Orders()),
        Asked(clock),
    )

    def connected() -> Wire:
        clock.now += 3 * MS
        return Asked(clock)

    monkeypatch.setattr(client, "connected", connected)
    client.open(wire)
    assert wire.requests == [("queue_declare", "q-3")] * (churn == "bindings")
    wire.requests.clear()
    client.start = client.last_event = START
    client.measured_from = START + 20 * MS
    assert client.work(wire, START) == START + 30 * MS  # when the fourth publisher is due
    clock.now = START + 31 * MS
    assert client.work(wire, clock.now) == START + 70 * MS
    assert wire.requests == requests
    assert client.report() == {
        "published": 1,
        "confirmed": [[0, 1]],
        "nacked": 0,
        "sent": 1,
        "sent_at": START + 31 * MS,
        "measured": 1,
        "measured_at": START + 34 * MS,
        "removed": [(3001, 1)],
    }
    assert [(at, count) for at, count in client.latencies.pairs()] == [(4001, 1)]
    assert not client.is_done(START)
    assert client.is_done(START + 12 * SECOND)


def test_churn_without_a_rate_continues_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--churn` and without `--rate`, `bench` creates and removes objects, such as channels, one after another
    without a pause. It measures nothing during the warm-up.
    """
    clock = Clock()
    monkeypatch.setattr("time.monotonic_ns", clock)
    client, wire = Churner(job("publisher", churn="channels", warm_up=0.008), Orders()), Asked(clock)
    client.open(wire)
    client.start, client.measured_from = START, START + 8 * MS
    assert client.work(wire, START - 1) == START
    for _ in range(3):
        assert client.work(wire, clock.now) <= clock.now
    report = client.report()
    assert (report["confirmed"], report["published"], report["measured"]) == ([[0, 1], [1, 1], [2, 1]], 3, 1)
    assert sum(count for _, count in report["removed"]) == 2


@pytest.mark.parametrize(
    ("role", "settings", "kind"),
    [
        ("publisher", {}, BenchPublisher),
        ("publisher", {"churn": "queues"}, Churner),
        ("consumer", {}, BenchConsumer),
        ("consumer", {"churn": "queues"}, BenchConsumer),
    ],
    ids=["publisher", "publisher with churn", "consumer", "consumer with churn"],
)
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, []),
        (Unavailable("no broker", "start one"), [{"failed": "no broker", "hint": "start one", "exit_code": 69}]),
        (ConnectionError("gone"), [{"failed": "gone", "hint": None, "exit_code": 69}]),
    ],
    ids=["no error", "mqtool error", "connection error"],
)
def test_a_bench_process_runs_its_client_or_reports_the_error(
    role: str,
    settings: dict[str, Any],
    kind: type[BenchClient],
    error: Exception | None,
    told: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that `bench` starts runs the client that its role and options require: a publisher, a consumer or, with
    `--churn`, a client that creates and removes objects. If the process fails, it reports the error, the hint and the
    exit code to `bench`.
    """
    ran, reports = _run_main(monkeypatch, job(role, 0, **settings), error)
    assert (ran, reports) == ([kind], told)


@pytest.mark.parametrize(
    ("role", "number", "deletes"), [("consumer", 0, True), ("consumer", 1, False), ("publisher", 0, False)]
)
@pytest.mark.parametrize("failure", [None, Unavailable("no broker")], ids=["deleted", "cannot be deleted"])
def test_if_bench_is_killed_one_consumer_deletes_the_queue(
    role: str, number: int, deletes: bool, failure: MqtoolError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the command `bench` is killed, the queue that it declared is deleted by the process of its first consumer, and
    by no other of its processes.
    """
    deleted: list[object] = []

    def delete(*what: object) -> None:
        deleted.append(what)
        if failure is not None:
            raise failure

    monkeypatch.setattr(clients, "delete_declared", delete)
    told = job(role, number)
    _run_main(monkeypatch, told, CommandEnded())
    assert deleted == [(told.amqp_addresses, told.tls, told.declared)] * deletes


def _run_main(
    monkeypatch: pytest.MonkeyPatch, given: Job, error: BaseException | None
) -> tuple[list[type], list[dict[str, Any]]]:
    """Run a process's main() with a job whose run() raises an error; return the classes that ran, and the reports."""
    ran: list[type] = []
    reports: list[dict[str, Any]] = []
    before = signal.getsignal(signal.SIGINT)

    class Given(Orders):
        def next(self) -> Any:
            return given.as_told()

    def run(client: BenchClient) -> None:
        assert isinstance(client.orders, Given)
        assert client.job == given
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ran.append(type(client))
        if error is not None:
            raise error

    monkeypatch.setattr(clients, "Orders", Given)
    monkeypatch.setattr(clients, "tell", lambda **values: reports.append(values))
    monkeypatch.setattr(BenchClient, "run", run)
    try:
        clients.main()
    finally:
        signal.signal(signal.SIGINT, before)
    return ran, reports
