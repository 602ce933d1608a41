"""Start-up is what a person feels first: what a command does not need, it does not load."""

import pytest

from tests.cli.shell import Shell

HEAVY = {"docker", "requests", "urllib3", "rich", "sqlite3", "hashlib", "multiprocessing", "textual"}


@pytest.mark.parametrize(
    "command", [["send", "-q", "q", "hello"], ["receive", "-q", "q", "-c", "1"]], ids=lambda words: words[0]
)
def test_a_plain_command_loads_little(shell: Shell, command: list[str]) -> None:
    """The names are modules that take longer to load than a message to be sent."""
    shell.run("mqtool", "send", "-q", "q", "waiting")
    program = shell.run("sh", "-c", "command -v mqtool").stdout.strip()
    result = shell.run(f"{program.removesuffix('mqtool')}python", "-X", "importtime", "-m", "mqtool", *command)
    assert result.code == 0
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "mqtool.amqp.channel" in loaded
    assert loaded & HEAVY == set()
    assert not {name for name in loaded if name.startswith("mqtool.broker.embedded.")}
