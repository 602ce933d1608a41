"""What mqtool encodes and decodes itself equals what pika encodes and decodes."""

from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from mqtool.amqp.basic_frames import ConsumerFrames, FrameReader, PublishEncoder, acknowledgements, check, decode_frame
from mqtool.amqp.unconfirmed import Route
from mqtool.codecs.field_tables import header_size
from mqtool.errors import HeadersTooLarge, MqtoolError
from mqtool.message import Delivery, Message

#: Bytes of a body that fit into a frame here.
BODY_MAX = 50

texts = st.text(max_size=8)
deliveries = st.builds(
    Delivery,
    body=st.binary(max_size=2 * BODY_MAX),
    exchange=texts,
    routing_key=texts,
    queue=st.just("q"),
    redelivered=st.booleans(),
    properties=st.fixed_dictionaries(
        {},
        optional={
            "delivery_mode": st.just(2),
            "message_id": texts,
            "headers": st.dictionaries(texts, st.integers(-(2**31), 2**31 - 1) | texts, max_size=3),
        },
    ),
    delivery_tag=st.integers(1, 2**63),
    epoch=st.just(7),
)
Confirm = tuple[int, bool]
confirms = st.tuples(st.integers(1, 2**63), st.booleans())
#: Other frames that may arrive between two deliveries, or between two frames of a delivery.
OTHERS = [
    frame.Heartbeat().marshal(),
    frame.Method(2, spec.Basic.Deliver("ours", 5, False, "", "q")).marshal(),
    frame.Method(1, spec.Basic.Deliver("another", 6, False, "", "q")).marshal(),
    frame.Method(1, spec.Basic.CancelOk("another")).marshal(),
    frame.Method(2, spec.Basic.Ack(7, True)).marshal(),
]


def frames_of(delivery: Delivery) -> list[bytes]:
    method = spec.Basic.Deliver(
        "ours", delivery.delivery_tag, delivery.redelivered, delivery.exchange, delivery.routing_key
    )
    properties = spec.BasicProperties(**delivery.properties)
    pieces = [delivery.body[start : start + BODY_MAX] for start in range(0, len(delivery.body), BODY_MAX)]
    return [
        frame.Method(1, method).marshal(),
        frame.Header(1, len(delivery.body), properties).marshal(),
        *(frame.Body(1, piece).marshal() for piece in pieces),
    ]


@given(st.lists(deliveries | confirms | st.sampled_from(OTHERS), max_size=8), st.lists(st.integers(0, 400), max_size=8))
def test_frames_that_mqtool_does_not_decode_are_passed_to_pika_unchanged(
    sent: list[Delivery | Confirm | bytes], ends: list[int]
) -> None:
    """mqtool itself decodes confirms, and deliveries whose body fits into one frame. It passes all other frames to
    pika, unchanged and in order, wherever the received bytes are split.
    """
    got: list[Delivery | Confirm | bytes] = []
    reader = FrameReader(got.append)
    reader.add(ConsumerFrames(1, "ours", "q", 7, got.extend))
    reader.confirmed[1] = lambda tag, *, multiple: got.append((tag, multiple))
    expected: list[Delivery | Confirm | bytes] = []
    data = b""
    for item in sent:
        if isinstance(item, Delivery):
            frames = frames_of(item)
            expected += [item] if len(item.body) <= BODY_MAX else frames
        else:
            frames = [item if isinstance(item, bytes) else frame.Method(1, spec.Basic.Ack(*item)).marshal()]
            expected.append(item)
        data += b"".join(frames)

    taken = position = 0
    for end in [*sorted(ends), len(data)]:
        taken += reader.receive(data[position:end])
        position = max(position, end)

    for delivery in got:
        if isinstance(delivery, Delivery):
            delivery.properties = {name: value for name, value in delivery.properties.items() if value is not None}
    assert got == expected
    assert taken == len(data) - sum(len(passed) for passed in got if isinstance(passed, bytes))


def test_a_delivery_is_passed_on_as_soon_as_it_is_complete() -> None:
    """However the received bytes are split, mqtool passes each delivery to its consumer as soon as the last byte has
    arrived. Frames that mqtool does not decode itself go to pika. Deliveries that arrive together are passed on
    together.
    """
    plain: dict[str, Any] = {}
    with_id = {"message_id": "m", "delivery_mode": 2}
    small = [
        Delivery(body, exchange, key, "q", redelivered, properties, tag, 7)
        for tag, (body, exchange, key, redelivered, properties) in enumerate([
            (b"", "", "q", False, plain), (b"b", "", "q", False, plain), (b"b", "", "q", True, with_id),
            (b"bb", "logs", "a.b", False, with_id), (b"c" * BODY_MAX, "logs", "a.b", False, plain),
            (b"", "", "", False, plain),
        ], 1)
    ]  # fmt: skip
    large = frames_of(Delivery(b"d" * (BODY_MAX + 1), "", "q", "q", False, plain, 7, 7))
    expected: list[Delivery | bytes] = [*small, *large, *OTHERS[:4], *reversed(small)]
    pieces = [b"".join(frames_of(each)) if isinstance(each, Delivery) else each for each in expected]
    data = b"".join(pieces)
    complete_at = [len(b"".join(pieces[:count])) for count in range(1, len(pieces) + 1)]
    batches: list[list[Delivery]] = []

    def take(batch: list[Delivery]) -> None:
        for delivery in batch:
            delivery.properties = {name: delivery.properties[name] for name in delivery.properties}
        batches.append(batch)
        got.extend(batch)

    for size in range(1, len(data) + 1):
        got: list[Delivery | bytes] = []
        reader = FrameReader(got.append)
        reader.add(ConsumerFrames(1, "ours", "q", 7, take))
        reader.add(ConsumerFrames(2, "other", "q", 7, take))
        batches.clear()
        for start in range(0, len(data), size):
            reader.receive(data[start : start + size])
            end = min(start + size, len(data))
            passed = len([each for each in complete_at if each <= end])
            waiting = passed if passed == len(expected) else expected[passed]
            assert got == expected[: len(got)]
            assert len(got) == passed or waiting in large or expected[passed - 1] in large
    assert [len(batch) for batch in batches] == [6, 6]


def test_a_protocol_header_is_passed_to_pika() -> None:
    """If a broker refuses AMQP 0-9-1 by answering with another protocol header, mqtool passes this header to pika
    unchanged.
    """
    got: list[bytes] = []
    assert FrameReader(got.append).receive(b"AMQP\0\1\0\0") == 0
    assert got == [b"AMQP\0\1\0\0"]


def test_deliveries_after_a_cancellation_are_passed_to_pika() -> None:
    """If a message arrives after its consumer was cancelled, mqtool does not decode it, but passes its
    frames to pika.
    """
    got: list[Delivery | bytes] = []
    reader = FrameReader(got.append)
    reader.add(ConsumerFrames(1, "ours", "q", 7, got.extend))
    reader.remove(1, "ours")
    frames = frames_of(Delivery(b"late", "", "q", "q", False, {}, 1, 7))
    reader.receive(b"".join(frames))
    assert got == frames


def published(method: spec.Basic.Publish, properties: dict[str, Any], body: bytes) -> bytes:
    """Return the frames of a message on channel 3, as pika encodes them, with bodies in pieces of BODY_MAX bytes."""
    pieces = [body[start : start + BODY_MAX] for start in range(0, len(body), BODY_MAX)]
    frames = [frame.Method(3, method), frame.Header(3, len(body), spec.BasicProperties(**properties))]
    return b"".join(each.marshal() for each in (*frames, *(frame.Body(3, piece) for piece in pieces)))


PROPERTIES: list[dict[str, Any]] = [
    {},
    {"content_type": "text", "delivery_mode": 1},
    {"headers": {"a": 1}, "app_id": "x", "cluster_id": ""},
    {"priority": 0, "timestamp": 1, "type": None},
]


@pytest.mark.parametrize("persistent", [True, False])
def test_messages_are_published_in_the_frames_that_pika_would_send(*, persistent: bool) -> None:
    """mqtool publishes a message in the same frames as pika does, and no frame is larger than the broker accepts. If a
    message has no exchange, routing key or delivery mode of its own, that of the command is used.
    """
    encoder = PublishEncoder(3, BODY_MAX + 8)
    route = Route("x", "k", mandatory=True, persistent=persistent)
    for own, properties, message_id, size in product(
        [None, "other"], PROPERTIES, [None, "", "id"], [0, 1, BODY_MAX, BODY_MAX + 1, 2 * BODY_MAX, 2 * BODY_MAX + 1]
    ):
        body = bytes(range(size))
        sent = [Message(body, own, own, properties, message_id)] * 2
        expected = {name: value for name, value in properties.items() if value is not None}
        if persistent:
            expected.setdefault("delivery_mode", 2)
        method = spec.Basic.Publish(exchange=own or "x", routing_key=own or "k", mandatory=True)
        frames = published(method, expected if message_id is None else {**expected, "message_id": message_id}, body)
        assert encoder.encode(sent, route) == frames * 2
    assert encoder.encode([Message(b"", "", "")], Route("x", "k")) == published(spec.Basic.Publish(), {}, b"")
    assert encoder.encode([], route) == b""


def test_messages_with_the_same_properties_are_sent_with_the_delivery_mode_of_their_command() -> None:
    """mqtool caches encoded properties. If a persistent and a transient command publish messages with the same
    properties, each message is still sent with its own command's delivery mode. This is also true of a message whose id
    is 255 bytes long and is not valid UTF-8.
    """
    encoder, message = PublishEncoder(3, BODY_MAX + 500), Message(b"", message_id="\udce9" + "x" * 254)
    for persistent in (True, False, True):
        properties = {"message_id": "A" + "x" * 254, **({"delivery_mode": 2} if persistent else {})}
        expected = published(spec.Basic.Publish(), properties, b"").replace(b"Axx", b"\xe9xx")
        assert encoder.encode([message], Route(persistent=persistent)) == expected


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Message(b"", "k" * 256), "the routing key is 256 bytes long; AMQP allows 255"),
        (Message(b"", "k", "x" * 257), "the exchange is 257 bytes long; AMQP allows 255"),
        (Message(b"", message_id="\u00e4" * 128), "the message id is 256 bytes long; AMQP allows 255"),
        (Message(b"", message_id="\ud800"), "a name, a key or a header is not valid UTF-8"),
        (Message(b"", "\ud800"), "a name, a key or a header is not valid UTF-8"),
        (Message(b"", properties={"headers": {"a": 1 << 70}}), "is out of range"),
        (Message(b"", properties={"headers": {"a": object()}}), "has a value of type object, which AMQP 0-9-1 lacks"),
        (
            Message(b"", properties={"headers": {"a": "x" * 4000}}, message_id="id"),
            "the headers and properties are 4,028 bytes long; the broker takes up to 4,000",
        ),
    ],
)
def test_a_message_that_cannot_be_encoded_raises_an_error_that_gives_the_reason(message: Message, error: str) -> None:
    """Encoding a message raises an error with the reason if its exchange, routing key or message id is too long or
    not valid UTF-8, if a header's value has no AMQP encoding, or if its headers and properties do not fit into a
    frame. Later messages can still be encoded.
    """
    encoder = PublishEncoder(3, 4008)
    with pytest.raises(MqtoolError, match=error):
        encoder.encode([message], Route())
    assert encoder.encode([Message(b"", "k" * 255)], Route()) == published(
        spec.Basic.Publish(routing_key="k" * 255), {}, b""
    )


@pytest.mark.parametrize("frame_max", [4096, 131_072, 0])
def test_the_check_of_an_input_line_accepts_the_same_headers_as_publishing(frame_max: int) -> None:
    """When a command checks whether a line of its input can be sent, it accepts the same headers as when it publishes a
    message: those that fit into a frame of the size negotiated with the broker (131,072 bytes by default).
    """
    largest = (frame_max or 131_072) - 8 - header_size({"headers": {"a": ""}})
    for size, fits in ((largest, True), (largest + 1, False)):
        message = Message(b"", "k", properties={"headers": {"a": "x" * size}})
        with nullcontext() if fits else pytest.raises(HeadersTooLarge):
            check(message, frame_max)
        with nullcontext() if fits else pytest.raises(HeadersTooLarge):
            PublishEncoder(3, frame_max).encode([message], Route())


def test_an_acknowledgement_has_the_same_bytes_as_one_from_pika() -> None:
    """The basic.ack frame that mqtool sends for a delivery tag, with or without `multiple`, has the same bytes as the
    frame that pika would send.
    """
    assert acknowledgements(3, [(5, True), (1 << 40, False)]) == [
        frame.Method(3, spec.Basic.Ack(5, True)).marshal(),
        frame.Method(3, spec.Basic.Ack(1 << 40, False)).marshal(),
    ]


@pytest.mark.parametrize(
    "method",
    [
        spec.Basic.Deliver("tag", 5, True, "x", "k"),
        spec.Basic.GetOk(5, False, "x", "k", 17),
        spec.Basic.Return(312, "NO_ROUTE", "x", "k"),
        spec.Channel.Close(404, "NOT_FOUND", 60, 40),
        spec.Connection.Close(541, "INTERNAL_ERROR", 0, 0),
    ],
)
def test_methods_are_decoded_to_the_same_fields_as_by_pika_even_if_strings_are_not_utf_8(method: Any) -> None:
    """mqtool decodes basic.deliver, basic.get-ok, basic.return, channel.close and connection.close to the same fields
    as pika does. If a routing key or a reply text in such a method is not valid UTF-8, mqtool still decodes the method.
    """
    data = frame.Method(3, method).marshal()
    found = decode_frame(data)
    assert isinstance(found, frame.Method)
    assert (found.channel_number, type(found.method), vars(found.method)) == (3, type(method), vars(method))
    damaged = data.replace(b"\1k", b"\1\xff") if b"\1k" in data else data.replace(b"N", b"\xff")
    assert isinstance(decode_frame(damaged), frame.Method)
