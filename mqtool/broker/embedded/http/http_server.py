"""A small HTTP/1.1 server for the management API: JSON bodies, basic authentication and limits.

It refuses requests from web pages open in a browser on this machine. A request from another site's page has an `Origin`
header. A request from a page whose host name resolves to this machine (DNS rebinding) has that name in `Host`, so only
names that nobody else can own are accepted there.
"""

import asyncio
import base64
import contextlib
import ipaddress
import json
import logging
import math
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from mqtool.broker.embedded.sockets.listener import caused_by

log = logging.getLogger("mqtool.broker.embedded")

#: Limits: bytes of the request line and headers, bytes of a body, and concurrent connections.
MAX_HEAD = 16 * 1024
MAX_BODY = 4 * 1024 * 1024
MAX_CONNECTIONS = 128

JSON, TEXT = "application/json", "text/plain; version=0.0.4; charset=utf-8"

#: Up to this size, the body of a refused request is read in full, so that the client can read the response.
_SMALL_BODY = 16 * 1024

_FIRST_SECONDS = 10.0
#: Seconds between calls of a handler, and of is_outdated(): an open page always waits, so that is called less often.
_ASK_AGAIN_SECONDS, _LOOK_AGAIN_SECONDS = 0.01, 0.05
_IDLE_SECONDS = 60.0
_BODY_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
_SLICE_SECONDS = 0.005
_ERLANG_LINE = 75
_PIECE = 100_000

#: The most bytes of responses that clients have not read yet; one response alone may be larger.
_MOST_UNREAD = 32 * 1024 * 1024

Item = TypeVar("Item")


class HttpError(Exception):
    """An HTTP error response.

    Attributes:
        status: the HTTP status.
        error, reason: the fields of the JSON body, as in RabbitMQ's error responses; some of its reasons are lists.
    """

    def __init__(self, status: HTTPStatus, error: str, reason: str | list[Any]) -> None:
        super().__init__(reason)
        self.status = status
        self.error = error
        self.reason = reason


@dataclass
class HttpRequest:
    """An HTTP request.

    Attributes:
        method: GET, PUT and so on.
        path: the decoded segments of the path.
        query: the query parameters; if one is repeated, the last value counts.
        headers: the headers, with names in lower case.
        credentials: user and password; None without basic authentication.
        from_loopback: True if the client is on this machine.
        body: the body; empty until Handler.check() has accepted the request.
    """

    method: str
    path: list[str]
    query: dict[str, str]
    headers: dict[str, str]
    credentials: tuple[str, str] | None
    from_loopback: bool
    body: bytes = b""

    def json(self, *, first: bool) -> dict[str, Any]:
        """Parse the body as a JSON object; raise HttpError 400 if it is not one. An empty body is an empty object.

        Args:
            first: keep the first of several values with the same name, instead of the last.
        """
        pick = (lambda pairs: dict(pairs) | dict(reversed(pairs))) if first else dict
        try:
            body = self.body.decode("utf-8-sig").strip() or "{}"
            value = json.loads(body, parse_constant=_finite, parse_float=_finite, object_pairs_hook=pick)
            if "\\u" in body:
                json.dumps(value, ensure_ascii=False).encode()  # fails on lone surrogates, which cannot be sent
        except (ValueError, RecursionError) as error:
            raise bad_request("failed_to_parse_json" if "definitions" in self.path else "not_json") from error
        if not isinstance(value, dict):
            raise bad_request("body must be an object")
        return value


@dataclass
class HttpAnswer:
    """An HTTP response.

    Attributes:
        status: the HTTP status.
        value: the JSON value of the body; None for no body. An iterator is sent as a list.
        text: the parts of a body that is plain text; None for JSON.
        location: the Location header: the address of the new object.
        allow: the Allow header: the methods of the path.
        filename: the name of the file in which a browser is to save the body; None to show it.
        patience: for this many seconds after the request, the server keeps calling the handler for a new response
            instead of sending this one; 0 to send it immediately.
        is_outdated: returns False while the handler, if called again, would return the same response.
    """

    status: HTTPStatus
    value: Any = None
    text: Iterator[str] | None = None
    location: str | None = None
    allow: tuple[str, ...] = ()
    filename: str | None = None
    patience: float = 0.0
    is_outdated: Callable[[], bool] = lambda: True


class Handler(Protocol):
    """Checks and answers the requests of an HttpServer. Raises HttpError to refuse a request."""

    def check(self, request: HttpRequest) -> None:
        """Check the credentials, before the body is read."""

    async def stored(self) -> None:
        """Wait until all changes made by requests are on disk."""

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Handle a request and return the response."""


class HttpServer:
    """Serves HTTP connections. Pass `talk` to asyncio.start_server with `limit=MAX_HEAD`.

    At the connection limit, a new connection replaces one that has not logged in: the oldest from the address with the
    most such connections. This way, a client that opens many connections cannot lock out other clients.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._open = 0
        #: The addresses of the connections that have not logged in, oldest first.
        self._strangers: dict[asyncio.StreamWriter, str] = {}
        #: The sizes of the responses that are being sent, in bytes.
        self._unread: dict[asyncio.StreamWriter, int] = {}
        self._encoding = asyncio.Lock()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle the requests of one connection until it closes."""
        self._open += 1
        seconds = _FIRST_SECONDS
        try:
            if self._open > MAX_CONNECTIONS and self._strangers:
                self._close_stranger()
            elif self._open > MAX_CONNECTIONS:
                busy = HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "busy", f"more than {MAX_CONNECTIONS} connections")
                await _write(writer, _refusal(busy), stay=False)
                return
            self._strangers[writer] = _address(writer)
            while await self._exchange(reader, writer, seconds):
                seconds = _FIRST_SECONDS if writer in self._strangers else _IDLE_SECONDS
                await asyncio.sleep(0)  # requests that have arrived together are answered in turns
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
            log.debug("management client went away: %r", error)
            # Close at once, even if data is still waiting to be sent.
            writer.transport.abort()
        except asyncio.CancelledError:
            log.debug("the broker stops")  # if the task ended as cancelled, asyncio would log it
        finally:
            self._open -= 1
            self._strangers.pop(writer, None)
            writer.close()

    def _close_stranger(self) -> None:
        ((address, count),) = Counter(self._strangers.values()).most_common(1)
        oldest = next(writer for writer, each in self._strangers.items() if each == address)
        text = "%s has %d management connections without a login: one is closed"
        log.warning(text, address, count, extra=caused_by("HTTP strangers"))
        del self._strangers[oldest]
        oldest.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> bool:
        """Read and handle one request. Returns True if the connection stays open."""
        try:
            async with asyncio.timeout(seconds):
                request = await _read_head(reader, from_loopback=_is_loopback(_address(writer)))
            if request is None:
                return False
            size = _body_size(request)
        except HttpError as error:
            await _write(writer, _refusal(error), stay=False)
            return False
        stay = request.headers.get("connection", "").lower() != "close"
        try:
            self._handler.check(request)
            self._strangers.pop(writer, None)
            if size > MAX_BODY:
                raise bad_request("Exceeded HTTP request body size limit")
        except HttpError as error:
            stay = stay and size <= _SMALL_BODY
            if stay:
                await _read_body(reader, size)
            await _write(writer, _refusal(error), stay=stay, head_only=request.method == "HEAD")
            return stay
        request.body = await _read_body(reader, size)
        answer = await self._last_answer(request)
        if request.method not in ("GET", "HEAD"):
            await self._handler.stored()
        await self._respond(writer, request, answer, stay=stay)
        return stay

    async def _respond(
        self, writer: asyncio.StreamWriter, request: HttpRequest, answer: HttpAnswer, *, stay: bool
    ) -> None:
        """Send a response.

        Only one list is encoded at a time, and if too many bytes are unread, the connections with the largest unread
        responses are closed: many clients that ask for long lists and do not read them cannot use up the memory.
        """
        is_list = isinstance(answer.value, list | Iterator) or answer.text is not None
        if isinstance(answer.value, dict):
            is_list = any(isinstance(each, Iterator) for each in answer.value.values())
        async with self._encoding if is_list else contextlib.nullcontext():
            try:
                body = await _encode(answer)
            except Exception as error:
                answer = _failure(request, error)
                body = await _encode(answer)
            self._unread[writer] = sum(map(len, body))
        while sum(self._unread.values()) > _MOST_UNREAD and len(self._unread) > 1:
            self._close_unread(writer)
        try:
            await _send(writer, answer, body, stay=stay, head_only=request.method == "HEAD")
        finally:
            self._unread.pop(writer, None)

    def _close_unread(self, but: asyncio.StreamWriter) -> None:
        slowest = max((each for each in self._unread if each is not but), key=self._unread.__getitem__)
        text = "%s does not read %d bytes: a management connection is closed"
        log.warning(text, _address(slowest), self._unread.pop(slowest), extra=caused_by("HTTP unread"))
        slowest.transport.abort()

    async def _last_answer(self, request: HttpRequest) -> HttpAnswer:
        """Call the handler until its response need not wait (see HttpAnswer.patience); return that response."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        while (answer := await self._answer(request)).patience > loop.time() - asked:
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
            while not answer.is_outdated() and answer.patience > loop.time() - asked:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        return answer

    async def _answer(self, request: HttpRequest) -> HttpAnswer:
        try:
            return await self._handler.answer(request)
        except HttpError as error:
            return _refusal(error)
        except Exception as error:
            return _failure(request, error)


def check_origin(headers: Mapping[str, str], listening_on: str) -> None:
    """Refuse requests sent by web pages: 403 for those of another site, 421 for an unknown Host.

    Args:
        headers: the headers of the request.
        listening_on: the host that the broker is configured to listen on.
    """
    host = headers.get("host", "localhost").lower()
    if not _is_own_name(host, listening_on):
        reason = f"host '{host}' is not known here; use the IP address of the broker"
        raise HttpError(HTTPStatus.MISDIRECTED_REQUEST, "misdirected_request", reason)
    origin = headers.get("origin")
    # Compared as text: an origin need not be a valid address.
    if origin is not None and origin.partition("://")[2].lower() != host:
        raise HttpError(HTTPStatus.FORBIDDEN, "forbidden", f"requests from {origin} are not accepted")
    # For images and scripts, browsers send no Origin.
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
    if site not in ("none", "same-origin") and mode != "navigate":
        raise HttpError(HTTPStatus.FORBIDDEN, "forbidden", "requests from other sites are not accepted")


def _is_own_name(host: str, listening_on: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        # Names without a dot, such as a container's, exist only on a local network; no web page's host can have one.
        if name and "." not in name.rstrip(".") and ":" not in name:
            return True
        if name and name in (listening_on.lower(), socket.gethostname().lower()):
            return True
        ipaddress.ip_address(name)
    except ValueError:  # not a host, or not an address
        return False
    return True


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is out of range")
    return number


def _failure(request: HttpRequest, error: Exception) -> HttpAnswer:
    """Log an unexpected error, and return the response to its request."""
    cause = f"HTTP {type(error).__name__}"
    log.error("management: %a", [request.method, *request.path], exc_info=error, extra=caused_by(cause))
    return HttpAnswer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal_error", "reason": "see the log"})


def _refusal(error: HttpError) -> HttpAnswer:
    return HttpAnswer(error.status, {"error": error.error, "reason": error.reason})


def bad_request(reason: str | list[Any]) -> HttpError:
    """Return a 400 error with this reason."""
    return HttpError(HTTPStatus.BAD_REQUEST, "bad_request", reason)


def required(body: dict[str, Any], *names: str) -> list[Any]:
    """Return these fields of a body; raise HttpError 400 if any are missing."""
    if missing := [f"{{key_missing,{name}}}" for name in names if name not in body]:
        raise bad_request(_as_erlang_list(missing))
    return [body[name] for name in names]


def _as_erlang_list(items: list[str]) -> str:
    """Return a list as Erlang prints it: if it has over 75 characters, with each item on its own line."""
    short = f"[{','.join(items)}]"
    return short if len(short) <= _ERLANG_LINE else f"[{f',{chr(10)} '.join(items)}]"


def text(body: dict[str, Any], name: str, default: str = "") -> str:
    """Return a string field of a body; raise HttpError 400 if it has another type.

    Numbers are accepted too: rabbitmqadmin sends a name such as "1" as a number.
    """
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise bad_request(f"{name} must be a string")
    return str(value)


def boolean(body: dict[str, Any], name: str) -> bool:
    """Return a boolean field of a body, False if it is missing; raise HttpError 400 if it has another type.

    The strings "true" and "false" are accepted, too: rabbitmqadmin sends booleans as strings.
    """
    value = body.get(name, False)
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise bad_request(["not_boolean", value])
    return bool(value == "true")


def _address(writer: asyncio.StreamWriter) -> str:
    """Return the address of a client; "" if the socket is already closed."""
    peer = writer.get_extra_info("peername")
    return str(peer[0]) if peer else ""


def _is_loopback(address: str) -> bool:
    return bool(address) and ipaddress.ip_address(address.partition("%")[0]).is_loopback


async def _read_head(reader: asyncio.StreamReader, *, from_loopback: bool) -> HttpRequest | None:
    """Read the request line and the headers. Returns None if the client has closed the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise bad_request("request cut short") from error
        return None
    except asyncio.LimitOverrunError as error:
        reason = f"the headers are larger than {MAX_HEAD} bytes"
        raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too_large", reason) from error
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        raise bad_request("malformed request line")
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
        raise bad_request("malformed address") from error
    path = [unquote(segment, errors="surrogateescape") for segment in parts.path.split("/") if segment]
    return HttpRequest(method, path, query, headers, _credentials(headers.get("authorization", "")), from_loopback)


def _body_size(request: HttpRequest) -> int:
    """Return the size of the body in bytes, from Content-Length. A body sent in chunks is refused."""
    if "transfer-encoding" in request.headers:
        raise HttpError(HTTPStatus.LENGTH_REQUIRED, "length_required", "a body needs a content-length")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise bad_request("malformed content-length")
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
    except ValueError:  # not Base64, or not UTF-8
        return None
    return name, password


async def in_slices(items: Iterable[Item | None]) -> list[Item]:
    """Collect a generator's items but None, letting the event loop serve other clients every few milliseconds."""
    found: list[Item] = []
    time = asyncio.get_running_loop().time
    until = time() + _SLICE_SECONDS
    for item in items:
        if item is not None:
            found.append(item)
        if time() > until:
            await asyncio.sleep(0)
            until = time() + _SLICE_SECONDS
    return found


async def _encode(answer: HttpAnswer) -> list[bytes]:
    """Encode a body, in pieces: to join a very long one would take long."""
    if answer.text is not None:
        return await in_slices(_joined(answer.text))
    return [] if answer.value is None else await in_slices(_joined(_json_parts(answer.value, depth=2)))


def _joined(parts: Iterable[str]) -> Iterator[bytes | None]:
    """Join short texts, and yield them in pieces of more than _PIECE bytes. Yield None after each other text."""
    piece: list[str] = []
    size = 0
    for part in parts:
        piece.append(part)
        size += len(part)
        if size > _PIECE:
            yield "".join(piece).encode(errors="replace")
            piece, size = [], 0
        else:
            yield None
    yield "".join(piece).encode(errors="replace")


def _json_parts(value: Any, depth: int) -> Iterator[str]:
    """Encode a JSON value in parts: each item of a list is one, also in an object if `depth` is more than 1."""
    if isinstance(value, dict) and depth > 1:
        before = "{"
        for name, each in value.items():
            yield f"{before}{json.dumps(name)}: "
            yield from _json_parts(each, depth - 1)
            before = ", "
        yield "}" if value else "{}"
    elif isinstance(value, list | Iterator):
        before = "["
        for each in value:
            yield before + json.dumps(each)
            before = ", "
        yield "[]" if before == "[" else "]"
    else:
        yield json.dumps(value)


async def _write(writer: asyncio.StreamWriter, answer: HttpAnswer, *, stay: bool, head_only: bool = False) -> None:
    await _send(writer, answer, await _encode(answer), stay=stay, head_only=head_only)


async def _send(
    writer: asyncio.StreamWriter, answer: HttpAnswer, body: list[bytes], *, stay: bool, head_only: bool
) -> None:
    size = sum(map(len, body))
    lines = [f"HTTP/1.1 {answer.status.value} {answer.status.phrase}", f"content-length: {size}"]
    lines.append(f"connection: {'keep-alive' if stay else 'close'}")
    if size:
        lines.append(f"content-type: {JSON if answer.text is None else TEXT}")
    if answer.allow:
        lines.append(f"allow: {', '.join(answer.allow)}")
    if answer.location is not None:
        lines.append(f"location: {answer.location}")
    if answer.filename is not None:
        lines.append(f"content-disposition: attachment; filename={quote(answer.filename, errors='surrogateescape')}")
    if answer.status is HTTPStatus.UNAUTHORIZED:
        lines.append('www-authenticate: Basic realm="RabbitMQ Management"')
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    first, *others = [b""] if head_only or not body else body
    writer.write(head + first)
    async with asyncio.timeout(_ANSWER_SECONDS):
        await writer.drain()
        for piece in others:
            await asyncio.sleep(0)
            writer.write(piece)
            await writer.drain()
