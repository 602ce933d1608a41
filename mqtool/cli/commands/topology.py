"""mqtool topology."""

import functools
import json
from typing import Annotated, Literal

from typer import Argument, Option

from mqtool.cli.display import output, styled
from mqtool.cli.display.live import Frame, Live
from mqtool.cli.display.tables import terminal
from mqtool.cli.display.topology_tree import tree
from mqtool.cli.options import TIME_LIMIT, Commands, ManagedBroker
from mqtool.errors import UsageError
from mqtool.inspection import wiring
from mqtool.inspection.diagrams import FORMATS
from mqtool.inspection.wiring_records import records

app = Commands()

_LIMIT = 10


@app.command("mqtool topology", "mqtool topology --live", "mqtool topology topic_logs --format mermaid")
def topology(
    broker: ManagedBroker,
    exchanges: Annotated[
        list[str] | None, Argument(metavar="[EXCHANGE]...", help="Only these exchanges, and what they lead to")
    ] = None,
    form: Annotated[
        Literal["tree", "mermaid", "dot", "json"], Option("--format", help="Tree, diagram or NDJSON")
    ] = "tree",
    as_json: Annotated[bool, Option("--json", help="Print NDJSON, as --format json does")] = False,
    limit: Annotated[int, Option(min=0, help="Destinations to show for each exchange; 0 for all")] = _LIMIT,
    live: Annotated[bool, Option(help="Keep it up to date, with rates")] = False,
    interval: Annotated[float | None, Option(help="Interval of --live", **TIME_LIMIT)] = None,
) -> None:
    """Show publishers, exchanges, bindings, queues and consumers."""
    access = broker.access()
    form = "json" if as_json else form
    if live and (form != "tree" or not output.is_terminal(1)):
        raise UsageError("--live shows a tree, on a terminal", "leave --live out, or --format")
    api, vhost = access.management(), access.vhost
    only = ["" if name == "amq.default" else name for name in exchanges or ()]
    if form == "json":
        for record in records(api, vhost, only=only):
            output.show(json.dumps(record))
        return
    look = functools.partial(wiring.look, api, vhost, keep=limit or None, only=only)
    if live:
        Live(lambda _, wanted: _frame(look(rates=True), wanted), interval or 1.0).run()
        return
    seen = look()
    if form == "tree":
        width = terminal().width if output.is_terminal(1) else None
        styled.show(tree(seen, limit=limit * 10 or None, width=width))
    else:
        for line in FORMATS[form](seen):
            output.show(line)


def _frame(seen: wiring.Wiring, wanted: str) -> Frame:
    from rich.console import Group

    lines = map(styled.text, tree(seen, rates=True, width=terminal().width))
    return Frame(Group(*(line for line in lines if wanted.lower() in line.plain.lower())))
