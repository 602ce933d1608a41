"""Field tables: decoding returns the encoded values with their types; invalid data is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqtool.broker.embedded.model.amqp_message import (
    ContentHeader,
    HeaderReader,
    MessageProperties,
    encode_address,
    parse_address,
)
from mqtool.codecs import field_tables as ft

values: st.SearchStrategy[ft.Value] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**7), 2**7 - 1).map(ft.Int8),
        st.integers(0, 2**8 - 1).map(ft.UInt8),
        st.integers(-(2**15), 2**15 - 1).map(ft.Int16),
        st.integers(0, 2**16 - 1).map(ft.UInt16),
        st.integers(-(2**31), 2**31 - 1).map(ft.Int32),
        st.integers(0, 2**32 - 1).map(ft.UInt32),
        st.integers(-(2**63), 2**63 - 1).map(ft.Int64),
        st.integers(0, 2**64 - 1).map(ft.Timestamp),
        st.floats(allow_nan=False),
        st.floats(allow_nan=False, width=32).map(ft.Float32),
        st.text(),
        st.binary().map(ft.ByteArray),
        st.just(b"\xff\xfe"),
        st.builds(ft.Decimal, st.integers(0, 255), st.integers(0, 2**32 - 1)),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)


def typed(value: ft.Value) -> object:
    """A value with its types, all the way down."""
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), value


@given(table=st.dictionaries(st.text(max_size=20), values, max_size=6))
def test_a_field_table_keeps_its_values_and_their_types(table: ft.Table) -> None:
    """After encoding and decoding, a field table has the same values, with the same types."""
    data = ft.encode_table(table)
    again, end = ft.decode_table(data)
    assert end == len(data)
    assert typed(again) == typed(table)


@given(data=st.binary(max_size=60))
def test_random_bytes_decode_to_a_field_table_or_raise_value_error(data: bytes) -> None:
    """Decoding random bytes as a field table returns a table or raises ValueError, but no other exception."""
    try:
        table, end = ft.decode_table(len(data).to_bytes(4) + data)
    except ValueError:
        return
    assert end == len(data) + 4
    assert isinstance(table, dict)


def test_a_deeply_nested_field_table_is_refused() -> None:
    """Decoding a field table in which 1,000 tables are nested raises ValueError, instead of RecursionError."""
    data = b""
    for _ in range(1000):
        data = b"\x01aF" + len(data).to_bytes(4) + data
    with pytest.raises(ValueError, match="deep"):
        ft.decode_table(len(data).to_bytes(4) + data)


@given(exchange=st.text(max_size=60), key=st.text(max_size=60))
def test_a_messages_exchange_and_routing_key_are_parsed_as_they_were_encoded(exchange: str, key: str) -> None:
    """After encoding and parsing, a message's exchange and routing key are unchanged."""
    address = encode_address(exchange, key)
    assert parse_address(address) == (address, exchange, key)


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


def test_replacing_one_property_keeps_the_bytes_of_the_others() -> None:
    """If a message's headers are replaced, its other properties stay unchanged, byte for byte."""
    header = ContentHeader(bytes.fromhex("003c0000 0000000000000005 f800") + b"\x04text\x03utf\0\0\0\0\x02\x07")
    edited = header.properties.replace(headers={"a": ft.Int64(1)})
    assert edited.headers == {"a": 1}
    assert (edited.delivery_mode, edited.priority) == (2, 7)
    assert edited.replace(headers={}).encode() == header.properties.encode()


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
