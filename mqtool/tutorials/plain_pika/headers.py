"""Headers: receivers choose messages by the values of several headers.

python logs.py receive any format=pdf type=log     or all instead of any
python logs.py emit 'A report' format=pdf type=report
"""

import os
import sys

import pika

role, *words = sys.argv[1:] or [""]
if role not in ("emit", "receive") or (role == "receive" and words[:1] not in (["all"], ["any"])):
    sys.exit(__doc__)

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.exchange_declare(exchange="headers_logs", exchange_type="headers")


def emit():
    message = words[0] if words else "Hello World!"
    headers = dict(word.split("=", 1) for word in words[1:])
    # A headers exchange ignores the routing key.
    channel.basic_publish(
        exchange="headers_logs", routing_key="", body=message, properties=pika.BasicProperties(headers=headers)
    )
    print(f" [x] Sent {message}")


def on_message(channel, method, properties, body):
    print(f" [x] {body.decode()}")


def receive():
    headers = dict(word.split("=", 1) for word in words[1:])
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    # x-match determines whether all of the headers must be equal, or any one is enough.
    channel.queue_bind(queue=queue, exchange="headers_logs", arguments={"x-match": words[0], **headers})
    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for logs. To exit press CTRL+C")
    channel.start_consuming()


try:
    emit() if role == "emit" else receive()
    connection.close()
except KeyboardInterrupt:
    pass  # no close() here: pika may have been interrupted in an operation, and close() could block forever
