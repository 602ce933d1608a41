"""`scrub` replaces each value that is not to be kept with another one of the same shape."""

import json
import re
import uuid
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool import ndjson
from mqtool.codecs.amqp10_values import Symbol, UuidText
from mqtool.codecs.field_tables import Int8, UInt16
from mqtool.codecs.sections import NumberId
from mqtool.errors import BadData, UsageError
from mqtool.message import Delivery, Message, Undecoded
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
    """True if letters stay letters of the same case, digits stay digits, and everything else is the same."""
    kinds = [(str.isupper, "A"), (str.islower, "a"), (str.isdecimal, "0")]
    shapes = [
        "".join(next((kind for is_kind, kind in kinds if each.isascii() and is_kind(each)), "" if not each.isascii()
                     else each) for each in text)
        for text in (before, after)
    ]  # fmt: skip
    return shapes[0] == shapes[1] and len(before.encode()) == len(after.encode()) and len(before) == len(after)


@given(st.lists(words, min_size=1, max_size=4))
def test_scrub_replaces_a_word_with_another_of_the_same_shape(parts: list[str]) -> None:
    """`scrub` replaces each word with another one that has letters and digits in the same positions. Equal words get
    the same replacement.
    """
    text = "-_.@ "[len(parts)].join(parts)
    after = PSEUDONYMS.text(text)
    assert same_shape(text, after)
    assert PSEUDONYMS.text(text) == after
    for word in parts:
        assert PSEUDONYMS.text(word) != word


@pytest.mark.parametrize("alphabet", ["0123456789", "abcdefghijklmnopqrstuvwxyz", "äöüßéèñ"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_scrub_replaces_different_words_with_different_words(alphabet: str, length: int) -> None:
    """`scrub` replaces different words with different words, even if they are short."""
    every = [""]
    for _ in range(length):
        every = [word + letter for word in every for letter in alphabet]
    every = every[:2000]
    after = [PSEUDONYMS.text(word) for word in every]
    assert len(set(after)) == len(every)
    assert all(one != other for one, other in zip(every, after, strict=True))


@given(st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False))
def test_scrub_replaces_a_number_with_another_of_as_many_digits(number: float) -> None:
    """`scrub` replaces a number with one of the same sign and the same number of digits. The replacement of a 64-bit
    integer also fits into 64 bits.
    """
    text = json.dumps(number)
    after = PSEUDONYMS.number(text)
    assert type(json.loads(after)) is type(number)
    assert re.sub("[0-9]", "0", after.partition("e")[0]) == re.sub("[0-9]", "0", text.partition("e")[0])
    if isinstance(number, int):
        assert after == PSEUDONYMS.text(text)
        assert -(2**63) <= int(after) < 2**64


@given(st.uuids(version=4))
def test_scrub_replaces_a_uuid_with_a_uuid(given: uuid.UUID) -> None:
    """`scrub` replaces a UUID with another UUID of the same version."""
    after = uuid.UUID(PSEUDONYMS.text(f"id={given};")[3:-1])
    assert (after.version, after.variant) == (given.version, given.variant)
    assert after != given


@given(st.datetimes(datetime(1900, 1, 1), datetime(2099, 12, 31)))
def test_scrub_replaces_a_time_with_another_in_the_same_notation(moment: datetime) -> None:
    """`scrub` replaces a time with another valid time that has the same time zone and the same length."""
    for text in (moment.isoformat(), moment.isoformat(" ", "minutes"), f"{moment.isoformat()}+02:00"):
        after = PSEUDONYMS.text(text)
        assert datetime.fromisoformat(after) != datetime.fromisoformat(text)
        assert len(after) == len(text)
        assert after[19:].partition("+")[2] == text[19:].partition("+")[2]
    assert date.fromisoformat(PSEUDONYMS.text(str(moment.date()))) != moment.date()


@given(st.binary(max_size=60).filter(lambda data: data))
def test_scrub_replaces_bytes_with_as_many_bytes(data: bytes) -> None:
    """`scrub` replaces a body that is not text with other bytes, and keeps its size."""
    line = ndjson.to_object(ndjson.from_message(Message(data)), "")
    after = ndjson.message_of(scrubbed(line), "")
    assert len(after.body) == len(data)
    assert ("body" in line) or after.body != data


def strings(value: Any) -> list[str]:
    """Return the texts and numbers in a value, except keys."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def shape(value: Any) -> Any:
    """Return a value's keys, lists and types."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return value if isinstance(value, bool) else type(value)


@given(st.dictionaries(st.text(max_size=5), values, max_size=4), values, words)
def test_no_original_word_of_8_or_more_characters_is_left_after_scrubbing(
    headers: dict[str, Any], body: Any, key: str
) -> None:
    """After `scrub`, a message contains no word of 8 or more letters and digits from its original headers, ids, routing
    key or body. Its structure, types, timestamp, exchange and queue are unchanged.
    """
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


def test_scrub_replaces_equal_values_with_equal_values() -> None:
    """`scrub` replaces equal values with equal values, whichever fields of a message contain them. With the same seed,
    a later run replaces them with the same values again.
    """
    line = {"exchange": "", "routing_key": "q", "headers": {"user": "alice", "id": 1742}, "body": "alice bought 1742"}
    after = scrubbed(line)
    assert after["body"].split()[0] == after["headers"]["user"]
    assert after["body"].split()[2] == str(after["headers"]["id"])
    assert scrubbed(line) == after
    assert scrubbed(line, seed=b"another") != after


def test_keep_and_field_determine_which_fields_scrub_replaces() -> None:
    """By default, `scrub` does not replace the names of exchanges and queues. It therefore also keeps the routing key
    of a message to the default exchange, because this routing key is the name of a queue. With `--keep`, `scrub` also
    leaves the named fields unchanged. With `--field`, it replaces only the named fields.
    """
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


@pytest.mark.parametrize(
    "body",
    [
        '{"email": "s3cret", "total": NaN}',
        '\ufeff{"email": "s3cret"}',
        '{"email": "s3cret"}\n{"email": "s3cret"}',
        '{"email": "s3cret",}',
        '{"email": "s3cret", "total": ' + "9" * 4_400 + "}",
        '{"email": "s3cret\t"}',
        '"{\\"email\\": \\"s3cret"',
        '["s3cret"]',
        "email s3cret",
        b'{"email": "s3cret \xe4"}',
    ],
    ids=["NaN", "byte order mark", "two documents", "comma", "digits", "tab", "in text", "list", "text", "Latin-1"],
)
def test_scrub_replaces_a_whole_body_in_which_it_cannot_look_for_a_field(body: str | bytes) -> None:
    """`scrub --field body.email` cannot look for the field in a body that is not valid JSON, or that is a string or a
    list of strings instead of an object. It then replaces all of the body's text, and reports in how many messages it
    did so. With `--keep body`, it keeps the body.
    """
    line = ndjson.from_message(Message(body.encode() if isinstance(body, str) else body))
    scrubber = Scrubber(PSEUDONYMS, only=["body.email"])
    after = ndjson.to_message(scrubber.line(line, "line 1"), "")
    assert b"s3cret" not in after.body
    assert (scrubber.unsearched, scrubber.unseen) == (1, {"body.email"})
    kept = Scrubber(PSEUDONYMS, keep=["body"], only=["body.email"])
    assert (kept.line(line, "line 1"), kept.unsearched) == (line, 0)


@pytest.mark.parametrize("body", ["", "17", "null", "{}", '{"name": "s3cret", "items": ["s3cret"]}'])
def test_scrub_keeps_a_body_that_does_not_contain_the_field(body: str) -> None:
    """If a body is empty, or is valid JSON without the named field, `scrub --field body.email` does not change it, and
    reports that it has found no value of the field.
    """
    line = ndjson.from_message(Message(body.encode()))
    scrubber = Scrubber(PSEUDONYMS, only=["body.email"])
    assert scrubber.line(line, "line 1") == line
    assert (scrubber.unsearched, scrubber.unseen) == (0, {"body.email"})


@pytest.mark.parametrize("value", ['{"email": "s3cret"}', ["s3cret"], b"\xff s3cret", Undecoded(b"A s3cret")])
def test_scrub_replaces_a_whole_header_in_which_it_cannot_look_for_a_field(value: Any) -> None:
    """If the header `user` is a string, bytes or a list instead of a table, `scrub --field headers.user.email`
    replaces the whole header, and reports in how many messages it did so. It still reports that it has found no value
    of the field.
    """
    line = ndjson.from_message(Message(b"s3cret", properties={"headers": {"user": value, "other": "s3cret"}}))
    scrubber = Scrubber(PSEUDONYMS, only=["headers.user.email"])
    after = ndjson.to_message(scrubber.line(line, "line 1"), "")
    assert b"s3cret" not in ndjson.as_json(after.properties["headers"]["user"]).encode()
    assert (after.body, after.properties["headers"]["other"]) == (b"s3cret", "s3cret")
    assert (scrubber.unsearched, scrubber.unseen) == (1, {"headers.user.email"})


@pytest.mark.parametrize("mark", ["$bytes", "$encoded"])
@pytest.mark.parametrize("only", ["", "headers", "headers.t.email"])
def test_scrub_replaces_text_under_a_key_that_usually_marks_bytes(mark: str, only: str) -> None:
    """In mqtool's NDJSON, an object with only the key $bytes stands for bytes. If a table in a header has the key
    $bytes beside other keys, the value of this key is ordinary text, and `scrub` replaces it, with and without
    `--field`.
    """
    after = scrubbed({"headers": {"t": {mark: "hello!", "email": "alice"}}, "body": "x"}, only=only)["headers"]["t"]
    assert [*after.values()] == [PSEUDONYMS.text("hello!"), PSEUDONYMS.text("alice")]


@pytest.mark.parametrize("name", ["$bytes", "$encoded", "$table"])
def test_scrub_treats_a_header_with_the_name_of_an_ndjson_type_key_like_any_other(name: str) -> None:
    """In mqtool's NDJSON, keys such as $bytes mark AMQP types, but a header can have the name $bytes, too. `scrub`
    replaces the text of this header and keeps its name. If `--field` names only other headers, `scrub` does not
    change this header.
    """
    line = {"headers": {name: "hello!", "user": "alice"}, "body": "x"}
    hidden = {"user": PSEUDONYMS.text("alice")}
    assert scrubbed(line, only="headers")["headers"] == {name: PSEUDONYMS.text("hello!"), **hidden}
    assert scrubbed(line, only="headers.user")["headers"] == {name: "hello!", **hidden}
    assert scrubbed(line, only=f"headers.{name}")["headers"] == {name: PSEUDONYMS.text("hello!"), "user": "alice"}


@pytest.mark.parametrize("name", ["headers.user.email", "properties.headers.user", "headers.user.$table.email"])
def test_scrub_finds_a_field_whether_or_not_its_name_contains_the_ndjson_key_for_tables(name: str) -> None:
    """mqtool's NDJSON writes some tables in headers under the key `$table`. `scrub` finds a field in one of these
    tables whether or not the name in `--field` contains `$table`. The name can also begin with `properties.`, as in
    `properties.headers.user`.
    """
    line = {"headers": {"user": {"$table": {"email": "alice"}}, "other": {"$table": {"$bytes": "hello!"}}}, "body": ""}
    after = scrubbed(line, only=name)
    assert after["headers"] == {**line["headers"], "user": {"$table": {"email": PSEUDONYMS.text("alice")}}}
    assert scrubbed(line, keep=name)["headers"]["user"] == line["headers"]["user"]


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("routing_key", {"exchange": "", "routing_key": "jobs"}),
        ("expiration", {"properties": {"expiration": "60000"}}),
        ("priority", {"properties": {"priority": 3}}),
        ("content_encoding", {"properties": {"content_encoding": "gzip"}}),
        ("headers.urgent", {"headers": {"urgent": True}}),
        ("headers.x.y", {"headers": {"x": {"y": ""}}}),
    ],
)
def test_scrub_reports_a_field_in_which_it_has_replaced_nothing(field: str, line: dict[str, Any]) -> None:
    """`scrub --field` keeps some values, such as the name of a queue in the routing key. If `scrub` keeps all values of
    a field, it reports that it found no value to replace in this field.
    """
    scrubber = Scrubber(PSEUDONYMS, only=(fields := parse_fields([field])))
    said = json.dumps({**line, "body": "x"}).encode()
    assert (scrubber.line(said, "line 1"), scrubber.unseen) == (said, fields)


@pytest.mark.parametrize("fields", ["queue", "queue,routing_key", "headers.n", "headers.text", "body", "headers.raw"])
def test_scrub_does_not_report_a_field_as_not_found_once_it_has_replaced_a_value_in_the_field(fields: str) -> None:
    """Once `scrub --field` has replaced text, a number or bytes in the field, it does not report the field as not
    found. The field `queue` also counts as found once the routing key of a message to the default exchange has been
    replaced, because this key is the name of a queue.
    """
    headers = {"n": 17, "text": "s3cret", "raw": {"$bytes": "czNjcmV0"}}
    scrubber = Scrubber(PSEUDONYMS, only=parse_fields([fields]))
    line = {"exchange": "", "routing_key": "jobs", "headers": headers, "body_base64": "/w=="}
    assert scrubber.line(json.dumps(line).encode(), "line 1") != json.dumps(line).encode()
    assert scrubber.unseen == set()


def test_scrub_finds_a_field_however_its_key_is_written() -> None:
    """`scrub --field body.email` replaces the values of all keys `email` in a JSON body, even if the key occurs twice
    or is written with escapes. `--field` accepts the name of a property with or without the prefix `properties.`, and
    with hyphens or underscores. An unknown property, as in `--field properties.kind`, raises UsageError.
    """
    body = r'{"email": "s3cret", "n": 1, "\u0065mail": "s3cret"}'
    after = scrubbed({"body": body}, only="body.email")["body"]
    assert after == body.replace("s3cret", PSEUDONYMS.text("s3cret"))
    assert parse_fields(["properties.message-id,message_id"]) == {"properties.message_id"}
    with pytest.raises(UsageError, match="a message has no field 'kind'"):
        parse_fields(["properties.kind"])


def test_scrubbed_headers_have_values_that_amqp_allows() -> None:
    """`scrub` keeps the names of a message's headers, and replaces their values with others that AMQP allows: for
    example, a decimal still fits into 32 bits. A value that mqtool cannot decode becomes a byte array, because
    replacing bytes in its encoding would not give a valid AMQP value.
    """
    headers = {
        "raw": {"$bytes": "AAECAw=="}, "price": {"$decimal": "2147483647"}, "when": {"$timestamp": 1767225600},
        "nan": {"$double": "NaN"}, "deep": {"$encoded": "U0dWc2JHOD0="}, "table": {"$table": {"$bytes": "text"}},
    }  # fmt: skip
    for seed in range(20):
        after = ndjson.message_of(scrubbed({"exchange": "e", "headers": headers, "body": ""}, seed=bytes([seed])), "")
        assert isinstance(after.properties["headers"]["deep"], bytes)
        assert int(after.properties["headers"]["price"]) < 2**31
        assert set(after.properties["headers"]) == set(headers)


def test_scrub_replaces_text_under_keys_that_mark_amqp_types() -> None:
    """`scrub` replaces text under the keys with which NDJSON marks AMQP types, such as $double and $decimal, in bodies
    and in headers. Under $double, it keeps only NaN and the infinities.
    """
    secret = {"$double": "s3cret token"}
    decimals = [{"$decimal": text} for text in ("one e e", "s3cret", "1.5e", "12.50")]
    line = {
        "headers": {"a": {"$table": secret}, "x.$double": "s3cret token", "nan": {"$double": "NaN"}},
        "body": json.dumps({"auth": secret, "prices": decimals, "low": {"$double": "-Infinity"}}),
    }
    after = scrubbed(line)
    hidden = {"$double": PSEUDONYMS.text("s3cret token")}
    assert after["headers"] == {"a": {"$table": hidden}, "x.$double": hidden["$double"], "nan": {"$double": "NaN"}}
    body = json.loads(after["body"])
    assert (body["auth"], body["low"]) == (hidden, {"$double": "-Infinity"})
    assert [each["$decimal"] for each in body["prices"][:3]] == [
        PSEUDONYMS.text(each["$decimal"]) for each in decimals[:3]
    ]
    assert re.fullmatch(r"\d\d\.\d\d", body["prices"][3]["$decimal"])


@pytest.mark.parametrize(
    "bad", [b"{", b"[]", b'{"body": \xff}', b'{"body_base64": "?"}', '{"body": "x"}'.encode("utf-16-le")]
)
def test_scrub_refuses_a_line_that_is_not_a_message(bad: bytes) -> None:
    """If a line is not a valid message in NDJSON, `scrub` raises BadData."""
    with pytest.raises(BadData):
        Scrubber(PSEUDONYMS).line(bad, "line 1")


SECRET = "4111-1111 jane@corp"
DEATH = {
    "count": 2, "reason": "expired", "queue": "jobs", "time": {"$timestamp": 1767225600}, "exchange": "logs",
}  # fmt: skip
KEPT_HEADERS = {
    "x-death": [DEATH, {**DEATH, "reason": "delivery_limit"}], "x-delay": 5000, "x-delivery-count": 3,
    "x-stream-offset": 17,
}  # fmt: skip
KEPT_PROPERTIES = {
    "content_encoding": "gzip:UTF-8", "content_type": "application/vnd.shop.order+json; charset=utf-8",
    "delivery_mode": 2, "priority": 3, "expiration": "60000", "timestamp": 1767225600,
}  # fmt: skip


def test_scrub_keeps_what_the_broker_writes_into_headers() -> None:
    """`scrub` keeps counts, times, reasons and the names of queues and exchanges in the headers that RabbitMQ sets.
    It also keeps usual content types and encodings. A program under test therefore treats a replayed message like the
    original.
    """
    line = {"headers": KEPT_HEADERS, "properties": KEPT_PROPERTIES}
    after = scrubbed(line)
    assert after == line
    assert scrubbed(line, only="headers")["headers"]["x-death"][0]["queue"] == PSEUDONYMS.text("jobs")


@pytest.mark.parametrize("value", [SECRET, {"iban": SECRET}, [SECRET], {"$table": {"$double": SECRET}}])
def test_scrub_replaces_what_a_publisher_puts_into_the_headers_of_the_broker(value: Any) -> None:
    """If a header that RabbitMQ sets, such as x-delay or x-death, contains a value that RabbitMQ would not write there,
    `scrub` replaces this value like that of any other header, whatever its type.
    """
    names = ("x-delay", "x-delivery-count", "x-stream-offset", "x-first-death-queue", "x-last-death-reason")
    in_death = ("count", "reason", "time") if isinstance(value, str) else ("count", "reason", "time", "queue")
    headers = {
        **dict.fromkeys(names, value), "x-death.queue": SECRET,
        "x-death": [{**DEATH, **dict.fromkeys(in_death, value)}],
    }  # fmt: skip
    after = scrubbed({"headers": headers, "body": ""})["headers"]
    hidden = json.loads(json.dumps(value).replace(SECRET, PSEUDONYMS.text(SECRET)))
    assert after == {
        **dict.fromkeys(names, hidden), "x-death.queue": PSEUDONYMS.text(SECRET),
        "x-death": [{**DEATH, **dict.fromkeys(in_death, hidden)}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "start"),
    [
        ("content_type", "jane@corp.example", ""),
        ("content_type", "text/4111-1111", ""),
        ("content_type", "application/jane@corp", ""),
        ("content_type", "text/plain; charset=utf-8; user=jane", "text/plain; charset=utf-8"),
        ("content_type", "application/json; charset=jane", "application/json"),
        ("content_encoding", "gzip, jane", ""),
        ("expiration", "jane", ""),
    ],
)
def test_scrub_replaces_text_in_the_properties_that_it_usually_keeps(name: str, text: str, start: str) -> None:
    """`scrub` usually keeps the content type, content encoding and expiration. If one of them contains something
    else, such as a person's name, `scrub` replaces it. In a content type, it keeps a usual charset and replaces other
    parameters.
    """
    after = scrubbed({"properties": {name: text}, "body": ""})["properties"][name]
    assert after == start + PSEUDONYMS.text(text.removeprefix(start)) != text


def test_scrubbed_values_keep_their_types() -> None:
    """`recording scrub` keeps the types that a line names, and replaces the values with others that fit them. Anything
    else in "types" is replaced like other text.
    """
    headers = {
        "int8": Int8(120),
        "list": [UInt16(60_000), UuidText("f81d4fae-7dec-11d0-a765-00a0c91e6bf6")],
        "table": {"symbol": Symbol("secretive"), "deep": [{"float": 1.0}]},
    }
    properties = {"headers": headers, "message_id": NumberId("18446744073709551000"), "subject": "confidential"}
    line = ndjson.from_delivery(Delivery(b"", "", "q", "q", False, properties, 1), datetime.now(UTC)).strip()
    for seed in range(20):
        replaced = Scrubber(Pseudonyms(b"%d" % seed)).line(line, "line 1")
        assert json.loads(replaced)["types"] == json.loads(line)["types"]
        found = ndjson.to_message(replaced, "line 1")
        values = [found.properties["headers"]["int8"], *found.properties["headers"]["list"]]
        assert [type(value) for value in values] == [Int8, UInt16, UuidText]
        assert values[0] != 120
        assert type(found.message_id) is NumberId
        assert b"secretive" not in replaced
        assert b"confidential" not in replaced
    forged = b'{"body": "", "headers": {"n": 5}, "types": {"headers": {"n": "my password"}}}'
    assert b"password" not in Scrubber(Pseudonyms(b"seed")).line(forged, "line 1")
