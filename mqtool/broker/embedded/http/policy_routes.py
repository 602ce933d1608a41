"""The routes /api/policies, /api/operator-policies, /api/parameters and /api/global-parameters.

https://www.rabbitmq.com/docs/policies and https://www.rabbitmq.com/docs/parameters
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mqtool.broker.embedded.http.http_server import HttpAnswer, bad_request, required
from mqtool.broker.embedded.http.message_routes import field_table
from mqtool.broker.embedded.http.route_table import (
    READ,
    Json,
    RouteCall,
    administrator,
    anyone,
    first,
    missing,
    policymaker,
    put,
    route,
    visitor,
)
from mqtool.broker.embedded.model.applied_policies import OPERATOR, USER, Policy, check_pattern
from mqtool.broker.embedded.model.broker import OF_VHOSTS, Broker
from mqtool.broker.embedded.model.names import is_too_long
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.duration import parse_interval

#: The components of /api/parameters that the embedded broker supports.
COMPONENTS = (OPERATOR, "vhost-limits")

_APPLY_TO = ("queues", "classic_queues", "quorum_queues", "streams", "exchanges", "all")
_CHOICE = "'queues', 'exchanges' or 'all'"
_CHOICE_SINCE_4_0 = "one of: 'queues', 'classic_queues',  'quorum_queues', 'streams', 'exchanges', or 'all'"
_MAX_SEGMENT_BYTES = 3_000_000_000


def _from(least: int, most: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _routing_key(value: Any) -> bool:
    return isinstance(value, str) and not is_too_long(value)


def _in(*allowed: object) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, list | dict) and value in allowed


#: Keys of policy definitions, each with a function that checks the value and RabbitMQ's description of a valid value.
PolicySettings = dict[str, tuple[Callable[[Any], bool], str]]

_SETTINGS: PolicySettings = {
    "alternate-exchange": (_text, "a valid alternate exchange name"),
    "dead-letter-exchange": (_text, "a valid dead letter exchange name"),
    "dead-letter-routing-key": (_routing_key, "a valid dead letter routing key"),
    "dead-letter-strategy": (_in("at-most-once", "at-least-once"), "a valid dead letter strategy"),
    "delivery-limit": (_from(0), "a valid delivery limit"),
    "expires": (_from(1), "a valid queue expiry"),
    "max-age": (lambda value: _text(value) and parse_interval(value) is not None, "a valid max age"),
    "max-length": (_from(0), "a valid maximum length"),
    "max-length-bytes": (_from(0), "a valid maximum length in bytes"),
    "message-ttl": (_from(0), "a valid message TTL"),
    "overflow": (_in("drop-head", "reject-publish", "reject-publish-dlx"), "a valid overflow value"),
    "stream-max-segment-size-bytes": (_from(0, _MAX_SEGMENT_BYTES), "a valid segment size"),
    # The following keys have no effect: there is one node, which pages messages out to disk when necessary.
    "ha-mode": (_in("all", "exactly", "nodes"), "a valid ha-mode value"),
    "ha-params": (lambda _: True, "valid"),
    "ha-promote-on-failure": (_in("always", "when-synced"), "a valid ha-promote-on-failure value"),
    "ha-promote-on-shutdown": (_in("always", "when-synced"), "a valid ha-promote-on-shutdown value"),
    "ha-sync-batch-size": (_from(1), "a valid ha-sync-batch-size value"),
    "ha-sync-mode": (_in("automatic", "manual"), "a valid ha-sync-mode value"),
    "initial-cluster-size": (_from(1), "a valid cluster size"),
    "max-in-memory-bytes": (_from(0), "a valid maximum memory in bytes"),
    "max-in-memory-length": (_from(0), "a valid maximum memory in bytes"),
    "queue-leader-locator": (
        _in("client-local", "balanced", "random", "least-leaders"),
        "a valid queue leader locator value",
    ),
    "queue-master-locator": (_in("client-local", "random", "min-masters"), "a valid queue-master-locator value"),
    "queue-mode": (_in("default", "lazy"), "a valid queue-mode value"),
    "queue-version": (_in(1, 2), "a valid queue-version value"),
}

#: A definition can contain a hundred thousand unknown keys; the error names only the first ones.
_MOST_REPORTED = 100

#: The keys for mirrored queues, which were removed in RabbitMQ 4.0.
_MIRRORS = {name for name in _SETTINGS if name.startswith("ha-")}
_SINCE_4_0: PolicySettings = {
    "consumer-timeout": (_from(0), "a valid consumer timeout"),
    "delivery-limit": (_from(-(2**63)), "a valid delivery limit"),
    "stream-filter-size-bytes": (_from(16, 255), "a valid filter size. Valid range is 16-255"),
    "target-group-size": (_from(1), "a valid target count"),
}
_RETRIES: PolicySettings = {
    "delayed-retry-type": (
        _in("all", "failed", "returned", "disabled"),
        "a valid delayed retry type. Must be one of: all, failed, returned, disabled",
    ),
    "delayed-retry-min": (_from(1), "a valid delayed retry minimum delay. Must be a positive integer"),
    "delayed-retry-max": (_from(1), "a valid delayed retry maximum delay. Must be a positive integer"),
}

#: The keys that operator policies accept.
_OPERATORS_SINCE_4_0 = ("overflow", "queue-version", "target-group-size", *_RETRIES)
_OPERATORS = (
    "delivery-limit",
    "expires",
    "max-in-memory-bytes",
    "max-in-memory-length",
    "max-length",
    "max-length-bytes",
    "message-ttl",
)


def policymaker_of_component(call: RouteCall, component: str, vhost: str | None = None, *names: str) -> None:  # noqa: ARG001
    """Allow the same users as policymaker(), on paths where a component precedes the virtual host."""
    policymaker(call, vhost)


def _kind(call: RouteCall) -> str:
    return USER if call.request.path[1] == "policies" else OPERATOR


@route(READ, "policies", anyone)
@route(READ, "operator-policies", anyone)
@route(READ, "policies/VHOST", visitor)
@route(READ, "operator-policies/VHOST", visitor)
def policies(call: RouteCall, vhost: str | None = None) -> list[Json]:
    return policy_views(call.vhosts(vhost), _kind(call))


@route(READ, "policies/VHOST/POLICY", policymaker)
@route(READ, "operator-policies/VHOST/POLICY", administrator)
def policy(call: RouteCall, vhost: str, name: str) -> Json:
    return first(policies(call, vhost), name=name)


def policy_views(vhosts: Iterable[VirtualHost], kind: str) -> list[Json]:
    """Return the policies of one kind (user or operator) in the format of /api/policies."""
    return [
        {
            "vhost": vhost.name,
            "name": policy.name,
            "pattern": policy.pattern,
            "apply-to": policy.apply_to,
            "definition": dict(policy.definition),
            "priority": policy.priority,
        }
        for vhost in vhosts
        for policy in vhost.policies.by_kind[kind].values()
    ]


@route("PUT", "policies/VHOST/POLICY", policymaker)
@route("PUT", "operator-policies/VHOST/POLICY", administrator)
def put_policy(call: RouteCall, vhost: str, name: str) -> HttpAnswer:
    kind, policies = _kind(call), call.vhost(vhost).policies
    existed = name in policies.by_kind[kind]
    policies.put(kind, policy_of(kind, name, call.body, call.broker.profile))
    return put(existed=existed)


@route("DELETE", "policies/VHOST/POLICY", policymaker)
@route("DELETE", "operator-policies/VHOST/POLICY", administrator)
def delete_policy(call: RouteCall, vhost: str, name: str) -> None:
    policy(call, vhost, name)  # raises 404 if it does not exist
    call.vhost(vhost).policies.delete(_kind(call), name)


@route(READ, "parameters", policymaker)
@route(READ, "parameters/COMPONENT", policymaker_of_component)
@route(READ, "parameters/COMPONENT/VHOST", policymaker_of_component)
def parameters(call: RouteCall, component: str | None = None, vhost: str | None = None) -> list[Json]:
    return parameter_views(call.vhosts(vhost), component)


@route(READ, "parameters/COMPONENT/VHOST/PARAMETER", policymaker_of_component)
def parameter(call: RouteCall, component: str, vhost: str, name: str) -> Json:
    return first(parameters(call, component, vhost), name=name)


def parameter_views(vhosts: Iterable[VirtualHost], component: str | None = None) -> list[Json]:
    """Return limits and operator policies in the format of /api/parameters, which does not include user policies."""
    found: list[Json] = []
    for vhost in vhosts:
        if vhost.limits:
            found.append({"value": vhost.limits, "vhost": vhost.name, "component": "vhost-limits", "name": "limits"})
        for view in policy_views([vhost], OPERATOR):
            value = {name: view[name] for name in ("pattern", "definition", "priority", "apply-to")}
            found.append({"value": value, "vhost": vhost.name, "component": OPERATOR, "name": view["name"]})
    return [each for each in found if component in (None, each["component"])]


@route("PUT", "parameters/COMPONENT/VHOST/PARAMETER", policymaker_of_component)
def put_parameter(call: RouteCall, component: str, vhost: str, name: str) -> HttpAnswer:
    return put(existed=save_parameter(call.broker, call.vhost(vhost), component, name, call.body))


def save_parameter(broker: Broker, vhost: VirtualHost, component: str, name: str, body: Json) -> bool:
    """Set a parameter; raise 400 if the component is unknown or the value is not valid. Returns True if it existed."""
    [value] = required(body, "value")
    if component == OPERATOR and isinstance(value, dict):
        existed = name in vhost.policies.by_kind[OPERATOR]
        vhost.policies.put(OPERATOR, policy_of(OPERATOR, name, value, vhost.profile))
    elif component == "vhost-limits" and name == "limits":
        existed = bool(vhost.limits)
        broker.limit_vhost(vhost, checked_limits(value, OF_VHOSTS, "limits"))
    elif component == "policy":
        raise bad_request("policies may not be set using this method")
    else:
        raise bad_request(f"Validation failed\n\ncomponent {component} not found\n")
    return existed


@route("DELETE", "parameters/COMPONENT/VHOST/PARAMETER", policymaker_of_component)
def delete_parameter(call: RouteCall, component: str, vhost: str, name: str) -> None:
    parameter(call, component, vhost, name)  # raises 404 if it does not exist
    if component == OPERATOR:
        call.vhost(vhost).policies.delete(OPERATOR, name)
    else:
        call.broker.limit_vhost(call.vhost(vhost), {})


@route(READ, "global-parameters", policymaker)
def global_parameters(call: RouteCall) -> Iterator[Json]:
    return global_parameter_views(call.broker)


@route(READ, "global-parameters/NAME", policymaker_of_component)
def global_parameter(call: RouteCall, name: str) -> Json:
    value = call.broker.global_parameters.get(name)
    return missing() if value is None else {"name": name, "value": json.loads(value)}


def global_parameter_views(broker: Broker) -> Iterator[Json]:
    """Yield the global parameters in the format of /api/global-parameters."""
    return ({"name": name, "value": json.loads(text)} for name, text in [*broker.global_parameters.items()])


@route("PUT", "global-parameters/NAME", policymaker_of_component)
def put_global_parameter(call: RouteCall, name: str) -> HttpAnswer:
    return put(existed=save_global_parameter(call.broker, name, call.body))


def save_global_parameter(broker: Broker, name: str, body: Json) -> bool:
    """Set a global parameter to the `value` in a request body. Returns True if the parameter already existed."""
    existed = name in broker.global_parameters
    [value] = required(body, "value")
    broker.set_global_parameter(name, json.dumps(value))
    return existed


@route("DELETE", "global-parameters/NAME", policymaker_of_component)
def delete_global_parameter(call: RouteCall, name: str) -> None:
    global_parameter(call, name)  # raises 404 if it does not exist
    call.broker.set_global_parameter(name, None)


def checked_limits(value: Any, known: Sequence[str], of: str) -> dict[str, int]:
    """Return the limits in a request; raise 400 with RabbitMQ's error message if they are not valid."""
    if not isinstance(value, dict):
        raise bad_request(f"{of} must be an object")
    for name, limit in value.items():
        if name not in known:
            raise _invalid(f"Unrecognised terms [{{{term(name)},{term(limit)}}}] in {of}")
        if type(limit) is not int:
            raise _invalid(f"{name} should be a number, actually was {term(limit)}")
    return dict(value)


def policy_of(kind: str, name: str, body: Json, profile: Profile) -> Policy:
    """Return the policy that a request body describes; raise 400 with RabbitMQ's error message if it is not valid."""
    pattern, given = required(body, "pattern", "definition")
    definition = field_table(given)
    priority, apply_to = body.get("priority", 0), body.get("apply-to", "all")
    if not isinstance(priority, int | float) or isinstance(priority, bool):
        raise _invalid(f"priority should be a number, actually was {term(priority)}")
    if not isinstance(pattern, str):
        raise _invalid(f"pattern should be a binary but was {term(pattern)}")
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise _invalid(f"pattern should be regular expression but is invalid: {error}") from error
    if not isinstance(apply_to, str) or apply_to not in _APPLY_TO:
        choice = _CHOICE if profile.mirrors else _CHOICE_SINCE_4_0
        raise _invalid(f"apply-to '{apply_to}' unrecognised; should be {choice}")
    _check_settings(kind, definition, profile)
    return Policy(name, pattern, definition, priority, apply_to)


def _settings(kind: str, profile: Profile) -> PolicySettings:
    """Return the keys that policies of this kind (user or operator) accept."""
    known, operators = _SETTINGS, [*_OPERATORS]
    if not profile.mirrors:
        known = {name: each for name, each in _SETTINGS.items() if name not in _MIRRORS} | _SINCE_4_0
        operators += _OPERATORS_SINCE_4_0
    if profile.delayed_retry:
        known = known | _RETRIES
    return {name: known[name] for name in operators if name in known} if kind == OPERATOR else known


def _check_settings(kind: str, definition: Json, profile: Profile) -> None:
    if not definition:
        raise _invalid("no policy provided")
    if "queue-master-locator" in definition and not profile.master_locator:
        raise _invalid("use of deprecated queue-master-locator argument is not permitted")
    known = _settings(kind, profile)
    for setting in sorted(known.keys() & definition.keys()):
        is_valid, what = known[setting]
        if not is_valid(definition[setting]):
            raise _invalid(f"{term(definition[setting])} is not {what}")
    if unknown := sorted(definition.keys() - known.keys())[:_MOST_REPORTED]:
        named = ",".join(f"{{{term(name)},{term(definition[name])}}}" for name in unknown)
        raise _invalid(f"[{named}] are not recognised policy settings")
    _check_retries(definition)


def _check_retries(definition: Json) -> None:
    """Raise HttpError 400 if delayed-retry-min is required but missing, or greater than delayed-retry-max."""
    kind, least, most = (definition.get(name) for name in _RETRIES)
    if kind not in (None, "disabled") and least is None:
        raise _invalid(f"delayed-retry-min is required when delayed-retry-type is {kind}")
    if least is not None and most is not None and most < least:
        raise _invalid(f"delayed-retry-max ({most}) must not be smaller than delayed-retry-min ({least})")


def _invalid(reason: str) -> Exception:
    return bad_request(f"Validation failed\n\n{reason}\n")


def term(value: Any) -> str:
    """Format a value the way Erlang prints it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'<<"{value}">>'
    if isinstance(value, list):
        return f"[{','.join(map(term, value))}]"
    return str(value)
