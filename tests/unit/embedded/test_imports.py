"""Importing the embedded broker into users' tests loads few modules."""

import subprocess
import sys


def test_importing_the_embedded_broker_loads_no_client_and_no_command_line() -> None:
    """`import mqtool.broker.embedded` loads none of the libraries pika, typer, rich, docker and requests."""
    program = "import sys, mqtool.broker.embedded; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"rich", "docker", "requests", "pika", "typer"}


def test_a_broker_without_streams_does_not_load_their_code() -> None:
    """If no stream is declared on an embedded broker, starting and stopping the broker loads none of its modules for
    streams.
    """
    program = (
        "import sys; from mqtool.broker.embedded import EmbeddedBroker as B; B().start().stop(); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "mqtool.broker.embedded.model.queue" in ran.stdout.split()
    streams = ("mqtool.broker.embedded.model.stream_", "mqtool.broker.embedded.streaming")
    assert not [name for name in ran.stdout.split() if name.startswith(streams)]
