"""A runner's stderr, to which it passes what programs say."""

import contextlib
import os
import select
import socket
import stat

PIPE_SIZE = 65536
_STDERR = 2
#: Milliseconds in which a reader of our stderr takes some of it, unless there is none.
_PATIENCE = 1000


class Stderr:
    """Our stderr, to which nothing waits to write: what it does not take at once is kept, and written later."""

    def __init__(self) -> None:
        self.descriptor = _STDERR
        self.waiting = bytearray()
        mode = os.fstat(_STDERR).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            # Opened anew: whoever shares the descriptor that we have would not expect it to stop blocking.
            with contextlib.suppress(OSError):
                self.descriptor = os.open(f"/dev/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        # systemd's journal is a socket.
        self._socket = socket.socket(fileno=os.dup(_STDERR)) if stat.S_ISSOCK(mode) else None

    @property
    def is_full(self) -> bool:
        """Whether to let the program wait before we read more of its stderr."""
        return len(self.waiting) >= PIPE_SIZE

    def write(self, data: bytes = b"") -> None:
        """Write what can be written now."""
        self.waiting += data
        try:
            if self._socket is not None:
                taken = self._socket.send(self.waiting, socket.MSG_DONTWAIT)
            else:
                taken = os.write(self.descriptor, self.waiting)
            del self.waiting[:taken]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more; the program goes on
            self.waiting.clear()

    def finish(self) -> None:
        """Write the rest, unless nobody takes any of it."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        while self.waiting and poll.poll(_PATIENCE):
            self.write()

    def write_until_readable(self, end: int, keep: int = 0) -> None:
        """Write what waits, but for some bytes, until there is something to read at that end of a pipe."""
        while len(self.waiting) > keep:
            poll = select.poll()
            poll.register(end, select.POLLIN)
            poll.register(self.descriptor, select.POLLOUT)
            if end in [ready for ready, _ in poll.poll()]:
                return
            self.write()
