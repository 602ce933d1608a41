"""An AMQP 1.0 session and its links: windows, ids, outcomes and reconnections, with frames in place of a socket."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mqtool import silence
from mqtool.amqp import Receiving, parse_addresses
from mqtool.amqp10 import link_connection, reopening_transport
from mqtool.amqp10.link_connection import LinkConnection, new_name
from mqtool.amqp10.link_receiver import Receiver
from mqtool.amqp10.link_sender import Sender
from mqtool.amqp10.refusals import ClosedByBroker, Lost
from mqtool.codecs import sections
from mqtool.codecs.amqp10_frames import (
    Accepted,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Error,
    Flow,
    Received,
    Rejected,
    Released,
    Source,
    Target,
    Transfer,
    decode_performative,
    frame,
)
from mqtool.codecs.amqp10_values import Symbol
from mqtool.errors import NotConfirmed, NotFound, StoppedWaiting, Unavailable
from mqtool.message import Message

QUEUE, OTHER = "/queues/q", "/queues/other"
UNAVAILABLE = Rejected(Error(Symbol("amqp:precondition-failed"), "no leader", {Symbol("reason"): "unavailable"}))


class Broker:
    """The broker at the other end of the session, in place of a Transport.

    Attributes:
        now: the time in seconds.
        received: the performatives that the broker has received, without Begin and Attach.
        payloads: the payloads of the transfers.
        attached: the Attach frames that the broker has received.
        refuses: the addresses whose links the broker refuses.
        window: how many transfers the broker accepts.
        handles: the broker's handle of each link, by name.
        default_outcome: the default outcome of each link's source.
    """

    frame_max = 512
    received_at = 0.0

    def __init__(self) -> None:
        self.properties = {"version": "4.1.0"}
        self.now = 1000.0
        self.begun: list[Begin] = []
        self.received: list[Any] = []
        self.payloads: list[bytes] = []
        self.attached: list[Attach] = []
        self.refuses: set[str | None] = set()
        self.window = 100
        self.handles: dict[str, int] = {}
        self.default_outcome: Any = None
        self.bodies: list[bytes] = []
        self.wakes = 0

    def monotonic(self) -> float:
        return self.now

    # A Transport's methods.

    def send(self, frames: list[bytes]) -> None:
        for each in frames:
            assert each[6:8] == b"\0\0", "the session is on channel 0"
            body = each[8:]
            told, end = decode_performative(body)
            if isinstance(told, Begin):
                self.begun.append(told)
                self.tell(Begin(0, 70, self.window, 5000))
            elif isinstance(told, Attach):
                self.attached.append(told)
                self._attach(told)
            else:
                self.received.append(told)
                self.payloads += [body[end:]] if isinstance(told, Transfer) else []

    def read(self, timeout: float) -> list[bytes]:
        bodies, self.bodies = self.bodies, []
        self.now += 0 if bodies else timeout
        return bodies

    def wake(self) -> None:
        self.wakes += 1

    def close(self, *, politely: bool = True) -> None:
        pass

    # What the broker sends.

    def tell(self, performative: Any, payload: bytes = b"") -> None:
        self.bodies.append(frame(0, performative)[8:] + payload)

    def _attach(self, told: Attach) -> None:
        mine = self.handles[told.name] = 40 + told.handle
        address = told.source.address if told.role else told.target.address
        refused = address in self.refuses
        source = None if refused and told.role else Source(address, default_outcome=self.default_outcome)
        target = None if refused and not told.role else Target(address)
        self.tell(
            Attach(
                told.name, mine, not told.role, source=source, target=target,
                initial_delivery_count=0 if told.role else None,
            )
        )  # fmt: skip
        if refused:
            self.tell(Detach(mine, closed=True, error=Error(Symbol("amqp:not-found"), f"no queue {address}")))

    def credit(self, handle: int, count: int, credit: int, *, next_id: int = 0, window: int | None = None) -> None:
        self.tell(Flow(next_id, self.window if window is None else window, 70, 5000, 40 + handle, count, credit))

    def deliver(self, handle: int, *numbers: int) -> None:
        for number in numbers:
            payload = sections.encode(Message(b"%d" % number))
            self.tell(Transfer(40 + handle, number, b"tag", 0, False, False), payload)

    def of(self, kind: type) -> list[Any]:
        """The performatives of a type that were received since the last call."""
        found = [each for each in self.received if isinstance(each, kind)]
        self.received = [each for each in self.received if not isinstance(each, kind)]
        return found


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    broker = Broker()
    monkeypatch.setattr(link_connection, "time", broker)
    monkeypatch.setattr(reopening_transport, "time", broker)
    monkeypatch.setattr(silence, "time", broker)
    monkeypatch.setattr(reopening_transport, "Transport", lambda *_, **__: broker)
    return broker


@pytest.fixture
def session(broker: Broker) -> LinkConnection:
    return connect()


def connect(notice: Callable[[str], None] = lambda _: None, url: str = "amqp://127.0.0.1") -> LinkConnection:
    return LinkConnection(parse_addresses(url), None, backoff=None, confirm_timeout=5.0, notice=notice, threaded=False)


def lose(session: LinkConnection) -> Any:
    """Lose the connection; return what to call once it is open again."""
    session.is_lost = True
    return session.lost()


def reopen(session: LinkConnection, resume: Any) -> None:
    session.begin()
    resume()
    session.epoch += 1
    session.is_lost = False
    session.reopened()
    session.taken()


def receiver(session: LinkConnection, address: str = QUEUE, **receiving: Any) -> Receiver:
    receiver = Receiver(session, new_name(), address, Receiving(**receiving), {})
    session.retrying(lambda: session.attach(receiver))
    session.give_credit(receiver)
    return receiver


def published(session: LinkConnection, *bodies: bytes, address: str = QUEUE) -> Sender:
    sender = Sender(session, address, persistent=False)
    for number, body in enumerate(bodies, 1):
        sender.add(Message(body), number)
    return sender


def told(sender: Sender) -> list[tuple[bytes, str]]:
    return [(each.message.body, each.confirmation) for each in sender._collected()]


def test_a_session_begins_with_a_window_of_5000_transfers(broker: Broker, session: LinkConnection) -> None:
    """mqtool begins an AMQP 1.0 session with incoming and outgoing windows of 5,000 transfers, and allows up to 256
    links.
    """
    assert broker.begun == [Begin(None, 0, 5000, 5000, handle_max=255)]
    assert broker.received == []


def test_a_session_has_one_sending_link_for_each_address(broker: Broker, session: LinkConnection) -> None:
    """An AMQP 1.0 session attaches one sending link for each address, with its own handle and name. If the broker
    refuses a link, the session uses the link's handle for the next link.
    """
    first = session.sending_link(QUEUE)
    assert session.sending_link(QUEUE) is first
    broker.refuses = {OTHER}
    with pytest.raises(NotFound, match="no queue /queues/other"):
        session.sending_link(OTHER)
    assert broker.of(Detach) == [Detach(1, closed=True)]
    broker.refuses = set()
    assert session.sending_link(OTHER).handle == 1
    assert session.sending_link(None).handle == 2
    assert [each.handle for each in broker.attached] == [0, 1, 1, 2]
    names = [each.name for each in broker.attached]
    assert len({*names}) == 4
    assert all(name.startswith("mqtool-") and len(name) == 19 for name in names)


def test_a_receiver_of_a_missing_queue_raises_not_found(broker: Broker, session: LinkConnection) -> None:
    """If the broker refuses the link of an AMQP 1.0 receiver because the queue does not exist, attaching the link
    raises NotFound with the broker's error text.
    """
    broker.refuses = {QUEUE}
    with pytest.raises(NotFound, match="no queue /queues/q"):
        receiver(session)


def test_messages_are_sent_when_the_broker_grants_credit(broker: Broker, session: LinkConnection) -> None:
    """As soon as the broker grants credit to an AMQP 1.0 link, mqtool sends the link's messages unsettled. Delivery ids
    are consecutive across all links of a session.
    """
    published(session, b"1", b"2")
    published(session, b"3", address=OTHER)
    session.pump()
    assert broker.of(Transfer) == []
    broker.credit(0, 0, 1)
    broker.credit(1, 0, 5)
    session.run(0)
    broker.credit(0, 1, 1)
    session.run(0)
    sent = broker.of(Transfer)
    assert [(each.handle, each.delivery_id, each.settled, each.more) for each in sent] == [
        (0, 0, False, False), (1, 1, False, False), (0, 2, False, False),
    ]  # fmt: skip
    assert [payload[-1:] for payload in broker.payloads] == [b"1", b"3", b"2"]
    assert [each.delivery_tag for each in sent] == [number.to_bytes(4, "big") for number in range(3)]


def test_a_large_message_waits_until_all_of_its_frames_fit_into_the_brokers_incoming_window(
    broker: Broker, session: LinkConnection
) -> None:
    """Over AMQP 1.0, mqtool splits a message that is larger than a frame into several transfers, and sends them once
    all of them fit into the broker's incoming window. Transfers that are still on their way to the broker take up part
    of this window.
    """
    broker.window = 4
    session.begin()
    published(session, bytes(1000), bytes(1000))
    broker.credit(0, 0, 9)
    session.run(0)
    sent = broker.of(Transfer)
    assert [(each.delivery_id, each.more) for each in sent] == [(0, True), (0, True), (0, False)]
    broker.credit(0, 1, 9, next_id=1)  # two transfers are in transit, so there is room for two more
    session.run(0)
    assert broker.of(Transfer) == []
    broker.credit(0, 1, 9, next_id=2)
    session.run(0)
    assert [(each.delivery_id, each.more) for each in broker.of(Transfer)] == [(1, True), (1, True), (1, False)]
    assert b"".join(broker.payloads[:3]) == b"".join(broker.payloads[3:]) == sections.encode(Message(bytes(1000)))
    session.give_credit(receiver(session))
    assert broker.of(Flow)[-1].next_outgoing_id == 6


def test_a_flow_frame_without_a_handle_extends_the_window_of_the_session(
    broker: Broker, session: LinkConnection
) -> None:
    """If the broker sends an AMQP 1.0 flow frame without a handle, mqtool can send as many transfers as the frame's
    incoming window allows. The credit of the links does not change. mqtool answers a flow frame that asks for an
    echo.
    """
    broker.window = 0
    session.begin()
    published(session, b"1")
    broker.credit(0, 0, 1)
    session.run(0)
    assert broker.of(Transfer) == []
    broker.tell(Flow(None, 9, 70, 5000))  # the broker has not seen the session's Begin yet
    session.run(0)
    assert broker.of(Transfer) == []
    assert broker.of(Flow) == []
    broker.tell(Flow(0, 9, 70, 5000, echo=True))
    session.run(0)
    assert len(broker.of(Transfer)) == 1
    assert broker.of(Flow) == [Flow(70, 5000, 0, 5000, echo=False)]


def test_a_disposition_applies_to_a_range_of_messages(broker: Broker, session: LinkConnection) -> None:
    """An AMQP 1.0 disposition from the broker applies to all messages from its first to its last delivery id. Without a
    last id, it applies only to the first one. mqtool ignores the ids of messages that already have an outcome.
    """
    sender = published(session, *(b"%d" % number for number in range(6)))
    broker.credit(0, 0, 9)
    session.run(0)
    session.has_progressed = False
    broker.tell(Disposition(True, 1, 2, settled=True, state=Released()))
    session.run(0)
    assert not session.has_progressed
    broker.tell(Disposition(True, 0, None, settled=True, state=Accepted()))
    session.run(0)
    assert session.has_progressed
    assert told(sender) == [(b"0", "confirmed"), (b"1", "returned"), (b"2", "returned")]
    session.has_progressed = False
    broker.tell(Disposition(True, 2, 4, settled=True, state=Accepted()))
    broker.tell(Disposition(True, 5, 5, settled=True, state=UNAVAILABLE))
    session.run(0)
    assert told(sender) == [(b"3", "confirmed"), (b"4", "confirmed"), (b"5", "nacked")]
    assert session.has_progressed
    assert session._sent == {}


@pytest.mark.parametrize(("first", "last", "is_settled"), [(0, 0x7FFF_FFFF, True), (0, 0xFFFF_FFFF, False)])
def test_a_disposition_takes_no_longer_if_its_range_is_large(
    broker: Broker, session: LinkConnection, first: int, last: int, *, is_settled: bool
) -> None:
    """The time that mqtool needs to process an AMQP 1.0 disposition depends only on the number of unsettled messages,
    however large the disposition's range of delivery ids is. A disposition whose last id precedes its first id, in the
    order of 32-bit serial numbers, applies to no message.
    """
    sender = published(session, b"0", b"1")
    broker.credit(0, 0, 9)
    link = receiver(session)
    broker.deliver(1, 0, 1)
    session.run(0)
    for role in (True, False):
        broker.tell(Disposition(role, first, last, settled=True, state=Accepted()))
    session.run(0)
    assert [body for body, _ in told(sender)] == ([b"0", b"1"] if is_settled else [])
    assert [session.is_current(each) for each in link.arrived()] == 2 * [not is_settled]


def test_a_message_is_unconfirmed_until_its_state_is_an_outcome(broker: Broker, session: LinkConnection) -> None:
    """If the broker reports a state of an AMQP 1.0 message that is not an outcome, such as received, and the link's
    source has no default outcome, the message is still unconfirmed. It gets the outcome that the broker reports later.
    """
    sender = published(session, b"0")
    broker.credit(0, 0, 9)
    session.run(0)
    for is_settled, state in ((False, Received(0, 0)), (False, None), (True, None), (True, Received(0, 0))):
        broker.tell(Disposition(True, 0, settled=is_settled, state=state))
        session.run(0)
        assert (told(sender), len(sender.unconfirmed)) == ([], 1)
    broker.now += 5
    assert session.patience() <= 0
    broker.tell(Disposition(True, 0, settled=True, state=Accepted()))
    session.run(0)
    assert told(sender) == [(b"0", "confirmed")]


def test_a_message_that_is_settled_without_an_outcome_has_the_default_outcome(
    broker: Broker, session: LinkConnection
) -> None:
    """If the broker settles an AMQP 1.0 message with a state that is not an outcome, such as received, the message has
    the default outcome of the link's source, if the source has one.
    """
    broker.default_outcome = Released()
    sender = published(session, b"0")
    broker.credit(0, 0, 9)
    session.run(0)
    broker.tell(Disposition(True, 0, settled=False, state=Received(0, 0)))
    session.run(0)
    assert told(sender) == []
    broker.tell(Disposition(True, 0, settled=True, state=Received(0, 0)))
    session.run(0)
    assert told(sender) == [(b"0", "returned")]


def test_two_unsettled_deliveries_with_the_same_id_raise_value_error(broker: Broker, session: LinkConnection) -> None:
    """If the broker sends two unsettled AMQP 1.0 deliveries with the same delivery id, mqtool raises ValueError. Once
    a delivery has been settled, its id can be used again.
    """
    link = receiver(session)
    broker.deliver(0, 7)
    session.run(0)
    session.settle(link.arrived(), Accepted())
    broker.deliver(0, 7, 7)
    with pytest.raises(ValueError, match="two unsettled deliveries have the same delivery id"):
        session.run(0)


def test_delivery_ids_wrap_after_32_bits(broker: Broker, session: LinkConnection) -> None:
    """The delivery ids of an AMQP 1.0 session are 32-bit numbers: 0 follows 4,294,967,295. A disposition can apply to
    a range that contains both of these ids.
    """
    sender = published(session, b"1", b"2", b"3")
    session._broker.next_id = session._broker.next_out = 0xFFFF_FFFE
    broker.credit(0, 0, 9, next_id=0xFFFF_FFFE)
    session.run(0)
    assert [each.delivery_id for each in broker.of(Transfer)] == [0xFFFF_FFFE, 0xFFFF_FFFF, 0]
    broker.tell(Disposition(True, 0xFFFF_FFFE, 0, settled=True, state=Accepted()))
    broker.credit(0, 3, 9, next_id=0xFFFF_FFFF)
    session.run(0)
    assert told(sender) == [(b"1", "confirmed"), (b"2", "confirmed"), (b"3", "confirmed")]
    assert session._broker.room == broker.window - 2


def test_a_message_rejected_by_an_unavailable_queue_is_sent_again_for_20_seconds(
    broker: Broker, session: LinkConnection
) -> None:
    """If an unavailable queue rejects an AMQP 1.0 message within 20 s after a reconnection, mqtool sends the message
    again after 0.25 s. Meanwhile, it sends other messages. If the queue rejects the message after these 20 s, the
    rejection is final.
    """
    sender = published(session, b"1", b"2")
    reopen(session, lose(session))
    broker.credit(0, 0, 2)
    session.run(0)
    broker.of(Transfer)
    broker.payloads.clear()
    broker.tell(Disposition(True, 0, 1, settled=True, state=UNAVAILABLE))
    session.run(0)
    sender.add(Message(b"3"))
    broker.credit(0, 2, 9)
    broker.now += 0.24
    session.run(0)
    assert told(sender) == []
    assert [payload[-1:] for payload in broker.payloads] == [b"3"]
    assert session.due_at == 1000.25
    broker.now += 0.01
    session.run(0)
    assert [payload[-1:] for payload in broker.payloads] == [b"3", b"1", b"2"]
    assert session.due_at is None
    broker.now = 1019.9
    broker.tell(Disposition(True, 3, 3, settled=True, state=UNAVAILABLE))
    session.run(0)
    assert told(sender) == []
    broker.now = 1020.2
    session.run(0)
    assert [each.delivery_id for each in broker.of(Transfer)] == [2, 3, 4, 5]
    broker.tell(Disposition(True, 5, 5, settled=True, state=UNAVAILABLE))
    broker.tell(Disposition(True, 4, 4, settled=True, state=Accepted()))
    session.run(0)
    assert told(sender) == [(b"1", "nacked"), (b"2", "confirmed")]


@pytest.mark.parametrize("lacks_a_node", [True, False])
def test_a_rejected_message_is_sent_again_if_a_node_could_not_be_reached(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, *, lacks_a_node: bool
) -> None:
    """If mqtool cannot reach one of a cluster's nodes when it opens an AMQP 1.0 connection, a queue may not have a
    leader yet. If the broker then rejects a message in the first 20 s because the message's queue is unavailable,
    mqtool does not report the rejection, but keeps the message to send it again. If mqtool has reached all nodes, the
    rejection is final.
    """
    failures = [Unavailable("no route to host")] * lacks_a_node

    def transport(*_: object, **__: object) -> Broker:
        if failures:
            raise failures.pop()
        return broker

    monkeypatch.setattr(reopening_transport, "Transport", transport)
    session = connect(url="amqp://127.0.0.1:5001,amqp://127.0.0.1:5002")
    sender = published(session, b"1")
    broker.credit(0, 0, 9)
    session.run(0)
    broker.now += 19.9
    broker.tell(Disposition(True, 0, 0, settled=True, state=UNAVAILABLE))
    session.run(0)
    assert told(sender) == ([] if lacks_a_node else [(b"1", "nacked")])
    assert len(session._refused) == lacks_a_node


def test_messages_without_an_outcome_are_sent_again_after_a_reconnection(
    broker: Broker, session: LinkConnection
) -> None:
    """After an AMQP 1.0 connection has been lost, mqtool sends nothing until it has reconnected. It then attaches its
    links again, and sends the messages without an outcome again, in order, before the messages that it has not sent
    yet.
    """
    sender = published(session, b"1", b"2", b"3", b"4")
    broker.credit(0, 0, 3)
    session.run(0)
    broker.tell(Disposition(True, 0, 0, settled=True, state=Accepted()))
    session.run(0)
    calls = list[int]()
    session.set_up = lambda: calls.append(len(broker.attached))
    resume = lose(session)
    assert not session.sending_link(QUEUE).is_attached
    broker.of(Transfer)
    broker.payloads.clear()
    session.pump()
    broker.credit(0, 0, 9)
    reopen(session, resume)
    assert calls == [1]  # what is declared is declared again first
    assert len(broker.attached) == 2
    broker.credit(0, 0, 9)
    session.run(0)
    assert [payload[-1:] for payload in broker.payloads] == [b"2", b"3", b"4"]
    assert [each.delivery_id for each in broker.of(Transfer)] == [0, 1, 2]
    broker.tell(Disposition(True, 0, 2, settled=True, state=Accepted()))
    session.run(0)
    assert told(sender) == [(b"%d" % number, "confirmed") for number in range(1, 5)]


def test_a_link_without_the_brokers_reply_is_attached_once_after_a_reconnection(
    broker: Broker, session: LinkConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an AMQP 1.0 connection is lost while mqtool is waiting for the reply to an attach frame, mqtool attaches the
    link once on the new connection. A link for which mqtool has sent a detach frame is not attached again, even if the
    broker has not replied to the detach frame.
    """
    receiver(session)
    ending, waiting = (Receiver(session, new_name(), OTHER, Receiving(), {}) for _ in range(2))
    session.attach(ending)
    session.end_receiver(ending, stays=False)

    def loses(*_: object) -> None:
        raise Lost

    with monkeypatch.context() as patch:
        patch.setattr(session, "until", loses)
        with pytest.raises(Lost):
            session.attach(waiting)
    broker.bodies.clear()
    broker.attached.clear()
    resume = lose(session)
    with monkeypatch.context() as patch:
        patch.setattr(session, "_reader", None)  # the I/O thread reopens the connection, not this one
        with pytest.raises(Lost):
            session.attach(waiting)
    assert broker.attached == []
    reopen(session, resume)
    assert [each.source.address for each in broker.attached] == [QUEUE]
    session.attach(waiting)
    assert [each.source.address for each in broker.attached] == [QUEUE, OTHER]
    session.attach(waiting)
    assert len(broker.attached) == 2


@pytest.mark.parametrize(
    ("ends", "attached", "detached"),
    [("before the loss", 0, 0), ("during the loss", 0, 0), ("while it is attached again", 1, 1)],
)
def test_a_receiver_that_ends_is_not_attached_after_a_reconnection(
    broker: Broker, session: LinkConnection, monkeypatch: pytest.MonkeyPatch, ends: str, attached: int, detached: int
) -> None:
    """If an AMQP 1.0 receiver is ending when the connection is lost, or ends before the reconnection, mqtool does not
    attach the receiver again after the reconnection. If the receiver ends while it is being attached again, mqtool
    detaches it, so that the broker delivers all messages to other receivers.
    """
    link = receiver(session)
    broker.attached.clear()

    def end() -> None:
        session.end_receiver(link, stays=False)

    if ends == "before the loss":
        patch = pytest.MonkeyPatch()

        def loses(*_: object) -> None:
            patch.undo()
            reopen(session, lose(session))

        patch.setattr(session, "until", loses)
        end()
    else:
        resume = lose(session)
        if ends == "during the loss":
            end()
        else:
            accept = link.attached
            monkeypatch.setattr(link, "attached", lambda answer: accept(answer) and end())
        reopen(session, resume)
    assert len(broker.attached) == attached
    assert broker.of(Detach) == [Detach(0, closed=True)] * detached
    assert not link.is_attached


def test_a_connection_is_not_reopened_between_the_end_of_a_receiver_and_the_withdrawal_of_its_credit(
    broker: Broker, session: LinkConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an AMQP 1.0 receiver ends, mqtool holds the lock of the session until the receiver's credit is withdrawn.
    Otherwise, the I/O thread could reopen the connection and detach the receiver in between, and the flow frame for
    the detached link would end the session.
    """
    link, locked = receiver(session), list[bool]()
    ends, sends = link.stop, session.send_flow

    def is_free() -> bool:
        if is_acquired := session.changed.acquire(blocking=False):
            session.changed.release()
        return is_acquired

    def locks() -> None:
        with ThreadPoolExecutor() as pool:
            locked.append(not pool.submit(is_free).result())

    def stop() -> bool:
        locks()
        return ends()

    def withdraw(*arguments: Any, **options: Any) -> None:
        locks()
        sends(*arguments, **options)

    monkeypatch.setattr(link, "stop", stop)
    monkeypatch.setattr(session, "send_flow", withdraw)
    broker.credit(0, 0, 0)
    session.end_receiver(link, stays=False)
    assert locked == [True, True]


def test_the_confirm_timeout_of_a_session_counts_from_the_last_outcome(broker: Broker, session: LinkConnection) -> None:
    """The confirm timeout of an AMQP 1.0 session starts again with each outcome. If no message was waiting for an
    outcome, it starts when the next message is sent. It does not run while there is no connection.
    """
    broker.now += 60
    assert session.patience() == 5.0
    published(session, b"1", b"2", b"3")
    broker.credit(0, 0, 1)
    session.run(0)
    broker.now += 4
    assert session.patience() == 1.0
    broker.credit(0, 1, 1)
    session.run(0)
    assert session.patience() == 1.0
    broker.tell(Disposition(True, 0, 0, settled=True, state=Accepted()))
    session.run(0)
    broker.now += 4
    assert session.patience() == 1.0
    session.is_lost = True
    assert session.patience() == 5.0
    session.is_lost = False
    broker.tell(Disposition(True, 1, 1, settled=True, state=Accepted()))
    session.run(0)
    broker.now += 60
    broker.credit(0, 2, 1)
    session.run(0)
    assert session.patience() == 5.0


def test_a_stopped_command_does_not_wait_for_a_broker_that_accepts_no_messages(
    broker: Broker, session: LinkConnection
) -> None:
    """If a command that publishes over AMQP 1.0 is stopped, it still waits for the outcomes of messages that it has
    sent, unless the connection is lost. It does not wait to send further messages: if the broker's incoming window is
    closed, or the link has no credit, the command raises NotConfirmed.
    """
    sender = published(session, b"1")
    for credit, window in ((2, 0), (0, 2)):
        session.stopping = False
        broker.credit(0, 0, credit, window=window)
        session.run(0)
        sender._wait(at_most=0)  # raises nothing: it would wait longer
        session.stopping = True
        with pytest.raises(NotConfirmed, match="stopped with 1 message unconfirmed: the broker takes no messages"):
            sender._wait()
    assert broker.of(Transfer) == []
    broker.credit(0, 0, 2, window=1)
    session.run(0)
    assert len(broker.of(Transfer)) == 1
    sender._wait(at_most=0)
    session.is_lost = True
    with pytest.raises(NotConfirmed, match="stopped with 1 message unconfirmed: the connection is lost"):
        sender._wait()


def test_a_receiver_grants_credit_and_accepts_ranges_of_deliveries(broker: Broker, session: LinkConnection) -> None:
    """An AMQP 1.0 receiver grants as much credit as its prefetch. It accepts each range of consecutive deliveries with
    one disposition frame, and then grants credit for the same number of deliveries. Settling a delivery twice has no
    effect.
    """
    link = receiver(session, prefetch=4)
    assert broker.of(Flow) == [Flow(70, 5000, 0, 5000, 0, 0, 4, echo=False)]
    broker.deliver(0, 0, 1, 2, 3)
    session.run(0)
    deliveries = link.arrived()
    assert [each.body for each in deliveries] == [b"0", b"1", b"2", b"3"]
    assert all(session.is_current(each) for each in deliveries)
    session.has_progressed = False
    session.settle([deliveries[0], deliveries[1], deliveries[3]], Accepted())
    assert session.has_progressed
    accepted = [Disposition(True, 0, 1, settled=True, state=Accepted())]
    assert broker.of(Disposition) == [*accepted, Disposition(True, 3, 3, settled=True, state=Accepted())]
    assert broker.of(Flow) == [Flow(74, 5000, 0, 5000, 0, 4, 3, echo=False)]
    assert [session.is_current(each) for each in deliveries] == [False, False, True, False]
    assert [each.settled for each in deliveries] == [True, True, False, True]
    session.has_progressed = False
    session.settle(deliveries[:2], Accepted())
    session.settle([], Accepted())
    assert (broker.received, session.has_progressed) == ([], False)


def test_receivers_whose_deliveries_are_settled_together_each_grant_credit_again(
    broker: Broker, session: LinkConnection
) -> None:
    """If deliveries of several AMQP 1.0 receivers are settled together, each of these receivers grants credit again."""
    links = [receiver(session, address, prefetch=1) for address in (QUEUE, OTHER)]
    broker.deliver(0, 0)
    broker.deliver(1, 1)
    session.run(0)
    broker.of(Flow)
    session.settle([each for link in links for each in link.arrived()], Accepted())
    assert [(each.handle, each.link_credit) for each in broker.of(Flow)] == [(0, 1), (1, 1)]


def test_a_delivery_that_the_broker_has_requeued_is_not_settled(broker: Broker, session: LinkConnection) -> None:
    """If the broker releases an AMQP 1.0 delivery, for example after a consumer timeout, this delivery no longer counts
    towards the receiver's prefetch. If the broker has not settled it, mqtool does so when it gives credit: RabbitMQ
    4.3.6 sends no more before. mqtool does not accept such a delivery, nor one from before a reconnection.
    """
    link = receiver(session, prefetch=4)
    broker.deliver(0, 0, 1, 2, 3)
    session.run(0)
    deliveries = link.arrived()
    broker.of(Flow)
    broker.tell(Disposition(False, 1, 1, settled=True, state=Released()))
    broker.tell(Disposition(False, 2, 2, settled=False, state=Released()))
    broker.tell(Disposition(False, 9, 9, settled=True, state=Released()))
    session.run(0)
    assert [session.is_current(each) for each in deliveries] == [True, False, False, True]
    session.give_credit(link)
    assert [each.link_credit for each in broker.of(Flow)] == [2]
    assert broker.of(Disposition) == [Disposition(True, 2, 2, settled=True, state=Released())]
    session.settle(deliveries[:3], Accepted())
    assert broker.of(Disposition) == [Disposition(True, 0, 0, settled=True, state=Accepted())]
    resume = lose(session)
    assert not session.is_current(deliveries[3])
    reopen(session, resume)
    assert [each.link_credit for each in broker.of(Flow)] == [4]
    broker.deliver(0, 3)
    session.run(0)
    assert not session.is_current(deliveries[3])
    session.settle([deliveries[3]], Accepted())
    assert broker.of(Disposition) == []
    assert [session.is_current(each) for each in link.arrived()] == [True]


def test_the_incoming_window_of_mqtool_is_extended_when_half_of_it_is_used(
    broker: Broker, session: LinkConnection
) -> None:
    """mqtool's incoming window of an AMQP 1.0 session is 5,000 transfers. When the broker has sent half of them, mqtool
    sets the window to 5,000 again. Aborted transfers, and transfers for unknown handles, are included in the count.
    """
    link = receiver(session, prefetch=0)
    broker.of(Flow)
    broker.tell(Transfer(40, 0, b"", 0, False, True), b"cut short")
    broker.tell(Transfer(40, 0, aborted=True))
    broker.tell(Transfer(99, 1, b"", 0, False, False), b"unknown")
    broker.deliver(0, *range(2, 2499))
    session.run(0)
    assert broker.of(Flow) == []
    broker.deliver(0, 2499)
    session.run(0)
    assert broker.of(Flow) == [Flow(70 + 2501, 5000, 0, 5000, echo=False)]
    assert link.delivery_count == 2498
    broker.deliver(0, *range(2500, 4999))
    session.run(0)
    assert broker.of(Flow) == []


def test_a_receiver_that_ends_releases_the_deliveries_that_the_caller_has_not_received(
    broker: Broker, session: LinkConnection
) -> None:
    """When an AMQP 1.0 receiver ends, it first withdraws its credit and waits for deliveries in transit. It then
    releases the deliveries that the caller has not received, and detaches its link.
    """
    link = receiver(session, prefetch=5)
    broker.deliver(0, 0)
    session.run(0)
    [handled] = link.arrived()
    broker.of(Flow)
    broker.deliver(0, 1, 2)
    broker.credit(0, 3, 0)
    session.end_receiver(link, stays=False)
    assert broker.received == [
        Flow(71, 5000, 0, 5000, 0, 1, 0, echo=True),
        Disposition(True, 1, 2, settled=True, state=Released()),
        Detach(0, closed=True),
    ]
    assert session.is_current(handled)
    broker.tell(Detach(40, closed=True))
    session.run(0)
    assert broker.now == 1000
    assert receiver(session, OTHER).handle == 0


def test_a_queue_that_is_deleted_while_its_receiver_ends_does_not_affect_the_next_receiver(
    broker: Broker, session: LinkConnection
) -> None:
    """If the queue of an AMQP 1.0 receiver is deleted while the receiver is ending, the broker's detach frame, which
    contains an error, crosses mqtool's own. mqtool neither answers the broker's frame nor raises its error. When mqtool
    then attaches the next link, it does not mistake the broker's earlier frame for a refusal of this link.
    """
    link = receiver(session, prefetch=1)
    broker.credit(0, 0, 0)
    session.end_receiver(link, stays=False)
    assert broker.of(Detach) == [Detach(0, closed=True)]
    broker.tell(Detach(40, closed=True, error=Error(Symbol("amqp:resource-deleted"), "queue 'q' was deleted")))
    session.run(0)
    assert broker.of(Detach) == []
    following = receiver(session, OTHER)
    assert (following.handle, following.is_attached) == (0, True)
    broker.tell(Detach(40, closed=True, error=Error(Symbol("amqp:resource-deleted"), "queue 'other' was deleted")))
    with pytest.raises(ClosedByBroker, match="queue 'other' was deleted"):
        session.run(0)


def test_a_receiver_ends_without_an_error_if_the_connection_is_lost_in_the_meantime(
    broker: Broker, session: LinkConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an AMQP 1.0 receiver ends, it waits for deliveries in transit. If the connection is lost during this wait,
    the receiver ends without an error, and sends nothing more: the broker requeues the receiver's deliveries.
    """
    link = receiver(session)
    broker.deliver(0, 0)
    session.run(0)
    broker.received.clear()
    monkeypatch.setattr(session, "_reader", None)  # the I/O thread reads, not this one
    monkeypatch.setattr(session, "wait", lambda *_: setattr(session, "is_lost", True))
    session.end_receiver(link, stays=False)
    assert [type(each) for each in broker.received] == [Flow]


def test_settled_deliveries_are_not_released_when_a_session_ends(broker: Broker, session: LinkConnection) -> None:
    """When an AMQP 1.0 session ends, mqtool releases no deliveries that the broker has sent settled, because the broker
    no longer has these messages.
    """
    link = receiver(session, auto_ack=True)
    broker.tell(Transfer(40, 0, b"tag", 0, True, False), sections.encode(Message(b"0")))
    session.run(0)
    broker.credit(0, 1, 0)
    session.release_all()
    assert broker.of(Disposition) == []
    assert link.arrived() == []


def test_a_receiver_ends_after_two_seconds_if_the_broker_does_not_answer(
    broker: Broker, session: LinkConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the broker does not answer when an AMQP 1.0 receiver withdraws its credit, the receiver ends after two
    seconds. If the receiver has no credit left to withdraw, it ends immediately.
    """
    silent, empty = receiver(session, prefetch=1), receiver(session, prefetch=1)
    broker.deliver(1, 0)
    session.run(0)
    broker.received.clear()
    monkeypatch.setattr(session, "_reader", None)  # the I/O thread reads, not this one
    monkeypatch.setattr(session, "wait", lambda _, seconds: setattr(broker, "now", broker.now + seconds))
    session.end_receiver(silent, stays=True)
    assert 1002 < broker.now < 1002.5
    assert broker.of(Flow) == [Flow(71, 5000, 0, 5000, 0, 0, 0, echo=True)]
    broker.now = 1000
    session.end_receiver(empty, stays=True)
    assert broker.now == 1000
    assert broker.received == []


def test_all_unsettled_deliveries_are_released_when_a_session_ends(broker: Broker, session: LinkConnection) -> None:
    """When an AMQP 1.0 session ends, mqtool releases all unsettled deliveries, including those that the caller has
    received, so that the broker does not count them as failed. mqtool does not detach the session's links.
    """
    links = [receiver(session, address, prefetch=2) for address in (QUEUE, OTHER)]
    broker.deliver(0, 0, 2)
    broker.deliver(1, 1)
    session.run(0)
    assert len(links[0].arrived()) == 2
    broker.received.clear()
    broker.credit(1, 1, 0)
    session.release_all()
    assert broker.of(Flow)[0] == Flow(73, 5000, 0, 5000, 1, 1, 0, echo=True)
    assert broker.of(Disposition) == [Disposition(True, 0, 2, settled=True, state=Released())]
    assert broker.of(Detach) == []


def test_nothing_is_sent_when_a_session_ends_after_its_connection_has_been_lost(
    broker: Broker, session: LinkConnection
) -> None:
    """When an AMQP 1.0 session ends after its connection has been lost, mqtool sends no frames: it releases no
    deliveries, detaches no links, and grants no credit.
    """
    link = receiver(session)
    broker.deliver(0, 0)
    session.run(0)
    broker.received.clear()
    session.is_lost = True
    session.release_all()
    session.end_receiver(link, stays=False)
    session.give_credit(link)
    session.pump()
    assert broker.received == []


def test_the_brokers_error_is_raised_if_the_broker_detaches_a_link(broker: Broker, session: LinkConnection) -> None:
    """If the broker detaches an AMQP 1.0 link with an error, for example because the link's queue was deleted, mqtool
    answers with a detach frame and raises the broker's error. mqtool ignores a detach frame for an unknown handle, and
    one without an error, which is the answer to its own detach frame.
    """
    receiver(session)
    broker.tell(Detach(40, closed=True))
    broker.tell(Detach(99, closed=True, error=Error(Symbol("amqp:not-found"), "unknown")))
    session.run(0)
    assert broker.of(Detach) == []
    link = receiver(session)
    broker.tell(Detach(40, closed=True, error=Error(Symbol("amqp:resource-deleted"), "queue 'q' was deleted")))
    with pytest.raises(ClosedByBroker, match="queue 'q' was deleted"):
        session.run(0)
    assert broker.of(Detach) == [Detach(0, closed=True)]
    assert not link.is_attached


@pytest.mark.parametrize("performative", [End, Close])
def test_the_brokers_error_is_raised_if_the_broker_ends_a_session(
    broker: Broker, session: LinkConnection, performative: type[End | Close]
) -> None:
    """If the broker ends an AMQP 1.0 session or closes the connection, mqtool raises an error with the broker's error
    text.
    """
    broker.tell(performative(Error(Symbol("amqp:internal-error"), "the reason")))
    with pytest.raises(ClosedByBroker, match="the reason"):
        session.run(0)


def test_a_link_that_mqtool_did_not_ask_for_raises_value_error(broker: Broker, session: LinkConnection) -> None:
    """If the broker attaches an AMQP 1.0 link that mqtool did not ask for, or answers an attach frame with the wrong
    role, mqtool raises ValueError.
    """
    session.sending_link(QUEUE)
    name = broker.attached[0].name
    for attach in (Attach("unknown", 50, True), Attach(name, 50, False)):
        broker.tell(attach)
        with pytest.raises(ValueError, match="a link was attached that nobody asked for"):
            session.run(0)


def test_a_management_request_is_sent_settled(broker: Broker, session: LinkConnection) -> None:
    """An AMQP 1.0 session sends a management request settled, and does not keep it, so the caller must send it again
    after a reconnection. While the connection is being reopened, only the thread that reopens it can send a request.
    Other threads, and requests over a link of an earlier connection, raise Lost.
    """
    session.send_request(7, b"request", 0)
    [transfer] = broker.of(Transfer)
    assert (transfer.handle, transfer.delivery_id, transfer.settled, broker.payloads) == (7, 0, True, [b"request"])
    assert session._sent == {}
    session.is_lost = True
    session.send_request(7, b"while the connection is set up again", 0)
    assert len(broker.of(Transfer)) == 1
    with pytest.raises(Lost):
        session.send_request(7, b"request", 1)
    session._reader = None  # the I/O thread sets the connection up, not this one
    with pytest.raises(Lost):
        session.send_request(7, b"request", 0)
    session.send_flow(7, 0, 100)
    assert broker.received == []


def flow_of_window(window: int) -> bytes:
    """The body of a session's flow frame."""
    return frame(0, Flow(0, window, 70, 5000))[8:]


def test_a_management_request_waits_until_the_broker_has_room_for_it(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a resource alarm, RabbitMQ accepts no transfers, and ends a session in which it receives one. An AMQP
    1.0 session therefore sends a management request only when the broker's incoming window has room for all of its
    frames.
    """
    broker.window = 0
    session = connect()
    flows = [flow_of_window(window) for window in (2, 1, 0)]

    def read(_timeout: float) -> list[bytes]:
        assert broker.payloads == []
        return [flows.pop()]

    monkeypatch.setattr(broker, "read", read)
    session.send_request(7, b"x" * 600, 0)
    assert (len(broker.payloads), b"".join(broker.payloads), flows) == (2, b"x" * 600, [])


def test_a_management_request_does_not_wait_forever_for_the_brokers_window(broker: Broker) -> None:
    """While the broker's incoming window has no room for a management request, the request waits for at most the time
    that the caller allows. If the command is stopped, or if the session is closed while it is reconnecting, the request
    fails immediately.
    """
    broker.window = 0
    session = connect()
    with pytest.raises(TimeoutError, match="the broker does not answer"):
        session.send_request(7, b"request", 0, 5)
    session._reader = None
    session.stopping = True
    with pytest.raises(StoppedWaiting, match=r"^stopped: the broker takes no messages$"):
        session.send_request(7, b"request", 0)
    reconnecting = connect()
    reconnecting._closing.set()
    with pytest.raises(Lost):
        reconnecting.send_request(7, b"request", 0)
    assert broker.payloads == []


def test_notices_say_that_the_broker_blocks_and_unblocks_publishers(broker: Broker) -> None:
    """If messages or requests of an AMQP 1.0 session wait because an alarm has closed the broker's incoming window, a
    notice says once for each alarm that the broker blocks publishers. Another notice says when the alarm is over.
    There is no notice if nothing waits, or if the session has only used up the window.
    """
    told: list[str] = []
    session = connect(told.append)
    blocks = "the broker blocks publishers, and takes no declarations; waiting until it unblocks them"
    for _ in range(2):
        broker.bodies += [flow_of_window(0), flow_of_window(1)]
        session.run(0)
    assert told == []
    sender = Sender(session, QUEUE, persistent=False)
    sender.add(Message(b"1"))
    broker.credit(0, 0, 3, window=1)
    session.run(0)
    sender.add(Message(b"2"))
    session.pump()  # its window is used up
    assert told == []
    for _ in range(2):
        broker.bodies += [flow_of_window(0)]
        session.run(0)
    assert told == [blocks]
    broker.credit(0, 1, 2, next_id=1, window=1)
    session.run(0)
    unblocked = "the broker has unblocked publishers"
    assert told == [blocks, unblocked]
    assert len(broker.of(Transfer)) == 2
    sender.add(Message(b"3"))
    broker.bodies += [flow_of_window(1), flow_of_window(0)]  # both messages are on their way, so there is no room
    session.run(0)
    assert told == [blocks, unblocked, blocks]


@pytest.mark.parametrize("window", [0, 1])
def test_a_notice_says_that_the_broker_blocks_publishers_if_a_session_begins_during_an_alarm(
    broker: Broker, window: int
) -> None:
    """If the broker begins an AMQP 1.0 session with a closed incoming window, a notice says that the broker blocks
    publishers, as soon as a message must wait for the window. If the session has only used up the window, there is no
    notice.
    """
    broker.window = window
    told: list[str] = []
    session = connect(told.append)
    sender = Sender(session, QUEUE, persistent=False)
    session.sending_link(QUEUE).credit = 5
    for body in (b"1", b"2"):
        sender.add(Message(body))
        session.pump()
    assert len(broker.of(Transfer)) == window
    assert [text[:28] for text in told] == ["the broker blocks publishers"] * (window == 0)


def test_the_names_of_links_are_random() -> None:
    """mqtool gives each AMQP 1.0 link a random name, so that the broker never mistakes it for the link of another
    client.
    """
    assert len({new_name() for _ in range(100)}) == 100
