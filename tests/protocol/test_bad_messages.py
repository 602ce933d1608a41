"""A message that cannot be handled is set aside: other messages and clients are not affected, and it is logged once."""

import logging
import time
from pathlib import Path
from typing import Any

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.model import dead_lettering
from mqtool.broker.embedded.model.amqp_message import BrokerMessage
from mqtool.broker.embedded.model.virtual_host import Routing, VirtualHost
from tests.protocol.conftest import Api, Take


def open_channel(broker: EmbeddedBroker) -> BlockingChannel:
    channel = pika.BlockingConnection(pika.URLParameters(broker.url)).channel()
    channel.confirm_delivery()
    return channel


def dead_letters_to(channel: BlockingChannel, target: str, **arguments: object) -> str:
    """Declare `target`, and a durable queue that dead-letters there; return its name."""
    channel.queue_declare(target, durable=True)
    settings = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": target}
    channel.queue_declare("source", durable=True, arguments=settings | {f"x-{k}": v for k, v in arguments.items()})
    return "source"


@pytest.mark.parametrize("depth", [60, 61, 62, 63])
@pytest.mark.parametrize("header", ["CC", "BCC", "x"])
def test_expired_messages_with_deeply_nested_headers_are_dead_lettered(depth: int, header: str) -> None:
    """When a message expires, the broker dead-letters it, even if a header (CC, BCC or any other) contains lists
    nested more than 60 levels deep. It also dead-letters the queue's next message.
    """
    value: Any = ["k"]
    for _ in range(depth):
        value = [value]
    with EmbeddedBroker() as broker:
        channel = open_channel(broker)
        source = dead_letters_to(channel, "dead")
        channel.basic_publish("", source, b"bad", BasicProperties(headers={header: value}, expiration="1"))
        channel.basic_publish("", source, b"good", BasicProperties(expiration="2"))
        take = Take(channel)
        assert take.bodies("dead", 2) == [b"bad", b"good"]


def test_a_message_that_cannot_be_dead_lettered_is_kept_until_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If an internal error prevents the broker from dead-lettering a persistent message, the broker keeps the message
    on disk, and dead-letters it after a restart. If the error affects several messages, the broker logs it only once.
    """
    caplog.set_level(logging.ERROR)
    make = dead_lettering.dead_letter

    def fail(message: BrokerMessage, *args: Any, **options: Any) -> BrokerMessage:
        if message.body.startswith(b"bad"):
            raise RecursionError
        return make(message, *args, **options)

    with EmbeddedBroker(data_dir=tmp_path) as broker, monkeypatch.context() as patched:
        patched.setattr(dead_lettering, "dead_letter", fail)
        channel = open_channel(broker)
        source = dead_letters_to(channel, "dead", **{"max-length": 0})
        for body in (b"bad 1", b"1", b"bad 2", b"2"):
            channel.basic_publish("", source, body, BasicProperties(delivery_mode=2))
        assert Take(channel).bodies("dead", 2) == [b"1", b"2"]
        assert channel.queue_declare(source, passive=True).method.message_count == 0
    assert [record.message for record in caplog.records if "set aside" in record.message] == [
        "a message of queue 'source' cannot be dead-lettered: the message is set aside; "
        "further failures of this kind are not logged"
    ]
    with EmbeddedBroker(data_dir=tmp_path) as broker:
        channel = open_channel(broker)
        assert Take(channel).bodies("dead", 2) == [b"bad 1", b"bad 2"]


def test_a_delayed_message_that_cannot_be_published_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """If an internal error prevents the broker from publishing a delayed message that is due, other delayed messages
    are still delivered.
    """
    enqueue = VirtualHost.enqueue

    def fail(vhost: VirtualHost, routing: Routing) -> Any:
        if routing.message.body == b"bad" and routing.queues:
            raise ValueError
        return enqueue(vhost, routing)

    monkeypatch.setattr(VirtualHost, "enqueue", fail)
    with EmbeddedBroker() as broker:
        channel = open_channel(broker)
        channel.exchange_declare("x", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
        channel.queue_declare("q")
        channel.queue_bind("q", "x")
        for delay, body in enumerate((b"bad", b"1", b"bad", b"2"), 1):
            channel.basic_publish("x", "", body, BasicProperties(headers={"x-delay": 20 * delay}))
        assert Take(channel).bodies("q", 2) == [b"1", b"2"]


@pytest.mark.parametrize("step", [-3600, 3600])
def test_setting_the_clock_affects_neither_ttl_nor_delays(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """If the system clock is set forward or back by an hour, a message still expires once its TTL has passed, and a
    delayed message still arrives once its delay has passed.
    """
    now, now_ns = time.time, time.time_ns
    with EmbeddedBroker() as broker:
        channel = open_channel(broker)
        source = dead_letters_to(channel, "dead")
        channel.exchange_declare("x", "x-delayed-message", arguments={"x-delayed-type": "fanout"})
        channel.queue_declare("q")
        channel.queue_bind("q", "x")
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: now() + step)
            patched.setattr(time, "time_ns", lambda: now_ns() + step * 1_000_000_000)
            started = time.monotonic()
            channel.basic_publish("", source, b"1", BasicProperties(expiration="300"))
            channel.basic_publish("x", "", b"2", BasicProperties(headers={"x-delay": 900}))
            channel.queue_declare("q", passive=True)  # the broker has handled both
        # basic.get and a new delayed message make the broker look at the clock again.
        method, _, _ = channel.basic_get(source)
        if method is not None:
            channel.basic_nack(method.delivery_tag)
        channel.basic_publish("x", "", b"3", BasicProperties(headers={"x-delay": 1}))
        take = Take(channel)
        assert take.bodies("dead", 1) == [b"1"]
        assert time.monotonic() - started >= 0.299  # the broker counts whole milliseconds
        assert sorted(take.bodies("q", 2)) == [b"2", b"3"]
        assert time.monotonic() - started >= 0.899


@pytest.mark.parametrize("step", [-3600, 3600])
def test_setting_the_clock_does_not_change_the_uptime(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """If the system clock is set forward or back by an hour, `uptime` in the management API is still the time since the
    broker started.
    """
    now, now_ns = time.time, time.time_ns
    with EmbeddedBroker(management_port=0) as broker, monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: now() + step)
        patched.setattr(time, "time_ns", lambda: now_ns() + step * 1_000_000_000)
        uptime = Api(str(broker.management_url))("GET", "nodes")[1][0]["uptime"]
    assert 0 <= uptime < 3_600_000
