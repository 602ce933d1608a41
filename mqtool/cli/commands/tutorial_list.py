"""mqtool tutorial list, which imports no tutorial: beginners type it first."""

from collections.abc import Iterator
from importlib import resources
from typing import Annotated

import typer

from mqtool.cli.command_line import NoColor, command, group
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.invocation import current


def _tutorials() -> Iterator[dict[str, str]]:
    """Yield the rows that `make site` has written."""
    for line in resources.files("mqtool.cli.help").joinpath("tutorials.txt").read_text("utf-8").splitlines():
        yield dict(zip(("number", "name", "title", "summary", "page"), line.split("\t"), strict=True))


def _hint(word: str) -> str | None:
    """Return the hint for the number or the name of a tutorial without a command before it."""
    if word.isdecimal() or word.replace("_", "-") in (each["name"] for each in _tutorials() if each["page"]):
        return f"to read it: mqtool tutorial show {word}; to run it: mqtool tutorial run {word}"
    return None


part = group("tutorial", "Learn RabbitMQ: read tutorials, watch them, and try them.", heading="Learn", hint=_hint)


@command(part, "mqtool tutorial list", "mqtool tutorial list --json", effect=Effect.NONE, name="list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print NDJSON")] = False, no_color: NoColor = False
) -> None:
    """List the tutorials, in the recommended order."""
    current().no_color = no_color
    is_read = output.is_terminal(1) and not as_json
    columns = (
        ("number", "name", "summary") if is_read else ("name", "title", "summary") if as_json else ("name", "summary")
    )
    narrower = (("number", "name"), ("name",))
    layout.show_rows(_tutorials(), columns, narrower=narrower, prose="summary", as_json=as_json)
    if is_read:
        output.status("'mqtool tutorial run NAME' plays one, 'mqtool tutorial show NAME' lets you read most of them.")
