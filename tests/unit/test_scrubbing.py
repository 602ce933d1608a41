"""scrub: nothing that is not kept survives, and what comes out has the shape of what went in."""

import json
import re
import uuid
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mqtool import ndjson
from mqtool.errors import BadData, UsageError
from mqtool.message import Message
from mqtool.recordings.pseudonyms import Pseudonyms
from mqtool.recordings.scrubbing import Scrubber, parse_fields

PSEUDONYMS = Pseudonyms(b"a seed")
words = st.text(st.characters(codec="utf-8", categories=("L", "Nd")), min_size=1, max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def scrubbed(line: dict[str, Any], keep: str = "", only: str = "", seed: bytes = b"a seed") -> dict[str, Any]:
    scrubber = Scrubber(Pseudonyms(seed), parse_fields([keep]), parse_fields([only]))
    result: dict[str, Any] = json.loads(scrubber.line(json.dumps(line).encode(), "line 1"))
    return result


def same_shape(before: str, after: str) -> bool:
    """Letters for letters in their case, digits for digits, everything else as it was, in as many octets."""
    kinds = [(str.isupper, "A"), (str.islower, "a"), (str.isdecimal, "0")]
    shapes = [
        "".join(next((kind for is_kind, kind in kinds if each.isascii() and is_kind(each)), "" if not each.isascii()
                     else each) for each in text)
        for text in (before, after)
    ]  # fmt: skip
    return shapes[0] == shapes[1] and len(before.encode()) == len(after.encode()) and len(before) == len(after)


@given(st.lists(words, min_size=1, max_size=4))
def test_a_word_becomes_another_of_its_shape(parts: list[str]) -> None:
    """Always the same one; none stays, and no two become the same."""
    text = "-_.@ "[len(parts)].join(parts)
    after = PSEUDONYMS.text(text)
    assert same_shape(text, after)
    assert PSEUDONYMS.text(text) == after
    for word in parts:
        assert PSEUDONYMS.text(word) != word


@pytest.mark.parametrize("alphabet", ["0123456789", "abcdefghijklmnopqrstuvwxyz", "äöüßéèñ"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_no_two_become_the_same(alphabet: str, length: int) -> None:
    """A permutation, of short words as well, where a hash would have them collide."""
    every = [""]
    for _ in range(length):
        every = [word + letter for word in every for letter in alphabet]
    every = every[:2000]
    after = [PSEUDONYMS.text(word) for word in every]
    assert len(set(after)) == len(every)
    assert all(one != other for one, other in zip(every, after, strict=True))


@given(st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_stays_a_number_of_as_many_digits(number: float) -> None:
    """Also as text; and one that fits into 64 bits still does."""
    text = json.dumps(number)
    after = PSEUDONYMS.number(text)
    assert type(json.loads(after)) is type(number)
    assert re.sub("[0-9]", "0", after.partition("e")[0]) == re.sub("[0-9]", "0", text.partition("e")[0])
    if isinstance(number, int):
        assert after == PSEUDONYMS.text(text)
        assert -(2**63) <= int(after) < 2**64


@given(st.uuids(version=4))
def test_a_uuid_stays_one(given: uuid.UUID) -> None:
    """Of its version."""
    after = uuid.UUID(PSEUDONYMS.text(f"id={given};")[3:-1])
    assert (after.version, after.variant) == (given.version, given.variant)
    assert after != given


@given(st.datetimes(datetime(1900, 1, 1), datetime(2099, 12, 31)))
def test_a_time_stays_one(moment: datetime) -> None:
    """Another, in the same notation."""
    for text in (moment.isoformat(), moment.isoformat(" ", "minutes"), f"{moment.isoformat()}+02:00"):
        after = PSEUDONYMS.text(text)
        assert datetime.fromisoformat(after) != datetime.fromisoformat(text)
        assert len(after) == len(text)
        assert after[19:].partition("+")[2] == text[19:].partition("+")[2]
    assert date.fromisoformat(PSEUDONYMS.text(str(moment.date()))) != moment.date()


@given(st.binary(max_size=60).filter(lambda data: data))
def test_octets_stay_as_many(data: bytes) -> None:
    """And do not become text."""
    line = ndjson.to_object(ndjson.from_message(Message(data)), "")
    after = ndjson.message_of(scrubbed(line), "")
    assert len(after.body) == len(data)
    assert ("body" in line) or after.body != data


def strings(value: Any) -> list[str]:
    """The texts and the numbers in a value, but for keys."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def shape(value: Any) -> Any:
    """Keys, lists, and the types in them."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return value if isinstance(value, bool) else type(value)


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=5), values, max_size=4), values, words)
def test_nothing_survives_and_the_line_can_be_sent(headers: dict[str, Any], body: Any, key: str) -> None:
    """Of headers, ids and bodies, whatever they hold: other values in the same structure, which AMQP can carry."""
    line = {
        "timestamp": "2026-01-31T12:00:00.000Z", "exchange": "logs", "routing_key": key, "queue": "q",
        "redelivered": True, "headers": headers, "properties": {"message_id": key, "priority": 3},
        "body": json.dumps(body),
    }  # fmt: skip
    before = ndjson.to_object(ndjson.from_message(ndjson.message_of(line, "")), "")
    assert ndjson.message_of(scrubbed(before), "").properties["priority"] == 3

    after = scrubbed(line)
    assert {name: after[name] for name in ("timestamp", "exchange", "queue", "redelivered")} == {
        name: line[name] for name in ("timestamp", "exchange", "queue", "redelivered")
    }
    assert shape(json.loads(after["body"])) == shape(body)
    left = " ".join(strings([after["headers"], after["properties"], after["body"], after["routing_key"]]))
    for text in strings([headers, body, key]):
        for word in re.findall(r"[0-9A-Za-z]{8,}", text):
            assert word not in left


def test_equal_stays_equal() -> None:
    """Across fields, lines, runs with the same seed; and differs with another."""
    line = {"exchange": "", "routing_key": "q", "headers": {"user": "alice", "id": 1742}, "body": "alice bought 1742"}
    after = scrubbed(line)
    assert after["body"].split()[0] == after["headers"]["user"]
    assert after["body"].split()[2] == str(after["headers"]["id"])
    assert scrubbed(line) == after
    assert scrubbed(line, seed=b"another") != after


def test_what_is_kept_and_what_is_named() -> None:
    """--keep leaves fields; with --field only those are replaced. The default exchange's keys are queues' names."""
    body = '{"customer": {"email": "ann@example.com", "name": "Ann"}, "items": [{"sku": "AB-1234"}]}'
    death = [{"queue": "jobs", "reason": "rejected", "count": 2, "routing-keys": ["customer.ann"]}]
    line = {
        "exchange": "orders", "routing_key": "order.ann", "queue": "jobs", "body": body,
        "headers": {"type": "order", "x-death": death}, "properties": {"type": "paid", "content_type": "text/plain"},
    }  # fmt: skip
    after = scrubbed(line)
    assert after["headers"]["x-death"][0] == {**death[0], "routing-keys": [PSEUDONYMS.text("customer.ann")]}
    assert (after["exchange"], after["queue"], after["routing_key"]) == ("orders", "jobs", PSEUDONYMS.text("order.ann"))
    assert after["properties"] == {"type": PSEUDONYMS.text("paid"), "content_type": "text/plain"}

    kept = scrubbed(line, keep="routing_key, headers.type,type,body.items")
    assert (kept["routing_key"], kept["headers"]["type"], kept["properties"]["type"]) == ("order.ann", "order", "paid")
    assert json.loads(kept["body"])["items"] == [{"sku": "AB-1234"}]
    assert "ann" not in kept["body"]

    only = scrubbed(line, only="body.customer.email,body.items.sku")
    assert only["body"] == body.replace("ann@example.com", PSEUDONYMS.text("ann@example.com")).replace(
        "AB-1234", PSEUDONYMS.text("AB-1234")
    )
    assert {**only, "body": body} == line
    assert scrubbed({**line, "exchange": ""})["routing_key"] == "order.ann"
    with pytest.raises(UsageError, match="a message has no field 'route_key'"):
        parse_fields(["route_key"])


def test_values_with_types_of_amqp_keep_them() -> None:
    """Octets, decimals, times; what AMQP had encoded becomes octets, since the encoding would be wrong."""
    headers = {
        "raw": {"$bytes": "AAECAw=="}, "price": {"$decimal": "2147483647"}, "when": {"$timestamp": 1767225600},
        "nan": {"$double": "NaN"}, "deep": {"$encoded": "U0dWc2JHOD0="}, "table": {"$table": {"$bytes": "text"}},
    }  # fmt: skip
    for seed in range(20):
        after = ndjson.message_of(scrubbed({"exchange": "e", "headers": headers, "body": ""}, seed=bytes([seed])), "")
        assert isinstance(after.properties["headers"]["deep"], bytes)
        assert int(after.properties["headers"]["price"]) < 2**31
        assert set(after.properties["headers"]) == set(headers)


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"body": \xff}', b'{"body_base64": "?"}'])
def test_a_bad_line_is_bad_data(bad: bytes) -> None:
    """And not a traceback."""
    with pytest.raises(BadData):
        Scrubber(PSEUDONYMS).line(bad, "line 1")


def test_headers_that_repeat_x_death_are_replaced() -> None:
    """A publisher can write anything into x-first-death-queue and the like, so scrub keeps none of them."""
    headers = {f"x-{which}-death-{what}": "Secret1" for which in ("first", "last") for what in ("queue", "reason")}
    line = scrubbed({"version": 1, "body": "", "headers": headers})
    assert "Secret1" not in json.dumps(line)
    assert line["headers"].keys() == headers.keys()
