"""A private RabbitMQ node from an installed rabbitmq-server: as any user, in a directory of its own, on loopback only.

https://www.rabbitmq.com/docs/configure#supported-environment-variables
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from mqtool.broker import state
from mqtool.broker.state import Started
from mqtool.errors import MqtoolError, Unavailable

KIND = "node"
#: Debian's rabbitmq-server on the PATH is a wrapper that insists on its own user and directory; the real one is here.
_SERVERS = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),)
_STOP_PATIENCE = 30.0
_HOST = "127.0.0.1"


def find_server() -> Path | None:
    """The rabbitmq-server script, if RabbitMQ is installed."""
    for path in _SERVERS:
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


def start(name: str, port: int | None, data_dir: Path | None) -> Started:
    """Start a node; it is not ready yet when this returns.

    Args:
        port: for AMQP; None takes 5672 if that is free, else any free one.
        data_dir: where its messages are kept; None is a place beside its log.

    Raises:
        Unavailable: there is no rabbitmq-server, or the port is taken.
    """
    server = find_server()
    if server is None:
        raise Unavailable(
            "there is no rabbitmq-server on this machine",
            "install RabbitMQ (Debian and Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq)",
        )
    if port is not None and not _is_free(port):
        raise Unavailable(f"port {port} on {_HOST} is taken", "choose another with --port")
    port = port or (5672 if _is_free(5672) else free_port())
    if (before := state.load(name)) is not None:  # it was killed, which its port mapper has survived
        _stop_port_mapper(int(before.details["epmd_port"]))
    directory = state.directory(name)
    directory.mkdir(parents=True, exist_ok=True)
    data = data_dir or directory / "data"
    management_port, distribution_port, epmd_port = free_port(), free_port(), free_port()
    environment = _environment(name, directory, data, distribution_port, epmd_port)
    (directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
    (directory / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = {_HOST}:{port}\n"
        f"management.tcp.ip = {_HOST}\n"
        f"management.tcp.port = {management_port}\n"
        "log.console = true\nlog.console.level = info\nlog.console.use_colors = off\nlog.file = false\n"
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [server],
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    started = Started(
        name=name,
        kind=KIND,
        url=f"amqp://guest:guest@{_HOST}:{port}",
        pid=process.pid,
        directory=str(directory),
        details={"management": f"http://{_HOST}:{management_port}", "data": str(data), "epmd_port": epmd_port},
    )
    state.save(started)
    return started


def is_running(started: Started) -> bool:
    """Whether its process is there, and is ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(started.pid, os.WNOHANG)  # if it is our child, and has ended, it shall not stay a zombie
    try:
        os.kill(started.pid, 0)
        if not Path("/proc/self").exists():  # no Linux: the number has to do
            return True
        state_letter = Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{started.pid}/cmdline").read_bytes()
    except (ProcessLookupError, FileNotFoundError):
        return False
    # A process that has our number after a reboot is somebody else's; in the instant of its start it has no command.
    return state_letter != "Z" and (not command or b"rabbitmq" in command)


def stop(started: Started) -> None:
    """Stop the node as RabbitMQ wants to be stopped, and forget it; its data stay.

    Raises:
        MqtoolError: it does not stop.
    """
    if is_running(started):
        os.kill(started.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_PATIENCE
        while is_running(started):
            if time.monotonic() > deadline:
                raise MqtoolError(f"the node (process {started.pid}) does not stop", f"see {started.directory}/log")
            time.sleep(0.05)
    _stop_port_mapper(int(started.details["epmd_port"]))
    state.forget(started.name)


def _stop_port_mapper(port: int) -> None:
    """Erlang starts a daemon that maps node names to ports, and leaves it running; this one was only for our node."""
    epmd = shutil.which("epmd")
    if epmd:
        subprocess.run(
            [epmd, "-port", str(port), "-kill"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )


def _environment(name: str, directory: Path, data: Path, distribution_port: int, epmd_port: int) -> dict[str, str]:
    ours = {
        "HOME": str(directory),
        "RABBITMQ_NODENAME": f"mqtool-{name}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_MNESIA_BASE": str(data),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        # Without .conf in its name: 3.10's scripts add it, and later ones take either.
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": _HOST,
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
    return {**inherited, **ours}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port on loopback that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
