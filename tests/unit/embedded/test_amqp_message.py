"""Messages: their properties are decoded as they were published, and changing one property keeps the bytes of the
others.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.broker.embedded.model.amqp_message import (
    DEEPEST,
    BrokerMessage,
    ContentHeader,
    HeaderReader,
    MessageProperties,
    StoredAddress,
    carbon_copies,
    encode_address,
    encode_short,
    parse_address,
)
from mqtool.codecs.field_tables import Int64, Table, Value, encode_table
from mqtool.message import MAX_DEPTH

_FIELDS = {
    "content_type": b"\x04text",
    "content_encoding": b"\x03utf",
    "headers": encode_table({"a": Int64(1), "x": "y"}),
    "delivery_mode": b"\x02",
    "priority": b"\x07",
    "correlation_id": b"\x01c",
    "reply_to": b"\x03r\xffr",
    "expiration": b"\x0260",
    "message_id": b"\x02m1",
    "timestamp": (1700000001).to_bytes(8),
    "type": b"\x02ty",
    "user_id": b"\x02u\xff",
    "app_id": b"\x01a",
    "cluster_id": b"\x00",
}
_VALUES = {
    "content_type": "text",
    "content_encoding": "utf",
    "headers": {"a": 1, "x": "y"},
    "delivery_mode": 2,
    "priority": 7,
    "correlation_id": "c",
    "reply_to": "r\udcffr",
    "expiration": "60",
    "message_id": "m1",
    "timestamp": 1700000001,
    "type": "ty",
    "user_id": "u\udcff",
    "app_id": "a",
    "cluster_id": "",
}
_BEGIN = bytes.fromhex("003c 0000 0000000000000005")


def nested(depth: int) -> dict[str, bytes]:
    """Return headers that contain a list nested this deep."""
    value: Value = "x"
    for _ in range(depth):
        value = [value]
    return {"headers": encode_table({"n": value})}


def header(fields: dict[str, bytes]) -> bytes:
    return _BEGIN + MessageProperties.of(fields).encode()


@given(exchange=st.text(max_size=60), key=st.text(max_size=60))
def test_a_messages_exchange_and_routing_key_are_unchanged_after_encoding_and_parsing(exchange: str, key: str) -> None:
    """After encoding and parsing, a message's exchange and routing key are unchanged."""
    address = encode_address(exchange, key)
    assert parse_address(address) == (address, exchange, key)


@pytest.mark.parametrize(
    ("address", "marks"),
    [(b"\0\0", (False, False, None)), (b"\2ab\3key\x0a", (True, False, None)), (b"\2ab\3ke\x0a", (False, False, None)),
     (b"\2ab\4key\x0a\x0a\x0b", (True, True, None)), (b"\0\0\x0c", (False, False, ())),
     (b"\0\1k\x0b\x0c\1a\2bc", (False, True, ("a", "bc"))), (b"\0\1k\x0b\x0a", None), (b"\0\1k\x0d", None),
     (b"\0\1k\x0c\2a", None), (b"\0\2", None), (b"", None)],
)  # fmt: skip
def test_bytes_after_a_stored_address_say_what_is_kept_besides(
    address: bytes, marks: tuple[object, ...] | None
) -> None:
    """In a stored message, bytes after the exchange and the routing key mark an AMQP 1.0 message, a dead letter, and
    further routing keys. Other bytes there raise ValueError. Those of the routing key are not mistaken for marks.
    """
    if marks is None:
        with pytest.raises(ValueError, match="address"):
            parse_address(StoredAddress.of(address).address)
    else:
        assert StoredAddress.of(address)[1:] == marks


@pytest.mark.parametrize("address", [b"", b"\0", b"\1a", b"\1ab", b"\0\2a", b"\0\1ab", b"\0\0\0"])
def test_a_stored_exchange_or_routing_key_of_the_wrong_length_raises_value_error(address: bytes) -> None:
    """If the encoded exchange or routing key of a message is shorter than its length byte says, or if extra bytes
    follow the routing key, decoding raises ValueError.
    """
    with pytest.raises(ValueError, match=r"^address cut short$"):
        parse_address(address)


@given(data=st.binary(max_size=60))
def test_random_bytes_decode_to_properties_or_raise_value_error(data: bytes) -> None:
    """Decoding random bytes as the properties of a message raises ValueError, or returns properties that encode to the
    same bytes.
    """
    try:
        properties = MessageProperties(data)
    except ValueError:
        return
    assert properties.encode() == data


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (_BEGIN + b"\0", "content header cut short"),
        (_BEGIN + b"\0\1", "unknown property flags"),
        (_BEGIN + b"\0\2", "unknown property flags"),
        (_BEGIN + b"\x80\0", "property cut short"),
        (_BEGIN + b"\x80\0\2t", "property cut short"),
        (_BEGIN + b"\x08\0", "property cut short"),
        (_BEGIN + b"\x20\0\0\0\0\2", "property cut short"),
        (_BEGIN + b"\0\0\0", "bytes after the properties"),
        (_BEGIN + b"\x80\0\1tx", "bytes after the properties"),
    ],
)
def test_a_malformed_content_header_raises_value_error_with_the_reason(payload: bytes, error: str) -> None:
    """If a content header is too short or too long for the properties in its flags, or has unknown flags, decoding it
    raises a ValueError that gives the reason.
    """
    with pytest.raises(ValueError, match=f"^{error}$"):
        HeaderReader().read(payload)


def test_each_property_has_the_value_that_was_published() -> None:
    """Each property of a message has the name and value that it was published with. Bytes that are not UTF-8 are
    kept.
    """
    properties = ContentHeader(header(_FIELDS)).properties
    assert properties.fields() == _FIELDS
    assert list(properties.named().items()) == list(_VALUES.items())
    found = {name: getattr(properties, name) for name in ("delivery_mode", "priority", "expiration", "user_id")}
    assert found == {name: _VALUES[name] for name in found}
    assert (properties.reply_to, properties.headers) == (_VALUES["reply_to"], _VALUES["headers"])
    none = MessageProperties(b"\0\0")
    assert (none.fields(), none.named(), none.headers, none.message_id_span()) == ({}, {}, {}, None)
    assert none.delivery_mode is none.priority is none.expiration is none.user_id is none.reply_to is None


@pytest.mark.parametrize("name", _FIELDS)
def test_a_message_is_plain_without_properties_that_affect_routing_or_permissions(name: str) -> None:
    """A message is `plain` if it has no headers, expiration, user id or reply-to. The broker may then reuse the
    permission check and the routing of the previous message with the same exchange and routing key. A copy is plain if
    these properties have been removed, and not plain if headers or a reply-to have been added.
    """
    affects = name in ("headers", "expiration", "user_id", "reply_to")
    properties = MessageProperties.of({name: _FIELDS[name]})
    assert properties.plain == (not affects)
    assert properties.of_another(properties.encode(), 0).plain == (not affects)
    assert MessageProperties.of({"headers": encode_table({})}).plain
    assert properties.replace(headers={}, expires=False).plain == (name not in ("user_id", "reply_to"))
    assert not properties.replace(reply_to="r").plain
    assert not properties.with_more_headers({"x": None}, encode_table({"x": None})).plain


def test_replacing_one_property_keeps_the_bytes_of_the_others() -> None:
    """If the headers or the reply-to of a message are replaced, or its expiration is removed, the other properties stay
    unchanged, byte for byte.
    """
    properties = ContentHeader(header(_FIELDS)).properties
    changes: list[tuple[Table | None, str | None, bool]] = [
        ({"b": Int64(2)}, None, True), ({}, None, True), (None, "new\udcff", True), (None, None, False)
    ]  # fmt: skip
    for headers, reply_to, expires in changes:
        expected = dict(_FIELDS)
        if headers is not None:
            expected["headers"] = encode_table(headers)
        if reply_to is not None:
            expected["reply_to"] = b"\x04new\xff"
        if not expires:
            del expected["expiration"]
        copy = properties.replace(headers=headers, reply_to=reply_to, expires=expires)
        again = MessageProperties(copy.encode())
        assert copy.fields() == again.fields() == expected
        for name in ("headers", "delivery_mode", "priority", "expiration", "user_id", "reply_to", "plain"):
            assert getattr(copy, name) == getattr(again, name)
    assert properties.replace().encode() == properties.encode()
    assert properties.fields() == _FIELDS


def test_added_headers_replace_those_of_the_same_name() -> None:
    """If headers are added to a message, they replace headers of the same name, and the other headers and properties
    stay unchanged.
    """
    added: Table = {"x": "new", "z": Int64(3)}
    for fields, expected in ((_FIELDS, {"a": 1, "x": "new", "z": 3}), ({"priority": b"\1"}, {"x": "new", "z": 3})):
        copy = ContentHeader(header(fields)).properties.with_more_headers(added, encode_table(added))
        assert copy.headers == MessageProperties(copy.encode()).headers == expected
        assert copy.fields() == {**fields, "headers": encode_table(copy.headers)}
        assert copy.priority == fields["priority"][0]


def test_a_copy_of_a_message_keeps_what_is_not_replaced() -> None:
    """If the reply-to of a message is replaced in a copy, the copy keeps the exchange, routing key and body. If the
    exchange and routing key are replaced, the copy keeps all properties, except that the expiration can be left out.
    """
    message = BrokerMessage(encode_address("e", "k\udcff"), ContentHeader(header(_FIELDS)), b"12345")
    copy = message.replace(reply_to="r")
    assert (copy.exchange, copy.routing_key, copy.body, copy.properties.reply_to) == ("e", "k\udcff", b"12345", "r")
    moved = message.replace(address=("other", "key"), expires=False)
    assert (moved.address, moved.exchange, moved.routing_key) == (b"\5other\3key", "other", "key")
    assert moved.properties.fields() == {name: raw for name, raw in _FIELDS.items() if name != "expiration"}
    assert moved.header.raw[:12] == _BEGIN


def test_a_message_of_a_stream_is_encoded_as_it_was_published() -> None:
    """The content header of a message that is read from a stream has the same bytes as when the message was
    published. To save time, the broker decodes the properties in the header only when they are needed.
    """
    properties = MessageProperties.of(_FIELDS).encode()
    lazy = ContentHeader.unread(properties, 2**63)
    assert (lazy.class_id, lazy.body_size) == (60, 2**63)
    assert lazy.raw == bytes.fromhex("003c 0000 8000000000000000") + properties
    assert lazy.properties.named() == _VALUES
    assert lazy.properties is lazy.properties
    assert ContentHeader.of(lazy.properties, 2**63).raw == lazy.raw
    with pytest.raises(AttributeError, match=r"^headers_bytes$"):
        _ = lazy.headers_bytes


@given(
    sent=st.lists(
        st.fixed_dictionaries(
            {"message_id": st.sampled_from([b"\x02m1", b"\x02m2", b"\x03m10"])},
            optional={"priority": st.sampled_from([b"\x01", b"\x02"]), "app_id": st.sampled_from([b"\x01a", b"\x01b"])},
        )
    )
)
def test_messages_with_similar_properties_are_not_confused(sent: list[dict[str, bytes]]) -> None:
    """If several messages have similar properties, each message keeps its own, even though the broker caches the last
    content header.
    """
    reader = HeaderReader()
    for fields in sent:
        properties = reader.read(ContentHeader.of(MessageProperties.of(fields), 5).raw).properties
        assert properties.fields() == fields
        assert properties.priority == (fields["priority"][0] if "priority" in fields else None)


def test_headers_that_are_repeated_are_decoded_once() -> None:
    """To save time, the broker decodes the headers of successive messages only once if their content headers are
    equal, or differ only in the message id. Content headers of more than 256 bytes without a message id are an
    exception: they are decoded each time.
    """
    small, large = encode_table({"a": "b"}), encode_table({"a": "b" * 300})
    reader = HeaderReader()
    ids = [reader.read(header({"headers": large, "message_id": b"\1%d" % number})) for number in range(3)]
    assert ids[0].properties.headers is ids[1].properties.headers is ids[2].properties.headers
    assert [each.properties.named()["message_id"] for each in ids] == ["0", "1", "2"]
    assert reader.read(header({"headers": small})) is reader.read(header({"headers": small}))
    for size, is_kept in ((256, True), (257, False)):
        raw = header({"type": encode_short(b"t" * (size - 15))})
        assert len(raw) == size
        assert (reader.read(raw) is reader.read(raw)) == is_kept


@pytest.mark.parametrize(
    ("first", "second"), [(b"\1m\0\1a", b"\1m\0\1b"), (b"\1m\0\2aa", b"\2mm\0\1a"), (b"\1m\1\1\1\0", b"\1m\2\1\1\0")]
)
def test_content_headers_of_equal_length_with_common_parts_are_not_confused(first: bytes, second: bytes) -> None:
    """If the content headers of two successive messages have the same length and share some bytes, but contain
    different user ids, the broker reads each message with the user id in its own content header.
    """
    reader = HeaderReader()
    for fields in (first, second):  # message id, type, user id
        raw = _BEGIN + b"\0\xb0" + fields
        assert reader.read(raw).properties.user_id == MessageProperties(raw, 12).named()["user_id"]


@pytest.mark.parametrize("limit", [MAX_DEPTH, DEEPEST])
def test_headers_nested_too_deeply_are_refused(limit: int) -> None:
    """The broker decodes a message's headers if their tables and lists are nested up to a maximum depth, and raises
    ValueError if they are nested deeper. The maximum for stored messages is higher than for messages that clients
    send.
    """
    reader = HeaderReader() if limit == MAX_DEPTH else HeaderReader(limit)
    fields = nested(limit) | {"message_id": b"\1m"}
    assert reader.read(header(fields)).properties.fields() == fields
    assert MessageProperties(MessageProperties.of(nested(DEEPEST)).encode()).headers
    with pytest.raises(ValueError, match="deep"):
        reader.read(_BEGIN + b"\x20\x80" + nested(limit + 1)["headers"] + b"\1m")


def test_the_headers_cc_and_bcc_are_additional_routing_keys() -> None:
    """The strings in the lists CC and BCC in the headers of a message are its additional routing keys. Other values in
    these lists are ignored, and so is a CC or BCC that is not a list.
    """
    assert carbon_copies({"CC": ["a", 1, b"\xff", "b"], "BCC": ["c"], "cc": ["d"]}) == ["a", "b", "c"]
    assert carbon_copies({"CC": "a", "BCC": ["b"]}) == ["b"]
    assert carbon_copies({}) == []
