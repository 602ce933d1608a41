"""The firehose of a virtual host: on while commands of ours need it, and off again after the last of them.

A file in the state directory says that we have switched it on. Each command that needs it holds a lock on that file, so
a file that nobody holds was left behind by one that was killed.
"""

import fcntl
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import typer

from mqtool.amqp import Channel
from mqtool.amqp.link import Listener
from mqtool.broker import state
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.errors import MqtoolError
from mqtool.taps import firehose

_HOW = "to switch it off: mqtool tap --firehose-off"
#: Seconds between two attempts to reach the management API, which comes up a moment after the broker; and attempts.
_PAUSE, _ATTEMPTS = 0.5, 60


def switch_off(access: Access) -> None:
    """Switch it off, whoever has switched it on.

    Raises:
        MqtoolError: the management API refuses, or does not answer.
    """
    firehose.switch(access.management(), access.vhost, on=False)
    with _one_at_a_time():
        _file(access).unlink(missing_ok=True)
    output.status(f"the firehose of {access.address} is off")


def check_left_on(access: Access) -> None:
    """If a tap was killed while it had the firehose on, say so, and offer a person to switch it off."""
    file = _file(access)
    if not file.exists():
        return
    with _one_at_a_time():
        if not file.exists():
            return
        with _opened(file) as left:
            if not _is_alone(left):
                return
    output.warning(f"a tap was killed, and left the firehose of {access.address} on")
    if not output.is_terminal(0) or not output.is_terminal(2):
        output.notice(_HOW)
    elif typer.confirm("switch it off?", err=True):
        switch_off(access)


@contextmanager
def switched_on(access: Access, channel: Channel) -> Iterator[None]:
    """Within the block the firehose is on; if it was off before, it is off again afterwards.

    Args:
        channel: when it is opened anew, the broker may have been restarted, which switches it off.

    Raises:
        MqtoolError: the management API refuses, or does not answer.
    """
    api, file = access.management(), _file(access)
    with _one_at_a_time():
        if not file.exists() and firehose.is_on(api, access.vhost):
            output.notice("the firehose was on before, and stays on")
            held = None
        else:
            held = _opened(file)
            fcntl.flock(held, fcntl.LOCK_SH)
    if held is None:
        yield
        return
    try:
        firehose.switch(api, access.vhost, on=True)
        channel.link.listen(_Again(access))
        yield
    finally:
        _let_go(access, held)


def _let_go(access: Access, held: IO[str]) -> None:
    with _one_at_a_time(), held:
        if not _is_alone(held):
            return  # another tap still needs it, and switches it off
        try:
            firehose.switch(access.management(), access.vhost, on=False)
        except MqtoolError as error:
            output.warning(f"cannot switch off the firehose of {access.address}: {error}")
            output.notice(_HOW)
        else:
            _file(access).unlink(missing_ok=True)


class _Again(Listener):
    """Switches it on again after the connection was lost."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def opened(self, *, connection_is_new: bool) -> None:
        if connection_is_new:
            threading.Thread(target=self._switch_on, name="mqtool-firehose", daemon=True).start()

    def _switch_on(self) -> None:
        failure: MqtoolError | None = None
        for _ in range(_ATTEMPTS):
            try:
                firehose.switch(self._access.management(), self._access.vhost, on=True)
                return
            except MqtoolError as error:
                failure = error
            threading.Event().wait(_PAUSE)
        output.warning(f"the firehose of {self._access.address} may be off since the broker was away: {failure}")


def _is_alone(file: IO[str]) -> bool:
    """Whether no other command holds the file; if so, it is locked for this one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _file(access: Access) -> Path:
    """What says that we have switched on the firehose of a virtual host, by whatever user."""
    address = access.address
    host = "localhost" if address.host in ("127.0.0.1", "::1") else address.host
    name = hashlib.sha256(f"{host}:{address.port}/{address.virtual_host}".encode()).hexdigest()[:16]
    return state.home() / "firehose" / name


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        raise MqtoolError(
            f"cannot write to {path}: {error.strerror}", "a tap remembers there what it switched on"
        ) from error


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """No other command looks at these files within the block."""
    with _opened(state.home() / "firehose" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
