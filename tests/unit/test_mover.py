"""`queue convert` moves messages in batches: what it sends for each batch, when it ends, and what stops it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mqtool.amqp import Channel, Receiving
from mqtool.errors import HeadersTooLarge, NotConfirmed, Unavailable
from mqtool.message import Confirmation, Delivery, Message, Receipt
from mqtool.topology import Queue
from mqtool.work import mover
from mqtool.work.mover import Mover, NoRoom


def message_for(delivery: Delivery) -> Message:
    if delivery.body == b"large":
        raise HeadersTooLarge("too large")
    return Message(delivery.body, "other", "x")


class FakeQueue:
    """The queue whose messages are moved, its channel and its consumer. Waiting takes no time.

    Attributes:
        ready: the bodies of the messages in the queue.
        late: the bodies of deliveries that arrive only after two requests for the depth of the queue.
        is_stuck: True while the queue delivers nothing.
        events: called at each wait for a delivery or for room, one after another.
        published: the number of messages that are published while each batch is moved.
        rejected: for each batch, the numbers of the messages that the destination rejects.
        acknowledged: the bodies of the acknowledged messages.
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
        self.acknowledged: list[bytes] = []
        self.pace = 0.0
        self.log: list[Any] = []
        monkeypatch.setattr(mover, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def mover(self, at_once: int, room: Callable[[], int] | None = None) -> Mover:
        self.prefetch = 2 * at_once
        return Mover(cast(Channel, self), "jobs", at_once, message_for, room)

    def add(self, count: int) -> None:
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
            yield Delivery(self.arrived.popleft(), "", "jobs", "jobs", False, {}, 1)

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

    def publish(self, messages: Iterable[Message], *, mandatory: bool) -> Iterator[Receipt]:
        """Reject a message with a number in `rejected`; return one with the body "returned"; confirm any other."""
        assert mandatory
        assert self.now < 1100, "moving never ends"
        self.now += self.pace
        numbers, batch = self.rejected.pop(0) if self.rejected else set[int](), list[Any]()
        self.log.append(batch)
        for sequence, message in enumerate(messages, 1):
            batch.append(int(message.body[:9]) if message.body[:1].isdigit() else message.body)
            confirmation = Confirmation.NACKED if batch[-1] in numbers else Confirmation.CONFIRMED
            returned = message.body == b"returned"
            yield Receipt(message, Confirmation.RETURNED if returned else confirmation, "NO_ROUTE", sequence)
        self.add(self.published.pop(0) if self.published else 0)

    def acknowledge(self, delivery: Delivery) -> None:
        self.acknowledged.append(delivery.body)
        self.unacknowledged -= 1


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> FakeQueue:
    return FakeQueue(monkeypatch)


def test_the_messages_of_a_queue_are_moved_in_order_in_batches(queue: FakeQueue) -> None:
    """`queue convert` moves the messages of a queue in order, in batches of the given size, until the queue is empty.
    Its consumer prefetches two batches.
    """
    queue.add(10)
    assert [*queue.mover(4).batches()] == [4, 4, 2]
    assert queue.log == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], "cancelled"]
    assert [*queue.mover(4).batches()] == []
    assert queue.now == pytest.approx(1000.1)


def test_only_confirmed_messages_are_acknowledged(queue: FakeQueue) -> None:
    """`queue convert` acknowledges a message only once the broker has confirmed it in the other queue. If the
    destination rejects a message, it is acknowledged once it has been published again. If a message is unroutable, it
    stays in its queue, and NotConfirmed is raised.
    """
    queue.ready.extend([b"1", b"2", b"3"])
    queue.rejected = [{2}]
    running = queue.mover(4).batches()
    assert next(running) == 2
    assert queue.acknowledged == [b"1", b"3"]
    queue.ready.extend([b"returned", b"5"])
    with pytest.raises(NotConfirmed) as error:
        next(running)
    assert str(error.value) == "no queue took messages from 'jobs': NO_ROUTE"
    assert error.value.hint == "they are still in 'jobs'"
    assert queue.acknowledged == [b"1", b"3", b"2", b"5"]


def test_a_batch_is_moved_up_to_a_message_that_cannot_be_published(queue: FakeQueue) -> None:
    """If a message cannot be published because its headers are too large, `queue convert` moves the messages before it,
    and raises HeadersTooLarge. This message and those after it stay in their queue.
    """
    queue.ready.extend([b"1", b"2", b"large", b"4"])
    with pytest.raises(HeadersTooLarge):
        next(queue.mover(4).batches())
    assert queue.acknowledged == [b"1", b"2"]


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
    queue.add(2)
    queue.late.append(b"9")
    assert [*queue.mover(4).batches()] == [2, 1]
    assert queue.log == [[0, 1], [9], "cancelled"]


def test_one_consumer_moves_all_messages_that_arrive_until_publishers_are_cut_off(queue: FakeQueue) -> None:
    """When `queue convert` has emptied the queue, it cuts off publishers, so that new messages no longer reach the
    queue. The consumer that has moved the messages so far also moves those that reached the queue before the cut-off.
    It is then cancelled. Deliveries that arrive during the cancellation are moved last.
    """
    queue.add(3)

    def stop_flow() -> None:
        queue.log.append("stopped")
        queue.add(5)
        queue.events = [lambda: None, lambda: queue.add(1)]

    cancel = queue.cancel

    def publish_and_cancel() -> None:
        queue.add(2)
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
    queue.add(ready)
    queue.published = published
    if not ready:
        queue.events = [lambda: queue.add(1)]
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
    queue.add(6)
    queue.rejected = [{1, 2, 3}, {1}, {2}]
    rooms = [4, 1, 2, 1, 9, 9]
    assert [*queue.mover(4, lambda: rooms.pop(0)).batches()] == [1, 0, 1, 1, 3]
    assert queue.log == [[0, 1, 2, 3], [1], [1, 2], [2], [3, 4, 5], "cancelled"]


def test_a_queue_that_delivers_nothing_raises_unavailable(queue: FakeQueue) -> None:
    """If a queue has messages, but the broker delivers none of them to `queue convert` for 15 seconds, the command
    raises Unavailable. The error says how many messages the queue has, and the hint names possible reasons. If the
    broker delivers a message before the 15 seconds are over, the command continues.
    """
    queue.add(1)
    queue.is_stuck = True

    def deliver() -> None:
        queue.is_stuck = False
        queue.arrives(0)
        queue.is_stuck = True
        queue.add(1234)

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
    queue.add(9)
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
    queue.add(9)
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
    queue.add(9)
    running = queue.mover(4).batches(lambda: queue.log.append("stopped"))
    assert next(running) == 4
    queue.stopping = True
    assert [*running] == []
    assert queue.log == [[0, 1, 2, 3], "cancelled"]


def test_a_stopped_conversion_does_not_wait_for_room(queue: FakeQueue) -> None:
    """If `queue convert` is stopped while it waits for room in the destination, it stops waiting, cancels its
    consumer, and ends without an error.
    """
    queue.add(9)
    queue.events = [lambda: setattr(queue, "stopping", True)]
    assert [*queue.mover(4, lambda: 0).batches()] == []
    assert queue.log == ["cancelled"]
    assert queue.now == pytest.approx(1000.05)
