"""As much of HTTP/1.1 as the management API needs: requests with a JSON body, answers in JSON, basic auth."""

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

log = logging.getLogger("mqtool.broker.embedded")

_MAX_BODY = 16 * 1024 * 1024
_IDLE_SECONDS = 60.0


class HttpError(Exception):
    """An answer that is not the one hoped for.

    Attributes:
        status: the HTTP status.
        error, reason: as in RabbitMQ's error objects.
    """

    def __init__(self, status: HTTPStatus, error: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.error = error
        self.reason = reason


@dataclass
class Request:
    """What a client asks for.

    Attributes:
        path: the decoded segments of the path.
        query: the last value of each parameter.
        credentials: user and password, None without them.
    """

    method: str
    path: list[str]
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    credentials: tuple[str, str] | None

    def json(self) -> dict[str, Any]:
        """The body, which has to be an object or empty.

        Raises:
            HttpError: 400.
        """
        try:
            value = json.loads(self.body) if self.body.strip() else {}
        except ValueError as error:
            raise HttpError(HTTPStatus.BAD_REQUEST, "bad_request", "malformed json") from error
        if not isinstance(value, dict):
            raise HttpError(HTTPStatus.BAD_REQUEST, "bad_request", "body must be an object")
        return value


@dataclass
class Answer:
    """What it gets; `value` is None for no content."""

    status: HTTPStatus
    value: Any = None


Handler = Callable[[Request], Answer]


def server(handler: Handler) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """What asyncio.start_server needs, to answer requests with this handler."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _exchange(reader, writer, handler):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
            log.debug("management client went away: %r", error)
        finally:
            writer.close()

    return talk


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler) -> bool:
    """One request and its answer; returns whether another may follow on this connection."""
    try:
        request = await asyncio.wait_for(_read(reader), _IDLE_SECONDS)
    except ValueError as error:
        _write(writer, Answer(HTTPStatus.BAD_REQUEST, {"error": "bad_request", "reason": str(error)}), stay=False)
        return False
    if request is None:
        return False
    try:
        answer = handler(request)
    except HttpError as error:
        answer = Answer(error.status, {"error": error.error, "reason": error.reason})
    except Exception:
        log.exception("management: %s %s", request.method, "/".join(request.path))
        answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal_error", "reason": "see the log"})
    stay = request.headers.get("connection", "").lower() != "close"
    _write(writer, answer, stay=stay)
    await writer.drain()
    return stay


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """The next request, None at the end.

    Raises:
        ValueError: it is not HTTP.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise ValueError("request cut short") from error
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        raise ValueError("malformed request line")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    size = int(headers.get("content-length", 0))
    if not 0 <= size <= _MAX_BODY:
        raise ValueError("body too large")
    body = await reader.readexactly(size)
    parts = urlsplit(words[1])
    path = [unquote(segment) for segment in parts.path.split("/") if segment]
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    return Request(words[0], path, query, headers, body, _credentials(headers.get("authorization", "")))


def _credentials(authorization: str) -> tuple[str, str] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return name, password


def _write(writer: asyncio.StreamWriter, answer: Answer, *, stay: bool) -> None:
    body = b"" if answer.value is None else json.dumps(answer.value).encode()
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"content-length: {len(body)}",
        f"connection: {'keep-alive' if stay else 'close'}",
    ]
    if body:
        lines.append("content-type: application/json")
    if answer.status is HTTPStatus.UNAUTHORIZED:
        lines.append('www-authenticate: Basic realm="RabbitMQ Management"')
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
