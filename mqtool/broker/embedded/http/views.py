"""The broker's parts as JSON, with RabbitMQ's field names."""

import base64
import math
import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from mqtool.broker.embedded.http.directory import AnyConnection
from mqtool.broker.embedded.http.parameters import cluster_name
from mqtool.broker.embedded.http.process import process
from mqtool.broker.embedded.http.rates import Rates
from mqtool.broker.embedded.model.broker import NODE, Broker
from mqtool.broker.embedded.model.exchange import Exchange, Link, types_of
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.stream_queue import Stream
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.wire.amqp_channel import Channel
from mqtool.broker.embedded.wire.amqp_connection import Connection
from mqtool.broker.embedded.wire.amqp_session import Session
from mqtool.broker.embedded.wire.deliveries import Subscription
from mqtool.codecs.field_tables import Table, Value

if TYPE_CHECKING:
    # Most brokers have no streams, and need not import their protocol.
    from mqtool.broker.embedded.streaming.subscriptions import Subscription as StreamSubscription

Json = dict[str, Any]

_BUILT_IN = {
    "rabbitmq_delayed_message_exchange": "Delayed message exchange, built in",
    "rabbitmq_management": "Management API without its page, built in",
}


def plain(value: Value) -> Any:
    """A field value as JSON has it."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    # A Decimal is a tuple.
    if isinstance(value, tuple):
        return value.value / 10**value.scale
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def table(table: Table) -> Json:
    return {name: plain(value) for name, value in table.items()}


def queue(queue: Queue, rates: Rates) -> Json:
    """One of /api/queues."""
    ready, unacked = len(queue), queue.unacked
    owner = queue.owner
    consumers = list(queue.consumers)
    view: Json = {
        "name": queue.name,
        "vhost": queue.vhost,
        "type": queue.kind,
        "durable": queue.durable,
        "auto_delete": queue.auto_delete,
        "exclusive": owner is not None,
        "owner_pid_details": {"name": owner.name} if isinstance(owner, Connection) else {},
        "arguments": table(queue.arguments),
        "state": "running",
        "node": NODE,
        "policy": queue.policy.policy,
        "operator_policy": queue.policy.operator_policy,
        "effective_policy_definition": table(queue.policy.definition),
        "consumers": len(consumers),
        "consumer_capacity": 1.0 if consumers else 0,
        "consumer_utilisation": 1.0 if consumers else 0,
        "exclusive_consumer_tag": next((consumer.tag for consumer in consumers if consumer.exclusive), None),
        "single_active_consumer_tag": queue.consumers.active.tag if queue.consumers.active else None,
        "messages": ready + unacked + len(queue.dead_letters),
        "messages_ready": ready,
        "messages_unacknowledged": unacked,
        "message_bytes": queue.backlog.body_bytes + queue.unacked_bytes,
        "message_bytes_ready": queue.backlog.body_bytes,
        "message_bytes_unacknowledged": queue.unacked_bytes,
        "message_stats": rates.of(queue.traffic),
    }
    if queue.kind == "quorum":
        view["messages_dlx"] = len(queue.dead_letters)
        view["message_bytes_dlx"] = sum(len(entry.message.body) for entry, _ in queue.dead_letters)
        view["message_bytes"] += view["message_bytes_dlx"]
    if isinstance(queue, Stream):
        view = {name: value for name, value in view.items() if not name.startswith("message_bytes")}
        readers = len(consumers) + queue.log.subscriptions
        view |= {"leader": NODE, "members": [NODE], "online": [NODE], "readers": {NODE: readers}}
        view |= {"consumers": readers, "segments": queue.log.segments}
    return view


def exchange(vhost: VirtualHost, exchange: Exchange, rates: Rates) -> Json:
    """One of /api/exchanges."""
    view: Json = {
        "name": exchange.name,
        "vhost": vhost.name,
        "type": exchange.kind,
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "internal": exchange.internal,
        "arguments": table(exchange.arguments),
        "policy": exchange.policy.policy,
        "user_who_performed_action": "rmq-internal" if exchange.predeclared else "",
        "message_stats": rates.of(exchange),
    }
    if exchange.delayed:
        view["messages_delayed"] = vhost.held(exchange)
    return view


def binding(vhost: str, link: Link) -> Json:
    """One of /api/bindings."""
    return {
        "source": link.source.name,
        "vhost": vhost,
        "destination": link.destination.name,
        "destination_type": link.destination.destination_type,
        "routing_key": link.routing_key,
        "arguments": table(link.arguments),
        "properties_key": link.properties_key,
    }


def bindings(vhost: VirtualHost) -> list[Json]:
    """All bindings of a virtual host, including those that every queue has to the default exchange."""
    default = vhost.exchanges[""]
    implied = [Link(default, queue, queue.name, {}) for queue in vhost.queues.values()]
    return [binding(vhost.name, each) for each in [*implied, *vhost.links()]]


def _channel_details(channel: Channel) -> Json:
    name = f"{channel.session.name} ({channel.number})"
    return {**_connection_details(channel.session), "name": name, "number": channel.number}


def _connection_details(connection: "AnyConnection | Session") -> Json:
    return {
        "name": "",
        "number": 0,
        "connection_name": connection.name,
        "peer_host": connection.peer[0],
        "peer_port": connection.peer[1],
        "node": NODE,
        "user": connection.user.name,
    }


def consumer(channel: Channel, subscription: Subscription) -> Json:
    """One of /api/consumers."""
    queue = subscription.queue
    active = queue.consumers.is_active(subscription)
    return {
        "consumer_tag": subscription.tag,
        "queue": {"name": queue.name, "vhost": queue.vhost},
        "channel_details": _channel_details(channel),
        "ack_required": not subscription.no_ack,
        "exclusive": subscription.exclusive,
        "prefetch_count": subscription.prefetch,
        "active": active,
        "activity_status": "single_active" if queue.consumers.active is subscription else "up" if active else "waiting",
        "arguments": table(subscription.arguments),
    }


def subscription(connection: AnyConnection, subscription: "StreamSubscription") -> Json:
    """One of /api/consumers that came by the stream protocol."""
    waits = subscription.group is not None and not subscription.is_active
    return {
        "consumer_tag": f"stream.subid-{subscription.number}",
        "queue": {"name": subscription.stream, "vhost": connection.vhost.name},
        "channel_details": _connection_details(connection),
        "ack_required": False,
        "exclusive": False,
        "prefetch_count": 0,
        "active": not waits,
        "activity_status": "waiting" if waits else "up",
        "arguments": dict(subscription.properties),
    }


def connection(connection: AnyConnection) -> Json:
    """One of /api/connections."""
    return {
        "name": connection.name,
        "user": connection.user.name,
        "vhost": connection.vhost.name,
        "state": "blocked" if connection.blocked else "running",
        "protocol": connection.protocol,
        "type": "network",
        "node": NODE,
        **_tls(connection),
        "host": connection.local[0],
        "port": connection.local[1],
        "peer_host": connection.peer[0],
        "peer_port": connection.peer[1],
        "channels": len(connection.channels),
        "channel_max": connection.channel_max,
        "frame_max": connection.frame_max,
        "timeout": connection.heartbeat,
        "connected_at": int(connection.connected_at * 1000),
        "client_properties": table(connection.client_properties),
        **_given_name(connection),
        "recv_oct": connection.received_bytes,
        "send_oct": connection.sent_bytes,
    }


def _given_name(connection: AnyConnection) -> Json:
    name = connection.client_properties.get("connection_name")
    return {"user_provided_name": name} if isinstance(name, str) else {}


def _tls(connection: AnyConnection) -> Json:
    cipher = connection.transport.get_extra_info("cipher")
    if cipher is None:
        return {"ssl": False}
    name, protocol, _ = cipher
    return {"ssl": True, "ssl_protocol": protocol.lower(), "ssl_cipher": name.lower()}


def channel(channel: Channel, rates: Rates) -> Json:
    """One of /api/channels."""
    details = _channel_details(channel)
    transaction = channel.transaction
    return {
        "name": details["name"],
        "number": channel.number,
        "connection_details": {
            "name": details["connection_name"],
            "peer_host": details["peer_host"],
            "peer_port": details["peer_port"],
        },
        "node": NODE,
        "user": details["user"],
        "vhost": channel.vhost.name,
        "state": "running",
        "confirm": channel.confirms is not None,
        "transactional": transaction is not None,
        "consumer_count": len(channel.deliveries.subscriptions),
        "prefetch_count": channel.deliveries.prefetch,
        "global_prefetch_count": channel.deliveries.global_prefetch,
        "messages_unacknowledged": len(channel.deliveries.unacked),
        "messages_unconfirmed": len(channel.confirms or ()),
        "messages_uncommitted": len(transaction.publishes) if transaction else 0,
        "acks_uncommitted": len(transaction.acked) if transaction else 0,
        "message_stats": rates.of(channel),
    }


def publishes(channel: Channel) -> list[Json]:
    """The exchanges that a channel has published to, as RabbitMQ shows them with `rates_mode` detailed."""
    return [
        {"exchange": {"name": name, "vhost": channel.vhost.name}, "stats": {"publish": count}}
        for name, count in channel.published.items()
    ]


def incoming(channels: Iterable[Channel], exchange: str) -> list[Json]:
    """The channels that have published to an exchange."""
    return [
        {"channel_details": _channel_details(each), "stats": {"publish": each.published[exchange]}}
        for each in channels
        if exchange in each.published
    ]


def vhost(vhost: VirtualHost, rates: Rates) -> Json:
    """One of /api/vhosts."""
    ready = sum(len(queue) for queue in vhost.queues.values())
    unacked = sum(queue.unacked for queue in vhost.queues.values())
    return {
        "message_stats": rates.total(queue.traffic for queue in vhost.queues.values()),
        "name": vhost.name,
        "description": vhost.description,
        "tags": [],
        "metadata": {"description": vhost.description, "tags": []},
        "tracing": vhost.tracing,
        "cluster_state": {NODE: "running"},
        "messages": ready + unacked,
        "messages_ready": ready,
        "messages_unacknowledged": unacked,
    }


def user(user: User) -> Json:
    """One of /api/users."""
    return {
        "name": user.name,
        "password_hash": base64.b64encode(user.password_hash or b"").decode(),
        "hashing_algorithm": user.algorithm,
        "tags": list(user.tags),
        "limits": user.limits,
    }


def permissions(user: User) -> list[Json]:
    """A user's part of /api/permissions."""
    return [
        {"user": user.name, "vhost": name, "configure": rights.configure, "write": rights.write, "read": rights.read}
        for name, rights in user.permissions.items()
    ]


def node(broker: Broker) -> Json:
    """The one of /api/nodes."""
    return {
        "name": NODE,
        "type": "disc",
        "running": True,
        "uptime": int((time.time() - broker.started_at) * 1000),
        "enabled_plugins": list(_BUILT_IN),
        "applications": [
            {"name": name, "version": broker.profile.version, "description": description}
            for name, description in _BUILT_IN.items()
        ],
        "exchange_types": _exchange_types(broker),
        **process(broker),
    }


def _exchange_types(broker: Broker) -> list[Json]:
    return [
        {"name": kind, "description": f"AMQP {kind} exchange", "enabled": True} for kind in types_of(broker.profile)
    ]


def overview(broker: Broker, connections: Collection[AnyConnection], user: User, rates: Rates) -> Json:
    """/api/overview."""
    queues = [queue for vhost in broker.vhosts.values() for queue in vhost.queues.values()]
    ready, unacked = sum(map(len, queues)), sum(queue.unacked for queue in queues)
    return {
        "management_version": broker.profile.version,
        "rabbitmq_version": broker.profile.version,
        "product_name": "RabbitMQ",
        "product_version": broker.profile.version,
        "cluster_name": cluster_name(broker),
        "node": NODE,
        "erlang_version": "",
        "rates_mode": "basic",
        "exchange_types": _exchange_types(broker),
        "listeners": [
            {"node": NODE, "protocol": protocol, "ip_address": host, "port": port, "socket_opts": {}}
            for protocol, (host, port) in broker.listeners.items()
        ],
        "contexts": [],
        "object_totals": {
            "channels": sum(len(connection.channels) for connection in connections),
            "connections": sum(connection.is_open for connection in connections),
            "consumers": sum(len(queue.consumers) for queue in queues),
            "exchanges": sum(len(vhost.exchanges) for vhost in broker.vhosts.values()),
            "queues": len(queues),
        },
        "queue_totals": {"messages": ready + unacked, "messages_ready": ready, "messages_unacknowledged": unacked},
        "message_stats": {
            **rates.total(queue.traffic for queue in queues),
            "drop_unroutable": broker.dropped_unroutable,
        },
        "user": user.name,
    }
