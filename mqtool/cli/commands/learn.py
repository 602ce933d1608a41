"""mqtool help, cheat, completion."""

from importlib import resources
from typing import Annotated, Any

import click

from mqtool.cli.command_line import Argument, Commands
from mqtool.cli.completion import Shell
from mqtool.cli.completion import script as completion_script
from mqtool.cli.display import output
from mqtool.cli.help import page
from mqtool.cli.help.description import CommandHelp, describe, topic_options
from mqtool.cli.help.page import TOPICS
from mqtool.cli.usage import without_aliases
from mqtool.errors import UsageError
from mqtool.spelling import did_you_mean

app = Commands()


def _commands(ctx: Any, _typed: str) -> list[str]:
    command, words = ctx.find_root().command, ctx.params.get("words") or ()
    for word in words:
        command = getattr(command, "get_command", lambda *_: None)(ctx, word)
    return [*getattr(command, "list_commands", lambda _: ())(ctx), *(() if words else TOPICS)]


@app.command("mqtool help worker", "mqtool help queue declare", "mqtool help connection", name="help")
def show_help(
    context: click.Context,
    words: Annotated[
        list[str] | None,
        Argument(metavar="[COMMAND|TOPIC]...", help="Command or topic", show_default="all", complete=_commands),
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
                f"unknown command or topic {' '.join(words)!r}",
                did_you_mean(word, names, "'mqtool help' lists the commands and topics"),
            )
        command = below[word]
    return command


def recipes() -> dict[str, str]:
    """Return the recipes by topic. Each consists of a title and of commands to type, which the tests run."""
    text = resources.files("mqtool.cli.help").joinpath("recipes.txt").read_text("utf-8")
    topics = (piece.partition(": ") for piece in text.removeprefix("## ").split("\n## "))
    return {name: rest.rstrip() for name, _, rest in topics}


@app.command("mqtool cheat", "mqtool cheat pipes")
def cheat(
    topic: Annotated[
        str | None, Argument(help="Topic", show_default="list the topics", complete=lambda *_: [*recipes()])
    ] = None,
) -> None:
    """Show recipes to copy, one screen per topic."""
    known = recipes()
    if topic is None:
        for name, text in known.items():
            output.show(f"mqtool cheat {name:<10} {text.partition(chr(10))[0]}")
    elif topic not in known:
        raise UsageError(f"unknown topic {topic!r}", did_you_mean(topic, known, "'mqtool cheat' lists them"))
    else:
        output.show(f"# {known[topic]}")  # the title is a comment, so everything can be pasted


@app.command('eval "$(mqtool completion bash)"', "mqtool completion fish > ~/.config/fish/completions/mqtool.fish")
def completion(shell: Annotated[Shell, Argument(help="bash, zsh, fish or powershell")]) -> None:
    """Print the completion script for your shell.

    Add this line to ~/.bashrc: eval "$(mqtool completion bash)". For zsh, write zsh instead of bash, and add the line
    to ~/.zshrc, after compinit. The script completes commands, options, and the names of queues and exchanges on the
    broker.
    """
    output.show(completion_script(shell))
