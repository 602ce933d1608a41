"""Messages in AMQP 1.0: properties and headers keep their meaning, and addresses name exchanges and queues."""

import struct
from datetime import UTC, datetime
from decimal import Decimal
from functools import reduce
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqtool.codecs import sections
from mqtool.codecs.amqp10_message import (
    APPLICATION_PROPERTIES,
    DATA,
    FOOTER,
    HEADER,
    MESSAGE_ANNOTATIONS,
    SEQUENCE,
    Amqp10Message,
    BareProperties,
    MessageHeader,
    data_section,
    value_section,
)
from mqtool.codecs.amqp10_values import (
    MOST_VALUES,
    NULL,
    Array,
    Described,
    Encoded,
    Milliseconds,
    RawDecimal,
    Symbol,
    ULong,
    compound,
    section,
    variable,
)
from mqtool.codecs.amqp10_values import encode as encode_value
from mqtool.codecs.field_tables import Int64, UInt8, UInt32
from mqtool.codecs.sections import decode, encode, exchange_address, exchange_and_key, queue_address
from mqtool.errors import BadData
from mqtool.message import UNREADABLE, Delivery, Message, Undecoded
from mqtool.work.history import Origin, origin_of


@pytest.mark.parametrize(
    ("exchange", "key", "address"),
    [
        ("", "q", "/queues/q"),
        ("", "a/b c%é\udcff", "/queues/a%2Fb%20c%25%C3%A9%FF"),
        ("", "/exchanges/x/k", "/exchanges/x/k"),
        ("", "/queues/q", "/queues/%2Fqueues%2Fq"),
        ("x", "", "/exchanges/x"),
        ("x", "k", "/exchanges/x/k"),
        ("a/b\udcff", "c/d\udcfe", "/exchanges/a%2Fb%FF/c%2Fd%FE"),
    ],
)
def test_an_address_names_an_exchange_and_a_routing_key(exchange: str, key: str, address: str) -> None:
    """The AMQP 1.0 address of a message is /exchanges/EXCHANGE/KEY or, for the default exchange, /queues/QUEUE. Names
    are percent-encoded, and can contain bytes that are not UTF-8. A routing key of the default exchange that begins
    with /exchanges/, such as a reply's, is already an address, and is used unchanged.
    """
    assert exchange_address(exchange, key) == address
    if not key.startswith("/"):
        assert exchange_and_key(address) == (exchange, key)
        assert exchange or queue_address(key) == address


def test_a_message_without_an_address_has_the_default_exchange_and_an_empty_routing_key() -> None:
    """If the address of an AMQP 1.0 message is missing or empty, or names no exchange or queue in the form /exchanges/…
    or /queues/…, its exchange is the default exchange, and its routing key is empty.
    """
    assert exchange_and_key(None) == exchange_and_key("") == exchange_and_key("q") == ("", "")
    assert exchange_and_key("/queues/") == ("", "")
    assert exchange_address("x") == "/exchanges/x"


PROPERTIES: dict[str, Any] = {
    "content_type": "text/plain",
    "content_encoding": "gzip",
    "delivery_mode": 2,
    "priority": 7,
    "correlation_id": "c",
    "reply_to": "answers here",
    "expiration": "60000",
    "timestamp": 1_700_000_000,
    "type": "t",
    "user_id": "guest",
    "app_id": "a",
    "headers": {"n": 1, "text": "é", "x-list": [1, "two"], "CC": ["copy"]},
}


def test_each_property_has_its_place_in_an_amqp_1_0_message() -> None:
    """mqtool sends each property of an AMQP 1.0 message in the section where RabbitMQ expects it. The delivery mode,
    priority and expiration are in the header section. The type, x- headers and CC are annotations. Other headers are
    application properties. All other properties are in the properties section.
    """
    sent = Amqp10Message.decode(encode(Message(b"body", properties=PROPERTIES, message_id="id"), to="/queues/q"))
    assert sent == Amqp10Message(
        MessageHeader(durable=True, priority=UInt8(7), ttl=UInt32(60_000)),
        {},
        {Symbol("x-list"): [1, "two"], Symbol("x-cc"): ["copy"], Symbol("x-basic-type"): "t"},
        BareProperties(
            message_id="id", user_id=b"guest", to="/queues/q", reply_to="/queues/answers%20here", correlation_id="c",
            content_type=Symbol("text/plain"), content_encoding=Symbol("gzip"),
            creation_time=Milliseconds(1_700_000_000_000), group_id="a",
        ),
        {"n": 1, "text": "é"},
        data_section(b"body"),
    )  # fmt: skip
    assert isinstance(sent.properties.content_type, Symbol)
    assert isinstance(sent.properties.content_encoding, Symbol)
    assert not isinstance(sent.properties.correlation_id, Symbol)
    assert not isinstance(sent.properties.group_id, Symbol)
    assert not isinstance(sent.message_annotations[Symbol("x-basic-type")], Symbol)


def test_a_message_arrives_with_the_properties_with_which_it_was_sent() -> None:
    """After a message has been encoded and decoded for AMQP 1.0, it has the same body, message id, properties and
    headers as before, and also the address to which it was sent.
    """
    data = encode(Message(b"body", properties=PROPERTIES, message_id="id"), to="/queues/q")
    found = decode(data, "q", 3, 4)
    properties = {**PROPERTIES, "message_id": "id", "to": "/queues/q"}
    assert found == Delivery(b"body", "", "q", "q", False, properties, 3, 4, settled=False)
    assert decode(data, "q", 3, 4, settled=True).settled
    assert decode(data, "q", 3, 4) == found  # what is cached is the same


def test_properties_that_only_amqp_1_0_has_are_kept_if_a_message_is_sent_again() -> None:
    """If mqtool sends an AMQP 1.0 message again, for example as a retry, the message keeps the properties that AMQP
    0-9-1 does not have. Properties of a wrong type are left out.
    """
    fields = BareProperties(
        subject="s",
        absolute_expiry_time=Milliseconds(1_700_000_000_000),
        group_sequence=UInt32(4_294_967_295),
        reply_to_group_id="r",
    )
    found = received(properties=fields)
    assert Amqp10Message.decode(encode(Message(b"", properties=found.properties))).properties == fields
    odd: Any = BareProperties(
        subject=[1], absolute_expiry_time="never", group_sequence=True, reply_to_group_id=5, content_type=Symbol("t")
    )
    assert received(properties=odd).properties == {"content_type": "t"}
    assert "group_sequence" not in received(properties=BareProperties(group_sequence=ULong(1 << 32))).properties


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000])
@pytest.mark.parametrize("properties", [{}, {"app_id": "a"}, {"headers": {}}, {"priority": None}])
def test_a_body_of_any_size_arrives_unchanged(size: int, properties: dict[str, Any]) -> None:
    """A body of any size is unchanged after encoding and decoding for AMQP 1.0, with or without a message id, an
    address and properties.
    """
    body = bytes(number % 251 for number in range(size))
    given = {name: value for name, value in properties.items() if value}
    for message_id, to in product((None, "", "id", "i" * 300), (None, "/queues/q")):
        data = encode(Message(body, properties=properties, message_id=message_id), to=to)
        sent = Amqp10Message.decode(data)
        assert sent.properties == BareProperties(message_id, to=to, group_id=given.get("app_id"))
        assert (sent.header, sent.message_annotations, sent.application_properties) == (MessageHeader(), {}, {})
        others = {"message_id": message_id, "to": to}
        expected = given | {name: value for name, value in others.items() if value is not None}
        assert decode(data, "q", 1, 1) == Delivery(body, "", "q", "q", False, expected, 1, 1)


@pytest.mark.parametrize(
    ("persistent", "properties", "header"),
    [
        (True, {}, MessageHeader(durable=True)),
        (False, {}, MessageHeader()),
        (True, {"app_id": "a"}, MessageHeader(durable=True)),
        (False, {"app_id": "a"}, MessageHeader()),
        (False, {"delivery_mode": 2}, MessageHeader(durable=True)),
        (True, {"delivery_mode": 1}, MessageHeader()),
        (True, {"delivery_mode": 1, "priority": 0}, MessageHeader(durable=False, priority=UInt8(0))),
        (False, {"priority": 255}, MessageHeader(durable=False, priority=UInt8(255))),
        (False, {"expiration": "0"}, MessageHeader(durable=False, ttl=UInt32(0))),
        (True, {"expiration": 4_294_967_295}, MessageHeader(durable=True, ttl=UInt32(4_294_967_295))),
    ],
)
def test_a_message_without_a_delivery_mode_is_durable_if_messages_are_persistent_by_default(
    persistent: bool, properties: dict[str, Any], header: MessageHeader
) -> None:
    """Over AMQP 1.0, a message with delivery mode 2 is sent as durable, and one with delivery mode 1 is not. A message
    without a delivery mode is sent as durable only if the caller passes `persistent=True`.
    """
    for message_id, to in ((None, None), ("id", None), (None, "/queues/q")):
        message = Message(b"", properties=properties, message_id=message_id)
        assert Amqp10Message.decode(encode(message, to=to, persistent=persistent)).header == header


@pytest.mark.parametrize("properties", [{}, {"headers": {}}, {"priority": None}])
def test_a_message_without_properties_consists_of_its_body_only(properties: dict[str, Any]) -> None:
    """Over AMQP 1.0, a message that has neither properties nor headers is sent without empty sections for them."""
    assert encode(Message(b"body", properties=properties)) == data_section(b"body")


@pytest.mark.parametrize(
    ("properties", "error", "hint"),
    [
        ({"cluster_id": "c"}, "AMQP 1.0 has no property cluster-id", "send it as a header: -H cluster-id=VALUE"),
        ({"priority": 256}, "expiration None or priority 256 is too large, or not a number",
         "an expiration is in milliseconds, up to 4294967295; a priority up to 255"),
        ({"expiration": "1m"}, "expiration '1m' or priority None is too large, or not a number",
         "an expiration is in milliseconds, up to 4294967295; a priority up to 255"),
        ({"expiration": " 5"}, "expiration ' 5' or priority None is too large, or not a number",
         "an expiration is in milliseconds, up to 4294967295; a priority up to 255"),
        ({"expiration": "4294967296"}, "expiration '4294967296' or priority None is too large, or not a number",
         "an expiration is in milliseconds, up to 4294967295; a priority up to 255"),
        ({"headers": {"h": [1]}}, "the header 'h' is a list, which AMQP 1.0 does not allow",
         "put it into the body; headers that start with x- may be lists and objects"),
        ({"headers": {"h": (1,)}}, "the header 'h' is a list, which AMQP 1.0 does not allow",
         "put it into the body; headers that start with x- may be lists and objects"),
        ({"headers": {"h": {"a": 1}}}, "the header 'h' is an object, which AMQP 1.0 does not allow",
         "put it into the body; headers that start with x- may be lists and objects"),
        ({"headers": {"x-cc": ["k"]}}, "the header 'x-cc' is a list, which AMQP 1.0 does not allow",
         "routing keys for copies are in the header CC"),
        *(
            ({"headers": {name: value}}, f"the header '{name}' must be a list of routing keys",
             f"write it as JSON: -H '{name}:=[\"KEY\"]'")
            for name, value in [("CC", "k"), ("CC", [5])]
        ),
        *(
            ({"headers": {name: value}},
             f"the header '{name}' cannot be sent over AMQP 1.0: {reason}", "write it as text")
            for name, value, reason in [
                ("h", 1 << 70, f"{1 << 70} is out of range"),
                ("h", Decimal("0.1"), "AMQP 1.0 has no type for Decimal"),
                ("x-h", {"a": [1 << 70]}, f"{1 << 70} is out of range"),
                ("x-h", [Decimal("0.1")], "AMQP 1.0 has no type for Decimal"),
                ("x-h", Undecoded(b"V"), "it is left in the encoding of AMQP 0-9-1"),
            ]
        ),
    ],
)  # fmt: skip
def test_a_property_that_amqp_1_0_cannot_express_raises_an_error(
    properties: dict[str, Any], error: str, hint: str
) -> None:
    """If AMQP 1.0 cannot express a property or a header of a message, encoding the message raises BadData. The error
    names the property or the header, and the hint says what to do instead.
    """
    with pytest.raises(BadData) as raised:
        encode(Message(b"", properties=properties))
    assert (str(raised.value), raised.value.hint) == (error, hint)


def test_properties_can_contain_bytes_that_are_not_utf_8_but_names_of_headers_cannot() -> None:
    """When mqtool encodes a message for AMQP 1.0, it keeps bytes that are not UTF-8 in the message's properties, id
    and address. In the name of a header, such bytes raise BadData. In the value of a header, they become binary, as
    in RabbitMQ.
    """
    properties = {"app_id": "\udcff", "type": "\udcfe"}
    data = encode(Message(b"", properties=properties, message_id="\udcfd"), to="/queues/\udcfc")
    for raw in (b"\xfc", b"\xfd", b"\xfe", b"\xff"):
        assert raw in data
    with pytest.raises(BadData, match="not valid UTF-8"):
        encode(Message(b"", properties={"headers": {"\udcff": 1}}))
    for name in ("h", "x-h"):
        sent = Amqp10Message.decode(encode(Message(b"", properties={"headers": {name: "a\udcff"}})))
        assert (sent.application_properties | sent.message_annotations)[name] == b"a\xff"
    only_id = encode(Message(b"", message_id="\udcfd"))
    assert decode(only_id, "q", 1, 1).message_id == "\udcfd"
    assert "x-é".encode() in encode(Message(b"", properties={"headers": {"x-é": 1}}))


def received(**parts: Any) -> Delivery:
    return decode(Amqp10Message(**{"body": data_section(b"body"), **parts}).encode(), "q", 1, 1)


def test_a_delivery_has_the_exchange_and_the_routing_key_of_its_message() -> None:
    """The exchange, the routing key and the type of an AMQP 1.0 delivery come from the annotations that RabbitMQ adds
    to the message. Without these annotations, the exchange is the default exchange, and the routing key is the queue's
    name.
    """
    annotations = {
        Symbol("x-exchange"): "x", Symbol("x-routing-key"): "k", Symbol("x-basic-type"): "t",
        Symbol("x-opt-rabbitmq-received-time"): Milliseconds(1_700_000_000_123),
        Symbol("x-cc"): ["copy"], Symbol("x-own"): "o", Symbol("other"): 1, Symbol("t-other"): 2,
    }  # fmt: skip
    found = received(message_annotations=annotations)
    assert (found.exchange, found.routing_key, found.queue) == ("x", "k", "q")
    assert found.properties == {
        "type": "t",
        "headers": {"timestamp_in_ms": 1_700_000_000_123, "CC": ["copy"], "x-own": "o"},
    }
    bare = received()
    assert (bare.exchange, bare.routing_key, bare.properties) == ("", "q", {})
    assert received(message_annotations={Symbol("x-routing-key"): ""}).routing_key == ""
    late = {Symbol("x-opt-rabbitmq-received-time"): "no time"}
    assert received(message_annotations=late).properties == {}


def test_dead_letters_have_their_deaths_in_x_death() -> None:
    """Over AMQP 1.0, RabbitMQ describes in the annotation x-opt-deaths why a message was dead-lettered. mqtool converts
    this annotation to the header x-death of the delivery, with the fields and types of AMQP 0-9-1.
    """
    death = {
        Symbol("queue"): "q", Symbol("reason"): Symbol("expired"), Symbol("count"): 2,
        Symbol("first-time"): Milliseconds(1_700_000_000_000), Symbol("last-time"): Milliseconds(1_800_000_000_000),
        Symbol("ttl"): 5000,
    }  # fmt: skip
    found = received(message_annotations={Symbol("x-opt-deaths"): [death, "no death"]})
    assert found.headers == {
        "x-death": [
            {"queue": "q", "reason": "expired", "count": 2, "time": datetime.fromtimestamp(1_700_000_000, UTC),
             "original-expiration": "5000"}
        ]
    }  # fmt: skip
    assert type(found.headers["x-death"][0]["count"]) is Int64


def test_headers_come_from_application_properties_and_annotations() -> None:
    """The headers of an AMQP 1.0 delivery are the message's application properties and its x- annotations. If both
    contain the same name, the header has the annotation's value, because the broker may have set it.
    """
    found = received(
        message_annotations={Symbol("x-n"): 1, Symbol("x-stream-offset"): 17},
        application_properties={"x-n": 2, "h": "v"},
    )
    assert found.headers == {"x-n": 1, "h": "v", "x-stream-offset": 17}


@pytest.mark.parametrize(
    ("header", "redelivered"),
    [
        (MessageHeader(), False),
        (MessageHeader(durable=True), False),
        (MessageHeader(first_acquirer=True), False),
        (MessageHeader(first_acquirer=False), True),
        (MessageHeader(delivery_count=UInt32(2)), True),
        (MessageHeader(delivery_count=UInt32(0)), False),
        (MessageHeader(first_acquirer=True, delivery_count=UInt32(2)), False),
    ],
)
def test_a_delivery_is_redelivered_if_first_acquirer_is_false(header: MessageHeader, *, redelivered: bool) -> None:
    """An AMQP 1.0 delivery counts as redelivered if first-acquirer in the message's header section is false. If
    first-acquirer is missing, the delivery counts as redelivered if delivery-count is above 0.
    """
    for _ in range(2):
        assert received(header=header).redelivered is redelivered


def test_the_header_section_becomes_delivery_mode_priority_and_expiration() -> None:
    """If durable is true in the header section of an AMQP 1.0 message, the delivery has delivery mode 2. If durable
    is false, the delivery has no delivery mode. The fields priority and ttl become the properties priority and
    expiration. If one of these fields is not set, the delivery does not have the property.
    """
    found = received(header=MessageHeader(durable=True, priority=UInt8(0), ttl=UInt32(0)))
    assert found.properties == {"delivery_mode": 2, "priority": 0, "expiration": "0"}
    assert received(header=MessageHeader(durable=False, first_acquirer=True)).properties == {}


@pytest.mark.parametrize(
    ("priority", "ttl", "properties"),
    [(255, (1 << 32) - 1, {"priority": 255, "expiration": "4294967295"}), (256, 1 << 32, {}), (True, True, {})],
)
def test_a_priority_or_a_ttl_that_amqp_0_9_1_cannot_express_is_left_out(
    priority: int, ttl: int, properties: dict[str, Any]
) -> None:
    """A publisher over AMQP 1.0 can write any value as a message's priority or ttl. If AMQP 0-9-1 cannot express the
    value, the delivery does not have the property priority or expiration, so that the message can be published again.
    """
    fields = compound(0xC0, [NULL, encode_value(priority), encode_value(ttl)])
    assert decode(section(HEADER, fields) + data_section(b""), "q", 1, 1).properties == properties


def test_ids_become_text_and_a_reply_address_becomes_the_name_of_the_reply_queue() -> None:
    """mqtool converts the properties of an AMQP 1.0 message to those of AMQP 0-9-1. A message id, correlation id or
    user id that is a number, a UUID or bytes becomes text. If the reply address (reply-to) is the address of a queue,
    it becomes the queue's name. Any other reply address stays as it is. Times have fractions of seconds.
    """
    found = received(
        properties=BareProperties(
            message_id=UInt32(5), user_id=b"\xff", to="/queues/q", reply_to="/queues/a%20b",
            correlation_id=b"c", creation_time=Milliseconds(1_700_000_000_999), group_id="g",
        )
    )  # fmt: skip
    assert found.properties == {
        "message_id": "5", "user_id": "\udcff", "reply_to": "a b", "correlation_id": "c",
        "timestamp": 1_700_000_000.999, "app_id": "g", "to": "/queues/q",
    }  # fmt: skip
    for address in ("/exchanges/x/a%20b", "a%20b", "/queues/%2Fqueues%2Fq"):
        fields = BareProperties(reply_to=address)
        found = received(properties=fields)
        assert found.properties["reply_to"] == address
        assert Amqp10Message.decode(encode(Message(b"", properties=found.properties))).properties == fields
    assert received(properties=BareProperties(reply_to="/queues/a%FF")).properties == {"reply_to": "a\udcff"}
    assert received(properties=BareProperties(creation_time="no time")).properties == {}
    assert received(properties=BareProperties(message_id=b"id")).properties == {"message_id": "id"}
    assert received(properties=BareProperties(message_id=UInt32(5))).properties == {"message_id": "5"}
    both = {"message_id": "id", "user_id": "u"}
    assert received(properties=BareProperties(message_id="id", user_id=b"u")).properties == both
    assert received(properties=BareProperties(message_id="only an id")).properties == {"message_id": "only an id"}
    assert received(properties=BareProperties(user_id=b"u")).properties == {"user_id": "u"}


def test_a_reply_to_that_is_an_address_is_sent_unchanged() -> None:
    """Over AMQP 1.0, a reply_to that is already an address is sent unchanged. Any other reply_to is the name of a
    queue, and is sent as the queue's address.
    """
    for reply_to, expected in (("/exchanges/x/k", "/exchanges/x/k"), ("q 1", "/queues/q%201")):
        assert Amqp10Message.decode(encode(Message(b"", properties={"reply_to": reply_to}))).properties == (
            BareProperties(reply_to=expected)
        )


@pytest.mark.parametrize(
    ("body", "expected", "kind"),
    [
        (data_section(b"one ") + data_section(b"two" * 100), b"one " + b"two" * 100, None),
        (b"", b"", None),
        (value_section("text"), b"text", None),
        (value_section("text" * 100), b"text" * 100, None),
        (value_section(b"bytes"), b"bytes", None),
        (value_section(b"bytes" * 100), b"bytes" * 100, None),
        (value_section(5), value_section(5), "amqp-1.0"),
        (value_section({"a": 1}), value_section({"a": 1}), "amqp-1.0"),
        (b"\x00\x53\x76\x45", b"\x00\x53\x76\x45", "amqp-1.0"),
    ],
    ids=["data", "none", "text", "long text", "bytes", "long bytes", "number", "map", "sequence"],
)
def test_a_body_that_is_neither_text_nor_bytes_keeps_its_encoding(
    body: bytes, expected: bytes, kind: str | None
) -> None:
    """If the body of an AMQP 1.0 message consists of data sections, a string or a binary value, the delivery's body
    contains the plain bytes (a string is encoded in UTF-8). Any other body, such as a number or a map, stays encoded
    in AMQP 1.0, and the delivery's type is amqp-1.0. If mqtool publishes a delivery of this type over AMQP 1.0, the
    new message has the same body as the original one.
    """
    found = received(body=body, message_annotations={Symbol("x-basic-type"): "own"})
    assert (found.body, found.properties["type"]) == (expected, kind or "own")
    if kind:
        again = encode(Message(found.body, properties={"type": kind, "app_id": "a"}))
        assert Amqp10Message.decode(again) == Amqp10Message(properties=BareProperties(group_id="a"), body=body)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_body_of_sequences_with_a_footer_is_published_again_unchanged(count: int) -> None:
    """If the body of an AMQP 1.0 message consists of one or more sequences, and a footer follows them, mqtool
    publishes a retry or a dead letter of the message with the same sequences and the same footer.
    """
    body = section(SEQUENCE, encode_value([1, "two"])) * count + section(FOOTER, encode_value({Symbol("x-sum"): 1}))
    found = received(body=body)
    assert encode(Message(found.body, properties=found.properties)) == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"plain",
        b"\x00",
        b"\x00\x53\x77",
        section(MESSAGE_ANNOTATIONS, encode_value({Symbol("x-cc"): ["payroll"]})) + value_section(5),
        value_section(5) + section(MESSAGE_ANNOTATIONS, encode_value({Symbol("x-cc"): ["payroll"]})),
        Amqp10Message(properties=BareProperties(user_id=b"guest"), body=value_section(5)).encode(),
        data_section(b"x"),
        value_section(5) * 2,
        value_section([1, 2])[:-1],
        section(SEQUENCE, encode_value(5)),
        section(SEQUENCE, encode_value({})),
        section(FOOTER, encode_value({})),
        value_section(5) + section(FOOTER, encode_value(5)),
    ],
)
def test_a_forged_type_cannot_make_a_body_into_sections_of_a_message(body: bytes) -> None:
    """Any publisher can set the type amqp-1.0, which says that the body is encoded in AMQP 1.0. If mqtool publishes a
    message with this type over AMQP 1.0, but the body is not a valid encoding of one value or of sequences, the bytes
    of the body are sent as data. They do not become sections of the message, such as annotations.
    """
    again = encode(Message(body, properties={"type": "amqp-1.0"}))
    annotations = {Symbol("x-basic-type"): "amqp-1.0"}
    assert Amqp10Message.decode(again) == Amqp10Message(message_annotations=annotations, body=data_section(body))
    found = decode(again, "jobs", 1, 0)
    assert (found.body, found.properties) == (body, {"type": "amqp-1.0"})


@pytest.mark.parametrize(
    "body",
    [
        value_section(5) + section(FOOTER, encode_value({Symbol("a"): 1})),
        b"\x00\x53\x76\x45" + b"\x00\x53\x76" + encode_value([1]),
        b"\x00\x53\x77\xc1\x13\x02\x98" + bytes(16) + b"\x40",
        b"\x00\x53\x77\x00\xa3\x01t\x45",
    ],
    ids=["a value with a footer", "two sequences", "a map whose key is a UUID", "a described value"],
)
def test_an_encoded_body_is_published_again_unchanged(body: bytes) -> None:
    """If the body of an AMQP 1.0 message consists of a value or of sequences, mqtool leaves it encoded, together with
    the footer. When mqtool publishes the message again, it writes the same bytes, whatever the value contains.
    """
    again = encode(Message(body, properties={"type": "amqp-1.0"}))
    assert again == body
    assert decode(again, "jobs", 1, 0).body == body


#: The annotations that the broker adds.
ROUTED = {Symbol("x-exchange"): "x", Symbol("x-routing-key"): "k"}
SIMPLE = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(0, 2**64 - 1).map(ULong)
    | st.integers(0, 255).map(UInt8)
    | st.integers(-(2**63), 2**63 - 1).map(Milliseconds)
    | st.floats()
    | st.text()
    | st.text("abc").map(Symbol)
    | st.binary()
    | st.binary(min_size=4, max_size=4).map(RawDecimal)
    | st.uuids()
)


def test_deeply_nested_maps_with_equal_keys_are_decoded_as_fast_as_others() -> None:
    """A map with keys that are not text is left encoded. If sixty maps with the keys 1 and "1" are nested in each
    other, the work of decoding them does not double with each level.
    """
    nested = reduce(lambda inner, _: {1: inner, "1": "second"}, range(60), "innermost")
    value = received(message_annotations={Symbol("x-own"): nested}).headers["x-own"]
    assert value == Encoded(encode_value(nested))
    assert Amqp10Message.decode(encode(Message(b"", properties={"headers": {"x-own": value}}))).message_annotations == {
        Symbol("x-own"): nested
    }


#: A list that contains a list, and so on, with more levels than mqtool decodes.
DEEP = reduce(lambda inner, _: compound(0xC0, [inner]), range(90), NULL)
ANY = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner) | st.dictionaries(SIMPLE, inner) | inner.map(lambda value: Described(Symbol("d"), value))
    ),
    max_leaves=8,
).map(encode_value) | st.sampled_from(
    [DEEP, encode_value([None] * 33_000), b"\x73\x00\x00\xd8\x00", b"\x73\xff\xff\xff\xff"]
)
READ = (
    *("x-basic-type", "x-opt-rabbitmq-received-time", "x-opt-deaths", "x-cc", "CC", "x-death", "x-stream-offset"),
    *("x-own", "", "t"),
)


@given(
    st.dictionaries(st.sampled_from(READ), ANY), st.lists(ANY, max_size=13), st.lists(ANY, max_size=5),
    st.lists(st.tuples(ANY, ANY), max_size=3),
)  # fmt: skip
@example({"x-opt-deaths": encode_value(5)}, [], [], [])
@example({"": NULL, "x-own": DEEP}, [DEEP], [DEEP], [(DEEP, DEEP)])
def test_no_value_that_a_publisher_writes_changes_the_body_or_hides_where_a_message_was_published(
    annotations: dict[str, bytes], properties: list[bytes], header: list[bytes], application: list[tuple[bytes, bytes]]
) -> None:
    """Whatever values a publisher writes into the annotations, header, properties and application properties of an AMQP
    1.0 message, the delivery has the message's body, and its exchange and routing key as the broker wrote them.
    """
    pairs = [(encode_value(Symbol(name)), value) for name, value in annotations.items()]
    pairs += [(encode_value(name), encode_value(value)) for name, value in ROUTED.items()]
    data = b"".join((
        section(HEADER, compound(0xC0, header)),
        section(MESSAGE_ANNOTATIONS, compound(0xC1, [part for pair in pairs for part in pair])),
        section(sections.PROPERTIES, compound(0xC0, properties)),
        section(APPLICATION_PROPERTIES, compound(0xC1, [part for pair in application for part in pair])),
        data_section(b"body"),
    ))  # fmt: skip
    found = decode(data, "q", 1, 1)
    assert (found.body, found.exchange, found.routing_key) == (b"body", "x", "k")
    assert UNREADABLE not in found.headers


def test_a_value_that_cannot_be_decoded_becomes_a_header_with_its_bytes() -> None:
    """If an annotation or application property of an AMQP 1.0 message cannot be decoded, a header of the same name
    contains its bytes. The other values in the section are decoded. If a section cannot be decoded at all, the header
    mqtool-unreadable contains the bytes of the section.
    """
    values = compound(0xC1, [encode_value("n"), encode_value(1), encode_value("deep"), DEEP])
    found = decode(section(APPLICATION_PROPERTIES, values) + data_section(b"body"), "q", 1, 1)
    assert (found.body, found.headers) == (b"body", {"deep": DEEP, "n": 1})
    for parts in ([NULL] * (MOST_VALUES + 2), [encode_value("n"), bytes(MOST_VALUES + 1) + NULL * (MOST_VALUES + 2)]):
        many = compound(0xC1, parts)
        found = decode(section(APPLICATION_PROPERTIES, many) + data_section(b"body"), "q", 1, 1)
        assert (found.body, found.headers) == (b"body", {"mqtool-unreadable": many})


def test_the_bytes_of_all_sections_that_cannot_be_decoded_are_in_one_header() -> None:
    """If mqtool can decode neither the header section nor the properties section of an AMQP 1.0 message, the delivery's
    headers include mqtool-unreadable, which contains the bytes of both sections. The body and the application
    properties are decoded as usual.
    """
    first, second = encode_value("header"), encode_value("properties")
    data = section(HEADER, first) + section(sections.PROPERTIES, second)
    data += section(APPLICATION_PROPERTIES, compound(0xC1, [encode_value("n"), encode_value(1)])) + data_section(
        b"body"
    )
    found = decode(data, "q", 1, 1)
    assert found.body == b"body"
    assert found.properties == {"headers": {"n": 1, UNREADABLE: first + second}}


def test_deaths_that_cannot_be_decoded_are_shown_as_their_bytes() -> None:
    """RabbitMQ describes in the annotation x-opt-deaths why an AMQP 1.0 message was dead-lettered. If this annotation
    cannot be decoded, the header x-death contains its bytes.
    """
    raw = compound(0xC1, [encode_value(Symbol("x-opt-deaths")), DEEP])
    assert decode(section(MESSAGE_ANNOTATIONS, raw) + data_section(b""), "q", 1, 1).headers == {"x-death": DEEP}


@pytest.mark.parametrize("name", ["x-cc", "CC", "x-opt-deaths", "x-own"])
def test_an_application_property_never_becomes_an_annotation(name: str) -> None:
    """If an application property of an AMQP 1.0 message has the name of an annotation, such as x-opt-deaths, or of
    the header CC, the delivery has a header of this name. If mqtool sends the message again, this header becomes an
    application property again, not an annotation, even if other headers have been added or removed.
    """
    found = received(application_properties={name: "v", "n": 1})
    assert found.headers == {name: "v", "n": 1}
    headers = {key: value for key, value in found.headers.items() if key != "n"} | {"more": 2}
    again = Amqp10Message.decode(encode(Message(b"", properties={"headers": headers})))
    assert (again.message_annotations, again.application_properties) == ({}, {name: "v", "more": 2})


def test_a_header_x_cc_never_becomes_the_annotation_that_adds_routing_keys() -> None:
    """RabbitMQ does not check a header x-cc that an AMQP 0-9-1 client writes. mqtool therefore sends it over AMQP 1.0
    as an application property. If it were the annotation x-cc, RabbitMQ would route the message to more queues.
    """
    sent = Amqp10Message.decode(encode(Message(b"", properties={"headers": {"x-cc": "secret"}})))
    assert (sent.message_annotations, sent.application_properties) == ({}, {"x-cc": "secret"})
    with pytest.raises(BadData, match="the header 'x-cc' is a list"):
        encode(Message(b"", properties={"headers": {"x-cc": ["secret"]}}))


@pytest.mark.parametrize("value", [["a"], {"k": 1}, Array([1]), Described(Symbol("d"), [1])])
def test_an_application_property_that_amqp_1_0_does_not_allow_is_read_as_bytes(value: Any) -> None:
    """AMQP 1.0 allows no lists, arrays or maps as application properties. If a publisher writes one, mqtool reads it as
    its encoded bytes, reads all other properties with their values, and can send the message again.
    """
    found = received(application_properties={"odd": value, "n": 1})
    assert found.headers == {"odd": encode_value(value), "n": 1}
    again = Amqp10Message.decode(encode(Message(b"", properties=found.properties)))
    assert again.application_properties == {"odd": encode_value(value), "n": 1}


def test_a_message_with_an_application_property_whose_name_is_not_utf_8_can_be_sent_again() -> None:
    """If the name of an application property is not valid UTF-8, the delivery's header has question marks in its name
    in place of the invalid bytes, and mqtool can send the message again. Other names are unchanged.
    """
    values = [variable(0xA1, b"x-\xff"), encode_value(1), variable(0xA1, b"\xff"), encode_value(2)]
    properties = compound(0xC1, [*values, encode_value("é"), encode_value(3)])
    found = decode(section(APPLICATION_PROPERTIES, properties) + data_section(b"body"), "q", 1, 1)
    assert found.headers == {"x-?": 1, "?": 2, "é": 3}
    again = Amqp10Message.decode(encode(Message(b"", properties=found.properties)))
    assert again.application_properties == found.headers


def test_an_annotation_hides_an_application_property_of_the_same_name() -> None:
    """If an AMQP 1.0 message has an annotation and an application property of the same name, the delivery has a header
    with the annotation's value. When mqtool sends the message again, this header is an annotation.
    """
    found = received(message_annotations={Symbol("x-own"): [1]}, application_properties={"x-own": "v", "n": 1})
    assert found.headers == {"x-own": [1], "n": 1}
    again = Amqp10Message.decode(encode(Message(b"", properties=found.properties)))
    assert (again.message_annotations, again.application_properties) == ({Symbol("x-own"): [1]}, {"n": 1})


@pytest.mark.parametrize("odd", [DEEP, b"\x73\x00\x00\xd8\x00", encode_value([None] * 33_000)])
def test_an_annotation_that_cannot_be_decoded_does_not_hide_the_deaths_of_a_message(odd: bytes) -> None:
    """If a dead-lettered AMQP 1.0 message has an annotation that mqtool cannot decode, such as a char value that is a
    surrogate, the delivery has a header with the encoded bytes of this annotation. The headers x-death and CC, which
    come from other annotations, are decoded as usual.
    """
    pairs = {"x-own": odd, "x-opt-deaths": encode_value([{Symbol("queue"): "q"}]), "x-cc": encode_value(["copy"])}
    raw = compound(0xC1, [part for name, value in pairs.items() for part in (encode_value(Symbol(name)), value)])
    found = decode(section(MESSAGE_ANNOTATIONS, raw) + data_section(b"body"), "q", 1, 1)
    assert found.headers == {"x-own": odd, "x-death": [{"queue": "q"}], "CC": ["copy"]}


@pytest.mark.parametrize("raw", [encode_value(5), compound(0xC1, [NULL] * (MOST_VALUES + 2))], ids=["number", "many"])
def test_an_exchange_and_a_routing_key_that_cannot_be_read_are_empty(raw: bytes) -> None:
    """If the annotations of an AMQP 1.0 message cannot be read, the delivery's exchange and routing key are empty.
    mqtool then does not trust the message's headers mqtool-exchange and mqtool-routing-key, which a publisher may have
    forged.
    """
    forged = {"mqtool-exchange": "x", "mqtool-routing-key": "k"}
    rest = Amqp10Message(application_properties=forged, body=data_section(b"body")).encode()
    found = decode(section(MESSAGE_ANNOTATIONS, raw) + rest, "q", 1, 1)
    assert (found.body, found.exchange, found.routing_key) == (b"body", "", "")
    assert origin_of(found) == Origin("", "")


@pytest.mark.parametrize("odd", [NULL, encode_value(5), encode_value([]), DEEP], ids=["null", "number", "list", "deep"])
def test_headers_are_not_trusted_if_the_exchange_or_the_routing_key_is_not_text(odd: bytes) -> None:
    """mqtool trusts its own headers in a message, such as mqtool-exchange, only if the broker's annotations show that
    the message was published directly to the queue. If the annotation x-exchange or x-routing-key is not text, mqtool
    does not trust these headers.
    """
    forged = {"mqtool-exchange": "forged", "mqtool-routing-key": "forged"}
    rest = Amqp10Message(application_properties=forged, body=data_section(b"body")).encode()
    for exchange, key in product((b"", odd, encode_value("x")), (odd, encode_value("q"))):
        if odd not in (exchange, key):
            continue
        pairs = [("x-exchange", exchange), ("x-routing-key", key)]
        parts = [part for name, raw in pairs if raw for part in (encode_value(Symbol(name)), raw)]
        found = decode(section(MESSAGE_ANNOTATIONS, compound(0xC1, parts)) + rest, "q", 1, 1)
        expected = "x" if exchange == encode_value("x") else ""
        assert (found.exchange, found.routing_key, origin_of(found)) == (expected, "", Origin(expected, ""))


@pytest.mark.parametrize("odd", [[], [encode_value("odd"), DEEP]], ids=["good", "odd"])
def test_the_first_of_several_application_properties_with_the_same_name_becomes_the_header(odd: list[bytes]) -> None:
    """If the keys of an AMQP 1.0 message's application properties include both the number 1 and the text "1", the
    delivery's header "1" has the value of the first of these keys, even if another application property cannot be
    decoded.
    """
    for keys in ((1, "1", 1), ("1", 1, "1"), (1, "1"), ("1", 1)):
        parts = [encode_value(each) for place, key in enumerate(keys) for each in (key, place)]
        raw = section(APPLICATION_PROPERTIES, compound(0xC1, [*parts, *odd]))
        assert decode(raw + data_section(b"body"), "q", 1, 1).headers["1"] == 0


def test_the_brokers_annotations_take_precedence_over_those_that_a_publisher_has_added() -> None:
    """The broker names a message's exchange and routing key in the AMQP 1.0 message annotations x-exchange and
    x-routing-key. If a publisher has added annotations with the same names, in the same section or in a second one,
    they come after the broker's. mqtool uses the first annotation with each name.
    """
    forged = [encode_value(part) for part in (Symbol("x-exchange"), "evil", Symbol("x-routing-key"), "evil")]
    true = [encode_value(part) for pair in ROUTED.items() for part in pair]
    again = section(MESSAGE_ANNOTATIONS, compound(0xC1, forged))
    for others in ([], [encode_value(Symbol("x-n")), DEEP]):
        for data in (
            section(MESSAGE_ANNOTATIONS, compound(0xC1, [*true, *others, *forged])) + data_section(b"body"),
            section(MESSAGE_ANNOTATIONS, compound(0xC1, [*others, *true])) + again + data_section(b"body"),
            section(MESSAGE_ANNOTATIONS, compound(0xC1, [*others, *true])) + data_section(b"body") + again,
        ):
            found = decode(data, "q", 1, 1)
            assert (found.body, found.exchange, found.routing_key) == (b"body", "x", "k")


def test_all_encodings_of_a_section_are_read() -> None:
    """mqtool can decode an AMQP 1.0 message whether the descriptor of a section is encoded as an unsigned long or as a
    symbol, and even if the value in a section has its own descriptor. The delivery has the message's body and headers.
    """
    headers = b"\x00\x80" + struct.pack(">Q", APPLICATION_PROPERTIES) + encode_value({"a": 1})
    footer = section(FOOTER, encode_value(Described(ULong(3), {})))
    for descriptor in (encode_value(Symbol("amqp:data:binary")), b"\x80" + struct.pack(">Q", DATA)):
        found = decode(headers + b"\x00" + descriptor + encode_value(b"body") + footer, "q", 1, 1)
        assert (found.body, found.headers) == (b"body", {"a": 1})
    described = value_section(Described(ULong(3), b"x"))
    found = decode(described, "q", 1, 1)
    assert (found.body, found.properties) == (described, {"type": "amqp-1.0"})


@pytest.mark.parametrize("damage", ["section", "size", "body"])
def test_the_body_of_a_delivery_that_cannot_be_decoded_consists_of_the_whole_message(damage: str) -> None:
    """If an AMQP 1.0 message is so damaged that mqtool cannot find where its sections begin and end, the delivery's
    body consists of all bytes of the message. The delivery has the exchange, routing key, properties and headers that
    precede the damage. If these do not include the exchange and the routing key, both are empty.
    """
    properties = BareProperties(message_id="id")
    data = Amqp10Message(properties=properties, body=data_section(b"body")).encode()
    broken = {"section": b"\x01" + data[1:], "size": data[:-1], "body": data + b"\x00\x53\x75\xb0\x00\x00\x01\x00x"}[
        damage
    ]
    found = {} if damage == "section" else {"message_id": "id"}
    assert decode(broken, "q", 1, 2, settled=True) == Delivery(broken, "", "", "q", False, found, 1, 2, settled=True)
    routed = Amqp10Message(message_annotations=ROUTED).encode() + broken
    assert decode(routed, "q", 1, 2) == Delivery(routed, "x", "k", "q", False, found, 1, 2)


def test_headers_and_annotations_that_occur_in_many_messages_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If two AMQP 1.0 messages have the same header section and annotations, mqtool decodes these only once."""
    parts = {"header": MessageHeader(ttl=UInt32(77)), "message_annotations": {Symbol("x-n"): 77}}
    first = received(**parts)
    for name in ("plain_list", "plain_map"):
        monkeypatch.setattr(sections, name, None)
    assert received(**parts) == first


def test_at_most_256_decoded_header_and_annotation_sections_are_cached() -> None:
    """mqtool has a cache of decoded header sections of AMQP 1.0 messages, and one of decoded annotations. Each contains
    at most 256 entries: before another one is added, a full cache is cleared. Annotations of 512 bytes or more are not
    cached.
    """
    for cache in (sections._headers_cache, sections._annotations_cache):
        cache.clear()
    for number in range(300):
        found = received(
            header=MessageHeader(ttl=UInt32(number)), message_annotations={Symbol("x-n"): number, Symbol("x-t"): "t"}
        )
        assert (found.properties["expiration"], found.headers) == (str(number), {"x-n": number, "x-t": "t"})
        assert 0 < len(sections._headers_cache) <= 256
        assert 0 < len(sections._annotations_cache) <= 256
    assert len(sections._annotations_cache) == 300 - 256
    received(message_annotations={Symbol("x-long"): "x" * 600})
    assert len(sections._annotations_cache) == 300 - 256
