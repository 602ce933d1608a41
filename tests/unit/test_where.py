"""Conditions of --where: what matches, what is refused, and that nothing in a message raises an error."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool import where
from mqtool.errors import BadExpression
from mqtool.message import Delivery, Message, Undecoded

BODY = {"user": {"id": 17, "name": "Ann Lee", "vip": False, "since": None}, "items": [{"sku": "a-1"}], "n": "3"}
DELIVERY = Delivery(
    json.dumps(BODY).encode(),
    "logs",
    "kern.critical",
    "audit",
    redelivered=False,
    properties={
        "headers": {
            "x-retry": 3,
            "text": "7",
            "a.b": "dotted",
            "price": Decimal("1.50"),
            "when": datetime(2026, 1, 31, 12, tzinfo=UTC),
            "flag": True,
            "zero": 0,
            "empty": "",
        },
        "message_id": "m-1",
        "reply_to": None,
        "priority": 5,
        "timestamp": 1_769_860_800,
    },
    delivery_tag=1,
)
RECORD = where.of_delivery(DELIVERY)


@pytest.mark.parametrize(
    "text",
    [
        "routing_key~'^kern'",
        "routing_key~^kern\\.(critical|alert)$",
        "(routing_key~^kern\\.(critical|alert)$)",
        "routing_key = kern.critical",
        'routing_key == "kern.critical"',
        "routing_key!=kern.info",
        "routing_key !~ info",
        "routing_key<l",
        "headers.x-retry>=3",
        "headers.x-retry=3.0",
        "headers.x-retry",
        "headers.zero",
        "headers.empty",
        "headers.flag=true",
        "headers.'a.b'=dotted",
        "headers.text>6",
        "headers.text=7",
        "headers.text='7'",
        "headers.price=1.5",
        "headers.when=2026-01-31T12:00Z",
        "headers.when>2026-01-31T11:59:59+00:00 and headers.when<2026-02-01",
        "properties.timestamp>=2026-01-31T12:00Z",
        "timestamp>2026-01-31",
        "message_id=m-1",
        "message-id=m-1",
        "properties.headers.x-retry=3",
        "properties.message-id=m-1",
        "priority>4",
        "not reply_to",
        "not redelivered",
        "redelivered=false",
        "queue=audit AND exchange=logs",
        "body.user.id=17",
        "body.user.name='Ann Lee'",
        "body.items.0.sku=a-1",
        "body.items.0",
        "body.user.since=null",
        "body.user~'\"id\":17'",
        "body.n=3",
        "body~Ann",
        "size>100 and size<1kB and size<1KiB and size<0.5MB",
        "exchange=x or exchange=logs",
        "not (exchange=x or exchange=y)",
        "exchange=x and exchange=y or queue=audit",
        "not exchange=x and queue=audit",
        "not not queue=audit",
        "  queue=audit  ",
    ],
)
def test_a_true_condition_selects_the_message(text: str) -> None:
    """A `--where` condition that is true for a message's fields, headers, properties or body selects the message."""
    assert where.parse(text).matches(RECORD)


@pytest.mark.parametrize(
    "text",
    [
        "routing_key=kern",
        "headers.missing",
        "headers.missing!=3",
        "headers.missing!~x",
        "headers.missing<3",
        "headers.x-retry='3'",
        "headers.x-retry~4",
        "headers.x-retry<abc",
        "headers.x-retry>1MB",
        "headers.flag=1",
        "headers.text<abc and headers.text=8",
        "reply_to",
        "reply_to!=x",
        "properties.reply_to=null",
        "redelivered",
        "body.user.vip",
        "body.user.since",
        "body.user.nobody=null",
        "body.items.1",
        "body.items.x",
        "body.user.id.deeper",
        "size>1MiB",
        "routing_key>3",
        "not queue=audit",
        "queue=audit and not exchange=logs",
    ],
)
def test_a_false_condition_does_not_select_the_message(text: str) -> None:
    """A `--where` condition that is false for a message, for example because a value is missing or of another type,
    does not select the message.
    """
    assert not where.parse(text).matches(RECORD)


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 1, "expected a field"),
        ("routing_key~", 13, "expected a value"),
        ("routing_key = and queue=x", 19, "expected 'and' or 'or'"),
        ("routing_keys=x", 1, "unknown field 'routing_keys'"),
        ("queue=x and properties.typ=y", 13, "unknown field 'typ'"),
        ("properties", 11, "expected a property"),
        ("queue=x queue=y", 9, "expected 'and' or 'or'"),
        ("queue=x and", 12, "expected a field"),
        ("headers.=3", 9, "expected a name after the dot"),
        ("(queue=x", 1, "this parenthesis is not closed"),
        ("queue=x)", 8, "expected 'and' or 'or'"),
        ("routing_key~(", 13, "not a valid regular expression"),
        ("routing_key=~x", 13, "unknown operator"),
        ("queue='x", 7, "this quote is not closed"),
        ("(" * 100, 41, "nested too deeply"),
        ("not " * 100_000, 160, "nested too deeply"),
    ],
)
def test_an_invalid_condition_is_reported_with_the_column_of_the_mistake(text: str, column: int, what: str) -> None:
    """An invalid `--where` condition raises BadExpression. The error contains a hint and the column of the mistake."""
    with pytest.raises(BadExpression, match=re.escape(what)) as error:
        where.parse(text)
    assert error.value.column == column
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "expected a field", "such as routing_key, headers.x-retry or body.user.id"),
        ("headers.", "expected a name after the dot", "such as routing_key, headers.x-retry or body.user.id"),
        ("queue=a b", "expected 'and' or 'or'", "put a value with spaces in quotes"),
        ("queue=", "expected a value", "a value may be empty in quotes: ''"),
        ("queue=~x", "unknown operator", "operators: = != ~ !~ < <= > >=; or quote the value"),
        ("queue='x", "this quote is not closed", "'mqtool help where' shows how to write it"),
        ("(queue", "this parenthesis is not closed", "'mqtool help where' shows how to write it"),
        ("(queue=a b)", "expected 'and', 'or' or ')'", "'mqtool help where' shows how to write it"),
        ("(" * 50, "this is nested too deeply", "up to 40 levels"),
        ("properties", "expected a property", "such as properties.message_id"),
        ("queu=x", "unknown field 'queu'", "did you mean 'queue'?"),
        ("queue~(a b)", "not a valid regular expression: missing ): (a", "put a value with spaces in quotes"),
        ("queue~(", "not a valid regular expression: ", r"close the parenthesis, or write \( to search for one"),
        ("queue~'('", "not a valid regular expression: ", r"close the parenthesis, or write \( to search for one"),
        ("queue~'[ '", "not a valid regular expression: ", r"close the bracket, or write \[ to search for one"),
        ("queue~')'", "not a valid regular expression: ", r"open one before it, or write \) to search for one"),
        ("queue~+1", "not a valid regular expression: ", r"it repeats nothing; put \ before it to search for it"),
    ],
)
def test_the_hint_for_an_invalid_condition_says_what_to_write_instead(text: str, message: str, hint: str) -> None:
    """If a `--where` condition is invalid, the error contains the condition and describes the mistake, and the hint
    says what to write instead.
    """
    with pytest.raises(BadExpression) as error:
        where.parse(text)
    assert str(error.value).startswith(message)
    assert (error.value.text, error.value.hint) == (text, hint)


def test_the_error_about_a_missing_operator_points_at_the_next_word() -> None:
    """If the word `and` is missing between two parts of a `--where` condition, the error points at the first word of
    the second part, and not at a parenthesis that follows.
    """
    with pytest.raises(BadExpression) as error:
        where.parse("(queue=a b)")
    assert error.value.column == 10


def test_the_hint_for_an_unknown_field_lists_the_existing_fields() -> None:
    """If a `--where` condition names an unknown field, and no field has a similar name, the hint lists all fields in
    alphabetical order.
    """
    with pytest.raises(BadExpression) as error:
        where.parse("whatever=1", frozenset({"name", "state", "messages"}))
    assert error.value.hint == "one of messages, name, state"


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [
        ("7B", 7),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1.5MB", 1_500_000),
        ("2MiB", 2 * 1024**2),
        ("1GB", 1000**3),
        ("1GiB", 1024**3),
        ("1TB", 1000**4),
        ("1TiB", 1024**4),
    ],
)
def test_a_size_with_a_unit_is_compared_exactly_in_bytes(size: str, bytes_: int) -> None:
    """In a `--where` condition, 1 kB is 1,000 bytes, and 1 KiB is 1,024 bytes. The condition compares sizes exactly."""
    condition = where.parse(f"size={size}")
    assert [condition.matches({"size": bytes_ + off}) for off in (-1, 0, 1)] == [False, True, False]


def test_a_duration_is_compared_in_seconds() -> None:
    """In a `--where` condition such as `headers.age>=2m`, the duration is converted to a number of seconds (120) and
    compared with the header's value.
    """
    assert where.parse("headers.age=5s").matches({"headers": {"age": 5}})
    assert where.parse("headers.age>=2m").matches({"headers": {"age": 120}})
    assert not where.parse("headers.age>=2m").matches({"headers": {"age": 119}})


@pytest.mark.parametrize("value", ["5s", "1kB", "2026-01-31", "2026-13-45", "3"])
def test_a_value_that_looks_like_a_number_also_equals_its_text(value: str) -> None:
    """If the value in a `--where` condition looks like a number, size, duration or time, the condition also matches a
    header that is the same string. For example, `headers.h=5s` matches the string "5s".
    """
    assert where.parse(f"headers.h={value}").matches({"headers": {"h": value}})


def test_large_integers_are_compared_exactly() -> None:
    """A `--where` condition distinguishes two large integers even if they would be equal as floats."""
    condition = where.parse("headers.id=9007199254740993")
    assert condition.matches({"headers": {"id": 9007199254740993}})
    assert not condition.matches({"headers": {"id": 9007199254740992}})


def test_a_timestamp_without_a_time_zone_is_in_utc() -> None:
    """In a `--where` condition, a header's timestamp without a time zone counts as UTC, and a timestamp with a time
    zone is converted to UTC.
    """
    condition = where.parse("headers.when=2026-01-31T12:00Z")
    zone = timezone(timedelta(hours=5))
    assert condition.matches({"headers": {"when": datetime(2026, 1, 31, 12)}})
    assert condition.matches({"headers": {"when": datetime(2026, 1, 31, 17, tzinfo=zone)}})
    assert not condition.matches({"headers": {"when": datetime(2026, 1, 31, 12, tzinfo=zone)}})


def test_each_attribute_of_a_delivery_can_be_tested() -> None:
    """A `--where` condition can test the exchange, routing key, queue, headers, properties and body of a delivery,
    whether it was redelivered, and when it arrived, in UTC.
    """
    delivery = Delivery(
        b"b", "ex", "rk", "q", redelivered=True, properties={"headers": {"h": 1}, "type": "t"}, delivery_tag=1
    )
    before = datetime.now(UTC)
    record = where.of_delivery(delivery)
    assert before <= record["timestamp"] <= datetime.now(UTC)
    assert {name: value for name, value in record.items() if name != "timestamp"} == {
        "exchange": "ex",
        "routing_key": "rk",
        "queue": "q",
        "redelivered": True,
        "headers": {"h": 1},
        "properties": {"headers": {"h": 1}, "type": "t"},
        "body": b"b",
    }


def test_a_missing_exchange_routing_key_or_headers_count_as_empty() -> None:
    """In a `--where` condition on a message that is to be published, a missing exchange or routing key is the empty
    string, and missing headers are an empty table.
    """
    assert where.of_message(Message(b"x", None, None, {}, "m-1")) == {
        "exchange": "",
        "routing_key": "",
        "headers": {},
        "properties": {"message_id": "m-1"},
        "body": b"x",
    }
    addressed = where.of_message(Message(b"x", "key", "logs", {"headers": {"h": 1}}, "m-1"))
    assert (addressed["exchange"], addressed["routing_key"], addressed["headers"]) == ("logs", "key", {"h": 1})


def test_a_parsed_condition_contains_its_text_and_its_fields() -> None:
    """A parsed `--where` condition has the attributes `text` and `fields`. `text` is the condition as it was written.
    `fields` contains the names of the fields that the condition tests, so that the caller can fetch only these.
    """
    condition = where.parse("headers.x=1 and (queue=a or not message-id)")
    assert condition.text == "headers.x=1 and (queue=a or not message-id)"
    assert condition.fields == {"headers", "queue", "message_id"}
    assert not where.parse("headers.y=1").fields - {"headers"}


@pytest.mark.parametrize("value", ["'X'", "X-1", '"a" or queue="X"'])
def test_a_value_can_be_quoted_and_a_quoted_value_ends_at_the_next_quote(value: str) -> None:
    """A value in a `--where` condition can be in quotation marks. It then ends at the next mark of the same kind, so
    `queue="a" or queue="X"` tests two values. A value such as X-1 needs no quotation marks.
    """
    record = {"queue": "X-1" if value == "X-1" else "X"}
    assert where.parse(f"queue={value}").matches(record)


def test_a_regular_expression_sees_all_digits_of_a_decimal() -> None:
    """A regular expression in a `--where` condition is matched against all digits of a decimal header, including
    trailing zeros.
    """
    assert where.parse("headers.price~'^1[.]50$'").matches({"headers": {"price": Decimal("1.50")}})


def test_a_condition_can_test_recorded_messages() -> None:
    """A `--where` condition can test recorded messages, even if their bodies are in base64, or their headers have types
    that JSON lacks.
    """
    line = {
        "timestamp": "2026-01-31T12:00:00.000Z",
        "exchange": "",
        "headers": {"when": {"$timestamp": 1_769_860_800}, "price": {"$decimal": "1.5"}},
        "properties": {"message_id": "m-1"},
        "body_base64": "/2FiYw==",
    }
    for text in (
        "timestamp=2026-01-31T13:00+01:00",
        "headers.when=2026-01-31T12:00Z and headers.price<2",
        "message_id=m-1 and size=4 and body~abc and exchange=''",
    ):
        assert where.parse(text).matches(line)


def test_a_condition_can_test_a_message_before_it_is_published() -> None:
    """A `--where` condition can test a message before it is published. A condition on the queue, or on the time at
    which the message was received, is not met, because the message has neither yet.
    """
    record = where.of_message(Message(b"x", "key", None, {"headers": {"n": 1}, "type": "t"}, "m-1"))
    assert where.parse("routing_key=key and message_id=m-1 and type=t and headers.n=1 and body=x").matches(record)
    assert not where.parse("timestamp or queue").matches(record)


def test_a_condition_on_a_list_can_name_only_columns_of_the_list() -> None:
    """If a `--where` condition on a list, such as `list queues`, names a field that is not a column of the list,
    BadExpression is raised. If the columns are not known in advance, the condition can name any field.
    """
    columns = frozenset({"name", "messages_ready"})
    assert where.parse("messages-ready>0", columns).matches({"name": "q", "messages_ready": 1})
    assert where.parse("whatever.else=1", None).matches({"whatever": {"else": 1}})
    with pytest.raises(BadExpression, match="unknown field 'body'"):
        where.parse("body=1", columns)


_HOSTILE = [
    b"", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b'{"user": "x"}', b"NaN", b"[1e999]",
    b'"\\ud800"', b'{"user": {"id": {"$decimal": "sNaN"}}}', b"x" * 10_000_000,
]  # fmt: skip


@pytest.mark.parametrize("body", _HOSTILE, ids=range(len(_HOSTILE)))
def test_a_condition_never_fails_on_a_hostile_body(body: bytes) -> None:
    """If a message's body is hostile, for example deeply nested JSON, a `--where` condition on the body does not match,
    and testing it raises no error.
    """
    record = {**RECORD, "body": body}
    for text in ("body.user.id=17", "body.user.id>17", "body.user.id~x", "body.0.0.0.0", "body.user.id<a", "body~Ann"):
        assert not where.parse(text).matches(record)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.datetimes()
    | st.binary().map(Undecoded),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["$decimal", "$timestamp"]), inner),
)  # fmt: skip
_TESTS = [
    where.parse(f"{field}{rest}")
    for field in ("headers.h", "headers.h.x", "body.h", "body", "size", "message_id", "timestamp")
    for rest in ("", "=1", "!=a", "<2", ">=b", "<2026-01-01", "~^a", "!~b", "='1'", ">1MB", "=null", "=5s")
]


@given(_VALUES)
def test_a_condition_never_fails_whatever_a_message_contains(value: Any) -> None:
    """Whatever a header, property or body contains, testing a `--where` condition raises no error."""
    for test in _TESTS:
        test.matches({"headers": {"h": value}, "body": value, "properties": {"message_id": value}, "timestamp": value})


@pytest.mark.parametrize(
    ("pattern", "body"),
    [("(a+)+$", "a" * 40 + "!"), ("a.*b", "a" * 1_000_000), ("(x|x)*y", "x" * 100_000), (r"(\w+)*é$", "ü" * 50 + "!")],
)
def test_a_regular_expression_is_matched_in_linear_time(pattern: str, body: str) -> None:
    """`--where` matches regular expressions in linear time, whatever the body contains. Therefore, a body that a
    stranger has sent cannot make the command hang.
    """
    assert not where.parse(f"body~'{pattern}'").matches({"body": body})


@pytest.mark.parametrize(
    ("pattern", "part"), [("a(?=b)", "(?="), (r"(a)\1", r"\1"), ("a(?!b)c", "(?!"), ("(?<=a)b", "(?<=")]
)
def test_a_regular_expression_that_cannot_be_matched_in_linear_time_is_refused(pattern: str, part: str) -> None:
    """If the regular expression of a `--where` condition contains a lookaround or a backreference, BadExpression is
    raised. The error names this part.
    """
    with pytest.raises(BadExpression, match=re.escape(part)) as refused:
        where.parse(f"body~'{pattern}'")
    assert refused.value.hint == "its syntax is RE2's, without lookaround and backreferences"


@pytest.mark.parametrize(
    ("pattern", "body"),
    [
        (r"^\w+$", "Müller_٣"), (r"^[\w.]+$", "Mül.ler"), (r"^\W$", "€"), (r"^\d$", "٣"), (r"^[^\D]$", "٣"),
        (r"^\\w$", r"\w"), (r"^[\\w]+$", r"w\w"), (r"^[]\]w]+$", "]w"), ("b$", "ab\n"), ("(?m)^b$", "a\nb\nc"),
        ("(?i)É", "é"), ("^$", ""), ("^$", "\n"), (r"^[^\W_]+$", "été"), (r"^[\W]$", "€"), (r"^\s$", "\xa0"),
        (r"^[\s]$", "\u2003"), (r"^\S$", "é"), ("^x{,3}$", "xxx"), (r"a\Z", "ba"), (r"^\u00e9[\u00e9]$", "éé"),
    ],
)  # fmt: skip
def test_a_regular_expression_matches_as_in_python(pattern: str, body: str) -> None:
    """In a regular expression of a `--where` condition, the classes for letters, digits and spaces include those of all
    languages, and `$` also matches before a newline at the end, as in Python.
    """
    assert re.search(pattern, body)
    assert where.parse(f"body~'{pattern}'").matches({"body": body})


@given(st.text(alphabet="abz()'\".=~!<> \n\0é1") | st.text())
def test_parsing_any_text_succeeds_or_raises_an_error_with_a_column(text: str) -> None:
    """Parsing any text as a `--where` condition either succeeds or raises BadExpression, and the error gives a column
    within the text.
    """
    columns = [1]
    try:
        where.parse(text).matches(RECORD)
    except BadExpression as error:
        columns.append(error.column)
    assert all(1 <= column <= len(text) + 1 for column in columns)


_LEAVES = st.sampled_from([("queue=audit", True), ("queue=x", False), ("headers.x-retry>2", True), ("reply_to", False)])


def _grown(inner: st.SearchStrategy[tuple[str, bool]]) -> st.SearchStrategy[tuple[str, bool]]:
    return (
        inner.map(lambda each: (f"not ({each[0]})", not each[1]))
        | st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}) and ({two[1][0]})", two[0][1] and two[1][1]))
        | st.tuples(inner, inner).map(lambda two: (f"({two[0][0]})or({two[1][0]})", two[0][1] or two[1][1]))
    )


@given(st.recursive(_LEAVES, _grown, max_leaves=8))
def test_conditions_can_be_combined_with_and_or_and_not(grown: tuple[str, bool]) -> None:
    """If `--where` conditions are combined at random with and, or, not and parentheses, the result is that of the same
    expression in Python.
    """
    text, holds = grown
    assert where.parse(text).matches(RECORD) is holds
