"""mqtool help: commands and topics."""

from typing import Annotated, Any

import typer
from typer import Argument

from mqtool.cli.aliases import without_aliases
from mqtool.cli.display import output
from mqtool.cli.groups import Commands
from mqtool.cli.help import page
from mqtool.cli.help.description import CommandHelp, describe, topic_options
from mqtool.cli.help.topics import TOPICS
from mqtool.errors import UsageError
from mqtool.spelling import did_you_mean

app = Commands()


@app.command("mqtool help worker", "mqtool help queue declare", "mqtool help connection", name="help")
def show_help(
    context: typer.Context,
    words: Annotated[
        list[str] | None, Argument(metavar="[COMMAND|TOPIC]...", help="Command or topic", show_default="all")
    ] = None,
) -> None:
    """Show the help of a command or topic."""
    root: Any = context.find_root().command
    described = describe(root)
    if not words:
        output.show(page.overview_page(described, page.width()))
    elif words[0] in TOPICS:
        output.show(page.topic_page(words[0], topic_options(described, words[0]), page.width()))
    else:
        output.show(page.command_page(_find(described, without_aliases(words)), page.width()))


def _find(command: CommandHelp, words: list[str]) -> CommandHelp:
    for word in words:
        below = {each.words[-1]: each for each in command.commands}
        if word not in below:
            names = [*below, *(TOPICS if not command.words else ())]
            raise UsageError(
                f"there is no help on {' '.join(words)!r}",
                did_you_mean(word, names, "'mqtool help' lists the commands and topics"),
            )
        command = below[word]
    return command
