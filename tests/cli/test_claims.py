"""What a user has written is a claim: an administrator's command acts on none that the broker does not confirm."""

import os
import re
from collections import Counter

from hypothesis import HealthCheck, given, note, settings

from tests.brokers import IN_CI, TestBroker
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
