"""`python -m tests.conformance [NAME…]`: see `make conformance`."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from tests.conformance import brokers
from tests.conformance.page import PAGE, unexplained, written
from tests.conformance.suites import TABLE, Suite, load

#: Outside of the repository: for a suite without pytest settings, pytest would otherwise use our pyproject.toml.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mqtool-conformance")


def _run(suite: Suite, kind: str) -> None:
    """Run a suite on a new broker, and save the outcomes."""
    directory = suite.directory(_CACHE)
    own = {name: suite.source(_CACHE) / path for name, path in suite.certificates.items()}
    with (brokers.embedded if kind == "embedded" else brokers.rabbitmq)(
        directory, own or brokers.self_signed(_CACHE)
    ) as version:
        tests = {} if _number(version) < _number(suite.needs) else suite.run(_CACHE, kind)
    result = {"version": version, "date": f"{datetime.now(UTC):%Y-%m-%d}", "tests": tests}
    (directory / f"{kind}.json").write_text(json.dumps(result, indent=1))
    counts = {each: list(tests.values()).count(each) for each in ("passed", "failed", "skipped")}
    print(
        f"{suite.name} {suite.version} on {kind} {version}: {counts if tests else f'needs {suite.needs}'}", flush=True
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _results(suites: list[Suite]) -> dict[str, Mapping[str, dict[str, object]]]:
    """Return the results of the last runs, by suite and broker."""
    return {
        suite.name: {
            kind: json.loads(file.read_text())
            for kind in ("embedded", "rabbitmq")
            if (file := suite.directory(_CACHE) / f"{kind}.json").exists()
        }
        for suite in suites
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Run client libraries' own tests on both brokers.")
    parser.add_argument("names", nargs="*", help="suites (default: all, which also writes the page)")
    parser.add_argument("--prepare", action="store_true", help="download and install only")
    parser.add_argument("--page", action="store_true", help="run no tests; write the page from the last results")
    parser.add_argument("--on", choices=["embedded", "rabbitmq"], help="run on one broker only")
    asked = parser.parse_args()
    suites = load(TABLE.read_text())
    if unknown := set(asked.names) - {suite.name for suite in suites}:
        parser.error(f"not in {TABLE.name}: {', '.join(sorted(unknown))}")
    chosen = [suite for suite in suites if suite.name in asked.names or not asked.names]
    kinds = [asked.on] if asked.on else ["embedded", *(["rabbitmq"] if brokers.has_rabbitmq() else [])]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the broker is stopped, too
    os.environ["XDG_STATE_HOME"] = str(_CACHE / "state")
    for suite in [] if asked.page else chosen:
        suite.prepare(_CACHE)
    if asked.prepare:
        return 0
    if not asked.page:
        if busy := brokers.busy_ports():
            parser.error(f"the suites expect their broker on ports {brokers.AMQP} and others, but {busy} are in use")
        for suite in chosen:
            for kind in kinds:
                _run(suite, kind)
    results = _results(suites)
    if asked.page or not asked.names:
        PAGE.write_text(written(suites, results))
        print(PAGE)
    failures = unexplained([suite for suite in suites if suite in chosen], results)
    for each in failures:
        print(f"fails only on the embedded broker, without a reason in {TABLE.name}: {each}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
