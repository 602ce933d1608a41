"""The RabbitMQ tutorials, one file each: a diagram, the topology, a publisher and a consumer.

A publisher takes a channel and messages, and yields receipts; a consumer yields deliveries. Neither prints, parses
arguments, or imports pika. https://www.rabbitmq.com/tutorials
"""
