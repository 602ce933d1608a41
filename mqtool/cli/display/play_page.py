"""Shows plays and drills in the page of `mqtool ui`: explanations, terminals and checks beside the animation.

The output of a play and the events of the broker are recorded together, with their times. So the page can show an
earlier scene again.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mqtool.cli.display import output
from mqtool.cli.display.browser import opened
from mqtool.cli.display.learner import Learner
from mqtool.errors import MqtoolError
from mqtool.stage.terminal import Chart, QueueDepth, SeparateTerminals
from mqtool.ui.copies import Copies
from mqtool.ui.page_server import Json, PageServer
from mqtool.ui.records import records

if TYPE_CHECKING:
    from mqtool.amqp import Connection
    from mqtool.management import Management

#: The maximum number of records to keep. Beyond that, only explanations and checks are added.
_MAX_RECORDS = 100_000
#: Reading speed in characters per second, and the minimum time to show an explanation, in seconds.
_READ_PER_SECOND, _SHORTEST = 22.0, 1.5
#: The records about terminals.
_TERMINALS = ("opened", "typed", "printed", "finished")
#: Longer lines of output are cut off.
_LINE = 500
#: Seconds between two checks of a condition being waited for, and between two records of charts.
_LOOK, _BETWEEN_CHARTS = 0.25, 0.3
#: A page that stays closed for longer than this many seconds was not just being reloaded.
_RELOADED = 3.0
#: Seconds to wait for the broker's latest events and counts, and for open pages to get the latest records.
_LATE, _LAST_WORDS = 1.3, 2.0


class Left(Exception):
    """The user has chosen another play, or ended the command."""


class Again(Exception):
    """The user has changed something on the play's own broker, so the caller has to perform the play again.

    The page continues with the scene that was announced last.
    """


class ShownBroker(NamedTuple):
    """A broker on which plays run, and which others may use, too.

    Attributes:
        find: returns the broker's management API.
        title: a name for the broker, which the page shows.
        connect: opens a connection; used on RabbitMQ, to receive copies of messages.
    """

    find: "Callable[[], Management]"
    vhost: str
    title: str
    connect: "Callable[[], Connection] | None" = None


class TerminalRecording:
    """Keeps all records since the start. An open page receives the past records first, and then each new one.

    Attributes:
        changed: notified when a record is added, or when a page is opened or closed.
        pages: the number of open pages.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.pages = 0
        self._records: list[Json] = []
        self._is_complete = False
        #: While a play is performed again: its terminals, and what they have printed.
        self._held: list[tuple[str, Json]] | None = None

    def add(self, kind: str, **fields: Any) -> None:
        """Add a record with the current time."""
        if self._held is None:
            self.add_record({"t": _now(), "kind": kind, **fields})
        elif kind in _TERMINALS:
            if kind == "opened":
                self._held.clear()
            self._held.append((kind, fields))

    def hold(self) -> None:
        """Add no records until resume() is called, while scenes are performed again that are already recorded."""
        self._held = []

    def resume(self) -> None:
        """Add records again, beginning with the current terminals and their output."""
        held, self._held = self._held or [], None
        for kind, fields in held:
            self.add(kind, **fields)

    def add_record(self, record: Json) -> None:
        with self.changed:
            self._records.append({**record, "n": len(self._records)})
            self.changed.notify_all()

    @property
    def is_full(self) -> bool:
        """True if the recording is so large that only important records should be added."""
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
        """Mark the play as complete, and wait briefly for the open pages to receive everything."""
        with self.changed:
            self._is_complete = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.pages, _LAST_WORDS)


class PlayPage(SeparateTerminals):
    """A context manager and Audience that serves a web page, and shows plays or a drill there.

    Args:
        plays: the names, titles and stories of the plays that the page offers; empty for a drill.
        auto: after each explanation, wait as long as it takes to read the text, instead of waiting for the user.
        broker: the broker named on the command line, if any.
        port: the port to listen on; 0 for any free one.
        open_page: open the page in a browser.
    """

    def __init__(
        self,
        plays: Sequence[Mapping[str, str]],
        *,
        auto: bool = False,
        broker: ShownBroker | None = None,
        port: int = 0,
        open_page: bool = False,
    ) -> None:
        self._recording = TerminalRecording()
        self._recording.add("session", plays=[dict(each) for each in plays])
        self._is_drill = not plays
        self._auto = auto
        self._broker = broker
        self._learner = Learner(is_offered=bool(plays) and broker is None)
        answers = {"/play": self._asked, **self._learner.answers}
        self._server = PageServer(self._recording.follow, port, answers)
        self._open_page = open_page
        self._ending = ExitStack()
        self._exchanges: Collection[str] = ()
        self._said = self._continued = 0
        self._pauses = not self._is_drill
        self._wanted: str | None = None
        self._seen = 0.0
        self._drawn: list[int] = []
        self._drawn_at = 0.0
        #: Charts with readings that the page does not have yet.
        self._undrawn: Sequence[Chart] = ()
        self._watching = threading.Event()
        #: The scene up to which a play is performed again.
        self._resumes_at = 0
        self._watch_now: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        """Print the page's address, and wait until somebody opens the page."""
        try:
            output.show(self._server.url)
            if self._open_page:
                self._ending.enter_context(opened(self._server.url))
            output.status("Open this address in a browser to start. Press Ctrl-C to quit.")
            self._wait(lambda: self._recording.pages > 0, says_so=False)
        except BaseException:
            self._ending.close()
            self._server.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.close()
        self._recording.complete()
        self._server.close()

    @contextmanager
    def watching(
        self, title: str, story: str, name: str = "", exchanges: Collection[str] = (), queues: Collection[str] = ()
    ) -> Iterator[None]:
        """Context manager: show a play until the `with` block ends. If the block raises an error, the page shows it.

        Args:
            exchanges, queues: the play's own exchanges and queues. On a broker that others also use, the page shows
                only these. On RabbitMQ, it shows copies of the messages of these exchanges.
        """
        self._exchanges = exchanges
        self._said = self._continued = self._resumes_at = 0
        has_others = self._broker is not None and bool(exchanges or queues)
        own = {"exchanges": [*exchanges], "queues": [*queues]} if has_others else None
        self._recording.add("begins", name=name, title=title, story=story, own=own)
        try:
            yield
        except MqtoolError as error:
            self._recording.add("failed", text=output.visible(str(error)))
            raise

    def ended(self, text: str) -> None:
        """Show that a play has ended."""
        self._recording.add("ends", text=text)

    def choice(self, proposed: str | None, *, starts: bool = False) -> str | None:
        """Wait until the user chooses a play; return its name, or None to end the command.

        Args:
            proposed: the name of the play that Enter starts.
            starts: if the page was created with `auto`, start the proposed play after a short pause.
        """
        self._recording.add("choose", proposed=proposed, pace=_pace("") if starts and self._auto else None)
        try:
            with self._learner.turn():
                self._wait(lambda: self._wanted is not None)
        except KeyboardInterrupt:
            return None
        wanted, self._wanted = self._wanted, None
        return wanted or None

    def stay(self, rows: Sequence[tuple[str, str]]) -> None:
        """Show the result of a drill, as rows of names and numbers, until the user presses Ctrl-C."""
        self._recording.add("counts", rows=rows)
        output.status("The page stays open until you press Ctrl-C.")
        self.choice(None)

    # The methods of an Audience.

    @contextmanager
    def on_broker(
        self, find: "Callable[[], Management] | None", environment: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        self._watching.set()
        self._watching = over = threading.Event()
        self._pauses = True
        source = self._broker if find is None else ShownBroker(find, "/", "a broker started by mqtool")
        if source is not None:
            self._watch_now = partial(self._start_to_watch, over, source)
            if not self._resumes_at:
                self._watch_now()
        self._learner.come_to(environment)
        try:
            yield
            over.wait(_LATE)
        finally:
            over.set()
            self._learner.come_to(None)

    def _start_to_watch(self, over: threading.Event, source: ShownBroker) -> None:
        """Start to record the broker's events. If a play is repeated, wait for a record of the messages in queues."""
        is_known = threading.Event()
        arguments = (over, source, is_known)
        threading.Thread(target=self._watch, args=arguments, name="mqtool-watch", daemon=True).start()
        if self._resumes_at:
            is_known.wait(_LATE)

    def _watch(self, over: threading.Event, source: ShownBroker, is_known: threading.Event) -> None:
        latest: dict[str, Json] = {}
        copying = None
        if source.connect is not None and self._exchanges:
            copying = partial(Copies, source.connect, source.vhost, exchanges=self._exchanges)
        for record in records(source.find, source.vhost, source.title, copying, is_play=True):
            if over.is_set():
                return
            kind, what = record["kind"], {key: value for key, value in record.items() if key != "t"}
            if kind == "problem":
                self._recording.add("gone", text=output.visible(record["text"]))
                latest.clear()  # so that its title is shown again once the broker responds
            elif kind == "event" or (kind != "now" and latest.get(kind) != what):
                if not self._recording.is_full:
                    self._recording.add_record(record)
                latest[kind] = what
            if kind == "moved":
                is_known.set()

    def opened(self, names: Sequence[str]) -> None:
        self._recording.add("opened", names=list(names))

    def typed(self, terminal: str, command: str) -> None:
        self._recording.add("typed", terminal=terminal, line=output.visible(command))

    def printed(self, terminal: str, line: str) -> None:
        if not self._recording.is_full:
            self._recording.add("printed", terminal=terminal, line=output.visible(line[:_LINE]))

    def finished(self, terminal: str) -> None:
        self._recording.add("finished", terminal=terminal)

    def counted(self, queues: Sequence[QueueDepth]) -> None:
        """Do nothing: the animation shows the numbers."""

    def say(self, text: str, question: str = "") -> None:
        """Show an explanation, and wait until the user continues. A drill waits only before it begins.

        Raises:
            Left: the user has chosen another play, or ended the command.
            Again: the user has changed something on the play's own broker.
        """
        self._said += 1
        if self._said < self._resumes_at:
            return
        if self._said > self._resumes_at:
            self._pause(text, question)
        else:
            self._recording.resume()
            self._watch_now()
            self._resumes_at = 0
        self._recording.add("goes_on", number=self._said)

    def _pause(self, text: str, question: str) -> None:
        if self._undrawn:
            self.measured(self._undrawn, over=True)
        waits, self._pauses = self._pauses, not self._is_drill
        pace = _pace(text + question) if self._auto else None
        asked = {"question": question} if question else {}
        self._recording.add("scene", number=self._said, text=text, waits=waits, pace=pace, **asked)
        if waits:
            with self._learner.turn():
                self._wait(lambda: self._continued >= self._said or self._wanted is not None)
        if self._wanted is not None and not self._is_drill:
            raise Left
        if self._learner.has_changed:
            self._resumes_at, self._said = self._said, 0
            self._recording.add("again")
            self._recording.hold()
            raise Again

    def answered(self, answer: str) -> None:
        self._recording.add("answered", text=answer)

    def goal(self, text: str) -> None:
        """Show the goal that the learner has to reach. Does not wait."""
        self._said += 1
        self._recording.add("scene", number=self._said, text=text, waits=False, pace=None)
        self._recording.add("goes_on", number=self._said)

    def right(self, what: str) -> None:
        self._recording.add("checked", what=what, ok=True)

    def note(self, text: str) -> None:
        """Show a finding of a drill or of a goal."""
        self._recording.add("checked", what=text, ok=False)

    def blank(self) -> None:
        """Do nothing: the page does not need empty lines."""

    def measured(self, charts: Sequence[Chart], over: bool) -> None:
        with self._recording.changed:  # the thread that measures is not the one that explains
            now = time.monotonic()
            self._undrawn = charts
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
            self._undrawn = ()
            self._recording.add("measured", charts=new)

    # The user.

    def _asked(self, request: Json) -> Iterator[Json | None]:
        """Handle a request from the page: {"do": "next", "scene": 3}, {"do": "choose", "name": …} or {"do": "end"}."""
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
        """Wait until the user has done something that meets the condition. If no page is open, say so once."""
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
    """Return how many milliseconds it takes to read a text."""
    return round(1000 * max(_SHORTEST, len(text) / _READ_PER_SECOND))


def _now() -> int:
    return round(time.time() * 1000)
