"""Options that name a queue, exchange or stream, and its settings."""

from typing import Annotated, Any, ClassVar

from mqtool.cli.command_line import Option, OptionGroup, argument_option
from mqtool.duration import parse_duration
from mqtool.errors import UsageError
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def queue_option(about: str) -> Any:
    """The option --queue."""
    return Option("--queue", "-q", metavar="QUEUE", help=about, panel="Topology")


def exchange_option(about: str) -> Any:
    """The option --exchange."""
    return Option("--exchange", "-e", metavar="EXCHANGE", help=about, panel="Topology")


_Durable = Annotated[
    bool | None, Option("--durable/--transient", help="Declare it to survive a broker restart, or not")
]
_Arguments = Annotated[list[Any] | None, argument_option("Argument to declare it with; KEY:=JSON for a typed value")]


class QueueOptions(OptionGroup):
    """Options that name a queue and its settings."""

    PANEL: ClassVar = "Topology"

    queue: Annotated[str | None, queue_option("Queue")] = None
    durable: _Durable = None
    queue_type: Annotated[
        str | None, Option(help="classic, quorum or stream", complete=lambda *_: ["classic", "quorum", "stream"])
    ] = None
    arguments: _Arguments = None

    dead_letter_exchange: Annotated[
        str | None, Option(help="Dead-letter exchange; '' sends to QUEUE.dlq", metavar="EXCHANGE")
    ] = None
    ttl: Annotated[
        float | None, Option(help="Expire messages after this long", parser=parse_duration, metavar="DURATION")
    ] = None
    max_length: Annotated[int | None, Option(min=0, help="Keep up to N messages; drop the oldest")] = None

    def _limits(self, name: str) -> dict[str, Any]:
        """The queue arguments set by dedicated options such as --ttl."""
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


class UsedQueueOptions(OptionGroup):
    """Options of commands that send to a queue or receive from it."""

    PANEL: ClassVar = "Topology"

    options: QueueOptions
    declare: Annotated[
        bool | None, Option("--declare/--no-declare", help="Declare it if it does not exist, or fail")
    ] = None

    @property
    def has_settings(self) -> bool:
        """True if an option specifies a setting of the queue."""
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


class LogQueueOptions(OptionGroup):
    """The queue of `receive-log`."""

    PANEL: ClassVar = "Topology"

    queue: Annotated[str | None, queue_option("Durable queue that also collects between runs")] = None
    declare: Annotated[bool, Option(help="Declare it if it does not exist")] = False

    def declared(self) -> Queue:
        """The queue given by --queue, or the tutorial's private queue."""
        if not self.queue:
            return PRIVATE_QUEUE
        return Queue(self.queue, durable=True, arguments={"x-queue-type": "quorum"})


class ExchangeOptions(OptionGroup):
    """Options that name an exchange and its settings."""

    PANEL: ClassVar = "Topology"

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
    Option(
        "--stream-port",
        min=1,
        max=65535,
        help="The broker's port for streams",
        show_default="5552, with TLS 5551",
        envvar="MQTOOL_STREAM_PORT",
        panel="Broker",
    ),
]
