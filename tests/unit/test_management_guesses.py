"""Where a command looks for a broker's management API if its URL is not given."""

from typing import Any

import pytest

from mqtool import management
from mqtool.address import TlsFiles, parse_addresses
from mqtool.broker.state import Started
from mqtool.cli import access
from mqtool.cli.access import Access
from mqtool.errors import Unavailable

#: The record of a broker in Docker. It cannot be known whether this broker still runs.
PERHAPS = Started("default", "docker", "amqp://127.0.0.1", 0, "/nowhere", {"management": "http://127.0.0.1:7000"})


class Api:
    """A management API, in place of Management.

    Attributes:
        listeners: the listeners' ports that each URL's API shows; None if it shows no listeners to this user. No API
            answers at other URLs.
    """

    listeners: dict[str, list[int] | None]

    def __init__(self, url: str, *_: object) -> None:
        self.url = url

    def get(self, _path: str) -> dict[str, Any]:
        if self.url not in self.listeners:
            raise Unavailable(f"no management API answers at {self.url}")
        ports = self.listeners[self.url]
        return {} if ports is None else {"listeners": [{"port": port} for port in ports]}


@pytest.fixture(autouse=True)
def _apis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "Management", Api)
    monkeypatch.setattr(access, "running_at", lambda _: None)
    monkeypatch.setattr(Access, "_hint_at_management", lambda _: None)


def found(port: int) -> str:
    return Access(parse_addresses(f"amqp://127.0.0.1:{port}"), TlsFiles()).management().url


def test_the_api_that_broker_up_recorded_is_used_only_if_it_reports_the_brokers_port_or_5672(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If mqtool does not know whether a broker in Docker that `broker up` started is still running, a command first
    tries the management APIs on the usual ports, and uses one that reports a listener on the broker's port. If none of
    these does, the command uses the API that `broker up` recorded, but only if this API reports a listener on the
    broker's port or on 5672, the broker's port inside the container.
    """
    monkeypatch.setattr(access, "perhaps_running_at", lambda _: [PERHAPS])
    Api.listeners = {"http://127.0.0.1:15701": [5672], "http://127.0.0.1:7000": [5672, 15672]}
    assert found(5701) == "http://127.0.0.1:7000"
    Api.listeners["http://127.0.0.1:15672"] = [5701]
    assert found(5701) == "http://127.0.0.1:15672"
    Api.listeners = {"http://127.0.0.1:7000": [5702]}
    with pytest.raises(Unavailable):
        found(5701)


def test_a_management_api_that_shows_no_listeners_is_used_only_for_a_broker_on_the_default_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RabbitMQ's management API shows its listeners only to users with the tag monitoring or administrator. For any
    other user, a command uses the API on the usual port if the broker is on its default port. If the broker is on
    another port, the command ends with an error that says that the API may not belong to the broker.
    """
    Api.listeners = {"http://127.0.0.1:15672": None, "http://127.0.0.1:7000": [5672]}
    for recorded in ([], [PERHAPS]):
        monkeypatch.setattr(access, "perhaps_running_at", lambda _, recorded=recorded: recorded)
        assert found(5672) == "http://127.0.0.1:15672"
    Api.listeners = {"http://127.0.0.1:15701": None, "http://127.0.0.1:15672": None}
    with pytest.raises(Unavailable, match=r"at http://127\.0\.0\.1:15672 may not belong to the broker at"):
        found(5701)
