"""Thousands of malformed inputs: no crash, no traceback, no leak, and other clients are not affected."""

import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.brokers import ALL_CASES, IN_CI
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Api
from tests.protocol.hostile_amqp10 import Amqp10Inputs
from tests.protocol.hostile_inputs import AmqpInputs, Inputs, StreamInputs
from tests.protocol.hostile_requests import LOGIN, Sender
from tests.siege import Beside, throw

INPUTS = 10_000 if ALL_CASES else 2_000 if IN_CI else 300


@pytest.mark.parametrize(
    "inputs", [AmqpInputs(seed=91), StreamInputs(seed=92), Amqp10Inputs(seed=93)], ids=["amqp", "stream", "amqp10"]
)
def test_the_broker_serves_other_clients_after_thousands_of_malformed_inputs(tmp_path: Path, inputs: Inputs) -> None:
    """After thousands of malformed inputs over AMQP 0-9-1, AMQP 1.0 or the stream protocol, the broker still serves its
    other clients, and has logged no traceback.
    """
    like = "4.3" if isinstance(inputs, Amqp10Inputs) else "3.10"
    options = ("--in-memory", "--management-port", "0", "--stream-port", "0", "--like", like)
    with BrokerProcess(tmp_path, *options) as process:
        beside = Beside(process.url, process.stream_url)
        port = beside.ports[type(inputs)]
        for number in range(INPUTS):
            throw(port, inputs.next())
            if number % 500 == 0:
                beside.check()
        api = Api(process.management_url)
        deadline = time.monotonic() + 60
        while (totals := api("GET", "overview")[1]["object_totals"])["connections"] != 2:
            assert time.monotonic() < deadline, totals
        assert totals["channels"] == 1
        beside.close()
        assert process.stop() == 0
        assert "Traceback" not in process.log
        assert "internal error" not in process.log.lower()


def test_the_management_api_never_answers_a_malformed_request_with_500(tmp_path: Path) -> None:
    """If the management API gets thousands of requests with almost valid JSON bodies, it never responds with status
    500, and logs no traceback.
    """
    with BrokerProcess(tmp_path, "--in-memory", "--management-port", "0", "--recording") as process:
        sender = Sender(process.management_url, seed=19)
        for _ in range(INPUTS):
            sender.send()
        assert sender.failures == []
        assert Api(process.management_url)("GET", "overview")[0] == 200
        assert process.stop() == 0
        assert "Traceback" not in process.log


@pytest.mark.parametrize("path", ["whoami", "queues/%2F/none", "nothing", "whoami?login=no"])
def test_the_response_to_a_head_request_has_no_body(tmp_path: Path, path: str) -> None:
    """The management API's response to a HEAD request has no body, even if the response is an error."""
    with BrokerProcess(tmp_path, "--in-memory", "--management-port", "0") as process:
        address = urlsplit(process.management_url)
        with socket.create_connection((address.hostname, address.port), timeout=60) as client:
            login = "" if "login=no" in path else f"authorization: {LOGIN['authorization']}\r\n"
            client.sendall(f"HEAD /api/{path} HTTP/1.1\r\nconnection: close\r\n{login}\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
        assert answer.endswith(b"\r\n\r\n"), answer
