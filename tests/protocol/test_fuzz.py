"""Ten thousand malformed inputs: no crash, no traceback, no leak, and a well-behaved client beside them goes on."""

import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pika
from pamqp import commands, frame, header
from pamqp.base import Frame

from tests.brokers import IN_CI
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Api, Take
from tests.protocol.raw_client import raw_frame

INPUTS = 10_000 if IN_CI else 2_500

START_OK = frame.marshal(commands.Connection.StartOk(mechanism="PLAIN", response="\0guest\0guest"), 0)
TUNE_OK = frame.marshal(commands.Connection.TuneOk(2047, 131_072, 0), 0)
OPEN = frame.marshal(commands.Connection.Open(), 0)
HELLO = b"AMQP\x00\x00\x09\x01" + START_OK + TUNE_OK + OPEN + frame.marshal(commands.Channel.Open(), 1)

METHODS: list[Frame] = [
    commands.Queue.Declare(queue="f", arguments={"x-max-length": 5, "x-message-ttl": 10}),
    commands.Queue.Declare(queue="g", auto_delete=True, arguments={"x-max-priority": 3}),
    commands.Queue.Bind(queue="f", exchange="amq.topic", routing_key="#"),
    commands.Queue.Unbind(queue="f", exchange="amq.topic", routing_key="#"),
    commands.Queue.Purge(queue="f"),
    commands.Queue.Delete(queue="f"),
    commands.Exchange.Declare(exchange="e", exchange_type="headers", arguments={"alternate-exchange": "amq.fanout"}),
    commands.Exchange.Bind(destination="e", source="amq.topic", routing_key="a.*"),
    commands.Exchange.Delete(exchange="e"),
    commands.Basic.Qos(prefetch_count=3),
    commands.Basic.Consume(queue="f", consumer_tag="t", arguments={"x-priority": 1}),
    commands.Basic.Cancel(consumer_tag="t"),
    commands.Basic.Get(queue="f"),
    commands.Basic.Ack(delivery_tag=1, multiple=True),
    commands.Basic.Nack(delivery_tag=0, multiple=True),
    commands.Basic.Reject(delivery_tag=1, requeue=False),
    commands.Basic.Recover(requeue=True),
    commands.Tx.Select(),
    commands.Tx.Commit(),
    commands.Tx.Rollback(),
    commands.Confirm.Select(),
    commands.Channel.Open(),
    commands.Channel.Close(200, "", 0, 0),
    commands.Channel.CloseOk(),
    commands.Channel.Flow(active=True),
]
CONTENT = (
    frame.marshal(commands.Basic.Publish(exchange="amq.topic", routing_key="a.b", mandatory=True), 1)
    + frame.marshal(
        header.ContentHeader(
            body_size=5, properties=commands.Basic.Properties(headers={"CC": ["f"], "a": 1}, expiration="5", priority=2)
        ),
        1,
    )
    + raw_frame(3, 1, b"hello")
)


class Corpus:
    """Inputs from a seed: valid conversations, cut, flipped, repeated and shuffled; and plain noise."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.makers: list[Callable[[], bytes]] = [
            self.noise,
            self.truncated_handshake,
            self.flipped,
            self.shuffled,
            self.odd_frames,
            self.flipped_content,
        ]

    def next(self) -> bytes:
        """One input, from the first octet of a connection on."""
        return self.random.choice(self.makers)()

    def _conversation(self) -> bytes:
        count = self.random.randint(1, 4)
        parts = [frame.marshal(method, 1) for method in self.random.choices(METHODS, k=count)]
        return b"".join([*parts, CONTENT])

    def _flip(self, data: bytes) -> bytes:
        octets = bytearray(data)
        for _ in range(self.random.randint(1, 4)):
            octets[self.random.randrange(len(octets))] = self.random.randrange(256)
        return bytes(octets)

    def noise(self) -> bytes:
        return self.random.randbytes(self.random.randint(1, 200))

    def truncated_handshake(self) -> bytes:
        return HELLO[: self.random.randrange(len(HELLO))]

    def flipped(self) -> bytes:
        return self._flip(HELLO + self._conversation())

    def flipped_content(self) -> bytes:
        return HELLO + frame.marshal(METHODS[0], 1) + self._flip(CONTENT) + self._conversation()

    def shuffled(self) -> bytes:
        parts = [frame.marshal(method, self.random.choice((0, 1, 1, 1, 2))) for method in METHODS]
        parts += [CONTENT[:30], CONTENT, raw_frame(2, 1, b""), raw_frame(3, 1, b"x")]
        self.random.shuffle(parts)
        return HELLO + b"".join(parts[: self.random.randint(1, 6)])

    def odd_frames(self) -> bytes:
        kind, channel = self.random.choice((0, 1, 2, 3, 4, 8, 255)), self.random.choice((0, 1, 1, 65535))
        payload = self.random.randbytes(self.random.randint(0, 40))
        if self.random.random() < 0.7:
            index = self.random.choice(METHODS).index
            payload = struct.pack(">I", index) + payload
        end = 0xCE if self.random.random() < 0.8 else 0
        return HELLO + raw_frame(kind, channel, payload, end)


def throw(port: int, octets: bytes) -> None:
    """Send, and go, sometimes without a farewell."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        try:
            client.sendall(octets)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65_536):
                pass
        except OSError:
            # The broker was the first to go.
            return


def test_malformed_inputs(tmp_path: Path) -> None:
    """The seed is fixed, so that a failure can be had again."""
    corpus = Corpus(seed=91)
    with BrokerProcess(tmp_path, "--in-memory", "--management-port", "0") as process:
        url = pika.URLParameters(process.url)
        connection = pika.BlockingConnection(url)
        channel = connection.channel()
        channel.queue_declare("well-behaved", exclusive=True)
        take = Take(channel)
        for number in range(INPUTS):
            throw(url.port, corpus.next())
            if number % 500 == 0:
                channel.basic_publish("", "well-behaved", b"%d" % number)
                assert take.one("well-behaved")[2] == b"%d" % number
        api = Api(process.management_url)
        deadline = time.monotonic() + 10
        while (totals := api("GET", "overview")[1]["object_totals"])["connections"] != 1:
            assert time.monotonic() < deadline, totals
        assert totals["channels"] == 1
        connection.close()
        assert process.stop() == 0
        assert "Traceback" not in process.log
        assert "INTERNAL_ERROR" not in process.log
