"""mqtool move."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Annotated

from typer import Argument, Option

from mqtool.amqp import Channel
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output
from mqtool.cli.display.progress import Progress
from mqtool.cli.options import CONFIRM_TIMEOUT, DURATION, RATE, Commands, ConfirmTimeout, ManagedBroker, Where, Yes, ask
from mqtool.cli.options.destination import Destination
from mqtool.errors import NotConfirmed, NotFound, SomeFailed, Unavailable, UsageError
from mqtool.management import Management
from mqtool.message import Delivery, Message
from mqtool.topology import Queue
from mqtool.where import of_delivery
from mqtool.work import peeking
from mqtool.work.moving import NotMoved, elsewhere, name_of
from mqtool.work.transfer import AT_ONCE, Transfer, Until, wait_for

app = Commands()

#: Seconds to wait for the management API, which only says whether a queue limits deliveries: to connect, and to answer.
_PATIENCE = 0.3, 1.0


@app.command(
    "mqtool move jobs --to jobs-old",
    "mqtool move jobs --to slow --where 'headers.tenant=acme' -c 100",
    "mqtool move jobs --to jobs --to-context staging --rate 500/s",
)
def move(
    queue: Annotated[str, Argument(help="Queue to move messages from")],
    destination: Destination,
    broker: ManagedBroker,
    yes: Yes,
    where: Where = None,
    count: Annotated[int | None, Option("-c", "-n", min=1, help="Move up to N messages")] = None,
    rate: Annotated[float | None, Option(help="Move no faster than this, such as 500/s", **RATE)] = None,
    idle_timeout: Annotated[
        float | None, Option(help="End after this long without a message, not when empty", **DURATION)
    ] = None,
    confirm_timeout: ConfirmTimeout = CONFIRM_TIMEOUT,
) -> None:
    """Move messages to another queue, here or on another broker.

    Each is confirmed there before it is removed here, so a move that is killed or loses a connection (exit 69) loses
    nothing, and doubles up to 100 messages: run it again.
    """
    access = broker.access(reconnects=False)
    other = destination.access(access)
    if other is None and destination.to == queue:
        raise UsageError(f"--to names the same queue, {queue!r}", "move to another queue, or use --to-url")
    with access.channel(confirm_timeout=confirm_timeout) as source, _target(other, source, confirm_timeout) as target:
        there = source.depth_of(queue)
        _expect(target, destination.to)
        what = f"move {f'up to {count:,}' if count else 'the'} messages of {queue} to {destination.to}"
        protected: list[str | None] = [each.protected for each in (access, other) if each and each.protected]
        for name in protected or [None]:
            ask(what, yes, protected=name, is_safe=True)
        user = (other or access).address.user
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
    """Where to publish: on a connection of its own to another broker."""
    if other is None:
        yield source
        return
    with other.channel(confirm_timeout=confirm_timeout) as channel:
        yield channel


def _expect(target: Channel, queue: str) -> None:
    try:
        target.expect(Queue(queue))
    except NotFound as error:
        raise NotFound(str(error), f"nothing was moved; 'mqtool queue declare {queue}' there, or check --to") from error


def _check_limit(access: Access, source: Channel, queue: str) -> None:
    """Check that what stays can come back to its queue, which may drop what comes back too often.

    Raises:
        MqtoolError: the message at the head cannot.
    """
    api: Management | None = None
    with suppress(Unavailable):
        api = access.management(_PATIENCE)
    kind = peeking.kind_of(source, queue, api, access.vhost)
    if kind.limit is not None:
        ready = source.depth_of(queue)
        with closing(peeking.peek(source, queue, kind, 1)) as head:
            next(head, None)
        wait_for(source, queue, ready)  # else the next message is delivered before the head


def _show(transfer: Transfer, expected: int, between: str, other: Access | None) -> None:
    """Move the messages, and show how far it has come."""
    moved = 0
    progress = Progress("moved", fraction=lambda: min(1.0, (moved + transfer.kept) / max(1, expected)))
    try:
        for delivery in progress.of(transfer):
            moved += 1
            if output.verbose:
                output.status(f" [x] Moved {name_of(delivery)}")
    except NotMoved as error:
        if moved:
            raise SomeFailed(str(error), error.hint) from error
        raise
    except (NotConfirmed, Unavailable) as error:
        if isinstance(error, NotConfirmed) or error.hint is None:
            error.hint = f"run it again: what was not moved is still there; up to {AT_ONCE} messages are in both queues"
        raise
    finally:
        progress.stop()
        left = f", {transfer.kept:,} left" if transfer.kept else ""
        output.status(f"{moved:,} moved {between}{f' at {other.address}' if other else ''}{left}")
    stopping.exit_if_requested()
