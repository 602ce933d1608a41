"""Options that select a broker and log in to it, and the prompts for confirmations and new passwords."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mqtool.amqp import Backoff, TlsFiles
from mqtool.cli import contexts
from mqtool.cli.access import MANAGEMENT_VARIABLE, Access
from mqtool.cli.chosen_broker import URL_VARIABLES, Choice, choose, is_same_node, read_password, resolve_addresses
from mqtool.cli.command_line import NOT_CALLED, Call, names_of
from mqtool.cli.display import output
from mqtool.cli.invocation import current
from mqtool.cli.values import DURATION
from mqtool.errors import MqtoolError, NotFound, UsageError
from mqtool.spelling import quoted
from mqtool.tutorials.dialects import AMQP10_NAMES, LINES, NAMES, Dialect, Lines, Names

URL = typer.Option(
    "--url",
    "-u",
    help="Broker URL: amqp://user:password@host:5672/vhost",
    envvar=list(URL_VARIABLES),
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


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask (in a protected context: --confirm NAME)")]
IfExists = Annotated[bool, typer.Option("--if-exists", help="Succeed if it does not exist")]


def ask(
    what: str, access: Access | None = None, *, yes: bool = False, is_safe: bool = False, hint: str = "pass --yes"
) -> None:
    """Ask for confirmation of a change that cannot be undone, or of any change in a protected context.

    Args:
        what: the change, such as "delete queue 'jobs'".
        access: the broker to change; None for a broker that mqtool started.
        yes: True if --yes was given, which is not enough in a protected context.
        is_safe: True to ask only in a protected context.
        hint: what to do if there is no terminal to ask on.

    Raises:
        UsageError: stdin is not a terminal, or --confirm names another context.
        MqtoolError: the user declined.
    """
    protected, confirmed = (access.protected, access.confirmed) if access else (None, ())
    if confirmed and protected not in confirmed:
        other = f"the context is {protected!r}" if protected else "the broker is not a protected context"
        raise UsageError(f"--confirm {confirmed[0]} was given, but {other}", "nothing was changed")
    if confirmed or (protected is None and (yes or is_safe)):
        return
    if protected is not None:
        what, hint = f"{what} in the protected context {protected!r}", f"pass --confirm {quoted(protected)}"
    if not output.is_terminal(0):
        raise UsageError(f"this would {what}", hint)
    if not typer.confirm(output.visible(f"{what}?"), err=True):
        raise MqtoolError("nothing was changed")


@dataclass(frozen=True, kw_only=True)
class WhichBroker:
    """Options that name a broker, for commands that do not connect to it."""

    url: Url = None
    context: ContextName = None
    call: Call = NOT_CALLED

    def choice(self) -> Choice:
        """Choose the broker; see chosen_broker.choose()."""
        return choose(self.url, self.context, self.call.typed)


def _dialect_option(**settings: Any) -> Any:
    return typer.Option(
        "--dialect",
        metavar="DIALECT",
        help="Tutorials whose names, settings and lines to use",
        show_default=str(Dialect.PYTHON),
        envvar="MQTOOL_DIALECT",
        rich_help_panel="Topology",
        **settings,
    )


def _strict_option(**settings: Any) -> Any:
    return typer.Option(
        "--strict", help="Fail if it exists with different settings", rich_help_panel="Topology", **settings
    )


def _verbose_option(**settings: Any) -> Any:
    return typer.Option(
        "--verbose", "-v", help="Print a line for each message sent", rich_help_panel="Printing", **settings
    )


HiddenDialect = Annotated[Dialect | None, _dialect_option(hidden=True)]
HiddenStrict = Annotated[bool, _strict_option(hidden=True)]
ShownDialect = Annotated[Dialect | None, _dialect_option()]
ShownVerbose = Annotated[bool, _verbose_option()]


@dataclass(frozen=True, kw_only=True)
class Broker:
    """Options of every command that connects to a broker.

    Every command accepts --dialect, --strict and --verbose, so that a shell alias can set them. Only commands that use
    them show them in their help; these take a TutorialBroker or a PublishingBroker.
    """

    url: Url = None
    context: ContextName = None
    confirm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Change the protected context NAME without asking", rich_help_panel="Broker"),
    ] = None
    user: Annotated[
        str | None,
        typer.Option(
            help="User to log in as", rich_help_panel="Broker", metavar="USER", autocompletion=names_of("users")
        ),
    ] = None
    password_file: Annotated[
        Path | None,
        typer.Option(help="Read the password from FILE; - is stdin", rich_help_panel="Broker", metavar="FILE"),
    ] = None
    vhost: Annotated[
        str | None,
        typer.Option(help="Virtual host", rich_help_panel="Broker", metavar="VHOST", autocompletion=names_of("vhosts")),
    ] = None
    tls_ca: Annotated[
        Path | None, typer.Option(help="Certificate authority to trust (PEM)", rich_help_panel="Broker", metavar="FILE")
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option(help="Client certificate (PEM)", rich_help_panel="Broker", metavar="FILE")
    ] = None
    tls_key: Annotated[
        Path | None, typer.Option(help="Key of the client certificate (PEM)", rich_help_panel="Broker", metavar="FILE")
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
        bool, typer.Option("--debug", help="Show tracebacks and the client's log", rich_help_panel="Printing")
    ] = False
    call: Call = NOT_CALLED

    @functools.cached_property
    def _choice(self) -> Choice:
        return choose(self.url, self.context, self.call.typed)

    @property
    def protocol_in_use(self) -> contexts.Protocol:
        """The protocol to send and receive with."""
        if "protocol" not in self.call.options:
            return contexts.Protocol.AMQP_0_9_1
        return self.protocol or self._choice.protocol(None)

    @property
    def names(self) -> Names:
        """Names and settings of queues and exchanges in the chosen dialect."""
        if self.dialect is None and self.protocol_in_use is contexts.Protocol.AMQP_1_0:
            return AMQP10_NAMES
        return NAMES[self.dialect or Dialect.PYTHON]

    @property
    def lines(self) -> Lines:
        """The lines that the scripts of the chosen dialect print."""
        return LINES[self.dialect or Dialect.PYTHON]

    def print_as_script(self, *, on_stderr: bool | None = None) -> None:
        """With --dialect, print the lines that the dialect's script prints, on the same stream, and no others.

        Args:
            on_stderr: True for stderr, False for stdout; by default, as most of the dialect's scripts do.
        """
        if self.dialect is not None:
            on_stderr = self.lines.on_stderr if on_stderr is None else on_stderr
            current().script_output = output.STDERR if on_stderr else output.STDOUT

    def set_up_printing(self) -> None:
        """Apply --quiet, --verbose, --no-color and --debug. access() does this as well."""
        run = current()
        run.quiet, run.verbose, run.no_color, run.debug = self.quiet, self.verbose, self.no_color, self.debug
        if self.debug:
            import logging

            logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(levelname)s %(message)s")

    def access(self, management: str | None = None, *, reconnects: bool = True) -> Access:
        """Resolve how to reach the broker. Call this first, and only once: it also sets up printing and logging.

        In a protected context, ask for confirmation if the command changes the broker and does not itself ask.

        Args:
            management: the URL of the management API, which is also used for hints; by default, from the environment.
            reconnects: False for commands that hold messages unacknowledged, since reconnecting would redeliver them.

        Raises:
            UsageError: an option is not valid, the password file cannot be read, or there is no terminal to ask on.
            MqtoolError: the user declined.
        """
        self.set_up_printing()
        choice = self._choice
        access = Access(
            resolve_addresses(choice, user=self.user, vhost=self.vhost, password_file=self.password_file),
            choice.tls(TlsFiles(self.tls_ca, self.tls_cert, self.tls_key)),
            choice.management(
                management or os.environ.get(MANAGEMENT_VARIABLE), is_typed="management" in self.call.typed
            ),
            self.wait,
            Backoff(attempts=self.max_reconnects) if self.reconnect and reconnects else None,
            self.strict,
            choice.protected,
            self.confirm or (),
            choice.context and choice.context.name,
            self.protocol_in_use,
        )
        if self.call.must_ask:
            ask(f"run {self.call.command!r}", access, is_safe=True)
        return access


@dataclass(frozen=True, kw_only=True)
class TutorialBroker(Broker):
    """Options of the tutorials' commands."""

    dialect: ShownDialect = None
    protocol: Annotated[
        contexts.Protocol | None,
        typer.Option(
            "--protocol",
            help="Protocol to use: amqp0.9.1, or amqp1.0 (RabbitMQ 4)",
            show_default=str(contexts.Protocol.AMQP_0_9_1),
            envvar="MQTOOL_PROTOCOL",
            rich_help_panel="Broker",
        ),
    ] = None
    strict: Annotated[bool, _strict_option()] = False


@dataclass(frozen=True, kw_only=True)
class PublishingBroker(TutorialBroker):
    """Options of the tutorials' commands that publish."""

    verbose: ShownVerbose = False


@dataclass(frozen=True, kw_only=True)
class ManagedBroker:
    """Options of commands that use the management API."""

    options: Broker
    management: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="URL of the management API", envvar=MANAGEMENT_VARIABLE, rich_help_panel="Broker"
        ),
    ] = None

    def access(self, *, reconnects: bool = True) -> Access:
        """Resolve how to reach the broker and its management API; see Broker.access()."""
        return self.options.access(self.management, reconnects=reconnects)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Options that name the queue to move messages to, on this broker or another one."""

    to: Annotated[
        str,
        typer.Option(metavar="QUEUE", help="Queue to move them to; it must exist", autocompletion=names_of("queues")),
    ]
    to_url: Annotated[str | None, typer.Option(help="Broker of that queue, if it is another one", metavar="TO_URL")] = (
        None
    )
    to_context: Annotated[
        str | None, typer.Option(metavar="NAME", help="Context of that queue's broker", autocompletion=contexts.names)
    ] = None

    def access(self, source: Access) -> Access | None:
        """Resolve how to reach the queue's broker. Return None if it is the source's broker and virtual host.

        Raises:
            UsageError: an option is not valid, or both --to-url and --to-context are given.
        """
        if self.to_url is not None and self.to_context is not None:
            raise UsageError("--to-url and --to-context cannot be combined", "use only one of them")
        if self.to_url is not None:
            choice = Choice(self.to_url, "from --to-url", is_typed=True)
        elif self.to_context is not None:
            found = contexts.load().named(self.to_context)
            choice = Choice(found.url, f"from --to-context {found.name}", found, is_typed=True)
        else:
            return None
        addresses = resolve_addresses(choice)
        uses_tls = any(address.tls for address in addresses)
        tls = choice.tls(source.tls if uses_tls and choice.context is None else TlsFiles())
        other = source._replace(addresses=addresses, tls=tls, management_url=None, protected=choice.protected)
        is_same = other.vhost == source.vhost and is_same_node(other.address, source.address)
        return None if is_same else other


def missing(what: str, hint: str, *, is_fine: bool) -> None:
    """Report that something does not exist.

    Args:
        is_fine: only print a message (for --if-exists).

    Raises:
        NotFound: is_fine is False.
    """
    if not is_fine:
        raise NotFound(f"{what} does not exist", hint)
    output.status(f"{what} does not exist")


def ask_password(of: str, path: Path | None) -> str:
    """Get a new password: from a file, or typed twice on the terminal.

    Args:
        of: the user, for the prompt.
        path: the file; `-` is stdin.

    Raises:
        UsageError: there is neither a file nor a terminal, or the password is empty.
    """
    if path is not None:
        password = read_password(path)
    elif output.is_terminal(0):
        prompt = output.visible(f"Password of {of}")
        password = typer.prompt(prompt, hide_input=True, confirmation_prompt=True, err=True)
    else:
        raise UsageError(
            f"no password for {of}, and no terminal to ask for it", "--password-file FILE, or - to read it from stdin"
        )
    if not password:
        raise UsageError("the password is empty", "use at least one character")
    return str(password)
