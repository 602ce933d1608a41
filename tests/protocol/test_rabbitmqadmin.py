"""rabbitmqadmin, which RabbitMQ serves for download, against RabbitMQ and the embedded broker."""

import signal
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.brokers import TestBroker

#: What is typed, and what is in the answer.
SCRIPT = """
declare queue name=q durable=true auto_delete=false arguments={"x-max-length":5} -> queue declared
declare exchange name=x type=topic durable=true internal=false -> exchange declared
declare binding source=x destination=q routing_key=a.# -> binding declared
declare policy name=p pattern=^q definition={"max-length":4} apply-to=queues -> policy declared
declare operator_policy name=o pattern=^q definition={"max-length":3} apply-to=queues -> operator_policy declared
publish exchange=x routing_key=a.b payload=hello properties={"headers":{"a":1}} -> Message published
publish routing_key=nowhere payload=lost -> but NOT routed
get queue=q -> | a.b         | x        | 0             | hello   | 5             | string
get queue=q ackmode=ack_requeue_false -> hello
get queue=q -> No items
-f tsv list queues name durable auto_delete -> q\tTrue\tFalse
-f kvp list exchanges name type internal -> name="x" type="topic" internal="False"
-f tsv list bindings source destination properties_key -> x\tq\ta.%23
-f tsv list policies name pattern -> p\t^q
-f tsv list operator_policies name pattern -> o\t^q
purge queue name=q -> queue purged
export topology.json -> Exported definitions
delete binding source=x destination=q destination_type=queue properties_key=a.%23 -> binding deleted
delete exchange name=x -> exchange deleted
delete queue name=q -> queue deleted
import topology.json -> Uploaded definitions
-f tsv list bindings source destination -> x\tq
show overview rabbitmq_version -> rabbitmq_version
delete queue name=none -> *** Not found
close connection name=none -> *** Not found
"""


def test_rabbitmqadmin_prints_the_same_results_with_the_embedded_broker_as_with_rabbitmq(
    broker: TestBroker,
    rabbitmq: TestBroker | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The Python program rabbitmqadmin, which RabbitMQ offers for download, prints the same results with the embedded
    broker as with RabbitMQ, whether it declares, lists, publishes, gets, purges, exports, imports or deletes.
    """
    if rabbitmq is None:
        pytest.skip("no RabbitMQ to download rabbitmqadmin from")
    try:
        with urllib.request.urlopen(f"{rabbitmq.management}/cli/rabbitmqadmin", timeout=30) as answer:
            program = compile(answer.read(), "rabbitmqadmin", "exec")
    except urllib.error.HTTPError as error:
        pytest.skip(f"this RabbitMQ has no rabbitmqadmin in Python: {error}")
    where = urlsplit(broker.management)
    options = ["-H", str(where.hostname), "-P", str(where.port), "-V", broker.vhost]
    monkeypatch.chdir(tmp_path)
    # rabbitmqadmin makes a broken pipe end its process, which is this one.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for line in SCRIPT.strip().splitlines():
        words, _, expected = line.partition(" -> ")
        monkeypatch.setattr(sys, "argv", ["rabbitmqadmin", *options, *words.split()])
        with suppress(SystemExit):
            exec(program, {"__name__": "__main__"})
        said = capfd.readouterr()
        assert expected in said.out + said.err, (words, said)
