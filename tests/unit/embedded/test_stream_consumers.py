"""Consumers of a stream in the embedded broker: where they start, what they get, and what they cannot do."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest

from mqtool.broker.embedded.model import sectioned, stream_queue
from mqtool.broker.embedded.model.amqp_errors import ConnectionException
from mqtool.broker.embedded.model.applied_policies import USER, Policy
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Like
from mqtool.broker.embedded.model.queue import Why, feed
from mqtool.broker.embedded.model.queue_arguments import OFFSET
from mqtool.broker.embedded.model.sectioned import Sectioned
from mqtool.broker.embedded.model.stream_log import SEGMENT_BYTES, Retention
from mqtool.broker.embedded.model.stream_queue import Cursor, StreamQueue
from mqtool.broker.embedded.model.stream_segment import simple_entry
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.amqp10_message import data_section
from mqtool.codecs.field_tables import Int32, Int64, Table, Timestamp, encode_table
from tests.unit.embedded.test_limits_of_queues import Watching, with_fields
from tests.unit.embedded.test_queue import BusyClock, FakeClock, FakeConsumer, add_queue, message

FILTER, UNFILTERED = "x-stream-filter", "x-stream-match-unfiltered"


@dataclass(eq=False)
class StreamConsumer(FakeConsumer):
    """A consumer of a stream; an AMQP 1.0 consumer has a selector."""

    selector: Callable[[Any], bool] | None = None

    @property
    def bodies(self) -> str:
        return " ".join(entry.message.body.decode() for entry in self.got)


def add_stream(vhost: VirtualHost, **arguments: Any) -> StreamQueue:
    return cast(StreamQueue, add_queue(vhost, "s", durable=True, x_queue_type="stream", **arguments))


def consume(stream: StreamQueue, arguments: Table | None = None, **properties: Any) -> StreamConsumer:
    """Add a consumer, which gets the messages from the first one on unless the arguments say something else."""
    consumer = StreamConsumer(
        queue=stream, arguments={OFFSET: "first"} if arguments is None else arguments, **properties
    )
    stream.add_consumer(consumer)
    stream.pump()
    return consumer


def publish(stream: StreamQueue, *bodies: str, headers: Table | None = None) -> None:
    """Publish messages in one chunk, and let them be written."""
    for body in bodies:
        assert stream.publish(message(body.encode(), key="s", headers=headers)) == (True, False)
    stream.clock.pass_by(0)  # type: ignore[attr-defined]


@pytest.fixture
def stream(vhost: VirtualHost, clock: FakeClock) -> StreamQueue:
    """A stream of three chunks, with one minute between them."""
    stream = add_stream(vhost)
    publish(stream, "a", "b")
    clock.pass_by(60_000)
    publish(stream, "c")
    clock.pass_by(60_000)
    publish(stream, "d")
    return stream


@pytest.mark.parametrize(
    ("offset", "bodies"),
    [
        ("first", "a b c d e f g"),
        ("last", "d e f g"),
        ("next", "e f g"),
        (None, "e f g"),
        (Int32(0), "a b c d e f g"),
        (Int32(1), "b c d e f g"),
        (Int32(2), "c d e f g"),
        (Int32(4), "e f g"),
        (Int32(6), "g"),
        (Timestamp(1_700_000_000), "a b c d e f g"),
        (Timestamp(1_700_000_001), "c d e f g"),
        (Timestamp(1_700_000_060), "c d e f g"),
        (Timestamp(1_700_000_061), "d e f g"),
        (Timestamp(1_700_000_121), "e f g"),
        ("1h", "a b c d e f g"),
        ("1m", "c d e f g"),
        ("59s", "d e f g"),
    ],
)
def test_a_consumer_of_a_stream_starts_at_its_offset(stream: StreamQueue, offset: Any, bodies: str) -> None:
    """A consumer of a stream starts at its x-stream-offset: the offset of a message, `first`, `last` (the last chunk),
    or the first chunk that is not older than a timestamp or an interval. With `next`, or without x-stream-offset, it
    gets only new messages. If the offset does not exist yet, the consumer waits for it.
    """
    consumer = consume(stream, {} if offset is None else {OFFSET: offset})
    publish(stream, "e", "f", "g")
    assert consumer.bodies == bodies
    first = "abcdefg".index(bodies[0])
    assert [entry.message.headers for entry in consumer.got] == [{OFFSET: number} for number in range(first, 7)]
    assert [entry.position for entry in consumer.got] == [*range(first, 7)]
    assert (len(stream), stream.traffic.published, stream.traffic.delivered) == (7, 7, 7 - first)


def test_consumers_of_a_stream_get_messages_independently(stream: StreamQueue) -> None:
    """Each consumer of a stream gets all messages, whatever other consumers do. A consumer that has reached its
    prefetch limit gets the next messages once it is below the limit again. A cancelled consumer gets no more
    messages.
    """
    slow, quick, gone = consume(stream, room=1), consume(stream), consume(stream)
    stream.remove_consumer(gone)
    publish(stream, "e")
    assert (slow.bodies, quick.bodies, gone.bodies) == ("a", "a b c d e", "a b c d")
    slow.room = 2
    feed([slow])
    assert slow.bodies == "a b c"
    slow.room = 9
    feed([slow])
    publish(stream, "f")
    assert (slow.bodies, quick.bodies, gone.bodies) == ("a b c d e f", "a b c d e f", "a b c d")
    assert [*stream.consumers] == [slow, quick]


@pytest.mark.parametrize(
    ("action", "what"),
    [
        (lambda stream, entry: stream.reject(entry), "basic.nack and basic.reject"),
        *((lambda stream, entry, why=why: stream.requeue([entry], why), "basic.nack and basic.reject")
          for why in Why if not why.is_end),
        (lambda stream, _: stream.get(no_ack=False), "basic.get"),
        (lambda stream, _: stream.purge(), "queue.purge"),
    ],
)  # fmt: skip
def test_a_stream_refuses_nack_reject_get_and_purge(
    stream: StreamQueue, action: Callable[[StreamQueue, BacklogEntry], object], what: str
) -> None:
    """If a client sends basic.nack, basic.reject, basic.get or queue.purge for a stream, the broker closes the
    connection with error 540 (NOT_IMPLEMENTED). A stream keeps messages that are acknowledged, and those that are
    unacknowledged when their channel is closed.
    """
    entry = consume(stream).got[0]
    with pytest.raises(ConnectionException) as refused:
        action(stream, entry)
    assert refused.value.text == f"NOT_IMPLEMENTED - {what} not supported by stream queues queue 's' in vhost '/'"
    stream.requeue([entry], Why.CLOSED)
    stream.requeue([entry], Why.LOST)
    for _ in range(2):
        stream.acknowledge(entry)
    assert (len(stream), stream.unacked, stream.traffic.acknowledged) == (4, 0, 2)


@pytest.mark.parametrize(
    ("like", "arguments", "bodies"),
    [
        (Like.V4_2, {}, "a b c n"),
        (Like.V4_2, {FILTER: "a"}, "a"),
        (Like.V4_2, {FILTER: ["a", Int32(5), "c"]}, "a c"),
        (Like.V4_2, {FILTER: "a", UNFILTERED: True}, "a n"),
        (Like.V4_2, {FILTER: "a", UNFILTERED: "yes"}, "a"),
        (Like.V4_2, {FILTER: Int32(5), UNFILTERED: True}, "a b c n"),
        (Like.V4_2, {UNFILTERED: True}, "a b c n"),
        (Like.V4_2, {FILTER: "other"}, ""),
        (Like.V3_10, {FILTER: "a"}, "a b c n"),
    ],
    ids=str,
)
def test_a_consumer_with_filter_values_gets_only_the_chunks_that_match(
    clock: FakeClock, ledger: Ledger, like: Like, arguments: Table, bodies: str
) -> None:
    """A consumer with x-stream-filter skips chunks that contain none of its filter values. If
    x-stream-match-unfiltered is true, it also gets chunks without any filter value. With `broker up --like 3.10`, the
    broker ignores both arguments.
    """
    stream = add_stream(VirtualHost("/", clock, ledger, PROFILES[like]))
    for value in "abc":
        publish(stream, value, headers={"x-stream-filter-value": value})
    publish(stream, "n", headers={"x-stream-filter-value": Int32(5)})
    assert consume(stream, {OFFSET: "first", **arguments}).bodies == bodies


@pytest.mark.parametrize("like", Like)
def test_a_message_with_headers_is_read_from_a_stream_as_it_was_published(
    clock: FakeClock, ledger: Ledger, like: Like
) -> None:
    """Whatever version of RabbitMQ the broker imitates, a consumer gets each message in a stream with the headers that
    it was published with, and with its offset in the header x-stream-offset.
    """
    stream = add_stream(VirtualHost("/", clock, ledger, PROFILES[like]))
    for number in range(2):
        publish(stream, str(number), headers={"a": Int32(number)})
    found = [(entry.message.routing_key, entry.message.headers) for entry in consume(stream).got]
    assert found == [("s", {"a": number, OFFSET: number}) for number in range(2)]


ID, LONG_ID = b"\x04abcd", b"\x06abcdef"


@pytest.mark.parametrize(
    ("published", "decoded"),
    [
        ([({}, "a"), ({}, "b"), ({}, "x" * 255), ({}, "y" * 256), ({}, "z" * 70_000), ({}, "")], 1),
        ([({}, "x" * 300), ({}, "y" * 301), ({}, "z")], 1),
        ([({"message_id": b"\x04%04d" % number}, f"{number}" * number) for number in range(300)], 1),
        ([({"message_id": ID}, "a"), ({"message_id": LONG_ID}, "b"), ({"message_id": LONG_ID}, "c")], 2),
        ([({"message_id": ID}, "a"), ({}, "b"), ({}, "c")], 2),
        ([({}, "a"), ({"message_id": ID}, "b"), ({"message_id": b"\x04wxyz"}, "c")], 2),
        (
            [
                ({"message_id": ID, "content_type": b"\x01t"}, "a"),
                ({"message_id": ID, "content_type": b"\x01t"}, "b"),
                ({"message_id": ID, "content_type": b"\x01u"}, "c"),
            ],
            2,
        ),
        ([({"content_encoding": b"\x01e", "app_id": b"\x01a"}, "a")] * 3, 1),
        ([({"message_id": ID, "app_id": b"\x04abcd"}, "a")] * 2, 1),
        ([({"reply_to": b"\x01q"}, "a")] * 2, 1),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("like", [Like.V3_10, Like.V4_2])
def test_messages_of_a_stream_that_differ_only_in_id_and_body_are_decoded_once(
    clock: FakeClock,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    like: Like,
    published: list[tuple[dict[str, bytes], str]],
    decoded: int,
) -> None:
    """If successive messages in a stream differ only in their bodies and in message ids of the same length, the broker
    decodes only the first of them. It delivers every message as it was published.
    """
    seen: list[object] = []
    for module, name in ((sectioned, "parse_stored"), (stream_queue, "decode")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *data, original=original: (seen.append(data), original(*data))[1])
    stream = add_stream(VirtualHost("/", clock, ledger, PROFILES[like]))
    for fields, body in published:
        stream.publish(with_fields(body.encode(), delivery_mode=b"\x02", **fields))
    clock.pass_by(0)
    found = consume(stream).got
    got = [(entry.message.properties.fields(), entry.message.body.decode()) for entry in found]
    for offset, (fields, _) in enumerate(got):
        assert fields.pop("headers") == encode_table({OFFSET: Int64(offset)})
    assert got == [({"delivery_mode": b"\x02", **fields}, body) for fields, body in published]
    assert [entry.message.header.body_size for entry in found] == [len(body) for _, body in published]
    assert len(seen) == decoded


def test_an_amqp_1_0_consumer_gets_only_the_messages_that_its_filters_select(stream: StreamQueue) -> None:
    """An AMQP 1.0 consumer of a stream gets only the messages that match its filters, and gets them as AMQP 1.0
    messages.
    """
    consumer = consume(stream, selector=lambda sections: bytes(sections.body)[-1:] in b"bd")
    assert [entry.position for entry in consumer.got] == [1, 3]
    assert {type(entry.message) for entry in consumer.got} == {Sectioned}
    publish(stream, "e", "b")
    assert [entry.position for entry in consumer.got] == [1, 3, 5]


@pytest.mark.parametrize("how", ["filter value", "selector"])
def test_a_long_search_for_messages_of_a_stream_lets_the_broker_serve_other_clients(ledger: Ledger, how: str) -> None:
    """If a consumer's filters skip many messages in a stream, the broker interrupts the search to serve other clients.
    It then continues the search, and the consumer gets the messages that match its filters.
    """
    clock = BusyClock()
    stream = add_stream(VirtualHost("/", clock, ledger, PROFILES[DEFAULT]))
    for _ in range(400):
        publish(stream, "x" * 10_000, headers={"x-stream-filter-value": "b"})
        clock.pass_by(1)
    publish(stream, "found", headers={"x-stream-filter-value": "a"})
    clock.pass_by(1)
    if how == "selector":
        consumer = consume(stream, selector=lambda sections: bytes(sections.body).endswith(b"found"))
    else:
        consumer = consume(stream, {OFFSET: "first", FILTER: "a"})
    assert (consumer.got, [*stream.due]) == ([], [consumer])
    clock.pass_by(1000)
    assert ([entry.position for entry in consumer.got], [*stream.due]) == ([400], [])


def test_many_consumers_of_a_stream_are_served_in_turns(ledger: Ledger) -> None:
    """If a message is published to a stream with many consumers, the broker delivers it to some of them immediately,
    and to the others in later turns of its event loop, so that it can serve other clients in between. Consumers are
    served in the order in which they began to wait. A consumer that is cancelled before its turn does not get the
    message.
    """
    clock = BusyClock()
    stream = add_stream(VirtualHost("/", clock, ledger, PROFILES[DEFAULT]))
    consumers = [consume(stream, {OFFSET: "next"}) for _ in range(30)]
    clock.pass_by(1000)
    turns: list[Callable[[], object]] = []
    stream.publish(message(b"x"))
    clock.take_turn = turns.append  # type: ignore[method-assign, assignment]
    clock.pass_by(1000)
    served = [len(consumer.got) for consumer in consumers]
    assert served == sorted(served, reverse=True)
    assert 0 < sum(served) < 10
    assert len(turns) == 1
    assert [*stream.due] == consumers[sum(served) :]
    stream.remove_consumer(consumers[-1])
    assert [*stream.due] == consumers[sum(served) : -1]
    stream.publish(message(b"y"))
    stream.pump()
    assert [len(consumer.got) for consumer in consumers] == served, "served before its turn"
    clock.pass_by(1000)
    while turns:
        turns.pop(0)()
    assert {consumer.bodies for consumer in consumers[:-1]} == {"x y"}
    assert consumers[-1].bodies == ""


def test_a_policy_limits_an_existing_stream(vhost: VirtualHost) -> None:
    """The maximum size, the maximum age and the segment size of a stream come from its arguments and the policies that
    apply to it. If a policy is set or deleted, the limits of an existing stream change immediately.
    """
    stream = add_stream(vhost, x_max_length_bytes=Int32(5000), x_stream_max_segment_size_bytes=Int32(500))
    assert stream.log.retention == Retention(5000, None, 500)
    vhost.policies.put(USER, Policy("p", "s", {"max-age": "1m", "max-length-bytes": Int32(4000)}))
    assert stream.policy.policy == "p"
    assert stream.log.retention == Retention(4000, 60_000, 500)
    vhost.policies.delete(USER, "p")
    assert stream.log.retention == Retention(5000, None, 500)
    vhost.policies.put(USER, Policy("p", "t", {"max-age": "1m"}))
    other = cast(StreamQueue, add_queue(vhost, "t", durable=True, x_queue_type="stream"))
    assert other.log.retention == Retention(None, 60_000, SEGMENT_BYTES)


@pytest.mark.parametrize(
    ("like", "offset", "first"),
    [(Like.V4_4, Int32(7), 7), (Like.V4_4, "7", 0), (Like.V4_4, None, 0), (Like.V4_3, 7, 0)],
)
def test_the_first_message_of_a_stream_has_the_initial_offset(
    clock: FakeClock, ledger: Ledger, like: Like, offset: Any, first: int
) -> None:
    """With `broker up --like 4.4`, the first message of a stream has the offset in the argument
    x-stream-initial-offset. Without this argument, or with `--like 4.3` or earlier, its offset is 0.
    """
    arguments = {} if offset is None else {"x_stream_initial_offset": offset}
    stream = add_stream(VirtualHost("/", clock, ledger, PROFILES[like]), **arguments)
    publish(stream, "a", "b")
    assert len(stream) == 2
    assert [entry.position for entry in consume(stream).got] == [first, first + 1]


def test_a_stream_that_is_emptied_keeps_its_consumers(stream: StreamQueue) -> None:
    """If a program's tests empty an embedded broker's streams between two tests, the streams lose their messages and
    keep their consumers. The consumers then get only messages that are published later.
    """
    waiting, full = consume(stream), consume(stream, room=1)
    stream.clear()
    assert len(stream) == 0
    full.room = 9
    feed([full])
    publish(stream, "e")
    assert (waiting.bodies, full.bodies) == ("a b c d e", "a e")


def test_the_consumers_of_a_deleted_stream_are_cancelled(vhost: VirtualHost, stream: StreamQueue) -> None:
    """If a stream is deleted, its consumers are cancelled, and get no more messages. As in RabbitMQ, the reply to
    queue.delete contains 0 as the number of deleted messages.
    """
    waiting, full = consume(stream), consume(stream, room=1)
    assert vhost.delete_queue(stream) == 0
    assert (waiting.gone, full.gone, stream.deleted, stream.log.deleted) == (True, True, True, True)
    full.room = 9
    stream.pump()
    assert full.bodies == "a"


def test_each_message_that_enters_a_stream_is_reported_to_a_live_display(vhost: VirtualHost) -> None:
    """The broker reports each message that is routed to a stream, with its offset, to a live display such as `mqtool
    ui`.
    """
    stream, watcher = add_stream(vhost), Watching()
    vhost.watch(cast(Any, watcher))
    for body in (b"a", b"b"):
        vhost.enqueue(vhost.route(vhost.exchanges[""], message(body, key="s")))
    stream.publish(message(b"not shown"))
    assert watcher.told == [("entered", "s", b"a", 0), ("entered", "s", b"b", 1)]


def test_a_cancelled_consumer_of_a_stream_takes_no_memory(stream: StreamQueue) -> None:
    """Once a consumer of a stream is cancelled, the broker keeps no data about it in memory."""
    consumer = weakref.ref(consume(stream))
    stream.remove_consumer(consumer())  # type: ignore[arg-type]
    gc.collect()
    assert consumer() is None


@pytest.mark.parametrize("like", [Like.V3_10, Like.V4_2])
@pytest.mark.parametrize("selector", [None, lambda _: True], ids=["AMQP 0-9-1", "AMQP 1.0"])
def test_a_message_of_the_stream_protocol_has_the_name_of_the_stream_as_its_routing_key(
    clock: FakeClock, ledger: Ledger, like: Like, selector: Any
) -> None:
    """A message that was published over the stream protocol is delivered over AMQP 0-9-1 and AMQP 1.0 with the name of
    the stream as its routing key.
    """
    stream = add_stream(VirtualHost("/", clock, ledger, PROFILES[like]))
    stream.log.append(simple_entry(data_section(b"x")))
    clock.pass_by(0)
    (entry,) = consume(stream, selector=selector).got
    assert (entry.message.exchange, entry.message.routing_key, entry.message.body[-1:]) == ("", "s", b"x")


def test_the_rest_of_a_stream_is_read_although_it_takes_several_turns(ledger: Ledger) -> None:
    """Cursor.rest() reads a stream from an offset to the end, and returns all messages that match the cursor's
    filter, even if the broker needs several turns of its event loop to find these messages.
    """
    clock = BusyClock()
    stream = add_stream(VirtualHost("/", clock, ledger, PROFILES[DEFAULT]))
    publish(stream, *"abcdefgh")
    clock.pass_by(1000)
    assert [entry.message.body for entry in Cursor(stream, 6).rest()] == [b"g", b"h"]
    cursor = Cursor(stream, 0, selector=lambda sections: bytes(sections.body).endswith(b"h"))
    assert (cursor.next_entry(), cursor.is_tired) == (None, True)
    assert [entry.position for entry in cursor.rest()] == [7]
    assert (cursor.next_entry(), cursor.is_tired) == (None, False)
    clock.elapsed = lambda: 5.0  # type: ignore[method-assign]
    quick = Cursor(stream, 0, selector=lambda sections: bytes(sections.body).endswith(b"h"))
    assert quick.next_entry() is not None, "tired, although no time has passed"
