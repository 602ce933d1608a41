"""Publishing over AMQP 1.0: link credit, messages in several transfers, outcomes, and the counts of messages."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mqtool.broker.embedded.amqp10.addresses import PublishTarget
from mqtool.broker.embedded.amqp10.incoming_link import LINK_CREDIT
from mqtool.broker.embedded.model.broker import DIRECT_REPLY_TO, Broker
from mqtool.broker.embedded.model.exchange import TRACE_EXCHANGE, BrokerExchange
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.totals import AMQP10, Publishes
from mqtool.broker.embedded.model.users import Permissions, TopicPermissions, User
from mqtool.broker.embedded.model.virtual_host import Publication
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, data_section
from mqtool.codecs.amqp10_values import Symbol, encode
from mqtool.codecs.field_tables import UInt8, UInt32
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    ATTACH,
    DETACH,
    DISPOSITION,
    END,
    FLOW,
    REJECTED,
    RELEASED,
    SETTLED,
    TRANSFER,
    UNSETTLED,
    Frame,
    described,
    message,
)
from tests.unit.embedded.memory_client10 import MemoryClient10, broker_like, broker_with

ACCEPT, RELEASE = described(ACCEPTED), described(RELEASED)


def bodies(broker: Broker, queue: str = "q") -> list[bytes]:
    """The bodies of the messages in a queue."""
    return [entry.message.body for entry in broker.vhosts["/"].queues[queue].backlog.in_memory()]


def outcomes(frames: list[Frame]) -> list[tuple[int, int | None, Any]]:
    """The first and the last delivery id, and the outcome, in the disposition frames."""
    found = [frame for frame in frames if frame.code == DISPOSITION]
    assert all(frame.field(0) is True and frame.field(3) is True for frame in found)
    return [(frame.fields[1], frame.field(2), frame.field(4)) for frame in found]


def credits_of(frames: list[Frame]) -> list[tuple[int, int, int]]:
    """The handle, delivery count and credit in the flow frames of links."""
    return [tuple(frame.fields[4:7]) for frame in frames if frame.code == FLOW and frame.field(4) is not None]


def error_of(frames: list[Frame]) -> tuple[int, str, str | None]:
    """The code of the last frame, which ends a link or the session, and its error."""
    error = frames[-1].error
    assert error is not None
    return (frames[-1].code, *error)


# Link credit


@pytest.mark.parametrize(("initial", "count"), [(0, 0), (7, 7), (None, 0), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_a_publisher_gets_a_link_credit_of_170_counted_from_its_initial_delivery_count(
    client: MemoryClient10, initial: int | None, count: int
) -> None:
    """When an AMQP 1.0 publisher attaches a link, the broker sends a flow frame that grants a link credit of 170. The
    delivery count in this frame is the initial-delivery-count in the publisher's attach frame, or 0 if there is none.
    """
    answer, flow = client.attach_sender("/queues/q", handle=3, count=initial)
    assert (answer.code, flow.code) == (ATTACH, FLOW)
    assert credits_of([flow]) == [(3, count, 170)]
    link = client.connection.sessions[0].incoming[3]
    assert (link.name, link.target) == ("link-3", PublishTarget("", "q", "q"))


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("initial", [0, 0xFFFFFFFF])
def test_a_publisher_gets_new_link_credit_once_half_of_its_credit_is_used(
    client: MemoryClient10, *, initial: int, settled: bool
) -> None:
    """Once an AMQP 1.0 publisher has used half of its link credit, the broker sets the credit to 170 again, counted
    from the link's current delivery count. Until then, the broker grants no new credit.
    """
    client.attach_sender("/queues/q", count=initial)
    flows = [credits_of(client.publish(number, settled=settled)) for number in range(170)]
    granted = {number: flow for number, flow in enumerate(flows, 1) if flow}
    assert granted == {count: [(0, (initial + count) % 2**32, 170)] for count in (85, 170)}


class SlowLedger(Ledger):
    """A ledger whose disk syncs messages only when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[], None]] = []

    def after_commit(self, what: Callable[[], None]) -> None:
        self.waiting.append(what)

    def sync(self) -> None:
        """Write a group of messages to disk."""
        waiting, self.waiting = self.waiting, []
        self.group += 1
        for what in waiting:
            what()


@pytest.fixture
def slow(loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> tuple[MemoryClient10, SlowLedger]:
    """A client of a broker that stores each message on a slow disk."""
    ledger = SlowLedger()
    broker = broker_with(loop, PROFILES[Like.V4_3], ledger)
    vhost = broker.vhosts["/"]
    enqueue = vhost.enqueue
    monkeypatch.setattr(vhost, "enqueue", lambda routing: enqueue(routing)._replace(stored=True))
    return MemoryClient10(loop, broker), ledger


def test_a_message_gets_its_outcome_once_it_is_on_disk(slow: tuple[MemoryClient10, SlowLedger]) -> None:
    """If an AMQP 1.0 message must be stored, the broker sends its outcome once the message is on disk. The broker
    writes messages to disk in groups, and sends the outcomes of a group once this group is on disk.
    """
    client, ledger = slow
    client.attach_sender("/queues/q")
    assert [*client.publish(0), *client.publish(1)] == []
    ledger.group += 1
    assert client.publish(2) == []
    first, second = ledger.waiting
    first()
    assert outcomes(client.received()) == [(0, 1, ACCEPT)]
    second()
    assert outcomes(client.received()) == [(2, None, ACCEPT)]


def test_messages_of_two_groups_that_are_on_disk_get_their_outcomes_together(
    slow: tuple[MemoryClient10, SlowLedger],
) -> None:
    """The broker writes messages to disk in groups. If a second group is on disk before the broker has sent an AMQP
    1.0 publisher the outcomes of the first group, it sends the outcomes of both groups in one disposition frame.
    """
    client, ledger = slow
    client.attach_sender("/queues/q")
    client.publish(0)
    ledger.group += 1
    client.publish(1)
    ledger.sync()
    assert outcomes(client.received()) == [(0, 1, ACCEPT)]


def test_a_publisher_gets_no_new_link_credit_while_170_messages_are_unsettled(
    slow: tuple[MemoryClient10, SlowLedger],
) -> None:
    """While 170 messages of an AMQP 1.0 publisher are unsettled because they are not on disk yet, the broker grants no
    new link credit. The broker grants credit again once only 169 messages are unsettled.
    """
    client, ledger = slow
    client.attach_sender("/queues/q")
    granted = {}
    for number in range(1, 256):
        ledger.group += number in (86, 87)
        if flow := credits_of(client.publish(number - 1)):
            granted[number] = flow
    assert granted == {85: [(0, 85, 170)]}
    first_85, next_one, _ = ledger.waiting
    first_85()
    found = client.received()
    assert (outcomes(found), credits_of(found)) == ([(0, 84, ACCEPT)], [])
    next_one()
    found = client.received()
    assert (outcomes(found), credits_of(found)) == ([(85, None, ACCEPT)], [(0, 255, 170)])


def test_a_publisher_gets_new_link_credit_while_169_messages_are_unsettled(
    slow: tuple[MemoryClient10, SlowLedger],
) -> None:
    """If 169 messages of an AMQP 1.0 publisher are unsettled, one fewer than the number at which the broker stops
    granting link credit, the publisher still gets new credit when it has used half of its credit.
    """
    client, ledger = slow
    client.attach_sender("/queues/q")
    client.publish(0)
    ledger.sync()
    client.received()
    granted = {number: flow for number in range(1, 170) if (flow := credits_of(client.publish(number)))}
    assert granted == {84: [(0, 85, 170)], 169: [(0, 170, 170)]}


def test_no_link_credit_is_granted_on_a_session_that_has_ended(slow: tuple[MemoryClient10, SlowLedger]) -> None:
    """If an AMQP 1.0 session ends before its messages are on disk, the broker sends neither outcomes nor link credit
    for this session later.
    """
    client, ledger = slow
    client.attach_sender("/queues/q")
    for number in range(100):
        client.publish(number)
    assert [frame.code for frame in client.send(END)] == [END]
    ledger.sync()
    assert client.received() == []


@pytest.mark.parametrize("like", [Like.V4_0, Like.V4_3])
def test_a_publisher_that_exceeds_its_link_credit_is_detached(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, like: Like
) -> None:
    """If an AMQP 1.0 publisher sends more messages than its link credit allows, the broker detaches the link with
    transfer-limit-exceeded, and does not add the excess message to the queue.
    """
    broker = broker_with(loop, PROFILES[like], SlowLedger())
    vhost = broker.vhosts["/"]
    enqueue = vhost.enqueue
    monkeypatch.setattr(vhost, "enqueue", lambda routing: enqueue(routing)._replace(stored=True))
    client = MemoryClient10(loop, broker)
    client.attach_sender("/queues/q")
    for number in range(85 + LINK_CREDIT):
        client.publish(number)
    assert error_of(client.publish(255)) == (DETACH, "amqp:link:transfer-limit-exceeded", None)
    assert len(vhost.queues["q"]) == 255


# Transfers


def test_the_transfers_of_an_incomplete_message_count_towards_the_memory_of_the_connection(
    client: MemoryClient10, broker: Broker
) -> None:
    """While an AMQP 1.0 message in several transfers is incomplete, the transfers that have arrived count towards the
    memory of the connection. When the message is complete, the broker publishes it, and sends one outcome. Only the
    first transfer needs a delivery id.
    """
    client.attach_sender("/queues/q")
    before = client.connection.held_bytes
    whole = message(b"0123456789")
    assert client.publish(4, whole[:5], more=True, settled=None) == []
    assert client.connection.held_bytes == before + 5
    assert client.publish(None, whole[5:7], more=True, settled=None) == []
    assert client.connection.held_bytes == before + 7
    assert outcomes(client.publish(4, whole[7:])) == [(4, None, ACCEPT)]
    assert client.connection.held_bytes == before
    assert bodies(broker) == [b"0123456789"]
    assert outcomes(client.publish(5, message(b"next"))) == [(5, None, ACCEPT)]
    assert bodies(broker) == [b"0123456789", b"next"]


@pytest.mark.parametrize("later", [None, True])
def test_the_first_transfer_determines_whether_a_message_is_settled(client: MemoryClient10, later: bool | None) -> None:
    """An AMQP 1.0 message in several transfers is settled if the settled flag of the first transfer is set. Later
    transfers may omit the flag.
    """
    client.attach_sender("/queues/q")
    client.publish(0, message()[:5], more=True, settled=True)
    assert client.publish(0, message()[5:], settled=later) == []


@pytest.mark.parametrize("how", ["aborted", "detached", "ended"])
def test_an_incomplete_message_is_discarded(client: MemoryClient10, broker: Broker, how: str) -> None:
    """If an AMQP 1.0 publisher aborts a message in several transfers, or detaches the link or ends the session before
    the last transfer, the broker discards the incomplete message, and frees the memory of its transfers.
    """
    before = client.connection.held_bytes
    client.attach_sender("/queues/q")
    attached = client.connection.held_bytes
    client.publish(0, message()[:5], more=True)
    if how == "aborted":
        assert client.publish(0, b"", rest=(None, None, None, True)) == []
        assert client.connection.held_bytes == attached
        assert outcomes(client.publish(1)) == [(1, None, ACCEPT)]
        assert bodies(broker) == [b"hello"]
        return
    found = client.send(DETACH, UInt32(0), True) if how == "detached" else client.send(END)
    assert [frame.code for frame in found] == [DETACH if how == "detached" else END]
    assert client.connection.held_bytes == before
    assert bodies(broker) == []


def test_an_aborted_message_does_not_use_credit(client: MemoryClient10) -> None:
    """A message that an AMQP 1.0 publisher aborts does not count towards the link's delivery count or credit."""
    client.attach_sender("/queues/q")
    client.publish(0, b"x", rest=(None, None, None, True))
    flows = [credits_of(client.publish(number)) for number in range(1, 86)]
    assert [flow for flow in flows if flow] == [[(0, 85, 170)]]
    assert flows[84]


def test_a_first_transfer_without_a_delivery_id_detaches_the_link(client: MemoryClient10) -> None:
    """If the first transfer of an AMQP 1.0 message lacks a delivery id, the broker detaches the link with
    invalid-field.
    """
    client.attach_sender("/queues/q")
    assert error_of(client.publish(None)) == (
        DETACH,
        "amqp:invalid-field",
        "the first transfer of a delivery has no delivery-id",
    )


DIFFERS = (
    "field 'settled' of continuation transfer ({}) differs from (interpreted) field 'settled' on first transfer ({})"
)


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        (
            (3, None),
            (4, None),
            "delivery-id of continuation transfer ({uint,4}) differs from delivery-id on first transfer (3)",
        ),
        ((0, None), (0, True), DIFFERS.format("true", "false")),
        ((0, True), (0, False), DIFFERS.format("false", "true")),
    ],
)
def test_a_transfer_that_contradicts_the_first_one_of_its_message_detaches_the_link(
    client: MemoryClient10, first: tuple[int, bool | None], second: tuple[int, bool | None], text: str
) -> None:
    """If a later transfer of an AMQP 1.0 message has another delivery id or settled flag than the first one, the broker
    detaches the link with RabbitMQ's error text, and frees the memory of the message.
    """
    before = client.connection.held_bytes
    client.attach_sender("/queues/q")
    client.publish(first[0], message(), settled=first[1], more=True)
    assert error_of(client.publish(second[0], b"", settled=second[1])) == (DETACH, "amqp:invalid-field", text)
    assert client.connection.held_bytes == before


@pytest.mark.parametrize(
    ("mode", "settled", "text"),
    [
        (UNSETTLED, True, "sender settle mode is 'unsettled' but transfer settled flag is interpreted as being 'true'"),
        (SETTLED, False, "sender settle mode is 'settled' but transfer settled flag is interpreted as being 'false'"),
        (SETTLED, None, "sender settle mode is 'settled' but transfer settled flag is interpreted as being 'false'"),
    ],
)
def test_a_settled_flag_that_contradicts_the_settle_mode_of_the_link_detaches_the_link(
    client: MemoryClient10, broker: Broker, mode: UInt8, settled: bool | None, text: str
) -> None:
    """If the settled flag of an AMQP 1.0 message contradicts the snd-settle-mode of its link, the broker detaches the
    link with invalid-field and RabbitMQ's error text, and does not publish the message.
    """
    client.attach_sender("/queues/q", mode=mode)
    assert error_of(client.publish(0, settled=settled)) == (DETACH, "amqp:invalid-field", text)
    assert bodies(broker) == []


@pytest.mark.parametrize(
    ("mode", "settled"),
    [(UNSETTLED, False), (SETTLED, True), (None, True), (None, False), (UInt8(2), True), (UInt8(2), False)],
)
def test_a_message_is_published_if_the_settle_mode_of_the_link_allows_its_settled_flag(
    client: MemoryClient10, broker: Broker, mode: UInt8 | None, settled: bool
) -> None:
    """An AMQP 1.0 link with the snd-settle-mode `unsettled` accepts unsettled messages, and a link with `settled`
    accepts settled ones. A link with the mode `mixed`, or without a mode, accepts both.
    """
    client.attach_sender("/queues/q", mode=mode)
    assert outcomes(client.publish(0, settled=settled)) == ([] if settled else [(0, None, ACCEPT)])
    assert bodies(broker) == [b"hello"]


def test_the_link_of_an_unsettled_message_with_rcv_settle_mode_second_is_detached(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client publishes an unsettled message with the rcv-settle-mode `second`, the broker detaches the
    link with not-implemented. For a settled message, the broker ignores the mode.
    """
    client.attach_sender("/queues/q")
    assert client.publish(0, settled=True, rest=(UInt8(1),)) == []
    assert outcomes(client.publish(1, rest=(UInt8(0),))) == [(1, None, ACCEPT)]
    found = error_of(client.publish(2, rest=(UInt8(1),)))
    assert found == (DETACH, "amqp:not-implemented", "rcv-settle-mode second not supported")


@pytest.mark.parametrize("parts", [1, 2])
def test_a_message_larger_than_the_maximum_message_size_ends_the_session(
    loop: asyncio.AbstractEventLoop, parts: int
) -> None:
    """The broker accepts an AMQP 1.0 message of exactly the maximum message size. If a message is one byte larger, in
    one transfer or in several, the broker ends the session with message-size-exceeded, and frees the memory of the
    message.
    """
    broker = broker_with(loop, PROFILES[Like.V4_3]._replace(largest_message=100))
    client = MemoryClient10(loop, broker)
    before = client.connection.held_bytes
    client.attach_sender("/queues/q")
    for number, size in enumerate((100, 101)):
        whole = message(b"x" * (size - len(message(b""))))
        assert len(whole) == size
        if parts == 2:
            client.publish(number, whole[:60], more=True)
            whole = whole[60:]
        found = client.publish(number, whole)
        if not number:
            assert outcomes(found) == [(0, None, ACCEPT)]
    text = "message size (101 bytes) > maximum message size (100 bytes)"
    assert error_of(found) == (END, "amqp:link:message-size-exceeded", text)
    assert client.connection.held_bytes == before


# Outcomes


def test_a_malformed_message_detaches_the_link_and_is_not_counted(client: MemoryClient10, broker: Broker) -> None:
    """If an AMQP 1.0 message has no body section, the broker detaches the link with decode-error and RabbitMQ's error
    text. The message does not count as published.
    """
    client.attach_sender("/queues/q")
    text = "failed to parse message: missing_amqp_message_body"
    assert error_of(client.publish(0, b"")) == (DETACH, "amqp:decode-error", text)
    assert broker.totals.published[AMQP10] == Publishes()


def test_a_message_with_a_ttl_of_the_wrong_type_detaches_the_link(client: MemoryClient10, broker: Broker) -> None:
    """If the ttl in the header of an AMQP 1.0 message is not a number, the broker detaches the link with
    decode-error, and does not publish the message.
    """
    client.attach_sender("/queues/q")
    wrong = encode(described(0x70, True, None, "soon")) + message()
    code, condition, text = error_of(client.publish(0, wrong))
    assert (code, condition) == (DETACH, "amqp:decode-error")
    assert str(text).startswith("failed to parse message: ")
    assert bodies(broker) == []


def test_amqp_1_0_messages_are_counted_by_their_outcomes(client: MemoryClient10, broker: Broker) -> None:
    """The broker's metrics count how many messages AMQP 1.0 publishers have sent, how many of these were unsettled, how
    many were accepted, and to how many queues they were routed. An unroutable message counts as returned if it was sent
    unsettled, and as dropped if it was sent settled.
    """
    vhost = broker.vhosts["/"]
    vhost.add_queue(QueueDeclaration("other", {}))
    vhost.add_queue(QueueDeclaration("full", {"x-max-length": 0, "x-overflow": "reject-publish"}))
    vhost.bind(vhost.exchanges["amq.fanout"], vhost.queues["q"], "", {})
    vhost.bind(vhost.exchanges["amq.fanout"], vhost.queues["other"], "", {})
    addresses = ("/queues/q", "/exchanges/amq.fanout", "/exchanges/amq.direct/none", "/queues/full")
    for handle, address in enumerate(addresses):
        client.attach_sender(address, handle=handle)
    expected = Publishes()

    def publish(number: int, handle: int, *, settled: bool = False, **more: int) -> None:
        client.publish(number, handle=handle, settled=settled)
        expected.add(Publishes(received=1, with_confirm=int(not settled), **more))
        assert broker.totals.published[AMQP10] == expected

    publish(0, 0, confirmed=1, routed=1)
    publish(1, 0, settled=True, routed=1)
    publish(2, 1, confirmed=1, routed=2)
    publish(3, 2, returned=1)
    publish(4, 2, settled=True, dropped=1)
    publish(5, 3, routed=1)
    publish(6, 3, settled=True, routed=1)
    publish(7, 2, settled=True, dropped=1)
    assert broker.dropped_unroutable == 3
    counted = {name: vhost.exchanges[name].published_in for name in ("", "amq.fanout", "amq.direct")}
    assert counted == {"": 4, "amq.fanout": 1, "amq.direct": 3}


@pytest.mark.parametrize("settled", [False, True])
def test_a_settled_message_gets_no_outcome(client: MemoryClient10, *, settled: bool) -> None:
    """A message that its AMQP 1.0 publisher sends settled gets no outcome, even if it is unroutable."""
    client.attach_sender("/exchanges/amq.direct/none")
    assert outcomes(client.publish(0, settled=settled)) == ([] if settled else [(0, None, RELEASE)])


@pytest.mark.parametrize(("address", "to"), [("/queues/full", None), (None, "/queues/full")])
def test_a_message_for_a_full_queue_is_rejected_with_the_name_of_the_queue(
    client: MemoryClient10, broker: Broker, address: str | None, to: str | None
) -> None:
    """If an AMQP 1.0 message is rejected because a queue is full, the outcome `rejected` contains the name of the
    queue and the reason `maxlen`, whether the link's target or the message's property `to` names the queue.
    """
    broker.vhosts["/"].add_queue(QueueDeclaration("full", {"x-max-length": 0, "x-overflow": "reject-publish"}))
    client.attach_sender(address)
    [(_, _, state)] = outcomes(client.publish(0, message(**({} if to is None else {"to": to}))))
    assert state.descriptor == REJECTED
    assert state.value[0].value == [
        "amqp:resource-limit-exceeded",
        "queue 'full' exceeded maximum length",
        {"queue": "full", "reason": "maxlen"},
    ]
    assert [*map(type, state.value[0].value[2])] == [Symbol, Symbol]
    assert type(state.value[0].value[2][Symbol("reason")]) is Symbol


def test_the_outcome_rejected_names_the_routing_key_if_the_target_is_an_exchange(
    client: MemoryClient10, broker: Broker
) -> None:
    """If an AMQP 1.0 message is published to an exchange and a full queue rejects it, the outcome `rejected` names the
    routing key instead of the queue.
    """
    vhost = broker.vhosts["/"]
    full = vhost.add_queue(QueueDeclaration("full", {"x-max-length": 0, "x-overflow": "reject-publish"}))
    vhost.bind(vhost.exchanges["amq.direct"], full, "key", {})
    client.attach_sender("/exchanges/amq.direct/key")
    [(_, _, state)] = outcomes(client.publish(0))
    assert state.value[0].value[1] == "queue 'key' exceeded maximum length"


def test_a_link_to_the_anonymous_terminus_stays_attached_if_a_message_is_rejected(
    client: MemoryClient10, broker: Broker
) -> None:
    """On an AMQP 1.0 link whose target address is null (the anonymous terminus), the broker rejects a message whose
    `to` is missing, is not a valid address, or names an exchange that does not exist. The rejected message uses link
    credit. The link stays attached, and later messages are published.
    """
    client.attach_sender(None)
    refused = {
        0: (message(), "amqp:precondition-failed", "anonymous terminus requires 'to' address to be set"),
        1: (message(to="/what"), "amqp:precondition-failed", "bad 'to' address string: /what"),
        2: (message(to="/exchanges/none/k"), "amqp:not-found", "no exchange 'none' in vhost '/'"),
    }
    for number, (payload, condition, text) in refused.items():
        [(first, last, state)] = outcomes(client.publish(number, payload))
        assert (first, last, state.descriptor, state.value[0].value[:2]) == (number, None, REJECTED, [condition, text])
    assert outcomes(client.publish(3, message(b"1", to="/queues/q"))) == [(3, None, ACCEPT)]
    assert outcomes(client.publish(4, message(to="/exchanges/amq.direct/k"))) == [(4, None, RELEASE)]
    assert bodies(broker) == [b"1"]
    for number in range(5, 84):
        client.publish(number, message())
    assert credits_of(client.publish(84, message())) == [(0, 85, 170)]


@pytest.mark.parametrize("settled", [False, True])
def test_a_settled_message_with_an_invalid_address_detaches_the_link(client: MemoryClient10, *, settled: bool) -> None:
    """On an AMQP 1.0 link whose target address is null (the anonymous terminus), the broker rejects an unsettled
    message with an invalid address in `to`. It cannot reject a settled message, so it detaches the link, with an error
    that contains the message's delivery tag.
    """
    client.attach_sender(None)
    found = client.publish(5, message(to="/what"), settled=settled)
    if not settled:
        assert [frame.code for frame in found] == [DISPOSITION]
        return
    assert error_of(found) == (DETACH, "amqp:precondition-failed", "bad 'to' address string: /what")
    info = found[-1].fields[2].value[2]
    assert info == {"delivery-tag": b"\0\0\0\5"}
    assert [*map(type, info)] == [Symbol]


def test_the_error_about_a_settled_message_without_a_delivery_tag_contains_an_empty_tag(client: MemoryClient10) -> None:
    """If the broker cannot publish a settled AMQP 1.0 message, it detaches the link with an error that contains the
    message's delivery tag. If the message has none, the error contains an empty delivery tag.
    """
    client.attach_sender(None)
    found = client.send(TRANSFER, UInt32(0), UInt32(1), None, UInt32(0), True, payload=message(to="/what"))
    assert found[-1].fields[2].value[2] == {"delivery-tag": b""}


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("like", [Like.V4_0, Like.V4_3])
def test_a_message_for_a_deleted_exchange_is_released_and_detaches_the_link(
    loop: asyncio.AbstractEventLoop, like: Like, *, settled: bool
) -> None:
    """If an AMQP 1.0 publisher sends a message on a link whose exchange has been deleted, the broker detaches the link
    with not-found. If the message is unsettled, its outcome is `released`.
    """
    broker = broker_like(loop, like)
    broker.vhosts["/"].add_exchange(BrokerExchange("x", "fanout"))
    client = MemoryClient10(loop, broker)
    client.attach_sender("/exchanges/x")
    del broker.vhosts["/"].exchanges["x"]
    found = client.publish(0, settled=settled)
    assert outcomes(found) == ([] if settled else [(0, None, RELEASE)])
    assert error_of(found) == (DETACH, "amqp:not-found", "no exchange 'x' in vhost '/'")
    assert found[-1].fields[2].value[2:] in ([], [None])


# Permissions


@pytest.fixture
def ann(loop: asyncio.AbstractEventLoop, broker: Broker) -> MemoryClient10:
    """A client of a user who may write to the exchanges `amq.topic` and `inner`; her topics begin with `ann`."""
    user = User.with_password("ann", "guest", [])
    user.permissions["/"] = Permissions(write="^(amq.topic|inner)$")
    user.topic_permissions["/", "amq.topic"] = TopicPermissions(write="^ann")
    broker.users["ann"] = user
    return MemoryClient10(loop, broker, user="ann")


def cc(*keys: Any, to: str | None = None) -> bytes:
    """A message with further routing keys."""
    found = Amqp10Message(
        message_annotations={Symbol("x-cc"): [*keys]}, properties=BareProperties(to=to), body=data_section(b"x")
    )
    return found.encode()


@pytest.mark.parametrize(
    ("to", "text"),
    [
        ("/exchanges/amq.fanout/k", "write access to exchange 'amq.fanout' in vhost '/' refused for user 'ann'"),
        ("/queues/q", "write access to exchange 'amq.default' in vhost '/' refused for user 'ann'"),
        ("/exchanges/none/k", "write access to exchange 'none' in vhost '/' refused for user 'ann'"),
        (
            "/exchanges/amq.topic/bob",
            "write access to topic 'bob' in exchange 'amq.topic' in vhost '/' refused for user 'ann'",
        ),
    ],
)
def test_permissions_are_checked_for_each_message_on_a_link_without_a_target(
    ann: MemoryClient10, to: str, text: str
) -> None:
    """On an AMQP 1.0 link whose target address is null (the anonymous terminus), each message can name a different
    exchange in `to`. If the user has no write permission for this exchange, or no topic permission for the routing
    key, the broker ends the session with unauthorized-access, even if the exchange does not exist.
    """
    ann.attach_sender(None)
    assert outcomes(ann.publish(0, message(to="/exchanges/amq.topic/ann.1"))) == [(0, None, RELEASE)]
    assert error_of(ann.publish(1, message(to=to))) == (END, "amqp:unauthorized-access", text)


def test_topic_permissions_apply_to_the_routing_keys_in_x_cc(ann: MemoryClient10) -> None:
    """If a routing key in the annotation x-cc of an AMQP 1.0 message does not match the topic permissions of the
    publisher, the broker ends the session with unauthorized-access.
    """
    ann.attach_sender("/exchanges/amq.topic/ann.1")
    assert outcomes(ann.publish(0, cc("ann.2"))) == [(0, None, RELEASE)]
    text = "write access to topic 'bob' in exchange 'amq.topic' in vhost '/' refused for user 'ann'"
    assert error_of(ann.publish(1, cc("ann.2", "bob"))) == (END, "amqp:unauthorized-access", text)


def test_a_message_to_an_internal_exchange_detaches_the_link(client: MemoryClient10, broker: Broker) -> None:
    """If an AMQP 1.0 client publishes a message to an internal exchange over a link whose target address is null (the
    anonymous terminus), the broker detaches the link with unauthorized-access.
    """
    broker.vhosts["/"].add_exchange(BrokerExchange("inner", "fanout", internal=True))
    client.attach_sender(None)
    text = "forbidden to publish to internal exchange 'inner' in vhost '/'"
    found = client.publish(0, message(to="/exchanges/inner/k"))
    assert error_of(found) == (DETACH, "amqp:unauthorized-access", text)


def test_a_message_whose_x_cc_is_not_a_list_of_strings_is_rejected(client: MemoryClient10, broker: Broker) -> None:
    """On an AMQP 1.0 link whose target address is null (the anonymous terminus), a message whose annotation x-cc is not
    a list of strings gets the outcome `rejected` with invalid-field. The broker adds it to no queue.
    """
    client.attach_sender(None)
    [(_, _, state)] = outcomes(client.publish(0, cc(Symbol("q"), to="/queues/q")))
    assert state.value[0].value[:2] == ["amqp:invalid-field", "bad value for 'x-cc' message-annotation: ['q']"]
    assert bodies(broker) == []


@pytest.mark.parametrize(
    ("user_id", "tags", "accepted"),
    [(b"guest", [], True), (b"ann", [], False), (b"ann", ["impersonator"], True), (None, [], True)],
)
def test_the_user_id_of_a_message_must_be_that_of_its_publisher(
    client: MemoryClient10, broker: Broker, user_id: bytes | None, tags: list[str], accepted: bool
) -> None:
    """If the user-id of an AMQP 1.0 message names a user other than the one who publishes the message, the broker
    detaches the link with unauthorized-access. A user with the tag `impersonator` may set any user-id.
    """
    broker.users["guest"].tags[:] = tags
    client.attach_sender("/queues/q")
    found = client.publish(0, message(user_id=user_id))
    if accepted:
        assert outcomes(found) == [(0, None, ACCEPT)]
        return
    text = "user_id property set to 'ann' but authenticated user was 'guest'"
    assert error_of(found) == (DETACH, "amqp:unauthorized-access", text)
    assert bodies(broker) == []


# Queues, replies and observers


def test_deleting_a_queue_detaches_only_the_links_that_still_publish_to_it(
    client: MemoryClient10, broker: Broker, loop: asyncio.AbstractEventLoop
) -> None:
    """When a queue is deleted, the broker detaches each AMQP 1.0 link that publishes to it, with the error
    resource-deleted. If a client has already detached its link and reused the link's handle for a link to another
    queue, the new link stays attached.
    """
    vhost = broker.vhosts["/"]
    vhost.add_queue(QueueDeclaration("other", {}))
    client.attach_sender("/queues/q", handle=1)
    client.attach_sender("/queues/q", handle=2)
    client.send(DETACH, UInt32(2), True)
    client.attach_sender("/queues/other", handle=2)
    loop.call_soon(vhost.deletions.soon, vhost.queues["q"])
    found = client.received()
    assert [(frame.code, frame.fields[0], frame.error) for frame in found] == [
        (DETACH, 1, ("amqp:resource-deleted", None))
    ]


class ReplyChannel:
    """A channel that waits for direct replies."""

    def __init__(self) -> None:
        self.replies: list[bytes] = []

    def deliver_reply(self, message: Any) -> None:
        self.replies.append(message.body)


def test_a_direct_reply_is_delivered_to_the_channel_that_waits_for_it(client: MemoryClient10, broker: Broker) -> None:
    """If an AMQP 1.0 client publishes a message to a direct reply-to address, the broker accepts the message, and
    delivers it to the requester's channel without a queue. It also accepts the message if the requester has
    disconnected. If no client can ever have had the address, the outcome is `released`.
    """
    asking = broker.reply_consumers["a" * 24] = ReplyChannel()
    client.attach_sender(None)
    for number, (token, outcome) in enumerate([("a" * 24, ACCEPT), ("b" * 24, ACCEPT), ("token", RELEASE)]):
        to = f"/queues/{DIRECT_REPLY_TO}.{token}"
        assert outcomes(client.publish(number, message(b"1", to=to))) == [(number, None, outcome)]
    assert asking.replies == [b"1"]
    counted = broker.totals.published[AMQP10]
    assert (counted.confirmed, counted.returned, counted.routed) == (2, 1, 0)
    assert broker.vhosts["/"].exchanges[""].published_in == 3


def test_only_the_default_exchange_delivers_direct_replies(client: MemoryClient10, broker: Broker) -> None:
    """Only the default exchange delivers an AMQP 1.0 message to a direct reply-to address. If a message with such an
    address as its routing key is published to another exchange, that exchange routes it by its bindings.
    """
    vhost, key = broker.vhosts["/"], f"{DIRECT_REPLY_TO}.token"
    asking = broker.reply_consumers["token"] = ReplyChannel()
    vhost.bind(vhost.exchanges["amq.direct"], vhost.queues["q"], key, {})
    client.attach_sender(f"/exchanges/amq.direct/{key}")
    assert outcomes(client.publish(0)) == [(0, None, ACCEPT)]
    assert (bodies(broker), asking.replies) == ([b"hello"], [])


@pytest.mark.parametrize("tracing", [True, False])
def test_the_firehose_copies_a_message_with_its_connection_channel_and_queues(
    client: MemoryClient10, broker: Broker, *, tracing: bool
) -> None:
    """While message tracing is on, the firehose gets a copy of each message that is published over AMQP 1.0. The copy
    names the publisher's connection, channel and user, and the queues that got the message. While tracing is off, there
    are no copies.
    """
    vhost = broker.vhosts["/"]
    vhost.tracing = tracing
    vhost.bind(vhost.exchanges[TRACE_EXCHANGE], vhost.add_queue(QueueDeclaration("copies", {})), "#", {})
    client.attach_sender("/queues/q")
    client.publish(0)
    copies = [entry.message for entry in vhost.queues["copies"].backlog.in_memory()]
    if not tracing:
        assert copies == []
        return
    [copy] = copies
    assert (copy.routing_key, copy.body) == ("publish.", b"hello")
    headers = copy.properties.headers
    names = ("connection", "channel", "user", "routed_queues")
    assert [headers[name] for name in names] == [client.connection.name, 0, "guest", ["q"]]


class Watcher:
    """A live display that records unroutable messages, and the publishers of messages."""

    def __init__(self) -> None:
        self.shown: dict[int, Any] = {}
        self.publishing: dict[int, Any] = {}
        self.skipped: set[bytes] = set()
        self.unrouted: list[tuple[bytes, bool]] = []
        self.sources: list[object] = []

    def published(self, routing: Any) -> None:
        self.sources.append(routing.source)

    def unroutable(self, message: Any, *, returned: bool) -> None:
        self.unrouted.append((message.body, returned))

    def entered(self, *_: object) -> None:
        """Do nothing."""


def test_publishers_and_unroutable_messages_are_reported_to_a_live_display(
    client: MemoryClient10, broker: Broker
) -> None:
    """The broker reports to a live display, such as `mqtool ui`, which connection published each AMQP 1.0 message,
    and which messages were unroutable. It also reports whether the publisher was informed that a message was
    unroutable: the outcome of an unsettled message is `released`, but a settled message has no outcome.
    """
    watcher: Any = Watcher()
    vhost = broker.vhosts["/"]
    vhost.watcher = watcher
    for queue in vhost.queues.values():
        queue.watcher = watcher
    client.attach_sender("/queues/q")
    client.attach_sender("/exchanges/amq.direct/none", handle=1)
    client.publish(0)
    client.publish(1, message(b"1"), handle=1)
    client.publish(2, message(b"2"), handle=1, settled=True)
    assert watcher.sources[0] is client.connection
    assert watcher.unrouted == [(b"1", True), (b"2", False)]


class RejectingHooks:
    """Hooks for tests that reject each message."""

    def __init__(self) -> None:
        self.enqueued: list[tuple[object, bytes]] = []

    def enqueue(self, vhost: Any, routing: Any) -> Publication:
        self.enqueued.append((vhost, routing.message.body))
        return Publication(routed=True, accepted=False, stored=False)

    def confirm(self, data: bytes, send: Callable[[bytes], None]) -> None:
        send(data)


def test_a_fault_that_rejects_messages_also_applies_to_amqp_1_0_publishers(
    client: MemoryClient10, broker: Broker
) -> None:
    """If an injected fault makes the embedded broker reject messages, a message of an AMQP 1.0 publisher gets the
    outcome `rejected`, and is added to no queue.
    """
    hooks: Any = RejectingHooks()
    broker.hooks = hooks
    client.attach_sender("/queues/q")
    [(_, _, state)] = outcomes(client.publish(0))
    assert state.descriptor == REJECTED
    assert hooks.enqueued == [(broker.vhosts["/"], b"hello")]
    assert bodies(broker) == []
