"""Filters of AMQP 1.0 consumers of streams: property filters and SQL, as in RabbitMQ 4.3."""

import random
import re
import uuid

import pytest

from mqtool.broker.embedded.amqp10.filtered_message import MOST_WORK, FilteredMessage, TooMuchWork
from mqtool.broker.embedded.amqp10.filters import LinkFilters, parse_filters
from mqtool.broker.embedded.amqp10.like_pattern import LikePattern
from mqtool.broker.embedded.amqp10.sql_filter import compile_sql
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.sectioned import parse
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, MessageHeader, data_section
from mqtool.codecs.amqp10_values import Any10, Described, Map, Milliseconds, Symbol, ULong
from mqtool.codecs.field_tables import Int32, Int64, Timestamp, UInt8, UInt32, Value
from tests.brokers import IN_CI

_ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
_PROPERTIES = BareProperties(
    "mid", b"guest", "/queues/q", "orders.new", "/queues/r", _ID, Symbol("text/plain"), Symbol("gzip"),
    Milliseconds(2_000), Milliseconds(1_000), "group", UInt32(7), "others",
)  # fmt: skip
_APPLICATION: Map = {
    "colour": "red", "size": Int32(5), "price": 2.5, "urgent": True, "nothing": None, "id": _ID, "raw": b"\xff",
    "a b": "spaced", "list": [1], "at": Milliseconds(1_000), "é": "ü", "a[b]c": 1, "literal": "&s:d",
}  # fmt: skip
_MESSAGE = parse(
    Amqp10Message(
        MessageHeader(True, UInt8(6)),
        properties=_PROPERTIES,
        application_properties=_APPLICATION,
        body=data_section(b""),
    ).encode()
)


@pytest.mark.parametrize(
    "expression",
    [
        "colour = 'red'", 'colour = "red"', "colour <> 'blue'", "colour != 'blue'", "NOT colour = 'blue'",
        "size = 5", "size = 5.0", "size > 4 AND size < 6", "size >= 5 AND size <= 5", "size + 1 = 6", "size * -2 = -10",
        "size - 1 - 1 = 3", "size / 2 = 2.5", "size % 3 = 2", "-size % 3 = -2", "2 + 3 * 2 = 8", "(2 + 3) * 2 = 10",
        "price > 2", "price = 25.0E-1", "urgent", "urgent = TRUE", "NOT urgent = FALSE", "TRUE", "NOT FALSE",
        "colour IN ('blue', 'red')", "size NOT IN (1, 2)", "colour LIKE 'r%'", "colour LIKE '_e_'",
        "colour NOT LIKE 'b%'", "colour LIKE '%e%'", "'50%' LIKE '50!%' ESCAPE '!'", "'it''s' = \"it's\"",
        "nothing IS NULL", "missing IS NULL", "colour IS NOT NULL", "list IS NULL",
        "missing = 1 OR size = 5", "NOT (missing = 1 AND size = 6)", "[a b] = 'spaced'", "[é] = 'ü'",
        "p.subject = 'orders.new'", "properties.subject LIKE 'orders.%'", "p.group_sequence = 7", "h.priority = 6",
        "header.priority > 4", "p.user_id = 'guest'", "p.correlation_id = 0x00112233445566778899AABBCCDDEEFF",
        "a.size = 5", "application_properties.colour = 'red'", "raw = 0xFF", "at = 1000", "p.creation_time < UTC()",
        "at <> 1001", "colour <> 5", "FALSE OR TRUE AND TRUE", "'a' < 'b'",
        "+size = 5", "-size < 0", "-size + 5 = 0", "+size > 0", "5 = size", "size > price", "size + price = 7.5",
        "price + size = 7.5", "colour IN (colour, 'x')", "0 % 3 = 0", "-4 % 3 < 0", "size - 6 % 4 = 3", "[a[[b]]c] = 1",
        "UTC() % 1 = 0", "UTC() > 1700000000000",
    ],
)  # fmt: skip
def test_a_true_sql_filter_selects_the_message(expression: str) -> None:
    """If the SQL filter of an AMQP 1.0 consumer of a stream is true for a message, the filter selects this message, as
    in RabbitMQ 4.3.
    """
    assert compile_sql(expression)(FilteredMessage(_MESSAGE))


@pytest.mark.parametrize(
    "expression",
    [
        "colour = 'blue'", "missing = 1", "NOT missing = 1", "missing <> 1", "missing LIKE 'a%'", "missing IN (1)",
        "NOT (missing IN (1))", "colour > 5", "colour = 5", "urgent = 1", "size", "colour", "size / 0 = 1",
        "size % 2.5 = 0", "colour + 1 = 2", "raw LIKE '%'", "raw NOT LIKE 'a%'", "size LIKE '5'", "price % 1 = 0",
        "missing AND TRUE", "missing OR FALSE", "urgent > FALSE", "size + colour = 5", "colour * size = 5",
        "colour * 2 = 'redred'",
        "size + missing = 5", "-colour = 5", "colour < colour", "colour NOT IN (colour)",
    ],
)  # fmt: skip
def test_a_false_or_unknown_sql_filter_does_not_select_the_message(expression: str) -> None:
    """If the SQL filter of an AMQP 1.0 consumer of a stream is false or unknown for a message, for example because a
    property is missing, the filter does not select this message.
    """
    assert not compile_sql(expression)(FilteredMessage(_MESSAGE))


@pytest.mark.parametrize(
    "expression",
    [
        "", "colour =", "= 5", "size = 5 = 5", "colour and size", "colour LIKE size", "colour LIKE 'a' ESCAPE 'bc'",
        "colour LIKE 'a!' ESCAPE '!'", "IS NULL", "5 IS NULL", "(size) IS NULL", "size NOT 5", "size IN ()", "UTC",
        "lower(colour) = 'red'", "p.nothing = 1", "h.durable = TRUE", "x.colour = 1", "size = 5;", "'open", "[open",
        "- - 5 = 5", "(size = 5", "size = 5)", "5.", "colour LIKE 'a\tb'", "a" * 4097, " OR ".join(["TRUE"] * 150),
        "(" * 150 + "TRUE" + ")" * 150, "size = 0xabc", "exists", "NaN = 1", "[a\tb] = 1",
    ],
)  # fmt: skip
def test_an_invalid_sql_filter_is_refused(expression: str) -> None:
    """Parsing the SQL filter of an AMQP 1.0 consumer raises ValueError if the filter has a syntax error, an unknown
    property or more than 4,096 characters.
    """
    with pytest.raises(ValueError):  # noqa: PT011 - the texts are for logs
        compile_sql(expression)


_FIELDS, _APPLICATION_FIELDS = Symbol("amqp:properties-filter"), Symbol("amqp:application-properties-filter")


def _parsed(wanted: Map, like: Like = Like.V4_3) -> LinkFilters:
    return parse_filters(wanted, PROFILES[like])


@pytest.mark.parametrize(
    ("descriptor", "wanted", "chosen"),
    [
        (_FIELDS, {Symbol("subject"): "orders.new"}, True),
        (ULong(0x173), {Symbol("subject"): "&p:orders."}, True),
        (_FIELDS, {Symbol("subject"): "&s:.new", Symbol("message-id"): "mid"}, True),
        (_FIELDS, {Symbol("subject"): "&s:.old"}, False),
        (_FIELDS, {Symbol("subject"): "&&s:.new"}, False),
        (_FIELDS, {Symbol("correlation-id"): _ID, Symbol("user-id"): b"guest"}, True),
        (_FIELDS, {Symbol("content-type"): Symbol("text/plain"), Symbol("group-sequence"): UInt32(7)}, True),
        (_FIELDS, {Symbol("creation-time"): Milliseconds(1_000)}, True),
        (_FIELDS, {Symbol("to"): "elsewhere"}, False),
        (_APPLICATION_FIELDS, {"colour": "red", "size": 5.0, "urgent": True, "nothing": None}, True),
        (ULong(0x174), {"colour": "&p:r"}, True),
        (_APPLICATION_FIELDS, {"urgent": Int32(1)}, False),
        (_APPLICATION_FIELDS, {"missing": None}, False),
        (_APPLICATION_FIELDS, {"colour": "&p:e"}, False),
        (_APPLICATION_FIELDS, {"colour": "&s:e"}, False),
        (_APPLICATION_FIELDS, {"size": "&p:5"}, False),
        (_APPLICATION_FIELDS, {"size": "&s:5"}, False),
        (_APPLICATION_FIELDS, {"literal": "&&s:d"}, True),
        (_APPLICATION_FIELDS, {"literal": "&s:&s:d"}, True),
        (_APPLICATION_FIELDS, {"literal": "&&p:d"}, False),
        (_APPLICATION_FIELDS, {"colour": "red", **{str(number): 1 for number in range(15)}}, False),
    ],
)
def test_property_filters_select_messages_by_value_prefix_or_suffix(
    descriptor: Any10, wanted: Map, chosen: bool
) -> None:
    """As in RabbitMQ 4.3, an AMQP 1.0 consumer of a stream can have filters on up to 16 properties or application
    properties. A filter selects messages whose property has the given value or, for strings, the given prefix (`&p:`)
    or suffix (`&s:`). `&&` at the beginning of a given string stands for a literal `&`.
    """
    filters = _parsed({Symbol("any"): Described(descriptor, wanted)})
    assert filters.effective == {"any": Described(descriptor, wanted)}
    assert filters.selector(_MESSAGE) is chosen


@pytest.mark.parametrize(
    "filter_",
    [
        Described(_FIELDS, {}),
        Described(_FIELDS, {Symbol("subject"): 5}),
        Described(_FIELDS, {Symbol("subject"): "&x:"}),
        Described(_FIELDS, {Symbol("what"): "a"}),
        Described(_FIELDS, {"subject": "a"}),
        Described(_APPLICATION_FIELDS, {Symbol("colour"): "red"}),
        Described(_APPLICATION_FIELDS, {str(number): 1 for number in range(17)}),
        Described(_APPLICATION_FIELDS, "text"),
        Described(Symbol("rabbitmq:stream-offset-spec"), -1),
        Described(Symbol("rabbitmq:stream-offset-spec"), ULong(1 << 63)),
        Described(Symbol("rabbitmq:stream-offset-spec"), True),
        Described(Symbol("rabbitmq:stream-filter"), 5),
        Described(Symbol("rabbitmq:stream-match-unfiltered"), "true"),
        Described(Symbol("elsewhere"), "x"),
        Described(Symbol("elsewhere"), ["x"]),
        Described(Symbol("elsewhere"), {"size": 6}),
        "text",
    ],
    ids=[
        "empty",
        "value of another type",
        "unknown prefix",
        "unknown property",
        "property as a string",
        "application property as a symbol",
        "too many application properties",
        "text instead of a map",
        "negative offset",
        "offset of 2 to the power of 63",
        "offset that is a boolean",
        "filter value that is a number",
        "match-unfiltered as text",
        "unknown filter",
        "unknown filter with a list",
        "unknown filter with a map",
        "filter without a descriptor",
    ],
)
def test_invalid_filters_of_a_stream_consumer_are_ignored(filter_: Any10) -> None:
    """If an AMQP 1.0 client attaches to a stream with a filter that is invalid, is unknown or has more than 16
    fields, the broker leaves the filter out of its attach frame, and delivers every message.
    """
    filters = _parsed({Symbol("any"): filter_, Symbol("sql-filter"): Described(Symbol("amqp:sql-filter"), "oops =")})
    assert (filters.effective, filters.arguments, filters.selector(_MESSAGE)) == ({}, {}, True)


def test_an_invalid_filter_does_not_affect_the_other_filters_of_a_consumer() -> None:
    """If some filters of an AMQP 1.0 consumer of a stream are invalid, for example because a filter's name is a string
    instead of a symbol, the broker applies only the others, and its attach frame contains only these. A consumer
    without a map of filters gets every message.
    """
    valid = {Symbol("p"): Described(_FIELDS, {Symbol("subject"): "x"})}
    invalid: Map = {
        Symbol("other"): Described(_FIELDS, {}),
        "string": Described(_APPLICATION_FIELDS, {"size": 5}),
        Symbol("sql-filter"): Described(_FIELDS, "size = 6"),
    }
    filters = _parsed(valid | invalid)
    assert (filters.effective, filters.selector(_MESSAGE)) == (valid, False)
    assert _parsed({Symbol("sql-filter"): Described(Symbol("amqp:sql-filter"), b"size = 6")}).effective == {}
    assert _parsed(invalid).effective == {}
    filters = parse_filters(None, PROFILES[Like.V4_3])
    assert (filters.effective, filters.arguments, filters.selector(_MESSAGE)) == (None, {}, True)


@pytest.mark.parametrize(
    ("name", "value", "argument"),
    [
        ("offset-spec", Milliseconds(5_999), Timestamp(5)),
        ("offset-spec", Milliseconds(5_000), Timestamp(5)),
        ("offset-spec", Milliseconds(-1), Timestamp(0)),
        ("offset-spec", "first", "first"),
        ("offset-spec", Symbol("last"), "last"),
        ("offset-spec", ULong(0), Int64(0)),
        ("offset-spec", ULong((1 << 63) - 1), Int64((1 << 63) - 1)),
        ("filter", ["x", "y", Symbol("not a text")], ["x", "y"]),
        ("filter", "x", "x"),
        ("match-unfiltered", True, True),
        ("match-unfiltered", False, False),
    ],
)
def test_stream_filters_become_consumer_arguments(name: str, value: Any10, argument: Value) -> None:
    """The embedded broker converts the filters rabbitmq:stream-offset-spec, rabbitmq:stream-filter and
    rabbitmq:stream-match-unfiltered of an AMQP 1.0 consumer of a stream to the consumer arguments x-stream-offset,
    x-stream-filter and x-stream-match-unfiltered. The offset is a time, a number, or a string such as `first`.
    """
    wanted: Map = {Symbol("any"): Described(Symbol(f"rabbitmq:stream-{name}"), value)}
    filters = _parsed(wanted)
    assert filters.effective == wanted
    assert filters.arguments == {f"x-stream-{name.removesuffix('-spec')}": argument}
    assert [type(each) for each in filters.arguments.values()] == [type(argument)]


def test_only_the_last_of_several_stream_filters_of_the_same_kind_applies() -> None:
    """If an AMQP 1.0 consumer of a stream has several filters of the same kind, such as rabbitmq:stream-offset-spec,
    only the last of these applies. This does not affect a filter of another kind, such as rabbitmq:stream-filter.
    """
    offset, values = (Symbol(f"rabbitmq:stream-{name}") for name in ("offset-spec", "filter"))
    chosen = [Described(offset, "first"), Described(values, "x"), Described(offset, "next")]
    wanted: Map = {Symbol(str(number)): each for number, each in enumerate(chosen)}
    assert _parsed(wanted).arguments == {"x-stream-offset": "next", "x-stream-filter": "x"}


def test_of_sql_and_property_filters_only_the_kind_listed_last_is_applied() -> None:
    """If an AMQP 1.0 client attaches with both an SQL filter and property filters, the broker applies only the kind
    that the client lists last, as RabbitMQ 4.3 does. Without an SQL filter, it applies all of the property filters.
    """
    sql = Described(Symbol("amqp:sql-filter"), "size = 5")
    fields = Described(_FIELDS, {Symbol("subject"): "x"})
    assert _parsed({Symbol("sql-filter"): sql, Symbol("p"): fields}).effective == {"p": fields}
    assert _parsed({Symbol("p"): fields, Symbol("sql-filter"): sql}).effective == {"sql-filter": sql}
    both: Map = {Symbol("p"): fields, Symbol("a"): Described(_APPLICATION_FIELDS, {"size": 5})}
    assert _parsed(both).effective == both


def test_a_broker_like_4_0_ignores_sql_filters_but_not_offset_filters() -> None:
    """With `broker up --like 4.0`, the embedded broker ignores the SQL filter of an AMQP 1.0 consumer of a stream, as
    RabbitMQ 4.0 does. It still applies the consumer's filter for the offset.
    """
    wanted: Map = {
        Symbol("sql-filter"): Described(Symbol("amqp:sql-filter"), "FALSE"),
        Symbol("o"): Described(Symbol("rabbitmq:stream-offset-spec"), "first"),
    }
    filters = _parsed(wanted, Like.V4_0)
    assert (list(filters.effective or {}), filters.selector(_MESSAGE)) == (["o"], True)


def test_like_patterns_match_the_same_strings_as_regular_expressions() -> None:
    """In the SQL filters of AMQP 1.0 consumers, thousands of random LIKE patterns match the same strings as the
    equivalent regular expressions.
    """
    chosen = random.Random(41)
    for _ in range(20_000 if IN_CI else 2_000):
        pattern = "".join(chosen.choices("ab%_!", weights=(3, 3, 3, 2, 1), k=chosen.randrange(9)))
        text = "".join(chosen.choices("ab%\n", weights=(4, 4, 1, 1), k=chosen.randrange(10)))
        if re.fullmatch(r"([^!]|!.)*", pattern) is None:
            with pytest.raises(ValueError, match="escape character"):
                LikePattern(pattern, "!")
            continue
        parts = re.findall(r"!.|[^!]", pattern)
        wanted = "".join({"%": ".*", "_": "."}.get(part) or re.escape(part[-1]) for part in parts)
        is_match = re.fullmatch(wanted, text, re.DOTALL) is not None
        assert LikePattern(pattern, "!").matches(text, lambda _: None) is is_match, (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("%a_b%", "aaxb"), ("%a_b", "aaaxb"), ("a%bb%c", "abbc"), ("%_%", "x"), ("%_a%_b%", "xaxb"), ("_%_", "ab")],
)
def test_a_like_pattern_matches_at_a_later_position_if_the_first_does_not_match(pattern: str, text: str) -> None:
    """If part of a LIKE pattern in an SQL filter occurs several times in the text, and the rest of the pattern does
    not match after the first occurrence, the filter also tries the later ones: 'aaxb' LIKE '%a_b%' is true.
    """
    assert LikePattern(pattern).matches(text, lambda _: None)


@pytest.mark.parametrize(("pattern", "text"), [("a%bb%c", "abc"), ("ab%ba", "aba"), ("%__%", "x"), ("a%b%a", "aa")])
def test_the_parts_of_a_like_pattern_do_not_overlap(pattern: str, text: str) -> None:
    """In an SQL filter, two parts of a LIKE pattern cannot match the same character: 'aba' is not LIKE 'ab%ba'."""
    assert not LikePattern(pattern).matches(text, lambda _: None)


def work_of(pattern: str, text: str) -> int:
    """The units of work that a pattern takes."""
    spent: list[int] = []
    LikePattern(pattern).matches(text, spent.append)
    return sum(spent)


@pytest.mark.parametrize(
    "pattern",
    ["%a" * 2000 + "%", "%" * 4000, "%ab" * 1300, "a" * 4000, "%" + "a" * 3900 + "b%"],
    ids=["many letters", "only wildcards", "many pairs", "no wildcard", "one long part"],
)
def test_a_long_like_pattern_is_compared_in_under_a_million_steps(pattern: str) -> None:
    """To limit the work for one message, an SQL filter compares a LIKE pattern of 4,000 characters with a string of
    900,000 characters in fewer than a million steps.
    """
    assert work_of(pattern, "a" * 900_000) < MOST_WORK


def test_an_sql_filter_that_takes_too_long_for_a_message_raises_an_error() -> None:
    """If comparing the LIKE patterns of an SQL filter with the strings in a large message would take too many steps,
    evaluating the filter raises TooMuchWork, instead of holding up the broker.
    """
    message = parse(Amqp10Message(application_properties={"a": "a" * 900_000}, body=data_section(b"")).encode())
    with pytest.raises(TooMuchWork):
        compile_sql(f"a LIKE '%{'a_' * 1900}b%'")(FilteredMessage(message))
    with pytest.raises(TooMuchWork):
        compile_sql(" OR ".join(["a LIKE '%b%'"] * 45))(FilteredMessage(message))
    assert compile_sql("a LIKE '%a_a%'")(FilteredMessage(message))


@pytest.mark.parametrize(
    ("name", "units"), [("subject", 2), ("group_sequence", 1), ("content_type", 0), ("absolute_expiry_time", 1)]
)
def test_decoding_a_field_counts_as_work_once(name: str, units: int) -> None:
    """The work that the filters of an AMQP 1.0 consumer may do for one message is limited to a million units. Decoding
    a field of the message takes one unit, or one for each 64 bytes of text. A field is decoded, and counted, only once.
    """
    sent = Amqp10Message(properties=_PROPERTIES._replace(subject="s" * 191), body=data_section(b"")).encode()
    message = FilteredMessage(parse(sent))
    message.work(MOST_WORK - units)
    for _ in range(2):
        message.property(name)
    with pytest.raises(TooMuchWork, match=r"^more than 1000000 units of work for one message$"):
        message.work(1)


@pytest.mark.parametrize("header", [None, MessageHeader(True), MessageHeader(True, UInt8(4))])
def test_an_sql_filter_treats_a_message_without_a_priority_as_priority_4(header: MessageHeader | None) -> None:
    """An SQL filter treats a message without a priority as if it had priority 4, the default in AMQP 1.0."""
    message = Amqp10Message(header or MessageHeader(), body=data_section(b"")).encode()
    assert compile_sql("h.priority = 4")(FilteredMessage(parse(message)))


def test_an_sql_filter_can_compare_a_string_that_is_not_utf_8() -> None:
    """An SQL filter can compare an application property that is not valid UTF-8: `a = 0xFF` is true for an AMQP 1.0
    message whose property `a` consists of the byte FF.
    """
    message = Amqp10Message(application_properties={"a": "\udcff"}, body=data_section(b"")).encode()
    assert compile_sql("a = 0xFF")(FilteredMessage(parse(message)))
