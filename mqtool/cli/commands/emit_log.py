"""mqtool emit-log."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mqtool.amqp import Channel
from mqtool.cli.access import Access, ChannelOrSession
from mqtool.cli.broker_access import dialect_names, print_as_script
from mqtool.cli.command_line import command, group
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import ExchangeOptions, Publishing
from mqtool.cli.options.queue_options import tutorials_exchange
from mqtool.cli.pipe.existence import ask_to_declare
from mqtool.cli.pipe.publishing import echo, publishing_channel
from mqtool.cli.pipe.source import Addressing
from mqtool.message import Message, Receipt
from mqtool.spelling import quoted
from mqtool.topology import Exchange
from mqtool.tutorials import headers as headers_tutorial
from mqtool.tutorials import publish_subscribe, routing, topics
from mqtool.tutorials.dialects import NAMES, Dialect

app = group(
    "emit-log",
    "Publish logs to an exchange (tutorials 3, 4 and 5).",
    heading="Tutorials",
    hint={
        "default": "to publish to the default exchange: mqtool send -q QUEUE",
        "x-delayed-message": "to delay messages: mqtool send-delayed",
    }.get,
)


#: Call emit() of a lesson, as taught for the channel's protocol.
Emit = Callable[[ChannelOrSession, Exchange, Iterable[Message | None]], Iterator[Receipt]]
EmitWithKey = Callable[[ChannelOrSession, Exchange, str, Iterable[Message | None]], Iterator[Receipt]]


def _emit(
    publishing: Publishing,
    asked: ExchangeOptions,
    tutorials: Exchange,
    emit: Emit,
    *,
    line: Callable[[Message], str] | None = None,
    default: bytes | None = None,
    key: str | None = None,
) -> None:
    """Publish with a tutorial's emit(). By default, send and print the same text as the dialect's scripts.

    Args:
        asked: the options that name another exchange than the tutorial's.
        line: what to print for each message.
        default: what the tutorial's scripts send by default, if not the dialect's usual text.
        key: the routing key given by the user.
    """
    exchange, lines = asked.of(tutorials), publishing.broker.lines
    addressing = Addressing(exchange.name, key)
    body = (default or lines.routed) if asked.exchange is None else None
    if lines.persistent_logs:
        publishing = replace(publishing, options=replace(publishing.options, persistent=True))
    if lines.keeps_empty_logs and publishing.words:
        body = None
    with publishing_channel(publishing, exchange, addressing, opened=Access.channel_or_session, default=body) as (
        channel,
        outgoing,
    ):
        if lines.emits_on_stdout and output.speaks_as_script():
            print_as_script(publishing.broker, on_stderr=False)
        ask_to_declare(channel, outgoing.access, exchange)
        outgoing.report(emit(channel, exchange, outgoing.messages), line or lines.sent_log)


def _emit_with_key(
    publishing: Publishing, asked: ExchangeOptions, tutorials: Exchange, emit: EmitWithKey, key: str | None, usual: str
) -> None:
    """Publish with the routing key `key`, or with the default key `usual` if `key` is None."""
    line = publishing.broker.lines.sent_log_with_key
    if not key and publishing.broker.lines.empty_word_is_missing:
        key = None

    def sent(message: Message) -> str:
        return echo(line, message, usual if message.routing_key is None else message.routing_key)

    def emit_usual(channel: ChannelOrSession, to: Exchange, messages: Iterable[Message | None]) -> Iterator[Receipt]:
        return emit(channel, to, usual, messages)

    _emit(publishing, asked, tutorials, emit_usual, line=sent, key=key)


def _with_key_in_body(publishing: Publishing, key: str | None) -> Publishing:
    """Put the routing key in front of the body's words if the dialect's scripts do so."""
    options = publishing.options
    if key is None or not publishing.broker.lines.key_in_body or options.is_stream or options.file:
        return publishing
    return replace(publishing, words=[key, *(publishing.words or [])])


@command(
    app,
    "mqtool emit-log fanout 'info: ready'",
    "tail -f app.log | mqtool emit-log fanout -l",
    effect=Effect.SENDS,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].fanout)},
    name="fanout",
)
def emit_fanout(exchange: ExchangeOptions, publishing: Publishing) -> None:
    """Publish to every receiver (tutorial 3)."""
    of = publishing.broker
    _emit(publishing, exchange, dialect_names(of).fanout, _emit_to_all, default=of.lines.fanout)


def _emit_to_all(
    channel: ChannelOrSession, exchange: Exchange, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    if isinstance(channel, Channel):
        return publish_subscribe.emit(channel, exchange, messages)
    from mqtool.tutorials import amqp10_publish_subscribe

    return amqp10_publish_subscribe.emit(channel, exchange, messages)


@command(
    app,
    "mqtool emit-log direct error 'Run. Run. Or it will explode.'",
    effect=Effect.SENDS,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].direct)},
    name="direct",
)
def emit_direct(
    *,
    exchange: ExchangeOptions,
    severity: Annotated[str | None, typer.Argument(help="Routing key", show_default="info", metavar="SEVERITY")] = None,
    publishing: Publishing,
) -> None:
    """Publish with a severity (tutorial 4)."""
    asked, tutorials = _with_key_in_body(publishing, severity), dialect_names(publishing.broker).direct
    _emit_with_key(asked, exchange, tutorials, _emit_with_severity, severity, "info")


def _emit_with_severity(
    channel: ChannelOrSession, exchange: Exchange, severity: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    if isinstance(channel, Channel):
        return routing.emit(channel, exchange, severity, messages)
    from mqtool.tutorials import amqp10_routing

    return amqp10_routing.emit(channel, exchange, severity, messages)


@command(
    app,
    "mqtool emit-log topic kern.critical 'A critical kernel error'",
    r"mqtool emit-log topic '{app}.{level}' -l --key-pattern '(?P<app>\w+)\[\d+\]: (?P<level>\w+)' < app.log",
    effect=Effect.SENDS,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].topic)},
    name="topic",
)
def emit_topic(
    *,
    exchange: ExchangeOptions,
    routing_key: Annotated[
        str | None,
        typer.Argument(
            help="Words separated by dots; may contain {group} placeholders",
            show_default="anonymous.info",
            metavar="ROUTING_KEY",
        ),
    ] = None,
    publishing: Publishing,
) -> None:
    """Publish with a topic (tutorial 5)."""
    if _is_expanded_star([routing_key or "", *(publishing.words or [])]):
        output.notice(
            "the routing key and the words after it are the names of the files here; was it a * without quotes? "
            "A routing key has no wildcards: they are for receive-log"
        )
    tutorials, usual = dialect_names(publishing.broker).topic, publishing.broker.lines.topic
    asked = _with_key_in_body(publishing, routing_key)
    if asked is not publishing and publishing.broker.lines.key_of_two_words:
        # For "kern", "critical" and the message text, the key is kern.critical.
        routing_key = ".".join(asked.words[:2]) if asked.words and len(asked.words) > 2 else None
    _emit_with_key(asked, exchange, tutorials, _emit_with_topic, routing_key, usual)


def _is_expanded_star(words: list[str]) -> bool:
    """True if a command's arguments begin with the names of all files here, which a shell puts in the place of a *."""
    if not os.path.lexists(words[0]):
        return False
    with suppress(OSError):  # the directory cannot be read
        files = {each.name for each in Path().iterdir() if not each.name.startswith(".")}
        return {*words[: len(files)]} == files
    return False


def _emit_with_topic(
    channel: ChannelOrSession, exchange: Exchange, routing_key: str, messages: Iterable[Message | None]
) -> Iterator[Receipt]:
    if isinstance(channel, Channel):
        return topics.emit(channel, exchange, routing_key, messages)
    from mqtool.tutorials import amqp10_topics

    return amqp10_topics.emit(channel, exchange, routing_key, messages)


@command(
    app,
    "mqtool emit-log headers -H format=pdf -H type=report 'A report'",
    effect=Effect.SENDS,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].headers)},
    name="headers",
)
def emit_headers(exchange: ExchangeOptions, publishing: Publishing) -> None:
    """Publish with headers, for routing by header."""
    _emit(publishing, exchange, dialect_names(publishing.broker).headers, headers_tutorial.emit)
    first = publishing.words[0] if publishing.words else ""
    if "=" in first and not publishing.options.headers and output.is_terminal(2) and not output.speaks_as_script():
        output.notice(f"{first!r} was sent as text; to send it as a header: -H {quoted(first)}")
