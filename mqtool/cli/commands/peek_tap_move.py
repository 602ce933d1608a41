"""mqtool peek, tap, move."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Annotated, Any

from mqtool import where as conditions
from mqtool.amqp import Channel
from mqtool.amqp import Receiving as Settings
from mqtool.cli import stopping
from mqtool.cli.access import HINT_PATIENCE, Access
from mqtool.cli.command_line import Argument, Option, OptionGroup
from mqtool.cli.display import output
from mqtool.cli.display.progress import Progress
from mqtool.cli.invocation import current
from mqtool.cli.options import (
    CONFIRM_TIMEOUT,
    DURATION,
    RATE,
    Commands,
    ConfirmTimeout,
    ManagedBroker,
    Yes,
    ask,
    exchange_option,
    header_option,
    queue_option,
)
from mqtool.cli.options.broker_options import URL, Destination
from mqtool.cli.options.queue_options import require
from mqtool.cli.options.receiving_options import OFFSET, Match, Printing, Receiving, Where
from mqtool.cli.pipe.tapping import Printing as TapPrinting
from mqtool.cli.pipe.tapping import Source, check_left_on, print_taps, switch_off, switched_on
from mqtool.errors import NotConfirmed, SomeFailed, Unavailable, UsageError
from mqtool.management import Management
from mqtool.message import Delivery, Message
from mqtool.offsets import FIRST
from mqtool.spelling import pasteable
from mqtool.taps import Bound, Tap, firehose_of_exchange, firehose_of_queue, like_queue, original_of, to_exchange
from mqtool.where import of_delivery
from mqtool.work import peeking
from mqtool.work.peeking import How, Kind
from mqtool.work.transfer import AT_ONCE, NotMoved, Transfer, Until, elsewhere, name_of, wait_for

app = Commands()

#: Warn if a message has this many or fewer deliveries left before it reaches the queue's delivery limit.
_CLOSE = 5


@app.command(
    "mqtool peek jobs",
    "mqtool peek jobs -c 5 --json",
    "mqtool peek jobs --where 'headers.x-retry>=3'",
    "mqtool peek events --offset last",
)
def peek(
    queue: Annotated[str, Argument(help="Queue or stream")],
    printing: Printing,
    broker: ManagedBroker,
    limit: Annotated[int | None, Option("--count", "-c", "-n", min=1, help="Show up to N messages")] = None,
    where: Where = None,
    offset: Annotated[Any | None, Option(help="Where to start in a stream (default: first)", **OFFSET)] = None,
) -> None:
    """Show the messages in a queue and leave them there.

    The messages stay in order, and are marked as redelivered. Consumers cannot get them while they are being shown.

    In a quorum queue, showing a message counts as a delivery, and the queue drops messages that exceed its delivery
    limit (20 by default from RabbitMQ 4.0 on). peek warns when messages come close to the limit, and stops before they
    exceed it. Showing the messages of a stream changes nothing.
    """
    printing.redirect()
    write = printing.writer("{key}: {body}")
    # No reconnecting, because messages would then be shown twice.
    access, shown, often = broker.access(reconnects=False), 0, 0
    with access.connect() as connection, stopping.calling(lambda: None):
        channel = connection.channel()
        require(queue, channel, access)
        kind = peeking.kind_of(channel, queue, _api(access), access.vhost)
        if offset is not None and kind.how is not How.STREAM:
            raise UsageError(f"{queue!r} is not a stream, so it has no offsets", "leave out --offset")
        # With --where, any number of messages may have to be read to find enough matching ones.
        most = limit if where is None else None
        with closing(peeking.peek(channel, queue, kind, most, offset or FIRST)) as deliveries:
            for delivery in stopping.until_requested(deliveries):
                often = max(often, peeking.times_back(delivery))
                if where is None or where.matches(conditions.of_delivery(delivery)):
                    write.add(delivery)
                    shown += 1
                    if shown == limit:
                        break
            write.flush()
    _say(queue, kind, shown, has_condition=where is not None)
    if kind.limit is not None and often >= kind.limit - _CLOSE:
        output.warning(
            f"messages have been requeued up to {often + 1} times: after more than {kind.limit}, {queue!r} drops them"
        )


def _api(access: Access) -> Management | None:
    try:
        return access.management()
    except Unavailable:
        return None


def _say(queue: str, kind: Kind, shown: int, *, has_condition: bool) -> None:
    if not shown:
        output.status(f"no message in {queue} matches" if has_condition else f"{queue} has no messages to show")
    elif kind.how is not How.STREAM:
        price = "" if kind.limit is None else f", one delivery closer to the limit of {kind.limit}"
        output.notice(f"{shown:,} shown; they stay in {queue}, marked as redelivered{price}")


#: Seconds to wait for a connection to the management API and for its response. Tapping an exchange works without it.
_PATIENCE = (2.0, 10.0)
Urls = Annotated[list[str] | None, URL]
_HINT = "mqtool tap amq.topic 'kern.*' taps an exchange, mqtool tap -q jobs a queue"


class What(OptionGroup):
    """Options of `tap` that select messages."""

    exchange: Annotated[str | None, Argument(help="Exchange")] = None
    keys: Annotated[
        list[str] | None, Argument(metavar="[KEY]...", help="Binding keys", show_default="all messages")
    ] = None
    exchanges: Annotated[list[str] | None, exchange_option("Another exchange to tap, with the same keys")] = None
    queue: Annotated[str | None, queue_option("Queue whose messages to copy")] = None
    headers: Annotated[list[Any] | None, header_option("Header to match, for a headers exchange")] = None
    match: Match = "all"
    everything: Annotated[bool, Option("--all", help="Copy all published messages; needs --firehose")] = False
    by_firehose: Annotated[bool, Option("--firehose", help="Use the broker's firehose, which copies every message")] = (
        False
    )

    @property
    def names(self) -> list[str]:
        """The names of the exchanges to tap."""
        return [*([] if self.exchange is None else [self.exchange]), *(self.exchanges or [])]

    def check(self) -> None:
        """Raise UsageError if the options cannot be combined."""
        if bool(self.names) + bool(self.queue) + self.everything != 1 or (self.headers and not self.names):
            raise UsageError("name either an exchange or a queue, or use --all", _HINT)
        if self.by_firehose and (self.keys or self.headers):
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
        for name in self.names:
            yield to_exchange(lambda: access.management(_PATIENCE), access.vhost, name, self.keys or (), arguments)

    def source(self, access: Access, until_over: ExitStack) -> Source:
        """Prepare to tap one broker.

        Args:
            until_over: closed by the caller at the end; with --firehose, this switches the firehose off.
        """
        found = list(self.bound(access))
        for note in (note for each in found for note in each.notes):
            output.notice(note)
        every = [binding for each in found for binding in each.bindings]

        def start(channel: Channel, settings: Settings) -> Tap:
            tap = Tap(channel, every, settings)
            if self.by_firehose:
                tap.deliveries = map(original_of, tap.deliveries)
                until_over.enter_context(switched_on(access, channel))
            return tap

        return Source(access, start)


@app.command(
    "mqtool tap amq.topic 'order.*'",
    "mqtool tap -q jobs --json -o seen.ndjson",
    "mqtool tap orders --where 'body.total>100' -c 10",
    "mqtool tap --all --firehose --idle-timeout 10s",
    without=("url", "prefetch", "auto_ack", "strict"),
)
def tap(
    *,
    what: What,
    off: Annotated[bool, Option("--firehose-off", help="Switch the firehose off, and do nothing else")] = False,
    where: Where = None,
    buffer: Annotated[
        int, Option(min=1, metavar="N", help="Keep up to N messages for a slow reader; drop the oldest")
    ] = 100_000,
    receiving: Receiving,
    urls: Urls = None,
    broker: ManagedBroker,
) -> None:
    """Show copies of messages as they are published."""
    each_url: list[str | None] = [*urls] if urls else [None]
    if len(each_url) > 1 and str(broker.options.password_file) == "-":
        raise UsageError(
            "--password-file - reads stdin only once, but there are several brokers", "put the password in a file"
        )
    call = broker.options.call
    if urls and "urls" in call.typed:
        call = call._replace(typed=call.typed | {"url"})
    brokers = [broker.changed(options=broker.options.changed(url=url, call=call)).access() for url in each_url]
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
        print_taps(sources, TapPrinting(receiving, line, buffer, where))


def _with_exchange(delivery: Delivery) -> str:
    return f" [x] {delivery.exchange or '(default)'} {delivery.routing_key}:"


@app.command(
    "mqtool move jobs --to jobs-old",
    "mqtool move jobs --to slow --where 'headers.tenant=acme' -c 100",
    "mqtool move jobs --to jobs --to-context staging --rate 500/s",
)
def move(
    queue: Annotated[str, Argument(help="Queue to move messages from")],
    destination: Destination,
    broker: ManagedBroker,
    yes: Yes = False,
    where: Where = None,
    count: Annotated[int | None, Option("-c", "-n", min=1, help="Move up to N messages")] = None,
    rate: Annotated[float | None, Option(help="Move no faster than this, such as 500/s", **RATE)] = None,
    idle_timeout: Annotated[
        float | None, Option(help="Stop after this long without a message, not when empty", **DURATION)
    ] = None,
    confirm_timeout: ConfirmTimeout = CONFIRM_TIMEOUT,
) -> None:
    """Move messages to another queue, here or on another broker.

    Each message is removed from its queue once the broker has confirmed it in the other one. If the command is killed
    or loses a connection (exit 69), no message is lost, but up to 100 may be in both queues. Run it again to continue.
    """
    access = broker.access(reconnects=False)
    other = destination.access(access)
    if other is None and destination.to == queue:
        raise UsageError(f"--to names the same queue, {queue!r}", "move to another queue, or use --to-url")
    with access.channel(confirm_timeout=confirm_timeout) as source, _target(other, source, confirm_timeout) as target:
        require(queue, source, access)
        there = source.depth_of(queue)
        declare = f"nothing was moved; to declare it there: {pasteable('queue declare', destination.to)}"
        require(destination.to, target, other or access, declare)
        what = f"move {f'up to {count:,}' if count else 'the'} messages of {queue} to {destination.to}"
        protected = [each for each in (access, other) if each is not None and each.protected]
        for each in protected or [access]:
            ask(what, each, yes=yes, is_safe=True)
        user = (other or access).user
        if where is not None:
            _check_limit(access, source, queue)

        def message_for(delivery: Delivery) -> Message | None:
            if where is not None and not where.matches(of_delivery(delivery)):
                return None
            return elsewhere(delivery, destination.to, user)

        until = Until(moved=count, idle=idle_timeout)
        transfer = Transfer(source, target, queue, message_for, until=until, per_second=rate, chooses=where is not None)
        _show(transfer, min(there, count or there), f"from {queue} to {destination.to}", other)


@contextmanager
def _target(other: Access | None, source: Channel, confirm_timeout: float) -> Iterator[Channel]:
    if other is None:
        yield source
        return
    with other.channel(confirm_timeout=confirm_timeout) as channel:
        yield channel


def _check_limit(access: Access, source: Channel, queue: str) -> None:
    """Receive and requeue the first message. Raise MqtoolError if requeuing it would exceed the delivery limit."""
    api: Management | None = None
    with suppress(Unavailable):
        api = access.management(HINT_PATIENCE)
    kind = peeking.kind_of(source, queue, api, access.vhost)
    if kind.limit is not None:
        ready = source.depth_of(queue)
        with closing(peeking.peek(source, queue, kind, 1)) as head:
            next(head, None)
        wait_for(source, queue, ready)  # otherwise the next message would be delivered before the first one


def _show(transfer: Transfer, expected: int, between: str, other: Access | None) -> None:
    moved = 0
    progress = Progress("moved", fraction=lambda: min(1.0, (moved + transfer.kept) / max(1, expected)))
    try:
        for delivery in progress.of(transfer):
            moved += 1
            if current().verbose:
                output.status(f" [x] Moved {name_of(delivery)}")
    except NotMoved as error:
        if moved:
            raise SomeFailed(str(error), error.hint) from error
        raise
    except (NotConfirmed, Unavailable) as error:
        if isinstance(error, NotConfirmed) or error.hint is None:
            error.hint = f"run it again to move the rest; up to {AT_ONCE} messages may be in both queues"
        raise
    finally:
        progress.stop()
        left = f", {transfer.kept:,} left" if transfer.kept else ""
        output.status(f"{moved:,} moved {between}{f' at {other.address}' if other else ''}{left}")
    stopping.exit_if_requested()
