"""The programs with which mqtool is compared: bare pika scripts, as in RabbitMQ's tutorials.

python -m benchmarks.peers NAME [QUEUE [COUNT]]
"""

import os
import sys

import pika

_URL = os.environ["MQTOOL_URL"]


def send() -> None:
    """Send one message, as the tutorial Hello World does."""
    connection = pika.BlockingConnection(pika.URLParameters(_URL))
    channel = connection.channel()
    channel.queue_declare(queue="hello", durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_publish(exchange="", routing_key="hello", body="Hello World!")
    print(" [x] Sent 'Hello World!'")
    connection.close()


def confirm_lines(queue: str) -> None:
    """Publish each line of stdin as a persistent message, and wait for its confirm before publishing the next one."""
    connection = pika.BlockingConnection(pika.URLParameters(_URL))
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(delivery_mode=2)
    for line in sys.stdin.buffer:
        channel.basic_publish("", queue, line.rstrip(b"\n"), properties)
    connection.close()


def receive_lines(queue: str, count: int) -> None:
    """Consume this many messages, and write each body to stdout as a line; acknowledge 500 messages at a time."""
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


def rpc_server(queue: str) -> None:
    """Reply to each request with the request's body, like the server of the RPC tutorial, but without a computation."""
    connection = pika.BlockingConnection(pika.URLParameters(_URL))
    channel = connection.channel()

    def on_request(channel, method, properties, body) -> None:  # type: ignore[no-untyped-def]
        answer = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish("", properties.reply_to, body, answer)
        channel.basic_ack(method.delivery_tag)

    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, on_request)
    channel.start_consuming()


def rpc_client(queue: str, count: int) -> None:
    """Send this many requests without waiting in between, and then wait for the replies."""
    connection = pika.BlockingConnection(pika.URLParameters(_URL))
    channel = connection.channel()
    replies = channel.queue_declare("", exclusive=True).method.queue
    waiting = {str(number) for number in range(count)}

    def on_reply(channel, _method, properties, _body) -> None:  # type: ignore[no-untyped-def]
        waiting.discard(properties.correlation_id)
        if not waiting:
            channel.stop_consuming()

    channel.basic_consume(replies, on_reply, auto_ack=True)
    for number in sorted(waiting):
        channel.basic_publish("", queue, b"1", pika.BasicProperties(correlation_id=number, reply_to=replies))
    channel.start_consuming()
    connection.close()


_PEERS = {
    "send": send,
    "confirm-lines": confirm_lines,
    "receive-lines": receive_lines,
    "rpc-server": rpc_server,
    "rpc-client": rpc_client,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    _PEERS[name](*(int(argument) if argument.isdigit() else argument for argument in arguments))  # type: ignore[operator]
