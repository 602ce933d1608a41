"""mqtool queue declare, show, delete, purge (and convert, see convert.py); exchange declare, delete, bind, unbind."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

from mqtool.amqp import Channel, administration
from mqtool.cli.access import Access
from mqtool.cli.command_line import Argument, Option, OptionGroup
from mqtool.cli.commands import convert
from mqtool.cli.display import output
from mqtool.cli.options import (
    Broker,
    Commands,
    ExchangeOptions,
    ManagedBroker,
    QueueOptions,
    argument_option,
    header_option,
)
from mqtool.cli.options.broker_options import IfExists, Yes, ask, missing
from mqtool.cli.options.queue_options import LISTED, StreamPort, refuse
from mqtool.errors import BadData, DeclaredDifferently, MqtoolError, NotFound, UsageError
from mqtool.inspection.listing import refresh
from mqtool.spelling import counted, nearest, pasteable
from mqtool.topology import Binding, Exchange, Queue
from mqtool.work import peeking

app = Commands()
queue_app = app.group("queue", "Declare, show, convert, delete and purge queues.")
queue_app.makers.update(convert.app.makers)
exchange_app = app.group("exchange", "Declare, bind, unbind and delete exchanges.")

#: The exchange types that every broker supports.
_TYPES = ("direct", "fanout", "topic", "headers")

QueueName = Annotated[str, Argument()]
ExchangeName = Annotated[str, Argument()]
QueueNames = Annotated[list[str], Argument()]
AutoDelete = Annotated[bool, Option("--auto-delete", help="Delete it when nothing uses it any more")]
IfNotExists = Annotated[bool, Option("--if-not-exists", help="Succeed if it exists, whatever its settings")]
IfUnused = Annotated[bool, Option("--if-unused", help="Delete it only if nothing uses it")]


@queue_app.command(
    "mqtool queue declare jobs",
    "mqtool queue declare jobs --queue-type classic --max-length 1000",
    name="declare",
    instead={"queue": QueueName},
)
def declare_queue(
    options: QueueOptions, broker: Broker, auto_delete: AutoDelete = False, if_not_exists: IfNotExists = False
) -> None:
    """Declare a queue; by default a durable quorum queue."""
    default = Queue("", broker.names.hello.durable, arguments=broker.names.hello.arguments)
    if auto_delete and options.queue_type is None:
        default = Queue("", durable=True)  # quorum queues cannot be auto-delete
    _declare(broker, options.of(default)._replace(auto_delete=auto_delete), if_not_exists=if_not_exists)


@exchange_app.command(
    "mqtool exchange declare logs fanout",
    "mqtool exchange declare audit topic --if-not-exists",
    name="declare",
    instead={"exchange": ExchangeName},
)
def declare_exchange(
    options: ExchangeOptions,
    broker: Broker,
    kind: Annotated[str, Argument(metavar="TYPE", help="direct, fanout, topic, headers, or a plugin's type")],
    auto_delete: AutoDelete = False,
    internal: Annotated[bool, Option(help="Accept messages from other exchanges only")] = False,
    if_not_exists: IfNotExists = False,
) -> None:
    """Declare an exchange; by default a durable one."""
    if kind not in _TYPES and (meant := nearest(kind, _TYPES)) and not kind.startswith("x-"):
        raise UsageError(f"unknown exchange type {kind!r}", f"did you mean {meant!r}?")
    wanted = options.of(Exchange("", kind, durable=True, auto_delete=auto_delete, internal=internal))
    _declare(broker, wanted, if_not_exists=if_not_exists)


@queue_app.command("mqtool queue show jobs", "mqtool queue show jobs --json", name="show")
def show_queue(
    queue: QueueName,
    broker: ManagedBroker,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object")] = False,
    stream_port: StreamPort = None,
) -> None:
    """Show a queue: settings, counts, consumers, bindings and more."""
    from mqtool.cli.display import reports
    from mqtool.inspection.queue_details import queue_details, reader_offsets

    access = broker.access()
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


def _declare(broker: Broker, thing: Exchange | Queue, *, if_not_exists: bool) -> None:
    with broker.changed(strict=True).access().channel() as channel:  # otherwise, different settings are only a notice
        exists = administration.exists(channel, thing)
        if not (exists and if_not_exists):
            try:
                channel.declare(thing)
            except DeclaredDifferently as error:
                raise DeclaredDifferently(str(error), "--if-not-exists leaves it as it is") from error
    output.status(f"{_named(thing)} exists" if exists else f"declared {_named(thing)}")


def _existing(
    channel: Channel, things: Iterable[Exchange | Queue], access: Access, *, if_exists: bool
) -> Iterator[str]:
    """Yield the names that exist. For a missing one, print a message if `if_exists`; otherwise raise NotFound."""
    for thing in things:
        if administration.exists(channel, thing):
            yield thing.name
        else:
            kind = "queue" if isinstance(thing, Queue) else "exchange"
            hint = f"'mqtool list {kind}s' shows them"
            if not if_exists:
                refuse(thing.name, access, hint, kind)
            missing(_named(thing), hint, is_fine=if_exists)


@queue_app.command("mqtool queue delete jobs", "mqtool queue delete hello jobs --if-exists --yes", name="delete")
def delete_queue(
    queue: QueueNames,
    broker: Broker,
    yes: Yes = False,
    if_exists: IfExists = False,
    if_unused: IfUnused = False,
    if_empty: Annotated[bool, Option(help="Delete it only if it has no messages")] = False,
) -> None:
    """Delete queues and the messages in them."""
    access = broker.access()
    with access.channel() as channel:
        for name in _existing(channel, map(Queue, queue), access, if_exists=if_exists):
            ready = administration.depth(channel, name).ready
            # RabbitMQ treats every stream as empty, and deletes it despite --if-empty and --if-unused.
            is_stream = _is_stream(channel, name, access.vhost)
            if is_stream and (if_empty or if_unused):
                raise MqtoolError(
                    f"queue {name!r} was not deleted: RabbitMQ does not check --if-empty or --if-unused for streams",
                    "without them, the stream is deleted with its messages",
                )
            holds = "the messages of the stream" if is_stream else counted(ready)
            ask(f"delete queue {name!r} with {holds}", access, yes=yes, is_safe=if_empty and if_unused)
            try:
                gone = administration.delete_queue(channel, name, if_unused=if_unused, if_empty=if_empty)
            except BadData as error:  # 406: in use, not empty
                raise MqtoolError(f"queue {name!r} was not deleted: {error}") from error
            output.status(f"deleted queue {name!r}, with {holds if is_stream else counted(gone)}")


def _is_stream(channel: Channel, queue: str, vhost: str) -> bool:
    return peeking.kind_of(channel, queue, None, vhost).how is peeking.How.STREAM


@queue_app.command("mqtool queue purge jobs", "mqtool queue purge jobs --yes")
def purge(queue: QueueNames, broker: Broker, yes: Yes = False, if_exists: IfExists = False) -> None:
    """Remove all ready messages from queues."""
    access = broker.access()
    with access.channel() as channel:
        for name in _existing(channel, map(Queue, queue), access, if_exists=if_exists):
            if _is_stream(channel, name, access.vhost):
                raise MqtoolError(
                    f"queue {name!r} was not purged: it is a stream, and streams cannot be purged",
                    f"to delete it with its messages: {pasteable('queue delete', name)}",
                )
            ready = administration.depth(channel, name).ready
            ask(f"remove {counted(ready)} from queue {name!r} for good", access, yes=yes)
            output.status(f"removed {counted(administration.purge(channel, name))} from queue {name!r}")


@exchange_app.command("mqtool exchange delete logs", "mqtool exchange delete logs --if-exists --yes", name="delete")
def delete_exchange(
    exchange: Annotated[list[str], Argument()],
    broker: Broker,
    yes: Yes = False,
    if_exists: IfExists = False,
    if_unused: IfUnused = False,
) -> None:
    """Delete exchanges and their bindings."""
    access = broker.access()
    with access.channel() as channel:
        for name in _existing(channel, map(Exchange, exchange), access, if_exists=if_exists):
            ask(f"delete exchange {name!r} with its bindings", access, yes=yes, is_safe=if_unused)
            try:
                administration.delete_exchange(channel, name, if_unused=if_unused)
            except BadData as error:
                raise MqtoolError(f"exchange {name!r} was not deleted: {error}") from error
            output.status(f"deleted exchange {name!r}")


class Bindings(OptionGroup):
    """Options that describe bindings, one for each routing key."""

    exchange: ExchangeName
    destination: Annotated[str, Argument(metavar="QUEUE", help="Queue, or with --to-exchange an exchange")]
    keys: Annotated[
        list[str] | None, Argument(metavar="[KEY]...", help="Binding keys (default: one binding with an empty key)")
    ] = None
    to_exchange: Annotated[bool, Option(help="QUEUE is the name of an exchange")] = False
    arguments: Annotated[list[Any] | None, argument_option("Argument of the binding; KEY:=JSON for a typed value")] = (
        None
    )
    headers: Annotated[list[Any] | None, header_option("Header to match; KEY:=JSON for a typed value")] = None
    match: Annotated[str | None, Option(help="How headers match: all, any, all-with-x or any-with-x")] = None

    @property
    def to(self) -> str:
        """The destination in words, such as "queue 'jobs'"."""
        return _named((Exchange if self.to_exchange else Queue)(self.destination))

    def by(self, key: str) -> Binding:
        """Return the binding with this routing key."""
        match = {} if self.match is None else {"x-match": self.match}
        arguments = {**match, **dict(self.headers or []), **dict(self.arguments or [])}
        return Binding(self.exchange, self.destination, key, arguments, self.to_exchange)


@exchange_app.command(
    "mqtool exchange bind topic_logs audit 'kern.*' '*.critical'",
    "mqtool exchange bind headers_logs pdfs -H format=pdf --match any",
)
def bind(bindings: Bindings, broker: Broker) -> None:
    """Bind a queue to an exchange."""
    with broker.access().channel() as channel:
        for key in bindings.keys or [""]:
            administration.bind(channel, bindings.by(key))
            output.status(f"bound {bindings.to} to exchange {bindings.exchange!r}{_by(key)}")


@exchange_app.command("mqtool exchange unbind topic_logs audit 'kern.*'")
def unbind(bindings: Bindings, broker: Broker, yes: Yes = False) -> None:
    """Remove bindings, if they exist; matched by key and arguments."""
    access = broker.access()
    with access.channel() as channel:
        for key in bindings.keys or [""]:
            what = f"unbind {bindings.to} from exchange {bindings.exchange!r}{_by(key)}"
            ask(what, access, yes=yes, is_safe=True)
            administration.unbind(channel, bindings.by(key))
            output.status(f"{bindings.to} is no longer bound to exchange {bindings.exchange!r}{_by(key)}")


def _named(thing: Exchange | Queue) -> str:
    return f"{'queue' if isinstance(thing, Queue) else 'exchange'} {thing.name!r}"


def _by(key: str) -> str:
    return f" with key {key!r}" if key else ""
