"""From what is stored to a broker as it was, and what is to be stored when it stops."""

from typing import Any

from mqtool.broker.embedded.backlog import Entry
from mqtool.broker.embedded.broker import Broker
from mqtool.broker.embedded.exchange import Exchange
from mqtool.broker.embedded.message import ContentHeader, Message
from mqtool.broker.embedded.queue import Queue
from mqtool.broker.embedded.store.storage import Storage, StoredEntry
from mqtool.broker.embedded.users import Permissions, User
from mqtool.broker.embedded.virtual_host import VirtualHost
from mqtool.routing.field_table import Table


def recover(broker: Broker, storage: Storage) -> bool:
    """Bring back what is stored.

    Returns:
        Whether there was anything: a new directory has not even a virtual host.
    """
    vhosts = dict(storage.definitions("vhost"))
    for name, value in vhosts.items():
        broker.vhosts[name] = VirtualHost(name, broker.clock, storage)
        broker.vhosts[name].description = str(value.get("description", ""))  # before there were any, nothing was stored
    for name, value in storage.definitions("user"):
        broker.users[name] = _user(name, value)
    holders: dict[int, Queue | tuple[VirtualHost, Exchange]] = {}
    for _, value in storage.definitions("exchange"):
        vhost, exchange = _exchange(broker, value)
        storage.key_used(exchange.key)
        holders[exchange.key] = (vhost, exchange)
    for _, value in storage.definitions("queue"):
        queue = _queue(broker, value)
        storage.key_used(queue.key)
        holders[queue.key] = queue
    for _, value in storage.definitions("binding"):
        _bind(broker, value)
    _restore(storage, holders)
    return bool(vhosts)


def _user(name: str, value: Table) -> User:
    stored: Any = value
    permissions = {vhost: Permissions(*patterns) for vhost, patterns in stored["permissions"].items()}
    return User(
        name, bytes.fromhex(stored["password_hash"]) or None, list(stored["tags"]), permissions, stored["algorithm"]
    )


def _exchange(broker: Broker, value: Table) -> tuple[VirtualHost, Exchange]:
    stored: Any = value
    exchange = Exchange(
        stored["name"],
        stored["kind"],
        durable=True,
        auto_delete=stored["auto_delete"],
        internal=stored["internal"],
        arguments=stored["arguments"],
        key=int(stored["key"]),
    )
    vhost = broker.vhosts[stored["vhost"]]
    vhost.add_exchange(exchange)
    return vhost, exchange


def _queue(broker: Broker, value: Table) -> Queue:
    stored: Any = value
    return broker.vhosts[stored["vhost"]].add_queue(
        stored["name"],
        durable=True,
        auto_delete=stored["auto_delete"],
        owner=None,
        arguments=stored["arguments"],
        key=int(stored["key"]),
    )


def _bind(broker: Broker, value: Table) -> None:
    stored: Any = value
    vhost = broker.vhosts[stored["vhost"]]
    ends = vhost.queues if stored["to_queue"] else vhost.exchanges
    vhost.exchanges[stored["source"]].bind(ends[stored["destination"]], stored["routing_key"], stored["arguments"])


def _restore(storage: Storage, holders: dict[int, Queue | tuple[VirtualHost, Exchange]]) -> None:
    delivering = {int(key) for key, _ in storage.definitions("delivering")}
    orphans = []
    for stored in storage.entries():
        row, holder = stored[:2]
        owner = holders.get(holder)
        entry = _entry(stored)
        if owner is None:
            orphans.append(row)
        elif isinstance(owner, Queue):
            entry.redelivered = entry.redelivered or holder in delivering
            owner.restore(entry)
        else:
            vhost, exchange = owner
            vhost.hold_again(exchange.name, entry)
    if orphans:
        storage.forget_rows(orphans)


def _entry(stored: StoredEntry) -> Entry:
    row, _, due, delivery_count, redelivered, address, header, body = stored
    # The row is the position: it counts up with every message of the broker, so also with those of one queue.
    entry = Entry(Message(address, ContentHeader(header), body), row, due)
    entry.row = row
    entry.delivery_count = delivery_count
    entry.redelivered = bool(redelivered)
    return entry


def write_down(broker: Broker, storage: Storage) -> None:
    """Before a clean stop: note which of the stored messages have been delivered before."""
    storage.seen(
        [
            entry
            for vhost in broker.vhosts.values()
            for queue in vhost.queues.values()
            for entry in queue.ready()
            if entry.row and entry.redelivered
        ]
    )
