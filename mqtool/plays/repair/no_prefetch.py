"""Renders the pictures that are named in the queue 'pictures'. Several copies of this program share the work."""

import os
import time

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.queue_declare("pictures", durable=True)


def render(channel, method, properties, body):
    print(f"rendering {body.decode()}", flush=True)
    time.sleep(0.3)
    channel.basic_ack(method.delivery_tag)


channel.basic_consume("pictures", render)
channel.start_consuming()
