"""Options for the name and settings of a queue, exchange or stream."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from mqtool.cli.completion import names_of
from mqtool.cli.contexts import STREAM_PORT_VARIABLE
from mqtool.cli.values import argument_option, parsed
from mqtool.duration import parse_duration
from mqtool.errors import UsageError
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def queue_option(about: str, **settings: Any) -> Any:
    """Build the option --queue."""
    settings |= {"metavar": "QUEUE", "autocompletion": names_of("queues"), "rich_help_panel": "Topology"}
    return typer.Option("--queue", "-q", help=about, **settings)


def exchange_option(about: str, **settings: Any) -> Any:
    """Build the option --exchange."""
    settings |= {"metavar": "EXCHANGE", "autocompletion": names_of("exchanges"), "rich_help_panel": "Topology"}
    return typer.Option("--exchange", "-e", help=about, **settings)


def tutorials_queue(queue: Queue, about: str = "Queue") -> Any:
    """Build the annotation of --queue for a command that by default uses a tutorial's queue."""
    kind = queue.arguments.get("x-queue-type", "classic")
    return Annotated[str | None, queue_option(about, show_default=f"{queue.name}, a {_durability(queue)} {kind} queue")]


def tutorials_exchange(exchange: Exchange) -> Any:
    """Build the annotation of --exchange for a command that by default uses a tutorial's exchange."""
    default = f"{exchange.name}, a {_durability(exchange)} {exchange.type} exchange"
    return Annotated[str | None, exchange_option("Exchange", show_default=default)]


def _durability(thing: Queue | Exchange) -> str:
    return "durable" if thing.durable else "transient"


_Durable = Annotated[
    bool | None,
    typer.Option(
        "--durable/--transient",
        help="New queue or exchange: survive a broker restart, or not",
        rich_help_panel="Topology",
    ),
]
_Arguments = Annotated[
    list[Any] | None,
    argument_option("Declaration argument; KEY:=JSON for a non-string value", rich_help_panel="Topology"),
]


Declare = Annotated[
    bool | None,
    typer.Option(
        "--declare/--no-declare",
        help="Declare a missing queue or exchange; with --no-declare, fail",
        rich_help_panel="Topology",
    ),
]


@dataclass(kw_only=True, eq=False, repr=False)
class QueueOptions:
    """Options that name a queue and its settings."""

    queue: Annotated[str | None, queue_option("Queue")] = None
    durable: _Durable = None
    queue_type: Annotated[
        Literal["classic", "quorum", "stream"] | None,
        typer.Option(help="New queue: classic, quorum or stream", rich_help_panel="Topology", metavar="TYPE"),
    ] = None
    arguments: _Arguments = None

    dead_letter_exchange: Annotated[
        str | None,
        typer.Option(
            help="New queue: dead-letter exchange; '' for queue QUEUE.dlq",
            metavar="EXCHANGE",
            rich_help_panel="Topology",
            autocompletion=names_of("exchanges"),
        ),
    ] = None
    ttl: Annotated[
        float | None,
        typer.Option(
            help="New queue: expire messages after this long",
            parser=parsed(parse_duration),
            metavar="DURATION",
            rich_help_panel="Topology",
        ),
    ] = None
    max_length: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**63 - 1,
            help="New queue: keep up to N messages, then drop the oldest",
            rich_help_panel="Topology",
            metavar="N",
        ),
    ] = None

    def _limits(self, name: str) -> dict[str, Any]:
        """Return the queue arguments that are set by dedicated options such as --ttl."""
        limits: dict[str, Any] = {}
        if self.dead_letter_exchange is not None:
            limits["x-dead-letter-exchange"] = self.dead_letter_exchange
            if not self.dead_letter_exchange:
                limits["x-dead-letter-routing-key"] = f"{name}.dlq"
        if self.ttl is not None:
            limits["x-message-ttl"] = round(self.ttl * 1000)
        if self.max_length is not None:
            limits["x-max-length"] = self.max_length
        return limits

    def of(self, default: Queue) -> Queue:
        """Return the tutorial's queue, with the options applied.

        Raises:
            UsageError: the name is empty, or the options cannot be combined.
        """
        name = default.name if self.queue is None else self.queue
        arguments = {**default.arguments, **self._limits(name), **dict(self.arguments or [])}
        durable = default.durable if self.durable is None else self.durable
        if self.queue_type is not None:
            arguments["x-queue-type"] = self.queue_type
        elif not durable and arguments.get("x-queue-type") == "quorum":
            del arguments["x-queue-type"]  # quorum queues are always durable
        if self.queue == "":
            raise UsageError("the queue's name is empty", "leave --queue out to use the tutorial's")
        exclusive = default.exclusive and self.queue is None
        return default._replace(name=name, durable=durable, exclusive=exclusive, arguments=arguments)


@dataclass(kw_only=True, eq=False, repr=False)
class UsedQueueOptions:
    """Options of commands that send to a queue or receive from it."""

    options: QueueOptions
    declare: Declare = None

    @property
    def has_settings(self) -> bool:
        """True if any option specifies a setting of the queue."""
        given = self.options
        settings = {given.durable, given.queue_type, given.dead_letter_exchange, given.ttl, given.max_length}
        return settings != {None} or bool(given.arguments)

    @property
    def queue(self) -> str | None:
        """The name given by --queue, if any."""
        return self.options.queue

    def of(self, default: Queue) -> Queue:
        """See QueueOptions.of()."""
        return self.options.of(default)


@dataclass(kw_only=True, eq=False, repr=False)
class LogQueueOptions:
    """Options for the queue of `receive-log`."""

    queue: Annotated[str | None, queue_option("Durable queue, which collects messages between runs")] = None
    declare: Declare = None

    def declared(self) -> Queue:
        """Return the queue given by --queue, or the tutorial's private queue."""
        if not self.queue:
            return PRIVATE_QUEUE
        return Queue(self.queue, durable=True, arguments={"x-queue-type": "quorum"})


@dataclass(kw_only=True, eq=False, repr=False)
class ExchangeOptions:
    """Options that name an exchange and its settings."""

    exchange: Annotated[str | None, exchange_option("Exchange")] = None
    durable: _Durable = None
    arguments: _Arguments = None

    def of(self, default: Exchange) -> Exchange:
        """Return the tutorial's exchange, with the options applied."""
        return default._replace(
            name=default.name if self.exchange is None else self.exchange,
            durable=default.durable if self.durable is None else self.durable,
            arguments={**default.arguments, **dict(self.arguments or [])},
        )


StreamPort = Annotated[
    int | None,
    typer.Option(
        "--stream-port",
        min=1,
        max=65535,
        help="The broker's stream port",
        show_default="from the management API, or else 5552, or 5551 with TLS",
        envvar=STREAM_PORT_VARIABLE,
        rich_help_panel="Broker",
        metavar="N",
    ),
]
