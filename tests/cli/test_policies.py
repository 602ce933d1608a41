"""`policy set`, `policy ls` and `policy clear`."""

import json
from urllib.parse import urlsplit

import pytest

from tests.brokers import TestBroker, depth
from tests.cli.shell import Shell, wait_until
from tests.cli.terminal import on_terminal

SET = ("mqtool", "policy", "set", "limits", "--pattern", "^jobs", "--definition", '{"max-length": 3}')

WARNING = (
    "warning: queue 'jobs' drops 7 of 10 messages: max-length is 3 "
    "(RabbitMQ applies it before the new overflow setting)\n"
)
AT_RESTART = "warning: queue 'jobs-full' drops 7 of 10 messages when RabbitMQ restarts: max-length is 3\n"


@pytest.fixture
def admin(shell: Shell, broker: TestBroker) -> Shell:
    """A shell with the address of the management API in its environment."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    return shell


@pytest.mark.own_vhost("policies stay in it")
@pytest.mark.parametrize("kind", [[], ["--operator"]], ids=["user", "operator"])
@pytest.mark.sampled(1)
def test_policy_commands_set_list_and_clear_a_policy(admin: Shell, kind: list[str]) -> None:
    """`policy set` creates or changes a policy, which immediately applies to matching queues. `policy ls` lists the
    policy, and `policy clear` deletes it.
    """
    admin.run("mqtool", "queue", "declare", "jobs")
    assert admin.run(*SET, "--apply-to", "queues", *kind).stderr.startswith("set ")
    assert admin.run(*SET, "--apply-to", "queues", *kind, "--priority", "7").stderr.startswith("changed ")

    (listed,) = admin.run("mqtool", "policy", "ls", "--json", *kind).stdout.splitlines()
    assert json.loads(listed) == {
        "name": "limits",
        "pattern": "^jobs",
        "apply-to": "queues",
        "priority": 7,
        "definition": {"max-length": 3},
    }
    admin.run("mqtool", "send", "-q", "jobs", "-l", stdin="1\n2\n3\n4\n5\n")
    assert admin.run("mqtool", "receive", "-q", "jobs", "--raw", "-c", "3").stdout == "3\n4\n5\n"

    assert admin.run("mqtool", "policy", "clear", "limits", *kind).code == 0
    assert admin.run("mqtool", "policy", "ls", *kind).stdout == ""
    gone = admin.run("mqtool", "policy", "clear", "limits", *kind)
    assert (gone.code, "policy 'limits' in vhost" in gone.stderr) == (69, True)
    assert admin.run("mqtool", "policy", "clear", "limits", "--if-exists", *kind).code == 0


@pytest.mark.own_vhost("policies stay in it")
def test_policy_clear_asks_for_confirmation_if_another_policy_would_then_remove_messages(
    admin: Shell, broker: TestBroker
) -> None:
    """If, after `policy clear`, another policy would apply to a queue and remove messages, `policy clear` says how
    many, and asks for confirmation. Without a terminal, the command exits with 2 and clears nothing. With --yes, it
    clears the policy without asking for confirmation.
    """
    fill(admin, "jobs")
    common = ("mqtool", "policy", "set", "--pattern", "^jobs", "--definition")
    assert admin.run(*common, '{"max-length": 20}', "--priority", "1", "limits").code == 0
    assert admin.run(*common, '{"max-length": 7}', "weaker").code == 0
    refused = admin.run("mqtool", "policy", "clear", "limits")
    assert (refused.code, depth(broker, "jobs")) == (2, 10), refused.stderr
    assert "warning: queue 'jobs' drops 3 of 10 messages: max-length is 7\n" in refused.stderr
    assert "remove 3 messages from 1 queue" in refused.stderr
    assert admin.run("mqtool", "policy", "clear", "limits", "--yes").code == 0
    wait_until(lambda: depth(broker, "jobs") == 7, "the weaker policy to apply")


def test_policy_set_prints_the_reason_if_the_broker_refuses_a_policy(admin: Shell) -> None:
    """If the broker refuses a policy, `policy set` prints the reason and exits with 2, or with 69 if the virtual host
    does not exist. No policy is created.
    """
    refused = admin.run(*SET[:-1], '{"max-lenth": 3}')
    assert refused.code == 2
    assert "max-lenth" in refused.stderr
    assert admin.run("mqtool", "policy", "ls").stdout == ""
    missing = admin.run(*SET, "--vhost", "nowhere")
    assert missing.code == 69
    assert "vhost 'nowhere'" in missing.stderr


def test_policy_set_refuses_an_invalid_pattern_before_it_counts_messages(admin: Shell) -> None:
    """If the pattern is not a valid regular expression, `policy set` exits with 2, and the error names the pattern.
    The command does not first ask about messages that the policy would remove.
    """
    admin.run("mqtool", "send", "-q", "jobs", "-l", stdin="1\n2\n")
    for pattern in ("[", "*", "(", ")"):
        refused = admin.run("mqtool", "policy", "set", "limits", "--pattern", pattern, "--definition", SET[-1])
        said = f"mqtool: {pattern!r} is not a valid regular expression: "
        assert (refused.code, refused.stderr.startswith(said)) == (2, True), refused.stderr
        assert "remove" not in refused.stderr


@pytest.mark.parametrize("text", ["[]", "{}", "max-length=3", "3"])
def test_a_policy_definition_must_be_a_json_object_that_is_not_empty(lonely_shell: Shell, text: str) -> None:
    """`policy set` exits with 2 if --definition is not a JSON object, or is an empty one. For an empty object, the
    error says that a policy needs at least one setting.
    """
    wrong = lonely_shell.run(*SET[:-1], text)
    assert wrong.code == 2
    assert ("needs at least one setting" if text == "{}" else "is not") in wrong.stderr


def fill(admin: Shell, queue: str, *settings: str) -> None:
    """Declare a queue with ten messages of two bytes. The management API of RabbitMQ counts them seconds later."""
    admin.run("mqtool", "send", "-q", queue, *settings, "-l", stdin="".join(f"{n}\n" for n in range(10, 20)))


def size_of_each(admin: Shell, queue: str) -> int:
    """Wait until the management API counts a queue's ten messages, and return the bytes of each.

    They are two, and in quorum queues of RabbitMQ 4 some more.
    """
    listing = ("mqtool", "list", "queues", "messages_ready", "message_bytes_ready", "--where", f"name='{queue}'")

    def counts() -> list[int]:
        return [int(count) for count in admin.run(*listing).stdout.split()]

    wait_until(lambda: len(found := counts()) == 2 and found[0] == 10 and found[1] > 10, f"{queue} has ten messages")
    return counts()[1] // 10


@pytest.mark.own_vhost("policies stay in it")
@pytest.mark.parametrize(
    ("definition", "warns", "asks", "left"),
    [
        ({"max-length": 7}, "drops 3 of 10 messages: max-length is 7", "remove 3 messages from 1 queue", 7),
        (
            {"max-length-bytes": 0},  # for four and a half messages
            "drops about 6 of 10 messages: max-length-bytes is ",
            "remove 6 messages from 1 queue",
            4,
        ),
        (
            {"expires": 3_600_000},
            "is deleted with 10 messages if it is not used for 1h",
            "let 1 queue with 10 messages expire",
            10,
        ),
    ],
    ids=["max-length", "max-length-bytes", "expires"],
)
@pytest.mark.parametrize("operator", [[], ["--operator"]], ids=["user", "operator"])
@pytest.mark.sampled(2)
def test_policy_set_asks_for_confirmation_if_a_policy_would_remove_messages(
    admin: Shell, broker: TestBroker, definition: dict[str, int], warns: str, asks: str, left: int, operator: list[str]
) -> None:
    """If a policy would remove messages, `policy set` names the queue, says how many messages it would lose, and asks
    for confirmation. Without a terminal, the command exits with 2 and sets nothing. With --yes, it sets the policy
    without asking for confirmation.
    """
    fill(admin, "jobs")
    if "max-length-bytes" in definition:
        size = size_of_each(admin, "jobs")
        definition = {"max-length-bytes": int(4.5 * size)}
        warns += str(int(4.5 * size))
    command = ("mqtool", "policy", "set", "limits", *operator, "--pattern", "^jobs", "--definition")
    refused = admin.run(*command, json.dumps(definition))
    assert (refused.code, depth(broker, "jobs")) == (2, 10), refused.stderr
    assert f"warning: queue 'jobs' {warns}\n" in refused.stderr
    assert f"and {asks}\nhint: pass --yes\n" in refused.stderr
    assert admin.run("mqtool", "policy", "ls", *operator).stdout == ""
    assert on_terminal(admin, *command, json.dumps(definition), keys=["n\n"], cue="[y/N]").code == 1
    assert depth(broker, "jobs") == 10
    assert admin.run(*command, json.dumps(definition), "--yes").code == 0
    wait_until(lambda: depth(broker, "jobs") == left, f"{left} messages are left")


@pytest.mark.own_vhost("policies stay in it")
def test_policy_commands_ask_before_a_stream_may_lose_its_oldest_messages(admin: Shell) -> None:
    """If a lower max-length-bytes or max-age would apply to a stream, `policy set`, `policy clear` and `definitions
    import` say that the stream may lose its oldest messages, and ask for confirmation. Without a terminal, they exit
    with 2 and change nothing unless --yes is given.
    """
    admin.run("mqtool", "queue", "declare", "xstr", "--queue-type", "stream", "--argument", "x-max-age=2D")
    fill(admin, "xstr")
    warning = "warning: queue 'xstr' is a stream and may lose its oldest messages: "
    cost = ", and remove messages from 1 queue\nhint: pass --yes\n"
    command = ("mqtool", "policy", "set", "--pattern", "^xstr$", "--definition")
    for settings, limit in (
        ('{"max-length-bytes": 1000}', "max-length-bytes is 1,000"),
        ('{"max-age": "1D"}', "max-age is 1d"),
    ):
        refused = admin.run(*command, settings, "low")
        assert (refused.code, refused.stderr.startswith(f"{warning}{limit}\n")) == (2, True), refused.stderr
        assert refused.stderr.endswith(cost)
    assert admin.run("mqtool", "policy", "ls").stdout == ""

    assert admin.run(*command, '{"max-age": "3D"}', "high", "--priority", "1").code == 0
    assert admin.run(*command, '{"max-age": "1D"}', "low").code == 0
    refused = admin.run("mqtool", "policy", "clear", "high")
    assert (refused.code, refused.stderr.startswith(f"{warning}max-age is 1d\n")) == (2, True), refused.stderr
    assert refused.stderr.endswith(cost)
    assert admin.run("mqtool", "policy", "clear", "high", "--yes").code == 0

    exported = admin.run("mqtool", "definitions", "export").stdout
    imported = admin.run("mqtool", "definitions", "import", "-", stdin=exported.replace('"1D"', '"1h"'))
    assert (imported.code, imported.stderr.startswith(f"{warning}max-age is 1h\n")) == (2, True), imported.stderr
    assert admin.run("mqtool", "definitions", "export").stdout == exported


@pytest.mark.own_vhost("policies stay in it")
def test_policy_clear_asks_before_a_streams_own_lower_limit_applies_again(admin: Shell) -> None:
    """A policy overrides a stream's own limit. If the stream's own limit is lower, `policy clear` says that the stream
    may lose its oldest messages, and asks for confirmation before it removes the policy.
    """
    own = ("--argument", "x-max-length-bytes=20000", "--argument", "x-stream-max-segment-size-bytes=5000")
    assert admin.run("mqtool", "queue", "declare", "xown", "--queue-type", "stream", *own).code == 0
    command = ("mqtool", "policy", "set", "high", "--pattern", "^xown$", "--definition")
    assert admin.run(*command, '{"max-length-bytes": 100000000}').code == 0
    refused = admin.run("mqtool", "policy", "clear", "high")
    warning = "warning: queue 'xown' is a stream and may lose its oldest messages: max-length-bytes is 20,000\n"
    assert (refused.code, refused.stderr.startswith(warning)) == (2, True), refused.stderr
    assert admin.run("mqtool", "policy", "clear", "high", "--yes").code == 0


@pytest.mark.own_vhost("policies stay in it")
def test_policy_set_asks_before_a_new_pattern_lets_another_policy_apply(admin: Shell, broker: TestBroker) -> None:
    """If `policy set` changes a policy's pattern so that it no longer matches a queue, the next matching policy applies
    to the queue. If that policy would remove messages, `policy set` says how many, and asks for confirmation.
    """
    fill(admin, "jobs")
    common = ("mqtool", "policy", "set", "--definition")
    assert admin.run(*common, '{"max-length": 20}', "high", "--priority", "1", "--pattern", "^jobs").code == 0
    assert admin.run(*common, '{"max-length": 7}', "low", "--pattern", "^jobs").code == 0
    refused = admin.run(*common, '{"max-length": 20}', "high", "--priority", "1", "--pattern", "^other")
    assert (refused.code, depth(broker, "jobs")) == (2, 10), refused.stderr
    assert "warning: queue 'jobs' drops 3 of 10 messages: max-length is 7\n" in refused.stderr


@pytest.mark.own_vhost("policies stay in it")
def test_policy_commands_ask_if_any_of_several_policies_with_the_same_priority_would_remove_messages(
    admin: Shell, broker: TestBroker
) -> None:
    """If several policies that match a queue share the highest priority, RabbitMQ may apply any of them. `policy set`
    asks for confirmation if any of these policies would remove messages. `policy clear` asks only if it clears the
    policy that RabbitMQ has applied, and another policy would then remove messages.
    """
    common = ("mqtool", "policy", "set", "--pattern", "^jobs", "--definition")
    names = {"first", "second"}
    for name in sorted(names):
        assert admin.run(*common, '{"max-length": 20}', name).code == 0
    fill(admin, "jobs")
    refused = admin.run(*common, '{"max-length": 7}', "third")
    assert (refused.code, depth(broker, "jobs")) == (2, 10), refused.stderr
    assert "warning: queue 'jobs' drops 3 of 10 messages: max-length is 7 (RabbitMQ may apply any" in refused.stderr
    assert admin.run(*common, '{"max-length": 1}', "weak", "--priority", "-1").code == 0

    def applied() -> str:
        return admin.run("mqtool", "list", "queues", "policy", "--where", "name='jobs'").stdout.strip()

    wait_until(lambda: applied() in names, "the broker to name the policy that it has applied")
    strongest = applied()
    (other,) = names - {strongest}
    assert admin.run(*common, '{"max-length": 7}', other, "--yes").code == 0
    refused = admin.run("mqtool", "policy", "clear", strongest)
    assert (refused.code, depth(broker, "jobs")) == (2, 10), refused.stderr
    assert "warning: queue 'jobs' drops 3 of 10 messages: max-length is 7\n" in refused.stderr
    assert admin.run("mqtool", "policy", "clear", other).code == 0


@pytest.mark.own_vhost("policies stay in it")
def test_policy_set_does_not_ask_if_the_policy_removes_no_messages(admin: Shell, broker: TestBroker) -> None:
    """`policy set` does not ask for confirmation if the policy removes no messages: for example, because no queue
    exceeds the new limit, or because the queue rejects new messages instead of dropping old ones.
    """
    fill(admin, "jobs")
    fill(admin, "full", "--argument", "x-overflow=reject-publish")
    fill(admin, "short", "--argument", "x-max-length=10")
    for name, pattern, more, definition in (
        ("high", "^jobs", ["--priority", "7"], {"max-length": 10}),
        ("low", "^jobs", [], {"max-length": 3}),
        ("rejects", "^full", [], {"max-length": 3}),
        ("longer", "^short", [], {"max-length": 20}),
        ("others", "^other", [], {"max-length": 3, "expires": 1000}),
        ("exchanges", ".*", ["--apply-to", "exchanges", "--priority", "-1"], {"alternate-exchange": "a"}),
        ("streams", "^jobs", ["--priority", "8"], {"max-length": 3, "max-age": "1D"}),
        ("ages", "^jobs", ["--priority", "8"], {"message-ttl": 100}),
    ):
        settings = ("--pattern", pattern, *more, "--definition", json.dumps(definition))
        done = admin.run("mqtool", "policy", "set", name, *settings)
        assert (done.code, "warning" in done.stderr) == (0, False), (name, done.stderr)
    unused = ("mqtool", "policy", "set", "unused", "--priority", "9", "--pattern", "^jobs", "--definition")
    assert admin.run(*unused, '{"expires": 3600000}', "--yes").code == 0
    assert admin.run(*unused, '{"expires": 7200000}').code == 0
    assert [depth(broker, queue) for queue in ("jobs", "full", "short")] == [10, 10, 10]


@pytest.mark.own_vhost("policies stay in it")
def test_policy_set_asks_before_it_replaces_the_overflow_reject_publish(admin: Shell, broker: TestBroker) -> None:
    """If a queue keeps more messages than its maximum length because a policy sets `overflow` to reject-publish,
    `policy set` asks for confirmation before it replaces this policy with one without the setting. The command says
    how many messages the queue would drop.
    """
    fill(admin, "jobs")
    command = ("mqtool", "policy", "set")
    full = ("full", "--pattern", "^jobs", "--definition")
    assert admin.run(*command, *full, '{"overflow": "reject-publish"}').code == 0
    limited = admin.run(*command, "--operator", *SET[3:])
    assert (limited.code, depth(broker, "jobs")) == (0, 10), limited.stderr
    refused = admin.run(*command, *full, '{"message-ttl": 3600000}')
    assert (refused.code, depth(broker, "jobs")) == (2, 10)
    assert "warning: queue 'jobs' drops 7 of 10 messages: max-length is 3\n" in refused.stderr
    assert admin.run(*command, *full, '{"message-ttl": 3600000}', "--yes").code == 0
    wait_until(lambda: depth(broker, "jobs") == 3, "3 messages are left")


@pytest.mark.own_vhost("policies stay in it")
def test_policy_set_asks_before_a_limit_and_reject_publish_apply_to_a_classic_queue(
    admin: Shell, broker: TestBroker
) -> None:
    """RabbitMQ applies a policy's limit to a classic queue before the policy's `overflow`, so the queue drops
    messages even if the policy sets reject-publish. `policy set` therefore says how many messages the queue would
    drop, and asks for confirmation. If a classic queue has reject-publish as its own argument, `policy set` says that
    this queue would drop messages when RabbitMQ restarts. A quorum queue would drop none.
    """
    fill(admin, "jobs", "--queue-type", "classic")
    fill(admin, "jobs-full", "--queue-type", "classic", "--argument", "x-overflow=reject-publish")
    fill(admin, "jobs-quorum", "--queue-type", "quorum")
    command = (*SET[:-1], '{"max-length": 3, "overflow": "reject-publish"}')
    refused = admin.run(*command)
    assert refused.code == 2, refused.stderr
    assert WARNING in refused.stderr
    assert AT_RESTART in refused.stderr
    assert (
        "and remove 7 messages from 1 queue, and remove 7 messages from 1 queue when RabbitMQ restarts\n"
        in refused.stderr
    )
    assert admin.run(*command, "--yes").code == 0
    wait_until(lambda: depth(broker, "jobs") == 3, "3 messages are left")
    assert [depth(broker, queue) for queue in ("jobs-full", "jobs-quorum")] == [10, 10]


@pytest.mark.own_vhost("policies stay in it")
def test_policy_clear_asks_before_a_limit_and_reject_publish_apply_to_a_classic_queue(
    admin: Shell, broker: TestBroker
) -> None:
    """RabbitMQ applies a policy's limit to a classic queue before the policy's `overflow`, so the queue drops
    messages even if the policy sets reject-publish. If such a policy would apply after `policy clear`, the command
    says how many messages the queue would drop, and asks for confirmation. If a classic queue has reject-publish as
    its own argument, the command says how many messages this queue would drop when RabbitMQ restarts.
    """
    fill(admin, "jobs", "--queue-type", "classic")
    fill(admin, "jobs-full", "--queue-type", "classic", "--argument", "x-overflow=reject-publish")
    common = ("mqtool", "policy", "set", "--pattern", "^jobs", "--definition")
    assert admin.run(*common, '{"message-ttl": 3600000}', "--priority", "1", "hi").code == 0
    assert admin.run(*common, '{"max-length": 3, "overflow": "reject-publish"}', "lo").code == 0
    refused = admin.run("mqtool", "policy", "clear", "hi")
    assert (refused.code, depth(broker, "jobs")) == (2, 10), refused.stderr
    assert WARNING in refused.stderr
    assert AT_RESTART in refused.stderr
    assert admin.run("mqtool", "policy", "clear", "hi", "--yes").code == 0
    wait_until(lambda: depth(broker, "jobs") == 3, "3 messages are left")
    assert depth(broker, "jobs-full") == 10


@pytest.mark.own_vhost("policies stay in it")
def test_policy_set_asks_before_a_policy_overrides_the_overflow_argument_of_a_quorum_queue(
    admin: Shell, broker: TestBroker
) -> None:
    """If a policy sets a limit and the overflow behaviour drop-head, a quorum queue drops messages even if its own
    argument x-overflow is reject-publish. `policy set` therefore says how many messages the queue would drop, and
    asks for confirmation. With the same argument, a classic queue drops messages only when RabbitMQ restarts, and
    `policy set` says how many.
    """
    for queue, kind in (("jobs", "quorum"), ("jobs-full", "classic")):
        fill(admin, queue, "--queue-type", kind, "--argument", "x-overflow=reject-publish")
    command = ("mqtool", "policy", "set", "limits", "--definition", '{"max-length": 3, "overflow": "drop-head"}')
    refused = admin.run(*command, "--pattern", ".*")
    assert (refused.code, depth(broker, "jobs")) == (2, 10), refused.stderr
    assert "warning: queue 'jobs' drops 7 of 10 messages: max-length is 3\n" in refused.stderr
    assert AT_RESTART in refused.stderr
    assert admin.run(*command, "--pattern", ".*", "--yes").code == 0
    wait_until(lambda: depth(broker, "jobs") == 3, "3 messages are left")
    assert depth(broker, "jobs-full") == 10


@pytest.mark.own_vhost("policies stay in it")
def test_policy_set_asks_about_all_queues_if_the_pattern_takes_too_long_to_match(
    admin: Shell, broker: TestBroker
) -> None:
    """If a policy's pattern could take a very long time to match, `policy set` does not test which queues match the
    pattern. It prints a warning for each queue that would lose messages if the policy applied to it, and asks for
    confirmation.
    """
    fill(admin, "jobs")
    refused = admin.run("mqtool", "policy", "set", "limits", "--pattern", "^(?!x)([a-z]+)+$", *SET[6:])
    assert (refused.code, depth(broker, "jobs")) == (2, 10)
    assert "warning: queue 'jobs' drops 7 of 10 messages: max-length is 3\n" in refused.stderr


@pytest.mark.own_vhost("policies stay in it")
def test_policy_set_says_how_many_messages_are_dead_lettered(admin: Shell, broker: TestBroker) -> None:
    """If `policy set` sets a maximum length that is smaller than the length of a queue with a dead-letter exchange, the
    command says how many messages the queue will dead-letter.
    """
    fill(admin, "jobs", "--dead-letter-exchange", "amq.fanout")
    assert "queue 'jobs' dead-letters 7 of 10 messages: max-length is 3" in admin.run(*SET).stderr


@pytest.mark.own_vhost("policies stay in it")
def test_policy_set_uses_the_counts_of_the_management_api_if_amqp_is_not_available(
    admin: Shell, broker: TestBroker
) -> None:
    """If `policy set` cannot count a queue's messages over AMQP, it uses the counts of the management API, and says
    that these may be up to 5 s old. It asks for confirmation if, by these counts, the queue would lose messages.
    """
    fill(admin, "jobs")
    where = f"queues/{broker.vhost}/jobs"
    wait_until(lambda: broker.api("GET", where).get("messages") == 10, "the count of the management API")
    nowhere = urlsplit(broker.url)._replace(netloc="guest:guest@127.0.0.1:1").geturl()
    refused = admin.run(*SET, "--url", nowhere, "--management", broker.management)
    assert (refused.code, depth(broker, "jobs")) == (2, 10), refused.stderr
    assert "message counts may be up to 5 s old" in refused.stderr
    assert "warning: queue 'jobs' drops 7 of 10 messages: max-length is 3\n" in refused.stderr
    assert "from 1 queue\nhint: pass --yes\n" in refused.stderr
