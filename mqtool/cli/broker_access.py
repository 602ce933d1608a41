"""Resolve how to reach the broker that a command's options name."""

import logging
import os
from contextlib import suppress

from mqtool.address import Address, TlsFiles, without_passwords
from mqtool.cli import contexts
from mqtool.cli.access import Access
from mqtool.cli.chosen_broker import Choice, choose, resolve_addresses
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Protocol
from mqtool.cli.display import output
from mqtool.cli.invocation import current
from mqtool.cli.options.broker_options import BrokerOptions, DestinationOptions, ManagedBroker, WhichBroker
from mqtool.duration import Backoff
from mqtool.errors import UsageError
from mqtool.spelling import name_broker
from mqtool.tutorials.dialects import AMQP10_NAMES, NAMES, Dialect, DialectNames

#: The number of terminals to remember.
_TOLD = 20


def chosen(options: BrokerOptions | WhichBroker) -> Choice:
    """Choose the broker that the options name; see chosen_broker.choose()."""
    return choose(options.url, options.context, options.call.typed)


#: The options that choose a broker and contain no secret, except the URL and the context.
_CHOOSING = ("vhost", "user", "password_file", "tls_ca", "tls_cert", "tls_key")


def typed_choice(options: BrokerOptions) -> dict[str, str]:
    """Return the options that name the broker on the command line, with their values. A URL is without passwords."""
    typed = options.call.typed
    by = ["url"] if "url" in typed else ["context"]  # a context beside a URL is not used
    words = {f"--{name.replace('_', '-')}": str(getattr(options, name)) for name in (*by, *_CHOOSING) if name in typed}
    if "--url" in words:
        words["--url"] = without_passwords(words["--url"])
    return words


def protocol_in_use(options: BrokerOptions) -> Protocol:
    """Return the protocol to send and receive with: of --protocol, or else of the broker's context."""
    if "protocol" not in options.call.options:
        return Protocol.AMQP_0_9_1
    if options.protocol is not None and "protocol" in options.call.typed:
        return options.protocol
    return chosen(options).protocol(options.protocol)


def dialect_names(options: BrokerOptions) -> DialectNames:
    """Return the names and settings of queues and exchanges in the chosen dialect."""
    if options.dialect is None and protocol_in_use(options) is Protocol.AMQP_1_0:
        return AMQP10_NAMES
    return NAMES[options.dialect or Dialect.PYTHON]


def access_to(broker: BrokerOptions | ManagedBroker, *, reconnects: bool = True, tells_which: bool = True) -> Access:
    """Resolve how to reach the broker. Call this first, and only once: it also sets up printing and logging.

    In a protected context, ask for confirmation if the command changes the broker and does not itself ask.

    Args:
        reconnects: False for commands that hold messages unacknowledged, since reconnecting would redeliver them.
        tells_which: False if the command itself says which broker it uses.

    Raises:
        UsageError: an option is not valid, the password file cannot be read, or there is no terminal to ask on.
        MqtoolError: the user declined.
    """
    options = broker.options if isinstance(broker, ManagedBroker) else broker
    typed = options.call.typed
    set_up_printing(options)
    choice = chosen(options)
    name_broker(typed_choice(options))
    if tells_which and not choice.is_named:
        _tell_which(choice)
    management = choice.management(
        broker.management if isinstance(broker, ManagedBroker) and "management" in typed else None
    )
    if choice.is_named and not choice.is_typed and management in (None, choice.context and choice.context.management):
        current().url_source = choice.reason
    access = Access(
        resolve_addresses(choice, user=options.user, vhost=options.vhost, password_file=options.password_file),
        choice.tls(TlsFiles(options.tls_ca, options.tls_cert, options.tls_key)),
        management,
        options.wait,
        Backoff(attempts=options.max_reconnects) if options.reconnect and reconnects else None,
        options.strict,
        choice.protected,
        options.confirm or (),
        choice.context and choice.context.name,
        protocol_in_use(options),
        ignores_stream_variable=not typed & {"port", "stream_port"} and not choice.has_variables(),
    )
    if options.call.must_ask:
        ask(f"run {options.call.command!r}", access, is_safe=True)
        access = access._replace(confirmed=(access.protected,) if access.protected else access.confirmed)
    return access


def _tell_which(choice: Choice) -> None:
    """Tell a terminal which broker is used, as the user named none. Each terminal is told once, until that changes.

    A terminal is not told about the broker of `broker up`, unless `tutorial try` runs on another one.
    """
    if not output.is_terminal(2) or current().quiet or output.speaks_as_script():
        return
    from mqtool.broker import background, state, tutorial_broker

    which = f"using {choice.description()}"
    if choice.is_started and not choice.api:
        if (trial := tutorial_broker.running()) is None:
            return
        which += f"; {trial.hint}"
    terminal = background.started(os.getsid(0))
    line, told = f"{terminal.pid} {terminal.born} {which}", state.home() / "told"
    before: list[str] = []
    with suppress(OSError, UnicodeDecodeError):
        before = told.read_text().splitlines()
    if line in before:
        return
    output.notice(which)
    with suppress(OSError):  # if the state directory cannot be written, the next command tells it again
        told.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        told.write_text("".join(f"{each}\n" for each in [*before[-_TOLD:], line]))


def set_up_printing(broker: BrokerOptions) -> None:
    """Apply --quiet, --verbose, --no-color and --debug. access_to() does this as well."""
    run = current()
    run.quiet, run.verbose, run.no_color, run.debug = broker.quiet, broker.verbose, broker.no_color, broker.debug
    if broker.debug:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(levelname)s %(message)s")


def print_as_script(broker: BrokerOptions, *, on_stderr: bool | None = None) -> None:
    """With --dialect, print the lines that the dialect's script prints, on the same stream, and no others.

    Args:
        on_stderr: True for stderr, False for stdout; by default, as most of the dialect's scripts do.
    """
    if isinstance(broker.dialect, Dialect):  # streams have dialects of their own
        on_stderr = broker.lines.on_stderr if on_stderr is None else on_stderr
        current().script_output = output.STDERR if on_stderr else output.STDOUT


def access_to_destination(destination: DestinationOptions, source: Access) -> Access | None:
    """Resolve how to reach the broker of the queue that messages are moved to; None if no option names it.

    It may be the source's broker: with another user there, or in a protected context.

    Raises:
        UsageError: an option is not valid, or both --to-url and --to-context are given.
    """
    if destination.to_url is not None and destination.to_context is not None:
        raise UsageError("--to-url and --to-context cannot be combined", "use only one of them")
    if destination.to_url is not None:
        choice = Choice(destination.to_url, "from --to-url", is_typed=True)
    elif destination.to_context is not None:
        found = contexts.load().named(destination.to_context)
        choice = Choice(found.url, f"from --to-context {found.name}", found, is_typed=True)
    else:
        return None
    addresses = [_with_login_of(source, each, choice) for each in resolve_addresses(choice)]
    uses_tls = any(address.tls for address in addresses)
    tls = choice.tls(source.tls if uses_tls and choice.context is None else TlsFiles())
    current().url_source = None  # from here on, an error may be about the destination
    return source._replace(addresses=addresses, tls=tls, management_url=None, protected=choice.protected)


def _with_login_of(source: Access, address: Address, choice: Choice) -> Address:
    """Return an address with the source's login if it is the source's node, and its URL names no user."""
    here = source.address
    is_same = (address.host, address.port, address.tls) == (here.host, here.port, here.tls)
    if address.names_user or choice.context is not None or not is_same:
        return address
    return address._replace(user=here.user, password=here.password, names_user=here.names_user)
