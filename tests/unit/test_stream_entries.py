"""Entries and chunks of a stream, as mqtool's client encodes and decodes them."""

import gzip
import struct
import sys
import zlib
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqtool.codecs.amqp10_message import DATA, MESSAGE_ANNOTATIONS, SEQUENCE, VALUE
from mqtool.codecs.amqp10_values import NULL, compound, section, variable
from mqtool.errors import BadData
from mqtool.message import Message
from mqtool.offsets import FIRST, Offset, Start, parse_offset
from mqtool.streams import entries
from mqtool.streams.stream_publisher import is_super_stream, partition_of

#: Text of at most 255 bytes, as AMQP 0-9-1 can carry it in a property.
TEXT = st.text(max_size=255).filter(lambda text: len(text.encode()) < 256)
HEADERS = st.dictionaries(
    TEXT.filter(lambda name: not name.startswith("x-basic-")),
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
    | st.binary(),
    max_size=300,
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("correlation_id", "reply_to", "content_type", "type", "app_id"), TEXT),
        "expiration": st.integers(0, 2**32 - 1).map(str),
        "priority": st.integers(0, 255),
        "delivery_mode": st.integers(1, 2),
        "timestamp": st.integers(0, 253_402_300_799),
        "headers": HEADERS.filter(bool),
    },
)


@given(st.binary(max_size=1000), PROPERTIES, st.none() | TEXT)
def test_encoding_and_decoding_does_not_change_a_stream_message(
    body: bytes, properties: dict[str, Any], message_id: str | None
) -> None:
    """After encoding and decoding, a stream message has the same body, properties, headers and message id."""
    entry = entries.decode(entries.encode(Message(body, properties=properties, message_id=message_id)))
    expected = properties if message_id is None else {**properties, "message_id": message_id}
    assert (entry.body, entry.properties) == (body, expected)
    assert (entry.exchange, entry.routing_key) == ("", None)


@pytest.mark.parametrize(("size", "overhead"), [(0, 5), (1, 5), (255, 5), (256, 8), (70_000, 8)])
def test_a_stream_message_without_properties_takes_only_a_few_bytes_more_than_its_body(
    size: int, overhead: int
) -> None:
    """A stream message without properties takes 5 bytes more than its body or, with a body of 256 bytes or more, 8
    bytes more. Decoding returns the body that was encoded. A body of up to 255 bytes is read without decoding
    sections.
    """
    body = b"x" * size
    encoded = entries.encode(Message(body, routing_key="k"))
    assert len(encoded) == size + overhead
    assert entries.decode(encoded) == entries.StreamEntry(body, {})
    assert entries.body_alone(encoded) == (body if size < 256 else None)


def test_sections_are_decoded_unless_a_short_body_is_the_only_section() -> None:
    """If a stream entry in AMQP 1.0 consists of a single short data section, mqtool reads the body without decoding
    sections. It decodes the sections of any other entry in AMQP 1.0, such as one with several sections or with a body
    that is cut off. An entry that is not in AMQP 1.0 has no sections: all of it is the body.
    """
    one = section(DATA, b"\xa0\x01x")
    assert entries.body_alone(b"plain") == b"plain"
    assert entries.body_alone(one) == b"x"
    for other in (
        one + one,
        one[:-1],
        one[:4],
        one + b"y",
        section(VALUE, b"\xa0\x01x"),
        section(entries.PROPERTIES, b"\x45"),
    ):
        assert entries.body_alone(other) is None


def test_a_stream_message_is_encoded_as_rabbitmq_stores_it() -> None:
    """mqtool encodes the properties of a stream message with the same types as RabbitMQ: the user id as bytes, the
    content type and encoding as symbols, the priority as a byte, and names of annotations as symbols. Empty sections
    are left out.
    """
    properties = {
        **{name: name for name in ("user_id", "reply_to", "correlation_id", "content_type", "content_encoding")},
        **{"timestamp": 1_000, "priority": 5, "type": "t", "headers": {"h": "v"}, "app_id": None},
    }
    symbols = b"x-basic-priority"
    fields = [
        *(variable(0xA1, b"id"), variable(0xA0, b"user_id"), NULL, NULL, variable(0xA1, b"reply_to")),
        *(variable(0xA1, b"correlation_id"), variable(0xA3, b"content_type"), variable(0xA3, b"content_encoding")),
        *(NULL, b"\x83" + struct.pack(">q", 1_000_000)),
    ]
    headers = [variable(0xA1, each) for each in (b"x-basic-type", b"t", b"h", b"v")]
    body = section(DATA, b"\xa0\x01x")
    assert entries.encode(Message(b"x", properties=properties, message_id="id")) == (
        section(MESSAGE_ANNOTATIONS, compound(0xC1, [variable(0xA3, symbols), b"\x50\x05"]))
        + section(entries.PROPERTIES, compound(0xC0, fields))
        + section(entries.APPLICATION_PROPERTIES, compound(0xC1, headers))
        + body
    )
    assert entries.encode(Message(b"x", properties={"headers": {"h": "v"}})) == (
        section(entries.APPLICATION_PROPERTIES, compound(0xC1, headers[2:])) + body
    )
    assert entries.encode(Message(b"x", properties={"app_id": None})) == body


def test_a_message_for_a_super_stream_names_its_exchange_and_routing_key() -> None:
    """A message that mqtool publishes to a super stream has the exchange and routing key that it would have if RabbitMQ
    had routed it. A message without a routing key, or to a single stream, has neither.
    """
    entry = entries.decode(entries.encode(Message(b"x", routing_key="eu"), "orders"))
    assert entry == entries.StreamEntry(b"x", {}, "orders", "eu")
    assert entries.decode(entries.encode(Message(b"x"), "orders")) == entries.StreamEntry(b"x", {})
    with_header = Message(b"x", routing_key="eu", properties={"priority": 1})
    assert entries.decode(entries.encode(with_header)) == entries.StreamEntry(b"x", {"priority": 1})


def test_a_user_id_of_a_stream_message_is_text() -> None:
    """The user id of a stream message is stored as bytes, but received as text. A byte that is not valid UTF-8 becomes
    a lone surrogate, as with Python's surrogateescape.
    """
    for stored, received in ((b"me", "me"), (b"\xff", "\udcff")):
        fields = section(entries.PROPERTIES, compound(0xC0, [NULL, variable(0xA0, stored)]))
        entry = entries.decode(fields + section(DATA, b"\xa0\x01x"))
        assert entry == entries.StreamEntry(b"x", {"user_id": received})


def test_the_body_of_a_stream_message_can_have_several_parts() -> None:
    """If the body of a stream message has several data sections, the message is received with all of them in order. A
    body that is an AMQP 1.0 value or sequence is not decoded: the receiver gets its encoded bytes.
    """
    before = section(entries.PROPERTIES, compound(0xC0, [variable(0xA1, b"id")]))
    found = {"message_id": "id"}
    for parts in ([b"one", b"two"], [b"one", b"two", b"three"]):
        stored = before + b"".join(section(DATA, variable(0xA0, part)) for part in parts)
        assert entries.decode(stored) == entries.StreamEntry(b"".join(parts), found)
    for body in (section(VALUE, variable(0xA1, b"x")), section(SEQUENCE, compound(0xC0, [NULL]))):
        assert entries.decode(before + body) == entries.StreamEntry(body, found)


@pytest.mark.parametrize("value", [0, 255])
def test_a_stream_message_keeps_the_smallest_and_the_largest_priority(value: int) -> None:
    """A stream message that is sent with the priority 0 or 255 is received with this priority."""
    entry = entries.decode(entries.encode(Message(b"x", properties={"priority": value})))
    assert entry.properties == {"priority": value}


@pytest.mark.parametrize("data", [b"\x00Su\xa0", b"\x00", section(entries.PROPERTIES, b"\x45")])
def test_a_stream_entry_without_a_complete_body_is_received_as_the_body(data: bytes) -> None:
    """If a stream entry begins like an AMQP 1.0 message, but is cut off or has no body, the receiver gets the entry's
    bytes unchanged as the body.
    """
    assert entries.decode(data) == entries.StreamEntry(data, {})


@given(st.binary(max_size=200))
@example(b"\x00Su\xa0")
def test_a_stream_entry_that_is_not_amqp_1_0_is_received_as_the_body(data: bytes) -> None:
    """If a stream entry is not AMQP 1.0, such as the bare bytes that RabbitMQ's Python tutorial stores, the receiver
    gets the entry's bytes unchanged as the body.
    """
    entry = entries.decode(data)
    if entry.body != data:  # by chance, sections
        assert data[:1] == b"\x00"


@pytest.mark.parametrize(
    "value",
    [
        *(b"\x74" + bytes(4), b"\xa0\x01\xff", b"\x45", b"\x41", b"\x82\x7f\xf8" + bytes(6)),
        *(b"\x82" + struct.pack(">d", 5.0), b"\x71" + struct.pack(">i", -6), b"\x71" + struct.pack(">i", 256)),
        *(b"\xa1\x02-1", b"\xa1\x04soon", b"\xa1\x0a4294967296", b"\xa1\x02\xc2\xb2"),
    ],
)
def test_annotations_that_amqp_0_9_1_cannot_carry_are_ignored_in_a_stream_message(value: bytes) -> None:
    """A stream message has its priority, delivery mode and expiration in AMQP 1.0 annotations. A publisher can write
    any value into them. mqtool ignores a value that AMQP 0-9-1 cannot carry, such as a boolean, a priority of 256 or
    the expiration `soon`. The message is then received without this property.
    """
    names = (b"x-basic-priority", b"x-basic-delivery-mode", b"x-basic-expiration")
    annotations = compound(0xC1, [part for name in names for part in (variable(0xA3, name), value)])
    entry = entries.decode(section(MESSAGE_ANNOTATIONS, annotations) + section(DATA, b"\xa0\x01x"))
    assert (entry.body, entry.properties) == (b"x", {})


def test_a_stream_message_keeps_its_body_if_other_sections_have_unusual_contents() -> None:
    """If an annotation, property or header of a stream message is nested too deeply for mqtool, or if a section or the
    footer has an unusual encoding, the message is received with its body and its other properties and headers.
    """
    deep = NULL
    for _ in range(90):
        deep = compound(0xC0, [deep])
    headers = compound(0xC1, [variable(0xA1, b"deep"), deep, variable(0xA1, b"a"), variable(0xA1, b"b")])
    entry = entries.decode(
        section(MESSAGE_ANNOTATIONS, compound(0xC1, [variable(0xA3, b"x-deep"), deep]))
        + section(entries.PROPERTIES, compound(0xC0, [variable(0xA1, b"id"), deep]))
        + b"\x00\x80" + struct.pack(">Q", entries.APPLICATION_PROPERTIES) + headers
        + section(DATA, b"\xa0\x01x")
        + section(entries.FOOTER, b"\x00\x53\x03\x45")
    )  # fmt: skip
    assert (entry.body, entry.properties["message_id"]) == (b"x", "id")
    assert entry.properties["headers"] == {"deep": deep, "a": "b"}


#: Sections that mqtool cannot decode, and values that it can.
UNUSUAL = st.sampled_from([
    b"\x53\x05", compound(0xC1, [NULL]), compound(0xC1, [NULL] * 40_000), compound(0xC0, [NULL] * 40_000),
    compound(0xC1, [variable(0xA1, b"a"), b"\x73\x00\x00\xd8\x00"]), b"\x40", b"\x45",
]) | st.binary(max_size=9).map(lambda raw: variable(0xA0, raw))  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from([0x70, 0x71, 0x73, 0x74]), UNUSUAL), max_size=4), st.binary())
@example([(0x74, compound(0xC1, [NULL] * 40_000))], b"body")
def test_a_section_of_a_stream_message_that_cannot_be_decoded_does_not_affect_the_rest(
    sections: list[tuple[int, bytes]], body: bytes
) -> None:
    """If mqtool cannot decode a section of a stream message, for example application properties with 20,000 entries,
    which are more than mqtool decodes, the received message still has its body, exchange and routing key. This is true
    whether the descriptors of the sections are encoded in a short or a long form.
    """
    names = (b"x-exchange", b"x", b"x-routing-key", b"k")
    routed = (MESSAGE_ANNOTATIONS, compound(0xC1, [variable(0xA3, name) for name in names]))
    parts = [*sections, routed]
    for code in (lambda kind: b"\x53" + bytes((kind,)), lambda kind: b"\x80" + struct.pack(">Q", kind)):
        stored = b"".join(b"\0" + code(kind) + value for kind, value in parts)
        for descriptor in (code(DATA), variable(0xA3, b"amqp:data:binary")):
            data = b"\0" + descriptor + variable(0xA0, body)
            entry = entries.decode(stored + data)
            assert (entry.body, entry.exchange, entry.routing_key) == (body, "x", "k")
            assert entries.decode(data) == entries.StreamEntry(body, {})


@pytest.mark.parametrize("raw", [b"\x53\x05", compound(0xC1, [NULL])], ids=["number", "odd"])
def test_a_section_of_a_stream_message_that_cannot_be_decoded_becomes_a_header(raw: bytes) -> None:
    """If the annotations, properties or headers of a stream message cannot be decoded at all, the header
    mqtool-unreadable contains their bytes, and the rest of the message is received.
    """
    rest = section(entries.PROPERTIES, compound(0xC0, [variable(0xA1, b"id")])) + section(DATA, b"\xa0\x01x")
    for kind in (MESSAGE_ANNOTATIONS, entries.APPLICATION_PROPERTIES):
        found = {"message_id": "id", "headers": {"mqtool-unreadable": raw}}
        assert entries.decode(section(kind, raw) + rest) == entries.StreamEntry(b"x", found)
    entry = entries.decode(section(entries.PROPERTIES, raw) + rest)
    assert entry == entries.StreamEntry(b"x", {"headers": {"mqtool-unreadable": raw}})
    both = section(MESSAGE_ANNOTATIONS, raw) + section(entries.APPLICATION_PROPERTIES, raw)
    assert entries.decode(both + rest).properties["headers"] == {"mqtool-unreadable": raw + raw}


@pytest.mark.parametrize("time", [b"\x83" + struct.pack(">q", -1000), b"\x53\x05", b"\xa1\x01x"])
def test_a_stream_message_whose_time_amqp_0_9_1_cannot_carry_has_no_timestamp(time: bytes) -> None:
    """If the creation time of a stream entry is before 1970, or is a number or text instead of a time, the message is
    received without a timestamp, so that it can be printed as JSON and published again.
    """
    properties = compound(0xC0, [*[NULL] * 9, time])
    entry = entries.decode(section(entries.PROPERTIES, properties) + section(DATA, b"\xa0\x01x"))
    assert (entry.body, entry.properties) == (b"x", {})


def test_names_and_properties_of_a_stream_message_that_are_too_long_for_amqp_0_9_1_are_left_out() -> None:
    """In AMQP 0-9-1, an exchange, a routing key, a text property and the name of a header have at most 255 bytes each.
    If one of them is longer in a stream message, the message is received without this exchange, routing key, property
    or header. Those of exactly 255 bytes are kept.
    """

    def received(text: bytes) -> entries.StreamEntry:
        long = b"\xb1" + struct.pack(">I", len(text)) + text
        routed = [part for name in (b"x-exchange", b"x-routing-key") for part in (variable(0xA3, name), long)]
        headers = [variable(0xA1, b"x-basic-type"), long, long, variable(0xA1, b"value")]
        return entries.decode(
            section(MESSAGE_ANNOTATIONS, compound(0xC1, routed))
            + section(entries.PROPERTIES, compound(0xC0, [long]))
            + section(entries.APPLICATION_PROPERTIES, compound(0xC1, headers))
            + section(DATA, b"\xa0\x01x")
        )

    longest = "é" + 253 * "x"
    properties = {"message_id": longest, "type": longest, "headers": {longest: "value"}}
    assert received(longest.encode()) == entries.StreamEntry(b"x", properties, longest, longest)
    assert received(longest.encode() + b"x") == entries.StreamEntry(b"x", {})


def test_the_exchange_of_a_stream_entry_is_read_and_headers_with_tables_are_not_written() -> None:
    """If a stream entry was published over AMQP 0-9-1, mqtool reads its exchange and routing key from the message
    annotations that RabbitMQ has added. If mqtool itself encodes a stream entry, it leaves out headers whose values are
    tables.
    """
    annotations = {"x-exchange": "logs", "x-routing-key": "kern.error"}
    stored = section(0x72, entries._map(annotations, key=0xA3)) + entries.encode(Message(b"body"))
    entry = entries.decode(stored)
    assert (entry.exchange, entry.routing_key, entry.body) == ("logs", "kern.error", b"body")
    with_table = entries.decode(entries.encode(Message(b"", properties={"headers": {"a": {"b": 1}, "c": 2}})))
    assert with_table.properties == {"headers": {"c": 2}}


def chunk_of(*records: bytes, entry: bytes | None = None, damaged: bool = False) -> bytes:
    data = b"".join(struct.pack(">I", len(record)) + record for record in records) if entry is None else entry
    count = len(records) if entry is None else 1
    sums = zlib.crc32(data), len(data), 0, 0
    head = struct.pack(">HHBbbHIqQQIIII", 8, 1, 1, 0x50, 0, count, len(records), 0, 1, 42, *sums)
    return head + (data[:-1] + b"?" if damaged else data)


PLAIN = b"".join(struct.pack(">I", len(record)) + record for record in (b"one", b"two"))


def batch_of(data: bytes, compression: int, size: int = len(PLAIN), count: int = 2) -> entries.Chunk:
    entry = struct.pack(">BHII", 0x80 | compression << 4, count, size, len(data)) + data
    return entries.parse_chunk(chunk_of(*[b""] * count, entry=entry))


def compressed(kind: int, data: bytes) -> bytes:
    if kind == 2:
        return bytes(pytest.importorskip("snappy").StreamCompressor().compress(data))
    if kind == 3:
        return bytes(pytest.importorskip("lz4.frame").compress(data))
    if kind == 4:
        return bytes(pytest.importorskip("zstandard").compress(data))
    return gzip.compress(data) if kind == 1 else data


@pytest.mark.parametrize("compression", range(5))
def test_the_messages_of_a_sub_entry_batch_are_read_one_by_one(compression: int) -> None:
    """Other stream clients can publish several messages as one entry, a sub-entry batch. mqtool reads the messages of a
    batch one by one, whatever its compression.
    """
    chunk = batch_of(compressed(compression, PLAIN), compression)
    assert (chunk.first_offset, chunk.records, [*entries.chunk_entries(chunk)]) == (42, 2, [b"one", b"two"])


def entry_of(data: bytes, compression: int = 0, size: int | None = None, count: int = 2) -> bytes:
    """A sub-entry batch as it is stored in a chunk."""
    return struct.pack(">BHII", 0x80 | compression << 4, count, len(data) if size is None else size, len(data)) + data


def sized(*records: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(record)) + record for record in records)


def chunk(data: bytes, entry_count: int, records: int) -> entries.Chunk:
    return entries.Chunk(42, records, entry_count, data)


def test_a_chunk_can_contain_messages_and_batches() -> None:
    """A chunk of a stream can contain single messages and sub-entry batches in any order, and messages of any size,
    including empty ones. mqtool reads all of them in order.
    """
    data = sized(b"1") + entry_of(sized(b"22", b"333")) + sized(b"") + entry_of(sized(b"4444", b"")) + sized(b"55555")
    expected = [b"1", b"22", b"333", b"", b"4444", b"", b"55555"]
    assert [*entries.chunk_entries(chunk(data, 5, 7))] == expected


@pytest.mark.parametrize("cut", [1, len(PLAIN), len(PLAIN) + 5, len(PLAIN) + 11])
def test_messages_that_are_missing_at_the_end_of_a_chunk_are_counted(cut: int) -> None:
    """If the end of a chunk is missing, a stream reader gets the messages before the missing part, and the number of
    messages that cannot be read.
    """
    whole = sized(b"one", b"two") + entry_of(PLAIN)
    assert [*entries.chunk_entries(chunk(whole[:-cut], 3, 4))] == [
        *(b"one", b"two"),
        entries.Skipped(2, "the rest of the chunk is damaged"),
    ]
    assert [*entries.chunk_entries(chunk(entry_of(PLAIN) + sized(b"one") + b"\x00", 3, 5))] == [
        *(b"one", b"two", b"one"),
        entries.Skipped(2, "the rest of the chunk is damaged"),
    ]


@pytest.mark.parametrize(("name", "start"), [
    ("snappy", b"\xff\x06\x00\x00sNaPpY"), ("lz4", b"\x04\x22\x4d\x18"), ("zstd", b"\x28\xb5\x2f\xfd"),
    ("zstd", b"\x5f\x2a\x4d\x18"),
])  # fmt: skip
def test_a_stream_reader_names_the_package_that_it_needs_to_decompress_a_batch(
    monkeypatch: pytest.MonkeyPatch, name: str, start: bytes
) -> None:
    """If the Python package for the compression of a sub-entry batch is not installed, a stream reader skips the
    batch and names the package. If the batch does not begin like data of this compression, so that no package could
    read it, the reader reports that and names no package.
    """
    module, package = {
        "snappy": ("snappy", "python-snappy"), "lz4": ("lz4", "lz4"), "zstd": ("zstandard", "zstandard"),
    }[name]  # fmt: skip
    for missing in (module, f"{module}.frame"):
        monkeypatch.setitem(sys.modules, missing, None)
    compression = [each for each, _ in entries._COMPRESSIONS].index(name)
    assert [*entries.chunk_entries(batch_of(start + b"rest", compression))] == [
        entries.Skipped(2, f"the batch is compressed with {name}, for which a Python package is missing", package)
    ]
    assert [*entries.chunk_entries(batch_of(b"?" + start, compression))] == [
        entries.Skipped(2, f"the batch cannot be decompressed ({name}): it does not begin like {name} data")
    ]


def test_no_more_of_a_batch_is_decompressed_than_the_stream_reader_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """mqtool decompresses at most as many bytes of a compressed batch as a stream reader asks for, so that a small
    batch cannot fill the memory. The exception is snappy, which cannot limit its output: mqtool gives it 4 KiB of
    compressed data at a time, and stops as soon as it has enough decompressed data.
    """
    pieces, read = list[int](), list[tuple[object, ...]]()

    class StreamDecompressor:
        def decompress(self, data: bytes) -> bytes:
            pieces.append(len(data))
            return data * 2

    class LZ4FrameDecompressor:
        def decompress(self, data: bytes, max_length: int) -> bytearray:
            return bytearray(data[:max_length])

    def zstd(*, max_window_size: int) -> SimpleNamespace:
        def reader(data: bytes) -> SimpleNamespace:
            return SimpleNamespace(read=lambda most: bytearray(data[:most]))

        read.append(("window", max_window_size))
        return SimpleNamespace(stream_reader=reader)

    frame = SimpleNamespace(LZ4FrameDecompressor=LZ4FrameDecompressor)
    monkeypatch.setitem(sys.modules, "snappy", SimpleNamespace(StreamDecompressor=StreamDecompressor))
    monkeypatch.setitem(sys.modules, "lz4", SimpleNamespace(frame=frame))
    monkeypatch.setitem(sys.modules, "lz4.frame", frame)
    monkeypatch.setitem(sys.modules, "zstandard", SimpleNamespace(ZstdDecompressor=zstd))
    data = bytes(range(200)) * 100
    found = {name: function(data, 10) for name, function in entries._COMPRESSIONS if name not in ("gzip", "snappy")}
    assert found == dict.fromkeys(("none", "lz4", "zstd"), data[:10])
    assert read == [("window", 128 << 20)]
    assert entries._gunzip(gzip.compress(data), 10) == data[:10]
    doubled = b"".join(data[at : at + 4096] * 2 for at in range(0, len(data), 4096))
    assert entries._unsnap(data, 8193) == doubled[:8193]
    assert entries._unsnap(data, 8192) == doubled[:8192]
    assert entries._unsnap(data, 1_000_000) == doubled
    assert pieces == [4096, 4096, 4096, *[4096] * 4, len(data) - 4 * 4096]


def test_the_largest_batch_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream reader reads a sub-entry batch of exactly the largest size, which is 128 MiB."""
    assert entries._LARGEST_BATCH == 134_217_728
    monkeypatch.setattr(entries, "_LARGEST_BATCH", len(PLAIN))
    assert [*entries.chunk_entries(batch_of(PLAIN, 0))] == [b"one", b"two"]


@pytest.mark.parametrize("compression", range(5))
def test_a_sub_entry_batch_larger_than_its_header_says_is_skipped(compression: int) -> None:
    """If a sub-entry batch of a stream decompresses to more bytes than its header says, a stream reader skips the
    batch. Otherwise, 100 compressed bytes could become gigabytes.
    """
    chunk = batch_of(compressed(compression, bytes(1_000_000)), compression, size=100)
    assert [*entries.chunk_entries(chunk)] == [
        entries.Skipped(2, "the batch has more or less than the 100 bytes that it says")
    ]


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (batch_of(PLAIN, 0, count=3), "the batch does not consist of 3 messages"),
        (batch_of(PLAIN[:7], 0, size=7), "the batch does not consist of 2 messages"),
        (batch_of(PLAIN, 0, size=1 << 30), "the batch says that it has 1,073,741,824 bytes"),
        (batch_of(PLAIN, 7), "unknown compression (7)"),
        (batch_of(PLAIN, 5), "unknown compression (5)"),
        (batch_of(b"no gzip", 1), "cannot be decompressed (gzip)"),
    ],
)
def test_an_unreadable_sub_entry_batch_is_skipped_with_its_offsets(chunk: entries.Chunk, reason: str) -> None:
    """A stream reader skips a sub-entry batch that is damaged or has an unknown type of compression. It reports the
    reason and the number of messages in the batch, so that later messages keep their offsets.
    """
    [skipped] = entries.chunk_entries(chunk)
    assert isinstance(skipped, entries.Skipped)
    assert (skipped.messages, reason in skipped.reason) == (chunk.records, True)


def test_a_stream_chunk_with_a_wrong_checksum_raises_an_error() -> None:
    """If the checksum of a stream's chunk is wrong, decoding the chunk raises BadData instead of returning messages."""
    assert [*entries.chunk_entries(entries.parse_chunk(chunk_of(b"one", b"two")))] == [b"one", b"two"]
    with pytest.raises(BadData, match="checksum"):
        entries.parse_chunk(chunk_of(b"one", damaged=True))
    whole = chunk_of(b"one")
    other_kind = whole[:6] + b"\x01" + whole[7:]
    assert struct.unpack_from(">HHBbb", other_kind)[-1] == 1
    for wrong in (other_kind, whole[:-1], whole + b"x"):
        with pytest.raises(BadData, match="checksum"):
            entries.parse_chunk(wrong)


def test_a_stream_offset_can_be_a_name_a_number_a_time_or_an_age() -> None:
    """A stream offset can be a name such as `first`, a number, a time, or an age such as 5m. Anything else raises
    ValueError.
    """
    assert parse_offset("first") == FIRST
    assert parse_offset("42") == Offset(Start.OFFSET, 42)
    assert parse_offset("2026-01-31T12:00Z") == Offset(Start.TIMESTAMP, 1_769_860_800_000)
    ago = parse_offset("5m")
    assert ago.value is not None
    since = datetime.now(UTC) - datetime.fromtimestamp(ago.value / 1000, UTC)
    assert timedelta(minutes=5) <= since < timedelta(minutes=6)
    for wrong in ("", "-1", "soon", "1969-01-01T00:00Z", "9" * 30):
        with pytest.raises(ValueError, match=r"offset|1970"):
            parse_offset(wrong)


def test_a_routing_key_selects_the_same_partition_as_in_other_clients() -> None:
    """For each routing key, mqtool publishes to the same partition of a super stream as RabbitMQ's own clients do."""
    places = {2: 0, 5: 0, 7: 0, 9: 0, 1: 1, 3: 1, 8: 1, 88: 1, 4: 2, 6: 2, 10: 2}
    assert {number: partition_of(f"hello{number}", 3) for number in places} == places


def test_an_exchange_is_a_super_stream_if_its_streams_are_named_after_it() -> None:
    """mqtool considers an exchange a super stream only if streams are bound to it and all of them are named after
    it.
    """
    assert is_super_stream("orders", ["orders-0", "orders-1"])
    assert not is_super_stream("logs", ["kept", "logs-0"])
    assert not is_super_stream("orders", [])
