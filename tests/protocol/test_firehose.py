"""The firehose: copies at amq.rabbitmq.trace while a virtual host's tracing is on. And the event exchange."""

from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.brokers import TestBroker
from tests.protocol.conftest import Api

pytestmark = pytest.mark.usefixtures("no_other_firehose")

Opener = Callable[..., pika.BlockingConnection]


class Trace:
    """A queue bound to amq.rabbitmq.trace with the binding key `#`."""

    def __init__(self, channel: BlockingChannel) -> None:
        self._channel = channel
        self._queue = str(channel.queue_declare("", exclusive=True).method.queue)
        channel.queue_bind(self._queue, "amq.rabbitmq.trace", "#")

    def next(self) -> tuple[str, bytes, dict[str, Any]]:
        """Return the next copy's routing key, body and headers, without the connection's name and node."""
        for method, properties, body in self._channel.consume(self._queue, inactivity_timeout=10):
            assert method is not None, "nothing came"
            self._channel.basic_ack(method.delivery_tag)
            headers = dict(properties.headers)
            assert {name for name, value in vars(properties).items() if value is not None} == {"headers"}
            assert headers.pop("user") == "guest"
            assert "@" in headers.pop("node")
            assert " -> " in headers.pop("connection")
            return method.routing_key, body, headers
        raise AssertionError


@pytest.fixture
def trace(api: Api, vhost: str, channel: BlockingChannel) -> Iterator[Trace]:
    """The firehose of the vhost, turned on."""
    assert api("PUT", f"vhosts/{vhost}", {"tracing": True})[0] == 204
    yield Trace(channel)
    api("PUT", f"vhosts/{vhost}", {"tracing": False})


def test_the_firehose_copies_a_published_message(trace: Trace, connect: Opener, vhost: str) -> None:
    """The firehose's copy of a published message has a routing key that names the exchange. The copy's headers contain
    the message's properties, its routing keys and the queues to which it was routed.
    """
    client = connect().channel()
    client.queue_declare("jobs", exclusive=True)
    client.queue_bind("jobs", "amq.topic", "order.*")
    where = {"vhost": vhost, "channel": 1, "properties": {}}

    client.basic_publish("", "nowhere", b"lost")
    assert trace.next() == (
        "publish.", b"lost", {**where, "exchange_name": "", "routing_keys": ["nowhere"], "routed_queues": ["nowhere"]}
    )  # fmt: skip
    client.basic_publish("amq.topic", "kern.info", b"")
    assert trace.next() == (
        "publish.amq.topic", b"",
        {**where, "exchange_name": "amq.topic", "routing_keys": ["kern.info"], "routed_queues": []},
    )  # fmt: skip
    properties = {
        "content_type": "text/plain", "content_encoding": "utf-8", "headers": {"n": 1, "inside": {"t": True}},
        "delivery_mode": 2, "priority": 3, "correlation_id": "c", "reply_to": "r", "expiration": "100000",
        "message_id": "m", "timestamp": 1_700_000_000, "type": "t", "user_id": "guest", "app_id": "a",
        "cluster_id": "i",
    }  # fmt: skip
    client.basic_publish("amq.topic", "order.new", b"new", pika.BasicProperties(**properties))
    key, body, headers = trace.next()
    assert (key, body, headers["routed_queues"]) == ("publish.amq.topic", b"new", ["jobs"])
    assert headers["properties"] == properties
    assert list(headers["properties"]) == [*reversed(properties)]


def test_the_firehose_copies_a_message_in_a_transaction_before_the_commit(trace: Trace, connect: Opener) -> None:
    """If a message is published in a transaction, the firehose's copy arrives before the commit. The copy lists all
    routing keys of the message, including those in CC and BCC.
    """
    client = connect().channel()
    client.tx_select()
    headers = {"CC": ["second"], "BCC": ["a-third"]}
    client.basic_publish("", "first", b"", pika.BasicProperties(headers=headers))
    _, _, copy = trace.next()
    assert copy["routing_keys"] == ["first", "second", "a-third"]
    assert copy["routed_queues"] == ["a-third", "first", "second"]
    assert copy["properties"] == {"headers": {"CC": ["second"]}}


def test_the_firehose_copies_a_delivered_message(trace: Trace, connect: Opener, vhost: str) -> None:
    """The firehose copies each message that is delivered to a consumer or returned by basic.get, but not its own
    copies.
    """
    client = connect().channel()
    client.queue_declare("jobs", exclusive=True)
    client.basic_publish("", "jobs", b"job", pika.BasicProperties(headers={"n": 1}))
    assert trace.next()[0] == "publish."
    expected = {
        "vhost": vhost, "channel": 1, "exchange_name": "", "routing_keys": ["jobs"],
        "properties": {"headers": {"n": 1}}, "redelivered": 0,
    }  # fmt: skip
    method, _, _ = client.basic_get("jobs")
    assert trace.next() == ("deliver.jobs", b"job", expected)
    client.basic_nack(method.delivery_tag, requeue=True)
    client.basic_consume("jobs", lambda *_: None, auto_ack=True)
    assert trace.next() == ("deliver.jobs", b"job", {**expected, "redelivered": 1})


def test_tracing_is_switched_on_and_off_over_http(
    api: Api, vhost: str, channel: BlockingChannel, connect: Opener
) -> None:
    """Setting a virtual host's property `tracing` over HTTP starts or stops the firehose. A request without `tracing`
    leaves the setting unchanged, and a request in which `tracing` is a number returns status 400.
    """
    trace, client = Trace(channel), connect().channel()
    for body, is_on in (({"tracing": True}, True), ({}, True), ({"tracing": "false"}, False)):
        assert api("PUT", f"vhosts/{vhost}", body)[0] == 204
        assert api("GET", f"vhosts/{vhost}")[1]["tracing"] is is_on
        client.basic_publish("", "nowhere", str(body).encode())
        client.basic_qos()  # once this is answered, the broker has handled the message
        if is_on:
            assert trace.next()[1] == str(body).encode()
    assert api("PUT", f"vhosts/{vhost}", {"tracing": 1})[0] == 400
    assert api("PUT", f"vhosts/{vhost}", {"tracing": True})[0] == 204
    client.basic_publish("", "nowhere", b"last")
    assert trace.next()[1] == b"last", "the firehose sent a copy while tracing was off"
    api("PUT", f"vhosts/{vhost}", {"tracing": False})


def test_the_event_exchange_reports_what_comes_and_goes(
    api: Api, connect: Opener, vhost: str, broker: TestBroker
) -> None:
    """A queue that is bound to amq.rabbitmq.event in the virtual host `/` gets a message for each queue, exchange,
    binding, connection, channel, consumer, user and permission that is created or deleted. Its routing key names the
    event, and its headers describe it.
    """
    if broker.kind == "rabbitmq" and api("GET", "exchanges/%2F/amq.rabbitmq.event")[0] == 404:
        pytest.skip("the plugin is not enabled")
    events = connect(virtual_host="/").channel()
    queue = str(events.queue_declare("", exclusive=True).method.queue)
    events.queue_bind(queue, "amq.rabbitmq.event", "#")
    connection = connect(client_properties={"connection_name": "probe"})
    client = connection.channel()
    client.queue_declare("jobs", durable=True, arguments={"x-max-length": 5, "x-queue-type": "classic"})
    client.exchange_declare("x", "topic")
    client.queue_bind("jobs", "x", "k.*", {"a": 1})
    client.basic_consume("jobs", lambda *_: None, consumer_tag="tag", auto_ack=True)
    client.basic_cancel("tag")
    client.queue_unbind("jobs", "x", "k.*", {"a": 1})
    client.exchange_delete("x")
    client.queue_delete("jobs")
    client.close()
    api("PUT", f"users/{vhost}", {"password": "p", "tags": ""})
    api("PUT", f"permissions/{vhost}/{vhost}", dict.fromkeys(("configure", "write", "read"), "^a"))
    api("DELETE", f"permissions/{vhost}/{vhost}")
    api("DELETE", f"users/{vhost}")
    connection.close()

    binding = {
        "source_name": "x", "source_kind": "exchange", "destination_name": "jobs", "destination_kind": "queue",
        "routing_key": "k.*", "arguments": ['{<<"a">>,signedint,1}'], "vhost": vhost,
    }  # fmt: skip
    expected: list[tuple[str, dict[str, Any]]] = [
        ("connection.created", {"user_provided_name": "probe", "vhost": vhost, "protocol": "{0,9,1}", "user": "guest"}),
        ("channel.created", {"number": 1, "vhost": vhost, "user": "guest"}),
        ("queue.created", {"name": "jobs", "vhost": vhost, "durable": True, "exclusive": False, "auto_delete": False}),
        ("exchange.created", {"name": "x", "vhost": vhost, "type": "topic", "internal": False, "arguments": []}),
        ("binding.created", binding),
        ("consumer.created", {"consumer_tag": "tag", "queue": "jobs", "ack_required": False, "exclusive": False}),
        ("consumer.deleted", {"consumer_tag": "tag", "queue": "jobs"}),
        ("binding.deleted", binding),
        ("exchange.deleted", {"name": "x", "vhost": vhost}),
        ("queue.deleted", {"name": "jobs", "vhost": vhost}),
        ("channel.closed", {}),
        ("user.created", {"name": vhost}),
        ("permission.created", {"user": vhost, "vhost": vhost, "configure": "^a"}),
        ("permission.deleted", {"user": vhost, "vhost": vhost}),
        ("user.deleted", {"name": vhost}),
        ("connection.closed", {"user_provided_name": "probe"}),
    ]
    pids: dict[str, str] = {}
    # RabbitMQ's processes send their events independently, and other tests cause events, too.
    for method, properties, body in events.consume(queue, auto_ack=True, inactivity_timeout=20):
        assert method is not None, f"missing: {expected}"
        key, headers = method.routing_key, properties.headers
        is_ours = vhost in str(headers) or headers.get("user_provided_name") == "probe" or headers.get("pid") in pids
        fitting = (
            [
                each
                for each in expected
                if each[0] == key and all(headers.get(name) == value for name, value in each[1].items())
            ]
            if is_ours
            else []
        )
        if not fitting:
            continue
        expected.remove(fitting[0])
        assert (body, properties.delivery_mode) == (b"", 2)
        assert headers["timestamp_in_ms"] // 1000 == properties.timestamp
        pids |= {headers["pid"]: key} if "pid" in headers else {}
        assert key != "queue.created" or '{<<"x-max-length">>,signedint,5}' in headers["arguments"]
        if not expected:
            break
    assert sorted(pids.values()) == ["channel.closed", "connection.closed"]
