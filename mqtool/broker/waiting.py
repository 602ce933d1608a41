"""Waiting for a broker, whoever has started it."""

import time
from collections.abc import Callable
from typing import TypeVar

from mqtool.errors import TimedOut, Unavailable

T = TypeVar("T")

_PAUSE = 0.1


def connect_within(seconds: float, connect: Callable[[], T]) -> T:
    """Try to connect until it works.

    Raises:
        TimedOut: it did not in time; says how the last attempt failed.
        AccessRefused: the broker is there, and does not let us in; waiting would not help.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except Unavailable as error:
            if time.monotonic() + _PAUSE >= deadline:
                raise TimedOut(f"no broker within {seconds:g} s: {error}", error.hint) from error
        time.sleep(_PAUSE)
