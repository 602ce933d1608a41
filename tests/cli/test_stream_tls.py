"""Streams over TLS, where the broker's certificate is verified."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from mqtool.broker import background, node, ports
from mqtool.broker.choice import BrokerKind
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.testing.authority import Authority
from tests.brokers import free_port, own_broker
from tests.cli.shell import Shell, wait_until


class Encrypted(NamedTuple):
    """A broker with TLS; its URL, and the options with its port for streams."""

    url: str
    port: tuple[str, str]


@pytest.fixture(params=["embedded", "node"])
def encrypted(request: pytest.FixtureRequest, amqp_tls: Authority, tmp_path: Path) -> Iterator[Encrypted]:
    if request.param == "embedded":
        with EmbeddedBroker(stream_port=0, tls=amqp_tls.tls()) as broker:
            assert broker.tls_url is not None
            yield Encrypted(broker.tls_url, ("--stream-port", str(urlsplit(broker.urls["stream/ssl"]).port)))
        return
    own_broker(BrokerKind.NODE)
    free = [free_port() for _ in range(7)]
    home = str(tmp_path)
    wanted = node.Node("mqtool-tls", home, home, f"{home}/data", *free[:4], stream_port=free[4])
    files = {"cacertfile": amqp_tls.ca, "certfile": amqp_tls.cert, "keyfile": amqp_tls.key}
    settings = [
        f"listeners.ssl.1 = 127.0.0.1:{free[5]}",
        f"stream.listeners.ssl.1 = 127.0.0.1:{free[6]}",
        f"stream.advertised_tls_port = {free[6]}",
        *(f"ssl_options.{name} = {path}" for name, path in files.items()),
    ]
    launched: list[background.Process] = []
    node.launch(wanted, settings, launched.append)
    try:
        wait_until(lambda: not any(map(ports.is_free, free[4:])), "the node to listen", 60)
        yield Encrypted(f"amqps://guest:guest@127.0.0.1:{free[5]}", ("--stream-port", str(free[6])))
    finally:
        background.terminate(launched, 30, again=1)
        node.stop_epmd(wanted.epmd_port)


def test_stream_commands_verify_the_brokers_certificate(
    lonely_shell: Shell, encrypted: Encrypted, amqp_tls: Authority
) -> None:
    """Over TLS, `send-stream` and `receive-stream` exchange messages if --tls-ca gives the certificate of the authority
    that signed the broker's certificate. Without --tls-ca, `send-stream` exits with 69, because the system does not
    trust this authority. With --tls-ca, `send-stream` refuses a URL without TLS.
    """
    trusted = ("-u", encrypted.url, "--tls-ca", str(amqp_tls.ca), *encrypted.port)
    sent = lonely_shell.run("mqtool", "send-stream", "-q", "s", "-l", *trusted, stdin="one\ntwo\n")
    assert (sent.code, "2 confirmed" in sent.stderr) == (0, True), sent.stderr
    assert lonely_shell.run("mqtool", "receive-stream", "-q", "s", "--raw", "-c2", *trusted).stdout == "one\ntwo\n"

    unknown = lonely_shell.run("mqtool", "send-stream", "-u", encrypted.url, *encrypted.port, "x")
    assert (unknown.stdout, unknown.code) == ("", 69)
    assert "certificate" in unknown.stderr
    in_clear = ("-u", encrypted.url.replace("amqps:", "amqp:"), *trusted[2:])
    assert "the broker's URL does not use TLS" in lonely_shell.run("mqtool", "send-stream", *in_clear, "x").stderr
