"""Requests a Fibonacci number from the server on 'rpc_queue'. Several people run this program at the same time."""

import os
import sys
import uuid

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()
replies = "replies"
channel.queue_declare(replies)
identity = str(uuid.uuid4())
asked = pika.BasicProperties(reply_to=replies, correlation_id=identity)
channel.basic_publish("", "rpc_queue", sys.argv[1].encode(), asked)

for _, properties, body in channel.consume(replies, auto_ack=True):
    if properties.correlation_id == identity:
        print(f"fib({sys.argv[1]}) is {body.decode()}")
        break
