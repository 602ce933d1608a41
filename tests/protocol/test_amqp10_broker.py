"""AMQP 1.0 in the embedded broker: crashes, alarms and faults."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pika
import pytest

from mqtool.address import parse_address
from mqtool.amqp import TlsFiles
from mqtool.amqp10 import LinkSession
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.testing.authority import Authority
from mqtool.codecs.amqp10_message import Amqp10Message, MessageHeader, data_section
from mqtool.codecs.amqp10_values import Described, Symbol
from mqtool.codecs.field_tables import UInt8, UInt32
from mqtool.errors import AccessRefused
from tests.protocol.broker_process import BrokerProcess, other_address
from tests.protocol.conftest import Api
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    AMQP_HEADER,
    ATTACH,
    CLOSE,
    DETACH,
    DISPOSITION,
    FLOW,
    INIT,
    MECHANISMS,
    OPEN,
    OUTCOME,
    RECEIVER,
    RELEASED,
    SASL_HEADER,
    SENDER,
    TRANSFER,
    RawAmqp10,
    described,
)


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(like="4.3", management_port=0) as broker:
        yield broker


@pytest.fixture
def queue(broker: EmbeddedBroker) -> str:
    """The address of a queue named `q`."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        connection.channel().queue_declare("q", durable=True)
    return "/queues/q"


def test_a_broker_that_behaves_like_rabbitmq_3_10_refuses_amqp_1_0_clients() -> None:
    """An embedded broker that behaves like RabbitMQ 3.10 answers an AMQP 1.0 client with the protocol header of AMQP
    0-9-1, and closes the connection.
    """
    with EmbeddedBroker(like="3.10") as broker:
        client = RawAmqp10(broker.url, opened=False)
        client.socket.sendall(SASL_HEADER)
        assert client.read(8) == b"AMQP\x00\x00\x09\x01"
        assert client.closed()


def test_messages_accepted_over_amqp_1_0_survive_a_crash(tmp_path: Path) -> None:
    """If the broker is killed while a client is publishing over AMQP 1.0 to classic and quorum queues, every accepted
    durable message is in its queue after a restart.
    """
    kinds = ["classic", "quorum"]
    with BrokerProcess(tmp_path, "--data-dir", str(tmp_path / "data"), "--like", "4.3") as process:
        client = RawAmqp10(process.url)
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(process.url))) as connection:
            for handle, kind in enumerate(kinds):
                connection.channel().queue_declare(kind, durable=True, arguments={"x-queue-type": kind})
                client.attach_sender(f"/queues/{kind}", handle=handle)
        accepted: set[int] = set()
        number = 0
        while len(accepted) < 200:
            for _ in range(20):
                durable = Amqp10Message(MessageHeader(durable=True), body=data_section(b"%d" % number))
                client.publish(number, durable.encode(), handle=number % 2)
                number += 1
            until = len(accepted) + 20
            while len(accepted) < until:
                got = client.receive()
                if got.code == DISPOSITION:
                    assert got.field(4).descriptor == ACCEPTED
                    last = got.field(1) if got.field(2) is None else got.field(2)
                    accepted |= set(range(got.field(1), last + 1))
        process.kill()
        process.start()
        for start, kind in enumerate(kinds):
            client = RawAmqp10(process.url)
            client.attach_receiver(f"/queues/{kind}", credit=1000)
            missing = {number for number in accepted if number % 2 == start}
            while missing:
                missing.discard(int(client.expect(TRANSFER).body or b""))


@pytest.mark.parametrize(("like", "persistent"), [("4.0", True), ("4.2", False)])
def test_a_message_that_does_not_say_whether_it_is_durable_is_persistent_before_rabbitmq_4_2(
    like: str, persistent: bool
) -> None:
    """If an AMQP 1.0 message has no header, or a header without the field `durable`, an embedded broker that behaves
    like RabbitMQ 4.0 makes the message persistent. One that behaves like 4.2 does not.
    """
    headers = (MessageHeader(), MessageHeader(priority=UInt8(3)), MessageHeader(durable=False))
    with (
        EmbeddedBroker(like=like) as broker,
        RawAmqp10(broker.url) as client,
        contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection,
    ):
        channel = connection.channel()
        channel.queue_declare("q", durable=True)
        client.attach_sender("/queues/q")
        for number, header in enumerate(headers):
            sent = Amqp10Message(header, body=data_section(b"x"))
            assert client.published(number, sent.encode()).descriptor == ACCEPTED
        modes = [channel.basic_get("q", auto_ack=True)[1].delivery_mode for _ in headers]
    assert [mode == 2 for mode in modes] == [persistent, persistent, False]


def test_an_alarm_stops_amqp_1_0_publishers_but_not_receivers(broker: EmbeddedBroker, queue: str) -> None:
    """During a resource alarm, the broker stops an AMQP 1.0 client from publishing: it sets the incoming window of
    the client's session to 0. It still delivers messages to receivers in this session. After the alarm, the broker
    opens the window again.
    """
    client = RawAmqp10(broker.url)
    client.attach_sender(queue)
    with broker.faults.block_publishers():
        client.publish(0)
        assert client.expect(FLOW).field(1) == 0
        assert client.expect(DISPOSITION).field(4).descriptor == ACCEPTED
        client.attach_receiver(queue, handle=1)
        assert client.expect(TRANSFER).body == b"hello"
    flow = client.expect(FLOW)
    assert (flow.field(1), flow.field(4)) == (400, None)


def test_exceeding_the_session_window_during_an_alarm_ends_the_session(broker: EmbeddedBroker, queue: str) -> None:
    """If an AMQP 1.0 client sends more transfers during a resource alarm than its session's window allows, the broker
    ends the session.
    """
    client = RawAmqp10(broker.url)
    client.attach_sender(queue, handle=0)
    with broker.faults.block_publishers():
        for number in range(402):
            client.publish(number, settled=True, more=number > 160)
        got = client.receive()
        while got.code == FLOW:
            got = client.receive()
        assert got.error is not None


def test_faults_of_the_embedded_broker_end_amqp_1_0_connections_and_sessions(
    broker: EmbeddedBroker, queue: str
) -> None:
    """Faults that a test injects into the embedded broker affect AMQP 1.0 clients: `close_connections` sends a client
    a close frame, `close_channels` ends a client's session, and `cut_connections` cuts a client's connection without
    a close frame.
    """
    client = RawAmqp10(broker.url)
    client.attach_sender(queue)
    broker.faults.close_connections()
    condition, text = client.expect(CLOSE).error or ("", "")
    assert condition == "amqp:internal-error"
    assert "Closed by a test" in str(text)
    client = RawAmqp10(broker.url)
    assert broker.faults.close_channels() == 1
    assert client.ended() == ("amqp:precondition-failed", "Closed by a test")
    broker.faults.cut_connections()
    with pytest.raises((EOFError, ConnectionError)):
        client.receive()


def test_the_lose_acks_fault_applies_to_amqp_1_0(broker: EmbeddedBroker, queue: str) -> None:
    """If an AMQP 1.0 receiver settles a message with the outcome `accepted` while the fault `lose_acks` is in force,
    the embedded broker ignores the outcome, and redelivers the message with first-acquirer set to false.
    """
    client = RawAmqp10(broker.url)
    client.attach_sender(queue, handle=1)
    assert client.published(0, handle=1).descriptor == ACCEPTED
    client.attach_receiver(queue)
    client.expect(TRANSFER)
    with broker.faults.lose_acks():
        client.settle(0, described(ACCEPTED))
        again = client.expect(TRANSFER)
    assert (again.body, again.message.header.first_acquirer) == (b"hello", False)


def test_the_consumer_timeout_releases_unsettled_messages_over_amqp_1_0() -> None:
    """If an AMQP 1.0 receiver does not settle a message within the consumer timeout, the broker releases the message.
    It ignores a later settlement by this receiver, and redelivers the message.
    """
    with EmbeddedBroker(like="4.3", consumer_timeout=0.3) as broker:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
            connection.channel().queue_declare("qq", durable=True, arguments={"x-queue-type": "quorum"})
        client = RawAmqp10(broker.url)
        client.attach_sender("/queues/qq", handle=1)
        client.published(0, handle=1)
        client.attach_receiver("/queues/qq", credit=1)
        client.expect(TRANSFER)
        released = client.expect(DISPOSITION)
        assert (released.field(0), released.field(1), released.field(3)) == (SENDER, 0, False)
        assert released.field(4).descriptor == RELEASED
        client.settle(0, described(ACCEPTED))
        client.flow(0, 1, count=1, seen=1)
        again = client.expect(TRANSFER)
        assert (again.body, again.message.header.delivery_count) == (b"hello", 0)


def test_the_management_api_closes_an_amqp_1_0_connection(broker: EmbeddedBroker, queue: str) -> None:
    """If an AMQP 1.0 connection is deleted through the management API, the broker sends the connection's client a close
    frame with the same reason as RabbitMQ: "Closed via management plugin".
    """
    client = RawAmqp10(broker.url)
    api = Api(str(broker.management_url))
    (found,) = api("GET", "connections")[1]
    assert found["protocol"] == "AMQP 1-0"
    api("DELETE", f"connections/{found['name'].replace(' ', '%20')}")
    assert client.expect(CLOSE).error == ("amqp:internal-error", 'Connection forced: "Closed via management plugin"')


def test_an_aborted_transfer_leaves_the_link_usable(broker: EmbeddedBroker, queue: str) -> None:
    """After an AMQP 1.0 sender has aborted a transfer, the broker accepts the next message on the same link."""
    client = RawAmqp10(broker.url)
    client.attach_sender(queue)
    client.publish(0, bytes(50_000), more=True)
    client.send(TRANSFER, UInt32(0), None, None, None, None, False, None, None, None, True)  # aborted
    assert client.published(1).descriptor == ACCEPTED


def anonymous(url: str) -> tuple[RawAmqp10, int]:
    """A client that logs in with the SASL mechanism ANONYMOUS, and the code of the SASL outcome."""
    client = RawAmqp10(url, opened=False)
    client.socket.sendall(SASL_HEADER)
    client.read(8)
    client.expect(MECHANISMS)
    client.send(INIT, Symbol("ANONYMOUS"), kind=1)
    return client, client.expect(OUTCOME).fields[0]


@pytest.mark.parametrize("change", ["another password", "no password", "no user"])
def test_a_login_with_sasl_anonymous_is_refused_if_guest_lacks_the_default_password(
    broker: EmbeddedBroker, change: str
) -> None:
    """A client that uses the SASL mechanism ANONYMOUS logs in as the user guest with the default password. The broker
    refuses the login if guest has another password or none, or has been deleted.
    """
    api = Api(str(broker.management_url))
    if change == "no user":
        assert api("DELETE", "users/guest")[0] == 204
    else:
        given = {"password": "secret"} if change == "another password" else {"password_hash": ""}
        assert api("PUT", "users/guest", {**given, "tags": "administrator"})[0] == 204
    client, outcome = anonymous(broker.url)
    assert outcome == 1
    assert client.closed()


@pytest.mark.parametrize("options", [(), ("--guest-from-anywhere",)], ids=["by default", "guest from anywhere"])
def test_a_login_with_sasl_anonymous_from_another_machine_is_refused_by_default(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """If a client on another machine logs in with the SASL mechanism ANONYMOUS, the broker closes the connection after
    the client's open frame, unless the broker was started with --guest-from-anywhere.
    """
    here = other_address()
    if here is None:
        pytest.skip("this machine has only a loopback address")
    with BrokerProcess(tmp_path, "--host", "0.0.0.0", "--like", "4.3", *options) as broker:
        client, outcome = anonymous(broker.url.replace("0.0.0.0", here))
        assert outcome == 0
        client.socket.sendall(AMQP_HEADER)
        client.read(8)
        client.send(OPEN, "me")
        if options:
            client.expect(OPEN)
        else:
            assert client.closed()


@pytest.mark.parametrize("user", ["CN=client", "CN=somebody"])
def test_a_client_can_log_in_with_a_certificate_over_amqp_1_0(amqp_tls: Authority, user: str) -> None:
    """An AMQP 1.0 client with the SASL mechanism EXTERNAL logs in as the user named in the subject of its certificate.
    If there is no such user, the broker refuses the login.
    """
    with EmbeddedBroker(like="4.3", management_port=0, tls=amqp_tls.tls(client_certificates=True)) as broker:
        api = Api(str(broker.management_url))
        api("PUT", f"users/{quote(user)}", {"password": "secret", "tags": ""})
        api("PUT", f"permissions/%2F/{quote(user)}", {"configure": ".*", "write": ".*", "read": ".*"})
        assert broker.tls_url is not None
        client = RawAmqp10(broker.tls_url, opened=False)
        context = amqp_tls.context(client_certificate=True)
        client.socket = context.wrap_socket(client.socket, server_hostname="localhost")
        client.socket.sendall(SASL_HEADER)
        client.read(8)
        assert "EXTERNAL" in client.expect(MECHANISMS).fields[0]
        client.send(INIT, Symbol("EXTERNAL"), b"", kind=1)
        assert client.expect(OUTCOME).fields[0] == (0 if user == "CN=client" else 1)
        if user == "CN=client":
            client.socket.sendall(AMQP_HEADER)
            client.read(8)
            client.send(OPEN, "c")
            client.expect(OPEN)
            assert [each["user"] for each in api("GET", "connections")[1]] == [user]
        files = TlsFiles(amqp_tls.ca, amqp_tls.client_cert, amqp_tls.client_key)
        without_user = parse_address(f"amqps://localhost:{broker.tls_url.rpartition(':')[2]}")
        with contextlib.ExitStack() as stack:
            if user != "CN=client":
                stack.enter_context(pytest.raises(AccessRefused, match="refused the login"))
            stack.enter_context(LinkSession([without_user], tls=files))
            assert user in [each["user"] for each in api("GET", "connections")[1]]
        with LinkSession([without_user._replace(names_user=True)], tls=files):
            assert "guest" in [each["user"] for each in api("GET", "connections")[1]]


def test_unsettled_messages_of_a_deleted_queue_do_not_count_towards_memory_use(
    broker: EmbeddedBroker, queue: str
) -> None:
    """After a queue is deleted, its messages that an AMQP 1.0 receiver has not settled no longer count towards the
    broker's memory use.
    """
    api = Api(str(broker.management_url))
    with (
        contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection,
        RawAmqp10(broker.url) as client,
    ):
        channel = connection.channel()
        for _ in range(3):
            channel.basic_publish("", "q", bytes(100_000))
        client.attach_receiver(queue)
        for _ in range(3):
            client.expect(TRANSFER)
        assert api("GET", "nodes")[1][0]["mem_used"] > 300_000
        channel.queue_delete("q")
        assert client.detached() == ("amqp:resource-deleted", None)
        assert api("GET", "nodes")[1][0]["mem_used"] < 100_000


def test_long_link_names_count_towards_memory_use() -> None:
    """The names of AMQP 1.0 links count towards the broker's memory use until the links are detached. If the names of
    a client's links take more memory than the limit for one connection, the broker closes the connection.
    """
    with (
        EmbeddedBroker(like="4.3", management_port=0, memory_limit=1_000_000) as broker,
        RawAmqp10(broker.url) as client,
    ):
        api = Api(str(broker.management_url))
        for handle in range(12):
            client.attach_sender(None, handle=handle, name=f"{handle}{'x' * 60_000}")
        assert api("GET", "nodes")[1][0]["mem_used"] > 700_000
        for handle in range(12):
            client.send(DETACH, UInt32(handle), True)
            client.expect(DETACH)
        assert api("GET", "nodes")[1][0]["mem_used"] < 100_000
        for handle in range(20):
            client.attach(SENDER, None, handle=handle, name=f"{handle}{'x' * 60_000}")
        while (got := client.receive()).code != CLOSE:
            pass
        assert "bytes are held for this connection" in str(got.error)


def test_the_firehose_copies_amqp_1_0_messages(broker: EmbeddedBroker, queue: str) -> None:
    """If the firehose of a virtual host is on, the exchange `amq.rabbitmq.trace` gets a copy of each message that is
    published or delivered over AMQP 1.0.
    """
    Api(str(broker.management_url))("PUT", "vhosts/%2F", {"tracing": True})
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        channel.queue_declare("traced", exclusive=True)
        channel.queue_bind("traced", "amq.rabbitmq.trace", "#")
        client = RawAmqp10(broker.url)
        client.attach_sender(queue)
        assert client.published(0).descriptor == ACCEPTED
        client.attach_receiver(queue, handle=1)
        client.expect(TRANSFER)
        copies = [channel.basic_get("traced", auto_ack=True) for _ in range(2)]
        assert [(copy[0].routing_key, copy[2]) for copy in copies] == [("publish.", b"hello"), ("deliver.q", b"hello")]
        assert copies[0][1].headers["user"] == "guest"


def test_an_expensive_sql_filter_detaches_only_its_own_link(broker: EmbeddedBroker) -> None:
    """If the broker cannot evaluate an AMQP 1.0 receiver's SQL filter within a time limit, it detaches the receiver's
    link with resource-limit-exceeded. The other links of the session stay usable.
    """
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        connection.channel().queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
    client = RawAmqp10(broker.url)
    client.attach_sender("/queues/s", handle=1)
    long = Amqp10Message(application_properties={"a": "a" * 100_000}, body=data_section(b"long")).encode()
    for number in range(40):
        assert client.published(number, long, handle=1).descriptor == ACCEPTED
    spec, sql = Symbol("rabbitmq:stream-offset-spec"), Symbol("sql-filter")
    wanted = {spec: Described(spec, "first"), sql: Described(Symbol("amqp:sql-filter"), f"a LIKE '%{'a_' * 1900}b%'")}
    client.attach(RECEIVER, "/queues/s", handle=2, source=(None, None, None, None, None, None, wanted))
    client.expect(ATTACH)
    client.flow(2, 10)
    condition, text = client.detached() or ("", "")
    assert condition == "amqp:resource-limit-exceeded"
    assert "take too long" in str(text)
    assert client.published(40, long, handle=1).descriptor == ACCEPTED
