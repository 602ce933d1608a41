"""What a virtual host holds, as far as routing goes: exchanges, queues and bindings of both kinds.

"Definitions" is RabbitMQ's word for it: https://www.rabbitmq.com/docs/definitions
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from mqtool import management
from mqtool.errors import AccessRefused, NotFound
from mqtool.management import Management, path
from mqtool.management.client import Json
from mqtool.topology import DEFAULT_EXCHANGE, Binding, Exchange, Queue


@dataclass(frozen=True)
class Definitions:
    """Exchanges and queues by name, bindings by their source.

    The arguments of exchanges and queues are to hold what policies add: see management.with_policy(). The bindings that
    every queue has to the default exchange are left out.
    """

    exchanges: Mapping[str, Exchange]
    queues: Mapping[str, Queue]
    bindings: Mapping[str, tuple[Binding, ...]]

    @classmethod
    def of(cls, exchanges: Iterable[Exchange], queues: Iterable[Queue], bindings: Iterable[Binding]) -> "Definitions":
        """Sort them by name and source; the default exchange is always there."""
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
    """A binding with the names that the management API gives to its parts."""
    kind = "exchange" if binding.to_exchange else "queue"
    where = {"source": binding.source, "destination": binding.destination, "destination_type": kind}
    return {**where, "routing_key": binding.routing_key, "arguments": binding.arguments}


_EXCHANGE_COLUMNS = ("name", "type", "durable", "auto_delete", "internal", "arguments", "policy")
_BINDING_COLUMNS = ("source", "destination", "destination_type", "routing_key", "arguments")
_QUEUE_COLUMNS = ("name", "durable", "auto_delete", "exclusive", "arguments", "policy")


def read(api: Management, vhost: str) -> Definitions:
    """All definitions of a virtual host.

    Raises:
        Unavailable, NotFound, AccessRefused: the API cannot tell.
    """
    return Definitions.of(exchanges(api, vhost), _queues(api, vhost), bindings(api, vhost))


def exchanges(api: Management, vhost: str) -> list[Exchange]:
    """The exchanges, with what policies add to their arguments. Raises as read() does."""
    try:
        views = list(management.exchanges(api, vhost, _EXCHANGE_COLUMNS))
    except NotFound as error:
        raise NotFound(f"there is no virtual host {vhost!r}", "'mqtool list vhosts' shows them") from error
    policies: dict[str, Json] = {}
    if any(view.get("policy") for view in views):  # only the policy's name is told
        policies = _policies(api, vhost)
    return [
        Exchange(
            view["name"],
            view["type"],
            view["durable"],
            view["auto_delete"],
            view["internal"],
            management.with_policy(view.get("arguments") or {}, policies.get(view.get("policy") or "", {})),
        )
        for view in views
    ]


def _policies(api: Management, vhost: str) -> dict[str, Json]:
    """What each policy adds, by its name: where something tells of its policy, that is all it tells."""
    return {policy["name"]: policy.get("definition") or {} for policy in management.policies(api, vhost)}


def _queues(api: Management, vhost: str) -> Iterator[Queue]:
    arguments_of = queue_arguments(api, vhost)
    for view in management.queue_totals(api, vhost, _QUEUE_COLUMNS):
        yield Queue(view["name"], view["durable"], view["exclusive"], view["auto_delete"], arguments_of(view))


def queue_arguments(api: Management, vhost: str) -> Callable[[Json], dict[str, Any]]:
    """A function for the arguments of a queue that management.queue_totals() tells of, with what its policy adds.

    That tells only the policy's name, and nothing of an operator's policy, which can only limit.
    """

    @functools.cache
    def by_policy() -> dict[str, Json] | None:
        try:
            return _policies(api, vhost)
        except AccessRefused:  # it takes the tag 'policymaker'
            return None

    @functools.cache
    def by_queue() -> dict[str, Json]:  # it takes no tag, but long
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
    """The bindings of these exchanges; without any, of all but the default exchange. Raises as read() does."""
    found: Iterable[Json] = (view for view in management.bindings(api, vhost, _BINDING_COLUMNS) if view["source"])
    if sources:
        found = chain.from_iterable(management.bindings_from(api, vhost, each, _BINDING_COLUMNS) for each in sources)
    return map(_binding, found)


def bindings_to(api: Management, vhost: str, queue: str) -> Iterator[Binding]:
    """The bindings of a queue, without the one to the default exchange. Raises as read() does."""
    found = api.items(path("queues", vhost, queue, "bindings"), _BINDING_COLUMNS)
    return map(_binding, (view for view in found if view["source"]))


def _binding(view: Json) -> Binding:
    return Binding(
        view["source"],
        view["destination"],
        view["routing_key"],
        {name: _value(value) for name, value in (view.get("arguments") or {}).items()},
        view["destination_type"] == "exchange",
    )


def _value(value: Any) -> Any:
    """An argument as it was before RabbitMQ's API wrote it as JSON, where it can be told: it writes no value so."""
    return None if value == "undefined" else value
