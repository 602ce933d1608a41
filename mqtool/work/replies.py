"""Replies to RPC requests, and what to say when some do not come."""

from collections.abc import Iterable, Iterator

from mqtool.amqp import Channel, administration
from mqtool.errors import TimedOut, Unavailable
from mqtool.message import Delivery
from mqtool.topology import Queue


def in_order(replies: Iterable[tuple[int, Delivery]], channel: Channel, queue: Queue, count: int) -> Iterator[Delivery]:
    """Yield replies in the order of their requests.

    Args:
        replies: each with the number of its request, from 0.
        queue: where the requests went.
        count: how many requests were sent.

    Raises:
        Unavailable: time is up, and requests wait that nobody consumes.
        TimedOut: time is up.
    """
    early: dict[int, Delivery] = {}
    came = due = 0
    try:
        for number, reply in replies:
            came += 1
            early[number] = reply
            while due in early:
                yield early.pop(due)
                due += 1
    except TimedOut as error:
        depth = administration.depth(channel, queue.name)
        if depth.ready and not depth.consumers:
            raise Unavailable(
                f"no RPC server consumes from queue {queue.name!r}", f"start one: mqtool rpc-server -q {queue.name}"
            ) from error
        raise TimedOut(f"{count - came} of {count} replies did not come in time", "--timeout waits longer") from error
