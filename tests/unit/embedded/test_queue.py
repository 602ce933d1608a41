"""Queues on a clock that the tests set, without an event loop, sockets or waiting."""

import asyncio
import errno
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES
from mqtool.broker.embedded.model.queue import RETRY_DEAD_LETTERS, BrokerQueue, feed
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.store.disk import Disk
from mqtool.broker.embedded.store.recovery import recover
from mqtool.broker.embedded.store.storage import Storage
from mqtool.codecs.field_tables import Int32, Table


class FakeTimer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.time = 1_700_000_000_000
        self._due: list[tuple[int, int, FakeTimer, Callable[[], object]]] = []
        self._turn = count()

    def now(self) -> int:
        return self.time

    def wall(self) -> int:
        return self.time

    def elapsed(self) -> float:
        return 0.0

    def take_turn(self, what: Callable[[], object]) -> None:
        self.call_later(0, what)

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> FakeTimer:
        timer = FakeTimer()
        heappush(self._due, (self.time + milliseconds, next(self._turn), timer, what))
        return timer

    def pass_by(self, milliseconds: int) -> None:
        end = self.time + milliseconds
        while self._due and self._due[0][0] <= end:
            self.time, _, timer, what = heappop(self._due)
            if not timer.cancelled:
                what()
        self.time = end


@dataclass(eq=False)
class FakeConsumer:
    """A consumer that takes up to `room` messages."""

    room: int = 1000
    queue: BrokerQueue | None = None
    tag: str = "t"
    priority: int = 0
    exclusive: bool = False
    no_ack: bool = False
    arguments: Table = field(default_factory=dict)
    got: list[BacklogEntry] = field(default_factory=list)
    gone: bool = False
    asked: int = 0

    def ready(self) -> bool:
        self.asked += 1
        return self.room > 0

    def take(self, entry: BacklogEntry) -> None:
        self.room -= 1
        self.got.append(entry)

    def demoted(self) -> None:
        pass

    def cancelled(self) -> None:
        self.gone = True


def add_queue(
    vhost: VirtualHost, name: str = "q", *, durable: bool = False, auto_delete: bool = False, **arguments: Any
) -> BrokerQueue:
    table = {name.replace("_", "-"): value for name, value in arguments.items()}
    return vhost.add_queue(QueueDeclaration(name, table, durable=durable, auto_delete=auto_delete))


def message(body: bytes = b"x", key: str = "q", headers: Table | None = None) -> BrokerMessage:
    properties = MessageProperties(b"\0\0").replace(headers=headers or {})
    return BrokerMessage(encode_address("", key), ContentHeader.of(properties, len(body)), body)


def bodies(queue: BrokerQueue) -> list[bytes]:
    return [entry.message.body for entry in sorted(queue.backlog.in_memory(), key=lambda entry: entry.position)]


def test_the_consumers_of_a_deleted_queue_are_cancelled_in_several_event_loop_turns() -> None:
    """When a queue with many consumers is deleted, the broker cancels the first consumers immediately, and the others
    in later turns of its event loop. In these later turns, it also detaches the AMQP 1.0 links that publish to the
    queue, except a link that its client has detached in the meantime.
    """
    clock, seconds, told = FakeClock(), 0.0, list[str]()
    clock.elapsed = lambda: seconds  # type: ignore[method-assign]
    queue = add_queue(VirtualHost("/", clock, Ledger(), PROFILES[DEFAULT]))

    class SlowConsumer(FakeConsumer):
        def demoted(self) -> None:
            pass

        def cancelled(self) -> None:
            nonlocal seconds
            seconds += 0.004
            told.append(self.tag)

    def tell() -> None:
        told.append("link")

    def not_told() -> None:
        told.append("detached")

    for number in range(5):
        queue.add_consumer(SlowConsumer(queue=queue, tag=f"{number}"))
    queue.publishers |= {tell, not_told}
    queue.delete()
    assert told == ["0", "1", "2"]
    queue.publishers.discard(not_told)
    clock.pass_by(0)
    assert told == ["0", "1", "2", "3", "4", "link"]


@given(actions=st.lists(st.sampled_from(["publish", "take", "return newest", "return oldest", "ack"]), max_size=60))
def test_requeued_messages_return_to_their_original_position(actions: list[str]) -> None:
    """Requeued messages of a classic queue return to their original position. After any sequence of publishing,
    basic.get, requeueing and acknowledging, the ready messages are in the order in which they were published.
    """
    queue = add_queue(VirtualHost("/", FakeClock(), Ledger(), PROFILES[DEFAULT]))
    taken: list[BacklogEntry] = []
    for number, action in enumerate(actions):
        match action:
            case "publish":
                queue.publish(message(b"%04d" % number))
            case "take":
                entry = queue.get(no_ack=False)
                if entry is not None:
                    assert not bodies(queue) or entry.message.body < bodies(queue)[0]
                    taken.append(entry)
            case "return newest" if taken:
                queue.requeue([taken.pop()])
            case "return oldest" if taken:
                queue.requeue([taken.pop(0)])
            case "ack" if taken:
                queue.acknowledge(taken.pop())
        assert bodies(queue) == sorted(bodies(queue))
        assert len(queue) == len(bodies(queue))
        assert queue.unacked == len(taken)


def test_memory_is_freed_when_messages_leave_a_queue_for_any_reason(vhost: VirtualHost, ledger: Ledger) -> None:
    """Once all messages have left a queue, they no longer count towards the broker's memory use, whether they were
    dropped because of max-length, acknowledged, deleted with the queue, or requeued to a deleted queue.
    """
    queue = add_queue(vhost, x_max_length=Int32(3))
    for _ in range(5):
        queue.publish(message(b"12345"))
    first, second = queue.get(no_ack=False), queue.get(no_ack=False)
    assert first is not None
    assert second is not None
    assert ledger.held_bytes > 0
    queue.acknowledge(first)
    vhost.delete_queue(queue)
    queue.requeue([second])
    assert ledger.held_bytes == 0


def test_messages_expire_even_if_no_client_uses_the_queue(vhost: VirtualHost, clock: FakeClock) -> None:
    """Messages leave their queue when their TTL has passed, even if no client uses the queue."""
    queue = add_queue(vhost, x_message_ttl=Int32(1000))
    queue.publish(message(b"1"))
    clock.pass_by(500)
    queue.publish(message(b"2"))
    clock.pass_by(500)
    assert bodies(queue) == [b"2"]
    clock.pass_by(500)
    assert bodies(queue) == []


def test_a_message_that_is_requeued_after_its_ttl_expires_immediately(vhost: VirtualHost, clock: FakeClock) -> None:
    """A message's TTL keeps running while the message is unacknowledged. If the message is requeued after its TTL has
    passed, it expires immediately.
    """
    queue = add_queue(vhost, x_message_ttl=Int32(1000))
    queue.publish(message())
    entry = queue.get(no_ack=False)
    assert entry is not None
    clock.pass_by(5000)
    queue.requeue([entry])
    assert bodies(queue) == []


def test_x_expires_counts_from_the_last_use(vhost: VirtualHost, clock: FakeClock) -> None:
    """A queue is deleted once it has been unused for the time in its x-expires. basic.get counts as use. A queue with
    a consumer is not deleted. When its last consumer is cancelled, the time starts again.
    """
    queue = add_queue(vhost, x_expires=Int32(1000))
    clock.pass_by(900)
    queue.get(no_ack=True)
    clock.pass_by(900)
    consumer = FakeConsumer()
    queue.add_consumer(consumer)
    clock.pass_by(5000)
    assert "q" in vhost.queues
    queue.remove_consumer(consumer)
    clock.pass_by(999)
    assert "q" in vhost.queues
    clock.pass_by(1)
    assert "q" not in vhost.queues


def test_a_message_is_dead_lettered_through_250_queues(vhost: VirtualHost) -> None:
    """A message can be dead-lettered through 250 queues, one after the other. It arrives in the last queue with 250
    entries in x-death.
    """
    for number in range(250):
        add_queue(
            vhost,
            f"q{number}",
            x_max_length=Int32(0),
            x_dead_letter_exchange="",
            x_dead_letter_routing_key=f"q{number + 1}",
        )
    end = add_queue(vhost, "q250")
    vhost.enqueue(vhost.route(vhost.exchanges[""], message(key="q0")))
    (entry,) = end.backlog.in_memory()
    deaths: Any = entry.message.headers["x-death"]
    assert len(deaths) == 250
    assert deaths[0]["queue"] == "q249"


def test_consumers_with_the_same_priority_take_turns_receiving_messages(vhost: VirtualHost) -> None:
    """Consumers with the highest priority receive messages in turn. A consumer with a lower priority receives
    messages only once all consumers with the highest priority have used up their prefetch.
    """
    queue = add_queue(vhost)
    low, high, other = FakeConsumer(), FakeConsumer(room=2, priority=5), FakeConsumer(room=1, priority=5)
    for consumer in (low, high, other):
        queue.add_consumer(consumer)
    for number in range(4):
        queue.publish(message(b"%d" % number))
    assert [entry.message.body for entry in high.got] == [b"0", b"2"]
    assert [entry.message.body for entry in other.got] == [b"1"]
    assert [entry.message.body for entry in low.got] == [b"3"]


def test_a_queue_does_not_check_busy_consumers_until_they_can_take_messages_again(vhost: VirtualHost) -> None:
    """While all 100 consumers of a queue have used up their prefetch, the queue does not ask them whether they can take
    a message, not even when messages arrive or consumers are cancelled. Once a consumer can take messages again, it
    gets the next message.
    """
    queue = add_queue(vhost)
    consumers = [FakeConsumer(room=1, queue=queue, priority=number % 50) for number in range(100)]
    for consumer in consumers:
        queue.add_consumer(consumer)
    for number in range(200):
        queue.publish(message(b"%d" % number))
    for consumer in consumers[:50]:
        queue.remove_consumer(consumer)
    assert len(queue) == 100
    assert {consumer.asked for consumer in consumers} == {2}
    consumers[70].room = 1
    feed([consumers[70], consumers[0]])
    assert [entry.message.body for entry in consumers[70].got[1:]] == [b"100"]
    assert len(queue) == 99


def test_deleting_a_queue_cancels_consumers_and_removes_bindings(vhost: VirtualHost) -> None:
    """When a queue is deleted, its consumers are cancelled and its bindings are removed. An auto-delete exchange to
    which only this queue was bound is also deleted.
    """
    queue = add_queue(vhost)
    exchange = BrokerExchange("x", "direct", auto_delete=True)
    vhost.add_exchange(exchange)
    vhost.bind(exchange, queue, "k", {})
    consumer = FakeConsumer()
    queue.add_consumer(consumer)
    vhost.delete_queue(queue)
    assert consumer.gone
    assert "x" not in vhost.exchanges


def test_a_delayed_exchange_releases_each_message_after_its_delay(vhost: VirtualHost, clock: FakeClock) -> None:
    """An x-delayed-message exchange releases each message when its delay has passed. If the exchange is deleted, the
    messages that it still delays are discarded.
    """
    queue = add_queue(vhost)
    exchange = BrokerExchange("x", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    vhost.add_exchange(exchange)
    vhost.bind(exchange, queue, "", {})
    for delay in (3000, 1000, 2000):
        vhost.route(exchange, message(b"%d" % delay, headers={"x-delay": Int32(delay)}))
    assert vhost.held(exchange) == 3
    clock.pass_by(999)
    assert bodies(queue) == []
    clock.pass_by(1001)
    assert bodies(queue) == [b"1000", b"2000"]
    vhost.delete_exchange(exchange)
    clock.pass_by(5000)
    assert len(queue) == 2
    assert vhost.held(exchange) == 0


class BusyClock(FakeClock):
    """A clock on which each step of work takes 4 ms, and each turn of the event loop comes 1 ms after the last."""

    worked = 0.0

    def take_turn(self, what: Callable[[], object]) -> None:
        self.call_later(1, what)

    def elapsed(self) -> float:
        self.worked += 0.004
        return self.worked


def requeue_many(ledger: Ledger, like: str = DEFAULT, **arguments: Any) -> tuple[BusyClock, VirtualHost, BrokerQueue]:
    """Return a queue that is requeueing 100 messages in several turns of the event loop. Another message has been
    published to the queue in the meantime.
    """
    clock = BusyClock()
    vhost = VirtualHost("/", clock, ledger, PROFILES[like])
    queue = add_queue(vhost, durable=True, x_dead_letter_exchange="amq.fanout", **arguments)
    vhost.bind(vhost.exchanges["amq.fanout"], add_queue(vhost, "dead"), "", {})
    taker = FakeConsumer(queue=queue)
    queue.add_consumer(taker)
    for number in range(100):
        queue.publish(message(b"%d" % number))
    queue.remove_consumer(taker)
    queue.requeue(taker.got)
    queue.publish(message(b"100"))
    assert 1 < len(queue.line) < 101
    return clock, vhost, queue


KINDS: list[tuple[str, Table]] = [
    (DEFAULT, {}), (DEFAULT, {"x_max_priority": 5}), (DEFAULT, {"x_single_active_consumer": True}),
    ("3.10", {"x_queue_type": "quorum"}), ("4.2", {"x_queue_type": "quorum"}), ("4.3", {"x_queue_type": "quorum"}),
]  # fmt: skip
KIND_NAMES = ["classic", "priorities", "single active consumer", "quorum 3.10", "quorum 4.2", "quorum 4.3"]


@pytest.mark.parametrize(("like", "arguments"), KINDS, ids=KIND_NAMES)
def test_many_messages_are_requeued_step_by_step_and_keep_their_order(
    ledger: Ledger, like: str, arguments: Table
) -> None:
    """The broker requeues many messages in several turns of its event loop. All of them count as ready immediately,
    but consumers receive messages only after the last turn: first the requeued messages in order, and then a message
    that was published in the meantime.
    """
    clock, _, queue = requeue_many(ledger, like, **arguments)
    assert (len(queue), queue.unacked) == (101, 0)
    consumer = FakeConsumer(queue=queue)
    queue.add_consumer(consumer)
    queue.pump()
    assert consumer.got == []
    clock.pass_by(1000)
    assert [int(entry.message.body) for entry in consumer.got] == [*range(101)]
    assert [entry.redelivered for entry in consumer.got] == [True] * 100 + [False]
    assert (len(queue), queue.unacked, queue.backlog.body_bytes, queue.unacked_bytes) == (0, 101, 0, 193)


@pytest.mark.parametrize(("like", "arguments"), KINDS, ids=KIND_NAMES)
def test_basic_get_purge_and_delete_include_messages_that_are_being_requeued(
    ledger: Ledger, like: str, arguments: Table
) -> None:
    """While many messages are being requeued, basic.get returns the first of them. If the queue is purged or deleted
    during that time, these messages are dropped, and the message count in the broker's reply includes them.
    """
    clock, vhost, queue = requeue_many(ledger, like, **arguments)
    entry = queue.get(no_ack=False)
    assert entry is not None
    assert (entry.message.body, entry.redelivered) == (b"0", True)
    queue.acknowledge(entry)
    for left in [*vhost.queues.values()]:
        vhost.delete_queue(left)
    clock.pass_by(1000)
    for end in (lambda _, queue: queue.purge(), lambda vhost, queue: vhost.delete_queue(queue)):
        clock, vhost, queue = requeue_many(ledger, like, **arguments)
        assert end(vhost, queue) == 101
        clock.pass_by(1000)
        for left in [*vhost.queues.values()]:
            vhost.delete_queue(left)
        assert (len(queue), queue.unacked, queue.unacked_bytes, ledger.held_bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize("end", ["purge", "delete"])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_messages_of_a_long_queue_are_dropped_step_by_step(ledger: Ledger, kind: str, end: str) -> None:
    """When a queue with many messages is purged or deleted, it is empty immediately, although the broker frees the
    memory of the messages in several turns of its event loop. A message that is published after a purge stays in the
    queue.
    """
    clock = BusyClock()
    vhost = VirtualHost("/", clock, ledger, PROFILES[DEFAULT])
    queue = add_queue(vhost, durable=True, x_queue_type=kind)
    without = ledger.held_bytes
    for number in range(200):
        queue.publish(message(b"%d" % number))
    full = ledger.held_bytes
    assert (queue.purge() if end == "purge" else vhost.delete_queue(queue)) == 200
    assert len(queue) == 0
    assert (full - without) / 2 < ledger.held_bytes - without < full - without
    if end == "purge":
        queue.publish(message(b"after"))
        assert bodies(queue) == [b"after"]
        assert vhost.delete_queue(queue) == 1
    clock.pass_by(1000)
    assert ledger.held_bytes < without


def test_a_message_that_cannot_be_dropped_does_not_keep_others_in_memory(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If an error prevents the broker from dropping a message of a deleted queue, the broker logs the error, and
    drops the other messages of this queue and of queues deleted later. The client that deletes the queue receives no
    error.
    """
    clock = BusyClock()
    vhost = VirtualHost("/", clock, ledger, PROFILES[DEFAULT])
    without = ledger.held_bytes
    queues = [add_queue(vhost, name) for name in ("q", "r")]
    for queue in queues:
        for number in range(200):
            queue.publish(message(b"%d" % number))
    drop, lost = ledger.drop_purged, queues[0].backlog.head()

    def fail(entry: BacklogEntry | int) -> None:
        if entry is lost:
            raise RuntimeError("no such message")
        drop(entry)

    monkeypatch.setattr(ledger, "drop_purged", fail)
    with caplog.at_level(logging.ERROR):
        assert [vhost.delete_queue(queue) for queue in queues] == [200, 200]
        clock.pass_by(1000)
    drop(lost)
    assert ledger.held_bytes == without
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "messages of queue 'q' cannot be requeued or dropped"
    ]


@pytest.mark.parametrize("what", ["queue", "destination", "source"])
def test_the_bindings_of_a_deleted_queue_or_exchange_are_removed_step_by_step(ledger: Ledger, what: str) -> None:
    """When the broker deletes a queue or an exchange that has many bindings, it removes the bindings in several turns
    of its event loop. The queue or exchange exists until the last of these turns. Afterwards, neither the queue or
    exchange nor its bindings count towards the broker's memory use.
    """
    clock = BusyClock()
    vhost = VirtualHost("/", clock, ledger, PROFILES[DEFAULT])
    without, direct = ledger.held_bytes, vhost.exchanges["amq.direct"]
    exchange = BrokerExchange("e", "direct")
    vhost.add_exchange(exchange)
    queue = add_queue(vhost)
    end = queue if what == "queue" else exchange
    for number in range(200):
        if what == "source":
            vhost.bind(exchange, queue, f"{number}", {})
        else:
            vhost.bind(direct, end, f"{number}", {})
    vhost.deletions.soon(end)
    assert 0 < len([*vhost.bindings()]) < 200
    assert end in [*vhost.queues.values(), *vhost.exchanges.values()]
    clock.pass_by(1000)
    assert [*vhost.bindings()] == []
    assert end not in [*vhost.queues.values(), *vhost.exchanges.values()]
    for left in (queue, exchange):
        vhost.deletions.soon(left)
    clock.pass_by(1000)
    assert ledger.held_bytes == without


@pytest.mark.parametrize("end", ["line", "after"])
def test_a_deleted_quorum_queue_dead_letters_only_messages_requeued_before_deletion(ledger: Ledger, end: str) -> None:
    """If a quorum queue is deleted while it is requeueing many messages that exceed the delivery limit, these messages
    are still dead-lettered. A message that is requeued only after the deletion is dropped.
    """
    clock, vhost, queue = requeue_many(ledger, "3.10", x_queue_type="quorum", x_delivery_limit=0)
    if end == "after":
        clock.pass_by(1000)
        assert bodies(queue) == [b"100"]
        entry = queue.get(no_ack=False)
        assert entry is not None
    vhost.delete_queue(queue)
    assert len(queue.line) == 0 if end == "after" else len(queue.line) > 1
    if end == "after":
        queue.requeue([entry])
    clock.pass_by(1000)
    assert bodies(vhost.queues["dead"]) == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("end", ["nothing", "purge", "delete"])
def test_many_messages_that_exceed_the_delivery_limit_are_dead_lettered(ledger: Ledger, end: str) -> None:
    """If 100 messages are requeued together and exceed the delivery limit, each of them is dead-lettered once, in
    order. Purging or deleting the queue immediately afterwards does not change this.
    """
    clock, vhost, queue = requeue_many(ledger, "3.10", x_queue_type="quorum", x_delivery_limit=0)
    if end == "purge":
        queue.purge()
    elif end == "delete":
        vhost.delete_queue(queue)
    clock.pass_by(1000)
    assert bodies(vhost.queues["dead"]) == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish"])
def test_a_queue_keeps_its_maximum_length_while_many_messages_are_requeued(ledger: Ledger, overflow: str) -> None:
    """Messages that are being requeued count towards the maximum length of their queue. If this makes the queue full
    and another message is published, the queue dead-letters its oldest message or, with the overflow behaviour
    `reject-publish`, rejects the new one.
    """
    clock, vhost, queue = requeue_many(ledger, x_max_length=101, x_overflow=overflow)
    is_accepted = queue.publish(message(b"101"))[0]
    assert is_accepted == (overflow == "drop-head")
    clock.pass_by(1000)
    assert len(queue) == 101
    assert bodies(vhost.queues["dead"]) == ([b"0"] if is_accepted else [])


@pytest.mark.parametrize("how", ["delayed", "dead-lettered"])
def test_many_messages_that_are_due_at_the_same_time_are_published_step_by_step_in_order(
    ledger: Ledger, how: str
) -> None:
    """If many messages expire at the same time, or the delays of many messages end at the same time, the broker
    publishes a few of these messages in each turn of its event loop, in order, so that it can serve other clients
    between the turns.
    """
    clock = BusyClock()
    vhost = VirtualHost("/", clock, ledger, PROFILES[DEFAULT])
    target = add_queue(vhost, "target")
    if how == "delayed":
        exchange = BrokerExchange("x", "x-delayed-message", arguments={"x-delayed-type": "direct"})
        vhost.add_exchange(exchange)
        vhost.bind(exchange, target, "q", {})
        for number in range(50):
            vhost.enqueue(vhost.route(exchange, message(b"%d" % number, headers={"x-delay": 1000})))
    else:
        vhost.bind(vhost.exchanges["amq.direct"], target, "q", {})
        source = add_queue(vhost, x_dead_letter_exchange="amq.direct", x_message_ttl=1000)
        for number in range(50):
            source.publish(message(b"%d" % number))
    lengths = [0]

    def look() -> None:
        lengths.append(len(target))
        clock.call_later(1, look)

    look()
    clock.pass_by(2000)
    assert max(after - before for before, after in pairwise(lengths)) <= 5
    assert bodies(target) == [b"%d" % number for number in range(50)]


def test_with_at_least_once_a_dead_letter_is_kept_until_a_queue_accepts_it(
    vhost: VirtualHost, clock: FakeClock, ledger: Ledger
) -> None:
    """A quorum queue with the dead-letter strategy at-least-once keeps a dead letter if the target queue is missing
    or full, and tries again to publish it until a queue accepts it.
    """
    source = add_queue(
        vhost,
        x_queue_type="quorum",
        x_dead_letter_exchange="",
        x_dead_letter_routing_key="dead",
        x_dead_letter_strategy="at-least-once",
        x_overflow="reject-publish",
    )
    source.publish(message(b"1"))
    (entry,) = [source.get(no_ack=False)]
    assert entry is not None
    source.reject(entry)
    assert (len(source), source.unacked, len(source.dead_letters)) == (0, 0, 1)
    full = add_queue(vhost, "dead", x_max_length=0, x_overflow="reject-publish")
    clock.pass_by(RETRY_DEAD_LETTERS)
    assert len(source.dead_letters) == 1
    vhost.delete_queue(full)
    dead = add_queue(vhost, "dead")
    clock.pass_by(RETRY_DEAD_LETTERS)
    assert (len(source.dead_letters), bodies(dead)) == (0, [b"1"])
    assert dead.backlog.head().message.headers["x-first-death-reason"] == "rejected"
    dead.purge()
    assert ledger.held_bytes == ledger.definition_bytes


HOUR = 3_600_000


def test_a_message_published_while_the_clock_was_ahead_expires_after_its_ttl(
    vhost: VirtualHost, clock: FakeClock, ledger: Ledger
) -> None:
    """If the system clock is ahead when a message is published, but is corrected before the broker is restarted, the
    message expires once its TTL has passed since the restart.
    """
    queue = add_queue(vhost, x_message_ttl=Int32(1000))
    queue.restore(ledger.enter(message(), clock.now() + 48 * HOUR))
    clock.pass_by(999)
    assert len(queue) == 1
    clock.pass_by(1)
    assert len(queue) == 0


def test_a_paged_out_message_published_while_the_clock_was_ahead_expires_after_its_ttl(tmp_path: Path) -> None:
    """If the system clock is ahead while messages are published and paged out, but is corrected before the broker is
    restarted, the messages expire once their TTL has passed since the restart. A second restart does not start the TTL
    again.
    """

    def started(clock: FakeClock) -> tuple[Storage, VirtualHost]:
        storage = Storage(tmp_path)
        storage.hold_bytes(64 << 20)  # the broker is low on memory
        broker = Broker(storage, clock=clock)
        recover(broker, storage)
        return storage, broker.vhosts["/"]

    async def run() -> None:
        clock = FakeClock()
        clock.time += 48 * HOUR
        storage, vhost = started(clock)
        queue = add_queue(vhost, durable=True, x_queue_type="quorum", x_message_ttl=Int32(1000))
        for _ in range(20):
            queue.publish(message())
        storage.close()
        for milliseconds, left in ((500, 20), (999, 20), (1000, 0)):
            clock = FakeClock()
            storage, vhost = started(clock)
            clock.pass_by(milliseconds)
            assert len(vhost.queues["q"]) == left
            storage.close()

    asyncio.run(run())


class DiskWithoutSpace(Disk):
    """A disk that can be full for the files of streams."""

    is_full = False

    def write(self, file: int, path: Path, data: memoryview, position: int) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().write(file, path, data, position)


def started_in(directory: Path, clock: FakeClock, disk: Disk) -> tuple[Storage, VirtualHost]:
    storage = Storage(directory, disk)
    broker = Broker(storage, clock=clock)
    recover(broker, storage)
    return storage, broker.vhosts["/"]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_full_disk_neither_loses_nor_duplicates_a_dead_letter_for_a_stream(tmp_path: Path, end: str) -> None:
    """If a message is dead-lettered to a stream and a queue while the disk is full, and the broker is then killed or
    stopped, the message is in its original queue after the restart. Once the disk has space, the stream and the queue
    each get the dead letter exactly once.
    """
    directory, copy = tmp_path / "data", tmp_path / "copy"

    async def run() -> None:
        clock, disk = FakeClock(), DiskWithoutSpace()
        storage, vhost = started_in(directory, clock, disk)
        dead_letters = {"x_dead_letter_exchange": "amq.fanout"}
        queue = add_queue(vhost, durable=True, x_queue_type="quorum", x_message_ttl=Int32(1000), **dead_letters)
        for name, kind in (("stream", "stream"), ("other", "quorum")):
            target = add_queue(vhost, name, durable=True, x_queue_type=kind)
            vhost.bind(vhost.exchanges["amq.fanout"], target, "", {})
        queue.publish(message())
        await asyncio.wait_for(storage.stored(), 60)

        failed = asyncio.Event()
        storage.when_failed = lambda _: failed.set()
        disk.is_full = True
        clock.pass_by(1000)
        assert len(queue) == 0
        if end == "kill":
            await asyncio.wait_for(failed.wait(), 60)
            shutil.copytree(directory, copy)
        storage.close()
        if end == "stop":
            shutil.copytree(directory, copy)

        clock = FakeClock()
        storage, vhost = started_in(copy, clock, Disk())
        assert {name: len(queue) for name, queue in vhost.queues.items()} == {"q": 1, "stream": 0, "other": 0}
        clock.pass_by(1000)
        await asyncio.wait_for(storage.stored(), 60)
        storage.close()
        storage, vhost = started_in(copy, FakeClock(), Disk())
        assert {name: len(queue) for name, queue in vhost.queues.items()} == {"q": 0, "stream": 1, "other": 1}
        storage.close()

    asyncio.run(run())


def test_a_delayed_message_published_while_the_clock_was_ahead_is_released_after_its_delay(
    vhost: VirtualHost, clock: FakeClock, ledger: Ledger
) -> None:
    """If the system clock is ahead when a delayed message is published, but is corrected before the broker is
    restarted, the message is released once its delay has passed since the restart.
    """
    exchange = BrokerExchange("later", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
    vhost.add_exchange(exchange)
    queue = add_queue(vhost)
    vhost.bind(exchange, queue, "", {})
    for delay in (Int32(1000), Int32(-1000)):
        vhost.hold_again(exchange, ledger.enter(message(headers={"x-delay": delay}), clock.now() + 48 * HOUR))
    clock.pass_by(999)
    assert len(queue) == 0
    clock.pass_by(1)
    assert len(queue) == 2
