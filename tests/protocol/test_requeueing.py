"""Messages that one basic.nack or basic.recover requeues keep their order, whatever happens at the same time."""

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import pytest
from pamqp import commands, frame
from pamqp.base import Frame
from pika import BasicProperties
from pika.exceptions import AMQPError

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model.amqp_message import PERSISTENT
from tests.brokers import IN_CI
from tests.protocol.conftest import Api, Take
from tests.protocol.raw_client import RawClient, raw_frame

_MANY = 25_000 if IN_CI else 2_500
_QUORUM = {"x-queue-type": "quorum"}
_KINDS = {
    "classic": {},
    "priorities": {"x-max-priority": 3},
    "quorum": {**_QUORUM, "x-delivery-limit": 5},
}  # fmt: skip


@pytest.fixture
def broker_in_process() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(like="3.10", management_port=0) as broker:
        yield broker


def _declare(client: RawClient, queue: str, arguments: dict[str, Any]) -> None:
    client.send(commands.Queue.Declare(queue=queue, durable=True, arguments=arguments))
    client.expect(commands.Queue.DeclareOk)


def _publish(client: RawClient, numbers: range, priority: Callable[[int], int] | None = None) -> None:
    """Publish numbers to the queue `q`, and wait until all are in the queue."""
    method, has_priority = frame.marshal(commands.Basic.Publish(routing_key="q"), 1), 1 << 11
    for number in numbers:
        flags = b"\0\0" if priority is None else struct.pack(">HB", has_priority, priority(number))
        content = raw_frame(2, 1, struct.pack(">HHQ", 60, 0, 4) + flags)
        client.socket.sendall(method + content + raw_frame(3, 1, struct.pack(">I", number)))
    ready = 0
    while ready < len(numbers):
        client.send(commands.Queue.Declare(queue="q", passive=True))
        ready = client.expect(commands.Queue.DeclareOk).message_count


def _consume(client: RawClient) -> None:
    """Start a consumer of the queue `q` without a prefetch limit."""
    client.send(commands.Basic.Consume(queue="q", consumer_tag="c"))
    client.expect(commands.Basic.ConsumeOk)


def _deliveries(client: RawClient, expected: int) -> list[tuple[int, bool]]:
    """Return the next messages, and whether they are marked as redelivered."""
    got = []
    for _ in range(expected):
        redelivered = client.expect(commands.Basic.Deliver).redelivered
        client.receive()
        got.append((int.from_bytes(client.receive().value), redelivered))
    return got


@pytest.mark.parametrize("kind", _KINDS)
def test_messages_keep_their_order_when_one_nack_requeues_thousands_of_them(
    broker_in_process: EmbeddedBroker, kind: str
) -> None:
    """If one basic.nack requeues thousands of messages, the consumer receives all of them again, in the order in which
    the queue first delivered them. The embedded broker keeps this order in classic queues, quorum queues and queues
    with priorities.
    """
    with RawClient(broker_in_process.url) as client:
        _declare(client, "q", _KINDS[kind])
        _publish(client, range(_MANY + 2), (lambda number: number % 3) if kind == "priorities" else None)
        _consume(client)
        first = [number for number, _ in _deliveries(client, _MANY + 2)]
        if kind == "priorities":
            assert first == sorted(range(_MANY + 2), key=lambda number: (-(number % 3), number))
        else:
            assert first == [*range(_MANY + 2)]
        client.send(commands.Basic.Nack(delivery_tag=_MANY, multiple=True))
        again = _deliveries(client, _MANY)
        assert [number for number, _ in again] == first[:_MANY]
        assert all(is_redelivered for _, is_redelivered in again)


def test_thousands_of_messages_that_exceed_the_delivery_limit_are_dead_lettered_in_order(
    broker_in_process: EmbeddedBroker,
) -> None:
    """If one basic.nack makes thousands of messages of a quorum queue exceed the delivery limit, the embedded broker
    dead-letters them in order. RabbitMQ 3.10 may dead-letter them in any order.
    """
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    with RawClient(broker_in_process.url) as client:
        _declare(client, "dead", {})
        _declare(client, "q", {**_QUORUM, "x-delivery-limit": 0, **dead})
        _publish(client, range(_MANY))
        _consume(client)
        assert [number for number, _ in _deliveries(client, _MANY)] == [*range(_MANY)]
        client.send(commands.Basic.Nack(delivery_tag=0, multiple=True))
        client.send(commands.Basic.Consume(queue="dead", consumer_tag="d", no_ack=True))
        client.expect(commands.Basic.ConsumeOk)
        assert [number for number, _ in _deliveries(client, _MANY)] == [*range(_MANY)]


# -- what happens while messages are being requeued, on the embedded broker


class Nacking:
    """A client with unacknowledged messages of the queue `q`, and a broker that can be paused while it requeues them.

    Args:
        messages: published to the queue, one for each byte.
        held: how many of these messages the client has received but not acknowledged.
        prefetch: the prefetch limit of the client's consumer; None if it uses basic.get.

    Attributes:
        client: the client.
        other: a channel of another client.
    """

    def __init__(
        self, broker: EmbeddedBroker, arguments: dict[str, Any], messages: bytes, held: int, prefetch: int | None = None
    ) -> None:
        self.broker = broker
        self._connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        self.other = self._connection.channel()
        self.other.confirm_delivery()
        self.other.queue_declare("q", durable=True, arguments=arguments)
        self.publish(messages)
        server = broker._server
        assert server is not None
        server.broker.requeued_per_step = 1
        self._clock, others = server.broker.clock, set(server._connections)
        self.client = RawClient(broker.url)
        (self._slow,) = {*server._connections} - others
        self._held_turns: list[Callable[[], object]] = []
        if prefetch is not None:
            self.client.send(commands.Basic.Qos(prefetch_count=prefetch))
            self.client.expect(commands.Basic.QosOk)
            self.client.send(commands.Basic.Consume(queue="q", consumer_tag="c"))
            self.client.expect(commands.Basic.ConsumeOk)
        self.received = b"".join(self._receive(is_get=prefetch is None) for _ in range(held))

    def _receive(self, *, is_get: bool) -> bytes:
        if is_get:
            self.client.send(commands.Basic.Get(queue="q"))
        self.client.expect(commands.Basic.GetOk if is_get else commands.Basic.Deliver)
        self.client.receive()
        return bytes(self.client.receive().value)

    def publish(self, messages: bytes) -> None:
        for body in messages:
            self.other.basic_publish("", "q", bytes([body]), BasicProperties(delivery_mode=PERSISTENT))

    def stop_in(self, *methods: Frame) -> None:
        """Send these methods from the client, and pause the broker once it has collected one message of the first
        method.
        """
        take_turn, is_held = self._clock.take_turn, threading.Event()

        def hold(what: Callable[[], object]) -> None:
            if getattr(what, "__self__", None) is self._slow and not is_held.is_set():
                self._held_turns.append(what)
                is_held.set()
            else:
                take_turn(what)

        def slow_down() -> None:
            self._clock.elapsed = count(time.perf_counter()).__next__  # type: ignore[method-assign]
            self._clock.take_turn = hold  # type: ignore[method-assign]

        self.broker.under_test(lambda _: slow_down())
        self.client.socket.sendall(b"".join(frame.marshal(method, 1) for method in methods))
        assert is_held.wait(60)

    def go_on(self) -> None:
        """Let the broker handle the rest of the methods."""
        self.broker.under_test(lambda _: [what() for what in self._held_turns])

    def taken(self, expected: int) -> list[tuple[bytes, bool]]:
        """Return the next messages that the other client gets, and whether they are marked as redelivered."""
        take = Take(self.other)
        got = [take.one("q") for _ in range(expected)]
        return [(body, bool(method.redelivered)) for method, _, body in got]

    def lose(self) -> None:
        """End the client's connection as if the network had failed. The paused broker does not read from it."""
        self.broker.under_test(lambda _: self._slow.abort())

    @property
    def client_name(self) -> str:
        return self._slow.name

    def message_bytes(self) -> int:
        """Return the memory that messages take in the broker."""
        server = self.broker._server
        assert server is not None
        broker, ledger = server.broker, server.broker.ledger
        return int(
            self.broker.under_test(lambda _: ledger.held_bytes - ledger.definition_bytes - broker.held_for_clients)
        )

    def close(self) -> None:
        self.client.socket.close()
        with suppress(AMQPError):  # the broker may have stopped
            self._connection.close()


_NACK = commands.Basic.Nack(delivery_tag=0, multiple=True)
_LIMITED = {**_QUORUM, "x-delivery-limit": 5}
_BOTH = pytest.mark.parametrize("arguments", [{}, _LIMITED], ids=["classic", "quorum"])
#: The messages 1 to 4, requeued.
_BACK = [(b"1", True), (b"2", True), (b"3", True), (b"4", True)]


@pytest.fixture
def nacking(broker_in_process: EmbeddedBroker) -> Iterator[Callable[..., Nacking]]:
    """Starts clients (see Nacking), and closes them at the end of the test."""
    with ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(closing(Nacking(broker_in_process, *given, **more)))


Start = Callable[..., Nacking]


@_BOTH
def test_a_message_that_is_published_while_others_are_requeued_stays_behind_them(
    nacking: Start, arguments: dict[str, Any]
) -> None:
    """A consumer with a prefetch of 4 has four unacknowledged messages. A fifth message is published while one
    basic.nack requeues the four. The consumer receives the four messages again. The fifth one stays in the queue,
    because the prefetch is used up again.
    """
    nack = nacking(arguments, b"1234", 4, prefetch=4)
    nack.stop_in(_NACK)
    nack.publish(b"5")
    nack.go_on()
    assert [nack._receive(is_get=False) for _ in range(4)] == [b"1", b"2", b"3", b"4"]
    assert nack.taken(1) == [(b"5", False)]


@_BOTH
def test_basic_get_returns_no_message_that_is_being_requeued(nacking: Start, arguments: dict[str, Any]) -> None:
    """While one client's basic.nack requeues the first four of five messages, another client's basic.get returns the
    fifth message. The four messages are delivered later, in order.
    """
    nack = nacking(arguments, b"12345", 4)
    nack.stop_in(_NACK)
    assert nack.taken(1) == [(b"5", False)]
    nack.go_on()
    assert nack.taken(4) == _BACK


@_BOTH
def test_a_consumer_that_starts_while_messages_are_requeued_gets_them_in_order(
    nacking: Start, arguments: dict[str, Any]
) -> None:
    """While one client's basic.nack requeues the first four of six messages, another client starts a consumer. The
    consumer first receives the last two messages, because the first four are not back in the queue yet. It then gets
    these four in their original order.
    """
    nack = nacking(arguments, b"123456", 4)
    nack.stop_in(_NACK)
    got: list[tuple[bytes, bool]] = []
    nack.other.basic_consume("q", lambda _, method, __, body: got.append((body, method.redelivered)), auto_ack=True)
    take = Take(nack.other)
    take.until(lambda: len(got) == 2)
    nack.go_on()
    take.until(lambda: len(got) == 6)
    assert got == [(b"5", False), (b"6", False), *_BACK]


@_BOTH
def test_a_purge_keeps_messages_that_a_nack_has_not_put_back_yet(nacking: Start, arguments: dict[str, Any]) -> None:
    """While one basic.nack requeues four of a queue's six messages, the queue is purged. The purge drops only the
    other two messages, because the four are not back in the queue yet. The four are then requeued in order.
    """
    nack = nacking(arguments, b"123456", 4)
    nack.stop_in(_NACK)
    assert nack.other.queue_purge("q").method.message_count == 2
    nack.go_on()
    assert nack.taken(4) == _BACK


@_BOTH
def test_messages_being_requeued_are_dropped_if_their_queue_is_deleted(
    nacking: Start, arguments: dict[str, Any]
) -> None:
    """If a queue is deleted while one basic.nack is requeueing four of its messages, the broker frees the memory of
    these messages. A new queue with the same name does not contain them.
    """
    nack = nacking(arguments, b"1234", 4)
    nack.stop_in(_NACK)
    nack.other.queue_delete("q")
    nack.other.queue_declare("q", durable=True, arguments=arguments)
    nack.go_on()
    nack.publish(b"5")
    assert nack.taken(1) == [(b"5", False)]
    assert nack.other.basic_get("q") == (None, None, None)
    assert nack.message_bytes() == 0


@_BOTH
def test_a_clients_second_nack_waits_until_its_first_one_is_done(nacking: Start, arguments: dict[str, Any]) -> None:
    """A client requeues four messages with two basic.nacks, two messages with each. If the second basic.nack arrives
    while the broker is still requeueing the messages of the first, it takes effect only after the first. All four
    messages are requeued in order.
    """
    nack = nacking(arguments, b"1234", 4)
    nack.stop_in(commands.Basic.Nack(delivery_tag=2, multiple=True), _NACK)
    nack.go_on()
    assert nack.taken(4) == _BACK


def test_a_nack_does_not_wait_for_another_clients_nack(nacking: Start) -> None:
    """While one client's basic.nack requeues four messages of a quorum queue, another client's basic.nack requeues
    two messages without waiting. The two messages then come first in the queue, followed by the four messages in
    order.
    """
    nack = nacking(_LIMITED, b"123456", 4)
    tags = [Take(nack.other).one("q", auto_ack=False)[0].delivery_tag for _ in range(2)]
    nack.stop_in(_NACK)
    nack.other.basic_nack(tags[-1], multiple=True)
    nack.other.queue_declare("q", passive=True)
    nack.go_on()
    assert nack.taken(6) == [(b"5", True), (b"6", True), *_BACK]


@_BOTH
@pytest.mark.parametrize("how", ["lost", "closed"])
def test_messages_being_requeued_keep_their_order_if_the_connection_ends(
    nacking: Start, api_of: Callable[[EmbeddedBroker], Api], arguments: dict[str, Any], how: str
) -> None:
    """While a basic.nack requeues two of a client's four unacknowledged messages, the client's connection is lost, or
    is closed through the management API. All four messages are requeued in order, before the fifth message of the
    queue, which has not been delivered yet.
    """
    nack = nacking(arguments, b"12345", 4)
    nack.stop_in(commands.Basic.Nack(delivery_tag=2, multiple=True))
    if how == "lost":
        nack.lose()
    else:
        api_of(nack.broker)("DELETE", f"connections/{quote(nack.client_name, safe='')}")
    Take(nack.other).until(lambda: nack.other.queue_declare("q", passive=True).method.message_count == 5)
    nack.go_on()
    assert nack.taken(5) == [*_BACK, (b"5", False)]
    assert nack.other.queue_declare("q", passive=True).method.message_count == 0


def test_a_message_published_during_dead_lettering_by_a_nack_stays_in_the_queue(nacking: Start) -> None:
    """One basic.nack makes four messages of a quorum queue exceed the delivery limit. A fifth message is published
    before the broker has dead-lettered them. The four messages are dead-lettered in order, and the fifth one stays in
    the queue.
    """
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    nack = nacking({**_QUORUM, "x-delivery-limit": 0, **dead}, b"1234", 4)
    nack.other.queue_declare("dead")
    nack.stop_in(_NACK)
    nack.publish(b"5")
    nack.go_on()
    assert Take(nack.other).bodies("dead", 4) == [b"1", b"2", b"3", b"4"]
    assert nack.taken(1) == [(b"5", False)]


def test_messages_being_requeued_while_the_broker_stops_are_redelivered_after_a_restart(tmp_path: Path) -> None:
    """The broker is stopped while one basic.nack requeues four persistent messages. After a restart, the messages are
    in the queue, in order, and marked as redelivered.
    """
    with EmbeddedBroker(data_dir=tmp_path) as broker, closing(Nacking(broker, {}, b"12345", 4)) as nack:
        nack.stop_in(_NACK)
        broker.stop()
    with (
        EmbeddedBroker(data_dir=tmp_path) as broker,
        closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection,
    ):
        take = Take(connection.channel())
        got = [take.one("q") for _ in range(5)]
        assert [(body, method.redelivered) for method, _, body in got] == [*_BACK, (b"5", False)]
