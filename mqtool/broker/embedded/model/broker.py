"""The broker: virtual hosts, users, clients, and the alarms that block publishers."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

from mqtool.broker.embedded.model.amqp_errors import NOT_ALLOWED, ChannelException, ConnectionException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.clock import Clock, LoopClock, Timer
from mqtool.broker.embedded.model.event_exchange import EVENT_EXCHANGE, EVENT_VHOST, event
from mqtool.broker.embedded.model.footprint import of_global_parameter
from mqtool.broker.embedded.model.ledger import Ledger, default_memory_limit
from mqtool.broker.embedded.model.profile import DEFAULT, PROFILES, Profile
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.totals import Totals
from mqtool.broker.embedded.model.users import DEFAULT_USER, Permissions, User
from mqtool.broker.embedded.model.virtual_host import (
    Publication,
    Routing,
    VhostLabels,
    VirtualHost,
    check_room,
    limit_of,
)
from mqtool.codecs.field_tables import Table, Value

log = logging.getLogger("mqtool.broker.embedded")

#: The name of the broker as the only node of its cluster.
NODE = "embedded@localhost"

#: The pseudo-queue of direct reply-to. A reply's routing key is this, a dot and a token.
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"

#: The default limit on how long a delivery may stay unacknowledged, in seconds.
CONSUMER_TIMEOUT = 1800.0

#: The default minimum of free disk space, in bytes, as in RabbitMQ.
DISK_FREE_LIMIT = 50_000_000

#: The reasons sent to blocked publishers.
LOW_ON_MEMORY, LOW_ON_DISK = "low on memory", "low on disk"


#: The interval at which the connection that holds the most memory is closed, during a memory alarm caused by clients.
_CLOSE_LARGEST_MILLISECONDS = 5000

#: A connection may make the broker hold a quarter of the memory limit, but at least this many bytes: twice the largest
#: message.
_LEAST_CONNECTION_LIMIT = 256 * 1024 * 1024

#: Queues, exchanges and bindings may take half of the memory limit, but at least this many bytes: tests that provoke a
#: memory alarm with a small limit declare some, too.
_LEAST_DEFINITION_LIMIT = 1_000_000

# A memory alarm ends at this fraction of the limit, so that single messages do not keep switching it on and off.
_ALARM_CLEARED = 0.8

#: Ledger.most_bytes as a fraction of the memory limit. Clients exceed the limit a little before they are blocked.
_FULL = 1.25


class ConnectedClient(Protocol):
    """A client connection, as the broker sees it. `user` and `vhost` are set once the connection is open."""

    user: User
    vhost: VirtualHost

    @property
    def channels(self) -> Collection[int]:
        """The numbers of the open channels."""

    @property
    def held_bytes(self) -> int:
        """The bytes of memory held for the client, such as unsent output and incomplete messages."""

    @property
    def is_open(self) -> bool:
        """True if the handshake is done and the connection is not being closed."""

    def force_close(self, reason: str) -> None:
        """Close the connection with 320 CONNECTION_FORCED."""

    def unblock(self) -> None:
        """Resume reading from the connection: the last alarm has ended."""

    def check_consumers(self, timeout: float) -> None:
        """Apply the consumer timeouts to unacknowledged deliveries; `timeout` is the broker's, in seconds."""


class ReplyConsumer(Protocol):
    """The interface of a channel that waits for direct replies."""

    def deliver_reply(self, message: BrokerMessage) -> None:
        """Deliver a reply to the channel's consumer."""


class Broker:
    """The state and the operations of a broker, without its sockets.

    Args:
        ledger: stores messages and durable definitions.
        clients: the open connections; the server adds and removes them.
        memory_limit: block publishers once messages and clients use more bytes of memory than this; None for
            RabbitMQ's default.
        disk_free_limit: block publishers once fewer bytes than this are free on the disk.
        consumer_timeout: how long a delivery may stay unacknowledged, in seconds.
        profile: the version of RabbitMQ that the broker behaves like.
        clock: the clock; by default, the system's.

    Attributes:
        connection_limit: close a connection that the broker holds more bytes than this for.
        alarms: the reason sent to publishers for each active alarm, such as LOW_ON_DISK, by the alarm's name.
        global_parameters: JSON texts stored by clients, by name.
        reply_consumers: the channels that wait for direct replies, by token.
        totals: counts of messages by protocol, for metrics.
        listeners: the host and port of each listener, by protocol.
        logins: the number of logins by protocol, as the management API names it, and by whether they succeeded.
        permissions_version: incremented each time a user is added, changed or deleted.
        loopback_users: users who may log in only from this machine.
        hooks: called while a test records messages or injects faults; None at other times.
        requeued_per_step: how many messages that one frame requeues are collected in a step, before others are served.
    """

    def __init__(
        self,
        ledger: Ledger,
        clients: Collection[ConnectedClient] = (),
        *,
        memory_limit: int | None = None,
        disk_free_limit: int = DISK_FREE_LIMIT,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        profile: Profile = PROFILES[DEFAULT],
        clock: Clock | None = None,
    ) -> None:
        self.profile = profile
        self.clock: Clock = LoopClock() if clock is None else clock
        self.ledger = ledger
        self._clients = [clients]
        self.memory_limit = default_memory_limit() if memory_limit is None else memory_limit
        self.connection_limit = min(self.memory_limit, max(self.memory_limit // 4, _LEAST_CONNECTION_LIMIT))
        self.disk_free_limit = disk_free_limit
        self.consumer_timeout = consumer_timeout
        self.vhosts: dict[str, VirtualHost] = {}
        self.users: dict[str, User] = {}
        self.global_parameters: dict[str, str] = {}
        self.reply_consumers: dict[str, ReplyConsumer] = {}
        self.dropped_unroutable = 0
        self.totals = Totals()
        self.listeners: dict[str, tuple[str, int]] = {}
        self.alarms: dict[str, str] = {}
        self.held_for_clients = 0
        self._closing: Timer | None = None
        self._limiting: Timer | None = None
        self.logins: Counter[tuple[str, bool]] = Counter()
        self.permissions_version = 0
        self.loopback_users = {DEFAULT_USER}
        self.hooks: Hooks | None = None
        self.requeued_per_step = 500
        self.started_at = self.clock.now()
        ledger.when_changed = self._check_memory
        ledger.quiet_bytes = self.memory_limit
        ledger.most_bytes = self.memory_limit * _FULL
        ledger.most_definition_bytes = max(self.memory_limit // 2, _LEAST_DEFINITION_LIMIT)

    def reply_consumer(self, name: str) -> ReplyConsumer | None:
        """Return the client that waits for direct replies to this routing key; None if it is gone."""
        return self.reply_consumers.get(name.removeprefix(f"{DIRECT_REPLY_TO}.")) if "." in name else None

    def create_defaults(self) -> None:
        """Create the virtual host `/` and the user guest, as on a new RabbitMQ node."""
        self.add_vhost("/", "Default virtual host")
        self.save_user(User.with_password(DEFAULT_USER, DEFAULT_USER, ["administrator"]))
        self.set_permissions(DEFAULT_USER, "/", Permissions())

    def add_vhost(self, name: str, description: str | None = None) -> VirtualHost:
        """Create a virtual host unless it exists. If a description is given, set it in either case."""
        vhost = self.vhosts.get(name)
        if vhost is None or description not in (None, vhost.description):
            is_new = vhost is None
            vhost = vhost or VirtualHost(name, self.clock, self.ledger, self.profile, self.announce)
            self._save_vhost(vhost, description or "", vhost.limits)
            self.vhosts[name] = vhost
            if is_new:
                self.announce("vhost.created", name=name, description=vhost.description, tracing=False)
        return vhost

    def announce(self, key: str, **fields: Value) -> None:
        """Publish an event to the event exchange, unless nothing is bound to it (see event_exchange.py)."""
        vhost = self.vhosts.get(EVENT_VHOST)
        if vhost is None or not vhost.exchanges[EVENT_EXCHANGE].in_use:
            return
        try:
            message = event(key, fields, self.clock.wall())
            vhost.enqueue(vhost.route(vhost.exchanges[EVENT_EXCHANGE], message))
        except ChannelException as error:  # too many bindings with wildcards
            vhost.failures.report(f"the event {key} cannot be published", error)

    def limit_vhost(self, vhost: VirtualHost, limits: dict[str, int]) -> None:
        self._save_vhost(vhost, vhost.description, limits)

    def label_vhost(self, vhost: VirtualHost, labels: VhostLabels) -> None:
        self._save_vhost(vhost, vhost.description, vhost.limits, labels)

    def _save_vhost(
        self, vhost: VirtualHost, description: str, limits: dict[str, int], labels: VhostLabels | None = None
    ) -> None:
        labels = labels or vhost.labels
        stored: Table = {"name": vhost.name, "description": description, "limits": {**limits}}
        stored |= {
            "tags": [*labels.tags],
            "default_queue_type": labels.default_queue_type,
            "protected": labels.is_protected,
        }
        self.ledger.save("vhost", (vhost.name,), stored)
        vhost.description, vhost.limits, vhost.labels = description, limits, labels

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with everything in it and all permissions for it, and close its connections."""
        vhost = self.vhosts.pop(name)
        self._close_clients(f"vhost '{name}' is deleted", lambda client: client.is_open and client.vhost is vhost)
        vhost.delete_contents()
        for kind, traffic in vhost.deleted_traffic.items():
            self.totals.deleted[kind].add(traffic)
        for user in self.users.values():
            topics = {place: rights for place, rights in user.topic_permissions.items() if place[0] != name}
            if user.permissions.pop(name, None) is not None or topics != user.topic_permissions:
                user.topic_permissions = topics
                self.save_user(user)
        self.announce("vhost.deleted", name=name)

    def save_user(self, user: User) -> None:
        permissions: Table = {vhost: [p.configure, p.write, p.read] for vhost, p in user.permissions.items()}
        self.ledger.save(
            "user",
            (user.name,),
            {
                "name": user.name,
                "password_hash": (user.password_hash or b"").hex(),
                "algorithm": user.algorithm,
                "tags": list(user.tags),
                "permissions": permissions,
                "limits": {**user.limits},
                "topic_permissions": [
                    [*place, rights.write, rights.read] for place, rights in user.topic_permissions.items()
                ],
            },
        )
        if user.name not in self.users:
            self.announce("user.created", name=user.name)
        self.users[user.name] = user
        self.permissions_version += 1

    def delete_user(self, name: str) -> None:
        """Delete a user and close their connections."""
        del self.users[name]
        self.permissions_version += 1
        self._close_clients(f"user '{name}' is deleted", lambda client: client.is_open and client.user.name == name)
        self.ledger.forget("user", (name,))
        self.announce("user.deleted", name=name)

    def set_permissions(self, user: str, vhost: str, permissions: Permissions | None) -> None:
        """Set the permissions of a user in a virtual host; None removes them."""
        others = {name: rights for name, rights in self.users[user].permissions.items() if name != vhost}
        changed = others if permissions is None else {**others, vhost: permissions}
        self.save_user(replace(self.users[user], permissions=changed))
        if permissions is None:
            self.announce("permission.deleted", user=user, vhost=vhost)
        else:
            self.announce("permission.created", user=user, vhost=vhost, **vars(permissions))

    def set_global_parameter(self, name: str, text: str | None) -> None:
        """Set a global parameter to a JSON text; None deletes it. Raises AmqpException if it cannot be stored."""
        before = of_global_parameter(name, self.global_parameters.get(name))
        if text is not None:
            check_room(self.ledger, f"global parameter '{name}'")
            self.ledger.save("global_parameter", (name,), {"name": name, "json": text})
            self.global_parameters[name] = text
        elif self.global_parameters.pop(name, None) is not None:
            self.ledger.forget("global_parameter", (name,))
        self.ledger.hold_bytes(of_global_parameter(name, text) - before, definition=True)

    @property
    def cluster_name(self) -> str:
        """The name set with PUT /api/cluster-name. The default contains the AMQP port, to be unique on this machine."""
        given = self.global_parameters.get("cluster_name")
        _, port = self.listeners.get("amqp", ("", 0))
        return f"embedded-{port}@localhost" if given is None else str(json.loads(given))

    def authenticate(self, name: str, password: str, *, from_loopback: bool) -> User | None:
        """Return the user; None if the password is wrong, or if the user may not log in from another machine."""
        user = self.users.get(name)
        if user is None or (name in self.loopback_users and not from_loopback):
            return None
        return user if user.authenticates(password) else None

    def _check_memory(self, held: int) -> None:
        if held <= self.memory_limit and not self.alarms:
            return
        alarmed = "memory" in self.alarms
        limit = self.memory_limit * _ALARM_CLEARED if alarmed else self.memory_limit
        if (held > limit) is alarmed:
            return
        if alarmed:
            self.clear_alarm("memory")
        else:
            self.raise_alarm("memory", LOW_ON_MEMORY, f"messages and clients take {held} bytes")
            if self._closing is not None:
                self._closing.cancel()
            self._closing = self.clock.call_later(_CLOSE_LARGEST_MILLISECONDS, self._close_largest_client)

    def hold_for_client(self, by: int) -> None:
        """Add to the bytes held for clients (see ConnectedClient.held_bytes); `by` is negative to release memory."""
        self.held_for_clients += by
        self.ledger.held_bytes += by
        self._check_memory(self.ledger.held_bytes)
        if by > 0 and self.held_for_clients > self.connection_limit and self._limiting is None:
            self._limiting = self.clock.call_later(0, self._close_too_large)

    def _close_too_large(self) -> None:
        """Close each connection that the broker holds too many bytes for."""
        self._limiting = None
        for client in self.clients():
            if client.is_open and client.held_bytes > self.connection_limit:
                held = f"{client.held_bytes} bytes are held for this connection"
                client.force_close(f"{held}, which is more than {self.connection_limit}")

    def _close_largest_client(self) -> None:
        """Close the connection that holds the most memory, unless messages in queues cause the memory alarm.

        Repeats until the memory alarm is cleared.
        """
        if "memory" not in self.alarms:
            return
        messages = self.ledger.held_bytes - self.held_for_clients
        if messages <= self.memory_limit * _ALARM_CLEARED:
            largest = max(self.clients(), key=lambda client: client.held_bytes, default=None)
            if largest is not None and largest.held_bytes:
                largest.force_close(f"low on memory: {largest.held_bytes} bytes are held for this connection")
        self._closing = self.clock.call_later(_CLOSE_LARGEST_MILLISECONDS, self._close_largest_client)

    def raise_alarm(self, name: str, reason: str, why: str) -> None:
        """Block publishers until clear_alarm(). They are sent `reason`, such as LOW_ON_DISK; `why` is only logged."""
        if name not in self.alarms:
            log.warning("%s alarm set: %s", name, why)
            self.alarms[name] = reason
            self.ledger.quiet_bytes = -1

    @property
    def alarm_reason(self) -> str:
        """The reasons for all alarms, as one string for blocked publishers."""
        return " & ".join(sorted(set(self.alarms.values()))).replace(" & low on ", " & ")

    def clear_alarm(self, name: str) -> None:
        """End an alarm; unblock publishers if it was the last one."""
        if name in self.alarms:
            log.warning("%s alarm cleared", name)
            del self.alarms[name]
            if not self.alarms:
                self.ledger.quiet_bytes = self.memory_limit
                for client in self.clients():
                    client.unblock()

    def add_clients(self, clients: Collection[ConnectedClient]) -> None:
        """Add the collection of another protocol's open connections. The server keeps the collection up to date."""
        self._clients.append(clients)

    def clients(self) -> list[ConnectedClient]:
        """Return the connections of all protocols."""
        return [client for clients in self._clients for client in clients]

    def check_consumers(self) -> None:
        """Apply the consumer timeouts to the unacknowledged deliveries of all clients, in turns."""
        for client in self.clients():
            self.clock.take_turn(partial(client.check_consumers, self.consumer_timeout))

    def close_connections(self, reason: str) -> None:
        self._close_clients(reason, lambda _: True)

    def _close_clients(self, reason: str, which: Callable[[ConnectedClient], bool]) -> None:
        for client in [client for client in self.clients() if which(client)]:
            client.force_close(reason)


class Hooks(Protocol):
    """Callbacks that let a test observe the broker or change its behaviour."""

    def connected(self, client: object) -> None:
        """Handle a new connection, before the client has sent anything."""

    def enqueue(self, vhost: VirtualHost, routing: Routing, *, retries: bool = False) -> Publication:
        """Add a message to its queues, unless a test prevents it; return the outcome to report to the publisher.

        Args:
            retries: True if the publisher publishes the message again until a queue has received it.
        """

    def streamed(self, vhost: VirtualHost, stream: str, messages: Iterator[tuple[int, BrokerMessage]]) -> None:
        """Handle messages that were published with the stream protocol; `messages` yields them with their offsets."""

    def closed(self, vhost: VirtualHost, what: str, why: str) -> None:
        """Handle a `channel` or a `connection` that the broker has closed because of an error.

        Args:
            why: the reply code and text.
        """

    def acknowledge(self, queue: BrokerQueue, entry: BacklogEntry) -> bool:
        """Return True if a message is to be acknowledged, False to requeue it instead."""

    def rejected(self, queue: BrokerQueue, entry: BacklogEntry, *, requeue: bool) -> None:
        """Handle a message that a client has rejected."""

    def confirm(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """Send publisher confirms (encoded frames) by calling `send`, now or later, or drop them."""


#: The names of the limits that can be set for virtual hosts and for users.
OF_VHOSTS, OF_USERS = ("max-connections", "max-queues"), ("max-connections", "max-channels")


def check_connections(broker: Broker, vhost: VirtualHost, user: str) -> None:
    """Raise ConnectionException 530 if a virtual host or a user has reached its connection limit."""
    limit = limit_of(vhost.limits, "max-connections")
    if limit is not None and sum(each.is_open and each.vhost is vhost for each in broker.clients()) >= limit:
        refused = f"access to vhost '{vhost.name}' refused for user '{user}'"
        raise ConnectionException(NOT_ALLOWED, f"{refused}: connection limit ({limit}) is reached")
    limit = limit_of(_limits_of(broker, user), "max-connections")
    if limit is not None and len(_clients_of(broker, user)) >= limit:
        refused = f"connection refused for user '{user}'"
        raise ConnectionException(NOT_ALLOWED, f"{refused}: user connection limit ({limit}) is reached")


def check_channels(broker: Broker, user: str) -> None:
    """Raise ConnectionException 530 if a user may open no more channels."""
    limit = limit_of(_limits_of(broker, user), "max-channels")
    if limit is not None and sum(len(client.channels) for client in _clients_of(broker, user)) >= limit:
        raise ConnectionException(
            NOT_ALLOWED,
            f"number of channels opened for user '{user}' has reached the maximum allowed user limit of ({limit})",
        )


def _limits_of(broker: Broker, user: str) -> dict[str, int]:
    return broker.users[user].limits if user in broker.users else {}


def _clients_of(broker: Broker, user: str) -> list[ConnectedClient]:
    return [client for client in broker.clients() if client.is_open and client.user.name == user]
