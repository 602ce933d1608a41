"""What pika alone gets wrong in headers and arguments, it gets right with our mending."""

from datetime import UTC, datetime
from struct import pack

from hypothesis import given, settings
from hypothesis import strategies as some
from pika.data import decode_table, encode_table

import mqtool.amqp  # noqa: F401  mends pika's decoder

names = some.text(max_size=60)
scalars = (
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63 - 1)
    | some.floats(allow_nan=False)
    | some.text()
    | some.binary()
    | some.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=some.just(UTC)).map(
        lambda moment: moment.replace(microsecond=0)
    )
    | some.decimals(-(10**6), 10**6, places=3)
)
values = some.recursive(scalars, lambda inner: some.lists(inner) | some.dictionaries(names, inner), max_leaves=8)


@settings(max_examples=40, deadline=None)
@given(some.dictionaries(names, values, max_size=5))
def test_any_table_comes_back_as_it_was(table: dict[str, object]) -> None:
    """Every type that AMQP has, nested in every way."""
    pieces: list[bytes] = []
    size = encode_table(pieces, table)

    assert decode_table(b"".join(pieces), 0) == (table, size)


def test_a_timestamp_beyond_all_calendars_is_a_number() -> None:
    """Milliseconds where seconds belong are a common mistake of publishers; it must not break the I/O loop."""
    content = b"\x02at" + b"T" + pack(">q", 1_700_000_000_000_000)

    assert decode_table(pack(">I", len(content)) + content, 0)[0] == {"at": 1_700_000_000_000_000}
