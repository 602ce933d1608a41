"""A wiring as a diagram: Mermaid, which GitHub and many editors draw, and Graphviz's DOT. Nothing here does any I/O.

Nodes have numbers of our own for names; the broker's names are only ever labels, in quotes, so that no name can end a
label or say something in the diagram's language.
"""

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from mqtool.inspection.wiring import Link, Wiring

_KEYS = 4


class _Node(NamedTuple):
    identity: str
    label: str
    kind: str


class _Edge(NamedTuple):
    source: str
    destination: str
    label: str
    dashed: bool = False


def mermaid(wiring: Wiring) -> Iterator[str]:
    """The lines of a Mermaid flow chart. https://mermaid.js.org/syntax/flowchart.html"""
    shapes = {"exchange": '{{{{"{}"}}}}', "queue": '[("{}")]', "client": '(["{}"])', "more": '["{}"]'}
    yield "flowchart LR"
    for part in _parts(wiring):
        if isinstance(part, _Node):
            yield f"    {part.identity}{shapes[part.kind].format(_in_mermaid(part.label))}"
        else:
            arrow = "-.->" if part.dashed else "-->"
            label = f'|"{_in_mermaid(part.label)}"|' if part.label else ""
            yield f"    {part.source} {arrow}{label} {part.destination}"


def dot(wiring: Wiring) -> Iterator[str]:
    """The lines of a directed graph for Graphviz. https://graphviz.org/doc/info/lang.html"""
    shapes = {"exchange": "hexagon", "queue": "cylinder", "client": "ellipse", "more": "plaintext"}
    yield f"digraph {_in_dot(f'vhost {wiring.vhost}')} {{"
    yield "    rankdir=LR;"
    for part in _parts(wiring):
        if isinstance(part, _Node):
            yield f"    {part.identity} [shape={shapes[part.kind]}, label={_in_dot(part.label)}];"
        else:
            style = ", style=dashed" if part.dashed else ""
            yield f"    {part.source} -> {part.destination} [label={_in_dot(part.label)}{style}];"
    yield "}"


class _Graph:
    """Hands out each node once, before the first edge that touches it."""

    def __init__(self) -> None:
        self._identities: dict[tuple[str, str], str] = {}
        self._new: list[_Node] = []

    def node(self, kind: str, name: str, label: str | None = None) -> str:
        """The identity of a node; its label is its name, unless said otherwise when it is met first."""
        identity = self._identities.get((kind, name))
        if identity is None:
            identity = self._identities[kind, name] = f"{kind}{len(self._identities)}"
            self._new.append(_Node(identity, label or name or "(default exchange)", kind))
        return identity

    def parts(self, edges: Iterator[_Edge]) -> Iterator[_Node | _Edge]:
        """The edges, and before each the nodes that it has brought up."""
        for edge in edges:
            yield from self._take()
            yield edge
        yield from self._take()

    def _take(self) -> list[_Node]:
        new, self._new = self._new, []
        return new


def _parts(wiring: Wiring) -> Iterator[_Node | _Edge]:
    graph = _Graph()
    for name, node in wiring.exchanges.items():
        graph.node("exchange", name, f"{name or '(default exchange)'}, {node.exchange.type}")
    yield from graph.parts(chain(_of_exchanges(graph, wiring), _of_queues(graph, wiring)))


def _of_exchanges(graph: _Graph, wiring: Wiring) -> Iterator[_Edge]:
    for name, node in wiring.exchanges.items():
        here = graph.node("exchange", name)
        for publisher in node.publishers:
            yield _Edge(graph.node("client", publisher.channel), here, "publishes")
        for link in node.links.values():
            kind = "exchange" if link.to_exchange else "queue"
            yield _Edge(here, graph.node(kind, link.destination), _keys(link))
        if isinstance(alternate := node.exchange.arguments.get("alternate-exchange"), str):
            yield _Edge(here, graph.node("exchange", alternate), "alternate", dashed=True)
        if node.more:
            yield _Edge(here, graph.node("more", name, f"and {node.more:,} more bindings"), "", dashed=True)


def _of_queues(graph: _Graph, wiring: Wiring) -> Iterator[_Edge]:
    for name, queue in wiring.queues.items():
        here = graph.node("queue", name)
        if isinstance(exchange := queue.arguments.get("x-dead-letter-exchange"), str):
            key = queue.arguments.get("x-dead-letter-routing-key")
            label = "dies" if key is None else f"dies: {key}"
            yield _Edge(here, graph.node("exchange", exchange), label, dashed=True)
        for consumer in wiring.consumers.get(name, ()):
            yield _Edge(here, graph.node("client", consumer.channel), consumer.tag)


def _keys(link: Link) -> str:
    """What an arrow says: the first keys, or header arguments, of all the bindings that it stands for."""
    said = [binding.routing_key for binding in link.bindings if binding.source and not binding.arguments]
    said += [
        " ".join(f"{name}={value}" for name, value in each.arguments.items())
        for each in link.bindings
        if each.arguments
    ]
    more = len(said) - _KEYS + link.more
    shown = ", ".join(key for key in said[:_KEYS] if key)
    return f"{shown} and {more:,} more" if more > 0 else shown


def _in_mermaid(text: str) -> str:
    """As what stands in a Mermaid label: all but plain characters as their numbers, since it has no other quoting."""
    return re.sub(r"[^\w .,:=*/()>-]", lambda match: f"#{ord(match[0])};", _printable(text)) or " "


def _in_dot(text: str) -> str:
    """As a DOT string in quotes: backslashes would be layout, quotes its end."""
    escaped = _printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


FORMATS: dict[str, Callable[[Wiring], Iterator[str]]] = {"mermaid": mermaid, "dot": dot}
