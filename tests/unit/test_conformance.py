"""`make conformance`: the table of suites, and the page."""

import re

from tests.conformance.page import unexplained, written
from tests.conformance.suites import TABLE, Suite, load, outcomes

SUITE = Suite("x", "x", "1.0", "0" * 64, ["tests"], ["pytest==9.1.1"], differs={"::expires": "no clock"})
REPORT = """<testsuites><testsuite>
<testcase classname="t" name="sends[1]"/>
<testcase classname="t" name="gets"><failure/></testcase>
<testcase classname="t" name="gets"><error/></testcase>
<testcase classname="t" name="tls"><skipped/></testcase>
</testsuite></testsuites>"""


def _results(ours: dict[str, str], theirs: dict[str, str]) -> dict[str, dict[str, dict[str, object]]]:
    both = (("embedded", "4.2.9", ours), ("rabbitmq", "3.10.8", theirs))
    return {"x": {kind: {"version": version, "date": "2030-01-02", "tests": tests} for kind, version, tests in both}}


def test_each_suite_has_a_version_and_a_hash_and_pins_its_requirements() -> None:
    """`make conformance` runs test suites of client libraries, which are listed in suites.toml. Each suite is pinned to
    one version and a SHA-256 hash, and each of its requirements to one version.
    """
    suites = load(TABLE.read_text())
    assert suites
    for suite in suites:
        assert re.fullmatch(r"\d+(\.\d+)+(b\d+)?", suite.version), suite.name
        assert re.fullmatch(r"[0-9a-f]{64}", suite.sha256), suite.name
        assert all(re.fullmatch(r"[\w.-]+(\[\w+\])?==\d[\w.]*", each) for each in suite.requirements), suite.name
        assert all(suite.differs.values()), suite.name


def test_suites_toml_names_no_package_index() -> None:
    """suites.toml lists client libraries that pip downloads and whose test suites are run against the broker. It
    contains no address except localhost, so pip uses the package index that the user has configured.
    """
    hosts = re.findall(r"://(?:[^@/\"]*@)?([^:/\"]+)", TABLE.read_text())
    assert set(hosts) <= {"localhost"}


def test_a_test_with_a_failing_teardown_is_counted_once_as_failed() -> None:
    """If a test fails and its teardown also fails, pytest reports both failures. `make conformance` counts them as
    one failed test.
    """
    assert outcomes(REPORT) == {"t::sends[1]": "passed", "t::gets": "failed", "t::tls": "skipped"}


def test_make_conformance_fails_for_a_difference_without_a_reason() -> None:
    """`make conformance` fails if a test fails only on the embedded broker and suites.toml gives no reason for this
    difference from RabbitMQ.
    """
    results = _results(
        {"t::sends": "failed", "t::expires[1]": "failed", "t::gets": "failed"},
        {"t::sends": "passed", "t::expires[1]": "passed", "t::gets": "failed"},
    )
    assert unexplained([SUITE], results) == ["x: t::sends"]


def test_the_conformance_page_counts_outcomes_and_gives_reasons() -> None:
    """The page about `make conformance` shows how many of a suite's tests passed and failed on each broker, and why
    some tests fail only on the embedded broker.
    """
    ours = {"t::sends": "passed", "t::expires[1]": "failed", "t::gets": "failed", "t::tls": "skipped"}
    page = written([SUITE], _results(ours, {**ours, "t::expires[1]": "passed", "t::tls": "failed"}))
    assert "| x | 1.0 | 3 | 1 | 1 | 1 | 1 | 3.10.8 | 2030-01-02 |" in page
    assert "- x, `expires`: no clock\n" in page
    assert "- x, on both: `gets`\n- x, only on RabbitMQ: `tls`\n" in page
