"""mqtool definitions export, diff, import."""

import json
from typing import Any

import pytest

from tests.brokers import TestBroker
from tests.cli.shell import Result, Shell

pytestmark = pytest.mark.own_vhost("what an earlier test has left would be exported")


@pytest.fixture
def admin(shell: Shell, broker: TestBroker) -> Shell:
    """A shell that knows where the management API is; a topology, and its export in `file`."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for line in (
        "exchange declare logs topic",
        "queue declare jobs --max-length 9",
        "queue declare old --queue-type classic",
        "bind logs jobs kern.* *.critical",
        "bind amq.match old -H format=pdf",
    ):
        assert shell.run("mqtool", *line.split()).code == 0
    (shell.directory / "file").write_text(shell.run("mqtool", "definitions", "export").stdout)
    return shell


def run(shell: Shell, words: str) -> Result:
    return shell.run("mqtool", "definitions", *words.split())


def actions(result: Result) -> set[tuple[str, str, str]]:
    changes: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    return {(each["action"], each["kind"], each["item"].get("name") or each["item"]["routing_key"]) for each in changes}


def test_what_was_exported_can_be_imported(admin: Shell) -> None:
    """diff shows what is missing and exits 3, --dry-run changes nothing, and after the import nothing differs."""
    assert run(admin, "diff file").code == 0
    for line in ("queue delete jobs --yes", "exchange delete logs --yes"):
        admin.run("mqtool", *line.split())
    missing = run(admin, "diff file --json")
    assert missing.code == 3
    expected = [("exchange", "logs"), ("queue", "jobs"), ("binding", "kern.*"), ("binding", "*.critical")]
    assert actions(missing) == {("add", *what) for what in expected}

    dry = run(admin, "import file --dry-run")
    assert (dry.code, dry.stderr) == (0, "would import 4 of 4 differences\n")
    assert dry.stdout == run(admin, "diff file").stdout
    assert "+ binding logs ── 'kern.*' ──> jobs\n" in dry.stdout

    assert run(admin, "import file").code == 0
    assert run(admin, "diff file").code == 0
    assert run(admin, "import file").stderr == "imported 0 of 0 differences\n"


def test_what_an_import_cannot_change(admin: Shell) -> None:
    """A queue with other settings stays, with its messages, and so does what only the broker has; the rest comes."""
    file = admin.directory / "file"
    contents = json.loads(file.read_text())
    jobs, old = {"name": "jobs", "arguments": {"x-queue-type": "quorum"}}, {"name": "old"}  # a classic one, as it is
    contents["queues"] = [{"name": "new"}, jobs, old]
    admin.run("mqtool", "queue", "declare", "more")
    file.write_text(json.dumps(contents))
    different = run(admin, "diff file")
    assert different.code == 3
    assert "! queue jobs  x-max-length 9 -> none  an import cannot change it\n" in different.stdout
    assert "- queue more  only on the broker\n" in different.stdout

    imported = run(admin, "import file")
    assert imported.code == 3
    assert "mqtool: 1 not imported\n" in imported.stderr
    assert actions(run(admin, "diff file --json")) == {("conflict", "queue", "jobs"), ("extra", "queue", "more")}


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_the_format_is_rabbitmqs_own(admin: Shell, broker: TestBroker) -> None:
    """It takes ours; we take its file of one virtual host, and that of the whole broker; policies are changed."""
    policy = ("mqtool", "policy", "set", "p", "--pattern", "^jobs", "--definition")
    admin.run(*policy, '{"max-length": 5}')
    for name, path in (("one", f"definitions/{broker.vhost}"), ("all", "definitions")):
        (admin.directory / name).write_text(json.dumps(broker.api("GET", path)))
        assert run(admin, f"diff {name}").code == 0
    assert "not looked at in all: users" in run(admin, "diff all").stderr

    admin.run(*policy, '{"max-length": 4}')
    assert "~ policy p  max-length 4 -> 5\n" in run(admin, "diff one").stdout
    ours = run(admin, "export").stdout
    assert run(admin, "import one").code == 0
    assert "max-length 5 -> 4" in admin.run("mqtool", "definitions", "diff", "-", stdin=ours).stdout
    broker.api("POST", f"definitions/{broker.vhost}", json.loads(ours))
    assert admin.run("mqtool", "definitions", "diff", "-", stdin=ours).code == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "- is not JSON"),
        ("[]", "- has no definitions"),
        pytest.param('{"queues": ' + "[" * 100_000, "- is not JSON", id="nested without end"),
        ('{"rows": []}', "- has no definitions"),
        ('{"queues": 3}', '"queues" is not a list'),
        ('{"queues": [{"name": "a"}, {}]}', 'number 2 of "queues" has no name'),
        ('{"bindings": [{"source": "a"}]}', 'number 1 of "bindings" has no source and destination'),
        ('{"queues": [{"name": "a", "vhost": "b"}]}', "- has nothing for vhost '/', only for 'b'"),
    ],
)
def test_a_bad_file(lonely_shell: Shell, text: str, says: str) -> None:
    """One sentence, before any broker is asked."""
    wrong = lonely_shell.run("mqtool", "definitions", "diff", "-", stdin=text)
    assert wrong.code == 65
    assert says in wrong.stderr
    assert lonely_shell.run("mqtool", "definitions", "import", "nowhere").code == 2
