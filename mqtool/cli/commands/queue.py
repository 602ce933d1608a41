"""mqtool queue declare, show, delete, purge; see queue_convert.py for queue convert."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Annotated

import typer

from mqtool.amqp import Channel, administration
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, dialect_names
from mqtool.cli.command_line import command, group
from mqtool.cli.commands import queue_convert
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import Declined, ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import BrokerOptions, ManagedBroker, QueueOptions
from mqtool.cli.options.broker_options import IfExists, ShownDialect, Yes
from mqtool.cli.options.queue_options import StreamPort
from mqtool.cli.pipe.existence import LISTED, missing, refuse
from mqtool.errors import (
    AccessRefused,
    BadData,
    DeclaredDifferently,
    MqtoolError,
    NotFound,
    SomeFailed,
    Unavailable,
    UsageError,
)
from mqtool.inspection.listing import refresh
from mqtool.management.overflow import holds_dead_letters
from mqtool.management.queue_contents import Contents, contents
from mqtool.spelling import counted, pasteable
from mqtool.topology import Exchange, Queue
from mqtool.work import peeking
from mqtool.work.held_messages import check_acknowledged

app = group("queue", "Declare, show, convert, delete and purge queues.", heading="Manage")
app.add_typer(queue_convert.part)

#: Seconds to wait for current statistics of a queue before the user is asked.
_STATISTICS = 20.0


QueueName = Annotated[str, typer.Argument(metavar="QUEUE", help="Name of the queue", autocompletion=names_of("queues"))]


QueueNames = Annotated[
    list[str], typer.Argument(metavar="QUEUE...", help="Names of the queues", autocompletion=names_of("queues"))
]


AutoDelete = Annotated[bool, typer.Option("--auto-delete", help="Delete the queue once its last consumer is gone")]


IfNotExists = Annotated[
    bool, typer.Option("--if-not-exists", help="Succeed if it already exists, whatever its settings")
]


IfUnused = Annotated[bool, typer.Option("--if-unused", help="Delete a queue only if it has no consumers")]


@command(
    app,
    "mqtool queue declare jobs",
    "mqtool queue declare jobs --queue-type classic --max-length 1000",
    effect=Effect.CHANGES,
    name="declare",
    instead={"queue": QueueName, "dialect": ShownDialect},
)
def declare_queue(
    options: QueueOptions, broker: BrokerOptions, auto_delete: AutoDelete = False, if_not_exists: IfNotExists = False
) -> None:
    """Declare a queue; by default a durable quorum queue."""
    if not options.queue:
        raise UsageError("the queue's name is empty", "for example: mqtool queue declare jobs")
    hello = dialect_names(broker).hello
    default = Queue("", hello.durable, arguments=hello.arguments)
    if auto_delete and options.queue_type is None:
        default = Queue("", durable=True)  # quorum queues cannot be auto-delete
    declare_as(broker, options.of(default)._replace(auto_delete=auto_delete), if_not_exists=if_not_exists)


@command(app, "mqtool queue show jobs", "mqtool queue show jobs --json", effect=Effect.READS, name="show")
def show_queue(
    queue: QueueName,
    broker: ManagedBroker,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
    stream_port: StreamPort = None,
) -> None:
    """Show a queue: settings, counts, consumers, bindings and more."""
    from mqtool.cli.display import reports
    from mqtool.inspection.queue_details import queue_details, reader_offsets

    access = access_to(broker)
    try:
        found = queue_details(access.management(), access.vhost, queue)
    except NotFound:
        refuse(queue, access, LISTED)
        raise
    if found.row["type"] == "stream":  # AMQP does not report the length of a stream
        try:
            with access.stream_channel(stream_port) as stream:
                found = replace(found, reader_offsets=reader_offsets(stream, queue, found.consumers))
        except MqtoolError as error:
            output.notice(f"cannot get the offsets: {error}")
    else:
        with suppress(MqtoolError), access.channel() as channel:  # the queue may be exclusive to another connection
            depth = administration.depth(channel, queue)
            if refresh(found.row, depth.ready, depth.consumers):
                output.notice("counts of unacknowledged messages are up to 5 s old")
    reports.show_queue(found, as_line=as_json)


def declare_as(broker: BrokerOptions, thing: Exchange | Queue, *, if_not_exists: bool) -> None:
    with access_to(
        replace(broker, strict=True)
    ).channel() as channel:  # otherwise, different settings are only a notice
        exists = administration.exists(channel, thing)
        if not (exists and if_not_exists):
            try:
                channel.declare(thing)
            except DeclaredDifferently as error:
                if not exists:  # the broker refuses the settings themselves
                    raise
                raise DeclaredDifferently(str(error), "--if-not-exists leaves it as it is") from error
        lost = None
        if isinstance(thing, Queue):
            with suppress(MqtoolError):  # the user may have no rights on the other queue
                lost = _lost_dead_letters(channel, thing)
    output.status(f"{named(thing)} exists" if exists else f"declared {named(thing)}")
    if lost is not None:
        output.warning(lost)


def _lost_dead_letters(channel: Channel, queue: Queue) -> str | None:
    """Return a sentence that says that no queue gets a queue's dead letters, and how to mend it; None if one does."""
    exchange, key = (queue.arguments.get(f"x-dead-letter-{name}") for name in ("exchange", "routing-key"))
    if exchange == "" and isinstance(key, str) and not administration.exists(channel, Queue(key)):
        missing, declare = f"queue {key!r}", pasteable("queue declare", key)
    elif isinstance(exchange, str) and exchange and not administration.exists(channel, Exchange(exchange)):
        missing, declare = f"exchange {exchange!r}", pasteable("exchange declare", exchange, "fanout")
    else:
        return None
    as_view = {"type": queue.arguments.get("x-queue-type"), "arguments": queue.arguments}
    fate = "stay in it" if holds_dead_letters(as_view) else "are lost"
    return f"dead letters of {named(queue)} {fate}: {missing} does not exist; to declare it: {declare}"


def existing(channel: Channel, things: Iterable[Exchange | Queue], access: Access, *, if_exists: bool) -> Iterator[str]:
    """Yield the names that exist. For a missing one, print a message if `if_exists`; otherwise raise NotFound."""
    for thing in things:
        if administration.exists(channel, thing):
            yield thing.name
        else:
            kind = "queue" if isinstance(thing, Queue) else "exchange"
            hint = f"'mqtool list {kind}s' shows them"
            if not if_exists:
                refuse(thing.name, access, hint, kind)
            missing(named(thing), hint, is_fine=if_exists)


@contextmanager
def one_by_one(names: Sequence[str], done: str) -> Iterator[list[str]]:
    """Context manager: yield a list for the names that are done. If the block fails later, say what is left.

    Args:
        done: what is done to them, such as "deleted".

    Raises:
        SomeFailed: the block failed when the list had names in it.
    """
    finished: list[str] = []
    try:
        yield finished
    except MqtoolError as error:
        if not finished:
            raise
        what = "you declined" if isinstance(error, Declined) else str(error)
        left = ", ".join(repr(each) for each in names if each not in finished)
        raise SomeFailed(f"{what}; {done}: {len(finished)} of {len(names)}, not {left}", error.hint) from error


@command(
    app,
    "mqtool queue delete jobs",
    "mqtool queue delete hello jobs --if-exists --yes",
    effect=Effect.CHANGES,
    name="delete",
)
def delete_queue(
    queue: QueueNames,
    broker: ManagedBroker,
    yes: Yes = False,
    if_exists: IfExists = False,
    if_unused: IfUnused = False,
    if_empty: Annotated[
        bool, typer.Option("--if-empty", help="Delete a queue only if it has no ready messages")
    ] = False,
) -> None:
    """Delete queues and the messages in them.

    With both --if-empty and --if-unused, asks for confirmation only if the queue has unacknowledged messages, which
    RabbitMQ deletes too, or if the management API cannot tell.
    """
    access = access_to(broker)
    with access.channel() as channel, one_by_one(queue, "deleted") as deleted:
        for name in existing(channel, map(Queue, queue), access, if_exists=if_exists):
            ready, consumers = administration.depth(channel, name)
            # RabbitMQ treats every stream as empty, and deletes it despite --if-empty and --if-unused.
            found, is_stream = _contents(channel, name, access, yes=yes)
            if is_stream and (if_empty or if_unused):
                raise MqtoolError(
                    f"queue {name!r} was not deleted: RabbitMQ does not check --if-empty or --if-unused for streams",
                    "without them, the stream is deleted with its messages",
                )
            special = "the messages of the stream" if is_stream else None
            is_safe, hint = if_empty and if_unused, "pass --yes"
            # The broker refuses to delete a queue with ready messages or consumers, but ignores unacknowledged ones.
            if is_safe and not (yes or ready or consumers or access.protected is not None):
                try:
                    _check_acknowledged(channel, name, access)
                except MqtoolError as error:
                    output.warning(str(error))
                    is_safe, special = False, "its unacknowledged messages"
                    hint = f"{hint}, or {error.hint}" if error.hint else hint
            what = special or found.as_text()
            ask(f"delete queue {name!r} with {what}", access, yes=yes, is_safe=is_safe, hint=hint)
            try:
                gone = administration.delete_queue(channel, name, if_unused=if_unused, if_empty=if_empty)
            except BadData as error:  # 406: in use, not empty
                raise MqtoolError(f"queue {name!r} was not deleted: {error}") from error
            deleted.append(name)
            output.status(f"deleted queue {name!r}, with {special or found._replace(ready=gone).as_text()}")


def _check_acknowledged(channel: Channel, queue: str, access: Access) -> None:
    """Raise MqtoolError if a queue has unacknowledged messages, or if the broker does not say how many it has."""

    def ask_queue() -> None:
        stopping.exit_if_requested()
        administration.depth(channel, queue)

    check_acknowledged(
        access.management(),
        access.vhost,
        queue,
        ask_queue,
        pasteable("queue delete --if-empty --if-unused", queue),
        output.notice,
        is_embedded=channel.connection.broker_to_show == "the embedded broker",
        patience=0,
    )


def _contents(channel: Channel, queue: str, access: Access, *, yes: bool) -> tuple[Contents, bool]:
    """Return what a queue holds, and True if it is a stream.

    Args:
        yes: nobody is asked, so do not wait for current counts.
    """
    kind, ready = peeking.kind_of(channel, queue, None, access.vhost), administration.depth(channel, queue).ready
    if kind.how is not peeking.How.IN_TURN:
        return Contents(ready, 0, 0), kind.how is peeking.How.STREAM

    def ask_queue() -> int:
        stopping.exit_if_requested()
        return administration.depth(channel, queue).ready

    is_embedded = channel.connection.broker_to_show == "the embedded broker"
    try:
        api, patience = access.management(), 0.0 if yes else _STATISTICS
        found = contents(api, access.vhost, queue, ask_queue, is_embedded=is_embedded, patience=patience)
    except (Unavailable, AccessRefused) as error:
        output.notice(f"messages of quorum queues that are not ready cannot be counted: {error}")
        found = Contents(ready, 0 if peeking.is_before_4_3(channel.connection.broker) else None, None)
    return found, False


@command(app, "mqtool queue purge jobs", "mqtool queue purge jobs --yes", effect=Effect.CHANGES)
def purge(queue: QueueNames, broker: ManagedBroker, yes: Yes = False, if_exists: IfExists = False) -> None:
    """Remove all ready messages from queues.

    From RabbitMQ 4.3 on, this also removes messages that wait for a delayed retry, and dead letters that an
    at-least-once queue still holds.
    """
    access = access_to(broker)
    with access.channel() as channel, one_by_one(queue, "purged") as purged:
        for name in existing(channel, map(Queue, queue), access, if_exists=if_exists):
            found, is_stream = _contents(channel, name, access, yes=yes)
            if is_stream:
                raise MqtoolError(
                    f"queue {name!r} was not purged: it is a stream, and streams cannot be purged",
                    f"to delete it with its messages: {pasteable('queue delete', name)}",
                )
            if peeking.is_before_4_3(channel.connection.broker):  # then it keeps its dead letters
                found = found._replace(dead_letters=0)
            ask(f"remove {found.as_text()} from queue {name!r} for good", access, yes=yes)
            gone = administration.purge(channel, name)
            purged.append(name)
            output.status(f"removed {counted(gone)} from queue {name!r}")


def named(thing: Exchange | Queue) -> str:
    return f"{'queue' if isinstance(thing, Queue) else 'exchange'} {thing.name!r}"
