"""mqtool dlq ls, show, redrive, drop."""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import typer

from mqtool import ndjson
from mqtool import where as conditions
from mqtool.amqp import Channel
from mqtool.amqp.administration import exists
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command, group
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.display.progress import Progress
from mqtool.cli.invocation import NOT_CALLED, Call, current
from mqtool.cli.options import ManagedBroker, Yes
from mqtool.cli.options.broker_options import ShownVerbose
from mqtool.cli.options.receiving_options import WhereWaiting
from mqtool.cli.pipe import waiting
from mqtool.cli.pipe.existence import require
from mqtool.cli.pipe.waiting import check_source
from mqtool.cli.values import DURATION, parsed
from mqtool.errors import MqtoolError, NotFound, SomeFailed, Unavailable
from mqtool.message import Delivery
from mqtool.spelling import counted, pasteable
from mqtool.topology import Queue
from mqtool.work import peeking, redriving
from mqtool.work.history import REASONS, death_of
from mqtool.work.redriving import LetterChoice
from mqtool.work.retry_or_dead_letter import dead_letter_queue
from mqtool.work.transfer import RUN_AGAIN

app = group("dlq", "Show dead letters, move them back, or drop them.", heading="Messages")

#: `ls` counts the reasons of up to this many dead letters in each queue.
_LOOKED_AT = 1000
#: If more dead letters than this cannot be moved, the reason is printed only for the first ones.
_SAID = 10

QueueArgument = Annotated[
    str,
    typer.Argument(
        metavar="QUEUE", autocompletion=names_of("queues"), help="Work queue; its dead letters are in QUEUE.dlq"
    ),
]


def _reason(text: str) -> str:
    """Check a reason for dead-lettering, or a part of one, such as "exhausted"."""
    if not any(text in each for each in REASONS):
        raise ValueError(f"{text!r} is not one of {', '.join(REASONS)}")
    return text


@dataclass(kw_only=True, eq=False, repr=False)
class Which:
    """Options that select dead letters of a work queue."""

    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="QUEUE",
            help="Queue that holds the dead letters, instead of QUEUE.dlq",
            autocompletion=names_of("queues"),
        ),
    ] = None
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Only the dead letter with this message id", metavar="ID")
    ] = None
    reason: Annotated[
        Any | None,
        typer.Option(
            "--reason",
            help="Only messages that were dead-lettered for this reason",
            metavar="REASON",
            parser=parsed(_reason),
            autocompletion=lambda: [*REASONS],
        ),
    ] = None
    error: Annotated[str | None, typer.Option(metavar="TEXT", help="Only messages whose last error contains TEXT")] = (
        None
    )
    older: Annotated[
        float | None, typer.Option(help="Only messages that first failed at least this long ago", **DURATION)
    ] = None
    where: WhereWaiting = None
    call: Call = NOT_CALLED

    @property
    def is_all(self) -> bool:
        """True if all dead letters are selected."""
        return not self.ids and {self.reason, self.error, self.older, self.where} == {None}

    def words(self, there: int, queue: str) -> str:
        """Describe the selection in words for a confirmation prompt: "all 3 messages of jobs.dlq"."""
        selected = ("all " if there > 1 else "") if self.is_all else "the chosen ones of "
        return f"{selected}{counted(there)} of {queue}"

    def choice(self) -> LetterChoice:
        """Return a function that returns True for the selected dead letters."""
        chosen, where = redriving.choice(self.ids or (), self.reason, self.error, self.older), self.where
        if where is None:
            return chosen
        return lambda letter: where.matches(conditions.of_delivery(letter)) and chosen(letter)

    def noting(self, missing: set[str]) -> LetterChoice:
        """Return choice() as a function that also removes the id of each dead letter from `missing`."""
        chosen = self.choice()

        def noted(letter: Delivery) -> bool:
            missing.discard(letter.message_id or "")
            return chosen(letter)

        return noted

    def queue(self, work_queue: str) -> str:
        """Return the name of the queue that holds a work queue's dead letters."""
        return self.source or dead_letter_queue(work_queue).name

    def require(self, work_queue: str, channel: Channel, access: Access) -> None:
        """Raise NotFound if the queue of dead letters does not exist; suggest a work queue with a similar name."""
        hint, suffix = "'mqtool dlq ls' lists the queues that have dead letters", dead_letter_queue("").name
        worked = work_queue.removesuffix(suffix)
        is_here = self.source is not None or exists(channel, Queue(self.queue(work_queue)))
        if not is_here and exists(channel, Queue(work_queue)):
            hint = "'mqtool worker' declares it for the first message that it dead-letters; --from names another queue"
            if worked != work_queue:
                hint = f"{work_queue!r} has the dead letters of {worked!r}: {pasteable(self.call.command, worked)}"
            raise NotFound(f"queue {self.queue(work_queue)!r} does not exist", hint)
        require(self.queue(work_queue), channel, access, hint, suffix="" if self.source else suffix)


def _check_found(missing: set[str], which: Which, queue: str) -> None:
    """Raise SomeFailed if no dead letter of the work queue had one of the ids that the user gave."""
    if missing:
        shown = pasteable("dlq show --from=", which.source, queue) if which.source else pasteable("dlq show", queue)
        raise SomeFailed(f"no dead letter has the id {sorted(missing)[0]!r}", f"to list them: {shown}")


AsJson = Annotated[bool, typer.Option("--json", help="Print NDJSON")]


@command(app, "mqtool dlq ls", "mqtool dlq ls --json", effect=Effect.READS)
def ls(broker: ManagedBroker, as_json: AsJson = False) -> None:
    """List the queues that have dead letters."""
    access = access_to(broker, reconnects=False)
    try:
        queues = redriving.dead_letter_queues(access.management(), access.vhost)
    except Unavailable as error:
        raise Unavailable(
            str(error), "name it with --management, or look into one queue with 'mqtool dlq show QUEUE'"
        ) from error
    skipped = list[str]()
    rows = filter(None, (_counted(access, queue, skipped, as_json=as_json) for queue in queues))
    if not layout.show_rows(rows, ("queue", "messages", "reasons"), as_json=as_json):
        output.status("no queue has dead letters")
    if skipped:
        raise SomeFailed(f"errors while reading {counted(len(skipped), 'queue')}")


def _counted(access: Access, queue: str, skipped: list[str], *, as_json: bool) -> dict[str, Any] | None:
    """Count a queue's dead letters by reason. On an error, warn, and add the queue to `skipped`.

    Anyone may have declared a queue with such a name, or consume from it.
    """
    count, reasons = 0, Counter[str]()
    with _channel(access) as channel:
        try:
            count = channel.depth_of(queue)
            kind = waiting.kind_of(access, channel, queue)
            with closing(peeking.peek(channel, queue, kind)) as letters:
                reasons.update(
                    death_of(letter).reason for letter in islice(stopping.until_requested(letters), _LOOKED_AT)
                )
        except NotFound:  # it has just been deleted
            return None
        except MqtoolError as error:
            if not (channel.is_open or channel.refused):  # the connection was lost
                raise
            skipped.append(queue)
            if len(skipped) <= _SAID:
                output.warning(f"dead letters in {queue!r}: {error}")
    found = dict(reasons.most_common())
    as_text = ", ".join(f"{number:,} {reason}" for reason, number in found.items())
    return {"queue": queue, "messages": count, "reasons": found if as_json else as_text} if count else None


@contextmanager
def _channel(access: Access) -> Iterator[Channel]:
    # A signal must not interrupt the requeueing of letters that the broker may lose with the connection.
    with access.connect() as connection, stopping.calling(connection.stop):
        yield connection.channel(strict=access.strict)
    stopping.exit_if_requested()


@command(app, "mqtool dlq show jobs", "mqtool dlq show jobs --reason exhausted --json", effect=Effect.READS)
def show(
    queue: QueueArgument,
    which: Which,
    broker: ManagedBroker,
    limit: Annotated[
        int | None, typer.Option("--count", "-c", "-n", min=1, help="Show up to N dead letters", metavar="N")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show dead letters, oldest first, and leave them in place."""
    shown, access = 0, access_to(broker, reconnects=False)
    with _channel(access) as channel:
        which.require(queue, channel, access)
        kind = waiting.kind_of(access, channel, which.queue(queue))
        most = limit if which.is_all else None
        with closing(peeking.peek(channel, which.queue(queue), kind, most)) as letters:
            for letter in islice(filter(which.choice(), stopping.until_requested(letters)), limit):
                shown += 1
                if as_json:
                    output.show_json_lines(ndjson.from_delivery(letter, datetime.now(UTC)))
                else:
                    _show(letter)
    if not shown:
        output.status(f"{which.queue(queue)} {'is empty' if which.is_all else 'has no such dead letter'}")


def _show(letter: Delivery) -> None:
    death = death_of(letter)
    first = f", first on {death.first:%Y-%m-%d %H:%M:%S} UTC" if death.first else ""
    attempts = f" after {death.attempts} attempt{'s' * (death.attempts > 1)}" if death.attempts else ""
    redriven = f", redriven {counted(death.redrives, 'time')}" if death.redrives else ""
    history = f"{death.reason}{attempts}{redriven}{first}, from {death.queue.shown() if death.queue else '?'}"
    what = f"{letter.message_id or '(no message id)'}: {history}"
    layout.show_wrapped(output.one_line(what), "  ")
    if death.error:
        layout.show_wrapped(f"  error: {output.one_line(death.error)}", "         ")
    output.show(f"  body:  {output.continued(letter.body).decode('utf-8', 'backslashreplace')}")


@command(
    app,
    "mqtool dlq redrive jobs",
    "mqtool dlq redrive jobs --id 5f0c… --to jobs-by-hand",
    effect=Effect.CHANGES,
    instead={"verbose": ShownVerbose},
)
def redrive(
    queue: QueueArgument,
    which: Which,
    broker: ManagedBroker,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Skip the prompt; in protected contexts, use --confirm NAME")
    ] = False,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="QUEUE",
            help="Move to this queue (default: where each message came from)",
            autocompletion=names_of("queues"),
        ),
    ] = None,
) -> None:
    """Move dead letters back to where they came from.

    The headers of a dead letter name the queue that it came from, but any publisher can set such headers. Therefore, a
    dead letter is moved only if it was published with that queue's dead-letter exchange and routing key, or to
    QUEUE.dlq through the default exchange.

    On a terminal, asks for confirmation before it moves all dead letters, but not if options select only some of them.

    Each dead letter is removed once the broker has confirmed it in the destination queue. If the command is killed, no
    message is lost, but up to 100 may be in both queues. Run the command again to continue. From RabbitMQ 4.3 on, a
    dead letter may be over the delivery limit of its queue: these are moved one at a time, and one can be lost.
    """
    source, moved, left, missing = which.queue(queue), 0, 0, set(which.ids or ())

    def stays(why: str) -> None:
        nonlocal left
        left += 1
        if left <= _SAID:
            output.warning(why)

    access = access_to(broker, reconnects=False)
    origins = to or redriving.Origins(source, access.vhost, access.management)
    with access.channel() as channel:
        which.require(queue, channel, access)
        if to is not None:
            require(to, channel, access, f"nothing was moved; to declare it: {pasteable('queue declare', to)}")
        there = channel.depth_of(source)
        if not there:
            output.status(f"0 moved back from {source}")
            _check_found(missing, which, queue)
            return
        # A redrive loses nothing, so a script does not need --yes.
        is_safe = not (which.is_all and output.is_terminal(0))
        ask(f"move {which.words(there, source)} back", access, yes=yes, is_safe=is_safe)
        # To another queue, all are moved, without a look at their origins: nothing is requeued.
        leaving = check_source(access, channel, source, requeues=to is None or not which.is_all)
        progress = Progress("moved back", fraction=lambda: progress.count / max(1, there))
        try:
            letters = redriving.redrive(channel, origins, source, which.noting(missing), stays, **leaving._asdict())
            for letter in progress.of(letters):
                moved += 1
                if current().verbose:
                    output.status(f" [x] Redriven {letter.message_id}")
        except Unavailable as error:
            error.hint = error.hint or RUN_AGAIN
            raise
        finally:
            progress.stop()
            output.status(f"{moved:,} moved back from {source}")
            leaving.say()
    stopping.exit_if_requested()
    if left:
        raise SomeFailed(f"{left:,} could not be moved and are still in {source}", "move them to a queue with --to")
    _check_found(missing, which, queue)


@command(app, "mqtool dlq drop jobs --reason rejected", "mqtool dlq drop jobs --yes", effect=Effect.CHANGES)
def drop(queue: QueueArgument, which: Which, broker: ManagedBroker, yes: Yes = False) -> None:
    """Delete dead letters for good."""
    source, dropped, missing = which.queue(queue), 0, set(which.ids or ())
    access = access_to(broker, reconnects=False)
    with access.channel() as channel:
        which.require(queue, channel, access)
        there = channel.depth_of(source)
        if not there:
            output.status(f"0 dropped from {source}")
            _check_found(missing, which, queue)
            return
        or_select = ", or select with --id, --reason, --error, --older or --where" if which.is_all else ""
        ask(f"drop {which.words(there, source)} for good", access, yes=yes, hint="pass --yes" + or_select)
        leaving = check_source(access, channel, source, requeues=not which.is_all)
        try:
            # The user has not agreed to drop more. If others have left since the question, later ones take their place.
            for _ in redriving.drop(channel, source, which.noting(missing), there, **leaving._asdict()):
                dropped += 1
        finally:
            output.status(f"{dropped:,} dropped from {source}")
            leaving.say()
    stopping.exit_if_requested()
    _check_found(missing, which, queue)
