"""The embedded broker as a process of its own: what it says when it is ready, and how it ends."""

import gc
import logging
import sys
from pathlib import Path

from mqtool.broker.embedded.server import Server, Settings, serve


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
        if ready_file is not None:
            _write(ready_file, server)

    # Queues hold many objects for long. Left to itself the collector would walk through them over and over.
    gc.set_threshold(100_000, 20, 100)
    try:
        serve(settings, ready)
    except OSError as error:
        if log_file is not None:
            logging.error("cannot start: %s", error)
        print(f"embedded broker: {error}", file=sys.stderr)
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
