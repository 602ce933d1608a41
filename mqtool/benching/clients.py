"""The processes of a run: each is a publisher or a consumer, with a single thread and one connection."""

import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from mqtool.amqp.administration import binding_request, declare_request
from mqtool.benching.client_process import SECOND, BenchClient, CommandEnded, Orders, tell
from mqtool.benching.declared import delete_declared
from mqtool.benching.plan import STAMP, Job, bodies
from mqtool.benching.tally import Latencies, add_to_runs
from mqtool.benching.wire import AmqpWire, Wire
from mqtool.errors import MqtoolError
from mqtool.message import Delivery, Message
from mqtool.topology import Binding, Queue

#: For this many seconds after the end of the run, messages that were due before it are still sent.
_GRACE = 2.0
#: The queue on which a publisher of requests gets its replies: https://www.rabbitmq.com/docs/direct-reply-to
_REPLIES = "amq.rabbitmq.reply-to"
#: The maximum number of messages to write at once, and of bytes waiting for the socket.
_BATCH, _UNSENT = 256, 1 << 18


#: The properties of a reply. All replies share one mapping, so it is encoded only once.
_REPLY: dict[str, Any] = {}


class BenchPublisher(BenchClient):
    """Publishes messages at their intended times, or as fast as confirms allow."""

    def __init__(self, job: Job, orders: Orders) -> None:
        super().__init__(job, orders)
        plan = self.plan
        self._quota = plan.share(job.number)
        self._interval = 0.0 if plan.rate is None else plan.publishers / plan.rate * SECOND
        self._bodies = bodies(plan)
        self._next = 0  # the number of the next message
        self._base = 1  # a message's delivery tag minus its number
        self._pending: dict[int, int] = {}  # the intended times of messages in flight, by delivery tag
        self._confirmed: list[list[int]] = []
        self._nacked = self._sent = self._sent_at = 0
        self._templates: list[Any] = []
        # Publishers take turns, so that the messages of all publishers are evenly spaced.
        self._offset = self._interval * job.number / plan.publishers

    def open(self, wire: Wire) -> None:
        super().open(wire)
        self._base = 1 - self._next
        properties: dict[str, Any] = {}
        wire.start_publishing(self.job.exchange, self.job.routing_key, confirms=not self.plan.rpc)
        if self.plan.rpc:
            wire.consume(_REPLIES, 0, partial(self._on_replies, wire), auto=True, offset=None)
            properties["reply_to"] = _REPLIES
        else:
            wire.on_confirm, wire.on_nack = partial(self._on_confirm, wire), self._on_nack
        if self.plan.ttl is not None:
            properties["expiration"] = str(round(self.plan.ttl * 1000))
        self._templates = [
            wire.template(Message(each, properties=properties), STAMP.size, persistent=self.plan.persistent)
            for each in self._bodies
        ]

    def lost(self) -> None:
        self._pending.clear()  # these messages may or may not have arrived

    def is_done(self, now: int) -> bool:
        return not self._pending and self._is_over(now)

    def _is_over(self, now: int) -> bool:
        """Return True if all messages have been published."""
        if self._quota is not None and self._next >= self._quota:
            return True
        if self.plan.duration is None:
            return False
        # If the broker was slow for just a moment, messages that were due before the end are still sent.
        grace = 0.0 if self.plan.rate is None else _GRACE
        return now >= self.start + round((self.plan.duration + grace) * SECOND)

    def _intended(self, number: int) -> int:
        return self.start + int(self._offset + number * self._interval)

    def work(self, wire: Wire, now: int) -> int:
        if self._is_over(now):
            return now + SECOND
        if now < self.start:
            return self.start
        room = min(self.plan.in_flight - len(self._pending), wire.credit, _BATCH) if wire.unsent < _UNSENT else 0
        if self._quota is not None:
            room = min(room, self._quota - self._next)
        if room <= 0:
            return now + SECOND  # a confirm or a writable socket will end the wait earlier
        if not self._interval:
            self._publish(wire, [now] * room)
            return now
        due: list[int] = []
        while len(due) < room and (intended := self._intended(self._next + len(due))) <= now:
            due.append(intended)
        if due:
            self._publish(wire, due)
        return self._intended(self._next)

    def _publish(self, wire: Wire, intended: list[int]) -> None:
        templates, secret, publisher = self._templates, self.secret, self.job.number
        delay = round(self.plan.delay * SECOND)
        messages: list[tuple[int, Any, bytes]] = []
        for number, at in enumerate(intended, self._next):
            stamp = STAMP.pack(secret, publisher, number, at + delay)
            messages.append((number + self._base, templates[number % len(templates)], stamp))
            self._pending[number + self._base] = at
        self._next += len(intended)
        wire.publish(messages)
        self._sent += sum(at >= self.measured_from for at in intended)
        self._sent_at = time.monotonic_ns()

    def _settled(self, tags: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Remove messages from those in flight; yield their numbers and intended times. Unknown tags are ignored."""
        for tag in tags:
            if (intended := self._pending.pop(tag, None)) is not None:
                yield tag - self._base, intended

    def _on_confirm(self, wire: Wire, tags: Iterable[int]) -> None:
        settled = [*self._settled(tags)]
        now, runs = wire.now, self._confirmed
        for number, _ in settled:
            if runs and runs[-1][0] + runs[-1][1] == number:
                runs[-1][1] += 1
            else:
                runs.append([number, 1])
        measured = [now - intended for _, intended in settled if intended >= self.measured_from]
        self.measured += len(measured)
        self.latencies.record(measured)
        self.happened(now)

    def _on_replies(self, wire: Wire, batch: list[Delivery]) -> None:
        if ours := self.of_this_run(batch):
            self._on_confirm(wire, [STAMP.unpack_from(delivery.body)[2] + self._base for delivery in ours])

    def _on_nack(self, tags: Iterable[int]) -> None:
        self._nacked += len([*self._settled(tags)])

    def report(self) -> dict[str, Any]:
        confirmed, self._confirmed = self._confirmed, []
        return {
            "published": self._next,
            "confirmed": confirmed,
            "nacked": self._nacked,
            "sent": self._sent,
            "sent_at": self._sent_at,
            "measured": self.measured,
            "measured_at": self.last_event,
        }


class BenchConsumer(BenchClient):
    """Receives and acknowledges messages."""

    def __init__(self, job: Job, orders: Orders) -> None:
        super().__init__(job, orders)
        self._runs: defaultdict[int, list[list[int]]] = defaultdict(list)
        self._unacknowledged = 0
        self._last_tag = self._received = 0
        self._next_offset = 0 if self.plan.queue_type == "stream" else None

    def open(self, wire: Wire) -> None:
        super().open(wire)
        self._unacknowledged = 0
        take, auto = partial(self._take, wire), not self.plan.acknowledge
        wire.consume(self.job.queue, self.plan.prefetch, take, auto=auto, offset=self._next_offset)

    def is_done(self, now: int) -> bool:  # noqa: ARG002
        return False  # the command says when to stop, because it knows what was published

    def _take(self, wire: Wire, batch: list[Delivery]) -> None:
        if ours := self.of_this_run(batch):
            self._count(wire, ours)
        self._last_tag = batch[-1].delivery_tag
        if each := self.plan.acknowledge:
            self._unacknowledged += len(batch)
            if each == 1:
                wire.acknowledge([(delivery.delivery_tag, False) for delivery in batch])
                self._unacknowledged = 0
            elif self._unacknowledged >= each:
                self._acknowledge_all(wire)

    def _count(self, wire: Wire, batch: list[Delivery]) -> None:
        """Reply to messages of this run, if they are requests, and record their numbers and latencies."""
        if self.plan.rpc:
            assert isinstance(wire, AmqpWire)
            replies = [Message(each.body, str(each.properties["reply_to"]), properties=_REPLY) for each in batch]
            wire.reply(replies)
        now, runs, latencies = wire.now, self._runs, []
        measured_from = self.measured_from + round(self.plan.delay * SECOND)
        for delivery in batch:
            _, publisher, number, intended = STAMP.unpack_from(delivery.body)
            add_to_runs(runs[publisher], number, delivery.redelivered)
            if intended >= measured_from:
                latencies.append(now - intended)
        self._received += len(batch)
        self.measured += len(latencies)
        self.latencies.record(latencies)
        if self._next_offset is not None:
            self._next_offset = wire.offset_of(batch[-1]) + 1  # a new connection continues from there
        self.happened(now)

    def _acknowledge_all(self, wire: Wire) -> None:
        if self._unacknowledged:
            wire.acknowledge([(self._last_tag, True)])
            self._unacknowledged = 0

    def leave(self, wire: Wire) -> None:
        with contextlib.suppress(ConnectionError):
            self._acknowledge_all(wire)
        super().leave(wire)

    def work(self, wire: Wire, now: int) -> int:  # noqa: ARG002
        return now + SECOND

    def report(self) -> dict[str, Any]:
        if self.wire is not None:
            self._acknowledge_all(self.wire)
        runs, self._runs = self._runs, defaultdict(list)
        return {
            "received": self._received,
            "runs": [*runs.items()],
            "measured": self.measured,
            "measured_at": self.last_event,
        }


class Churner(BenchPublisher):
    """Creates connections, channels, queues or bindings, one after another, and removes each of them at once.

    Each creation is counted as a confirm, and each removal as a delivery.
    """

    def __init__(self, job: Job, orders: Orders) -> None:
        super().__init__(job, orders)
        self._removed = Latencies()
        self._name = f"{job.queue}-{job.number}"
        self._queue_of_its_own = Queue(self._name, exclusive=True)

    def open(self, wire: Wire) -> None:
        BenchClient.open(self, wire)
        if self.plan.churn == "bindings":
            assert isinstance(wire, AmqpWire)
            wire.ask(declare_request(self._queue_of_its_own))

    def is_done(self, now: int) -> bool:
        return self._is_over(now)

    def work(self, wire: Wire, now: int) -> int:
        due = self._intended(self._next) if self._interval else max(now, self.start)
        if due > now:
            return due
        assert isinstance(wire, AmqpWire)
        self._next += 1
        self._sent, self._sent_at = self._next, now
        {"connections": self._connection, "channels": self._channel, "queues": self._queue, "bindings": self._binding}[
            self.plan.churn or ""
        ](wire, due)
        return self._intended(self._next) if self._interval else now

    def _connection(self, _wire: AmqpWire, due: int) -> None:
        other = self.connected()
        removed_from = self._created(due)
        other.close()
        self._is_removed(removed_from)

    def _channel(self, wire: AmqpWire, due: int) -> None:
        removed_from = due

        def opened() -> None:
            nonlocal removed_from
            removed_from = self._created(due)

        wire.open_and_close_channel(opened)
        self._is_removed(removed_from)

    def _queue(self, wire: AmqpWire, due: int) -> None:
        wire.ask(declare_request(self._queue_of_its_own))
        removed_from = self._created(due)
        wire.ask(lambda pika, done: pika.queue_delete(self._name, callback=done))
        self._is_removed(removed_from)

    def _binding(self, wire: AmqpWire, due: int) -> None:
        binding = Binding("amq.direct", self._name, f"{self._name}-{self._next}")
        wire.ask(binding_request(binding))
        removed_from = self._created(due)
        wire.ask(binding_request(binding, verb="unbind"))
        self._is_removed(removed_from)

    def _created(self, due: int) -> int:
        """Count a creation; return the current time."""
        now = time.monotonic_ns()
        self._confirmed.append([self._next - 1, 1])
        if due >= self.measured_from:
            self.measured += 1
            self.latencies.record([now - due])
        self.happened(now)
        return now

    def _is_removed(self, since: int) -> None:
        now = time.monotonic_ns()
        if since >= self.measured_from:
            self._removed.record([now - since])

    def report(self) -> dict[str, Any]:
        return {**super().report(), "removed": self._removed.pairs()}


def main() -> None:
    """Read a job from standard input, and do it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command handles Ctrl-C, and says when to stop
    orders = Orders()
    job = Job.from_told(orders.next())
    try:
        publisher = BenchPublisher if job.plan.churn is None else Churner
        (publisher if job.role == "publisher" else BenchConsumer)(job, orders).run()
    except MqtoolError as error:
        tell(failed=str(error), hint=error.hint, exit_code=int(error.exit_code))
    except ConnectionError as error:
        tell(failed=str(error), hint=None, exit_code=69)
    except CommandEnded:
        if (job.role, job.number) == ("consumer", 0):
            with contextlib.suppress(MqtoolError):
                delete_declared(job.amqp_addresses, job.tls, job.declared)
