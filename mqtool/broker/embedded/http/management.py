"""The requests of the management API: who asks, what for, and which part of the answer."""

import binascii
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from mqtool.broker.embedded.http import access, definitions, health, parameters, paths, policies, process, views
from mqtool.broker.embedded.http.changes import Changes
from mqtool.broker.embedded.http.directory import (
    AnyConnection,
    Directory,
    bad_request,
    check_regular_expression,
    missing,
    not_found,
)
from mqtool.broker.embedded.http.origins import check_origin
from mqtool.broker.embedded.http.rates import Counting, Rates
from mqtool.broker.embedded.http.server import Answer, HttpError, Request
from mqtool.broker.embedded.http.topic_permissions import topic_permissions
from mqtool.broker.embedded.model.amqp_errors import RESOURCE_ERROR, AmqpException
from mqtool.broker.embedded.model.applied_policies import found
from mqtool.broker.embedded.model.broker import NODE, Broker
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.wire.amqp_channel import Channel

if TYPE_CHECKING:
    from mqtool.broker.embedded.testing.under_test import BrokerUnderTest


class Management(Directory):
    """Answers requests.

    Args:
        under_test: returns the broker as tests see it.
    """

    def __init__(
        self,
        broker: Broker,
        *connections: Collection[AnyConnection],
        listening_on: str,
        under_test: "Callable[[], BrokerUnderTest]",
    ) -> None:
        super().__init__(broker, *connections)
        self._changes = Changes(broker, *connections)
        self._rates = Rates(self._counting)
        self._listening_on = listening_on
        self._under_test = under_test
        self._lists: dict[str, Callable[[User, str | None], Iterable[views.Json]]] = {
            "queues": self._queues,
            "exchanges": self._exchanges,
            "bindings": self._bindings,
            "consumers": self._consumers,
            "connections": self._connections,
            "channels": self._channels,
        }

    def answer(self, request: Request) -> Answer:
        """Answer a request.

        Raises:
            HttpError: 400, 401, 404, 405 or 503.
        """
        user = self._login(request)
        if (options := paths.checked(request)) is not None:
            return options
        match request.method, request.path:
            case _, [] | ["api"]:
                return Answer(HTTPStatus.OK, {"management": "embedded"})
            case _, ["api", "mqtool", *path]:
                access.check_administrator(user)
                # Imported here: most brokers are not tested with.
                from mqtool.broker.embedded.http.bench import BenchRequests

                return BenchRequests(self._under_test).answer(request, path)
            case "GET" | "HEAD", ["api", "health", "checks", *path]:
                return health.check(self.broker, path)
            case "GET" | "HEAD", ["api", *path]:
                access.check_read(user, path, self.broker.profile)
                return self._shown(request, self._get(user, path))
            case "PUT" | "POST" | "DELETE", ["api", *path]:
                access.check_change(user, path, self.broker.profile)
                try:
                    return self._changes.change(user, request, path)
                except (UnicodeError, struct.error, binascii.Error) as error:
                    raise bad_request(f"cannot be stored: {error}") from error
                except AmqpException as error:
                    reason = error.text.partition(" - ")[2]
                    if error.code == RESOURCE_ERROR:
                        raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "disk", reason) from error
                    raise bad_request(reason) from error
        raise not_found()

    def check(self, request: Request) -> None:
        """Check who asks, before the body is read.

        Raises:
            HttpError: 401, or 403 or 421 for a web page.
        """
        check_origin(request.headers, self._listening_on)
        self._login(request)

    def _login(self, request: Request) -> User:
        if request.credentials is None:
            return access.check_login(None)
        name, password = request.credentials
        return access.check_login(self.broker.authenticate(name, password, from_loopback=request.from_loopback))

    def _counting(self) -> Iterator[Counting]:
        for vhost in self.broker.vhosts.values():
            for queue in vhost.queues.values():
                yield queue.traffic
            yield from vhost.exchanges.values()
        for connection in self.opened():
            yield from connection.channels.values()

    # -- reading

    def _get(self, user: User, path: list[str]) -> Any:  # noqa: C901 - one case per path
        broker = self.broker
        match path:
            case ["overview"]:
                return views.overview(broker, self.connections, user, self._rates)
            case ["whoami"]:
                return {"name": user.name, "tags": user.tags}
            case ["cluster-name"]:
                return {"name": parameters.cluster_name(broker)}
            case ["extensions"]:
                return []  # there is no page to extend
            case ["feature-flags"]:
                return process.feature_flags()
            case ["auth"]:
                return {"enable_uaa": False, "uaa_client_id": "", "uaa_location": ""}
            case ["nodes"]:
                return [views.node(broker)]
            case ["nodes", name] if name == NODE:
                return views.node(broker)
            case ["healthchecks", "node"] | ["healthchecks", "node", _] | ["aliveness-test", _]:
                return {"status": "ok"}
            case ["topic-permissions", *_] | ["vhosts" | "users", _, "topic-permissions"]:
                return self._topic_permissions(path)
            case ["vhosts"]:
                return [views.vhost(vhost, self._rates) for vhost in self._visible(user, None)]
            case ["vhosts", name]:
                return views.vhost(self.vhost(name), self._rates)
            case ["vhosts", name, "permissions"]:
                return [view for view in self._permissions() if view["vhost"] == self.vhost(name).name]
            case ["users"]:
                return [views.user(each) for each in broker.users.values()]
            case ["users", "without-permissions"]:
                return [views.user(each) for each in broker.users.values() if not each.permissions]
            case ["users", name]:
                return views.user(self.user(name))
            case ["users", name, "permissions"]:
                return views.permissions(self.user(name))
            case ["permissions"]:
                return self._permissions()
            case ["permissions", vhost, name]:
                found = [view for view in views.permissions(self.user(name)) if view["vhost"] == vhost]
                return found[0] if found else missing()
            case ["definitions" | "all-configuration"]:
                return definitions.export(broker)
            case ["definitions", vhost]:
                return definitions.export_vhost(self.vhost(vhost))
            case ["policies" | "operator-policies" as kind]:
                return policies.policies(self._visible(user, None), policies.KINDS[kind])
            case ["policies" | "operator-policies" as kind, vhost]:
                return policies.policies([self.vhost(vhost)], policies.KINDS[kind])
            case ["policies" | "operator-policies" as kind, vhost, name]:
                of = policies.policies([self.vhost(vhost)], policies.KINDS[kind])
                return next((view for view in of if view["name"] == name), None) or missing()
            case ["vhost-limits" | "user-limits" | "parameters" | "global-parameters", *_]:
                return parameters.read(self, list(self._visible(user, None)), path)
        return self._get_listed(user, path)

    def _get_listed(self, user: User, path: list[str]) -> Any:  # noqa: C901 - one case per path
        match path:
            case [kind] if kind in self._lists:
                return list(self._lists[kind](user, None))
            case ["vhosts", vhost, "connections" | "channels" as kind]:
                return list(self._lists[kind](user, self.vhost(vhost).name))
            case ["connections", "username", name]:
                return [view for view in self._connections(user, None) if view["user"] == name]
            case ["connections", name, "channels"]:
                views_of = self._channels(user, None)
                return [view for view in views_of if view["connection_details"]["name"] == name]
            case ["connections", name]:
                found = [view for view in self._connections(user, None) if view["name"] == name]
                return found[0] if found else missing()
            case ["channels", name]:
                return self._channel(user, name)
            case [kind, vhost] if kind in self._lists:
                return list(self._lists[kind](user, self.vhost(vhost).name))
            case ["queues", vhost, name]:
                queue = self.queue(vhost, name)
                consumers = [view for view in self._consumers(user, vhost) if view["queue"]["name"] == name]
                return {**views.queue(queue, self._rates), "consumer_details": consumers}
            case ["exchanges", vhost, name]:
                exchange = self.exchange(vhost, name)
                view = views.exchange(self.vhost(vhost), exchange, self._rates)
                return {**view, "incoming": views.incoming(self._channels_of(user, vhost), exchange.name)}
            case ["queues", vhost, name, "bindings"]:
                return self._bindings_where(vhost, destination=name, destination_type="queue")
            case ["exchanges", vhost, name, "bindings", "source"]:
                return self._bindings_where(vhost, source=name)
            case ["exchanges", vhost, name, "bindings", "destination"]:
                return self._bindings_where(vhost, destination=name, destination_type="exchange")
            case ["bindings", vhost, "e", source, "q" | "e" as kind, destination]:
                to = "queue" if kind == "q" else "exchange"
                source = "" if source == "amq.default" else source
                return self._bindings_where(vhost, source=source, destination=destination, destination_type=to)
            case ["bindings", vhost, "e", source, "q" | "e" as kind, destination, key]:
                of = self._get_listed(user, ["bindings", vhost, "e", source, kind, destination])
                found = [view for view in of if view["properties_key"] == key]
                return found[0] if found else missing()
        raise not_found()

    def _shown(self, request: Request, value: Any) -> Answer:
        """Filter by name, and cut to columns and a page, as the query asks."""
        query = request.query
        if not isinstance(value, list):
            return Answer(HTTPStatus.OK, value)
        columns = query["columns"].split(",") if "columns" in query else []
        value.sort(key=lambda item: (item.get("vhost", ""), item.get("name", "")))
        if "sort" in query:
            value.sort(key=lambda item: _rank(item, query["sort"]), reverse=query.get("sort_reverse") == "true")
        if "page" not in query:
            return Answer(HTTPStatus.OK, [_columns(item, columns) for item in value])
        total = len(value)
        if query.get("name"):
            regex = query.get("use_regex") == "true"
            if regex:
                check_regular_expression(query["name"])
            value = [item for item in value if _named(item, query["name"], regex=regex)]
        try:
            page, size = int(query["page"]), int(query.get("page_size", 100))
        except ValueError as error:
            raise bad_request("page and page_size must be integers") from error
        pages = max(-(-len(value) // size), 1) if size > 0 else 0
        if not 1 <= page <= pages:
            raise bad_request(f"page out of range: page {page} of {pages}")
        items = [_columns(item, columns) for item in value[(page - 1) * size : page * size]]
        return Answer(
            HTTPStatus.OK,
            {
                "items": items,
                "item_count": len(items),
                "filtered_count": len(value),
                "total_count": total,
                "page": page,
                "page_size": size,
                "page_count": pages,
            },
        )

    def _visible(self, user: User, vhost: str | None) -> Iterable[VirtualHost]:
        """Yield the virtual hosts that a user may see; all of them, or the one of this name."""
        for each in self.broker.vhosts.values():
            if vhost in (None, each.name) and (
                each.name in user.permissions or access.SEES_ALL.intersection(user.tags)
            ):
                yield each

    def _queues(self, user: User, vhost: str | None) -> Iterable[views.Json]:
        visible = self._visible(user, vhost)
        return [views.queue(queue, self._rates) for each in visible for queue in each.queues.values()]

    def _exchanges(self, user: User, vhost: str | None) -> Iterable[views.Json]:
        visible = self._visible(user, vhost)
        return [views.exchange(each, one, self._rates) for each in visible for one in each.exchanges.values()]

    def _bindings(self, user: User, vhost: str | None) -> Iterable[views.Json]:
        return [view for each in self._visible(user, vhost) for view in views.bindings(each)]

    def _connections(self, user: User, vhost: str | None) -> Iterable[views.Json]:
        return [views.connection(each) for each in self._opened(user, vhost)]

    def _channels(self, user: User, vhost: str | None) -> Iterable[views.Json]:
        return [views.channel(each, self._rates) for each in self._channels_of(user, vhost)]

    def _channels_of(self, user: User, vhost: str | None) -> Iterable[Channel]:
        return [each for connection in self._opened(user, vhost) for each in connection.channels.values()]

    def _channel(self, user: User, name: str) -> views.Json:
        for each in self._channels_of(user, None):
            view = views.channel(each, self._rates)
            if view["name"] == name:
                mine = [one for one in self._consumers(user, None) if one["channel_details"]["name"] == name]
                return {**view, "publishes": views.publishes(each), "deliveries": [], "consumer_details": mine}
        return missing()  # type: ignore[no-any-return]

    def _opened(self, user: User, vhost: str | None) -> Iterable[AnyConnection]:
        """Yield the connections that a user may see: their own, or with the right tag all."""
        for each in self.opened():
            mine = each.user.name == user.name or access.SEES_ALL.intersection(user.tags)
            if mine and vhost in (None, each.vhost.name):
                yield each

    def _consumers(self, user: User, vhost: str | None) -> Iterable[views.Json]:
        seen = {each.name for each in self._visible(user, vhost)}
        opened = self.opened()
        channels = [channel for connection in opened for channel in connection.channels.values()]
        by_amqp = [
            views.consumer(channel, each)
            for channel in channels
            for each in channel.deliveries.subscriptions.values()
            if each.queue.vhost in seen
        ]
        readers = [each for each in opened if each.vhost.name in seen]
        return [*by_amqp, *(views.subscription(each, one) for each in readers for one in each.subscriptions)]

    def _topic_permissions(self, path: list[str]) -> list[views.Json]:
        match path:
            case ["vhosts", vhost, _]:
                return topic_permissions(self.broker.users.values(), self.vhost(vhost).name)
            case ["users", name, _]:
                return topic_permissions([self.user(name)])
            case [_, vhost, name, *_]:
                return topic_permissions([self.user(name)], self.vhost(vhost).name) or missing()
        return topic_permissions(self.broker.users.values())

    def _permissions(self) -> list[views.Json]:
        return [view for user in self.broker.users.values() for view in views.permissions(user)]

    def _bindings_where(self, vhost: str, **wanted: str) -> list[views.Json]:
        found = views.bindings(self.vhost(vhost))
        return [view for view in found if all(view[name] == value for name, value in wanted.items())]


def _columns(item: views.Json, columns: list[str]) -> views.Json:
    """Return the columns asked for, or all if none are; `message_stats.publish` is one inside another."""
    if not columns:
        return item
    cut: views.Json = {}
    for column in columns:
        names = column.split(".")
        value: Any = item
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        into = cut
        for name in names[:-1]:
            into = into.setdefault(name, {})
        if value is not None:
            into[names[-1]] = value
    return cut


def _rank(item: views.Json, path: str) -> tuple[int, Any]:
    value: Any = item
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return (0, 0) if value is None else (1, value) if isinstance(value, int | float) else (2, str(value))


def _named(item: views.Json, wanted: str, *, regex: bool) -> bool:
    name = str(item.get("name", ""))
    return found(wanted, name) if regex else wanted.lower() in name.lower()
