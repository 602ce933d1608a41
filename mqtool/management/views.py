"""What the management API tells of each thing, as far as mqtool looks at it: the JSON objects' shapes.

A key is missing where the broker does not know it yet (statistics come seconds late), where its version does not tell
it, or where only certain columns were asked for. https://www.rabbitmq.com/docs/http-api-reference
"""

from typing import Any, TypedDict

Json = dict[str, Any]


class QueueView(TypedDict, total=False):
    """One of /api/queues.

    Attributes:
        type: classic, quorum or stream.
        effective_policy_definition: what policies add to the arguments, without `x-`.
        message_stats: counters, and rates in `NAME_details.rate`.
    """

    name: str
    vhost: str
    type: str
    durable: bool
    exclusive: bool
    auto_delete: bool
    arguments: Json
    policy: str | None
    effective_policy_definition: Json
    state: str
    consumers: int
    messages: int
    messages_ready: int
    messages_unacknowledged: int
    messages_details: Json
    messages_unacknowledged_details: Json
    message_stats: Json


class ExchangeView(TypedDict, total=False):
    """One of /api/exchanges. The default exchange has the name ""."""

    name: str
    vhost: str
    type: str
    durable: bool
    auto_delete: bool
    internal: bool
    arguments: Json
    policy: str | None
    message_stats: Json


class BindingView(TypedDict, total=False):
    """One of /api/bindings.

    Attributes:
        source: an exchange; "" is the default exchange, to which each queue is bound by its name.
        destination_type: queue or exchange.
        properties_key: tells apart bindings between the same two.
    """

    source: str
    vhost: str
    destination: str
    destination_type: str
    routing_key: str
    arguments: Json
    properties_key: str


class ConsumerView(TypedDict, total=False):
    """One of /api/consumers.

    Attributes:
        queue: {"name": …, "vhost": …}.
        channel_details: {"name": …, "connection_name": …, "peer_host": …, "peer_port": …, "user": …}.
    """

    consumer_tag: str
    queue: Json
    channel_details: Json
    ack_required: bool
    exclusive: bool
    prefetch_count: int
    active: bool
    activity_status: str
    arguments: Json


class ConnectionView(TypedDict, total=False):
    """One of /api/connections.

    Attributes:
        connected_at: milliseconds since 1970.
        timeout: seconds of the heartbeat.
    """

    name: str
    vhost: str
    user: str
    state: str
    protocol: str
    peer_host: str
    peer_port: int
    host: str
    port: int
    channels: int
    ssl: bool
    timeout: int
    connected_at: int
    client_properties: Json


class ChannelView(TypedDict, total=False):
    """One of /api/channels.

    Attributes:
        connection_details: {"name": …, "peer_host": …, "peer_port": …}.
        message_stats: what was published and delivered on it.
    """

    name: str
    number: int
    vhost: str
    user: str
    state: str
    connection_details: Json
    confirm: bool
    transactional: bool
    consumer_count: int
    prefetch_count: int
    messages_unacknowledged: int
    messages_unconfirmed: int
    message_stats: Json


class VhostView(TypedDict, total=False):
    """One of /api/vhosts."""

    name: str
    description: str
    tags: list[str]
    tracing: bool
    cluster_state: Json
    messages: int
    messages_ready: int
    messages_unacknowledged: int


class UserView(TypedDict, total=False):
    """One of /api/users. (What it tells of the password is never shown.)"""

    name: str
    tags: list[str] | str


class PermissionView(TypedDict, total=False):
    """One of /api/permissions: three regular expressions."""

    user: str
    vhost: str
    configure: str
    write: str
    read: str


class NodeView(TypedDict, total=False):
    """One of /api/nodes.

    Attributes:
        applications: what runs in it: {"name": …, "version": …, "description": …}.
    """

    name: str
    running: bool
    enabled_plugins: list[str]
    applications: list[Json]
    mem_used: int
    mem_limit: int
    mem_alarm: bool
    disk_free: int
    disk_free_limit: int
    disk_free_alarm: bool
    partitions: list[str]


class PolicyView(TypedDict, total=False):
    """One of /api/policies."""

    name: str
    vhost: str
    pattern: str
    definition: Json
