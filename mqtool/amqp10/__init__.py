"""An AMQP 1.0 client for RabbitMQ 4 with blocking calls.

It does not use rabbitmq-amqp-python-client, because that library waits for the outcome of each message, does not
republish messages after a reconnection, and takes ten times as long per message.

https://www.rabbitmq.com/docs/amqp
"""

from mqtool.amqp10.link_session import LinkSession
from mqtool.codecs.sections import exchange_address, queue_address
