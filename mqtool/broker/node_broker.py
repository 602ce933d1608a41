"""A broker of private RabbitMQ nodes on this machine: one node, or a cluster of three.

https://www.rabbitmq.com/docs/cluster-formation
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mqtool.broker import log_files, node, ports, state
from mqtool.broker.node import Node
from mqtool.broker.starter import Starter
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError, Unavailable, UsageError

_FIRST_PATIENCE = 60.0


class PrivateNodes(Starter):
    """The installed RabbitMQ."""

    kind = "node"

    def is_available(self) -> bool:
        return node.find_server() is not None

    def start(self, wanted: Wanted) -> Started:
        if node.find_server() is None:
            raise Unavailable("rabbitmq-server is not installed", node.INSTALL)
        if wanted.in_memory:
            raise UsageError("a RabbitMQ node cannot keep everything in memory", "use --kind embedded with --in-memory")
        if wanted.image:
            raise UsageError("a private node uses the installed RabbitMQ", "use --kind docker with --image")
        if wanted.cluster and wanted.listen:
            raise UsageError("--listen does not work with --cluster", "start one node for other machines")
        if (before := state.load(wanted.name)) is not None and before.kind == self.kind:
            node.stop_epmd(int(before.details["epmd_port"]))  # it outlives a node that was killed
        directory = state.directory(wanted.name)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        streams = ports.stream_url(wanted.stream_port, wanted.listen)
        nodes = _nodes(wanted, directory, urlsplit(streams.get("streams", "")).port)
        started = Started(
            name=wanted.name,
            kind=self.kind,
            url=",".join(each.url for each in nodes),
            pid=0,
            directory=str(directory),
            details={
                "management": nodes[0].management,
                "data": str(Path(nodes[0].data).parent) if wanted.cluster else nodes[0].data,
                "epmd_port": nodes[0].epmd_port,
                **({"listen": wanted.listen} if wanted.listen else {}),
                **streams,
                "members": [{"pid": 0, "node": asdict(each)} for each in nodes],
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
        members = [dict(member) for member in _members(started)]
        for number, member in enumerate(members):
            if node.runs(member["pid"]):
                continue
            own, first = (Node(**each["node"]) for each in (member, members[0]))
            if number and not Path(own.data).exists():
                _wait_for(first, members[0]["pid"])
            member["pid"] = pid = node.launch(own, _settings(own, first) if started.nodes > 1 else ())
            details = {**started.details, "members": members}
            started = replace(started, pid=0 if started.nodes > 1 else pid, details=details)
            state.save(started)
        return started

    def restart(self, started: Started) -> Started:
        node.terminate([member["pid"] for member in _members(started)])
        return self.revive(started)

    def running(self, started: Started) -> int:
        return sum(node.runs(member["pid"]) for member in _members(started))

    def is_ready(self, started: Started) -> bool:
        return not any(ports.is_free(each.port) for each in nodes_of(started))

    def stop(self, started: Started) -> None:
        started = state.load(started.name) or started  # nodes may have been started again since
        node.terminate([member["pid"] for member in _members(started)])
        node.stop_epmd(int(started.details["epmd_port"]))
        state.forget(started.name)

    def kill(self, started: Started, number: int) -> None:
        pid = _members(started)[number]["pid"]
        os.killpg(pid, signal.SIGKILL)
        while node.runs(pid):
            time.sleep(0.01)

    def log(self, started: Started, follow: bool) -> Iterator[bytes]:
        directories = [Path(each.directory) for each in nodes_of(started)]
        return log_files.read({each.name if started.nodes > 1 else "": each / "log" for each in directories}, follow)


def _nodes(wanted: Wanted, directory: Path, stream_port: int | None) -> list[Node]:
    first_port, epmd_port = ports.choose(wanted.port, ports.AMQP, wanted.listen), ports.free_port()
    management_port = ports.choose(wanted.management_port)
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
    """The nodes as they were launched."""
    return [Node(**member["node"]) for member in _members(started)]


def _members(started: Started) -> Sequence[Mapping[str, Any]]:
    """The nodes, each with the "pid" of its process."""
    # An earlier version of mqtool remembered a single node like this.
    return started.details.get("members") or [{"pid": started.pid, "node": started.details["node"]}]


def _settings(own: Node, first: Node) -> list[str]:
    """The settings by which a node joins the first one, the first time that it starts."""
    settings = ["cluster_partition_handling = pause_minority"]
    if own.name == first.name:
        return settings
    return [
        *settings,
        "cluster_formation.peer_discovery_backend = classic_config",
        f"cluster_formation.classic_config.nodes.1 = {first.name}@localhost",
        f"cluster_formation.classic_config.nodes.2 = {own.name}@localhost",
    ]


def _wait_for(first: Node, pid: int) -> None:
    """Wait until the first node accepts connections: a node that cannot join one forms a cluster by itself."""
    deadline = time.monotonic() + _FIRST_PATIENCE
    while ports.is_free(first.port):
        if not node.runs(pid) or time.monotonic() > deadline:
            raise MqtoolError("the first node did not start", f"see {first.directory}/log")
        time.sleep(0.1)
