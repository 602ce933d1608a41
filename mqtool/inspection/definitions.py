"""Definitions: read a virtual host's exchanges, queues and bindings; export, compare and import definitions files.

Functions that take a Management raise the same errors as Management.get(). https://www.rabbitmq.com/docs/definitions
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from mqtool import management
from mqtool.errors import AccessRefused, BadData, NotFound
from mqtool.management import Management, path
from mqtool.management.api_client import DEEPEST, Json, is_deeper, is_incomplete
from mqtool.topology import DEFAULT_EXCHANGE, Binding, Exchange, Queue


@dataclass(frozen=True)
class Definitions:
    """Exchanges and queues by name, bindings by their source exchange.

    The arguments of exchanges and queues include those that policies add; see management.with_policy(). The bindings of
    every queue to the default exchange are left out.
    """

    exchanges: Mapping[str, Exchange]
    queues: Mapping[str, Queue]
    bindings: Mapping[str, tuple[Binding, ...]]

    @classmethod
    def of(cls, exchanges: Iterable[Exchange], queues: Iterable[Queue], bindings: Iterable[Binding]) -> "Definitions":
        """Index definitions by name and source. The default exchange is always included."""
        by_source: dict[str, list[Binding]] = {}
        for binding in bindings:
            if binding.source:
                by_source.setdefault(binding.source, []).append(binding)
        return cls(
            {"": DEFAULT_EXCHANGE, **{exchange.name: exchange for exchange in exchanges}},
            {queue.name: queue for queue in queues},
            {source: tuple(bound) for source, bound in by_source.items()},
        )


def as_json(binding: Binding) -> Json:
    """Convert a binding to the JSON of the management API."""
    kind = "exchange" if binding.to_exchange else "queue"
    where = {"source": binding.source, "destination": binding.destination, "destination_type": kind}
    return {**where, "routing_key": binding.routing_key, "arguments": binding.arguments}


_EXCHANGE_COLUMNS = ("name", "type", "durable", "auto_delete", "internal", "arguments", "policy")
_BINDING_COLUMNS = ("source", "destination", "destination_type", "routing_key", "arguments")
_QUEUE_COLUMNS = ("name", "durable", "auto_delete", "exclusive", "arguments", "policy")


def read(api: Management, vhost: str) -> Definitions:
    """Read the definitions of a virtual host from the management API."""
    return Definitions.of(exchanges(api, vhost), _queues(api, vhost), bindings(api, vhost))


def exchanges(api: Management, vhost: str) -> list[Exchange]:
    """Return the exchanges of a virtual host, with the arguments that policies add."""
    try:
        views = list(management.exchanges(api, vhost, _EXCHANGE_COLUMNS))
    except NotFound as error:
        raise NotFound(f"vhost {vhost!r} does not exist", "'mqtool list vhosts' shows them") from error
    policies: dict[str, Json] = {}
    if any(view.get("policy") for view in views):  # the view contains only the policy's name
        policies = _policy_definitions(api, vhost)
    found = []
    for view in views:
        arguments = management.with_policy(view.get("arguments") or {}, policies.get(view.get("policy") or "", {}))
        kept = (view["name"], view["type"], view["durable"], view["auto_delete"], view["internal"])
        found.append(Exchange(*kept, arguments))
    return found


def _policy_definitions(api: Management, vhost: str) -> dict[str, Json]:
    return {policy["name"]: policy.get("definition") or {} for policy in management.policies(api, vhost)}


def _queues(api: Management, vhost: str) -> Iterator[Queue]:
    arguments_of = queue_arguments(api, vhost)
    for view in management.queue_totals(api, vhost, _QUEUE_COLUMNS):
        yield Queue(view["name"], view["durable"], view["exclusive"], view["auto_delete"], arguments_of(view))


def queue_arguments(api: Management, vhost: str) -> Callable[[Json], dict[str, Any]]:
    """Return a function that returns a queue's arguments, including those that its policy adds.

    The function takes a queue as management.queue_totals() returns it, with only the policy's name. Operator policies,
    which can only set limits, are left out.
    """

    @functools.cache
    def by_policy() -> dict[str, Json] | None:
        try:
            return _policy_definitions(api, vhost)
        except AccessRefused:  # the user lacks the tag 'policymaker'
            return None

    @functools.cache
    def by_queue() -> dict[str, Json]:  # slow, but any user may do it
        views = management.queues(api, vhost, ("name", "effective_policy_definition"))
        return {view["name"]: view.get("effective_policy_definition") or {} for view in views}

    def arguments_of(view: Json) -> dict[str, Any]:
        added: Json = {}
        if policy := view.get("policy"):
            policies = by_policy()
            added = by_queue().get(view["name"], {}) if policies is None else policies.get(policy, {})
        return management.with_policy(view.get("arguments") or {}, added)

    return arguments_of


def bindings(api: Management, vhost: str, *sources: str) -> Iterator[Binding]:
    """Yield the bindings of the given exchanges; if none are given, those of all except the default exchange."""
    found: Iterable[Json] = (view for view in management.bindings(api, vhost, _BINDING_COLUMNS) if view["source"])
    if sources:
        found = chain.from_iterable(management.bindings_from(api, vhost, each, _BINDING_COLUMNS) for each in sources)
    return map(_binding, found)


def bindings_to(api: Management, vhost: str, queue: str) -> Iterator[Binding]:
    """Yield the bindings of a queue, except the one to the default exchange."""
    found = api.items(path("queues", vhost, queue, "bindings"), _BINDING_COLUMNS)
    return map(_binding, (view for view in found if view["source"]))


def bindings_between(api: Management, vhost: str, binding: Binding) -> Iterator[Binding]:
    """Yield the bindings with the same source and destination, whatever their keys and arguments."""
    between = ("bindings", vhost, "e", binding.source, "e" if binding.to_exchange else "q", binding.destination)
    return map(_binding, api.items(path(*between), _BINDING_COLUMNS))


def _binding(view: Json) -> Binding:
    # RabbitMQ's API writes a missing value as "undefined".
    arguments = {name: None if value == "undefined" else value for name, value in (view.get("arguments") or {}).items()}
    to_exchange = view["destination_type"] == "exchange"
    return Binding(view["source"], view["destination"], view["routing_key"], arguments, to_exchange)


#: The kinds of objects, in an order in which they can be imported, each with its name in the singular.
KINDS = {"policies": "policy", "exchanges": "exchange", "queues": "queue", "bindings": "binding"}
#: Fields that do not identify an object, with RabbitMQ's defaults.
_SETTINGS: dict[str, Json] = {
    "policies": {"pattern": "", "apply-to": "all", "priority": 0, "definition": {}},
    "exchanges": {"type": "direct", "durable": True, "auto_delete": False, "internal": False, "arguments": {}},
    "queues": {"durable": True, "auto_delete": False, "arguments": {}},
    "bindings": {},
}
_BINDING = {"source": "", "destination": "", "destination_type": "queue", "routing_key": "", "arguments": {}}
_OTHERS = ("users", "permissions", "topic_permissions", "parameters", "global_parameters")

_DEPTH_HINT = f"an object can have up to {DEEPEST} levels"

#: The objects of each kind, as in a definitions file.
Contents = dict[str, list[Json]]
DifferenceKind = Literal["add", "change", "conflict", "extra"]


@dataclass(frozen=True, slots=True)
class DefinitionChange:
    """A difference between a file and a broker.

    Attributes:
        kind: "policy", "exchange", "queue" or "binding".
        action: "add" the object; "change" it; "conflict" if it cannot be changed; "extra" if the file lacks it.
        differences: for each setting that differs, its values on the broker and in the file; None if missing.
    """

    action: DifferenceKind
    kind: str
    item: Json
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def export(api: Management, vhost: str) -> Contents:
    """Export a virtual host's definitions, except predeclared exchanges and exclusive queues."""
    exchanges = management.exchanges(api, vhost, ["name", *_SETTINGS["exchanges"]])
    listed = management.queue_totals(api, vhost, ["name", "exclusive", *_SETTINGS["queues"]])
    queues = [view for view in listed if not view["exclusive"] and _is_named_by_client(view)]
    names = {view["name"] for view in queues}
    found_bindings = [as_json(binding) for binding in bindings(api, vhost)]
    kept = [each for each in found_bindings if each["destination_type"] != "queue" or each["destination"] in names]
    found = {
        "policies": [*management.policies(api, vhost)],
        "exchanges": [view for view in exchanges if _is_named_by_client(view)],
        "queues": queues,
        "bindings": kept,
    }
    return {kind: sorted((_plain(kind, item) for item in found[kind]), key=json.dumps) for kind in KINDS}


def incomplete(contents: Contents) -> list[str]:
    """Return names of the exported objects from which something is left out, because it is nested too deeply."""
    return [
        f"{KINDS[kind]} {item.get('name') or item['source']!r}"
        for kind, items in contents.items()
        for item in items
        if is_incomplete(item)
    ]


def read_document(text: str, where: str) -> Json:
    """Parse a definitions file named `where`, and return its whole contents; raise BadData if it is not valid."""
    told = _parsed(text, where)
    for kind in KINDS:
        for _ in _checked(told.get(kind) or [], kind, where):
            pass
    for kind in ("vhosts", "parameters"):
        for item in _checked(told.get(kind) or [], kind, where):
            value = item.get("value")
            is_policy = isinstance(value, dict) and isinstance(value.get("definition"), dict)
            if item.get("component") == "operator_policy" and not is_policy:
                raise BadData(f"{where}: operator policy {item['name']!r} has no definition")
    return told


def _parsed(text: str, where: str) -> Json:
    try:
        told = json.loads(text)
    except ValueError as error:
        raise BadData(f"{where} is not JSON: {error}") from error
    except RecursionError as error:
        raise BadData(f"{where} is not JSON that mqtool can read: it is nested too deeply", _DEPTH_HINT) from error
    if not isinstance(told, dict) or not any(kind in told for kind in KINDS):
        raise BadData(f"{where} contains no definitions", "'mqtool definitions export' writes such a file")
    for section, items in told.items():
        for number, item in enumerate(items if isinstance(items, list) else [items], 1):
            if is_deeper(item, DEEPEST):
                raise BadData(f'{where}: number {number} of "{section}" is nested too deeply', _DEPTH_HINT)
    return told


def lines_of(text: str) -> dict[tuple[str, int], int]:
    """Return each object's line number in a valid definitions file, by its section and its position there, from 0."""
    decode, blank = json.JSONDecoder().raw_decode, re.compile(r"[\s,:]*")

    def next_token(place: int) -> int:
        found = blank.match(text, place)
        return place if found is None else found.end()

    lines: dict[tuple[str, int], int] = {}
    line, counted, place = 1, 0, next_token(text.index("{") + 1)
    while text[place] != "}":
        section, place = decode(text, place)
        place = next_token(place)
        if text[place] != "[":
            place = next_token(decode(text, place)[1])
            continue
        place, number = next_token(place + 1), 0
        while text[place] != "]":
            line, counted = line + text.count("\n", counted, place), place
            lines[section, number] = line
            place, number = next_token(decode(text, place)[1]), number + 1
        place = next_token(place + 1)
    return lines


def parse_file(text: str, where: str, vhost: str) -> tuple[Contents, list[str]]:
    """Parse a file named `where`; return the definitions of the virtual host, and the names of ignored sections."""
    told = read_document(text, where)
    contents: Contents = {kind: [] for kind in KINDS}
    others: set[str] = set()
    for kind, items in contents.items():
        for item in told.get(kind) or []:
            if item.get("vhost", vhost) == vhost:
                items.append(_plain(kind, item))
            else:
                others.add(item["vhost"])
    if others and not any(contents.values()):
        names = ", ".join(sorted(map(repr, others)))
        raise BadData(f"{where} has nothing for vhost {vhost!r}, only for {names}", "choose the vhost with --vhost")
    return contents, [name for name in _OTHERS if told.get(name)] + [f"vhost {name!r}" for name in sorted(others)]


def compare(broker: Contents, file: Contents) -> list[DefinitionChange]:
    """List the differences in an order in which they can be applied. Objects that the file lacks come last."""
    found: list[DefinitionChange] = []
    extra: list[DefinitionChange] = []
    for kind, singular in KINDS.items():
        has = {_identity(kind, item): item for item in broker[kind]}
        for item in file[kind]:
            there = has.pop(_identity(kind, item), None)
            if there is None:
                found.append(DefinitionChange("add", singular, item))
            elif differences := dict(_differences(kind, there, item)):
                found.append(
                    DefinitionChange("change" if kind == "policies" else "conflict", singular, item, differences)
                )
        extra += [DefinitionChange("extra", singular, item) for item in has.values()]
    return found + extra


def check_names(changes: Iterable[DefinitionChange], where: str) -> None:
    """Raise BadData if an object to import from the file `where` has a line break in a name.

    A broker removes line breaks from the names in a request. The object would get another name, and seem to be missing
    at the next import.
    """
    for change in changes:
        names = {"binding": ("source", "destination"), "policy": ()}.get(change.kind, ("name",))
        for name in (change.item[each] for each in names):
            if "\n" in name or "\r" in name:
                raise BadData(
                    f"{where}: {change.kind}: the name {name!r} contains a line break",
                    "brokers remove line breaks from names: change the name in the file",
                )


def apply(api: Management, vhost: str, change: DefinitionChange) -> None:
    """Apply one difference to the broker: add an object, or change one."""
    item = change.item
    if change.kind == "binding":
        to, kind = ("exchanges", "e") if item["destination_type"] == "exchange" else ("queues", "q")
        where = path("bindings", vhost, "e", item["source"], kind, item["destination"])
        try:
            api.post(where, {"routing_key": item["routing_key"], "arguments": item["arguments"]})
        except NotFound:  # the broker does not say whether the source or the destination
            api.get(path("exchanges", vhost, item["source"]))
            api.get(path(to, vhost, item["destination"]))
            raise
        return
    kinds = {singular: kind for kind, singular in KINDS.items()}
    api.put(path(kinds[change.kind], vhost, item["name"]), {key: item[key] for key in item if key != "name"})


def _is_named_by_client(view: Json) -> bool:
    return bool(view["name"]) and not view["name"].startswith("amq.")


_TEXT, _OBJECT = (str, "text"), (dict, "an object")
#: Fields of definitions with a required type, if they are present. Old versions write [] for an empty object.
_FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("vhost", "type", "pattern", "apply-to", "routing_key", "destination_type"), _TEXT),
    **dict.fromkeys(("arguments", "definition", "metadata"), _OBJECT),
    "priority": ((int, float), "a number"),
}


def _checked(items: Any, kind: str, where: str) -> Iterator[Json]:
    if not isinstance(items, list):
        raise BadData(f'{where}: "{kind}" is not a list')
    needed = ("source", "destination") if kind == "bindings" else ("name",)
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in needed):
            raise BadData(f'{where}: number {number} of "{kind}" has no {" and ".join(needed)}')
        for name, (kinds, what) in _FIELDS.items():
            value = None if kinds is dict and item.get(name) == [] else item.get(name)
            if value is not None and not isinstance(value, kinds):
                raise BadData(f'{where}: "{name}" of number {number} of "{kind}" is not {what}')
        if kind == "bindings" and item.get("destination_type") not in (None, "queue", "exchange"):
            told = f'"destination_type" of number {number} of "bindings" is {item["destination_type"]!r}'
            raise BadData(f"{where}: {told}", 'it must be "queue" or "exchange"')
        yield item


def _plain(kind: str, item: Json) -> Json:
    """Return an object's relevant fields, with defaults for missing ones, and {} instead of []."""
    known = _BINDING if kind == "bindings" else {"name": "", **_SETTINGS[kind]}
    return {
        name: default if (value := item.get(name)) is None or (value == [] and default == {}) else value
        for name, default in known.items()
    }


def _identity(kind: str, item: Json) -> str:
    return json.dumps(item, sort_keys=True) if kind == "bindings" else str(item["name"])


def _differences(kind: str, broker: Json, file: Json) -> Iterable[tuple[str, tuple[Any, Any]]]:
    for name in _SETTINGS[kind]:
        if isinstance(broker[name], dict) and isinstance(file[name], dict):
            has, wanted = _without_default(broker[name]), _without_default(file[name])
            for key in sorted({*has, *wanted}):
                if has.get(key) != wanted.get(key):
                    yield key, (has.get(key), wanted.get(key))
        elif broker[name] != file[name]:
            yield name, (broker[name], file[name])


def _without_default(arguments: Json) -> Json:
    """Return arguments without the default queue type, which only some versions of RabbitMQ export."""
    return {name: value for name, value in arguments.items() if (name, value) != ("x-queue-type", "classic")}
