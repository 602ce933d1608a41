"""`--where` of receiving commands: messages that do not match are not lost."""

import json

import pytest

from mqtool.address import parse_addresses
from mqtool.amqp import Receiving
from mqtool.amqp.connection import Connection
from mqtool.topology import Queue
from tests.brokers import TestBroker, depth, on_any_broker
from tests.cli.shell import IDLE, Shell, wait_until


def sent(shell: Shell, count: int) -> None:
    """Publish messages whose header n counts from 0."""
    lines = "\n".join(json.dumps({"body": str(number), "headers": {"n": number}}) for number in range(count))
    assert shell.run("mqtool", "send", "-r", "jobs", "--json", stdin=lines).code == 0


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.sampled(1)
def test_receive_where_keeps_the_order_of_messages_that_do_not_match(
    shell: Shell, broker: TestBroker, queue_type: str
) -> None:
    """`receive --where` prints and counts only matching messages. When the command ends, all other messages are in the
    queue, in their original order.
    """
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", queue_type)
    sent(shell, 200)
    receive = ("mqtool", "receive", "-q", "jobs", "--queue-type", queue_type, "--raw", "--where")
    came = shell.run(*receive, "headers.n=3 or headers.n=150", "-c", "2")
    assert (came.stdout, came.code) == ("3\n150\n", 0)
    wait_until(lambda: depth(broker, "jobs") == 198, "the other messages requeued")
    late = shell.run(*receive, "headers.n<2", "-c", "3", "--idle-timeout", IDLE)
    assert (late.stdout, late.code) == ("0\n1\n", 124)
    assert ": 2 of 3 received" in late.stderr
    wait_until(lambda: depth(broker, "jobs") == 196, "the other messages requeued")
    none = shell.run(*receive, "headers.n<0", "--timeout", "3s")
    assert ", with 0 received" in none.stderr
    wait_until(lambda: depth(broker, "jobs") == 196, "the other messages requeued")
    rest = shell.run("mqtool", "receive", "-q", "jobs", "--queue-type", queue_type, "--raw", "-c", "196")
    assert rest.stdout.split() == [str(number) for number in range(200) if number not in (0, 1, 3, 150)]


@on_any_broker
def test_receive_where_piped_into_head_consumes_only_what_it_prints(shell: Shell, broker: TestBroker) -> None:
    """`receive --where … | head -n 2` consumes only the two messages that it prints, and the others stay in the queue.
    With --auto-ack, the messages that do not match could not stay, so `receive --where` exits with 2.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    sent(shell, 20)
    shell.run("bash", "-c", "mqtool receive -q jobs --raw --where 'headers.n>=5' | head -n 2")
    wait_until(lambda: depth(broker, "jobs") == 18, "the other messages requeued")
    refused = shell.run("mqtool", "receive", "-q", "jobs", "--auto-ack", "--where", "headers.n>=5")
    assert refused.code == 2


def test_receive_where_stops_before_messages_exceed_the_delivery_limit(shell: Shell, broker: TestBroker) -> None:
    """`receive --where` requeues messages that do not match. Up to RabbitMQ 4.2, a quorum queue counts each requeue: if
    another one could exceed the queue's delivery limit, the command exits with 1 and says why. However often it is
    repeated, all messages stay in the queue.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    few = ("--queue-type", "quorum", "--argument", "x-delivery-limit:=2")
    assert shell.run("mqtool", "queue", "declare", "jobs", *few).code == 0
    sent(shell, 5)
    codes = []
    for _ in range(4):
        received = shell.run("mqtool", "receive", "-q", "jobs", "--where", "headers.n=9", "--idle-timeout", IDLE)
        codes.append(received.code)
        assert ("requeued" in received.stderr) is (received.code == 1), received.stderr
        wait_until(lambda: depth(broker, "jobs") == 5, "all messages requeued")
    assert set(codes) == {0, *([] if broker.differs_since("4.3", "a nack does not count") else [1])}


def test_receive_where_waits_while_another_consumer_is_the_single_active_one(shell: Shell, broker: TestBroker) -> None:
    """If a quorum queue has a delivery limit, `receive --where` first receives a message to check how often it was
    requeued. While another client is the single active consumer, the broker delivers no message to the command. The
    command then says that another consumer receives the queue's messages, and waits until that consumer has ended.
    """
    single = ("--queue-type", "quorum", "--argument", "x-single-active-consumer:=true", "--argument")
    assert shell.run("mqtool", "queue", "declare", "jobs", *single, "x-delivery-limit:=20").code == 0
    sent(shell, 3)
    with Connection(parse_addresses(broker.url)) as other:
        other.channel().consumer(Queue("jobs"), Receiving(1, acknowledge=False))
        standby = shell.start("mqtool", "receive", "-q", "jobs", "--raw", "--where", "headers.n=2", "-c", "1")
        standby.wait_until_ready().wait_for_stderr("another consumer gets the messages of 'jobs'")
        assert (standby.stdout, standby.process.poll()) == ("", None)
    ended = standby.wait()
    assert (ended.stdout, ended.code) == ("2\n", 0)


@on_any_broker
def test_receive_log_where_prints_only_matching_logs(shell: Shell) -> None:
    """`receive-log --where` prints only the logs that match the condition, and --count counts only these."""
    receiver = shell.start("mqtool", "receive-log", "fanout", "--raw", "-c", "2", "--where", "body~error")
    receiver.wait_until_ready()
    for text in "an error", "all is well", "error 2":
        shell.run("mqtool", "emit-log", "fanout", text)
    assert receiver.wait().stdout == "an error\nerror 2\n"
