"""The brokers under test. Each test that needs a broker runs on each of them, in an empty virtual host."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import node, ports, state
from mqtool.broker.choice import STARTERS, BrokerKind
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import Started, Wanted

IN_CI = bool(os.environ.get("CI"))
#: The weekly run (`make test-all`) runs all cases of tests marked `sampled`, tests marked `weekly`, and more examples.
ALL_CASES = bool(os.environ.get("ALL_CASES"))
#: True if RabbitMQ may pause for more than a second before it delivers a message, because its machine is busy.
MAY_PAUSE = IN_CI or "MQTOOL_TEST_URL" in os.environ
#: The RabbitMQ version that the embedded broker of the tests behaves like: that of the RabbitMQ under test.
LIKE = os.environ.get("MQTOOL_TEST_LIKE") or "3.10"
#: Runs a test on the embedded broker only, for tests whose result does not depend on the broker.
on_any_broker = pytest.mark.parametrize("broker", ["embedded"], indirect=True)
#: Marks tests that take more than half a second of CPU time, for example because they run many commands. Together, they
#: would take a fifth of the time of `make test`.
large = pytest.mark.skipif(not IN_CI, reason="takes much CPU time; runs only if CI is set")
#: Marks tests that take a minute and that a change hardly ever breaks. They also run if pytest is given their file.
weekly = pytest.mark.sampled(0)
#: Marks the tests of single pictures in a browser, which take nearly half of the CPU time of all tests.
pictures = pytest.mark.skipif(not IN_CI, reason="takes minutes in a browser; runs only in make test-page and CI")


Answer = TypeVar("Answer")


def until_readable(call: Callable[[], Answer]) -> Answer:
    """Call a function that uses the management API, and return its result.

    All tests share RabbitMQ. Retry while a queue of another test has arguments nested too deeply for Python's json
    module.
    """
    deadline = time.monotonic() + 60
    while True:
        try:
            return call()
        except RecursionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


@dataclass(frozen=True)
class TestBroker:
    """A broker under test.

    Attributes:
        kind: "rabbitmq" or "embedded".
        url: amqp://…, with the test's own virtual host.
        management: the URL of its management API.
        version: RabbitMQ's version, such as "3.10.8"; "" until it has been requested.
        streams: the URL of its stream port; "" if it has none.
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
        """Call the management API. Return the decoded body of the response; None if it is empty."""
        request = urllib.request.Request(
            f"{self.management}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
        )

        def call() -> object:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
            return json.loads(text) if text else None

        return until_readable(call)

    def with_fresh_vhost(self, name: str) -> "TestBroker":
        """Return this broker with a new virtual host, in which guest has all permissions."""
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
        """Delete what a test has left in the virtual host. Return True if another test can use it, because it is empty.

        To create a virtual host, RabbitMQ needs 40 ms of CPU time. Deleting what a test has left takes only a few.
        """
        try:
            left: Any = self.api("GET", f"definitions/{self.vhost}")
            if any(each["type"] == "x-delayed-message" for each in left["exchanges"]):
                return False  # the messages it holds back would go to the next test's exchange of this name
            for kind in ("queues", "exchanges"):
                for each in left[kind]:
                    self.api("DELETE", f"{kind}/{self.vhost}/{quote(each['name'], safe='')}")
            left = self.api("GET", f"definitions/{self.vhost}")
            left["exclusive"] = self.api("GET", f"queues/{self.vhost}")
        except urllib.error.HTTPError:  # something is in use, for example by a client that is still closing
            return False
        return not any(value for value in left.values() if isinstance(value, list))

    def differs_since(self, version: str, why: str) -> bool:  # noqa: ARG002
        """Return True if this is RabbitMQ `version` or newer. For a whole test, use the marker of the same name.

        Args:
            why: what changed in this version; only for whoever reads the test.
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
    """Return the RabbitMQ at MQTOOL_TEST_URL; None if that is not set.

    Its management API is at MQTOOL_TEST_MANAGEMENT, and its stream port at MQTOOL_TEST_STREAMS
    (rabbitmq-stream://HOST:PORT).
    """
    url = os.environ.get("MQTOOL_TEST_URL")
    if not url:
        return None
    host = urlsplit(url).hostname or "localhost"
    management = os.environ.get("MQTOOL_TEST_MANAGEMENT", f"http://{host}:15672")
    return TestBroker("rabbitmq", url.rstrip("/"), management, streams=os.environ.get("MQTOOL_TEST_STREAMS", ""))


def docker_image() -> str:
    """Return the RabbitMQ image to build on. Skip the test if none is configured: Docker would download one."""
    image = os.environ.get("MQTOOL_TEST_IMAGE")
    if not image or not STARTERS[BrokerKind.DOCKER].is_available():
        pytest.skip("MQTOOL_TEST_IMAGE does not name a RabbitMQ image, or the Docker daemon does not answer")
    return image


def depth(broker: TestBroker, queue: str) -> int:
    """How many ready messages a queue has."""
    with Connection(parse_addresses(broker.url)) as connection:
        return connection.channel().depth_of(queue)


def free_port() -> int:
    """Return a free port that no other test of this run gets, on any worker.

    Other workers cannot see that a port is taken while its broker is starting or restarting.
    """
    claims = Path(os.environ["MQTOOL_SUITE_STATE"]) / "ports"
    claims.mkdir(exist_ok=True)
    while True:
        port = ports.free_port()
        with suppress(FileExistsError):
            for claimed in (port, port - 1):  # the lower one is for TLS
                (claims / str(claimed)).touch(exist_ok=False)
            return port


def own_broker(kind: BrokerKind) -> None:
    """Skip a test that starts its own broker if this kind is not installed. A RabbitMQ node is started only in CI."""
    if not STARTERS[kind].is_available():
        skip_or_fail("rabbitmq-server is not installed")
    if kind is BrokerKind.NODE:
        only_in_ci("starting and stopping RabbitMQ takes half a minute")


def only_in_ci(why: str) -> None:
    """Skip a slow test unless it runs in CI. Other tests cover its parts."""
    if not IN_CI:
        pytest.skip(f"{why}; runs only if CI is set")


def has_ipv6() -> bool:
    """Return True if a server can listen at ::1. In many containers, it cannot, although the kernel supports IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def skip_or_fail(reason: str) -> None:
    """Skip the test, because a broker is missing; in CI, fail the test."""
    if IN_CI:
        pytest.fail(f"{reason}; CI requires it")
    pytest.skip(reason)


def speaks_amqp10(broker: TestBroker) -> bool:
    """Return True unless the broker answers the AMQP 1.0 protocol header with another protocol's header."""
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
    """Start a RabbitMQ node with this consumer timeout, in milliseconds, and yield its URL.

    RabbitMQ up to 4.2 checks for late acknowledgements once a minute; this node checks once per `timeout`.
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
    """A test's own broker, which can be stopped, killed and started again on the same port with the same data."""

    def __init__(self, kind: BrokerKind, name: str, like: str | None = None) -> None:
        self.kind = kind
        self._like = like
        self._starter = STARTERS[kind]
        self._name = name
        self._launch(free_port())
        ports.keep(self._started)
        self.url = self._started.url

    def start(self) -> None:
        self._launch(urlsplit(self.url).port)

    @property
    def data(self) -> str:
        """The broker's data directory."""
        return str(self._started.details["data"])

    def queues(self) -> list[Any]:
        """The queues of the virtual host /, as the management API lists them."""
        return list(self._started.management.items("queues/%2F"))

    def stop(self) -> None:
        self._starter.stop(self._started)

    def kill(self) -> None:
        """Kill the broker with SIGKILL, so that it cannot write anything else to disk."""
        os.killpg(self._started.pid, signal.SIGKILL)
        os.waitpid(self._started.pid, 0)

    def _launch(self, port: int | None) -> None:
        self._started = self._starter.start(Wanted(self._name, port, like=self._like))
        connect_within(90, lambda: Connection(parse_addresses(self._started.url))).close()
