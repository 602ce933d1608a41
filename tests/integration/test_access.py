"""Finding the management API of a broker that nobody has started here."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mqtool.amqp import TlsFiles, parse_addresses
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
