"""`pytest --amqp-like` names the tests of Celery workers that depend on the version of RabbitMQ, for two releases of
Celery.

The releases are celery 5.6.3 with kombu 5.6.2, and celery 5.7.0.
"""

import os
import re
import subprocess
import sys

VERSIONS = "3.10,4.2,4.3.5,4.3"
TRANSIENT = "declares a queue that is transient and not exclusive, which RabbitMQ 4.3.0 to 4.3.5 refuse"
PREFETCH = (
    "consumes from a quorum queue with one prefetch limit for the whole channel (global=true), which is refused; from "
    "RabbitMQ 4.3 on, each consumer gets this limit"
)
#: By test: the versions that it fails with, and why.
BEFORE = {
    "test_a_buffer_is_read_back": {"4.3.5": TRANSIENT},
    "test_a_caller_gets_the_result_of_a_task": {"4.3.5": TRANSIENT},
    "test_a_worker_consumes_from_a_quorum_queue": {"3.10, 4.2": PREFETCH, "4.3.5": TRANSIENT},
}
#: kombu 5.7 sets a limit for each consumer from RabbitMQ 4.0 on.
AFTER = {"test_a_worker_consumes_from_a_quorum_queue": {"3.10": PREFETCH}}


def start(python: str) -> subprocess.Popen:
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "mqtool.broker.embedded.pytest_plugin"]
    environment = os.environ | {"PYTHONPATH": os.environ["MQTOOL_SOURCE"]}
    return subprocess.Popen(
        [*command, "--amqp-like", VERSIONS, "tasks_over_versions.py"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def listed(running: subprocess.Popen) -> dict[str, dict[str, str]]:
    said, _ = running.communicate(timeout=160)
    print(said)
    found: dict[str, dict[str, str]] = {}
    for line in said.partition(" tests that depend on the version of RabbitMQ ")[2].splitlines():
        if test := re.match(r"tasks_over_versions\.py::(\w+): passes with ", line):
            found[test[1]] = of_test = {}
        elif failed := re.match(r"  fails with (.*): tasks_over_versions\.py:\d+: (.*)", line):
            of_test[failed[1]] = failed[2]
    return found


before, after = start(os.environ["OLDER_PYTHON"]), start(sys.executable)
assert listed(before) == BEFORE
assert listed(after) == AFTER
