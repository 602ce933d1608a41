"""Policies and operator policies as the management API has them."""

from collections.abc import Callable, Iterable
from typing import Any

from mqtool.broker.embedded.http.directory import bad_request
from mqtool.broker.embedded.http.field_tables import field_table
from mqtool.broker.embedded.model.applied_policies import OPERATOR, USER, Policy, check_pattern
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.model.queue_arguments import interval
from mqtool.broker.embedded.model.virtual_host import VirtualHost

Json = dict[str, Any]

KINDS = {"policies": USER, "operator-policies": OPERATOR}
"""The kinds of policies by their names in paths."""

_APPLY_TO = ("queues", "classic_queues", "quorum_queues", "streams", "exchanges", "all")
_CHOICE = "'queues', 'exchanges' or 'all'"
_CHOICE_SINCE_4_0 = "one of: 'queues', 'classic_queues',  'quorum_queues', 'streams', 'exchanges', or 'all'"
_MAX_SEGMENT_BYTES = 3_000_000_000


def _from(least: int, most: float = float("inf")) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _in(*allowed: object) -> Callable[[Any], bool]:
    return lambda value: value in allowed


Settings = dict[str, tuple[Callable[[Any], bool], str]]
"""What policies can set: what is valid, and what RabbitMQ calls it."""

_SETTINGS: Settings = {
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

# For mirrored queues, which RabbitMQ 4.0 removed.
_MIRRORS = {name for name in _SETTINGS if name.startswith("ha-")}
_SINCE_4_0: Settings = {
    "consumer-timeout": (_from(0), "a valid consumer timeout"),
    "delivery-limit": (_from(-(2**63)), "a valid delivery limit"),
    "stream-filter-size-bytes": (_from(16, 255), "a valid filter size. Valid range is 16-255"),
    "target-group-size": (_from(1), "a valid target count"),
}
_RETRIES: Settings = {
    "delayed-retry-type": (
        _in("all", "failed", "returned", "disabled"),
        "a valid delayed retry type. Must be one of: all, failed, returned, disabled",
    ),
    "delayed-retry-min": (_from(1), "a valid delayed retry minimum delay. Must be a positive integer"),
    "delayed-retry-max": (_from(1), "a valid delayed retry maximum delay. Must be a positive integer"),
}

# Limits: nothing else can be an operator's.
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


def policy(kind: str, name: str, body: Json, profile: Profile) -> Policy:
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
        choice = _CHOICE if profile.mirrors else _CHOICE_SINCE_4_0
        raise _invalid(f"apply-to '{apply_to}' unrecognised; should be {choice}")
    _check_settings(kind, definition, profile)
    return Policy(name, pattern, definition, priority, apply_to)


def _settings(kind: str, profile: Profile) -> Settings:
    """What a policy of this kind can set."""
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
    for setting, value in sorted(definition.items()):
        if setting not in known:
            continue
        is_valid, what = known[setting]
        if not is_valid(value):
            raise _invalid(f"{term(value)} is not {what}")
    unknown = [f"{{{term(name)},{term(value)}}}" for name, value in sorted(definition.items()) if name not in known]
    if unknown:
        raise _invalid(f"[{','.join(unknown)}] are not recognised policy settings")
    _check_retries(definition)


def _check_retries(definition: Json) -> None:
    """Check that a delay says how long it is, and that this makes sense."""
    kind, least, most = (definition.get(name) for name in _RETRIES)
    if kind not in (None, "disabled") and least is None:
        raise _invalid(f"delayed-retry-min is required when delayed-retry-type is {kind}")
    if least is not None and most is not None and most < least:
        raise _invalid(f"delayed-retry-max ({most}) must not be smaller than delayed-retry-min ({least})")


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
