"""mqtool tap: a copy of what passes, nothing taken."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from mqtool.cli.access import URL_VARIABLES, Access
from mqtool.cli.display import output
from mqtool.cli.options import (
    Broker,
    ManagementUrl,
    Match,
    OutputFile,
    Receiving,
    exchange_option,
    header_option,
    live_names,
    queue_option,
    takes_groups_but,
)
from mqtool.cli.options.where import Where
from mqtool.cli.pipe.tapping import Printing, Source, print_taps
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.taps import bindings
from mqtool.taps.bindings import Bound
from mqtool.taps.tapping import Tap

app = typer.Typer()

#: Seconds for a connection to the management API, and for its answer: a tap of an exchange can do without.
_PATIENCE = (2.0, 10.0)
Urls = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        "-u",
        help="Broker: amqp://user:password@host:5672/vhost",
        envvar=list(URL_VARIABLES),
        show_envvar=True,
        rich_help_panel="Broker",
    ),
]


@app.command(
    epilog="mqtool tap amq.topic 'order.*'\nmqtool tap -q jobs --json -o seen.ndjson\n"
    "mqtool tap orders --where 'body.total>100' -c 10"
)
@takes_groups_but(url=None, prefetch=None, auto_ack=None, strict=None)
def tap(
    *,
    exchange: Annotated[
        str | None, typer.Argument(help="Exchange", autocompletion=live_names.exchanges, show_default=False)
    ] = None,
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY]...", help="Binding keys", show_default="all that passes")
    ] = None,
    exchanges: Annotated[list[str] | None, exchange_option("One more exchange to tap, by the same keys")] = None,
    queue: Annotated[str | None, queue_option("Copy what this queue gets")] = None,
    headers: Annotated[list[Any] | None, header_option("Header to match, for a headers exchange")] = None,
    match: Annotated[Match, typer.Option(help="Match all of the headers, or any of them")] = Match.ALL,
    where: Where = None,
    buffer: Annotated[
        int, typer.Option(min=1, metavar="N", help="Messages to keep for a slow reader; then drop the oldest")
    ] = 10_000,
    receiving: Receiving,
    urls: Urls = None,
    broker: Broker,
    management: ManagementUrl = None,
    into: OutputFile = None,
) -> None:
    """Show copies of messages as they pass, and take none."""
    names = [*([] if exchange is None else [exchange]), *(exchanges or [])]
    if bool(names) == bool(queue) or (queue and headers):
        hint = "mqtool tap amq.topic 'kern.*' taps an exchange, mqtool tap -q jobs a queue"
        raise UsageError("name either an exchange or a queue", hint)
    arguments = {"x-match": match.value, **dict(headers)} if headers else {}

    def bound(access: Access) -> Iterator[Bound]:
        if queue:
            yield bindings.like_queue(access.management(), access.vhost, queue)
        for name in names:
            yield bindings.to_exchange(lambda: access.management(_PATIENCE), access.vhost, name, keys or (), arguments)

    def of(access: Access) -> Source:
        found = list(bound(access))
        for note in (note for each in found for note in each.notes):
            output.notice(note)
        every = [binding for each in found for binding in each.bindings]
        return Source(access, lambda channel, settings: Tap(channel, every, settings))

    each_url: list[str | None] = [*urls] if urls else [None]
    sources = [of(broker._replace(url=url).access(management)) for url in each_url]
    line = broker.lines.log_with_key if len(names) == 1 else _with_exchange
    print_taps(sources, Printing(receiving, line, buffer, where, into))


def _with_exchange(delivery: Delivery) -> str:
    return f" [x] {delivery.exchange} {delivery.routing_key}:"
