"""The configuration of a private RabbitMQ node."""

from pathlib import Path

import pytest

from mqtool.broker import node


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
        home = str(self.directory)
        settings = node.Node("n", home, home, home, 1, 2, 3, 4, listen=listen, stream_port=stream_port)
        node.launch(settings, [], lambda _: None)
        lines = (self.directory / "rabbitmq.conf").read_text().splitlines()
        return [line for line in lines if line.startswith("stream.")]


def test_a_node_listens_for_streams_if_asked_to(conf: Launch) -> None:
    """A private RabbitMQ node with a stream port listens on it and advertises it to clients."""
    assert conf(None) == []
    assert conf(6000) == [
        "stream.listeners.tcp.0 = 127.0.0.1:6000",
        "stream.advertised_host = 127.0.0.1",
        "stream.advertised_port = 6000",
    ]


def test_a_node_for_other_machines_advertises_its_address(conf: Launch) -> None:
    """A private RabbitMQ node for clients on other machines advertises the address that they use, in
    stream.advertised_host.
    """
    assert "stream.advertised_host = 192.0.2.7" in conf(6000, "192.0.2.7")


def test_the_stream_plugin_listens_only_on_loopback(conf: Launch) -> None:
    """If a private RabbitMQ node is started without a stream port while its stream plugin is still enabled, the plugin
    listens on loopback only.
    """
    conf(6000)

    assert "stream.listeners.tcp.0 = 127.0.0.1:5552" in conf(None)
