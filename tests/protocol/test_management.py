"""The management API of the embedded broker has the same paths, status codes and field names as RabbitMQ's."""

import base64
import json
import os
import re
import time
import urllib.request
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest
from pamqp import commands
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import wait_until
from tests.protocol.conftest import Api, Take
from tests.protocol.raw_client import RawClient
from tests.protocol.raw_stream import RawStream

pytestmark = pytest.mark.own_vhost("statistics of what an earlier test has deleted may linger")


def eventually(api: Api, path: str, **wanted: Any) -> dict[str, Any]:
    """Wait until a path has these values, since RabbitMQ's statistics are some seconds late; return what is there."""
    deadline = time.monotonic() + 60
    while True:
        status, view = api("GET", path)
        if status == 200 and all(view.get(name) == value for name, value in wanted.items()):
            return dict(view)
        assert time.monotonic() < deadline, (status, view)


def test_a_subscription_over_the_stream_protocol_is_listed_as_a_consumer(
    api: Api, vhost: str, client: RawStream, stream: str
) -> None:
    """The management API lists a subscription over the stream protocol as a consumer of the stream, with the
    subscription's properties, such as its name.
    """
    client.subscribe(7, stream, name="me")
    where = f"queues/{vhost}/{stream}"

    def has_statistics() -> bool:
        found = api("GET", where)[1]
        consumers = found.get("consumer_details")
        return bool(found.get("readers") and consumers and "user" in consumers[0]["channel_details"])

    wait_until(has_statistics, "the statistics")
    view = eventually(api, where, consumers=1)
    [consumer] = view["consumer_details"]
    assert consumer.pop("channel_details")["user"] == "guest"
    wanted = {
        "arguments": {"name": "me"},
        "consumer_tag": "stream.subid-7",
        "queue": {"name": stream, "vhost": vhost},
        "ack_required": False,
        "prefetch_count": 0,
    }
    assert wanted.items() <= consumer.items()
    assert list(view["readers"].values()) == [1], view


def test_declarations_over_http_get_201_204_or_400(api: Api, vhost: str, channel: BlockingChannel) -> None:
    """Over HTTP, declaring a new queue or exchange returns 201, and declaring it again returns 204. Declaring an
    existing queue with other arguments returns 400, and reading a queue that does not exist returns 404.
    """
    queue = {"durable": True, "arguments": {"x-message-ttl": 1000}}
    assert api("PUT", f"queues/{vhost}/q", queue)[0] == 201
    assert api("PUT", f"queues/{vhost}/q", queue)[0] == 204
    status, error = api("PUT", f"queues/{vhost}/q", {"durable": True})
    assert (status, error["error"]) == (400, "bad_request")
    assert "inequivalent arg 'x-message-ttl' for queue 'q'" in error["reason"]
    exchange = {"type": "topic", "durable": True}
    assert api("PUT", f"exchanges/{vhost}/x", exchange)[0] == 201
    assert api("PUT", f"exchanges/{vhost}/x", exchange)[0] == 204
    channel.queue_declare("q", durable=True, arguments={"x-message-ttl": 1000})
    channel.exchange_declare("x", "topic", durable=True)
    assert api("POST", f"bindings/{vhost}/e/x/q/q", {"routing_key": "a.b", "arguments": {"n": 1}})[0] == 201
    assert api("GET", f"queues/{vhost}/none")[0] == 404
    assert api("DELETE", f"queues/{vhost}/q")[0] == 204
    assert api("DELETE", f"exchanges/{vhost}/x")[0] == 204
    assert api("DELETE", f"exchanges/{vhost}/x")[0] == 404


def test_booleans_can_be_sent_as_text(api: Api, vhost: str) -> None:
    """The management API accepts the strings "true" and "false" as booleans, because rabbitmqadmin sends them. If a
    field that must be a boolean has any other value, such as "yes" or 1, the API responds with status 400.
    """
    flags = ("durable", "auto_delete", "internal")
    for name, wanted in (("d", (True, False, False)), ("i", (True, True, True))):
        sent = {flag: str(value).lower() for flag, value in zip(flags, wanted, strict=True)}
        assert api("PUT", f"exchanges/{vhost}/{name}", {"type": "direct", **sent})[0] == 201
        assert api("PUT", f"queues/{vhost}/{name}", sent)[0] == 201
        exchange, queue = (api("GET", f"{kind}/{vhost}/{name}")[1] for kind in ("exchanges", "queues"))
        assert tuple(exchange[flag] for flag in flags) == wanted
        assert tuple(queue[flag] for flag in flags[:2]) == wanted[:2]
    for wrong in ("yes", None, 1):
        assert api("PUT", f"queues/{vhost}/wrong", {"durable": wrong})[0] == 400


def test_a_health_check_for_a_port_or_protocol_without_a_listener_gets_503(api: Api) -> None:
    """If a health check names a port or protocol that has no listener, the management API responds with status 503,
    and lists the ports or protocols that have one.
    """
    assert api("GET", "health/checks/alarms")[0] == 200
    status, answer = api("GET", "health/checks/protocol-listener/amqp091")
    assert (status, answer["status"]) == (200, "ok")
    status, answer = api("GET", "health/checks/protocol-listener/mqtt")
    assert (status, answer["status"], "amqp" in answer["protocols"]) == (503, "failed", True)
    status, answer = api("GET", "health/checks/port-listener/1")
    assert (status, answer["status"], answer["missing"]) == (503, "failed", 1)
    assert api("GET", f"health/checks/port-listener/{answer['ports'][0]}")[0] == 200
    assert api("GET", "health/checks/port-listener/x")[0] == 400
    assert api("GET", "health/checks/none")[0] == 404


def test_missing_policies_and_parameters_get_404_and_reserved_queue_names_are_refused(api: Api, vhost: str) -> None:
    """Over HTTP, reading a missing policy, operator policy or global parameter returns 404. Listing the policies of a
    virtual host that has none returns an empty list. The management API refuses to declare a queue whose name begins
    with `amq.`.
    """
    assert api("GET", f"policies/{vhost}") == (200, [])
    for path in (f"policies/{vhost}/none", f"operator-policies/{vhost}/none", "global-parameters/none"):
        assert api("GET", path)[0] == 404
    assert api("PUT", f"queues/{vhost}/amq.mine", {"durable": True})[0] >= 400


def test_the_management_api_lists_a_clients_connection_name(api: Api, vhost: str, amqp_url: str) -> None:
    """The management API lists a client's connection_name as user_provided_name."""
    settings = pika.URLParameters(amqp_url)
    settings.client_properties = {"connection_name": "orders-1"}
    with pika.BlockingConnection(settings):
        deadline = time.monotonic() + 60
        while [each.get("user_provided_name") for each in api("GET", f"vhosts/{vhost}/connections")[1]] != ["orders-1"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_at_least_once_dead_lettering_keeps_an_unroutable_dead_letter(
    broker: TestBroker, api: Api, vhost: str, channel: BlockingChannel, take: Take
) -> None:
    """If a quorum queue uses at-least-once dead-lettering, it keeps a dead letter that cannot be routed, and counts it
    in messages_dlx.
    """
    strategy = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    arguments = {"x-queue-type": "quorum", "x-dead-letter-exchange": "amq.fanout", **strategy}
    channel.queue_declare("q", durable=True, arguments=arguments)
    channel.basic_publish("", "q", b"dead")
    channel.basic_reject(take.one("q", auto_ack=False)[0].delivery_tag, requeue=False)
    view = eventually(api, f"queues/{vhost}/q", messages_dlx=1, messages=1)
    assert view["messages_ready"] == 0
    assert view["message_bytes_dlx"] >= 4  # from 4.3 on, including the message's overhead
    counted = broker.differs_since("4.3", "a purge removes and counts the dead letters that it holds")
    assert channel.queue_purge("q").method.message_count == counted


MESSAGE = {"properties": {}, "routing_key": "q", "payload": "hello", "payload_encoding": "string"}
GET = {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"}


def test_messages_can_be_published_and_read_over_http(
    api: Api, vhost: str, channel: BlockingChannel, take: Take
) -> None:
    """Messages can be published and read over HTTP, as text or base64, with their properties. When a message is read,
    the request's `ackmode` decides whether it is requeued or removed.
    """
    channel.queue_declare("q", durable=True)
    publish, get = f"exchanges/{vhost}/amq.default/publish", f"queues/{vhost}/q/get"
    properties = {"headers": {"a": 1}, "delivery_mode": 2, "content_type": "text/plain"}
    assert api("POST", publish, {**MESSAGE, "properties": properties}) == (200, {"routed": True})
    assert api("POST", publish, {**MESSAGE, "payload": "/w==", "payload_encoding": "base64"})[1]["routed"]
    assert api("POST", publish, {**MESSAGE, "routing_key": "nowhere"}) == (200, {"routed": False})
    assert api("POST", f"exchanges/{vhost}/none/publish", MESSAGE)[0] in (400, 404)
    first = {
        "exchange": "",
        "routing_key": "q",
        "redelivered": False,
        "message_count": 1,
        "payload": "hello",
        "payload_encoding": "string",
        "payload_bytes": 5,
        "properties": properties,
    }
    assert api("POST", get, GET) == (200, [first])
    again = {**first, "redelivered": True, "payload": "aGVs", "payload_encoding": "base64"}
    both = api("POST", get, {**GET, "count": 5, "encoding": "base64", "truncate": 3})[1]
    assert both[0] == again
    assert (both[1]["payload"], both[1]["properties"]) == ("/w==", [])
    assert [each["payload"] for each in api("POST", get, {**GET, "ackmode": "ack_requeue_false"})[1]] == ["hello"]
    assert take.bodies("q", 1) == [b"\xff"]
    assert api("POST", get, GET) == (200, [])


def test_headers_that_are_published_over_http_are_sorted(
    broker: TestBroker, api: Api, vhost: str, channel: BlockingChannel, take: Take
) -> None:
    """The headers of a message that is published over HTTP are sorted, also in nested tables. Of several headers of the
    same name, RabbitMQ 4 keeps the first, and earlier versions the last.
    """
    channel.queue_declare("q", durable=True)
    headers = b'{"z": 1, "a": {"y": 1, "c": 2, "c": 3}, "M": 2, "z": 3}'
    body = json.dumps({**MESSAGE, "properties": {"headers": "H"}}).encode().replace(b'"H"', headers)
    assert api("POST", f"exchanges/{vhost}/amq.default/publish", body) == (200, {"routed": True})
    first = broker.differs_since("4.0", "the first header counts")
    expected = {"M": 2, "a": {"c": 2 if first else 3, "y": 1}, "z": 1 if first else 3}
    assert json.dumps(take.one("q")[1].headers) == json.dumps(expected)


def test_reading_messages_over_http_counts_as_a_delivery(
    broker: TestBroker, api: Api, channel: BlockingChannel, take: Take
) -> None:
    """A message that is read from a quorum queue over HTTP has the headers that say how often it was delivered. Up to
    RabbitMQ 4.2, both ackmodes that requeue it count towards the delivery limit; from 4.3 on, only a rejection does.
    """
    channel.confirm_delivery()
    channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_publish("", "q", b"x")
    seen: list[dict[str, int]] = []

    def read(mode: str) -> bool:
        got = api("POST", f"queues/{broker.vhost}/q/get", {**GET, "ackmode": mode})[1]
        seen.extend(dict(each["properties"] or {}).get("headers", {}) for each in got)
        return bool(got)

    for mode in ("ack_requeue_true", "reject_requeue_true", "ack_requeue_false"):
        take.until(partial(read, mode))
    if broker.differs_since("4.3", "nacks do not count"):
        assert seen == [{}, {"x-acquired-count": 1}, {"x-acquired-count": 2, "x-delivery-count": 1}]
    else:
        first = {} if broker.differs_since("4.0", "no count of 0") else {"x-delivery-count": 0}
        assert seen == [first, {"x-delivery-count": 1}, {"x-delivery-count": 2}]


@pytest.mark.parametrize(
    "wrong",
    [
        {"payload_encoding": "rot13"},
        {"payload": "***", "payload_encoding": "base64"},
        {"properties": {"delivery_mode": "2"}},
        {"properties": {"expiration": "soon"}},
    ],
    ids=str,
)
def test_publishing_an_invalid_message_over_http_gets_400(
    api: Api, vhost: str, channel: BlockingChannel, wrong: dict[str, Any]
) -> None:
    """If a message with an invalid encoding or property, or without a required field, is published over HTTP, the
    management API responds with status 400.
    """
    channel.queue_declare("q", durable=True)
    assert api("POST", f"exchanges/{vhost}/amq.default/publish", {**MESSAGE, **wrong})[0] == 400
    for missing in MESSAGE:
        body = {name: value for name, value in MESSAGE.items() if name != missing}
        assert api("POST", f"exchanges/{vhost}/amq.default/publish", body)[0] == 400


def test_a_binding_can_be_read_over_http_by_its_properties_key(api: Api, vhost: str, channel: BlockingChannel) -> None:
    """A GET request to the management API with the properties key of a binding returns the binding. If no binding has
    this key, the request returns 404.
    """
    channel.queue_declare("q", durable=True)
    path = f"bindings/{vhost}/e/amq.topic/q/q"
    assert api("POST", path, {"routing_key": "a.b", "arguments": {}})[0] == 201
    assert api("GET", f"{path}/a.b")[1]["routing_key"] == "a.b"
    assert api("GET", f"{path}/none")[0] == 404


def test_bindings_are_listed_and_deleted_over_http(api: Api, vhost: str, channel: BlockingChannel) -> None:
    """The management API's lists of bindings contain all bindings, including those of the default exchange. A DELETE
    request with a binding's properties key removes the binding.
    """
    channel.queue_declare("q")
    channel.exchange_declare("x", "topic")
    channel.queue_bind("q", "x", "a.#")
    channel.exchange_bind("amq.fanout", "x", "b")
    bindings = api("GET", f"bindings/{vhost}")[1]
    keys = ("source", "destination", "destination_type", "routing_key", "properties_key", "arguments", "vhost")
    found = {tuple(str(binding[key]) for key in keys) for binding in bindings}
    assert found == {
        ("", "q", "queue", "q", "q", "{}", vhost),
        ("x", "q", "queue", "a.#", "a.%23", "{}", vhost),
        ("x", "amq.fanout", "exchange", "b", "b", "{}", vhost),
    }
    assert len(api("GET", f"queues/{vhost}/q/bindings")[1]) == 2
    assert len(api("GET", f"exchanges/{vhost}/x/bindings/source")[1]) == 2
    assert api("DELETE", f"bindings/{vhost}/e/x/q/q/{quote('a.%23', safe='')}")[0] == 204
    assert len(api("GET", f"queues/{vhost}/q/bindings")[1]) == 1


def test_a_queue_is_shown_with_its_counts_and_arguments(
    broker: TestBroker, api: Api, vhost: str, channel: BlockingChannel, take: Take
) -> None:
    """The management API shows a queue's type, its arguments, the number of its consumers, and the numbers of its ready
    and unacknowledged messages.
    """
    channel.queue_declare("q", durable=True, arguments={"x-max-priority": 3})
    channel.confirm_delivery()
    for _ in range(3):
        channel.basic_publish("", "q", b"12345", BasicProperties(delivery_mode=2))
    take.one("q", auto_ack=False)
    counts = {"messages": 3, "messages_ready": 2, "messages_unacknowledged": 1, "message_bytes": 15}
    view = eventually(api, f"queues/{vhost}/q", state="running", **counts)
    assert view["name"] == "q"
    assert view["vhost"] == vhost
    assert view["type"] == "classic"
    assert view["state"] == "running"
    assert (view["durable"], view["auto_delete"], view["exclusive"]) == (True, False, False)
    expected = {"x-max-priority": 3}
    if broker.differs_since("4.0", "every queue has a type, if it is declared without one"):
        expected |= {"x-queue-type": "classic"}
    assert view["arguments"] == expected
    assert view["consumers"] == 0


def test_consumers_are_listed_with_queue_and_prefetch(api: Api, vhost: str, channel: BlockingChannel) -> None:
    """The management API lists a consumer with its queue, tag, prefetch and arguments."""
    channel.queue_declare("q")
    channel.basic_qos(prefetch_count=7)
    channel.basic_consume("q", print, consumer_tag="t", arguments={"x-priority": 2})
    deadline = time.monotonic() + 60
    while not (consumers := api("GET", f"consumers/{vhost}")[1]) or not consumers[0]["channel_details"]:
        assert time.monotonic() < deadline
    (consumer,) = consumers
    assert consumer["consumer_tag"] == "t"
    assert consumer["queue"] == {"name": "q", "vhost": vhost}
    assert (consumer["ack_required"], consumer["exclusive"], consumer["prefetch_count"]) == (True, False, 7)
    assert consumer["arguments"] == {"x-priority": 2}
    assert consumer["channel_details"]["user"] == "guest"


@pytest.mark.parametrize("query", ["page=1&page_size=2", "page=2&page_size=2", "page=1&page_size=100&name=q"])
def test_lists_of_the_management_api_can_be_read_in_pages(
    api: Api, vhost: str, channel: BlockingChannel, query: str
) -> None:
    """If a request has the parameters `page` and `page_size`, the management API returns only the requested page of
    the list. The response also contains the total number of items and the number of items on the page.
    """
    for number in range(3):
        channel.queue_declare(f"q{number}")
    status, page = api("GET", f"queues/{vhost}?{query}")
    assert status == 200
    assert page["total_count"] == page["filtered_count"] == 3
    assert page["item_count"] == len(page["items"]) == (3 if "100" in query else 2 if "page=1" in query else 1)


def test_a_new_virtual_host_has_the_predeclared_exchanges(api: Api, vhost: str) -> None:
    """A new virtual host has exactly the exchanges that RabbitMQ predeclares: the default exchange, amq.direct,
    amq.fanout, amq.headers, amq.match, amq.rabbitmq.trace and amq.topic.
    """
    exchanges = {view["name"]: view for view in api("GET", f"exchanges/{vhost}")[1]}
    assert set(exchanges) == {
        "",
        "amq.direct",
        "amq.fanout",
        "amq.headers",
        "amq.match",
        "amq.rabbitmq.trace",
        "amq.topic",
    }
    assert exchanges["amq.match"]["type"] == "headers"
    assert exchanges["amq.rabbitmq.trace"]["internal"] is True


def test_users_can_be_added_and_deleted_over_http(api: Api, vhost: str) -> None:
    """A user can be added over HTTP with a password, tags and permissions, and can be deleted. A request with a wrong
    password returns 401.
    """
    name = f"ann-{uuid.uuid4().hex[:8]}"
    assert api("PUT", f"users/{name}", {"password": "secret", "tags": "monitoring"})[0] == 201
    assert api("PUT", f"users/{name}", {"password": "secret", "tags": "monitoring"})[0] == 204
    view = api("GET", f"users/{name}")[1]
    assert (view["name"], view["tags"]) == (name, ["monitoring"])
    rights = {"configure": "^a", "write": ".*", "read": ""}
    assert api("PUT", f"permissions/{vhost}/{name}", rights)[0] == 201
    assert api("GET", f"permissions/{vhost}/{name}")[1] == {"user": name, "vhost": vhost, **rights}
    assert api("GET", "whoami", user=name, password="secret")[1]["name"] == name
    assert api("GET", "whoami", user=name, password="wrong")[0] == 401
    assert api("DELETE", f"users/{name}")[0] == 204
    assert api("GET", f"users/{name}")[0] == 404


def test_the_management_api_has_the_fields_that_monitoring_tools_use(api: Api) -> None:
    """The management API's responses for the overview, the nodes, the health check of alarms and the feature flags have
    the fields that monitoring tools use, such as rabbitmq_version and fd_used.
    """
    overview = api("GET", "overview")[1]
    assert re.match(r"\d+\.\d+", overview["rabbitmq_version"])
    assert overview["object_totals"].keys() == {"channels", "connections", "consumers", "exchanges", "queues"}
    assert api("GET", "health/checks/alarms")[1]["status"] == "ok"
    wait_until(lambda: "fd_used" in api("GET", "nodes")[1][0], "RabbitMQ has its first statistics")
    (node,) = api("GET", "nodes")[1]
    assert node["running"] is True
    assert 0 < node["fd_used"] < node["fd_total"]
    assert int(node["os_pid"])
    assert "PLAIN" in [each["name"] for each in node["auth_mechanisms"]]
    assert {"quorum_queue", "stream_queue"} <= {each["name"] for each in api("GET", "feature-flags")[1]}


def test_the_memory_of_a_node_is_listed_by_purpose(api: Api) -> None:
    """The management API lists how much memory a node uses for each purpose: in bytes at /api/nodes/NAME/memory, and as
    percentages at /api/nodes/NAME/memory/relative. With memory=true, the response for the node itself also contains the
    bytes for each purpose.
    """
    name = api("GET", "nodes")[1][0]["name"]

    def memory_at(path: str) -> dict[str, Any]:
        found: Any = None

        def is_available() -> bool:
            nonlocal found
            found = api("GET", path)[1]["memory"]
            return bool(found != "not_available")

        # RabbitMQ answers "not_available" if something that it measures, such as a virtual host, is deleted meanwhile.
        wait_until(is_available, f"the memory at {path}")
        return dict(found)

    memory = memory_at(f"nodes/{name}/memory")
    assert memory["total"]["rss"] > 1_000_000
    uses = {"binary", "connection_readers", "connection_other", "queue_procs", "mnesia", "msg_index", "other_proc"}
    assert all(isinstance(memory[use], int) for use in uses)
    shares = memory_at(f"nodes/{name}/memory/relative")
    assert shares["total"] == 100
    assert shares.keys() == memory.keys() - {"strategy"}
    assert all(0 <= share <= 100 for share in shares.values())
    assert memory_at(f"nodes/{name}?memory=true").keys() == memory.keys()
    assert api("GET", "nodes/other@there/memory")[0] == 404


def test_logins_are_counted_by_protocol(api: Api, broker: TestBroker) -> None:
    """The management API counts successful and failed logins for each protocol. A DELETE request resets the counts."""
    name = api("GET", "nodes")[1][0]["name"]

    def counts(protocol: str) -> tuple[int, int, int]:
        found = [each for each in api("GET", f"auth/attempts/{name}")[1] if each["protocol"] == protocol]
        return tuple(sum(each[f"auth_attempts{of}"] for each in found) for of in ("", "_succeeded", "_failed"))

    amqp, http = counts("amqp091"), counts("http")
    with pika.BlockingConnection(pika.URLParameters(broker.url)):
        pass
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(broker.url.replace("guest@", "wrong@")))
    assert api("GET", "whoami", password="wrong")[0] == 401
    later = counts("amqp091")
    # Other tests log in to the same broker.
    assert later[1] > amqp[1]
    assert later[2] > amqp[2]
    assert later[0] == later[1] + later[2]
    assert counts("http")[2] > http[2]
    assert api("GET", f"auth/attempts/{name}/source") == (200, [])
    assert api("DELETE", f"auth/attempts/{name}")[0] == 204
    assert counts("amqp091")[2] < later[2]


def test_reading_a_missing_virtual_host_gets_404_and_declaring_an_existing_one_gets_204(api: Api, vhost: str) -> None:
    """A GET request for a virtual host that does not exist, or for its queues, returns 404. A request that declares a
    virtual host that already exists returns 204.
    """
    assert api("PUT", f"vhosts/{vhost}")[0] == 204
    assert api("GET", f"vhosts/{vhost}")[1]["name"] == vhost
    assert api("GET", "vhosts/none-such")[0] == 404
    assert api("GET", "queues/none-such")[0] == 404


def test_a_virtual_host_can_be_deleted_during_the_handshake_of_a_client(api: Api, amqp_url: str) -> None:
    """A virtual host can be deleted over HTTP while clients are in the middle of the handshake and have not opened a
    virtual host yet. These clients can then open another one.
    """
    with RawClient(amqp_url, opened=False) as begun, RawClient(amqp_url, opened=False) as logged_in:
        for client in (begun, logged_in):
            client.socket.sendall(b"AMQP\x00\x00\x09\x01")
            client.expect(commands.Connection.Start)
        log_in = commands.Connection.StartOk(mechanism="PLAIN", response=begun.login)
        logged_in.send(log_in, 0)
        logged_in.expect(commands.Connection.Tune)
        assert api("PUT", "vhosts/short-lived")[0] == 201
        assert api("DELETE", "vhosts/short-lived")[0] == 204
        begun.send(log_in, 0)
        begun.expect(commands.Connection.Tune)
        for client in (begun, logged_in):
            client.send(commands.Connection.TuneOk(2047, 131_072, 0), 0)
            client.send(commands.Connection.Open(virtual_host=client.vhost), 0)
            client.expect(commands.Connection.OpenOk)


@pytest.fixture
def ann(api: Api, ann: str) -> str:
    """A user with the tag management."""
    api("PUT", f"users/{ann}", {"password": "secret", "tags": "management"})
    return ann


@pytest.mark.differs_since("4.3", "a virtual host that a user may not see is not found, rather than refused")
def test_the_management_api_checks_tags_and_permissions(api: Api, vhost: str, ann: str) -> None:
    """Over HTTP, a user with the tag `management` can declare and delete only what the user's permissions allow. If
    this user requests the list of users, permissions or nodes, the management API responds with status 401.
    """

    def as_ann(method: str, path: str, body: object = None) -> int:
        return int(api(method, path, body, user=ann, password="secret")[0])

    assert as_ann("GET", "whoami") == 200
    assert [as_ann("GET", path) for path in ("users", "permissions", "nodes", f"queues/{vhost}")] == [401] * 4
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": "^ann-", "write": "^ann-", "read": ""})
    assert as_ann("GET", f"queues/{vhost}") == 200
    assert as_ann("GET", f"vhosts/{vhost}/permissions") == 401
    assert as_ann("PUT", f"queues/{vhost}/ann-q", {"durable": True}) == 201
    assert as_ann("PUT", f"queues/{vhost}/q", {"durable": True}) == 401
    assert as_ann("PUT", f"exchanges/{vhost}/x", {"type": "fanout"}) == 401
    assert as_ann("POST", f"bindings/{vhost}/e/amq.fanout/q/ann-q", {}) == 401, "not without reading from the exchange"
    assert as_ann("DELETE", f"queues/{vhost}/ann-q/contents") == 401
    assert as_ann("PUT", f"vhosts/{ann}", {}) == 401
    assert as_ann("DELETE", f"queues/{vhost}/ann-q") == 204


@pytest.mark.parametrize("tag", ["management", "administrator"])
def test_only_users_of_a_virtual_host_can_test_its_aliveness(
    api: Api, vhost: str, ann: str, tag: str, broker: TestBroker
) -> None:
    """If a user without permissions in a virtual host requests its aliveness test, the management API refuses the
    request with status 401. From RabbitMQ 4.3 on, the status is 404 if the user is not an administrator.
    """
    hides = broker.differs_since("4.3", "a virtual host that a user may not see is not found, rather than refused")
    api("PUT", f"users/{ann}", {"password": "secret", "tags": tag})
    path = f"aliveness-test/{vhost}"
    refused = 404 if hides and tag == "management" else 401
    assert api("GET", path, user=ann, password="secret")[0] == refused
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": ".*", "write": ".*", "read": ".*"})
    assert api("GET", path, user=ann, password="secret")[:2] == (200, {"status": "ok"})
    assert api("GET", "aliveness-test/nowhere")[0] == 404


def test_the_creator_of_a_virtual_host_gets_full_permissions(api: Api) -> None:
    """The user who creates a virtual host over HTTP gets full permissions for it."""
    name = f"made-{uuid.uuid4().hex[:8]}"
    assert api("PUT", f"vhosts/{name}", {"description": "to try"})[0] == 201
    assert api("GET", f"vhosts/{name}")[1]["description"] == "to try"
    permissions = api("GET", f"vhosts/{name}/permissions")[1]
    assert permissions == [{"user": "guest", "vhost": name, "configure": ".*", "write": ".*", "read": ".*"}]
    assert api("DELETE", f"vhosts/{name}")[0] == 204


def test_lists_of_the_management_api_are_sorted_by_name_or_by_the_given_column(
    api: Api, vhost: str, channel: BlockingChannel, take: Take
) -> None:
    """The management API sorts lists by name, or by the column that the parameter `sort` names."""
    for number, name in enumerate("cab"):
        channel.queue_declare(name)
        for _ in range(number):
            channel.basic_publish("", name, b"")
    by_name = api("GET", f"queues/{vhost}?page=1&columns=name")[1]["items"]
    assert by_name == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    eventually(api, f"queues/{vhost}/b", messages_ready=2)
    eventually(api, f"queues/{vhost}/a", messages_ready=1)
    eventually(api, f"queues/{vhost}/c", messages_ready=0)
    assert api("GET", f"queues/{vhost}?columns=name")[1] == by_name, "without pages, too"
    sort = "page=1&page_size=2&sort=messages_ready&sort_reverse=true&columns=name"
    assert api("GET", f"queues/{vhost}?{sort}")[1]["items"] == [{"name": "b"}, {"name": "a"}]


def test_columns_that_name_missing_nested_fields_are_left_out(api: Api, vhost: str, channel: BlockingChannel) -> None:
    """If the parameter `columns` of a management API request names fields that do not exist, such as a field nested
    1,500 levels deep, the response leaves them out, and contains only the other requested fields.
    """
    channel.queue_declare("q")
    columns = f"name,no.such.field,name.x,{'.'.join('a' * 1500)}"
    assert api("GET", f"queues/{vhost}?columns={columns}") == (200, [{"name": "q"}])


def test_a_queues_message_stats_count_gets_and_show_a_publish_rate(
    api: Api, vhost: str, channel: BlockingChannel, take: Take
) -> None:
    """In the management API, a queue's message_stats contain two counts of deliveries by basic.get, one with and one
    without acknowledgement, and the rate of publishing.
    """
    channel.queue_declare("q")
    for _ in range(2):
        channel.basic_publish("", "q", b"")
    channel.basic_ack(take.one("q", auto_ack=False)[0].delivery_tag)
    take.one("q")
    deadline = time.monotonic() + 60
    while True:
        channel.basic_publish("", "q", b"")
        stats = api("GET", f"queues/{vhost}/q")[1].get("message_stats", {})
        if stats.get("publish_details", {}).get("rate") and stats.get("get_no_ack"):
            break
        assert time.monotonic() < deadline, stats
        channel.connection.process_data_events(0.1)
    assert stats["publish"] > 0
    assert [stats.get(name, 0) for name in ("get", "get_no_ack", "deliver", "deliver_get")] == [1, 1, 0, 2]
    take.until(lambda: api("GET", f"vhosts/{vhost}")[1].get("message_stats", {}).get("deliver_get") == 2)
    (found,) = api("GET", f"vhosts/{vhost}/channels")[1]
    assert found["message_stats"]["deliver_get"] == 2
    assert found["message_stats"]["publish"] > 0


def test_the_overview_lists_the_amqp_port(api: Api, amqp_url: str) -> None:
    """The management API's overview lists the port of the AMQP listener, so that a tool can find out to which broker
    the management API belongs.
    """
    ports = {listener["port"] for listener in api("GET", "overview")[1]["listeners"]}
    # A broker in a container knows its own port, not the one that Docker publishes.
    assert ports & {urlsplit(amqp_url).port, 5672 if "MQTOOL_TEST_IMAGE" in os.environ else None}


def test_the_overview_lists_the_management_api(api: Api) -> None:
    """In the management API's overview, the list "contexts" contains the management plugin with its path and port."""

    def found() -> list[Any]:
        return [each for each in api("GET", "overview")[1]["contexts"] if each["description"] == "RabbitMQ Management"]

    wait_until(found, "the overview has no contexts")
    assert [(each["path"], each["port"].isdigit()) for each in found()] == [("/", True)]


def test_deleting_a_virtual_host_closes_its_connections(api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """When a virtual host is deleted, the embedded broker closes the connections of its clients with error 320, and
    the error text says that the virtual host is deleted.
    """
    with EmbeddedBroker(management_port=0) as broker:
        api = api_of(broker)
        api("PUT", "vhosts/gone", {})
        api("PUT", "permissions/gone/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        with RawClient(broker.url.rpartition("/")[0] + "/gone") as client:
            assert api("DELETE", "vhosts/gone")[0] == 204
            assert client.closed_with() == "320 CONNECTION_FORCED - vhost 'gone' is deleted"


@on_any_broker
@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_an_integer_of_more_than_64_bits_is_refused(api: Api, broker: TestBroker, number: int) -> None:
    """If an argument of a queue or a header of a message is an integer of more than 64 bits, the embedded broker's
    management API responds with status 400 and says that the integer does not fit into 64 bits. RabbitMQ accepts the
    argument, and truncates the header to 64 bits.
    """
    refused = "not a field table: an integer does not fit into 64 bits"
    queue = api("PUT", f"queues/{broker.vhost}/q", {"arguments": {"x-max-length": number}})
    assert (queue[0], queue[1]["reason"]) == (400, refused)
    message = {
        "routing_key": "q",
        "payload": "",
        "payload_encoding": "string",
        "properties": {"headers": {"n": number}},
    }
    published = api("POST", f"exchanges/{broker.vhost}/amq.default/publish", message)
    assert (published[0], published[1]["reason"]) == (400, refused)


def test_a_client_can_ask_for_less_than_all_statistics(
    api: Api, vhost: str, channel: BlockingChannel, broker: TestBroker
) -> None:
    """`disable_stats=true` leaves out the counts of queues and of the overview. With `enable_queue_totals=true`, lists
    of queues have three counts. A quorum queue shows its delivery limit, and how it delays retries.
    """
    channel.queue_declare("q", durable=True)
    channel.basic_publish("", "q", b"x")
    arguments = {"x-queue-type": "quorum", "x-delayed-retry-type": "all", "x-delayed-retry-min": 1000}
    channel.queue_declare("retrying", durable=True, arguments=arguments)
    eventually(api, f"queues/{vhost}/q", messages=1)
    totals = {"messages", "messages_ready", "messages_unacknowledged"}
    for more, counts in (("", set()), ("&enable_queue_totals=true", totals)):
        views = api("GET", f"queues/{vhost}?disable_stats=true{more}")[1]
        [view] = [each for each in views if each["name"] == "q"]
        assert {name for name in view if "message" in name or "consumer" in name} == counts
        assert view.get("messages", 1) == 1
    overview = api("GET", "overview?disable_stats=true")[1]
    assert (overview["disable_stats"], overview["enable_queue_totals"]) == (True, False)
    assert overview.keys().isdisjoint({"queue_totals", "message_stats", "listeners", "churn_rates"})
    assert overview["object_totals"].keys() == {"connections", "exchanges", "queues"}
    if broker.differs_since("4.3", "delayed retries"):
        view = eventually(api, f"queues/{vhost}/retrying", delayed_retry="all (min: 1000ms, max: 1000ms)")
        assert view["delivery_limit"] == 20


def test_definitions_are_downloaded_as_a_file(api: Api, vhost: str) -> None:
    """With `download=NAME` in the query, a browser saves definitions in the file NAME."""
    for path in ("definitions", f"definitions/{vhost}"):
        request = urllib.request.Request(f"{api.url}/api/{path}?download=x.json")
        request.add_header("authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers["content-disposition"] == "attachment; filename=x.json"
            assert "queues" in json.load(answer)
