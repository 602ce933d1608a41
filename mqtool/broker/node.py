"""A private RabbitMQ node from an installed rabbitmq-server: as any user, in a directory of its own, on loopback only.

https://www.rabbitmq.com/docs/configure#supported-environment-variables
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

from mqtool.broker import ports, process, state
from mqtool.broker.state import Started, Wanted
from mqtool.errors import Unavailable, UsageError

KIND = "node"
#: Debian's rabbitmq-server on the PATH is a wrapper that insists on its own user and directory; the real one is here.
_SERVERS = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),)
_STOP_PATIENCE = 30.0
#: By default statistics are five seconds late and more: long for somebody who has just sent a message and looks for it.
#: And only detailed ones tell who publishes to which exchange.
_STATISTICS = "collect_statistics_interval = 1000\nmanagement.rates_mode = detailed\n" + "".join(
    f"management.sample_retention_policies.{section}.{kept} = {seconds}\n"
    for section in ("global", "basic", "detailed")
    for kept, seconds in (("minute", 1), ("hour", 60))
)
INSTALL = "install RabbitMQ (Debian and Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq)"


def find_server() -> Path | None:
    """The rabbitmq-server script, if RabbitMQ is installed."""
    for path in _SERVERS:
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


def start(wanted: Wanted) -> Started:
    """Start a node; it is not ready yet when this returns.

    Raises:
        Unavailable: there is no rabbitmq-server, or the port is taken.
        UsageError: it shall keep nothing, which RabbitMQ cannot.
    """
    server = find_server()
    if server is None:
        raise Unavailable("there is no rabbitmq-server on this machine", INSTALL)
    if wanted.in_memory:
        raise UsageError("a RabbitMQ node cannot keep everything in memory", "--in-memory goes with --kind embedded")
    name, port = wanted.name, ports.choose_amqp_port(wanted.port)
    if (before := state.load(name)) is not None and before.kind == KIND:
        _stop_port_mapper(int(before.details["epmd_port"]))  # the node was killed, which this has survived
    directory = state.directory(name)
    directory.mkdir(parents=True, exist_ok=True)
    data = wanted.data_dir or directory / "data"
    management_port, distribution_port, epmd_port = ports.free_port(), ports.free_port(), ports.free_port()
    env = environment(name, directory, data, distribution_port, epmd_port)
    (directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
    (directory / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = {ports.HOST}:{port}\n"
        f"management.tcp.ip = {ports.HOST}\n"
        f"management.tcp.port = {management_port}\n"
        "log.console = true\nlog.console.level = info\nlog.console.use_colors = off\nlog.file = false\n"
        f"{_STATISTICS}"
    )
    with (directory / "log").open("wb") as log:
        server_process = subprocess.Popen(
            [server],
            env=env,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    started = Started(
        name=name,
        kind=KIND,
        url=f"amqp://guest:guest@{ports.HOST}:{port}",
        pid=server_process.pid,
        directory=str(directory),
        details={"management": f"http://{ports.HOST}:{management_port}", "data": str(data), "epmd_port": epmd_port},
    )
    state.save(started)
    return started


def is_running(started: Started) -> bool:
    """Whether its process is there, and is ours."""
    return process.is_running(started.pid, "rabbitmq")


def stop(started: Started) -> None:
    """Stop the node as RabbitMQ wants to be stopped, and forget it; its data stay.

    Raises:
        MqtoolError: it does not stop.
    """
    process.terminate(started.pid, "rabbitmq", _STOP_PATIENCE)
    _stop_port_mapper(int(started.details["epmd_port"]))
    state.forget(started.name)


def _stop_port_mapper(port: int) -> None:
    """Erlang starts a daemon that maps node names to ports, and leaves it running; this one was only for our node."""
    epmd = shutil.which("epmd")
    deadline = time.monotonic() + _STOP_PATIENCE
    # It refuses while it believes that the node lives, which may be a moment longer than the node does.
    while epmd and not ports.is_free(port) and time.monotonic() < deadline:
        subprocess.run([epmd, "-port", str(port), "-kill"], capture_output=True, check=False)
        time.sleep(0.02)


def environment(
    name: str, directory: Path, data: Path, distribution_port: int | None, epmd_port: int
) -> dict[str, str]:
    """The environment of a node, and of rabbitmqctl and rabbitmq-plugins for it, which take no distribution port."""
    ours = {
        "HOME": str(directory),
        "RABBITMQ_NODENAME": f"mqtool-{name}@localhost",
        **({} if distribution_port is None else {"RABBITMQ_DIST_PORT": str(distribution_port)}),
        "RABBITMQ_MNESIA_BASE": str(data),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        # Without .conf in its name: 3.10's scripts add it, and later ones take either.
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
        "-rabbit quorum_tick_interval 1000",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": ports.HOST,
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
    return {**inherited, **ours}
