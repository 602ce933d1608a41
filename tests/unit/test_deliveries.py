"""Deliveries decoded by mqtool equal those that pika decodes from the same bytes."""

from hypothesis import given
from hypothesis import strategies as st
from pika import frame, spec

from mqtool.amqp.basic_frames import ConsumerFrames, FrameReader
from mqtool.message import Delivery

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
    """mqtool decodes confirms and deliveries with at most one body frame itself, and passes all other frames to pika
    unchanged and in order, however the bytes are split.
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


def test_a_protocol_header_is_passed_to_pika() -> None:
    """If a broker refuses AMQP 0-9-1 by sending another protocol header, mqtool passes the header to pika."""
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
