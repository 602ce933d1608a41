"""`doctor --upgrade`: find clients that a newer RabbitMQ refuses or treats differently.

The management API shows what a client does (its frame size, its prefetch limits, the queues that it consumes from) and
which library it claims to use. Findings are based only on what it does, because an old library can be configured to
work with a newer broker. The table of libraries only provides hints for these findings.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mqtool import management
from mqtool.errors import AccessRefused
from mqtool.inspection.findings import Finding
from mqtool.inspection.upgrade import (
    ACCEPTS_TRANSIENT,
    V3_13,
    V4_0,
    V4_1,
    V4_3,
    UpgradeChange,
    Version,
    running,
    transient,
)
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.spelling import counted
from mqtool.version_changes import GLOBAL_PREFETCH, SMALL_FRAMES, SMALLEST_FRAME, TRANSIENT


class Library(NamedTuple):
    """A known problem of a client library, and how to fix it.

    Attributes:
        product: the library's name, as in the client property `product`.
        check: the check that finds the problem.
        hint: what to do.
        source: the URL of an issue or pull request about the problem.
    """

    product: str
    check: str
    hint: str
    source: str


LIBRARIES = (
    Library(
        "amqplib",
        "small-frames",
        "upgrade amqplib to 0.10.7 or later, or set frameMax",
        "https://github.com/amqp-node/amqplib/issues/791",
    ),
    Library(
        "rabbitmq-client",
        "small-frames",
        "upgrade rabbitmq-client to 5.0.4 or later, or set frameMax",
        "https://github.com/cody-greene/node-rabbitmq-client/pull/75",
    ),
    Library("AMQPRS", "small-frames", "upgrade amqprs", "https://github.com/gftea/amqprs/pull/169"),
    Library(
        "py-amqp",
        "transient-consumer",
        "Celery: upgrade celery and kombu to 5.7, or set control_queue_durable and event_queue_durable (5.6)",
        "https://github.com/celery/celery/pull/10287",
    ),
    Library(
        "py-amqp",
        "global-prefetch",
        "Celery: upgrade kombu to 5.7, which sets a limit for each consumer on RabbitMQ 4",
        "https://github.com/celery/kombu/pull/2481",
    ),
    Library(
        "aiormq",
        "transient-consumer",
        "FastStream: upgrade it, or declare the queues durable",
        "https://github.com/ag2ai/faststream/pull/2892",
    ),
)
_HINTS = {(each.product, each.check): f"{each.hint} ({each.source})" for each in LIBRARIES}

#: Deprecated features that no other check finds, and the version that refuses them.
_DEPRECATED = {"amqp_address_v1": V4_3, "amqp_filter_set_bug": V4_3, "ram_node_type": V4_3}
#: The maximum number of a client's queues to name in a finding.
_NAMED = 3

_CONNECTION_COLUMNS = ("name", "vhost", "user", "peer_host", "peer_port", "protocol", "frame_max", "client_properties")
_CHANNEL_COLUMNS = ("name", "vhost", "number", "global_prefetch_count", "consumer_count", "connection_details.name")
_CONSUMER_COLUMNS = ("queue.name", "queue.vhost", "channel_details.connection_name")


def findings(api: Management, vhost: str | None, wanted: Version) -> Iterator[Finding]:
    """Find problems with connected clients, in one virtual host or in all.

    Raises:
        AccessRefused: after the findings, if the management API shows the user only its own clients.
    """
    present = running(api)
    for change in _changes(api, vhost, present):
        if present < change.since and change.concerns(wanted):
            yield change.finding
    tags = str(api.get("whoami").get("tags"))
    if "monitoring" not in tags and "administrator" not in tags:
        what = f"the management API at {api.url} shows user {api.user!r} only its own connections"
        hint = "the user needs the tag 'monitoring'; an administrator can set its tags with 'mqtool user tags'"
        raise AccessRefused(what, hint)


def deprecated_features(api: Management, wanted: Version | None = None) -> Iterator[Finding]:
    """Find deprecated features that are in use. Only an administrator may list them.

    Args:
        wanted: find only features that this version refuses, and that no other check finds.

    Raises:
        AccessRefused: the user is not an administrator.
    """
    present = running(api)
    if present < V3_13:  # it has no such list
        return
    for feature in api.items("deprecated-features/used"):
        refusing = _DEPRECATED.get(feature["name"], present)
        if wanted is None or present < refusing <= wanted:
            who = "a later RabbitMQ" if wanted is None else f"RabbitMQ {refusing}"
            what = f"is in use and deprecated, and {who} refuses it"
            hint = feature.get("doc_url") or "https://www.rabbitmq.com/release-information/deprecated-features-list"
            yield Finding("deprecated-feature", f"feature {feature['name']!r}", what, hint)


def _changes(api: Management, vhost: str | None, present: Version) -> Iterator[UpgradeChange]:
    connections = {each["name"]: each for each in management.connections(api, vhost, _CONNECTION_COLUMNS)}
    for connection in connections.values():
        yield from _of_connection(connection, present)
    for name, queues in _transient_queues(api, vhost).items():
        if name in connections:
            yield _of_transient(connections[name], sorted(queues))
    for channel in management.channels(api, vhost, _CHANNEL_COLUMNS):
        owner = connections.get((channel.get("connection_details") or {}).get("name", ""))
        if owner is not None and channel.get("global_prefetch_count"):
            yield _of_channel(channel, owner)


def _of_connection(connection: Json, present: Version) -> Iterator[UpgradeChange]:
    protocol, frame_max = str(connection.get("protocol") or ""), connection.get("frame_max")
    if protocol.startswith("AMQP 0") and isinstance(frame_max, int) and 0 < frame_max < SMALLEST_FRAME:
        what = f"asked for frames of {frame_max:,} bytes, {SMALL_FRAMES.verdict}"
        hint = f"set its frame_max to {SMALLEST_FRAME:,} or more"
        yield UpgradeChange(V4_1, _finding(connection, "small-frames", what, hint))
    if protocol.startswith("AMQP 1") and present < V4_0:
        what = "uses AMQP 1.0 with addresses of version 1, which RabbitMQ 4.3 refuses"
        hint = "use addresses such as /queues/NAME and /exchanges/NAME/KEY from RabbitMQ 4.0 on"
        yield UpgradeChange(V4_3, _finding(connection, "amqp10-address", what, hint))


def _of_transient(connection: Json, queues: list[str]) -> UpgradeChange:
    named = ", ".join(map(repr, queues[:_NAMED])) + (" and others" if len(queues) > _NAMED else "")
    what = f"consumes from {counted(len(queues), 'transient queue')} ({named}), {TRANSIENT.verdict}"
    finding = _finding(connection, "transient-consumer", what, "have it declare durable or exclusive queues")
    return UpgradeChange(V4_3, finding, until=ACCEPTS_TRANSIENT)


def _of_channel(channel: Json, owner: Json) -> UpgradeChange:
    limit, consumers = channel["global_prefetch_count"], channel.get("consumer_count") or 0
    whom = f"{counted(consumers, 'consumer')} of channel {channel.get('number')}"
    what = f"has one prefetch limit of {limit:,} for the {whom}: {GLOBAL_PREFETCH.verdict}"
    hint = "use basic.qos with global=false, and a limit that suits each consumer"
    return UpgradeChange(V4_3, _finding(owner, "global-prefetch", what, hint))


def _transient_queues(api: Management, vhost: str | None) -> Mapping[str, set[str]]:
    """Return the transient queues that each connection consumes from, by the connection's name."""
    columns = ("name", "vhost", "durable", "exclusive")
    listed = management.queues(api, vhost, columns)
    names = {(queue["vhost"], queue["name"]) for queue in listed if any(transient(queue))}
    found: dict[str, set[str]] = {}
    for consumer in management.consumers(api, vhost, _CONSUMER_COLUMNS) if names else ():
        queue, details = consumer["queue"], consumer.get("channel_details") or {}
        if (queue["vhost"], queue["name"]) in names and "connection_name" in details:
            found.setdefault(details["connection_name"], set()).add(queue["name"])
    return found


def client_of(connection: Json) -> dict[str, str]:
    """Return a client's connection, name, user, address, library and version; "" for each that is unknown."""
    said = connection.get("client_properties") or {}
    return {
        "connection": str(connection["name"]),
        "name": str(said.get("connection_name") or ""),
        "user": str(connection.get("user") or ""),
        "address": f"{connection.get('peer_host')}:{connection.get('peer_port')}",
        "library": str(said.get("product") or ""),
        "version": str(said.get("version") or said.get("product_version") or ""),
    }


def _finding(connection: Json, check: str, what: str, hint: str) -> Finding:
    client = client_of(connection)
    library = f"{client['library']} {client['version']}".strip() or "unknown library"
    named = f" {client['name']!r}" if client["name"] else ""
    thing = f"client{named} of user {client['user']!r} at {client['address']} ({library})"
    told = _HINTS.get((client["library"], check), hint)
    return Finding(check, thing, what, told, connection.get("vhost"), client)
