"""mqtool list queues, exchanges, bindings and the other lists of inspection/listing.py."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mqtool.cli import stopping
from mqtool.cli.broker_access import access_to, dialect_names
from mqtool.cli.command_line import command, group
from mqtool.cli.completion import names_of
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.display.live_screen import Frame, Live, head_line
from mqtool.cli.options import ManagedBroker
from mqtool.cli.values import TIME_LIMIT
from mqtool.delays import is_wait_queue
from mqtool.errors import AccessRefused, DeclaredDifferently, MqtoolError, NotFound, SomeFailed, Unavailable
from mqtool.inspection.alarms import alarms
from mqtool.inspection.listing import (
    COUNTS,
    EXCHANGES,
    LISTINGS,
    QUEUES,
    STREAM_COUNTS,
    Listing,
    Row,
    in_order,
    queues_named,
    refresh,
)
from mqtool.spelling import as_text, counted
from mqtool.topology import Binding, Exchange, Queue
from mqtool.tutorials.dialects import DialectNames

if TYPE_CHECKING:
    from mqtool.amqp import Channel
    from mqtool.where import Where

_T = TypeVar("_T")
#: For up to this many queues, counts are also queried over AMQP, one by one, because AMQP's counts are current.
_ASKED = 200
#: Lists that hide mqtool's wait queues on a terminal: the columns that contain names, and words for the hidden rows.
_FOLDED: dict[str, tuple[Sequence[str], str, str]] = {
    "queues": (("name",), "wait queue", " of mqtool"),
    "exchanges": (("name",), "exchange", " of mqtool's wait queues"),
    "bindings": (("source_name", "destination_name"), "binding", " of the default exchange or mqtool's wait queues"),
}
#: The columns that contain counts of unacknowledged messages, which only the management API has.
_UNACKNOWLEDGED = {"messages", "messages_unacknowledged"}
#: Lists of all vhosts in which each row belongs to one.
_OF_ONE_VHOST = ("connections", "channels")
#: What a list contains, if its name does not say so.
_NOUNS = {"federation": "federation links", "feature-flags": "feature flags", "deprecated": "deprecated features"}
#: The columns that are available over AMQP, without a management API.
_BY_AMQP = {QUEUES.things: ["name", "messages_ready", "consumers"], EXCHANGES.things: ["name"]}

app = group("list", "List queues, exchanges, bindings, consumers and more.", heading="See")


def _columns(ctx: typer.Context) -> list[str]:
    return [*LISTINGS[str(ctx.info_name)].columns]


@dataclass(kw_only=True, eq=False, repr=False)
class Choosing:
    """Options that choose the rows to list, their order, and how to print them."""

    where: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="Show only matching rows (see mqtool help where)")
    ] = None
    order: Annotated[
        list[str] | None,
        typer.Option(
            "--sort", metavar="COLUMN", help="Sort by COLUMN; -COLUMN for descending order", autocompletion=_columns
        ),
    ] = None
    watch: Annotated[float | None, typer.Option(help="Repeat at this interval", **TIME_LIMIT)] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line")] = False
    all_vhosts: Annotated[bool, typer.Option("--all-vhosts", help="Include all virtual hosts")] = False
    shows_all: Annotated[
        bool, typer.Option("--all", help="Include wait queues and the default exchange's bindings")
    ] = False


class View:
    """One list: fetches its rows from the broker and prints them."""

    def __init__(
        self,
        listing: Listing,
        names: Sequence[str] | None,
        choosing: Choosing,
        broker: ManagedBroker,
        only: Sequence[str] | None,
        stack: ExitStack,
    ) -> None:
        self._listing = queues_named(only) if only and listing is QUEUES else listing
        self._choosing = choosing
        # A live view reconnects for its next frame, and shows that it is reconnecting.
        self._access = access_to(broker, reconnects=choosing.watch is None)
        self._stack = stack
        self._channel = cache(lambda: stack.enter_context(self._access.connect()).channel())
        self._notice_once = cache(output.notice)
        self._only = frozenset(only or ())
        self._missing = set[str]()
        self._usual = _usual(dialect_names(broker.options), listing.things)
        self._where: Where | None = None
        if choosing.where is not None:
            from mqtool.where import parse

            self._where = parse(choosing.where, listing.columns.keys())
        is_read = output.is_terminal(1) and not choosing.as_json
        self._as_lines = is_read and not names and listing.things == "bindings"
        leaves_out = is_read and not (choosing.shows_all or only or self._where)
        self._name_columns = _FOLDED[listing.things][0] if leaves_out and listing.things in _FOLDED else ()
        self._left_out: list[Row] = []
        self._order = choosing.order or []
        every = choosing.all_vhosts or (not listing.of_vhost and broker.options.vhost is None)
        self._vhost = None if every else self._access.vhost
        self._names = names
        self.columns = [*(names or listing.shown)]
        if not names and choosing.all_vhosts and listing.of_vhost:
            self.columns.insert(0, "vhost")
        hidden = [*(name.removeprefix("-") for name in self._order), *(self._where.fields if self._where else ())]
        hidden += ["name"] * bool(self._only) + [*self._name_columns]
        self._fetched = {*self.columns, *hidden}
        listing.check(self.columns, f"--{listing.things[:-1]}" if listing.things in _BY_AMQP else "")
        listing.check(hidden)
        self._counts = listing is QUEUES and not self._fetched.isdisjoint([*COUNTS, "consumers"])
        if self._counts:
            self._fetched |= {"name", "vhost", "type", *COUNTS}
        self._without_api: Unavailable | None = None
        self._is_live = self._had_api = False
        self._age = ""

    def rows(self) -> Iterable[Row]:
        """Fetch the current rows, filtered and sorted.

        Raises:
            Unavailable, AccessRefused, NotFound: the broker did not provide the rows.
        """
        rows = self._told()
        if self._only:
            rows = self._named(rows)
        if self._name_columns:
            rows = self._without_wait_queues(rows)
        if self._where:
            rows = filter(self._where_holds, rows)
        return in_order(rows, self._order) if self._order else rows

    def _named(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows with the given names; record the names without a row, unless they may appear in --watch."""
        self._missing = set(self._only if self._choosing.watch is None else ())
        for row in rows:
            if row["name"] in self._only:
                self._missing.discard(row["name"])
                yield row

    def _without_wait_queues(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield all rows except those of mqtool's wait queues, which are only counted."""
        self._left_out = []
        for row in rows:
            if row.get("source_name") == "" or any(is_wait_queue(row[name]) for name in self._name_columns):
                self._left_out.append(row)
            else:
                yield row

    def _sum(self) -> str:
        if not self._left_out:
            return ""
        _, noun, of = _FOLDED[self._listing.things]
        messages = counted(sum(row.get("messages") or 0 for row in self._left_out))
        holding = f" with {messages}" if "messages" in self.columns else ""
        return f"+{counted(len(self._left_out), noun)}{of}{holding} (--all lists them)"

    def _where_holds(self, row: Row) -> bool:
        """True if a row matches --where. A value that the broker omits never matches."""
        told = {
            name: as_text(each) if isinstance(each, list) else each for name, each in row.items() if each is not None
        }
        return self._where is not None and self._where.matches(told)

    def _told(self) -> Iterator[Row]:
        """Fetch rows from the management API, or from AMQP if there is no API."""
        self._without_api = None
        try:
            if self._listing.things in _OF_ONE_VHOST and self._vhost is None and not self._choosing.all_vhosts:
                from mqtool.cli.pipe.existence import check_vhost

                check_vhost(self._access)
            rows = self._listing.rows(self._access.management(), self._vhost, [*self._fetched])
            first = next(rows, None)  # fails here if there is no API
        except NotFound:
            raise
        except Unavailable as missing:
            if self._is_live and self._had_api:  # the live view keeps the last rows until the API is back
                raise
            if not self._usual:
                raise Unavailable(f"{missing}; AMQP cannot list {self._listing.things}", missing.hint) from missing
            self._without_api = missing
            self.columns = [*(self._names or _BY_AMQP[self._listing.things])]
            return self._by_amqp()
        self._had_api = True
        told = iter(()) if first is None else chain([first], rows)
        return self._fresh(told) if self._counts else told

    def _fresh(self, rows: Iterator[Row]) -> Iterator[Row]:
        first = list(islice(rows, _ASKED + 1))
        if len(first) > _ASKED or not self._refreshed(first):
            self._age = "counts of messages and consumers can be up to 5 s old"
        yield from first
        yield from rows

    def _refreshed(self, rows: Sequence[Row]) -> bool:
        """Update the counts of queues in place over AMQP, where the API's may be old.

        AMQP is limited to one vhost and reports no stream lengths. The API's counts of classic queues are current, but
        not those of their consumers.

        Returns:
            False if AMQP is not available.
        """
        asked = []
        for row in rows:
            if row["vhost"] != self._access.vhost or row["type"] == "stream":
                if row["type"] == "stream":
                    self._age = STREAM_COUNTS
                elif row["type"] != "classic":
                    self._age = self._age or "counts of other vhosts can be up to 5 s old"
            elif row["type"] != "classic" or "consumers" in self._fetched:
                asked.append(row)
        if not asked:
            return True
        from mqtool.amqp.administration import depth as depth_of

        with suppress(MqtoolError):
            self._ask(lambda _: None)
            for row in asked:
                try:
                    depth = self._ask(partial(depth_of, queue=row["name"]))
                except (NotFound, AccessRefused, DeclaredDifferently):  # deleted, or exclusive to another connection
                    continue
                if refresh(row, depth.ready, depth.consumers) and not _UNACKNOWLEDGED.isdisjoint(self.columns):
                    self._age = "counts of unacknowledged messages are up to 5 s old"
            return True
        return False

    def _by_amqp(self) -> Iterator[Row]:
        """Query known queues or exchanges by name over AMQP, which cannot list them."""
        from mqtool.amqp import administration

        for name in sorted(self._only) or self._usual:
            row: Row = dict.fromkeys([*self._fetched, *self.columns]) | {"name": name}
            with suppress(NotFound):
                if self._listing.things == QUEUES.things:
                    depth = self._ask(partial(administration.depth, queue=name))
                    yield row | {"messages_ready": depth.ready, "consumers": depth.consumers}
                elif self._ask(partial(administration.exists, thing=Exchange(name))):
                    yield row

    def _ask(self, what: "Callable[[Channel], _T]") -> _T:
        """Query the broker over AMQP. If the connection is lost, the next call opens a new one."""
        try:
            return what(self._channel())
        except NotFound:
            raise
        except Unavailable:
            self._stack.close()
            self._channel.cache_clear()
            raise

    def frame(self, wanted: str) -> Frame:
        """Return the rows that contain the wanted text, as one frame of the live view."""
        self._is_live = True
        rows = [
            row for row in self.rows() if any(wanted.lower() in as_text(row[column]).lower() for column in self.columns)
        ]
        table = layout.table(rows, self.columns, folded=False)
        alarmed = "" if self._without_api else alarms(self._access.management())
        above = [
            head_line(self._access.title, alarmed),
            *([layout.rich_text([(left_out, layout.DIM)])] if (left_out := self._sum()) else []),
        ]
        return Frame(table, above=above, heads=layout.heads(table), keys="1-9 sort")

    def press(self, key: str) -> None:
        """Sort by the column with this number; reverse the order if the key is pressed again."""
        if key.isdigit() and 0 < int(key) <= len(self.columns):
            column = self.columns[int(key) - 1]
            self._order = [f"-{column}" if self._order == [column] else column]

    def show(self) -> None:
        """Print the list once.

        Raises:
            SomeFailed: there is no management API, and the list is therefore incomplete.
            NotFound: without --watch, a given queue or exchange does not exist.
        """
        rows, things = self.rows(), self._listing.things
        if self._as_lines:
            found = [*map(_binding, rows)]
            layout.show_lines(found)
            count = len(found)
        else:
            count = layout.show_rows(rows, self.columns, as_json=self._choosing.as_json)
        if left_out := self._sum():
            output.status(left_out)
        elif not (count or self._missing) and (self._without_api is None or self._only):
            where = "" if self._vhost is None else f" in vhost {self._vhost!r}"
            such = " such" if self._where or self._only else ""
            output.status(f"no{such} {_NOUNS.get(things, things)}{where}")
        if self._age and count:
            self._notice_once(self._age)
        if (why := self._without_api) is not None:
            names = ", ".join(sorted(self._only) or self._usual)
            what = f"ready messages and consumers of {names}" if things == QUEUES.things else f"whether {names} exist"
            missing = f"{why}; without it, AMQP shows only {what}"
            if not self._only:
                raise SomeFailed(missing, why.hint)
            output.warning(missing)
        if self._missing:
            from mqtool.cli.pipe.existence import refuse

            access = None if self._vhost is None else self._access
            refuse(min(self._missing), access, f"'mqtool list {things}' shows them", things[:-1])


def _binding(row: Row) -> layout.Line:
    to = "──> exchange " if row["destination_kind"] == "exchange" else "──> "
    bound = Binding(row["source_name"], "", row["routing_key"], row["arguments"])
    vhost = f"{layout.shown(row['vhost'])}: " if "vhost" in row else ""
    ends = (f"{vhost}{layout.shown(bound.source)}", f"{to}{layout.shown(row['destination_name'])}")
    return [(ends[0], layout.LABEL), " ── ", layout.bound_by(bound), " ", (ends[1], layout.LABEL)]


def _usual(names: DialectNames, things: str) -> list[str]:
    """Return the names of the tutorials' queues or exchanges, to query over AMQP if no names are given."""
    known: dict[str, list[Queue | Exchange]] = {
        QUEUES.things: [names.hello, names.task_queue, names.rpc_queue],
        EXCHANGES.things: [names.fanout, names.direct, names.topic, names.headers],
    }
    return [thing.name for thing in known.get(things, [])]


def _watch(view: View, pause: float, *, live: bool) -> None:
    if live:
        Live(lambda _, wanted: view.frame(wanted), pause, view.press).run()
        return
    stop = threading.Event()
    with stopping.calling(stop.set):
        view.show()
        while not stop.wait(pause):
            try:
                view.show()
            except Unavailable as problem:
                output.warning(f"reconnecting: {problem}")


Columns = Annotated[
    list[str] | None, typer.Argument(metavar="[COLUMN]...", help="Columns to show", autocompletion=_columns)
]


def _only(flag: str, kind: str) -> Any:
    about, value = f"Only this {flag[2:]}; works without the management API", flag[2:].upper()
    option = typer.Option(flag, flag[1:3], metavar=value, help=about, autocompletion=names_of(kind))
    return Annotated[list[str] | None, option]


def _add(things: str, what: str, *examples: str, only: Any = None) -> None:
    """Add a `list` command.

    Args:
        only: the option that limits the list to some names, for things that AMQP can look up by name.
    """
    listing = LISTINGS[things]
    text = f"{what}\n\nColumns: {', '.join(listing.columns)}."

    @command(
        app,
        *examples,
        effect=Effect.READS,
        name=things,
        aliases=tuple(f"{things.removesuffix('s')} {word}" for word in ("ls", "list")),
        about=text,
        instead={"only": only},
    )
    def run(choosing: Choosing, broker: ManagedBroker, columns: Columns = None, only: list[str] | None = None) -> None:
        with ExitStack() as stack:
            view = View(listing, columns, choosing, broker, only, stack)
            if choosing.watch is None:
                view.show()
            else:
                _watch(view, choosing.watch, live=output.is_terminal(1) and not choosing.as_json)


_add(
    "queues",
    "List queues and how many messages they have.",
    "mqtool list queues name messages_ready messages_unacknowledged",
    "mqtool list queues --where 'messages_ready>0' --sort -messages_ready --watch 1s",
    "mqtool list queues --where 'messages>0 and not arguments.x-queue-type=quorum'",
    only=_only("--queue", "queues"),
)
_add(
    "exchanges",
    "List exchanges.",
    "mqtool list exchanges",
    "mqtool list exchanges name durable --where type=topic",
    only=_only("--exchange", "exchanges"),
)
_add(
    "bindings",
    "List bindings; on a terminal, not those of the default exchange.",
    "mqtool list bindings",
    "mqtool list bindings --where source_name=logs --json",
)
_add("consumers", "List consumers.", "mqtool list consumers", "mqtool list consumers queue_name --where user=guest")
_add(
    "connections",
    "List connections; --vhost restricts the list to one virtual host.",
    "mqtool list connections",
    "mqtool list connections name user connection_name",
)
_add(
    "channels",
    "List channels; --vhost restricts the list to one virtual host.",
    "mqtool list channels",
    "mqtool list channels name publish_rate --sort -publish_rate",
)
_add("vhosts", "List virtual hosts.", "mqtool list vhosts")
_add("users", "List users and their tags.", "mqtool list users")
_add(
    "permissions",
    "List what each user may configure, write to and read from.",
    "mqtool list permissions",
    "mqtool list permissions --all-vhosts",
)
_add("plugins", "List the enabled plugins and their dependencies.", "mqtool list plugins")
_add(
    "shovels",
    "List shovels, also those that are terminated.",
    "mqtool list shovels",
    "mqtool list shovels --all-vhosts --where state=terminated --json",
)
_add("federation", "List the links of federated exchanges and queues.", "mqtool list federation")
_add(
    "parameters",
    "List runtime parameters, such as shovels, without passwords.",
    "mqtool list parameters",
    "mqtool list parameters --where component=shovel --json",
)
_add("feature-flags", "List feature flags.", "mqtool list feature-flags --where state=disabled")
_add(
    "deprecated",
    "List deprecated features (RabbitMQ 3.13+).",
    "mqtool list deprecated",
    "mqtool list deprecated --where in_use=true",
)
