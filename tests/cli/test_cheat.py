"""`cheat`: recipes whose commands succeed exactly as they are printed."""

import pytest

from mqtool.cli.commands.cheat import recipes
from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Shell


@on_any_broker
@pytest.mark.parametrize("topic", recipes())
@pytest.mark.sampled(1)
def test_cheat_recipes_succeed_as_printed_and_fit_on_a_screen(shell: Shell, broker: TestBroker, topic: str) -> None:
    """The commands that `cheat TOPIC` prints succeed when run in order, and fit into 24 lines of 80 columns."""
    shell.environment |= {"MQTOOL_MANAGEMENT_URL": broker.management, "XDG_CONFIG_HOME": str(shell.directory)}
    printed = shell.run("mqtool", "cheat", topic).stdout
    assert len(printed.splitlines()) <= 24
    assert max(map(len, printed.splitlines())) <= 80

    (shell.directory / "app.log").write_text("shop: error out of stock\nshop: info started\n")
    resize = shell.directory / "resize"
    resize.write_text("#!/bin/sh\nexit 0\n")
    resize.chmod(0o755)
    if topic == "workers":  # which moves dead letters, so there has to be one
        shell.script("mqtool new-task x; mqtool worker --exec false --retries 0 --idle-timeout 1s")
    result = shell.script(f"set -eu\ntrap 'kill $(jobs -p) 2>&- || true' EXIT\n{printed}")
    assert result.code == 0, result.stderr


def test_cheat_lists_its_topics_and_suggests_the_most_similar_one(lonely_shell: Shell) -> None:
    """`cheat` lists all topics. If a topic is mistyped, `cheat` exits with 2 and suggests the most similar one."""
    listed = lonely_shell.run("mqtool", "cheat").stdout
    assert [line.split()[2] for line in listed.splitlines()] == [*recipes()]
    wrong = lonely_shell.run("mqtool", "cheat", "worker")
    assert wrong.code == 2
    assert "did you mean 'workers'?" in wrong.stderr
