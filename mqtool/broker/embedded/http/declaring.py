"""What a request or a file of definitions declares: checked, and made unless it is there."""

import base64
import binascii
from http import HTTPStatus

from mqtool.broker.embedded.http import views
from mqtool.broker.embedded.http.directory import bad_request, check_regular_expression
from mqtool.broker.embedded.http.field_tables import field_table
from mqtool.broker.embedded.http.parameters import checked_limits
from mqtool.broker.embedded.http.server import HttpError
from mqtool.broker.embedded.model.broker import OF_USERS, Broker
from mqtool.broker.embedded.model.declarations import (
    check_equivalent_exchange,
    check_equivalent_queue,
    check_exchange,
    check_exchange_type,
    check_queue,
)
from mqtool.broker.embedded.model.exchange import Exchange, ExchangeDeclaration
from mqtool.broker.embedded.model.queue import Queue, QueueDeclaration
from mqtool.broker.embedded.model.users import ALGORITHMS, DEFAULT_ALGORITHM, Permissions, User
from mqtool.broker.embedded.model.virtual_host import VirtualHost, check_queues
from mqtool.codecs.field_tables import Table

_MAX_NAME = 255


def boolean(body: views.Json, name: str) -> bool:
    """Return a boolean of a declaration; rabbitmqadmin sends it as text.

    Raises:
        HttpError: 400, it is not one.
    """
    value = body.get(name, False)
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise bad_request(f"notboolean: {value}")
    return bool(value == "true")


def checked_name(kind: str, name: str) -> str:
    """Return a name that fits AMQP.

    Raises:
        HttpError: 400.
    """
    if len(name.encode(errors="surrogateescape")) > _MAX_NAME:
        raise bad_request(f"{kind} name is longer than {_MAX_NAME} bytes")
    return name


def put_user(broker: Broker, name: str, body: views.Json) -> bool:
    """Make or change a user, who keeps their permissions; return whether there was one before.

    Raises:
        HttpError: 400.
    """
    existed = broker.users.get(name)
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
        if algorithm not in ALGORITHMS:
            raise bad_request(f"unknown hashing_algorithm {algorithm}")
        try:
            password_hash = base64.b64decode(str(body["password_hash"]))
        except binascii.Error as error:
            raise bad_request(f"password_hash is not base64: {error}") from error
        user = User(name, password_hash or None, names, algorithm=algorithm)
    else:
        raise bad_request("must provide password or password_hash")
    if existed is not None:
        user.permissions, user.limits = existed.permissions, existed.limits
    if "limits" in body:
        user.limits = checked_limits(body["limits"], OF_USERS, "user-limits")
    broker.save_user(user)
    return existed is not None


def put_permissions(broker: Broker, vhost: str, user: User, body: views.Json) -> bool:
    """Set what a user may do in a virtual host; return whether they might do anything before.

    Raises:
        HttpError: 400.
    """
    try:
        patterns = [str(body[what]) for what in ("configure", "write", "read")]
    except KeyError as error:
        raise bad_request(f"key_missing: {error.args[0]}") from error
    for pattern in patterns:
        check_regular_expression(pattern)
    existed = vhost in user.permissions
    broker.set_permissions(user.name, vhost, Permissions(*patterns))
    return existed


def put_queue(vhost: VirtualHost, name: str, body: views.Json) -> bool:
    """Make a queue; return whether there was the same one before.

    Raises:
        HttpError: 400 or 401.
        AmqpException: the declaration is not valid, or there is another one.
    """
    declared = QueueDeclaration(
        name, field_table(body.get("arguments", {})), boolean(body, "durable"), boolean(body, "auto_delete")
    )
    queue = vhost.queues.get(checked_name("queue", name))
    if queue is not None:
        check_equivalent_queue(queue, declared)
        return True
    if name.startswith("amq."):
        raise HttpError(HTTPStatus.UNAUTHORIZED, "not_authorised", "Access refused.")
    check_queues(vhost, name)
    check_queue(declared, vhost.name, vhost.profile)
    vhost.add_queue(declared)
    return False


def put_exchange(vhost: VirtualHost, name: str, body: views.Json) -> bool:
    """Make an exchange; return whether there was the same one before.

    Raises:
        HttpError: 400.
        AmqpException: the declaration is not valid, or there is another one.
    """
    kind, arguments = str(body.get("type", "direct")), field_table(body.get("arguments", {}))
    durable, auto_delete = boolean(body, "durable"), boolean(body, "auto_delete")
    declared = ExchangeDeclaration(name, kind, durable, auto_delete, boolean(body, "internal"), arguments)
    check_exchange_type(kind, vhost.profile)
    exchange = vhost.exchanges.get(checked_name("exchange", name))
    if exchange is not None:
        check_equivalent_exchange(exchange, declared, vhost.name)
        return True
    if name.startswith("amq."):
        raise bad_request(f"exchange name '{name}' contains reserved prefix 'amq.*'")
    check_exchange(declared, vhost.name, vhost.profile)
    vhost.add_exchange(Exchange(*declared))
    return False


def put_binding(
    vhost: VirtualHost, source: Exchange, destination: Queue | Exchange, body: views.Json
) -> tuple[str, Table]:
    """Bind, unless there is such a binding; return its key and arguments.

    Raises:
        HttpError: 400.
        AmqpException: the arguments are not valid.
    """
    arguments = field_table(body.get("arguments", {}))
    key = checked_name("routing key", str(body.get("routing_key", "")))
    vhost.bind(source, destination, key, arguments)
    return key, arguments
