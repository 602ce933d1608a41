"""What a user has written is a claim: an administrator's command acts on none that the broker does not confirm."""

import json
import os
import re
from collections import Counter
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, given, note, settings

from tests.brokers import IN_CI, TestBroker, on_any_broker
from tests.cli.shell import Shell
from tests.mallory import OTHERS, Attack, Scene, attacks, untouched

#: In CI, and in long runs (MQTOOL_EXAMPLES), more attacks are tried. On RabbitMQ, each takes about a second.
EXAMPLES = int(os.environ.get("MQTOOL_EXAMPLES", "100" if IN_CI else "20"))


def test_an_administrators_command_changes_only_names_of_the_user_who_forged_what_it_reads(
    shell: Shell, broker: TestBroker
) -> None:
    """Mallory, who has rights on "^mallory" only, forges arguments and headers; an administrator then types a command.

    Afterwards all queues, exchanges, bindings and messages of others are as before, she could have read none of these
    messages, and nothing of hers leads to an exchange that she may not write to.
    """
    seen: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES if broker.kind == "embedded" else EXAMPLES // 4,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(attacks)
    def attack(attack: Attack) -> None:
        with Scene(broker) as scene:
            seen["attacks"] += 1
            seen["steps"] += scene.suffer(attack)
            before = scene.definitions()
            shell.environment |= {"MQTOOL_URL": scene.broker.url, "MQTOOL_MANAGEMENT_URL": broker.management}
            result = shell.script(attack.command)
            note(result.stderr)
            assert "unexpected error" not in result.stderr
            assert scene.definitions() == before
            assert scene.leads_out() == []
            if "printenv" in attack.command:
                _check_variables(attack, result.stdout)
            messages = scene.messages()
            for queue, bodies in messages.items():
                if queue in OTHERS:
                    assert (queue, bodies) == (queue, untouched(queue))
                else:
                    assert not any(b"secret" in body for body in bodies), queue

    try:
        attack()
    finally:
        print(dict(seen))


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
    return dict(found["arguments"])


def test_a_plan_on_a_queue_with_another_name_converts_nothing(shell: Shell, broker: TestBroker) -> None:
    """`queue convert --resume` warns of forged and unreadable plans, and continues the conversions of others."""
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
def test_a_resumed_conversion_asks_and_shows_the_definition(shell: Shell, broker: TestBroker) -> None:
    """Without a terminal or --yes nothing changes. Other dead-letter settings also need the queue to be named."""
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
