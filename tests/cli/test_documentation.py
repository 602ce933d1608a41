"""What the documents say, holds: each command line is one that mqtool takes, and each command is in the README."""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.generate import DIALECTS, MANUAL, REFERENCE, dialects, manual, reference
from mqtool.cli.app import app
from tests.brokers import TestBroker
from tests.cli.shell import Shell

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ARCHITECTURE.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
]
GUIDES = sorted((ROOT / "docs" / "how-to").glob("*.md"))


@functools.cache
def group() -> Any:
    """mqtool itself."""
    return typer.main.get_command(app)


@functools.cache
def commands() -> dict[tuple[str, ...], Any]:
    """Every command by its words, such as ("emit-log", "fanout"); to make them all takes a second."""
    return below(group())


def below(group: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The commands of a group and of the groups in it."""
    found: dict[tuple[str, ...], Any] = {}
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            found |= below(command, (*path, name))
        else:
            found[*path, name] = command
    return found


def documented_lines() -> list[str]:
    """The command lines in the documents' code, and in the epilogs of --help."""
    texts = [document.read_text() for document in DOCUMENTS if document != REFERENCE]
    code = [piece for text in texts for piece in re.findall(r"```sh\n(.*?)```|`(mqtool [^`\n]+)`", text, re.DOTALL)]
    code += [(line, "") for text in texts for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE)]
    lines = [line for block, inline in code for line in (block or inline).splitlines()]
    for command in commands().values():
        assert command.epilog, f"{command.name} has no example in its help"
        lines += command.epilog.splitlines()
    return sorted({line.strip() for line in lines if re.search(r"\bmqtool [a-z]", line) and "…" not in line})


def invocations(line: str) -> list[list[str]]:
    """The arguments of each mqtool in a shell line, without comments, redirections and what is piped around it."""
    words = shlex.split(re.sub(r'"\$\((.*?)\)"', r"\1 ; ", line), comments=True)
    found: list[list[str]] = []
    current: list[str] | None = None
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.endswith("mqtool"):
            current = []
            found.append(current)
        elif word in ("|", "||", "&", "&&", ";"):
            current = None
        elif word in (">", ">>", "<"):
            skip = True
        elif current is not None:
            current.append(word)
    return found


def parse(arguments: list[str]) -> None:
    """Take a command's words as mqtool does, and do nothing."""
    context = group().make_context("mqtool", arguments)
    command, rest = group(), [*context._protected_args, *context.args]
    while hasattr(command, "list_commands"):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]


def test_a_documented_command_line_is_one_that_mqtool_takes() -> None:
    """Its command exists, and so do its options, with values that they take."""
    refused = {}
    for line in documented_lines():
        for arguments in invocations(line):
            try:
                parse(arguments)
            except Exception as error:
                refused[line] = repr(error)
    assert refused == {}


def test_the_command_reference_is_what_the_commands_say() -> None:
    """Else somebody has changed a command, and not run `make docs`; so does the man page."""
    assert REFERENCE.read_text() == reference()
    assert MANUAL.read_text() == manual()
    assert DIALECTS.read_text() == dialects()


def test_each_command_is_in_a_guide_or_the_readme() -> None:
    """A command that only the reference lists, nobody finds."""
    guides = "".join(document.read_text() for document in DOCUMENTS if document != REFERENCE)
    assert [
        words for words in commands() if f"mqtool {' '.join(words)}" not in guides and f"`{words[-1]}`" not in guides
    ] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_can_be_typed(lonely_shell: Shell, embedded: TestBroker, guide: Path) -> None:
    """The blocks of a how-to guide run, one after the other, in an empty directory on the embedded broker."""
    broker = embedded.with_fresh_vhost(f"guide-{guide.stem}")
    typed = "".join(re.findall(r"```sh\n(.*?)```", guide.read_text(), re.DOTALL))
    has_its_own = guide.stem.startswith("testing")
    where = "unset MQTOOL_URL" if has_its_own else f"export MQTOOL_URL={broker.url}"
    lonely_shell.environment["XDG_CONFIG_HOME"] = str(lonely_shell.directory)
    result = lonely_shell.run("bash", "-c", f"set -eu\n{where}\n{typed}")
    assert result.code == 0, result.stderr
    broker.drop_vhost()


def test_the_readme_is_read_in_a_minute() -> None:
    """Within 130 lines, none wider than 120 columns."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 120] == []
