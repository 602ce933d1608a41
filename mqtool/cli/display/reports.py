"""Reports: one queue (`queue show`), and findings of `doctor` as text or NDJSON, for Nagios, Prometheus or SARIF."""

import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mqtool import __version__
from mqtool.cli.display import layout, output
from mqtool.cli.display.layout import BAD, DIM, KEY, NAME, Line, bound_by, fields, shown
from mqtool.inspection import definitions
from mqtool.inspection.findings import Finding, Unchecked, grouped, not_checked, said
from mqtool.inspection.queue_details import DeadLetterTarget, QueueDetails, ReaderOffsets, name_of
from mqtool.management.overflow import holds_dead_letters
from mqtool.spelling import counted

_INDENT = 18
#: If more objects than this have the same problem, `doctor` reports only the first ones in its text output.
_NAMED = 20
_PROPERTIES = ("durable", "auto_delete", "exclusive")
_RATES = {"publish_rate": "published", "deliver_rate": "delivered", "ack_rate": "acknowledged"}


def explained_queue(queue: QueueDetails, columns: int | None, rows: int | None) -> Iterator[Line]:
    """Yield the lines that describe a queue. Long lists are shortened to fit on the screen."""
    facts = [*_facts(queue, columns)]
    yield [("queue ", DIM), (shown(queue.row["name"]), NAME), (" in vhost ", DIM), shown(queue.row["vhost"])]
    yield from facts
    room = None if rows is None else max(2, (rows - len(facts) - 6) // 2)
    yield from _section("consumers", [_consumer(each, queue.reader_offsets) for each in queue.consumers], room)
    bound: list[Line] = [[shown(each.source), " ── ", (bound_by(each), KEY)] for each in queue.bindings]
    yield from _section("bindings", bound, room)


def queue_as_json(queue: QueueDetails) -> dict[str, Any]:
    """Convert a queue to a JSON object with the columns of `list queues`, and lists of its consumers and bindings."""
    consumers = [{name: value for name, value in each.items() if name != "queue"} for each in queue.consumers]
    offsets = {}
    if (places := queue.reader_offsets) is not None:
        offsets = {"first_offset": places.offsets.start, "next_offset": places.offsets.stop}
        for each in consumers:
            name = name_of(each)
            each |= {"stored_offset": places.stored.get(name or ""), "lag": places.lag(name)}
    return {
        **queue.row,
        **offsets,
        "consumers": consumers,
        "bindings": [definitions.as_json(binding) for binding in queue.bindings],
        "dead_letters": None if queue.dead_letters is None else asdict(queue.dead_letters),
    }


def _facts(queue: QueueDetails, columns: int | None) -> Iterator[Line]:
    row = queue.row
    kind = [str(row["type"]), *(name.replace("_", "-") for name in _PROPERTIES if row[name])]
    yield from _fact("type", ", ".join(kind if row["durable"] else [*kind, "transient"]), columns)
    state = " on ".join(str(row[name]) for name in ("state", "node") if row[name])
    yield from _fact("state", state or "no statistics yet", columns)
    yield from _fact("arguments", _table(row["arguments"]) or "none", columns)
    for what in ("policy", "operator_policy"):
        if row[what]:
            yield from _fact(what.replace("_", " "), shown(row[what]), columns)
    if row["effective_policy_definition"]:
        yield from _fact("by policy", _table(row["effective_policy_definition"]), columns)
    size = "" if row["message_bytes"] is None else f", {counted(row['message_bytes'], 'byte')}"
    counts = [("ready", row["messages_ready"]), ("unacknowledged", row["messages_unacknowledged"])]
    others = (("waiting for a delayed retry", row["messages_delayed"]), ("dead letters held", row["messages_dlx"]))
    counts += [(what, count) for what, count in others if count]
    yield from _fact("messages", ", ".join(f"{_number(count)} {what}" for what, count in counts) + size, columns)
    rates = [f"{row[name] or 0:,.1f}/s {what}" for name, what in _RATES.items()]
    yield from _fact("rates", ", ".join(rates), columns)
    if row["type"] == "stream":  # a stream has no dead letters: it keeps consumed messages, and drops old ones
        if (places := queue.reader_offsets) is not None:
            there = places.offsets
            yield from _fact("offsets", f"{there[0]:,} to {there[-1]:,}" if there else "none", columns)
        if row["segments"] is not None:
            yield from _fact("segments", _number(row["segments"]), columns)
        return
    target = queue.dead_letters
    is_lost = target is not None and not target.queues and (target.exchange != "" or target.routing_key is not None)
    fate = "held" if holds_dead_letters(row) else "lost"
    yield from _fact("dead letters", _dead_letters(target, fate), columns, BAD if is_lost else "")


def _fact(name: str, value: str, columns: int | None, style: str = "") -> Iterator[Line]:
    width = len(value) + 1 if columns is None else max(columns - _INDENT, 20)
    for number, piece in enumerate(textwrap.wrap(value, width, break_on_hyphens=False)):
        yield [("" if number else f"  {name}").ljust(_INDENT), (piece, style)]


def _dead_letters(target: DeadLetterTarget | None, fate: str) -> str:
    if target is None:
        return "dropped: the queue has no dead-letter exchange"
    key = "their own routing keys" if target.routing_key is None else f"routing key {target.routing_key!r}"
    exchange = f"exchange {shown(target.exchange)}" if target.exchange else "the default exchange"
    where = f"to {exchange} with {key}"
    if target.queues is None:
        return f"{where}: {fate}, the exchange does not exist"
    if target.queues:
        return f"{where} ──> {', '.join(map(shown, target.queues))}"
    is_open = not target.exchange and target.routing_key is None
    return f"{where}: to the queue of that name" if is_open else f"{where}: {fate}, no queue gets them"


def _consumer(consumer: Mapping[str, Any], places: ReaderOffsets | None) -> Line:
    details = consumer.get("channel_details") or {}
    acknowledges = "" if consumer.get("ack_required", True) else ", without acknowledgements"
    how = f"  prefetch {consumer.get('prefetch_count', 0)}{acknowledges}"
    client = str(details.get("connection_name") or "?").partition(" -> ")[0]
    who = f"{shown(details.get('user') or '?')} at {shown(client)}"
    if (name := name_of(dict(consumer))) is not None:
        return [(shown(name), NAME), f"  {who}", (_place(name, places), DIM)]
    return [(shown(consumer["consumer_tag"]), NAME), f"  {who}", (how, DIM)]


def _place(name: str, places: ReaderOffsets | None) -> str:
    if places is None:
        return "  at an unknown offset"
    lag = places.lag(name)
    if lag is None:
        return "  no offset stored"
    return f"  stored offset {_number(places.stored[name])}, {counted(lag)} behind"


def _section(what: str, lines: Sequence[Line], room: int | None) -> Iterator[Line]:
    yield [f"  {what}".ljust(_INDENT), f"{len(lines):,}" if lines else "none"]
    few = lines if room is None or len(lines) <= room else lines[: room - 1]
    yield from (["    ", *line] for line in few)
    if len(few) < len(lines):
        yield [("    " + f"+{len(lines) - len(few):,} more", DIM)]


def _table(values: Mapping[str, Any]) -> str:
    return "  ".join(fields(values))


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def show_queue(queue: QueueDetails, *, as_line: bool) -> None:
    """Print a queue on stdout, as one line of JSON or as text."""
    if as_line:
        output.show_json(queue_as_json(queue))
        return
    size = shutil.get_terminal_size() if output.is_terminal(1) else None
    layout.show_lines(explained_queue(queue, size and size.columns, size and size.lines))


#: Nagios' names for the exit codes of a check. https://nagios-plugins.org/doc/guidelines.html
_STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_OK, _WARNING, CRITICAL, UNKNOWN = range(4)


def show_findings(found: Sequence[Finding], *, as_json: bool) -> None:
    """Print each finding as a JSON object, or as text with one hint for all objects that have the same problem."""
    if as_json:
        for finding in found:
            output.show_json({**asdict(finding), "severity": finding.severity})
        return
    groups = [*grouped(found)]
    for same, following in zip_longest(groups, groups[1:]):
        for each in same[:_NAMED]:
            layout.show_wrapped(f"{each.where} {each.what}", "    ", style="1")
        if len(same) > _NAMED:
            output.show(f"… and {len(same) - _NAMED:,} more like these; --json lists them", style="1")
        if following is None or following[0].hint != same[0].hint:
            layout.show_wrapped(f"  {same[0].hint}", "  ")


def nagios_state(found: Sequence[Finding], unchecked: Sequence[Unchecked] = ()) -> int:
    """Return the exit code for Nagios: that of the worst finding; as in Nagios' plugins, UNKNOWN is less than WARNING.

    Args:
        unchecked: the checks that could not be made; without findings, an essential one makes the state UNKNOWN.
    """
    if any(finding.severity == "critical" for finding in found):
        return CRITICAL
    if found:
        return _WARNING
    return UNKNOWN if not_checked(unchecked) else _OK


def nagios(found: Sequence[Finding], where: str, unchecked: Sequence[Unchecked] = ()) -> Iterator[str]:
    """Yield a summary with performance data, then a line per finding and per check that could not be made.

    Many findings of one kind share a line.
    """
    counts, state = Counter(finding.severity for finding in found), nagios_state(found, unchecked)
    below = list(unchecked)
    summary = f"no problems at {where}"
    if found:
        hidden = not_checked(unchecked)
        summary = f"{counted(len(found), 'problem')} at {where}{f' ({hidden})' if hidden else ''}: {_line(found[0])}"
    elif state == UNKNOWN:
        summary = "; ".join(_with_hint(each) for each in unchecked if each.is_essential)
        below = [each for each in unchecked if not each.is_essential]
    figures = " ".join(f"{severity}={counts[severity]}" for severity in ("critical", "warning"))
    yield f"{nagios_line(state, summary)} | {figures}"
    for same in grouped(found):
        yield from map(_without_bars, said(same))
    yield from (_without_bars(_with_hint(each)) for each in below)


def _with_hint(unchecked: Unchecked) -> str:
    return f"{unchecked} ({unchecked.hint})" if unchecked.hint and unchecked.is_essential else str(unchecked)


def nagios_line(state: int, what: str) -> str:
    """Return the status line for Nagios."""
    return _without_bars(f"RABBITMQ {_STATES[state]} - {what}")


def _line(finding: Finding) -> str:
    return output.one_line(f"{finding.where} {finding.what}")


def _without_bars(line: str) -> str:
    return output.one_line(line).replace("|", "¦")


def prometheus(found: Sequence[Finding], unchecked: Sequence[Unchecked] = ()) -> Iterator[str]:
    """Yield metrics for Prometheus' textfile collector. https://prometheus.io/docs/instrumenting/exposition_formats/"""
    counts = Counter((finding.check, finding.severity, finding.vhost or "") for finding in found)
    yield "# HELP mqtool_doctor_findings Problems that mqtool doctor found."
    yield "# TYPE mqtool_doctor_findings gauge"
    for (check, severity, vhost), count in sorted(counts.items()):
        yield f'mqtool_doctor_findings{{check="{check}",severity="{severity}",vhost="{_label(vhost)}"}} {count}'
    yield "# HELP mqtool_doctor_unchecked Checks that mqtool doctor could not make."
    yield "# TYPE mqtool_doctor_unchecked gauge"
    for check, is_essential in sorted({(each.check, each.is_essential) for each in unchecked}):
        yield f'mqtool_doctor_unchecked{{check="{check}",essential="{str(is_essential).lower()}"}} 1'
    yield "# HELP mqtool_doctor_last_run_timestamp_seconds When mqtool doctor last ran."
    yield "# TYPE mqtool_doctor_last_run_timestamp_seconds gauge"
    yield f"mqtool_doctor_last_run_timestamp_seconds {time.time():.0f}"


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_INFORMATION = "https://www.rabbitmq.com/docs/upgrade"
#: The SARIF level for each severity.
_LEVELS = {"critical": "error", "warning": "warning"}
#: In a SARIF message, brackets mark a link, and braces a placeholder. Anybody may choose a name with either.
_IN_SARIF = str.maketrans({"\\": r"\\", "[": r"\[", "]": r"\]", "{": "{{", "}": "}}"})


def sarif(found: Sequence[Finding], file: Path | None, unchecked: Sequence[Unchecked] = ()) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log, for code scanning. https://docs.oasis-open.org/sarif/sarif/v2.1.0

    Args:
        file: the definitions file that was checked; None if a broker was checked.
        unchecked: the checks that could not be made.
    """
    checks = {finding.check: finding for finding in found}
    rules = [{"id": check, "help": {"text": first.hint.translate(_IN_SARIF)}} for check, first in checks.items()]
    driver = {"name": "mqtool doctor", "version": __version__, "informationUri": _INFORMATION, "rules": rules}
    results = [
        {
            "ruleId": finding.check,
            "ruleIndex": [*checks].index(finding.check),
            "level": _LEVELS[finding.severity],
            "message": {"text": f"{finding.where} {finding.what}: {finding.hint}".translate(_IN_SARIF)},
            "locations": [_location(finding, file)],
        }
        for finding in found
    ]
    run: dict[str, Any] = {"tool": {"driver": driver}, "results": results}
    if unchecked:
        told = [{"level": "warning", "message": {"text": str(each).translate(_IN_SARIF)}} for each in unchecked]
        run["invocations"] = [{"executionSuccessful": not not_checked(unchecked), "toolExecutionNotifications": told}]
    return {"$schema": _SARIF, "version": "2.1.0", "runs": [run]}


def _location(finding: Finding, file: Path | None) -> dict[str, Any]:
    name = finding.thing if finding.vhost is None else f"{finding.vhost}: {finding.thing}"
    location: dict[str, Any] = {"logicalLocations": [{"name": finding.thing, "fullyQualifiedName": name}]}
    if file is not None:
        place: dict[str, Any] = {"artifactLocation": {"uri": quote(file.as_posix())}}
        if finding.line is not None:
            place["region"] = {"startLine": finding.line}
        location["physicalLocation"] = place
    return location
