"""TLS on the embedded broker, and the addresses that it listens on."""

import logging
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest
from pika.exceptions import AMQPError

from mqtool.broker.embedded import EmbeddedBroker, Tls
from mqtool.broker.embedded.sockets import listener
from mqtool.broker.embedded.testing.authority import Authority
from mqtool.management import Management
from tests.brokers import has_ipv6
from tests.protocol.raw_stream import RawStream


@pytest.fixture(scope="module")
def broker(amqp_tls: Authority) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(management_port=0, stream_port=0, recording=True, tls=amqp_tls.tls()) as broker:
        yield broker


@contextmanager
def connection(
    broker: EmbeddedBroker, authority: Authority, *, certificate: bool = False
) -> Iterator[pika.BlockingConnection]:
    assert broker.tls_url is not None
    settings = pika.URLParameters(broker.tls_url)
    settings.ssl_options = pika.SSLOptions(authority.context(client_certificate=certificate), "127.0.0.1")
    opened = pika.BlockingConnection(settings)
    yield opened
    if opened.is_open:
        opened.close()


def port_of(broker: EmbeddedBroker, protocol: str) -> tuple[str, int]:
    port = urlsplit(broker.urls[protocol]).port
    assert port is not None
    return "127.0.0.1", port


def test_clients_of_every_protocol_can_log_in_over_tls(broker: EmbeddedBroker, amqp_tls: Authority) -> None:
    """Over TLS, clients can log in with AMQP, HTTP (management API) and the stream protocol. An AMQP client can receive
    a message of 1 MB.
    """
    api = Management(broker.urls["https"], "guest", "guest", ca=str(amqp_tls.ca))
    with connection(broker, amqp_tls) as opened:
        channel = opened.channel()
        channel.queue_declare("q")
        channel.basic_publish("", "q", b"x" * 1_000_000)
        assert len(channel.basic_get("q")[2]) == 1_000_000
        with pika.BlockingConnection(pika.URLParameters(broker.url)):
            assert sorted(each.get("ssl_protocol", "") for each in api.items("connections")) == ["", "tlsv1.3"]
        assert broker.faults.cut_connections() >= 1
        with pytest.raises(AMQPError):
            channel.queue_declare("q")
    stream = RawStream(*port_of(broker, "stream/ssl"))
    stream.socket = amqp_tls.context().wrap_socket(stream.socket, server_hostname="localhost")
    stream.log_in()
    stream.close()
    listening = {each["protocol"]: each["port"] for each in api.get("overview")["listeners"]}
    assert {"amqp", "amqp/ssl", "http", "https", "stream", "stream/ssl"} == set(listening)
    assert api.get(f"health/checks/port-listener/{listening['amqp/ssl']}")["status"] == "ok"


def test_a_failed_tls_handshake_is_logged_in_one_line(
    broker: EmbeddedBroker, amqp_tls: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """If a client does not speak TLS, or does not trust the broker's certificate, the broker logs one line, and other
    clients can still connect.
    """
    with caplog.at_level(logging.WARNING), socket.create_connection(port_of(broker, "amqp/ssl"), timeout=60) as plain:
        plain.sendall(b"AMQP\x00\x00\x09\x01")
        assert plain.recv(1) == b""
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(broker.urls["https"], timeout=60)
        with connection(broker, amqp_tls):
            pass
    said = [record.getMessage() for record in caplog.records if record.name == "mqtool.broker.embedded"]
    # The broker is shared: a client of an earlier test may have been refused, too ("and 1 more like this").
    assert [line.partition(" (and ")[0] for line in said] == [
        "TLS handshake failed: the client does not speak TLS",
        "TLS handshake failed: tlsv1 alert unknown ca",
    ]


def test_unfinished_tls_handshakes_are_limited_per_address(
    amqp_tls: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker limits the number of connections from one address that have not finished their TLS handshake. If the
    limit is exceeded, the broker closes the oldest of these connections. The newest one can still finish its
    handshake, and other clients can connect.
    """
    monkeypatch.setattr(listener, "stranger_limit", lambda: 10)
    with EmbeddedBroker(tls=amqp_tls.tls()) as broker, ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(port_of(broker, "amqp/ssl"), timeout=60)) for _ in range(30)
        ]
        assert [client.recv(1) for client in clients[:25]] == [b""] * 25
        with connection(broker, amqp_tls):
            pass
        late = stack.enter_context(amqp_tls.context().wrap_socket(clients[-1], server_hostname="localhost"))
        late.sendall(b"AMQP\x00\x00\x09\x01")
        assert late.recv(1) == b"\x01"


def test_a_tls_handshake_has_a_time_limit(amqp_tls: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker disconnects a client that does not finish the TLS handshake within the time limit."""
    monkeypatch.setattr(listener, "_HANDSHAKE_SECONDS", 0.05)
    with (
        EmbeddedBroker(tls=amqp_tls.tls()) as broker,
        socket.create_connection(port_of(broker, "amqp/ssl"), timeout=60) as client,
    ):
        assert client.recv(1) == b""


def test_a_client_certificate_can_be_required(amqp_tls: Authority) -> None:
    """If the broker requires client certificates, a client can connect only with a certificate. When the broker is
    stopped, it sends connection.close to a client that has connected in this way, and stops within 5 seconds.
    """
    with EmbeddedBroker(tls=amqp_tls.tls(client_certificates=True)) as broker:
        with pytest.raises(AMQPError), connection(broker, amqp_tls):
            pass
        with connection(broker, amqp_tls, certificate=True) as opened:
            began = time.monotonic()
            broker.stop()
            assert time.monotonic() - began < 5
            with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="shutdown"):
                opened.process_data_events(60)


@pytest.mark.parametrize(
    ("cert", "key", "why"),
    [
        ("missing.pem", "broker.key", "cannot read the TLS file .*missing.pem: No such file"),
        ("broker.pem", "client.key", "the key .*client.key does not match the certificate .*broker.pem"),
        ("settings", "broker.key", "settings is not in PEM form"),
        ("broker.key", "broker.key", "cannot use the TLS files"),
    ],
)
def test_invalid_tls_files_are_refused_with_the_reason(amqp_tls: Authority, cert: str, key: str, why: str) -> None:
    """If a TLS file is missing or not in PEM form, or if the key does not match the certificate,
    EmbeddedBroker.start() raises an OSError that gives the reason.
    """
    with pytest.raises(OSError, match=why):
        EmbeddedBroker(tls=Tls(amqp_tls.ca.parent / cert, amqp_tls.ca.parent / key)).start()


def test_an_encrypted_tls_key_is_refused(amqp_tls: Authority, tmp_path: Path) -> None:
    """If the TLS key is encrypted, EmbeddedBroker.start() raises OSError instead of asking for a passphrase."""
    encrypted = tmp_path / "key"
    encrypted.write_bytes(amqp_tls.key.read_bytes().replace(b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY"))
    with pytest.raises(OSError, match="is encrypted"):
        EmbeddedBroker(tls=Tls(amqp_tls.cert, encrypted)).start()


@pytest.mark.parametrize("host", ["::", "localhost"])
def test_one_port_serves_ipv4_and_ipv6(host: str) -> None:
    """A broker with the host `::` or `localhost` listens for IPv4 and IPv6 on the same port. Starting a second broker
    on this port with the host `::1` raises OSError.
    """
    names = {address[0] for _, _, _, _, address in socket.getaddrinfo("localhost", 1)}
    if not has_ipv6() or (host == "localhost" and "::1" not in names):
        pytest.skip("there is no IPv6 here")
    with EmbeddedBroker(host=host, management_port=0) as broker:
        for protocol in ("amqp", "http"):
            _, port = port_of(broker, protocol)
            for address in ("127.0.0.1", "::1"):
                socket.create_connection((address, port), timeout=60).close()
        with broker.faults.refuse_connections():
            for address in ("127.0.0.1", "::1"):
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((address, broker.port), timeout=60)
        with pika.BlockingConnection(pika.URLParameters(broker.url)):
            pass
        with pytest.raises(OSError, match="in use"):
            EmbeddedBroker(broker.port, host="::1").start()


def test_the_url_of_an_ipv6_address_has_brackets() -> None:
    """EmbeddedBroker(host="::1").url contains the address in brackets, and pika can connect to this URL."""
    if not has_ipv6():
        pytest.skip("there is no IPv6 here")
    with EmbeddedBroker(host="::1") as broker, pika.BlockingConnection(pika.URLParameters(broker.url)):
        assert broker.url.startswith("amqp://guest:guest@[::1]:")
