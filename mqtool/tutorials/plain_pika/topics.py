"""Topics: receivers choose by pattern. * is one word of the routing key, # any number of them.

python logs.py receive 'kern.*' '*.critical'
python logs.py emit kern.critical A critical kernel error
"""

import os
import sys

import pika


def emit(channel, words):
    routing_key = words[0] if words else "anonymous.info"
    message = " ".join(words[1:]) or "Hello World!"
    channel.basic_publish(exchange="topic_logs", routing_key=routing_key, body=message)
    print(f" [x] Sent {routing_key}:{message}")


def receive(channel, patterns):
    if not patterns:
        sys.exit(__doc__)
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    for pattern in patterns:
        channel.queue_bind(queue=queue, exchange="topic_logs", routing_key=pattern)

    # A message that two of our patterns match comes once.
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
channel.exchange_declare(exchange="topic_logs", exchange_type="topic")
try:
    ROLES[sys.argv[1]](channel, sys.argv[2:])
except KeyboardInterrupt:
    pass
connection.close()
