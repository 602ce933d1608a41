"""Response heads: a time limit for the whole status line and headers of a response of the management HTTP API.

urllib3's limit is for each part that arrives, so a server that sends a byte now and then would never exceed it.
"""

import math
import time
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from socket import socket
from typing import Any

from urllib3 import PoolManager

from mqtool.management import limits


class _Reader(RawIOBase):
    """Reads a response from a socket. Raises TimeoutError if its head has not arrived in time."""

    def __init__(self, connection: socket, source: RawIOBase) -> None:
        self._connection = connection
        self._source = source
        self._patience = connection.gettimeout() or math.inf
        self._ends: float | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._ends is not None:
            left = self._ends - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(min(left, self._patience))
        count = self._source.readinto(buffer)
        if self._ends is None:  # the broker may have needed long until the first byte
            self._ends = time.monotonic() + min(limits.HEAD, self._patience)
        return count

    def lift(self) -> None:
        """Record that the head is complete: the limit ends."""
        self._ends = math.inf
        self._connection.settimeout(None if self._patience == math.inf else self._patience)

    def close(self) -> None:
        self._source.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self._reader = _Reader(sock, self.fp.detach())
        self.fp = BufferedReader(self._reader)

    def begin(self) -> None:
        super().begin()
        self._reader.lift()


def limit(manager: PoolManager) -> None:
    """Give each response that this manager gets a limit for its head."""
    pools: dict[str, Any] = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {
        scheme: _with(pool, ConnectionCls=_with(pool.ConnectionCls, response_class=_Response))
        for scheme, pool in pools.items()
    }


def _with(kind: Any, **attributes: type) -> Any:
    return type(kind.__name__, (kind,), attributes)
