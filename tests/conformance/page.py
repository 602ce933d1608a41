"""Writes docs/reference/conformance.md from the outcomes of the suites on the two brokers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.suites import Suite

PAGE = Path("docs/reference/conformance.md")

_TOP = """\
# Conformance

Some client libraries for RabbitMQ publish their tests in their source archives. `make conformance` downloads these
archives from the package index and checks their hashes. It then runs the tests that need a broker, both on the embedded
broker (with the default `--like`) and on RabbitMQ, and writes this page.

"""

_COLUMNS = (
    "Library",
    "Version",
    "Tests",
    "Passed",
    "Failed on both",
    "Failed only on the embedded broker",
    "Failed only on RabbitMQ",
    "RabbitMQ",
    "Date",
)

_COUNTS = """
*Tests* and *Passed* are the numbers of tests that ran and that passed on the embedded broker; skipped tests are not
counted. A dash means that no available version of RabbitMQ was new enough for the suite. If RabbitMQ's version is older
than the version that the embedded broker reports, some tests fail only on the embedded broker, because RabbitMQ has
changed between these versions.
"""

_BOTTOM = """\
## Libraries whose tests cannot run this way

- The source archives of pika (1.4.4 and 1.5.0rc1), rstream 1.1.1, rabbitmq-amqp-python-client 0.6.0, python-qpid-proton
  0.40.0 and faststream 0.7.8 contain no tests.
- The source archive of dramatiq 2.2.1 lacks the `conftest.py` that its tests need.
- Celery 5.7.0's integration tests need Redis, and its smoke tests need Docker.

mqtool's own tests use pika, rstream, celery, dramatiq, python-qpid-proton and others as clients.
"""


@dataclass(frozen=True)
class Comparison:
    """The outcomes of a suite on the two brokers.

    Attributes:
        tests: how many tests ran on the embedded broker.
        on_both, only_embedded, only_rabbitmq: the tests that failed.
        rabbitmq: RabbitMQ's version; "" if the suite did not run there.
    """

    tests: int
    passed: int
    on_both: Sequence[str]
    only_embedded: Sequence[str]
    only_rabbitmq: Sequence[str]
    embedded: str
    rabbitmq: str
    date: str


def compared(results: Mapping[str, Mapping[str, object]]) -> Comparison:
    """Compare the results of a suite, by broker: "embedded" and, perhaps, "rabbitmq"."""
    here, there = results["embedded"], results.get("rabbitmq", {})
    ours, theirs = _failed(here), _failed(there)
    tests = _outcomes(here)
    return Comparison(
        tests=sum(outcome != "skipped" for outcome in tests.values()),
        passed=sum(outcome == "passed" for outcome in tests.values()),
        on_both=sorted(ours & theirs),
        only_embedded=sorted(ours - theirs),
        only_rabbitmq=sorted(theirs - ours),
        embedded=str(here["version"]),
        rabbitmq=str(there["version"]) if there.get("tests") else "",
        date=str(here["date"]),
    )


def unexplained(suites: Sequence[Suite], results: Mapping[str, Mapping[str, Mapping[str, object]]]) -> list[str]:
    """Return the tests that fail only on the embedded broker and for which the table gives no reason."""
    return [
        f"{suite.name}: {test}"
        for suite in suites
        if "embedded" in results[suite.name]
        for test in compared(results[suite.name]).only_embedded
        if not reason(suite, test)
    ]


def reason(suite: Suite, test: str) -> str:
    """Return why a test fails only on the embedded broker; "" if the table gives no reason.

    A reason applies to all tests whose names contain its key.
    """
    return next((why for part, why in suite.differs.items() if part in test), "")


def written(suites: Sequence[Suite], results: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    """Return the text of the page. Suites without results are left out."""
    rows = [(suite, compared(results[suite.name])) for suite in suites if "embedded" in results[suite.name]]
    profiles = sorted({each.embedded for _, each in rows})
    lines = [f"The embedded broker reported version {', '.join(profiles)}.\n"]
    lines += ["| " + " | ".join(_COLUMNS) + " |", "| --- | --- |" + " ---: |" * 5 + " --- | --- |"]
    lines += [_row(suite, each) for suite, each in rows]
    parts = [_TOP, "\n".join(lines), "\n", _COUNTS, "\n## Tests that fail only on the embedded broker\n\n"]
    differing = [_reasons(suite, each.only_embedded) for suite, each in rows if each.only_embedded]
    parts.append("".join(differing) or "None.\n")
    parts.append("\n## Tests that fail on both brokers, or only on RabbitMQ\n\n")
    others = [_named(suite, each) for suite, each in rows if each.on_both or each.only_rabbitmq]
    parts.append("".join(others) or "None.\n")
    parts.append("\n## Tests that do not run\n\n")
    parts.append("".join(f"- {suite.name}: {suite.excluded}\n" for suite, _ in rows if suite.excluded) or "None.\n")
    return "".join([*parts, "\n", _BOTTOM])


def _row(suite: Suite, each: Comparison) -> str:
    both, theirs = (len(each.on_both), len(each.only_rabbitmq)) if each.rabbitmq else ("–", "–")
    counts = (each.tests, each.passed, both, len(each.only_embedded), theirs)
    cells = (suite.name, suite.version, *counts, each.rabbitmq or "–", each.date)
    return "| " + " | ".join(map(str, cells)) + " |"


def _reasons(suite: Suite, tests: Sequence[str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for test in tests:
        by_reason.setdefault(reason(suite, test) or "not diagnosed yet", []).append(test)
    return "".join(f"- {suite.name}, {_tests(names)}: {why}\n" for why, names in by_reason.items())


def _named(suite: Suite, each: Comparison) -> str:
    lines = ""
    for where, tests in (("on both", each.on_both), ("only on RabbitMQ", each.only_rabbitmq)):
        if tests:
            lines += f"- {suite.name}, {where}: {_tests(tests)}\n"
    return lines


def _tests(names: Sequence[str]) -> str:
    """Return the names of the test functions, without modules and parameters."""
    short = dict.fromkeys(f"`{name.rpartition('::')[2].partition('[')[0]}`" for name in names)
    shown = ", ".join(list(short)[:12])
    return shown if len(short) <= 12 else f"{shown} and {len(short) - 12} more"


def _outcomes(result: Mapping[str, object]) -> Mapping[str, str]:
    tests = result.get("tests", {})
    assert isinstance(tests, dict)
    return tests


def _failed(result: Mapping[str, object]) -> set[str]:
    return {test for test, outcome in _outcomes(result).items() if outcome == "failed"}
