"""Headers: receivers choose by several attributes at once.

python logs.py receive any format=pdf type=log     or all instead of any
python logs.py emit 'A report' format=pdf type=report
"""

import os
import sys

import pika


def emit(channel, words):
    message = words[0] if words else "Hello World!"
    headers = dict(word.split("=", 1) for word in words[1:])
    # A headers exchange does not look at the routing key.
    channel.basic_publish(
        exchange="headers_logs", routing_key="", body=message, properties=pika.BasicProperties(headers=headers)
    )
    print(f" [x] Sent {message}")


def receive(channel, words):
    if not words or words[0] not in ("all", "any"):
        sys.exit(__doc__)
    headers = dict(word.split("=", 1) for word in words[1:])
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    # x-match says whether all of the headers must be equal, or any one will do.
    channel.queue_bind(queue=queue, exchange="headers_logs", arguments={"x-match": words[0], **headers})

    def on_message(channel, method, properties, body):
        print(f" [x] {body.decode()}")

    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for logs. To exit press CTRL+C")
    channel.start_consuming()


ROLES = {"emit": emit, "receive": receive}
if len(sys.argv) < 2 or sys.argv[1] not in ROLES:
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.exchange_declare(exchange="headers_logs", exchange_type="headers")
try:
    ROLES[sys.argv[1]](channel, sys.argv[2:])
except KeyboardInterrupt:
    pass
connection.close()
