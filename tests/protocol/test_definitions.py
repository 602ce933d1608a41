"""Definitions: export and import of what a broker has declared."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker, large
from tests.protocol.conftest import Api

# The password is "secret".
ANN: dict[str, Any] = {
    "name": "ann",
    "password_hash": "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz",
    "hashing_algorithm": "rabbit_password_hashing_sha256",
    "tags": ["management"],
    "limits": {},
}
TOPOLOGY: dict[str, Any] = {
    "exchanges": [
        {
            "name": "logs",
            "type": "topic",
            "durable": True,
            "auto_delete": False,
            "internal": False,
            "arguments": {"alternate-exchange": "amq.fanout"},
        }
    ],
    "queues": [
        {"name": "jobs", "durable": True, "auto_delete": False, "arguments": {"x-queue-type": "quorum"}},
        {"name": "old", "durable": True, "auto_delete": True, "arguments": {"x-max-length": 3}},
    ],
    "bindings": [
        {
            "source": "logs",
            "destination": "jobs",
            "destination_type": "queue",
            "routing_key": "*.critical",
            "arguments": {},
        },
        {
            "source": "amq.match",
            "destination": "logs",
            "destination_type": "exchange",
            "routing_key": "",
            "arguments": {"x-match": "any", "format": "pdf"},
        },
    ],
}


def policies(vhost: str) -> dict[str, Any]:
    """A policy and an operator policy."""
    value = {"pattern": "^jobs", "definition": {"max-length": 9}, "priority": 1, "apply-to": "queues"}
    return {
        "policies": [{"vhost": vhost, "name": "limits", **value}],
        "parameters": [{"vhost": vhost, "component": "operator_policy", "name": "o", "value": value}],
    }


def by_name(document: dict[str, Any]) -> dict[str, Any]:
    """Return definitions sorted by name."""
    return {
        kind: sorted(items, key=lambda item: json.dumps(item, sort_keys=True)) if isinstance(items, list) else items
        for kind, items in document.items()
    }


def has(exported: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """True if everything that is wanted was exported; later versions export more fields."""

    def plain(item: dict[str, Any]) -> dict[str, Any]:
        arguments = {key: value for key, value in item.get("arguments", {}).items() if key != "x-queue-type"}
        # RabbitMQ 4.3 does not say that an exchange is not internal.
        said = {key: value for key, value in item.items() if (key, value) != ("internal", False)}
        return {**said, "arguments": arguments}

    return all(
        any(plain(each).items() >= plain(item).items() for each in exported[kind])
        for kind, items in wanted.items()
        for item in items
    )


def test_an_export_contains_all_imported_definitions_but_no_exclusive_queues(
    api: Api, vhost: str, channel: BlockingChannel, broker: TestBroker
) -> None:
    """After definitions have been imported into a new virtual host, an export of this virtual host contains all of
    them, but no exclusive queues. Only RabbitMQ 4.2.9 and 4.3.3 to 4.3.5 export the bindings of exclusive queues.
    Importing an existing queue with other arguments does not change the export.
    """
    channel.queue_declare("mine", exclusive=True)
    channel.queue_bind("mine", "amq.fanout")
    wanted = {**TOPOLOGY, **policies(vhost)}
    for _ in range(2):
        assert api("POST", f"definitions/{vhost}", wanted) == (204, None)
    status, exported = api("GET", f"definitions/{vhost}")
    assert status == 200
    without_vhost = {kind: [{**each} for each in items] for kind, items in wanted.items()}
    for each in (*without_vhost["policies"], *without_vhost["parameters"]):
        del each["vhost"]  # which RabbitMQ 4 leaves out
    assert has(exported, without_vhost)
    assert "mine" not in [each["name"] for each in exported["queues"]]
    if broker.kind == "embedded" or not broker.differs_since(
        "4.2", "4.2.9 and 4.3.3 to 4.3.5 export them; 4.4 does not"
    ):
        assert "mine" not in [each["destination"] for each in exported["bindings"]]
    others = [{**TOPOLOGY["queues"][0], "arguments": {}}]
    assert api("POST", f"definitions/{vhost}", {"queues": others})[0] == 204
    assert by_name(api("GET", f"definitions/{vhost}")[1]) == by_name(exported)


def test_definitions_of_the_whole_broker_contain_users_and_permissions(api: Api, vhost: str) -> None:
    """The definitions of the whole broker contain users, permissions, and the virtual host of each object. If a user
    with the tag `management` tries to export the definitions of the whole broker, or to import definitions into a
    virtual host, the management API responds with status 401.
    """
    user, topology = {**ANN, "name": f"ann-{vhost}"}, by_name(TOPOLOGY)
    document = {
        "users": [user],
        "vhosts": [{"name": vhost}],
        "permissions": [{"user": user["name"], "vhost": vhost, "configure": "", "write": "", "read": "^jobs"}],
        "topic_permissions": [
            {"user": user["name"], "vhost": vhost, "exchange": "logs", "write": "^app", "read": "critical$"}
        ],
        **{kind: [{**item, "vhost": vhost} for item in topology[kind]] for kind in topology},
    }
    try:
        assert api("POST", "definitions", document) == (204, None)
        assert api("GET", "whoami", None, user["name"], "secret")[1]["name"] == user["name"]
        exported = api("GET", "definitions")[1]
        assert has(exported, document)
        assert api("GET", "definitions", None, user["name"], "secret")[0] == 401
        assert api("POST", f"definitions/{vhost}", {}, user["name"], "secret")[0] == 401
    finally:
        api("DELETE", f"users/{user['name']}")


def test_invalid_definitions_are_refused(api: Api, vhost: str) -> None:
    """The management API refuses to import definitions of the whole broker if a queue in them names no virtual host, or
    if they refer to something unknown, such as a missing user or an unknown policy key. No queue is created.
    """
    queue = {"name": "q", "durable": True, "auto_delete": False, "arguments": {}}
    for document in (
        {"queues": [queue]},
        {"queues": [{**queue, "vhost": "none-such"}]},
        {"queues": [{**queue, "vhost": vhost, "arguments": {"x-queue-type": "odd"}}]},
        {"exchanges": [{**TOPOLOGY["exchanges"][0], "vhost": vhost, "type": "odd"}]},
        {"policies": [{"vhost": vhost, "name": "p", "pattern": "q", "definition": {"odd": 1}}]},
        {"permissions": [{"user": "none-such", "vhost": vhost, "configure": "", "write": "", "read": ""}]},
        {"parameters": [{"component": "shovel", "vhost": vhost, "name": "s", "value": {}}]},
    ):
        assert api("POST", "definitions", document)[0] in (400, 500), document  # 500: RabbitMQ 4, without a vhost
    assert api("POST", f"definitions/{vhost}", {"bindings": TOPOLOGY["bindings"]})[0] in (204, 400)  # 400: RabbitMQ 4
    assert api("GET", f"queues/{vhost}") == (200, [])


@pytest.mark.parametrize("document", [{"queues": 3}, {"queues": ["q"]}, {"users": [{}]}, {"parameters": [3]}], ids=str)
def test_malformed_definitions_are_refused(document: dict[str, Any], api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """If a section of imported definitions, such as `queues`, is not a list of valid objects, the management API
    responds with status 400.
    """
    with EmbeddedBroker(management_port=0) as broker:
        assert api_of(broker)("POST", "definitions", document)[0] == 400


def test_a_broker_starts_with_a_definitions_file(tmp_path: Path, api_of: Callable[[EmbeddedBroker], Api]) -> None:
    """A broker that is started with a definitions file has the queues, policies and users in the file. Definitions that
    name no virtual host belong to `/`. The broker can be started again with the same file and data directory. If it is
    later started without the file, it still has the topic permissions, which are in the data directory.
    """
    file, data = tmp_path / "definitions.json", tmp_path / "data"
    rights = {"user": "ann", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    topics = [{"user": "ann", "vhost": "/", "exchange": "logs", "write": "critical$", "read": ""}]
    users = {"users": [ANN], "permissions": [rights], "topic_permissions": topics}
    file.write_text(json.dumps({**TOPOLOGY, **policies("/"), **users}))
    for _ in range(2):
        with EmbeddedBroker(data_dir=data, management_port=0, definitions=file) as broker:
            ours = broker.url.replace("guest:guest", "ann:secret")
            with pika.BlockingConnection(pika.URLParameters(ours)) as connection:
                channel = connection.channel()
                channel.basic_publish("logs", "kern.critical", b"x", pika.BasicProperties(delivery_mode=2))
                assert channel.basic_get("jobs", auto_ack=True)[2] == b"x"
            exported = api_of(broker)("GET", "definitions")[1]
            assert has(exported, {**TOPOLOGY, **policies("/")})
    with EmbeddedBroker(data_dir=data, management_port=0) as broker:
        assert api_of(broker)("GET", "topic-permissions")[1] == topics


def test_the_data_directory_can_still_be_used_after_a_failed_import(tmp_path: Path) -> None:
    """If the definitions file is invalid, or nested too deeply, EmbeddedBroker.start() raises OSError. A broker with a
    valid file can then be started on the same data directory.
    """
    file, data = tmp_path / "definitions.json", tmp_path / "data"
    file.write_text('{"queues": [{}]}')
    with pytest.raises(OSError, match=r"cannot load definitions from .*: queues: name is missing"):
        EmbeddedBroker(data_dir=data, definitions=file).start()
    file.write_text('{"queues": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(OSError, match=r"cannot load definitions from .*: nested too deeply"):
        EmbeddedBroker(data_dir=data, definitions=file).start()
    file.write_text("{}")
    with EmbeddedBroker(data_dir=data, definitions=file):
        pass


@large
def test_a_broker_reports_the_definitions_that_it_does_not_support(tmp_path: Path) -> None:
    """If a definitions file contains a shovel, the broker starts without the shovel, and reports this on stderr. If
    the file does not contain a JSON object, the broker exits with 1.
    """
    file, ready = tmp_path / "definitions.json", tmp_path / "ready"
    shovel = {"component": "shovel", "vhost": "/", "name": "away", "value": {}}
    file.write_text(json.dumps({**TOPOLOGY, "parameters": [shovel]}))
    command = [sys.executable, "-m", "mqtool.broker.embedded", "--port", "0", "--definitions", str(file)]
    with subprocess.Popen([*command, "--print-url"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as broker:
        assert broker.stdout is not None
        assert broker.stdout.readline().startswith(b"amqp://")
        broker.terminate()
        assert b"left out shovel 'away'" in broker.communicate(timeout=60)[1]
    file.write_text("[]")
    failed = subprocess.run([*command, "--ready-file", ready], capture_output=True, timeout=60, check=False)
    assert (failed.returncode, b"cannot load definitions from" in failed.stderr) == (1, True)


#: A server-named queue that is not exclusive, which RabbitMQ exports like any other, and predeclared exchanges.
RESERVED: dict[str, Any] = {
    "exchanges": [
        {"name": name, "type": "direct", "durable": True, "auto_delete": False, "internal": False, "arguments": {}}
        for name in ("amq.direct", "amq.other", "")
    ],
    "queues": [
        {"name": name, "durable": True, "auto_delete": False, "arguments": {}} for name in ("amq.gen-7Z8", "jobs")
    ],
}
#: Their bindings: from 4.0 to 4.3, RabbitMQ refuses definitions with the first one.
BOUND = [
    {"source": "amq.fanout", "destination": name, "destination_type": "queue", "routing_key": "k", "arguments": {}}
    for name in ("amq.gen-7Z8", "jobs")
]


def test_an_import_skips_reserved_names(api: Api, vhost: str) -> None:
    """An import of definitions skips the default exchange, and all queues and exchanges whose names begin with `amq.`.
    All other objects are declared.
    """
    before = api("GET", f"exchanges/{vhost}")[1]
    assert api("POST", f"definitions/{vhost}", {**RESERVED, "bindings": BOUND[1:]}) == (204, None)
    assert [each["name"] for each in api("GET", f"queues/{vhost}")[1]] == ["jobs"]
    named = sorted(each["name"] for each in api("GET", f"exchanges/{vhost}")[1])
    assert named == sorted(each["name"] for each in before)
    assert [each["destination"] for each in api("GET", f"definitions/{vhost}")[1]["bindings"]] == ["jobs"]


@pytest.mark.differs_since("4.0", "the import is refused")
def test_up_to_rabbitmq_3_13_an_import_skips_the_bindings_of_queues_with_reserved_names(api: Api, vhost: str) -> None:
    """Up to RabbitMQ 3.13, if imported definitions contain a binding of a queue whose name begins with `amq.`, the
    broker skips this binding, and adds all other bindings.
    """
    assert api("POST", f"definitions/{vhost}", {**RESERVED, "bindings": BOUND}) == (204, None)
    assert [each["destination"] for each in api("GET", f"definitions/{vhost}")[1]["bindings"]] == ["jobs"]


@pytest.mark.parametrize(
    ("like", "reserved", "other"),
    [("3.10", 204, 204), ("4.0", 400, 400), ("4.2", 400, 400), ("4.3", 400, 400), ("4.4", 204, 400)],
)
def test_an_import_skips_or_refuses_a_binding_of_a_missing_queue_as_each_rabbitmq_version_does(
    like: str, reserved: int, other: int, api_of: Callable[[EmbeddedBroker], Api]
) -> None:
    """An embedded broker that imitates RabbitMQ 3.10 skips an imported binding of a queue that does not exist. One that
    imitates 4.0, 4.2 or 4.3 refuses the whole import. One that imitates 4.4 skips the binding if the queue's name
    begins with `amq.`, and otherwise refuses the import.
    """
    with EmbeddedBroker(management_port=0, like=like) as broker:
        api = api_of(broker)
        status, body = api("POST", "definitions/%2F", {**RESERVED, "bindings": BOUND})
        assert status == reserved
        assert status == 204 or "no queue 'amq.gen-7Z8' in vhost '/'" in body["reason"]
        loose = [{**BOUND[1], "destination": "none"}]
        assert api("POST", "definitions/%2F", {"bindings": loose})[0] == other


def test_a_broker_starts_with_a_definitions_file_that_contains_a_reserved_queue_name(tmp_path: Path) -> None:
    """If a definitions file contains a queue whose name begins with `amq.`, the broker starts, warns on stderr that it
    skipped this queue, and declares the others.
    """
    file = tmp_path / "definitions.json"
    file.write_text(json.dumps({**RESERVED, "bindings": BOUND[1:]}))
    command = [sys.executable, "-m", "mqtool.broker.embedded", "--port", "0", "--definitions", str(file), "--print-url"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as broker:
        assert broker.stdout is not None
        url = broker.stdout.readline().decode().split()[0]
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            connection.channel().queue_declare("jobs", passive=True)
        broker.terminate()
        assert b"skipped queue 'amq.gen-7Z8'" in broker.communicate(timeout=60)[1]
