"""Contexts: brokers with names, which of them a command uses, and protection from mistakes."""

import json
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest

from docs.generate import described
from mqtool.broker.background import birth
from mqtool.broker.state import Started, save
from mqtool.cli.chosen_broker import choose
from mqtool.cli.contexts import Effect
from mqtool.cli.help.description import leaves
from tests.brokers import IN_CI, TestBroker, depth, large, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.cli.test_completion import ask

#: Commands that only send or show messages: they do not ask if they declare nothing. The queue jobs, the stream events
#: and the exchanges TYPE_used exist.
NOT_ASKING = (
    "send -q jobs x",
    "send -e fanout_used x",
    "new-task -q jobs x",
    "emit-log fanout -e fanout_used x",
    "emit-log direct -e direct_used info x",
    "emit-log topic -e topic_used kern.info x",
    "emit-log headers -e headers_used -H a=b x",
    "send-stream -q events x",
    "offset send -q events",
    "publisher-confirms async -c 10",
    "publisher-confirms async -c 10 -q jobs",
    "rpc-client 1 --timeout 10ms",
    "receive-log fanout -e fanout_used --timeout 10ms",
    "receive-log direct -e direct_used info --timeout 10ms",
    "receive-log topic -e topic_used # --timeout 10ms",
    "receive-log headers -e headers_used a=b --timeout 10ms",
    "receive-stream -q events -c 1",
    "offset show events reports",
    "tap fanout_used --timeout 10ms",
    "peek jobs",
    "dlq ls",
    "dlq show jobs --from jobs",
    "delayed ls",
    "delayed show",
    "definitions export",
    "definitions diff new.json",
    "doctor",
    "policy ls",
    "queue show jobs",
    "route direct_used info",
    "top --once",
    "topology",
    "wait",
    "broker up",
    "broker status",
    "broker env -C staging",
)
#: Those that declare something, change a setting, or consume from a queue that others may use.
ASKING = (
    "emit-log fanout x",
    "emit-log fanout -e new x",
    "emit-log direct info x",
    "emit-log topic kern.info x",
    "emit-log headers -H a=b x",
    "emit-log fanout -e fanout_used --delay 5s x",
    "send -q jobs --delay 5s x",
    "new-task -q jobs --delay 5s x",
    "send-stream x",
    "send-stream -q new x",
    "send-stream -q new --partitions 2 -r a x",
    "send-stream -q events --partitions 2 -r a x",
    "offset send",
    "offset send -q new",
    "publisher-confirms async -c 10 -q new",
    "receive-log fanout",
    "receive-log direct info",
    "receive-log topic #",
    "receive-log headers a=b",
    "receive-log fanout -e new",
    "receive-log fanout -e fanout_used -q jobs",
    "receive-stream -q events --track reports",
    "tap --all --firehose",
    "tap --firehose-off",
    "ui --firehose",
    "ui --allow-changes",
)
#: Those that take --declare, and refuse to declare anything without it.
REFUSING = (
    "send x",
    "send -q new x",
    "send -q new --durable x",
    "new-task x",
    "new-task -q new x",
    "receive-stream",
    "receive-stream -q new",
    "receive-stream -q new --argument max-age=7D",
)
#: Ways to choose a broker, each with another broker, the strongest first; the broker and reason in `broker status`.
PRECEDENCE = {
    "--url amqp://option": "option:5672, from --url",
    "--context typed": "typed:5672, from --context typed",
    "MQTOOL_URL=amqp://variable": "variable:5672, from MQTOOL_URL",
    "AMQP_URL=amqp://second": "second:5672, from AMQP_URL",
    "MQTOOL_CONTEXT=exported": "exported:5672, from MQTOOL_CONTEXT=exported",
    "in use": "in-use:5672, from context 'in-use', which is in use",
    "broker up": "127.0.0.1:1, from 'mqtool broker up'",
    "default": "localhost:5672, the default",
}


def some(commands: Sequence[str]) -> Sequence[str]:
    """Return all of the commands in CI, and a third of them elsewhere."""
    return commands if IN_CI else commands[::3]


def effects() -> dict[str, Effect | None]:
    """Return the effect of each command on a broker, by the command's name."""
    return {" ".join(leaf.words): leaf.effect for leaf in leaves(described())}


@pytest.fixture
def home(lonely_shell: Shell) -> Shell:
    """A shell with configuration and state of its own."""
    directory = str(lonely_shell.directory)
    lonely_shell.environment |= {"XDG_CONFIG_HOME": directory, "XDG_STATE_HOME": directory}
    return lonely_shell


def config(shell: Shell) -> Path:
    return shell.directory / "mqtool" / "config.toml"


def write_config(shell: Shell, text: str) -> None:
    config(shell).parent.mkdir(exist_ok=True)
    config(shell).write_text(text)


@pytest.fixture
def staging(shell: Shell, broker: TestBroker) -> Shell:
    """A shell that knows the test's broker only as the protected context `staging`, which is in use."""
    del shell.environment["MQTOOL_URL"]
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    added = ("context", "add", "staging", "--url", broker.url, "--management", broker.management, "--protected")
    assert shell.run("mqtool", *added).code == 0
    assert shell.run("mqtool", "context", "use", "staging").code == 0
    return shell


def has_known_stream_port(broker: TestBroker) -> bool:
    """True if the management API lists the stream port, as mqtool expects unless Docker maps it to another one."""
    listeners = broker.api("GET", "overview")["listeners"]  # type: ignore[index]
    return urlsplit(broker.streams).port in [each["port"] for each in listeners if each["protocol"] == "stream"]


def record_as_started(home: Shell, broker: TestBroker, born: str | None = None) -> None:
    """Write the record that `broker up` would have written for a broker, with this process as the broker's."""
    directory = home.directory / "mqtool" / "brokers" / "default"
    directory.mkdir(parents=True)
    recorded = {"management": broker.management, "streams": broker.streams}
    save(
        Started(
            "default", "embedded", broker.url, os.getpid(), str(directory), recorded, born=born or birth(os.getpid())
        )
    )


@pytest.mark.parametrize("strongest", PRECEDENCE)
@pytest.mark.sampled(3)
def test_options_override_the_environment_and_the_context_in_use(home: Shell, strongest: str) -> None:
    """A command uses the broker that the first of these names: --url, --context, MQTOOL_URL, AMQP_URL, MQTOOL_CONTEXT,
    the context in use. If none is set, the command uses the broker that `broker up` started or, if there is none,
    localhost. `broker status` says which broker is used, and why.
    """
    words, environment = [], {}
    rows = list(PRECEDENCE)
    for row in rows[rows.index(strongest) :]:
        if row.startswith("--"):
            words += row.split()
        elif "=" in row:
            environment.update([row.split("=")])
        elif row == "in use":
            names = ("typed", "exported", "in-use")
            tables = "".join(f'[contexts.{name}]\nurl = "amqp://{name}"\n' for name in names)
            write_config(home, f'use = "in-use"\n{tables}')
        elif row == "broker up":
            directory = home.directory / "mqtool" / "brokers" / "default"
            directory.mkdir(parents=True)
            save(Started("default", "embedded", "amqp://guest:guest@127.0.0.1:1", 0, str(directory), {}))
    if "typed" in words or "MQTOOL_CONTEXT" in environment:
        assert config(home).exists()
    result = home.run("mqtool", "broker", "status", *words, environment=environment)
    assert f"commands use amqp://guest@{PRECEDENCE[strongest]}" in map(str.strip, result.stdout.splitlines())


@pytest.mark.parametrize("command", ["send x", "list queues", "wait --timeout 10ms"])
def test_the_hint_names_the_source_of_the_url_of_a_broker_that_does_not_answer(home: Shell, command: str) -> None:
    """If no broker answers, the hint names the context or the environment variable from which mqtool got the broker's
    URL. If the URL was given with -u, the hint names neither.
    """
    write_config(home, 'use = "dev"\n[contexts.dev]\nurl = "amqp://localhost:1"\n')
    used = home.run("mqtool", *command.split())
    assert used.stderr.endswith("; the URL is from context 'dev', which is in use\n"), used.stderr
    variable = home.run("mqtool", *command.split(), environment={"AMQP_URL": "amqp://no-such-host.invalid"})
    assert variable.stderr.endswith("; the URL is from AMQP_URL\n"), variable.stderr
    typed = home.run("mqtool", *command.split(), "-u", "amqp://localhost:1")
    assert "the URL is from" not in typed.stderr


@on_any_broker
def test_broker_status_checks_a_broker_that_mqtool_did_not_start(shell: Shell) -> None:
    """If MQTOOL_URL or -u names a broker that mqtool did not start, `broker status` checks this broker. The command
    exits with 0 if the broker accepts connections, and with 69 if nothing listens at its address. With --name, it exits
    with 69 if no broker of this name was started.
    """
    shell.environment["XDG_STATE_HOME"] = str(shell.directory)
    answers = shell.run("mqtool", "broker", "status")
    assert (answers.code, answers.stdout.splitlines()[1:]) == (0, ["  running"]), answers.stderr
    assert shell.run("mqtool", "broker", "status", "-u", "amqp://localhost:1").code == 69
    assert shell.run("mqtool", "broker", "status", "--name", "mine").code == 69


def test_a_context_can_be_given_before_the_command(home: Shell) -> None:
    """`mqtool -C NAME send` uses the context NAME, even if MQTOOL_CONTEXT names another one. A -C after the command
    overrides the one before it.
    """
    write_config(home, '[contexts.one]\nurl = "amqp://one.invalid"\n[contexts.two]\nurl = "amqp://two.invalid"\n')
    environment = {"MQTOOL_CONTEXT": "two"}
    assert "'two.invalid'" in home.run("mqtool", "send", "x", environment=environment).stderr
    assert "'one.invalid'" in home.run("mqtool", "-C", "one", "send", "x", environment=environment).stderr
    assert "'two.invalid'" in home.run("mqtool", "-C", "one", "send", "x", "-C", "two").stderr


def test_a_context_applies_to_amqp_the_management_api_and_completion(staging: Shell, broker: TestBroker) -> None:
    """While a context is in use, `send` publishes to the context's broker. `list queues` and the completion of queue
    names use the management URL of the context that is in use or given with -C, even if MQTOOL_MANAGEMENT_URL
    contains another URL. For -C and --context, completion proposes the names of contexts.
    """
    staging.environment |= {"MQTOOL_MANAGEMENT_URL": "http://127.0.0.1:1", "MQTOOL_COMPLETION_TIMEOUT": "20s"}
    assert staging.run("mqtool", "send", "-q", "jobs", "--declare", "x").code == 0
    assert staging.run("mqtool", "-C", "staging", "list", "queues", "name").stdout == "jobs\n"
    assert ask(staging, "mqtool -C staging send -q j") == ("jobs", "", 0)
    assert ask(staging, "mqtool send -q j") == ("jobs", "", 0)
    assert ask(staging, "mqtool send --context st") == ("staging", "", 0)
    assert ask(staging, "mqtool -C st") == ("staging", "", 0)


def test_the_contexts_file_is_private_and_keeps_its_comments(home: Shell) -> None:
    """Only the owner can read the contexts file. Commands that change the file keep its comments. If the file is a
    symbolic link, they change the link's target and keep the link. `context show` and `context ls` print no passwords.
    """
    config(home).parent.mkdir()
    config(home).symlink_to(home.directory / "dotfile")
    add = ("mqtool", "context", "add")
    assert home.run(*add, "prod", "-u", "amqps://ann:s3cret@mq/shop", "--tls-ca", "ca.pem", "--protected").code == 0
    assert stat.S_IMODE(config(home).stat().st_mode) == 0o600
    config(home).write_text(f"# mine\n{config(home).read_text()}# the other\n")
    assert home.run(*add, "test", "-u", "amqp://test", "--password-command", "echo 'a \"b\"'").code == 0
    home.run("mqtool", "context", "use", "test")
    home.run("mqtool", "context", "use", "prod")
    assert config(home).read_text() == (
        f'use = "prod"\n# mine\n[contexts.prod]\nurl = "amqps://ann:s3cret@mq/shop"\n'
        f'tls-ca = "{home.directory}/ca.pem"\nprotected = true\n# the other\n\n'
        '[contexts.test]\nurl = "amqp://test"\npassword-command = "echo \'a \\"b\\"\'"\n'
    )
    assert stat.S_IMODE(config(home).stat().st_mode) == 0o600
    assert config(home).is_symlink()
    assert [each.name for each in config(home).parent.iterdir()] == ["config.toml"]
    assert not list(home.directory.glob("*.toml"))
    shown = home.run("mqtool", "context", "show", "--json").stdout + home.run("mqtool", "context", "ls").stdout
    assert json.loads(shown.splitlines()[0])["url"] == "amqps://ann@mq/shop"
    assert "s3cret" not in shown
    assert home.run("mqtool", "context", "rm", "prod").code == 0
    assert config(home).read_text() == (
        '# mine\n# the other\n\n[contexts.test]\nurl = "amqp://test"\npassword-command = "echo \'a \\"b\\"\'"\n'
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[contexts.a]\nurl = amqp://x\n', "line 2: invalid value"),
        ('[contexts.a]\nurl = "amqp://x"\n[contexts.b]\nurl = "amqp://x"\nprotcted = true\n',
         "line 5: context 'b' has an unknown key 'protcted'\nhint: did you mean 'protected'?"),
        ('[contexts.a]\nurl = "amqp://x"\nprotected = "yes"\n',
         "line 3: 'protected' of context 'a' is not true or false"),
        ('[contexts.a]\nmanagement = "http://x"\n', "line 1: context 'a' has no url"),
        ('use = "a"\ncolor = 1\n', "line 2: unknown key 'color'"),
        ('use = "a"\n', "unknown context 'a'"),
        ('contexts = 1', "line 1: a context is written as [contexts.NAME]"),
        ('[contexts.a]\nurl = "amqp://x"\ntls-ca = "~nosuchuser/ca.pem"\n',
         "line 3: 'tls-ca' of context 'a' is in an unknown home directory, ~nosuchuser"),
        (f'[contexts.a]\nurl = {"[" * 3000}{"]" * 3000}\n', "config.toml: a value is nested too deeply"),
    ],
    ids=["a URL without quotes", "an unknown key", "a text that should be a boolean", "a context without a URL",
         "an unknown setting", "an unknown context in use", "contexts that are not a table",
         "a file in an unknown home directory", "a deeply nested value"],
)  # fmt: skip
@pytest.mark.sampled(3)
def test_an_error_in_the_contexts_file_is_reported_with_its_line(home: Shell, text: str, said: str) -> None:
    """If the contexts file is invalid, `send` says what is wrong, usually with the number of the line, and exits with
    2. With --url, `send` does not read the file.
    """
    write_config(home, text)
    result = home.run("mqtool", "send", "x")
    assert result.code == 2
    assert result.stderr.startswith(f"mqtool: {config(home)}")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 2
    assert home.run("mqtool", "send", "x", "-u", "amqp://127.0.0.1:1").code == 69


def test_mistakes_with_contexts_are_usage_errors(home: Shell) -> None:
    """If a context is unknown or invalid, or if -C is given to a command that does not take a context, the command says
    what is wrong and exits with 2.
    """
    empty = home.run("mqtool", "context", "use", "nosuch")
    assert empty.stderr.endswith("hint: to add one: mqtool context add --url amqp://user@host/vhost nosuch\n")
    assert home.run("mqtool", "context", "ls").stderr.endswith(
        "no contexts yet; to add one: mqtool context add staging --url amqp://user@host/vhost\n"
    )
    assert home.run("mqtool", "context", "add", "staging", "-u", "amqp://a").code == 0
    for words, said in {
        "send x -C stagin": "unknown context 'stagin'\nhint: did you mean 'staging'?",
        "-C staging tutorial run": "'tutorial run' does not take a context\nhint: omit -C: it uses",
        "-C staging drill poison": "'drill poison' does not take a context",
        "context use stagin": "did you mean 'staging'?",
        "context rm nothing": "staging; to add one: mqtool context add --url amqp://user@host/vhost nothing\n",
        "context use a/b": "staging; to add one: mqtool context add --url amqp://user@host/vhost staging\n",
        "context use": "give either the name of a context or --none",
        "context show": "no context is in use",
        "context add staging -u amqp://b": "context 'staging' already exists",
        "context add a/b -u amqp://b": "'a/b' is not a valid context name",
        "context add b -u http://b": "its scheme is 'http'",
    }.items():
        result = home.run("mqtool", *words.split())
        assert result.code == 2
        assert said in result.stderr
    exported = home.run("mqtool", "send", "x", environment={"MQTOOL_CONTEXT": "nothing"})
    assert exported.stderr.startswith("mqtool: MQTOOL_CONTEXT: unknown context 'nothing'")


def test_context_ls_leaves_out_columns_on_a_narrow_terminal_rather_than_break_a_url(home: Shell) -> None:
    """If a terminal is too narrow for all columns, `context ls` leaves out the URL of the management API. If that is
    not enough, it also leaves out the column that shows whether the context is protected. It never breaks names or
    URLs. In a pipe, it prints all columns.
    """
    url = "amqp://ann@staging.example.com/shop"
    management = "http://staging.example.com:15672"
    home.run("mqtool", "context", "add", "staging", "--url", url, "--management", management, "--protected")
    first = ["staging", url]
    rows = {width: on_terminal(home, "mqtool", "context", "ls", columns=width).stdout for width in (110, 80, 60)}
    assert [rows[width].splitlines()[-1].split() for width in (110, 80, 60)] == [
        [*first, management, "true", "false"],
        [*first, "true", "false"],
        [*first, "false"],
    ]
    assert len(home.run("mqtool", "context", "ls").stdout.split("\t")) == 5


def test_contexts_added_at_the_same_time_are_all_kept(home: Shell) -> None:
    """If eight commands each add a context at the same time, the contexts file contains all eight contexts. `context
    edit` does not replace the contexts file if another command has changed it in the meantime.
    """
    started = [home.start("mqtool", "context", "add", f"c{n}", "--url", f"amqp://h{n}") for n in range(8)]
    assert [each.wait().code for each in started] == [0] * 8
    listed = home.run("mqtool", "context", "ls").stdout.splitlines()
    assert [line.split("\t")[0] for line in sorted(listed)] == [f"c{n}" for n in range(8)]
    editor = home.directory / "editor"
    editor.write_text(f"#!/bin/sh\necho 'use = \"c1\"' >> {config(home)}\n")
    editor.chmod(0o755)
    edited = home.run("mqtool", "context", "edit", environment={"EDITOR": str(editor)})
    assert edited.code == 1
    assert "has been changed meanwhile" in edited.stderr
    assert 'use = "c1"' in config(home).read_text()


def test_context_edit_names_an_editor_that_does_not_exist(home: Shell) -> None:
    """If the editor does not exist, `context edit` exits with 2. The error names the editor once and says why it
    cannot be run, without the system's error number.
    """
    edited = home.run("mqtool", "context", "edit", environment={"EDITOR": "nosucheditor"})
    assert (edited.code, edited.stderr) == (
        2,
        "mqtool: cannot run the editor 'nosucheditor': No such file or directory\nhint: set EDITOR\n",
    )


def test_context_edit_saves_only_a_valid_file(home: Shell) -> None:
    """If the edited text is invalid, `context edit` leaves the contexts file unchanged and saves the text in another
    file. If the editor fails, the contexts file stays unchanged as well.
    """
    editor = home.directory / "editor"
    editor.write_text('#!/bin/sh\necho "$TEXT" >> "$2"\nexit "$CODE"\n')
    editor.chmod(0o755)
    url = "amqp://a"
    home.run("mqtool", "context", "add", "a", "-u", url)
    before = config(home).read_text()

    def edit(text: str, code: int = 0) -> tuple[int, str]:
        variables = {"EDITOR": f"{editor} -x", "TEXT": text, "CODE": str(code)}
        result = home.run("mqtool", "context", "edit", environment=variables)
        return result.code, result.stderr

    code, said = edit("protected = yes")
    assert (code, config(home).read_text()) == (2, before)
    assert "nothing was changed: " in said
    assert "line 3: invalid value" in said
    assert "protected = yes" in Path(said.split("your text is in ")[1].strip()).read_text()
    code, said = edit("protected = true", 7)
    assert (code, config(home).read_text()) == (1, before)
    assert "exit code 7" in said
    assert edit("protected = true")[0] == 0
    assert config(home).read_text() == f"{before}protected = true\n"
    assert stat.S_IMODE(config(home).stat().st_mode) == 0o600


@on_any_broker
def test_the_password_is_the_first_line_that_the_password_command_prints(shell: Shell, broker: TestBroker) -> None:
    """A context's password command can be a program or a shell pipeline; the first line of its output is the
    password. Errors never show this output. Completion never runs the command.
    """
    del shell.environment["MQTOOL_URL"]
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    (shell.directory / "password").write_text("guest\nurl: example.com\n")
    (shell.directory / "wrong").write_text("s3cret\n")
    url = broker.url.replace("guest:guest", "guest")

    def with_command(command: str) -> tuple[int, str]:
        write_config(shell, f"[contexts.it]\nurl = {json.dumps(url)}\npassword-command = {json.dumps(command)}\n")
        result = shell.run("mqtool", "send", "-C", "it", "-l", "--debug", stdin="x\n")
        return result.code, result.stderr

    assert with_command("cat password")[0] == 0
    assert with_command("tr -d '\\r' < password | cat")[0] == 0
    code, said = with_command("cat wrong")
    assert (code, "s3cret" in said) == (77, False)
    for command, why in {
        "cat nothing": "failed with exit code 1: cat: nothing: No such file or directory",
        "true": "printed no password",
        "no-such-program": "cannot run the password command of context 'it': No such file or directory",
        "cat 'password": "cannot run the password command of context 'it': No closing quotation",
    }.items():
        code, said = with_command(command)
        assert code == 1
        assert why in said
    write_config(shell, f"[contexts.it]\nurl = {json.dumps(broker.url)}\npassword-command = 'touch asked'\n")
    assert ask(shell, "mqtool send -C it -q ")[1:] == ("", 0)
    assert not (shell.directory / "asked").exists(), "completion asked for the password"


def test_every_command_declares_its_effect_on_a_broker() -> None:
    """The code of every command declares the command's effect on a broker: for example, that it only reads, that it
    publishes messages, or that it changes settings. In a protected context, mqtool uses this declaration to decide
    whether the command asks for confirmation.
    """
    assert [leaf.words for leaf in leaves(described()) if leaf.effect is None] == []
    assert [*effects().values()].count(Effect.CHANGES) > 30


@on_any_broker
def test_the_url_option_overrides_the_context_in_use(
    staging: Shell, broker: TestBroker, embedded: TestBroker, request: pytest.FixtureRequest
) -> None:
    """If a protected context is in use, a command with --url uses the broker at that URL instead of the context's
    broker, and needs no --confirm.
    """
    other = embedded.with_fresh_vhost(f"other-{time.monotonic_ns()}")
    request.addfinalizer(other.drop_vhost)
    for each in (broker, other):
        assert staging.run("mqtool", "send", "-q", "jobs", "x", "-u", each.url).code == 0
    staging.environment["AMQP_URL"] = other.url
    assert staging.run("mqtool", "queue", "purge", "jobs", "--yes", "--url", other.url).code == 0
    assert (depth(broker, "jobs"), depth(other, "jobs")) == (1, 0)


@on_any_broker
def test_the_management_url_in_the_environment_applies_only_to_the_broker_in_the_environment(
    home: Shell, broker: TestBroker
) -> None:
    """If --url names the same broker as MQTOOL_URL, commands use MQTOOL_MANAGEMENT_URL and MQTOOL_STREAM_PORT. If --url
    names another broker, they ignore both variables, because one broker could otherwise get changes or a password meant
    for the other. This also applies to the commands that `tutorial run --url` runs.
    """
    home.environment |= {"MQTOOL_URL": "amqp://127.0.0.1:1", "MQTOOL_MANAGEMENT_URL": "http://127.0.0.1:1"}
    home.environment["MQTOOL_STREAM_PORT"] = "1"
    listed = ("mqtool", "list", "queues", "--url", broker.url)
    assert home.run(*listed).code == 0
    if has_known_stream_port(broker):
        sent = home.run("mqtool", "send-stream", "x", "--url", broker.url)
        assert sent.code == 0, sent.stderr
        told = home.run("mqtool", "tutorial", "run", "stream-hello-world", "--no-pause", "--url", broker.url)
        assert told.code == 0, told.stderr
    home.environment["MQTOOL_URL"] = broker.url
    assert home.run("mqtool", "send-stream", "x", "--url", broker.url).code == 69
    assert "no management API answers at http://127.0.0.1:1" in home.run(*listed).stderr
    del home.environment["MQTOOL_URL"]
    assert home.run(*listed).code == 0


def test_the_management_url_in_the_environment_applies_to_localhost_if_no_broker_is_selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no environment variable, context or `broker up` selects a broker, MQTOOL_MANAGEMENT_URL applies to a --url
    of localhost with the default AMQP port, and to no other --url.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("MQTOOL_MANAGEMENT_URL", "http://127.0.0.1:1")
    assert choose("amqp://127.0.0.1/x", typed={"url"}).management(None) == "http://127.0.0.1:1"
    for url in ("amqp://localhost:2", "amqp://e2"):
        assert choose(url, typed={"url"}).management(None) is None


@pytest.mark.parametrize("used", ["context", "broker up"])
def test_commands_with_url_ignore_the_management_url_in_the_environment_if_a_broker_is_in_use(
    home: Shell, broker: TestBroker, used: str
) -> None:
    """If a context is in use, or `broker up` has started a broker, commands with --url ignore MQTOOL_MANAGEMENT_URL."""
    home.environment["MQTOOL_MANAGEMENT_URL"] = "http://127.0.0.1:1"
    if used == "context":
        home.run("mqtool", "context", "add", "one", "--url", broker.url)
        home.run("mqtool", "context", "use", "one")
    else:
        record_as_started(home, broker)
    assert home.run("mqtool", "list", "queues", "--url", broker.url).code == 0
    other = home.run("mqtool", "list", "queues", "--url", "amqp://127.0.0.1:2")
    assert other.code == 69
    assert "http://127.0.0.1:1" not in other.stderr.replace("http://127.0.0.1:10002", "")


@on_any_broker
@pytest.mark.parametrize("how", ["-C", "MQTOOL_CONTEXT", "context use"])
def test_the_api_and_the_stream_port_in_the_environment_do_not_apply_to_a_context(
    staging: Shell, broker: TestBroker, how: str
) -> None:
    """A command whose context was chosen with `context use`, -C or MQTOOL_CONTEXT ignores MQTOOL_MANAGEMENT_URL and
    MQTOOL_STREAM_PORT. These variables may belong to another broker, which would then get the context's password. The
    options --management and --stream-port still apply.
    """
    if not has_known_stream_port(broker):
        pytest.skip("Docker maps the stream port to another one, which RabbitMQ does not know")
    staging.environment |= {"MQTOOL_MANAGEMENT_URL": "http://127.0.0.1:1", "MQTOOL_STREAM_PORT": "1"}
    if how != "context use":
        staging.run("mqtool", "context", "use", "--none")
    if how == "MQTOOL_CONTEXT":
        staging.environment[how] = "staging"
    typed = ["-C", "staging"] if how == "-C" else []
    policy = ("limits", "--pattern", "^x", "--definition", '{"max-length": 5}', "--confirm", "staging")
    done = staging.run("mqtool", "policy", "set", *policy, *typed)
    assert done.code == 0, done.stderr
    assert [each["name"] for each in broker.api("GET", f"policies/{broker.vhost}")] == ["limits"]  # type: ignore[attr-defined]
    send = ("mqtool", "send-stream", "x", "--confirm", "staging", *typed)
    sent = staging.run(*send)
    assert sent.code == 0, sent.stderr
    assert "nothing answers at 127.0.0.1:1," in staging.run(*send, "--stream-port", "1").stderr
    listed = staging.run("mqtool", "list", "queues", "--management", "http://127.0.0.1:1", *typed)
    assert "no management API answers at http://127.0.0.1:1" in listed.stderr


def test_the_api_and_stream_port_in_the_environment_do_not_apply_to_a_broker_from_broker_up(
    home: Shell, broker: TestBroker
) -> None:
    """A command that uses the broker that `broker up` started also uses this broker's management API and stream port,
    even if MQTOOL_MANAGEMENT_URL and MQTOOL_STREAM_PORT name others.
    """
    home.environment |= {"MQTOOL_MANAGEMENT_URL": "http://127.0.0.1:1", "MQTOOL_STREAM_PORT": "1"}
    record_as_started(home, broker)
    listed, sent = home.run("mqtool", "list", "queues"), home.run("mqtool", "send-stream", "x")
    assert (listed.code, sent.code) == (0, 0), listed.stderr + sent.stderr


def test_the_api_and_stream_port_in_the_environment_apply_if_the_started_broker_was_killed(
    home: Shell, broker: TestBroker
) -> None:
    """If the broker that `broker up` started has ended without `broker down`, and another broker listens on its port,
    MQTOOL_MANAGEMENT_URL and MQTOOL_STREAM_PORT apply to this other broker.
    """
    home.environment |= {"MQTOOL_MANAGEMENT_URL": "http://127.0.0.1:1", "MQTOOL_STREAM_PORT": "1"}
    record_as_started(home, broker, born="long ago")
    listed, sent = home.run("mqtool", "list", "queues"), home.run("mqtool", "send-stream", "x")
    assert "no management API answers at http://127.0.0.1:1" in listed.stderr
    assert "nothing answers at 127.0.0.1:1," in sent.stderr


@on_any_broker
def test_exchange_unbind_reports_the_first_binding_before_it_asks_about_the_second(
    staging: Shell, broker: TestBroker
) -> None:
    """In a protected context, `exchange unbind` with two keys asks for confirmation twice. It reports that the first
    binding was removed before it asks about the second. If the user presses Ctrl-C at the second prompt, the second
    binding is kept.
    """
    broker.api("PUT", f"queues/{broker.vhost}/jobs", {"durable": True})
    for key in ("a", "b"):
        broker.api("POST", f"bindings/{broker.vhost}/e/amq.topic/q/jobs", {"routing_key": key})
    unbind = ("mqtool", "exchange", "unbind", "amq.topic", "jobs", "a", "b")
    asked = on_terminal(staging, *unbind, keys=["y\n", "\x03"], cue="[y/N]: ")
    reported = asked.stdout.index("queue 'jobs' is no longer bound to exchange 'amq.topic' with key 'a'")
    assert reported < asked.stdout.index("unbind queue 'jobs' from exchange 'amq.topic' with key 'b'")
    assert asked.code == 130
    assert staging.run("mqtool", "list", "bindings", "routing_key").stdout.splitlines()[-1] == "b"


@on_any_broker
@pytest.mark.parametrize(
    "words", ["-C staging queue purge jobs --yes --url URL", "queue purge jobs --yes --url URL -C staging"]
)
def test_the_url_option_cannot_be_combined_with_the_name_of_a_protected_context(
    staging: Shell, broker: TestBroker, words: str
) -> None:
    """If -C names a protected context, and --url is also given, the command exits with 2 and changes nothing. With
    --url, the command would bypass the protection that the user has asked for with -C.
    """
    staging.run("mqtool", "send", "-q", "jobs", "--declare", "x")
    refused = staging.run("mqtool", *words.replace("URL", broker.url).split())
    assert (refused.code, "--url cannot be combined with the protected context 'staging'" in refused.stderr) == (
        2,
        True,
    ), refused.stderr
    assert depth(broker, "jobs") == 1


@on_any_broker
@pytest.mark.parametrize("words", ["-C prod send -q jobs x --url URL", "send -q jobs x --url URL -C prod"])
def test_an_unknown_context_is_refused_even_with_the_url_option(staging: Shell, broker: TestBroker, words: str) -> None:
    """If the name of the context is mistyped, `send` sends nothing and exits with 2, even if --url names a broker. The
    hint lists the existing contexts.
    """
    refused = staging.run("mqtool", *words.replace("URL", broker.url).split())
    assert (refused.code, refused.stderr) == (
        2,
        "mqtool: unknown context 'prod'\n"
        "hint: the contexts are staging; to add one: mqtool context add --url amqp://user@host/vhost prod\n",
    )
    assert staging.run("mqtool", "list", "queues", "name").stdout == ""


@on_any_broker
@large
def test_a_command_in_a_protected_context_asks_before_each_change(staging: Shell, broker: TestBroker) -> None:
    """In a protected context, every command that changes the broker first asks for confirmation, even with --yes.
    Without a terminal, it exits with 2 and changes nothing, unless --confirm gives the context's name.
    """
    staging.run("mqtool", "send", "-q", "jobs", "--declare", "x")
    staging.run("mqtool", "exchange", "declare", "logs", "fanout", "--confirm", "staging")
    (staging.directory / "new.json").write_text('{"queues": [{"name": "new", "durable": true}]}')
    assert staging.run("mqtool", "definitions", "import", "new.json", "--dry-run").code == 0
    assert staging.run("mqtool", "send-stream", "-q", "events", "x", "--confirm", "staging").code == 0
    (staging.directory / "recording").write_text('{"body": "x", "exchange": "", "routing_key": "jobs"}\n')
    before = staging.run("mqtool", "definitions", "export").stdout
    commands = (
        "receive -q jobs -c 1 --timeout 1s",
        "worker -q jobs -c 1 --timeout 1s",
        "rpc-server -q jobs --timeout 1s",
        "receive-delayed --timeout 1s",
        "send-delayed x",
        "offset receive --timeout 1s",
        "offset set events reports 1",
        "offset reset events reports",
        "recording replay recording",
        "move jobs --to events",
        "delayed cancel 1 --yes",
        "delayed now 1 --yes",
        "delayed relay tasks",
        "delayed migrate old --to tasks",
        "queue declare new",
        "exchange declare new fanout",
        "exchange bind logs jobs",
        "user add ann --password-file recording",
        "user password guest --password-file recording",
        "user tags guest --none --yes",
        "vhost add new",
        "permission set guest --read ^$",
        "broker fault restart",
        "bench --yes",
        "queue convert jobs --to classic --yes",
        "plugin enable rabbitmq_shovel",
        "plugin disable rabbitmq_shovel --yes",
        "queue purge jobs --yes",
        "queue delete jobs --if-unused --if-empty",
        "queue delete --yes jobs",
        "exchange delete logs --if-unused --yes",
        "dlq redrive jobs --from jobs --yes",
        "dlq redrive jobs --from jobs --id 1",
        "dlq drop jobs --from jobs --yes",
        "vhost delete / --default-vhost --yes",
        "exchange unbind logs jobs",
        "permission clear guest",
        "policy clear limits",
        """policy set limits --pattern ^jobs --definition {"max-length":1}""",
        "definitions import new.json",
        "user delete guest --myself -y",
        "connection close --queue watched --yes",
    )
    consumer = pika.BlockingConnection(pika.URLParameters(broker.url))
    consumer.channel().basic_consume(consumer.channel().queue_declare("watched", exclusive=True).method.queue, print)
    wait_until(lambda: broker.api("GET", f"consumers/{broker.vhost}"), "the consumer")
    for words in some(commands):
        result = staging.run("mqtool", *words.split())
        assert result.code == 2, words
        assert "in the protected context 'staging'\nhint: pass --confirm staging" in result.stderr
    changing = {name for name, effect in effects().items() if effect is Effect.CHANGES}
    assert {name for name in changing if any(words.startswith(f"{name} ") for words in commands)} == changing
    consumer.close()
    assert staging.run("mqtool", "definitions", "export").stdout == before
    assert "but the context is 'staging'" in staging.run("mqtool", "queue", "purge", "jobs", "--confirm", "prod").stderr
    assert depth(broker, "jobs") == 1
    asked = on_terminal(staging, "mqtool", "queue", "purge", "jobs", "--yes", keys=["n\n"], cue="[y/N]").stdout
    assert "remove 1 message from queue 'jobs' for good in the protected context 'staging'? [y/N]" in asked
    assert depth(broker, "jobs") == 1
    assert staging.run("mqtool", "queue", "purge", "--confirm", "staging", "jobs").code == 0
    assert depth(broker, "jobs") == 0


@on_any_broker
def test_definitions_import_shows_the_changes_before_it_asks(staging: Shell) -> None:
    """In a protected context, `definitions import` shows what it would change before it asks for confirmation."""
    (staging.directory / "new.json").write_text('{"queues": [{"name": "new"}]}')
    refused = staging.run("mqtool", "definitions", "import", "new.json")
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("+ queue new\nmqtool: this would import 1 difference in the protected context")


@pytest.fixture
def in_use(staging: Shell, broker: TestBroker) -> Shell:
    """The shell `staging`, with a queue, exchanges, and a stream that has messages and a reader, on the broker."""
    confirmed = ("--confirm", "staging")
    (staging.directory / "new.json").write_text('{"queues": [{"name": "new", "durable": true}]}')
    staging.run("mqtool", "send", "-q", "jobs", "--declare", "x")
    for kind in ("fanout", "direct", "topic", "headers"):
        staging.run("mqtool", "exchange", "declare", f"{kind}_used", kind, "--transient", *confirmed)
    staging.run("mqtool", "exchange", "bind", "direct_used", "jobs", "info", *confirmed)
    assert staging.run("mqtool", "send-stream", "-q", "events", "x", *confirmed).code == 0
    assert staging.run("mqtool", "offset", "set", "events", "reports", "0", *confirmed).code == 0
    return staging


def contents(broker: TestBroker) -> dict[str, object]:
    """Return the queues, exchanges, bindings and firehose setting of a broker's virtual host."""
    ends = ("source", "destination", "routing_key")
    listed: Any = {kind: broker.api("GET", f"{kind}/{broker.vhost}") for kind in ("queues", "exchanges", "bindings")}
    vhost: Any = broker.api("GET", f"vhosts/{broker.vhost}")
    return {
        # Private queues are deleted a moment after their connection has ended.
        "queues": sorted(each["name"] for each in listed["queues"] if not each["name"].startswith("amq.gen")),
        "exchanges": sorted(each["name"] for each in listed["exchanges"]),
        "bindings": sorted([each[end] for end in ends] for each in listed["bindings"] if "amq.gen" not in str(each)),
        "tracing": vhost["tracing"],
    }


@on_any_broker
@large
def test_a_command_that_sends_or_shows_messages_asks_before_it_changes_the_broker(
    in_use: Shell, broker: TestBroker
) -> None:
    """In a protected context, a command that usually only sends or shows messages asks for confirmation before it
    declares something, changes a setting, or consumes from a named queue. Without a terminal, it changes nothing and
    exits with 2. Commands such as `send` are an exception: if a queue is missing, and --declare is not given, they exit
    with 69 without asking, and the hint names --declare.
    """
    before, there = contents(broker), depth(broker, "jobs")
    for words in some(ASKING):
        result = in_use.run("mqtool", *words.split())
        assert "in the protected context 'staging'\nhint: pass --confirm staging" in result.stderr, words
        assert (result.code, contents(broker), depth(broker, "jobs")) == (2, before, there), words
    for words in some(REFUSING):
        result = in_use.run("mqtool", *words.split())
        assert result.stderr.endswith("--declare declares it\n"), words
        assert (result.code, contents(broker), depth(broker, "jobs")) == (69, before, there), words
    lines = '{"body": "now"}\n{"body": "later", "delay": "5s"}\n'
    delayed = in_use.run("mqtool", "send", "-q", "jobs", "--json", stdin=lines)
    assert (delayed.code, contents(broker)) == (2, before)
    assert in_use.run("mqtool", "offset", "show", "events", "reports").stdout == "0\n"


@on_any_broker
@large
def test_a_command_that_only_shows_or_sends_does_not_ask_for_confirmation(in_use: Shell, broker: TestBroker) -> None:
    """In a protected context, a command does not ask for confirmation if it only shows something or only sends messages
    to existing queues and exchanges. Afterwards, the virtual host has the same queues, exchanges and bindings as
    before, and its firehose (RabbitMQ's message tracing) is still off.
    """
    before = contents(broker)
    commands = (*NOT_ASKING, *(name for name in effects() if name.startswith("list ")))
    for words in some(commands):
        result = in_use.run("mqtool", *words.split())
        assert "protected" not in result.stderr, words
        assert (result.code in (0, 1, 3, 69, 124), contents(broker)) == (True, before), (words, result.stderr)
    ui = in_use.start("mqtool", "ui").wait_for_stdout("http").interrupt()
    assert (ui.wait().code, contents(broker)) == (0, before)
    tried = {name for name in effects() if any(f"{each} ".startswith(f"{name} ") for each in (*commands, "ui"))}
    assert tried == {name for name, effect in effects().items() if effect in (Effect.READS, Effect.SENDS)}


@on_any_broker
def test_emit_log_in_a_protected_context_asks_before_it_declares_an_exchange(staging: Shell) -> None:
    """In a protected context, `emit-log` on a terminal asks before it declares a missing exchange, and declares it
    only if the answer is yes. If --confirm gives the context's name, `emit-log`, `send`, `receive-log` and other
    commands declare a missing exchange, queue or stream without asking.
    """
    emit = ("mqtool", "emit-log", "fanout", "-e", "audit", "x")
    declined = on_terminal(staging, *emit, keys=["n\n"], cue="[y/N]").stdout
    assert "declare exchange 'audit' in the protected context 'staging'? [y/N]" in declined
    assert "audit" not in staging.run("mqtool", "list", "exchanges", "name").stdout
    assert on_terminal(staging, *emit, keys=["y\n"], cue="[y/N]").code == 0
    assert "audit" in staging.run("mqtool", "list", "exchanges", "name").stdout
    for words in (
        "emit-log direct info x",
        "send -q new x",
        "send -q new --delay 1s x",
        "send-delayed x",
        "send-stream -q events x",
        "publisher-confirms async -c 10 -q confirmed",
    ):
        result = staging.run("mqtool", *words.split(), "--confirm", "staging")
        assert result.code == 0, (words, result.stderr)
    collect = "receive-log fanout -e audit -q collected --declare --timeout 10ms --confirm staging"
    assert staging.run("mqtool", *collect.split()).code == 124
    queues = staging.run("mqtool", "list", "queues", "name").stdout.split()
    assert {"new", "events", "confirmed", "collected"} <= {*queues}


@on_any_broker
def test_the_confirm_option_is_refused_without_a_protected_context(shell: Shell, broker: TestBroker) -> None:
    """A command with `--confirm prod` exits with 2 and changes nothing if it does not use the protected context
    `prod`.
    """
    shell.run("mqtool", "send", "-q", "jobs", "x")
    result = shell.run("mqtool", "queue", "purge", "jobs", "--confirm", "prod")
    assert (result.code, depth(broker, "jobs")) == (2, 1)
    assert "--confirm prod was given, but the broker is not a protected context" in result.stderr
    assert shell.run("mqtool", "send", "-q", "jobs", "--", "--yes=x").code == 0
    assert "unknown option --yes\n" in shell.run("mqtool", "send", "x", "--yes=prod").stderr
    assert "hint: --confirm NAME" in shell.run("mqtool", "queue", "purge", "jobs", "--yes=prod").stderr


def test_broker_env_prints_the_urls_of_a_context(home: Shell) -> None:
    """`broker env` prints the URLs of the context given with -C, whether -C is before or after the command's name."""
    add = ("mqtool", "context", "add", "dev", "-u", "amqp://ann@dev/shop", "--management", "http://dev:8080")
    assert home.run(*add).code == 0
    urls = ("export AMQP_URL=amqp://ann@dev/shop", "export MQTOOL_URL=amqp://ann@dev/shop")
    expected = "\n".join([*urls, "export MQTOOL_MANAGEMENT_URL=http://dev:8080", ""])
    assert home.run("mqtool", "-C", "dev", "broker", "env").stdout == expected
    assert home.run("mqtool", "broker", "env", "-C", "dev").stdout == expected


def test_broker_env_replaces_variables_of_another_broker(home: Shell) -> None:
    """After `eval "$(mqtool broker env -C dev)"`, no environment variable names the broker that the shell used
    before.
    """
    assert home.run("mqtool", "context", "add", "dev", "-u", "amqp://dev").code == 0
    home.environment |= {"MQTOOL_URL": "amqp://prod", "AMQP_URL": "amqp://prod"}
    home.environment |= {"MQTOOL_MANAGEMENT_URL": "http://prod:15672", "MQTOOL_STREAM_PORT": "5599"}
    after = home.run("bash", "-c", 'eval "$(mqtool broker env -C dev)"; env').stdout.splitlines()
    named = sorted(line for line in after if line.startswith(("MQTOOL_URL", "AMQP_", "MQTOOL_MANAGEMENT", "MQTOOL_ST")))
    assert named == ["AMQP_URL=amqp://dev", "MQTOOL_URL=amqp://dev"]


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        (("broker", "up", "--name", "nowhere"), "XDG_STATE_HOME"),
        (("context", "add", "there", "--url", "amqp://localhost"), "XDG_CONFIG_HOME"),
    ],
    ids=["state", "configuration"],
)
def test_an_error_names_a_state_or_configuration_directory_that_cannot_be_written(
    lonely_shell: Shell, command: tuple[str, ...], variable: str
) -> None:
    """If the state or configuration directory cannot be written, the error names the directory, and the hint names the
    environment variable that selects another one.
    """
    result = lonely_shell.run("mqtool", *command, environment={variable: "/proc/home"})
    assert "/proc/home" in result.stderr
    assert f"hint: set {variable} to a directory that you can write to" in result.stderr
    assert "unexpected error" not in result.stderr
