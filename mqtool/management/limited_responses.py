"""Limits on the size and the duration of HTTP responses, below urllib3: its time limit is for each read only."""

import time
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

from mqtool.management import limits


class _LimitedReader(RawIOBase):
    def __init__(self, raw: RawIOBase) -> None:
        self._raw = raw
        self._bytes, self._seconds = 0, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        begun = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._seconds += time.monotonic() - begun
        self._bytes += count or 0
        if self._bytes > limits.LARGEST_LIST:
            raise limits.too_large(limits.LARGEST_LIST)
        if self._seconds > limits.LONGEST:
            raise limits.too_slow()
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _LimitedResponse(HTTPResponse):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.fp: BufferedReader = BufferedReader(_LimitedReader(self.fp.detach()))


class _Connection(HTTPConnection):
    response_class = _LimitedResponse


class _TLSConnection(HTTPSConnection):
    response_class = _LimitedResponse


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def limit_responses(pools: PoolManager) -> PoolManager:
    """Limit the responses of all connections that a PoolManager will open."""
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return pools
