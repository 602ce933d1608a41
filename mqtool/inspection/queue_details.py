"""Details of one queue: contents, consumers, bindings, dead-letter target; and the offsets of a stream's readers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mqtool import management
from mqtool.errors import NotFound
from mqtool.inspection import definitions, wiring
from mqtool.inspection.definitions import Definitions
from mqtool.inspection.findings import Finding
from mqtool.inspection.listing import QUEUES
from mqtool.inspection.routes import Router, routing_type
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.spelling import counted
from mqtool.topology import Binding, Queue

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel


_SUBSCRIPTION = "stream."
_COLUMNS = ("arguments", "consumer_tag", "queue.name", "queue.vhost")
#: Clients store offsets only from time to time, by default about every 10,000 messages. A smaller lag is not reported.
_MANY = 10_000


class ReaderOffsets(NamedTuple):
    """A stream's offsets, and the last offset that each named reader has stored; None if it has stored none."""

    offsets: range
    stored: Mapping[str, int | None]

    def lag(self, name: str | None) -> int | None:
        """Return the number of messages that a reader has not read yet; None if it has stored no offset."""
        done = None if name is None else self.stored.get(name)
        return None if done is None else max(0, self.offsets.stop - 1 - done)

    def missed(self, name: str) -> int:
        """Return the number of messages that the broker dropped before a reader had read them."""
        done = self.stored[name]
        return 0 if done is None else max(0, self.offsets.start - 1 - done)


def name_of(consumer: Json) -> str | None:
    """Return the name under which a stream reader stores its offset; None if it has none, like all AMQP consumers."""
    name = (consumer.get("arguments") or {}).get("name")
    return str(name) if name and str(consumer.get("consumer_tag")).startswith(_SUBSCRIPTION) else None


def reader_offsets(channel: "StreamChannel", stream: str, consumers: Iterable[Json]) -> ReaderOffsets:
    """Look up a stream's offsets, and those stored by the named readers among its `consumers`."""
    offsets = channel.offsets_of(stream)
    names = sorted({name for each in consumers if (name := name_of(each)) is not None})
    return ReaderOffsets(offsets, {name: channel.stored_offset(stream, name) for name in names})


def all_reader_offsets(
    api: Management, vhost: str | None, connect: Callable[[str], "AbstractContextManager[StreamChannel]"]
) -> dict[tuple[str, str], ReaderOffsets]:
    """Look up the offsets of all streams with named readers; return them by vhost and stream.

    Args:
        connect: opens a stream channel in a vhost. Called only for vhosts that have named readers.
    """
    readers: dict[str, dict[str, list[Json]]] = {}
    for consumer in management.consumers(api, vhost, _COLUMNS):
        if name_of(consumer) is not None:
            queue = consumer["queue"]
            readers.setdefault(queue["vhost"], {}).setdefault(queue["name"], []).append(consumer)
    found = {}
    for of_vhost, streams in readers.items():
        with connect(of_vhost) as channel:
            for stream, consumers in streams.items():
                try:
                    found[of_vhost, stream] = reader_offsets(channel, stream, consumers)
                except NotFound:  # the stream has just been deleted
                    continue
    return found


def reader_findings(
    before: Mapping[tuple[str, str], ReaderOffsets], now: Mapping[tuple[str, str], ReaderOffsets]
) -> Iterator[Finding]:
    """Compare two snapshots; report readers that have fallen further behind, or whose unread messages were dropped."""
    for (vhost, stream), seen in now.items():
        for name in seen.stored:
            if missed := seen.missed(name):
                what = f"has dropped {counted(missed)} that reader {name!r} had not read"
                hint = "a larger max-length-bytes or max-age keeps them longer"
                yield Finding("reader-misses", f"stream {stream!r}", what, hint, vhost)
            earlier, lag = before.get((vhost, stream)), seen.lag(name)
            earlier_lag = earlier.lag(name) if earlier else None
            if lag is not None and earlier_lag is not None and lag > max(earlier_lag, _MANY):
                what = f"is {counted(lag)} behind, and falling further behind"
                hint = "is it stuck, or too slow? 'mqtool queue show' shows its offset"
                yield Finding("reader-behind", f"reader {name!r} of stream {stream!r}", what, hint, vhost)


@dataclass(frozen=True, slots=True)
class DeadLetterTarget:
    """The exchange and the queues to which a queue dead-letters messages.

    Attributes:
        routing_key: the routing key of the dead letters; None if each keeps its own.
        queues: the queues that receive dead letters, or may receive them if the routing key is None or the route
            depends on the broker; None if the exchange does not exist.
    """

    exchange: str
    routing_key: str | None
    queues: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class QueueDetails:
    """The details of a queue.

    Attributes:
        row: the columns of `list queues`.
        consumers: the consumers, as the management API describes them.
        bindings: all bindings, except the one to the default exchange.
        reader_offsets: the offsets of a stream's readers; None until the caller sets them.
    """

    row: Json
    consumers: Sequence[Json]
    bindings: Sequence[Binding]
    dead_letters: DeadLetterTarget | None
    reader_offsets: ReaderOffsets | None = None


def queue_details(api: Management, vhost: str, name: str) -> QueueDetails:
    """Read the details of a queue from the management API; raise NotFound if there is no such queue."""
    try:
        view = api.get(path("queues", vhost, name))
    except NotFound as error:
        raise NotFound(
            f"queue {name!r} does not exist in vhost {vhost!r}", "'mqtool list queues' shows them"
        ) from error
    row = {**QUEUES.row(view, QUEUES.columns), "name": name, "vhost": vhost}
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
    queues = {binding.destination for binding in bindings if not binding.to_exchange}
    if key is not None and routing_type(exchanges[exchange]) != "headers":  # else the route depends on the message
        router = Router(Definitions.of(exchanges.values(), map(Queue, queues), bindings))
        found = router.route(exchange, key, near_misses=0)
        queues = queues if found.unknown else {*found.queues}
    return DeadLetterTarget(exchange, key, sorted(queues))


def _exists(api: Management, vhost: str, queue: str) -> bool:
    try:
        api.get(path("queues", vhost, queue), columns="name")
    except NotFound:
        return False
    return True
