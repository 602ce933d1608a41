"""Input that no well-behaved client sends: the bytes of AMQP and stream connections, generated from a seed.

The suite (`test_fuzz.py`) sends several thousand of them; `python -m tests.siege` sends them for as long as it runs.
"""

import random
import struct
from collections.abc import Callable

from pamqp import commands, frame, header
from pamqp.base import Frame

from tests.protocol import raw_stream
from tests.protocol.raw_client import raw_frame

PROTOCOL = b"AMQP\x00\x00\x09\x01"
START_OK = frame.marshal(commands.Connection.StartOk(mechanism="PLAIN", response="\0guest\0guest"), 0)
TUNE_OK = frame.marshal(commands.Connection.TuneOk(2047, 131_072, 0), 0)
OPEN = frame.marshal(commands.Connection.Open(), 0)
HELLO = PROTOCOL + START_OK + TUNE_OK + OPEN + frame.marshal(commands.Channel.Open(), 1)

METHODS: list[Frame] = [
    commands.Queue.Declare(queue="f", arguments={"x-max-length": 5, "x-message-ttl": 10}),
    commands.Queue.Declare(queue="g", auto_delete=True, arguments={"x-max-priority": 3}),
    commands.Queue.Declare(queue="h", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 2}),
    commands.Queue.Declare(queue="i", durable=True, arguments={"x-queue-type": "stream"}),
    commands.Queue.Bind(queue="f", exchange="amq.topic", routing_key="#"),
    commands.Queue.Unbind(queue="f", exchange="amq.topic", routing_key="#"),
    commands.Queue.Purge(queue="f"),
    commands.Queue.Delete(queue="f"),
    commands.Exchange.Declare(exchange="e", exchange_type="headers", arguments={"alternate-exchange": "amq.fanout"}),
    commands.Exchange.Bind(destination="e", source="amq.topic", routing_key="a.*"),
    commands.Exchange.Delete(exchange="e"),
    commands.Basic.Qos(prefetch_count=3),
    commands.Basic.Consume(queue="f", consumer_tag="t", arguments={"x-priority": 1}),
    commands.Basic.Consume(queue="i", consumer_tag="s", arguments={"x-stream-offset": "first"}),
    commands.Basic.Consume(queue="amq.rabbitmq.reply-to", consumer_tag="r", no_ack=True),
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
PROPERTIES = commands.Basic.Properties(headers={"CC": ["f", "h", "i"], "a": 1}, expiration="5", priority=2)
CONTENT = (
    frame.marshal(commands.Basic.Publish(exchange="amq.topic", routing_key="a.b", mandatory=True), 1)
    + frame.marshal(header.ContentHeader(body_size=5, properties=PROPERTIES), 1)
    + raw_frame(3, 1, b"hello")
)


class Inputs:
    """Generates hostile inputs, each of a random kind.

    Args:
        seed: determines the inputs.
        large: allow large inputs, with replies of gigabytes.
    """

    makers: tuple[Callable[["Inputs"], bytes], ...]

    def __init__(self, seed: int, *, large: bool = False) -> None:
        self.random = random.Random(seed)
        self.large = large

    def next(self) -> bytes:
        """Return all bytes of one connection."""
        return self.random.choice(self.makers)(self)

    def flip(self, data: bytes) -> bytes:
        """Change some bytes."""
        changed = bytearray(data)
        for _ in range(self.random.randint(1, 4)):
            changed[self.random.randrange(len(changed))] = self.random.randrange(256)
        return bytes(changed)

    def noise(self) -> bytes:
        """Random bytes."""
        return self.random.randbytes(self.random.randint(1, 200))


class AmqpInputs(Inputs):
    """Conversations of AMQP 0-9-1 that are cut off, changed, repeated or shuffled, before the login or after it."""

    def _conversation(self) -> bytes:
        methods = self.random.choices(METHODS, k=self.random.randint(1, 4))
        return b"".join([*(frame.marshal(method, 1) for method in methods), CONTENT])

    def truncated_handshake(self) -> bytes:
        """A handshake that stops after a random byte."""
        return HELLO[: self.random.randrange(len(HELLO))]

    def odd_login(self) -> bytes:
        """A start-ok or tune-ok with any mechanism, response, table and limits."""
        mechanism = self.random.choice([b"PLAIN", b"AMQPLAIN", b"EXTERNAL", b"", b"\xff" * 255])
        response = self.random.choice([b"\0guest\0guest", b"\0" * 5, b"", self.random.randbytes(40), bytes(100_000)])
        table = self.random.choice([b"", self.random.randbytes(30), b"\1aF" + b"\0\0\0\7\1aF" * 300])
        short = [bytes([len(each)]) + each for each in (mechanism, b"en_US")]
        long = [struct.pack(">I", len(each)) + each for each in (table, response)]
        start_ok = b"\x00\x0a\x00\x0b" + long[0] + short[0] + long[1] + short[1]
        tune_ok = b"\x00\x0a\x00\x1f" + self.random.randbytes(8)
        frames = [raw_frame(1, 0, start_ok), raw_frame(1, 0, tune_ok), OPEN, START_OK, raw_frame(8, 0, b"")]
        return PROTOCOL + b"".join(self.random.choices(frames, k=4))

    def large_before_login(self) -> bytes:
        """A frame that claims to be larger than it is, or has the maximum size."""
        size = self.random.choice([131_072, 131_073, 1 << 31, (1 << 32) - 1])
        return PROTOCOL + struct.pack(">BHI", 1, 0, size) + bytes(self.random.choice([0, 10, 131_073]))

    def flipped(self) -> bytes:
        """A conversation with some bytes changed."""
        return self.flip(HELLO + self._conversation())

    def flipped_content(self) -> bytes:
        """A publish with some bytes changed."""
        return HELLO + frame.marshal(METHODS[0], 1) + self.flip(CONTENT) + self._conversation()

    def shuffled(self) -> bytes:
        """Methods and content in any order, on any channel."""
        parts = [frame.marshal(method, self.random.choice((0, 1, 1, 1, 2))) for method in METHODS]
        parts += [CONTENT[:30], CONTENT, raw_frame(2, 1, b""), raw_frame(3, 1, b"x")]
        self.random.shuffle(parts)
        return HELLO + b"".join(parts[: self.random.randint(1, 6)])

    def odd_frames(self) -> bytes:
        """A frame of any kind, channel, method, payload and end."""
        kind, channel = self.random.choice((0, 1, 2, 3, 4, 8, 255)), self.random.choice((0, 1, 1, 65535))
        payload = self.random.randbytes(self.random.randint(0, 40))
        if self.random.random() < 0.7:
            index = self.random.choice(METHODS).index
            payload = struct.pack(">I", index) + payload
        end = 0xCE if self.random.random() < 0.8 else 0
        return HELLO + raw_frame(kind, channel, payload, end)

    def many_requests(self) -> bytes:
        """Many requests at once, each much smaller than its reply."""
        declare = frame.marshal(commands.Queue.Declare(queue="large", auto_delete=False), 1)
        publish = frame.marshal(commands.Basic.Publish(exchange="", routing_key="large"), 1)
        count = self.random.choice([1, 1, 1, 1, 40]) if self.large else 1
        publish += frame.marshal(header.ContentHeader(body_size=count * 10_000), 1)
        publish += raw_frame(3, 1, bytes(10_000)) * count
        get = frame.marshal(commands.Basic.Get(queue="large"), 1)
        nack = [frame.marshal(commands.Basic.Nack(delivery_tag=tag, requeue=True), 1) for tag in range(1, 40 * count)]
        purge = frame.marshal(commands.Queue.Purge(queue="large"), 1)
        return HELLO + declare + publish + b"".join(get + each for each in nack) + purge

    def incomplete(self) -> bytes:
        """A publish, a transaction or a frame that does not end."""
        begun = frame.marshal(commands.Basic.Publish(exchange="", routing_key="f"), 1)
        begun += frame.marshal(header.ContentHeader(body_size=1_000_000), 1) + raw_frame(3, 1, bytes(100_000))
        return HELLO + self.random.choice([begun, frame.marshal(commands.Tx.Select(), 1) + CONTENT * 20, CONTENT[:-3]])

    makers = (
        Inputs.noise, truncated_handshake, odd_login, large_before_login, flipped, flipped_content, shuffled,
        odd_frames, odd_frames, many_requests, incomplete,
    )  # fmt: skip


def _stream_frame(key: int, body: bytes, version: int = 1) -> bytes:
    return struct.pack(">IHH", len(body) + 4, key, version) + body


def _request(key: int, body: bytes = b"", version: int = 1) -> bytes:
    return _stream_frame(key, struct.pack(">I", 7) + body, version)


_TEXT, _TABLE = raw_stream.string, raw_stream.table
_SECRET = b"\0guest\0guest"
_LOGIN = [
    _request(raw_stream.PEER_PROPERTIES, _TABLE({"product": "raw"})),
    _request(raw_stream.SASL_HANDSHAKE),
    _request(raw_stream.SASL_AUTHENTICATE, _TEXT("PLAIN") + struct.pack(">I", len(_SECRET)) + _SECRET),
    _stream_frame(raw_stream.TUNE | 0x8000, struct.pack(">II", 1 << 20, 60)),
    _request(raw_stream.OPEN, _TEXT("/")),
]
_BATCH = struct.pack(">BHII", 0x80, 2, 12, 12) + struct.pack(">I2sI2s", 2, b"ab", 2, b"cd")
_COMMANDS = [
    _request(raw_stream.CREATE, _TEXT("s") + _TABLE({"max-age": "1h"})),
    _request(raw_stream.DECLARE_PUBLISHER, b"\1" + _TEXT("p") + _TEXT("s")),
    _stream_frame(raw_stream.PUBLISH, b"\1" + struct.pack(">IQI3s", 1, 5, 3, b"abc")),
    _stream_frame(raw_stream.PUBLISH, b"\1" + struct.pack(">IQ", 1, 6) + _BATCH),
    _stream_frame(raw_stream.PUBLISH, b"\1" + struct.pack(">IQ", 1, 7) + _TEXT("red") + struct.pack(">I", 0), 2),
    _request(raw_stream.SUBSCRIBE, b"\1" + _TEXT("s") + raw_stream.FIRST + struct.pack(">H", 10)),
    _stream_frame(raw_stream.CREDIT, struct.pack(">BH", 1, 0xFFFF)),
    _stream_frame(raw_stream.STORE_OFFSET, _TEXT("r") + _TEXT("s") + struct.pack(">Q", 3)),
    _request(raw_stream.QUERY_OFFSET, _TEXT("r") + _TEXT("s")),
    _request(raw_stream.QUERY_PUBLISHER, _TEXT("p") + _TEXT("s")),
    _request(raw_stream.METADATA, raw_stream.strings("s", "t")),
    _request(raw_stream.ROUTE, _TEXT("k") + _TEXT("super")),
    _request(raw_stream.PARTITIONS, _TEXT("super")),
    _request(
        raw_stream.CREATE_SUPER_STREAM,
        _TEXT("super") + raw_stream.strings("a", "b") + raw_stream.strings("0", "1") + _TABLE({}),
    ),
    _request(raw_stream.DELETE_SUPER_STREAM, _TEXT("super")),
    _request(raw_stream.STREAM_STATS, _TEXT("s")),
    _request(raw_stream.EXCHANGE_COMMAND_VERSIONS, struct.pack(">IHHH", 1, raw_stream.DELIVER, 1, 2)),
    _request(raw_stream.UNSUBSCRIBE, b"\1"),
    _request(raw_stream.DELETE, _TEXT("s")),
    _stream_frame(raw_stream.HEARTBEAT, b""),
    _request(raw_stream.CLOSE, struct.pack(">H", 1) + _TEXT("bye")),
]


class StreamInputs(Inputs):
    """Conversations of the stream protocol that are cut off, changed, repeated or shuffled, before or after login."""

    def _commands(self, most: int = 8) -> bytes:
        return b"".join([*_COMMANDS[:2], *self.random.choices(_COMMANDS, k=self.random.randint(1, most))])

    def truncated(self) -> bytes:
        """A conversation that stops after a random byte."""
        whole = b"".join(_LOGIN) + self._commands()
        return whole[: self.random.randrange(len(whole))]

    def odd_login(self) -> bytes:
        """The frames of a login in any order, with some bytes changed."""
        return self.flip(b"".join(self.random.choices(_LOGIN, k=5)))

    def before_login(self) -> bytes:
        """Commands or large frames of a client that has not logged in."""
        large = struct.pack(">IHH", self.random.choice([4, 3, 65_537, 1 << 20, (1 << 32) - 1]), 2, 1) + bytes(70_000)
        return b"".join(_LOGIN[: self.random.randint(0, 4)]) + self.random.choice([self._commands(), large])

    def shuffled(self) -> bytes:
        """Commands in any order."""
        return b"".join(_LOGIN) + self._commands(12)

    def flipped(self) -> bytes:
        """Commands with some bytes changed."""
        return b"".join(_LOGIN) + self.flip(self._commands())

    def odd_frames(self) -> bytes:
        """Frames of any kind, version and body."""
        count = self.random.randint(1, 5)
        keys = [self.random.choice([self.random.randint(0, 32), self.random.randint(0, 0xFFFF)]) for _ in range(count)]
        frames = [
            _stream_frame(key, self.random.randbytes(self.random.randint(0, 60)), self.random.choice([1, 1, 2, 0]))
            for key in keys
        ]
        return b"".join([*_LOGIN, *_COMMANDS[:2], *frames])

    def lying_batch(self) -> bytes:
        """A batch that claims to have another number of messages or bytes than it has."""
        kind, plain = self.random.choice([0x80, 0x90, 0xA0, 0xB0, 0xC0]), self.random.choice([0, 12, 1 << 31])
        count, size = self.random.choice([0, 1, 3, 65_535]), self.random.choice([0, 11, 12, 13])
        batch = struct.pack(">BHII", kind, count, plain, size) + _BATCH[11:]
        publish = _stream_frame(raw_stream.PUBLISH, b"\1" + struct.pack(">IQ", 1, self.random.getrandbits(40)) + batch)
        return b"".join([*_LOGIN, *_COMMANDS[:2], publish, _COMMANDS[5]])

    makers = (
        Inputs.noise, truncated, odd_login, before_login, shuffled, flipped, odd_frames, lying_batch,
    )  # fmt: skip
