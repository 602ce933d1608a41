"""The containers of a broker in Docker."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from docker import DockerClient
from docker.errors import NotFound

from mqtool.broker import docker
from mqtool.broker.docker import Docker
from mqtool.broker.state import Started


def test_another_container_that_is_removed_meanwhile_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """While mqtool asks the Docker daemon about all containers, a container that does not belong to mqtool's broker may
    be removed. mqtool still finds the running nodes of its broker.
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
