"""Replaying a recording in a user's test: messages are published once the program under test is ready."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import replay
from mqtool.broker.embedded.in_process import Vhost
from mqtool.broker.embedded.testing.replay import replaying
from mqtool.errors import Unavailable


@pytest.fixture
def vhost(amqp_vhost: Vhost) -> Vhost:
    return amqp_vhost


@pytest.fixture
def channel(vhost: Vhost) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(vhost.url)) as connection:
        yield connection.channel()


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Fifty messages of exchange logs, by two keys in turn, a second apart."""
    path = tmp_path / "incident.ndjson"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "timestamp": f"2026-01-31T12:00:{number:02}Z",
                    "exchange": "logs",
                    "routing_key": "ab"[number % 2],
                    "queue": "jobs",
                    "redelivered": True,
                    "headers": {"n": number},
                    "properties": {"user_id": "production"},
                    "body": f"body {number}",
                }
            )
            + "\n"
            for number in range(50)
        )
    )
    return path


def test_replay_waits_until_queues_and_bindings_exist(vhost: Vhost, channel: BlockingChannel, recording: Path) -> None:
    """If the exchange, the queue and the bindings are declared only during a replay, all its messages still arrive, in
    order.
    """
    with replaying(vhost, recording):
        channel.exchange_declare("logs", "direct")
        vhost.wait_for(lambda: len(vhost.unrouted))  # the first message has come too early
        channel.queue_declare("jobs")
        for key in "ab":
            channel.queue_bind("jobs", "logs", key)
        vhost.wait_for(lambda: len(vhost.queue("jobs").messages()) == 50)
    messages = vhost.queue("jobs").messages()
    assert [message.headers["n"] for message in messages] == list(range(50))
    assert messages[7].body == b"body 7"

    assert replay(vhost, recording, where="headers.n<10") == 10
    assert replay(vhost.url, recording, speed=5000) == 50


def test_replay_names_an_unroutable_message(vhost: Vhost, channel: BlockingChannel, recording: Path) -> None:
    """If a recorded message stays unroutable, replay() raises Unavailable with the missing exchange or the unbound
    routing key.
    """
    with pytest.raises(Unavailable, match=r"incident.ndjson went nowhere: exchange 'logs' does not exist"):
        replay(vhost, recording, patience=0)
    channel.exchange_declare("logs", "direct")
    with pytest.raises(Unavailable, match="no queue gets routing key 'a' from exchange 'logs'"):
        replay(vhost, recording, patience=0)
    with pytest.raises(FileNotFoundError):
        replay(vhost, "missing.ndjson")


TESTS = """
import pika, pytest

@pytest.fixture
def app(amqp_vhost):
    with pika.BlockingConnection(pika.URLParameters(amqp_vhost.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare("logs", "fanout")
        channel.queue_declare("jobs")
        channel.queue_bind("jobs", "logs")
        yield channel

RECORDED = pytest.mark.amqp_recording("incident.ndjson")

@pytest.mark.parametrize("count", [pytest.param(50, marks=RECORDED), 0])
def test_replayed(amqp_vhost, app, count):
    amqp_vhost.wait_for(lambda: len(amqp_vhost.queue("jobs").messages(timeout=0)) == count)

@pytest.mark.amqp_recording("incident.ndjson", patience=5)
def test_unroutable(amqp_vhost):
    with pika.BlockingConnection(pika.URLParameters(amqp_vhost.url)) as connection:
        connection.channel().exchange_declare("logs", "fanout")
        amqp_vhost.wait_for(lambda: len(amqp_vhost.unrouted))

@pytest.mark.amqp_recording("incident.ndjson")
def test_nowhere(): pass

@pytest.mark.amqp_recording("none.ndjson")
def test_missing(amqp_vhost): pass

@pytest.mark.amqp_recording()
def test_without_a_path(amqp_vhost): pass
"""


def test_the_marker_amqp_recording_replays_in_a_users_test(tmp_path: Path, recording: Path) -> None:
    """In another project's tests, the pytest marker amqp_recording replays its file, and explains a wrong use in one
    sentence.
    """
    assert recording.parent == tmp_path
    (tmp_path / "test_app.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "3 passed, 4 errors" in done.stdout, done.stdout + done.stderr
    assert "went nowhere: no queue gets routing key 'a' from exchange 'logs'" in done.stdout
    assert "amqp_recording is for tests that use amqp_vhost or amqp_broker" in done.stdout
    assert "No such file or directory" in done.stdout
    assert "amqp_recording needs the path of one recording" in done.stdout
    assert "another exception" not in done.stdout
