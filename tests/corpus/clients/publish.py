"""Publish messages as programs in Python do: publish.py CLIENT. The broker is at AMQP_URL, MQTT_PORT and so on.

The queue `corpus` exists. Every function publishes what its client can express: types, nested headers, all properties.
"""

import asyncio
import gzip
import json
import os
import sys
import time
import uuid
import zlib
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlsplit

URL = os.environ["AMQP_URL"]
PARTS = urlsplit(URL)
HOST, PORT = PARTS.hostname or "127.0.0.1", PARTS.port or 5672
TIME = datetime(2026, 1, 31, 12, tzinfo=UTC)
#: All properties but user_id and headers.
PROPERTIES = {
    "content_type": "text/plain",
    "content_encoding": "utf-8",
    "priority": 4,
    "correlation_id": "c-1",
    "reply_to": "replies",
    "expiration": "3600000",
    "message_id": "m-1",
    "type": "order.created",
    "app_id": "shop",
}


def with_pika() -> None:
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(URL))
    channel = connection.channel()
    headers = {
        "text": "grün",
        "int": 1,
        "long": 2**40,
        "negative": -1,
        "yes": True,
        "none": None,
        "time": TIME.replace(tzinfo=None),
        "decimal": Decimal("1.50"),
        "bytes": b"\xff\x00",
        "list": [1, "two", None, [3]],
        "table": {"deep": {"deeper": 2**31 - 1}},
        "": "no name",
    }
    for properties in (
        pika.BasicProperties(),
        pika.BasicProperties(**PROPERTIES, delivery_mode=2, timestamp=1769860800, headers=headers),
        pika.BasicProperties(headers={}),
        pika.BasicProperties(headers={"CC": ["elsewhere"]}),
    ):
        channel.basic_publish("", "corpus", b"hello", properties)
    # Envelopes as other frameworks write them.
    masstransit = {
        "messageId": "5b0c0000-5d2a-0015-6f1c-08dc20a0f4a1",
        "conversationId": "5b0c0000-5d2a-0015-8a3e-08dc20a0f4a1",
        "sourceAddress": "rabbitmq://localhost/api",
        "destinationAddress": "rabbitmq://localhost/Shop:OrderCreated",
        "messageType": ["urn:message:Shop:OrderCreated"],
        "message": {"orderId": 4711, "total": 19.99},
        "headers": {},
    }
    channel.basic_publish(
        "",
        "corpus",
        json.dumps(masstransit).encode(),
        pika.BasicProperties(
            content_type="application/vnd.masstransit+json",
            delivery_mode=2,
            message_id=masstransit["messageId"],
            headers={"Content-Type": "application/vnd.masstransit+json", "publishId": "1"},
        ),
    )
    nservicebus = {
        "NServiceBus.MessageId": "b1c2",
        "NServiceBus.EnclosedMessageTypes": "Shop.OrderCreated, Shop, Version=1.0.0.0",
        "NServiceBus.ContentType": "application/json",
        "NServiceBus.TimeSent": "2026-01-31 12:00:00:000000 Z",
        "NServiceBus.Transport.RabbitMQ.ConfirmationId": "1",
    }
    channel.basic_publish(
        "",
        "corpus",
        b'\xef\xbb\xbf{"OrderId":4711}',
        pika.BasicProperties(
            content_type="application/json",
            message_id="b1c2",
            type="Shop.OrderCreated",
            delivery_mode=2,
            headers=nservicebus,
        ),
    )
    import msgpack

    body = json.dumps({"order": 4711, "lines": ["tea"] * 10}).encode()
    for content_type, encoding, data in (
        ("application/json", "gzip", gzip.compress(body, mtime=0)),
        ("application/json", "deflate", zlib.compress(body)),
        ("application/msgpack", None, msgpack.packb({"order": 4711, "total": 19.99})),
        ("application/x-protobuf", None, b"\x08\xe7\x24\x12\x03tea\x1d\xec\x51\x9f\x41"),
        ("application/octet-stream", None, bytes(range(256))),
    ):
        channel.basic_publish(
            "", "corpus", data, pika.BasicProperties(content_type=content_type, content_encoding=encoding)
        )
    connection.close()


def with_py_amqp() -> None:
    import amqp

    path = PARTS.path.strip("/") or "%2F"
    with amqp.Connection(f"{HOST}:{PORT}", virtual_host=path.replace("%2F", "/")) as connection:
        channel = connection.channel()
        headers = {
            "text": "grün",
            "int": 1,
            "long": 2**40,
            "float": 0.99,
            "yes": True,
            "none": None,
            "time": TIME.replace(tzinfo=None),
            "decimal": Decimal("1.50"),
            "bytes": b"raw",
            "list": [1, 2**40, -1.5, [None]],
            "table": {"deep": {"deeper": 1.25}},
        }
        message = amqp.Message("hello", **PROPERTIES, delivery_mode=2, application_headers=headers)
        channel.basic_publish(message, "", "corpus")
        channel.basic_publish(amqp.Message(b"\xff\x00"), "", "corpus")


def with_kombu() -> None:
    import kombu

    with kombu.Connection(URL) as connection:
        producer = connection.Producer(serializer="json")
        producer.publish({"a": 1}, routing_key="corpus")
        producer.publish({"a": [1.5, None]}, routing_key="corpus", compression="gzip", headers={"big": 2**40})
        producer.publish({"a": b"\xff"}, routing_key="corpus", serializer="pickle", priority=9, expiration=3600)
        producer.publish(b"\xff\x00", routing_key="corpus", serializer=None, content_type="image/png")


def with_celery() -> None:
    import celery
    from kombu import Queue

    app = celery.Celery("corpus", broker=URL)
    app.conf.task_default_queue = "corpus"
    app.conf.task_queues = [Queue("corpus", no_declare=True)]

    @app.task(name="shop.add")
    def add(x: int, y: int) -> int:
        return x + y

    add.apply_async((2, 3), task_id="d0a2b5d6-0000-4000-8000-000000000001")
    add.apply_async((2, 3), eta=TIME, expires=3600.0, compression="gzip", headers={"tenant": "acme"})
    celery.chain(add.s(2, 3), add.s(4)).apply_async()


def with_aio_pika() -> None:
    import aio_pika

    async def run() -> None:
        async with await aio_pika.connect(URL) as connection:
            channel = await connection.channel()
            headers = {
                "text": "grün",
                "tiny": 5,
                "short": 300,
                "int": 70_000,
                "long": 2**40,
                "negative": -1,
                "float": 1.5,
                "yes": True,
                "none": None,
                "time": TIME,
                "decimal": Decimal("1.50"),
                "bytes": bytearray(b"raw"),
                "list": [1, -300, 0.5, ["x"]],
                "table": {"deep": {"deeper": 1.5}},
            }
            properties = {name: value for name, value in PROPERTIES.items() if name != "expiration"}
            full = aio_pika.Message(b"hello", **properties, expiration=3600, delivery_mode=2, headers=headers)
            for message in (full, aio_pika.Message(b"\xff\x00"), aio_pika.Message(b"x", timestamp=TIME)):
                await channel.default_exchange.publish(message, "corpus")

    asyncio.run(run())


def with_amqpstorm() -> None:
    import amqpstorm

    with amqpstorm.UriConnection(URL) as connection, connection.channel() as channel:
        headers = {
            "text": "grün",
            "tiny": 5,
            "negative": -300,
            "int": 70_000,
            "long": 2**40,
            "float": 1.5,
            "yes": False,
            "none": None,
            "time": TIME.replace(tzinfo=None),
            "list": [1, -1, 1.5],
            "table": {"deep": {"deeper": -5}},
        }
        properties = {**PROPERTIES, "headers": headers, "delivery_mode": 2, "timestamp": TIME.replace(tzinfo=None)}
        properties["message_type"] = properties.pop("type")
        amqpstorm.Message.create(channel, "hello", properties).publish("corpus")
        channel.basic.publish(b"\xff\x00", "corpus")


def with_paho() -> None:
    import paho.mqtt.client as mqtt
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    for version in (mqtt.MQTTv311, mqtt.MQTTv5):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "corpus", protocol=version)
        client.username_pw_set("guest", "guest")
        try:
            client.connect(HOST, int(os.environ["MQTT_PORT"]))
        except OSError:
            continue
        client.loop_start()
        given = None
        if version == mqtt.MQTTv5:
            given = Properties(PacketTypes.PUBLISH)
            given.ContentType, given.ResponseTopic, given.CorrelationData = "text/plain", "resp/t", b"\x01\xff"
            given.UserProperty = [("tenant", "acme"), ("trace", "1")]
            given.MessageExpiryInterval = 3600
        for qos in (0, 1):
            client.publish("corpus", f"qos {qos}", qos, properties=given).wait_for_publish(5)
        client.disconnect()
        client.loop_stop()


def with_stomp() -> None:
    import stomp

    connection = stomp.Connection([(HOST, int(os.environ["STOMP_PORT"]))])
    connection.connect("guest", "guest", wait=True)
    connection.send("/amq/queue/corpus", "hello", "text/plain", {"tenant": "acme", "persistent": "true"})
    connection.send("/amq/queue/corpus", "x", headers={"correlation-id": "1", "priority": "5", "amqp-message-id": "m"})
    connection.disconnect()


def with_rstream() -> None:
    import rstream

    async def run() -> None:
        async with rstream.Producer(
            HOST, int(os.environ["STREAM_PORT"]), username="guest", password="guest"
        ) as producer:
            properties = rstream.Properties(
                message_id="m-1",
                to="there",
                subject="about",
                reply_to="replies",
                correlation_id="c-1",
                content_type="text/plain",
                content_encoding="utf-8",
                group_id="g",
                group_sequence=7,
                reply_to_group_id="r",
            )
            full = rstream.AMQPMessage(
                body=b"hello",
                properties=properties,
                application_properties={"text": "grün", "int": 1, "float": 1.5, "yes": True, "bytes": b"\xff"},
                message_annotations={"x-tenant": "acme"},
            )
            for message in (rstream.AMQPMessage(body=b"\xff\x00"), full):
                await producer.send_wait("corpus", message)

    asyncio.run(run())


def with_amqp10() -> None:
    from rabbitmq_amqp_python_client import AddressHelper, Converter, Environment, Message, OutcomeState

    environment = Environment(uri=os.environ["AMQP10_URL"])
    connection = environment.connection()
    connection.dial()
    publisher = connection.publisher(AddressHelper.queue_address("corpus"))
    for message in (
        Message(body=Converter.string_to_bytes("hello")),
        Message(
            body=b"\xff\x00",
            id="m-1",
            subject="about",
            reply_to="/queues/replies",
            correlation_id=uuid.UUID(int=5),
            content_type="text/plain",
            priority=7,
            durable=True,
            ttl=3600,
            application_properties={"text": "grün", "int": 1, "float": 1.5, "yes": True, "none": None},
            annotations={"x-tenant": "acme"},
        ),
    ):
        status = publisher.publish(message)
        assert status.remote_state == OutcomeState.ACCEPTED
    publisher.close()
    connection.close()
    environment.close()


def with_rabbitmq() -> None:
    """Receive what RabbitMQ itself publishes: events of the event exchange, and messages of the firehose."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(URL))
    channel = connection.channel()
    channel.queue_declare("events", exclusive=True)
    channel.queue_bind("events", "amq.rabbitmq.event", "queue.*")
    channel.queue_bind("events", "amq.rabbitmq.trace", "publish.#")
    channel.queue_declare("observed", durable=True, arguments={"x-max-length": 5})
    channel.basic_publish("", "observed", b"hello", pika.BasicProperties(headers={"tenant": "acme"}, priority=4))
    deadline = time.monotonic() + 10
    left = {"queue.created", "publish."}
    while left and time.monotonic() < deadline:
        method, _, _ = channel.basic_get("events", auto_ack=True)
        left -= {method.routing_key} if method else set()
        time.sleep(0.05)
    channel.queue_delete("observed")
    connection.close()


def with_consumer() -> None:
    """Receive everything from the queue `corpus`, as what MQTT and STOMP clients publish is recorded on delivery."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(URL))
    channel = connection.channel()
    while channel.basic_get("corpus", auto_ack=True)[0]:
        pass
    connection.close()


if __name__ == "__main__":
    globals()[f"with_{sys.argv[1]}"]()
