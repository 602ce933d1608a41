"""The permissions that each operation needs over AMQP 0-9-1, AMQP 1.0, the management API and the stream protocol.

MATRIX has a row for each operation: the permissions that it needs, and how a client performs it with each protocol that
supports it. The tests generate their cases from it: an operation is allowed with exactly the permissions that it needs,
and refused when one of them is missing. TOPICS lists operations that need topic permissions. TAGS lists requests that
need a user's tag.
"""

import contextlib
import logging
import re
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, data_section, value_section
from mqtool.codecs.amqp10_values import Symbol, ULong
from tests.brokers import TestBroker
from tests.protocol.conftest import Api
from tests.protocol.raw_amqp10 import ATTACH, DISPOSITION, FLOW, RECEIVER, SENDER, SETTLED, TRANSFER, RawAmqp10
from tests.protocol.raw_stream import (
    CREATE_SUPER_STREAM,
    DELETE,
    DELETE_SUPER_STREAM,
    METADATA,
    OPEN,
    PARTITIONS,
    QUERY_OFFSET,
    QUERY_PUBLISHER,
    ROUTE,
    STORE_OFFSET,
    STREAM_STATS,
    Answer,
    Opener,
    RawStream,
    string,
    strings,
    table,
)

Need = tuple[str, str]
#: All names of queues, exchanges and streams that the operations use.
NAMES = ("q", "q2", "new", "new-0", "new-1", "x", "x2", "other", "amq.default", "s", "s2")
#: Response codes of the stream protocol.
OK, ACCESS_REFUSED, NO_OFFSET = 1, 16, 19
WITH_DEAD_LETTERS = {"x-dead-letter-exchange": "other"}
TO_DEFAULT = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
WITH_ALTERNATE = {"alternate-exchange": "other"}


def read_all(channel: BlockingChannel, queue: str) -> None:
    channel.basic_consume(queue, lambda *_: None)


def read_stream(channel: BlockingChannel) -> None:
    channel.basic_qos(prefetch_count=1)
    read_all(channel, "s")


def publish(channel: BlockingChannel, exchange: str) -> None:
    """Publish, and wait until the broker has handled the message."""
    channel.confirm_delivery()
    channel.basic_publish(exchange, "nowhere", b"x")


def request(client: RawAmqp10, method: str, target: str, body: Any = None) -> str:
    """Send a request to the management node; return the status, or the condition of the error that ends the session."""
    paired = (None, None, None, {Symbol("paired"): True})
    client.attach(SENDER, "/management", handle=0, name="pair", mode=SETTLED, rest=paired)
    client.expect(ATTACH)
    client.expect(FLOW)
    client.attach(RECEIVER, "/management", handle=1, name="pair", mode=SETTLED, rest=paired)
    client.expect(ATTACH)
    client.flow(1, 10)
    properties = BareProperties(message_id=ULong(1), to=target, subject=method, reply_to="$me")
    client.publish(0, Amqp10Message(properties=properties, body=value_section(body)).encode(), settled=True)
    answer = client.receive()
    return str(answer.message.properties.subject) if answer.code == TRANSFER else str((answer.error or ("",))[0])


def managed(method: str, target: str, body: Any = None) -> Callable[[RawAmqp10], str]:
    """An operation of the management node."""
    return lambda client: request(client, method, target, body)


def attached(role: bool, address: str) -> Callable[[RawAmqp10], str]:
    """Attach a link; the result is "attached", or the condition of the error that ends the session."""

    def attach(client: RawAmqp10) -> str:
        client.attach(role, address)
        answer = client.receive()
        return "attached" if answer.code == ATTACH else str((answer.error or ("",))[0])

    return attach


def addressed(to: str, **annotations: Any) -> Callable[[RawAmqp10], str]:
    """Publish a message with its own address; the result is "published", or the condition of the session's error."""

    def publish(client: RawAmqp10) -> str:
        client.attach_sender(None)
        named = {Symbol(name.replace("_", "-")): value for name, value in annotations.items()}
        properties = BareProperties(to=to)
        sent = Amqp10Message(message_annotations=named, properties=properties, body=data_section(b"x"))
        client.publish(0, sent.encode())
        answer = client.receive()
        return "published" if answer.code == DISPOSITION else str((answer.error or ("",))[0])

    return publish


class Asked(NamedTuple):
    """A request to the management API."""

    method: str
    path: str
    body: object = None


MESSAGE = {"properties": {}, "routing_key": "nowhere", "payload": "x", "payload_encoding": "string"}
GET = {"ackmode": "ack_requeue_true", "count": 1, "encoding": "auto"}

NEW_BINDING = {"source": "x", "binding_key": "k", "arguments": {}}


class Row(NamedTuple):
    """An operation, the permissions that it needs, and how a client performs it with each protocol (None if it cannot).

    Attributes:
        channel: with AMQP 0-9-1; raises ChannelClosedByBroker if it is refused.
        links: with AMQP 1.0; returns the condition `amqp:unauthorized-access` if it is refused.
        http: with the management API.
        stream: with the stream protocol; returns the response code, which is 1 if it is allowed.
    """

    name: str
    needs: list[Need]
    channel: Callable[[BlockingChannel], object] | None = None
    links: Callable[[RawAmqp10], str] | None = None
    http: Asked | None = None
    stream: Callable[[RawStream], int] | None = None


MATRIX = [
    Row(
        "declare a queue",
        [("configure", "new")],
        lambda c: c.queue_declare("new", durable=True),
        managed("PUT", "/queues/new", {}),
        Asked("PUT", "queues/VHOST/new", {"durable": True}),
        lambda c: c.create("new"),
    ),
    Row(
        "declare a queue with a dead-letter exchange",
        [("configure", "new"), ("read", "new"), ("write", "other")],
        lambda c: c.queue_declare("new", durable=True, arguments=WITH_DEAD_LETTERS),
        managed("PUT", "/queues/new", {"arguments": WITH_DEAD_LETTERS}),
        Asked("PUT", "queues/VHOST/new", {"durable": True, "arguments": WITH_DEAD_LETTERS}),
    ),
    Row(
        "declare a queue that dead-letters to the default exchange",
        [("configure", "new"), ("read", "new"), ("write", "amq.default")],
        lambda c: c.queue_declare("new", durable=True, arguments=TO_DEFAULT),
        managed("PUT", "/queues/new", {"arguments": TO_DEFAULT}),
        Asked("PUT", "queues/VHOST/new", {"durable": True, "arguments": TO_DEFAULT}),
    ),
    Row(
        "declare the same again",
        [("configure", "q2")],
        lambda c: c.queue_declare("q2", durable=True, arguments=WITH_DEAD_LETTERS),
        managed("PUT", "/queues/q2", {"arguments": WITH_DEAD_LETTERS}),
        Asked("PUT", "queues/VHOST/q2", {"durable": True, "arguments": WITH_DEAD_LETTERS}),
    ),
    Row(
        "delete a queue",
        [("configure", "q")],
        lambda c: c.queue_delete("q"),
        managed("DELETE", "/queues/q"),
        Asked("DELETE", "queues/VHOST/q"),
    ),
    Row(
        "delete a stream",
        [("configure", "s")],
        lambda c: c.queue_delete("s"),
        managed("DELETE", "/queues/s"),
        Asked("DELETE", "queues/VHOST/s"),
        lambda c: c.request(DELETE, string("s")).code,
    ),
    Row(
        "purge",
        [("read", "q")],
        lambda c: c.queue_purge("q"),
        managed("DELETE", "/queues/q/messages"),
        Asked("DELETE", "queues/VHOST/q/contents"),
    ),
    Row("get", [("read", "q")], lambda c: c.basic_get("q"), None, Asked("POST", "queues/VHOST/q/get", GET)),
    Row("consume", [("read", "q")], lambda c: read_all(c, "q"), attached(RECEIVER, "/queues/q")),
    Row(
        "read a stream",
        [("read", "s")],
        read_stream,
        attached(RECEIVER, "/queues/s"),
        None,
        lambda c: c.subscribe(1, "s"),
    ),
    Row(
        "bind",
        [("write", "q"), ("read", "x")],
        lambda c: c.queue_bind("q", "x", "k"),
        managed("POST", "/bindings", {**NEW_BINDING, "destination_queue": "q"}),
        Asked("POST", "bindings/VHOST/e/x/q/q", {"routing_key": "k"}),
    ),
    Row(
        "unbind",
        [("write", "q"), ("read", "x")],
        lambda c: c.queue_unbind("q", "x", "bound"),
        managed("DELETE", "/bindings/src=x;dstq=q;key=bound;args="),
        Asked("DELETE", "bindings/VHOST/e/x/q/q/bound"),
    ),
    Row(
        "declare an exchange",
        [("configure", "new")],
        lambda c: c.exchange_declare("new"),
        managed("PUT", "/exchanges/new", {}),
        Asked("PUT", "exchanges/VHOST/new", {"type": "direct"}),
    ),
    Row(
        "declare an exchange with an alternate",
        [("configure", "new"), ("read", "new"), ("write", "other")],
        lambda c: c.exchange_declare("new", arguments=WITH_ALTERNATE),
        managed("PUT", "/exchanges/new", {"arguments": WITH_ALTERNATE}),
        Asked("PUT", "exchanges/VHOST/new", {"type": "direct", "arguments": WITH_ALTERNATE}),
    ),
    Row(
        "delete an exchange",
        [("configure", "x")],
        lambda c: c.exchange_delete("x"),
        managed("DELETE", "/exchanges/x"),
        Asked("DELETE", "exchanges/VHOST/x"),
    ),
    Row(
        "bind exchanges",
        [("write", "x2"), ("read", "x")],
        lambda c: c.exchange_bind("x2", "x", "k"),
        managed("POST", "/bindings", {**NEW_BINDING, "destination_exchange": "x2"}),
        Asked("POST", "bindings/VHOST/e/x/e/x2", {"routing_key": "k"}),
    ),
    Row(
        "publish",
        [("write", "x")],
        lambda c: publish(c, "x"),
        attached(SENDER, "/exchanges/x/nowhere"),
        Asked("POST", "exchanges/VHOST/x/publish", MESSAGE),
    ),
    Row("publish to an address in each message", [("write", "x")], None, addressed("/exchanges/x/nowhere")),
    Row(
        "publish to the default exchange",
        [("write", "amq.default")],
        lambda c: publish(c, ""),
        attached(SENDER, "/queues/q"),
        Asked("POST", "exchanges/VHOST/amq.default/publish", MESSAGE),
    ),
    Row("publish to a queue in each message", [("write", "amq.default")], None, addressed("/queues/q")),
    Row("publish to a stream", [("write", "s")], stream=lambda c: c.declare_publisher(1, "s")),
    Row("read an offset", [("read", "s")], stream=lambda c: found(c.request(QUERY_OFFSET, string("r") + string("s")))),
    Row(
        "read a publishing id",
        [("read", "s")],
        stream=lambda c: c.request(QUERY_PUBLISHER, string("p") + string("s")).code,
    ),
]


def found(answer: Answer) -> int:
    """The response code of a query for an offset; also 1 if there is no such offset."""
    return 1 if answer.code == NO_OFFSET else answer.code


def stores_offset(client: RawStream, reader: RawStream) -> bool:
    """Whether a client can store an offset. A client with all permissions checks it: StoreOffset has no response."""
    name = string(uuid.uuid4().hex) + string("s")
    client.send(STORE_OFFSET, name + bytes(8))
    client.request(QUERY_PUBLISHER, string("p") + string("s"))  # answered once the offset has been stored
    return reader.request(QUERY_OFFSET, name).code == 1


def rows(protocol: str) -> Any:
    """Parametrize a test with the rows of a protocol."""
    found = [each for each in MATRIX if getattr(each, protocol) is not None]
    return pytest.mark.parametrize("row", found, ids=[each.name for each in found])


def patterns(granted: Iterable[Need]) -> dict[str, str]:
    """Return the patterns that grant exactly these permissions."""
    found = {}
    for right in ("configure", "write", "read"):
        names = [re.escape(name) for what, name in granted if what == right]
        found[right] = f"^({'|'.join(names)})$" if names else "^$"
    return found


def cases(needs: list[Need]) -> Iterator[tuple[list[Need], bool]]:
    """Yield permissions, and whether they are enough: first those that are needed, which are enough, and then all
    permissions except one of the needed ones, which are not.
    """
    yield needs, True
    everything = [(right, name) for right in ("configure", "write", "read") for name in NAMES]
    for missing in needs:
        yield [each for each in everything if each != missing], False


class World:
    """A virtual host in which everything that the operations need exists, and a user."""

    def __init__(self, api: Api, vhost: str, user: str) -> None:
        self.api, self.vhost, self.user = api, vhost, user

    def put(self, path: str, body: object) -> None:
        assert self.api("PUT", f"{path.replace('VHOST', self.vhost)}", body)[0] in (201, 204), path

    def reset(self, granted: Iterable[Need]) -> None:
        for each in ("queues/VHOST/new", "exchanges/VHOST/new"):
            self.api("DELETE", each.replace("VHOST", self.vhost))
        for name in ("x", "x2", "other"):
            self.put(f"exchanges/VHOST/{name}", {"type": "topic", "durable": True})
        self.put("queues/VHOST/q", {"durable": True})
        self.put("queues/VHOST/q2", {"durable": True, "arguments": WITH_DEAD_LETTERS})
        self.put("queues/VHOST/s", {"durable": True, "arguments": {"x-queue-type": "stream"}})
        assert self.api("POST", f"bindings/{self.vhost}/e/x/q/q", {"routing_key": "bound"})[0] == 201
        self.put(f"permissions/VHOST/{self.user}", patterns(granted))


@pytest.fixture
def world(api: Api, vhost: str, ann: str) -> World:
    return World(api, vhost, ann)


@pytest.fixture
def native(request: pytest.FixtureRequest) -> Iterator[tuple[World, str]]:
    """A World on an embedded broker that imitates a version with AMQP 1.0, and the broker's URL."""
    with EmbeddedBroker(like=request.param, management_port=0) as broker:
        api = Api(str(broker.management_url))
        api("PUT", "users/ann", {"password": "secret", "tags": ""})
        yield World(api, "%2F", "ann"), broker.url


@rows("channel")
def test_operations_over_amqp_0_9_1_need_exactly_their_permissions(
    world: World, connect: Callable[..., pika.BlockingConnection], amqp_url: str, row: Row
) -> None:
    """Over AMQP 0-9-1, a user who has exactly the permissions that an operation needs can perform it. If one of these
    permissions is missing, the broker closes the channel with error 403.
    """
    assert row.channel is not None
    for granted, enough in cases(row.needs):
        world.reset(granted)
        channel = connect(amqp_url.replace("guest:guest", f"{world.user}:secret")).channel()
        if enough:
            row.channel(channel)
            channel.close()
        else:
            with pytest.raises(ChannelClosedByBroker) as refused:
                row.channel(channel)
            assert refused.value.reply_code == 403, granted


@rows("links")
@pytest.mark.parametrize("native", ["4.0", "4.3"], indirect=True)
def test_operations_over_amqp_1_0_need_exactly_their_permissions(native: "tuple[World, str]", row: Row) -> None:
    """Over AMQP 1.0, a user who has exactly the permissions that an operation needs can perform it. If one of these
    permissions is missing, the broker refuses the operation with the error unauthorized-access.
    """
    world, url = native
    assert row.links is not None
    for granted, enough in cases(row.needs):
        world.reset(granted)
        with RawAmqp10(url.replace("guest:guest", f"{world.user}:secret")) as client:
            found = row.links(client)
        assert found in (("200", "201", "204", "attached", "published") if enough else (REFUSED,)), granted


@rows("http")
def test_operations_of_the_management_api_need_exactly_their_permissions(world: World, row: Row) -> None:
    """In the management API, a user who has exactly the permissions that an operation needs can perform it. If one of
    these permissions is missing, the API answers with status 401, or with 400 if the operation publishes a message.
    """
    asked = row.http
    assert asked is not None
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": "management"})
    for granted, enough in cases(row.needs):
        world.reset(granted)
        path = asked.path.replace("VHOST", world.vhost)
        status, answer = world.api(asked.method, path, asked.body, user=world.user, password="secret")
        # RabbitMQ's management API publishes over AMQP, and answers 400 with AMQP's error.
        refused = 400 if row.name.startswith("publish") else 401
        assert (status in (200, 201, 204)) if enough else status == refused, (granted, status, answer)


@rows("stream")
def test_operations_of_the_stream_protocol_need_exactly_their_permissions(
    world: World, open_stream: Opener, row: Row
) -> None:
    """Over the stream protocol, a user who has exactly the permissions that an operation needs can perform it. If one
    of these permissions is missing, the operation fails.
    """
    assert row.stream is not None
    for granted, enough in cases(row.needs):
        world.reset(granted)
        client: RawStream = open_stream(world.user, "secret")
        assert (row.stream(client) == 1) is enough, granted


def test_storing_an_offset_needs_the_write_permission_only_before_3_13(
    broker: TestBroker, world: World, open_stream: Opener
) -> None:
    """Up to RabbitMQ 3.12, a user needs the write permission for a stream to store an offset in it. From 3.13 on, the
    user needs the read permission instead.
    """
    needed = "read" if broker.differs_since("3.13", "the read permission is enough") else "write"
    for granted, enough in cases([(needed, "s")]):
        world.reset(granted)
        assert stores_offset(open_stream(world.user, "secret"), open_stream()) is enough, granted


@pytest.mark.parametrize("streams", ["4.3"], indirect=True)
def test_refusals_to_store_offsets_do_not_fill_the_log(
    streams: "tuple[World, Callable[[str, str], RawStream]]", caplog: pytest.LogCaptureFixture
) -> None:
    """If a client without permission tries a thousand times to store an offset in a stream, the broker logs at least
    one refusal, but fewer than a hundred.
    """
    world, log_in = streams
    world.reset([])
    caplog.set_level(logging.WARNING)
    client = log_in("ann", "secret")
    for _ in range(1000):
        client.send(STORE_OFFSET, string("r") + string("s") + bytes(8))
    assert client.request(QUERY_OFFSET, string("r") + string("s")).code == ACCESS_REFUSED
    lines = [record for record in caplog.records if "cannot store an offset" in record.getMessage()]
    assert 0 < len(lines) < 100


#: Later commands of the stream protocol, and the rights that each needs.
PARTS = ("new-0", "new-1")
SUPER_STREAMS: dict[str, tuple[list[Need], Callable[[RawStream], int]]] = {
    "create": (
        [("configure", "new"), ("read", "new"), *[(right, name) for name in PARTS for right in ("configure", "write")]],
        lambda c: (
            c.request(CREATE_SUPER_STREAM, string("new") + strings(*PARTS) + strings("eu", "us") + table({})).code
        ),
    ),
    "delete": (
        [("configure", "new"), ("read", "new"), *[(right, name) for name in PARTS for right in ("configure", "write")]],
        lambda c: c.request(DELETE_SUPER_STREAM, string("new")).code,
    ),
    "statistics": ([("read", "s")], lambda c: c.request(STREAM_STATS, string("s")).code),
}


def delete_partitions(guest: RawStream) -> None:
    for name in PARTS:
        guest.request(DELETE, string(name))


@pytest.fixture
def streams(request: pytest.FixtureRequest) -> Iterator[tuple[World, Callable[[str, str], RawStream]]]:
    """A World on an embedded broker that imitates a version, and a function that logs in over the stream protocol."""
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(EmbeddedBroker(like=request.param, management_port=0, stream_port=0))
        api = Api(str(broker.management_url))
        api("PUT", "users/ann", {"password": "secret", "tags": ""})

        def log_in(user: str, password: str) -> RawStream:
            client = RawStream("127.0.0.1", broker.stream_port or 0)
            stack.callback(client.close)
            client.log_in(user, password)
            assert client.request(OPEN, string("/")).code == 1
            return client

        yield World(api, "%2F", "ann"), log_in


@pytest.mark.parametrize("streams", ["4.0", "4.3"], indirect=True)
@pytest.mark.parametrize("operation", SUPER_STREAMS)
def test_super_streams_and_statistics_of_streams_need_exactly_their_permissions(
    streams: "tuple[World, Callable[[str, str], RawStream]]", operation: str
) -> None:
    """To create or delete a super stream, a user needs the configure and read permissions for the super stream's
    exchange, and the configure and write permissions for each partition. To request the statistics of a stream, a user
    needs the read permission for this stream.
    """
    world, log_in = streams
    needs, perform = SUPER_STREAMS[operation]
    guest = log_in("guest", "guest")
    for granted, enough in cases(needs):
        world.reset(granted)
        delete_partitions(guest)
        if operation != "create":
            assert SUPER_STREAMS["create"][1](guest) == OK
        assert (perform(log_in("ann", "secret")) == 1) is enough, granted


#: What a user may look up with which rights. RabbitMQ checks these from 4.2.9 on.
LOOKUPS: list[tuple[str, list[Need], bool]] = [
    ("partitions", [], False),
    ("partitions", [("read", name) for name in ("new", *PARTS)], True),
    ("partitions", [("write", name) for name in ("new", *PARTS)], True),
    ("partitions", [("read", "new"), ("read", "new-0")], False),
    ("partitions", [("read", name) for name in PARTS], False),
    ("route", [], False),
    ("route", [("write", "new"), ("write", "new-1")], True),
    ("route", [("write", "new"), ("write", "new-0")], False),
    ("route", [("write", name) for name in PARTS], False),
    ("route", [("read", name) for name in ("new", *PARTS)], False),
    ("metadata", [], False),
    ("metadata", [("configure", "s")], False),
    ("metadata", [("read", "s")], True),
    ("metadata", [("write", "s")], True),
]


@pytest.mark.parametrize("streams", ["4.0", "4.2", "4.3"], indirect=True)
def test_lookups_of_streams_need_permissions_from_4_2_9_on(
    streams: "tuple[World, Callable[[str, str], RawStream]]", request: pytest.FixtureRequest
) -> None:
    """From RabbitMQ 4.2.9 on, the broker answers with access-refused if a user without the necessary permissions
    looks up a stream (`metadata`), the partitions of a super stream (`partitions`), or the partition for a routing
    key (`route`). In RabbitMQ 4.0, every user can look these up.
    """
    world, log_in = streams
    is_checked = "4.0" not in request.node.name
    perform: dict[str, Callable[[RawStream], int]] = {
        "partitions": lambda c: c.request(PARTITIONS, string("new")).code,
        "route": lambda c: c.request(ROUTE, string("us") + string("new")).code,
        "metadata": lambda c: code_in_metadata(c, "s"),
    }
    guest = log_in("guest", "guest")
    for operation, granted, enough in LOOKUPS:
        world.reset(granted)
        delete_partitions(guest)
        assert SUPER_STREAMS["create"][1](guest) == OK
        expected = OK if enough or not is_checked else ACCESS_REFUSED
        assert perform[operation](log_in("ann", "secret")) == expected, (operation, granted)


def code_in_metadata(client: RawStream, stream: str) -> int:
    client.send(METADATA, struct.pack(">II", 7, 1) + string(stream))
    answer = client.expect(METADATA | 0x8000)
    return int.from_bytes(answer[answer.index(string(stream)) + len(string(stream)) :][:2])


EVERYTHING = [(right, name) for right in ("configure", "write", "read") for name in NAMES]
REFUSED = "amqp:unauthorized-access"


class Topic(NamedTuple):
    """An operation with a topic exchange that needs a topic permission for each of its routing keys."""

    name: str
    keys: list[str]
    channel: Callable[[BlockingChannel], object] | None = None
    links: Callable[[RawAmqp10], str] | None = None
    http: Asked | None = None


def copied(channel: BlockingChannel, header: str, *keys: str) -> None:
    """Publish with a key that is allowed, and further keys in a header."""
    channel.confirm_delivery()
    channel.basic_publish("x", "ann.news", b"x", pika.BasicProperties(headers={header: list(keys)}))


def topics() -> Iterator[Topic]:
    """The operations, each with a key that is allowed and one that is not."""
    for key in ("ann.news", "bob.news"):
        message = {**MESSAGE, "routing_key": key}
        binding = {"source": "x", "destination_queue": "q", "binding_key": key, "arguments": {}}
        yield Topic(
            "publish", [key],
            lambda c, key=key: (c.confirm_delivery(), c.basic_publish("x", key, b"x")),
            addressed(f"/exchanges/x/{key}"),
            Asked("POST", "exchanges/VHOST/x/publish", message),
        )  # fmt: skip
        for header in ("CC", "BCC"):
            copies = {**MESSAGE, "routing_key": "ann.news", "properties": {"headers": {header: ["ann.a", key]}}}
            yield Topic(
                f"publish with {header}", ["ann.news", key],
                lambda c, header=header, key=key: copied(c, header, "ann.a", key),
                addressed("/exchanges/x/ann.news", x_cc=["ann.a", key]) if header == "CC" else None,
                Asked("POST", "exchanges/VHOST/x/publish", copies),
            )  # fmt: skip
        yield Topic(
            "bind", [key],
            lambda c, key=key: c.queue_bind("q", "x", key),
            managed("POST", "/bindings", binding),
            Asked("POST", "bindings/VHOST/e/x/q/q", {"routing_key": key}),
        )  # fmt: skip


TOPICS = list(topics())
of_topics = pytest.mark.parametrize("topic", TOPICS, ids=[f"{each.name} {each.keys[-1]}" for each in TOPICS])


def is_allowed(topic: Topic, *, checks_copies: bool) -> bool:
    """Whether a user with topic permissions for `^ann` may perform this operation."""
    return all(key.startswith("ann") for key in (topic.keys if checks_copies else topic.keys[:1]))


def grant_topics(world: World) -> None:
    """Grant all permissions, but topic permissions only for `^ann`."""
    world.reset(EVERYTHING)
    world.put(f"topic-permissions/VHOST/{world.user}", {"exchange": "x", "write": "^ann", "read": "^ann"})


@of_topics
def test_topic_permissions_apply_over_amqp_0_9_1(
    broker: TestBroker, world: World, connect: Callable[..., pika.BlockingConnection], amqp_url: str, topic: Topic
) -> None:
    """Over AMQP 0-9-1, a user cannot publish or bind with a routing key that does not match the user's topic
    permission. From RabbitMQ 4.0.3 on, the routing keys in CC and BCC must also match.
    """
    grant_topics(world)
    assert topic.channel is not None
    channel = connect(amqp_url.replace("guest:guest", f"{world.user}:secret")).channel()
    checks_copies = broker.differs_since("4.0", "topic permissions apply to CC and BCC")
    if is_allowed(topic, checks_copies=checks_copies):
        topic.channel(channel)
        channel.close()
    else:
        with pytest.raises(ChannelClosedByBroker) as refused:
            topic.channel(channel)
        assert refused.value.reply_code == 403


@of_topics
def test_topic_permissions_apply_to_the_management_api(broker: TestBroker, world: World, topic: Topic) -> None:
    """In the management API, a user cannot publish or bind with a routing key that does not match the user's topic
    permission. From RabbitMQ 4.0.3 on, the routing keys in CC and BCC must also match.
    """
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": "management"})
    grant_topics(world)
    assert topic.http is not None
    method, path, body = topic.http
    status, _ = world.api(method, path.replace("VHOST", world.vhost), body, user=world.user, password="secret")
    checks_copies = broker.differs_since("4.0", "topic permissions apply to CC and BCC")
    if is_allowed(topic, checks_copies=checks_copies):
        assert status in (200, 201)
    else:
        assert status == (401 if topic.name == "bind" else 400)


@of_topics
@pytest.mark.parametrize("native", ["4.0", "4.3"], indirect=True)
def test_topic_permissions_apply_over_amqp_1_0(native: "tuple[World, str]", topic: Topic) -> None:
    """Over AMQP 1.0, a user cannot publish a message with a routing key that does not match the user's topic
    permission, or add a binding with such a key. The routing keys in the annotation x-cc must also match.
    """
    if topic.links is None:
        pytest.skip("AMQP 1.0 has no BCC")
    world, url = native
    grant_topics(world)
    with RawAmqp10(url.replace("guest:guest", f"{world.user}:secret")) as client:
        found = topic.links(client)
    assert found in (("204", "published") if is_allowed(topic, checks_copies=True) else (REFUSED,))


@pytest.mark.parametrize("native", ["4.0", "4.3"], indirect=True)
def test_brokers_that_imitate_4_0_5_or_4_3_check_topic_permissions_for_cc_and_bcc(native: "tuple[World, str]") -> None:
    """Over AMQP 0-9-1 and over HTTP, an embedded broker that imitates RabbitMQ 4.0.5 or 4.3 checks a user's topic
    permissions for a message's own routing key and for the routing keys in CC and BCC.
    """
    world, url = native
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": "management"})
    grant_topics(world)
    for topic in TOPICS:
        assert topic.channel is not None
        assert topic.http is not None
        method, path, body = topic.http
        status, _ = world.api(method, path.replace("VHOST", world.vhost), body, user=world.user, password="secret")
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(as_user(url, world)))) as connection:
            allowed = is_allowed(topic, checks_copies=True)
            assert (status < 300) is allowed, topic.name
            with contextlib.nullcontext() if allowed else pytest.raises(ChannelClosedByBroker, match="403"):
                topic.channel(connection.channel())


def as_user(url: str, world: World) -> str:
    return url.replace("guest:guest", f"{world.user}:secret")


POLICY = {"pattern": "^new$", "definition": {"max-length": 5}}
#: One user's tags in each column of the tables below.
COLUMNS = ("", "management", "policymaker", "monitoring", "administrator")
TAGS = [
    (tags, asked, status)
    for asked, statuses in [
        (Asked("GET", "queues/VHOST"), (401, 200, 200, 200, 200)),
        (
            Asked("PUT", "policies/VHOST/p", {"pattern": "^new$", "definition": {"max-length": 5}}),
            (401, 401, 201, 401, 201),
        ),
        (Asked("GET", "nodes"), (401, 401, 401, 200, 200)),
        (Asked("PUT", "users/USER", {"password": "secret", "tags": ""}), (401, 401, 401, 401, 204)),
    ]
    for tags, status in zip(COLUMNS, statuses, strict=True)
]


@pytest.mark.parametrize(
    ("tags", "asked", "status"), TAGS, ids=[f"{tags or 'none'} {a.method} {a.path}" for tags, a, _ in TAGS]
)
def test_a_users_tags_decide_which_management_requests_are_allowed(
    world: World, tags: str, asked: Asked, status: int
) -> None:
    """In the management API, a user with any tag can list queues. Setting a policy needs the tag `policymaker` or
    `administrator`, listing nodes needs `monitoring` or `administrator`, and changing a user needs `administrator`.
    The API answers a user without the necessary tag with status 401.
    """
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": tags})
    world.reset([])
    path = asked.path.replace("VHOST", world.vhost).replace("USER", world.user)
    assert world.api(asked.method, path, asked.body, user=world.user, password="secret")[0] == status


#: A request for something in a virtual host by a user without permissions there. Up to 4.2, RabbitMQ answers that the
#: user may not see the virtual host (401), and from 4.3 on, that it does not exist (404).
HIDDEN = 0
#: Requests with the statuses that users without permissions get.
UNPERMITTED = [
    (Asked("GET", "queues/VHOST"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "queues/VHOST/q"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "queues/VHOST/q/bindings"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "exchanges/VHOST"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "exchanges/VHOST/x"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "exchanges/VHOST/x/bindings/source"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "bindings/VHOST"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "bindings/VHOST/e/x/q/q"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "policies/VHOST"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "policies/VHOST/p"), (401, 401, HIDDEN, 401, 404)),
    (Asked("PUT", "policies/VHOST/p", POLICY), (401, 401, HIDDEN, 401, 201)),
    (Asked("GET", "vhosts/VHOST/connections"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "vhosts/VHOST/channels"), (401, HIDDEN, HIDDEN, HIDDEN, 200)),
    (Asked("GET", "vhosts/VHOST"), (401, 401, 401, 401, 200)),
    (Asked("GET", "vhost-limits/VHOST"), (401, HIDDEN, HIDDEN, 200, 200)),
    (Asked("GET", "aliveness-test/VHOST"), (401, HIDDEN, HIDDEN, HIDDEN, 401)),
    (Asked("PUT", "queues/VHOST/new", {}), (401, HIDDEN, HIDDEN, HIDDEN, 401)),
    (Asked("GET", "queues/no-such-vhost"), (401, 404, 404, 404, 404)),
]


@pytest.mark.parametrize(
    ("asked", "statuses"), UNPERMITTED, ids=[f"{asked.method} {asked.path}" for asked, _ in UNPERMITTED]
)
def test_only_administrators_see_the_contents_of_a_virtual_host_without_permissions_in_it(
    broker: TestBroker, world: World, asked: Asked, statuses: tuple[int, ...]
) -> None:
    """In the management API, a user without permissions in a virtual host can see its contents only with the tag
    `administrator`. To a user with any other tag, including `monitoring`, the API answers with status 401 up to
    RabbitMQ 4.2, and with 404 from 4.3 on.
    """
    hides = broker.differs_since("4.3", "a virtual host that a user may not see is not found, rather than refused")
    world.reset([])
    world.api("DELETE", f"permissions/{world.vhost}/{world.user}")
    found = []
    for tags in COLUMNS:
        world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": tags})
        path = asked.path.replace("VHOST", world.vhost)
        found.append(world.api(asked.method, path, asked.body, user=world.user, password="secret")[0])
    assert found == [(404 if hides else 401) if status == HIDDEN else status for status in statuses]


@pytest.mark.parametrize("tag", ["management", "monitoring"])
@pytest.mark.parametrize("kind", ["queues", "exchanges", "bindings", "policies"])
def test_a_list_contains_nothing_from_virtual_hosts_in_which_the_user_has_no_permissions(
    world: World, kind: str, tag: str
) -> None:
    """In the management API, the lists of all queues, exchanges, bindings or policies contain only those of virtual
    hosts in which the user has permissions. A user with the tag `monitoring` sees the other virtual hosts in the list
    of virtual hosts, but nothing that they contain.
    """
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": tag})
    world.put("policies/VHOST/p", POLICY)

    def seen(kind: str, field: str) -> set[str]:
        listed = world.api("GET", kind, user=world.user, password="secret")[1]
        return {view[field] for view in listed}

    world.reset([])
    assert seen(kind, "vhost") == {world.vhost}
    world.api("DELETE", f"permissions/{world.vhost}/{world.user}")
    assert seen(kind, "vhost") == set()
    assert (world.vhost in seen("vhosts", "name")) == (tag == "monitoring")


@pytest.mark.parametrize("native", ["4.3"], indirect=True)
def test_an_administrator_without_permissions_cannot_use_queues_or_exchanges(native: "tuple[World, str]") -> None:
    """If a user has the tag `administrator`, but no permissions, the broker refuses every operation of this user on
    queues and exchanges, both over AMQP 0-9-1 and over AMQP 1.0.
    """
    world, url = native
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": "administrator"})
    world.reset([])
    for row in MATRIX:
        if row.links is not None:
            with RawAmqp10(as_user(url, world)) as client:
                assert row.links(client) == REFUSED, row.name
        if row.channel is not None:
            connection = pika.BlockingConnection(pika.URLParameters(as_user(url, world)))
            with contextlib.closing(connection), pytest.raises(ChannelClosedByBroker) as refused:
                row.channel(connection.channel())
            assert refused.value.reply_code == 403, row.name


def test_an_exclusive_queue_cannot_be_used_through_the_management_api(
    world: World, connection: pika.BlockingConnection
) -> None:
    """Through the management API, nobody can delete, purge, read, bind or declare a connection's exclusive queue. The
    API answers such a request with status 400, even if the user is an administrator.
    """
    world.reset([])
    connection.channel().queue_declare("theirs", exclusive=True)
    asked = [
        ("DELETE", "queues/VHOST/theirs", None),
        ("DELETE", "queues/VHOST/theirs/contents", None),
        ("POST", "queues/VHOST/theirs/get", GET),
        ("POST", "bindings/VHOST/e/x/q/theirs", {"routing_key": "k"}),
        ("PUT", "queues/VHOST/theirs", {}),
    ]
    found = [world.api(method, path.replace("VHOST", world.vhost), body)[0] for method, path, body in asked]
    assert found == [400] * len(asked)


@pytest.mark.parametrize("kind", ["queues", "exchanges"])
def test_a_policy_needs_no_permission_for_the_exchange_that_it_names(
    world: World, connect: Callable[..., pika.BlockingConnection], amqp_url: str, kind: str
) -> None:
    """A policy can name a dead-letter exchange or an alternate exchange. A user who sets such a policy, or declares a
    queue or an exchange to which the policy applies, needs no permission for the exchange that the policy names.
    """
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": "policymaker"})
    world.reset([("configure", "new")])
    definition = WITH_ALTERNATE if kind == "exchanges" else {"dead-letter-exchange": "other"}
    policy = {"pattern": "^new$", "definition": definition, "apply-to": kind}
    path = f"policies/{world.vhost}/{quote('p')}"
    assert world.api("PUT", path, policy, user=world.user, password="secret")[0] == 201
    channel = connect(amqp_url.replace("guest:guest", f"{world.user}:secret")).channel()
    if kind == "exchanges":
        channel.exchange_declare("new")
    else:
        channel.queue_declare("new")
    assert channel.is_open
