"""A private RabbitMQ node: the installed rabbitmq-server, run by any user, in its own directory, on loopback.

https://www.rabbitmq.com/docs/configure#supported-environment-variables
"""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mqtool.broker import log_files, ports, process

#: On Debian, the rabbitmq-server on the PATH is a wrapper that insists on its own user; this is the real one.
_SERVERS = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),)
#: Part of the command lines of the script and of the node that it becomes.
_COMMAND = "rabbit"
_STOP_PATIENCE = 30.0
_STREAMS = "rabbitmq_stream"
#: By default statistics lag by five seconds or more, and only detailed rates show who publishes to which exchange.
_STATISTICS = (
    "collect_statistics_interval = 1000",
    "management.rates_mode = detailed",
    *(
        f"management.sample_retention_policies.{section}.{kept} = {seconds}"
        for section in ("global", "basic", "detailed")
        for kept, seconds in (("minute", 1), ("hour", 60))
    ),
)
#: Has the script become the node instead of waiting for it, so that nobody can kill -9 the one and leave the other.
_WITHOUT_SHELL = {"RUNNING_UNDER_SYSTEMD": "true"}
INSTALL = "install RabbitMQ (Debian and Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq)"


@dataclass(frozen=True, slots=True)
class Node:
    """A node to launch.

    Attributes:
        name: Erlang node name, without the host.
        home: directory of the Erlang cookie, which the nodes of a cluster share.
        directory: for its configuration and log.
        data: directory for its messages.
        epmd_port: port of epmd, Erlang's daemon that maps node names to ports.
        listen: one more address for AMQP connections and streams; all else is for this machine only.
        stream_port: for the stream protocol; None for none.
    """

    name: str
    home: str
    directory: str
    data: str
    port: int
    management_port: int
    distribution_port: int
    epmd_port: int
    listen: str | None = None
    stream_port: int | None = None

    @property
    def url(self) -> str:
        """URL for AMQP connections."""
        return f"amqp://guest:guest@{ports.HOST}:{self.port}"

    @property
    def management(self) -> str:
        """URL of its management page."""
        return f"http://{ports.HOST}:{self.management_port}"


def find_server() -> Path | None:
    """The rabbitmq-server script, if RabbitMQ is installed."""
    for path in _SERVERS:
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


def launch(node: Node, settings: Sequence[str] = ()) -> int:
    """Start a node's process; return its id.

    Args:
        settings: more lines for rabbitmq.conf.
    """
    server, directory = find_server(), Path(node.directory)
    assert server is not None
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    plugins = _enable_plugins(directory / "enabled_plugins", node)
    usual = (
        *(f"listeners.tcp.{number} = {host}:{node.port}" for number, host in enumerate(ports.addresses(node.listen))),
        f"management.tcp.ip = {ports.HOST}",
        f"management.tcp.port = {node.management_port}",
        "log.console = true\nlog.console.level = info\nlog.console.use_colors = off\nlog.file = false",
        *_STATISTICS,
        *(_stream_settings(node) if _STREAMS in plugins else ()),
    )
    (directory / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in (*usual, *settings)))
    with log_files.go_on(directory / "log") as log:
        server_process = subprocess.Popen(
            [server],
            env=environment(node),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return server_process.pid


def _enable_plugins(file: Path, node: Node) -> str:
    """Enable the plugins that a node needs, besides those that were enabled since; return all of them."""
    plugins = file.read_text() if file.exists() else "[rabbitmq_management].\n"
    if node.stream_port is not None and _STREAMS not in plugins:
        plugins = plugins.replace("[", f"[{_STREAMS},", 1)
    file.write_text(plugins)
    return plugins


def _stream_settings(node: Node) -> list[str]:
    """Settings for the stream port; clients connect to what it says its address is.

    Without a wanted port it is the usual one, since the plugin would listen on all addresses by itself.
    """
    port = node.stream_port or ports.STREAMS
    # Other machines cannot come to loopback, but this one can come to what they come to.
    host = node.listen if node.listen not in (None, ports.EVERY) else ports.HOST
    addresses = enumerate(ports.addresses(node.listen))
    return [
        *(f"stream.listeners.tcp.{number} = {host}:{port}" for number, host in addresses),
        f"stream.advertised_host = {host}",
        f"stream.advertised_port = {port}",
    ]


def runs(pid: int) -> bool:
    """Whether a node's process runs."""
    return process.is_running(pid, _COMMAND)


def terminate(pids: Sequence[int]) -> None:
    """Stop nodes, all at once. Raises as process.terminate() does."""
    process.terminate(pids, _COMMAND, _STOP_PATIENCE)


def stop_epmd(port: int) -> None:
    """Stop epmd, which Erlang starts with a node and leaves running; the one at this port served our nodes alone."""
    epmd = shutil.which("epmd")
    deadline = time.monotonic() + _STOP_PATIENCE
    # epmd refuses while it believes that a node lives, which may be a moment longer than the node does.
    while epmd and not ports.is_free(port) and time.monotonic() < deadline:
        subprocess.run([epmd, "-port", str(port), "-kill"], capture_output=True, check=False)
        time.sleep(0.02)


def environment(node: Node, *, for_tools: bool = False) -> dict[str, str]:
    """The environment for a node; or for its rabbitmqctl and rabbitmq-plugins, which need a port of their own."""
    directory = Path(node.directory)
    ours = {
        "HOME": node.home,
        "RABBITMQ_NODENAME": f"{node.name}@localhost",
        **({} if for_tools else {"RABBITMQ_DIST_PORT": str(node.distribution_port), **_WITHOUT_SHELL}),
        "RABBITMQ_MNESIA_BASE": node.data,
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        # RabbitMQ 3.10 adds .conf itself; later versions accept either.
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
        "-rabbit quorum_tick_interval 1000",
        "ERL_EPMD_PORT": str(node.epmd_port),
        "ERL_EPMD_ADDRESS": ports.HOST,
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
    return {**inherited, **ours}
