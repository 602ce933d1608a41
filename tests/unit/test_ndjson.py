"""Messages as JSON lines: a message that was written can be read again unchanged."""

import json
import math
import struct
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqtool import ndjson
from mqtool.codecs import sections
from mqtool.codecs.amqp10_message import DATA, Amqp10Message, BareProperties, MessageHeader
from mqtool.codecs.amqp10_values import Array, Char, Described, Milliseconds, RawDecimal, Symbol, ULong, section
from mqtool.codecs.amqp10_values import encode as encode_value
from mqtool.codecs.field_tables import (
    Float32,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    decode_properties,
    encode_property,
)
from mqtool.errors import BadData
from mqtool.message import LONGEST_EXPIRATION, Delivery, Message, Timestamp, Undecoded
from mqtool.message import PROPERTIES as NAMES
from tests.hostile import short, sized

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
#: Includes names that look like mqtool's own keys, which a careless encoding would confuse.
names = text | st.sampled_from(["$bytes", "$decimal", "$timestamp", "$table", "$double", "$encoded", "body"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | text
    | st.binary(max_size=12)
    | st.decimals(-(2**31), 2**31 - 1, places=2).map(lambda value: value.normalize())
    | st.integers(0, 2**37).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
headers = st.dictionaries(names, values, max_size=4)
PROPERTIES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(set(NAMES) - {"delivery_mode", "priority", "timestamp", "headers"}, text),
    "expiration": st.integers(0, LONGEST_EXPIRATION).map(str),
    "delivery_mode": st.integers(0, 255),
    "priority": st.integers(0, 255),
    "timestamp": st.integers(0, 2**64 - 1),
    "headers": headers,
}
deliveries = st.builds(
    Delivery,
    body=st.binary(max_size=40) | text.map(str.encode),
    exchange=text,
    routing_key=text,
    queue=text,
    redelivered=st.booleans(),
    properties=st.fixed_dictionaries({}, optional=PROPERTIES),
    delivery_tag=st.just(1),
)


@given(deliveries)
def test_send_json_publishes_unchanged_what_receive_json_has_printed(delivery: Delivery) -> None:
    """If `receive --json` has printed a message, `send --json` publishes it with the same body, headers, properties,
    exchange and routing key.
    """
    message = ndjson.to_message(ndjson.from_delivery(delivery, NOW), "line 1")

    properties = {**message.properties, "message_id": message.message_id}
    assert message.body == delivery.body
    assert (message.exchange, message.routing_key) == (delivery.exchange, delivery.routing_key)
    assert {name: value for name, value in properties.items() if value is not None} == delivery.properties


@given(deliveries)
def test_a_message_is_one_line_of_json(delivery: Delivery) -> None:
    """In NDJSON, a message is one line that any JSON parser can read. Newlines in the message's body and headers are
    escaped.
    """
    line = ndjson.from_delivery(delivery, NOW)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    value = json.loads(line)
    assert value["timestamp"] == "2026-01-31T12:00:00.123Z"
    assert ("body" in value) != ("body_base64" in value)


def test_a_line_of_ndjson_has_the_documented_keys() -> None:
    """A line that `receive --json` prints has the documented keys in the documented order. If the message has no
    headers, "headers" is null.
    """
    delivery = Delivery("é".encode(), "e", "k", "q", False, {"priority": 5, "type": None}, 1)

    assert ndjson.from_delivery(delivery, NOW).decode() == (
        '{"version":1,"timestamp":"2026-01-31T12:00:00.123Z","exchange":"e","routing_key":"k","queue":"q","redelivered":false,'
        '"headers":null,"properties":{"priority":5},"body":"é"}\n'
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"\xff", {"$bytes": "/w=="}),
        (Decimal("1.50"), {"$decimal": "1.50"}),
        (datetime(1970, 1, 1, 0, 1, tzinfo=UTC), {"$timestamp": 60}),
        (Timestamp(2**64 - 1), {"$timestamp": 2**64 - 1}),
        (float("inf"), {"$double": "Infinity"}),
        (float("-inf"), {"$double": "-Infinity"}),
        (Undecoded(b"V"), {"$encoded": "Vg=="}),
        ("\udcff", "\udcff"),
        ({"$table": 1}, {"$table": {"$table": 1}}),
        ({"$bytes": "mine"}, {"$table": {"$bytes": "mine"}}),
        ({"$other": 1}, {"$other": 1}),
        ({"$bytes": "mine", "b": 1}, {"$bytes": "mine", "b": 1}),
    ],
    ids=repr,
)
def test_header_values_without_a_json_type_are_marked(value: object, shown: object) -> None:
    """In NDJSON, a header value without a JSON type, such as bytes or a decimal, becomes an object with a key such as
    $bytes. A header table whose only key looks like one of these is wrapped in $table.
    """
    line = ndjson.from_delivery(Delivery(b"", "", "", "", False, {"headers": {"h": value}}, 1), NOW)

    assert json.loads(line)["headers"] == {"h": shown}
    assert ndjson.to_message(line, "line 1").properties["headers"] == {"h": value}


def test_nan_and_bytes_that_are_not_utf_8_are_written_as_valid_json() -> None:
    """If a message's headers, routing key or properties contain NaN or bytes that are not UTF-8, mqtool still writes
    the message as a line of valid JSON. When mqtool reads this line, it gets the same values back.
    """
    properties = {"headers": {"\udcff": [float("nan")]}, "message_id": "\udc80"}
    line = ndjson.from_delivery(Delivery(b"", "", "\udcfe", "", False, properties, 1), NOW)

    assert rb'"routing_key":"\udcfe"' in line
    assert rb'"headers":{"\udcff":[{"$double":"NaN"}]},"properties":{"message_id":"\udc80"}' in line
    message = ndjson.to_message(line, "line 1")
    assert (message.routing_key, message.message_id) == ("\udcfe", "\udc80")
    assert str(message.properties["headers"]["\udcff"]) == "[nan]"


def test_a_line_of_ndjson_needs_only_a_body() -> None:
    """A line of NDJSON with only a body is a valid message without an exchange, routing key, id or properties."""
    message = ndjson.to_message(b'{"body": ""}', "line 1")

    assert message.body == b""
    assert (message.exchange, message.routing_key, message.message_id, dict(message.properties)) == (
        None,
        None,
        None,
        {},
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "line 7, column 1, is not JSON"),
        ("{", "line 7, column 2, is not JSON"),
        ('{"body": "a" "b": 1}', "line 7, column 14, is not JSON: Expecting ',' delimiter"),
        (b"\xff", "line 7 is not JSON"),
        ("null", "line 7 is not a JSON object"),
        ("{}", 'needs either "body" or "body_base64"'),
        ('{"body": "", "at": "9999-12-31T23:59:59-10:00"}', '"at" that is not a time such as'),
        ('{"body": "", "at": "0001-01-01T00:00:00+10:00"}', '"at" that is not a time such as'),
        ('{"body": "", "at": "9999-12-31T23:59:59.999999Z"}', '"at" that is not a time such as'),
        ('{"body": null}', '"body" that is not text'),
        ('{"body_base64": "a"}', "not base64"),
        ('{"body_base64": "é"}', "not base64"),
        ('{"body": "", "bodi": 1}', "unknown key 'bodi'"),
        ('{"body": "", "exchange": 5}', '"exchange" that is not text'),
        ('{"body": "", "properties": []}', '"properties" or "headers" that are not objects'),
        ('{"body": "", "properties": [1]}', '"properties" or "headers" that are not objects'),
        ('{"body": "", "headers": "x"}', '"properties" or "headers" that are not objects'),
        ('{"body": "", "properties": {"priority": true}}', "not a number up to 255"),
        ('{"body": "", "properties": {"type": 5}}', "'type' that is not text"),
        ('{"body": "", "properties": {"headers": {}}}', "unknown property 'headers'"),
        ('{"body": "", "headers": {"a": {"$bytes": "%"}}}', "bad $bytes"),
        ('{"body": "", "headers": {"a": [{"$decimal": "x"}]}}', "bad $decimal"),
        ('{"body": "", "headers": {"a": {"$timestamp": 1e99}}}', "bad $timestamp"),
        ('{"body": "", "headers": {"a": {"$table": 5}}}', "bad $table"),
        ('{"body": "", "headers": {"a": {"$double": "x"}}}', "bad $double"),
        ('{"body": "", "headers": {"a": {"$encoded": "%"}}}', "bad $encoded"),
        ('{"body": "", "headers": {"a": {"$encoded": "Rv////8="}}}', "bad $encoded"),
        ('{"body": "", "properties": {"expiration": "-1"}}', "not a number of milliseconds up to 315360000000: '-1'"),
        ('{"body": "", "headers": {"a": ' + "[" * 65 + "]" * 65 + "}}", "nested too deeply"),
        ("[" * 100_000, "line 7 is nested too deeply"),
        ('{"version": 2, "shape": []}', "line 7 is in version 2 of the NDJSON format"),
        ('{"version": "1", "body": ""}', "\"version\" that is not a number from 1: '1'"),
        ('{"version": true, "body": ""}', '"version" that is not a number from 1: True'),
        ('{"version": 0, "body": ""}', '"version" that is not a number from 1: 0'),
    ],
)
def test_an_invalid_line_of_ndjson_is_bad_data(line: str | bytes, says: str) -> None:
    """An invalid line of NDJSON raises BadData. The error gives the line's number and says what is wrong."""
    with pytest.raises(BadData) as caught:
        ndjson.to_message(line.encode() if isinstance(line, str) else line, "line 7")
    assert "line 7" in str(caught.value)
    assert says in str(caught.value)


keys = st.sampled_from(["body", "body_base64", "headers", "properties", "$bytes", "$timestamp", "$decimal", "$table"])
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_line_of_ndjson_is_a_message_or_bad_data(line: bytes) -> None:
    """Reading any bytes or any JSON as a line of NDJSON returns a message or raises BadData, but no other exception."""
    with suppress(BadData):
        ndjson.to_message(line, "line 1")


def test_the_hint_for_an_unknown_property_does_not_list_headers() -> None:
    """If a line of NDJSON has "headers" among its "properties", the hint lists the valid properties, which do not
    include headers.
    """
    with pytest.raises(BadData) as error:
        ndjson.to_message('{"body": "", "properties": {"headers": {}}}', "line 1")
    assert "message_id" in str(error.value.hint)
    assert "headers" not in str(error.value.hint)


def packed(letter: str, form: str) -> st.SearchStrategy[bytes]:
    """Return values of a field type, encoded: any bits, but only finite numbers."""
    size = struct.calcsize(form)
    bits = st.binary(min_size=size, max_size=size)
    if form in (">f", ">d"):
        bits = bits.filter(lambda raw: math.isfinite(struct.unpack(form, raw)[0]))
    return bits.map(lambda raw: letter.encode() + raw)


FORMS = {"b": ">b", "B": ">B", "s": ">h", "u": ">H", "I": ">i", "i": ">I", "l": ">q", "L": ">q", "f": ">f", "d": ">d"}
WIRE_NAMES = st.binary(max_size=9) | names.map(str.encode)
#: Numbers that a smaller type could hold, too, and floats without a fraction.
SMALL = st.sampled_from(sorted(FORMS.items())).flatmap(
    lambda form: st.integers(0, 3).map(lambda number: form[0].encode() + struct.pack(form[1], number))
)
WIRE_SCALARS = st.one_of(
    SMALL,
    *(packed(letter, form) for letter, form in FORMS.items()),
    packed("T", ">Q"),
    packed("D", ">BI"),
    st.sampled_from([b"V", b"t\0", b"t\1"]),
    st.binary(max_size=9).map(lambda raw: b"S" + sized(raw)),
    st.binary(max_size=9).map(lambda raw: b"x" + sized(raw)),
)


def fields_of(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    pairs = st.lists(st.tuples(WIRE_NAMES, values), max_size=4, unique_by=lambda pair: pair[0])
    return pairs.map(lambda found: b"".join(short(name) + value for name, value in found))


WIRE_VALUES = st.recursive(
    WIRE_SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: b"A" + sized(b"".join(items)))
        | fields_of(inner).map(lambda fields: b"F" + sized(fields))
    ),
    max_leaves=12,
)


def strict(line: bytes) -> Any:
    """Parse JSON as strictly as other programs do."""

    def refused(name: str) -> None:
        raise AssertionError(name)

    return json.loads(line, parse_constant=refused)


def copied(delivery: Delivery) -> Message:
    """Return the message that `send --json` publishes for a delivery that `receive --json` prints."""
    line = ndjson.from_delivery(delivery, NOW)
    strict(line)
    assert (
        ndjson.from_message(ndjson.to_message(line, "line 1")).partition(b'"headers"')[2]
        == (line.partition(b'"headers"')[2])
    )
    return ndjson.to_message(line, "line 1")


@given(fields_of(WIRE_VALUES))
@example(short(b"n") + b"b\5" + short(b"$type") + b"A" + sized(b"l" + bytes(8) + b"f" + bytes(4)))
def test_headers_of_every_type_have_the_same_bytes_after_receive_json_and_send_json(fields: bytes) -> None:
    """A message over AMQP 0-9-1 with headers of any types, at any depth, is published again with exactly the same
    bytes.
    """
    properties = decode_properties(struct.pack(">H", 1 << 13) + sized(fields))
    message = copied(Delivery(b"", "", "k", "q", False, properties, 1))
    assert encode_property("headers", message.properties["headers"]) == sized(fields)


EXACT_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SCALARS_10 = st.one_of(
    st.none(),
    st.booleans(),
    *(
        st.integers(low, high).map(kind)
        for kind, low, high in (
            (UInt8, 0, 255), (UInt16, 0, 65_535), (UInt32, 0, 2**32 - 1), (ULong, 0, 2**64 - 1), (ULong, 0, 9),
            (Int8, -128, 127), (Int16, -32_768, 32_767), (Int32, -(2**31), 2**31 - 1), (Int64, -(2**63), 2**63 - 1),
            (Int64, 0, 9), (Milliseconds, -(2**63), 2**63 - 1), (Milliseconds, 0, 2 * 10**12),
        )
    ),
    st.floats(width=32, allow_nan=False).map(Float32),
    st.floats(allow_nan=False),
    EXACT_NAMES,
    EXACT_NAMES.map(Symbol),
    st.characters(exclude_categories=["Cs"]).map(Char),
    st.binary(max_size=9),
    st.uuids(),
    *(st.binary(min_size=size, max_size=size).map(RawDecimal) for size in (4, 8, 16)),
)  # fmt: skip
VALUES_10 = st.recursive(
    SCALARS_10 | st.builds(Described, st.just(ULong(3)), SCALARS_10),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(st.integers(0, 9).map(UInt8), max_size=3).map(Array),
        st.lists(EXACT_NAMES.map(Symbol), max_size=3).map(Array),
        *(st.dictionaries(EXACT_NAMES.map(key), inner, max_size=3) for key in (str, Symbol)),
        st.dictionaries(st.integers(0, 9).map(UInt8), inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)
IDS = (
    EXACT_NAMES
    | st.uuids()
    | st.integers(0, 2**64 - 1).map(ULong)
    | st.binary(max_size=9)
    | st.uuids().map(lambda u: u.urn)
)
TIMES = st.integers(-(2**50), 2**50).map(Milliseconds)
ADDRESSES = EXACT_NAMES | st.sampled_from(
    ["/queues/a%20b", "/queues/%2Fqueues%2F", "/exchanges/a%2Fb/c", "a%20b", "/queues/urn", "/topic/x"]
)
MESSAGES_10 = st.builds(
    Amqp10Message,
    header=st.sampled_from([MessageHeader(), MessageHeader(True, UInt8(3), UInt32(5))]),
    message_annotations=st.dictionaries(EXACT_NAMES.map(lambda name: Symbol(f"x-a{name}")), VALUES_10, max_size=3),
    properties=st.builds(
        BareProperties,
        message_id=IDS | st.none(),
        user_id=st.binary(max_size=9) | st.none(),
        to=st.none() | EXACT_NAMES,
        subject=st.none() | EXACT_NAMES,
        reply_to=st.none() | ADDRESSES,
        correlation_id=IDS | st.none(),
        content_type=st.none() | EXACT_NAMES.map(Symbol),
        content_encoding=st.none() | EXACT_NAMES.map(Symbol),
        absolute_expiry_time=st.none() | TIMES,
        creation_time=st.none() | TIMES,
        group_id=st.none() | EXACT_NAMES,
        group_sequence=st.none() | st.integers(0, 2**32 - 1).map(UInt32),
        reply_to_group_id=st.none() | EXACT_NAMES,
    ),
    application_properties=st.dictionaries(
        EXACT_NAMES | EXACT_NAMES.map(lambda name: f"x-b{name}"),
        SCALARS_10.filter(lambda value: not isinstance(value, RawDecimal)),
        max_size=3,
    ),
    body=st.binary(max_size=9).map(lambda body: section(DATA, encode_value(body)))
    | (EXACT_NAMES | VALUES_10).map(lambda value: section(0x77, encode_value(value))),
    footer=st.dictionaries(EXACT_NAMES.map(lambda name: Symbol(f"x-f{name}")), VALUES_10, max_size=2),
)


@given(MESSAGES_10)
def test_an_amqp_1_0_message_has_the_same_bytes_after_receive_json_and_send_json(sent: Amqp10Message) -> None:
    """A message over AMQP 1.0 or of a stream, with values of any types in all its sections, is published again with
    exactly the same bytes.
    """
    data = sent.encode()
    copy = sections.encode(copied(sections.decode(data, "q", 1, 1)))
    assert copy == data


@pytest.mark.parametrize(
    ("headers", "types", "reason"),
    [
        ({"n": 300}, {"n": "int8"}, "line 1 has a header 'n' that does not fit its type int8: 300"),
        ({"n": -1}, {"n": "uint64"}, "line 1 has a header 'n' that does not fit its type uint64: -1"),
        ({"n": 1.5}, {"n": "int64"}, "line 1 has a header 'n' that does not fit its type int64: 1.5"),
        ({"n": "5"}, {"n": "int16"}, "line 1 has a header 'n' that does not fit its type int16: \"5\""),
        ({"n": True}, {"n": "int16"}, "line 1 has a header 'n' that does not fit its type int16: true"),
        ({"n": 1e300}, {"n": "float32"}, "line 1 has a header 'n' that does not fit its type float32: 1e+300"),
        ({"n": 5}, {"n": "symbol"}, "line 1 has a header 'n' that does not fit its type symbol: 5"),
        ({"n": "no"}, {"n": "uuid"}, "line 1 has a header 'n' that does not fit its type uuid: \"no\""),
        ({"a": [{"b": 5}, 1000]}, {"a": {"1": "uint8"}},
         "line 1 has a header 'a.1' that does not fit its type uint8: 1000"),
        ({"n": 5}, {"n": "int7"}, "line 1 has a header 'n' of an unknown type: 'int7'"),
        ({"n": 5}, {"n": 5}, "line 1 has a header 'n' whose \"types\" are neither a name nor an object: 5"),
        ({"n": 5}, 5, "line 1 has a header whose \"types\" are neither a name nor an object: 5"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_its_type_is_bad_data(headers: Any, types: Any, reason: str) -> None:
    """If the value of a header has been changed so that it does not fit the type that the line names, the error names
    the header and the type.
    """
    line = json.dumps({"body": "", "headers": headers, "types": {"headers": types}}).encode()
    with pytest.raises(BadData) as raised:
        ndjson.to_message(line, "line 1")
    assert str(raised.value) == reason


def test_a_changed_value_keeps_its_type_and_the_type_of_a_removed_header_is_ignored() -> None:
    """In a line of NDJSON, values may be changed with other programs: those that fit keep their types. Types of values
    that are no longer there are ignored, and new values get the types that they would get without "types".
    """
    types = {"n": "int8", "gone": "int16", "list": {"0": "uint8", "7": "uint8"}, "now text": {"inner": "int8"}}
    headers = {"n": 7.0, "list": [5, 6], "new": 1, "now text": "text"}
    line = json.dumps({"body": "", "headers": headers, "types": {"headers": types}}).encode()
    found = ndjson.to_message(line, "line 1").properties["headers"]
    assert found == headers
    assert [type(value) for value in (found["n"], *found["list"], found["new"])] == [Int8, UInt8, int, int]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"types": []}, 'line 1 has "types" that are not an object with'),
        ({"types": {"header": {}}}, 'line 1 has "types" that are not an object with'),
        ({"types": {"properties": 5}}, 'line 1 has "types" whose "properties" are not an object'),
        ({"types": {"properties": {"message_id": "uuid"}}, "properties": {"message_id": "m"}},
         "line 1 has a property 'message_id' of an unknown type: 'uuid'"),
        ({"types": {"properties": {"message_id": "uint64"}}, "properties": {"message_id": "m"}},
         "line 1 has a property 'message_id' that does not fit its type uint64"),
        ({"types": {"body": "text"}}, "line 1 has a body of an unknown type: 'text'"),
        ({"types": {"body": []}}, "line 1 has a body of an unknown type: []"),
        ({"types": {"application_properties": 5}, "headers": {"n": 1}}, 'line 1 has "types" whose'),
        ({"footer": 5}, 'line 1 has a "footer" that is not an object'),
        ({"headers": {"h": {"$amqp10": "QEA="}}}, "line 1 has a header with a bad $amqp10"),
        ({"headers": {"h": {"$milliseconds": 1.5}}}, "line 1 has a header with a bad $milliseconds"),
    ],
)  # fmt: skip
def test_damaged_types_are_bad_data(line: dict[str, Any], reason: str) -> None:
    """A line of NDJSON whose "types" are not as mqtool writes them is refused with the reason."""
    with pytest.raises(BadData) as raised:
        ndjson.to_message(json.dumps({"body": "", **line}).encode(), "line 1")
    assert reason in str(raised.value)


def test_a_message_with_usual_types_has_no_types() -> None:
    """Numbers of the types that `send` chooses need no "types" in NDJSON. A float without a fraction does, because many
    programs write 1.0 as 1.
    """
    headers = {"a": 1, "b": 2**40, "c": 0.5, "d": [True, None, {"e": "text"}], "f": b"bytes", "g": Decimal("1.50")}
    properties = {"headers": headers, "message_id": "m"}
    assert b"types" not in ndjson.from_delivery(Delivery(b"", "", "", "", False, properties, 1), NOW)
    line = ndjson.from_delivery(Delivery(b"", "", "", "", False, {"headers": {"one": 1.0, "n": [Int8(1)]}}, 1), NOW)
    assert json.loads(line)["types"] == {"headers": {"one": "float64", "n": {"0": "int8"}}}
