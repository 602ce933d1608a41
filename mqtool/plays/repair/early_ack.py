"""Takes payments from the queue 'payments', and needs two seconds for each."""

import os
import time

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.queue_declare("payments", durable=True)
channel.basic_qos(prefetch_count=1)


def take(channel, method, properties, body):
    print(f"taking {body.decode()}", flush=True)
    time.sleep(2)
    print(f"took {body.decode()}", flush=True)


channel.basic_consume("payments", take, auto_ack=True)
channel.start_consuming()
