"""The management API over https."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mqtool.errors import Unavailable
from mqtool.management import Management
from tests.tls import authority


class _Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_authority_that_is_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Another one in the environment neither replaces it nor is trusted besides."""
    ours = authority(tmp_path / "ours")
    certificate, other = ours.certificate, authority(tmp_path / "other").certificate
    with HTTPServer(("127.0.0.1", 0), _Api) as server:
        server.socket = ours.context().wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_port}"
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(variable, str(other))
        assert Management(url, "guest", "guest", ca=str(certificate)).get("overview") == {}
        monkeypatch.setenv(variable, str(certificate))
        with pytest.raises(Unavailable):
            Management(url, "guest", "guest", ca=str(other)).get("overview")
        assert Management(url, "guest", "guest").get("overview") == {}
        server.shutdown()
