"""Rebuild a broker from what is stored."""

import logging
import shutil
from collections.abc import Collection
from typing import Any

from mqtool.broker.embedded.model.amqp_message import HeaderReader
from mqtool.broker.embedded.model.applied_policies import OPERATOR, USER, Policy
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import Exchange, Link
from mqtool.broker.embedded.model.queue import Queue, QueueDeclaration
from mqtool.broker.embedded.model.users import Permissions, TopicPermissions, User
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.broker.embedded.store.storage import STREAMS, Storage
from mqtool.codecs.field_tables import Table

log = logging.getLogger("mqtool.broker.embedded")


def recover(broker: Broker, storage: Storage) -> bool:
    """Put everything that is stored into the broker.

    Returns:
        Whether there was anything: a new directory has not even a virtual host.

    Raises:
        OSError: a definition is damaged.
    """
    try:
        return _recover(broker, storage)
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"the data directory is damaged: a definition in it cannot be read ({error!r})") from error


def _recover(broker: Broker, storage: Storage) -> bool:
    vhosts = dict(storage.definitions("vhost"))
    for name, value in vhosts.items():
        broker.vhosts[name] = VirtualHost(name, broker.clock, storage, broker.profile)
        broker.vhosts[name].description = str(value.get("description", ""))  # older versions store none
        broker.vhosts[name].limits = _limits(value)
    for name, value in storage.definitions("user"):
        broker.users[name] = _user(name, value)
    for name, value in storage.definitions("global_parameter"):
        broker.global_parameters[name] = str(value["json"])
    for kind in (USER, OPERATOR):
        for _, value in storage.definitions(kind):
            _policy(broker, kind, value)
    holders: dict[int, Queue | tuple[VirtualHost, Exchange]] = {}
    for _, value in storage.definitions("exchange"):
        vhost, exchange = _exchange(broker, value)
        storage.key_used(exchange.key)
        holders[exchange.key] = (vhost, exchange)
    for _, value in storage.definitions("queue"):
        queue = _queue(broker, value)
        storage.key_used(queue.key)
        holders[queue.key] = queue
        if queue.kind == "stream":
            _open_stream(queue, storage)
    _drop_strange_streams(storage, holders)
    for _, value in storage.definitions("binding"):
        _bind(broker, value)
    _restore(storage, holders)
    return bool(vhosts)


def _user(name: str, value: Table) -> User:
    stored: Any = value
    permissions = {vhost: Permissions(*patterns) for vhost, patterns in stored["permissions"].items()}
    password_hash = bytes.fromhex(stored["password_hash"]) or None
    topics: list[tuple[str, str, str, str]] = stored.get("topic_permissions", [])  # older versions store none
    return User(
        name,
        password_hash,
        list(stored["tags"]),
        permissions,
        stored["algorithm"],
        _limits(value),
        {(vhost, exchange): TopicPermissions(write, read) for vhost, exchange, write, read in topics},
    )


def _limits(value: Table) -> dict[str, int]:
    stored: Any = value.get("limits", {})  # older versions store none
    return {name: int(limit) for name, limit in stored.items()}


def _policy(broker: Broker, kind: str, value: Table) -> None:
    stored: Any = dict(value)
    broker.vhosts[stored.pop("vhost")].policies.restore(kind, Policy(**stored))


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
        QueueDeclaration(stored["name"], stored["arguments"], auto_delete=stored["auto_delete"]), int(stored["key"])
    )


def _open_stream(queue: Queue, storage: Storage) -> None:
    """Recover what is in a stream, and note how much of it could not be."""
    from mqtool.broker.embedded.model.stream_queue import Stream

    assert isinstance(queue, Stream)
    if queue.log.lost:
        damage = (
            f"the last {queue.log.lost} bytes of stream '{queue.name}' could not be read: nothing is lost if the "
            "broker was killed as it wrote them; else the disk has damaged them. They are kept in the data directory"
        )
        storage.damage = damage if storage.damage is None else f"{storage.damage}; {damage}"


def _drop_strange_streams(storage: Storage, holders: Collection[int]) -> None:
    """Delete the files of streams whose deletion was under way, so that no other stream gets them."""
    directory = storage.directory / STREAMS
    if not directory.exists():
        return
    for key in {int(stream.name) for stream in directory.iterdir()}.difference(holders):
        if storage.damage is None:
            shutil.rmtree(directory / str(key))
        else:
            # Its definition may be among what is damaged.
            storage.key_used(key)


def _bind(broker: Broker, value: Table) -> None:
    stored: Any = value
    vhost = broker.vhosts[stored["vhost"]]
    ends = vhost.queues if stored["to_queue"] else vhost.exchanges
    source, destination = vhost.exchanges[stored["source"]], ends[stored["destination"]]
    source.add(Link(source, destination, stored["routing_key"], stored["arguments"]))


def _restore(storage: Storage, holders: dict[int, Queue | tuple[VirtualHost, Exchange]]) -> None:
    orphans = []
    headers = HeaderReader()
    for stored in storage.entries():
        owner = holders.get(stored.holder)
        try:
            entry = stored.entry(headers)
        except (ValueError, TypeError) as error:
            log.error("message %d is damaged, and left in the data directory: %s", stored.row, error)
            continue
        if owner is None:
            orphans.append(stored.row)
        elif isinstance(owner, Queue):
            owner.restore(entry)
        else:
            vhost, exchange = owner
            vhost.hold_again(exchange, entry)
    if orphans:
        storage.forget_rows(orphans)
