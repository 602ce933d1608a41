"""Calls to a broker's loop from any thread."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_PATIENCE = 30.0
T = TypeVar("T")


class Calls:
    """Runs functions on a loop. Make it there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def __call__(self, what: Callable[[], T]) -> T:
        """Run it, and return what it returns.

        Raises:
            RuntimeError: the loop is closed.
        """
        if threading.get_ident() == self._thread:
            return what()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(what())
            # Whoever asked gets it.
            except BaseException as error:
                future.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return future.result(_PATIENCE)


def on_a_loop() -> bool:
    """Whether the caller is on an event loop, which waiting would hold up."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
