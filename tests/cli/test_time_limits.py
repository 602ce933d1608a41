"""`--timeout` as a total time limit: it holds whatever a command waits for."""

import select
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from pika import frame, spec

from tests.brokers import on_any_broker
from tests.cli.shell import Shell

_START = frame.Method(0, spec.Connection.Start(server_properties={}, mechanisms="PLAIN", locales="en_US")).marshal()
_OPEN = (
    frame.Method(0, spec.Connection.Tune(channel_max=10, frame_max=1 << 17, heartbeat=0)).marshal()
    + frame.Method(0, spec.Connection.OpenOk()).marshal()
)


class _Silent(socketserver.BaseRequestHandler):
    """Accepts connections, and never answers."""

    def handle(self) -> None:
        while self.request.recv(1 << 12):
            pass


class _SilentOnceOpen(_Silent):
    """Opens AMQP 0-9-1 connections, and never answers on a channel."""

    def handle(self) -> None:
        self.request.recv(8)
        self.request.sendall(_START)
        self.request.recv(1 << 12)
        self.request.sendall(_OPEN)
        super().handle()


class _ByteByByte(socketserver.BaseRequestHandler):
    """Sends the first frame of an AMQP 1.0 login byte by byte, until the client gives up."""

    def handle(self) -> None:
        self.request.sendall(self.request.recv(8) + b"\0\1\0\0\2\1\0\0")
        with suppress(ConnectionError):
            while not select.select([self.request], [], [], 0.02)[0]:
                self.request.sendall(b"\0")


@contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    """Context manager: run a server; yield its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


AMQP_COMMANDS = [
    "receive -c 1",
    "receive-log direct info",
    "tap amq.topic #",
    "tap amq.topic # --no-reconnect",
    "worker",
    "rpc-server",
    "rpc-client 3",
]


@pytest.mark.parametrize(
    "command",
    [
        *AMQP_COMMANDS,
        "receive --protocol amqp1.0",
        "rpc-client 3 --protocol amqp1.0",
        "receive-stream --stream-port {port}",
        "offset receive --stream-port {port}",
        "wait",
    ],
)
@pytest.mark.sampled(4)
def test_a_command_times_out_while_a_server_does_not_answer(lonely_shell: Shell, command: str) -> None:
    """If a server accepts the connection but never answers, a command with `--timeout` exits with 124 once this time is
    up, even if the connection_timeout in the URL is longer.
    """
    with serving(_Silent) as port:
        words = command.format(port=port).split()
        url = f"amqp://127.0.0.1:{port}/?connection_timeout=60000"
        result = lonely_shell.run("mqtool", *words, "--timeout", "100ms", "--url", url)
    assert (result.code, "mqtool: timed out after 0.1 s" in result.stderr) == (124, True), result.stderr


@pytest.mark.parametrize("command", AMQP_COMMANDS)
@pytest.mark.sampled(3)
def test_a_command_times_out_while_the_broker_does_not_open_a_channel(lonely_shell: Shell, command: str) -> None:
    """If a broker opens the connection, but never replies to channel.open, a command with `--timeout` exits with 124
    once the time is up.
    """
    with serving(_SilentOnceOpen) as port:
        url = f"amqp://127.0.0.1:{port}"
        result = lonely_shell.run("mqtool", *command.split(), "--timeout", "100ms", "--url", url)
    assert (result.code, "mqtool: timed out after 0.1 s" in result.stderr) == (124, True), result.stderr


def test_a_login_over_amqp_1_0_that_arrives_byte_by_byte_has_a_time_limit(lonely_shell: Shell) -> None:
    """If the broker's part of an AMQP 1.0 login arrives byte by byte, and is not complete after twice the
    connection_timeout in the URL, `receive` exits with 69 and says so.
    """
    with serving(_ByteByByte) as port:
        url = f"amqp://127.0.0.1:{port}/?connection_timeout=150"
        result = lonely_shell.run("mqtool", "receive", "--protocol", "amqp1.0", "--url", url)
    assert (result.code, result.stderr.partition("\n")[0]) == (
        69,
        f"mqtool: 127.0.0.1:{port} accepted the connection, but did not complete the login of AMQP 1.0 within 0.3 s",
    )


@on_any_broker
def test_receive_times_out_while_nobody_reads_its_output(shell: Shell) -> None:
    """If `receive --timeout` prints to a pipe from which nobody reads, it exits with 124 once the time is up, and the
    messages that were not read stay in the queue.
    """
    shell.run("mqtool", "send", "-q", "q", "-l", stdin="one\ntwo\n")
    result = shell.script("mkfifo pipe; exec 3<>pipe; mqtool receive -q q --timeout 500ms >pipe")
    assert (result.code, "mqtool: timed out after 0.5 s" in result.stderr) == (124, True), result.stderr
    assert shell.run("mqtool", "receive", "-q", "q", "-c", "2", "--raw").stdout == "one\ntwo\n"
