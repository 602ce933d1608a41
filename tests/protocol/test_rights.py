"""The rights that each operation needs, by AMQP, by the management API and by the stream protocol.

The matrix is generated: an operation is allowed with exactly the rights that it needs, and refused when one is missing.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from tests.protocol.conftest import Api
from tests.protocol.raw_stream import DELETE, Opener, RawStream, string

Need = tuple[str, str]
#: All names of queues, exchanges and streams that the operations use.
NAMES = ("q", "q2", "new", "x", "x2", "other", "amq.default", "s", "s2")
WITH_DEAD_LETTERS = {"x-dead-letter-exchange": "other"}
TO_DEFAULT = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}
WITH_ALTERNATE = {"alternate-exchange": "other"}


class Operation(NamedTuple):
    """An operation by one protocol, and the rights that it needs."""

    name: str
    needs: list[Need]
    do: Callable[[Any], object]


def read_all(channel: BlockingChannel, queue: str) -> None:
    channel.basic_consume(queue, lambda *_: None)


def publish(channel: BlockingChannel, exchange: str) -> None:
    """Publish, and wait until the broker has seen it."""
    channel.confirm_delivery()
    channel.basic_publish(exchange, "nowhere", b"x")


AMQP = [
    Operation("declare a queue", [("configure", "new")], lambda c: c.queue_declare("new")),
    Operation(
        "declare a queue with a dead-letter exchange",
        [("configure", "new"), ("read", "new"), ("write", "other")],
        lambda c: c.queue_declare("new", arguments=WITH_DEAD_LETTERS),
    ),
    Operation(
        "declare a queue that dead-letters to the default exchange",
        [("configure", "new"), ("read", "new"), ("write", "amq.default")],
        lambda c: c.queue_declare("new", arguments=TO_DEFAULT),
    ),
    Operation(
        "declare the same again",
        [("configure", "q2")],
        lambda c: c.queue_declare("q2", durable=True, arguments=WITH_DEAD_LETTERS),
    ),
    Operation("delete a queue", [("configure", "q")], lambda c: c.queue_delete("q")),
    Operation("purge", [("read", "q")], lambda c: c.queue_purge("q")),
    Operation("get", [("read", "q")], lambda c: c.basic_get("q")),
    Operation("consume", [("read", "q")], lambda c: read_all(c, "q")),
    Operation("bind", [("write", "q"), ("read", "x")], lambda c: c.queue_bind("q", "x", "k")),
    Operation("unbind", [("write", "q"), ("read", "x")], lambda c: c.queue_unbind("q", "x", "bound")),
    Operation("declare an exchange", [("configure", "new")], lambda c: c.exchange_declare("new")),
    Operation(
        "declare an exchange with an alternate",
        [("configure", "new"), ("read", "new"), ("write", "other")],
        lambda c: c.exchange_declare("new", arguments=WITH_ALTERNATE),
    ),
    Operation("delete an exchange", [("configure", "x")], lambda c: c.exchange_delete("x")),
    Operation("bind exchanges", [("write", "x2"), ("read", "x")], lambda c: c.exchange_bind("x2", "x", "k")),
    Operation("publish", [("write", "x")], lambda c: publish(c, "x")),
    Operation("publish to the default exchange", [("write", "amq.default")], lambda c: publish(c, "")),
]


class Asked(NamedTuple):
    """A request to the management API."""

    method: str
    path: str
    body: object = None


MESSAGE = {"properties": {}, "routing_key": "nowhere", "payload": "x", "payload_encoding": "string"}
GET = {"ackmode": "ack_requeue_true", "count": 1, "encoding": "auto"}

HTTP: list[tuple[str, Asked]] = [
    ("declare a queue", Asked("PUT", "queues/VHOST/new", {})),
    ("declare a queue with a dead-letter exchange", Asked("PUT", "queues/VHOST/new", {"arguments": WITH_DEAD_LETTERS})),
    (
        "declare a queue that dead-letters to the default exchange",
        Asked("PUT", "queues/VHOST/new", {"arguments": TO_DEFAULT}),
    ),
    ("declare the same again", Asked("PUT", "queues/VHOST/q2", {"durable": True, "arguments": WITH_DEAD_LETTERS})),
    ("delete a queue", Asked("DELETE", "queues/VHOST/q")),
    ("purge", Asked("DELETE", "queues/VHOST/q/contents")),
    ("get", Asked("POST", "queues/VHOST/q/get", GET)),
    ("bind", Asked("POST", "bindings/VHOST/e/x/q/q", {"routing_key": "k"})),
    ("unbind", Asked("DELETE", "bindings/VHOST/e/x/q/q/bound")),
    ("declare an exchange", Asked("PUT", "exchanges/VHOST/new", {"type": "direct"})),
    (
        "declare an exchange with an alternate",
        Asked("PUT", "exchanges/VHOST/new", {"type": "direct", "arguments": WITH_ALTERNATE}),
    ),
    ("delete an exchange", Asked("DELETE", "exchanges/VHOST/x")),
    ("bind exchanges", Asked("POST", "bindings/VHOST/e/x/e/x2", {"routing_key": "k"})),
    ("publish", Asked("POST", "exchanges/VHOST/x/publish", MESSAGE)),
    ("publish to the default exchange", Asked("POST", "exchanges/VHOST/amq.default/publish", MESSAGE)),
]

STREAM = [
    Operation("create a stream", [("configure", "new")], lambda c: c.create("new")),
    Operation("delete a stream", [("configure", "s")], lambda c: c.request(DELETE, string("s")).code),
    Operation("publish to a stream", [("write", "s")], lambda c: c.declare_publisher(1, "s")),
    Operation("read a stream", [("read", "s")], lambda c: c.subscribe(1, "s")),
]


def patterns(granted: Iterable[Need]) -> dict[str, str]:
    """Permissions for exactly these."""
    found = {}
    for right in ("configure", "write", "read"):
        names = [re.escape(name) for what, name in granted if what == right]
        found[right] = f"^({'|'.join(names)})$" if names else "^$"
    return found


def cases(needs: list[Need]) -> Iterator[tuple[list[Need], bool]]:
    """Rights, and whether they are enough: exactly those needed, and all but each of them."""
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


@pytest.mark.parametrize("operation", AMQP, ids=[each.name for each in AMQP])
def test_by_amqp(
    world: World, connect: Callable[..., pika.BlockingConnection], amqp_url: str, operation: Operation
) -> None:
    for granted, enough in cases(operation.needs):
        world.reset(granted)
        channel = connect(amqp_url.replace("guest:guest", f"{world.user}:secret")).channel()
        if enough:
            operation.do(channel)
            channel.close()
        else:
            with pytest.raises(ChannelClosedByBroker) as refused:
                operation.do(channel)
            assert refused.value.reply_code == 403, granted


@pytest.mark.parametrize(("name", "asked"), HTTP, ids=[name for name, _ in HTTP])
def test_by_the_management_api(world: World, name: str, asked: Asked) -> None:
    (operation,) = [each for each in AMQP if each.name == name]
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": "management"})
    for granted, enough in cases(operation.needs):
        world.reset(granted)
        path = asked.path.replace("VHOST", world.vhost)
        status, answer = world.api(asked.method, path, asked.body, user=world.user, password="secret")
        # RabbitMQ publishes by AMQP, and answers 400 with what that said.
        refused = 400 if name.startswith("publish") else 401
        assert (status in (200, 201, 204)) if enough else status == refused, (granted, status, answer)


@pytest.mark.parametrize("operation", STREAM, ids=[each.name for each in STREAM])
def test_by_the_stream_protocol(world: World, open_stream: Opener, operation: Operation) -> None:
    for granted, enough in cases(operation.needs):
        world.reset(granted)
        client: RawStream = open_stream(world.user, "secret")
        assert (operation.do(client) == 1) is enough, granted


def test_topic_permissions_by_the_management_api(world: World) -> None:
    """As for a client of AMQP: by routing key, to publish and to bind."""
    world.api("PUT", f"users/{world.user}", {"password": "secret", "tags": "management"})
    world.reset([(right, name) for right in ("configure", "write", "read") for name in NAMES])
    rights = {"exchange": "x", "write": "^ann", "read": "^ann"}
    world.put(f"topic-permissions/VHOST/{world.user}", rights)
    for key, publishes, binds in (("ann.news", 200, 201), ("bob.news", 400, 401)):
        message = {**MESSAGE, "routing_key": key}
        assert (
            world.api("POST", f"exchanges/{world.vhost}/x/publish", message, user=world.user, password="secret")[0]
            == publishes
        )
        assert (
            world.api(
                "POST", f"bindings/{world.vhost}/e/x/q/q", {"routing_key": key}, user=world.user, password="secret"
            )[0]
            == binds
        )
    assert world.api("DELETE", f"bindings/{world.vhost}/e/x/q/q/bound", user=world.user, password="secret")[0] == 401


def test_an_exclusive_queue_is_of_its_connection_alone(world: World, connection: pika.BlockingConnection) -> None:
    """The management API is another connection, even for an administrator."""
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
def test_a_policy_needs_no_rights_to_the_exchange_that_it_names(
    world: World, connect: Callable[..., pika.BlockingConnection], amqp_url: str, kind: str
) -> None:
    """RabbitMQ asks a policymaker for the tag and for permissions in the virtual host, whichever they are.

    Whoever declares what the policy matches needs no rights to that exchange either.
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
