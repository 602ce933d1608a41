"""`broker up --kind docker`, and what can prevent it. The tests need a Docker daemon and image: see docker_image()."""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mqtool.broker.docker_daemon import DEFAULT_IMAGE, IMAGE_FILES, build_arguments
from tests.brokers import docker_image, free_port, weekly
from tests.cli.shell import Shell, wait_until


def docker(*arguments: str) -> str:
    """Run Docker's own client and return its output."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def image() -> str:
    return docker_image()


@pytest.fixture
def name() -> str:
    """A name that no other broker has."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def home(tmp_path: Path, name: str) -> Iterator[Shell]:
    """A shell whose user has never started a broker. A broker that the test starts is removed afterwards, with its
    volumes.
    """
    inherited = {key: value for key, value in os.environ.items() if key.startswith("DOCKER_")}
    with Shell(tmp_path, {"XDG_STATE_HOME": str(tmp_path / "state"), **inherited}) as shell:
        yield shell
        shell.run("mqtool", "broker", "down", "--name", name, timeout=120)
    if not os.environ.get("MQTOOL_TEST_IMAGE"):
        return  # no daemon, no volumes
    for volume in docker("volume", "ls", "-q", "--filter", f"name={name}").split():
        docker("volume", "rm", volume)


def test_broker_commands_work_with_a_broker_in_docker(home: Shell, image: str, name: str) -> None:
    """`broker up --kind docker` returns once the container is healthy. `broker status`, `broker logs`, `broker restart`
    and `broker down` find this broker by its name. Persistent messages are still there after `broker down` and another
    `broker up`.
    """
    up = ("mqtool", "broker", "up", "--kind", "docker", "--image", image, "--name", name)
    port, streams = str(free_port()), str(free_port())
    first = home.run(*up, "--port", port, "--stream-port", streams, timeout=180)
    assert (first.code, first.stdout) == (0, f"RabbitMQ in Docker is up at amqp://guest@127.0.0.1:{port}\n"), (
        first.stderr
    )
    assert re.search(r"management page: http://127\.0\.0\.1:\d+ \(guest, guest\)", first.stderr)
    assert docker("inspect", "-f", "{{.State.Health.Status}}", f"mqtool-{name}") == "healthy\n"
    assert docker("port", f"mqtool-{name}", "5672") == f"127.0.0.1:{port}\n", "other machines cannot connect"

    assert home.run(*up).stdout.startswith("already running at ")
    assert home.run("mqtool", "broker", "status", "--name", name).stdout.startswith("RabbitMQ in Docker: running\n")
    url = f"amqp://127.0.0.1:{port}"
    assert home.run("mqtool", "send", "--persistent", "kept", "-u", url).code == 0
    assert docker("port", f"mqtool-{name}", "5552") == f"127.0.0.1:{streams}\n"
    assert home.run("mqtool", "send-stream", "streamed", "-u", url).code == 0, (
        "mqtool finds the stream port from the broker's URL"
    )
    follower = home.start("mqtool", "broker", "logs", "-f", "--name", name, ready=False)
    follower.wait_for_stdout("Server startup complete")
    assert follower.interrupt().wait().code == 0

    restarted = home.run("mqtool", "broker", "restart", "--name", name, timeout=180)
    assert restarted.stdout == f"RabbitMQ in Docker is up again at amqp://guest@127.0.0.1:{port}\n"

    assert home.run("mqtool", "broker", "down", "--name", name).code == 0
    assert "Server startup complete" in home.run("mqtool", "broker", "logs", "--name", name).stdout
    assert f"mqtool-{name}" not in docker("ps", "-a", "--format", "{{.Names}}")
    assert home.run(*up, "--port", port, timeout=180).code == 0
    assert home.run("mqtool", "receive", "-c", "1", "--raw", "-u", url).stdout == "kept\n"


@weekly
def test_broker_up_in_docker_creates_the_named_user(home: Shell, image: str, name: str) -> None:
    """After `broker up --kind docker --user NAME`, `broker env` prints a URL with this user and a generated password.
    After `broker down` and another `broker up`, the password is the same.
    """
    up = ("mqtool", "broker", "up", "--kind", "docker", "--image", image, "--name", name, "--user", "ann")
    env = ("mqtool", "broker", "env", "--name", name)
    urls = []
    for _ in range(2):
        assert home.run(*up, timeout=240).code == 0
        urls.append(home.run(*env).stdout.split("AMQP_URL=")[1].splitlines()[0].strip("'"))
        assert home.run("mqtool", "send", "x", "-u", urls[-1]).code == 0
        assert home.run("mqtool", "broker", "down", "--name", name).code == 0
    assert urls[0].startswith("amqp://ann:")
    assert urls[0].partition("@")[0] == urls[1].partition("@")[0]


def test_broker_up_in_docker_with_listen_needs_a_user_other_than_guest(home: Shell, image: str, name: str) -> None:
    """`broker up --kind docker --listen` exits with 69 if the user is guest, because guest could then log in from other
    machines.
    """
    up = ("mqtool", "broker", "up", "--kind", "docker", "--image", image, "--name", name)
    refused = home.run(*up, "--listen", "127.0.0.2")
    assert refused.code == 69
    assert "guest could log in from other machines" in refused.stderr


@weekly
@pytest.mark.timeout(500)
def test_a_cluster_in_docker_delivers_messages_after_one_node_is_killed(home: Shell, image: str, name: str) -> None:
    """If one node of a cluster in Docker is killed, messages can still be sent, earlier persistent messages can be
    received, and `broker status` says "2 of 3 nodes running". `broker up` starts the killed node again.
    """
    up = home.run(
        "mqtool", "broker", "up", "--kind", "docker", "--image", image, "--cluster", "--name", name, timeout=300
    )
    assert up.code == 0, up.stderr
    [variable] = [
        line for line in home.run("mqtool", "broker", "env", "--name", name).stdout.splitlines() if "MQTOOL_URL" in line
    ]
    home.environment["MQTOOL_URL"] = variable.partition("=")[2].strip("'")
    home.run("mqtool", "send", "--persistent", "one")
    docker("kill", f"mqtool-{name}-1")
    assert home.run("mqtool", "send", "--persistent", "two").code == 0
    assert home.run("mqtool", "receive", "-c", "2", "--raw").stdout == "one\ntwo\n"
    assert "2 of 3 nodes running" in home.run("mqtool", "broker", "status", "--name", name).stdout
    assert home.run("mqtool", "broker", "up", "--name", name, timeout=300).stdout.startswith("running again at ")


def test_broker_up_in_docker_without_a_daemon_exits_with_69(home: Shell, image: str, name: str) -> None:
    """If the Docker daemon does not answer, `broker up --kind docker` prints the path of the daemon's socket, suggests
    --kind embedded, and exits with 69.
    """
    result = home.run("mqtool", "broker", "up", "--kind", "docker", environment={"DOCKER_HOST": "unix:///no/such.sock"})
    assert result.code == 69
    assert "the Docker daemon does not answer at /no/such.sock" in result.stderr
    assert "--kind embedded" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch to a user without permission")
def test_broker_up_in_docker_without_permission_exits_with_77(image: str, tmp_path: Path) -> None:
    """If the user has no permission to use the Docker daemon's socket, `broker up --kind docker` reports this and
    exits with 77.
    """
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups"]
    if subprocess.run([*nobody, "mqtool", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("other users cannot read this checkout")
    with Shell(Path("/"), {"HOME": "/nonexistent", "DOCKER_HOST": os.environ.get("DOCKER_HOST", "")}) as shell:
        result = shell.run(*nobody, "mqtool", "broker", "up", "--kind", "docker", "--name", "nobody")
    assert result.code == 77
    assert "no permission to use the Docker daemon" in result.stderr


def test_broker_up_in_docker_reports_a_name_or_port_in_use(home: Shell, image: str, name: str) -> None:
    """If the container's name or the port is already in use, `broker up --kind docker` prints this name or port, exits
    with 69, and leaves no broker behind.
    """
    up = ("mqtool", "broker", "up", "--kind", "docker", "--image", image, "--name", name)
    docker("create", "--name", f"mqtool-{name}", image, "true")
    try:
        clash = home.run(*up, timeout=180)
        assert clash.code == 69
        assert f"a container named mqtool-{name} exists" in clash.stderr
    finally:
        docker("rm", f"mqtool-{name}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = home.run(*up, "--port", str(port))
    assert (result.code, f"port {port} on 127.0.0.1 is taken" in result.stderr) == (69, True)
    assert home.run("mqtool", "broker", "status", "--name", name).code == 69


def test_broker_up_names_a_docker_image_that_cannot_be_pulled(home: Shell, image: str, name: str) -> None:
    """If the Docker image cannot be pulled, `broker up` names the image and exits with 69."""
    result = home.run("mqtool", "broker", "up", "--kind", "docker", "--image", "127.0.0.1:1/none", "--name", name)
    assert result.code == 69
    assert "cannot pull 127.0.0.1:1/none" in result.stderr


@weekly
def test_the_docker_image_lets_guest_log_in_only_from_the_container_itself(image: str, home: Shell, name: str) -> None:
    """If a container is started from mqtool's Docker image with plain `docker run`, guest cannot log in from outside
    the container.
    """
    home.run("mqtool", "broker", "up", "--kind", "docker", "--image", image, "--name", name, timeout=180)
    ours = docker("inspect", "-f", "{{.Config.Image}}", f"mqtool-{name}").strip()
    port = free_port()
    docker("run", "-d", "--name", f"open-{name}", "-p", f"127.0.0.1:{port}:5672", ours)
    try:
        wait_until(
            lambda: docker("inspect", "-f", "{{.State.Health.Status}}", f"open-{name}") == "healthy\n",
            "the container to be healthy",
        )
        refused = home.run("mqtool", "send", "-u", f"amqp://127.0.0.1:{port}")
        assert refused.code == 77, refused.stderr
    finally:
        docker("rm", "-fv", f"open-{name}")


_SHA256 = hashlib.sha256(b"not the plugin").hexdigest()


@pytest.mark.parametrize(
    ("name", "checksum", "error"),
    [
        ("rabbitmq_delayed_message_exchange-3.13.0.ez", "", "3.13.0.ez is not 3479180df03fa830fd59ccf638a60eee8f0e82"),
        ("own.ez", "", "the SHA-256 checksum of own.ez is unknown: set PLUGIN_SHA256"),
        ("own.ez", _SHA256, r"own.ez does not support RabbitMQ [\d.]+: set PLUGIN_URL to (https:|an empty)"),
    ],
)
def test_the_build_of_the_docker_image_verifies_the_plugins_checksum(
    image: str, tmp_path: Path, name: str, checksum: str, error: str
) -> None:
    """The Docker image contains a plugin. If the checksum of the plugin's file is not the expected one, the build of
    the image fails with an error that names the file. A file whose checksum is not in plugins.sha256 needs
    PLUGIN_SHA256. If the plugin is for another RabbitMQ, the error names the release to use.
    """
    context = tmp_path / "image"
    shutil.copytree(IMAGE_FILES, context)
    (context / name).write_bytes(b"not the plugin")
    arguments = {"BASE_IMAGE": image, "PLUGIN_URL": name, "PLUGIN_SHA256": checksum}
    built = subprocess.run(
        ["docker", "build", *(f"--build-arg={key}={value}" for key, value in arguments.items()), str(context)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode != 0
    assert re.search(error, built.stdout + built.stderr)


@pytest.mark.parametrize(
    ("base", "release"),
    [
        (DEFAULT_IMAGE, "v4.2.0/rabbitmq_delayed_message_exchange-4.2.0.ez"),
        ("rabbitmq:4.2.9", "v4.2.0/rabbitmq_delayed_message_exchange-4.2.0.ez"),
        ("rabbitmq:3.13-management", "v3.13.0/rabbitmq_delayed_message_exchange-3.13.0.ez"),
        ("localhost:5000/rabbitmq:4.0.9-management-alpine", "v4.0.2/rabbitmq_delayed_message_exchange-4.0.2.ez"),
        ("rabbitmq:4.3.5-management", ""),
        ("rabbitmq:3.10-debian", ""),
    ],
)
def test_the_docker_image_gets_the_plugins_release_for_its_rabbitmq(base: str, release: str) -> None:
    assert build_arguments(base)["PLUGIN_URL"].partition("/download/")[2] == release
