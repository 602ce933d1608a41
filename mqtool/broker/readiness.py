"""Makes a started broker ready for use.

Waits until the broker accepts connections, then loads its definitions, and adds the user that clients on other
machines log in with.
"""

import ipaddress
import json
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mqtool.amqp import Address, Connection, parse_addresses
from mqtool.broker import ports, state
from mqtool.broker.background import last_words
from mqtool.broker.starter import Starter
from mqtool.broker.state import Started
from mqtool.errors import MqtoolError, NotFound, TimedOut, Unavailable, UsageError
from mqtool.management import path, queues
from mqtool.management.api_client import DEEPEST, Json, is_deeper

T = TypeVar("T")

#: The user for connections from other machines. guest, with its well-known password, can only log in from this machine.
REMOTE_USER = "remote"

#: How many seconds a broker may take to start. Five are usual; a cluster in Docker takes a minute, or two under load.
_START_PATIENCE = 180.0
_MANAGEMENT_PATIENCE = 30.0
_QUORUM_PATIENCE = 30.0
#: After this many seconds, RabbitMQ gives up asking a quorum queue for its number of messages, and reports 0.
_GIVES_UP = 0.25
_REVIVALS = 5
_PAUSE = 0.1


def connect_within(seconds: float, connect: Callable[[], T]) -> T:
    """Call `connect` repeatedly until it succeeds; after `seconds`, raise TimedOut with the last error."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connect()
        except Unavailable as error:
            if time.monotonic() + _PAUSE >= deadline:
                raise TimedOut(f"no broker within {seconds:g} s: {error}", error.hint) from error
        time.sleep(_PAUSE)


def wait_until_up(starter: Starter, started: Started) -> Started:
    """Wait until a broker accepts connections, and return it with its current process ids.

    Nodes of a cluster that start at the same time may fail to start (RabbitMQ 3.10: incompatible_feature_flags; 4.0:
    Mnesia in the wrong directory). Such nodes are started again.
    """
    revivals = _REVIVALS if started.nodes > 1 else 0

    def connect() -> Connection:
        nonlocal started, revivals
        if not starter.is_running(started):
            if not revivals:
                words = last_words(b"".join(starter.log(started, False)))
                raise MqtoolError(f"the broker ended while starting{words}", where_log_is(started))
            revivals -= 1
            started = starter.revive(started)
        if not starter.is_ready(started):
            raise Unavailable("it has started but is not ready yet")
        return Connection(parse_addresses(started.url))

    try:
        connect_within(_START_PATIENCE, connect).close()
    except TimedOut as error:
        raise Unavailable(str(error), where_log_is(started)) from error
    if started.kind != "embedded":
        _wait_for_quorum_queues(started)
    return started


def _wait_for_quorum_queues(started: Started) -> None:
    """Wait until quorum queues know their messages. After a start, they read their logs, and seem to be empty."""
    own, names = parse_addresses(started.url)[0], defaultdict[str, list[str]](list)
    columns = ("name", "vhost", "type")
    with suppress(MqtoolError):  # the broker is up in any case
        for view in connect_within(_MANAGEMENT_PATIENCE, lambda: [*queues(started.management, None, columns)]):
            if view.get("type") == "quorum":
                names[view["vhost"]].append(view["name"])
    deadline = time.monotonic() + _QUORUM_PATIENCE
    for vhost in names:
        with suppress(MqtoolError), Connection([own._replace(virtual_host=vhost)]) as connection:
            channel = connection.channel()
            for name in names[vhost]:
                with suppress(NotFound):  # it has just been deleted
                    while (asked := time.monotonic()) < deadline:
                        if channel.depth_of(name) or time.monotonic() - asked < _GIVES_UP:
                            break


def where_log_is(started: Started) -> str:
    """Return a hint that names the broker's log files, which exist even after the broker has ended."""
    return f"see {started.directory}/{'node-*/log' if started.kind == 'node' and started.nodes > 1 else 'log'}"


def read_definitions(file: Path) -> Json:
    """Read a file of definitions; raise UsageError if it cannot be read or contains none."""
    deep = f"cannot read {file}: it is nested too deeply"
    try:
        document = json.loads(file.read_text())
    except RecursionError as error:
        raise UsageError(deep) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise UsageError(f"cannot read {file}: {reason}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{file} contains no definitions", "'mqtool definitions export' writes such a file")
    if is_deeper(document, DEEPEST + 2):  # the document and its lists are two more
        raise UsageError(deep)
    return document


def remember_definitions(started: Started, file: Path | None) -> Started:
    """Save the path of a definitions file, to be loaded each time the broker starts. Returns the updated broker."""
    if file is None:
        return started
    started = replace(started, details={**started.details, "definitions": str(file)})
    state.save(started)
    return started


def load_definitions(started: Started) -> None:
    """Load a broker's definitions file, if it has one, through its management API. The broker must be running.

    Existing exchanges and queues are kept; users, permissions and policies are overwritten.
    """
    file = started.details.get("definitions")
    if file is None:
        return
    document = read_definitions(Path(file))
    where = path("definitions") if _names_vhosts(document) else path("definitions", Address().virtual_host)
    try:
        connect_within(_MANAGEMENT_PATIENCE, lambda: started.management.post(where, document))
    except MqtoolError as error:
        raise UsageError(f"cannot load {file}: {error}", error.hint) from error


def _names_vhosts(document: Json) -> bool:
    """True if definitions name virtual hosts, as those of a whole broker do, but not those of a single virtual host."""
    return "vhosts" in document or any(
        isinstance(item, dict) and "vhost" in item
        for items in document.values()
        if isinstance(items, list)
        for item in items
    )


def check_listen(address: str) -> None:
    """Raise an error unless a broker can listen on the address. It must be an IPv4 address other than 127.0.0.1."""
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        raise UsageError(
            f"{address!r} is not an IPv4 address", f"use one of this machine's, or {ports.EVERY} for all"
        ) from None
    if address == ports.HOST:
        raise UsageError(f"the broker listens on {ports.HOST} anyway", "--listen takes an address for other machines")
    with closing(socket.socket()) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise Unavailable(f"cannot listen on {address}: {error.strerror}", "'ip addr' lists addresses") from error


def admit_remote(started: Started) -> Started:
    """Add the user for connections from other machines; return the broker with that user's URL in its details."""
    own = parse_addresses(started.url)[0]
    listen = started.details["listen"]
    password = parse_addresses(url)[0].password if (url := remote_url(started)) else secrets.token_urlsafe(15)
    host = socket.gethostname() if listen == ports.EVERY else listen
    api = started.management
    user = {"password": password, "tags": ""}
    connect_within(_MANAGEMENT_PATIENCE, lambda: api.put(path("users", REMOTE_USER), user))
    rights = dict.fromkeys(("configure", "write", "read"), ".*")
    api.put(path("permissions", Address().virtual_host, REMOTE_USER), rights)
    url = f"amqp://{REMOTE_USER}:{password}@{host}:{own.port}"
    started = replace(started, details={**started.details, "remote": {"url": url}})
    state.save(started)
    return started


def remote_url(started: Started) -> str | None:
    """Return the URL for other machines, with the password; None if the broker is for this machine only."""
    url: str | None = started.details.get("remote", {}).get("url")
    return url
