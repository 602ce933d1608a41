"""Routing: receivers choose messages by severity.

python logs.py receive warning error
python logs.py emit error Run. Run. Or it will explode.
"""

import os
import sys

import pika

role, *words = sys.argv[1:] or [""]
if role not in ("emit", "receive") or (role == "receive" and not words):
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.exchange_declare(exchange="direct_logs", exchange_type="direct")


def emit():
    severity = words[0] if words else "info"
    message = " ".join(words[1:]) or "Hello World!"
    # A direct exchange routes to the queues whose binding key equals the routing key.
    channel.basic_publish(exchange="direct_logs", routing_key=severity, body=message)
    print(f" [x] Sent {severity}:{message}")


def on_message(channel, method, properties, body):
    print(f" [x] {method.routing_key}:{body.decode()}")


def receive():
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    for severity in words:
        channel.queue_bind(queue=queue, exchange="direct_logs", routing_key=severity)
    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for logs. To exit press CTRL+C")
    channel.start_consuming()


try:
    emit() if role == "emit" else receive()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been interrupted in an operation, and close() could block forever
