"""The management API over https."""

import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mqtool.errors import Unavailable
from mqtool.management import Management


class _Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _authority(directory: Path) -> tuple[Path, Path]:
    """A throwaway authority, which is the server as well."""
    directory.mkdir()
    certificate, key = directory / "ca.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_authority_that_is_named_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Another one in the environment neither replaces it nor is trusted besides."""
    certificate, key = _authority(tmp_path / "ours")
    other, _ = _authority(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), _Api) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
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
