"""mqtool delayed ls, show, cancel, now; see delayed_relay.py for the others."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer

from mqtool import ndjson
from mqtool import where as conditions
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command, group
from mqtool.cli.commands import delayed_relay
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.options import ManagedBroker, UnneededYes, Yes
from mqtool.cli.options.receiving_options import WhereOption
from mqtool.duration import compact_duration
from mqtool.errors import MqtoolError, NotConfirmed, SomeFailed, UsageError
from mqtool.spelling import counted
from mqtool.work.pending_delays import Exclusive, Waiting, WaitingChoice, WaitingMessages

app = group("delayed", "Show, cancel, deliver or relay delayed messages.", heading="Messages")
app.add_typer(delayed_relay.part)


AsJson = Annotated[bool, typer.Option("--json", help="Print NDJSON")]


Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the messages")]


_COLUMNS = ("to", "kind", "wait", "messages", "held_in")


#: If more queues or messages than this are left out, the reason is printed only for the first ones.
_SAID = 10


class _Skipped:
    """The wait queues whose messages could not be received or requeued. Warns of each, and counts those that matter.

    An exclusive queue does not matter: mqtool declares none, and only the client that has declared it can use it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._said = set[str]()

    def __call__(self, queue: str, error: MqtoolError) -> None:
        if queue in self._said:
            return
        self._said.add(queue)
        self.count += not isinstance(error, Exclusive)
        if len(self._said) <= _SAID:
            output.warning(f"wait queue {queue!r}: {error}")

    def check(self) -> None:
        """Raise SomeFailed if messages that the user asked for may be in these queues."""
        if self.count:
            raise SomeFailed(f"errors while reading {counted(self.count, 'wait queue')}")


@contextmanager
def _waiting(access: Access, skipped: _Skipped) -> Iterator[WaitingMessages]:
    with access.connect() as connection:
        yield WaitingMessages(connection.channel(), access.management(), access.vhost, skipped)


@command(app, "mqtool delayed ls", "mqtool delayed ls --json", effect=Effect.READS)
def ls(broker: ManagedBroker, as_json: AsJson = False) -> None:
    """Count delayed messages, by destination and delay."""
    rows: list[dict[str, Any]] = []
    skipped = _Skipped()
    with _waiting(access_to(broker, reconnects=False), skipped) as waiting:
        for queue, count in waiting.queues():
            wait = compact_duration(queue.seconds) if queue.seconds else None
            row = (queue.to, queue.kind, wait, count, queue.name)
            rows.append(dict(zip(_COLUMNS, row, strict=True)))
        for exchange, count in waiting.exchanges():
            rows.append(dict(zip(_COLUMNS, (exchange, "plugin", None, count, exchange), strict=True)))
        is_held = _warn_of_held(waiting)
    if not layout.show_rows(rows, _COLUMNS, as_json=as_json) and not is_held:
        output.status("no messages are waiting")
    skipped.check()


@command(app, "mqtool delayed show", "mqtool delayed show jobs --json", effect=Effect.READS)
def show(
    broker: ManagedBroker,
    to: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUEUE]", help="Show only messages for this queue or exchange", autocompletion=names_of("queues")
        ),
    ] = None,
    where: WhereOption = None,
    as_json: AsJson = False,
) -> None:
    """Show delayed messages, and when each is due.

    The messages stay where they are. Showing them has the same side effects as 'mqtool peek'. Messages held by the
    plugin cannot be shown.
    """
    shown, skipped, access = 0, _Skipped(), access_to(broker, reconnects=False)
    with _waiting(access, skipped) as waiting, closing(waiting.messages(to)) as messages:
        for each in stopping.until_requested(messages):
            if where is None or where.matches(_record(each)):
                shown += 1
                _show(each, as_json=as_json)
        _say_what_is_hidden(waiting)
    if not shown:
        output.status("no waiting messages found")
    skipped.check()


def _show(each: Waiting, *, as_json: bool) -> None:
    due = each.queue.due_of(each.delivery)
    if as_json:
        each.message.due = due
        output.show_json_lines(ndjson.from_message(each.message))
        return
    if due is not None:
        when = f"at {datetime.fromtimestamp(due):%Y-%m-%d %H:%M:%S}{' or later' * each.is_behind}"
    else:
        when = f"within {compact_duration(each.queue.seconds)}" if each.queue.seconds else "once a relay is running"
    what = f"{each.message.message_id or '(no message id)'}: {when}, to {each.queue.to}: "
    body, rest = output.excerpt(each.message.body)
    output.show(output.one_line(what + body.decode("utf-8", "backslashreplace") + rest))


def _record(each: Waiting) -> conditions.Record:
    return {**conditions.of_message(each.message), "queue": each.queue.name}


def _warn_of_held(waiting: WaitingMessages) -> bool:
    """Warn of messages that are due, but whose destinations do not accept them; return True if there are any."""
    found = [*waiting.held()]
    for queue, count in found[:_SAID]:
        those = "is due: it stays there" if count == 1 else "are due: they stay there"
        output.warning(f"{counted(count)} in wait queue {queue.name!r} {those} until {queue.to!r} exists and has room")
    return bool(found)


def _say_what_is_hidden(waiting: WaitingMessages) -> None:
    _warn_of_held(waiting)
    for exchange, count in waiting.exchanges():
        output.notice(f"{counted(count)} in exchange {exchange!r} not shown: the plugin does not reveal them")


@command(
    app, "mqtool delayed cancel 5f0c…", "mqtool delayed cancel --where 'headers.tenant=a' --yes", effect=Effect.CHANGES
)
def cancel(broker: ManagedBroker, yes: Yes = False, ids: Ids = None, where: WhereOption = None) -> None:
    """Delete delayed messages for good.

    Messages held by the plugin cannot be cancelled.
    """
    _check(ids, where)
    access = access_to(broker, reconnects=False)
    ask("delete waiting messages for good", access, yes=yes, hint="pass --yes")
    _take(access, ids, where, WaitingMessages.cancel, "cancelled")


@command(app, "mqtool delayed now 5f0c…", "mqtool delayed now --where 'routing_key=jobs'", effect=Effect.CHANGES)
def now(broker: ManagedBroker, yes: UnneededYes = False, ids: Ids = None, where: WhereOption = None) -> None:
    """Deliver delayed messages now.

    Once the broker has confirmed messages at their destination, they are removed from their wait queue. If the command
    is killed, no message is lost, but messages that were already delivered may be delivered again when they are due.
    Messages held by the plugin cannot be delivered early.
    """
    _check(ids, where)
    access = access_to(broker, reconnects=False)
    ask("deliver waiting messages now", access, yes=yes, is_safe=True)
    stays: list[MqtoolError] = []
    _take(access, ids, where, lambda waiting, chosen: waiting.deliver(chosen, stays.append), "delivered", stays)


def _check(ids: list[str] | None, where: conditions.Where | None) -> None:
    if not ids and where is None:
        raise UsageError("select messages by id, or with --where", "'mqtool delayed show' lists them")


def _take(
    access: Access,
    ids: list[str] | None,
    where: conditions.Where | None,
    take: Callable[[WaitingMessages, WaitingChoice], Generator[Waiting]],
    done: str,
    stays: Sequence[MqtoolError] = (),
) -> None:
    """Cancel or deliver the selected messages, and print how many there were.

    Args:
        stays: when all is done, an error for each selected message that could not be delivered.

    Raises:
        NotConfirmed: there was one message, and its destination did not take it.
        SomeFailed: messages could not be delivered, no waiting message has one of the ids, or selected messages may be
            in a queue that could not be read.
    """
    missing, count, skipped = set(ids or ()), 0, _Skipped()

    def chosen(each: Waiting) -> bool:
        is_chosen = (not ids or each.message.message_id in ids) and (where is None or where.matches(_record(each)))
        if is_chosen:
            missing.discard(each.message.message_id or "")
        return is_chosen

    with _waiting(access, skipped) as waiting:
        with stopping.calling(waiting.stop), closing(take(waiting, chosen)) as taken:
            for count, _ in enumerate(taken, 1):  # noqa: B007
                pass
        if stopping.requested() is None:
            _say_what_is_hidden(waiting)
    output.status(f"{count:,} {done}")
    if not (count or missing or stopping.requested()) and len(stays) == 1 and isinstance(stays[0], NotConfirmed):
        raise stays[0]
    for error in stays[:_SAID]:
        output.warning(str(error))
    stopping.exit_if_requested()
    failed = [f"{counted(len(stays))} could not be delivered"] if stays else []
    if missing:
        failed.append(f"no waiting message has the id {sorted(missing)[0]!r}")
        raise SomeFailed("; ".join(failed), "'mqtool delayed show' lists them")
    if failed:
        raise SomeFailed(failed[0])
    if not ids:
        skipped.check()
