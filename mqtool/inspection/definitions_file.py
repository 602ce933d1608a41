"""Definitions as a file: exported, compared with what a broker has, and imported.

The format is RabbitMQ's own, of one virtual host or of all: https://www.rabbitmq.com/docs/definitions. Only exchanges,
queues, bindings and policies of one virtual host are looked at, never users, and never shovels with their passwords.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mqtool import management
from mqtool.errors import BadData
from mqtool.inspection import definitions
from mqtool.management import Management, path
from mqtool.management.client import Json

#: Each kind with its name in the singular, in the order in which they can be imported.
KINDS = {"policies": "policy", "exchanges": "exchange", "queues": "queue", "bindings": "binding"}
#: What a thing has besides its identity, with RabbitMQ's defaults.
_SETTINGS: dict[str, Json] = {
    "policies": {"pattern": "", "apply-to": "all", "priority": 0, "definition": {}},
    "exchanges": {"type": "direct", "durable": True, "auto_delete": False, "internal": False, "arguments": {}},
    "queues": {"durable": True, "auto_delete": False, "arguments": {}},
    "bindings": {},
}
_BINDING = {"source": "", "destination": "", "destination_type": "queue", "routing_key": "", "arguments": {}}
_OTHERS = ("users", "permissions", "topic_permissions", "parameters", "global_parameters")

#: Things of each kind, as a file has them.
Contents = dict[str, list[Json]]
Action = Literal["add", "change", "conflict", "extra"]


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between a file and a broker.

    Attributes:
        kind: "policy", "exchange", "queue" or "binding".
        action: the broker lacks it; it can be changed; it cannot, since its settings are fixed; the file lacks it.
        differences: of its settings, what the broker has and what the file has; None for nothing.
    """

    action: Action
    kind: str
    item: Json
    differences: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def export(api: Management, vhost: str) -> Contents:
    """What a virtual host has, except what its broker or a connection brings along and takes away.

    Raises:
        Unavailable, NotFound, AccessRefused: the API cannot tell.
    """
    exchanges = management.exchanges(api, vhost, ["name", *_SETTINGS["exchanges"]])
    listed = management.queue_totals(api, vhost, ["name", "exclusive", *_SETTINGS["queues"]])
    queues = [view for view in listed if not view["exclusive"] and _is_ours(view)]
    names = {view["name"] for view in queues}
    bindings = [definitions.as_json(binding) for binding in definitions.bindings(api, vhost)]
    found = {
        "policies": [*management.policies(api, vhost)],
        "exchanges": [view for view in exchanges if _is_ours(view)],
        "queues": queues,
        "bindings": [each for each in bindings if each["destination_type"] != "queue" or each["destination"] in names],
    }
    return {kind: sorted((_plain(kind, item) for item in found[kind]), key=json.dumps) for kind in KINDS}


def read(text: str, where: str, vhost: str) -> tuple[Contents, list[str]]:
    """The definitions of a virtual host in a file, and what else is in it.

    Args:
        where: the file's name, for errors.

    Raises:
        BadData: it does not hold definitions, or none of this virtual host.
    """
    try:
        told = json.loads(text)
    except ValueError as error:
        raise BadData(f"{where} is not JSON: {error}") from error
    if not isinstance(told, dict) or not any(kind in told for kind in KINDS):
        raise BadData(f"{where} has no definitions", "'mqtool definitions export' writes such a file")
    contents: Contents = {kind: [] for kind in KINDS}
    others: set[str] = set()
    for kind, items in contents.items():
        for item in _checked(told.get(kind) or [], kind, where):
            if item.get("vhost", vhost) == vhost:
                items.append(_plain(kind, item))
            else:
                others.add(item["vhost"])
    if others and not any(contents.values()):
        names = ", ".join(sorted(map(repr, others)))
        raise BadData(f"{where} has nothing for vhost {vhost!r}, only for {names}", "choose the vhost with --vhost")
    return contents, [name for name in _OTHERS if told.get(name)] + [f"vhost {name!r}" for name in sorted(others)]


def compare(broker: Contents, file: Contents) -> list[Change]:
    """What differs, in the order in which it can be imported; what only the broker has comes last."""
    found: list[Change] = []
    extra: list[Change] = []
    for kind, singular in KINDS.items():
        has = {_identity(kind, item): item for item in broker[kind]}
        for item in file[kind]:
            there = has.pop(_identity(kind, item), None)
            if there is None:
                found.append(Change("add", singular, item))
            elif differences := dict(_differences(kind, there, item)):
                found.append(Change("change" if kind == "policies" else "conflict", singular, item, differences))
        extra += [Change("extra", singular, item) for item in has.values()]
    return found + extra


def apply(api: Management, vhost: str, change: Change) -> None:
    """Make the broker have what the file has: something that is to be added or changed.

    Raises:
        MqtoolError: the broker refuses it, or does not answer.
    """
    item = change.item
    if change.kind == "binding":
        kind = "e" if item["destination_type"] == "exchange" else "q"
        where = path("bindings", vhost, "e", item["source"], kind, item["destination"])
        api.post(where, {"routing_key": item["routing_key"], "arguments": item["arguments"]})
        return
    kinds = {singular: kind for kind, singular in KINDS.items()}
    api.put(path(kinds[change.kind], vhost, item["name"]), {key: item[key] for key in item if key != "name"})


def _is_ours(view: Json) -> bool:
    """Whether a client has named it, not the broker."""
    return bool(view["name"]) and not view["name"].startswith("amq.")


def _checked(items: Any, kind: str, where: str) -> Iterator[Json]:
    if not isinstance(items, list):
        raise BadData(f'{where}: "{kind}" is not a list')
    needed = ("source", "destination") if kind == "bindings" else ("name",)
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in needed):
            raise BadData(f'{where}: number {number} of "{kind}" has no {" and ".join(needed)}')
        yield item


def _plain(kind: str, item: Json) -> Json:
    """What counts of a thing, with defaults for what is left out."""
    known = _BINDING if kind == "bindings" else {"name": "", **_SETTINGS[kind]}
    return {name: default if item.get(name) is None else item[name] for name, default in known.items()}


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
    """Arguments without the type that a queue has anyway; some versions of RabbitMQ export it, some do not."""
    return {name: value for name, value in arguments.items() if (name, value) != ("x-queue-type", "classic")}
