"""Which of a queue's consumers gets a message, and the counts of a queue's deliveries."""

from itertools import permutations

import pytest

from mqtool.broker.embedded.model.consumers import Consumers, Traffic, delivery_counts
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Like
from mqtool.broker.embedded.model.queue import BrokerQueue, Why, feed
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.field_tables import Int64
from tests.unit.embedded.test_queue import FakeClock, FakeConsumer, add_queue, message


@pytest.fixture
def vhost() -> VirtualHost:
    return VirtualHost("/", FakeClock(), Ledger(), PROFILES[DEFAULT])


def publish(queue: BrokerQueue, *bodies: bytes) -> None:
    for body in bodies:
        queue.publish(message(body))


def got(*consumers: FakeConsumer) -> list[list[bytes]]:
    return [[entry.message.body for entry in consumer.got] for consumer in consumers]


def test_two_consumers_of_a_queue_get_its_messages_in_turn(vhost: VirtualHost) -> None:
    """A queue delivers its messages to its two consumers in turn. Once one consumer has been cancelled, the other one
    gets all further messages.
    """
    queue = add_queue(vhost)
    one, two = consumers = FakeConsumer(queue=queue), FakeConsumer(queue=queue)
    queue.add_consumer(one)
    publish(queue, b"0")
    queue.add_consumer(two)
    publish(queue, b"1", b"2", b"3", b"4")
    queue.remove_consumer(one)
    publish(queue, b"5", b"6")
    first, second = got(*consumers)
    assert sorted(first + second) == [b"%d" % number for number in range(7)]
    assert (len(first), len(second)) == (3, 4)


def test_a_consumer_gets_no_more_messages_than_its_prefetch_allows(vhost: VirtualHost) -> None:
    """The only consumer of a queue gets no more messages than its prefetch allows. Once the consumer can take another
    message, it gets the next one.
    """
    queue = add_queue(vhost)
    consumer = FakeConsumer(room=2, queue=queue)
    queue.add_consumer(consumer)
    publish(queue, b"0", b"1", b"2", b"3")
    assert got(consumer) == [[b"0", b"1"]]
    consumer.room = 1
    feed([consumer])
    assert got(consumer) == [[b"0", b"1", b"2"]]


@pytest.mark.parametrize("order", [*permutations([-1, 0, 3, 5])], ids=str)
def test_consumers_of_higher_priority_come_first(vhost: VirtualHost, order: tuple[int, ...]) -> None:
    """A message goes to the consumer with the highest priority among those that can take another message. The order in
    which consumers were added or used up their prefetch does not matter. A consumer that is cancelled, or that belongs
    to another queue, gets no messages.
    """
    queue = add_queue(vhost)
    consumers = {priority: FakeConsumer(room=1, queue=queue, priority=priority) for priority in order}
    for consumer in consumers.values():
        queue.add_consumer(consumer)
    publish(queue, b"0", b"1", b"2", b"3")
    assert {priority: got(consumer) for priority, consumer in consumers.items()} == {
        5: [[b"0"]],
        3: [[b"1"]],
        0: [[b"2"]],
        -1: [[b"3"]],
    }
    stranger = FakeConsumer(queue=queue, priority=9)
    for consumer in consumers.values():
        consumer.room = 1
    feed([*consumers.values(), stranger])
    queue.remove_consumer(consumers[order[0]])
    publish(queue, b"4", b"5", b"6", b"7")
    left = sorted(set(order) - {order[0]}, reverse=True)
    assert [got(consumers[priority])[0][1:] for priority in left] == [[b"4"], [b"5"], [b"6"]]
    assert got(stranger, consumers[order[0]])[0] == []
    assert len(queue) == 1


def test_a_queue_informs_a_consumer_that_becomes_active_even_if_no_message_is_ready(vhost: VirtualHost) -> None:
    """When the single active consumer of a queue is cancelled, the queue immediately informs the next consumer that
    it is now active, even if no message is ready. A queue without x-single-active-consumer informs no consumer.
    """
    for is_single, asked in ((True, 1), (False, 0)):
        queue = add_queue(vhost, f"q{is_single}", x_single_active_consumer=is_single)
        one, two = FakeConsumer(queue=queue), FakeConsumer(queue=queue)
        queue.add_consumer(one)
        queue.add_consumer(two)
        queue.remove_consumer(one)
        assert (one.asked, two.asked) == (0, asked)
        queue.remove_consumer(two)
        assert (one.asked, two.asked) == (0, asked)


def test_all_consumers_are_active_without_x_single_active_consumer(vhost: VirtualHost) -> None:
    """If a queue is declared without x-single-active-consumer, all its consumers count as active, and none is its
    single active consumer.
    """
    queue = add_queue(vhost)
    consumers = [FakeConsumer(queue=queue), FakeConsumer(queue=queue)]
    for consumer in consumers:
        queue.add_consumer(consumer)
    assert [queue.consumers.is_active(consumer) for consumer in consumers] == [True, True]
    assert queue.consumers.active is None


@pytest.mark.parametrize("single_active", [False, True])
def test_clear_removes_all_consumers_and_returns_them_in_their_original_order(*, single_active: bool) -> None:
    """Consumers.clear(), which the broker calls when a queue is deleted, removes all consumers of the queue. It returns
    them in the order in which they were added, so that the broker can cancel them.
    """
    consumers = Consumers(single_active=single_active, unacked=lambda: 0)
    added = [FakeConsumer(priority=number) for number in (0, 2, 1)]
    for consumer in added:
        consumers.add(consumer)
    assert consumers.clear() == added
    assert (len(consumers), consumers.active, consumers.next_ready()) == (0, None, None)
    consumers.add(added[0])
    assert consumers.next_ready() is added[0]


def test_deliveries_are_counted_as_the_management_api_reports_them(vhost: VirtualHost) -> None:
    """A queue counts the messages that were published, redelivered and acknowledged, and the deliveries to consumers
    and to basic.get, each with and without acknowledgement. The counts have the names that the management API uses. For
    example, deliver_get is the number of all deliveries.
    """
    queue = add_queue(vhost)
    publish(queue, *[b"x"] * 11)
    entries = [queue.get(no_ack=False) for _ in range(3)]
    taken = [entry for entry in entries if entry is not None]
    queue.get(no_ack=True)
    queue.acknowledge(taken[0])
    queue.requeue(taken[1:])
    consumer, no_ack = FakeConsumer(room=4, queue=queue), FakeConsumer(room=2, queue=queue, no_ack=True)
    for each in (consumer, no_ack):
        queue.add_consumer(each)
        queue.pump()
        queue.remove_consumer(each)
    counts = {
        "publish": 11,
        "deliver_get": 10,
        "deliver": 4,
        "deliver_no_ack": 2,
        "get": 3,
        "get_no_ack": 1,
        "ack": 1,
        "redeliver": 2,
    }
    assert queue.traffic.counts() == counts
    total = Traffic()
    total.add(queue.traffic)
    total.add(queue.traffic)
    assert total.counts() == {name: 2 * count for name, count in counts.items()}


@pytest.mark.parametrize(
    ("like", "why", "headers"),
    [
        (Like.V3_10, None, {"x-delivery-count": 0}),
        (Like.V3_10, Why.RETURNED, {"x-delivery-count": 1}),
        (Like.V4_3, None, {"x-acquired-count": 0}),
        (Like.V4_3, Why.RETURNED, {"x-acquired-count": 1}),
        (Like.V4_3, Why.REJECTED, {"x-acquired-count": 1, "x-delivery-count": 1}),
    ],
    ids=str,
)
def test_the_headers_with_delivery_counts_depend_on_the_version(
    like: Like, why: Why | None, headers: dict[str, int]
) -> None:
    """delivery_counts() returns the headers that tell a consumer how often a quorum queue has delivered a message
    before. With `broker up --like 4.2` or earlier, it returns only x-delivery-count. With `--like 4.3` or later, it
    returns x-acquired-count and, if deliveries have failed, x-delivery-count.
    """
    profile = PROFILES[like]
    queue = add_queue(VirtualHost("/", FakeClock(), Ledger(), profile), durable=True, x_queue_type="quorum")
    publish(queue, b"x")
    entry = queue.get(no_ack=False)
    assert entry is not None
    if why is not None:
        queue.requeue([entry], why)
    found = delivery_counts(entry, profile)
    assert found == headers
    assert {type(count) for count in found.values()} == {Int64}
