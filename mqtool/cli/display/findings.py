"""Findings of the doctor: for a person, for programs, for Nagios and for Prometheus."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from mqtool.cli.display import output
from mqtool.inspection.finding import Finding, grouped, others
from mqtool.inspection.listing import counted

#: Nagios' words for the exit codes of a check. https://nagios-plugins.org/doc/guidelines.html
_STATES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
_OK, _WARNING, CRITICAL, UNKNOWN = range(4)


def text(found: Sequence[Finding]) -> Iterator[str]:
    """Two lines for each finding, or for all that say the same."""
    for finding, same in grouped(found):
        line = f"{finding.where} {finding.what}{others(same)}"
        if output.is_terminal(1):
            line = output.visible(line)
        yield f"{output.styled(line, '1', 1)}\n  {finding.hint}"


def ndjson(found: Sequence[Finding]) -> Iterator[str]:
    """An object for each finding."""
    for finding in found:
        yield json.dumps({**asdict(finding), "severity": finding.severity}, ensure_ascii=False)


def nagios_state(found: Sequence[Finding]) -> int:
    """The exit code that Nagios expects: that of the worst finding."""
    if any(finding.severity == "critical" for finding in found):
        return CRITICAL
    return _WARNING if found else _OK


def nagios(found: Sequence[Finding], where: str) -> Iterator[str]:
    """A line that sums up, with counts to plot; then a line for each finding, or for all that say the same."""
    counts = Counter(finding.severity for finding in found)
    summary = f"{counted(len(found), 'problem')} at {where}: {_line(found[0])}" if found else f"no problems at {where}"
    figures = " ".join(f"{severity}={counts[severity]}" for severity in ("critical", "warning"))
    yield f"{nagios_line(nagios_state(found), summary)} | {figures}"
    for finding, same in grouped(found):
        yield _without_bars(_line(finding) + others(same))


def nagios_line(state: int, what: str) -> str:
    """The line that Nagios shows."""
    return _without_bars(f"RABBITMQ {_STATES[state]} - {what}")


def _line(finding: Finding) -> str:
    return output.one_line(f"{finding.where} {finding.what}")


def _without_bars(line: str) -> str:
    """Without the character that starts Nagios' figures."""
    return output.one_line(line).replace("|", "¦")


def prometheus(found: Sequence[Finding]) -> Iterator[str]:
    """Metrics for the textfile collector. https://prometheus.io/docs/instrumenting/exposition_formats/"""
    counts = Counter((finding.check, finding.severity, finding.vhost or "") for finding in found)
    yield "# HELP mqtool_doctor_findings Problems that mqtool doctor found."
    yield "# TYPE mqtool_doctor_findings gauge"
    for (check, severity, vhost), count in sorted(counts.items()):
        yield f'mqtool_doctor_findings{{check="{check}",severity="{severity}",vhost="{_label(vhost)}"}} {count}'
    yield "# HELP mqtool_doctor_last_run_timestamp_seconds When mqtool doctor last looked."
    yield "# TYPE mqtool_doctor_last_run_timestamp_seconds gauge"
    yield f"mqtool_doctor_last_run_timestamp_seconds {time.time():.0f}"


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
