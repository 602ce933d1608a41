"""The routes of /api/definitions: export and import the definitions of a broker or a virtual host as JSON.

https://www.rabbitmq.com/docs/definitions
"""

import json
import logging
from collections.abc import Callable, Collection, Iterator
from http import HTTPStatus
from pathlib import Path

from mqtool.broker.embedded.http.http_server import HttpAnswer, HttpError, bad_request, in_slices, text
from mqtool.broker.embedded.http.policy_routes import (
    COMPONENTS,
    global_parameter_views,
    parameter_views,
    policy_of,
    policy_views,
    save_global_parameter,
    save_parameter,
)
from mqtool.broker.embedded.http.queue_routes import (
    binding_declaration,
    binding_view,
    declare_exchange,
    declare_queue,
    exchange_declaration,
    exchange_definition,
    queue_declaration,
    queue_definition,
)
from mqtool.broker.embedded.http.route_table import READ, Json, RouteCall, administrator, route
from mqtool.broker.embedded.http.user_routes import (
    add_topic_permissions,
    permission_views,
    save_permissions,
    save_user,
    save_vhost,
    topic_permission_views,
    topic_permissions_of,
    user_view,
)
from mqtool.broker.embedded.model.amqp_errors import AmqpException
from mqtool.broker.embedded.model.applied_policies import USER
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.names import RESERVED
from mqtool.broker.embedded.model.users import TopicPermissions, User
from mqtool.broker.embedded.model.virtual_host import VirtualHost

log = logging.getLogger("mqtool.broker.embedded")


@route(READ, "definitions", administrator)
@route(READ, "all-configuration", administrator)
def definitions(call: RouteCall) -> HttpAnswer:
    users, vhosts = call.users(), call.vhosts()
    about = {
        "explanation": f"Definitions of cluster '{call.broker.cluster_name}'",
        "original_cluster_name": call.broker.cluster_name,
        "rabbitmq_definition_format": "cluster",
    }
    found = {
        **_versions(call),
        **(about if call.broker.profile.api >= "4.2" else {}),
        "users": [user_view(user) for user in users],
        "vhosts": [_vhost_definition(each) for each in vhosts],
        "permissions": permission_views(users),
        "topic_permissions": topic_permission_views(users),
        "global_parameters": global_parameter_views(call.broker),
        **_topology(vhosts),
    }
    return _to_save(call, found)


def _to_save(call: RouteCall, found: Json) -> HttpAnswer:
    """Return definitions, which a browser is to save in the file that the query names."""
    return HttpAnswer(HTTPStatus.OK, found, filename=call.request.query.get("download"))


def _versions(call: RouteCall) -> Json:
    version = call.broker.profile.version
    return {
        "rabbit_version": version,
        "rabbitmq_version": version,
        "product_name": "RabbitMQ",
        "product_version": version,
    }


def _about(vhost: VirtualHost) -> Json:
    """Return what the definitions of RabbitMQ 4 say of a virtual host."""
    labels = vhost.labels
    metadata = {
        "description": vhost.description,
        "tags": [*labels.tags],
        "default_queue_type": labels.default_queue_type or "classic",
    }
    return {"metadata": metadata, "limits": vhost.limits}


def _vhost_definition(vhost: VirtualHost) -> Json:
    found: Json = {"name": vhost.name, "description": vhost.description}
    if vhost.profile.api >= "4.0":
        return {**found, **_about(vhost)}
    if vhost.labels.tags or vhost.labels.default_queue_type:
        about = {"description": vhost.description, "tags": [*vhost.labels.tags]}
        kind = vhost.labels.default_queue_type
        found["metadata"] = {**about, **({"default_queue_type": kind} if kind else {})}
    return found


@route(READ, "definitions/VHOST", administrator)
def definitions_of_vhost(call: RouteCall, vhost: str) -> HttpAnswer:
    """Return the definitions of a virtual host. Exchanges, queues and bindings do not contain its name."""
    if vhost not in call.broker.vhosts:
        raise bad_request("vhost_not_found")
    found = call.vhost(vhost)
    if call.broker.profile.api < "4.0":
        about: Json = {"rabbit_version": call.broker.profile.version}
    else:
        about = {
            **_versions(call),
            "explanation": f"Definitions of virtual host '{vhost}'",
            "original_vhost_name": vhost,
            "rabbitmq_definition_format": "single_virtual_host",
            "description": found.description,
            **_about(found),
        }
    return _to_save(call, {**about, **_topology([found], "vhost")})


def _topology(vhosts: list[VirtualHost], *without: str) -> Json:
    """Return what virtual hosts contain. Queues, exchanges and bindings are iterators, without these fields."""

    def is_exported(exchange: BrokerExchange) -> bool:
        # RabbitMQ 4.3 leaves internal exchanges out.
        return not exchange.predeclared and not (exchange.internal and vhosts[0].profile.api == "4.3")

    queues = [queue for vhost in vhosts for queue in vhost.queues.values() if queue.owner is None]
    exchanges = [(vhost, exchange) for vhost in vhosts for exchange in vhost.exchanges.values()]
    bindings = (
        binding_view(vhost.name, each)
        for vhost, exchange in exchanges
        for each in [*exchange.bindings]
        if getattr(each.destination, "owner", None) is None
    )
    unnamed = without if vhosts and vhosts[0].profile.api >= "4.0" else ()
    return {
        "parameters": [_without(view, unnamed) for view in parameter_views(vhosts)],
        "policies": [_without(view, unnamed) for view in policy_views(vhosts, USER)],
        "queues": (_without(queue_definition(queue), without) for queue in queues),
        "exchanges": (_without(exchange_definition(*each), without) for each in exchanges if is_exported(each[1])),
        "bindings": (_without(view, ("properties_key", *without)) for view in bindings),
    }


def _without(view: Json, names: Collection[str]) -> Json:
    return {name: value for name, value in view.items() if name not in names}


def load_file(broker: Broker, path: Path) -> list[str]:
    """Load a definitions file when the broker starts. Definitions without a `vhost` field are loaded into `/`.

    Returns:
        A sentence for each definition that the embedded broker does not support.

    Raises:
        OSError: the file cannot be read, or a definition in it is not valid.
    """
    try:
        document = json.loads(path.read_text())
        if not isinstance(document, dict):
            raise TypeError("the file is not a JSON object")
        left_out = [f"{path}: left out {what}" for what in unsupported(document)]
        for _ in _Loading(broker, document, broker.add_vhost("/")).steps():
            pass
    except HttpError as error:
        raise OSError(f"cannot load definitions from {path}: {error.reason}") from error
    except RecursionError as error:
        raise OSError(f"cannot load definitions from {path}: nested too deeply") from error
    except (ValueError, TypeError) as error:
        raise OSError(f"cannot load definitions from {path}: {error}") from error
    return left_out


@route("POST", "definitions", administrator)
@route("POST", "all-configuration", administrator)
@route("POST", "definitions/VHOST", administrator)
async def post_definitions(call: RouteCall, vhost: str | None = None) -> None:
    """Load definitions. Existing exchanges and queues are kept; users, permissions and policies are overwritten.

    Other clients are served meanwhile, and can see that a part is loaded.

    With a virtual host in the path, loads only the topology, policies and parameters, into this virtual host.
    """
    document, into = call.body, None if vhost is None else call.vhost(vhost).name
    if left_out := list(unsupported(document)):
        raise bad_request(f"the embedded broker does not have {', '.join(left_out)}")
    if into is not None:
        document = {
            kind: [{**item, "vhost": into} for item in _items(document, kind)]
            for kind in ("parameters", "policies", "exchanges", "queues", "bindings")
        }
    await in_slices(_Loading(call.broker, document, None).steps())


def _items(document: Json, kind: str) -> list[Json]:
    items = document.get(kind, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise bad_request(f"{kind} must be a list of objects")
    return items


def unsupported(document: Json) -> Iterator[str]:
    """Yield the parameters in a document that the embedded broker does not support."""
    for each in _items(document, "parameters"):
        if each.get("component") not in COMPONENTS:
            yield f"{each.get('component')} '{each.get('name')}'"


class _Loading:
    """Loads a definitions document into a broker.

    Args:
        broker: the broker.
        document: the definitions.
        default: the virtual host of definitions without a `vhost` field; None if every definition must have the field.
    """

    def __init__(self, broker: Broker, document: Json, default: VirtualHost | None) -> None:
        self._broker = broker
        self._document = document
        self._default = default
        self._topic_permissions: dict[str, dict[tuple[str, str], TopicPermissions]] = {}

    def steps(self) -> Iterator[None]:
        """Load all definitions in dependency order, such as queues before bindings; yield after each of them.

        Raises:
            HttpError: 400 if a definition is not valid. Those before it stay loaded, except topic permissions.
        """
        kinds: list[tuple[str, Callable[[Json], object]]] = [
            ("users", self._user),
            ("vhosts", self._vhost),
            ("permissions", self._permissions),
            ("topic_permissions", self._topic_permission),
            ("global_parameters", lambda item: save_global_parameter(self._broker, _name(item), item)),
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
                    where = f'vhost: "{item.get("vhost")}" key: "{item.get("name")}"'
                    raise bad_request(f"{error.reason} ({where if kind == 'policies' else kind})") from error
                except AmqpException as error:
                    raise bad_request(error.text.partition(" - ")[2]) from error
                yield
            if kind == "topic_permissions":
                yield from self._save_topic_permissions()

    def _of(self, item: Json) -> VirtualHost:
        if self._default is not None and "vhost" not in item:
            return self._default
        vhost = self._broker.vhosts.get(_name(item, "vhost"))
        if vhost is None:
            raise bad_request(f"no_such_vhost: {item['vhost']}")
        return vhost

    def _user(self, item: Json) -> None:
        save_user(self._broker, _name(item), {"tags": "", **item})

    def _vhost(self, item: Json) -> None:
        metadata = item.get("metadata")
        save_vhost(self._broker, _name(item), {**(metadata if isinstance(metadata, dict) else {}), **item})

    def _user_of(self, item: Json) -> User:
        user = self._broker.users.get(_name(item, "user"))
        if user is None:
            raise bad_request(f"no_such_user: {item['user']}")
        return user

    def _permissions(self, item: Json) -> None:
        save_permissions(self._broker, self._of(item).name, self._user_of(item), item)

    def _topic_permission(self, item: Json) -> None:
        vhost, (exchange, rights) = self._of(item).name, topic_permissions_of(item)
        self._topic_permissions.setdefault(self._user_of(item).name, {})[vhost, exchange] = rights

    def _save_topic_permissions(self) -> Iterator[None]:
        """Save each user once: a user who has thousands of topic permissions takes long to store."""
        for name, added in self._topic_permissions.items():
            if name in self._broker.users:  # another client may have deleted the user meanwhile
                add_topic_permissions(self._broker, self._broker.users[name], added)
            yield

    def _parameter(self, item: Json) -> None:
        if item.get("component") in COMPONENTS:
            save_parameter(self._broker, self._of(item), str(item["component"]), _name(item), item)

    def _policy(self, item: Json) -> None:
        vhost = self._of(item)
        vhost.policies.put(USER, policy_of(USER, _name(item), item, vhost.profile))

    def _exchange(self, item: Json) -> None:
        name = _name(item)
        if name.startswith(RESERVED) or not name:
            log.warning("definitions: skipped the predeclared exchange '%s'", name)
            return
        vhost = self._of(item)
        if name not in vhost.exchanges:
            declare_exchange(vhost, exchange_declaration(name, item))

    def _queue(self, item: Json) -> None:
        name = _name(item)
        if name.startswith(RESERVED):
            log.warning("definitions: skipped queue '%s', because its name begins with '%s'", name, RESERVED)
            return
        vhost = self._of(item)
        if name not in vhost.queues:
            declare_queue(vhost, queue_declaration(name, item))

    def _binding(self, item: Json) -> None:
        vhost = self._of(item)
        kind, end, start = item["destination_type"], _name(item, "destination"), _name(item, "source")
        ends = vhost.queues if kind == "queue" else vhost.exchanges
        source, destination = vhost.exchanges.get(start), ends.get(end)
        if source is not None and destination is not None:
            vhost.bind(source, destination, *binding_declaration(item))
            return
        missing = f"no exchange '{start}'" if source is None else f"no {kind} '{end}'"
        is_reserved = kind == "queue" and end.startswith(RESERVED)
        if vhost.profile.refuses_loose == "all" or (vhost.profile.refuses_loose == "named" and not is_reserved):
            raise bad_request(f"{missing} in vhost '{vhost.name}'")
        log.warning("definitions: skipped a binding, because there is %s in vhost '%s'", missing, vhost.name)


def _name(item: Json, field: str = "name") -> str:
    if field not in item:
        raise KeyError(field)
    return text(item, field)
