"""What is installed, and what Python programs may import from it."""

import ast
import tomllib
from pathlib import Path

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


def test_the_test_broker_has_all_that_it_imports() -> None:
    """The distribution mqtool-broker contains each module of mqtool that its files import."""
    files = files_of_the_test_broker()
    for file in files:
        if file.suffix == ".py":
            for name in imported_by(file):
                path = ROOT / Path(*name.split("."))
                module = [each for each in (path.with_suffix(".py"), path / "__init__.py") if each.exists()]
                assert set(module) <= files, f"{file} imports {name}: add it to packaging/broker/pyproject.toml"


def test_the_test_broker_is_described_as_mqtool_is() -> None:
    """Its licence, its versions of Python and of libraries, and its plugin are those of mqtool."""
    theirs = BROKER["project"]
    assert (ROOT / "packaging/broker/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert set(theirs["dependencies"]) <= set(PROJECT["dependencies"])
    for key in ("requires-python", "license", "entry-points", "authors"):
        assert theirs[key] == PROJECT[key], key


def test_the_public_interface_changes_only_with_the_changelog() -> None:
    """A new, removed or different name needs a line in CHANGELOG.md, which names the interface by its checksum."""
    top = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert f"interface `{checksum()}`" in top, (
        f"the public interface has changed: say how in CHANGELOG.md, with 'interface `{checksum()}`'"
    )
