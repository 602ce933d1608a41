"""mqtool tap."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import typer

from mqtool.amqp import Channel, Receiving
from mqtool.amqp.administration import type_of_exchange
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.options import ManagedBroker, exchange_option, queue_option
from mqtool.cli.options.broker_options import URL
from mqtool.cli.options.receiving_options import Match, ReceivingOptions, UntilEmpty, WhereOption
from mqtool.cli.pipe.tapping import TapPrinting, TapSource, check_left_on, print_taps, switch_off, switched_on
from mqtool.cli.values import header_option
from mqtool.errors import NotFound, UsageError
from mqtool.message import Delivery
from mqtool.spelling import pasteable
from mqtool.taps import (
    Bound,
    Tap,
    firehose_copies,
    firehose_of_exchange,
    firehose_of_queue,
    like_queue,
    original_of,
    to_exchange,
)

app = typer.Typer()

#: Seconds to wait for a connection to the management API and for its response. Tapping an exchange works without it.
_PATIENCE = (2.0, 10.0)


Urls = Annotated[list[str] | None, URL]


_HINT = "mqtool tap amq.topic 'kern.*' taps an exchange, mqtool tap -q jobs a queue"


@dataclass(kw_only=True, eq=False, repr=False)
class What:
    """Options of `tap` that select messages."""

    exchange: Annotated[
        str | None,
        typer.Argument(help="Exchange, or EXCHANGE:KEY", metavar="EXCHANGE", autocompletion=names_of("exchanges")),
    ] = None
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY]...", help="Binding keys, or more EXCHANGE:KEY", show_default="all messages"),
    ] = None
    exchanges: Annotated[list[str] | None, exchange_option("Another exchange to tap, with the same keys")] = None
    queue: Annotated[str | None, queue_option("Queue to copy messages from")] = None
    headers: Annotated[list[Any] | None, header_option("Header to match, for a headers exchange")] = None
    match: Match = "all"
    everything: Annotated[bool, typer.Option("--all", help="Copy all published messages; needs --firehose")] = False
    by_firehose: Annotated[
        bool, typer.Option("--firehose", help="Use the broker's firehose, which copies every message")
    ] = False

    @property
    def pairs(self) -> list[tuple[str, list[str]]]:
        """The exchanges to tap, each with its binding keys, or with none for all messages.

        If the first argument has a colon, each of them is EXCHANGE:KEY. The management API calls the default exchange
        amq.default.

        Raises:
            UsageError: only some of the arguments have a colon.
        """
        keys, found = self.keys or [], [] if self.exchange is None else [(self.exchange, self.keys or [])]
        if self.exchange is not None and ":" in self.exchange:
            for word in (self.exchange, *keys):
                if ":" not in word:
                    raise UsageError(
                        f"{word!r} is not EXCHANGE:KEY", f"write '{word}:' for all messages of an exchange"
                    )
            split = (word.partition(":") for word in (self.exchange, *keys))
            keys, found = [], [(name, [key] if key else []) for name, _, key in split]
        found += [(name, keys) for name in self.exchanges or ()]
        return [("" if name == "amq.default" else name, keys) for name, keys in found]

    @property
    def names(self) -> list[str]:
        """The names of the exchanges to tap."""
        return [name for name, _ in self.pairs]

    def check(self) -> None:
        """Raise UsageError if the options cannot be combined."""
        if bool(self.names) + bool(self.queue) + self.everything != 1 or (self.headers and not self.names):
            raise UsageError("name either an exchange or a queue, or use --all", _HINT)
        if self.by_firehose and (self.headers or any(keys for _, keys in self.pairs)):
            raise UsageError("--firehose cannot select messages by key or header", "use --where")
        if not self.by_firehose and (self.everything or "" in self.names):
            what = "--all" if self.everything else "the default exchange"
            raise UsageError(
                f"only the broker's firehose shows {what}", "add --firehose; it costs the broker a copy of each message"
            )

    def bound(self, access: Access) -> Iterator[Bound]:
        """Yield the bindings that route copies to a private queue."""
        if self.by_firehose:
            exchanges = ["#"] if self.everything else self.names
            of_queue = [firehose_of_queue(self.queue)] if self.queue else []
            yield Bound((*of_queue, *map(firehose_of_exchange, exchanges)))
            return
        if self.queue:
            yield like_queue(access.management(), access.vhost, self.queue)
        arguments = {"x-match": self.match, **dict(self.headers)} if self.headers else {}
        for name, keys in self.pairs:
            try:
                yield to_exchange(
                    lambda: access.management(_PATIENCE),
                    access.vhost,
                    name,
                    keys,
                    arguments,
                    partial(_type_over_amqp, access, name),
                )
            except NotFound as error:
                if self.exchange and self.exchange.startswith(f"{name}:"):
                    error.hint = f"if its name has a colon: {pasteable('tap --exchange=', self.exchange)}"
                raise

    def source(self, access: Access, until_over: ExitStack, *, until_empty: bool) -> TapSource:
        """Prepare to tap one broker.

        Args:
            until_empty: stop once the tapped queue has no ready messages.
            until_over: closed by the caller at the end; with --firehose, this switches the firehose off.
        """
        found = list(self.bound(access))
        for note in (note for each in found for note in each.notes):
            output.notice(note)
        every = [binding for each in found for binding in each.bindings]

        def start(channel: Channel, settings: Receiving) -> Tap:
            if until_empty:
                settings = settings._replace(is_finished=lambda: copies.has_printed_all_of(self.queue or ""))
            copies = Tap(channel, every, settings)
            if self.by_firehose:
                copies.deliveries = map(original_of, firehose_copies(copies.deliveries, output.notice))
                until_over.enter_context(switched_on(access, channel))
            return copies

        return TapSource(access, start)


@command(
    app,
    "mqtool tap amq.topic 'order.*'",
    "mqtool tap 'amq.topic:kern.*' logs:",
    "mqtool tap -q jobs --json -o seen.ndjson",
    "mqtool tap --all --firehose --idle-timeout 10s",
    effect=Effect.READS,
    heading="Messages",
    without=("url", "prefetch", "auto_ack", "strict"),
)
def tap(
    *,
    what: What,
    off: Annotated[bool, typer.Option("--firehose-off", help="Switch the firehose off, and do nothing else")] = False,
    where: WhereOption = None,
    until_empty: UntilEmpty = False,
    buffer: Annotated[
        int, typer.Option(min=1, metavar="N", help="Buffer up to N messages for a slow reader; drop the oldest")
    ] = 100_000,
    receiving: ReceivingOptions,
    urls: Urls = None,
    broker: ManagedBroker,
) -> None:
    """Show copies of messages as they are published.

    If the first argument has a colon, all are EXCHANGE:KEY; -e takes a name with a colon.
    """
    each_url: list[str | None] = [*urls] if urls else [None]
    if len(each_url) > 1 and str(broker.options.password_file) == "-":
        raise UsageError(
            "--password-file - reads stdin only once, but there are several brokers", "put the password in a file"
        )
    call = broker.options.call
    if urls and "urls" in call.typed:
        call = call._replace(typed=call.typed | {"url"})
    brokers = [access_to(replace(broker, options=replace(broker.options, url=url, call=call))) for url in each_url]
    if off and (what.names or what.queue or what.everything):
        raise UsageError("--firehose-off taps nothing", "leave out the exchange, the queue or --all")
    if off or what.by_firehose:
        for access in brokers:
            ask(f"switch the firehose {'off' if off else 'on'}", access, is_safe=True)
    if off:
        for access in brokers:
            switch_off(access)
        return
    what.check()
    if until_empty and what.queue is None:
        raise UsageError("--until-empty needs a queue", "tap it with -q QUEUE")
    with ExitStack() as until_over:
        for access in brokers:
            check_left_on(access)
        stopping.limit_time(receiving.timeout)
        sources = [what.source(access, until_over, until_empty=until_empty) for access in brokers]
        is_one = len({*what.names}) == 1 and not what.by_firehose
        line = broker.options.lines.log_with_key if is_one else _with_exchange
        print_taps(sources, TapPrinting(receiving, line, buffer, where))


def _type_over_amqp(access: Access, exchange: str) -> str:
    with access.connect() as connection:
        return type_of_exchange(connection.channel(), exchange)


def _with_exchange(delivery: Delivery) -> str:
    return f" [x] {delivery.exchange or '(default)'} {delivery.routing_key}:"
