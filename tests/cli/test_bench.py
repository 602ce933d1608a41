"""`bench`: totals that agree with the broker's, latencies counted from the time a message was due, and every loss
reported.
"""

import contextlib
import json
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.error import HTTPError

import pika
import pytest

from mqtool.benching.plan import STAMP
from mqtool.benching.tally import Latencies
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.drills.scene import Proxy
from mqtool.stage.terminal import CheckFailed
from tests.brokers import TestBroker, large, on_any_broker
from tests.cli.shell import Shell, wait_until

BENCH = ("mqtool", "bench", "--yes")
#: How the payload of basic.deliver begins.
_DELIVER = b"\0\x3c\0\x3c"


@pytest.fixture
def own() -> Iterator[EmbeddedBroker]:
    """A broker that no other test uses."""
    with EmbeddedBroker(management_port=0, stream_port=0, recording=True, like="4.3") as broker:
        yield broker


@pytest.fixture
def tester(lonely_shell: Shell, own: EmbeddedBroker) -> Shell:
    assert own.management_url is not None
    lonely_shell.environment |= {"MQTOOL_URL": own.url, "MQTOOL_MANAGEMENT_URL": own.management_url}
    lonely_shell.environment["MQTOOL_STREAM_PORT"] = str(own.stream_port)
    return lonely_shell


def _result(shell: Shell, *options: str, code: int = 0) -> dict[str, Any]:
    done = shell.run(*BENCH, "--json", *options)
    assert done.code == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("queue_type", ["classic", "quorum", "stream", "stream over the stream protocol"])
@pytest.mark.own_vhost("the totals are those of its vhost")
@pytest.mark.sampled(1)
@large
def test_the_totals_of_bench_agree_with_the_management_api(shell: Shell, broker: TestBroker, queue_type: str) -> None:
    """`bench` reports that each message was published, confirmed and received once, and deletes its queue afterwards.
    The management API shows the same numbers of published, delivered and acknowledged messages. (RabbitMQ sometimes
    shows 0 for each instead, because its statistics can omit clients that were connected only briefly.) The numbers
    are not compared for the stream protocol, whose messages the management API does not count.
    """
    options = ("--protocol", "stream") if queue_type.endswith("protocol") else ("--queue-type", queue_type)
    found = _result(shell, "-c", "500", "--publishers", "2", *options)
    assert [found[name] for name in ("published", "confirmed", "received")] == [500, 500, 500]
    assert [found[name] for name in ("lost", "duplicated", "out_of_order", "redelivered")] == [0, 0, 0, 0]
    assert Latencies(found["deliver"]["histogram"]).count == Latencies(found["confirm"]["histogram"]).count == 500
    assert shell.run("mqtool", "list", "queues").stdout == ""
    if "protocol" in queue_type:
        return  # RabbitMQ's API does not count these
    told = ("publish", "deliver", "ack") if broker.kind == "embedded" else ("publish", "confirm", "deliver", "ack")
    try:
        wait_until(lambda: _counted_by(broker, told) == [500] * len(told), f"500 of each of {told}", patience=30)
    except CheckFailed:
        # RabbitMQ's statistics sometimes omit clients that were connected only briefly, but then completely.
        assert (broker.kind, _counted_by(broker, told)) == ("rabbitmq", [0] * len(told))


def _counted_by(broker: TestBroker, names: Sequence[str]) -> list[int]:
    """Return the totals that the management API counts in the test's virtual host."""
    vhost: Any = broker.api("GET", f"vhosts/{broker.vhost}")
    return [vhost.get("message_stats", {}).get(name, 0) for name in names]


@on_any_broker
@large
def test_the_report_of_bench_fits_into_80_columns(shell: Shell, broker: TestBroker) -> None:
    """The report of `bench` has a summary in its first line, a histogram, and a line with the numbers of lost,
    duplicated, reordered and redelivered messages. No line is longer than 80 columns.
    """
    done = shell.run(
        *BENCH, "--rate", "500", "-c", "300", "--consumers", "2", "--exchange", "topic", "--size", "50-2KiB"
    )
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "quorum queue, 1 publisher, 2 consumers" in " ".join(lines[:3])
    assert any("█" in line for line in lines)
    assert "lost 0, duplicated 0, out of order 0, redelivered 0" in lines
    assert lines[0].endswith("; 0 lost")


def test_without_a_terminal_bench_needs_yes_for_a_broker_that_mqtool_did_not_start(
    tester: Shell, own: EmbeddedBroker
) -> None:
    """If mqtool did not start the broker, `bench` without a terminal and without --yes exits with 2, and says that the
    benchmark would put load on the broker.
    """
    done = tester.run("mqtool", "bench", "-c", "1")
    assert (done.code, "this would put load on" in done.stderr) == (2, True), done.stderr


def _wait_for_messages(own: EmbeddedBroker, count: int) -> None:
    """Wait until a run has published this many messages."""
    api = TestBroker("embedded", own.url, own.management_url or "")

    def published() -> bool:
        queues: Any = api.api("GET", "queues")
        # The statistics do not include the stream protocol.
        return any(max(each["messages"], each["message_stats"].get("publish", 0)) >= count for each in queues)

    wait_until(published, f"{count} messages in the queue")


def _once_it_runs(tester: Shell, own: EmbeddedBroker, *options: str, then: Callable[[], object]) -> dict[str, Any]:
    """Start a run, do something to the broker once a hundred messages are published, and return the result."""
    bench = tester.start(*BENCH, "--json", *options)
    _wait_for_messages(own, 100)
    then()
    done = bench.wait()
    assert done.code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _forge(broker: TestBroker) -> int:
    """Publish messages to the queue of a `bench` run as soon as the queue is declared; return how many."""
    names: list[str] = []

    def declared() -> bool:
        with contextlib.suppress(HTTPError):  # RabbitMQ replies with 500 while a stream is being declared
            queues: Any = broker.api("GET", f"queues/{broker.vhost or '%2F'}")
            names.extend(each["name"] for each in queues if each["name"].startswith("mqtool-bench-"))
        return bool(names)

    wait_until(declared, "the queue of the run")
    stamps = [STAMP.pack(b"mallory!", publisher, number, 0) for publisher, number in ((0, 5), (0, 2**63), (65535, 1))]
    bodies = [b"", b"short", bytes(100), *stamps]
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as hers:
        channel = hers.channel()
        channel.queue_declare("mallory")
        channel.confirm_delivery()
        for body in bodies:
            properties = pika.BasicProperties(reply_to="mallory", headers={"x-stream-offset": 2**40})
            channel.basic_publish("", names[0], body, properties)
    return len(bodies)


def _disturbed(shell: Shell, broker: TestBroker, *options: str) -> None:
    """Start a run of `bench`, publish other messages to its queue, and check that the run's result does not count them,
    and that `bench` sent no reply to them.
    """
    bench = shell.start(*BENCH, "--json", "-c", "300", "--rate", "40", *options)
    forged = _forge(broker)
    done = bench.wait()
    found = json.loads(done.stdout)
    assert (done.code, found["others"]) == (0, forged), done.stderr
    assert f"{forged} other messages were received; they are not counted" in done.stderr
    assert [found[name] for name in ("published", "confirmed", "received")] == [300, 300, 300]
    assert [found[name] for name in ("lost", "duplicated", "out_of_order", "redelivered")] == [0, 0, 0, 0]
    assert Latencies(found["deliver"]["histogram"]).count == Latencies(found["confirm"]["histogram"]).count == 300
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as hers:
        assert hers.channel().queue_delete("mallory").method.message_count == 0


@pytest.mark.parametrize("options", ["", "--rpc", "--queue-type stream", "--protocol stream", "--delay 1s"])
@pytest.mark.own_vhost("it looks for the queue of the run")
@pytest.mark.sampled(1)
@large
def test_other_messages_in_the_queue_of_bench_are_counted_separately(
    shell: Shell, broker: TestBroker, options: str
) -> None:
    """`bench` numbers the messages that it publishes. If another client publishes messages to the queue of `bench`,
    some with forged numbers and some without a number, `bench` reports how many of these messages it received, and
    excludes them from all other results. With --rpc, `bench` sends no reply to the queue that these messages name in
    reply_to.
    """
    _disturbed(shell, broker, *options.split())


@pytest.mark.parametrize("queue_type", ["classic", "stream"])
@pytest.mark.sampled(1)
@large
def test_other_messages_in_the_queue_of_bench_are_counted_separately_over_amqp10(
    tester: Shell, own: EmbeddedBroker, queue_type: str
) -> None:
    """With `--protocol amqp1.0`, `bench` reports separately how many messages other clients published to its queue, and
    excludes them from all other results. This is true for a classic queue and for a stream.
    """
    broker = TestBroker("embedded", own.url, own.management_url or "")
    _disturbed(tester, broker, "--protocol", "amqp1.0", "--queue-type", queue_type)


@large
def test_bench_stops_if_nothing_is_confirmed_for_10_s(tester: Shell, own: EmbeddedBroker) -> None:
    """If the broker confirms nothing for 10 s, `bench` stops, and reports how many messages are unconfirmed and how
    many were not sent.
    """
    own.faults.delay_confirms()
    result = tester.run(*BENCH, "-c", "300", "--confirms", "50", "--json")
    found = json.loads(result.stdout)
    assert (found["published"], found["confirmed"], found["unconfirmed"], found["unsent"]) == (50, 0, 50, 250)
    assert "ended early, because nothing was confirmed for 10 s: 250 messages of 300 missing" in result.stderr


@large
def test_bench_with_a_rate_measures_latencies_from_the_time_at_which_messages_were_due(
    tester: Shell, own: EmbeddedBroker
) -> None:
    """`bench --rate 1000` measures each latency from the time at which the message was due. If the broker stalls for 1
    s, at least 400 messages therefore have a latency of more than 0.5 s. Without --rate, `bench --confirms 1` waits for
    each confirm before it publishes the next message, so the same stall delays only one to three messages by more than
    0.9 s.
    """

    def stall() -> None:
        own.faults.go_silent(1.0)

    found = _once_it_runs(tester, own, "--rate", "1000", "--duration", "5s", then=stall)
    late = [0.5, 3600]
    assert found["published"] + found["unsent"] == 5000
    assert found["deliver"]["p99"] >= 900
    assert Latencies(found["deliver"]["histogram"]).bars(late)[0] >= 400
    assert Latencies(found["confirm"]["histogram"]).bars(late)[0] >= 400
    closed = _once_it_runs(tester, own, "--confirms", "1", "--duration", "5s", then=stall)
    slow = Latencies(closed["confirm"]["histogram"])
    assert closed["confirm"]["max"] >= 900
    assert 1 <= slow.bars([0.9, 3600])[0] <= 3
    assert slow.count > 100


@pytest.mark.parametrize("protocol", ["amqp0.9.1", "amqp1.0", "stream"])
@large
def test_latencies_count_from_the_due_time_if_the_publisher_waits_for_confirms(
    tester: Shell, own: EmbeddedBroker, protocol: str
) -> None:
    """If the broker stalls for 1 s, `bench --rate 1000 --confirms 20` stops publishing once 20 messages are
    unconfirmed. For messages that it publishes after the stall, latencies are measured from the time at which each
    message was due. At least 300 messages, not only the 20 unconfirmed ones, therefore have a latency of more than 0.5
    s.
    """
    load = ("--rate", "1000", "--duration", "5s", "--confirms", "20", "--protocol", protocol)
    found = _once_it_runs(tester, own, *load, then=lambda: own.faults.go_silent(1.0))
    in_flight = [published - confirmed for _, published, confirmed, _ in found["series"]]
    assert max(in_flight) == 20
    late = [0.5, 3600]
    assert Latencies(found["confirm"]["histogram"]).bars(late)[0] >= 300
    assert Latencies(found["deliver"]["histogram"]).bars(late)[0] >= 300


@on_any_broker
@large
def test_bench_runs_the_commands_given_with_at_and_during(shell: Shell, broker: TestBroker) -> None:
    """`bench` runs the commands given with --at and --during while it measures, and keeps the output of these commands
    out of the result. If the benchmark ends before a command is due, `bench` says that this command did not run.
    """
    begun = ("--at", "0s", "touch begun; echo done", "--at", "1h", "touch late")
    found = shell.run(*BENCH, "--json", "--duration", "1s", "--rate", "50", *begun, "--during", "touch third")
    assert (found.code, json.loads(found.stdout)["confirmed"]) == (0, 50), found.stderr
    assert "so this did not run: touch late" in found.stderr
    wait_until(
        lambda: {"begun", "third"} <= {path.name for path in shell.directory.iterdir()}, "the files of both commands"
    )


@on_any_broker
@large
def test_bench_names_a_command_that_failed_during_the_run(shell: Shell) -> None:
    """If a command given to `bench --at` fails, `bench` still prints the result, names the failed command, and exits
    with 3.
    """
    found = shell.run(*BENCH, "--json", "--duration", "4s", "--rate", "50", "--at", "0s", "exit 69")
    assert (found.code, json.loads(found.stdout)["confirmed"]) == (3, 200), found.stderr
    assert "a command failed during the run: exit 69" in found.stderr


@pytest.mark.parametrize(
    ("options", "totals"),
    [
        ("--rpc --consumers 2", (200, 200)),
        ("--rpc --rate 400 --transient --queue-type classic", (200, 200)),
        ("--delay 500ms", (200, 200)),
        ("--exchange topic --ack auto --bodies bodies --rate 500 --warm-up 100ms", (200, 200)),
        ("--churn connections", (200, 0)),
        ("--churn channels --rate 400", (200, 0)),
        ("--churn queues --publishers 2", (200, 0)),
        ("--churn bindings", (200, 0)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[1]} received",
)
@pytest.mark.sampled(2)
@large
def test_bench_with_rpc_delay_ack_or_churn_reports_everything_as_confirmed(
    shell: Shell, broker: TestBroker, options: str, totals: tuple[int, int]
) -> None:
    """`bench` with --rpc, --delay or --ack reports that all messages were confirmed and none was lost. `bench
    --churn`, which sends no messages, reports as "confirmed" how many connections, channels, queues or bindings it
    has created. With each of these options, `bench` leaves no queue behind.
    """
    (shell.directory / "bodies").write_text("short\n" + "long" * 40_000 + "\n")
    found = _result(shell, "-c", "200", *options.split())
    assert (found["confirmed"], found["received"], found["lost"]) == (*totals, 0)
    assert Latencies(found["deliver"]["histogram"]).count > 0
    assert Latencies(found["confirm"]["histogram"]).count > 0
    assert shell.run("mqtool", "list", "queues", "--all").stdout == ""


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_bench_refuses_to_draw_charts_into_an_existing_file(shell: Shell, kind: str) -> None:
    """If the file given with `bench --plot` exists or is a symbolic link, even one to a missing file, `bench` exits
    with 2 before it sends any message, and changes no file.
    """
    thesis, chart = shell.directory / "thesis", shell.directory / "chart.svg"
    if kind != "dangling link":
        (chart if kind == "file" else thesis).write_text("important")
    if kind != "file":
        chart.symlink_to(thesis)
    refused = shell.run(*BENCH, "-c", "50", "--plot", "chart.svg")
    assert (refused.code, refused.stdout) == (2, "")
    assert "chart.svg already exists" in refused.stderr
    if kind == "dangling link":
        assert not thesis.exists()
    else:
        assert chart.read_text() == "important"


@large
def test_bench_keeps_a_file_that_another_program_creates_during_the_run(shell: Shell) -> None:
    """If another program creates the file given with `bench --plot` during the run, `bench` prints its results, exits
    with 1, and leaves the file unchanged.
    """
    load = ("--duration", "4s", "--rate", "50", "--at", "0s", "echo important > chart.svg")
    failed = shell.run(*BENCH, *load, "--plot", "chart.svg")
    assert failed.code == 1
    assert failed.stdout
    assert "cannot write chart.svg: File exists" in failed.stderr
    assert (shell.directory / "chart.svg").read_text() == "important\n"


@on_any_broker
@large
def test_bench_vary_and_bench_compare_report_several_runs(shell: Shell, broker: TestBroker) -> None:
    """`bench --vary size=50,1KiB` runs once with each of these sizes, and prints a row for each run. `bench compare
    classic quorum` compares runs with the two queue types, and `bench compare FILE1 FILE2` compares the results in two
    files.
    """
    varied = shell.run(*BENCH, "--vary", "size=50,1KiB", "-c", "100", "--csv")
    assert (varied.code, len(varied.stdout.splitlines())) == (0, 3), varied.stderr
    stepped = shell.run(*BENCH, "--vary", "rate=500,1000", "-c", "100", "--plot", "chart.html")
    assert [line.split()[0] for line in stepped.stdout.splitlines()] == ["500", "1000"]
    assert "kept up" in stepped.stderr or "did not keep up" in stepped.stderr
    assert "<svg" in (shell.directory / "chart.html").read_text()
    compared = shell.run(*BENCH, "compare", "classic", "quorum", "-c", "100", "--rounds", "2")
    assert compared.code == 0, compared.stderr
    assert "A: classic, B: quorum, 2 runs and 2 runs" in compared.stdout
    assert "confirmed/s: " in compared.stdout
    for name in ("old", "new"):
        made = shell.script(f"mqtool bench --yes -c 100 --json > {name}; mqtool bench --yes -c 100 --json >> {name}")
        assert made.code == 0, made.stderr
    assert "A: old, B: new, 2 runs and 2 runs" in shell.run("mqtool", "bench", "compare", "old", "new").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "5"], "a body of 5 bytes is too small"),
        (["--size", "9-5"], "is not a range of sizes"),
        (["--ack", "some"], "is not each, auto or a number of messages"),
        (["--vary", "queue=a,b"], "with one of the names rate, size"),
        (["--at", "soon", "true"], "--at: 'soon' is not a duration"),
        (["--json", "--csv"], "--json and --csv cannot be combined"),
        (["--plot", "x.png"], "its name must end with .svg or .html"),
        (["--plot", "nowhere/x.svg"], "cannot write nowhere/x.svg"),
        (["--vary", "size=100,5"], "a body of 5 bytes is too small"),
        (["--churn", "queues", "--rpc"], "--churn queues publishes nothing"),
        (["compare", "classic", "quorum", "--during", "true"], "compare does not take --during"),
        (["--rpc", "--queue-type", "stream"], "--rpc needs a classic or quorum queue"),
        (["--queue-type", "stream", "--ack", "auto"], "a stream's consumers must acknowledge"),
        (["--ack", "20", "--prefetch", "10"], "--ack 20 waits for more messages than --prefetch 10 allows"),
        (["--protocol", "stream", "--queue-type", "quorum"], "the stream protocol cannot reach a quorum queue"),
        (["--protocol", "stream", "--ttl", "1s"], "--ttl cannot be combined with --protocol stream"),
        (["--protocol", "amqp1.0", "--churn", "queues"], "--churn cannot be combined with --protocol amqp1.0"),
        (["--duration", "1s", "--warm-up", "2s"], "the warm-up takes the whole run"),
        (["--bodies", "nothing"], "cannot read nothing"),
        (["comapre", "classic", "quorum"], "for example: mqtool bench compare classic quorum"),
        (["compare", "classic", "nothing"], "unknown context 'nothing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.sampled(3)
def test_an_invalid_bench_command_is_a_usage_error(tester: Shell, words: list[str], said: str) -> None:
    """`bench` with an invalid option, or with options that cannot be combined, says what is wrong and exits with 2."""
    done = tester.run(*BENCH, *words)
    assert (done.code, said in done.stderr) == (2, True), done.stderr


def test_a_bench_run_that_cannot_start_leaves_no_stream_behind(tester: Shell, own: EmbeddedBroker) -> None:
    """If the server at the port given with --stream-port does not speak the stream protocol, `bench --protocol stream`
    exits with 69 and leaves no stream behind.
    """
    done = tester.run(*BENCH, "--protocol", "stream", "--stream-port", str(own.port))
    assert (done.code, "does not speak RabbitMQ's stream protocol" in done.stderr) == (69, True), done.stderr
    assert tester.run("mqtool", "list", "queues").stdout == ""


class Meddler(Proxy):
    """A proxy that drops the third of each ten deliveries, doubles the fifth, and swaps the seventh and the eighth."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.deliveries = 0

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        is_from_broker = False
        with contextlib.suppress(OSError):  # the client has ended
            is_from_broker = source.getpeername()[1] == self.target[1]
        if not is_from_broker:
            super()._forward(source, target)
            return
        data, pieces, held = b"", [], b""
        with contextlib.suppress(OSError):  # the client has ended
            while more := source.recv(65536):
                data += more
                while len(data) >= 7 and len(data) >= (size := 8 + int.from_bytes(data[3:7], "big")):
                    frame, data = data[:size], data[size:]
                    pieces.append(frame)
                    is_delivery = pieces[0][7:11] == _DELIVER
                    if is_delivery and len(pieces) < 3:  # its method; then come its header and its body
                        continue
                    whole, pieces = b"".join(pieces), []
                    if is_delivery:
                        whole, held = self._changed(whole, held)
                    target.sendall(whole)

    def _changed(self, delivery: bytes, held: bytes) -> tuple[bytes, bytes]:
        self.deliveries += 1
        match self.deliveries % 10:
            case 3:
                return b"", b""
            case 5:
                return delivery * 2, b""
            case 7:
                return b"", delivery
        return delivery + held, b""


@large
def test_bench_counts_lost_duplicated_and_reordered_messages(tester: Shell, own: EmbeddedBroker) -> None:
    """If a proxy between the broker and `bench` drops 100 deliveries, duplicates 100 and reorders 100, `bench` reports
    100 messages as lost, 100 as duplicated and 100 as out of order, and exits with 1.
    """
    with Meddler(own.port) as proxy:
        tester.environment["MQTOOL_URL"] = own.url.replace(f":{own.port}", f":{proxy.port}")
        found = _result(tester, "-c", "1000", "--ack", "auto", code=1)
    assert [found[name] for name in ("confirmed", "received")] == [1000, 900]
    assert [found[name] for name in ("lost", "duplicated", "out_of_order", "redelivered")] == [100, 100, 100, 0]


@pytest.mark.parametrize(
    "options", ["--ack 100", "--queue-type stream", "--protocol stream", "--protocol amqp1.0 --ack 100"]
)
@pytest.mark.sampled(1)
@large
def test_bench_resumes_after_its_connections_were_cut(tester: Shell, own: EmbeddedBroker, options: str) -> None:
    """If the connections of `bench` are cut, its publisher and its consumer reconnect, and no confirmed message is
    lost. On a stream, no message is received twice.
    """
    load = ("--rate", "300", "-c", "1800", *options.split())  # a count, so that a busy machine only takes longer
    name, port = ("STREAM_PORT", own.stream_port) if "protocol stream" in options else ("URL", own.port)
    with Proxy(port or 0) as proxy:
        tester.environment[f"MQTOOL_{name}"] = tester.environment[f"MQTOOL_{name}"].replace(str(port), str(proxy.port))
        found = _once_it_runs(tester, own, *load, then=proxy.cut)
    assert (found["reconnects"], found["lost"]) == (2, 0)
    assert "stream" not in options or found["duplicated"] == 0
    assert found["confirmed"] + found["unconfirmed"] == found["published"]


@large
def test_bench_prints_the_result_so_far_after_ctrl_c(tester: Shell, own: EmbeddedBroker) -> None:
    """After Ctrl-C, `bench` prints the result so far, deletes its queue and exits with 130."""
    bench = tester.start(*BENCH, "--rate", "500", "--duration", "1h")
    _wait_for_messages(own, 1)
    done = bench.interrupt().wait()
    assert done.code == 130, done.stderr
    assert "confirmed/s" in done.stdout
    assert tester.run("mqtool", "list", "queues").stdout == ""


@pytest.mark.parametrize(
    "options",
    ["--queue-type classic --exchange direct", "--protocol stream", "--delay 1s"],
    ids=["exchange", "stream", "delay"],
)
@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGKILL,)], ids=["two signals", "SIGKILL"]
)
@pytest.mark.sampled(1)
def test_a_killed_bench_run_leaves_no_queue_or_exchange_behind(
    tester: Shell, own: EmbeddedBroker, options: str, numbers: Sequence[int]
) -> None:
    """If `bench` is killed with SIGKILL, or gets a second signal while it is stopping, the queues and exchanges of the
    run are deleted soon afterwards by one of the client processes that `bench` has started.
    """

    def declared() -> str:
        return "".join(tester.run("mqtool", "list", kind, "--json").stdout for kind in ("queues", "exchanges"))

    bench = tester.start(*BENCH, "--rate", "500", "--duration", "1h", *options.split())
    _wait_for_messages(own, 1)
    assert "mqtool-bench-" in declared()
    for number in numbers:
        bench.process.send_signal(number)
    assert bench.wait().code in [128 + number for number in numbers]  # it may end before the second signal
    wait_until(lambda: "mqtool-bench-" not in declared(), "the queues and exchanges of the run to be deleted")
