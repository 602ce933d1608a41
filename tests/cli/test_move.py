"""`move`: messages reach another queue or broker unchanged and at least once."""

import shlex
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from mqtool.amqp import Connection, Receiving, parse_addresses
from mqtool.codecs.field_tables import CLIENT
from mqtool.message import Delivery, Message
from mqtool.topology import Exchange, Queue
from tests.brokers import TestBroker, depth, on_any_broker
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.proxy import Proxy


@pytest.fixture
def other(embedded: TestBroker) -> Iterator[TestBroker]:
    """A second broker."""
    fresh = embedded.with_fresh_vhost(f"other-{time.monotonic_ns()}")
    yield fresh
    fresh.drop_vhost()


def fill(broker: TestBroker, queue: Queue, messages: list[Message], *more: Queue) -> None:
    """Declare queues, and publish the messages to the first one."""
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        for each in (queue, *more):
            channel.declare(each)
        assert len(list(channel.publish(messages, routing_key=queue.name, persistent=True))) == len(messages)


def numbered(count: int) -> list[Message]:
    return [Message(str(number).encode(), message_id=f"m-{number}") for number in range(count)]


def taken(broker: TestBroker, queue: str, expected: int = 0) -> list[Delivery]:
    """Empty a queue and return its messages; requeued ones may arrive a moment later."""
    wait_until(lambda: depth(broker, queue) >= expected, f"{expected} messages in {queue}")
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        count = channel.depth_of(queue)
        return list(channel.consume(Queue(queue), Receiving(count=count))) if count else []


def bodies(deliveries: list[Delivery]) -> list[int]:
    return [int(delivery.body) for delivery in deliveries]


def test_move_keeps_bodies_properties_and_headers(shell: Shell, broker: TestBroker, other: TestBroker) -> None:
    """`move` to another broker keeps the messages' order, bodies, properties and headers. It drops only the header
    x-delivery-count, which counts deliveries by the old broker, and the header CC, which would make the new broker
    route copies to other queues.
    """
    death = [{"queue": "gone", "reason": "expired", "count": 1}]
    headers: dict[str, Any] = {"tenant": "acme", "n": 3, "x-death": death, "x-delivery-count": 4, "CC": ["b"]}
    properties = {
        "headers": headers,
        "delivery_mode": 1,
        "priority": 3,
        "expiration": "600000",
        "correlation_id": "c",
        "content_type": "application/json",
        "user_id": "guest",
    }
    first = Message(b"\xff\x00", "a", "", properties, "m-1")
    fill(broker, Queue("a"), [first, Message(b"second", "a")])
    fill(other, Queue("a"), [], Queue("b"))

    moved = shell.run("mqtool", "move", "a", "--to", "a", "--to-url", other.url)

    assert (moved.code, moved.stdout) == (0, "")
    assert moved.stderr.startswith("2 moved from a to a at ")
    one, two = taken(other, "a")
    assert (one.body, two.body, one.properties["message_id"]) == (b"\xff\x00", b"second", "m-1")
    assert {name: one.properties[name] for name in properties if name != "headers"} == {
        name: value for name, value in properties.items() if name != "headers"
    }
    assert one.headers == {"tenant": "acme", "n": 3, "x-death": death}
    assert depth(broker, "a") == depth(other, "b") == 0


@pytest.mark.parametrize(
    ("queue_type", "limit", "count"), [("classic", 0, 450), ("quorum", 0, 5_000), ("quorum", 9, 450)]
)
@pytest.mark.sampled(2)
def test_move_where_keeps_the_order_of_messages_that_do_not_match(
    shell: Shell, broker: TestBroker, queue_type: str, limit: int, count: int
) -> None:
    """`move --where` moves only matching messages. All others, even thousands of them, stay in the queue in their
    original order.
    """
    arguments: dict[str, Any] = {"x-queue-type": queue_type} | ({"x-delivery-limit": limit} if limit else {})
    fill(broker, Queue("a", durable=True, arguments=arguments), numbered(count), Queue("b", durable=True))

    moved = shell.run("mqtool", "move", "a", "--to", "b", "--where", "body~'[36]$'")

    assert moved.stderr == f"{count // 5:,} moved from a to b, {count // 5 * 4:,} left\n"
    assert bodies(taken(broker, "b")) == [number for number in range(count) if number % 10 in (3, 6)]
    left = bodies(taken(broker, "a", count // 5 * 4))
    assert left == [number for number in range(count) if number % 10 not in (3, 6)]


@pytest.mark.parametrize("end", ["cut", "ctrl-c", "count"])
def test_a_move_that_ends_early_leaves_the_other_messages_in_order(
    shell: Shell, broker: TestBroker, other: TestBroker, end: str
) -> None:
    """If `move` from a quorum queue to a queue on another broker ends early, because of --count or Ctrl-C or because
    the connection to that broker is cut, the messages that were not moved stay in the source queue in their original
    order.
    """
    fill(broker, Queue("a", durable=True, arguments={"x-queue-type": "quorum"}), numbered(600))
    fill(other, Queue("b"), [])
    with Proxy(other.port) as proxy:
        url = other.url.replace(f":{other.port}", f":{proxy.port}")
        words = ("-c", "150") if end == "count" else ("--rate", "50/s")
        moving = shell.start("mqtool", "move", "a", "--to", "b", "--to-url", url, *words)
        if end != "count":
            wait_until(lambda: depth(other, "b") > 20, "some moved messages")
        if end == "cut":
            proxy.cut()
        ended = (moving.interrupt() if end == "ctrl-c" else moving).wait()
    assert ended.code == {"cut": 69, "ctrl-c": 130, "count": 0}[end], ended.stderr
    left = bodies(taken(broker, "a", 600 - int(ended.stderr.split()[0])))
    assert left == [*range(left[0], 600)]


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_move_where_with_a_count_keeps_the_order_of_the_other_messages(
    shell: Shell, broker: TestBroker, queue_type: str
) -> None:
    """`move --where … -c 1` ends after it has moved one message. The others stay in the queue in their original order,
    even if an earlier `move` has requeued them.
    """
    source = Queue("a", durable=True, arguments={"x-queue-type": queue_type})
    fill(broker, source, numbered(450), Queue("b", durable=True))
    assert shell.run("mqtool", "move", "a", "--to", "b", "--where", "size=0").stderr.startswith("0 moved")

    moved = shell.run("mqtool", "move", "a", "--to", "b", "--where", "body='150'", "-c", "1")

    assert (moved.code, moved.stderr) == (0, "1 moved from a to b; stopped after looking at 151 messages\n")
    assert bodies(taken(broker, "a", 449)) == [number for number in range(450) if number != 150]


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_move_stops_before_messages_exceed_the_delivery_limit(shell: Shell, broker: TestBroker) -> None:
    """If another delivery would make a quorum queue drop messages because of its delivery limit, `move --where` exits
    with 1. However often the command is repeated, all messages stay in the queue.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    limited = Queue("a", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 6})
    fill(broker, limited, numbered(3), Queue("b", durable=True))
    moves = [shell.run("mqtool", "move", "a", "--to", "b", "--where", "size=0") for _ in range(10)]
    # From RabbitMQ 4.3 on, what a client requeues with basic.nack does not count.
    stopped = 5 if broker.differs_since("4.3", "only the check of the first message counts") else 3
    assert [move.code for move in moves[: stopped + 1]] == [0] * stopped + [1]
    assert (
        "drops it if it is requeued once more" in moves[stopped].stderr
        or "would have dropped it" in moves[stopped].stderr
    )
    assert sorted(bodies(taken(broker, "a", 3))) == [0, 1, 2]
    assert depth(broker, "b") == 0


@pytest.mark.until("4.3", "neither a nack nor a look counts towards the limit")
def test_move_knows_the_delivery_limit_of_a_policy_for_a_queue_that_was_just_declared(
    shell: Shell, broker: TestBroker
) -> None:
    """If a policy sets the delivery limit of a quorum queue, `move --where` exits with 1 before a message exceeds the
    limit, even right after the queue was declared, when the management API does not yet show the queue's policy.
    """
    limit = {"pattern": "^a$", "definition": {"delivery-limit": 1}, "apply-to": "queues"}
    broker.api("PUT", f"policies/{broker.vhost}/limit", limit)
    fill(broker, Queue("a", durable=True, arguments={"x-queue-type": "quorum"}), numbered(3), Queue("b", durable=True))
    for _ in range(2):
        refused = shell.run("mqtool", "move", "a", "--to", "b", "--where", "body=9")
        assert (refused.code, "requeued" in refused.stderr) == (1, True), refused.stderr
    assert depth(broker, "a") == 3


def test_move_with_a_count_moves_exactly_that_many_messages(shell: Shell, broker: TestBroker) -> None:
    """`move -c 2` moves the first two messages of a queue. The others stay in the queue in order, and are not marked as
    redelivered.
    """
    fill(broker, Queue("a"), numbered(5), Queue("b"))
    assert shell.run("mqtool", "move", "a", "--to", "b", "-c", "2").stderr == "2 moved from a to b\n"
    assert bodies(taken(broker, "b")) == [0, 1]
    left = taken(broker, "a", 3)
    assert bodies(left) == [2, 3, 4]
    assert not any(delivery.redelivered for delivery in left)


@pytest.mark.parametrize("options", ["-c 1", "--where body='0'"])
def test_move_leaves_the_other_messages_in_an_auto_delete_queue(shell: Shell, broker: TestBroker, options: str) -> None:
    """If `move` moves only some messages of an auto-delete queue, the broker does not delete the queue: the others stay
    there, in order.
    """
    fill(broker, Queue("a", durable=True, auto_delete=True), numbered(5), Queue("b", durable=True))
    assert shell.run("mqtool", "move", "a", "--to", "b", *options.split()).code == 0
    assert bodies(taken(broker, "b")) == [0]
    assert bodies(taken(broker, "a", 4)) == [1, 2, 3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_stopped_or_killed_move_from_an_auto_delete_queue_loses_no_message(
    shell: Shell, broker: TestBroker, number: signal.Signals
) -> None:
    """If Ctrl-C or SIGKILL ends `move` while it moves the messages of an auto-delete queue, the broker does not
    delete the queue, and no message is lost.
    """
    fill(broker, Queue("a", durable=True, auto_delete=True), numbered(300), Queue("b", durable=True))
    running = shell.start("mqtool", "move", "a", "--to", "b", "--rate", "10/s", "-v").wait_for_stderr("Moved")
    running.process.send_signal(number)
    assert running.wait().code == 128 + number
    moved = bodies(taken(broker, "b", 1))
    assert len(moved) < 300
    left = bodies(taken(broker, "a", 300 - len(moved)))
    assert sorted({*moved, *left}) == list(range(300))


def test_move_refuses_a_stream_before_the_broker_has_counted_its_messages(shell: Shell, broker: TestBroker) -> None:
    """If the source queue is a stream, `move` exits with 69, and the error says that the queue is a stream. It does
    so even right after messages were published, when the broker still reports that the stream is empty.
    """
    stream = Queue("a", durable=True, arguments={"x-queue-type": "stream"})
    fill(broker, stream, numbered(20), Queue("b", durable=True))
    refused = shell.run("mqtool", "move", "a", "--to", "b")
    assert (refused.code, "'a' is a stream" in refused.stderr) == (69, True), refused.stderr
    assert depth(broker, "b") == 0


def test_a_killed_move_loses_no_message(shell: Shell, broker: TestBroker, other: TestBroker) -> None:
    """If `move` is killed three times and then run again, every message arrives. Altogether, at most 300 messages
    arrive twice: 100 for each kill.
    """
    count, kills = 3_000, 3
    fill(broker, Queue("a", durable=True), numbered(count))
    fill(other, Queue("b", durable=True), [])
    move = ("mqtool", "move", "a", "--to", "b", "--to-url", other.url)
    for _ in range(kills):
        before = depth(other, "b")
        killed = shell.run_until("Moved", signal.SIGKILL, shlex.join([*move, "-v"]))
        assert killed.code == 128 + signal.SIGKILL
        assert depth(other, "b") > before
        wait_until(lambda: depth(broker, "a") + depth(other, "b") >= count, "all messages in one of the two queues")
        assert depth(broker, "a") > 0, "it was killed after the last message"

    assert shell.run(*move).code == 0

    came = bodies(taken(other, "b"))
    assert depth(broker, "a") == 0
    assert set(came) == set(range(count))
    assert len(came) - count <= 100 * kills


def test_move_leaves_messages_that_the_target_queue_rejects(shell: Shell, broker: TestBroker) -> None:
    """If the target queue becomes full and rejects messages, `move` exits with 3, or with 75 if no message could be
    moved. The messages that were not moved stay in the source queue.
    """
    full = Queue("b", arguments={"x-max-length": 3, "x-overflow": "reject-publish"})
    fill(broker, Queue("a"), numbered(300), full)

    some = shell.run("mqtool", "move", "a", "--to", "b")

    assert some.code == 3
    first, error, hint = some.stderr.splitlines()
    moved = depth(broker, "b")  # a queue may take a few more than its length before it refuses
    assert first == f"{moved} moved from a to b"
    assert error.startswith("mqtool: 'b' did not take message m-")
    assert error.endswith(": the broker refused it")
    assert hint == "hint: it is still in a"
    assert shell.run("mqtool", "move", "a", "--to", "b").code == 75
    assert sorted(bodies(taken(broker, "a", 300 - moved) + taken(broker, "b"))) == list(range(300))


def test_the_hint_about_a_missing_target_queue_declares_the_queue_on_the_target_broker(
    shell: Shell, broker: TestBroker, other: TestBroker
) -> None:
    """If the target queue of `move --to-url` does not exist, the hint is a command that declares this queue on the
    broker given with --to-url.
    """
    fill(broker, Queue("a"), numbered(1))
    move = ("mqtool", "move", "a", "--to", "new", "--to-url", other.url)
    hint = shell.run(*move).stderr.partition("to declare it there: ")[2]
    assert shell.run(*shlex.split(hint)).code == 0, hint
    assert shell.run(*move).code == 0
    assert len(taken(other, "new")) == 1


def test_move_checks_the_target_queue_before_it_consumes(shell: Shell, broker: TestBroker) -> None:
    """If the target queue does not exist, `move` exits with 69. If the target queue is the source queue, `move` exits
    with 2. In both cases, `move` consumes no message, so none is marked as redelivered.
    """
    fill(broker, Queue("a"), numbered(1))
    missing = shell.run("mqtool", "move", "a", "--to", "b")
    assert missing.code == 69
    assert "queue 'b' does not exist" in missing.stderr
    assert "hint: nothing was moved" in missing.stderr
    exchange = shell.run("mqtool", "move", "a", "--to", "amq.topic")
    assert exchange.code == 69
    assert exchange.stderr.endswith("nothing was moved; --to takes the name of a queue, not of an exchange\n")
    for more in ((), ("--to-url", broker.url)):
        same = shell.run("mqtool", "move", "a", "--to", "a", *more)
        assert (same.code, same.stderr.splitlines()[0]) == (2, "mqtool: --to names the same queue, 'a'")
    assert not taken(broker, "a")[0].redelivered


def same_at_another_address(broker: TestBroker) -> str:
    """The URL of a broker, with its IP address written as one number, without the user's name."""
    parts = urlsplit(broker.url)
    host = int(ip_address(socket.gethostbyname(parts.hostname or "localhost")))
    return f"{host}:{parts.port or 5672}{parts.path}"


def test_move_refuses_the_source_queue_at_another_address(shell: Shell, broker: TestBroker, other: TestBroker) -> None:
    """If --to-url reaches the source queue's own broker under another address, and --to names the source queue,
    `move` exits with 2. It moves nothing, and leaves no temporary queue on the broker. If --to-url leads to another
    broker, the target queue can have the same name as the source queue.
    """
    fill(broker, Queue("a"), numbered(3))
    same = shell.run("mqtool", "move", "a", "--to", "a", "--to-url", f"amqp://{same_at_another_address(broker)}")
    assert (same.code, same.stderr.splitlines()[0]) == (2, "mqtool: --to names the same queue, 'a'")
    queues: Any = broker.api("GET", f"queues/{broker.vhost}")
    assert [queue["name"] for queue in queues] == ["a"]
    assert [delivery.redelivered for delivery in taken(broker, "a")] == [False] * 3
    fill(other, Queue("a"), numbered(1))
    fill(broker, Queue("a"), numbered(1))
    assert shell.run("mqtool", "move", "a", "--to", "a", "--to-url", other.url).code == 0
    assert depth(other, "a") == 2


def test_a_move_by_a_user_without_configure_permission_moves_each_message_once(
    shell: Shell, broker: TestBroker
) -> None:
    """If the user has no configure permission, `move` cannot find out whether a queue of the same name at another
    address is the source queue itself. Even if it is, `move` moves each message only once, and ends.
    """
    user = f"mover-{uuid.uuid4().hex[:8]}"
    fill(broker, Queue("a"), numbered(300))
    broker.api("PUT", f"users/{user}", {"password": "secret", "tags": ""})
    try:
        broker.api("PUT", f"permissions/{broker.vhost}/{user}", {"configure": "", "write": ".*", "read": ".*"})
        login, here = f"amqp://{user}:secret@", urlsplit(broker.url)
        to = ("--to", "a", "--to-url", login + same_at_another_address(broker))
        moved = shell.run("mqtool", "move", "a", *to, "--url", f"{login}{here.hostname}:{here.port}{here.path}")
        assert (moved.code, moved.stderr.startswith("300 moved from a to a at ")) == (0, True), moved.stderr
    finally:
        broker.api("DELETE", f"users/{user}")
    assert bodies(taken(broker, "a", 300)) == [*range(300)]


@on_any_broker
def test_a_move_that_is_stopped_says_how_many_messages_it_has_looked_at(shell: Shell, broker: TestBroker) -> None:
    """After Ctrl-C, `move --where` says how many messages it has moved and how many it has looked at. It does not say
    how many are left in the queue, because it has not looked at all of them.
    """
    fill(broker, Queue("a"), numbered(4), Queue("b"))
    waiting = shell.start("mqtool", "move", "a", "--to", "b", "--where", "body='3'", "--idle-timeout", "1h", "-v")
    ended = waiting.wait_for_stderr("Moved").interrupt().wait()
    assert ended.code == 130
    assert ended.stderr.splitlines()[-1] == "1 moved from a to b; stopped after looking at 4 messages"


def test_a_move_ends_although_the_target_queue_dead_letters_back_to_the_source_queue(
    shell: Shell, broker: TestBroker
) -> None:
    """If the target queue immediately dead-letters each message back to the source queue, `move` ends once it has
    moved the messages that were in the source queue when it started. No message is lost.
    """
    back = {"x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "a"}
    fill(broker, Queue("a"), numbered(3), Queue("b", arguments=back))
    assert shell.run("mqtool", "move", "a", "--to", "b").stderr == "3 moved from a to b\n"
    assert sorted(bodies(taken(broker, "a", 3))) == [0, 1, 2]


@on_any_broker
def test_move_waits_for_more_messages_with_idle_timeout(shell: Shell, broker: TestBroker) -> None:
    """`move --idle-timeout DURATION` also moves messages that arrive while it runs, and ends once none has arrived
    for DURATION. Without this option, `move` of an empty queue ends immediately.
    """
    fill(broker, Queue("a"), [], Queue("b"))
    assert shell.run("mqtool", "move", "a", "--to", "b").stderr == "0 moved from a to b\n"
    running = shell.start("mqtool", "move", "a", "--to", "b", "--idle-timeout", "5s", "-v")
    for expected in range(1, 3):
        fill(broker, Queue("a"), numbered(1))
        wait_until(lambda expected=expected: running.stderr.count("Moved") == expected, "the message")
    assert running.wait().stderr.endswith("2 moved from a to b\n")


@on_any_broker
def test_move_keeps_to_its_rate_and_stops_at_ctrl_c(shell: Shell, broker: TestBroker) -> None:
    """`move --rate` moves messages no faster than the rate. After Ctrl-C, it exits with 130, and messages that were not
    moved stay in the queue.
    """
    fill(broker, Queue("a"), numbered(500), Queue("b"))
    started = time.monotonic()
    assert shell.run("mqtool", "move", "a", "--to", "b", "--rate", "50/s", "-c", "20").code == 0
    assert time.monotonic() - started > 0.3
    slow = shell.start("mqtool", "move", "a", "--to", "b", "--rate", "1/m", "-v").wait_for_stderr("Moved").interrupt()
    ended = slow.wait()
    assert (ended.code, ended.stderr.splitlines()[-1]) == (130, "1 moved from a to b")
    assert bodies(taken(broker, "b") + taken(broker, "a", 479)) == list(range(500))


@on_any_broker
def test_a_move_whose_connection_is_closed_can_be_run_again(shell: Shell, broker: TestBroker) -> None:
    """If the broker closes the connection of `move`, the command exits with 69, and the hint says to run `move` again.
    The second run moves the remaining messages. No message is lost, but some may arrive twice.
    """
    fill(broker, Queue("a", durable=True), numbered(300), Queue("b", durable=True))
    running = shell.start("mqtool", "move", "a", "--to", "b", "--rate", "20/s", "-v").wait_for_stderr("Moved")
    connections: Any = broker.api("GET", f"vhosts/{broker.vhost}/connections")
    for connection in connections:
        broker.api("DELETE", f"connections/{quote(connection['name'], safe='')}")
    ended = running.wait()
    assert ended.code == 69
    assert "hint: run it again to move the rest" in ended.stderr
    assert shell.run("mqtool", "move", "a", "--to", "b").code == 0
    assert set(bodies(taken(broker, "b"))) == set(range(300))


@on_any_broker
def test_move_to_a_protected_context_without_a_terminal_needs_the_option_confirm(
    shell: Shell, broker: TestBroker, other: TestBroker
) -> None:
    """If --to-context names a protected context, and there is no terminal on which to ask for confirmation, `move`
    exits with 2 unless --confirm gives the context's name.
    """
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    assert shell.run("mqtool", "context", "add", "prod", "--url", other.url, "--protected").code == 0
    fill(broker, Queue("a"), numbered(1))
    fill(other, Queue("a"), [])
    move = ("mqtool", "move", "a", "--to", "a", "--to-context", "prod")
    refused = shell.run(*move)
    assert refused.code == 2
    assert "in the protected context 'prod'" in refused.stderr
    assert shell.run(*move, "--confirm", "prod").code == 0
    assert depth(other, "a") == 1
    both = shell.run(*move, "--to-url", other.url)
    assert (both.code, both.stderr.splitlines()[0]) == (2, "mqtool: --to-url and --to-context cannot be combined")


@on_any_broker
def test_move_asks_if_the_target_is_a_protected_context_of_the_source_queues_own_broker(
    shell: Shell, broker: TestBroker
) -> None:
    """If --to-context names a protected context, `move` asks for confirmation, even if the context has the URL of the
    source queue's own broker. If --context names the same context, `move` asks only once, and a single --confirm with
    the context's name is enough.
    """
    shell.environment["XDG_CONFIG_HOME"] = str(shell.directory)
    assert shell.run("mqtool", "context", "add", "prod", "--url", broker.url, "--protected").code == 0
    fill(broker, Queue("a"), numbered(3), Queue("b"))
    move = ("mqtool", "move", "a", "--to", "b", "--to-context", "prod", "-c", "1")
    refused = shell.run(*move)
    assert (refused.code, "in the protected context 'prod'" in refused.stderr) == (2, True), refused.stderr
    assert depth(broker, "a") == 3
    assert shell.run(*move, "--confirm", "prod").code == 0
    both = (*move, "--context", "prod")
    assert shell.run(*both, "--confirm", "prod").code == 0
    asked = on_terminal(shell, *both, keys=["y\n"], cue="[y/N]")
    assert (asked.code, asked.stdout.count("[y/N]")) == (0, 1), asked.stdout
    assert depth(broker, "b") == 3


@on_any_broker
def test_move_publishes_as_the_user_in_to_url_on_the_source_queues_own_broker(shell: Shell, broker: TestBroker) -> None:
    """If --to-url leads to the source queue's own broker, `move` publishes as the user in --to-url or, if it names no
    user, as the user who consumes from the source queue. If the password in --to-url is wrong, `move` exits with 77
    and moves nothing.
    """
    fill(broker, Queue("a"), numbered(3), Queue("b"))
    here, run = urlsplit(broker.url), uuid.uuid4().hex[:8]
    users = {f"{action}r-{run}": action for action in ("read", "write")}
    reader, writer = (f"amqp://{name}:secret@{here.hostname}:{here.port}{here.path}" for name in users)
    move = ("mqtool", "move", "a", "--url", reader)
    try:
        for name, action in users.items():
            broker.api("PUT", f"users/{name}", {"password": "secret", "tags": ""})
            allowed = {"configure": "", "read": "", "write": "", action: ".*"}
            broker.api("PUT", f"permissions/{broker.vhost}/{name}", allowed)
        wrong = shell.run("mqtool", "move", "a", "--to", "b", "--to-url", writer.replace("secret", "wrong"))
        assert wrong.code == 77, wrong.stderr
        same = shell.run(*move, "--to", "a", "--to-url", writer)
        assert (same.code, same.stderr.splitlines()[0]) == (2, "mqtool: --to names the same queue, 'a'")
        plain = shell.run(*move, "--to", "b", "--to-url", f"amqp://{here.hostname}:{here.port}{here.path}")
        assert (plain.code, f"refused for user 'readr-{run}'" in plain.stderr) == (77, True), plain.stderr
        assert (depth(broker, "a"), depth(broker, "b")) == (3, 0)
        moved = shell.run(*move, "--to", "b", "--to-url", writer)
        assert (moved.code, moved.stderr.startswith("3 moved from a to b at ")) == (0, True), moved.stderr
    finally:
        for name in users:
            broker.api("DELETE", f"users/{name}")
    assert bodies(taken(broker, "b", 3)) == [0, 1, 2]


#: The size of a message's largest headers and properties, in bytes, without those of AMQP's header frame.
ROOM = 131_072 - 8 - 14


def in_a_full_frame(headers: dict[str, Any]) -> dict[str, Any]:
    """Add a header that fills the header frame."""
    return {**headers, "padding": "x" * (ROOM - len(CLIENT.encode_table({**headers, "padding": ""})))}


def test_move_removes_forged_headers_if_their_correct_values_do_not_fit_into_a_frame(
    shell: Shell, broker: TestBroker
) -> None:
    """If a publisher has set false values in the headers mqtool-exchange and mqtool-routing-key, `move` corrects
    them. If the message's headers with the correct values would no longer fit into a frame, `move` removes these two
    headers instead. All messages are moved.
    """
    forged = in_a_full_frame({"mqtool-exchange": "", "mqtool-routing-key": ""})
    fill(broker, Queue("a"), [Message(b"0")], Queue("b"))
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.bind(Queue("a"), Exchange("amq.topic"), "#")
        published = [Message(b"1", "a.long.key", "amq.topic", {"headers": forged}), Message(b"2", "a", "")]
        assert len(list(channel.publish(published))) == 2
    moved = shell.run("mqtool", "move", "a", "--to", "b")
    assert moved.code == 0, moved.stderr
    found = taken(broker, "b", 3)
    assert bodies(found) == [0, 1, 2]
    assert found[1].headers == {"padding": forged["padding"]}


def test_move_skips_a_message_that_no_client_can_publish(shell: Shell, broker: TestBroker) -> None:
    """The broker's own headers can make the headers of a dead letter larger than a frame, so that no client can
    publish the dead letter again. `move` names such a dead letter, leaves it in the queue, moves all other messages,
    and exits with 3. The hint is a command that consumes the dead letter.
    """
    to_a = {"x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "a"}
    fill(broker, Queue("a"), [Message(b"0")], Queue("b"), Queue("source", arguments=to_a))
    with Connection(parse_addresses(broker.url)) as connection:
        full = {"headers": {"padding": in_a_full_frame({})["padding"][:-7]}}  # of the message id
        assert len(list(connection.channel().publish([Message(b"x", "source", "", full, "m-full")]))) == 1
        wait_until(lambda: depth(broker, "a") == 2, "the dead letter")
        assert len(list(connection.channel().publish([Message(b"1", "a", "")]))) == 1
    chosen = ("--where", "not message_id = none")
    for counts, more in (("2 moved from a to b, 1 left", ()), ("0 moved from a to b, 1 left", chosen)):
        moved = shell.run("mqtool", "move", "a", "--to", "b", *more)
        assert moved.code == 3
        warning, told, error, hint = moved.stderr.splitlines()
        assert warning.startswith("warning: message m-full stays in 'a': the headers and properties are 131,")
        assert (told, error) == (counts, "mqtool: 1 message could not be moved and is still in a")
        wait_until(lambda: depth(broker, "a") == 1, "the dead letter")
        if more:
            fill(broker, Queue("a"), numbered(1))
            assert shell.run(*shlex.split(hint.partition(": ")[2].partition(": ")[2])).stdout.count("m-full") == 1
    assert bodies(taken(broker, "b", 2)) == [0, 1]
    assert bodies(taken(broker, "a", 1)) == [0]
