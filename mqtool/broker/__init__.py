"""Starts, stops and lists brokers: RabbitMQ in Docker, private RabbitMQ nodes, and the embedded broker."""
