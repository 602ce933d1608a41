"""Metrics for Prometheus, under the names, types and labels of RabbitMQ's plugin rabbitmq_prometheus.

https://www.rabbitmq.com/docs/prometheus

What the embedded broker does not count is left out. There is no login, as in RabbitMQ.
"""

import resource
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from http import HTTPStatus
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, cast

from mqtool.broker.embedded.http.http_server import HttpAnswer, HttpError, HttpRequest, check_origin
from mqtool.broker.embedded.http.node_routes import open_descriptors, resident_bytes
from mqtool.broker.embedded.http.route_table import AnyConnection, missing
from mqtool.broker.embedded.http.session_routes import sessions_of
from mqtool.broker.embedded.model.broker import LOW_ON_DISK, LOW_ON_MEMORY, NODE, Broker
from mqtool.broker.embedded.model.consumers import Traffic
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.stream_queue import StreamQueue
from mqtool.broker.embedded.model.totals import AMQP091, AMQP10, QUEUE_TYPES, STREAM, Publishes
from mqtool.broker.embedded.wire.amqp_channel import BrokerChannel
from mqtool.broker.embedded.wire.amqp_connection import BrokerConnection

if TYPE_CHECKING:
    from mqtool.broker.embedded.streaming.stream_connection import StreamConnection

#: The address that metrics are served on, whatever the broker's other addresses are: they need no login.
HOST = "127.0.0.1"

#: After this many queues, other clients get a turn.
_AT_ONCE = 200

Number = int | float
Sample = tuple[str, Number]


class Metric(NamedTuple):
    """A metric: its name without the prefix `rabbitmq_`, its type, and a sentence about it."""

    name: str
    kind: str
    about: str

    def lines(self, samples: Iterable[Sample]) -> Iterator[str]:
        """Yield the metric in Prometheus's text format. Each sample has its labels, encoded, and a value."""
        yield f"# TYPE rabbitmq_{self.name} {self.kind}\n# HELP rabbitmq_{self.name} {self.about}\n"
        for labels, value in samples:
            yield f"rabbitmq_{self.name}{labels} {value}\n"


def labels(**values: str) -> str:
    """Encode the labels of a sample."""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items()) + "}" if values else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _consumers_of(queue: BrokerQueue) -> int:
    return len(queue.consumers) + (queue.log.subscriptions if isinstance(queue, StreamQueue) else 0)


def _but_of_streams(figure: Callable[[BrokerQueue], Number]) -> Callable[[BrokerQueue], Number | None]:
    return lambda queue: None if isinstance(queue, StreamQueue) else figure(queue)


_BYTES = "Size of the bodies of messages, in bytes: "
#: The figures of queues. A figure that is None is left out.
_OF_QUEUES: tuple[tuple[Metric, Callable[[BrokerQueue], Number | None]], ...] = (
    (Metric("queue_messages_ready", "gauge", "Messages ready to be delivered"), len),
    (Metric("queue_messages_unacked", "gauge", "Messages delivered but not acknowledged"), lambda each: each.unacked),
    (
        Metric("queue_messages", "gauge", "Ready and unacknowledged messages"),
        lambda each: len(each) + each.unacked + each.delayed + len(each.dead_letters),
    ),
    (Metric("queue_consumers", "gauge", "Consumers of a queue"), _consumers_of),
    (
        Metric("queue_consumer_utilisation", "gauge", "Same as consumer capacity"),
        _but_of_streams(lambda each: 1.0 if len(each.consumers) else 0),
    ),
    (
        Metric("queue_messages_bytes", "gauge", f"{_BYTES}ready and unacknowledged"),
        _but_of_streams(lambda each: each.backlog.body_bytes + each.unacked_bytes),
    ),
    (
        Metric("queue_messages_ready_bytes", "gauge", f"{_BYTES}ready"),
        _but_of_streams(lambda each: each.backlog.body_bytes),
    ),
    (
        Metric("queue_messages_unacked_bytes", "gauge", f"{_BYTES}unacknowledged"),
        _but_of_streams(lambda each: each.unacked_bytes),
    ),
)
#: The figures of channels.
_OF_CHANNELS: tuple[tuple[Metric, Callable[[BrokerChannel], Number]], ...] = (
    (Metric("channel_consumers", "gauge", "Consumers on a channel"), lambda each: len(each.deliveries.subscriptions)),
    (
        Metric("channel_messages_unacked", "gauge", "Delivered but not yet acknowledged messages"),
        lambda each: len(each.deliveries.unacked),
    ),
    (
        Metric("channel_messages_unconfirmed", "gauge", "Published but not yet confirmed messages"),
        lambda each: 0 if each.confirms is None else len(each.confirms),
    ),
    (
        Metric("channel_messages_uncommitted", "gauge", "Messages published in a transaction, not yet committed"),
        lambda each: 0 if each.transaction is None else len(each.transaction.publishes),
    ),
    (
        Metric("channel_acks_uncommitted", "gauge", "Acknowledgements in a transaction, not yet committed"),
        lambda each: 0 if each.transaction is None else len(each.transaction.acked),
    ),
    (Metric("consumer_prefetch", "gauge", "Prefetch limit of each consumer"), lambda each: each.deliveries.prefetch),
    (
        Metric("channel_prefetch", "gauge", "Prefetch limit of all consumers of a channel together"),
        lambda each: each.deliveries.global_prefetch,
    ),
)
_PUBLISHED = Metric("channel_messages_published_total", "counter", "Messages published to an exchange on a channel")
#: The figures of connections, whose label is called `channel` too in RabbitMQ.
_OF_CONNECTIONS: tuple[tuple[Metric, Callable[[AnyConnection], Number]], ...] = (
    (
        Metric("connection_incoming_bytes_total", "counter", "Bytes received on a connection"),
        lambda each: each.received_bytes,
    ),
    (Metric("connection_outgoing_bytes_total", "counter", "Bytes sent on a connection"), lambda each: each.sent_bytes),
    (Metric("connection_channels", "gauge", "Channels on a connection"), lambda each: len(each.channels)),
)
_OF_PUBLISHERS: tuple[tuple[Metric, Callable[[Publishes], Number]], ...] = (
    (
        Metric("global_messages_received_total", "counter", "Messages received from publishers"),
        lambda each: each.received,
    ),
    (
        Metric("global_messages_received_confirm_total", "counter", "Messages received that are to be confirmed"),
        lambda each: each.with_confirm,
    ),
    (Metric("global_messages_routed_total", "counter", "Messages routed to queues"), lambda each: each.routed),
    (
        Metric("global_messages_unroutable_dropped_total", "counter", "Unroutable messages that were dropped"),
        lambda each: each.dropped,
    ),
    (
        Metric("global_messages_unroutable_returned_total", "counter", "Unroutable messages that were returned"),
        lambda each: each.returned,
    ),
    (
        Metric("global_messages_confirmed_total", "counter", "Messages confirmed to publishers"),
        lambda each: each.confirmed,
    ),
)
_OF_DELIVERIES: tuple[tuple[Metric, Callable[[Traffic], Number]], ...] = (
    (Metric("global_messages_delivered_total", "counter", "Messages delivered"), lambda each: each.delivered),
    (
        Metric("global_messages_delivered_consume_manual_ack_total", "counter", "Messages to be acknowledged"),
        lambda each: each.delivered - each.delivered_no_ack - each.got - each.got_no_ack,
    ),
    (
        Metric("global_messages_delivered_consume_auto_ack_total", "counter", "Messages acknowledged automatically"),
        lambda each: each.delivered_no_ack,
    ),
    (
        Metric("global_messages_delivered_get_manual_ack_total", "counter", "Messages sent by basic.get"),
        lambda each: each.got,
    ),
    (
        Metric("global_messages_delivered_get_auto_ack_total", "counter", "Messages sent by basic.get without ack"),
        lambda each: each.got_no_ack,
    ),
    (Metric("global_messages_redelivered_total", "counter", "Messages redelivered"), lambda each: each.redelivered),
    (
        Metric("global_messages_acknowledged_total", "counter", "Messages acknowledged by consumers"),
        lambda each: each.acknowledged,
    ),
)


class PrometheusServer:
    """The handler of an HttpServer for /metrics and /metrics/per-object.

    Args:
        broker: the broker.
        connections: the broker's open connections, one collection per protocol.
    """

    def __init__(self, broker: Broker, *connections: Collection[AnyConnection]) -> None:
        self._broker = broker
        self._by_protocol = connections

    def check(self, request: HttpRequest) -> None:
        """Raise HttpError 403 or 421 if a web page sent the request."""
        check_origin(request.headers, HOST)

    async def stored(self) -> None:
        """Return at once: no request changes anything."""

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Return the metrics; raise HttpError 404 or 405 for any other request."""
        if request.path not in (["metrics"], ["metrics", "per-object"]):
            missing()
        if request.method not in ("GET", "HEAD"):
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "Method Not Allowed")
        return HttpAnswer(HTTPStatus.OK, text=self._metrics(per_object=len(request.path) > 1))

    def _metrics(self, *, per_object: bool) -> Iterator[str]:
        """Yield all metrics in short steps. What changes in between may be counted differently in two metrics."""
        broker, connections = self._broker, self._opened()
        queues = [queue for vhost in broker.vhosts.values() for queue in vhost.queues.values()]
        yield from _of_node(broker, alarms=not per_object)
        yield from _per_queue(queues) if per_object else _of_all_queues(queues)
        yield from _of_clients(connections, per_object=per_object)
        if broker.profile.speaks_amqp10:
            yield from _of_exchanges(broker, per_object=per_object)
        for name, about, count in (
            ("connections", "Connections currently open", len(connections)),
            ("channels", "Channels currently open", sum(len(each.channels) for each in connections)),
            ("consumers", "Consumers currently connected", sum(map(_consumers_of, queues))),
            ("queues", "Queues available", len(queues)),
        ):
            yield from Metric(name, "gauge", about).lines([("", count)])
        if per_object and broker.profile.names_endpoint:
            yield from _queue_info(queues)
        yield from _identity(broker, "per-object" if per_object else "aggregated")
        yield from _of_protocols(broker, self._opened())

    def _opened(self) -> list[AnyConnection]:
        return [each for several in self._by_protocol for each in several if each.is_open]


def _of_node(broker: Broker, *, alarms: bool) -> Iterator[str]:
    low_on, limit = set(broker.alarms.values()), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for name, reason in (("free_disk_space", LOW_ON_DISK), ("memory_used", LOW_ON_MEMORY)) if alarms else ():
        about = f"is 1 if the alarm is in effect: {reason}"
        yield from Metric(f"alarms_{name}_watermark", "untyped", about).lines([("", int(reason in low_on))])
    for name, about, value in (
        ("process_open_fds", "Open file descriptors", open_descriptors(limit)),
        ("process_max_fds", "Limit of open file descriptors", limit),
        ("process_resident_memory_bytes", "Memory used, in bytes", resident_bytes()),
        ("resident_memory_limit_bytes", "Memory limit of messages and clients, in bytes", broker.memory_limit),
        ("disk_space_available_bytes", "Free disk space, in bytes", broker.ledger.disk_free()),
        ("disk_space_available_limit_bytes", "Limit of free disk space, in bytes", broker.disk_free_limit),
        ("erlang_uptime_seconds", "Node uptime", (broker.clock.now() - broker.started_at) / 1000),
    ):
        yield from Metric(name, "gauge", about).lines([("", value)])
    logins = broker.logins
    protocols = list(dict.fromkeys(protocol for protocol, _ in logins))
    for name, outcomes in (("", (True, False)), ("succeeded_", (True,)), ("failed_", (False,))):
        metric = Metric(f"auth_attempts_{name}total", "counter", "Authentication attempts")
        counts = [(labels(protocol=each), sum(logins[each, is_in] for is_in in outcomes)) for each in protocols]
        yield from metric.lines(counts)


def _per_queue(queues: list[BrokerQueue]) -> Iterator[str]:
    named = []
    for queue in queues:
        named.append((labels(vhost=queue.vhost, queue=queue.name), queue))
        if len(named) % _AT_ONCE == 0:
            yield ""
    capacity = Metric("queue_consumer_capacity", "gauge", "Share of time in which consumers accept messages")
    utilisation = {metric.name: figure for metric, figure in _OF_QUEUES}["queue_consumer_utilisation"]
    for metric, figure in (*_OF_QUEUES, (capacity, utilisation)):
        figures = ((name, figure(queue)) for name, queue in named)
        yield from metric.lines((name, value) for name, value in figures if value is not None)


def _of_all_queues(queues: list[BrokerQueue]) -> Iterator[str]:
    sums: list[Number] = [0] * len(_OF_QUEUES)
    for number, queue in enumerate(queues):
        for index, (_, figure) in enumerate(_OF_QUEUES):
            sums[index] += figure(queue) or 0
        if number % _AT_ONCE == 0:
            yield ""
    for (metric, _), total in zip(_OF_QUEUES, sums, strict=True):
        yield from metric.lines([("", total)])


def _queue_info(queues: list[BrokerQueue]) -> Iterator[str]:
    metric = Metric("queue_info", "gauge", "Always 1; the labels are details of a queue")
    yield from metric.lines(
        (labels(vhost=each.vhost, queue=each.name, queue_type=_type(each.kind), membership="leader"), 1)
        for each in queues
    )


def _type(kind: str) -> str:
    return f"rabbit_{kind}_queue"


def _channels_of(connections: Iterable[AnyConnection]) -> list[BrokerChannel]:
    """Return the AMQP 0-9-1 channels: there can be 2,000 for each connection."""
    return [
        channel
        for each in connections
        if isinstance(each, BrokerConnection)
        for channel in each.channels.values()
        if channel.state == "open"
    ]


def _of_clients(connections: list[AnyConnection], *, per_object: bool) -> Iterator[str]:
    channels = _channels_of(connections)
    yield from _per_channel(channels) if per_object else _of_all_channels(channels)
    for of_connection, about in _OF_CONNECTIONS:
        samples = [(labels(channel=each.name), about(each)) for each in connections]
        yield from of_connection.lines(samples if per_object else [("", sum(value for _, value in samples))])


def _per_channel(channels: list[BrokerChannel]) -> Iterator[str]:
    named = []
    for channel in channels:
        # In RabbitMQ, the label is the id of a process.
        named.append((f"{channel.session.name} ({channel.number})", channel))
        if len(named) % _AT_ONCE == 0:
            yield ""
    for metric, figure in _OF_CHANNELS:
        yield from metric.lines((labels(channel=name), figure(channel)) for name, channel in named)
    yield from _PUBLISHED.lines(
        (labels(channel=name, vhost=channel.vhost.name, exchange=exchange), count)
        for name, channel in named
        for exchange, count in [*channel.published.items()]
    )


def _of_all_channels(channels: list[BrokerChannel]) -> Iterator[str]:
    for metric, figure in _OF_CHANNELS:
        yield from metric.lines([("", sum(map(figure, channels)))])
    yield from _PUBLISHED.lines([("", sum(sum(each.published.values()) for each in channels))])


def _of_exchanges(broker: Broker, *, per_object: bool) -> Iterator[str]:
    metric = Metric("exchange_messages_published_total", "counter", "Messages published to an exchange")
    found = [
        (labels(vhost=vhost.name, exchange=each.name), each.published_in)
        for vhost in broker.vhosts.values()
        for each in vhost.exchanges.values()
        if each.published_in
    ]
    yield from metric.lines(found if per_object else [("", sum(count for _, count in found))])


def _identity(broker: Broker, endpoint: str) -> Iterator[str]:
    version = broker.profile.version
    build = labels(
        rabbitmq_version=version, prometheus_plugin_version=version, prometheus_client_version="", erlang_version=""
    )
    names = {"rabbitmq_node": NODE, "rabbitmq_cluster": broker.cluster_name}
    names["rabbitmq_cluster_permanent_id"] = broker.cluster_name
    if broker.profile.names_endpoint:
        names["rabbitmq_endpoint"] = endpoint
    yield from Metric("build_info", "untyped", "RabbitMQ version that the broker behaves like").lines([(build, 1)])
    yield from Metric("identity_info", "untyped", "Names of the node and its cluster").lines([(labels(**names), 1)])


def _of_protocols(broker: Broker, connections: list[AnyConnection]) -> Iterator[str]:
    """Yield the metrics of the whole broker, by protocol and, for deliveries, by queue type.

    All is counted in the first step: a counter would decrease later if a channel or a queue were gone in between, and
    were counted twice.
    """
    channels = _channels_of(connections)
    is_there = {AMQP091: True, AMQP10: broker.profile.speaks_amqp10, STREAM: "stream" in broker.listeners}
    protocols = [name for name, has in is_there.items() if has]
    published = {name: Publishes(**broker.totals.published[name].__dict__) for name in protocols}
    published[AMQP091].add(_published_on(channels))
    clients, delivered = _clients(connections, channels), _delivered(broker)
    for of_publishers, count in _OF_PUBLISHERS:
        yield from of_publishers.lines([(labels(protocol=name), count(published[name])) for name in protocols])
    for number, what in enumerate(("publishers", "consumers")):
        metric = Metric(f"global_{what}", "gauge", f"Current number of {what}")
        yield from metric.lines((labels(protocol=name), clients[name][number]) for name in protocols)
    rows = [(name, kind) for name in protocols for kind in QUEUE_TYPES if name != STREAM or kind == "stream"]
    for of_deliveries, figure in _OF_DELIVERIES:
        yield from of_deliveries.lines((_by_type(*row), figure(delivered[row])) for row in rows)
    empty = Metric("global_messages_get_empty_total", "counter", "How often basic.get found no message")
    found = broker.totals.found_empty
    yield from empty.lines((_by_type(name, kind), found[kind] if name == AMQP091 else 0) for name, kind in rows)


def _published_on(channels: list[BrokerChannel]) -> Publishes:
    """Add the counts of all channels. In a loop over Channel.publishes(), this would take five times as long."""
    publishers = [each for each in channels if each.published]
    confirms = [each.confirms for each in publishers if each.confirms is not None]
    return Publishes(
        received=sum(sum(each.published.values()) for each in publishers),
        routed=sum(each.routed for each in publishers),
        with_confirm=sum(len(each) + each.settled for each in confirms),
        confirmed=sum(each.settled - each.refused for each in confirms),
    )


def _by_type(protocol: str, kind: str) -> str:
    return labels(protocol=protocol, queue_type=_type(kind))


def _clients(connections: list[AnyConnection], channels: list[BrokerChannel]) -> dict[str, tuple[int, int]]:
    """Count the publishers and the consumers of each protocol. A channel is a publisher once it has published."""
    found: Counter[tuple[str, int]] = Counter()
    found[AMQP091, 0] = sum(bool(channel.published) for channel in channels)
    found[AMQP091, 1] = sum(len(channel.deliveries.subscriptions) for channel in channels)
    for connection in connections:
        for session in sessions_of(connection):
            found[AMQP10, 0] += len(session.incoming)
            found[AMQP10, 1] += len(session.outgoing)
        if connection.protocol == "stream":
            of_streams = cast("StreamConnection", connection)
            found[STREAM, 0] += sum(1 for _ in of_streams.publishers)
            found[STREAM, 1] += sum(1 for _ in of_streams.subscriptions)
    return {name: (found[name, 0], found[name, 1]) for name in (AMQP091, AMQP10, STREAM)}


def _delivered(broker: Broker) -> dict[tuple[str, str], Traffic]:
    """Return the deliveries by protocol and queue type. Queues count those of AMQP 0-9-1 and 1.0 together."""
    totals = broker.totals
    found = {key: Traffic(**traffic.__dict__) for key, traffic in totals.delivered.items()}
    every: dict[str, list[Traffic]] = {kind: [totals.deleted[kind]] for kind in QUEUE_TYPES}
    for vhost in broker.vhosts.values():
        for kind, traffic in vhost.deleted_traffic.items():
            every[kind].append(traffic)
        for queue in vhost.queues.values():
            every[queue.kind].append(queue.traffic)
    for kind, several in every.items():
        over_amqp10 = found[AMQP10, kind]
        names = over_amqp10.__dict__
        found[AMQP091, kind] = Traffic(
            **{name: sum(map(attrgetter(name), several)) - getattr(over_amqp10, name) for name in names}
        )
    return found
