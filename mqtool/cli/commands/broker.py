"""mqtool broker up, serve, restart, down, status, ls, rm, logs, env."""

import contextlib
import shlex
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from mqtool.amqp import Address, Connection, parse_addresses
from mqtool.broker import choice, definitions_file, log_files, ports, remote, state
from mqtool.broker.choice import Kind, Starter, starter_of
from mqtool.broker.embedded.model.profile import DEFAULT, Like
from mqtool.broker.lifeline import stop_with_this_process
from mqtool.broker.starting import wait_until_up, where_log_is
from mqtool.broker.state import DEFAULT_NAME, Started, Wanted
from mqtool.cli import stopping
from mqtool.cli.access import Access, Choice, choose, is_same_node
from mqtool.cli.display import output, tables
from mqtool.cli.options import Broker, ContextName, Url, takes_groups, takes_groups_but
from mqtool.cli.options.asking import Yes, ask
from mqtool.errors import Unavailable, UsageError

app = typer.Typer()
broker = typer.Typer(no_args_is_help=True, help="Start a broker for yourself, and stop it.")
app.add_typer(broker, name="broker")

_LOG_PAUSE = 0.2

Name = Annotated[str, typer.Option(help="Name of the broker")]
LikeVersion = Annotated[Like | None, typer.Option(help="RabbitMQ to behave like: 3.10, unless given (embedded)")]
Definitions = Annotated[
    Path | None, typer.Option(metavar="FILE", resolve_path=True, help="RabbitMQ definitions to load at the start")
]
ClientCa = Annotated[Path | None, typer.Option(help="Require client certificates of this authority (embedded)")]


@broker.command(epilog="mqtool broker up\nmqtool broker up --kind embedded --port 5673 --name second")
@takes_groups_but(
    tls_cert=Annotated[Path | None, typer.Option(help="Client certificate; with --kind embedded, the broker's")],
    tls_key=Annotated[Path | None, typer.Option(help="Key of the certificate")],
)
def up(
    options: Broker,
    kind: Annotated[Kind, typer.Option(help="Kind of broker")] = Kind.AUTO,
    name: Name = DEFAULT_NAME,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="AMQP port")] = None,
    management_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the management API")] = None,
    stream_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the stream protocol (not with --cluster)")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(resolve_path=True, help="Directory for messages (not with Docker)")
    ] = None,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Keep nothing on disk (embedded broker only)")] = False,
    cluster: Annotated[bool, typer.Option("--cluster", help="Start a cluster of three nodes")] = False,
    image: Annotated[str | None, typer.Option(help="RabbitMQ image or version to build on (Docker)")] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Listen on ADDRESS too, unencrypted; not for guest")
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in the foreground; Ctrl-C stops the broker")
    ] = False,
    tls_client_ca: ClientCa = None,
    like: LikeVersion = None,
    definitions: Definitions = None,
) -> None:
    """Use a broker that is reachable, or start one."""
    # Of any other kind, they are for a look whether there is a broker already.
    tls = _tls(options.tls_cert, options.tls_key, tls_client_ca) if kind is Kind.EMBEDDED else ()
    wanted = Wanted(
        name, port, data_dir, in_memory, cluster, image, listen, management_port, stream_port, tls, like, definitions
    )
    _check(wanted, kind, tls_client_ca)
    if _is_up_again(kind, wanted, foreground=foreground):
        return
    if kind is Kind.AUTO and wanted == Wanted() and not foreground:
        state.forget(name)  # it no longer runs, so do not try its URL
        access = options.access()
        if (reachable := _reachable(access)) is not None:
            output.show(f"using the broker at {reachable}")
            return
        if (choice := choose(options.url, options.context)).is_named:
            raise Unavailable(
                f"no broker answers at {access.address} ({choice.reason})", "unset it to start a broker here"
            )
    starter = _prepared(kind, wanted)
    started = _start(starter, wanted, foreground=foreground)
    _say_up(started, f"{starter.describe} is up")
    if (url := remote.url_of(started)) is not None:
        output.status(f"for another machine, not encrypted: export AMQP_URL={url}")
    if foreground:
        _stay(started)


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> tuple[Path, ...]:
    """The files of a broker with TLS; none for one without."""
    if (cert, key, client_ca) == (None, None, None):
        return ()
    if cert is None or key is None:
        raise UsageError("a broker with TLS needs a certificate and its key", "give both --tls-cert and --tls-key")
    return tuple(path.absolute() for path in (cert, key, client_ca) if path is not None)


def _check(wanted: Wanted, kind: Kind, client_ca: Path | None) -> None:
    for option, value in (("--tls-client-ca", client_ca), ("--like", wanted.like)):
        if value is not None and kind is not Kind.EMBEDDED:
            raise UsageError(f"{option} is for the embedded broker", "use --kind embedded")
    if not wanted.name.replace("-", "").replace("_", "").isalnum() or not wanted.name.isascii():
        raise UsageError(f"{wanted.name!r} is not a valid broker name", "use letters, digits, - and _")
    if wanted.listen is not None:
        remote.check(wanted.listen)
    if wanted.definitions is not None:
        definitions_file.read(wanted.definitions)


def _is_up_again(kind: Kind, wanted: Wanted, *, foreground: bool) -> bool:
    """Whether the broker with that name runs, as the options say; starts the nodes of a cluster that do not."""
    started = state.load(wanted.name)
    if started is None or not (running := starter_of(started).running(started)):
        return False
    if differing := state.differing(started, kind, wanted) + ["--foreground"] * foreground:
        raise UsageError(
            f"the broker named {wanted.name!r} is running, and was not started with this {', '.join(differing)}",
            "'mqtool broker status' shows it, 'mqtool broker down' stops it, and --name starts another",
        )
    if running < started.nodes:
        output.status(f"starting {started.nodes - running} of {started.nodes} nodes again …")
        started = starter_of(started).revive(started)
    started = wait_until_up(started)
    _say_up(started, "already running" if running == started.nodes else "running again")
    return True


def _prepared(kind: Kind, wanted: Wanted) -> Starter:
    """The starter to use, prepared; with `auto`, the first that can be prepared."""
    if wanted.image and kind is Kind.AUTO:
        kind = Kind.DOCKER
    *others, last = choice.candidates(kind, cluster=wanted.cluster)
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
    """Start a broker, and wait until it is ready; without that, nothing is left of it."""
    output.status(f"starting {starter.describe} …")
    with stopping.calling(lambda: None):  # no Ctrl-C between its start and remembering it
        started = definitions_file.remember(starter.start(wanted), wanted.definitions)
        if foreground:
            stop_with_this_process(started)
    try:
        if stopping.requested() is not None:
            raise KeyboardInterrupt
        started = _ready(started)
    except BaseException:
        starter.stop(started)
        raise
    return started


def _ready(started: Started) -> Started:
    """The broker, once it accepts connections, also those of another machine's user."""
    started = wait_until_up(started)
    definitions_file.load(started)
    return remote.admit(started) if "listen" in started.details else started


def _stay(started: Started) -> None:
    """Wait until we are stopped, or the broker ends by itself."""
    starter = starter_of(started)
    with stopping.calling(lambda: None):
        while stopping.requested() is None:
            if not starter.is_running(started):
                raise Unavailable("the broker has ended", where_log_is(started))
            time.sleep(_LOG_PAUSE)
        output.status("stopping …")
        starter.stop(started)


def _reachable(access: Access) -> Address | None:
    with contextlib.suppress(Unavailable):
        Connection(access.addresses, tls=access.tls).close()
        return access.address
    return None


def _say_up(started: Started, what: str) -> None:
    """Say that a broker is up, and what is to be known of it."""
    output.show(f"{what} at {','.join(map(str, parse_addresses(started.url)))}")
    if damage := started.details.get("damage"):
        output.notice(str(damage))
    if management := started.details.get("management"):
        # The embedded broker has no page, only the API.
        output.status(f"management {'API' if started.kind == Kind.EMBEDDED else 'page'}: {management} (guest, guest)")
    choice = choose()
    if not is_same_node(choice.addresses()[0], parse_addresses(started.url)[0]):
        of = "" if started.name == DEFAULT_NAME else f" --name {started.name}"
        output.notice(f'commands use {_told(choice)}; for this broker: eval "$(mqtool broker env{of})"')


def _known(name: str) -> Started:
    started = state.load(name)
    if started is None:
        raise Unavailable(f"no broker named {name!r} was started here", "start one with 'mqtool broker up'")
    return started


@broker.command(
    epilog="mqtool broker serve --port 0 --print-url\nmqtool broker serve --management-port 15672 --recording"
)
def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="AMQP port; 0 for any free one")] = ports.AMQP,
    management_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the management API; 0 for any free one")
    ] = None,
    stream_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the stream protocol; 0 for any free one")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Keep messages here; without it nothing is kept")] = None,
    definitions: Definitions = None,
    guest_from_anywhere: Annotated[
        bool, typer.Option("--guest-from-anywhere", help="Let guest log in from other machines, too")
    ] = False,
    recording: Annotated[
        bool, typer.Option("--recording", help="Record messages, for GET /api/mqtool/published/VHOST")
    ] = False,
    print_url: Annotated[bool, typer.Option("--print-url", help="Print the URLs once it listens")] = False,
    ready_file: Annotated[Path | None, typer.Option(help="File that gets the URLs once it listens")] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate: listen with TLS too, one port below (PEM)")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key of the certificate (PEM)")] = None,
    tls_client_ca: ClientCa = None,
    like: LikeVersion = None,
) -> None:
    """Run an embedded broker in this process, until Ctrl-C or TERM.

    It keeps no state: 'broker status' and 'broker down' know nothing of it.
    """
    from mqtool.broker.embedded.process import run  # here: other commands need no broker
    from mqtool.broker.embedded.server import Settings
    from mqtool.broker.embedded.wire.tls import Tls

    tls = _tls(tls_cert, tls_key, tls_client_ca)
    settings = Settings(
        host,
        port,
        data_dir,
        management_port,
        stream_port=stream_port,
        recording=recording,
        definitions=definitions,
        tls=Tls(*tls) if tls else None,
        guest_from_anywhere=guest_from_anywhere,
        like=like or DEFAULT,
    )
    raise typer.Exit(run(settings, ready_file=ready_file, print_url=print_url))


@broker.command(epilog="mqtool broker restart\nmqtool broker restart --name second")
def restart(name: Name = DEFAULT_NAME) -> None:
    """Restart the broker that 'broker up' started; messages are kept."""
    started = _known(name)
    starter = starter_of(started)
    output.status(f"restarting {starter.describe} …")
    with stopping.calling(lambda: None):  # no Ctrl-C between its end and its start
        started = starter.restart(started)
    _say_up(_ready(started), f"{starter.describe} is up again")


@broker.command(epilog="mqtool broker down\nmqtool broker down --name second")
def down(name: Name = DEFAULT_NAME) -> None:
    """Stop the broker that 'broker up' started; messages are kept."""
    started = state.load(name)
    if started is None:
        output.status(f"nothing to stop: no broker named {name!r} was started here")
        return
    starter_of(started).stop(started)
    output.status(f"stopped {starter_of(started).describe}")


@broker.command(epilog="mqtool broker status")
def status(name: Name = DEFAULT_NAME, url: Url = None, context: ContextName = None) -> None:
    """Show whether the broker is running (exit 0) or not (exit 69).

    And which broker commands use, and why.
    """
    choice = choose(url, context)
    if (started := state.load(name)) is None:
        output.show(f"commands use {_told(choice)}")
        started = _known(name)
    starter = starter_of(started)
    running, says = starter.running(started), _state_of(started)
    output.show(f"{starter.describe}: {says}")
    rows: dict[str, Any] = {"url": ", ".join(map(str, parse_addresses(started.url)))}
    if started.pid:
        rows |= {"process": started.pid, "log": f"{started.directory}/log"}
    for key, value in {**rows, **started.details}.items():
        if not isinstance(value, list | dict):
            output.show(f"  {key.replace('_', ' '):<12} {value}")
    output.show(f"  commands use {_told(choice)}")
    if running < started.nodes:
        raise Unavailable(f"the broker is {says}", "start it again with 'mqtool broker up'")


def _state_of(started: Started) -> str:
    running = starter_of(started).running(started)
    some = f"{running} of {started.nodes} nodes running" if running else "not running"
    return "running" if running == started.nodes else some


def _told(choice: Choice) -> str:
    return f"{', '.join(map(str, choice.addresses()))}, {choice.reason}"


@broker.command(epilog="mqtool broker ls\nmqtool broker ls --json")
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line")] = False) -> None:
    """List the brokers that 'broker up' started, with stopped ones."""
    rows = []
    for name in state.names():
        known = (started := state.load(name)) or state.load_stopped(name)
        assert known is not None
        urls = ", ".join(map(str, parse_addresses(known.url)))
        says = _state_of(started) if started else "stopped"
        rows.append({"name": name, "state": says, "kind": known.kind, "url": urls, "data": known.details.get("data")})
    if not tables.show(rows, ["name", "state", "kind", "url", *["data"] * as_json], as_json=as_json):
        output.status("no brokers: 'mqtool broker up' starts one")


@broker.command(epilog="mqtool broker rm --name second\nmqtool broker rm --name second --purge --yes")
@takes_groups
def rm(
    yes: Yes,
    name: Name = DEFAULT_NAME,
    purge: Annotated[bool, typer.Option("--purge", help="Remove its messages too")] = False,
) -> None:
    """Remove a stopped broker; its messages stay without --purge."""
    found = state.load(name) or state.load_stopped(name) or _known(name)
    starter = starter_of(found)
    if starter.running(found):
        raise UsageError(f"the broker named {name!r} is running", f"stop it with 'mqtool broker down --name {name}'")
    if purge:
        ask(f"remove broker {name!r} with all its messages", yes, protected=None)
        starter.discard(found)
        if (data := Path(str(found.details.get("data")))).exists():
            output.notice(f"{data} is not ours to remove")
    else:
        state.remove_but_data(name)
    output.status(f"removed {name}")


@broker.command(epilog="mqtool broker logs\nmqtool broker logs -f")
def logs(
    name: Name = DEFAULT_NAME,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing as the log grows")] = False,
) -> None:
    """Print the broker's log, which 'broker down' keeps."""
    if state.load(name) is None and (kept := log_files.kept(state.directory(name))):
        chunks = log_files.read(kept, follow)
    else:
        started = _known(name)
        chunks = starter_of(started).log(started, follow)
    with stopping.calling(lambda: None):
        for data in chunks:
            output.write(data)
            if stopping.requested() is not None:
                return
            if not data and follow:
                time.sleep(_LOG_PAUSE)


@broker.command(epilog='mqtool broker env\neval "$(mqtool broker env)"')
def env(
    name: Name = DEFAULT_NAME,
    for_remote: Annotated[bool, typer.Option("--remote", help="For another machine (after 'up --listen')")] = False,
) -> None:
    """Print shell variables that point programs at the broker."""
    started = _known(name)
    url = remote.url_of(started) if for_remote else started.url
    if url is None:
        raise UsageError(f"the broker named {name!r} is for this machine only", "start it with --listen ADDRESS")
    # mqtool accepts several URLs, other clients only one.
    output.show(f"export AMQP_URL={shlex.quote(url.partition(',')[0])}")
    if "," in url:
        output.show(f"export MQTOOL_URL={shlex.quote(url)}")
    if streams := started.details.get("streams"):
        output.show(f"export MQTOOL_STREAM_PORT={urlsplit(streams).port}")
