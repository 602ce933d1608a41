"""Waiting for any broker to accept connections."""

import time
from collections.abc import Callable
from typing import TypeVar

from mqtool.errors import TimedOut, Unavailable

T = TypeVar("T")

_PAUSE = 0.1


def connect_within(seconds: float, connect: Callable[[], T]) -> T:
    """Try to connect until it works.

    Raises:
        TimedOut: it did not work in time; the message says why the last attempt failed.
        AccessRefused: the broker refuses the login, so waiting does not help.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except Unavailable as error:
            if time.monotonic() + _PAUSE >= deadline:
                raise TimedOut(f"no broker within {seconds:g} s: {error}", error.hint) from error
        time.sleep(_PAUSE)
