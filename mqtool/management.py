"""A client of the RabbitMQ management HTTP API, for what AMQP cannot tell: which queues there are, who is connected.

Lists come as generators and take little memory, however long they are: page by page where the API has pages (queues,
exchanges, connections, channels), else decoded object by object as the answer comes in (bindings, consumers). Name the
columns that you need: answers get smaller by far. https://www.rabbitmq.com/docs/http-api-reference
"""

import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import quote, unquote, urlsplit

from mqtool.errors import AccessRefused, DeclaredDifferently, NotFound, Unavailable, UsageError
from mqtool.json_array import objects
from mqtool.management_views import (
    BindingView,
    ChannelView,
    ConnectionView,
    ConsumerView,
    ExchangeView,
    Json,
    NodeView,
    PermissionView,
    PolicyView,
    QueueView,
    UserView,
    VhostView,
)

if TYPE_CHECKING:
    from requests import Response, Session

#: Seconds, for a connection, and for an answer: with many queues a busy broker takes long to list, or to delete.
PATIENCE = (5.0, 60.0)
#: The most that RabbitMQ gives.
PAGE_SIZE = 500
_PAGES_AT_A_TIME = 2
_CHUNK = 64 * 1024
HOW_TO_ENABLE = (
    "is the broker up? Enable it there with 'rabbitmq-plugins enable rabbitmq_management', or name it with --management"
)


class Management:
    """Where the API is, and how to get in. Printing one never shows the password.

    Args:
        url: such as http://localhost:15672.
        patience: seconds to wait for a connection, and for each piece of an answer.
        ca: the authority that signed the certificate of an https URL (a PEM file); None trusts the system's.
    """

    def __init__(
        self, url: str, user: str, password: str, patience: tuple[float, float] = PATIENCE, ca: str | None = None
    ) -> None:
        self.url = url
        self.user = user
        self._password = password
        self._patience = patience
        self._ca = ca
        self._opened: Session | None = None

    def __repr__(self) -> str:
        return f"Management({self.url!r}, {self.user!r})"

    def another(self) -> "Management":
        """The same API by another connection, for another thread."""
        return Management(self.url, self.user, self._password, self._patience, self._ca)

    def get(self, path: str, **query: str) -> Any:
        """Get and decode one resource.

        Args:
            path: below /api/, as path() makes it.

        Raises:
            Unavailable: nothing answers there, or it is no management API; NotFound: it has no such thing.
            AccessRefused: the user may not use it.
        """
        return self._decoded(self._request("GET", path, query))

    def put(self, path: str, body: Json) -> bool:
        """Make something, or change it; returns whether it is new.

        Raises:
            DeclaredDifferently: it is there, and cannot be changed.
            UsageError: the broker does not take what the body says.
            Unavailable, NotFound, AccessRefused: as of get().
        """
        return self._request("PUT", path, body=body).status_code == HTTPStatus.CREATED

    def delete(self, path: str) -> None:
        """Delete something. Raises as get() does."""
        self._request("DELETE", path)

    def pages(
        self, path: str, columns: Sequence[str] = (), *, page_size: int = PAGE_SIZE, **query: str
    ) -> Iterator[Json]:
        """The items of a list that the API gives in pages: queues, exchanges, connections, channels.

        Args:
            columns: those that each item shall have; none for all. `message_stats.publish` is one inside another.
            query: such as name=…, use_regex="true", sort=….

        Raises: as get() does.
        """

        def page(number: int) -> Json:
            numbers = {"page": str(number), "page_size": str(page_size)}
            answer: Any = self.get(path, **numbers, **_columns(columns), **query)
            # A broker that has no pages for this gives all at once.
            return answer if isinstance(answer, dict) else {"items": answer, "page_count": 1}

        first = page(1)
        yield from first["items"]
        if first["page_count"] > 1:
            yield from _later_pages(page, first["page_count"])

    def items(self, path: str, columns: Collection[str] = (), **query: str) -> Iterator[Json]:
        """The items of a list that the API gives as a whole, each decoded as it comes in. Raises as get() does."""
        import requests

        answer = self._request("GET", path, {**_columns(columns), **query}, stream=True)
        with answer:
            try:
                yield from objects(answer.iter_content(_CHUNK))
            except (requests.RequestException, ValueError) as error:
                raise Unavailable(f"the management API at {self.url} broke off in its answer: {error}") from error

    # HTTP.

    def _session(self) -> "Session":
        if self._opened is None:
            import requests  # here, as commands that need no API shall not wait for it

            self._opened = requests.Session()
            self._opened.auth = (self.user.encode(), self._password.encode())  # type: ignore[assignment]  # UTF-8
            if self._ca is not None:
                self._opened.verify = self._ca
        return self._opened

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Json | None = None,
        stream: bool = False,
    ) -> "Response":
        import requests

        data = None if body is None else json.dumps(body).encode()
        try:
            answer = self._session().request(
                method,
                f"{self.url}/api/{path}",
                params=query,
                data=data,
                headers={"Content-Type": "application/json"},
                timeout=self._patience,
                stream=stream,
            )
        except (requests.RequestException, ValueError) as error:  # requests lets some of urllib3's through
            raise Unavailable(f"no management API answers at {self.url}: {_reason(error)}", HOW_TO_ENABLE) from error
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            self._refused(answer)
        return answer

    def _decoded(self, answer: "Response") -> Any:
        try:
            return json.loads(answer.content)
        except ValueError as error:
            raise Unavailable(f"what answers at {self.url} is no management API", HOW_TO_ENABLE) from error

    def _refused(self, answer: "Response") -> NoReturn:
        """Say what an answer that is not the one hoped for means."""
        reason = _said(answer)
        match answer.status_code:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                raise _access_refused(self.url, self.user, reason)
            case HTTPStatus.NOT_FOUND if "application/json" in answer.headers.get("content-type", ""):
                raise NotFound(f"the broker has no {_missing(answer.url)}")
            case HTTPStatus.BAD_REQUEST if "inequivalent" in reason:
                raise DeclaredDifferently(f"the broker has it, but declared differently: {reason}")
            case HTTPStatus.BAD_REQUEST if "invalid_regexp" in reason or "regular expression" in reason:
                raise UsageError("one of the patterns is no regular expression", "'.*' is one that matches everything")
            case HTTPStatus.BAD_REQUEST:
                raise UsageError(f"the broker refuses: {reason}")
            case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
                raise Unavailable(f"what answers at {self.url} is no management API", HOW_TO_ENABLE)
            case status:
                raise Unavailable(f"the management API at {self.url} answers {status} {reason}".rstrip())


def path(*names: str) -> str:
    """A path below /api/, of names as they are.

    Raises:
        UsageError: no URL can hold one of them.
    """
    for name in names:
        if name in ("", ".", ".."):  # a URL's path loses these, whatever one does
            raise UsageError(f"the management API cannot be asked about the name {name!r}")
    return "/".join(quote(name, safe="") for name in names)


def exchange_path(vhost: str, exchange: str, *more: str) -> str:
    """The path of an exchange, of which the default one has no name. Raises as path() does."""
    return path("exchanges", vhost, exchange or "amq.default", *more)


def _later_pages(page: Callable[[int], Json], count: int) -> Iterator[Json]:
    """The items of all pages but the first. Two are on their way at a time: the broker sorts anew for each."""
    from concurrent.futures import Future, ThreadPoolExecutor

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
            except UsageError:  # "page out of range": what was on the last page is gone meanwhile
                return
            yield from answer["items"]
            count = answer["page_count"]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _columns(columns: Collection[str]) -> dict[str, str]:
    return {"columns": ",".join(columns)} if columns else {}


def _reason(error: Exception) -> str:
    """The system's own words, without the layers that are wrapped around them."""
    inner: Any = error
    while True:
        deeper = getattr(inner, "reason", None) or inner.__cause__ or inner.__context__
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    if isinstance(inner, TimeoutError):
        return "it takes too long"
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _said(answer: "Response") -> str:
    try:
        said = json.loads(answer.content)
        return str(said.get("reason") or said.get("error") or answer.reason)
    except (ValueError, AttributeError):
        return str(answer.reason)


def _missing(url: str) -> str:
    """What a path names, as words."""
    kind, *names = (unquote(part) for part in urlsplit(url).path.partition("/api/")[2].split("/"))
    match kind, names:
        case "vhosts", [vhost, *_]:
            return f"vhost {vhost!r}"
        case "queues" | "exchanges" | "bindings" | "consumers" | "policies", [vhost]:
            return f"vhost {vhost!r}"
        case "queues" | "exchanges", [vhost, name, *_]:
            return f"{kind[:-1]} {name!r} in vhost {vhost!r}, or no such vhost"
        case "users", [name, *_]:
            return f"user {name!r}"
    return " ".join([kind, *map(repr, names)])


def _access_refused(url: str, user: str, reason: str) -> AccessRefused:
    where = f"the management API at {url}"
    if "management" in reason:
        return AccessRefused(
            f"{where} does not let user {user!r} in",
            "it asks for the tag 'management': mqtool user tags USER management",
        )
    for sign, tag in (("administrator", "administrator"), ("monitor", "monitoring")):
        if sign in reason:
            return AccessRefused(f"{where} does not let user {user!r} do this", f"it asks for the tag {tag!r}")
    if "Login failed" in reason or reason == "Not_Authorized":  # before and from RabbitMQ 4.0
        return AccessRefused(f"{where} does not know user {user!r} with this password")
    return AccessRefused(f"{where} does not let user {user!r} do this: {reason}")


# What there is. vhost: that one; None for all that the user may see. Each raises as Management.get does.


def queues(
    api: Management, vhost: str | None, columns: Sequence[str] = (), *, page_size: int = PAGE_SIZE, **query: str
) -> Iterator[QueueView]:
    """Queues. Their counts come from statistics, which are up to five seconds old."""
    return cast("Iterator[QueueView]", api.pages(_in("queues", vhost), columns, page_size=page_size, **query))


def exchanges(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[ExchangeView]:
    """Exchanges, with those that each vhost has from the start."""
    return cast("Iterator[ExchangeView]", api.pages(_in("exchanges", vhost), columns))


def bindings(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[BindingView]:
    """Bindings, with those that each queue has to the default exchange; vhost by vhost, for the broker's sake."""
    names = [vhost] if vhost is not None else [view["name"] for view in vhosts(api, ("name",))]
    for name in names:
        try:
            yield from cast("Iterator[BindingView]", api.items(path("bindings", name), columns))
        except NotFound:  # a vhost may have gone since it was listed
            if vhost is not None:
                raise


def consumers(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[ConsumerView]:
    """Consumers."""
    return cast("Iterator[ConsumerView]", api.items(_in("consumers", vhost), columns))


def connections(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[ConnectionView]:
    """Connections."""
    where = "connections" if vhost is None else path("vhosts", vhost, "connections")
    return cast("Iterator[ConnectionView]", api.pages(where, columns))


def channels(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[ChannelView]:
    """Channels."""
    where = "channels" if vhost is None else path("vhosts", vhost, "channels")
    return cast("Iterator[ChannelView]", api.pages(where, columns))


def vhosts(api: Management, columns: Collection[str] = ()) -> Iterator[VhostView]:
    """Virtual hosts that the user may see."""
    return cast("Iterator[VhostView]", api.items("vhosts", columns))


def users(api: Management) -> Iterator[UserView]:
    """Users; only an administrator may list them. Hashes of passwords are not asked for."""
    return cast("Iterator[UserView]", api.items("users", ("name", "tags")))


def permissions(api: Management, vhost: str | None) -> Iterator[PermissionView]:
    """Permissions; only an administrator may list them."""
    where = "permissions" if vhost is None else path("vhosts", vhost, "permissions")
    return cast("Iterator[PermissionView]", api.items(where))


def nodes(api: Management) -> Iterator[NodeView]:
    """The nodes of the cluster, with alarms and enabled plugins; it takes the tag 'monitoring'."""
    return cast("Iterator[NodeView]", api.items("nodes"))


def policies(api: Management, vhost: str | None) -> Iterator[PolicyView]:
    """Policies."""
    return cast("Iterator[PolicyView]", api.items(_in("policies", vhost)))


def _in(kind: str, vhost: str | None) -> str:
    return kind if vhost is None else path(kind, vhost)


# Questions with one answer.


def listens_on(management: Management, port: int) -> bool:
    """Whether the broker behind the API takes AMQP connections on a port. Raises as Management.get does."""
    listeners = management.get("overview").get("listeners") or []
    return any(listener.get("port") == port for listener in listeners)


def effective_arguments(queue: QueueView) -> Json:
    """What a queue was declared with, and what policies add to that (without `x-`)."""
    return {**(queue.get("effective_policy_definition") or {}), **(queue.get("arguments") or {})}


def bound_to(management: Management, vhost: str, exchange: str) -> set[str]:
    """The queues that are bound to an exchange. Raises as Management.get does."""
    found = management.items(exchange_path(vhost, exchange, "bindings", "source"), ("destination", "destination_type"))
    return {entry["destination"] for entry in found if entry.get("destination_type") == "queue"}


def consumer_timeout(management: Management, vhost: str, queue: str) -> float | None:
    """Seconds for which a delivery of a queue may be unacknowledged, where the queue or a policy says so; else None.

    What the broker's configuration says, no API tells. Raises as Management.get does.
    https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
    """
    arguments = effective_arguments(management.get(path("queues", vhost, queue)))
    milliseconds = arguments.get("x-consumer-timeout", arguments.get("consumer-timeout"))
    return None if milliseconds is None else milliseconds / 1000
