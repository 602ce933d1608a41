"""`definitions convert`: convert a definitions file from an older RabbitMQ so that a newer version can import it.

Changes only what the newer version refuses, or silently skips, when it imports the file. Settings that it accepts but
ignores (x-queue-mode) stay, because clients may still declare queues with them, and would get 406 otherwise.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from mqtool.inspection.findings import Finding
from mqtool.inspection.upgrade import (
    ACCEPTS_TRANSIENT,
    V4_0,
    V4_3,
    Version,
    applied_policy,
    default_queue_types,
    is_of_reserved_queue,
    is_topic,
    refused_arguments,
    transient,
    type_of,
)
from mqtool.management.api_client import Json
from mqtool.management.policy_patterns import policy_matches
from mqtool.topology import DELAYED, Exchange, Queue
from mqtool.version_changes import MOST_WILDCARDS

Mirrored = Literal["classic", "quorum"]
Delayed = Literal["relay", "leave-out", "plain"]
#: Takes an exchange's name and type; returns the parts of its relay for delayed messages: the exchange that clients
#: publish to, the queue that the relay consumes from, the exchange that routes due messages, and whether the relay
#: declares that last exchange.
RelayParts = Callable[[str, str], tuple[Exchange, Queue, Exchange, bool]]

#: Arguments that only classic queues have. They can be removed when a queue becomes a quorum queue.
_CLASSIC_ONLY = ("x-queue-mode", "x-queue-version", "x-queue-master-locator")
#: Arguments that give a classic queue a feature that quorum queues lack. None stands for any value.
_NO_QUORUM = {"x-max-priority": None, "x-overflow": "reject-publish-dlx"}
#: The definition of a policy that has no settings left. RabbitMQ ignores this one, but refuses an empty definition.
_NOTHING: Mapping[str, Any] = {"queue-mode": "default"}


@dataclass
class Converted:
    """A converted file.

    Attributes:
        document: the file.
        changes: what was changed (Finding.what), and why (Finding.hint).
        losses: features that the converted file lacks because no replacement was chosen, and how to choose one.
        unmatched: policies that are assumed to apply to nothing, because mqtool cannot match their patterns.
    """

    document: Json
    changes: list[Finding] = field(default_factory=list)
    losses: list[Finding] = field(default_factory=list)
    unmatched: list[Finding] = field(default_factory=list)


def convert(
    document: Json,
    to: Version,
    relay_parts: RelayParts,
    mirrored: Mirrored | None = None,
    delayed: Delayed | None = None,
) -> Converted:
    """Convert a definitions file.

    Args:
        document: the file, as definitions.read_document() returns it; it is not changed.
        to: the version of RabbitMQ that is to import it.
        relay_parts: what `mqtool delayed relay` declares.
        mirrored: the type that mirrored queues get; None keeps them classic, and reports a loss.
        delayed: how to convert x-delayed-message exchanges: for a relay ("relay"), without the delay ("plain"), or by
            removing them ("leave-out"); None also removes them, and reports a loss.
    """
    found = Converted(copy.deepcopy(document))
    if to >= V4_0:
        found.unmatched += unmatched_policies(document)
        _give_types(found)
        _convert_mirrored(found, document, mirrored)
        _convert_policies(found, document, to)
        _leave_out_reserved(found)
    if to >= V4_3:
        _convert_queues(found, to)
        _convert_exchanges(found, delayed, relay_parts)
        _convert_bindings(found)
    return found


def _items(document: Json, section: str) -> list[Json]:
    items: list[Json] = document.get(section) or []
    return items


def _finding(kind: str, item: Json, check: str, what: str, why: str) -> Finding:
    return Finding.of(kind, {"vhost": None, **item}, check, what, why)


def _arguments(item: Json) -> Json:
    if not item.get("arguments"):
        item["arguments"] = {}
    arguments: Json = item["arguments"]
    return arguments


def _give_types(found: Converted) -> None:
    """State the types of queues that would otherwise be imported with their virtual host's default type."""
    defaults = default_queue_types(found.document)
    for queue in _items(found.document, "queues"):
        kind, default = type_of(queue), defaults.get(queue.get("vhost"), "classic")
        if "x-queue-type" not in _arguments(queue) and kind != default:
            queue["arguments"]["x-queue-type"] = kind
            why = f"an import would make it a {default} queue, the default of its virtual host"
            found.changes.append(_finding("queue", queue, "queue-type", f"names its type, {kind}", why))


def _leave_out_reserved(found: Converted) -> None:
    """Remove the bindings of queues named `amq.…`: RabbitMQ imports no such queue, and 4.0 to 4.3 refuse these."""
    for binding in [each for each in _items(found.document, "bindings") if is_of_reserved_queue(each)]:
        found.document["bindings"].remove(binding)
        thing = f"binding from {binding['source']!r} to {binding['destination']!r}"
        why = "an import skips queues whose names begin with 'amq.'"
        found.changes.append(Finding("reserved-queue", thing, "is left out", why, binding.get("vhost")))


def _convert_mirrored(found: Converted, original: Json, mirrored: Mirrored | None) -> None:
    for queue in _items(found.document, "queues"):
        policy = applied_policy(original, "queues", queue) or {}
        if type_of(queue) != "classic" or "ha-mode" not in (policy.get("definition") or {}):
            continue
        in_the_way = list(_not_for_quorum(queue, policy["definition"]))
        if mirrored == "classic":
            what, why = "is on one node only", f"policy {policy['name']!r} mirrored it, which RabbitMQ 4.0 does not do"
            found.changes.append(_finding("queue", queue, "mirrored", what, why))
        elif mirrored is None:
            what = f"was mirrored by policy {policy['name']!r}, and is on one node only"
            how = "--mirrored quorum makes it a quorum queue, --mirrored classic leaves it as it is"
            found.losses.append(_finding("queue", queue, "mirrored", what, how))
        elif in_the_way:
            what = f"was mirrored, and stays a classic queue, on one node only: it {', and '.join(in_the_way)}"
            how = "edit the file, if it can do without"
            found.losses.append(_finding("queue", queue, "not-quorum", what, how))
        else:
            arguments = _arguments(queue)
            dropped = [name for name in _CLASSIC_ONLY if arguments.pop(name, None) is not None]
            arguments["x-queue-type"] = "quorum"
            if "type" in queue:
                queue["type"] = "quorum"
            what = "is a quorum queue" + (f", without {', '.join(dropped)}" if dropped else "")
            why = f"policy {policy['name']!r} mirrored it; clients must declare it with x-queue-type=quorum"
            found.changes.append(_finding("queue", queue, "quorum", what, why))


def _not_for_quorum(queue: Json, policy: Json) -> Iterator[str]:
    """Say why a queue cannot be a quorum queue, or would behave differently as one."""
    if not queue.get("durable", True):
        yield "is transient"
    if queue.get("auto_delete"):
        yield "is auto-delete"
    arguments = {**{f"x-{name}": value for name, value in policy.items()}, **(queue.get("arguments") or {})}
    for name, value in _NO_QUORUM.items():
        if name in arguments and value in (None, arguments[name]):
            yield f"has {name}" + ("" if value is None else f"={value}")


def _convert_policies(found: Converted, original: Json, to: Version) -> None:
    kept = []
    for policy in _items(found.document, "policies"):
        changes = list(_settings_changes("policy", policy, policy.get("definition") or {}, to))
        hidden = list(_hidden_by(policy, original)) if changes and not policy["definition"] else []
        if hidden:
            policy["definition"] = dict(_NOTHING)
            what = f'has only "queue-mode": "default" left, which does nothing: it hides {", ".join(hidden)}'
            changes = [replace(changes[-1], what=what)]
        if policy.get("definition") or not changes:
            kept.append(policy)
        else:
            changes = [replace(changes[-1], what="is left out")]
        found.changes += changes
    if "policies" in found.document:
        found.document["policies"] = kept
    parameters = []
    for parameter in _items(found.document, "parameters"):
        changes = []
        if parameter.get("component") == "operator_policy":
            changes = list(_settings_changes("operator policy", parameter, parameter["value"]["definition"], to))
        if changes and not parameter["value"]["definition"]:
            changes = [replace(changes[-1], what="is left out")]
        else:
            parameters.append(parameter)
        found.changes += changes
    if "parameters" in found.document:
        found.document["parameters"] = parameters


def unmatched_policies(document: Json) -> Iterator[Finding]:
    """Yield the policies of a definitions file that are assumed to apply to nothing."""
    for policy in _items(document, "policies"):
        if policy_matches(policy, "") is None:  # it is None for all names
            what = "has a pattern that mqtool cannot match, and is assumed to apply to no queue or exchange"
            how = "if it applies to some, check what the new version does with them"
            yield _finding("policy", policy, "pattern", what, how)


def _settings_changes(kind: str, policy: Json, definition: Json, to: Version) -> Iterator[Finding]:
    """Change a policy's settings, and yield the changes. The policy may end up without settings."""
    mirroring = [name for name in definition if name.startswith("ha-")]
    for name in mirroring:
        del definition[name]
    if mirroring:
        what, why = f"has lost {', '.join(mirroring)}", "RabbitMQ 4.0 has no mirrored queues, and refuses the policy"
        yield _finding(kind, policy, "ha", what, why)
    if to >= V4_3 and "queue-master-locator" in definition:
        old = definition.pop("queue-master-locator")
        new = definition.setdefault("queue-leader-locator", "client-local" if old == "client-local" else "balanced")
        what = f"sets queue-leader-locator to {new} instead of queue-master-locator to {old}"
        yield _finding(kind, policy, "locator", what, "RabbitMQ 4.3 refuses queue-master-locator")


def _hidden_by(policy: Json, original: Json) -> Iterator[str]:
    """Name the policies that would apply to queues and exchanges in the file if this policy did not exist."""
    others = [each for each in _items(original, "policies") if _name(each) != _name(policy)]
    names: set[str] = set()
    for section in ("queues", "exchanges"):
        for item in _items(original, section):
            if policy.get("vhost") == item.get("vhost") and policy_matches(policy, item["name"]):
                applied = applied_policy(original, section, item)
                if applied is not None and _name(applied) == _name(policy):
                    following = applied_policy({**original, "policies": others}, section, item)
                    names |= {following["name"]} if following is not None else set()
    yield from (f"policy {name!r}" for name in sorted(names))


def _name(item: Json) -> tuple[Any, Any]:
    return item.get("vhost"), item["name"]


def _convert_queues(found: Converted, to: Version) -> None:
    for queue in _items(found.document, "queues"):
        if to < ACCEPTS_TRANSIENT and any(transient({"vhost": None, **queue})):
            queue["durable"] = True
            why = "RabbitMQ 4.3.0 to 4.3.5 refuse transient queues; clients must declare it durable"
            found.changes.append(_finding("queue", queue, "transient", "becomes durable", why))
        for name, refused in [*refused_arguments(queue)]:
            told = refused.partition(",")[0]
            del queue["arguments"][name]
            why = "RabbitMQ 4.3 refuses it; clients must declare the queue without it"
            found.changes.append(_finding("queue", queue, f"argument-{told}", f"has lost the argument {told}", why))


_NO_PLUGIN = "the delayed message plugin has no release for RabbitMQ 4.3"


def _convert_exchanges(found: Converted, delayed: Delayed | None, relay_parts: RelayParts) -> None:
    gone = set()
    for exchange in [each for each in _items(found.document, "exchanges") if each.get("type") == DELAYED]:
        if delayed is None or delayed == "leave-out":
            gone.add(_name(exchange))
            what, why = f"is left out{_with_bindings(found.document, exchange)}", _NO_PLUGIN
            if delayed is None:
                why += ": --delayed relay, plain or leave-out (see mqtool help delays)"
            told = found.losses if delayed is None else found.changes
            told.append(_finding("exchange", exchange, "delayed", what, why))
            continue
        kind = str(_arguments(exchange).pop("x-delayed-type", "direct"))
        if delayed == "plain":
            exchange["type"] = kind
            found.changes.append(
                _finding("exchange", exchange, "delayed", f"is a {kind} exchange, without delay", _NO_PLUGIN)
            )
        else:
            if alternate := exchange["arguments"].get("alternate-exchange"):
                what = f"has lost its alternate exchange {alternate!r}"
                how = "a policy can set alternate-exchange for the exchange that now has its bindings"
                found.losses.append(_finding("exchange", exchange, "alternate-exchange", what, how))
            out = _give_to_relay(found.document, exchange, relay_parts(exchange["name"], kind))
            what = f"is a fanout exchange for 'mqtool delayed relay', and its bindings are those of {out!r}"
            why = f"{_NO_PLUGIN}; clients must declare the exchange as fanout, or not at all"
            found.changes.append(_finding("exchange", exchange, "delayed", what, why))
    if gone:
        left = [each for each in _items(found.document, "exchanges") if _name(each) not in gone]
        bound = [each for each in _items(found.document, "bindings") if gone.isdisjoint(_exchanges_of(each))]
        found.document |= {"exchanges": left, "bindings": bound}


def _give_to_relay(document: Json, exchange: Json, parts: tuple[Exchange, Queue, Exchange, bool]) -> str:
    """Make an exchange the input of a relay, and move its bindings to the relay's output; return the output's name."""
    entrance, intake, out, _ = parts
    where = {"vhost": exchange["vhost"]} if "vhost" in exchange else {}
    for binding in _items(document, "bindings"):
        if (binding.get("vhost"), binding["source"]) == _name(exchange):
            binding["source"] = out.name
    exchange |= {"type": entrance.type, "durable": True, "auto_delete": False, "internal": False, "arguments": {}}
    to_intake = {"source": entrance.name, "destination": intake.name, "destination_type": "queue", "routing_key": ""}
    queue = {"name": intake.name, "durable": True, "auto_delete": False, "arguments": dict(intake.arguments)}
    for section, item in {
        "exchanges": {**exchange, "name": out.name, "type": out.type},
        "queues": {**where, **queue},
        "bindings": {**where, **to_intake, "arguments": {}},
    }.items():
        document[section] = [*_items(document, section), item]
    return out.name


def _exchanges_of(binding: Json) -> Iterator[tuple[Any, Any]]:
    yield binding.get("vhost"), binding["source"]
    if binding.get("destination_type") == "exchange":
        yield binding.get("vhost"), binding["destination"]


def _with_bindings(document: Json, exchange: Json) -> str:
    bound = [each for each in _items(document, "bindings") if _name(exchange) in _exchanges_of(each)]
    told = (f"{each['source']!r} to {each['destination']!r} by {each.get('routing_key', '')!r}" for each in bound)
    return f", with its bindings: {'; '.join(told)}" if bound else ""


def _convert_bindings(found: Converted) -> None:
    """Simplify the keys of topic bindings with too many wildcards; remove bindings whose key remains too complex."""
    topics = {_name(each) for each in _items(found.document, "exchanges") if is_topic(each)}
    kept = []
    for binding in _items(found.document, "bindings"):
        words = (binding.get("routing_key") or "").split(".")
        is_of_topic = (binding.get("vhost"), binding["source"]) in topics or binding["source"] == "amq.topic"
        if not is_of_topic or words.count("#") <= MOST_WILDCARDS:
            kept.append(binding)
            continue
        simple = [word for word, following in pairwise([*words, ""]) if (word, following) != ("#", "#")]
        thing = f"binding from {binding['source']!r} to {binding['destination']!r} by {binding['routing_key']!r}"
        why = f"RabbitMQ 4.3.5 allows {MOST_WILDCARDS} # in a key"
        if simple.count("#") <= MOST_WILDCARDS:
            binding["routing_key"] = ".".join(simple)
            kept.append(binding)
            what = f"has the key {binding['routing_key']!r}, which means the same"
            found.changes.append(Finding("binding-key", thing, what, why, binding.get("vhost")))
        else:
            how = f"{why}: bind with simpler keys"
            found.losses.append(Finding("binding-left-out", thing, "is left out", how, binding.get("vhost")))
    if "bindings" in found.document:
        found.document["bindings"] = kept
