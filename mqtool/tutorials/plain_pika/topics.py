"""Topics: receivers choose messages by pattern. * is one word of the routing key, # any number of words.

python logs.py receive 'kern.*' '*.critical'
python logs.py emit kern.critical A critical kernel error
"""

import os
import sys

import pika

role, *words = sys.argv[1:] or [""]
if role not in ("emit", "receive") or (role == "receive" and not words):
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.exchange_declare(exchange="topic_logs", exchange_type="topic")


def emit():
    routing_key = words[0] if words else "anonymous.info"
    message = " ".join(words[1:]) or "Hello World!"
    channel.basic_publish(exchange="topic_logs", routing_key=routing_key, body=message)
    print(f" [x] Sent {routing_key}:{message}")


def on_message(channel, method, properties, body):
    print(f" [x] {method.routing_key}:{body.decode()}")


def receive():
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    for pattern in words:  # a message that matches two patterns arrives once
        channel.queue_bind(queue=queue, exchange="topic_logs", routing_key=pattern)
    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for logs. To exit press CTRL+C")
    channel.start_consuming()


try:
    emit() if role == "emit" else receive()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been interrupted in an operation, and close() could block forever
