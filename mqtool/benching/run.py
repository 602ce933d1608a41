"""One run: declares its own queue, starts the processes, reads their reports, and returns the result."""

import contextlib
import os
import secrets
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from mqtool.amqp import Channel
from mqtool.benching.declared import delete_declared
from mqtool.benching.plan import STREAM, BenchPlace, BenchPlan, Job, Timed, lines_in, told
from mqtool.benching.result import QUIET, Result, Snapshot
from mqtool.benching.tally import Latencies, Tally
from mqtool.delays import wait_queues
from mqtool.errors import ExitCode, MqtoolError, Unavailable
from mqtool.management import Management
from mqtool.message import new_message_id
from mqtool.topology import Exchange, Queue

_SECOND = 1_000_000_000
#: Seconds between two checks for new reports, and between the order to start and the start.
_LOOK, _LEAD = 0.1, 0.1
#: Seconds to wait for the processes to get ready, and for them to finish.
_READY, _END = 30.0, 10.0
#: Seconds to wait for deliveries after the run has been interrupted.
_SHORTLY = 1.0
#: Milliseconds after which the broker deletes the queue of a run that was killed.
_EXPIRES = 600_000


@dataclass(slots=True)
class RunningClient:
    """A process of a run, and what it has reported so far."""

    role: str
    number: int
    process: "subprocess.Popen[bytes]"
    rest: bytes = b""
    told: dict[str, Any] = field(default_factory=dict)

    def say(self, **values: Any) -> None:
        """Send an order to the process, if it is still running."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(told(values))
            self.process.stdin.flush()

    @property
    def is_done(self) -> bool:
        return bool(self.told.get("done"))


#: Only on Linux.
_PROC = Path("/proc")


class BrokerUse:
    """The CPU and memory that the broker uses, according to its management API and, on this machine, /proc."""

    def __init__(self, find_api: Callable[[], Management]) -> None:
        self._find_api = find_api
        self._pid: int | None = None
        self._cpu = 0.0
        self._began = 0.0
        self._api: Management | None = None

    def begin(self) -> None:
        """Start measuring, if that is possible."""
        with contextlib.suppress(MqtoolError):
            self._api = self._find_api()
            nodes = self._nodes()
            pid = int(nodes[0].get("os_pid") or 0) if len(nodes) == 1 else 0
            command = _PROC / str(pid) / "cmdline"
            # A broker in a container has a different PID here; the process with the reported PID is not the broker.
            if pid and command.exists() and any(name in command.read_bytes() for name in (b"rabbit", b"mqtool")):
                self._pid, self._cpu, self._began = pid, _cpu_time(pid), time.monotonic()

    def end(self) -> tuple[float | None, int | None]:
        """Return the number of CPUs used since begin(), and the memory in use now; None if unknown."""
        cpu: float | None = None
        memory: int | None = None
        with contextlib.suppress(MqtoolError, OSError, ValueError, KeyError):
            if self._api is not None:
                memory = sum(int(node["mem_used"]) for node in self._nodes()) or None
            if self._pid is not None:
                cpu = (_cpu_time(self._pid) - self._cpu) / (time.monotonic() - self._began)
                pages = int((_PROC / str(self._pid) / "statm").read_text().split()[1])
                memory = pages * os.sysconf("SC_PAGE_SIZE")
        return cpu, memory

    def _nodes(self) -> list[dict[str, Any]]:
        assert self._api is not None
        return list(self._api.items("nodes", ("os_pid", "mem_used")))


def _cpu_time(pid: int) -> float:
    """Return the CPU time in seconds of a process on this machine."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_Thing = TypeVar("_Thing", Queue, Exchange)


class Run:
    """Context manager for one run. Declares what the run needs, and deletes it at the end.

    Args:
        commands: shell commands to run at given times after the start.
        notice: called with a sentence to show to the user.
    """

    def __init__(
        self,
        plan: BenchPlan,
        place: BenchPlace,
        *,
        commands: Sequence[Timed] = (),
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.plan = plan
        self._place = place
        self._commands = sorted(commands)
        self._notice = notice
        self._name = f"mqtool-bench-{new_message_id()[:8]}"
        self._secret = secrets.token_urlsafe(6)
        self._things: list[Queue | Exchange] = []
        self._routing_key = ""
        self._addresses = place.addresses
        self._clients: list[RunningClient] = []
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._tally = Tally(each_gets_all=plan.queue_type == "stream")
        self._stopping = False
        self._start = 0.0
        self._series: list[Snapshot] = []

    def __enter__(self) -> Self:
        try:
            self._declare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _declare(self) -> None:
        with self._place.connect() as connection:
            self.broker = connection.broker_to_show
            if self.plan.churn is not None:
                return
            channel = connection.channel()
            arguments: dict[str, Any] = {"x-queue-type": self.plan.queue_type}
            if self.plan.queue_type != "stream":
                arguments["x-expires"] = _EXPIRES
            first = self._declared(Queue(self._name, durable=True, arguments=arguments))
            channel.declare(first)
            if self.plan.delay:
                first = self._declare_wait_queue(channel)
            self._routing_key = first.name
            if self.plan.exchange is not None:
                # If this command is killed, the queue expires, and the exchange is then auto-deleted.
                exchange = self._declared(Exchange(self._name, self.plan.exchange, durable=True, auto_delete=True))
                channel.bind(first, channel.declare(exchange), first.name)
        if self.plan.protocol == STREAM:
            self._addresses = [self._place.find_leader(self._name)]

    def _declared(self, thing: _Thing) -> _Thing:
        """Remember something that is about to be declared, so that it can be deleted at the end."""
        self._things.append(thing)
        return thing

    def _declare_wait_queue(self, channel: Channel) -> Queue:
        """Declare a queue that passes messages on to the consumers' queue after the delay."""
        wait_for = round(self.plan.delay * 1000)
        queue = self._declared(wait_queues.wait_queue(f"{self._name}.wait", wait_for, "", self._name))
        if self.plan.queue_type == "quorum":
            return wait_queues.AtLeastOnce(channel, self._notice).declare(queue)
        return channel.declare(queue)

    def __exit__(self, *error: object) -> None:
        for client in self._clients:
            if client.process.poll() is None:
                client.process.kill()
            client.process.wait()
        for timed in self._commands if self._start else ():
            self._notice(f"the run was over before {timed.at:g} s, so this did not run: {timed.command}")
        for command, process in self._running.items():
            if process.poll() is None:
                self._notice(f"still running: {command}")
        self._selector.close()
        if not self._things:
            return
        try:
            delete_declared(self._place.addresses, self._place.tls, self._things)
        except MqtoolError as failure:
            self._notice(f"queue {self._name!r} could not be deleted: {failure}")

    def stop(self) -> None:
        """End the run early; perform() returns the result so far. For use in a signal handler on the main thread.

        Raises:
            KeyboardInterrupt: nothing has been declared yet, so there is nothing to wait for.
        """
        self._stopping = True
        if not (self._things or self._clients):
            raise KeyboardInterrupt

    def perform(self, progress: Callable[[Snapshot], None] = lambda _: None) -> Result:
        """Publish and receive messages; return the result.

        Args:
            progress: called several times a second.

        Raises:
            MqtoolError: the broker refuses what the run needs, or a process has failed.
        """
        for number in range(self.plan.consumers if self.plan.churn is None else 0):
            self._launch("consumer", number)
        for number in range(self.plan.publishers):
            self._launch("publisher", number)
        is_ready = self._follow(lambda: all(client.told.get("ready") for client in self._clients), _READY)
        if self._stopping:
            raise KeyboardInterrupt
        if not is_ready:
            raise Unavailable(f"the publishers and consumers were not ready within {_READY:g} s")
        use = BrokerUse(self._place.find_api)
        use.begin()
        self._start = time.monotonic() + _LEAD
        for client in self._clients:
            client.say(start=round(self._start * _SECOND))
        self._publish(progress)
        if self.plan.churn is None:
            self._drain(progress)
        cpu, memory = use.end()
        self._end("consumer")
        return self._result(cpu, memory)

    def _launch(self, role: str, number: int) -> None:
        place, exchange = self._place, self._name if self.plan.exchange else ""
        nodes = (self._addresses, place.addresses)
        job = Job(role, number, self.plan, *nodes, place.tls, exchange, self._routing_key, self._name, self._secret)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mqtool.benching"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # only the command handles Ctrl-C, and tells the processes to stop
        )
        client = RunningClient(role, number, process)
        self._clients.append(client)
        self._selector.register(process.stdout, selectors.EVENT_READ, client)  # type: ignore[arg-type]
        client.say(**job.as_told())

    # Reading the reports.

    def _follow(self, condition: Callable[[], bool], patience: float) -> bool:
        """Read reports until the condition is met, the run is stopped or time is up; return True if it was met."""
        deadline = time.monotonic() + patience
        while not condition():
            if self._stopping or time.monotonic() > deadline:
                return False
            self._read()
        return True

    def _read(self) -> None:
        for key, _ in self._selector.select(_LOOK):
            client: RunningClient = key.data
            data = os.read(key.fd, 1 << 18)
            if not data:
                self._selector.unregister(key.fileobj)
                if not client.is_done:
                    raise Unavailable(f"{client.role} {client.number + 1} ended with code {client.process.wait()}")
                continue
            lines, client.rest = lines_in(client.rest + data)
            for line in lines:
                self._take(client, line)

    def _take(self, client: RunningClient, report: dict[str, Any]) -> None:
        if "failed" in report:
            where = f"{client.role} {client.number + 1}: " if client.told.get("ready") else ""
            error = MqtoolError(where + report["failed"], report["hint"])
            error.exit_code = ExitCode(report["exit_code"])
            raise error
        self._tally.confirm(client.number, report.pop("confirmed", ()))
        for publisher, runs in report.pop("runs", ()):
            self._tally.receive(client.number, publisher, runs)
        client.told |= report

    def _of(self, role: str) -> list[RunningClient]:
        return [client for client in self._clients if client.role == role]

    def _sum(self, role: str, what: str) -> int:
        return sum(client.told.get(what, 0) for client in self._of(role))

    def _snapshot(self) -> Snapshot:
        published, received = self._sum("publisher", "published"), self._sum("consumer", "received")
        return Snapshot(time.monotonic() - self._start, published, self._tally.confirmed, received)

    def _look(self, progress: Callable[[Snapshot], None]) -> Snapshot:
        self._read()
        snapshot = self._snapshot()
        while self._commands and snapshot.seconds >= self._commands[0].at:
            command = self._commands.pop(0).command
            self._notice(f"{snapshot.seconds:.1f} s: {command}")
            self._running[command] = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),  # mqtool's standard output is for the result
            )
        if not self._series or snapshot.seconds >= self._series[-1].seconds + _LOOK:
            self._series.append(snapshot)
        progress(snapshot)
        return snapshot

    def _publish(self, progress: Callable[[Snapshot], None]) -> None:
        """Read the publishers' reports until all messages are confirmed or confirms stop arriving."""
        moved, moved_at = (0, 0, 0), time.monotonic()
        while not all(client.is_done for client in self._of("publisher")):
            snapshot = self._look(progress)
            if snapshot[1:] != moved:
                moved, moved_at = snapshot[1:], time.monotonic()
            is_late = self.plan.duration is None or snapshot.seconds > self.plan.duration
            if self._stopping or (is_late and time.monotonic() > moved_at + QUIET):
                break
        self._end("publisher")

    def _drain(self, progress: Callable[[Snapshot], None]) -> None:
        """Read the consumers' reports until all confirmed messages have been received or deliveries stop arriving."""
        wanted = self._tally.confirmed * (self.plan.consumers if self.plan.queue_type == "stream" else 1)
        before, moved_at = -1, time.monotonic()
        while self._tally.received < wanted:
            received = self._look(progress).received
            if received != before and not self._stopping:
                before, moved_at = received, time.monotonic()
            elif time.monotonic() > moved_at + (_SHORTLY if self._stopping else QUIET + self.plan.delay):
                return

    def _end(self, role: str) -> None:
        for client in self._of(role):
            client.say(stop=True)
        deadline = time.monotonic() + _END
        while not all(client.is_done for client in self._of(role)) and time.monotonic() < deadline:
            self._read()

    def _result(self, cpu: float | None, memory: int | None) -> Result:
        tally, told_by = self._tally, [client.told for client in self._clients]
        merged = {role: Latencies() for role in ("publisher", "consumer")}
        for client in self._clients:
            merged[client.role].merge(client.told.get("latencies", ()))
            merged["consumer"].merge(client.told.get("removed", ()))
        snapshot = self._snapshot()
        published = self._sum("publisher", "published")
        nacked = self._sum("publisher", "nacked")
        gaps = [max((client.told.get("gap", 0.0) for client in self._of(role)), default=0.0) for role in merged]
        missing = tally.lost(self.plan.consumers) if self.plan.churn is None else 0
        # A run at full speed for a given time has no planned number of messages, so none count as unsent.
        is_asked_for = self.plan.rate is not None or self.plan.duration is None
        unsent = max(0, (self.plan.total or 0) - published) if is_asked_for and not self._stopping else 0
        return Result(
            plan=self.plan,
            broker=self.broker,
            seconds=snapshot.seconds,
            confirm=merged["publisher"],
            deliver=merged["consumer"],
            rates=(self._rate("publisher", "sent"), self._rate("publisher"), self._rate("consumer")),
            published=published,
            confirmed=tally.confirmed,
            received=tally.received,
            nacked=nacked,
            unconfirmed=published - tally.confirmed - nacked,
            unsent=unsent,
            lost=0 if self._stopping else missing,
            waiting=missing if self._stopping else 0,
            duplicated=tally.duplicated,
            redelivered=tally.redelivered,
            out_of_order=tally.out_of_order,
            others=sum(each.get("others", 0) for each in told_by),
            reconnects=sum(each.get("reconnects", 0) for each in told_by),
            gap=(gaps[0], gaps[1]),
            busiest=max((each["cpu"] for each in told_by if "cpu" in each), key=sum, default=(0.0, 0.0)),
            broker_cpu=cpu,
            broker_memory=memory,
            series=self._series,
            stopped=self._stopping,
            failed_commands=[command for command, process in self._running.items() if process.poll()],
        )

    def _rate(self, role: str, what: str = "measured") -> float:
        """Return the messages per second from the end of the warm-up until the last message."""
        last = max((client.told.get(f"{what}_at", 0) for client in self._of(role)), default=0)
        waited = self.plan.delay if role == "consumer" else 0.0
        seconds = last / _SECOND - self._start - self.plan.warm_up - waited
        return self._sum(role, what) / seconds if seconds > 0 else 0.0
