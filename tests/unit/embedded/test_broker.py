"""The broker as a whole: users and virtual hosts, the alarms that block publishers, and limits of connections."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mqtool.broker.embedded.model.amqp_errors import ChannelException, ConnectionException
from mqtool.broker.embedded.model.broker import LOW_ON_DISK, LOW_ON_MEMORY, Broker, check_channels, check_connections
from mqtool.broker.embedded.model.ledger import Ledger, default_memory_limit
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.users import Permissions, TopicPermissions, User
from mqtool.broker.embedded.model.virtual_host import VhostLabels, VirtualHost
from tests.unit.embedded.test_queue import FakeClock, add_queue, message
from tests.unit.embedded.test_recovery import contents, started

_MIB = 1024 * 1024


@dataclass(eq=False)
class Client:
    """A connection without a socket."""

    user: User
    vhost: VirtualHost
    held_bytes: int = 0
    is_open: bool = True
    channels: list[int] = field(default_factory=list)
    #: Why the broker has closed the connection.
    reasons: list[str] = field(default_factory=list)
    unblocked: int = 0
    #: The consumer timeouts that were applied.
    timeouts: list[float] = field(default_factory=list)

    def force_close(self, reason: str) -> None:
        self.reasons.append(reason)

    def unblock(self) -> None:
        self.unblocked += 1

    def check_consumers(self, timeout: float) -> None:
        self.timeouts.append(timeout)


class Scene:
    """A broker with two virtual hosts, two users, and a memory limit of 1,000 bytes."""

    def __init__(self, memory_limit: int = 1000) -> None:
        self.clock, self.ledger = FakeClock(), Ledger()
        self.connections: list[Client] = []
        self.broker = Broker(self.ledger, self.connections, memory_limit=memory_limit, clock=self.clock)
        self.broker.create_defaults()
        self.vhost, self.other = self.broker.vhosts["/"], self.broker.add_vhost("other")
        self.guest, self.ann = self.broker.users["guest"], User.with_password("ann", "secret", ["monitoring"])
        self.broker.save_user(self.ann)

    def connect(self, held_bytes: int = 0, *, user: User | None = None, vhost: VirtualHost | None = None) -> Client:
        client = Client(user or self.guest, vhost or self.vhost)
        self.connections.append(client)
        self.hold(client, held_bytes)
        return client

    def hold(self, client: Client, by: int) -> None:
        client.held_bytes += by
        self.broker.hold_for_client(by)


@pytest.fixture
def scene() -> Scene:
    return Scene()


# Users, virtual hosts and parameters


def test_a_new_broker_has_the_user_guest_and_the_default_virtual_host(scene: Scene) -> None:
    """A new broker has the virtual host `/`, and the user guest, who is an administrator and has all permissions in
    this virtual host.
    """
    assert scene.vhost.description == "Default virtual host"
    assert (scene.guest.tags, scene.guest.permissions) == (["administrator"], {"/": Permissions(".*", ".*", ".*")})
    assert scene.broker.authenticate("guest", "guest", from_loopback=True) is scene.guest
    assert scene.broker.authenticate("guest", "guest", from_loopback=False) is None
    assert scene.broker.authenticate("ann", "secret", from_loopback=False) is scene.ann
    assert scene.broker.authenticate("ann", "wrong", from_loopback=True) is None


def restarted(directory: Path, change: Callable[[Broker], object]) -> tuple[dict[str, object], Broker]:
    """Change a new broker with a data directory; return its definitions and the broker after a restart."""

    async def run() -> tuple[dict[str, object], Broker]:
        storage, broker = started(directory)
        broker.create_defaults()
        change(broker)
        before = contents(broker)
        storage.close()
        storage, broker = started(directory)
        storage.close()
        return before, broker

    return asyncio.run(run())


def test_changing_the_description_or_limits_of_a_virtual_host_changes_nothing_else(tmp_path: Path) -> None:
    """If the description or the limits of a virtual host are changed, its tags, default queue type and protection
    from deletion stay the same, even after a restart. Adding an existing virtual host again without a description
    changes nothing.
    """
    labels = VhostLabels(("a", "b"), "quorum", is_protected=True)

    def change(broker: Broker) -> None:
        vhost = broker.add_vhost("v", "first")
        broker.limit_vhost(vhost, {"max-queues": 5})
        broker.label_vhost(vhost, labels)
        assert broker.add_vhost("v") is vhost
        assert vhost.description == "first"
        assert broker.add_vhost("v", "second") is vhost
        broker.limit_vhost(vhost, {"max-queues": 6})
        assert broker.add_vhost("plain").description == ""

    before, broker = restarted(tmp_path, change)
    assert contents(broker) == before
    vhost = broker.vhosts["v"]
    assert (vhost.description, vhost.limits, vhost.labels) == ("second", {"max-queues": 6}, labels)


def test_the_permissions_of_a_deleted_virtual_host_are_deleted(tmp_path: Path) -> None:
    """When a virtual host is deleted, the broker deletes all permissions and topic permissions for it, and keeps those
    for other virtual hosts. If a virtual host with the same name is created again, no user has permissions for it. All
    of this is still true after a restart.
    """
    topics = {("v", "t"): TopicPermissions("a", "b"), ("w", "t"): TopicPermissions("c", "d")}

    def change(broker: Broker) -> None:
        for name in ("v", "w"):
            broker.add_vhost(name)
            broker.set_permissions("guest", name, Permissions("", "", ""))
        broker.set_permissions("guest", "/", None)
        broker.set_permissions("guest", "missing", None)
        broker.save_user(User("topics", None, topic_permissions=dict(topics)))
        broker.save_user(User("none", None))
        versions = broker.permissions_version
        broker.delete_vhost("v")
        assert broker.permissions_version == versions + 2
        broker.save_user(User("gone", None))
        broker.delete_user("gone")
        assert broker.permissions_version == versions + 4
        assert "v" not in broker.vhosts
        broker.add_vhost("v")

    before, broker = restarted(tmp_path, change)
    assert contents(broker) == before
    assert broker.users["guest"].permissions == {"w": Permissions("", "", "")}
    assert broker.users["topics"].topic_permissions == {("w", "t"): topics["w", "t"]}
    assert set(broker.users) == {"guest", "topics", "none"}


def test_deleting_a_virtual_host_or_a_user_closes_its_connections(scene: Scene) -> None:
    """When a virtual host is deleted, the broker closes the open connections to it, and deletes its queues. The
    broker's totals still include the messages that these queues have delivered. When a user is deleted, the broker
    closes the user's open connections. All other connections stay open.
    """
    here, there, ann = scene.connect(), scene.connect(vhost=scene.other), scene.connect(user=scene.ann)
    for opening in (scene.connect(vhost=scene.other), scene.connect(user=scene.ann)):
        opening.is_open = False
    queue = add_queue(scene.other)
    queue.publish(message())
    queue.get(no_ack=True)
    scene.broker.delete_vhost("other")
    scene.broker.delete_user("ann")
    reasons = [client.reasons for client in scene.connections]
    assert reasons == [[], ["vhost 'other' is deleted"], ["user 'ann' is deleted"], [], []]
    assert scene.broker.totals.deleted["classic"].got_no_ack == 1
    assert scene.other.queues == {}
    scene.broker.close_connections("stopping")
    assert here.reasons == ["stopping"]
    assert there.reasons[1:] == ann.reasons[1:] == ["stopping"]


def test_the_memory_that_global_parameters_and_other_definitions_take_is_limited(tmp_path: Path) -> None:
    """Global parameters are stored on disk. Like queues, bindings and other definitions, they take memory until they
    are deleted. Once all definitions together take more memory than their limit, the broker refuses a new global
    parameter with error 406.
    """

    def change(broker: Broker) -> None:
        before = broker.ledger.definition_bytes
        broker.set_global_parameter("p", '"text"')
        once = broker.ledger.definition_bytes
        assert once > before
        broker.set_global_parameter("p", '"text+"')
        assert broker.ledger.definition_bytes == once + 1
        broker.set_global_parameter("kept", "1")
        broker.set_global_parameter("p", None)
        broker.set_global_parameter("missing", None)
        broker.set_global_parameter("kept", None)
        assert (broker.ledger.definition_bytes, broker.ledger.held_bytes) == (before, before)
        broker.set_global_parameter("kept", "2")
        broker.ledger.most_definition_bytes = 0
        with pytest.raises(ChannelException, match=r"^PRECONDITION_FAILED - cannot declare global parameter 'no': "):
            broker.set_global_parameter("no", "1")

    before, broker = restarted(tmp_path, change)
    assert contents(broker) == before
    assert broker.global_parameters == {"kept": "2"}


def test_the_cluster_name_contains_the_port_unless_it_is_set(scene: Scene) -> None:
    """By default, the cluster name contains the AMQP port of the broker, so that it is unique on the machine. A cluster
    name that has been set is used as it is.
    """
    assert scene.broker.cluster_name == "embedded-0@localhost"
    scene.broker.listeners["amqp"] = ("127.0.0.1", 5672)
    assert scene.broker.cluster_name == "embedded-5672@localhost"
    scene.broker.set_global_parameter("cluster_name", '"rabbit"')
    assert scene.broker.cluster_name == "rabbit"


# Memory and alarms


@pytest.mark.parametrize(
    ("memory", "connection", "definitions"),
    [(1000, 1000, 1_000_000), (256 * _MIB, 256 * _MIB, 128 * _MIB), (512 * _MIB, 256 * _MIB, 256 * _MIB),
     (4096 * _MIB, 1024 * _MIB, 2048 * _MIB), (2_000_003, 2_000_003, 1_000_001)],
)  # fmt: skip
def test_the_memory_of_one_connection_and_of_all_definitions_is_limited(
    memory: int, connection: int, definitions: int
) -> None:
    """One connection can take up to a quarter of the broker's memory limit, or up to 256 MiB if that is more, but
    never more than the whole limit. All definitions together, such as queues and bindings, can take up to half of the
    memory limit, or up to 1 MB if that is more.
    """
    broker = Scene(memory).broker
    assert (broker.memory_limit, broker.connection_limit) == (memory, connection)
    assert (broker.ledger.most_definition_bytes, broker.ledger.most_bytes) == (definitions, memory * 1.25)


def test_the_defaults_of_a_broker_are_those_of_rabbitmq() -> None:
    """By default, a broker has RabbitMQ's limits, such as a consumer timeout of 30 minutes and a free disk space limit
    of 50 MB, and behaves like RabbitMQ 4.2.
    """
    clock = FakeClock()
    broker = Broker(Ledger(), clock=clock)
    assert (broker.memory_limit, broker.disk_free_limit) == (default_memory_limit(), 50_000_000)
    assert (broker.consumer_timeout, broker.profile, broker.started_at) == (1800, PROFILES[Like.V4_2], clock.now())
    assert (broker.clients(), broker.dropped_unroutable, broker.hooks) == ([], 0, None)
    assert (broker.reply_consumers, broker.logins, broker.requeued_per_step) == ({}, {}, 500)


def test_publishers_are_blocked_while_messages_and_clients_take_too_much_memory(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Once messages and clients together take more memory than the memory limit, the broker raises a memory alarm,
    which blocks publishers. The log says how much memory is taken. Once messages and clients take at most 80% of the
    limit, the broker ends the alarm and unblocks publishers.
    """
    caplog.set_level(logging.WARNING)
    broker, client = scene.broker, scene.connect(400)
    scene.ledger.hold_bytes(600 - scene.ledger.held_bytes + 400)
    assert broker.alarms == {}
    for by, reason in ((1, LOW_ON_MEMORY), (500, LOW_ON_MEMORY), (-700, LOW_ON_MEMORY), (-1, ""), (200, ""),
                       (1, LOW_ON_MEMORY), (-201, "")):  # fmt: skip
        scene.ledger.hold_bytes(by)
        assert broker.alarm_reason == reason
    assert client.unblocked == 2
    texts = ["memory alarm set: messages and clients take 1001 bytes", "memory alarm cleared"]
    assert [each.getMessage() for each in caplog.records] == texts * 2
    scene.hold(client, 201)
    assert broker.alarm_reason == LOW_ON_MEMORY
    assert (broker.held_for_clients, scene.ledger.held_bytes) == (601, 1001)
    scene.hold(client, -201)
    assert (broker.alarms, broker.held_for_clients) == ({}, 400)


def test_publishers_stay_blocked_until_the_last_alarm_ends(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """If several resource alarms are raised, the reason that the broker sends to blocked publishers contains each
    different reason once. The broker unblocks publishers when the last alarm ends. Raising an alarm that is already
    raised, or ending one that is not, has no effect.
    """
    caplog.set_level(logging.WARNING)
    broker, client, other = scene.broker, scene.connect(), Client(scene.ann, scene.other)
    broker.add_clients([other])
    broker.raise_alarm("disk space", LOW_ON_DISK, "only 5 bytes are free")
    broker.raise_alarm("disk space", "again", "again")
    broker.raise_alarm("disk", LOW_ON_DISK, "no space")
    scene.ledger.hold_bytes(1000 - scene.ledger.held_bytes)
    assert broker.alarm_reason == "low on disk"
    scene.ledger.hold_bytes(1)
    assert broker.alarm_reason == "low on disk & memory"
    broker.raise_alarm("fault", "testing", "testing")
    assert broker.alarm_reason == "low on disk & memory & testing"
    for name in ("fault", "disk", "disk", "disk space"):
        broker.clear_alarm(name)
    assert (client.unblocked, broker.alarms) == (0, {"memory": LOW_ON_MEMORY})
    scene.ledger.hold_bytes(-scene.ledger.held_bytes)
    assert (client.unblocked, other.unblocked) == (1, 1)
    broker.clear_alarm("memory")
    assert client.unblocked == 1
    assert "disk space alarm set: only 5 bytes are free" in caplog.text
    assert "again" not in caplog.text


def test_during_a_memory_alarm_the_largest_connection_is_closed_every_5_seconds(scene: Scene) -> None:
    """If a memory alarm begins because connections take too much memory, the broker waits 5 seconds, and then closes
    the connection that takes the most memory. It closes another one every 5 seconds until the alarm ends. With each
    new alarm, it waits 5 seconds again.
    """
    scene.ledger.hold_bytes(800 - scene.ledger.held_bytes)
    small, large, none = scene.connect(90), scene.connect(111), scene.connect()
    scene.clock.pass_by(4999)
    assert large.reasons == []
    scene.clock.pass_by(1)
    assert large.reasons == ["low on memory: 111 bytes are held for this connection"]
    scene.hold(large, -100)
    scene.clock.pass_by(5000)
    assert small.reasons == ["low on memory: 90 bytes are held for this connection"]
    scene.hold(small, -90)
    scene.hold(large, -11)
    assert scene.broker.alarms == {}
    scene.hold(none, 300)
    scene.clock.pass_by(4999)
    assert none.reasons == [], "the timer of the first alarm was still running"
    scene.hold(none, -300)
    scene.clock.pass_by(20_000)
    assert (len(small.reasons), len(large.reasons), none.reasons) == (1, 1, [])


@pytest.mark.parametrize("held", [0, 5])
def test_a_memory_alarm_closes_no_connection_while_messages_alone_take_too_much(scene: Scene, held: int) -> None:
    """During a memory alarm, the broker closes no connection as long as messages alone take more than 80% of the
    memory limit. Once messages take less, it closes the connection that takes the most memory, but never a connection
    that takes no memory.
    """
    scene.clock.pass_by(1)
    scene.ledger.hold_bytes(801 - scene.ledger.held_bytes)
    client = scene.connect(held)
    scene.ledger.hold_bytes(300)
    scene.clock.pass_by(10_000)
    assert client.reasons == []
    scene.hold(client, 501)
    scene.ledger.hold_bytes(-501)
    assert scene.broker.alarms
    scene.clock.pass_by(5_000)
    assert client.reasons == [f"low on memory: {501 + held} bytes are held for this connection"]
    scene.connections.clear()
    scene.clock.pass_by(5_000)
    idle = scene.connect()
    scene.clock.pass_by(5_000)
    assert (idle.reasons, scene.broker.alarm_reason) == ([], LOW_ON_MEMORY)


def test_connections_that_take_too_much_memory_are_closed() -> None:
    """If a connection takes more memory than the limit for one connection, the broker closes it in the next turn of
    its event loop, even without a memory alarm. A connection that is already closing is not closed again.
    """
    scene = Scene(1024 * _MIB)
    limit = 256 * _MIB
    exact, closing = scene.connect(limit), scene.connect(limit + 2)
    closing.is_open = False
    scene.clock.pass_by(0)
    assert (exact.reasons, closing.reasons) == ([], [])
    scene.hold(exact, 1)
    assert exact.reasons == []
    scene.hold(exact, 1)
    scene.clock.pass_by(0)
    assert exact.reasons == [f"{limit + 2} bytes are held for this connection, which is more than {limit}"]
    scene.hold(exact, -1)
    scene.clock.pass_by(0)
    assert len(exact.reasons) == 1
    scene.hold(exact, 1)
    scene.clock.pass_by(0)
    assert len(exact.reasons) == 2


# Clients


def test_the_clients_of_all_protocols_are_checked_for_late_acknowledgements(scene: Scene) -> None:
    """When the broker looks for deliveries that have been unacknowledged for longer than the consumer timeout, it
    checks the clients of all protocols. It checks them in later turns of its event loop, not immediately, so that it
    can serve clients in between.
    """
    first, other = scene.connect(), Client(scene.ann, scene.other)
    scene.broker.add_clients([other])
    scene.broker.consumer_timeout = 7
    scene.broker.check_consumers()
    assert (scene.broker.clients(), first.timeouts, other.timeouts) == ([first, other], [], [])
    scene.clock.pass_by(0)
    assert (first.timeouts, other.timeouts) == ([7], [7])


@pytest.mark.parametrize("limit", [None, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("of", ["vhost", "user"])
def test_connections_to_a_virtual_host_or_of_a_user_can_be_limited(scene: Scene, of: str, limit: int | None) -> None:
    """The broker refuses a connection with error 530 if its virtual host or its user has reached the connection
    limit. Connections that are no longer open, and those to other virtual hosts or of other users, do not count
    towards the limit. A negative limit means that there is no limit.
    """
    limits = {"max-connections": limit} if limit is not None else {}
    if of == "vhost":
        scene.broker.limit_vhost(scene.vhost, limits)
        text = "access to vhost '/' refused for user 'guest': connection limit"
    else:
        scene.guest.limits = limits
        text = "connection refused for user 'guest': user connection limit"
    scene.connect()
    scene.connect()
    scene.connect().is_open = False
    scene.connect(user=scene.ann, vhost=scene.other)
    check_connections(scene.broker, scene.other, "ann")
    check_connections(scene.broker, scene.other, "deleted")
    if limit is not None and 0 <= limit <= 2:
        with pytest.raises(ConnectionException) as refused:
            check_connections(scene.broker, scene.vhost, "guest")
        assert refused.value.text == f"NOT_ALLOWED - {text} ({limit}) is reached"
    else:
        check_connections(scene.broker, scene.vhost, "guest")


@pytest.mark.parametrize("limit", [None, -1, 0, 3, 4])
def test_the_channels_of_a_user_can_be_limited(scene: Scene, limit: int | None) -> None:
    """The broker refuses a new channel with error 530 if the user's open connections together have as many channels
    as the user's limit allows. A negative limit means that there is no limit.
    """
    scene.guest.limits = {"max-channels": limit} if limit is not None else {}
    for channels, user in (([1, 2], scene.guest), ([1], scene.guest), ([1, 2], scene.ann)):
        scene.connect(user=user).channels = channels
    check_channels(scene.broker, "ann")
    if limit is not None and 0 <= limit <= 3:
        with pytest.raises(ConnectionException) as refused:
            check_channels(scene.broker, "guest")
        text = "number of channels opened for user 'guest' has reached the maximum allowed user limit of"
        assert refused.value.text == f"NOT_ALLOWED - {text} ({limit})"
    else:
        check_channels(scene.broker, "guest")
