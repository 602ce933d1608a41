"""The source stays readable: no import cycles, no tricks, no phrases known as unclear."""

import ast
import functools
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "mqtool").rglob("*.py"))
PROSE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ARCHITECTURE.md", "SECURITY.md")] + [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts
]
#: All Python files, help texts and the page of `mqtool ui`, without the two files whose tests name the phrases.
WRITTEN = [
    path
    for folder in ("mqtool", "tests", "benchmarks", "demo", "examples")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".txt", ".js", ".html")
    and path.relative_to(ROOT).as_posix() not in ("tests/unit/test_house.py", "tests/cli/test_help.py")
]
#: Libraries whose modules and classes are never changed.
LIBRARIES = ("pika", "rstream", "typer", "rich", "pamqp")
#: Phrases that readers have stumbled over.
UNCLEAR = re.compile(
    r"\b(so many|so long|so often|shall|would bite|told by|be it only|by which they are told|gets told|as good as"
    r"|with its dead(?![ -]letter)|what is none|goes on where|of its own accord|had it all|a peer's"
    r"|(?<!there )is no (?:number|name|duration|queue|host|file|exchange|header|property|port|regular expression))\b",
    re.IGNORECASE,
)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def containing(pattern: str) -> list[Path]:
    """The files in which a regular expression is found: only these need to be parsed."""
    return [path for path in SOURCES if re.search(pattern, path.read_text())]


def test_names_of_test_files_are_unique() -> None:
    """No two test files in directories without `__init__.py` have the same name: pytest could not collect both."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if not (path.parent / "__init__.py").exists()]
    assert {name for name, count in Counter(path.name for path in files).items() if count > 1} == set()


#: The types of channels; a lesson asks for one of them.
CHANNELS = {"AmqpChannel", "LinkSession", "StreamChannel"}


def test_tutorials_name_the_type_of_their_channel() -> None:
    """Each tutorial's functions declare the type of their channel, and no command that calls these functions hides
    the type from mypy, for example with a cast.
    """
    asked = {
        f"{path.name}: {node.name}": ast.unparse(node.args.args[0].annotation or ast.Constant(None))
        for path in (ROOT / "mqtool/tutorials").glob("*.py")
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef) and node.args.args and node.args.args[0].arg in ("channel", "session")
    }
    assert len(asked) > 30
    assert {lesson: kind for lesson, kind in asked.items() if kind not in CHANNELS} == {}
    hidden = re.compile(r"\b(cast\(|import_module\(|channel: (Any|object)\b)")
    calling = {*containing("mqtool.tutorials"), *containing("ChannelOrSession")}
    callers = [path for path in calling if path.is_relative_to(ROOT / "mqtool/cli")]
    assert [path.name for path in callers if hidden.search(path.read_text())] == []


def imports(path: Path, modules: set[str]) -> set[str]:
    """The modules that a file imports, also within functions, but not for type checkers only."""
    tree = tree_of(path)
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING"]
    for_types = {each for block in blocks for node in block.body for each in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


def test_there_are_no_import_cycles() -> None:
    """No modules of mqtool import each other in a cycle."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
    # A package's modules may import from their own package: that is not a cycle.
    graph = {name: imports(path, set(paths)) - {name} for name, path in paths.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"an import cycle: {' -> '.join(error.args[1])}")


def dotted(node: ast.AST) -> str:
    """A name such as `pika.spec.Basic`, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if before and isinstance(node, ast.Attribute) else ""


def from_libraries(tree: ast.Module) -> set[str]:
    """The names by which a file knows libraries, and what it imports from them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {(alias.asname or alias.name).partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name: node.module or "" for alias in node.names}
        else:
            continue
        found |= {name for name, module in names.items() if module.partition(".")[0] in LIBRARIES}
    return found


def changed_by(node: ast.AST) -> list[ast.expr]:
    """The objects whose attributes a statement or a call sets or deletes."""
    if isinstance(node, ast.Assign | ast.Delete):
        targets = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    elif isinstance(node, ast.Call) and dotted(node.func) in ("setattr", "delattr"):
        return node.args[:1]
    else:
        return []
    return [target.value for target in targets if isinstance(target, ast.Attribute)]


def test_no_attribute_of_a_library_is_assigned() -> None:
    """mqtool assigns no attribute of the libraries pika, rstream, typer, rich and pamqp, so a program that imports
    mqtool can use them unchanged.
    """
    for path in containing("|".join(LIBRARIES)):
        theirs = from_libraries(tree_of(path))
        changed = {dotted(each) for node in ast.walk(tree_of(path)) for each in changed_by(node)}
        assert {name for name in changed if name.partition(".")[0] in theirs} == set(), path


def test_no_interpreter_tricks_are_used() -> None:
    """mqtool creates no fake modules, does not read its callers' stack frames, configures the garbage collector only in
    the process of the embedded broker, and calls os._exit() only in forked children.
    """
    found = []
    own_process = ROOT / "mqtool/broker/embedded/__main__.py"
    for path in containing(r"_getframe|ModuleType|\bgc\.|sys\.modules|_exit"):
        tree = tree_of(path)
        forks = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and "os.fork" in map(dotted, ast.walk(node))
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            name = dotted(node)
            trick = name in ("sys._getframe", "types.ModuleType", "ModuleType")
            collects = name.startswith("gc.") and path != own_process
            fakes = (
                isinstance(node, ast.Subscript)
                and dotted(node.value) == "sys.modules"
                and not isinstance(node.ctx, ast.Load)
            )
            leaves = name == "os._exit" and node not in forks
            if trick or collects or fakes or leaves or name == "sys.modules.setdefault":
                found.append(f"{path}:{node.lineno}: {name or 'sys.modules'}")  # type: ignore[attr-defined]
    assert found == []


def test_processes_of_mqtool_do_not_import_from_the_current_directory() -> None:
    """Wherever mqtool starts a module with `python -m`, it also passes -P, so that Python does not import a module from
    the current directory, which may belong to somebody else.
    """
    started = [
        (path, node.elts[1])
        for path in containing(r"sys\.executable")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.List) and len(node.elts) > 2 and dotted(node.elts[0]) == "sys.executable"
    ]
    assert len(started) == 4
    assert [path for path, option in started if ast.unparse(option) != "'-P'"] == []


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """Return the lines of code, tests and documents that contain a pattern, each with its file and number."""
    return [
        f"{path}:{number}: {line.strip()}"
        for path in (*WRITTEN, *PROSE)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_text_contains_a_phrase_known_to_be_unclear() -> None:
    """Code, tests and documents contain none of the listed phrases that readers have called unclear."""
    assert lines_with(UNCLEAR) == []


def test_no_text_contains_a_merge_conflict() -> None:
    """Code, tests and documents contain no merge conflict markers."""
    assert lines_with(re.compile(r"^(<{7}|>{7})( |$)")) == []
