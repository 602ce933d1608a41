"""Choose the broker that a command uses: from an option, the environment, a context or `broker up`."""

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mqtool.address import Address, TlsFiles, parse_addresses
from mqtool.cli import contexts
from mqtool.cli.contexts import MANAGEMENT_VARIABLE, STREAM_PORT_VARIABLE, URL_VARIABLES, Context, Protocol
from mqtool.cli.display import output
from mqtool.errors import MqtoolError, UsageError

if TYPE_CHECKING:
    from mqtool.broker.state import Started

_DEFAULT_URL = "amqp://localhost"
#: Seconds to wait for a connection to localhost.
_BRIEFLY = 3.0


class Choice(NamedTuple):
    """The broker that a command uses, and how it was chosen.

    Attributes:
        url: the broker's URL, which may contain a password.
        reason: where the URL comes from, as `broker status` shows it, for example "from --url".
        context: the context that the URL comes from, if any.
        variable: the environment variable that the URL comes from, if any.
        is_typed: True if an option on the command line named the broker.
        is_named: True if the user named the broker; False if it is the default or was started by mqtool.
        is_started: True if the broker was found because `broker up` or `tutorial try` started it. False if its process
            has ended since: another broker may listen on its port.
        api: the URL of its management API, if it is the broker of `tutorial try`.
    """

    url: str
    reason: str
    context: Context | None = None
    variable: str | None = None
    is_typed: bool = False
    is_named: bool = True
    is_started: bool = False
    api: str | None = None

    @property
    def protected(self) -> str | None:
        """The name of the broker's context, if that context is protected."""
        return self.context.name if self.context and self.context.protected else None

    def management(self, typed: str | None) -> str | None:
        """Return the URL of the management API: the typed one, this broker's in the environment, or the context's.

        Returns None if mqtool has to look for the API.
        """
        if typed:
            return typed
        if (given := os.environ.get(MANAGEMENT_VARIABLE)) and self.has_variables():
            return given
        return self.context.management if self.context else self.api

    def has_variables(self) -> bool:
        """True if MQTOOL_MANAGEMENT_URL and MQTOOL_STREAM_PORT belong to this broker.

        They belong to the broker that MQTOOL_URL or AMQP_URL names, or else to localhost. Otherwise, a command would
        send one broker's password to another broker, or change that one. A context and a broker that `broker up`
        started are known with their own addresses.
        """
        if self.context is not None or self.is_started:
            return False
        return not self.is_typed or self._is_usual()

    def _is_usual(self) -> bool:
        """True if a command without --url would use this broker, or another of its nodes, with the variables."""
        try:
            other = _from_environment() or choose()
            pairs = [*product(self.addresses(), other.addresses())]
        except MqtoolError:  # the URL is not valid, or a file of contexts or of `broker up` cannot be read
            return False
        return other.has_variables() and any(is_same_node(one, another) for one, another in pairs)

    def tls(self, given: TlsFiles) -> TlsFiles:
        """Return the TLS files: the given ones if any, otherwise the context's."""
        if self.context is None:
            return given
        of = self.context
        return TlsFiles(given.ca or of.tls_ca, given.cert or of.tls_cert, given.key or of.tls_key)

    def protocol(self, given: Protocol | None) -> Protocol:
        """Return the context's protocol if any, otherwise the given one; the default is AMQP 0-9-1."""
        of_context = self.context.protocol if self.context else None
        return Protocol(of_context) if of_context else given or Protocol.AMQP_0_9_1

    def description(self) -> str:
        """Return the addresses of the broker, and where they come from, as `broker status` prints them.

        Raises:
            UsageError: the URL is not valid.
        """
        return f"{', '.join(map(str, self.addresses()))}, {self.reason}"

    def addresses(self) -> list[Address]:
        """Parse the URL into the addresses of the broker's nodes.

        Applies neither --user nor --vhost, and does not run a password command.

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
    """Choose the broker: from an option, the environment, the context in use, `broker up`, a running `tutorial try`, or
    localhost, in this order.

    Args:
        url, context: the values of --url and --context, which may come from the environment.
        typed: names of the options given on the command line: "url", "context".

    Raises:
        UsageError: there is no such context, or --url is given beside a protected one, whose protection it would drop.
    """
    if url is not None and "url" in typed:
        beside = contexts.load().named(context) if context is not None and "context" in typed else None
        if beside is not None and beside.protected:
            raise UsageError(f"--url cannot be combined with the protected context {context!r}", "use only one of them")
        return Choice(url, "from --url", is_typed=True)
    if context is not None and "context" in typed:
        found = contexts.load().named(context)
        return Choice(found.url, f"from --context {found.name}", found, is_typed=True)
    if (named := _from_environment()) is not None:
        return named
    if name := os.environ.get(contexts.VARIABLE):
        found = contexts.load().named(name, contexts.VARIABLE)
        return Choice(found.url, f"from {contexts.VARIABLE}={name}", found)
    known = contexts.load()
    if known.in_use is not None:
        found = known.named(known.in_use, str(contexts.path()))
        return Choice(found.url, f"from context {found.name!r}, which is in use", found)
    from mqtool.broker import background, state, tutorial_broker

    if (started := state.load()) is not None:
        process = background.Process(started.pid, started.born)
        is_started = not started.pid or background.is_running(process)  # Docker and clusters have no single process
        return Choice(started.url, "from 'mqtool broker up'", is_named=False, is_started=is_started)
    if (trial := tutorial_broker.running()) is not None:
        reason = "from the running 'mqtool tutorial try'"
        return Choice(trial.url, reason, is_named=False, is_started=True, api=trial.management)
    return Choice(_DEFAULT_URL, "the default", is_named=False)


def _from_environment() -> Choice | None:
    variable = next((name for name in URL_VARIABLES if os.environ.get(name)), None)
    return None if variable is None else Choice(os.environ[variable], f"from {variable}", variable=variable)


def leave_other_brokers(url: str | None) -> None:
    """Remove MQTOOL_MANAGEMENT_URL and MQTOOL_STREAM_PORT from the environment unless they belong to a URL's broker.

    For a command that runs other commands on that broker. A URL of None stands for a broker that the command starts; if
    the user has named another one, say that the command does not use it.
    """
    if url is None and (choice := choose()).is_named:
        output.notice(f"this uses a broker of its own, not {choice.description()}")
    if url is None or not Choice(url, "from --url", is_typed=True).has_variables():
        for variable in (MANAGEMENT_VARIABLE, STREAM_PORT_VARIABLE):
            os.environ.pop(variable, None)


def resolve_addresses(
    choice: Choice, *, user: str | None = None, vhost: str | None = None, password_file: Path | None = None
) -> list[Address]:
    """Return the addresses of the broker's nodes, with user, password and virtual host from the options applied.

    Without a password file, the context's password command, if any, provides the password.

    Raises:
        UsageError: the URL, the user or the vhost is not valid, or the password file cannot be read.
        MqtoolError: the password command failed.
    """
    addresses = choice.addresses()
    for what, name in (("vhost", vhost), ("user", user)):
        if name is not None and not 0 < len(os.fsencode(name)) <= 255:
            raise UsageError(f"the {what} name is {len(os.fsencode(name))} bytes long", "use 1 to 255 bytes")
    if password_file is not None:
        password: str | None = read_password(password_file)
    else:
        password = choice.context.password() if choice.context else None
    given: dict[str, Any] = {"user": user, "virtual_host": vhost, "password": password}
    changes = {name: value for name, value in given.items() if value is not None}
    if user is not None or password is not None:
        changes["names_user"] = True
    return [address._replace(**changes) for address in addresses]


def is_same_node(one: Address, other: Address) -> bool:
    """Return True if two addresses are those of the same node."""
    hosts = {one.host, other.host}
    return one.port == other.port and (len(hosts) == 1 or hosts <= {"localhost", "127.0.0.1"})


def running_at(address: Address) -> "Started | None":
    """Return the broker at an address if 'broker up' has started it, and it is still running; None if not.

    If a broker was killed, another one may listen at its address, whose management API is elsewhere, and which mqtool
    must not treat as its own. If it cannot be known whether a broker runs, it counts as not running.
    """
    return next((started for started, number in _recorded_at(address) if _is_running(started, number)), None)


def perhaps_running_at(address: Address) -> "list[Started]":
    """Return the brokers at an address that 'broker up' has started, if it cannot be known whether they still run."""
    return [started for started, number in _recorded_at(address) if _is_running(started, number) is None]


def _recorded_at(address: Address) -> "Iterator[tuple[Started, int]]":
    """Yield the recorded brokers that have a node at an address, each with the node's number."""
    from mqtool.broker import state

    if (recorded := state.load_all()) and address.host == "localhost":
        address = address._replace(host=_host_at_localhost(address.port))
    for started in recorded:
        for number, node in enumerate(parse_addresses(started.url)):
            if is_same_node(node, address):
                yield started, number


def _host_at_localhost(port: int) -> str:
    """Return the address at which a client that connects to localhost finds a listener; "localhost" if there is none.

    On many machines, localhost is ::1 first, where another broker may listen.
    """
    with suppress(OSError), socket.create_connection(("localhost", port), _BRIEFLY) as probe:
        return str(probe.getpeername()[0])
    return "localhost"


def _is_running(started: "Started", number: int) -> bool | None:
    """Return whether a node of a recorded broker runs; None if that cannot be known."""
    from mqtool.broker import background

    if started.pid:
        return background.is_running(background.Process(started.pid, started.born))
    from mqtool.broker.choice import starter_of  # slow to import, so only for Docker and clusters

    try:
        return starter_of(started).runs(started, number)
    except MqtoolError:  # such as no permission to ask the Docker daemon
        return None


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
