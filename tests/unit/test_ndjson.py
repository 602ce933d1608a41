"""Messages as JSON lines: a message that was written can be read again unchanged."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool import ndjson
from mqtool.errors import BadData
from mqtool.message import LONGEST_EXPIRATION, Delivery, Timestamp, Undecoded
from mqtool.message import PROPERTIES as NAMES

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
