"""Sessions of AMQP 1.0: their windows, the outcomes of both sides, the errors that end them, and what is requeued."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mqtool.broker.embedded.amqp10.errors10 import INTERNAL_ERROR, SessionError
from mqtool.broker.embedded.amqp10.session_state import NewAnnotations
from mqtool.broker.embedded.model.amqp_errors import AmqpException
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.totals import AMQP10
from mqtool.codecs.amqp10_frames import add, after
from mqtool.codecs.amqp10_values import Described, Milliseconds, Symbol, ULong
from mqtool.codecs.field_tables import UInt32
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    ATTACH,
    BEGIN,
    DETACH,
    DISPOSITION,
    END,
    FLOW,
    MODIFIED,
    RECEIVED,
    RECEIVER,
    REJECTED,
    RELEASED,
    SENDER,
    SETTLED,
    SOURCE,
    TARGET,
    TRANSFER,
    Frame,
    described,
    message,
)
from tests.unit.embedded.memory_client10 import MemoryClient10, broker_with, encoded, fill, frames

#: A time that does not come while a test runs, in milliseconds since 1970.
TOMORROW = 4_000_000_000_000
ACCEPT, RELEASE, REJECT = described(ACCEPTED), described(RELEASED), described(REJECTED)


def quorum(broker: Broker, **arguments: Any) -> BrokerQueue:
    """Declare the quorum queue `qq` with a queue `dead` for its dead letters."""
    named = {"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead", **arguments}
    vhost = broker.vhosts["/"]
    vhost.add_queue(QueueDeclaration("dead", {}, durable=True))
    return vhost.add_queue(QueueDeclaration("qq", named, durable=True))


def bodies(queue: BrokerQueue) -> list[bytes]:
    """The bodies of the ready messages in a queue."""
    return [entry.message.body for entry in queue.backlog.in_memory()]


def ended(found: list[Frame]) -> tuple[str, str | None] | None:
    """The error of the end frame, which has to be the last frame."""
    assert found[-1].code == END
    return found[-1].error


def receiving(client: MemoryClient10, queue: BrokerQueue, *contents: bytes) -> list[Frame]:
    """Publish messages to a queue, and receive all of them; return the frames."""
    fill(queue, *contents)
    client.attach_receiver(f"/queues/{queue.name}")
    return client.flow(0, len(contents))


# Serial numbers


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        (5, 3, 2),
        (3, 5, -2),
        (7, 7, 0),
        (0, 0xFFFFFFFF, 1),
        (0xFFFFFFFF, 0, -1),
        (0x7FFFFFFF, 0, 0x7FFFFFFF),
        (0x80000000, 0, -0x80000000),
        (0x80000001, 0, -0x7FFFFFFF),
    ],
)
def test_serial_numbers_wrap_around(one: int, other: int, distance: int) -> None:
    """AMQP 1.0 delivery ids and delivery counts are compared and added as serial numbers of 32 bits, so 0 comes after
    4,294,967,295.
    """
    assert after(one, other) == distance
    assert add(other, distance) == one


# Windows


def test_a_session_begins_with_a_window_of_400_transfers(client: MemoryClient10) -> None:
    """When an AMQP 1.0 client begins a session, the broker's begin frame announces an incoming window of 400 transfers,
    the largest possible outgoing window, and a handle-max of 255, which allows 256 links. The broker stores the windows
    that the client's begin frame announces.
    """
    fields = (None, UInt32(3), UInt32(5), UInt32(7))
    other = MemoryClient10(client.loop, client.connection.broker, begin=False)
    [begun] = other.send(BEGIN, *fields)
    assert begun.fields == [0, 0, 400, 0xFFFFFFFF, 255]
    assert other.connection.sessions[0].windows == {
        "next_incoming_id": 3,
        "incoming_window": 400,
        "next_outgoing_id": 0,
        "remote_incoming_window": 5,
        "remote_outgoing_window": 7,
    }


@pytest.mark.parametrize(("wanted", "agreed"), [(0, 0), (7, 7), (255, 255), (256, 255), (0xFFFFFFFF, 255)])
def test_the_lower_handle_max_of_client_and_broker_applies_to_a_session(
    client: MemoryClient10, wanted: int, agreed: int
) -> None:
    """The broker's handle-max for an AMQP 1.0 session is 255, or the client's handle-max if that is lower. If the
    client attaches a link with a higher handle, the broker ends the session with framing-error.
    """
    other = MemoryClient10(client.loop, client.connection.broker, begin=False)
    [begun] = other.send(BEGIN, None, UInt32(0), UInt32(9), UInt32(9), UInt32(wanted))
    assert begun.fields[4] == agreed
    assert [frame.code for frame in other.attach_receiver("/queues/q", handle=agreed)] == [ATTACH]
    assert ended(other.attach_receiver("/queues/q", handle=agreed + 1)) == (
        "amqp:connection:framing-error",
        f"link handle value ({agreed + 1}) exceeds maximum link handle value ({agreed})",
    )


def windows(found: list[Frame]) -> list[tuple[int, int]]:
    """The next-incoming-id and the incoming-window in the flow frames of a session."""
    return [(frame.fields[0], frame.fields[1]) for frame in found if frame.code == FLOW and frame.field(4) is None]


def test_the_incoming_window_is_extended_once_half_of_it_is_used(client: MemoryClient10) -> None:
    """Once an AMQP 1.0 client has used half of a session's incoming window, the broker sets the window to 400 transfers
    again.
    """
    client.attach_sender("/queues/q")
    found = {number: window for number in range(1, 401) if (window := windows(client.publish(number - 1)))}
    assert found == {200: [(200, 400)], 400: [(400, 400)]}
    assert client.connection.sessions[0].windows["incoming_window"] == 400


def test_an_alarm_closes_the_window_but_up_to_400_transfers_are_tolerated(
    client: MemoryClient10, broker: Broker
) -> None:
    """At the first transfer that a client sends on an AMQP 1.0 session during a resource alarm, the broker sends a
    flow frame with an incoming window of 0. The client may have sent more transfers before it read this frame, so the
    broker still accepts 400 transfers, including the first one. One more transfer ends the session.
    """
    client.attach_sender("/queues/q")
    client.publish(0)
    broker.alarms["disk"] = "low on disk"
    assert windows(client.publish(1)) == [(1, 0)]
    for number in range(2, 401):
        assert windows(client.publish(number)) == []
    assert client.connection.sessions[0].windows["incoming_window"] == 0
    assert ended(client.publish(401)) == (
        "amqp:session:window-violation",
        "incoming window violation (tolerated excess tranfers: 400)",
    )


def test_the_window_opens_again_when_the_alarm_is_over(client: MemoryClient10, broker: Broker) -> None:
    """When the last resource alarm is over, the broker opens the incoming window of each AMQP 1.0 session whose window
    an alarm has closed. It does so with one flow frame, and sends none for a window that was not closed.
    """
    session = client.connection.sessions[0]
    client.attach_sender("/queues/q")
    session.reopen_window()
    assert client.received() == []
    broker.alarms["disk"] = "low on disk"
    client.publish(0)
    broker.alarms.clear()
    session.reopen_window()
    session.reopen_window()
    assert windows(client.received()) == [(1, 400)]
    assert windows([frame for number in range(1, 201) for frame in client.publish(number)]) == [(201, 400)]


def test_a_session_that_begins_during_an_alarm_has_a_closed_window(client: MemoryClient10, broker: Broker) -> None:
    """An AMQP 1.0 session that begins during a resource alarm has an incoming window of 0, which the broker opens when
    the alarm is over.
    """
    broker.alarms["disk"] = "low on disk"
    other = MemoryClient10(client.loop, broker, begin=False)
    [begun] = other.send(BEGIN, None, UInt32(0), UInt32(9), UInt32(9))
    assert begun.fields[2] == 0
    [flow] = other.send(FLOW, UInt32(0), UInt32(9), UInt32(0), UInt32(9), None, None, None, None, None, True)
    assert windows([flow]) == [(0, 0)]
    broker.alarms.clear()
    other.connection.sessions[0].reopen_window()
    assert windows(other.received()) == [(0, 400)]


def test_the_ids_and_windows_of_a_session_are_those_of_the_latest_flow_frame(client: MemoryClient10) -> None:
    """An AMQP 1.0 client's flow frame sets the client's windows, and the transfer id that the broker expects next. If
    the frame asks for an echo, the broker answers with a flow frame that contains the broker's ids and windows.
    """
    assert client.send(FLOW, UInt32(0), UInt32(11), UInt32(13), UInt32(17)) == []
    assert client.connection.sessions[0].windows == {
        "next_incoming_id": 13,
        "incoming_window": 400,
        "next_outgoing_id": 0,
        "remote_incoming_window": 11,
        "remote_outgoing_window": 17,
    }
    [flow] = client.send(FLOW, None, UInt32(11), UInt32(13), UInt32(17), None, None, None, None, None, True)
    assert flow.fields[:4] == [13, 400, 0, 0xFFFFFFFF]


def test_transfers_wait_until_the_client_opens_its_window(
    loop: asyncio.AbstractEventLoop, broker: Broker, q: BrokerQueue
) -> None:
    """If a large message needs more transfers than an AMQP 1.0 client's incoming window allows, the remaining
    transfers wait until the client opens the window. Meanwhile, they count towards the memory of the connection.
    Transfers that the client had not yet received when it opened the window use up part of the new window.
    """
    client = MemoryClient10(loop, broker)
    client.connection.frame_max = 512
    fill(q, b"x" * 2000)
    client.attach_receiver("/queues/q")
    client.connection.count_held()
    before = client.connection.held_bytes
    found = client.flow(0, 1, window=2)
    assert [frame.code for frame in found] == [TRANSFER, TRANSFER]
    session = client.connection.sessions[0]
    waiting = sum(map(len, session.backlog))
    client.connection.count_held()
    assert client.connection.held_bytes - before == waiting + 200  # an unsettled delivery counts 200 bytes
    assert session.windows["next_outgoing_id"] == 2
    assert session.windows["remote_incoming_window"] == 0
    assert client.flow(seen=1, window=1) == []
    assert len(client.flow(seen=1, window=2)) == 1
    rest = client.flow(seen=3, window=100)
    assert rest[-1].field(5) is False
    client.connection.count_held()
    assert client.connection.held_bytes - before == 200
    assert session.windows["remote_incoming_window"] == 100 - len(rest)
    whole = b"".join(frame.payload for frame in [*found, *rest])
    assert whole.count(b"x") > 1400


def test_a_flow_frame_for_transfers_that_were_never_sent_ends_the_session(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """If an AMQP 1.0 client's flow frame claims that the client has received a transfer that the broker has not sent,
    the broker ends the session with window-violation.
    """
    receiving(client, q, b"1")
    assert client.flow(seen=1) == []
    assert ended(client.flow(seen=2)) == (
        "amqp:session:window-violation",
        "next-incoming-id from FLOW (2) leads next-outgoing-id (1)",
    )


# Outcomes that the broker sends


def dispositions(found: list[Frame]) -> list[tuple[Any, ...]]:
    """The fields of the disposition frames: role, first, last, settled, state."""
    return [tuple(frame.field(number) for number in range(5)) for frame in found if frame.code == DISPOSITION]


def transfers(*numbers: int, handle: int = 0, settled: bool = False) -> bytes:
    """Encoded transfers with these delivery ids."""
    fields = [(UInt32(handle), UInt32(number), b"", UInt32(0), settled) for number in numbers]
    return b"".join(encoded(TRANSFER, *each, payload=message()) for each in fields)


def test_consecutive_messages_with_the_same_outcome_share_a_disposition(client: MemoryClient10) -> None:
    """The broker sends the outcomes of an AMQP 1.0 publisher's unsettled messages in disposition frames. Messages
    share a frame if they have the same outcome and consecutive delivery ids, where 0 follows 4,294,967,295. For
    messages that were published settled, the broker sends no outcome.
    """
    client.attach_sender("/queues/q")
    client.attach_sender("/exchanges/amq.direct/none", handle=1)
    big = 0xFFFFFFFF
    data = b"".join(
        [
            transfers(big - 1, big, 0),
            transfers(1, handle=1),
            transfers(2, 3, settled=True),
            transfers(4),
            transfers(6, 7),
            transfers(8, handle=1),
        ]
    )
    found = frames(b"".join(client.write_frames(data)))
    assert dispositions(found) == [
        (RECEIVER, big - 1, 0, True, ACCEPT),
        (RECEIVER, 1, None, True, RELEASE),
        (RECEIVER, 4, None, True, ACCEPT),
        (RECEIVER, 6, 7, True, ACCEPT),
        (RECEIVER, 8, None, True, RELEASE),
    ]
    assert client.publish(9, settled=True) == []


class Holding:
    """Test support that holds back the outcomes of published messages."""

    def __init__(self) -> None:
        self.kept: list[tuple[bytes, Callable[[bytes], None]]] = []

    def enqueue(self, vhost: Any, routing: Any) -> Any:
        return vhost.enqueue(routing)

    def confirm(self, data: bytes, send: Callable[[bytes], None]) -> None:
        self.kept.append((data, send))


@pytest.mark.parametrize("is_open", [True, False])
def test_outcomes_that_a_fault_delays_are_sent_unless_the_session_has_ended(
    client: MemoryClient10, broker: Broker, *, is_open: bool
) -> None:
    """If an injected fault makes the embedded broker delay confirms, the broker delays the outcomes of unsettled AMQP
    1.0 messages, too. If the client ends the session during the delay, the broker does not send these outcomes.
    """
    hooks: Any = Holding()
    broker.hooks = hooks
    client.attach_sender("/queues/q")
    client.attach_sender("/exchanges/amq.direct/none", handle=1)
    assert client.write_frames(transfers(0) + transfers(1, handle=1)) == []
    assert client.publish(2, settled=True) == []
    [(data, send)] = hooks.kept
    if not is_open:
        client.send(END)
    send(data)
    both = [(RECEIVER, 0, None, True, ACCEPT), (RECEIVER, 1, None, True, RELEASE)]
    assert dispositions(client.received()) == (both if is_open else [])


def test_the_outcome_of_a_message_is_sent_before_the_end_frame(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client publishes a message and ends the session in one write, the broker sends the outcome before
    the end frame.
    """
    client.attach_sender("/queues/q")
    found = frames(b"".join(client.write_frames(transfers(0) + encoded(END))))
    assert [frame.code for frame in found] == [DISPOSITION, END]
    assert found[-1].error is None
    assert client.connection.sessions == {}
    assert client.publish(1) == []


# Outcomes that the client sends


@pytest.mark.parametrize(
    ("state", "ready", "dead", "counts"),
    [
        (ACCEPT, 0, 0, None),
        (REJECT, 0, 1, None),
        (RELEASE, 1, 0, (0, 1)),
        (described(MODIFIED), 1, 0, (0, 1)),
        (described(MODIFIED, False), 1, 0, (0, 1)),
        (described(MODIFIED, True), 1, 0, (1, 1)),
        (described(MODIFIED, True, False), 1, 0, (1, 1)),
        (described(MODIFIED, True, True), 0, 1, None),
        (described(MODIFIED, False, True), 0, 1, None),
    ],
)
def test_the_outcome_decides_whether_a_message_is_acknowledged_dead_lettered_or_requeued(
    client: MemoryClient10, broker: Broker, state: Described, ready: int, dead: int, counts: tuple[int, int] | None
) -> None:
    """The AMQP 1.0 outcome `accepted` acknowledges a message. The outcome `rejected`, or `modified` with
    undeliverable-here, dead-letters it. The outcome `released`, or any other `modified`, requeues it. Of the outcomes
    that requeue a message, only `modified` with delivery-failed counts towards the delivery limit.
    """
    queue = quorum(broker)
    receiving(client, queue, b"1")
    client.flow(0, 0, count=1, seen=1)
    assert client.settle(0, state) == []
    assert (len(queue), len(broker.vhosts["/"].queues["dead"]), queue.unacked) == (ready, dead, 0)
    if counts is not None:
        [entry] = queue.backlog.in_memory()
        assert (entry.delivery_count, entry.acquired_count, entry.redelivered) == (*counts, True)
    assert broker.totals.delivered[AMQP10, "quorum"].acknowledged == (state == ACCEPT)
    assert client.connection.sessions[0].unsettled == {}


@pytest.mark.parametrize("last", [None, 1, 3, 100])
def test_a_disposition_settles_its_range_of_deliveries(
    client: MemoryClient10, q: BrokerQueue, last: int | None
) -> None:
    """An AMQP 1.0 client's disposition settles the deliveries from its first to its last delivery id, or only the first
    one if the disposition has no last id. The broker ignores ids in this range that are not in use.
    """
    receiving(client, q, b"0", b"1", b"2", b"3", b"4")
    until = None if last is None else UInt32(last)
    assert client.send(DISPOSITION, RECEIVER, UInt32(1), until, True, ACCEPT) == []
    left = {0, 1, 2, 3, 4} - {*range(1, (1 if last is None else last) + 1)}
    assert {*client.connection.sessions[0].unsettled} == left
    assert q.unacked == len(left)
    client.send(DISPOSITION, RECEIVER, UInt32(0xFFFFFFFF), UInt32(0), True, ACCEPT)
    assert {*client.connection.sessions[0].unsettled} == left - {0}


def test_a_disposition_does_not_settle_the_delivery_after_its_range(client: MemoryClient10, q: BrokerQueue) -> None:
    """An AMQP 1.0 client's disposition settles no delivery after its range, even if most deliveries in the range are
    already settled.
    """
    receiving(client, q, *(b"%d" % number for number in range(6)))
    for first in (1, 0):
        client.send(DISPOSITION, RECEIVER, UInt32(first), UInt32(4), True, ACCEPT)
    assert [*client.connection.sessions[0].unsettled] == [5]


def test_an_unsettled_disposition_is_answered_with_a_settled_disposition(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """If an AMQP 1.0 client sends an unsettled disposition, the broker settles the deliveries and answers with a
    settled disposition for the same range and outcome. The broker ignores a disposition for deliveries that are already
    settled.
    """
    receiving(client, q, b"0", b"1")
    [answer] = client.send(DISPOSITION, RECEIVER, UInt32(0), UInt32(1), None, ACCEPT)
    assert dispositions([answer]) == [(SENDER, 0, 1, True, ACCEPT)]
    assert client.send(DISPOSITION, RECEIVER, UInt32(0), UInt32(1), None, described(0x99)) == []


def test_a_disposition_with_the_role_of_the_sender_ends_the_session(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client sends a disposition with the role of a sender, the broker ends the session with
    internal-error, as RabbitMQ does.
    """
    found = client.send(DISPOSITION, SENDER, UInt32(0), None, True, ACCEPT)
    assert ended(found) == ("amqp:internal-error", "Unexpected frame disposition")


@pytest.mark.parametrize(
    ("state", "shown"),
    [(None, "undefined"), (described(RECEIVED, UInt32(0), ULong(0)), "received"), (Symbol("accepted"), "symbol")],
)
def test_a_disposition_without_an_outcome_ends_the_session_and_requeues_its_messages(
    client: MemoryClient10, q: BrokerQueue, state: Any, shown: str
) -> None:
    """If the state in an AMQP 1.0 client's disposition is not an outcome, the broker ends the session, and requeues the
    session's unsettled messages in their original order.
    """
    receiving(client, q, b"0", b"1")
    found = client.send(DISPOSITION, RECEIVER, UInt32(0), UInt32(1), True, state)
    assert ended(found) == ("amqp:invalid-field", f"Unrecognised state: {shown} in DISPOSITION")
    assert bodies(q) == [b"0", b"1"]


@pytest.mark.parametrize("key", [Symbol("why"), "x-opt-why"])
def test_an_outcome_with_a_reserved_annotation_ends_the_session(
    client: MemoryClient10, q: BrokerQueue, key: str
) -> None:
    """If an AMQP 1.0 client gives a message the outcome `modified` with an annotation whose name is not a symbol or
    does not begin with `x-`, the broker ends the session with invalid-field, and requeues the message.
    """
    receiving(client, q, b"0")
    found = client.settle(0, described(MODIFIED, True, False, {key: "busy"}))
    assert ended(found) == ("amqp:invalid-field", f"reserved annotation key in DISPOSITION: {key}")
    assert bodies(q) == [b"0"]


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_only_quorum_queues_keep_the_annotations_of_a_modified_outcome(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, kind: str
) -> None:
    """A quorum queue redelivers a message with the annotations of its AMQP 1.0 outcome `modified`. A classic queue
    drops these annotations.
    """
    queue = quorum(broker) if kind == "quorum" else q
    receiving(client, queue, b"0", b"1", b"2")
    state = described(MODIFIED, True, False, {Symbol("x-opt-why"): "busy"})
    client.send(DISPOSITION, RECEIVER, UInt32(0), UInt32(1), True, state)
    found = [frame.message for frame in client.flow(0, 9, count=3, seen=3) if frame.code == TRANSFER]
    why = [each.message_annotations.get(Symbol("x-opt-why")) for each in found]
    assert why == (["busy", "busy"] if kind == "quorum" else [None, None])


@pytest.mark.parametrize(
    ("name", "time", "is_held"),
    [
        ("x-opt-delivery-time", Milliseconds(TOMORROW), True),
        ("x-opt-delivery-time", Milliseconds(1), False),
        ("x-opt-delivery-time", "tomorrow", False),
        ("x-opt-delivery-time", True, False),
        ("x-opt-other", Milliseconds(TOMORROW), False),
    ],
)
def test_a_quorum_queue_does_not_redeliver_a_message_before_its_x_opt_delivery_time(
    client: MemoryClient10, broker: Broker, *, name: str, time: Any, is_held: bool
) -> None:
    """If an AMQP 1.0 client gives a message the outcome `modified` with the annotation x-opt-delivery-time, a quorum
    queue does not redeliver the message before this time. A value that is not a time has no effect.
    """
    queue = quorum(broker)
    receiving(client, queue, b"0")
    client.settle(0, described(MODIFIED, True, False, {Symbol(name): time}))
    client.send(DETACH, UInt32(0), True)
    assert bodies(queue) == ([] if is_held else [b"0"])


@pytest.mark.parametrize("excess", [False, True])
def test_annotations_that_make_the_headers_larger_than_a_frame_end_the_session(
    client: MemoryClient10, broker: Broker, *, excess: bool
) -> None:
    """The broker adds the annotations of an AMQP 1.0 client's outcome `modified` to the headers of the message. If the
    headers would then be too large for a frame of AMQP 0-9-1, the broker ends the session instead, and requeues the
    message without the annotations.
    """
    queue = quorum(broker)
    receiving(client, queue, b"0")
    size = 128 * 1024 - 64 - 33 + excess
    state = described(MODIFIED, True, False, {Symbol("x-opt-why"): "y" * size})
    found = client.settle(0, state)
    if excess:
        assert ended(found) == (
            "amqp:resource-limit-exceeded",
            "the headers of a message would have more than 131008 bytes",
        )
    [entry] = queue.backlog.in_memory()
    assert ("x-opt-why" in entry.message.headers) is not excess


@pytest.mark.parametrize("count", [256, 257])
def test_one_disposition_adds_at_most_16_mib_of_annotations(
    client: MemoryClient10, broker: Broker, *, count: int
) -> None:
    """An AMQP 1.0 client can give many messages the outcome `modified` with one disposition. The embedded broker adds
    the annotations of the outcome to one message after another, up to 16 MiB for all messages together. If the next
    message would exceed this limit, the broker ends the session with an error and requeues all messages. Messages
    that already have the annotations keep them.
    """
    queue = quorum(broker)
    receiving(client, queue, *(b"%d" % number for number in range(count)))
    state = described(MODIFIED, True, False, {Symbol("x-opt-why"): "y" * (64 * 1024 - 19)})
    found = client.send(DISPOSITION, RECEIVER, UInt32(0), UInt32(count - 1), True, state)
    if count > 256:
        assert ended(found) == (
            "amqp:resource-limit-exceeded",
            "the annotations of all messages in DISPOSITION would have more than 16777216 bytes",
        )
    else:
        assert found == []
        client.send(DETACH, UInt32(0), True)
    added = [len(entry.message.headers.get("x-opt-why", "")) for entry in queue.backlog.in_memory()]
    assert added == [64 * 1024 - 19] * 256 + [0] * (count - 256)


def test_annotations_that_amqp_0_9_1_cannot_express_end_the_session() -> None:
    """The broker stores the annotations of the AMQP 1.0 outcome `modified` as AMQP 0-9-1 headers. If an annotation
    cannot be stored as a header, for example because it is not valid text, the broker ends the session with
    invalid-field.
    """
    with pytest.raises(SessionError) as refused:
        NewAnnotations({Symbol("x-opt-why"): "\ud800"})
    assert refused.value.error.condition == "amqp:invalid-field"
    text = "message-annotations in DISPOSITION cannot be stored: 'utf-8' codec can't encode character"
    assert str(refused.value).startswith(text)


def test_annotations_are_not_stored_during_a_memory_alarm(client: MemoryClient10, broker: Broker) -> None:
    """If an AMQP 1.0 client gives a message the outcome `modified` with annotations during a memory alarm, the broker
    ends the session with resource-limit-exceeded, and requeues the message without the annotations.
    """
    queue = quorum(broker)
    receiving(client, queue, b"0")
    broker.alarms["memory"] = "low on memory"
    found = client.settle(0, described(MODIFIED, True, False, {Symbol("x-opt-why"): "busy"}))
    assert ended(found) == ("amqp:resource-limit-exceeded", "low on memory: message annotations are not stored")
    assert bodies(queue) == [b"0"]


def test_outcomes_do_not_change_the_messages_of_a_stream(client: MemoryClient10, broker: Broker) -> None:
    """Whatever AMQP 1.0 outcome a client gives a message from a stream, the message stays in the stream once, at the
    same offset.
    """
    stream = broker.vhosts["/"].add_queue(QueueDeclaration("s", {"x-queue-type": "stream"}, durable=True))
    fill(stream, b"0", b"1", b"2", b"3")
    first = {Symbol("offset"): Described(Symbol("rabbitmq:stream-offset-spec"), "first")}
    client.attach_receiver("/queues/s", *(None,) * 6, first)
    client.flow(0, 4)
    for number, state in enumerate((ACCEPT, REJECT, RELEASE)):
        assert client.settle(number, state) == []
    client.send(DETACH, UInt32(0), True)
    assert client.connection.sessions[0].unsettled == {}
    client.attach_receiver("/queues/s", *(None,) * 6, first, handle=1)
    assert [frame.body for frame in client.flow(1, 9, seen=4)] == [b"0", b"1", b"2", b"3"]


class Recording:
    """Test support that records outcomes, and loses acknowledgements of messages with the body `lost`."""

    def __init__(self) -> None:
        self.rejected_ones: list[tuple[str, bytes, bool]] = []

    def acknowledge(self, _: Any, entry: Any) -> bool:
        return bool(entry.message.body != b"lost")

    def rejected(self, queue: Any, entry: Any, *, requeue: bool) -> None:
        self.rejected_ones.append((queue.name, entry.message.body, requeue))


def test_a_recording_contains_the_outcomes_of_amqp_1_0_clients(
    client: MemoryClient10, broker: Broker, q: BrokerQueue
) -> None:
    """While a test records what the embedded broker does, each message that an AMQP 1.0 client rejects or releases is
    recorded. A message that is requeued because its session ends is not recorded. If an injected fault loses an
    acknowledgement, the message is requeued, and is recorded as released.
    """
    hooks: Any = Recording()
    broker.hooks = hooks
    receiving(client, q, b"lost", b"ok", b"reject", b"release", b"end")
    client.flow(0, 0, count=5, seen=5)
    client.send(DISPOSITION, RECEIVER, UInt32(0), UInt32(1), True, ACCEPT)
    assert bodies(q) == [b"lost"]
    client.settle(2, REJECT)
    client.settle(3, RELEASE)
    client.send(END)
    assert hooks.rejected_ones == [("q", b"lost", True), ("q", b"reject", False), ("q", b"release", True)]
    assert sorted(bodies(q)) == [b"end", b"lost", b"release"]
    assert broker.totals.delivered[AMQP10, "classic"].acknowledged == 1


# Links


def test_a_handle_that_is_in_use_ends_the_session(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client attaches a link with a handle that is in use for a publisher, a receiver or the management
    node, the broker ends the session with handle-in-use.
    """
    paired = {Symbol("paired"): True}
    ends = described(SOURCE, "/management"), described(TARGET)
    for attach in (
        lambda: client.attach_sender("/queues/q", handle=5),
        lambda: client.attach_receiver("/queues/q", handle=5),
        lambda: client.send(
            ATTACH, "m", UInt32(5), RECEIVER, SETTLED, None, *ends, None, None, None, None, None, None, paired
        ),
    ):
        attach()
        found = client.attach_receiver("/queues/q", handle=5)
        assert ended(found) == ("amqp:session:handle-in-use", "handle 5 is already associated with a link")
        client.send(BEGIN, None, UInt32(0), UInt32(2048), UInt32(2048))


def test_links_count_towards_the_memory_of_their_connection(client: MemoryClient10, q: BrokerQueue) -> None:
    """Until an AMQP 1.0 link is detached or its session ends, 4,000 bytes and the size of the link's attach frame
    count towards the memory of the connection. A link that the broker refuses does not count.
    """
    client.connection.count_held()
    before = client.connection.held_bytes
    client.attach_sender("/queues/q")
    one = client.connection.held_bytes - before
    assert 4000 < one < 4200
    client.attach_receiver("/queues/q", handle=1)
    assert 8000 < client.connection.held_bytes - before < 8400
    client.attach_sender("/queues/none", handle=2)
    assert 8000 < client.connection.held_bytes - before < 8400
    client.send(DETACH, UInt32(1), True)
    assert client.connection.held_bytes - before == one
    client.attach_receiver("/queues/q", handle=1)
    client.send(END)
    assert client.connection.held_bytes == before


def test_the_memory_of_waiting_transfers_is_freed_when_the_session_ends(
    loop: asyncio.AbstractEventLoop, broker: Broker, q: BrokerQueue
) -> None:
    """When an AMQP 1.0 session ends, transfers that waited for the client's incoming window no longer count towards
    the memory of the connection. The session's unsettled messages are requeued.
    """
    client = MemoryClient10(loop, broker)
    client.connection.frame_max = 512
    client.connection.count_held()
    before = client.connection.held_bytes
    fill(q, b"x" * 2000)
    client.attach_receiver("/queues/q")
    client.flow(0, 1, window=2)
    client.send(END)
    client.connection.count_held()
    assert client.connection.held_bytes == before
    assert len(q) == 1


@pytest.mark.parametrize("like", [Like.V4_0, Like.V4_3])
@pytest.mark.parametrize("role", [SENDER, RECEIVER])
def test_a_refused_link_is_attached_without_a_terminus_and_detached(
    loop: asyncio.AbstractEventLoop, like: Like, *, role: bool
) -> None:
    """With `broker up --like 4.2` or later, the broker refuses an AMQP 1.0 link by sending an attach frame, and then a
    detach frame with the error. The attach frame has no target if the client publishes, and no source if it receives.
    With `--like 4.0`, the broker ends the session instead.
    """
    client = MemoryClient10(loop, broker_with(loop, PROFILES[like]))
    attach = client.attach_sender if role is SENDER else client.attach_receiver
    found = attach("/queues/none", handle=3)
    error = ("amqp:not-found", "no queue 'none' in vhost '/'")
    if like is Like.V4_0:
        assert ended(found) == error
        return
    answer, detach = found
    assert (answer.code, answer.fields[:3]) == (ATTACH, ["link-3", 3, not role])
    assert (answer.field(5) is None, answer.field(6) is None) == (role is RECEIVER, role is SENDER)
    assert answer.field(9) == (None if role is SENDER else 0)
    assert (detach.code, detach.fields[:2], detach.error) == (DETACH, [3, True], error)
    assert attach("/queues/q", handle=3)[0].code == ATTACH


class Watcher:
    """A live display that shows the addresses that do not exist."""

    def __init__(self) -> None:
        self.unknown: list[tuple[object, object]] = []

    def unknown_address(self, client: object, address: object) -> None:
        self.unknown.append((client, address))

    def changed(self) -> None:
        """Do nothing."""


def test_a_live_display_shows_publishers_whose_queue_does_not_exist(client: MemoryClient10, broker: Broker) -> None:
    """The broker reports to a live display, such as `mqtool ui`, when an AMQP 1.0 publisher attaches a link to a queue
    that does not exist. It reports neither receivers of such a queue nor links with an invalid address.
    """
    watcher: Any = Watcher()
    broker.vhosts["/"].watcher = watcher
    client.attach_sender("/queues/none")
    client.attach_receiver("/queues/none")
    client.attach_sender("/what")
    assert watcher.unknown == [(client.connection, "/queues/none")]


@pytest.mark.parametrize("closed", [True, False])
def test_a_detach_frame_is_answered_with_the_same_closed_flag(client: MemoryClient10, *, closed: bool) -> None:
    """The broker answers an AMQP 1.0 client's detach frame with a detach frame that has the same `closed` flag. The
    broker ignores a detach frame for a handle that is not in use.
    """
    client.attach_sender("/queues/q", handle=3)
    client.attach_receiver("/queues/q", handle=4)
    for handle in (3, 4):
        [answer] = client.send(DETACH, UInt32(handle), closed)
        assert (answer.code, answer.fields[:2]) == (DETACH, [handle, closed])
        assert client.send(DETACH, UInt32(handle), closed) == []


def test_only_the_messages_of_a_detached_link_are_requeued(
    client: MemoryClient10, broker: Broker, q: BrokerQueue
) -> None:
    """When an AMQP 1.0 client detaches a link, the broker requeues this link's unsettled messages. The messages of the
    session's other links stay unsettled.
    """
    other = broker.vhosts["/"].add_queue(QueueDeclaration("other", {}))
    fill(other, b"2")
    receiving(client, q, b"0", b"1")
    client.attach_receiver("/queues/other", handle=1)
    client.flow(1, 1, seen=2)
    client.send(DETACH, UInt32(0), True)
    assert (bodies(q), bodies(other)) == ([b"0", b"1"], [])
    assert [*client.connection.sessions[0].unsettled] == [2]


@pytest.mark.parametrize("handle", [7, 0])
def test_a_flow_frame_for_a_handle_without_a_link_ends_the_session(client: MemoryClient10, handle: int) -> None:
    """If an AMQP 1.0 client sends a flow frame for a handle that is not in use, the broker ends the session with
    unattached-handle. A flow frame for a publisher's link is allowed.
    """
    client.attach_sender("/queues/q")
    found = client.flow(handle, 5)
    if handle == 0:
        assert found == []
    else:
        assert ended(found) == ("amqp:session:unattached-handle", "Unattached link handle: 7")


def test_a_transfer_for_a_handle_without_a_link_ends_the_session(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client sends a transfer for a handle that is not in use, the broker ends the session with
    unattached-handle.
    """
    assert ended(client.publish(0, handle=7)) == ("amqp:session:unattached-handle", "Unknown link handle: 7")


def test_a_second_begin_frame_ends_the_session(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client sends a second begin frame on the channel of a session, the broker ends the session with
    internal-error.
    """
    found = client.send(BEGIN, None, UInt32(0), UInt32(9), UInt32(9))
    assert ended(found) == ("amqp:internal-error", "Unexpected frame begin")


# How sessions end


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_the_end_of_a_session_requeues_its_unsettled_messages(
    client: MemoryClient10, broker: Broker, q: BrokerQueue, kind: str
) -> None:
    """When an AMQP 1.0 client ends a session, the broker removes the session's links and requeues its unsettled
    messages, which counts as a failed delivery: in a quorum queue, towards the delivery limit.
    """
    queue = quorum(broker) if kind == "quorum" else q
    receiving(client, queue, b"0", b"1")
    client.attach_sender("/queues/q", handle=1)
    [answer] = client.send(END)
    assert (answer.code, answer.error) == (END, None)
    assert bodies(queue) == [b"0", b"1"]
    assert len(queue.consumers) == 0
    assert not q.publishers
    counts = [entry.delivery_count for entry in queue.backlog.in_memory()]
    assert counts == [1, 1]


def test_a_fault_that_closes_a_session_sends_one_end_frame_with_the_error(client: MemoryClient10) -> None:
    """If an injected fault closes an AMQP 1.0 session with an AMQP 0-9-1 reply code, the broker sends one end frame
    with the corresponding AMQP 1.0 error condition. If the fault closes the session a second time, the broker sends
    no further frame.
    """
    session = client.connection.sessions[0]
    session.close(AmqpException(541, "broken"))
    session.close(AmqpException(541, "broken"))
    [frame] = client.received()
    assert ended([frame]) == ("amqp:internal-error", "broken")


def test_an_error_that_ends_a_session_is_sent_after_the_current_event_loop_iteration(client: MemoryClient10) -> None:
    """If an error ends an AMQP 1.0 session, the session stays open until the end of the current iteration of the
    event loop. The broker then sends the end frame with the error.
    """
    session = client.connection.sessions[0]
    session.fail(SessionError(INTERNAL_ERROR, "broken"))
    assert session.is_open
    assert ended(client.received()) == ("amqp:internal-error", "broken")


# Consumer timeouts


@pytest.mark.parametrize(("like", "kind"), [(Like.V4_3, "quorum"), (Like.V4_3, "classic"), (Like.V4_2, "quorum")])
def test_a_delivery_that_stays_unsettled_too_long_is_released(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, like: Like, kind: str
) -> None:
    """With `broker up --like 4.3`, if an AMQP 1.0 delivery from a quorum queue stays unsettled for longer than the
    consumer timeout, the broker sends an unsettled disposition with the outcome `released`, and requeues the message.
    It does not do this with `--like 4.2` or for classic queues.
    """
    broker = broker_with(loop, PROFILES[like])
    queue = quorum(broker) if kind == "quorum" else broker.vhosts["/"].queues["q"]
    client = MemoryClient10(loop, broker)
    now = client.connection.now()
    monkeypatch.setattr(client.connection, "now", lambda: now)
    receiving(client, queue, b"0")
    client.flow(0, 0, count=1, seen=1)
    now += 5.0
    receiving_later(client, queue)
    now += 5.0
    client.connection.check_consumers(10.0)
    assert client.received() == []
    now += 1.0
    client.connection.check_consumers(10.0)
    found = dispositions(client.received())
    if (like, kind) != (Like.V4_3, "quorum"):
        assert found == []
        return
    assert found == [(SENDER, 0, None, False, RELEASE)]
    assert bodies(queue) == [b"0"]
    assert [*client.connection.sessions[0].unsettled] == [1]
    [entry] = queue.backlog.in_memory()
    assert (entry.acquired_count, entry.delivery_count) == (1, 0)


def receiving_later(client: MemoryClient10, queue: BrokerQueue) -> None:
    """Deliver one more message, which stays unsettled."""
    fill(queue, b"later")
    client.flow(0, 1, count=1, seen=1)
