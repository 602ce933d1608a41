"""The thread that pika's I/O loop runs on."""

import logging
import threading
from collections.abc import Callable

from pika.adapters.select_connection import IOLoop

# pika logs what it also raises; --debug shows it.
_log = logging.getLogger("pika")
_log.addHandler(logging.NullHandler())

_PATIENCE = 2.0


class IoThread:
    """Runs functions one after another, and everything that pika calls back.

    Attributes:
        loop: pika's.

    Args:
        on_death: called with what a callback raised. That ends the thread, and is a bug.
    """

    def __init__(self, on_death: Callable[[Exception], None]) -> None:
        self.loop = IOLoop()
        self._on_death = on_death
        self._thread = threading.Thread(target=self._run, name="mqtool-amqp", daemon=True)
        self._thread.start()

    def run(self, callback: Callable[[], None]) -> None:
        """Run a function soon. From any thread."""
        self.loop.add_callback_threadsafe(callback)

    def run_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run a function after a delay. From any thread."""

        def start() -> None:
            self.loop.call_later(seconds, callback)

        self.run(start)

    def stop(self) -> None:
        """End the thread."""
        self.run(self.loop.stop)
        self._thread.join(_PATIENCE)
        if not self._thread.is_alive():
            self.loop.close()

    def _run(self) -> None:
        try:
            self.loop.start()
        except Exception as error:  # nobody who waits for an answer would ever be woken
            _log.exception("the I/O thread has died")
            self._on_death(error)
