"""Arguments and headers that any user can forge: an administrator's command acts on them only if the broker confirms
them.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pika
import pytest
from hypothesis import HealthCheck, example, given, note, settings

from mqtool.amqp import Connection, parse_addresses
from mqtool.delays.wait_queues import GRACE
from mqtool.message import Confirmation, Message
from mqtool.topology import PRIVATE_QUEUE
from tests.brokers import ALL_CASES, IN_CI, TestBroker, depth, large, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.test_move import taken
from tests.cli.test_replay import forged as forge_in_stream
from tests.mallory import KNOWN, Attack, Published, Repeated, Scene, attacks, untouched

#: In CI, and in long runs (MQTOOL_EXAMPLES), more attacks are tried. On RabbitMQ, each takes about a second.
EXAMPLES = int(os.environ.get("MQTOOL_EXAMPLES", "100" if ALL_CASES else "20" if IN_CI else "2"))

#: Exit codes of a command that no message has stopped: success; `worker` had failures; some messages were left where
#: they are; or `timeout` stopped the command.
ENDED = (0, 1, 3, 124)


@pytest.mark.timeout(max(1200, 10 * EXAMPLES))
@large
def test_no_forged_argument_or_header_affects_other_users(shell: Shell, broker: TestBroker) -> None:
    """A user who has permissions only on her own queues and exchanges can forge queue arguments and message headers.
    Whatever she forges, no administrator's command changes other users' queues, exchanges, bindings or messages, shows
    her the messages of other users, or routes messages to an exchange that she has no permission to write to. If she
    has done nothing but publish messages, the command still completes, and commands such as `peek` and `queue convert`
    keep all messages in order.
    """
    seen: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES if broker.kind == "embedded" else max(1, EXAMPLES // 4),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(attacks)
    @example(KNOWN[0])
    @example(KNOWN[1])
    @example(KNOWN[2])
    @example(KNOWN[3])
    def attack(attack: Attack) -> None:
        with Scene(broker) as scene:
            seen["attacks"] += 1
            seen["steps"] += scene.suffer(attack)
            before = scene.definitions()
            shell.environment |= {"MQTOOL_URL": scene.broker.url, "MQTOOL_MANAGEMENT_URL": broker.management}
            with scene.deleting(attack):
                result = shell.script(attack.command)
            note(result.stderr)
            assert "unexpected error" not in result.stderr
            if attack.stops_nothing and "migrate" not in attack.command:
                assert result.code in ENDED
            assert scene.definitions() == before
            assert scene.leads_out() == []
            if "printenv" in attack.command:
                _check_variables(attack, result.stdout)
            messages = scene.messages()
            for queue, taken in messages.items():
                bodies = [body for body, _ in taken]
                if attack.only_publishes and attack.keeps_order:
                    _check_unchanged(attack, queue, taken)
                if queue in attack.others:
                    # A client that may send requests names the reply queue: see docs/explanation/claims.md.
                    replies = result.stdout_bytes if "rpc-server" in attack.command else b""
                    found = [body for body in bodies if body not in replies]
                    assert (queue, found) == (queue, untouched(queue))
                else:
                    assert not any(b"secret" in body for body in bodies), queue

    try:
        attack()
    finally:
        print(dict(seen))


def _check_unchanged(attack: Attack, queue: str, taken: Sequence[tuple[bytes, Mapping[str, Any]]]) -> None:
    numbered = {int(body.rpartition(b" ")[2]): headers for body, headers in taken if body.startswith(Published.body)}
    assert (queue, list(numbered)) == (queue, sorted(numbered))
    for number, headers in numbered.items():
        step = attack.steps[number]
        assert isinstance(step, Published)
        assert ("mqtool-convert" in headers) == ("mqtool-convert" in step.headers)


def _check_variables(attack: Attack, printed: str) -> None:
    lines = iter(printed.splitlines())
    for exchange, key in zip(lines, lines, strict=False):
        assert exchange == "" or exchange.startswith("mallory")
        assert exchange == "" or attack.topic is None or re.search(attack.topic, key)


def forged_plan(queue: str, **target: Any) -> str:
    """A plan like that of `queue convert`, to give a durable classic queue these arguments."""
    classic = {"type": "classic", "durable": True}
    source, wanted = {**classic, "arguments": {}}, {**classic, "arguments": target}
    return json.dumps({"queue": queue, "source": source, "target": wanted, "at_once": 500})


def declare(broker: TestBroker, queue: str, **arguments: Any) -> None:
    body = {"durable": True, "arguments": {name.replace("_", "-"): value for name, value in arguments.items()}}
    broker.api("PUT", f"queues/{broker.vhost}/{quote(queue, safe='')}", body)


def arguments_of(broker: TestBroker, queue: str) -> dict[str, Any]:
    found: Any = broker.api("GET", f"queues/{broker.vhost}/{quote(queue, safe='')}")
    return {key: value for key, value in found["arguments"].items() if key != "x-queue-type"}  # 4.x adds the type


def test_queue_convert_resume_ignores_forged_conversion_plans(shell: Shell, broker: TestBroker) -> None:
    """`queue convert` stores its plan in the arguments of the queue that holds the messages. `queue convert --resume`
    ignores, with a warning, a plan in the arguments of any other queue, and a plan that it cannot read. It resumes the
    conversions whose plans are valid.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for queue in ("payroll", "jobs"):
        declare(broker, queue)
    to_her = {"x-message-ttl": 1000, "x-dead-letter-exchange": "mallory"}
    declare(broker, "mallory.q", x_mqtool_convert=forged_plan("payroll", **to_her))
    declare(broker, "mallory.r", x_mqtool_convert="{")
    held = {"x-queue-type": "quorum", "x-mqtool-convert": forged_plan("jobs", **{"x-max-length": 7})}
    broker.api("PUT", f"queues/{broker.vhost}/jobs.mqtool-convert", {"durable": True, "arguments": held})

    result = shell.run("mqtool", "queue", "convert", "--resume", "--yes")

    assert result.code == 0, result.stderr
    assert "warning: the plan of queue 'mallory.q' is ignored: it is for a queue whose messages are held in a " in (
        result.stderr
    )
    assert "warning: the plan of queue 'mallory.r' is ignored: the plan of a conversion cannot be read: '{'" in (
        result.stderr
    )
    assert arguments_of(broker, "payroll") == {}
    assert arguments_of(broker, "jobs")["x-max-length"] == 7
    named = shell.run("mqtool", "queue", "convert", "--resume", "payroll", "--yes")
    assert "no conversion of 'payroll' is under way" in named.stderr
    assert arguments_of(broker, "payroll") == {}


@on_any_broker
def test_queue_convert_resume_shows_the_new_definition_and_needs_confirmation(shell: Shell, broker: TestBroker) -> None:
    """`queue convert --resume` first shows the queue's new definition. Without a terminal, the command needs --yes. If
    the new definition changes the dead-letter arguments, the command converts the queue only if the queue's name is
    also given as an argument.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    declare(broker, "mallory")
    declare(
        broker, "mallory.mqtool-convert", x_mqtool_convert=forged_plan("mallory", **{"x-dead-letter-exchange": "x"})
    )
    for words, code, said in (
        (("mallory",), 2, "mallory: classic -> classic (x-dead-letter-exchange=x)"),
        (("--yes",), 0, "'mallory' is not converted, because its dead letters would go elsewhere"),
    ):
        result = shell.run("mqtool", "queue", "convert", "--resume", *words)
        assert (result.code, said in result.stderr) == (code, True), result.stderr
        assert arguments_of(broker, "mallory") == {}
    assert shell.run("mqtool", "queue", "convert", "--resume", "mallory", "--yes").code == 0
    assert arguments_of(broker, "mallory")["x-dead-letter-exchange"] == "x"


@pytest.mark.parametrize("argument", ["x-dead-letter-exchange", "x-dead-letter-routing-key"])
def test_queue_convert_does_not_redirect_dead_letters_if_the_queues_argument_has_two_values(
    shell: Shell, broker: TestBroker, argument: str
) -> None:
    """A client can declare a queue with two values for x-dead-letter-exchange or x-dead-letter-routing-key. The broker
    uses the first value, and checks permissions for it, but RabbitMQ's management API shows the second. If the two
    differ, `queue convert` exits with 2 and does not convert the queue, because the converted queue would send its dead
    letters elsewhere. `queue convert --resume` does not convert the queue, either.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for queue in ("payroll", "mallory.dead"):
        declare(broker, queue)
    true = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "mallory.dead"}
    false = {"x-dead-letter-exchange": "amq.fanout", "x-dead-letter-routing-key": "payroll"}
    broker.api("POST", f"bindings/{broker.vhost}/e/amq.fanout/q/payroll", {})
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        both = Repeated(("x-max-length", 7), *true.items(), (argument, false[argument]))
        channel.queue_declare("mallory", durable=True, arguments=both)
        is_shown = arguments_of(broker, "mallory")[argument] == false[argument]

        result = shell.run("mqtool", "queue", "convert", "mallory", "--to", "quorum", "--yes")

        assert is_shown == ("dead-letter exchange and routing key that the management API shows" in result.stderr)
        assert result.code == (2 if is_shown else 0), result.stderr
        if is_shown:
            plan = forged_plan("mallory", **arguments_of(broker, "mallory"))
            declare(broker, "mallory.mqtool-convert", x_queue_type="quorum", x_mqtool_convert=plan)
            resumed = shell.run("mqtool", "queue", "convert", "--resume", "--yes")
            assert "'mallory' is not converted, because its dead letters would go elsewhere" in resumed.stderr
            # Seemingly a conversion whose holding queue has been deleted.
            assert shell.run("mqtool", "queue", "delete", "mallory.mqtool-convert", "--yes").code == 0
            channel.exchange_declare("mallory.mqtool-convert.through", "fanout", durable=True)
            channel.exchange_bind("mallory.mqtool-convert.through", "amq.direct")
            resumed = shell.run("mqtool", "queue", "convert", "--resume", "mallory", "--yes")
            assert (resumed.code, "'mallory': the broker does not confirm" in resumed.stderr) == (65, True)
            assert shell.run("mqtool", "queue", "show", "mallory.mqtool-convert.meanwhile").code == 69
        channel.basic_publish("", "mallory", b"rejected")
        wait_until(lambda: depth(broker, "mallory") == 1, "the message in the queue")
        method, _, _ = channel.basic_get("mallory")
        assert method is not None
        channel.basic_reject(method.delivery_tag, requeue=False)
        wait_until(lambda: depth(broker, "mallory.dead") == 1, "the dead letter")
    assert depth(broker, "payroll") == 0


def publish(broker: TestBroker, exchange: str, key: str, body: str = "forged", **headers: Any) -> None:
    """Publish a message, with these headers, as any client may."""
    with Connection(parse_addresses(broker.url)) as connection:
        message = Message(body.encode(), key, exchange, {"headers": headers})
        assert [each.confirmation for each in connection.channel().publish([message])] == [Confirmation.CONFIRMED]


def test_dlq_redrive_moves_no_message_to_a_queue_that_a_forged_x_death_names(shell: Shell, broker: TestBroker) -> None:
    """If a message's x-death header names a queue that does not dead-letter to the queue where the message is, `dlq
    redrive` leaves the message there, counts it as not moved, and exits with 3.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for queue in ("payroll", "mallory", "mallory.dlq"):
        declare(broker, queue)
    for forged in ([{"queue": "payroll", "reason": "rejected"}], [{"queue": "nowhere"}], [{"queue": 7}], [7], 7):
        publish(broker, "", "mallory.dlq", **{"x-death": forged})
    publish(broker, "", "mallory.dlq", "hers", **{"x-death": [{"queue": "mallory"}]})

    result = shell.run("mqtool", "dlq", "redrive", "mallory", "--yes")

    assert result.code == 3
    assert "1 moved back from mallory.dlq" in result.stderr
    assert "5 could not be moved and are still in mallory.dlq" in result.stderr
    if not broker.differs_since("4.0", "it ignores an x-death that a client publishes"):
        assert "says that it came from 'payroll', which does not dead-letter to 'mallory.dlq'" in result.stderr
        assert "says that it came from 'nowhere', which does not exist" in result.stderr
    assert (depth(broker, "payroll"), depth(broker, "mallory")) == (0, 1)


def test_dlq_redrive_uses_the_x_death_header_that_the_broker_updated_and_not_a_forged_one(
    shell: Shell, broker: TestBroker
) -> None:
    """If a publisher sends a message with two x-death headers, the second of which names another user's queue, the
    broker updates the first one when the message is dead-lettered. `dlq redrive` uses the first one, and moves the
    message back to the queue from which it came.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    declare(broker, "graveyard")
    for queue in ("wages", "mallory"):
        declare(broker, queue, x_dead_letter_exchange="", x_dead_letter_routing_key="graveyard")
    forged = [{"queue": "wages", "reason": "rejected", "exchange": "", "routing-keys": ["wages"], "count": 1}]
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        headers = Repeated(("x-death", []), ("x-death", forged))
        channel.basic_publish("", "mallory", b"hers", pika.BasicProperties(headers=headers))
        wait_until(lambda: depth(broker, "mallory") == 1, "the message in the queue")
        method, _, _ = channel.basic_get("mallory")
        assert method is not None
        channel.basic_reject(method.delivery_tag, requeue=False)
        wait_until(lambda: depth(broker, "graveyard") == 1, "the dead letter")

    result = shell.run("mqtool", "dlq", "redrive", "any", "--from", "graveyard", "--yes")

    assert (depth(broker, "wages"), depth(broker, "mallory")) == (0, 1), result.stderr
    assert result.code == 0


def test_dlq_redrive_leaves_a_message_that_another_exchange_routed_to_the_dead_letter_queue(
    shell: Shell, broker: TestBroker
) -> None:
    """The queue `orders` dead-letters to the queue `orders.dlq` through an exchange. If a message reached `orders.dlq`
    through another exchange, `dlq redrive orders` leaves the message there, even if its headers claim that it came from
    `orders`. The command moves back the messages that the broker or `worker` has dead-lettered.
    """
    # The publisher may have rights on names like `^orders[.]`, but none on orders.
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for exchange in ("orders.x", "graveyard"):
        broker.api("PUT", f"exchanges/{broker.vhost}/{exchange}", {"type": "fanout", "durable": True})
    declare(broker, "orders.dlq")
    declare(broker, "orders", x_dead_letter_exchange="graveyard")
    for exchange in ("orders.x", "graveyard"):
        broker.api("POST", f"bindings/{broker.vhost}/e/{exchange}/q/orders.dlq", {})
    publish(broker, "orders.x", "", "evil", **{"mqtool-reason": "rejected", "mqtool-queue": "orders"})
    publish(broker, "orders.x", "orders.dlq", "evil", **{"x-death": [{"queue": "orders", "reason": "rejected"}]})
    publish(broker, "", "orders", "of worker")
    shell.run("mqtool", "worker", "-q", "orders", "-c", "1", "--retries", "0", "--exec", "false")
    publish(broker, "", "orders", "of the broker")
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        wait_until(lambda: channel.depth_of("orders") == 1, "the message in the queue")
        delivery = channel.get("orders")
        assert delivery is not None
        channel.ask(lambda pika, done: (pika.basic_nack(delivery.delivery_tag, requeue=False), done(None)))
    wait_until(lambda: depth(broker, "orders.dlq") == 4, "the dead letters")

    result = shell.run("mqtool", "dlq", "redrive", "orders", "--yes")

    assert (result.code, depth(broker, "orders.dlq"), depth(broker, "orders")) == (3, 2, 2), result.stderr
    assert "which does not dead-letter to 'orders.dlq' through exchange 'orders.x'" in result.stderr


def test_a_dead_letter_whose_headers_fill_a_frame_does_not_stop_dlq_redrive(shell: Shell, broker: TestBroker) -> None:
    """`dlq redrive` adds a header to each dead letter. If the headers of a dead letter already fill a whole frame,
    which is the most that AMQP 0-9-1 allows, the command leaves this dead letter in its queue, and prints the size of
    its headers. It moves the other dead letters back and exits with 3.
    """
    for queue in ("orders", "orders.dlq"):
        declare(broker, queue)
    publish(broker, "", "orders.dlq", "full", padding="x" * (131_072 - 8 - 14 - 17))
    publish(broker, "", "orders.dlq", "honest")

    result = shell.run("mqtool", "dlq", "redrive", "orders", "--to", "orders", "--yes")

    assert (result.code, depth(broker, "orders.dlq"), depth(broker, "orders")) == (3, 1, 1), result.stderr
    assert "('full') stays in 'orders.dlq': the headers and properties are 131,0" in result.stderr


def test_a_delayed_message_whose_headers_fill_a_frame_does_not_stop_delayed_now(
    shell: Shell, broker: TestBroker
) -> None:
    """If a message's headers claim a false exchange, `delayed now` adds headers with the true exchange and routing
    key. If the message's headers already fill a whole frame, which is the most that AMQP 0-9-1 allows, the command
    leaves the message in its wait queue, and prints the size of its headers. It delivers the other messages and exits
    with 3.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    waits = {"x_message_ttl": 300_000, "x_expires": 300_000 + GRACE, "x_dead_letter_exchange": ""}
    declare(broker, "jobs")
    declare(broker, "jobs.delay.5m", **waits, x_dead_letter_routing_key="jobs")
    broker.api("PUT", f"exchanges/{broker.vhost}/public", {"type": "fanout", "durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/public/q/jobs.delay.5m", {})
    full = "x" * (131_072 - 8 - 14 - 17 - len("\x0fmqtool-exchangeS\0\0\0\0"))
    publish(broker, "public", "k", "full", **{"mqtool-exchange": "", "padding": full})
    publish(broker, "public", "k", "forged", **{"mqtool-exchange": ""})
    publish(broker, "public", "k", "honest")

    result = shell.run("mqtool", "delayed", "now", "--where", "size >= 0", "--yes")

    assert (result.code, depth(broker, "jobs.delay.5m"), depth(broker, "jobs")) == (3, 1, 2), result.stderr
    assert {delivery.body: delivery.headers for delivery in taken(broker, "jobs", 2)} == {
        b"forged": {"mqtool-exchange": "public", "mqtool-routing-key": "k"},
        b"honest": {},
    }
    assert "('full') stays in 'jobs.delay.5m': the headers and properties are 131,0" in result.stderr


def is_governed(broker: TestBroker, queue: str) -> bool:
    """True once the management API shows which policy applies to the queue."""
    found: Any = broker.api("GET", f"queues/{broker.vhost}/{queue}")
    return bool(found.get("effective_policy_definition"))


def test_dlq_redrive_checks_that_a_dead_letter_can_come_from_the_queue_in_x_death(
    shell: Shell, broker: TestBroker
) -> None:
    """The x-death header of a dead letter names the queue from which the dead letter came, but may be forged. `dlq
    redrive` moves the dead letter back only if the dead letter has the exchange and the routing key with which this
    queue, by its arguments or its policy, dead-letters messages. Otherwise, or if the management API is unavailable,
    the command leaves the dead letter where it is.
    """
    vhost = broker.vhost
    broker.api("PUT", f"exchanges/{vhost}/graveyard", {"type": "topic", "durable": True})
    declare(broker, "buried")
    broker.api("POST", f"bindings/{vhost}/e/graveyard/q/buried", {"routing_key": "#"})
    declare(broker, "by-argument", x_dead_letter_exchange="graveyard", x_dead_letter_routing_key="dead")
    declare(broker, "by-policy")
    policy = {"pattern": "^by-policy$", "definition": {"dead-letter-exchange": "graveyard"}, "apply-to": "queues"}
    broker.api("PUT", f"policies/{vhost}/bury", policy)
    publish(broker, "", "buried", **{"x-death": [{"queue": "by-policy", "reason": "rejected"}]})
    publish(broker, "graveyard", "x", **{"x-death": [{"queue": "by-argument", "reason": "rejected"}]})
    for queue in ("by-argument", "by-policy"):
        publish(broker, "", queue, queue)
        with Connection(parse_addresses(broker.url)) as connection:
            channel = connection.channel()
            delivery = channel.get(queue)
            assert delivery is not None
            channel.ask(lambda pika, done, tag=delivery.delivery_tag: (pika.basic_nack(tag, requeue=False), done(None)))
    wait_until(lambda: depth(broker, "buried") == 4, "the dead letters")
    wait_until(
        lambda: is_governed(broker, "by-policy"),
        "the policy in the management API, which RabbitMQ updates every few seconds",
    )

    without = shell.run("mqtool", "dlq", "redrive", "any", "--from", "buried", "--management", "http://localhost:1")
    assert without.code == 3
    assert "which cannot be verified: no management API answers" in without.stderr
    result = shell.run("mqtool", "dlq", "redrive", "any", "--from", "buried", "--management", broker.management)

    assert "2 moved back from buried" in result.stderr
    assert (depth(broker, "by-argument"), depth(broker, "by-policy"), depth(broker, "buried")) == (1, 1, 2)


def test_delayed_commands_ignore_a_stream_that_claims_to_hold_delayed_messages(
    shell: Shell, broker: TestBroker
) -> None:
    """`delayed ls`, `delayed show` and `delayed cancel` ignore a stream, even if its name and arguments are like those
    of a queue of `delayed relay`. The exchange and the routing key of a message in a stream cannot be trusted, because
    a client of the stream protocol can forge them.
    """
    if not broker.streams:
        pytest.skip("this broker has no port for streams")
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    declare(broker, "mallory.relay", x_queue_type="stream", x_mqtool_relay="orders")
    declare(broker, "mallory.2.relay", x_mqtool_relay="orders")
    publish(broker, "", "mallory.2.relay", "honest")
    forge_in_stream(broker, "mallory.relay", {})

    shown = shell.run("mqtool", "delayed", "show", "--json")

    assert [json.loads(line)["body"] for line in shown.stdout.splitlines()] == ["honest"], shown.stderr
    listed = [json.loads(line) for line in shell.run("mqtool", "delayed", "ls", "--json").stdout.splitlines()]
    assert [row["held_in"] for row in listed] == ["mallory.2.relay"]
    cancelled = shell.run("mqtool", "delayed", "cancel", "--where", "size >= 0", "--yes")
    assert (cancelled.code, "1 cancelled" in cancelled.stderr) == (0, True), cancelled.stderr


@pytest.mark.parametrize("command", ["now", "cancel"])
def test_delayed_now_and_delayed_cancel_send_nothing_to_a_forged_destination(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """If a user forges the arguments of a wait queue, or a message's CC header, to make another user's queue the
    destination of a delayed message, nothing is sent to that queue: neither by `delayed now`, which delivers messages
    before they are due, nor by `delayed cancel`, which deletes messages.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for queue in ("payroll", "mallory"):
        declare(broker, queue)
    broker.api("PUT", f"exchanges/{broker.vhost}/orders", {"type": "fanout", "durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/orders/q/payroll", {})
    waits = {"x_message_ttl": 300_000, "x_expires": 300_000 + GRACE, "x_dead_letter_exchange": "mallory"}
    declare(broker, "mallory.delay.5m", **waits, x_dead_letter_routing_key="payroll")
    declare(broker, "mallory.wait.5m", **waits, x_dead_letter_routing_key="mallory")
    declare(broker, "mallory.delay.1h", **waits)
    declare(broker, "mallory.q", x_mqtool_relay="orders")
    declare(broker, "mallory.relay", x_mqtool_relay="orders")
    forged = ("mallory.delay.5m", "mallory.delay.1h", "mallory.q", "mallory.relay")
    for queue in (*forged, "mallory.wait.5m"):
        publish(broker, "", queue, queue, CC=["payroll"])
    assert shell.run("mqtool", "queue", "purge", "payroll", "--yes").code == 0

    listed = shell.run("mqtool", "delayed", "ls", "--json").stdout.splitlines()
    rows = [json.loads(line) for line in listed]
    assert sorted((row["held_in"], row["to"]) for row in rows) == [
        ("mallory.relay", "orders"),
        ("mallory.wait.5m", "mallory"),
    ]
    result = shell.run("mqtool", "delayed", command, "--where", "size >= 0", "--yes")

    assert depth(broker, "payroll") == 0
    if command == "now":
        assert (result.code, depth(broker, "mallory")) == (3, 1)
        assert "stays in 'mallory.relay', which says that its messages are for 'orders'" in result.stderr
    else:
        assert (result.code, depth(broker, "mallory")) == (0, 0), result.stderr
        assert (depth(broker, "mallory.relay"), depth(broker, "mallory.wait.5m")) == (0, 0)
    assert all(depth(broker, queue) == 1 for queue in forged[:3])


def test_delayed_now_delivers_nothing_from_a_wait_queue_with_a_false_amq_destination_in_its_name(
    shell: Shell, broker: TestBroker
) -> None:
    """The name of a wait queue can say that its messages are for an exchange or queue named `amq.…`, but any user
    with permissions for names that begin with `mqtool.` can declare such a queue. If the wait queue does not
    dead-letter its messages to the named destination, `delayed now` leaves them in the wait queue, prints the queue's
    name, and exits with 3. `delayed cancel` deletes them.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    declare(broker, "orders")
    broker.api("POST", f"bindings/{broker.vhost}/e/amq.topic/q/orders", {"routing_key": "#"})
    # Hers are an exchange with the name of the one that mqtool binds to amq.topic, and its binding to her own exchange.
    for exchange in ("mqtool.amq.topic.due", "mqtool.x"):
        broker.api("PUT", f"exchanges/{broker.vhost}/{exchange}", {"type": "fanout", "durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/mqtool.amq.topic.due/e/mqtool.x", {})
    waits = {"x_message_ttl": 300_000, "x_expires": 300_000 + GRACE}
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        generated = channel.declare(PRIVATE_QUEUE).name
        claimed = {
            "mqtool.amq.fanout.exchange.delay.5m": "amq.fanout",
            "mqtool.amq.topic.exchange.delay.5m": "amq.topic",
            f"mqtool.{generated}.delay.5m": generated,
        }
        for queue, to in claimed.items():
            dead = {"x_dead_letter_exchange": "mqtool.x", "x_dead_letter_routing_key": to}
            declare(broker, queue, **waits, **(dead if to == generated else {}))
            publish(broker, "", queue)

        delivered = shell.run("mqtool", "delayed", "now", "--where", "size >= 0", "--yes")

        assert (delivered.code, "0 delivered" in delivered.stderr) == (3, True), delivered.stderr
        for queue, to in claimed.items():
            assert f"stays in '{queue}', which says that its messages are for '{to}'" in delivered.stderr
        assert (channel.depth_of(generated), depth(broker, "orders")) == (0, 0)
    listed = [json.loads(line) for line in shell.run("mqtool", "delayed", "ls", "--json").stdout.splitlines()]
    assert {row["held_in"]: row["to"] for row in listed} == claimed
    cancelled = shell.run("mqtool", "delayed", "cancel", "--where", "size >= 0", "--yes")
    assert (cancelled.code, "3 cancelled" in cancelled.stderr) == (0, True), cancelled.stderr


def test_delayed_now_delivers_to_amq_topic_only_from_a_wait_queue_that_dead_letters_there(
    shell: Shell, broker: TestBroker
) -> None:
    """Users without permission to write to amq.topic can declare queues with the names of wait queues for amq.topic.
    If such a queue does not dead-letter to amq.topic, for example because it has another dead-letter exchange or
    none, `delayed now` delivers none of its messages, prints the queue's name, and exits with 3. It still delivers a
    genuine delayed message to amq.topic.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    declare(broker, "orders", x_queue_type="quorum")
    broker.api("POST", f"bindings/{broker.vhost}/e/amq.topic/q/orders", {"routing_key": "#"})
    sent = ("mqtool", "send", "-e", "amq.topic", "-r", "a.b", "--via", "ttl", "--delay", "1h", "genuine")
    assert shell.run(*sent).code == 0
    router = "mqtool.amq.topic.exchange.delay"
    for exchange in (router, "mqtool.x"):
        broker.api("PUT", f"exchanges/{broker.vhost}/{exchange}", {"type": "fanout", "durable": True})
    hers: dict[str, dict[str, str]] = {
        f"{router}.7h": {},
        f"{router}.6h": {"x_dead_letter_exchange": "mqtool.x"},
        f"{router}.5h.more": {"x_dead_letter_exchange": router},
    }
    for queue, dead in hers.items():
        declare(broker, queue, x_message_ttl=7 * 3_600_000, x_expires=7 * 3_600_000 + GRACE, **dead)
        publish(broker, "", queue)
    broker.api("POST", f"bindings/{broker.vhost}/e/{router}/q/{router}.6h", {})

    result = shell.run("mqtool", "delayed", "now", "--where", "size >= 0")

    assert (result.code, "1 delivered" in result.stderr) == (3, True), result.stderr
    for queue in hers:
        assert f"stays in '{queue}', which says that its messages are for 'amq.topic'" in result.stderr
    assert shell.run("mqtool", "receive", "-q", "orders", "-c", "1", "--raw").stdout == "genuine\n"
    assert depth(broker, "orders") == 0


def test_delayed_now_delivers_nothing_from_a_wait_queue_with_two_dead_letter_exchanges(
    shell: Shell, broker: TestBroker
) -> None:
    """If a client declares a wait queue with the argument x-dead-letter-exchange given twice, the broker uses the
    first value, here another exchange, but RabbitMQ's management API shows only the second value, here amq.topic.
    `delayed now` leaves the messages in this wait queue, and exits with 3.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    declare(broker, "orders")
    broker.api("POST", f"bindings/{broker.vhost}/e/amq.topic/q/orders", {"routing_key": "#"})
    broker.api("PUT", f"exchanges/{broker.vhost}/mqtool.x", {"type": "fanout", "durable": True})
    wait = (("x-message-ttl", 300_000), ("x-expires", 300_000 + GRACE))
    both = Repeated(*wait, ("x-dead-letter-exchange", "mqtool.x"), ("x-dead-letter-exchange", "amq.topic"))
    with closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        channel = connection.channel()
        channel.queue_declare("mqtool.amq.topic.exchange.delay.5m", durable=True, arguments=both)
        router = Repeated(*wait, ("x-dead-letter-exchange", "mqtool.amq.topic.exchange.delay"))
        channel.queue_declare("mqtool.amq.topic.exchange.delay.6h.more", durable=True, arguments=router)
        channel.exchange_declare("mqtool.amq.topic.exchange.delay", "fanout", durable=True)
        channel.queue_bind("mqtool.amq.topic.exchange.delay.5m", "mqtool.amq.topic.exchange.delay")
    for queue in ("mqtool.amq.topic.exchange.delay.5m", "mqtool.amq.topic.exchange.delay.6h.more"):
        publish(broker, "", queue)

    result = shell.run("mqtool", "delayed", "now", "--where", "size >= 0", "--yes")

    assert (result.code, depth(broker, "orders")) == (3, 0), result.stderr
    for queue in ("mqtool.amq.topic.exchange.delay.5m", "mqtool.amq.topic.exchange.delay.6h.more"):
        assert f"stays in '{queue}', which says that its messages are for 'amq.topic'" in result.stderr


def test_delayed_now_ignores_a_queue_named_like_a_wait_queue_for_the_default_exchange(
    shell: Shell, broker: TestBroker
) -> None:
    """By its name, the queue `.exchange.delay.5m` would be a wait queue for messages to the default exchange, which
    routes each message to the queue that the routing key names. mqtool never declares a queue with this name, so
    `delayed now` ignores it.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    declare(broker, "payroll")
    declare(broker, ".exchange.delay.5m", x_message_ttl=300_000, x_expires=300_000 + GRACE)
    broker.api("PUT", f"exchanges/{broker.vhost}/public", {"type": "topic", "durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/public/q/.exchange.delay.5m", {"routing_key": "#"})
    publish(broker, "public", "payroll")

    result = shell.run("mqtool", "delayed", "now", "--where", "size >= 0", "--yes")

    assert (depth(broker, "payroll"), depth(broker, ".exchange.delay.5m")) == (0, 1), result.stderr


def test_headers_cannot_change_the_exchange_and_routing_key_that_worker_passes_to_its_program(
    shell: Shell, broker: TestBroker
) -> None:
    """`worker` passes to its program the exchange and routing key with which each message arrived, and those with which
    it was first published. On a retry, the two pairs differ. A publisher cannot change any of these four values with
    headers.
    """
    shell.run("mqtool", "exchange", "declare", "logs", "topic")
    shell.run("mqtool", "queue", "declare", "jobs")
    shell.run("mqtool", "exchange", "bind", "logs", "jobs", "#")
    forged = {"mqtool-exchange": "orders", "mqtool-routing-key": "admin.delete"}
    publish(
        broker, "logs", "user.read", "", **forged, **{"x-death": [{"queue": "jobs.wait.10ms", "reason": "expired"}]}
    )
    printed = "$MQ_EXCHANGE $MQ_ROUTING_KEY $MQ_ORIGINAL_EXCHANGE $MQ_ORIGINAL_ROUTING_KEY"
    places = "{exchange};{routing_key};{original_exchange};{original_routing_key}"
    command = f"sh -c 'echo {printed} $1; exit 1' -- '{places}'"
    options = ("-c", "3", "--retries", "2", "--backoff", "10ms")

    tried = shell.run("mqtool", "worker", "-q", "jobs", *options, "--exec", command).stdout.splitlines()

    assert tried == [
        "logs user.read logs user.read logs;user.read;logs;user.read",
        *["jobs logs user.read ;jobs;logs;user.read"] * 2,
    ]


def test_a_queue_that_mqtool_cannot_read_does_not_stop_commands_on_all_queues(shell: Shell, broker: TestBroker) -> None:
    """mqtool cannot read a queue that is exclusive to another connection, and may be unable to read a quorum queue with
    a single active consumer. `dlq ls` and the `delayed` commands warn about each queue that they cannot read, and
    process all other queues.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    single: dict[str, Any] = {"x_single_active_consumer": True}
    waits = {"x_message_ttl": 300_000, "x_expires": 300_000 + GRACE, "x_dead_letter_exchange": ""}
    declare(broker, "jobs")
    declare(broker, "jobs.dlq")
    declare(broker, "jobs.delay.5m", **waits, x_dead_letter_routing_key="jobs")
    declare(broker, "mallory.s.dlq", x_queue_type="quorum", **single)
    declare(broker, "mallory.delay.1m", **single, **waits, x_dead_letter_routing_key="mallory")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as hers:
        channel = hers.channel()
        exclusive = {name.replace("_", "-"): value for name, value in waits.items()}
        channel.queue_declare("mallory.exchange.delay.5m", exclusive=True, durable=True, arguments=exclusive)
        channel.queue_declare("mallory.dlq", exclusive=True)
        channel.basic_qos(prefetch_count=1)
        for queue in ("mallory.s.dlq", "mallory.delay.1m", "jobs.dlq", "jobs.delay.5m"):
            if queue.startswith("mallory"):
                channel.basic_consume(queue, lambda *_: None)
            for _ in range(3):
                publish(broker, "", queue)
        wait_until(lambda: depth(broker, "mallory.delay.1m") == 2, "the delivery to her consumer")
        wait_until(lambda: depth(broker, "mallory.s.dlq") == 2, "the delivery to her consumer")

        listed = shell.run("mqtool", "dlq", "ls")
        assert (listed.code, "jobs.dlq\t3\t3 unknown\n" in listed.stdout) == (3, True), listed.stderr
        assert "warning: dead letters in 'mallory.s.dlq': " in listed.stderr
        for typed, code, said in (
            ("ls", 0, "\t3\tjobs.delay.5m\n"),
            ("show", 0, "to jobs: forged\n"),
            ("cancel --where size>=0 --yes", 3, "3 cancelled"),
            ("now --where size>=0 --yes", 3, "0 delivered"),
        ):
            result = shell.run("mqtool", "delayed", *typed.split())
            assert (typed, result.code, said in result.stdout + result.stderr) == (typed, code, True), result.stderr
            assert "warning: wait queue 'mallory.exchange.delay.5m': it is exclusive" in result.stderr
            assert ("wait queue 'mallory.delay.1m': " in result.stderr) is (code == 3)


@pytest.mark.parametrize("command", ["move", "dlq redrive", "dlq redrive of an expired message", "delayed now"])
@pytest.mark.sampled(2)
def test_worker_ignores_a_forged_exchange_and_routing_key_after_another_command_moved_the_message(
    shell: Shell, broker: TestBroker, command: str
) -> None:
    """If a publisher adds headers to a message that claim a false exchange and routing key, `worker` ignores them, even
    after `move`, `dlq redrive` or `delayed now` has published the message again.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    forged: dict[str, Any] = {"mqtool-exchange": "payments", "mqtool-routing-key": "refund.approved"}
    waits = {"x_message_ttl": 300_000, "x_expires": 300_000 + GRACE, "x_dead_letter_exchange": ""}
    places = {
        "move": ("inbox", {}, "move inbox --to jobs --yes"),
        "dlq redrive": ("jobs.dlq", {}, "dlq redrive jobs --to jobs --yes"),
        "dlq redrive of an expired message": (
            "inbox",
            {"x_message_ttl": 1, "x_dead_letter_exchange": "", "x_dead_letter_routing_key": "jobs.dlq"},
            "dlq redrive jobs --to jobs --yes",
        ),
        "delayed now": (
            "jobs.delay.5m",
            {**waits, "x_dead_letter_routing_key": "jobs"},
            "delayed now --where 'size >= 0' --yes",
        ),
    }
    queue, arguments, typed = places[command]
    for name, its_arguments in {"jobs": {}, "jobs.dlq": {}, queue: arguments}.items():
        declare(broker, name, **its_arguments)
    broker.api("PUT", f"exchanges/{broker.vhost}/public", {"type": "fanout", "durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/public/q/{queue}", {})
    publish(broker, "public", "k", **forged)
    if command == "dlq redrive of an expired message":
        wait_until(lambda: depth(broker, "jobs.dlq") == 1, "the dead letter")

    assert shell.script(f"mqtool {typed}").code == 0
    worker = ("-q", "jobs", "-c", "1", "--exec", "printenv MQ_ORIGINAL_EXCHANGE MQ_ORIGINAL_ROUTING_KEY")
    lines = shell.run("mqtool", "worker", *worker).stdout.splitlines()

    assert lines == (["", "jobs"] if command == "dlq redrive of an expired message" else ["public", "k"])


@pytest.mark.parametrize("way", ["move", "retry", "dead-letter"])
def test_worker_ignores_the_exchange_and_routing_key_in_a_forged_header_of_queue_convert(
    shell: Shell, broker: TestBroker, way: str
) -> None:
    """`queue convert` adds a header to each message that it moves, and trusts this header in messages that were
    published to the converted queue through the default exchange. If a publisher forges the header, and `move`,
    `worker` or the broker's dead-lettering then publishes the message through the default exchange, `worker` still
    does not pass the forged exchange and routing key to its program.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    dying = {"x_message_ttl": 1, "x_dead_letter_exchange": "", "x_dead_letter_routing_key": "jobs"}
    declare(broker, "jobs")
    declare(broker, "inbox", **(dying if way == "dead-letter" else {}))
    broker.api("PUT", f"exchanges/{broker.vhost}/public", {"type": "fanout", "durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/public/q/{'jobs' if way == 'retry' else 'inbox'}", {})
    origin = {"mqtool-exchange": "payments", "mqtool-routing-key": "refund.approved"}
    publish(broker, "public", "k", **{"mqtool-convert": {"exchange": "", "routing_key": "jobs", **origin}})
    if way == "move":
        assert shell.run("mqtool", "move", "inbox", "--to", "jobs", "--yes").code == 0
    if way == "retry":
        shell.run("mqtool", "worker", "-q", "jobs", "-c", "1", "--retries", "1", "--backoff", "10ms", "--exec", "false")
    wait_until(lambda: depth(broker, "jobs") == 1, "the message")

    # RabbitMQ may still report that `move` has just published to the queue.
    assert shell.run("mqtool", "queue", "convert", "jobs", "--to", "quorum", "--yes", "--force").code == 0
    worker = ("-q", "jobs", "-c", "1", "--exec", "printenv MQ_ORIGINAL_EXCHANGE MQ_ORIGINAL_ROUTING_KEY")
    lines = shell.run("mqtool", "worker", *worker).stdout.splitlines()

    assert lines == (["public", "k"] if way == "retry" else ["", "jobs"])


def test_worker_ignores_a_forged_exchange_and_routing_key_of_a_message_routed_to_a_wait_queue(
    shell: Shell, broker: TestBroker
) -> None:
    """A message that `worker` will retry waits in a wait queue. If another client binds this wait queue to an exchange,
    and publishes through this exchange a message whose headers claim a false exchange and routing key, `worker` does
    not pass these to its program.
    """
    declare(broker, "jobs")
    declare(broker, "jobs.wait.1ms", x_message_ttl=1, x_dead_letter_exchange="", x_dead_letter_routing_key="jobs")
    broker.api("PUT", f"exchanges/{broker.vhost}/public", {"type": "fanout", "durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/public/q/jobs.wait.1ms", {})
    publish(broker, "public", "k", **{"mqtool-exchange": "payments", "mqtool-routing-key": "refund.approved"})

    worker = ("-q", "jobs", "-c", "1", "--exec", "printenv MQ_ORIGINAL_EXCHANGE MQ_ORIGINAL_ROUTING_KEY")
    assert shell.run("mqtool", "worker", *worker).stdout.splitlines() == ["", "jobs"]


def test_a_dead_letter_of_worker_keeps_its_original_exchange_and_key_when_it_is_moved(
    shell: Shell, broker: TestBroker
) -> None:
    """If `worker` dead-letters a message, and `move` and `dlq redrive` then move the message, `worker` still passes
    the message's original exchange and routing key to its program when it receives the message again.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for name in ("jobs", "jobs.dlq", "aside"):
        declare(broker, name)
    broker.api("PUT", f"exchanges/{broker.vhost}/logs", {"type": "fanout", "durable": True})
    broker.api("POST", f"bindings/{broker.vhost}/e/logs/q/jobs", {})
    publish(broker, "logs", "kern.error")
    shell.run("mqtool", "worker", "-q", "jobs", "-c", "2", "--retries", "1", "--backoff", "10ms", "--exec", "false")
    for typed in ("move jobs.dlq --to aside", "move aside --to jobs.dlq", "dlq redrive jobs"):
        assert shell.script(f"mqtool {typed} --yes").code == 0
    worker = ("-q", "jobs", "-c", "1", "--exec", "printenv MQ_ORIGINAL_EXCHANGE MQ_ORIGINAL_ROUTING_KEY")
    assert shell.run("mqtool", "worker", *worker).stdout.splitlines() == ["logs", "kern.error"]
