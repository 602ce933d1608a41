"""Finding the management API and the stream port of a broker that nobody has started here."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mqtool.amqp import TlsFiles, parse_addresses
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.cli import access
from mqtool.errors import Unavailable
from tests.brokers import TestBroker, on_any_broker


@on_any_broker
def test_the_api_beside_a_port_of_its_own(broker: TestBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of several brokers on one machine, each has its API as far from its AMQP port as usual; no other is used."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ours = access.Access(parse_addresses(broker.url), TlsFiles())
    monkeypatch.setattr(access, "_APART", (urlsplit(broker.management).port or 0) - broker.port)
    assert urlsplit(ours.management().url).port == urlsplit(broker.management).port
    other = access.Access(parse_addresses(f"amqp://guest:guest@127.0.0.1:{broker.port + 1}"), TlsFiles())
    with pytest.raises(Unavailable):
        other.management()


def test_the_usual_stream_port_may_be_that_of_another_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two embedded brokers differ in their cluster names, so that a stream is not written to the wrong one."""
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
