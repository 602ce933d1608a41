"""Names of queues and exchanges, and routing keys, have up to 255 bytes in every protocol."""

from collections.abc import Iterator
from urllib.parse import quote

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from mqtool.broker.embedded import EmbeddedBroker
from tests.brokers import TestBroker
from tests.protocol.conftest import Api, Take
from tests.protocol.raw_amqp10 import ACCEPTED, REJECTED, SENDER, TRANSFER, RawAmqp10, described, message

LONG = "x" * 256
NUL = "a\0b"


@pytest.fixture(params=["4.0", "4.3"])
def like(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def native(like: str) -> Iterator[EmbeddedBroker]:
    """The embedded broker with AMQP 1.0."""
    with EmbeddedBroker(like=like) as broker:
        yield broker


@pytest.mark.parametrize("address", [f"/queues/{LONG}", f"/exchanges/amq.topic/{LONG}", f"/exchanges/{LONG}/k"])
def test_an_amqp_1_0_target_with_a_name_over_255_bytes_is_refused(
    native: EmbeddedBroker, like: str, address: str
) -> None:
    """If an AMQP 1.0 client attaches a sender to an address with a name longer than 255 bytes, the broker answers with
    amqp:invalid-field. An embedded broker that imitates RabbitMQ 4.0 ends the session with this error. One that
    imitates 4.3 detaches only the link.
    """
    with RawAmqp10(native.url) as client:
        client.attach(SENDER, address)
        error = client.ended() if like == "4.0" else (client.receive(), client.detached())[1]
        assert error is not None
        assert error[0] == "amqp:invalid-field"


def test_an_amqp_1_0_message_to_a_name_over_255_bytes_is_rejected(native: EmbeddedBroker) -> None:
    """An AMQP 1.0 message whose property `to` contains a name longer than 255 bytes gets the outcome `rejected`."""
    with RawAmqp10(native.url) as client:
        client.attach_sender(None)
        assert client.published(0, message(to=f"/queues/{LONG}")).descriptor == REJECTED
        assert client.published(1, message(to=f"/exchanges/amq.topic/{LONG}")).descriptor == REJECTED


def test_a_queue_with_a_nul_in_its_name_gets_and_delivers_dead_letters(native: EmbeddedBroker) -> None:
    """Messages can be dead-lettered to a queue whose name contains a NUL character. An AMQP 1.0 receiver that
    attaches to this queue gets the dead letters.
    """
    connection = pika.BlockingConnection(pika.URLParameters(native.url))
    arguments = {"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": NUL}
    connection.channel().queue_declare(NUL, durable=True)
    connection.channel().queue_declare("q", durable=True, arguments=arguments)
    with RawAmqp10(native.url) as client:
        client.attach_sender("/queues/q")
        assert client.published(0).descriptor == ACCEPTED
        client.attach_receiver("/queues/q", handle=1)
        client.expect(TRANSFER)
        client.settle(0, described(REJECTED))
        client.attach_receiver(f"/queues/{quote(NUL)}", handle=2)
        assert client.expect(TRANSFER).body == b"hello"
    connection.close()


DEAD_LETTERS = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": LONG}


def test_a_dead_letter_routing_key_over_255_bytes_is_refused(
    broker: TestBroker, channel: BlockingChannel, api: Api, vhost: str
) -> None:
    """The embedded broker refuses a queue or policy with a dead-letter routing key of more than 255 bytes, because no
    dead letter could ever be delivered.
    """
    if broker.kind == "rabbitmq":
        pytest.skip("RabbitMQ accepts such a key, and closes the connections of consumers")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refused:
        channel.queue_declare("q", arguments=DEAD_LETTERS)
    assert refused.value.reply_code == 406
    assert "invalid arg 'x-dead-letter-routing-key'" in refused.value.reply_text
    assert api("PUT", f"queues/{vhost}/q", {"arguments": DEAD_LETTERS})[0] == 400
    policy = {"pattern": ".*", "definition": {"dead-letter-exchange": "", "dead-letter-routing-key": LONG}}
    assert api("PUT", f"policies/{vhost}/p", policy)[0] == 400
    assert api("GET", f"queues/{vhost}/q")[0] == 404


def test_dead_letters_to_an_exchange_with_a_name_over_255_bytes_are_dropped(
    channel: BlockingChannel, take: Take, vhost: str, api: Api
) -> None:
    """If the name of a queue's dead-letter exchange is longer than 255 bytes, the broker drops the queue's dead
    letters. The queue still delivers later messages.
    """
    channel.queue_declare("q", durable=True, arguments={"x-dead-letter-exchange": LONG})
    channel.basic_publish("", "q", b"dies")
    take.one("q", auto_ack=False)
    channel.basic_reject(1, requeue=False)
    take.until(lambda: channel.queue_declare("q", passive=True).method.message_count == 0)
    channel.basic_publish("", "q", b"lives")
    assert take.bodies("q", 1) == [b"lives"]


@pytest.mark.parametrize("path", ["queues/VHOST/NAME", "exchanges/VHOST/NAME", "vhosts/NAME"])
def test_names_over_255_bytes_are_refused_over_http(broker: TestBroker, api: Api, vhost: str, path: str) -> None:
    """If a queue, exchange or virtual host with a name longer than 255 bytes is declared over HTTP, the embedded
    broker responds with status 400.
    """
    if broker.kind == "rabbitmq":
        pytest.skip("RabbitMQ accepts exchanges and virtual hosts with such names")
    status, answer = api("PUT", path.replace("VHOST", vhost).replace("NAME", LONG), {"type": "direct"})
    assert status == 400
    assert answer["reason"].endswith(" name is longer than 255 bytes")


@pytest.mark.parametrize("kind", ["queues", "exchanges"])
def test_line_breaks_are_removed_from_names_over_http(broker: TestBroker, vhost: str, kind: str) -> None:
    """If a queue or an exchange is declared over HTTP with line breaks in its name, the broker removes the line breaks
    from the name, as it does over AMQP.
    """
    broker.api("PUT", f"{kind}/{vhost}/a%0Ab%0D", {"durable": True})
    found = broker.api("GET", f"{kind}/{vhost}/ab")
    assert isinstance(found, dict)
    assert found["name"] == "ab"
