"""mqtool emit-log, mqtool receive-log: publish/subscribe, routing, topics, headers."""

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from mqtool.amqp import Channel
from mqtool.amqp import Receiving as Settings
from mqtool.cli.display.output import WAITING_FOR_LOGS
from mqtool.cli.options import (
    Broker,
    DelayOptions,
    ExchangeOptions,
    LogQueueOptions,
    MessageOptions,
    Receiving,
    Words,
    header,
    takes_groups,
)
from mqtool.cli.pipe.publishing import publish, text
from mqtool.cli.pipe.receiving import print_deliveries
from mqtool.cli.pipe.source import Addressing
from mqtool.errors import UsageError
from mqtool.message import Delivery, Message
from mqtool.topology import Queue
from mqtool.tutorials import headers as headers_tutorial
from mqtool.tutorials import publish_subscribe, routing, topics

app = typer.Typer()
emit_log = typer.Typer(no_args_is_help=True, help="Publish logs to an exchange (tutorials 3, 4 and 5).")
receive_log = typer.Typer(no_args_is_help=True, help="Receive logs from an exchange (tutorials 3, 4 and 5).")
app.add_typer(emit_log, name="emit-log")
app.add_typer(receive_log, name="receive-log")


class Match(StrEnum):
    """How many of a binding's headers a message must have."""

    ALL = "all"
    ANY = "any"


def _sent(message: Message) -> str:
    return f" [x] Sent {text(message)}"


def _sent_with_key(default: str) -> Callable[[Message], str]:
    def line(message: Message) -> str:
        return f" [x] Sent {default if message.routing_key is None else message.routing_key}:{text(message)}"

    return line


def _body_only(_: Delivery) -> str:
    return " [x] "


def _key_and_body(delivery: Delivery) -> str:
    return f" [x] {delivery.routing_key}:"


def _receive(
    queue: LogQueueOptions,
    receiving: Receiving,
    broker: Broker,
    lesson: Callable[[Channel, Queue, Settings], Iterator[Delivery]],
    line: Callable[[Delivery], str],
) -> None:
    """Print what a lesson's consumer receives; with no queue named, its own private queue."""
    print_deliveries(
        receiving,
        broker,
        lambda channel: lesson(channel, queue.declared(), receiving.settings()),
        line,
        waiting=WAITING_FOR_LOGS,
        queue_is_ours=queue.queue is None,
    )


@emit_log.command("fanout", epilog="mqtool emit-log fanout 'info: ready'\ntail -f app.log | mqtool emit-log fanout -l")
@takes_groups
def emit_fanout(
    exchange: ExchangeOptions, options: MessageOptions, delays: DelayOptions, broker: Broker, words: Words = None
) -> None:
    """Publish to every receiver (tutorial 3)."""
    target = exchange.of(broker.names.fanout)
    publish(
        words,
        options,
        delays,
        broker,
        lambda channel, messages: publish_subscribe.emit(channel, target, messages),
        _sent,
        to=target,
        addressing=Addressing(target.name),
        default=b"info: Hello World!",
    )


@emit_log.command("direct", epilog="mqtool emit-log direct error 'Run. Run. Or it will explode.'")
@takes_groups
def emit_direct(
    exchange: ExchangeOptions,
    options: MessageOptions,
    delays: DelayOptions,
    broker: Broker,
    severity: Annotated[str | None, typer.Argument(help="Routing key", show_default="info")] = None,
    words: Words = None,
) -> None:
    """Publish with a severity (tutorial 4)."""
    target = exchange.of(broker.names.direct)
    publish(
        words,
        options,
        delays,
        broker,
        lambda channel, messages: routing.emit(channel, target, "info", messages),
        _sent_with_key("info"),
        to=target,
        addressing=Addressing(target.name, severity),
    )


@emit_log.command(
    "topic",
    epilog="mqtool emit-log topic kern.critical 'A critical kernel error'\n"
    r"mqtool emit-log topic '{app}.{level}' -l --key-pattern '(?P<app>\w+)\[\d+\]: (?P<level>\w+)' < app.log",
)
@takes_groups
def emit_topic(
    exchange: ExchangeOptions,
    options: MessageOptions,
    delays: DelayOptions,
    broker: Broker,
    routing_key: Annotated[
        str | None,
        typer.Argument(help="Words and dots; may have {group} places", show_default="anonymous.info"),
    ] = None,
    words: Words = None,
) -> None:
    """Publish with a topic (tutorial 5)."""
    target = exchange.of(broker.names.topic)
    publish(
        words,
        options,
        delays,
        broker,
        lambda channel, messages: topics.emit(channel, target, "anonymous.info", messages),
        _sent_with_key("anonymous.info"),
        to=target,
        addressing=Addressing(target.name, routing_key),
    )


@emit_log.command("headers", epilog="mqtool emit-log headers -H format=pdf -H type=report 'A report'")
@takes_groups
def emit_headers(
    exchange: ExchangeOptions, options: MessageOptions, delays: DelayOptions, broker: Broker, words: Words = None
) -> None:
    """Publish with headers to route by."""
    target = exchange.of(broker.names.headers)
    publish(
        words,
        options,
        delays,
        broker,
        lambda channel, messages: headers_tutorial.emit(channel, target, messages),
        _sent,
        to=target,
        addressing=Addressing(target.name),
    )


@receive_log.command("fanout", epilog="mqtool receive-log fanout\nmqtool receive-log fanout --raw > all.log")
@takes_groups
def receive_fanout(exchange: ExchangeOptions, queue: LogQueueOptions, receiving: Receiving, broker: Broker) -> None:
    """Receive everything published from now on (tutorial 3)."""
    source = exchange.of(broker.names.fanout)
    _receive(
        queue,
        receiving,
        broker,
        lambda channel, into, settings: publish_subscribe.receive(channel, source, into, settings),
        _body_only,
    )


@receive_log.command("direct", epilog="mqtool receive-log direct info warning error")
@takes_groups
def receive_direct(
    exchange: ExchangeOptions,
    queue: LogQueueOptions,
    receiving: Receiving,
    broker: Broker,
    severities: Annotated[list[str], typer.Argument(help="Severities to receive, such as info warning error")],
) -> None:
    """Receive some severities (tutorial 4)."""
    source = exchange.of(broker.names.direct)
    _receive(
        queue,
        receiving,
        broker,
        lambda channel, into, settings: routing.receive(channel, source, severities, into, settings),
        _key_and_body,
    )


@receive_log.command("topic", epilog="mqtool receive-log topic 'kern.*' '*.critical'\nmqtool receive-log topic '#'")
@takes_groups
def receive_topic(
    exchange: ExchangeOptions,
    queue: LogQueueOptions,
    receiving: Receiving,
    broker: Broker,
    patterns: Annotated[list[str], typer.Argument(help="Binding keys: * is one word, # any number of words")],
) -> None:
    """Receive topics that match a pattern (tutorial 5)."""
    source = exchange.of(broker.names.topic)
    _receive(
        queue,
        receiving,
        broker,
        lambda channel, into, settings: topics.receive(channel, source, patterns, into, settings),
        _key_and_body,
    )


@receive_log.command("headers", epilog="mqtool receive-log headers --match any format=pdf type=log")
@takes_groups
def receive_headers(
    exchange: ExchangeOptions,
    queue: LogQueueOptions,
    receiving: Receiving,
    broker: Broker,
    wanted: Annotated[
        list[Any] | None,
        typer.Argument(metavar="KEY=VALUE...", parser=header, help="Headers to match; KEY:=JSON for a typed value"),
    ] = None,
    also_wanted: Annotated[
        list[Any] | None,
        typer.Option("--header", "-H", parser=header, metavar="KEY=VALUE", help="The same, as an option"),
    ] = None,
    match: Annotated[Match, typer.Option(help="Match all of the headers, or any of them")] = Match.ALL,
) -> None:
    """Receive messages with certain headers."""
    headers = dict([*(wanted or []), *(also_wanted or [])])
    if not headers:
        raise UsageError("no header was given to receive by", "for instance: mqtool receive-log headers format=pdf")
    source = exchange.of(broker.names.headers)
    _receive(
        queue,
        receiving,
        broker,
        lambda channel, into, settings: headers_tutorial.receive(channel, source, headers, match.value, into, settings),
        _body_only,
    )
