"""Publishes six orders to the queue 'orders', which has room for two and refuses more until some are received."""

import os
import time

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ.get("AMQP_URL", "amqp://localhost")))
channel = connection.channel()

for number in range(1, 7):
    order = f"order {number}"
    channel.basic_publish("", "orders", order.encode(), pika.BasicProperties(delivery_mode=2))
    print(f"sent {order}", flush=True)
    time.sleep(0.2)

connection.close()
