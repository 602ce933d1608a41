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

from mqtool.codecs.amqp10_message import DATA, MESSAGE_ANNOTATIONS, VALUE, Amqp10Message, BareProperties
from mqtool.codecs.amqp10_values import compound, section, variable
from mqtool.codecs.sections import decode, encode, for_old_streams
from mqtool.errors import BadData
from mqtool.message import Delivery, Message
from mqtool.offsets import FIRST, Offset, Start, parse_offset
from mqtool.streams import entries
from mqtool.streams.stream_publisher import is_super_stream, partition_of

#: Text of at most 255 bytes, as AMQP 0-9-1 can carry it in a property.
TEXT = st.text(max_size=255).filter(lambda text: len(text.encode()) < 256)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("correlation_id", "reply_to", "content_type", "type", "app_id"), TEXT),
        "expiration": st.integers(0, 2**32 - 1).map(str),
        "priority": st.integers(0, 255),
        "delivery_mode": st.just(2),
        "timestamp": st.integers(0, 253_402_300_799),
        "headers": st.dictionaries(TEXT, st.integers(-(2**63), 2**63 - 1) | st.text(max_size=300) | st.binary()).filter(
            lambda headers: headers and not any(name == "CC" or name.startswith("x-") for name in headers)
        ),
    },
)


def received(data: bytes) -> Delivery:
    return decode(data, "orders", 1, 0)


@given(st.binary(max_size=1000), PROPERTIES, st.none() | TEXT)
def test_encoding_and_decoding_does_not_change_a_stream_message(
    body: bytes, properties: dict[str, Any], message_id: str | None
) -> None:
    """After encoding and decoding, a stream message has the same body, properties, headers and message id, also in the
    form in which RabbitMQ before 4.0 stores messages in streams.
    """
    message = Message(body, properties=properties, message_id=message_id)
    expected = properties if message_id is None else {**properties, "message_id": message_id}
    for data in (encode(message), encode(for_old_streams(message))):
        found = received(data)
        assert (found.body, found.properties, found.exchange) == (body, expected, "")


@pytest.mark.parametrize(("size", "overhead"), [(0, 5), (1, 5), (255, 5), (256, 8), (70_000, 8)])
def test_a_stream_message_without_properties_takes_only_a_few_bytes_more_than_its_body(
    size: int, overhead: int
) -> None:
    """A stream message without properties takes 5 bytes more than its body or, with a body of 256 bytes or more, 8
    bytes more. A body of up to 255 bytes is read without decoding sections.
    """
    body = b"x" * size
    encoded = encode(Message(body, routing_key="k"))
    assert len(encoded) == size + overhead
    assert received(encoded).body == body
    assert entries.body_alone(encoded) == (body if size < 256 else None)


def test_sections_are_decoded_unless_a_short_body_is_the_only_section() -> None:
    """If a stream entry in AMQP 1.0 consists of a single short data section, mqtool reads the body without decoding
    sections. It decodes the sections of any other entry in AMQP 1.0, such as one with several sections or with a body
    that is cut off. An entry that is not in AMQP 1.0 has no sections: all of it is the body.
    """
    one = section(DATA, b"\xa0\x01x")
    assert entries.body_alone(b"plain") == b"plain"
    assert entries.body_alone(one) == b"x"
    for other in (one + one, one[:-1], one[:4], one + b"y", section(VALUE, b"\xa0\x01x"), section(0x73, b"\x45")):
        assert entries.body_alone(other) is None


def test_a_message_for_an_old_stream_is_encoded_as_rabbitmq_stored_it_before_4_0() -> None:
    """For a RabbitMQ before 4.0, mqtool encodes stream messages as that version does for AMQP 0-9-1 clients: the
    priority, delivery mode and expiration as annotations, and the type, the app id and all headers as application
    properties. The reply-to is not an address.
    """
    properties = {
        **{"reply_to": "rq", "priority": 5, "delivery_mode": 1, "expiration": "60", "type": "t", "app_id": "a"},
        "headers": {"x-h": "v"},
    }
    sent = Amqp10Message.decode(encode(for_old_streams(Message(b"x", properties=properties))))
    assert sent.message_annotations == {"x-basic-priority": 5, "x-basic-delivery-mode": 1, "x-basic-expiration": "60"}
    assert sent.application_properties == {"x-h": "v", "x-basic-type": "t", "x-basic-app-id": "a"}
    assert sent.properties == BareProperties(reply_to="rq")
    assert received(sent.encode()).properties == properties


def test_a_message_for_a_super_stream_names_its_exchange_and_routing_key() -> None:
    """A message that mqtool publishes to a super stream has the exchange and routing key that it would have if RabbitMQ
    had routed it. A message without a routing key, or to a single stream, has neither.
    """
    routed = received(encode(Message(b"x", routing_key="eu"), exchange="orders"))
    assert (routed.body, routed.exchange, routed.routing_key) == (b"x", "orders", "eu")
    for message, exchange in ((Message(b"x"), "orders"), (Message(b"x", "eu", properties={"priority": 1}), "")):
        found = received(encode(message, exchange=exchange))
        assert (found.exchange, found.routing_key) == ("", "orders")


@pytest.mark.parametrize("data", [b"\x00Su\xa0", b"\x00"])
def test_a_stream_entry_without_a_complete_body_is_received_as_the_body(data: bytes) -> None:
    """If a stream entry begins like an AMQP 1.0 message, but is cut off, the receiver gets the entry's
    bytes unchanged as the body.
    """
    assert received(data).body == data


@given(st.binary(max_size=200))
@example(b"\x00Su\xa0")
def test_a_stream_entry_that_is_not_amqp_1_0_is_received_as_the_body(data: bytes) -> None:
    """If a stream entry is not AMQP 1.0, such as the bare bytes that RabbitMQ's Python tutorial stores, the receiver
    gets the entry's bytes unchanged as the body.
    """
    if received(data).body != data:  # by chance, sections
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
    """RabbitMQ before 4.0 stores a message's priority, delivery mode and expiration in AMQP 1.0 annotations. A
    publisher can write any value into them. mqtool ignores a value that AMQP 0-9-1 cannot carry, such as a boolean, a
    priority of 256 or the expiration `soon`. The message is then received without this property.
    """
    names = (b"x-basic-priority", b"x-basic-delivery-mode", b"x-basic-expiration")
    annotations = compound(0xC1, [part for name in names for part in (variable(0xA3, name), value)])
    found = received(section(MESSAGE_ANNOTATIONS, annotations) + section(DATA, b"\xa0\x01x"))
    assert (found.body, found.properties) == (b"x", {})


def test_an_exchange_and_a_routing_key_that_are_too_long_are_left_out() -> None:
    """In AMQP 0-9-1, an exchange and a routing key have at most 255 bytes each. If one of them is longer in a stream
    message, the message is received without it. Those of exactly 255 bytes are kept.
    """
    longest = "é" + 253 * "x"
    for name, found in ((longest, (longest, longest)), (longest + "x", ("", ""))):
        raw = name.encode()
        text = variable(0xA1, raw)
        routed = [part for each in (b"x-exchange", b"x-routing-key") for part in (variable(0xA3, each), text)]
        delivery = received(section(MESSAGE_ANNOTATIONS, compound(0xC1, routed)) + section(DATA, b"\xa0\x01x"))
        assert (delivery.exchange, delivery.routing_key) == found


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
