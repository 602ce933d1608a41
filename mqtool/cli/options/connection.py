"""Which broker, how to get in, and how much to say."""

from pathlib import Path
from typing import Annotated, NamedTuple

from typer import Option

from mqtool.amqp import Backoff, TlsFiles
from mqtool.cli import contexts
from mqtool.cli.access import MANAGEMENT_VARIABLE, URL_VARIABLES, Access, choose, resolve_addresses
from mqtool.cli.display import output
from mqtool.cli.groups import in_panel
from mqtool.cli.options.values import DURATION
from mqtool.tutorials.dialects import LINES, NAMES, Dialect, Lines, Names

URL = Option(
    "--url",
    "-u",
    help="Broker: amqp://user:password@host:5672/vhost",
    envvar=list(URL_VARIABLES),
    show_envvar=True,
    rich_help_panel="Broker",
)
Url = Annotated[str | None, URL]
ContextName = Annotated[
    str | None,
    Option(
        "--context",
        "-C",
        metavar="NAME",
        help="Broker, by the name of a context",
        envvar=contexts.VARIABLE,
        autocompletion=contexts.names,
        rich_help_panel="Broker",
    ),
]


@in_panel("Broker")
class Broker(NamedTuple):
    """Which broker, how to get in, and how much to say."""

    url: Url = None
    context: ContextName = None
    user: Annotated[str | None, Option(help="User to log in as")] = None
    password_file: Annotated[Path | None, Option(help="Read the password from FILE; - is stdin")] = None
    vhost: Annotated[str | None, Option(help="Virtual host")] = None
    tls_ca: Annotated[Path | None, Option(help="Certificate authority to trust (PEM)")] = None
    tls_cert: Annotated[Path | None, Option(help="Client certificate (PEM)")] = None
    tls_key: Annotated[Path | None, Option(help="Key of the client certificate (PEM)")] = None
    wait: Annotated[float | None, Option(help="Wait up to this long for the broker", **DURATION)] = None
    reconnect: Annotated[bool, Option(help="Reconnect when the connection is lost")] = True
    max_retries: Annotated[int | None, Option(min=1, help="Give up after N reconnects without progress")] = None
    dialect: Annotated[
        Dialect | None,
        Option(
            help="Which tutorials' names, settings and lines to use",
            show_default=str(Dialect.PYTHON),
            envvar="MQTOOL_DIALECT",
            rich_help_panel="Topology",
        ),
    ] = None
    strict: Annotated[bool, Option(help="Fail if it exists with other settings", rich_help_panel="Topology")] = False
    quiet: Annotated[bool, Option(help="Print data and errors only", rich_help_panel="Printing")] = False
    verbose: Annotated[bool, Option("-v", help="Print a line for each message sent", rich_help_panel="Printing")] = (
        False
    )
    no_color: Annotated[bool, Option(help="Do not use colour", rich_help_panel="Printing")] = False
    debug: Annotated[bool, Option(help="Show tracebacks and the client's log", rich_help_panel="Printing")] = False

    @property
    def names(self) -> Names:
        """The queues and exchanges of the dialect."""
        return NAMES[self.dialect or Dialect.PYTHON]

    @property
    def lines(self) -> Lines:
        """What the dialect's scripts print."""
        return LINES[self.dialect or Dialect.PYTHON]

    def set_up_printing(self) -> None:
        """Print as the options say: for a command that needs no broker. access() does it for those that do."""
        output.configure(be_quiet=self.quiet, be_verbose=self.verbose, no_color=self.no_color, with_debug=self.debug)
        if self.debug:
            import logging

            logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(levelname)s %(message)s")

    def access(self, management: str | None = None, *, reconnects: bool = True) -> Access:
        """How to reach the broker. Call it once per command, and first: it also sets up printing and the log.

        Args:
            management: the URL of the management API, if the command takes one.
            reconnects: as the options say; else not, where what was held would come again.

        Raises:
            UsageError: an option is not valid, or the password file cannot be read.
        """
        self.set_up_printing()
        choice = choose(self.url, self.context)
        return Access(
            resolve_addresses(choice, user=self.user, vhost=self.vhost, password_file=self.password_file),
            choice.tls(TlsFiles(self.tls_ca, self.tls_cert, self.tls_key)),
            choice.management(management),
            self.wait,
            Backoff(attempts=self.max_retries) if self.reconnect and reconnects else None,
            self.strict,
            choice.protected,
        )


@in_panel("Broker")
class ManagedBroker(NamedTuple):
    """A broker, and where its management API is."""

    options: Broker
    management: Annotated[
        str | None, Option(metavar="URL", help="URL of the management API", envvar=MANAGEMENT_VARIABLE)
    ] = None

    def access(self, *, reconnects: bool = True) -> Access:
        """As of Broker."""
        return self.options.access(self.management, reconnects=reconnects)
