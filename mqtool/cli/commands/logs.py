"""mqtool emit-log, mqtool receive-log: publish/subscribe, routing, topics, headers."""

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

from mqtool.amqp import Channel, administration
from mqtool.amqp import Receiving as Settings
from mqtool.cli.access import Access, ChannelOrSession
from mqtool.cli.command_line import Argument, OptionGroup
from mqtool.cli.display.output import WAITING_FOR_LOGS
from mqtool.cli.options import (
    PROTOCOL,
    Broker,
    Commands,
    ExchangeOptions,
    LogQueueOptions,
    Publishing,
    header,
    header_option,
)
from mqtool.cli.options.queue_options import refuse
from mqtool.cli.options.receiving_options import Match, Receiving, Where
from mqtool.cli.pipe.publishing import publishing_channel, text
from mqtool.cli.pipe.receiving import Matching, receiving_channel
from mqtool.cli.pipe.source import Addressing
from mqtool.errors import UsageError
from mqtool.message import Delivery, Message, Receipt
from mqtool.topology import Exchange, Queue
from mqtool.tutorials import headers as headers_tutorial
from mqtool.tutorials import publish_subscribe, routing, topics

app = Commands()
emit_log = app.group("emit-log", "Publish logs to an exchange (tutorials 3, 4 and 5).")
receive_log = app.group("receive-log", "Receive logs from an exchange (tutorials 3, 4 and 5).")


#: Call emit() or receive() of a lesson, as taught for the channel's protocol.
Emit = Callable[[ChannelOrSession, Exchange, Iterable[Message | None]], Iterator[Receipt]]
EmitWithKey = Callable[[ChannelOrSession, Exchange, str, Iterable[Message | None]], Iterator[Receipt]]
Receive = Callable[[ChannelOrSession, Exchange, Queue, Settings], Iterator[Delivery]]


class ReceivingLogs(OptionGroup):
    """Options of all `receive-log` commands."""

    exchange: ExchangeOptions
    queue: LogQueueOptions
    receiving: Receiving
    broker: Broker
    where: Where = None


def _emit(
    publishing: Publishing,
    exchange: Exchange,
    emit: Emit,
    *,
    line: Callable[[Message], str] | None = None,
    default: bytes | None = None,
    key: str | None = None,
) -> None:
    """Publish with a tutorial's emit(). By default, send and print the same text as the dialect's scripts.

    Args:
        line: what to print for each message.
        default: the body if there are no message words and no input.
        key: the routing key given by the user.
    """
    lines, addressing = publishing.broker.lines, Addressing(exchange.name, key)
    with publishing_channel(
        publishing, exchange, addressing, opened=Access.channel_or_session, default=default or lines.routed
    ) as (channel, outgoing):
        outgoing.report(emit(channel, exchange, outgoing.messages), line or lines.sent_log)


def _emit_with_key(publishing: Publishing, exchange: Exchange, emit: EmitWithKey, key: str | None, usual: str) -> None:
    """Publish with the routing key `key`, or with the default key `usual` if `key` is None."""
    line = publishing.broker.lines.sent_log_with_key

    def sent(message: Message) -> str:
        return line.format(key=usual if message.routing_key is None else message.routing_key, body=text(message))

    def emit_usual(channel: ChannelOrSession, to: Exchange, messages: Iterable[Message | None]) -> Iterator[Receipt]:
        return emit(channel, to, usual, messages)

    _emit(publishing, exchange, emit_usual, line=sent, key=key)


def _with_key_in_body(publishing: Publishing, key: str | None) -> Publishing:
    """Put the routing key in front of the body's words if the dialect's scripts do so."""
    options = publishing.options
    if key is None or not publishing.broker.lines.key_in_body or options.is_stream or options.file:
        return publishing
    return publishing.changed(words=[key, *(publishing.words or [])])


def _receive(asked: ReceivingLogs, exchange: Exchange, receive: Receive, line: str) -> None:
    """Print the deliveries from a tutorial's receive(), which consumes from --queue, or else from a private queue.

    Args:
        line: the default format of a delivery; see DeliveryWriter.
    """
    queue, is_private = asked.queue.declared(), asked.queue.queue is None
    matching = Matching(asked.receiving, asked.where, skips=is_private)
    settings = matching.settings()
    with receiving_channel(
        asked.receiving,
        asked.broker,
        line,
        opened=Access.channel_or_session,
        waiting=WAITING_FOR_LOGS,
        queue_is_private=is_private,
    ) as (channel, incoming):
        if not (is_private or asked.queue.declare or administration.exists(channel, queue)):
            refuse(queue.name, incoming.access)
        settings = incoming.printed(settings)
        deliveries = receive(channel, asked.exchange.of(exchange), queue, settings)
        incoming.print_all(matching.of(channel, deliveries, settings))


@emit_log.command(
    "mqtool emit-log fanout 'info: ready'", "tail -f app.log | mqtool emit-log fanout -l", name="fanout", also=PROTOCOL
)
def emit_fanout(exchange: ExchangeOptions, publishing: Publishing) -> None:
    """Publish to every receiver (tutorial 3)."""
    to = exchange.of(publishing.broker.names.fanout)
    _emit(publishing, to, _emit_to_all, default=publishing.broker.lines.fanout)


def _emit_to_all(
    channel: ChannelOrSession, exchange: Exchange, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    if isinstance(channel, Channel):
        return publish_subscribe.emit(channel, exchange, messages)
    from mqtool.tutorials import amqp10_publish_subscribe

    return amqp10_publish_subscribe.emit(channel, exchange, messages)


@emit_log.command("mqtool emit-log direct error 'Run. Run. Or it will explode.'", name="direct", also=PROTOCOL)
def emit_direct(
    *,
    exchange: ExchangeOptions,
    severity: Annotated[str | None, Argument(help="Routing key", show_default="info")] = None,
    publishing: Publishing,
) -> None:
    """Publish with a severity (tutorial 4)."""
    to = exchange.of(publishing.broker.names.direct)
    _emit_with_key(_with_key_in_body(publishing, severity), to, _emit_with_severity, severity, "info")


def _emit_with_severity(
    channel: ChannelOrSession, exchange: Exchange, severity: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    if isinstance(channel, Channel):
        return routing.emit(channel, exchange, severity, messages)
    from mqtool.tutorials import amqp10_routing

    return amqp10_routing.emit(channel, exchange, severity, messages)


@emit_log.command(
    "mqtool emit-log topic kern.critical 'A critical kernel error'",
    r"mqtool emit-log topic '{app}.{level}' -l --key-pattern '(?P<app>\w+)\[\d+\]: (?P<level>\w+)' < app.log",
    name="topic",
    also=PROTOCOL,
)
def emit_topic(
    *,
    exchange: ExchangeOptions,
    routing_key: Annotated[
        str | None,
        Argument(help="Words separated by dots; may contain {group}s to fill", show_default="anonymous.info"),
    ] = None,
    publishing: Publishing,
) -> None:
    """Publish with a topic (tutorial 5)."""
    to, usual = exchange.of(publishing.broker.names.topic), publishing.broker.lines.topic
    asked = _with_key_in_body(publishing, routing_key)
    if asked is not publishing:  # for "kern", "critical" and the message text, the key is kern.critical
        routing_key = ".".join(asked.words[:2]) if asked.words and len(asked.words) > 2 else None
    _emit_with_key(asked, to, _emit_with_topic, routing_key, usual)


def _emit_with_topic(
    channel: ChannelOrSession, exchange: Exchange, routing_key: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    if isinstance(channel, Channel):
        return topics.emit(channel, exchange, routing_key, messages)
    from mqtool.tutorials import amqp10_topics

    return amqp10_topics.emit(channel, exchange, routing_key, messages)


@emit_log.command("mqtool emit-log headers -H format=pdf -H type=report 'A report'", name="headers", also=PROTOCOL)
def emit_headers(exchange: ExchangeOptions, publishing: Publishing) -> None:
    """Publish with headers, for routing by header."""
    _emit(publishing, exchange.of(publishing.broker.names.headers), headers_tutorial.emit)


@receive_log.command(
    "mqtool receive-log fanout", "mqtool receive-log fanout --raw -o all.log", name="fanout", also=PROTOCOL
)
def receive_fanout(logs: ReceivingLogs) -> None:
    """Receive everything published from now on (tutorial 3)."""
    _receive(logs, logs.broker.names.fanout, _receive_all, logs.broker.lines.log)


def _receive_all(channel: ChannelOrSession, exchange: Exchange, queue: Queue, settings: Settings) -> Iterator[Delivery]:
    if isinstance(channel, Channel):
        return publish_subscribe.receive(channel, exchange, queue, settings)
    from mqtool.tutorials import amqp10_publish_subscribe

    return amqp10_publish_subscribe.receive(channel, exchange, queue, settings)


@receive_log.command("mqtool receive-log direct info warning error", name="direct", also=PROTOCOL)
def receive_direct(
    logs: ReceivingLogs,
    severities: Annotated[list[str], Argument(help="Severities to receive, such as info warning error")],
) -> None:
    """Receive messages of some severities (tutorial 4)."""

    def receive(channel: ChannelOrSession, exchange: Exchange, queue: Queue, settings: Settings) -> Iterator[Delivery]:
        if isinstance(channel, Channel):
            return routing.receive(channel, exchange, severities, queue, settings)
        from mqtool.tutorials import amqp10_routing

        return amqp10_routing.receive(channel, exchange, severities, queue, settings)

    _receive(logs, logs.broker.names.direct, receive, logs.broker.lines.log_with_key)


@receive_log.command(
    "mqtool receive-log topic 'kern.*' '*.critical'", "mqtool receive-log topic '#'", name="topic", also=PROTOCOL
)
def receive_topic(
    logs: ReceivingLogs,
    patterns: Annotated[list[str], Argument(help="Binding keys: * is one word, # any number of words")],
) -> None:
    """Receive messages whose topics match patterns (tutorial 5)."""

    def receive(channel: ChannelOrSession, exchange: Exchange, queue: Queue, settings: Settings) -> Iterator[Delivery]:
        if isinstance(channel, Channel):
            return topics.receive(channel, exchange, patterns, queue, settings)
        from mqtool.tutorials import amqp10_topics

        return amqp10_topics.receive(channel, exchange, patterns, queue, settings)

    _receive(logs, logs.broker.names.topic, receive, logs.broker.lines.log_with_key)


@receive_log.command("mqtool receive-log headers --match any format=pdf type=log", name="headers", also=PROTOCOL)
def receive_headers(
    logs: ReceivingLogs,
    wanted: Annotated[
        list[Any] | None,
        Argument(metavar="KEY=VALUE...", parser=header, help="Headers to match; KEY:=JSON for a typed value"),
    ] = None,
    also_wanted: Annotated[list[Any] | None, header_option("Header to match, as an option")] = None,
    match: Match = "all",
) -> None:
    """Receive messages with certain headers."""
    headers = dict([*(wanted or []), *(also_wanted or [])])
    if not headers:
        raise UsageError("receive-log headers needs a header", "name one: mqtool receive-log headers format=pdf")

    def receive(channel: ChannelOrSession, exchange: Exchange, queue: Queue, settings: Settings) -> Iterator[Delivery]:
        return headers_tutorial.receive(channel, exchange, headers, match, queue, settings)

    _receive(logs, logs.broker.names.headers, receive, logs.broker.lines.log)
