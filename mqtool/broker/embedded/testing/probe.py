"""What hangs on a broker's hooks: a recording, the faults in force, or both."""

from collections.abc import Callable
from typing import cast

from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.virtual_host import Publication, Routing, VirtualHost
from mqtool.broker.embedded.testing.fault import Client, Fault
from mqtool.broker.embedded.testing.recording import Recorded, Recording


class Probe:
    """A broker's hooks, as long as something needs them.

    Attributes:
        recording: what happens, if anybody wants to know.
        faults: those in force, oldest first.
    """

    def __init__(self, broker: Broker, *, recording: bool) -> None:
        self._broker = broker
        self.recording = Recording() if recording else None
        self.faults: list[Fault] = []
        self._attach()

    def add(self, fault: Fault) -> None:
        """Let a fault have a say from now on."""
        self.faults.append(fault)
        self._attach()

    def remove(self, fault: Fault) -> None:
        """Let it have none."""
        self.faults = [each for each in self.faults if each is not fault]
        self._attach()

    def _attach(self) -> None:
        """Hang on the hooks if that is needed, and let go of them if it is not."""
        self._broker.hooks = self if self.recording is not None or self.faults else None

    def _drop_used_up(self) -> None:
        if any(fault.used_up for fault in self.faults):
            self.faults = [fault for fault in self.faults if not fault.used_up]
            self._attach()

    def connected(self, client: object) -> None:
        """Let the faults have the new connection."""
        for fault in self.faults:
            fault.connected(cast("Client", client))

    def enqueue(self, vhost: VirtualHost, routing: Routing) -> Publication:
        """Put a message in its queues, unless a fault sees to it that it is refused or goes nowhere."""
        refused = False
        for fault in self.faults:
            refused = fault.publishing(routing) or refused
        self._drop_used_up()
        names = [queue.name for queue in routing.queues]
        publication = vhost.enqueue(routing)
        if refused:
            publication = publication._replace(routed=True, accepted=False)
        if self.recording is not None:
            self.recording.add(Recorded("published", vhost.name, routing.message, names))
        return publication

    def acknowledge(self, queue: Queue, entry: Entry) -> bool:
        """Whether an acknowledgement gets here: no fault loses it."""
        if any(fault.acknowledging(queue) for fault in self.faults):
            self._drop_used_up()
            return False
        self._settled("acked", queue, entry)
        return True

    def rejected(self, queue: Queue, entry: Entry, *, requeue: bool) -> None:
        """Record it."""
        self._settled("requeued" if requeue else "rejected", queue, entry)

    def _settled(self, what: str, queue: Queue, entry: Entry) -> None:
        if self.recording is not None:
            self.recording.add(Recorded(what, queue.vhost, entry.message, [queue.name], redelivered=entry.redelivered))

    def confirm(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """Send confirms, unless a fault keeps them."""
        if not any(fault.confirming(data, send) for fault in self.faults):
            send(data)
