"""The routes /api/users, /api/permissions, /api/topic-permissions, /api/vhosts, /api/user-limits, /api/vhost-limits."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from mqtool.broker.embedded.http.http_server import (
    HttpAnswer,
    HttpError,
    bad_request,
    boolean,
    in_slices,
    required,
    text,
)
from mqtool.broker.embedded.http.policy_routes import checked_limits
from mqtool.broker.embedded.http.route_table import (
    NO_CONTENT,
    READ,
    Json,
    Rates,
    RouteCall,
    administrator,
    anyone,
    check_regular_expression,
    first,
    missing,
    observer,
    put,
    route,
    where,
)
from mqtool.broker.embedded.model.broker import NODE, OF_USERS, OF_VHOSTS, Broker
from mqtool.broker.embedded.model.names import MAX_NAME, is_too_long
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue_arguments import SUPPORTED
from mqtool.broker.embedded.model.users import ALGORITHMS, DEFAULT_ALGORITHM, Permissions, TopicPermissions, User
from mqtool.broker.embedded.model.virtual_host import VhostLabels, VirtualHost

#: How many tags a user or a virtual host may have. RabbitMQ has no limit.
_MOST_TAGS = 1000


@route(READ, "whoami", anyone)
def whoami(call: RouteCall) -> Json:
    view: Json = {"name": call.user.name, "tags": call.user.tags}
    return {**view, "is_internal_user": True} if call.broker.profile.api >= "4.0" else view


@route(READ, "users", administrator)
def users(call: RouteCall) -> list[Json]:
    return [user_view(each) for each in call.users()]


@route(READ, "users/without-permissions", administrator)
def users_without_permissions(call: RouteCall) -> list[Json]:
    return [user_view(each) for each in call.users() if not each.permissions]


@route(READ, "users/USER", administrator)
def user(call: RouteCall, name: str) -> Json:
    return user_view(call.named_user(name))


def user_view(user: User) -> Json:
    """Return a user in the format of /api/users."""
    return {
        "name": user.name,
        "password_hash": base64.b64encode(user.password_hash or b"").decode(),
        "hashing_algorithm": user.algorithm,
        "tags": list(user.tags),
        "limits": user.limits,
    }


@route("PUT", "users/USER", administrator)
def put_user(call: RouteCall, name: str) -> HttpAnswer:
    return put(existed=save_user(call.broker, name, call.body))


def save_user(broker: Broker, name: str, body: Json) -> bool:
    """Add or change a user, keeping existing permissions. Returns True if the user existed."""
    existed = broker.users.get(name)
    if "tags" not in body:
        raise bad_request("tags_not_present")
    if "password" in body and "password_hash" in body:
        raise bad_request("both_password_and_password_hash_are_provided")
    tags = body["tags"]
    if isinstance(tags, list):
        _check_tags(tags)
        tags = ",".join(text({"tag": tag}, "tag") for tag in tags)
    names = list(dict.fromkeys(tag.strip() for tag in text({"tags": tags}, "tags").split(",") if tag.strip()))
    _check_tags(names)
    if "password" in body:
        user = User.with_password(name, text(body, "password"), names)
    else:
        algorithm = text(body, "hashing_algorithm", DEFAULT_ALGORITHM)
        if algorithm not in ALGORITHMS:
            raise bad_request(f"unknown hashing_algorithm {algorithm}")
        try:
            password_hash = base64.b64decode(text(body, "password_hash", ""))
        except (binascii.Error, ValueError) as error:
            raise bad_request(["not_base64", body["password_hash"]]) from error
        user = User(name, password_hash or None, names, algorithm=algorithm)
    if existed is not None:
        user.permissions, user.topic_permissions = existed.permissions, existed.topic_permissions
        user.limits = existed.limits
    if "limits" in body:
        user.limits = checked_limits(body["limits"], OF_USERS, "user-limits")
    broker.save_user(user)
    return existed is not None


def _check_tags(tags: list[Any]) -> None:
    if len(tags) > _MOST_TAGS:
        raise bad_request(f"{len(tags)} tags are more than {_MOST_TAGS}")


@route("DELETE", "users/USER", administrator)
def delete_user(call: RouteCall, name: str) -> None:
    call.broker.delete_user(call.named_user(name).name)


@route("POST", "users/bulk-delete", administrator)
def delete_users(call: RouteCall) -> None:
    [names] = required(call.body, "users")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise bad_request("users must be a list")
    for name in names:
        if name not in call.broker.users and call.broker.profile.api < "4.0":
            raise bad_request(["no_such_user", name])
    for name in call.broker.users.keys() & names:
        call.broker.delete_user(name)


@route(READ, "permissions", administrator)
@route(READ, "users/USER/permissions", administrator)
def permissions(call: RouteCall, name: str | None = None) -> list[Json]:
    return permission_views(call.users(name))


@route(READ, "vhosts/VHOST/permissions", administrator)
def permissions_in_vhost(call: RouteCall, vhost: str) -> list[Json]:
    return where(permissions(call), vhost=call.vhost(vhost).name)


@route(READ, "permissions/VHOST/USER", administrator)
def permission(call: RouteCall, vhost: str, name: str) -> Json:
    return first(permissions(call, name), vhost=vhost)


def permission_views(users: Iterable[User]) -> list[Json]:
    """Return users' permissions in the format of /api/permissions."""
    return [
        {"user": user.name, "vhost": name, "configure": rights.configure, "write": rights.write, "read": rights.read}
        for user in users
        for name, rights in user.permissions.items()
    ]


@route("PUT", "permissions/VHOST/USER", administrator)
def put_permission(call: RouteCall, vhost: str, name: str) -> HttpAnswer:
    if vhost not in call.broker.vhosts or name not in call.broker.users:
        raise bad_request("vhost_or_user_not_found")
    return put(existed=save_permissions(call.broker, vhost, call.named_user(name), call.body))


def save_permissions(broker: Broker, vhost: str, user: User, body: Json) -> bool:
    """Set a user's permissions in a virtual host. Returns True if the user already had permissions there."""
    existed = vhost in user.permissions
    broker.set_permissions(user.name, vhost, Permissions(*_patterns(body, "configure", "write", "read")))
    return existed


def _patterns(body: Json, *names: str) -> list[str]:
    """Return these fields of a body; raise 400 if one of them is not a valid regular expression."""
    required(body, *names)
    for name in names:
        check_regular_expression(text(body, name))
    return [text(body, name) for name in names]


@route("DELETE", "permissions/VHOST/USER", administrator)
def delete_permission(call: RouteCall, vhost: str, name: str) -> None:
    call.broker.set_permissions(call.named_user(name).name, call.vhost(vhost).name, None)


@route(READ, "topic-permissions", administrator)
@route(READ, "users/USER/topic-permissions", administrator)
def topic_permissions(call: RouteCall, name: str | None = None) -> list[Json]:
    return topic_permission_views(call.users(name))


@route(READ, "vhosts/VHOST/topic-permissions", administrator)
def topic_permissions_in_vhost(call: RouteCall, vhost: str) -> list[Json]:
    return where(topic_permissions(call), vhost=call.vhost(vhost).name)


@route(READ, "topic-permissions/VHOST/USER", administrator)
@route(READ, "topic-permissions/VHOST/USER/EXCHANGE", administrator)
def topic_permission(call: RouteCall, vhost: str, name: str, *exchange: str) -> list[Json]:  # noqa: ARG001 - as in RabbitMQ
    return where(topic_permissions(call, name), vhost=call.vhost(vhost).name) or missing()


def topic_permission_views(users: Iterable[User]) -> list[Json]:
    """Return users' topic permissions in the format of /api/topic-permissions."""
    return [
        {"user": user.name, "vhost": vhost, "exchange": exchange, "write": rights.write, "read": rights.read}
        for user in users
        for (vhost, exchange), rights in user.topic_permissions.items()
    ]


@route("PUT", "topic-permissions/VHOST/USER", administrator)
@route("PUT", "topic-permissions/VHOST/USER/EXCHANGE", administrator)
def put_topic_permission(call: RouteCall, vhost: str, name: str, *exchange: str) -> HttpAnswer:  # noqa: ARG001 - it is in the body
    return put(existed=save_topic_permissions(call.broker, call.vhost(vhost).name, call.named_user(name), call.body))


def save_topic_permissions(broker: Broker, vhost: str, user: User, body: Json) -> bool:
    """Set a user's topic permissions for an exchange, which need not exist.

    Returns True if the user already had topic permissions in the virtual host.
    """
    existed = any(place[0] == vhost for place in user.topic_permissions)
    exchange, rights = topic_permissions_of(body)
    add_topic_permissions(broker, user, {(vhost, exchange): rights})
    return existed


def topic_permissions_of(body: Json) -> tuple[str, TopicPermissions]:
    """Return the exchange and the topic permissions in a body; raise 400 if they are not valid."""
    required(body, "exchange")
    return text(body, "exchange"), TopicPermissions(*_patterns(body, "write", "read"))


def add_topic_permissions(broker: Broker, user: User, added: Mapping[tuple[str, str], TopicPermissions]) -> None:
    """Set topic permissions of a user, by virtual host and exchange, and store all of them at once."""
    broker.save_user(replace(user, topic_permissions={**user.topic_permissions, **added}))


@route("DELETE", "topic-permissions/VHOST/USER", administrator)
@route("DELETE", "topic-permissions/VHOST/USER/EXCHANGE", administrator)
def delete_topic_permission(call: RouteCall, vhost: str, name: str, *exchange: str) -> None:
    """Delete a user's topic permissions for an exchange, or for all exchanges in the virtual host."""
    topic_permission(call, vhost, name)  # raises 404 if there are none
    user = call.named_user(name)
    kept = {
        key: rights
        for key, rights in user.topic_permissions.items()
        if key[0] != vhost or (exchange and key[1] != exchange[0])
    }
    call.broker.save_user(replace(user, topic_permissions=kept))


@route(READ, "vhosts", anyone)
async def vhosts(call: RouteCall) -> list[Json]:
    return [await _vhost_view(vhost, call.api.rates) for vhost in call.named_vhosts()]


@route(READ, "vhosts/VHOST", administrator)
async def vhost(call: RouteCall, name: str) -> Json:
    return await _vhost_view(call.vhost(name), call.api.rates)


async def _vhost_view(vhost: VirtualHost, rates: Rates) -> Json:
    ready = sum(len(queue) for queue in vhost.queues.values())
    unacked = sum(queue.unacked for queue in vhost.queues.values())
    labels = vhost.labels
    tags, kind = [*labels.tags], labels.default_queue_type or "classic"
    default = {"default_queue_type": kind} if vhost.profile.api >= "4.0" or labels.default_queue_type else {}
    return {
        "message_stats": await rates.total(
            [*vhost.deleted_traffic.values(), *(queue.traffic for queue in vhost.queues.values())]
        ),
        "name": vhost.name,
        "description": vhost.description,
        "tags": tags,
        "default_queue_type": kind,
        **(
            {"protected_from_deletion": labels.is_protected}
            if vhost.profile.api >= "4.2" or labels.is_protected
            else {}
        ),
        "metadata": {"description": vhost.description, "tags": tags, **default},
        "tracing": vhost.tracing,
        "cluster_state": {NODE: "running"},
        "messages": ready + unacked,
        "messages_ready": ready,
        "messages_unacknowledged": unacked,
    }


@route("PUT", "vhosts/VHOST", administrator)
def put_vhost(call: RouteCall, name: str) -> HttpAnswer:
    """Add a virtual host, with full permissions for the requesting user, or replace an existing one's metadata."""
    existed, body = name in call.broker.vhosts, call.body
    if is_too_long(name):
        raise bad_request(f"virtual host name is longer than {MAX_NAME} bytes")
    tracing = boolean(body, "tracing") if "tracing" in body else None
    vhost = save_vhost(call.broker, name, body)
    if tracing is not None:
        vhost.tracing = tracing
    if not existed:
        call.broker.set_permissions(call.user.name, name, Permissions())
    return put(existed=existed)


def save_vhost(broker: Broker, name: str, body: Json) -> VirtualHost:
    """Add a virtual host, or replace the metadata of an existing one with those in the body."""
    found = broker.vhosts.get(name)
    labels = _labels_of(body, VhostLabels() if found is None else found.labels, broker.profile)
    vhost = broker.add_vhost(name, "" if body.get("description") is None else text(body, "description"))
    if labels != vhost.labels:
        broker.label_vhost(vhost, labels)
    return vhost


def _labels_of(body: Json, before: VhostLabels, profile: Profile) -> VhostLabels:
    """Return the labels in a body. Tags are a list, or text separated by commas."""
    tags, kind = body.get("tags") or (), before.default_queue_type if profile.keeps_queue_type else ""
    if isinstance(tags, str):
        tags = [each.strip() for each in tags.split(",") if each.strip()]
    if not isinstance(tags, list | tuple) or not all(isinstance(each, str) for each in tags):
        raise bad_request("tags must be a list of strings")
    _check_tags([*tags])
    if "default_queue_type" in body:
        kind = "" if body["default_queue_type"] in (None, "undefined") else text(body, "default_queue_type")
    if kind and kind not in SUPPORTED:
        raise bad_request(f"{kind} is not a valid queue type")
    return before._replace(tags=tuple(tags), default_queue_type=kind)


@route("DELETE", "vhosts/VHOST", administrator)
async def delete_vhost(call: RouteCall, name: str) -> None:
    vhost = call.vhost(name)
    if vhost.labels.is_protected:
        what = f"Refusing to delete virtual host '{name}' because it is protected from deletion"
        raise HttpError(HTTPStatus.PRECONDITION_FAILED, "precondition_failed", what)
    await in_slices(vhost.deletions.of_all([*vhost.queues.values()], [*vhost.exchanges.values()]))
    if call.broker.vhosts.get(name) is vhost:
        call.broker.delete_vhost(name)


@route("POST DELETE", "vhosts/VHOST/deletion/protection", administrator)
def protect_vhost(call: RouteCall, name: str) -> HttpAnswer:
    vhost = call.vhost(name)
    call.broker.label_vhost(vhost, vhost.labels._replace(is_protected=call.request.method == "POST"))
    return NO_CONTENT


@route("POST", "vhosts/VHOST/start/NODE", administrator)
def start_vhost(call: RouteCall, name: str, node: str) -> None:  # noqa: ARG001
    """Do nothing: virtual hosts are always running."""
    call.vhost(name)


@route("GET", "vhost-limits", anyone)
@route("GET", "vhost-limits/VHOST", observer)
def vhost_limits(call: RouteCall, vhost: str | None = None) -> list[Json]:
    found = call.named_vhosts() if vhost is None else call.vhosts(vhost)
    return [{"vhost": each.name, "value": each.limits} for each in found if each.limits]


@route("PUT DELETE", "vhost-limits/VHOST/LIMIT", administrator)
def change_vhost_limit(call: RouteCall, name: str, limit: str) -> HttpAnswer:
    vhost = call.vhost(name)
    call.broker.limit_vhost(vhost, _changed(call, vhost.limits, limit, OF_VHOSTS, "limits"))
    return NO_CONTENT


@route("GET", "user-limits", anyone)
@route("GET", "user-limits/USER", anyone)
def user_limits(call: RouteCall, name: str | None = None) -> list[Json]:
    return [{"user": each.name, "value": each.limits} for each in call.users(name) if each.limits]


@route("PUT DELETE", "user-limits/USER/LIMIT", administrator)
def change_user_limit(call: RouteCall, name: str, limit: str) -> HttpAnswer:
    user = call.broker.users.get(name)
    if user is None:
        raise bad_request(f"no_such_user: {name}")
    limits = _changed(call, user.limits, limit, OF_USERS, "user-limits")
    call.broker.save_user(replace(user, limits=limits))
    return NO_CONTENT


def _changed(call: RouteCall, limits: dict[str, int], name: str, known: tuple[str, ...], of: str) -> Any:
    """Return the limits to set: without the limit `name` for DELETE, or with its new value for PUT."""
    others = {each: limit for each, limit in limits.items() if each != name}
    if call.request.method == "DELETE":
        return others
    [value] = required(call.body, "value")
    return checked_limits({**others, name: value}, known, of)
