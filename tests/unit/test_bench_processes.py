"""The processes of `bench`: the instructions that they read, the reports that they send, and what they do when the
connection is lost. The clock advances only while a process waits, so no test takes longer than its work.
"""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mqtool.amqp import Address, TlsFiles
from mqtool.benching import client_process
from mqtool.benching.amqp10_wire import Amqp10Wire
from mqtool.benching.client_process import SECOND, BenchClient, CommandEnded, CpuTime, Orders, tell, wire_for
from mqtool.benching.plan import BenchPlan, Job, told
from mqtool.benching.stream_wire import StreamWire
from mqtool.benching.wire import AmqpWire, Wire
from mqtool.errors import AccessRefused, MqtoolError, Unavailable
from tests.unit.test_bench_clients import START, Recorded

MS = SECOND // 1000
NODES = [Address("one"), Address("two")]
TLS = TlsFiles(Path("ca.pem"))


class Command:
    """The command that runs the benchmark, with its pipes to a process, and a clock.

    Attributes:
        reports: what the process has reported, and when, in milliseconds after START.
        accepted: the number of bytes that the pipe accepts at once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = START
        self.reports: list[tuple[int, dict[str, Any]]] = []
        self.accepted = 1 << 16
        self.used, self.opened = 0.0, 0
        self._events: list[tuple[int, Callable[[], None]]] = []
        self._orders = b""
        self._has_ended = False
        self._written = b""
        same = {"environ": {}, "fspath": os.fspath}
        monkeypatch.setattr(client_process, "os", SimpleNamespace(read=self._read, write=self._write, **same))
        monkeypatch.setattr(client_process, "select", SimpleNamespace(select=self._select))
        clock = SimpleNamespace(monotonic_ns=lambda: self.now, process_time=lambda: self.used)
        monkeypatch.setattr(client_process, "time", clock)

    def at(self, milliseconds: float, event: Callable[[], None]) -> None:
        """Call a function at a time after START."""
        self._events.append((START + round(milliseconds * MS), event))

    def order(self, milliseconds: float, **values: Any) -> None:
        self.at(milliseconds, lambda: self.send(told(values)))

    def send(self, data: bytes) -> None:
        self._orders += data

    def end(self) -> None:
        self._has_ended = True

    @property
    def is_readable(self) -> bool:
        return bool(self._orders) or self._has_ended

    def wait(self, seconds: float) -> bool:
        """Let the time pass until there is an order; return True if there is one."""
        until = self.now + round(seconds * SECOND)
        while not self.is_readable:
            self._events.sort(key=lambda event: event[0])
            if not self._events or self._events[0][0] > until:
                assert until < START + 10**5 * SECOND, "would wait forever"
                self.now = until
                return False
            when, event = self._events.pop(0)
            self.now = max(self.now, when)
            event()
        return True

    def _read(self, descriptor: int, size: int) -> bytes:
        assert (descriptor, size) == (0, 1 << 16)
        self.wait(10**9)
        data, self._orders = self._orders, b""
        return data

    def _write(self, descriptor: int, data: bytes) -> int:
        assert descriptor == 1
        self._written += data[: self.accepted]
        *lines, self._written = self._written.split(b"\n")
        self.reports += [((self.now - START) // MS, json.loads(line)) for line in lines]
        return min(len(data), self.accepted)

    def _select(self, readable: list[Any], writable: list[Any], failed: list[Any], seconds: float) -> Any:
        assert [each.fileno() for each in readable] == [0]
        assert (writable, failed) == ([], [])
        return (readable if self.wait(seconds) else [], [], [])


class Waiting(Recorded):
    """A connection that waits for orders, and is lost at given times after START, in milliseconds."""

    def __init__(self, command: Command, *lost_at: float) -> None:
        super().__init__()
        self.command = command
        self.lost_at = [*lost_at]
        self.orders: tuple[int, Callable[[], None]] | None = None

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        self.orders = descriptor, on_readable

    def wait(self, seconds: float) -> None:
        assert self.orders is not None
        assert self.orders[0] == 0
        if self.command.wait(seconds):
            self.orders[1]()
        if self.lost_at and self.command.now >= START + self.lost_at[0] * MS:
            raise ConnectionError


class Worker(BenchClient):
    """A client that works every 100 ms, until a time after START in milliseconds."""

    ends_at = 10**9
    losses = 0

    def __init__(self, command: Command, *wires: Wire | MqtoolError, **settings: Any) -> None:
        job = Job("publisher", 2, BenchPlan(**settings), NODES, NODES, TLS, "", "key", "q", "runs-own")
        super().__init__(job, Orders())
        self.command, self.wires = command, [*wires]
        self.worked: list[int] = []
        self.left: list[Wire] = []

    def connected(self) -> Wire:
        wire = self.wires.pop(0)
        if isinstance(wire, MqtoolError):
            raise wire
        return wire

    def lost(self) -> None:
        self.losses += 1

    def leave(self, wire: Wire) -> None:
        self.left.append(wire)
        super().leave(wire)

    def work(self, wire: Wire, now: int) -> int:
        assert wire is self.wire
        self.worked.append((now - START) // MS)
        return now + 100 * MS

    def is_done(self, now: int) -> bool:
        return now >= START + self.ends_at * MS

    def report(self) -> dict[str, Any]:
        return {"worked": len(self.worked)}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(monkeypatch)


def test_a_client_of_bench_starts_when_it_is_told_to_and_reports_four_times_a_second(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A client of `bench` (a publisher or a consumer) connects, reports that it is ready, and waits until `bench` tells
    it when the run starts. It then reports its figures every 250 ms, and once more when it is done.
    """
    waited = tmp_path / "schedstat"
    waited.write_text("5 0 7")
    monkeypatch.setattr(client_process, "_WAITED", waited)
    wire = Waiting(command)
    client = Worker(command, wire, warm_up=0.5)
    client.ends_at = 600
    command.at(-500, lambda: command.send(told({"start": START})))
    command.now = START - SECOND

    def half_way() -> None:
        client.happened(START + 100 * MS)
        client.happened(START + 300 * MS)
        client.latencies.record([1_000_000])
        command.used = 0.15
        waited.write_text(f"5 {30 * MS} 7")

    command.at(300, half_way)
    client.run()
    assert (client.start, client.measured_from) == (START, START + 500 * MS)
    assert command.reports == [
        (-1000, {"ready": True}),
        (-500, {"worked": 0}),
        (-250, {"worked": 3}),
        (0, {"worked": 6}),
        (250, {"worked": 9}),
        (500, {"worked": 12}),
        (600, {"worked": 13, "done": True, "latencies": [[1000, 1]], "gap": 0.2, "gap_at": 0.1,
               "cpu": pytest.approx([0.25, 0.05]), "reconnects": 0, "others": 0}),
    ]  # fmt: skip
    assert client.worked == [-500, -400, -300, -250, -150, -50, 0, 100, 200, 250, 350, 450, 500]
    assert (client.left, wire.is_closed, client.wire) == ([wire], True, None)


def test_a_client_of_bench_stops_when_it_is_told_to(command: Command) -> None:
    """If `bench` tells a client to stop, the client stops immediately, and reports its last figures."""
    client = Worker(command, Waiting(command))
    command.order(0, start=START)
    command.order(130, stop=True)
    client.run()
    assert [(at, report.get("done")) for at, report in command.reports] == [(0, None), (0, None), (130, True)]
    assert len(client.left) == 1


def test_a_client_that_is_told_to_stop_before_the_run_starts_does_no_work(command: Command) -> None:
    """If `bench` tells a client to stop before the run has started, the client ends. It does no work, and reports only
    that it was ready.
    """
    client = Worker(command, Waiting(command))
    command.order(0, stop=True)
    client.run()
    assert (command.reports, client.worked) == ([(0, {"ready": True})], [])


@pytest.mark.parametrize("up_at", [1300, None], ids=["broker comes back", "broker stays away"])
def test_a_client_of_bench_that_loses_its_connection_reconnects(command: Command, up_at: int | None) -> None:
    """If a client of `bench` loses its connection, it tries to reconnect every 100 ms, and then continues its work.
    While it has no connection, it still sends reports. If it has no connection at the end of the run, its last report
    says for how long it has received no confirm or delivery (`gap`).
    """
    first, second = Waiting(command, 500), Waiting(command)
    down = [Unavailable("no broker")] * (8 if up_at else 999)
    client = Worker(command, first, *down, second)
    client.ends_at = 2000
    command.order(0, start=START)
    client.run()
    at, last = command.reports[-1]
    assert (at, last["done"], client.losses, first.is_closed) == (2000, True, 1, True)
    times = [each for each, _ in command.reports[1:]]
    assert max(after - before for before, after in pairwise(times)) < 350
    if up_at:
        assert (last["reconnects"], last["gap"], client.left) == (1, 0, [second])
        assert second.orders is not None
        assert min(each for each in client.worked if each > 500) == 500 + 900
    else:
        assert (last["reconnects"], last["gap"], last["gap_at"], client.left) == (0, 2.0, 0.0, [])
        assert max(client.worked) <= 500


def test_a_client_of_bench_can_be_stopped_while_it_tries_to_reconnect(command: Command) -> None:
    """While a client of `bench` tries to reconnect, `bench` can still tell it to stop. The client then stops
    immediately.
    """
    client = Worker(command, Waiting(command, 500), *[Unavailable("no broker")] * 999)
    command.order(0, start=START)
    command.order(740, stop=True)
    client.run()
    assert command.reports[-1][0] == 740


def test_a_connection_that_is_lost_while_it_is_set_up_counts_as_another_loss(command: Command) -> None:
    """If a client of `bench` reconnects, but loses the new connection while setting it up, this counts as another loss,
    and the client tries again. The number of reconnections in its report includes only connections that it has set up
    completely.
    """

    class Broken(Waiting):
        def watch(self, *_: object) -> None:
            raise ConnectionError

    broken, whole = Broken(command), Waiting(command)
    client = Worker(command, Waiting(command, 500), broken, whole)
    client.ends_at = 1000
    command.order(0, start=START)
    client.run()
    assert (client.losses, broken.is_closed, client.left) == (2, True, [whole])
    assert command.reports[-1][1]["reconnects"] == 1


@pytest.mark.parametrize("when", [-1, 130, 740], ids=["before the start", "running", "connection lost"])
def test_a_client_of_bench_ends_if_the_command_is_killed(command: Command, when: int) -> None:
    """If the `bench` command is killed, its clients end, whether they are waiting for the start of the run, sending
    or receiving messages, or trying to reconnect.
    """
    command.now = START - SECOND
    client = Worker(command, Waiting(command, 500), *[Unavailable("no broker")] * 999)
    if when > 0:
        command.order(0, start=START)
    command.at(when, command.end)
    with pytest.raises(CommandEnded):
        client.run()
    assert command.now == START + when * MS


def test_instructions_to_a_bench_client_may_arrive_in_pieces_or_together(command: Command) -> None:
    """A client of `bench` reads its instructions, such as when to start, from a pipe. It receives each instruction
    exactly once and in full, whether the instruction arrives in several pieces or together with another one.
    """
    orders = Orders()
    command.send(b'{"a": 1}\n{"b"')
    assert orders.next() == {"a": 1}
    command.at(1, lambda: command.send(b": 2}\n{"))
    assert orders.next() == {"b": 2}
    assert not orders.is_over
    command.send(b'"stop": true}\n{"c": 3}\n')
    assert [orders.next(), orders.next(), orders.is_over, orders.fileno()] == [{"stop": True}, {"c": 3}, True, 0]


def test_a_report_that_the_pipe_to_bench_accepts_in_pieces_arrives_complete(command: Command) -> None:
    """If the pipe to `bench` accepts only a part of a client's report at a time, the client sends the rest afterwards,
    so that `bench` receives the complete report.
    """
    command.accepted = 7
    tell(confirmed=[[0, 10]], file=Path("x"))
    assert command.reports == [(0, {"confirmed": [[0, 10]], "file": "x"})]


@pytest.mark.parametrize(
    ("protocol", "kind"), [("amqp0.9.1", AmqpWire), ("amqp1.0", Amqp10Wire), ("stream", StreamWire)]
)
def test_the_option_protocol_sets_the_protocol_of_the_clients(protocol: str, kind: type[Wire]) -> None:
    """With `--protocol`, the clients of `bench` use the given protocol: AMQP 0-9-1, AMQP 1.0 or the stream protocol."""
    assert wire_for(protocol) is kind


@pytest.mark.parametrize(
    ("outcomes", "error", "message"),
    [
        ([None], None, ""),
        ([Unavailable("first"), None], None, ""),
        ([ConnectionRefusedError(111, "refused"), None], None, ""),
        ([Unavailable("first"), AccessRefused("second")], AccessRefused, "^second$"),
        ([AccessRefused("first"), OSError(113, "No route")], Unavailable, "two:5672: no route"),
        ([], Unavailable, "^no address to connect to$"),
    ],
    ids=["first node", "second node", "second node after a refusal", "none", "none reachable", "no nodes"],
)
def test_a_client_of_bench_uses_the_first_node_that_accepts_its_connection(
    monkeypatch: pytest.MonkeyPatch, outcomes: list[Exception | None], error: type[MqtoolError] | None, message: str
) -> None:
    """A client of `bench` tries the nodes of the broker one after another, and uses the first one that accepts its
    connection. If no node accepts it, the client fails with the error of the last node.
    """
    asked: list[tuple[Address, TlsFiles]] = []
    wire = Recorded()

    def connect(address: Address, tls: TlsFiles) -> Wire:
        asked.append((address, tls))
        if (outcome := outcomes[len(asked) - 1]) is not None:
            raise outcome
        return wire

    def kind(protocol: str) -> Callable[[Address, TlsFiles], Wire]:
        assert protocol == "amqp1.0"
        return connect

    monkeypatch.setattr(client_process, "wire_for", kind)
    monkeypatch.setenv("MQTOOL_CONNECTION_NAME", "unchanged")
    nodes = NODES[: len(outcomes)] if error else NODES
    job = Job("consumer", 0, BenchPlan(protocol="amqp1.0"), nodes, NODES, TLS, "", "key", "q", "runs-own")
    client = BenchClient(job, Orders())
    if error is None:
        assert client.connected() is wire
    else:
        with pytest.raises(error, match=message):
            client.connected()
    assert asked == [(address, TLS) for address in NODES[: len(outcomes)]]


@pytest.mark.parametrize(
    ("text", "waited"), [("5 3500000000 7", 3.5), (None, 0.0), ("5", 0.0), ("5 many 7", 0.0)],
    ids=["Linux", "no file", "too short", "not a number"],
)  # fmt: skip
def test_a_client_of_bench_measures_its_own_cpu_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, waited: float
) -> None:
    """A client of `bench` measures what fraction of the run it spent using a CPU, and what fraction it spent waiting
    for one. On systems that do not report how long a process waits for a CPU, the waiting time counts as 0.
    """
    file = tmp_path / "schedstat"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(client_process, "_WAITED", file)
    before = CpuTime.now()
    assert (before.waited, before.used > 0) == (waited, True)
    assert before.fractions(CpuTime(before.used + 1, waited + 2), 4.0) == pytest.approx((0.25, 0.5))
    assert before.fractions(CpuTime(before.used + 1, waited + 2), 0.5) == pytest.approx((2.0, 4.0))
    assert before.fractions(CpuTime(before.used + 1, waited + 2), 0.0) == (0.0, 0.0)
