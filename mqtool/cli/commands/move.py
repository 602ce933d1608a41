"""mqtool move."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from mqtool.amqp import Channel, administration, pika_errors
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to, access_to_destination
from mqtool.cli.chosen_broker import is_same_node
from mqtool.cli.command_line import command
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.display.progress import Progress
from mqtool.cli.invocation import current
from mqtool.cli.options import RATE, ConfirmTimeout, ManagedBroker, UnneededYes
from mqtool.cli.options.broker_options import DestinationOptions, ShownVerbose
from mqtool.cli.options.receiving_options import WhereWaiting
from mqtool.cli.pipe.existence import require
from mqtool.cli.pipe.waiting import check_source
from mqtool.cli.values import DURATION
from mqtool.errors import InternalError, NotConfirmed, SomeFailed, Unavailable, UsageError
from mqtool.message import CONFIRM_TIMEOUT, Delivery, Message
from mqtool.spelling import counted, pasteable, quoted
from mqtool.where import of_delivery
from mqtool.work.transfer import RUN_AGAIN, NotMoved, QueueTransfer, Until, elsewhere, name_of, stays

app = typer.Typer()

#: If more messages than this cannot be moved, the reason is printed only for the first ones.
_SHOWN = 10


@command(
    app,
    "mqtool move jobs --to jobs-old",
    "mqtool move jobs --to slow --where 'headers.tenant=acme' -c 100",
    "mqtool move jobs --to jobs --to-context staging --rate 500/s",
    effect=Effect.CHANGES,
    instead={"verbose": ShownVerbose},
    heading="Messages",
)
def move(
    queue: Annotated[
        str, typer.Argument(help="Queue to move messages from", metavar="QUEUE", autocompletion=names_of("queues"))
    ],
    destination: DestinationOptions,
    broker: ManagedBroker,
    yes: UnneededYes = False,
    where: WhereWaiting = None,
    count: Annotated[
        int | None, typer.Option("--count", "-c", "-n", min=1, help="Move up to N messages", metavar="N")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Move no faster than this, such as 500/s", **RATE)
    ] = None,
    idle_timeout: Annotated[
        float | None, typer.Option(help="When QUEUE is empty, wait this long for more messages", **DURATION)
    ] = None,
    confirm_timeout: ConfirmTimeout = CONFIRM_TIMEOUT,
) -> None:
    """Move messages to another queue, on the same broker or another.

    Each message is removed from QUEUE once the broker of the other queue has confirmed it. If the command is killed or
    loses a connection (exit 69), no message is lost, but up to 100 may be in both queues. Run the command again to
    continue. If the other queue has a limit, it may drop messages after confirming them, unless its overflow setting is
    reject-publish. With reject-publish-dlx, messages that it rejects stay in QUEUE, but are also dead-lettered.
    """
    access = access_to(broker, reconnects=False)
    other = access_to_destination(destination, access)
    same_queue = UsageError(f"--to names the same queue, {queue!r}", "move to another queue, or use --to-url")
    if destination.to == queue and (other is None or _are_at_same_address(access, other)):
        raise same_queue
    with access.channel(confirm_timeout=confirm_timeout) as source, _target(other, source, confirm_timeout) as target:
        require(queue, source, access)
        there = source.depth_of(queue)
        require(destination.to, target, other or access, f"nothing was moved; {_how_to_declare(destination, other)}")
        is_same = destination.to == queue and administration.have_same_queues(source, target)
        if is_same:
            raise same_queue
        what = f"move {f'up to {count:,}' if count else 'the'} messages of {queue} to {destination.to}"
        protected = {each.protected: each for each in (access, other) if each is not None and each.protected}
        for each in protected.values() or [access]:
            ask(what, each, yes=yes, is_safe=True)
        user, skipped = (other or access).user, 0
        leaving = check_source(access, source, queue, requeues=where is not None)

        def message_for(delivery: Delivery) -> Message | None:
            nonlocal skipped
            if where is not None and not where.matches(of_delivery(delivery)):
                return None
            frame_max = target.connection.frame_max
            message = elsewhere(delivery, destination.to, user, frame_max)
            if why := stays(delivery, message, frame_max):
                skipped += 1
                if skipped <= _SHOWN:
                    output.warning(why)
                return None
            return message

        # Moved messages may come back: the other queue dead-letters them to this one, or, if unknown, is the same.
        is_bounded = idle_timeout is None or is_same is None
        until = Until(moved=count, seen=there if is_bounded else None, idle=idle_timeout)
        transfer = QueueTransfer(
            source,
            target,
            queue,
            message_for,
            until=until,
            per_second=rate,
            chooses=where is not None,
            **leaving._asdict(),
        )
        try:
            _show(transfer, there, count, f"from {queue} to {destination.to}", other)
        finally:
            leaving.say()
        if skipped:
            # They are now the first ones in the queue or, with --where, the first ones that match.
            chosen = "" if where is None else f" --where {quoted(where.text)}"
            raise SomeFailed(
                f"{counted(skipped)} could not be moved and {'is' if skipped == 1 else 'are'} still in {queue}",
                f"to take {'it' if skipped == 1 else 'them'} out: "
                + pasteable(f"receive --json -c {skipped}{chosen} --queue=", queue),
            )


def _are_at_same_address(one: Access, other: Access) -> bool:
    return one.vhost == other.vhost and is_same_node(one.address, other.address)


def _how_to_declare(destination: DestinationOptions, other: Access | None) -> str:
    if destination.to.startswith("amq."):
        return "--to takes the name of a queue, not of an exchange"
    there = ""
    if destination.to_context is not None:
        there = f" -C {quoted(destination.to_context)}"
    elif other is not None:
        there = f" -u {quoted(str(other.address))}"
    return f"to declare it there: {pasteable(f'queue declare{there}', destination.to)}"


@contextmanager
def _target(other: Access | None, source: Channel, confirm_timeout: float) -> Iterator[Channel]:
    if other is None:
        yield source
        return
    with other.channel(confirm_timeout=confirm_timeout) as channel:
        yield channel


def _show(transfer: QueueTransfer, there: int, count: int | None, between: str, other: Access | None) -> None:
    moved, expected, has_seen_all = 0, min(there, count or there), False
    progress = Progress("moved", fraction=lambda: min(1.0, (moved + transfer.kept) / max(1, expected)))
    try:
        for delivery in progress.of(transfer):
            moved += 1
            if current().verbose:
                output.status(f" [x] Moved {name_of(delivery)}")
        has_seen_all = moved != count and stopping.requested() is None
    except NotMoved as error:
        if moved:
            raise SomeFailed(str(error), error.hint) from error
        raise
    except (NotConfirmed, Unavailable) as error:
        if isinstance(error, InternalError):
            error.hint = f"{pika_errors.undeliverable(transfer.queue)}; {RUN_AGAIN}"
        elif isinstance(error, NotConfirmed) or error.hint is None:
            error.hint = RUN_AGAIN
        raise
    finally:
        progress.stop()
        left = ""
        if transfer.kept:
            seen = f"; stopped after looking at {counted(moved + transfer.kept)}"
            left = f", {transfer.kept:,} left" if has_seen_all else seen
        output.status(f"{moved:,} moved {between}{f' at {other.address}' if other else ''}{left}")
    stopping.exit_if_requested()
