"""The brokers that the suite runs on: each test that needs a broker runs on each of them, with an
empty virtual host.
"""

import base64
import functools
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import node, ports, state
from mqtool.broker.choice import STARTERS, BrokerKind
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Started, Wanted

IN_CI = bool(os.environ.get("CI"))
#: What the suite's embedded broker behaves like, whatever the default is: the RabbitMQ that tests compare it with.
LIKE = os.environ.get("MQTOOL_TEST_LIKE") or "3.10"
#: For tests of what mqtool itself does, and of no reply of the broker.
on_any_broker = pytest.mark.parametrize("broker", ["embedded"], indirect=True)
#: For tests with tens of megabytes, or thousands of messages.
large = pytest.mark.skipif(not IN_CI, reason="it takes seconds of computing: only where CI is set")
#: For the tests of single pictures in a browser, which take nearly half of the processor time of all tests.
pictures = pytest.mark.skipif(not IN_CI, reason="a browser draws for minutes: only in make test-page and CI")


@dataclass(frozen=True)
class TestBroker:
    """A broker under test.

    Attributes:
        kind: "rabbitmq" or "embedded".
        url: amqp://…, with a vhost of the test's own.
        management: where its management API is.
        version: RabbitMQ's, such as "3.10.8"; once it has answered.
        streams: where its stream port is, "" if it has none.
    """

    __test__ = False

    kind: str
    url: str
    management: str
    version: str = ""
    streams: str = ""

    @property
    def vhost(self) -> str:
        return urlsplit(self.url).path[1:]

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 5672

    def api(self, method: str, path: str, body: object = None) -> object:
        """Call the management API; returns the decoded answer, None where there is none."""
        request = urllib.request.Request(
            f"{self.management}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def with_fresh_vhost(self, name: str) -> "TestBroker":
        """The same broker, with a new vhost, in which guest may do all."""
        encoded = quote(name, safe="")
        deadline = time.monotonic() + 30
        while True:
            try:
                self.api("PUT", f"vhosts/{encoded}")
                break
            except urllib.error.URLError:  # the management plugin comes up a moment after AMQP
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        return TestBroker(self.kind, f"{self.url}/{encoded}", self.management, _version_of(self), self.streams)

    def emptied(self) -> bool:
        """Delete what a test has left in the vhost; whether nothing is left, so that another test may have it.

        A vhost costs RabbitMQ 40 ms of computing; what a test leaves, a few.
        """
        try:
            left: Any = self.api("GET", f"definitions/{self.vhost}")
            if any(each["type"] == "x-delayed-message" for each in left["exchanges"]):
                return False  # what it holds back would go to the next test's exchange of its name
            for kind in ("queues", "exchanges"):
                for each in left[kind]:
                    self.api("DELETE", f"{kind}/{self.vhost}/{quote(each['name'], safe='')}")
            left = self.api("GET", f"definitions/{self.vhost}")
            left["exclusive"] = self.api("GET", f"queues/{self.vhost}")
        except urllib.error.HTTPError:  # somebody else is at it, such as a client that is still closing
            return False
        return not any(value for value in left.values() if isinstance(value, list))

    def differs_since(self, version: str, why: str) -> bool:  # noqa: ARG002
        """Whether it is, or behaves like, a RabbitMQ from this version on, which differs; the marker's way to say `if`.

        Args:
            why: what is different there, for whoever reads.
        """
        return _numbers(self.version) >= _numbers(version)

    def drop_vhost(self) -> None:
        self.api("DELETE", f"vhosts/{self.vhost}")


@functools.cache
def _version_of(broker: TestBroker) -> str:
    overview = broker.api("GET", "overview")
    assert isinstance(overview, dict)
    return str(overview["rabbitmq_version"])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def from_environment() -> TestBroker | None:
    """The RabbitMQ that MQTOOL_TEST_URL names.

    Its management API is at MQTOOL_TEST_MANAGEMENT, its stream port at MQTOOL_TEST_STREAMS (rabbitmq-stream://HOST:PORT).
    """
    url = os.environ.get("MQTOOL_TEST_URL")
    if not url:
        return None
    host = urlsplit(url).hostname or "localhost"
    management = os.environ.get("MQTOOL_TEST_MANAGEMENT", f"http://{host}:15672")
    return TestBroker("rabbitmq", url.rstrip("/"), management, streams=os.environ.get("MQTOOL_TEST_STREAMS", ""))


def docker_image() -> str:
    """Return the RabbitMQ image to build upon; skip the test if none is configured, because it would have to be
    downloaded.
    """
    image = os.environ.get("MQTOOL_TEST_IMAGE")
    if not image or not STARTERS[BrokerKind.DOCKER].is_available():
        pytest.skip("MQTOOL_TEST_IMAGE names no image of RabbitMQ for Docker, or its daemon does not answer")
    return image


def own_broker(kind: BrokerKind) -> None:
    """For tests that start and stop a broker of this kind themselves: skip them if it is not installed, or outside of
    CI.
    """
    if not STARTERS[kind].is_available():
        skip_or_fail("no rabbitmq-server is installed")
    if kind is BrokerKind.NODE:
        only_in_ci("to start and stop RabbitMQ takes half a minute")


def only_in_ci(why: str) -> None:
    """Skip a test that takes long outside of CI; other tests cover its parts."""
    if not IN_CI:
        pytest.skip(f"{why}: only where CI is set")


def skip_or_fail(reason: str) -> None:
    """Skip the test if a broker is missing; in CI, fail it."""
    if IN_CI:
        pytest.fail(f"{reason}; CI must have it")
    pytest.skip(reason)


def speaks_amqp10(broker: TestBroker) -> bool:
    """True unless the broker answers the AMQP 1.0 header with that of another protocol."""
    header = b"AMQP\x03\x01\x00\x00"
    with socket.create_connection(("127.0.0.1", broker.port), 10) as connection:
        connection.sendall(header)
        return connection.recv(len(header)) == header


def skip_without_amqp10(broker: TestBroker) -> None:
    """Skip the test on a broker that does not speak AMQP 1.0."""
    if not speaks_amqp10(broker):
        pytest.skip(f"{broker.kind} {broker.version} does not speak AMQP 1.0")


def rabbitmqctl(started: Started, *words: str) -> str:
    """Return the output of rabbitmqctl for a node that the suite has started."""
    server = node.find_server()
    assert server is not None
    environment = node.environment(node.nodes_of(started)[0], for_tools=True)
    command = [str(server.with_name("rabbitmqctl")), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@contextmanager
def impatient_node(timeout: int) -> Iterator[str]:
    """The URL of a RabbitMQ node of a test's own, with this consumer timeout in milliseconds.

    RabbitMQ up to 4.2 looks for late consumers once a minute; this node does so each `timeout`.
    """
    own_broker(BrokerKind.NODE)
    name = f"impatient-{uuid.uuid4().hex[:8]}"
    broker = Restartable(BrokerKind.NODE, name)
    try:
        started = state.load(name)
        assert started is not None
        keys = "[consumer_timeout, channel_tick_interval]"
        rabbitmqctl(started, "eval", f"[application:set_env(rabbit, Key, {timeout}) || Key <- {keys}].")
        yield broker.url
    finally:
        broker.stop()


class Restartable:
    """A broker of a test's own, to stop, kill and start again on the same port with the same data."""

    def __init__(self, kind: BrokerKind, name: str, like: str | None = None) -> None:
        self.kind = kind
        self._like = like
        self._starter = STARTERS[kind]
        self._name = name
        self._launch(ports.free_port())
        self.url = self._started.url

    def start(self) -> None:
        self._launch(urlsplit(self.url).port)

    @property
    def data(self) -> str:
        """The directory of its messages."""
        return str(self._started.details["data"])

    def queues(self) -> list[Any]:
        """The queues of the virtual host /, as the management API lists them."""
        return list(self._started.management.items("queues/%2F"))

    def stop(self) -> None:
        self._starter.stop(self._started)

    def kill(self) -> None:
        """kill -9: nobody gets to write anything to disk."""
        os.killpg(self._started.pid, signal.SIGKILL)
        os.waitpid(self._started.pid, 0)

    def _launch(self, port: int | None) -> None:
        self._started = self._starter.start(Wanted(self._name, port, like=self._like))
        connect_within(90, lambda: Connection(parse_addresses(self._started.url))).close()
