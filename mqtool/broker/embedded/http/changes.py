"""The requests that change something."""

from http import HTTPStatus
from urllib.parse import quote

from mqtool.broker.embedded.http import declaring, definitions, messages, policies, views
from mqtool.broker.embedded.http.directory import Directory, bad_request, not_found
from mqtool.broker.embedded.http.server import Answer, Request
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
        match request.method, path:
            case "PUT", ["vhosts", name]:
                return self._put_vhost(user, name, request.json())
            case "DELETE", ["vhosts", name]:
                self.broker.delete_vhost(self.vhost(name).name)
            case "POST", ["definitions"]:
                definitions.load(self.broker, request.json())
            case "POST", ["definitions", vhost]:
                definitions.load(self.broker, request.json(), self.vhost(vhost))
            case "POST", ["users", "bulk-delete"]:
                for name in request.json().get("users", []):
                    if name in self.broker.users:
                        self.broker.delete_user(name)
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
            case "PUT", ["queues", vhost, name]:
                return _made(existed=declaring.put_queue(self.vhost(vhost), name, request.json()))
            case "DELETE", ["queues", vhost, name]:
                self._delete_queue(request, self.queue(vhost, name))
            case "DELETE", ["queues", vhost, name, "contents"]:
                self.queue(vhost, name).purge()
            case "PUT", ["exchanges", vhost, name]:
                return _made(existed=declaring.put_exchange(self.vhost(vhost), name, request.json()))
            case "DELETE", ["exchanges", vhost, name]:
                self._delete_exchange(request, self.vhost(vhost), self.exchange(vhost, name))
            case "POST", ["exchanges", vhost, name, "publish"]:
                exchange = self.exchange(vhost, name)
                return messages.publish(self.broker, self.vhost(vhost), exchange, user, request.json())
            case "POST", ["queues", vhost, name, "get"]:
                return messages.get(self.broker, self.queue(vhost, name), request.json())
            case "POST", ["bindings", vhost, "e", source, "q" | "e" as kind, destination]:
                return self._bind(vhost, source, kind, destination, request.json())
            case "DELETE", ["bindings", vhost, "e", source, "q" | "e" as kind, destination, properties_key]:
                self._unbind(vhost, source, kind, destination, properties_key)
            case "DELETE", ["connections", name]:
                self._close_connection(name, request.headers.get("x-reason", "Closed via management plugin"))
            case "PUT" | "DELETE", ["policies" | "operator-policies" as kind, vhost, name]:
                return self._change_policy(request, self.vhost(vhost), policies.KINDS[kind], name)
            case _:
                raise not_found()
        return NO_CONTENT

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
            vhost.policies.put(kind, policies.policy(kind, name, request.json()))
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

    def _close_connection(self, name: str, reason: str) -> None:
        found = [connection for connection in self.connections if connection.name == name]
        if not found:
            raise not_found()
        for connection in found:
            connection.force_close(reason)
