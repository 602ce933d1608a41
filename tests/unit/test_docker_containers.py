"""The containers of a broker in Docker."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import pytest
from docker import DockerClient
from docker.errors import NotFound

from mqtool.broker import docker
from mqtool.broker.docker import Docker
from mqtool.broker.state import Started


def test_mqtool_finds_its_brokers_nodes_even_if_another_container_is_removed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a container that does not belong to mqtool's broker is removed while mqtool is asking the Docker daemon about
    all containers, mqtool still finds the running nodes of its broker.
    """
    client = DockerClient(base_url="tcp://127.0.0.1:9", version="1.44")
    with closing(client):

        def details(container: str) -> dict[str, Any]:
            if container == "removed":
                raise NotFound("No such container: removed")
            return {"Id": container, "Name": "/mqtool-default", "State": {"Status": "running"}}

        @contextmanager
        def daemon() -> Iterator[DockerClient]:
            yield client

        monkeypatch.setattr(client.api, "containers", lambda **_: [{"Id": "removed"}, {"Id": "own"}])
        monkeypatch.setattr(client.api, "inspect_container", details)
        monkeypatch.setattr(docker, "daemon_of_this_machine", daemon)
        started = Started("default", "docker", "amqp://127.0.0.1", 0, "/nowhere", {"containers": ["mqtool-default"]})
        assert Docker(print).running(started) == 1


@pytest.mark.parametrize(
    ("name", "status", "directory", "runs"),
    [
        ("mqtool-default", "running", "/mine", True),
        ("mqtool-default", "paused", "/mine", True),
        ("mqtool-default", "exited", "/mine", False),
        ("mqtool-default", "running", "/somebody/elses", False),
        ("mqtool-other", "running", "/mine", False),
    ],
)
def test_a_container_of_another_users_broker_is_not_mistaken_for_that_of_mqtools_broker(
    monkeypatch: pytest.MonkeyPatch, name: str, status: str, directory: str, runs: bool
) -> None:
    """mqtool considers its broker in Docker to be running only if a container with the broker's name, started from
    the broker's directory, is running or paused. A container of the same name that was started from another directory
    belongs to another user's broker.
    """
    container = Namespace(name=name, status=status, labels={"mqtool.directory": directory})
    client = Namespace(containers=Namespace(list=lambda **_: [container]))
    monkeypatch.setattr(docker, "daemon_of_this_machine", lambda _patience: nullcontext(client))
    started = Started("default", "docker", "amqp://127.0.0.1", 0, "/mine", {"containers": ["mqtool-default"]})
    assert Docker(print).runs(started, 0) is runs
