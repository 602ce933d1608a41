"""A steady flow: --count, --every and places in the text and the key, in all publishing commands."""

import re

import pytest

from tests.brokers import TestBroker, depth, on_any_broker
from tests.cli.shell import Shell
from tests.cli.terminal import on_terminal


@pytest.mark.parametrize(
    ("command", "queue"),
    [
        ("send -q jobs {}", "receive -q jobs"),
        ("new-task -q jobs {}", "receive -q jobs"),
        ("send -q jobs --delay 10ms --via ttl {}", "receive -q jobs"),
        ("publisher-confirms async -q jobs {}", "receive -q jobs"),
        ("emit-log topic -e amq.topic '{{pick:a,b}}.{{n}}' {}", "receive -q jobs"),
        ("send-stream -q flow {}", "receive-stream -q flow --offset first"),
    ],
)
def test_a_publisher_repeats_its_text_and_fills_the_places_in_it(shell: Shell, command: str, queue: str) -> None:
    """With --count and --every, each publishing command sends its text N times, with {n}, {time}, {uuid}, {random:1-6}
    and {pick:a,b} filled in, and leaves other braces alone. In the text and the key of one message, {pick:a,b} is the
    same word.
    """
    text = "'{n} {pick:a,b} {random:4-4} {time} {uuid} {\"x\": {n}}'"
    shell.script("mqtool queue declare jobs && mqtool exchange bind amq.topic jobs 'a.*' 'b.*'")

    sent = shell.script(f"mqtool {command.format(text)} --count 3 --every 20ms --jitter 10ms")
    lines = shell.script(f"mqtool {queue} -c 3 --idle-timeout 2s --format '%r|%b'").stdout.splitlines()

    assert sent.code == 0, sent.stderr
    for number, line in enumerate(lines, 1):
        key, body = line.split("|")
        n, word, four, time, uuid, json = body.split(" ", 5)
        assert (n, four, json) == (str(number), "4", f'{{"x": {number}}}')
        assert key == f"{word}.{n}" or "emit-log" not in command
        assert (len(time), time[-1], len(uuid), word in "ab") == (24, "Z", 36, True)
    assert len(lines) == 3


@on_any_broker
def test_places_are_filled_only_in_a_flow(shell: Shell) -> None:
    """Without --count and --every, braces are text. In a flow, a place that is not valid is an error."""
    shell.run("mqtool", "send", "{n} {random:6}")
    assert shell.run("mqtool", "receive", "--raw", "-c", "1").stdout == "{n} {random:6}\n"
    for words in ("--count=2 {random:6}", "--count=2 {pick:}", "--count=2 {n:2}", "--count=2 -l", "--jitter=1s x"):
        assert shell.run("mqtool", "send", *words.split()).code == 2


@on_any_broker
def test_ctrl_c_ends_a_flow_with_its_rate_and_counts(shell: Shell, broker: TestBroker) -> None:
    """On a terminal, `send --every` shows a line with the rate. Ctrl-C ends it with exit code 0, and all messages that
    it has counted are in the queue.
    """
    ended = on_terminal(
        shell, "mqtool", "send", "-q", "jobs", "--every", "10ms", "x", keys=["\x03"], cue="confirmed in"
    )
    assert ended.code == 0
    assert f"\x1b[2K{depth(broker, 'jobs')} confirmed in " in ended.stdout


def test_the_rate_of_a_flow_is_the_one_asked_for(shell: Shell) -> None:
    """The last line of a short flow shows the rate of --every: three messages, 500 ms apart, are two a second, although
    they take only a second.
    """
    sent = shell.run("mqtool", "send", "-q", "jobs", "--every", "500ms", "--count", "3", "x")
    assert re.fullmatch(r"3 confirmed in 1\.\d s \((1\.[5-9]|2\.0)/s\)\n", sent.stderr), sent.stderr
