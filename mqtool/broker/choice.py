"""The kinds of broker that mqtool can start, and the choice between them."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NoReturn

from mqtool.broker import docker, embedded_process, node, node_broker
from mqtool.broker.state import Started, Wanted
from mqtool.errors import Unavailable, UsageError


class Kind(StrEnum):
    """What to start; AUTO is the best that this machine has."""

    AUTO = "auto"
    DOCKER = "docker"
    NODE = "node"
    EMBEDDED = "embedded"


def _nothing(_wanted: Wanted, _say: Callable[[str], None]) -> None:
    """Nothing to download or build."""


def _at_once(_started: Started) -> bool:
    """Being ready means accepting a connection, which is tried next."""
    return True


def _discard_directory(started: Started) -> None:
    """Remove its directory, which has all its data."""
    shutil.rmtree(started.directory, ignore_errors=True)


def _one_node(_started: Started, _number: int = 0) -> NoReturn:
    """Refuse what only a cluster can do."""
    raise UsageError("the broker is a single node, not a cluster", "start a cluster with --cluster")


@dataclass(frozen=True, slots=True)
class Starter:
    """How to handle one kind of broker, by the functions of its module.

    Attributes:
        is_available: whether this machine can run it.
        start: start it; it may not be ready when this returns.
        running: how many of its nodes run.
        stop: stop it and forget it; its data stay.
        restart: stop it, and start it again as it was; it may not be ready when this returns.
        log: its log, with b"" when there is nothing new; see log_files.read().
        describe: its name in a sentence.
        prepare: download or build what start() needs, and report progress; may be interrupted.
        is_ready: whether to try to connect.
        discard: remove the data of a stopped broker.
        kill: kill -9 a node of a cluster; 0 is the first.
        revive: start those nodes of a cluster that do not run.

    Any of them may raise:
        Unavailable: the port is taken, or what it runs on (Docker, rabbitmq-server) is missing or does not answer.
        AccessRefused: no permission to use the Docker daemon.
        UsageError: an option that this kind does not support.
        MqtoolError: a node does not start, or does not stop.
    """

    is_available: Callable[[], bool]
    start: Callable[[Wanted], Started]
    running: Callable[[Started], int]
    stop: Callable[[Started], None]
    restart: Callable[[Started], Started]
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
        restart=docker.restart,
        log=docker.log,
        describe="RabbitMQ in Docker",
        prepare=docker.prepare,
        is_ready=docker.is_ready,
        discard=docker.discard,
        kill=docker.kill,
        revive=docker.revive,
    ),
    Kind.NODE: Starter(
        is_available=lambda: node.find_server() is not None,
        start=node_broker.start,
        running=node_broker.running,
        stop=node_broker.stop,
        restart=node_broker.restart,
        log=node_broker.log,
        describe="a private RabbitMQ node",
        is_ready=node_broker.is_ready,
        kill=node_broker.kill,
        revive=node_broker.revive,
    ),
    Kind.EMBEDDED: Starter(
        is_available=lambda: True,
        start=embedded_process.start,
        running=embedded_process.running,
        stop=embedded_process.stop,
        restart=embedded_process.restart,
        log=embedded_process.log,
        describe="mqtool's embedded broker",
    ),
}

CLUSTERS = {
    Kind.DOCKER: replace(STARTERS[Kind.DOCKER], describe="a cluster of three RabbitMQ nodes in Docker"),
    Kind.NODE: replace(STARTERS[Kind.NODE], describe="a cluster of three private RabbitMQ nodes"),
}


def starter_of(started: Started) -> Starter:
    """The starter of a broker that was started."""
    return (STARTERS if started.nodes == 1 else CLUSTERS)[Kind(started.kind)]


def candidates(kind: Kind, *, cluster: bool = False) -> list[Starter]:
    """The starter of that kind; for `auto` all that this machine can run, best first.

    Raises:
        UsageError: a cluster of the embedded broker.
        Unavailable: a cluster, but neither Docker nor RabbitMQ is here.
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
    """The first of candidates(), preferring for `auto` one that has nothing to download or build."""
    found = candidates(kind, cluster=cluster)
    return next((starter for starter in found if starter.prepare is _nothing), found[0])
