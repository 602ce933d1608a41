"""The processes of a run: a publisher or a consumer, each a single thread with one connection."""

import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

from pamqp import commands

from mqtool.amqp.unconfirmed import Route
from mqtool.benching.client_process import SECOND, Client, Orders, tell
from mqtool.benching.plain_connection import ConnectionLost, Wire
from mqtool.benching.plan import STAMP, Job, bodies
from mqtool.benching.tally import Latencies, add_to_runs
from mqtool.errors import MqtoolError
from mqtool.message import Delivery, Message

#: Seconds after the end of the run in which messages that were due before are still sent.
_GRACE = 2.0
#: Where replies go to the publisher of a request: https://www.rabbitmq.com/docs/direct-reply-to
_REPLIES = "amq.rabbitmq.reply-to"
#: The maximum number of messages that are written together, and of bytes that wait for the socket.
_BATCH, _UNSENT = 256, 1 << 18


#: The properties of a reply: one mapping for all of them, so that they are encoded once.
_REPLY: dict[str, Any] = {}


class Publisher(Client):
    """Publishes messages at their intended times, or as fast as confirms allow."""

    def __init__(self, job: Job, orders: Orders) -> None:
        super().__init__(job, orders)
        plan = self.plan
        self._quota = plan.share(job.number)
        self._interval = 0.0 if plan.rate is None else plan.publishers / plan.rate * SECOND
        self._bodies = bodies(plan)
        self._next = 0  # the number of the next message
        self._base = 1  # its number is this much smaller than its delivery tag
        self._pending: dict[int, int] = {}  # the intended times of messages in flight, by delivery tag
        self._lowest = 1
        self._confirmed: list[list[int]] = []
        self._nacked = self._sent = self._sent_at = 0
        self._templates: list[tuple[bytes, bytes]] = []
        # Publishers take turns, so that the messages of all of them are evenly spaced.
        self._offset = self._interval * job.number / plan.publishers

    def open(self, wire: Wire) -> None:
        super().open(wire)
        self._base, self._lowest = 1 - self._next, 1
        properties: dict[str, Any] = {}
        if self.plan.rpc:
            wire.consume(_REPLIES, 0, partial(self._on_replies, wire), {}, auto=True)
            properties["reply_to"] = _REPLIES
        else:
            wire.on_confirm, wire.on_nack = partial(self._on_confirm, wire), self._on_nack
            wire.confirm()
        if self.plan.ttl is not None:
            properties["expiration"] = str(round(self.plan.ttl * 1000))
        route = Route(self.job.exchange, self.job.routing_key, persistent=self.plan.persistent)
        encoder = wire.encoder
        self._templates = [
            _around_stamp(encoder.encode([Message(each, properties=properties)], route)) for each in self._bodies
        ]

    def lost(self) -> None:
        self._pending.clear()  # they may have arrived or not

    def is_done(self, now: int) -> bool:
        return not self._pending and self._is_over(now)

    def _is_over(self, now: int) -> bool:
        """True if all messages have been published."""
        if self._quota is not None and self._next >= self._quota:
            return True
        if self.plan.duration is None:
            return False
        # Messages that were due before the end are still sent, if the broker was only slow for a moment.
        grace = 0.0 if self.plan.rate is None else _GRACE
        return now >= self.start + round((self.plan.duration + grace) * SECOND)

    def _intended(self, number: int) -> int:
        return self.start + int(self._offset + number * self._interval)

    def work(self, wire: Wire, now: int) -> int:
        if self._is_over(now):
            return now + SECOND
        if now < self.start:
            return self.start
        room = min(self.plan.in_flight - len(self._pending), _BATCH) if wire.unsent < _UNSENT else 0
        if self._quota is not None:
            room = min(room, self._quota - self._next)
        if room <= 0:
            return now + SECOND  # a confirm, or the socket, comes first
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
        templates, publisher, delay = self._templates, self.job.number, round(self.plan.delay * SECOND)
        pieces: list[bytes] = []
        for number, at in enumerate(intended, self._next):
            before, after = templates[number % len(templates)]
            pieces += (before, STAMP.pack(publisher, number, at + delay), after)
            self._pending[number + self._base] = at
        self._next += len(intended)
        wire.send(b"".join(pieces))
        self._sent += sum(at >= self.measured_from for at in intended)
        self._sent_at = time.monotonic_ns()

    def _settled(self, tag: int, *, multiple: bool) -> Iterable[tuple[int, int]]:
        """The tags that a confirm is for, and the intended times of their messages."""
        tags = range(self._lowest, tag + 1) if multiple else (tag,)
        found = [(each, self._pending.pop(each)) for each in tags if each in self._pending]
        newest = self._next + self._base
        while self._lowest < newest and self._lowest not in self._pending:
            self._lowest += 1
        return found

    def _on_confirm(self, wire: Wire, tag: int, *, multiple: bool) -> None:
        settled = self._settled(tag, multiple=multiple)
        now, runs, base = wire.now, self._confirmed, self._base
        for each, _ in settled:
            number = each - base
            if runs and runs[-1][0] + runs[-1][1] == number:
                runs[-1][1] += 1
            else:
                runs.append([number, 1])
        measured = [now - intended for _, intended in settled if intended >= self.measured_from]
        self.measured += len(measured)
        self.latencies.record(measured)
        self.happened(now)

    def _on_replies(self, wire: Wire, batch: list[Delivery]) -> None:
        for delivery in batch:
            self._on_confirm(wire, STAMP.unpack_from(delivery.body)[1] + self._base, multiple=False)

    def _on_nack(self, tag: int, *, multiple: bool) -> None:
        self._nacked += len(list(self._settled(tag, multiple=multiple)))

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


def _around_stamp(frames: bytes) -> tuple[bytes, bytes]:
    """Cut the frames of a message into what is before the stamp, and what is after it."""
    position = 0
    for _ in ("method", "header"):
        position += 8 + int.from_bytes(frames[position + 3 : position + 7], "big")
    body = position + 7
    return frames[:body], frames[body + STAMP.size :]


class Consumer(Client):
    """Receives messages, and acknowledges them."""

    def __init__(self, job: Job, orders: Orders) -> None:
        super().__init__(job, orders)
        self._runs: defaultdict[int, list[list[int]]] = defaultdict(list)
        self._unacknowledged = 0
        self._last_tag = self._received = 0

    def open(self, wire: Wire) -> None:
        super().open(wire)
        self._unacknowledged = 0
        is_stream = self.plan.queue_type == "stream"
        arguments = {"x-stream-offset": "first"} if is_stream else {}
        auto = not self.plan.acknowledge and not is_stream
        take = partial(self._take, wire)
        wire.consume(self.job.queue, self.plan.prefetch, take, arguments, auto=auto)

    def is_done(self, now: int) -> bool:  # noqa: ARG002
        return False  # until the command says so, because it knows what was published

    def _take(self, wire: Wire, batch: list[Delivery]) -> None:
        if self.plan.rpc:
            self._reply(wire, batch)
        now, runs, latencies = wire.now, self._runs, []
        measured_from = self.measured_from + round(self.plan.delay * SECOND)
        for delivery in batch:
            publisher, number, intended = STAMP.unpack_from(delivery.body)
            add_to_runs(runs[publisher], number, delivery.redelivered)
            if intended >= measured_from:
                latencies.append(now - intended)
        self._received += len(batch)
        self.measured += len(latencies)
        self.latencies.record(latencies)
        self._last_tag = batch[-1].delivery_tag
        if each := self.plan.acknowledge:
            self._unacknowledged += len(batch)
            if each == 1:
                wire.acknowledge([(delivery.delivery_tag, False) for delivery in batch])
                self._unacknowledged = 0
            elif self._unacknowledged >= each:
                self._acknowledge_all(wire)
        self.happened(now)

    def _reply(self, wire: Wire, batch: list[Delivery]) -> None:
        """Send the bodies back to their publishers."""
        replies = [
            Message(delivery.body, str(delivery.properties["reply_to"]), properties=_REPLY) for delivery in batch
        ]
        wire.send(wire.encoder.encode(replies, Route()))

    def _acknowledge_all(self, wire: Wire) -> None:
        if self._unacknowledged:
            wire.acknowledge([(self._last_tag, True)])
            self._unacknowledged = 0

    def leave(self, wire: Wire) -> None:
        with contextlib.suppress(ConnectionLost):
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


class Churner(Publisher):
    """Creates connections, channels, queues or bindings, one after another, and removes each at once.

    What it creates is counted as confirmed, and what it removes as received.
    """

    def __init__(self, job: Job, orders: Orders) -> None:
        super().__init__(job, orders)
        self._removed = Latencies()
        self._name = f"{job.queue}-{job.number}"

    def open(self, wire: Wire) -> None:
        Client.open(self, wire)
        if self.plan.churn == "bindings":
            wire.call(_exclusive_queue(self._name), commands.Queue.DeclareOk)

    def is_done(self, now: int) -> bool:
        return self._is_over(now)

    def work(self, wire: Wire, now: int) -> int:
        due = self._intended(self._next) if self._interval else max(now, self.start)
        if due > now:
            return due
        self._next += 1
        self._sent, self._sent_at = self._next, now
        {"connections": self._connection, "channels": self._channel, "queues": self._queue, "bindings": self._binding}[
            self.plan.churn or ""
        ](wire, due)
        return self._intended(self._next) if self._interval else now

    def _connection(self, _wire: Wire, due: int) -> None:
        other = self.connected()
        removed_from = self._created(due)
        other.close()
        self._is_removed(removed_from)

    def _channel(self, wire: Wire, due: int) -> None:
        number = 2  # the first one stays open
        wire.call(commands.Channel.Open(), commands.Channel.OpenOk, channel=number)
        removed_from = self._created(due)
        wire.call(commands.Channel.Close(200, "", 0, 0), commands.Channel.CloseOk, channel=number)
        self._is_removed(removed_from)

    def _queue(self, wire: Wire, due: int) -> None:
        wire.call(_exclusive_queue(self._name), commands.Queue.DeclareOk)
        removed_from = self._created(due)
        wire.call(commands.Queue.Delete(queue=self._name), commands.Queue.DeleteOk)
        self._is_removed(removed_from)

    def _binding(self, wire: Wire, due: int) -> None:
        exchange, key = "amq.direct", f"{self._name}-{self._next}"
        bind = commands.Queue.Bind(queue=self._name, exchange=exchange, routing_key=key)
        wire.call(bind, commands.Queue.BindOk)
        removed_from = self._created(due)
        unbind = commands.Queue.Unbind(queue=self._name, exchange=exchange, routing_key=key)
        wire.call(unbind, commands.Queue.UnbindOk)
        self._is_removed(removed_from)

    def _created(self, due: int) -> int:
        """Count what was created; return the time."""
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


def _exclusive_queue(name: str) -> commands.Queue.Declare:
    return commands.Queue.Declare(queue=name, exclusive=True)


def main() -> None:
    """Do the job that is on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command handles Ctrl-C, and says when to stop
    orders = Orders()
    job = Job.from_told(orders.next())
    try:
        publisher = Publisher if job.plan.churn is None else Churner
        (publisher if job.role == "publisher" else Consumer)(job, orders).run()
    except MqtoolError as error:
        tell(failed=str(error), hint=error.hint, exit_code=int(error.exit_code))
    except ConnectionLost as error:
        tell(failed=str(error), hint=None, exit_code=69)
