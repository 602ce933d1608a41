"""mqtool peek."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from mqtool import where as conditions
from mqtool.cli import stopping
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.completion import names_of
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.display.delivery_writer import redirect, say_appended
from mqtool.cli.options import ManagedBroker
from mqtool.cli.options.receiving_options import OFFSET, PrintingOptions, WhereWaiting
from mqtool.cli.pipe import waiting
from mqtool.cli.pipe.existence import require
from mqtool.errors import MqtoolError, UsageError
from mqtool.offsets import FIRST
from mqtool.spelling import counted
from mqtool.work import peeking
from mqtool.work.peeking import How, PeekKind

app = typer.Typer()

#: The number of messages to show on a terminal.
_SCREENFUL = 10
#: Warn if a message has this many or fewer deliveries left before it reaches the queue's delivery limit.
_CLOSE = 5


@command(
    app,
    "mqtool peek jobs",
    "mqtool peek jobs -c 5 --json",
    "mqtool peek jobs --where 'headers.x-retry>=3'",
    "mqtool peek events --offset last",
    effect=Effect.READS,
    heading="Messages",
)
def peek(
    queue: Annotated[str, typer.Argument(help="Queue or stream", metavar="QUEUE", autocompletion=names_of("queues"))],
    printing: PrintingOptions,
    broker: ManagedBroker,
    limit: Annotated[
        int | None,
        typer.Option(
            "--count", "-c", "-n", min=1, help="Show up to N messages", metavar="N", show_default="10 on a terminal"
        ),
    ] = None,
    where: WhereWaiting = None,
    offset: Annotated[
        Any | None, typer.Option("--offset", help="Where to start in a stream (default: first)", **OFFSET)
    ] = None,
) -> None:
    """Show the messages in a queue and leave them there.

    The messages stay in order, and are marked as redelivered. Consumers cannot get them while they are being shown.

    In a quorum queue of RabbitMQ up to 4.2, showing a message counts as a delivery, and the queue drops or dead-letters
    messages that exceed its delivery limit (20 by default from RabbitMQ 4.0 on). peek warns when messages come close to
    the limit, and stops before they exceed it. From 4.3 on, it does not count, but dead letters may arrive over the
    limit: peek shows these, too, and publishes them again at the end of the queue, because they cannot be returned.
    Peeking at a stream has no side effects.
    """
    redirect(printing.into)
    write = printing.writer("{key}: {body}")
    # No reconnecting, because messages would then be shown twice.
    access, shown, often = access_to(broker, reconnects=False), 0, 0
    is_screenful = limit is None and output.is_terminal(output.STDOUT)
    limit = _SCREENFUL if is_screenful else limit
    reader = output.PipeReader(on_gone=lambda: None)
    with access.connect() as connection, stopping.calling(connection.stop):
        channel = connection.channel()
        require(queue, channel, access)
        kind = waiting.kind_of(access, channel, queue)
        costs = peeking.is_before_4_3(connection.broker)
        if offset is not None and kind.how is not How.STREAM:
            raise UsageError(f"{queue!r} is not a stream, so it has no offsets", "leave out --offset")
        # With --where, any number of messages may have to be read to find enough matching ones.
        most = limit if where is None else None
        ready = 0 if kind.how is How.STREAM or where is not None else channel.depth_of(queue)
        with closing(peeking.peek(channel, queue, kind, most, offset or FIRST)) as deliveries:
            try:
                for delivery in stopping.until_requested(deliveries):
                    often = max(often, peeking.times_requeued(delivery, connection.broker))
                    if where is None or where.matches(conditions.of_delivery(delivery)):
                        write.add(delivery)
                        shown += 1
                        if shown == limit:
                            break
                        if shown == peeking.FIRST_BATCH:
                            write.flush()  # so that a reader such as `head` can end before the next batch is taken
                    reader.check()
            except MqtoolError:  # after the last message, when the messages are requeued
                write.flush()
                raise
            write.flush()
    if shown or stopping.requested() is None:  # after a signal, unread messages may match
        _say(queue, kind, shown, printing.into, has_condition=where is not None, costs=costs)
    if is_screenful and shown == limit and ready != shown:
        output.notice(f"{ready - shown:,} more: -c N" if ready else "to see more: -c N")
    if kind.limit is not None and costs and often >= kind.limit - _CLOSE:
        output.warning(
            f"messages have been requeued up to {counted(often + 1, 'time')}: "
            f"after more than {kind.limit}, {queue!r} drops them"
        )
    stopping.exit_if_requested()


def _say(queue: str, kind: PeekKind, shown: int, into: Path | None, *, has_condition: bool, costs: bool) -> None:
    if not shown:
        output.status(f"no message in {queue} matches" if has_condition else f"{queue} has no messages to show")
        return
    say_appended(shown, into)
    if kind.how is not How.STREAM:
        price = f", one delivery closer to the limit of {kind.limit}, after which the queue drops them"
        price = price if costs and kind.limit is not None else ""
        if costs and not kind.is_certain:
            price = ": each look may count as a delivery, and the limit can be read only from the management API"
        stays = "it stays" if shown == 1 else "they stay"
        output.notice(f"{shown:,} shown; {stays} in {queue}, marked as redelivered{price}")
