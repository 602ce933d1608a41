"""mqtool delayed ls, show, cancel, now."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Annotated, Any

from typer import Argument, Option

from mqtool import ndjson
from mqtool import where as conditions
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.display import output, tables
from mqtool.cli.options import Commands, ManagedBroker, Where, Yes, ask
from mqtool.duration import compact_duration
from mqtool.errors import SomeFailed, UsageError
from mqtool.work.waiting import Choice, Waiting, WaitingMessages

app = Commands()
delayed = app.group("delayed", "Show what waits until it is due; cancel or deliver it.")

AsJson = Annotated[bool, Option("--json", help="Print NDJSON")]
Ids = Annotated[list[str] | None, Argument(metavar="[ID]...", help="Message ids")]
_COLUMNS = ("to", "kind", "wait", "messages", "held_in")


@contextmanager
def _waiting(access: Access) -> Iterator[WaitingMessages]:
    with access.connect() as connection:
        yield WaitingMessages(connection.channel(), access.management(), access.vhost)


@delayed.command("mqtool delayed ls", "mqtool delayed ls --json")
def ls(broker: ManagedBroker, as_json: AsJson = False) -> None:
    """List how many messages wait, for what, and how long."""
    rows: list[dict[str, Any]] = []
    with _waiting(broker.access(reconnects=False)) as waiting:
        for queue, count in waiting.queues():
            kind = "retry" if queue.is_retry else "delay"
            row = (queue.to, kind, compact_duration(queue.seconds), count, queue.name)
            rows.append(dict(zip(_COLUMNS, row, strict=True)))
        for exchange, count in waiting.exchanges():
            rows.append(dict(zip(_COLUMNS, (exchange, "plugin", None, count, exchange), strict=True)))
    if not tables.show(rows, _COLUMNS, as_json=as_json):
        output.status("no messages wait")


@delayed.command("mqtool delayed show", "mqtool delayed show jobs --json")
def show(
    broker: ManagedBroker,
    to: Annotated[str | None, Argument(metavar="[QUEUE]", help="Queue or exchange they are for")] = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Show the messages that wait, and when each is due.

    They stay. Looking costs what it costs with 'mqtool peek'. What the plugin holds, nobody can look at.
    """
    shown = 0
    with _waiting(broker.access(reconnects=False)) as waiting, closing(waiting.messages(to)) as messages:
        for each in stopping.until_requested(messages):
            if where is None or where.matches(_record(each)):
                shown += 1
                _show(each, as_json=as_json)
        _say_what_is_hidden(waiting)
    if not shown:
        output.status("no such message waits where it can be seen")


def _show(each: Waiting, *, as_json: bool) -> None:
    due = each.queue.due_of(each.delivery)
    if as_json:
        each.message.due = due
        output.write(ndjson.from_message(each.message))
        return
    wait = compact_duration(each.queue.seconds)
    when = f"within {wait}" if due is None else f"at {datetime.fromtimestamp(due):%Y-%m-%d %H:%M:%S}"
    what = f"{each.message.message_id or '(no message id)'}: {when}, to {each.queue.to}: "
    body, rest = output.excerpt(each.message.body)
    output.show(output.one_line(what + body.decode("utf-8", "backslashreplace") + rest))


def _record(each: Waiting) -> conditions.Record:
    return {**conditions.of_message(each.message), "queue": each.queue.name}


def _say_what_is_hidden(waiting: WaitingMessages) -> None:
    for exchange, count in waiting.exchanges():
        output.notice(f"{count:,} wait in exchange {exchange!r}: the plugin does not show them")


@delayed.command("mqtool delayed cancel 5f0c…", "mqtool delayed cancel --where 'headers.tenant=a' --yes")
def cancel(broker: ManagedBroker, yes: Yes, ids: Ids = None, where: Where = None) -> None:
    """Delete messages that wait, for good.

    Those of the plugin cannot be cancelled.
    """
    _check(ids, where)
    access = broker.access(reconnects=False)
    ask("delete waiting messages for good", yes, protected=access.protected, hint="pass --yes")
    _take(access, ids, where, WaitingMessages.cancel, "cancelled")


@delayed.command("mqtool delayed now 5f0c…", "mqtool delayed now --where 'routing_key=jobs'")
def now(broker: ManagedBroker, yes: Yes, ids: Ids = None, where: Where = None) -> None:
    """Deliver messages that wait at once.

    Each is confirmed where it goes before it is removed here: none is lost, and if the command is killed, those that it
    has delivered come again when they are due. Those of the plugin cannot be delivered early.
    """
    _check(ids, where)
    access = broker.access(reconnects=False)
    ask("deliver waiting messages now", yes, protected=access.protected, is_safe=True)
    _take(access, ids, where, WaitingMessages.deliver, "delivered")


def _check(ids: list[str] | None, where: conditions.Where | None) -> None:
    if not ids and where is None:
        raise UsageError("name the messages by their ids, or with --where", "'mqtool delayed show' shows them")


def _take(
    access: Access,
    ids: list[str] | None,
    where: conditions.Where | None,
    take: Callable[[WaitingMessages, Choice], Generator[Waiting]],
    done: str,
) -> None:
    """Take the chosen messages, and say how many were taken.

    Raises:
        SomeFailed: no message with one of the ids waits.
    """
    missing, count = set(ids or ()), 0

    def chosen(each: Waiting) -> bool:
        return (not ids or each.message.message_id in ids) and (where is None or where.matches(_record(each)))

    with _waiting(access) as waiting, closing(take(waiting, chosen)) as taken:
        for each in taken:
            count += 1
            missing.discard(each.message.message_id or "")
            if stopping.requested() is not None:
                break
        _say_what_is_hidden(waiting)
    output.status(f"{count:,} {done}")
    if missing:
        raise SomeFailed(f"no message {sorted(missing)[0]!r} waits where it can be seen", "'mqtool delayed show'")
