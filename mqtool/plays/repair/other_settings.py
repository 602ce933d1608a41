"""Prints the invoices in the queue 'invoices', which the bookkeepers have declared."""

import os

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
channel.queue_declare("invoices", durable=False)


def print_it(channel, method, properties, body):
    print(f"invoice {body.decode()}", flush=True)
    channel.basic_ack(method.delivery_tag)


channel.basic_consume("invoices", print_it)
channel.start_consuming()
