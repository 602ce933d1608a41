"""What is installed, and what Python programs may import from it."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from docs.generate import checksum

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BROKER = tomllib.loads((ROOT / "packaging/broker/pyproject.toml").read_text())


def files_of_the_test_broker() -> set[Path]:
    named = [ROOT / path for path in BROKER["tool"]["hatch"]["build"]["only-include"]]
    assert [path for path in named if not path.exists()] == []
    return {file for path in named for file in ([path] if path.is_file() else path.rglob("*.py"))}


def imported_by(path: Path) -> set[str]:
    """The modules of mqtool that a file imports, also within functions; not those for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("mqtool.")}


def test_mqtool_broker_contains_each_module_that_it_imports() -> None:
    """The distribution mqtool-broker contains each module of mqtool that its files import."""
    files = files_of_the_test_broker()
    for file in files:
        if file.suffix == ".py":
            for name in imported_by(file):
                path = ROOT / Path(*name.split("."))
                module = [each for each in (path.with_suffix(".py"), path / "__init__.py") if each.exists()]
                assert set(module) <= files, f"{file} imports {name}: add it to packaging/broker/pyproject.toml"


def test_ci_workflows_pin_github_actions_to_commits() -> None:
    """The CI workflows pin each GitHub action to a commit, because tags and branches can be moved. A comment names the
    action's release.
    """
    used = [
        line.partition("uses:")[2].strip()
        for workflow in (ROOT / ".github/workflows").glob("*.yml")
        for line in workflow.read_text().splitlines()
        if "uses:" in line
    ]
    others = [each for each in used if not each.startswith("./")]
    assert len(others) > 5
    assert [each for each in others if not re.fullmatch(r"\S+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", each)] == []


def test_mqtool_broker_has_the_metadata_of_mqtool() -> None:
    """The distribution mqtool-broker has mqtool's licence, authors, Python version and pytest plugin, and only
    dependencies that mqtool also has.
    """
    theirs = BROKER["project"]
    assert (ROOT / "packaging/broker/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert set(theirs["dependencies"]) <= set(PROJECT["dependencies"])
    for key in ("requires-python", "license", "entry-points", "authors"):
        assert theirs[key] == PROJECT[key], key


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 writes the types of signatures differently")
def test_the_public_interface_changes_only_with_the_changelog() -> None:
    """CHANGELOG.md must describe each change to the public Python interface. The newest section therefore contains a
    checksum of the interface, which this test compares with the current one.
    """
    top = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert f"interface `{checksum()}`" in top, (
        f"the public interface has changed: say how in CHANGELOG.md, with 'interface `{checksum()}`'"
    )


@pytest.mark.parametrize(
    ("program", "refusal"),
    [
        ("runpy.run_module('mqtool')", "mqtool: the command line does not run on Windows\nhint: "),
        ("runpy.run_module('mqtool.broker.embedded')", "embedded broker: does not run on Windows"),
        ("import mqtool.testing", "ImportError: the embedded broker does not run on Windows"),
        ("import mqtool.broker.embedded.pytest_plugin; sys.exit('imported')", "imported"),
    ],
)
@pytest.mark.sampled(1)
def test_on_windows_mqtool_says_that_it_does_not_run_there(program: str, refusal: str) -> None:
    """On Windows, mqtool and the embedded broker say that they do not run there, but mqtool's pytest plugin can be
    imported.
    """
    # The standard library is imported as on this system.
    imports = "import argparse, asyncio, logging, pathlib, pytest, runpy, subprocess, sys, threading"
    typed = [sys.executable, "-c", f"{imports}; sys.platform = 'win32'; {program}"]
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert refusal in done.stderr
    assert ("Traceback" in done.stderr) == refusal.startswith("ImportError")


def pinned(path: Path) -> dict[str, str]:
    """The versions in a file of requirements, by normalized name; without what only Windows needs."""
    lines = re.findall(r"^([\w.-]+)==([\w.]++)(?! ; .*'(?:win32|nt)')", path.read_text(), re.MULTILINE)
    return {normalized(name): version for name, version in lines}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, seen: set[str]) -> set[str]:
    """The installed distributions that a distribution needs, itself included; without extras."""
    if normalized(name) not in seen:
        seen.add(normalized(name))
        for line in metadata.requires(name) or ():
            other = re.split(r"[^\w.-]", line, maxsplit=1)[0]
            if "extra ==" not in line and is_installed(other):
                needed(other, seen)
    return seen


def is_installed(name: str) -> bool:
    return any(metadata.distributions(name=name))


def test_the_pinned_versions_are_installed() -> None:
    """constraints.txt pins every library that mqtool and its tests need, and the installed version of each library is
    the pinned one.
    """
    extras = [line for extra in ("dev", "test") for line in PROJECT["optional-dependencies"][extra]]
    roots = [re.split(r"[<>=\[]", line)[0] for line in (*PROJECT["dependencies"], *extras)]
    seen: set[str] = {"mqtool"}
    for root in filter(is_installed, roots):
        needed(root, seen)
    constraints = pinned(ROOT / "constraints.txt")
    assert {name: Version(metadata.version(name)) for name in seen - {"mqtool"}} == {
        name: Version(constraints.get(name, "0")) for name in seen - {"mqtool"}
    }


def test_the_pinned_versions_install_on_the_oldest_python_that_mqtool_supports() -> None:
    """No pinned version in constraints.txt needs a later Python than the oldest one that `requires-python` allows."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    required = {
        name: metadata.metadata(name)["Requires-Python"] or ""
        for name in pinned(ROOT / "constraints.txt")
        if is_installed(name)
    }
    assert {name: said for name, said in required.items() if not SpecifierSet(said).contains(oldest)} == {}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_failed_make_setup_names_the_library(tmp_path: Path) -> None:
    """If pip cannot install a library, `make setup` fails and prints pip's error, which names the library."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    pip = tmp_path / ".venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\ncase "$*" in *--quiet*) ;; *) echo soupsieve needs Python 3.14 ;; esac\nexit 1\n')
    pip.chmod(0o755)
    made = subprocess.run(["make", "setup"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (made.returncode, "soupsieve needs Python 3.14" in made.stdout) == (2, True)


def test_libraries_that_ci_installs_have_hashes() -> None:
    """The files in .ci/requirements pin every library in constraints.txt, with hashes, and name no package index."""
    files = [ROOT / ".ci" / "requirements" / f"{name}.txt" for name in ("test", "dev", "release", "mutants")]
    found: dict[str, str] = {}
    for path in files:
        text = path.read_text()
        assert "://" not in text
        assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?! )", text.strip())), path
        found |= pinned(path)
        direct = [PROJECT["dependencies"], PROJECT["optional-dependencies"][path.stem]]
        names = {normalized(re.split(r"[<>=\[]", line)[0]) for lines in direct for line in lines}
        assert names - {"mqtool"} <= set(pinned(path)), f"{path}: .ci/pin writes it again"
    assert found == pinned(ROOT / "constraints.txt"), "after a change to constraints.txt, run .ci/pin"


def test_the_docker_image_of_mqtool_is_built_only_from_packages_with_hashes() -> None:
    """.ci/requirements/image.txt pins, with hashes, the packages that mqtool needs and those that build mqtool.
    mqtool's Dockerfile installs no other packages.
    """
    path = ROOT / ".ci" / "requirements" / "image.txt"
    text = path.read_text()
    assert "://" not in text
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?! )", text.strip()))
    names = {normalized(re.split(r"[<>=\[]", line)[0]) for line in [*PROJECT["dependencies"], "hatchling"]}
    assert names <= set(pinned(path)), ".ci/pin writes it again"
    assert set(pinned(path).items()) <= set(pinned(ROOT / "constraints.txt").items())
    dockerfile = (ROOT / "mqtool" / "broker" / "image" / "tools.Dockerfile").read_text()
    installed = re.findall(r"pip install (.*?)&&", dockerfile.replace("\\\n", " "))
    assert [("--require-hashes" in each) != ("--no-index" in each.split()) for each in installed] == [True, True]


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([{"name": "pika", "version": "1.4.4", "vulns": []}], 0, "audited: 1; vulnerable: 0"),
        ([{"name": "pika", "skip_reason": "not found"}], 0, "not audited, because the index did not answer: pika"),
        (None, 0, "warning: nothing was audited"),
        (
            [{"name": "pika", "version": "1.4.4", "vulns": [{"id": "CVE-1", "fix_versions": ["2.0"]}]}],
            1,
            "pika 1.4.4: CVE-1, fixed in 2.0",
        ),
    ],
    ids=["no vulnerability", "no answer", "no audit", "vulnerability"],
)
def test_an_audit_fails_only_if_a_vulnerability_is_known(
    tmp_path: Path, found: list[object] | None, code: int, said: str
) -> None:
    """CI's audit fails if a library has a known vulnerability. If the package index gives no answer about a library, or
    nothing can be audited, the audit says so but does not fail.
    """
    if found is not None:
        (tmp_path / "found.json").write_text(json.dumps({"dependencies": found}))
    command = [sys.executable, ROOT / ".ci" / "audited.py", tmp_path / "found.json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, said in result.stdout + result.stderr) == (code, True), result


def test_the_licences_of_all_libraries_are_listed() -> None:
    """The installation guide lists the licence of each library that is installed with mqtool, and names no other
    library.
    """
    table = (ROOT / "docs" / "how-to" / "installing.md").read_text().partition("## Libraries and their licences")[2]
    listed = {
        normalized(name) for row in re.findall(r"^\| .* \| (.*) \|$", table, re.MULTILINE) for name in row.split(", ")
    }
    seen: set[str] = set()
    for line in PROJECT["dependencies"]:
        needed(re.split(r"[<>=]", line)[0], seen)
    assert listed - {"libraries"} == seen
