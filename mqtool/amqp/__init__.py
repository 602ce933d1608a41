"""The AMQP 0-9-1 client: the only package that imports pika. Blocking calls in front, one I/O thread behind."""

from mqtool.amqp.address import Address, TlsFiles, parse_addresses
from mqtool.amqp.channel import CONFIRM_TIMEOUT, Channel, Owner
from mqtool.amqp.connection import Connection
from mqtool.amqp.consume_policies import STREAMING, Receiving
from mqtool.duration import Backoff
