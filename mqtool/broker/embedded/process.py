"""The embedded broker as a process of its own: what it says when it is ready, and how it ends."""

import asyncio
import gc
import logging
import os
import sys
from pathlib import Path

from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.server import Server, Settings, serve

_STATM = Path("/proc/self/statm")
_LOOK_SECONDS = 2.0

# More than this besides the messages is given back: what queues leave behind, the C library keeps for later.
_WASTE = 64 * 1024 * 1024


def run(
    settings: Settings, *, ready_file: Path | None = None, log_file: Path | None = None, print_url: bool = False
) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code.

    Args:
        settings: how to run it.
        ready_file: gets the URLs once it listens, and any damage; it is removed at the end.
        log_file: where to log; None for stderr.
        print_url: whether to print the URLs, once it listens.
    """
    logging.basicConfig(filename=log_file, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def ready(server: Server) -> None:
        if server.damage is not None and log_file is not None:
            print(f"embedded broker: {server.damage}", file=sys.stderr)
        if log_file is not None:
            for what in server.left_out:
                print(f"embedded broker: {what}", file=sys.stderr)
        if print_url:
            print("\n".join(server.urls().values()), flush=True)
        _Memory(server.broker.ledger).look()
        if ready_file is not None:
            _write(ready_file, server)

    # Queues hold many objects for a long time. By default the garbage collector would scan them again and again.
    gc.set_threshold(100_000, 20, 100)
    try:
        serve(settings, ready)
    except OSError as error:
        if log_file is not None:
            logging.error("cannot start: %s", error)
        where = f"{error.filename}: " if error.filename else ""
        print(f"embedded broker: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
    return 0


def _write(ready_file: Path, server: Server) -> None:
    urls = server.urls()
    lines = list(urls.values())
    if "http" in urls and server.damage is not None:
        lines.append(server.damage)
    # Whoever waits for the file must never see half of it.
    partial = ready_file.with_name(ready_file.name + ".partial")
    partial.unlink(missing_ok=True)
    with partial.open("x") as file:  # "x" follows no symbolic link
        file.write("\n".join(lines) + "\n")
    partial.replace(ready_file)


class _Memory:
    """Gives memory back to the system once queues have been emptied: with glibc, on Linux.

    Args:
        ledger: knows what messages take.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._at_start = self._before = self._besides()
        self._most = 0

    def _besides(self) -> int:
        """Return how many bytes the process takes besides the messages."""
        if not _STATM.exists():
            return 0
        pages = int(_STATM.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") - self._ledger.held_bytes

    def look(self) -> None:
        """Look every few seconds; not more often, since returning memory takes some milliseconds."""
        asyncio.get_running_loop().call_later(_LOOK_SECONDS, self.look)
        held, besides = self._ledger.held_bytes, self._besides()
        self._most = max(self._most, held)
        has_emptied = held < self._most / 2 and besides > self._at_start + _WASTE
        if has_emptied or besides > self._before + _WASTE:
            _give_back()
            self._before, self._most = self._besides(), held


def _give_back() -> None:
    # Imported here: it would take time at the start.
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
