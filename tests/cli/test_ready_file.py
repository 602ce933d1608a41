"""--ready-file: a file that a command creates when it consumes, or when its broker listens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import on_any_broker
from tests.cli.shell import Shell, wait_until

#: Nothing listens at this port.
NO_BROKER = "amqp://localhost:1"


@on_any_broker
@pytest.mark.parametrize("command", ["receive", "worker", "tap amq.topic", "rpc-server", "delayed relay later"])
def test_a_starting_command_removes_the_ready_file_of_an_earlier_run(shell: Shell, command: str) -> None:
    """When a command with --ready-file starts, it removes a ready file that an earlier run left behind, even if no
    broker answers. A script that waits for the file therefore waits for the new run.
    """
    (shell.directory / "ready").touch()
    result = shell.run("mqtool", *command.split(), "-u", NO_BROKER, "--ready-file", "ready")
    assert result.code == 69
    assert not (shell.directory / "ready").exists()


@on_any_broker
def test_a_file_that_is_not_empty_is_not_replaced_by_a_ready_file(shell: Shell) -> None:
    """If the file given with --ready-file exists and is not empty, `receive` exits with 2, and the file keeps its
    content.
    """
    (shell.directory / "notes.txt").write_text("mine")
    result = shell.run("mqtool", "receive", "--ready-file", "notes.txt")
    assert result.code == 2
    assert "cannot create the ready file notes.txt: it exists and is not empty" in result.stderr
    assert (shell.directory / "notes.txt").read_text() == "mine"


def test_broker_serve_removes_the_ready_file_of_a_killed_broker_before_it_listens(tmp_path: Path) -> None:
    """`broker serve --ready-file` removes the ready file of an earlier run before the new broker listens, so that a
    script never reads the URLs of a broker that was killed.
    """
    urls, definitions = tmp_path / "urls", tmp_path / "definitions"
    urls.write_text("amqp://guest:guest@127.0.0.1:1/%2F\n")
    os.mkfifo(definitions)
    command = [sys.executable, "-m", "mqtool", "broker", "serve", "--port", "0", "--ready-file", urls]
    with subprocess.Popen([*command, "--definitions", definitions], stderr=subprocess.DEVNULL) as broker:
        with definitions.open("w") as file:  # blocks until the broker reads it, before it listens
            assert not urls.exists()
            file.write("{}")
        wait_until(urls.exists, "the broker")
        broker.terminate()
    assert not urls.exists()
