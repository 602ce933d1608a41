"""The broker's side of the test support: records what happens to messages and keeps the active faults.

Everything in this module runs on the broker's event loop.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.queue import BrokerQueue, put_back_all
from mqtool.broker.embedded.model.users import Permissions
from mqtool.broker.embedded.model.virtual_host import Publication, Routing, VirtualHost
from mqtool.broker.embedded.sockets.listener import Listener
from mqtool.broker.embedded.testing import connection_faults as connection_faults  # so that requests can name them
from mqtool.broker.embedded.testing.fault import Client, Fault, FaultScene, arguments_of, name_of
from mqtool.broker.embedded.testing.traffic import Closed, Messages, Recorded, TrafficRecording
from mqtool.spelling import counted, mistyped

if TYPE_CHECKING:
    from mqtool.broker.embedded.model.stream_queue import StreamQueue


class _Hooks:
    """Records what happens to messages, and applies faults.

    The broker calls these methods through `Broker.hooks`, which is set only while there is a recording or a fault.

    Attributes:
        recording: the record of what has happened to messages; None if recording is off.
        faults: the active faults, oldest first.
    """

    def __init__(self, broker: Broker, *, recording: bool) -> None:
        self._broker = broker
        self.recording = TrafficRecording() if recording else None
        self.faults: list[Fault] = []
        self._attach()

    def add(self, fault: Fault) -> None:
        self.faults.append(fault)
        self._attach()

    def remove(self, fault: Fault) -> None:
        self.faults = [each for each in self.faults if each is not fault]
        self._attach()

    def _attach(self) -> None:
        self._broker.hooks = self if self.recording is not None or self.faults else None

    def _drop_used_up(self) -> None:
        if any(fault.used_up for fault in self.faults):
            self.faults = [fault for fault in self.faults if not fault.used_up]
            self._attach()

    def connected(self, client: object) -> None:
        """Apply the faults to a new connection."""
        for fault in self.faults:
            fault.connected(cast("Client", client))

    def enqueue(self, vhost: VirtualHost, routing: Routing, *, retries: bool = False) -> Publication:
        """Add a message to its queues, unless a fault rejects the message or makes it unroutable.

        Of a publisher that retries, only the attempt that succeeds is recorded.
        """
        refused = False
        for fault in self.faults:
            refused = fault.publishing(routing) or refused
        self._drop_used_up()
        names = [queue.name for queue in routing.queues]
        publication = vhost.enqueue(routing)
        if refused:
            publication = publication._replace(routed=True, accepted=False)
        failed = not (publication.accepted and names)
        if self.recording is not None and not (retries and failed):
            nacked = not publication.accepted
            self.recording.add(Recorded("published", vhost.name, routing.message, names, nacked=nacked))
        return publication

    def streamed(self, vhost: VirtualHost, stream: str, messages: Iterator[tuple[int, BrokerMessage]]) -> None:
        """Record messages that were published with the stream protocol."""
        if self.recording is not None:
            for _, message in messages:
                self.recording.add(Recorded("published", vhost.name, message, [stream]))

    def closed(self, vhost: VirtualHost, what: str, why: str) -> None:
        """Record that the broker has closed a channel or a connection."""
        if self.recording is not None:
            self.recording.add(Closed(vhost.name, what, why))

    def acknowledge(self, queue: BrokerQueue, entry: BacklogEntry) -> bool:
        """Record an acknowledgement and return True; return False if a fault wants the message requeued instead."""
        if any(fault.acknowledging(queue) for fault in self.faults):
            self._drop_used_up()
            return False
        self._settled("acked", queue, entry)
        return True

    def rejected(self, queue: BrokerQueue, entry: BacklogEntry, *, requeue: bool) -> None:
        self._settled("requeued" if requeue else "rejected", queue, entry)

    def _settled(self, what: str, queue: BrokerQueue, entry: BacklogEntry) -> None:
        if self.recording is not None:
            self.recording.add(Recorded(what, queue.vhost, entry.message, [queue.name], redelivered=entry.redelivered))

    def confirm(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """Send confirms, unless a fault delays them."""
        if not any(fault.confirming(data, send) for fault in self.faults):
            send(data)


class BrokerUnderTest:
    """Lets tests query a broker's messages and inject faults. EmbeddedBroker and /api/mqtool call it."""

    def __init__(
        self,
        broker: Broker,
        by_protocol: Sequence[Collection[Client]],
        listeners: Sequence[Listener],
        *,
        recording: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._scene = FaultScene(broker, by_protocol, listeners, loop.call_later)
        self._hooks = _Hooks(broker, recording=recording)
        self._numbers = 0
        self._in_force: dict[int, Fault] = {}

    def begin(self, fault: Fault) -> tuple[int, int]:
        """Start a fault.

        Returns:
            The number for undo(), 0 if the fault is already over; and the number of connections, channels or consumers
            that the fault affected.
        """
        met = fault.begin(self._scene)
        if not fault.lasts:
            return 0, met
        seconds = fault.duration()
        if seconds == 0:
            fault.end(self._scene)
            return 0, met
        self._numbers += 1
        number = self._numbers
        self._in_force = {each: one for each, one in self._in_force.items() if not one.used_up}
        self._in_force[number] = fault
        self._hooks.add(fault)
        if seconds is not None:
            self._scene.call_later(seconds, lambda: self.undo(number))
        return number, met

    def undo(self, number: int) -> bool:
        """End a fault. Returns True if the fault was active."""
        fault = self._in_force.pop(number, None)
        if fault is None:
            return False
        self._hooks.remove(fault)
        fault.end(self._scene)
        return not fault.used_up

    def clear(self) -> None:
        for number in reversed(list(self._in_force)):
            self.undo(number)

    def faults(self) -> list[dict[str, Any]]:
        """Return the active faults, with their ids, names and arguments."""
        return [
            {
                "id": number,
                "fault": name_of(type(fault)),
                "arguments": {name: getattr(fault, name) for name in arguments_of(type(fault))},
            }
            for number, fault in self._in_force.items()
            if not fault.used_up
        ]

    @property
    def recording(self) -> TrafficRecording:
        """The record of what has happened to messages.

        Raises:
            LookupError: the broker was started without `recording`.
        """
        if self._hooks.recording is None:
            raise LookupError("nothing is being recorded: start the broker with recording=True")
        return self._hooks.recording

    def describe(self, vhost: str) -> str:
        """Describe for a failed test what happened, which deliveries are not acknowledged, and which faults last."""
        lines = [self.recording.describe(vhost)]
        found = self._scene.broker.vhosts.get(vhost)
        for name, queue in ({} if found is None else found.queues).items():
            if queue.kind == "stream":
                continue
            put_back_all(queue)
            if queue.unacked:
                lines.append(f"queue {name!r}: {counted(queue.unacked)} delivered but not acknowledged")
            if again := sum(entry.redelivered for entry in queue.backlog.in_memory()):
                why = "requeued, or the channel closed without an acknowledgement"
                lines.append(f"queue {name!r}: {counted(again)} delivered before and ready again ({why})")
        lines += map(self._told, self.faults())
        return "\n".join(lines)

    def _told(self, fault: dict[str, Any]) -> str:
        arguments = fault["arguments"]
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if value is not None)
        told, missing = f"fault in force: {fault['fault']}({given})", arguments.get("queue")
        if missing is not None and not any(missing in each.queues for each in self._scene.broker.vhosts.values()):
            return f"{told}, without effect so far, because queue {missing!r} does not exist"
        return told

    def ready(self, vhost: str, queue: str) -> Messages:
        """Return a queue's ready messages in order of arrival. After a requeue, the order of delivery may differ."""
        found = self._queue(vhost, queue)
        if found is None:
            return Messages([], self._no_queue(vhost, queue))
        if found.kind == "stream":
            waiting = _in_stream(found)
        else:
            waiting = sorted(found.backlog.in_memory(), key=lambda entry: entry.position)
        messages = [Recorded("ready", vhost, each.message, [queue], redelivered=each.redelivered) for each in waiting]
        return Messages(messages, self.state(vhost, queue))

    def state(self, vhost: str, queue: str) -> str:
        """Describe a queue's contents, and what has happened to its messages, in one line."""
        found = self._queue(vhost, queue)
        if found is None:
            return self._no_queue(vhost, queue)
        words = f"{len(found)} ready, {found.unacked} unacked, {len(found.consumers)} consumers"
        if self._hooks.recording is not None:
            done = [f"{len(self.recording.find(what, vhost, queue=queue))} {what}" for what in ("acked", "rejected")]
            words = f"{words}, {', '.join(done)}"
        return words

    def settled(self, what: str, vhost: str, queue: str) -> Messages:
        """Return the messages of a queue that were `acked`, `rejected` or `requeued`."""
        found = self.recording.find(what, vhost, queue=queue)
        missing = [] if self._queue(vhost, queue) else [self._no_queue(vhost, queue)]
        return found or Messages([], "; ".join([*missing, self.describe(vhost)]))

    def _no_queue(self, vhost: str, queue: str) -> str:
        found = self._scene.broker.vhosts.get(vhost)
        meant = None if found is None else mistyped(queue, sorted(found.queues))
        return f"queue {queue!r} does not exist{'' if meant is None else f': did you mean {meant!r}?'}"

    def _queue(self, vhost: str, queue: str) -> BrokerQueue | None:
        found = self._scene.broker.vhosts.get(vhost)
        if found is None or queue not in found.queues:
            return None
        put_back_all(found.queues[queue])
        return found.queues[queue]

    def reset(self, vhost: str | None) -> None:
        """Undo all faults, purge the queues of a virtual host and clear its recording; None for all virtual hosts.

        Queues, exchanges, bindings, consumers and unacknowledged messages stay. Stream offsets are not reused.
        """
        self.clear()
        for each in self._scene.broker.vhosts.values():
            if vhost in (None, each.name):
                for queue in each.queues.values():
                    if queue.kind == "stream":
                        _stream(queue).clear()
                    else:
                        queue.purge()
        if self._hooks.recording is not None:
            self._hooks.recording.clear(vhost)

    def add_vhost(self, name: str) -> None:
        """Create a virtual host in which every user has full permissions."""
        broker = self._scene.broker
        broker.add_vhost(name)
        for user in list(broker.users):
            broker.set_permissions(user, name, Permissions())

    def delete_vhost(self, name: str) -> None:
        """Undo all faults, and delete a virtual host and its recording."""
        self.clear()
        broker = self._scene.broker
        if name in broker.vhosts:
            broker.delete_vhost(name)
        if self._hooks.recording is not None:
            self._hooks.recording.clear(name)


def _stream(queue: BrokerQueue) -> "StreamQueue":
    from mqtool.broker.embedded.model.stream_queue import StreamQueue

    assert isinstance(queue, StreamQueue)
    return queue


def _in_stream(queue: BrokerQueue) -> list[BacklogEntry]:
    from mqtool.broker.embedded.model.stream_queue import Cursor

    return list(Cursor(_stream(queue), 0).rest())
