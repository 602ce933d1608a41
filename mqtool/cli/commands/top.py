"""mqtool top."""

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mqtool import management as api
from mqtool.cli import stopping
from mqtool.cli.display import output, tables
from mqtool.cli.display.pace import single_keys
from mqtool.cli.options import TIME_LIMIT, Broker, ManagementUrl, takes_groups
from mqtool.errors import Unavailable, UsageError
from mqtool.inspection.diagnosis import COLUMNS, forgets_to_acknowledge, has_no_consumer, rate, stands_still
from mqtool.inspection.listing import Row, counted
from mqtool.management import Management
from mqtool.management.client import Json
from mqtool.spelling import did_you_mean

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

app = typer.Typer()


class _Order(NamedTuple):
    """What to sort by: the table's column, and the API's path."""

    column: str
    path: str

    @property
    def word(self) -> str:
        """The column, without its unit."""
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
_SHOWN = ("name", "ready", "unacked", "consumers", "in/s", "out/s", "ack/s", "look out")
_QUIT = ("q", "\x1b", "\x04")
#: Lines that are not queues.
_FRAME = 6
#: How many looks back the one is that this one is compared with: some seconds, in which a consumer should acknowledge.
_LOOKS_BACK = 5


@dataclass
class Screen:
    """What is shown.

    Attributes:
        find: the management API; again after it was lost, as a broker that comes back may have it elsewhere.
        order: a key of _ORDERS.
        descending: the greatest first.
        looks: the latest ones, by vhost and queue.
    """

    find: Callable[[], Management]
    vhost: str | None
    order: str = "r"
    descending: bool = True
    looks: list[dict[tuple[str, str], Json]] = field(default_factory=list)
    found: Management | None = None

    @property
    def api(self) -> Management:
        """The management API."""
        self.found = self.found or self.find()
        return self.found

    def press(self, key: str) -> None:
        """Sort by what a key stands for; a second time the other way round."""
        if key in _ORDERS:
            self.descending = not self.descending if key == self.order else key != "n"
            self.order = key

    def queues(self, limit: int) -> list[Json]:
        """The first queues in this order; the broker sorts, so that only they have to come."""
        order = {"sort": _ORDERS[self.order].path, "sort_reverse": str(self.descending).lower()}
        found = list(islice(api.queues(self.api, self.vhost, COLUMNS, page_size=limit, **order), limit))
        self.looks = [*self.looks[-_LOOKS_BACK:], {(queue["vhost"], queue["name"]): queue for queue in found}]
        return found

    def row(self, queue: Json) -> Row:
        """A queue, as the table has it."""
        earlier = self.looks[0].get((queue["vhost"], queue["name"])) if len(self.looks) > _LOOKS_BACK else None
        warning = ""
        if has_no_consumer(queue):
            warning = "no consumer"
        elif forgets_to_acknowledge(queue, earlier):
            warning = "no acks?"
        elif stands_still(queue, earlier):
            warning = "nothing moves?"
        return {
            "name": queue["name"] if self.vhost is not None else f"{queue['vhost']} {queue['name']}",
            "ready": queue.get("messages_ready"),
            "unacked": queue.get("messages_unacknowledged"),
            "consumers": queue.get("consumers"),
            "in/s": rate(queue, "publish"),
            "out/s": rate(queue, "deliver_get"),
            "ack/s": rate(queue, "ack"),
            "look out": warning,
        }


@app.command(epilog="mqtool top\nmqtool top --sort unacked\nmqtool top --once")
@takes_groups
def top(
    broker: Broker,
    sort: Annotated[
        str, typer.Option(metavar="COLUMN", help="Sort by name, ready, unacked, consumers, in, out or ack")
    ] = ("ready"),
    interval: Annotated[float, typer.Option(help="Time between two looks", show_default="1s", **TIME_LIMIT)] = "1s",  # type: ignore[assignment]
    once: Annotated[bool, typer.Option("--once", help="Print it once and exit, as in a pipe")] = False,
    all_vhosts: Annotated[bool, typer.Option("--all-vhosts", help="Include all virtual hosts")] = False,
    management: ManagementUrl = None,
) -> None:
    """Watch queues, rates and consumers."""
    access = broker.access(management)
    screen = Screen(access.management, None if all_vhosts else access.vhost, order=_key(sort))
    screen.descending = screen.order != "n"
    if once or not (output.is_terminal(0) and output.is_terminal(1)):
        rows = [screen.row(queue) for queue in screen.queues(api.PAGE_SIZE)]
        if not tables.show(rows, _SHOWN):
            output.status("no queues")
    else:
        _live(screen, str(access.address), interval)


def _key(sort: str) -> str:
    for key, order in _ORDERS.items():
        if sort in (order.column, order.word):
            return key
    columns = [order.word for order in _ORDERS.values()]
    raise UsageError(f"top cannot sort by {sort!r}", did_you_mean(sort, columns, f"columns: {', '.join(columns)}"))


def _live(screen: Screen, where: str, interval: float) -> None:
    from rich.live import Live

    terminal, stop = tables.terminal(), threading.Event()
    with stopping.calling(stop.set), single_keys(), Live(console=terminal, screen=True, auto_refresh=False) as live:
        while not stop.is_set():
            live.update(_picture(screen, where, terminal.height), refresh=True)
            key = _key_within(interval, stop)
            if key in _QUIT:
                return
            screen.press(key)


def _key_within(seconds: float, stop: threading.Event) -> str:
    """The key that was pressed, as soon as one is; none when the time is over, or stop is set."""
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        if select.select([0], [], [], min(left, 0.1))[0]:
            return os.read(0, 64).decode(errors="replace") or "q"  # or the terminal has gone
    return ""


def _picture(screen: Screen, where: str, height: int) -> "Group":
    from rich.console import Group
    from rich.text import Text

    room = max(height - _FRAME, 1)
    body: RenderableType
    try:
        rows = [screen.row(queue) for queue in screen.queues(min(room, api.PAGE_SIZE))]
        totals = _totals(screen.api)
        body = tables.table(rows, _SHOWN, warning="look out", folded=False) if rows else Text("no queues")
    except Unavailable as gone:  # it may come back, and who watches wants to see that
        totals, body, screen.found = "", Text(str(gone), style="red"), None
    keys = "  ".join(f"{key} {order.word}" for key, order in _ORDERS.items())
    arrow = "↓" if screen.descending else "↑"
    sorted_by = f"sorted by {_ORDERS[screen.order].column} {arrow}"
    return Group(
        Text(f"{where}   {sorted_by}", style="bold"),
        Text(totals),
        Text(""),
        body,
        Text(""),
        Text(f"{keys}  q quit", style="dim"),
    )


def _totals(management: Management) -> str:
    told = management.get("overview", columns="object_totals,queue_totals,message_stats")
    objects, queued = (told.get(name) or {} for name in ("object_totals", "queue_totals"))
    return (
        f"{counted(objects.get('queues', 0), 'queue')}, {queued.get('messages_ready', 0):,} ready, "
        f"{queued.get('messages_unacknowledged', 0):,} unacked, "
        f"{counted(objects.get('consumers', 0), 'consumer')}, {counted(objects.get('connections', 0), 'connection')}; "
        f"{rate(told, 'publish'):,.0f} in/s, {rate(told, 'deliver_get'):,.0f} out/s"
    )
