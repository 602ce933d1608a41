"""mqtool route."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.completion import names_of
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output, topology_text
from mqtool.cli.options import ManagedBroker
from mqtool.cli.pipe.source import text_of
from mqtool.cli.values import header, header_option
from mqtool.errors import BadData, NotFound, SomeFailed, UsageError
from mqtool.inspection.definitions import Definitions, read
from mqtool.inspection.routes import QueueRoute, Router
from mqtool.spelling import did_you_mean

app = typer.Typer()


@command(
    app,
    "mqtool route topic_logs kern.critical",
    "mqtool route headers_logs -H format=pdf",
    "mqtool route --test routes.txt",
    effect=Effect.READS,
    heading="See",
)
def route(
    broker: ManagedBroker,
    exchange: Annotated[
        str | None,
        typer.Argument(
            help="Exchange to publish to; '' is the default exchange",
            metavar="EXCHANGE",
            autocompletion=names_of("exchanges"),
        ),
    ] = None,
    routing_key: Annotated[str, typer.Argument(metavar="[KEY]", help="Routing key")] = "",
    headers: Annotated[list[Any] | None, header_option("Header; KEY:=JSON for a non-string value")] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check routes against those expected in FILE; - for stdin")
    ] = None,
    nearly: Annotated[int, typer.Option(min=0, help="Show up to N bindings that nearly match", metavar="N")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print NDJSON")] = False,
) -> None:
    """Explain where a message would go, and why.

    Shows the queues that would get the message, the bindings that match or nearly match, and where the message would go
    if it were dead-lettered. For an exchange type that only the broker can route, such as x-jms-topic, shows the
    bindings. With --test, exits with 3 if any route in the file is unknown or differs from what is expected.
    """
    if (exchange is None) == (test is None):
        raise UsageError("give either EXCHANGE and KEY, or --test FILE", "mqtool route topic_logs kern.critical")
    access = access_to(broker)
    lines = [] if test is None else list(_expectations(test))
    router = Router(read(access.management(), access.vhost))

    def explain(name: str, key: str, fields: dict[str, Any]) -> QueueRoute:
        name = "" if name == "amq.default" else name
        try:
            return router.route(name, key, fields, near_misses=nearly)
        except KeyError as error:
            near = did_you_mean(name, router.definitions.exchanges, "'mqtool list exchanges' shows them")
            raise NotFound(f"exchange {name!r} does not exist in vhost {access.vhost!r}", near) from error

    if exchange is None:
        _compare(lines, explain, router.definitions, as_json=as_json)
        return
    found = explain(exchange, routing_key, dict(headers or []))
    if as_json:
        output.show_json(topology_text.route_as_json(found, router.definitions))
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


def _compare(
    lines: list[_Expectation],
    explain: Callable[[str, str, dict[str, Any]], QueueRoute],
    known: Definitions,
    *,
    as_json: bool,
) -> None:
    failed = unknown = 0
    for line in lines:
        found = explain(line.exchange, line.routing_key, line.headers)
        if found.unknown:
            unknown += line.queues is not None
        else:
            failed += line.queues not in (None, set(found.queues))
        if as_json:
            expected = {} if line.queues is None else {"expected": sorted(line.queues)}
            output.show_json(topology_text.route_as_json(found, known) | expected)
        else:
            layout.show_lines(topology_text.compared_route(found, line.queues))
    if failed or unknown:
        wrong = [f"{failed:,} of {len(lines):,} routes are not as expected"] * bool(failed)
        wrong += [f"{unknown:,} of {len(lines):,} routes cannot be known"] * bool(unknown)
        raise SomeFailed(", and ".join(wrong))
    output.status(f"{len(lines):,} routes, all as expected")
