"""Field tables and names in received messages can be published again unchanged, and cannot break the I/O thread."""

from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from struct import error as StructError  # noqa: N812
from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mqtool.codecs.field_tables import CLIENT, EXACT, FieldTables, NoFieldType, decode_properties, decode_short_string
from mqtool.message import MAX_DEPTH, UNREADABLE, Timestamp, Undecoded
from tests.hostile import VALUES, headers_of, nested, short, sized

names = some.text(max_size=60)
scalars = (
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63 - 1)
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text()
    | some.binary()
    | some.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=some.just(UTC)).map(
        lambda moment: moment.replace(microsecond=0)
    )
    | some.decimals(-(10**6), 10**6, places=3)
)
values = some.recursive(scalars, lambda inner: some.lists(inner) | some.dictionaries(names, inner), max_leaves=8)


@given(some.dictionaries(names, values, max_size=5))
def test_decoding_an_encoded_field_table_returns_the_same_values(table: dict[str, object]) -> None:
    """After encoding and decoding, a field table contains the same values, even if it contains tables and lists."""
    encoded = CLIENT.encode_table(table)

    assert CLIENT.decode_table(encoded) == (table, len(encoded))


def is_finite(value: bytes) -> bool:
    return value[:1] not in b"fd" or isfinite(unpack(">" + value[:1].decode(), value[1:])[0])


FINITE = [value for value in VALUES if is_finite(value)]
AS_THEY_ARE = [value for value in FINITE if value[:1] != b"t"]  # any octet but zero is true
DEEP = [nested(MAX_DEPTH + 1), nested(2_000), nested(450, b"A")]


@pytest.mark.parametrize("value", [*AS_THEY_ARE, *DEEP, b"F" + sized(b"?")], ids=lambda value: value[:9].hex())
def test_a_received_header_value_is_encoded_to_the_same_bytes(value: bytes) -> None:
    """If mqtool receives a message and publishes it again, each header value is encoded to the same bytes, even if it
    is not UTF-8, is deeply nested or is damaged.
    """
    table = sized(headers_of((b"h\xff", value), (b"after", b"V")))
    decoded, end = CLIENT.decode_table(table)

    assert (list(decoded), end) == (["h\udcff", "after"], len(table))
    assert CLIENT.encode_table(decoded) == table


@pytest.mark.parametrize("value", [*FINITE, *DEEP], ids=lambda value: value[:9].hex())
def test_the_bytes_of_a_complete_header_value_are_accepted(value: bytes) -> None:
    """In an NDJSON line, the value of a header can be given as bytes in AMQP's encoding. Before mqtool publishes
    these bytes, it checks that they are exactly one value that RabbitMQ accepts. A complete value passes, however
    deeply it is nested.
    """
    assert EXACT.is_value(value)


@pytest.mark.parametrize(
    "data", [b"", b"?", b"VV", b"S\0", b"F\xff\xff\xff\xff", b"F" + sized(b"?"), b"A" + sized(b"S")], ids=bytes.hex
)
def test_bytes_that_are_not_exactly_one_header_value_are_not_accepted(data: bytes) -> None:
    """mqtool does not accept bytes as the encoding of an AMQP header value if they are cut short, begin with an unknown
    type, or continue after the value.
    """
    assert not EXACT.is_value(data)


def test_a_header_value_that_python_cannot_represent_is_kept() -> None:
    """If a header's timestamp is beyond the range of Python's datetime, for example because it is in milliseconds by
    mistake, mqtool decodes it as a Timestamp. If a header's value is nested too deeply, mqtool keeps its innermost part
    encoded.
    """
    table = headers_of((b"ms", b"T" + pack(">q", 1_700_000_000_000_000)), (b"deep", b"A" + sized(nested(MAX_DEPTH))))
    decoded = CLIENT.decode_table(sized(table))[0]

    assert decoded["ms"] == Timestamp(1_700_000_000_000_000)
    assert isinstance(decoded["ms"], Timestamp)
    value = decoded["deep"][0]
    while not isinstance(value, Undecoded):
        value = value["n"]
    assert value == nested(1)


@pytest.mark.parametrize("codec", [CLIENT, EXACT])
def test_the_first_of_two_headers_with_the_same_name_is_used(codec: FieldTables) -> None:
    """If a message has two headers with the same name, mqtool uses the first value, as RabbitMQ does: RabbitMQ
    replaces only the first `x-death` and the first `x-delivery-count`, and delivers the others as the publisher wrote
    them.
    """
    table = sized(short(b"x") + b"S" + sized(b"first") + short(b"y") + b"V" + short(b"x") + b"S" + sized(b"second"))
    assert codec.decode_table(table) == ({"x": "first", "y": None}, len(table))


@given(some.binary(max_size=60))
def test_random_bytes_never_break_decoding(octets: bytes) -> None:
    """When mqtool receives a message, decoding its properties or a field table in them returns a dict and raises no
    error, whatever bytes the publisher has sent. After a damaged table, decoding can continue with the next field.
    """
    assert isinstance(CLIENT.decode_table(octets)[0], dict)
    _, end = CLIENT.decode_table(sized(octets) + short(b"next"))
    assert decode_short_string(sized(octets) + short(b"next"), end)[0] == "next"
    assert isinstance(decode_properties(octets), dict)


def test_unreadable_properties_become_one_header() -> None:
    """If mqtool receives a message whose properties it cannot decode, the message has only the header
    mqtool-unreadable, which contains the bytes of all properties.
    """
    octets = b"\x80\x80" + short(b"text/plain") + b"\xffcut"
    assert decode_properties(octets) == {"headers": {UNREADABLE: octets}}
    damaged = b"\x20\x40" + sized(b"?") + b"\7"
    assert decode_properties(damaged) == {"headers": {UNREADABLE: damaged}}


def test_a_value_without_an_amqp_type_is_an_error() -> None:
    """If a value has no AMQP type, encoding a field table raises NoFieldType. If a list contains itself, it raises
    ValueError.
    """
    endless: list[object] = []
    endless.append(endless)
    for value, error in ((endless, ValueError), (object(), NoFieldType)):
        with pytest.raises(error):
            CLIENT.encode_table({"h": value})


@pytest.mark.parametrize(
    "text",
    ["1e999999999", "1e-999999999", "9" * 5000, "0." + "1" * 5000, "3e9"],
    ids=["large exponent", "small exponent", "many digits", "many decimal places", "beyond 32 bits"],
)
def test_a_decimal_that_is_too_large_is_an_error(text: str) -> None:
    """Encoding a decimal header that is too large or too precise for AMQP raises an error, instead of computing
    forever.
    """
    with pytest.raises((OverflowError, StructError)):
        CLIENT.encode_table({"h": Decimal(text)})


@pytest.mark.parametrize("text", ["0", "-0.00", "0e99", "1.50", "-2147483648", "21474836.47", "1e9"])
def test_a_decimal_keeps_its_value(text: str) -> None:
    """If mqtool receives a message with a decimal header and publishes it again, the header has the same value. Only
    trailing zeros may be missing.
    """
    assert CLIENT.decode_table(CLIENT.encode_table({"h": Decimal(text)}))[0] == {"h": Decimal(text)}
