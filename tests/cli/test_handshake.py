"""Connections that the other end closes during the handshake."""

import contextlib
import socket
import threading

import pytest
from pika import frame, spec

from tests.cli.shell import Result, Shell

_START = frame.Method(0, spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US")).marshal()


def send_to_server_that_answers(shell: Shell, answer: bytes, *options: str) -> Result:
    """Send a message to a server that reads the protocol header, answers this, and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def close_early() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):  # the client has closed it
                connection.recv(8)
                connection.sendall(answer)

        closing = threading.Thread(target=close_early)
        closing.start()
        sent = shell.run("mqtool", "send", "--url", f"amqp://127.0.0.1:{server.getsockname()[1]}", *options, "x")
        closing.join()
    return sent


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [("amqp0.9.1", b""), ("amqp0.9.1", _START), ("amqp1.0", b""), ("amqp1.0", b"AMQP\x03\x01\x00\x00")],
    ids=["0-9-1, immediately", "0-9-1, after Start", "1.0, immediately", "1.0, after the header"],
)
@pytest.mark.sampled(2)
def test_send_explains_a_connection_that_is_closed_during_the_handshake(
    lonely_shell: Shell, protocol: str, answer: bytes
) -> None:
    """If the server closes the connection during the handshake, `send` says that the broker may be starting or
    stopping, and exits with 69.
    """
    sent = send_to_server_that_answers(lonely_shell, answer, "--protocol", protocol)
    assert (sent.code, "closed the connection during the handshake" in sent.stderr) == (69, True), sent.stderr
    assert "the broker may be starting or stopping" in sent.stderr


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x46"], ids=["HTTP", "TLS"]
)
def test_send_says_that_a_server_of_another_protocol_is_not_an_amqp_broker(lonely_shell: Shell, answer: bytes) -> None:
    """If a server answers in HTTP or TLS, `send` says that the server is not an AMQP broker, names AMQP's usual port,
    and exits with 69.
    """
    sent = send_to_server_that_answers(lonely_shell, answer)
    assert (sent.code, "is not an AMQP 0-9-1 broker" in sent.stderr) == (69, True), sent.stderr
    assert "AMQP's is 5672" in sent.stderr
