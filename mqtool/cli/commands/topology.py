"""mqtool topology."""

import functools
from typing import Annotated, Literal

import typer

from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.completion import names_of
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.display.layout import terminal
from mqtool.cli.display.live_screen import Frame, Live, head_line
from mqtool.cli.display.topology_text import tree
from mqtool.cli.options import ManagedBroker
from mqtool.cli.values import TIME_LIMIT
from mqtool.errors import UsageError
from mqtool.inspection import wiring
from mqtool.inspection.alarms import alarms
from mqtool.inspection.diagrams import FORMATS, records

app = typer.Typer()

_LIMIT = 10


@command(
    app,
    "mqtool topology",
    "mqtool topology --live",
    "mqtool topology topic_logs --format mermaid",
    effect=Effect.READS,
    heading="See",
)
def topology(
    broker: ManagedBroker,
    exchanges: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXCHANGE]...",
            help="Only these exchanges and their destinations",
            autocompletion=names_of("exchanges"),
        ),
    ] = None,
    form: Annotated[
        Literal["tree", "mermaid", "dot", "json"], typer.Option("--format", help="Print a tree, a diagram or NDJSON")
    ] = "tree",
    as_json: Annotated[bool, typer.Option("--json", help="Print NDJSON, as --format json does")] = False,
    limit: Annotated[
        int, typer.Option(min=0, help="Destinations to show for each exchange; 0 for all", metavar="N")
    ] = _LIMIT,
    live: Annotated[bool, typer.Option("--live", help="Keep updating the tree, and show rates")] = False,
    interval: Annotated[float | None, typer.Option(help="Time between updates with --live", **TIME_LIMIT)] = None,
) -> None:
    """Show publishers, exchanges, bindings, queues and consumers."""
    access = access_to(broker)
    form = "json" if as_json else form
    if live and (form != "tree" or not output.is_terminal(1)):
        raise UsageError("--live only works with a tree on a terminal", "leave out --live, or --format")
    only = ["" if name == "amq.default" else name for name in exchanges or ()]
    if form == "json":
        for record in records(access.management(), access.vhost, only=only):
            output.show_json(record)
        return
    look = functools.partial(wiring.look, vhost=access.vhost, keep=limit or None, only=only)
    if live:

        def frame(_: int, wanted: str) -> Frame:
            api = access.management()  # looked up each time: a restarted broker's API may have another address
            return _frame(look(api, rates=True), access.title, alarms(api), wanted)

        Live(frame, interval or 1.0).run()
        return
    seen = look(access.management())
    if form == "tree":
        width = terminal().width if output.is_terminal(1) else None
        layout.show_lines(tree(seen, limit=limit * 10 or None, width=width))
    else:
        for line in FORMATS[form](seen):
            output.show(line)


def _frame(seen: wiring.Wiring, title: str, alarmed: str, wanted: str) -> Frame:
    from rich.console import Group

    lines = map(layout.rich_text, tree(seen, rates=True, width=terminal().width))
    body = Group(*(line for line in lines if wanted.lower() in line.plain.lower()))
    return Frame(body, above=[head_line(title, alarmed)])
