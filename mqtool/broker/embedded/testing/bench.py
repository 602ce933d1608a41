"""A broker under test: what is recorded of it, and the faults in force. Everything here runs on the broker's loop."""

import asyncio
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mqtool.broker.embedded.model.backlog import Entry
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.queue import Queue
from mqtool.broker.embedded.model.users import Permissions
from mqtool.broker.embedded.sockets.listener import Listener
from mqtool.broker.embedded.testing.fault import Client, Fault, Scene
from mqtool.broker.embedded.testing.kinds import name_of, shown
from mqtool.broker.embedded.testing.probe import Probe
from mqtool.broker.embedded.testing.recording import Messages, Recorded, Recording

if TYPE_CHECKING:
    from mqtool.broker.embedded.model.stream_queue import Stream


class Begun(NamedTuple):
    """A fault that has begun.

    Attributes:
        number: to undo it by; 0 if it is over.
        met: how many connections, channels or consumers it met.
    """

    number: int
    met: int


class Bench:
    """Where a broker is tested."""

    def __init__(
        self, broker: Broker, by_protocol: Sequence[Collection[Client]], doors: Sequence[Listener], *, recording: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        self._scene = Scene(broker, by_protocol, doors, loop.call_later)
        self._probe = Probe(broker, recording=recording)
        self._numbers = 0
        self._in_force: dict[int, Fault] = {}

    # -- faults

    def begin(self, fault: Fault) -> Begun:
        """Let a fault happen."""
        met = fault.begin(self._scene)
        if not fault.lasts:
            return Begun(0, met)
        seconds = fault.duration()
        if seconds == 0:
            fault.end(self._scene)
            return Begun(0, met)
        self._numbers += 1
        number = self._numbers
        self._in_force = {each: one for each, one in self._in_force.items() if not one.used_up}
        self._in_force[number] = fault
        self._probe.add(fault)
        if seconds is not None:
            self._scene.call_later(seconds, lambda: self.undo(number))
        return Begun(number, met)

    def undo(self, number: int) -> bool:
        """End a fault; returns whether it was in force."""
        fault = self._in_force.pop(number, None)
        if fault is None:
            return False
        self._probe.remove(fault)
        fault.end(self._scene)
        return not fault.used_up

    def clear(self) -> None:
        """End all faults."""
        for number in reversed(list(self._in_force)):
            self.undo(number)

    def faults(self) -> list[dict[str, Any]]:
        """Return the faults in force."""
        return [
            {"id": number, "fault": name_of(fault), "arguments": shown(fault)}
            for number, fault in self._in_force.items()
            if not fault.used_up
        ]

    # -- questions

    @property
    def recording(self) -> Recording:
        """What has happened.

        Raises:
            LookupError: nothing is being recorded.
        """
        if self._probe.recording is None:
            raise LookupError("nothing is being recorded: start the broker with recording=True")
        return self._probe.recording

    def ready(self, vhost: str, queue: str) -> Messages:
        """Return the messages that are ready in a queue, in no particular order if some have been returned."""
        found = self._queue(vhost, queue)
        if found is None:
            return Messages([], f"there is no queue {queue!r}")
        if found.kind == "stream":
            waiting = _in_stream(found)
        else:
            waiting = sorted(found.backlog.in_memory(), key=lambda entry: entry.position)
        messages = [Recorded("ready", vhost, each.message, [queue], redelivered=each.redelivered) for each in waiting]
        return Messages(messages, self.state(vhost, queue))

    def state(self, vhost: str, queue: str) -> str:
        """Say in a line what a queue holds and what has happened to it."""
        found = self._queue(vhost, queue)
        if found is None:
            return f"there is no queue {queue!r}"
        words = f"{len(found)} ready, {found.unacked} unacked, {len(found.consumers)} consumers"
        if self._probe.recording is not None:
            done = [f"{len(self.recording.find(what, vhost, queue=queue))} {what}" for what in ("acked", "rejected")]
            words = f"{words}, {', '.join(done)}"
        return words

    def _queue(self, vhost: str, queue: str) -> Queue | None:
        found = self._scene.broker.vhosts.get(vhost)
        return None if found is None else found.queues.get(queue)

    # -- between tests

    def reset(self, vhost: str | None) -> None:
        """Undo the faults, empty the queues of a virtual host and forget what happened in it; None for all of them.

        Queues, exchanges, bindings and consumers stay. Offsets of streams go on.
        """
        self.clear()
        for each in self._scene.broker.vhosts.values():
            if vhost in (None, each.name):
                for queue in each.queues.values():
                    if queue.kind == "stream":
                        _stream(queue).clear()
                    else:
                        queue.purge()
        if self._probe.recording is not None:
            self._probe.recording.clear(vhost)

    def add_vhost(self, name: str) -> None:
        """Make a virtual host in which everybody may do everything."""
        broker = self._scene.broker
        broker.add_vhost(name)
        for user in list(broker.users):
            broker.set_permissions(user, name, Permissions())

    def delete_vhost(self, name: str) -> None:
        """Undo the faults, and delete a virtual host and what happened in it."""
        self.clear()
        broker = self._scene.broker
        if name in broker.vhosts:
            broker.delete_vhost(name)
        if self._probe.recording is not None:
            self._probe.recording.clear(name)


def _stream(queue: Queue) -> "Stream":
    # Imported here: most tests have no streams.
    from mqtool.broker.embedded.model.stream_queue import Stream

    assert isinstance(queue, Stream)
    return queue


def _in_stream(queue: Queue) -> list[Entry]:
    from mqtool.broker.embedded.model.stream_queue import Cursor

    return list(iter(Cursor(_stream(queue), 0).next_entry, None))
