"""Record what real clients publish: python -m tests.corpus. See README.md.

Messages of AMQP clients are recorded on their way to an embedded broker, or from RabbitMQ to a consumer.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from mqtool.amqp import Connection, administration, parse_addresses
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.drills import scene
from mqtool.topology import Binding, Queue
from tests.corpus.frames import messages_091, messages_10
from tests.protocol.raw_stream import RawStream

HERE = Path(__file__).parent
_JAVA = "/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar"
RABBITMQ = ("3.10", "4.3")
#: The number of messages that each client of streams publishes.
_IN_A_STREAM = 2


class Client(NamedTuple):
    """A client: its name and version, and the command that publishes its messages."""

    name: str
    command: list[str]


class Wire(scene.Proxy):
    """A proxy that keeps what passes: for each connection, the client's bytes and the broker's."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.passed: list[bytearray] = []

    def join(self, client: socket.socket, server: socket.socket) -> None:
        for ends in ((client, server), (server, client)):
            self.passed.append(bytearray())
            threading.Thread(target=self._keep, args=(*ends, self.passed[-1]), daemon=True).start()

    def _keep(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                kept += data
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def run(client: Client, **environment: object) -> None:
    """Run a client's program. Raises CalledProcessError, with its output, if it fails."""
    settings = {name: str(value) for name, value in environment.items()}
    subprocess.run(client.command, env={**os.environ, **settings}, check=True, timeout=180)


def recorded_091(client: Client, port: int) -> list[dict[str, Any]]:
    """Run a client's program on the broker at a port; return the messages that passed, in both directions."""
    with Wire(port) as wire:
        run(client, AMQP_URL=f"amqp://guest:guest@127.0.0.1:{wire.port}/%2F")
        return [message for data in wire.passed for message in messages_091(bytes(data))]


def clients(scratch: Path) -> dict[str, list[Client]]:
    """Install the clients; return those whose language is installed, by protocol."""
    shutil.copytree(HERE / "clients", scratch, dirs_exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", scratch / "venv"], check=True)
    python, npm = str(scratch / "venv/bin/python"), ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", scratch / "requirements.txt"]
    subprocess.run(pip, check=True)
    subprocess.run(npm, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    pinned = dict(line.split("==") for line in (scratch / "requirements.txt").read_text().splitlines() if "==" in line)
    pinned |= json.loads((scratch / "package.json").read_text())["dependencies"]

    def in_python(name: str, package: str) -> Client:
        return Client(f"{package} {pinned[package]}", [python, str(scratch / "publish.py"), name])

    def in_node(name: str, package: str) -> Client:
        return Client(f"{package} {pinned[package]} (npm)", ["node", str(scratch / "publish.cjs"), name])

    names = {"pika": "pika", "py_amqp": "amqp", "kombu": "kombu", "celery": "celery", "aio_pika": "aio-pika"}
    found = [*(in_python(*each) for each in names.items()), in_python("amqpstorm", "AMQPStorm")]
    found += [in_node("amqplib", "amqplib"), in_node("rabbitmq_client", "rabbitmq-client")]
    for package, command in {
        "ruby-bunny": ["ruby", "publish.rb"],
        "php-amqplib": ["php", "publish.php"],
        "golang-github-rabbitmq-amqp091-go-dev": ["go", "run", "publish.go"],
        "librabbitmq-client-java": ["java", "-cp", _JAVA, "Publish.java"],
    }.items():
        version = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
        ).stdout
        if version:
            command[-1] = str(scratch / command[-1])
            found.append(Client(f"{package} {version} (Debian)", command))
        else:
            print(f"{package} is not installed: its messages are not recorded", file=sys.stderr)
    return {
        "amqp091": found,
        "rabbitmq": [in_python("paho", "paho-mqtt"), in_python("stomp", "stomp.py")],
        "observers": [in_python("rabbitmq", "pika"), in_python("consumer", "pika")],
        "streams": [in_python("rstream", "rstream"), in_node("streams", "rabbitmq-stream-js-client")],
        "amqp10": [in_python("amqp10", "rabbitmq-amqp-python-client"), in_node("rhea", "rhea")],
    }


@contextmanager
def rabbitmq(version: str) -> Iterator[Callable[[int], int]]:
    """Start RabbitMQ with its plugins in Docker; yield a function that returns where a port of it is published."""
    plugins = "[rabbitmq_mqtt,rabbitmq_stomp,rabbitmq_event_exchange]."
    script = f"echo '{plugins}' >/etc/rabbitmq/enabled_plugins; exec rabbitmq-server"
    published = [option for port in (5672, 1883, 61613) for option in ("-p", f"127.0.0.1::{port}")]
    docker = ["docker", "run", "-d", "--rm", *published, f"rabbitmq:{version}-debian", "sh", "-c"]
    allowed = "echo 'loopback_users = none' >/etc/rabbitmq/rabbitmq.conf; "
    name = subprocess.run([*docker, allowed + script], check=True, capture_output=True, text=True).stdout.strip()

    def inside(*command: str) -> str:
        return subprocess.run(["docker", *command], check=True, capture_output=True, text=True).stdout

    try:
        deadline = time.monotonic() + 120
        while "completed with" not in inside("logs", name):
            assert time.monotonic() < deadline, inside("logs", name)
            time.sleep(0.5)
        inside("exec", name, "rabbitmqctl", "trace_on")
        yield lambda port: int(inside("port", name, str(port)).splitlines()[0].rpartition(":")[2])
    finally:
        inside("rm", "-f", name)


def with_plugins(version: str, found: dict[str, list[Client]]) -> Iterator[dict[str, Any]]:
    """Yield what RabbitMQ delivers of messages over MQTT and STOMP, and of its own."""
    with rabbitmq(version) as port_of:
        name = f"RabbitMQ {version}"
        observer, consumer = found["observers"]
        for message in recorded_091(observer, port_of(5672)):
            if message["exchange"].startswith("amq.rabbitmq."):
                yield {"client": name, **message}
        address = f"amqp://guest:guest@127.0.0.1:{port_of(5672)}/%2F"
        with Connection(parse_addresses(address)) as connection:
            channel = connection.channel()
            queue = channel.declare(Queue("corpus", durable=True, arguments={"x-queue-type": "classic"}))
            administration.bind(channel, Binding("amq.topic", queue.name, "corpus"))
        for client in found["rabbitmq"]:
            run(client, AMQP_URL=address, MQTT_PORT=port_of(1883), STOMP_PORT=port_of(61613))
            for message in recorded_091(consumer, port_of(5672)):
                yield {"client": f"{client.name}, {name}", **message}


def main() -> None:
    with ExitStack() as stack:
        found = clients(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        broker = stack.enter_context(EmbeddedBroker(like="4.3", stream_port=0))
        with Connection(parse_addresses(broker.url)) as connection:
            connection.channel().declare(Queue("corpus", durable=True))
        lines = [
            {"client": client.name, **message}
            for client in found["amqp091"]
            for message in recorded_091(client, broker.port)
        ]
        for version in RABBITMQ:
            lines += with_plugins(version, found)
        write("amqp091", lines)
        lines = []
        for client in found["amqp10"]:
            with Wire(broker.port) as wire:
                run(client, AMQP10_URL=f"amqp://guest:guest@127.0.0.1:{wire.port}/", AMQP_URL=broker.url)
                for data in wire.passed[::2]:
                    lines += ({"client": client.name, "message": each} for each in messages_10(bytes(data)))
        write("amqp10", lines)
        write("streams", [line for client in found["streams"] for line in in_a_stream(client)])


def in_a_stream(client: Client) -> Iterator[dict[str, Any]]:
    """Yield the messages that a client has published to a stream, as they are stored."""
    with EmbeddedBroker(like="4.3", stream_port=0) as broker:
        port = int(broker.urls["stream"].rpartition(":")[2].strip("/"))
        reader = RawStream("127.0.0.1", port)
        reader.log_in()
        assert reader.request(21, b"\0\1/").code == 1
        assert reader.create("corpus") == 1
        run(client, STREAM_PORT=port, AMQP_URL=broker.url)
        assert reader.subscribe(1, "corpus") == 1
        yield from ({"client": client.name, "message": entry} for entry in reader.entries(_IN_A_STREAM))
        reader.close()


def write(name: str, lines: list[dict[str, Any]]) -> None:
    path = HERE / "recorded" / f"{name}.ndjson"
    path.write_text("".join(json.dumps(line, default=bytes.hex, ensure_ascii=False) + "\n" for line in lines))
    print(f"{len(lines)} messages in {path.name}")


if __name__ == "__main__":
    main()
