"""Which bindings of topic, headers, direct and fanout exchanges match a message."""

import decimal
import random
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.codecs.field_tables import ByteArray, Decimal, Int32, Int64, Timestamp, Value
from mqtool.routing import (
    MAX_DELAY,
    DirectTable,
    FanoutTable,
    HeadersTable,
    TopicTable,
    checked_delay_of,
    delay_of,
    header_matches,
)

words = st.sampled_from(["a", "b", "", "*", "#", "ü"])
keys = st.lists(words, max_size=6).map(".".join)


def by_regular_expression(pattern: str, key: str) -> bool:
    """True if a topic pattern matches a key by the equivalent regular expression."""
    parts = pattern.split(".") if pattern else []
    given_words = key.split(".") if key else []
    # A word is everything between two separators, which no word contains.
    expression = "".join({"#": "(?:[^\0]*\0)*", "*": "[^\0]*\0"}.get(part, re.escape(part) + "\0") for part in parts)
    return re.fullmatch(expression, "".join(word + "\0" for word in given_words)) is not None


@given(patterns=st.lists(keys, max_size=8), key=keys)
def test_topic_patterns_match_the_same_keys_as_regular_expressions(patterns: list[str], key: str) -> None:
    """The binding keys of a topic exchange match the same routing keys as the equivalent regular expressions."""
    table: TopicTable[str] = TopicTable()
    for pattern in patterns:
        table.add(pattern, {}, pattern)
    assert set(table.match(key, {})) == {pattern for pattern in patterns if by_regular_expression(pattern, key)}


@pytest.mark.parametrize("kind", [DirectTable, TopicTable, FanoutTable])
@given(patterns=st.lists(keys, max_size=8), several=st.lists(keys, min_size=1, max_size=4))
def test_a_message_with_several_routing_keys_is_routed_by_each_of_them(
    kind: type[DirectTable[str] | TopicTable[str] | FanoutTable[str]], patterns: list[str], several: list[str]
) -> None:
    """A message with several routing keys (CC, BCC) is routed to every queue to which at least one of these keys alone
    would route it, in direct, topic and fanout exchanges.
    """
    table = kind()
    for pattern in patterns:
        table.add(pattern, {}, pattern)
    assert set(table.match_any(several, {})) == {item for key in several for item in table.match(key, {})}


@given(patterns=st.lists(st.tuples(keys, st.integers(0, 2)), max_size=8), key=keys)
def test_a_topic_binding_that_was_removed_no_longer_matches(patterns: list[tuple[str, int]], key: str) -> None:
    """After a binding of a topic exchange is removed, its binding key no longer matches any message. An exchange
    without bindings keeps no routing data in memory.
    """
    table: TopicTable[int] = TopicTable()
    for pattern, item in patterns:
        table.add(pattern, {}, item)
    for index, (pattern, item) in enumerate(patterns):
        table.remove(pattern, {}, item)
        left = {other for more, other in patterns[index + 1 :] if by_regular_expression(more, key)}
        assert set(table.match(key, {})) == left
    assert not table._root.children


def test_a_topic_pattern_with_many_wildcards_is_matched_without_backtracking() -> None:
    """A topic exchange matches a binding key with 20 wildcards without backtracking. With backtracking, the match would
    take years, and this test would time out.
    """
    table: TopicTable[str] = TopicTable()
    table.add(".".join(["#", "a"] * 20), {}, "q")
    assert not table.match(".".join(["a"] * 19 + ["b"] * 60), {})
    assert table.match(".".join(["a"] * 60), {})


@pytest.mark.parametrize("kind", [DirectTable, TopicTable], ids=["direct", "topic"])
def test_other_bindings_of_an_exchange_do_not_slow_down_routing(kind: type[DirectTable[int] | TopicTable[int]]) -> None:
    """In a direct or topic exchange with 10,000 bindings, finding the one that matches a message takes less than 20
    times as long as in an exchange with one binding.
    """

    def seconds(count: int) -> float:
        table = kind()
        for number in range(count):
            table.add(f"a.{number}.c", {}, number)
        started = time.thread_time()
        for _ in range(1000):
            assert list(table.match("a.0.c", {})) == [0]
        return time.thread_time() - started

    assert min(seconds(10_000) for _ in range(3)) < 20 * min(seconds(1) for _ in range(3))


def test_a_queue_bound_twice_to_a_fanout_exchange_gets_each_message_once() -> None:
    """A queue that is bound twice to a fanout exchange gets each message once. It gets messages until both of its
    bindings are removed.
    """
    table: FanoutTable[str] = FanoutTable()
    for key in ("", "a"):
        table.add(key, {}, "q")
    assert list(table.match("whatever", {})) == ["q"]
    table.remove("", {}, "q")
    assert list(table.match("whatever", {})) == ["q"]
    table.remove("a", {}, "q")
    assert list(table.match("whatever", {})) == []


def test_a_direct_exchange_routes_to_the_queues_bound_with_the_routing_key() -> None:
    """A direct exchange routes a message to each queue that is bound with the message's routing key, until all bindings
    of the queue with this key are removed.
    """
    table: DirectTable[str] = DirectTable()
    for key, queue in (("a", "q1"), ("a", "q2"), ("a", "q2"), ("b", "q3")):
        table.add(key, {}, queue)
    assert (set(table.match("a", {})), set(table.match("b", {}))) == ({"q1", "q2"}, {"q3"})
    assert list(table.match("c", {})) == []
    table.remove("a", {}, "q2")
    assert set(table.match("a", {})) == {"q1", "q2"}
    table.remove("a", {}, "q1")
    assert (list(table.match("a", {})), list(table.match("b", {}))) == (["q2"], ["q3"])
    table.remove("a", {}, "q2")
    assert list(table.match("a", {})) == []
    with pytest.raises(KeyError):
        table.remove("a", {}, "q2")


@pytest.mark.parametrize(
    ("x_match", "headers", "matches"),
    [
        (None, {"a": 1, "b": "two", "c": 3}, True),
        (None, {"a": 1}, False),
        ("all", {"a": 1, "b": "two"}, True),
        ("all", {"a": 1, "b": "three"}, False),
        ("all", {"a": 1, "x-c": 3}, False),
        ("any", {"a": 1}, True),
        ("any", {"b": "two", "a": 2}, True),
        ("any", {"a": 2, "b": "three"}, False),
        ("any", {"x-c": 3}, False),
        ("any", {"x-match": "any"}, False),
        ("any", {}, False),
        ("all-with-x", {"a": 1, "b": "two", "x-c": 3}, True),
        ("all-with-x", {"a": 1, "b": "two"}, False),
        ("any-with-x", {"x-c": 3}, True),
        ("any-with-x", {"x-c": 4}, False),
        ("any-with-x", {"x-match": "any-with-x"}, False),
        ("ALL-WITH-X", {"a": 1, "b": "two"}, True),
    ],
    ids=repr,
)
def test_x_match_decides_which_headers_a_binding_requires(
    x_match: str | None, headers: dict[str, Value], matches: bool
) -> None:
    """With x-match `all`, which is the default, a headers binding requires all headers in its arguments. With `any`, it
    requires at least one of them. Arguments whose names begin with `x-` are ignored, unless the value of x-match ends
    with `-with-x`.
    """
    table: HeadersTable[str] = HeadersTable()
    arguments: dict[str, Value] = {"a": 1, "b": "two", "x-c": 3}
    table.add("", arguments if x_match is None else {**arguments, "x-match": x_match}, "q")
    assert list(table.match("", headers)) == ["q"] * matches


@pytest.mark.parametrize("x_match", ["all", "any"])
def test_a_headers_binding_whose_argument_has_no_value_matches_any_value(x_match: str) -> None:
    """If an argument of a headers binding has no value, the binding matches each message that has this header, with any
    value.
    """
    table: HeadersTable[str] = HeadersTable()
    table.add("", {"a": None, "x-match": x_match}, "q")
    assert list(table.match("", {"a": "anything"})) == ["q"]
    assert list(table.match("", {"a": None})) == ["q"]
    assert list(table.match("", {"b": "anything"})) == []


def test_x_match_all_requires_headers_with_and_without_a_value() -> None:
    """With x-match `all`, a headers binding can require one header with any value and another header with a certain
    value. A message must have both to match.
    """
    table: HeadersTable[str] = HeadersTable()
    table.add("", {"a": None, "b": 1}, "q")
    assert list(table.match("", {"a": "anything", "b": 1, "c": 2})) == ["q"]
    assert list(table.match("", {"a": "anything", "b": 2})) == []
    assert list(table.match("", {"b": 1})) == []


@pytest.mark.parametrize(
    ("value", "wanted", "until_3_13", "since_4_0"),
    [
        (Int32(1), Int64(1), True, True),
        (1, 1.0, True, False),
        (1.5, 1.5, True, True),
        (Timestamp(1), 1, True, False),
        (Timestamp(1), Timestamp(1), True, True),
        (Timestamp(1), 1.0, True, False),
        (1, 2, False, False),
        (1, True, False, False),
        (None, False, False, False),
        ("é", "é".encode(), True, True),
        ("\udc80", b"\xed\xb2\x80", True, True),
        ("a", "a", True, True),
        ("a", "b", False, False),
        (b"a", "a", True, True),
        (b"a", b"b", False, False),
        ("1", 1, False, False),
        ({"b": Int32(1)}, {"b": Int32(1)}, True, True),
        ({"b": Int32(1)}, {"b": Int64(1)}, False, False),
        ("anything", None, True, True),
    ],
)
def test_header_values_are_compared_as_in_rabbitmq(
    value: Value, wanted: Value, until_3_13: bool, since_4_0: bool
) -> None:
    """As in RabbitMQ, a headers binding compares strings by their UTF-8 bytes. By default, it compares integers, floats
    and timestamps by their numeric values, as RabbitMQ up to 3.13 does. With the option strict_numbers, an integer
    matches only integers, a float only floats, and a timestamp only timestamps, as in RabbitMQ 4.0 and later.
    """
    assert header_matches({"a": value}, "a", wanted) == until_3_13
    assert not header_matches({"b": value}, "a", wanted)
    for strict, matches in ((False, until_3_13), (True, since_4_0)):
        assert header_matches({"a": value}, "a", wanted, strict_numbers=strict) == matches
        table: HeadersTable[str] = HeadersTable()
        table.add("", {"a": wanted}, "q")
        table.strict_numbers = strict
        assert list(table.match("", {"a": value})) == ["q"] * matches


def test_existing_headers_bindings_follow_a_change_to_strict_numbers() -> None:
    """HeadersTable.strict_numbers makes a headers exchange compare numbers as RabbitMQ 4.0 and later do. This also
    applies to bindings that existed before strict_numbers was set: an integer in such a binding no longer matches a
    float of the same value.
    """
    table: HeadersTable[str] = HeadersTable()
    table.add("", {"a": 1}, "q")
    assert list(table.match("", {"a": 1.0})) == ["q"]
    table.strict_numbers = True
    assert list(table.match("", {"a": 1.0})) == []
    assert list(table.match("", {"a": 1})) == ["q"]


def test_a_queue_stays_bound_until_each_headers_binding_is_removed() -> None:
    """If a queue is bound twice to a headers exchange with the same arguments, it still gets messages after one of the
    bindings is removed, and gets none once both are removed.
    """
    table: HeadersTable[str] = HeadersTable()
    for queue in ("q", "q", "other"):
        table.add("", {"a": 1}, queue)
    table.remove("", {"a": 1}, "q")
    assert set(table.match("", {"a": 1})) == {"q", "other"}
    table.remove("", {"a": 1}, "q")
    assert list(table.match("", {"a": 1})) == ["other"]
    table.remove("", {"a": 1}, "other")
    assert list(table.match("", {"a": 1})) == []
    with pytest.raises(KeyError):
        table.remove("", {"a": 1}, "other")


@pytest.mark.parametrize(
    ("value", "delay"),
    [
        (1, 1),
        (Int64(1500), 1500),
        (MAX_DELAY, MAX_DELAY),
        (MAX_DELAY + 1, 0),
        (0, 0),
        (-5, 0),
        (2.9, 2),
        (0.5, 0),
        ("250", 250),
        ("+250", 250),
        ("-250", 0),
        ("9" * 5000, 0),
        (None, 0),
        (True, 0),
        ([1], 0),
        (Timestamp(5), 0),
    ],
)
def test_x_delay_is_a_number_of_milliseconds(value: Value, delay: int) -> None:
    """The header x-delay is a number of milliseconds, or a string that contains an integer. Fractions of a millisecond
    are dropped. A message is not delayed if the number is negative or larger than the delayed message plugin allows, or
    if the value is of a type that the plugin ignores, such as a boolean, a list or a timestamp.
    """
    assert delay_of(value) == delay


@pytest.mark.parametrize(
    "value",
    ["", "1.5", "1s", "soon", b"5", b"\xff", Decimal(1, 5), decimal.Decimal("100.5"), float("inf"), float("nan")],
)
def test_an_x_delay_that_the_plugin_cannot_read_raises_value_error(value: Any) -> None:
    """delay_of() returns the delay that a message's header x-delay requests. If the value is a decimal, bytes, an
    infinite float, NaN, or text that is not a whole number, the delayed message plugin cannot read it. delay_of() then
    raises a ValueError that contains the value.
    """
    with pytest.raises(ValueError, match="x-delay is not a number of milliseconds: ") as caught:
        delay_of(value)
    assert str(caught.value).endswith(repr(value))


@pytest.mark.parametrize(
    "value", [MAX_DELAY + 1, 1e300, "9" * 20, True, [5], {"a": 1}, ByteArray(b"500"), Timestamp(5)]
)
def test_checked_delay_of_refuses_an_x_delay_that_the_plugin_ignores(value: Any) -> None:
    """The delayed message plugin ignores an x-delay that is too large or of an unsuitable type. For such an x-delay,
    delay_of() returns 0, but checked_delay_of() raises a ValueError that contains the value, so that `delayed relay`
    can warn of it. If there is no x-delay, or one below 1, checked_delay_of() returns 0, too.
    """
    assert delay_of(value) == 0
    with pytest.raises(ValueError, match="x-delay is not a number of milliseconds up to 4294967295: ") as caught:
        checked_delay_of(value)
    assert str(caught.value).endswith(repr(value))
    assert [checked_delay_of(each) for each in (None, 0, -5, 0.5, "-250", MAX_DELAY)] == [0] * 5 + [MAX_DELAY]


def test_headers_match_numbers_by_value_and_lists_by_type() -> None:
    """As in RabbitMQ, a 32-bit integer in a headers binding matches a 64-bit integer with the same value. If the
    integers are items of lists, they do not match.
    """
    assert header_matches({"a": Int64(1)}, "a", Int32(1))
    assert not header_matches({"a": True}, "a", Int32(1))
    assert header_matches({"a": [Int32(1)]}, "a", [Int32(1)])
    assert not header_matches({"a": [Int64(1)]}, "a", [Int32(1)])


def test_a_headers_binding_is_removed_by_its_arguments() -> None:
    """A headers exchange finds the binding to remove by its arguments, which may be in any order. If no binding has
    these arguments, HeadersTable.remove() raises KeyError.
    """
    table: HeadersTable[str] = HeadersTable()
    table.add("", {"a": 1, "b": 2}, "q")
    table.add("", {"a": 1}, "q")
    table.remove("", {"b": 2, "a": 1}, "q")
    assert list(table.match("", {"a": 1})) == ["q"]
    with pytest.raises(KeyError):
        table.remove("", {"c": 1}, "q")


def test_300_topic_patterns_match_the_same_keys_as_regular_expressions() -> None:
    """The binding keys of a topic exchange with 300 random bindings match the same routing keys as the equivalent
    regular expressions.
    """
    seed = random.Random(3)
    pool = ["a", "b", "c", "*", "#"]
    patterns = {".".join(seed.choices(pool, k=seed.randint(1, 5))) for _ in range(300)}
    table: TopicTable[str] = TopicTable()
    for pattern in patterns:
        table.add(pattern, {}, pattern)
    for _ in range(200):
        key = ".".join(seed.choices(["a", "b", "c", "d"], k=seed.randint(1, 6)))
        assert set(table.match(key, {})) == {each for each in patterns if by_regular_expression(each, key)}


def test_300_topic_patterns_of_wildcards_are_matched_quickly() -> None:
    """In a topic exchange with 300 binding keys that consist only of wildcards, matching 500 routing keys of 120 words
    takes less than 5 s of CPU time.
    """
    some = random.Random(1)
    table: TopicTable[int] = TopicTable()
    for number in range(300):
        table.add(".".join(some.choices("*#", k=some.randint(1, 120))), {}, number)
    key = ".".join("w" * 120)
    started = time.thread_time()
    for _ in range(500):
        table.match(key, {})
    assert time.thread_time() - started < 5
