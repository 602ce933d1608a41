"""mqtool peek."""

from contextlib import closing
from typing import Annotated, Any

from typer import Argument, Option

from mqtool import where as conditions
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.options import OFFSET, Commands, ManagedBroker, Printing, Where
from mqtool.errors import Unavailable, UsageError
from mqtool.management import Management
from mqtool.offsets import FIRST
from mqtool.work import peeking
from mqtool.work.peeking import How, Kind

app = Commands()

#: How close to the limit a message may come before a warning.
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

    They stay in order, and are marked as redelivered. A quorum queue also counts each look as a delivery, and drops
    messages beyond its delivery limit (20 by default from RabbitMQ 4.0 on): peek warns before, and stops short of it.
    Consumers do not get the messages while they are being shown. A stream has no such price.
    """
    printing.redirect()
    write = printing.writer("{key}: {body}")
    # Without reconnection: what was shown would come again.
    access, shown, often = broker.access(reconnects=False), 0, 0
    with access.connect() as connection, stopping.calling(lambda: None):
        channel = connection.channel()
        kind = peeking.kind_of(channel, queue, _api(access), access.vhost)
        if offset is not None and kind.how is not How.STREAM:
            raise UsageError(f"{queue!r} is not a stream, so it has no offsets", "leave out --offset")
        # Those that do not match do not count, so any number may have to be looked at.
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
        output.warning(f"messages have come back up to {often + 1} times: beyond {kind.limit}, {queue!r} drops them")


def _api(access: Access) -> Management | None:
    try:
        return access.management()
    except Unavailable:
        return None


def _say(queue: str, kind: Kind, shown: int, *, has_condition: bool) -> None:
    """What there was, and what looking has cost."""
    if not shown:
        output.status(f"no message in {queue} matches" if has_condition else f"{queue} has no messages to show")
    elif kind.how is not How.STREAM:
        price = "" if kind.limit is None else f", one delivery nearer to the limit of {kind.limit}"
        output.notice(f"{shown:,} shown; they stay in {queue}, marked as redelivered{price}")
