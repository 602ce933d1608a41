"""An embedded AMQP 0-9-1 broker that behaves like RabbitMQ 3.10: for learning, demonstrations and tests.

from mqtool.broker.embedded import EmbeddedBroker

with EmbeddedBroker() as broker:
    ...  # any AMQP client can connect to broker.url
"""

from mqtool.broker.embedded.server import EmbeddedBroker, Settings, serve

__all__ = ["EmbeddedBroker", "Settings", "serve"]
