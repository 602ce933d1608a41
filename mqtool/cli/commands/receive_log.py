"""mqtool receive-log."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mqtool.amqp import Channel, Receiving, administration
from mqtool.cli.access import Access, ChannelOrSession
from mqtool.cli.broker_access import dialect_names
from mqtool.cli.command_line import command, group
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import ExchangeOptions, LogQueueOptions, TutorialBroker
from mqtool.cli.options.queue_options import tutorials_exchange
from mqtool.cli.options.receiving_options import Match, ReceivingOptions, WhereOption
from mqtool.cli.pipe.existence import accept_existing, ask_to_declare, check_exchange, check_new
from mqtool.cli.pipe.receiving import Matching, receiving_channel
from mqtool.cli.values import header, header_option, parsed
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.topology import Exchange, Queue
from mqtool.tutorials import headers as headers_tutorial
from mqtool.tutorials import publish_subscribe, routing, topics
from mqtool.tutorials.dialects import NAMES, Dialect

app = group("receive-log", "Receive logs from an exchange (tutorials 3, 4 and 5).", heading="Tutorials")


@dataclass(kw_only=True, eq=False, repr=False)
class ReceivingLogs:
    """Options of all `receive-log` commands."""

    exchange: ExchangeOptions
    queue: LogQueueOptions
    receiving: ReceivingOptions
    broker: TutorialBroker
    where: WhereOption = None


#: Calls receive() of a lesson, as taught for the channel's protocol.
Receive = Callable[[ChannelOrSession, Exchange, Queue, Receiving], Iterator[Delivery]]


def _receive(
    asked: ReceivingLogs, exchange: Exchange, receive: Receive, line: str, waiting: str, binding: str = ""
) -> None:
    """Print the deliveries from a tutorial's receive(), which consumes from --queue, or else from a private queue.

    Args:
        line: the default format of a delivery; see DeliveryWriter.
        waiting: the line to print when the command is consuming.
        binding: the line to print for each binding, with --dialect; may contain {queue} and {key}.
    """
    queue, is_private = asked.queue.declared(), asked.queue.queue is None
    matching = Matching(asked.receiving, asked.where, skips=is_private)
    settings = matching.settings()
    with receiving_channel(
        asked.receiving,
        asked.broker if is_private else asked.broker.asking(),  # other receivers may miss what it takes from --queue
        line,
        opened=Access.channel_or_session,
        waiting=waiting,
        queue_is_private=is_private,
    ) as (channel, incoming):
        if not is_private:
            if not administration.queue_exists(channel, queue):
                declares = asked.queue.declare
                check_new(queue.name, incoming.access, declares=declares, suggests=declares is None)
            accept_existing(queue, channel, incoming.access, declares=asked.queue.declare)
        check_exchange(asked.exchange.of(exchange), channel, incoming.access, declares=asked.queue.declare)
        ask_to_declare(channel, incoming.access, asked.exchange.of(exchange))
        settings = incoming.printed(matching.within_limit(settings, incoming.access, channel, queue.name))
        deliveries = receive(channel, asked.exchange.of(exchange), queue, settings)
        if binding and output.speaks_as_script() and isinstance(channel, Channel):
            for bound in channel.reopening.journal.bindings:
                output.say(binding.format(queue=bound.destination, key=bound.routing_key))
        incoming.print_all(matching.of(channel, deliveries, settings))


def _without_keys(logs: ReceivingLogs, argument: str, example: str, usage: str, code: int) -> UsageError | SystemExit:
    """Return the error for a missing argument; with --dialect, print the usage line of the script, and return its end.

    Args:
        usage: the command and its arguments, as the scripts' usage line has them.
        code: the exit code of the dialect's script.
    """
    if logs.broker.dialect is None:
        return UsageError(f"Missing argument '{argument}'", f"for example: {example}")
    output.status(f"Usage: {usage}")
    return SystemExit(code)


@command(
    app,
    "mqtool receive-log fanout",
    "mqtool receive-log fanout --raw -o all.log",
    effect=Effect.READS,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].fanout)},
    name="fanout",
)
def receive_fanout(logs: ReceivingLogs) -> None:
    """Receive everything published from now on (tutorial 3)."""
    lines = logs.broker.lines
    _receive(logs, dialect_names(logs.broker).fanout, _receive_all, lines.log, lines.waiting_log)


def _receive_all(
    channel: ChannelOrSession, exchange: Exchange, queue: Queue, settings: Receiving
) -> Iterator[Delivery]:
    if isinstance(channel, Channel):
        return publish_subscribe.receive(channel, exchange, queue, settings)
    from mqtool.tutorials import amqp10_publish_subscribe

    return amqp10_publish_subscribe.receive(channel, exchange, queue, settings)


@command(
    app,
    "mqtool receive-log direct info warning error",
    effect=Effect.READS,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].direct)},
    name="direct",
)
def receive_direct(
    logs: ReceivingLogs,
    severities: Annotated[
        list[str] | None,
        typer.Argument(help="Severities to receive, such as info warning error", metavar="SEVERITY..."),
    ] = None,
) -> None:
    """Receive messages with the given severities (tutorial 4)."""
    lines, keys = logs.broker.lines, severities or []
    if not keys:
        raise _without_keys(
            logs,
            "SEVERITY...",
            "mqtool receive-log direct info warning error",
            "mqtool receive-log direct [info] [warning] [error]",
            lines.usage_code,
        )

    def receive(channel: ChannelOrSession, exchange: Exchange, queue: Queue, settings: Receiving) -> Iterator[Delivery]:
        if isinstance(channel, Channel):
            return routing.receive(channel, exchange, keys, queue, settings)
        from mqtool.tutorials import amqp10_routing

        return amqp10_routing.receive(channel, exchange, keys, queue, settings)

    _receive(
        logs, dialect_names(logs.broker).direct, receive, lines.log_with_key, lines.waiting_log_with_key, lines.binding
    )


@command(
    app,
    "mqtool receive-log topic 'kern.*' '*.critical'",
    "mqtool receive-log topic '#'",
    effect=Effect.READS,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].topic)},
    name="topic",
)
def receive_topic(
    logs: ReceivingLogs,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(help="Binding keys: * is one word, # is zero or more words", metavar="PATTERN..."),
    ] = None,
) -> None:
    """Receive messages whose topics match patterns (tutorial 5)."""
    lines, keys = logs.broker.lines, patterns or []
    if not keys:
        raise _without_keys(
            logs,
            "PATTERN...",
            "mqtool receive-log topic 'kern.*' '*.critical'; all topics, with quotes: '#'",
            " ".join(("mqtool receive-log topic", lines.usage_topic)),
            lines.usage_code_topic,
        )

    def receive(channel: ChannelOrSession, exchange: Exchange, queue: Queue, settings: Receiving) -> Iterator[Delivery]:
        if isinstance(channel, Channel):
            return topics.receive(channel, exchange, keys, queue, settings)
        from mqtool.tutorials import amqp10_topics

        return amqp10_topics.receive(channel, exchange, keys, queue, settings)

    if patterns and all(map(os.path.lexists, patterns)):
        output.notice(
            "each pattern is the name of a file here; put patterns in quotes, such as 'kern.*', or '#' for all topics"
        )
    _receive(
        logs,
        dialect_names(logs.broker).topic,
        receive,
        lines.log_with_key,
        lines.waiting_log_with_key,
        lines.binding_topic,
    )


@command(
    app,
    "mqtool receive-log headers --match any format=pdf type=log",
    effect=Effect.READS,
    instead={"exchange": tutorials_exchange(NAMES[Dialect.PYTHON].headers)},
    name="headers",
)
def receive_headers(
    logs: ReceivingLogs,
    wanted: Annotated[
        list[Any] | None,
        typer.Argument(
            metavar="KEY=VALUE...", parser=parsed(header), help="Headers to match; KEY:=JSON for a non-string value"
        ),
    ] = None,
    also_wanted: Annotated[list[Any] | None, header_option("Header to match; same as an argument KEY=VALUE")] = None,
    match: Match = "all",
) -> None:
    """Receive messages whose headers match."""
    headers = dict([*(wanted or []), *(also_wanted or [])])
    if not headers:
        raise UsageError("receive-log headers needs a header", "name one: mqtool receive-log headers format=pdf")

    def receive(channel: ChannelOrSession, exchange: Exchange, queue: Queue, settings: Receiving) -> Iterator[Delivery]:
        return headers_tutorial.receive(channel, exchange, headers, match, queue, settings)

    _receive(logs, dialect_names(logs.broker).headers, receive, logs.broker.lines.log, logs.broker.lines.waiting_log)
