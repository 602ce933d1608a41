"""Routes of the node: overview, health checks, cluster name, feature flags, connections and channels."""

import base64
import os
import resource
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mqtool.broker.embedded.http.http_server import HttpAnswer, bad_request, in_slices, required
from mqtool.broker.embedded.http.message_routes import channel_details, consumers, plain
from mqtool.broker.embedded.http.policy_routes import save_global_parameter
from mqtool.broker.embedded.http.queue_routes import without_statistics
from mqtool.broker.embedded.http.route_table import (
    NO_CONTENT,
    READ,
    AnyConnection,
    Json,
    Rates,
    RouteCall,
    administrator,
    anyone,
    member,
    missing,
    monitoring,
    route,
    since,
    until,
    visitor,
)
from mqtool.broker.embedded.http.session_routes import details_of
from mqtool.broker.embedded.model.broker import LOW_ON_DISK, LOW_ON_MEMORY, NODE, Broker
from mqtool.broker.embedded.model.exchange import types_of
from mqtool.broker.embedded.model.users import User
from mqtool.broker.embedded.wire.amqp_channel import BrokerChannel

_BUILT_IN = {
    "rabbitmq_delayed_message_exchange": "Delayed message exchange, built in",
    "rabbitmq_management": "Management API without its page, built in",
}
#: RabbitMQ 3.10's feature flags and the applications that provide them. The embedded broker supports all of them.
_FEATURE_FLAGS = {
    "classic_mirrored_queue_version": "rabbit",
    "drop_unroutable_metric": "rabbitmq_management_agent",
    "empty_basic_get_metric": "rabbitmq_management_agent",
    "implicit_default_bindings": "rabbit",
    "maintenance_mode_status": "rabbit",
    "quorum_queue": "rabbit",
    "stream_queue": "rabbit",
    "user_limits": "rabbit",
    "virtual_host_metadata": "rabbit",
}
_CHURN = (
    *("connection_created", "connection_closed", "channel_created", "channel_closed"),
    *("queue_declared", "queue_created", "queue_deleted"),
)
#: Figures of nodes that clients such as rabbitmqadmin expect, and that the embedded broker does not count.
_UNCOUNTED = (
    *("io_read_bytes", "io_write_bytes", "io_sync_count", "io_seek_count", "io_reopen_count"),
    *("io_read_avg_time", "io_write_avg_time", "io_sync_avg_time", "io_seek_avg_time"),
    *("gc_num", "gc_bytes_reclaimed", "context_switches", "msg_store_read_count", "msg_store_write_count"),
    *("queue_index_read_count", "queue_index_write_count", "mnesia_ram_tx_count", "mnesia_disk_tx_count"),
    *_CHURN,
)
#: What else RabbitMQ lists of a node's memory: 0 here, because it is part of `other_proc` or does not exist.
_ERLANG_USES = (
    *("connection_readers", "connection_writers", "connection_channels", "queue_procs", "quorum_queue_procs"),
    *("quorum_queue_dlx_procs", "stream_queue_procs", "stream_queue_replica_reader_procs"),
    *("stream_queue_coordinator_procs", "plugins", "metrics", "mgmt_db", "mnesia", "quorum_ets", "other_ets"),
    *("msg_index", "code", "atom", "other_system", "allocated_unused", "reserved_unallocated"),
)
#: RabbitMQ accepts several names for AMQP with and without TLS.
_PROTOCOLS = {"amqp091": "amqp", "amqp10": "amqp", "amqp0.9.1": "amqp", "amqp1.0": "amqp", "amqps": "amqp/ssl"}
_OK = {"status": "ok"}
#: The memory of the process, in pages; only Linux has this file.
_STATM = Path("/proc/self/statm")


@route(READ, "overview", anyone)
async def overview(call: RouteCall) -> Json:
    broker, rates = call.broker, call.api.rates
    queues = [queue for vhost in broker.vhosts.values() for queue in vhost.queues.values()]
    settings = {
        "management_version": broker.profile.version,
        "rabbitmq_version": broker.profile.version,
        "product_name": "RabbitMQ",
        "product_version": broker.profile.version,
        "cluster_name": broker.cluster_name,
        "node": NODE,
        "erlang_version": "",
        "erlang_full_version": "",
        "rates_mode": "basic",
        "exchange_types": _exchange_types(broker),
        "disable_stats": without_statistics(call),
        "enable_queue_totals": without_statistics(call) and call.request.query.get("enable_queue_totals") == "true",
    }
    if broker.profile.api >= "4.0":
        settings |= {"cluster_tags": {}, "node_tags": {}, "default_queue_type": "classic"}
        settings |= {"is_op_policy_updating_enabled": True}
    totals = {
        "connections": sum(connection.is_open for connection in call.api.connections),
        "exchanges": sum(len(vhost.exchanges) for vhost in broker.vhosts.values()),
        "queues": len(queues),
    }
    if without_statistics(call):
        return {**settings, "object_totals": totals}
    return {
        **settings,
        "statistics_db_event_queue": 0,
        "churn_rates": dict.fromkeys(_CHURN, 0),
        "listeners": [
            {"node": NODE, "protocol": protocol, "ip_address": host, "port": port, "socket_opts": {}}
            for protocol, (host, port) in broker.listeners.items()
        ],
        "contexts": [
            {"node": NODE, "description": "RabbitMQ Management", "path": "/", "port": str(port)}
            for protocol, (_, port) in broker.listeners.items()
            if protocol == "http"
        ],
        "object_totals": {
            "channels": sum(len(connection.channels) for connection in call.api.connections),
            "consumers": sum(len(queue.consumers) for queue in queues),
            **totals,
        },
        "queue_totals": rates.of(call.api.depths),
        "message_stats": {
            **await rates.total(
                [
                    *(each for vhost in broker.vhosts.values() for each in vhost.deleted_traffic.values()),
                    *(each.traffic for each in queues),
                ]
            ),
            "drop_unroutable": broker.dropped_unroutable,
        },
    }


def _exchange_types(broker: Broker) -> list[Json]:
    return [
        {"name": kind, "description": f"AMQP {kind} exchange", "enabled": True} for kind in types_of(broker.profile)
    ]


@route(READ, "cluster-name", anyone)
def cluster_name(call: RouteCall) -> Json:
    return {"name": call.broker.cluster_name}


@route("PUT", "cluster-name", administrator)
def put_cluster_name(call: RouteCall) -> HttpAnswer:
    [name] = required(call.body, "name")
    save_global_parameter(call.broker, "cluster_name", {"value": name})
    return NO_CONTENT


@route(READ, "auth", until("4.2"))
def auth(call: RouteCall) -> Json:
    """Return the OAuth 2 settings. The embedded broker does not support OAuth 2."""
    if call.broker.profile.api >= "4.0":
        return {"oauth_enabled": False}
    return {"enable_uaa": False, "uaa_client_id": "", "uaa_location": ""}


@route(READ, "auth/attempts/NODE", monitoring)
def auth_attempts(call: RouteCall, name: str) -> list[Json]:
    """Return how many logins succeeded and failed, by protocol."""
    _check_node(name)
    logins = call.broker.logins
    return [
        {
            "protocol": protocol,
            "auth_attempts": logins[protocol, True] + logins[protocol, False],
            "auth_attempts_failed": logins[protocol, False],
            "auth_attempts_succeeded": logins[protocol, True],
        }
        for protocol in dict.fromkeys(protocol for protocol, _ in logins)
    ]


@route(READ, "auth/attempts/NODE/source", monitoring)
def auth_attempts_by_source(call: RouteCall, name: str) -> list[Json]:  # noqa: ARG001
    """Return an empty list: logins are not counted by user and address, as RabbitMQ does not by default."""
    _check_node(name)
    return []


@route("DELETE", "auth/attempts/NODE", administrator)
@route("DELETE", "auth/attempts/NODE/source", administrator)
def reset_auth_attempts(call: RouteCall, name: str) -> None:
    """Start to count logins from zero."""
    _check_node(name)
    call.broker.logins.clear()


def _check_node(name: str) -> None:
    if name != NODE:
        missing()


@route(READ, "feature-flags", administrator)
def feature_flags(call: RouteCall) -> list[Json]:  # noqa: ARG001
    return [
        {"name": name, "desc": "", "doc_url": "", "state": "enabled", "stability": "stable", "provided_by": provider}
        for name, provider in _FEATURE_FLAGS.items()
    ]


@route(READ, "deprecated-features", administrator)
@route(READ, "deprecated-features/used", administrator)
@route(READ, "shovels", monitoring)
@route(READ, "shovels/VHOST", monitoring)
@route(READ, "federation-links", monitoring)
@route(READ, "federation-links/VHOST", monitoring)
def nothing_there(call: RouteCall, *vhost: str) -> list[Json]:
    """Return an empty list: there are no shovels and no federation, and no deprecated feature is reported."""
    for name in vhost:
        call.vhost(name)
    return []


@route("PUT", "feature-flags/FLAG/enable", administrator)
def enable_feature_flag(call: RouteCall, name: str) -> None:  # noqa: ARG001
    """Do nothing: all feature flags are enabled already. Raise 400 if there is no such flag."""
    if name not in _FEATURE_FLAGS:
        raise bad_request("unsupported")


@route("DELETE", "reset", administrator)
@route("DELETE", "reset/NODE", administrator)
@route("POST", "rebalance/queues", administrator)
def do_nothing(call: RouteCall, *names: str) -> None:
    """Accept requests to reset statistics or rebalance queues, but do nothing: there is one node and no history."""


@route(READ, "extensions", anyone)
def extensions(call: RouteCall) -> list[Json]:  # noqa: ARG001
    """Return the extensions of the management UI; there are none."""
    return []


@route(READ, "nodes", monitoring)
def nodes(call: RouteCall) -> list[Json]:
    return [_node_view(call.broker)]


@route(READ, "nodes/NODE", monitoring)
def node(call: RouteCall, name: str) -> Json:
    """Return the node; with `memory=true` in the query, also with its memory."""
    _check_node(name)
    memory = _memory(call.broker) if call.request.query.get("memory") == "true" else {}
    return _node_view(call.broker) | memory


@route(READ, "nodes/NODE/memory", monitoring)
def node_memory(call: RouteCall, name: str) -> Json:
    """Return the memory of the process in bytes, by use."""
    _check_node(name)
    return _memory(call.broker)


@route(READ, "nodes/NODE/memory/relative", monitoring)
def relative_node_memory(call: RouteCall, name: str) -> Json:
    """Return the memory of the process by use, each in percent of the whole; at least 1 unless it is 0."""
    _check_node(name)
    memory = _memory(call.broker)["memory"]
    whole = memory.pop("total")["rss"]
    del memory["strategy"]
    shares = {use: max(round(size * 100 / whole), 1) if size else 0 for use, size in memory.items()}
    return {"memory": {"total": 100, **shares}}


def _memory(broker: Broker) -> Json:
    """Return the memory of the process by RabbitMQ's names of uses. Messages are its binaries."""
    whole = resident_bytes()
    others = _ERLANG_USES if broker.profile.mirrors else (*_ERLANG_USES, "metadata_store", "metadata_store_ets")
    uses = {"binary": broker.ledger.held_bytes - broker.held_for_clients, "connection_other": broker.held_for_clients}
    uses["other_proc"] = max(whole - sum(uses.values()), 0)
    total = dict.fromkeys(("erlang", "rss", "allocated"), whole)
    return {"memory": {**dict.fromkeys(others, 0), **uses, "strategy": "rss", "total": total}}


def _node_view(broker: Broker) -> Json:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    low_on = set(broker.alarms.values())
    return {
        "name": NODE,
        "type": "disc",
        "running": True,
        "uptime": broker.clock.now() - broker.started_at,
        "enabled_plugins": list(_BUILT_IN),
        "applications": [
            {"name": name, "version": broker.profile.version, "description": description}
            for name, description in _BUILT_IN.items()
        ],
        "exchange_types": _exchange_types(broker),
        "mem_used": broker.ledger.held_bytes,
        "mem_limit": broker.memory_limit,
        "mem_alarm": LOW_ON_MEMORY in low_on,
        "disk_free": broker.ledger.disk_free(),
        "disk_free_limit": broker.disk_free_limit,
        "disk_free_alarm": LOW_ON_DISK in low_on,
        "io_read_count": usage.ru_inblock,
        "io_write_count": usage.ru_oublock,
        "os_pid": str(os.getpid()),
        "processors": os.cpu_count() or 1,
        "run_queue": 0,
        "being_drained": False,
        "rabbitmq_version": broker.profile.version,
        "erlang_version": "",
        "erlang_full_version": "",
        "crypto_lib_version": "",
        "mem_calculation_strategy": "allocated",
        # What Erlang calls processes are the tasks of its own scheduler: connections and queues, one each, and others.
        "proc_used": len(broker.clients()) + sum(len(vhost.queues) for vhost in broker.vhosts.values()),
        "proc_total": 1_048_576,
        "net_ticktime": 60,
        "log_files": [],
        "config_files": [],
        "db_dir": "",
        "contexts": [],
        **dict.fromkeys(_UNCOUNTED, 0),
        "fd_used": open_descriptors(descriptors),
        "fd_total": descriptors,
        "sockets_used": len(broker.clients()),
        "sockets_total": descriptors,
        "partitions": [],
        "cluster_links": [],
        "rates_mode": "basic",
        "auth_mechanisms": [{"name": name, "description": "", "enabled": True} for name in ("PLAIN", "AMQPLAIN")],
    }


def resident_bytes() -> int:
    """Return the memory of the process, in bytes; without /proc, the most that it has had."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def open_descriptors(limit: int) -> int:
    """Return the number of open file descriptors of the process; `limit` if none are left to count them with."""
    try:
        return len(list(Path("/dev/fd").iterdir()))
    except OSError:
        return limit  # listing them needs a descriptor, so a failure means that none are left


@route(READ, "healthchecks/node", anyone)
@route(READ, "healthchecks/node/NODE", anyone)
@route(READ, "health/checks/virtual-hosts", anyone)
@route(READ, "health/checks/ready-to-serve-clients", since("4.2"))
@route(READ, "health/checks/below-node-connection-limit", since("4.2"))
@route(READ, "health/checks/is-in-service", since("4.2"))
@route(READ, "health/checks/metadata-store/initialized", since("4.2"))
@route(READ, "health/checks/metadata-store/initialized/with-data", since("4.2"))
@route(READ, "health/checks/quorum-queues-without-elected-leaders/all-vhosts", since("4.2"))
@route(READ, "health/checks/quorum-queues-without-elected-leaders/all-vhosts/pattern/PATTERN", since("4.2"))
@route(READ, "health/checks/quorum-queues-without-elected-leaders/vhost/VHOST", since("4.2"))
@route(READ, "health/checks/quorum-queues-without-elected-leaders/vhost/VHOST/pattern/PATTERN", since("4.2"))
@route(READ, "aliveness-test/VHOST", member)
def healthy(call: RouteCall, *names: str) -> Json:  # noqa: ARG001
    """Report success for the health checks that cannot fail in this broker. Some need permissions in a virtual host."""
    return _OK


@route(READ, "health/checks/certificate-expiration/NUMBER/UNIT", anyone)
def certificate_expiration(call: RouteCall, number: str, unit: str) -> Json:  # noqa: ARG001
    """Report success: the broker does not look at when its certificate expires."""
    if unit not in ("days", "weeks", "months", "years"):
        raise bad_request("Time unit not recognised. Supported units: days, weeks, months, years.")
    if not number.isdecimal():
        raise bad_request("Invalid expiration value.")
    return _OK


@route(READ, "version", since("4.0"))
def version(call: RouteCall) -> HttpAnswer:
    return HttpAnswer(HTTPStatus.OK, call.broker.profile.version)


@route(READ, "auth/hash_password/PASSWORD", since("4.0"))
def hash_password(call: RouteCall, password: str) -> Json:  # noqa: ARG001
    """Return a password's salted hash, as `password_hash` of a user."""
    hashed = User.with_password("", password, []).password_hash
    assert hashed is not None
    return {"ok": base64.b64encode(hashed).decode()}


@route(READ, "health/checks/node-is-quorum-critical", anyone)
@route(READ, "health/checks/node-is-mirror-sync-critical", until("4.0"))
def node_is_critical(call: RouteCall) -> Json:  # noqa: ARG001
    """Report that no queue depends on this node: a single node is never critical to a quorum."""
    return {"status": "ok", "reason": "single node cluster"}


@route(READ, "health/checks/alarms", anyone)
@route(READ, "health/checks/local-alarms", anyone)
def alarms(call: RouteCall) -> HttpAnswer:
    """Check for alarms; return 503 if one is in effect."""
    shortages = [reason.removeprefix("low on ") for reason in sorted(set(call.broker.alarms.values()))]
    found = [{"node": NODE, "resource": each} for each in shortages]
    reason = "There are alarms in effect in the cluster"
    return _checked(_OK, {"reason": reason, "alarms": found} if found else None)


@route(READ, "health/checks/port-listener/PORT", anyone)
def port_listener(call: RouteCall, port: str) -> HttpAnswer:
    """Check that the broker listens on a port; return 503 if not."""
    if not (port.isdecimal() and len(port) <= 5):
        raise bad_request("Invalid port")
    ports = [number for _, number in call.broker.listeners.values()]
    return _checked({**_OK, "port": int(port)}, None if int(port) in ports else {"missing": int(port), "ports": ports})


@route(READ, "health/checks/protocol-listener/PROTOCOL", anyone)
def protocol_listener(call: RouteCall, name: str) -> HttpAnswer:
    """Check that the broker has a listener for a protocol; return 503 if not."""
    listeners = call.broker.listeners
    if call.broker.profile.api >= "4.2":
        lacking = [each for each in name.split(",") if _PROTOCOLS.get(each.lower(), each.lower()) not in listeners]
        protocols: Json = {"protocols": list(listeners)}
        return _checked({**_OK, **protocols}, {"missing": lacking, **protocols} if lacking else None)
    protocol = _PROTOCOLS.get(name.lower(), name.lower())
    absent = None if protocol in listeners else {"missing": name, "protocols": list(listeners)}
    return _checked({**_OK, "protocol": protocol}, absent)


def _checked(well: Json, wrong: Json | None) -> HttpAnswer:
    if wrong is None:
        return HttpAnswer(HTTPStatus.OK, well)
    return HttpAnswer(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "failed", "reason": "No active listener", **wrong})


@route(READ, "connections", anyone)
@route(READ, "vhosts/VHOST/connections", visitor)
def connections(call: RouteCall, vhost: str | None = None) -> Iterator[Json]:
    return map(_connection_view, call.connections(vhost))


@route(READ, "connections/username/USER", anyone)
def connections_of_user(call: RouteCall, name: str) -> Iterator[Json]:
    return map(_connection_view, [each for each in call.connections() if each.user.name == name])


@route(READ, "connections/CONNECTION", anyone)
def connection(call: RouteCall, name: str) -> Json:
    return _connection_view(([each for each in call.connections() if each.name == name] or missing())[0])


def _connection_view(connection: AnyConnection) -> Json:
    name = connection.client_properties.get("connection_name")
    cipher: Any = connection.transport.get_extra_info("cipher")
    return {
        "name": connection.name,
        "user": connection.user.name,
        "vhost": connection.vhost.name,
        "state": "blocked" if connection.blocked else "running",
        "protocol": connection.protocol,
        "type": "network",
        "node": NODE,
        "ssl": cipher is not None,
        **({"ssl_protocol": cipher[1].lower(), "ssl_cipher": cipher[0].lower()} if cipher else {}),
        "host": connection.local[0],
        "port": connection.local[1],
        "peer_host": connection.peer[0],
        "peer_port": connection.peer[1],
        "channels": len(connection.channels),
        "channel_max": connection.channel_max,
        "frame_max": connection.frame_max,
        "timeout": connection.heartbeat,
        "connected_at": int(connection.connected_at * 1000),
        "client_properties": plain(connection.client_properties),
        **({"user_provided_name": name} if isinstance(name, str) else {}),
        "recv_oct": connection.received_bytes,
        "send_oct": connection.sent_bytes,
        **details_of(connection),
    }


@route("DELETE", "connections/username/USER", anyone)
def close_connections_of_user(call: RouteCall, name: str) -> None:
    _close(call, [each for each in call.opened() if each.user.name == name])


@route("DELETE", "connections/CONNECTION", anyone)
def close_connection(call: RouteCall, name: str) -> None:
    _close(call, [each for each in call.opened() if each.name == name] or missing())


def _close(call: RouteCall, found: list[AnyConnection]) -> None:
    """Close connections. Only administrators may close other users' connections."""
    for each in found:
        if each.user.name != call.user.name:
            administrator(call)
        each.force_close(call.request.headers.get("x-reason", "Closed via management plugin"))


@route(READ, "channels", anyone)
@route(READ, "vhosts/VHOST/channels", visitor)
def channels(call: RouteCall, vhost: str | None = None) -> Iterator[Json]:
    return (_channel_view(each, call.api.rates) for each in _channels(call, vhost))


@route(READ, "connections/CONNECTION/channels", anyone)
def channels_of_connection(call: RouteCall, name: str) -> Iterator[Json]:
    found = [each for each in _channels(call) if each.session.name == name]
    return (_channel_view(each, call.api.rates) for each in found)


@route(READ, "channels/CHANNEL", anyone)
async def channel(call: RouteCall, name: str) -> Json:
    """Return a channel with its consumers and the exchanges that it has published to."""
    named = [each for each in _channels(call) if f"{each.session.name} ({each.number})" == name]
    found = (named or missing())[0]
    published = [
        {"exchange": {"name": exchange, "vhost": found.vhost.name}, "stats": {"publish": count}}
        for exchange, count in found.published.items()
    ]
    mine = [each for each in await in_slices(consumers(call)) if each["channel_details"].get("name") == name]
    view = _channel_view(found, call.api.rates)
    return {**view, "publishes": published, "deliveries": [], "consumer_details": mine}


def _channels(call: RouteCall, vhost: str | None = None) -> list[BrokerChannel]:
    return [each for connection in call.connections(vhost) for each in connection.channels.values()]


def _channel_view(channel: BrokerChannel, rates: Rates) -> Json:
    details = channel_details(channel.session, channel)
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
