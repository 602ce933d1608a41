"""Three private RabbitMQ nodes that are one cluster: what node.py starts, three times, on one machine.

https://www.rabbitmq.com/docs/cluster-formation
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mqtool.broker import log_files, node, ports, process, state
from mqtool.broker.node import KIND, Node
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError

NODES = 3
_FIRST_PATIENCE = 60.0


def start(wanted: Wanted) -> Started:
    """Start the nodes; they need not be ready when this returns. The first takes the wanted port.

    Raises:
        Unavailable: there is no rabbitmq-server, or the port is taken.
        UsageError: RabbitMQ cannot be started so.
        MqtoolError: the first node did not start, and the others have nobody to join.
    """
    node.check(wanted)
    if (before := state.load(wanted.name)) is not None and before.kind == KIND:
        node.stop_port_mapper(int(before.details["epmd_port"]))
    directory = state.directory(wanted.name)
    epmd_port, first_port = ports.free_port(), ports.choose_amqp_port(wanted.port)
    nodes = [
        Node(
            name=f"mqtool-{wanted.name}-{number}",
            home=str(directory),
            directory=str(directory / f"node-{number}"),
            data=str((wanted.data_dir or directory / "cluster") / f"node-{number}"),
            port=first_port if number == 1 else ports.free_port(),
            management_port=ports.free_port(),
            distribution_port=ports.free_port(),
            epmd_port=epmd_port,
        )
        for number in range(1, NODES + 1)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    started = Started(
        name=wanted.name,
        kind=KIND,
        url=",".join(each.url for each in nodes),
        pid=0,
        directory=str(directory),
        details={
            "management": nodes[0].management,
            "data": str(Path(nodes[0].data).parent),
            "epmd_port": epmd_port,
            "members": [{"pid": 0, "node": asdict(each)} for each in nodes],
        },
        nodes=NODES,
    )
    state.save(started)
    try:
        return revive(started)
    except BaseException:
        if (begun := state.load(wanted.name)) is not None:
            stop(begun)
        raise


def revive(started: Started) -> Started:
    """Start those of its nodes that do not run, and remember their processes.

    Raises:
        MqtoolError: the first node did not start, and others have to join it.
    """
    members = [dict(member) for member in started.details["members"]]
    now = replace(started, details={**started.details, "members": members})
    for number, member in enumerate(members):
        if not _runs(member):
            each = Node(**member["node"])
            if number and not Path(each.data).exists():
                _wait_for(Node(**members[0]["node"]), members[0]["pid"])
            member["pid"] = node.launch(each, _settings(now, each))
            state.save(now)
    return now


def running(started: Started) -> int:
    """How many of its nodes run."""
    return sum(map(_runs, started.details["members"]))


def is_ready(started: Started) -> bool:
    """Whether all its nodes take connections, which they do once they have joined."""
    return not any(ports.is_free(member["node"]["port"]) for member in started.details["members"])


def kill(started: Started, number: int) -> None:
    """kill -9 a node; 0 is the first."""
    pid = started.details["members"][number]["pid"]
    os.killpg(pid, signal.SIGKILL)
    while process.is_running(pid, "rabbitmq"):
        time.sleep(0.01)


def stop(started: Started) -> None:
    """Stop the nodes, all at once, and forget them; their data stay.

    Raises:
        MqtoolError: one does not stop.
    """
    started = state.load(started.name) or started  # nodes may have been started again since
    pids = [member["pid"] for member in started.details["members"] if _runs(member)]
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        process.terminate(pid, "rabbitmq", node.STOP_PATIENCE)
    node.stop_port_mapper(int(started.details["epmd_port"]))
    state.forget(started.name)


def log(started: Started, follow: bool) -> Iterator[bytes]:
    """What they have written; see log_files.read()."""
    directories = [Path(each.directory) for each in node.nodes_of(started)]
    return log_files.read({directory.name: directory / "log" for directory in directories}, follow)


def _runs(member: Mapping[str, Any]) -> bool:
    return bool(member["pid"]) and process.is_running(member["pid"], "rabbitmq")


def _settings(started: Started, own: Node) -> list[str]:
    """What makes a node join the first one when it starts for the first time; later they know each other."""
    first = Node(**started.details["members"][0]["node"])
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
    """Until the first node takes connections: one that finds nobody to join makes a cluster of its own."""
    deadline = time.monotonic() + _FIRST_PATIENCE
    while ports.is_free(first.port):
        if not process.is_running(pid, "rabbitmq") or time.monotonic() > deadline:
            raise MqtoolError("the first node did not start", f"see {first.directory}/log")
        time.sleep(0.1)
