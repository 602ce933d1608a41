"""Runs tests with several versions of RabbitMQ (`pytest --amqp-like 3.10,4.3`), and lists those that depend on it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mqtool.broker.embedded.model.profile import DEFAULT, profile
from mqtool.version_changes import cause

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_FIXTURE = "amqp_broker"
#: Names in a report's `user_properties`, which pytest-xdist passes on, and which pytest writes to JUnit files.
_VERSION, _TEST = "amqp_like", "amqp_test"
#: The same, for a test that failed because its broker has another version: it says nothing about the versions.
_OTHER = "amqp_other"
#: Characters of a failure to show.
_ROOM = 160


def versions(listed: str) -> list[str]:
    """Return the versions in a list such as "3.10,4.3". Raises ValueError if it is empty, or a version is not known."""
    found = [each.strip() for each in listed.split(",") if each.strip()]
    if not found:
        raise ValueError("which versions? For example: --amqp-like 3.10,4.3")
    for each in found:
        profile(each)
    return [*dict.fromkeys(found)]


class OverVersions:
    """Runs each test that uses the broker with each version, and compares the outcomes at the end.

    Args:
        versions: the versions, such as ["3.10", "4.3"].
    """

    def __init__(self, versions: Sequence[str]) -> None:
        self._versions = versions

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if _FIXTURE in metafunc.fixturenames:
            metafunc.parametrize(_FIXTURE, self._versions, indirect=True, scope="session")

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        version = _version_of(item)
        if version is not None:
            test, _, case = item.nodeid.removesuffix("]").partition("[")
            others = "-".join(part for part in case.split("-") if part != version)
            item.user_properties += [(_VERSION, version), (_TEST, f"{test}[{others}]" if others else test)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Fail a test whose broker does not behave like the version in the test's id.

        A project can override the fixture amqp_broker, and not use the version.
        """
        version = _version_of(item)
        like = getattr(getattr(item, "funcargs", {}).get(_FIXTURE), "like", None)
        if version in (None, like):
            return
        item.user_properties.append((_OTHER, like or ""))
        what = "has no attribute `like`, which names its version" if like is None else f"behaves like {like}"
        pytest.fail(
            f"--amqp-like: this test is to run with {version}, but the project's own fixture amqp_broker {what}: "
            f'start it with EmbeddedBroker(recording=True, like=getattr(request, "param", "{DEFAULT}"))',
            pytrace=False,
        )

    def pytest_terminal_summary(self, terminalreporter: "TerminalReporter") -> None:
        reports = [each for how in ("passed", "failed", "error") for each in terminalreporter.getreports(how)]
        lines = [*self._differences(reports)]
        if lines:
            terminalreporter.section("tests that depend on the version of RabbitMQ")
            for line in lines:
                terminalreporter.line(line)

    def _differences(self, reports: Iterable[pytest.TestReport]) -> Iterator[str]:
        """Yield lines about each test that passes with some versions and fails with others."""
        failures: dict[str, dict[str, str]] = defaultdict(dict)  # by test and version; "" for a test that passed
        for report in reports:
            told = dict(report.user_properties)
            if _VERSION in told and _OTHER not in told:
                of_test, version = failures[str(told[_TEST])], str(told[_VERSION])
                of_test[version] = of_test.get(version) or (_failure(report) if report.failed else "")
        for test, of_test in sorted(failures.items()):
            passed = [version for version in self._versions if of_test.get(version) == ""]
            if passed and any(of_test.values()):
                yield f"{test}: passes with {', '.join(passed)}"
                for failure in dict.fromkeys(filter(None, of_test.values())):
                    failed = [version for version in self._versions if of_test.get(version) == failure]
                    yield f"  fails with {', '.join(failed)}: {failure}"


def _version_of(item: pytest.Item) -> str | None:
    """Return the version that a test is to run with; None if it does not use the broker."""
    params: dict[str, str] = getattr(getattr(item, "callspec", None), "params", {})
    return params.get(_FIXTURE)


def _failure(report: pytest.TestReport) -> str:
    """Return where a test failed, as the line of the test or of its fixture, and why."""
    file, first, _ = report.location
    line, why = (first or 0) + 1, report.longreprtext.strip().rpartition("\n")[2]
    shown: Any = report.longrepr
    errors = [why]
    if (crash := getattr(shown, "reprcrash", None)) is not None:
        why = crash.message.partition("\n")[0]
        chain = [each for _, each, _ in getattr(shown, "chain", []) if each is not None]
        errors = [each.message for each in (*chain, crash)]
        places = [getattr(entry, "reprfileloc", None) for entry in shown.reprtraceback.reprentries]
        line = next((each.lineno for each in places if each and Path(each.path).name == Path(file).name), line)
    return f"{file}:{line}: {_why(why, errors, [text for _, text in report.sections])}"


def _why(last: str, errors: Sequence[str], output: Sequence[str]) -> str:
    """Return the refused operation that the errors name; or the last error, shortened, and one from the output."""
    if (known := cause("\n".join(errors))) is not None:
        return known
    cut = last if len(last) <= _ROOM else last[: _ROOM - 1] + "…"
    known = cause("\n".join(output))
    return cut if known is None else f"{cut} (its output says: {known})"
