"""`queue convert` moves messages in batches: what it sends for each batch, when it ends, and what stops it."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pika import spec

from mqtool.amqp import Receiving, transactions
from mqtool.amqp.channel import Channel
from mqtool.amqp.transactions import InTransactions, Mover, Moving, NoRoom, WithConfirms
from mqtool.errors import HeadersTooLarge, NotConfirmed, Unavailable
from mqtool.message import Confirmation, Delivery, Message, Receipt
from mqtool.topology import Queue
from tests.unit.scripted_broker import ScriptedBroker


def delivery(body: bytes, tag: int = 1) -> Delivery:
    return Delivery(body, "", "jobs", "jobs", False, {}, tag)


def batch(*bodies: bytes) -> list[Delivery]:
    """Deliveries with delivery tags from 5 on."""
    return [delivery(body, tag) for tag, body in enumerate(bodies, 5)]


def message_for(moved: Delivery) -> Message:
    if moved.body == b"large":
        raise HeadersTooLarge("too large")
    return Message(moved.body, "other", "x")


def restored(moved: Delivery) -> Message:
    return Message(moved.body, "jobs", "back")


class TransactionalBroker(ScriptedBroker):
    """A broker with transactions.

    Attributes:
        unroutable: for each transaction, the bodies of the unroutable messages, in the order of their return.
        committed: the messages and acknowledgements of each transaction.
        selected: called when a channel has become transactional.
        commits: False if it never replies to tx.commit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.confirms = False
        self.unroutable: list[list[bytes]] = []
        self.committed: list[tuple[list[Message], list[tuple[int, bool]]]] = []
        self.selected: Callable[[], None] = lambda: None
        self.commits = True

    def _answer(self, method: Any, number: int) -> None:
        if isinstance(method, spec.Tx.Select):
            self.send(spec.Tx.SelectOk(), number)
            self.selected()
        elif isinstance(method, spec.Tx.Commit):
            assert all(each.mandatory for each, _ in self.published)
            self.committed.append(([message for _, message in self.published], [*self.acks]))
            for body in self.unroutable.pop(0) if self.unroutable else []:
                sent = next((message for _, message in self.published if message.body == body), Message(body, "k", "x"))
                returned = spec.Basic.Return(312, "NO_ROUTE", sent.exchange, sent.routing_key)
                self.send(returned, number, Message(body, properties=sent.properties))
            self.published.clear()
            self.acks.clear()
            if self.commits:
                self.send(spec.Tx.CommitOk(), number)
        else:
            super()._answer(method, number)


@pytest.fixture
def broker() -> Iterator[TransactionalBroker]:
    broker = TransactionalBroker()
    yield broker
    broker.close()


def messages(*bodies: bytes) -> list[Message]:
    return [Message(body, "other", "x") for body in bodies]


def test_a_batch_is_published_and_acknowledged_in_one_transaction(broker: TransactionalBroker) -> None:
    """`queue convert` moves a batch of messages in one transaction. It publishes the messages with the flag
    `mandatory`, acknowledges all their deliveries with one basic.ack, and then commits.
    """
    moving = InTransactions(broker.channel(), message_for, restored)
    large = bytes(70_000)  # needs two frames
    assert moving.move(batch(b"1", large, b"3")) == []
    assert broker.committed == [(messages(b"1", large, b"3"), [(7, True)])]
    assert broker.largest_frame == broker.frame_max
    assert broker.writes[-2:] == [["Basic.Publish"] * 3 + ["Basic.Ack"], ["Tx.Commit"]]


def test_queue_convert_ends_with_an_error_if_the_broker_does_not_commit_in_time(
    broker: TransactionalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker does not reply to tx.commit, `queue convert` does not hang: it raises NotConfirmed after the
    confirm timeout. RabbitMQ 3.10 never replies if the destination is a quorum queue that another client deletes at the
    same time.
    """
    monkeypatch.setattr(transactions, "CONFIRM_TIMEOUT", 0.1)
    moving = InTransactions(broker.channel(), message_for, restored)
    broker.commits = False
    with pytest.raises(NotConfirmed, match=re.escape("the broker did not reply within 0.1 s")):
        moving.move(batch(b"1"))


@pytest.mark.parametrize(
    ("unroutable", "back"),
    [
        ([b"2"], [b"2"]),
        ([b"3", b"1"], [b"1", b"3"]),
        ([b"same", b"same"], [b"same", b"same"]),
        ([b"changed"], [b"1", b"2", b"3", b"same", b"same"]),
    ],
)
def test_unroutable_messages_are_put_back_into_the_source_queue(
    broker: TransactionalBroker, unroutable: list[bytes], back: list[bytes]
) -> None:
    """If messages of a batch are unroutable, `queue convert` publishes them to the end of the source queue, and
    raises NotConfirmed. The other messages of the batch have been moved. If mqtool cannot recognize a returned
    message because the broker has changed it, the command publishes the whole batch to the source queue, so messages
    may be duplicated.
    """
    broker.unroutable = [unroutable]
    moving = InTransactions(broker.channel(), message_for, restored)
    with pytest.raises(NotConfirmed) as error:
        moving.move(batch(b"1", b"2", b"3", b"same", b"same"))
    assert str(error.value) == "no queue took messages from 'jobs': NO_ROUTE"
    count = f"{len(back)} messages" if len(back) > 1 else "1 message"
    assert error.value.hint == f"{count} went back to the end of 'jobs'"
    assert broker.committed[1] == ([Message(body, "jobs", "back") for body in back], [])
    assert moving.move(batch(b"4")) == []


def test_unroutable_messages_that_cannot_be_put_back_are_reported_as_lost(broker: TransactionalBroker) -> None:
    """If messages that `queue convert` moves are unroutable, and cannot be published to the source queue again
    either, the error says how many messages are lost, and why.
    """
    broker.unroutable = [[b"1"], [b"1"]]
    moving = InTransactions(broker.channel(), message_for, restored)
    with pytest.raises(NotConfirmed, match=r"^1 message of 'jobs' lost: no queue takes them \(NO_ROUTE\)$"):
        moving.move(batch(b"1"))


def test_a_batch_is_moved_up_to_a_message_that_cannot_be_published(broker: TransactionalBroker) -> None:
    """If a message of a batch cannot be published because its headers are too large, `queue convert` moves the
    messages before it, and raises HeadersTooLarge. This message and those after it stay in their queue.
    """
    moving = InTransactions(broker.channel(), message_for, restored)
    with pytest.raises(HeadersTooLarge):
        moving.move(batch(b"1", b"2", b"large", b"4"))
    assert broker.committed == [(messages(b"1", b"2"), [(6, True)])]
    with pytest.raises(HeadersTooLarge):
        moving.move(batch(b"large", b"4"))
    assert len(broker.committed) == 1


def test_a_connection_that_is_lost_before_the_first_transaction_raises_unavailable(broker: TransactionalBroker) -> None:
    """If the connection is lost just after the broker has made a channel of `queue convert` transactional, Unavailable
    is raised before any message is moved.
    """
    channel = broker.channel()
    broker.selected = channel.reopening.lost
    with pytest.raises(Unavailable, match=r"^the connection was lost$"):
        InTransactions(channel, message_for, restored)


class ConfirmingChannel:
    """A channel whose broker confirms, rejects or returns each message, depending on its body."""

    def __init__(self) -> None:
        self.published: list[Message] = []
        self.acknowledged: list[int] = []

    def publish(self, messages: Sequence[Message], *, mandatory: bool) -> Iterator[Receipt]:
        assert mandatory
        for sequence, message in enumerate(messages, 1):
            self.published.append(message)
            answers = {b"rejected": Confirmation.NACKED, b"returned": Confirmation.RETURNED}
            yield Receipt(message, answers.get(message.body, Confirmation.CONFIRMED), "NO_ROUTE", sequence)

    def acknowledge(self, moved: Delivery) -> None:
        self.acknowledged.append(moved.delivery_tag)


def test_with_confirms_only_confirmed_messages_are_acknowledged() -> None:
    """With publisher confirms, `queue convert` acknowledges a message of a batch only if the broker has confirmed it.
    Messages that the destination rejects because it is full stay unacknowledged, and can be published again.
    """
    channel = ConfirmingChannel()
    moving, lot = WithConfirms(cast(Channel, channel), message_for), batch(b"1", b"rejected", b"3")
    assert moving.move(lot) == lot[1:2]
    assert channel.published == messages(b"1", b"rejected", b"3")
    assert channel.acknowledged == [5, 7]


def test_with_confirms_messages_that_are_not_moved_stay_in_their_queue() -> None:
    """If `queue convert` moves a batch with publisher confirms, and a message is unroutable, the message stays in its
    queue, and NotConfirmed is raised. If a message cannot be published because its headers are too large,
    HeadersTooLarge is raised, and this message and those after it stay in their queue.
    """
    channel = ConfirmingChannel()
    moving = WithConfirms(cast(Channel, channel), message_for)
    with pytest.raises(NotConfirmed) as error:
        moving.move(batch(b"1", b"returned", b"3", b"large"))
    assert str(error.value) == "no queue took messages from 'jobs': NO_ROUTE"
    assert error.value.hint == "they are still in 'jobs'"
    with pytest.raises(NotConfirmed, match="NO_ROUTE"):
        moving.move(batch(b"returned"))
    with pytest.raises(HeadersTooLarge):
        moving.move(batch(b"4", b"large", b"6"))
    assert channel.acknowledged == [5, 7, 5]
    assert channel.published[3:] == messages(b"returned", b"4")


class FakeQueue:
    """The queue whose messages are moved, its channel and its consumer. Waiting takes no time.

    Attributes:
        ready: the bodies of the messages in the queue.
        late: the bodies of deliveries that arrive only after two requests for the depth of the queue.
        is_stuck: True while the queue delivers nothing.
        events: called at each wait for a delivery or for room, one after another.
        published: the number of messages that are published while each batch is moved.
        rejected: for each batch, the numbers of the messages that the destination rejects.
        pace: the seconds that each batch takes.
        log: the numbers of the messages of each batch, and other events.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.stopping, self.is_stuck = 1000.0, False, False
        self.count = self.prefetch = self.unacknowledged = self.received = self.asked = 0
        self.ready, self.arrived, self.late = deque[bytes](), deque[bytes](), deque[bytes]()
        self.events: list[Callable[[], None]] = []
        self.published: list[int] = []
        self.rejected: list[set[int]] = []
        self.pace = 0.0
        self.log: list[Any] = []
        monkeypatch.setattr(transactions, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def mover(self, at_once: int, room: Callable[[], int] | None = None) -> Mover:
        self.prefetch = 2 * at_once
        return Mover(cast(Channel, self), "jobs", at_once, cast(Moving, self), room)

    def publish(self, count: int) -> None:
        self.ready.extend(b"%d" % number for number in range(self.count, self.count + count))
        self.count += count

    def sleep(self, seconds: float) -> None:
        assert self.now < 1100, "moving never ends"
        assert seconds == 0.05
        self.now = round(self.now + seconds, 6)
        if self.events:
            self.events.pop(0)()

    # The channel.

    def depth_of(self, queue: str) -> int:
        assert queue == "jobs"
        return len(self.ready)

    def ask(self, request: Callable[..., None], _within: float | None = None) -> Any:
        replies: list[Any] = []
        request(self, replies.append)
        self.asked += 1
        if self.asked % 2 == 0:
            self.arrived += self.late
            self.received += len(self.late)
            self.late.clear()
        return replies[0]

    def queue_declare(self, queue: str, *, passive: bool, callback: Callable[[Any], None], **_: Any) -> None:
        assert (queue, passive) == ("jobs", True)
        callback(SimpleNamespace(method=SimpleNamespace(message_count=len(self.ready), consumer_count=1)))

    def consumer(self, queue: Queue, receiving: Receiving) -> "FakeQueue":
        assert (queue, receiving) == (Queue("jobs"), Receiving(self.prefetch, acknowledge=False))
        return self

    # The consumer.

    def deliveries(self) -> Iterator[Delivery]:
        while not self.stopping:
            yield delivery(self.arrived.popleft())

    def arrives(self, within: float) -> bool:
        if not self._has_delivered() and within:
            self.sleep(within)
        return self._has_delivered()

    def _has_delivered(self) -> bool:
        while self.ready and not self.is_stuck and self.unacknowledged < self.prefetch:
            self.arrived.append(self.ready.popleft())
            self.received += 1
            self.unacknowledged += 1
        return bool(self.arrived) or self.stopping

    def cancel(self) -> None:
        self.prefetch = 0
        self.log.append("cancelled")

    # The way to move.

    def move(self, moved: Sequence[Delivery]) -> list[Delivery]:
        assert self.now < 1100, "moving never ends"
        self.log.append([int(each.body[:9]) for each in moved])
        self.now += self.pace
        numbers = self.rejected.pop(0) if self.rejected else set[int]()
        rejected = [each for each in moved if int(each.body[:9]) in numbers]
        self.unacknowledged -= len(moved) - len(rejected)
        self.publish(self.published.pop(0) if self.published else 0)
        return rejected


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> FakeQueue:
    return FakeQueue(monkeypatch)


def test_the_messages_of_a_queue_are_moved_in_order_in_batches(queue: FakeQueue) -> None:
    """`queue convert` moves the messages of a queue in order, in batches of the given size, until the queue is empty.
    Its consumer prefetches two batches.
    """
    queue.publish(10)
    assert [*queue.mover(4).batches()] == [4, 4, 2]
    assert queue.log == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], "cancelled"]
    assert [*queue.mover(4).batches()] == []
    assert queue.now == pytest.approx(1000.1)


def test_a_batch_ends_when_its_bodies_reach_16_mib(queue: FakeQueue) -> None:
    """`queue convert` ends a batch with the message that brings the total size of the bodies to 16 MiB or more."""
    queue.ready.extend(
        body.ljust(size) for body, size in ((b"0", 8 << 20), (b"1", (8 << 20) - 1), (b"2", 1), (b"3", 1))
    )
    assert [*queue.mover(9).batches()] == [3, 1]


def test_messages_delivered_after_the_broker_has_reported_the_queue_as_empty_are_moved(queue: FakeQueue) -> None:
    """RabbitMQ can report a queue as empty before it has sent the last deliveries to the consumer. `queue convert`
    also moves the messages of these deliveries.
    """
    queue.publish(2)
    queue.late.append(b"9")
    assert [*queue.mover(4).batches()] == [2, 1]
    assert queue.log == [[0, 1], [9], "cancelled"]


def test_one_consumer_moves_all_messages_that_arrive_until_publishers_are_cut_off(queue: FakeQueue) -> None:
    """When `queue convert` has emptied the queue, it cuts off publishers, so that new messages no longer reach the
    queue. The consumer that has moved the messages so far also moves those that reached the queue before the cut-off.
    It is then cancelled. Deliveries that arrive during the cancellation are moved last.
    """
    queue.publish(3)

    def stop_flow() -> None:
        queue.log.append("stopped")
        queue.publish(5)
        queue.events = [lambda: None, lambda: queue.publish(1)]

    cancel = queue.cancel

    def publish_and_cancel() -> None:
        queue.publish(2)
        queue.arrives(0)
        cancel()

    queue.cancel = publish_and_cancel  # type: ignore[method-assign]
    assert [*queue.mover(4).batches(stop_flow)] == [3, 4, 1, 2]
    assert queue.log == [[0, 1, 2], "stopped", [3, 4, 5, 6], [7], "cancelled", [8, 9]]


@pytest.mark.parametrize(
    ("ready", "published", "before", "after"),
    [
        (10, [10, 10, 9, 9, 9, 9], 6, [9]),
        (10, [9, 8, 7, 6, 5, 4], 7, []),
        (10, [10, 10, 10, 10], 3, [10, 10]),
        (0, [1, 1, 1, 1, 1], 3, [1, 1, 1]),
    ],
)
def test_publishers_are_cut_off_when_the_queue_no_longer_shrinks(
    queue: FakeQueue, ready: int, published: list[int], before: int, after: list[int]
) -> None:
    """If clients keep publishing while `queue convert` moves messages out of a queue, the queue may never become
    empty. The command therefore counts the remaining messages repeatedly. If their number has not decreased by 10%
    within three counts, the command cuts off the publishers, so that new messages no longer reach the queue. It still
    moves all messages that reached the queue before.
    """
    queue.publish(ready)
    queue.published = published
    if not ready:
        queue.events = [lambda: queue.publish(1)]
    sizes = list[int]()
    until_stopped = list[int]()
    for size in queue.mover(100).batches(lambda: until_stopped.extend(sizes)):
        sizes.append(size)
    assert len(until_stopped) == before
    assert sizes[before:] == after


def test_rejected_messages_count_towards_the_size_of_a_batch(queue: FakeQueue) -> None:
    """If the destination of `queue convert` rejects messages, the command republishes these messages before it moves
    any others. Their bodies count towards the 16 MiB of a batch.
    """
    queue.ready.extend(body.ljust(size) for body, size in ((b"0", (16 << 20) - 1), (b"1", 1), (b"2", 1)))
    queue.rejected = [{0, 1}]
    assert [*queue.mover(3, lambda: 3).batches()] == [0, 2, 1]
    assert queue.log == [[0, 1], [0, 1], [2], "cancelled"]


def test_rejected_messages_are_published_again_in_order(queue: FakeQueue) -> None:
    """If the destination of `queue convert` rejects messages, the command republishes these messages in order before it
    moves any others, even if the destination has room for only some of them.
    """
    queue.publish(6)
    queue.rejected = [{1, 2, 3}, {1}, {2}]
    rooms = [4, 1, 2, 1, 9, 9]
    assert [*queue.mover(4, lambda: rooms.pop(0)).batches()] == [1, 0, 1, 1, 3]
    assert queue.log == [[0, 1, 2, 3], [1], [1, 2], [2], [3, 4, 5], "cancelled"]


def test_a_queue_that_delivers_nothing_raises_unavailable(queue: FakeQueue) -> None:
    """If a queue has messages, but the broker delivers none of them to `queue convert` for 15 seconds, the command
    raises Unavailable. The error says how many messages the queue has, and the hint names possible reasons. If the
    broker delivers a message before the 15 seconds are over, the command continues.
    """
    queue.publish(1)
    queue.is_stuck = True

    def deliver() -> None:
        queue.is_stuck = False
        queue.arrives(0)
        queue.is_stuck = True
        queue.publish(1234)

    queue.events = [*[lambda: None] * 290, deliver]
    running = queue.mover(4).batches()
    assert next(running) == 1
    began = queue.now
    with pytest.raises(Unavailable) as error:
        next(running)
    assert str(error.value) == "'jobs' has 1,234 more, but the broker delivers none"
    assert error.value.hint == "another consumer has a higher priority, or is the single active one"
    assert queue.now - began == pytest.approx(15, abs=0.11)


def test_queue_convert_waits_for_room_in_the_destination(queue: FakeQueue) -> None:
    """Each batch of `queue convert` has no more messages than the destination has room for. If the destination has no
    room, the command waits. If there is still no room after 15 seconds, the command raises NoRoom.
    """
    queue.publish(9)
    rooms = [*[0] * 200, 2, 1, 9]
    running = queue.mover(4, lambda: rooms.pop(0) if rooms else 0).batches()
    assert [*islice(running, 3)] == [2, 1, 4]
    assert queue.now == pytest.approx(1010)
    with pytest.raises(NoRoom):
        next(running)
    assert queue.now == pytest.approx(1025, abs=0.11)


def test_a_destination_that_keeps_rejecting_messages_raises_no_room(queue: FakeQueue) -> None:
    """If the destination of `queue convert` seems to have room, but rejects all messages for 15 seconds, for example
    because of a limit in bytes, the command raises NoRoom. The 15 seconds start again whenever the destination
    accepts a message.
    """
    queue.publish(9)
    queue.pace = 4
    queue.rejected = [{0, 1}] * 3 + [{1}] + [{1, 2}] * 9
    running = queue.mover(2, lambda: 5).batches()
    assert [*islice(running, 8)] == [0, 0, 0, 1, 0, 0, 0, 0]
    with pytest.raises(NoRoom):
        next(running)


def test_a_stopped_conversion_begins_no_further_batch(queue: FakeQueue) -> None:
    """If `queue convert` is stopped after it has moved a batch of messages, it begins no further batch, and cancels
    its consumer. It does not cut off publishers: new messages still reach the queue.
    """
    queue.publish(9)
    running = queue.mover(4).batches(lambda: queue.log.append("stopped"))
    assert next(running) == 4
    queue.stopping = True
    assert [*running] == []
    assert queue.log == [[0, 1, 2, 3], "cancelled"]


def test_a_stopped_conversion_does_not_wait_for_room(queue: FakeQueue) -> None:
    """If `queue convert` is stopped while it waits for room in the destination, it stops waiting, cancels its
    consumer, and ends without an error.
    """
    queue.publish(9)
    queue.events = [lambda: setattr(queue, "stopping", True)]
    assert [*queue.mover(4, lambda: 0).batches()] == []
    assert queue.log == ["cancelled"]
    assert queue.now == pytest.approx(1000.05)
