"""How commands read the messages that wait in a queue."""

from contextlib import suppress
from math import inf
from typing import NamedTuple

from mqtool.amqp import Channel, Receiving
from mqtool.amqp.administration import ready_after_deliveries
from mqtool.amqp.consume_policies import ASSUMED_LIMIT
from mqtool.cli.access import HINT_PATIENCE, Access, ChannelOrSession
from mqtool.cli.display import output
from mqtool.errors import AccessRefused, NotFound, Unavailable, UsageError
from mqtool.management import Management
from mqtool.spelling import pasteable
from mqtool.topology import Queue
from mqtool.work import peeking
from mqtool.work.peeking import How, OverLimit, PeekKind


def kind_of(access: Access, channel: Channel, queue: str, patience: tuple[float, float] | None = None) -> PeekKind:
    """Find out how to read a queue, with the management API or, if it does not answer, over AMQP.

    Args:
        patience: see Access.management().
    """
    api: Management | None = None
    with suppress(Unavailable, AccessRefused):
        api = access.management(patience)
    return peeking.kind_of(channel, queue, api, access.vhost)


def delivery_limit(access: Access, channel: Channel, queue: str, *, requeues: bool) -> float:
    """How many times an existing queue requeues a message before it drops it, infinity for no limit.

    If the limit is unknown, assume a low one; if the queue's consumer must not change, return 0.

    Args:
        requeues: True if messages that are received will be requeued; then check the queue as check_source() does.

    Raises:
        NotFound: there is no such queue.
        MqtoolError: requeuing a message could exceed the delivery limit.
    """
    kind = kind_of(access, channel, queue, HINT_PATIENCE)
    if requeues:
        try:
            _check_limit(channel, queue, kind)
        except Unavailable:
            if not kind.is_single:
                raise
            output.notice(
                f"another consumer gets the messages of {queue!r}; those that do not match are requeued later, "
                "which may exceed the delivery limit"
            )
    limit = inf if kind.limit is None else kind.limit
    must_stay = kind.is_single or kind.how is How.GET  # the queue may be deleted with its last consumer
    if kind.is_certain:
        return 0 if must_stay and limit < inf else limit
    if must_stay and not requeues:
        output.notice(
            f"messages are taken one at a time, because the delivery limit of {queue!r} is unknown; "
            "--prefetch N takes more at a time"
        )
    return 0 if must_stay else min(limit, ASSUMED_LIMIT)


def until_empty(settings: Receiving, access: Access, channel: ChannelOrSession, queue: Queue) -> Receiving:
    """Return settings that stop consuming once a queue has no ready messages.

    Raises:
        UsageError: the queue is a stream, whose messages stay.
    """
    is_stream = queue.arguments.get("x-queue-type") == "stream"
    if isinstance(channel, Channel):
        with suppress(NotFound):  # a queue that will be declared
            is_stream = kind_of(access, channel, queue.name, HINT_PATIENCE).how is How.STREAM
    if is_stream:
        raise UsageError(f"{queue.name!r} is a stream, which never becomes empty", "use --idle-timeout or --count")
    return settings._replace(is_finished=lambda: not ready_after_deliveries(channel, queue.name))


class Leaving(NamedTuple):
    """How messages leave a queue: see QueueTransfer."""

    gets: bool
    over_limit: OverLimit | None

    def say(self) -> None:
        """Say how many messages were published again at the end of the queue, if any."""
        if self.over_limit is not None and self.over_limit.count:
            output.notice(self.over_limit.words())


def check_source(access: Access, channel: Channel, queue: str, *, requeues: bool) -> Leaving:
    """Check that messages can be moved out of a queue; return how.

    Args:
        requeues: True if messages that are not moved are requeued. If the queue has a delivery limit, the first message
            is then received and requeued.

    Raises:
        Unavailable: the queue is a stream.
        MqtoolError: requeuing a message could exceed the delivery limit.
    """
    # Only the API knows a policy's delivery limit; all else, AMQP can tell.
    kind = kind_of(access, channel, queue, None if requeues else HINT_PATIENCE)
    if kind.how is How.STREAM:
        raise Unavailable(
            f"{queue!r} is a stream, from which clients cannot remove messages",
            f"to copy them: {pasteable('receive --json --offset first --queue=', queue)}",
        )
    over = peeking.over_limit(channel, queue, kind)
    if requeues and over is None:
        _check_limit(channel, queue, kind)
    return Leaving(kind.how is How.GET, over)


def _check_limit(channel: Channel, queue: str, kind: PeekKind) -> None:
    peeking.check_limit(channel, queue, kind)
    if not kind.is_certain and peeking.is_before_4_3(channel.connection.broker):
        output.notice(
            f"the delivery limit of {queue!r} is unknown, because it can be read only from the management API; "
            "messages that do not match are requeued, which may count as a delivery"
        )
