"""How durable exchanges, queues and bindings are written down in the ledger."""

from mqtool.broker.embedded.model.exchange import Exchange, Link
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.queue import Queue
from mqtool.routing import canonical


def save_exchange(ledger: Ledger, vhost: str, exchange: Exchange) -> None:
    """Store a new durable exchange; gives it its key."""
    exchange.key = ledger.new_key()
    ledger.save(
        "exchange",
        f"{vhost}\0{exchange.name}",
        {
            "vhost": vhost,
            "name": exchange.name,
            "kind": exchange.kind,
            "auto_delete": exchange.auto_delete,
            "internal": exchange.internal,
            "arguments": exchange.arguments,
            "key": exchange.key,
        },
    )


def forget_exchange(ledger: Ledger, vhost: str, exchange: Exchange) -> None:
    """Delete a durable exchange."""
    ledger.forget("exchange", f"{vhost}\0{exchange.name}")


def save_queue(ledger: Ledger, queue: Queue) -> None:
    """Store a new durable queue; gives it its key."""
    queue.key = ledger.new_key()
    ledger.save(
        "queue",
        f"{queue.vhost}\0{queue.name}",
        {
            "vhost": queue.vhost,
            "name": queue.name,
            "auto_delete": queue.auto_delete,
            "arguments": queue.arguments,
            "key": queue.key,
        },
    )


def forget_queue(ledger: Ledger, queue: Queue) -> None:
    """Delete a durable queue."""
    ledger.forget("queue", f"{queue.vhost}\0{queue.name}")
    ledger.forget("delivering", str(queue.key))


def save_link(ledger: Ledger, vhost: str, link: Link) -> None:
    """Store a new binding between durable things."""
    ledger.save(
        "binding",
        _link_key(vhost, link),
        {
            "vhost": vhost,
            "source": link.source.name,
            "destination": link.destination.name,
            "to_queue": link.destination.destination_type == "queue",
            "routing_key": link.routing_key,
            "arguments": link.arguments,
        },
    )


def forget_link(ledger: Ledger, vhost: str, link: Link) -> None:
    """Delete a binding between durable things."""
    ledger.forget("binding", _link_key(vhost, link))


def _link_key(vhost: str, link: Link) -> str:
    names = (vhost, link.source.name, link.destination.destination_type, link.destination.name, link.routing_key)
    return "\0".join((*names, canonical(link.arguments).hex()))
