"""The kinds of broker that mqtool can start, and which one to take."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NoReturn

from mqtool.broker import docker, embedded_process, node, node_cluster
from mqtool.broker.state import Started, Wanted
from mqtool.errors import Unavailable, UsageError


class Kind(StrEnum):
    """What to start."""

    AUTO = "auto"
    DOCKER = "docker"
    NODE = "node"
    EMBEDDED = "embedded"


def _nothing(_wanted: Wanted, _say: Callable[[str], None]) -> None:
    """Nothing takes long."""


def _at_once(_started: Started) -> bool:
    """A connection tells all there is to know."""
    return True


def _discard_directory(started: Started) -> None:
    """All that it has is in its directory."""
    shutil.rmtree(started.directory, ignore_errors=True)


def _one_node(_started: Started, _number: int = 0) -> NoReturn:
    """Only a cluster goes on without one of its nodes."""
    raise UsageError("the broker is a single node, not a cluster", "start a cluster with --cluster")


@dataclass(frozen=True, slots=True)
class Starter:
    """How to handle one kind of broker.

    Attributes:
        is_available: whether it can be started on this machine.
        start: it need not be ready when this returns.
        running: how many of its nodes run.
        stop: end it and forget it; its data stay.
        log: what it has written, b"" where there is nothing new; see log_files.read().
        describe: what to call it in a sentence.
        prepare: what start() needs and may take minutes, said as it goes; it may be interrupted.
        is_ready: whether to try a connection.
        discard: remove the data of one that was stopped.
        kill: of a cluster, kill -9 one node; 0 is the first.
        revive: of a cluster, start those of its nodes that do not run.
    """

    is_available: Callable[[], bool]
    start: Callable[[Wanted], Started]
    running: Callable[[Started], int]
    stop: Callable[[Started], None]
    log: Callable[[Started, bool], Iterator[bytes]]
    describe: str
    prepare: Callable[[Wanted, Callable[[str], None]], None] = _nothing
    is_ready: Callable[[Started], bool] = _at_once
    discard: Callable[[Started], None] = _discard_directory
    kill: Callable[[Started, int], None] = _one_node
    revive: Callable[[Started], Started] = _one_node

    def is_running(self, started: Started) -> bool:
        """Whether all its nodes run."""
        return self.running(started) == started.nodes


#: In the order in which `auto` tries them.
STARTERS = {
    Kind.DOCKER: Starter(
        is_available=docker.is_available,
        start=docker.start,
        running=docker.running,
        stop=docker.stop,
        log=docker.log,
        describe="RabbitMQ in Docker",
        prepare=docker.prepare,
        is_ready=docker.is_ready,
        discard=docker.discard,
    ),
    Kind.NODE: Starter(
        is_available=lambda: node.find_server() is not None,
        start=node.start,
        running=node.running,
        stop=node.stop,
        log=node.log,
        describe="a private RabbitMQ node",
    ),
    Kind.EMBEDDED: Starter(
        is_available=lambda: True,
        start=embedded_process.start,
        running=embedded_process.running,
        stop=embedded_process.stop,
        log=embedded_process.log,
        describe="mqtool's embedded broker",
    ),
}

CLUSTERS = {
    Kind.DOCKER: replace(
        STARTERS[Kind.DOCKER],
        describe="a cluster of three RabbitMQ nodes in Docker",
        kill=docker.kill,
        revive=docker.revive,
    ),
    Kind.NODE: Starter(
        is_available=lambda: node.find_server() is not None,
        start=node_cluster.start,
        running=node_cluster.running,
        stop=node_cluster.stop,
        log=node_cluster.log,
        describe="a cluster of three private RabbitMQ nodes",
        is_ready=node_cluster.is_ready,
        kill=node_cluster.kill,
        revive=node_cluster.revive,
    ),
}


def starter_of(started: Started) -> Starter:
    """How to handle a broker that was started."""
    return (STARTERS if started.nodes == 1 else CLUSTERS)[Kind(started.kind)]


def candidates(kind: Kind, *, cluster: bool = False) -> list[Starter]:
    """The kind itself, or for `auto` all that this machine can start, best first; the embedded broker runs everywhere.

    Raises:
        UsageError, Unavailable: there is no such cluster.
    """
    starters = CLUSTERS if cluster else STARTERS
    if kind is not Kind.AUTO:
        if kind not in starters:
            raise UsageError(
                "the embedded broker cannot be a cluster", "use --kind docker or --kind node with --cluster"
            )
        return [starters[kind]]
    available = [starter for starter in starters.values() if starter.is_available()]
    if not available:
        raise Unavailable("a cluster needs Docker or an installed RabbitMQ; neither was found", node.INSTALL)
    return available


def choose_quick(kind: Kind, *, cluster: bool = False) -> Starter:
    """The first of candidates(); but for `auto` one that has nothing to download or build, if there is one."""
    found = candidates(kind, cluster=cluster)
    return next((starter for starter in found if starter.prepare is _nothing), found[0])
