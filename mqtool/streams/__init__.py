"""A client of RabbitMQ's stream protocol with blocking calls. This is the only package that imports rstream.

https://www.rabbitmq.com/docs/stream
"""

from mqtool.streams.stream_channel import StreamChannel
