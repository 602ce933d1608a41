"""The help: short, complete, and not cut off on any terminal."""

import re
from typing import Any

import pytest
import typer

from docs.generate import described
from mqtool.cli.commands import command_tree
from mqtool.cli.help.description import CommandHelp, leaves, topic_options
from mqtool.cli.help.help_topics import TOPICS, topic_text, write_topic
from mqtool.cli.help.overview import overview
from mqtool.cli.usage import explain
from tests.brokers import IN_CI, large
from tests.cli.shell import Shell

#: The most lines of a command's help, by columns: two screens, and more on a narrow terminal.
LINES = {80: 60, 50: 90}
TRANSLATED = re.compile(
    r"\b(so many|so long|so often|so far|shall|would bite|told by|be it|is no [a-z]+)\b", re.IGNORECASE
)


def every(command: CommandHelp) -> list[CommandHelp]:
    """A command and all below it."""
    return [command, *(each for below in command.commands for each in every(below))]


def page_of(command: CommandHelp, columns: int = 80, *, everything: bool = False) -> str:
    """What --help or --help-all of a command prints at a width."""
    found: Any = typer.main.get_command(command_tree(command.words))
    for word in command.words:
        found = found.commands[word]
    context = typer.Context(found, info_name=command.path, terminal_width=columns - 2)
    context.meta["mqtool.help_all"] = everything
    return str(context.get_help())


def line_of(words: str) -> str:
    """What --help of a command prints, on one line."""
    [command] = [each for each in leaves(described()) if " ".join(each.words) == words]
    return " ".join(page_of(command).split())


def topic_page(name: str, columns: int) -> str:
    """What `mqtool help` prints about a topic at a width."""
    formatter = typer.Context(typer.main.get_command(command_tree([])), terminal_width=columns - 2).make_formatter()
    options = topic_options(described(), name)
    write_topic(name, [(option.syntax, option.text) for option in options], formatter)
    return str(formatter.getvalue())


@pytest.mark.parametrize("columns", LINES, ids="{} columns".format)
@pytest.mark.sampled(1)
def test_help_fits_on_two_screens_and_nothing_is_cut(columns: int) -> None:
    """`COMMAND --help` has at most 60 lines on a terminal of 80 columns, and at most 90 lines on a terminal of 50
    columns. Apart from examples and single long words, no line is wider than the terminal, and no text is cut.
    """
    for command in every(described())[1:]:
        page = page_of(command, columns)
        assert len(page.splitlines()) <= LINES[columns], command.words
        assert "…" not in page.replace("5f0c…", "")
        examples = {f"    {example}" for example in command.examples}
        wide = [line for line in page.splitlines() if len(line) > columns and line not in examples]
        assert [line for line in wide if " " in line.strip()] == []


def test_every_command_has_examples_and_short_descriptions() -> None:
    """The help describes each command in at most 64 characters. Each command has examples, unless it is a group of
    other commands. The text of an option or argument has at most 60 characters, not counting its default, and does not
    end with a full stop.
    """
    for command in every(described()):
        assert command.sentence, command.words
        assert len(command.sentence) <= 64
        for text in (*(option.text for option in command.options), *(each.text for each in command.arguments)):
            assert len(re.split(r" \(default| \[", text)[0]) <= 60
            assert not text.endswith(".")
        assert command.commands or command.examples, command.words
        for text in (command.sentence, *command.details, *(option.text for option in command.options)):
            assert not TRANSLATED.search(text)


def test_help_names_the_value_of_an_option_and_gives_the_unit_of_a_duration() -> None:
    """The help shows an option's value as a name such as N or FILE, not as a Python type such as <int range>. The
    default of every duration has a unit.
    """
    for command in leaves(described()):
        page = page_of(command, everything=True)
        assert not re.search(r"<(int|float|str|path)\b", page), command.words
        for option in command.options:
            if "DURATION" in option.syntax and "default: " in option.text:
                assert re.search(r"default: \(?[0-9]+(ms|s|m|h)\b", option.text), (command.words, option.flags)
    assert "default: 30s]" in line_of("wait")


def test_help_all_shows_every_option() -> None:
    """`COMMAND --help-all` shows all options. `COMMAND --help` leaves out some options, and names the help topics that
    describe these options.
    """
    topics = {name: topic_page(name, 80) for name in TOPICS}
    for command in leaves(described()):
        everything, page = page_of(command, everything=True), page_of(command)
        for option in command.options:
            assert option.flags[-1] in everything, command.words
            if not option.is_common:
                assert f"mqtool help {option.topic}" in page, command.words
                assert option.flags[-1] in topics[option.topic]


@pytest.mark.parametrize("columns", LINES, ids="{} columns".format)
@pytest.mark.parametrize("name", TOPICS)
def test_a_help_topic_fits_the_terminal(name: str, columns: int) -> None:
    """`mqtool help TOPIC` wraps its lines to the width of the terminal, except for examples."""
    page = topic_page(name, columns)
    assert not TRANSLATED.search(page)
    wide = [line for line in page.splitlines() if len(line) > columns and not line.startswith("  mqtool ")]
    assert [line for line in wide if " " in line.strip()] == []


def test_help_shows_the_default_queue_and_its_type() -> None:
    """The help of a tutorial's command names the default queue or exchange, its type, and whether it is durable."""
    assert "default: hello, a durable quorum queue" in line_of("send")
    assert "default: logs, a transient fanout exchange" in line_of("emit-log fanout")
    assert "default: rpc_queue, a durable quorum queue" in line_of("rpc-server")


def test_help_says_which_options_are_settings_of_a_new_queue() -> None:
    """`mqtool help declaring` marks options such as --ttl and --max-length as settings of a new queue, and says that
    with --ttl, all messages of this queue expire. `mqtool help messages` shows how to give one message an expiration.
    """
    page = " ".join(topic_page("declaring", 80).split())
    for option in ("--ttl DURATION New queue: ", "--max-length N New queue: ", "--queue-type TYPE New queue: "):
        assert option in page
    assert "all messages of the new queue expire" in page
    assert "Property, such as content-type=text/plain or expiration=5s" in " ".join(topic_page("messages", 80).split())


def test_a_help_topic_leaves_out_defaults_that_differ_between_commands() -> None:
    """`mqtool help TOPIC` shows the default of an option only if all commands with the option have this default."""
    declaring = " ".join(topic_page("declaring", 80).split())
    assert "-q, --queue QUEUE Queue --" in declaring
    assert "-e, --exchange EXCHANGE Exchange --" in declaring
    assert "default: python]" in declaring
    assert "default: 20s]" in topic_page("messages", 80)


def test_mqtool_alone_says_how_to_start(lonely_shell: Shell) -> None:
    """`mqtool` without arguments prints at most ten lines, which say what to type first and where to find the rest."""
    result = lonely_shell.run("mqtool")
    assert result.code == 0
    for command in ("mqtool tutorial run hello-world", "mqtool broker up", "mqtool send", "mqtool --help"):
        assert command in result.stdout
    assert len(result.stdout.splitlines()) <= 10


def test_mqtool_help_prints_the_help_of_a_command_or_topic(lonely_shell: Shell) -> None:
    """`mqtool help COMMAND` prints the same as `mqtool COMMAND --help`, `mqtool help TOPIC` prints a help topic, and
    `mqtool help` prints the same as `mqtool --help`. For a word that is neither, the hint names the topics.
    """
    assert lonely_shell.run("mqtool", "help").stdout == lonely_shell.run("mqtool", "--help").stdout
    assert (
        lonely_shell.run("mqtool", "help", "queue", "declare").stdout
        == lonely_shell.run("mqtool", "queue", "declare", "--help").stdout
    )
    assert "; topics: connection, delivery, " in lonely_shell.run("mqtool", "help", "topicz").stderr
    assert "\n  65     bad input data\n" in lonely_shell.run("mqtool", "help", "exit-codes").stdout
    assert len(overview().splitlines()) <= LINES[80]


def test_help_finds_a_command_by_its_alias(lonely_shell: Shell) -> None:
    """`mqtool help ALIAS` and `mqtool ALIAS --help` print the help of the command itself, which names the alias. The
    overview, `mqtool --help`, lists no aliases, but the help of a group such as `queue` does.
    """
    for typed, meant in (
        ("pub", "send"),
        ("consume", "receive"),
        ("queue ls", "list queues"),
        ("user list", "list users"),
    ):
        expected = lonely_shell.run("mqtool", *meant.split(), "--help")
        assert expected.code == 0
        for asked in (["help", *typed.split()], [*typed.split(), "--help"], ["-C", "prod", *typed.split(), "--help"]):
            assert lonely_shell.run("mqtool", *asked).stdout == expected.stdout
        assert f"'mqtool {typed}'" in expected.stdout
    assert "publish " not in overview()
    assert "'queue list' and 'queue ls' mean 'list queues'." in lonely_shell.run("mqtool", "queue", "--help").stdout
    assert "'user list' and 'user ls' mean 'list users'." in lonely_shell.run("mqtool", "help", "user").stdout


def test_the_help_says_when_yes_and_idle_timeout_apply(lonely_shell: Shell) -> None:
    """Commands such as `move` ask for confirmation only in a protected context, where --confirm NAME is needed. Their
    help therefore says that --yes has no effect. The help of other commands, such as `dlq redrive`, says that --yes
    skips the prompt or confirmation. The help of --idle-timeout says that the command stops if it is connected but
    idle.
    """
    commands = ("move", "delayed now", "permission clear", "exchange unbind", "broker fault")
    for command, option, said in (
        *((each, "-y, --yes", "No effect; in protected contexts, use --confirm NAME instead") for each in commands),
        ("dlq redrive", "-y, --yes", "Skip the prompt; in protected contexts, use --confirm NAME"),
        ("queue purge", "-y, --yes", "Skip confirmation; in protected contexts, use --confirm NAME"),
        ("definitions import", "-y, --yes", "Skip confirmation; in protected contexts, use --confirm NAME"),
        ("receive", "--idle-timeout DURATION", "Stop if connected but idle this long"),
    ):
        text = " ".join(lonely_shell.run("mqtool", *command.split(), "--help-all").stdout.split())
        assert f"{option} {said}" in text, command


def test_help_can_be_piped_into_head(lonely_shell: Shell) -> None:
    """If the reader of `--help-all` exits early, as `head` does, nothing is printed on stderr."""
    result = lonely_shell.script("mqtool worker --help-all | head -n 1; echo ${PIPESTATUS[0]}")
    first, code = result.stdout.splitlines()
    assert first == "Usage: mqtool worker [OPTIONS]"
    assert code in ("0", "141")
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["--help", "queue --help", "receive --help", "help receive", "receive --help-all"])
def test_help_exits_with_141_if_nobody_reads_it(lonely_shell: Shell, command: str) -> None:
    """If the reader of the help has already exited, the exit code is 141 (128 + SIGPIPE), and nothing is printed on
    stderr.
    """
    late = f"( until [ -e gone ]; do :; done; mqtool {command} )"
    result = lonely_shell.script(f"{late} | {{ exec <&-; touch gone; }}; echo ${{PIPESTATUS[0]}}")
    assert (result.stdout, result.stderr) == ("141\n", "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("broker start", "mqtool broker up"),
        ("broker stop", "mqtool broker down"),
        ("recieve", "mqtool receive"),
        ("publsh", "mqtool send"),
        ("help consum", "mqtool receive"),
        ("tutorial shwo", "mqtool tutorial show"),
        ("send --qeue x", "--queue"),
        ("receive --idle 3s", "--idle-timeout"),
        ("receive --noack", "--auto-ack"),
        ("context add x --ulr y", "--url"),
        ("send x --dialect pyton", "python"),
        ("broker up --kind emebdded", "embedded"),
        ("exchange declare foo tpoic", "topic"),
        ("list queues nmae", "name"),
        ("help conection", "mqtool help connection"),
        ("tutorial run helo-world", "hello-world"),
        ("top --sort redy", "ready"),
    ],
)
@pytest.mark.sampled(5)
def test_a_mistyped_word_gets_the_nearest_name_as_a_hint(lonely_shell: Shell, typed: str, meant: str) -> None:
    """If a command, an option or a value is mistyped, mqtool exits with 2, and the hint asks "did you mean" with the
    most similar name. If that is a synonym of a command, the hint is the command itself: for `publsh`, which resembles
    `publish`, the hint is `mqtool send`.
    """
    result = lonely_shell.run("mqtool", *typed.split())
    assert result.code == 2
    assert f"hint: did you mean {meant!r}?" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("typed", ["send --tpye x", "send --rate 5", "send --retries 3"])
def test_an_option_that_resembles_no_other_gets_the_list_of_options_as_a_hint(lonely_shell: Shell, typed: str) -> None:
    """If an unknown option shares only its dashes and a few letters with the command's options, the hint suggests none
    of them, but says how to list them.
    """
    result = lonely_shell.run("mqtool", *typed.split())
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.endswith("hint: 'mqtool send --help-all' lists the options\n")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("list queues --filter messages>0", "--where, such as"),
        ("send x --host other", "--url, such as amqp://"),
        ("send x --port 5673", "--url, such as localhost:5673"),
        ("receive --limit 3", "--count N"),
    ],
)
def test_an_option_of_another_tool_gets_mqtools_option_as_a_hint(lonely_shell: Shell, typed: str, hint: str) -> None:
    """If a command is given an option that other tools have, such as --host, it exits with 2, and the hint names
    mqtool's own option.
    """
    result = lonely_shell.run("mqtool", *typed.split())
    assert (result.code, result.stdout) == (2, "")
    assert f"hint: {hint}" in result.stderr


@large
def test_hints_about_options_name_the_command_or_an_option() -> None:
    """If an option of any command is misspelled, lacks its value, or has a value although it takes none, the hint
    contains the name of the command or suggests another option. Unless the hint is an example, it does not contain
    `<`, `>` or `|`, which would start a redirection or a pipe when a user pastes the hint.
    """
    tried = set()
    for command in leaves(described()):
        run = typer.main.get_command(command_tree(command.words))
        for option in command.options:
            flag = option.flags[-1]
            if flag in tried and not IN_CI and option != command.options[0]:
                continue
            tried.add(flag)
            for typed in (
                [flag] if option.takes_value else [f"{flag}=x"] if flag.startswith("--") else [],
                [f"{flag}-not"],
            ):
                with pytest.raises(typer.TyperException) as raised:
                    run(args=[*command.words, *typed], prog_name="mqtool", standalone_mode=False)
                hint = explain(raised.value)[1]
                assert hint is not None
                assert command.path in hint or hint.startswith(("did you mean", "--")), (command.words, typed, hint)
                assert hint.startswith("for example: ") or not re.search("[<>|]", hint), (command.words, typed, hint)


def test_dialect_strict_and_verbose_are_shown_only_for_commands_that_they_affect() -> None:
    """--dialect, --strict and --verbose appear only in the help of commands that they affect."""
    shown = {
        " ".join(each.words): {flag for option in each.options for flag in option.flags} for each in leaves(described())
    }
    special = {"--dialect", "--strict", "--verbose"}
    assert shown["send"] >= special
    assert shown["worker"] & special == {"--dialect", "--strict"}
    assert shown["queue declare"] & special == {"--dialect"}
    for name in ("queue show", "queue delete", "queue purge", "user add", "list queues", "top", "dlq drop"):
        assert not shown[name] & special


@large
def test_a_group_of_commands_without_a_command_shows_its_help(lonely_shell: Shell) -> None:
    """If only the name of a group of commands is typed, as in `mqtool queue`, mqtool prints the group's help once. It
    exits with 2, because the command may be missing by mistake: in a script, for example, the variable in `mqtool
    emit-log $KIND` may be empty.
    """
    for group in (each.words for each in every(described())[1:] if each.commands):
        alone = lonely_shell.run("mqtool", *group)
        assert alone.stdout == lonely_shell.run("mqtool", *group, "--help").stdout
        assert (alone.code, alone.stderr, alone.stdout.count("Usage:")) == (2, "", 1)


def test_the_overview_of_all_commands_fits_on_one_screen() -> None:
    """`mqtool --help` has at most 40 lines, and names every command or its group, such as `queue`."""
    page = overview()
    assert len(page.splitlines()) <= 40
    named = set(re.split(r"[\s,:]+", page))
    assert {command.words[0] for command in described().commands} <= named


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("list_queues", "mqtool list queues"),
        ("list_consumers -p shop", "mqtool list consumers --vhost shop"),
        ("change_password ann", "mqtool user password USER --password-file FILE"),
        ("add_user ann", "mqtool user add USER --password-file FILE"),
        ("receive_logs_topic.py kern.*", "mqtool receive-log topic 'kern.*'"),
        ("new-task.py x", "mqtool new-task 'A task of three seconds...'"),
        ("version", "mqtool --version"),
    ],
)
def test_rabbitmqctl_commands_and_script_names_get_the_right_hint(lonely_shell: Shell, typed: str, line: str) -> None:
    """If the command is one of rabbitmqctl's, such as `list_queues`, or the name of a script of RabbitMQ's tutorials,
    such as `new-task.py`, mqtool exits with 2. The hint is the mqtool command that does the same. `mqtool help
    rabbitmqctl` lists this mqtool command, too.
    """
    result = lonely_shell.run("mqtool", *typed.split())
    assert (result.code, result.stderr.splitlines()[1]) == (2, f"hint: did you mean {line!r}?")
    assert line.partition(" --vhost")[0] in " ".join(topic_page("rabbitmqctl", 200).split())


@pytest.mark.parametrize("row", re.findall(r"(?m)^  \S+  mqtool (.*)", topic_text("rabbitmqctl")[1]))
def test_mqtool_commands_in_the_rabbitmqctl_topic_exist(row: str) -> None:
    """`mqtool help rabbitmqctl` lists rabbitmqctl commands and the corresponding mqtool commands. Each of these mqtool
    commands exists, and has the options that are listed with it.
    """
    words = row.split()
    if words != ["--version"]:
        command = next(each for each in leaves(described()) if tuple(words[: len(each.words)]) == each.words)
        flags = {flag for option in command.options for flag in option.flags}
        assert {word for word in words if word.startswith("--")} <= flags


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("user add ann secret", "--password-file FILE, or - to read it from stdin"),
        ("queue purge", "for example: mqtool queue purge jobs"),
        ("receive -c many", "'many' is not a number"),
    ],
)
def test_a_usage_error_shows_an_option_an_example_or_the_invalid_value(
    lonely_shell: Shell, typed: str, said: str
) -> None:
    """A usage error shows an option or an example that can be typed, or the invalid value. If a password was typed as
    an argument, as in `user add ann secret`, mqtool does not print it.
    """
    result = lonely_shell.run("mqtool", *typed.split())
    assert result.code == 2
    assert said in result.stderr
    assert "secret" not in result.stderr


def test_the_help_shows_long_options_in_lower_case() -> None:
    """The help shows every long option, such as --rate, in lower case."""
    flags = [flag for command in every(described()) for option in command.options for flag in option.flags]
    assert [flag for flag in flags if flag.startswith("--") and flag != flag.lower()] == []


def test_the_help_of_tutorial_commands_names_the_option_for_the_protocol() -> None:
    """The help of each tutorial's command names the option --protocol and the help topic that explains it."""
    commands = [
        command
        for command in leaves(described())
        if any(option.flags == ("--protocol",) and option.topic == "connection" for option in command.options)
    ]
    tutorials = {"send", "receive", "new-task", "worker", "emit-log", "receive-log", "rpc-client", "rpc-server"}
    assert {command.words[0] for command in commands} == tutorials | {"publisher-confirms"}
    for command in commands:
        assert re.search("mqtool help connection +--protocol, ", page_of(command)), command.words
