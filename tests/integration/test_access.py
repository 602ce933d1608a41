"""Finding the management API and the stream port of a broker that mqtool did not start."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mqtool.amqp import TlsFiles, parse_addresses
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.cli import access
from mqtool.errors import Unavailable
from tests.brokers import TestBroker, on_any_broker
from tests.proxy import Proxy


@on_any_broker
def test_the_port_of_the_management_api_is_derived_from_the_amqp_port(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """mqtool looks for a broker's management API on the port that is 10,000 above the AMQP port (15672 for 5672). If no
    management API answers there, mqtool raises Unavailable.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ours = access.Access(parse_addresses(broker.url), TlsFiles())
    monkeypatch.setattr(access, "_APART", (urlsplit(broker.management).port or 0) - broker.port)
    assert urlsplit(ours.management().url).port == urlsplit(broker.management).port
    monkeypatch.setattr(access, "_APART", 0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody can listen on its port
        other = access.Access(parse_addresses(f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}"), TlsFiles())
        with pytest.raises(Unavailable):
            other.management()


def test_a_management_api_behind_a_mapped_port_is_used_only_if_it_reports_the_brokers_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If ports are mapped, as Docker does it, the management API reports a listener on another port. mqtool uses the
    API that is 10,000 above the AMQP port nevertheless if it reports the cluster name that the broker reports over
    AMQP. If the names differ, mqtool raises Unavailable.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with EmbeddedBroker(management_port=0) as mine, EmbeddedBroker(management_port=0) as other:
        for broker, name in ((mine, "rabbit@one"), (other, "rabbit@two")):
            TestBroker("embedded", broker.url, str(broker.management_url)).api("PUT", "cluster-name", {"name": name})
        with Proxy(mine.port) as mapped:
            at = access.Access(parse_addresses(f"amqp://guest:guest@127.0.0.1:{mapped.port}"), TlsFiles())
            monkeypatch.setattr(access, "_APART", (urlsplit(str(mine.management_url)).port or 0) - mapped.port)
            assert at.management().url == mine.management_url
            monkeypatch.setattr(access, "_APART", (urlsplit(str(other.management_url)).port or 0) - mapped.port)
            with pytest.raises(Unavailable, match="may not belong to the broker"):
                at.management()


def test_mqtool_does_not_use_the_stream_port_of_another_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """mqtool compares the cluster name of the broker on the default stream port with that of the broker that it uses
    over AMQP. If the names differ, mqtool raises Unavailable instead of using the stream port.
    """
    with EmbeddedBroker(stream_port=0) as mine, EmbeddedBroker(stream_port=0) as other:
        to_mine = access.Access(parse_addresses(mine.url), TlsFiles())
        monkeypatch.setattr(access, "_STREAM", other.stream_port)
        with (
            pytest.raises(Unavailable, match=f"{other.stream_port} does not belong to the broker"),
            to_mine.stream_channel(None),
        ):
            pass
        monkeypatch.setattr(access, "_STREAM", mine.stream_port)
        with to_mine.stream_channel(None) as channel:
            assert channel.cluster_name == f"embedded-{mine.port}@localhost"
