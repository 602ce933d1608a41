"""Given the same operations, the embedded broker and RabbitMQ give the same replies and end in the same state.

Hypothesis generates sequences of operations on a few names, so that the operations affect each other. For example, a
queue is declared again with other arguments, deleted while it is bound, or filled up, and a message is acknowledged
twice. After each operation, both brokers must have given the same reply, and their queues must contain the same number
of messages.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika import BasicProperties
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker, NackError, UnroutableError

from tests.brokers import IN_CI, TestBroker, skip_or_fail

QUEUES = ("a", "b", "c")
EXCHANGES = ("x", "y")
KEYS = ("a", "b", "a.b", "#", "*", "")

QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": 1}

Operation = tuple[Any, ...]

# Queues to start with; without them, most sequences would begin with a dozen errors.
TOPIC: list[Operation] = [
    ("declare queue", "b", False, {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "a"}),
    ("declare exchange", "x", "topic", False, {}),
    ("bind", "a", "x", "#", {}),
]
PUBLISHES: list[Operation] = [("publish", "x", "a", {}, 0, True)] * 4
CLASSIC_START: list[Operation] = [("declare queue", "a", False, {}), *TOPIC, *PUBLISHES]
QUORUM_START: list[Operation] = [
    ("declare queue", "a", True, {**QUORUM, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "c"}),
    ("declare queue", "c", True, {"x-queue-type": "quorum"}),
    *TOPIC,
]


queue = st.sampled_from(QUEUES)
exchange = st.sampled_from(EXCHANGES)
key = st.sampled_from(KEYS)
CLASSIC_ARGUMENTS: list[dict[str, Any]] = [
    {},
    {},
    {"x-max-length": 2},
    {"x-max-length": 2, "x-overflow": "reject-publish"},
    {"x-max-length": 1, "x-dead-letter-exchange": "x"},
    {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "b"},
    {"x-dead-letter-exchange": "y", "x-overflow": "reject-publish-dlx", "x-max-length": 1},
    {"x-max-priority": 2},
    {"x-message-ttl": -1},
    {"x-max-length-bytes": 3},
]
QUORUM_ARGUMENTS: list[dict[str, Any]] = [
    {"x-queue-type": "quorum"},
    {**QUORUM, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "b"},
    {**QUORUM, "x-max-length": 2},
]
exchange_arguments = st.sampled_from([{}, {}, {"alternate-exchange": "y"}, {"alternate-exchange": 1}])
exchange_type = st.sampled_from(["direct", "fanout", "topic", "headers"])
headers = st.sampled_from([{}, {"h": 1}, {"h": 2}, {"CC": ["b"]}, {"BCC": ["c"]}, {"CC": 1}, {"x-h": 1, "h": 1}])
match = st.sampled_from([{}, {}, {"h": 1}, {"x-match": "any", "h": 1, "i": 2}, {"x-match": "no"}, {"h": None}])
flag = st.booleans()


def operations(arguments: list[dict[str, Any]], *more: st.SearchStrategy[Operation]) -> st.SearchStrategy[Any]:
    """Sequences of operations, with queues of these arguments."""
    return st.lists(st.one_of(*_operations(st.sampled_from(arguments)), *more), min_size=5, max_size=40)


def _operations(queue_arguments: st.SearchStrategy[dict[str, Any]]) -> list[st.SearchStrategy[Operation]]:
    return [
        st.tuples(st.just("declare queue"), queue, flag, queue_arguments),
        st.tuples(st.just("declare queue"), queue, st.just(False), st.just({})),
        st.tuples(st.just("delete queue"), queue, flag, flag),
        st.tuples(st.just("purge"), queue),
        st.tuples(st.just("declare exchange"), exchange, exchange_type, flag, exchange_arguments),
        st.tuples(st.just("declare exchange"), exchange, exchange_type, st.just(False), st.just({})),
        st.tuples(st.just("delete exchange"), exchange, flag),
        st.tuples(st.just("bind"), queue, exchange, key, match),
        st.tuples(st.just("unbind"), queue, exchange, key, match),
        st.tuples(st.just("bind exchange"), exchange, exchange, key),
        st.tuples(st.just("unbind exchange"), exchange, exchange, key),
        *[st.tuples(st.just("publish"), st.sampled_from(["", *EXCHANGES]), key, headers, st.integers(0, 3), flag)] * 4,
        *[st.tuples(st.just("get"), queue, flag)] * 3,
        *[st.tuples(st.just("settle"), st.sampled_from(["ack", "nack", "reject"]), st.integers(0, 4), flag, flag)] * 3,
        st.tuples(st.just("recover")),
    ]


# Streams, without what closes the connection (basic.get, purge); each message is confirmed, so a chunk of its own.
STREAM_ARGUMENTS: list[dict[str, Any]] = [
    {"x-queue-type": "stream"},
    {"x-queue-type": "stream", "x-max-age": "1D", "x-max-length-bytes": 1_000_000},
    {"x-queue-type": "stream", "x-message-ttl": 1000},
]
STREAMING = st.lists(
    st.one_of(
        st.tuples(st.just("declare queue"), queue, st.just(True), st.sampled_from(STREAM_ARGUMENTS)),
        *[st.tuples(st.just("publish"), st.just("x"), key, headers, st.just(0), flag)] * 4,
        *[
            st.tuples(
                st.just("consume"),
                st.just("a"),
                st.integers(0, 9),
                st.just(False),
                st.sampled_from(["first", "last", "next", 0, 2, 7]).map(lambda offset: {"x-stream-offset": offset}),
            )
        ]
        * 2,
        st.tuples(st.just("settle"), st.just("ack"), st.integers(0, 6), flag, st.just(False)),
        st.tuples(st.just("bind"), queue, st.just("x"), key, st.just({})),
        st.tuples(st.just("unbind"), st.just("a"), st.just("x"), key, st.just({})),
    ),
    min_size=5,
    max_size=15,
)

CONSUMING = (
    *[st.tuples(st.just("consume"), queue, st.integers(0, 2), flag, st.just({}))] * 2,
    st.tuples(st.just("cancel"), st.integers(1, 4)),
)


class Side:
    """One of the two brokers, with a channel in confirm mode."""

    def __init__(self, url: str) -> None:
        self.parameters = pika.URLParameters(url)
        self.connection = pika.BlockingConnection(self.parameters)
        self.looking = self.connection.channel()
        self.published = self.consumers = 0
        self.delivered: list[tuple[Any, ...]] = []
        self.open()

    def open(self) -> None:
        """A new channel, after the broker has closed the last one."""
        if not self.connection.is_open:
            self.connection = pika.BlockingConnection(self.parameters)
            self.looking = self.connection.channel()
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

    def clear(self) -> None:
        """Delete everything in the virtual host."""
        self.channel.close()
        self.open()
        for name in QUEUES:
            self.channel.queue_delete(name)
        for name in EXCHANGES:
            self.channel.exchange_delete(name)
        self.published = self.consumers = 0
        self.delivered = []

    def counts(self) -> list[int | None]:
        """Return the number of messages in each queue, or None if it does not exist."""
        counts: list[int | None] = []
        for name in QUEUES:
            try:
                counts.append(self.looking.queue_declare(name, passive=True).method.message_count)
            except ChannelClosedByBroker:
                self.looking = self.connection.channel()
                counts.append(None)
        return counts

    def state(self, *, with_counts: bool) -> tuple[list[int | None], list[tuple[Any, ...]]]:
        """Return the contents of the queues, and what the consumers received."""
        counts = self.counts() if with_counts else []
        self.connection.process_data_events(0)
        return counts, list(self.delivered)

    def do(self, what: Operation) -> object:
        """Perform an operation and return the broker's reply."""
        name, *values = what
        action: Callable[..., object] = getattr(self, name.replace(" ", "_"))
        try:
            return action(*values)
        except (ChannelClosedByBroker, ConnectionClosedByBroker) as error:
            self.open()
            return type(error).__name__, error.reply_code, error.reply_text

    def declare_queue(self, name: str, durable: bool, arguments: dict[str, Any]) -> object:
        told = self.channel.queue_declare(name, durable=durable, arguments=arguments).method.message_count
        return None if arguments.get("x-queue-type") == "stream" else told

    def delete_queue(self, name: str, if_unused: bool, if_empty: bool) -> object:
        return self.channel.queue_delete(name, if_unused=if_unused, if_empty=if_empty).method.message_count

    def purge(self, name: str) -> object:
        return self.channel.queue_purge(name).method.message_count

    def declare_exchange(self, name: str, kind: str, auto_delete: bool, arguments: dict[str, Any]) -> None:
        self.channel.exchange_declare(name, kind, auto_delete=auto_delete, arguments=arguments)

    def delete_exchange(self, name: str, if_unused: bool) -> None:
        self.channel.exchange_delete(name, if_unused=if_unused)

    def bind(self, queue: str, exchange: str, key: str, arguments: dict[str, Any]) -> None:
        self.channel.queue_bind(queue, exchange, key, arguments=arguments)

    def unbind(self, queue: str, exchange: str, key: str, arguments: dict[str, Any]) -> None:
        self.channel.queue_unbind(queue, exchange, key, arguments=arguments)

    def bind_exchange(self, destination: str, source: str, key: str) -> None:
        self.channel.exchange_bind(destination, source, key)

    def unbind_exchange(self, destination: str, source: str, key: str) -> None:
        self.channel.exchange_unbind(destination, source, key)

    def publish(self, exchange: str, key: str, headers: dict[str, Any], priority: int, mandatory: bool) -> object:
        self.published += 1
        properties = BasicProperties(headers=headers, priority=priority)
        try:
            self.channel.basic_publish(exchange, key, b"%d" % self.published, properties, mandatory)
        except UnroutableError as error:
            (returned,) = error.messages
            return "returned", returned.method.reply_code, returned.method.reply_text, returned.body
        except NackError:
            return "nack"
        return "ack"

    def get(self, queue: str, auto_ack: bool) -> object:
        method, properties, body = self.channel.basic_get(queue, auto_ack=auto_ack)
        if method is None:
            return None
        for death in properties.headers.get("x-death", []):
            del death["time"]
        return (
            body,
            method.delivery_tag,
            method.redelivered,
            method.exchange,
            method.routing_key,
            method.message_count,
            properties.headers,
            properties.priority,
        )

    def settle(self, how: str, tag: int, multiple: bool, requeue: bool) -> object:
        if how == "ack":
            self.channel.basic_ack(tag, multiple)
        elif how == "nack":
            self.channel.basic_nack(tag, multiple, requeue)
        else:
            self.channel.basic_reject(tag, requeue)
        # Wait until the broker has handled the message: an error closes the channel only later.
        self.channel.basic_qos(prefetch_count=0)
        return None

    def consume(self, queue: str, prefetch: int, auto_ack: bool, arguments: dict[str, Any]) -> None:
        # Only one consumer at a time: with several, RabbitMQ's distribution of messages depends on timing.
        self.cancel(self.consumers)
        self.consumers += 1
        self.channel.basic_qos(prefetch_count=prefetch)

        def take(_channel: object, method: Any, properties: BasicProperties, body: bytes) -> None:
            headers: Any = properties.headers
            counted = headers.get("x-delivery-count")
            place = headers.get("x-stream-offset")
            self.delivered.append((method.consumer_tag, method.delivery_tag, method.redelivered, counted, place, body))

        tag = f"t{self.consumers}"
        self.channel.basic_consume(queue, take, auto_ack, consumer_tag=tag, arguments=arguments)

    def cancel(self, number: int) -> None:
        self.channel.basic_cancel(f"t{number}")

    def recover(self) -> None:
        self.channel.basic_recover(requeue=True)


@pytest.fixture(scope="module")
def sides(embedded: TestBroker, rabbitmq: TestBroker | None) -> Iterator[tuple[Side, Side]]:
    """Both brokers, with virtual hosts of the same name."""
    if rabbitmq is None:
        skip_or_fail("there is no RabbitMQ to compare with")
        return
    name = f"test-{uuid.uuid4().hex[:12]}"
    brokers = [broker.with_fresh_vhost(name) for broker in (embedded, rabbitmq)]
    ours, theirs = (Side(broker.url) for broker in brokers)
    yield ours, theirs
    for side in (ours, theirs):
        side.connection.close()
    for broker in brokers:
        broker.drop_vhost()


def compare(sides: tuple[Side, Side], sequence: list[Operation], *, with_counts: bool = True) -> None:
    """Perform the same operations on both brokers, on an empty virtual host, and compare after each step.

    Args:
        with_counts: compare how many messages the queues hold; RabbitMQ 3.10 reports 0 for streams.
    """
    ours, theirs = sides
    for side in sides:
        side.clear()
    for what in sequence:
        assert ours.do(what) == theirs.do(what), what
        expected = ours.state(with_counts=with_counts)
        deadline = time.monotonic() + 60
        # RabbitMQ's queues deliver and dead-letter asynchronously.
        while theirs.state(with_counts=with_counts) != expected:
            assert time.monotonic() < deadline, (what, expected, theirs.state(with_counts=with_counts))


SETTINGS = settings(max_examples=25 if IN_CI else 10, deadline=None, suppress_health_check=list(HealthCheck))


@SETTINGS
@given(sequence=operations(CLASSIC_ARGUMENTS, *CONSUMING))
def test_classic_queues_behave_alike_on_rabbitmq_and_the_embedded_broker(
    sides: tuple[Side, Side], sequence: list[Operation]
) -> None:
    """For random operations on classic queues, RabbitMQ and the embedded broker give the same replies, errors,
    deliveries and message counts.
    """
    compare(sides, [*CLASSIC_START, ("consume", "a", 1, False, {}), *sequence])


@SETTINGS
@given(sequence=operations([*CLASSIC_ARGUMENTS, *QUORUM_ARGUMENTS]))
def test_quorum_queues_behave_alike_on_rabbitmq_and_the_embedded_broker(
    sides: tuple[Side, Side], sequence: list[Operation]
) -> None:
    """For random operations on quorum queues, RabbitMQ and the embedded broker give the same replies, errors and
    message counts. Consumers are not compared, because those of RabbitMQ 3.10 sometimes get more messages than their
    prefetch allows.
    """
    compare(sides, [*QUORUM_START, *sequence])


@settings(SETTINGS, max_examples=10 if IN_CI else 5)
@given(sequence=STREAMING)
def test_streams_behave_alike_on_rabbitmq_and_the_embedded_broker(
    sides: tuple[Side, Side], sequence: list[Operation]
) -> None:
    """For random operations on streams, with consumers that start at any offset, RabbitMQ and the embedded broker
    give the same replies, errors and deliveries.
    """
    compare(
        sides, [("declare queue", "a", True, STREAM_ARGUMENTS[0]), *TOPIC[1:], *PUBLISHES, *sequence], with_counts=False
    )
