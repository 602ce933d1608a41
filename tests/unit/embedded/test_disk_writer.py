"""The thread in which the embedded broker writes to the disk."""

import asyncio
import threading

import pytest

from mqtool.broker.embedded.store.disk import DISK
from mqtool.broker.embedded.store.writer import Writer


@pytest.mark.parametrize("error", [None, OSError("disk full"), KeyboardInterrupt()])
def test_the_event_loop_keeps_running_while_a_thread_writes(error: BaseException | None) -> None:
    """While a thread of the embedded broker writes to the disk, the broker's event loop keeps running. Once the write
    has ended, the event loop calls the write's callback with the error, or with None if there was no error.
    """
    may_end, threads = threading.Event(), set[int]()

    def work() -> None:
        threads.add(threading.get_ident())
        assert may_end.wait(30)
        if error is not None:
            raise error

    async def run() -> None:
        writer = Writer(DISK.writer())
        assert not writer.is_busy
        for _ in range(2):
            may_end.clear()
            done = asyncio.get_running_loop().create_future()
            writer.submit(work, done.set_result)
            await asyncio.sleep(0)
            assert (writer.is_busy, done.done()) == (True, False)
            may_end.set()
            assert await asyncio.wait_for(done, 30) is error
            assert not writer.is_busy
        assert writer.stop() is None

    asyncio.run(run())
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("error", [None, OSError("disk full")])
def test_a_broker_that_stops_waits_for_the_write_in_progress(error: OSError | None) -> None:
    """When the broker stops, Writer.stop() waits for the write in progress. If this write fails, Writer.stop()
    returns the error, and the event loop does not report the error a second time.
    """
    may_end, called = threading.Event(), list[object]()

    def work() -> None:
        assert may_end.wait(30)
        if error is not None:
            raise error

    async def run() -> None:
        writer = Writer(DISK.writer())
        writer.submit(work, called.append)
        asyncio.get_running_loop().run_in_executor(None, may_end.set)
        assert writer.stop() is error
        assert not writer.is_busy
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(run())
    assert called == []


def test_the_broker_has_one_thread_for_writing_to_the_disk() -> None:
    """The broker has one thread for writing to the disk, so that writes are done in order. The thread's name begins
    with `embedded-broker-writer`, by which it can be found in a profile.
    """
    started, done = threading.Barrier(2), list[tuple[int, str]]()

    def work(number: int) -> None:
        done.append((number, threading.current_thread().name))

    with DISK.writer() as executor:
        executor.submit(started.wait, 30)
        futures = [executor.submit(work, number) for number in range(3)]
        assert not any(each.done() for each in futures)
        started.wait(30)
    assert done == [(number, "embedded-broker-writer_0") for number in range(3)]
