"""A session over AMQP 1.0: publish, consume and reply, with an embedded broker in this process."""

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mqtool.amqp import Address, Backoff, Receiving, TlsFiles, parse_addresses
from mqtool.amqp.consumer import TEMPORARY_QUEUE_LOST
from mqtool.amqp10 import LinkSession, exchange_address, queue_address, reopening_transport
from mqtool.amqp10.link_receiver import Receiver
from mqtool.errors import DeclaredDifferently, NotConfirmed, NotFound, Unavailable, UsageError
from mqtool.message import Delivery, Message
from mqtool.offsets import FIRST, Offset, Start
from mqtool.testing import EmbeddedBroker, Vhost
from mqtool.topology import Exchange, Queue

Q, X = Queue("q"), Exchange("x")
STREAM = Queue("s", durable=True, arguments={"x-queue-type": "stream"})
CONTEXT = ssl.create_default_context()


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(like="4.3") as broker:
        yield broker


@pytest.fixture
def vhost(broker: EmbeddedBroker) -> Iterator[Vhost]:
    with broker.fresh_vhost() as vhost:
        yield vhost


Connect = Callable[..., LinkSession]


@pytest.fixture
def connect(vhost: Vhost) -> Iterator[Connect]:
    """Open sessions, which are closed at the end of the test."""
    sessions: list[LinkSession] = []

    def open_one(**options: Any) -> LinkSession:
        sessions.append(LinkSession(parse_addresses(vhost.url), **options))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.__exit__()


@pytest.fixture
def session(connect: Connect) -> LinkSession:
    session = connect()
    session.declare(Q)
    return session


def publish(session: LinkSession, *bodies: bytes, **where: Any) -> list[tuple[bytes, str]]:
    receipts = session.publish([Message(body) for body in bodies], **where)
    return [(each.message.body, each.confirmation) for each in receipts]


def received(session: LinkSession, count: int, queue: Queue = Q, **receiving: Any) -> list[Delivery]:
    return [*session.consume(queue, Receiving(count=count, **receiving))]


def test_a_message_is_published_to_the_callers_exchange_or_to_its_own(session: LinkSession) -> None:
    """Over AMQP 1.0, publish() sends messages with the exchange and the routing key that the caller gives. If the
    caller gives neither, publish() uses the exchange and the routing key of each message. If a message is unroutable,
    publish() yields the response `returned` for it.
    """
    session.declare(X)
    session.bind(Q, X, "key")
    assert publish(session, b"1", exchange=X, routing_key="key") == [(b"1", "confirmed")]
    assert publish(session, b"2", exchange=Exchange(""), routing_key="q") == [(b"2", "confirmed")]
    assert publish(session, b"3", routing_key="q") == [(b"3", "confirmed")]
    assert publish(session, b"4", exchange=X) == [(b"4", "returned")]
    own = [Message(b"5", "key", "x"), Message(b"6", "q", ""), Message(b"7", "other", "x")]
    assert [each.confirmation for each in session.publish(own)] == ["confirmed", "confirmed", "returned"]
    found = received(session, 5)
    assert [(each.body, each.exchange, each.routing_key) for each in found] == [
        (b"1", "x", "key"), (b"2", "", "q"), (b"3", "", "q"), (b"5", "x", "key"), (b"6", "", "q"),
    ]  # fmt: skip


def test_messages_are_persistent_only_if_the_caller_passes_persistent(session: LinkSession) -> None:
    """Over AMQP 1.0, mqtool publishes a message without a delivery mode of its own as persistent if the caller passes
    persistent=True, and otherwise as transient.
    """
    publish(session, b"1", routing_key="q", persistent=True)
    publish(session, b"2", routing_key="q")
    session.sender(queue_address("q"), persistent=True).add(Message(b"3"), 1)
    [*session.sender(queue_address("q")).send([Message(b"4")])]
    found = received(session, 4)
    assert [each.body for each in found if each.properties.get("delivery_mode") == 2] == [b"1", b"3"]


def test_with_a_window_of_1_each_message_is_confirmed_before_the_next_is_taken(session: LinkSession) -> None:
    """With a window of 1, publish() over AMQP 1.0 takes the next message from its input only after it has yielded the
    previous message with the broker's confirm.
    """
    log = list[str]()

    def messages() -> Iterator[Message]:
        for number in "123":
            log.append(number)
            yield Message(number.encode())

    for receipt in session.publish(messages(), routing_key="q", window=1):
        log.append(f"{receipt.message.body.decode()} {receipt.confirmation}")
    assert log == ["1", "1 confirmed", "2", "2 confirmed", "3", "3 confirmed"]


def test_a_message_that_the_broker_does_not_confirm_in_time_is_listed_as_unconfirmed(
    vhost: Vhost, connect: Connect
) -> None:
    """If the broker does not confirm a message within the confirm timeout, publish() over AMQP 1.0 raises NotConfirmed.
    The session's list `unconfirmed` then contains the message, with the exchange and the routing key with which it was
    published. Before the session has sent anything, the list is empty.
    """
    session = connect(confirm_timeout=0.05)
    session.declare(Q)
    message = Message(b"1")
    assert session.unconfirmed == []
    assert session.addressed(message) is message
    with vhost.faults.delay_confirms():
        with pytest.raises(NotConfirmed):
            [*session.publish([message], routing_key="q")]
        assert session.unconfirmed == [session.addressed(message)] == [Message(b"1", "q", "")]
    with pytest.raises(NotFound):
        session.sender(exchange_address("missing", ""))


def test_deliveries_that_the_caller_has_not_accepted_are_requeued(vhost: Vhost, session: LinkSession) -> None:
    """If the caller accepts AMQP 1.0 deliveries itself, the session's method is_current() returns True for a delivery
    that has not been accepted yet. When the session is closed, the broker requeues the deliveries that were not
    accepted.
    """
    publish(session, b"1", b"2", b"3", routing_key="q")
    deliveries = received(session, 3, acknowledge=False)
    session.acknowledge(*deliveries[:2])
    assert [session.is_current(each) for each in deliveries] == [False, False, True]
    with session:
        assert not session.refused
    assert [each.body for each in vhost.queue("q").messages()] == [b"3"]


def test_a_stream_is_read_from_an_offset_with_filters(connect: Connect) -> None:
    """If mqtool reads a stream over AMQP 1.0, it starts at the offset that is requested. Without an offset, it
    receives only messages that are published later. With filter values, or with an SQL condition, it receives only
    messages that match.
    """
    session = connect()
    session.declare(STREAM)
    for value in "abc":
        properties = {"headers": {"x-stream-filter-value": value, "n": ord(value)}}
        [*session.publish([Message(value.encode(), properties=properties)], routing_key="s")]
    at_1 = Offset(Start.OFFSET, 1)
    assert [each.body for each in received(session, 2, STREAM, offset=at_1)] == [b"b", b"c"]
    receiver = session.receiver(queue_address("s"))
    assert publish(session, b"later", routing_key="s") == [(b"later", "confirmed")]
    assert next(receiver.deliveries()).body == b"later"
    by_value = connect(values=["c"])
    assert [each.body for each in received(by_value, 1, STREAM, offset=FIRST)] == [b"c"]
    by_condition = connect(sql="n > 97")
    assert [each.body for each in received(by_condition, 2, STREAM, offset=FIRST)] == [b"b", b"c"]


def test_a_notice_says_which_filter_the_broker_ignores(connect: Connect) -> None:
    """If the broker ignores one of the filters with which an AMQP 1.0 receiver reads a stream, for example an SQL
    condition that is not valid, mqtool prints a notice that names the filter.
    """
    notices = list[str]()
    session = connect(sql="n >", notice=notices.append)
    session.declare(STREAM)
    session.receiver(queue_address("s"))
    assert notices == ["the broker ignores the filter sql-filter: it is not valid, or not for this queue"]


@pytest.mark.parametrize("version", ["4.0", "4.2"])
def test_an_sql_condition_needs_rabbitmq_4_2(version: str) -> None:
    """An AMQP 1.0 session with an SQL condition raises UsageError if the broker is older than RabbitMQ 4.2, the first
    release with SQL filters.
    """
    with EmbeddedBroker(like=version) as broker:
        url = parse_addresses(broker.url)
        if version == "4.2":
            with LinkSession(url, sql="n > 1") as session:
                assert not session.stopping
            return
        with LinkSession(url):
            pass  # without a condition, any broker will do
        with pytest.raises(UsageError, match=rf"^the broker \(RabbitMQ {version}\.\d+\) has no SQL filters$") as caught:
            LinkSession(url, sql="n > 1")
        assert caught.value.hint == "they need RabbitMQ 4.2"


def test_a_reply_is_sent_before_its_request_is_accepted(
    vhost: Vhost, session: LinkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """answer() sends a transient reply to a request over AMQP 1.0, and then accepts the request. wait_for_confirms()
    returns once the broker has confirmed all replies, or immediately if there are none.
    """
    accept = session.acknowledge

    def accept_if_the_reply_arrives(request: Delivery) -> None:
        assert len(vhost.queue("replies").messages(int(request.body))) == int(request.body)
        accept(request)

    monkeypatch.setattr(session, "acknowledge", accept_if_the_reply_arrives)
    session.wait_for_confirms()
    session.declare(Queue("replies"))
    publish(session, b"1", b"2", routing_key="q")
    for delivery in received(session, 2, acknowledge=False):
        session.answer(delivery, Message(delivery.body + b" done", "replies", ""))
        assert not session.is_current(delivery)
    session.wait_for_confirms()
    assert len(vhost.queue("replies").messages(2)) == 2
    found = received(session, 2, Queue("replies"))
    assert [each.body for each in found] == [b"1 done", b"2 done"]
    assert {each.properties.get("delivery_mode") for each in found} <= {None, 1}
    assert session.depth_of("q") == 0


def test_a_session_reconnects_after_the_loss_of_its_connection_and_prints_notices(
    vhost: Vhost, connect: Connect
) -> None:
    """If an AMQP 1.0 session loses its connection, it reconnects, and can publish again. One notice reports the loss
    of the connection, and another the new connection. After stop(), consuming from the session yields nothing.
    """
    notices = list[str]()
    session = connect(backoff=Backoff(first=0), notice=notices.append)
    session.declare(Q)
    assert vhost.faults.cut_connections() == 1
    vhost.wait_for(lambda: len(notices) == 2)
    assert notices[0].startswith("lost the connection to ")
    assert notices[1].startswith("connected again to ")
    assert publish(session, b"1", routing_key="q") == [(b"1", "confirmed")]
    assert session.cluster.endswith(f" {vhost.name}")
    assert session.cluster.startswith("embedded-")
    session.stop()
    assert session.stopping
    assert [*session.consume(Q)] == []


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_receiver_is_attached_once_if_the_connection_is_lost_while_it_is_being_attached(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, *, is_answered: bool
) -> None:
    """If the connection is lost while an AMQP 1.0 receiver is being attached to a temporary queue, the queue has one
    consumer after the reconnection, and this consumer receives all messages that are published later. Each
    reconnection prints exactly one notice that the temporary queue was deleted with the old connection.
    """
    notices, losses = list[str](), 2
    session = connect(backoff=Backoff(first=0.01), notice=notices.append)
    attached = Receiver.attached

    def loses(receiver: Receiver, answer: Any) -> bool:
        nonlocal losses
        losses -= 1
        if losses < 0:
            return attached(receiver, answer)
        if is_answered:
            attached(receiver, answer)
            session.connection.is_lost = True  # before the caller sees the reply
        raise EOFError

    temporary = session.declare(Queue("", exclusive=True))
    monkeypatch.setattr(Receiver, "attached", loses)
    deliveries = session.consume(temporary, Receiving(prefetch=5, count=20))
    assert session.depth(temporary.name).consumers == 1
    publish(session, *[b"x"] * 20, routing_key=temporary.name)
    assert len([*deliveries]) == 20
    assert notices.count(TEMPORARY_QUEUE_LOST) == sum("connected again" in notice for notice in notices)
    assert sum("lost the connection" in notice for notice in notices) == (1 if is_answered else 2)


@pytest.mark.parametrize("strict", [True, False])
def test_a_strict_session_fails_if_a_queue_was_declared_differently(connect: Connect, *, strict: bool) -> None:
    """If a queue exists with other properties or arguments, declaring it over AMQP 1.0 raises DeclaredDifferently in
    a session with strict=True. With strict=False, the default, mqtool prints a notice and uses the queue as it is.
    """
    notices = list[str]()
    session = connect(notice=notices.append, **({"strict": True} if strict else {}))
    session.declare(Q)
    if strict:
        with pytest.raises(DeclaredDifferently):
            session.declare(Q._replace(auto_delete=True))
    else:
        session.declare(Q._replace(auto_delete=True))
    assert len(notices) == (not strict)


class Files(TlsFiles):
    def context(self) -> ssl.SSLContext:
        return CONTEXT


@pytest.mark.parametrize(
    ("url", "files", "context", "names_user"),
    [
        ("amqps://one", Files(cert="file"), CONTEXT, False),  # type: ignore[arg-type]
        ("amqps://ann:secret@one", Files(cert="file"), CONTEXT, True),  # type: ignore[arg-type]
        ("amqps://one", Files(), CONTEXT, True),
        ("amqp://one", Files(cert="file"), None, True),  # type: ignore[arg-type]
        ("amqp://one", None, None, True),
    ],
    ids=["certificate", "user", "no certificate", "no TLS", "no files"],
)
def test_an_amqp_1_0_session_logs_in_with_a_client_certificate_if_the_url_names_no_user(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    files: TlsFiles | None,
    context: ssl.SSLContext | None,
    *,
    names_user: bool,
) -> None:
    """An AMQP 1.0 session uses TLS if its URL starts with amqps://. If the URL then names no user, and there is a
    client certificate, the session logs in with the certificate. Otherwise, it logs in as the URL's user, or as
    `guest`.
    """
    asked = list[tuple[bool, object]]()

    def transport(address: Address, context: object, *_: object, **__: object) -> None:
        asked.append((address.names_user, context))
        raise Unavailable("no route")

    monkeypatch.setattr(reopening_transport, "Transport", transport)
    with pytest.raises(Unavailable):
        LinkSession(parse_addresses(url), tls=files)
    assert asked == [(names_user, context)]
