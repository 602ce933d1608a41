"""Virtual hosts over the management API: tags, default queue type, and protection from deletion."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker
from tests.cli.shell import wait_until
from tests.protocol.conftest import Api

#: Other tests expect a virtual host without tags, and classic queues where no type is declared.
pytestmark = pytest.mark.own_vhost("the settings of a virtual host stay when it is emptied")


@pytest.fixture(autouse=True)
def _since_4_0(broker: TestBroker) -> None:
    if broker.kind == "rabbitmq" and not broker.differs_since("4.0", "virtual hosts have default types"):
        pytest.skip("RabbitMQ 3.10 has no default queue types")


def test_a_virtual_host_keeps_its_description_tags_and_default_queue_type(
    broker: TestBroker, api: Api, vhost: str
) -> None:
    """A virtual host has the description, the tags and the default queue type that were set over HTTP. If the queue
    type is invalid, the broker answers with status 400.
    """
    about = {"description": "d", "tags": ["a", "b"], "default_queue_type": "quorum"}
    assert api("PUT", f"vhosts/{vhost}", about)[0] in (201, 204)
    found = api("GET", f"vhosts/{vhost}")[1]
    assert {name: found[name] for name in about} == about
    assert {name: found["metadata"][name] for name in about} == about
    if broker.kind == "rabbitmq" and not broker.differs_since("4.2", "types of virtual hosts are checked"):
        return
    status, refused = api("PUT", f"vhosts/{vhost}", {"default_queue_type": "odd"})
    assert (status, "odd is not a valid queue type" in str(refused)) == (400, True)


@pytest.mark.parametrize("path", ["vhosts/{}", "definitions"])
def test_a_virtual_host_loses_its_description_and_tags_if_an_update_contains_none(
    broker: TestBroker, api: Api, vhost: str, path: str
) -> None:
    """If a PUT request or an import of definitions updates a virtual host, but contains neither a description nor
    tags, the virtual host loses those that it had. Up to RabbitMQ 4.1, an update without a default queue type does
    not change the virtual host's default queue type. From 4.2 on, the type becomes `classic`.
    """
    api("PUT", f"vhosts/{vhost}", {"description": "d", "tags": "a, b", "default_queue_type": "quorum"})
    body: Any = {"tracing": False} if path != "definitions" else {"vhosts": [{"name": vhost}]}
    assert api("POST" if path == "definitions" else "PUT", path.format(vhost), body)[0] == 204
    kind = "classic" if broker.differs_since("4.2", "it loses the type") else "quorum"
    assert api("GET", f"vhosts/{vhost}")[1]["metadata"] == {"description": "", "tags": [], "default_queue_type": kind}


def test_a_queue_declared_without_a_type_gets_the_default_queue_type(
    api: Api, vhost: str, channel: BlockingChannel
) -> None:
    """A queue that is declared over AMQP or HTTP without a type has the default queue type of its virtual host. The
    exception is an exclusive queue, which becomes a classic queue. If the declaration contains a type, the queue has
    this type.
    """
    api("PUT", f"vhosts/{vhost}", {"default_queue_type": "quorum"})
    for _ in range(2):
        channel.queue_declare("plain", durable=True)
    channel.queue_declare("mine", exclusive=True)
    channel.queue_declare("chosen", durable=True, arguments={"x-queue-type": "classic"})
    api("PUT", f"queues/{vhost}/over-http", {"durable": True})
    found = {each["name"]: each["type"] for each in api("GET", f"queues/{vhost}")[1]}
    assert found == {"plain": "quorum", "mine": "classic", "chosen": "classic", "over-http": "quorum"}


def test_a_protected_virtual_host_cannot_be_deleted(broker: TestBroker, api: Api, vhost: str) -> None:
    """If a virtual host is protected from deletion, a request to delete it returns status 412, and the reason says
    that the virtual host is protected. The protection can be removed.
    """
    if broker.kind == "rabbitmq" and not broker.differs_since("4.2", "virtual hosts can be protected"):
        pytest.skip("from 4.1 on")
    assert api("POST", f"vhosts/{vhost}/deletion/protection")[0] == 204
    assert api("GET", f"vhosts/{vhost}")[1]["protected_from_deletion"] is True
    status, refused = api("DELETE", f"vhosts/{vhost}")
    why = f"Refusing to delete virtual host '{vhost}' because it is protected from deletion"
    assert (status, refused["reason"]) == (412, why)
    assert api("DELETE", f"vhosts/{vhost}/deletion/protection")[0] == 204


def test_a_node_has_the_fields_that_rabbitmqadmin_needs(api: Api) -> None:
    """The management API describes a node with the fields that rabbitmqadmin 2 needs, such as uptime and mem_used. The
    values of these fields have the types that rabbitmqadmin expects.
    """
    wait_until(lambda: "run_queue" in api("GET", "nodes")[1][0], "run_queue of a node that has just started")
    (node,) = api("GET", "nodes")[1]
    numbers = (
        "uptime",
        "run_queue",
        "processors",
        "fd_total",
        "proc_total",
        "mem_limit",
        "mem_used",
        "disk_free_limit",
    )
    assert {name: type(node[name]) for name in numbers} == dict.fromkeys(numbers, int)
    assert (node["being_drained"], type(node["os_pid"])) == (False, str)
    assert node["rates_mode"] in ("basic", "detailed")


RATE = {"rate": (int, float)}
#: The fields that rabbitmq_http_client 0.90 (of rabbitmqadmin 2) requires in answers, and their types. It cannot read
#: an answer that lacks one of them.
REQUIRED: dict[str, dict[str, Any]] = {
    "overview": {
        **dict.fromkeys(("cluster_name", "node", "erlang_full_version", "erlang_version", "rabbitmq_version"), str),
        **{"product_name": str, "product_version": str, "statistics_db_event_queue": int, "message_stats": {}},
        "churn_rates": dict.fromkeys(
            (
                *("connection_created", "connection_closed", "channel_created", "channel_closed"),
                *("queue_declared", "queue_created", "queue_deleted"),
            ),
            int,
        ),
        "queue_totals": {"messages": int, "messages_details": RATE},
        "object_totals": dict.fromkeys(("connections", "channels", "queues", "exchanges", "consumers"), int),
        "listeners": [{"node": str, "protocol": str, "port": int, "ip_address": str}],
    },
    "nodes": {
        **dict.fromkeys(("uptime", "run_queue", "processors", "fd_total", "proc_total", "mem_limit"), int),
        **{"name": str, "disk_free_limit": int, "os_pid": str, "rates_mode": str},
        **dict.fromkeys(("mem_alarm", "disk_free_alarm", "being_drained"), bool),
        "enabled_plugins": list,
    },
    "connections": {
        **dict.fromkeys(("name", "node", "protocol", "user"), str),
        **{"connected_at": int, "client_properties": {}},
    },
    "channels": {
        **{"number": int, "name": str, "vhost": str, "state": str, "confirm": bool},
        "connection_details": {"name": str, "peer_host": str, "peer_port": int},
        **dict.fromkeys(("consumer_count", "prefetch_count", "messages_unacknowledged", "messages_unconfirmed"), int),
    },
    "consumers": {
        **{"consumer_tag": str, "active": bool, "ack_required": bool, "prefetch_count": int, "exclusive": bool},
        **{"arguments": {}, "consumer_timeout": int, "queue": {"name": str, "vhost": str}},
        "channel_details": {
            **{"number": int, "name": str, "connection_name": str, "node": str},
            **{"peer_host": str, "peer_port": int, "user": str},
        },
    },
    "queues": {
        **{"name": str, "vhost": str, "type": str, "arguments": {}},
        **dict.fromkeys(("durable", "auto_delete", "exclusive"), bool),
    },
    "exchanges": {"name": str, "vhost": str, "type": str, "durable": bool, "auto_delete": bool, "arguments": {}},
    "bindings": {
        **dict.fromkeys(("vhost", "source", "destination", "destination_type", "routing_key"), str),
        "arguments": {},
    },
    "vhosts": {"name": str},
    "users": {"name": str, "tags": list, "password_hash": str},
    "permissions": dict.fromkeys(("user", "vhost", "configure", "read", "write"), str),
    "feature-flags": dict.fromkeys(("name", "state", "desc", "doc_url", "stability", "provided_by"), str),
}


def lacks(found: Any, required: Any, where: str) -> Iterator[str]:
    """Yield the required fields that are missing in a response."""
    if isinstance(required, list):
        assert isinstance(found, list), where
        for each in found:
            yield from lacks(each, required[0], where)
    elif isinstance(required, dict):
        if not isinstance(found, dict):
            yield f"{where}: {found!r}"
            return
        for name, kind in required.items():
            yield from lacks(found.get(name), kind, f"{where}.{name}")
    elif not isinstance(found, required):
        yield f"{where}: {found!r}"


@pytest.mark.parametrize("path", REQUIRED)
def test_management_responses_contain_the_fields_that_rabbitmqadmin_requires(
    broker: TestBroker, api: Api, channel: BlockingChannel, path: str
) -> None:
    """The responses of the management API contain all fields that the client library of rabbitmqadmin 2 requires."""
    if broker.kind == "rabbitmq" and not broker.differs_since("4.2", "older versions lack some"):
        pytest.skip("rabbitmqadmin 2 is for later versions")
    channel.queue_declare("q", durable=True)
    channel.queue_bind("q", "amq.topic", "k")
    channel.basic_consume("q", lambda *_: None)

    def answer() -> Any:
        found = api("GET", path)[1]
        return found if isinstance(found, list) else [found]

    wait_until(
        lambda: answer() and not [*lacks(answer(), [REQUIRED[path]], path)],
        lambda: str([*lacks(answer(), [REQUIRED[path]], path)]),
    )


def test_lists_of_unsupported_features_are_empty(broker: TestBroker, api: Api) -> None:
    """If a client requests the list of deprecated features, shovels or federation links, the embedded broker answers
    with an empty list instead of an error.
    """
    if broker.kind == "rabbitmq":
        status, used = api("GET", "deprecated-features/used")
        assert (status, type(used)) == (200, list)
    else:
        for path in ("deprecated-features", "deprecated-features/used"):
            assert api("GET", path) == (200, [])
        for path in ("shovels", "federation-links"):
            assert api("GET", path) == api("GET", f"{path}/{broker.vhost}") == (200, [])
            assert api("GET", f"{path}/none-such")[0] == 404


def test_the_metadata_and_the_deletion_protection_of_a_virtual_host_survive_a_restart(tmp_path: Path) -> None:
    """A virtual host's description, tags, default queue type and protection from deletion survive a restart. Exported
    definitions contain all of these except the protection.
    """
    about = {"description": "d", "tags": ["a"], "default_queue_type": "quorum"}
    with EmbeddedBroker(data_dir=tmp_path, management_port=0) as broker:
        api = Api(str(broker.management_url))
        api("PUT", "vhosts/v", about)
        api("POST", "vhosts/v/deletion/protection")
    with EmbeddedBroker(data_dir=tmp_path, management_port=0) as broker:
        api = Api(str(broker.management_url))
        found = api("GET", "vhosts/v")[1]
        assert found["metadata"] == about
        assert found["protected_from_deletion"] is True
        exported = [each for each in api("GET", "definitions")[1]["vhosts"] if each["name"] == "v"]
        assert exported == [{"name": "v", "description": "d", "metadata": about, "limits": {}}]
