"""The house stays as it is drawn: nothing too long to read, no circles of imports, plain English.

A limit that a change needs to raise is raised in a commit of its own, with the reason.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "mqtool").rglob("*.py"))
PROSE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ARCHITECTURE.md")] + [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts
]
FILE_LINES, FUNCTION_LINES, METHODS, LESSON_LINES = 400, 60, 25, 70
#: What reads as translated; see the project's voice in CONTRIBUTING.md.
TRANSLATED = re.compile(
    r"\b(so many|so long|so often|shall|would bite|told by|be it only|by which they are told"
    r"|(?<!there )is no (?:number|name|duration|queue|host|file|exchange|header|property|port|regular expression))\b",
    re.IGNORECASE,
)


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def test_nothing_is_too_long_to_read() -> None:
    """A file, a function and a class each fit in a reader's head."""
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= FILE_LINES, path
        for node in definitions(path):
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
                assert len(methods) <= METHODS, f"{path}: class {node.name}"
            else:
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{path}: function {node.name}"


def imports(path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports, also within functions and for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


def test_no_circles_of_imports() -> None:
    """Each file can be read before those that use it."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
    # A package's own face is imported by what it gathers, only to be found: that is no circle.
    graph = {name: imports(path, set(paths)) - {name} for name, path in paths.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_plain_english() -> None:
    """No phrase in code, comments or documents that a native speaker would not have written."""
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in (*SOURCES, *PROSE)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if TRANSLATED.search(line)
    ]
    assert found == []
