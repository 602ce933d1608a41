"""Hints for words and options that newcomers guess: each can be pasted, and none deletes anything by mistake."""

import functools
import re
import sys
from typing import Any

import pytest
import typer

from docs.generate import described
from mqtool.cli.commands import command_tree, without_aliases
from mqtool.cli.commands.cheat import recipes
from mqtool.cli.contexts import Effect
from mqtool.cli.help.description import CommandHelp, leaves
from mqtool.cli.help.guesses import GUESSES, VERBS, meant_by
from mqtool.cli.help.help_topics import TOPICS
from mqtool.cli.help.index import ALIASES
from mqtool.cli.usage import OTHER_OPTIONS, explain
from mqtool.errors import UsageError
from mqtool.tutorials import pages
from tests.brokers import large

LEAVES = {" ".join(each.words): each for each in leaves(described())}
#: The groups of commands, with their commands; "" is mqtool itself.
GROUPS = {
    " ".join(each.words): [one.words[-1] for one in each.commands] for each in (described(), *described().commands)
}
#: The commands that consume, change, stop or break something.
HARMFUL = {path for path, each in LEAVES.items() if each.effect in (Effect.CHANGES, Effect.OWN)} | {"context rm"}
#: Verbs and nouns of kubectl, docker, git, redis-cli, Kafka's and other tools that are not in GUESSES and VERBS.
OF_OTHER_TOOLS = (
    "abort ack acl allow alter annotate apply attach auth ban begin block branch break cancel chaos classic clean "
    "clear clone close commit confirm connect console cordon cp cron crash credit ctl dashboard delay deny "
    "disconnect disk display drain edit eject elect end event events evict exec exists exit expire explain export "
    "expose fail federate filter fix flow flush fmt forget format gui ha heal history import init inject install "
    "invoke join keys kick kill label later launch leave less license lint login logout logs memory merge message "
    "migrate mirror more mount mv nack node object open order pack park partition passwd patch pause persist ping "
    "policy port priority profile prompt proxy ps prune quit quorum rebalance reboot rebase refresh register "
    "reject remote rename renew repair repl replace report reset resume rewind rollback rollout rotate run scale "
    "scan seek select serve set shard shell shrink shutdown skip soak sort split stash stress suspend swap switch "
    "sync tag taint tear template test time touch train truncate ttl type undo uninstall unset unsubscribe update "
    "upgrade usage validate verify whoami wipe"
)


@functools.cache
def parser(*words: str) -> Any:
    """Typer's object for a command line that begins with these words."""
    return typer.main.get_command(command_tree(words))


def hint_for(monkeypatch: pytest.MonkeyPatch, line: str) -> str | None:
    """The hint for a command line that is a usage error."""
    monkeypatch.setattr(sys, "argv", ["mqtool", *line.split()])
    words = without_aliases(line.split())
    run = parser(*words[:2])
    with pytest.raises((typer.TyperException, UsageError)) as raised:
        run(args=words, prog_name="mqtool", standalone_mode=False)
    return raised.value.hint if isinstance(raised.value, UsageError) else explain(raised.value)[1]


def flags_of(command: CommandHelp) -> set[str]:
    return {flag for option in command.options for flag in option.flags}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("recieve", "receive"),
        ("delte jobs", "queue delete"),
        ("queue delte jobs", "queue delete"),
        ("queue pruge jobs", "queue purge"),
        ("user deleet ann", "user delete"),
        ("dlq drpo jobs", "dlq drop"),
        ("broker donw", "broker down"),
        ("publsh x", "send"),
        ("queue lisst", "list queues"),
        ("drilll", "drill"),
    ],
)
def test_a_command_with_one_wrong_letter_gets_the_right_hint(
    monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    """In each of this test's examples, such as `recieve`, one letter of a command is missing, added or changed, or two
    neighbouring letters are swapped. The hint asks "did you mean" with the right command, even if that command consumes
    or deletes something.
    """
    assert hint_for(monkeypatch, typed) == f"did you mean 'mqtool {meant}'?"


def test_nearly_every_missing_or_swapped_letter_gets_the_right_hint() -> None:
    """If one letter of a word of at least five letters in a command is left out, or two neighbouring letters are
    swapped, the hint is almost always the right command: in more than 95% of all such typing errors in all commands.
    """
    slips = [
        (group, slip, name)
        for group, names in GROUPS.items()
        for name in names
        if len(name) > 4
        for at in range(len(name) - 1)
        for slip in (name[:at] + name[at + 1 :], name[:at] + name[at + 1] + name[at] + name[at + 2 :])
        if slip not in names
    ]
    right = [f"{group} {name}".strip() in meant_by(slip, group, GROUPS[group]) for group, slip, name in slips]
    assert len(right) > 700
    assert sum(right) > 0.95 * len(right)


@pytest.mark.parametrize(
    "typed",
    ["user rename ann", "context rn", "context default", "kill", "drain", "close", "clear", "drop", "rm", "remove",
     "exchange purge", "queue close", "queue drop jobs", "help close", "help clear", "dlq purge jobs"],
)  # fmt: skip
def test_no_hint_suggests_a_harmful_command_for_a_word_that_only_resembles_it(
    monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    """If a word resembles the name or a synonym of a command that deletes, consumes or breaks something, but may mean
    something else, the hint does not suggest that command. For example, `rename` resembles `remove`, a synonym of
    `delete`, but the hint for `user rename` does not suggest `user delete`. Nor does a hint suggest a harmful command
    of another group: the hint for `dlq purge` is `dlq drop`, not `queue purge`.
    """
    ours = {"dlq purge jobs": "dlq drop", "context default": "context use"}
    hint = str(hint_for(monkeypatch, typed))
    assert {path for path in LEAVES if f"'mqtool {path}'" in hint} - {"help"} == (
        {ours[typed]} if typed in ours else set()
    )


@large
def test_few_words_of_other_tools_lead_to_commands_that_change_something() -> None:
    """Of about 170 words that other tools use, such as `prune`, only five get a hint to use a command that changes or
    consumes something: `clean`, `clone`, `delay`, `more` and `tag`. Each of these differs in only one letter from the
    name or a synonym of the command in the hint, and so looks like a typing error. For example, the hint for
    `policy clean` is `policy clear`.
    """
    known = {each for guesses in GUESSES.values() for each in guesses} | {*ALIASES}
    hits = {
        (word, meant)
        for group, names in GROUPS.items()
        for word in OF_OTHER_TOOLS.split()
        if word not in (*names, *VERBS) and f"{group} {word}".strip() not in known
        for meant in meant_by(word, group, names)
        if meant in HARMFUL
    }
    assert hits == {
        ("clean", "permission clear"),
        ("clean", "policy clear"),
        ("clone", "connection close"),
        ("delay", "delayed relay"),
        ("more", "dlq redrive"),
        ("more", "move"),
        ("tag", "user tags"),
    }


def test_the_hint_for_exchange_purge_does_not_suggest_queue_purge() -> None:
    """If the last word of a command that consumes or changes something, such as `queue purge`, is typed after the name
    of another group, as in `exchange purge`, the hint does not suggest that command. The only exceptions are in
    GUESSES, mqtool's table of words and the commands that users probably mean by them.
    """
    wrong = set()
    for group, names in GROUPS.items():
        for path in HARMFUL:
            typed = f"{group} {path.split()[-1]}".strip()
            if names and path.rpartition(" ")[0] != group and typed not in GUESSES.get(path, ()):
                wrong |= {typed} if path in meant_by(path.split()[-1], group, names) else set()
    assert wrong == set()


@pytest.mark.parametrize("command", GUESSES)
def test_each_hint_in_the_table_of_guesses_is_a_command_that_exists(command: str) -> None:
    """mqtool's table GUESSES lists words that users know from other tools, such as `browse`, with the mqtool command
    that the hint suggests instead, such as `peek`. Each of these commands can be pasted: the command and the options
    in the hint exist, and so does any topic or tutorial that the hint names. None of the words is itself a command of
    mqtool.
    """
    path, _, options = command.partition(" -")
    first, *rest = path.split()
    topics = {"help": (*TOPICS,), "cheat": (*recipes(),), "tutorial": ("run", *pages.NAMES)}
    assert path in LEAVES or path in GROUPS or {*rest} <= {*topics[first]}
    assert {f"-{each}" for each in re.findall(r"(?:^| -)(-?[a-z]+)", options)} <= (
        flags_of(LEAVES[path]) if options else set()
    )
    for guess in GUESSES[command]:
        assert guess not in ALIASES
        group, _, word = guess.rpartition(" ")
        assert word not in GROUPS.get(group, [*GROUPS[""], *TOPICS]), guess
        assert command in meant_by(word, group, GROUPS.get(group, []))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("read", ["peek", "receive"]),
        ("pop", ["receive -c 1"]),
        ("stop all", ["broker down"]),
        ("metrics", ["top", "doctor --format prometheus"]),
        ("dead-letters", ["dlq"]),
        ("list policies", ["policy ls"]),
        ("delayed delete x", ["delayed cancel"]),
        ("definitions save", ["definitions export"]),
        ("permission grant ann", ["permission set"]),
        ("context current", ["context show", "context ls"]),
        ("help dead-letters", ["dlq"]),
        ("help streams", ["cheat streams"]),
        ("help exit", ["help exit-codes"]),
        ("help worke", ["help worker"]),
        ("scrub x", ["recording scrub"]),
        ("close_connection x", ["connection close NAME"]),
        ("version", ["--version"]),
        ("create-queue jobs", ["queue declare"]),
        ("send-message x", ["send"]),
        ("delay 5s", ["send --delay 5s"]),
        ("topics", ["emit-log topic", "receive-log topic"]),
        ("dlq peek jobs", ["dlq show"]),
        ("dlq move jobs", ["dlq redrive"]),
        ("mv a b", ["move"]),
        ("overview", ["top"]),
        ("list nodes", ["broker status", "doctor"]),
        ("broker run", ["broker up", "broker serve"]),
    ],
)
def test_a_word_of_another_tool_gets_whole_commands_as_a_hint(
    monkeypatch: pytest.MonkeyPatch, typed: str, meant: list[str]
) -> None:
    """If mqtool has no command with the typed name, but another tool has one, the hint asks "did you mean" with
    mqtool's command for the same purpose, ready to be pasted. If several commands may be meant, the hint names all of
    them.
    """
    assert hint_for(monkeypatch, typed) == f"did you mean {' or '.join(repr(f'mqtool {each}') for each in meant)}?"


@pytest.mark.parametrize("group", [group for group, names in GROUPS.items() if {"ls", "list"} & {*names} and group])
def test_ls_and_list_are_hints_for_each_other(monkeypatch: pytest.MonkeyPatch, group: str) -> None:
    """If a group of commands, such as `policy`, has the command `ls`, a user who types `list` gets the hint to use
    `ls`. If the group has `list` instead, a user who types `ls` gets the hint to use `list`.
    """
    typed, meant = ("list", "ls") if "ls" in GROUPS[group] else ("ls", "list")
    assert hint_for(monkeypatch, f"{group} {typed}") == f"did you mean 'mqtool {group} {meant}'?"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("worker --retry 3", "did you mean '--retries'?"),
        ("worker --delay 3s", "did you mean '--backoff'?"),
        ("list queues --format json", "did you mean '--json'?"),
        ("list queues --format=json", "did you mean '--json'?"),
        ("list queues -o json", "did you mean '--json'?"),
        ("list queues --output json", "did you mean '--json'?"),
        ("list queues -o FILE", "redirect standard output: > FILE"),
        ("send --in 1d x", "did you mean '--delay'?"),
        ("send --message x", "it is an argument: mqtool send x"),
        ("send -m x", "it is an argument: mqtool send x"),
        ("send -m", "it is an argument: mqtool send [OPTIONS] [WORD...]"),
        ("move --from a --to b", "it is an argument: mqtool move [OPTIONS] {QUEUE}"),
        ("broker up -p 5673", "did you mean '--port'?"),
        ("list queues -p shop", "--vhost VHOST; the port is part of --url, such as localhost:5673"),
        ("queue delete -f jobs", "'mqtool queue delete --help-all' lists the options"),
        ("definitions import -f FILE", "'mqtool definitions import --help-all' lists the options"),
        ("receive --ack", "messages are acknowledged once they are printed; with --auto-ack, on delivery"),
        ("queue delete --force jobs", "--yes answers yes, if the command asks"),
        ("send --ssl x", "--url amqps://HOST, and --tls-ca FILE to trust its certificate"),
        ("broker down --all", "--name NAME chooses the broker; 'mqtool broker ls' lists them"),
        ("queue show jobs --all", "'mqtool queue show --help-all' lists the options"),
        ("send --hlep", "did you mean '--help'?"),
        ("send --que jobs x", "did you mean '--queue'?"),
        ("--declare send x", "options follow the command: mqtool COMMAND --declare …"),
        ("-V", "did you mean 'mqtool --version'?"),
        ("receive --max 3", "--count N"),
        ("receive --max-messages 3", "--count N"),
        ("receive --num 3", "--count N"),
        ("send-delayed --delay 1h x -q jobs", "'mqtool send --delay 1h -q reports later' sends to a queue"),
        ("send-delayed --queue=jobs x", "'mqtool send --delay 1h -q reports later' sends to a queue"),
        ("receive --from-beginning", "--offset first"),
        ("receive -t jobs", "--timeout DURATION, or --queue QUEUE"),
        ("wait -t 3s", "did you mean '--timeout'?"),
        ("receive --key a.b", "'mqtool receive-log topic PATTERN' receives by routing key"),
        ("receive --topic a.b", "'mqtool receive-log topic PATTERN' receives by routing key"),
        ("receive-log topic --topic a.b", "it is an argument: mqtool receive-log topic a.b"),
        ("emit-log topic -r a.b x", "the routing key is an argument: mqtool emit-log topic KEY MESSAGE"),
        ("send -b shop x", "--url, such as amqp://user:password@host:5672/vhost"),
        ("send --key a.b x", "did you mean '--routing-key'?"),
        ("send -k a.b x", "did you mean '--routing-key'?"),
        ("send --topic a.b x", "did you mean '--routing-key'?"),
        ("send --username ann x", "did you mean '--user'?"),
        ("send --user-name ann x", "did you mean '--user'?"),
        ("send --pass secret x", "--password-file FILE, or - to read it from stdin"),
        ("send --server shop x", "--url, such as amqp://user:password@host:5672/vhost"),
        ("send -V shop x", "--vhost VHOST"),
        ("list queues --sort-by name", "did you mean '--sort'?"),
        ("list queues -o wide", "name the columns to show; --help lists them"),
        ("list queues -A", "did you mean '--all-vhosts'?"),
        ("queue declare --name jobs", "it is an argument: mqtool queue declare jobs"),
        # A command without the option that names the broker would purge a queue of another one.
        ("queue purge --vhost v --queue jobs", "it is an argument: mqtool queue purge [OPTIONS] {QUEUE...}"),
        ("exchange declare e --type topic", "it is an argument: mqtool exchange declare [OPTIONS] {EXCHANGE} {TYPE}"),
        ("--hlep", "did you mean 'mqtool --help'?"),
        ("queue --hlep", "did you mean 'mqtool queue --help'?"),
        ("--install-completion", "did you mean 'mqtool completion bash'?"),
    ],
)
def test_an_option_of_another_tool_gets_the_option_or_argument_of_mqtool_as_a_hint(
    monkeypatch: pytest.MonkeyPatch, typed: str, hint: str
) -> None:
    """If a command is given an option of another tool, the hint names the command's own option for the same purpose, if
    any, or says that the value is an argument. For `-V`, `--hlep` or `--install-completion` without a command, the hint
    names mqtool's own option or command.
    """
    assert hint_for(monkeypatch, typed) == hint


@large
def test_hints_about_options_of_other_tools_name_options_that_the_command_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever option of another tool a command is given, the options in the hint are the command's own, and the
    commands in the hint exist.
    """
    accepted = {"bench": ["--messages"], "rpc-client": ["--num"]}
    for path, command in LEAVES.items():
        flags = flags_of(command) | {"--help", "--help-all", *accepted.get(path, ())}
        for typed in dict.fromkeys(row[0] for row in OTHER_OPTIONS):
            if typed.split()[0] in flags:
                continue
            hint = str(hint_for(monkeypatch, f"{path} {typed}"))
            assert {*re.findall(r"(?<![\w-])--[a-z][a-z-]*", hint)} <= flags, (path, typed, hint)
            for ours in re.findall(r"'mqtool ([a-z -]+?)(?: --| [A-Z]|')", hint):
                assert ours in {*LEAVES, "completion bash"}, (path, typed, hint)
