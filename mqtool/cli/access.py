"""How to reach a broker: addresses, credentials and management API, resolved once per command."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from mqtool.address import Address, TlsFiles, connection_name, parse_addresses, without_passwords
from mqtool.cli import stopping
from mqtool.cli.chosen_broker import is_same_node, perhaps_running_at, running_at
from mqtool.cli.contexts import Protocol
from mqtool.cli.display import output
from mqtool.cli.invocation import current
from mqtool.duration import Backoff
from mqtool.errors import Difference, MqtoolError, Unavailable, UsageError
from mqtool.message import CONFIRM_TIMEOUT
from mqtool.spelling import pasteable
from mqtool.tutorials.dialects import declaring_like

if TYPE_CHECKING:
    from mqtool.amqp import Channel, Connection
    from mqtool.amqp10 import LinkSession
    from mqtool.management import Management
    from mqtool.streams import StreamChannel

#: What commands with --protocol use. Those that choose a lesson ask which of the two it is.
ChannelOrSession: TypeAlias = "Channel | LinkSession"

_T = TypeVar("_T")
_AMQP_PORT, _PORT, _TLS_PORT = 5672, 15672, 15671
_STREAM, _STREAM_TLS = 5552, 5551
#: The management port is usually this much higher than the AMQP port.
_APART = _PORT - _AMQP_PORT
#: The name under which 'broker up' records the URL of a broker's management API.
_API = "management"
#: Seconds to wait for a connection to the management API, and for its response, when only a hint depends on it.
HINT_PATIENCE = (0.3, 1.0)
#: Seconds after which a terminal shows what is being waited for.
_SILENCE = 1.0
#: Seconds to wait for a connection when checking whether a port is open, and for what the broker says of itself.
_LOOK = 2.0
#: The protocol header of AMQP 0-9-1. A broker answers with its properties.
_GREETING = b"AMQP\x00\x00\x09\x01"


class Access(NamedTuple):
    """How to reach a broker. Make one per command: a password on stdin can be read only once.

    Attributes:
        addresses: the broker's nodes.
        tls: certificate files for TLS.
        management_url: the URL of the management API; None means that mqtool looks for it.
        wait: seconds to wait for the broker to accept connections; None to fail at once.
        backoff: pauses between attempts to reconnect; None to give up when the connection is lost.
        strict: fail if a queue or exchange exists with settings that differ from the declared ones.
        protected: the name of the broker's context, if that context is protected.
        confirmed: protected contexts that may be changed without asking.
        context: the name of the broker's context, if any.
        protocol: the protocol that channel_or_session() and channels_or_session() use.
        patience: seconds to wait for a connection to the management API, and for its response; None for the defaults.
        ignores_stream_variable: True if a given stream port comes from MQTOOL_STREAM_PORT, and is another broker's.
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
    protocol: Protocol = Protocol.AMQP_0_9_1
    patience: tuple[float, float] | None = None
    ignores_stream_variable: bool = False

    @property
    def address(self) -> Address:
        """The address of the first node."""
        return self.addresses[0]

    @property
    def is_guarded(self) -> bool:
        """True if the context is protected, and the user has not confirmed that it may be changed."""
        return self.protected is not None and self.protected not in self.confirmed

    @property
    def user(self) -> str:
        """The user that mqtool logs in as; "" if it uses a certificate, from which the broker derives the user."""
        return "" if self.tls.logs_in(self.address) else self.address.user

    @property
    def title(self) -> str:
        """The broker as shown in the title of a live view: its context, if any, and its address."""
        return f"{self.context}: {self.address}" if self.context else str(self.address)

    @property
    def vhost(self) -> str:
        """The virtual host that the connections open."""
        return self.address.virtual_host

    def connect(self) -> "Connection":
        """Open a connection.

        Raises:
            Unavailable: no node can be reached.
            AccessRefused: no node accepts the login.
            UsageError: TLS files are given, but the URL does not use TLS.
        """
        from mqtool.amqp import Connection

        self._check_tls()

        def connect() -> Connection:
            return Connection(
                self.addresses, tls=self.tls, name=connection_name(), backoff=self.backoff, notice=_notice
            )

        return self._within(connect)

    def _check_tls(self) -> None:
        if any(self.tls) and not any(address.tls for address in self.addresses):
            raise UsageError(
                "TLS files are given, but the broker's URL does not use TLS", "use a URL that starts with amqps://"
            )

    def _within(self, connect: Callable[[], _T]) -> _T:
        """Connect; with --wait, retry until a connection succeeds or the time is up."""
        with _announced(f"waiting for an answer from {self.address}"):
            if self.wait is None:
                return connect()
            from mqtool.broker.readiness import connect_within

            return connect_within(self.wait, connect)

    @contextmanager
    def channel(self, *, mandatory: bool = False, confirm_timeout: float = CONFIRM_TIMEOUT) -> "Iterator[Channel]":
        """Open an AMQP 0-9-1 connection and a channel for a `with` block. Ctrl-C and TERM stop its consumers."""
        with self.connect() as connection:
            channel = connection.channel(strict=self.strict, mandatory=mandatory, confirm_timeout=confirm_timeout)
            with stopping.calling(channel.stop):
                yield channel

    @contextmanager
    def channels(self) -> "Iterator[tuple[Channel, Channel]]":
        """Open a connection and two channels for a `with` block: one to consume, and one to publish."""
        with self.connect() as connection:
            channel = connection.channel(strict=self.strict)
            with stopping.calling(channel.stop):
                yield channel, connection.channel()

    @contextmanager
    def channel_or_session(
        self,
        *,
        mandatory: bool = False,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        values: Sequence[str] = (),
        sql: str | None = None,
    ) -> "Iterator[ChannelOrSession]":
        """Open a channel for a `with` block, as channel() does; over AMQP 1.0, open a session.

        Args:
            values, sql: stream filters, which only AMQP 1.0 supports.

        Raises:
            UsageError: filters are given, but the protocol is not AMQP 1.0.
        """
        if self.protocol is Protocol.AMQP_1_0:
            with self._session(confirm_timeout, values, sql) as session:
                yield session
            return
        if values or sql is not None:
            raise UsageError("--filter and --sql need AMQP 1.0", "add --protocol amqp1.0")
        with self.channel(mandatory=mandatory, confirm_timeout=confirm_timeout) as channel:
            yield channel

    @contextmanager
    def channels_or_session(self) -> "Iterator[tuple[ChannelOrSession, ChannelOrSession]]":
        """Open two channels for a `with` block, as channels() does; over AMQP 1.0, yield one session twice."""
        if self.protocol is Protocol.AMQP_1_0:
            with self._session() as session:
                yield session, session
            return
        with self.channels() as (consuming, publishing):
            yield consuming, publishing

    @contextmanager
    def _session(
        self, confirm_timeout: float = CONFIRM_TIMEOUT, values: Sequence[str] = (), sql: str | None = None
    ) -> "Iterator[LinkSession]":
        from mqtool.amqp10 import LinkSession

        self._check_tls()

        def connect() -> LinkSession:
            return LinkSession(
                self.addresses,
                tls=self.tls,
                backoff=self.backoff,
                strict=self.strict,
                confirm_timeout=confirm_timeout,
                values=values,
                sql=sql,
                notice=_notice,
            )

        with self._within(connect) as session, stopping.calling(session.stop):
            yield session

    @contextmanager
    def stream_channel(
        self,
        port: int | None,
        *,
        any_settings: bool = False,
        confirm_timeout: float = CONFIRM_TIMEOUT,
        stores_bodies: bool = False,
        filters: Sequence[str] = (),
        single_active: bool = False,
    ) -> "Iterator[StreamChannel]":
        """Open a channel of the stream protocol for a `with` block. Ctrl-C and TERM stop its consumer.

        Args:
            port: the broker's stream port; None for the port of a broker started by mqtool, or that the management API
                lists, otherwise the default port.
            any_settings, confirm_timeout, stores_bodies, filters, single_active: see StreamChannel.
        """
        from mqtool.streams import StreamChannel

        self._check_tls()
        if self.ignores_stream_variable:
            port = None
        nodes = [each._replace(port=port or self._stream_port(each)) for each in self.addresses]
        context = self.tls.context() if self.address.tls else None

        def connect() -> StreamChannel:
            return StreamChannel(
                nodes,
                context,
                backoff=self.backoff,
                strict=self.strict,
                any_settings=any_settings,
                confirm_timeout=confirm_timeout,
                stores_bodies=stores_bodies,
                filters=filters,
                single_active=single_active,
                by_amqp=self.channel,
                notice=_notice,
            )

        with self._within(connect) as channel, stopping.calling(channel.stop):
            # If the AMQP port is not the default one, the default stream port may belong to another broker.
            if port is None and nodes[0].port in (_STREAM, _STREAM_TLS) and self.address.port not in (5672, 5671):
                self._check_same_broker(channel)
            yield channel

    def _stream_port(self, address: Address) -> int:
        """Look up the stream port of a node; if it is not known, return the default port."""
        from mqtool.management import PATIENCE, stream_port_beside

        if (started := _started_with(address, "streams")) is not None and (port := urlsplit(started).port):
            return port
        with suppress(MqtoolError):
            api = self.management((HINT_PATIENCE[0], (self.patience or PATIENCE)[1]))
            if port := stream_port_beside(api, address.port, tls=address.tls):
                return port
        return _STREAM_TLS if address.tls else _STREAM

    def _check_same_broker(self, channel: "StreamChannel") -> None:
        with self.connect() as connection:
            if connection.cluster == self.address.cluster(channel.cluster_name):
                return
        node = f"{self.address.host}:{_STREAM_TLS if self.address.tls else _STREAM}"
        raise Unavailable(
            f"the stream port {node} does not belong to the broker at {self.address}",
            "give the stream port of that broker with --stream-port",
        )

    def management(self, patience: tuple[float, float] | None = None) -> "Management":
        """Locate the management API: at the given URL, at the one recorded by 'broker up', or on the broker's host.

        On the host, the port is 15671 with TLS, and 15672 without. If the AMQP port is not the default one, mqtool
        tries the AMQP port + 10000 first, and checks that the API belongs to this broker: that it reports a listener
        on the AMQP port or, at AMQP port + 10000, the same cluster, because Docker may have mapped both ports.

        Args:
            patience: seconds to wait for a connection and for a response; None for those of this Access.

        Raises:
            UsageError: the given URL is not valid, or TLS files are given, but no URL uses TLS.
            Unavailable, AccessRefused: mqtool tried several ports, and found no API of this broker.
        """
        from mqtool.management import PATIENCE, Management

        address = self.address
        ca = None if self.tls.ca is None else str(self.tls.ca)

        def at(url: str, user: str = address.user, password: str = address.password) -> Management:
            return Management(
                url.rstrip("/"), user, password, patience or self.patience or PATIENCE, ca, self._hint_at_management
            )

        if (given := self.management_url or _started_with(address)) is not None:
            url = _parsed(given)
            if url.scheme != "https":
                self._check_tls()
            host = url.netloc.rpartition("@")[2]
            user = address.user if url.username is None else unquote(url.username)
            password = address.password if url.password is None else unquote(url.password)
            return at(f"{url.scheme}://{host}{url.path}", user, password)
        host = f"[{address.host}]" if ":" in address.host else address.host
        if address.tls:  # the password must not be sent unencrypted
            return at(f"https://{host}:{_TLS_PORT}")
        self._check_tls()
        usual = at(f"http://{host}:{_PORT}")
        # That of a broker that may have ended is tried last: another program may listen there.
        recorded = [at(str(each.details[_API])) for each in perhaps_running_at(address) if _API in each.details]
        if address.port == _AMQP_PORT:
            return self._of_this_broker([usual], recorded) if recorded else usual
        beside = at(f"http://{host}:{address.port + _APART}") if address.port + _APART < 1 << 16 else usual
        return self._of_this_broker([beside, usual], recorded)

    def _of_this_broker(self, guesses: Sequence["Management"], recorded: Sequence["Management"]) -> "Management":
        """Return the first API that belongs to this broker. If none does, raise an error that says why.

        Args:
            guesses: the APIs at the usual ports.
            recorded: the APIs of brokers in Docker, which listen on the default port in their container.
        """
        from mqtool.management import listens_on

        failure: MqtoolError | None = None
        port = self.address.port
        for guess in (*guesses, *recorded):
            in_container = guess in recorded
            try:
                is_ours = listens_on(guess, port, *([_AMQP_PORT] if in_container else []))
            except MqtoolError as error:
                failure = failure or error
                continue
            # Only some users may see the listeners.
            if is_ours or (is_ours is None and port == _AMQP_PORT and not in_container):
                return guess
            if urlsplit(guess.url).port == port + _APART and self._is_cluster_of(guess):
                return guess
            hint = self._hint_at_management() or f"if it does: --management {guess.url}; if not, name the right one"
            what = f"the management API at {guess.url} may not belong to the broker at {self.address}"
            failure = Unavailable(what, hint)
        assert failure is not None
        raise failure

    def _is_cluster_of(self, api: "Management") -> bool:
        """True if the broker and a management API report the same cluster name, and one that is not common."""
        with suppress(MqtoolError):
            name = str(api.get("overview").get("cluster_name") or "@localhost")
            if not name.endswith("@localhost"):
                with self._replace(backoff=None, wait=None).connect() as connection:
                    return connection.cluster == self.address.cluster(name)
        return False

    def _hint_at_management(self) -> str | None:
        """Return how an embedded broker gets a management API; None for other brokers.

        Raises:
            Unavailable: the broker cannot be reached.
        """
        address, said = self.address, b""
        try:
            with socket.create_connection((address.host, address.port), _LOOK) as probe, suppress(TimeoutError):
                if not address.tls:
                    probe.sendall(_GREETING)
                    said = probe.recv(4096)
        except (OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
            from mqtool.amqp.pika_errors import connecting

            raise connecting(error, address) from error
        if b"embedded broker" not in said:
            return None
        port = address.port + _APART if address.port + _APART < 1 << 16 else _PORT
        serve = pasteable("broker serve --management-port=", str(port))
        return f"an embedded broker has one if started with '{serve}'; or name it with --management"


@contextmanager
def _announced(what: str) -> Iterator[None]:
    """Context manager: print `what` on a terminal if the `with` block takes longer than a second."""
    if not output.is_terminal(2):
        yield
        return
    late = threading.Timer(_SILENCE, output.notice, [what])
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def _notice(text: str) -> None:
    """Print a notice. If it reports a queue or exchange with other settings, say what stays, and what to type."""
    if differs := Difference.reported_in(text):
        setting, thing, name, ours, theirs, _ = differs
        if thing == "exchange" and name.startswith("amq."):
            return  # predefined: the user can only use it as it is
        kept = f"keeps {setting} {theirs} instead of {ours}"
        if setting == "durable":
            kept = "stays durable, not transient" if theirs == "true" else "stays transient, not durable"
        text = f"{thing} '{name}' already exists, and {kept}"
        if option := _option_for(setting, ours):
            delete = pasteable(f"{thing} delete", name)
            text += f": {option} is only for a new {thing}; leave it out, or delete the {thing} first: {delete}"
        elif like := declaring_like(differs):
            text += f"; --dialect {' or '.join(like)} declares it so"
    output.notice(text)


def _option_for(setting: str, value: str) -> str | None:
    """Return the option with which the user asked for a setting of a queue or exchange; None if it is a default."""
    parsing = current().parsing
    given = {} if parsing is None else parsing.params
    if setting == "durable":
        return {"true": "--durable", "false": "--transient"}[value] if given.get("durable") is not None else None
    name = {"x-message-ttl": "ttl"}.get(setting, setting.removeprefix("x-").replace("-", "_"))
    if given.get(name) is not None:
        return f"--{name.replace('_', '-')}"
    return "--argument" if setting in dict(given.get("arguments") or ()) else None


def _parsed(url: str) -> SplitResult:
    """Parse a management URL. If it is not valid, raise UsageError with a message that hides the password."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # invalid brackets or port
        is_good = False
    is_list = url.count("://") > 1  # the password in the second URL would be printed as part of a path
    if not is_good or is_list or parts.query or parts.fragment:
        raise UsageError(
            f"bad management URL {without_passwords(url)!r}", "use a URL such as http://localhost:15672"
        ) from None
    return parts


def _started_with(address: Address, what: str = _API) -> str | None:
    """Return a broker's "management" or "streams" URL, if mqtool has started it, and it is still running."""
    started = running_at(address)
    # Those of a cluster are its first node's.
    if started is None or not is_same_node(parse_addresses(started.url)[0], address) or what not in started.details:
        return None
    return str(started.details[what])
