"""`definitions export`, `diff`, `import` and `convert`, and what `doctor` finds in a definitions file."""

import base64
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pika
import pytest

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import LIKE, TestBroker, depth, large, on_any_broker
from tests.cli.shell import Result, Shell, wait_until
from tests.cli.terminal import on_terminal
from tests.cli.test_policies import fill
from tests.cli.test_wrong_answers import NOWHERE, serving

pytestmark = pytest.mark.own_vhost("what an earlier test has left would be exported")


@pytest.fixture
def admin(shell: Shell, broker: TestBroker) -> Shell:
    """A shell that knows where the management API is; a topology, and its export in `file`."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    for line in (
        "exchange declare logs topic",
        "queue declare jobs --max-length 9",
        "queue declare old --queue-type classic",
        "exchange bind logs jobs kern.* *.critical",
        "exchange bind amq.match old -H format=pdf",
    ):
        assert shell.run("mqtool", *line.split()).code == 0
    (shell.directory / "file").write_text(shell.run("mqtool", "definitions", "export").stdout)
    return shell


def run(shell: Shell, words: str) -> Result:
    return shell.run("mqtool", "definitions", *words.split())


def actions(result: Result) -> set[tuple[str, str, str]]:
    changes: list[dict[str, Any]] = [json.loads(line) for line in result.stdout.splitlines()]
    return {(each["action"], each["kind"], each["item"].get("name") or each["item"]["routing_key"]) for each in changes}


def test_exported_definitions_can_be_imported(admin: Shell) -> None:
    """If queues and exchanges have been deleted since their definitions were exported, `definitions diff` lists the
    missing definitions, and exits with 3. `definitions import --dry-run` prints the same list, and changes nothing.
    `definitions import` adds the missing definitions and no others. An export has internal exchanges, too, which
    RabbitMQ 4.3 leaves out of its own exports.
    """
    admin.run("mqtool", "exchange", "declare", "inner", "fanout", "--internal")
    (admin.directory / "file").write_text(run(admin, "export").stdout)
    assert run(admin, "diff file").code == 0
    for line in ("queue delete jobs --yes", "exchange delete logs --yes", "exchange delete inner --yes"):
        admin.run("mqtool", *line.split())
    missing = run(admin, "diff file --json")
    assert missing.code == 3
    expected = [("exchange", "inner"), ("exchange", "logs"), ("queue", "jobs")]
    expected += [("binding", "kern.*"), ("binding", "*.critical")]
    assert actions(missing) == {("add", *what) for what in expected}

    dry = run(admin, "import file --dry-run")
    assert (dry.code, dry.stderr) == (0, "would import 5 of 5 differences\n")
    assert dry.stdout == run(admin, "diff file").stdout
    assert "+ binding logs ── 'kern.*' ──> jobs\n" in dry.stdout

    assert run(admin, "import file").code == 0
    assert run(admin, "diff file").code == 0
    assert run(admin, "import file").stderr == "imported 0 of 0 differences\n"


def test_definitions_import_does_not_change_queues_that_differ(admin: Shell) -> None:
    """If a queue's arguments on the broker differ from those in the definitions file, `definitions import` leaves this
    queue unchanged, imports everything else, and exits with 3.
    """
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
    assert "mqtool: 1 not imported\nhint: 'mqtool queue convert' changes the type" in imported.stderr
    assert actions(run(admin, "diff file --json")) == {("conflict", "queue", "jobs"), ("extra", "queue", "more")}


def test_definitions_with_an_empty_list_as_arguments_are_imported(admin: Shell) -> None:
    """In a definitions file, old versions of RabbitMQ write `"arguments": []` for objects without arguments.
    `definitions diff` does not report this as a difference, and `definitions import` creates such an object if it has
    been deleted from the broker.
    """
    file = admin.directory / "file"
    contents = json.loads(file.read_text())
    for item in [each for kind in ("exchanges", "queues", "bindings") for each in contents[kind]]:
        item["arguments"] = item["arguments"] or []
    assert json.dumps(contents).count('"arguments": []') >= 3
    file.write_text(json.dumps(contents))
    assert run(admin, "diff file").stdout == ""
    admin.run("mqtool", "exchange", "delete", "logs", "--yes")
    imported = run(admin, "import file")
    assert (imported.code, imported.stderr) == (0, "imported 3 of 3 differences\n")
    assert run(admin, "diff file").code == 0


@pytest.mark.parametrize(
    ("limits", "warns", "asks", "left"),
    [
        ({"max-length": 7}, "drops 3 of 10 messages: max-length is 7", "remove 3 messages from 1 queue", 7),
        (
            {"expires": 3_600_000},
            "is deleted with 10 messages if it is not used for 1h",
            "let 1 queue with 10 messages expire",
            10,
        ),
    ],
    ids=["max-length", "expires"],
)
def test_definitions_import_asks_for_confirmation_if_a_policy_would_remove_messages(
    admin: Shell, broker: TestBroker, limits: dict[str, int], warns: str, asks: str, left: int
) -> None:
    """If a policy in the file would remove messages, `definitions import` names the queue and the number of messages,
    and asks for confirmation. Without a terminal, the command exits with 2 and imports nothing. With --dry-run, it only
    says what would be lost. With --yes, it does not ask.
    """
    fill(admin, "payroll")
    policy = {"name": "z", "pattern": "^payroll$", "apply-to": "queues", "priority": 0, "definition": limits}
    (admin.directory / "file").write_text(json.dumps({"policies": [policy], "queues": [{"name": "new"}]}))
    warning = f"warning: queue 'payroll' {warns}\n"
    dry = run(admin, "import file --dry-run")
    assert (dry.code, dry.stderr) == (0, f"{warning}would import 2 of 2 differences, and {asks}\n")
    refused = run(admin, "import file")
    said = f"{warning}mqtool: this would import 2 differences, and {asks}\nhint: pass --yes\n"
    assert (refused.code, refused.stderr, refused.stdout) == (2, said, "")
    assert on_terminal(admin, "mqtool", "definitions", "import", "file", keys=["n\n"], cue="[y/N]").code == 1
    assert (run(admin, "diff file").stdout.count("+ "), depth(broker, "payroll")) == (2, 10)
    assert run(admin, "import file --yes").code == 0
    wait_until(lambda: depth(broker, "payroll") == left, f"{left} messages are left")
    again = run(admin, "import file")
    assert (again.code, again.stderr) == (0, "imported 0 of 0 differences\n")


def test_definitions_import_prints_the_reason_for_a_refusal_on_one_line(admin: Shell) -> None:
    """If the broker gives a reason of several lines for refusing a policy, `definitions import` prints the reason on
    one warning line, without a literal backslash-n.
    """
    file = admin.directory / "file"
    contents = json.loads(file.read_text())
    contents["policies"] = [{"name": "wrong", "pattern": "", "definition": {"max-length": -1}, "apply-to": "queues"}]
    file.write_text(json.dumps(contents))
    imported = run(admin, "import file")
    warnings = [line for line in imported.stderr.splitlines() if "policy wrong" in line]
    assert (imported.code, len(warnings)) == (3, 1), imported.stderr
    assert "the broker refuses: Validation failed: " in warnings[0]
    assert "\\n" not in imported.stderr


def test_definitions_import_lists_only_what_was_imported(admin: Shell) -> None:
    """If the broker refuses an exchange, `definitions import` warns about the exchange. It also warns about each
    binding that needs this exchange or a queue that does not exist. It lists the definitions that it has imported, and
    exits with 3.
    """
    binding = {"routing_key": "", "arguments": {}}
    wanted = {
        "exchanges": [{"name": "later", "type": "x-unknown"}],
        "queues": [{"name": "new"}],
        "bindings": [
            {"source": "later", "destination": "new", "destination_type": "queue", **binding},
            {"source": "logs", "destination": "none", "destination_type": "queue", **binding},
            {"source": "logs", "destination": "later", "destination_type": "exchange", **binding},
        ],
    }
    (admin.directory / "file").write_text(json.dumps(wanted))
    imported = run(admin, "import file")
    assert (imported.code, imported.stdout) == (3, "+ queue new\n")
    warnings = [line for line in imported.stderr.splitlines() if line.startswith("warning: ")]
    assert warnings[0].startswith("warning: exchange later: ")
    assert [re.sub(" in vhost .*", "", line) for line in warnings[1:]] == [
        "warning: binding later ── '' ──> new: exchange 'later' does not exist",
        "warning: binding logs ── '' ──> none: queue 'none' does not exist",
        "warning: binding logs ── '' ──> exchange later: exchange 'later' does not exist",
    ]
    assert imported.stderr.endswith("imported 1 of 5 differences\nmqtool: 4 not imported\n")


#: As RabbitMQ 3.10's `rabbitmqctl export_definitions` writes them: a server-named queue, bound to an exchange.
SERVER_NAMED = {
    "rabbit_version": "3.10.8",
    "vhosts": [{"name": "/"}],
    "queues": [
        {"vhost": "/", "name": name, "durable": True, "auto_delete": False, "arguments": {}}
        for name in ("amq.gen-7Z8", "jobs")
    ],
    "bindings": [
        {
            **{"vhost": "/", "source": "amq.fanout", "destination": name, "destination_type": "queue"},
            **{"routing_key": "", "arguments": {}},
        }
        for name in ("amq.gen-7Z8", "jobs")
    ],
}


@pytest.mark.parametrize("like", ["4.0", "4.3", "4.4"])
def test_definitions_convert_leaves_out_the_bindings_of_server_named_queues(lonely_shell: Shell, like: str) -> None:
    """`definitions convert` leaves out the bindings of queues named `amq.…`, and prints a note about each of them. An
    embedded broker that behaves like RabbitMQ 4.0 or 4.3 refuses the original file because of these bindings, and
    accepts the converted one.
    """
    (lonely_shell.directory / "old.json").write_text(json.dumps(SERVER_NAMED))
    converted = run(lonely_shell, f"convert old.json --to {like}")
    assert "binding from 'amq.fanout' to 'amq.gen-7Z8' is left out\n" in converted.stderr
    with EmbeddedBroker(management_port=0, like=like) as broker:
        if like != "4.4":
            with pytest.raises(OSError, match="HTTP Error 400"):
                api(broker, "definitions", SERVER_NAMED)
        api(broker, "definitions", json.loads(converted.stdout))
        has = api(broker, "definitions")
    assert by_name(has["queues"]).keys() == {"jobs"}
    assert [each["destination"] for each in has["bindings"]] == ["jobs"]


@pytest.mark.parametrize(
    ("version", "found"), [("3.13", set()), ("4.3", {"reserved-queue"}), ("4.4", set())], ids=["3.13", "4.3", "4.4"]
)
def test_doctor_reports_bindings_that_make_rabbitmq_refuse_a_file(
    lonely_shell: Shell, version: str, found: set[str]
) -> None:
    """`doctor FILE --upgrade 4.3` reports a binding of a queue named `amq.…`, because RabbitMQ 4.3 refuses a file with
    such a binding. With 3.13 or 4.4, which accept the file, `doctor` does not report it.
    """
    (lonely_shell.directory / "old.json").write_text(json.dumps(SERVER_NAMED))
    told = lonely_shell.run("mqtool", "doctor", "old.json", "--upgrade", version, "--json")
    assert {json.loads(line)["check"] for line in told.stdout.splitlines()} == found


@large
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_mqtool_and_rabbitmq_read_each_others_definitions_files(admin: Shell, broker: TestBroker) -> None:
    """RabbitMQ imports a file that `definitions export` wrote, and mqtool reads what RabbitMQ exports for one virtual
    host or for the whole broker.
    """
    policy = ("mqtool", "policy", "set", "p", "--pattern", "^jobs", "--definition")
    admin.run(*policy, '{"max-length": 5}')
    for name, path in (("one", f"definitions/{broker.vhost}"), ("all", "definitions")):
        (admin.directory / name).write_text(json.dumps(broker.api("GET", path)))
        assert run(admin, f"diff {name}").code == 0
    assert "ignored in all: users" in run(admin, "diff all").stderr

    admin.run(*policy, '{"max-length": 4}')
    assert "~ policy p  max-length 4 -> 5\n" in run(admin, "diff one").stdout
    ours = run(admin, "export").stdout
    assert run(admin, "import one").code == 0
    assert "max-length 5 -> 4" in admin.run("mqtool", "definitions", "diff", "-", stdin=ours).stdout
    broker.api("POST", f"definitions/{broker.vhost}", json.loads(ours))
    assert admin.run("mqtool", "definitions", "diff", "-", stdin=ours).code == 0


def nested(depth: int) -> str:
    """Return JSON: lists in lists."""
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "- is not JSON"),
        ("[]", "- contains no definitions"),
        pytest.param('{"queues": ' + "[" * 100_000, "- is not JSON", id="nested without end"),
        pytest.param(f'{{"queues": {nested(100_000)}}}', "nested too deeply\nhint: an obj", id="nested 100,000 deep"),
        pytest.param(
            f'{{"queues": [{{"name": "a"}}, {{"name": "b", "arguments": {{"x": {nested(600)}}}}}]}}',
            'number 2 of "queues" is nested too deeply\nhint: an object can have up to 200 levels\n',
            id="nested 600 deep",
        ),
        ('{"rows": []}', "- contains no definitions"),
        ('{"queues": 3}', '"queues" is not a list'),
        ('{"queues": [{"name": "a"}, {}]}', 'number 2 of "queues" has no name'),
        ('{"queues": [{"name": "a", "arguments": 3}]}', '"arguments" of number 1 of "queues" is not an object'),
        (
            '{"queues": [], "policies": [{"name": "a", "priority": "1"}]}',
            '"priority" of number 1 of "policies" is not a',
        ),
        ('{"bindings": [{"source": "a"}]}', 'number 1 of "bindings" has no source and destination'),
        (
            '{"bindings": [{"source": "a", "destination": "b", "destination_type": "thing"}]}',
            '"destination_type" of number 1 of "bindings" is \'thing\'\nhint: it must be "queue" or "exchange"\n',
        ),
        ('{"queues": [{"name": "a", "vhost": "b"}]}', "- has nothing for vhost '/', only for 'b'"),
    ],
)
@pytest.mark.sampled(3)
def test_an_invalid_definitions_file_is_refused_without_a_broker(lonely_shell: Shell, text: str, says: str) -> None:
    """If a definitions file is invalid, `definitions diff` says what is wrong and exits with 65, without contacting a
    broker.
    """
    wrong = lonely_shell.run("mqtool", "definitions", "diff", "-", stdin=text)
    assert wrong.code == 65
    assert says in wrong.stderr
    assert lonely_shell.run("mqtool", "definitions", "import", "nowhere").code == 2


@pytest.mark.parametrize("command", ["definitions convert - --to 4.3", "doctor - --upgrade 4.3"])
def test_a_file_whose_arguments_are_nested_too_deeply_is_refused_in_one_sentence(
    lonely_shell: Shell, command: str
) -> None:
    """If arguments in a definitions file are nested deeper than 200 levels, `definitions convert` and `doctor
    --upgrade` print one sentence that names the object, and exit with 65. They read a file whose arguments are nested
    150 levels deep.
    """
    file = '{"queues": [{"name": "a", "vhost": "/", "durable": true, "arguments": {"x": %s}}]}'
    wrong = lonely_shell.run("mqtool", *command.split(), stdin=file % nested(600))
    assert wrong.code == 65
    assert wrong.stderr == (
        'mqtool: -: number 1 of "queues" is nested too deeply\nhint: an object can have up to 200 levels\n'
    )
    assert lonely_shell.run("mqtool", *command.split(), stdin=file % nested(150)).code in (0, 3)


def test_definitions_export_warns_if_it_leaves_out_deeply_nested_arguments(lonely_shell: Shell) -> None:
    """If arguments of objects on the broker are nested too deeply, `definitions export` leaves out the inner levels
    and exits with 0. Its warning names one of these objects and says how many more there are.
    """
    queue = {"vhost": "/", "type": "classic", "durable": True, "auto_delete": False, "exclusive": False}
    queues = [
        {**queue, "name": name, "arguments": {"x": json.loads(nested(depth))}}
        for name, depth in (("a", 100), ("b", 20), ("c", 100))
    ]
    export = ("mqtool", "definitions", "export", "-u", NOWHERE, "--management")
    with serving({"queues": queues}) as (url, _):
        cut = lonely_shell.run(*export, url)
    assert (cut.code, cut.stderr) == (0, "warning: left out what is nested too deeply in queue 'a' and 1 more\n")
    assert [each["name"] for each in json.loads(cut.stdout)["queues"]] == ["a", "b", "c"]
    with serving({"queues": queues[1:2]}) as (url, _):
        assert lonely_shell.run(*export, url).stderr == ""


#: Definitions of RabbitMQ 3.10 that 4.3 refuses, or loses when it imports them.
OLD: dict[str, Any] = {
    "rabbit_version": "3.10.8",
    "vhosts": [
        {"name": "shop", "metadata": {"description": "", "tags": []}},
        {"name": "new", "metadata": {"default_queue_type": "quorum"}},
    ],
    "users": [{"name": "app", "password_hash": "+toohsi5jWTTWYDyG3XaTpFUfjo0nRjP/2bBpjLeSmA4hcO/", "tags": ["odd"]}],
    "permissions": [{"user": "app", "vhost": "shop", "configure": ".*", "write": ".*", "read": ".*"}],
    "policies": [
        {
            "name": "ha",
            "pattern": "^ha\\.",
            "priority": 1,
            "definition": {"ha-mode": "all", "ha-sync-mode": "automatic"},
        },
        {"name": "ttl", "pattern": ".*", "priority": 0, "definition": {"message-ttl": 3_600_000}},
        {"name": "ha-some", "pattern": "^x", "priority": 0, "definition": {"ha-mode": "all"}},
        {"name": "near", "pattern": "^p", "priority": 2, "definition": {"queue-master-locator": "min-masters"}},
    ],
    "queues": [
        {"name": "ha.orders", "arguments": {"x-queue-mode": "lazy"}},
        {"name": "ha.urgent", "arguments": {"x-max-priority": 5}},
        {"name": "events", "durable": False},
        {"name": "placed", "arguments": {"x-queue-master-locator": "client-local", "x-queue-version": 1}},
        {"name": "old", "vhost": "new", "type": "classic"},
    ],
    "exchanges": [
        {"name": "orders", "type": "topic"},
        {"name": "later", "type": "x-delayed-message", "arguments": {"x-delayed-type": "direct"}},
    ],
    "bindings": [
        {"source": "orders", "destination": "events", "routing_key": "#.#.a.#"},
        {"source": "orders", "destination": "events", "routing_key": "#.a.#.b.#"},
        {"source": "later", "destination": "ha.urgent", "routing_key": "remind"},
    ],
}
for _section in ("policies", "queues", "exchanges", "bindings"):
    for _item in OLD[_section]:
        _item.setdefault("vhost", "shop")
        _item.setdefault("destination_type", "queue") if _section == "bindings" else None
        _item.setdefault("durable", True) if _section in ("queues", "exchanges") else None
        _item.setdefault("arguments", {}) if _section != "policies" else _item.setdefault("apply-to", "queues")


def by_name(section: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in section}


@pytest.fixture
def old(lonely_shell: Shell) -> Shell:
    (lonely_shell.directory / "old.json").write_text(json.dumps(OLD, indent=1))
    return lonely_shell


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("^(a+)+$", False), ("^(?!b)(a+)b$", True), ("^(?!b)(a+)+b$", None), ("(", None)],
    ids=["exponential", "lookahead", "exponential with lookahead", "invalid"],
)
def test_an_expensive_or_invalid_policy_pattern_does_not_stop_definitions_convert(
    lonely_shell: Shell, pattern: str, matches: bool | None
) -> None:
    """`definitions convert` does not hang on a policy pattern with exponential backtracking. If the command cannot
    evaluate a pattern, it assumes that the policy applies to no queue, and prints a warning.
    """
    document = {
        "vhosts": [{"name": "/"}],
        "policies": [
            {"vhost": "/", "name": "mirrors", "pattern": pattern, "priority": 1, "definition": {"ha-mode": "all"}},
            {"vhost": "/", "name": "ttl", "pattern": ".*", "priority": 0, "definition": {"message-ttl": 1000}},
        ],
        "queues": [{"vhost": "/", "name": "a" * 100 + "b", "durable": True, "arguments": {}}],
    }
    (lonely_shell.directory / "old.json").write_text(json.dumps(document))
    converted = run(lonely_shell, "convert old.json --to 4.3 --mirrored classic")
    # Without the first policy, the queue would get the second one.
    assert ("mirrors" in by_name(json.loads(converted.stdout)["policies"])) is (matches is True)
    assumed = "warning: policy 'mirrors' has a pattern that mqtool cannot match, and is assumed to apply to no queue"
    assert (assumed in converted.stderr) is (matches is None)


def test_definitions_convert_changes_what_rabbitmq_4_3_refuses(old: Shell) -> None:
    """`definitions convert --to 4.3` changes or leaves out the definitions that RabbitMQ 4.3 refuses, names each
    change, and keeps everything else. If it leaves decisions to the user, such as how to replace a mirrored queue, it
    exits with 3 and prints the number of these decisions.
    """
    converted = run(old, "convert old.json --to 4.3")
    assert converted.code == 3
    assert converted.stderr.endswith("mqtool: 4 open decisions\n")
    new = json.loads(converted.stdout)
    assert {name: new[name] for name in ("rabbit_version", "vhosts", "users", "permissions")} == {
        name: OLD[name] for name in ("rabbit_version", "vhosts", "users", "permissions")
    }
    policies = {name: policy["definition"] for name, policy in by_name(new["policies"]).items()}
    assert policies == {
        "ha": {"queue-mode": "default"},  # without it, the queues would get the policy "ttl"
        "ttl": {"message-ttl": 3_600_000},
        "near": {"queue-leader-locator": "balanced"},
    }
    queues = by_name(new["queues"])
    assert queues["events"] == {**by_name(OLD["queues"])["events"], "durable": True}
    assert queues["placed"]["arguments"] == {}
    assert queues["old"]["arguments"] == {"x-queue-type": "classic"}
    assert [queues[name] for name in ("ha.orders", "ha.urgent")] == OLD["queues"][:2]
    assert by_name(new["exchanges"]).keys() == {"orders"}
    assert [binding["routing_key"] for binding in new["bindings"]] == ["#.a.#"]
    for told in (
        "queue 'events' in vhost 'shop' becomes durable\n",
        "queue 'placed' in vhost 'shop' has lost the argument x-queue-version=1\n",
        "policy 'ha' in vhost 'shop' has only \"queue-mode\": \"default\" left, which does nothing: it hides policy",
        "policy 'ha-some' in vhost 'shop' is left out\n",
        "warning: queue 'ha.orders' in vhost 'shop' was mirrored by policy 'ha', and is on one node only\n",
        "warning: exchange 'later' in vhost 'shop' is left out, with its bindings: 'later' to 'ha.urgent' by 'remind'",
        "warning: binding from 'orders' to 'events' by '#.a.#.b.#' in vhost 'shop' is left out\n",
    ):
        assert told in converted.stderr

    only_to_4_0 = json.loads(run(old, "convert old.json --to 4.0 --mirrored classic").stdout)
    assert only_to_4_0["exchanges"] == OLD["exchanges"]
    assert by_name(only_to_4_0["queues"])["events"] == by_name(OLD["queues"])["events"]


def test_delayed_relay_delays_the_messages_of_a_converted_exchange(old: Shell, tmp_path: Path) -> None:
    """After `definitions convert --delayed relay` has converted an x-delayed-message exchange, `delayed relay` delays a
    message by its x-delay header and routes it by the bindings of the old exchange.
    """
    (old.directory / "shop.json").write_text(json.dumps(of_shop(OLD)))  # as for one virtual host, without its name
    (tmp_path / "new.json").write_text(run(old, "convert shop.json --to 4.3 --mirrored quorum --delayed relay").stdout)
    with EmbeddedBroker(management_port=0, like="4.3", definitions=tmp_path / "new.json") as broker:
        old.environment |= {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.urls["http"]}
        old.start("mqtool", "delayed", "relay", "later").wait_for_stderr("Relaying")
        old.run("mqtool", "send", "-e", "later", "-r", "remind", "-H", "x-delay:=100", "Ann")
        received = old.run("mqtool", "receive", "-q", "ha.urgent", "-c", "1", "--raw", "--timeout", "30s")
        assert (received.code, received.stdout) == (0, "Ann\n"), received.stderr


def test_definitions_convert_reports_a_lost_alternate_exchange(lonely_shell: Shell) -> None:
    """`definitions convert --delayed relay` cannot keep the alternate exchange of an x-delayed-message exchange. It
    warns of this and exits with 3. `definitions convert --delayed plain` keeps the alternate exchange.
    """
    arguments = {"x-delayed-type": "topic", "alternate-exchange": "unrouted"}
    later = {"vhost": "/", "name": "later", "type": "x-delayed-message", "durable": True, "arguments": arguments}
    (lonely_shell.directory / "old.json").write_text(json.dumps({"vhosts": [{"name": "/"}], "exchanges": [later]}))
    relayed = run(lonely_shell, "convert old.json --to 4.3 --delayed relay")
    assert relayed.code == 3
    assert "warning: exchange 'later' has lost its alternate exchange 'unrouted'\n" in relayed.stderr
    assert "mqtool: 1 open decision\n" in relayed.stderr
    plain = run(lonely_shell, "convert old.json --to 4.3 --delayed plain")
    assert plain.code == 0
    assert by_name(json.loads(plain.stdout)["exchanges"])["later"]["arguments"] == {"alternate-exchange": "unrouted"}


@pytest.mark.parametrize("like", ["4.3", "4.3.5"])
def test_a_broker_like_4_3_imports_converted_definitions(old: Shell, like: str) -> None:
    """An embedded broker that behaves like RabbitMQ 4.3 refuses the test's definitions, which come from RabbitMQ
    3.10. After `definitions convert`, it imports them, and no queue is lost.
    """
    converted = run(old, "convert old.json --to 4.3 --mirrored quorum --delayed plain")
    assert "mqtool: 2 open decisions\n" in converted.stderr  # a queue with priorities; a key that is too complex
    new = json.loads(converted.stdout)
    with EmbeddedBroker(management_port=0, like=like) as broker, pytest.raises(OSError, match="HTTP Error 400"):
        api(broker, "definitions", OLD)
    with EmbeddedBroker(management_port=0, like=like) as broker:
        api(broker, "definitions", new)
        has = api(broker, "definitions")
    assert by_name(has["queues"]).keys() == by_name(OLD["queues"]).keys()
    kinds = {queue["name"]: queue["arguments"].get("x-queue-type", "classic") for queue in has["queues"]}
    assert kinds == {**dict.fromkeys(kinds, "classic"), "ha.orders": "quorum"}
    assert by_name(has["exchanges"])["later"]["type"] == "direct"
    assert {binding["routing_key"] for binding in has["bindings"]} == {"#.a.#", "remind"}


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_rabbitmq_imports_converted_definitions(old: Shell, broker: TestBroker) -> None:
    """RabbitMQ 4.3 refuses the test's definitions, which come from RabbitMQ 3.10. After `definitions convert`, it
    imports them. No queue is lost, and only mirrored queues become quorum queues.
    """
    if not broker.differs_since("4.3", "it refuses the old definitions"):
        pytest.skip("this RabbitMQ accepts the old definitions, or has the delayed message plugin")
    with pytest.raises(OSError, match="HTTP Error 400"):
        broker.api("POST", f"definitions/{broker.vhost}", of_shop(OLD))
    new = of_shop(json.loads(run(old, "convert old.json --to 4.3 --mirrored quorum --delayed plain").stdout))
    broker.api("POST", f"definitions/{broker.vhost}", new)
    has: Any = broker.api("GET", f"definitions/{broker.vhost}")
    assert {name: queue["type"] for name, queue in by_name(has["queues"]).items()} == {
        "ha.orders": "quorum",
        **dict.fromkeys(("ha.urgent", "events", "placed"), "classic"),
    }
    assert {binding["routing_key"] for binding in has["bindings"]} == {"#.a.#", "remind"}
    assert len(has["policies"]) == 3


def of_shop(document: dict[str, Any]) -> dict[str, Any]:
    """The definitions of the virtual host "shop" without its name, to import them into another one."""
    kinds = ("policies", "queues", "exchanges", "bindings")
    return {
        kind: [
            {key: value for key, value in item.items() if key != "vhost"}
            for item in document[kind]
            if item["vhost"] == "shop"
        ]
        for kind in kinds
    }


def api(broker: EmbeddedBroker, path: str, body: Any = None) -> Any:
    """Call the management API of a broker of this test's own."""
    data = None if body is None else json.dumps(body).encode()
    login = base64.b64encode(b"guest:guest").decode()
    request = urllib.request.Request(f"{broker.urls['http']}/api/{path}", data)
    request.add_header("authorization", f"Basic {login}")
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


@pytest.mark.parametrize(("options", "warns"), [((), True), (("--vhost", "/"), True), (("--vhost", "other"), False)])
def test_doctor_warns_about_a_policy_pattern_that_it_cannot_evaluate(
    lonely_shell: Shell, options: tuple[str, ...], *, warns: bool
) -> None:
    """If `doctor FILE --upgrade` cannot evaluate the pattern of a policy, it assumes that the policy applies to no
    queue, and prints a warning. With --vhost, it does not warn about the policies of other virtual hosts.
    """
    policy = {"vhost": "/", "name": "ttl", "pattern": "(", "priority": 0, "definition": {"message-ttl": 1000}}
    (lonely_shell.directory / "new.json").write_text(json.dumps({"vhosts": [{"name": "/"}], "policies": [policy]}))
    told = lonely_shell.run("mqtool", "doctor", "new.json", "--upgrade", "4.3", *options)
    assumed = "warning: policy 'ttl' has a pattern that mqtool cannot match, and is assumed to apply to no queue"
    assert (told.code, assumed in told.stderr) == (0, warns), told.stderr


def test_doctor_reads_a_definitions_file_without_a_broker(old: Shell) -> None:
    """`doctor FILE --upgrade` needs no broker, reports each problem with its line number, and exits with 3. For a file
    that `definitions convert` has converted, it reports only that the default of the delivery limit changes.
    """
    old.environment["MQTOOL_MANAGEMENT_URL"] = old.environment["MQTOOL_URL"] = "amqp://127.0.0.1:1"
    lines = (old.directory / "old.json").read_text().splitlines()

    def checked(file: str, *more: str) -> tuple[int, list[dict[str, Any]]]:
        told = old.run("mqtool", "doctor", file, "--upgrade", "4.3", "--json", *more)
        return told.code, [json.loads(line) for line in told.stdout.splitlines()]

    code, found = checked("old.json")
    assert code == 3
    assert {finding["check"] for finding in found} == {
        *("transient", "queue-argument", "queue-type", "delayed-exchange", "binding-key"),
        *("mirrored", "policy-setting", "lazy"),
    }
    (transient,) = [finding for finding in found if finding["check"] == "transient"]
    assert '"name": "events"' in lines[transient["line"]]  # counted from 1: the line after the opening brace
    assert {finding["vhost"] for finding in checked("old.json", "--vhost", "new")[1]} == {"new"}

    decided = run(old, "convert old.json --to 4.3 --mirrored quorum --delayed leave-out").stdout
    (old.directory / "new.json").write_text(decided)
    assert {finding["check"] for finding in checked("new.json")[1]} == {"delivery-limit"}

    sarif = json.loads(old.run("mqtool", "doctor", "old.json", "--upgrade", "4.3", "--format", "sarif").stdout)
    (log,) = sarif["runs"]
    assert sarif["version"] == "2.1.0"
    rules = [rule["id"] for rule in log["tool"]["driver"]["rules"]]
    for result in log["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"] == {"uri": "old.json"}
        assert place["region"]["startLine"] > 1
    assert len(log["results"]) == len(found)

    assert old.run("mqtool", "doctor", "old.json").code == 2
    assert old.run("mqtool", "doctor", "-", "--upgrade", "4.3", stdin="[]").code == 65


#: Arguments of each queue type, and whether RabbitMQ 4.3 refuses them.
ARGUMENTS_OF_4_3: list[tuple[str, dict[str, Any], bool]] = [
    *(("stream", {"x-stream-filter-size-bytes": size}, not 16 <= size <= 255) for size in (0, 15, 16, 255, 256, 300)),
    ("quorum", {"x-stream-filter-size-bytes": 16}, True),
    ("classic", {"x-stream-filter-size-bytes": 16}, True),
    *(("quorum", {"x-consumer-timeout": value}, value != 0) for value in (-1, 0, "5")),
    *(("quorum", {"x-consumer-disconnected-timeout": value}, value != 0) for value in (-1, 0, True)),
    *(("stream", {f"x-consumer-{name}timeout": 5}, True) for name in ("", "disconnected-")),
    *(("classic", {"x-queue-version": value}, value == 1) for value in (1, 2)),
    *((kind, {"x-delayed-retry-min": 5}, kind != "quorum") for kind in ("classic", "quorum", "stream")),
    *((kind, {"x-delayed-retry-type": "?"}, kind != "quorum") for kind in ("classic", "quorum", "stream")),
]


@on_any_broker
def test_doctor_and_convert_know_which_values_of_arguments_rabbitmq_4_3_refuses(
    lonely_shell: Shell, broker: TestBroker
) -> None:
    """`doctor FILE --upgrade 4.3` reports an argument whose value RabbitMQ 4.3 refuses for this type of queue, and
    `definitions convert --to 4.3` leaves it out. If the tested broker is RabbitMQ 4.3, it refuses the same arguments.
    """
    queues = [
        {"name": f"q{n}", "vhost": "/", "durable": True, "arguments": {"x-queue-type": kind, **argument}}
        for n, (kind, argument, _) in enumerate(ARGUMENTS_OF_4_3)
    ]
    refused = {f"q{n}" for n, (*_, is_refused) in enumerate(ARGUMENTS_OF_4_3) if is_refused}
    (lonely_shell.directory / "old.json").write_text(json.dumps({"vhosts": [{"name": "/"}], "queues": queues}))
    looked = lonely_shell.run("mqtool", "doctor", "old.json", "--upgrade", "4.3", "--json")
    found = [json.loads(line) for line in looked.stdout.splitlines()]
    assert {each["thing"] for each in found if each["check"] == "queue-argument"} == {f"queue {q!r}" for q in refused}
    assert any(
        "x-stream-filter-size-bytes=300, which RabbitMQ 4.3 refuses for a stream (it must be 16 to 255)" in each["what"]
        for each in found
    )
    made = json.loads(lonely_shell.run("mqtool", "definitions", "convert", "old.json", "--to", "4.3").stdout)["queues"]
    assert {queue["name"] for queue in made if queue["arguments"].keys() == {"x-queue-type"}} == refused
    if broker.kind != "embedded" and LIKE == "4.3":
        assert {queue["name"] for queue in queues if not is_declared(broker, queue["arguments"])} == refused


def is_declared(broker: TestBroker, arguments: dict[str, Any]) -> bool:
    """Declare a queue with these arguments; return False if the broker refuses it."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        try:
            channel.queue_declare("arguments", durable=True, arguments=arguments)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        channel.queue_delete("arguments")
        return True


def test_transient_queues_are_refused_only_by_rabbitmq_4_3_0_to_4_3_5(lonely_shell: Shell) -> None:
    """`doctor FILE --upgrade` reports a transient queue, and `definitions convert` makes it durable, unless the named
    version accepts it.
    """
    queue = {"name": "q", "vhost": "/", "durable": False, "auto_delete": False, "arguments": {}}
    (lonely_shell.directory / "old.json").write_text(json.dumps({"vhosts": [{"name": "/"}], "queues": [queue]}))
    for version, is_refused in {"4.3": True, "4.3.6": False}.items():
        looked = lonely_shell.run("mqtool", "doctor", "old.json", "--upgrade", version)
        assert looked.code == (3 if is_refused else 0), version
        made = lonely_shell.run("mqtool", "definitions", "convert", "old.json", "--to", version).stdout
        assert json.loads(made)["queues"][0]["durable"] is is_refused, version


def test_doctor_escapes_names_in_sarif_messages(lonely_shell: Shell) -> None:
    """In a SARIF message, brackets can form a link, and {0} is a placeholder for an argument. `doctor --format sarif`
    therefore escapes brackets and braces in a queue's name.
    """
    queue = {"vhost": "/", "name": "[x](http://evil) {0} \\", "durable": False, "auto_delete": False, "arguments": {}}
    (lonely_shell.directory / "old.json").write_text(json.dumps({"vhosts": [{"name": "/"}], "queues": [queue]}))
    told = lonely_shell.run("mqtool", "doctor", "old.json", "--upgrade", "4.3", "--format", "sarif")
    (result,) = json.loads(told.stdout)["runs"][0]["results"]
    assert result["message"]["text"].startswith(r"queue '\[x\](http://evil) {{0}} \\\\' (line ")
    (location,) = result["locations"][0]["logicalLocations"]
    assert location["name"] == r"queue '[x](http://evil) {0} \\'"


@on_any_broker
@pytest.mark.parametrize("kind", ["queues", "exchanges"])
@pytest.mark.sampled(1)
def test_definitions_import_warns_about_a_name_that_utf_8_cannot_encode(admin: Shell, kind: str) -> None:
    """If a name in a definitions file is half of a surrogate pair, which UTF-8 cannot encode, `definitions import`
    warns about the name and exits with 3.
    """
    each = {"name": "\ud800", "type": "direct", "durable": True, "auto_delete": False, "arguments": {}}
    (admin.directory / "bad.json").write_text(json.dumps({kind: [each]}))
    result = admin.run("mqtool", "definitions", "import", "bad.json", "--yes")
    assert "unexpected error" not in result.stderr
    assert (result.code, "'\\ud800' cannot be a name" in result.stderr) == (3, True), result.stderr


@pytest.mark.parametrize(
    "bad",
    [
        {"queues": [{"name": "good"}, {"name": "two\nlines"}]},
        {"exchanges": [{"name": "good"}, {"name": "two\nlines"}]},
        {"queues": [{"name": "good"}], "bindings": [{"source": "amq.direct", "destination": "go\rod"}]},
    ],
    ids=["queue", "exchange", "binding"],
)
def test_definitions_import_refuses_a_name_with_a_line_break(admin: Shell, bad: dict[str, Any]) -> None:
    """If a name in a definitions file contains a line break, `definitions import` reports this, exits with 65, and
    imports nothing. A broker would remove the line break from the name.
    """
    before = run(admin, "export").stdout
    (admin.directory / "bad.json").write_text(json.dumps(bad))
    result = run(admin, "import bad.json")
    assert (result.code, "contains a line break\nhint: brokers remove line breaks" in result.stderr) == (65, True)
    assert run(admin, "export").stdout == before
