"""Output formats for `topology`: Mermaid (rendered by GitHub and many editors), Graphviz's DOT, and JSON records.

Nodes have numbered ids. Names from the broker appear only in labels, quoted and escaped, so that a name cannot end its
label or add anything to the diagram.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from typing import NamedTuple

from mqtool import management
from mqtool.inspection import definitions
from mqtool.inspection.wiring import (
    CONSUMER_COLUMNS,
    QUEUE_COLUMNS,
    WiredLink,
    WiredNode,
    WiredPublisher,
    Wiring,
    add_publishers,
    consumer_of,
    exchanges_of,
    queue_of,
)
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.spelling import counted

_KEYS = 4


class _Edge(NamedTuple):
    source: str
    destination: str
    label: str
    dashed: bool = False


def mermaid(wiring: Wiring) -> Iterator[str]:
    """Yield the lines of a Mermaid flow chart. https://mermaid.js.org/syntax/flowchart.html"""
    shapes = {"exchange": '{{{{"{}"}}}}', "queue": '[("{}")]', "client": '(["{}"])', "more": '["{}"]'}
    graph = _Graph(wiring)
    yield "flowchart LR"
    for node in graph.nodes.values():
        yield f"    {node.identity}{shapes[node.kind].format(_in_mermaid(node.label))}"
    for edge in graph.edges:
        arrow = "-.->" if edge.dashed else "-->"
        label = f'|"{_in_mermaid(edge.label)}"|' if edge.label else ""
        yield f"    {edge.source} {arrow}{label} {edge.destination}"


def dot(wiring: Wiring) -> Iterator[str]:
    """Yield the lines of a directed graph for Graphviz. https://graphviz.org/doc/info/lang.html"""
    shapes = {"exchange": "hexagon", "queue": "cylinder", "client": "ellipse", "more": "plaintext"}
    graph = _Graph(wiring)
    yield f"digraph {_in_dot(f'vhost {wiring.vhost}')} {{"
    yield "    rankdir=LR;"
    for node in graph.nodes.values():
        yield f"    {node.identity} [shape={shapes[node.kind]}, label={_in_dot(node.label)}];"
    for edge in graph.edges:
        style = ", style=dashed" if edge.dashed else ""
        yield f"    {edge.source} -> {edge.destination} [label={_in_dot(edge.label)}{style}];"
    yield "}"


class _Node(NamedTuple):
    identity: str
    label: str
    kind: str


class _Graph:
    """The nodes of a diagram, by kind and name, and its edges."""

    def __init__(self, wiring: Wiring) -> None:
        self.nodes: dict[tuple[str, str], _Node] = {}
        for name, node in wiring.exchanges.items():
            self._node("exchange", name, f"{name or '(default exchange)'}, {node.exchange.type}")
        self.edges = [*self._of_exchanges(wiring), *self._of_queues(wiring)]

    def _node(self, kind: str, name: str, label: str | None = None) -> str:
        """Return a node's id; create the node if it is new. The default label is the node's name."""
        new = _Node(f"{kind}{len(self.nodes)}", label or name or "(default exchange)", kind)
        return self.nodes.setdefault((kind, name), new).identity

    def _of_exchanges(self, wiring: Wiring) -> Iterator[_Edge]:
        for name, node in wiring.exchanges.items():
            here = self._node("exchange", name)
            for publisher in node.publishers:
                yield _Edge(self._node("client", publisher.channel), here, "publishes")
            for link in node.links.values():
                kind = "exchange" if link.to_exchange else "queue"
                yield _Edge(here, self._node(kind, link.destination), _keys(link))
            if isinstance(alternate := node.exchange.arguments.get("alternate-exchange"), str):
                yield _Edge(here, self._node("exchange", alternate), "alternate", dashed=True)
            if node.more:
                yield _Edge(
                    here, self._node("more", name, f"and {counted(node.more, 'more binding')}"), "", dashed=True
                )

    def _of_queues(self, wiring: Wiring) -> Iterator[_Edge]:
        for name, queue in wiring.queues.items():
            here = self._node("queue", name)
            if isinstance(exchange := queue.arguments.get("x-dead-letter-exchange"), str):
                key = queue.arguments.get("x-dead-letter-routing-key")
                label = "dies" if key is None else f"dies: {key}"
                yield _Edge(here, self._node("exchange", exchange), label, dashed=True)
            for consumer in wiring.consumers.get(name, ()):
                yield _Edge(here, self._node("client", consumer.channel), consumer.tag)


def _keys(link: WiredLink) -> str:
    """Return an arrow's label: the first few routing keys, or header arguments, of its bindings."""
    said = [each.routing_key for each in link.bindings if each.source and not each.arguments]
    with_arguments = [each.arguments for each in link.bindings if each.arguments]
    said += [" ".join(f"{name}={value!s}" for name, value in arguments.items()) for arguments in with_arguments]
    more = len(said) - _KEYS + link.more
    shown = ", ".join(key for key in said[:_KEYS] if key)
    return f"{shown} and {more:,} more" if more > 0 else shown


def _in_mermaid(text: str) -> str:
    """Escape text for a Mermaid label, where character codes are the only way to escape."""
    return re.sub(r"[^\w .,:=*/()>-]", lambda match: f"#{ord(match[0])};", _printable(text)) or " "


def _in_dot(text: str) -> str:
    escaped = _printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


FORMATS: dict[str, Callable[[Wiring], Iterator[str]]] = {"mermaid": mermaid, "dot": dot}


def records(api: Management, vhost: str, *, only: Collection[str] = ()) -> Iterator[Json]:
    """Yield exchanges, their publishers, bindings, consumers and queues as records, each with its "kind".

    Args:
        only: include only these exchanges, and the exchanges and queues to which they route; empty for all.
    """
    wiring = Wiring(vhost, {name: WiredNode(exchange) for name, exchange in exchanges_of(api, vhost, only).items()})
    add_publishers(api, wiring)
    for name, node in wiring.exchanges.items():
        yield {"kind": "exchange", **node.exchange._asdict(), "published": asdict(node.published)}
        yield from (_publisher(publisher, name) for publisher in node.publishers)
    yield from (_publisher(publisher, None) for publisher in wiring.publishers)
    bound: set[str] = set()
    for binding in definitions.bindings(api, vhost, *(wiring.exchanges if only else ())):
        if binding.source in wiring.exchanges:
            yield {"kind": "binding", **definitions.as_json(binding)}
            if only and not binding.to_exchange:
                bound.add(binding.destination)
    consumers: Counter[str] = Counter()
    for consumer in management.consumers(api, vhost, CONSUMER_COLUMNS):
        queue = consumer["queue"]["name"]
        if not only or queue in bound:
            consumers[queue] += 1
            yield {"kind": "consumer", "queue": queue, **asdict(consumer_of(consumer))}
    arguments_of = definitions.queue_arguments(api, vhost)
    for view in management.counted_queues(api, vhost, QUEUE_COLUMNS):
        if not only or view["name"] in bound:
            state = asdict(queue_of(view, arguments_of(view))) | {"consumers": consumers[view["name"]]}
            del state["published"], state["delivered"]  # these rates are slow to get; 'list queues' shows them
            yield {"kind": "queue", **state}


def _publisher(publisher: WiredPublisher, exchange: str | None) -> Json:
    return {"kind": "publisher", "exchange": exchange, **asdict(publisher)}
