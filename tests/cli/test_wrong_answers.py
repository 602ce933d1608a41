"""Web servers at the address of the management API that do not answer as the API of a broker does."""

import json
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.brokers import on_any_broker
from tests.cli.shell import Result, Shell

NOWHERE = "amqp://guest:guest@127.0.0.1:1"
BINDING = {"source": "x", "destination": "q", "destination_type": "queue", "routing_key": "k", "arguments": {}}
EXCHANGE = {"name": "x", "type": "direct", "durable": True, "auto_delete": False, "internal": False, "arguments": {}}


@contextmanager
def serving(bodies: Mapping[str, Any], status: int = 200, location: str = "") -> Iterator[tuple[str, list[str]]]:
    """Run a web server that answers with JSON, by the first word of the path below /api/; otherwise with [].

    Yields:
        its URL, and the methods of the requests that it has received.
    """
    requests: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def answer(self) -> None:
            requests.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            name = self.path.removeprefix("/api/").partition("?")[0].partition("/")[0]
            body = json.dumps(bodies.get(name, [])).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if location:
                self.send_header("Location", f"{location}{self.path}&token=s3cr3t")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_of_the_management_api_are_not_followed(lonely_shell: Shell, status: int) -> None:
    """If the management API redirects a request, mqtool does not follow the redirect: the other server would receive
    the content of the request, such as the password of a new user, and its response could not be trusted. mqtool
    exits with 69, and the error names the other server, without credentials or query string.
    """
    with serving({}) as (other, requests):
        login = other.replace("://", "://admin:s3cr3t@")
        with serving({}, status, f"{login}/prefix") as (url, _):
            for command in ("topology", "vhost add v", "user delete bob --yes", "user password bob --password-file -"):
                words = ("mqtool", *command.split(), "-u", NOWHERE, "--management", url)
                result = lonely_shell.run(*words, stdin="geheim")
                assert result.code == 69
                assert result.stderr == (
                    f"mqtool: the management API at {url} redirects to '{other}/prefix'\n"
                    "hint: if that is the broker's management API, use that address with --management\n"
                )
    assert requests == []


@pytest.mark.parametrize(
    ("answer", "says"), [(b"", "connection reset by peer"), (b"AMQP\x00\x00\x09\x01\r\n", "it does not speak HTTP")]
)
@on_any_broker
def test_a_server_at_the_management_apis_address_that_does_not_speak_http_is_reported(
    shell: Shell, answer: bytes, says: str
) -> None:
    """If a server at the management API's address resets the connection, or does not answer in HTTP, mqtool exits
    with 69, and the error says which of the two happened.
    """

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):  # closed: the test is over
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1)
                    connection.sendall(answer)
                    if not answer:  # with this option, closing resets the connection
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    else:
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):
                            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = shell.run("mqtool", "list", "users", "--management", url)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert (result.code, result.stderr.partition(";")[0]) == (69, f"mqtool: no management API answers at {url}: {says}")


@pytest.mark.parametrize("beginning", [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nServer: "])
@on_any_broker
def test_a_nagios_check_ends_if_the_management_api_sends_its_headers_byte_by_byte(
    shell: Shell, beginning: bytes
) -> None:
    """If the server at the management API's address never completes the status line or the headers, but keeps sending
    bytes of them, `doctor --format nagios` ends with CRITICAL.
    """

    def drip(listener: socket.socket) -> None:
        with suppress(OSError):  # closed: the test is over, or the client has gone
            while True:
                connection, _ = listener.accept()
                with connection, suppress(ConnectionError):
                    connection.recv(65536)
                    connection.sendall(beginning)
                    while not select.select([connection], [], [], 0.1)[0]:  # until the client closes it
                        connection.sendall(b"0")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = shell.run("mqtool", "doctor", "--format", "nagios", "--management", url)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    says = f"RABBITMQ CRITICAL - no management API answers at {url}: it takes too long\n"
    assert (result.code, result.stdout) == (2, says)


def refused(result: Result, code: int = 69) -> str:
    """Assert that a command has refused an answer of the API; return the last error."""
    assert result.code == code, result.stderr
    assert "bug in mqtool" not in result.stderr
    return result.stderr.rpartition("mqtool: ")[2].partition("\n")[0]


@pytest.mark.parametrize(
    ("command", "answers", "says"),
    [
        ("list users", {"users": [{"tags": []}]}, 'an object without "name"'),
        ("list users", {"users": [1]}, "something that is not an object"),
        ("list users", {"users": {}}, "something that is not a list"),
        ("list vhosts", {"vhosts": [{"name": {}}]}, 'an object whose "name" is not text'),
        (
            "list plugins",
            {"nodes": [{"name": "n", "applications": 1.5}]},
            'an object whose "applications" is not a list',
        ),
        ("list plugins", {"nodes": [{"name": "n", "applications": [{}]}]}, 'an object without "name"'),
        (
            "list plugins",
            {"nodes": [{"name": "n", "applications": [], "enabled_plugins": 1}]},
            'whose "enabled_plugins" is not a list',
        ),
        (
            "plugin ls",
            {"nodes": [{"name": "n", "applications": [], "enabled_plugins": [None]}]},
            '"enabled_plugins" is not a list of text',
        ),
        (
            "list plugins",
            {"nodes": [{"name": "n", "applications": [], "enabled_plugins": ["a", []]}]},
            '"enabled_plugins" is not a list of text',
        ),
        (
            "queue show q",
            {"queues": {"name": "q", "operator_policy": 5}},
            'an object whose "operator_policy" is not text',
        ),
        ("definitions export", {"bindings": [{**BINDING, "arguments": 1}]}, 'whose "arguments" is not an object'),
        ("topology", {"bindings": [{"source": "x"}]}, 'an object without "destination_type"'),
        ("topology", {"exchanges": [{**EXCHANGE, "policy": []}]}, 'an object whose "policy" is not text'),
        ("route x k", {"exchanges": [{"name": "x", "type": "direct"}]}, 'an object without "durable"'),
        ("queue show q", {"queues": [{"name": "q"}]}, "something that is not an object"),
        ("dlq ls", {"queues": [{"name": None}]}, 'an object without "name"'),
        ("policy ls", {"policies": [{"name": "p", "priority": "x"}]}, 'an object whose "priority" is not a number'),
    ],
)
def test_management_api_json_that_rabbitmq_would_not_send_is_an_error(
    lonely_shell: Shell, command: str, answers: dict[str, Any], says: str
) -> None:
    """If the management API answers with JSON that RabbitMQ would not send, such as a user without a name, mqtool says
    what is wrong with the answer and exits with 69. It does not report a bug in mqtool.
    """
    with serving(answers) as (url, _):
        result = lonely_shell.run("mqtool", *command.split(), "-u", NOWHERE, "--management", url)
    assert says in refused(result)


@on_any_broker
def test_a_nagios_check_is_unknown_after_json_that_rabbitmq_would_not_send(shell: Shell) -> None:
    """If the management API answers with JSON that RabbitMQ would not send, `doctor --format nagios` reports UNKNOWN
    and exits with 3. `doctor --format prometheus` and `doctor --upgrade` exit with 69.
    """
    about = {"overview": {"rabbitmq_version": "9" * 5000}}
    for answers in ({}, {**about, "queues": [{"vhost": "/"}]}):
        with serving(answers) as (url, _):
            doctor = ("mqtool", "doctor", "--between", "10ms", "--management", url, "--format")
            unknown = shell.run(*doctor, "nagios")
            assert (unknown.code, unknown.stdout.partition(" - ")[0]) == (3, "RABBITMQ UNKNOWN"), unknown.stdout
            refused(shell.run(*doctor, "prometheus"))
    with serving(about) as (url, _):
        assert "broker's version is '9999" in refused(
            shell.run("mqtool", "doctor", "--upgrade", "4.3", "--management", url)
        )
