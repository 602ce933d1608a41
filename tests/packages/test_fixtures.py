"""The test broker alone: .ci/packages runs these tests with several versions of pika, and without pika."""

import asyncio
import importlib.util
import json
import socket
from pathlib import Path

import pytest

from mqtool.testing import EmbeddedBroker, Vhost, replay

LINES = [{"exchange": "", "routing_key": "jobs", "headers": {"n": n}, "body": f"job {n}"} for n in range(200)]


def test_the_fixture_amqp_vhost_provides_a_broker_that_answers_on_its_port(amqp_vhost: Vhost) -> None:
    """The pytest fixture amqp_vhost provides a broker that accepts TCP connections. If a client sends a protocol header
    that the broker does not support, the broker answers with one that it supports.
    """
    port = int(amqp_vhost.url.rpartition(":")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"AMQP\x02\x01\x00\x09")
        assert client.recv(8) == b"AMQP\x03\x01\x00\x00"


def test_replay_publishes_a_recording_in_order(tmp_path: Path) -> None:
    """If a recording contains 200 messages for a queue that a definitions file declares, the function replay(), which
    users call in their tests, publishes all of them to this queue, in order.
    """
    definitions = tmp_path / "definitions.json"
    queue = {"name": "jobs", "vhost": "/", "durable": True, "auto_delete": False, "arguments": {}}
    definitions.write_text(json.dumps({"vhosts": [{"name": "/"}], "queues": [queue]}))
    path = tmp_path / "jobs.ndjson"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    with EmbeddedBroker(definitions=definitions, recording=True) as broker:
        assert replay(broker, path) == 200
        assert [message.headers["n"] for message in broker.queue("jobs").messages(200)] == list(range(200))


def test_a_broker_can_be_started_in_a_running_event_loop() -> None:
    """In a running event loop, `async with EmbeddedBroker()` starts a broker on 127.0.0.1. The broker's URL contains
    the name and password of the user guest.
    """

    async def run() -> str:
        async with EmbeddedBroker() as broker:
            return broker.url

    assert asyncio.run(run()).startswith("amqp://guest:guest@127.0.0.1:")


@pytest.mark.skipif(importlib.util.find_spec("pika") is None, reason="there is no pika")
def test_pika_publishes_and_gets_a_message_in_a_test_with_the_fixture_amqp_vhost(amqp_vhost: Vhost) -> None:
    """In a test with the pytest fixture amqp_vhost, pika publishes a message and gets it, and amqp_vhost.published()
    returns this message. If the test tells the broker to nack the next message (faults.nack_publishes), pika raises
    NackError.
    """
    import pika
    from pika.exceptions import NackError

    with pika.BlockingConnection(pika.URLParameters(amqp_vhost.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("jobs")
        channel.confirm_delivery()
        channel.basic_publish("", "jobs", b"one")
        method, _, body = channel.basic_get("jobs", auto_ack=True)
        assert (method.routing_key, body) == ("jobs", b"one")
        with amqp_vhost.faults.nack_publishes("jobs"), pytest.raises(NackError):
            channel.basic_publish("", "jobs", b"two")
    assert amqp_vhost.published(routing_key="jobs").bodies[0] == b"one"
