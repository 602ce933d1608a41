"""What `pytest --amqp-like` reports about tests whose operations some versions of RabbitMQ refuse."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

from mqtool import version_changes
from mqtool.version_changes import VersionRefusal
from tests.brokers import large

SUITE = inspect.cleandoc("""
    import base64
    import json
    import urllib.error
    import urllib.request

    import pika
    import pytest

    def channel(vhost, **settings):
        parameters = pika.URLParameters(vhost.url)
        for name, value in settings.items():
            setattr(parameters, name, value)
        return pika.BlockingConnection(parameters).channel()

    def test_transient(amqp_vhost):
        channel(amqp_vhost).queue_declare("jobs")

    @pytest.mark.parametrize("name", ["x-queue-master-locator", "x-consumer-timeout", "x-queue-version"])
    def test_argument(amqp_vhost, name):
        value = "min-masters" if "locator" in name else 1
        channel(amqp_vhost).queue_declare("jobs", durable=True, arguments={name: value})

    def test_wildcards(amqp_vhost):
        jobs = channel(amqp_vhost)
        jobs.queue_declare("jobs", durable=True)
        jobs.queue_bind("jobs", "amq.topic", "#.it's.#.late.#")

    def test_delayed(amqp_vhost):
        channel(amqp_vhost).exchange_declare("later", "x-delayed-message", arguments={"x-delayed-type": "direct"})

    def test_large(amqp_vhost):
        jobs = channel(amqp_vhost)
        jobs.confirm_delivery()
        jobs.basic_publish("", "jobs", bytes(17_000_000))

    def test_frames(amqp_vhost):
        channel(amqp_vhost, frame_max=4096)

    def test_prefetch(amqp_vhost):
        jobs = channel(amqp_vhost)
        jobs.queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum"})
        jobs.basic_qos(prefetch_count=1, global_qos=True)
        jobs.basic_consume("jobs", print)

    def test_in_the_output(amqp_vhost):
        try:
            channel(amqp_vhost).queue_declare("jobs")
        except pika.exceptions.AMQPError as error:
            print(error)
        channel(amqp_vhost).queue_declare("jobs", passive=True)

    @pytest.mark.parametrize("setting", ["ha-mode", "queue-master-locator"])
    def test_policy(amqp_vhost, amqp_broker, setting):
        value = "all" if setting == "ha-mode" else "random"
        data = json.dumps({"pattern": "jobs", "definition": {setting: value}}).encode()
        said = {"authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}
        url = f"{amqp_broker.management_url.rpartition('@')[2]}".rpartition("//")[2].rstrip("/")
        request = urllib.request.Request(f"http://{url}/api/policies/%2F/p", data, said, method="PUT")
        try:
            urllib.request.urlopen(request).close()
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None
""")
FOR_CLASSIC = "which RabbitMQ 4.3 refuses for a classic queue"
SINCE_4_3 = "3.10, 4.2", "4.3.5, 4.3"
TRANSIENT = "declares a queue that is transient and not exclusive, which RabbitMQ 4.3.0 to 4.3.5 refuse"
CAUSES = {
    "test_transient": ("3.10, 4.2, 4.3", "4.3.5", TRANSIENT),
    "test_argument[x-queue-master-locator]": (
        *SINCE_4_3,
        f"declares a queue with the argument x-queue-master-locator, {FOR_CLASSIC}",
    ),
    "test_argument[x-consumer-timeout]": (*SINCE_4_3, f"uses the argument x-consumer-timeout, {FOR_CLASSIC}"),
    "test_argument[x-queue-version]": (
        *SINCE_4_3,
        f"declares a queue with the argument x-queue-version=1, {FOR_CLASSIC}",
    ),
    "test_wildcards": (*SINCE_4_3, "binds a queue or an exchange with 3 # in its key, and RabbitMQ 4.3.5 allows 2"),
    "test_delayed": (
        *SINCE_4_3,
        "declares an x-delayed-message exchange, which needs the delayed message plugin, which has no release for "
        "RabbitMQ 4.3",
    ),
    "test_large": (
        "3.10",
        "4.2, 4.3.5, 4.3",
        "publishes a message of 17000000 bytes, and from RabbitMQ 4.0 on, messages of more than 16 MiB are refused "
        "unless max_message_size allows them",
    ),
    "test_frames": (
        "3.10",
        "4.2, 4.3.5, 4.3",
        "asks for frames of 4096 bytes, and RabbitMQ 4.1 refuses less than 8,192",
    ),
    "test_prefetch": (
        "4.3.5, 4.3",
        "3.10, 4.2",
        "consumes from a quorum queue with one prefetch limit for the whole channel (global=true), which is refused; "
        "from RabbitMQ 4.3 on, each consumer gets this limit",
    ),
    "test_in_the_output": (
        "3.10, 4.2, 4.3",
        "4.3.5",
        "pika.exceptions.ChannelClosedByBroker: (404, \"NOT_FOUND - no queue 'jobs' in vhost 'test-…'\") (its output "
        f"says: {TRANSIENT})",
    ),
    "test_policy[ha-mode]": (
        "3.10",
        "4.2, 4.3.5, 4.3",
        "sets a policy that mirrors classic queues (ha-mode), which RabbitMQ 4.0 no longer supports",
    ),
    "test_policy[queue-master-locator]": (
        *SINCE_4_3,
        "sets a policy with queue-master-locator, which RabbitMQ 4.3 refuses",
    ),
}


@large
def test_amqp_like_names_the_operation_that_some_versions_refuse(tmp_path: Path) -> None:
    """If some versions of RabbitMQ refuse an operation of a user's test, such as declaring a transient queue, the
    summary of `pytest --amqp-like` names the versions, the operation and the line of the test, whatever exception the
    test fails with.
    """
    (tmp_path / "test_mine.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"]
    versions = ["--amqp-like", "3.10,4.2,4.3.5,4.3"]
    done = subprocess.run([*command, *versions], cwd=tmp_path, capture_output=True, text=True, check=False)
    listed = done.stdout.partition(" tests that depend on the version of RabbitMQ ")[2]
    found = re.findall(
        r"^test_mine\.py::(\S+): passes with (.*)\n  fails with (.*): test_mine\.py:\d+: (.*)$", listed, re.MULTILINE
    )
    assert {name: (*versions, re.sub("test-[0-9a-f]+", "test-…", why)) for name, *versions, why in found} == CAUSES


def test_the_summary_of_amqp_like_is_tested_for_each_known_refusal() -> None:
    """The table CAUSES in test_over_versions.py contains a sentence for each operation in version_changes.py that
    some versions of RabbitMQ refuse. With this table, test_amqp_like_names_the_operation_that_some_versions_refuse
    tests that the summary of `pytest --amqp-like` contains each sentence.
    """
    refusals = [each for each in vars(version_changes).values() if isinstance(each, VersionRefusal)]
    assert len(refusals) > 10
    for each in refusals:
        sentence = re.sub(r"\\\{\w+\\\}", ".+", re.escape(f"{each.deed} {each.verdict}"))
        assert [why for *_, why in CAUSES.values() if re.fullmatch(sentence, why)], each
