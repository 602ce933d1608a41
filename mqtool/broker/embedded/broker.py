"""The broker: virtual hosts, users, connections, and the memory mark above which publishers have to wait."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mqtool.broker.embedded.clock import Timer
from mqtool.broker.embedded.store.ledger import MemoryLedger
from mqtool.broker.embedded.users import DEFAULT_USER, Permissions, User
from mqtool.broker.embedded.virtual_host import VirtualHost
from mqtool.routing.field_table import Table

if TYPE_CHECKING:
    from mqtool.broker.embedded.wire.channel import Channel
    from mqtool.broker.embedded.wire.connection import Connection

log = logging.getLogger("mqtool.broker.embedded")

RABBITMQ_VERSION = "3.10.8"
"""The version whose behaviour this broker has, and which it tells to clients that decide by it."""

CONSUMER_TIMEOUT = 1800.0
"""For how many seconds a delivery may be unacknowledged by default."""

_MEMORY_FRACTION = 0.4

# The alarm goes off at the limit and ends well below it, so that it does not come and go with each message.
_ALARM_CLEARED = 0.8


def default_memory_limit() -> int:
    """RabbitMQ's default high-water mark: 0.4 of the machine's memory, in bytes."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _MEMORY_FRACTION)


class LoopClock:
    """Wall-clock time, and timers on the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def call_later(self, milliseconds: int, what: Callable[[], object]) -> Timer:
        """Do something after a while, on the loop."""
        return self._loop.call_later(milliseconds / 1000, what)


class Broker:
    """Everything but the listening sockets.

    Args:
        ledger: where durable things are written down.
        memory_limit: how many bytes messages may take before publishers are blocked; None for RabbitMQ's default.
        consumer_timeout: for how many seconds a delivery may be unacknowledged.
    """

    def __init__(
        self, ledger: MemoryLedger, *, memory_limit: int | None = None, consumer_timeout: float = CONSUMER_TIMEOUT
    ) -> None:
        self.clock = LoopClock()
        self.ledger = ledger
        self.memory_limit = default_memory_limit() if memory_limit is None else memory_limit
        self.consumer_timeout = consumer_timeout
        self.vhosts: dict[str, VirtualHost] = {}
        self.users: dict[str, User] = {}
        self.connections: set[Connection] = set()
        self.reply_channels: dict[str, Channel] = {}
        self.dropped_unroutable = 0
        self.listeners: dict[str, tuple[str, int]] = {}
        self.alarm = False
        self.permissions_version = 0
        self.started_at = time.time()
        ledger.when_grown = self._check_memory

    def create_defaults(self) -> None:
        """The virtual host `/` and the user guest, as a new RabbitMQ node has them."""
        self.add_vhost("/", "Default virtual host")
        self.save_user(User.with_password(DEFAULT_USER, DEFAULT_USER, ["administrator"]))
        self.set_permissions(DEFAULT_USER, "/", Permissions())

    # -- virtual hosts and users

    def add_vhost(self, name: str, description: str | None = None) -> VirtualHost:
        """Make a virtual host, or find the one there is; describe it, if a description is given."""
        vhost = self.vhosts.get(name)
        if vhost is None or description not in (None, vhost.description):
            vhost = vhost or VirtualHost(name, self.clock, self.ledger)
            vhost.description = description or ""
            self.vhosts[name] = vhost
            self.ledger.save("vhost", name, {"description": vhost.description})
        return vhost

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it, and close its connections.

        Raises:
            KeyError: there is none of this name.
        """
        vhost = self.vhosts.pop(name)
        for connection in [connection for connection in self.opened() if connection.vhost is vhost]:
            connection.force_close(f"vhost '{name}' is down")
        for queue in list(vhost.queues.values()):
            vhost.delete_queue(queue)
        for exchange in [exchange for exchange in vhost.exchanges.values() if not exchange.predeclared]:
            if exchange.name in vhost.exchanges:
                vhost.delete_exchange(exchange)
        for user in self.users.values():
            if user.permissions.pop(name, None) is not None:
                self.save_user(user)
        self.ledger.forget("vhost", name)

    def opened(self) -> "list[Connection]":
        """The connections whose handshake is done; only they have a user and a virtual host."""
        return [connection for connection in self.connections if connection.state == "open"]

    def save_user(self, user: User) -> None:
        """Add or change a user."""
        self.users[user.name] = user
        self.permissions_version += 1
        permissions: Table = {vhost: [p.configure, p.write, p.read] for vhost, p in user.permissions.items()}
        self.ledger.save(
            "user",
            user.name,
            {
                "password_hash": (user.password_hash or b"").hex(),
                "algorithm": user.algorithm,
                "tags": list(user.tags),
                "permissions": permissions,
            },
        )

    def delete_user(self, name: str) -> None:
        """Delete a user and close their connections.

        Raises:
            KeyError: there is none of this name.
        """
        user = self.users.pop(name)
        for connection in [connection for connection in self.opened() if connection.user is user]:
            connection.force_close(f"user '{name}' is deleted")
        self.ledger.forget("user", name)

    def set_permissions(self, user: str, vhost: str, permissions: Permissions | None) -> None:
        """Say what a user may do in a virtual host; None for nothing.

        Raises:
            KeyError: there is no such user.
        """
        if permissions is None:
            self.users[user].permissions.pop(vhost, None)
        else:
            self.users[user].permissions[vhost] = permissions
        self.save_user(self.users[user])

    def authenticate(self, name: str, password: str, *, from_loopback: bool) -> User | None:
        """The user, if this is their password; guest only from this machine."""
        user = self.users.get(name)
        if user is None or (name == DEFAULT_USER and not from_loopback):
            return None
        return user if user.authenticates(password) else None

    # -- memory

    def _check_memory(self, held: int) -> None:
        limit = self.memory_limit * _ALARM_CLEARED if self.alarm else self.memory_limit
        if (held > limit) is self.alarm:
            return
        self.alarm = not self.alarm
        log.warning("memory alarm %s: messages take %d bytes", "set" if self.alarm else "cleared", held)
        if not self.alarm:
            for connection in list(self.connections):
                connection.unblock()

    # -- time

    def check_consumers(self) -> None:
        """Close the channels whose consumers have kept a delivery for too long."""
        for connection in list(self.connections):
            for channel in list(connection.channels.values()):
                if channel.overdue(self.consumer_timeout):
                    connection.consumer_timed_out(channel, self.consumer_timeout)

    def close_connections(self, reason: str) -> None:
        """Close all connections with 320 CONNECTION_FORCED."""
        for connection in list(self.connections):
            connection.force_close(reason)

    def storage_failed(self, error: Exception) -> None:
        """The disk does not take what it should: nobody may believe that it was confirmed."""
        log.error("cannot write to the data directory: %s", error)
        self.close_connections("the broker cannot write to its data directory")
