"""Checks that a queue exists or may be declared, and errors for what does not exist."""

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from mqtool.amqp import Channel, administration
from mqtool.cli.access import HINT_PATIENCE, Access, ChannelOrSession
from mqtool.cli.broker_access import dialect_names
from mqtool.cli.confirmation import ask
from mqtool.cli.display import output
from mqtool.cli.invocation import current
from mqtool.cli.options.broker_options import BrokerOptions
from mqtool.cli.options.queue_options import UsedQueueOptions
from mqtool.errors import AccessRefused, BadAnswer, MqtoolError, NotFound
from mqtool.spelling import mistyped, nearest
from mqtool.topology import Exchange, Queue, Stream

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel

DECLARE = "--declare declares it"
LISTED = "'mqtool list queues' shows them"


def checked(
    queue: Queue,
    options: UsedQueueOptions,
    channel: ChannelOrSession,
    broker: BrokerOptions,
    access: Access,
    *,
    publishes: bool = False,
) -> Queue:
    """Return the queue if it exists or may be declared; otherwise raise NotFound. Say if it is new; see check_new().

    Args:
        publishes: True for commands that publish to the queue. In a script, they do not say that it is new.
    """
    is_tutorials = queue.name in {each.name for each in dialect_names(broker)}
    may_declare = is_tutorials and options.declare is not False
    if not (may_declare or options.has_settings or broker.strict):
        channel.accept_settings(queue)
    declares = options.declare
    if declares is None and (not access.is_guarded if publishes else is_tutorials or options.has_settings):
        declares = True
    if declares and (is_tutorials or not _tells_of_new()):
        return queue
    if not administration.queue_exists(channel, queue):
        check_new(queue.name, access, declares=declares, suggests=options.declare is None)
        if broker.dialect and not queue.durable and options.options.durable is None and _tells_of_new():
            output.notice(f"it is transient, as in --dialect {broker.dialect}; for a durable queue, add --durable")
    return queue


def check_vhost(access: Access) -> None:
    """Raise NotFound if the user sees no such vhost as that in the URL, for commands that do not need one."""
    from mqtool.management import exchanges, vhosts

    if access.vhost == "/":  # the default, which nobody may have typed
        return
    api = access.management()
    with suppress(AccessRefused, BadAnswer):  # the command's own requests report them
        try:
            # Users who are not administrators cannot ask for a vhost, but they can list what it contains.
            next(exchanges(api, access.vhost, ("name",)), None)
        except NotFound:
            # RabbitMQ 4.3 gives this answer, too, to users who may monitor the vhost, but have no permissions in it.
            if access.vhost not in {view["name"] for view in vhosts(api, ("name",))}:
                raise


def check_new(
    name: str, access: Access | None, *, declares: bool | None, kind: str = "queue", suggests: bool = False
) -> None:
    """Check whether a missing queue may be declared, and say that it is new.

    What other queues are named never decides, so that a script does the same on every broker.

    Args:
        declares: if None, it may be declared unless the context is protected. Then, a script is told, too, that it is
            new. Otherwise, only a terminal is.
        kind: "queue" or "stream".
        suggests: if its name looks like a misspelling of one that the management API lists, name that on a terminal.

    Raises:
        NotFound: it must not be declared.
    """
    if declares is False or (declares is None and access is not None and access.protected is not None):
        refuse(name, access, kind=kind)
        return
    meant = None
    if suggests and access is not None and _tells_of_new():
        meant = mistyped(name, _names(access, "queues"))
    if declares is None or _tells_of_new():
        output.notice(f"{kind} {name!r} is new{'' if meant is None else f'; did you mean {meant!r}?'}")


def check_exchange(exchange: Exchange, channel: ChannelOrSession, access: Access, *, declares: bool | None) -> None:
    """Check that an exchange exists if it must not be declared. The channel then uses it as it is.

    Args:
        declares: the value of --declare.

    Raises:
        NotFound: the exchange does not exist.
    """
    if declares is False and exchange.name:
        if not _is_there(channel, access, exchange):
            refuse(exchange.name, access, kind="exchange")
        accept_existing(exchange, channel, access, declares=declares)


def accept_existing(
    thing: Exchange | Queue, channel: ChannelOrSession, access: Access, *, declares: bool | None
) -> None:
    """If an existing queue or exchange must not be declared, use it as it is. This needs no permission to configure it.

    With --strict, it is declared all the same, because only this shows whether its settings differ.

    Args:
        declares: the value of --declare.
    """
    if declares is False and not access.strict:
        channel.accept_settings(thing)


def ask_to_declare(channel: ChannelOrSession, access: Access, *things: Exchange | Queue) -> None:
    """In a protected context, ask before a command that only sends or shows messages declares what does not exist.

    Raises:
        UsageError: there is no terminal to ask on.
        MqtoolError: the user declined.
    """
    if access.is_guarded:
        missing = [_described(each) for each in things if each.name and not _is_there(channel, access, each)]
        if missing:
            ask(f"declare {' and '.join(missing)}", access, is_safe=True)


def ask_to_declare_stream(channel: "StreamChannel", access: Access, stream: Stream) -> None:
    """Ask as ask_to_declare() does, for a stream or a super stream."""
    if access.is_guarded:
        is_one = channel.streams_of(stream.name) == [stream.name]
        if is_one and (stream.partitions or not channel.exists(stream.name)):
            ask(f"declare stream {stream.name!r}", access, is_safe=True)


def _is_there(channel: ChannelOrSession, access: Access, thing: Exchange | Queue) -> bool:
    if isinstance(thing, Queue):
        return administration.queue_exists(channel, thing)
    if isinstance(channel, Channel):
        return administration.exists(channel, thing)
    with access.channel() as other:  # AMQP 1.0 has no request for it
        return administration.exists(other, thing)


def _described(thing: Exchange | Queue) -> str:
    return f"{'queue' if isinstance(thing, Queue) else 'exchange'} {thing.name!r}"


def _tells_of_new() -> bool:
    return output.is_terminal(2) and not current().quiet


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
