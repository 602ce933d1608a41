"""The RabbitMQ tutorials, one file each: picture, topology, publisher and consumer.

A publisher takes a channel and messages, and yields receipts; a consumer yields deliveries. Neither prints, parses
arguments, or imports pika. https://www.rabbitmq.com/tutorials
"""
