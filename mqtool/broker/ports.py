"""Chooses the addresses and ports that brokers listen on: loopback by default, other addresses only on request."""

import fcntl
import os
import random
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mqtool.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from mqtool.broker.state import Started

HOST = "127.0.0.1"
#: All addresses of this machine, including loopback.
EVERY = "0.0.0.0"  # noqa: S104  # not where we listen by default
AMQP = 5672
MANAGEMENT = 15672
STREAMS = 5552

#: The locked files of the ports that this process has claimed, by port.
_claims: dict[int, int] = {}


def addresses(listen: str | None) -> list[str]:
    """Return the addresses to listen on: loopback and `listen`, if any; only `listen` if it is 0.0.0.0."""
    return [listen] if listen == EVERY else [HOST, *([listen] if listen else [])]


def choose(wanted: int | None, usual: Iterable[int] = (), listen: str | None = None, *, tls: bool = False) -> int:
    """Return the wanted port (raise Unavailable if taken); for None, the first free usual port or any free port.

    Args:
        listen: another address on which the port must be free, besides loopback.
        tls: the broker listens with TLS on the port below, so that must be free as well.
    """
    if wanted is not None:
        if taken := _taken(wanted, listen, tls):
            raise Unavailable(f"{taken} is taken", "choose another with --port, --management-port or --stream-port")
        return wanted
    for port in usual:
        # Another command may have released the port because its broker listens there by now.
        if not _taken(port, listen, tls) and _claim(port) and not _taken(port, listen, tls):
            return port
    while not _claim(port := free_port()):
        pass  # a broker that is being restarted has reserved it
    return port


def check_apart(amqp: int | None, management: int | None, streams: int | None, *, tls: bool) -> None:
    """Raise UsageError if a broker needs the same port twice. A port that is 0 or None is not checked.

    Args:
        tls: the broker listens with TLS on the port below each.
    """
    needed: dict[int, str] = {}
    for option, port in (("--port", amqp), ("--management-port", management), ("--stream-port", streams)):
        for number in ((port, port - 1) if tls else (port,)) if port else ():
            if (other := needed.setdefault(number, option)) != option:
                hint = "with TLS, the broker also uses the port below each: leave a port free between them"
                raise UsageError(f"{other} and {option} both need port {number}", hint if tls else "use another port")


def _taken(port: int, listen: str | None, tls: bool) -> str | None:
    """Return the first port and address that a broker needs and that is taken, such as "port 5672 on 127.0.0.1"."""
    needed = ((number, host) for number in ((port, port - 1) if tls else (port,)) for host in addresses(listen))
    return next((f"port {number} on {host}" for number, host in needed if not is_free(number, host)), None)


def _claim(port: int) -> bool:
    """Reserve a port until reserving() or this process ends; return False if another `broker up` has reserved it."""
    path = Path(tempfile.gettempdir()) / f"mqtool-{os.getuid()}-port-{port}"
    try:
        # Other users can write to this directory, so follow no symbolic link, wait for no pipe, and write nothing.
        lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError:
        return True  # the port cannot be reserved, but is probably free
    status = os.fstat(lock)
    if status.st_uid != os.getuid() or not stat.S_ISREG(status.st_mode):
        os.close(lock)
        return True  # made by another user, who could otherwise reserve every port
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return False
    _claims[port] = lock
    return True


@contextmanager
def reserving() -> Iterator[None]:
    """At the end of the block, release the ports that this process has reserved: its broker listens there by now.

    Within the lock of a broker's name, a second `broker restart` that waits for the lock can reserve them in turn.
    """
    try:
        yield
    finally:
        while _claims:
            os.close(_claims.popitem()[1])


def keep(started: "Started") -> bool:
    """Reserve a broker's ports, so that no `broker up` chooses one of them while the broker restarts.

    Returns False if another command has reserved one of them.
    """
    urls = (*started.url.split(","), started.details.get("management", ""), started.details.get("streams", ""))
    claimed = [_claim(port) for url in urls if (port := urlsplit(url).port)]
    return all(claimed)


def usual_amqp(before: "Started | None") -> list[int]:
    """Return the ports to try for AMQP: that of the broker which had this name before, then 5672."""
    port = urlsplit(before.url.partition(",")[0]).port if before is not None else None
    return [*dict.fromkeys([port or AMQP, AMQP])]


def usual_management(before: "Started | None", amqp_port: int) -> list[int]:
    """Return the ports to try for the management API: the earlier broker's, the AMQP port + 10000, then 15672.

    Commands look for the API at the AMQP port + 10000 first.
    """
    beside = amqp_port + MANAGEMENT - AMQP
    usual = [beside] if beside < 1 << 16 else []
    return [*dict.fromkeys(_usual(before, "management", *usual, MANAGEMENT))]


def stream_url(
    wanted: int | None, before: "Started | None", listen: str | None = None, *, tls: bool = False
) -> dict[str, str]:
    """Choose a stream port, and return the URL under the key "streams", for Started.details.

    Args:
        wanted: the port; 0 for any free port; None for the earlier broker's port, else 5552, else any free port.
        before: the broker that had the same name before, if any.
        listen: another address on which the port must be free, besides loopback.
        tls: the port below must be free as well.
    """
    usual = () if wanted == 0 else _usual(before, "streams", STREAMS)
    return {"streams": f"rabbitmq-stream://{HOST}:{choose(wanted or None, usual, listen, tls=tls)}"}


def _usual(before: "Started | None", detail: str, *usual: int) -> list[int]:
    port = urlsplit(before.details.get(detail, "")).port if before is not None else None
    return [port, *usual] if port else [*usual]


def is_free(port: int, host: str = HOST) -> bool:
    """True if no socket listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


#: The ports that free_port() has returned in this process, and the ports below them.
_given: set[int] = set()


def free_port() -> int:
    """Return a free port that was not returned before. The port below it is free as well, for TLS.

    Stays below the ports of outgoing connections (usually from 32768), so that no such connection takes it; so does the
    port 10000 above it, which the management API prefers, and which is therefore never returned.
    """
    while True:
        ports = {port := random.randint(10_001, 19_999), port - 1}
        if ports.isdisjoint(_given) and all(map(is_free, ports)):
            _given.update(ports)
            return port
