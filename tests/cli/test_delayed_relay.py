"""`delayed relay` delays the messages of any client without the plugin; none is lost if a relay or the broker is
killed.
"""

import json
import re
import shlex
import signal
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker.choice import BrokerKind
from mqtool.message import DUE, Confirmation, Message
from mqtool.topology import DELAYED, Exchange, Queue
from mqtool.work import delay_relay
from mqtool.work.delay_relay import Relay, RelayNames
from tests.brokers import Restartable, TestBroker, depth, large, on_any_broker, own_broker
from tests.cli.shell import PATIENCE, Running, Shell, wait_until

#: The number of messages that may arrive twice when a relay is killed.
AT_ONCE = 200


def relay(shell: Shell, *words: str) -> Running:
    """Start `delayed relay tasks`, and bind the queue `jobs` to the exchange for due messages."""
    running = shell.start("mqtool", "delayed", "relay", "tasks", *words, ready=True).wait_until_ready()
    assert shell.run("mqtool", "queue", "declare", "jobs").code == 0
    assert shell.run("mqtool", "exchange", "bind", "tasks.relayed", "jobs", "jobs.#").code == 0
    return running


def publish(url: str, delays: list[object], exchange: str = "tasks", first: int = 0) -> None:
    """Publish numbers as another client would, with these values of x-delay; None has no such header."""
    messages = []
    for number, delay in enumerate(delays, first):
        headers = {"n": number} if delay is None else {"n": number, "x-delay": delay}
        properties = {"headers": headers, "content_type": "text/plain"}
        messages.append(Message(str(number).encode(), f"jobs.{number}", exchange, properties, f"m-{number}"))
    with Connection(parse_addresses(url)) as connection:
        receipts = list(connection.channel().publish(messages))
    assert all(receipt.confirmation is Confirmation.CONFIRMED for receipt in receipts)


def received(shell: Shell, count: int, patience: float = PATIENCE) -> list[Any]:
    """Receive messages of the queue `jobs` until this many different ones have arrived; return the NDJSON of all."""
    lines: list[Any] = []

    def have_come() -> bool:
        if missing := count - len({line["body"] for line in lines}):
            some = shell.run("mqtool", "receive", "-q", "jobs", "-c", str(missing), "--json", "--idle-timeout", "5s")
            lines.extend(map(json.loads, some.stdout.splitlines()))  # none yet while RabbitMQ elects a leader
        return count == len({line["body"] for line in lines})

    wait_until(have_come, f"{count} messages", patience)
    return lines


def test_delayed_relay_delays_the_messages_of_any_client(shell: Shell, broker: TestBroker) -> None:
    """`delayed relay` routes a message by its routing key when the delay in its x-delay header is over, and never
    earlier. The message keeps its properties and headers, except that x-delay becomes negative, as with the delayed
    message plugin. If x-delay is missing, is not a positive number, or exceeds the plugin's longest delay, 2^32 - 1
    ms, the relay forwards the message immediately.
    """
    running = relay(shell, "--type", "topic")
    shell.run("mqtool", "send", "-e", "tasks", "-r", "nobody", "no queue is bound by this key")
    receiver = shell.start("mqtool", "receive", "-q", "jobs", "-c", "10", "--json").wait_until_ready()
    published, delays = time.time(), {0: 700, 4: 900, 6: 1325}
    publish(broker.url, [700, None, 0, -300, "900", "soon", 1325.5, [1], Decimal("100.5"), 2**32])
    came = {int(line["body"]): line for line in map(json.loads, receiver.wait().stdout.splitlines())}
    assert sorted(came) == list(range(10))
    for number, line in came.items():
        assert line["routing_key"] == f"jobs.{number}"
        assert line["properties"]["content_type"] == "text/plain"
        assert line["properties"]["message_id"] == f"m-{number}"
        assert line["headers"]["n"] == number
        if number in delays:
            assert line["headers"]["x-delay"] == -delays[number]
            assert datetime.fromisoformat(line["timestamp"]).timestamp() >= published + delays[number] / 1000 - 0.002
        else:
            assert DUE not in line["headers"]
    running.process.send_signal(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 0
    assert "warning: message m-5 is not delayed: x-delay is not a number of milliseconds: 'soon'" in ended.stderr
    assert re.findall(r"message (m-\d) is not delayed", ended.stderr) == ["m-5", "m-7", "m-8", "m-9"]
    assert "3 delayed, 7 at once, 1 unroutable" in ended.stderr


@on_any_broker
def test_delayed_relay_by_timestamps_counts_the_delay_from_publishing(shell: Shell, broker: TestBroker) -> None:
    """With `delayed relay --by-timestamps`, a message's delay starts at the time in its header timestamp_in_ms, which
    is when it was published. A message with a delay of one hour that was published an hour ago is forwarded
    immediately. If this header is missing or contains a time in the future, the delay starts when the relay gets the
    message.
    """
    running = relay(shell, "--type", "topic", "--by-timestamps")
    now = int(time.time() * 1000)
    headers: list[dict[str, Any]] = [
        {"x-delay": 3_600_000, "timestamp_in_ms": now - 3_600_000},
        {"x-delay": 400, "timestamp_in_ms": now + 3_600_000},
        {"x-delay": 400},
    ]
    messages = [Message(str(n).encode(), "jobs.x", "tasks", {"headers": each}) for n, each in enumerate(headers)]
    with Connection(parse_addresses(broker.url)) as connection:
        assert len(list(connection.channel().publish(messages))) == len(messages)
    came = {line["body"]: datetime.fromisoformat(line["timestamp"]).timestamp() for line in received(shell, 3)}
    assert min(came["1"], came["2"]) >= now / 1000 + 0.4
    assert running.interrupt().wait().code == 0


def test_delayed_relay_does_not_delay_messages_whose_headers_are_too_large(shell: Shell, broker: TestBroker) -> None:
    """`delayed relay` adds headers to each message that it delays. If a message's headers are so large that none can
    be added, the relay publishes the message without delay. Even if it gets 201 of these messages, one more than it
    handles at a time, it still delays other messages.
    """
    running = relay(shell, "--type", "topic")
    large = {"x-delay": 3_600_000, "pad": "x" * 131_010}
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        last = channel.declare(Queue("last", arguments={"x-max-length": 1}))  # keeps one, because they are large
        channel.bind(last, Exchange("tasks.relayed"), "large")
        [*channel.publish(Message(b"", "large", "tasks", {"headers": large}) for _ in range(AT_ONCE + 1))]
    publish(broker.url, [100, 1000])
    assert len(received(shell, 2)) == 2
    assert depth(broker, "last") == 1
    assert f"2 delayed, {AT_ONCE + 1} at once, 0 unroutable" in running.interrupt().wait().stderr


def test_a_killed_delayed_relay_loses_no_message(shell: Shell, broker: TestBroker) -> None:
    """If several processes of `delayed relay` run for one exchange, and all but the last are killed one after the
    other, the last one delivers all messages. None is lost, but some may arrive twice.
    """
    count = 600
    first, second = relay(shell, "--type", "topic"), relay(shell)
    publish(broker.url, [25 * (number % 20) for number in range(count)])
    first.process.kill()
    wait_until(lambda: depth(broker, "jobs") > 0, "messages that are due")
    third = relay(shell)
    second.process.kill()
    publish(broker.url, [100, None], first=count)
    lines = received(shell, count + 2)
    assert {line["body"] for line in lines} == {str(number) for number in range(count + 2)}
    assert len(lines) <= count + 2 + 2 * AT_ONCE
    assert third.interrupt().wait().code == 0
    assert depth(broker, "tasks.relay") == 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
@large
def test_delayed_relay_continues_after_the_broker_was_killed(lonely_shell: Shell, kind: BrokerKind) -> None:
    """After kill -9 of the broker, `delayed relay` reconnects and continues. Every confirmed message arrives, though
    some may arrive twice. On RabbitMQ, messages that are due while the broker is down or starting may arrive some
    minutes late.
    """
    own_broker(kind)
    shell, delayed, at_once = lonely_shell, 200, 400
    restartable = Restartable(kind, f"relay-{uuid.uuid4().hex[:8]}")
    shell.environment["MQTOOL_URL"] = restartable.url
    first = 1_000 if kind is BrokerKind.EMBEDDED else 25_000
    try:
        running = relay(shell, "--type", "topic")
        publish(restartable.url, [first + 1_000 * (number % 4) for number in range(delayed)])
        wait_until(lambda: taken(restartable) == delayed, "the relay to take the messages")
        if kind is BrokerKind.NODE:
            wait_until(lambda: has_saved_its_queues(restartable), "RabbitMQ to save the names of its queues")
        publish(restartable.url, [5_000] + [None] * at_once, first=delayed)
        wait_until(lambda: any(queue["name"].endswith(".5s") for queue in restartable.queues()), "a new wait queue")
        restartable.kill()
        running.wait_for_stderr("trying again")
        restartable.start()
        running.wait_for_stderr("connected again")
        publish(restartable.url, [300, 5_000, None], first=delayed + 1 + at_once)
        lines = received(shell, delayed + at_once + 4, patience=600)
        assert running.interrupt().wait().code == 0
    finally:
        restartable.stop()
    assert {line["body"] for line in lines} == {str(number) for number in range(delayed + at_once + 4)}


def taken(broker: Restartable) -> int:
    """The number of messages in all other queues; 0 as long as messages are in the queue of `delayed relay`."""
    depths = {queue["name"]: queue.get("messages", 0) for queue in broker.queues()}
    return 0 if depths["tasks.relay"] else sum(depths.values())


def has_saved_its_queues(node: Restartable) -> bool:
    """True if the node has saved the names of its quorum queues. If RabbitMQ 3.10 is killed before that, a queue never
    has a leader again.
    """
    [file] = Path(node.data).rglob("quorum/*/names.dets")
    saved = file.read_bytes()
    return all(queue["name"].encode() in saved for queue in node.queues() if queue["type"] == "quorum")


@on_any_broker
def test_delayed_relay_avoids_wait_queues_without_a_leader(broker: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """If some wait queues have no leader, `delayed relay` uses other wait queues instead, delivers every message, and
    warns once for each queue without a leader.
    """
    dead = re.compile(r"delay\.(\d\d|1\d\d|200)ms$")
    known, warnings, counts, told = threading.Event(), list[str](), Counter[str](), set[str]()

    def has_leader(_connection: Connection, queue: str, _within: float) -> bool:
        if is_dead := dead.search(queue) is not None:
            known.wait(PATIENCE)
        return not is_dead

    monkeypatch.setattr(delay_relay, "has_leader", has_leader)
    monkeypatch.setattr(delay_relay, "_SLOW", 0.5)
    names, address = RelayNames.of("tasks", "fanout"), parse_addresses(broker.url)
    with Connection(address) as client:
        channel = client.channel()
        names.declare(channel, keep_type=False)
        channel.bind(channel.declare(Queue("jobs", durable=True)), names.out)
        deliveries = channel.consume(Queue("jobs"))
        for some in (0, 10):
            with Connection(address) as ours, ThreadPoolExecutor() as thread:
                source = ours.channel()
                relay = Relay(source, ours.channel(), names, "guest", warnings.append, counts, told)
                running = thread.submit(relay.run)
                publish(broker.url, [200, None, 1200, 700], first=some)
                came = {next(deliveries).body.decode(): number for number in range(4)}
                assert came.keys() == {str(some + number) for number in range(4)}
                assert came[str(some + 1)] == 0
                assert bool(warnings) is known.is_set()
                known.set()
                wait_until(lambda: bool(warnings), "a warning")
                source.stop()
                running.result(PATIENCE)
    assert len(warnings) == len(set(warnings)) == len(told)
    assert all(f"wait queue '{queue}' has no leader" in "".join(warnings) for queue in told)
    assert all(depth(broker, queue) == 0 for queue in told)


def test_delayed_commands_include_the_messages_of_a_relay(shell: Shell, broker: TestBroker) -> None:
    """`delayed ls`, `delayed show`, `delayed cancel` and `delayed now` include the messages that `delayed relay`
    delays, and those that were published while no relay was running.
    """
    running = relay(shell, "--type", "topic")

    def delayed(*words: str) -> str:
        result = shell.run("mqtool", "delayed", *words, "--management", broker.management)
        assert result.code == 0, result.stderr
        return result.stdout

    publish(broker.url, [3_600_000, 3_600_000, 7_260_000])
    wait_until(lambda: delayed("ls").count("tasks.relayed\tdelay") == 2, "the wait queues")
    assert running.interrupt().wait().code == 0
    publish(broker.url, [3_600_000, 60_000], first=3)
    rows = sorted(line.split("\t") for line in delayed("ls").splitlines())
    assert [row[:4] for row in rows] == [
        ["tasks.relayed", "delay", "1h", "2"],
        ["tasks.relayed", "delay", "2h", "1"],
        ["tasks.relayed", "relay", "", "2"],
    ]
    assert "m-3: once a relay is running, to tasks.relayed: 3" in delayed("show", "tasks.relayed")
    delayed("cancel", "m-0", "m-3", "--yes")
    delayed("now", "m-2", "m-4")
    assert {line["body"] for line in received(shell, 2)} == {"2", "4"}
    left = delayed("show", "--json").splitlines()
    assert [json.loads(line)["properties"]["message_id"] for line in left] == ["m-1"]


@on_any_broker
def test_delayed_relay_publishes_due_messages_to_another_exchange(shell: Shell, broker: TestBroker) -> None:
    """When a message is due, `delayed relay --to` publishes it to an existing exchange, which must not be the relay's
    own. The command warns about each queue that is bound directly to the relay's own exchange, because such a queue
    gets the messages without delay. It also warns if the other exchange routes due messages back to the relay.
    """
    shell.run("mqtool", "queue", "declare", "jobs")
    shell.run("mqtool", "exchange", "declare", "events", "topic")
    shell.run("mqtool", "exchange", "bind", "events", "jobs", "jobs.#")
    for words, code, said in (
        (("later", "--to", "nothing"), 69, "no exchange 'nothing'"),
        (("later", "--to", "events", "--type", "topic"), 2, "--type and --to cannot be combined"),
        (("later", "--to", "later"), 2, "--to names the relay's own exchange 'later'"),
        (("events",), 78, "inequivalent arg 'type' for exchange 'events'"),
    ):
        refused = shell.run("mqtool", "delayed", "relay", *words)
        assert (refused.code, said in refused.stderr) == (code, True), refused.stderr
    shell.run("mqtool", "exchange", "declare", "later", "fanout")
    shell.run("mqtool", "queue", "declare", "early")
    shell.run("mqtool", "exchange", "bind", "later", "early")
    shell.run("mqtool", "exchange", "bind", "events", "later", "again", "--to-exchange")
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    running = shell.start("mqtool", "delayed", "relay", "later", "--to", "events", ready=True).wait_until_ready()
    assert "warning: 'early' is bound to 'later', and gets its messages without delay" in running.stderr
    assert "warning: 'later' is bound to 'events', so due messages return to the relay" in running.stderr
    publish(broker.url, [200, None], "later")
    assert {line["routing_key"] for line in received(shell, 2)} == {"jobs.0", "jobs.1"}


def test_delayed_relay_uses_an_existing_exchange_for_due_messages(shell: Shell, broker: TestBroker) -> None:
    """If the exchange for due messages already exists, `delayed relay` uses it, but exits with 78 if --type gives
    another type. If this exchange has an alternate exchange, messages that match no binding go there, with or without
    a delay.
    """
    rest = Exchange("rest", "fanout", durable=True)
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.bind(channel.declare(Queue("others", durable=True)), channel.declare(rest))
        channel.declare(Exchange("tasks.relayed", "topic", durable=True, arguments={"alternate-exchange": "rest"}))
    refused = shell.run("mqtool", "delayed", "relay", "tasks", "--type", "direct")
    assert refused.code == 78
    assert "hint: use it as it is: mqtool delayed relay tasks; or name another exchange" in refused.stderr
    shell.start("mqtool", "delayed", "relay", "tasks", "--type", "topic", ready=True).wait_until_ready()
    publish(broker.url, [200, None])
    wait_until(lambda: depth(broker, "others") == 2, "both messages")


def listed(broker: TestBroker, kind: str) -> dict[str, Any]:
    """The exchanges or policies of a virtual host, by name."""
    found: Any = broker.api("GET", f"{kind}/{broker.vhost}")
    return {each["name"]: each for each in found}


def old_exchange(broker: TestBroker, **arguments: str) -> None:
    """Declare an exchange of the plugin, `old`, with the queue `jobs`."""
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    old = Exchange("old", DELAYED, durable=True, arguments={"x-delayed-type": "topic", **named})
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(old)
        channel.declare(Queue("jobs", durable=True, arguments={"x-queue-type": "quorum"}))
        channel.bind(Queue("jobs"), old, "jobs.#")


@on_any_broker
def test_delayed_migrate_keeps_the_alternate_exchange(shell: Shell, broker: TestBroker) -> None:
    """If the delayed message plugin's exchange has an alternate exchange, `delayed migrate` gives the same one to the
    relay's exchange for due messages. If that exchange already exists without this alternate exchange, `delayed
    migrate` exits with 78, and declares nothing.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    old_exchange(broker, alternate_exchange="rest")
    shell.run("mqtool", "exchange", "declare", "used.relayed", "topic")
    refused = shell.run("mqtool", "delayed", "migrate", "old", "--to", "used")
    assert (refused.code, refused.stderr.splitlines()[1]) == (78, "hint: name another exchange with --to")
    for _ in range(2):
        migrated = shell.run("mqtool", "delayed", "migrate", "old", "--to", "tasks")
        assert migrated.code == 0, migrated.stderr
        assert "copied 1 binding and the alternate exchange rest from old to tasks.relayed" in migrated.stderr
    exchanges = listed(broker, "exchanges")
    assert exchanges["tasks.relayed"]["arguments"] == {"alternate-exchange": "rest"}
    assert "used" not in exchanges


@on_any_broker
def test_delayed_migrate_needs_a_policy_if_a_policy_sets_the_plugins_alternate_exchange(
    shell: Shell, broker: TestBroker
) -> None:
    """If a policy sets the alternate exchange of the delayed message plugin's exchange, but no policy sets it for the
    exchange to which the relay publishes due messages, `delayed migrate` exits with 78 and declares nothing. Its hint
    gives a command that sets a policy for the latter exchange. This new policy also contains the settings of the
    policy that already applies to this exchange.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    old_exchange(broker)
    for name, pattern, definition in (
        ("unrouted", "^old$", {"alternate-exchange": "rest"}),
        ("all", "tasks", {"max-length": 9}),
    ):
        body = {"pattern": pattern, "definition": definition, "priority": 3}
        broker.api("PUT", f"policies/{broker.vhost}/{name}", body)
    refused = shell.run("mqtool", "delayed", "migrate", "old", "--to", "tasks")
    assert refused.code == 78
    assert refused.stderr.startswith(
        "mqtool: policy 'unrouted' gives 'old' the alternate exchange 'rest', but no policy gives it to "
        "'tasks.relayed': messages without a queue would be lost\nhint: mqtool policy set "
    )
    assert "tasks.relayed" not in listed(broker, "exchanges")
    hint = shlex.split(refused.stderr.partition("hint: ")[2])
    assert shell.run(*hint).code == 0
    assert shell.run("mqtool", "delayed", "migrate", "old", "--to", "tasks").code == 0
    policy = listed(broker, "policies")["alternate.tasks.relayed"]
    assert policy["definition"] == {"max-length": 9, "alternate-exchange": "rest"}


@on_any_broker
def test_delayed_migrate_reports_messages_that_were_deleted_with_their_exchange(
    shell: Shell, broker: TestBroker
) -> None:
    """If the exchange of the delayed message plugin is deleted while it holds messages, `delayed migrate` exits with
    69, and says how many messages are lost.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    old_exchange(broker)
    publish(broker.url, [3_600_000] * 3, "old")
    migrating = shell.start("mqtool", "delayed", "migrate", "old", "--to", "tasks")
    migrating.wait_for_stderr("3 messages in old, which the plugin delivers")
    assert shell.run("mqtool", "exchange", "delete", "old", "--yes").code == 0
    ended = migrating.wait()
    assert ended.code == 69
    assert "mqtool: exchange 'old' was deleted, and up to 3 messages that it held are lost\n" in ended.stderr


@on_any_broker
@pytest.mark.parametrize(
    "words", [("relay", ""), ("relay", "a", "--to", ""), ("migrate", "", "--to", "a"), ("migrate", "a", "--to", "")]
)
def test_delayed_relay_and_migrate_refuse_the_default_exchange(
    shell: Shell, broker: TestBroker, words: tuple[str, ...]
) -> None:
    """`delayed relay` and `delayed migrate` exit with 2 if the name of an exchange is empty, which is the name of the
    default exchange.
    """
    refused = shell.run("mqtool", "delayed", *words, "--management", broker.management)
    assert (refused.code, refused.stderr.splitlines()[0]) == (
        2,
        "mqtool: the default exchange '' cannot delay messages",
    )


@on_any_broker
def test_delayed_relay_replaces_the_plugin_without_duplicating_messages(shell: Shell, broker: TestBroker) -> None:
    """`delayed migrate` copies the bindings of the delayed message plugin's exchange to a relay's exchange, and waits
    until the plugin has delivered its messages. Meanwhile, `delayed relay` delivers the messages that are published to
    the relay's exchange. Each message arrives once.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    old_exchange(broker)
    refused = shell.run("mqtool", "delayed", "migrate", "amq.topic", "--to", "tasks")
    assert (refused.code, "exchange 'amq.topic' is of type topic" in refused.stderr) == (78, True)
    publish(broker.url, [6000 + number for number in range(20)], "old")
    migrating = shell.start("mqtool", "delayed", "migrate", "old", "--to", "tasks")
    migrating.wait_for_stderr(" in old, which the plugin delivers")
    relay(shell)
    publish(broker.url, [200] * 20, first=20)
    ended = migrating.wait()
    assert ended.code == 0
    assert "copied 1 binding from old to tasks.relayed" in ended.stderr
    assert "nothing is left in old; once nobody publishes to it: mqtool exchange delete old" in ended.stderr
    lines = received(shell, 40)
    assert sorted(int(line["body"]) for line in lines) == list(range(40))
    assert depth(broker, "jobs") == 0
