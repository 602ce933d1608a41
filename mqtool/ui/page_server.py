"""The web server of `mqtool ui`: serves the page, and the records that the page shows, on this machine only.

It uses Python's own http.server. One thread per open page is enough, and importing a web framework would take longer
than loading the page.

Other pages in the same browser can send requests to this server. They cannot read the records, because that takes a
secret, which is in the part of the page's address that browsers do not send (the fragment). Requests with unknown
`Host` or `Origin` headers are refused, so a page whose host name resolves to this machine (DNS rebinding) gets nothing.
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mqtool.errors import MqtoolError, Unavailable

#: The files of the page, with their media types. Nothing else is served.
_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
#: The maximum number of open pages, and of posted requests being answered at the same time.
_MAX_PAGES, _MAX_ANSWERS = 16, 32
#: The maximum size of a request's body, in bytes.
_MAX_REQUEST = 64 << 10
_HOST = "127.0.0.1"

#: A record for the page, such as an event. docs/reference/events.md describes the records.
Json = dict[str, Any]
#: Answers a page's request with records, and with None while there is nothing new. Closed when the page goes away.
Answerer = Callable[[Json], Iterator[Json | None]]


class PageServer:
    """Serves the page on its own threads until close() is called.

    Args:
        records: yields the records for one open page; closed when the page is closed.
        port: the port to listen on; 0 for any free one.
        answers: functions that answer a page's POST requests, by path, such as "/run". These require the secret.

    Attributes:
        secret: a page must send it to read the records.

    Raises:
        Unavailable: the port is in use.
    """

    def __init__(
        self, records: Callable[[], Iterator[Json]], port: int = 0, answers: Mapping[str, Answerer] | None = None
    ) -> None:
        self.secret = secrets.token_urlsafe(24)
        own = {"secret": self.secret, "records": staticmethod(records), "answers": answers or {}}
        handler = type("Handler", (_Handler,), own)
        try:
            self._server = _Server((_HOST, port), handler)
        except OSError as error:
            raise Unavailable(f"cannot listen on {_HOST}:{port}: {error.strerror}", "choose another --port") from error
        threading.Thread(target=self._server.serve_forever, name="mqtool-ui", daemon=True).start()

    @property
    def url(self) -> str:
        """The page's address with the secret."""
        return f"http://{_HOST}:{self._server.server_port}/#{self.secret}"

    def close(self) -> None:
        """Stop listening. Connections of open pages last until the process exits."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.pages, self.answering = threading.Semaphore(_MAX_PAGES), threading.Semaphore(_MAX_ANSWERS)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a page was closed, or a client sent something that is not HTTP."""


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests on one connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mqtool", ""
    timeout = 30
    secret: str
    records: Callable[[], Iterator[Json]]
    answers: Mapping[str, Answerer]
    server: _Server

    def do_GET(self) -> None:  # http.server's name
        if not self._is_from_own_page():
            self._refuse(HTTPStatus.FORBIDDEN, "requests from other sites are not accepted")
        elif (path := self.path.partition("?")[0]) == "/events":
            self._events()
        elif path == "/recording.html":
            self._answer(HTTPStatus.OK, single_file([]), _TYPES[".html"])
        elif (file := _PAGE / (path[1:] or "index.html")) in _files():
            self._answer(HTTPStatus.OK, file.read_bytes(), _TYPES[file.suffix])
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "file not found")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's name
        """Print nothing."""

    def _is_from_own_page(self) -> bool:
        port = self.server.server_port
        own = {f"{host}:{port}" for host in (_HOST, "localhost")}
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        return (
            self.headers.get("Host", "") in own
            and (origin is None or origin in {f"http://{host}" for host in own})
            and (site in ("none", "same-origin") or self.headers.get("Sec-Fetch-Mode") == "navigate")
        )

    def do_POST(self) -> None:  # http.server's name
        self.close_connection = True
        size = self.headers.get("Content-Length", "")
        if not self._is_from_own_page():
            self._refuse(HTTPStatus.FORBIDDEN, "requests from other sites are not accepted")
        elif not self._has_secret():
            self._refuse(HTTPStatus.UNAUTHORIZED, "the secret is missing or wrong")
        elif (answer := self.answers.get(self.path)) is None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing to do here")
        elif not size.isdecimal() or int(size) > _MAX_REQUEST:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has a length of up to {_MAX_REQUEST:,} bytes")
        else:
            try:
                wanted = json.loads(self.rfile.read(int(size)))
            except (ValueError, RecursionError):
                wanted = None
            if isinstance(wanted, dict):
                self._send_from(self.server.answering, lambda: answer(wanted))
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, "a request is a JSON object")

    def _has_secret(self) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.secret.encode())

    def _events(self) -> None:
        if self._has_secret():
            self._send_from(self.server.pages, self.records)
        else:
            self._refuse(HTTPStatus.UNAUTHORIZED, "the secret is missing or wrong")

    def _send_from(self, free: threading.Semaphore, start: Callable[[], Iterator[Json | None]]) -> None:
        """Send what `start` yields, until the page goes away."""
        if not free.acquire(blocking=False):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many pages are open")
            return
        records = start()
        try:
            self.close_connection = True
            self._send_headers(HTTPStatus.OK, {"Content-Type": "application/x-ndjson", "Connection": "close"})
            for record in _with_errors(records):
                if record is not None:
                    # A page that stops reading blocks only this thread; events that it misses are lost.
                    self.wfile.write(json.dumps(record).encode() + b"\n")
                elif self._is_gone():
                    break
        finally:
            if hasattr(records, "close"):
                records.close()
            free.release()

    def _is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._answer(status, f"{why}\n".encode(), "text/plain; charset=utf-8")

    def _answer(self, status: HTTPStatus, body: bytes, media_type: str) -> None:
        self._send_headers(status, {"Content-Type": media_type, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _send_headers(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _with_errors(records: Iterator[Json | None]) -> Iterator[Json | None]:
    """Yield the records; if they end with an error, yield its message, too."""
    try:
        yield from records
    except MqtoolError as error:
        yield {"error": str(error), "hint": error.hint or ""}


def _files() -> set[Path]:
    return set(_PAGE.iterdir())


#: The page's modules, each after those that it imports.
_MODULES = (
    "fates", "sentences", "play", "model", "layout", "view", "zoom", "finder", "picture", "player", "details",
    "actions", "main",
)  # fmt: skip


def single_file(records: Iterable[Json]) -> bytes:
    """Return the page as one HTML file that plays these records, without mqtool and without a network."""
    code = "\n".join((_PAGE / f"{name}.js").read_text() for name in _MODULES)
    code = re.sub(r"^import .*;\n", "", re.sub(r"^export ", "", code, flags=re.MULTILINE), flags=re.MULTILINE)
    style = (_PAGE / "style.css").read_text()
    icon = base64.b64encode((_PAGE / "icon.svg").read_bytes()).decode()
    lines = (json.dumps(record, separators=(",", ":")) for record in records)
    # No "<" can end the element early.
    data = "[\n" + ",\n".join(line.replace("<", "\\u003c") for line in lines) + "\n]"
    policy = (
        f"default-src 'none'; script-src '{_hash(code)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    inlined = {
        '<link rel="stylesheet" href="style.css" />': f"<style>{style}</style>",
        'href="icon.svg"': f'href="data:image/svg+xml;base64,{icon}"',
        '<script type="module" src="main.js"></script>': (
            f'<script type="application/json" id="recording">{data}</script>\n<script type="module">{code}</script>'
        ),
        '<meta charset="utf-8" />': (
            f'<meta charset="utf-8" />\n<meta http-equiv="Content-Security-Policy" content="{policy}" />'
        ),
    }
    page = (_PAGE / "index.html").read_text()
    for tag, instead in inlined.items():
        page = page.replace(tag, instead)
    return page.encode()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
