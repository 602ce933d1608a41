"""The options that commands share, each declared once, in groups that a command takes as one parameter."""

from mqtool.cli.groups import Commands
from mqtool.cli.options.asking import Yes, ask, ask_password
from mqtool.cli.options.connection import Broker, ContextName, ManagedBroker, Url
from mqtool.cli.options.delays import DelayOptions
from mqtool.cli.options.messages import MessageOptions, Publishing
from mqtool.cli.options.receiving import Printing, Receiving
from mqtool.cli.options.topology import (
    ExchangeOptions,
    LogQueueOptions,
    QueueOptions,
    UsedQueueOptions,
    exchange_option,
    queue_option,
)
from mqtool.cli.options.values import (
    CONFIRM_TIMEOUT,
    DURATION,
    OFFSET,
    RATE,
    TIME_LIMIT,
    ConfirmTimeout,
    Match,
    Where,
    argument_option,
    header,
    header_option,
    size,
)
