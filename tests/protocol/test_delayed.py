"""The x-delayed-message exchange: built into the embedded broker, a plugin of RabbitMQ."""

import math
import struct
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pika
import pytest
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker, UnroutableError

from tests.protocol.broker_process import BrokerProcess
from tests.protocol.conftest import AnyHeaders, Take

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


class RawDelay(BasicProperties):
    """An x-delay that is any float: mqtool's own encoder refuses NaN and infinity."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds = milliseconds

    def encode(self) -> list[bytes]:
        table = b"\x07x-delayd" + struct.pack(">d", self.milliseconds)
        return [self.FLAG_HEADERS.to_bytes(2, "big"), len(table).to_bytes(4, "big"), table]


def delay(milliseconds: object) -> BasicProperties:
    if isinstance(milliseconds, float) and not math.isfinite(milliseconds):
        return RawDelay(milliseconds)
    return AnyHeaders(headers={"x-delay": milliseconds})


@pytest.mark.usefixtures("delayed")
def test_delayed_messages_arrive_in_the_order_of_their_delays_and_none_is_early(
    channel: BlockingChannel, take: Take
) -> None:
    """Messages that are published to an x-delayed-message exchange arrive in the order of their delays, and none
    arrives early. Their header x-delay is unchanged.
    """
    started = time.monotonic()
    for milliseconds in (1500, 500, 1000):
        channel.basic_publish("x", "k", str(milliseconds).encode(), delay(milliseconds))
    for milliseconds in (500, 1000, 1500):
        method, properties, body = take.one("q")
        assert time.monotonic() - started >= milliseconds / 1000 - 0.001  # the broker counts whole milliseconds
        assert (method.exchange, method.routing_key, body) == ("x", "k", str(milliseconds).encode())
        assert properties.headers == {"x-delay": milliseconds}


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize("milliseconds", ["250", "+250", "0250", 250.9], ids=repr)
def test_x_delay_can_be_a_float_or_a_string_of_digits(
    channel: BlockingChannel, take: Take, milliseconds: object
) -> None:
    """A message's x-delay can be a float or a string of digits, even if the string begins with a plus sign or a zero.
    The message is delayed by this number of milliseconds.
    """
    started = time.monotonic()
    channel.basic_publish("x", "k", b"x", delay(milliseconds))
    take.one("q")
    assert time.monotonic() - started >= 0.249  # the broker counts whole milliseconds


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize(
    "milliseconds",
    ["5s", "", " 250", "2_50", b"\xff".decode(errors="surrogateescape"), math.nan, math.inf, Decimal(250)],
    ids=repr,
)
def test_an_invalid_x_delay_closes_the_connection(connection: pika.BlockingConnection, milliseconds: object) -> None:
    """If a message's x-delay is NaN, infinite, an AMQP decimal, or a string that is not a number, the broker closes
    the connection with error 541 (INTERNAL_ERROR). RabbitMQ's delayed message plugin does the same.
    """
    channel = connection.channel()
    channel.basic_publish("x", "k", b"x", delay(milliseconds))
    with pytest.raises(ConnectionClosedByBroker) as closed:
        connection.process_data_events(time_limit=30)
    assert (closed.value.reply_code, closed.value.reply_text) == (541, "INTERNAL_ERROR")


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize(
    "milliseconds",
    [0, -5, 2**32, "-5", "9" * 5000, 0.5, True, None, [50], {"a": 50}, b"50", datetime(2040, 1, 1, tzinfo=UTC)],
    ids=lambda value: repr(value)[:30],
)
def test_a_message_whose_x_delay_is_out_of_range_or_of_another_type_is_not_delayed(
    channel: BlockingChannel, take: Take, milliseconds: object
) -> None:
    """A message is delivered without a delay if its x-delay is below 1, is 2^32 or more, or is neither a number nor a
    string (for example, a boolean or a list).
    """
    channel.basic_publish("x", "k", b"later", delay(3_600_000))
    channel.basic_publish("x", "k", b"x", delay(milliseconds))
    assert take.one("q")[2] == b"x"


@pytest.mark.usefixtures("delayed")
def test_delayed_messages_are_routed_by_the_bindings_when_due(channel: BlockingChannel, take: Take) -> None:
    """A delayed message is routed by the bindings that exist when the message is due, including those added after the
    message was published.
    """
    channel.basic_publish("x", "later", b"x", delay(2000))
    channel.queue_bind("q", "x", "later")
    assert take.one("q")[2] == b"x"


@pytest.mark.usefixtures("delayed")
def test_a_mandatory_delayed_message_is_returned_and_still_delivered(channel: BlockingChannel, take: Take) -> None:
    """A mandatory message to an x-delayed-message exchange is returned as unroutable when it is published, because the
    exchange routes it to no queue before it is due. When it is due, it is nevertheless delivered.
    """
    channel.exchange_declare("before", "fanout")
    channel.exchange_bind("x", "before")
    channel.confirm_delivery()
    for exchange in ("x", "before"):
        with pytest.raises(UnroutableError):
            channel.basic_publish(exchange, "k", b"x", delay(20), mandatory=True)
        assert take.one("q")[2] == b"x"


@pytest.mark.usefixtures("delayed")
def test_a_message_routed_through_two_delayed_exchanges_is_delayed_once(channel: BlockingChannel, take: Take) -> None:
    """If a message is routed through a fanout exchange and then through two delayed exchanges, one after the other,
    only the first delayed exchange delays it. A queue bound to the fanout exchange gets the message immediately.
    """
    channel.exchange_declare("before", "fanout")
    channel.queue_declare("beside")
    channel.queue_bind("beside", "before")
    channel.exchange_bind("x", "before")
    channel.exchange_declare("after", DELAYED, arguments={"x-delayed-type": "fanout"})
    channel.exchange_bind("after", "x", "k")
    channel.queue_declare("end")
    channel.queue_bind("end", "after")
    started = time.monotonic()
    channel.basic_publish("before", "k", b"x", delay(1000))
    assert take.one("beside")[2] == b"x"
    assert take.one("q")[2] == b"x"
    assert time.monotonic() - started >= 0.999  # the broker counts whole milliseconds
    assert take.one("end", timeout=0.9)[0].exchange == "before"


@pytest.mark.usefixtures("delayed")
def test_two_delayed_exchanges_deliver_a_message_twice(channel: BlockingChannel, take: Take) -> None:
    """If a fanout exchange routes a message to two delayed exchanges, each of them delays its own copy. A queue that is
    bound to both delayed exchanges therefore gets the message twice.
    """
    channel.exchange_declare("other", DELAYED, arguments={"x-delayed-type": "direct"})
    channel.queue_bind("q", "other", "k")
    channel.exchange_declare("before", "fanout")
    for exchange in ("x", "other"):
        channel.exchange_bind(exchange, "before")
    channel.basic_publish("before", "k", b"x", delay(20))
    assert take.bodies("q", 2) == [b"x", b"x"]


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize("is_bound", [True, False])
def test_the_alternate_exchange_of_a_delayed_exchange_gets_a_copy_immediately(
    channel: BlockingChannel, take: Take, *, is_bound: bool
) -> None:
    """Before a message is due, a delayed exchange routes it to no queue, so its alternate exchange gets a copy
    immediately. When the message is due, it goes to the queues that are bound to the delayed exchange. If no queue is
    bound, it goes to the alternate exchange a second time.
    """
    channel.exchange_declare("y", DELAYED, arguments={"x-delayed-type": "direct", "alternate-exchange": "amq.fanout"})
    channel.queue_declare("spare")
    channel.queue_bind("spare", "amq.fanout")
    if is_bound:
        channel.queue_bind("q", "y", "k")
    channel.confirm_delivery()
    channel.basic_publish("y", "k", b"x", delay(300), mandatory=True)
    assert take.one("spare")[2] == b"x"
    assert take.one("q" if is_bound else "spare")[2] == b"x"


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize("end", ["tx_commit", "tx_rollback", "close"])
def test_a_transaction_has_no_effect_on_a_delayed_message(
    channel: BlockingChannel, connection: pika.BlockingConnection, take: Take, end: str
) -> None:
    """A transaction has no effect on a message that is published to an x-delayed-message exchange. The message is
    delivered once, whether the transaction is committed or rolled back, or the channel is closed.
    """
    other = connection.channel()
    other.tx_select()
    other.basic_publish("x", "k", b"x", delay(100))
    getattr(other, end)()
    assert take.one("q")[2] == b"x"
    assert channel.basic_get("q")[0] is None


@pytest.mark.usefixtures("delayed")
def test_queues_bound_with_the_keys_in_cc_or_bcc_get_copies_of_a_delayed_message(
    channel: BlockingChannel, take: Take
) -> None:
    """When a delayed message is due, the queues that are bound with the routing keys in CC or BCC get copies. A
    message with CC arrives with unchanged headers. If a message has BCC, the broker removes this header, and makes
    x-delay negative to mark the delay as over.
    """
    channel.queue_declare("copy")
    channel.queue_bind("copy", "x", "c")
    for name, expected in (("CC", {"x-delay": 50, "CC": ["c"]}), ("BCC", {"x-delay": -50})):
        channel.basic_publish("x", "k", b"x", BasicProperties(headers={"x-delay": 50, name: ["c"]}))
        assert [take.one(queue)[1].headers for queue in ("q", "copy")] == [expected, expected]


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize("milliseconds", [50, "50", 50.5])
def test_x_delay_is_negative_after_dead_lettering(channel: BlockingChannel, take: Take, milliseconds: object) -> None:
    """If a message with the header x-delay is dead-lettered through a delayed exchange, it is delayed, and arrives
    with a negative x-delay, which marks the delay as over.
    """
    arguments = {"x-dead-letter-exchange": "x", "x-dead-letter-routing-key": "k"}
    channel.queue_declare("dying", arguments=arguments)
    started = time.monotonic()
    channel.basic_publish("", "dying", b"x", AnyHeaders(headers={"x-delay": milliseconds}, expiration="0"))
    assert take.one("q")[1].headers["x-delay"] == -50
    assert time.monotonic() - started >= 0.049  # the broker counts whole milliseconds


@pytest.mark.usefixtures("delayed")
@pytest.mark.parametrize("kind", [DELAYED, "direct"])
def test_delayed_messages_outlive_their_exchange(channel: BlockingChannel, take: Take, kind: str) -> None:
    """If a delayed exchange is deleted and declared again, with the same or another type, its delayed messages are
    still delivered.
    """
    channel.basic_publish("x", "k", b"old", delay(2000))
    channel.exchange_delete("x")
    channel.exchange_declare("x", kind, durable=True, arguments={"x-delayed-type": "direct"})
    channel.queue_bind("q", "x", "k")
    assert take.one("q")[2] == b"old"


@pytest.mark.usefixtures("delayed")
def test_bindings_of_a_delayed_exchange_are_checked_by_x_delayed_type(connection: pika.BlockingConnection) -> None:
    """The broker checks a binding of a delayed exchange as if the exchange had the type in x-delayed-type. For
    example, if this type is `headers`, and the binding's x-match is invalid, the broker closes the channel with
    PRECONDITION_FAILED.
    """
    channel = connection.channel()
    channel.exchange_declare("y", DELAYED, arguments={"x-delayed-type": "headers"})
    with pytest.raises(ChannelClosedByBroker) as closed:
        channel.queue_bind("q", "y", arguments={"x-match": "some"})
    assert closed.value.reply_text.startswith("PRECONDITION_FAILED - Invalid x-match field value")


@pytest.mark.usefixtures("delayed")
def test_x_delayed_type_must_be_an_exchange_type(connection: pika.BlockingConnection) -> None:
    """If an x-delayed-message exchange is declared without a valid x-delayed-type, the broker refuses the declaration
    with RabbitMQ's error text.
    """
    for arguments, text in (
        ({}, "Invalid argument, 'x-delayed-type' must be an existing exchange type"),
        ({"x-delayed-type": DELAYED}, "Invalid argument, 'x-delayed-message' can't be used for 'x-delayed-type'"),
    ):
        with pytest.raises(ChannelClosedByBroker) as closed:
            connection.channel().exchange_declare("y", DELAYED, arguments=arguments)
        assert closed.value.reply_text == f"PRECONDITION_FAILED - {text}"


@pytest.mark.usefixtures("delayed")
def test_each_of_many_delayed_messages_arrives_exactly_once(channel: BlockingChannel, take: Take) -> None:
    """A client publishes 500 messages to a delayed exchange, with shorter and shorter delays. Each message arrives
    exactly once.
    """
    for number in range(500):
        channel.basic_publish("x", "k", str(number).encode(), delay(300 - number // 2))
    got = [int(body) for body in take.bodies("q", 500)]
    assert sorted(got) == list(range(500))
    assert channel.basic_get("q")[0] is None


def test_delayed_messages_survive_a_restart(tmp_path: Path) -> None:
    """After the broker is killed and restarted, a durable x-delayed-message exchange still delivers its delayed
    messages, including transient ones, whether or not they became due in the meantime.
    """
    with BrokerProcess(tmp_path) as process:
        channel = pika.BlockingConnection(pika.URLParameters(process.url)).channel()
        channel.exchange_declare("x", DELAYED, durable=True, arguments={"x-delayed-type": "fanout"})
        channel.queue_declare("q", durable=True)
        channel.queue_bind("q", "x")
        channel.confirm_delivery()
        for milliseconds, delivery_mode in ((1, 2), (600, 1)):
            properties = BasicProperties(delivery_mode=delivery_mode, headers={"x-delay": milliseconds})
            channel.basic_publish("x", "", b"%d" % milliseconds, properties)
        process.kill()
        process.start()
        take = Take(pika.BlockingConnection(pika.URLParameters(process.url)).channel())
        assert take.bodies("q", 2) == [b"1", b"600"]
