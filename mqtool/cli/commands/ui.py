"""mqtool ui."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mqtool.cli import stopping
from mqtool.cli.command_line import Option
from mqtool.cli.display import output
from mqtool.cli.options import Commands, ManagedBroker
from mqtool.errors import UsageError

if TYPE_CHECKING:
    from mqtool.ui.page_server import Json

app = Commands()

#: The most records that --record keeps: those of ten minutes with 150 events per second.
_MAX_RECORDS = 100_000


@app.command("mqtool ui", "mqtool ui --open", "mqtool ui --record seen.html", "mqtool ui --port 8080 --vhost orders")
def ui(
    broker: ManagedBroker,
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 for any free one")] = 0,
    open_page: Annotated[bool, Option("--open", help="Open the page in a browser")] = False,
    record: Annotated[
        Path | None, Option(metavar="FILE", help="Write an HTML file that plays what has happened")
    ] = None,
) -> None:
    """Watch messages move through the topology, in a browser.

    Serves a page on this machine until Ctrl-C. The printed address contains a secret: whoever has it can read
    messages. On the embedded broker, the page shows single messages, on RabbitMQ counts and rates.
    """
    from mqtool.ui.page_server import PageServer
    from mqtool.ui.records import records

    access = broker.access()
    access.management().get("whoami")  # if the broker cannot be reached, say so here rather than in the page
    if record is not None:
        _write(record, b"")

    def start() -> "Iterator[Json]":
        return records(access.management, access.vhost, access.title)

    server, stop = PageServer(start, port), threading.Event()
    with stopping.calling(stop.set):
        output.show(server.url)
        if open_page:
            import webbrowser

            if not webbrowser.open(server.url):
                output.notice("no browser was found; open the address yourself")
        if record is not None:
            _record(record, start, stop)
        while not stop.wait(1.0):
            pass
    server.close()


def _record(path: Path, start: "Callable[[], Iterator[Json]]", stop: threading.Event) -> None:
    """Keep records until `stop` is set, then write them into a page."""
    from mqtool.ui.page_server import single_file

    kept = []
    for each in start():
        if stop.is_set():
            break
        # Only what the page needs to show what has happened, not that nothing has.
        if each["kind"] in ("about", "topology", "snapshot", "event") or each.get("queues"):
            kept.append(each)
        if len(kept) == _MAX_RECORDS:
            output.warning(f"{_MAX_RECORDS:,} events have been recorded, and the recording ends")
            break
    _write(path, single_file(kept))
    output.status(f"{sum(each['kind'] == 'event' for each in kept):,} events written to {path}")


def _write(path: Path, page: bytes) -> None:
    try:
        path.write_bytes(page)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
