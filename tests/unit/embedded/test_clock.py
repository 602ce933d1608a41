"""The embedded broker's clock: timers, scheduled work, and how clients share the time of the event loop."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from mqtool.broker.embedded.model.clock import Alarm, LoopClock, Timetable, TurnQueue
from tests.unit.embedded.test_queue import FakeClock


class WorkClock(FakeClock):
    """A clock on which only the work that tests do takes time."""

    worked = 0.0

    def elapsed(self) -> float:
        return self.worked

    def work(self, milliseconds: float) -> None:
        self.worked += milliseconds / 1000


def test_every_client_is_served_while_all_clients_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """While 100 clients keep the embedded broker busy with requests that take 1 ms each, every client is served at
    least once before any client is served for the 40th time.
    """
    served = [0] * 100
    milliseconds = 0
    monkeypatch.setattr(LoopClock, "elapsed", lambda _: milliseconds / 1000)

    async def serve_all() -> None:
        clock, loop, done = LoopClock(), asyncio.get_running_loop(), asyncio.Event()

        def serve(client: int) -> None:
            nonlocal milliseconds
            if clock.is_late:
                clock.take_turn(lambda: serve(client))
                return
            milliseconds += 1
            clock.spend(0.001)
            served[client] += 1
            if served[client] == 40:
                done.set()
            loop.call_soon(serve, client)

        for client in range(100):
            serve(client)
        await done.wait()

    asyncio.run(serve_all())
    assert min(served) > 0


def iterations(count: int, begin: Callable[[LoopClock, Callable[[float], None]], object]) -> list[list[object]]:
    """Run an event loop for this many iterations; return what was done in each of them.

    Args:
        begin: gets the clock, and a function that lets milliseconds of work pass; returns a list that is looked at.
    """
    milliseconds, found = 0.0, list[list[object]]()

    def work(more: float) -> None:
        nonlocal milliseconds
        milliseconds += more

    async def run() -> None:
        clock = LoopClock()
        clock.elapsed = lambda: milliseconds / 1000  # type: ignore[method-assign, assignment]
        done: list[object] = begin(clock, work)  # type: ignore[assignment]
        for _ in range(count):
            await asyncio.sleep(0)
            found.append([*done])
            done.clear()

    asyncio.run(run())
    return found


def test_the_brokers_clock_returns_the_time_in_milliseconds() -> None:
    """The broker's clock returns the time in whole milliseconds since 1970. It can call a function after a given number
    of milliseconds of real time.
    """

    async def run() -> None:
        clock, rung = LoopClock(), asyncio.Event()
        before = time.time_ns() // 1_000_000
        now, wall = clock.now(), clock.wall()
        assert before - 1 <= now <= before + 1000
        assert before <= wall <= before + 1000
        assert (type(now), type(wall)) == (int, int)
        clock.call_later(0, rung.set)
        await asyncio.wait_for(rung.wait(), 60)
        timer = cast(asyncio.TimerHandle, clock.call_later(10_000_000, rung.clear))
        assert 9_999 < timer.when() - asyncio.get_running_loop().time() <= 10_000

    asyncio.run(run())


def test_clients_wait_for_the_next_iteration_once_others_have_been_served_for_50_ms() -> None:
    """Once the broker has served clients for more than 50 ms in one iteration of its event loop, the remaining
    clients must wait until the next iteration. Serving a client for up to 0.2 ms does not count towards the 50 ms.
    """

    async def run() -> None:
        clock = LoopClock()
        for _ in range(3):
            assert not clock.is_late
            for _ in range(1000):
                clock.spend(0.0002)
            clock.spend(0.025)
            assert not clock.is_late
            clock.spend(0.025)
            assert not clock.is_late
            clock.spend(0.0003)
            assert clock.is_late
            await asyncio.sleep(0)
            clock.spend(0.051)
            assert clock.is_late
            await asyncio.sleep(0)

    asyncio.run(run())


def test_each_iteration_of_the_event_loop_does_deferred_work_until_10_ms_have_passed() -> None:
    """The broker defers work that is not urgent. In each iteration of its event loop, it does some of this work, in
    order, until more than 10 ms have passed. The rest waits for the next iteration, so that clients are served in
    between.
    """

    def begin(clock: LoopClock, work: Callable[[float], None]) -> list[object]:
        done: list[object] = []

        def turn(number: int, milliseconds: float) -> None:
            done.append(number)
            work(milliseconds)
            if number == 2:
                clock.take_turn(lambda: turn(9, 0))

        for number, milliseconds in enumerate((5, 5, 1, 20, 1, 1)):
            clock.take_turn(lambda number=number, milliseconds=milliseconds: turn(number, milliseconds))  # type: ignore[misc]
        return done

    assert iterations(5, begin) == [[0, 1, 2], [3], [4, 5, 9], [], []]


def test_an_exception_in_deferred_work_does_not_prevent_the_work_after_it() -> None:
    """If a piece of deferred work, which the broker does between serving clients, raises an exception, the event loop
    reports the exception, and the broker still does the next piece of work.
    """

    def begin(clock: LoopClock, _: Callable[[float], None]) -> list[object]:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: done.append(str(context["exception"])))
        done: list[object] = []
        clock.take_turn(lambda: [].pop())
        clock.take_turn(lambda: done.append("next"))
        return done

    assert iterations(3, begin) == [["pop from empty list"], ["next"], []]


def test_a_timer_goes_off_once_at_the_time_that_was_set_last() -> None:
    """A timer of the broker (class Alarm) goes off once, at the time that was set last. set() moves it to any time,
    set_by() only to an earlier one. A cancelled timer does not go off. A timer that is set to a time in the past goes
    off immediately.
    """
    clock, rung = FakeClock(), list[int]()
    begin = clock.now()
    alarm = Alarm(clock, lambda: rung.append(clock.now() - begin))
    for at in (50, 100):
        alarm.set(begin + at)
    for at in (200, 90, 90, 120):
        alarm.set_by(begin + at)
    clock.pass_by(1000)
    assert rung == [90]
    alarm.set(begin + 1500)
    alarm.cancel()
    alarm.cancel()
    clock.pass_by(1000)
    assert rung == [90]
    alarm.set_by(begin + 2500)
    clock.pass_by(500)
    alarm.set(begin)
    clock.pass_by(0)
    assert rung == [90, 2500, 2500]


def test_a_timer_checks_the_system_clock_each_minute() -> None:
    """While the machine sleeps, the event loop's timers stop but the system clock does not. A timer of the broker
    (class Alarm) therefore checks the system clock at least once a minute, so after a sleep it is at most a minute
    late.
    """
    clock, rung = FakeClock(), list[int]()
    begin = clock.now()
    alarm = Alarm(clock, lambda: rung.append(clock.now() - begin))
    alarm.set(begin + 150_000)
    clock.pass_by(59_999)
    clock.now = lambda: begin + 150_000  # type: ignore[method-assign]
    clock.pass_by(1)
    assert rung == [150_000]


def test_a_timer_that_is_due_in_several_minutes_goes_off_on_time() -> None:
    """A timer of the broker (class Alarm) checks the system clock at least once a minute. A timer that is due in
    several minutes still goes off only once, at the time that was set.
    """
    clock, rung = FakeClock(), list[int]()
    begin = clock.now()
    Alarm(clock, lambda: rung.append(clock.now() - begin)).set(begin + 150_000)
    clock.pass_by(1_000_000)
    assert rung == [150_000]


def test_items_of_a_timetable_are_handled_in_order_when_they_are_due() -> None:
    """The broker keeps items that become due later, such as delayed messages, in a timetable. It handles each item
    when it is due, and items that are due at the same time in the order in which they were added. If many items are
    due at the same time, the broker handles them in several turns of its event loop, and calls a given function at
    the end of each turn.
    """
    clock, passed, ends = WorkClock(), list[str](), list[int]()

    def due(item: str) -> None:
        passed.append(item)
        clock.work(5)

    table = Timetable(clock, due, lambda: ends.append(len(passed)))
    begin = clock.now()
    for at, item in ((200, "e"), (100, "c"), (200, "d"), (100, "b"), (100, "f"), (100, "a"), (900, "z")):
        table.add(begin + at, item)
    assert table.first(3) == ["c", "b", "f"]
    assert table.first(9) == [*"cbfaedz"]
    clock.pass_by(99)
    assert passed == []
    clock.pass_by(1)
    assert (passed, ends) == ([*"cbfa"], [3, 4])
    clock.pass_by(100)
    assert passed == [*"cbfaed"]
    assert table.clear() == ["z"]
    clock.pass_by(1000)
    assert (passed, table.first(9)) == ([*"cbfaed"], [])


def test_a_scheduled_task_that_takes_long_is_run_in_steps() -> None:
    """If a task that the broker has scheduled for a certain time, such as publishing a delayed message, takes long,
    the broker runs it in steps, in several turns of its event loop. It begins no other scheduled task before the last
    step, not even one that was due earlier but was added later.
    """
    clock, passed = WorkClock(), list[str]()

    def steps(item: str) -> Iterator[None]:
        for number in range(4):
            passed.append(f"{item}{number}")
            clock.work(6)
            yield

    table = Timetable(clock, steps)
    for item in "ab":
        table.add(clock.now(), item)
    turns: list[Callable[[], object]] = []
    clock.take_turn = turns.append  # type: ignore[method-assign, assignment]
    clock.pass_by(0)
    assert passed == ["a0", "a1"]
    table.add(clock.now() - 5, "c")
    clock.pass_by(5)
    assert passed == ["a0", "a1"]
    while turns:
        turns.pop()()
        assert len(turns) <= 1
    assert passed == [f"{item}{number}" for item in "acb" for number in range(4)]


def test_queued_work_is_handled_immediately_until_it_has_taken_10_ms() -> None:
    """The broker has queues of internal work. It handles the items in such a queue immediately and in order until 10
    ms have passed, and the rest in later turns of its event loop. An item that is added while another item is being
    handled comes after that item.
    """
    clock, handled = WorkClock(), list[str]()

    def handle(item: str) -> None:
        handled.append(item)
        clock.work(5)
        if item == "b":
            queue.add("added")
            handled.append("end of b")

    queue = TurnQueue(clock, handle)
    for item in "abcde":
        queue.add(item)
    assert handled == ["a", "b", "end of b", "added"]
    for more in (["c", "d", "e"], [], []):
        before = len(handled)
        clock.pass_by(0)
        assert handled[before:] == more
    queue.add("f")
    assert handled[-1] == "f"


def test_queued_work_that_takes_long_is_handled_in_steps() -> None:
    """If an item of the broker's internal work takes long to handle, the broker handles it in steps, and the items
    after it wait until the last step. If handling an item raises an exception, the broker handles the items after it in
    the next turn of its event loop.
    """
    clock, handled = WorkClock(), list[str]()

    def handle(item: str) -> Iterator[None]:
        for number in range(3):
            handled.append(f"{item}{number}")
            clock.work(7)
            if item == "x":
                raise RuntimeError("broken")
            yield

    queue = TurnQueue(clock, handle)
    for item in "ab":
        queue.add(item)
    assert handled == ["a0", "a1"]
    clock.pass_by(0)
    assert handled == ["a0", "a1", "a2", "b0", "b1", "b2"]
    handled.clear()
    with pytest.raises(RuntimeError, match="broken"):
        queue.add("x")
    queue.add("c")
    clock.pass_by(0)
    assert handled[0] == "x0"
    assert [each for each in handled if each[0] == "c"] == ["c0", "c1", "c2"]


def test_a_broker_that_stops_finishes_waiting_tasks_until_a_deadline() -> None:
    """When the broker stops, it calls finish() on its queues of internal tasks, such as dead-lettering messages.
    finish() runs tasks until a deadline, drops those that have not ended by then, and returns the number of dropped
    tasks. A dropped task is not run later.
    """
    clock, handled = WorkClock(), list[str]()

    def handle(item: str) -> Iterator[None]:
        for _ in range(2):
            handled.append(item)
            clock.work(6)
            yield

    queue = TurnQueue(clock, handle)
    for item in "abcde":
        queue.add(item)
    assert handled == [*"aa"]
    assert queue.finish(clock.elapsed() + 0.020) == 3
    assert handled == [*"aabbcc"]
    clock.pass_by(1000)
    assert handled == [*"aabbcc"]
    assert queue.finish(clock.elapsed() + 0.020) == 0
