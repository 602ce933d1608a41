"""The connection is cut at each frame in turn: nothing confirmed is lost, and what comes twice is marked."""

import itertools
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from mqtool.amqp import Backoff, Channel, Connection, Receiving, parse_addresses
from mqtool.amqp10 import LinkSession
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.errors import MqtoolError
from mqtool.message import Confirmation, Delivery, Message, Receipt
from mqtool.streams import StreamChannel
from mqtool.topology import Queue, Stream
from mqtool.tutorials import amqp10_hello_world, hello_world, rpc, stream_hello_world, work_queues
from mqtool.work.transfer import AT_ONCE, QueueTransfer, Until, elsewhere
from tests.proxy import Proxy

COUNT = 8
BODIES = [b"%d" % number for number in range(COUNT)]
EAGER = Backoff(first=0.001, longest=0.05)
QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 100}


class FrameProxy(Proxy):
    """Forwards whole frames, and cuts all connections once, instead of forwarding one frame.

    Attributes:
        frames: the number of frames so far, in both directions.

    Args:
        cut_at: the number of the frame, from 0.
    """

    def __init__(self, target_port: int, protocol: str, cut_at: int) -> None:
        super().__init__(target_port)
        self.frames = 0
        self._protocol = protocol
        self._cut_at = cut_at
        self._numbers = itertools.count()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # cut
            for frame in self._frames(source):
                number = next(self._numbers)
                self.frames = number + 1
                if number == self._cut_at:
                    self.cut()
                target.sendall(frame)
            target.shutdown(socket.SHUT_WR)

    def _frames(self, source: socket.socket) -> Iterator[bytes]:
        data = bytearray()
        while received := source.recv(65536):
            data += received
            while len(data) >= 8 and len(data) >= (size := self._size(data)):
                yield bytes(data[:size])
                del data[:size]

    def _size(self, data: bytearray) -> int:
        """The size of the first frame: https://www.rabbitmq.com/docs/specification, and OASIS AMQP 1.0, part 2.3."""
        if data.startswith(b"AMQP"):
            return 8
        if self._protocol == "amqp":
            return 8 + int(struct.unpack_from(">I", data, 3)[0])
        (size,) = struct.unpack_from(">I", data)
        return int(size) + (4 if self._protocol == "stream" else 0)


class Client:
    """Connects to the broker, through the proxy or past it."""

    def __init__(self, broker: EmbeddedBroker, proxy: FrameProxy) -> None:
        self._broker = broker
        self._proxy = proxy
        self.stream_port = broker.stream_port
        self.notices: list[str] = []

    def channel(self, *, comes_back: bool = True) -> Connection:
        backoff = EAGER if comes_back else None
        url = self._broker.url.replace(str(self._broker.port), str(self._proxy.port))
        return Connection(parse_addresses(url), backoff=backoff, notice=self.notices.append)

    def session(self) -> LinkSession:
        url = self._broker.url.replace(str(self._broker.port), str(self._proxy.port))
        return LinkSession(parse_addresses(url), backoff=EAGER, notice=self.notices.append)

    def stream(self, port: int | None = None) -> StreamChannel:
        url = f"amqp://127.0.0.1:{port or self._proxy.port}"
        return StreamChannel(parse_addresses(url), backoff=EAGER, by_amqp=self.directly, notice=self.notices.append)

    @contextmanager
    def directly(self) -> Iterator[Channel]:
        with Connection(parse_addresses(self._broker.url)) as connection:
            yield connection.channel()

    def fill(self, queue: Queue) -> None:
        with self.directly() as channel:
            channel.declare(queue)
            assert len([*channel.publish(messages(), routing_key=queue.name)]) == COUNT

    def bodies(self, *queues: Queue) -> list[bytes]:
        """Take all messages out of queues."""
        found: list[bytes] = []
        with self.directly() as channel:
            for queue in queues:
                channel.declare(queue)
                while (delivery := channel.get(queue.name)) is not None:
                    found.append(delivery.body)
                    channel.acknowledge(delivery)
        return found


def messages() -> Iterator[Message]:
    return (Message(body, message_id=body.decode()) for body in BODIES)


def confirmed(receipts: Iterable[Receipt]) -> list[bytes]:
    """Return the bodies of confirmed messages, also if the connection could not be opened at first."""
    found: list[bytes] = []
    with suppress(MqtoolError):
        for receipt in receipts:
            assert receipt.confirmation is Confirmation.CONFIRMED
            found.append(receipt.message.body)
    return found


def publish(client: Client, queue: Queue) -> None:
    with suppress(MqtoolError), client.channel() as connection:
        assert confirmed(hello_world.send(connection.channel(), queue, messages())) == BODIES
    assert {*client.bodies(queue)} in ({*BODIES}, set())


def receive(client: Client, queue: Queue) -> None:
    client.fill(queue)
    got: list[Delivery] = []
    with suppress(MqtoolError), client.channel() as connection:
        got += hello_world.receive(connection.channel(), queue, Receiving(idle_timeout=0.2))
    check_received(client, queue, got)


def check_received(client: Client, queue: Queue, got: Sequence[Delivery]) -> None:
    """Check that each message was received or is still there, and that what came twice is marked."""
    seen = set[bytes]()
    for delivery in got:
        assert delivery.body not in seen or delivery.redelivered
        seen.add(delivery.body)
    assert seen | {*client.bodies(queue)} == {*BODIES}


def work(client: Client, queue: Queue) -> None:
    """A program that ends with its connection."""
    client.fill(queue)
    done: list[Delivery] = []
    with suppress(MqtoolError), client.channel(comes_back=False) as connection:
        channel = connection.channel()

        def do(task: Delivery) -> None:
            channel.depth_of(queue.name)  # takes two frames
            done.append(task)

        for _ in work_queues.work(channel, queue, do, Receiving(prefetch=1, idle_timeout=0.2)):
            pass
    check_received(client, queue, done)


def move(client: Client, queue: Queue) -> None:
    """From one connection to another."""
    client.fill(queue)
    target = queue._replace(name=f"{queue.name}-target")
    with client.directly() as channel:
        channel.declare(target)
    for _ in range(2):  # the second time, it is not cut
        with (
            suppress(MqtoolError),
            client.channel(comes_back=False) as connection,
            client.channel(comes_back=False) as other,
        ):
            source = connection.channel()
            until = Until(seen=source.depth_of(queue.name))
            moved = partial(elsewhere, to=target.name, user="guest")
            for _ in QueueTransfer(source, other.channel(), queue.name, moved, until=until):
                pass
    assert client.bodies(queue) == []
    arrived = client.bodies(target)
    assert {*arrived} == {*BODIES}
    assert len(arrived) <= COUNT + AT_ONCE


def call(client: Client, queue: Queue) -> None:
    def serve() -> None:
        with client.directly() as channel:
            receiving = Receiving(prefetch=1, timeout=20)
            for request, _ in rpc.serve(channel, queue, lambda request: Message(request.body * 2), receiving):
                if request.body == b"end":
                    return

    with client.directly() as channel, ThreadPoolExecutor() as pool:
        channel.declare(queue)
        serving = pool.submit(serve)
        try:
            with suppress(MqtoolError), client.channel() as connection:
                replies = rpc.call(connection.channel(), queue, [*map(Message, BODIES)], Receiving(timeout=20))
                got = {number: reply.body for number, reply in replies}
                assert got == {number: body * 2 for number, body in enumerate(BODIES)}
        finally:
            assert confirmed(channel.publish([Message(b"end", queue.name, "")])) == [b"end"]
            serving.result()


def send_1_0(client: Client, queue: Queue) -> None:
    with suppress(MqtoolError), client.session() as session:
        assert confirmed(amqp10_hello_world.send(session, queue, messages())) == BODIES
    assert {*client.bodies(queue)} in ({*BODIES}, set())


def receive_1_0(client: Client, queue: Queue) -> None:
    client.fill(queue)
    got: list[Delivery] = []
    with suppress(MqtoolError), client.session() as session:
        got += amqp10_hello_world.receive(session, queue, Receiving(idle_timeout=0.2))
    check_received(client, queue, got)


def append(client: Client, queue: Queue) -> None:
    stream = Stream(queue.name)
    sent = False
    with suppress(MqtoolError), client.stream() as channel:
        sent = confirmed(stream_hello_world.send(channel, stream, messages())) == BODIES
        assert sent
    if sent:
        stored = read(client.stream(client.stream_port), stream)
        assert [*dict.fromkeys(stored)] == BODIES  # in order; those without a confirm may be there twice


def read(channel: StreamChannel, stream: Stream) -> list[bytes]:
    with channel:
        deliveries = stream_hello_world.receive(channel, stream, receiving=Receiving(idle_timeout=0.2))
        return [delivery.body for delivery in deliveries]


def read_stream(client: Client, queue: Queue) -> None:
    stream = queue._replace(arguments={"x-queue-type": "stream"})
    client.fill(stream)
    got: list[bytes] = []
    with suppress(MqtoolError):
        got = read(client.stream(), Stream(queue.name))
        assert got == BODIES  # each once, in order


@pytest.mark.parametrize(
    ("protocol", "does"),
    [
        ("amqp", publish), ("amqp", receive), ("amqp", work), ("amqp", move), ("amqp", call),
        ("amqp10", send_1_0), ("amqp10", receive_1_0), ("stream", append), ("stream", read_stream),
    ],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)  # fmt: skip
def test_whatever_frame_the_connection_is_cut_at_nothing_is_lost(
    protocol: str, does: Callable[[Client, Queue], None]
) -> None:
    """A client whose connection is cut, instead of forwarding one frame, loses no message, whichever frame it is. What
    is confirmed is in the queue; what is received twice is marked as redelivered; a move that ends can be repeated.
    """
    with EmbeddedBroker(like="4.3", stream_port=0) as broker, ThreadPoolExecutor(8) as pool:
        port = broker.stream_port if protocol == "stream" else broker.port
        assert port is not None

        def cut(at: int) -> tuple[int, list[str]]:
            with FrameProxy(port, protocol, at) as proxy:
                client = Client(broker, proxy)
                does(client, Queue(f"q{at}", durable=True, arguments=QUORUM))
                return proxy.frames, client.notices

        frames, notices = cut(-1)
        assert notices == []
        assert len([*pool.map(cut, range(frames))]) == frames > COUNT
