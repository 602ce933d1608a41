"""mqtool cheat: recipes to copy."""

from importlib import resources
from typing import Annotated

from typer import Argument

from mqtool.cli.display import output
from mqtool.cli.groups import Commands
from mqtool.errors import UsageError
from mqtool.spelling import did_you_mean

app = Commands()


def recipes() -> dict[str, str]:
    """The recipes of each topic: its title, and what one types in a shell. The tests run them."""
    text = resources.files("mqtool.cli.help").joinpath("recipes.txt").read_text("utf-8")
    topics = (piece.partition(": ") for piece in text.removeprefix("## ").split("\n## "))
    return {name: rest.rstrip() for name, _, rest in topics}


@app.command("mqtool cheat", "mqtool cheat pipes")
def cheat(
    topic: Annotated[
        str | None, Argument(help="Topic", show_default="list the topics", autocompletion=lambda: [*recipes()])
    ] = None,
) -> None:
    """Show recipes to copy, one screen per topic."""
    known = recipes()
    if topic is None:
        for name, text in known.items():
            output.show(f"mqtool cheat {name:<10} {text.partition(chr(10))[0]}")
    elif topic not in known:
        raise UsageError(f"there are no recipes on {topic!r}", did_you_mean(topic, known, "'mqtool cheat' lists them"))
    else:
        output.show(f"# {known[topic]}")  # all of it can be pasted into a shell
