"""Explanations of usage errors: a sentence, and a hint with what was meant."""

import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

import typer

from mqtool.cli.commands import whole_tree
from mqtool.cli.help.description import CommandHelp, describe, leaves
from mqtool.cli.help.help_topics import equivalent
from mqtool.cli.help.index import MEANT_BY
from mqtool.cli.invocation import current
from mqtool.spelling import SYNONYMS, did_you_mean, nearest, quoted

#: An unknown word can be the last one of several commands; a hint lists up to this many.
_MOST_SUGGESTED = 3
_NOT_A_NUMBER = r" is not a valid (?:int|integer|float)(?: range)?"
#: Options of other tools, and what to use instead.
_OTHER_OPTIONS = {
    "--filter": "--where, such as --where 'messages_ready>0'",
    "--host": "--url, such as amqp://user:password@host:5672/vhost",
    "--hostname": "--url, such as amqp://user:password@host:5672/vhost",
    "--port": "--url, such as localhost:5673",
    "-p": "--vhost VHOST",
    "--declare": "'mqtool queue declare NAME' declares a queue",
    "--limit": "--count N",
    "--max-retries": "--retries N for programs, --max-reconnects N for connections",
    "-o": "redirect standard output: > FILE",
    "--output": "redirect standard output: > FILE",
    "--password": "--password-file FILE, or - to read it from stdin",
}

#: What a short option of other tools means, in the commands that have such an option.
_SHORT = {"-t": "--timeout"}
#: The longest name of an option that is similar only to a word of about the same length.
_SHORT_NAME = 3
#: Options that are arguments of some commands.
_LONG = {"-q": "--queue", "-e": "--exchange", "-k": "--routing-key"}


def explain(error: typer.TyperException) -> tuple[str, str | None]:
    """Convert typer's usage error to a sentence and a hint."""
    context: Any = current().parsing
    facts: Any = getattr(context and context.command, "callback", None)
    path = context.command_path if context else "mqtool"
    text = error.message.partition(" Did you mean ")[0].rstrip(".")
    if unknown := re.fullmatch(r"No such command '(.*)'", text, re.DOTALL):
        return f"unknown command '{path} {unknown[1]}'", _command_hint(context, unknown[1])
    if unknown := re.fullmatch(r"No such option: (.*)", text, re.DOTALL):
        return f"unknown option {unknown[1]}", _option_hint(context, unknown[1])
    what = _sentence(error)
    if "unexpected extra argument" in what and (extra := _extra_argument(what, context)):
        return extra
    if "'--yes'" in what and "does not take a value" in what:
        return what, "--confirm NAME names a protected context"
    examples = getattr(facts, "examples", ())
    how = f"for example: {examples[0]}" if examples else f"'{path} --help' shows the usage"
    if context and (flag := re.search(r"'(--?[\w-]+)'", what)):
        option = next((each for each in context.command.params if flag[1] in each.opts), None)
        if option is not None and flag[1] not in how and not option.is_flag:
            how = f"{path} {flag[1]} {option.make_metavar(context)}"
    wrong, _, choices = what.rpartition(" is not one of ")
    typed = re.search(r"'([^']*)'$", wrong)
    return what, did_you_mean(typed[1], re.findall(r"'([^']*)'", choices), how) if typed else how


def _sentence(error: typer.TyperException) -> str:
    what = re.sub(_NOT_A_NUMBER, " is not a number", error.format_message().rstrip("."))
    missing, colon, choices = what.partition(". Choose from:")
    return f"{missing}: one of {' '.join(choices.split())}" if colon else what


def _extra_argument(what: str, context: Any) -> tuple[str, str] | None:
    """Explain an argument that the command does not take; None if there is nothing to add to typer's sentence."""
    extra: tuple[str, str] | None = getattr(getattr(context and context.command, "callback", None), "extra", None)
    if extra is not None:
        return extra
    if "--exec" in sys.argv[:-1]:
        program = sys.argv[sys.argv.index("--exec") + 1]
        return what, f"quote the program and its arguments: --exec '{program} …'"
    named = re.search(r"\((\S+)\)$", what)
    for flag, noun in (("-q", "queue"), ("--name", "broker")):
        if named is not None and _names_only_with(flag, context):
            return (
                f"unexpected argument {named[1]!r}",
                f"to name a {noun}: {context.command_path} {flag} {quoted(named[1])}",
            )
    return None


def _names_only_with(flag: str, context: Any) -> bool:
    """True if a command has this option, and no arguments."""
    parameters = context.command.params if context else []
    has_arguments = any(each.param_type_name == "argument" for each in parameters)
    return not has_arguments and any(flag in each.opts for each in parameters)


def _command_hint(context: Any, word: str) -> str | None:
    """Suggest the command that was meant by a word after `mqtool` or after the name of a group."""
    path = context.command_path
    names = context.command.list_commands(context)
    if f"{word}s" in names:
        return f"did you mean '{path} {word}s'?"
    if path == "mqtool" and (meant := MEANT_BY.get(word)):
        return f"did you mean '{meant}'?"
    hint: Callable[[str], str | None] | None = getattr(context.command.callback, "hint", None)
    if hint is not None and (meant := hint(word)):
        return meant
    if path == "mqtool":
        return _top_level_hint(word, names)
    alike = f"'{path}' is followed by {', '.join(names[:-1])} or {names[-1]}"
    if meant := nearest(word, names):
        alike = f"did you mean '{path} {meant}'?"
    if word in SYNONYMS:  # such a verb suits many groups
        return alike
    elsewhere = _ending_in(word, leaves(describe(whole_tree())))
    return f"did you mean '{elsewhere[0]}'?" if len(elsewhere) == 1 else alike


def _top_level_hint(word: str, names: list[str]) -> str | None:
    """Suggest what was meant by a word after `mqtool`: rabbitmqctl's command, one of a group, or a misspelled one."""
    if line := equivalent(word):
        if "-p" in sys.argv[:-1]:  # rabbitmqctl's option for a virtual host
            line += f" --vhost {quoted(sys.argv[sys.argv.index('-p') + 1])}"
        return line
    whole = [*leaves(describe(whole_tree()))]
    paths = _ending_in(word, whole)
    if not paths and not nearest(word, names):
        like = get_close_matches(word, [each.words[-1] for each in whole], n=1, cutoff=0.8)
        paths = [path for each in like for path in _ending_in(each, whole)]
    if 0 < len(paths) <= _MOST_SUGGESTED:
        return f"did you mean {', '.join(map(repr, paths[:-1]))}{' or ' if paths[1:] else ''}{paths[-1]!r}?"
    return did_you_mean(word, names, "'mqtool --help' lists the commands")


def _ending_in(word: str, commands: Iterable[CommandHelp]) -> list[str]:
    """Return the paths of the commands whose last word or alias this is."""
    return [each.path for each in commands if word in (each.words[-1], *each.aliases)]


def _option_hint(context: Any, flag: str) -> str | None:
    """Suggest the option, or the argument, that was meant by an option that the command does not have."""
    parameters = context.command.params
    arguments = [str(each.name) for each in parameters if each.param_type_name == "argument"]
    if any(_last_word(_LONG.get(flag, flag)) == _last_word(name) for name in arguments):
        return f"it is an argument: {context.get_usage().removeprefix('Usage: ')}"
    flags = [flag for each in parameters for flag in (*each.opts, *each.secondary_opts) if flag.startswith("-")]
    flags = [flag for flag in flags if flag != "--yes"]  # nobody should skip a question because of a misspelling
    similar = _similar_option(flag.lstrip("-"), flags)
    if hasattr(context.command, "commands"):
        return similar or f"options follow the command: {context.command_path} COMMAND {flag} …"
    listing = f"'{context.command_path} --help-all' lists the options"
    if len(flag) == 2 and flag not in _OTHER_OPTIONS:  # one letter resembles too many options
        names = [word for word in sys.argv if word.startswith(flag) and len(word) > 2] if arguments else []
        if names:
            return f"if it is a name, put -- before it: {context.command_path} -- {quoted(names[0])}"
        return f"did you mean '{_SHORT[flag]}'?" if _SHORT.get(flag) in flags else listing
    return _OTHER_OPTIONS.get(flag) or similar or listing


def _similar_option(word: str, flags: list[str]) -> str | None:
    """Suggest the option whose name is similar to a word, or begins or ends with it, as --idle-timeout with "idle"."""
    names = [each[2:] for each in flags if each.startswith("--")]  # all of them share the dashes
    # Two letters of a longer word make it similar to --at.
    alike = [each for each in names if len(each) > _SHORT_NAME or abs(len(each) - len(word)) < 2]
    partial = [each for each in names if each.startswith(f"{word}-") or each.endswith(f"-{word}")]
    meant = partial or get_close_matches(word, alike, n=1)
    return f"did you mean '--{meant[0]}'?" if meant else None


def _last_word(name: str) -> str:
    """Return the last word of an option or argument in the singular: "key" for --routing-key and for binding_keys."""
    return name.replace("_", "-").rpartition("-")[2].removesuffix("s")
