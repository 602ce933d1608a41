"""A pytest plugin for aio-pika and aiormq, whose tests start RabbitMQ in Docker. It gives them the broker at localhost.

aiormq's archive lacks the file that defines the two fixtures.
"""

import importlib
from typing import Any

import pytest

client: Any = importlib.import_module("tests.docker_client")


class _RunningBroker:
    """Replaces the DockerClient of both libraries."""

    def __init__(self, host: object) -> None:
        """Ignore the host of the Docker daemon: there is none."""

    def run(self, image: str, ports: list[str], environment: object = None) -> Any:  # noqa: ARG002
        return client.ContainerInfo("none", {port: int(port.partition("/")[0]) for port in ports}, "127.0.0.1")

    def kill(self, container: str) -> None:
        """Leave the broker running: the suite did not start it."""

    remove = kill


client.check_docker_available = client.parse_docker_host
client.DockerClient = _RunningBroker


@pytest.fixture(scope="session")
def rabbitmq_container() -> Any:
    return _RunningBroker(None).run("", ["5672/tcp", "5671/tcp"])


@pytest.fixture(scope="session")
def amqp_direct_url() -> Any:
    return importlib.import_module("yarl").URL("amqp://guest:guest@127.0.0.1:5672//")
