"""Limits on clients that have not logged in: connections per address, and the log lines that they cause."""

import logging
import resource
import time
from typing import Any, Generic, Protocol, TypeVar

log = logging.getLogger("mqtool.broker.embedded")

#: The bounds of stranger_limit().
_FEWEST, _MOST = 64, 1000

_LOG_SECONDS = 1.0


def stranger_limit() -> int:
    """The number of connections that one address may have without a login: a quarter of the file descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(max(descriptors // 4, _FEWEST), _MOST)


class Guest(Protocol):
    """A connection."""

    peer: tuple[str, int]

    def abort(self) -> None:
        """Close the socket at once."""


C = TypeVar("C", bound=Guest)


class Connections(set[C], Generic[C]):
    """The open connections of one protocol. Limits those of each address that have not logged in."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = stranger_limit()
        self._strangers: dict[str, dict[C, None]] = {}

    def add(self, connection: C) -> None:
        """Add a new connection. If its address has too many strangers, close the one that has waited longest."""
        super().add(connection)
        strangers = self._strangers.setdefault(connection.peer[0], {})
        strangers[connection] = None
        if len(strangers) > self._limit:
            oldest = next(iter(strangers))
            count, extra = len(strangers), caused_by("strangers")
            log.warning("%s has %d connections without a login: one is closed", oldest.peer[0], count, extra=extra)
            del strangers[oldest]
            oldest.abort()

    def logged_in(self, connection: C) -> None:
        """Stop counting a connection against the limit."""
        address = connection.peer[0]
        strangers = self._strangers.get(address)
        if strangers is not None:
            strangers.pop(connection, None)
            if not strangers:
                del self._strangers[address]

    def remove(self, connection: C) -> None:
        """Remove a connection that is closed."""
        super().remove(connection)
        self.logged_in(connection)


class OneLineASecond(logging.Filter):
    """Passes one record a second for each cause, and adds to the next one how many were left out.

    Only records with a `cause` are filtered: `log.warning("...", extra=caused_by("handshake"))`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        cause = getattr(record, "cause", None)
        if cause is None:
            return True
        now = time.monotonic()
        if now < self._next.get(cause, 0.0):
            self._left_out[cause] = self._left_out.get(cause, 0) + 1
            return False
        self._next[cause] = now + _LOG_SECONDS
        if left_out := self._left_out.pop(cause, 0):
            record.msg = f"{record.msg} (and {left_out} more like this)"
        return True


def caused_by(cause: str) -> dict[str, Any]:
    """The `extra` argument of a log call that is limited to one line a second.

    Args:
        cause: one of a few fixed texts; one line a second is logged for each.
    """
    return {"cause": cause}
