"""The peers: bare pika scripts, as the tutorials teach them. python -m benchmarks.peers NAME [QUEUE [COUNT]]"""

import os
import sys

import pika

_URL = os.environ["MQTOOL_URL"]


def send() -> None:
    """Hello World, one message."""
    connection = pika.BlockingConnection(pika.URLParameters(_URL))
    channel = connection.channel()
    channel.queue_declare(queue="hello", durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_publish(exchange="", routing_key="hello", body="Hello World!")
    print(" [x] Sent 'Hello World!'")
    connection.close()


def confirm_lines(queue: str) -> None:
    """Publish stdin line by line, persistent, each confirmed before the next."""
    connection = pika.BlockingConnection(pika.URLParameters(_URL))
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(delivery_mode=2)
    for line in sys.stdin.buffer:
        channel.basic_publish("", queue, line.rstrip(b"\n"), properties)
    connection.close()


def receive_lines(queue: str, count: int) -> None:
    """Write this many bodies to stdout, a line each, and acknowledge them, 500 at a time."""
    connection = pika.BlockingConnection(pika.URLParameters(_URL))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1000)
    received = 0

    def on_message(channel, method, _properties, body) -> None:  # type: ignore[no-untyped-def]
        nonlocal received
        sys.stdout.buffer.write(body + b"\n")
        received += 1
        if received % 500 == 0 or received == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if received == count:
            channel.stop_consuming()

    channel.basic_consume(queue, on_message)
    channel.start_consuming()
    sys.stdout.flush()
    connection.close()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "send":
        send()
    elif name == "confirm-lines":
        confirm_lines(arguments[0])
    else:
        receive_lines(arguments[0], int(arguments[1]))
