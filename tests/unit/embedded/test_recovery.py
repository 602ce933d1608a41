"""What a broker with a data directory restores when it is started again after a stop or a kill."""

import asyncio
import logging
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.applied_policies import OPERATOR, USER, Policy
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import BrokerBinding, BrokerExchange
from mqtool.broker.embedded.model.queue import Why
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.users import Permissions, TopicPermissions, User
from mqtool.broker.embedded.model.virtual_host import VhostLabels, VirtualHost
from mqtool.broker.embedded.store.database import FILE, STREAMS
from mqtool.broker.embedded.store.recovery import recover
from mqtool.broker.embedded.store.storage import Storage
from mqtool.codecs.field_tables import Int32, Table
from tests.unit.embedded.test_queue import FakeClock, FakeConsumer

_PATIENCE_SECONDS = 60


def started(directory: Path, clock: FakeClock | None = None) -> tuple[Storage, Broker]:
    storage = Storage(directory)
    broker = Broker(storage, clock=clock or FakeClock())
    recover(broker, storage)
    return storage, broker


async def on_disk(storage: Storage) -> None:
    await asyncio.wait_for(storage.stored(), _PATIENCE_SECONDS)


def message(body: bytes, *, mode: int = 2, expiration: bytes = b"", headers: Table | None = None) -> BrokerMessage:
    fields = {"delivery_mode": bytes([mode])}
    if expiration:
        fields["expiration"] = bytes([len(expiration)]) + expiration
    properties = MessageProperties.of(fields).replace(headers=headers or {})
    return BrokerMessage(encode_address("", "q"), ContentHeader.of(properties, len(body)), body)


def declared(vhost: VirtualHost, name: str = "q", *, durable: bool = True, **arguments: Any) -> Any:
    table = {name.replace("_", "-"): value for name, value in arguments.items()}
    return vhost.add_queue(QueueDeclaration(name, table, durable=durable))


def bodies(queue: Any) -> list[bytes]:
    """Take all ready messages from a queue."""
    found = []
    while (entry := queue.get(no_ack=True)) is not None:
        found.append(entry.message.body)
    return found


def binding_of(binding: BrokerBinding) -> tuple[object, ...]:
    to = binding.destination
    return binding.source.name, to.destination_type, to.name, binding.routing_key, binding.arguments


def contents(broker: Broker) -> dict[str, object]:
    """Describe all definitions of a broker."""
    return {
        "users": dict(broker.users),
        "parameters": dict(broker.global_parameters),
        "vhosts": {name: (vhost.description, vhost.limits, vhost.labels) for name, vhost in broker.vhosts.items()},
        "policies": {
            name: {kind: dict(each) for kind, each in vhost.policies.by_kind.items()}
            for name, vhost in broker.vhosts.items()
        },
        "exchanges": {
            (vhost.name, name): (each.kind, each.durable, each.auto_delete, each.internal, each.arguments)
            for vhost in broker.vhosts.values()
            for name, each in vhost.exchanges.items()
        },
        "queues": {
            (vhost.name, name): (each.kind, each.durable, each.auto_delete, each.arguments, each.policy)
            for vhost in broker.vhosts.values()
            for name, each in vhost.queues.items()
        },
        "bindings": {
            name: sorted(map(binding_of, vhost.bindings()), key=repr) for name, vhost in broker.vhosts.items()
        },
    }


def define_everything(broker: Broker) -> None:
    """Create definitions of each kind, with settings that are not the default, and names that are not UTF-8."""
    vhost = broker.add_vhost("töst", "a description")
    broker.limit_vhost(vhost, {"max-queues": 100, "max-connections": -1})
    broker.label_vhost(vhost, VhostLabels(("one", "two"), "quorum", is_protected=True))
    broker.save_user(User.with_password("alice", "secret", ["monitoring", "policymaker"]))
    broker.save_user(User("bob", None, algorithm="rabbit_password_hashing_sha512", limits={"max-channels": 5}))
    broker.set_permissions("alice", "töst", Permissions("a.*", "b.*", ""))
    broker.users["alice"].topic_permissions["töst", "topics"] = TopicPermissions("w.*", "r.*")
    broker.save_user(broker.users["alice"])
    broker.set_global_parameter("cluster_name", '"rabbit"')
    vhost.policies.put(USER, Policy("limits", "^q", {"max-length": Int32(5)}, 3, "queues"))
    vhost.policies.put(OPERATOR, Policy("most", ".*", {"max-length": Int32(4)}, -1, "all"))
    topics = BrokerExchange(
        "topics", "topic", auto_delete=True, arguments={"alternate-exchange": "later", "x": b"\xff"}
    )
    within = BrokerExchange("caf\udce9", "headers", internal=True)
    later = BrokerExchange("later", "x-delayed-message", arguments={"x-delayed-type": "direct"})
    for exchange in (topics, within, later):
        vhost.add_exchange(exchange)
    queue = declared(vhost, "q\udce9", x_max_priority=Int32(3))
    vhost.add_queue(QueueDeclaration("short", {}, auto_delete=True))
    vhost.bind(topics, queue, "a.*", {})
    vhost.bind(topics, within, "#", {})
    vhost.bind(within, queue, "", {"x-match": "any", "a": Int32(1)})
    vhost.bind(later, queue, "k", {"name": b"\xff"})


def test_definitions_survive_a_restart(tmp_path: Path) -> None:
    """All virtual hosts, users, permissions, limits, parameters and policies, and all durable exchanges, queues and
    bindings, are the same after one restart, and after a second one.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        define_everything(broker)
        before, memory = contents(broker), storage.definition_bytes
        storage.close()
        for _ in range(2):
            storage, broker = started(tmp_path)
            assert contents(broker) == before
            assert storage.definition_bytes == memory
            assert storage.damage is None
            assert broker.authenticate("alice", "secret", from_loopback=False) is not None
            assert broker.vhosts["töst"].queues["q\udce9"].policy.definition == {"max-length": 4}
            storage.close()

    asyncio.run(run())


def test_a_new_data_directory_has_the_definitions_of_a_new_broker(tmp_path: Path) -> None:
    """A broker with a new data directory has the virtual host `/` and the user `guest`. If both are deleted, a restart
    does not create them again, even if the data directory then contains no definitions.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        assert (list(broker.vhosts), list(broker.users)) == (["/"], ["guest"])
        broker.delete_user("guest")
        broker.delete_vhost("/")
        storage.close()
        storage, broker = started(tmp_path)
        assert (broker.vhosts, broker.users) == ({}, {})
        storage.close()

    asyncio.run(run())


def test_deleted_definitions_do_not_come_back(tmp_path: Path) -> None:
    """A deleted virtual host, user, parameter, policy, exchange, queue or binding does not come back after a restart.
    Deleting a virtual host deletes everything in it, and nothing in other virtual hosts.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        before = contents(broker)
        define_everything(broker)
        vhost = broker.vhosts["/"]
        kept, gone = declared(vhost, "kept"), declared(vhost, "gone")
        fanout = vhost.exchanges["amq.fanout"]
        for queue in (kept, gone):
            vhost.bind(fanout, queue, "", {})
        exchange = BrokerExchange("x", "direct")
        vhost.add_exchange(exchange)
        vhost.policies.put(USER, Policy("p", ".*", {"max-length": Int32(5)}))
        storage.close()

        storage, broker = started(tmp_path)
        vhost = broker.vhosts["/"]
        broker.delete_vhost("töst")
        broker.delete_user("alice")
        broker.delete_user("bob")
        broker.set_global_parameter("cluster_name", None)
        vhost.policies.delete(USER, "p")
        vhost.delete_exchange(vhost.exchanges["x"])
        vhost.delete_queue(vhost.queues["gone"])
        vhost.unbind(vhost.exchanges["amq.fanout"], vhost.queues["kept"], "", {})
        storage.close()

        storage, broker = started(tmp_path)
        assert [*broker.vhosts["/"].queues] == ["kept"]
        broker.vhosts["/"].delete_queue(broker.vhosts["/"].queues["kept"])
        assert contents(broker) == before
        storage.close()

    asyncio.run(run())


def test_only_durable_definitions_survive_a_restart(tmp_path: Path) -> None:
    """After a restart, transient queues and exchanges, exclusive queues, and the bindings of all these are gone."""

    async def run() -> None:
        storage, broker = started(tmp_path)
        vhost = broker.vhosts["/"]
        durable, transient = declared(vhost, "durable"), declared(vhost, "transient", durable=False)
        vhost.add_queue(QueueDeclaration("exclusive", {}, durable=True, owner=object()))
        vhost.add_exchange(BrokerExchange("x", "fanout", durable=False))
        vhost.bind(vhost.exchanges["x"], durable, "", {})
        vhost.bind(vhost.exchanges["amq.fanout"], transient, "", {})
        storage.close()
        storage, broker = started(tmp_path)
        vhost = broker.vhosts["/"]
        assert [*vhost.queues] == ["durable"]
        assert "x" not in vhost.exchanges
        assert [*vhost.bindings()] == []
        storage.close()

    asyncio.run(run())


def test_messages_survive_a_restart(tmp_path: Path) -> None:
    """After a restart, durable queues still have their persistent messages, and quorum queues still have all their
    messages, in order and with their properties. Acknowledged messages, transient messages of classic queues, and the
    messages of a purged queue are gone.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        vhost = broker.vhosts["/"]
        classic, quorum = declared(vhost, "classic"), declared(vhost, "quorum", x_queue_type="quorum")
        purged = declared(vhost, "purged")
        for number in range(5):
            classic.publish(message(b"%d" % number, headers={"n": Int32(number)}))
        classic.publish(message(b"transient", mode=1))
        quorum.publish(message(b"transient", mode=1))
        purged.publish(message(b"purged"))
        await on_disk(storage)
        for _ in range(2):
            classic.acknowledge(classic.get(no_ack=False))
        purged.purge()
        storage.close()

        storage, broker = started(tmp_path)
        queues = broker.vhosts["/"].queues
        assert {name: len(queue) for name, queue in queues.items()} == {"classic": 3, "quorum": 1, "purged": 0}
        first = queues["classic"].get(no_ack=False)
        assert first is not None
        assert (first.message.body, first.message.headers, first.redelivered) == (b"2", {"n": 2}, False)
        assert first.message.header.properties.delivery_mode == 2
        assert bodies(queues["classic"]) == [b"3", b"4"]
        storage.close()

    asyncio.run(run())


def test_after_a_kill_messages_that_may_have_been_delivered_are_marked_as_redelivered(tmp_path: Path) -> None:
    """After a kill and a restart, unacknowledged messages are ready again. If a queue had delivered any message before
    the kill, all messages that were in the queue are marked as redelivered. Messages of other queues, and messages
    published after the restart, are not marked.
    """
    copy = tmp_path / "copy"

    async def run() -> None:
        storage, broker = started(tmp_path / "data")
        delivered, other, too = (declared(broker.vhosts["/"], name) for name in ("delivered", "other", "too"))
        for queue in (delivered, other, too):
            queue.publish(message(b"1"))
            queue.publish(message(b"2"))
        delivered.get(no_ack=False)
        too.get(no_ack=False)
        await on_disk(storage)
        shutil.copytree(tmp_path / "data", copy)
        storage.close()

        storage, broker = started(copy)
        queues = broker.vhosts["/"].queues
        queues["delivered"].publish(message(b"3"))
        found = [queues[name].get(no_ack=False) for name in ["delivered"] * 3 + ["other"] + ["too"] * 2]
        told = [(entry.message.body, entry.redelivered) for entry in found if entry is not None]
        assert {entry.acquired_count for entry in found if entry is not None} == {0}
        assert told == [(b"1", True), (b"2", True), (b"3", False), (b"1", False), (b"1", True), (b"2", True)]
        storage.close()

    asyncio.run(run())


def test_messages_marked_as_redelivered_after_a_kill_are_still_marked_after_a_later_stop(tmp_path: Path) -> None:
    """If a broker is killed after a queue has delivered a message, all messages in the queue are marked as
    redelivered after the restart. They are still marked after the broker is stopped normally and started again, even
    if nobody has consumed them in between. A message that was published after the kill is not marked.
    """
    copy = tmp_path / "copy"

    async def run() -> None:
        storage, broker = started(tmp_path / "data")
        queue = declared(broker.vhosts["/"])
        for body in (b"1", b"2"):
            queue.publish(message(body))
        queue.get(no_ack=False)
        await on_disk(storage)
        shutil.copytree(tmp_path / "data", copy)
        storage.close()

        storage, broker = started(copy)
        broker.vhosts["/"].queues["q"].publish(message(b"3"))
        storage.close()
        storage, broker = started(copy)
        found = [broker.vhosts["/"].queues["q"].get(no_ack=False) for _ in range(3)]
        told = [(entry.message.body, entry.redelivered) for entry in found if entry is not None]
        assert told == [(b"1", True), (b"2", True), (b"3", False)]
        storage.close()

    asyncio.run(run())


def test_after_a_kill_a_message_has_the_delivery_counts_of_the_last_stop(tmp_path: Path) -> None:
    """When the broker is stopped, it stores the delivery counts of messages, so they are the same after a restart. If
    the broker is killed instead, a message has the delivery counts from the last stop. Later deliveries are not
    included.
    """
    copy = tmp_path / "copy"

    async def run() -> None:
        storage, broker = started(tmp_path / "data")
        queue = declared(broker.vhosts["/"], x_queue_type="quorum")
        queue.publish(message(b"x"))
        await on_disk(storage)
        for _ in range(3):
            entry = queue.get(no_ack=False)
            queue.requeue([entry], Why.RELEASED)
        storage.close([entry])
        storage, broker = started(tmp_path / "data")
        broker.vhosts["/"].queues["q"].get(no_ack=False)
        await on_disk(storage)
        shutil.copytree(tmp_path / "data", copy)
        storage.close()
        storage, broker = started(copy)
        entry = broker.vhosts["/"].queues["q"].get(no_ack=False)
        assert (entry.redelivered, entry.acquired_count) == (True, 3)
        storage.close()

    asyncio.run(run())


def test_after_a_stop_only_delivered_messages_are_marked_as_redelivered(tmp_path: Path) -> None:
    """After the broker is stopped and restarted, a message that had been delivered and requeued is marked as
    redelivered, and has the same delivery counts as before. Messages that had not been delivered are not marked.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        queue = declared(broker.vhosts["/"], x_queue_type="quorum")
        for body in (b"1", b"2"):
            queue.publish(message(body))
        await on_disk(storage)
        for why in (Why.RELEASED, Why.RETURNED, Why.RETURNED):
            entry = queue.get(no_ack=False)
            queue.requeue([entry], why)
        storage.close([entry])

        for _ in range(2):
            storage, broker = started(tmp_path)
            queue = broker.vhosts["/"].queues["q"]
            found = [queue.get(no_ack=False) for _ in range(2)]
            told = [(each.message.body, each.redelivered, each.acquired_count, each.delivery_count) for each in found]
            assert told == [(b"1", True, 3, 2), (b"2", False, 0, 0)]
            storage.close()

    asyncio.run(run())


def test_a_message_expires_on_time_after_a_restart(tmp_path: Path) -> None:
    """The TTL of a message counts from its publication, even if the broker is restarted before the message expires."""

    async def run() -> None:
        clock = FakeClock()
        storage, broker = started(tmp_path, clock)
        queue = declared(broker.vhosts["/"])
        queue.publish(message(b"x", expiration=b"1000"))
        storage.close()
        later = FakeClock()
        later.time = clock.time + 600
        storage, broker = started(tmp_path, later)
        queue = broker.vhosts["/"].queues["q"]
        later.pass_by(399)
        assert len(queue) == 1
        later.pass_by(1)
        assert len(queue) == 0
        storage.close()
        storage, broker = started(tmp_path, clock)
        assert len(broker.vhosts["/"].queues["q"]) == 0
        storage.close()

    asyncio.run(run())


def test_a_delayed_message_survives_a_restart(tmp_path: Path) -> None:
    """If the broker stops while an x-delayed-message exchange holds a message back, the exchange still holds the
    message back after the restart. It publishes the message when the delay is over.
    """

    async def run() -> None:
        clock = FakeClock()
        storage, broker = started(tmp_path, clock)
        vhost = broker.vhosts["/"]
        later = BrokerExchange("later", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
        vhost.add_exchange(later)
        vhost.bind(later, declared(vhost), "", {})
        vhost.route(later, message(b"x", headers={"x-delay": Int32(1000)}))
        storage.close()
        clock = FakeClock()
        storage, broker = started(tmp_path, clock)
        vhost = broker.vhosts["/"]
        assert vhost.held(vhost.exchanges["later"]) == 1
        clock.pass_by(999)
        assert len(vhost.queues["q"]) == 0
        clock.pass_by(1)
        assert bodies(vhost.queues["q"]) == [b"x"]
        storage.close()

    asyncio.run(run())


def test_a_queue_that_is_declared_after_a_restart_gets_no_messages_of_an_earlier_queue(tmp_path: Path) -> None:
    """A queue that is declared after a restart does not get the messages of an earlier queue, whether the earlier
    queue still exists or has been deleted. An x-delayed-message exchange that is declared after a restart does not
    hold back messages from before the restart.
    """

    async def run() -> None:
        for number in range(3):
            storage, broker = started(tmp_path)
            vhost = broker.vhosts["/"]
            vhost.add_exchange(
                BrokerExchange(f"x{number}", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
            )
            declared(vhost, f"q{number}").publish(message(b"%d" % number))
            gone = declared(vhost, f"gone{number}")
            gone.publish(message(b"gone"))
            await on_disk(storage)
            vhost.delete_queue(gone)
            storage.close()
        storage, broker = started(tmp_path)
        vhost = broker.vhosts["/"]
        assert {name: bodies(queue) for name, queue in vhost.queues.items()} == {
            f"q{number}": [b"%d" % number] for number in range(3)
        }
        assert [vhost.held(vhost.exchanges[f"x{number}"]) for number in range(3)] == [0, 0, 0]
        storage.close()

    asyncio.run(run())


def test_unacknowledged_messages_count_towards_the_maximum_length_after_a_kill(tmp_path: Path) -> None:
    """Messages that were unacknowledged when the broker was killed are ready after the restart. They count towards
    the maximum length of their queue: if the queue is too long, it drops its oldest messages.
    """
    copy = tmp_path / "copy"

    async def run() -> None:
        storage, broker = started(tmp_path / "data")
        queue = declared(broker.vhosts["/"], x_max_length=Int32(2))
        consumer = FakeConsumer(room=2, queue=queue)
        queue.add_consumer(consumer)
        for number in range(4):
            queue.publish(message(b"%d" % number))
        await on_disk(storage)
        shutil.copytree(tmp_path / "data", copy)
        storage.close()
        for _ in range(2):
            storage, broker = started(copy)
            assert len(broker.vhosts["/"].queues["q"]) == 2
            storage.close()
        storage, broker = started(copy)
        assert bodies(broker.vhosts["/"].queues["q"]) == [b"2", b"3"]
        storage.close()

    asyncio.run(run())


def change(directory: Path, statement: str, *values: object) -> None:
    """Change the database of a broker that is not running."""
    with sqlite3.connect(directory / FILE) as db:
        assert db.execute(statement, values).rowcount > 0
    db.close()


@pytest.mark.parametrize(
    ("kind", "unreadable"),
    [
        ("user", "a user"),
        ("global_parameter", "a global parameter"),
        ("policy", "a policy"),
        ("operator_policy", "an operator policy"),
        ("exchange", "an exchange, a binding"),
        ("queue", "a queue, a binding"),
        ("binding", "a binding"),
    ],
)
def test_one_damaged_definition_does_not_prevent_the_recovery_of_the_rest(
    tmp_path: Path, kind: str, unreadable: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If a definition cannot be read, the broker starts with all other definitions, except the bindings of a damaged
    queue or exchange. It reports and logs the damage at each start. The data directory keeps the damaged definition
    and, if it is that of a queue, the queue's messages.
    """

    def kinds(broker: Broker) -> set[str]:
        """The kinds of definitions that the broker has."""
        vhost = broker.vhosts["/"]
        by_kind = {
            "user": broker.users,
            "global_parameter": broker.global_parameters,
            **vhost.policies.by_kind,
            "exchange": vhost.exchanges,
            "queue": vhost.queues,
            "binding": {binding.destination.name for binding in vhost.bindings()},
        }
        return {kind for kind, found in by_kind.items() if "a" in found}

    async def run() -> None:
        storage, broker = started(tmp_path)
        vhost = broker.vhosts["/"]
        broker.delete_user("guest")
        broker.save_user(User("a", None))
        broker.set_global_parameter("a", "{}")
        vhost.add_exchange(BrokerExchange("a", "fanout"))
        for each in (USER, OPERATOR):
            vhost.policies.put(each, Policy("a", "nothing", {"max-length": Int32(5)}))
        vhost.bind(vhost.exchanges["a"], declared(vhost, "a"), "", {})
        vhost.queues["a"].publish(message(b"x"))
        before = kinds(broker)
        storage.close()
        change(tmp_path, "UPDATE definition SET value = X'00' WHERE kind = ?", kind)

        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.ERROR):
                storage, broker = started(tmp_path)
            lost = {kind, "binding"} if kind in ("exchange", "queue") else {kind}
            assert kinds(broker) == before - lost
            assert storage.damage == (
                f"definitions could not be read: {unreadable}; they are left in the data directory"
            )
            assert caplog.records[0].getMessage().startswith(f"a definition cannot be read: {kind} b'")
            assert caplog.records[0].getMessage().endswith(": ValueError('damaged')")
            (rows,) = storage.database.db.execute("SELECT COUNT(*) FROM entry").fetchone()
            assert rows == 1
            storage.close()

    asyncio.run(run())


@pytest.mark.parametrize("kind", [USER, "exchange", "queue", "binding"])
def test_a_definition_whose_damage_changes_the_type_of_a_value_is_not_restored(tmp_path: Path, kind: str) -> None:
    """If damage has turned the arguments of a queue, an exchange or a binding, or the definition of a policy, from a
    table into a string, the broker reports this definition as damaged when it starts, and does not restore it.
    Otherwise, the broker would fail when it uses the value.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        vhost = broker.vhosts["/"]
        vhost.add_exchange(BrokerExchange("a", "fanout"))
        vhost.policies.put(USER, Policy("a", "nothing", {}))
        vhost.bind(vhost.exchanges["a"], declared(vhost, "a"), "", {})
        storage.close()
        with closing(sqlite3.connect(tmp_path / "broker.sqlite3")) as db, db:
            for key, value in db.execute("SELECT key, value FROM definition WHERE kind = ?", (kind,)).fetchall():
                damaged = re.sub(rb"(definition|arguments)F", rb"\1S", value)
                db.execute("UPDATE definition SET value = ? WHERE kind = ? AND key = ?", (damaged, kind, key))
        storage, broker = started(tmp_path)
        assert "definitions could not be read" in str(storage.damage)
        vhost = broker.vhosts["/"]
        assert (kind == USER) is ("a" not in vhost.policies.by_kind[USER])
        assert (kind == "exchange") is ("a" not in vhost.exchanges)
        assert (kind == "queue") is ("a" not in vhost.queues)
        assert all(isinstance(binding.arguments, dict) for binding in vhost.bindings())
        storage.close()

    asyncio.run(run())


def test_a_damaged_virtual_host_is_missing_after_a_start_but_left_in_the_data_directory(tmp_path: Path) -> None:
    """If the definition of a virtual host cannot be read, the broker starts without this virtual host, and reports
    which of its queues are missing. The data directory keeps everything, so once the definition is restored, the
    virtual host and its contents are available again.
    """

    async def run() -> None:
        storage, _ = started(tmp_path)
        storage.close()
        with sqlite3.connect(tmp_path / FILE) as db:
            ((sound,),) = db.execute("SELECT value FROM definition WHERE kind = 'vhost'").fetchall()
        db.close()
        storage, broker = started(tmp_path)
        declared(broker.vhosts["/"]).publish(message(b"x"))
        storage.close()
        change(tmp_path, "UPDATE definition SET value = ? WHERE kind = 'vhost'", sound[:-1])
        for _ in range(2):
            storage, broker = started(tmp_path)
            assert storage.damage == (
                "definitions could not be read: a vhost, queue 'q'; they are left in the data directory"
            )
            assert "/" not in broker.vhosts
            broker.add_vhost("another")
            declared(broker.vhosts["another"], "other").publish(message(b"y"))
            storage.close()
        change(tmp_path, "UPDATE definition SET value = ? WHERE key = ? AND kind = 'vhost'", sound, b"\0\0\0\1/")
        storage, broker = started(tmp_path)
        assert storage.damage is None
        assert bodies(broker.vhosts["/"].queues["q"]) == [b"x"]
        storage.close()

    asyncio.run(run())


def test_a_damaged_message_does_not_prevent_the_recovery_of_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If a stored message cannot be read, the broker restores the messages before and after it. It logs the number
    under which the damaged message is stored, and leaves this message in the data directory.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        queue = declared(broker.vhosts["/"])
        for number in range(3):
            queue.publish(message(b"%d" % number))
        storage.close()
        change(tmp_path, "UPDATE entry SET header = X'00' WHERE row = 2")
        with caplog.at_level(logging.ERROR):
            storage, broker = started(tmp_path)
        (record,) = caplog.records
        assert record.getMessage().startswith("message 2 is damaged, and left in the data directory: ")
        assert bodies(broker.vhosts["/"].queues["q"]) == [b"0", b"2"]
        storage.close()
        with sqlite3.connect(tmp_path / FILE) as db:
            assert db.execute("SELECT row FROM entry").fetchall() == [(2,)]
        db.close()

    asyncio.run(run())


def test_messages_of_a_deleted_queue_are_deleted_at_the_next_start(tmp_path: Path) -> None:
    """If the broker is killed before it has deleted the messages of a deleted queue, it deletes these messages at its
    next start. No queue that is declared later gets them.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        declared(broker.vhosts["/"]).publish(message(b"x"))
        storage.close()
        change(tmp_path, "DELETE FROM definition WHERE kind = 'queue'")
        storage, broker = started(tmp_path)
        queue = declared(broker.vhosts["/"], "other")
        assert (storage.damage, len(queue)) == (None, 0)
        queue.publish(message(b"y"))
        storage.close()
        storage, broker = started(tmp_path)
        assert bodies(broker.vhosts["/"].queues["other"]) == [b"y"]
        storage.close()
        with sqlite3.connect(tmp_path / FILE) as db:
            assert db.execute("SELECT row FROM entry").fetchall() == []
        db.close()

    asyncio.run(run())


@pytest.mark.parametrize("is_damaged", [False, True])
def test_the_files_of_a_deleted_stream_are_deleted_unless_a_definition_is_damaged(
    tmp_path: Path, *, is_damaged: bool
) -> None:
    """If the broker is killed before it has deleted the files of a deleted stream, it deletes them at its next start.
    If any definition is damaged, it keeps the files, because the damaged definition may be that of the stream. A
    stream that is declared later never gets these files.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        for name in ("kept", "gone"):
            declared(broker.vhosts["/"], name, x_queue_type="stream").publish(message(b"x"))
        await on_disk(storage)
        storage.close()
        change(tmp_path, "DELETE FROM definition WHERE kind = 'queue' AND instr(key, 'gone')")
        if is_damaged:
            change(tmp_path, "UPDATE definition SET value = X'00' WHERE kind = 'user'")
        storage, broker = started(tmp_path)
        assert len(list((tmp_path / STREAMS).iterdir())) == 1 + is_damaged
        assert len(broker.vhosts["/"].queues["kept"]) == 1
        assert len(declared(broker.vhosts["/"], "new", x_queue_type="stream")) == 0
        storage.close()

    asyncio.run(run())


def test_files_that_the_broker_did_not_create_are_left_in_its_data_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the directories in which the broker keeps its streams contain files or directories that it did not create, it
    warns about each of these when it starts, and leaves them where they are.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        stream = declared(broker.vhosts["/"], "s", x_queue_type="stream")
        stream.publish(message(b"x"))
        await on_disk(storage)
        storage.close()
        (directory,) = (tmp_path / STREAMS).iterdir()
        foreign = [tmp_path / STREAMS / "!notes", tmp_path / STREAMS / "17", directory / "old.txt"]
        for path in foreign:
            path.write_text("mine")
        (tmp_path / STREAMS / "\u0663").mkdir()
        with caplog.at_level(logging.WARNING):
            storage, broker = started(tmp_path)
        told = sorted(record.getMessage() for record in caplog.records)
        paths = [*foreign, tmp_path / STREAMS / "\u0663"]
        assert told == sorted(f"{str(path)!a} is not a file of the broker: it is ignored" for path in paths)
        assert all(path.exists() for path in paths)
        assert len(broker.vhosts["/"].queues["s"]) == 1
        storage.close()

    asyncio.run(run())


def test_unreadable_bytes_at_the_end_of_streams_are_reported(tmp_path: Path) -> None:
    """If the files of several streams end with bytes that cannot be read, the broker still starts, and reports each
    of these streams.
    """

    async def run() -> None:
        storage, broker = started(tmp_path)
        for name in ("s", "t"):
            declared(broker.vhosts["/"], name, x_queue_type="stream").publish(message(b"x"))
        await on_disk(storage)
        storage.close()
        for directory in (tmp_path / STREAMS).iterdir():
            for path in directory.iterdir():
                with path.open("ab") as file:
                    file.write(b"rubbish")
        storage, broker = started(tmp_path)
        told = (
            "the last 7 bytes of stream '{}' could not be read: nothing is lost if the broker was killed as it wrote "
            "them; else the disk has damaged them. They are kept in the data directory"
        )
        assert storage.damage == "; ".join(told.format(name) for name in ("s", "t"))
        assert [len(broker.vhosts["/"].queues[name]) for name in ("s", "t")] == [1, 1]
        storage.close()

    asyncio.run(run())


def test_a_broker_that_is_killed_as_it_creates_its_defaults_creates_them_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a new broker is killed before it has created all of its default definitions, it creates them at its next
    start.
    """

    class Killed(Exception):
        pass

    def fail(*_: object) -> None:
        raise Killed

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Broker, "set_permissions", fail)
            with pytest.raises(Killed):
                started(tmp_path / "data")
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
        storage, broker = started(tmp_path / "copy")
        assert broker.users["guest"].permissions == {"/": Permissions()}
        storage.close()

    asyncio.run(run())
