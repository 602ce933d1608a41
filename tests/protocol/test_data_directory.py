"""The broker starts on its data directory again, whatever clients have declared and whatever is in it."""

import asyncio
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pika
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pika import BasicProperties

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model.amqp_errors import AmqpException
from mqtool.broker.embedded.model.applied_policies import USER, Policy
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.users import Permissions, User
from mqtool.broker.embedded.store.database import Database
from mqtool.broker.embedded.store.recovery import recover
from mqtool.broker.embedded.store.storage import Storage
from mqtool.codecs.field_tables import encode_table
from mqtool.routing import canonical
from tests.brokers import ALL_CASES, IN_CI, large
from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Api, Take

PERSISTENT = BasicProperties(delivery_mode=2)

#: In CI, and in long runs (MQTOOL_EXAMPLES), more sequences are tried.
EXAMPLES = int(os.environ.get("MQTOOL_EXAMPLES", "400" if ALL_CASES else "60" if IN_CI else "5"))


@pytest.fixture
def process(tmp_path: Path) -> Iterator[BrokerProcess]:
    options = ("--data-dir", str(tmp_path / "data"), "--management-port", "0", "--stream-port", "0")
    with BrokerProcess(tmp_path, *options) as broker:
        yield broker


def connect(process: BrokerProcess) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(process.url))


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        value = {"n": value}
    return value


@pytest.mark.parametrize("depth", [62, 63, 64, 65, 80, 400])
def test_deeply_nested_queue_arguments_are_stored_or_refused(process: BrokerProcess, depth: int) -> None:
    """If a queue with deeply nested arguments is declared over HTTP, the broker either refuses the declaration with
    status 400, or stores the queue. If it stores the queue, the queue still exists after the broker is killed and
    restarted.
    """
    api = Api(process.management_url)
    status, _ = api("PUT", "queues/%2F/q", {"durable": True, "arguments": {"x-unknown": nested(depth)}})
    assert status in (201, 400)
    described, _ = api("PUT", "vhosts/v", {"description": nested(depth)})
    assert described < 500
    process.kill()
    process.start()
    assert Api(process.management_url)("GET", "queues/%2F/q")[0] == (200 if status == 201 else 404)
    assert "could not be read" not in process.log


def test_deleting_a_virtual_host_deletes_its_bindings_and_policies(process: BrokerProcess) -> None:
    """If a virtual host is deleted and, after a restart of the broker, a new one with the same name is created, the new
    one has none of the bindings and policies of the deleted one.
    """
    api = Api(process.management_url)
    api("PUT", "vhosts/v")
    assert api("POST", "bindings/v/e/amq.fanout/e/amq.direct", {"routing_key": "k"})[0] == 201
    assert api("PUT", "policies/v/p", {"pattern": ".*", "definition": {"max-length": 1}})[0] in (201, 204)
    assert api("DELETE", "vhosts/v")[0] == 204
    process.kill()
    process.start()
    assert "could not be read" not in process.log
    api = Api(process.management_url)
    api("PUT", "vhosts/v")
    assert api("GET", "exchanges/v/amq.fanout/bindings/source")[1] == []
    assert api("GET", "policies/v")[1] == []


def test_unusual_names_stay_distinct_after_a_restart(tmp_path: Path) -> None:
    r"""One queue's name contains the byte 0xff, and the names of two others contain an escape sequence for this byte as
    text, such as `\xff`. After a restart, the broker still has all three queues. Bindings whose queue names or routing
    keys contain NUL also stay distinct.
    """
    names = ("q\udcff", "q\\udcff", "q\\xff")
    bindings = [("d", "k\0x"), ("d\0k", "x")]
    with EmbeddedBroker(data_dir=tmp_path) as broker:
        connection = pika.BlockingConnection(pika.URLParameters(broker.url))
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("q\\udcff", durable=True)
        channel.basic_publish("", "q\\udcff", b"kept", PERSISTENT)
        for queue, key in bindings:
            channel.queue_declare(queue, durable=True)
            channel.queue_bind(queue, "amq.direct", key)
        connection.close()
    found = reopened(tmp_path, lambda broker: [add_queue(broker, "/", name) for name in names])
    found = reopened(tmp_path)
    assert {name for _, name, _ in found["queues"]} == {*names, "d", "d\0k"}
    assert {(queue, key) for _, _, _, queue, key, _ in found["bindings"]} >= set(bindings)


def test_a_stored_definition_that_cannot_be_read_is_skipped(process: BrokerProcess) -> None:
    """If a queue's stored definition cannot be read, the broker logs an error and starts without this queue. Once the
    definition is repaired, the broker has the queue and its messages again.
    """
    channel = connect(process).channel()
    channel.confirm_delivery()
    for queue in ("bad", "good"):
        channel.queue_declare(queue, durable=True)
        channel.basic_publish("", queue, queue.encode(), PERSISTENT)
    channel.queue_bind("bad", "amq.fanout")
    process.kill()
    database = process.directory / "data" / "broker.sqlite3"

    def change(before: bytes, after: bytes) -> None:
        with closing(sqlite3.connect(database)) as db, db:
            changed = db.execute(
                "UPDATE definition SET value = CAST(? || substr(value, ?) AS BLOB) "
                "WHERE kind = 'queue' AND instr(key, 'bad') AND substr(value, 1, ?) = ?",
                (after, len(before) + 1, len(before), before),
            )
            assert changed.rowcount == 1

    with closing(sqlite3.connect(database)) as db:
        (value,) = db.execute("SELECT value FROM definition WHERE kind = 'queue' AND instr(key, 'bad')").fetchone()
    change(value[:4], b"\xff\xff\xff\xff")
    process.start()
    assert "definitions could not be read: a queue" in process.log
    assert Take(connect(process).channel()).one("good")[2] == b"good"
    process.stop()
    change(b"\xff\xff\xff\xff", value[:4])
    process.start()
    assert Take(connect(process).channel()).one("bad")[2] == b"bad"


def test_unknown_files_in_a_data_directory_are_ignored(process: BrokerProcess) -> None:
    """If the broker's data directory contains files that the broker does not know, the broker starts, logs that these
    files do not belong to it, and leaves them in place.
    """
    channel = connect(process).channel()
    channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
    channel.confirm_delivery()
    channel.basic_publish("", "s", b"1")
    process.stop()
    streams = process.directory / "data" / "streams"
    (stream,) = streams.iterdir()
    foreign = [streams / ".DS_Store", stream / ".DS_Store", stream / "copy of 0.segment", streams / "7"]
    for path in foreign:
        path.write_bytes(b"x")
    (streams / "lost+found").mkdir()
    process.start()
    assert process.log.count("is not a file of the broker") == len(foreign) + 1
    assert all(path.exists() for path in foreign)
    assert connect(process).channel().queue_declare("s", passive=True).method.message_count == 1


def test_a_full_disk_at_the_start_is_reported(process: BrokerProcess) -> None:
    """If the disk is too full for the broker to start, the broker reports how much space it needs, and exits with 1.
    When it is started again with enough space, it still has all messages.
    """
    channel = connect(process).channel()
    channel.queue_declare("q", durable=True)
    channel.confirm_delivery()
    for _ in range(20):
        channel.basic_publish("", "q", bytes(10_000), PERSISTENT)
    process.kill()
    data = process.directory / "data"
    before = (data / "broker.sqlite3-wal").read_bytes()
    tried = subprocess.run(
        [sys.executable, "-m", "mqtool.broker.embedded", "--port", "0", "--data-dir", str(data)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    said = tried.stdout + tried.stderr
    assert tried.returncode == 1, said
    assert re.search(r"the disk is full: \d+ bytes are free, and about \d+ are needed", said), said
    assert "damage" not in said
    assert (data / "broker.sqlite3-wal").read_bytes() == before
    process.start()
    assert connect(process).channel().queue_declare("q", passive=True).method.message_count == 20


def test_a_deleted_user_guest_is_not_created_again(process: BrokerProcess) -> None:
    """The broker creates the user guest only in a new data directory. If all users and the virtual host `/` have been
    deleted, the broker does not create guest again at its next start.
    """
    api = Api(process.management_url)
    api("PUT", "users/boss", {"password": "secret", "tags": "administrator"})
    assert api("DELETE", "users/guest")[0] == 204
    assert api("DELETE", "vhosts/%2F", user="boss", password="secret")[0] == 204
    assert api("DELETE", "users/boss", user="boss", password="secret")[0] == 204
    process.kill()
    process.start()
    assert Api(process.management_url)("GET", "overview")[0] == 401


@large
def test_a_slow_disk_delays_declarations_of_durable_queues_but_not_the_use_of_transient_queues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is slow, the replies to declarations of durable queues, over AMQP or HTTP, wait for the disk.
    Meanwhile, a client on another connection can publish to a transient queue and purge it without a delay.
    """
    slow, syncing, done = threading.Event(), threading.Event(), threading.Event()
    sync = Database.sync

    def slow_sync(database: Database) -> None:
        if slow.is_set():
            syncing.set()
            done.wait(60)
        sync(database)

    monkeypatch.setattr(Database, "sync", slow_sync)
    with EmbeddedBroker(data_dir=tmp_path, management_port=0) as broker:
        assert broker.management_url is not None
        parameters = pika.URLParameters(broker.url)
        other = pika.BlockingConnection(parameters).channel()
        other.queue_declare("transient", exclusive=True)
        slow.set()
        channel = pika.BlockingConnection(parameters).channel()
        api = Api(broker.management_url)
        waiting = [
            threading.Thread(target=lambda: channel.queue_declare("durable", durable=True)),
            threading.Thread(target=lambda: api("PUT", "queues/%2F/too", {"durable": True})),
        ]
        for thread in waiting:
            thread.start()
        try:
            assert syncing.wait(60)
            for _ in range(20):
                other.basic_publish("", "transient", b"x")
                other.queue_purge("transient")
            assert all(thread.is_alive() for thread in waiting), "a reply did not wait for the disk"
        finally:
            done.set()
        for thread in waiting:
            thread.join(60)
            assert not thread.is_alive()


# Definitions as a hostile client declares them, applied directly to the model. Accepted ones must survive a restart.

NAMES = st.sampled_from(
    ["", "v", "q", "q\udcff", "q\\udcff", "d", "d\0k", "k\0x", "x", "\0", "\x00\x00\x00\x01q", "ü" * 60]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
DEEP = st.integers(60, 120).map(nested)
TABLES = st.dictionaries(st.sampled_from(["a", "x-max-length", "y" * 300, "\udcff"]), VALUES | DEEP, max_size=2)
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["vhost", "queue", "exchange", "bind", "policy", "user", "delete", "drop vhost"]),
        NAMES,
        NAMES,
        NAMES,
        TABLES,
    ),
    max_size=25,
)


def add_queue(broker: Broker, vhost: str, name: str, arguments: Any = None) -> None:
    if name not in broker.vhosts[vhost].queues:
        broker.vhosts[vhost].add_queue(QueueDeclaration(name, arguments or {}))


def apply(  # noqa: C901 - one case per operation
    broker: Broker, what: str, one: str, two: str, three: str, table: dict[str, Any]
) -> None:
    """Perform one operation as the protocols do; a refused one raises AmqpException or KeyError."""
    vhosts = list(broker.vhosts.values())
    vhost = vhosts[len(one) % len(vhosts)] if vhosts else broker.add_vhost("/")
    match what:
        case "vhost":
            broker.add_vhost(one, two)
        case "queue":
            add_queue(broker, vhost.name, two, table)
        case "exchange":
            if two not in vhost.exchanges:
                vhost.add_exchange(BrokerExchange(two, "topic", arguments=table))
        case "bind":
            ends: list[Any] = [*vhost.queues.values(), *vhost.exchanges.values()]
            vhost.bind(vhost.exchanges["amq.topic"], ends[len(two) % len(ends)], three, table)
        case "policy":
            vhost.policies.put(USER, Policy(two, "^$", table))
        case "user":
            broker.save_user(User.with_password(one, two, [three]))
            broker.set_permissions(one, vhost.name, Permissions(two, three))
        case "delete":
            for queue in list(vhost.queues.values()):
                vhost.delete_queue(queue)
        case "drop vhost":
            broker.delete_vhost(vhost.name)


def snapshot(broker: Broker) -> dict[str, Any]:
    vhosts = broker.vhosts.values()
    return {
        "damage": broker.ledger.damage,  # type: ignore[attr-defined]
        "vhosts": sorted((vhost.name, vhost.description) for vhost in vhosts),
        "users": sorted((name, repr(user)) for name, user in broker.users.items()),
        "queues": sorted((v.name, q.name, encode_table(q.arguments)) for v in vhosts for q in v.queues.values()),
        "exchanges": sorted((v.name, x.name, encode_table(x.arguments)) for v in vhosts for x in v.exchanges.values()),
        "policies": sorted(
            (v.name, (p.name, p.pattern, encode_table(p.definition)))
            for v in vhosts
            for p in v.policies.by_kind[USER].values()
        ),
        "bindings": sorted(
            (
                v.name,
                b.source.name,
                b.destination.destination_type,
                b.destination.name,
                b.routing_key,
                canonical(b.arguments),
            )
            for v in vhosts
            for b in v.bindings()
        ),
    }


def reopened(directory: Path, change: Callable[[Broker], object] = lambda _: None) -> dict[str, Any]:
    """Open a data directory, change the broker, close it, and return its definitions at the end."""

    async def run() -> dict[str, Any]:
        storage = Storage(directory)
        broker = Broker(storage)
        recover(broker, storage)
        change(broker)
        found = snapshot(broker)
        storage.close()
        return found

    return asyncio.run(run())


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=OPERATIONS)
def test_definitions_survive_a_restart_after_random_declarations_and_deletions(
    operations: list[tuple[str, str, str, str, dict[str, Any]]],
) -> None:
    """After a random sequence of declarations and deletions, and a restart, the broker has exactly the same definitions
    as before the restart.
    """

    def change(broker: Broker) -> None:
        for operation in operations:
            try:
                apply(broker, *operation)
            except (AmqpException, KeyError):
                continue

    with TemporaryDirectory() as directory:
        before = reopened(Path(directory), change)
        assert reopened(Path(directory)) == before


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_corrupted_definition_never_prevents_a_start(data: st.DataObject) -> None:
    """If a stored definition is corrupted on disk, for example by changed or missing bytes, the broker still starts,
    and a new virtual host can be created.
    """
    with TemporaryDirectory() as name:
        directory = Path(name)

        def change(broker: Broker) -> None:
            for operation in ("vhost", "queue", "exchange", "bind", "policy", "user"):
                apply(broker, operation, "v", "q", "k", {})

        reopened(directory, change)
        with closing(sqlite3.connect(directory / "broker.sqlite3")) as db, db:
            rows = db.execute("SELECT kind, key, value FROM definition").fetchall()
            kind, key, value = data.draw(st.sampled_from(rows))
            raw = bytearray(value)
            for _ in range(data.draw(st.integers(1, 3))):
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
            bad: Any = data.draw(st.sampled_from([bytes(raw), bytes(raw[: len(raw) // 2]), b"", None, 7, "text"]))
            db.execute("UPDATE definition SET value = ? WHERE kind = ? AND key = ?", (bad, kind, key))
        reopened(directory)
        reopened(directory, lambda broker: apply(broker, "vhost", "w", "", "", {}))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory as a killed broker leaves it: with definitions, messages, and a stream."""
    parent = tmp_path_factory.mktemp("killed")
    with BrokerProcess(parent) as process:
        channel = connect(process).channel()
        channel.confirm_delivery()
        channel.queue_declare("q", durable=True)
        channel.queue_declare("s", durable=True, arguments={"x-queue-type": "stream"})
        channel.queue_bind("q", "amq.topic", "#")
        for number in range(30):
            channel.basic_publish("amq.topic", "k", b"%d" % number * 50, PERSISTENT)
            channel.basic_publish("", "s", b"%d" % number * 50)
        process.kill()
    return parent / "data"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_with_a_damaged_data_directory_the_broker_starts_or_says_why_it_cannot(
    killed: Path, data: st.DataObject
) -> None:
    """If any file in the broker's data directory is corrupted, truncated, extended or removed, starting the broker
    either succeeds, or raises OSError with the reason.
    """
    with TemporaryDirectory() as name:
        directory = Path(name) / "data"
        shutil.copytree(killed, directory)
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from(files))
        raw = bytearray(path.read_bytes())
        match data.draw(st.sampled_from(["flip", "cut", "grow", "empty", "remove"])):
            case "flip" if raw:
                for _ in range(data.draw(st.integers(1, 5))):
                    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del raw[data.draw(st.integers(0, len(raw))) :]
            case "grow":
                raw += data.draw(st.binary(max_size=200))
            case "empty":
                raw.clear()
            case "remove":
                path.unlink()
        if path.exists():
            path.write_bytes(raw)
        refused = []
        for _ in range(2):
            try:
                reopened(directory)
            except OSError as error:
                refused.append(str(error))
        assert all(re.search("restore the file|cannot use", each) for each in refused)
