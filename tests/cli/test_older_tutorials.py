"""The commands of five articles about RabbitMQ: with --dialect, mqtool prints what the articles' scripts print, on the
same stream.
"""

import shlex
from pathlib import Path

import pytest

from tests.brokers import on_any_broker
from tests.cli.shell import Result, Shell
from tests.cli.tutorial_comparisons import SCENES, TASKS, Row, Scene, normal, page, table


def _printed(result: Result) -> tuple[str, str, int]:
    return normal(result.stdout), normal(result.stderr), result.code


def _check(row: Row, result: Result) -> None:
    expected = (row.out, row.err, row.code)
    if row.differs:
        assert _printed(result) != expected, f"{row.script} no longer differs: {row.differs}"
    else:
        assert _printed(result) == expected, row


@on_any_broker
@pytest.mark.parametrize(
    "scene", SCENES, ids=[f"{scene.dialect}: {scene.rows[0].script.replace('#', 'any')}" for scene in SCENES]
)
@pytest.mark.sampled(3)
def test_commands_with_the_dialect_of_an_article_print_the_lines_of_its_scripts(shell: Shell, scene: Scene) -> None:
    """Some values of --dialect each stand for an article about RabbitMQ. With such a dialect, each command prints the
    same lines as the article's script, on the same stream (stdout or stderr), and exits with the same code. The only
    differences are those that the documentation lists.
    """
    receivers = []
    for row in scene.rows:
        command = ["mqtool", *shlex.split(row.mqtool.partition(" > ")[0]), "--dialect", scene.dialect]
        if row.count is None:
            _check(row, shell.run(*command))
        else:
            receivers.append((row, shell.start(*command, *(["-c", str(row.count)] if row.count else []))))
            receivers[-1][1].wait_until_ready()
    for row, receiver in receivers:
        _check(row, (receiver if row.count else receiver.interrupt()).wait())


@on_any_broker
def test_mqtool_commands_that_replace_an_articles_rabbitmqctl_commands_succeed(shell: Shell) -> None:
    """docs/how-to/older-tutorials.md replaces the rabbitmqctl commands of older articles about RabbitMQ with mqtool
    commands. The mqtool commands succeed when they are run in the order in which they appear on the page. Commands
    that start or stop a broker, or enable or disable its plugins, are not run. A command that needs the delayed message
    plugin says so on a RabbitMQ without it.
    """
    (shell.directory / "secret").write_text("a long password\n")
    for task in TASKS:
        if task.runs:
            result = shell.run("mqtool", *shlex.split(task.mqtool))
            lacks_plugin = "--via plugin" in task.mqtool and "the delayed message plugin" in result.stderr
            assert result.code == 0 or lacks_plugin, (task.mqtool, result.stderr)


def test_the_comparison_table_of_older_tutorials_is_up_to_date() -> None:
    """The comparison table in docs/how-to/older-tutorials.md is the one that `make docs` generates."""
    text = Path("docs/how-to/older-tutorials.md").read_text()
    assert text == page(text)
    assert table() in text
