"""One queue in full: what it is, what it holds, who consumes, what is bound to it, and where its dead letters go."""

from collections.abc import Sequence
from dataclasses import dataclass

from mqtool import management
from mqtool.errors import NotFound
from mqtool.inspection import definitions, wiring
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.listing import QUEUES
from mqtool.inspection.routes import Router, routing_type
from mqtool.inspection.stream_readers import Places
from mqtool.management import Management, path
from mqtool.management.client import Json
from mqtool.topology import Binding, Queue


@dataclass(frozen=True, slots=True)
class DeadLetterTarget:
    """Where a queue's dead letters go.

    Attributes:
        routing_key: what they are published with; None if each keeps its own.
        queues: those that get them, or with keys of their own may get them; None if there is no such exchange.
    """

    exchange: str
    routing_key: str | None
    queues: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class QueueDetails:
    """A queue.

    Attributes:
        row: the columns of `list queues`.
        consumers: as the API tells of them.
        bindings: without the one to the default exchange.
        places: of the readers of a stream, once somebody has looked at them.
    """

    row: Json
    consumers: Sequence[Json]
    bindings: Sequence[Binding]
    dead_letters: DeadLetterTarget | None
    places: Places | None = None


def look(api: Management, vhost: str, name: str) -> QueueDetails:
    """Look at a queue.

    Raises:
        NotFound: there is no such queue.
        Unavailable, AccessRefused: the API cannot tell.
    """
    try:
        view = api.get(path("queues", vhost, name))
    except NotFound as error:
        raise NotFound(f"there is no queue {name!r} in vhost {vhost!r}", "'mqtool list queues' shows them") from error
    row = QUEUES.row(view, QUEUES.columns)
    found = [*definitions.bindings_to(api, vhost, name)]
    return QueueDetails(row, view.get("consumer_details") or [], found, _dead_letters(api, vhost, view))


def _dead_letters(api: Management, vhost: str, view: Json) -> DeadLetterTarget | None:
    arguments = management.effective_arguments(view)
    exchange, key = arguments.get("x-dead-letter-exchange"), arguments.get("x-dead-letter-routing-key")
    if not isinstance(exchange, str):
        return None
    key = None if key is None else str(key)
    if not exchange:
        return DeadLetterTarget("", key, () if key is None else [key] if _exists(api, vhost, key) else [])
    try:
        exchanges = wiring.exchanges_of(api, vhost, [exchange])
    except NotFound:
        return DeadLetterTarget(exchange, key, None)
    bindings = [*definitions.bindings(api, vhost, *exchanges)]
    if key is None or routing_type(exchanges[exchange]) == "headers":  # each message decides
        queues = {binding.destination for binding in bindings if not binding.to_exchange}
    else:
        known = [Queue(binding.destination) for binding in bindings if not binding.to_exchange]
        router = Router(Definitions.of(exchanges.values(), known, bindings))
        queues = {*router.route(exchange, key, near_misses=0).queues}
    return DeadLetterTarget(exchange, key, sorted(queues))


def _exists(api: Management, vhost: str, queue: str) -> bool:
    try:
        api.get(path("queues", vhost, queue), columns="name")
    except NotFound:
        return False
    return True
