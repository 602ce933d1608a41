"""Explanations of usage errors: a sentence, and a hint with what was meant."""

import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import typer

from mqtool.cli.help.guesses import did_you_mean_commands, meant_by
from mqtool.cli.help.help_topics import equivalent
from mqtool.cli.invocation import current
from mqtool.spelling import did_you_mean, mistyped, pasteable, quoted

_EXTRA = r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)"
_NOT_A_NUMBER = r" is not a valid (?:int|integer|float)(?: range)?"
_URL = "--url, such as amqp://user:password@host:5672/vhost"
_TLS = "--url amqps://HOST, and --tls-ca FILE to trust its certificate"
_FORCE = "--yes answers yes, if the command asks"
_SECRET = "--password-file FILE, or - to read it from stdin"  # noqa: S105
_BY_KEY = "'mqtool receive-log topic PATTERN' receives by routing key"
_KEY_TO_EMIT = "the routing key is an argument: mqtool emit-log topic KEY MESSAGE"
_DELAYED_TO_QUEUE = "'mqtool send --delay 1h -q reports later' sends to a queue"
_COLUMNS = "name the columns to show; --help lists them"
#: Options of other tools, each with the option that a command must have, and the hint for it. "" as the option: any
#: command; "" as the hint: the option is what was meant. The first row that fits counts.
OTHER_OPTIONS = (
    ("--filter", "--where", "--where, such as --where 'messages_ready>0'"),
    ("-b", "--url", _URL),
    ("--host", "--url", _URL),
    ("--hostname", "--url", _URL),
    ("--server", "--url", _URL),
    ("--port", "--url", "--url, such as localhost:5673"),
    ("-p", "--port", ""),
    ("-p", "--vhost", "--vhost VHOST; the port is part of --url, such as localhost:5673"),
    ("--ssl", "--tls-ca", _TLS),
    ("--tls", "--tls-ca", _TLS),
    ("--cacert", "--tls-ca", _TLS),
    ("--declare", "", "'mqtool queue declare NAME' declares a queue"),
    *((limit, "--count", "--count N") for limit in ("--messages", "--limit", "--max", "--max-messages", "--num")),
    *((key, "--routing-key", "") for key in ("--key", "-k", "--topic")),
    *((key, "--key-pattern", _KEY_TO_EMIT) for key in ("--key", "-k", "--topic", "--routing-key", "-r")),
    *((key, "--auto-ack", _BY_KEY) for key in ("--key", "-k", "--topic", "--routing-key", "-r")),
    *((queue, "--keep-delay", _DELAYED_TO_QUEUE) for queue in ("--queue", "-q")),
    ("--from-beginning", "--offset", "--offset first"),
    ("--sort-by", "--sort", ""),
    ("-A", "--all-vhosts", ""),
    ("--max-retries", "--retries", "--retries N for programs, --max-reconnects N for connections"),
    ("--max-retries", "--max-reconnects", "--max-reconnects N for connections"),
    ("--retry", "--retries", ""),
    ("--delay", "--backoff", ""),
    ("--in", "--delay", ""),
    ("--ack", "--auto-ack", "messages are acknowledged once they are printed; with --auto-ack, on delivery"),
    ("--no-ack", "--auto-ack", ""),
    ("--noack", "--auto-ack", ""),
    ("--format json", "--json", ""),
    ("--formatter json", "--json", ""),
    ("--output json", "--json", ""),
    ("-o json", "--json", ""),
    ("-o wide", "--watch", _COLUMNS),
    ("--output wide", "--watch", _COLUMNS),
    ("-o", "", "redirect standard output: > FILE"),
    ("--output", "", "redirect standard output: > FILE"),
    ("--force", "--yes", _FORCE),
    ("--all", "--name", "--name NAME chooses the broker; 'mqtool broker ls' lists them"),
    ("--username", "--user", ""),
    ("--user-name", "--user", ""),
    ("--password", "--password-file", _SECRET),
    ("--pass", "--password-file", _SECRET),
    ("-t", "--auto-ack", "--timeout DURATION, or --queue QUEUE"),
    ("-t", "--timeout", ""),
    ("-V", "--version", ""),
    ("-V", "--vhost", "--vhost VHOST"),
    ("--install-completion", "--version", did_you_mean_commands(["completion bash"])),
    ("--show-completion", "--version", did_you_mean_commands(["completion bash"])),
)

#: Options that are arguments of some commands, as the last words of these arguments' names.
_ARGUMENTS = {
    "--name": "name queue exchange",
    "--type": "kind",
    "--topic": "key pattern",
    "-q": "queue",
    "--from": "queue",
    "-e": "exchange",
    "-k": "key",
    "-m": "word",
    "--message": "word",
    "--msg": "word",
    "--body": "word",
    "--payload": "word",
}


def explain(error: typer.TyperException) -> tuple[str, str | None]:
    """Convert typer's usage error to a sentence and a hint."""
    what, hint = _explained(error)
    return re.sub(r"^Invalid value for '(.+?)'(?: / '[^']+')*: ", r"\1: ", what), hint


def _explained(error: typer.TyperException) -> tuple[str, str | None]:
    context: Any = current().parsing
    facts: Any = getattr(context and context.command, "callback", None)
    path = context.command_path if context else "mqtool"
    text = error.message.partition(" Did you mean ")[0].rstrip(".")
    if unknown := re.fullmatch(r"No such command '(.*)'", text, re.DOTALL):
        return f"unknown command '{path} {unknown[1]}'", _command_hint(context, unknown[1])
    if unknown := re.fullmatch(r"No such option: (.*)", text, re.DOTALL):
        return f"unknown option {unknown[1]}", _option_hint(context, unknown[1])
    what = _sentence(error)
    if extra := re.fullmatch(_EXTRA, what, re.DOTALL):
        what = f"unexpected argument{'s' * (' ' in extra[1])} {extra[1]!r}"
        if explained := _extra_argument(what, extra[1], context):
            return explained
    if "'--yes'" in what and "does not take a value" in what:
        return what, "--confirm NAME names a protected context"
    examples = getattr(facts, "examples", ())
    how = f"for example: {examples[0]}" if examples else f"'{path} --help' shows the usage"
    if context and (flag := re.search(r"'(--?[\w-]+)'", what)):
        option = next((each for each in context.command.params if flag[1] in each.opts), None)
        if option is not None and flag[1] not in how and not option.is_flag:
            how = _with_value(path, flag[1], option, context, lists_choices=" is not one of " in what)
    wrong, _, listed = what.rpartition(" is not one of ")
    typed = re.search(r"'([^']*)'$", wrong)
    return what, _choice_hint(typed[1], re.findall(r"'([^']*)'", listed), how) if typed else how


def _with_value(path: str, flag: str, option: Any, context: Any, *, lists_choices: bool) -> str:
    """Return a command with a value for an option, or the option's choices unless the error lists them.

    The shell would take a placeholder such as <tree|json> as a redirection and a pipe.
    """
    placeholder = option.make_metavar(context)
    choices = [*map(str, getattr(option.type, "choices", placeholder.split("|")))]
    if len(choices) > 1 and not lists_choices:
        return f"{flag} is one of {', '.join(choices)}"
    number = "5673" if flag.endswith("port") else str(max(10, getattr(option.type, "min", None) or 0))
    values = {"N": number, "DURATION": "5s", "SIZE": "64KiB", "RATE": "500"}
    return f"{path} {flag} {values.get(placeholder, choices[0])}"


def _choice_hint(typed: str, choices: Sequence[str], otherwise: str) -> str | None:
    """Suggest a choice that is similar, or begins as `typed` does: go for golang."""
    word = typed.lower()
    begins = (each for each in choices if word and (each.startswith(word) or word.startswith(each)))
    beginning = next(begins, None)
    return did_you_mean(typed, choices, otherwise if beginning is None else f"did you mean {beginning!r}?")


def _sentence(error: typer.TyperException) -> str:
    what = re.sub(_NOT_A_NUMBER, " is not a number", error.format_message().rstrip("."))
    missing, colon, choices = what.partition(". Choose from:")
    return f"{missing}: one of {' '.join(choices.split())}" if colon else what


def _extra_argument(what: str, typed: str, context: Any) -> tuple[str, str] | None:
    """Explain arguments that the command does not take; None if there is nothing to add to the sentence `what`."""
    extra: tuple[str, str] | None = getattr(getattr(context and context.command, "callback", None), "extra", None)
    if extra is not None:
        return extra
    if "--exec" in sys.argv[:-1]:
        program = sys.argv[sys.argv.index("--exec") + 1]
        return what, f"quote the program and its arguments: --exec '{program} …'"
    start = f"{context.command_path} " if _is_all_that_was_typed(context, typed) else ""
    program = f"to run a program: {start}--exec {quoted(typed)}" if _has("--exec", context) else ""
    for flag, noun in (("-q", "queue"), ("--name", "broker")):
        if " " not in typed and flag not in sys.argv and _names_only_with(flag, context):
            name = f"to name a {noun}: {start}{flag} {quoted(typed)}"
            return what, f"{name}; {program}" if program else name
    if program:
        return what, program
    return None


def _is_all_that_was_typed(context: Any, *words: str) -> bool:
    """True if only a command and these words were typed: a complete command line can be printed.

    Other options may name the broker, without which it would use another one, and contain a password.
    """
    return " ".join(sys.argv[1:]) == " ".join([*context.command_path.split()[1:], *words])


def _parameters(context: Any) -> Sequence[Any]:
    return context.command.params if context else ()


def _has(flag: str, context: Any) -> bool:
    return any(flag in each.opts for each in _parameters(context))


def _names_only_with(flag: str, context: Any) -> bool:
    """True if a command has this option, and no arguments."""
    has_arguments = any(each.param_type_name == "argument" for each in _parameters(context))
    return not has_arguments and _has(flag, context)


def _command_hint(context: Any, word: str) -> str | None:
    """Suggest the command that was meant by a word after `mqtool` or after the name of a group."""
    path = context.command_path
    names = context.command.list_commands(context)
    hint: Callable[[str], str | None] | None = getattr(context.command.callback, "hint", None)
    if hint is not None and (said := hint(word)):
        return said
    if path == "mqtool" and (line := equivalent(word)):
        if "-p" in sys.argv[:-1]:  # rabbitmqctl's option for a virtual host
            line += f" --vhost {quoted(sys.argv[sys.argv.index('-p') + 1])}"
        return did_you_mean_commands([line.removeprefix("mqtool ")])
    if meant := meant_by(word, path.removeprefix("mqtool").strip(), names):
        return did_you_mean_commands(meant)
    if path == "mqtool":
        return "'mqtool --help' lists the commands"
    return f"'{path}' is followed by {', '.join(names[:-1])} or {names[-1]}"


def _with_argument(context: Any, flag: str) -> str | None:
    """Return a command with the value of `flag` as its argument; None if it needs more, or if more was typed."""
    needed = [each for each in context.command.params if each.param_type_name == "argument" or each.required]
    value = sys.argv[-1]
    if len(needed) > 1 or not _is_all_that_was_typed(context, flag, value) or not value or value.startswith("-"):
        return None
    return pasteable(context.command_path.removeprefix("mqtool "), value)


def _option_hint(context: Any, flag: str) -> str | None:
    """Suggest the option, or the argument, that was meant by an option that the command does not have."""
    parameters = context.command.params
    arguments = [str(each.name) for each in parameters if each.param_type_name == "argument"]
    if any(_last_word(name) in _ARGUMENTS.get(flag, _last_word(flag)).split() for name in arguments):
        return f"it is an argument: {_with_argument(context, flag) or context.get_usage().removeprefix('Usage: ')}"
    flags = [*(flag for each in parameters for flag in (*each.opts, *each.secondary_opts)), "--help"]
    is_group = hasattr(context.command, "commands")
    own = f"{context.command_path} " if is_group else ""  # without a command after it, the line is complete
    value = dict(pairwise(" ".join(sys.argv).replace("=", " ").split())).get(flag)
    for typed, needed, hint in OTHER_OPTIONS:
        if typed in (flag, f"{flag} {value}") and (needed in flags or not (needed or is_group)):
            return hint or f"did you mean '{own}{needed}'?"
    similar = (option := _similar_option(flag, flags)) and f"did you mean '{own}{option}'?"
    if is_group:
        return similar or f"options follow the command: {context.command_path} COMMAND {flag} …"
    words = [
        word for word in sys.argv if len(flag) == 2 and word.startswith(flag) and (word != flag or flag[1].isdigit())
    ]
    if words and arguments:
        is_all = _is_all_that_was_typed(context, words[0])
        command = f": {context.command_path} -- {quoted(words[0])}" if is_all else ""
        return f"if it is not an option, put -- before it{command}"
    return similar or f"'{context.command_path} --help-all' lists the options"


def _similar_option(flag: str, flags: list[str]) -> str | None:
    """Return the option that is mistyped, or that begins or ends with a word, as --idle-timeout with "idle"."""
    # Nobody should skip a question because of a misspelling, and --all is not meant as --help-all.
    flags = [each for each in flags if each.startswith("--") and each not in ("--yes", "--help-all")]
    partial = [each for each in flags if each.startswith(f"{flag}-") or each[2:].endswith(flag[1:])]
    shortest = min((each for each in flags if each.startswith(flag)), key=len, default=None)
    return (next(iter(partial), None) or mistyped(flag, flags) or shortest) if flag.startswith("--") else None


def _last_word(name: str) -> str:
    """Return the last word of an option or argument in the singular: "key" for --routing-key and for binding_keys."""
    return name.replace("_", "-").rpartition("-")[2].removesuffix("s")
