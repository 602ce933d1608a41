"""The kinds of broker that mqtool can start, and the choice between them."""

from enum import StrEnum

from mqtool.broker.docker import Docker
from mqtool.broker.embedded_starter import Embedded
from mqtool.broker.node import INSTALL, PrivateNodes
from mqtool.broker.starter import Starter
from mqtool.broker.state import Started
from mqtool.errors import Unavailable, UsageError


class BrokerKind(StrEnum):
    """A kind of broker: RabbitMQ in Docker, an installed RabbitMQ ("node"), or embedded.

    AUTO selects the best kind that this machine can run.
    """

    AUTO = "auto"
    DOCKER = "docker"
    NODE = "node"
    EMBEDDED = "embedded"


#: The starters by kind, in the order in which AUTO tries them.
STARTERS: dict[BrokerKind, Starter] = {
    BrokerKind.DOCKER: Docker("RabbitMQ in Docker"),
    BrokerKind.NODE: PrivateNodes("the private RabbitMQ node"),
    BrokerKind.EMBEDDED: Embedded("the embedded broker"),
}
CLUSTERS: dict[BrokerKind, Starter] = {
    BrokerKind.DOCKER: Docker("the cluster of three RabbitMQ nodes in Docker"),
    BrokerKind.NODE: PrivateNodes("the cluster of three private RabbitMQ nodes"),
}


def starter_of(started: Started) -> Starter:
    return (STARTERS if started.nodes == 1 else CLUSTERS)[BrokerKind(started.kind)]


def candidates(kind: BrokerKind, *, cluster: bool = False) -> list[Starter]:
    """Return the starter of a kind; for AUTO, all starters that this machine can run, best first."""
    starters = CLUSTERS if cluster else STARTERS
    if kind is not BrokerKind.AUTO:
        if kind not in starters:
            raise UsageError("the embedded broker cannot be a cluster", "use --kind docker or --kind node")
        return [starters[kind]]
    available = [starter for starter in starters.values() if starter.is_available()]
    if not available:
        raise Unavailable("a cluster needs Docker or an installed RabbitMQ; neither was found", INSTALL)
    return available


def choose_quick(kind: BrokerKind, *, cluster: bool = False) -> Starter:
    """Return the first of candidates() that has nothing to download or build; if none has, the first one."""
    found = candidates(kind, cluster=cluster)
    return next((starter for starter in found if starter.is_quick), found[0])
