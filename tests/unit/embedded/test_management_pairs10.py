"""The pairs of links with the AMQP 1.0 management node: how they are attached, their credit, and their errors."""

from typing import Any

import pytest

from mqtool.broker.embedded.model.broker import Broker
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, value_section
from mqtool.codecs.amqp10_values import Symbol, ULong
from mqtool.codecs.field_tables import UInt8, UInt32
from tests.protocol.raw_amqp10 import (
    ATTACH,
    DETACH,
    END,
    FLOW,
    RECEIVER,
    SENDER,
    SETTLED,
    SOURCE,
    TARGET,
    TRANSFER,
    UNSETTLED,
    Frame,
    described,
)
from tests.unit.embedded.memory_client10 import MemoryClient10, encoded, frames

ENDS = described(SOURCE, "/management"), described(TARGET, "/management")
PAIRED = {Symbol("paired"): True}


def request(message_id: int = 7) -> bytes:
    """Encode a request for the description of the queue `q`."""
    properties = BareProperties(ULong(message_id), None, "/queues/q", "GET", "$me")
    return Amqp10Message(properties=properties, body=value_section(None)).encode()


def attach(
    client: MemoryClient10,
    role: bool,
    *,
    name: str = "pair",
    mode: UInt8 | None = SETTLED,
    count: int | None = 0,
    largest: int | None = None,
    properties: Any = PAIRED,
    unsettled: Any = None,
) -> list[Frame]:
    """Attach one link of a pair: the one for requests on handle 3, or the one for responses on handle 4.

    Args:
        count: the initial delivery count.
        largest: the max-message-size.
    """
    initial = None if count is None else UInt32(count)
    size = None if largest is None else ULong(largest)
    fields = (None, *ENDS, unsettled, None, initial, size, None, None, properties)
    return client.send(ATTACH, name, UInt32(3 if role is SENDER else 4), role, mode, *fields)


def attach_pair(client: MemoryClient10, *, credit: int = 20, count: int | None = 0, largest: int | None = None) -> None:
    """Attach both links, and grant credit for responses."""
    attach(client, SENDER, count=count)
    attach(client, RECEIVER, largest=largest)
    client.flow(4, credit)


def ask(client: MemoryClient10, number: int, *, settled: bool = True, more: bool = False) -> list[Frame]:
    """Send a request."""
    return client.publish(number, request(number), handle=3, settled=settled, more=more)


def flows(found: list[Frame]) -> list[tuple[Any, ...]]:
    """From each flow frame of a link: handle, delivery count, credit, available, and drain."""
    return [tuple(frame.field(number) for number in range(4, 9)) for frame in found if frame.code == FLOW]


def ended(found: list[Frame]) -> tuple[str, str | None] | None:
    """The error of the end frame, which has to be the only frame."""
    assert [frame.code for frame in found] == [END]
    return found[0].error


# Attaching


def test_the_link_for_management_requests_is_attached_with_credit_for_8_requests(client: MemoryClient10) -> None:
    """The broker's attach frame for the link on which an AMQP 1.0 client sends management requests has the settle
    modes `settled` and `first`, the client's properties, and a max-message-size of 16 MiB. The broker grants credit
    for 8 requests.
    """
    answer, flow = attach(client, SENDER, count=5, unsettled={})
    fields = [answer.field(number) for number in range(14)]
    assert answer.code == ATTACH
    assert fields == ["pair", 3, RECEIVER, 1, 0, *ENDS, None, None, None, 16_777_216, None, None, PAIRED]
    assert flows([flow]) == [(3, 5, 8, None, None)]


def test_the_link_for_management_responses_always_has_the_settle_mode_settled(client: MemoryClient10) -> None:
    """The broker's attach frame for the link on which an AMQP 1.0 client receives management responses has the sender
    settle mode `settled`, even if the client does not ask for this mode. The initial delivery count in this frame is 0.
    """
    [answer] = attach(client, RECEIVER, mode=None, count=None, largest=5000)
    fields = [answer.field(number) for number in range(14)]
    assert fields == ["pair", 4, SENDER, 1, None, *ENDS, None, None, 0, 5000, None, None, PAIRED]


def test_an_unsettled_link_for_management_requests_is_detached(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client attaches a link for management requests with the sender settle mode `unsettled`, the broker
    detaches the link with invalid-field. As in RabbitMQ, the error says that the address `/management` is not
    permitted.
    """
    _, detach = attach(client, SENDER, mode=UNSETTLED)
    assert (detach.code, detach.error) == (
        DETACH, ("amqp:invalid-field", 'Attach refused: {amqp_address_v1_not_permitted,{utf8,<<"/management">>}}'),
    )  # fmt: skip


@pytest.mark.parametrize("properties", [None, {}, {Symbol("paired"): False}, {Symbol("paired"): "true"}])
@pytest.mark.parametrize("role", [SENDER, RECEIVER])
def test_a_link_to_the_management_node_needs_the_property_paired(
    client: MemoryClient10, role: bool, properties: Any
) -> None:
    """If an AMQP 1.0 client attaches a link to the management node, and the link's property `paired` is not true, the
    broker detaches the link with invalid-field.
    """
    _, detach = attach(client, role, properties=properties)
    text = "Link property 'paired' is not set to boolean value 'true'"
    assert (detach.code, detach.error) == (DETACH, ("amqp:invalid-field", text))


@pytest.mark.parametrize("role", [SENDER, RECEIVER])
def test_a_pair_of_management_links_has_one_link_in_each_direction(client: MemoryClient10, role: bool) -> None:
    """If an AMQP 1.0 client attaches a link for management requests or responses, but already has such a link with
    the same name and direction, the broker detaches the new link with precondition-failed. A session can have several
    pairs of such links with different names. When a link is detached, its name can be used again.
    """
    attach_pair(client)
    fields = role, SETTLED, None, *ENDS, None, None, UInt32(0), None, None, None, PAIRED
    _, detach = client.send(ATTACH, "pair", UInt32(9), *fields)
    text = "received invalid attach for management link pair pair"
    assert (detach.code, detach.error) == (DETACH, ("amqp:precondition-failed", text))
    assert client.send(ATTACH, "other", UInt32(9), *fields)[0].code == ATTACH
    handle = UInt32(3 if role is SENDER else 4)
    assert [each.code for each in client.send(DETACH, handle, True)] == [DETACH]
    assert client.send(DETACH, handle, True) == []
    assert DETACH not in [each.code for each in attach(client, role)]


def test_a_link_is_a_management_link_if_the_address_of_the_brokers_end_is_management(
    client: MemoryClient10, broker: Broker
) -> None:
    """An AMQP 1.0 link is a management link if the client is the sender and the target is `/management`, or if the
    client is the receiver and the source is `/management`. The address of the client's own end does not matter.
    """
    for role, source, target in ((SENDER, "me", "/management"), (RECEIVER, "/management", "me")):
        ends = described(SOURCE, source), described(TARGET, target)
        handle = UInt32(3 if role is SENDER else 4)
        client.send(ATTACH, "pair", handle, role, SETTLED, None, *ends, *[None] * 6, PAIRED)
    client.flow(4, 1)
    assert [each.code for each in ask(client, 0)] == [TRANSFER]
    ends = described(SOURCE, "/queues/q"), described(TARGET, "/management")
    client.send(ATTACH, "x", UInt32(5), RECEIVER, SETTLED, None, *ends)
    assert len(broker.vhosts["/"].queues["q"].consumers) == 1


@pytest.mark.parametrize("role", [SENDER, RECEIVER])
def test_a_link_with_the_handle_of_a_management_link_ends_the_session(client: MemoryClient10, role: bool) -> None:
    """If an AMQP 1.0 client attaches a link with a handle that one of its links to the management node already uses,
    the broker ends the session with handle-in-use.
    """
    attach(client, role)
    handle = 3 if role is SENDER else 4
    text = f"handle {handle} is already associated with a link"
    assert ended(client.attach_sender("/queues/q", handle=handle)) == ("amqp:session:handle-in-use", text)


# Requests and responses


@pytest.mark.parametrize("largest", [None, 0, 5000])
def test_a_management_response_uses_the_link_of_the_same_name(client: MemoryClient10, largest: int | None) -> None:
    """The broker sends the response to an AMQP 1.0 management request on the client's receiving link that has the
    same name as the link of the request. The response's correlation id is the message id of the request. If the
    receiving link's max-message-size is missing or 0, responses may have any size.
    """
    other = (SETTLED, None, *ENDS, None, None, None, None, None, None, PAIRED)
    client.send(ATTACH, "other", UInt32(0), RECEIVER, *other)
    attach_pair(client, largest=largest)
    for number in range(2):
        [response] = ask(client, number)
        assert (response.code, response.fields[:5]) == (TRANSFER, [4, number, number.to_bytes(4), 0, True])
        properties = response.message.properties
        assert (properties.subject, properties.correlation_id) == ("200", number)


def test_the_delivery_ids_of_responses_and_messages_are_consecutive(client: MemoryClient10) -> None:
    """In an AMQP 1.0 session, the broker numbers management responses and other messages together, with consecutive
    delivery ids.
    """
    attach_pair(client)
    client.attach_receiver("/queues/q", handle=6)
    client.attach_sender("/queues/q", handle=7)
    client.flow(6, 5)
    found = [*ask(client, 0), *client.publish(1, handle=7), *ask(client, 2)]
    assert [each.fields[1] for each in found if each.code == TRANSFER] == [0, 1, 2]


def test_credit_for_requests_is_topped_up_when_half_of_it_is_left(client: MemoryClient10) -> None:
    """An AMQP 1.0 client has credit for 8 management requests. Whenever half of the credit is used, the broker sets
    it to 8 again, even between two requests of the same write. A client that sends 10 requests in one write therefore
    gets all 10 responses.
    """
    attach_pair(client, count=None)
    granted = [flows(ask(client, number)) for number in range(8)]
    assert granted == [[], [], [], [(3, 4, 8, None, None)], [], [], [], [(3, 8, 8, None, None)]]
    sent = [encoded(TRANSFER, UInt32(3), UInt32(8), b"", UInt32(0), True, payload=request()) for _ in range(10)]
    found = frames(b"".join(client.write_frames(b"".join(sent))))
    assert len([each for each in found if each.code == TRANSFER]) == 10


def test_the_delivery_count_of_requests_begins_with_the_clients_initial_count(client: MemoryClient10) -> None:
    """On the link on which an AMQP 1.0 client sends management requests, the delivery count in the broker's flow frames
    begins with the client's initial delivery count. After 4,294,967,295, it continues with 0.
    """
    attach_pair(client, count=0xFFFFFFFE)
    found = [flows(ask(client, number)) for number in range(4)]
    assert found[-1] == [(3, 2, 8, None, None)]


def test_credit_for_responses_is_drained_immediately(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client drains its link for management responses, the broker immediately answers with a credit of
    0, because no response is waiting. If the client sends a flow frame with echo, the broker answers with the
    remaining credit. It does not answer a flow frame that sets neither drain nor echo.
    """
    attach_pair(client, credit=5)
    ask(client, 0)
    assert flows(client.flow(4, 5, count=1, seen=1, echo=True)) == [(4, 1, 5, 0, False)]
    assert flows(client.flow(4, 5, count=1, seen=1, drain=True, echo=True)) == [(4, 6, 0, 0, True)]
    assert client.flow(4, 5, count=6, seen=1) == []
    assert client.flow(3, 5, echo=True) == []


def test_a_response_of_exactly_the_clients_max_message_size_is_sent(client: MemoryClient10) -> None:
    """The broker sends an AMQP 1.0 management response whose size is exactly the client's max-message-size. If a
    response is larger, the broker ends the session with message-size-exceeded.
    """
    attach_pair(client)
    size = len(ask(client, 0)[0].payload)
    for largest in (size, size - 1):
        other = MemoryClient10(client.loop, client.connection.broker)
        attach_pair(other, largest=largest)
        found = ask(other, 0)
        if largest == size:
            assert [each.code for each in found] == [TRANSFER]
        else:
            text = f"message size ({size} bytes) > maximum message size ({size - 1} bytes)"
            assert ended(found) == ("amqp:link:message-size-exceeded", text)


# Errors


@pytest.mark.parametrize(("settled", "more"), [(False, False), (True, True)])
def test_a_management_request_that_is_unsettled_or_in_several_transfers_ends_the_session(
    client: MemoryClient10, settled: bool, more: bool
) -> None:
    """If an AMQP 1.0 client sends a management request that is unsettled, or that consists of several transfers, the
    broker ends the session with not-implemented.
    """
    attach_pair(client)
    text = "management requests must be settled and in one transfer"
    assert ended(ask(client, 0, settled=settled, more=more)) == ("amqp:not-implemented", text)


def test_a_management_request_without_a_link_for_the_response_ends_the_session(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client sends a management request before it has attached the link for the response, the broker
    ends the session with precondition-failed.
    """
    attach(client, SENDER)
    text = "received transfer on half open management link pair"
    assert ended(ask(client, 0)) == ("amqp:precondition-failed", text)


def test_a_management_request_without_credit_for_the_response_ends_the_session(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client sends a management request, but has no credit left on its link for responses, the broker
    ends the session with precondition-failed.
    """
    attach_pair(client, credit=1)
    assert [each.code for each in ask(client, 0)] == [TRANSFER]
    text = "insufficient credit (0) for management link from RabbitMQ to client"
    assert ended(ask(client, 1)) == ("amqp:precondition-failed", text)


def test_a_management_request_that_is_not_a_message_ends_the_session(client: MemoryClient10) -> None:
    """If a client sends bytes that are not an AMQP 1.0 message on the link for management requests, the broker ends
    the session with decode-error.
    """
    attach_pair(client)
    condition, text = ended(client.publish(0, b"\0", handle=3, settled=True)) or ("", "")
    assert (condition, str(text)[:25]) == ("amqp:decode-error", "failed to parse message: ")


def test_a_transfer_on_an_unknown_handle_ends_the_session(client: MemoryClient10) -> None:
    """If an AMQP 1.0 client sends a transfer on a handle without a link, the broker ends the session with
    unattached-handle.
    """
    assert ended(ask(client, 0)) == ("amqp:session:unattached-handle", "Unknown link handle: 3")
