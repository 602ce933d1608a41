"""A cluster of three private RabbitMQ nodes on this machine.

https://www.rabbitmq.com/docs/cluster-formation
"""

import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

from mqtool.broker import node, ports, state
from mqtool.broker.node import KIND, Node
from mqtool.broker.state import Started, Wanted
from mqtool.errors import MqtoolError

_FIRST_PATIENCE = 60.0


def start(wanted: Wanted) -> Started:
    """Start the nodes, the first at the wanted port; they may not be ready when this returns.

    Raises:
        Unavailable, UsageError: see node.start().
        MqtoolError: the first node did not start, so the others cannot join it.
    """
    node.check(wanted)
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
        for number in range(1, wanted.nodes + 1)
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
        nodes=wanted.nodes,
    )
    state.save(started)
    try:
        return revive(started)
    except BaseException:
        if (begun := state.load(wanted.name)) is not None:
            node.stop(begun)
        raise


def revive(started: Started) -> Started:
    """Start those nodes that do not run, and remember their processes.

    Raises:
        MqtoolError: the first node did not start, so the others cannot join it.
    """
    members = [dict(member) for member in started.details["members"]]
    now = replace(started, details={**started.details, "members": members})
    for number, member in enumerate(members):
        if not node.runs(member["pid"]):
            each = Node(**member["node"])
            if number and not Path(each.data).exists():
                _wait_for(Node(**members[0]["node"]), members[0]["pid"])
            member["pid"] = node.launch(each, _settings(now, each))
            state.save(now)
    return now


def is_ready(started: Started) -> bool:
    """Whether all nodes accept connections, which they do once they have joined the cluster."""
    return not any(ports.is_free(member["node"]["port"]) for member in started.details["members"])


def kill(started: Started, number: int) -> None:
    """kill -9 a node; 0 is the first."""
    pid = started.details["members"][number]["pid"]
    os.killpg(pid, signal.SIGKILL)
    while node.runs(pid):
        time.sleep(0.01)


def _settings(started: Started, own: Node) -> list[str]:
    """The settings by which a node joins the first one, the first time that it starts."""
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
    """Wait until the first node accepts connections: a node that cannot join one forms a cluster by itself."""
    deadline = time.monotonic() + _FIRST_PATIENCE
    while ports.is_free(first.port):
        if not node.runs(pid) or time.monotonic() > deadline:
            raise MqtoolError("the first node did not start", f"see {first.directory}/log")
        time.sleep(0.1)
