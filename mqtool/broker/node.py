"""Runs private RabbitMQ nodes: the installed rabbitmq-server, without root, in its own directory, on loopback.

A broker is one node or a cluster of three. https://www.rabbitmq.com/docs/configure#supported-environment-variables
and https://www.rabbitmq.com/docs/cluster-formation
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mqtool.broker import background, ports, state
from mqtool.broker.background import Process
from mqtool.broker.starter import Starter
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, Unavailable, UsageError

#: Tried before the PATH: on Debian, the rabbitmq-server there is a wrapper that requires root or the user rabbitmq.
_SERVERS = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"),)
_STOP_PATIENCE = 30.0
#: Erlang loses a SIGTERM that arrives in its first half second, before it handles signals. So it is sent each second.
_SIGTERM_AGAIN = 1.0
#: Waits for a line on standard input before it becomes the node. Ends if standard input is closed instead.
_GATE = 'read -r recorded && exec "$0" </dev/null'
_FIRST_PATIENCE = 60.0
#: The request that makes epmd end, if no node is registered, and the seconds to wait for its response, OK or NO.
_KILL_EPMD, _EPMD_PATIENCE = b"\x00\x01k", 1.0
_STREAMS = "rabbitmq_stream"
#: By default, statistics lag by five seconds. Only detailed rates show which channel publishes to an exchange.
_STATISTICS = (
    "collect_statistics_interval = 1000",
    "management.rates_mode = detailed",
    *(
        f"management.sample_retention_policies.{section}.{kept} = {seconds}"
        for section in ("global", "basic", "detailed")
        for kept, seconds in (("minute", 1), ("hour", 60))
    ),
)
#: Makes the script exec the node instead of waiting for it: with a single process, kill -9 leaves nothing behind.
_WITHOUT_SHELL = {"RUNNING_UNDER_SYSTEMD": "true"}
INSTALL = "install RabbitMQ (Debian and Ubuntu: apt-get install rabbitmq-server; macOS: brew install rabbitmq)"


@dataclass(frozen=True, slots=True)
class Node:
    """The settings of one node.

    Attributes:
        name: the Erlang node name, without the host.
        home: the directory of the Erlang cookie, which the nodes of a cluster share.
        directory: the directory for the node's configuration and log.
        data: the directory for the node's messages and definitions.
        epmd_port: the port of epmd, Erlang's daemon that maps node names to ports.
        listen: an additional address for AMQP and streams; everything else listens on loopback only.
        stream_port: the port of the stream protocol; None for none.
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


def find_server() -> Path | None:
    """Return the path of the rabbitmq-server script; None if RabbitMQ is not installed."""
    for path in _SERVERS:
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


def _has_streams() -> bool:
    """True if the installed RabbitMQ includes the stream plugin, as versions since 3.9 do."""
    server = find_server()
    plugins = server and server.resolve().parent.parent / "plugins"
    return not plugins or not plugins.is_dir() or any(plugins.glob(f"{_STREAMS}-*"))


def launch(node: Node, settings: Sequence[str], record: Callable[[Process], None]) -> None:
    """Start a node.

    Args:
        settings: additional lines for rabbitmq.conf.
        record: called with the node's process. The node starts only after it returns, so that no node can run
            unrecorded, even if this process is killed.
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
    with background.append_to_log(directory / "log") as log:
        gate = subprocess.Popen(
            ["sh", "-c", _GATE, server],
            env=environment(node),
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    assert gate.stdin is not None
    with gate.stdin:
        record(background.started(gate.pid))  # this process becomes the node
        gate.stdin.write(b"recorded\n")


def _enable_plugins(file: Path, node: Node) -> str:
    """Add the plugins that a node needs to its enabled_plugins file, and return the file's new contents."""
    plugins = file.read_text() if file.exists() else "[rabbitmq_management].\n"
    if node.stream_port is not None and _STREAMS not in plugins:
        plugins = plugins.replace("[", f"[{_STREAMS},", 1)
    file.write_text(plugins)
    return plugins


def _stream_settings(node: Node) -> list[str]:
    """Return lines for rabbitmq.conf that set the stream port and the address that the node advertises to clients.

    A port is set even if `stream_port` is None: without one, the stream plugin would listen on all addresses.
    """
    port = node.stream_port or ports.STREAMS
    # Other machines cannot reach loopback, but this machine can reach its external address.
    host = node.listen if node.listen not in (None, ports.EVERY) else ports.HOST
    addresses = enumerate(ports.addresses(node.listen))
    return [
        *(f"stream.listeners.tcp.{number} = {host}:{port}" for number, host in addresses),
        f"stream.advertised_host = {host}",
        f"stream.advertised_port = {port}",
    ]


def stop_epmd(port: int) -> None:
    """Stop the epmd daemon on a port. Erlang starts it with the first node and leaves it running.

    Only nodes of one broker use this port. The request is epmd's own protocol, because the program `epmd` may not be on
    the PATH: https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html
    """
    deadline = time.monotonic() + _STOP_PATIENCE
    while not ports.is_free(port) and time.monotonic() < deadline:
        said = b""
        with suppress(OSError), socket.create_connection((ports.HOST, port), _EPMD_PATIENCE) as epmd:
            epmd.sendall(_KILL_EPMD)
            said = epmd.recv(2)
        if said not in (b"", b"OK", b"NO"):  # another program uses the port now
            return
        time.sleep(0.02)  # epmd refuses until it has noticed that the node has ended


def environment(node: Node, *, for_tools: bool = False) -> dict[str, str]:
    """Return the environment variables of a node or, with `for_tools`, those of rabbitmqctl and rabbitmq-plugins."""
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


class PrivateNodes(Starter):
    """Starts private nodes.

    Args:
        describe: see Starter.
        settings: additional lines for rabbitmq.conf, which override the usual ones.
    """

    kind = "node"

    def __init__(self, describe: str, settings: Sequence[str] = ()) -> None:
        super().__init__(describe)
        self._settings = settings

    def is_available(self) -> bool:
        return find_server() is not None

    def start(self, wanted: Wanted) -> Started:
        if find_server() is None:
            raise Unavailable("rabbitmq-server is not installed", INSTALL)
        if wanted.in_memory:
            raise UsageError("a RabbitMQ node cannot keep everything in memory", "use --kind embedded with --in-memory")
        if wanted.image:
            raise UsageError("a private node uses the installed RabbitMQ", "use --kind docker with --image")
        if wanted.cluster and wanted.listen:
            raise UsageError("--listen does not work with --cluster", "start one node for other machines")
        directory = state.made_directory(wanted.name)
        before = state.load_last(wanted.name)
        has_streams = not wanted.cluster and (wanted.stream_port is not None or _has_streams())
        streams = ports.stream_url(wanted.stream_port, before, wanted.listen) if has_streams else {}
        nodes = _nodes(wanted, directory, urlsplit(streams.get("streams", "")).port, before)
        started = Started(
            name=wanted.name,
            kind=self.kind,
            url=",".join(f"amqp://guest:guest@{ports.HOST}:{each.port}" for each in nodes),
            pid=0,
            directory=str(directory),
            details={
                "management": f"http://{ports.HOST}:{nodes[0].management_port}",
                "data": str(Path(nodes[0].data).parent) if wanted.cluster else nodes[0].data,
                "epmd_port": nodes[0].epmd_port,
                **({"listen": wanted.listen} if wanted.listen else {}),
                **streams,
                "members": [{"process": Process(), "node": asdict(each)} for each in nodes],
            },
            nodes=wanted.nodes,
        )
        state.save(started)
        try:
            return self.revive(started)
        except BaseException:
            self.stop(started)
            raise

    def revive(self, started: Started) -> Started:
        members = [dict(member) for member in started.details["members"]]
        for number, member in enumerate(members):
            if background.is_running(Process(*member["process"])):
                continue
            own, first = (Node(**each["node"]) for each in (member, members[0]))
            if number and not Path(own.data).exists():
                _wait_for(first, Process(*members[0]["process"]))

            def record(process: Process, member: dict[str, Any] = member) -> None:
                nonlocal started
                member["process"] = process
                pid, born = (0, "") if started.nodes > 1 else process
                started = replace(started, pid=pid, born=born, details={**started.details, "members": members})
                state.save(started)

            launch(own, [*self._settings, *(_settings(own, first) if started.nodes > 1 else ())], record)
        return started

    def restart(self, started: Started) -> Started:
        background.terminate(_processes(started), _STOP_PATIENCE, again=_SIGTERM_AGAIN)
        return self.revive(started)

    def running(self, started: Started) -> int:
        return sum(map(background.is_running, _processes(started)))

    def runs(self, started: Started, number: int) -> bool:
        return background.is_running(_processes(started)[number])

    def is_ready(self, started: Started) -> bool:
        return not any(ports.is_free(each.port) for each in nodes_of(started))

    def stop(self, started: Started) -> None:
        started = state.load(started.name) or started  # nodes may have been started again since
        background.terminate(_processes(started), _STOP_PATIENCE, again=_SIGTERM_AGAIN)
        self.clear_up(started)
        state.forget(started.name)

    def clear_up(self, killed: Started) -> None:
        stop_epmd(int(killed.details["epmd_port"]))  # epmd outlives its nodes

    def kill(self, started: Started, number: int) -> None:
        process = _processes(started)[number]
        os.killpg(process.pid, signal.SIGKILL)
        while background.is_running(process):
            time.sleep(0.01)

    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        directories = [Path(each.directory) for each in nodes_of(started)]
        return background.read_logs(
            {each.name if started.nodes > 1 else "": each / "log" for each in directories}, follow
        )


def _nodes(wanted: Wanted, directory: Path, stream_port: int | None, before: Started | None) -> list[Node]:
    first_port, epmd_port = ports.choose(wanted.port, ports.usual_amqp(before), wanted.listen), ports.free_port()
    management_port = ports.choose(wanted.management_port, ports.usual_management(before, first_port))
    data = wanted.data_dir or directory / ("cluster" if wanted.cluster else "data")
    names = [f"node-{number}" for number in range(1, wanted.nodes + 1)] if wanted.cluster else [""]
    return [
        Node(
            name=f"mqtool-{wanted.name}{name.removeprefix('node')}",
            home=str(directory),
            directory=str(directory / name),
            data=str(data / name),
            port=ports.free_port() if number else first_port,
            management_port=ports.free_port() if number else management_port,
            distribution_port=ports.free_port(),
            epmd_port=epmd_port,
            listen=wanted.listen,
            stream_port=stream_port,
        )
        for number, name in enumerate(names)
    ]


def nodes_of(started: Started) -> list[Node]:
    """Return the settings with which a broker's nodes were launched."""
    return [Node(**member["node"]) for member in started.details["members"]]


def _processes(started: Started) -> list[Process]:
    return [Process(*member["process"]) for member in started.details["members"]]


def _settings(own: Node, first: Node) -> list[str]:
    """Return lines for the rabbitmq.conf of a node in a cluster. A new node joins the first node."""
    settings = ["cluster_partition_handling = pause_minority"]
    if own.name == first.name:
        return settings
    return [
        *settings,
        "cluster_formation.peer_discovery_backend = classic_config",
        f"cluster_formation.classic_config.nodes.1 = {first.name}@localhost",
        f"cluster_formation.classic_config.nodes.2 = {own.name}@localhost",
    ]


def _wait_for(first: Node, process: Process) -> None:
    """Wait until the first node accepts connections. A node that starts earlier would form a cluster of its own."""
    deadline = time.monotonic() + _FIRST_PATIENCE
    while ports.is_free(first.port):
        if not background.is_running(process) or time.monotonic() > deadline:
            raise MqtoolError("the first node did not start", f"see {first.directory}/log")
        time.sleep(0.1)
