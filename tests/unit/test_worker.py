"""The worker: which deliveries it acknowledges, when, and what it counts, with plain callables for the broker."""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from mqtool.amqp import Receiving
from mqtool.errors import MqtoolError, NotConfirmed, StoppedWaiting, Unavailable
from mqtool.message import Delivery
from mqtool.topology import Queue
from mqtool.work.deduplication import HandledMessages, MessageKey
from mqtool.work.runner import Ending
from mqtool.work.worker import CommandBroken, Worker


def job(tag: int, message_id: str | None = None, **headers: object) -> Delivery:
    return Delivery(b"job", "", "jobs", "jobs", False, {"message_id": message_id, "headers": headers}, tag)


class FakeChannel:
    """Delivers the given messages, and records the tags of those that are acknowledged.

    Args:
        error: raised after the last delivery.
    """

    cluster = "rabbit@host/"

    def __init__(self, *deliveries: Delivery, error: MqtoolError | None = None) -> None:
        self.deliveries = deliveries
        self.error = error
        self.acknowledged: list[int] = []
        self.lost: set[int] = set()
        self.late: set[int] = set()
        self.stopping = False
        self.receiving: Receiving | None = None

    def consume(self, queue: Queue, receiving: Receiving) -> Iterator[Delivery]:
        assert queue.name == "jobs"
        self.receiving = receiving
        return self._delivered()

    def _delivered(self) -> Iterator[Delivery]:
        for delivery in self.deliveries:
            if self.stopping:
                return
            yield delivery
        if self.error is not None:
            raise self.error

    def acknowledge(self, delivery: Delivery) -> None:
        if self.is_current(delivery):
            self.acknowledged.append(delivery.delivery_tag)

    def is_current(self, delivery: Delivery) -> bool:
        return delivery.delivery_tag not in self.lost

    def timed_out(self, delivery: Delivery) -> bool:
        return delivery.delivery_tag in self.late

    def stop(self) -> None:
        self.stopping = True


class Job:
    """A program with a given ending for each delivery tag. A message with exit status 1 is retried, others are not."""

    def __init__(self, endings: dict[int, Ending | Exception], *, moves: bool = True) -> None:
        self.endings = endings
        self.moves = moves
        self.ran: list[int] = []
        self.moved: list[int] = []

    def run(self, delivery: Delivery) -> Ending:
        self.ran.append(delivery.delivery_tag)
        ending = self.endings.get(delivery.delivery_tag, Ending(0))
        if isinstance(ending, Exception):
            raise ending
        return ending

    def retry_or_dead_letter(self, delivery: Delivery, ending: Ending) -> bool:
        if not self.moves:
            raise NotConfirmed("no answer")
        self.moved.append(delivery.delivery_tag)
        return ending.status == 1


def working(
    channel: FakeChannel,
    program: Job,
    handled: HandledMessages | None = None,
    concurrency: int = 1,
    notice: Callable[[str], None] = lambda _: None,
) -> tuple[Worker, Callable[[], None]]:
    """Return a worker, and the function that runs it."""
    job = cast(Any, program)
    worker = Worker(cast(Any, channel), job, job, concurrency, notice, handled)
    return worker, worker.start_consuming(Queue("jobs"), Receiving(1))


@pytest.fixture
def handled(tmp_path: Path) -> HandledMessages:
    return HandledMessages(tmp_path / "handled.db", 60.0)


@pytest.mark.parametrize("deduplicates", [True, False])
def test_a_message_is_acknowledged_once_it_has_been_handled_or_moved(
    handled: HandledMessages, *, deduplicates: bool
) -> None:
    """A worker acknowledges and counts a message once the worker's program has handled the message successfully, or
    once the message has been moved to a wait queue or a dead-letter queue.
    """
    channel = FakeChannel(job(1, "a"), job(2, "b"), job(3, "c"), job(4))
    program = Job({2: Ending(1), 3: Ending(65)})
    worker, work = working(channel, program, handled if deduplicates else None)
    assert channel.receiving == Receiving(1, acknowledge=False)
    work()
    assert channel.acknowledged == [1, 2, 3, 4]
    assert program.moved == [2, 3]
    assert worker.counts == {"done": 2, "retry": 1, "dead": 1}
    assert worker.in_hand == 0


@pytest.mark.parametrize("message_id", ["a", None])
def test_a_message_that_could_not_be_moved_is_not_acknowledged(
    handled: HandledMessages, message_id: str | None
) -> None:
    """If a failed message cannot be moved to its wait queue, the worker does not acknowledge the message, and ends with
    the error. With `--deduplicate`, the next worker can handle the message.
    """
    channel = FakeChannel(job(1, message_id), job(2))
    worker, work = working(channel, Job({1: Ending(1)}, moves=False), handled)
    with pytest.raises(NotConfirmed, match="no answer"):
        work()
    assert (channel.acknowledged, channel.stopping, worker.counts, worker.in_hand) == ([], True, {}, 0)
    assert handled.begin(MessageKey(channel.cluster, "jobs", "a"), lambda: True) is None


@pytest.mark.parametrize("status", [126, 127])
def test_a_program_that_cannot_be_run_ends_the_worker(handled: HandledMessages, status: int) -> None:
    """If a worker's program cannot be run (exit status 126 or 127), the worker ends with an error, and the message
    stays in its queue. A program that was killed at its timeout does not end the worker, even if its exit status is 126
    or 127.
    """
    channel = FakeChannel(job(1, "a"), job(2, "b"))
    _, work = working(channel, Job({1: Ending(status, timed_out=1.0), 2: Ending(status)}), handled)
    with pytest.raises(CommandBroken, match=f"^the program cannot be run: {Ending(status).reason}") as error:
        work()
    assert error.value.hint == "the message is still in its queue; correct --exec"
    assert channel.acknowledged == [1]


@pytest.mark.parametrize("deduplicates", [True, False])
def test_a_message_whose_connection_was_lost_is_neither_moved_nor_acknowledged(
    handled: HandledMessages, *, deduplicates: bool
) -> None:
    """If the connection is lost while a worker's program is handling a message, the worker does not move the message,
    and counts it as lost, not done. One notice says that the broker will deliver the message again. With
    `--deduplicate`, the program runs for the redelivered message only if the program failed the first time.
    """
    channel, notices = FakeChannel(job(1, "a"), job(2, "b"), job(3, "c")), list[str]()
    channel.lost = {1, 2}
    store = handled if deduplicates else None
    worker, work = working(channel, Job({2: Ending(1)}), store, notice=notices.append)
    work()
    assert (channel.acknowledged, worker.counts) == ([3], {"done": 1, "lost": 2})
    assert notices == ["the delivery was lost while the program ran: the broker delivers the message again"]
    again, program = FakeChannel(job(4, "a"), job(5, "b")), Job({})
    worker, work = working(again, program, store)
    work()
    assert program.ran == ([5] if deduplicates else [4, 5])
    assert again.acknowledged == [4, 5]


@pytest.mark.parametrize(
    ("is_late", "status", "deduplicates", "ends"),
    [(True, 0, False, True), (True, 1, True, True), (True, 0, True, False), (False, 0, False, False)],
    ids=["again", "failed with --deduplicate", "success is stored", "the connection was lost"],
)
def test_a_redelivered_message_that_takes_too_long_again_ends_the_worker(
    handled: HandledMessages, *, is_late: bool, status: int, deduplicates: bool, ends: bool
) -> None:
    """If the broker takes a redelivered message back because of its consumer timeout, the worker ends with an error,
    unless --deduplicate has stored that the message was handled.
    """
    channel = FakeChannel(replace(job(1, "a"), redelivered=True))
    channel.lost, channel.late = {1}, {1} if is_late else set()
    _, work = working(channel, Job({1: Ending(status)}), handled if deduplicates else None)
    with pytest.raises(Unavailable, match="message a was redelivered, and again not") if ends else nullcontext():
        work()
    assert channel.stopping == ends


def test_a_duplicate_is_acknowledged_without_running_the_program(handled: HandledMessages) -> None:
    """If a message was handled successfully or dead-lettered, a worker with `--deduplicate` acknowledges a copy of it
    without running the program, and a notice says why. The worker does run the program for a message that is retried,
    and for a dead letter that was moved back.
    """
    program = Job({2: Ending(65), 3: Ending(1)})
    working(FakeChannel(job(1, "a"), job(2, "b"), job(3, "c")), program, handled)[1]()
    channel, notices = (
        FakeChannel(job(4, "a"), job(5, "b"), job(6, "c"), job(7, "b", **{"mqtool-redrives": 1})),
        list[str](),
    )
    worker, work = working(channel, program, handled, notice=notices.append)
    work()
    assert program.ran == [1, 2, 3, 6, 7]
    assert channel.acknowledged == [4, 5, 6, 7]
    assert worker.counts == {"suppressed": 2, "done": 2}
    assert notices == [
        "message a was done before: acknowledged, not done again",
        "message b was dead-lettered before: acknowledged, not done again",
    ]


def test_a_worker_can_be_stopped_while_another_one_handles_a_copy(handled: HandledMessages) -> None:
    """If a worker is stopped while it waits for another worker that is handling a copy of its message, the stopped
    worker ends without an error, and without acknowledging the message.
    """
    channel, program = FakeChannel(job(1, "a")), Job({})
    handled.begin(MessageKey(channel.cluster, "jobs", "a"))
    worker, work = working(channel, program, handled)
    threading.Timer(0.1, channel.stop).start()
    work()
    assert (channel.acknowledged, program.ran, worker.counts) == ([], [], {})


def test_with_a_concurrency_of_3_three_programs_run_at_the_same_time() -> None:
    """With a concurrency of 3, a worker runs three programs at the same time, and its count of messages in progress is
    3.
    """
    together, seen = threading.Barrier(3, timeout=20), list[int]()
    channel = FakeChannel(*(job(tag) for tag in range(1, 7)))

    class Meeting(Job):
        def run(self, delivery: Delivery) -> Ending:
            together.wait()
            seen.append(worker.in_hand)
            together.wait()
            return super().run(delivery)

    worker, work = working(channel, Meeting({}), concurrency=3)
    work()
    assert seen == [3] * 6
    assert sorted(channel.acknowledged) == [1, 2, 3, 4, 5, 6]
    assert worker.in_hand == 0


def test_running_programs_finish_before_the_worker_ends_with_an_error() -> None:
    """If an error in the worker itself interrupts the handling of a message, the programs that are already running
    finish, and the worker acknowledges their messages. The worker then ends with this error.
    """
    failed, channel = threading.Event(), FakeChannel(job(1), job(2), job(3))

    class Slow(Job):
        def run(self, delivery: Delivery) -> Ending:
            if delivery.delivery_tag == 1:
                assert failed.wait(20)
                return super().run(delivery)
            failed.set()
            return super().run(delivery)

    _, work = working(channel, Slow({2: ValueError("first")}), concurrency=2)
    with pytest.raises(ValueError, match="first"):
        work()
    assert 1 in channel.acknowledged
    assert 2 not in channel.acknowledged


def test_a_worker_that_is_stopped_while_its_connection_is_blocked_reports_the_unconfirmed_retry() -> None:
    """If the program of `worker` fails while the broker blocks the connection, `worker` can neither publish the message
    again for a retry nor cancel its consumer. If a signal stops `worker` in this state, it raises NotConfirmed, because
    the retry was not confirmed, and does not acknowledge the original message.
    """
    channel = FakeChannel(job(1), error=StoppedWaiting("stopped: the broker blocks publishers"))
    _, work = working(channel, Job({1: Ending(1)}, moves=False), concurrency=2)
    with pytest.raises(NotConfirmed, match="no answer"):
        work()
    assert channel.acknowledged == []


def test_a_lost_channel_ends_the_worker_immediately() -> None:
    """If the channel is lost, the worker raises the channel's error immediately, without waiting for
    running programs.
    """
    never = threading.Event()
    channel = FakeChannel(job(1), error=Unavailable("the queue was deleted"))

    class Waiting(Job):
        def run(self, delivery: Delivery) -> Ending:
            never.wait(20)
            return super().run(delivery)

    _, work = working(channel, Waiting({}), concurrency=2)
    with pytest.raises(Unavailable, match="the queue was deleted"):
        work()
    assert channel.acknowledged == []
    never.set()
