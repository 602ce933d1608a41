"""How to reach a broker: addresses, credentials and management API, resolved once per command."""

import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from mqtool.amqp import CONFIRM_TIMEOUT, Address, Backoff, Channel, Connection, TlsFiles, parse_addresses
from mqtool.amqp.address import without_passwords
from mqtool.amqp.pika_errors import connecting
from mqtool.cli import contexts, stopping
from mqtool.cli.contexts import Context
from mqtool.cli.display import output
from mqtool.errors import MqtoolError, Unavailable, UsageError
from mqtool.tutorials.dialects import declaring_like

if TYPE_CHECKING:
    from mqtool.management import Management
    from mqtool.streams import StreamChannel

_T = TypeVar("_T")
URL_VARIABLES = ("MQTOOL_URL", "AMQP_URL")
MANAGEMENT_VARIABLE = "MQTOOL_MANAGEMENT_URL"
_DEFAULT_URL = "amqp://localhost"
_AMQP_PORT, _PORT, _TLS_PORT = 5672, 15672, 15671
_STREAM, _STREAM_TLS = 5552, 5551
#: The management port is usually this much higher than the AMQP port.
_APART = _PORT - _AMQP_PORT
#: RabbitMQ's error message for a queue or exchange that exists with different settings.
_DIFFERS = (
    r"inequivalent arg '(.*?)' for ((?:queue|exchange) '.*?') in vhost .*: "
    r"received (?:the value )?'?([^']*?)'?(?: of type '\w+')? "
    r"but current is (?:the value )?'?([^']*?)'?(?: of type '\w+')?$"
)
#: Seconds to wait for a connection when checking whether a port is open.
_LOOK = 2.0


class Access(NamedTuple):
    """How to reach a broker. Make one per command: a password on stdin can be read only once.

    Attributes:
        addresses: the broker's nodes.
        management_url: the URL of the management API; None means that mqtool looks for it.
        wait: seconds to wait for the broker to accept connections; None to fail at once.
        backoff: pauses between attempts to reconnect; None to give up when the connection is lost.
        strict: fail if a queue or exchange exists with settings that differ from the declared ones.
        protected: the name of the broker's context, if that context is protected.
        confirmed: protected contexts that may be changed without asking.
        context: the name of the broker's context, if any.
    """

    addresses: Sequence[Address]
    tls: TlsFiles
    management_url: str | None = None
    wait: float | None = None
    backoff: Backoff | None = None
    strict: bool = False
    protected: str | None = None
    confirmed: Sequence[str] = ()
    context: str | None = None

    @property
    def address(self) -> Address:
        """The address of the first node."""
        return self.addresses[0]

    @property
    def title(self) -> str:
        """The broker's description in the title of a live view: its context, if any, and its address."""
        return f"{self.context}: {self.address}" if self.context else str(self.address)

    @property
    def vhost(self) -> str:
        """The virtual host to work in."""
        return self.address.virtual_host

    def connect(self) -> Connection:
        """Open a connection.

        Raises:
            Unavailable: no node can be reached.
            AccessRefused: no node accepts the login.
            UsageError: TLS files are given, but the URL is without TLS.
        """
        self._check_tls()

        def connect() -> Connection:
            return Connection(self.addresses, tls=self.tls, backoff=self.backoff, notice=_notice)

        return self._within(connect)

    def _check_tls(self) -> None:
        if (self.tls.ca or self.tls.cert) and not any(address.tls for address in self.addresses):
            raise UsageError(
                "TLS files are given, but the broker's URL is without TLS", "use a URL that starts with amqps://"
            )

    def _within(self, connect: Callable[[], _T]) -> _T:
        """Connect; with --wait, retry until a connection succeeds or the time is up."""
        if self.wait is None:
            return connect()
        from mqtool.broker.readiness import connect_within

        return connect_within(self.wait, connect)

    @contextmanager
    def channel(self, *, mandatory: bool = False, confirm_timeout: float = CONFIRM_TIMEOUT) -> Iterator[Channel]:
        """Open a connection and a channel for a `with` block. Ctrl-C and TERM stop the channel's consumers."""
        with self.connect() as connection:
            channel = connection.channel(strict=self.strict, mandatory=mandatory, confirm_timeout=confirm_timeout)
            with stopping.calling(channel.stop):
                yield channel

    @contextmanager
    def stream_channel(self, port: int | None, **settings: Any) -> "Iterator[StreamChannel]":
        """Open a channel of the stream protocol for a `with` block. Ctrl-C and TERM stop its consumer.

        Args:
            port: the broker's stream port; None for the port of a broker started by mqtool, otherwise the default port.
            settings: further arguments of StreamChannel.
        """
        from mqtool.streams import StreamChannel

        self._check_tls()
        nodes = [
            each._replace(port=port or _stream_port_started_with(each) or (_STREAM_TLS if each.tls else _STREAM))
            for each in self.addresses
        ]
        context = self.tls.context() if self.address.tls else None

        def connect() -> StreamChannel:
            return StreamChannel(
                nodes,
                context,
                backoff=self.backoff,
                strict=self.strict,
                by_amqp=self.channel,
                notice=_notice,
                **settings,
            )

        with self._within(connect) as channel, stopping.calling(channel.stop):
            # The usual port beside an unusual AMQP port may be that of another broker.
            if port is None and nodes[0].port in (_STREAM, _STREAM_TLS) and self.address.port not in (5672, 5671):
                self._check_same_broker(channel)
            yield channel

    def _check_same_broker(self, channel: "StreamChannel") -> None:
        with self.connect() as connection:
            if connection.cluster == self.address.cluster(channel.cluster_name):
                return
        node = f"{self.address.host}:{_STREAM_TLS if self.address.tls else _STREAM}"
        raise Unavailable(
            f"the stream port {node} belongs to another broker than the one at {self.address}",
            "--stream-port names the port of this one",
        )

    def management(self, patience: tuple[float, float] | None = None) -> "Management":
        """Find the management API: by the given URL, by the URL of a broker started by mqtool, or on the broker's host.

        On the broker's host, mqtool tries port 15672 and the AMQP port + 10000.

        Args:
            patience: seconds to wait for a connection and for a response; None for the defaults.

        Raises:
            UsageError: the URL is not valid.
            Unavailable: no API was found, or the API found belongs to another broker.
        """
        from mqtool.management import PATIENCE, Management

        address = self.address
        ca = None if self.tls.ca is None else str(self.tls.ca)

        def at(url: str, user: str = address.user, password: str = address.password) -> Management:
            return Management(url.rstrip("/"), user, password, patience or PATIENCE, ca, self._check_reachable)

        if (given := self.management_url or _started_with(address)) is not None:
            url = _parsed(given)
            host = url.netloc.rpartition("@")[2]
            user = address.user if url.username is None else unquote(url.username)
            password = address.password if url.password is None else unquote(url.password)
            return at(f"{url.scheme}://{host}{url.path}", user, password)
        host = f"[{address.host}]" if ":" in address.host else address.host
        if address.tls:  # the password must not be sent unencrypted
            return at(f"https://{host}:{_TLS_PORT}")
        usual = at(f"http://{host}:{_PORT}")
        if address.port == _AMQP_PORT:
            return usual
        beside = at(f"http://{host}:{address.port + _APART}") if address.port + _APART < 1 << 16 else usual
        return self._of_this_broker([beside, usual])

    def _of_this_broker(self, guesses: Sequence["Management"]) -> "Management":
        """Return the first guess that is this broker's API, not another broker's; raise an error if none is."""
        from mqtool.management import HOW_TO_ENABLE, listens_on

        failure: MqtoolError | None = None
        for guess in guesses:
            try:
                is_ours = listens_on(guess, self.address.port)
            except MqtoolError as error:
                failure = failure or error
                continue
            if is_ours:
                return guess
            self._check_reachable()
            what = f"the management API at {guess.url} belongs to another broker than the one at {self.address}"
            failure = Unavailable(what, HOW_TO_ENABLE)
        assert failure is not None
        raise failure

    def _check_reachable(self) -> None:
        address = self.address
        try:
            socket.create_connection((address.host, address.port), _LOOK).close()
        except OSError as error:
            raise connecting(error, address) from error


def _notice(text: str) -> None:
    """Print a notice. If an existing queue or exchange has different settings, suggest a --dialect that has them."""
    like = declaring_like(text)
    if differs := re.search(_DIFFERS, text):
        setting, thing, ours, theirs = differs.groups()
        text = f"{thing} exists with {setting} {theirs} instead of {ours}, and is used as it is"
    output.notice(f"{text}; --dialect {' or '.join(like)} declares it like that" if like else text)


class Choice(NamedTuple):
    """The broker that a command uses, and how it was chosen.

    Attributes:
        url: the broker's URL, which may contain a password.
        reason: where the URL comes from, for `broker status`: "from --url".
        context: the context that the URL comes from, if any.
        variable: the environment variable that the URL comes from, if any.
        is_typed: True if an option named the broker.
        is_named: True if the user named the broker; False if it is the default or was started by `broker up`.
    """

    url: str
    reason: str
    context: Context | None = None
    variable: str | None = None
    is_typed: bool = False
    is_named: bool = True

    @property
    def protected(self) -> str | None:
        """The name of the broker's context, if that context is protected."""
        return self.context.name if self.context and self.context.protected else None

    def management(self, given: str | None, *, is_typed: bool = True) -> str | None:
        """The URL of the management API: the given one if any, otherwise the context's.

        A URL from the environment is ignored if the context was named on the command line.
        """
        if self.context is None or not self.is_typed or is_typed:
            return given or (self.context.management if self.context else None)
        return self.context.management

    def tls(self, given: TlsFiles) -> TlsFiles:
        """The TLS files: the given ones if any, otherwise the context's."""
        if self.context is None:
            return given
        of = self.context
        return TlsFiles(given.ca or of.tls_ca, given.cert or of.tls_cert, given.key or of.tls_key)

    def addresses(self) -> list[Address]:
        """The broker's nodes as in the URL: without --user or --vhost, and without running a password command.

        Raises:
            UsageError: the URL is not valid.
        """
        try:
            return parse_addresses(self.url)
        except UsageError as error:
            source = self.variable or (f"context {self.context.name!r}" if self.context else None)
            if source is None:
                raise
            raise UsageError(f"{source}: {error}", error.hint) from error


def choose(url: str | None = None, context: str | None = None, typed: Collection[str] = ()) -> Choice:
    """Choose the broker: from an option, the environment, the context in use, `broker up`, or localhost, in this order.

    Args:
        url, context: from an option or from the environment.
        typed: names of the options that were typed: "url", "context".

    Raises:
        UsageError: there is no such context.
    """
    if url is not None and "url" in typed:
        return Choice(url, "from --url", is_typed=True)
    if context is not None and "context" in typed:
        found = contexts.load().named(context)
        return Choice(found.url, f"from --context {found.name}", found, is_typed=True)
    if (variable := next((name for name in URL_VARIABLES if os.environ.get(name)), None)) is not None:
        return Choice(os.environ[variable], f"from {variable}", variable=variable)
    if name := os.environ.get(contexts.VARIABLE):
        found = contexts.load().named(name, contexts.VARIABLE)
        return Choice(found.url, f"from {contexts.VARIABLE}={name}", found)
    known = contexts.load()
    if known.in_use is not None:
        found = known.named(known.in_use, str(contexts.path()))
        return Choice(found.url, f"from context {found.name!r}, which is in use", found)
    from mqtool.broker import state

    if (started := state.load()) is not None:
        return Choice(started.url, "from 'mqtool broker up'", is_named=False)
    return Choice(_DEFAULT_URL, "the default", is_named=False)


def resolve_addresses(
    choice: Choice, *, user: str | None = None, vhost: str | None = None, password_file: Path | None = None
) -> list[Address]:
    """The broker's nodes, with the login from options, a password file or the context's password command.

    Raises:
        UsageError: the URL, the user or the vhost is not valid, or the password file cannot be read.
        MqtoolError: the password command failed.
    """
    addresses = choice.addresses()
    for what, name in (("vhost", vhost), ("user", user)):
        if name is not None and not 0 < len(os.fsencode(name)) <= 255:
            raise UsageError(f"the {what} has {len(os.fsencode(name))} bytes", "use 1 to 255 bytes")
    if password_file is not None:
        password: str | None = read_password(password_file)
    else:
        password = choice.context.password() if choice.context else None
    given: dict[str, Any] = {"user": user, "virtual_host": vhost, "password": password}
    changes = {name: value for name, value in given.items() if value is not None}
    return [address._replace(**changes) for address in addresses]


def is_same_node(one: Address, other: Address) -> bool:
    """True if two addresses lead to the same node."""
    hosts = {one.host, other.host}
    return one.port == other.port and (len(hosts) == 1 or hosts <= {"localhost", "127.0.0.1"})


def read_password(path: Path) -> str:
    """Read a password from a file, or from stdin if the path is `-`.

    Raises:
        UsageError: the file or stdin cannot be read.
    """
    try:
        text = os.read(0, 4096).decode() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"cannot read the password file {path}: {reason}") from error
    return text.rstrip("\r\n")


def _parsed(url: str) -> SplitResult:
    """Parse a management URL. If it is not valid, raise UsageError with a message that hides the password."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # invalid brackets or port
        is_good = False
    if not is_good or parts.query or parts.fragment:
        raise UsageError(
            f"bad management URL {without_passwords(url)!r}", "use a URL such as http://localhost:15672"
        ) from None
    return parts


def _started_with(address: Address, what: str = "management") -> str | None:
    """The URL of the "management" API or the "streams" port of a broker; None if mqtool did not start the broker."""
    from mqtool.broker import state

    for started in state.load_all():
        if is_same_node(parse_addresses(started.url)[0], address) and what in started.details:
            return str(started.details[what])
    return None


def _stream_port_started_with(address: Address) -> int | None:
    return urlsplit(_started_with(address, "streams") or "").port
