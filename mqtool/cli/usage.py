"""Aliases of commands, --help, and explanations of usage errors."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import click
from click import Context

from mqtool.cli.display import output
from mqtool.spelling import did_you_mean, quoted

_OF_BROKER = ("vhosts", "users", "permissions", "plugins")
_LISTED = ("queues", "exchanges", "bindings", "consumers", "connections", "channels", *_OF_BROKER)

ALIASES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("publish",): ("send",),
    ("pub",): ("send",),
    ("consume",): ("receive",),
    ("sub",): ("receive",),
    # Former names.
    ("offset-tracking",): ("offset",),
    **{(word,): ("recording", word) for word in ("replay", "scrub", "reconcile")},
    **{(word,): ("exchange", word) for word in ("bind", "unbind")},
    ("fault",): ("broker", "fault"),
    **{(things[:-1], word): ("list", things) for things in _LISTED for word in ("ls", "list")},
}


_NOT_A_NUMBER = r" is not a valid (?:integer|float)(?: range)?"
#: Options of other tools, and what to use instead.
_OTHER_OPTIONS = {
    "--filter": "--where, such as --where 'messages_ready>0'",
    "--host": "--url, such as amqp://user:password@host:5672/vhost",
    "--hostname": "--url, such as amqp://user:password@host:5672/vhost",
    "--port": "--url, such as localhost:5673",
    "-p": "--vhost VHOST",
    "--limit": "--count N",
    "--max-retries": "--retries N for programs, --max-reconnects N for connections",
    "--password": "--password-file FILE, or - to read it from stdin",
}


def without_aliases(words: Sequence[str]) -> list[str]:
    """Replace an alias at the start of a command line, such as `publish`, with the command's name."""
    for typed, meant in ALIASES.items():
        if tuple(words[: len(typed)]) == typed:
            return [*meant, *words[len(typed) :]]
    return list(words)


class HelpedOption(click.Option):
    """A click option with one more attribute: `panel`, the section of the help that shows it."""

    def __init__(self, flags: Sequence[str], **settings: Any) -> None:
        self.panel = settings.pop("panel", None)
        super().__init__(flags, **settings)


class HelpedArgument(click.Argument):
    """An argument with help text, which click itself supports only since version 8.5."""

    def __init__(self, names: Sequence[str], **settings: Any) -> None:
        self.text, self.show_default = settings.pop("help", ""), settings.pop("show_default", "")
        self.panel = settings.pop("panel", None)
        super().__init__(names, **settings)

    def get_error_hint(self, ctx: Context | None) -> str:  # noqa: ARG002
        """Return the argument's name for error messages."""
        return f"'{self.metavar or self.name}'"


def help_options() -> list[click.Parameter]:
    """Return the options --help and --help-all."""

    def show(ctx: Any, option: Any, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            show_help(ctx, everything=option.name == "help_all")

    return [
        HelpedOption(
            flags,
            panel="Help",
            is_flag=True,
            default=False,
            expose_value=False,
            is_eager=True,
            callback=show,
            help=text,
        )
        for flags, text in ((("-h", "--help"), "Show this help"), (("--help-all",), "Show all options"))
    ]


@contextmanager
def naming_command(ctx: Context) -> Iterator[None]:
    """Context manager: add `ctx` to click's errors that lack a context, such as the one for a missing option value."""
    try:
        yield
    except click.BadOptionUsage as error:
        if error.ctx is not None:
            raise
        raise click.BadOptionUsage(error.option_name, error.message, ctx) from None


def show_help(ctx: Context, *, everything: bool = False) -> NoReturn:
    """Print the help of a command and exit.

    Args:
        everything: show all options, not only the common ones.
    """
    from mqtool.cli.help import description, page

    words = tuple(ctx.command_path.split()[1:])
    described = description.describe(ctx.command, words)
    if words:
        output.show(page.command_page(described, page.width(), everything=everything))
    else:
        output.show(page.overview_page(described, page.width()))
    raise click.exceptions.Exit


def _equivalent(name: str) -> str | None:
    """Return the mqtool equivalent of a rabbitmqctl command or a tutorial's script. Keeps the vhost given by -p."""
    from mqtool.cli.help.page import equivalent

    line = equivalent(name)
    if line is not None and "-p" in sys.argv[:-1]:
        line += f" --vhost {quoted(sys.argv[sys.argv.index('-p') + 1])}"
    return line


def _value_of(command: Any, flag: str) -> str:
    """Return the name of an option's value in the help, such as DURATION."""
    from mqtool.cli.help import description

    return next((each.value for each in description.describe(command).options if flag in each.flags), "")


def _usage(context: Context) -> str:
    """Return the usage line of a command's help."""
    from mqtool.cli.help import description

    return description.describe(context.command, tuple(context.command_path.split()[1:])).usage


def _arguments(command: Any) -> list[str]:
    """Return the names of a command's positional arguments."""
    return [str(each.name) for each in command.params if isinstance(each, click.Argument)]


def _last_word(name: str) -> str:
    """Return the last word of an option or argument in the singular: "key" for --routing-key and for binding_keys."""
    return name.replace("_", "-").rpartition("-")[2].removesuffix("s")


def _elsewhere(context: Context, word: str) -> str | None:
    """Return the command that has this name or alias outside the group in which the user looked for it, if any."""
    found, root = ALIASES.get((word,), (word,)), cast(click.Group, context.find_root().command)
    return " ".join(found) if found[0] in root.list_commands(context) else None


def explain(error: click.ClickException) -> tuple[str, str | None]:
    """Convert click's usage error to a sentence and a hint."""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context else "mqtool"
    example = (context.command.epilog or "").partition("\n")[0] if context else ""
    how = f"for example: {example}" if example else f"'{path} --help' shows the usage"
    text = error.message.partition(" Did you mean ")[0].rstrip(".")
    if unknown := re.fullmatch(r"No such command '(.*)'", text, re.DOTALL):
        commands = context.command.list_commands(context)
        hint = did_you_mean(unknown[1], commands, f"'{path} --help' lists the commands")
        if path == "mqtool" and (line := _equivalent(unknown[1])):
            hint = line
        elif path != "mqtool" and (words := _elsewhere(context, unknown[1])):
            hint = f"did you mean 'mqtool {words}'?"
        return f"unknown command '{path} {unknown[1]}'", hint
    option: Any = getattr(error, "option_name", None)
    if option is not None and text.startswith("No such option"):
        if any(_last_word(option) == _last_word(name) for name in _arguments(context.command)):
            return f"unknown option {option}", f"it is an argument: {_usage(context)}"
        options = [each for each in context.command.params if isinstance(each, click.Option)]
        flags = [flag for each in options for flag in (*each.opts, *each.secondary_opts)]
        hint = did_you_mean(option, flags, f"'{path} --help-all' lists the options")
        return f"unknown option {option}", _OTHER_OPTIONS.get(option, hint)
    what = error.format_message().rstrip(".")
    if path in ("mqtool user add", "mqtool user password") and "unexpected extra argument" in what:
        return "a password does not belong on the command line", "--password-file FILE, or - to read it from stdin"
    what = re.sub(_NOT_A_NUMBER, " is not a number", what)
    wrong_option = option or max(getattr(getattr(error, "param", None), "opts", ()), key=len, default="")
    if context and wrong_option not in how and (value := _value_of(context.command, wrong_option)):
        how = f"{path} {wrong_option} {value}"
    if option == "--yes" and "does not take a value" in what:
        return what, "--confirm NAME names a protected context"
    wrong, _, choices = what.rpartition(" is not one of ")
    typed = re.search(r"'([^']*)'$", wrong)
    return what, did_you_mean(typed[1], re.findall(r"'([^']*)'", choices), how) if typed else how
