"""The requests that change something."""

import base64
from http import HTTPStatus
from urllib.parse import quote

from mqtool.broker.embedded.http import messages, policies, views
from mqtool.broker.embedded.http.directory import Directory, bad_request, check_regular_expression, not_found
from mqtool.broker.embedded.http.field_tables import field_table
from mqtool.broker.embedded.http.server import Answer, HttpError, Request
from mqtool.broker.embedded.model.arguments import (
    check_equivalent_exchange,
    check_equivalent_queue,
    check_exchange,
    check_exchange_type,
    check_headers_binding,
    check_queue,
)
from mqtool.broker.embedded.model.exchange import Exchange
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.users import DEFAULT_ALGORITHM, Permissions, User
from mqtool.broker.embedded.model.virtual_host import VirtualHost

_MAX_NAME = 255

NO_CONTENT = Answer(HTTPStatus.NO_CONTENT)
CREATED = Answer(HTTPStatus.CREATED)


def _boolean(body: views.Json, name: str) -> bool:
    """Return a boolean of a declaration; rabbitmqadmin sends it as text.

    Raises:
        HttpError: 400, it is not one.
    """
    value = body.get(name, False)
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise bad_request(f"not_boolean: {value}")
    return bool(value == "true")


def _name(kind: str, name: str) -> str:
    """Return a name that fits AMQP.

    Raises:
        HttpError: 400.
    """
    if len(name.encode(errors="surrogateescape")) > _MAX_NAME:
        raise bad_request(f"{kind} name is longer than {_MAX_NAME} bytes")
    return name


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
                existed, body = name in self.broker.vhosts, request.json()
                vhost = self.broker.add_vhost(name, body.get("description"))
                if "tracing" in body:
                    vhost.tracing = _boolean(body, "tracing")
                if not existed:
                    self.broker.set_permissions(user.name, name, Permissions())
                return NO_CONTENT if existed else CREATED
            case "DELETE", ["vhosts", name]:
                self.broker.delete_vhost(self.vhost(name).name)
            case "POST", ["users", "bulk-delete"]:
                for name in request.json().get("users", []):
                    if name in self.broker.users:
                        self.broker.delete_user(name)
            case "PUT", ["users", name]:
                return self._put_user(name, request.json())
            case "DELETE", ["users", name]:
                self.broker.delete_user(self.user(name).name)
            case "PUT", ["permissions", vhost, name]:
                return self._put_permissions(vhost, name, request.json())
            case "DELETE", ["permissions", vhost, name]:
                self.vhost(vhost)
                self.broker.set_permissions(self.user(name).name, vhost, None)
            case "PUT", ["queues", vhost, name]:
                return self._put_queue(self.vhost(vhost), _name("queue", name), request.json())
            case "DELETE", ["queues", vhost, name]:
                self._delete_queue(request, self.queue(vhost, name))
            case "DELETE", ["queues", vhost, name, "contents"]:
                self.queue(vhost, name).purge()
            case "PUT", ["exchanges", vhost, name]:
                return self._put_exchange(self.vhost(vhost), _name("exchange", name), request.json())
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

    def _put_user(self, name: str, body: views.Json) -> Answer:
        existed = self.broker.users.get(name)
        tags = body.get("tags", "")
        names = (
            [str(tag) for tag in tags]
            if isinstance(tags, list)
            else [tag.strip() for tag in str(tags).split(",") if tag.strip()]
        )
        if "password" in body:
            user = User.with_password(name, str(body["password"]), names)
        elif "password_hash" in body:
            algorithm = str(body.get("hashing_algorithm", DEFAULT_ALGORITHM))
            user = User(name, base64.b64decode(str(body["password_hash"])) or None, names, algorithm=algorithm)
        else:
            raise bad_request("must provide password or password_hash")
        if existed is not None:
            user.permissions = existed.permissions
        self.broker.save_user(user)
        return CREATED if existed is None else NO_CONTENT

    def _put_permissions(self, vhost: str, name: str, body: views.Json) -> Answer:
        self.vhost(vhost)
        user = self.user(name)
        try:
            patterns = [str(body[what]) for what in ("configure", "write", "read")]
        except KeyError as error:
            raise bad_request(f"key_missing: {error.args[0]}") from error
        for pattern in patterns:
            check_regular_expression(pattern)
        existed = vhost in user.permissions
        self.broker.set_permissions(name, vhost, Permissions(*patterns))
        return NO_CONTENT if existed else CREATED

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

    @staticmethod
    def _put_queue(vhost: VirtualHost, name: str, body: views.Json) -> Answer:
        durable, auto_delete = _boolean(body, "durable"), _boolean(body, "auto_delete")
        arguments = field_table(body.get("arguments", {}))
        queue = vhost.queues.get(name)
        if queue is not None:
            check_equivalent_queue(queue, arguments, durable=durable, auto_delete=auto_delete)
            return NO_CONTENT
        if name.startswith("amq."):
            raise HttpError(HTTPStatus.UNAUTHORIZED, "not_authorised", "Access refused.")
        check_queue(
            name, vhost.name, arguments, durable=durable, exclusive=False, auto_delete=auto_delete, server_named=False
        )
        vhost.add_queue(name, durable=durable, auto_delete=auto_delete, owner=None, arguments=arguments)
        return CREATED

    def _delete_queue(self, request: Request, queue: Queue) -> None:
        where = f"queue '{queue.name}' in vhost '{queue.vhost}'"
        if request.query.get("if-empty") == "true" and len(queue):
            raise bad_request(f"{where} not empty")
        if request.query.get("if-unused") == "true" and len(queue.consumers):
            raise bad_request(f"{where} in use")
        self.vhost(queue.vhost).delete_queue(queue)

    @staticmethod
    def _put_exchange(vhost: VirtualHost, name: str, body: views.Json) -> Answer:
        kind, arguments = str(body.get("type", "direct")), field_table(body.get("arguments", {}))
        durable, auto_delete = _boolean(body, "durable"), _boolean(body, "auto_delete")
        internal = _boolean(body, "internal")
        check_exchange_type(kind)
        exchange = vhost.exchanges.get(name)
        if exchange is not None:
            check_equivalent_exchange(
                exchange, vhost.name, kind, arguments, durable=durable, auto_delete=auto_delete, internal=internal
            )
            return NO_CONTENT
        if name.startswith("amq."):
            raise bad_request(f"exchange name '{name}' contains reserved prefix 'amq.*'")
        check_exchange(name, vhost.name, kind, arguments)
        vhost.add_exchange(
            Exchange(name, kind, durable=durable, auto_delete=auto_delete, internal=internal, arguments=arguments)
        )
        return CREATED

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
        arguments = field_table(body.get("arguments", {}))
        if exchange.routed_as == "headers":
            check_headers_binding(arguments)
        key = _name("routing key", str(body.get("routing_key", "")))
        self.vhost(vhost).bind(exchange, end, key, arguments)
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
