"""mqtool top."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Annotated, Any, NamedTuple

import typer

from mqtool import management as api
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.display.live_screen import Frame, Live, head_line
from mqtool.cli.options import ManagedBroker
from mqtool.cli.values import TIME_LIMIT
from mqtool.delays import is_wait_queue
from mqtool.errors import MqtoolError, Unavailable, UsageError
from mqtool.inspection.alarms import alarms
from mqtool.inspection.diagnosis import COLUMNS, forgets_to_acknowledge, has_no_consumer, rate, stands_still
from mqtool.inspection.listing import COUNTS_OFFSETS, STREAM_COUNTS, Row
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.spelling import counted, did_you_mean

app = typer.Typer()


class _Order(NamedTuple):
    """A sort order: the column of the table, and the field of the management API."""

    column: str
    path: str

    @property
    def word(self) -> str:
        """The column's name without its unit."""
        return self.column.partition("/")[0]


_ORDERS = {
    "n": _Order("name", "name"),
    "r": _Order("ready", "messages_ready"),
    "u": _Order("unacked", "messages_unacknowledged"),
    "c": _Order("consumers", "consumers"),
    "i": _Order("in/s", "message_stats.publish_details.rate"),
    "o": _Order("out/s", "message_stats.deliver_get_details.rate"),
    "a": _Order("ack/s", "message_stats.ack_details.rate"),
}
_SHOWN = ("name", "ready", "unacked", "consumers", "in/s", "out/s", "ack/s", "warning")
#: The columns to show on a terminal with fewer than 60 or 80 columns.
_NARROW = ((60, ("name", "ready", "unacked", "warning")), (80, ("name", "ready", "unacked", "consumers", "warning")))
#: If there are no more queues than this, mqtool fetches all of them and sorts them itself; otherwise, the broker sorts.
_ALL_AT_ONCE = 2_000
#: Compare with the sample taken this many samples ago, to give consumers a few seconds to acknowledge.
_LOOKS_BACK = 5


@dataclass
class Screen:
    """The state of `mqtool top`: the sort order and the latest samples.

    Attributes:
        find: locates the management API; called again after an error, because a restarted broker may use another port.
        vhost: the virtual host whose queues are shown; None for all.
        order: a key of _ORDERS.
        descending: True if the largest value comes first.
        hides_wait_queues: True to leave out mqtool's wait queues, as `list queues` does on a terminal.
        left_out: how many wait queues the latest sample left out; if the broker sorts, this is not known.
        looks: the latest samples; each maps vhost and name to a queue.
    """

    find: Callable[[], Management]
    vhost: str | None
    order: str = "r"
    descending: bool = True
    hides_wait_queues: bool = False
    left_out: int = 0
    looks: list[dict[tuple[str, str], Json]] = field(default_factory=list)
    found: Management | None = None

    @property
    def api(self) -> Management:
        """The management API."""
        self.found = self.found or self.find()
        return self.found

    def press(self, key: str) -> None:
        """Sort by the column that this key selects; if the key is pressed again, reverse the order."""
        if key in _ORDERS:
            self.descending = not self.descending if key == self.order else key != "n"
            self.order = key

    def queues(self, limit: int | None, name: str = "") -> list[Json]:
        """Fetch up to `limit` queues whose names contain this text, in the chosen order; ties are sorted by name."""
        path = _ORDERS[self.order].path
        if limit is None or self.count(name) <= _ALL_AT_ONCE:
            every = list(api.queues(self.api, self.vhost, COLUMNS, name=name))
            found = [*filter(self._shows, every)]
            self.left_out = len(every) - len(found)
        else:
            order = {"sort": path, "sort_reverse": str(self.descending).lower()}
            page = api.queues(self.api, self.vhost, COLUMNS, page_size=limit, name=name, **order)
            found, self.left_out = list(islice(filter(self._shows, page), limit)), 0
        found.sort(key=lambda queue: (queue["name"], queue["vhost"]), reverse=path == "name" and self.descending)
        if path != "name":
            found.sort(key=lambda queue: _value(queue, path), reverse=self.descending)
        found = found[:limit]
        self.looks = [*self.looks[-_LOOKS_BACK:], {(queue["vhost"], queue["name"]): queue for queue in found}]
        return found

    def _shows(self, queue: Json) -> bool:
        return not (self.hides_wait_queues and is_wait_queue(queue["name"]))

    @property
    def shows_streams(self) -> bool:
        """True if the latest sample has a stream."""
        return any(queue.get("type") == "stream" for queue in self.looks[-1].values())

    @property
    def left_out_in_words(self) -> str:
        """A text such as "+2 wait queues of mqtool (--all lists them)"; "" if no queue is left out."""
        return f"+{counted(self.left_out, 'wait queue')} of mqtool (--all lists them)" if self.left_out else ""

    def count(self, name: str) -> int:
        """Return the number of queues whose names contain this text."""
        where = "queues" if self.vhost is None else api.path("queues", self.vhost)
        page = self.api.get(where, page="1", page_size="1", columns="name", name=name)
        return int(page["filtered_count"])

    def row(self, queue: Json) -> Row:
        """Convert a queue of the latest sample to a row of the table, with a warning if it seems to have a problem."""
        earlier = self.looks[0].get((queue["vhost"], queue["name"])) if len(self.looks) > _LOOKS_BACK else None
        warning = ""
        if has_no_consumer(queue):
            warning = "no consumer"
        elif forgets_to_acknowledge(queue, earlier):
            warning = "no acks?"
        elif stands_still(queue, earlier):
            warning = "nothing moves?"
        # The statistics do not include the stream protocol.
        counts = queue.get("message_stats") or {}
        is_told = queue.get("type") != "stream" or bool(counts.get("publish") or counts.get("deliver_get"))
        return {
            "name": queue["name"] if self.vhost is not None else f"{queue['vhost']} {queue['name']}",
            "ready": queue.get("messages_ready"),
            "unacked": queue.get("messages_unacknowledged"),
            "consumers": queue.get("consumers"),
            "in/s": rate(queue, "publish") if is_told else None,
            "out/s": rate(queue, "deliver_get") if is_told else None,
            "ack/s": rate(queue, "ack") if is_told else None,
            "warning": warning,
        }


@command(app, "mqtool top", "mqtool top --sort unacked", "mqtool top --once", effect=Effect.READS, heading="See")
def top(
    broker: ManagedBroker,
    sort: Annotated[
        str, typer.Option(metavar="COLUMN", help="Sort by name, ready, unacked, consumers, in, out or ack")
    ] = ("ready"),
    interval: Annotated[float, typer.Option(help="Time between two samples", **TIME_LIMIT)] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one sample and exit; in a pipe, this is the default")
    ] = False,
    all_vhosts: Annotated[bool, typer.Option("--all-vhosts", help="Include all virtual hosts")] = False,
    shows_all: Annotated[bool, typer.Option("--all", help="Include mqtool's wait queues")] = False,
) -> None:
    """Watch queues, rates and consumers."""
    access = access_to(broker)
    screen = Screen(access.management, None if all_vhosts else access.vhost, order=_key(sort))
    screen.descending = screen.order != "n"
    screen.hides_wait_queues = output.is_terminal(1) and not shows_all
    if once or not (output.is_terminal(0) and output.is_terminal(1)):
        rows = [screen.row(queue) for queue in screen.queues(None)]
        if not layout.show_rows(rows, _SHOWN, narrower=[columns for _, columns in reversed(_NARROW)]):
            output.status("no queues")
        if screen.left_out:
            output.status(screen.left_out_in_words)
        if screen.shows_streams:
            output.notice(STREAM_COUNTS)
    else:
        Live(partial(_frame, screen, access.title), interval, screen.press, partial(_peek, broker)).run()


def _peek(broker: ManagedBroker, chosen: tuple[str, str]) -> None:
    """Print the first messages of a queue, as `peek` does."""
    from mqtool.cli.commands.peek import peek
    from mqtool.cli.options.receiving_options import PrintingOptions

    vhost, queue = chosen
    try:
        peek(queue, PrintingOptions(), replace(broker, options=replace(broker.options, vhost=vhost)))
    except MqtoolError as error:
        output.error(str(error), error.hint)


def _value(queue: Json, path: str) -> float:
    """Return the number at a path in the API's JSON, such as "message_stats.ack_details.rate"; 0 if it is missing."""
    found: Any = queue
    for name in path.split("."):
        found = (found or {}).get(name)
    return found if isinstance(found, int | float) else 0


def _key(sort: str) -> str:
    for key, order in _ORDERS.items():
        if sort in (order.column, order.word):
            return key
    columns = [order.word for order in _ORDERS.values()]
    raise UsageError(f"top cannot sort by {sort!r}", did_you_mean(sort, columns, f"columns: {', '.join(columns)}"))


def _frame(screen: Screen, title: str, height: int, wanted: str) -> Frame:
    from rich.text import Text

    try:
        queues = screen.queues(height, wanted)
        rows = [screen.row(queue) for queue in queues]
        totals = _totals(screen.api.get("overview", columns="object_totals,queue_totals,message_stats"))
        beyond, alarmed = max(0, screen.count(wanted) - len(rows) - screen.left_out), alarms(screen.api)
    except Unavailable:
        screen.found = None  # a restarted broker's management API may have another address
        raise
    shown = next((columns for least, columns in _NARROW if layout.terminal().width < least), _SHOWN)
    body = layout.table(rows, shown, warning="warning", folded=False) if rows else Text("no queues")
    totals = f"{totals}; {screen.left_out_in_words}".rstrip("; ")
    notes = [Text(COUNTS_OFFSETS, style=layout.DIM, no_wrap=True, overflow="ellipsis")] if screen.shows_streams else []
    arrow = "↓" if screen.descending else "↑"
    sorted_by = f"sorted by {_ORDERS[screen.order].column} {arrow}"
    return Frame(
        body,
        above=[
            head_line(f"{title}   {sorted_by}", alarmed),
            Text(totals, no_wrap=True, overflow="ellipsis"),
            *notes,
            Text(""),
        ],
        heads=1 if rows else 0,
        beyond=beyond,
        keys="  ".join(["Enter peek", *(f"{key} {order.word}" for key, order in _ORDERS.items())]),
        things=[(queue["vhost"], queue["name"]) for queue in queues],
    )


def _totals(told: Json) -> str:
    objects, queued = (told.get(name) or {} for name in ("object_totals", "queue_totals"))
    return (
        f"{counted(objects.get('queues', 0), 'queue')}, {queued.get('messages_ready', 0):,} ready, "
        f"{queued.get('messages_unacknowledged', 0):,} unacked, "
        f"{counted(objects.get('consumers', 0), 'consumer')}, {counted(objects.get('connections', 0), 'connection')}; "
        f"{rate(told, 'publish'):,.0f} in/s, {rate(told, 'deliver_get'):,.0f} out/s"
    )
