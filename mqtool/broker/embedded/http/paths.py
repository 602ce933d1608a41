"""The paths of the management API below `/api`, and what can be done with each. Upper case stands for a name.

docs/reference/embedded-broker.md lists them for people.
"""

from http import HTTPStatus

from mqtool.broker.embedded.http.server import Answer, HttpError, Request

_READ = ("GET", "HEAD")
_ONE = (*_READ, "PUT", "DELETE")

PATHS: dict[str, tuple[str, ...]] = {
    "overview": _READ,
    "cluster-name": (*_READ, "PUT"),
    "nodes": _READ,
    "nodes/NODE": _READ,
    "extensions": _READ,
    "feature-flags": _READ,
    "feature-flags/FLAG/enable": ("PUT",),
    "auth": _READ,
    "whoami": _READ,
    "definitions": (*_READ, "POST"),
    "definitions/VHOST": (*_READ, "POST"),
    "all-configuration": (*_READ, "POST"),
    "vhosts": _READ,
    "vhosts/VHOST": _ONE,
    "vhosts/VHOST/permissions": _READ,
    "vhosts/VHOST/topic-permissions": _READ,
    "vhosts/VHOST/connections": _READ,
    "vhosts/VHOST/channels": _READ,
    "vhosts/VHOST/start/NODE": ("POST",),
    "vhost-limits": ("GET",),
    "vhost-limits/VHOST": ("GET",),
    "vhost-limits/VHOST/LIMIT": ("PUT", "DELETE"),
    "users": _READ,
    "users/without-permissions": _READ,
    "users/bulk-delete": ("POST",),
    "users/USER": _ONE,
    "users/USER/permissions": _READ,
    "users/USER/topic-permissions": _READ,
    "user-limits": ("GET",),
    "user-limits/USER": ("GET",),
    "user-limits/USER/LIMIT": ("PUT", "DELETE"),
    "permissions": _READ,
    "permissions/VHOST/USER": _ONE,
    "topic-permissions": _READ,
    "topic-permissions/VHOST/USER": _ONE,
    "topic-permissions/VHOST/USER/EXCHANGE": _ONE,
    "parameters": _READ,
    "parameters/COMPONENT": _READ,
    "parameters/COMPONENT/VHOST": _READ,
    "parameters/COMPONENT/VHOST/PARAMETER": _ONE,
    "global-parameters": _READ,
    "global-parameters/NAME": _ONE,
    "policies": _READ,
    "policies/VHOST": _READ,
    "policies/VHOST/POLICY": _ONE,
    "operator-policies": _READ,
    "operator-policies/VHOST": _READ,
    "operator-policies/VHOST/POLICY": _ONE,
    "exchanges": _READ,
    "exchanges/VHOST": _READ,
    "exchanges/VHOST/EXCHANGE": _ONE,
    "exchanges/VHOST/EXCHANGE/publish": ("POST",),
    "exchanges/VHOST/EXCHANGE/bindings/source": _READ,
    "exchanges/VHOST/EXCHANGE/bindings/destination": _READ,
    "queues": _READ,
    "queues/VHOST": _READ,
    "queues/VHOST/QUEUE": _ONE,
    "queues/VHOST/QUEUE/bindings": _READ,
    "queues/VHOST/QUEUE/contents": ("DELETE",),
    "queues/VHOST/QUEUE/get": ("POST",),
    "queues/VHOST/QUEUE/actions": ("POST",),
    "bindings": _READ,
    "bindings/VHOST": _READ,
    "bindings/VHOST/e/EXCHANGE/TYPE/DESTINATION": (*_READ, "POST"),
    "bindings/VHOST/e/EXCHANGE/TYPE/DESTINATION/KEY": (*_READ, "DELETE"),
    "connections": _READ,
    "connections/CONNECTION": (*_READ, "DELETE"),
    "connections/username/USER": (*_READ, "DELETE"),
    "connections/CONNECTION/channels": _READ,
    "channels": _READ,
    "channels/CHANNEL": _READ,
    "consumers": _READ,
    "consumers/VHOST": _READ,
    "health/checks/alarms": _READ,
    "health/checks/local-alarms": _READ,
    "health/checks/port-listener/PORT": _READ,
    "health/checks/protocol-listener/PROTOCOL": _READ,
    "health/checks/virtual-hosts": _READ,
    "health/checks/certificate-expiration/NUMBER/UNIT": _READ,
    "health/checks/node-is-quorum-critical": _READ,
    "health/checks/node-is-mirror-sync-critical": _READ,
    "healthchecks/node": _READ,
    "healthchecks/node/NODE": _READ,
    "aliveness-test/VHOST": _READ,
    "reset": ("DELETE",),
    "reset/NODE": ("DELETE",),
    "rebalance/queues": ("POST",),
}

_PATTERNS = [(path.split("/"), methods) for path, methods in PATHS.items()]


def checked(request: Request) -> Answer | None:
    """Return the answer to OPTIONS, None to any other method.

    Raises:
        HttpError: 405, there is the path, and not the method.
    """
    allowed = _methods(request.path[1:])
    if not allowed or request.method in allowed:
        return None
    if request.method != "OPTIONS":
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "Method Not Allowed")
    return Answer(HTTPStatus.OK, allow=(*allowed, "OPTIONS"))


def _methods(path: list[str]) -> tuple[str, ...]:
    for pattern, found in _PATTERNS:
        if len(pattern) == len(path) and all(
            each == name or each.isupper() for each, name in zip(pattern, path, strict=True)
        ):
            return found
    return ()
