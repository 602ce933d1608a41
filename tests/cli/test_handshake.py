"""Connections and channels that the other end closes while they are being opened."""

import contextlib
import socket
import threading

import pytest
from pika import frame, spec

from tests.cli.shell import Result, Shell

_START = frame.Method(0, spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US")).marshal()
_OPEN = (
    frame.Method(0, spec.Connection.Tune(channel_max=10, frame_max=1 << 17, heartbeat=0)).marshal()
    + frame.Method(0, spec.Connection.OpenOk()).marshal()
)
#: The class and the method of channel.open.
_OPENS_CHANNEL = b"\0\x14\0\x0a"
_CLOSE = frame.Method(1, spec.Channel.Close(reply_code=0, reply_text="", class_id=0, method_id=0)).marshal()


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


def test_receive_exits_if_the_broker_closes_a_channel_that_is_being_opened(lonely_shell: Shell) -> None:
    """If the broker replies to channel.open with a channel.close that has reply code 0 and no reply text, `receive`
    prints the reply code, and exits with 69.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(8)
                connection.sendall(_START)
                connection.recv(1 << 12)
                connection.sendall(_OPEN)
                while _OPENS_CHANNEL not in (data := connection.recv(1 << 12)) and data:
                    pass
                connection.sendall(_CLOSE)
                while connection.recv(1 << 12):
                    pass

        refusing = threading.Thread(target=refuse)
        refusing.start()
        result = lonely_shell.run("mqtool", "receive", "-u", f"amqp://127.0.0.1:{server.getsockname()[1]}")
        refusing.join()
    assert (result.code, result.stderr) == (69, "mqtool: the broker closed the connection: reply code 0\n")
