"""Broker processes in the background, with and without /proc."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqtool.broker import background
from tests.cli.shell import wait_until


@pytest.fixture(params=["with /proc", "without /proc"])
def process(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A process that waits until the test ends; macOS has no /proc."""
    if request.param == "without /proc":
        monkeypatch.setattr(background, "_PROC", tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as waiting:
        yield waiting.pid
        waiting.kill()


def test_a_running_process_is_recognized_in_another_time_zone_or_language(process: int) -> None:
    """A process that mqtool has started counts as running until it has ended. mqtool recognizes the process by its
    start time, even if the user later calls mqtool with another time zone (TZ) or language (LC_ALL).
    """
    started = background.started(process)
    assert background.is_running(started)
    with pytest.MonkeyPatch.context() as other_terminal:
        other_terminal.setenv("TZ", "Asia/Tokyo")
        other_terminal.setenv("LC_ALL", "de_DE.UTF-8")
        assert background.is_running(started)
    background.terminate([started], 60)
    assert not background.is_running(started)


def test_a_suspended_broker_process_is_terminated(process: int) -> None:
    """`broker down` ends a broker process even if the process is suspended (SIGSTOP)."""
    started = background.started(process)
    os.kill(process, signal.SIGSTOP)
    background.terminate([started], 60)
    assert not background.is_running(started)


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_a_process_counts_as_running_until_its_last_thread_has_ended() -> None:
    """If the main thread of a process has ended, but another of its threads is still running, mqtool counts the process
    as running: its sockets are still open, so its port may still be in use.
    """
    program = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[sys.argv[1]], 0)  # ends the main thread only
"""
    with subprocess.Popen([sys.executable, "-c", program, platform.machine()], stdin=subprocess.PIPE) as process:
        started = background.started(process.pid)
        stat = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: ") Z " in stat.read_text(), "the main thread to end")
        assert background.is_running(started)
        process.kill()
        process.wait()
    assert not background.is_running(started)


def test_another_process_with_the_same_id_is_not_taken_for_the_broker(process: int) -> None:
    """Because operating systems reuse process ids, mqtool considers a process with the broker's recorded process id to
    be the broker only if the process also has the recorded start time.
    """
    assert not background.is_running(background.started(process)._replace(born="earlier"))
