"""Checks that a queue exists or may be declared, and errors for what does not exist."""

from contextlib import suppress
from typing import Literal

from mqtool.amqp import Channel, administration
from mqtool.cli.access import HINT_PATIENCE, Access, ChannelOrSession
from mqtool.cli.display import output
from mqtool.cli.invocation import current
from mqtool.cli.options.broker_options import Broker
from mqtool.cli.options.queue_options import UsedQueueOptions
from mqtool.errors import MqtoolError, NotFound
from mqtool.spelling import nearest
from mqtool.topology import Queue
from mqtool.tutorials.dialects import declaring_otherwise

DECLARE = "--declare declares it"
LISTED = "'mqtool list queues' shows them"


def checked(
    queue: Queue, options: UsedQueueOptions, channel: ChannelOrSession, broker: Broker, access: Access | None = None
) -> Queue:
    """Return the queue if it exists or may be declared; otherwise raise NotFound. On a terminal, say if it is new.

    The name of a new queue may be a typo. If it is a tutorial's queue, scripts that declare it with different settings
    will fail with 406 PRECONDITION_FAILED, so the notice says which dialect those scripts need.

    Args:
        access: set by receiving commands, which declare a queue only if it is a tutorial's or an option asks for it.
    """
    is_tutorials = queue.name in {each.name for each in broker.names}
    if not (is_tutorials or options.has_settings or broker.strict):
        channel.accept_settings(queue)
    declares = options.declare
    if declares is None:
        declares = access is None or is_tutorials or options.has_settings
    is_watched = output.is_terminal(2) and not current().quiet
    if (declares and not is_watched) or administration.exists(channel, queue):
        return queue
    if not declares:
        hint = "leave out --no-declare to declare it" if options.declare is False else DECLARE
        refuse(queue.name, access, hint)
    if queue not in tuple(broker.names):
        output.notice(f"queue {queue.name!r} is new")
    elif broker.dialect is None and declaring_otherwise(queue):
        others = [f"{dialect} ({dialect.partition('-')[0].title()})" for dialect in declaring_otherwise(queue)]
        output.notice(
            f"{queue.name!r} is a new quorum queue; scripts of older tutorials need --dialect {' or '.join(others)}"
        )
    return queue


def require(name: str, channel: Channel, access: Access, hint: str = LISTED, *, suffix: str = "") -> None:
    """Raise NotFound if a queue does not exist; see refuse() for the arguments."""
    if not administration.exists(channel, Queue(name)):
        refuse(name, access, hint, suffix=suffix)


def refuse(name: str, access: Access | None, hint: str = DECLARE, kind: str = "queue", *, suffix: str = "") -> None:
    """Raise NotFound for a missing queue; the hint suggests a similar name that the management API lists.

    Does nothing if the API lists the name, for example because it is a queue and not a stream: the caller's next
    request then fails with a clear error.

    Args:
        kind: "queue", "stream" or "exchange".
        suffix: the part of the name that the user does not type, such as ".dlq".
    """
    names = [] if access is None else _names(access, "exchanges" if kind == "exchange" else "queues")
    if name not in names:
        typed = [each.removesuffix(suffix) for each in names if each.endswith(suffix)]
        meant = nearest(name.removesuffix(suffix), typed)
        where = f" in vhost {access.vhost!r}" if access is not None and access.vhost != "/" else ""
        raise NotFound(
            f"{kind} {name!r} does not exist{where}",
            hint if meant is None else f"did you mean {meant!r}? Otherwise, {hint}",
        )


def _names(access: Access, kind: Literal["queues", "exchanges"]) -> list[str]:

    from mqtool import management

    listed = management.queues if kind == "queues" else management.exchanges
    with suppress(MqtoolError):
        return [each["name"] for each in listed(access.management(HINT_PATIENCE), access.vhost, ["name"])]
    return []


def missing(what: str, hint: str, *, is_fine: bool) -> None:
    """Report that something does not exist.

    Args:
        is_fine: only print a message (for --if-exists).

    Raises:
        NotFound: is_fine is False.
    """
    if not is_fine:
        raise NotFound(f"{what} does not exist", hint)
    output.status(f"{what} does not exist")
