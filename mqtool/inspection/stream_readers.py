"""How far readers of streams are: names come from the management API, offsets from the stream protocol."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from mqtool import management
from mqtool.errors import NotFound
from mqtool.inspection.finding import Finding
from mqtool.inspection.listing import counted
from mqtool.management import Management
from mqtool.management.client import Json

if TYPE_CHECKING:
    from mqtool.streams import StreamChannel

_SUBSCRIPTION = "stream."
_COLUMNS = ("arguments", "consumer_tag", "queue.name", "queue.vhost")
#: Clients store offsets only now and then, by default every 10,000 messages or so.
_MANY = 10_000


class Places(NamedTuple):
    """A stream and its named readers.

    Attributes:
        offsets: those of the messages that are there.
        stored: for each reader's name the offset that it is done with; None if it has stored none.
    """

    offsets: range
    stored: Mapping[str, int | None]

    def lag(self, name: str | None) -> int | None:
        """How many messages a reader is behind; None if it has stored no offset."""
        done = None if name is None else self.stored.get(name)
        return None if done is None else max(0, self.offsets.stop - 1 - done)

    def missed(self, name: str) -> int:
        """How many messages were dropped before a reader was done with them."""
        done = self.stored[name]
        return 0 if done is None else max(0, self.offsets.start - 1 - done)


def name_of(consumer: Json) -> str | None:
    """The name under which a stream reader stores its offset, if its client gives it; AMQP readers have none."""
    name = (consumer.get("arguments") or {}).get("name")
    return str(name) if name and str(consumer.get("consumer_tag")).startswith(_SUBSCRIPTION) else None


def places(channel: "StreamChannel", stream: str, consumers: Iterable[Json]) -> Places:
    """Look at a stream. Raises as StreamChannel.offsets_of() does."""
    offsets = channel.offsets_of(stream)
    names = sorted({name for each in consumers if (name := name_of(each)) is not None})
    return Places(offsets, {name: channel.stored_offset(stream, name) for name in names})


def look(
    api: Management, vhost: str | None, connect: Callable[[str], "AbstractContextManager[StreamChannel]"]
) -> dict[tuple[str, str], Places]:
    """All streams with named readers, by vhost and name.

    Args:
        connect: opens a channel in a vhost; called where there are such readers.

    Raises: as Management.get and StreamChannel do.
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
                    found[of_vhost, stream] = places(channel, stream, consumers)
                except NotFound:  # it may have gone since
                    continue
    return found


def findings(before: Mapping[tuple[str, str], Places], now: Mapping[tuple[str, str], Places]) -> Iterator[Finding]:
    """Find readers that fall behind, or that retention has overtaken, from two looks."""
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
