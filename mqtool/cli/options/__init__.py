"""Options that several commands share, in groups. A command takes a group as one parameter.

Import the options for receiving from `receiving_options`, so that `mqtool send` does not have to load them.
"""

from mqtool.cli.options.broker_options import (
    BrokerOptions,
    ContextName,
    ManagedBroker,
    TutorialBroker,
    UnneededYes,
    Url,
    Yes,
)
from mqtool.cli.options.message_options import RATE, ConfirmTimeout, DelayOptions, MessageOptions, Publishing
from mqtool.cli.options.queue_options import (
    ExchangeOptions,
    LogQueueOptions,
    QueueOptions,
    UsedQueueOptions,
    exchange_option,
    queue_option,
)
