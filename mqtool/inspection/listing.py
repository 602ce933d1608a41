"""`list`: read and sort rows of queues, exchanges and other objects, with the column names of rabbitmqctl.

https://www.rabbitmq.com/docs/man/rabbitmqctl.8
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mqtool import management
from mqtool.address import hide_passwords
from mqtool.errors import NotFound, Unavailable, UsageError
from mqtool.management import Management
from mqtool.management.queue_contents import uncounted
from mqtool.spelling import as_text, did_you_mean, pasteable, quoted

Row = dict[str, Any]
#: Yields objects from the management API, with the given columns. If the vhost is None, lists all virtual hosts.
ListingSource = Callable[[Management, str | None, Sequence[str]], Iterable[Mapping[str, Any]]]

#: What to know about the number of messages that RabbitMQ reports for a stream.
COUNTS_OFFSETS = "RabbitMQ also counts stored offsets of readers"
STREAM_COUNTS = f"counts of streams can be up to 5 s old; {COUNTS_OFFSETS}"


@dataclass(frozen=True, slots=True)
class Listing:
    """A kind of object that can be listed.

    Attributes:
        things: the name of the objects, in the plural.
        columns: for each column, its path in the API's objects; dots separate nested names, "=TEXT" is a constant.
        shown: the default columns.
        of_vhost: True if only one vhost's objects are listed by default, as with rabbitmqctl.
    """

    things: str
    columns: Mapping[str, str]
    shown: Sequence[str]
    source: ListingSource
    of_vhost: bool = True

    def check(self, names: Iterable[str], by_name: str = "") -> None:
        """Check the names of columns; raise UsageError, with the nearest name as a hint, if one is unknown.

        Args:
            by_name: the option that lists only the objects with a name, such as "--queue", if there is one.
        """
        if not (unknown := [name for name in names if name not in self.columns]):
            return
        hint = f"columns: {', '.join(sorted(self.columns))}"
        if by_name:
            named = " ".join(f"{by_name}={quoted(name)}" for name in unknown)
            only = pasteable(f"list {self.things} {named}")
            hint = f"to list only these {self.things}: {only}; 'mqtool list {self.things} --help' names the columns"
        said = f"{self.things} have no column {unknown[0]!r}"
        if "," in unknown[0]:
            raise UsageError(said, f"separate columns with spaces: {unknown[0].replace(',', ' ')}")
        raise UsageError(said, did_you_mean(unknown[0], self.columns, hint))

    def rows(self, api: Management, vhost: str | None, names: Sequence[str]) -> Iterator[Row]:
        """Yield rows with these columns. Values that the broker does not report are None."""
        asked = sorted({self.columns[name] for name in names if not self.columns[name].startswith("=")})
        for item in self.source(api, vhost, asked):
            yield self.row(item, names)

    def row(self, item: Mapping[str, Any], names: Iterable[str]) -> Row:
        """Convert one of the API's objects to a row."""
        return {name: _value_at(item, self.columns[name]) for name in names}


def _value_at(item: Any, path: str) -> Any:
    if path.startswith("="):
        return path[1:]
    for name in path.split("."):
        if not isinstance(item, Mapping):
            return None
        item = item.get(name)
    return item


def _columns(text: str) -> dict[str, str]:
    """Parse columns, each with its path in the API's objects: `name`, or `name=path`."""
    words = (word.partition("=") for word in text.split())
    return {name: path or name for name, _, path in words}


#: The columns with a queue's message counts.
COUNTS = ("messages", "messages_ready", "messages_unacknowledged")
#: Columns that do not require the broker to compute statistics.
_AT_ONCE = {*COUNTS, "name", "vhost", "type", "durable", "auto_delete", "arguments"}


def _queues(
    api: Management, vhost: str | None, columns: Sequence[str], names: Iterable[str] = ()
) -> Iterator[Mapping[str, Any]]:
    """Yield queues: all, or those with these names. Their message counts are the latest that the API has."""
    pattern = f"^({'|'.join(map(re.escape, sorted(names)))})$" if names else ""
    wanted, now = {*columns}, {}
    if wanted <= _AT_ONCE or not wanted.isdisjoint(COUNTS):
        totals = management.queue_totals(api, vhost, sorted(wanted & _AT_ONCE | {"name", "vhost", *COUNTS}), pattern)
        now = {(view["vhost"], view["name"]): view for view in totals}
        if wanted <= _AT_ONCE and all("messages" in view for view in now.values()):
            yield from now.values()
            return
    for view in management.queues(api, vhost, sorted(wanted | {"name", "vhost"}), name=pattern, use_regex="true"):
        counted_now = now.get((view["vhost"], view["name"]), {})
        yield {**view, **{name: counted_now[name] for name in COUNTS if name in counted_now}}


def queues_named(names: Iterable[str]) -> Listing:
    """Return the listing QUEUES, limited to queues with these names."""
    return replace(QUEUES, source=partial(_queues, names=names))


def refresh(row: Row, ready: int, consumers: int) -> bool:
    """Update a queue's row with the counts from AMQP; return True if the API's counts were outdated.

    For classic queues, whose counts in the API are always current, it returns False.
    """
    is_old: bool = row["messages_ready"] != ready and row["type"] != "classic"
    others = (row["messages_unacknowledged"] or 0) + uncounted(row)
    row |= {"messages_ready": ready, "messages": ready + others, "consumers": consumers}
    return is_old


def _users(api: Management, _vhost: str | None, _columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for user in sorted(management.users(api), key=lambda user: user["name"]):
        tags = user.get("tags", [])  # before 3.9, a string separated by commas
        yield {**user, "tags": [tag for tag in tags.split(",") if tag] if isinstance(tags, str) else tags}


#: Seconds to wait for a node's first report. RabbitMQ's nodes report every five seconds.
_UNTIL_REPORTED, _BETWEEN_LOOKS = 10.0, 0.1


def _plugins(api: Management, _vhost: str | None, _columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield each node's enabled plugins, including implicitly enabled dependencies."""
    for node in _reported_nodes(api):
        enabled = set(node.get("enabled_plugins", ()))
        applications: dict[str, Any] = {each["name"]: each for each in node.get("applications", ())}
        running = {name for name in applications if name.startswith("rabbitmq_")} - {"rabbitmq_prelaunch"}
        for name in sorted(enabled | running):
            row = {key: applications.get(name, {}).get(key) for key in ("version", "description")}
            state = {"enabled": name in enabled, "running": name in applications}
            yield {"name": name, **row, **state, "node": node.get("name")}


def _reported_nodes(api: Management) -> list[Mapping[str, Any]]:
    """Return the nodes, once each running node has reported its applications.

    Raises:
        Unavailable: that took longer than twice the interval of RabbitMQ's reports.
    """
    deadline = time.monotonic() + _UNTIL_REPORTED
    while True:
        nodes: list[Mapping[str, Any]] = list(management.nodes(api))
        silent = [node["name"] for node in nodes if node.get("running", True) and "applications" not in node]
        if not silent:
            return nodes
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the plugins of {', '.join(silent)} are not known",
                "a node reports them some seconds after its start, unless its metrics collector is disabled",
            )
        time.sleep(_BETWEEN_LOOKS)


QUEUES = Listing(
    "queues",
    _columns("""
        name vhost type durable auto_delete exclusive arguments policy operator_policy effective_policy_definition
        state node leader members online consumers consumer_capacity consumer_utilisation exclusive_consumer_tag
        single_active_consumer_tag messages messages_ready messages_unacknowledged messages_delayed messages_dlx
        messages_ram messages_persistent
        messages_ready_ram messages_unacknowledged_ram message_bytes message_bytes_ready message_bytes_unacknowledged
        message_bytes_ram message_bytes_persistent memory head_message_timestamp idle_since segments
        publish_rate=message_stats.publish_details.rate deliver_rate=message_stats.deliver_get_details.rate
        ack_rate=message_stats.ack_details.rate redeliver_rate=message_stats.redeliver_details.rate
    """),
    ("name", "messages"),
    _queues,
)
EXCHANGES = Listing(
    "exchanges",
    _columns("""
        name vhost type durable auto_delete internal arguments policy
        publish_in_rate=message_stats.publish_in_details.rate publish_out_rate=message_stats.publish_out_details.rate
    """),
    ("name", "type"),
    management.exchanges,
)
BINDINGS = Listing(
    "bindings",
    _columns("""
        source_name=source source_kind==exchange destination_name=destination destination_kind=destination_type
        routing_key arguments vhost properties_key
    """),
    ("source_name", "source_kind", "destination_name", "destination_kind", "routing_key", "arguments"),
    management.bindings,
)
CONSUMERS = Listing(
    "consumers",
    _columns("""
        queue_name=queue.name vhost=queue.vhost channel=channel_details.name
        connection=channel_details.connection_name user=channel_details.user peer_host=channel_details.peer_host
        peer_port=channel_details.peer_port consumer_tag ack_required prefetch_count exclusive active activity_status
        arguments
    """),
    ("queue_name", "consumer_tag", "user", "ack_required", "prefetch_count", "activity_status"),
    management.consumers,
)
CONNECTIONS = Listing(
    "connections",
    _columns("""
        name vhost user state protocol host port peer_host peer_port channels channel_max frame_max timeout connected_at
        client_properties recv_oct recv_cnt send_oct send_cnt send_pend ssl ssl_protocol auth_mechanism node
        product=client_properties.product connection_name=client_properties.connection_name
    """),
    ("name", "user", "vhost", "state", "channels", "product"),
    management.connections,
    of_vhost=False,
)
CHANNELS = Listing(
    "channels",
    _columns("""
        name number vhost user state confirm transactional consumer_count prefetch_count global_prefetch_count
        messages_unacknowledged messages_unconfirmed messages_uncommitted acks_uncommitted node
        connection=connection_details.name publish_rate=message_stats.publish_details.rate
        deliver_rate=message_stats.deliver_get_details.rate
    """),
    ("name", "user", "consumer_count", "prefetch_count", "messages_unacknowledged"),
    management.channels,
    of_vhost=False,
)
VHOSTS = Listing(
    "vhosts",
    _columns("""
        name description tags tracing cluster_state default_queue_type messages messages_ready messages_unacknowledged
    """),
    ("name", "description", "messages_ready", "messages_unacknowledged"),
    lambda api, _vhost, columns: sorted(management.vhosts(api, {*columns, "name"}), key=lambda vhost: vhost["name"]),
    of_vhost=False,
)
USERS = Listing("users", _columns("user=name tags"), ("user", "tags"), _users, of_vhost=False)
PERMISSIONS = Listing(
    "permissions",
    _columns("user vhost configure write read"),
    ("user", "configure", "write", "read"),
    lambda api, vhost, _columns: sorted(
        management.permissions(api, vhost), key=lambda each: (each["user"], each["vhost"])
    ),
)
PLUGINS = Listing(
    "plugins",
    _columns("name version description enabled running node"),
    ("name", "version", "enabled", "running", "description"),
    _plugins,
    of_vhost=False,
)


def _enabled(plugin: str, items: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the items that a plugin's part of the management API lists.

    Raises:
        NotFound: the plugin is not enabled.
    """
    try:
        yield from items
    except NotFound as error:
        hint = f"{pasteable('plugin enable', plugin)}, or on the broker's machine: rabbitmq-plugins enable {plugin}"
        raise NotFound(f"the plugin {plugin} is not enabled", hint) from error


def _without_secrets(value: Any) -> Any:
    """Return the value of a parameter without the passwords in its URIs."""
    if isinstance(value, Mapping):
        return {name: _without_secrets(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    return hide_passwords(value) if isinstance(value, str) else value


def _parameters(api: Management, vhost: str | None, _columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for parameter in management.parameters(api, vhost):
        yield {**parameter, "value": _without_secrets(parameter.get("value"))}


def _deprecated(api: Management, _vhost: str | None, _columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    try:
        used = {feature["name"] for feature in api.items("deprecated-features/used")}
    except NotFound as error:
        raise NotFound("this broker has no list of deprecated features", "RabbitMQ 3.13 and later have one") from error
    for feature in api.items("deprecated-features"):
        yield {**feature, "in_use": feature["name"] in used}


SHOVELS = Listing(
    "shovels",
    _columns("""
        name vhost type state reason node timestamp blocked_status src_protocol src_uri src_address src_queue
        src_exchange dest_protocol dest_uri dest_address dest_queue dest_exchange remaining forwarded
    """),
    ("name", "type", "state", "reason"),
    lambda api, vhost, _columns: map(
        _without_secrets, _enabled("rabbitmq_shovel_management", management.shovels(api, vhost))
    ),
)
FEDERATION = Listing(
    "federation",
    _columns("upstream vhost type exchange queue upstream_exchange upstream_queue status error uri node timestamp"),
    ("upstream", "type", "exchange", "queue", "status", "error"),
    lambda api, vhost, _columns: map(
        _without_secrets, _enabled("rabbitmq_federation_management", management.federation_links(api, vhost))
    ),
)
PARAMETERS = Listing("parameters", _columns("component name vhost value"), ("component", "name", "value"), _parameters)
FEATURE_FLAGS = Listing(
    "feature-flags",
    _columns("name state stability provided_by description=desc doc_url"),
    ("name", "state", "stability"),
    lambda api, _vhost, _columns: api.items("feature-flags"),
    of_vhost=False,
)
DEPRECATED = Listing(
    "deprecated",
    _columns("name state in_use deprecation_phase provided_by description=desc doc_url"),
    ("name", "state", "in_use", "deprecation_phase"),
    _deprecated,
    of_vhost=False,
)

LISTINGS = {
    each.things: each
    for each in (
        *(QUEUES, EXCHANGES, BINDINGS, CONSUMERS, CONNECTIONS, CHANNELS, VHOSTS, USERS, PERMISSIONS, PLUGINS),
        *(SHOVELS, FEDERATION, PARAMETERS, FEATURE_FLAGS, DEPRECATED),
    )
}


def in_order(rows: Iterable[Row], columns: Sequence[str]) -> list[Row]:
    """Sort rows by the given columns. `-messages` sorts in descending order. Missing values come last."""
    found = list(rows)
    for column in reversed(columns):
        name = column.removeprefix("-")
        found.sort(key=lambda row: _rank(row[name]), reverse=column.startswith("-"))
        found.sort(key=lambda row: row[name] is None)
    return found


def _rank(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, as_text(value))
