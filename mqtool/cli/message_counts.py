"""Exact counts of the messages in queues, over AMQP."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

from mqtool.amqp import Channel, administration
from mqtool.amqp.administration import Depth
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.errors import AccessRefused, DeclaredDifferently, MqtoolError, NotFound
from mqtool.work.policy_losses import Counts


@contextmanager
def counting(access: Access) -> Iterator[Counts]:
    """Count queues' messages over AMQP, with a connection that is opened for the first queue and kept for the block."""
    with ExitStack() as stack:

        @cache
        def channel() -> Channel | None:
            try:
                return stack.enter_context(access.channel())
            except MqtoolError as error:
                output.notice(f"message counts may be up to 5 s old: {error}")
                return None

        def count(queue: str) -> Depth | None:
            if (asked := channel()) is None:
                return None
            try:
                return administration.depth(asked, queue)
            except (NotFound, AccessRefused, DeclaredDifferently):  # deleted, or exclusive to another connection
                return None

        yield count
