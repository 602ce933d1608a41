"""A route as lines for people, and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mqtool.cli.display import output
from mqtool.cli.display.binding_text import bound_by, fields
from mqtool.cli.display.styled import BAD, DIM, GOOD, KEY, LABEL, NAME, PLAIN, Line, shown
from mqtool.cli.display.tables import shortened, terminal
from mqtool.inspection import definitions
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.routes import DeadLetters, Hop, Route, Way, routing_type
from mqtool.topology import Binding

#: Longer names push aside what comes after them.
_WIDEST = 30


def explained(route: Route, definitions: Definitions) -> Iterator[Line]:
    """What a person asks a route: who gets it and why, who nearly did, and what if it dies."""
    yield [*_message(route), ": ", (_count(len(route.queues), "queue"), GOOD if route.queues else BAD)]
    names = [*route.queues, *(miss.binding.destination for miss in route.near_misses)]
    width = min(max((len(shown(name)) for name in names), default=0), _WIDEST)
    longest = None
    if output.is_terminal(1):
        longest = width = min(width, terminal().width // 4)
    for queue, ways in route.queues.items():
        for number, way in enumerate(ways):
            yield ["  ", _label("" if number else shown(queue), width, longest), "  ", *_way(way)]
    yield from _remarks(route, definitions)
    if route.near_misses:
        yield []
        yield ["nearly:"]
        for miss in route.near_misses:
            yield [
                "  ",
                _label(shown(miss.binding.destination), width, longest),
                "  ",
                *_binding(miss.binding),
                (f"   {miss.reason}", DIM),
            ]
    if route.dead_letters:
        yield []
        yield ["if it dies there:"]
        for death in route.dead_letters:
            yield ["  ", *_death(death)]


def _label(name: str, width: int, longest: int | None) -> tuple[str, str]:
    return (name if longest is None else shortened(name, longest)).ljust(width), LABEL


def compared(route: Route, expected: set[str] | None) -> Iterator[Line]:
    """One line of a table of keys, and what is not as expected."""
    queues, wanted = set(route.queues), set(route.queues) if expected is None else expected
    ok = queues == wanted
    mark = ("ok    ", GOOD) if ok else ("FAIL  ", BAD)
    yield [mark, *_message(route), " -> ", ", ".join(map(shown, route.queues)) or "no queue"]
    for what, names in (("missing: ", wanted - queues), ("too many: ", queues - wanted)):
        if names:
            yield ["        ", (what, BAD), ", ".join(map(shown, sorted(names)))]
            yield from (["          ", *_way(way)] for name in names for way in route.queues.get(name, ()))
    for miss in route.near_misses:
        if wanted - queues and (miss.binding.destination in wanted or miss.binding.to_exchange):
            yield ["          ", *_binding(miss.binding), (f"   {miss.reason}", DIM)]


def _remarks(route: Route, definitions: Definitions) -> Iterator[Line]:
    exchange = definitions.exchanges[route.exchange]
    if not route.queues and not route.unknown:
        yield ["  the broker drops it, or gives it back if it is mandatory"]
    if route.delay:
        yield [f"  {_exchange(route.exchange)} holds it back for {route.delay:,} ms first"]
    if exchange.internal:
        yield [f"  {_exchange(route.exchange)} is internal: no client may publish to it"]
    for name in route.unknown:
        kind = routing_type(definitions.exchanges[name])
        bound = _count(len(definitions.bindings.get(name, ())), "binding")
        yield [f"  {shown(name)} is of type {shown(kind)} and has {bound}: where it leads, only the broker knows"]


def _message(route: Route) -> Line:
    headers = [("  " + field, KEY) for field in fields(route.headers)]
    return [(_exchange(route.exchange), NAME), "  ", (repr(route.routing_key), KEY), *headers]


def _exchange(name: str) -> str:
    return shown(name) if name else "(default exchange)"


def _way(way: Way) -> Line:
    line: Line = [(_exchange(way[0].source), PLAIN)]
    for hop in way:
        line += _hop(hop)
    return line


def _hop(hop: Hop) -> Line:
    if hop.binding is not None:
        return _arrow(hop.binding)
    if hop.to_exchange:
        return [" ── ", ("nothing matches: alternate", GOOD), " ──> ", (_exchange(hop.destination), PLAIN)]
    return [" ──> ", (shown(hop.destination), PLAIN)]


def _binding(binding: Binding) -> Line:
    return [(_exchange(binding.source), PLAIN), *_arrow(binding)]


def _arrow(binding: Binding) -> Line:
    return [" ── ", (bound_by(binding), KEY), " ──> ", (shown(binding.destination), PLAIN)]


def _death(death: DeadLetters) -> Line:
    line: Line = [
        (shown(death.queue), NAME),
        " ──> ",
        (_exchange(death.exchange), PLAIN),
        "  ",
        (repr(death.routing_key), KEY),
    ]
    if death.queues is None:
        return [*line, (": lost, there is no such exchange", BAD)]
    if not death.queues:
        return [*line, (": lost, no queue gets it", BAD)]
    circle = "  in a circle" if death.circular else ""
    return [*line, " ──> ", (", ".join(map(shown, death.queues)), NAME), (circle, BAD)]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}" if number else f"no {what}"


# -- JSON


def as_json(route: Route) -> dict[str, Any]:
    """The route as JSON has it."""
    return {
        "exchange": route.exchange,
        "routing_key": route.routing_key,
        "headers": route.headers,
        "queues": list(route.queues),
        "ways": [[_hop_json(hop) for hop in way] for ways in route.queues.values() for way in ways],
        "near_misses": [{**definitions.as_json(miss.binding), "reason": miss.reason} for miss in route.near_misses],
        "dead_letters": [asdict(death) for death in route.dead_letters],
        **({"delay": route.delay} if route.delay else {}),
        **({"unknown": list(route.unknown)} if route.unknown else {}),
    }


def _hop_json(hop: Hop) -> dict[str, Any]:
    if hop.binding is not None:
        return definitions.as_json(hop.binding)
    kind = {"destination_type": "exchange", "alternate": True} if hop.to_exchange else {"destination_type": "queue"}
    return {"source": hop.source, "destination": hop.destination, **kind}
