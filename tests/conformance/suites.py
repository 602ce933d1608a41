"""The suites of suites.toml: downloads each, installs it into a virtual environment of its own, and runs its tests."""

import os
import subprocess
import sys
import tarfile
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TABLE = Path(__file__).with_name("suites.toml")
_PLUGINS = Path(__file__).with_name("plugins")
#: Time limits, in seconds, of one test and of a whole suite.
_TEST_SECONDS, _SUITE_SECONDS = 120, 3600


@dataclass(frozen=True)
class Suite:
    """A client library whose source archive contains its tests.

    Attributes:
        name: the name of the library.
        package: its name in the package index.
        version, sha256: the release, and the hash of its source archive.
        pytest: arguments, relative to the archive's directory.
        requirements: what the tests need besides the library, with versions.
        environment: variables for the tests.
        certificates: the files cert, key and ca of the archive with which the brokers listen on port 5671.
        needs: the oldest RabbitMQ on which the tests make sense.
        excluded: which tests of the archive do not run, and why.
        differs: why tests fail only on the embedded broker, by a part of their names.
    """

    name: str
    package: str
    version: str
    sha256: str
    pytest: Sequence[str]
    requirements: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    certificates: Mapping[str, str] = field(default_factory=dict)
    needs: str = "3.10"
    excluded: str = ""
    differs: Mapping[str, str] = field(default_factory=dict)

    def directory(self, cache: Path) -> Path:
        return cache / f"{self.package}-{self.version}"

    def source(self, cache: Path) -> Path:
        """The directory of the unpacked archive."""
        return next(path.parent for path in sorted((self.directory(cache) / "source").glob("*/PKG-INFO")))

    def prepare(self, cache: Path) -> None:
        """Download the archive, check its hash, unpack it and install it with what its tests need."""
        directory = self.directory(cache)
        installed = directory / "installed"
        wanted = "\n".join((self.sha256, *self.requirements))
        if installed.exists() and installed.read_text() == wanted:
            return
        directory.mkdir(parents=True, exist_ok=True)
        listed = directory / "requirements.txt"
        listed.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n")
        python = directory / "venv" / "bin" / "python"
        _call(sys.executable, "-m", "venv", "--clear", directory / "venv")
        pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        only_source = ("--no-deps", "--no-binary", self.package, "--require-hashes")
        _call(*pip, "download", *only_source, "--dest", directory, "--requirement", listed)
        archive = next(directory.glob("*.tar.gz"))
        with tarfile.open(archive) as packed:
            packed.extractall(directory / "source", filter="data")
        _call(*pip, "install", archive, *self.requirements)
        installed.write_text(wanted)

    def run(self, cache: Path, broker: str) -> dict[str, str]:
        """Run the tests. Return each test's outcome: "passed", "failed" or "skipped".

        Args:
            broker: "embedded" or "rabbitmq"; the report and the output are kept under this name.
        """
        directory = self.directory(cache)
        report = directory / f"{broker}.xml"
        report.unlink(missing_ok=True)
        # pytest's cache could affect the next run.
        command = [str(directory / "venv" / "bin" / "python"), "-m", "pytest", "-p", "no:cacheprovider"]
        command += [f"--timeout={_TEST_SECONDS}", f"--junit-xml={report}", *self.pytest]
        with (directory / f"{broker}.log").open("wb") as log:
            subprocess.run(
                command,
                cwd=self.source(cache),
                env={**os.environ, "PYTHONPATH": str(_PLUGINS), **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_SUITE_SECONDS,
                check=False,  # 1 if a test failed
            )
        if not report.exists():
            raise SystemExit(f"the tests of {self.name} did not run: see {log.name}")
        return outcomes(report.read_text())


def outcomes(report: str) -> dict[str, str]:
    """Return the outcome of each test in a JUnit report, by its module, class and name: "t.test_a::test_b[1]"."""
    result: dict[str, str] = {}
    for case in ET.fromstring(report).iter("testcase"):
        test = f"{case.get('classname')}::{case.get('name')}"
        kinds = {element.tag for element in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        if result.get(test) != "failed":  # a test whose teardown fails is reported twice
            result[test] = outcome
    return result


def load(text: str) -> list[Suite]:
    """Return the suites of a table such as suites.toml."""
    return [Suite(name=name, **entry) for name, entry in tomllib.loads(text).items()]


def _call(*words: str | Path) -> None:
    subprocess.run(words, check=True)
