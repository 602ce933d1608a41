"""Names from a broker are escaped on a terminal, and quoted in command lines that users may paste."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

import mqtool
from mqtool.cli.display import output
from mqtool.cli.help.index import SENTENCES
from mqtool.spelling import name_broker, pasteable

COMMANDS = set(SENTENCES)
SOURCES = sorted(Path(mqtool.__file__).parent.rglob("*.py"))
NAMES = [
    "jobs",
    "two words",
    "x fanout; touch P #",
    "$HOME `id`",
    "it's",
    "--yes",
    "-q",
    "\x1b]0;x\x07",
    "q\udcff",
    "käse",
    "\u202e",
]
#: Where mqtool's own names are put into command lines: of tutorials, drills, help topics and cheat sheets.
_OWN_NAMES = {"tutorial", "drill", "help", "cheat", "list"}
#: A command line of mqtool, up to an inserted name; see template().
_COMMAND_LINE = re.compile(r"mqtool (?:[a-z-]+ )+(?:[\w'=-]+ )*[\w'=-]*\{\}")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_printed_command_line_is_one_argument(name: str) -> None:
    """In a command line that mqtool prints, names are quoted, so that bash passes each of them to mqtool as one
    argument and not as an option.
    """
    script = f"mqtool() {{ printf '%s\\0' \"$@\"; }}; {pasteable('queue delete', name)}"
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    assert words == [
        b"queue",
        b"delete",
        *([b"--"] if name.startswith("-") else []),
        name.encode("utf-8", "surrogateescape"),
    ]
    script = f"mqtool() {{ printf '%s\\0' \"$@\"; }}; {pasteable('receive --queue=', name)}"
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    assert words == [b"receive", b"--queue=" + name.encode("utf-8", "surrogateescape")]


def test_a_name_with_a_nul_is_not_cut_in_a_printed_command_line() -> None:
    """In a command line that mqtool prints, a NUL in a queue's name is written as an escape sequence. A shell would
    otherwise cut the name or drop the NUL, and the command could act on another queue.
    """
    script = f"mqtool() {{ printf '%s\\0' \"$@\"; }}; {pasteable('queue delete', chr(0).join(('pay', '0ll')))}"
    words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    assert words == [b"queue", b"delete", b"pay\\x000ll"]


def test_a_printed_command_line_repeats_the_options_that_named_the_broker() -> None:
    """If options such as --url named the broker, the command lines that mqtool prints contain these options, so that
    the commands use the same broker. Command lines that name a broker themselves, start a broker, or are meant for an
    administrator do not contain these options.
    """
    try:
        name_broker({"--url": "amqp://other host", "--vhost": "v"})
        assert pasteable("queue delete", "-q") == "mqtool queue delete '--url=amqp://other host' --vhost=v -- -q"
        assert pasteable("peek --queue=", "q", "x") == "mqtool peek --queue=q '--url=amqp://other host' --vhost=v x"
        for own in ("send --url=", "send -C x --file=", "broker up --port=", "context use --x=", "user tags --x="):
            assert pasteable(own, "y") == f"mqtool {own}y"
    finally:
        name_broker({})
    assert pasteable("queue delete", "q") == "mqtool queue delete q"


def template(node: ast.AST) -> str:
    """The text that an expression makes, with "{}" for each value that is inserted; "{}" for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.replace("%s", "{}")
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "{}"


def test_every_name_in_a_printed_command_line_is_quoted() -> None:
    """Every name that mqtool inserts into a command line that it prints is quoted for the shell, except the names of
    mqtool's own commands, tutorials and help topics. This test finds names in f-strings, in concatenated strings and in
    strings with "{}" or "%s".
    """
    found = []
    for path in SOURCES:
        if {"plays", "drills", "plain_pika", "plain_rstream", "plain_amqp10"} & set(path.parts):
            continue  # their commands are typed, with names of their own
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "mqtool " in text else ():
            if not isinstance(node, (ast.JoinedStr, ast.BinOp, ast.Constant)):
                continue
            printed = template(node)
            lines = re.findall(_COMMAND_LINE, printed) if "mqtool " in printed else ()
            found += [f"{path}:{node.lineno}: {line}" for line in lines if line.split()[1] in COMMANDS - _OWN_NAMES]
    assert found == []


def test_commands_print_through_escaping_functions() -> None:
    """The modules of mqtool's commands contain no print(), output.write(), os.write(), typer.echo(), sys.stdout or
    sys.stderr. Instead, they print through functions that escape control characters.
    """
    unescaped = re.compile(r"\b(?:print|(?:typer|click)\.s?echo|(?:output|os)\.write)\(|\bsys\.std(?:out|err)\b")
    commands = [path for path in SOURCES if path.parts[-2] in ("commands", "pipe")]
    assert len(commands) > 50
    assert {str(path): found for path in commands if (found := unescaped.findall(path.read_text()))} == {}


@pytest.mark.parametrize(
    "character", ["\x1b", "\x9b", "\u200b", "\ufeff", "\u202e", "\u2066", "\U000e0041", "\u00ad", "\udcff"]
)
def test_control_and_invisible_characters_are_escaped(character: str) -> None:
    """mqtool escapes control characters and invisible characters in the text that it prints. In JSON, it escapes them
    in such a way that a JSON parser gets the original text.
    """
    assert output.visible(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"
    import json

    shown = output.visible_json(json.dumps(f"a{character}b", ensure_ascii=False))
    assert shown.isascii()
    assert json.loads(shown) == f"a{character}b"
