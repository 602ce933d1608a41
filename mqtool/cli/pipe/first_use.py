"""What to know when a tutorial's queue is declared for the first time."""

from mqtool.amqp import Channel, administration
from mqtool.cli.display import output
from mqtool.cli.options import Broker
from mqtool.topology import Queue
from mqtool.tutorials.dialects import declaring_otherwise


def told_if_new(queue: Queue, channel: Channel, broker: Broker) -> Queue:
    """The queue that is about to be declared; tell a person whose scripts will not be able to declare it then.

    They fail with 406 PRECONDITION_FAILED, which does not say that mqtool has been there before.
    """
    is_usual = broker.dialect is None and queue in tuple(broker.names)
    if is_usual and output.is_terminal(2) and not output.quiet and not administration.exists(channel, queue):
        others = [f"{dialect} ({dialect.partition('-')[0].title()})" for dialect in declaring_otherwise(queue)]
        output.notice(
            f"{queue.name!r} is a new quorum queue; scripts of older tutorials need --dialect {' or '.join(others)}"
        )
    return queue
