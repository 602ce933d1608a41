"""--where of commands that receive: nothing that does not match is lost."""

import json

import pytest

from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import IDLE, Shell, wait_until
from tests.cli.test_exec import depth


def sent(shell: Shell, count: int) -> None:
    """Messages with headers n, from 0."""
    lines = "\n".join(json.dumps({"body": str(number), "headers": {"n": number}}) for number in range(count))
    assert shell.run("mqtool", "send", "-r", "jobs", "--json", stdin=lines).code == 0


@pytest.mark.keeps_messages
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_what_does_not_match_stays(shell: Shell, broker: TestBroker, queue_type: str) -> None:
    """In its place; the count is of those that match, and a time-out says how many did."""
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", queue_type)
    sent(shell, 200)
    receive = ("mqtool", "receive", "-q", "jobs", "--queue-type", queue_type, "--raw", "--where")
    came = shell.run(*receive, "headers.n=3 or headers.n=150", "-c", "2")
    assert (came.stdout, came.code) == ("3\n150\n", 0)
    wait_until(lambda: depth(broker, "jobs") == 198, "the others back")
    late = shell.run(*receive, "headers.n<2", "-c", "3", "--idle-timeout", IDLE)
    assert (late.stdout, late.code) == ("0\n1\n", 124)
    assert ": 2 of 3 received" in late.stderr
    wait_until(lambda: depth(broker, "jobs") == 196, "the others back")
    rest = shell.run("mqtool", "receive", "-q", "jobs", "--queue-type", queue_type, "--raw", "-c", "196")
    assert rest.stdout.split() == [str(number) for number in range(200) if number not in (0, 1, 3, 150)]


@on_any_broker
def test_a_reader_that_leaves_leaves_the_rest(shell: Shell, broker: TestBroker) -> None:
    """As without a condition: what nobody has read is still there."""
    shell.run("mqtool", "queue", "declare", "jobs")
    sent(shell, 20)
    shell.run("bash", "-c", "mqtool receive -q jobs --raw --where 'headers.n>=5' | head -n 2")
    wait_until(lambda: depth(broker, "jobs") == 18, "the others back")
    refused = shell.run("mqtool", "receive", "-q", "jobs", "--auto-ack", "--where", "headers.n>=5")
    assert refused.code == 2


@on_any_broker
def test_logs_are_passed_over(shell: Shell) -> None:
    """In a private queue: nobody else would get them."""
    receiver = shell.start("mqtool", "receive-log", "fanout", "--raw", "-c", "2", "--where", "body~error")
    receiver.wait_until_ready()
    for text in "an error", "all is well", "error 2":
        shell.run("mqtool", "emit-log", "fanout", text)
    assert receiver.wait().stdout == "an error\nerror 2\n"
