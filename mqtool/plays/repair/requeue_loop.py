"""Sends an email to each address in the queue 'mails'. To an address without an @, no email can be sent."""

import os
import time

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.basic_qos(prefetch_count=1)


def send(channel, method, properties, body):
    time.sleep(0.1)
    if b"@" in body:
        print(f"sent to {body.decode()}", flush=True)
        channel.basic_ack(method.delivery_tag)
    else:
        channel.basic_reject(method.delivery_tag, requeue=True)


channel.basic_consume("mails", send)
channel.start_consuming()
