"""What survives a clean stop, a restart, and `kill -9` at any moment."""

import random
import threading
import time
from pathlib import Path
from typing import Any

import pika
import pytest
from pamqp import commands
from pika import BasicProperties
from pika.exceptions import AMQPError, ChannelClosedByBroker

from tests.brokers import large
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Take
from tests.protocol.raw_client import RawClient, raw_frame

PERSISTENT = BasicProperties(delivery_mode=2)


def connect(process: BrokerProcess) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(process.url))


def restart(process: BrokerProcess, how: str) -> None:
    if how == "kill":
        process.kill()
    else:
        assert process.stop() == 0
    process.start()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_durable_objects_and_persistent_messages_survive_a_restart(process: BrokerProcess, how: str) -> None:
    """After the broker is stopped or killed and then restarted, it still has the durable exchanges and queues, their
    bindings and the persistent messages. Transient exchanges, queues and messages are gone.
    """
    channel = connect(process).channel()
    channel.exchange_declare("x", "topic", durable=True, arguments={"alternate-exchange": "amq.fanout"})
    channel.exchange_declare("y", "fanout", durable=True)
    channel.exchange_declare("gone", "fanout")
    channel.queue_declare("q", durable=True, arguments={"x-max-priority": 3})
    channel.queue_declare("gone")
    channel.queue_bind("q", "x", "a.*", arguments={"n": 1})
    channel.queue_bind("q", "y")
    channel.exchange_bind("y", "x", "b.#")
    channel.queue_bind("q", "gone")
    channel.confirm_delivery()
    channel.basic_publish("x", "a.1", b"kept", BasicProperties(delivery_mode=2, headers={"h": 1}), mandatory=True)
    channel.basic_publish("x", "a.1", b"transient", mandatory=True)

    restart(process, how)

    connection = connect(process)
    channel = connection.channel()
    channel.exchange_declare("x", "topic", durable=True, arguments={"alternate-exchange": "amq.fanout"})
    channel.queue_declare("q", durable=True, arguments={"x-max-priority": 3})
    method, properties, body = Take(channel).one("q")
    assert (method.exchange, method.routing_key, method.redelivered, body) == ("x", "a.1", False, b"kept")
    assert properties.headers == {"h": 1}
    assert channel.basic_get("q")[0] is None
    channel.confirm_delivery()
    channel.basic_publish("x", "b.c", b"over the exchange between", mandatory=True)
    for gone in (channel.queue_declare, connection.channel().exchange_declare):
        with pytest.raises(ChannelClosedByBroker) as missing:
            gone("gone", passive=True)
        assert missing.value.reply_code == 404


def test_a_clean_restart_keeps_the_delivery_counts_of_a_quorum_queue(tmp_path: Path) -> None:
    """If a broker that imitates RabbitMQ 4.3 is stopped cleanly and restarted, a message in a quorum queue has the same
    x-acquired-count and x-delivery-count as before; a dead letter has those that it came with.
    """
    with BrokerProcess(tmp_path, "--data-dir", str(tmp_path / "data"), "--like", "4.3") as process:
        channel = connect(process).channel()
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        channel.basic_publish("", "q", b"1", PERSISTENT)
        for requeue in (channel.basic_nack, channel.basic_nack, channel.basic_reject):
            requeue(Take(channel).one("q", auto_ack=False)[0].delivery_tag, requeue=True)
        to_q = {"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
        channel.queue_declare("source", durable=True, arguments=to_q)
        channel.basic_publish("", "source", b"2", PERSISTENT)
        channel.basic_reject(Take(channel).one("source", auto_ack=False)[0].delivery_tag, requeue=False)
        Take(channel).until(lambda: channel.queue_declare("q", passive=True).method.message_count == 2)

        restart(process, "stop")

        take = Take(connect(process).channel())
        assert take.one("q")[1].headers == {"x-acquired-count": 3, "x-delivery-count": 1}
        dead = take.one("q")[1].headers
        assert (dead["x-acquired-count"], dead["x-delivery-count"]) == (1, 1)


def test_the_keys_of_bcc_and_the_history_of_a_dead_letter_survive_a_restart(process: BrokerProcess) -> None:
    """After a restart, BCC still routes the dead letters of a message that was published with it, and the x-death
    header of a dead letter is still the broker's own: the next death adds an entry to it.
    """
    channel = connect(process).channel()
    channel.exchange_declare("dlx", durable=True)
    to_end = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "end"}
    for queue, arguments in (("q", {"x-dead-letter-exchange": "dlx"}), ("blind", to_end), ("end", {})):
        channel.queue_declare(queue, durable=True, arguments=arguments)
    channel.queue_bind("blind", "dlx", "bcc")
    channel.confirm_delivery()
    channel.basic_publish("", "q", b"x", BasicProperties(delivery_mode=2, headers={"BCC": ["bcc"]}))
    for queue in ("q", "blind"):
        restart(process, "stop")
        take = Take(connect(process).channel())
        take.channel.basic_nack(take.one(queue, auto_ack=False)[0].delivery_tag, requeue=False)
    assert [death["queue"] for death in take.one("end")[1].headers["x-death"]] == ["blind", "q"]


@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish", "reject-publish-dlx"])
def test_a_classic_queue_does_not_exceed_its_maximum_length_after_a_restart(
    process: BrokerProcess, how: str, overflow: str
) -> None:
    """After a restart of the broker, unacknowledged messages are ready again. If a classic queue then has more ready
    messages than its x-max-length, the broker dead-letters the oldest messages, whatever the queue's x-overflow.
    """
    channel = connect(process).channel()
    channel.queue_declare("dead", durable=True)
    arguments = {"x-max-length": 2, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    channel.queue_declare("q", durable=True, arguments={**arguments, "x-overflow": overflow})
    channel.confirm_delivery()
    channel.basic_publish("", "q", b"1", PERSISTENT)
    Take(channel).one("q", auto_ack=False)
    for body in (b"2", b"3"):
        channel.basic_publish("", "q", body, PERSISTENT)

    restart(process, how)

    channel = connect(process).channel()
    assert channel.queue_declare("q", passive=True).method.message_count == 2
    assert Take(channel).bodies("q", 2) == [b"2", b"3"]
    assert Take(channel).bodies("dead", 1) == [b"1"]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_unacknowledged_messages_are_redelivered_after_a_restart(process: BrokerProcess, how: str) -> None:
    """After a restart of the broker, a queue still has its unacknowledged messages, in their original order and marked
    as redelivered. Acknowledged messages are gone.
    """
    channel = connect(process).channel()
    channel.queue_declare("q", durable=True)
    channel.confirm_delivery()
    for body in (b"1", b"2", b"3"):
        channel.basic_publish("", "q", body, PERSISTENT)
    tags = [channel.basic_get("q")[0].delivery_tag for _ in range(2)]
    channel.basic_ack(tags[0])
    channel.basic_publish("", "q", b"4", PERSISTENT)

    restart(process, how)

    channel = connect(process).channel()
    got = [channel.basic_get("q") for _ in range(3)]
    assert [body for _, _, body in got] == [b"2", b"3", b"4"]
    assert got[0][0].redelivered
    if how == "stop":
        assert [method.redelivered for method, _, _ in got] == [True, False, False]
    assert channel.basic_get("q")[0] is None


@pytest.mark.parametrize("how", ["ack", "reject"])
def test_messages_settled_in_a_transaction_do_not_come_back_after_a_kill(process: BrokerProcess, how: str) -> None:
    """If the broker is killed immediately after tx.commit-ok and restarted, the messages that were acknowledged or
    rejected in the transaction are no longer in the queue.
    """
    channel = connect(process).channel()
    channel.queue_declare("q", durable=True)
    channel.confirm_delivery()
    channel.basic_publish("", "q", b"", PERSISTENT)
    channel = channel.connection.channel()
    channel.tx_select()
    tag = Take(channel).one("q", auto_ack=False)[0].delivery_tag
    if how == "ack":
        channel.basic_ack(tag)
    else:
        channel.basic_reject(tag, requeue=False)

    channel.tx_commit()
    restart(process, "kill")

    assert connect(process).channel().queue_declare("q", passive=True).method.message_count == 0


def test_names_that_are_not_utf_8_survive_a_restart(process: BrokerProcess) -> None:
    """If the names of a queue and an exchange, and the routing key of their binding, are not valid UTF-8, the
    exchange still routes a message with this key to the queue after a restart.
    """

    def method(index: bytes, *names: bytes, bits: bytes) -> bytes:
        return raw_frame(1, 1, index + b"\0\0" + b"".join(bytes([len(name)]) + name for name in names) + bits)

    with RawClient(process.url) as client:
        client.socket.sendall(method(b"\x00\x32\x00\x0a", b"q\xff", bits=b"\x12\0\0\0\0"))
        client.socket.sendall(method(b"\x00\x28\x00\x0a", b"x\xfe", b"direct", bits=b"\x02\0\0\0\0"))
        client.expect(commands.Exchange.DeclareOk)
        client.socket.sendall(method(b"\x00\x32\x00\x14", b"q\xff", b"x\xfe", b"k\xfd", bits=b"\0\0\0\0\0"))
        client.expect(commands.Queue.BindOk)
    restart(process, "kill")
    with RawClient(process.url) as client:
        publish = method(b"\x00\x3c\x00\x28", b"x\xfe", b"k\xfd", bits=b"\0")
        header = b"\x00\x3c\0\0" + bytes(7) + b"\x01\0\0"
        client.socket.sendall(publish + raw_frame(2, 1, header) + raw_frame(3, 1, b"x"))
        client.socket.sendall(method(b"\x00\x32\x00\x0a", b"q\xff", bits=b"\x01\0\0\0\0"))
        head = client.read(7)
        declared = client.read(int.from_bytes(head[3:]) + 1)
        assert declared[:7] == b"\x00\x32\x00\x0b\x02q\xff"
        assert declared[7:11] == (1).to_bytes(4)


def test_users_permissions_and_virtual_hosts_survive_a_restart(tmp_path: Path) -> None:
    """After a restart, a user can still log in to a virtual host that had been added before the restart, and has the
    same permissions there.
    """
    from tests.protocol.conftest import Api

    options = ("--data-dir", str(tmp_path / "data"), "--management-port", "0")
    with BrokerProcess(tmp_path, *options) as process:
        api = Api(process.management_url)
        api("PUT", "vhosts/shop")
        api("PUT", "users/ann", {"password": "secret", "tags": "monitoring"})
        api("PUT", "permissions/shop/ann", {"configure": "^ann", "write": ".*", "read": ".*"})
        restart(process, "kill")
        url = process.url.replace("guest:guest", "ann:secret").replace("%2F", "shop")
        connection = pika.BlockingConnection(pika.URLParameters(url))
        connection.channel().queue_declare("ann-1")
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().queue_declare("bob-1")


def test_a_virtual_host_name_cannot_forge_lines_in_the_log(process: BrokerProcess) -> None:
    """If a client tries to connect to a virtual host whose name contains line breaks or control characters, these
    characters are escaped in the broker's log.
    """
    parameters = pika.URLParameters(process.url)
    parameters.virtual_host = "no\n2026-01-01 \x1b[31mforged"
    with pytest.raises(AMQPError):
        pika.BlockingConnection(parameters)
    until = time.monotonic() + 60
    while "forged" not in process.log:
        assert time.monotonic() < until
    assert "\\n2026-01-01 \\x1b[31mforged" in process.log


class Publisher(threading.Thread):
    """Publishes numbers with confirms until the connection is lost, and records which were confirmed."""

    def __init__(self, url: str, start: int) -> None:
        super().__init__()
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()
        self.number = start
        self.confirmed: list[int] = []

    def run(self) -> None:
        try:
            while True:
                self.number += 1
                self.channel.basic_publish("", "q", str(self.number).encode(), PERSISTENT)
                self.confirmed.append(self.number)
        except (AMQPError, OSError):
            return


class Consumer(threading.Thread):
    """Consumes and acknowledges messages, and records which it got and which it acknowledged."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.basic_qos(prefetch_count=10)
        self.got: list[tuple[int, bool]] = []

    def run(self) -> None:
        def take(_channel: Any, method: Any, _properties: BasicProperties, body: bytes) -> None:
            self.got.append((int(body), method.redelivered))
            self.channel.basic_ack(method.delivery_tag)

        try:
            self.channel.basic_consume("q", take)
            self.channel.start_consuming()
        except (AMQPError, OSError):
            return


@large
def test_no_confirmed_message_is_lost_when_the_broker_is_killed_twenty_times(process: BrokerProcess) -> None:
    """If the broker is killed twenty times while clients publish and consume, no confirmed message is lost, and
    messages that are delivered twice are marked as redelivered.
    """
    seed = random.Random(20)
    connect(process).channel().queue_declare("q", durable=True)
    confirmed: set[int] = set()
    first_seen: set[int] = set()
    number = 0
    for round_number in range(20):
        publisher = Publisher(process.url, number)
        workers: list[threading.Thread] = [publisher]
        consumer = Consumer(process.url) if round_number % 2 else None
        if consumer is not None:
            workers.append(consumer)
        for worker in workers:
            worker.start()
        publisher.join(seed.uniform(0.01, 0.15))
        process.kill()
        for worker in workers:
            worker.join(60)
        number = publisher.number
        confirmed.update(publisher.confirmed)
        if consumer is not None:
            unmarked = [value for value, redelivered in consumer.got if not redelivered]
            assert not first_seen.intersection(unmarked), "a message was delivered twice, but not marked as redelivered"
            first_seen.update(value for value, _ in consumer.got)
        process.start()
    channel = connect(process).channel()
    left = []
    while (got := channel.basic_get("q", auto_ack=True))[0] is not None:
        left.append(int(got[2]))
        assert got[0].redelivered or left[-1] not in first_seen
    assert len(left) == len(set(left))
    assert left == sorted(left)
    assert confirmed, "no message was confirmed before a kill"
    assert first_seen, "no message was consumed before a kill"
    assert confirmed <= first_seen | set(left), "a confirmed message is lost"
    assert "Traceback" not in process.log


def test_two_brokers_cannot_share_a_data_directory(process: BrokerProcess) -> None:
    """If a second broker is started on a data directory that is in use, the second broker exits with 1. The first
    broker stays usable.
    """
    second = BrokerProcess(process.directory)
    second.ready_file = process.directory / "second"
    with pytest.raises(AssertionError):
        second.start()
    assert second.process is not None
    assert second.process.wait(60) == 1
    connect(process).close()
