"""Passwords are not shown, and private files are readable only by their owner."""

import stat
from urllib.parse import urlsplit

import pytest

from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Shell

SECRET = "s3/cr@t:x"
ESCAPED = "s3%2Fcr%40t%3Ax"

URLS = (
    f"amqp://u:{ESCAPED}@localhost:1",
    f"amqp://u:{SECRET}@localhost:1",
    f"amqp://u:{SECRET}",
    f"amqp://localhost:1/?password={SECRET}",
    f"amqp://localhost:1/?heartbeat=x&Password={ESCAPED}",
    f"amqp://localhost:1,amqp://u:{SECRET}@[::1",
    f"http://u:{ESCAPED}@localhost:1",
    f"https://u:{SECRET}@localhost:1",
    f"http://localhost:1/?password={SECRET}",
    f"ftp://u:{SECRET}@localhost",
    f"http://u:{SECRET}@localhost:port",
    f"http://localhost:1/,http://u:{SECRET}@localhost:2",
)
#: Commands that use AMQP, with and without retries, the management API, and both.
COMMANDS = (
    ("send", "x"), ("worker",), ("wait", "--timeout", "50ms"), ("list", "queues"), ("dlq", "ls"),
    ("user", "delete", "bob", "--yes"), ("doctor",),
)  # fmt: skip


@pytest.mark.parametrize("url", URLS)
@pytest.mark.sampled(2)
def test_no_error_shows_a_password(lonely_shell: Shell, url: str) -> None:
    """If a URL with a password is invalid, or if no broker answers at this URL, the output of a command does not
    contain the password.
    """
    for command in COMMANDS:
        for environment in ({"MQTOOL_URL": url}, {"MQTOOL_URL": "amqp://localhost:1", "MQTOOL_MANAGEMENT_URL": url}):
            result = lonely_shell.run("mqtool", *command, "--verbose", environment=environment)
            said = result.stdout + result.stderr
            assert "s3" not in said, (command, environment, said)
            assert "cr@t" not in said, (command, environment, said)
            assert "unexpected error" not in said, (command, environment, said)


def test_credentials_in_the_management_url_are_used_and_not_shown(shell: Shell, broker: TestBroker) -> None:
    """`list queues --management URL` logs in with the credentials in the URL. If the broker refuses them, the error
    does not show the password.
    """
    host = urlsplit(broker.management).netloc
    assert shell.run("mqtool", "list", "queues", "--management", f"http://guest:guest@{host}").code == 0
    refused = shell.run("mqtool", "list", "queues", "--management", f"http://guest:{ESCAPED}@{host}")
    assert refused.code == 77
    assert "s3" not in refused.stderr


@on_any_broker
@pytest.mark.parametrize("how", ["--exec", "--shell"])
@pytest.mark.sampled(1)
def test_a_workers_program_gets_urls_without_passwords(shell: Shell, how: str) -> None:
    """`worker --exec` removes the passwords from the URLs in the program's environment, unless --pass-url is given."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = "http://guest:guest@localhost"
    shell.environment["AMQP_URL"] = f"amqp://u:{SECRET}@one,amqps://u:two@two/v"
    show = ("--exec", "env") if how == "--exec" else ("--exec", "env", "--shell")

    def seen(*options: str) -> dict[str, str]:
        shell.run("mqtool", "new-task", "x")
        lines = shell.run("mqtool", "worker", "-c", "1", *show, *options).stdout.splitlines()
        return dict(line.partition("=")[::2] for line in lines if "_URL=" in line)

    assert seen() == {
        "MQTOOL_URL": shell.environment["MQTOOL_URL"].replace("guest:guest@", "guest@"),
        "AMQP_URL": "amqp://u@one,amqps://u@two/v",
        "MQTOOL_MANAGEMENT_URL": "http://guest@localhost",
    }
    assert seen("--pass-url")["AMQP_URL"] == shell.environment["AMQP_URL"]


@on_any_broker
def test_a_ready_file_is_not_created_through_a_symbolic_link(shell: Shell) -> None:
    """If the path given with --ready-file is a symbolic link, `receive` exits with 2 and does not create the link's
    target.
    """
    (shell.directory / "ready").symlink_to("target")
    result = shell.run("mqtool", "receive", "--ready-file", "ready", "--idle-timeout", "10ms")
    assert result.code == 2
    assert "cannot create the ready file ready" in result.stderr
    assert not (shell.directory / "target").exists()


@on_any_broker
def test_a_deduplication_store_is_readable_only_by_its_owner(shell: Shell) -> None:
    """The file that `worker --dedup-store` creates, and its directory, are readable only by their owner, whatever the
    umask.
    """
    shell.run("mqtool", "new-task", "x")
    worker = "mqtool worker -c 1 --exec true --deduplicate --dedup-store kept/handled"
    assert shell.script(f"umask 0; {worker}").code == 0
    modes = [stat.S_IMODE((shell.directory / name).stat().st_mode) for name in ("kept", "kept/handled")]
    assert modes == [0o700, 0o600]
