"""mqtool broker down, status, ls, rm, logs, env; see broker_up.py and broker_fault.py for the others."""

import contextlib
import os
import shlex
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from mqtool.amqp import Connection, TlsFiles, parse_addresses
from mqtool.broker import background, ports, readiness, state
from mqtool.broker.choice import starter_of
from mqtool.broker.state import DEFAULT_NAME, Started
from mqtool.cli import stopping
from mqtool.cli.broker_access import chosen
from mqtool.cli.chosen_broker import choose, resolve_addresses
from mqtool.cli.command_line import command
from mqtool.cli.commands import broker_fault
from mqtool.cli.commands.broker_up import Name, app, known, say_if_commands_use_another, up_again
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import MANAGEMENT_VARIABLE, STREAM_PORT_VARIABLE, Effect
from mqtool.cli.display import layout, output
from mqtool.cli.display.progress import working
from mqtool.cli.options import Yes
from mqtool.cli.options.broker_options import WhichBroker
from mqtool.errors import MqtoolError, Unavailable, UsageError
from mqtool.spelling import pasteable

app.add_typer(broker_fault.part)

_LOG_PAUSE = 0.2


@command(app, "mqtool broker down", "mqtool broker down --name second", effect=Effect.OWN)
def down(name: Name = DEFAULT_NAME) -> None:
    """Stop the broker that 'broker up' started; messages are kept."""
    with state.locked(name) if state.directory(name).exists() else contextlib.nullcontext():
        try:
            started = known(name)
        except Unavailable as why:
            output.status(f"nothing to stop: {why}")
            return
        starter = starter_of(started)
        was_running = starter.running(started) > 0
        with working(f"stopping {starter.describe}"):
            starter.stop(started)
    output.status(f"stopped {starter.describe}" if was_running else f"nothing to stop: {starter.describe} had ended")
    choice = choose()
    is_default = not (choice.is_named or choice.is_started)
    nothing = ", where nothing listens" if is_default and ports.is_free(choice.addresses()[0].port) else ""
    output.notice(f"commands now use {choice.description()}{nothing}")


@command(app, "mqtool broker status", effect=Effect.READS)
def status(which: WhichBroker, name: Name = DEFAULT_NAME) -> None:
    """Show whether the broker is running (exit 0) or not (exit 69).

    Also shows which broker the other commands use, and why. If no broker was started with 'broker up', the exit code
    says whether the broker that the other commands use is running. With --url or --context, it is about that broker.
    """
    choice = chosen(which)
    by_name = "name" in which.call.typed
    if (started := state.load(name)) is None or (choice.is_typed and not by_name):
        output.show(f"commands use {choice.description()}")
        if not by_name and (choice.is_named or state.load_stopped(name) is None):
            Connection(resolve_addresses(choice), tls=choice.tls(TlsFiles())).close()
            output.show("  running")
            return
        started = known(name)
    starter = starter_of(started)
    running, says = starter.running(started), _state_of(started)
    output.show(f"{starter.describe}: {says}")
    rows: dict[str, Any] = {"url": ", ".join(map(str, parse_addresses(started.url)))}
    if started.pid:
        rows |= {"process": started.pid, "log": f"{started.directory}/log"}
    for key, value in {**rows, **started.details}.items():
        if not isinstance(value, list | dict):
            output.show(f"  {key.replace('_', ' '):<12} {value}")
    output.show(f"  commands use {choice.description()}")
    if running < started.nodes:
        raise Unavailable(f"the broker is {says}", f"start it again: {up_again(started)}")


def _state_of(started: Started) -> str:
    running = starter_of(started).running(started)
    some = f"{running} of {started.nodes} nodes running" if running else "not running"
    return "running" if running == started.nodes else some


@command(app, "mqtool broker ls", "mqtool broker ls --json", effect=Effect.OWN)
def ls(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line")] = False) -> None:
    """List running and stopped brokers that 'broker up' started."""
    rows = []
    for name in state.names():
        started, found = state.load(name), state.load_last(name)
        assert found is not None
        urls = ", ".join(map(str, parse_addresses(found.url)))
        says = _state_of(started) if started else "stopped"
        rows.append({"name": name, "state": says, "kind": found.kind, "url": urls, "data": found.details.get("data")})
    if not layout.show_rows(rows, ["name", "state", "kind", "url", *["data"] * as_json], as_json=as_json):
        output.status("no brokers: 'mqtool broker up' starts one")


@command(app, "mqtool broker rm --name second", "mqtool broker rm --name second --purge --yes", effect=Effect.OWN)
def rm(
    yes: Yes = False,
    name: Name = DEFAULT_NAME,
    purge: Annotated[bool, typer.Option("--purge", help="Also remove the broker's messages")] = False,
) -> None:
    """Remove a stopped broker; --purge also removes its messages."""
    _stopped(name)
    if purge:
        ask(f"remove broker {name!r} with all its messages", yes=yes)
    with state.locked(name):
        found = _stopped(name)
        if state.load(name) is not None:
            starter_of(found).clear_up(found)
        if purge:
            _check_unused(found)
            starter_of(found).discard(found)
            if (data := Path(str(found.details.get("data")))).exists():
                output.notice(f"{data} was not removed, because it is outside mqtool's own directory")
        else:
            state.remove_but_data(name)
            _say_kept(found)
    output.status(f"removed {name}")
    say_if_commands_use_another(found)


def _say_kept(removed: Started) -> None:
    """Say where the messages of a removed broker are, how to use them again, and how to delete them."""
    if (to_delete := starter_of(removed).to_delete_messages(removed)) is not None:
        data, again = Path(str(removed.details["data"])), up_again(removed)
        if data.is_absolute() and not data.is_relative_to(removed.directory):
            again += f" --data-dir={shlex.quote(str(data))}"
        output.notice(f"its messages are kept in {data}; to use them again: {again}; to delete them: {to_delete}")


def _check_unused(removed: Started) -> None:
    """Raise UsageError if another broker, running or stopped, keeps its messages in the directory of this one."""
    for name in state.names():
        other = None
        with contextlib.suppress(MqtoolError):  # discard() refuses if it is running here
            other = state.load_last(name)
        data = Path(str(other.details.get("data"))) if other else Path()
        if name != removed.name and data.is_absolute() and data.is_relative_to(Path(removed.directory).resolve()):
            raise UsageError(
                f"the broker named {name!r} keeps its messages in {data}",
                f"remove that broker first: {pasteable('broker rm --name=', name)}",
            )


def _stopped(name: str) -> Started:
    found = state.load_last(name) or known(name, "'mqtool broker ls' lists them")
    if starter_of(found).running(found):
        raise UsageError(
            f"the broker named {name!r} is running", f"to stop it: {pasteable('broker down --name=', name)}"
        )
    return found


@command(app, "mqtool broker logs", "mqtool broker logs -f", effect=Effect.OWN)
def logs(
    name: Name = DEFAULT_NAME,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing as the log grows")] = False,
) -> None:
    """Print the broker's log, which 'broker down' keeps."""
    if state.load(name) is None and (kept := background.kept_logs(state.directory(name))):
        started, chunks = state.load_last(name), background.read_logs(kept, follow)
    else:
        started = known(name)
        chunks = starter_of(started).log(started, follow)
    if started is not None:
        say_if_commands_use_another(started)
    with stopping.calling(lambda: None):
        for data in chunks:
            output.show_bytes(data)
            if stopping.requested() is not None:
                return
            if not data and follow:
                time.sleep(_LOG_PAUSE)


@command(app, "mqtool broker env", 'eval "$(mqtool broker env)"', effect=Effect.READS)
def env(
    which: WhichBroker,
    name: Name = DEFAULT_NAME,
    for_remote: Annotated[
        bool, typer.Option("--remote", help="Print variables for other machines; needs broker up --listen")
    ] = False,
) -> None:
    """Print shell variables that tell programs where the broker is.

    With -C NAME, the variables are for the broker of that context.
    """
    if which.call.typed & {"url", "context"}:
        choice = chosen(which)
        _export(choice.url, management=choice.context and choice.context.management)
        return
    started = known(name)
    url = readiness.remote_url(started) if for_remote else started.url
    if url is None:
        raise UsageError(
            f"the broker named {name!r} does not accept connections from other machines",
            "start it with --listen ADDRESS",
        )
    streams, management = started.details.get("streams"), started.details.get("management")
    usual = ports.usual_management(None, parse_addresses(url)[0].port)
    if for_remote or urlsplit(management or "").port in usual:  # out of reach, or found without it
        management = None
    _export(url, management=management, stream_port=urlsplit(streams).port if streams else None)


def _export(urls: str, *, management: str | None = None, stream_port: int | None = None) -> None:
    # MQTOOL_URL too, which would otherwise name another broker. Other clients read AMQP_URL, and accept only one URL.
    values: dict[str, str | int | None] = {"AMQP_URL": urls.partition(",")[0], "MQTOOL_URL": urls}
    values |= {MANAGEMENT_VARIABLE: management, STREAM_PORT_VARIABLE: stream_port}
    for variable, value in values.items():
        if value is not None:
            output.show(f"export {variable}={shlex.quote(str(value))}")
        elif variable in os.environ:
            output.show(f"unset {variable}")
