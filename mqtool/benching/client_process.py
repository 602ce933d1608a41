"""What the processes of a run have in common: orders, reports, the connection, and the loop.

A process gets its job on standard input, then {"start": TIME} once all processes are ready, and finally
{"stop": true}. It writes reports to standard output. Both streams consist of lines of JSON.
"""

import contextlib
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mqtool.amqp import Address, TlsFiles
from mqtool.amqp.pika_errors import connecting
from mqtool.benching.amqp10_wire import Amqp10Wire
from mqtool.benching.plan import AMQP_1_0, STREAM, Job, lines_in, told
from mqtool.benching.stream_wire import StreamWire
from mqtool.benching.tally import Latencies
from mqtool.benching.wire import AmqpWire, Wire
from mqtool.errors import MqtoolError, Unavailable
from mqtool.message import Delivery

SECOND = 1_000_000_000
#: The nanoseconds that this process has run, and has waited for a CPU, and how often it has run.
_WAITED = Path("/proc/self/schedstat")
#: Seconds between two reports, and between two attempts to reconnect.
_REPORT, _RETRY = 0.25, 0.1


class CpuTime(NamedTuple):
    """How long this process has run so far, and how long it has waited for a CPU although it was ready, in seconds."""

    used: float
    waited: float

    @classmethod
    def now(cls) -> "CpuTime":
        """Return the times until now. `waited` is 0 where the system does not tell it."""
        waited = 0.0
        with contextlib.suppress(OSError, ValueError, IndexError):  # only Linux has this file
            waited = int(_WAITED.read_text().split()[1]) / SECOND
        return cls(time.process_time(), waited)

    def fractions(self, later: "CpuTime", seconds: float) -> tuple[float, float]:
        """Return which fractions of some seconds the process has run and waited until later; 0 if there were none."""
        if seconds <= 0:  # the run was over before it began
            return 0.0, 0.0
        return (later.used - self.used) / seconds, (later.waited - self.waited) / seconds


class CommandEnded(SystemExit):
    """The command that runs the benchmark was killed: it has not said when to stop."""


class Orders:
    """The pipe from the command that runs the benchmark."""

    def __init__(self) -> None:
        self._rest = b""
        self._waiting: list[Any] = []
        self.is_over = False

    def fileno(self) -> int:
        return 0

    def next(self) -> Any:
        """Wait for the next line and return it.

        Raises:
            CommandEnded: the command has exited.
        """
        while not self._waiting:
            self.read()
        return self._waiting.pop(0)

    def read(self) -> None:
        """Read orders from the command. Set `is_over` if it says to stop.

        Raises:
            CommandEnded: the command has exited.
        """
        data = os.read(0, 1 << 16)
        if not data:
            raise CommandEnded
        lines, self._rest = lines_in(self._rest + data)
        for line in lines:
            self._waiting.append(line)
            self.is_over = self.is_over or "stop" in line


def tell(**values: Any) -> None:
    """Send a report to the command."""
    data = told(values)
    while data:
        data = data[os.write(1, data) :]


def wire_for(protocol: str) -> Callable[[Address, TlsFiles], Wire]:
    """Return the connection class for a protocol."""
    if protocol == AMQP_1_0:
        return Amqp10Wire
    if protocol == STREAM:
        return StreamWire
    return AmqpWire


class BenchClient:
    """What publishers and consumers have in common: connection, loop, reports, and the longest gap between events.

    Attributes:
        start, measured_from: the times at which publishing starts, and at which the warm-up ends.
        latencies, measured: the latencies of messages after the warm-up, and the number of these messages.
        last_event: the time at which the latest confirm or delivery arrived.
        secret: how the messages of this run begin.
    """

    def __init__(self, job: Job, orders: Orders) -> None:
        # The name of this process's connections in the broker's lists.
        os.environ["MQTOOL_CONNECTION_NAME"] = " ".join(("mqtool bench", job.role, str(job.number + 1)))
        self.job = job
        self.plan = job.plan
        self.secret = job.secret.encode()
        self.orders = orders
        self.latencies = Latencies()
        self.wire: Wire | None = None
        self.start = self.measured_from = 0
        self.measured = 0
        self._reconnects = self._others = 0
        self.last_event = 0
        self._gap = (0, 0)

    def run(self) -> None:
        """Connect, wait for the order to start, and do the job."""
        self.open(self.connected())
        tell(ready=True)
        if (order := self.orders.next()).get("start") is None:
            return
        self.start = int(order["start"])
        self.measured_from = self.start + round(self.plan.warm_up * SECOND)
        self.last_event, before = self.start, CpuTime.now()
        ended = self._loop()
        cpu = before.fractions(CpuTime.now(), (ended - self.start) / SECOND)
        if self.wire is None:
            self.happened(ended)  # the connection was lost, and the broker is still down
        else:
            self.leave(self.wire)
            self.wire = None
        gap, at = self._gap
        tell(
            **self.report(),
            done=True,
            latencies=self.latencies.pairs(),
            gap=gap / SECOND,
            gap_at=(at - self.start) / SECOND,
            cpu=cpu,
            reconnects=self._reconnects,
            others=self._others,
        )

    def connected(self) -> Wire:
        """Connect to the first node that accepts the connection.

        Raises:
            MqtoolError: no node accepts it.
        """
        kind = wire_for(self.plan.protocol)
        failure: MqtoolError | None = None
        for address in self.job.addresses:
            try:
                return kind(address, self.job.tls)
            except MqtoolError as error:
                failure = error
            except OSError as error:
                failure = connecting(error, address)
        raise failure or Unavailable("no address to connect to")

    def _loop(self) -> int:
        """Do the job, sending reports several times a second; return the time at which the job ended."""
        report_at = time.monotonic_ns()
        while True:
            now = time.monotonic_ns()
            if self.orders.is_over or self.is_done(now):
                return now
            try:
                if now >= report_at:
                    report_at = now + round(_REPORT * SECOND)
                    tell(**self.report())
                if self.wire is None:
                    self._open_again()
                else:
                    until = min(self.work(self.wire, now), report_at)
                    self.wire.wait(max(0, until - time.monotonic_ns()) / SECOND)
            except ConnectionError:
                self._lose()

    def _open_again(self) -> None:
        if select.select([self.orders], [], [], _RETRY)[0]:
            self.orders.read()
            return
        try:
            wire = self.connected()
        except MqtoolError:  # the broker is not back yet
            return
        self.open(wire)
        self._reconnects += 1

    def _lose(self) -> None:
        if self.wire is not None:
            self.wire.close()
        self.wire = None
        self.lost()

    def happened(self, at: int) -> None:
        """Record that a confirm or a delivery has arrived, and update the longest gap between two of them."""
        self._gap = max(self._gap, (at - self.last_event, self.last_event))
        self.last_event = at

    def of_this_run(self, batch: list[Delivery]) -> list[Delivery]:
        """Return the messages of this run; only count the others, which anyone may have published."""
        secret = self.secret
        found = [delivery for delivery in batch if delivery.body.startswith(secret)]
        self._others += len(batch) - len(found)
        return found

    # Methods that each role overrides.

    def open(self, wire: Wire) -> None:
        """Set up a new connection."""
        self.wire = wire
        wire.watch(self.orders.fileno(), self.orders.read)

    def lost(self) -> None:
        """Discard state that is no longer valid because the connection was lost."""

    def leave(self, wire: Wire) -> None:
        """Close the connection at the end of the job."""
        wire.close()

    def work(self, wire: Wire, now: int) -> int:
        """Do what can be done without waiting; return the time at which there is more to do."""
        raise NotImplementedError

    def is_done(self, now: int) -> bool:
        """Return True if the job is done."""
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        """Return what has happened since the last report."""
        raise NotImplementedError
