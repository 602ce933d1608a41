"""Standard output into a file that logrotate may rename: HUP opens it again.

mqtool receive -o app.log ── mv app.log app.log.1; kill -HUP ──> app.log.1 ends with a whole line, app.log is new
"""

import os
import signal
import threading
from pathlib import Path

from mqtool.cli.display import output
from mqtool.errors import UsageError


def append_to(path: Path) -> None:
    """Have what is written to stdout appended to this file. Call it before any other thread starts.

    Raises:
        UsageError: it cannot be opened.
    """
    try:
        _open(path)
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}") from error
    # A thread waits for the signal: threads that start from now on leave it to that one, too.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where it is ignored (nohup), not every system keeps it for us
    threading.Thread(
        target=_open_again_on_hup, args=(path, output.is_terminal(2)), name="mqtool-output", daemon=True
    ).start()


def _open(path: Path) -> None:
    output.continue_in(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), str(path))


def _open_again_on_hup(path: Path, had_terminal: bool) -> None:
    while signal.sigwait({signal.SIGHUP}):
        if had_terminal and not output.is_terminal(2):  # it was closed, which is the other meaning of HUP
            os.kill(os.getpid(), signal.SIGTERM)
            return
        try:
            _open(path)
        except OSError as error:
            output.warning(f"cannot open {path} again, so the old file is still in use: {error.strerror}")
