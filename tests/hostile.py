"""Messages that no well-behaved client sends, as bytes, because no client's encoder would produce them.

`CORPUS` contains messages that broke something once, `generated()` returns messages that Hypothesis generates, and
`play()` publishes a batch of them.
"""

import functools
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from pamqp import commands

from tests.protocol.raw_client import RawClient, raw_frame

#: The properties in the order of their flags, and the formats of those that are numbers.
_PROPERTIES = ("content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
               "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id")  # fmt: skip
_NUMBERS = {"delivery_mode": ">B", "priority": ">B", "timestamp": ">Q"}

NAMES = [
    b"a\0b", b"\xff\xfe", b"\xed\xa0\x80", b"x\nmqtool: it is all over\n", b"\x1b[31mred\x1b[0m", b"\xc2\x9b31m",
    "\u202eevil\u2066".encode(), "line\u2028separator".encode(), b"[/red]", b"'; exit 127 #", b"../..", b"-rf", b"",
    b"x" * 255,
]  # fmt: skip


def short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def sized(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def nested(depth: int, kind: bytes = b"F") -> bytes:
    """Return tables, or arrays, nested this many levels deep."""
    before = short(b"n") if kind == b"F" else b""
    value = b"V"
    for _ in range(depth):
        value = kind + sized(before + value)
    return value


@dataclass(frozen=True)
class Hostile:
    """A message that no well-behaved client sends.

    Attributes:
        headers: the encoded content of the headers table; None to leave it out.
        properties: the other properties, encoded, by name.
    """

    key: bytes = b"key"
    headers: bytes | None = None
    properties: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b"x"

    def frames(self, exchange: bytes, frame_max: int) -> bytes:
        """Return the frames of basic.publish, the header and the body."""
        given = dict(self.properties)
        if self.headers is not None:
            given["headers"] = sized(self.headers)
        flags = sum(0x8000 >> number for number, name in enumerate(_PROPERTIES) if name in given)
        header = struct.pack(">HHQH", 60, 0, len(self.body), flags)
        header += b"".join(given[name] for name in _PROPERTIES if name in given)
        method = b"\x00\x3c\x00\x28\0\0" + short(exchange) + short(self.key) + b"\0"
        pieces = range(0, len(self.body), frame_max - 8)
        bodies = (raw_frame(3, 1, self.body[start : start + frame_max - 8]) for start in pieces)
        return raw_frame(1, 1, method) + raw_frame(2, 1, header) + b"".join(bodies)


TEXTS = [name for name in _PROPERTIES if name not in {*_NUMBERS, "headers", "user_id", "expiration"}]
DOUBLES = [b"d\x7f\xf8\0\0\0\0\0\0", b"d\x7f\xf0\0\0\0\0\0\0", b"d\xff\xf0\0\0\0\0\0\0", b"f\x7f\x80\0\0"]
VALUES = [
    *DOUBLES,
    *(letter + octets for letter, size in ((b"T", 8), (b"l", 8), (b"I", 4), (b"s", 2), (b"b", 1), (b"t", 1))
      for octets in (b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), b"\x80" + b"\0" * (size - 1))),
    b"D\xff\x80\0\0\0", b"D\0\x7f\xff\xff\xff", b"V", b"A" + sized(b"V"), b"A" + sized(b""), b"F" + sized(b""),
    *(b"S" + sized(name) for name in NAMES), b"x" + sized(b"\0\xff"), nested(60), nested(60, b"A"),
]  # fmt: skip
FORGED = [
    b"mqtool-attempts", b"mqtool-last-error", b"mqtool-reason", b"mqtool-first-failure", b"mqtool-queue",
    b"mqtool-exchange", b"mqtool-routing-key", b"mqtool-due", b"exit-status", b"stderr", b"x-death", b"x-delay",
    b"x-first-death-queue", b"x-delivery-count", b"$bytes", b"",
]  # fmt: skip


def headers_of(*fields: tuple[bytes, bytes]) -> bytes:
    return b"".join(short(name) + value for name, value in fields)


def text_properties(value: bytes) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, short(value)) for name in TEXTS)


def _x_death(**fields: bytes) -> bytes:
    return b"A" + sized(b"F" + sized(headers_of(*((name.encode(), value) for name, value in fields.items()))))


CORPUS = [
    *(Hostile(key=name) for name in NAMES),
    *(Hostile(properties=text_properties(name)) for name in NAMES),
    *(Hostile(headers=headers_of((name, b"S" + sized(name)))) for name in NAMES),
    *(Hostile(headers=headers_of((name, value))) for name in FORGED[:7] for value in VALUES[4::5]),
    *(Hostile(headers=headers_of((b"h", value))) for value in VALUES),
    *(Hostile(headers=headers_of((b"mqtool-reason", b"S" + sized(name)), (b"mqtool-last-error", b"S" + sized(name)),
                                 (b"mqtool-routing-key", b"S" + sized(name)))) for name in NAMES),
    Hostile(headers=headers_of((b"mqtool-reason", b"V"), (b"mqtool-attempts", b"l\x7f" + b"\xff" * 7))),
    Hostile(headers=headers_of((b"mqtool-attempts", b"l\x7f" + b"\xff" * 7))),
    Hostile(headers=headers_of((b"mqtool-routing-key", b"S" + sized(b"r" * 100_000)))),
    Hostile(headers=headers_of((b"x-death", _x_death(count=b"S" + sized(b"many"), queue=b"V", time=b"T" + b"\xff" * 8,
                                                     reason=b"S" + sized(b"rejected"))))),
    Hostile(headers=headers_of((b"x-death", _x_death(count=b"V", queue=b"t\1", time=b"V", reason=b"F" + sized(b""))))),
    Hostile(headers=headers_of((b"h", nested(450)))),
    Hostile(headers=headers_of((b"h", nested(450, b"A")))),
    Hostile(headers=headers_of((b"h", nested(4_000)))),  # RabbitMQ takes a second to deliver a deeper one
    Hostile(headers=headers_of((b"h", b"S" + sized("€".encode() * 42_000)))),
    Hostile(headers=headers_of((b"h", b"x" + sized(b"\xff" * 130_900))), properties=(("message_id", short(b"wide")),)),
    Hostile(headers=headers_of(*((b"%05d" % number, b"b\1") for number in range(16_000)))),
    Hostile(properties=(("timestamp", b"\xff" * 8),)),
    Hostile(properties=(("timestamp", b"\x80" + b"\0" * 7), ("priority", b"\xff"), ("delivery_mode", b"\xff"))),
    Hostile(properties=(("reply_to", short(b"nowhere")), ("correlation_id", short(b"\xff\0")))),
    Hostile(properties=(("reply_to", short(b"amq.rabbitmq.reply-to.forged")),)),
    Hostile(body=b""), Hostile(body=b"\0\xff\n\x1b[31m"), Hostile(body=b"9" * 5000), Hostile(body=b"9" * 4300),
    Hostile(body=b"-1"), Hostile(body=b"y" * 1_000_000),
]  # fmt: skip

_octets = some.sampled_from(NAMES) | some.binary(max_size=20)
_values = some.recursive(
    some.sampled_from(VALUES) | some.binary(max_size=40).map(lambda raw: b"S" + sized(raw)),
    lambda inner: (
        some.lists(inner, max_size=3).map(lambda items: b"A" + sized(b"".join(items)))
        | some.lists(some.tuples(_octets, inner), max_size=3).map(lambda fields: b"F" + sized(headers_of(*fields)))
    ),
    max_leaves=6,
)
_property = some.sampled_from([*TEXTS, *_NUMBERS]).flatmap(
    lambda name: some.tuples(
        some.just(name),
        some.binary(min_size=(size := struct.calcsize(_NUMBERS[name])), max_size=size)
        if name in _NUMBERS
        else _octets.map(short),
    )
)
#: Bodies contain no dots, because the tutorial's worker sleeps for a second per dot.
messages = some.builds(
    Hostile,
    key=_octets,
    headers=some.none()
    | some.lists(some.tuples(some.sampled_from(FORGED) | _octets, _values), max_size=4).map(
        lambda fields: headers_of(*fields)
    ),
    properties=some.lists(_property, max_size=6).map(lambda pairs: tuple(dict(pairs).items())),
    body=some.binary(max_size=30).map(lambda body: body.replace(b".", b"")),
)


@functools.cache
def generated(count: int = 40) -> list[Hostile]:
    """Return messages generated by Hypothesis, always the same ones."""
    found: list[Hostile] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(messages)
    def collect(message: Hostile) -> None:
        found.append(message)

    collect()
    return found


class Publisher:
    """Publishes messages one by one. Reconnects when the broker refuses one by closing the connection, as for a NaN.

    Args:
        exchange: a fanout exchange, which is declared and bound to the durable queues; "" for the default exchange.
    """

    def __init__(self, url: str, exchange: str = "", queues: Iterable[str] = ()) -> None:
        self._url, self._exchange, self._queues = url, exchange, list(queues)
        self._connect()

    def publish(self, message: Hostile) -> bool:
        """Publish a message. Return True if the broker confirms it."""
        self._client.socket.sendall(message.frames(self._exchange.encode(), 131_072))
        try:
            if isinstance(self._client.receive(), commands.Basic.Ack):
                return True
        except (EOFError, OSError):
            pass  # the broker closed the connection
        self.close()
        self._connect()
        return False

    def close(self) -> None:
        self._client.socket.close()

    def _connect(self) -> None:
        self._client = client = RawClient(self._url)
        if self._exchange:
            client.send(commands.Exchange.Declare(exchange=self._exchange, exchange_type="fanout", durable=True))
            client.expect(commands.Exchange.DeclareOk)
        for queue in self._queues:
            client.send(commands.Queue.Declare(queue=queue, durable=True))
            client.expect(commands.Queue.DeclareOk)
            client.send(commands.Queue.Bind(queue=queue, exchange=self._exchange))
            client.expect(commands.Queue.BindOk)
        client.send(commands.Confirm.Select())
        client.expect(commands.Confirm.SelectOk)


def play(url: str, batch: Iterable[Hostile], queues: Iterable[str]) -> list[Hostile]:
    """Publish messages, then one with the body "last", to each queue. Return those that the broker confirmed."""
    publisher = Publisher(url, "hostile", queues)
    taken = [message for message in batch if publisher.publish(message)]
    assert publisher.publish(Hostile(body=b"last", properties=(("message_id", short(b"last")),)))
    publisher.close()
    return taken


def reply(url: str, queue: str, batch: list[Hostile], requests: int) -> None:
    """Consume requests. Answer each with hostile replies without its correlation ID, then with one that has it."""
    client, publisher = RawClient(url), Publisher(url)
    client.send(commands.Basic.Consume(queue=queue, no_ack=True))
    client.expect(commands.Basic.ConsumeOk)
    share = len(batch) // requests
    for number in range(requests):
        client.expect(commands.Basic.Deliver)
        properties, _ = client.receive().properties, client.receive()
        key, identity = properties.reply_to.encode(), ("correlation_id", short(properties.correlation_id.encode()))
        first, *others = batch[number * share : (number + 1) * share]
        for message in others:
            publisher.publish(replace(message, key=key))
        mine = tuple(({**dict(first.properties), **dict([identity])}).items())
        if not publisher.publish(replace(first, key=key, properties=mine)):
            publisher.publish(Hostile(key=key, properties=(identity,)))
    publisher.close()
    client.socket.close()


def name_everything(url: str) -> None:
    """Declare queues and exchanges with hostile names and bind them with hostile keys and arguments."""
    client = RawClient(url)
    deep = headers_of((b"deep", nested(3000)))  # too deep for Python's json module; the embedded broker refuses it

    def call(method: bytes, *names: bytes, bits: bytes, table: bytes = b"") -> None:
        payload = method + b"\0\0" + b"".join(map(short, names)) + bits + sized(table)
        client.socket.sendall(raw_frame(1, 1, payload))
        client.receive()

    for name in NAMES:
        try:
            name.decode()
        except UnicodeDecodeError:
            continue  # once such a name exists, RabbitMQ's management API cannot list anything
        queue, exchange = b"q" + name[:250], b"x" + name[:250]
        dead = headers_of((b"x-dead-letter-exchange", b"S" + sized(name)),
                          (b"x-dead-letter-routing-key", b"S" + sized(name)))  # fmt: skip
        call(b"\x00\x32\x00\x0a", queue, bits=b"\x02", table=dead)
        other = headers_of((b"alternate-exchange", b"S" + sized(name)))
        call(b"\x00\x28\x00\x0a", exchange, b"topic", bits=b"\x02", table=other)
        fields = headers_of((name[:100], b"S" + sized(name)), (b"n", nested(20)))
        for source in (b"amq.topic", b"amq.headers", exchange):
            call(b"\x00\x32\x00\x14", queue, source, name, bits=b"\0", table=fields)
    for method, *names, bits in (
        (b"\x00\x32\x00\x0a", b"deep", b"\x02"), (b"\x00\x28\x00\x0a", b"deep", b"topic", b"\x02"),
        (b"\x00\x32\x00\x14", queue, b"amq.topic", b"deep", b"\0"),
    ):  # fmt: skip
        client.socket.close()
        client = RawClient(url)
        call(method, *names, bits=bits, table=deep)
    client.socket.close()
