"""mqtool help."""

from typing import Annotated, Any

import typer

from mqtool.cli.command_line import command
from mqtool.cli.commands import command_tree, whole_tree, without_aliases
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.help import overview
from mqtool.cli.help.description import describe, topic_options
from mqtool.cli.help.guesses import did_you_mean_commands, meant_by
from mqtool.cli.help.help_topics import TOPICS, write_topic
from mqtool.cli.help.index import SENTENCES
from mqtool.errors import UsageError

app = typer.Typer()


def _commands(ctx: typer.Context) -> list[str]:
    words = ctx.params.get("words") or ()
    if not words:
        return [*SENTENCES, *TOPICS]
    return [*_found([*words]).commands]


@command(
    app,
    "mqtool help worker",
    "mqtool help queue declare",
    "mqtool help connection",
    effect=Effect.NONE,
    heading="Learn",
    name="help",
)
def show_help(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND|TOPIC]...", help="Command or topic", show_default="all", autocompletion=_commands
        ),
    ] = None,
) -> None:
    """Show the help of a command or topic."""
    if not words:
        output.show(overview.overview())
    elif len(words) == 1 and words[0] in TOPICS:
        formatter = ctx.make_formatter()
        options = topic_options(describe(whole_tree()), words[0])
        write_topic(words[0], [(option.syntax, option.text) for option in options], formatter)
        output.show(formatter.getvalue().rstrip())
    else:
        words = without_aliases(words)
        _found(words)
        command_tree(words)(args=[*words, "--help"], prog_name="mqtool", standalone_mode=False)


def _found(words: list[str]) -> Any:
    """Return typer's object for a command.

    Raises:
        UsageError: there is no such command.
    """
    found: Any = typer.main.get_command(command_tree(words))
    for number, word in enumerate(words):
        before = words[:number]
        below = getattr(found, "commands", {})
        if word not in below:
            names = dict.fromkeys([*below, *(TOPICS if not before else ())])
            meant = meant_by(word, " ".join(["help", *before]), names) or meant_by(word, " ".join(before), ())
            hint = f"'mqtool help' lists the commands; topics: {', '.join(TOPICS)}"
            if meant not in ([], ["help"]):
                hint = did_you_mean_commands(meant)
            raise UsageError(f"unknown command or topic {' '.join(words)!r}", hint)
        found = below[word]
    return found
