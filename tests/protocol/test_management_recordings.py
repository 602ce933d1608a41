"""The embedded broker's management API answers as RabbitMQ did when it was recorded (see management_requests.py)."""

import json
from pathlib import Path

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from tests.protocol.management_requests import asked

_RECORDINGS = Path(__file__).parents[1] / "recordings"
#: Answers that the embedded broker does not imitate, by the beginning of their requests, with the reason.
_NOT_IMITATED = {
    'PUT queues/V/bad {"arguments": [1]}': "RabbitMQ shows an internal error",
    'PUT queues/V/bad {"arguments": "x"}': "RabbitMQ shows an internal error",
    "GET queues/V?page=1&name=(": "a pattern that the embedded broker does not support must not look like no match",
    "GET queues/V/quorum?disable_stats": "RabbitMQ 3.10 leaves out the node; the list of queues shows the rest",
    "GET extensions": "the embedded broker has no management page",
    'POST definitions/V {"bindings"': "RabbitMQ 4 shows an Erlang term",
    'POST definitions/V {"policies"': "up to 4.0, RabbitMQ shows an Erlang term",
    'POST definitions/V {"queues": [{"name": "d"': "RabbitMQ 3.10 shows an internal error",
    'POST queues/V/q/get {"ackmode": "nope"': "up to 4.0, RabbitMQ has an internal error",
    "POST exchanges/nope/": "RabbitMQ 3.10 asks for permissions first",
    'PUT policies/V/p {"pattern": "p", "definition": {"nope"': "up to 4.0, RabbitMQ escapes the error for HTML",
    "GET definitions/V": "RabbitMQ 4.0 repeats the default queue type",
    'PUT policies/V/p {"pattern": "("': "the error is that of another library of regular expressions",
}


@pytest.mark.parametrize("version", ["3.10", "4.0", "4.3"])
def test_the_management_api_answers_as_the_recorded_rabbitmq_did(version: str) -> None:
    """Each recorded request gets RabbitMQ's status, error and reason, or a body with the same fields and types."""
    recorded = [json.loads(line) for line in (_RECORDINGS / version / "management.ndjson").read_text().splitlines()]
    with EmbeddedBroker(like=version, management_port=0) as broker:
        answered = [each.as_json() for each in asked(str(broker.management_url).removesuffix("/"))]
    assert [each["request"] for each in answered] == [each["request"] for each in recorded], "record again"
    differences = [
        (real, ours)
        for real, ours in zip(recorded, answered, strict=True)
        if real != ours and not real["request"].startswith(tuple(_NOT_IMITATED))
    ]
    assert differences == []
