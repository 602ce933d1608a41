"""A wiring as a tree of lines."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from mqtool.cli.display.binding_text import bound_by
from mqtool.cli.display.styled import BAD, DIM, GOOD, KEY, NAME, PLAIN, Line, fitted, plain, shown
from mqtool.inspection.wiring import Counter, Link, Node, Publisher, QueueState, Wiring


@dataclass(slots=True)
class _Branch:
    line: Line
    branches: "list[_Branch]" = field(default_factory=list)


def tree(wiring: Wiring, *, rates: bool = False, limit: int | None = None, width: int | None = None) -> Iterator[Line]:
    """The lines of the tree.

    Args:
        rates: messages per second, where there are any.
        limit: exchanges to show; None for all.
        width: of a line; None for any.
    """
    root = _Branch([("vhost ", DIM), (shown(wiring.vhost), NAME)])
    told: set[str] = set()
    for number, node in enumerate(wiring.exchanges.values()):
        if number == limit:
            root.branches.append(_Branch([(f"… and {len(wiring.exchanges) - limit:,} more exchanges", DIM)]))
            break
        root.branches.append(_exchange(node, wiring, told, rates=rates, width=width))
    if wiring.publishers:
        to = "publishers (where to, this broker tells only with management.rates_mode = detailed)"
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
    """The line; what does not fit goes on below, where the tree's own lines take more room."""
    if width is None or len(indent) + len(plain(line)) <= width:
        return [line]
    return fitted(line, width - len(indent) - 3)


def _exchange(node: Node, wiring: Wiring, told: set[str], *, rates: bool, width: int | None) -> _Branch:
    exchange = node.exchange
    name = shown(exchange.name) if exchange.name else "(default exchange)"
    branch = _Branch([(name, NAME), (f"  {shown(exchange.type)}", DIM), *_rate(node.published, "in", rates=rates)])
    branch.branches += [_publisher(publisher, rates=rates) for publisher in node.publishers]
    for link in sorted(node.links.values(), key=lambda link: (link.to_exchange, link.destination)):
        branch.branches.append(_link(link, exchange.type, wiring, told, rates=rates, width=width))
    if isinstance(alternate := exchange.arguments.get("alternate-exchange"), str):
        branch.branches.append(_Branch([("otherwise", KEY), " ──> ", (f"exchange {shown(alternate)}", NAME)]))
    if node.more:
        branch.branches.append(_Branch([(f"… and {node.more:,} more bindings", DIM)]))
    if not node.links and not isinstance(alternate, str) and not exchange.internal:
        branch.branches.append(_Branch([("nothing is bound to it: what is published here is dropped", BAD)]))
    return branch


def _link(link: Link, kind: str, wiring: Wiring, told: set[str], *, rates: bool, width: int | None) -> _Branch:
    """A destination, with the keys that lead to it where the type of exchange looks at them."""
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
    if queue is None:  # it has gone since the bindings were listed, or has come since the queues were
        return branch
    branch.line += _state(queue, rates=rates)
    if link.destination not in told:  # what hangs on a queue is told once
        told.add(link.destination)
        branch.branches += _consumers(queue, wiring)
        branch.branches += _death(queue)
    return branch


def _first_of(keys: list[str], room: int) -> list[str]:
    """As many as fit, but at least one."""
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
                (f"  {_client(consumer.channel, consumer.user)}  {how}", DIM),
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


def _publisher(publisher: Publisher, *, rates: bool) -> _Branch:
    return _Branch(
        [("<── ", GOOD), _client(publisher.channel, publisher.user), *_rate(publisher.published, "", rates=rates)]
    )


def _client(channel: str, user: str) -> str:
    """A channel by the client's end of it: '127.0.0.1:1234 -> 127.0.0.1:5672 (1)' has both."""
    ours, arrow, theirs = channel.partition(" -> ")
    number = f" {theirs[theirs.rindex('(') :]}" if arrow and "(" in theirs else ""
    return f"{shown(ours + number)}  {shown(user)}" if user else shown(ours + number)


def _rate(counter: Counter, what: str, *, rates: bool) -> Line:
    if not rates or not counter.rate:
        return []
    return [(f"  {counter.rate:,.{0 if counter.rate >= 10 else 1}f}/s {what}".rstrip(), GOOD)]
