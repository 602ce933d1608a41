"""Backlogs: the order of the ready messages in each type of queue, even if most of them are paged out to disk."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.backlog import BATCH, Backlog, BacklogEntry, new_backlog

ACTIONS = ("publish", "publish", "take", "requeue the newest", "requeue the oldest")
KINDS = {
    "classic": ("classic", None, "none"),
    "classic with priorities": ("classic", 3, "none"),
    "quorum of 3.13": ("quorum", None, "none"),
    "quorum of 4.2": ("quorum", None, "two"),
    "quorum of 4.3": ("quorum", None, "all"),
}


@dataclass
class FakePages:
    """A disk to which each stored message is paged out, and from which up to `most` messages are read at a time."""

    most: int = BATCH
    stored: dict[int, BacklogEntry] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)

    def page_out(self, entry: BacklogEntry) -> bool:
        assert entry.row == entry.position
        self.stored[entry.row] = entry
        return True

    def page_in(self, rows: Sequence[int]) -> list[BacklogEntry]:
        assert rows
        self.requests.append(len(rows))
        return [self.stored.pop(row) for row in rows[: self.most]]


def entry(position: int, priority: int | None = None, *, stored: bool = False) -> BacklogEntry:
    properties = MessageProperties.of({} if priority is None else {"priority": bytes([priority])})
    body = b"x" * (position % 7)
    made = BacklogEntry(BrokerMessage(encode_address("", "q"), ContentHeader.of(properties, len(body)), body), position)
    made.row = position if stored else 0
    return made


@dataclass
class Expected:
    """The order that RabbitMQ's documentation describes, in the simplest implementation."""

    kind: str
    fresh: list[BacklogEntry] = field(default_factory=list)
    returned: list[BacklogEntry] = field(default_factory=list)
    taken: int = 0

    def next(self) -> BacklogEntry:
        everything = self.fresh + self.returned
        match self.kind:
            case "classic":
                return min(everything, key=lambda each: each.position)
            case "classic with priorities":
                return min(everything, key=lambda each: (-min(each.message.properties.priority or 0, 3), each.position))
            case "quorum of 3.13":
                return (self.returned or self._in_order(self.fresh))[0]
            case "quorum of 4.3":
                in_order = sorted(self.fresh, key=lambda each: (-self._level(each), each.position))
                return (self.returned or in_order)[0]
        if self.returned:
            return self.returned[0]
        low = self._in_order(each for each in self.fresh if (each.message.properties.priority or 0) < 5)
        high = self._in_order(each for each in self.fresh if (each.message.properties.priority or 0) >= 5)
        is_third = self.taken % 3 == 2
        return low[0] if not high or (is_third and low and low[0].position < high[0].position) else high[0]

    @staticmethod
    def _level(each: BacklogEntry) -> int:
        priority = each.message.properties.priority
        return 4 if priority is None else min(priority, 31)

    @staticmethod
    def _in_order(entries: Iterable[BacklogEntry]) -> list[BacklogEntry]:
        return sorted(entries, key=lambda each: each.position)

    def take(self, found: BacklogEntry) -> None:
        if found in self.returned:
            self.returned.remove(found)
        else:
            self.fresh.remove(found)
            self.taken += 1


def check(backlog: Backlog, expected: Expected) -> None:
    everything = expected.fresh + expected.returned
    assert len(backlog) == len(everything)
    assert backlog.body_bytes == sum(len(each.message.body) for each in everything)
    assert set(backlog.in_memory()) <= set(everything)
    assert set(backlog.in_memory()) >= set(expected.returned)


def take(backlog: Backlog, expected: Expected) -> BacklogEntry:
    following = expected.next()
    assert backlog.head() is following
    assert backlog.take() is following
    expected.take(following)
    return following


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [0, 1, BATCH], ids=["in memory", "paged out, large", "paged out"])
def test_each_type_of_queue_delivers_messages_in_the_same_order_as_rabbitmq(kind: str, most: int) -> None:
    """After any sequence of publishes, deliveries and requeues, a queue delivers messages in the same order as
    RabbitMQ. This is tested for classic queues with and without priorities, and for quorum queues of RabbitMQ 3.13,
    4.2 and 4.3. Paging messages out to disk does not change the order.
    """
    for seed in range(20):
        chance = random.Random(seed)
        backlog, expected = new_backlog(FakePages(most), *KINDS[kind]), Expected(kind)
        out: list[BacklogEntry] = []
        for position, action in enumerate(chance.choices(ACTIONS, k=60), 1):
            if action == "publish":
                new = entry(position, chance.choice([None, *range(10), 31, 32, 40]), stored=most > 0)
                backlog.append(new)
                expected.fresh.append(new)
            elif action == "take" and len(backlog):
                out.append(take(backlog, expected))
            elif out and action.startswith("requeue"):
                back = out.pop(-1 if action == "requeue the newest" else 0)
                back.acquired_count += 1
                backlog.put_back(back)
                expected.returned.append(back)
            check(backlog, expected)
        while expected.fresh or expected.returned:
            take(backlog, expected)
        check(backlog, expected)


def test_a_newly_published_message_is_not_marked_as_redelivered() -> None:
    """A message that has just been published is not marked as redelivered, has delivery counts of 0, and is not on
    disk yet. By default, it has no expiration time.
    """
    new = BacklogEntry(entry(1).message, 7, expires_at=5)
    assert (new.position, new.redelivered, new.acquired_count, new.delivery_count) == (7, False, 0, 0)
    assert (new.expires_at, new.row) == (5, 0)
    assert BacklogEntry(entry(1).message, 7).expires_at is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_queue_has_no_next_message(kind: str) -> None:
    """If a queue is empty, because it is new or has been emptied, asking it for the next message raises IndexError."""
    backlog = new_backlog(FakePages(), *KINDS[kind])
    for _ in range(2):
        for ask in (backlog.head, backlog.take):
            with pytest.raises(IndexError):
                ask()
        assert len(backlog) == 0
        backlog.append(entry(1, 9))
        backlog.take()


@pytest.mark.parametrize("kind", KINDS)
def test_a_purge_removes_all_ready_messages_even_those_that_are_paged_out(kind: str) -> None:
    """A purge removes all ready messages from a queue, including those that were requeued or paged out. The queue
    returns the removed messages to the broker, so that it can delete them from disk. The queue can then be used again.
    """
    backlog = new_backlog(FakePages(), *KINDS[kind])
    for position in range(1, 4):
        backlog.append(entry(position))
    requeued = backlog.take()
    backlog.put_back(requeued)
    for position in range(4, 8):
        backlog.append(entry(position, position % 2 * 9, stored=True))
    removed = backlog.clear()
    assert sorted(each if isinstance(each, int) else each.position for each in removed) == [1, 2, 3, 4, 5, 6, 7]
    assert any(isinstance(each, int) for each in removed)
    assert (len(backlog), backlog.body_bytes, [*backlog.in_memory()]) == (0, 0, [])
    again = entry(9)
    backlog.append(again)
    assert (backlog.take(), len(backlog), backlog.body_bytes) == (again, 0, 0)


def test_paged_out_messages_are_read_back_in_batches() -> None:
    """If many messages of a queue are paged out, the queue reads them back 500 at a time. The first message of the
    queue, and each message that was requeued, stay in memory.
    """
    pages = FakePages()
    backlog = Backlog(pages)
    for position in range(1, 1202):
        backlog.append(entry(position, stored=True))
    assert [each.position for each in backlog.in_memory()] == [1]
    assert pages.requests == []
    assert [backlog.take().position for _ in range(1201)] == [*range(1, 1202)]
    assert pages.requests == [500, 500, 200]
    backlog.append(entry(1, stored=True))
    counted = entry(2, stored=True)
    counted.acquired_count = 1
    backlog.append(counted)
    backlog.append(entry(3))
    assert [each.position for each in backlog.in_memory()] == [1, 2, 3]


def test_reading_back_stops_at_the_first_message_that_is_in_memory() -> None:
    """When a queue reads paged-out messages back from disk, a batch ends before the next message that is still in
    memory. The paged-out messages after that message are read in another batch.
    """
    pages = FakePages()
    backlog = Backlog(pages)
    for position, is_stored in ((1, False), (2, True), (3, True), (4, False), (5, True)):
        backlog.append(entry(position, stored=is_stored))
    assert [backlog.take().position for _ in range(5)] == [1, 2, 3, 4, 5]
    assert pages.requests == [2, 1]
