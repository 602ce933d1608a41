"""The part of HTTP/1.1 that the management API needs: JSON in and out, basic auth, and limits for everything."""

import asyncio
import base64
import binascii
import ipaddress
import json
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

log = logging.getLogger("mqtool.broker.embedded")

MAX_HEAD = 16 * 1024
MAX_BODY = 1024 * 1024
MAX_CONNECTIONS = 128
"""Limits: bytes of request line and headers, bytes of a body, and connections at once."""

# A body this small is read, and dropped, from a client that is refused: so it can read the answer.
_SMALL_BODY = 16 * 1024

_FIRST_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 0.01
_IDLE_SECONDS = 60.0
_BODY_SECONDS = 10.0
_ANSWER_SECONDS = 30.0


class HttpError(Exception):
    """An answer with an error.

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
        from_loopback: whether the client is on this machine.
        body: empty until the request has been checked.
    """

    method: str
    path: list[str]
    query: dict[str, str]
    headers: dict[str, str]
    credentials: tuple[str, str] | None
    from_loopback: bool
    body: bytes = b""

    def json(self) -> dict[str, Any]:
        """Return the body, which must be an object or empty.

        Raises:
            HttpError: 400.
        """
        try:
            value = json.loads(self.body) if self.body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise _bad_request("malformed json") from error
        if not isinstance(value, dict):
            raise _bad_request("body must be an object")
        return value


@dataclass
class Answer:
    """What it gets.

    Attributes:
        value: None for no content.
        location: where what was made is.
        allow: what can be asked.
        patience: how long a better answer may take, in seconds after the request; 0 if this is it.
    """

    status: HTTPStatus
    value: Any = None
    location: str | None = None
    allow: tuple[str, ...] = ()
    patience: float = 0.0


class Handler(Protocol):
    """What answers requests."""

    def check(self, request: Request) -> None:
        """Check who asks, before the body is read.

        Raises:
            HttpError: the request is refused.
        """

    def answer(self, request: Request) -> Answer:
        """Answer a request.

        Raises:
            HttpError: there is an error in it.
        """


class HttpServer:
    """Answers requests; `talk` is for asyncio.start_server, with `limit=MAX_HEAD`."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._open = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests on one connection."""
        self._open += 1
        seconds = _FIRST_SECONDS
        try:
            if self._open > MAX_CONNECTIONS:
                busy = HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "busy", f"more than {MAX_CONNECTIONS} connections")
                await _write(writer, _refusal(busy), stay=False)
                return
            while await self._exchange(reader, writer, seconds):
                seconds = _IDLE_SECONDS
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
            log.debug("management client went away: %r", error)
            # Nothing that still waits to be sent may keep the connection.
            writer.transport.abort()
        finally:
            self._open -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> bool:
        """Answer one request; returns whether another may follow on this connection."""
        try:
            async with asyncio.timeout(seconds):
                request = await _read_head(reader, from_loopback=_is_loopback(writer))
            if request is None:
                return False
            size = _body_size(request)
        except HttpError as error:
            await _write(writer, _refusal(error), stay=False)
            return False
        stay = request.headers.get("connection", "").lower() != "close"
        try:
            self._handler.check(request)
            if size > MAX_BODY:
                too_large = f"the body is larger than {MAX_BODY} bytes"
                raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", too_large)
        except HttpError as error:
            stay = stay and size <= _SMALL_BODY
            if stay:
                await _read_body(reader, size)
            await _write(writer, _refusal(error), stay=stay)
            return stay
        request.body = await _read_body(reader, size)
        await _write(writer, await self._last_answer(request), stay=stay, head_only=request.method == "HEAD")
        return stay

    async def _last_answer(self, request: Request) -> Answer:
        """Ask again until the answer is as good as it gets."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while (answer := self._answer(request)).patience > loop.time() - asked:
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
        return answer

    def _answer(self, request: Request) -> Answer:
        try:
            return self._handler.answer(request)
        except HttpError as error:
            return _refusal(error)
        except Exception:
            log.exception("management: %a", [request.method, *request.path])
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal_error", "reason": "see the log"})


def _refusal(error: HttpError) -> Answer:
    return Answer(error.status, {"error": error.error, "reason": error.reason})


def _bad_request(reason: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, "bad_request", reason)


def _is_loopback(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("peername")
    # A socket that has closed already has no names.
    return bool(peer) and ipaddress.ip_address(str(peer[0]).partition("%")[0]).is_loopback


async def _read_head(reader: asyncio.StreamReader, *, from_loopback: bool) -> Request | None:
    """Read request line and headers; None at the end.

    Raises:
        HttpError: 400 or 431.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise _bad_request("request cut short") from error
        return None
    except asyncio.LimitOverrunError as error:
        reason = f"the headers are larger than {MAX_HEAD} bytes"
        raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", reason) from error
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        raise _bad_request("malformed request line")
    method, target, _ = words
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    try:
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    except ValueError as error:
        raise _bad_request("malformed address") from error
    path = [unquote(segment) for segment in parts.path.split("/") if segment]
    return Request(method, path, query, headers, _credentials(headers.get("authorization", "")), from_loopback)


def _body_size(request: Request) -> int:
    """The size of the body in bytes.

    Raises:
        HttpError: 400 or 411.
    """
    if "transfer-encoding" in request.headers:
        raise HttpError(HTTPStatus.LENGTH_REQUIRED, "length_required", "a body needs a content-length")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise _bad_request("malformed content-length")
    return int(length)


async def _read_body(reader: asyncio.StreamReader, size: int) -> bytes:
    async with asyncio.timeout(_BODY_SECONDS):
        return await reader.readexactly(size)


def _credentials(authorization: str) -> tuple[str, str] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return name, password


async def _write(writer: asyncio.StreamWriter, answer: Answer, *, stay: bool, head_only: bool = False) -> None:
    body = b"" if answer.value is None else json.dumps(answer.value).encode()
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"content-length: {len(body)}",
        f"connection: {'keep-alive' if stay else 'close'}",
    ]
    if body:
        lines.append("content-type: application/json")
    if answer.allow:
        lines.append(f"allow: {', '.join(answer.allow)}")
    if answer.location is not None:
        lines.append(f"location: {answer.location}")
    if answer.status is HTTPStatus.UNAUTHORIZED:
        lines.append('www-authenticate: Basic realm="RabbitMQ Management"')
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if head_only else body))
    async with asyncio.timeout(_ANSWER_SECONDS):
        await writer.drain()
