"""Topic and headers matching, by themselves."""

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
    """What the specification says, in the most obvious way: each `#` takes whole words, dots and all."""
    parts = pattern.split(".") if pattern else []
    given_words = key.split(".") if key else []
    # One word is anything between two marks that no word contains.
    expression = "".join({"#": "(?:[^\0]*\0)*", "*": "[^\0]*\0"}.get(part, re.escape(part) + "\0") for part in parts)
    return re.fullmatch(expression, "".join(word + "\0" for word in given_words)) is not None


@given(patterns=st.lists(keys, max_size=8), key=keys)
def test_topic_matches_what_the_specification_says(patterns: list[str], key: str) -> None:
    """With any number of patterns in one table."""
    table: TopicTable[str] = TopicTable()
    for pattern in patterns:
        table.add(pattern, {}, pattern)
    assert set(table.match(key, {})) == {pattern for pattern in patterns if by_regular_expression(pattern, key)}


@given(patterns=st.lists(st.tuples(keys, st.integers(0, 2)), max_size=8), key=keys)
def test_what_is_removed_matches_no_more(patterns: list[tuple[str, int]], key: str) -> None:
    """And what was added twice has to be removed twice; nothing is left behind."""
    table: TopicTable[int] = TopicTable()
    for pattern, item in patterns:
        table.add(pattern, {}, item)
    for index, (pattern, item) in enumerate(patterns):
        table.remove(pattern, {}, item)
        left = {other for more, other in patterns[index + 1 :] if by_regular_expression(more, key)}
        assert set(table.match(key, {})) == left
    assert not table._root.children


def test_many_wildcards_cost_little() -> None:
    """A pattern made to explode does not."""
    table: TopicTable[str] = TopicTable()
    table.add(".".join(["#", "a"] * 20), {}, "q")
    started = time.perf_counter()
    assert not table.match(".".join(["a"] * 19 + ["b"] * 60), {})
    assert table.match(".".join(["a"] * 60), {})
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("table", [DirectTable(), TopicTable()])
def test_the_cost_of_a_match_does_not_grow_with_bindings(table: DirectTable[int] | TopicTable[int]) -> None:
    """Ten thousand of them, and a match looks at a handful."""
    for number in range(10_000):
        table.add(f"a.{number}.c", {}, number)
    started = time.perf_counter()
    for _ in range(1000):
        assert list(table.match("a.7.c", {})) == [7]
    assert time.perf_counter() - started < 0.5


def test_fanout_takes_everything() -> None:
    """Each item once, however often it is bound."""
    table: FanoutTable[str] = FanoutTable()
    for key in ("", "a"):
        table.add(key, {}, "q")
    assert list(table.match("whatever", {})) == ["q"]
    table.remove("", {}, "q")
    assert list(table.match("whatever", {})) == ["q"]
    table.remove("a", {}, "q")
    assert list(table.match("whatever", {})) == []


def test_numbers_match_by_value_and_lists_by_wire_type() -> None:
    """As RabbitMQ has it: an int is a long, but a list of one is not a list of the other."""
    assert header_matches({"a": Int64(1)}, "a", Int32(1))
    assert not header_matches({"a": True}, "a", Int32(1))
    assert header_matches({"a": [Int32(1)]}, "a", [Int32(1)])
    assert not header_matches({"a": [Int64(1)]}, "a", [Int32(1)])


def test_headers_table_tells_arguments_apart() -> None:
    """Whatever their order."""
    table: HeadersTable[str] = HeadersTable()
    table.add("", {"a": 1, "b": 2}, "q")
    table.add("", {"a": 1}, "q")
    table.remove("", {"b": 2, "a": 1}, "q")
    assert list(table.match("", {"a": 1})) == ["q"]
    with pytest.raises(KeyError):
        table.remove("", {"c": 1}, "q")


def test_random_patterns_of_many_bindings_agree() -> None:
    """A large table, against the obvious way."""
    seed = random.Random(3)
    pool = ["a", "b", "c", "*", "#"]
    patterns = {".".join(seed.choices(pool, k=seed.randint(1, 5))) for _ in range(300)}
    table: TopicTable[str] = TopicTable()
    for pattern in patterns:
        table.add(pattern, {}, pattern)
    for _ in range(200):
        key = ".".join(seed.choices(["a", "b", "c", "d"], k=seed.randint(1, 6)))
        assert set(table.match(key, {})) == {each for each in patterns if by_regular_expression(each, key)}


def test_many_patterns_of_wildcards_do_not_block() -> None:
    """As many as one message can meet: 300 patterns, and 500 keys of 120 words in CC."""
    some = random.Random(1)
    table: TopicTable[int] = TopicTable()
    for number in range(300):
        table.add(".".join(some.choices("*#", k=some.randint(1, 120))), {}, number)
    key = ".".join("w" * 120)
    started = time.process_time()
    for _ in range(500):
        table.match(key, {})
    assert time.process_time() - started < 5
