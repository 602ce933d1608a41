"""`doctor` never says that all is well if the user's tags or permissions hide what it has to check."""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker
from tests.cli.shell import Shell, wait_until

pytestmark = pytest.mark.own_vhost("users of other tests may have permissions in it")


@contextmanager
def user_of(
    broker: TestBroker, tags: str, *, is_permitted: bool = True, path: str | None = None
) -> Iterator[tuple[str, ...]]:
    """Options that log in a new user with these tags and, unless told otherwise, with permissions in the vhost.

    Args:
        path: that of the URL; None for the vhost of the test.
    """
    name, here = f"doctor-{uuid.uuid4().hex[:8]}", urlsplit(broker.url)
    broker.api("PUT", f"users/{name}", {"password": "x", "tags": tags})
    if is_permitted:
        broker.api("PUT", f"permissions/{broker.vhost}/{name}", {"configure": "^$", "write": "^$", "read": ".*"})
    try:
        url = f"amqp://{name}:x@{here.hostname}:{here.port}{here.path if path is None else path}"
        yield ("-u", url, "--management", broker.management, "--between", "10ms")
    finally:
        broker.api("DELETE", f"users/{name}")


NODES = "alarms and nodes were not checked: the management API at "


@pytest.mark.parametrize("tags", ["management", "policymaker"])
def test_a_nagios_check_by_a_user_who_cannot_see_alarms_is_unknown(shell: Shell, broker: TestBroker, tags: str) -> None:
    """If the user lacks the tag `monitoring`, the management API hides alarms. `doctor --format nagios` then prints
    UNKNOWN rather than OK, and says which tag the user needs. If it finds a problem that deserves a warning, it
    prints WARNING, and still says that it did not check alarms.
    """
    with user_of(broker, tags) as login:
        check = ("mqtool", "doctor", "--vhost", broker.vhost, "--format", "nagios", "--quiet", *login)
        checked = shell.run(*check)
        assert (checked.code, checked.stderr) == (3, "")
        first = checked.stdout.splitlines()[0]
        assert first.startswith(f"RABBITMQ UNKNOWN - {NODES}")
        assert "the user needs the tag 'monitoring'" in first
        assert first.endswith(" | critical=0 warning=0")
        broker.api("PUT", f"queues/{broker.vhost}/endless", {"durable": True, "arguments": {"x-queue-type": "stream"}})
        warned = shell.run(*check)
    assert warned.code == 1, warned.stdout
    first, *below = warned.stdout.splitlines()
    assert first.startswith("RABBITMQ WARNING - 1 problem at amqp://")
    assert "(not checked: alarms and nodes): queue 'endless'" in first
    assert any(line.startswith(NODES) for line in below)


def test_a_nagios_check_by_a_user_who_only_monitors_can_be_ok(shell: Shell, broker: TestBroker) -> None:
    """A user with the tag `monitoring` and permissions in the virtual host can run `doctor --format nagios`. On a
    healthy broker, the first line of the output says OK. The only other line says that permissions, which only an
    administrator can list, were not checked.
    """
    with user_of(broker, "monitoring") as login:
        checked = shell.run("mqtool", "doctor", "--vhost", broker.vhost, "--format", "nagios", *login)
    assert checked.code == 0, checked.stdout
    first, *below = checked.stdout.splitlines()
    assert first.startswith("RABBITMQ OK - no problems at amqp://")
    assert [line.partition(": ")[0] for line in below] == ["permissions were not checked"]


def test_a_nagios_check_by_a_user_who_sees_no_virtual_host_is_unknown(shell: Shell, broker: TestBroker) -> None:
    """If the user has no permissions in any virtual host, the management API shows no queues. `doctor --format
    nagios` then prints UNKNOWN rather than OK, and says that the user has no permissions in any virtual host.
    """
    with user_of(broker, "management", is_permitted=False, path="") as login:
        checked = shell.run("mqtool", "doctor", "--format", "nagios", *login)
    # Other tests may use features that RabbitMQ 4.3 calls deprecated: then there is a problem, too.
    is_fine = "deprecated" not in checked.stdout
    assert checked.code == (3 if is_fine else 1), checked.stdout
    assert checked.stdout.startswith("RABBITMQ UNKNOWN - " if is_fine else "RABBITMQ WARNING - 1 problem")
    assert "some queues were not checked: user 'doctor-" in checked.stdout
    assert "has no permissions in any virtual host" in checked.stdout


def test_a_user_with_the_tag_monitoring_needs_no_permissions_to_list_connections(
    shell: Shell, broker: TestBroker
) -> None:
    """A user with the tag `monitoring` can see the connections of all virtual hosts, so `list connections` exits with
    0 even if the URL names a virtual host in which the user has no permissions.
    """
    with user_of(broker, "monitoring", is_permitted=False) as (*login, _between, _time):
        listed = shell.run("mqtool", "list", "connections", *login)
    assert listed.code == 0, listed.stderr


def test_doctor_says_that_its_check_was_incomplete(shell: Shell, broker: TestBroker) -> None:
    """If the user lacks the tag `monitoring`, `doctor` cannot check alarms and nodes. If it finds no problem
    elsewhere, it exits with 3, and its last lines on stderr name what was not checked and the missing tag, even with
    --quiet. With --format sarif, the output also says that the run was incomplete.
    """
    with user_of(broker, "management") as login:
        look = ("mqtool", "doctor", "--vhost", broker.vhost, "--quiet", *login)
        for form in ("text", "json", "sarif"):
            looked = shell.run(*look, "--format", form)
            assert looked.code == 3, looked.stderr
            said, hint = looked.stderr.splitlines()
            assert said.startswith("mqtool: no problems found at amqp://doctor-")
            assert said.endswith("; not checked: alarms and nodes")
            assert hint.startswith("hint: the user needs the tag 'monitoring'")
            if form != "sarif":
                assert looked.stdout == ""
        (run,) = json.loads(looked.stdout)["runs"]
    assert run["results"] == []
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["message"]["text"].startswith(NODES)


def test_doctor_prints_prometheus_metrics_for_checks_that_it_could_not_run(shell: Shell, broker: TestBroker) -> None:
    """`doctor --format prometheus` prints a metric for each check that it could not run. If the user lacks the tag
    `monitoring`, the metric for the check of alarms and nodes has the label essential="true". If the user has this
    tag, no metric has this label. `doctor` exits with 0 for both users.
    """
    printed = {}
    for tags in ("management", "monitoring"):
        with user_of(broker, tags) as login:
            looked = shell.run("mqtool", "doctor", "--vhost", broker.vhost, "--format", "prometheus", *login)
        assert looked.code == 0, looked.stderr
        printed[tags] = looked.stdout
    assert 'mqtool_doctor_unchecked{check="nodes",essential="true"} 1\n' in printed["management"]
    assert 'essential="true"' not in printed["monitoring"]
    assert 'mqtool_doctor_unchecked{check="permissions",essential="false"} 1\n' in printed["monitoring"]


def test_doctor_upgrade_says_that_it_cannot_see_the_clients_of_other_users(shell: Shell, broker: TestBroker) -> None:
    """If the user lacks the tag `monitoring`, the management API shows only the user's own connections. `doctor
    --upgrade` then exits with 3, and says that other users' clients were not checked.
    """
    said = {}
    for tags in ("management", "monitoring"):
        with user_of(broker, tags) as login:
            looked = shell.run("mqtool", "doctor", "--vhost", broker.vhost, "--upgrade", "9.9", "--quiet", *login)
        said[tags] = looked.stderr
        if tags == "management":
            assert looked.code == 3, looked.stderr
    assert "not checked: other users' clients" in said["management"]
    assert "other users' clients" not in said["monitoring"]


@pytest.fixture
def alarmed(lonely_shell: Shell, tmp_path: Path) -> Iterator[Shell]:
    """A shell for a broker with a memory alarm, and with a user for each of two tags: management and monitoring."""
    with EmbeddedBroker(management_port=0) as own:
        assert own.management_url is not None
        lonely_shell.environment |= {"MQTOOL_URL": own.url, "MQTOOL_MANAGEMENT_URL": own.management_url}
        (tmp_path / "password").write_text("x")
        for tag in ("management", "monitoring"):
            password = ("--password-file", str(tmp_path / "password"))
            assert lonely_shell.run("mqtool", "user", "add", tag, "--tag", tag, *password).code == 0
            assert lonely_shell.run("mqtool", "permission", "set", tag, "--read", ".*").code == 0
        with own.faults.block_publishers():
            yield lonely_shell


def test_a_memory_alarm_never_looks_like_a_healthy_broker(alarmed: Shell) -> None:
    """During a memory alarm, `doctor --format nagios` prints CRITICAL for a user with the tag `monitoring`, and
    UNKNOWN for a user who cannot see alarms.
    """
    states = {}
    for tag in ("management", "monitoring"):
        url = alarmed.environment["MQTOOL_URL"].replace("guest:guest", f"{tag}:x")
        checked = alarmed.run("mqtool", "doctor", "--format", "nagios", "--between", "10ms", "-u", url)
        states[tag] = (checked.code, checked.stdout.partition(" - ")[0])
    assert states == {"management": (3, "RABBITMQ UNKNOWN"), "monitoring": (2, "RABBITMQ CRITICAL")}


@pytest.mark.differs_since("4.3", "the API does not tell a virtual host that the user may not see from a missing one")
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_doctor_reports_what_it_can_see_if_the_user_has_no_permissions_in_the_virtual_host(
    shell: Shell, broker: TestBroker
) -> None:
    """If the user has the tag `monitoring`, but no permissions in a virtual host, `doctor --vhost NAME` checks the
    nodes, says that the queues were not checked, and exits with 3.
    """
    with user_of(broker, "monitoring", is_permitted=False) as login:
        looked = shell.run("mqtool", "doctor", "--vhost", broker.vhost, *login)
    assert looked.code == 3, looked.stderr
    assert "not checked: some queues" in looked.stderr
    assert "not checked: alarms" not in looked.stderr


def test_a_nagios_check_names_virtual_hosts_whose_queues_the_user_cannot_see(shell: Shell, broker: TestBroker) -> None:
    """A user with the tag `monitoring` sees the names of all virtual hosts, but no queues of a virtual host in which
    the user has no permissions. `doctor --format nagios` then names a virtual host whose queues were not checked, and
    does not exit with 0. With --vhost, it checks only the given virtual host, and exits with 0 if this virtual host
    is healthy.
    """
    with user_of(broker, "monitoring") as login:
        check = ("mqtool", "doctor", "--format", "nagios", *login)
        checked = shell.run(*check)
        assert shell.run(*check, "--vhost", broker.vhost).code == 0
    assert checked.code in (1, 3), checked.stdout  # other virtual hosts may have problems
    assert re.search(r"some queues were not checked: user 'doctor-\w+' has no permissions in vhost '", checked.stdout)


@pytest.mark.differs_since("4.0", "nothing changes for messages")
def test_doctor_upgrade_says_that_it_could_not_check_messages(shell: Shell, broker: TestBroker) -> None:
    """If the user has no read permission for a queue with messages, `doctor --upgrade --peek` warns about this queue,
    says that messages were not checked, and exits with 3.
    """
    assert shell.run("mqtool", "send", "-q", "jobs", "--queue-type", "classic", "--durable", "x").code == 0
    with user_of(broker, "monitoring") as login:
        name = urlsplit(login[1]).username
        broker.api("PUT", f"permissions/{broker.vhost}/{name}", {"configure": "^$", "write": "^$", "read": "^$"})
        look = ("mqtool", "doctor", "--vhost", broker.vhost, "--upgrade", "4.0", "--peek", "1", *login)

        def has_refused() -> bool:  # once the statistics include the message
            looked = shell.run(*look)
            assert looked.code != 2, looked.stderr
            said = looked.stderr.splitlines()
            is_named = any(line.startswith("warning: messages were not checked: queue 'jobs': ") for line in said)
            return looked.code == 3 and is_named and any(line.endswith("; not checked: messages") for line in said)

        wait_until(has_refused, lambda: f"a refusal; doctor says: {shell.run(*look).stderr}")
