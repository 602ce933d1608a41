"""A wiring as records, for programs: all of it, and none of it kept in memory."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict

from mqtool import management
from mqtool.inspection import definitions
from mqtool.inspection.wiring import (
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
from mqtool.management import Management
from mqtool.management.client import Json


def records(api: Management, vhost: str, *, only: Collection[str] = ()) -> Iterator[Json]:
    """Exchanges, who publishes to them, bindings, consumers and queues, each with its kind.

    Args:
        only: these exchanges and what they lead to; none for all.

    Raises:
        Unavailable, NotFound, AccessRefused: as wiring.look() does.
    """
    wiring = Wiring(vhost, {name: Node(exchange) for name, exchange in exchanges_of(api, vhost, only).items()})
    add_publishers(api, wiring)
    for name, node in wiring.exchanges.items():
        yield {"kind": "exchange", **node.exchange._asdict(), "published": asdict(node.published)}
        yield from (_publisher(publisher, name) for publisher in node.publishers)
    yield from (_publisher(publisher, None) for publisher in wiring.publishers)
    bound: set[str] = set()
    for binding in definitions.bindings(api, vhost, *(wiring.exchanges if only else ())):
        if binding.source in wiring.exchanges:
            yield {"kind": "binding", **definitions.as_json(binding)}
            if only and not binding.to_exchange:
                bound.add(binding.destination)
    consumers: Counter[str] = Counter()
    for consumer in management.consumers(api, vhost, CONSUMER_COLUMNS):
        queue = consumer["queue"]["name"]
        if not only or queue in bound:
            consumers[queue] += 1
            yield {"kind": "consumer", "queue": queue, **asdict(consumer_of(consumer))}
    arguments_of = definitions.queue_arguments(api, vhost)
    for view in management.queue_totals(api, vhost, QUEUE_COLUMNS):
        if not only or view["name"] in bound:
            state = asdict(queue_of(view, arguments_of(view))) | {"consumers": consumers[view["name"]]}
            del state["published"], state["delivered"]  # 'list queues' has them, and takes longer
            yield {"kind": "queue", **state}


def _publisher(publisher: Publisher, exchange: str | None) -> Json:
    return {"kind": "publisher", "exchange": exchange, **asdict(publisher)}
