"""Field tables: decoding returns the encoded values with their types; invalid data is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        st.floats(allow_nan=False, allow_infinity=False),
        st.floats(allow_nan=False, allow_infinity=False, width=32).map(ft.Float32),
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
