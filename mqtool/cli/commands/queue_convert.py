"""mqtool queue convert."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from mqtool import management
from mqtool.amqp import administration
from mqtool.cli import stopping
from mqtool.cli.access import Access
from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command
from mqtool.cli.completion import names_of
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import output
from mqtool.cli.display.layout import fields
from mqtool.cli.display.progress import Progress
from mqtool.cli.message_counts import counting
from mqtool.cli.options import ManagedBroker, Yes
from mqtool.cli.values import argument_option, parsed
from mqtool.duration import compact_duration
from mqtool.errors import InternalError, MqtoolError, SomeFailed, Unavailable, UsageError
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.message import DIRECT_REPLY_TO
from mqtool.spelling import counted, pasteable
from mqtool.topology import Exchange
from mqtool.where import parse
from mqtool.work import conversion_plan
from mqtool.work.conversion_plan import ConversionNames, ConversionPlan, Prospect
from mqtool.work.queue_conversion import (
    Conversion,
    Stopped,
    hidden_messages,
    inexact_binding,
    left_behind,
    refused_by_broker,
    unconfirmed,
    undeliverable,
)

part = typer.Typer()

#: The largest fraction that the progress bar shows while messages are being moved.
_NEARLY_ALL = 0.99

#: The columns of queues that --where can use.
_COLUMNS = ("name", "type", "durable", "exclusive", "auto_delete", "arguments", "policy", "messages", "consumers")


def _condition(text: str) -> Any:
    return parse(text, set(_COLUMNS))


@command(
    part,
    "mqtool queue convert jobs --dry-run",
    "mqtool queue convert jobs --to quorum",
    "mqtool queue convert --where 'type = classic and durable' --dry-run",
    "mqtool queue convert jobs --resume",
    effect=Effect.CHANGES,
)
def convert(
    broker: ManagedBroker,
    queue: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUEUE]...", help="Names of the queues", autocompletion=names_of("queues")),
    ] = None,
    yes: Yes = False,
    to: Annotated[
        Literal["classic", "quorum", "stream"] | None,
        typer.Option(help="New type", show_default="quorum; unchanged with --argument"),
    ] = None,
    arguments: Annotated[
        list[Any] | None, argument_option("New argument; KEY:=JSON if not a string, null to remove")
    ] = None,
    where: Annotated[
        Any | None,
        typer.Option(
            parser=parsed(_condition), metavar="CONDITION", help="Convert all queues that match (see mqtool help where)"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, but change nothing")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue interrupted conversions")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Undo an interrupted conversion")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Cancel consumers; accept that publishers may lose messages")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per queue")] = False,
) -> None:
    """Change the type or the arguments of a queue.

    The queue keeps its name, bindings and messages. The messages move to another queue and back, in order. They must
    fit within the new queue's max-length. Clients that publish to exchanges can keep running. If the command is killed,
    no message is lost, but up to 500 may be in the queue twice. You can then continue the conversion with --resume,
    from any machine, or revert it with --undo. A queue is not converted while messages of it wait for a delayed retry,
    or while it holds dead letters that no queue has accepted (x-dead-letter-strategy: at-least-once).
    """
    access = access_to(broker, reconnects=False)
    api = access.management()
    if resume or undo:
        if to or arguments or where or dry_run or (resume and undo):
            raise UsageError(
                "--resume and --undo accept only names of queues", "the broker remembers the options of a conversion"
            )
        _continue(access, api, queue, undo=undo, yes=yes, force=force, as_json=as_json)
        return
    names = _chosen(api, access.vhost, queue, where)
    changes = dict(arguments or [])
    if to is None and "x-queue-type" in changes:
        raise UsageError("--argument cannot change the type", "use --to")
    to = to or ("quorum" if not changes else None)
    with counting(access) as count:
        found = [conversion_plan.prospect(api, access.vhost, name, to, changes, count) for name in names]
    unrefused = [each for each in found if not _refusals(each, force=force)]
    _add_refusals_of_broker(access, api, unrefused, reads=not dry_run)
    possible = [each for each in found if not _refusals(each, force=force)]
    is_refused = len(possible) < len(found) and where is None
    for each in found:
        _show(each, force=force, as_json=as_json and dry_run, with_plan=each in possible and not is_refused)
    if is_refused:
        raise UsageError(f"{counted(len(found) - len(possible), 'queue')} cannot be converted", "nothing was changed")
    if dry_run:
        output.status("nothing was changed: --dry-run")
    elif possible:
        _check_none_under_way(api, access.vhost, possible)
        ask(f"convert {', '.join(repr(each.plan.queue) for each in possible)}", access, yes=yes)
        for each in possible:
            _carry_out(access, api, each.plan, is_new=True, force=force, as_json=as_json)
    if len(possible) < len(found):
        raise SomeFailed(f"{counted(len(found) - len(possible), 'queue')} of {len(found)} cannot be converted")


def _chosen(api: Management, vhost: str, names: Sequence[str] | None, where: Any) -> list[str]:
    if bool(names) == (where is not None):
        raise UsageError("name the queues, or choose them with --where", "'mqtool list queues' shows them")
    if names:
        return list(dict.fromkeys(names))
    views = management.queues(api, vhost, _COLUMNS)
    found = [view["name"] for view in views if where.matches(view) and not conversion_plan.plan_is_ours(view)]
    if not found:
        raise Unavailable(f"no queue in vhost {vhost!r} matches {where.text}", "'mqtool list queues' shows them")
    return found


def _check_none_under_way(api: Management, vhost: str, found: Sequence[Prospect]) -> None:
    busy = conversion_plan.unfinished(api, vhost).plans
    for each in found:
        if each.plan.queue in busy:
            raise MqtoolError(
                f"a conversion of {each.plan.queue!r} is under way",
                f"{pasteable('queue convert --resume', each.plan.queue)} continues it, --undo reverts it",
            )


def _add_refusals_of_broker(access: Access, api: Management, found: Sequence[Prospect], *, reads: bool) -> None:
    """Ask the broker what prevents conversions. With `reads`, also read the queues: their messages are redelivered."""
    for each in found:
        try:
            connection = access.connect()  # one for each queue, because a message may end it
        except Unavailable:  # --dry-run works without AMQP, too
            return
        with connection:
            refusal = (
                refused_by_broker(connection, each.plan)
                or unconfirmed(connection, each.plan.source, each.plan.queue)
                or hidden_messages(connection, api, access.vhost, each.plan.queue)
                or inexact_binding(connection, api, access.vhost, each)
                or (undeliverable(connection, api, access.vhost, each.plan) if reads else None)
            )
            if refusal is not None:
                each.refusals.append(refusal)


def _refusals(found: Prospect, *, force: bool) -> list[conversion_plan.Refusal]:
    return [each for each in found.refusals if each.is_final or not force]


def _show(found: Prospect, *, force: bool, as_json: bool, with_plan: bool) -> None:
    plan, refusals = found.plan, _refusals(found, force=force)
    if as_json:
        output.show_json(_as_json(found, refusals))
        return
    for refusal in refusals:
        output.warning(f"{plan.queue!r} cannot be converted: {refusal.what} ({refusal.hint})")
    if not with_plan:
        return
    sources = sorted({each["source"] for each in found.bindings})
    bound = f"{counted(len(found.bindings), 'binding')} from {', '.join(sources)}" if sources else "no bindings"
    output.status(f"{plan.queue}: {_named(plan.source)} -> {_named(plan.target)}; {counted(found.messages)}, {bound}")
    for remark in found.remarks:
        output.status(f"  {remark}")


def _as_json(found: Prospect, refusals: Sequence[conversion_plan.Refusal]) -> Json:
    plan = found.plan
    return {
        "queue": plan.queue,
        "from": plan.source._asdict(),
        "to": plan.target._asdict(),
        "messages": found.messages,
        "bindings": len(found.bindings),
        "remarks": found.remarks,
        "refusals": [each.what for each in refusals],
    }


def _named(definition: conversion_plan.Definition) -> str:
    settings = ", ".join(fields(definition.arguments))
    return f"{definition.type} ({settings})" if settings else definition.type


def _continue(
    access: Access, api: Management, names: Sequence[str] | None, *, undo: bool, yes: bool, force: bool, as_json: bool
) -> None:
    plans, ignored = conversion_plan.unfinished(api, access.vhost)
    if not names and undo:
        raise UsageError("--undo needs the names of queues", "mqtool queue convert --undo QUEUE")
    for holder, why in ignored.items():
        if any(ConversionNames.of(name).held == holder for name in names or ()):
            raise why
        output.warning(f"the plan of queue {holder!r} is ignored: {why}")
    for name in names or plans:
        if name in plans:
            continue
        if (plan := left_behind(api, access.vhost, name)) is not None:
            output.warning(f"the holding queue {plan.names.held!r} was deleted, with the messages in it")
            ask(f"restore the bindings of {name!r}, and end its conversion", access, yes=yes, is_safe=True)
            _carry_out(access, api, plan, is_new=True, force=force, as_json=as_json)
            continue
        _remove_leftovers(access, name)
        output.status(f"no conversion of {name!r} is under way")
    chosen = [plans[name] for name in names or plans if name in plans]
    if not names and not chosen:
        output.status(f"no conversion is under way in vhost {access.vhost!r}")
    for plan in chosen:
        output.status(f"{plan.queue}: {_named(plan.source)} -> {_named(plan.target)}")
        if not names and _redirects(access, api, plan):
            resume = pasteable("queue convert --resume", plan.queue)
            output.warning(f"{plan.queue!r} is not converted, because its dead letters would go elsewhere: {resume}")
            continue
        ask(f"{'undo' if undo else 'continue'} the conversion of {plan.queue!r}", access, yes=yes)
        _carry_out(access, api, plan, is_new=False, undo=undo, force=force, as_json=as_json)


def _redirects(access: Access, api: Management, plan: ConversionPlan) -> bool:
    """True if a plan makes the dead letters of a queue go elsewhere, or somewhere that the broker does not confirm."""
    view = conversion_plan.view_of(api, access.vhost, plan.queue)
    if plan.redirects(view):
        return True
    if view is None:
        return False
    with access.connect() as connection:
        return unconfirmed(connection, conversion_plan.Definition.of(view), plan.queue) is not None


def _remove_leftovers(access: Access, name: str) -> None:
    """Delete the auxiliary exchanges of a conversion that was killed just before it was complete."""
    with access.channel() as channel:
        names = ConversionNames.of(name)
        for exchange in (names.through, names.meanwhile, names.into, names.back):
            if administration.exists(channel, Exchange(exchange)):
                administration.delete_exchange(channel, exchange)


def _carry_out(
    access: Access,
    api: Management,
    plan: ConversionPlan,
    *,
    is_new: bool,
    force: bool,
    as_json: bool,
    undo: bool = False,
    leaves: bool = False,
) -> None:
    keeps_user = "impersonator" in str(api.get("whoami").get("tags"))
    with access.connect() as connection:
        conversion = Conversion(
            connection, api, access.vhost, plan, user=access.user, keeps_user=keeps_user, force=force
        )
        try:
            with stopping.calling(conversion.stop):
                if is_new:
                    conversion.begin()
                else:
                    conversion.lock()
                expected = conversion.remaining()
                is_too_late = undo and conversion.is_replaced()
                advance(conversion.run(undo=undo and not is_too_late, leaves=leaves), expected)
        except Stopped:
            go_on = f"to continue: {pasteable('queue convert --resume', plan.queue)}"
            output.status(f"stopped; {go_on if conversion.has_begun else 'nothing was changed'}")
            stopping.exit_if_requested()
            raise
        except MqtoolError as error:
            if undo and not leaves and isinstance(error, InternalError):
                output.warning(f"{error}; {error.hint}")
                _carry_out(access, api, plan, is_new=False, undo=True, leaves=True, force=force, as_json=as_json)
                return
            if conversion.has_begun:
                error.hint = _hint(conversion, plan, error.hint)
            raise
    if is_too_late:
        output.status(f"{plan.queue!r} has already been replaced: converting it back")
        back = ConversionPlan(plan.queue, plan.target, plan.source, plan.at_once)
        _report(conversion, plan, as_json=False)
        _carry_out(access, api, back, is_new=True, force=force, as_json=as_json)
        return
    _report(conversion, plan, as_json=as_json, undo=undo)


def _hint(conversion: Conversion, plan: ConversionPlan, hint: str | None) -> str:
    go_on = pasteable("queue convert --resume", plan.queue)
    with suppress(MqtoolError):  # unknown without the management API
        if conversion.is_robbed():
            return f"{plan.names.held!r} was deleted, with the messages in it; {go_on} restores the bindings"
    if hint and go_on in hint:
        return f"no message is lost; {hint}"
    return f"no message is lost; to continue: {go_on}" + (f" ({hint})" if hint else "")


def advance(steps: Iterator[int], expected: int) -> None:
    """Carry out the steps of a conversion, with a progress bar.

    Args:
        steps: performs the conversion; yields the number of messages moved in each step.
        expected: the number of messages at the beginning.
    """
    moved = 0
    # The bar never looks full: more messages may have been published since the beginning.
    progress = Progress("moved", fraction=lambda: min(_NEARLY_ALL, moved / max(1, expected)))
    try:
        for count in steps:
            moved += count
            progress.show(moved)
    finally:
        progress.stop()


def _report(conversion: Conversion, plan: ConversionPlan, *, as_json: bool, undo: bool = False) -> None:
    tally, definition = conversion.tally, plan.source if undo else plan.target
    if as_json:
        output.show_json({"queue": plan.queue, "type": definition.type, **asdict(tally)})
    absence = "" if tally.absence is None else f"; it did not exist for up to {compact_duration(tally.absence)}"
    came = f", {tally.meanwhile:,} of them published during the conversion" if tally.meanwhile else ""
    output.status(f"{plan.queue} is a {definition.type} queue: {counted(tally.total)} moved{came}{absence}")
    if tally.overtaken:
        output.notice(f"{counted(tally.overtaken)} may be behind newer ones")
    if conversion.messages.users:
        output.notice(
            f"{counted(conversion.messages.users)} lost the property user_id; only a user with the tag 'impersonator' "
            "can keep it"
        )
    if conversion.messages.replies:
        output.notice(
            f"{counted(conversion.messages.replies)} lost the property reply_to '{DIRECT_REPLY_TO}', to which nobody "
            "can reply"
        )
    if tally.deleted:
        raise SomeFailed(
            f"{counted(tally.deleted)} published through the default exchange while {plan.queue!r} did not exist, "
            "and lost",
            "next time, stop clients that publish through the default exchange",
        )
