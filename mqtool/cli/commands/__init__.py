"""The commands. The command NAME is in NAME.py; it defines its options, calls another package, and prints the result.

Its `app` is the command, or the group of commands. `command_tree` imports the one module that a command line needs.
A command whose errors another program reads has an `error_report`, too.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any

import typer

from mqtool import __version__
from mqtool.cli import contexts
from mqtool.cli.command_line import CommandGroup, Group, HelpAll
from mqtool.cli.display import output
from mqtool.cli.help.index import ALIASES, SENTENCES
from mqtool.errors import MqtoolError


class Root(Group):
    """The `mqtool` command, whose help is a page of its own."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the list of all commands."""
        from mqtool.cli.help import overview

        formatter.write(f"{overview.overview()}\n")


def _show_version(wanted: bool) -> None:
    if wanted:
        output.show(f"mqtool {__version__}")
        raise typer.Exit


def mqtool(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version")
    ] = False,
    context: Annotated[  # noqa: ARG001  - each command looks for it in the root's parameters
        str | None,
        typer.Option(
            "--context", "-C", metavar="NAME", autocompletion=contexts.names, help="Use the broker of context NAME"
        ),
    ] = None,
    help_all: HelpAll = False,  # noqa: ARG001
) -> None:
    """Learn, script and operate RabbitMQ from the command line."""
    if ctx.invoked_subcommand is None:
        from mqtool.cli.help import overview

        output.show(overview.start_page())


def command_tree(words: Sequence[str], *, completes: bool = False) -> typer.Typer:
    """Return an app with the command that a command line names.

    If the line names none, the app has only the names and sentences of all commands, for completion and for hints.

    Args:
        words: the command line after "mqtool", without aliases.
        completes: True to let typer complete the line that the environment names.
    """
    tree = _empty_tree(completes=completes)
    name = first_word(words)
    if name in SENTENCES:
        below = "".join(words[words.index(name) + 1 :][:1])
        if (name, below) == ("tutorial", "list"):  # its group imports all tutorials, which takes five times as long
            app = import_module(f"{__name__}.tutorial_list").part
        else:
            app = import_module(f"{__name__}.{name.replace('-', '_')}").app
        tree.add_typer(app.with_only(below) if isinstance(app, CommandGroup) else app)
    else:
        for each, sentence in SENTENCES.items():
            tree.command(each, short_help=sentence)(lambda: None)
    return tree


def error_report(words: Sequence[str]) -> Callable[[MqtoolError], int] | None:
    """Return the function that reports an error in place of the usual message, and returns the exit code, if any.

    The words of the command line decide, because the error may be that they cannot be parsed.
    """
    module: Any = sys.modules.get(f"{__name__}.{first_word(words)}")
    return module.error_report(words) if hasattr(module, "error_report") else None


def whole_tree() -> typer.Typer:
    """Return an app with all commands, for the documentation and for tests."""
    tree = _empty_tree()
    for found in iter_modules(__path__):
        module = import_module(f"{__name__}.{found.name}")
        if hasattr(module, "app"):  # the others have a `part` of a group, which the group's module adds
            tree.add_typer(module.app)
    return tree


def _empty_tree(*, completes: bool = False) -> typer.Typer:
    return typer.Typer(
        cls=Root,
        callback=mqtool,
        invoke_without_command=True,
        add_completion=completes,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def without_aliases(words: Sequence[str]) -> list[str]:
    """Replace an alias at the start of a command line, such as `publish` or `queue ls`, with the command's name."""
    start = _start(words)
    for end in (start + 2, start + 1):
        if (meant := ALIASES.get(" ".join(words[start:end]))) is not None:
            return [*words[:start], *meant.split(), *words[end:]]
    return [*words]


def first_word(words: Sequence[str]) -> str:
    """Return the first word of a command line that is neither an option nor the value of -C; "" if there is none."""
    return "".join(words[(start := _start(words)) : start + 1])


def _start(words: Sequence[str]) -> int:
    """Return the index of first_word(); the number of words if there is none."""
    place = 0
    while place < len(words) and words[place].startswith("-"):
        place += 2 if words[place] in ("-C", "--context") else 1
    return min(place, len(words))
