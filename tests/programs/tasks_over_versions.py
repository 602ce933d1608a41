"""Tests of Celery workers, as a team would write them; `pytest --amqp-like` runs them with several versions of
RabbitMQ.

with_older_celery.py runs them with releases of Celery and kombu from before and after two fixes:
https://github.com/celery/celery/pull/10287 and https://github.com/celery/kombu/issues/2469.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery import Celery
from kombu import Connection, Queue

app = Celery("orders", broker=os.environ.get("AMQP_URL"), backend="rpc://")
app.conf.task_queues = [Queue("orders", no_declare=True)]
app.conf.task_default_queue = "orders"


@app.task(name="add")
def add(left, right):
    return left + right


def declare(url: str, kind: str) -> None:
    with Connection(url) as connection:
        Queue("orders", queue_arguments={"x-queue-type": kind})(connection.channel()).declare()


@contextmanager
def worker(url: str) -> Iterator[None]:
    """Run a worker, and wait until it is ready. If it cannot start, the test fails with what it printed."""
    options = ["--pool", "solo", "--without-mingle", "--loglevel", "INFO"]
    command = [sys.executable, "-m", "celery", "-A", Path(__file__).stem, "worker", *options]
    place, environment = Path(__file__).parent, os.environ | {"AMQP_URL": url}
    with subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True) as running:
        printed = []
        try:
            for line in running.stderr:
                printed.append(line)
                if line.endswith(" ready.\n"):
                    break
                if "INTERNAL_ERROR" in line or "NOT_IMPLEMENTED" in line:  # it would retry forever
                    raise RuntimeError(f"the worker cannot start\n{''.join(printed)}")
            yield
        finally:
            running.kill()


def test_a_worker_consumes_from_a_quorum_queue(amqp_vhost):
    """A Celery worker can consume from a quorum queue of the embedded broker, even if the worker's settings do not
    mention the queue's type.
    """
    declare(amqp_vhost.url, "quorum")
    with worker(amqp_vhost.url):
        pass


def test_a_caller_gets_the_result_of_a_task(amqp_vhost):
    """On the embedded broker, a program that sends a Celery worker a task gets the result over the rpc:// backend."""
    declare(amqp_vhost.url, "classic")
    caller = Celery("caller", broker=amqp_vhost.url, backend="rpc://")
    with worker(amqp_vhost.url):
        result = caller.send_task("add", (20, 22), queue=Queue("orders", no_declare=True))
        assert result.get(timeout=60) == 42


def test_a_buffer_is_read_back(amqp_vhost):
    """On the embedded broker, a message that a program has put into kombu's SimpleBuffer can be read back from it."""
    with Connection(amqp_vhost.url) as connection, connection.SimpleBuffer("buffer") as buffer:
        buffer.put("one")
        assert buffer.get(timeout=60).payload == "one"
