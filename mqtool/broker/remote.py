"""A broker for other machines as well: the address that it listens on for them, and their user.

guest, whose password everybody knows, can only log in from this machine.
"""

import ipaddress
import secrets
import socket
from contextlib import closing
from dataclasses import replace

from mqtool.amqp import Address, parse_addresses
from mqtool.broker import ports, state
from mqtool.broker.state import Started
from mqtool.broker.waiting import connect_within
from mqtool.errors import Unavailable, UsageError
from mqtool.management import path

USER = "remote"
_PATIENCE = 30.0


def check(address: str) -> None:
    """Check that a broker can listen on an address.

    Raises:
        UsageError: it is not an IPv4 address, or the one where brokers listen anyway.
        Unavailable: it is not an address of this machine.
    """
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


def admit(started: Started) -> Started:
    """Let the user of other machines in, with the password that they have had from the start. Safe to repeat.

    Raises:
        TimedOut: the management API does not answer.
    """
    own = parse_addresses(started.url)[0]
    listen = started.details["listen"]
    password = parse_addresses(url)[0].password if (url := url_of(started)) else secrets.token_urlsafe(15)
    host = socket.gethostname() if listen == ports.EVERY else listen
    api = started.management
    connect_within(_PATIENCE, lambda: api.put(path("users", USER), {"password": password, "tags": ""}))
    rights = dict.fromkeys(("configure", "write", "read"), ".*")
    api.put(path("permissions", Address().virtual_host, USER), rights)
    url = f"amqp://{USER}:{password}@{host}:{own.port}"
    started = replace(started, details={**started.details, "remote": {"url": url}})
    state.save(started)
    return started


def url_of(started: Started) -> str | None:
    """The URL for other machines, with the password; None if the broker is for this machine only."""
    url: str | None = started.details.get("remote", {}).get("url")
    return url
