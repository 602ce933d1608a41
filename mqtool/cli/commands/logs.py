"""mqtool emit-log, mqtool receive-log: publish/subscribe, routing, topics, headers."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from mqtool.cli.display.output import WAITING_FOR_LOGS
from mqtool.cli.options import (
    Broker,
    DelayOptions,
    ExchangeOptions,
    LogQueueOptions,
    MessageOptions,
    Receiving,
    header,
    takes_groups,
)
from mqtool.cli.pipe import publishing, source
from mqtool.cli.pipe.delaying import held
from mqtool.cli.pipe.source import Addressing
from mqtool.errors import UsageError
from mqtool.message import Delivery, Message
from mqtool.tutorials import headers as headers_tutorial
from mqtool.tutorials import publish_subscribe, routing, topics

app = typer.Typer()
emit_log = typer.Typer(no_args_is_help=True, help="Publish logs to an exchange (tutorials 3, 4 and 5).")
receive_log = typer.Typer(no_args_is_help=True, help="Receive logs from an exchange (tutorials 3, 4 and 5).")
app.add_typer(emit_log, name="emit-log")
app.add_typer(receive_log, name="receive-log")

Words = Annotated[list[str] | None, typer.Argument(help="Message words (default: stdin, or 'Hello World!')")]


class Match(StrEnum):
    """How many of a binding's headers a message must have."""

    ALL = "all"
    ANY = "any"


def _sent_with_key(message: Message, default: str) -> str:
    key = default if message.routing_key is None else message.routing_key
    return f" [x] Sent {key}:{publishing.text(message)}"


def _body_only(_: Delivery) -> str:
    return " [x] "


def _key_and_body(delivery: Delivery) -> str:
    return f" [x] {delivery.routing_key}:"


@emit_log.command("fanout", epilog="mqtool emit-log fanout 'info: ready'\ntail -f app.log | mqtool emit-log fanout -l")
@takes_groups
def emit_fanout(
    exchange: ExchangeOptions, options: MessageOptions, delays: DelayOptions, broker: Broker, words: Words = None
) -> None:
    """Publish to every receiver (tutorial 3)."""
    target = exchange.of(broker.names.fanout)
    messages = source.messages(
        words, options, default=b"info: Hello World!", addressing=Addressing(target.name), delays=delays
    )
    with broker.access().channel(mandatory=options.mandatory, confirm_timeout=options.confirm_timeout) as channel:
        published = held(messages, delays, options, channel, exchange=target)
        receipts = publish_subscribe.emit(channel, target, published)
        publishing.report(receipts, lambda message: f" [x] Sent {publishing.text(message)}", options, channel, messages)


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
    messages = source.messages(
        words, options, default=b"Hello World!", addressing=Addressing(target.name, severity), delays=delays
    )
    with broker.access().channel(mandatory=options.mandatory, confirm_timeout=options.confirm_timeout) as channel:
        published = held(messages, delays, options, channel, exchange=target)
        receipts = routing.emit(channel, target, "info", published)
        publishing.report(receipts, lambda message: _sent_with_key(message, "info"), options, channel, messages)


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
    messages = source.messages(
        words,
        options,
        default=b"Hello World!",
        addressing=Addressing(target.name, routing_key),
        delays=delays,
    )
    with broker.access().channel(mandatory=options.mandatory, confirm_timeout=options.confirm_timeout) as channel:
        published = held(messages, delays, options, channel, exchange=target)
        receipts = topics.emit(channel, target, "anonymous.info", published)
        publishing.report(
            receipts, lambda message: _sent_with_key(message, "anonymous.info"), options, channel, messages
        )


@emit_log.command("headers", epilog="mqtool emit-log headers -H format=pdf -H type=report 'A report'")
@takes_groups
def emit_headers(
    exchange: ExchangeOptions, options: MessageOptions, delays: DelayOptions, broker: Broker, words: Words = None
) -> None:
    """Publish with headers to route by."""
    target = exchange.of(broker.names.headers)
    messages = source.messages(
        words, options, default=b"Hello World!", addressing=Addressing(target.name), delays=delays
    )
    with broker.access().channel(mandatory=options.mandatory, confirm_timeout=options.confirm_timeout) as channel:
        published = held(messages, delays, options, channel, exchange=target)
        receipts = headers_tutorial.emit(channel, target, published)
        publishing.report(receipts, lambda message: f" [x] Sent {publishing.text(message)}", options, channel, messages)


@receive_log.command("fanout", epilog="mqtool receive-log fanout\nmqtool receive-log fanout --raw > all.log")
@takes_groups
def receive_fanout(exchange: ExchangeOptions, queue: LogQueueOptions, receiving: Receiving, broker: Broker) -> None:
    """Receive everything published from now on (tutorial 3)."""
    write = receiving.writer(_body_only, queue_is_ours=queue.queue is None)
    with broker.access().channel() as channel:
        deliveries = publish_subscribe.receive(
            channel, exchange.of(broker.names.fanout), queue.declared(), receiving.settings()
        )
        receiving.print_all(channel, deliveries, write, WAITING_FOR_LOGS)


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
    write = receiving.writer(_key_and_body, queue_is_ours=queue.queue is None)
    with broker.access().channel() as channel:
        deliveries = routing.receive(
            channel, exchange.of(broker.names.direct), severities, queue.declared(), receiving.settings()
        )
        receiving.print_all(channel, deliveries, write, WAITING_FOR_LOGS)


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
    write = receiving.writer(_key_and_body, queue_is_ours=queue.queue is None)
    with broker.access().channel() as channel:
        deliveries = topics.receive(
            channel, exchange.of(broker.names.topic), patterns, queue.declared(), receiving.settings()
        )
        receiving.print_all(channel, deliveries, write, WAITING_FOR_LOGS)


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
    write = receiving.writer(_body_only, queue_is_ours=queue.queue is None)
    with broker.access().channel() as channel:
        deliveries = headers_tutorial.receive(
            channel,
            exchange.of(broker.names.headers),
            headers,
            match.value,
            queue.declared(),
            receiving.settings(),
        )
        receiving.print_all(channel, deliveries, write, WAITING_FOR_LOGS)
