"""mqtool broker up, serve, restart."""

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from mqtool.amqp import Connection, parse_addresses
from mqtool.broker import choice, ports, readiness, state, tutorial_broker
from mqtool.broker.choice import BrokerKind, starter_of
from mqtool.broker.embedded.model.profile import DEFAULT, Like
from mqtool.broker.embedded.settings import TLS_OPTIONS, Settings, help_of
from mqtool.broker.embedded_starter import Embedded
from mqtool.broker.lifeline import holds, stop_with_this_process
from mqtool.broker.readiness import wait_until_up, where_log_is
from mqtool.broker.starter import Starter
from mqtool.broker.state import DEFAULT_NAME, Started, Wanted
from mqtool.cli import stopping
from mqtool.cli.broker_access import access_to, chosen
from mqtool.cli.chosen_broker import choose, is_same_node, read_password
from mqtool.cli.command_line import command, group
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.display.progress import working
from mqtool.cli.options import BrokerOptions
from mqtool.errors import NothingAnswers, Unavailable, UsageError
from mqtool.spelling import pasteable

app = group("broker", "Start a broker for yourself, and stop it.", heading="Broker")

_PAUSE = 0.2


def _checked(name: str) -> str:
    """Return the name of a broker. Raises UsageError if it could lead out of the directory of brokers."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise UsageError(f"{name!r} is not a valid broker name", "use letters, digits, - and _")
    return name


Name = Annotated[
    str,
    typer.Option(
        "--name", metavar="NAME", help="Name of the broker", callback=_checked, autocompletion=lambda: state.names()
    ),
]
DefinitionsOption = Annotated[Path | None, typer.Option(metavar="FILE", resolve_path=True, help=help_of("definitions"))]


def _port(about: str, lowest: int = 1) -> Any:
    return typer.Option(min=lowest, max=65535, metavar="N", help=about)


@command(
    app,
    "mqtool broker up",
    "mqtool broker up --kind embedded --port 5673 --name second",
    effect=Effect.READS,
    instead={
        "user": Annotated[
            str | None,
            typer.Option("--user", metavar="USER", help="User to log in as; with --kind docker, user to create"),
        ],
        "tls_cert": Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Certificate of the embedded broker; the TLS port is PORT - 1"),
        ],
        "tls_key": Annotated[Path | None, typer.Option(metavar="FILE", help="Private key of the certificate")],
    },
)
def up(
    *,
    kind: Annotated[BrokerKind, typer.Option(help="Kind of broker")] = BrokerKind.AUTO,
    port: Annotated[int | None, _port("AMQP port")] = None,
    name: Name = DEFAULT_NAME,
    management_port: Annotated[int | None, _port("Port of the management API")] = None,
    stream_port: Annotated[int | None, _port("Port of the stream protocol (not with --cluster)")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIRECTORY", resolve_path=True, help="Directory for messages (not with Docker)"),
    ] = None,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Keep nothing on disk (embedded broker only)")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="Start a cluster of three nodes")] = False,
    image: Annotated[
        str | None, typer.Option("--image", help="RabbitMQ base image, or RabbitMQ version (Docker)", metavar="IMAGE")
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Also listen on ADDRESS, unencrypted; guest cannot use it")
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in the foreground; Ctrl-C stops the broker")
    ] = False,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Require client certificates signed by this CA (embedded)", metavar="FILE")
    ] = None,
    like: Annotated[Like | None, typer.Option(help="RabbitMQ version that the embedded broker emulates")] = None,
    definitions: DefinitionsOption = None,
    options: BrokerOptions,
) -> None:
    """Start a broker, unless one is already reachable."""
    # For kinds other than embedded, the TLS options are only used to check whether the broker is running.
    tls = _tls(options.tls_cert, options.tls_key, tls_client_ca) if kind is BrokerKind.EMBEDDED else ()
    login = _login(options) if kind is BrokerKind.DOCKER else None
    files = (tls, like, definitions)
    wanted = Wanted(
        name, port, data_dir, in_memory, cluster, image, listen, management_port, stream_port, *files, login
    )
    _check(wanted, kind, tls_client_ca)
    only_default = kind is BrokerKind.AUTO and wanted == Wanted() and not foreground
    if only_default and options.call.typed & {"url", "context"}:
        _is_reachable(options)  # otherwise raises
        return
    with contextlib.ExitStack() as locked:
        locked.enter_context(state.locked(name))  # a second `up` waits for the lock, then finds the broker running
        locked.enter_context(ports.reserving())
        if _is_up_again(kind, wanted, foreground=foreground):
            return
        if (killed := state.load(name)) is not None:
            starter_of(killed).clear_up(killed)
        if only_default:
            state.forget(name)  # the recorded broker no longer runs, so do not try its URL
            if _is_reachable(options):
                _say_left_behind(name)
                return
        starter = _prepared(kind, wanted)
        _say_left_behind(name, starter.kind)
        if foreground and isinstance(starter, Embedded):
            output.status(f"starting {starter.describe} …")

            def when_up(started: Started) -> None:
                locked.close()
                _say_new(_ready(readiness.remember_definitions(started, definitions)))

            starter.stay(wanted, when_up)
            return
        with working(f"starting {starter.describe}"):
            started = _start(starter, wanted, foreground=foreground)
    _say_new(started)
    if foreground:
        _stay(started)


def _say_left_behind(name: str, kind: str | None = None) -> None:
    """Say where the messages of a stopped broker are, unless a broker of its kind, `kind`, gets them."""
    last = state.load_last(name)
    if last and last.kind != kind and last.details.get("data") != state.IN_MEMORY:
        before = starter_of(last).describe
        output.notice(f"the last broker here was {before}; its queues are kept, and come back with: {up_again(last)}")


def _say_new(started: Started) -> None:
    _say_up(started, f"{starter_of(started).describe} is up")
    if (url := readiness.remote_url(started)) is not None:
        output.status(f"for another machine, not encrypted: export AMQP_URL={url}")


def _login(options: BrokerOptions) -> tuple[str, str | None] | None:
    """Return the user (and the password, if given) to create on a broker in Docker; None to keep guest."""
    if options.user is None:
        return None
    return options.user, None if options.password_file is None else read_password(options.password_file)


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> tuple[Path, ...]:
    if (cert, key, client_ca) == (None, None, None):
        return ()
    if cert is None or key is None:
        raise UsageError("a broker with TLS needs a certificate and its key", "give both --tls-cert and --tls-key")
    return tuple(path.absolute() for path in (cert, key, client_ca) if path is not None)


def _check(wanted: Wanted, kind: BrokerKind, client_ca: Path | None) -> None:
    for option, value in (("--tls-client-ca", client_ca), ("--like", wanted.like)):
        if value is not None and kind is not BrokerKind.EMBEDDED:
            raise UsageError(f"{option} is for the embedded broker", "use --kind embedded")
    if wanted.cluster and wanted.stream_port is not None:
        raise UsageError("--stream-port does not work with --cluster", "start one node for streams")
    ports.check_apart(wanted.port, wanted.management_port, wanted.stream_port, tls=bool(wanted.tls))
    if wanted.listen is not None:
        readiness.check_listen(wanted.listen)
    if wanted.definitions is not None:
        readiness.read_definitions(wanted.definitions)


def _is_up_again(kind: BrokerKind, wanted: Wanted, *, foreground: bool) -> bool:
    """If a broker with this name is running, start its stopped nodes, if any, and return True.

    Raises:
        UsageError: the running broker was started with other options.
    """
    started = state.load(wanted.name)
    if started is None or not (running := starter_of(started).running(started)):
        return False
    if differing := state.differing(started, kind, wanted) + ["--foreground"] * foreground:
        raise UsageError(
            f"the broker named {wanted.name!r} is running, but was not started with the same {', '.join(differing)}",
            "'mqtool broker status' shows it, 'mqtool broker down' stops it, and --name starts another",
        )
    if running < started.nodes:
        output.status(f"starting {started.nodes - running} of {started.nodes} nodes again …")
        started = starter_of(started).revive(started)
    started = wait_until_up(starter_of(started), started)
    _say_up(started, "already running" if running == started.nodes else "running again")
    return True


def _prepared(kind: BrokerKind, wanted: Wanted) -> Starter:
    """Choose and prepare a starter: with `--kind auto`, of the kind that had this name before, else the first one that
    works on this machine.
    """
    if wanted.image and kind is BrokerKind.AUTO:
        kind = BrokerKind.DOCKER
    found = choice.candidates(kind, cluster=wanted.cluster)
    if (before := state.load_last(wanted.name)) is not None:
        found.sort(key=lambda starter: starter.kind != before.kind)  # its messages are kept
    *others, last = found
    for starter in others:
        try:
            starter.prepare(wanted, output.status)
        except Unavailable as why_not:
            output.notice(f"cannot use {starter.describe}: {why_not}")
        else:
            return starter
    last.prepare(wanted, output.status)
    return last


def _start(starter: Starter, wanted: Wanted, *, foreground: bool) -> Started:
    output.status(f"starting {starter.describe} …")
    lifeline = stop_with_this_process(wanted.name) if foreground else None
    with stopping.calling(lambda: None):  # defer Ctrl-C until the started broker is recorded
        started = readiness.remember_definitions(starter.start(wanted), wanted.definitions)
        if lifeline is not None:
            holds(lifeline, started)
    try:
        if stopping.requested() is not None:
            raise KeyboardInterrupt
        started = _ready(started)
    except BaseException:
        starter.stop(started)
        raise
    return started


def _ready(started: Started) -> Started:
    """Wait until a broker accepts connections, load its definitions, and create the user for --listen."""
    started = wait_until_up(starter_of(started), started)
    readiness.load_definitions(started)
    return readiness.admit_remote(started) if "listen" in started.details else started


def _stay(started: Started) -> None:
    """Wait for Ctrl-C or TERM, then stop the broker. Raise Unavailable if the broker exits on its own."""
    starter = starter_of(started)
    with stopping.calling(lambda: None):
        while stopping.requested() is None:
            if not starter.is_running(started):
                raise Unavailable("the broker has exited", where_log_is(started))
            time.sleep(_PAUSE)
        output.status("stopping …")
        with state.locked(started.name):
            starter.stop(started)


def _is_reachable(options: BrokerOptions) -> bool:
    """Say so and return True if the broker that commands use is reachable; False if it is not, and is not named.

    Raises:
        NothingAnswers: the user has named the broker.
    """
    access = access_to(options, tells_which=False)
    with contextlib.suppress(Unavailable):
        Connection(access.addresses, tls=access.tls).close()
        ends = ", which stops with the running 'mqtool tutorial try'" if chosen(options).api else ""
        output.show(f"using the broker at {access.address}{ends}")
        _say_tutorial(access.address.port)
        return True
    if (choice := choose(options.url, options.context, options.call.typed)).is_named:
        is_here = access.address.host in ("localhost", "127.0.0.1", "::1")
        how = f"start one at its port: {pasteable('broker up --port=', str(access.address.port))}"
        if choice.variable:
            how += f"; or, for the usual port: unset {choice.variable}"
        raise NothingAnswers(
            f"no broker answers at {access.address} ({choice.reason})",
            how if is_here else "unset it to start a broker here",
        )
    return False


def _say_up(started: Started, what: str) -> None:
    output.show(f"{what} at {','.join(map(str, parse_addresses(started.url)))}")
    if tls := started.details.get("tls"):
        output.status(f"with TLS: {tls}")
    if damage := started.details.get("damage"):
        output.notice(str(damage))
    if management := started.details.get("management"):
        # The embedded broker serves the API, but no web page.
        what = "API" if started.kind == BrokerKind.EMBEDDED else "page"
        output.status(f"management {what}: {management} ({_login_hint(started)})")
    _say_tutorial(parse_addresses(started.url)[0].port)
    say_if_commands_use_another(started, f'; for this broker: eval "$({_env(started)})"')


def say_if_commands_use_another(started: Started, then: str = "") -> None:
    """Say which broker other commands use if the user has named another one, or if `then` is to follow."""
    choice = choose()
    if (choice.is_named or then) and not is_same_node(choice.addresses()[0], parse_addresses(started.url)[0]):
        output.notice(f"commands use {choice.description()}{then}")


def _say_tutorial(port: int) -> None:
    """If `tutorial try` runs on another broker, say how commands get there: a learner may have meant that one."""
    tutorial = tutorial_broker.running()
    if tutorial is not None and port != tutorial.port:
        output.notice(tutorial.hint)


def _env(started: Started) -> str:
    return "mqtool broker env" if started.name == DEFAULT_NAME else pasteable("broker env --name=", started.name)


def up_again(stopped: Started) -> str:
    """Return the command that starts this broker again, rather than another one."""
    own = f"broker up --kind={stopped.kind}{' --cluster' * (stopped.nodes > 1)}"
    return f"mqtool {own}" if stopped.name == DEFAULT_NAME else pasteable(f"{own} --name=", stopped.name)


def _login_hint(started: Started) -> str:
    user = parse_addresses(started.url)[0].user
    return "guest, guest" if user == "guest" else f"{user}; for the password: {_env(started)}"


def known(name: str, hint: str | None = None) -> Started:
    """Find the broker with this name that 'broker up' started. Raises Unavailable if there is none."""
    if (started := state.load(name)) is not None:
        return started
    if (stopped := state.load_stopped(name)) is not None:
        raise Unavailable(f"broker {name!r} is stopped", f"start it again: {up_again(stopped)}")
    up = "mqtool broker up" if name == DEFAULT_NAME else pasteable("broker up --name=", name)
    raise Unavailable(f"no broker named {name!r} was started here", hint or f"start one with '{up}'")


@command(
    app,
    "mqtool broker serve --port 0 --print-url",
    "mqtool broker serve --management-port 15672 --recording",
    effect=Effect.OWN,
)
def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help=help_of("host"))] = Settings.host,
    port: Annotated[int, _port(help_of("port"), lowest=0)] = Settings.port,
    management_port: Annotated[int | None, _port(help_of("management_port"), lowest=0)] = None,
    stream_port: Annotated[int | None, _port(help_of("stream_port"), lowest=0)] = None,
    data_dir: Annotated[Path | None, typer.Option(metavar="DIRECTORY", help=help_of("data_dir"))] = None,
    definitions: DefinitionsOption = None,
    guest_from_anywhere: Annotated[
        bool, typer.Option("--guest-from-anywhere", help=help_of("guest_from_anywhere"))
    ] = False,
    recording: Annotated[bool, typer.Option("--recording", help=help_of("recording"))] = False,
    prometheus_port: Annotated[int | None, _port(help_of("prometheus_port"), lowest=0)] = None,
    print_url: Annotated[bool, typer.Option("--print-url", help="Print the URLs once the broker is listening")] = False,
    urls_file: Annotated[
        Path | None,
        typer.Option("--ready-file", help="Write the URLs to FILE once the broker is listening", metavar="FILE"),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help=TLS_OPTIONS["--tls-cert"], metavar="FILE")] = None,
    tls_key: Annotated[Path | None, typer.Option(help=TLS_OPTIONS["--tls-key"], metavar="FILE")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help=TLS_OPTIONS["--tls-client-ca"], metavar="FILE")] = None,
    like: Annotated[Like, typer.Option(help=help_of("like"))] = DEFAULT,
) -> None:
    """Run an embedded broker in this process, until Ctrl-C or TERM.

    'broker status' and 'broker down' do not find this broker.
    """
    from mqtool.broker.embedded.__main__ import CannotStart, run  # other commands need no broker
    from mqtool.broker.embedded.sockets.listener import Tls

    tls = _tls(tls_cert, tls_key, tls_client_ca)
    ports.check_apart(port, management_port, stream_port, tls=bool(tls))
    settings = Settings(
        host,
        port,
        data_dir,
        management_port,
        stream_port,
        definitions=definitions,
        tls=Tls(*tls) if tls else None,
        like=like,
        guest_from_anywhere=guest_from_anywhere,
        recording=recording,
        prometheus_port=prometheus_port,
    )
    try:
        run(settings, ready_file=urls_file, print_url=print_url)
    except CannotStart as error:
        raise Unavailable(str(error), "with port 0, it takes a free one" if error.is_port_taken else None) from error


@command(app, "mqtool broker restart", "mqtool broker restart --name second", effect=Effect.OWN)
def restart(name: Name = DEFAULT_NAME) -> None:
    """Restart the broker that 'broker up' started; messages are kept."""
    known(name)
    with state.locked(name), ports.reserving():
        starter = starter_of(started := known(name))
        output.status(f"restarting {starter.describe} …")
        ports.keep(started)
        with working(f"restarting {starter.describe}"):
            with stopping.calling(lambda: None):  # defer Ctrl-C, so that the broker is not left stopped
                started = starter.restart(started)
            started = _ready(started)
    _say_up(started, f"{starter.describe} is up again")
