"""mqtool broker down, status, ls, rm, logs, env; wait; plugin; fault. See broker_up for broker up and restart."""

import contextlib
import shlex
import time
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from mqtool.amqp import parse_addresses
from mqtool.broker import background, rabbitmq_plugins, readiness, state
from mqtool.broker.choice import starter_of
from mqtool.broker.readiness import connect_within
from mqtool.broker.state import DEFAULT_NAME, Started
from mqtool.cli import stopping
from mqtool.cli.access import MANAGEMENT_VARIABLE
from mqtool.cli.command_line import Argument, Option
from mqtool.cli.commands.broker_up import Name, app, broker, known, told
from mqtool.cli.display import layout, output
from mqtool.cli.options import DURATION, Broker, ManagedBroker, Yes, ask
from mqtool.cli.options.broker_options import WhichBroker
from mqtool.errors import NotFound, Unavailable, UsageError
from mqtool.management import Management, path
from mqtool.spelling import counted, pasteable

_LOG_PAUSE = 0.2


@broker.command("mqtool broker down", "mqtool broker down --name second")
def down(name: Name = DEFAULT_NAME) -> None:
    """Stop the broker that 'broker up' started; messages are kept."""
    with state.locked(name) if state.directory(name).exists() else contextlib.nullcontext():
        started = state.load(name)
        if started is None:
            output.status(f"nothing to stop: no broker named {name!r} was started here")
            return
        starter_of(started).stop(started)
    output.status(f"stopped {starter_of(started).describe}")


@broker.command("mqtool broker status")
def status(which: WhichBroker, name: Name = DEFAULT_NAME) -> None:
    """Show whether the broker is running (exit 0) or not (exit 69).

    Also shows which broker the other commands use, and why.
    """
    choice = which.choice()
    if (started := state.load(name)) is None:
        output.show(f"commands use {told(choice)}")
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
    output.show(f"  commands use {told(choice)}")
    if running < started.nodes:
        raise Unavailable(f"the broker is {says}", "start it again with 'mqtool broker up'")


def _state_of(started: Started) -> str:
    running = starter_of(started).running(started)
    some = f"{running} of {started.nodes} nodes running" if running else "not running"
    return "running" if running == started.nodes else some


@broker.command("mqtool broker ls", "mqtool broker ls --json")
def ls(as_json: Annotated[bool, Option("--json", help="Print one JSON object per line")] = False) -> None:
    """List the brokers that 'broker up' started, running or stopped."""
    rows = []
    for name in state.names():
        found = (started := state.load(name)) or state.load_stopped(name)
        assert found is not None
        urls = ", ".join(map(str, parse_addresses(found.url)))
        says = _state_of(started) if started else "stopped"
        rows.append({"name": name, "state": says, "kind": found.kind, "url": urls, "data": found.details.get("data")})
    if not layout.show_rows(rows, ["name", "state", "kind", "url", *["data"] * as_json], as_json=as_json):
        output.status("no brokers: 'mqtool broker up' starts one")


@broker.command("mqtool broker rm --name second", "mqtool broker rm --name second --purge --yes")
def rm(
    yes: Yes = False, name: Name = DEFAULT_NAME, purge: Annotated[bool, Option(help="Remove its messages too")] = False
) -> None:
    """Remove a stopped broker; --purge removes its messages too."""
    _stopped(name)
    if purge:
        ask(f"remove broker {name!r} with all its messages", yes=yes)
    with state.locked(name):
        found = _stopped(name)
        if purge:
            starter_of(found).discard(found)
            if (data := Path(str(found.details.get("data")))).exists():
                output.notice(f"{data} was not removed, because it is outside mqtool's own directory")
        else:
            state.remove_but_data(name)
    output.status(f"removed {name}")


def _stopped(name: str) -> Started:
    found = state.load(name) or state.load_stopped(name) or known(name)
    if starter_of(found).running(found):
        raise UsageError(
            f"the broker named {name!r} is running", f"to stop it: {pasteable('broker down --name=', name)}"
        )
    return found


@broker.command("mqtool broker logs", "mqtool broker logs -f")
def logs(
    name: Name = DEFAULT_NAME, follow: Annotated[bool, Option("-f", help="Keep printing as the log grows")] = False
) -> None:
    """Print the broker's log, which 'broker down' keeps."""
    if state.load(name) is None and (kept := background.kept_logs(state.directory(name))):
        chunks = background.read_logs(kept, follow)
    else:
        started = known(name)
        chunks = starter_of(started).log(started, follow)
    with stopping.calling(lambda: None):
        for data in chunks:
            output.show_bytes(data)
            if stopping.requested() is not None:
                return
            if not data and follow:
                time.sleep(_LOG_PAUSE)


@broker.command("mqtool broker env", 'eval "$(mqtool broker env)"')
def env(
    which: WhichBroker,
    name: Name = DEFAULT_NAME,
    for_remote: Annotated[bool, Option("--remote", help="For use on another machine (after 'up --listen')")] = False,
) -> None:
    """Print shell variables that tell programs where the broker is.

    With -C NAME, the variables are those for the broker of that context.
    """
    if which.call.typed & {"url", "context"}:
        choice = which.choice()
        _export(choice.url)
        if choice.context is not None and choice.context.management is not None:
            output.show(f"export {MANAGEMENT_VARIABLE}={shlex.quote(choice.context.management)}")
        return
    started = known(name)
    url = readiness.remote_url(started) if for_remote else started.url
    if url is None:
        raise UsageError(
            f"the broker named {name!r} does not accept connections from other machines",
            "start it with --listen ADDRESS",
        )
    _export(url)
    if streams := started.details.get("streams"):
        output.show(f"export MQTOOL_STREAM_PORT={urlsplit(streams).port}")


def _export(url: str) -> None:
    # Other clients accept only one URL.
    output.show(f"export AMQP_URL={shlex.quote(url.partition(',')[0])}")
    if "," in url:
        output.show(f"export MQTOOL_URL={shlex.quote(url)}")


@app.command("mqtool wait --timeout 30s")
def wait(
    options: Broker, timeout: Annotated[float, Option(help="Total time limit (exit 124)", **DURATION)] = 30.0
) -> None:
    """Wait until the broker accepts connections."""
    access = options.access()
    connect_within(timeout, access.connect).close()
    output.status(f"{access.address} is ready")


plugin_app = app.group("plugin", "Enable and disable plugins of your broker.")

#: RabbitMQ plugins that users often enable, for shell completion.
_PLUGINS = [
    *("rabbitmq_auth_backend_ldap", "rabbitmq_consistent_hash_exchange", "rabbitmq_delayed_message_exchange"),
    *("rabbitmq_federation", "rabbitmq_federation_management", "rabbitmq_management", "rabbitmq_mqtt"),
    *("rabbitmq_prometheus", "rabbitmq_sharding", "rabbitmq_shovel", "rabbitmq_shovel_management", "rabbitmq_stomp"),
    *("rabbitmq_stream", "rabbitmq_stream_management", "rabbitmq_tracing", "rabbitmq_web_mqtt", "rabbitmq_web_stomp"),
]
Plugins = Annotated[list[str], Argument(metavar="PLUGIN...", complete=lambda *_: _PLUGINS)]
_FAULTS = [
    *("cut-connections", "refuse-connections", "go-silent", "slow-down", "block-publishers", "close-connections"),
    *("close-channels", "restart", "nack-publishes", "return-unroutable", "delay-confirms", "lose-acks"),
    *("cancel-consumers", "ls", "clear"),
]


@plugin_app.command("mqtool plugin enable rabbitmq_shovel")
def enable(plugin: Plugins, name: Name = DEFAULT_NAME) -> None:
    """Enable plugins and their dependencies, now and at every start."""
    _change(_started(name), "enable", plugin)


@plugin_app.command("mqtool plugin disable rabbitmq_shovel --yes")
def disable(plugin: Plugins, yes: Yes = False, name: Name = DEFAULT_NAME) -> None:
    """Disable plugins and the plugins that depend on them."""
    started = _started(name)
    ask(f"disable {', '.join(plugin)}", yes=yes)
    _change(started, "disable", plugin)


def _change(started: Started, what: Literal["enable", "disable"], names: list[str]) -> None:
    rabbitmq_plugins.change(started, what, names)
    is_shown = rabbitmq_plugins.wait_until_shown(started, what, names)
    output.status(f"{what}d {', '.join(names)}{'' if is_shown else '; the management API does not show it yet'}")


def _started(name: str) -> Started:
    started = state.load(name)
    if started is None:
        raise Unavailable(
            f"no broker named {name!r} was started here, and mqtool only changes plugins of brokers that it started",
            "run on the broker's machine: rabbitmq-plugins enable PLUGIN",
        )
    if not starter_of(started).is_running(started):
        raise Unavailable(f"the broker named {name!r} is not running", "start it again with 'mqtool broker up'")
    return started


@broker.command(
    "mqtool broker fault cut-connections name='orders-*'",
    "mqtool broker fault go-silent seconds=30s",
    "mqtool broker fault ls",
    "mqtool broker fault clear",
)
def fault(
    name: Annotated[
        str, Argument(metavar="FAULT", help="Fault to start, or ls, or clear", complete=lambda *_: _FAULTS)
    ],
    broker: ManagedBroker,
    yes: Yes = False,
    arguments: Annotated[list[str] | None, Argument(help="NAME=VALUE; for clear, the id of a fault")] = None,
    as_json: Annotated[bool, Option("--json", help="With ls: print one JSON object per line")] = False,
) -> None:
    """Inject a fault into an embedded broker.

    Connections: cut-connections [name= reset=], refuse-connections [seconds=], go-silent [seconds=],
    slow-down [seconds=], block-publishers [reason= seconds=], close-connections [code= text= name=],
    close-channels [code= text= name=], restart [seconds= keep_transient=].

    Messages: nack-publishes queue= [count=], return-unroutable [count=], delay-confirms [seconds=],
    lose-acks [count= queue=], cancel-consumers queue=.

    'ls' lists the active faults. A fault ends when its time or count is up, or when 'clear' ends it.
    """
    access = broker.access()
    api = access.management()
    words = arguments or []
    if name != "ls":
        ask(f"run 'fault {name}'", access, yes=yes, is_safe=True)
    active = _active(api)
    if name == "ls":
        rows = [{**each, "arguments": _told(each["arguments"])} if not as_json else each for each in active]
        if not layout.show_rows(rows, ("id", "fault", "arguments"), as_json=as_json):
            output.status("no active faults")
    elif name == "clear":
        for each in words or [""]:
            api.delete(path("mqtool", "faults", each) if each else "mqtool/faults")
        output.status(f"ended {counted(len(words or active), 'fault')}")
    else:
        begun = api.post("mqtool/faults", {**_arguments(words), "fault": name.replace("-", "_")})
        if begun["id"] is not None:
            output.status(f"{name} is active; to end it: {pasteable('broker fault clear', str(begun['id']))}")
        else:
            output.status(f"{name}: {begun['met']} affected")


def _active(api: Management) -> Any:
    try:
        return api.get("mqtool/faults")
    except NotFound as error:
        raise UsageError(
            "only the embedded broker supports faults", "start one with 'mqtool broker up --kind embedded'"
        ) from error


def _arguments(words: list[str]) -> dict[str, str]:
    given = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not an argument of a fault", "use NAME=VALUE, such as queue=jobs")
        given[name.replace("-", "_")] = value
    return given


def _told(arguments: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in arguments.items() if value is not None)
