"""Management, the client of the management HTTP API: requests, paged and whole lists, and translated errors."""

import base64
import codecs
import html
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit

from mqtool.errors import (
    AccessRefused,
    BadAnswer,
    DeclaredDifferently,
    MqtoolError,
    NotFound,
    NothingAnswers,
    Unavailable,
    UsageError,
)
from mqtool.management import limits
from mqtool.management.answers import checked
from mqtool.message import MAX_DEPTH
from mqtool.spelling import pasteable

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager


#: A bracket outside strings, or a string, which may be cut short.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_BETWEEN = re.compile(r"[, \t\r\n]*")
_DECODER = json.JSONDecoder()
#: What replaces lists and objects that are nested too deeply.
TOO_DEEP = "(nested too deeply)"


def _decode(text: str, start: int = 0) -> tuple[Any, int]:
    """Decode the JSON value at `start`; return it and its end. Raises ValueError if it is not complete.

    RabbitMQ accepts arguments of any depth, so whoever may declare a queue could make all lists of queues unusable. A
    text replaces what is nested deeper than MAX_DEPTH.
    """
    with suppress(RecursionError):
        value, end = _DECODER.raw_decode(text, start)
        brackets = text.count("[", start, end) + text.count("{", start, end)
        if brackets <= MAX_DEPTH or not is_deeper(value, MAX_DEPTH):  # most objects have few, which is found out faster
            return value, end
    kept, depth = "", 0
    for token in _TOKEN.finditer(text, start):
        if token[0] in "[{":
            if depth == MAX_DEPTH:
                kept += f'{text[start : token.start()]}"{TOO_DEEP}"'
            depth += 1
        elif token[0] in "]}":
            depth -= 1
            if depth == MAX_DEPTH:
                start = token.end()
            elif depth == 0:
                return _DECODER.decode(kept + text[start : token.end()]), token.end()
    raise ValueError("cut short")


def is_incomplete(value: Any) -> bool:
    """Return True if a part of an API's value was left out, because it is nested too deeply."""
    return f'"{TOO_DEEP}"' in json.dumps(value)


#: The maximum nesting of an object in a definitions file. Code that copies or encodes it calls itself for each level.
DEEPEST = 200


def is_deeper(value: Any, depth: int) -> bool:
    """Return True if lists and objects are nested in each other in more levels than `depth`."""
    level = [value]
    for _ in range(depth):
        if not level:
            return False
        lists = [each for each in level if isinstance(each, list)]
        level = [*chain(*lists, *(each.values() for each in level if isinstance(each, dict)))]
    return any(isinstance(each, list | dict) for each in level)


def objects(chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Decode the objects of a JSON array as they arrive.

    Raises:
        ValueError: the array is not complete.
        BadAnswer: it is not an array of objects, or a key that mqtool relies on has another type.
        Unavailable: the array, or one of its objects, is too large.
    """
    limit = limits.ListLimit()
    utf8 = codecs.getincrementaldecoder("utf-8")()
    text, start, begun = "", 0, False
    arrived = bytearray()
    for chunk in chain(chunks, (b"",)):
        limit.add(len(chunk), 0)
        arrived += chunk
        if chunk and len(arrived) < (len(text) - start) // 2:
            continue  # decoding the beginning of a large object again for each small chunk would take too long
        text, start = text[start:] + utf8.decode(arrived), 0
        arrived.clear()
        if not begun and text.lstrip():
            if not text.lstrip().startswith("["):
                raise BadAnswer("the management API sends something that is not a list", limits.HINT)
            begun, start = True, text.index("[") + 1
        while True:
            start = _BETWEEN.match(text, start).end()  # type: ignore[union-attr] # always matches
            if text.startswith("]", start):
                return
            try:
                item, start = _decode(text, start)
            except ValueError as error:  # the rest follows in the next chunk
                if len(text) - start > limits.LARGEST_VALUE:
                    raise limits.too_large(limits.LARGEST_VALUE) from error
                break
            limit.add(0, 1)
            yield checked({} if item == [] else item)  # RabbitMQ sends [] for an object without keys
    raise ValueError("cut short")


_HOW_TO_ENABLE = (
    "is the broker up? Enable it there with 'rabbitmq-plugins enable rabbitmq_management', or name it with --management"
)


def refusal(answer: "BaseHTTPResponse", url: str, user: str) -> MqtoolError:
    """Translate an error response of the API into an exception, whose text may contain the URL and the user."""
    if location := answer.get_redirect_location():
        return _redirected(urljoin(answer.geturl() or url, location), url)
    reason = _said(answer)
    match answer.status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return _access_refused(url, user, reason)
        case HTTPStatus.NOT_FOUND if "application/json" in answer.headers.get("content-type", ""):
            return NotFound(*_missing(answer.geturl() or "", user))
        case HTTPStatus.BAD_REQUEST if "inequivalent" in reason:
            return DeclaredDifferently(f"it exists with different settings: {reason}")
        case HTTPStatus.BAD_REQUEST if "invalid_regexp" in reason or "regular expression" in reason:
            return UsageError("one of the patterns is not a valid regular expression", "'.*' matches everything")
        case HTTPStatus.BAD_REQUEST:
            return UsageError(f"the broker refuses: {reason}")
        case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
            return BadAnswer(f"{url} is not a management API", _HOW_TO_ENABLE)
        case status:
            return Unavailable(f"the management API at {url} answers {status} {reason}".rstrip())


def _redirected(location: str, url: str) -> BadAnswer:
    """Say where the server at a URL redirects to. The text leaves out a login and a query, which may be secrets.

    mqtool never follows: the other server would get the passwords of new users, a PUT could arrive as a GET, and what
    that server answers would be believed. RabbitMQ does not redirect below /api/.
    """
    parts = urlsplit(location)
    other = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.partition('/api/')[0]}"
    hint = "if that is the broker's management API, use that address with --management"
    return BadAnswer(f"the management API at {url} redirects to {other!r}", hint)


def _said(answer: "BaseHTTPResponse") -> str:
    try:
        content = b""
        for chunk in _chunks(answer):
            content += chunk
            if len(content) > _CHUNK:
                break
        said = json.loads(content)
        reason = str(said.get("reason") or said.get("error") or answer.reason)
        # RabbitMQ's reasons can have several lines, and are escaped for its management page.
        return html.unescape(" ".join(reason.strip().replace("\n\n", ": ").split()))
    except (ValueError, AttributeError, RecursionError):
        return str(answer.reason)


def _chunks(answer: "BaseHTTPResponse") -> Iterator[bytes]:
    """Yield the content of a response as it arrives. Raises Unavailable if it takes too long."""
    waited = 0.0
    while True:
        begun = time.monotonic()
        chunk = answer.read1(_CHUNK)  # read() would wait for as much as this, however slowly it arrives
        waited += time.monotonic() - begun
        if not chunk:
            return
        if waited > limits.LONGEST:
            raise limits.too_slow()
        yield chunk


def _missing(url: str, user: str) -> tuple[str, str | None]:
    """Return a sentence that names the missing object of a URL, and a hint with the command that lists such objects.

    RabbitMQ 4.3 answers 404, too, if the user has no permissions in the virtual host.
    """
    kind, *names = (unquote(part) for part in urlsplit(url).path.partition("/api/")[2].split("/"))
    listed = f"'mqtool list {kind}' shows them"
    match kind, names:
        case "vhosts", [vhost, *_]:
            return f"vhost {vhost!r} does not exist", listed
        case "queues" | "exchanges" | "bindings" | "consumers" | "policies", [vhost]:
            said = f"vhost {vhost!r} does not exist, or user {user!r} has no permissions in it"
            return said, "'mqtool list vhosts' shows them"
        case "queues" | "exchanges", [vhost, name, *_]:
            return f"{kind[:-1]} {name!r} does not exist in vhost {vhost!r}", listed
        case "policies" | "operator-policies", [vhost, name]:
            return f"policy {name!r} does not exist in vhost {vhost!r}", "'mqtool policy ls' shows them"
        case "users", [name, *_]:
            return f"user {name!r} does not exist", listed
    return " ".join([kind, *map(repr, names), "does not exist"]), None


def _access_refused(url: str, user: str, reason: str) -> AccessRefused:
    where = f"the management API at {url}"
    if "management" in reason:
        return AccessRefused(
            f"{where} refuses user {user!r}",
            f"the user needs the tag 'management'; as an administrator: {pasteable('user tags', user, 'management')}",
        )
    for sign, tag in (("administrator", "administrator"), ("monitor", "monitoring")):
        if sign in reason:
            hint = f"the user needs the tag {tag!r}; an administrator can set its tags with 'mqtool user tags'"
            return AccessRefused(f"{where} does not allow user {user!r} to do this", hint)
    if "Login failed" in reason or reason == "Not_Authorized":  # before and from RabbitMQ 4.0
        return AccessRefused(f"{where} refuses user {user!r} with this password")
    return AccessRefused(f"{where} does not allow user {user!r} to do this: {reason}")


#: An object of the API, with the keys of https://www.rabbitmq.com/docs/http-api-reference. Only requested columns are
#: present; statistics are missing during the object's first seconds.
Json = dict[str, Any]
#: Seconds to wait for a connection and for a response: a busy broker with many queues is slow to list or delete.
PATIENCE = (5.0, 60.0)
#: The largest page that RabbitMQ allows.
PAGE_SIZE = 500
_PAGES_AT_A_TIME = 2
_CHUNK = 64 * 1024


class Management:
    """A client of one management API. Printing it never shows the password.

    Args:
        url: such as http://localhost:15672.
        patience: seconds to wait for a connection, and for each part of a response.
        ca: a PEM file with the CA certificate for an https URL; None trusts the default authorities.
        on_silence: called if there is no response; it may raise a more precise error, or return a hint.
    """

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        patience: tuple[float, float] = PATIENCE,
        ca: str | None = None,
        on_silence: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.url = url
        self.user = user
        self._password = password
        self._patience = patience
        self._ca = ca
        self._on_silence = on_silence
        self._opened: PoolManager | None = None

    def __repr__(self) -> str:
        return f"Management({self.url!r}, {self.user!r})"

    def get(self, path: str, **query: str) -> Json:
        """Get and decode one object.

        Args:
            path: the path below /api/, as returned by path().

        Raises:
            Unavailable: there is no response, or the server is not a management API.
            BadAnswer: the response is no object, or a key that mqtool relies on has another type.
            NotFound: there is no such object.
            AccessRefused: the user may not do this.
        """
        return checked(self._decoded(self._request("GET", path, query)[1]))

    def put(self, path: str, body: Json) -> bool:
        """Create or change an object; return True if it is new. Raises DeclaredDifferently if it cannot be changed."""
        return self._request("PUT", path, body=body)[0] == HTTPStatus.CREATED

    def post(self, path: str, body: Json) -> Json:
        """Create an object that has no name, such as a binding; return the decoded response body, {} if it is empty."""
        _, content = self._request("POST", path, body=body)
        return checked(self._decoded(content) if content else {})

    def delete(self, path: str) -> None:
        self._request("DELETE", path)

    def pages(
        self, path: str, columns: Sequence[str] = (), *, page_size: int = PAGE_SIZE, **query: str
    ) -> Iterator[Json]:
        """Yield the items of a list that the API returns in pages: queues, exchanges, connections, channels.

        Args:
            columns: the keys to return; empty for all. Dots separate nested keys: `message_stats.publish`.
            query: query parameters such as name=…, use_regex="true", sort=….
        """

        limit = limits.ListLimit()

        def page(number: int) -> Json:
            numbers = {"page": str(number), "page_size": str(page_size)}
            # Any user can declare queues with large arguments, so a page may be as large as a list.
            _, content = self._request(
                "GET", path, {**numbers, **_columns(columns), **query}, largest=limits.LARGEST_LIST
            )
            answer = self._decoded(content)
            if isinstance(answer, list):  # brokers without paging for this list return it whole
                answer = {"items": answer, "page_count": 1}
            match answer:
                case {"items": list(items), "page_count": int(pages)}:
                    limits.check_pages(pages, page_size)
                    limit.add(len(content), len(items))
                    return {"items": [checked(each) for each in items], "page_count": pages}
            raise self._not_an_api()

        first = page(1)
        yield from first["items"]
        if first["page_count"] > 1:
            yield from _later_pages(page, first["page_count"])

    def items(self, path: str, columns: Collection[str] = (), **query: str) -> Iterator[Json]:
        """Yield the items of a list that the API returns without pages, each as soon as it arrives."""
        from urllib3.exceptions import HTTPError

        answer = self._open("GET", path, {**_columns(columns), **query})
        try:
            yield from objects(_chunks(answer))
        except (HTTPError, ValueError) as error:
            raise Unavailable(f"the management API at {self.url} ended its response early: {error}") from error
        finally:
            answer.close()

    def _connections(self) -> "PoolManager":
        if self._opened is None:
            import urllib3

            from mqtool.management.response_head import limit

            login = base64.b64encode(f"{self.user}:{self._password}".encode()).decode()
            settings: dict[str, Any] = {
                "headers": {"Content-Type": "application/json", "Authorization": f"Basic {login}"},
                "timeout": urllib3.Timeout(connect=self._patience[0], read=self._patience[1]),
                "retries": urllib3.Retry(total=None, connect=0, read=0, status=0, other=0),
                "cert_reqs": "CERT_REQUIRED",
                "ca_certs": self._ca or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE"),
            }
            if (proxy := _proxy(self.url)) is None:
                self._opened = urllib3.PoolManager(**settings)
            else:
                parts = urlsplit(proxy)
                given = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
                headers = urllib3.make_headers(proxy_basic_auth=given)
                self._opened = urllib3.ProxyManager(proxy, proxy_headers=headers, **settings)
            limit(self._opened)
        return self._opened

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Json | None = None,
        *,
        largest: int = limits.LARGEST_VALUE,
    ) -> tuple[int, bytes]:
        """Make a request; return the status and the content of the response."""
        from urllib3.exceptions import HTTPError

        answer, content = self._open(method, path, query, body), bytearray()
        try:
            for chunk in _chunks(answer):
                content += chunk
                if len(content) > largest:
                    raise limits.too_large(largest)
        except HTTPError as error:
            raise self._no_answer(error) from error
        else:
            answer.release_conn()
        finally:
            answer.close()
        return answer.status, bytes(content)

    def _open(
        self, method: str, path: str, query: dict[str, str] | None = None, body: Json | None = None
    ) -> "BaseHTTPResponse":
        """Make a request; return the response, whose content has not been read yet."""
        from urllib3.exceptions import HTTPError

        data = None if body is None else json.dumps(body).encode()
        url = f"{self.url}/api/{path}{f'?{urlencode(query)}' if query else ''}"
        try:
            # The client does not ask for compression, and a small compressed response could become very large.
            answer = self._connections().request(
                method, url, body=data, redirect=False, preload_content=False, decode_content=False
            )
            if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
                raise refusal(answer, self.url, self.user)
        except (HTTPError, OSError, ValueError) as error:  # OSError: the CA certificate cannot be read
            raise self._no_answer(error) from error
        return answer

    def _no_answer(self, error: Exception) -> NothingAnswers:
        hint = self._on_silence() or _HOW_TO_ENABLE
        return NothingAnswers(f"no management API answers at {self.url}: {_reason(error)}", hint)

    def _decoded(self, content: bytes) -> Any:
        try:
            text = content.decode("utf-8", "surrogatepass").strip()  # as json.loads() does
            value, end = _decode(text)
            if end < len(text):
                raise ValueError("more than one value")
            return value
        except ValueError as error:
            raise self._not_an_api() from error

    def _not_an_api(self) -> BadAnswer:
        return BadAnswer(f"{self.url} is not a management API", _HOW_TO_ENABLE)


def path(*names: str) -> str:
    """Join names into a path below /api/, escaped. Raises UsageError for "", "." and "..", and for half a character."""
    for name in names:
        if name in ("", ".", ".."):  # clients remove these from a URL's path
            raise UsageError(f"the management API does not accept the name {name!r}", "a URL cannot contain it")
    try:
        return "/".join(quote(name, safe="", errors="surrogateescape") for name in names)
    except UnicodeEncodeError as error:
        raise UsageError(f"{error.object!r} cannot be a name", "half a character (a surrogate) is not UTF-8") from error


def exchange_path(vhost: str, exchange: str, *more: str) -> str:
    """Return the path of an exchange. The API calls the default exchange `amq.default`."""
    return path("exchanges", vhost, exchange or "amq.default", *more)


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for a URL, if any.

    A proxy must not get the password for a broker on this machine, nor answer in its place.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if _is_loopback(host):
        return None
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    proxy = proxies.get(parts.scheme, proxies.get("all"))
    if proxy is None or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _later_pages(page: Callable[[int], Json], count: int) -> Iterator[Json]:
    """Yield the items of all pages but the first. Requests two pages at a time, because each one is slow."""
    threads = ThreadPoolExecutor(_PAGES_AT_A_TIME)
    coming: deque[Future[Json]] = deque()
    number = 2
    try:
        while coming or number <= count:
            while number <= count and len(coming) < _PAGES_AT_A_TIME:
                coming.append(threads.submit(page, number))
                number += 1
            try:
                answer = coming.popleft().result()
            except UsageError:  # "page out of range": the last page is empty by now
                return
            if not answer["items"]:
                return
            yield from answer["items"]
            count = answer["page_count"]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _columns(columns: Collection[str]) -> dict[str, str]:
    return {"columns": ",".join(columns)} if columns else {}


def _reason(error: Exception) -> str:
    """Unwrap an exception to get the operating system's error text."""
    from http.client import BadStatusLine

    inner: Any = error
    while True:
        deeper = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        if deeper is None:  # urllib3's ProtocolError has a text and the cause
            deeper = next((each for each in inner.args if isinstance(each, BaseException)), None)
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    if isinstance(inner, TimeoutError):
        return "it takes too long"
    if isinstance(inner, BadStatusLine) and not isinstance(inner, OSError):
        return "it does not speak HTTP"
    said = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return said[0].lower() + said[1:]
