"""mqtool broker up, down, status, logs, env; mqtool wait."""

import contextlib
import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from mqtool.amqp import Address, Connection, parse_addresses
from mqtool.broker import choice, state
from mqtool.broker.choice import STARTERS, Kind
from mqtool.broker.state import DEFAULT_NAME, Started, Wanted
from mqtool.broker.waiting import connect_within
from mqtool.cli import output, stopping
from mqtool.cli.options import Broker, duration, takes_groups
from mqtool.errors import MqtoolError, TimedOut, Unavailable, UsageError

app = typer.Typer()
broker = typer.Typer(no_args_is_help=True, help="Start a broker for yourself, and stop it again.")
app.add_typer(broker, name="broker")

#: Seconds that a node may take to start: five are usual, a busy machine needs more.
_START_PATIENCE = 90.0
_LOG_PAUSE = 0.2

Name = Annotated[str, typer.Option(help="Which one, if you have several.")]


@broker.command(epilog="mqtool broker up  ·  mqtool broker up --kind embedded --port 5673 --name second")
@takes_groups
def up(
    options: Broker,
    kind: Annotated[Kind, typer.Option(help="What to start; auto takes what is there.")] = Kind.AUTO,
    name: Name = DEFAULT_NAME,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The AMQP port.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Keep the messages here.")] = None,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Keep nothing (embedded broker only).")] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and stop the broker on Ctrl-C.")] = False,
) -> None:
    """Make sure that there is a broker: take one that is reachable, or else start one."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise UsageError(f"{name!r} is no name for a broker", "use letters, digits, - and _")
    started = state.load(name)
    if started and STARTERS[Kind(started.kind)].is_running(started):
        _await(started)
        _say_up(started, "already running")
        return
    if kind is Kind.AUTO and port is None and name == DEFAULT_NAME and not (data_dir or in_memory or foreground):
        if started:
            state.forget(name)  # it is not running any more, so its URL is none to look at
        if (reachable := _reachable(options)) is not None:
            output.show(f"using the broker at {reachable}")
            return
        if options.url is not None:
            raise Unavailable(
                f"no broker answers at {options.addresses()[0]}, which --url, MQTOOL_URL or AMQP_URL names",
                "unset it to start one here; every command would look for its broker there",
            )
    starter = STARTERS[choice.choose(kind)]
    output.status(f"starting {starter.describe} …")
    with stopping.calling(lambda: None):  # between its start and its being remembered no Ctrl-C may come
        started = starter.start(Wanted(name, port, data_dir, in_memory))
    try:
        if stopping.requested() is not None:
            raise KeyboardInterrupt
        _await(started)
    except BaseException:
        starter.stop(started)
        raise
    _say_up(started, f"{starter.describe} is up")
    if foreground:
        _stay(started)


def _stay(started: Started) -> None:
    """Hold the terminal until we are told to stop, or the broker ends by itself."""
    starter = STARTERS[Kind(started.kind)]
    with stopping.calling(lambda: None):
        while stopping.requested() is None:
            if not starter.is_running(started):
                raise Unavailable("the broker has ended", f"see {_log(started)}")
            time.sleep(_LOG_PAUSE)
        output.status("stopping …")
        starter.stop(started)


def _reachable(options: Broker) -> Address | None:
    with contextlib.suppress(Unavailable):
        addresses = options.addresses()
        Connection(addresses).close()
        return addresses[0]
    return None


def _await(started: Started) -> None:
    starter = STARTERS[Kind(started.kind)]

    def connect() -> Connection:
        if not starter.is_running(started):
            raise MqtoolError(f"the broker ended while it started{_last_words(started)}", f"see {_log(started)}")
        return Connection(parse_addresses(started.url))

    try:
        connect_within(_START_PATIENCE, connect).close()
    except TimedOut as error:
        raise Unavailable(str(error), f"see {_log(started)}") from error


def _last_words(started: Started) -> str:
    lines = [line for line in _log(started).read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1].strip()}" if lines else ""


def _log(started: Started) -> Path:
    return Path(started.directory) / "log"


def _say_up(started: Started, what: str) -> None:
    output.show(f"{what} at {parse_addresses(started.url)[0]}")
    if management := started.details.get("management"):
        # The embedded broker has the API without the page.
        output.status(f"management {'API' if started.kind == Kind.EMBEDDED else 'page'}: {management} (guest, guest)")


def _known(name: str) -> Started:
    started = state.load(name)
    if started is None:
        raise Unavailable(f"mqtool has started no broker named {name!r}", "start one with 'mqtool broker up'")
    return started


@broker.command(epilog="mqtool broker down  ·  mqtool broker down --name second")
def down(name: Name = DEFAULT_NAME) -> None:
    """Stop a broker that `broker up` started; its messages are kept."""
    started = state.load(name)
    if started is None:
        output.status(f"nothing to stop: mqtool has started no broker named {name!r}")
        return
    STARTERS[Kind(started.kind)].stop(started)
    output.status(f"stopped {STARTERS[Kind(started.kind)].describe}")


@broker.command(epilog="mqtool broker status")
def status(name: Name = DEFAULT_NAME) -> None:
    """Say whether a broker that `broker up` started is running (exit 0) or not (exit 69)."""
    started = _known(name)
    running = STARTERS[Kind(started.kind)].is_running(started)
    output.show(f"{STARTERS[Kind(started.kind)].describe}: {'running' if running else 'not running'}")
    rows = {"url": parse_addresses(started.url)[0], "process": started.pid, "log": _log(started), **started.details}
    for key, value in rows.items():
        output.show(f"  {key.replace('_', ' '):<12} {value}")
    if not running:
        raise Unavailable("the broker is not running", "start it again with 'mqtool broker up'")


@broker.command(epilog="mqtool broker logs  ·  mqtool broker logs -f")
def logs(
    name: Name = DEFAULT_NAME,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
) -> None:
    """Print the log of a broker that `broker up` started."""
    path = _log(_known(name))
    with path.open("rb") as log, stopping.calling(lambda: None):
        while stopping.requested() is None:
            data = log.read(65536)
            if data:
                output.write(data)
            elif follow:
                time.sleep(_LOG_PAUSE)
            else:
                return


@broker.command(epilog='mqtool broker env  ·  eval "$(mqtool broker env)"')
def env(name: Name = DEFAULT_NAME) -> None:
    """Print the line that tells a shell, and every program with a client, where the broker is."""
    output.show(f"export AMQP_URL={shlex.quote(_known(name).url)}")


@app.command(epilog="mqtool wait --timeout 30s")
@takes_groups
def wait(
    options: Broker,
    timeout: Annotated[
        float,
        typer.Option(parser=duration, metavar="DURATION", show_default="30s", help="Give up (exit 124) after it."),
    ] = "30s",  # type: ignore[assignment]
) -> None:
    """Wait until a connection to the broker can be made."""
    addresses = options.addresses()
    connect_within(timeout, options.connect).close()
    output.status(f"{addresses[0]} is ready")
