"""Brokers that send malformed frames: commands neither crash nor hang."""

import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.codecs.amqp10_frames import (
    Accepted,
    Close,
    Disposition,
    Error,
    Received,
    Transfer,
    decode_performative,
    frame,
)
from mqtool.codecs.amqp10_values import Symbol
from mqtool.errors import ExitCode
from tests.brokers import IN_CI
from tests.cli.shell import Result, Shell
from tests.protocol.raw_stream import (
    CONSUMER_UPDATE,
    DELIVER,
    METADATA,
    METADATA_UPDATE,
    PUBLISH_CONFIRM,
    PUBLISH_ERROR,
    SUBSCRIBE,
)
from tests.proxy import Change, Tampering

#: The seeds of the sessions that are changed at random, for each command. Outside CI, those that have found something.
SEEDS = range(60) if IN_CI else (5, 18, 38, 42)
#: Seconds in which a command with a time limit of one second ends, also on a busy machine.
LIMIT = 20.0
UNREADABLE = "was lost: the broker sent something unreadable"


@pytest.fixture(scope="module")
def like_4_3() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(like="4.3", stream_port=0) as broker:
        yield broker


@pytest.fixture
def run(lonely_shell: Shell, like_4_3: EmbeddedBroker) -> Callable[..., Result]:
    """Return a function that runs a command through a proxy that changes the broker's frames. The queue and the stream
    each have a message to receive.
    """

    def run(change: Change, *command: str) -> Result:
        is_stream = command[0].endswith("-stream")
        port = like_4_3.stream_port if is_stream else like_4_3.port
        with Tampering(port or 0, change, 4 if is_stream else 0) as proxy:
            where = ["-u", like_4_3.url, "--stream-port", str(proxy.port)]
            if not is_stream:
                where = ["-u", f"amqp://127.0.0.1:{proxy.port}", "--protocol", "amqp1.0"]
            return lonely_shell.run("mqtool", *command, *where, timeout=60)

    for command in ("send", "send-stream"):
        assert run(bytes, command, "-q", command, "x").code == 0
    return run


def of_stream(key: int, body: bytes) -> bytes:
    return struct.pack(">IHH", 4 + len(body), key, 1) + body


def change_frames(key: int, change: Change) -> Change:
    """Change the frames with a key, of the stream protocol."""
    return lambda data: change(data) if int.from_bytes(data[4:6]) == key else data


@pytest.mark.parametrize(
    "change",
    [
        change_frames(DELIVER, lambda data: data[:8] + b"\x4d" + data[9:]),
        change_frames(DELIVER, lambda _: of_stream(DELIVER, b"")),
        change_frames(DELIVER, lambda _: of_stream(DELIVER, b"\0\1")),
        change_frames(DELIVER, lambda data: data[:33] + b"\xff" * 8 + data[41:]),
        change_frames(SUBSCRIBE | 0x8000, lambda data: data + of_stream(CONSUMER_UPDATE, b"\0\0\0\1\0\1")),
        change_frames(SUBSCRIBE | 0x8000, lambda data: data + of_stream(CONSUMER_UPDATE, b"\0\0")),
        change_frames(SUBSCRIBE | 0x8000, lambda data: data + of_stream(METADATA_UPDATE, b"\0\6\0\1\xff")),
        change_frames(SUBSCRIBE | 0x8000, lambda data: data + of_stream(METADATA_UPDATE, b"")),
        change_frames(METADATA | 0x8000, lambda data: of_stream(METADATA | 0x8000, data[8:12] + b"\xff" * 4)),
    ],
    ids=[
        "another subscription", "no chunk", "short chunk", "offset", "not single active", "short consumer update",
        "name of a stream", "short metadata update", "count of nodes",
    ],
)  # fmt: skip
def test_receive_stream_reports_a_malformed_frame_as_a_lost_connection(
    run: Callable[..., Result], change: Change
) -> None:
    """If the broker sends `receive-stream` a malformed frame of the stream protocol, for example one that is too
    short or is for another subscription, `receive-stream` reports that the connection was lost. With --no-reconnect,
    it exits with 69.
    """
    result = run(change, "receive-stream", "-q", "send-stream", "--no-reconnect", "--timeout", "30s")
    assert (result.code, UNREADABLE in result.stderr) == (69, True), result.stderr


@pytest.mark.parametrize(
    "change",
    [
        change_frames(PUBLISH_CONFIRM, lambda _: of_stream(PUBLISH_CONFIRM, b"")),
        change_frames(PUBLISH_CONFIRM, lambda data: data[:9] + b"\xff" * 4 + data[13:]),
        change_frames(PUBLISH_CONFIRM, lambda data: data[:13] + (2).to_bytes(8)),
        change_frames(PUBLISH_CONFIRM, lambda data: of_stream(PUBLISH_ERROR, data[8:13] + bytes(2))),
    ],
    ids=["no confirm", "count of confirms", "message that was not sent", "short error"],
)
def test_send_stream_reports_a_malformed_confirm_as_a_lost_connection(
    run: Callable[..., Result], change: Change
) -> None:
    """If the broker answers `send-stream` with a confirm or an error that is too short, or that is for a message that
    was not sent, `send-stream` reports that the connection was lost. With --no-reconnect, it exits with 75.
    """
    result = run(change, "send-stream", "-q", "send-stream", "--no-reconnect", "x")
    assert (result.code, UNREADABLE in result.stderr) == (75, True), result.stderr


@pytest.mark.parametrize(
    ("method", "tag", "multiple"),
    [(80, 4, 0), (80, 2**63, 1), (80, 0, 0), (120, 4, 0), (120, 2**63, 2)],
    ids=["the next", "up to a later one", "none", "rejects the next", "rejects up to a later one"],
)
def test_send_keeps_its_messages_if_the_broker_confirms_one_that_was_not_sent(
    like_4_3: EmbeddedBroker, lonely_shell: Shell, method: int, tag: int, multiple: int
) -> None:
    """If the broker confirms or rejects a message that `send` has not published, what it means is not known. `send`
    says so, exits with 75, and stores all messages that are unconfirmed in the file of --failed-to.
    """

    def lie(data: bytes) -> bytes:
        is_confirm = data[0] == 1 and data[7:11] == struct.pack(">HH", 60, 80)
        return data[:7] + struct.pack(">HHQBB", 60, method, tag, multiple, 206) if is_confirm else data

    with Tampering(like_4_3.port, lie, None) as proxy:
        words = ("send", "-q", "send", "-l", "--failed-to", "kept", "--confirm-timeout", "20s")
        result = lonely_shell.run("mqtool", *words, "-u", f"amqp://127.0.0.1:{proxy.port}", stdin="1\n2\n3\n")
    assert (result.code, f"violated the protocol: it confirmed message {tag} of 3" in result.stderr) == (75, True)
    kept = (lonely_shell.directory / "kept").read_text().splitlines()
    assert [json.loads(line)["body"] for line in kept] == ["1", "2", "3"]


def test_receive_stream_gives_up_if_every_connection_fails_with_a_malformed_frame(run: Callable[..., Result]) -> None:
    """If every connection of `receive-stream --max-reconnects 2` fails with a malformed frame from the broker, the
    command reconnects twice, then gives up, and exits with 69.
    """
    malformed = change_frames(DELIVER, lambda _: of_stream(DELIVER, b""))
    result = run(malformed, "receive-stream", "-q", "send-stream", "--max-reconnects", "2", "--timeout", "30s")
    assert (result.code, result.stderr.count("connected again")) == (69, 2), result.stderr
    assert "gave up reconnecting" in result.stderr


def is_delivery(told: Any) -> bool:
    return isinstance(told, Transfer) and not told.settled


def is_disposition(told: Any) -> bool:
    return isinstance(told, Disposition)


def change_performatives(matches: Callable[[Any], bool], change: Change) -> Change:
    """Change the frames with some performatives, of AMQP 1.0."""

    def changed(data: bytes) -> bytes:
        is_frame = not data.startswith(b"AMQP") and len(data) > 8
        return change(data) if is_frame and matches(decode_performative(data[8:])[0]) else data

    return changed


def test_receive_reports_two_deliveries_with_the_same_id_as_a_lost_connection(run: Callable[..., Result]) -> None:
    """If `receive` uses AMQP 1.0, and the broker sends it two unsettled deliveries with the same delivery id, `receive`
    reports that the connection was lost. With --no-reconnect, it exits with 69.
    """
    twice = change_performatives(is_delivery, lambda data: 2 * data)
    result = run(twice, "receive", "-q", "send", "--no-reconnect", "--timeout", "30s")
    assert (result.code, UNREADABLE in result.stderr) == (69, True), result.stderr


@pytest.mark.parametrize("last", [0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_disposition_for_billions_of_deliveries_does_not_delay_send_and_receive(
    run: Callable[..., Result], last: int
) -> None:
    """If the broker sends an AMQP 1.0 disposition for a range of billions of delivery ids, `send` and `receive` are
    not delayed by it: they send or receive their message, and exit with 0.
    """
    requeued = frame(0, Disposition(False, 0x4000_0000, 0x4000_0000 + last & 0xFFFF_FFFF, settled=True))
    received = run(change_performatives(is_delivery, lambda data: requeued + data), "receive", "-q", "send", "-c", "1")
    assert (received.code, received.stdout) == (0, " [x] Received x\n"), received.stderr
    confirmed = frame(0, Disposition(True, 0, last, settled=True, state=Accepted()))
    sent = run(change_performatives(is_disposition, lambda data: confirmed + data), "send", "-q", "send", "x")
    assert (sent.code, sent.stderr) == (0, " [x] Sent 'x'\n")


def test_send_waits_for_an_outcome_if_the_broker_first_sends_the_state_received(run: Callable[..., Result]) -> None:
    """If the broker answers a message over AMQP 1.0 with the non-final delivery state `received`, `send` keeps waiting
    for an outcome such as `accepted`. If none arrives within --confirm-timeout, `send` exits with 75 and says that the
    message was not confirmed.
    """

    def received(data: bytes) -> bytes:
        return frame(0, decode_performative(data[8:])[0]._replace(settled=False, state=Received(0, 0)))

    sent = run(change_performatives(is_disposition, lambda data: received(data) + data), "send", "-q", "send", "x")
    assert (sent.code, sent.stderr) == (0, " [x] Sent 'x'\n")
    unconfirmed = run(
        change_performatives(is_disposition, received), "send", "-q", "send", "--confirm-timeout", "200ms", "x"
    )
    assert (unconfirmed.code, "did not confirm 1 message within 0.2 s" in unconfirmed.stderr) == (75, True)


def test_receive_prints_the_messages_before_one_that_ends_each_session_once(run: Callable[..., Result]) -> None:
    """If the broker's AMQP 1.0 session crashes each time it delivers a certain message, `receive` prints the messages
    before it once, also if the first session crashed before it delivered anything. `receive` then exits with 69; the
    error does not contain the broker's Erlang term, and the hint suggests other protocols.
    """
    crash = frame(0, Close(Error(Symbol("amqp:internal-error"), "Session error: {{badmatch,x},[{rabbit,y}]}")))
    seen: list[bytes] = []

    def crashing(data: bytes) -> bytes:
        seen.append(data)
        return crash if len(seen) == 1 or b"bad" in data else data

    for body in ("good", "fine", "bad"):
        assert run(bytes, "send", "-q", "crashing", body).code == 0
    result = run(change_performatives(is_delivery, crashing), "receive", "-q", "crashing", "--timeout", "30s")
    assert (result.code, result.stdout) == (69, " [x] Received good\n [x] Received fine\n"), result.stderr
    assert result.stderr.count("lost the connection to ") == 3  # and the fourth crash was the third in a row
    assert "badmatch" not in result.stderr
    assert result.stderr.endswith("try --protocol amqp0.9.1, or for a stream, mqtool receive-stream\n")


def mutate(data: bytes, chance: random.Random, uncounted: int) -> bytes:
    """Change a frame; in most cases, its size is right again afterwards."""
    changed, at = bytearray(data), chance.randrange(4, len(data))
    number = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF)).to_bytes(1)
    match chance.randrange(7):
        case 0:
            changed[at] = chance.randrange(256)
        case 1 | 2:
            rest = chance.choice((b"\0", b"\xff")) * chance.choice((0, 1, 3, 7))
            changed[at : at + 1 + len(rest)] = number + rest
        case 3:
            del changed[at : at + chance.randint(1, 8)]
        case 4:
            changed[at:at] = changed[at : at + chance.randint(1, 8)]
        case 5:
            del changed[at:]
        case 6:
            return data * 3
    if chance.random() < 0.9:
        changed[:4] = (len(changed) - uncounted).to_bytes(4)
    return bytes(changed)


def mutation(seed: int, uncounted: int) -> Change:
    """Change one of the first frames of a connection, and some of the frames after it."""
    chance = random.Random(seed)
    first, number = chance.randint(1, 12), 0

    def change(data: bytes) -> bytes:
        nonlocal number
        number += 1
        if data.startswith(b"AMQP") or number < first or (number > first and chance.random() < 0.7):
            return data
        return mutate(data, chance, uncounted)

    return change


@pytest.mark.parametrize(
    "command",
    [
        ("receive-stream", "-q", "send-stream", "--timeout", "1s"),
        ("receive-stream", "-q", "send-stream", "--timeout", "1s", "--track", "me", "--single-active"),
        ("receive", "-q", "send", "--timeout", "1s"),
        ("send-stream", "-q", "send-stream", "x", "--confirm-timeout", "1s"),
        ("send", "-q", "send", "x", "--confirm-timeout", "1s"),
    ],
    ids=" ".join,
)
def test_malformed_frames_neither_crash_nor_hang_a_command(
    run: Callable[..., Result], command: tuple[str, ...]
) -> None:
    """Whatever malformed frames the broker sends, for example with bytes changed, added or left out, commands for
    streams and for AMQP 1.0 do not hang. They exit with a documented exit code, and do not report a bug in mqtool.
    """
    uncounted = 4 if command[0].endswith("-stream") else 0

    def play(seed: int) -> tuple[int, Result, float]:
        chance, started = random.Random(seed), time.monotonic()
        changes = {
            "send-stream": change_frames(PUBLISH_CONFIRM, lambda data: mutate(data, chance, uncounted)),
            "send": change_performatives(is_disposition, lambda data: mutate(data, chance, uncounted)),
        }
        result = run(changes.get(command[0]) or mutation(seed, uncounted), *command, "--max-reconnects", "1")
        return seed, result, time.monotonic() - started

    with ThreadPoolExecutor(4) as threads:
        for seed, result, seconds in threads.map(play, SEEDS):
            assert "bug in mqtool" not in result.stderr, (seed, result.stderr)
            assert "Traceback" not in result.stderr, (seed, result.stderr)
            assert result.code in set(ExitCode), (seed, result)
            assert seconds < LIMIT, (seed, result)
