"""Requests to the management API if the environment names an HTTP proxy."""

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.management import Management


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_requests_to_localhost_bypass_proxies(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """For requests to a management API at 127.0.0.1 or localhost, mqtool ignores the proxies that http_proxy and
    ALL_PROXY name, so that no proxy gets the password.
    """
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with EmbeddedBroker(management_port=0) as broker:
        for host in ("127.0.0.1", "localhost"):
            url = broker.urls["http"].replace("127.0.0.1", host)
            assert Management(url, "guest", "guest").get("whoami")["name"] == "guest"
