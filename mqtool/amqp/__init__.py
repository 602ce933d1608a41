"""An AMQP 0-9-1 client: blocking calls, carried out by an I/O thread. This is the only package that imports pika."""

from mqtool.address import Address, TlsFiles, parse_addresses
from mqtool.amqp.channel import Channel
from mqtool.amqp.connection import Connection
from mqtool.amqp.receive_settings import STREAMING, Receiving
from mqtool.duration import Backoff
from mqtool.message import CONFIRM_TIMEOUT
