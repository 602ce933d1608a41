"""Routing: receivers choose by severity.

python logs.py receive warning error
python logs.py emit error Run. Run. Or it will explode.
"""

import os
import sys

import pika


def emit(channel, words):
    severity = words[0] if words else "info"
    message = " ".join(words[1:]) or "Hello World!"
    # A direct exchange routes where the routing key equals a binding's key.
    channel.basic_publish(exchange="direct_logs", routing_key=severity, body=message)
    print(f" [x] Sent {severity}:{message}")


def receive(channel, severities):
    if not severities:
        sys.exit(__doc__)
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    for severity in severities:
        channel.queue_bind(queue=queue, exchange="direct_logs", routing_key=severity)

    def on_message(channel, method, properties, body):
        print(f" [x] {method.routing_key}:{body.decode()}")

    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for logs. To exit press CTRL+C")
    channel.start_consuming()


ROLES = {"emit": emit, "receive": receive}
if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.exchange_declare(exchange="direct_logs", exchange_type="direct")
try:
    ROLES[sys.argv[1]](channel, sys.argv[2:])
except KeyboardInterrupt:
    pass
connection.close()
