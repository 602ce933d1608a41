"""Permissions: what the embedded broker allows each user, and what it refuses."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mqtool.broker.embedded.http.http_server import HttpRequest
from mqtool.broker.embedded.http.queue_routes import delete_queue, purge
from mqtool.broker.embedded.http.route_table import RouteCall
from mqtool.broker.embedded.model.amqp_errors import ChannelException
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader, MessageProperties, encode_address
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.ledger import Ledger
from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.rights import Rights
from mqtool.broker.embedded.model.users import Permissions, TopicPermissions, User

_TOPIC, _FANOUT = BrokerExchange("logs", "topic"), BrokerExchange("logs", "fanout")


def refusal(
    ask: Callable[[Rights], object],
    permissions: Permissions | None = None,
    topics: TopicPermissions | None = None,
    like: Like = Like.V4_3,
) -> str:
    """Return the text of the 403 error that the broker answers to ann, who has these permissions; "" if she is allowed
    to do it.
    """

    async def answer() -> str:
        broker = Broker(Ledger(), profile=PROFILES[like])
        broker.create_defaults()
        broker.vhosts["/"].exchanges["logs"] = _TOPIC
        ann = User.with_password("ann", "secret", [])
        if permissions is not None:
            ann.permissions["/"] = permissions
        if topics is not None:
            ann.topic_permissions["/", "logs"] = topics
        broker.save_user(ann)
        try:
            ask(Rights(broker, "ann", "/"))
        except ChannelException as error:
            return f"{error.code} {error.what}"
        return ""

    code, _, said = asyncio.run(answer()).partition(" ")
    assert code in ("403", "")
    return said


@pytest.mark.parametrize("what", ["configure", "write", "read"])
@pytest.mark.parametrize("kind", ["queue", "exchange"])
def test_configure_write_and_read_permissions_are_independent_of_each_other(what: str, kind: str) -> None:
    """The permissions `configure`, `write` and `read` are independent of each other. If a user lacks one of them, the
    broker's error names the missing permission.
    """
    granted = Permissions(**{"configure": "", "write": "", "read": "", what: "^mine"})
    assert refusal(lambda rights: rights.check(what, kind, "mine"), granted) == ""
    said = f"{what} access to {kind} 'yours' in vhost '/' refused for user 'ann'"
    assert refusal(lambda rights: rights.check(what, kind, "yours"), granted) == said
    for other in {"configure", "write", "read"} - {what}:
        assert refusal(lambda rights, other=other: rights.check(other, kind, "mine"), granted)


def test_with_like_3_10_an_error_does_not_name_the_permission() -> None:
    """With `broker up --like 3.10`, the error for a missing permission says that access was refused, but not which
    permission is missing, as in RabbitMQ 3.10.
    """
    said = "access to exchange 'amq.default' in vhost '/' refused for user 'ann'"
    denied = Permissions("", "", "")
    assert refusal(lambda rights: rights.check("write", "exchange", ""), denied, like=Like.V3_10) == said


@pytest.mark.parametrize("what", ["configure", "write", "read"])
def test_a_user_without_permissions_in_a_virtual_host_is_refused_every_access(what: str) -> None:
    """If a user has no permissions in a virtual host, the broker refuses each of the user's requests that needs
    configure, write or read permission for a queue of this virtual host.
    """
    assert refusal(lambda rights: rights.check(what, "queue", "q"))


def test_a_deleted_user_is_refused_every_access() -> None:
    """After a user is deleted, the broker refuses each request for read access on the user's open connections, even if
    it allowed the same request before the deletion.
    """

    def ask(rights: Rights) -> None:
        rights.check("read", "queue", "q")
        del rights._broker.users["ann"]
        rights._broker.permissions_version += 1
        rights.check_topic("write", _TOPIC, "key")
        rights.check("read", "queue", "q")

    assert refusal(ask, Permissions()) == "read access to queue 'q' in vhost '/' refused for user 'ann'"


def test_changed_permissions_apply_immediately() -> None:
    """If a user's permissions are changed, the new ones apply immediately, even on connections that the user already
    has open.
    """

    def ask(rights: Rights) -> None:
        rights.check("read", "queue", "q")
        rights.check("read", "queue", "q")
        assert not rights.has_topics
        rights._broker.users["ann"].topic_permissions["/", "logs"] = TopicPermissions()
        rights._broker.set_permissions("ann", "/", Permissions(read="^other$"))
        rights.check("read", "queue", "other")
        assert rights.has_topics
        rights.check("read", "queue", "q")

    assert refusal(ask, Permissions()) == "read access to queue 'q' in vhost '/' refused for user 'ann'"


_KEYS = TopicPermissions(write=r"^{username}\.", read="^all$")


@pytest.mark.parametrize(
    ("what", "exchange", "key", "topics", "said"),
    [
        ("write", _TOPIC, "ann.x", _KEYS, ""),
        ("write", _TOPIC, "bob.x", _KEYS, "write access to topic 'bob.x' in exchange 'logs' in vhost '/'"),
        ("read", _TOPIC, "all", _KEYS, ""),
        ("read", _TOPIC, "ann.x", _KEYS, "read access to topic 'ann.x' in exchange 'logs' in vhost '/'"),
        ("write", _FANOUT, "bob.x", _KEYS, ""),
        ("write", None, "bob.x", _KEYS, ""),
        ("write", BrokerExchange("other", "topic"), "bob.x", _KEYS, ""),
        ("write", _TOPIC, "bob.x", None, ""),
        (
            "write",
            _TOPIC,
            "any",
            TopicPermissions(write=""),
            "write access to topic 'any' in exchange 'logs' in vhost '/'",
        ),
        ("write", _TOPIC, "", TopicPermissions(write=""), ""),
        ("write", _TOPIC, "at / home", TopicPermissions(write="^at {vhost} "), ""),
    ],
)
def test_topic_permissions_are_for_the_routing_keys_of_a_topic_exchange(
    what: str, exchange: BrokerExchange | None, key: str, topics: TopicPermissions | None, said: str
) -> None:
    """If a user has topic permissions for a topic exchange, the user can publish and bind only with routing keys that
    match them. If the user has no topic permissions, or the exchange is of another type, any routing key is allowed.
    """
    answer = refusal(lambda rights: rights.check_topic(what, exchange, key), Permissions(), topics)
    assert answer == (f"{said} refused for user 'ann'" if said else "")


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({}, False),
        ({"CC": ["ann.x"]}, False),
        ({"CC": ["ann.x", "bob.x"]}, True),
        ({"BCC": ["bob.x"]}, True),
        ({"CC": ["ann.x"], "BCC": ["bob.x"]}, True),
        ({"cc": ["bob.x"]}, False),
    ],
    ids=[
        "no headers",
        "allowed CC",
        "one forbidden CC",
        "forbidden BCC",
        "allowed CC, forbidden BCC",
        "cc in lower case",
    ],
)
def test_topic_permissions_apply_to_the_routing_keys_in_cc_and_bcc(headers: dict[str, Any], is_refused: bool) -> None:
    """As in RabbitMQ from 4.0.3 on, a publisher's topic permissions also apply to the routing keys in the headers CC
    and BCC of a message. With `broker up --like 3.10`, they do not.
    """

    def ask(rights: Rights) -> None:
        rights.check_copies(_TOPIC, headers)

    said = "write access to topic 'bob.x' in exchange 'logs' in vhost '/' refused for user 'ann'"
    for like in Like:
        assert refusal(ask, Permissions(), _KEYS, like) == (said if is_refused and like is not Like.V3_10 else "")


@pytest.mark.parametrize(
    ("kind", "argument"), [("queue", "x-dead-letter-exchange"), ("exchange", "alternate-exchange")]
)
@pytest.mark.parametrize(
    ("permissions", "leads_to", "exists", "missing"),
    [
        (Permissions("^new$", "^dlx$", "^new$"), "dlx", False, None),
        (Permissions("", ".*", ".*"), "dlx", False, ("configure", "new")),
        (Permissions("^new$", "^dlx$", ""), "dlx", False, ("read", "new")),
        (Permissions("^new$", "^new$", "^new$"), "dlx", False, ("write", "dlx")),
        (Permissions("^new$", "", ""), "dlx", True, None),
        (Permissions("", "", ""), None, True, ("configure", "new")),
        (Permissions("^new$", "", ""), None, False, None),
        (Permissions("^new$", "", ""), 5, False, None),
    ],
    ids=[
        "all needed",
        "no configure",
        "no read",
        "no write",
        "existing",
        "existing without configure",
        "no exchange named",
        "exchange is not text",
    ],
)
def test_a_declaration_needs_permissions_for_the_exchange_it_names(
    kind: str, argument: str, permissions: Permissions, leads_to: Any, exists: bool, missing: tuple[str, str] | None
) -> None:
    """To declare a new queue with a dead-letter exchange, or a new exchange with an alternate exchange, a user needs
    configure and read permission for the new queue or exchange, and write permission for the dead-letter or alternate
    exchange. If the queue or exchange already exists, configure permission is enough.
    """

    def ask(rights: Rights) -> None:
        check = rights.check_queue_declaration if kind == "queue" else rights.check_exchange_declaration
        check("new", {argument: leads_to, "x-other": "other"}, exists=exists)

    said = ""
    if missing is not None:
        what, name = missing
        said = f"{what} access to {kind if name == 'new' else 'exchange'} '{name}' in vhost '/' refused for user 'ann'"
    assert refusal(ask, permissions) == said


@pytest.mark.parametrize("kind", ["queue", "exchange"])
@pytest.mark.parametrize(
    ("permissions", "key", "missing"),
    [
        (Permissions("", "^mine$", "^logs$"), "all", None),
        (Permissions(".*", "", ".*"), "all", ("write", "mine")),
        (Permissions(".*", ".*", ""), "all", ("read", "logs")),
        (Permissions(), "ann.x", ("topic", "ann.x")),
        (Permissions(), None, None),
    ],
    ids=["all needed", "no write", "no read", "forbidden topic", "no routing key"],
)
def test_a_binding_needs_write_permission_for_its_destination_and_read_for_its_source(
    kind: str, permissions: Permissions, key: str | None, missing: tuple[str, str] | None
) -> None:
    """To add a binding, a user needs write permission for its destination and read permission for its source. If the
    user has topic permissions for the source, the routing key must match them, too.
    """
    answer = refusal(lambda rights: rights.check_binding(kind, "mine", "logs", key), permissions, _KEYS)
    match missing:
        case None:
            assert answer == ""
        case "topic", topic:
            assert answer == f"read access to topic '{topic}' in exchange 'logs' in vhost '/' refused for user 'ann'"
        case what, name:
            of = kind if name == "mine" else "exchange"
            assert answer == f"{what} access to {of} '{name}' in vhost '/' refused for user 'ann'"


@pytest.mark.parametrize(
    "algorithm", ["rabbit_password_hashing_sha256", "rabbit_password_hashing_sha512", "rabbit_password_hashing_md5"]
)
def test_a_password_is_checked_with_the_hashing_algorithm_of_its_user(algorithm: str) -> None:
    """The broker checks a password with the hashing algorithm that is stored for the user. If the stored hash was
    made with another algorithm, or if no hash is stored, the user cannot log in.
    """
    user = User.with_password("ann", "secret é\udcff", ["monitoring"])
    assert (user.tags, user.permissions) == (["monitoring"], {})
    user.algorithm = algorithm
    assert user.authenticates("secret é\udcff") is (algorithm == "rabbit_password_hashing_sha256")
    assert not user.authenticates("other")
    assert not User("bob", None).authenticates("")
    assert not User("bob", None).authenticates("None")


def test_two_users_with_the_same_password_have_different_hashes() -> None:
    """Two users with the same password have different password hashes, because each hash contains a random salt of four
    bytes.
    """
    one, other = (User.with_password(name, "secret", []).password_hash or b"" for name in ("ann", "bob"))
    assert len(one) == len(other) == 4 + 32
    assert one[4:] != other[4:]


@pytest.mark.parametrize("drop", [delete_queue, purge])
def test_a_queue_is_not_deleted_or_purged_for_a_user_who_is_deleted_during_the_request(
    drop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's HTTP request to delete or purge a queue waits for messages that are being requeued. If the user is
    deleted while the request is waiting, the broker refuses the request, and the queue is unchanged.
    """

    async def send() -> int:
        broker = Broker(Ledger())
        broker.create_defaults()
        broker.users["ann"] = ann = User.with_password("ann", "secret", [])
        ann.permissions["/"] = Permissions(".*", ".*", ".*")
        queue = broker.vhosts["/"].add_queue(QueueDeclaration("jobs", {}))
        header = ContentHeader.of(MessageProperties(b"\0\0"), 1)
        queue.publish(BrokerMessage(encode_address("", "jobs"), header, b"x"))

        def work_some(_: BrokerQueue) -> bool:
            is_first = "ann" in broker.users
            if is_first:
                broker.delete_user("ann")
            return is_first

        monkeypatch.setattr(BrokerQueue, "work_some", work_some)
        request = HttpRequest("DELETE", [], {}, {}, None, from_loopback=True)
        api: Any = SimpleNamespace(broker=broker)
        with pytest.raises(ChannelException, match="refused for user 'ann'"):
            await drop(RouteCall(api, request, ann), "/", "jobs")
        assert not queue.deleted
        return len(queue)

    assert asyncio.run(send()) == 1
