"""Which broker, how to get in, and how much to say."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from mqtool.amqp import CONFIRM_TIMEOUT, Address, Backoff, Channel, Connection, TlsFiles, parse_addresses
from mqtool.cli import stopping
from mqtool.cli.display import output
from mqtool.cli.options import live_names
from mqtool.cli.options.values import DURATION
from mqtool.errors import UsageError
from mqtool.tutorials.dialects import NAMES, Dialect, Names


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
        typer.Option(help="Wait so long for the broker to come up.", rich_help_panel="Broker", **DURATION),
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
