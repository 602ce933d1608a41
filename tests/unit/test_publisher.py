"""The publisher and the broker's acks, nacks and returns, with plain callables in place of a broker."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from mqtool.amqp.unconfirmed import Encoded, Route, Unconfirmed
from mqtool.errors import NotConfirmed, Unavailable
from mqtool.message import Confirmation, Message, new_message_ids

ROUTE = Route("logs", "info")


class Wire:
    """What the publisher has written, and whether it wants another channel."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.reopened = 0
        self.publisher = Unconfirmed(self.run, lambda _, callback: callback(), self.reopen)
        self.open()

    def run(self, callback: Callable[[], None]) -> None:
        callback()

    def reopen(self) -> None:
        self.reopened += 1

    def open(self, *, connection_is_new: bool = False) -> None:
        self.sent = []
        self.publisher.restart(self, may_lack_leaders=connection_is_new)

    def encode(self, messages: Sequence[Message], route: Route) -> Encoded:  # noqa: ARG002
        return Encoded(len(messages[0].body), frames=messages[0].body)

    def write(self, encoded: Iterable[Encoded], acks: Iterable[tuple[int, bool]] = ()) -> None:  # noqa: ARG002
        self.sent += [each.frames for each in encoded]

    def publish(self, *bodies: bytes) -> None:
        for number, body in enumerate(bodies, 1):
            self.publisher.add([Message(body)], ROUTE, number)

    def collected(self) -> list[tuple[bytes, str]]:
        return [(receipt.message.body, receipt.confirmation) for receipt in self.publisher.collect()]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def publisher(wire: Wire) -> Iterator[Unconfirmed]:
    return wire.publisher


def test_receipts_come_in_the_order_of_publishing(wire: Wire, publisher: Unconfirmed) -> None:
    """Receipts are returned in the order of publishing: if a message is confirmed early, its receipt waits for those of
    earlier messages.
    """
    wire.publish(b"1", b"2", b"3", b"4")
    publisher.on_ack(3, multiple=False)
    assert wire.collected() == []
    publisher.on_nack(1, multiple=False)
    assert wire.collected() == [(b"1", "nacked")]
    publisher.on_ack(4, multiple=True)
    assert wire.collected() == [(b"2", "confirmed"), (b"3", "confirmed"), (b"4", "confirmed")]
    assert not publisher.is_waiting


def test_a_multiple_nack_applies_to_messages_without_a_confirm(wire: Wire, publisher: Unconfirmed) -> None:
    """basic.nack with `multiple` applies to all earlier messages, except those that were already confirmed."""
    wire.publish(b"1", b"2", b"3")
    publisher.on_ack(2, multiple=False)
    publisher.on_nack(3, multiple=True)
    receipts = publisher.collect()
    assert [receipt.confirmation for receipt in receipts] == ["nacked", "confirmed", "nacked"]
    assert (receipts[0].message.exchange, receipts[0].message.routing_key) == ROUTE[:2]
    assert [receipt.sequence for receipt in receipts] == [1, 2, 3]


def test_a_returned_message_is_matched_by_its_content(wire: Wire, publisher: Unconfirmed) -> None:
    """A basic.return, which has no delivery tag, is matched to a published message by its content; among equal
    messages, each return marks one of them.
    """
    wire.publish(b"1", b"same", b"same")
    for _ in range(2):
        publisher.on_return(Message(b"same", "info", ROUTE.exchange), "NO_ROUTE (312)")
    publisher.on_ack(3, multiple=True)
    assert [receipt.confirmation for receipt in publisher.collect()] == ["confirmed", "returned", "returned"]


def test_a_returned_message_with_changed_headers_is_matched_to_the_most_similar_one(
    wire: Wire, publisher: Unconfirmed
) -> None:
    """If the broker has added a header to a returned message, or removed its BCC header, it is matched to the published
    message that differs from it least.
    """
    for number in range(3):
        headers = {"n": number, "BCC": ["copy"]}
        publisher.add([Message(b"same", properties={"headers": headers, "priority": None})], ROUTE, number + 1)
    headers = {"n": 1, "added-by-the-broker": True}
    publisher.on_return(Message(b"same", "info", "logs", {"headers": headers, "app_id": None}), "NO_ROUTE (312)")
    publisher.on_ack(3, multiple=True)
    assert [receipt.confirmation for receipt in publisher.collect()] == ["confirmed", "returned", "confirmed"]


def test_only_unconfirmed_messages_are_republished(wire: Wire, publisher: Unconfirmed) -> None:
    """After a reconnection, only unconfirmed messages are republished, and the receipts of messages that were confirmed
    before are still returned.
    """
    wire.publish(b"1", b"2", b"3")
    publisher.on_ack(1, multiple=False)
    wire.open(connection_is_new=True)
    assert wire.sent == [b"2", b"3"]
    publisher.on_ack(2, multiple=True)
    assert wire.collected() == [(b"1", "confirmed"), (b"2", "confirmed"), (b"3", "confirmed")]


def test_a_nack_right_after_a_reconnection_is_retried_on_another_channel(wire: Wire, publisher: Unconfirmed) -> None:
    """A message that the broker nacks right after a reconnection is published again on another channel, because the
    nack may only mean that a queue has no leader yet.
    """
    wire.open(connection_is_new=True)
    wire.publish(b"1", b"2")
    publisher.on_nack(1, multiple=False)
    publisher.on_ack(2, multiple=False)
    assert wire.collected() == [(b"2", "confirmed")]
    assert [message.body for message in publisher.messages] == [b"1"]
    publisher.wait(1, confirm_timeout=60, at_most=0.4)
    assert wire.reopened == 1
    wire.open()
    assert wire.sent == [b"1"]


def test_a_missing_confirm_raises_not_confirmed(wire: Wire, publisher: Unconfirmed) -> None:
    """If confirms do not arrive within the timeout, NotConfirmed says how many messages are unconfirmed, and the
    publisher still keeps all of them.
    """
    wire.publish(b"1", b"2")
    with pytest.raises(NotConfirmed, match="did not confirm 2 messages"):
        publisher.wait(1, confirm_timeout=0.01)
    assert len(publisher.messages) == publisher.in_flight == 2


def test_the_confirm_timeout_pauses_without_a_connection(wire: Wire, publisher: Unconfirmed) -> None:
    """Time without a connection does not count towards a publisher's confirm timeout."""
    wire.publish(b"1")
    publisher.pause()
    publisher.wait(1, confirm_timeout=0.01, at_most=0.05)
    publisher.resume()
    with pytest.raises(NotConfirmed):
        publisher.wait(1, confirm_timeout=0.01)


def test_a_failure_ends_waiting_but_keeps_receipts(wire: Wire, publisher: Unconfirmed) -> None:
    """If a connection fails, waiting for confirms raises the connection's error, and the receipts of messages confirmed
    before can still be collected.
    """
    wire.publish(b"1", b"2")
    publisher.on_ack(1, multiple=False)
    publisher.fail(Unavailable("gone"))
    with pytest.raises(Unavailable, match="gone"):
        publisher.wait(1, confirm_timeout=60)
    assert wire.collected() == [(b"1", Confirmation.CONFIRMED)]


def test_a_window_is_full_by_number_or_by_bytes(wire: Wire, publisher: Unconfirmed) -> None:
    """A publisher's window is full once the unconfirmed messages reach the given number, or 16 MiB."""
    wire.publish(b"1")
    assert publisher.is_full(1)
    assert not publisher.is_full(2)
    wire.publish(bytes(17 * 1024 * 1024))
    assert publisher.is_full(1000)


def test_message_ids_are_random_uuids() -> None:
    """Message ids are unique UUIDs of version 4."""
    ids = [*map(uuid.UUID, new_message_ids(1000))]
    assert {(each.version, each.variant) for each in ids} == {(4, uuid.RFC_4122)}
    assert len({*ids}) == len(ids)
