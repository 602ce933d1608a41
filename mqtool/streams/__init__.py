"""The client of RabbitMQ's stream protocol: the only package that imports rstream. Blocking calls in front.

https://www.rabbitmq.com/docs/stream
"""

from mqtool.streams.stream_channel import StreamChannel
