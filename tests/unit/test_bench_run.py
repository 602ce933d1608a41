"""`bench` starts its clients, follows their reports, and adds them up.

The clients are scripted, and the time passes only while `bench` waits for their reports, so no test takes longer than
its work.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from mqtool.amqp import Address, Connection, TlsFiles
from mqtool.benching import run as bench_run
from mqtool.benching.plan import BenchPlace, BenchPlan, Job, Timed, told
from mqtool.benching.result import Result, Snapshot
from mqtool.benching.run import BrokerUse, Run
from mqtool.errors import ExitCode, MqtoolError, Unavailable, UsageError
from mqtool.management import Management
from mqtool.topology import Exchange, Queue

SECOND = 1_000_000_000
NODE, LEADER = Address("node", 5672), Address("leader", 5552)

#: What a client does when it is started: it can make reports now, or at a later time.
Script = Callable[["Client"], None]


class Client:
    """A process that `bench` starts, with the part of Popen that `bench` uses. It does what a script says."""

    def __init__(self, world: "World", arguments: Sequence[str], **options: Any) -> None:
        self.world, self.arguments, self.options = world, arguments, options
        source, self._sink = os.pipe()
        self.stdout = os.fdopen(source, "rb", buffering=0)
        self.stdin = self
        self.orders: list[dict[str, Any]] = []
        self.code: int | None = None
        self.was_killed = False

    @property
    def job(self) -> Job:
        return Job.from_told(self.orders[0])

    @property
    def start(self) -> float:
        """The time at which the run starts, from the order to the client."""
        return float(self.orders[1]["start"]) / SECOND

    def write(self, line: bytes) -> None:
        if self.code is not None:
            raise BrokenPipeError
        assert line.endswith(b"\n")
        self.orders.append(json.loads(line))

    def flush(self) -> None:
        if len(self.orders) == 1:
            self.world.script(self)
        elif "start" in self.orders[-1]:
            self.world.work(self)
        elif "stop" in self.orders[-1]:
            self.world.on_stop(self)

    def report(self, **values: Any) -> None:
        os.write(self._sink, told(values))

    def write_raw(self, data: bytes) -> None:
        os.write(self._sink, data)

    def later(self, seconds: float, **values: Any) -> None:
        """Report at a time after the start of the run."""
        self.world.at(self.start + seconds, lambda: self.report(**values))

    def end(self, code: int) -> None:
        os.close(self._sink)
        self.code = code

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.was_killed = True
        self.end(-signal.SIGKILL)

    def wait(self) -> int:
        assert self.code is not None, "would wait forever"
        return self.code


class World:
    """Clients, the clock, and what has been declared.

    Attributes:
        script: what a client does with its job.
        work: what a client does when the run starts.
        on_stop: what a client does when it is told to stop.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.clients: list[Client] = []
        self.commands: list[tuple[float, Any, Mapping[str, Any]]] = []
        self.command_code: int | None = 0
        self.deleted: list[Any] = []
        self.notices: list[str] = []
        self.channel = Mock()
        self.channel.declare.side_effect = lambda thing, **_: thing
        self.api = Mock(Management)
        self.api.items.return_value = [{"os_pid": "0", "mem_used": 77}]
        self.script: Script = lambda client: client.report(ready=True)
        self.work: Script = lambda _: None
        self.on_stop: Script = lambda client: client.report(done=True)
        self._events: list[tuple[float, Callable[[], None]]] = []
        world = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                assert timeout is not None
                return super().select(0) or world.wait(timeout) or super().select(0)

        monkeypatch.setattr(bench_run, "selectors", SimpleNamespace(DefaultSelector=Selector, EVENT_READ=1))
        monkeypatch.setattr(bench_run, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(bench_run, "delete_declared", self._delete)
        processes = SimpleNamespace(Popen=self._launch, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
        monkeypatch.setattr(bench_run, "subprocess", processes)

    def _launch(self, arguments: Sequence[str], **options: Any) -> Any:
        if arguments[0] == "/bin/sh":
            self.commands.append((self.now, arguments, options))
            return SimpleNamespace(poll=lambda: self.command_code)
        self.clients.append(Client(self, arguments, **options))
        return self.clients[-1]

    def _delete(self, addresses: Sequence[Address], tls: TlsFiles, things: Sequence[Queue | Exchange]) -> None:
        self.deleted.append((addresses, tls, [*things]))

    def _leader(self, stream: str) -> Address:
        assert stream == self.channel.declare.call_args.args[0].name
        return LEADER

    def at(self, when: float, event: Callable[[], None]) -> None:
        self._events.append((when, event))

    def wait(self, seconds: float) -> None:
        """Let the time pass until something happens, but no longer than this."""
        self._events.sort(key=lambda event: event[0])
        until = self.now + seconds
        if self._events and self._events[0][0] <= until:
            self.now, event = max(self.now, self._events[0][0]), self._events.pop(0)[1]
            event()
        else:
            self.now = until

    def run(self, *commands: Timed, **settings: Any) -> Run:
        connection = Mock(Connection)
        connection.__enter__ = lambda _: connection
        connection.__exit__ = lambda *_: None
        connection.broker_to_show = "RabbitMQ 4.1"
        connection.channel.return_value = self.channel
        place = BenchPlace(
            [NODE], TlsFiles(Path("ca.pem")), lambda: cast(Connection, connection), lambda: self.api, self._leader
        )
        plan = BenchPlan(**{"duration": None, "messages": 10, "queue_type": "classic"} | settings)
        return Run(plan, place, commands=commands, notice=self.notices.append)

    def result(self, *commands: Timed, **settings: Any) -> Result:
        with self.run(*commands, **settings) as run:
            return run.perform()

    def of(self, role: str) -> list[Client]:
        return [client for client in self.clients if client.job.role == role]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    for client in made.clients:
        client.stdout.close()


def ten_messages(client: Client) -> None:
    """Publish ten messages, confirmed after one second, and receive them after two."""
    if client.job.role == "publisher":
        client.later(1.0, published=10, confirmed=[[0, 10]], done=True)
    else:
        client.later(2.0, received=10, runs=[[0, [[0, 10, False]]]])


def test_bench_adds_up_the_figures_of_its_clients(world: World) -> None:
    """`bench` adds up the numbers that its publishers and consumers have reported, such as those of confirmed and
    received messages. Its result also contains the longest time that any publisher went without a confirm, the longest
    that any consumer went without a delivery, and the CPU use of the busiest client.
    """

    def work(client: Client) -> None:
        number, done = client.job.number, {"done": True}
        if client.job.role == "publisher":
            client.later(1.0, published=3, confirmed=[[0, 2]], nacked=0, sent=1, measured=1)
            at = {"sent_at": round((client.start + 2 + number) * SECOND), "sent": 4 - number, "measured": 3}
            at |= {"measured_at": round((client.start + 3 + number) * SECOND)}
            more = {"gap": 0.5 + number, "cpu": [0.25, 0.5 - number / 4], "reconnects": 1 + number, "others": 1}
            pairs = {"latencies": [[1000 + number, 2]], "removed": [[1007, 1]]}
            client.later(2.0, published=6, confirmed=[[2, 3], [1, 1]], nacked=1, **at, **done, **more, **pairs)
        else:
            client.later(2.5, received=7, runs=[[0, [[0, 3, False], [1, 1, False]]], [1, [[4, 1, False]]]])
            at = {"measured": 6, "measured_at": round((client.start + 4) * SECOND)}
            again = [[0, [[3, 2, True]]], [1, [[0, 4, False]]]] if number else []
            client.later(3.0, received=7 + 6 * number, runs=again, others=2, **at)

    def on_stop(client: Client) -> None:
        if client.job.role == "consumer":
            end = {"gap": 0.25, "cpu": [0.5, 0.0], "reconnects": 0, "others": 2, "latencies": [[1200, 4], [1300, 1]]}
            client.report(done=True, **end)

    world.work, world.on_stop = work, on_stop
    result = world.result(messages=12, publishers=2, consumers=2, warm_up=1.0)
    assert (result.broker, result.published, result.confirmed, result.nacked) == ("RabbitMQ 4.1", 12, 10, 2)
    assert (result.unconfirmed, result.unsent, result.lost, result.waiting) == (0, 0, 0, 0)
    assert (result.received, result.duplicated, result.redelivered, result.out_of_order) == (10, 6, 2, 4)
    assert (result.others, result.reconnects, result.gap) == (6, 3, (1.5, 0.25))
    assert result.busiest == [0.25, 0.5]
    assert result.confirm.pairs() == [(1000, 2), (1001, 2)]
    assert result.deliver.pairs() == [(1007, 2), (1200, 8), (1300, 2)]
    assert result.rates == pytest.approx(((4 + 3) / 2, (3 + 3) / 3, 12 / 3))
    assert (result.stopped, result.failed_commands) == (False, [])
    assert result.seconds == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("last", "rates"),
    [(8.0, (2.5, 2.5, 5.0)), (4.5, (20.0, 20.0, 0.0)), (4.0, (0.0, 0.0, 0.0)), (2.0, (0.0, 0.0, 0.0))],
    ids=["later", "within a second", "at the end of the warm-up", "in the warm-up"],
)
def test_rates_are_calculated_from_the_end_of_the_warm_up(world: World, last: float, rates: tuple[float, ...]) -> None:
    """In the result of `bench`, a rate is calculated over the time from the end of the warm-up to the last message.
    With `--delay`, the time for the rate of received messages begins when the first messages after the warm-up are due.
    If no message was sent or received in this time, the rate is 0.
    """

    def work(client: Client) -> None:
        at = round((client.start + last) * SECOND)
        if client.job.role == "publisher":
            counted = {"sent": 10, "sent_at": at, "measured": 10, "measured_at": at}
            client.later(5.0, published=10, confirmed=[[0, 10]], done=True, **counted)
        else:
            client.later(5.0, received=10, runs=[[0, [[0, 10, False]]]], measured=10, measured_at=at)

    world.work = work
    assert world.result(delay=2.0, warm_up=4.0).rates == pytest.approx(rates)


def test_the_rates_of_clients_that_measured_nothing_are_0(world: World) -> None:
    """If the clients of a `bench` run report no messages from after the warm-up, the rates in the result are 0."""
    world.work = ten_messages
    world.now = 0.0
    assert world.result().rates == (0.0, 0.0, 0.0)
    assert world.result(churn="queues").rates == (0.0, 0.0, 0.0)


def test_bench_records_the_totals_for_its_chart_ten_times_a_second(world: World) -> None:
    """While `bench` runs, it shows the totals that its clients have reported so far. For its chart, it records these
    totals about ten times a second, however often reports arrive.
    """

    def work(client: Client) -> None:
        if client.job.role == "publisher":
            for step in range(1, 101):
                client.later(step / 50, published=step, confirmed=[[step - 1, 1]], done=step == 100)
        else:
            for step in range(1, 101):
                client.later(step / 50 + 0.01, received=step, runs=[[0, [[step - 1, 1, False]]]])

    world.work = work
    shown: list[Snapshot] = []
    with world.run(messages=100) as run:
        result = run.perform(shown.append)
    assert len(shown) > 190
    assert [*shown] == sorted(shown)
    assert 18 <= len(result.series) <= 22
    assert set(result.series) <= set(shown)
    assert all(0.09 < after[0] - before[0] < 0.15 for before, after in pairwise(result.series))
    half = next(each for each in shown if each.published == 50)
    assert half == pytest.approx((1.0, 50, 50, 49), abs=0.011)
    assert shown[-1][1:] == (100, 100, 100)


def test_a_confirmed_message_that_does_not_arrive_counts_as_lost(world: World) -> None:
    """If a confirmed message does not arrive, `bench` waits until no message has arrived for 10 s, and then counts the
    missing message as lost. With `--delay`, it waits for 10 s plus the delay.
    """

    def work(client: Client) -> None:
        if client.job.role == "publisher":
            client.later(1.0, published=10, confirmed=[[0, 9]], done=True)
        else:
            client.later(2.0, received=7, runs=[[0, [[0, 7, False]]]])
            client.later(11.9, received=8, runs=[[0, [[7, 1, False]]]])

    world.work = work
    result = world.result()
    assert (result.lost, result.waiting, result.unconfirmed, result.received) == (1, 0, 1, 8)
    assert result.seconds == pytest.approx(21.9, abs=0.2)
    late = world.result(delay=5.0)
    assert late.seconds == pytest.approx(26.9, abs=0.2)


def test_bench_waits_until_each_consumer_of_a_stream_has_received_each_message(world: World) -> None:
    """A `bench` run with a stream ends when each consumer has received each confirmed message, or when no consumer has
    received a message for 10 s. If one of the consumers has not received a message by then, `bench` counts this message
    as lost.
    """

    def work(client: Client) -> None:
        if client.job.role == "publisher":
            client.later(1.0, published=10, confirmed=[[0, 10]], done=True)
        elif client.job.number == 0:
            client.later(2.0, received=10, runs=[[0, [[0, 10, False]]]])
        else:
            client.later(5.0, received=9, runs=[[0, [[0, 9, False]]]])
            client.later(5.0 + missing, received=10, runs=[[0, [[9, 1, False]]]])

    world.work, missing = work, 3
    result = world.result(queue_type="stream", consumers=2)
    assert (result.lost, result.duplicated, result.received) == (0, 0, 20)
    assert result.seconds == pytest.approx(8.0, abs=0.1)
    missing = 99
    assert world.result(queue_type="stream", consumers=2).lost == 1


def test_bench_stops_waiting_for_confirms_that_do_not_arrive(world: World) -> None:
    """Without `--duration`, `bench` stops waiting for missing confirms once no message has been published, confirmed
    or received for 10 s. It then tells its clients to stop. The result says how many messages were not confirmed, and
    how many were not sent.
    """

    def work(client: Client) -> None:
        if client.job.role == "publisher":
            client.later(5.0, published=6, confirmed=[[0, 4]])
        else:
            client.later(6.0, received=4, runs=[[0, [[0, 4, False]]]])

    world.work = work
    result = world.result()
    assert (result.unconfirmed, result.unsent, result.confirmed, result.lost) == (2, 4, 4, 0)
    assert result.seconds == pytest.approx(16.0, abs=0.2)
    assert [client.orders[-1] for client in world.clients] == [{"stop": True}] * 2


@pytest.mark.parametrize(
    ("settings", "unsent"),
    [
        ({"duration": 20.0, "messages": None}, 0),
        ({"duration": 20.0, "messages": 100}, 0),
        ({"duration": 20.0, "messages": None, "rate": 2.0}, 34),
        ({"duration": 20.0, "messages": 8, "rate": 2.0}, 2),
    ],
    ids=["duration", "duration and messages", "rate", "rate and messages"],
)
def test_a_run_does_not_end_before_its_duration_if_the_broker_confirms_nothing_for_a_while(
    world: World, settings: dict[str, Any], unsent: int
) -> None:
    """With `--duration`, `bench` does not stop before this duration has passed, even if the broker confirms nothing
    for more than 10 s. With `--rate`, the result says how many of the messages that were due by the end were not
    sent.
    """
    world.work = lambda client: client.later(5.0, published=6, confirmed=[[0, 6]])
    result = world.result(**settings, churn="queues")
    assert result.seconds == pytest.approx(20.0, abs=0.2)
    assert result.unsent == unsent


def test_with_churn_there_are_no_consumers_and_no_lost_messages(world: World) -> None:
    """With `--churn`, the clients of `bench` create and remove objects, such as queues. `bench` itself then declares
    nothing, starts no consumers, waits for no deliveries, and counts no message as lost.
    """
    world.work = ten_messages
    result = world.result(churn="queues", publishers=2)
    assert [client.job.role for client in world.clients] == ["publisher"] * 2
    assert (result.published, result.confirmed, result.lost, result.gap) == (20, 20, 0, (0.0, 0.0))
    assert result.seconds == pytest.approx(1.0, abs=0.1)
    assert (world.channel.method_calls, world.deleted) == ([], [])


def test_all_clients_start_at_the_same_time_when_all_are_ready(world: World) -> None:
    """`bench` waits until all of its clients are connected, and then tells all of them to start at the same time."""
    times = iter((5.0, 20.0, 29.0))
    world.script = lambda client: world.at(1000.0 + next(times), lambda: client.report(ready=True))
    world.work = ten_messages
    world.result(consumers=2)
    assert [(client.job.role, client.job.number) for client in world.clients] == [
        ("consumer", 0), ("consumer", 1), ("publisher", 0),
    ]  # fmt: skip
    assert [client.start for client in world.clients] == pytest.approx([1029.1] * 3)


def test_bench_fails_if_a_client_is_not_ready_within_30_seconds(world: World) -> None:
    """If one of the clients is not ready within 30 s, `bench` fails with exit code 69, kills its clients, and deletes
    its queue.
    """
    world.script = lambda client: client.report(ready=client.job.role == "consumer")
    with pytest.raises(Unavailable, match=r"^the publishers and consumers were not ready within 30 s$"):
        world.result()
    assert world.now == pytest.approx(1030.0, abs=0.15)
    assert all(client.was_killed for client in world.clients)
    assert len(world.deleted) == 1


def test_a_client_that_ends_early_is_reported(world: World) -> None:
    """If a client ends before its work is done, for example because the system killed it, `bench` fails. The error
    says which client ended, and with which exit code. `bench` kills the other clients, and deletes its queue.
    """
    world.work = lambda client: world.at(
        client.start + 1.0, lambda: client.end(-9) if client.job.role == "publisher" and client.job.number else None
    )
    with pytest.raises(Unavailable, match=r"^publisher 2 ended with code -9$"):
        world.result(publishers=2)
    assert [client.was_killed for client in world.clients] == [True, True, False]
    assert len(world.deleted) == 1


def test_a_run_does_not_fail_if_a_client_ends_after_its_last_report(world: World) -> None:
    """If the process of a `bench` client ends after the client has reported its last figures, the run does not fail."""

    def work(client: Client) -> None:
        ten_messages(client)
        if client.job.role == "publisher":
            world.at(client.start + 1.5, lambda: client.end(0))

    world.work = work
    result = world.result()
    assert (result.confirmed, result.received, result.lost) == (10, 10, 0)
    assert [client.was_killed for client in world.clients] == [True, False]


@pytest.mark.parametrize(
    ("is_ready", "message"), [(False, "no broker"), (True, "consumer 1: no broker")], ids=["connecting", "running"]
)
def test_the_failure_of_a_client_ends_the_run(world: World, is_ready: bool, message: str) -> None:
    """If a client of `bench` fails, for example because it cannot connect, `bench` fails with the client's error, hint
    and exit code. If the run had begun, the error also says which client failed.
    """
    failure = {"failed": "no broker", "hint": "start one", "exit_code": 69}
    world.script = lambda client: client.report(**{"ready": True} if is_ready else failure)
    world.work = lambda client: client.report(**failure)
    with pytest.raises(MqtoolError) as raised:
        world.result()
    assert (str(raised.value), raised.value.hint, raised.value.exit_code) == (
        message, "start one", ExitCode.UNAVAILABLE
    )  # fmt: skip
    assert len(world.deleted) == 1


def test_a_report_that_arrives_in_pieces_is_read_as_one(world: World) -> None:
    """If a client's report reaches `bench` in several pieces, `bench` reads them as one report."""

    def work(client: Client) -> None:
        line = told({"published": 10, "confirmed": [[0, 10]], "done": True})
        for place in range(0, len(line), 7):
            piece = line[place : place + 7]
            world.at(client.start + 1 + place / 100, lambda piece=piece: client.write_raw(piece))  # type: ignore[misc]

    world.work = work
    assert world.result(churn="queues").confirmed == 10


@pytest.mark.parametrize(
    ("settings", "things", "bound", "routing_key"),
    [
        ({}, [("", {"x-queue-type": "classic", "x-expires": 600_000})], False, ""),
        ({"queue_type": "quorum"}, [("", {"x-queue-type": "quorum", "x-expires": 600_000})], False, ""),
        ({"queue_type": "stream"}, [("", {"x-queue-type": "stream"})], False, ""),
        ({"exchange": "topic"}, [("", {"x-queue-type": "classic", "x-expires": 600_000}), "topic"], True, ""),
    ],
    ids=["classic", "quorum", "stream", "exchange"],
)  # fmt: skip
def test_bench_declares_what_it_needs_and_deletes_it(
    world: World, settings: dict[str, Any], things: list[Any], bound: bool, routing_key: str
) -> None:
    """`bench` declares a durable queue of the given type. If `bench` is killed, a classic or quorum queue expires after
    ten minutes. With `--exchange`, `bench` also declares an auto-delete exchange, and binds the queue to it. At the
    end, it deletes everything that it declared.
    """
    world.work = ten_messages
    world.result(**settings)
    name = world.clients[0].job.queue
    assert name.startswith("mqtool-bench-")
    expected: list[Queue | Exchange] = [
        Exchange(name, each, durable=True, auto_delete=True)
        if isinstance(each, str)
        else Queue(name + each[0], durable=True, arguments=each[1])
        for each in things
    ]
    assert [call.args for call in world.channel.declare.call_args_list] == [(each,) for each in expected]
    assert [call.args for call in world.channel.bind.call_args_list] == [(*expected, name)] * bound
    assert world.deleted == [([NODE], TlsFiles(Path("ca.pem")), expected)]
    for client in world.clients:
        assert (client.job.exchange, client.job.routing_key) == (name if bound else "", name + routing_key)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.parametrize("exchange", [None, "fanout"], ids=["default exchange", "exchange"])
def test_with_a_delay_bench_publishes_to_a_wait_queue(world: World, queue_type: str, exchange: str | None) -> None:
    """With `--delay`, `bench` publishes to a wait queue, which dead-letters each message to the consumers' queue after
    the delay. If the wait queue is a quorum queue, its dead-letter strategy is at-least-once.
    """
    world.work = ten_messages
    world.result(delay=2.5, queue_type=queue_type, exchange=exchange)
    name = world.clients[0].job.queue
    declared = [call.args[0] for call in world.channel.declare.call_args_list]
    assert [each.name for each in declared] == [name, f"{name}.wait", *([name] if exchange else [])]
    arguments = declared[1].arguments
    assert (arguments["x-message-ttl"], arguments["x-dead-letter-exchange"]) == (2500, "")
    assert arguments["x-dead-letter-routing-key"] == name
    assert (arguments.get("x-dead-letter-strategy") == "at-least-once") is (queue_type == "quorum")
    assert {client.job.routing_key for client in world.clients} == {f"{name}.wait"}
    assert [call.args for call in world.channel.bind.call_args_list] == (
        [(declared[1], declared[2], f"{name}.wait")] if exchange else []
    )
    assert [each.name for each in world.deleted[0][2]] == [each.name for each in declared]


def test_bench_warns_if_its_wait_queue_cannot_dead_letter_at_least_once(world: World) -> None:
    """With `--delay` and a quorum queue, `bench` warns if the broker does not support the dead-letter strategy
    at-least-once for its wait queue.
    """

    def declare(queue: Queue, **_: object) -> Queue:
        if "x-dead-letter-strategy" in queue.arguments:
            raise UsageError("unknown argument")
        return queue

    world.channel.declare.side_effect = declare
    world.work = ten_messages
    world.result(delay=0.25, queue_type="quorum")
    assert [notice.partition(":")[0] for notice in world.notices] == [
        "this broker's queues cannot dead-letter at least once"
    ]


def test_each_client_gets_its_settings_on_its_standard_input(world: World) -> None:
    """Each client of `bench` is a separate process of mqtool. It gets its settings and the broker's password on its
    standard input, not on its command line. It imports nothing from the current directory, and Ctrl-C does not reach
    it.
    """
    world.work = ten_messages
    with world.run(publishers=2, sizes=(20, 30)) as run:
        run.perform()
    jobs = [client.job for client in world.clients]
    assert [(job.role, job.number) for job in jobs] == [("consumer", 0), ("publisher", 0), ("publisher", 1)]
    assert {(*job.addresses, *job.amqp_addresses, job.tls) for job in jobs} == {(NODE, NODE, TlsFiles(Path("ca.pem")))}
    assert [job.plan for job in jobs] == [run.plan] * 3
    assert {len(job.secret) for job in jobs} == {8}
    assert len({job.secret for job in jobs}) == 1
    for client in world.clients:
        assert client.arguments == [sys.executable, "-P", "-m", "mqtool.benching"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        assert client.options == {**pipes, "start_new_session": True}


def test_clients_of_the_stream_protocol_connect_to_the_streams_leader(world: World) -> None:
    """With `--protocol stream`, the clients of `bench` connect to the node that leads the stream. They also get the
    AMQP addresses of the nodes, so that they can delete the stream over AMQP if `bench` is killed.
    """
    world.work = ten_messages
    world.result(queue_type="stream", protocol="stream")
    for client in world.clients:
        assert ([*client.job.addresses], [*client.job.amqp_addresses]) == ([LEADER], [NODE])


def test_a_run_that_cannot_bind_its_queue_deletes_what_it_has_declared(world: World) -> None:
    """If `bench --exchange` has declared a queue and an exchange, but the request to bind them fails, `bench` raises
    the error of this request, starts no clients, and deletes the queue and the exchange.
    """
    world.channel.bind.side_effect = Unavailable("no broker")
    with pytest.raises(Unavailable, match="no broker"):
        world.result(exchange="fanout")
    assert [type(each) for each in world.deleted[0][2]] == [Queue, Exchange]
    assert world.clients == []


def test_a_queue_that_cannot_be_deleted_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """If `bench` cannot delete its queue at the end of a run, it still returns the result. A notice names the queue and
    the error.
    """
    monkeypatch.setattr(bench_run, "delete_declared", Mock(side_effect=Unavailable("no broker")))
    world.work = ten_messages
    assert world.result().confirmed == 10
    assert world.notices == [f"queue '{world.clients[0].job.queue}' could not be deleted: no broker"]


def test_a_run_that_is_stopped_returns_the_result_so_far(world: World) -> None:
    """If the user stops a run, `bench` tells the publishers to stop, and waits one second for deliveries before it
    stops the consumers. It counts confirmed messages that have not arrived by then as waiting, not as lost. It does
    not report how many messages were not sent.
    """

    def work(client: Client) -> None:
        if client.job.role == "publisher":
            client.later(1.0, published=6, confirmed=[[0, 5]])
            world.at(client.start + 2.0, run.stop)
        else:
            client.later(2.5, received=3, runs=[[0, [[0, 3, False]]]])
            client.later(3.9, received=4, runs=[[0, [[3, 1, False]]]])

    world.work = work
    with world.run() as run:
        result = run.perform()
    assert result.plan is run.plan
    assert (result.stopped, result.waiting, result.lost, result.unsent) == (True, 2, 0, 0)
    assert result.seconds == pytest.approx(3.0, abs=0.2)
    assert [client.orders[-1] for client in world.clients] == [{"stop": True}] * 2


def test_a_run_that_is_stopped_before_it_starts_has_no_result(world: World) -> None:
    """If the user stops `bench` before its clients are ready, it ends without a result, and deletes what it has
    declared so far, if anything.
    """
    run = world.run()
    with pytest.raises(KeyboardInterrupt):
        run.stop()
    run = world.run()
    world.script = lambda client: world.at(1001.0, run.stop) if client.job.role == "publisher" else None
    with run, pytest.raises(KeyboardInterrupt):
        run.perform()
    assert world.now == pytest.approx(1001.0)
    assert len(world.deleted) == 1


def test_a_run_with_churn_that_is_stopped_returns_the_result_so_far(world: World) -> None:
    """`bench --churn` creates and removes objects, such as queues, again and again. If the user stops such a run early,
    `bench` returns the result so far, which says that the run was stopped.
    """

    def work(client: Client) -> None:
        client.later(1.0, published=6, confirmed=[[0, 5]])
        world.at(client.start + 2.0, run.stop)

    world.work = work
    with world.run(churn="queues") as run:
        assert run.perform().stopped


def test_bench_kills_clients_that_do_not_report_their_last_figures_within_ten_seconds(world: World) -> None:
    """If a client of `bench` does not report its last figures within 10 s after it is told to stop, `bench` kills it.
    The result contains what the client had reported before.
    """
    world.work = ten_messages
    world.on_stop = lambda _: None
    result = world.result()
    assert (result.confirmed, result.received) == (10, 10)
    unknown = (result.others, result.reconnects, result.gap, result.busiest)
    assert unknown == (0, 0, (0.0, 0.0), (0.0, 0.0))
    assert world.now == pytest.approx(1000.1 + 2.0 + 10.0, abs=0.2)
    assert [client.was_killed for client in world.clients] == [True, True]


def test_bench_reports_no_error_if_a_client_has_ended_before_it_is_told_to_stop(world: World) -> None:
    """If the process of a client has already ended when `bench` tells the client to stop, `bench` reports no error."""

    def leave(client: Client) -> None:
        if client.job.role == "publisher":
            client.report(published=10, confirmed=[[0, 10]], done=True)
        else:
            client.report(received=10, runs=[[0, [[0, 10, False]]]], done=True)
        client.end(0)

    world.work = lambda client: world.at(client.start + 1.0, lambda: leave(client))
    assert world.result().received == 10
    assert [len(client.orders) for client in world.clients] == [2, 2]


def test_bench_runs_the_users_commands_at_the_given_times(world: World) -> None:
    """`bench --at` runs a command in a shell at the given time after the start of the run, and prints a notice. The
    output of the command goes to standard error. The result lists the commands that failed.
    """
    world.work = ten_messages
    world.command_code = 3
    result = world.result(Timed(1.5, "second"), Timed(0.5, "first"))
    assert [(round(at - 1000.1, 1), arguments) for at, arguments, _ in world.commands] == [
        (0.5, ["/bin/sh", "-c", "first"]), (1.5, ["/bin/sh", "-c", "second"]),
    ]  # fmt: skip
    for *_, options in world.commands:
        assert options == {"stdin": subprocess.DEVNULL, "stdout": sys.stderr.fileno()}
    assert world.notices == ["0.5 s: first", "1.5 s: second"]
    assert result.failed_commands == ["first", "second"]
    world.command_code = 0
    assert world.result(Timed(0.5, "first")).failed_commands == []


def test_commands_that_did_not_run_or_have_not_ended_are_named(world: World) -> None:
    """`bench --at` runs commands at given times. If the run is over before the time of a command, or before a command
    has ended, a notice of `bench` names the command.
    """
    world.work = ten_messages
    world.command_code = None
    assert world.result(Timed(0.5, "slow"), Timed(60.0, "late")).failed_commands == []
    assert world.notices[1:] == [
        "the run was over before 60 s, so this did not run: late", "still running: slow",
    ]  # fmt: skip


def test_commands_of_a_run_that_never_started_are_not_named(world: World) -> None:
    """`bench --at` runs commands at given times after the start. If `bench` fails before the run starts, it does not
    mention these commands.
    """
    world.script = lambda client: client.report(failed="no broker", hint=None, exit_code=69)
    with pytest.raises(MqtoolError, match="no broker"):
        world.result(Timed(0.5, "first"))
    assert world.notices == []


def _process(proc: Path, pid: int, command: bytes, ticks: tuple[int, int], pages: int) -> None:
    """Write the files in /proc that describe a process."""
    directory = proc / str(pid)
    directory.mkdir(exist_ok=True)
    (directory / "cmdline").write_bytes(command)
    (directory / "stat").write_text(f"{pid} (beam) smp) S {' '.join(map(str, range(10)))} {ticks[0]} {ticks[1]} 7 8")
    (directory / "statm").write_text(f"9999 {pages} 5")


@pytest.mark.parametrize(
    ("command", "is_known"),
    [(b"/usr/lib/erlang/beam.smp\0-name\0rabbit@host", True), (b"python\0mqtool\0broker", True), (b"init", False)],
    ids=["RabbitMQ", "mqtool", "another process"],
)
def test_bench_measures_the_cpu_and_memory_of_the_broker(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: bytes, is_known: bool
) -> None:
    """If the broker runs on this machine, `bench` measures the CPU time that the broker uses, and reports the
    broker's memory at the end. If the broker runs in a container or elsewhere, its PID may belong to another process
    on this machine. `bench` then reports no CPU time, and takes the memory from the management API.
    """
    monkeypatch.setattr(bench_run, "_PROC", tmp_path)
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    world.api.items.return_value = [{"os_pid": "42", "mem_used": 77}]
    _process(tmp_path, 42, command, (tick, 2 * tick), 11)
    use = BrokerUse(lambda: world.api)
    use.begin()
    world.now += 4
    _process(tmp_path, 42, command, (2 * tick, 7 * tick), 13)
    assert use.end() == ((1.5, 13 * page) if is_known else (None, 77))
    world.api.items.assert_called_with("nodes", ("os_pid", "mem_used"))


@pytest.mark.parametrize(
    ("nodes", "memory"),
    [([{}], None), ([{"mem_used": 5}], 5), ([{"os_pid": "42", "mem_used": 5}] * 2, 10)],
    ids=["no statistics", "no PID", "two nodes"],
)
def test_bench_measures_the_cpu_time_only_of_a_single_node_with_a_known_pid(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: list[Any], memory: int | None
) -> None:
    """If the management API does not report the broker's PID, or reports several nodes, `bench` does not measure the
    broker's CPU time. As the broker's memory, it reports the total of all nodes, if the management API has it.
    """
    monkeypatch.setattr(bench_run, "_PROC", tmp_path)
    for pid in (0, 1, 42):
        _process(tmp_path, pid, b"rabbit", (0, 0), 1)
    world.api.items.return_value = nodes
    use = BrokerUse(lambda: world.api)
    use.begin()
    assert use.end() == (None, memory)


def test_the_cpu_time_of_a_broker_whose_process_has_ended_is_not_reported(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If the broker's process ends during the run, for example because the broker is restarted, `bench` reports no CPU
    time for the broker. It takes the broker's memory from the management API.
    """
    monkeypatch.setattr(bench_run, "_PROC", tmp_path)
    world.api.items.return_value = [{"os_pid": "42", "mem_used": 5}]
    _process(tmp_path, 42, b"rabbit", (0, 0), 1)
    use = BrokerUse(lambda: world.api)
    use.begin()
    (tmp_path / "42" / "stat").unlink()
    assert use.end() == (None, 5)


def test_without_a_management_api_bench_does_not_measure_the_broker(world: World) -> None:
    """If `bench` does not find the broker's management API, it reports neither the CPU time nor the memory of the
    broker.
    """
    find = Mock(side_effect=Unavailable("no management API"))
    use = BrokerUse(find)
    use.begin()
    assert use.end() == (None, None)


def test_a_broker_that_is_down_at_the_end_of_the_run_is_not_measured(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If the broker is down when the run ends, `bench` reports neither the CPU time nor the memory of the broker."""
    monkeypatch.setattr(bench_run, "_PROC", tmp_path)
    world.api.items.side_effect = [[{"os_pid": "42"}], Unavailable("no broker")]
    _process(tmp_path, 42, b"rabbit", (1, 2), 3)
    use = BrokerUse(lambda: world.api)
    use.begin()
    assert use.end() == (None, None)


def test_bench_measures_the_broker_during_the_run_only(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`bench` measures the broker's CPU time from the start of the run until all messages have arrived."""
    monkeypatch.setattr(bench_run, "_PROC", tmp_path)
    tick = os.sysconf("SC_CLK_TCK")
    world.api.items.return_value = [{"os_pid": "42", "mem_used": 77}]
    _process(tmp_path, 42, b"rabbit", (0, 0), 1)

    def work(client: Client) -> None:
        ten_messages(client)
        if client.job.role == "publisher":
            world.at(client.start + 1.9, lambda: _process(tmp_path, 42, b"rabbit", (tick, 0), 1))

    world.work = work
    world.on_stop = lambda _: _process(tmp_path, 42, b"rabbit", (50 * tick, 0), 1)
    result = world.result()
    assert result.broker_cpu == pytest.approx(1 / 2.1, abs=0.1)
    assert result.broker_memory == os.sysconf("SC_PAGE_SIZE")
