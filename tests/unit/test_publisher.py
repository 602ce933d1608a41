"""The publisher and the broker's acks, nacks and returns, with plain callables in place of a broker."""

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from mqtool.amqp import unconfirmed
from mqtool.amqp.unconfirmed import WINDOW_BYTES, Encoded, Route, Unconfirmed, most_similar
from mqtool.errors import NotConfirmed, Unavailable
from mqtool.message import Confirmation, Message, Receipt, new_message_ids

ROUTE = Route("logs", "info")
PERSISTENT_ROUTE = ROUTE._replace(persistent=True)


class Wire:
    """What the publisher has written, and whether it wants another channel.

    Attributes:
        busy: keep what is to run on the I/O thread in `soon` and `later`, instead of running it immediately.
        routes: the route with which each message was encoded.
    """

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.acks: list[tuple[int, bool]] = []
        self.routes: list[Route] = []
        self.reopened = 0
        self.busy = False
        self.soon: list[Callable[[], None]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.reason: str | None = None
        self.publisher = Unconfirmed(self.run, self.run_later, self.reopen, lambda: self.reason)
        self.open()

    def run(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback) if self.busy else callback()

    def run_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append((seconds, callback)) if self.busy else callback()

    def reopen(self) -> None:
        self.reopened += 1

    def open(self, *, connection_is_new: bool = False) -> None:
        self.sent, self.routes = [], []
        self.publisher.restart(self, may_lack_leaders=connection_is_new)

    def encode(self, messages: Sequence[Message], route: Route) -> Encoded:
        self.routes += [route] * len(messages)
        return Encoded(len(messages[0].body), frames=messages[0].body)

    def write(self, encoded: Iterable[Encoded], acks: Iterable[tuple[int, bool]] = ()) -> None:
        self.sent += [each.frames for each in encoded]
        self.acks += acks

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
    """For each message, a publisher returns a receipt that says whether the broker confirmed, nacked or returned the
    message. The receipts come in the order of publishing. If a message is confirmed early, its receipt waits for
    those of earlier messages.
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
    """A basic.nack with `multiple` applies to all messages up to its delivery tag, except those that the broker has
    already confirmed.
    """
    wire.publish(b"1", b"2", b"3")
    publisher.on_ack(2, multiple=False)
    publisher.on_nack(3, multiple=True)
    receipts = publisher.collect()
    assert [receipt.confirmation for receipt in receipts] == ["nacked", "confirmed", "nacked"]
    assert (receipts[0].message.exchange, receipts[0].message.routing_key) == ROUTE[:2]
    assert [receipt.sequence for receipt in receipts] == [1, 2, 3]


def test_a_returned_message_is_matched_by_its_content(wire: Wire, publisher: Unconfirmed) -> None:
    """Because a basic.return has no delivery tag, mqtool matches it to a published message by its content. If several
    messages are equal, each return applies to one of them.
    """
    wire.publish(b"1", b"same", b"same")
    for _ in range(2):
        publisher.on_return(Message(b"same", "info", ROUTE.exchange), "NO_ROUTE (312)")
    publisher.on_ack(3, multiple=True)
    assert [receipt.confirmation for receipt in publisher.collect()] == ["confirmed", "returned", "returned"]


def test_a_returned_message_with_changed_headers_is_matched_to_the_most_similar_one(
    wire: Wire, publisher: Unconfirmed
) -> None:
    """If the broker has added a header to a returned message or removed the message's BCC header, mqtool matches the
    returned message to the published one from which it differs least.
    """
    for number in range(3):
        headers = {"n": number, "BCC": ["copy"]}
        publisher.add([Message(b"same", properties={"headers": headers, "priority": None})], ROUTE, number + 1)
    headers = {"n": 1, "added-by-the-broker": True}
    publisher.on_return(Message(b"same", "info", "logs", {"headers": headers, "app_id": None}), "NO_ROUTE (312)")
    publisher.on_ack(3, multiple=True)
    assert [receipt.confirmation for receipt in publisher.collect()] == ["confirmed", "returned", "confirmed"]


def test_only_unconfirmed_messages_are_republished(wire: Wire, publisher: Unconfirmed) -> None:
    """After a reconnection, a publisher republishes only unconfirmed messages. It still reports the messages that the
    broker confirmed before the reconnection as confirmed.
    """
    wire.publish(b"1", b"2", b"3")
    publisher.on_ack(1, multiple=False)
    wire.open(connection_is_new=True)
    assert wire.sent == [b"2", b"3"]
    publisher.on_ack(2, multiple=True)
    assert wire.collected() == [(b"1", "confirmed"), (b"2", "confirmed"), (b"3", "confirmed")]


def test_a_message_nacked_right_after_a_reconnection_is_published_again(wire: Wire, publisher: Unconfirmed) -> None:
    """If the broker nacks a message right after a reconnection, the publisher publishes the message again on another
    channel, because the nack may only mean that a queue has no leader yet. The publisher does not report this nack.
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


def test_dropping_messages_that_were_neither_confirmed_nor_nacked_keeps_the_nacked_ones(
    wire: Wire, publisher: Unconfirmed
) -> None:
    """A publisher can drop the messages that the broker has neither confirmed nor nacked, for example replies that may
    have made the broker close the connection. It keeps the messages that the broker has nacked because their queue had
    no leader, and publishes these again on the next channel.
    """
    wire.open(connection_is_new=True)
    wire.publish(b"1", b"2", b"3", b"4", b"5")
    publisher.on_nack(1, multiple=False)
    assert wire.collected() == []
    publisher.on_nack(3, multiple=False)
    publisher.on_ack(5, multiple=False)
    assert [message.body for message in publisher.drop()] == [b"2", b"4"]
    assert publisher.dropped == 2
    wire.open()
    assert wire.sent == [b"1", b"3"]
    assert wire.collected() == [(b"5", "confirmed")]
    publisher.on_ack(2, multiple=True)
    assert wire.collected() == [(b"1", "confirmed"), (b"3", "confirmed")]
    assert not publisher.is_waiting


def test_a_missing_confirm_raises_not_confirmed(wire: Wire, publisher: Unconfirmed) -> None:
    """If confirms do not arrive within the timeout, a NotConfirmed error says how many messages are unconfirmed, and
    the publisher keeps all of these messages.
    """
    wire.publish(b"1", b"2")
    with pytest.raises(NotConfirmed, match="did not confirm 2 messages"):
        publisher.wait(1, confirm_timeout=0.01)
    assert len(publisher.messages) == publisher.in_flight == 2


def test_the_confirm_timeout_pauses_while_there_is_no_connection(wire: Wire, publisher: Unconfirmed) -> None:
    """Time during which there is no connection does not count towards a publisher's confirm timeout."""
    wire.publish(b"1")
    publisher.set_paused(is_paused=True)
    publisher.wait(1, confirm_timeout=0.01, at_most=0.05)
    publisher.set_paused(is_paused=False)
    with pytest.raises(NotConfirmed):
        publisher.wait(1, confirm_timeout=0.01)


def test_a_failed_connection_ends_waiting_for_confirms_but_confirmed_messages_are_reported(
    wire: Wire, publisher: Unconfirmed
) -> None:
    """If a connection fails for good while a publisher waits for confirms, waiting raises the connection's error. The
    publisher still reports the messages that the broker has confirmed.
    """
    wire.publish(b"1", b"2")
    publisher.on_ack(1, multiple=False)
    publisher.fail(Unavailable("gone"))
    with pytest.raises(Unavailable, match="gone"):
        publisher.wait(1, confirm_timeout=60)
    assert wire.collected() == [(b"1", Confirmation.CONFIRMED)]


def test_messages_confirmed_out_of_order_do_not_count_as_unconfirmed_after_an_error(
    wire: Wire, publisher: Unconfirmed
) -> None:
    """A publisher usually reports messages in the order of publishing. After an error, such as a missing confirm, it
    also reports, once, each message that was confirmed or nacked while an earlier one was still unconfirmed. After
    that, only messages that were neither confirmed nor nacked count as unconfirmed.
    """
    wire.publish(b"1", b"2", b"3", b"4")
    publisher.on_ack(2, multiple=False)
    publisher.on_nack(4, multiple=False)
    assert [message.body for message in publisher.messages] == [b"1", b"3", b"4"]
    with pytest.raises(NotConfirmed, match="did not confirm 2 messages"):
        publisher.wait(1, confirm_timeout=0)
    receipts = publisher.collect(out_of_order=True)
    assert [(each.message.body, each.confirmation, each.sequence) for each in receipts] == [
        (b"2", "confirmed", 2), (b"4", "nacked", 4),
    ]  # fmt: skip
    assert [message.body for message in publisher.messages] == [b"1", b"3"]
    publisher.on_ack(3, multiple=True)
    assert wire.collected() == [(b"1", "confirmed"), (b"3", "confirmed")]
    assert (publisher.collect(out_of_order=True), publisher.is_waiting, publisher._bytes) == ([], False, 0)


def test_after_an_error_messages_are_reported_whether_confirmed_in_or_out_of_order(
    wire: Wire, publisher: Unconfirmed
) -> None:
    """After an error, a publisher reports the messages that were confirmed in order, then those that were confirmed
    while an earlier one was still unconfirmed. The others stay unconfirmed, and can still be confirmed.
    """
    wire.publish(b"1", b"22", b"333", b"4444", b"55555")
    publisher.on_ack(1, multiple=False)
    publisher.on_ack(3, multiple=False)
    assert [message.body for message in publisher.messages] == [b"22", b"4444", b"55555"]
    receipts = publisher.collect(out_of_order=True)
    assert [(each.message.body, each.confirmation, each.reason) for each in receipts] == [
        (b"1", "confirmed", ""), (b"333", "confirmed", ""),
    ]  # fmt: skip
    assert publisher._bytes == 11
    publisher.on_ack(5, multiple=True)
    assert wire.collected() == [(b"22", "confirmed"), (b"4444", "confirmed"), (b"55555", "confirmed")]
    assert publisher._bytes == 0


def test_a_stopped_publisher_says_how_many_messages_are_unconfirmed(wire: Wire, publisher: Unconfirmed) -> None:
    """If a command is stopped, and no confirm can be expected, for example because the connection is lost, the error
    says how many messages are unconfirmed. A message that was confirmed before an earlier one does not count.
    """
    wire.publish(b"1", b"2", b"3")
    publisher.on_ack(2, multiple=False)
    wire.reason = "the connection is lost"
    with pytest.raises(NotConfirmed, match=r"^stopped with 2 messages unconfirmed: the connection is lost$"):
        publisher.wait(1, confirm_timeout=60)


def test_a_nack_is_reported_to_the_callback_at_once(wire: Wire, publisher: Unconfirmed) -> None:
    """When the broker nacks a message, the callback for refused messages gets the receipt of this message at once, even
    if an earlier message is still unconfirmed.
    """
    refused: list[Receipt] = []
    publisher.on_refused = refused.append
    wire.publish(b"1", b"2")
    publisher.on_nack(2, multiple=False)
    assert [(each.message.body, each.confirmation, each.sequence) for each in refused] == [(b"2", "nacked", 2)]


def test_dropped_messages_are_counted_until_the_count_is_reset(wire: Wire, publisher: Unconfirmed) -> None:
    """Each time that a publisher drops messages, it adds their number to the number of dropped messages. A message that
    the broker has confirmed is not dropped, and is still reported.
    """
    wire.publish(b"1", b"22")
    publisher.on_ack(1, multiple=False)
    assert [message.body for message in publisher.drop()] == [b"22"]
    assert wire.collected() == [(b"1", "confirmed")]
    wire.open()
    wire.publish(b"3", b"4")
    assert [message.body for message in publisher.drop()] == [b"3", b"4"]
    assert (publisher.dropped, publisher._bytes, publisher.is_waiting) == (3, 0, False)


def test_a_message_confirmed_out_of_order_is_not_republished(wire: Wire, publisher: Unconfirmed) -> None:
    """If the connection is lost after the broker has confirmed a message, but not an earlier one, the publisher
    republishes only the unconfirmed messages. It reports the confirmed message after the reconnection, without waiting
    for the confirm of the earlier one.
    """
    wire.publish(b"1", b"2", b"3")
    publisher.on_ack(2, multiple=False)
    wire.open()
    assert wire.sent == [b"1", b"3"]
    assert wire.collected() == [(b"2", "confirmed")]
    publisher.on_ack(2, multiple=True)
    assert wire.collected() == [(b"1", "confirmed"), (b"3", "confirmed")]
    assert not publisher.is_waiting


def test_a_publishers_window_is_limited_by_number_and_by_bytes(wire: Wire, publisher: Unconfirmed) -> None:
    """A publisher's window of unconfirmed messages is full once it contains the given number of messages or a total of
    16 MiB.
    """
    wire.publish(b"1")
    assert publisher.is_full(1)
    assert not publisher.is_full(2)
    wire.publish(bytes(17 * 1024 * 1024))
    assert publisher.is_full(1000)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the only item of a list."""
    clock = [1000.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return clock[0]

    monkeypatch.setattr(unconfirmed, "time", Time)
    return clock


def test_an_early_confirm_is_reported_only_after_those_of_earlier_messages(wire: Wire, publisher: Unconfirmed) -> None:
    """If a message is confirmed before earlier messages, the publisher no longer counts it as in flight, but reports it
    as confirmed only when the earlier messages are confirmed. It then forgets the early confirm, so that a long run
    needs little memory.
    """
    wire.publish(b"1", b"2", b"3", b"4", b"5")
    for tag in (2, 3, 5):
        publisher.on_ack(tag, multiple=False)
    assert not publisher.has_answers
    assert publisher.in_flight == 2
    publisher.on_ack(1, multiple=False)
    assert publisher.in_flight == 1
    assert wire.collected() == [(b"1", "confirmed"), (b"2", "confirmed"), (b"3", "confirmed")]
    publisher.on_ack(4, multiple=False)
    assert wire.collected() == [(b"4", "confirmed"), (b"5", "confirmed")]
    assert publisher._answered_early == set()


def test_a_nack_without_multiple_applies_only_to_its_message(wire: Wire, publisher: Unconfirmed) -> None:
    """A basic.nack without `multiple` does not apply to earlier messages, which the broker can still confirm. The
    publisher reports that the broker refused the nacked message.
    """
    wire.publish(b"1", b"2", b"3", b"4")
    publisher.on_ack(1, multiple=False)
    assert wire.collected() == [(b"1", "confirmed")]
    publisher.on_nack(4, multiple=False)
    publisher.on_ack(2, multiple=False)
    publisher.on_ack(3, multiple=False)
    receipts = publisher.collect()
    assert [(each.message.body, each.confirmation, each.reason, each.sequence) for each in receipts] == [
        (b"2", "confirmed", "", 2), (b"3", "confirmed", "", 3), (b"4", "nacked", "the broker refused it", 4),
    ]  # fmt: skip


def test_a_message_keeps_its_own_exchange_and_routing_key(wire: Wire, publisher: Unconfirmed) -> None:
    """A publisher uses its default exchange and routing key only for messages that do not name their own."""
    publisher.add([Message(b"1", "key", "exchange")], ROUTE)
    wire.publish(b"2")
    assert [(each.exchange, each.routing_key) for each in publisher.messages] == [("exchange", "key"), ("logs", "info")]
    publisher.on_nack(1, multiple=False)
    (receipt,) = publisher.collect()
    assert (receipt.message.exchange, receipt.message.routing_key) == ("exchange", "key")
    wire.open()
    assert (wire.sent, wire.routes) == ([b"2"], [ROUTE])


def test_messages_are_written_together_while_others_are_unconfirmed(wire: Wire, publisher: Unconfirmed) -> None:
    """A publisher sends the first message immediately. While that message is unconfirmed, further messages wait for 1
    ms, or until they add up to 64 KiB, and are then sent together.
    """
    wire.busy = True
    wire.publish(b"1")
    (write,) = wire.soon
    wire.publish(b"2")
    assert (len(wire.soon), wire.later) == (1, [])  # both are in the same write
    write()
    assert wire.sent == [b"1", b"2"]
    wire.publish(b"3", b"4")
    ((seconds, write_later),) = wire.later
    assert (len(wire.soon), seconds) == (1, 0.001)
    rest = bytes(65_536 - 3)
    wire.publish(rest)
    assert len(wire.soon) == 1
    wire.publish(b"5")
    assert len(wire.soon) == 2
    wire.publish(b"6")
    assert (len(wire.soon), len(wire.later)) == (2, 1)
    wire.soon[1]()
    assert wire.sent[2:] == [b"3", b"4", rest, b"5", b"6"]
    write_later()
    assert len(wire.sent) == 7
    assert set(wire.routes) == {ROUTE}


def test_messages_can_wait_for_the_next_acknowledgements(wire: Wire, publisher: Unconfirmed) -> None:
    """A message that is published with the argument `waits`, such as the reply of an RPC server, is sent together with
    the next acknowledgements, immediately before them.
    """
    wire.busy = True
    publisher.add([Message(b"1")], ROUTE, waits=True)
    assert (wire.soon, wire.later) == ([], [])
    publisher.drain([(7, True)])
    assert (wire.sent, wire.acks) == ([b"1"], [(7, True)])


def test_a_message_that_has_not_been_sent_is_published_once_after_a_reconnection(
    wire: Wire, publisher: Unconfirmed
) -> None:
    """If the connection is lost before a message has been sent, the message is sent once, on the next channel. A
    message that is published before the first channel is open is also sent once, when the channel is open.
    """
    wire.busy = True
    wire.publish(b"1")
    wire.open()
    wire.soon.pop()()
    assert wire.sent == [b"1"]
    early = Unconfirmed(wire.run, wire.run_later, wire.reopen)
    early.add([Message(b"2")], ROUTE)
    for write in wire.soon:
        write()
    assert wire.sent == [b"1"]
    early.restart(wire)
    early.on_nack(1, multiple=False)
    assert wire.sent == [b"1", b"2"]
    assert [(each.confirmation, each.sequence) for each in early.collect()] == [("nacked", 0)]
    early.wait(1, confirm_timeout=0)


def test_receipts_are_kept_over_several_reconnections(wire: Wire, publisher: Unconfirmed) -> None:
    """A publisher keeps the receipt of each message, which says whether the broker confirmed it, until the caller has
    taken the receipt, however often the channel is reopened in the meantime. New messages are sent on the new channel.
    """
    wire.publish(b"1", b"2", b"3")
    for _ in range(2):
        publisher.on_ack(1, multiple=False)
        wire.open()
    wire.publish(b"4")
    assert wire.sent == [b"3", b"4"]
    publisher.on_ack(2, multiple=True)
    assert [body for body, _ in wire.collected()] == [b"1", b"2", b"3", b"4"]


def test_a_return_never_applies_to_a_message_that_was_confirmed(wire: Wire, publisher: Unconfirmed) -> None:
    """If several published messages are equal, a basic.return from the broker applies to the first of them that is not
    confirmed yet. The publisher reports this message as returned, with the broker's reason.
    """
    wire.publish(b"same", b"same")
    publisher.on_ack(1, multiple=False)
    publisher.on_return(Message(b"same", "info", ROUTE.exchange), "NO_ROUTE (312)")
    publisher.on_ack(2, multiple=False)
    assert [(each.confirmation, each.reason) for each in publisher.collect()] == [
        ("confirmed", ""), ("returned", "NO_ROUTE (312)"),
    ]  # fmt: skip


def _message(exchange: str | None = None, key: str | None = None, **properties: object) -> Message:
    return Message(b"same", key, exchange, properties)


@pytest.mark.parametrize(
    ("returned", "published", "expected"),
    [
        (_message("e", "k"),
         [(_message("e", "x"), ROUTE), (_message("x", "k"), ROUTE), (_message("e", "k"), ROUTE)], 3),
        (_message("logs", "info"), [(_message("e", "k"), ROUTE), (_message(), ROUTE)], 2),
        (_message("logs", "info"), [(_message("e"), ROUTE), (_message(None, "k"), ROUTE)], None),
        (_message("logs", "info", delivery_mode=2), [(_message(), ROUTE), (_message(), PERSISTENT_ROUTE)], 2),
        (_message("logs", "info"), [(_message(), PERSISTENT_ROUTE), (_message(), ROUTE)], 2),
        (_message("logs", "info", delivery_mode=2, app_id="a"),
         [(_message(app_id="a"), ROUTE), (_message(app_id="a"), PERSISTENT_ROUTE)], 2),
        (_message("logs", "info", headers={"n": 1}),
         [(_message(headers={"n": 1, "x": 1}), ROUTE), (_message(headers={"n": 1, "BCC": ["copy"]}), ROUTE)], 2),
        (_message("logs", "info", headers={"x": 1}), [(_message(), ROUTE), (_message(app_id=None), ROUTE)], 1),
        (_message("logs", "info", app_id="a"), [(_message(), ROUTE), (_message(app_id="a"), ROUTE)], 2),
    ],
    ids=[
        "exchange and key", "exchange and key of the route", "no message with this key", "persistent", "transient",
        "persistent with an application", "BCC", "first of equal ones", "same application",
    ],
)  # fmt: skip
def test_a_return_is_matched_to_the_most_similar_message_with_the_same_address(
    returned: Message, published: list[tuple[Message, Route]], expected: int | None
) -> None:
    """mqtool matches a returned message to a published one with the same exchange, routing key, id and body. If there
    are several, it chooses the one whose properties and headers differ least or, if several differ equally little,
    the first of these. The delivery mode counts as a difference, but a BCC header does not.
    """
    assert most_similar(returned, ((tag, *each) for tag, each in enumerate(published, 1))) == expected


def test_waiting_for_confirms_ends_when_enough_messages_are_confirmed(wire: Wire, publisher: Unconfirmed) -> None:
    """A publisher's wait(N) blocks until fewer than N of the publisher's messages are unconfirmed. If fewer are
    unconfirmed already, it returns immediately. Confirmed messages do not count, even if the publisher has not reported
    them yet.
    """
    wire.publish(b"1", b"2", b"3")
    publisher.on_ack(2, multiple=True)
    publisher.wait(2, confirm_timeout=0)
    began = time.monotonic()
    threading.Timer(0.05, publisher.on_ack, [3], {"multiple": False}).start()
    publisher.wait(1, confirm_timeout=60)
    assert time.monotonic() - began < 30


def test_waiting_for_confirms_with_16_mib_unconfirmed_ends_when_a_message_is_confirmed(
    wire: Wire, publisher: Unconfirmed
) -> None:
    """A publisher's window is full if 16 MiB of messages are unconfirmed, however few the messages are. With a full
    window, wait() blocks until at least one message is confirmed.
    """
    wire.publish(b"1", bytes(WINDOW_BYTES - 1))
    assert publisher.is_full(1000)
    wire.publish(b"3")
    with pytest.raises(NotConfirmed):
        publisher.wait(1000, confirm_timeout=0.01)
    publisher.on_ack(1, multiple=False)
    publisher.wait(1000, confirm_timeout=0)
    assert wire.collected() == [(b"1", "confirmed")]
    assert publisher.is_full(1000)
    publisher.on_ack(2, multiple=False)
    assert len(wire.collected()) == 1
    assert not publisher.is_full(1000)
    publisher.wait(1000, confirm_timeout=0)
    publisher.on_ack(3, multiple=False)
    publisher.wait(1, confirm_timeout=0)


def test_a_stopped_command_does_not_wait_for_confirms(wire: Wire, publisher: Unconfirmed) -> None:
    """If a command is stopped, for example by SIGTERM, while messages are unconfirmed, waiting for confirms ends with
    an error that says why the command was stopped, and how many messages are unconfirmed. If no message is
    unconfirmed, waiting ends without an error.
    """
    wire.reason = "stopped by SIGTERM"
    publisher.wait(1, confirm_timeout=60)
    wire.publish(b"1")
    with pytest.raises(NotConfirmed, match=r"^stopped with 1 message unconfirmed: stopped by SIGTERM$") as error:
        publisher.wait(1, confirm_timeout=60)
    assert error.value.hint == "unconfirmed messages may or may not have arrived"


def test_the_confirm_timeout_counts_from_the_last_confirm(wire: Wire, publisher: Unconfirmed, now: list[float]) -> None:
    """Each confirm restarts a publisher's confirm timeout. If no message is unconfirmed after a confirm, the timeout
    starts when the next message is published. Publishing further messages does not extend the timeout.
    """
    wire.publish(b"1")
    publisher.on_ack(1, multiple=False)
    now[0] += 60
    wire.publish(b"2")
    publisher.wait(1, confirm_timeout=1, at_most=0)
    now[0] += 0.9
    wire.publish(b"3")
    now[0] += 0.1
    with pytest.raises(NotConfirmed, match=r"^the broker did not confirm 2 messages within 1 s$") as error:
        publisher.wait(1, confirm_timeout=1)
    assert error.value.hint == "unconfirmed messages may or may not have arrived; --confirm-timeout waits longer"
    publisher.on_ack(2, multiple=False)
    publisher.wait(1, confirm_timeout=1, at_most=0)
    now[0] += 1
    with pytest.raises(NotConfirmed, match="did not confirm 1 message within 1 s"):
        publisher.wait(1, confirm_timeout=1)
    wire.open()
    publisher.wait(1, confirm_timeout=1, at_most=0)
    now[0] += 1
    with pytest.raises(NotConfirmed):
        publisher.wait(1, confirm_timeout=1)


def test_waiting_for_less_than_the_confirm_timeout_raises_no_error(wire: Wire, publisher: Unconfirmed) -> None:
    """If the caller waits for confirms for less time than the confirm timeout, waiting ends without an error, even if a
    message is still unconfirmed.
    """
    wire.publish(b"1")
    publisher.wait(1, confirm_timeout=0.5, at_most=0.02)


def test_nacks_are_final_once_queues_have_had_time_to_elect_leaders(
    wire: Wire, publisher: Unconfirmed, now: list[float]
) -> None:
    """In the first 20 s after a reconnection, a publisher republishes a nacked message after 0.25 s, each time on
    another channel. If the connection is lost during this time, the publisher waits until the connection is open again.
    After these 20 s, a nack is final.
    """
    wire.open(connection_is_new=True)
    for attempt in range(2):
        wire.publish(*([b"1"] if attempt == 0 else []))
        publisher.on_nack(1, multiple=False)
        assert wire.collected() == []
        assert publisher.is_full(1)
        assert publisher.is_waiting
        now[0] += 0.24
        publisher.wait(1, confirm_timeout=60, at_most=0)
        assert wire.reopened == attempt
        now[0] += 0.01
        publisher.set_paused(is_paused=True)
        publisher.wait(1, confirm_timeout=60, at_most=0)
        assert wire.reopened == attempt
        publisher.set_paused(is_paused=False)
        for _ in range(2):
            publisher.wait(1, confirm_timeout=60, at_most=0)
            assert wire.reopened == attempt + 1
        wire.open()
    now[0] += 19.5
    publisher.on_nack(1, multiple=False)
    assert wire.collected() == [(b"1", "nacked")]


def test_a_nacked_message_is_published_again_while_the_caller_waits(
    wire: Wire, publisher: Unconfirmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a message is nacked right after a reconnection while the caller waits for its confirm, the publisher publishes
    it again. The caller gets the confirm as soon as the broker accepts the message, long before the confirm timeout.
    """

    def accept() -> None:
        wire.open()
        publisher.on_ack(1, multiple=False)

    monkeypatch.setattr(publisher, "_reopen", lambda: threading.Timer(0, accept).start())
    wire.open(connection_is_new=True)
    wire.publish(b"1")
    began = time.monotonic()
    threading.Timer(0.05, publisher.on_nack, [1], {"multiple": False}).start()
    receipts = list[tuple[bytes, str]]()
    while publisher.is_waiting:
        publisher.wait(1, confirm_timeout=60)
        receipts += wire.collected()
    assert time.monotonic() - began < 30
    assert receipts == [(b"1", "confirmed")]


def test_message_ids_are_random_uuids() -> None:
    """The message ids that mqtool generates are unique UUIDs of version 4, which are random."""
    ids = [*map(uuid.UUID, new_message_ids(1000))]
    assert {(each.version, each.variant) for each in ids} == {(4, uuid.RFC_4122)}
    assert len({*ids}) == len(ids)
