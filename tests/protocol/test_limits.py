"""Limits of virtual hosts and users, runtime parameters and global parameters."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika.exceptions import AMQPError

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker
from tests.protocol.conftest import Api
from tests.protocol.raw_stream import CREATE_SUPER_STREAM, OPEN, Opener, RawStream, string, strings, table

Connect = Callable[..., pika.BlockingConnection]
#: Response codes of the stream protocol.
OK, EXISTS, VHOST_ACCESS_FAILURE, PRECONDITION_FAILED = 1, 5, 12, 17


def error_of(action: Callable[[], object]) -> str:
    """Return the text of the broker's error; retry, because RabbitMQ counts connections with a delay."""
    deadline = time.monotonic() + 60
    while True:
        try:
            action()
        except AMQPError as error:
            return str(error)
        assert time.monotonic() < deadline, "there was no limit"


@pytest.fixture
def ann(api: Api, vhost: str, amqp_url: str, ann: str) -> str:
    """The URL with which a new user connects to the test's virtual host."""
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": ".*", "write": ".*", "read": ".*"})
    return amqp_url.replace("guest:guest", f"{ann}:secret")


def test_limits_of_a_virtual_host_take_effect_immediately(api: Api, vhost: str, connect: Connect) -> None:
    """The limits max-connections and max-queues of a virtual host apply from the moment they are set until they are
    deleted.
    """
    for name in ("max-connections", "max-queues"):
        assert api("PUT", f"vhost-limits/{vhost}/{name}", {"value": 1})[0] in (201, 204)
    limits = {"max-connections": 1, "max-queues": 1}
    assert api("GET", f"vhost-limits/{vhost}")[1] == [{"vhost": vhost, "value": limits}]
    assert {"vhost": vhost, "value": limits} in api("GET", "vhost-limits")[1]
    channel = connect().channel()
    assert "connection limit (1) is reached" in error_of(connect)
    for name in ("a", "a"):
        channel.queue_declare(name, durable=True)
    status, answer = api("PUT", f"queues/{vhost}/b", {"durable": True})
    assert (status, "queue limit in vhost" in answer["reason"]) == (400, True)
    assert "PRECONDITION_FAILED - cannot declare queue 'b'" in error_of(lambda: channel.queue_declare("b"))
    for name in ("max-connections", "max-queues"):
        assert api("DELETE", f"vhost-limits/{vhost}/{name}")[0] == 204
    assert api("GET", f"vhost-limits/{vhost}")[1] == []
    connect().channel().queue_declare("b", durable=True)


def test_limits_of_a_user_apply_to_connections_and_channels(api: Api, ann: str, connect: Connect) -> None:
    """If a user has the limits max-connections 1 and max-channels 2, the broker refuses the user's second connection
    and third channel.
    """
    name = urlsplit(ann).username
    api("PUT", f"user-limits/{name}/max-connections", {"value": 1})
    api("PUT", f"user-limits/{name}/max-channels", {"value": 2})
    limits = {"max-connections": 1, "max-channels": 2}
    assert api("GET", f"user-limits/{name}")[1] == [{"user": name, "value": limits}]
    assert api("GET", f"users/{name}")[1]["limits"] == limits
    api("PUT", f"users/{name}", {"password": "secret", "tags": ""})
    assert api("GET", f"users/{name}")[1]["limits"] == limits, "kept with a new password"
    connection = connect(ann)
    assert "user connection limit (1) is reached" in error_of(lambda: connect(ann))
    assert "NOT_ALLOWED" in error_of(connection.channel)
    assert api("PUT", "user-limits/nobody/max-connections", {"value": 1})[0] == 400


def test_max_queues_applies_to_the_stream_protocol_from_rabbitmq_3_13_on(
    broker: TestBroker, api: Api, vhost: str, client: RawStream
) -> None:
    """From RabbitMQ 3.13 on, if a virtual host has reached its limit max-queues, the broker refuses to create another
    stream over the stream protocol. If a client creates a stream that already exists, the broker still answers with
    already-exists.
    """
    api("PUT", f"vhost-limits/{vhost}/max-queues", {"value": 1})
    assert [client.create("a"), client.create("a")] == [OK, EXISTS]
    is_limited = broker.differs_since("3.13", "max-queues applies to the stream protocol")
    assert client.create("b") == (PRECONDITION_FAILED if is_limited else OK)


@pytest.mark.parametrize("of", ["vhost", "user"])
def test_from_rabbitmq_4_2_7_on_max_connections_applies_to_the_stream_protocol(
    broker: TestBroker, api: Api, vhost: str, ann: str, connect: Connect, connect_stream: Opener, of: str
) -> None:
    """From RabbitMQ 4.2.7 on, if a virtual host or a user has reached its limit max-connections, a client of the stream
    protocol cannot open the virtual host: the broker answers with vhost-access-failure, and closes the connection.
    """
    name = str(urlsplit(ann).username)
    api("PUT", f"{of}-limits/{vhost if of == 'vhost' else name}/max-connections", {"value": 1})
    connect(ann)
    assert "connection limit (1) is reached" in error_of(lambda: connect(ann))
    stream = connect_stream()
    stream.log_in(name, "secret")
    is_limited = broker.differs_since("4.2", "max-connections applies to the stream protocol")
    assert stream.request(OPEN, string(vhost)).code == (VHOST_ACCESS_FAILURE if is_limited else OK)
    assert not is_limited or stream.at_end()


@pytest.fixture
def streams(request: pytest.FixtureRequest) -> Iterator[tuple[EmbeddedBroker, RawStream]]:
    """An embedded broker that behaves like a version, and a client of the stream protocol that has logged in."""
    with EmbeddedBroker(like=request.param, management_port=0, stream_port=0) as broker:
        client = RawStream("127.0.0.1", broker.stream_port or 0)
        client.log_in()
        yield broker, client
        client.close()


@pytest.mark.parametrize("streams", ["4.0", "4.3"], indirect=True)
def test_neither_streams_nor_super_streams_exceed_max_queues(
    streams: tuple[EmbeddedBroker, RawStream], api_of: Callable[[EmbeddedBroker], Api]
) -> None:
    """An embedded broker that behaves like RabbitMQ 4.0 or later refuses to create a stream or a super stream if the
    virtual host would then have more queues than max-queues allows. If it refuses a super stream, it creates neither
    the super stream's exchange nor any of the partitions.
    """
    broker, client = streams
    assert client.request(OPEN, string("/")).code == OK
    api = api_of(broker)
    api("PUT", "vhost-limits/%2f/max-queues", {"value": 2})
    assert client.create("a") == OK
    orders = string("orders") + strings("o-0", "o-1") + strings("eu", "us") + table({})
    assert client.request(CREATE_SUPER_STREAM, orders).code == PRECONDITION_FAILED
    assert [each["name"] for each in api("GET", "queues")[1]] == ["a"]
    assert api("GET", "exchanges/%2f/orders")[0] == 404
    orders = string("orders") + strings("o-0") + strings("eu") + table({})
    assert client.request(CREATE_SUPER_STREAM, orders).code == OK
    assert [client.create(name) for name in ("a", "b")] == [EXISTS, PRECONDITION_FAILED]


@pytest.mark.parametrize("streams", ["4.2", "4.3"], indirect=True)
@pytest.mark.parametrize("limited", ["vhost-limits/%2f", "user-limits/guest"])
def test_a_stream_client_beyond_max_connections_is_refused(
    streams: tuple[EmbeddedBroker, RawStream], api_of: Callable[[EmbeddedBroker], Api], limited: str
) -> None:
    """In an embedded broker that behaves like RabbitMQ 4.2 or later, the connections of stream clients count towards
    the limit max-connections of the virtual host and of the user. If either limit is 1, the broker refuses a second
    stream client.
    """
    broker, client = streams
    api_of(broker)("PUT", f"{limited}/max-connections", {"value": 1})
    assert client.request(OPEN, string("/")).code == OK
    with contextlib.closing(RawStream("127.0.0.1", broker.stream_port or 0)) as second:
        second.log_in()
        assert second.request(OPEN, string("/")).code == VHOST_ACCESS_FAILURE
        assert second.at_end()


@pytest.mark.parametrize(
    ("of", "wrong"),
    [
        ("vhost", {"max-connections": "1"}),
        ("vhost", {"max-queues": 1.5}),
        ("vhost", {"max-channels": 1}),
        ("user", {"max-queues": 1}),
        ("user", {"max-channels": None}),
    ],
    ids=str,
)
def test_an_invalid_limit_is_refused(api: Api, vhost: str, ann: str, of: str, wrong: dict[str, Any]) -> None:
    """If a limit of a virtual host or user has an unknown name, or a value that is not an integer, the management API
    responds with status 400, and does not store the limit.
    """
    name = vhost if of == "vhost" else urlsplit(ann).username
    ((limit, value),) = wrong.items()
    assert api("PUT", f"{of}-limits/{name}/{limit}", {"value": value})[0] == 400
    assert api("PUT", f"{of}-limits/{name}/max-connections", {})[0] == 400
    assert api("GET", f"{of}-limits/{name}") == (200, [])


def test_the_limits_of_a_virtual_host_can_be_set_as_a_runtime_parameter(api: Api, vhost: str) -> None:
    """The limits of a virtual host can be set, read and deleted over HTTP as a runtime parameter. A request to set a
    parameter of an unknown component returns 400.
    """
    value = {"max-queues": 7}
    path = f"parameters/vhost-limits/{vhost}"
    assert api("PUT", f"{path}/limits", {"value": value})[0] == 201
    assert api("PUT", f"{path}/limits", {"value": value})[0] == 204
    view = {"component": "vhost-limits", "vhost": vhost, "name": "limits", "value": value}
    assert api("GET", f"{path}/limits") == (200, view)
    assert api("GET", path) == (200, [view])
    assert view in api("GET", "parameters/vhost-limits")[1]
    assert api("GET", f"vhost-limits/{vhost}")[1] == [{"vhost": vhost, "value": value}]
    (parameter,) = api("GET", f"definitions/{vhost}")[1]["parameters"]
    assert {**parameter, "vhost": vhost} == view  # from 4.0 on, without it
    assert api("DELETE", f"{path}/limits")[0] == 204
    assert api("DELETE", f"{path}/limits")[0] == 404
    assert api("GET", f"vhost-limits/{vhost}")[1] == []
    for component in ("none", "policy"):
        assert api("PUT", f"parameters/{component}/{vhost}/x", {"value": {"pattern": "a"}})[0] == 400
    assert api("GET", "parameters/none")[1] == []
    assert api("GET", "parameters/none/none")[0] == 404


def test_a_global_parameter_can_have_any_json_value(api: Api) -> None:
    """A global parameter can have any JSON value. It can be set, changed, listed and deleted over HTTP."""
    path = f"global-parameters/mqtool-{uuid.uuid4().hex[:8]}"
    assert api("PUT", path, {"value": {"a": [1, None]}})[0] == 201
    assert api("PUT", path, {"value": 5})[0] == 204
    assert api("GET", path) == (200, {"name": path.partition("/")[2], "value": 5})
    assert api("GET", path)[1] in api("GET", "global-parameters")[1]
    assert api("PUT", path, {})[0] == 400
    assert api("DELETE", path)[0] == 204
    assert api("GET", path)[0] == 404
    assert api("GET", "cluster-name")[1]["name"]


def test_only_an_administrator_can_close_another_users_connections(
    api: Api, vhost: str, ann: str, connect: Connect
) -> None:
    """A user without the tag `administrator` cannot close another user's connections over HTTP. An administrator can
    close them.
    """
    bob = f"bob-{uuid.uuid4().hex[:8]}"
    api("PUT", f"users/{bob}", {"password": "secret", "tags": "management"})
    name, connection = urlsplit(ann).username, connect(ann)
    path = f"connections/username/{name}"
    deadline = time.monotonic() + 60
    while not (found := api("GET", path)[1]):
        assert time.monotonic() < deadline
    assert [each["user"] for each in found] == [name]
    assert api("GET", "connections/username/nobody") == (200, [])
    assert api("DELETE", path, user=bob, password="secret")[0] >= 400  # 401, or RabbitMQ 3.10 crashes
    connection.process_data_events(0)
    assert [each["user"] for each in api("GET", path)[1]] == [name]
    assert api("DELETE", path)[0] == 204
    with pytest.raises(AMQPError):
        connection.process_data_events(60)
    api("DELETE", f"users/{bob}")


def test_limits_and_global_parameters_survive_a_restart_and_are_exported(
    tmp_path: Path, api_of: Callable[[EmbeddedBroker], Api]
) -> None:
    """Limits and global parameters survive a restart. They are also exported with the definitions, and a broker that
    imports these definitions has the same limits and global parameters.
    """
    with EmbeddedBroker(data_dir=tmp_path / "a", management_port=0) as broker:
        api = api_of(broker)
        api("PUT", "vhost-limits/%2f/max-queues", {"value": 3})
        api("PUT", "user-limits/guest/max-channels", {"value": 9})
        api("PUT", "global-parameters/team", {"value": "orders"})
        definitions = api("GET", "definitions")[1]
    again = EmbeddedBroker(data_dir=tmp_path / "a", management_port=0)
    with again, EmbeddedBroker(management_port=0) as other:
        api_of(other)("POST", "definitions", definitions)
        for api in (api_of(again), api_of(other)):
            assert api("GET", "vhost-limits")[1] == [{"vhost": "/", "value": {"max-queues": 3}}]
            assert api("GET", "user-limits")[1] == [{"user": "guest", "value": {"max-channels": 9}}]
            assert api("GET", "global-parameters/team")[1]["value"] == "orders"
