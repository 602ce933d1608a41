"""Topic, headers, direct and fanout matching."""

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.codecs.field_tables import Int32, Int64
from mqtool.routing import DirectTable, FanoutTable, HeadersTable, TopicTable, header_matches

words = st.sampled_from(["a", "b", "", "*", "#", "ü"])
keys = st.lists(words, max_size=6).map(".".join)


def by_regular_expression(pattern: str, key: str) -> bool:
    """True if a topic pattern matches a key by the equivalent regular expression."""
    parts = pattern.split(".") if pattern else []
    given_words = key.split(".") if key else []
    # One word is anything between two marks that no word contains.
    expression = "".join({"#": "(?:[^\0]*\0)*", "*": "[^\0]*\0"}.get(part, re.escape(part) + "\0") for part in parts)
    return re.fullmatch(expression, "".join(word + "\0" for word in given_words)) is not None


@given(patterns=st.lists(keys, max_size=8), key=keys)
def test_topic_patterns_match_as_specified(patterns: list[str], key: str) -> None:
    """A topic exchange routes by its patterns as the equivalent regular expressions would."""
    table: TopicTable[str] = TopicTable()
    for pattern in patterns:
        table.add(pattern, {}, pattern)
    assert set(table.match(key, {})) == {pattern for pattern in patterns if by_regular_expression(pattern, key)}


@given(patterns=st.lists(st.tuples(keys, st.integers(0, 2)), max_size=8), key=keys)
def test_a_removed_pattern_no_longer_matches(patterns: list[tuple[str, int]], key: str) -> None:
    """A topic binding that was removed no longer matches, and a table without bindings keeps no data."""
    table: TopicTable[int] = TopicTable()
    for pattern, item in patterns:
        table.add(pattern, {}, item)
    for index, (pattern, item) in enumerate(patterns):
        table.remove(pattern, {}, item)
        left = {other for more, other in patterns[index + 1 :] if by_regular_expression(more, key)}
        assert set(table.match(key, {})) == left
    assert not table._root.children


def test_a_pattern_with_many_wildcards_matches_quickly() -> None:
    """Matching a topic pattern of 20 wildcards, on which backtracking would take exponential time, takes less than half
    a second.
    """
    table: TopicTable[str] = TopicTable()
    table.add(".".join(["#", "a"] * 20), {}, "q")
    started = time.perf_counter()
    assert not table.match(".".join(["a"] * 19 + ["b"] * 60), {})
    assert table.match(".".join(["a"] * 60), {})
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("table", [DirectTable(), TopicTable()])
def test_routing_stays_fast_with_many_bindings(table: DirectTable[int] | TopicTable[int]) -> None:
    """With 10,000 bindings, a direct or topic exchange finds the matching one in less than half a millisecond on
    average.
    """
    for number in range(10_000):
        table.add(f"a.{number}.c", {}, number)
    started = time.perf_counter()
    for _ in range(1000):
        assert list(table.match("a.7.c", {})) == [7]
    assert time.perf_counter() - started < 0.5


def test_a_fanout_table_returns_each_queue_once() -> None:
    """A fanout exchange routes every message once to a queue that is bound twice, until both bindings are removed."""
    table: FanoutTable[str] = FanoutTable()
    for key in ("", "a"):
        table.add(key, {}, "q")
    assert list(table.match("whatever", {})) == ["q"]
    table.remove("", {}, "q")
    assert list(table.match("whatever", {})) == ["q"]
    table.remove("a", {}, "q")
    assert list(table.match("whatever", {})) == []


def test_headers_match_numbers_by_value_and_lists_by_type() -> None:
    """As in RabbitMQ, a headers binding with an int matches an equal long; within lists, the types must be the same,
    too.
    """
    assert header_matches({"a": Int64(1)}, "a", Int32(1))
    assert not header_matches({"a": True}, "a", Int32(1))
    assert header_matches({"a": [Int32(1)]}, "a", [Int32(1)])
    assert not header_matches({"a": [Int64(1)]}, "a", [Int32(1)])


def test_a_headers_binding_is_removed_by_its_arguments() -> None:
    """A headers binding is removed by its arguments, in any order; removing an unknown binding raises KeyError."""
    table: HeadersTable[str] = HeadersTable()
    table.add("", {"a": 1, "b": 2}, "q")
    table.add("", {"a": 1}, "q")
    table.remove("", {"b": 2, "a": 1}, "q")
    assert list(table.match("", {"a": 1})) == ["q"]
    with pytest.raises(KeyError):
        table.remove("", {"c": 1}, "q")


def test_a_large_topic_table_matches_as_specified() -> None:
    """A topic exchange with 300 random patterns routes as the equivalent regular expressions would."""
    seed = random.Random(3)
    pool = ["a", "b", "c", "*", "#"]
    patterns = {".".join(seed.choices(pool, k=seed.randint(1, 5))) for _ in range(300)}
    table: TopicTable[str] = TopicTable()
    for pattern in patterns:
        table.add(pattern, {}, pattern)
    for _ in range(200):
        key = ".".join(seed.choices(["a", "b", "c", "d"], k=seed.randint(1, 6)))
        assert set(table.match(key, {})) == {each for each in patterns if by_regular_expression(each, key)}


def test_hundreds_of_wildcard_patterns_do_not_block() -> None:
    """Matching 500 routing keys of 120 words against 300 topic patterns of wildcards only takes less than 5 s of CPU
    time.
    """
    some = random.Random(1)
    table: TopicTable[int] = TopicTable()
    for number in range(300):
        table.add(".".join(some.choices("*#", k=some.randint(1, 120))), {}, number)
    key = ".".join("w" * 120)
    started = time.process_time()
    for _ in range(500):
        table.match(key, {})
    assert time.process_time() - started < 5
