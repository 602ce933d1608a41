"""`bench` counts messages exactly, and their latencies to three significant digits, in little memory."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from mqtool.benching.client_process import CpuTime
from mqtool.benching.run import BrokerUse
from mqtool.benching.tally import Latencies, Numbers, Tally, add_to_runs
from mqtool.cli.display.bench_report import remarks
from mqtool.management import Management


def _receive(tally: Tally, numbers: list[int], *, consumer: int = 0, redelivered: bool = False) -> None:
    runs: list[list[int]] = []
    for number in numbers:
        add_to_runs(runs, number, redelivered)
    tally.receive(consumer, 0, [(first, count, bool(marked)) for first, count, marked in runs])


def test_lost_duplicate_and_out_of_order_messages_are_counted_exactly() -> None:
    """`bench` counts exactly how many of 50,000 messages are lost, duplicated or out of order, even if the messages
    arrive in batches of random sizes.
    """
    chance = random.Random(28)
    count = 50_000
    lost = set(chance.sample(range(count), 300))
    arrived = [number for number in range(count) if number not in lost]
    late = 0
    for place in sorted(chance.sample(range(0, len(arrived) - 1, 2), 200)):
        arrived[place], arrived[place + 1] = arrived[place + 1], arrived[place]
        late += 1
    doubles = sorted(chance.sample(range(len(arrived)), 100), reverse=True)
    for place in doubles:
        arrived.insert(place + 1, arrived[place])
    tally = Tally()
    tally.confirm(0, [(0, count)])
    while arrived:
        size = chance.randint(1, 3000)
        _receive(tally, arrived[:size])
        del arrived[:size]
    assert (tally.lost(1), tally.duplicated, tally.out_of_order) == (300, 100, late)
    assert (tally.confirmed, tally.received) == (count, count - 300)


def test_bench_does_not_count_unconfirmed_messages_as_lost() -> None:
    """`bench` counts a missing message as lost only if the broker had confirmed it."""
    tally = Tally()
    tally.confirm(0, [(0, 10), (20, 10)])
    _receive(tally, [*range(9), *range(12, 15), *range(20, 30)])
    assert (tally.lost(1), tally.confirmed, tally.received) == (1, 20, 22)


def test_a_message_that_two_competing_consumers_received_is_a_duplicate() -> None:
    """If two consumers of the same queue receive the same message, `bench` counts one duplicate. `bench` checks the
    order of messages separately for each consumer.
    """
    tally = Tally()
    tally.confirm(0, [(0, 10_000)])
    _receive(tally, [*range(0, 10_000, 2)], consumer=0)
    _receive(tally, [*range(1, 10_000, 2)], consumer=1)
    _receive(tally, [9_998], consumer=1)
    assert (tally.lost(2), tally.duplicated, tally.out_of_order) == (0, 1, 0)


def test_bench_does_not_count_redelivered_messages_as_out_of_order() -> None:
    """`bench` counts a redelivered message as redelivered, but not as out of order, because the broker does not
    guarantee the order of redelivered messages.
    """
    tally = Tally()
    _receive(tally, [0, 1, 5, 6])
    _receive(tally, [2, 3], redelivered=True)
    _receive(tally, [4, 7])
    assert (tally.redelivered, tally.out_of_order, tally.duplicated) == (2, 1, 0)


def test_a_message_missed_by_one_stream_consumer_is_lost() -> None:
    """`bench` counts a message in a stream as lost if one consumer did not receive it, even if all others did."""
    tally = Tally(each_gets_all=True)
    tally.confirm(0, [(0, 100)])
    _receive(tally, [*range(100)], consumer=0)
    _receive(tally, [*range(99)], consumer=1)
    assert (tally.lost(2), tally.duplicated) == (1, 0)


def test_counting_ten_million_messages_takes_less_than_a_megabyte() -> None:
    """`bench` needs less than a megabyte of memory to count ten million messages, and still finds ten missing ones."""
    numbers = Numbers()
    for first in range(0, 10_000_000, 10_000):
        assert numbers.add(first, 9_999 if first % 1_000_000 == 0 else 10_000)
    assert sum(map(sys.getsizeof, numbers._chunks.values())) < 1_000_000
    everything = Numbers()
    everything.add(0, 10_000_000)
    assert everything.missing_from(numbers) == 10


def test_a_percentile_is_a_latency_that_was_recorded() -> None:
    """A percentile that `bench` reports is one of the recorded latencies: p99, for example, is the smallest latency
    that at least 99% of the messages do not exceed. If no latencies were recorded, the percentile is 0.
    """
    latencies = Latencies()
    assert latencies.at(50) == 0.0
    latencies.record([1_500_000])
    assert [latencies.at(percentile) for percentile in (0, 50, 100)] == [0.0015] * 3
    latencies.record([1_000_000, 1_250_000, 2_000_000])
    assert [latencies.at(percentile) for percentile in (25, 50, 75, 76, 100)] == [0.001, 0.00125, 0.0015, 0.002, 0.002]


def test_latencies_keep_three_significant_digits() -> None:
    """`bench` records latencies up to 2 ms to the microsecond, and longer latencies to within a thousandth of their
    value.
    """
    latencies = Latencies()
    latencies.record([1000, 1999, 2_047_000, 2_048_000, 2_049_000, 1_000_000_000])
    assert latencies.pairs() == [(1, 2), (2047, 1), (2049, 2), (1_000_447, 1)]


def test_the_latency_curve_ends_at_100_percent() -> None:
    """Each point of `bench`'s latency curve is a latency and the percentage of messages with at most this latency. The
    last point is at 100%.
    """
    latencies = Latencies()
    assert latencies.curve() == []
    latencies.record([1_000_000, 1_000_000, 1_500_000, 2_000_000])
    assert latencies.curve() == [(50.0, 0.001), (75.0, 0.0015), (100.0, 0.002)]
    one = Latencies()
    one.record([1_000_000])
    assert one.curve() == [(100.0, 0.001)]


def test_a_latency_between_two_bars_of_the_histogram_is_counted_in_the_upper_one() -> None:
    """If a latency is exactly the limit between two bars of `bench`'s histogram, `bench` counts it in the upper bar."""
    latencies = Latencies()
    latencies.record([each * 1000 for each in (999, 1000, 1000, 1500, 2000)])
    assert latencies.bars([0.0, 0.001, 0.002, 0.003]) == [1, 3, 1]


def test_messages_with_equal_latencies_are_added_up_across_clients() -> None:
    """If several clients of `bench` measured the same latency, `bench` adds up the numbers of messages with this
    latency.
    """
    latencies = Latencies([(5, 2)])
    latencies.merge([(5, 3)])
    latencies.record([5000])
    assert (latencies.pairs(), latencies.count) == ([(5, 6)], 6)


def test_redelivered_messages_of_several_reports_are_added_up() -> None:
    """`bench` adds up the numbers of redelivered messages from all reports of its consumers."""
    tally = Tally()
    for number in (0, 1):
        _receive(tally, [number], redelivered=True)
    assert (tally.redelivered, tally.received) == (2, 2)


def test_of_two_messages_in_swapped_order_one_is_counted_as_out_of_order() -> None:
    """If two messages arrive in swapped order, `bench` counts one message as out of order, not two."""
    tally = Tally()
    _receive(tally, [1])
    _receive(tally, [0])
    assert (tally.out_of_order, tally.received) == (1, 2)


def test_confirmed_messages_after_the_last_one_that_arrived_count_as_lost() -> None:
    """If confirmed messages at the end of a run do not arrive, `bench` counts all of them as lost, however many there
    are.
    """
    tally = Tally()
    tally.confirm(0, [(0, 20_000)])
    _receive(tally, [*range(5000)])
    assert tally.lost(1) == 15_000


def test_latencies_of_several_processes_are_merged() -> None:
    """`bench` merges the latencies of two processes, and reports the percentiles of the combined latencies, to three
    significant digits.
    """
    one, other = Latencies(), Latencies()
    one.record([1_000_000] * 99)
    other.record([2_000_000_000])
    one.merge(other.pairs())
    assert one.count == 100
    assert one.at(50) == one.at(99) == pytest.approx(0.001, rel=0.001)
    assert one.at(99.1) == one.at(100) == pytest.approx(2.0, rel=0.001)
    assert one.bars([0, 0.01, 10]) == [99, 1]


@pytest.mark.parametrize(
    ("nodes", "memory"),
    [
        ([{}], None),
        ([{"os_pid": str(os.getpid()), "mem_used": 5}, {}], None),
        ([{"os_pid": str(os.getpid()), "mem_used": 5}, {"os_pid": "1", "mem_used": 6}], 11),
    ],
    ids=["no statistics", "one of two nodes without statistics", "two nodes"],
)
def test_unknown_cpu_time_of_the_broker_is_not_reported(nodes: list[Any], memory: int | None) -> None:
    """`bench` reports no CPU time for the broker if the management API has no statistics for a node, or if the broker
    is a cluster of several nodes.
    """
    api = Mock(Management)
    api.items.return_value = nodes
    use = BrokerUse(lambda: api)
    use.begin()
    assert use.end() == (None, memory)


@pytest.mark.parametrize(
    ("busiest", "said"),
    [
        ((0.95, 0.01), "a client used 95% of a CPU, so the client may be slower than the broker"),
        (
            (0.5, 0.45),
            "a client used 50% of a CPU, and waited for a CPU 45% of the time, so this machine may be slower",
        ),
        ((0.5, 0.1), ""),
    ],
    ids=["busy client", "waiting client", "idle client"],
)
def test_the_result_warns_if_the_clients_may_be_slower_than_the_broker(busiest: tuple[float, float], said: str) -> None:
    """If a client process of `bench` used almost a whole CPU, or spent a large part of the time waiting for a CPU, the
    result warns that the client or the machine may be slower than the broker.
    """
    plan = Mock(churn=None, rate=None, warm_up=0, delay=0.0)
    result = Mock(busiest=busiest, plan=plan, unsent=0, others=0, reconnects=0, gap=(0.0, 0.0))
    result.confirm.at.return_value = result.deliver.at.return_value = 1.0
    assert "".join(remarks(result)).startswith(said)
    assert bool([*remarks(result)]) is bool(said)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (1, ["1 other message was received; it is not counted"]),
        (2, ["2 other messages were received; they are not counted"]),
        (0, []),
    ],
    ids=["one", "two", "none"],
)
def test_the_result_says_how_many_messages_from_outside_the_run_were_received(others: int, said: list[str]) -> None:
    """If the clients of a `bench` run received messages that do not belong to the run, the result says how many, and
    that the other figures do not include them.
    """
    plan = Mock(churn=None, rate=1, warm_up=0, delay=0.0)
    result = Mock(busiest=(0.0, 0.0), plan=plan, unsent=0, others=others, reconnects=0, gap=(0.0, 0.0))
    result.confirm.at.return_value = result.deliver.at.return_value = 1.0
    assert [*remarks(result)] == said


def test_bench_measures_how_long_a_client_waits_for_a_cpu() -> None:
    """When two busy client processes of `bench` share a CPU, `bench` measures how long each process waited for the
    CPU.
    """
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("this system does not report how long a process waits for a CPU")
    code = (
        "import os, time\n"
        "from mqtool.benching.client_process import CpuTime\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "os.fork()\n"
        "before = CpuTime.now()\n"
        "while (after := CpuTime.now()).used - before.used < 0.15: pass\n"
        "print(after.waited - before.waited > 0.05)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "True" in told.stdout


def test_a_client_whose_run_never_began_counts_as_using_no_cpu_time() -> None:
    """If a client of `bench` ended before its run began, `bench` counts the client as having used no CPU time."""
    # `bench` once warned that it used 42,059,700% of a CPU.
    assert CpuTime(1.0, 0.0).fractions(CpuTime(1.5, 0.2), -3.0) == (0.0, 0.0)
    assert CpuTime(1.0, 0.0).fractions(CpuTime(1.5, 0.5), 2.0) == (0.25, 0.25)
