"""Proxies and the management API."""

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.management import Management


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_a_proxy_gets_no_request_for_this_machine(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """mqtool ignores http_proxy for requests to 127.0.0.1 or localhost, so that no proxy gets the password."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with EmbeddedBroker(management_port=0) as broker:
        for host in ("127.0.0.1", "localhost"):
            url = broker.urls["http"].replace("127.0.0.1", host)
            assert Management(url, "guest", "guest").get("whoami")["name"] == "guest"
