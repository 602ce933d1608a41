"""Recovery of a broker from its data directory. All readable data is restored; the rest is reported and left there."""

import logging
import shutil
from collections.abc import Callable
from typing import Any

from mqtool.broker.embedded.model.amqp_message import DEEPEST, HeaderReader
from mqtool.broker.embedded.model.applied_policies import OPERATOR, USER, Policy
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import BrokerBinding, BrokerExchange
from mqtool.broker.embedded.model.footprint import of_global_parameter
from mqtool.broker.embedded.model.queue import BrokerQueue, enforce_limits
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.users import Permissions, TopicPermissions, User
from mqtool.broker.embedded.model.virtual_host import VhostLabels, VirtualHost
from mqtool.broker.embedded.store.database import STREAMS, definitions_of
from mqtool.broker.embedded.store.segment_files import SegmentDirectory
from mqtool.broker.embedded.store.storage import Storage
from mqtool.codecs.field_tables import Table

log = logging.getLogger("mqtool.broker.embedded")


def recover(broker: Broker, storage: Storage) -> None:
    """Restore the broker from its data directory. If the directory is new, create the defaults instead."""
    if storage.database.is_new:
        # All in one transaction, in case the broker is killed during it.
        with storage.database.db as db:
            db.execute("BEGIN")
            broker.create_defaults()
            storage.database.mark_as_used()
    else:
        _Recovery(broker, storage).run()


class _Recovery:
    """Restores definitions, then messages. Reports unreadable definitions and streams in `Storage.damage`."""

    def __init__(self, broker: Broker, storage: Storage) -> None:
        self._broker = broker
        self._storage = storage
        # Queues and delayed exchanges by key; each stored message has the key of its queue or exchange.
        self._holders: dict[int, BrokerQueue | tuple[VirtualHost, BrokerExchange]] = {}
        self._unreadable: list[str] = []

    def run(self) -> None:
        for kind, restore in (
            ("vhost", self._vhost),
            ("user", self._user),
            ("global_parameter", self._global_parameter),
            (USER, lambda stored: self._policy(USER, stored)),
            (OPERATOR, lambda stored: self._policy(OPERATOR, stored)),
            ("exchange", self._exchange),
            ("queue", self._queue),
            ("binding", self._binding),
        ):
            self._restore_all(kind, restore)
        if self._unreadable:
            self._report(
                f"definitions could not be read: {', '.join(self._unreadable)}; they are left in the data directory"
            )
        self._check_stream_files()
        self._restore_messages()

    def _report(self, damage: str) -> None:
        before = self._storage.damage
        self._storage.damage = damage if before is None else f"{before}; {damage}"

    def _key_used(self, key: int) -> None:
        self._storage.last_key = max(self._storage.last_key, key)

    def _restore_all(self, kind: str, restore: Callable[[Any], None]) -> None:
        for key, value in definitions_of(self._storage.database.db, kind):
            try:
                if value is None:
                    raise ValueError("damaged")
                restore(value)
            except OSError:
                raise
            except Exception as error:
                # One unreadable definition must not prevent the recovery of the rest.
                log.error("a definition cannot be read: %s %a: %r", kind, key, error)
                self._unreadable.append(_described(kind, value))

    def _vhost(self, stored: Any) -> None:
        vhost = VirtualHost(
            stored["name"], self._broker.clock, self._storage, self._broker.profile, self._broker.announce
        )
        vhost.description = str(stored["description"])
        vhost.limits = _limits(stored)
        tags = tuple(map(str, stored["tags"]))
        vhost.labels = VhostLabels(tags, str(stored["default_queue_type"]), bool(stored["protected"]))
        self._broker.vhosts[vhost.name] = vhost

    def _user(self, stored: Any) -> None:
        self._broker.users[stored["name"]] = User(
            stored["name"],
            bytes.fromhex(stored["password_hash"]) or None,
            list(stored["tags"]),
            {vhost: Permissions(*patterns) for vhost, patterns in stored["permissions"].items()},
            stored["algorithm"],
            _limits(stored),
            {
                (vhost, exchange): TopicPermissions(write, read)
                for vhost, exchange, write, read in stored["topic_permissions"]
            },
        )

    def _global_parameter(self, stored: Any) -> None:
        name, text = stored["name"], str(stored["json"])
        self._broker.global_parameters[name] = text
        self._broker.ledger.hold_bytes(of_global_parameter(name, text), definition=True)

    def _policy(self, kind: str, stored: Any) -> None:
        vhost = self._broker.vhosts[stored.pop("vhost")]
        policy = Policy(**stored)
        if not all(map(isinstance, policy, (str, str, dict, int | float, str))):  # only a later use would notice
            raise TypeError("damaged")
        vhost.policies.restore(kind, policy)

    def _exchange(self, stored: Any) -> None:
        key = int(stored["key"])
        self._key_used(key)
        exchange = BrokerExchange(
            stored["name"],
            stored["kind"],
            durable=True,
            auto_delete=stored["auto_delete"],
            internal=stored["internal"],
            arguments=stored["arguments"],
            key=key,
        )
        vhost = self._broker.vhosts[stored["vhost"]]
        vhost.add_exchange(exchange)
        self._holders[key] = (vhost, exchange)

    def _queue(self, stored: Any) -> None:
        key = int(stored["key"])
        self._key_used(key)
        vhost = self._broker.vhosts[stored["vhost"]]
        declared = QueueDeclaration(stored["name"], stored["arguments"], auto_delete=stored["auto_delete"])
        queue = vhost.add_queue(declared, key)
        self._holders[key] = queue
        if queue.kind == "stream":
            self._open_stream(queue)

    def _open_stream(self, queue: BrokerQueue) -> None:
        """Open the log of a stream, and report any unreadable bytes at its end."""
        from mqtool.broker.embedded.model.stream_queue import StreamQueue

        assert isinstance(queue, StreamQueue)
        if queue.log.lost:
            self._report(
                f"the last {queue.log.lost} bytes of stream '{queue.name}' could not be read: nothing is lost if the "
                "broker was killed as it wrote them; else the disk has damaged them. They are kept in the data "
                "directory"
            )

    def _binding(self, stored: Any) -> None:
        vhost = self._broker.vhosts[stored["vhost"]]
        destinations = vhost.queues if stored["to_queue"] else vhost.exchanges
        source, destination = vhost.exchanges[stored["source"]], destinations[stored["destination"]]
        binding = BrokerBinding(source, destination, stored["routing_key"], stored["arguments"])
        source.add(binding)
        self._broker.ledger.hold_bytes(binding.footprint, definition=True)

    def _check_stream_files(self) -> None:
        """Delete the files of deleted streams, unless data is damaged; warn about files the broker did not create."""
        directory = self._storage.directory / STREAMS
        foreign = []
        for path in sorted(directory.iterdir()) if directory.exists() else []:
            if not (path.name.isascii() and path.name.isdigit() and path.is_dir()):
                foreign.append(path)
                continue
            foreign += SegmentDirectory(path).foreign()
            if int(path.name) not in self._holders:
                self._delete_stream_files(int(path.name))
        for path in foreign:
            log.warning("%a is not a file of the broker: it is ignored", str(path))

    def _delete_stream_files(self, key: int) -> None:
        if self._storage.damage is None:
            shutil.rmtree(self._storage.directory / STREAMS / str(key))
        else:
            # The stream may not have been deleted at all: its definition may be among the damaged data.
            self._key_used(key)

    def _restore_messages(self) -> None:
        orphans = []
        headers = HeaderReader(DEEPEST)
        for stored in self._storage.entries():
            holder = self._holders.get(stored.holder)
            try:
                entry = stored.entry(headers)
            except (ValueError, TypeError) as error:
                log.error("message %d is damaged, and left in the data directory: %s", stored.row, error)
                continue
            if holder is None:  # the message's queue was deleted, or the definition of its queue is damaged
                self._key_used(stored.holder)
                orphans.append(stored.row)
            elif isinstance(holder, BrokerQueue):
                holder.restore(entry)
            else:
                vhost, exchange = holder
                vhost.hold_again(exchange, entry)
            if entry.expires_at is not None and entry.expires_at != stored.due:
                self._storage.expires_earlier(entry.row, entry.expires_at)
        for holder in self._holders.values():
            if isinstance(holder, BrokerQueue) and holder.kind != "stream" and holder.options.limited:
                enforce_limits(holder)
        for row in orphans if not self._unreadable else ():
            self._storage.removed(row)


def _limits(stored: Any) -> dict[str, int]:
    return {name: int(limit) for name, limit in stored["limits"].items()}


def _described(kind: str, value: Table | None) -> str:
    """Describe a definition in words: its kind and, if it could be read, its name."""
    kind, name = kind.replace("_", " "), None if value is None else value.get("name")
    article = "an" if kind.startswith(("exchange", "operator")) else "a"
    return f"{article} {kind}" if name is None else f"{kind} {name!a}"
