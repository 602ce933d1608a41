"""Requests to the management API over HTTPS: which CA mqtool trusts."""

from pathlib import Path

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.testing.authority import Authority, new_authority
from mqtool.errors import Unavailable
from mqtool.management import Management


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_given_ca_certificate_replaces_the_one_in_the_environment(
    amqp_tls: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """If mqtool is given a CA certificate, it trusts only this certificate when it verifies the management API's
    certificate. If none is given, mqtool trusts the CA certificate that REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names.
    """
    ours, other = str(amqp_tls.ca), str(new_authority(tmp_path).ca)
    with EmbeddedBroker(management_port=0, tls=amqp_tls.tls()) as broker:
        url = broker.urls["https"]
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, other)
        assert Management(url, "guest", "guest", ca=ours).get("whoami")["name"] == "guest"
        monkeypatch.setenv(variable, ours)
        with pytest.raises(Unavailable):
            Management(url, "guest", "guest", ca=other).get("whoami")
        assert Management(url, "guest", "guest").get("whoami")["name"] == "guest"
