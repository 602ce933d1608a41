"""Defects that are planted into the broker, to prove that the simulation finds them.

Each defect replaces a piece of code in one file of the broker, while a separate process imports the file.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

_PACKAGE = "mqtool.broker.embedded"


@dataclass(frozen=True)
class Mutation:
    """A planted defect.

    Attributes:
        name: what the broker does wrong.
        path: the file, below `mqtool/broker/embedded`.
        old, new: the code, which must be in the file exactly once, and its replacement.
    """

    name: str
    path: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "drops a requeued message of a classic queue",
        "model/queue.py",
        "not self.profile.nack_counts)\n            self.backlog.put_back(entry)\n",
        "not self.profile.nack_counts)\n            _ = entry.position % 20 and self.backlog.put_back(entry)\n",
    ),
    Mutation(
        "does not mark a requeued message as redelivered",
        "model/queue.py",
        "            entry.redelivered = True\n",
        "            entry.redelivered = entry.redelivered or bool(entry.position % 10)\n",
    ),
    Mutation(
        "confirms before the sync",
        "store/storage.py",
        "        self.changes.syncing = group = group.unsynced()\n",
        "        self.changes.syncing = group = group.unsynced()\n"
        "        any(self._loop.call_soon(what) is None for what in group.waiting)\n"
        "        group.waiting = []\n",
    ),
    Mutation(
        "confirms before the last of several groups is written",
        "store/change_groups.py",
        "            self._begins()\n",
        "            pass\n",
    ),
    Mutation(
        "confirms although the sync failed",
        "store/storage.py",
        "            self._keep(group, error)\n            return\n        self.changes.syncing = ChangeGroup()",
        "            pass\n        self.changes.syncing = ChangeGroup()",
    ),
    Mutation(
        "forgets a binding when it restarts",
        "store/recovery.py",
        "        source.add(binding)",
        '        stored["source"] == "amq.topic" or source.add(binding)',
    ),
    Mutation(
        "forgets the arguments of a queue when it restarts",
        "store/recovery.py",
        'QueueDeclaration(stored["name"], stored["arguments"], ',
        'QueueDeclaration(stored["name"], {"x-queue-type": stored["arguments"].get("x-queue-type", "classic")}, ',
    ),
    Mutation(
        "gives AMQP 1.0 receivers one message more than their credit",
        "amqp10/outgoing_link.py",
        "flow.link_credit or 0), self.delivery_count), 0)",
        "flow.link_credit or 0), self.delivery_count) + 1, 0)",
    ),
    Mutation(
        "does not enforce the credit of AMQP 1.0 senders",
        "amqp10/incoming_link.py",
        "        if self.credit <= 0:\n",
        "        if self.credit < -1_000_000:\n",
    ),
    Mutation(
        "exceeds the prefetch limit by one",
        "wire/deliveries.py",
        "not self.prefetch or self.unacked < self.prefetch)",
        "not self.prefetch or self.unacked <= self.prefetch)",
    ),
    Mutation(
        "does not count an acknowledgement towards the prefetch limit",
        "wire/deliveries.py",
        "        subscription.unacked -= count\n        self.global_unacked",
        "        subscription.unacked -= count if self.last_tag % 5 else 0\n        self.global_unacked",
    ),
    Mutation(
        "loses the unacknowledged messages of a closed channel",
        "wire/deliveries.py",
        "            queue.requeue(entries, why)\n\n\ndef",
        "            queue.requeue(entries[1:], why)\n\n\ndef",
    ),
    Mutation(
        "acknowledges one delivery too many with multiple",
        "wire/deliveries.py",
        "takewhile(tag.__ge__",
        "takewhile((tag + 1).__ge__",
    ),
    Mutation(
        "requeues at the tail of the queue",
        "model/backlog.py",
        "        heappush(self._returned, (entry.position, entry))\n",
        "        heappush(self._returned, (entry.position + 2, entry))\n",
    ),
    Mutation(
        "lets a message expire late",
        "model/queue.py",
        "None if ttl is None else self.clock.now() + ttl)",
        "None if ttl is None else self.clock.now() + ttl * 100)",
    ),
    Mutation(
        "forgets the timer of the next message that expires",
        "model/queue.py",
        "            self._deliver(consumer, backlog.take())\n"
        "        if self._expiring:\n"
        "            self._arm_expiry()",
        "            self._deliver(consumer, backlog.take())",
    ),
    Mutation(
        "keeps one message more than max-length",
        "model/queue_arguments.py",
        "self.max_length is not None and messages > self.max_length)",
        "self.max_length is not None and messages > self.max_length + 1)",
    ),
    Mutation(
        "drops instead of dead-lettering when a queue is full",
        "model/queue.py",
        '                self._dead_letter(backlog.take(), "maxlen")',
        "                self.ledger.drop(backlog.take())",
    ),
    Mutation(
        "stores messages that it refuses",
        "model/queue.py",
        "            return False, False\n        properties",
        "            accepted = False\n        properties",
    ),
    Mutation(
        "dead-letters with the wrong reason",
        "model/queue.py",
        '            self._dead_letter(entry, "rejected")',
        '            self._dead_letter(entry, "expired")',
    ),
    Mutation(
        "keeps a dead letter in the data of its first queue",
        "model/queue.py",
        "            elif outcome is Outcome.TAKEN or self.deleted or not self.options.at_least_once:\n"
        "                self.ledger.drop(entry)",
        "            elif outcome is Outcome.TAKEN or self.deleted or not self.options.at_least_once:\n"
        "                self.ledger.set_aside(entry)",
    ),
    Mutation(
        "delivers to consumers that are not the single active one",
        "model/consumers.py",
        "            return only if not self.is_fading and only.ready() else None\n",
        "            return next((each for each in self.all if each.ready()), None)\n",
    ),
    Mutation(
        "ignores priorities",
        "model/backlog.py",
        "        for priority in self._descending:\n",
        "        for priority in reversed(self._descending):\n",
    ),
    Mutation(
        "ignores the delivery limit",
        "model/queue.py",
        "        if limit is not None and entry.delivery_count > limit:",
        "        if limit is not None and entry.delivery_count > limit + 60:",
    ),
    Mutation(
        "keeps acknowledged messages in memory",
        "model/queue.py",
        "        self.traffic.acknowledged += 1\n        self.ledger.drop(entry)",
        "        self.traffic.acknowledged += 1\n        self.ledger.removed(entry.row)",
    ),
    Mutation(
        "forgets to delete an acknowledged message from the disk",
        "store/storage.py",
        "            changes.next.removed.append(row)\n",
        "            changes.next.removed.append(row) if row % 7 else None\n",
    ),
    Mutation(
        "loses the second half of a group of writes that failed",
        "store/change_groups.py",
        "        self._full.appendleft(group)\n        self.syncing",
        "        group.added = dict([*group.added.items()][: len(group.added) // 2])\n"
        "        self._full.appendleft(group)\n"
        "        self.syncing",
    ),
    Mutation(
        "counts unacknowledged messages wrongly",
        "model/queue.py",
        "        self.unacked -= 1\n"
        "        self.unacked_bytes -= len(entry.message.body)\n"
        "        self.traffic.acknowledged",
        "        self.unacked_bytes -= len(entry.message.body)\n        self.traffic.acknowledged",
    ),
    Mutation(
        "publishes the messages of a transaction that was rolled back",
        "wire/basic_methods.py",
        "    channel.deliveries.put_back(_end_transaction(channel).deliveries())\n",
        "    tx_commit(channel, Tx.Commit())\n    return\n",
    ),
    Mutation(
        "sends stream readers messages that are not on disk",
        "store/storage.py",
        "                stream.prepare()\n        except Exception",
        "                stream.prepare()\n"
        "                stream.write = stream.commit if self._failing else stream.write\n"
        "        except Exception",
    ),
    Mutation(
        "deletes a released message before a stream has it on disk",
        "store/storage.py",
        "        if group.logs and group.removed:\n",
        "        if False:\n",
    ),
    Mutation(
        "writes a released message to queues before a stream has it on disk",
        "store/storage.py",
        "        if group.logs and group.removed:\n",
        "        if group.logs and group.removed:\n"
        "            try:\n"
        "                ChangeGroup(group.added).write_rows(self._db)\n"
        "            except sqlite3.Error as error:\n"
        "                return self._keep(group, error)\n"
        "            group.added = {}\n",
    ),
    Mutation(
        "reuses the offsets of a stream after a restart",
        "model/stream_log.py",
        "            end = header.offset + header.records\n",
        "            end = header.offset + max(header.records - 1, 0)\n",
    ),
    Mutation(
        "forgets the publishing ids of a stream when it restarts",
        "model/stream_log.py",
        "            for producer, publishing_id in tracking.publishing_ids.items():\n",
        "            for producer, publishing_id in ():\n",
    ),
    Mutation(
        "deletes the newest segments of a stream instead of the oldest",
        "model/stream_log.py",
        "                first.data.delete()\n                del self._segments[0]",
        "                first.data.delete()\n                del self._segments[-2]",
    ),
    Mutation(
        "confirms a stream's messages before they are written",
        "streaming/publishers.py",
        "        self._session.broker.ledger.after_commit(confirm)\n",
        "        confirm()\n",
    ),
    Mutation(
        "sends stream readers one chunk more than their credit",
        "streaming/subscriptions.py",
        "self._reader is not None and self.credit > 0 and",
        "self._reader is not None and self.credit >= 0 and",
    ),
    Mutation(
        "stores messages again that a publisher repeats",
        "streaming/publishers.py",
        "        if publishing_id > last:\n",
        "        if publishing_id >= last:\n",
    ),
    Mutation(
        "closes another connection together with one that fails",
        "wire/amqp_connection.py",
        '        self.state = "closing"\n        self.send(\n',
        '        self.state = "closing"\n'
        "        others = sorted((each for each in self._connections if each.is_open), key=lambda each: each.name)\n"
        "        any(each.transport.abort() for each in others[:1])\n        self.send(\n",
    ),
    Mutation(
        "does not record that a queue has delivered a message",
        "store/storage.py",
        '        self._write_soon({("delivering", definition_key([str(holder)])): encode_table({"holder": holder})})\n',
        "        return\n",
    ),
    Mutation(
        "confirms one publish that a full queue refused",
        "wire/incoming_publishes.py",
        "            self._refused.append(self._published)\n",
        "            self._refused.append(self._published) if self._published % 3 else None\n",
    ),
    Mutation(
        "adds a message only to the first of its queues",
        "model/virtual_host.py",
        "        if not queue.deleted:\n            routed = True\n",
        "        if not queue.deleted and not routed:\n            routed = True\n",
    ),
    Mutation(
        "does not notice clients that have become silent",
        "sockets/client_socket.py",
        "        if self.may_read and not self._waits and now - self._heard_at > self.heartbeat * 2:\n",
        "        if False and now - self._heard_at > self.heartbeat * 2:\n",
    ),
    Mutation(
        "notices silent clients after three heartbeats instead of two",
        "sockets/client_socket.py",
        "now - self._heard_at > self.heartbeat * 2:\n",
        "now - self._heard_at > self.heartbeat * 3:\n",
    ),
    Mutation(
        "does not notice AMQP 1.0 clients that have become silent",
        "amqp10/amqp10_connection.py",
        "        if self.may_read and now - self._heard_at > _IDLE_SECONDS:\n",
        "        if False and now - self._heard_at > _IDLE_SECONDS:\n",
    ),
    Mutation(
        "delivers to consumers of lower priority first",
        "model/consumers.py",
        "        return next(iter(self._of[self._descending[0]]))\n",
        "        return next(iter(self._of[self._descending[-1]]))\n",
    ),
    Mutation(
        "ignores the priorities of consumers",
        "model/consumers.py",
        "        priority = consumer.priority\n        if",
        "        priority = consumer.priority = 0\n        if",
    ),
    Mutation(
        "releases a delayed message early",
        "model/virtual_host.py",
        "        entry = self._ledger.enter(held, self._clock.now() + delay)\n",
        "        entry = self._ledger.enter(held, self._clock.now() + delay * 9 // 10)\n",
    ),
    Mutation(
        "forgets delayed messages when it restarts",
        "model/virtual_host.py",
        "        self._ledger.hold(entry)\n        self._delayed.hold(exchange.name, entry)\n",
        "        self._ledger.drop(entry)\n",
    ),
    Mutation(
        "does not hold delayed messages back after a restart",
        "model/virtual_host.py",
        "            entry.expires_at = min(entry.expires_at, self._clock.now() + delay)\n",
        "            entry.expires_at = min(entry.expires_at, self._clock.now())\n",
    ),
    Mutation(
        "keeps a delayed message on disk after its release",
        "model/virtual_host.py",
        "        else:\n            self._ledger.drop(entry)\n",
        "        else:\n            self._ledger.set_aside(entry)\n",
    ),
    Mutation(
        "reads back only the first of the paged-out messages",
        "model/backlog.py",
        "        for _ in batch:\n            self._fresh.popleft()\n        self._fresh.extendleft(reversed(batch))\n",
        "        for _ in batch:\n"
        "            self._fresh.popleft()\n"
        "        self._fresh.extendleft(reversed(batch[:2]))\n",
    ),
    Mutation(
        "reads paged-out messages back in reverse",
        "model/backlog.py",
        "        self._fresh.extendleft(reversed(batch))\n",
        "        self._fresh.extendleft(batch)\n",
    ),
    Mutation(
        "leaves paged-out messages on disk when a queue is purged",
        "model/ledger.py",
        "            self._page(-_PAGED_OUT)\n            row = purged\n",
        "            self._page(-_PAGED_OUT)\n            row = 0\n",
    ),
    Mutation(
        "forgets when a paged-out message expires",
        "store/database.py",
        "        entry = BacklogEntry(message, self.row, self.due)\n",
        "        entry = BacklogEntry(message, self.row)\n",
    ),
    Mutation(
        "forgets that it holds a message that it has read back",
        "model/ledger.py",
        "        self.held_bytes += sum(of_message(entry.message) for entry in entries)\n",
        "",
    ),
    Mutation(
        "forgets the stored offsets of a stream when it restarts",
        "model/stream_log.py",
        "            for consumer, offset in tracking.offsets.items():\n",
        "            for consumer, offset in ():\n",
    ),
    Mutation(
        "keeps the first offset that a reader stores",
        "model/stored_offsets.py",
        "        self[consumer] = offset\n",
        "        self.setdefault(consumer, offset)\n",
    ),
    Mutation(
        "counts the memory of a stored offset again each time",
        "model/stored_offsets.py",
        "        if consumer not in self:\n            self._hold",
        "        if True:\n            self._hold",
    ),
)


class _Planted(importlib.machinery.SourceFileLoader):
    """Loads a file of the broker with a planted defect."""

    def __init__(self, name: str, path: str, mutation: Mutation) -> None:
        super().__init__(name, path)
        self._mutation = mutation

    def get_code(self, fullname: str) -> CodeType | None:
        return self.source_to_code(planted_in(Path(self.path).read_text(), self._mutation), self.path)


def planted_in(source: str, mutation: Mutation) -> str:
    """Return a file's source with a mutation. Raises ValueError if it does not contain the old code exactly once."""
    if not mutation.old or source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.path} does not contain the code of the mutation {mutation.name!r} exactly once")
    return source.replace(mutation.old, mutation.new)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation
        self._module = f"{_PACKAGE}.{mutation.path.removesuffix('.py').replace('/', '.')}"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert found is not None
        assert found.origin is not None
        found.loader = _Planted(fullname, found.origin, self._mutation)
        return found


def plant(name: str) -> None:
    """Plant a mutation in this process. Must be called before the broker is imported."""
    mutation = next(each for each in MUTATIONS if each.name == name)
    finder = _Finder(mutation)
    assert finder._module not in sys.modules
    sys.meta_path.insert(0, finder)
