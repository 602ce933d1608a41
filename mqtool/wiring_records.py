"""A wiring as records, for programs: all of it, and none of it kept in memory."""

from collections.abc import Collection, Iterator
from dataclasses import asdict

from mqtool import definitions, management
from mqtool.management import Management
from mqtool.management_views import Json
from mqtool.wiring import (
    CONSUMER_COLUMNS,
    QUEUE_COLUMNS,
    Node,
    Publisher,
    Wiring,
    add_publishers,
    consumer_of,
    exchanges_of,
    queue_of,
)


def records(api: Management, vhost: str, *, only: Collection[str] = ()) -> Iterator[Json]:
    """Exchanges, who publishes to them, bindings, queues and consumers, each with its kind.

    Args:
        only: these exchanges and what they lead to; none for all.

    Raises:
        Unavailable, NotFound, AccessRefused: as wiring.look() does.
    """
    wiring = Wiring(vhost, {name: Node(exchange) for name, exchange in exchanges_of(api, vhost, only).items()})
    add_publishers(api, wiring)
    for name, node in wiring.exchanges.items():
        yield {"kind": "exchange", **asdict(node.exchange), "published": asdict(node.published)}
        yield from (_publisher(publisher, name) for publisher in node.publishers)
    yield from (_publisher(publisher, None) for publisher in wiring.publishers)
    bound: set[str] = set()
    for binding in definitions.bindings(api, vhost):
        if binding.source in wiring.exchanges:
            yield {"kind": "binding", **binding.as_json()}
            if only and not binding.to_exchange:
                bound.add(binding.destination)
    for view in management.queues(api, vhost, QUEUE_COLUMNS):
        if not only or view["name"] in bound:
            yield {"kind": "queue", **asdict(queue_of(view))}
    for consumer in management.consumers(api, vhost, CONSUMER_COLUMNS):
        queue = consumer["queue"]["name"]
        if not only or queue in bound:
            yield {"kind": "consumer", "queue": queue, **asdict(consumer_of(consumer))}


def _publisher(publisher: Publisher, exchange: str | None) -> Json:
    return {"kind": "publisher", "exchange": exchange, **asdict(publisher)}
