"""The configuration of a private RabbitMQ node."""

from pathlib import Path

import pytest

from mqtool.broker import node
from mqtool.broker.ports import is_free
from tests.epmd import KILL, epmd


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Launch":
    monkeypatch.setattr(node, "find_server", lambda: Path("/bin/true"))
    return Launch(tmp_path)


class Launch:
    """Launches a node in a directory, which ends at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, stream_port: int | None, listen: str | None = None) -> list[str]:
        """The settings for streams."""
        return [line for line in self.all(stream_port, listen) if line.startswith("stream.")]

    def all(self, stream_port: int | None, listen: str | None = None) -> list[str]:
        """All settings."""
        home = str(self.directory)
        settings = node.Node("n", home, home, home, 1, 2, 3, 4, listen=listen, stream_port=stream_port)
        node.launch(settings, [], lambda _: None)
        return (self.directory / "rabbitmq.conf").read_text().splitlines()


def test_a_node_with_a_stream_port_listens_on_it(conf: Launch) -> None:
    """A RabbitMQ node that mqtool starts with a stream port listens on this port, and advertises the port to
    clients.
    """
    assert conf(None) == []
    assert conf(6000) == [
        "stream.listeners.tcp.0 = 127.0.0.1:6000",
        "stream.advertised_host = 127.0.0.1",
        "stream.advertised_port = 6000",
    ]


def test_a_node_for_clients_on_other_machines_advertises_its_address(conf: Launch) -> None:
    """A RabbitMQ node that mqtool starts for clients on other machines advertises the address that they use, in
    stream.advertised_host.
    """
    assert "stream.advertised_host = 192.0.2.7" in conf(6000, "192.0.2.7")


def test_without_a_stream_port_the_stream_plugin_listens_only_on_the_loopback_address(conf: Launch) -> None:
    """If mqtool starts a RabbitMQ node without a stream port after an earlier start with one, the stream plugin, which
    is still enabled, listens only on the loopback address.
    """
    conf(6000)

    assert "stream.listeners.tcp.0 = 127.0.0.1:5552" in conf(None)


def test_a_private_node_collects_statistics_as_often_as_a_broker_in_docker(conf: Launch) -> None:
    """A RabbitMQ node that mqtool starts collects its statistics as often as a broker that mqtool starts in Docker:
    every second. Otherwise, counts in `list` and `top` would lag by five seconds, and `queue convert`, which waits
    for new counts, would take several times as long.
    """
    in_docker = (Path(node.__file__).parent / "image" / "rabbitmq.conf").read_text().splitlines()
    statistics = ("collect_statistics_interval", "management.rates_mode", "management.sample_retention_policies")
    private = {line for line in conf.all(None) if line.startswith(statistics)}
    assert "management.sample_retention_policies.basic.minute = 1" in private
    assert private == {line for line in in_docker if line.startswith(statistics)}


def test_epmd_is_stopped_even_if_the_program_epmd_is_not_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """When mqtool stops a RabbitMQ node that it has started, it also stops the node's epmd, Erlang's port mapper, even
    if the program `epmd` is not on the PATH. mqtool repeats the request to stop until epmd accepts it.
    """
    monkeypatch.setenv("PATH", "")
    with epmd([b"NO", b"NO", b"OK"]) as (port, asked):
        node.stop_epmd(port)
        assert is_free(port)
    assert asked == [KILL] * 3


def test_another_program_on_the_port_of_epmd_is_asked_only_once_to_stop() -> None:
    """When mqtool stops a RabbitMQ node, it asks the node's epmd (Erlang's port mapper) to stop, and repeats this
    request until epmd accepts it. If the answer shows that another program uses the port of epmd, mqtool does not
    repeat the request.
    """
    with epmd([b"SSH-2.0-"]) as (port, asked):
        node.stop_epmd(port)
    assert len(asked) == 1
