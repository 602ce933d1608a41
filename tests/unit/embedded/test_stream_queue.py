"""A stream delivers each message as it was published, although it does not fully encode or decode most messages."""

from hypothesis import example, given
from hypothesis import strategies as st

from mqtool.broker.embedded.model.amqp_message import (
    BrokerMessage,
    ContentHeader,
    MessageProperties,
    encode_address,
    encode_short,
)
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.stream_conversion import decode, encode
from mqtool.broker.embedded.model.stream_queue import Cursor, StreamQueue
from mqtool.broker.embedded.model.stream_segment import simple_entry
from mqtool.codecs.field_tables import Int64, encode_table
from tests.unit.embedded.test_stream_log import HandClock

IDS = st.sampled_from([None, b"", b"a", b"b", b"12345678", b"abcdefgh", b"k" * 200, "é".encode(), b"\xff"])
KEYS = st.sampled_from(["s", "a", "12345678", ""])
TYPES = st.sampled_from([None, b"text/plain", b"a", b"abcdefgh"])
HEADERS = st.sampled_from([None, {}, {"h": 1}, {"h": "12345678"}, {"x-stream-offset": 5, "h": True}])
BODIES = st.sampled_from([b"", b"x", b"y" * 255, b"z" * 256, b"\x00Su\xa0\x01x", b"\xa1\x08abcdefgh"])


def published(
    message_id: bytes | None, content_type: bytes | None, headers: dict[str, object] | None
) -> MessageProperties:
    fields: dict[str, bytes] = {"delivery_mode": b"\x02"}
    for name, value in (("message_id", message_id), ("content_type", content_type)):
        if value is not None:
            fields[name] = encode_short(value)
    if headers is not None:
        fields["headers"] = encode_table(headers)  # type: ignore[arg-type]
    return MessageProperties.of(fields)


def new_stream() -> tuple[StreamQueue, HandClock]:
    clock = HandClock()
    stream = StreamQueue(
        "s", "/", clock, Ledger(), lambda *_: None, lambda _: None, lambda _: None, arguments={"x-queue-type": "stream"}
    )
    return stream, clock


@given(messages=st.lists(st.tuples(IDS, TYPES, HEADERS, KEYS, BODIES), max_size=12))
@example(messages=[(b"abcdefgh", None, None, "abcdefgh", b"x"), (b"12345678", None, None, "abcdefgh", b"x")])
@example(messages=[(b"a", b"a", None, "a", b"x"), (b"b", b"a", None, "a", b"x")])
def test_a_stream_returns_each_message_unchanged(
    messages: list[tuple[bytes | None, bytes | None, dict[str, object], str, bytes]],
) -> None:
    """Each message that is read from a stream has its own id, properties, routing key and body, even if they resemble
    those of the preceding message. Its offset is in the header x-stream-offset.
    """
    stream, clock = new_stream()
    for message_id, content_type, headers, key, body in messages:
        properties = published(message_id, content_type, headers)
        stream.publish(BrokerMessage(encode_address("", key), ContentHeader.of(properties, len(body)), body))
    clock.turn()
    cursor = Cursor(stream, 0)
    for offset, (message_id, content_type, headers, key, body) in enumerate(messages):
        entry = cursor.next_entry()
        assert entry is not None
        got = entry.message
        assert (got.routing_key, got.body, got.header.body_size) == (key, body, len(body))
        kept = {name: value for name, value in (headers or {}).items() if name != "x-stream-offset"}
        expected = published(message_id, content_type, {**kept, "x-stream-offset": Int64(offset)})
        assert got.properties.fields() == expected.fields()
    assert cursor.next_entry() is None


def test_a_stream_counts_at_most_as_many_messages_as_amqp_can_report() -> None:
    """A stream client's batches can claim more messages than they contain. The stream then reports at most 2^32 - 1
    messages, the largest number that a reply to queue.declare can contain.
    """
    stream, _ = new_stream()
    stream.log.end = 1 << 32
    assert len(stream) == (1 << 32) - 1


@given(entries=st.lists(st.tuples(IDS, KEYS, BODIES, st.binary(max_size=3)), max_size=8))
def test_truncated_entries_of_stream_clients_are_delivered(
    entries: list[tuple[bytes | None, str, bytes, bytes]],
) -> None:
    """If an entry that a stream client has published is truncated, or has additional bytes after the body, the broker
    delivers the part of the entry that it can read, and raises no error.
    """
    stream, clock = new_stream()
    encoded = [encode(published(mid, None, None), body, "x", key) + more for mid, key, body, more in entries]
    encoded += [data[:-1] for data in encoded]
    for data in encoded:
        stream.log.append(simple_entry(data))
    clock.turn()
    cursor = Cursor(stream, 0)
    for data in encoded:
        entry = cursor.next_entry()
        assert entry is not None
        expected = decode(data)
        got = entry.message.properties.fields()
        got.pop("headers")
        assert (entry.message.body, got) == (expected.body, expected.properties.fields())
