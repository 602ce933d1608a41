"""The settings of a `bench` run: which ones contradict each other, each publisher's share, and jobs for processes."""

from pathlib import Path
from typing import Any

import pytest

from mqtool.amqp import Address, TlsFiles
from mqtool.benching.plan import BenchPlan, Job, bodies, lines_in, told
from mqtool.errors import UsageError
from mqtool.topology import Exchange, Queue


@pytest.mark.parametrize(
    ("settings", "error", "hint"),
    [
        ({"sizes": (25, 100)}, "a body of 25 bytes is too small",
         "each message carries its number and its time, in 26 bytes"),
        ({"sizes": (26, (512 << 20) + 1)}, "a body of 536,870,913 bytes is too large",
         "brokers take up to 536,870,912 bytes"),
        ({"bodies": Path("b"), "sizes": (26, 26)}, "--bodies gives the sizes, too",
         "leave out --bodies, or the size"),
        *(
            ({"churn": "queues", **more}, "--churn queues publishes nothing",
             "leave out --rpc, --delay, --exchange and --ttl")
            for more in ({"rpc": True}, {"delay": 0.1}, {"exchange": "topic"}, {"ttl": 0.0})
        ),
        *(
            ({"rpc": True, **more}, "--rpc needs a classic or quorum queue, without an exchange or a delay",
             "leave them out")
            for more in ({"queue_type": "stream"}, {"exchange": "topic"}, {"delay": 0.1})
        ),
        ({"delay": 0.1, "queue_type": "stream"}, "messages to a stream cannot wait in a wait queue",
         "use a classic or quorum queue"),
        ({"queue_type": "stream", "acknowledge": 0},
         "a stream's consumers must acknowledge, with a limited prefetch", "leave out --ack auto"),
        ({"queue_type": "stream", "prefetch": 0},
         "a stream's consumers must acknowledge, with a limited prefetch", "leave out --prefetch 0"),
        *(
            ({"protocol": "amqp1.0", **more}, f"{name} cannot be combined with --protocol amqp1.0",
             "leave one of them out")
            for name, more in (("--rpc", {"rpc": True}), ("--churn", {"churn": "queues"}))
        ),
        ({"protocol": "stream"}, "the stream protocol cannot reach a quorum queue", "leave out --protocol stream"),
        *(
            ({"protocol": "stream", "queue_type": "stream", **more},
             f"{name} cannot be combined with --protocol stream", "leave one of them out")
            for name, more in (
                ("--churn", {"churn": "queues"}), ("--exchange", {"exchange": "topic"}), ("--ttl", {"ttl": 0.0}),
                ("--transient", {"persistent": False}), ("--ack", {"acknowledge": 2}), ("--prefetch", {"prefetch": 7}),
            )
        ),
        ({"duration": None}, "the run would never end", "give --duration or --count"),
        ({"duration": 5.0, "warm_up": 5.0}, "the warm-up takes the whole run",
         "make --warm-up shorter than --duration"),
        ({"prefetch": 1, "acknowledge": 2}, "--ack 2 waits for more messages than --prefetch 1 allows",
         "make --ack smaller, or --prefetch larger"),
        ({"prefetch": 4, "acknowledge": 5}, "--ack 5 waits for more messages than --prefetch 4 allows",
         "make --ack smaller, or --prefetch larger"),
    ],
)  # fmt: skip
def test_contradictory_or_out_of_range_settings_of_a_run_are_refused(
    settings: dict[str, Any], error: str, hint: str
) -> None:
    """If options of a `bench` run contradict each other, or a value is outside its limits, UsageError is raised. The
    error gives the reason, and its hint says what to change.
    """
    with pytest.raises(UsageError) as raised:
        BenchPlan(**settings).checked()
    assert (str(raised.value), raised.value.hint) == (error, hint)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sizes": (26, 512 << 20)},
        {"bodies": Path("b")},
        {"churn": "queues"},
        {"rpc": True, "queue_type": "classic"},
        {"delay": 0.1},
        {"queue_type": "stream"},
        {"queue_type": "stream", "protocol": "amqp1.0", "acknowledge": 0},
        {"queue_type": "stream", "protocol": "stream", "delay": 0.0},
        {"protocol": "amqp1.0", "exchange": "topic", "ttl": 1.0, "acknowledge": 5},
        {"duration": None, "messages": 1},
        {"duration": 5.0, "warm_up": 4.9},
        {"duration": None, "messages": 1, "warm_up": 5.0},
        {"prefetch": 4, "acknowledge": 4},
        {"prefetch": 0, "acknowledge": 5},
    ],
)
def test_settings_of_a_run_that_do_not_contradict_each_other_are_accepted(settings: dict[str, Any]) -> None:
    """`bench` accepts settings that do not contradict each other, such as `--protocol amqp1.0` with `--exchange topic`,
    and settings at their limits, such as bodies of 26 bytes or of 512 MiB.
    """
    plan = BenchPlan(**settings)
    assert plan.checked() is plan


@pytest.mark.parametrize(
    ("settings", "total", "shares"),
    [
        ({}, None, [None]),
        ({"messages": 7}, 7, [7]),
        ({"messages": 11, "publishers": 3}, 11, [4, 4, 3]),
        ({"rate": 5.0, "duration": 2.0, "publishers": 4}, 10, [3, 3, 2, 2]),
        ({"rate": 5.0, "duration": 2.0, "messages": 3}, 3, [3]),
        ({"rate": 5.0, "duration": 2.0, "messages": 30}, 10, [10]),
        ({"rate": 5.0, "duration": None, "messages": 30}, 30, [30]),
        ({"rate": 0.1, "duration": 1.0}, 1, [1]),
    ],
)
def test_publishers_share_the_messages_of_a_run(
    settings: dict[str, Any], total: int | None, shares: list[int | None]
) -> None:
    """The number of messages of a `bench` run is --count, or --rate times --duration (at least 1), whichever is
    smaller. If only one of these limits is set, that limit applies. If neither is set, the number is not limited. The
    publishers share the messages evenly.
    """
    plan = BenchPlan(**settings)
    assert plan.total == total
    assert [plan.share(number) for number in range(plan.publishers)] == shares
    assert plan.with_value("messages", 1).total == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "quorum queue, 1 publisher, 1 consumer, 100 bytes, persistent, up to 1,000 in flight"),
        ({"publishers": 2, "consumers": 0, "rate": 1500.0, "sizes": (26, 99), "persistent": False},
         "quorum queue, 2 publishers, 0 consumers, 26 to 99 bytes, transient, 1,500/s"),
        ({"queue_type": "stream", "protocol": "stream", "bodies": Path("/tmp/lines")},
         "stream, by its protocol, 1 publisher, 1 consumer, bodies from lines, persistent, up to 1,000 in flight"),
        ({"queue_type": "classic", "protocol": "amqp1.0", "delay": 0.5},
         "classic queue, over AMQP 1.0, 1 publisher, 1 consumer, 100 bytes, persistent, delayed by 0.5 s, "
         "up to 1,000 in flight"),
        ({"rpc": True},
         "quorum queue, 1 publisher, 1 consumer, 100 bytes, persistent, with replies, up to 1,000 in flight"),
        ({"churn": "queues"}, "creating and removing queues, 1 client, one after another"),
        ({"churn": "channels", "rate": 2000.0, "publishers": 3}, "creating and removing channels, 3 clients, 2,000/s"),
    ],
)  # fmt: skip
def test_one_line_of_the_result_describes_the_settings_of_the_run(settings: dict[str, Any], words: str) -> None:
    """The result of a `bench` run describes the run's settings in one line, for example "quorum queue, 1 publisher, 1
    consumer, 100 bytes, persistent, up to 1,000 in flight".
    """
    assert BenchPlan(**settings).in_words() == words


def test_bodies_of_different_sizes_are_the_same_in_each_run() -> None:
    """With a range of sizes, `bench` creates 512 bodies with sizes in this range, and creates the same bodies for
    each run. If 512 bodies of the largest size need more than 64 MiB of memory, it creates fewer bodies, but at least
    two. With a single size, all messages have the same body.
    """
    assert bodies(BenchPlan(sizes=(30, 30))) == [bytes(30)]
    varied = bodies(BenchPlan(sizes=(26, 30)))
    assert len(varied) == 512
    assert {len(body) for body in varied} == {26, 27, 28, 29, 30}
    assert not any(any(body) for body in varied)
    assert varied == bodies(BenchPlan(sizes=(26, 30)))
    assert len(bodies(BenchPlan(sizes=(26, 1 << 24)))) == 4
    assert len(bodies(BenchPlan(sizes=(26, 1 << 26)))) == 2


def test_the_lines_of_a_file_are_published_as_bodies(tmp_path: Path) -> None:
    """With --bodies FILE, `bench` publishes up to 512 lines of the file as bodies. Each body must have room for the
    number and the time of a message, so a line that is too short for them is padded with spaces. If the file is empty
    or cannot be read, UsageError is raised.
    """
    file = tmp_path / "lines"
    file.write_bytes(b"short\n" + b"x" * 40 + b"\n")
    assert bodies(BenchPlan(bodies=file)) == [b"short" + b" " * 21, b"x" * 40]
    file.write_bytes(b"x\n" * 600)
    assert len(bodies(BenchPlan(bodies=file))) == 512
    file.write_bytes(b"")
    with pytest.raises(UsageError) as raised:
        bodies(BenchPlan(bodies=file))
    assert (str(raised.value), raised.value.hint) == (f"{file} has no bodies", "write one on each line")
    file.unlink()
    with pytest.raises(UsageError, match=r"^cannot read .*lines: No such file or directory$"):
        bodies(BenchPlan(bodies=file))


@pytest.mark.parametrize("body_file", [None, Path("/b")])
def test_each_process_of_a_run_gets_all_settings(body_file: Path | None) -> None:
    """`bench` passes all settings of a run, and the addresses of the broker's nodes, to each of its processes as one
    line of JSON.
    """
    plan = BenchPlan(sizes=(26, 30), bodies=body_file, rate=5.0, exchange="topic")
    nodes = [Address("one", 1), Address("two", 2, "my vhost", "user", "password", tls=True)]
    tls = TlsFiles(Path("/ca"), Path("/cert"), None)
    job = Job("publisher", 3, plan, nodes, nodes[:1], tls, "exchange", "key", "queue", "12345678")
    line = told(job.as_told())
    assert line.endswith(b"}\n")
    values, rest = lines_in(line + b'{"half":')
    [found] = values
    assert rest == b'{"half":'
    assert Job.from_told(found) == job
    assert told({"a": [1, 2], "b": Path("/c")}) == b'{"a":[1,2],"b":"/c"}\n'


def test_a_process_of_a_run_knows_what_the_run_has_declared() -> None:
    """From the settings that `bench` passes to it, each process of a run knows what the run has declared: the queue of
    the consumers, the wait queue if messages are delayed, and the exchange if the run uses one.
    """
    job = Job("consumer", 0, BenchPlan(), [], [], TlsFiles(), "", "queue", "queue", "12345678")
    assert job.declared == [Queue("queue")]
    delayed = Job("consumer", 0, BenchPlan(), [], [], TlsFiles(), "exchange", "queue.wait", "queue", "12345678")
    assert delayed.declared == [Queue("queue.wait"), Queue("queue"), Exchange("exchange")]
