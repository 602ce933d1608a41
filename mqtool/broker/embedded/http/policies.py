"""Policies and operator policies as the management API has them."""

from collections.abc import Callable, Iterable
from typing import Any

from mqtool.broker.embedded.http.directory import bad_request
from mqtool.broker.embedded.http.field_tables import field_table
from mqtool.broker.embedded.model.options import interval
from mqtool.broker.embedded.model.patterns import check_pattern
from mqtool.broker.embedded.model.policies import OPERATOR, USER, Policy
from mqtool.broker.embedded.model.virtual_host import VirtualHost

Json = dict[str, Any]

KINDS = {"policies": USER, "operator-policies": OPERATOR}
"""The kinds of policies by their names in paths."""

_APPLY_TO = ("queues", "classic_queues", "quorum_queues", "streams", "exchanges", "all")
_MAX_SEGMENT_BYTES = 3_000_000_000


def _from(least: int, most: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _in(*allowed: object) -> Callable[[Any], bool]:
    return lambda value: value in allowed


# What policies can set: what is valid, and what RabbitMQ calls it.
_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "alternate-exchange": (_text, "a valid alternate exchange name"),
    "dead-letter-exchange": (_text, "a valid dead letter exchange name"),
    "dead-letter-routing-key": (_text, "a valid dead letter routing key"),
    "dead-letter-strategy": (_in("at-most-once", "at-least-once"), "a valid dead letter strategy"),
    "delivery-limit": (_from(0), "a valid delivery limit"),
    "expires": (_from(1), "a valid queue expiry"),
    "max-age": (lambda value: _text(value) and interval(value) is not None, "a valid max age"),
    "max-length": (_from(0), "a valid maximum length"),
    "max-length-bytes": (_from(0), "a valid maximum length in bytes"),
    "message-ttl": (_from(0), "a valid message TTL"),
    "overflow": (_in("drop-head", "reject-publish", "reject-publish-dlx"), "a valid overflow value"),
    "stream-max-segment-size-bytes": (_from(0, _MAX_SEGMENT_BYTES), "a valid segment size"),
    # Without effect here, as there is one node, and its memory needs no help.
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

# Limits: nothing else can be an operator's.
_OPERATORS = (
    "delivery-limit",
    "expires",
    "max-in-memory-bytes",
    "max-in-memory-length",
    "max-length",
    "max-length-bytes",
    "message-ttl",
)


def policies(vhosts: Iterable[VirtualHost], kind: str) -> list[Json]:
    """All policies of a kind in some virtual hosts."""
    return [_view(vhost, policy) for vhost in vhosts for policy in vhost.policies.by_kind[kind].values()]


def _view(vhost: VirtualHost, policy: Policy) -> Json:
    return {
        "vhost": vhost.name,
        "name": policy.name,
        "pattern": policy.pattern,
        "apply-to": policy.apply_to,
        "definition": dict(policy.definition),
        "priority": policy.priority,
    }


def policy(kind: str, name: str, body: Json) -> Policy:
    """Return the policy that is asked for.

    Raises:
        HttpError: 400, it is not valid, with RabbitMQ's words.
    """
    for key in ("pattern", "definition"):
        if key not in body:
            raise bad_request(f"[{{key_missing,{key}}}]")
    pattern, definition = body["pattern"], field_table(body["definition"])
    priority, apply_to = body.get("priority", 0), body.get("apply-to", "all")
    if not isinstance(priority, int | float) or isinstance(priority, bool):
        raise _invalid(f"priority should be a number, actually was {term(priority)}")
    if not isinstance(pattern, str):
        raise _invalid(f"pattern should be a binary but was {term(pattern)}")
    try:
        check_pattern(pattern)
    except ValueError as error:
        raise _invalid(f"pattern should be regular expression but is invalid: {error}") from error
    if apply_to not in _APPLY_TO:
        raise _invalid(f"apply-to '{apply_to}' unrecognised; should be 'queues', 'exchanges' or 'all'")
    _check_settings(kind, definition)
    return Policy(name, pattern, definition, priority, apply_to)


def _check_settings(kind: str, definition: Json) -> None:
    if not definition:
        raise _invalid("no policy provided")
    known = _OPERATORS if kind == OPERATOR else _SETTINGS
    for setting, value in sorted(definition.items()):
        if setting not in known:
            continue
        is_valid, what = _SETTINGS[setting]
        if not is_valid(value):
            raise _invalid(f"{term(value)} is not {what}")
    unknown = [f"{{{term(name)},{term(value)}}}" for name, value in sorted(definition.items()) if name not in known]
    if unknown:
        raise _invalid(f"[{','.join(unknown)}] are not recognised policy settings")


def _invalid(reason: str) -> Exception:
    return bad_request(f"Validation failed\n\n{reason}\n")


def term(value: Any) -> str:
    """Return a value as Erlang prints it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'<<"{value}">>'
    if isinstance(value, list):
        return f"[{','.join(map(term, value))}]"
    return str(value)
