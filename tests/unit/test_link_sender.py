"""The AMQP 1.0 sender, its links and the broker's outcomes, with plain callables in place of a connection."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mqtool.amqp10 import link_sender
from mqtool.amqp10.link_sender import WINDOW, OutgoingTransfer, Sender, SendingLink, addressed, is_unavailable
from mqtool.codecs import sections
from mqtool.codecs.amqp10_frames import (
    Accepted,
    Attach,
    Disposition,
    Error,
    Flow,
    Modified,
    Rejected,
    Released,
    Source,
    Target,
)
from mqtool.codecs.amqp10_values import Symbol
from mqtool.errors import BadData, MqtoolError, NotConfirmed, StoppedWaiting, Unavailable
from mqtool.message import Confirmation, InBatches, Message

QUEUE = "/queues/q"


class Broker:
    """A connection to a broker that grants credit, and reports outcomes when the sender waits for them.

    Attributes:
        now: the time in seconds.
        room: how many more messages the session may send.
        credit: the credit of a link that is attached.
        largest: the link's max-message-size.
        sent: the messages sent so far, in order.
        steps: what happens when the sender waits, one step for each time.
        waits: how long the sender waited, each time.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.failure: MqtoolError | None = None
        self.stopping = False
        self.confirm_timeout = 5.0
        self.hopeless: str | None = None
        self.now = self.last_outcome = 1000.0
        self.room = self.credit = 1_000_000
        self.largest = 0
        self.links: dict[str | None, SendingLink] = {}
        self.sent: list[OutgoingTransfer] = []
        self.steps: list[Callable[[], None]] = []
        self.waits: list[float | None] = []

    def monotonic(self) -> float:
        return self.now

    def sending_link(self, address: str | None) -> SendingLink:
        if address not in self.links:
            link = self.links[address] = SendingLink(f"link {len(self.links)}", address)
            link.attach(len(self.links))
            link.attached(Attach(link.name, link.handle, True, target=Target(address), max_message_size=self.largest))
            link.flow(Flow(0, 0, 0, 0, link.handle, 0, self.credit))
        return self.links[address]

    def transfers(self, handle: int, outgoing: OutgoingTransfer) -> list[bytes] | None:
        assert handle == self.links[outgoing.address].handle
        if not self.room:
            return None
        self.room -= 1
        self.sent.append(outgoing)
        return [outgoing.data]

    def pump(self) -> None:
        for link in self.links.values():
            link.pump(self)

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def patience(self) -> float:
        return self.last_outcome + self.confirm_timeout - self.now

    def wait(self, done: Callable[[], bool], timeout: float | None) -> None:
        self.waits.append(timeout)
        if done():
            return
        if self.steps:
            self.steps.pop(0)()
        else:
            assert timeout is not None, "the sender waits forever"
            self.now += timeout

    def decide(self, *bodies: bytes, state: object = Accepted()) -> None:
        """Report the outcome of sent messages; of all of them if none is named."""
        for outgoing in self.sent:
            if outgoing.confirmation is None and (not bodies or outgoing.message.body in bodies):
                outgoing.decide(state)

    @property
    def bodies(self) -> list[bytes]:
        return [outgoing.message.body for outgoing in self.sent]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(link_sender, "time", broker)
    return broker


def messages(*bodies: bytes) -> Iterator[Message]:
    return (Message(body) for body in bodies)


def test_responses_to_amqp_1_0_messages_are_yielded_in_the_order_of_publishing(broker: Broker) -> None:
    """An AMQP 1.0 sender yields a receipt for each message: the message, its number, and the broker's response. It
    yields the receipts in the order of publishing. If the broker responds to a later message first, the sender yields
    the receipt of this message only after those of all earlier messages.
    """
    broker.steps = [lambda: broker.decide(b"2"), lambda: broker.decide(b"1", state=Released()), broker.decide]
    sender = Sender(broker, QUEUE, persistent=False)
    receipts = [*sender.send(messages(b"1", b"2", b"3"))]
    assert [(each.message.body, each.confirmation, each.sequence) for each in receipts] == [
        (b"1", "returned", 1), (b"2", "confirmed", 2), (b"3", "confirmed", 3),
    ]  # fmt: skip
    assert broker.bodies == [b"1", b"2", b"3"]
    assert sender.unconfirmed == []


def rejected(condition: str, description: str | None = None, **info: object) -> Rejected:
    return Rejected(Error(Symbol(condition), description, {Symbol(name): value for name, value in info.items()}))


@pytest.mark.parametrize(
    ("state", "confirmation", "reason"),
    [
        (Accepted(), "confirmed", ""),
        (Released(), "returned", "no queue is bound for it (released)"),
        (Modified(), "nacked", "the broker did not take it (modified)"),
        (Rejected(), "nacked", "the broker refused it (rejected)"),
        (rejected("c", "text", queue="q", reason="maxlen"), "nacked", "queue 'q' refused it: maxlen"),
        (rejected("c", "text", queue="q"), "nacked", "queue 'q' refused it: rejected"),
        (rejected("c", "text", reason="maxlen"), "nacked", "text"),
        (rejected("amqp:precondition-failed"), "nacked", "amqp:precondition-failed"),
        (Rejected(Error(Symbol("c"), "text")), "nacked", "text"),
    ],
    ids=["accepted", "released", "modified", "rejected", "queue", "no reason", "no queue", "condition", "no info"],
)
def test_the_receipt_of_a_message_contains_the_brokers_response_and_the_reason(
    broker: Broker, state: object, confirmation: str, reason: str
) -> None:
    """An AMQP 1.0 sender yields a receipt with the broker's response to a message: `confirmed` if the broker accepted
    the message, `returned` if the broker released it, and `nacked` after any other outcome. If the outcome names the
    queue that rejected the message, the receipt's reason names this queue. Otherwise, the reason is the description or
    the condition of the broker's error, if any.
    """
    broker.steps = [lambda: broker.decide(state=state)]
    [receipt] = Sender(broker, QUEUE, persistent=False).send([Message(b"")])
    assert (receipt.confirmation, receipt.reason) == (confirmation, reason)


def test_the_receipt_of_a_message_that_was_not_accepted_contains_the_exchange_and_routing_key(broker: Broker) -> None:
    """An AMQP 1.0 sender yields a receipt for each message: the message and the broker's response. If the broker did
    not accept the message, the message in the receipt has the exchange and the routing key with which it was published,
    so that it can be published again. If the broker accepted it, the receipt contains the message that the caller
    passed to send(), unchanged.
    """
    given = Message(b"1"), Message(b"2")
    broker.steps = [lambda: broker.decide(b"1", state=Rejected()), broker.decide]
    receipts = [*Sender(broker, "/exchanges/x/k", persistent=False).send(iter(given))]
    assert (receipts[0].message.exchange, receipts[0].message.routing_key) == ("x", "k")
    assert receipts[1].message is given[1]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (rejected("c", reason="unavailable"), True),
        (Rejected(), True),
        (rejected("c", reason="maxlen"), False),
        (Rejected(Error(Symbol("c"))), False),
        (Released(), False),
        (Accepted(), False),
    ],
    ids=["unavailable", "no error", "full", "no info", "released", "accepted"],
)
def test_a_rejection_without_an_error_is_treated_as_a_rejection_by_an_unavailable_queue(
    state: object, *, expected: bool
) -> None:
    """If the broker rejects an AMQP 1.0 message with the reason `unavailable`, or without any error, mqtool assumes
    that the message's queue is unavailable. It does not assume this after any other outcome.
    """
    assert is_unavailable(state) is expected


@pytest.mark.parametrize(
    ("message", "to", "expected"),
    [
        (Message(b""), "/exchanges/x/k", ("x", "k")),
        (Message(b"", "own"), "/exchanges/x/k", ("x", "own")),
        (Message(b"", None, "own"), "/exchanges/x/k", ("own", "k")),
        (Message(b"", "", ""), "/exchanges/x/k", ("", "")),
        (Message(b""), QUEUE, ("", "q")),
    ],
    ids=["none", "key", "exchange", "empty", "queue"],
)
def test_a_message_keeps_its_own_exchange_and_routing_key_over_amqp_1_0(
    broker: Broker, message: Message, to: str, expected: tuple[str, str]
) -> None:
    """Over AMQP 1.0, a message keeps the exchange and the routing key that it has. If it lacks one of them or both,
    what is missing is taken from the sender's address.
    """
    for found in (addressed(message, to), Sender(broker, to, persistent=False).addressed(message)):
        assert found == replace(message, exchange=expected[0], routing_key=expected[1])
    assert Sender(broker, None, persistent=False).addressed(Message(b"")) == Message(b"", "", "")


@pytest.mark.parametrize(
    ("address", "exchange", "key", "link", "to"),
    [
        (QUEUE, None, None, QUEUE, None),
        (QUEUE, "", "q", QUEUE, None),
        (QUEUE, None, "other", None, "/queues/other"),
        (QUEUE, "x", None, None, "/exchanges/x/q"),
        ("/exchanges/x/k", "x", "k", "/exchanges/x/k", None),
        ("/exchanges/x/k", None, "own", None, "/exchanges/x/own"),
        ("/exchanges/x/k", None, "", None, "/exchanges/x"),
        ("/exchanges/x/k", "y", "k", None, "/exchanges/y/k"),
        ("/exchanges/x/k", "y", None, None, "/exchanges/y/k"),
        ("/exchanges/x/k", "", "k", None, "/queues/k"),
        (None, None, "q", None, "/queues/q"),
        (None, "x", "k", None, "/exchanges/x/k"),
        (None, None, None, None, "/queues/"),
        (None, "", "", None, "/queues/"),
    ],
)
def test_a_message_with_its_own_address_is_sent_over_the_link_without_an_address(
    broker: Broker, address: str | None, exchange: str | None, key: str | None, link: str | None, to: str | None
) -> None:
    """An AMQP 1.0 sender's address names an exchange and a routing key. A message that names no other exchange or
    routing key is sent over the link to this address. Any other message is sent over a link without an address, and its
    property `to` contains its own address.
    """
    message = Message(b"body", key, exchange)
    broker.steps = [lambda: broker.decide(state=Released())]
    [receipt] = Sender(broker, address, persistent=True).send([message])
    [outgoing] = broker.sent
    assert outgoing.address == link
    assert outgoing.data == sections.encode(message, to=to, persistent=True)
    expected = sections.exchange_and_key(to or address)
    assert outgoing.to == (to or address)
    assert (receipt.message.exchange, receipt.message.routing_key) == (
        expected[0] if exchange is None else exchange,
        expected[1] if key is None else key,
    )


@pytest.mark.parametrize("persistent", [True, False])
def test_messages_are_durable_if_the_sender_is_persistent(broker: Broker, *, persistent: bool) -> None:
    """An AMQP 1.0 sender makes messages without a delivery mode durable only if it was created with persistent=True."""
    Sender(broker, QUEUE, persistent=persistent).add(Message(b"body"))
    broker.pump()
    assert broker.sent[0].data == sections.encode(Message(b"body"), persistent=persistent)


def test_a_message_that_is_larger_than_the_broker_accepts_is_not_sent(broker: Broker) -> None:
    """If an AMQP 1.0 message is larger than the link's max-message-size, mqtool does not send it, and raises an error
    that names both sizes and the broker's setting. A message of exactly this size is sent.
    """
    message = Message(bytes(2000))
    broker.largest = len(sections.encode(message))
    sender = Sender(broker, QUEUE, persistent=False)
    sender.add(message)
    broker.pump()
    assert len(broker.sent) == 1
    words = r"^the message is 2,009 bytes long; the broker takes up to 2,008$"
    with pytest.raises(BadData, match=words) as error:
        sender.add(Message(bytes(2001)))
    assert error.value.hint == "on RabbitMQ, max_message_size in rabbitmq.conf sets the limit"
    assert sender.unconfirmed == [addressed(message, QUEUE)]
    broker.largest = 1
    with pytest.raises(BadData):
        Sender(broker, "/queues/other", persistent=False).add(Message(b""))


def test_an_error_in_the_input_is_raised_after_earlier_amqp_1_0_messages_have_their_outcomes(broker: Broker) -> None:
    """If reading the input raises an error, an AMQP 1.0 sender raises this error once all earlier messages have an
    outcome. A later call of send() does not raise the error again.
    """

    def source() -> Iterator[Message]:
        yield from messages(b"1", b"2")
        raise BadData("line 3 is not JSON")

    broker.steps = [broker.decide, broker.decide]
    sender = Sender(broker, QUEUE, persistent=False)
    receipts = sender.send(source())
    assert [next(receipts).message.body for _ in range(2)] == [b"1", b"2"]
    with pytest.raises(BadData, match="line 3 is not JSON"):
        next(receipts)
    assert [each.sequence for each in sender.send(messages(b"3"))] == [1]


def test_a_batch_is_sent_up_to_an_invalid_message_over_amqp_1_0(broker: Broker) -> None:
    """If a batch contains an invalid message, an AMQP 1.0 sender sends the messages before it, and removes these from
    the batch. The invalid message and all later ones stay in the batch, so that `send --failed-to` can write them to a
    file.
    """
    batch = [Message(b"1"), Message(b"2"), Message(b"3", properties={"cluster_id": "c"}), Message(b"4")]

    class Source(InBatches):
        def batches(self) -> Iterator[list[Message]]:
            yield batch

    broker.steps = [broker.decide]
    receipts = Sender(broker, QUEUE, persistent=False).send(Source())  # type: ignore[arg-type]
    assert [next(receipts).message.body for _ in range(2)] == [b"1", b"2"]
    with pytest.raises(BadData, match="cluster-id"):
        next(receipts)
    assert [message.body for message in batch] == [b"3", b"4"]


def test_send_yields_the_brokers_responses_before_the_error_of_a_connection_that_is_lost_for_good(
    broker: Broker,
) -> None:
    """If the connection of an AMQP 1.0 sender is lost for good, send() first yields a receipt for each message to which
    the broker has responded, and then raises the connection's error. The sender's attribute `unconfirmed` contains the
    other messages.
    """

    def fail() -> None:
        broker.decide(b"1")
        broker.failure = Unavailable("gone")

    broker.steps = [fail]
    sender = Sender(broker, QUEUE, persistent=False)
    receipts = sender.send(messages(b"1", b"2"))
    assert next(receipts).message.body == b"1"
    with pytest.raises(Unavailable, match="gone"):
        next(receipts)
    assert sender.unconfirmed == [Message(b"2", "q", "")]


def test_a_sender_without_input_notices_that_its_connection_is_lost_for_good(broker: Broker) -> None:
    """If the connection of an AMQP 1.0 sender is lost for good while there is no input and the broker has responded to
    all messages, send() raises the connection's error when it next looks for input.
    """

    def source() -> Iterator[Message | None]:
        yield Message(b"1")
        yield None
        yield None
        broker.failure = Unavailable("gone")
        yield None
        raise AssertionError("it still looks for input")

    broker.steps = [broker.decide]
    receipts = Sender(broker, QUEUE, persistent=False).send(source())
    assert next(receipts).message.body == b"1"
    with pytest.raises(Unavailable, match="gone"):
        next(receipts)


def test_send_yields_responses_out_of_order_before_an_error(broker: Broker) -> None:
    """If the connection of an AMQP 1.0 sender is lost for good after the broker has accepted a message, but not an
    earlier one, send() yields the receipt of the accepted message before it raises the error.
    """

    def fail() -> None:
        broker.decide(b"2")
        broker.failure = Unavailable("gone")

    broker.steps = [fail]
    sender = Sender(broker, QUEUE, persistent=False)
    receipts = sender.send(messages(b"1", b"2"))
    assert next(receipts).message.body == b"2"
    with pytest.raises(Unavailable, match="gone"):
        next(receipts)
    assert sender.unconfirmed == [Message(b"1", "q", "")]


def test_a_sender_reports_a_rejected_or_released_message_immediately(broker: Broker) -> None:
    """When the broker rejects or releases a message, an AMQP 1.0 sender immediately calls its function on_refused
    with a receipt that contains the outcome. It does not call this function for a message that the broker accepts.
    """
    refused = list[tuple[bytes, str]]()
    sender = Sender(broker, QUEUE, persistent=False)
    sender.on_refused = lambda receipt: refused.append((receipt.message.body, receipt.confirmation))

    def decide() -> None:
        broker.decide(b"3", state=Released())
        broker.decide(b"2", state=Rejected(None))
        broker.decide(b"1")
        assert refused == [(b"3", "returned"), (b"2", "nacked")]

    broker.steps = [decide]
    assert len([*sender.send(messages(b"1", b"2", b"3"))]) == 3
    assert len(refused) == 2


def test_a_message_that_the_broker_settles_without_an_outcome_has_the_default_outcome() -> None:
    """If the broker settles an AMQP 1.0 message without an outcome, the message has the default outcome of the link's
    source, if the source has one. Before the message is settled, it has no outcome.
    """
    link = SendingLink("link", QUEUE)
    link.attached(Attach("link", 0, True, source=Source(default_outcome=Released()), target=Target(QUEUE)))
    assert link.outcome(Disposition(True, 0, settled=True)) == Released()
    assert link.outcome(Disposition(True, 0, settled=False)) is None
    assert link.outcome(Disposition(True, 0, settled=True, state=Accepted())) == Accepted()
    link.attached(Attach("link", 0, True, target=Target(QUEUE)))
    assert link.outcome(Disposition(True, 0, settled=True)) is None


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Message(b"1", "\ud800"), "a name, a key or a header"),
        (Message(b"1", properties={"headers": {"a": "\ud800"}}), "the header 'a'"),
        (Message(b"1", properties={"headers": {"x-a": "\ud800"}}), "the header 'x-a'"),
    ],
    ids=["key", "header", "annotation"],
)
def test_a_key_or_header_that_is_not_utf_8_cannot_be_sent_over_amqp_1_0(
    broker: Broker, message: Message, words: str
) -> None:
    """Sending a message with a routing key or a header that is not valid UTF-8 over AMQP 1.0 raises BadData. The hint
    says that only a message's body can contain arbitrary bytes.
    """
    with pytest.raises(BadData, match=rf"^{words} is not valid UTF-8$") as raised:
        [*Sender(broker, QUEUE, persistent=False).send(iter([message]))]
    assert raised.value.hint == "only a message's body may be any bytes"


def test_send_raises_the_connections_error_immediately_if_a_link_cannot_be_attached(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an AMQP 1.0 link cannot be attached because the connection is lost for good, send() raises the connection's
    error immediately, without waiting for the outcomes of earlier messages.
    """

    def lost(_: str | None) -> SendingLink:
        raise broker.failure or AssertionError

    sender = Sender(broker, QUEUE, persistent=False)
    sender.add(Message(b"1"))
    broker.pump()
    broker.failure = Unavailable("gone")
    monkeypatch.setattr(broker, "sending_link", lost)
    with pytest.raises(Unavailable, match="gone"):
        next(sender.send(messages(b"2")))
    assert broker.waits == []


@pytest.mark.parametrize("window", [1, 3])
def test_a_sender_keeps_to_its_window(broker: Broker, window: int) -> None:
    """An AMQP 1.0 sender never has more messages without an outcome than its window allows. With a window of 1, the
    sender waits for the outcome of each message before it sends the next one.
    """
    unconfirmed = list[int]()

    def decide() -> None:
        unconfirmed.append(sum(each.confirmation is None for each in broker.sent))
        broker.decide(next(each.message.body for each in broker.sent if each.confirmation is None))

    broker.steps = [decide] * 7
    receipts = [
        *Sender(broker, QUEUE, persistent=False).send(messages(*(b"%d" % number for number in range(7))), window)
    ]
    assert len(receipts) == 7
    assert unconfirmed[0] == max(unconfirmed) == window


def test_a_sender_keeps_to_a_window_of_16_mib(broker: Broker) -> None:
    """Once the messages of an AMQP 1.0 sender that have no outcome yet have a total size of 16 MiB, the sender waits
    before it sends more. It continues once an outcome has brought the total below 16 MiB.
    """
    sent_before = list[int]()

    def decide() -> None:
        sent_before.append(len(broker.sent))
        broker.decide(next(each.message.body for each in broker.sent if each.confirmation is None))

    broker.steps = [decide] * 4
    sizes = (8 << 20, (8 << 20) - 1, 1, 2)
    assert len([*Sender(broker, QUEUE, persistent=False).send(messages(*map(bytes, sizes)))]) == 4
    assert sent_before == [3, 4, 4, 4]


def test_responses_of_the_broker_are_yielded_while_there_is_no_input(broker: Broker) -> None:
    """While there is no input, an AMQP 1.0 sender waits for the broker's responses for up to 50 ms at a time. When it
    finds no input for the first time, it does not wait, because the next message may arrive at any moment. It yields
    a receipt for each message with a response, and then looks for input again.
    """
    looked = list[float]()

    def source() -> Iterator[Message | None]:
        yield Message(b"1")
        for _ in range(4):
            looked.append(broker.now)
            yield None
        yield Message(b"2")

    def decide() -> None:
        broker.now += 0.01
        broker.decide(b"1")

    sender = Sender(broker, QUEUE, persistent=False)
    receipts = sender.send(source())
    broker.steps = [lambda: None, decide]
    assert next(receipts).message.body == b"1"
    assert [round(at - 1000, 6) for at in looked] == [0, 0]
    assert [round(each or 0, 6) for each in broker.waits] == [0.05, 0.05]
    broker.steps = []
    broker.waits.clear()
    with pytest.raises(NotConfirmed):
        next(receipts)
    assert [round(at - 1000, 6) for at in looked] == [0, 0, 0.01, 0.01]


def test_a_missing_outcome_raises_not_confirmed(broker: Broker) -> None:
    """If the broker does not send the outcome of an AMQP 1.0 message within the confirm timeout, send() first yields
    the earlier messages with their outcomes, and then raises NotConfirmed. The error says how many messages are
    unconfirmed, and its hint names the option for a longer timeout.
    """
    broker.steps = [lambda: broker.decide(b"1"), lambda: setattr(broker, "now", broker.now + 2)]
    broker.confirm_timeout = 2.5
    sender = Sender(broker, QUEUE, persistent=False)
    receipts = sender.send(messages(b"1", b"2"))
    next(receipts)
    with pytest.raises(NotConfirmed, match=r"^the broker did not confirm 1 message within 2.5 s$") as error:
        next(receipts)
    assert error.value.hint == "unconfirmed messages may or may not have arrived; --confirm-timeout waits longer"
    assert broker.now == 1002.5
    for _ in range(1233):
        sender.add(Message(b""))
    with pytest.raises(NotConfirmed, match=r"^the broker did not confirm 1,234 messages within 2.5 s$"):
        sender.settle()


def test_a_sender_can_be_used_again_after_a_missing_outcome(broker: Broker) -> None:
    """If the outcome of an AMQP 1.0 message does not arrive in time, send() raises an error. If the outcome arrives
    later, the next call of send() yields this message with its outcome first, and then sends further messages.
    """
    sender = Sender(broker, QUEUE, persistent=False)
    with pytest.raises(NotConfirmed):
        [*sender.send(messages(b"1", b"2"), window=1)]
    broker.decide()
    broker.last_outcome = broker.now
    broker.steps = [broker.decide]
    assert [each.message.body for each in sender.send(messages(b"3"), window=1)] == [b"1", b"3"]


def test_a_stopped_sender_does_not_wait_for_outcomes_that_cannot_arrive(broker: Broker) -> None:
    """If a command is stopped while AMQP 1.0 messages are unconfirmed and their outcomes cannot arrive, for example
    because the connection is lost, send() raises NotConfirmed. The error says why the outcomes cannot arrive, and how
    many messages are unconfirmed.
    """
    broker.hopeless = "the connection is lost"
    words = r"^stopped with 2 messages unconfirmed: the connection is lost$"
    with pytest.raises(NotConfirmed, match=words) as error:
        [*Sender(broker, QUEUE, persistent=False).send(messages(b"1", b"2"))]
    assert error.value.hint == "unconfirmed messages may or may not have arrived"
    assert broker.waits == []


def test_a_sender_that_is_stopped_while_it_waits_ends_immediately_if_the_broker_accepts_no_messages(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a command is stopped while an AMQP 1.0 sender is waiting for outcomes and the broker accepts no messages,
    send() raises NotConfirmed immediately, instead of waiting for the confirm timeout.
    """

    def wait(done: Callable[[], bool], timeout: float | None) -> None:
        assert not done()
        broker.hopeless = "the broker takes no messages"
        if not done():
            broker.now += timeout or 0

    monkeypatch.setattr(broker, "wait", wait)
    with pytest.raises(NotConfirmed, match=r"^stopped with 1 message unconfirmed: the broker takes no messages$"):
        [*Sender(broker, QUEUE, persistent=False).send(messages(b"1"))]
    assert broker.now == 1000.0


def test_flush_waits_until_messages_are_sent_and_settle_waits_for_their_outcomes(broker: Broker) -> None:
    """An AMQP 1.0 sender's flush() returns once all messages are sent, and does not wait for their outcomes. settle()
    returns once every message has an outcome. If a message cannot be sent, flush() raises NotConfirmed once the broker
    has reported no outcome for the confirm timeout. If the command is stopped while the broker accepts no messages,
    flush() raises NotConfirmed if a message that was sent has no outcome yet, and StoppedWaiting otherwise.
    """
    broker.credit = 1
    sender = Sender(broker, None, persistent=False)
    sender.add(Message(b"1", "q"))
    sender.add(Message(b"2", "q"))

    def grant() -> None:
        broker.decide(b"1")
        broker.links[None].flow(Flow(0, 0, 0, 0, 1, 1, 1))
        broker.pump()

    broker.steps = [grant]
    sender.flush()
    assert broker.bodies == [b"1", b"2"]
    assert len(broker.waits) == 1
    assert [outgoing.message.body for outgoing in sender._outstanding] == [b"2"]
    sender.add(Message(b"3", "q"))
    broker.links[None].flow(Flow(0, 0, 0, 0, 1, 2, 1))
    broker.steps = [lambda: broker.decide(b"2"), lambda: broker.decide(b"3")]
    sender.settle()
    assert broker.steps == []
    assert sender.unconfirmed == []
    assert sender._bytes == 0
    sender.add(Message(b"4", "q"))
    with pytest.raises(NotConfirmed, match=r"^the broker did not confirm 1 message within 5 s$"):
        sender.flush()
    broker.hopeless = "the broker takes no messages"
    with pytest.raises(StoppedWaiting, match=r"^stopped: the broker takes no messages$"):
        sender.flush()
    broker.links[None].flow(Flow(0, 0, 0, 0, 1, 3, 1))
    broker.pump()
    sender.add(Message(b"5", "q"))
    with pytest.raises(NotConfirmed, match=r"^stopped with 1 message unconfirmed: the broker takes no messages$"):
        sender.flush()


def test_messages_of_a_list_are_sent_in_batches_of_256(broker: Broker) -> None:
    """With the default window, an AMQP 1.0 sender sends the messages of a list in batches of 256. An input that
    already consists of batches is sent in these batches. If the window is smaller, or the input is an iterator of
    single messages, the sender sends one message at a time.
    """
    listed: list[Message | None] = [Message(b"%d" % number) for number in range(600)]
    listed[5] = None
    assert [len(batch) for batch in link_sender._batches(listed, WINDOW)] == [255, 256, 88]
    assert [len(batch) for batch in link_sender._batches(listed[:7], 5)] == [1] * 5 + [0, 1]
    assert [len(batch) for batch in link_sender._batches(iter(listed[:7]), WINDOW)] == [1] * 5 + [0, 1]
    broker.steps = [broker.decide] * 3
    receipts = [*Sender(broker, QUEUE, persistent=False).send(listed)]
    assert [each.message for each in receipts] == [each for each in listed if each is not None]
    assert [each.sequence for each in receipts] == [*range(1, 600)]

    class Source(InBatches):
        def batches(self) -> Iterator[list[Message]]:
            return iter([[Message(b"a"), Message(b"b")], []])

        def __iter__(self) -> Iterator[Message]:
            return messages(b"a", b"b")

    source: Any = Source()
    assert [len(batch) for batch in link_sender._batches(source, WINDOW)] == [2, 0]
    assert [len(batch) for batch in link_sender._batches(source, 5)] == [1, 1]


def test_a_sending_link_is_attached_as_a_sender_of_unsettled_messages() -> None:
    """An AMQP 1.0 sending link attaches as a sender to its address, with the mode `unsettled` and an initial delivery
    count of 0. After a reconnection, the link attaches again, without the credit that it had before.
    """
    link = SendingLink("name", QUEUE)
    assert (link.is_attached, link.credit, link.largest, link.is_kept) == (False, 0, 0, True)
    expected = Attach(
        "name", 3, False, snd_settle_mode=0, source=Source(), target=Target(QUEUE), initial_delivery_count=0
    )
    assert link.attach(3) == expected
    assert link.attached(Attach("name", 0, True, target=Target(QUEUE), max_message_size=500))
    assert (link.is_attached, link.largest) == (True, 500)
    link.flow(Flow(0, 0, 0, 0, 3, 0, 9))
    assert link.attach(4) == expected._replace(handle=4)
    assert (link.handle, link.is_attached, link.credit) == (4, False, 0)
    assert not link.attached(Attach("name", 0, True))
    assert (link.is_attached, link.largest) == (False, 0)
    assert link.is_for(True)
    assert not link.is_for(False)
    link.take(None, b"", settled=False, more=False)


def test_a_sender_never_sends_more_messages_than_it_has_credit_for(broker: Broker) -> None:
    """An AMQP 1.0 sending link sends its messages in order, and only while it has credit. If the broker grants credit
    before it has received all messages, those on their way use part of this credit. While the link is not attached, or
    the broker's incoming window is full, it sends nothing.
    """
    broker.credit = 0
    link = broker.sending_link(QUEUE)
    sender = Sender(broker, QUEUE, persistent=False)
    for number in range(9):
        sender.add(Message(b"%d" % number))
    assert link.pump(broker) == []
    link.flow(Flow(0, 0, 0, 0, 1, 0, 2))
    assert link.pump(broker) == [outgoing.data for outgoing in broker.sent]
    assert broker.bodies == [b"0", b"1"]
    link.flow(Flow(0, 0, 0, 0, 1, 1, 2))  # sent before the broker got the second message
    assert link.credit == 1
    link.pump(broker)
    assert broker.bodies == [b"0", b"1", b"2"]
    link.flow(Flow(0, 0, 0, 0, 1, 3, 4))
    broker.room = 1
    link.pump(broker)
    assert (broker.bodies[3:], link.credit) == ([b"3"], 3)
    broker.room, link.is_attached = 9, False
    link.pump(broker)
    assert len(broker.sent) == 4
    link.attach(1)
    link.attached(Attach("", 0, True, target=Target(QUEUE)))
    link.flow(Flow(0, 0, 0, 0, 1, None, 1))  # from here on, the delivery count starts at 0 again
    link.pump(broker)
    assert broker.bodies[4:] == [b"4"]
    link.flow(Flow(0, 0, 0, 0, 1, 1, None))
    assert link.credit == 0
    link.flow(Flow(0, 0, 0, 0, 1, 1, 9))
    link.pump(broker)
    assert broker.bodies == [b"%d" % number for number in range(9)]
    assert link.pump(broker) == []
    assert [each.confirmation for each in broker.sent] == [None] * 9
    broker.decide(state=Accepted())
    assert {each.confirmation for each in broker.sent} == {Confirmation.CONFIRMED}
