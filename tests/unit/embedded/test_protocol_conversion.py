"""Conversion between AMQP 0-9-1 and AMQP 1.0: values at the limits, and forged ones."""

import re
import uuid

import pytest

from mqtool.broker.embedded.model.amqp_message import (
    BrokerMessage,
    ContentHeader,
    MessageProperties,
    encode_address,
    encode_short,
)
from mqtool.broker.embedded.model.dead_lettering import dead_letter
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.protocol_conversion import map_from_091, quoted, table_to_091, unquoted
from mqtool.broker.embedded.model.sectioned import Sectioned, encode, parse
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, MessageHeader, data_section
from mqtool.codecs.amqp10_values import Any10, Array, Char, Described, Map, Milliseconds, RawDecimal, Symbol, ULong
from mqtool.codecs.field_tables import (
    ByteArray,
    Decimal,
    Int8,
    Int64,
    Table,
    Timestamp,
    UInt8,
    UInt16,
    UInt32,
    Value,
    encode_table,
)
from tests.unit.embedded.test_field_table import typed

_LIKE = PROFILES[Like.V4_3]
_ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
_DATA = data_section(b"")


def _published(message: Amqp10Message) -> Sectioned:
    return parse(message.encode()).to("logs", "key", _LIKE)


def _delivered(message: BrokerMessage) -> Amqp10Message:
    return Amqp10Message.decode(encode(message, _LIKE))


def _from_091(fields: dict[str, bytes], body: bytes = b"") -> BrokerMessage:
    return BrokerMessage(encode_address("logs", "key"), ContentHeader.of(MessageProperties.of(fields), len(body)), body)


@pytest.mark.parametrize(
    ("sent", "seconds", "republished"),
    [
        (1999, 1, 1000), (0, 0, 0), (-1, 0, 0), (-1500, 2**64 - 1, -1000), (-2000, 2**64 - 2, -2000),
        (2**63 - 1, 9223372036854775, 9223372036854775000), (-(2**63), 2**64 - 9223372036854775, -9223372036854775000),
    ],
)  # fmt: skip
def test_times_before_1970_survive_conversion_to_amqp_0_9_1_and_back(sent: int, seconds: int, republished: int) -> None:
    """A time in an AMQP 1.0 message, in milliseconds, becomes an unsigned number of seconds for an AMQP 0-9-1 client.
    A time that is a second or more before 1970 therefore becomes a very large number. If the AMQP 0-9-1 client
    republishes the message, AMQP 1.0 clients receive the original time, truncated to whole seconds.
    """
    time = Milliseconds(sent)
    message = _published(
        Amqp10Message(properties=BareProperties(creation_time=time), application_properties={"t": time}, body=_DATA)
    )
    assert (message.properties.named()["timestamp"], message.headers["t"]) == (seconds, seconds)
    back = _delivered(_from_091(message.properties.fields()))
    assert (back.properties.creation_time, back.application_properties["t"]) == (republished, republished)


@pytest.mark.parametrize("seconds", [2**60, 2**63, 2**64 - 1])
def test_any_timestamp_of_amqp_0_9_1_can_be_delivered_over_amqp_1_0(seconds: int) -> None:
    """If an AMQP 0-9-1 message has a timestamp, in its properties or headers, that is too large for AMQP 1.0, the
    message is still delivered over AMQP 1.0. The timestamp then wraps around: AMQP 1.0 clients receive the lowest 64
    bits of the time in milliseconds.
    """
    headers: Table = {"t": Timestamp(seconds), "x-t": [Timestamp(seconds)]}
    found = _delivered(_from_091({"timestamp": seconds.to_bytes(8), "headers": encode_table(headers)}))
    expected = (seconds * 1000 + 2**63) % 2**64 - 2**63
    assert (found.properties.creation_time, found.application_properties["t"]) == (expected, expected)
    assert found.message_annotations[Symbol("x-t")] == [expected]


_DEATH: Map = {
    Symbol("ttl"): UInt32(5), Symbol("queue"): "q", Symbol("reason"): Symbol("expired"), Symbol("count"): ULong(7),
    Symbol("first-time"): Milliseconds(1700000000999), Symbol("last-time"): Milliseconds(1700000005000),
    Symbol("exchange"): "logs", Symbol("routing-keys"): Array(["a", "b"]),
}  # fmt: skip
_X_DEATH: Table = {
    "original-expiration": "5", "count": Int64(7), "reason": "expired", "queue": "q", "time": Timestamp(1700000000),
    "exchange": "logs", "routing-keys": ["a", "b"],
}  # fmt: skip


def test_a_republished_dead_letter_keeps_its_history() -> None:
    """If an AMQP 1.0 client republishes a dead letter, AMQP 0-9-1 clients receive its annotation x-opt-deaths as the
    header x-death, and its annotation x-opt-rabbitmq-received-time as the header timestamp_in_ms. AMQP 1.0 clients
    receive the header x-death of a dead letter as the annotation x-opt-deaths.
    """
    second = {name: value for name, value in _DEATH.items() if name != "ttl"} | {Symbol("count"): ULong(2**63)}
    annotations: Map = {
        Symbol("x-opt-deaths"): Array([_DEATH, second]),
        Symbol("x-opt-rabbitmq-received-time"): Milliseconds(1700000000123),
    }
    message = _published(Amqp10Message(message_annotations=annotations, body=_DATA))
    no_ttl = {name: value for name, value in _X_DEATH.items() if name != "original-expiration"}
    deaths = [_X_DEATH, no_ttl | {"count": -(2**63)}]
    assert message.headers == {"timestamp_in_ms": 1700000000123, "x-death": deaths}
    sent: list[Value] = [_X_DEATH, no_ttl | {"count": Int64(0), "routing-keys": [b"\xff", Int64(1)]}]
    dead = _from_091({"headers": encode_table({"x-death": sent})})
    dead.is_dead = True
    found = _delivered(dead).message_annotations
    times = {Symbol("first-time"): 1700000000000, Symbol("last-time"): 1700000000000}
    assert found[Symbol("x-opt-deaths")] == [
        _DEATH | times,
        second | times | {Symbol("count"): 0, Symbol("routing-keys"): ["\udcff"]},
    ]
    assert Symbol("x-death") not in found


@pytest.mark.parametrize(
    "changes",
    [{"count": ULong(2**64 - 1)}, {"count": 1.5}, {"first-time": Milliseconds(-5)}, {"first-time": 5}, {"queue": None},
     {"reason": 5}, {"exchange": b"e"}, {"routing-keys": "abc"}, {"ttl": float("inf")}, {"ttl": "5"}],
    ids=str,
)  # fmt: skip
def test_a_message_with_a_forged_annotation_x_opt_deaths_is_accepted(changes: dict[str, Any10]) -> None:
    """If an AMQP 1.0 client publishes a message whose annotation x-opt-deaths contains invalid values, such as a count
    of 1.5, the broker accepts the message, and converts its other annotations to headers.
    """
    forged = Array([_DEATH | {Symbol(name): value for name, value in changes.items()}])
    annotations: Map = {Symbol("x-opt-deaths"): forged, Symbol("x-a"): "kept"}
    headers = _published(Amqp10Message(message_annotations=annotations, body=_DATA)).headers
    assert headers["x-a"] == "kept"
    back = _delivered(_from_091({"headers": encode_table(headers)}))
    assert back.message_annotations[Symbol("x-a")] == "kept"


@pytest.mark.parametrize("value", ["forged", 5, [], ["forged"], [{}], {"count": ULong(1)}, [_DEATH, {}]], ids=str)
def test_an_annotation_x_opt_deaths_or_received_time_with_an_invalid_value_is_dropped(value: Any10) -> None:
    """If the annotation x-opt-deaths of an AMQP 1.0 message is not a list of valid entries, AMQP 0-9-1 clients
    receive the message without the header x-death. If the annotation x-opt-rabbitmq-received-time is not a time, they
    get no header timestamp_in_ms.
    """
    annotations: Map = {Symbol("x-opt-deaths"): value, Symbol("x-opt-rabbitmq-received-time"): value}
    assert _published(Amqp10Message(message_annotations=annotations, body=_DATA)).headers == {}


@pytest.mark.parametrize(
    ("forged", "is_dead"),
    [([_X_DEATH], False), *((forged, True) for forged in
      ("forged", Int64(5), ["forged"], [{}], [_X_DEATH | {"count": "1"}], [_X_DEATH | {"time": None}], [_X_DEATH, {}],
       [_X_DEATH | {"routing-keys": "k"}], [_X_DEATH | {"count": Int64(-1)}]))],
    ids=str,
)  # fmt: skip
def test_a_forged_header_x_death_is_an_ordinary_header(forged: Value, *, is_dead: bool) -> None:
    """If a client has written the header x-death of an AMQP 0-9-1 message, AMQP 1.0 clients receive the header as the
    annotation x-death, like other headers whose names begin with x-. The same applies to a dead letter whose header
    does not have the form in which brokers write it.
    """
    message = _from_091({"headers": encode_table({"x-death": forged})})
    message.is_dead = is_dead
    found = _delivered(message).message_annotations
    assert Symbol("x-opt-deaths") not in found
    assert type(found[Symbol("x-death")]) is type(forged)


@pytest.mark.parametrize(
    ("expiration", "ttl"),
    [("0", 0), ("4294967295", 2**32 - 1), ("4294967296", None), ("8589934592", None), ("²", None), ("-1", None),
     ("1.5", None), ("", None), ("9" * 5000, None), (5, None), (None, None)],
    ids=lambda value: str(value)[:10],
)  # fmt: skip
def test_only_an_expiration_that_amqp_1_0_can_express_becomes_a_ttl(expiration: Value, ttl: int | None) -> None:
    """If the expiration of an AMQP 0-9-1 message is an integer from 0 to 4,294,967,295, AMQP 1.0 clients receive it
    as the message's ttl. Otherwise, they get no ttl. The same rule applies to the original expiration in the x-death
    header of a dead letter.
    """
    fields = {"headers": encode_table({"x-death": [_X_DEATH | {"original-expiration": expiration}]})}
    if isinstance(expiration, str) and len(expiration) < 256:
        fields["expiration"] = encode_short(expiration.encode())
    message = _from_091(fields)
    assert _delivered(message).header.ttl == (ttl if "expiration" in fields else None)
    message.is_dead = True
    found = _delivered(message)
    assert found.header.ttl == ttl
    (death,) = found.message_annotations[Symbol("x-opt-deaths")]
    assert death.get(Symbol("ttl"), "none") == ("none" if ttl is None else ttl)


def test_bytes_that_are_not_utf_8_are_kept() -> None:
    """If a property, a routing key, or the name of an exchange or queue contains bytes that are not UTF-8, the broker
    keeps these bytes when it converts a message between AMQP 0-9-1 and AMQP 1.0. The exception is the user id of an
    AMQP 1.0 message: if it is not UTF-8, the broker drops it.
    """
    fields = {"user_id": b"\x02u\xff", "app_id": b"\x01\xff", "reply_to": b"\x03r/\xff", "message_id": b"\x01\xff"}
    found = _delivered(_from_091(fields))
    expected = BareProperties("\udcff", b"u\xff", None, None, "/queues/r%2F%FF", group_id="\udcff")
    assert found.properties == expected
    back = _published(Amqp10Message(properties=expected, body=_DATA)).properties
    assert back.fields() == {name: raw for name, raw in fields.items() if name != "user_id"}
    for message in (_published(Amqp10Message(body=_DATA)), _from_091({})):
        dead = dead_letter(message, "q\udcff", "expired", "dlx\udcff", "dead\udcff", 0, trusts_deaths=False)
        annotations = _delivered(dead).message_annotations
        assert annotations[Symbol("x-exchange")] == "dlx\udcff"
        assert annotations[Symbol("x-routing-key")] == "dead\udcff"
        assert annotations[Symbol("x-first-death-queue")] == b"q\xff"


@pytest.mark.parametrize(
    ("sent", "user_id"), [(b"guest", "guest"), ("guest", "guest"), (b"a\0b", None), (b"\xff", None), (5, None)]
)
def test_a_user_id_that_is_not_text_is_dropped(sent: Any10, user_id: str | None) -> None:
    """The user id of an AMQP 1.0 message becomes an AMQP 0-9-1 property only if it is UTF-8 without null characters."""
    message = _published(Amqp10Message(properties=BareProperties(user_id=sent), body=_DATA))
    assert message.properties.user_id == user_id


@pytest.mark.parametrize(
    ("sent", "priority"), [(UInt8(0), 0), (UInt8(255), 255), (UInt16(256), None), (Int8(-1), None), ("5", None)]
)
def test_a_priority_that_is_not_a_byte_is_dropped(sent: Any10, priority: int | None) -> None:
    """The priority of an AMQP 1.0 message becomes an AMQP 0-9-1 property only if it is a number from 0 to 255."""
    assert _published(Amqp10Message(MessageHeader(priority=sent), body=_DATA)).properties.priority == priority


def test_values_from_amqp_1_0_clients_are_converted_to_amqp_0_9_1_types_and_back() -> None:
    """If an AMQP 1.0 client sends arguments, annotations or properties, the broker converts their values to types of
    AMQP 0-9-1, even in nested lists and maps. For AMQP 1.0 clients, it converts such values back. It drops values of
    types that the other protocol does not have.
    """
    dropped = [RawDecimal(b"1234"), float("inf"), Described(ULong(1), "x")]
    inner: Map = {
        "symbol": Symbol("s"), "char": Char("c"), "bytes": b"\xff", "text": b"text", "uuid": _ID, "small": ULong(5),
        "large": ULong(2**63), "time": Milliseconds(5000), "k" * 255: 1, "k" * 256: 2, "\udcff": None,
        "none": dropped[0],
    }  # fmt: skip
    expected: Table = {
        "symbol": "s", "char": "c", "bytes": b"\xff", "text": "text", "uuid": str(_ID), "small": Int64(5),
        "large": Int64(-(2**63)), "time": Timestamp(5), "k" * 255: 1, "\udcff": None,
    }  # fmt: skip
    table = table_to_091({"list": [*dropped, inner, [*dropped, Symbol("s")]], "map": inner, "none": dropped[1]}.items())
    assert typed(table) == typed({"list": [expected, ["s"]], "map": expected})
    arguments: Table = {
        "l": [Decimal(1, 1), ByteArray(b"b"), {"t": Timestamp(5), "d": Decimal(1, 1)}], "t": Timestamp(5),
        "x": ByteArray(b"b"), "d": Decimal(1, 1), "longest": "l" * 4096, "longer": "l" * 4097, "nul": "\0",
        "raw": b"\xff", "broker": "\udcff",
    }  # fmt: skip
    back = map_from_091(arguments)
    assert [*map(type, back["l"][1])] == [Symbol]
    assert typed(back) == typed({
        "l": [b"b", {"t": Milliseconds(5000)}], "t": Milliseconds(5000), "x": b"b", "longest": "l" * 4096,
        "longer": b"l" * 4097, "nul": b"\0", "raw": b"\xff", "broker": b"\xff",
    })  # fmt: skip


@pytest.mark.parametrize("name", ["q", "a/b", "é %", "\udcff", "~-._"])
def test_a_name_in_an_address_is_percent_encoded(name: str) -> None:
    """When a name is put into an AMQP 1.0 address, each character that an address cannot contain is percent-encoded.
    Decoding the address returns the same name. The exception is a name with bytes that are not valid UTF-8: it is
    also percent-encoded, but decoding raises UnicodeDecodeError.
    """
    encoded = quoted(name)
    assert re.fullmatch(r"[\w.~%-]+", encoded, re.ASCII)
    if name == "\udcff":
        with pytest.raises(UnicodeDecodeError):
            unquoted(encoded)
    else:
        assert unquoted(encoded) == name


@pytest.mark.parametrize(
    ("body", "is_encoded"),
    [(b"\0Su\xa0\1a", True), (b"\0Sv\x45", True), (b"\0Sw\x40", True), (b"", False), (b"\0", False), (b"hello", False),
     (b"\0St\xc1\1\0", False), (b"\0Sx\xc1\1\0", False)],
)  # fmt: skip
def test_only_a_message_of_type_amqp_1_0_can_have_an_encoded_amqp_1_0_body(body: bytes, *, is_encoded: bool) -> None:
    """If an AMQP 0-9-1 client publishes a message whose type is `amqp-1.0` and whose body is an encoded AMQP 1.0 body,
    AMQP 1.0 clients receive this body unchanged. In all other cases, AMQP 1.0 clients receive the body in a data
    section.
    """
    found = _delivered(_from_091({"type": encode_short(b"amqp-1.0")}, body))
    assert found.body == (body if is_encoded else data_section(body))
    assert _delivered(_from_091({"type": encode_short(b"amqp")}, body)).body == data_section(body)
