"""Formats the topology of a virtual host as a tree, and a message's route as lines or JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from mqtool.cli.display import output
from mqtool.cli.display.layout import (
    BAD,
    DIM,
    GOOD,
    KEY,
    LABEL,
    NAME,
    PLAIN,
    Line,
    bound_by,
    fields,
    fitted,
    plain,
    shortened,
    shown,
    terminal,
)
from mqtool.inspection import definitions
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.routes import CHOOSING, DeadLetterRoutes, Hop, QueueRoute, Way, routing_type
from mqtool.inspection.wiring import Counter, QueueState, WiredLink, WiredNode, WiredPublisher, Wiring
from mqtool.spelling import counted
from mqtool.topology import Binding


@dataclass(slots=True)
class _Branch:
    line: Line
    branches: "list[_Branch]" = field(default_factory=list)


def tree(wiring: Wiring, *, rates: bool = False, limit: int | None = None, width: int | None = None) -> Iterator[Line]:
    """Yield the lines of the tree: up to `limit` exchanges; with `rates`, also messages per second."""
    root = _Branch([("vhost ", DIM), (shown(wiring.vhost), NAME)])
    told: set[str] = set()
    for number, node in enumerate(wiring.exchanges.values()):
        if number == limit:
            root.branches.append(_Branch([(f"… and {len(wiring.exchanges) - limit:,} more exchanges", DIM)]))
            break
        root.branches.append(_exchange(node, wiring, told, rates=rates, width=width))
    if wiring.publishers:
        to = "publishers (to see their exchanges, set management.rates_mode = detailed)"
        root.branches.append(_Branch([(to, DIM)], [_publisher(each, rates=rates) for each in wiring.publishers]))
    yield root.line
    yield from _lines(root.branches, "", width)


def _lines(branches: list[_Branch], indent: str, width: int | None) -> Iterator[Line]:
    for number, branch in enumerate(branches, 1):
        last = number == len(branches)
        below = f"{indent}{'   ' if last else '│  '}"
        first, *more = _within(branch.line, below, width)
        yield [(f"{indent}{'└─' if last else '├─'} ", DIM), *first]
        for line in more:
            yield [(f"{below}{'│  ' if branch.branches else '   '}", DIM), *line]
        yield from _lines(branch.branches, below, width)


def _within(line: Line, indent: str, width: int | None) -> list[Line]:
    if width is None or len(indent) + len(plain(line)) <= width:
        return [line]
    return fitted(line, width - len(indent) - 3)


def _exchange(node: WiredNode, wiring: Wiring, told: set[str], *, rates: bool, width: int | None) -> _Branch:
    exchange = node.exchange
    name = shown(exchange.name) if exchange.name else "(default exchange)"
    branch = _Branch([(name, NAME), (f"  {shown(exchange.type)}", DIM), *_rate(node.published, "in", rates=rates)])
    branch.branches += [_publisher(publisher, rates=rates) for publisher in node.publishers]
    for link in sorted(node.links.values(), key=lambda link: (link.to_exchange, link.destination)):
        branch.branches.append(_link(link, exchange.type, wiring, told, rates=rates, width=width))
    if isinstance(alternate := exchange.arguments.get("alternate-exchange"), str):
        branch.branches.append(_Branch([("otherwise", KEY), " ──> ", (f"exchange {shown(alternate)}", NAME)]))
    if node.more:
        branch.branches.append(_Branch([(f"… and {counted(node.more, 'more binding')}", DIM)]))
    if not node.links and not isinstance(alternate, str) and not exchange.internal:
        branch.branches.append(_Branch([("no bindings: messages published here are dropped", BAD)]))
    return branch


def _link(link: WiredLink, kind: str, wiring: Wiring, told: set[str], *, rates: bool, width: int | None) -> _Branch:
    told_by_key = [bound_by(binding) for binding in link.bindings if binding.source and kind != "fanout"]
    keys = told_by_key if width is None else _first_of(told_by_key, width // 2)
    hidden = link.more + len(told_by_key) - len(keys)
    arrow: Line = [
        (", ".join(keys), KEY),
        f" and {hidden:,} more" if keys and hidden else "",
        " ──> " if keys else "──> ",
    ]
    if link.to_exchange:
        return _Branch([*arrow, (f"exchange {shown(link.destination)}", NAME)])
    queue = wiring.queues.get(link.destination)
    branch = _Branch([*arrow, (shown(link.destination), NAME)])
    if queue is None:  # deleted after the bindings were listed, or declared after the queues were
        return branch
    branch.line += _state(queue, rates=rates)
    if link.destination not in told:  # consumers and dead-lettering are shown only once per queue
        told.add(link.destination)
        branch.branches += _consumers(queue, wiring)
        branch.branches += _death(queue)
    return branch


def _first_of(keys: list[str], room: int) -> list[str]:
    ends = accumulate(len(key) + 2 for key in keys)
    return keys[: max(1, sum(end - 2 <= room for end in ends))]


def _state(queue: QueueState, *, rates: bool) -> Line:
    counts = f"  {shown(queue.type)}  {queue.ready:,} ready, {queue.unacked:,} unacked" if queue.type else ""
    line: Line = [(counts, DIM)]
    if queue.ready and not queue.consumers:
        line.append(("  no consumer", BAD))
    return [*line, *_rate(queue.published, "in", rates=rates), *_rate(queue.delivered, "out", rates=rates)]


def _consumers(queue: QueueState, wiring: Wiring) -> Iterator[_Branch]:
    known = wiring.consumers.get(queue.name, [])
    for consumer in known:
        how = f"prefetch {consumer.prefetch}" if consumer.prefetch else "no prefetch limit"
        how = how if consumer.acknowledges else "auto-ack"
        yield _Branch(
            [
                ("──> ", GOOD),
                (shown(consumer.tag), PLAIN),
                (f"  {_client(consumer.channel or consumer.connection, consumer.user)}  {how}", DIM),
            ]
        )
    if queue.consumers > len(known) > 0:
        yield _Branch([(f"… and {queue.consumers - len(known):,} more consumers", DIM)])


def _death(queue: QueueState) -> Iterator[_Branch]:
    exchange = queue.arguments.get("x-dead-letter-exchange")
    if isinstance(exchange, str):
        key = queue.arguments.get("x-dead-letter-routing-key")
        to = f"exchange {shown(exchange)}" if exchange else "(default exchange)"
        keyed: Line = [] if key is None else ["  ", (repr(key), KEY)]
        yield _Branch([("dies", KEY), " ──> ", (to, PLAIN), *keyed])


def _publisher(publisher: WiredPublisher, *, rates: bool) -> _Branch:
    return _Branch(
        [("<── ", GOOD), _client(publisher.channel, publisher.user), *_rate(publisher.published, "", rates=rates)]
    )


def _client(channel: str, user: str) -> str:
    """Return a client's address and user, from a channel name such as '127.0.0.1:1234 -> 127.0.0.1:5672 (1)'."""
    ours, arrow, theirs = channel.partition(" -> ")
    number = f" {theirs[theirs.rindex('(') :]}" if arrow and "(" in theirs else ""
    return f"{shown(ours + number)}  {shown(user)}" if user else shown(ours + number)


def _rate(counter: Counter, what: str, *, rates: bool) -> Line:
    if not rates or not counter.rate:
        return []
    return [(f"  {counter.rate:,.{0 if counter.rate >= 10 else 1}f}/s {what}".rstrip(), GOOD)]


#: The maximum number of an exchange's bindings to show if its routes are not known.
_BINDINGS = 10
#: Names are padded to a common width, up to this one.
_WIDEST = 30


def explained_route(route: QueueRoute, definitions: Definitions) -> Iterator[Line]:
    """Explain a route: which queues get the message and why, near misses, and where the message is dead-lettered."""
    yield [*_message(route), ": ", _reached(route, definitions)]
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
        yield ["if it is dead-lettered there:"]
        for death in route.dead_letters:
            yield ["  ", *_dead_lettering(death)]


def _reached(route: QueueRoute, definitions: Definitions) -> tuple[str, str]:
    """Say how many queues get the message, as far as this is known."""
    queues = _count(len(route.queues), "queue")
    if route.unknown:
        return (f"{queues}, and perhaps others", KEY) if route.queues else ("unknown", KEY)
    if not route.one_of:
        return queues, GOOD if route.queues else BAD
    is_whole = len(route.queues) == len(definitions.bindings[route.one_of[0]])
    return f"{'one' if len(route.one_of) == 1 and is_whole else 'some'} of {queues}", GOOD


def _label(name: str, width: int, longest: int | None) -> tuple[str, str]:
    return (name if longest is None else shortened(name, longest)).ljust(width), LABEL


def compared_route(route: QueueRoute, expected: set[str] | None) -> Iterator[Line]:
    """Yield a line for one tested message, and lines for each difference from the expected queues."""
    queues, wanted = set(route.queues), set(route.queues) if expected is None else expected
    ok = queues == wanted
    mark = ("ok    ", GOOD) if ok else ("FAIL  ", BAD)
    if route.unknown:
        yield [mark if expected is None else ("?     ", BAD), *_message(route), " -> unknown: ", _of_unknown(route)]
        return
    yield [mark, *_message(route), " -> ", ", ".join(map(shown, route.queues)) or "no queue"]
    for what, names in (("missing: ", wanted - queues), ("unexpected: ", queues - wanted)):
        if names:
            yield ["        ", (what, BAD), ", ".join(map(shown, sorted(names)))]
            yield from (["          ", *_way(way)] for name in names for way in route.queues.get(name, ()))
    for miss in route.near_misses:
        if wanted - queues and (miss.binding.destination in wanted or miss.binding.to_exchange):
            yield ["          ", *_binding(miss.binding), (f"   {miss.reason}", DIM)]


def _remarks(route: QueueRoute, definitions: Definitions) -> Iterator[Line]:
    exchange = definitions.exchanges[route.exchange]
    if not route.queues and not route.unknown:
        yield ["  the broker drops the message, or returns it if it is mandatory"]
    if route.delay:
        yield [f"  {_exchange_name(route.exchange)} delays the message by {route.delay:,} ms first"]
    if exchange.internal:
        yield [f"  {_exchange_name(route.exchange)} is internal: no client may publish to it"]
    for name in route.one_of:
        how = CHOOSING[routing_type(definitions.exchanges[name])]
        yield [f"  {shown(name)} chooses one of its queues {how}"]
    for name in route.unknown:
        kind, bindings = routing_type(definitions.exchanges[name]), definitions.bindings.get(name, ())
        bound = f"{_count(len(bindings), 'binding')}{':' * bool(bindings)}"
        yield [f"  {shown(name)} is of type {shown(kind)}, so only the broker knows the route; it has {bound}"]
        yield from (["    ", *_binding(binding)] for binding in bindings[:_BINDINGS])
        if len(bindings) > _BINDINGS:
            yield [f"    … and {len(bindings) - _BINDINGS:,} more"]


def _of_unknown(route: QueueRoute) -> str:
    return f"only the broker knows the routes of {', '.join(map(shown, route.unknown))}"


def _message(route: QueueRoute) -> Line:
    headers = [("  " + field, KEY) for field in fields(route.headers)]
    return [(_exchange_name(route.exchange), NAME), "  ", (repr(route.routing_key), KEY), *headers]


def _exchange_name(name: str) -> str:
    return shown(name) if name else "(default exchange)"


def _way(way: Way) -> Line:
    line: Line = [(_exchange_name(way[0].source), PLAIN)]
    for hop in way:
        line += _hop(hop)
    return line


def _hop(hop: Hop) -> Line:
    if hop.binding is not None:
        return _arrow(hop.binding)
    if hop.to_exchange:
        return [" ── ", ("nothing matches: alternate", GOOD), " ──> ", (_exchange_name(hop.destination), PLAIN)]
    return [" ──> ", (shown(hop.destination), PLAIN)]


def _binding(binding: Binding) -> Line:
    return [(_exchange_name(binding.source), PLAIN), *_arrow(binding)]


def _arrow(binding: Binding) -> Line:
    return [" ── ", (bound_by(binding), KEY), " ──> ", (shown(binding.destination), PLAIN)]


def _dead_lettering(death: DeadLetterRoutes) -> Line:
    line: Line = [
        (shown(death.queue), NAME),
        " ──> ",
        (_exchange_name(death.exchange), PLAIN),
        "  ",
        (repr(death.routing_key), KEY),
    ]
    if death.queues is None:
        return [*line, (": lost, the exchange does not exist", BAD)]
    if death.unknown:
        names = [*map(shown, death.queues), f"unknown queues of {', '.join(map(shown, death.unknown))}"]
        return [*line, " ──> ", (", ".join(names), KEY)]
    if not death.queues:
        return [*line, (": lost, no queue gets it", BAD)]
    circle = "  in a cycle" if death.circular else ""
    return [*line, " ──> ", (", ".join(map(shown, death.queues)), NAME), (circle, BAD)]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}" if number else f"no {what}"


def route_as_json(route: QueueRoute, of: Definitions) -> dict[str, Any]:
    """Convert a route to a JSON object. `bound` has the bindings of exchanges whose routes are unknown."""
    bound = [definitions.as_json(binding) for name in route.unknown for binding in of.bindings.get(name, ())]
    return {
        "exchange": route.exchange,
        "routing_key": route.routing_key,
        "headers": route.headers,
        "queues": list(route.queues),
        "ways": [[_hop_json(hop) for hop in way] for ways in route.queues.values() for way in ways],
        "near_misses": [{**definitions.as_json(miss.binding), "reason": miss.reason} for miss in route.near_misses],
        "dead_letters": [_death_json(death) for death in route.dead_letters],
        **({"delay": route.delay} if route.delay else {}),
        **({"unknown": list(route.unknown), "bound": bound} if route.unknown else {}),
        **({"one_of": list(route.one_of)} if route.one_of else {}),
    }


def _death_json(death: DeadLetterRoutes) -> dict[str, Any]:
    return {name: value for name, value in asdict(death).items() if value or name != "unknown"}


def _hop_json(hop: Hop) -> dict[str, Any]:
    if hop.binding is not None:
        return definitions.as_json(hop.binding)
    kind = {"destination_type": "exchange", "alternate": True} if hop.to_exchange else {"destination_type": "queue"}
    return {"source": hop.source, "destination": hop.destination, **kind}
