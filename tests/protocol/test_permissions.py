"""Permissions and topic permissions over AMQP 0-9-1."""

import re
from collections.abc import Callable
from contextlib import nullcontext

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ProbableAccessDeniedError

from tests.brokers import TestBroker
from tests.protocol.conftest import Api


def test_a_user_without_permissions_cannot_connect_to_a_virtual_host(
    connect: Callable[..., pika.BlockingConnection], amqp_url: str, ann: str, vhost: str
) -> None:
    """If a user without permissions in a virtual host connects to it, the broker refuses the connection with an error
    that names the user and the virtual host.
    """
    with pytest.raises(ProbableAccessDeniedError) as refused:
        connect(amqp_url.replace("guest:guest", f"{ann}:secret"))
    assert f"NOT_ALLOWED - access to vhost '{vhost}' refused for user '{ann}'" in str(refused.value)


TOPICS: list[tuple[Callable[[BlockingChannel], object], str | None]] = [
    (lambda c: c.basic_publish("amq.topic", "ann.news", b""), None),
    (lambda c: (c.basic_publish("amq.topic", "bob.news", b""), c.queue_declare("q")), "bob.news"),
    (lambda c: c.basic_publish("amq.direct", "bob.news", b""), None),
    (lambda c: c.queue_bind("q", "amq.topic", "news.#"), None),
    (lambda c: c.queue_bind("q", "amq.topic", "#"), "#"),
    (lambda c: c.queue_unbind("q", "amq.topic", "#"), "#"),
    (lambda c: c.exchange_bind("amq.fanout", "amq.topic", "#"), "#"),
]


def test_topic_permissions_apply_to_publishing_and_binding(
    connect: Callable[..., pika.BlockingConnection], api: Api, amqp_url: str, ann: str, vhost: str
) -> None:
    """If a user has topic permissions for a topic exchange, the user can publish to this exchange only with matching
    routing keys, and can bind queues and exchanges to it only with matching binding keys. Other exchanges are not
    affected.
    """
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": ".*", "write": ".*", "read": ".*"})
    path = f"topic-permissions/{vhost}/{ann}"
    rights = {"exchange": "amq.topic", "write": "^({username}|ann)\\.", "read": "^news"}
    assert api("PUT", path, rights)[0] == 201
    api("PUT", f"users/{ann}", {"password": "secret", "tags": ""})  # a new password leaves all permissions as they are
    assert api("GET", path)[1] == [{"user": ann, "vhost": vhost, **rights}]
    assert api("GET", f"vhosts/{vhost}/topic-permissions")[1] == [{"user": ann, "vhost": vhost, **rights}]
    connection = connect(amqp_url.replace("guest:guest", f"{ann}:secret"))
    connection.channel().queue_declare("q")
    for action, key in TOPICS:
        channel = connection.channel()
        if key is None:
            action(channel)
            channel.close()
            continue
        with pytest.raises(ChannelClosedByBroker) as refused:
            action(channel)
        where = f"exchange 'amq.topic' in vhost '{vhost}'"
        said = f"ACCESS_REFUSED - access to topic '{key}' in {where} refused for user '{ann}'"
        assert re.sub("- (read|write) access", "- access", refused.value.reply_text) == said
    assert api("DELETE", path)[0] == 204
    assert api("GET", path)[0] == 404
    connection.channel().queue_bind("q", "amq.topic", "#")


@pytest.mark.parametrize("right", ["configure", "write", "read", None])
def test_a_passive_declaration_needs_any_permission_from_rabbitmq_4_3_on(
    broker: TestBroker, connect: Callable[..., pika.BlockingConnection], api: Api, ann: str, right: str | None
) -> None:
    """From RabbitMQ 4.3 on, a passive declaration of a queue or an exchange needs one of the three permissions."""
    mine = connect(broker.url).channel()
    mine.queue_declare("jobs")
    mine.exchange_declare("logs")
    rights = {name: ".*" if name == right else "" for name in ("configure", "write", "read")}
    api("PUT", f"permissions/{broker.vhost}/{ann}", rights)
    connection = connect(broker.url.replace("guest:guest", f"{ann}:secret"))
    refuses = right is None and broker.differs_since("4.3", "it checks passive declarations")
    for declare in (
        lambda channel: channel.queue_declare("jobs", passive=True),
        lambda channel: channel.exchange_declare("logs", passive=True),
    ):
        with pytest.raises(ChannelClosedByBroker, match="configure access to") if refuses else nullcontext():
            declare(connection.channel())


@pytest.mark.parametrize("header", ["CC", "BCC"])
def test_topic_permissions_apply_to_cc_and_bcc_from_rabbitmq_4_0_3_on(
    connect: Callable[..., pika.BlockingConnection],
    api: Api,
    amqp_url: str,
    ann: str,
    vhost: str,
    broker: TestBroker,
    header: str,
) -> None:
    """From RabbitMQ 4.0.3 on, a publisher's topic permissions apply to a message's own routing key and to the routing
    keys in CC and BCC. In earlier versions, such as 3.10, they apply only to the message's own routing key.
    """
    api("PUT", f"users/{ann}", {"password": "secret", "tags": "management"})
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": ".*", "write": ".*", "read": ".*"})
    api("PUT", f"topic-permissions/{vhost}/{ann}", {"exchange": "amq.topic", "write": "^ann", "read": ".*"})
    connection = connect(amqp_url.replace("guest:guest", f"{ann}:secret"))
    channel = connection.channel()
    channel.queue_declare("bobs")
    channel.queue_bind("bobs", "amq.topic", "bob.#")
    channel.confirm_delivery()
    message = {"properties": {}, "routing_key": "ann.news", "payload": "x", "payload_encoding": "string"}
    for keys in (["ann.too"], ["ann.too", "bob.news"]):
        refuses = len(keys) == 2 and broker.differs_since("4.0", "it checks every routing key")
        properties = {"headers": {header: keys}}
        posted = api(
            "POST", f"exchanges/{vhost}/amq.topic/publish", {**message, "properties": properties}, ann, "secret"
        )
        assert (posted[0], "access to topic 'bob.news'" in str(posted[1])) == ((400, True) if refuses else (200, False))
        if refuses:
            with pytest.raises(ChannelClosedByBroker, match=r"access to topic .bob\.news."):
                channel.basic_publish("amq.topic", "ann.news", b"", pika.BasicProperties(**properties))
        else:
            channel.basic_publish("amq.topic", "ann.news", b"", pika.BasicProperties(**properties))
    arrived = connection.channel().queue_declare("bobs", passive=True).method.message_count
    assert arrived == (0 if broker.differs_since("4.0", "it checks every routing key") else 2)


def test_connecting_to_a_virtual_host_that_does_not_exist_is_refused(
    connect: Callable[..., pika.BlockingConnection], amqp_url: str, vhost: str
) -> None:
    """If a client connects to a virtual host that does not exist, the broker refuses the connection with NOT_ALLOWED
    and the name of the virtual host.
    """
    with pytest.raises(ProbableAccessDeniedError) as refused:
        connect(amqp_url.replace(vhost, "none"))
    assert "NOT_ALLOWED - vhost none not found" in str(refused.value)


FORBIDDEN: list[tuple[Callable[[BlockingChannel], object], str]] = [
    (lambda c: c.queue_declare("hers"), "queue 'hers'"),
    (lambda c: c.queue_delete("hers"), "queue 'hers'"),
    (lambda c: c.exchange_declare("hers"), "exchange 'hers'"),
    (lambda c: c.exchange_delete("hers"), "exchange 'hers'"),
    (lambda c: c.basic_get("secret"), "queue 'secret'"),
    (lambda c: c.basic_consume("secret", print), "queue 'secret'"),
    (lambda c: c.queue_purge("secret"), "queue 'secret'"),
    (lambda c: (c.basic_publish("amq.topic", "k", b""), c.queue_declare("mine")), "exchange 'amq.topic'"),
    (lambda c: (c.basic_publish("", "k", b""), c.queue_declare("mine")), "exchange 'amq.default'"),
    (lambda c: c.queue_bind("hers", "amq.fanout", "k"), "queue 'hers'"),
    (lambda c: c.queue_bind("mine", "secret", "k"), "exchange 'secret'"),
    (lambda c: c.exchange_bind("mine", "secret", "k"), "exchange 'secret'"),
    (lambda c: c.exchange_bind("amq.topic", "mine", "k"), "exchange 'amq.topic'"),
    (lambda c: c.queue_declare("mine-2", arguments={"x-dead-letter-exchange": "hers"}), "exchange 'hers'"),
    (lambda c: c.queue_declare("mine-2", arguments={"x-dead-letter-exchange": ""}), "exchange 'amq.default'"),
    (lambda c: c.exchange_declare("mine", arguments={"alternate-exchange": "hers"}), "exchange 'hers'"),
]


@pytest.mark.parametrize(
    ("action", "what"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else "access to"
)
def test_an_operation_for_which_the_user_lacks_the_permission_is_refused(
    connect: Callable[..., pika.BlockingConnection],
    broker: TestBroker,
    api: Api,
    amqp_url: str,
    ann: str,
    vhost: str,
    action: Callable[[BlockingChannel], object],
    what: str,
) -> None:
    """If a user lacks the configure, write or read permission for an AMQP 0-9-1 operation, the broker closes the
    channel with error 403. The error names the user, the virtual host, and the queue or exchange that the user cannot
    access.
    """
    rights = {"configure": "^mine", "write": "^mine", "read": "^(mine|amq|hers)"}
    api("PUT", f"permissions/{vhost}/{ann}", rights)
    channel = connect(amqp_url.replace("guest:guest", f"{ann}:secret")).channel()
    with pytest.raises(ChannelClosedByBroker) as refused:
        action(channel)
    assert refused.value.reply_code == 403
    said = refused.value.reply_text
    if broker.differs_since("4.0", "it says which access is refused"):
        said = re.sub(r"- (configure|write|read) access", "- access", said)
    assert said == f"ACCESS_REFUSED - access to {what} in vhost '{vhost}' refused for user '{ann}'"


def test_a_permission_allows_only_matching_names(
    connect: Callable[..., pika.BlockingConnection], api: Api, amqp_url: str, ann: str, vhost: str
) -> None:
    """A user with the configure pattern `^mine$`, the write pattern `.*` and an empty read pattern can declare the
    queue `mine` and publish to it, but cannot read from it. The user cannot declare other queues, such as `mine2` or
    `Mine`.
    """
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": "^mine$", "write": ".*", "read": ""})
    connection = connect(amqp_url.replace("guest:guest", f"{ann}:secret"))
    channel = connection.channel()
    channel.queue_declare("mine")
    channel.basic_publish("", "mine", b"x")
    with pytest.raises(ChannelClosedByBroker) as refused:
        channel.basic_get("mine")
    assert refused.value.reply_code == 403
    for other in ("mine2", "not-mine", "Mine"):
        with pytest.raises(ChannelClosedByBroker) as refused:
            connection.channel().queue_declare(other)
        assert refused.value.reply_code == 403
