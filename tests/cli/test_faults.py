"""`broker fault` and `broker serve` of the embedded broker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker, free_port
from tests.cli.shell import Shell, wait_until


@pytest.fixture
def own() -> Iterator[EmbeddedBroker]:
    """A broker that no other test uses."""
    with EmbeddedBroker(management_port=0, stream_port=0) as broker:
        yield broker


@pytest.fixture
def tester(lonely_shell: Shell, own: EmbeddedBroker) -> Shell:
    assert own.management_url is not None
    lonely_shell.environment |= {"MQTOOL_URL": own.url, "MQTOOL_MANAGEMENT_URL": own.management_url}
    return lonely_shell


def test_broker_fault_controls_the_faults_of_the_embedded_broker(tester: Shell, own: EmbeddedBroker) -> None:
    """`broker fault` makes the embedded broker cut connections, nack published messages, or go silent. `broker fault
    ls` lists the active faults, and `broker fault clear` ends them.
    """
    worker = tester.start("mqtool", "receive", "--declare", "-q", "jobs", ready=True).wait_until_ready()
    assert tester.run("mqtool", "broker", "fault", "cut-connections").stderr == "cut-connections: 1 affected\n"
    worker.wait_for_stderr("connected again")
    worker.interrupt().wait()

    assert (
        "to end it: mqtool broker fault clear 1"
        in tester.run("mqtool", "broker", "fault", "nack-publishes", "queue=jobs").stderr
    )
    (listed,) = tester.run("mqtool", "broker", "fault", "ls", "--json").stdout.splitlines()
    assert json.loads(listed) == {"id": 1, "fault": "nack_publishes", "arguments": {"queue": "jobs", "count": 1}}
    assert tester.run("mqtool", "send", "-q", "jobs", "Hello").code == 75
    assert "no active faults" in tester.run("mqtool", "broker", "fault", "ls").stderr

    assert tester.run("mqtool", "broker", "fault", "restart", "seconds=0").stderr == "restart: 0 affected\n"

    tester.run("mqtool", "broker", "fault", "go-silent", "seconds=1m")
    assert tester.run("mqtool", "broker", "fault", "clear").stderr == "ended 1 fault\n"
    assert own.faults.in_force() == []


def test_the_hint_for_a_released_message_does_not_claim_that_the_queue_is_missing(tester: Shell) -> None:
    """Over AMQP 1.0, a broker may release a message although its queue exists. If `send` reports a released message,
    its hint therefore does not claim that the queue is missing, but says how to find out whether it exists.
    """
    tester.run("mqtool", "queue", "declare", "jobs")
    tester.run("mqtool", "broker", "fault", "return-unroutable")
    released = tester.run("mqtool", "send", "-q", "jobs", "--protocol", "amqp1.0", "Hello")
    assert (released.code, released.stderr.splitlines()) == (
        75,
        [
            "mqtool: the message was returned: no queue is bound for it (released)",
            "hint: 'mqtool list queues' shows whether queue 'jobs' exists",
        ],
    )


def test_send_retries_after_a_nack_if_a_node_of_the_cluster_is_down(tester: Shell, own: EmbeddedBroker) -> None:
    """If a node of a cluster cannot be reached, `send` publishes a nacked message again, because the queue may have
    no leader yet. If all nodes answer, a nack is final.
    """
    send = ("mqtool", "send", "-q", "jobs", "Hello")
    tester.run("mqtool", "queue", "declare", "jobs")
    own.faults.nack_publishes("jobs")
    assert tester.run(*send).code == 75
    own.faults.nack_publishes("jobs")
    assert tester.run(*send, environment={"MQTOOL_URL": f"amqp://127.0.0.1:{free_port()},{own.url}"}).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cut"], "unknown fault 'cut': one of block_publishers"),
        (["go-silnt"], "unknown fault 'go_silnt': did you mean 'go_silent'?"),
        (["go-silent", "for=3"], "no argument 'for': one of seconds"),
        (["go-silent", "seconds=x"], "seconds must be a duration, not 'x'"),
        (["go-silent", "seconds=-1"], "seconds must be at least 0, not '-1'"),
        (["nack-publishes"], "nack_publishes needs queue"),
        (["nack-publishes", "jobs"], "'jobs' is not an argument of a fault"),
        (["close-channels", "code=1"], "code must be one of AMQP's"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.sampled(3)
def test_an_unknown_fault_or_argument_is_a_usage_error(tester: Shell, words: list[str], said: str) -> None:
    """`broker fault` with an unknown fault or argument says which faults or arguments are valid, and exits with 2."""
    refused = tester.run("mqtool", "broker", "fault", *words)
    assert (refused.code, said in refused.stderr) == (2, True), refused.stderr


def test_send_stream_exits_with_69_while_the_broker_blocks_publishers(tester: Shell, own: EmbeddedBroker) -> None:
    """While the broker blocks publishers, `send-stream` exits with 69 and says that the broker may be low on memory or
    disk. Once the broker accepts messages again, a new `send-stream` exits with 0.
    """
    streams = ("send-stream", "--stream-port", str(own.stream_port), "x")
    tester.run("mqtool", "broker", "fault", "block-publishers")
    refused = tester.run("mqtool", *streams)
    assert (refused.code, "it may be low on memory or disk" in refused.stderr) == (69, True)
    tester.run("mqtool", "broker", "fault", "clear")
    assert tester.run("mqtool", *streams).code == 0


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_broker_fault_says_that_rabbitmq_does_not_support_faults(shell: Shell, broker: TestBroker) -> None:
    """`broker fault` on RabbitMQ exits with 2 and says that only the embedded broker supports faults."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    refused = shell.run("mqtool", "broker", "fault", "cut-connections")
    assert (refused.code, "only the embedded broker supports faults" in refused.stderr) == (2, True)


def test_broker_serve_prints_its_urls_and_writes_them_to_the_ready_file(lonely_shell: Shell, tmp_path: Path) -> None:
    """`broker serve --port 0 --print-url` prints the URLs of the broker and of its management API. With --ready-file
    FILE, it also writes these URLs to FILE, and removes FILE when the broker ends.
    """
    command = ("mqtool", "broker", "serve", "--port", "0", "--management-port", "0", "--print-url", "--recording")
    broker = lonely_shell.start(*command, "--ready-file", "ready", "--like", "4.3").wait_for_stdout("http://")
    url, api = broker.stdout.split()
    wait_until((tmp_path / "ready").exists, "the ready file")
    assert (tmp_path / "ready").read_text() == broker.stdout
    lonely_shell.run("mqtool", "send", "-u", url, "Hello")
    overview: Any = TestBroker("embedded", url, api).api("GET", "overview")
    assert overview["rabbitmq_version"].startswith("4.3.")
    answer: Any = TestBroker("embedded", url, api).api("GET", "mqtool/published/%2F")
    assert [(each["routing_key"], each["body"], each["queues"]) for each in answer] == [("hello", "Hello", ["hello"])]
    assert broker.interrupt().wait().code == 0
    assert not (tmp_path / "ready").exists()
