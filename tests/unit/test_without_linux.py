"""mqtool on systems that lack a part of Linux or glibc, such as macOS. Each test takes one such part away."""

import asyncio
import ctypes
import fcntl
import os
import resource
import subprocess
import sys
import termios
import threading
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from mqtool.benching import client_process, run
from mqtool.benching.client_process import CpuTime
from mqtool.benching.run import BrokerUse
from mqtool.broker.embedded import __main__ as main
from mqtool.broker.embedded.http import node_routes
from mqtool.cli.display import delivery_writer, output
from mqtool.management import Management
from mqtool.work import deduplication
from mqtool.work.deduplication import HandledMessages, Interrupted, MessageKey
from mqtool.work.runner import Runner, RunnerRequest

MISSING = Path("/nonexistent")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A runner of programs on a system with neither pidfd_open() nor, as macOS before Python 3.13, waitid()."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.delattr(os, "waitid", raising=False)
    return Runner([], dict(os.environb))


def shell(script: str, *, timeout: float | None = None) -> RunnerRequest:
    return RunnerRequest("/bin/sh", [b"sh", b"-c", script.encode()], {}, b"body", timeout, capture=1000)


def test_a_programs_end_is_noticed_without_pidfd_open(runner: Runner) -> None:
    """On systems without pidfd_open(), `worker --exec` still gets a program's output, and its exit status or the signal
    that ended it.
    """
    ending = runner.run(shell("cat; echo problem >&2; exit 3"))
    assert (ending.status, ending.stdout, ending.stderr) == (3, b"body", b"problem\n")
    assert runner.run(shell("kill -9 $$")).status == 137


def test_a_program_is_killed_at_its_timeout_without_pidfd_open(runner: Runner) -> None:
    """On systems without pidfd_open(), `worker --exec` still kills a program that exceeds its timeout."""
    ending = runner.run(shell("exec sleep 60", timeout=0.05))
    assert (ending.status, ending.timed_out) == (137, 0.05)


def test_without_malloc_trim_freed_memory_is_left_to_the_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems without glibc's malloc_trim(), the embedded broker leaves freed memory to the C library, and raises no
    error.
    """
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    main._return_memory()


def test_without_proc_the_broker_returns_no_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems without /proc, the embedded broker cannot find out how much memory it uses, so it does not return
    freed memory to the system.
    """
    monkeypatch.setattr(main, "_STATM", MISSING)
    returned = Mock()
    monkeypatch.setattr(main, "_return_memory", returned)
    ledger = Mock(held_bytes=1 << 30)
    memory = main._Memory(ledger, Mock(has_frozen=False))

    async def emptied() -> None:
        memory.check()
        ledger.held_bytes = 0
        memory.check()

    asyncio.run(emptied())
    returned.assert_not_called()


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_without_proc_the_management_api_reports_the_peak_memory_use(
    monkeypatch: pytest.MonkeyPatch, platform: str, unit: int
) -> None:
    """On systems without /proc, the embedded broker's management API reports the broker's peak memory use in bytes,
    whether the system counts it in bytes, as macOS does, or in kilobytes.
    """
    monkeypatch.setattr(node_routes, "_STATM", MISSING)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=50_000))
    assert node_routes.resident_bytes() == 50_000 * unit


def test_without_proc_a_message_waits_while_another_process_handles_a_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On systems without /proc, `worker --deduplicate` does not handle a message while another process is handling a
    copy of it. If that process ends without having handled the copy, the worker handles the message.
    """
    monkeypatch.setattr(deduplication, "_PROC", MISSING)
    assert deduplication._process_name(os.getpid()) == str(os.getpid())
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert deduplication._process_name(ended.pid) is None

    key = MessageKey("broker", "jobs", "1")
    first, second = HandledMessages(tmp_path / "store", 60), HandledMessages(tmp_path / "store", 60)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        first._owner = str(other.pid)
        assert first.begin(key) is None
        with pytest.raises(Interrupted):
            second.begin(key, give_up=lambda: True)
    assert second.begin(key) is None


def test_without_schedstat_a_bench_client_reports_that_it_never_waited_for_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On systems without /proc/self/schedstat, a `bench` client cannot measure how long it has waited for a CPU, and
    reports that it has never waited.
    """
    monkeypatch.setattr(client_process, "_WAITED", MISSING)
    now = CpuTime.now()
    assert now.used > 0
    assert now.waited == 0


def test_bench_reports_memory_from_the_management_api_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems without /proc, `bench` gets the broker's memory use from the management API, and reports no CPU time
    for the broker.
    """
    monkeypatch.setattr(run, "_PROC", MISSING)
    api = Mock(Management)
    api.items.return_value = [{"os_pid": str(os.getpid()), "mem_used": 5}]
    use = BrokerUse(lambda: api)
    use.begin()
    assert use.end() == (None, 5)


class MacPipe:
    """A pipe as stdout, as on macOS: at its writing end, FIONREAD reports 0, and fstat() the number of unread bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reader, self.writer = os.pipe()
        self._lock = threading.Lock()  # closes both ends at once, as a process that ends does
        self._ioctl, self._fstat = fcntl.ioctl, os.fstat
        monkeypatch.setattr(delivery_writer, "STDOUT", self.writer)
        monkeypatch.setattr(delivery_writer, "_FORGETS", True)
        monkeypatch.setattr(output, "is_pipe", lambda: True)
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)
        monkeypatch.setattr(os, "fstat", self.fstat)

    def ioctl(self, _descriptor: int, _request: int, count: Any) -> int:
        count[0] = 0
        return 0

    def fstat(self, descriptor: int) -> Any:
        count = array("i", [0])
        with self._lock:
            if descriptor == self.writer and self.reader >= 0:
                self._ioctl(self.reader, termios.FIONREAD, count)
        return SimpleNamespace(st_size=count[0])

    def leave(self) -> None:
        with self._lock:
            os.close(self.reader)
            self.reader = -1


def test_on_macos_receive_waits_until_the_reader_has_read_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """If `receive` writes a message into a pipe, it waits until the pipe's reader has read the message before it
    acknowledges the message, even on macOS, where FIONREAD at the writing end of a pipe does not count unread bytes.
    """
    pipe = MacPipe(monkeypatch)
    os.write(pipe.writer, b"one\n")
    waiting = threading.Thread(target=delivery_writer._wait_until_taken)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert os.read(pipe.reader, 100) == b"one\n"
    waiting.join(10)
    assert not waiting.is_alive()
    delivery_writer._wait_until_taken()


def test_on_macos_receive_notices_that_the_reader_has_closed_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS, if `receive` writes to a pipe, and the reader closes the pipe before it has read a message, `receive`
    raises ReaderGone and does not count that message as read.
    """
    pipe = MacPipe(monkeypatch)
    os.write(pipe.writer, b"one\n")
    leaving = threading.Timer(0.05, pipe.leave)
    leaving.start()
    with pytest.raises(output.ReaderGone):
        delivery_writer._wait_until_taken()
    leaving.join()
    with pytest.raises(output.ReaderGone):
        delivery_writer._wait_until_taken()
