"""`queue show` shows everything about a queue on one screen."""

import json
import signal

import pytest

from tests.brokers import TestBroker
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.protocol.raw_client import RawClient, raw_frame

pytestmark = pytest.mark.own_vhost("statistics of what an earlier test has deleted may linger")
SETTINGS = ("--max-length", "9", "--dead-letter-exchange", "dead")


@pytest.fixture
def admin(shell: Shell, broker: TestBroker) -> Shell:
    """A shell with the address of the management API in its environment, and a queue `jobs` with two bindings."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for line in (
        "exchange declare dead topic",
        "exchange declare in topic",
        "queue declare jobs.dlq",
        f"queue declare jobs {' '.join(SETTINGS)}",
        "exchange bind dead jobs.dlq kern.*",
        "exchange bind in jobs kern.* *.critical",
    ):
        assert shell.run("mqtool", *line.split()).code == 0
    return shell


def test_queue_show_fits_on_one_screen(admin: Shell) -> None:
    """On a terminal, `queue show` prints a queue's arguments, counts, consumers, bindings and dead letters in at most
    24 lines, however many bindings there are.
    """
    admin.run("mqtool", "exchange", "bind", "in", "jobs", *map(str, range(30)))
    admin.start("mqtool", "receive", "--declare", "-q", "jobs", *SETTINGS).wait_until_ready()

    def shown() -> str:
        return admin.run("mqtool", "queue", "show", "jobs").stdout

    wait_until(lambda: "guest at " in shown(), "the consumer in the management API")  # its statistics lag by seconds
    found = shown()
    for expected in (
        "queue jobs in vhost ",
        "quorum, durable",
        "x-max-length:=9",
        "0 ready",
        "to exchange dead with their own routing keys ──> jobs.dlq",
        "prefetch",
        "in ── 'kern.*'",
        "in ── '29'",
    ):
        assert expected in found
    on_screen = on_terminal(admin, "mqtool", "queue", "show", "jobs").stdout
    assert len(on_screen.splitlines()) <= 24
    assert "more" in on_screen


def test_queue_show_json_prints_one_object(admin: Shell) -> None:
    """`queue show --json` prints one JSON object with the columns of `list queues` and the queue's consumers, bindings
    and dead letters.
    """
    admin.run("mqtool", "send", "-q", "jobs", *SETTINGS, "x")
    found = json.loads(admin.run("mqtool", "queue", "show", "jobs", "--json").stdout)
    assert (found["messages_ready"], found["type"], found["consumers"]) == (1, "quorum", [])
    assert {binding["routing_key"] for binding in found["bindings"]} == {"kern.*", "*.critical"}
    assert found["dead_letters"] == {"exchange": "dead", "routing_key": None, "queues": ["jobs.dlq"]}


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize(
    ("settings", "goes"),
    [
        ("", "dropped: the queue has no dead-letter exchange"),
        ("dead kern.err", "to exchange dead with routing key 'kern.err' ──> jobs.dlq"),
        ("dead mail.err", "routing key 'mail.err': lost, no queue gets them"),
        ("nowhere", "lost, the exchange does not exist"),
    ],
)
@pytest.mark.sampled(2)
def test_queue_show_says_where_dead_letters_go(admin: Shell, settings: str, goes: str) -> None:
    """`queue show` names the exchange, routing key and queue to which dead letters go. If dead letters would not reach
    any queue, it says why: no dead-letter exchange is set, the exchange does not exist, or the exchange routes them to
    no queue.
    """
    starts = ("--dead-letter-exchange=", "--argument=x-dead-letter-routing-key=")
    options = [f"{start}{value}" for start, value in zip(starts, settings.split(), strict=False)]
    assert admin.run("mqtool", "queue", "declare", "other", *options).code == 0
    assert goes in admin.run("mqtool", "queue", "show", "other").stdout


@pytest.mark.parametrize("target", ["''=nowhere", "nowhere=key"])
def test_dead_letters_that_no_queue_gets_are_not_lost_if_the_queue_holds_them(
    admin: Shell, broker: TestBroker, target: str
) -> None:
    """With the dead-letter strategy at-least-once, a queue holds the dead letters that no queue gets. `queue show`,
    `queue declare` and `doctor` do not say that they are lost.
    """
    exchange, key = target.replace("''", "").split("=")
    settings = {"exchange": exchange, "routing-key": key, "strategy": "at-least-once"}
    options = [f"--argument=x-dead-letter-{name}={value}" for name, value in settings.items()]
    made = admin.run("mqtool", "queue", "declare", "held", "--argument=x-overflow=reject-publish", *options)
    assert (made.code, "lost" in made.stderr) == (0, False), made.stderr
    shown = admin.run("mqtool", "queue", "show", "held").stdout
    assert ("held, " in shown, "lost" in shown) == (True, False), shown
    found = admin.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "10ms").stdout
    assert ("it holds its dead letters" in found, "lost" in found) == (True, False), found


def test_queue_show_lists_the_offset_and_lag_of_each_stream_consumer(shell: Shell, broker: TestBroker) -> None:
    """For a stream, `queue show` prints the stored offset and the lag of each named consumer. If nothing answers on the
    stream port, `queue show` says that the offset is unknown.
    """
    if not broker.streams:
        pytest.skip("this broker has no port for streams")
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    shell.run("mqtool", "send-stream", "-l", "-q", "events", stdin="one\ntwo\nthree\n")
    reader = shell.start("mqtool", "receive-stream", "-q", "events", "--track", "me", "--raw").wait_for_stdout("three")
    wait_until(lambda: shell.run("mqtool", "offset", "show", "events", "me").stdout == "2\n", "the offset to be stored")
    reader.process.send_signal(signal.SIGSTOP)
    shell.run("mqtool", "send-stream", "-l", "-q", "events", stdin="four\nfive\n")
    wait_until(lambda: "name" in str(broker.api("GET", f"consumers/{broker.vhost}")), "the consumer to be listed")

    found = json.loads(shell.run("mqtool", "queue", "show", "events", "--json").stdout)
    last = found["next_offset"] - 1
    assert (found["first_offset"], last >= 4) == (0, True)  # RabbitMQ counts stored offsets, too
    assert [(each["stored_offset"], each["lag"]) for each in found["consumers"]] == [(2, last - 2)]
    shown = shell.run("mqtool", "queue", "show", "events").stdout
    for expected in ("stream, durable", f"offsets         0 to {last}", f"offset 2, {last - 2} messages behind"):
        assert expected in shown
    assert "dead letters" not in shown
    assert f"{last - 2} messages behind" in shell.run("mqtool", "offset", "show", "events", "me").stderr

    unknown = shell.run("mqtool", "queue", "show", "events", "--stream-port", "1")
    assert "cannot get the offsets: nothing answers at " in unknown.stderr
    assert "at an unknown offset" in unknown.stdout
    reader.process.send_signal(signal.SIGCONT)


def test_queue_show_of_a_missing_queue_exits_with_69(admin: Shell) -> None:
    """If the queue does not exist, `queue show` exits with 69. The error names the queue, and the hint suggests `list
    queues`.
    """
    missing = admin.run("mqtool", "queue", "show", "nope")
    assert missing.code == 69
    assert "queue 'nope' does not exist" in missing.stderr
    assert "mqtool list queues" in missing.stderr


def test_queue_show_of_a_missing_queue_with_a_name_that_is_not_utf_8_exits_with_69(admin: Shell) -> None:
    """If a queue does not exist and its name is not UTF-8, `queue show` exits with 69, and does not report an
    unexpected error.
    """
    shown = admin.script("mqtool queue show \"$(printf 'q\\377')\"")
    assert shown.code == 69, shown.stderr
    assert "unexpected" not in shown.stderr


def test_queue_show_prints_a_queue_whose_name_is_not_utf_8(admin: Shell, broker: TestBroker) -> None:
    """On the embedded broker, `queue show` prints a queue whose name is not UTF-8. On RabbitMQ, which refuses to
    declare such a queue, `queue show` exits with 69.
    """
    with RawClient(broker.url) as client:
        client.socket.sendall(raw_frame(1, 1, b"\x00\x32\x00\x0a\0\0\x02q\xff\0\0\0\0\0"))
        client.read(1)
    shown, listed = admin.run("mqtool", "queue", "show", b"q\xff"), admin.run("mqtool", "list", "queues")
    if broker.kind == "embedded":
        assert shown.stdout.startswith("queue 'q\\udcff' in vhost ")
        assert b"\nq\xff\t0\n" in listed.stdout_bytes
    else:
        hint = "hint: 'mqtool list queues' shows them\n"
        assert shown.stderr == f"mqtool: queue 'q\\udcff' does not exist in vhost {broker.vhost!r}\n{hint}"
    assert (shown.code, listed.code) == (0 if broker.kind == "embedded" else 69, 0)
