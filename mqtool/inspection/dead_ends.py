"""Wiring through which messages go nowhere, or round and round."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from mqtool import management
from mqtool.inspection.definitions import Definitions, with_policy
from mqtool.inspection.finding import Finding
from mqtool.inspection.listing import counted
from mqtool.inspection.routes import Router
from mqtool.management import Management
from mqtool.management.client import Json
from mqtool.topology import Binding, Exchange, Queue

_EXCHANGE_COLUMNS = ("name", "vhost", "type", "arguments", "policy", "message_stats.publish_in")
_BINDING_COLUMNS = ("source", "vhost", "destination", "destination_type", "routing_key", "arguments")


@dataclass
class Paths:
    """What messages of one virtual host may follow, as far as dead ends and circles need it.

    Attributes:
        exchanges: all, as the management API tells of them, by name.
        policies: what each policy sets, by its name.
        expiring: queues with a message TTL and a dead-letter exchange, which messages leave without being rejected.
        bound: exchanges with bindings.
        bindings: those between exchanges, and those of the dead-letter exchanges of expiring queues.
    """

    vhost: str
    exchanges: dict[str, Json] = field(default_factory=dict)
    policies: dict[str, Json] = field(default_factory=dict)
    expiring: list[Queue] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    bindings: list[Binding] = field(default_factory=list)

    def findings(self) -> Iterator[Finding]:
        """Find dead ends and circles."""
        yield from self._published_to_nobody()
        yield from self._alternates()
        yield from self._circles_of_exchanges()
        yield from self._circles_of_queues()

    def _finding(self, check: str, thing: str, what: str, hint: str) -> Finding:
        return Finding(check, thing, what, hint, self.vhost)

    def _alternate(self, exchange: Json) -> str | None:
        set_by_policy = self.policies.get(exchange.get("policy") or "", {})
        name = {**set_by_policy, **(exchange.get("arguments") or {})}.get("alternate-exchange")
        return name if isinstance(name, str) else None

    def _published_to_nobody(self) -> Iterator[Finding]:
        for name, exchange in self.exchanges.items():
            published = (exchange.get("message_stats") or {}).get("publish_in")
            # What a policy does that we may not see, we cannot tell.
            hidden = bool(exchange.get("policy")) and exchange["policy"] not in self.policies
            if name and published and name not in self.bound and not hidden and self._alternate(exchange) is None:
                yield self._finding(
                    "leads-nowhere",
                    f"exchange {name!r}",
                    f"has received {counted(published)} and has no bindings: they are lost",
                    "bind a queue to it, or publish with --mandatory to see it",
                )

    def _alternates(self) -> Iterator[Finding]:
        for name, exchange in self.exchanges.items():
            alternate = self._alternate(exchange)
            if not alternate:
                continue
            to = self.exchanges.get(alternate)
            if to is None:
                what, hint = "does not exist", f"mqtool exchange declare {alternate} fanout, and bind a queue to it"
            elif alternate not in self.bound and self._alternate(to) is None:
                what, hint = "has no bindings", f"mqtool bind {alternate} QUEUE"
            else:
                continue
            yield self._finding(
                "alternate-exchange",
                f"exchange {name!r}",
                f"has the alternate exchange {alternate!r}, which {what}: what it cannot route is lost",
                hint,
            )

    def _circles_of_exchanges(self) -> Iterator[Finding]:
        sources: dict[str, set[str]] = {}
        for binding in self.bindings:
            if binding.to_exchange:
                sources.setdefault(binding.destination, set()).add(binding.source)
        while True:
            try:
                TopologicalSorter(sources).prepare()
            except CycleError as error:
                circle = error.args[1]
            else:
                return
            yield self._finding(
                "exchange-cycle",
                f"exchange {circle[0]!r}",
                f"is bound to itself in a circle, {_arrows(circle)}: what one receives may reach the queues of all",
                f"mqtool unbind {circle[0]} {circle[1]} KEY, unless it is meant",
            )
            sources[circle[1]].remove(circle[0])

    def _circles_of_queues(self) -> Iterator[Finding]:
        exchanges = [_as_routed(exchange) for exchange in self.exchanges.values()]
        router = Router(Definitions.of(exchanges, self.expiring, self.bindings))
        starts = [(binding.source, binding.routing_key) for binding in self.bindings if not binding.to_exchange]
        seen: set[tuple[str, ...]] = set()
        for exchange, key in [*(("", queue.name) for queue in self.expiring), *starts]:
            if exchange not in router.definitions.exchanges:
                continue
            dead = router.route(exchange, key, near_misses=0).dead_letters
            circle = tuple(sorted(death.queue for death in dead if death.circular))
            if not circle or circle in seen:
                continue
            seen.add(circle)
            through = "" if len(circle) == 1 else f" by way of {', '.join(repr(name) for name in circle[1:])}"
            yield self._finding(
                "dead-letter-cycle",
                f"queue {circle[0]!r}",
                f"gets its expired messages back{through}: RabbitMQ drops a message that nobody rejected on the way",
                "let one of the queues on the way dead-letter to another exchange, or have no message TTL",
            )


def _as_routed(exchange: Json) -> Exchange:
    """An exchange without its alternate: of what that leads to, not all bindings are known."""
    delayed = {name: value for name, value in (exchange.get("arguments") or {}).items() if name == "x-delayed-type"}
    return Exchange(exchange["name"], exchange["type"], arguments=delayed)


def _arrows(names: Iterable[str]) -> str:
    return " → ".join(repr(name) for name in names)


def expires(queue: Json) -> bool:
    """Whether messages leave a queue for its dead-letter exchange when they expire, without being rejected."""
    return {"x-dead-letter-exchange", "x-message-ttl"} <= _arguments(queue).keys()


def _arguments(queue: Json) -> dict[str, Any]:
    return with_policy(queue.get("arguments") or {}, queue.get("effective_policy_definition") or {})


def findings(
    api: Management, vhost: str | None, policies: Iterable[Json], expiring: Iterable[Json]
) -> Iterator[Finding]:
    """Find the dead ends and circles of a virtual host; None for all.

    Args:
        policies: those that the user may see.
        expiring: the queues of which expires() is true.

    Raises: as Management.get does.
    """
    of_vhost: dict[str, Paths] = {}
    for exchange in management.exchanges(api, vhost, _EXCHANGE_COLUMNS):
        of_vhost.setdefault(exchange["vhost"], Paths(exchange["vhost"])).exchanges[exchange["name"]] = exchange
    for policy in policies:
        if policy["vhost"] in of_vhost:
            of_vhost[policy["vhost"]].policies[policy["name"]] = policy.get("definition") or {}
    wanted: set[tuple[str, str]] = set()
    for queue in expiring:
        if queue["vhost"] in of_vhost:
            arguments = _arguments(queue)
            of_vhost[queue["vhost"]].expiring.append(Queue(queue["name"], arguments=arguments))
            wanted.add((queue["vhost"], arguments["x-dead-letter-exchange"]))
    for view in management.bindings(api, vhost, _BINDING_COLUMNS):
        paths, source = of_vhost.get(view["vhost"]), view["source"]
        if not source or paths is None:
            continue
        paths.bound.add(source)
        to_exchange = view["destination_type"] == "exchange"
        if to_exchange or (view["vhost"], source) in wanted:
            arguments = view.get("arguments") or {}
            paths.bindings.append(Binding(source, view["destination"], view["routing_key"], arguments, to_exchange))
    for paths in of_vhost.values():
        yield from paths.findings()
