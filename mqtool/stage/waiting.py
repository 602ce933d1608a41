"""Waiting for a condition, never for a fixed time."""

import time
from collections.abc import Callable
from pathlib import Path

from mqtool.errors import MqtoolError

#: Seconds to wait for anything; a busy machine needs some of them.
PATIENCE = 30.0
_BETWEEN_LOOKS = 0.01
_CHUNK = 1024 * 1024


class CheckFailed(MqtoolError):
    """A check of a play failed; the message says what was expected and what happened."""


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], patience: float = PATIENCE) -> None:
    """Wait until a condition is true.

    Args:
        what: what is waited for; a function may add what there is instead.
        patience: seconds.

    Raises:
        CheckFailed: it is not true in time.
    """
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise CheckFailed(f"waited {patience:g} s for {what if isinstance(what, str) else what()}")
        time.sleep(_BETWEEN_LOOKS)


class LineCount:
    """Counts the lines of a growing file; each call reads only what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = self._lines = 0

    def __call__(self) -> int:
        with self._path.open("rb") as file:
            file.seek(self._read)
            while chunk := file.read(_CHUNK):
                self._read += len(chunk)
                self._lines += chunk.count(b"\n")
        return self._lines
