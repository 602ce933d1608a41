"""Who may do what."""

import re
import uuid
from collections.abc import Callable, Iterator

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ProbableAccessDeniedError

from tests.brokers import TestBroker
from tests.protocol.conftest import Api


@pytest.fixture
def ann(api: Api) -> Iterator[str]:
    """A user without permissions."""
    name = f"ann-{uuid.uuid4().hex[:8]}"
    api("PUT", f"users/{name}", {"password": "secret", "tags": ""})
    yield name
    api("DELETE", f"users/{name}")


def test_without_permissions_there_is_no_way_in(
    connect: Callable[..., pika.BlockingConnection], amqp_url: str, ann: str, vhost: str
) -> None:
    """Not even to look."""
    with pytest.raises(ProbableAccessDeniedError) as refused:
        connect(amqp_url.replace("guest:guest", f"{ann}:secret"))
    assert f"NOT_ALLOWED - access to vhost '{vhost}' refused for user '{ann}'" in str(refused.value)


def test_a_vhost_that_is_not_there(connect: Callable[..., pika.BlockingConnection], amqp_url: str, vhost: str) -> None:
    """530."""
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
    (lambda c: c.queue_declare("mine-2", arguments={"x-dead-letter-exchange": "hers"}), "exchange 'hers'"),
    (lambda c: c.exchange_declare("mine", arguments={"alternate-exchange": "hers"}), "exchange 'hers'"),
]


@pytest.mark.parametrize(("action", "what"), FORBIDDEN, ids=[str(number) for number in range(len(FORBIDDEN))])
def test_what_is_not_allowed_is_refused(
    connect: Callable[..., pika.BlockingConnection],
    broker: TestBroker,
    api: Api,
    amqp_url: str,
    ann: str,
    vhost: str,
    action: Callable[[BlockingChannel], object],
    what: str,
) -> None:
    """configure, write and read, by name."""
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


def test_what_is_allowed_works(
    connect: Callable[..., pika.BlockingConnection], api: Api, amqp_url: str, ann: str, vhost: str
) -> None:
    """And an empty pattern allows nothing but names that the broker makes."""
    api("PUT", f"permissions/{vhost}/{ann}", {"configure": "^mine$", "write": ".*", "read": ""})
    connection = connect(amqp_url.replace("guest:guest", f"{ann}:secret"))
    channel = connection.channel()
    channel.queue_declare("mine")
    channel.basic_publish("", "mine", b"x")
    with pytest.raises(ChannelClosedByBroker):
        channel.basic_get("mine")
