"""The brokers that suites expect: guest at localhost, AMQP on port 5672, with TLS on 5671, the management API on 15672,
streams on 5552.
"""

import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from json import load
from pathlib import Path
from urllib.parse import urlsplit

from mqtool.broker import node, ports
from mqtool.broker.node import PrivateNodes
from mqtool.broker.state import Wanted

AMQP, TLS, MANAGEMENT, STREAMS = 5672, 5671, 15672, 5552
_PATIENCE = 90.0


@contextmanager
def embedded(directory: Path, certificates: Mapping[str, Path]) -> Iterator[str]:
    """Run the embedded broker in its default profile, and yield the version that it behaves like."""
    command = [sys.executable, "-m", "mqtool", "broker", "serve", "--port", str(AMQP)]
    command += ["--management-port", str(MANAGEMENT), "--stream-port", str(STREAMS)]
    command += ["--tls-cert", str(certificates["cert"]), "--tls-key", str(certificates["key"])]
    with (directory / "embedded-broker.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield _version()
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def rabbitmq(directory: Path, certificates: Mapping[str, Path]) -> Iterator[str]:
    """Use the RabbitMQ at MQTOOL_TEST_URL, or else start a private node, and yield its version."""
    url = os.environ.get("MQTOOL_TEST_URL")
    with _forwarded(url) if url else _private_node(directory, certificates):
        yield _version()


def has_rabbitmq() -> bool:
    return bool(os.environ.get("MQTOOL_TEST_URL") or node.find_server())


def busy_ports() -> list[int]:
    """Return the ports that the suites expect their broker on, but that are in use already."""
    return [port for port in (AMQP, TLS, MANAGEMENT, STREAMS) if not ports.is_free(port)]


@contextmanager
def _private_node(directory: Path, certificates: Mapping[str, Path]) -> Iterator[None]:
    tls = [f"listeners.ssl.1 = {ports.HOST}:{TLS}"]
    tls += [f"ssl_options.{name}file = {path}" for name, path in certificates.items()]
    tls += ["ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = false"]
    nodes = PrivateNodes("private node", tls)
    data = directory / "rabbitmq-data"
    shutil.rmtree(data, ignore_errors=True)
    started = nodes.start(Wanted("conformance", AMQP, data, management_port=MANAGEMENT, stream_port=STREAMS))
    try:
        yield
    finally:
        nodes.stop(started)


@contextmanager
def _forwarded(url: str) -> Iterator[None]:
    """Forward the ports that suites expect, except the TLS port, to a RabbitMQ elsewhere."""
    there = urlsplit(url)
    host = there.hostname or "localhost"
    management = urlsplit(os.environ.get("MQTOOL_TEST_MANAGEMENT", f"http://{host}:{MANAGEMENT}"))
    streams = urlsplit(os.environ.get("MQTOOL_TEST_STREAMS", f"rabbitmq-stream://{host}:{STREAMS}"))
    targets = {
        AMQP: (host, there.port or AMQP),
        MANAGEMENT: (management.hostname or host, management.port or MANAGEMENT),
        STREAMS: (streams.hostname or host, streams.port or STREAMS),
    }
    with ExitStack() as stack:
        for port, target in targets.items():
            server = stack.enter_context(_Forwarder((ports.HOST, port), target))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        yield


class _Forwarder(socketserver.ThreadingTCPServer):
    """Forwards each connection to another address."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, own: tuple[str, int], target: tuple[str, int]) -> None:
        super().__init__(own, socketserver.BaseRequestHandler)
        self._target = target

    def finish_request(self, request: object, client_address: object) -> None:  # noqa: ARG002
        assert isinstance(request, socket.socket)
        with socket.create_connection(self._target) as there:
            back = threading.Thread(target=_copy, args=(there, request), daemon=True)
            back.start()
            _copy(request, there)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for each in (source, target):
            each.close()


def _version() -> str:
    """Wait for the AMQP port and the management API; return the broker's version."""
    manager = urllib.request.HTTPPasswordMgrWithPriorAuth()
    manager.add_password(None, f"http://{ports.HOST}:{MANAGEMENT}", "guest", "guest", is_authenticated=True)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection((ports.HOST, AMQP), 5).close()
            with opener.open(f"http://{ports.HOST}:{MANAGEMENT}/api/overview", timeout=5) as answer:
                return str(load(answer)["rabbitmq_version"])
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def self_signed(directory: Path) -> dict[str, Path]:
    """Create a certificate for localhost, for suites whose archive contains none."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    if not cert.exists():
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-days",
            "3650",
        ]
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return {"cert": cert, "key": key, "cacert": cert}
