"""Waiting for conditions, never for a time."""

import time
from collections.abc import Callable
from pathlib import Path

from mqtool.errors import MqtoolError

#: Seconds after which something that should have happened will not. A busy machine may need a few of them.
PATIENCE = 30.0
_BETWEEN_LOOKS = 0.01
_CHUNK = 1024 * 1024


class NotSo(MqtoolError):
    """Something in a play was not as it must be; the message says what was expected and what came."""


def wait_until(condition: Callable[[], object], what: Callable[[], str], patience: float = PATIENCE) -> None:
    """Wait until a condition holds.

    Args:
        what: says what was waited for, and what there is instead.
        patience: seconds.

    Raises:
        NotSo: it does not come to hold.
    """
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise NotSo(f"waited {patience:g} s in vain for {what()}")
        time.sleep(_BETWEEN_LOOKS)


class LineCount:
    """How many lines a growing file has; each look reads only what has come since the last."""

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
