"""Replaying a recording in a user's test: each message is published once the program under test is ready for it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import replay
from mqtool.broker.embedded.in_process import EmbeddedBroker, Vhost
from mqtool.broker.embedded.testing.replay import replaying
from mqtool.errors import BadData, Unavailable
from tests.brokers import large
from tests.protocol.conftest import Api


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


def test_replay_waits_until_queues_and_bindings_exist(
    vhost: Vhost,
    channel: BlockingChannel,
    recording: Path,
    amqp_broker: EmbeddedBroker,
    api_of: Callable[[EmbeddedBroker], Api],
) -> None:
    """If a user's test declares the exchange, the queue and the bindings of a recording only after replaying() has
    begun, the replay waits for them. All messages of the recording then arrive in order, and published() lists each of
    them once.
    """

    def attempts() -> int:
        _, exchange = api_of(amqp_broker)("GET", f"exchanges/{vhost.name}/logs")
        found: int = exchange.get("message_stats", {}).get("publish_in", 0)
        return found

    with replaying(vhost, recording):
        channel.exchange_declare("logs", "direct")
        vhost.wait_for(lambda: attempts() > 2)  # the first message was published too early
        assert not vhost.unrouted
        channel.queue_declare("jobs")
        for key in "ab":
            channel.queue_bind("jobs", "logs", key)
        vhost.wait_for(lambda: len(vhost.queue("jobs").messages()) == 50)
    assert len(vhost.published("logs", count=50)) == 50
    messages = vhost.queue("jobs").messages()
    assert [message.headers["n"] for message in messages] == list(range(50))
    assert messages[7].body == b"body 7"

    assert replay(vhost, recording, where="headers.n<10") == 10
    assert replay(vhost.url, recording, speed=5000) == 50


def test_replay_says_why_a_message_stays_unroutable(vhost: Vhost, channel: BlockingChannel, recording: Path) -> None:
    """If a message of a recording stays unroutable, replay() raises Unavailable. The error names the missing
    exchange, or the routing key that has no binding.
    """
    with pytest.raises(Unavailable, match=r"incident.ndjson could not be routed: exchange 'logs' does not exist"):
        replay(vhost, recording, patience=0)
    channel.exchange_declare("logs", "direct")
    with pytest.raises(Unavailable, match="exchange 'logs' has no binding for routing key 'a'"):
        replay(vhost, recording, patience=0)
    with pytest.raises(FileNotFoundError):
        replay(vhost, "missing.ndjson")


TESTS = """
import threading
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

@pytest.fixture
def exchange(amqp_vhost):
    with pika.BlockingConnection(pika.URLParameters(amqp_vhost.url)) as connection:
        connection.channel().exchange_declare("logs", "fanout")

@pytest.mark.amqp_recording("incident.ndjson", patience=0)
def test_unroutable(amqp_vhost, exchange):
    amqp_vhost.wait_for(lambda: all(each.name != "amqp-recording" for each in threading.enumerate()))

@pytest.mark.amqp_recording("incident.ndjson")
def test_nowhere(): pass

@pytest.mark.amqp_recording("none.ndjson")
def test_missing(amqp_vhost): pass

@pytest.mark.amqp_recording()
def test_without_a_path(amqp_vhost): pass
"""


@large
def test_the_marker_amqp_recording_replays_a_recording_in_a_users_test(tmp_path: Path, recording: Path) -> None:
    """In a user's test, the pytest marker amqp_recording replays the recording that the marker names. If a message is
    unroutable, if the marker names no file or a file that does not exist, or if the test does not use the embedded
    broker, the test fails with an error that says why.
    """
    assert recording.parent == tmp_path
    (tmp_path / "test_app.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "3 passed, 4 errors" in done.stdout, done.stdout + done.stderr
    assert "could not be routed: exchange 'logs' has no binding for routing key 'a'" in done.stdout
    assert "amqp_recording is for tests that use amqp_vhost or amqp_broker" in done.stdout
    assert "No such file or directory" in done.stdout
    assert "amqp_recording needs the path of one recording" in done.stdout
    assert "another exception" not in done.stdout


WRONG = {
    '"incident.ndjson", speed="fast"': "speed: 'fast' is not a speed such as 2, 0.5 or max",
    '"incident.ndjson", speed=0': "speed: '0' is not a speed such as 2, 0.5 or max",
    '"incident.ndjson", patience="5"': "patience must be a number of seconds, at least 0, not '5'",
    '"incident.ndjson", where="headers.n<"': "expected a value",
    '"incident.ndjson", where="routing_kee=a"': "hint: did you mean 'routing_key'?",
    '"incident.ndjson", where="headers.n is 3"': "  headers.n is 3\n            ^\nhint: put",
    '"incident.ndjson", where=3': "where must be a condition such as",
    '"incident.ndjson", sped=2': "unknown argument 'sped'\nhint: did you mean 'speed'?",
    '"incident.ndjson", loop=2': "unknown argument 'loop'\nhint: one of speed, where, patience",
    '"incident.ndjson", where="headers.n=99"': "incident.ndjson matches 'headers.n=99'",
    '"empty.ndjson"': "empty.ndjson has no messages",
    '"empty.ndjson", where="headers.n=99"': "empty.ndjson has no messages",
    "3": "amqp_recording needs the path of one recording",
}


@large
def test_a_test_whose_marker_amqp_recording_has_a_wrong_argument_fails(tmp_path: Path, recording: Path) -> None:
    """If an argument of the pytest marker amqp_recording is invalid or unknown, or if no message would be replayed,
    the user's test fails before it runs. The error names the recording and says what is wrong.
    """
    assert recording.parent == tmp_path
    (tmp_path / "empty.ndjson").write_text("\n")
    tests = [
        f"@pytest.mark.amqp_recording({arguments})\ndef test_{number}(amqp_vhost): pass\n"
        for number, arguments in enumerate(WRONG)
    ]
    (tmp_path / "test_app.py").write_text("import pytest\n" + "".join(tests))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{len(WRONG)} errors" in done.stdout, done.stdout + done.stderr
    assert "passed" not in done.stdout
    sections = done.stdout.split("ERROR at setup of ")[1:]
    for (arguments, said), section in zip(WRONG.items(), sections, strict=True):
        assert said in section, (arguments, section)
        name = arguments.partition(",")[0]
        assert f"amqp_recording({name}): " in section or name == "3", section


def test_an_unexpected_error_during_a_replay_is_raised(
    vhost: Vhost, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """replaying() replays a recording in a background thread. If an unexpected error occurs in this thread, the `with`
    statement raises the error when its block ends, so that the user's test fails.
    """

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mqtool.broker.embedded.testing.replay.ReplayClient", fail)
    with pytest.raises(ZeroDivisionError), replaying(vhost, recording):
        pass


def test_replay_refuses_a_recording_without_messages(vhost: Vhost, recording: Path) -> None:
    """replay() raises BadData if the recording contains no messages, or none that match the argument `where`."""
    with pytest.raises(BadData, match=r"no message of .*incident.ndjson matches 'headers.n=99'"):
        replay(vhost, recording, where="headers.n=99")
    recording.write_text("")
    with pytest.raises(BadData, match=r"incident.ndjson has no messages"):
        replay(vhost, recording)
