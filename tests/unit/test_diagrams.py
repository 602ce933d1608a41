"""Diagrams: any name is shown as a label, and cannot change the diagram."""

import re
import shutil
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from mqtool.inspection.diagrams import dot, mermaid
from mqtool.inspection.wiring import Counter, QueueState, WiredConsumer, WiredNode, WiredPublisher, Wiring
from mqtool.topology import Binding, Exchange
from tests.brokers import skip_or_fail

HOSTILE = [
    'a"] --> b',
    "`x`",
    "end",
    "%%{init: {}}%%",
    "<b>",
    "#quot;",
    "\\N",
    'a\\"',
    "\x1b[31m",
    "a\nb",
    "{}|[]()",
    "é😀",
]
names = st.sampled_from(HOSTILE) | st.text(max_size=8)

#: A line of a mermaid diagram: a node or an edge. Labels contain plain characters, and numbers for others.
_LABEL = r'"(?:[^\W]|[ .,:=*/()>-]|#\d+;)+"'
_IDENTITY = r"(?:exchange|queue|client|more)\d+"
MERMAID_LINE = re.compile(
    rf"    (?:{_IDENTITY}(?:\{{\{{{_LABEL}\}}\}}|\[\({_LABEL}\)\]|\(\[{_LABEL}\]\)|\[{_LABEL}\])"
    rf"|{_IDENTITY} (?:-->|-\.->)(?:\|{_LABEL}\|)? {_IDENTITY})"
)


def wiring(name: str, queue: str, key: str) -> Wiring:
    """One exchange, queue and binding of each kind, with these names."""
    node = WiredNode(Exchange(name, "topic", arguments={"alternate-exchange": key}))
    node.publishers.append(WiredPublisher(key, "guest", Counter()))
    for binding in (
        Binding(name, queue, key),
        Binding(name, queue, "", {key: queue}),
        Binding(name, key, "", {}, True),
    ):
        node.add(binding, None)
    node.more = 3
    state = QueueState(queue, "classic", 0, 0, {"x-dead-letter-exchange": key}, consumers=1)
    return Wiring(name, {name: node}, {queue: state}, {queue: [WiredConsumer(key, name, "guest", 0, True)]})


@given(names, names, names)
def test_any_name_gives_a_valid_mermaid_diagram(name: str, queue: str, key: str) -> None:
    """Whatever the names of exchanges and queues, each line of a mermaid diagram is a node or an edge between known
    nodes.
    """
    first, *lines = mermaid(wiring(name, queue, key))
    assert first == "flowchart LR"
    known = set()
    for line in lines:
        assert MERMAID_LINE.fullmatch(line), line
        identities = re.findall(_IDENTITY, re.sub(_LABEL, "", line))
        if len(identities) == 1:
            known.update(identities)
        assert known.issuperset(identities)


@given(names, names, names)
def test_any_name_is_a_quoted_string_in_dot(name: str, queue: str, key: str) -> None:
    """Whatever the names of exchanges and queues, a dot diagram contains them only inside quoted strings."""
    first, *lines, last = dot(wiring(name, queue, key))
    string = r'"(?:[^"\\]|\\["\\])*"'
    assert re.fullmatch(rf"digraph {string} \{{", first)
    assert last == "}"
    for line in lines:
        assert line.isprintable()
        assert re.fullmatch(r"    [\w =\[\],;>-]+", re.sub(string, "", line)), line


def test_graphviz_accepts_hostile_names() -> None:
    """Graphviz, if installed, draws diagrams without a warning even if the names in them are hostile, for example if
    they contain quotes or control characters.
    """
    if shutil.which("dot") is None:
        skip_or_fail("graphviz is not installed")
    for name in HOSTILE:
        text = "\n".join(dot(wiring(name, "q", name)))
        drawn = subprocess.run(["dot", "-Tplain"], input=text.encode(), capture_output=True, check=True)
        assert drawn.stderr == b""


def test_bindings_between_the_same_exchange_and_queue_are_one_arrow() -> None:
    """A diagram shows nine bindings between the same exchange and queue as one arrow, labelled with four routing keys
    and "5 more".
    """
    node = WiredNode(Exchange("x", "topic"))
    for number in range(9):
        node.add(Binding("x", "q", f"key{number}"), None)
    lines = list(mermaid(Wiring("/", {"x": node})))
    assert lines[-1] == '    exchange0 -->|"key0, key1, key2, key3 and 5 more"| queue1'
