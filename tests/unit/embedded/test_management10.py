"""The AMQP 1.0 management node: its status codes and texts are those of RabbitMQ 4.3.6."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from mqtool.broker.embedded.amqp10.management import handle
from mqtool.broker.embedded.model.amqp_errors import ChannelException
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.users import Permissions, TopicPermissions
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, sections, value_section
from mqtool.codecs.amqp10_values import Any10, Symbol, ULong
from mqtool.codecs.field_tables import Int32, UInt32
from tests.protocol.raw_amqp10 import ATTACH, END, RECEIVER, SENDER, SETTLED, SOURCE, TARGET, described
from tests.unit.embedded.memory_client10 import MemoryClient10, fill


@dataclass
class _Client:
    """A connection, as the management node sees it."""

    broker: Broker
    vhost: VirtualHost
    rights: Rights
    exclusive_queues: set[BrokerQueue] = field(default_factory=set)

    def __call__(self, method: str, target: str, body: Any10 = None) -> tuple[int, Any10]:
        """Send a request; return the status and the body of the response."""
        *_, encoded = self.steps(method, target, body)
        assert encoded is not None
        response = Amqp10Message.decode(encoded)
        assert response.properties.correlation_id == 7
        assert response.application_properties == {"http:response": "1.1"}
        return int(response.properties.subject or 0), sections(response.body)[0].value

    def steps(self, method: str, target: str, body: Any10 = None) -> Iterator[bytes | None]:
        """Send a request. Yield None after each step, and finally the response."""
        yield (yield from handle(self, request_of(method, target, body)))


def request_of(method: str | None, target: str | None, body: Any10 = None, reply_to: str = "$me") -> bytes:
    """Encode a request."""
    properties = BareProperties(ULong(7), None, target, method, reply_to)
    return Amqp10Message(properties=properties, body=value_section(body)).encode()


def ended(loop: asyncio.AbstractEventLoop, broker: Broker, request: bytes) -> tuple[str, str | None] | None:
    """Send a request on a pair of links; return the error of the end frame, which must be the only answer."""
    client = MemoryClient10(loop, broker)
    ends, paired = (described(SOURCE, "/management"), described(TARGET, "/management")), {Symbol("paired"): True}
    for link, role, count in ((0, SENDER, UInt32(0)), (1, RECEIVER, None)):
        fields = (SETTLED, None, *ends, None, None, count, None, None, None, paired)
        client.send(ATTACH, "pair", UInt32(link), role, *fields)
    client.flow(1, 5)
    (end,) = client.publish(0, request, settled=True)
    assert end.code == END
    return end.error


async def _client(like: Like = Like.V4_3) -> _Client:
    broker = Broker(Ledger(), profile=PROFILES[like])
    broker.create_defaults()
    return _Client(broker, broker.vhosts["/"], Rights(broker, "guest", "/"))


@pytest.fixture
def client(loop: asyncio.AbstractEventLoop) -> _Client:
    return loop.run_until_complete(_client())


_NO_REQUEST = "a request needs a method, a target, and reply-to '$me'"
_QUEUE = {
    "leader": "embedded@localhost", "message_count": 0, "consumer_count": 0, "name": "q", "vhost": "/",
    "durable": True, "auto_delete": False, "exclusive": False, "type": "classic",
    "arguments": {"x-queue-type": "classic"}, "replicas": ["embedded@localhost"],
}  # fmt: skip


def test_a_queue_is_declared_read_purged_and_deleted_over_amqp_1_0(client: _Client) -> None:
    """Over AMQP 1.0, a request to declare a new queue returns status 201. Requests to declare the queue again, read
    it, purge it or delete it return 200. After that, requests to read or purge it return 404. As in RabbitMQ, a
    request to delete it again returns 200.
    """
    assert client("PUT", "/queues/q", {}) == (201, _QUEUE)
    assert client("PUT", "/queues/q", {"durable": True, "arguments": {}}) == (200, _QUEUE)
    assert client("GET", "/queues/q") == (200, _QUEUE)
    assert client("DELETE", "/queues/q/messages") == (200, {"message_count": 0})
    assert client("DELETE", "/queues/q") == (200, {"message_count": 0})
    assert client("DELETE", "/queues/q") == (200, {"message_count": 0})
    assert client("GET", "/queues/q") == (404, "queue 'q' in vhost '/' not found")
    assert client("DELETE", "/queues/q/messages") == (404, "no queue 'q' in vhost '/'")


def test_a_queue_declared_over_amqp_1_0_has_the_name_type_and_arguments_of_its_declaration(client: _Client) -> None:
    """A queue can be declared over AMQP 1.0 with a percent-encoded name. The queue has the decoded name, the requested
    type, and its arguments with their AMQP types.
    """
    arguments = {"x-queue-type": "quorum", Symbol("x-max-length"): UInt32(5)}
    _, queue = client("PUT", "/queues/a%2fb%20%C3%a9", {"arguments": arguments})
    assert (queue["name"], queue["type"]) == ("a/b é", "quorum")
    assert queue["arguments"] == {"x-queue-type": "quorum", "x-max-length": 5}
    assert type(queue["arguments"]["x-max-length"]) is UInt32


def test_an_exclusive_queue_cannot_be_used_by_another_amqp_1_0_connection(client: _Client) -> None:
    """Over AMQP 1.0, a request to declare, purge, bind, unbind or delete another connection's exclusive queue returns
    status 400 with RabbitMQ's error text.
    """
    other = _Client(client.broker, client.vhost, client.rights)
    assert client("PUT", "/queues/shared", {"exclusive": False})[0] == 201
    assert client("PUT", "/queues/q", {"exclusive": True})[1]["exclusive"]
    assert {queue.name for queue in client.exclusive_queues} == {"q"}
    binding = {"source": "amq.topic", "destination_queue": "q", "binding_key": "", "arguments": {}}
    assert client("POST", "/bindings", binding) == (204, None)
    assert client("DELETE", "/queues/q/messages") == (200, {"message_count": 0})
    locked = "cannot obtain exclusive access to locked queue 'q' in vhost '/'"
    for request in (
        ("PUT", "/queues/q", {"exclusive": True}),
        ("DELETE", "/queues/q"),
        ("DELETE", "/queues/q/messages"),
        ("POST", "/bindings", binding),
        ("DELETE", "/bindings/src=amq.topic;dstq=q;key=;args="),
    ):
        status, text = other(*request)
        assert (status, text[: len(locked)]) == (400, locked)
    assert client("DELETE", "/queues/q")[0] == 200


_NOT_EMPTY = ("PUT", "/queues/q", {})
_BINDING = {"source": "amq.topic", "destination_queue": "q", "binding_key": "k", "arguments": {}}


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "text"),
    [
        ("PUT", "/queues/q", {"durable": False}, 409,
         "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'"),
        ("PUT", "/queues/q", {"arguments": {"x-queue-type": "quorum"}}, 409,
         "inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'quorum' but current is 'classic'"),
        ("PUT", "/queues/q", {"foo": "bar"}, 400, 'bad queue property {{utf8,<<"foo">>},{utf8,<<"bar">>}}'),
        ("PUT", "/queues/q", {"durable": UInt32(5)}, 400, 'bad queue property {{utf8,<<"durable">>},{uint,5}}'),
        ("PUT", "/queues/q", {"durable": {}}, 400, 'bad queue property {{utf8,<<"durable">>},{map,[]}}'),
        ("PUT", "/queues/q", {"arguments": "x"}, 400, 'bad queue property {{utf8,<<"arguments">>},{utf8,<<"x">>}}'),
        ("PUT", "/queues/q", {"arguments": {UInt32(1): "x"}}, 400, 'unsupported argument {{uint,1},{utf8,<<"x">>}}'),
        ("PUT", "/queues/", {}, 400, "declare queue with empty name not allowed"),
        ("PUT", "/queues/a%0Ab", {}, 400, "Bad name 'a\nb': line feed and carriage return characters not allowed"),
        ("PUT", "/queues/amq.x", {}, 403, "queue 'amq.x' in vhost '/' starts with reserved prefix 'amq.'"),
        ("PUT", "/queues/n", {"arguments": {"x-dead-letter-exchange": Int32(5)}}, 400,
         "invalid type 'signedint' for arg 'x-dead-letter-exchange'"),
        ("PUT", "/queues/n", {"arguments": {"x-max-length": "a"}}, 409,
         "invalid arg 'x-max-length' for queue 'n' in vhost '/': \"expected integer, got longstr\""),
        ("PUT", "/queues/n", {"arguments": {"x-queue-type": "nope"}}, 409,
         "invalid arg 'x-queue-type' for queue 'n' in vhost '/': \"unsupported queue type 'nope'\""),
        ("PUT", "/queues/n", {"durable": False, "arguments": {"x-queue-type": "quorum"}}, 400,
         "invalid property 'non-durable' for queue 'n' in vhost '/'"),
        ("PUT", "/queues/%zz", {}, 400,
         "failed to normalize URI '/queues/%zz': invalid_percent_encoding <<\"%zz\">>"),
        ("PUT", "/queues/%FF", {}, 400, "failed to normalize URI '/queues/%FF': invalid_utf8"),
        ("GET", "/bindings?src=%FF&dstq=q&key=", None, 400,
         "failed to normalize URI '/bindings?src=%FF&dstq=q&key=': invalid_utf8"),
        ("GET", "/bindings?src=none&dstq=q&key=", None, 200, []),
        ("PUT", "/exchanges/x", {"type": "nope"}, 400, "unknown exchange type 'nope'"),
        ("PUT", "/exchanges/", {"type": "direct"}, 403, "operation not permitted on the default exchange"),
        ("PUT", "/exchanges/x", {"arguments": {"alternate-exchange": Int32(5)}}, 400,
         "invalid type 'signedint' for arg 'alternate-exchange'"),
        ("PUT", "/exchanges/amq.foo", {"type": "topic"}, 403,
         "exchange 'amq.foo' in vhost '/' starts with reserved prefix 'amq.'"),
        ("PUT", "/exchanges/amq.topic", {"type": "topic"}, 204, None),
        ("PUT", "/exchanges/amq.topic", {"type": "direct"}, 409,
         "inequivalent arg 'type' for exchange 'amq.topic' in vhost '/': received 'direct' but current is 'topic'"),
        ("PUT", "/exchanges/x%0D", {}, 400, "Bad name 'x\r': line feed and carriage return characters not allowed"),
        ("PUT", "/exchanges/x", {"what": Int32(5)}, 400, 'bad exchange property {{utf8,<<"what">>},{int,5}}'),
        ("DELETE", "/exchanges/", None, 403, "operation not permitted on the default exchange"),
        ("DELETE", "/exchanges/amq.topic", None, 403,
         "exchange 'amq.topic' in vhost '/' starts with reserved prefix 'amq.'"),
        ("DELETE", "/exchanges/none", None, 204, None),
        ("DELETE", "/bindings/foo", None, 400, "bad binding path segment 'foo'"),
        ("DELETE", "/bindings/src=amq.topic;dstq=none;key=k;args=", None, 204, None),
        ("GET", "/bindings?src=amq.topic&key=k", None, 400,
         'missing \'dste\' or \'dstq\' in query: #{<<"key">> => <<"k">>,<<"src">> => <<"amq.topic">>}'),
        ("PUT", "/auth/tokens", b"token", 204, None),
        ("GET", "/queues/q?x=y", None, 200, _QUEUE),
    ],
)  # fmt: skip
def test_management_requests_over_amqp_1_0_get_rabbitmqs_status_and_text(
    client: _Client, method: str, target: str, body: Any10, status: int, text: Any10
) -> None:
    """Over AMQP 1.0, the embedded broker answers management requests with the same status and text as RabbitMQ 4.3.6:
    for example, with status 409 if a declaration differs from the existing queue, and with 403 if a new queue's name
    begins with `amq.`.
    """
    client(*_NOT_EMPTY)
    assert client(method, target, body) == (status, text)


@pytest.mark.parametrize(
    ("method", "target", "body", "wrong"),
    [
        ("PUT", f"/queues/{'x' * 256}", {}, "queue name is longer than 255 bytes"),
        ("PUT", f"/queues/{'%C3%A9' * 128}", {}, "queue name is longer than 255 bytes"),
        ("PUT", "/queues/\udcff", {}, "queue name is not UTF-8"),
        ("PUT", f"/exchanges/{'x' * 256}", {}, "exchange name is longer than 255 bytes"),
        ("PUT", "/exchanges/\udcff", {}, "exchange name is not UTF-8"),
        ("POST", "/bindings", {"source": "amq.topic", "destination_queue": "q", "binding_key": "x" * 256,
                               "arguments": {}}, "binding key is longer than 255 bytes"),
        ("POST", "/bindings", {"source": "amq.topic", "destination_queue": "q", "binding_key": "\udcff",
                               "arguments": {}}, "binding key is not UTF-8"),
    ],
)  # fmt: skip
def test_names_that_are_too_long_or_not_utf_8_are_refused_over_amqp_1_0(
    client: _Client, method: str, target: str, body: Any10, wrong: str
) -> None:
    """If a name or binding key in a management request over AMQP 1.0 is longer than 255 bytes or not UTF-8, the
    broker answers with status 400, and adds no queue, exchange or binding.
    """
    client("PUT", "/queues/q", {})
    before = {*client.vhost.queues}, {*client.vhost.exchanges}, len(list(client.vhost.bindings()))
    assert client(method, target, body) == (400, wrong)
    assert before == ({*client.vhost.queues}, {*client.vhost.exchanges}, len(list(client.vhost.bindings())))


def test_a_queue_declared_over_amqp_1_0_can_have_a_name_of_255_bytes_or_with_a_nul(client: _Client) -> None:
    """Over AMQP 1.0, a client can declare a queue whose name has 255 bytes, and a queue whose name contains a NUL
    character.
    """
    for name in ("x" * 255, "a%00b"):
        assert client("PUT", f"/queues/{name}", {})[0] == 201


def test_a_stream_cannot_be_purged_over_amqp_1_0(client: _Client) -> None:
    """Over AMQP 1.0, a request to purge a stream returns status 400 with RabbitMQ's error text."""
    client("PUT", "/queues/s", {"arguments": {"x-queue-type": "stream"}})
    assert client("DELETE", "/queues/s/messages") == (400, "purge not supported by queue 's' in vhost '/'")


def test_a_queue_beyond_the_limit_of_a_virtual_host_is_refused_over_amqp_1_0(client: _Client) -> None:
    """Over AMQP 1.0, a request to declare a queue in a virtual host whose limit max-queues is 0 returns status 403."""
    client.broker.limit_vhost(client.vhost, {"max-queues": 0})
    assert client("PUT", "/queues/q", {}) == (
        403, "cannot declare queue 'q': queue limit in vhost '/' (0) is reached",
    )  # fmt: skip


def test_bindings_are_added_listed_and_removed_over_amqp_1_0(client: _Client) -> None:
    """Over AMQP 1.0, clients can add and list bindings to queues and to exchanges. Each listed binding has a location,
    and a DELETE request for this location removes only this binding. Clients can also declare and delete an exchange.
    """
    client("PUT", "/queues/q", {})
    assert client("PUT", "/exchanges/x%2F", {"type": "headers"}) == (204, None)
    binding = {"source": "x/", "destination_queue": "q", "binding_key": "k y", "arguments": {}}
    with_arguments = {**binding, "arguments": {"x-match": "any", "n": Int32(1)}}
    to_exchange = {"source": "x/", "destination_exchange": "amq.topic", "binding_key": "", "arguments": {}}
    for each in (binding, with_arguments, to_exchange, binding):
        assert client("POST", "/bindings", each) == (204, None)
    status, listed = client("GET", "/bindings?src=x%2F&dstq=q&key=k%20y")
    assert status == 200
    assert [{name: each[name] for name in each if name != "location"} for each in listed] == [binding, with_arguments]
    assert listed[0]["location"] == "/bindings/src=x%2F;dstq=q;key=k%20y;args="
    assert client("GET", "/bindings?src=x%2F&dste=amq.topic&key=")[1][0]["destination_exchange"] == "amq.topic"
    assert client("DELETE", listed[1]["location"]) == (204, None)
    assert client("GET", "/bindings?src=x%2F&dstq=q&key=k%20y") == (200, listed[:1])
    assert client("DELETE", listed[0]["location"]) == (204, None)
    assert client("DELETE", "/bindings/src=x%2F;dste=amq.topic;key=;args=") == (204, None)
    assert client("GET", "/bindings?src=x%2F&dste=amq.topic&key=") == (200, [])
    assert client("DELETE", "/exchanges/x%2F") == (204, None)
    assert "x/" not in client.vhost.exchanges
    assert client("GET", "/bindings?src=x/&dstq=q&key=k+y") == (200, [])


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"source": "none"}, 400, "no exchange 'none' in vhost '/'"),
        ({"destination_queue": "none"}, 400, "no queue 'none' in vhost '/'"),
        ({"source": ""}, 403, "operation not permitted on the default exchange"),
        ({"destination_queue": ""}, 400, "no queue '' in vhost '/'"),
        ({"destination_queue": "a\n"}, 400,
         "Bad name 'a\n': line feed and carriage return characters not allowed"),
        ({"arguments": "x"}, 400, 'bad binding field {{utf8,<<"arguments">>},{utf8,<<"x">>}}'),
        ({"foo": Int32(1)}, 400, 'bad binding field {{utf8,<<"foo">>},{int,1}}'),
    ],
)  # fmt: skip
def test_an_invalid_binding_is_refused_over_amqp_1_0(client: _Client, change: Any10, status: int, text: str) -> None:
    """Over AMQP 1.0, the broker answers a request for an invalid binding with RabbitMQ's status and text. A binding
    is invalid if its queue or exchange does not exist, or if its source is the default exchange. A request is also
    refused if it has an unknown field, or a field with a value of the wrong type.
    """
    client(*_NOT_EMPTY)
    assert client("POST", "/bindings", _BINDING | change) == (status, text)


def test_the_default_exchange_cannot_be_the_destination_of_a_binding_over_amqp_1_0(client: _Client) -> None:
    """Over AMQP 1.0, a request for a binding from another exchange to the default exchange returns status 403."""
    binding = {"source": "amq.topic", "destination_exchange": "", "binding_key": "k", "arguments": {}}
    assert client("POST", "/bindings", binding) == (403, "operation not permitted on the default exchange")


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (request_of("GET", "/nothing"), "GET /nothing"),
        (request_of("POST", "/queues/q", {}), "POST /queues/q"),
        (request_of("PUT", "/queues/q"), "PUT /queues/q"),
        (request_of("PUT", "queues/q", {}), "PUT queues/q"),
        (request_of("GET", "/queues/q", {}), "GET /queues/q"),
        (request_of("PUT", "/queues/q/x", {}), "PUT /queues/q/x"),
        (request_of("PUT", "/auth/tokens", "text"), "PUT /auth/tokens"),
        (request_of("GET", ""), "GET "),
        (request_of(None, "/queues/q"), _NO_REQUEST),
        (request_of("GET", None), _NO_REQUEST),
        (request_of("GET", "/queues/q", reply_to="me"), _NO_REQUEST),
        (Amqp10Message(properties=BareProperties(None, None, "/queues/q", "PUT", "$me")).encode(), "PUT /queues/q"),
        (request_of("GET", "/bindings?src=x"), "bindings are listed by src, dstq or dste, and key"),
        *[
            (request_of("POST", "/bindings", {name: each for name, each in _BINDING.items() if name != missing}),
             "a binding needs a source, a destination, a key and arguments")
            for missing in _BINDING
        ],
    ],
    ids=lambda each: each if isinstance(each, str) else "request",
)  # fmt: skip
def test_unknown_management_requests_over_amqp_1_0_end_the_session(
    loop: asyncio.AbstractEventLoop, request_: bytes, what: str
) -> None:
    """If the broker does not recognize an AMQP 1.0 management request, for example because the path or the method is
    unknown or missing, or because the property reply-to is not `$me`, the broker ends the session with
    amqp:internal-error.
    """
    error = ended(loop, loop.run_until_complete(_client()).broker, request_)
    assert error == ("amqp:internal-error", f"the management node does not know this request: {what}")


@pytest.mark.parametrize(
    ("allowed", "request_", "missing"),
    [
        (Permissions("^$", ".*", ".*"), ("PUT", "/queues/n", {}), "configure access to queue 'n'"),
        (Permissions(".*", "^$", ".*"), ("PUT", "/queues/n", {"arguments": {"x-dead-letter-exchange": "d"}}),
         "write access to exchange 'd'"),
        (Permissions(".*", ".*", "^$"), ("PUT", "/exchanges/x", {"arguments": {"alternate-exchange": "d"}}),
         "read access to exchange 'x'"),
        (Permissions(".*", ".*", "^$"), ("DELETE", "/queues/q/messages"), "read access to queue 'q'"),
        (Permissions("^$", "^$", "^$"), ("GET", "/queues/q"), "configure access to queue 'q'"),
        (Permissions("^$", ".*", ".*"), ("DELETE", "/queues/q"), "configure access to queue 'q'"),
        (Permissions("^$", ".*", ".*"), ("PUT", "/exchanges/x", {}), "configure access to exchange 'x'"),
        (Permissions("^$", ".*", ".*"), ("DELETE", "/exchanges/x"), "configure access to exchange 'x'"),
        (Permissions(".*", "^$", ".*"), ("POST", "/bindings", _BINDING), "write access to queue 'q'"),
        (Permissions(".*", "^$", ".*"), ("DELETE", "/bindings/src=amq.topic;dste=amq.direct;key=k;args="),
         "write access to exchange 'amq.direct'"),
        (Permissions(".*", "^$", ".*"), ("GET", "/bindings?src=amq.topic&dstq=q&key=k"), "write access to queue 'q'"),
        (Permissions(".*", ".*", "^$"), ("DELETE", "/bindings/src=amq.topic;dstq=q;key=k;args="),
         "read access to exchange 'amq.topic'"),
    ],
)  # fmt: skip
def test_a_missing_permission_for_an_amqp_1_0_management_request_ends_the_session(
    loop: asyncio.AbstractEventLoop, client: _Client, allowed: Permissions, request_: tuple[Any10, ...], missing: str
) -> None:
    """If a user lacks a permission that an AMQP 1.0 management request needs, the broker ends the session with
    unauthorized-access. The error names the permission and the queue or exchange.
    """
    client(*_NOT_EMPTY)
    client.broker.set_permissions("guest", "/", allowed)
    error = ended(loop, client.broker, request_of(*request_))
    assert error == ("amqp:unauthorized-access", f"{missing} in vhost '/' refused for user 'guest'")


@pytest.mark.parametrize("request_", [
    ("POST", "/bindings", _BINDING),
    ("GET", "/bindings?src=amq.topic&dstq=q&key=k"),
    ("DELETE", "/bindings/src=amq.topic;dstq=q;key=k;args="),
])  # fmt: skip
def test_topic_permissions_apply_to_bindings_over_amqp_1_0(
    loop: asyncio.AbstractEventLoop, client: _Client, request_: tuple[Any10, ...]
) -> None:
    """If a user sends an AMQP 1.0 request to add, list or delete a binding with a key that the user's topic
    permissions do not allow, the broker ends the session with unauthorized-access. The error names the exchange and
    the key.
    """
    client(*_NOT_EMPTY)
    client.broker.users["guest"].topic_permissions["/", "amq.topic"] = TopicPermissions(read="^other$")
    condition, text = ended(loop, client.broker, request_of(*request_)) or ("", "")
    assert condition == "amqp:unauthorized-access"
    assert str(text).startswith("read access to topic 'k' in exchange 'amq.topic' ")


def test_declaring_an_existing_queue_or_exchange_needs_only_configure_permission_over_amqp_1_0(client: _Client) -> None:
    """If a queue or an exchange already exists, a user needs only configure permission to declare it again over AMQP
    1.0, even if the declaration names a dead-letter or alternate exchange.
    """
    requests = [
        ("PUT", "/queues/n", {"arguments": {"x-dead-letter-exchange": "d"}}),
        ("PUT", "/exchanges/x", {"arguments": {"alternate-exchange": "d"}}),
    ]
    assert [client(*each)[0] for each in requests] == [201, 204]
    client.broker.set_permissions("guest", "/", Permissions("^[nx]$", "^$", "^$"))
    assert [client(*each)[0] for each in requests] == [200, 204]


@pytest.mark.parametrize("allowed", [("^q$", "^$", "^$"), ("^$", "^q$", "^$"), ("^$", "^$", "^q$")])
def test_a_user_with_any_permission_for_a_queue_can_get_its_description(
    client: _Client, allowed: tuple[str, str, str]
) -> None:
    """A user with only the configure permission, only the write permission or only the read permission for a queue
    can get the queue's description over AMQP 1.0.
    """
    client(*_NOT_EMPTY)
    client.broker.set_permissions("guest", "/", Permissions(*allowed))
    assert client("GET", "/queues/q")[0] == 200


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_purge_over_amqp_1_0_waits_for_messages_that_are_being_requeued(client: _Client, withdrawn: bool) -> None:
    """A request to purge a queue over AMQP 1.0 waits until messages that are being requeued are back in the queue, so
    that these are purged, too. If the user loses read permission for the queue while the request waits, the broker
    refuses the request, and the queue keeps its messages.
    """
    client(*_NOT_EMPTY)
    queue = client.vhost.queues["q"]
    queue.work_soon = lambda _: None  # the broker is busy
    fill(queue, *[b"x"] * 50)
    queue.requeue([each for each in (queue.get(no_ack=False) for _ in range(50)) if each is not None])
    steps = client.steps("DELETE", "/queues/q/messages")
    assert next(steps) is None
    if withdrawn:
        client.broker.set_permissions("guest", "/", Permissions(".*", ".*", "^$"))
        with pytest.raises(ChannelException) as refused:
            next(steps)
        assert refused.value.what == "read access to queue 'q' in vhost '/' refused for user 'guest'"
        assert len(queue) == 50
    else:
        *_, response = steps
        assert sections(Amqp10Message.decode(response or b"").body)[0].value == {"message_count": 50}
        assert len(queue) == 0


def test_with_like_4_0_a_user_without_permissions_can_get_a_queues_description(loop: asyncio.AbstractEventLoop) -> None:
    """With `broker up --like 4.0`, a user without any permission can get a queue's description over AMQP 1.0, as in
    RabbitMQ 4.0.
    """
    client = loop.run_until_complete(_client(Like.V4_0))
    client(*_NOT_EMPTY)
    client.broker.set_permissions("guest", "/", Permissions("^$", "^$", "^$"))
    assert client("GET", "/queues/q")[0] == 200
