"""`tap --firehose`: messages that no binding could show. Afterwards, tracing on the broker is as it was before."""

import json
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from mqtool.amqp import Connection
from mqtool.message import Message
from mqtool.taps import FIREHOSE_EXCHANGE
from mqtool.topology import Exchange, Queue
from tests.brokers import TestBroker, on_any_broker
from tests.cli.shell import Running, Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.cli.test_tap import publish


@pytest.fixture(autouse=True)
def api(no_other_firehose: None, shell: Shell, broker: TestBroker) -> Iterator[None]:
    """Name the management API and give the test its own state directory; other tests get the virtual host with tracing
    off.
    """
    shell.environment |= {"MQTOOL_MANAGEMENT_URL": broker.management, "XDG_STATE_HOME": str(shell.directory)}
    yield
    broker.api("PUT", f"vhosts/{broker.vhost}", {"tracing": False})


#: Headers of messages that somebody else publishes to a tap's queue: like those of a copy, and with wrong types.
FORGED: list[dict[str, Any]] = [
    {"exchange_name": "payroll", "routing_keys": ["pay"], "properties": {"user_id": "boss"}},
    *({"properties": wrong} for wrong in (5, {"headers": 7}, ["a"])),
    *({"routing_keys": wrong} for wrong in (5, {"a": 1})),
    {"routed_queues": 5},
    {},
]


def is_on(broker: TestBroker) -> bool:
    found: Any = broker.api("GET", f"vhosts/{broker.vhost}")
    return bool(found["tracing"])


def tapping(shell: Shell, *words: str) -> Running:
    return shell.start("mqtool", "tap", "--firehose", *words).wait_until_ready()


def test_tap_with_the_firehose_shows_every_published_message(shell: Shell, broker: TestBroker) -> None:
    """`tap --all --firehose --json` prints each message as it was published. `send --json` can publish the same
    message again from the printed line.
    """
    tap = tapping(shell, "--all", "--json", "-c", "2")
    sent = {
        "exchange": "amq.headers", "routing_key": "report", "headers": {"n": 1, "at": {"$timestamp": 1_700_000_000}},
        "properties": {"message_id": "m", "priority": 3, "delivery_mode": 2, "timestamp": 4_000_000_000}, "body": "ü",
    }  # fmt: skip
    publish(broker, "", "nowhere")
    shell.run("mqtool", "send", "--json", stdin=json.dumps(sent))
    assert tap.wait().code == 0
    first, second = map(json.loads, tap.stdout.splitlines())
    assert (first["exchange"], first["routing_key"], first["body"]) == ("", "nowhere", "nowhere")
    assert {name: second[name] for name in sent} == sent
    assert not is_on(broker)

    again = tapping(shell, "amq.headers", "--json", "-c", "1")
    assert shell.run("mqtool", "send", "--json", stdin=tap.stdout.splitlines()[1]).code == 0
    again.wait()
    assert {**json.loads(again.stdout), "timestamp": ""} == {**second, "timestamp": ""}


def test_two_taps_share_the_firehose(shell: Shell, broker: TestBroker, connection: Connection) -> None:
    """While one `tap --firehose` shows the messages that are published to the default exchange, another one can show
    the messages that a queue delivers. The firehose is switched off only when both have ended.
    """
    connection.channel().declare(Queue("jobs", durable=True))
    default, queue = tapping(shell, "", "-c", "1"), tapping(shell, "-q", "jobs", "-F", "%q %r %R %b", "-c", "1")
    publish(broker, "amq.topic", "jobs")
    publish(broker, "", "jobs")
    default.wait()
    assert default.stdout == " [x] (default) jobs:jobs\n"
    assert is_on(broker)
    shell.run("mqtool", "receive", "-q", "jobs", "--queue-type", "classic", "-c", "1")
    queue.wait()
    assert queue.stdout == "jobs jobs 0 jobs\n"
    assert not is_on(broker)


def test_tap_warns_on_a_terminal_that_the_firehose_of_rabbitmq_4_disturbs_amqp_1_0_publishers(
    shell: Shell, broker: TestBroker
) -> None:
    """On a terminal, `tap --firehose` warns that AMQP 1.0 publishers may fail meanwhile, if the broker is RabbitMQ 4.
    Otherwise, it prints no such warning.
    """
    words = ("mqtool", "tap", "--all", "--firehose", "--timeout", "100ms")
    is_affected = broker.kind == "rabbitmq" and broker.differs_since("4.0", "AMQP 1.0 without a plugin")
    warning = "while the firehose is on, AMQP 1.0 publishers fail"
    assert (warning in on_terminal(shell, *words, columns=200).stdout) == is_affected
    assert warning not in shell.run(*words).stderr


@pytest.mark.once_on_rabbitmq
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.sampled(1)
def test_tap_switches_the_firehose_off_when_it_ends(shell: Shell, broker: TestBroker, end: signal.Signals) -> None:
    """After SIGINT, SIGTERM or SIGHUP, `tap --all --firehose` exits with 0 and switches the firehose off again."""
    tap = tapping(shell, "--all")
    assert is_on(broker)
    tap.process.send_signal(end)
    assert tap.wait().code == 0
    assert not is_on(broker)
    said = tap.stderr.splitlines()[1:]
    assert [line for line in said if "this tap was too slow" not in line] == []  # it was, if the machine stood still


def test_tap_leaves_the_firehose_on_if_it_was_on_before(shell: Shell, broker: TestBroker) -> None:
    """If another client had already switched the firehose on, `tap --all --firehose` leaves it on, and prints a note
    that it was on before. `tap --firehose-off` switches the firehose off.
    """
    broker.api("PUT", f"vhosts/{broker.vhost}", {"tracing": True})
    tap = tapping(shell, "--all").interrupt()
    assert tap.wait().code == 0
    assert "was on before, and stays on" in tap.stderr
    assert is_on(broker)
    assert shell.run("mqtool", "tap", "--firehose-off").code == 0
    assert not is_on(broker)


def test_the_next_tap_reports_that_a_killed_tap_left_the_firehose_on(shell: Shell, broker: TestBroker) -> None:
    """If `tap --firehose` is killed with kill -9, the firehose stays on. `doctor` and the next `tap` without --firehose
    report this, and `tap --firehose-off` switches the firehose off.
    """
    tap = tapping(shell, "--all")
    tap.process.send_signal(signal.SIGKILL)
    tap.wait()
    assert is_on(broker)
    said = shell.run("mqtool", "tap", "amq.fanout", "--idle-timeout", "10ms").stderr
    assert "a tap was killed, and left the firehose of" in said
    assert "guest:guest" not in said
    assert is_on(broker)
    found = shell.run("mqtool", "doctor", "--vhost", broker.vhost, "--between", "10ms")
    assert f"vhost '{broker.vhost}'" in found.stdout
    assert "mqtool tap --firehose-off" in found.stdout
    assert shell.run("mqtool", "tap", "--firehose-off").code == 0
    assert not is_on(broker)
    assert "a tap was killed" not in shell.run("mqtool", "tap", "amq.fanout", "--idle-timeout", "10ms").stderr


def test_the_next_tap_switches_off_the_firehose_of_a_killed_tap(shell: Shell, broker: TestBroker) -> None:
    """If a `tap --firehose` that was killed has left the firehose on, the next `tap --firehose` switches the firehose
    off when it ends normally.
    """
    killed = tapping(shell, "--all")
    killed.process.send_signal(signal.SIGKILL)
    killed.wait()
    assert is_on(broker)
    assert tapping(shell, "--all").interrupt().wait().code == 0
    assert not is_on(broker)


def test_tap_with_the_firehose_ignores_messages_that_others_send_to_its_queue(
    shell: Shell, broker: TestBroker, connection: Connection
) -> None:
    """`tap --firehose` does not print messages that other clients publish or dead-letter to the queue of `tap`. It
    prints one notice about them, and continues to print the messages that the firehose copies.
    """
    tap = tapping(shell, "--all", "--json", "--where", "exchange!=''", "-c", "1")
    found: Any = broker.api("GET", f"queues/{broker.vhost}?columns=name")
    [queue] = (each["name"] for each in found if each["name"].startswith("amq.gen-"))
    channel = connection.channel()
    key = "publish.payroll"
    dead: dict[str, Any] = {"x-message-ttl": 0, "x-dead-letter-exchange": FIREHOSE_EXCHANGE}
    channel.declare(Queue("dead", durable=True, arguments={**dead, "x-dead-letter-routing-key": key}))
    channel.bind(channel.declare(Queue("seen", durable=True)), Exchange(FIREHOSE_EXCHANGE), key)
    forged = [Message(b"forged", name, "", {"headers": each}) for name in (queue, "dead") for each in FORGED]
    list(channel.publish(forged))
    wait_until(lambda: channel.depth_of("seen") == len(FORGED), "the dead letters")
    publish(broker, "amq.fanout", "real")
    assert tap.wait().code == 0, tap.stderr
    assert json.loads(tap.stdout)["body"] == "real"
    assert tap.stderr.count("not copies of the firehose") == 1


@pytest.mark.own_vhost("the settings of a virtual host stay when it is emptied")
def test_the_firehose_leaves_the_settings_of_the_virtual_host_alone(shell: Shell, broker: TestBroker) -> None:
    """When `tap --firehose` or `tap --firehose-off` switches the firehose on or off, the virtual host keeps its
    description, its tags and its default queue type.
    """
    about = {"description": "prod orders", "tags": ["production", "a,b"], "default_queue_type": "quorum"}
    broker.api("PUT", f"vhosts/{broker.vhost}", about)

    def settings() -> Any:
        found: Any = broker.api("GET", f"vhosts/{broker.vhost}")
        return {name: found[name] for name in ("metadata", *about)}

    before = settings()
    assert before["description"] == "prod orders"
    tap = tapping(shell, "--all")
    assert is_on(broker)
    assert settings() == before
    assert tap.interrupt().wait().code == 0
    assert settings() == before
    assert shell.run("mqtool", "tap", "--firehose-off").code == 0
    assert settings() == before


@on_any_broker
def test_tap_uses_the_firehose_only_with_its_option(shell: Shell) -> None:
    """`tap --all`, and `tap` with the default exchange, exit with 2 unless --firehose is given, because the firehose
    slows the broker down. `tap --firehose-off` exits with 2 if an exchange or a queue is also given.
    """
    for words, said in (
        (["--all"], "only the broker's firehose shows --all"),
        ([""], "only the broker's firehose shows the default exchange"),
        (["--firehose"], "name either an exchange or a queue"),
        (["amq.topic", "kern.*", "--firehose"], "--firehose cannot select messages by key"),
        (["--firehose-off", "tx"], "--firehose-off taps nothing"),
        (["--firehose-off", "-q", "jobs"], "--firehose-off taps nothing"),
    ):
        refused = shell.run("mqtool", "tap", *words)
        assert refused.code == 2
        assert said in refused.stderr


def test_tap_names_the_permission_that_is_missing(shell: Shell, broker: TestBroker) -> None:
    """If the user has no permission to declare the queue that `tap` uses, or to read from the tapped exchange, `tap`
    exits with 77 and names the missing permission. If the user is not an administrator, `tap --firehose` exits with
    77.
    """
    user = f"tapper-{uuid.uuid4().hex[:8]}"
    broker.api("PUT", f"users/{user}", {"password": "secret", "tags": "management"})
    try:
        for rights, needed in (
            ({"configure": "", "write": "", "read": ".*"}, "queues named amq.gen-…"),
            ({"configure": "^amq.gen", "write": "^amq.gen", "read": "^amq.gen"}, "to read from exchange 'amq.topic'"),
        ):
            broker.api("PUT", f"permissions/{broker.vhost}/{user}", rights)
            (shell.directory / "password").write_text("secret")
            login = ("--user", user, "--password-file", "password")
            refused = shell.run("mqtool", "tap", "amq.topic", "#", *login)
            assert refused.code == 77
            assert needed in refused.stderr
        broker.api(
            "PUT", f"permissions/{broker.vhost}/{user}", {"configure": "^amq.gen", "write": "^amq.gen", "read": ".*"}
        )
        assert shell.run("mqtool", "tap", "amq.topic", *login, "--idle-timeout", "10ms").code == 0
        refused = shell.run("mqtool", "tap", "--all", "--firehose", *login)
        assert refused.code == 77
        assert "administrator" in refused.stderr
        assert not is_on(broker)
    finally:
        broker.api("DELETE", f"users/{user}")
