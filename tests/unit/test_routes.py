"""Routes by themselves: every way is a way, and nothing is left out."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool import management
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.routes import QueueRoute, Router
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
    """What the specification says, in the most obvious way."""
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
def test_every_way_is_one_and_none_is_missing(
    bound: list[Binding], others: dict[str, str | None], start: str, key: str
) -> None:
    """Each hop starts where the last one ended, by a binding that matches; the obvious search finds the same queues."""
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
def test_a_near_miss_says_which_word_differs(pattern: str, key: str, reason: str) -> None:
    """One word is enough to miss; it is named by its place."""
    [miss] = topic_route(key, pattern).near_misses
    assert miss.reason == reason


def test_the_nearest_comes_first_and_the_far_ones_not_at_all() -> None:
    """A misspelt word is nearer than a different one; what shares nothing nobody meant."""
    route = topic_route("kern.critcal", "kern.info", "kern.critical", "audit.login.eu")
    assert [miss.binding.routing_key for miss in route.near_misses] == ["kern.critical", "kern.info"]


@given(pattern=keys, key=keys)
def test_a_reason_has_as_many_parts_as_words_differ(pattern: str, key: str) -> None:
    """And whatever matches has none."""
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
def test_a_near_miss_says_which_header_differs(arguments: dict[str, Any], headers: dict[str, Any], reason: str) -> None:
    """Missing, or of another value or type."""
    bound = [Binding("h", "q", "", arguments)]
    route = Router(Definitions.of([Exchange("h", "headers")], [Queue("q")], bound)).route("h", "", headers)
    assert [miss.reason for miss in route.near_misses] == [reason]


def test_a_direct_key_that_was_misspelt() -> None:
    """The nearest key is named."""
    bound = [Binding("d", "q", key) for key in ("warning", "error", "info")]
    route = Router(Definitions.of([Exchange("d", "direct")], [Queue("q")], bound)).route("d", "warn")
    assert [miss.reason for miss in route.near_misses] == ["the key is 'warn', not 'warning'"]


def test_a_queue_that_was_misspelt() -> None:
    """To the default exchange, the key is a queue's name."""
    route = Router(Definitions.of([], [Queue("work"), Queue("logs")], [])).route("", "wrok")
    assert [miss.reason for miss in route.near_misses] == ["the key is 'wrok', not 'work'"]


def test_dead_letters_in_a_circle_end() -> None:
    """They are followed once around, and said to be circular."""
    queues = [
        Queue("work", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "wait"}),
        Queue("wait", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work"}),
    ]
    route = Router(Definitions.of([], queues, [])).route("", "work")
    assert [(death.queue, death.queues, death.circular) for death in route.dead_letters] == [
        ("work", ["wait"], True),
        ("wait", ["work"], True),
    ]


def test_what_a_policy_says_arguments_overrule() -> None:
    """Dead-letter exchanges have an `x-` in arguments and none in policies; alternate exchanges have none in either."""
    assert management.with_policy(
        {"x-dead-letter-exchange": "mine"}, {"dead-letter-exchange": "theirs", "alternate-exchange": "rest"}
    ) == {"x-dead-letter-exchange": "mine", "alternate-exchange": "rest"}


def test_a_type_that_only_the_broker_knows() -> None:
    """No queue is claimed, and the exchange is named."""
    bound = [Binding("h", "q", "1")]
    route = Router(Definitions.of([Exchange("h", "x-consistent-hash")], [Queue("q")], bound)).route("h", "k")
    assert (dict(route.queues), route.unknown) == ({}, ["h"])
