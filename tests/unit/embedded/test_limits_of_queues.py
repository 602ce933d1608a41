"""The embedded broker's queues: lengths, lifetimes, delivery limits, delayed retries, reports to a live display."""

from typing import Any

import pytest

from mqtool.broker.embedded.model.amqp_errors import ChannelException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.applied_policies import USER, Policy
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue import (
    BrokerQueue,
    Outcome,
    Why,
    consumer_timeout,
    enforce_limits,
    feed,
    in_memory,
)
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.field_tables import Int32, Table
from tests.unit.embedded.test_queue import BusyClock, FakeClock, FakeConsumer, add_queue, bodies, message, requeue_many


class RecordingLedger(Ledger):
    """A ledger that stores nothing, and records what it was asked to store.

    Attributes:
        stored_bodies: the bodies of messages.
        delivering_keys: the keys of queues that have made their first delivery.
        removed_rows: the rows of messages that were deleted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stored_bodies: list[bytes] = []
        self.delivering_keys: list[int] = []
        self.removed_rows: list[int] = []

    def new_key(self) -> int:
        return 7

    def added(self, holder: int, entry: BacklogEntry) -> None:
        assert holder == 7
        entry.row = entry.position
        self.stored_bodies.append(entry.message.body)

    def delivering(self, holder: int) -> None:
        self.delivering_keys.append(holder)

    def removed(self, row: int, *, purged: bool = False) -> None:  # noqa: ARG002
        self.removed_rows.append(row)


@pytest.fixture
def ledger() -> RecordingLedger:
    return RecordingLedger()


def with_fields(body: bytes, **fields: bytes) -> BrokerMessage:
    """Return a message with these encoded properties."""
    return BrokerMessage(encode_address("", "q"), ContentHeader.of(MessageProperties.of(fields), len(body)), body)


def take(queue: BrokerQueue) -> BacklogEntry:
    entry = queue.get(no_ack=False)
    assert entry is not None
    return entry


def quorum_queue(like: Like, **arguments: Any) -> tuple[BrokerQueue, FakeClock]:
    clock = FakeClock()
    return add_queue(
        VirtualHost("/", clock, Ledger(), PROFILES[like]), durable=True, x_queue_type="quorum", **arguments
    ), clock


def deaths(queue: BrokerQueue) -> list[tuple[bytes, object]]:
    """Return the body of each dead letter in a queue, with the reason for its death."""
    found = []
    while (entry := queue.get(no_ack=True)) is not None:
        found.append((entry.message.body, entry.message.headers["x-first-death-reason"]))
    return found


@pytest.mark.parametrize(
    ("declared", "arguments", "mode", "stored"),
    [
        ({"durable": True}, {}, 2, True),
        ({"durable": True}, {}, 1, False),
        ({"durable": True}, {"x-queue-type": "quorum"}, 1, True),
        ({"durable": False}, {}, 2, False),
        ({"durable": True, "owner": object()}, {}, 2, False),
    ],
    ids=["persistent", "transient message", "quorum queue", "transient queue", "exclusive queue"],
)
def test_a_message_that_survives_a_restart_is_confirmed_once_it_is_on_disk(
    vhost: VirtualHost, ledger: RecordingLedger, declared: Any, arguments: Table, mode: int, *, stored: bool
) -> None:
    """The broker stores on disk each persistent message of a durable queue that is not exclusive, and each message of a
    quorum queue. Such a message is confirmed once it is on disk, even if a consumer with automatic acknowledgement gets
    it immediately. Other messages are not stored.
    """
    queue = vhost.add_queue(QueueDeclaration("q", arguments, **declared))
    assert queue.publish(with_fields(b"0", delivery_mode=bytes([mode]))) == (True, stored)
    consumer = FakeConsumer(no_ack=True, queue=queue)
    queue.add_consumer(consumer)
    queue.pump()
    assert queue.publish(with_fields(b"1", delivery_mode=bytes([mode]))) == (True, stored)
    assert [entry.message.body for entry in consumer.got] == [b"0", b"1"]
    assert ledger.stored_bodies == [b"0", b"1"] * stored


@pytest.mark.parametrize("how", ["consumer", "get"])
def test_the_first_delivery_of_a_durable_queue_is_recorded(
    vhost: VirtualHost, ledger: RecordingLedger, how: str
) -> None:
    """After a kill, the broker must mark messages as redelivered if they may have been delivered before. It therefore
    records in its data directory when a durable queue makes its first delivery. It does not record later deliveries, or
    deliveries of transient queues.
    """
    for name, durable in (("durable", True), ("transient", False)):
        queue = add_queue(vhost, name, durable=durable)
        if how == "consumer":
            queue.add_consumer(FakeConsumer(queue=queue))
        for _ in range(3):
            queue.publish(message())
            queue.get(no_ack=True)
    assert ledger.delivering_keys == [7]


def test_unacknowledged_messages_are_counted(vhost: VirtualHost) -> None:
    """A queue keeps track of the number and the total size of its unacknowledged messages. A message is no longer
    included once it has been acknowledged, rejected or requeued.
    """
    queue = add_queue(vhost)
    for size in (1, 10, 100, 1000):
        queue.publish(message(bytes(size)))
    entries = [take(queue) for _ in range(4)]
    assert (queue.unacked, queue.unacked_bytes) == (4, 1111)
    for entry, settle, left in zip(
        entries,
        [queue.acknowledge, queue.reject, lambda entry: queue.requeue([entry])],
        [1110, 1100, 1000],
        strict=False,
    ):
        settle(entry)
        assert queue.unacked_bytes == left
    assert (queue.unacked, len(queue)) == (1, 1)
    queue.acknowledge(entries[3])
    assert (queue.unacked, queue.unacked_bytes, queue.traffic.acknowledged) == (0, 0, 2)


@pytest.mark.parametrize(
    ("queue_ttl", "expiration", "lasts"), [(1000, b"500", 500), (500, b"1000", 500), (None, b"0", 0)]
)
def test_a_message_expires_after_the_shorter_of_its_expiration_and_the_queues_ttl(
    vhost: VirtualHost, clock: FakeClock, queue_ttl: int | None, expiration: bytes, lasts: int
) -> None:
    """A message expires after its own expiration or the queue's x-message-ttl, whichever is shorter. A message
    without its own expiration expires after the queue's x-message-ttl.
    """
    queue = add_queue(vhost, **({} if queue_ttl is None else {"x_message_ttl": Int32(queue_ttl)}))
    queue.publish(with_fields(b"x", expiration=bytes([len(expiration)]) + expiration))
    queue.publish(message(b"without"))
    if lasts:
        clock.pass_by(lasts - 1)
        assert bodies(queue) == [b"x", b"without"]
        clock.pass_by(1)
    assert bodies(queue) == [b"without"] * (queue_ttl is None or queue_ttl > lasts)


def test_the_headers_of_a_dead_letter_contain_the_reason(vhost: VirtualHost, clock: FakeClock) -> None:
    """A dead letter's headers say why the message left its queue: expired, maxlen, rejected or delivery_limit."""
    dead = add_queue(vhost, "dead")
    to = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": "dead"}
    expiring = add_queue(vhost, "expiring", x_message_ttl=Int32(1000), **to)
    short = add_queue(vhost, "short", x_max_length=Int32(1), **to)
    full = add_queue(vhost, "full", x_max_length=Int32(1), x_overflow="reject-publish-dlx", **to)
    rejecting = add_queue(vhost, "rejecting", **to)
    limited = add_queue(vhost, "limited", durable=True, x_queue_type="quorum", x_delivery_limit=Int32(1), **to)
    expiring.publish(message(b"expired"))
    clock.pass_by(1000)
    for body in (b"maxlen", b"stays"):
        short.publish(message(body))
    assert full.publish(message(b"stays")) == (True, False)
    assert full.publish(message(b"refused")) == (False, False)
    for queue, body in ((rejecting, b"rejected"), (limited, b"limit")):
        queue.publish(message(body))
    rejecting.reject(take(rejecting))
    for _ in range(2):
        limited.requeue([take(limited)], Why.REJECTED)
    assert deaths(dead) == [
        (b"expired", "expired"),
        (b"maxlen", "maxlen"),
        (b"refused", "maxlen"),
        (b"rejected", "rejected"),
        (b"limit", "delivery_limit"),
    ]


@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish"])
def test_a_maximum_length_in_bytes_limits_the_bodies_of_ready_messages(vhost: VirtualHost, overflow: str) -> None:
    """x-max-length-bytes limits the total size of the bodies of a queue's ready messages. Beyond this limit, the queue
    drops its oldest messages or, with `reject-publish`, rejects new ones. Unacknowledged messages do not count towards
    the limit.
    """
    queue = add_queue(vhost, x_max_length_bytes=Int32(10), x_overflow=overflow)
    queue.publish(message(b"unacknowledged"[:9]))
    queue.get(no_ack=False)
    accepted = [queue.publish(message(body))[0] for body in (b"12345", b"67890", b"x")]
    drops = overflow == "drop-head"
    assert accepted == [True, True, drops]
    assert bodies(queue) == ([b"67890", b"x"] if drops else [b"12345", b"67890"])


def test_a_long_queue_that_a_policy_limits_drops_messages_step_by_step(vhost: VirtualHost, clock: FakeClock) -> None:
    """If a policy sets a maximum length for a long queue, the queue drops its oldest messages step by step, not all
    at once, even if no client uses the queue. After the policy has been deleted, the queue has no limit.
    """
    queue = add_queue(vhost)
    for number in range(100):
        queue.publish(message(b"%d" % number))
    vhost.policies.put(USER, Policy("p", ".*", {"max-length": Int32(10)}))
    assert 10 < len(queue) < 100
    clock.pass_by(0)
    assert bodies(queue) == [b"%d" % number for number in range(90, 100)]
    queue.publish(message(b"100"))
    assert len(queue) == 10
    vhost.policies.delete(USER, "p")
    queue.publish(message(b"101"))
    assert len(queue) == 11
    assert queue.policy.policy is None


def test_a_policy_sets_the_time_after_which_an_unused_queue_is_deleted(vhost: VirtualHost, clock: FakeClock) -> None:
    """If a policy sets `expires`, a queue is deleted once it has been unused for that time. If the policy is deleted,
    or changed to a longer time, the original time no longer applies.
    """
    queue = add_queue(vhost)
    vhost.policies.put(USER, Policy("p", ".*", {"expires": Int32(1000)}))
    clock.pass_by(900)
    vhost.policies.put(USER, Policy("p", ".*", {"expires": Int32(2000)}))
    assert queue.policy.definition == {"expires": 2000}
    clock.pass_by(1999)
    assert "q" in vhost.queues
    vhost.policies.delete(USER, "p")
    clock.pass_by(5000)
    assert "q" in vhost.queues
    vhost.policies.put(USER, Policy("p", ".*", {"expires": Int32(1000)}))
    clock.pass_by(999)
    assert "q" in vhost.queues
    clock.pass_by(1)
    assert "q" not in vhost.queues


@pytest.mark.parametrize(
    ("kind", "overflow", "left"), [("classic", None, 2), ("quorum", None, 4), ("classic", "reject-publish", 4)]
)
def test_a_policy_with_a_length_and_reject_publish_shortens_a_classic_queue_once(
    kind: str, overflow: str | None, left: int
) -> None:
    """If a policy sets a maximum length and changes the overflow behaviour of a classic queue from drop-head to
    `reject-publish`, the queue drops its oldest messages beyond this length, but only once: it keeps all messages
    that are requeued later. A quorum queue, or a classic queue that already had `reject-publish`, keeps all its
    messages.
    """
    vhost = VirtualHost("/", FakeClock(), Ledger(), PROFILES[Like.V4_3])
    queue = add_queue(vhost, durable=True, x_queue_type=kind, **({} if overflow is None else {"x_overflow": overflow}))
    for number in range(4):
        queue.publish(message(b"%d" % number))
    vhost.policies.put(USER, Policy("p", ".*", {"max-length": Int32(2), "overflow": "reject-publish"}))
    assert bodies(queue) == [b"%d" % number for number in range(4 - left, 4)]
    if left == 2:
        requeued = [take(queue), take(queue)]
        assert queue.publish(message(b"4"))[0]
        assert queue.publish(message(b"5"))[0]
        queue.requeue(requeued)
        assert len(queue) == 4


@pytest.mark.parametrize(
    ("kind", "limits", "left"),
    [("classic", {"x_max_length": Int32(2)}, 2), ("quorum", {"x_max_length": Int32(2)}, 4), ("classic", {}, 4)],
)
def test_a_classic_queue_is_shortened_when_its_broker_starts(kind: str, limits: Table, left: int) -> None:
    """When the broker starts, messages that were unacknowledged are ready again. If a classic queue then exceeds its
    maximum length, it drops its oldest messages, even with `reject-publish`. A quorum queue keeps them.
    """
    vhost = VirtualHost("/", FakeClock(), Ledger(), PROFILES[Like.V4_3])
    queue = add_queue(vhost, durable=True, x_queue_type=kind, x_overflow="reject-publish", **limits)
    for number in range(2):
        queue.publish(message(b"%d" % number))
    unacknowledged = [take(queue), take(queue)]
    for number in range(2, 4):
        queue.publish(message(b"%d" % number))
    queue.requeue(unacknowledged)
    assert len(queue) == 4
    enforce_limits(queue)
    assert bodies(queue) == [b"%d" % number for number in range(4 - left, 4)]


@pytest.mark.parametrize(("kind", "single_active"), [("classic", True), ("quorum", False), ("quorum", True)])
def test_a_quorum_queue_with_a_single_active_consumer_refuses_basic_get(kind: str, *, single_active: bool) -> None:
    """As in RabbitMQ, if a client sends basic.get for a quorum queue with x-single-active-consumer, the broker closes
    the channel with error 405 (RESOURCE_LOCKED). Classic queues and other quorum queues return their next message.
    """
    vhost = VirtualHost("/", FakeClock(), Ledger(), PROFILES[Like.V4_3])
    queue = add_queue(vhost, durable=True, x_queue_type=kind, x_single_active_consumer=single_active)
    queue.publish(message(b"1"))
    if kind == "quorum" and single_active:
        with pytest.raises(ChannelException) as caught:
            queue.get(no_ack=True)
        assert caught.value.code == 405
        assert str(caught.value).endswith(
            'basic.get operations are not supported by <<"quorum">> queues with single active consumer'
        )
    else:
        assert take(queue).message.body == b"1"


def test_an_auto_delete_queue_is_deleted_with_its_last_consumer(vhost: VirtualHost) -> None:
    """An auto-delete queue is deleted when its last consumer is cancelled. It is not deleted before it has had a
    consumer.
    """
    queue = add_queue(vhost, auto_delete=True)
    one, two = FakeConsumer(queue=queue), FakeConsumer(queue=queue)
    queue.remove_consumer(one)
    assert "q" in vhost.queues
    for consumer in (one, two):
        queue.add_consumer(consumer)
    queue.remove_consumer(one)
    assert "q" in vhost.queues
    queue.remove_consumer(two)
    assert "q" not in vhost.queues


_COUNTED = [Why.REJECTED, Why.FAILED, Why.CLOSED, Why.LOST]


@pytest.mark.parametrize("why", list(Why))
@pytest.mark.parametrize(("like", "also"), [(Like.V4_2, [Why.RETURNED]), (Like.V4_3, [])])
def test_a_quorum_queue_counts_the_requeued_and_the_failed_deliveries_of_a_message(
    like: Like, also: list[Why], why: Why
) -> None:
    """For each message, a quorum queue counts how many deliveries ended with a requeue, and how many of these failed.
    A delivery counts as failed if it was rejected with basic.reject, if an AMQP 1.0 client reported it as failed, or
    if its channel or connection was closed or lost. With `broker up --like 4.2` or earlier, a delivery that ended
    with basic.nack also counts as failed.
    """
    queue, _ = quorum_queue(like)
    queue.publish(message())
    for count in (1, 2):
        entry = take(queue)
        queue.requeue([entry], why)
        assert (entry.acquired_count, entry.redelivered) == (count, True)
        assert entry.delivery_count == (count if why in _COUNTED + also else 0)


@pytest.mark.parametrize(("like", "count"), [(Like.V4_2, 0), (Like.V4_3, 2)])
def test_a_classic_queue_counts_failed_deliveries_over_amqp_1_0(like: Like, count: int) -> None:
    """With `broker up --like 4.3` or later, the delivery count of a message in a classic queue includes deliveries that
    an AMQP 1.0 client has reported as failed. With `--like 4.2` or earlier, it does not.
    """
    queue = add_queue(VirtualHost("/", FakeClock(), Ledger(), PROFILES[like]))
    queue.publish(message())
    for why in (Why.FAILED, Why.RETURNED, Why.FAILED):
        queue.requeue([take(queue)], why)
    assert take(queue).delivery_count == count


@pytest.mark.parametrize(
    ("like", "limit", "why", "is_last"),
    [
        (Like.V4_2, -1, Why.RETURNED, True),
        (Like.V4_2, -1, Why.CLOSED, False),
        (Like.V4_2, 20, Why.RETURNED, False),
        (Like.V4_3, -1, Why.RETURNED, False),
    ],
)
def test_up_to_4_2_a_quorum_queue_without_a_delivery_limit_puts_requeued_messages_last(
    like: Like, limit: int, why: Why, *, is_last: bool
) -> None:
    """With `broker up --like 4.2` or earlier, if a client requeues a message with basic.nack, a quorum queue without
    a delivery limit puts this message behind all others. Otherwise, a requeued message returns to its original
    position, for example if the queue has a delivery limit, or with `--like 4.3` or later.
    """
    queue, _ = quorum_queue(like, x_delivery_limit=Int32(limit))
    for body in (b"0", b"1", b"2"):
        queue.publish(message(body))
    queue.requeue([take(queue)], why)
    order = [take(queue).message.body for _ in range(3)]
    assert order == ([b"1", b"2", b"0"] if is_last else [b"0", b"1", b"2"])


@pytest.mark.parametrize(
    ("which", "why", "delays"),
    [
        ("all", Why.REJECTED, [1000, 2000, 2500, 2500]),
        ("all", Why.RETURNED, [1000, 1000]),
        ("failed", Why.REJECTED, [1000, 2000]),
        ("failed", Why.RETURNED, [0, 0]),
        ("returned", Why.REJECTED, [0, 0]),
        ("returned", Why.RETURNED, [1000, 1000]),
    ],
    ids=str,
)
def test_a_quorum_queue_can_delay_requeued_messages(which: str, why: Why, delays: list[int]) -> None:
    """With `broker up --like 4.3` or later, a quorum queue can delay requeued messages. Its argument
    x-delayed-retry-type selects messages whose delivery failed, messages that were returned without a failure, or
    both. The delay becomes longer with each failure of a message, up to the maximum. A waiting consumer receives the
    message when the delay is over.
    """
    arguments = {"x_delayed_retry_type": which, "x_delayed_retry_min": Int32(1000), "x_delayed_retry_max": Int32(2500)}
    queue, clock = quorum_queue(Like.V4_3, **arguments)
    consumer = FakeConsumer(queue=queue)
    queue.add_consumer(consumer)
    queue.publish(message())
    for number, delay in enumerate(delays, 1):
        queue.requeue([consumer.got[-1]], why)
        if delay:
            clock.pass_by(delay - 1)
            assert len(consumer.got) == number
            clock.pass_by(1)
        assert len(consumer.got) == number + 1


@pytest.mark.parametrize(("like", "lasts"), [(Like.V4_2, 0), (Like.V4_3, 700)])
def test_a_message_that_is_requeued_with_a_delivery_time_is_ready_again_at_that_time(like: Like, lasts: int) -> None:
    """With `broker up --like 4.3` or later, a client can requeue a message and set a delivery time. Until this time,
    the message is not ready in its quorum queue, but a purge removes it. With `--like 4.2` or earlier, the queue
    ignores the delivery time.
    """
    queue, clock = quorum_queue(like)
    for body in (b"0", b"1"):
        queue.publish(message(body))
    queue.requeue([take(queue)], Why.FAILED, clock.wall() + 700)
    assert bodies(queue) == ([b"1"] if lasts else [b"0", b"1"])
    clock.pass_by(700)
    assert bodies(queue) == [b"0", b"1"]
    queue.requeue([take(queue)], Why.FAILED, clock.wall())
    assert bodies(queue) == [b"0", b"1"]
    queue.requeue([take(queue)], Why.FAILED, clock.wall() + 700)
    assert queue.purge() == 2
    clock.pass_by(700)
    assert bodies(queue) == []


@pytest.mark.parametrize(
    ("like", "kind", "declared", "argument", "seconds"),
    [
        (Like.V3_10, "classic", 5000, None, 30),
        (Like.V4_2, "classic", 5000, 2000, 5),
        (Like.V4_2, "classic", None, 2000, 30),
        (Like.V4_3, "classic", 5000, 2000, None),
        (Like.V4_3, "quorum", 5000, 2000, 2),
        (Like.V4_3, "quorum", 5000, None, 5),
        (Like.V4_3, "quorum", None, None, 30),
    ],
)
def test_consumer_timeouts_depend_on_the_version_that_the_broker_imitates(
    like: Like, kind: str, declared: int | None, argument: int | None, seconds: float | None
) -> None:
    """With `broker up --like 3.10`, all queues have the same consumer timeout. With `--like 4.2`, each queue can have
    its own consumer timeout. With `--like 4.3`, only quorum queues have a consumer timeout, and each of their
    consumers can have its own.
    """
    arguments = {} if declared is None else {"x_consumer_timeout": Int32(declared)}
    vhost = VirtualHost("/", FakeClock(), Ledger(), PROFILES[like])
    queue = add_queue(vhost, durable=True, x_queue_type=kind, **arguments)
    consumers: Table = {} if argument is None else {"x-consumer-timeout": Int32(argument)}
    assert consumer_timeout(queue, consumers, 30) == seconds


@pytest.mark.parametrize(
    ("queue_ttl", "policy_ttl", "expiration", "stored", "lasts"),
    [
        (1000, None, b"", 500, 500),
        (1000, None, b"", 5000, 1000),
        (1000, None, b"300", 500, 300),
        (None, None, b"700", 5000, 700),
        (None, 400, b"", 900, 900),
        (None, None, b"", 900, 900),
        (1000, None, b"", None, None),
        (None, None, b"", None, None),
    ],
)
def test_a_recovered_message_with_an_expiration_time_expires_no_later_than_its_ttl_allows(
    vhost: VirtualHost,
    clock: FakeClock,
    ledger: Ledger,
    queue_ttl: int | None,
    policy_ttl: int | None,
    expiration: bytes,
    stored: int | None,
    lasts: int | None,
) -> None:
    """If a message was stored on disk with an expiration time, it expires at this time, or once its TTL has passed
    since its recovery, whichever is earlier. The TTL is the shorter of the message's own expiration and the queue's
    x-message-ttl; policies are ignored. A message that was stored without an expiration time does not expire after
    its recovery.
    """
    if policy_ttl is not None:
        vhost.policies.put(USER, Policy("p", ".*", {"message-ttl": Int32(policy_ttl)}))
    queue = add_queue(vhost, **({} if queue_ttl is None else {"x_message_ttl": Int32(queue_ttl)}))
    fields = {"expiration": bytes([len(expiration)]) + expiration} if expiration else {}
    queue.restore(ledger.enter(with_fields(b"x", **fields), None if stored is None else clock.now() + stored))
    clock.pass_by(100_000 if lasts is None else lasts - 1)
    assert len(queue) == 1
    clock.pass_by(1)
    assert len(queue) == (lasts is None)


@pytest.mark.parametrize(
    ("strategy", "outcome", "is_deleted", "end"),
    [
        ("at-most-once", Outcome.TAKEN, False, "dropped"),
        ("at-most-once", Outcome.NOT_TAKEN, False, "dropped"),
        ("at-most-once", Outcome.FAILED, False, "set aside"),
        ("at-most-once", Outcome.FAILED, True, "dropped"),
        ("at-least-once", Outcome.TAKEN, False, "dropped"),
        ("at-least-once", Outcome.NOT_TAKEN, False, "kept"),
        ("at-least-once", Outcome.NOT_TAKEN, True, "dropped"),
        ("at-least-once", Outcome.FAILED, False, "set aside"),
    ],
)
def test_a_dead_letter_leaves_its_queue_once_another_queue_has_accepted_it(
    vhost: VirtualHost, ledger: RecordingLedger, strategy: str, outcome: Outcome, end: str, *, is_deleted: bool
) -> None:
    """A queue deletes a dead letter once another queue has accepted it. If no queue accepts the dead letter, the
    original queue drops it or, with the strategy at-least-once, keeps it. If an error prevents publishing, the dead
    letter stays on disk, so that it returns to the original queue after a restart.
    """
    to: Table = {"x_dead_letter_exchange": "x", "x_dead_letter_strategy": strategy, "x_overflow": "reject-publish"}
    queue = add_queue(vhost, durable=True, x_queue_type="quorum", **to)
    empty = ledger.held_bytes
    settled: list[Any] = []
    queue.dead_letter = lambda *arguments: settled.append(arguments[-1])
    queue.publish(message())
    queue.reject(take(queue))
    if is_deleted:
        vhost.delete_queue(queue)
    settled[0](outcome)
    assert ledger.removed_rows == ([1] if end == "dropped" else [])
    if not is_deleted:
        assert (ledger.held_bytes == empty) == (end != "kept")
        vhost.delete_queue(queue)
        assert ledger.removed_rows == ([] if end == "set aside" else [1])
    assert ledger.held_bytes < empty


def test_a_consumer_gets_no_message_whose_ttl_has_passed(vhost: VirtualHost, clock: FakeClock) -> None:
    """If a consumer of a queue with a TTL is busy while further messages arrive, it gets none of the messages that
    expire in the meantime, however many there are.
    """
    queue = add_queue(vhost, x_message_ttl=Int32(1000))
    for body in (b"0", b"1"):
        queue.publish(message(body))
    consumer = FakeConsumer(room=2, queue=queue)
    queue.add_consumer(consumer)
    queue.pump()
    for _ in range(60):
        queue.publish(message())
    clock.time += 1000
    consumer.room = 100
    feed([consumer])
    assert [entry.message.body for entry in consumer.got] == [b"0", b"1"]
    clock.pass_by(0)
    assert len(queue) == 0


def test_basic_get_never_returns_an_expired_message(vhost: VirtualHost, clock: FakeClock, ledger: Ledger) -> None:
    """If the TTL of all messages in a queue has passed, basic.get returns no message, even while the broker is still
    requeueing many of these messages.
    """
    queue = add_queue(vhost, x_message_ttl=Int32(1000))
    for _ in range(60):
        queue.publish(message())
    clock.time += 1000
    assert queue.get(no_ack=True) is None
    busy, _, requeued = requeue_many(ledger, x_message_ttl=Int32(1000))
    busy.time += 1000
    assert requeued.get(no_ack=True) is None


def test_a_message_that_is_requeued_to_an_empty_queue_expires_in_time(vhost: VirtualHost, clock: FakeClock) -> None:
    """While the only message of a queue is unacknowledged, basic.get finds the queue empty. If the message is
    requeued after that, it still expires exactly when its TTL has passed.
    """
    queue = add_queue(vhost, x_message_ttl=Int32(1000))
    queue.publish(message())
    entry = take(queue)
    assert queue.get(no_ack=True) is None
    queue.requeue([entry])
    clock.pass_by(999)
    assert len(queue) == 1
    clock.pass_by(1)
    assert len(queue) == 0


def test_messages_that_are_published_and_requeued_alternately_keep_their_order() -> None:
    """If clients publish some messages and requeue others while the broker is still requeueing many earlier messages,
    all messages are delivered in the order in which they were first published. Only the requeued messages are marked
    as redelivered.
    """
    clock = BusyClock()
    queue = add_queue(VirtualHost("/", clock, Ledger(), PROFILES[Like.V4_2]))
    taker, reader = FakeConsumer(queue=queue), FakeConsumer(queue=queue)
    queue.add_consumer(taker)
    for number in range(102):
        queue.publish(message(b"%03d" % number))
    queue.remove_consumer(taker)
    queue.requeue(taker.got[:100])
    queue.publish(message(b"102"))
    queue.requeue([taker.got[100]])
    for body in (b"103", b"104"):
        queue.publish(message(body))
    queue.requeue([taker.got[101]])
    assert len(queue.line.waiting) == 5
    waiting = sorted((entry.message.body, entry.redelivered) for entry in in_memory(queue))
    assert waiting == [(b"%03d" % number, number < 102) for number in range(105)]
    clock.pass_by(1000)
    assert (len(queue), queue.unacked, queue.unacked_bytes, queue.backlog.body_bytes) == (105, 0, 0, 315)
    queue.add_consumer(reader)
    queue.pump()
    assert [entry.message.body for entry in reader.got] == [b"%03d" % number for number in range(105)]
    assert [entry.redelivered for entry in reader.got] == [True] * 102 + [False] * 3


@pytest.mark.parametrize(
    ("like", "arguments", "is_first"),
    [
        (Like.V4_2, {}, False),
        (Like.V4_2, {"x_max_priority": Int32(5)}, True),
        (Like.V3_10, {"x_queue_type": "quorum"}, False),
        (Like.V4_2, {"x_queue_type": "quorum"}, True),
        (Like.V4_3, {"x_queue_type": "quorum"}, True),
    ],
)
def test_a_message_of_high_priority_comes_first_in_queues_with_priorities(
    like: Like, arguments: Table, *, is_first: bool
) -> None:
    """A message with a high priority is delivered before earlier messages in a classic queue with x-max-priority and,
    with `broker up --like 4.0` or later, in a quorum queue. Other queues ignore priorities.
    """
    queue = add_queue(VirtualHost("/", FakeClock(), Ledger(), PROFILES[like]), durable=True, **arguments)
    queue.publish(message(b"low"))
    queue.publish(with_fields(b"high", priority=b"\5"))
    assert take(queue).message.body == (b"high" if is_first else b"low")


def test_with_like_3_10_quorum_queues_have_no_delivery_limit_by_default() -> None:
    """With `broker up --like 3.10`, a quorum queue has no delivery limit by default, even if a policy without a
    delivery limit applies to it.
    """
    vhost = VirtualHost("/", FakeClock(), Ledger(), PROFILES[Like.V3_10])
    queue = add_queue(vhost, durable=True, x_queue_type="quorum")
    vhost.policies.put(USER, Policy("p", ".*", {"max-length": Int32(10)}))
    queue.publish(message())
    for _ in range(25):
        queue.requeue([take(queue)], Why.REJECTED)
    assert len(queue) == 1


def test_paged_out_messages_that_are_purged_are_deleted_on_disk(vhost: VirtualHost, ledger: RecordingLedger) -> None:
    """If a queue is purged, all its messages, including those that are paged out, are deleted on disk, and no longer
    count towards the broker's memory use.
    """
    queue = add_queue(vhost, durable=True, x_queue_type="quorum")
    empty, ledger.roomy_bytes = ledger.held_bytes, 0
    for _ in range(10):
        queue.publish(message())
    assert len([*in_memory(queue)]) == 1
    assert queue.purge() == 10
    assert ledger.removed_rows == [*range(1, 11)]
    assert ledger.held_bytes == empty


def test_a_message_that_is_rejected_after_its_queue_was_deleted_is_dropped(
    vhost: VirtualHost, ledger: RecordingLedger
) -> None:
    """If a consumer rejects a message whose queue has been deleted in the meantime, the broker drops the message
    instead of dead-lettering it.
    """
    dead = add_queue(vhost, "dead")
    queue = add_queue(vhost, x_dead_letter_exchange="", x_dead_letter_routing_key="dead")
    queue.publish(message())
    entry = take(queue)
    vhost.delete_queue(queue)
    held = ledger.held_bytes
    queue.reject(entry)
    assert (len(dead), ledger.held_bytes < held) == (0, True)


def test_each_delivery_by_basic_get_is_counted(vhost: VirtualHost) -> None:
    """A queue counts its deliveries by basic.get, separately for automatic and manual acknowledgement. A basic.get
    that finds the queue empty is not counted as a delivery.
    """
    queue = add_queue(vhost)
    for _ in range(5):
        queue.publish(message())
    for no_ack in (True, True, False, False, False, False):
        queue.get(no_ack=no_ack)
    assert (queue.traffic.got_no_ack, queue.traffic.got, queue.traffic.delivered) == (2, 3, 5)


class Watching:
    """A live display that shows all messages, and records what the broker reports."""

    def __init__(self) -> None:
        self.shown: Any = range(1, 1000)
        self.publishing: Any = {}
        self.skipped: set[bytes] = set()
        self.told: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def tell(*arguments: object, **named: object) -> None:
            self.told.append((name, *map(self._named, arguments), *named.items()))

        return tell

    def _named(self, argument: object) -> object:
        if isinstance(argument, BacklogEntry | BrokerMessage):
            return argument.body if isinstance(argument, BrokerMessage) else argument.message.body
        return argument.name if isinstance(argument, BrokerQueue) else argument

    def published(self, routing: Any) -> None:
        self.publishing = {id(routing.message): routing}


def test_what_happens_to_shown_messages_is_reported_to_a_live_display(vhost: VirtualHost) -> None:
    """The broker reports to a live display, such as `mqtool ui`, when a message that the display shows enters a queue,
    or is delivered, acknowledged, requeued or dead-lettered, and when a queue is purged. It reports nothing about
    messages that the display does not show.
    """
    watcher = Watching()
    queue = add_queue(vhost, x_dead_letter_exchange="amq.fanout")
    vhost.watch(watcher)  # type: ignore[arg-type]
    for body in (b"0", b"1"):
        vhost.enqueue(vhost.route(vhost.exchanges[""], message(body)))
    queue.requeue([take(queue)], Why.RETURNED)
    queue.acknowledge(take(queue))
    queue.reject(take(queue))
    queue.purge()
    consumer = FakeConsumer(queue=queue)
    queue.add_consumer(consumer)
    queue.remove_consumer(consumer)
    expected = [
        ("entered", "q", b"0", 1),
        ("entered", "q", b"1", 2),
        ("delivered", "q", b"0", None, ("no_ack", False)),
        ("requeued", "q", b"0", "returned"),
        ("delivered", "q", b"0", None, ("no_ack", False)),
        ("acknowledged", "q", b"0"),
        ("delivered", "q", b"1", None, ("no_ack", False)),
        ("ended", "q", b"1", "rejected", "amq.fanout"),
        ("emptied", "q"),
        ("changed",),
        ("changed",),
    ]
    assert watcher.told == expected
    watcher.shown = ()
    queue.publish(message(b"2"))
    queue.requeue([take(queue)])
    queue.acknowledge(take(queue))
    queue.publish(message(b"3"))
    queue.reject(take(queue))
    assert watcher.told == expected
