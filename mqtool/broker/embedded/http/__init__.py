"""The parts of RabbitMQ's management HTTP API that tools use, and /api/mqtool for tests.

The `*_routes.py` files define the routes, each with its permission check and its handler. This package imports `wire/`
and `model/`, never `store/`.
"""

import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from heapq import merge
from http import HTTPStatus
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from mqtool.broker.embedded.http import (
    definition_routes,
    event_routes,
    message_routes,
    node_routes,
    policy_routes,
    queue_routes,
    session_routes,
    user_routes,
)
from mqtool.broker.embedded.http.http_server import (
    HttpAnswer,
    HttpError,
    HttpRequest,
    HttpServer,
    bad_request,
    check_origin,
    in_slices,
)
from mqtool.broker.embedded.http.route_table import (
    TAGS,
    AnyConnection,
    Api,
    Counting,
    Depths,
    Json,
    Listed,
    Rates,
    RouteCall,
    answer,
    invalid_pattern,
    missing,
    refused,
)
from mqtool.broker.embedded.model.amqp_errors import ACCESS_REFUSED, RESOURCE_ERROR, AmqpException
from mqtool.broker.embedded.model.applied_policies import finder
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.users import User

if TYPE_CHECKING:
    from mqtool.broker.embedded.testing.under_test import BrokerUnderTest


#: How many items of a long list are sorted before other clients are served.
_SORTED_AT_ONCE = 10_000
_PAGE_SIZE, _MOST_ON_PAGE = 100, 500


class ManagementServer:
    """The handler of an HttpServer: logs users in, finds the route, and filters, sorts and pages lists.

    Args:
        broker: the broker.
        connections: the broker's open connections, one collection per protocol.
        listening_on: the host that the broker is configured to listen on.
        under_test: returns the object behind /api/mqtool, which injects faults and records messages.
    """

    def __init__(
        self,
        broker: Broker,
        *connections: Collection[AnyConnection],
        listening_on: str,
        under_test: "Callable[[], BrokerUnderTest]",
    ) -> None:
        self._api = Api(broker, connections, Rates(self._counting), Depths(broker), under_test)
        self._listening_on = listening_on

    def check(self, request: HttpRequest) -> None:
        """Raise HttpError 401 if the login fails, 403 or 421 if a web page sent the request."""
        check_origin(request.headers, self._listening_on)
        logins = self._api.broker.logins
        try:
            self._login(request)
        except HttpError:
            if request.credentials is not None:
                logins["http", False] += 1
            raise
        logins["http", True] += 1

    def _login(self, request: HttpRequest) -> User:
        user = None
        if request.credentials is not None:
            name, password = request.credentials
            user = self._api.broker.authenticate(name, password, from_loopback=request.from_loopback)
        if user is not None and TAGS.intersection(user.tags):
            return user
        # The `error` of a missing permission is spelled "not_authorised", as in RabbitMQ.
        reason = "Login failed" if user is None else "Not management user"
        raise HttpError(HTTPStatus.UNAUTHORIZED, "not_authorized", reason)

    async def stored(self) -> None:
        """Wait until all changes made by requests are on disk."""
        await self._api.broker.ledger.stored()

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Handle a request and return the response; raise HttpError for any status that is an error."""
        user = self._login(request)
        if request.path in ([], ["api"]):
            return HttpAnswer(HTTPStatus.OK, {"management": "embedded"})
        if request.path[0] != "api":
            missing()
        try:
            found = await answer(RouteCall(self._api, request, user))
        except (UnicodeError, struct.error) as error:
            raise bad_request(f"cannot be stored: {error}") from error
        except RecursionError as error:  # since Python 3.14, json reads values nested too deeply for Python code
            raise bad_request("nested too deeply") from error
        except AmqpException as error:
            reason = error.text.partition(" - ")[2]
            if error.code == RESOURCE_ERROR:
                raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "disk", reason) from error
            raise (refused if error.code == ACCESS_REFUSED else bad_request)(reason) from error
        if request.method in ("GET", "HEAD") and request.path[1] not in ("mqtool", "definitions"):
            if isinstance(found.value, list | Listed | Iterator):
                # RabbitMQ has no pages of bindings.
                query = {**request.query, "page": ""} if "bindings" in request.path else request.query
                found.value = await _listed(found.value, query)
            elif isinstance(found.value, dict):
                found.value = _columns(found.value, _wanted_columns(request.query))
        return found

    def _counting(self) -> Iterator[Counting]:
        yield self._api.depths
        for vhost in self._api.broker.vhosts.values():
            for queue in vhost.queues.values():
                yield queue.traffic
            yield from vhost.exchanges.values()
        for connection in self._api.connections:
            if connection.is_open:
                yield from connection.channels.values()


def _wanted_columns(query: dict[str, str]) -> list[str]:
    return query["columns"].split(",") if "columns" in query else []


async def _listed(listed: Iterable[Json] | Listed, query: dict[str, str]) -> Any:
    """Sort a list, and return the page and columns that the query string asks for."""
    columns = _wanted_columns(query)
    items, view = listed if isinstance(listed, Listed) else (await in_slices(listed), dict)
    items = await _sorted(items, _sort_key)
    if "sort" in query:
        ranked = await in_slices((_rank(view(item), query["sort"]), item) for item in items)
        ranked = await _sorted(ranked, itemgetter(0), is_reverse=query.get("sort_reverse") == "true")
        items = [item for _, item in ranked]
    if not query.get("page"):
        return (_columns(view(item), columns) or [] for item in _taken_from(items))
    total = len(items)
    try:
        page, size = int(query["page"]), int(query.get("page_size", _PAGE_SIZE))
    except ValueError as error:
        raise bad_request("Pagination parameters are invalid") from error
    if page < 1 or not 1 <= size <= _MOST_ON_PAGE:
        given = query.get("page_size", "undefined")
        reason = f"Invalid pagination parameters: page number {page}, page size {given}"
        raise HttpError(HTTPStatus.BAD_REQUEST, "invalid_pagination_parameters", reason)
    if query.get("name"):
        is_wanted = _name_filter(query["name"], is_pattern=query.get("use_regex") == "true")
        marked = await in_slices((is_wanted(str(_sort_key(item)[1])), item) for item in items)
        items = [item for is_match, item in marked if is_match]
    pages = max(-(-len(items) // size), 1)
    if page > pages:
        reason = f"Page out of range, page: {page} page size: {size}, len: {len(items)}"
        raise HttpError(HTTPStatus.BAD_REQUEST, "page_out_of_range", reason)
    shown = await in_slices(_columns(view(item), columns) for item in items[(page - 1) * size : page * size])
    count = len(items)
    await in_slices(None for _ in _taken_from(items))
    return {
        "items": shown,
        "item_count": len(shown),
        "filtered_count": count,
        "total_count": total,
        "page": page,
        "page_size": size,
        "page_count": pages,
    }


def _taken_from(items: list[Any]) -> Iterator[Any]:
    """Yield the items, and remove each from the list: to free many of them at once takes long."""
    items.reverse()
    while items:
        yield items.pop()


async def _sorted(items: list[Any], key: Callable[[Any], Any], *, is_reverse: bool = False) -> list[Any]:
    """Sort a list, in slices, letting the event loop serve other clients between them."""
    parts = (items[at : at + _SORTED_AT_ONCE] for at in range(0, len(items), _SORTED_AT_ONCE))
    runs = await in_slices(sorted(part, key=key, reverse=is_reverse) for part in parts)
    return runs[0] if len(runs) == 1 else await in_slices(merge(*runs, key=key, reverse=is_reverse))


def _name_filter(wanted: str, *, is_pattern: bool) -> Callable[[str], bool]:
    """Return a function that tells if a name matches a regular expression or contains a text, in any case."""
    if not is_pattern:
        return lambda name: wanted.lower() in name.lower()
    try:
        return finder(f"(?i){wanted}")
    except ValueError as error:
        raise invalid_pattern(wanted, error) from error


def _sort_key(item: Any) -> tuple[str, str]:
    """Return an item's virtual host and name, by which lists are sorted by default."""
    return (item.get("vhost", ""), item.get("name", "")) if isinstance(item, dict) else (item.vhost, item.name)


def _columns(item: Json, columns: list[str]) -> Json:
    """Return an item with only these columns; an empty list selects all. `a.b` selects field `b` of the object `a`."""
    if not columns:
        return item
    cut: Json = {}
    for column in columns:
        *outer, last = column.split(".")
        has, into = item, cut
        for name in outer:
            if not isinstance(has.get(name), dict):
                break  # names of fields that do not exist must not nest objects
            has, into = has[name], into.setdefault(name, {})
        else:
            if has.get(last) is not None:
                into[last] = has[last]
    return cut


def _value(item: Json, names: list[str]) -> Any:
    """Return the value of a field or, with several names, of a nested field; None if it is missing."""
    value: Any = item
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _rank(item: Json, path: str) -> tuple[int, Any]:
    """Return the sort key of an item: items without a value come first, then numbers, then text."""
    value = _value(item, path.split("."))
    return (0, 0) if value is None else (1, value) if isinstance(value, int | float) else (2, str(value))


__all__ = ["HttpServer", "ManagementServer"]
