"""Options that select a broker and log in to it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from mqtool.cli import contexts
from mqtool.cli.completion import names_of
from mqtool.cli.invocation import NOT_CALLED, Call
from mqtool.cli.values import DURATION
from mqtool.tutorials.dialects import LINES, Dialect, DialectLines

URL = typer.Option(
    "--url",
    "-u",
    help="Broker URL: amqp://user:password@host:5672/vhost",
    envvar=list(contexts.URL_VARIABLES),
    rich_help_panel="Broker",
    metavar="URL",
)
Url = Annotated[str | None, URL]
ContextName = Annotated[
    str | None,
    typer.Option(
        "--context",
        "-C",
        metavar="NAME",
        help="Use the broker of context NAME",
        envvar=contexts.VARIABLE,
        autocompletion=contexts.names,
        rich_help_panel="Broker",
    ),
]


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Skip confirmation; in protected contexts, use --confirm NAME")]
#: For commands that ask only in a protected context, where --yes is not enough. Scripts may pass it nevertheless.
UnneededYes = Annotated[
    bool, typer.Option("--yes", "-y", help="No effect; in protected contexts, use --confirm NAME instead")
]
IfExists = Annotated[bool, typer.Option("--if-exists", help="Succeed even if it does not exist")]


@dataclass(kw_only=True, eq=False, repr=False)
class WhichBroker:
    """Options that name a broker, for commands that do not connect to it."""

    url: Url = None
    context: ContextName = None
    call: Call = NOT_CALLED


def _dialect_option(**settings: Any) -> Any:
    return typer.Option(
        "--dialect",
        metavar="DIALECT",
        help="Tutorials whose names, settings and output to use",
        show_default=str(Dialect.PYTHON),
        envvar="MQTOOL_DIALECT",
        rich_help_panel="Topology",
        **settings,
    )


def _strict_option(**settings: Any) -> Any:
    return typer.Option(
        "--strict",
        help="Fail if the queue or exchange exists with other settings",
        rich_help_panel="Topology",
        **settings,
    )


def _verbose_option(**settings: Any) -> Any:
    return typer.Option(
        "--verbose", "-v", help="Print a line for each message sent", rich_help_panel="Printing", **settings
    )


HiddenDialect = Annotated[Dialect | None, _dialect_option(hidden=True)]
HiddenStrict = Annotated[bool, _strict_option(hidden=True)]
ShownDialect = Annotated[Dialect | None, _dialect_option()]
ShownVerbose = Annotated[bool, _verbose_option()]


@dataclass(kw_only=True, eq=False, repr=False)
class BrokerOptions:
    """Options of every command that connects to a broker.

    Every command accepts --dialect, --strict and --verbose, so that a shell alias can set them. Only commands that use
    them show them in their help; these take a TutorialBroker or a PublishingBroker.
    """

    url: Url = None
    context: ContextName = None
    confirm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Skip confirmation of changes in the protected context NAME", rich_help_panel="Broker"
        ),
    ] = None
    user: Annotated[
        str | None,
        typer.Option(
            "--user",
            help="User to log in as",
            rich_help_panel="Broker",
            metavar="USER",
            autocompletion=names_of("users"),
        ),
    ] = None
    password_file: Annotated[
        Path | None,
        typer.Option(help="Read the password from FILE; - for stdin", rich_help_panel="Broker", metavar="FILE"),
    ] = None
    vhost: Annotated[
        str | None,
        typer.Option(
            "--vhost",
            help="Virtual host to use",
            rich_help_panel="Broker",
            metavar="VHOST",
            autocompletion=names_of("vhosts"),
        ),
    ] = None
    tls_ca: Annotated[
        Path | None, typer.Option(help="Certificate authority to trust (PEM)", rich_help_panel="Broker", metavar="FILE")
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option(help="Client certificate (PEM)", rich_help_panel="Broker", metavar="FILE")
    ] = None
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Private key of the client certificate (PEM)", rich_help_panel="Broker", metavar="FILE"),
    ] = None
    wait: Annotated[
        float | None, typer.Option(help="Wait up to this long for the broker", rich_help_panel="Broker", **DURATION)
    ] = None
    reconnect: Annotated[bool, typer.Option(help="Reconnect when the connection is lost", rich_help_panel="Broker")] = (
        True
    )
    max_reconnects: Annotated[
        int | None,
        typer.Option(min=1, help="Give up after N reconnects without progress", rich_help_panel="Broker", metavar="N"),
    ] = None
    dialect: HiddenDialect = None
    protocol: contexts.Protocol | None = None
    strict: HiddenStrict = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print data and errors only", rich_help_panel="Printing")] = (
        False
    )
    verbose: Annotated[bool, _verbose_option(hidden=True)] = False
    no_color: Annotated[bool, typer.Option("--no-color", help="Do not use colour", rich_help_panel="Printing")] = False
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks and the log of the client library", rich_help_panel="Printing"),
    ] = False
    call: Call = NOT_CALLED

    @property
    def lines(self) -> DialectLines:
        """The lines that the scripts of the chosen dialect print."""
        return LINES[self.dialect or Dialect.PYTHON]

    @property
    def script(self) -> DialectLines | None:
        """What the scripts do whose dialect the user chose; None without --dialect, and for streams."""
        return LINES[self.dialect] if isinstance(self.dialect, Dialect) else None

    def asking(self) -> Self:
        """Return these options for a call that changes the broker, although its command usually does not."""
        return replace(self, call=self.call._replace(must_ask=True))


@dataclass(kw_only=True, eq=False, repr=False)
class TutorialBroker(BrokerOptions):
    """Options of the tutorials' commands."""

    dialect: ShownDialect = None
    protocol: Annotated[
        contexts.Protocol | None,
        typer.Option(
            "--protocol",
            help="Protocol to use: amqp0.9.1, or amqp1.0 (RabbitMQ 4.0+)",
            show_default=str(contexts.Protocol.AMQP_0_9_1),
            envvar="MQTOOL_PROTOCOL",
            rich_help_panel="Broker",
        ),
    ] = None
    strict: Annotated[bool, _strict_option()] = False


@dataclass(kw_only=True, eq=False, repr=False)
class PublishingBroker(TutorialBroker):
    """Options of the tutorials' commands that publish."""

    verbose: ShownVerbose = False


@dataclass(kw_only=True, eq=False, repr=False)
class ManagedBroker:
    """Options of commands that use the management API."""

    options: BrokerOptions
    management: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="URL of the management API",
            envvar=contexts.MANAGEMENT_VARIABLE,
            rich_help_panel="Broker",
        ),
    ] = None


@dataclass(kw_only=True, eq=False, repr=False)
class DestinationOptions:
    """Options that name the queue to move messages to, on this broker or another one."""

    to: Annotated[
        str, typer.Option(metavar="QUEUE", help="Destination queue; must exist", autocompletion=names_of("queues"))
    ]
    to_url: Annotated[
        str | None, typer.Option(help="URL of the destination's broker (default: QUEUE's broker)", metavar="URL")
    ] = None
    to_context: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Context of the destination's broker", autocompletion=contexts.names),
    ] = None
