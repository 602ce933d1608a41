"""mqtool cheat."""

from importlib import resources
from typing import Annotated

import typer

from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.errors import UsageError
from mqtool.spelling import did_you_mean

app = typer.Typer()


def recipes() -> dict[str, str]:
    """Return the recipes by topic. Each consists of a title and of commands to type, which the tests run."""
    text = resources.files("mqtool.cli.help").joinpath("recipes.txt").read_text("utf-8")
    topics = (piece.partition(": ") for piece in text.removeprefix("## ").split("\n## "))
    return {name: rest.rstrip() for name, _, rest in topics}


@command(app, "mqtool cheat", "mqtool cheat pipes", effect=Effect.NONE, heading="Learn")
def cheat(
    topic: Annotated[
        str | None,
        typer.Argument(
            help="Topic to show", show_default="list the topics", autocompletion=lambda: [*recipes()], metavar="TOPIC"
        ),
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
