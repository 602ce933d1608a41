"""Command lines in the documentation are valid and print what is shown, and each command is documented."""

import ast
import functools
import re
import shlex
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer

from docs.generate import (
    COMMAND_PAGES,
    COMMANDS,
    DIALECTS,
    INDEX,
    MANUAL,
    NOTATION,
    PYTHON,
    TUTORIAL_ROWS,
    described,
    dialects,
    index,
    manual,
    notation,
    python,
    reference,
    tutorials,
    write_whole,
)
from mqtool.cli.commands import command_tree, without_aliases
from mqtool.cli.help.description import CommandHelp, leaves
from tests.brokers import on_any_broker
from tests.cli.shell import Running, Shell, wait_until
from tests.protocol.broker_process import BrokerProcess

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ARCHITECTURE.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts),
]
TUTORIALS = ROOT / "docs" / "tutorials.md"
#: The pages that are written from the commands themselves.
REFERENCE = {COMMANDS, *COMMAND_PAGES.iterdir()}
PAGES = [page for page in DOCUMENTS if "```sh\n" in page.read_text() and page != TUTORIALS]


@functools.cache
def commands() -> dict[tuple[str, ...], CommandHelp]:
    """Every command by its words, such as ("emit-log", "fanout")."""
    return {leaf.words: leaf for leaf in leaves(described())}


def documented_lines() -> list[str]:
    """The command lines in the documents' code, and in the epilogs of --help."""
    texts = [document.read_text() for document in DOCUMENTS if document not in REFERENCE]
    pieces = re.compile(r"```(?:sh|bash)\n(.*?)```|`(mqtool [^`\n]+)`", re.DOTALL)
    code = [piece for text in texts for piece in pieces.findall(text)]
    code += [(line, "") for text in texts for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE)]
    lines = [line for block, inline in code for line in (block or inline).splitlines()]
    for command in commands().values():
        assert command.examples, f"{command.path} has no example in its help"
        lines += command.examples
    return sorted({line.strip() for line in lines if re.search(r"\bmqtool [a-z]", line) and "…" not in line})


def invocations(line: str) -> list[list[str]]:
    """Return the arguments of each mqtool command in a shell line, without comments or redirections."""
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


@functools.cache
def _built(*words: str) -> Any:
    return typer.main.get_command(command_tree(words))


def parse(arguments: list[str]) -> None:
    """Parse a command's words as mqtool does, and do nothing."""
    rest = without_aliases(arguments)
    command = _built(*(rest if "".join(rest[:1]).startswith("-") else rest[:2]))
    while rest and hasattr(command, "commands"):
        word = rest.pop(0)
        if word == "-C":
            rest.pop(0)
        elif not word.startswith("-"):
            command = command.commands[word]
    command.make_context("mqtool", rest)


def test_command_lines_in_the_documents_are_valid() -> None:
    """Each mqtool command line in the documentation and in the help is valid: its command and options exist, and the
    options have valid values.
    """
    refused = {}
    for line in documented_lines():
        for arguments in invocations(line):
            try:
                parse(arguments)
            except typer.Exit:  # a group of commands alone shows its help
                continue
            except Exception as error:
                refused[line] = repr(error)
    assert refused == {}


def test_benchmarks_run_commands_that_exist() -> None:
    """Each mqtool command that a benchmark runs exists."""
    unknown = set()
    for path in (ROOT / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List) and ast.unparse(node).startswith("[MQTOOL, '"):
                words = [word.value for word in node.elts[1:3] if isinstance(word, ast.Constant)]
                command: Any = typer.main.get_command(command_tree(without_aliases(words)))
                while words and hasattr(command, "commands"):
                    command = command.commands.get(words.pop(0))
                if command is None or hasattr(command, "commands"):
                    unknown.add(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert unknown == set()


def test_the_generated_reference_is_up_to_date() -> None:
    """The reference pages and the man page are identical to what `make docs` generates from the current commands."""
    assert {path: path.read_text() for path in REFERENCE} == reference()
    assert MANUAL.read_text() == manual()
    assert INDEX.read_text() == index()
    assert TUTORIAL_ROWS.read_text() == tutorials()
    assert DIALECTS.read_text() == dialects()
    assert NOTATION.read_text() == notation()
    if sys.version_info < (3, 14):  # which writes the types of signatures differently
        assert PYTHON.read_text() == python()


def test_the_index_of_commands_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """mqtool's commands import an index of commands, which is rewritten when the documentation is built. A process that
    opened the file before it was rewritten still reads the whole old index. A process that opens it afterwards reads
    the whole new one.
    """
    written = tmp_path / "index.py"
    written.write_text("old")
    with written.open() as opened:
        write_whole(written, "new")
        assert opened.read() == "old"
    assert written.read_text() == "new"


def test_the_index_of_commands_links_to_each_command() -> None:
    """The index of commands in the documentation links to each command, and every link leads to an existing heading.
    Each reference page has fewer than 600 lines.
    """
    links = re.findall(r"\]\(commands/(\S+)#(\S+)\): ", COMMANDS.read_text())
    headings = {
        (page.name, re.sub(r"\W+", "-", heading).strip("-"))
        for page in COMMAND_PAGES.iterdir()
        for heading in re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    }
    assert {*links} == headings
    assert {heading for _, heading in links} >= {f"mqtool-{'-'.join(words)}" for words in commands()}
    assert COMMANDS.read_text().index("`mqtool send`") < 1000, "the index begins with the first commands"
    assert max(len(page.read_text().splitlines()) for page in REFERENCE) < 600


def test_each_command_is_in_a_guide_or_the_readme() -> None:
    """Every command appears in the README or in a guide, not only in the reference."""
    guides = "".join(document.read_text() for document in DOCUMENTS if document not in REFERENCE)
    assert [
        words for words in commands() if f"mqtool {' '.join(words)}" not in guides and f"`{words[-1]}`" not in guides
    ] == []


def blocks_of(text: str) -> list[tuple[str, str]]:
    """The `sh` blocks of a page, each with the `text` block right below it, "" if there is none."""
    return re.findall(r"^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.DOTALL | re.MULTILINE)


def paste(shell: Shell, blocks: list[str]) -> list[str]:
    """Run blocks in one shell, and return what each printed, stdout and stderr together."""
    end = "-- end of a block --"
    typed = f"\necho '{end}'\n".join(blocks)
    result = shell.run("bash", "-c", f"exec 2>&1\nset -eu\n{typed}", timeout=120)
    assert result.code == 0, result.stdout
    return result.stdout.split(f"{end}\n")


def assert_shown(blocks: list[tuple[str, str]], printed: list[str]) -> None:
    """Assert that each block has printed what the page shows below it, if anything; … stands for any text."""
    for (typed, shown), real in zip(blocks, printed, strict=True):
        if shown:
            pattern = re.escape(shown).replace("…\\\n", "(.*\n)*").replace("…", ".*")
            assert re.fullmatch(pattern, real.rstrip("\n") + "\n"), f"{typed}\nprints\n{real}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.sampled(2)
def test_the_commands_on_a_documentation_page_print_what_it_shows(
    lonely_shell: Shell, tmp_path: Path, page: Path
) -> None:
    """If the commands on a page of the documentation are run in the order in which they appear, in an empty directory
    and on a new broker, they succeed, and print the output that the page shows.
    """
    blocks = blocks_of(page.read_text())
    (tmp_path / "broker").mkdir()
    (tmp_path / "typed").mkdir()
    lonely_shell.directory = lonely_shell.directory / "typed"
    lonely_shell.environment["XDG_CONFIG_HOME"] = str(tmp_path)
    with BrokerProcess(tmp_path / "broker", "--in-memory", "--management-port=0", "--stream-port=0") as broker:
        lonely_shell.environment |= {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.management_url}
        lonely_shell.environment["MQTOOL_STREAM_PORT"] = str(urlsplit(broker.stream_url).port)
        printed = paste(lonely_shell, [typed for typed, _ in blocks])
    assert_shown(blocks, printed)


#: A pasted command that would take minutes, and what the test adds to it.
SHORTENED = {"mqtool publisher-confirms all": " -c 2000"}
SECTIONS = [text for text in TUTORIALS.read_text().split("\n## ") if "\nRun this in terminal 1" in text]


@on_any_broker
@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.partition("\n")[0])
@pytest.mark.sampled(2)
def test_the_commands_of_a_tutorial_succeed_in_several_terminals(shell: Shell, section: str) -> None:
    """The commands of each tutorial in the documentation succeed if they are pasted in order into several terminals.
    Commands that run until they are stopped exit with 0 after Ctrl-C, and at least one of them receives a message.
    """
    type_in_terminals(shell, section)


def type_in_terminals(shell: Shell, section: str) -> None:
    """Type a tutorial's blocks, each in a terminal of its own, and end those that run until Ctrl-C."""
    pattern = r"^Run this in terminal \d+ \(.*?\)(; press Ctrl-C to stop it)?:\n\n```sh\n(.*?)\n```"
    blocks = re.findall(pattern, section, re.MULTILINE)
    waiting: list[tuple[str, Running]] = []

    def has_printed(typed: str, running: Running) -> bool:
        _, redirected, file = typed.partition(" > ")
        return bool((shell.directory / file).read_text() if redirected else running.stdout)

    for waits, typed in blocks:
        running = shell.start("bash", "-c", f"exec {typed}{SHORTENED.get(typed, '')}", ready=False)
        if waits:
            waiting.append((typed, running.wait_for_stderr("close" if "stream" in typed else "ait")))
        else:
            assert running.wait(patience=180).code == 0, running.stderr
    wait_until(lambda: not waiting or any(has_printed(*each) for each in waiting), "a message")
    for _, running in waiting:
        assert running.interrupt().wait().code == 0


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md", "CHANGELOG.md"])
def test_papers_for_who_arrives_fit_on_a_screen(name: str) -> None:
    """The papers for people who are new to mqtool have at most 80 lines; the README's have at most 120 columns."""
    lines = (ROOT / name).read_text().splitlines()
    assert len(lines) <= 80
    assert name != "README.md" or [line for line in lines if len(line) > 120] == []
