"""Definitions: what a broker or a virtual host has, as a document that another one can load.

https://www.rabbitmq.com/docs/definitions
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mqtool.broker.embedded.http import declaring, parameters, policies, views
from mqtool.broker.embedded.http.directory import bad_request
from mqtool.broker.embedded.http.server import HttpError
from mqtool.broker.embedded.http.topic_permissions import put_topic_permissions, topic_permissions
from mqtool.broker.embedded.model.amqp_errors import AmqpException
from mqtool.broker.embedded.model.applied_policies import USER
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost

log = logging.getLogger("mqtool.broker.embedded")

Json = dict[str, Any]


def export(broker: Broker) -> Json:
    """All that a broker has."""
    users = list(broker.users.values())
    return {
        "rabbit_version": broker.profile.version,
        "rabbitmq_version": broker.profile.version,
        "product_name": "RabbitMQ",
        "product_version": broker.profile.version,
        "users": [views.user(user) for user in users],
        "vhosts": [{"name": each.name, "description": each.description} for each in broker.vhosts.values()],
        "permissions": [view for user in users for view in views.permissions(user)],
        "topic_permissions": topic_permissions(users),
        "global_parameters": parameters.global_parameters(broker),
        **_topology([*broker.vhosts.values()]),
    }


def export_vhost(vhost: VirtualHost) -> Json:
    """What a virtual host has, without its name, so that another one can load it."""
    found = _topology([vhost])
    for kind in ("queues", "exchanges", "bindings"):
        found[kind] = [{name: value for name, value in item.items() if name != "vhost"} for item in found[kind]]
    return {"rabbit_version": vhost.profile.version, **found}


def _topology(vhosts: list[VirtualHost]) -> Json:
    queues = [queue for vhost in vhosts for queue in vhost.queues.values() if queue.owner is None]
    names = {(queue.vhost, queue.name) for queue in queues}
    bindings = [views.binding(vhost.name, link) for vhost in vhosts for link in vhost.links()]
    return {
        "parameters": parameters.parameters(vhosts),
        "policies": policies.policies(vhosts, USER),
        "queues": [
            {
                "name": queue.name,
                "vhost": queue.vhost,
                "durable": queue.durable,
                "auto_delete": queue.auto_delete,
                "arguments": views.table(queue.arguments),
            }
            for queue in queues
        ],
        "exchanges": [
            {
                "name": each.name,
                "vhost": vhost.name,
                "type": each.kind,
                "durable": each.durable,
                "auto_delete": each.auto_delete,
                "internal": each.internal,
                "arguments": views.table(each.arguments),
            }
            for vhost in vhosts
            for each in vhost.exchanges.values()
            if not each.predeclared
        ],
        "bindings": [
            {name: value for name, value in view.items() if name != "properties_key"}
            for view in bindings
            if view["destination_type"] == "exchange" or (view["vhost"], view["destination"]) in names
        ],
    }


def load_file(broker: Broker, path: Path) -> list[str]:
    """Load a file at the start; what names no virtual host goes to /. Return what was left out, in words.

    Raises:
        OSError: it cannot be read, or something in it is not valid.
    """
    try:
        document = json.loads(path.read_text())
        if not isinstance(document, dict):
            raise TypeError("it holds no object")
        left_out = [f"{path}: left out {what}" for what in unsupported(document)]
        _Loading(broker, document, broker.add_vhost("/")).run()
    except HttpError as error:
        raise OSError(f"cannot load definitions from {path}: {error.reason}") from error
    except (ValueError, TypeError) as error:
        raise OSError(f"cannot load definitions from {path}: {error}") from error
    return left_out


def load(broker: Broker, document: Json, vhost: VirtualHost | None = None) -> None:
    """Load a document; what there is already stays, except users, permissions and policies.

    Args:
        vhost: where to, whatever it says; then only exchanges, queues, bindings and policies are loaded.

    Raises:
        HttpError: 400, something is not valid, or this broker does not have it.
    """
    if left_out := list(unsupported(document)):
        raise bad_request(f"the embedded broker does not have {', '.join(left_out)}")
    if vhost is not None:
        document = {
            kind: [{**item, "vhost": vhost.name} for item in _items(document, kind)]
            for kind in ("parameters", "policies", "exchanges", "queues", "bindings")
        }
    _Loading(broker, document, None).run()


def _items(document: Json, kind: str) -> list[Json]:
    items = document.get(kind, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise bad_request(f"{kind} must be a list of objects")
    return items


def unsupported(document: Json) -> Iterator[str]:
    """What is in a document that this broker does not have."""
    for each in _items(document, "parameters"):
        if each.get("component") not in parameters.COMPONENTS:
            yield f"{each.get('component')} '{each.get('name')}'"


class _Loading:
    """Loads a document into a broker.

    Args:
        default: the virtual host of what names none; None if everything must name one.
    """

    def __init__(self, broker: Broker, document: Json, default: VirtualHost | None) -> None:
        self._broker = broker
        self._document = document
        self._default = default

    def run(self) -> None:
        """Load everything, in the order in which one thing needs another.

        Raises:
            HttpError: 400, something is not valid; what came before it is loaded.
        """
        kinds: list[tuple[str, Callable[[Json], object]]] = [
            ("users", self._user),
            ("vhosts", self._vhost),
            ("permissions", self._permissions),
            ("topic_permissions", self._topic_permissions),
            ("global_parameters", lambda item: parameters.put_global_parameter(self._broker, item["name"], item)),
            ("parameters", self._parameter),
            ("policies", self._policy),
            ("exchanges", self._exchange),
            ("queues", self._queue),
            ("bindings", self._binding),
        ]
        for kind, one in kinds:
            for item in _items(self._document, kind):
                try:
                    one(item)
                except KeyError as error:
                    raise bad_request(f"{kind}: {error.args[0]} is missing in {json.dumps(item)}") from error
                except HttpError as error:
                    raise bad_request(f"{error.reason} ({kind}: {item.get('name', '')})") from error
                except AmqpException as error:
                    raise bad_request(error.text.partition(" - ")[2]) from error

    def _of(self, item: Json) -> VirtualHost:
        if self._default is not None and "vhost" not in item:
            return self._default
        vhost = self._broker.vhosts.get(item["vhost"])
        if vhost is None:
            raise bad_request(f"no_such_vhost: {item['vhost']}")
        return vhost

    def _user(self, item: Json) -> None:
        if "password" not in item:
            item = {"password_hash": "", **item}
        declaring.put_user(self._broker, item["name"], item)

    def _vhost(self, item: Json) -> None:
        self._broker.add_vhost(item["name"], item.get("description") or item.get("metadata", {}).get("description"))

    def _user_of(self, item: Json) -> User:
        user = self._broker.users.get(item["user"])
        if user is None:
            raise bad_request(f"no_such_user: {item['user']}")
        return user

    def _permissions(self, item: Json) -> None:
        declaring.put_permissions(self._broker, self._of(item).name, self._user_of(item), item)

    def _topic_permissions(self, item: Json) -> None:
        put_topic_permissions(self._broker, self._of(item).name, self._user_of(item), item)

    def _parameter(self, item: Json) -> None:
        if item.get("component") in parameters.COMPONENTS:
            parameters.put_parameter(self._broker, self._of(item), item["component"], item["name"], item)

    def _policy(self, item: Json) -> None:
        vhost = self._of(item)
        vhost.policies.put(USER, policies.policy(USER, item["name"], item, vhost.profile))

    def _exchange(self, item: Json) -> None:
        vhost, name = self._of(item), item["name"]
        if name not in vhost.exchanges:
            declaring.put_exchange(vhost, name, item)

    def _queue(self, item: Json) -> None:
        vhost, name = self._of(item), item["name"]
        if name not in vhost.queues:
            declaring.put_queue(vhost, name, item)

    def _binding(self, item: Json) -> None:
        vhost = self._of(item)
        ends = vhost.queues if item["destination_type"] == "queue" else vhost.exchanges
        source, destination = vhost.exchanges.get(item["source"]), ends.get(item["destination"])
        if source is None or destination is None:
            # As RabbitMQ does, but for the warning.
            log.warning("definitions: no such ends in vhost '%s': binding %s", vhost.name, json.dumps(item))
        else:
            declaring.put_binding(vhost, source, destination, item)
