"""A client of the management HTTP API."""

import asyncio
import base64
import json
from typing import Any

from tests.simulation.client import Client

_LOGIN = base64.b64encode(b"guest:guest").decode()

_RETRY_SECONDS = 0.5


class HttpClient(Client):
    """A connection that stays open between requests."""

    port = 15672

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._answer: asyncio.Future[Any] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request to a path below `/api`. Return the status and the decoded body.

        Definitions cannot be written while the disk is full, so such requests are repeated, except those that publish.
        """
        while True:
            started = self.world.loop.time()
            status, answer = await self._ask_once(method, path, body)
            is_refused = status == 503 and answer.get("error") == "disk" and not path.endswith("/publish")
            if not (is_refused and self.world.full_until >= started):
                break
            await asyncio.sleep(_RETRY_SECONDS)
        if status >= 500:
            self.judge.fail("the management API has no internal errors", f"{method} {path}: {status} {answer}")
        return status, answer

    async def _ask_once(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} /api{path} HTTP/1.1\r\nhost: x\r\nauthorization: Basic {_LOGIN}\r\n"
        self._answer = self.future()
        self.send(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        status, answer = await self.within(self._answer, f"{method} {path}")
        self.judge.note(self.name, f"{method} {path}: {status}")
        return status, answer

    async def close(self) -> None:
        self.side.close()

    def take(self, data: bytes) -> int:
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            return 0
        first, *lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        size = int(fields["content-length"])
        if len(rest) < size:
            return 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(first.split(" ")[1]), json.loads(rest[:size]) if size else None))
        return len(head) + 4 + size
