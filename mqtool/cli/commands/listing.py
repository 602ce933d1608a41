"""mqtool list queues, exchanges, bindings, consumers, connections, channels, vhosts, users, permissions, plugins."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from mqtool.amqp import administration
from mqtool.cli import stopping
from mqtool.cli.display import output, tables
from mqtool.cli.options import TIME_LIMIT, Broker, ManagementUrl, live_names, takes_groups
from mqtool.errors import NotFound, SomeFailed, Unavailable
from mqtool.inspection.listing import (
    BINDINGS,
    CHANNELS,
    CONNECTIONS,
    CONSUMERS,
    EXCHANGES,
    PERMISSIONS,
    PLUGINS,
    QUEUES,
    USERS,
    VHOSTS,
    Condition,
    Listing,
    Row,
    in_order,
    parse_condition,
    queues_named,
)
from mqtool.topology import Exchange
from mqtool.tutorials.dialects import Names

app = typer.Typer()
list_app = typer.Typer(no_args_is_help=True, help="List queues, exchanges, bindings, consumers and more.")
app.add_typer(list_app, name="list")


def condition(text: str) -> Condition:
    """A --filter."""
    try:
        return parse_condition(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


class Choosing(NamedTuple):
    """Which rows, in which order, and how to print them."""

    conditions: Annotated[
        list[Any] | None,
        typer.Option(
            "--filter", parser=condition, metavar="CONDITION", help="Only matching rows: messages_ready>0, name~^log"
        ),
    ] = None
    order: Annotated[
        list[str] | None,
        typer.Option("--sort", metavar="COLUMN", help="Sort by COLUMN; -COLUMN puts the greatest first"),
    ] = None
    watch: Annotated[float | None, typer.Option(help="Repeat at this interval", **TIME_LIMIT)] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line")] = False
    all_vhosts: Annotated[bool, typer.Option("--all-vhosts", help="Include all virtual hosts")] = False
    management: ManagementUrl = None


class View:
    """One list, as the options want it.

    Args:
        names: of the columns; none for the usual ones.
        only: list what has one of these names; none for all.
    """

    def __init__(
        self,
        listing: Listing,
        names: Sequence[str] | None,
        choosing: Choosing,
        broker: Broker,
        only: Sequence[str] | None = None,
    ) -> None:
        self._listing = queues_named(only) if only and listing is QUEUES else listing
        self._choosing = choosing
        self._names = broker.names
        self._access = broker.access(choosing.management)
        self._only = frozenset(only or ())
        self._conditions: list[Condition] = choosing.conditions or []
        self._order = choosing.order or []
        every = choosing.all_vhosts or (not listing.of_vhost and broker.vhost is None)
        self._vhost = None if every else self._access.vhost
        self.columns = [*names] if names else [*listing.shown]
        if not names and choosing.all_vhosts and listing.of_vhost:
            self.columns.insert(0, "vhost")
        hidden = [each.column for each in self._conditions] + [name.removeprefix("-") for name in self._order]
        hidden += ["name"] if self._only else []
        self._fetched = [*dict.fromkeys([*self.columns, *hidden])]
        listing.check(self._fetched)
        self._without_api: Unavailable | None = None

    def rows(self) -> Iterable[Row]:
        """The rows as they are now. Raises as Management.get does."""
        rows = self._told()
        if self._only:
            rows = (row for row in rows if row["name"] in self._only)
        if self._conditions:
            rows = (row for row in rows if all(each.holds(row) for each in self._conditions))
        return in_order(rows, self._order) if self._order else rows

    def _told(self) -> Iterator[Row]:
        """What the management API tells; where there is none, what AMQP does."""
        self._without_api = None
        try:
            rows = self._listing.rows(self._access.management(), self._vhost, self._fetched)
            first = next(rows, None)  # whether there is an API shows with its first answer
        except NotFound:
            raise
        except Unavailable as missing:
            self._without_api = missing
            yield from self._by_amqp(missing)
            return
        if first is not None:
            yield first
            yield from rows

    def _by_amqp(self, missing: Unavailable) -> Iterator[Row]:
        """What AMQP tells of queues or exchanges whose names are known.

        Raises:
            Unavailable: it tells nothing of the like; or there is no broker either.
        """
        things = self._listing.things
        if things not in (QUEUES.things, EXCHANGES.things):
            raise Unavailable(f"{missing}; AMQP cannot list {things}", missing.hint) from missing
        with self._access.channel() as channel:
            for name in sorted(self._only) or _usual(self._names, self._listing):
                row: Row = dict.fromkeys(self._fetched)
                try:
                    if things == QUEUES.things:
                        depth = administration.depth(channel, name)
                        row |= {"messages_ready": depth.ready, "consumers": depth.consumers}
                    elif not administration.exists(channel, Exchange(name)):
                        continue
                except NotFound:
                    continue
                yield row | {"name": name}

    def show(self) -> None:
        """Print them.

        Raises:
            SomeFailed: there is no management API, and AMQP cannot tell all.
        """
        if not tables.show(self.rows(), self.columns, as_json=self._choosing.as_json):
            where = "" if self._vhost is None else f" in vhost {self._vhost!r}"
            such = " such" if self._conditions or self._only else ""
            output.status(f"no{such} {self._listing.things}{where}")
        if self._without_api is not None:
            self._tell_what_is_missing(self._without_api)

    def _tell_what_is_missing(self, why: Unavailable) -> None:
        what = "ready messages and consumers" if self._listing.things == QUEUES.things else "whether they are there"
        if self._only:
            output.warning(f"{why}; without it, AMQP shows only {what}")
            return
        names = ", ".join(_usual(self._names, self._listing))
        raise SomeFailed(f"{why}; without it, AMQP shows only {what} of {names}", why.hint)


def _usual(names: Names, listing: Listing) -> list[str]:
    """The names that the tutorials' queues, or exchanges, have."""
    if listing.things == QUEUES.things:
        return [each.name for each in (names.hello, names.task_queue, names.rpc_queue)]
    return [each.name for each in (names.fanout, names.direct, names.topic, names.headers)]


def _list(
    listing: Listing, names: Sequence[str] | None, choosing: Choosing, broker: Broker, only: Sequence[str] | None = None
) -> None:
    view = View(listing, names, choosing, broker, only)
    if choosing.watch is None:
        view.show()
    else:
        _watch(view, choosing.watch, live=output.is_terminal(1) and not choosing.as_json)


def _watch(view: View, pause: float, *, live: bool) -> None:
    """Show a list until we are told to stop: on a terminal in place, else one after the other."""
    stop = threading.Event()
    with stopping.calling(stop.set):
        if live:
            _watch_live(view, pause, stop)
            return
        while True:
            view.show()
            if stop.wait(pause):
                return


def _watch_live(view: View, pause: float, stop: threading.Event) -> None:
    from rich.live import Live

    with Live(console=tables.terminal(), screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(tables.table([*view.rows()], view.columns), refresh=True)
            if stop.wait(pause):
                return


Columns = Annotated[list[str] | None, typer.Argument(metavar="[COLUMN]...", show_default=False, help="Columns to show")]


def _help(what: str, listing: Listing) -> str:
    return f"{what}\n\nColumns: {', '.join(listing.columns)}."


@list_app.command(
    help=_help("List queues; counts can be some seconds old.", QUEUES),
    epilog="mqtool list queues name messages_ready messages_unacknowledged\n"
    "mqtool list queues --filter 'messages_ready>0' --sort -messages_ready --watch 1s",
)
@takes_groups
def queues(
    choosing: Choosing,
    broker: Broker,
    columns: Columns = None,
    queue: Annotated[
        list[str] | None,
        typer.Option(
            "--queue", "-q", help="Only this one; works without the management API", autocompletion=live_names.queues
        ),
    ] = None,
) -> None:
    """List queues; without the management API, those whose names are known."""
    _list(QUEUES, columns, choosing, broker, queue)


@list_app.command(
    help=_help("List exchanges.", EXCHANGES),
    epilog="mqtool list exchanges\nmqtool list exchanges name type --filter type=topic",
)
@takes_groups
def exchanges(
    choosing: Choosing,
    broker: Broker,
    columns: Columns = None,
    exchange: Annotated[
        list[str] | None,
        typer.Option(
            "--exchange",
            "-e",
            help="Only this one; works without the management API",
            autocompletion=live_names.exchanges,
        ),
    ] = None,
) -> None:
    """List exchanges; without the management API, those whose names are known."""
    _list(EXCHANGES, columns, choosing, broker, exchange)


def _add(listing: Listing, what: str, epilog: str) -> None:
    """A command for a list that needs no more than the usual options."""

    @list_app.command(name=listing.things, help=_help(what, listing), epilog=epilog)
    @takes_groups
    def run(choosing: Choosing, broker: Broker, columns: Columns = None) -> None:
        _list(listing, columns, choosing, broker)


_add(
    BINDINGS,
    "List bindings, with those to the default exchange.",
    "mqtool list bindings\nmqtool list bindings --filter source_name=logs --json",
)
_add(CONSUMERS, "List consumers.", "mqtool list consumers\nmqtool list consumers queue_name --filter user=guest")
_add(
    CONNECTIONS,
    "List connections; --vhost limits them to one virtual host.",
    "mqtool list connections\nmqtool list connections name user connection_name",
)
_add(
    CHANNELS,
    "List channels; --vhost limits them to one virtual host.",
    "mqtool list channels\nmqtool list channels name publish_rate --sort -publish_rate",
)
_add(VHOSTS, "List virtual hosts.", "mqtool list vhosts")
_add(USERS, "List users and their tags.", "mqtool list users")
_add(
    PERMISSIONS,
    "List what each user may configure, write to and read from.",
    "mqtool list permissions\nmqtool list permissions --all-vhosts",
)
_add(PLUGINS, "List the enabled plugins, and those they need.", "mqtool list plugins")
