"""mqtool tap: a copy of what passes, nothing taken."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, NamedTuple

from typer import Argument, Option

from mqtool.amqp import Channel
from mqtool.amqp import Receiving as Settings
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.options import Commands, ManagedBroker, Match, Receiving, exchange_option, header_option, queue_option
from mqtool.cli.options.connection import URL
from mqtool.cli.options.values import Where
from mqtool.cli.pipe.firehose import check_left_on, switch_off, switched_on
from mqtool.cli.pipe.tapping import Printing, Source, print_taps
from mqtool.errors import UsageError
from mqtool.message import Delivery
from mqtool.taps import bindings, firehose
from mqtool.taps.bindings import Bound
from mqtool.taps.tapping import Tap

app = Commands()

#: Seconds for a connection to the management API, and for its answer: a tap of an exchange can do without.
_PATIENCE = (2.0, 10.0)
Urls = Annotated[list[str] | None, URL]
_HINT = "mqtool tap amq.topic 'kern.*' taps an exchange, mqtool tap -q jobs a queue"


class What(NamedTuple):
    """What to tap."""

    exchange: Annotated[str | None, Argument(help="Exchange")] = None
    keys: Annotated[
        list[str] | None, Argument(metavar="[KEY]...", help="Binding keys", show_default="all that passes")
    ] = None
    exchanges: Annotated[list[str] | None, exchange_option("One more exchange to tap, by the same keys")] = None
    queue: Annotated[str | None, queue_option("Copy what this queue gets")] = None
    headers: Annotated[list[Any] | None, header_option("Header to match, for a headers exchange")] = None
    match: Match = "all"
    everything: Annotated[bool, Option("--all", help="Everything that is published; needs --firehose")] = False
    by_firehose: Annotated[bool, Option("--firehose", help="Use the broker's firehose, which copies every message")] = (
        False
    )

    @property
    def names(self) -> list[str]:
        """The exchanges."""
        return [*([] if self.exchange is None else [self.exchange]), *(self.exchanges or [])]

    def check(self) -> None:
        """Check that it makes sense.

        Raises:
            UsageError: it does not.
        """
        if bool(self.names) + bool(self.queue) + self.everything != 1 or (self.headers and not self.names):
            raise UsageError("name either an exchange or a queue, or say --all", _HINT)
        if self.by_firehose and (self.keys or self.headers):
            raise UsageError("the firehose has no keys and headers to choose by", "choose with --where")
        if not self.by_firehose and (self.everything or "" in self.names):
            what = "--all" if self.everything else "the default exchange"
            raise UsageError(
                f"only the broker's firehose shows {what}", "add --firehose; it costs the broker a copy of each message"
            )

    def bound(self, access: Access) -> Iterator[Bound]:
        """What to bind a private queue to. Raises as the functions in `bindings` do."""
        if self.by_firehose:
            exchanges = ["#"] if self.everything else self.names
            of_queue = [firehose.of_queue(self.queue)] if self.queue else []
            yield Bound((*of_queue, *map(firehose.of_exchange, exchanges)))
            return
        if self.queue:
            yield bindings.like_queue(access.management(), access.vhost, self.queue)
        arguments = {"x-match": self.match, **dict(self.headers)} if self.headers else {}
        for name in self.names:
            yield bindings.to_exchange(
                lambda: access.management(_PATIENCE), access.vhost, name, self.keys or (), arguments
            )

    def source(self, access: Access, until_over: ExitStack) -> Source:
        """Where the copies come from."""
        found = list(self.bound(access))
        for note in (note for each in found for note in each.notes):
            output.notice(note)
        every = [binding for each in found for binding in each.bindings]

        def start(channel: Channel, settings: Settings) -> Tap:
            tap = Tap(channel, every, settings)
            if self.by_firehose:
                tap.deliveries = map(firehose.original, tap.deliveries)
                until_over.enter_context(switched_on(access, channel))
            return tap

        return Source(access, start)


@app.command(
    "mqtool tap amq.topic 'order.*'",
    "mqtool tap -q jobs --json -o seen.ndjson",
    "mqtool tap orders --where 'body.total>100' -c 10",
    "mqtool tap --all --firehose --idle-timeout 10s",
    url=None,
    prefetch=None,
    auto_ack=None,
    strict=None,
)
def tap(
    *,
    what: What,
    off: Annotated[bool, Option("--firehose-off", help="Switch the firehose off, and do nothing else")] = False,
    where: Where = None,
    buffer: Annotated[
        int, Option(min=1, metavar="N", help="Messages to keep for a slow reader; then drop the oldest")
    ] = 100_000,
    receiving: Receiving,
    urls: Urls = None,
    broker: ManagedBroker,
) -> None:
    """Show copies of messages as they pass, and take none."""
    each_url: list[str | None] = [*urls] if urls else [None]
    if len(each_url) > 1 and str(broker.options.password_file) == "-":
        raise UsageError("stdin has one password, and there are several brokers", "put each in its URL, or in a file")
    brokers = [broker._replace(options=broker.options._replace(url=url)).access() for url in each_url]
    if off:
        for access in brokers:
            switch_off(access)
        return
    what.check()
    if what.by_firehose and receiving.printing.into is None:
        stopping.end_with_terminal()
    with ExitStack() as until_over:
        for access in brokers:
            check_left_on(access)
        sources = [what.source(access, until_over) for access in brokers]
        is_one = len(what.names) == 1 and not what.by_firehose
        line = broker.options.lines.log_with_key if is_one else _with_exchange
        print_taps(sources, Printing(receiving, line, buffer, where))


def _with_exchange(delivery: Delivery) -> str:
    return f" [x] {delivery.exchange or '(default)'} {delivery.routing_key}:"
