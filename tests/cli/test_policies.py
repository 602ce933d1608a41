"""`policy set`, `policy ls` and `policy clear`."""

import json

import pytest

from tests.brokers import TestBroker
from tests.cli.shell import Shell

SET = ("mqtool", "policy", "set", "limits", "--pattern", "^jobs", "--definition", '{"max-length": 3}')


@pytest.fixture
def admin(shell: Shell, broker: TestBroker) -> Shell:
    """A shell that knows where the management API is."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    return shell


@pytest.mark.own_vhost("policies stay in it")
@pytest.mark.parametrize("kind", [[], ["--operator"]], ids=["user", "operator"])
def test_a_policy_is_set_changed_listed_and_cleared(admin: Shell, kind: list[str]) -> None:
    """`policy set` limits the queues that its pattern matches at once and changes an existing policy; `policy ls` lists
    it, and `policy clear` removes it.
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


def test_a_refused_policy_is_reported_with_the_reason(admin: Shell) -> None:
    """If the broker refuses a policy, `policy set` prints the reason, and no policy is created."""
    refused = admin.run(*SET[:-1], '{"max-lenth": 3}')
    assert refused.code == 2
    assert "max-lenth" in refused.stderr
    assert admin.run("mqtool", "policy", "ls").stdout == ""
    missing = admin.run(*SET, "--vhost", "nowhere")
    assert missing.code == 69
    assert "vhost 'nowhere'" in missing.stderr


@pytest.mark.parametrize("text", ["[]", "{}", "max-length=3", "3"])
def test_a_policy_definition_must_be_a_json_object(lonely_shell: Shell, text: str) -> None:
    """`policy set --definition` with anything but a non-empty JSON object exits with 2."""
    wrong = lonely_shell.run(*SET[:-1], text)
    assert wrong.code == 2
    assert "is not" in wrong.stderr
