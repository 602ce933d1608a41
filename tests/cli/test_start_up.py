"""Start-up is what a person feels first: what a command does not need, it does not load."""

import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.testing.authority import Authority, new_authority
from mqtool.cli.app import COMMANDS
from tests.brokers import on_any_broker
from tests.cli.shell import Shell

HEAVY = {
    "asyncio",
    "requests",
    "urllib3",
    "rich",
    "sqlite3",
    "_ssl",
    "hashlib",
    "multiprocessing",
    "textual",
    "tomllib",
    "pika.adapters.blocking_connection",
    "stringprep",
}


@on_any_broker
@pytest.mark.parametrize(
    "command", [["send", "-q", "q", "hello"], ["receive", "-q", "q", "-c", "1"]], ids=lambda words: words[0]
)
def test_a_plain_command_loads_little(shell: Shell, command: list[str]) -> None:
    """The names are modules that take longer to load than a message to be sent."""
    shell.run("mqtool", "send", "-q", "q", "waiting")
    result = shell.run(sys.executable, "-X", "importtime", "-m", "mqtool", *command)
    assert result.code == 0
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "mqtool.amqp.channel" in loaded
    assert loaded & HEAVY == set()
    assert not {name for name in loaded if name.startswith("mqtool.broker.embedded.")}


@pytest.mark.parametrize("name", {module: name for name, (module, _) in COMMANDS.items()}.values())
def test_a_command_loads_by_itself(lonely_shell: Shell, name: str) -> None:
    """In a process of its own: what an earlier command has imported hides an import that is broken."""
    result = lonely_shell.run(sys.executable, "-m", "mqtool", name, "--help")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: mqtool {name}")


def test_tls_is_loaded_where_it_is_used(lonely_shell: Shell, amqp_tls: Authority, tmp_path: Path) -> None:
    """In a process of its own, which does without ssl until a URL or an error asks for it."""
    other = new_authority(tmp_path)
    shell = lonely_shell
    with EmbeddedBroker(tls=amqp_tls.tls()) as broker:
        assert broker.tls_url is not None
        port = urlsplit(broker.tls_url).port
        url = f"amqps://localhost:{port}"
        mqtool = sys.executable, "-m", "mqtool"
        trusting = "-u", url, "--tls-ca", str(amqp_tls.ca)
        assert shell.run(*mqtool, "send", "-q", "q", "over TLS", *trusting).code == 0
        assert shell.run(*mqtool, "receive", "-q", "q", "-c", "1", "--raw", *trusting).stdout == "over TLS\n"
        for mistrusting in (("-u", url), ("-u", url, "--tls-ca", str(other.ca))):
            refused = shell.run(*mqtool, "send", "-q", "q", "x", *mistrusting)
            assert refused.code == 69
            assert f"the certificate of localhost:{port} cannot be trusted" in refused.stderr
