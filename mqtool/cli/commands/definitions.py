"""mqtool definitions."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from mqtool.cli.broker_access import access_to
from mqtool.cli.command_line import command, group
from mqtool.cli.confirmation import ask
from mqtool.cli.contexts import Effect
from mqtool.cli.display import layout, output
from mqtool.cli.display.layout import BAD, DIM, GOOD, KEY, NAME, Line, bound_by, shown
from mqtool.cli.display.queue_losses import cost_of, warn_of
from mqtool.cli.message_counts import counting
from mqtool.cli.options import ManagedBroker, Yes
from mqtool.cli.pipe.source import text_of
from mqtool.cli.values import parsed
from mqtool.errors import AccessRefused, DeclaredDifferently, NotFound, SomeFailed, UsageError
from mqtool.inspection import converted_definitions, definitions
from mqtool.inspection.definitions import Contents, DefinitionChange
from mqtool.inspection.findings import grouped, said, worst_first
from mqtool.inspection.upgrade import KNOWN, Version
from mqtool.management import Management
from mqtool.spelling import as_text, counted
from mqtool.topology import Binding
from mqtool.work.delay_relay import RelayNames
from mqtool.work.policy_losses import losses

_ABOUT = """Export, compare, import and convert definitions.

Definitions are the exchanges, queues, bindings and policies of a virtual host."""
app = group("definitions", _ABOUT, heading="Manage")


_SIGNS = {"add": ("+ ", GOOD), "change": ("~ ", KEY), "conflict": ("! ", BAD), "extra": ("- ", BAD)}


#: If more objects than this have the same change, `convert` names only the first ones.
_NAMED = 20


_REMARKS = {"conflict": "  an import cannot change it", "extra": "  only on the broker"}


DefinitionsFile = Annotated[Path, typer.Argument(metavar="FILE", help="Definitions file; - for stdin")]


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per difference")]


@command(
    app, "mqtool definitions export > topology.json", "mqtool definitions export --vhost staging", effect=Effect.READS
)
def export(broker: ManagedBroker) -> None:
    """Print exchanges, queues, bindings and policies as JSON.

    The output describes one virtual host, in the format of RabbitMQ's definitions files.
    """
    access = access_to(broker)
    found = definitions.export(access.management(), access.vhost)
    if names := definitions.incomplete(found):
        others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        output.warning(f"left out what is nested too deeply in {names[0]}{others}")
    output.show_json(found, indent=2)


@command(app, "mqtool definitions diff topology.json", "mqtool definitions diff - < file.json", effect=Effect.READS)
def diff(file: DefinitionsFile, broker: ManagedBroker, as_json: AsJson = False) -> None:
    """Show how the broker differs from a definitions file.

    Exits with 3 if there are differences. + marks what an import would add, ~ what it would change, ! what it cannot
    change, and - what exists only on the broker.
    """
    access = access_to(broker)
    wanted = _read(file, access.vhost)
    changes = definitions.compare(definitions.export(access.management(), access.vhost), wanted)
    _show(changes, as_json=as_json)
    if changes:
        raise SomeFailed(f"{counted(len(changes), 'difference')} between {file} and {access.address}")
    output.status(f"no differences between {file} and {access.address}")


@command(
    app,
    "mqtool definitions import topology.json --dry-run",
    "mqtool definitions import topology.json",
    effect=Effect.CHANGES,
    name="import",
)
def import_definitions(
    file: DefinitionsFile,
    broker: ManagedBroker,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, but change nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Import missing definitions and changed policies.

    Asks for confirmation if a policy's limits or queue expiry would make existing queues lose messages. Nothing else is
    deleted. Existing queues, exchanges and bindings are not changed; if their settings differ, the exit code is 3.
    """
    access = access_to(broker)
    wanted = _read(file, access.vhost)
    api = access.management()
    found = definitions.compare(definitions.export(api, access.vhost), wanted)
    changes = [change for change in found if change.action != "extra"]
    possible = [change for change in changes if change.action != "conflict"]
    definitions.check_names(possible, str(file))
    failed = len(changes) - len(possible)
    with counting(access) as count:
        policies = [change.item for change in possible if change.kind == "policy"]
        lost = losses(api, access.vhost, policies, count, operator=False)
    warn_of(lost)
    if dry_run:
        _show(changes, as_json=as_json)
        output.status(f"would import {len(possible):,} of {counted(len(changes), 'difference')}{cost_of(lost)}")
    else:
        if possible:
            if access.is_guarded:
                for change in possible:
                    output.notice(layout.plain(_line(change)))
            ask(f"import {counted(len(possible), 'difference')}{cost_of(lost)}", access, yes=yes, is_safe=not lost)
        refused: list[DefinitionChange] = []
        _show(_imported(api, access.vhost, changes, refused), as_json=as_json)
        failed += len(refused)
        output.status(f"imported {len(changes) - failed:,} of {counted(len(changes), 'difference')}")
    if failed:
        is_queue = any(change.kind == "queue" and change.action == "conflict" for change in changes)
        raise SomeFailed(
            f"{counted(failed, 'difference')} cannot be imported" if dry_run else f"{failed:,} not imported",
            "'mqtool queue convert' changes the type and the arguments of a queue" if is_queue else None,
        )


@command(
    app,
    "mqtool definitions convert old.json --to 4.3 > new.json",
    "mqtool definitions convert old.json --to 4.3 --mirrored quorum --delayed relay > new.json",
    effect=Effect.NONE,
)
def convert(
    file: DefinitionsFile,
    to: Annotated[
        Version, typer.Option(parser=parsed(Version.of), metavar="VERSION", help="RabbitMQ version to convert for")
    ],
    mirrored: Annotated[
        Literal["classic", "quorum"] | None, typer.Option(help="New type of mirrored queues", show_default="undecided")
    ] = None,
    delayed: Annotated[
        Literal["relay", "leave-out", "plain"] | None,
        typer.Option(help="What to do with x-delayed-message exchanges", show_default="undecided"),
    ] = None,
) -> None:
    """Convert definitions for a newer version of RabbitMQ.

    Prints the converted definitions on stdout, and what has changed and why on stderr. Exits with 3 if anything would
    be lost and no option says what to do about it. Mirrored queues can become quorum queues, or remain classic queues
    on one node. Exchanges of the delayed message plugin can be replaced by those of 'mqtool delayed relay', be left
    out, or become plain exchanges, which do not delay messages.
    """
    document = definitions.read_document(text_of(file), str(file))
    converted = converted_definitions.convert(document, to, RelayNames.of, mirrored, delayed)
    output.show_json(converted.document, indent=2)
    if to > KNOWN:
        output.warning(f"this version of mqtool knows only the changes up to RabbitMQ {KNOWN}")
    told = (output.warning, converted.unmatched), (output.notice, converted.changes), (output.warning, converted.losses)
    for tell, found in told:
        for same in grouped(worst_first(found)):
            for line in said(same, named=_NAMED):
                tell(line)
            output.notice(f"  {same[0].hint}")
    output.status(f"{counted(len(converted.changes), 'change')} for RabbitMQ {to}")
    if converted.losses:
        raise SomeFailed(f"{counted(len(converted.losses), 'open decision')}")


def _imported(
    api: Management, vhost: str, changes: Iterable[DefinitionChange], refused: list[DefinitionChange]
) -> Iterator[DefinitionChange]:
    """Apply changes one by one. Yields those that were applied, and conflicts; adds the others to `refused`."""
    for change in changes:
        try:
            if change.action != "conflict":
                definitions.apply(api, vhost, change)
        except (UsageError, DeclaredDifferently, NotFound, AccessRefused) as error:
            refused.append(change)
            output.warning(f"{change.kind} {_name(change)}: {error}")
        else:
            yield change


def _read(file: Path, vhost: str) -> Contents:
    wanted, others = definitions.parse_file(text_of(file), str(file), vhost)
    if others:
        output.notice(f"ignored in {file}: {', '.join(others)}")
    return wanted


def _show(changes: Iterable[DefinitionChange], *, as_json: bool) -> None:
    if as_json:
        for change in changes:
            output.show_json(asdict(change))
    else:
        layout.show_lines(map(_line, changes))


def _line(change: DefinitionChange) -> Line:
    settings = "".join(
        f"  {shown(name)} {_said(has)} -> {_said(wanted)}" for name, (has, wanted) in change.differences.items()
    )
    return [
        _SIGNS[change.action],
        f"{change.kind} ",
        (_name(change), NAME),
        settings,
        (_REMARKS.get(change.action, ""), DIM),
    ]


def _name(change: DefinitionChange) -> str:
    item = change.item
    if change.kind != "binding":
        return shown(item["name"])
    binding = Binding(item["source"], item["destination"], item["routing_key"], item["arguments"])
    to = "exchange " if item["destination_type"] == "exchange" else ""
    return f"{shown(binding.source)} ── {bound_by(binding)} ──> {to}{shown(binding.destination)}"


def _said(value: object) -> str:
    return "none" if value is None else shown(as_text(value))
