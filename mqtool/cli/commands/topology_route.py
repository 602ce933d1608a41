"""mqtool topology, route."""

import functools
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from mqtool.cli.command_line import Argument, Option
from mqtool.cli.display import layout, output, topology_text
from mqtool.cli.display.layout import terminal
from mqtool.cli.display.live_screen import Frame, Live, head_line
from mqtool.cli.display.topology_text import tree
from mqtool.cli.options import TIME_LIMIT, Commands, ManagedBroker, header, header_option
from mqtool.cli.pipe.source import text_of
from mqtool.errors import BadData, NotFound, SomeFailed, UsageError
from mqtool.inspection import wiring
from mqtool.inspection.definitions import read
from mqtool.inspection.diagnosis import alarms
from mqtool.inspection.diagrams import FORMATS, records
from mqtool.inspection.routes import Route, Router
from mqtool.spelling import did_you_mean

app = Commands()

_LIMIT = 10


@app.command("mqtool topology", "mqtool topology --live", "mqtool topology topic_logs --format mermaid")
def topology(
    broker: ManagedBroker,
    exchanges: Annotated[
        list[str] | None, Argument(metavar="[EXCHANGE]...", help="Only these exchanges and their destinations")
    ] = None,
    form: Annotated[
        Literal["tree", "mermaid", "dot", "json"], Option("--format", help="Tree, diagram or NDJSON")
    ] = "tree",
    as_json: Annotated[bool, Option("--json", help="Print NDJSON, as --format json does")] = False,
    limit: Annotated[int, Option(min=0, help="Destinations to show for each exchange; 0 for all")] = _LIMIT,
    live: Annotated[bool, Option(help="Keep updating the tree, and show rates")] = False,
    interval: Annotated[float | None, Option(help="Time between updates with --live", **TIME_LIMIT)] = None,
) -> None:
    """Show publishers, exchanges, bindings, queues and consumers."""
    access = broker.access()
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


@app.command(
    "mqtool route topic_logs kern.critical", "mqtool route headers_logs -H format=pdf", "mqtool route --test routes.txt"
)
def route(
    broker: ManagedBroker,
    exchange: Annotated[str | None, Argument(help="Exchange to publish to; '' is the default exchange")] = None,
    routing_key: Annotated[str, Argument(metavar="[KEY]", help="Routing key")] = "",
    headers: Annotated[list[Any] | None, header_option("Header; KEY:=JSON for a typed value")] = None,
    test: Annotated[Path | None, Option(metavar="FILE", help="Check a file of expected routes; - is stdin")] = None,
    nearly: Annotated[int, Option(min=0, help="Number of near misses to show")] = 5,
    as_json: Annotated[bool, Option("--json", help="Print NDJSON")] = False,
) -> None:
    """Explain where a message would go, and why.

    Shows the queues that get the message, the bindings that match or nearly match, and where the message goes if it is
    dead-lettered. With --test, exits 3 if any message in the file would not be routed as expected.
    """
    if (exchange is None) == (test is None):
        raise UsageError("give either EXCHANGE and KEY, or --test FILE", "mqtool route topic_logs kern.critical")
    access = broker.access()
    lines = [] if test is None else list(_expectations(test))
    router = Router(read(access.management(), access.vhost))

    def explain(name: str, key: str, fields: dict[str, Any]) -> Route:
        name = "" if name == "amq.default" else name
        try:
            return router.route(name, key, fields, near_misses=nearly)
        except KeyError as error:
            near = did_you_mean(name, router.definitions.exchanges, "'mqtool list exchanges' shows them")
            raise NotFound(f"exchange {name!r} does not exist in vhost {access.vhost!r}", near) from error

    if exchange is None:
        _compare(lines, explain, as_json=as_json)
        return
    found = explain(exchange, routing_key, dict(headers or []))
    if as_json:
        output.show_json(topology_text.route_as_json(found))
    else:
        layout.show_lines(topology_text.explained_route(found, router.definitions))


@dataclass(frozen=True, slots=True)
class _Expectation:
    """A line of a --test file: a message, and the queues expected to get it (None if the line does not say)."""

    exchange: str
    routing_key: str
    headers: dict[str, Any]
    queues: set[str] | None


def _expectations(path: Path) -> Iterator[_Expectation]:
    for number, line in enumerate(text_of(path).splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                yield _expectation(shlex.split(line))
            except ValueError as error:
                raise BadData(
                    f"{path}, line {number}: {error}",
                    "a line is EXCHANGE KEY [-H NAME=VALUE …] -> QUEUE …, quoted as in a shell",
                ) from error


def _expectation(words: list[str]) -> _Expectation:
    queues = set(words[words.index("->") + 1 :]) if "->" in words else None
    message = words[: words.index("->")] if "->" in words else words
    headers = {}
    while "-H" in message:
        at = message.index("-H")
        name, value = header(message[at + 1]) if message[at + 1 :] else header("")
        headers[name] = value
        del message[at : at + 2]
    if len(message) not in (1, 2):
        raise ValueError(f"{len(message)} words before '->'")
    return _Expectation(message[0], message[1] if message[1:] else "", headers, queues)


def _compare(lines: list[_Expectation], explain: Callable[[str, str, dict[str, Any]], Route], *, as_json: bool) -> None:
    failed = 0
    for line in lines:
        found = explain(line.exchange, line.routing_key, line.headers)
        failed += line.queues not in (None, set(found.queues))
        if as_json:
            expected = {} if line.queues is None else {"expected": sorted(line.queues)}
            output.show_json(topology_text.route_as_json(found) | expected)
        else:
            layout.show_lines(topology_text.compared_route(found, line.queues))
    if failed:
        raise SomeFailed(f"{failed:,} of {len(lines):,} routes are not as expected")
    output.status(f"{len(lines):,} routes, all as expected")
