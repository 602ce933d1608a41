"""Limits, runtime parameters and global parameters as the management API has them.

https://www.rabbitmq.com/docs/parameters
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mqtool.broker.embedded.http import policies
from mqtool.broker.embedded.http.directory import Directory, bad_request, not_found
from mqtool.broker.embedded.http.server import Request
from mqtool.broker.embedded.model import broker as limits
from mqtool.broker.embedded.model.applied_policies import OPERATOR
from mqtool.broker.embedded.model.broker import NODE, Broker
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost

Json = dict[str, Any]

VHOST_LIMITS = "vhost-limits"
COMPONENTS = (OPERATOR, VHOST_LIMITS)
CLUSTER_NAME = "cluster_name"


def vhost_limits(vhosts: Iterable[VirtualHost]) -> list[Json]:
    """The limits of those virtual hosts that have any."""
    return [{"vhost": vhost.name, "value": vhost.limits} for vhost in vhosts if vhost.limits]


def user_limits(users: Iterable[User]) -> list[Json]:
    """The limits of those users who have any."""
    return [{"user": user.name, "value": user.limits} for user in users if user.limits]


def checked_limits(value: Any, known: Sequence[str], of: str) -> dict[str, int]:
    """Return limits that a user has sent.

    Raises:
        HttpError: 400, with RabbitMQ's words.
    """
    if not isinstance(value, dict):
        raise bad_request(f"{of} must be an object")
    for name, limit in value.items():
        if name not in known:
            raise bad_request(f"Unrecognised terms [{{{policies.term(name)},{policies.term(limit)}}}] in {of}")
        if type(limit) is not int:
            raise bad_request(f"{name} should be a number, actually was {policies.term(limit)}")
    return dict(value)


def change_vhost_limit(broker: Broker, vhost: VirtualHost, name: str, body: Json | None) -> None:
    """Set a limit of a virtual host; None for no limit.

    Raises:
        HttpError: 400.
    """
    changed = _changed(vhost.limits, name, body)
    broker.limit_vhost(vhost, changed if body is None else checked_limits(changed, limits.OF_VHOSTS, "limits"))


def change_user_limit(broker: Broker, user: User, name: str, body: Json | None) -> None:
    """Set a limit of a user; None for no limit.

    Raises:
        HttpError: 400.
    """
    changed = _changed(user.limits, name, body)
    broker.limit_user(user, changed if body is None else checked_limits(changed, limits.OF_USERS, "user-limits"))


def _changed(limits: dict[str, int], name: str, body: Json | None) -> Json:
    others = {each: limit for each, limit in limits.items() if each != name}
    return others if body is None else {**others, name: required(body, "value")}


def required(body: Json, name: str) -> Any:
    """Return what a body must have.

    Raises:
        HttpError: 400.
    """
    if name not in body:
        raise bad_request(f"[{{key_missing,{name}}}]")
    return body[name]


def parameters(vhosts: Iterable[VirtualHost], component: str | None = None) -> list[Json]:
    """The limits and the operator policies of some virtual hosts, as RabbitMQ stores them; policies are not listed."""
    found = []
    for vhost in vhosts:
        if vhost.limits:
            found.append({"value": vhost.limits, "vhost": vhost.name, "component": VHOST_LIMITS, "name": "limits"})
        for view in policies.policies([vhost], OPERATOR):
            value = {name: view[name] for name in ("pattern", "definition", "priority", "apply-to")}
            found.append({"value": value, "vhost": vhost.name, "component": OPERATOR, "name": view["name"]})
    return [each for each in found if component in (None, each["component"])]


def parameter(vhost: VirtualHost, component: str, name: str) -> Json:
    """Return one.

    Raises:
        HttpError: 404.
    """
    for each in parameters([vhost], component):
        if each["name"] == name:
            return each
    raise not_found()


def put_parameter(broker: Broker, vhost: VirtualHost, component: str, name: str, body: Json) -> bool:
    """Set a parameter; return whether there was one before.

    Raises:
        HttpError: 400.
    """
    existed = any(each["name"] == name for each in parameters([vhost], component))
    value = required(body, "value")
    if component == OPERATOR and isinstance(value, dict):
        vhost.policies.put(OPERATOR, policies.policy(OPERATOR, name, value, vhost.profile))
    elif component == VHOST_LIMITS and name == "limits":
        broker.limit_vhost(vhost, checked_limits(value, limits.OF_VHOSTS, "limits"))
    elif component == "policy":
        raise bad_request("policies may not be set using this method")
    else:
        raise bad_request(f"Validation failed\n\ncomponent {component} not found\n")
    return existed


def delete_parameter(broker: Broker, vhost: VirtualHost, component: str, name: str) -> None:
    """Delete a parameter.

    Raises:
        HttpError: 404.
    """
    parameter(vhost, component, name)
    if component == OPERATOR:
        vhost.policies.delete(OPERATOR, name)
    else:
        broker.limit_vhost(vhost, {})


def global_parameters(broker: Broker) -> list[Json]:
    """All of them."""
    return [{"name": name, "value": json.loads(text)} for name, text in broker.global_parameters.items()]


def cluster_name(broker: Broker) -> Any:
    """The name of the cluster, a global parameter once it is set."""
    return json.loads(broker.global_parameters.get(CLUSTER_NAME, json.dumps(NODE)))


def global_parameter(broker: Broker, name: str) -> Json:
    """Return one.

    Raises:
        HttpError: 404.
    """
    for each in global_parameters(broker):
        if each["name"] == name:
            return each
    raise not_found()


def put_global_parameter(broker: Broker, name: str, body: Json) -> bool:
    """Set one; return whether there was one before.

    Raises:
        HttpError: 400.
    """
    existed = name in broker.global_parameters
    broker.set_global_parameter(name, json.dumps(required(body, "value")))
    return existed


def read(directory: Directory, visible: list[VirtualHost], path: list[str]) -> Any:
    """Answer a GET of limits or parameters.

    Args:
        visible: the virtual hosts that the user may see.

    Raises:
        HttpError: 404.
    """
    match path:
        case ["vhost-limits"]:
            return vhost_limits(visible)
        case ["vhost-limits", vhost]:
            return vhost_limits([directory.vhost(vhost)])
        case ["user-limits"]:
            return user_limits(directory.broker.users.values())
        case ["user-limits", user]:
            return user_limits([directory.user(user)])
        case ["parameters", *components] if len(components) < 2:
            return parameters(visible, *components)
        case ["parameters", component, vhost]:
            return parameters([directory.vhost(vhost)], component)
        case ["parameters", component, vhost, name]:
            return parameter(directory.vhost(vhost), component, name)
        case ["global-parameters"]:
            return global_parameters(directory.broker)
        case ["global-parameters", name]:
            return global_parameter(directory.broker, name)
    raise not_found()


def change(directory: Directory, request: Request, path: list[str]) -> bool:
    """Do what a PUT or DELETE of a limit or a parameter asks for; return whether it was there before.

    Raises:
        HttpError: 400 or 404.
    """
    broker, body = directory.broker, request.json() if request.method == "PUT" else None
    match path:
        case ["vhost-limits", vhost, name]:
            change_vhost_limit(broker, directory.vhost(vhost), name, body)
        case ["user-limits", user, name]:
            if user not in broker.users:
                raise bad_request(f"no_such_user: {user}")
            change_user_limit(broker, directory.user(user), name, body)
        case ["parameters", component, vhost, name] if body is not None:
            return put_parameter(broker, directory.vhost(vhost), component, name, body)
        case ["parameters", component, vhost, name]:
            delete_parameter(broker, directory.vhost(vhost), component, name)
        case ["global-parameters", name] if body is not None:
            return put_global_parameter(broker, name, body)
        case ["global-parameters", name]:
            global_parameter(broker, name)
            broker.set_global_parameter(name, None)
    return True
