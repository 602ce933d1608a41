"""Writing to stdout in lots: each write is a system call."""

from mqtool.cli.display import output
from mqtool.errors import MqtoolError

#: Bytes that are put off at most.
_LOT = 1 << 16


class Together:
    """Puts off what is written, until there is much of it or flush() is called."""

    def __init__(self) -> None:
        self._lot: list[bytes] = []
        self._size = 0
        self._failure: MqtoolError | None = None

    def add(self, data: bytes) -> None:
        """Write it with what comes next. Raises as flush() does."""
        self._lot.append(data)
        self._size += len(data)
        if self._size >= _LOT:
            self.flush()

    def flush(self) -> None:
        """Write what was put off.

        Raises:
            ReaderGone: nobody reads it any more.
            MqtoolError: it cannot be written.
        """
        if self._failure is not None:  # what it was about is lost, and must not count as printed
            raise self._failure
        if self._lot:
            lot, self._lot, self._size = self._lot, [], 0
            try:
                output.write(b"".join(lot))
            except MqtoolError as failure:
                self._failure = failure
                raise
