"""The configuration of `make mutants`."""

import re
from pathlib import Path

import pytest

from tests.mutants import JUDGES, changes, judges_of, modules

ROOT = Path(__file__).parents[2]


def test_every_mutated_module_and_its_tests_exist() -> None:
    """`make mutants` changes modules of mqtool to see whether their tests notice. Each entry of its list is a module or
    a package of mqtool, and the tests listed for it are files, directories or test functions of the suite.
    """
    for judged, selection in JUDGES.items():
        assert (ROOT / judged).exists(), judged
        options = [each for each in selection if each.startswith("-")]
        assert options in ([], ["-k"]), selection
        tests = selection[: selection.index("-k")] if options else selection
        assert tests
        for test in tests:
            file, _, name = test.partition("::")
            assert (ROOT / file).exists(), test
            assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text() if name else True, test


def test_make_mutants_lists_each_module_once_and_has_tests_for_it() -> None:
    """`make mutants` changes modules of mqtool to see whether their tests notice. No module is in its list twice, and
    the list names tests for each module.
    """
    listed = [*modules()]
    assert len(listed) == len(set(listed)) > 80
    assert {"mqtool/routing.py", "mqtool/amqp/channel.py", "mqtool/broker/embedded/model/queue.py"} <= set(listed)
    assert all(judges_of(module) for module in listed)


def test_the_change_that_a_surviving_mutant_makes_is_shown() -> None:
    """If no test notices a change that `make mutants` has made to a function, the command shows the changed lines with
    the lines around them.
    """
    mutated = "\n".join(
        f"def f__mutmut_{which}(a):\n    b = a\n    return b {operator} 1"
        for which, operator in (("orig", "+"), ("1", "-"))
    )
    assert changes(mutated) == {"f__mutmut_1": "     b = a\n-    return b + 1\n+    return b - 1"}


@pytest.mark.parametrize("page", ["docs/explanation/mutation-testing.md", "tests/README.md", "Makefile"])
def test_the_documentation_names_modules_that_are_mutated(page: str) -> None:
    """Each module that the documentation of `make mutants` names, in `MODULE=…` or in the first column of a table, is
    one that the command accepts.
    """
    found = re.findall(r"(?:MODULE=|^\| `)(mqtool/[\w/]+\.py)", (ROOT / page).read_text(), re.MULTILINE)
    assert found
    assert set(found) <= {*modules()}
