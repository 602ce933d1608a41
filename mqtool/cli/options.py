"""The options that commands share, each declared once, in groups that a command takes as one parameter."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from mqtool.amqp import CONFIRM_TIMEOUT, STREAMING, Address, Backoff, Channel, Connection, TlsFiles, parse_addresses
from mqtool.amqp import Receiving as ReceivingSettings
from mqtool.cli import live_names, output, stopping
from mqtool.cli.output import TEMPLATE_HELP, DeliveryWriter
from mqtool.dialects import NAMES, Dialect, Names
from mqtool.duration import parse_duration
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.topology import PRIVATE_QUEUE, Exchange, Queue


def takes_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: a parameter whose type is a NamedTuple stands for all its fields."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type] = {}
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        group = hints[parameter.name]
        if isinstance(group, type) and issubclass(group, tuple):
            fields = get_type_hints(group, include_extras=True)
            groups[parameter.name] = group
            parameters += [_keyword(name, group._field_defaults[name], fields[name]) for name in fields]  # type: ignore[attr-defined]
        else:
            parameters.append(_keyword(parameter.name, parameter.default, group))

    @functools.wraps(function)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in group._fields})  # type: ignore[attr-defined]
        function(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def takes_groups_but(**changed: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """takes_groups, for a command that takes some of a group's fields otherwise, such as a name as an argument.

    Args:
        changed: the annotation of each such field; those that are arguments have to be given.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        run: Any = takes_groups(function)
        parameters = [
            parameter.replace(annotation=changed[name], default=_default(changed[name], parameter.default))
            if name in changed
            else parameter
            for name, parameter in run.__signature__.parameters.items()
        ]
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ |= changed
        return run  # type: ignore[no-any-return]

    return decorate


def _default(annotation: Any, otherwise: Any) -> Any:
    is_argument = any(isinstance(each, typer.models.ArgumentInfo) for each in annotation.__metadata__)
    return inspect.Parameter.empty if is_argument else otherwise


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


# How values are written.


def time_limit(text: str) -> float:
    """Seconds, from a duration; none at all would be a limit that nothing can meet."""
    seconds = duration(text)
    if not seconds:
        raise typer.BadParameter(f"{text!r} leaves no time at all")
    return seconds


def duration(text: str) -> float:
    """Seconds, from a duration such as 1h30m."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def header(text: str) -> tuple[str, Any]:
    """A header, from key=text or key:=json."""
    key, equals, value = text.partition("=")
    if not equals or not key.rstrip(":"):
        raise typer.BadParameter(f"{text!r} is no header; write key=text, or key:=json for a typed value")
    if not key.endswith(":"):
        return key, value
    try:
        return key[:-1], json.loads(value)
    except ValueError as error:
        raise typer.BadParameter(f"the value of {key[:-1]!r} is not JSON: {error}") from error


def argument(text: str) -> tuple[str, Any]:
    """An AMQP argument, written as a header is; a whole number is a number."""
    key, value = header(text)
    return key, int(value) if isinstance(value, str) and value.isdecimal() else value


_Duration = dict[str, Any](parser=duration, metavar="DURATION")


class Broker(NamedTuple):
    """Which broker, how to get in, and how much to say."""

    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            "-u",
            help="amqp://user:password@host:5672/vhost; several, with commas, are one cluster.",
            envvar=["MQTOOL_URL", "AMQP_URL"],
            show_envvar=True,
            rich_help_panel="Broker",
        ),
    ] = None
    user: Annotated[str | None, typer.Option(help="Log in as this user.", rich_help_panel="Broker")] = None
    password_file: Annotated[
        Path | None,
        typer.Option(help="Read the password from a file; - is stdin.", rich_help_panel="Broker"),
    ] = None
    vhost: Annotated[
        str | None,
        typer.Option(help="Use this virtual host.", rich_help_panel="Broker", autocompletion=live_names.vhosts),
    ] = None
    tls_ca: Annotated[
        Path | None, typer.Option(help="Trust brokers that this authority has signed (PEM).", rich_help_panel="Broker")
    ] = None
    tls_cert: Annotated[Path | None, typer.Option(help="Our own certificate (PEM).", rich_help_panel="Broker")] = None
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).", rich_help_panel="Broker")] = None
    wait: Annotated[
        float | None,
        typer.Option(help="Wait so long for the broker to come up.", rich_help_panel="Broker", **_Duration),
    ] = None
    reconnect: Annotated[
        bool, typer.Option(help="Come back when the connection is lost.", rich_help_panel="Broker")
    ] = True
    max_retries: Annotated[
        int | None,
        typer.Option(min=1, help="Give up after so many attempts to reconnect.", rich_help_panel="Broker"),
    ] = None
    dialect: Annotated[
        Dialect,
        typer.Option(
            help="Whose names and flags to use: which tutorials.", envvar="MQTOOL_DIALECT", rich_help_panel="Topology"
        ),
    ] = Dialect.PYTHON
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Fail if the broker has it, but declared differently.", rich_help_panel="Topology"
        ),
    ] = False
    be_quiet: Annotated[
        bool, typer.Option("--quiet", help="Print data and errors only.", rich_help_panel="Printing")
    ] = False
    be_verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print a line for each message sent.", rich_help_panel="Printing")
    ] = False
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour.", rich_help_panel="Printing")] = False
    with_debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and the client's log.", rich_help_panel="Printing")
    ] = False

    @property
    def names(self) -> Names:
        """The queues and exchanges of the dialect."""
        return NAMES[self.dialect]

    def addresses(self) -> list[Address]:
        """The broker's nodes: from --url or the environment, else what `mqtool broker up` started, else localhost.

        Raises:
            UsageError: the URL is no AMQP URL, or the password file cannot be read.
        """
        if self.url is not None:
            addresses = parse_addresses(self.url)
        else:
            from mqtool.broker import state

            started = state.load()
            addresses = parse_addresses(started.url) if started else [Address()]
        changes: dict[str, Any] = {}
        if self.user is not None:
            changes["user"] = self.user
        if self.vhost is not None:
            changes["virtual_host"] = self.vhost
        if self.password_file is not None:
            changes["password"] = read_password(self.password_file)
        for option, name in (("--vhost", self.vhost), ("--user", self.user)):
            if name is not None and not 0 < len(os.fsencode(name)) <= 255:
                raise UsageError(f"the {option[2:]} has {len(os.fsencode(name))} bytes", "it may have from 1 to 255")
        return [replace(address, **changes) for address in addresses]

    def connect(self) -> Connection:
        """Open a connection.

        Raises:
            Unavailable, AccessRefused: there is no way in.
        """
        configure_output(self)
        from mqtool.broker.waiting import connect_within

        tls = TlsFiles(self.tls_ca, self.tls_cert, self.tls_key)
        addresses = self.addresses()
        if (self.tls_ca or self.tls_cert) and not any(address.tls for address in addresses):
            raise UsageError(
                "there are TLS files, but the broker's URL is without TLS", "with TLS it starts with amqps://"
            )

        backoff = Backoff(attempts=self.max_retries) if self.reconnect else None

        def connect() -> Connection:
            return Connection(addresses, tls=tls, backoff=backoff, notice=output.notice)

        return connect() if self.wait is None else connect_within(self.wait, connect)

    @contextmanager
    def channel(self, *, mandatory: bool = False, confirm_timeout: float = CONFIRM_TIMEOUT) -> Iterator[Channel]:
        """A channel that closes with its connection; Ctrl-C and TERM stop its consumers."""
        with self.connect() as connection:
            channel = connection.channel(strict=self.strict, mandatory=mandatory, confirm_timeout=confirm_timeout)
            with stopping.calling(channel.stop):
                yield channel


def configure_output(broker: Broker) -> None:
    """Make output.py heed the options; with --debug, show what pika logs."""
    output.configure(
        be_quiet=broker.be_quiet, be_verbose=broker.be_verbose, no_color=broker.no_color, with_debug=broker.with_debug
    )
    if broker.with_debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(levelname)s %(message)s")


def read_password(path: Path) -> str:
    """The password in a file, or on stdin for `-`.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        text = os.read(0, 4096).decode() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read the password file {path}: {reason}") from error
    return text.rstrip("\r\n")


_Durable = Annotated[
    bool | None,
    typer.Option(
        "--durable/--transient",
        help="Declare it to survive a broker restart, or not to.",
        rich_help_panel="Topology",
        show_default=False,
    ),
]
_Arguments = Annotated[
    list[Any] | None,
    typer.Option(
        "--argument",
        help="Declare it with an argument: key=text or key:=json. Repeatable.",
        parser=argument,
        metavar="KEY=VALUE",
        rich_help_panel="Topology",
    ),
]


class QueueOptions(NamedTuple):
    """Which queue, and how to declare it."""

    queue: Annotated[
        str | None,
        typer.Option(
            "--queue", "-q", help="The queue's name.", rich_help_panel="Topology", autocompletion=live_names.queues
        ),
    ] = None
    durable: _Durable = None
    queue_type: Annotated[str | None, typer.Option(help="classic, quorum or stream.", rich_help_panel="Topology")] = (
        None
    )
    arguments: _Arguments = None

    dead_letter_exchange: Annotated[
        str | None,
        typer.Option(
            help="Declare it to hand what is rejected, expired or too much to this exchange; '' is the default one, "
            "to QUEUE.dlq.",
            metavar="EXCHANGE",
            rich_help_panel="Topology",
            autocompletion=live_names.exchanges,
        ),
    ] = None
    ttl: Annotated[
        float | None,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            help="Declare it to end messages after so long.",
            rich_help_panel="Topology",
        ),
    ] = None
    max_length: Annotated[
        int | None,
        typer.Option(
            min=0, help="Declare it to hold so many messages; the oldest make room.", rich_help_panel="Topology"
        ),
    ] = None
    lazy: Annotated[
        bool,
        typer.Option("--lazy", help="Declare a classic queue to keep messages on disk.", rich_help_panel="Topology"),
    ] = False

    def _limits(self, name: str) -> dict[str, Any]:
        """The arguments that the short options stand for."""
        limits: dict[str, Any] = {}
        if self.dead_letter_exchange is not None:
            limits["x-dead-letter-exchange"] = self.dead_letter_exchange
            if not self.dead_letter_exchange:
                limits["x-dead-letter-routing-key"] = f"{name}.dlq"
        if self.ttl is not None:
            limits["x-message-ttl"] = round(self.ttl * 1000)
        if self.max_length is not None:
            limits["x-max-length"] = self.max_length
        if self.lazy:
            limits["x-queue-mode"] = "lazy"
        return limits

    def of(self, default: Queue) -> Queue:
        """The tutorial's queue, with what the options change.

        Raises:
            UsageError: the name is empty; a broker would make one up, which nobody could find.
        """
        name = default.name if self.queue is None else self.queue
        arguments = {**default.arguments, **self._limits(name), **dict(self.arguments or [])}
        durable = default.durable if self.durable is None else self.durable
        if self.queue_type is not None:
            arguments["x-queue-type"] = self.queue_type
        elif not durable and arguments.get("x-queue-type") == "quorum":
            del arguments["x-queue-type"]  # a quorum queue is durable or it is not
        if self.queue == "":
            raise UsageError("the queue's name is empty", "leave --queue out to take the tutorial's")
        if self.lazy and arguments.get("x-queue-type") == "quorum":
            del arguments["x-queue-type"]  # quorum queues keep their messages on disk anyway, and refuse the word
        exclusive = default.exclusive and self.queue is None
        return replace(default, name=name, durable=durable, exclusive=exclusive, arguments=arguments)


class LogQueueOptions(NamedTuple):
    """Which queue a log receiver takes."""

    queue: Annotated[
        str | None,
        typer.Option(
            "--queue",
            "-q",
            rich_help_panel="Topology",
            autocompletion=live_names.queues,
            help="A durable queue of this name, which goes on collecting while no receiver runs.",
        ),
    ] = None

    def declared(self) -> Queue:
        """The tutorial's private queue, or the named one."""
        if not self.queue:
            return PRIVATE_QUEUE
        return Queue(self.queue, durable=True, arguments={"x-queue-type": "quorum"})


class ExchangeOptions(NamedTuple):
    """Which exchange, and how to declare it."""

    exchange: Annotated[
        str | None,
        typer.Option(
            "--exchange",
            "-e",
            help="The exchange's name.",
            rich_help_panel="Topology",
            autocompletion=live_names.exchanges,
        ),
    ] = None
    durable: _Durable = None
    arguments: _Arguments = None

    def of(self, default: Exchange) -> Exchange:
        """The tutorial's exchange, with what the options change."""
        return replace(
            default,
            name=default.name if self.exchange is None else self.exchange,
            durable=default.durable if self.durable is None else self.durable,
            arguments={**default.arguments, **dict(self.arguments or [])},
        )


class Receiving(NamedTuple):
    """How to consume, when to stop, and how to print."""

    limit: Annotated[
        int | None,
        typer.Option(
            "--count", "-c", min=1, help="Stop after so many; no more are taken.", rich_help_panel="Receiving"
        ),
    ] = None
    idle_timeout: Annotated[
        float | None,
        typer.Option(help="Stop when nothing has come for so long.", rich_help_panel="Receiving", **_Duration),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(help="Give up (exit 124) after so long in all.", rich_help_panel="Receiving", **_Duration),
    ] = None
    prefetch: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Take so many in advance; 0 for no limit.", rich_help_panel="Receiving"),
    ] = None
    auto_ack: Annotated[
        bool,
        typer.Option(
            "--auto-ack",
            help="Acknowledge on delivery: what is on its way to us when we die is lost.",
            rich_help_panel="Receiving",
        ),
    ] = False
    raw: Annotated[bool, typer.Option("--raw", help="Print bodies only, one per line.", rich_help_panel="Printing")] = (
        False
    )
    as_json: Annotated[
        bool, typer.Option("--json", help="Print NDJSON, as 'send --json' takes it.", rich_help_panel="Printing")
    ] = False
    template: Annotated[
        str | None,
        typer.Option("--format", "-F", help=f"Print by a template: {TEMPLATE_HELP}.", rich_help_panel="Printing"),
    ] = None
    ready_file: Annotated[
        Path | None, typer.Option(help="Create this file once consuming.", rich_help_panel="Receiving")
    ] = None

    def settings(self, default: ReceivingSettings = STREAMING) -> ReceivingSettings:
        """How the channel shall consume."""
        return replace(
            default,
            prefetch=default.prefetch if self.prefetch is None else self.prefetch,
            auto_ack=self.auto_ack,
            count=self.limit,
            idle_timeout=self.idle_timeout,
            timeout=self.timeout,
        )

    def writer(self, line: Callable[[Delivery], str], *, queue_is_ours: bool = False) -> DeliveryWriter:
        """Prints deliveries as the options say, else as the command's own line with the body behind it.

        Args:
            queue_is_ours: what we do not print nobody will get, so there is no need to be careful with pipes.

        Raises:
            UsageError: the options contradict each other, or the ready file could not be created.
        """
        if self.ready_file is not None and not self.ready_file.parent.is_dir():
            raise UsageError(f"cannot create the ready file {self.ready_file}: its directory does not exist")
        hand_over = not self.auto_ack and not queue_is_ours
        return DeliveryWriter(line, raw=self.raw, as_json=self.as_json, template=self.template, hand_over=hand_over)

    def print_all(self, channel: Channel, deliveries: Iterator[Delivery], write: DeliveryWriter, waiting: str) -> None:
        """Print deliveries to the end of them; asking for the next one acknowledges the one printed.

        Raises:
            ReaderGone: nobody reads what we print any more.
        """
        with self.printing(channel, waiting):
            for delivery in deliveries:
                write(delivery)

    @contextmanager
    def printing(self, channel: Channel, waiting: str) -> Iterator[None]:
        """Say, now that we consume, that we wait: to the person, and to whoever watches the ready file. Stop when the
        reader of our stdout goes away.

        Raises:
            ReaderGone: it did.
        """
        output.status(waiting)
        output.create_ready_file(self.ready_file)
        reader = output.Reader(on_gone=channel.stop)
        yield
        reader.check()
