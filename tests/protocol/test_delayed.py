"""The x-delayed-message exchange, which the embedded broker has built in and RabbitMQ has as a plugin."""

import time
from pathlib import Path

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker, UnroutableError

from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import Take

DELAYED = "x-delayed-message"


@pytest.fixture
def delayed(channel: BlockingChannel, connection: pika.BlockingConnection) -> None:
    """A delayed exchange `x` of type direct, with a queue `q` bound by `k`."""
    try:
        connection.channel().exchange_declare("x", DELAYED, durable=True, arguments={"x-delayed-type": "direct"})
    except (ConnectionClosedByBroker, ChannelClosedByBroker) as error:
        pytest.skip(f"this broker has no delayed message plugin: {error}")
    channel.queue_declare("q")
    channel.queue_bind("q", "x", "k")


def delay(milliseconds: object) -> BasicProperties:
    return BasicProperties(headers={"x-delay": milliseconds})


@pytest.mark.usefixtures("delayed")
def test_messages_come_when_their_time_has_come(channel: BlockingChannel, take: Take) -> None:
    """In the order of their times, each no sooner than it should; their header is negative then."""
    started = time.monotonic()
    for milliseconds in (150, 50, 100):
        channel.basic_publish("x", "k", str(milliseconds).encode(), delay(milliseconds))
    for milliseconds in (50, 100, 150):
        method, properties, body = take.one("q")
        assert time.monotonic() - started >= milliseconds / 1000
        assert (method.exchange, method.routing_key, body) == ("x", "k", str(milliseconds).encode())
        assert properties.headers == {"x-delay": -milliseconds}


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize("milliseconds", [0, -5, 2**32, "soon"])
def test_no_delay(channel: BlockingChannel, take: Take, milliseconds: object) -> None:
    """Nothing to wait for, or nothing that makes sense: routed at once, as it is."""
    channel.basic_publish("x", "k", b"x", delay(milliseconds))
    assert take.one("q")[1].headers == {"x-delay": milliseconds}


@pytest.mark.usefixtures("delayed")
def test_bindings_count_when_the_time_has_come(channel: BlockingChannel, take: Take) -> None:
    """Not when it is published."""
    channel.basic_publish("x", "later", b"x", delay(50))
    channel.queue_bind("q", "x", "later")
    assert take.one("q")[2] == b"x"


@pytest.mark.usefixtures("delayed")
def test_mandatory_does_not_know(channel: BlockingChannel, take: Take) -> None:
    """A delayed message counts as unroutable now, and comes nevertheless."""
    channel.confirm_delivery()
    with pytest.raises(UnroutableError):
        channel.basic_publish("x", "k", b"x", delay(20), mandatory=True)
    assert take.one("q")[2] == b"x"


@pytest.mark.usefixtures("delayed")
def test_the_type_inside_has_to_be_one(connection: pika.BlockingConnection) -> None:
    """x-delayed-type says how to route."""
    for arguments, text in (
        ({}, "Invalid argument, 'x-delayed-type' must be an existing exchange type"),
        ({"x-delayed-type": DELAYED}, "Invalid argument, 'x-delayed-type' can't be used for 'x-delayed-message'"),
    ):
        with pytest.raises(ChannelClosedByBroker) as closed:
            connection.channel().exchange_declare("y", DELAYED, arguments=arguments)
        assert closed.value.reply_text == f"PRECONDITION_FAILED - {text}"


@pytest.mark.usefixtures("delayed")
def test_many_delayed_messages(channel: BlockingChannel, take: Take) -> None:
    """Each comes once; the timer is moved forward by nearly all of them."""
    for number in range(500):
        channel.basic_publish("x", "k", str(number).encode(), delay(300 - number // 2))
    got = [int(body) for body in take.bodies("q", 500)]
    assert sorted(got) == list(range(500))
    assert channel.basic_get("q")[0] is None


def test_delayed_messages_outlive_a_restart(tmp_path: Path) -> None:
    """Persistent ones in a durable exchange; those that are late come at once."""
    with BrokerProcess(tmp_path) as process:
        channel = pika.BlockingConnection(pika.URLParameters(process.url)).channel()
        channel.exchange_declare("x", DELAYED, durable=True, arguments={"x-delayed-type": "fanout"})
        channel.queue_declare("q", durable=True)
        channel.queue_bind("q", "x")
        channel.confirm_delivery()
        for milliseconds in (1, 600):
            properties = BasicProperties(delivery_mode=2, headers={"x-delay": milliseconds})
            channel.basic_publish("x", "", b"%d" % milliseconds, properties)
        process.kill()
        process.start()
        take = Take(pika.BlockingConnection(pika.URLParameters(process.url)).channel())
        assert take.bodies("q", 2) == [b"1", b"600"]
