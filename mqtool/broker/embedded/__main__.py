"""Runs the embedded broker as a separate process: `python -m mqtool.broker.embedded` and `mqtool broker serve`."""

import argparse
import asyncio
import ctypes
import errno
import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    sys.exit("embedded broker: does not run on Windows: use WSL or a container")

from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import Like
from mqtool.broker.embedded.server import Server, serve
from mqtool.broker.embedded.settings import TLS_OPTIONS, Settings, option_of
from mqtool.broker.embedded.sockets.listener import Tls

_STATM = Path("/proc/self/statm")
_CHECK_SECONDS = 2.0
#: Memory is returned to the system once the process, without its messages, has grown by more bytes than this.
_WASTE = 16 * 1024 * 1024
#: A garbage collection is long if it takes more than this, in seconds of processor time.
_LONG = 0.03
#: While messages and clients take fewer bytes than this, a collection of all objects takes less than 0.15 s.
_SMALL = 64 * 1024 * 1024
#: The most memory that garbage among frozen objects may take, in bytes.
_FROZEN_WASTE = 256 * 1024 * 1024


class CannotStart(Exception):
    """A broker cannot start: a port is taken, or a file cannot be read or written.

    Attributes:
        is_port_taken: True if another program listens on a port that the broker was to listen on.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
        self.is_port_taken = error.errno == errno.EADDRINUSE


def run(
    settings: Settings,
    *,
    ready_file: Path | None = None,
    log_file: Path | None = None,
    print_url: bool = False,
    when_ready: Callable[[Server], None] = lambda _: None,
) -> None:
    """Run a broker until SIGTERM or SIGINT.

    Args:
        settings: the broker's settings.
        ready_file: removed at the start and at the end, and written once the broker is listening. Contains the URLs and
            any damage to the stored data, one per line.
        log_file: the log file; None for stderr.
        print_url: print the URLs once the broker is listening.
        when_ready: called on the event loop once the broker is listening.

    Raises:
        CannotStart: a port is taken, or a file cannot be read or written.
    """
    logging.basicConfig(filename=log_file, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")

    def ready(server: Server) -> None:
        if log_file is not None:
            for what in (*([server.damage] if server.damage is not None else []), *server.left_out):
                print(f"embedded broker: {what}", file=sys.stderr)
        if print_url:
            print("\n".join(server.urls().values()), flush=True)
        _Memory(server.broker.ledger, _LongCollections()).check()
        if ready_file is not None:
            _write(ready_file, server)
        when_ready(server)

    try:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)  # a broker that was killed has left its URLs
        serve(settings, ready)
    except OSError as error:
        if log_file is not None:
            logging.error("cannot start: %s", error)
        raise CannotStart(error) from error
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


def _write(ready_file: Path, server: Server) -> None:
    urls = server.urls()
    lines = list(urls.values())
    if "http" in urls and server.damage is not None:
        lines.append(server.damage)
    # Renamed into place, so that no process reads an incomplete file.
    partial = ready_file.with_name(ready_file.name + ".partial")
    partial.unlink(missing_ok=True)
    with partial.open("x") as file:  # "x" follows no symbolic link
        file.write("\n".join(lines) + "\n")
    partial.replace(ready_file)


class _LongCollections:
    """Leaves what has survived a long garbage collection out of later ones: freezes it (see gc.freeze).

    Otherwise, a collection would stop the broker for 0.8 s if it has a million messages with ids, because it looks at
    each. Frozen objects are freed as usual once nothing refers to them, but not if they only refer to each other.

    Attributes:
        has_frozen: True if any objects are frozen.
    """

    def __init__(self) -> None:
        self.has_frozen = False
        self._began = 0.0
        gc.callbacks.append(self.collected)

    def collected(self, phase: str, info: dict[str, int]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            self._began = time.thread_time()
        elif time.thread_time() - self._began > _LONG:
            gc.freeze()
            self.has_frozen = True

    def unfreeze(self) -> None:
        gc.unfreeze()
        self.has_frozen = False


class _Memory:
    """Returns freed memory to the system after queues have been emptied; otherwise glibc would keep it."""

    def __init__(self, ledger: Ledger, collections: _LongCollections) -> None:
        self._ledger = ledger
        self._collections = collections
        self._at_start = self._before = self._without_messages()
        self._most_held = 0
        self._unfrozen = self._at_start

    def _without_messages(self) -> int:
        """Return the process's memory in bytes, not counting that of the messages; 0 if there is no /proc."""
        if not _STATM.exists():
            return 0
        pages = int(_STATM.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") - self._ledger.held_bytes

    def check(self) -> None:
        """Return freed memory to the system if there is a lot of it. Called every two seconds."""
        asyncio.get_running_loop().call_later(_CHECK_SECONDS, self.check)
        held, rest = self._ledger.held_bytes, self._without_messages()
        self._most_held = max(self._most_held, held)
        has_emptied = held < self._most_held / 2 and rest > self._at_start + _WASTE
        if has_emptied or rest > self._before + _WASTE:
            _return_memory()
            self._before, self._most_held = self._without_messages(), held
        if not self._collections.has_frozen:
            self._unfrozen = rest
        elif held < _SMALL or rest > self._unfrozen + _FROZEN_WASTE:
            self._collections.unfreeze()


def _return_memory() -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mqtool.broker.embedded",
        description="An AMQP 0-9-1 broker for learning, demonstrations and tests. SIGTERM stops it cleanly.",
    )
    for each in fields(Settings):
        if each.name == "tls":
            for option, about in TLS_OPTIONS.items():
                parser.add_argument(option, type=Path, metavar="FILE", help=about)
            continue
        how: dict[str, Any] = {**each.metadata, "default": each.default}
        if how["type"] is bool:
            how = {"help": how["help"], "action": "store_true"}
        elif how["type"] is list:
            how |= {"type": str, "action": "append", "default": []}
        elif each.name == "like":
            how["choices"] = [*map(str, Like)]
        parser.add_argument(option_of(each.name), **how)
    parser.add_argument("--in-memory", action="store_true", help="keep nothing (default)")
    parser.add_argument("--ready-file", type=Path, help="written once it listens: the URLs, and any damage")
    parser.add_argument("--print-url", action="store_true", help="print the URLs once it listens")
    parser.add_argument("--log-file", type=Path, help="log here instead of to stderr")
    parser.add_argument("--await-starter", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Run a broker with the settings on the command line until SIGTERM or SIGINT."""
    parser = _parser()
    options = vars(parser.parse_args())
    if options.pop("await_starter") and not os.read(0, 1):
        return  # mqtool was killed before it had saved that this broker exists
    files = [options.pop(option[2:].replace("-", "_")) for option in TLS_OPTIONS]
    if any(files) and not (files[0] and files[1]):
        parser.error("TLS needs both --tls-cert and --tls-key")
    if options.pop("in_memory") and options["data_dir"] is not None:
        parser.error("argument --in-memory: not allowed with argument --data-dir")
    more = {name: options.pop(name) for name in ("ready_file", "print_url", "log_file")}
    try:
        run(Settings(**options, tls=Tls(*files) if any(files) else None), **more)
    except CannotStart as error:
        sys.exit(f"embedded broker: {error}")


if __name__ == "__main__":
    main()
