"""What to know when a queue is declared for the first time."""

from mqtool.amqp import Channel, administration
from mqtool.cli.display import output
from mqtool.cli.options import Broker, UsedQueueOptions
from mqtool.errors import NotFound
from mqtool.topology import Queue
from mqtool.tutorials.dialects import declaring_otherwise


def checked(queue: Queue, options: UsedQueueOptions, channel: Channel, broker: Broker) -> Queue:
    """The queue that is about to be declared; tell a person if it is new: its name may be mistyped.

    Of a tutorial's queue, tell whose scripts will not be able to declare it then. They fail with 406
    PRECONDITION_FAILED, which does not say that mqtool has been there before.

    Raises:
        NotFound: it is new, and must not be declared.
    """
    is_watched = output.is_terminal(2) and not output.quiet
    if (options.declare and not is_watched) or administration.exists(channel, queue):
        return queue
    if not options.declare:
        raise NotFound(f"there is no queue {queue.name!r}", "leave out --no-declare to declare it")
    if queue not in tuple(broker.names):
        output.notice(f"queue {queue.name!r} is new")
    elif broker.dialect is None and declaring_otherwise(queue):
        others = [f"{dialect} ({dialect.partition('-')[0].title()})" for dialect in declaring_otherwise(queue)]
        output.notice(
            f"{queue.name!r} is a new quorum queue; scripts of older tutorials need --dialect {' or '.join(others)}"
        )
    return queue
