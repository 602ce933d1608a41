"""The requests that change something."""

from http import HTTPStatus
from urllib.parse import quote

from mqtool.broker.embedded.http import declaring, definitions, messages, parameters, policies, process, views
from mqtool.broker.embedded.http.access import check_close
from mqtool.broker.embedded.http.directory import AnyConnection, Directory, bad_request, missing, not_found
from mqtool.broker.embedded.http.server import Answer, Request
from mqtool.broker.embedded.http.topic_permissions import delete_topic_permissions, put_topic_permissions
from mqtool.broker.embedded.model.exchange import Exchange
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.users import Permissions, User
from mqtool.broker.embedded.model.virtual_host import VirtualHost

NO_CONTENT = Answer(HTTPStatus.NO_CONTENT)
CREATED = Answer(HTTPStatus.CREATED)


def _made(*, existed: bool) -> Answer:
    return NO_CONTENT if existed else CREATED


class Changes(Directory):
    """Makes and deletes the parts of a broker."""

    def change(self, user: User, request: Request, path: list[str]) -> Answer:  # noqa: C901 - one case per path
        """Do what a PUT, POST or DELETE asks for.

        Raises:
            HttpError: 400 or 404.
            AmqpException: the declaration is not valid.
        """
        if path[:1] in (["queues"], ["exchanges"], ["bindings"]) and len(path) > 2:
            return self._change_topology(user, request, path)
        match request.method, path:
            case "PUT", ["vhosts", name]:
                return self._put_vhost(user, name, request.json())
            case "DELETE", ["vhosts", name]:
                self.broker.delete_vhost(self.vhost(name).name)
            case "POST", ["vhosts", vhost, "start", _]:
                self.vhost(vhost)  # always runs
            case "POST", ["definitions" | "all-configuration"]:
                definitions.load(self.broker, request.json())
            case "POST", ["definitions", vhost]:
                definitions.load(self.broker, request.json(), self.vhost(vhost))
            case "POST", ["users", "bulk-delete"]:
                self._delete_users(parameters.required(request.json(), "users"))
            case "PUT", ["users", name]:
                return _made(existed=declaring.put_user(self.broker, name, request.json()))
            case "DELETE", ["users", name]:
                self.broker.delete_user(self.user(name).name)
            case "PUT", ["permissions", vhost, name]:
                rights = request.json()
                existed = declaring.put_permissions(self.broker, self.vhost(vhost).name, self.user(name), rights)
                return _made(existed=existed)
            case "DELETE", ["permissions", vhost, name]:
                self.vhost(vhost)
                self.broker.set_permissions(self.user(name).name, vhost, None)
            case "PUT", ["topic-permissions", vhost, name, *_]:
                rights = request.json()
                return _made(
                    existed=put_topic_permissions(self.broker, self.vhost(vhost).name, self.user(name), rights)
                )
            case "DELETE", ["topic-permissions", vhost, name, *exchange]:
                delete_topic_permissions(self.broker, self.vhost(vhost).name, self.user(name), *exchange)
            case "DELETE", ["connections", "username", name]:
                self._close(user, request, [each for each in self.opened() if each.user.name == name])
            case "DELETE", ["connections", name]:
                self._close(user, request, [each for each in self.opened() if each.name == name] or missing())
            case "PUT" | "DELETE", ["policies" | "operator-policies" as kind, vhost, name]:
                return self._change_policy(request, self.vhost(vhost), policies.KINDS[kind], name)
            case _:
                return self._change_settings(request, path)
        return NO_CONTENT

    def _change_topology(self, user: User, request: Request, path: list[str]) -> Answer:  # noqa: C901 - one case per path
        vhost = self.vhost(path[1])
        match request.method, [path[0], *path[2:]]:
            case "PUT", ["queues", name]:
                return _made(existed=declaring.put_queue(vhost, name, request.json()))
            case "DELETE", ["queues", name]:
                self._delete_queue(request, self.queue(vhost.name, name))
            case "DELETE", ["queues", name, "contents"]:
                self.queue(vhost.name, name).purge()
            case "POST", ["queues", name, "get"]:
                return messages.get(self.broker, self.queue(vhost.name, name), request.json())
            case "POST", ["queues", name, "actions"]:
                self.queue(vhost.name, name)
                if (action := parameters.required(request.json(), "action")) not in ("sync", "cancel_sync"):
                    raise bad_request(f"unknown: {action}")
            case "PUT", ["exchanges", name]:
                return _made(existed=declaring.put_exchange(vhost, name, request.json()))
            case "DELETE", ["exchanges", name]:
                self._delete_exchange(request, vhost, self.exchange(vhost.name, name))
            case "POST", ["exchanges", name, "publish"]:
                return messages.publish(self.broker, vhost, self.exchange(vhost.name, name), user, request.json())
            case "POST", ["bindings", "e", source, "q" | "e" as kind, destination]:
                return self._bind(vhost.name, source, kind, destination, request.json())
            case "DELETE", ["bindings", "e", source, "q" | "e" as kind, destination, properties_key]:
                self._unbind(vhost.name, source, kind, destination, properties_key)
            case _:
                raise not_found()
        return NO_CONTENT

    def _change_settings(self, request: Request, path: list[str]) -> Answer:
        match request.method, path:
            case "PUT" | "DELETE", ["vhost-limits" | "user-limits" | "parameters" | "global-parameters", *_]:
                return _made(existed=parameters.change(self, request, path))
            case "PUT", ["cluster-name"]:
                name = parameters.required(request.json(), "name")
                parameters.put_global_parameter(self.broker, parameters.CLUSTER_NAME, {"value": name})
            case "PUT", ["feature-flags", name, "enable"]:
                if name not in process.FEATURE_FLAGS:
                    raise bad_request("unsupported")
            case ("DELETE", ["reset", *_]) | ("POST", ["rebalance", "queues"]):
                pass  # counters go on, and there is one node
            case _:
                raise not_found()
        return NO_CONTENT

    def _delete_users(self, names: object) -> None:
        if not isinstance(names, list):
            raise bad_request("users must be a list")
        for name in names:
            if name not in self.broker.users:
                raise bad_request(f"no_such_user: {name}")
        for name in set(names):
            self.broker.delete_user(name)

    @staticmethod
    def _close(user: User, request: Request, connections: list[AnyConnection]) -> None:
        for connection in connections:
            check_close(user, connection.user.name)
            connection.force_close(request.headers.get("x-reason", "Closed via management plugin"))

    def _put_vhost(self, user: User, name: str, body: views.Json) -> Answer:
        existed = name in self.broker.vhosts
        vhost = self.broker.add_vhost(name, body.get("description"))
        if "tracing" in body:
            vhost.tracing = declaring.boolean(body, "tracing")
        if not existed:
            self.broker.set_permissions(user.name, name, Permissions())
        return _made(existed=existed)

    @staticmethod
    def _change_policy(request: Request, vhost: VirtualHost, kind: str, name: str) -> Answer:
        existed = name in vhost.policies.by_kind[kind]
        if request.method == "PUT":
            vhost.policies.put(kind, policies.policy(kind, name, request.json(), vhost.profile))
            return NO_CONTENT if existed else CREATED
        if not existed:
            raise not_found()
        vhost.policies.delete(kind, name)
        return NO_CONTENT

    def _delete_queue(self, request: Request, queue: Queue) -> None:
        where = f"queue '{queue.name}' in vhost '{queue.vhost}'"
        if request.query.get("if-empty") == "true" and len(queue):
            raise bad_request(f"{where} not empty")
        if request.query.get("if-unused") == "true" and len(queue.consumers):
            raise bad_request(f"{where} in use")
        self.vhost(queue.vhost).delete_queue(queue)

    @staticmethod
    def _delete_exchange(request: Request, vhost: VirtualHost, exchange: Exchange) -> None:
        if exchange.predeclared:
            raise bad_request(f"deletion of system exchange '{exchange.name}' in vhost '{vhost.name}' not allowed")
        if request.query.get("if-unused") == "true" and exchange.in_use:
            raise bad_request(f"exchange '{exchange.name}' in vhost '{vhost.name}' in use")
        vhost.delete_exchange(exchange)

    def _ends(self, vhost: str, source: str, kind: str, destination: str) -> tuple[Exchange, Queue | Exchange]:
        ends: Queue | Exchange = self.queue(vhost, destination) if kind == "q" else self.exchange(vhost, destination)
        exchange = self.exchange(vhost, source)
        if not exchange.name or not ends.name:
            raise bad_request("operation not permitted on the default exchange")
        return exchange, ends

    def _bind(self, vhost: str, source: str, kind: str, destination: str, body: views.Json) -> Answer:
        exchange, end = self._ends(vhost, source, kind, destination)
        key, arguments = declaring.put_binding(self.vhost(vhost), exchange, end, body)
        link = exchange.find(end, key, arguments)
        assert link is not None
        return Answer(
            HTTPStatus.CREATED, location=f"{quote(destination, safe='')}/{quote(link.properties_key, safe='')}"
        )

    def _unbind(self, vhost: str, source: str, kind: str, destination: str, properties_key: str) -> None:
        exchange, end = self._ends(vhost, source, kind, destination)
        for link in list(exchange.links):
            if link.destination is end and link.properties_key == properties_key:
                self.vhost(vhost).unbind(exchange, end, link.routing_key, link.arguments)
                return
        raise not_found()
