"""A private RabbitMQ node from an installed rabbitmq-server: as any user, in a directory of its own, on loopback only.

https://www.rabbitmq.com/docs/configure#supported-environment-variables
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mqtool.broker import log_files, ports, process, state
from mqtool.broker.state import Started, Wanted
from mqtool.errors import Unavailable, UsageError

KIND = "node"
#: Debian's rabbitmq-server on the PATH is a wrapper that insists on its own user and directory; the real one is here.
_SERVERS = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),)
STOP_PATIENCE = 30.0
#: By default statistics are five seconds late and more: long for somebody who has just sent a message and looks for it.
#: And only detailed ones tell who publishes to which exchange.
_STATISTICS = (
    "collect_statistics_interval = 1000",
    "management.rates_mode = detailed",
    *(
        f"management.sample_retention_policies.{section}.{kept} = {seconds}"
        for section in ("global", "basic", "detailed")
        for kept, seconds in (("minute", 1), ("hour", 60))
    ),
)
INSTALL = "install RabbitMQ (Debian and Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq)"


@dataclass(frozen=True, slots=True)
class Node:
    """A node to launch.

    Attributes:
        name: Erlang's, without the host.
        home: where its cookie is: nodes of one cluster share it.
        directory: its configuration and its log.
        data: its messages.
        epmd_port: of Erlang's daemon that maps node names to ports.
    """

    name: str
    home: str
    directory: str
    data: str
    port: int
    management_port: int
    distribution_port: int
    epmd_port: int

    @property
    def url(self) -> str:
        """Where it takes AMQP connections."""
        return f"amqp://guest:guest@{ports.HOST}:{self.port}"

    @property
    def management(self) -> str:
        """Where its management page is."""
        return f"http://{ports.HOST}:{self.management_port}"


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
        UsageError: nothing is to be kept, which RabbitMQ cannot do.
    """
    check(wanted)
    name, port = wanted.name, ports.choose_amqp_port(wanted.port)
    if (before := state.load(name)) is not None and before.kind == KIND:
        stop_port_mapper(int(before.details["epmd_port"]))  # the node was killed, which this has survived
    directory = state.directory(name)
    node = Node(
        name=f"mqtool-{name}",
        home=str(directory),
        directory=str(directory),
        data=str(wanted.data_dir or directory / "data"),
        port=port,
        management_port=ports.free_port(),
        distribution_port=ports.free_port(),
        epmd_port=ports.free_port(),
    )
    started = Started(
        name=name,
        kind=KIND,
        url=node.url,
        pid=launch(node),
        directory=str(directory),
        details={"management": node.management, "data": node.data, "epmd_port": node.epmd_port, "node": asdict(node)},
    )
    state.save(started)
    return started


def nodes_of(started: Started) -> list[Node]:
    """The one node, or the members of a cluster, as they were launched."""
    members = started.details.get("members", [started.details])
    return [Node(**member["node"]) for member in members]


def check(wanted: Wanted) -> None:
    """Whether RabbitMQ can be started so. Raises as start() does."""
    if find_server() is None:
        raise Unavailable("rabbitmq-server is not installed", INSTALL)
    if wanted.in_memory:
        raise UsageError("a RabbitMQ node cannot keep everything in memory", "use --kind embedded with --in-memory")
    if wanted.image:
        raise UsageError("a private node uses the installed RabbitMQ", "use --kind docker with --image")


def launch(node: Node, settings: Sequence[str] = ()) -> int:
    """Start a node's process; return its id.

    Args:
        settings: lines of rabbitmq.conf besides the usual ones.
    """
    server, directory = find_server(), Path(node.directory)
    assert server is not None
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
    usual = (
        f"listeners.tcp.1 = {ports.HOST}:{node.port}",
        f"management.tcp.ip = {ports.HOST}",
        f"management.tcp.port = {node.management_port}",
        "log.console = true\nlog.console.level = info\nlog.console.use_colors = off\nlog.file = false",
        *_STATISTICS,
    )
    (directory / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in (*usual, *settings)))
    with (directory / "log").open("wb") as log:
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


def running(started: Started) -> int:
    """How many of its nodes run: one or none."""
    return int(process.is_running(started.pid, "rabbitmq"))


def stop(started: Started) -> None:
    """Stop the node as RabbitMQ wants to be stopped, and forget it; its data stay.

    Raises:
        MqtoolError: it does not stop.
    """
    process.terminate(started.pid, "rabbitmq", STOP_PATIENCE)
    stop_port_mapper(int(started.details["epmd_port"]))
    state.forget(started.name)


def log(started: Started, follow: bool) -> Iterator[bytes]:
    """What it has written; see log_files.read()."""
    return log_files.read({"": Path(started.directory) / "log"}, follow)


def stop_port_mapper(port: int) -> None:
    """Erlang starts a daemon that maps node names to ports, and leaves it running; this one was only for our node."""
    epmd = shutil.which("epmd")
    deadline = time.monotonic() + STOP_PATIENCE
    # It refuses while it believes that the node lives, which may be a moment longer than the node does.
    while epmd and not ports.is_free(port) and time.monotonic() < deadline:
        subprocess.run([epmd, "-port", str(port), "-kill"], capture_output=True, check=False)
        time.sleep(0.02)


def environment(node: Node, *, for_tools: bool = False) -> dict[str, str]:
    """The environment of a node, or of rabbitmqctl and rabbitmq-plugins for it, which take no distribution port."""
    directory = Path(node.directory)
    ours = {
        "HOME": node.home,
        "RABBITMQ_NODENAME": f"{node.name}@localhost",
        **({} if for_tools else {"RABBITMQ_DIST_PORT": str(node.distribution_port)}),
        "RABBITMQ_MNESIA_BASE": node.data,
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        # Without .conf in its name: 3.10's scripts add it, and later ones take either.
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
        "-rabbit quorum_tick_interval 1000",
        "ERL_EPMD_PORT": str(node.epmd_port),
        "ERL_EPMD_ADDRESS": ports.HOST,
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
    return {**inherited, **ours}
