"""The thread that waits for the disk while the event loop goes on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future


class Writer:
    """Does one piece of work at a time on a thread.

    Args:
        executor: has the thread.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._in_flight: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self._in_flight is not None

    def submit(self, work: Callable[[], None], then: Callable[[BaseException | None], None]) -> None:
        """Start work on the thread, and call `then` on the event loop with its error, or None, once it is done."""
        self._in_flight = future = self._executor.submit(work)
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._done, future, then))

    def _done(self, future: "Future[None]", then: Callable[[BaseException | None], None]) -> None:
        if self._in_flight is future:
            self._in_flight = None
            then(future.exception())

    def stop(self) -> BaseException | None:
        """Wait for the work in flight, if any, and return its error, if any. Its `then` is not called."""
        self._executor.shutdown()
        future, self._in_flight = self._in_flight, None
        return None if future is None else future.exception()
