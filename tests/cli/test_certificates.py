"""Certificates of brokers and clients over TLS: which are accepted, and what the errors say about the others."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mqtool.broker.embedded.testing.authority import Authority
from tests.cli.shell import Shell


@contextmanager
def tls_server(context: ssl.SSLContext) -> Iterator[str]:
    """Do the TLS handshake of each client, as RabbitMQ does, with an alert if it fails. Yields a URL."""

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):  # until it is closed
            while True:
                client, _ = listening.accept()
                with client.dup() as plain:
                    with suppress(OSError), context.wrap_socket(client, server_side=True) as encrypted:
                        encrypted.recv(1)
                    with suppress(OSError):
                        plain.shutdown(socket.SHUT_WR)
                        while plain.recv(4096):  # so that no reset overtakes the alert
                            pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        yield f"amqps://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
@pytest.mark.parametrize("protocol", ["amqp0.9.1", "amqp1.0"])
def test_send_says_that_the_broker_does_not_accept_the_client_certificate(
    lonely_shell: Shell, amqp_tls: Authority, protocol: str, version: ssl.TLSVersion
) -> None:
    """If the broker does not accept the client's certificate, `send` says so, suggests --tls-cert, and exits with 77,
    both over TLS 1.2 and over TLS 1.3.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(amqp_tls.cert, amqp_tls.key)
    context.load_verify_locations(amqp_tls.client_cert)  # which did not sign the certificate
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    files = ("--tls-ca", str(amqp_tls.ca), "--tls-cert", str(amqp_tls.cert), "--tls-key", str(amqp_tls.key))
    with tls_server(context) as url:
        sent = lonely_shell.run("mqtool", "send", "--protocol", protocol, "-u", url, *files, "-q", "q", "x")
    assert sent.code == 77, sent.stderr
    assert "does not accept the client certificate" in sent.stderr
    assert "--tls-cert" in sent.stderr


def test_a_certificate_without_a_subject_alternative_name_is_not_trusted(
    lonely_shell: Shell, amqp_tls: Authority, tmp_path: Path
) -> None:
    """If a broker's certificate has the host name only as its common name, not as a subject alternative name, `send`
    says that the certificate cannot be trusted and exits with 69.
    """
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "key"]
    signed = ["-CA", str(amqp_tls.ca), "-CAkey", str(amqp_tls.ca.with_suffix(".key")), "-CAcreateserial"]
    for command in (
        ["req", "-new", *new, "-subj", "/CN=localhost", "-out", "request"],
        ["x509", "-req", "-in", "request", *signed, "-CAserial", "serial", "-days", "2", "-out", "cert"],
    ):
        subprocess.run(["openssl", *command], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with tls_server(context) as url:
        by_name = url.replace("127.0.0.1", "localhost")
        sent = lonely_shell.run("mqtool", "send", "-u", by_name, "--tls-ca", str(amqp_tls.ca), "-q", "q", "x")
    assert sent.code == 69, sent.stderr
    assert "cannot be trusted" in sent.stderr
