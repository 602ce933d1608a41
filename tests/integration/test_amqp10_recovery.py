"""AMQP 1.0: what the client does with a message that a queue rejects after a reconnection, or that is too large."""

from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from mqtool.amqp import Backoff, Receiving, parse_addresses
from mqtool.amqp10 import LinkSession, link_receiver, queue_address
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.amqp10.incoming_link import IncomingLink
from mqtool.codecs.amqp10_frames import Error, Rejected
from mqtool.codecs.amqp10_values import Symbol
from mqtool.errors import Unavailable
from mqtool.message import Confirmation, Message
from mqtool.topology import Queue
from tests.brokers import free_port
from tests.cli.shell import wait_until
from tests.proxy import Proxy

FULL = Queue("q", durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"})


@pytest.mark.parametrize(("reason", "again"), [("unavailable", True), ("maxlen", False)], ids=["unavailable", "full"])
def test_an_amqp_1_0_message_rejected_after_a_reconnection_is_republished_unless_the_queue_is_full(
    monkeypatch: pytest.MonkeyPatch, reason: str, *, again: bool
) -> None:
    """If an AMQP 1.0 message is rejected right after a reconnection because its queue is unavailable, mqtool
    republishes the message. If the message is rejected because the queue is full, mqtool reports it as nacked.
    """
    rejected, notices = 0, list[str]()

    def reject(*_: object) -> Rejected:
        nonlocal rejected
        rejected += 1
        info = {Symbol("queue"): "q", Symbol("reason"): Symbol(reason)}
        return Rejected(Error(Symbol("amqp:precondition-failed"), f"queue 'q': {reason}", info))

    monkeypatch.setattr(IncomingLink, "_rejected", reject)
    backoff = Backoff(first=0.01, longest=0.2)
    with (
        EmbeddedBroker(like="4.3") as broker,
        LinkSession(parse_addresses(broker.url), backoff=backoff, notice=notices.append) as session,
        ThreadPoolExecutor() as pool,
    ):
        session.declare(FULL)
        fill = [Message(b"%d" % number) for number in range(3)]
        assert [each.confirmation for each in session.sender(queue_address("q")).send(fill)][-1] is Confirmation.NACKED
        broker.faults.cut_connections()
        wait_until(lambda: any("connected again" in notice for notice in notices), "the connection is back")
        before = rejected
        sending = pool.submit(lambda: [*session.sender(queue_address("q")).send([Message(b"last")])])
        wait_until(lambda: rejected > before, "the queue rejects the message")
        if again:
            session.purge("q")
        [receipt] = sending.result()
        assert receipt.confirmation is (Confirmation.CONFIRMED if again else Confirmation.NACKED)


def test_an_amqp_1_0_message_rejected_while_a_node_is_down_is_republished(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one node of a cluster is down, mqtool republishes an AMQP 1.0 message that was rejected because its queue
    was unavailable.
    """
    rejected: list[Rejected] = []

    def reject(*_: object) -> Rejected:
        info = {Symbol("queue"): "q", Symbol("reason"): Symbol("unavailable")}
        rejected.append(Rejected(Error(Symbol("amqp:precondition-failed"), "queue 'q': unavailable", info)))
        return rejected[-1]

    monkeypatch.setattr(IncomingLink, "_rejected", reject)
    with EmbeddedBroker(like="4.3") as broker, ThreadPoolExecutor() as pool:
        cluster = parse_addresses(f"amqp://127.0.0.1:{free_port()},{broker.url}")
        with LinkSession(cluster) as session:
            session.declare(FULL)
            sender = session.sender(queue_address("q"))
            # A quorum queue takes one message more than its limit.
            fill = [Message(b"first"), Message(b"second")]
            assert {each.confirmation for each in sender.send(fill)} == {Confirmation.CONFIRMED}
            sending = pool.submit(lambda: [*sender.send([Message(b"last")])])
            wait_until(lambda: len(rejected) > 0, "the queue rejects the message")
            session.purge("q")
            assert [each.confirmation for each in sending.result()] == [Confirmation.CONFIRMED]


def test_mqtool_stops_receiving_if_an_amqp_1_0_message_is_larger_than_rabbitmq_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the transfers of one AMQP 1.0 message add up to more than the largest message that RabbitMQ allows (512 MiB),
    mqtool stops receiving and raises Unavailable. It does not reconnect.
    """
    monkeypatch.setattr(link_receiver, "_LARGEST", 150_000)
    with EmbeddedBroker(like="4.3") as broker, Proxy(int(str(urlsplit(broker.url).port))) as proxy:
        url = broker.url.replace(f":{urlsplit(broker.url).port}", f":{proxy.port}")
        with LinkSession(parse_addresses(url), backoff=Backoff()) as session:
            session.declare(Queue("q", durable=True))
            for size in (140_000, 200_000):
                list(session.sender(queue_address("q")).send([Message(b"x" * size)]))
            deliveries = session.receiver(queue_address("q"), Receiving()).deliveries()
            assert len(next(deliveries).body) == 140_000
            with pytest.raises(Unavailable, match="the broker sends a message of more than 512 MiB"):
                next(deliveries)
        assert proxy.accepted == 1
