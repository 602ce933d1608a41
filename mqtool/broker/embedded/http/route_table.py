"""Defines routes of the management API: each has a path, methods, a permission check and a handler function.

    @route("PUT", "vhosts/VHOST", administrator)
    def put_vhost(call: Call, name: str) -> Answer: ...

Upper-case words in a path are placeholders, whose values are passed to the handler. The routes are listed for users in
docs/reference/embedded-broker.md; https://www.rabbitmq.com/docs/management#permissions explains permissions.
"""

import asyncio
import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from mqtool.broker.embedded.http.http_server import HttpAnswer, HttpError, HttpRequest, bad_request
from mqtool.broker.embedded.model.amqp_errors import locked_queue
from mqtool.broker.embedded.model.applied_policies import check_pattern
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.wire.amqp_connection import BrokerConnection

if TYPE_CHECKING:
    from mqtool.broker.embedded.amqp10.amqp10_connection import Connection10

    # For type checkers only: most brokers serve neither streams nor tests, and start faster without these imports.
    from mqtool.broker.embedded.streaming.stream_connection import StreamConnection
    from mqtool.broker.embedded.testing.under_test import BrokerUnderTest

AnyConnection: TypeAlias = "BrokerConnection | StreamConnection | Connection10"
Json = dict[str, Any]

#: The user tags that allow users to log in, and those that let them see the names of all virtual hosts, and all
#: connections.
TAGS = {"administrator", "monitoring", "policymaker", "management"}
SEES_ALL = {"administrator", "monitoring"}

READ = "GET HEAD"
_SAMPLE_SECONDS = 2.5
#: After the counters of this many objects, other clients get a turn.
_AT_ONCE = 500
_Sample = tuple[float, dict[str, int]]


class Counting(Protocol):
    """An object with counters: a queue, an exchange or a channel."""

    def counts(self) -> dict[str, int]:
        """Return the counters under the names that RabbitMQ uses."""


class Rates:
    """Computes how fast counters change. Reads them every few seconds, so that even the first request gets rates.

    Args:
        counting: returns all objects that have counters.
    """

    def __init__(self, counting: Callable[[], Iterable[Counting]]) -> None:
        self._counting = counting
        #: The previous and the latest sample of each object: a time, and the counters at that time.
        self._samples: WeakKeyDictionary[Counting, tuple[_Sample, _Sample]] = WeakKeyDictionary()
        # Python can garbage-collect a task that nothing refers to.
        self._sampling = asyncio.get_running_loop().create_task(self._sample())

    def of(self, counting: Counting) -> dict[str, int | dict[str, float]]:
        """Return an object's counters with their rates, as in `message_stats`."""
        now = asyncio.get_running_loop().time()
        (at, earlier), _ = self._samples.get(counting, ((now, {}), None))
        stats: dict[str, int | dict[str, float]] = {}
        for name, count in counting.counts().items():
            rate = (count - earlier.get(name, 0)) / (now - at) if now - at >= 1 else 0.0
            stats |= {name: count, f"{name}_details": {"rate": round(rate, 1)}}
        return stats

    async def total(self, counting: Iterable[Counting]) -> dict[str, int | dict[str, float]]:
        """Return the sums of the counters and rates of several objects. Other clients are served meanwhile."""
        counts: dict[str, int] = {}
        rates: dict[str, float] = {}
        for number, each in enumerate(counting, 1):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            for name, value in self.of(each).items():
                if isinstance(value, dict):
                    rates[name] = rates.get(name, 0.0) + value["rate"]
                else:
                    counts[name] = counts.get(name, 0) + value
        return {**counts, **{name: {"rate": round(rate, 1)} for name, rate in rates.items()}}

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            for number, counting in enumerate([*self._counting()]):
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)  # lets the event loop serve clients
                latest = asyncio.get_running_loop().time(), counting.counts()
                _, earlier = self._samples.get(counting, (latest, latest))
                self._samples[counting] = earlier, latest


class Depths:
    """The numbers of messages in all queues of a broker, whose rates the overview shows."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def counts(self) -> dict[str, int]:
        """Return the numbers under the names that RabbitMQ uses in `queue_totals`."""
        queues = [queue for vhost in self._broker.vhosts.values() for queue in vhost.queues.values()]
        ready, unacked = sum(map(len, queues)), sum(queue.unacked for queue in queues)
        return {"messages": ready + unacked, "messages_ready": ready, "messages_unacknowledged": unacked}


@dataclass
class Api:
    """The parts of a broker that handlers use.

    Attributes:
        broker: the broker.
        by_protocol: the broker's connections, one collection per protocol.
        rates: computes the rates of the broker's counters.
        depths: counts the messages in all queues.
        under_test: returns the object behind /api/mqtool, which injects faults and records messages.
    """

    broker: Broker
    by_protocol: tuple[Collection[AnyConnection], ...]
    rates: Rates
    depths: Depths
    under_test: "Callable[[], BrokerUnderTest]"

    @property
    def connections(self) -> list[AnyConnection]:
        """The connections of all protocols."""
        return [connection for connections in self.by_protocol for connection in connections]


@dataclass
class RouteCall:
    """A request to a handler, with the broker and the logged-in user. Methods raise HttpError 404 for missing objects.

    Attributes:
        api: the parts of the broker that handlers use.
        request: the request.
        user: the logged-in user.
    """

    api: Api
    request: HttpRequest
    user: User

    @property
    def broker(self) -> Broker:
        return self.api.broker

    @property
    def body(self) -> Json:
        """The body of the request, which must be a JSON object (otherwise raises HttpError 400)."""
        return self.request.json(first=self.broker.profile.api >= "4.0")

    def opened(self) -> list[AnyConnection]:
        """Return the connections that have completed the handshake. Only these have a user and a virtual host."""
        return [connection for connection in self.api.connections if connection.is_open]

    def connections(self, vhost: str | None = None) -> list[AnyConnection]:
        """Return the open connections that the user may see (the user's own, or all), in one virtual host or in all."""
        wanted = None if vhost is None else self.vhost(vhost)
        mine = [each for each in self.opened() if each.user.name == self.user.name or self.sees_all()]
        return [each for each in mine if wanted in (None, each.vhost)]

    def sees_all(self) -> bool:
        """Return True if the user may see the names of all virtual hosts, and all connections."""
        return bool(SEES_ALL.intersection(self.user.tags))

    def is_administrator(self) -> bool:
        """Return True if the user has the tag `administrator`, and may see what all virtual hosts contain."""
        return "administrator" in self.user.tags

    def vhost(self, name: str) -> VirtualHost:
        return self.broker.vhosts.get(name) or missing()

    def vhosts(self, name: str | None = None) -> list[VirtualHost]:
        """Return a list with the virtual host of this name; for None, with all whose contents the user may see."""
        if name is not None:
            return [self.vhost(name)]
        is_administrator = self.is_administrator()
        return [each for each in self.broker.vhosts.values() if is_administrator or each.name in self.user.permissions]

    def named_vhosts(self) -> list[VirtualHost]:
        """Return a list with all virtual hosts whose names the user may see."""
        return [*self.broker.vhosts.values()] if self.sees_all() else self.vhosts()

    def users(self, name: str | None = None) -> list[User]:
        """Return a list with the user of this name; for None, with all users."""
        return [*self.broker.users.values()] if name is None else [self.broker.users.get(name) or missing()]

    def named_user(self, name: str) -> User:
        return self.users(name)[0]

    def queue(self, vhost: str, name: str) -> BrokerQueue:
        return self.vhost(vhost).queues.get(name) or missing()

    def shared_queue(self, vhost: str, name: str) -> BrokerQueue:
        """Return the queue of this name; raise AmqpException if it is exclusive to a connection."""
        queue = self.queue(vhost, name)
        if queue.owner is not None:
            raise locked_queue(name, vhost)
        return queue

    def exchange(self, vhost: str, name: str) -> BrokerExchange:
        return self.vhost(vhost).exchanges.get(exchange_name(name)) or missing()

    def rights(self, vhost: str) -> Rights:
        """Return the user's permissions in a virtual host. They are the same for AMQP and HTTP."""
        return Rights(self.broker, self.user.name, vhost)


class Listed(NamedTuple):
    """A long list to return in pages: objects with a name and a vhost. `view` converts one of them to JSON."""

    items: list[Any]
    view: Callable[[Any], Json]


RouteHandler = Callable[..., Any]
Right = Callable[..., None]


class HttpRoute(NamedTuple):
    """One HTTP method on a path.

    Attributes:
        right: raises HttpError 401 if the user lacks the permission; called with the handler's arguments.
        handler: handles the request and returns an HttpAnswer, a JSON value, or None for 204; a coroutine if that
            can take long.
    """

    right: Right
    handler: RouteHandler


_ROUTES: dict[str, dict[str, HttpRoute]] = {}


def route(methods: str, path: str, right: Right) -> Callable[[RouteHandler], RouteHandler]:
    """Register the decorated function as the handler of a path.

    Args:
        methods: one or more HTTP methods, separated by spaces.
        path: the path below /api, such as "queues/VHOST/QUEUE".
        right: checks that the user has the required permission.
    """

    def register(handler: RouteHandler) -> RouteHandler:
        for method in methods.split():
            _ROUTES.setdefault(path, {})[method] = HttpRoute(right, handler)
        return handler

    return register


def paths() -> dict[str, list[str]]:
    """Return all paths below /api, each with its methods in a fixed order."""
    order = ("GET", "HEAD", "PUT", "POST", "DELETE")
    return {path: sorted(routes, key=order.index) for path, routes in _ROUTES.items()}


def found(path: list[str]) -> tuple[dict[str, HttpRoute], list[str]]:
    """Return a path's routes by method, and the values of its placeholders; raise 404 if there are none."""
    best: tuple[list[bool], dict[str, HttpRoute], list[str]] | None = None
    for pattern, routes in _ROUTES.items():
        words = pattern.split("/")
        if len(words) == len(path) and all(
            word == each or word.isupper() for word, each in zip(words, path, strict=True)
        ):
            # "users/without-permissions" takes precedence over "users/USER".
            rank = [word.isupper() for word in words]
            if best is None or rank < best[0]:
                best = rank, routes, [each for word, each in zip(words, path, strict=True) if word.isupper()]
    return missing() if best is None else best[1:]


async def answer(call: RouteCall) -> HttpAnswer:
    """Handle a request below /api and return the response.

    Raises:
        HttpError: 400, 401, 404, 405 or 503.
        AmqpException: the operation failed with an AMQP error.
    """
    routes, names = found(call.request.path[1:])
    method = call.request.method
    if method == "OPTIONS":
        return HttpAnswer(HTTPStatus.OK, allow=(*routes, "OPTIONS"))
    if method not in routes:
        return HttpAnswer(HTTPStatus.METHOD_NOT_ALLOWED, allow=(*routes, "OPTIONS"))
    right, handler = routes[method]
    right(call, *names)
    value = handler(call, *names)
    if inspect.iscoroutine(value):
        value = await value
    if isinstance(value, HttpAnswer):
        return value
    return NO_CONTENT if value is None else HttpAnswer(HTTPStatus.OK, value)


NO_CONTENT = HttpAnswer(HTTPStatus.NO_CONTENT)
CREATED = HttpAnswer(HTTPStatus.CREATED)


def put(*, existed: bool) -> HttpAnswer:
    """Return the response to a PUT: 204 if the object existed, otherwise 201."""
    return NO_CONTENT if existed else CREATED


def missing(reason: str = "") -> NoReturn:
    """Raise HttpError 404 with RabbitMQ's error text, or with this reason."""
    raise HttpError(HTTPStatus.NOT_FOUND, "not_found" if reason else "Object Not Found", reason or "Not Found")


def refused(reason: str) -> HttpError:
    """Return an HttpError with status 401, which RabbitMQ uses for a missing permission."""
    return HttpError(HTTPStatus.UNAUTHORIZED, "not_authorised", reason)


def exchange_name(name: str) -> str:
    """Convert an exchange name in a path: `amq.default` stands for the default exchange, whose name is empty."""
    return "" if name == "amq.default" else name


def check_regular_expression(pattern: str) -> None:
    """Raise HttpError 400 if a client's regular expression is not valid."""
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise invalid_pattern(pattern, error) from error


def invalid_pattern(pattern: str, error: ValueError) -> HttpError:
    """Return an HttpError with status 400 for a client's regular expression."""
    return bad_request(f"invalid regular expression {pattern}: {error}")


def where(views: Iterable[Json], **wanted: str) -> list[Json]:
    """Return the JSON objects whose fields have these values."""
    return [view for view in views if all(view[name] == value for name, value in wanted.items())]


def first(views: Iterable[Json], **wanted: str) -> Json:
    """Return the first JSON object whose fields have these values; raise HttpError 404 if there is none."""
    return (where(views, **wanted) or missing())[0]


def anyone(call: RouteCall, *names: str) -> None:
    """Allow every logged-in user."""


def since(version: str) -> Right:
    """Return a check that allows every logged-in user from this version on. Earlier ones do not have the path."""
    return lambda call, *_: None if call.broker.profile.api >= version else missing()


def until(version: str) -> Right:
    """Return a check that allows every logged-in user before this version. Later ones do not have the path."""
    return lambda call, *_: None if call.broker.profile.api < version else missing()


def administrator(call: RouteCall, *names: str) -> None:  # noqa: ARG001
    """Allow only administrators."""
    if not call.is_administrator():
        raise refused("Not administrator user")


def monitoring(call: RouteCall, *names: str) -> None:  # noqa: ARG001
    """Allow only users who may see the names of all virtual hosts."""
    if not call.sees_all():
        raise refused("Not monitor user")


def observer(call: RouteCall, vhost: str, *names: str) -> None:  # noqa: ARG001
    """Allow users who may see the virtual host's name, but not necessarily what it contains."""
    if not call.sees_all():
        member(call, vhost)


def visitor(call: RouteCall, vhost: str, *names: str) -> None:  # noqa: ARG001
    """Allow administrators, and users with permissions in the virtual host."""
    if not call.is_administrator():
        member(call, vhost)


def member(
    call: RouteCall,
    vhost: str,
    *names: str,  # noqa: ARG001
    reason: str = "User not authorised to access virtual host",
) -> None:
    """Allow users with any permissions in the virtual host. The handler checks the specific permission."""
    if vhost not in call.user.permissions:
        if vhost not in call.broker.vhosts:
            missing("vhost_not_found" if call.request.method in ("PUT", "POST") else "")
        if call.broker.profile.hides_vhosts and not call.is_administrator():
            raise HttpError(HTTPStatus.NOT_FOUND, "not_found", "Not Found")
        raise refused(reason)


def policymaker(call: RouteCall, vhost: str | None = None, *names: str) -> None:  # noqa: ARG001
    """Allow administrators and policymakers. If the path has a virtual host, policymakers need permissions in it."""
    if call.is_administrator():
        return
    reason = "User not authorised to access object"
    if "policymaker" not in call.user.tags:
        raise refused(reason)
    if vhost is not None:
        member(call, vhost, reason=reason)
