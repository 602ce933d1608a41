"""The RabbitMQ tutorials, one file each: the picture, the topology, the publisher and the consumer.

A publisher is a function of a channel and messages, and yields receipts; a consumer yields deliveries. Neither prints,
parses arguments, or knows which client library is underneath. https://www.rabbitmq.com/tutorials
"""
