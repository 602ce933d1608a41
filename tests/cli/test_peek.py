"""`peek` shows the messages of a queue and leaves them there in order. It warns before a quorum queue would drop
messages because they were requeued too often.
"""

import json
import sys
import uuid
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pika
import pytest

from mqtool.amqp import Connection, Receiving
from mqtool.errors import Unavailable
from mqtool.message import Message
from mqtool.testing import EmbeddedBroker
from mqtool.topology import Queue
from mqtool.work import peeking
from tests.brokers import TestBroker, depth, large, on_any_broker
from tests.cli.shell import IDLE, Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.cli.test_move import bodies, taken


def filled(shell: Shell, count: int, *settings: str) -> list[str]:
    """Put this many messages into queue jobs; return their ids."""
    ids = [f"m-{number}" for number in range(count)]
    shell.run("mqtool", "queue", "declare", "jobs", *settings)
    lines = (json.dumps({"body": str(number), "properties": {"message_id": name}}) for number, name in enumerate(ids))
    assert shell.run("mqtool", "send", "-r", "jobs", "--json", stdin="\n".join(lines)).code == 0
    return ids


def peeked(shell: Shell, broker: TestBroker, *words: str) -> Sequence[str]:
    """The ids that `mqtool peek jobs` shows."""
    shown = shell.run("mqtool", "peek", "jobs", "--management", broker.management, "--json", *words)
    assert shown.code == 0, shown.stderr
    return [json.loads(line)["properties"]["message_id"] for line in shown.stdout.splitlines()]


def requeue_the_second(broker: TestBroker, count: int, times: int) -> None:
    """Requeue the first of the `count` messages in queue jobs once, and the second one this many times."""
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as client:
        channel = client.channel()
        channel.basic_get("jobs")
        for _ in range(times - 1):
            wait_until(lambda: depth(broker, "jobs") == count - 1, "the second message requeued")
            channel.basic_reject(channel.basic_get("jobs")[0].delivery_tag)
        wait_until(lambda: depth(broker, "jobs") == count - 1, "the second message requeued")
        channel.basic_get("jobs")
    wait_until(lambda: depth(broker, "jobs") == count, "all messages requeued")


QUEUES = {
    "classic": ["--queue-type", "classic"],
    "quorum": ["--queue-type", "quorum"],
    "quorum with a limit": ["--queue-type", "quorum", "--argument", "x-delivery-limit=50"],
    "auto-delete": ["--queue-type", "classic", "--auto-delete"],
}


@pytest.mark.parametrize("kind", QUEUES)
@pytest.mark.sampled(1)
def test_peek_keeps_the_order_of_hundreds_of_messages(shell: Shell, broker: TestBroker, kind: str) -> None:
    """From a queue with hundreds or thousands of messages, `peek` shows all messages, only the first ones (-c), or
    only the matching ones (--where). Even after several runs, all messages are still in the queue, in order.
    """
    ids = filled(shell, 4_000 if kind == "quorum" else 700, *QUEUES[kind])
    assert peeked(shell, broker, "-c", "3") == ids[:3]
    assert peeked(shell, broker) == ids
    assert peeked(shell, broker, "-c", "2") == ids[:2]
    assert peeked(shell, broker, "--where", "body>=100 and body<102") == ids[100:102]
    assert peeked(shell, broker, "--where", "body=7", "-c", "1") == ids[7:8]
    cut = shell.run("sh", "-c", f"mqtool peek jobs --raw --management {broker.management} | head -n 2")
    assert cut.stdout == "0\n1\n"
    wait_until(lambda: depth(broker, "jobs") == len(ids), "all messages requeued")
    assert peeked(shell, broker, "--quiet") == ids


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_peek_shows_the_messages_of_a_queue_with_a_single_active_consumer(
    shell: Shell, broker: TestBroker, kind: str
) -> None:
    """If no other client consumes from a queue with x-single-active-consumer, `peek -c N` shows the queue's first N
    messages, even hundreds of them, with or without the management API. All messages stay in the queue, in order.
    """
    ids = filled(shell, 300, "--queue-type", kind, "--argument", "x-single-active-consumer:=true")
    # Without the API, the delivery limit is unknown: messages that have been requeued before would be published again.
    assert peeked(shell, broker, "-c", "250", "--management", "http://localhost:1") == ids[:250]
    for count in 250, 20, 5, 300:
        assert peeked(shell, broker, "-c", str(count)) == ids[:count]
    assert [delivery.message_id for delivery in taken(broker, "jobs", 300)] == ids


@pytest.mark.differs_since("4.0", "the waiting consumer with the largest prefetch becomes the active one")
def test_peek_fails_if_another_consumer_becomes_the_single_active_one(
    broker: TestBroker, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another client begins to consume from a queue with x-single-active-consumer while `peek` is showing the
    queue's messages, the broker delivers the remaining messages only to this client. `peek` then fails with an error
    that says how many messages it has not shown. Once the client has closed its channel, all messages are in the
    queue, in order.
    """
    channel = connection.channel()
    single = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    channel.declare(Queue("jobs", durable=True, arguments=single))
    assert len(list(channel.publish(Message(str(number).encode(), "jobs") for number in range(300)))) == 300
    other, shown = connection.channel(), list[int]()
    with closing(peeking.peek(channel, "jobs")) as deliveries:
        shown += bodies([next(deliveries)])
        monkeypatch.setattr(peeking, "_PATIENCE", 0.5)
        active = other.consumer(Queue("jobs"), Receiving(1, acknowledge=False))
        with pytest.raises(Unavailable) as failed:
            shown.extend(int(delivery.body) for delivery in deliveries)
    assert shown == list(range(len(shown)))
    assert (
        str(failed.value) == f"'jobs' has {299 - len(shown)} more ready messages, but the broker delivers none of them"
    )
    assert active.arrives(0)
    other.close()
    assert bodies(taken(broker, "jobs", 300)) == list(range(300))


@pytest.mark.parametrize("kind", ["quorum", "quorum with a limit"])
def test_peek_keeps_the_order_of_a_quorum_queue_with_expired_messages(
    shell: Shell, broker: TestBroker, kind: str
) -> None:
    """`peek` shows the messages of a quorum queue that have not expired, and leaves them in the queue, in order. It
    does so even if the queue still counts an expired message, or an earlier `peek` has requeued some of the messages.
    """
    ids = filled(shell, 1, *QUEUES[kind])
    assert peeked(shell, broker) == ids
    wait_until(lambda: depth(broker, "jobs") == 1, "the message back")
    for name, further in ("expired", ["--property", "expiration=1"]), ("m-1", []), ("m-2", []):
        shell.run("mqtool", "send", "-r", "jobs", "--property", f"message-id={name}", *further, "x")
    assert peeked(shell, broker, "-c", "1") == ["m-0"]
    wait_until(lambda: depth(broker, "jobs") == 3, "all of them back")
    assert peeked(shell, broker) == ["m-0", "m-1", "m-2"]


@large
def test_peek_leaves_messages_in_order_without_the_management_api(shell: Shell, broker: TestBroker) -> None:
    """Without the management API, `peek` does not know the delivery limit of a quorum queue, so the queue might drop
    messages that `peek` requeues. If messages of a quorum queue have already been requeued, `peek` therefore publishes
    them to the queue again, and exits with 1. The order of the messages stays the same. An auto-delete queue is not
    deleted when `peek` ends.
    """
    for settings in QUEUES["quorum"], QUEUES["auto-delete"]:
        filled(shell, 300, *settings)
        nowhere = ("--management", "http://localhost:1")
        for count, code in (300, 0), (2, 1), (300, 0), (300, 1):
            shown = shell.run("mqtool", "peek", "jobs", "--raw", "-c", str(count), *nowhere)
            assert shown.stdout.split() == [str(number) for number in range(count)]
            assert shown.code == (code if settings == QUEUES["quorum"] else 0), shown.stderr
            wait_until(lambda: depth(broker, "jobs") == 300, "all messages requeued")
        shell.run("mqtool", "queue", "delete", "jobs", "--yes")


@on_any_broker
def test_peek_shows_messages_and_says_that_they_stay_in_the_queue(shell: Shell, broker: TestBroker) -> None:
    """`peek` prints each message as a line on stdout. Then it says on stderr that the messages stay in the queue,
    marked as redelivered. With `-F TEMPLATE -o FILE`, `peek` writes the messages to FILE in the format of TEMPLATE.
    """
    filled(shell, 2)
    shown = shell.run("mqtool", "peek", "jobs")
    assert shown.stdout == "jobs: 0\njobs: 1\n"
    assert shown.stderr == "2 shown; they stay in jobs, marked as redelivered\n"
    assert shell.run("mqtool", "peek", "jobs", "-F", "%i %R", "-o", "saved", "-c", "1").code == 0
    assert (shell.directory / "saved").read_text() == "m-0 1\n"

    none = shell.run("mqtool", "peek", "jobs", "--where", "body=7")
    assert (none.code, none.stdout, none.stderr) == (0, "", "no message in jobs matches\n")
    shell.run("mqtool", "queue", "purge", "jobs", "--yes")
    empty = shell.run("mqtool", "peek", "jobs")
    assert (empty.code, empty.stderr) == (0, "jobs has no messages to show\n")
    gone = shell.run("mqtool", "peek", "nothing")
    assert gone.code == 69
    assert "nothing" in gone.stderr
    assert shell.run("mqtool", "peek", "jobs", "--offset", "first").code == 2

    wrong = shell.run("mqtool", "peek", "jobs", "--where", "body=7 & queue=x")
    assert wrong.code == 2
    assert wrong.stderr.splitlines()[:3] == ["mqtool: expected 'and' or 'or'", "  body=7 & queue=x", "         ^"]


@on_any_broker
@pytest.mark.parametrize("command", ["peek jobs", "move jobs --to other", "dlq show jobs"])
@pytest.mark.sampled(1)
def test_where_cannot_test_the_time_of_receipt_of_messages_in_a_queue(shell: Shell, command: str) -> None:
    """In --where, `timestamp` is the time at which a message was received. `peek`, `move` and `dlq show` exit with 2 if
    --where tests `timestamp`, because the messages in a queue have not been received yet. The hint suggests
    properties.timestamp.
    """
    refused = shell.run("mqtool", *command.split(), "--where", "timestamp<2026-01-31")
    assert refused.code == 2
    assert "messages in a queue have no 'timestamp', which is when a message was received\n" in refused.stderr
    assert "hint: properties.timestamp" in refused.stderr
    shell.run("mqtool", "send", "-q", "jobs", "--property", "timestamp=2020-01-01", "old")
    shown = shell.run("mqtool", "peek", "jobs", "--raw", "--where", "properties.timestamp<2026-01-31")
    assert (shown.stdout, shown.code) == ("old\n", 0), shown.stderr


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_peek_stops_before_messages_exceed_the_delivery_limit(shell: Shell, broker: TestBroker) -> None:
    """Each `peek` requeues the messages of a quorum queue, which counts towards the queue's delivery limit. `peek`
    prints a warning that says how many times messages have been requeued. If the limit is 3, the third `peek` requeues
    only the first message, shows no message, and exits with 1, because the queue would drop the first message if it
    were requeued a fourth time. However often `peek` is repeated, no message is lost.
    """
    ids = filled(shell, 3, "--queue-type", "quorum", "--argument", "x-delivery-limit=3")
    command = ("mqtool", "peek", "jobs", "--raw", "--management", broker.management)
    for times in "1 time", "2 times":
        shown = shell.run(*command)
        assert shown.stdout.split() == ["0", "1", "2"]
        assert f"requeued up to {times}: after more than 3, 'jobs' drops them" in shown.stderr
    stopped = shell.run(*command)
    assert (stopped.code, stopped.stdout) == (1, "")
    assert "has been requeued 3 times: 'jobs' drops it if it is requeued once more" in stopped.stderr
    few = ("mqtool", "queue", "declare", "few", "--queue-type", "quorum", "--argument", "x-delivery-limit=2")
    assert shell.run(*few).code == 0
    assert shell.run("mqtool", "send", "-q", "few", "x").code == 0
    first, second = (shell.run("mqtool", "peek", "few", "--raw", "--management", broker.management) for _ in range(2))
    assert (first.stdout, first.code) == ("x\n", 0)
    assert (second.code, "has been requeued 2 times: 'few' drops it if it is requeued once more" in second.stderr) == (
        1,
        True,
    )
    for _ in range(6):
        assert shell.run(*command).code in (0, 1)
        wait_until(lambda: depth(broker, "jobs") == len(ids), "all messages requeued")


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_peek_loses_no_message_if_the_user_cannot_see_the_delivery_limit(shell: Shell, broker: TestBroker) -> None:
    """If the user of `peek` has no tag, `peek` cannot see that a policy sets a delivery limit of 1, and says that it
    does not know the limit. If the messages have been requeued before, `peek` publishes all of them to the queue
    again instead of requeueing them, and exits with 1. However often `peek` is repeated, all messages stay in the
    queue, in order.
    """
    policy = {"pattern": "^jobs$", "definition": {"delivery-limit": 1}, "apply-to": "queues"}
    broker.api("PUT", f"policies/{broker.vhost}/few", policy)
    user = f"peeker-{broker.vhost}"
    broker.api("PUT", f"users/{user}", {"password": "secret", "tags": ""})
    broker.api("PUT", f"permissions/{broker.vhost}/{user}", {"configure": ".*", "write": ".*", "read": ".*"})
    try:
        filled(shell, 3, "--queue-type", "quorum")
        peek = ("mqtool", "peek", "jobs", "--raw", "--management", broker.management)
        (shell.directory / "password").write_text("secret")
        shown = [shell.run(*peek, "--user", user, "--password-file", "password") for _ in range(4)]
        assert [each.code for each in shown] == [0, 1, 0, 1], shown
        assert all(each.stdout.split() == ["0", "1", "2"] for each in shown)
        assert "the limit can be read only from the management API" in shown[0].stderr
        assert "has been requeued 1 time, possibly the limit of 'jobs', which could have dropped" in shown[1].stderr
        wait_until(lambda: depth(broker, "jobs") == 3, "all messages published again")
    finally:
        broker.api("DELETE", f"users/{user}")


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
@pytest.mark.parametrize("command", ["receive -q jobs -c 1", "move jobs --to other"])
def test_receive_and_move_respect_a_delivery_limit_of_one_that_their_user_cannot_see(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """If a user without a tag consumes from a quorum queue with a delivery limit of 1, mqtool cannot read this limit
    from the management API, but finds it out over AMQP. `receive --where` and `move --where` then requeue the first
    message only once, exit with 1, and say that the queue drops this message if it is requeued once more. All
    messages stay in the queue.
    """
    user = f"user-{broker.vhost}"
    broker.api("PUT", f"users/{user}", {"password": "secret", "tags": ""})
    broker.api("PUT", f"permissions/{broker.vhost}/{user}", {"configure": ".*", "write": ".*", "read": ".*"})
    try:
        filled(shell, 3, "--queue-type", "quorum", "--argument", "x-delivery-limit:=1")
        shell.run("mqtool", "queue", "declare", "other")
        (shell.directory / "password").write_text("secret")
        user_is = ("--user", user, "--password-file", "password")
        refused = shell.run("mqtool", *command.split(), "--where", "body='2'", *user_is)
        assert (refused.code, "drops it if it is requeued once more" in refused.stderr) == (1, True), refused.stderr
        wait_until(lambda: depth(broker, "jobs") == 3, "all messages requeued")
    finally:
        broker.api("DELETE", f"users/{user}")


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
@pytest.mark.parametrize("command", ["peek jobs -c 1", "move jobs --to other --where size=0"])
def test_no_message_behind_the_first_one_exceeds_the_delivery_limit(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """To keep the order of a quorum queue, `peek -c 1` and `move --where` also receive later messages that have already
    been requeued at least once. If the second message has reached the delivery limit, the commands publish it to the
    queue again instead of requeueing it, because the queue would drop it at the next requeue. They report the message
    and exit with 1. No message is lost, even if the commands are repeated.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    shell.run("mqtool", "queue", "declare", "other")
    ids = filled(shell, 3, "--queue-type", "quorum", "--argument", "x-delivery-limit=6")
    requeue_the_second(broker, len(ids), 6)
    ended = [shell.run("mqtool", *command.split()) for _ in range(6)]
    assert (ended[0].code, "message m-1 has been requeued" in ended[0].stderr) == (1, True), ended[0].stderr
    wait_until(lambda: depth(broker, "jobs") == len(ids), "all messages requeued")
    left = shell.run("mqtool", "receive", "-q", "jobs", "--json", "-c", "3", "--timeout", "20s").stdout.splitlines()
    assert sorted(json.loads(line)["properties"]["message_id"] for line in left) == ids


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_peek_counts_the_messages_that_reach_the_delivery_limit(shell: Shell, broker: TestBroker) -> None:
    """If two messages of a quorum queue have reached the delivery limit, the queue would drop them at the next
    requeue. `peek` therefore publishes both to the end of the queue instead of requeueing them, and exits with 1. The
    error names one of them and says that there is 1 more.
    """
    ids = filled(shell, 3, "--queue-type", "quorum", "--argument", "x-delivery-limit=6")
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as client:
        channel = client.channel()
        channel.basic_get("jobs")
        for _ in range(5):
            wait_until(lambda: depth(broker, "jobs") == 2, "two messages requeued")
            last = [channel.basic_get("jobs")[0].delivery_tag for _ in range(2)][-1]
            channel.basic_reject(last - 1)
            channel.basic_reject(last)
        wait_until(lambda: depth(broker, "jobs") == 2, "two messages requeued")
        channel.basic_get("jobs")
        channel.basic_get("jobs")
    wait_until(lambda: depth(broker, "jobs") == len(ids), "all messages requeued")
    stopped = shell.run("mqtool", "peek", "jobs", "--raw", "--management", broker.management)
    told = "its TTL, if any, starts again (1 more message at this limit or near it)"
    assert (stopped.code, stopped.stdout, told in stopped.stderr) == (1, "0\n1\n2\n", True), stopped.stderr
    wait_until(lambda: depth(broker, "jobs") == len(ids), "all messages requeued")


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_peek_exits_with_141_after_a_closed_pipe_even_if_a_message_reaches_the_delivery_limit(
    shell: Shell, broker: TestBroker
) -> None:
    """If the second message of a quorum queue has reached the delivery limit, `peek` prints a warning about this
    message, and usually exits with 1. If the program that reads the output of `peek` has exited, `peek` still prints
    the warning, but exits with 141, as for any closed pipe.
    """
    filled(shell, 3, "--queue-type", "quorum", "--argument", "x-delivery-limit=6")
    requeue_the_second(broker, 3, 6)
    script = f"mqtool peek jobs --management {broker.management} | true; exit ${{PIPESTATUS[0]}}"
    ended = shell.run("bash", "-c", script)
    assert (ended.code, "message m-1 has been requeued" in ended.stderr) == (141, True), ended.stderr


@pytest.mark.until("4.0", "it is 4.0 already")
def test_doctor_upgrade_still_reports_findings_if_a_message_has_reached_the_delivery_limit(
    shell: Shell, broker: TestBroker
) -> None:
    """If the second message of a quorum queue with a delivery limit of 15 has been requeued 15 times, `doctor --upgrade
    4.3 --peek` prints a warning that names the message, because the queue would drop it at the next requeue. This
    warning does not replace the upgrade finding: the command also reports that the queue has a message that was
    requeued 15 times.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    filled(shell, 3, "--queue-type", "quorum", "--argument", "x-delivery-limit=15")
    requeue_the_second(broker, 3, 15)
    look = ("mqtool", "doctor", "--vhost", broker.vhost, "--upgrade", "4.3", "--peek", "3")
    warned = "warning: messages were not checked: queue 'jobs': message m-1 has been requeued 15 times"
    checked = []

    def has_warned() -> bool:
        checked.append(shell.run(*look))
        return warned in checked[-1].stderr

    wait_until(has_warned, "the messages in the management API")  # it counts them some seconds later
    assert "has a message that was returned 15 times" in checked[-1].stdout


def test_dlq_ls_counts_the_reasons_if_a_dead_letter_reaches_the_delivery_limit(tmp_path: Path) -> None:
    """If a dead letter behind the first one has reached the default delivery limit of RabbitMQ 4, `dlq ls` publishes
    this dead letter to its queue again, and still counts the reasons of all dead letters. It prints a warning that
    names this dead letter, and exits with 3.
    """
    with EmbeddedBroker(like="4.0", management_port=0) as broker:
        settings = {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.management_url}
        with Shell(tmp_path, settings) as shell, pika.BlockingConnection(pika.URLParameters(broker.url)) as client:
            shell.run("mqtool", "queue", "declare", "jobs.dlq", "--queue-type", "quorum")
            for body in "0", "1", "2":
                shell.run("mqtool", "send", "-r", "jobs.dlq", "--property", f"message-id=m-{body}", body)
            channel = client.channel()
            channel.basic_get("jobs.dlq")
            for _ in range(19):
                channel.basic_reject(channel.basic_get("jobs.dlq")[0].delivery_tag)
            channel.basic_get("jobs.dlq")
            channel.close()
            listed = shell.run("mqtool", "dlq", "ls")
    assert (listed.code, listed.stdout) == (3, "jobs.dlq\t3\t3 unknown\n"), listed.stderr
    assert "warning: dead letters in 'jobs.dlq': message m-1 has been requeued 20 times" in listed.stderr


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_peek_keeps_the_order_of_later_batches_if_it_publishes_a_message_again(
    shell: Shell, broker: TestBroker
) -> None:
    """`peek -c 150` reads a quorum queue in several batches. If a message of an early batch has reached the delivery
    limit, `peek` publishes this message to the end of the queue. All other messages stay in order.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    ids = filled(shell, 250, "--queue-type", "quorum", "--argument", "x-delivery-limit=6")
    requeue_the_second(broker, len(ids), 6)
    stopped = shell.run("mqtool", "peek", "jobs", "-c", "150", "--json")
    assert (stopped.code, "message m-1 " in stopped.stderr) == (1, True), stopped.stderr
    wait_until(lambda: depth(broker, "jobs") == len(ids), "all messages requeued")
    left = shell.run("mqtool", "receive", "-q", "jobs", "--json", "-c", "250", "--timeout", "20s").stdout.splitlines()
    assert [json.loads(line)["properties"]["message_id"] for line in left] == ["m-0", *ids[2:], "m-1"]


def test_peek_ignores_a_delivery_count_that_a_publisher_has_forged(shell: Shell, broker: TestBroker) -> None:
    """If a publisher has forged a message's x-delivery-count, `peek` shows the message like any other, without a
    warning about the delivery limit, and the message stays in its place in the queue.
    """
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", "quorum", "--argument", "x-delivery-limit=20")
    for given, body in ("x-delivery-count:=1000", "1000"), ("x-delivery-count=x", "x"):
        assert shell.run("mqtool", "send", "-r", "jobs", "-H", given, body).code == 0
    assert shell.run("mqtool", "send", "-r", "jobs", "honest").code == 0
    for _ in range(2):
        peeked = shell.run("mqtool", "peek", "jobs", "--raw", "--management", broker.management)
        assert (peeked.code, peeked.stdout.split()) == (0, ["1000", "x", "honest"]), peeked.stderr
        assert "requeued" not in peeked.stderr
        wait_until(lambda: depth(broker, "jobs") == 3, "all messages requeued")
    received = shell.run("mqtool", "receive", "-q", "jobs", "--raw", "--idle-timeout", IDLE)
    assert (received.code, received.stdout.split()) == (0, ["1000", "x", "honest"]), received.stderr


@pytest.mark.parametrize("like", ["4.3", "4.2", "3.10"])
@pytest.mark.sampled(1)
def test_peek_ignores_a_forged_delivery_count_after_a_consumer_has_requeued_the_message(
    tmp_path: Path, like: str
) -> None:
    """If a publisher has forged a message's x-delivery-count, and a consumer has requeued the message with a nack,
    `peek` uses only the broker's own count to warn of the delivery limit, and leaves the message in its place. From
    RabbitMQ 4.3 on, the broker's own count is in x-acquired-count, and x-delivery-count keeps the forged value.
    """
    with EmbeddedBroker(like=like, management_port=0) as broker:
        settings = {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.management_url}
        with Shell(tmp_path, settings) as shell, pika.BlockingConnection(pika.URLParameters(broker.url)) as client:
            shell.run(
                "mqtool", "queue", "declare", "jobs", "--queue-type", "quorum", "--argument", "x-delivery-limit=7"
            )
            for given, body in ("x-delivery-count:=1000", "1000"), ("x-delivery-count=x", "x"), ("a=b", "honest"):
                shell.run("mqtool", "send", "-r", "jobs", "-H", given, body)
            channel = client.channel()
            for _ in range(2):
                last = [channel.basic_get("jobs")[0].delivery_tag for _ in range(3)][-1]
                channel.basic_nack(last, multiple=True)
            first, second = (shell.run("mqtool", "peek", "jobs", "--raw") for _ in range(2))
            # From 4.3 on, neither a nack nor a look counts towards the limit.
            assert ("requeued up to 3 times: after more than 7, 'jobs' drops them" in first.stderr) is (like != "4.3")
            for shown in first, second:
                assert (shown.code, shown.stdout) == (0, "1000\nx\nhonest\n"), shown.stderr


def test_peek_exits_with_69_if_another_client_is_the_single_active_consumer(
    shell: Shell, broker: TestBroker, connection: Connection
) -> None:
    """If another client is the single active consumer of a queue, `peek` does not wait, but says that the broker
    delivers no message to `peek`, and exits with 69.
    """
    filled(shell, 3, "--queue-type", "quorum", "--argument", "x-single-active-consumer:=true")
    active = connection.channel().consume(Queue("jobs"), Receiving(prefetch=1, acknowledge=False))
    next(active)
    shown = shell.run("mqtool", "peek", "jobs", "--management", broker.management)
    assert (shown.code, shown.stdout) == (69, "")
    assert "'jobs' has 2 ready messages, but the broker delivers none of them" in shown.stderr


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_peek_reads_a_stream_from_any_offset(shell: Shell, broker: TestBroker) -> None:
    """`peek --offset` shows the messages of a stream from a numeric offset, from an age such as 1h, or from the start
    of the last chunk (`last`). Without --offset, `peek` starts at the first message.
    """
    ids = filled(shell, 500, "--queue-type", "stream", "--argument", "x-max-length-bytes=100000000")
    for words, first, last in (
        ((), 0, 500),
        (("-c", "2"), 0, 2),
        (("--offset", "498"), 498, 500),
        (("--offset", "1h", "-c", "1"), 0, 1),
        (("--where", "body=77", "-c", "1"), 77, 78),
    ):
        # A peek at a stream ends after a second without a message: a busy RabbitMQ may take longer.
        wait_until(lambda: peeked(shell, broker, *words) == ids[first:last], f"peek {words}")  # noqa: B023
    wait_until(lambda: peeked(shell, broker, "--offset", "last")[-1:] == ids[-1:], "the last message")
    command = ("mqtool", "peek", "jobs", "-c", "1", "--management", "http://localhost:1")
    without = [shell.run(*command)]
    wait_until(lambda: without[-1].stdout or without.append(shell.run(*command)), "the message, without the API")
    assert (without[-1].stdout, without[-1].stderr) == ("jobs: 0\n", "")


@on_any_broker
def test_peek_shows_ten_messages_on_a_terminal_and_says_how_many_more_there_are(shell: Shell) -> None:
    """On a terminal, `peek` shows ten messages, or N with `-c N`, and says how many more there are. In a pipe, `peek`
    shows all messages.
    """
    shell.run("mqtool", "send", "-q", "jobs", "-l", stdin="".join(f"m{number}\n" for number in range(1012)))
    shown = on_terminal(shell, "mqtool", "peek", "jobs").stdout
    assert (shown.count("jobs: m"), "1,002 more: -c N" in shown) == (10, True)
    assert on_terminal(shell, "mqtool", "peek", "jobs", "-c", "11").stdout.count("jobs: m") == 11
    assert shell.run("mqtool", "peek", "jobs", "--raw").stdout.count("m") == 1012


@on_any_broker
@large
def test_peek_stops_when_the_reader_of_its_output_exits(shell: Shell, broker: TestBroker) -> None:
    """`peek | head -3` stops when `head` exits. By then, the broker has delivered only the first batches of the queue's
    30,000 messages. `peek` requeues these batches, so all 30,000 messages are still in the queue.
    """
    shell.run("mqtool", "send", "-q", "jobs", "-l", stdin="x\n" * 30_000)
    assert shell.run("bash", "-c", "mqtool peek jobs | head -3").stdout == "jobs: x\n" * 3
    left = shell.run("mqtool", "receive", "-q", "jobs", "--json", "-c", "30000", "--idle-timeout", IDLE)
    assert (left.code, left.stdout.count("\n")) == (0, 30_000)
    assert 3 <= left.stdout.count('"redelivered":true') < 30_000


STOPPED_AT_THE_FIRST_MESSAGE = """
import signal
from mqtool import where
from mqtool.cli import app
read = where.of_delivery
def stopped(delivery):
    signal.raise_signal(signal.SIGINT)
    return read(delivery)
where.of_delivery = stopped
app.run()
"""


@pytest.mark.parametrize("condition", ["body=0", "body=1"], ids=["one match", "no match yet"])
def test_peek_exits_with_130_if_ctrl_c_stops_it_before_it_has_read_all_messages(shell: Shell, condition: str) -> None:
    """If Ctrl-C stops `peek --where` at the first of two messages, `peek` exits with 130. It does not say that no
    message matches, and leaves both messages in the queue.
    """
    filled(shell, 2)
    stopped = shell.run(sys.executable, "-c", STOPPED_AT_THE_FIRST_MESSAGE, "peek", "jobs", "--where", condition)
    assert stopped.code == 130, stopped.stderr
    assert "matches" not in stopped.stderr
    assert [line.split(": ")[1] for line in shell.run("mqtool", "peek", "jobs").stdout.splitlines()] == ["0", "1"]


def test_a_user_who_may_only_read_can_peek_again(shell: Shell, broker: TestBroker) -> None:
    """A user who may neither declare a quorum queue nor publish to it, and cannot see its delivery limit, can peek at
    it any number of times from RabbitMQ 4.3 on, because looking does not count towards the limit. Before, only once.
    """
    filled(shell, 3)
    user = f"ann-{uuid.uuid4().hex[:8]}"
    broker.api("PUT", f"users/{user}", {"password": "secret", "tags": ""})
    try:
        rights = {"configure": "", "write": "", "read": ".*"}
        broker.api("PUT", f"permissions/{quote(broker.vhost, safe='')}/{user}", rights)
        url = broker.url.replace("guest:guest", f"{user}:secret")
        looks = [shell.run("mqtool", "peek", "jobs", "--url", url, "--raw") for _ in range(3)]
    finally:
        broker.api("DELETE", f"users/{user}")
    if broker.differs_since("4.3", "a nack does not count towards the limit"):
        assert [(look.code, look.stdout.split()) for look in looks] == [(0, ["0", "1", "2"])] * 3, looks[-1].stderr
        assert "count as a delivery" not in looks[-1].stderr
    else:
        assert [look.code for look in looks] == [0, 1, 1]
    wait_until(lambda: depth(broker, "jobs") == 3, "all messages returned")
