"""`delayed`: messages that wait on the broker are listed, shown, cancelled, or delivered before they are due."""

import json
import time
from typing import Any

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.management import Management, path
from mqtool.topology import Queue
from tests.brokers import TestBroker, depth, large
from tests.cli.shell import Shell, wait_until


class Waiting:
    """Three delayed messages for a queue, and one for an exchange."""

    def __init__(self, shell: Shell, broker: TestBroker) -> None:
        self.shell, self.broker = shell, broker
        shell.run("mqtool", "queue", "declare", "jobs")
        shell.run("mqtool", "exchange", "declare", "logs", "topic")
        shell.run("mqtool", "queue", "declare", "errors")
        shell.run("mqtool", "exchange", "bind", "logs", "errors", "*.error")
        for name, tenant, delay in (("m-1", "a", "1h"), ("m-2", "b", "1h"), ("m-3", "a", "2h1m")):
            sent = ("mqtool", "send", "-r", "jobs", "--via", "ttl", "--delay", delay, "-H", f"tenant={tenant}")
            assert shell.run(*sent, "--property", f"message-id={name}", f"body of {name}").code == 0
        sent = ("mqtool", "emit-log", "topic", "kern.error", "-e", "logs", "--via", "ttl", "--delay", "1h")
        assert shell.run(*sent, "--property", "message-id=m-4", "to logs").code == 0

    def run(self, *words: str, code: int = 0) -> Any:
        result = self.shell.run("mqtool", "delayed", *words, "--management", self.broker.management)
        assert result.code == code, result.stderr
        return result

    def shown(self, *words: str) -> list[str]:
        """Return the ids of the waiting messages."""
        lines = self.run("show", "--json", *words).stdout.splitlines()
        return [json.loads(line)["properties"]["message_id"] for line in lines]


@pytest.fixture
def waiting(shell: Shell, broker: TestBroker) -> Waiting:
    return Waiting(shell, broker)


@large
def test_delayed_ls_and_show_list_delayed_messages_and_retries(waiting: Waiting) -> None:
    """`delayed ls` prints the number of delayed messages for each destination, and `delayed show` prints the
    messages. Both include the messages that `worker` will retry, and leave all messages where they are.
    """
    waiting.shell.run("mqtool", "send", "-r", "jobs", "--property", "message-id=m-5", "fails")
    failing = ("mqtool", "worker", "-q", "jobs", "-c", "1", "--backoff", "2m", "--exec", "false")
    assert waiting.shell.run(*failing).code == 1
    rows = sorted(line.split("\t") for line in waiting.run("ls").stdout.splitlines())
    assert [row[:2] + row[3:4] for row in rows] == [
        ["jobs", "delay", "2"],
        ["jobs", "delay", "1"],
        ["jobs", "retry", "1"],
        ["logs", "delay", "1"],
    ]
    assert rows[2][2] == "2m"

    for _ in range(2):
        assert waiting.shown() == ["m-5", "m-1", "m-2", "m-4", "m-3"]
    assert waiting.shown("logs") == ["m-4"]
    assert waiting.shown("--where", "headers.tenant=a and routing_key=jobs") == ["m-1", "m-3"]
    first = waiting.run("show", "jobs").stdout.splitlines()
    assert first[0] == "m-5: within 2m, to jobs: fails"
    assert first[1].startswith("m-1: at 20")
    assert first[1].endswith(", to jobs: body of m-1")
    line = json.loads(waiting.run("show", "logs", "--json").stdout)
    assert (line["exchange"], line["routing_key"], line["body"]) == ("logs", "kern.error", "to logs")
    assert "at" in line
    in_two_queues = json.loads(waiting.run("show", "jobs", "--where", "message_id=m-3", "--json").stdout)
    assert in_two_queues["headers"]["tenant"] == "a"
    assert "mqtool-then" not in in_two_queues["headers"]


def test_delayed_show_shows_a_message_with_a_forged_due_time(waiting: Waiting) -> None:
    """If a publisher has forged the header `mqtool-due` with an impossible time, such as a negative number or a time
    after the year 9999, `delayed show` prints the longest time that the message can still wait, rather than a due
    time. It also prints all other messages.
    """
    for due in (10**18, -(10**18), 253_402_300_799_999):
        sent = ("mqtool", "send", "--no-declare", "-q", "jobs.delay.1h", "-H", f"mqtool-due:={due}")
        assert waiting.shell.run(*sent, "--property", f"message-id={due}", "forged").code == 0
        assert f"{due}: within 1h, to jobs: forged" in waiting.run("show").stdout.splitlines()
    assert {"m-1", "m-2", "m-3", "m-4"} < {*waiting.shown()}


def test_delayed_cancel_deletes_the_chosen_messages(waiting: Waiting) -> None:
    """`delayed cancel --yes` deletes the delayed messages that an id or a condition selects; the others keep waiting.
    Without a terminal, `delayed cancel` exits with 2 unless --yes is given.
    """
    waiting.run("cancel", "m-1", code=2)
    waiting.run("cancel", "--yes", code=2)
    assert "1 cancelled" in waiting.run("cancel", "m-1", "--yes").stderr
    assert waiting.shown("jobs") == ["m-2", "m-3"]
    assert "no waiting message has the id 'm-1'" in waiting.run("cancel", "m-1", "m-2", "--yes", code=3).stderr
    waiting.run("cancel", "--where", "headers.tenant=a", "--yes")
    assert waiting.shown() == ["m-4"]


def test_delayed_now_delivers_a_message_before_it_is_due(waiting: Waiting) -> None:
    """`delayed now` immediately publishes a delayed message to the message's exchange, with the message's routing key
    and without an expiration, and removes the message from the wait queue.
    """
    assert "2 delivered" in waiting.run("now", "m-4", "m-2").stderr
    assert sorted(waiting.shown()) == ["m-1", "m-3"]
    wait_until(lambda: depth(waiting.broker, "errors") == 1, "the log message")
    came = waiting.shell.run("mqtool", "receive", "-q", "errors", "-c", "1", "--json").stdout
    line = json.loads(came)
    assert (line["exchange"], line["routing_key"], line["body"]) == ("logs", "kern.error", "to logs")
    assert "expiration" not in line["properties"]
    assert waiting.shell.run("mqtool", "receive", "-q", "jobs", "-c", "1", "--raw").stdout == "body of m-2\n"


def generated_queue(broker: TestBroker) -> str:
    """Declare a durable queue; return the name that the broker generates for it."""
    with Connection(parse_addresses(broker.url)) as connection:
        return connection.channel().declare(Queue(durable=True)).name


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_delayed_now_delivers_to_names_that_begin_with_amq(shell: Shell, broker: TestBroker, kind: str) -> None:
    """`delayed now` delivers delayed messages to the exchange amq.topic, whether a classic or a quorum queue is bound
    to it, and to a queue for which the broker has generated a name that begins with `amq.`.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    generated = generated_queue(broker)
    shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", kind)
    shell.run("mqtool", "exchange", "bind", "amq.topic", "jobs", "#")
    to_topic = ("-e", "amq.topic", "-r", "a.b")
    for to, delay in ((to_topic, "1h"), (to_topic, "2h1m"), (("-r", generated), "1h")):
        assert shell.run("mqtool", "send", *to, "--via", "ttl", "--delay", delay, f"in {delay}").code == 0

    result = shell.run("mqtool", "delayed", "now", "--where", "size >= 0")

    assert (result.code, "3 delivered" in result.stderr) == (0, True), result.stderr
    came = shell.run("mqtool", "receive", "-q", "jobs", "-c", "2", "--json").stdout.splitlines()
    places = [(each["exchange"], each["routing_key"], each["body"]) for each in map(json.loads, came)]
    assert sorted(places) == [("amq.topic", "a.b", "in 1h"), ("amq.topic", "a.b", "in 2h1m")]
    assert depth(broker, generated) == 1


def test_delayed_now_does_not_trust_a_destination_that_only_the_name_of_a_wait_queue_shows(
    shell: Shell, broker: TestBroker
) -> None:
    """A message with a delay such as 2h1m waits in two wait queues, one after the other. If the message is for a
    queue with a broker-generated name, only the name of the first wait queue shows this destination, and any client
    can declare a wait queue with such a name. `delayed now` therefore leaves the message in the first wait queue,
    prints the name of this wait queue, and exits with 3.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    generated = generated_queue(broker)
    assert shell.run("mqtool", "send", "-r", generated, "--via", "ttl", "--delay", "2h1m", "x").code == 0

    result = shell.run("mqtool", "delayed", "now", "--where", "size >= 0")

    assert (result.code, "0 delivered" in result.stderr) == (3, True), result.stderr
    stays = f"stays in 'mqtool.{generated}.delay.2h.more', which says that its messages are for '{generated}'"
    assert stays in result.stderr
    assert "if it is true, the broker delivers it when it is due" in result.stderr
    assert depth(broker, generated) == 0


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_delayed_show_keeps_the_routing_key_of_a_message_that_reaches_the_delivery_limit(waiting: Waiting) -> None:
    """If a message's wait queue would drop the message when it is next requeued, `delayed show` prints a warning. The
    next `delayed show` publishes the message to the end of the wait queue, and says so. Both exit with 3. Afterwards,
    `delayed now` still delivers the message to its exchange, with its original routing key.
    """
    policy = ("mqtool", "policy", "set", "few", "--definition", '{"delivery-limit": 2}', "--pattern", "^logs")
    assert waiting.shell.run(*policy, "--management", waiting.broker.management).code == 0
    sent = ("mqtool", "send", "-e", "logs", "-r", "kern.error", "--via", "ttl", "--delay", "1h")
    assert waiting.shell.run(*sent, "--property", "message-id=m-5", "to logs").code == 0
    api, queue = Management(waiting.broker.management, "guest", "guest"), "logs.exchange.delay.1h"
    wait_until(
        lambda: api.get(path("queues", waiting.broker.vhost, queue)).get("effective_policy_definition"), "the policy"
    )
    assert sorted(waiting.shown("logs")) == ["m-4", "m-5"]
    for why in "drops it if it is requeued once more", "which would have dropped it: it is now at the end of the queue":
        assert why in waiting.run("show", "logs", code=3).stderr
    assert "1 delivered" in waiting.run("now", "m-5").stderr
    wait_until(lambda: depth(waiting.broker, "errors") == 1, "the log message")


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_delayed_show_keeps_the_due_time_of_a_message_that_reaches_the_delivery_limit(waiting: Waiting) -> None:
    """If a message has reached its wait queue's delivery limit, `delayed show` publishes the message to the end of the
    queue. The message then waits only for the rest of its delay, and `delayed show` prints the same due time as before.
    This is true even if another message in the queue has a forged due time.
    """
    queue = "jobs.delay.2h.more"  # the second wait is for one minute
    policy = ("mqtool", "policy", "set", "few", "--definition", '{"delivery-limit": 3}', "--pattern", "^jobs[.].*more$")
    assert waiting.shell.run(*policy, "--management", waiting.broker.management).code == 0
    api = Management(waiting.broker.management, "guest", "guest")
    view = path("queues", waiting.broker.vhost, queue)
    wait_until(lambda: api.get(view).get("effective_policy_definition"), "the policy")
    only = ("jobs", "--where", "message_id=m-3")
    shown = [waiting.run("show", *only).stdout for _ in range(2)]
    sent = ("mqtool", "send", "--no-declare", "-q", queue, "-H", f"mqtool-due:={int(time.time() * 1000) + 10_000_000}")
    assert waiting.shell.run(*sent, "--property", "message-id=m-6", "later").code == 0
    for why in "drops it if it is requeued once more", "it is now at the end of the queue\n":
        assert why in waiting.run("show", *only, code=3).stderr
    wait_until(lambda: depth(waiting.broker, queue) == 2, "the message published again")
    before = time.time() * 1000
    assert waiting.run("show", *only).stdout == shown[0]
    lines = waiting.shell.run("mqtool", "receive", "-q", queue, "-c", "2", "--json").stdout.splitlines()
    again = json.loads(lines[1])
    left = again["headers"]["mqtool-due"] - before - 60_000
    assert left <= int(again["properties"]["expiration"]) < 7_200_000


def test_delayed_now_keeps_a_message_whose_queue_was_deleted(waiting: Waiting) -> None:
    """If the destination queue no longer exists, `delayed now` exits with 75 and the message keeps waiting."""
    waiting.shell.run("mqtool", "queue", "delete", "jobs", "--yes")
    assert "'jobs' did not take message m-1" in waiting.run("now", "m-1", code=75).stderr
    assert waiting.shown("jobs") == ["m-1", "m-2", "m-3"]


def test_delayed_reports_messages_that_are_due_but_that_no_queue_accepts(shell: Shell, broker: TestBroker) -> None:
    """If the destination of a delayed message is gone when the message is due, the wait queue holds it. `delayed ls`
    and the other commands say so, and `delayed ls` does not say that no messages are waiting.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    assert shell.run("mqtool", "send", "-q", "gone", "--via", "ttl", "--delay", "1s", "late").code == 0
    shell.run("mqtool", "queue", "delete", "gone", "--yes")
    said = "warning: 1 message in wait queue 'gone.delay.1s' is due: it stays there until 'gone' exists and has room"
    wait_until(lambda: said in " ".join(shell.run("mqtool", "delayed", "ls").stderr.split()), "the broker to count it")
    where = ("--where", "routing_key=gone")
    for words in (["ls"], ["ls", "--json"], ["show"], ["now", *where], ["cancel", *where, "--yes"]):
        result = shell.run("mqtool", "delayed", *words)
        assert (result.code, result.stdout) == (0, ""), result.stderr
        assert said in " ".join(result.stderr.split())
        assert "no messages are waiting" not in result.stderr


def test_delayed_now_keeps_a_message_whose_exchange_was_deleted(waiting: Waiting) -> None:
    """If the destination exchange of a message no longer exists, `delayed now` names the exchange, keeps the message
    waiting, and exits with 75. If other selected messages can be delivered, it delivers them, and exits with 3. If a
    given id belongs to no waiting message, the command names this id.
    """
    waiting.shell.run("mqtool", "exchange", "delete", "logs", "--yes")
    stays = "message m-4 stays in 'logs.exchange.delay.1h.classic': no exchange 'logs'"
    assert stays in waiting.run("now", "m-4", code=75).stderr
    said = waiting.run("now", "m-4", "m-3", code=3).stderr
    assert "1 delivered\n" in said
    assert stays in said
    said = waiting.run("now", "m-4", "m-9", code=3).stderr
    assert "1 message could not be delivered; no waiting message has the id 'm-9'" in said
    assert stays in said
    assert waiting.shown() == ["m-1", "m-2", "m-4"]


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
def test_delayed_ls_counts_messages_that_the_plugin_holds(shell: Shell, broker: TestBroker) -> None:
    """`delayed ls` prints the number of messages that the delayed message plugin holds, and `delayed show` says that it
    cannot show these messages.
    """
    shell.run("mqtool", "send-delayed", "--delay", "1h", "later")
    found = shell.run("mqtool", "delayed", "ls", "--management", broker.management)
    assert found.stdout.split("\t")[1:4] == ["plugin", "", "1"]
    shown = shell.run("mqtool", "delayed", "show", "--management", broker.management)
    assert shown.stdout == ""
    assert "1 message in exchange 'delay_exchange' not shown: the plugin does not reveal them" in shown.stderr


def test_ctrl_c_during_delayed_now_leaves_no_message_in_two_queues(shell: Shell, broker: TestBroker) -> None:
    """After Ctrl-C, `delayed now` finishes the message that it is delivering, says how many messages it has delivered,
    and exits with 130. Each message is then either in its destination or in its wait queue.
    """
    assert shell.run("mqtool", "queue", "declare", "jobs").code == 0
    sent = ("mqtool", "send", "-l", "-q", "jobs", "--via", "ttl", "--delay", "1h")
    assert shell.run(*sent, stdin="".join(f"{number}\n" for number in range(1500))).code == 0
    chosen = ("--where", "routing_key=jobs", "--management", broker.management)
    running = shell.start("mqtool", "delayed", "now", *chosen, ready=False)
    wait_until(lambda: depth(broker, "jobs") > 0, "the first message has been delivered")
    ended = running.interrupt().wait()
    delivered = depth(broker, "jobs")
    assert (ended.code, f"{delivered:,} delivered\n" in ended.stderr) == (130, True), ended.stderr
    wait_until(lambda: delivered + depth(broker, "jobs.delay.1h") == 1500, "the others are requeued")
