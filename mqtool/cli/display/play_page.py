"""Shows plays and drills in the page of `mqtool ui`: explanations, terminals and checks beside the moving picture.

What happens in a play becomes records with times, as the broker's events are. The page plays both from one recording,
so it can show an earlier scene again.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from mqtool.cli.display import output
from mqtool.errors import MqtoolError
from mqtool.stage.terminal import Chart, QueueDepth
from mqtool.ui.page_server import Json, PageServer
from mqtool.ui.records import records

if TYPE_CHECKING:
    from mqtool.management import Management

#: The most records that are kept. After that, only explanations and checks are added.
_MAX_RECORDS = 100_000
#: Reading speed in characters per second, and the shortest time for a text in seconds.
_READ_PER_SECOND, _SHORTEST = 22.0, 1.5
#: Longer lines of commands are cut.
_LINE = 500
#: Seconds between two looks at what a wait is for, and between two records of charts.
_LOOK, _BETWEEN_CHARTS = 0.25, 0.3
#: A page that is closed for more than this many seconds has not only been reloaded.
_RELOADED = 3.0
#: Seconds in which the broker's latest events and counts arrive, and in which open pages get the latest records.
_LATE, _LAST_WORDS = 1.3, 2.0


class Left(Exception):
    """The reader has chosen another play, or ended the command."""


class Recording:
    """Records from the start: each open page gets all of them, and then those that follow.

    Attributes:
        changed: notified when a record is added, or when a page is opened or closed.
        pages: the number of open pages.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.pages = 0
        self._records: list[Json] = []
        self._is_complete = False

    def add(self, kind: str, **fields: Any) -> None:
        """Add a record of what happens now."""
        self.add_record({"t": _now(), "kind": kind, **fields})

    def add_record(self, record: Json) -> None:
        with self.changed:
            self._records.append({**record, "n": len(self._records)})
            self.changed.notify_all()

    @property
    def is_full(self) -> bool:
        """True if only important records should still be added."""
        return len(self._records) >= _MAX_RECORDS

    def follow(self) -> Iterator[Json]:
        """Yield the records for one open page, until complete() is called or the iterator is closed."""
        self._count(+1)
        try:
            number, is_complete = 0, False
            while not is_complete:
                with self.changed:
                    if len(self._records) == number and not self._is_complete:
                        self.changed.wait(1.0)
                    new, is_complete = self._records[number:], self._is_complete
                yield from new
                number += len(new)
                yield {"kind": "now", "t": _now()}
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        with self.changed:
            self.pages += step
            self.changed.notify_all()

    def complete(self) -> None:
        """Mark the play as complete, and wait briefly until the open pages have received everything."""
        with self.changed:
            self._is_complete = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.pages, _LAST_WORDS)


class PlayPage:
    """Shows plays, or a drill, in a page that it serves. A context manager; it is an Audience.

    Args:
        plays: the names, titles and stories of the plays that the page offers; empty for a drill.
        auto: go on after the time that it takes to read each explanation.
        broker: management API, virtual host and title of the broker that the command line names, if any.
        port: the port to listen on; 0 for any free one.
        open_page: open the page in a browser.
    """

    def __init__(
        self,
        plays: Sequence[Mapping[str, str]],
        *,
        auto: bool = False,
        broker: "tuple[Callable[[], Management], str, str] | None" = None,
        port: int = 0,
        open_page: bool = False,
    ) -> None:
        self._recording = Recording()
        self._recording.add("session", plays=[dict(each) for each in plays])
        self._is_drill = not plays
        self._auto = auto
        self._broker = broker
        # There is nothing else to do in the page than to follow the play.
        answers = {"/play": self._asked, "/actions": lambda _: iter(())}
        self._server = PageServer(self._recording.follow, port, answers)
        self._open_page = open_page
        self._said = self._continued = 0
        self._pauses = not self._is_drill
        self._wanted: str | None = None
        self._seen = 0.0
        self._drawn: list[int] = []
        self._drawn_at = 0.0
        self._watching = threading.Event()

    def __enter__(self) -> Self:
        """Print the page's address, and wait until somebody opens the page."""
        output.show(self._server.url)
        if self._open_page:
            import webbrowser

            if not webbrowser.open(self._server.url):
                output.notice("no browser was found; open the address yourself")
        output.status("Open this address in a browser to start. Ctrl-C ends it.")
        try:
            self._wait(lambda: self._recording.pages > 0, says_so=False)
        except BaseException:
            self._server.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._recording.complete()
        self._server.close()

    @contextmanager
    def watching(self, title: str, story: str, name: str = "") -> Iterator[None]:
        """Show a play within the block. If it fails, the page says why."""
        self._said = self._continued = 0
        self._recording.add("begins", name=name, title=title, story=story)
        try:
            yield
        except MqtoolError as error:
            self._recording.add("failed", text=output.visible(str(error)))
            raise

    def ended(self, text: str) -> None:
        """Say that a play has ended."""
        self._recording.add("ends", text=text)

    def choice(self, proposed: str | None, *, starts: bool = False) -> str | None:
        """Wait until the reader chooses a play; return its name, or None to end the command.

        Args:
            proposed: the name of the play to start with Enter.
            starts: start the proposed play after a while, with `auto`.
        """
        self._recording.add("choose", proposed=proposed, pace=_pace("") if starts and self._auto else None)
        try:
            self._wait(lambda: self._wanted is not None)
        except KeyboardInterrupt:
            return None
        wanted, self._wanted = self._wanted, None
        return wanted or None

    def stay(self, rows: Sequence[tuple[str, str]]) -> None:
        """Show the result of a drill, names and numbers, until Ctrl-C."""
        self._recording.add("counts", rows=rows)
        output.status("The page stays until Ctrl-C.")
        self.choice(None)

    # The methods of an Audience.

    @contextmanager
    def on_broker(self, find: "Callable[[], Management] | None") -> Iterator[None]:
        self._watching.set()
        self._watching = over = threading.Event()
        self._pauses = True
        source = self._broker if find is None else (find, "/", "a broker of its own")
        if source is not None:
            threading.Thread(target=self._watch, args=(over, *source), name="mqtool-watch", daemon=True).start()
        yield
        over.wait(_LATE)
        over.set()

    def _watch(self, over: threading.Event, find: "Callable[[], Management]", vhost: str, title: str) -> None:
        latest: dict[str, Json] = {}
        for record in records(find, vhost, title):
            if over.is_set():
                return
            kind, what = record["kind"], {key: value for key, value in record.items() if key != "t"}
            if kind == "problem":
                self._recording.add("gone", text=output.visible(record["text"]))
                latest.clear()  # once it answers again, its title says so
            elif kind == "event" or (kind != "now" and latest.get(kind) != what and what.get("queues") != {}):
                if not self._recording.is_full:
                    self._recording.add_record(record)
                latest[kind] = what

    def opened(self, names: Sequence[str]) -> None:
        self._recording.add("opened", names=list(names))

    def typed(self, terminal: str, command: str) -> None:
        self._recording.add("typed", terminal=terminal, line=output.visible(command))

    def printed(self, terminal: str, line: str) -> None:
        if not self._recording.is_full:
            self._recording.add("printed", terminal=terminal, line=output.visible(line[:_LINE]))

    def counted(self, queues: Sequence[QueueDepth]) -> None:
        """Do nothing: the picture shows the numbers."""

    def say(self, text: str) -> None:
        """Show an explanation, and wait until the reader goes on; in a drill, only before it begins.

        Raises:
            Left: the reader has chosen something else.
        """
        self._said += 1
        waits, self._pauses = self._pauses, not self._is_drill
        pace = _pace(text) if self._auto else None
        self._recording.add("scene", number=self._said, text=text, waits=waits, pace=pace)
        if waits:
            self._wait(lambda: self._continued >= self._said or self._wanted is not None)
        if self._wanted is not None and not self._is_drill:
            raise Left
        self._recording.add("goes_on", number=self._said)

    def right(self, what: str) -> None:
        self._recording.add("checked", what=what, ok=True)

    def note(self, text: str) -> None:
        """Show what a drill has found."""
        self._recording.add("checked", what=text, ok=False)

    def blank(self) -> None:
        """Do nothing: the page needs no empty lines."""

    def measured(self, charts: Sequence[Chart], over: bool) -> None:
        now = time.monotonic()
        sizes = [len(each.values) for each in charts]
        if not any(sizes):
            self._drawn = [0] * len(charts)
        elif not over and now < self._drawn_at + _BETWEEN_CHARTS:
            return
        self._drawn_at = now
        new = [
            {"title": each.title, "unit": each.unit, "values": each.values[first:], "first": first}
            for each, first in zip(charts, self._drawn, strict=True)
        ]
        self._drawn = sizes
        self._recording.add("measured", charts=new)

    # The reader.

    def _asked(self, request: Json) -> Iterator[Json | None]:
        """Take what the page asks for: {"do": "next", "scene": 3}, {"do": "choose", "name": …} or {"do": "end"}."""
        with self._recording.changed:
            match request:
                case {"do": "next", "scene": int(number)} if number == self._said:
                    self._continued = number
                case {"do": "choose", "name": str(name)}:
                    self._wanted = name
                case {"do": "end"}:
                    self._wanted = ""
            self._recording.changed.notify_all()
        return iter(())

    def _wait(self, condition: Callable[[], bool], *, says_so: bool = True) -> None:
        """Wait for something that the reader does. If the page is closed, say so once."""
        while True:
            with self._recording.changed:
                if self._recording.changed.wait_for(condition, _LOOK):
                    return
                is_open = self._recording.pages > 0
            if is_open:
                self._seen, says_so = time.monotonic(), True
            elif says_so and time.monotonic() > self._seen + _RELOADED:
                says_so = False
                output.notice(f"The page is closed. Open it again to continue, or press Ctrl-C: {self._server.url}")


def _pace(text: str) -> int:
    """Return the milliseconds that it takes to read a text."""
    return round(1000 * max(_SHORTEST, len(text) / _READ_PER_SECOND))


def _now() -> int:
    return round(time.time() * 1000)
