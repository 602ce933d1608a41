"""Thousands of malformed inputs: no crash, no traceback, no leak, and well-behaved clients beside them go on."""

import time
from pathlib import Path

import pytest

from tests.brokers import IN_CI
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Api
from tests.protocol.hostile_inputs import AmqpInputs, Inputs, StreamInputs
from tests.siege import Beside, throw

INPUTS = 10_000 if IN_CI else 2_500


@pytest.mark.parametrize("inputs", [AmqpInputs(seed=91), StreamInputs(seed=92)], ids=["amqp", "stream"])
def test_malformed_inputs(tmp_path: Path, inputs: Inputs) -> None:
    """The seeds are fixed, so that a failure can be had again."""
    with BrokerProcess(tmp_path, "--in-memory", "--management-port", "0", "--stream-port", "0") as process:
        beside = Beside(process.url, process.stream_url)
        port = beside.ports[type(inputs)]
        for number in range(INPUTS):
            throw(port, inputs.next())
            if number % 500 == 0:
                beside.check()
        api = Api(process.management_url)
        deadline = time.monotonic() + 10
        while (totals := api("GET", "overview")[1]["object_totals"])["connections"] != 2:
            assert time.monotonic() < deadline, totals
        assert totals["channels"] == 1
        beside.close()
        assert process.stop() == 0
        assert "Traceback" not in process.log
        assert "internal error" not in process.log.lower()
