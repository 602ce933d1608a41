"""The tutorials' programs, written with plain pika. Tests of interoperability run them together with mqtool.

Each program declares what its dialect's article declares, so it fails if mqtool has declared the same name with
different arguments. It prints the article's lines. The dialects are repeated here on purpose: if they were taken from
mqtool, a wrong name would be wrong in both programs, and no test would notice it.

    python -m tests.cli.tutorial_scripts receive --dialect go --url amqp://localhost
"""

import argparse
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

Words = Sequence[str]

QUORUM = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
CLASSIC = {"durable": False, "arguments": None}
DURABLE_CLASSIC = {"durable": True, "arguments": None}

DIALECTS: dict[str, dict[str, Any]] = {
    "python": {
        "hello": QUORUM,
        "task_queue": QUORUM,
        "rpc_queue": QUORUM,
        "fanout": ("logs", False),
        "direct": ("direct_logs", False),
        "topic": ("topic_logs", False),
    },
    "go": {
        "hello": QUORUM,
        "task_queue": QUORUM,
        "rpc_queue": QUORUM,
        "fanout": ("logs", False),
        "direct": ("logs_direct", False),
        "topic": ("logs_topic", False),
    },
    "python-classic": {
        "hello": CLASSIC,
        "task_queue": DURABLE_CLASSIC,
        "rpc_queue": CLASSIC,
        "fanout": ("logs", False),
        "direct": ("direct_logs", False),
        "topic": ("topic_logs", False),
    },
    "go-classic": {
        "hello": CLASSIC,
        "task_queue": DURABLE_CLASSIC,
        "rpc_queue": CLASSIC,
        "fanout": ("logs", True),
        "direct": ("logs_direct", True),
        "topic": ("logs_topic", True),
    },
}


class Tutorial:
    """One channel, and the names of one dialect."""

    def __init__(self, channel: BlockingChannel, dialect: str) -> None:
        self.channel = channel
        self.names = DIALECTS[dialect]

    def queue(self, name: str) -> None:
        self.channel.queue_declare(queue=name, **self.names[name])

    def exchange(self, kind: str) -> str:
        name, durable = self.names[kind]
        self.channel.exchange_declare(exchange=name, exchange_type=kind, durable=durable)
        return str(name)


def say(line: str) -> None:
    print(line, flush=True)


# Tutorial 1.


def send(tutorial: Tutorial, words: Words) -> None:
    tutorial.queue("hello")
    body = " ".join(words) or "Hello World!"
    tutorial.channel.basic_publish(exchange="", routing_key="hello", body=body.encode())
    say(f" [x] Sent '{body}'")


def receive(tutorial: Tutorial, _words: Words) -> None:
    tutorial.queue("hello")

    def on_message(_channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        say(f" [x] Received {body.decode()}")

    tutorial.channel.basic_consume(queue="hello", on_message_callback=on_message, auto_ack=True)
    say(" [*] Waiting for messages. To exit press CTRL+C")
    tutorial.channel.start_consuming()


# Tutorial 2.


def new_task(tutorial: Tutorial, words: Words) -> None:
    tutorial.queue("task_queue")
    body = " ".join(words) or "Hello World!"
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    tutorial.channel.basic_publish("", "task_queue", body.encode(), persistent)
    say(f" [x] Sent {body}")


def worker(tutorial: Tutorial, _words: Words) -> None:
    tutorial.queue("task_queue")

    def on_task(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        assert properties.delivery_mode == 2, "a task is persistent"
        say(f" [x] Received {body.decode()}")
        say(" [x] Done")
        channel.basic_ack(method.delivery_tag)

    tutorial.channel.basic_qos(prefetch_count=1)
    tutorial.channel.basic_consume(queue="task_queue", on_message_callback=on_task)
    say(" [*] Waiting for messages. To exit press CTRL+C")
    tutorial.channel.start_consuming()


# Tutorials 3, 4 and 5.


def emit_fanout(tutorial: Tutorial, words: Words) -> None:
    body = " ".join(words) or "info: Hello World!"
    tutorial.channel.basic_publish(tutorial.exchange("fanout"), "", body.encode())
    say(f" [x] Sent {body}")


def emit_direct(tutorial: Tutorial, words: Words) -> None:
    _emit_with_key(tutorial, "direct", words[0] if words else "info", words[1:])


def emit_topic(tutorial: Tutorial, words: Words) -> None:
    _emit_with_key(tutorial, "topic", words[0] if words else "anonymous.info", words[1:])


def _emit_with_key(tutorial: Tutorial, kind: str, key: str, words: Words) -> None:
    body = " ".join(words) or "Hello World!"
    tutorial.channel.basic_publish(tutorial.exchange(kind), key, body.encode())
    say(f" [x] Sent {key}:{body}")


def receive_fanout(tutorial: Tutorial, _words: Words) -> None:
    _receive_logs(tutorial, "fanout", [""], lambda _key, body: f" [x] {body}")


def receive_direct(tutorial: Tutorial, words: Words) -> None:
    _receive_logs(tutorial, "direct", words, lambda key, body: f" [x] {key}:{body}")


def receive_topic(tutorial: Tutorial, words: Words) -> None:
    _receive_logs(tutorial, "topic", words, lambda key, body: f" [x] {key}:{body}")


def _receive_logs(tutorial: Tutorial, kind: str, keys: Words, line: Callable[[str, str], str]) -> None:
    exchange = tutorial.exchange(kind)
    queue = tutorial.channel.queue_declare(queue="", exclusive=True).method.queue
    for key in keys:
        tutorial.channel.queue_bind(queue, exchange, routing_key=key)

    def on_message(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        say(line(method.routing_key, body.decode()))

    tutorial.channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    say(" [*] Waiting for logs. To exit press CTRL+C")
    tutorial.channel.start_consuming()


# Tutorial 6.


def rpc_server(tutorial: Tutorial, _words: Words) -> None:
    tutorial.queue("rpc_queue")

    def fib(n: int) -> int:
        smaller, larger = 0, 1
        for _ in range(n):
            smaller, larger = larger, smaller + larger
        return smaller

    def on_request(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        say(f" [.] fib({int(body)})")
        reply = pika.BasicProperties(correlation_id=properties.correlation_id)
        channel.basic_publish("", properties.reply_to, str(fib(int(body))).encode(), reply)
        channel.basic_ack(method.delivery_tag)

    tutorial.channel.basic_qos(prefetch_count=1)
    tutorial.channel.basic_consume(queue="rpc_queue", on_message_callback=on_request)
    say(" [x] Awaiting RPC requests")
    tutorial.channel.start_consuming()


def rpc_client(tutorial: Tutorial, words: Words) -> None:
    channel, number, wanted = tutorial.channel, words[0] if words else "30", str(uuid.uuid4())
    reply_queue = channel.queue_declare(queue="", exclusive=True).method.queue
    say(f" [x] Requesting fib({number})")
    request = pika.BasicProperties(reply_to=reply_queue, correlation_id=wanted)
    channel.basic_publish("", "rpc_queue", number.encode(), request)
    for _method, properties, body in channel.consume(reply_queue, auto_ack=True):
        if properties and body and properties.correlation_id == wanted:
            say(f" [.] Got {int(body)}")
            return


# Delayed messages: the exchange type of the delayed message plugin.


def _delay_exchange(tutorial: Tutorial) -> None:
    tutorial.channel.exchange_declare(
        "delay_exchange", "x-delayed-message", durable=True, arguments={"x-delayed-type": "direct"}
    )


def send_delayed(tutorial: Tutorial, words: Words) -> None:
    _delay_exchange(tutorial)
    body = " ".join(words) or "Hello World!"
    properties = pika.BasicProperties(headers={"x-delay": 200})
    tutorial.channel.basic_publish("delay_exchange", "delay_queue", body.encode(), properties)
    say(f" [x] Sent '{body}'")


def receive_delayed(tutorial: Tutorial, _words: Words) -> None:
    _delay_exchange(tutorial)
    tutorial.channel.queue_declare("delay_queue", durable=True)
    tutorial.channel.queue_bind("delay_queue", "delay_exchange", "delay_queue")

    def on_message(_channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        # Up to RabbitMQ 3.12, the delay is delivered as it was sent. Later versions make it negative.
        say(f" [x] Received {body.decode()} after {abs(properties.headers['x-delay'])} ms")

    tutorial.channel.basic_consume("delay_queue", on_message, auto_ack=True)
    say(" [*] Waiting for messages. To exit press CTRL+C")
    tutorial.channel.start_consuming()


PROGRAMS: dict[str, Callable[[Tutorial, Words], None]] = {
    "send": send,
    "receive": receive,
    "new-task": new_task,
    "worker": worker,
    "emit-fanout": emit_fanout,
    "emit-direct": emit_direct,
    "emit-topic": emit_topic,
    "receive-fanout": receive_fanout,
    "receive-direct": receive_direct,
    "receive-topic": receive_topic,
    "rpc-server": rpc_server,
    "rpc-client": rpc_client,
    "send-delayed": send_delayed,
    "receive-delayed": receive_delayed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A tutorial's program, in plain pika.")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--dialect", choices=DIALECTS, required=True)
    parser.add_argument("--url", required=True)
    given = parser.parse_args()
    connection = pika.BlockingConnection(pika.URLParameters(given.url))
    try:
        PROGRAMS[given.program](Tutorial(connection.channel(), given.dialect), given.words)
    finally:
        if connection.is_open:
            connection.close()


if __name__ == "__main__":
    main()
