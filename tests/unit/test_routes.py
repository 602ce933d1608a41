"""`route` without a broker: it shows only paths that exist, and all of them."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool import management
from mqtool.cli.display.layout import plain
from mqtool.cli.display.topology_text import explained_route, tree
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.routes import QueueRoute, Router
from mqtool.inspection.wiring import QueueState, WiredConsumer, WiredNode, Wiring
from mqtool.topology import Binding, Exchange, Queue

words = st.sampled_from(["a", "b", "c", "*", "#", ""])
keys = st.lists(words, max_size=4).map(".".join)
exchanges = st.sampled_from(["t1", "t2", "t3", "f"])
queues = st.sampled_from(["q1", "q2", "q3"])
bindings = st.builds(Binding, exchanges, queues, keys) | st.builds(
    lambda source, destination, key: Binding(source, destination, key, to_exchange=True), exchanges, exchanges, keys
)
alternates = st.fixed_dictionaries({name: st.none() | exchanges for name in ("t1", "t2", "t3", "f")})


def matches(definitions: Definitions, binding: Binding, key: str) -> bool:
    """True if a binding matches a key by the plainest implementation of the specification."""
    if definitions.exchanges[binding.source].type == "fanout":
        return True
    parts = binding.routing_key.split(".") if binding.routing_key else []
    expression = "".join({"#": "(?:[^\0]*\0)*", "*": "[^\0]*\0"}.get(part, re.escape(part) + "\0") for part in parts)
    return re.fullmatch(expression, "".join(word + "\0" for word in (key.split(".") if key else []))) is not None


def maze(bound: list[Binding], others: dict[str, str | None]) -> Definitions:
    return Definitions.of(
        [
            Exchange(
                name, "fanout" if name == "f" else "topic", arguments={"alternate-exchange": other} if other else {}
            )
            for name, other in others.items()
        ],
        [Queue(name) for name in ("q1", "q2", "q3")],
        bound,
    )


@given(bound=st.lists(bindings, max_size=12), others=alternates, start=exchanges, key=keys)
def test_route_finds_the_same_queues_as_an_exhaustive_search(
    bound: list[Binding], others: dict[str, str | None], start: str, key: str
) -> None:
    """Whatever the bindings and alternate exchanges, `route` finds the same queues as an exhaustive search. Each step
    of a path that it shows follows a matching binding or leads to an alternate exchange.
    """
    definitions = maze(bound, others)
    route = Router(definitions).route(start, key, near_misses=100)
    for queue, ways in route.queues.items():
        for way in ways:
            places = [start, *(hop.destination for hop in way)]
            assert [hop.source for hop in way] == places[:-1]
            assert places[-1] == queue
            assert all(matches(definitions, hop.binding, key) for hop in way if hop.binding)
    seen, reached, todo = set(), set(), [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        taken = [binding for binding in bound if binding.source == name and matches(definitions, binding, key)]
        for binding in taken:
            (todo.append if binding.to_exchange else reached.add)(binding.destination)
        alternate = others[name]
        if not taken and alternate:
            todo.append(alternate)
    assert set(route.queues) == reached
    assert all(not matches(definitions, miss.binding, key) and miss.reason for miss in route.near_misses)


def topic_route(key: str, *patterns: str) -> QueueRoute:
    bound = [Binding("t", pattern, pattern) for pattern in patterns]
    return Router(Definitions.of([Exchange("t", "topic")], [Queue(name) for name in patterns], bound)).route("t", key)


@pytest.mark.parametrize(
    ("pattern", "key", "reason"),
    [
        ("*.critical", "kern.info", "word 2 is 'info', not 'critical'"),
        ("kern.critical", "kren.critical", "word 1 is 'kren', not 'kern'"),
        ("a.*.c", "a.b.b", "word 3 is 'b', not 'c'"),
        ("a.*", "a", "a word for '*' is missing after word 1"),
        ("a.*", "a.b.c", "word 3, 'c', is one too many"),
        ("#.critical", "app.db.crit", "word 3 is 'crit', not 'critical'"),
        ("a.#.c", "a.x.y.z", "word 4 is 'z', not 'c'"),
        ("Error", "error", "word 1 is 'error', not 'Error'"),
    ],
)
def test_route_says_which_word_of_a_nearly_matching_binding_differs(pattern: str, key: str, reason: str) -> None:
    """If a binding of a topic exchange nearly matches a routing key, `route` says which word of the routing key
    differs from the binding key, is missing, or is one too many.
    """
    [miss] = topic_route(key, pattern).near_misses
    assert miss.reason == reason


def test_route_sorts_nearly_matching_bindings_by_similarity() -> None:
    """If a word of a routing key is misspelt, `route` lists the binding with the correct word before a binding with a
    different word. It does not list bindings that share no word with the routing key.
    """
    route = topic_route("kern.critcal", "kern.info", "kern.critical", "audit.login.eu")
    assert [miss.binding.routing_key for miss in route.near_misses] == ["kern.critical", "kern.info"]


@given(pattern=keys, key=keys)
def test_route_says_why_each_nearly_matching_binding_does_not_match(pattern: str, key: str) -> None:
    """For each binding that nearly matches a routing key, `route` says why the binding does not match."""
    route = topic_route(key, pattern)
    assert bool(route.queues) or all(miss.reason for miss in route.near_misses)


@pytest.mark.parametrize(
    ("arguments", "headers", "reason"),
    [
        ({"format": "pdf", "type": "log"}, {"format": "pdf"}, "header 'type' is missing"),
        ({"n": 1}, {"n": "1"}, "header 'n' is \"1\", not 1"),
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 3}, "none fits: header 'a' is 3, not 1, header 'b' is missing"),
    ],
)
def test_route_says_which_header_does_not_match_a_binding(
    arguments: dict[str, Any], headers: dict[str, Any], reason: str
) -> None:
    """If a binding of a headers exchange does not match a message, `route` names each header that is missing or has
    another value or type.
    """
    bound = [Binding("h", "q", "", arguments)]
    route = Router(Definitions.of([Exchange("h", "headers")], [Queue("q")], bound)).route("h", "", headers)
    assert [miss.reason for miss in route.near_misses] == [reason]


def test_route_names_the_most_similar_binding_key_of_a_direct_exchange() -> None:
    """If a routing key matches no binding of a direct exchange, `route` names the most similar binding key."""
    bound = [Binding("d", "q", key) for key in ("warning", "error", "info")]
    route = Router(Definitions.of([Exchange("d", "direct")], [Queue("q")], bound)).route("d", "warn")
    assert [miss.reason for miss in route.near_misses] == ["the key is 'warn', not 'warning'"]


def test_route_names_the_queue_most_similar_to_a_misspelt_one() -> None:
    """If the routing key of a message to the default exchange names a queue that does not exist, `route` names the
    queue with the most similar name.
    """
    route = Router(Definitions.of([], [Queue("work"), Queue("logs")], [])).route("", "wrok")
    assert [miss.reason for miss in route.near_misses] == ["the key is 'wrok', not 'work'"]


def test_a_cycle_of_dead_letter_queues_is_followed_once() -> None:
    """If two queues dead-letter to each other, `route` follows the cycle once, and marks both queues as circular."""
    queues = [
        Queue("work", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "wait"}),
        Queue("wait", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work"}),
    ]
    route = Router(Definitions.of([], queues, [])).route("", "work")
    assert [(death.queue, death.queues, death.circular) for death in route.dead_letters] == [
        ("work", ["wait"], True),
        ("wait", ["work"], True),
    ]


def test_arguments_override_policies_in_routes() -> None:
    """For `route`, an argument of a queue or an exchange overrides the same key of a policy. The policy's other keys
    apply.
    """
    assert management.with_policy(
        {"x-dead-letter-exchange": "mine"}, {"dead-letter-exchange": "theirs", "alternate-exchange": "rest"}
    ) == {"x-dead-letter-exchange": "mine", "alternate-exchange": "rest"}


@pytest.mark.parametrize(
    ("kind", "headline", "explanation"),
    [
        *(
            (kind, "unknown", f"  e is of type {kind}, so only the broker knows the route; it has 2 bindings:")
            for kind in ("x-jms-topic", "x-federation-upstream", "x-other")
        ),
        *(
            (kind, "one of 2 queues", f"  e chooses one of its queues {how}")
            for kind, how in {
                "x-local-random": "at random, among those on the node of the publisher",
                "x-random": "at random",
                "x-modulus-hash": "by a hash of the routing key",
                "x-consistent-hash": "by a hash, in proportion to the binding keys",
            }.items()
        ),
        ("x-recent-history", "2 queues", "  two  e ── '' ──> two"),
        ("fanout", "2 queues", "  two  e ── '' ──> two"),
        ("direct", "no queue", "  the broker drops the message, or returns it if it is mandatory"),
    ],
)
def test_route_says_which_queues_get_a_message_for_each_exchange_type(
    kind: str, headline: str, explanation: str
) -> None:
    """`route` does not say "no queue" if only the broker can know the queues, but lists the bindings. An
    x-recent-history exchange delivers to all bound queues, and an exchange that divides messages to one of them.
    """
    known = Definitions.of(
        [Exchange("e", kind)], [Queue("one"), Queue("two")], [Binding("e", name) for name in ("one", "two")]
    )
    lines = [plain(line) for line in explained_route(Router(known).route("e", "k"), known)]
    assert lines[0] == f"e  'k': {headline}"
    assert explanation in lines
    if headline == "unknown":
        assert lines[2:] == ["    e ── '' ──> one", "    e ── '' ──> two"]


def test_route_does_not_call_dead_letters_lost_if_only_the_broker_knows_their_queues() -> None:
    """If a queue dead-letters to an exchange of a type that only the broker can route, `route` says so."""
    dying = Queue("q", arguments={"x-dead-letter-exchange": "e"})
    known = Definitions.of([Exchange("e", "x-jms-topic")], [dying, Queue("one")], [Binding("e", "one")])
    lines = [plain(line) for line in explained_route(Router(known).route("", "q"), known)]
    assert lines[-1] == "  q ──> e  'q' ──> unknown queues of e"


def test_topology_shows_the_connection_of_a_consumer_without_a_channel() -> None:
    """MQTT and stream consumers have no channel on RabbitMQ 4.3. `topology` shows their connection."""
    consumer = WiredConsumer("mqtt", "", "guest", 10, True, "127.0.0.1:50001 -> 127.0.0.1:1883")
    node = WiredNode(Exchange("e", "fanout"))
    node.add(Binding("e", "q"), None)
    wiring = Wiring("/", {"e": node}, {"q": QueueState("q", "classic", 0, 0, {}, 1)}, {"q": [consumer]})
    assert "──> mqtt  127.0.0.1:50001  guest  prefetch 10" in "\n".join(map(plain, tree(wiring)))
