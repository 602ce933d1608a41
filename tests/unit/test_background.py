"""Broker processes in the background, with and without /proc."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqtool.broker import background


@pytest.fixture(params=["with /proc", "without /proc"])
def process(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A process that waits until the test ends; macOS has no /proc."""
    if request.param == "without /proc":
        monkeypatch.setattr(background, "_PROC", tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as waiting:
        yield waiting.pid
        waiting.kill()


def test_a_process_counts_as_running_until_it_has_ended(process: int) -> None:
    """A process that mqtool started counts as running until it has ended, even if the time zone (TZ) or the language
    (LC_ALL) has changed since it was started.
    """
    started = background.started(process)
    assert background.is_running(started)
    with pytest.MonkeyPatch.context() as other_terminal:
        other_terminal.setenv("TZ", "Asia/Tokyo")
        other_terminal.setenv("LC_ALL", "de_DE.UTF-8")
        assert background.is_running(started)
    background.terminate([started], 60)
    assert not background.is_running(started)


def test_another_process_with_the_same_id_is_not_taken_for_the_broker(process: int) -> None:
    """Because operating systems reuse process ids, mqtool considers a process with the broker's recorded process id to
    be the broker only if the process also has the recorded start time.
    """
    assert not background.is_running(background.started(process)._replace(born="earlier"))
