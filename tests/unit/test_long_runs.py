"""The long runs of the Makefile, such as `make soak`, which CI does not run for each change."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_word_by_which_the_makefile_selects_tests_is_in_a_test_name() -> None:
    """If a target of the Makefile selects tests by words, as in `pytest FILE -k surviv`, each of these words is in the
    name of at least one test in FILE.
    """
    chosen = re.findall(r"(tests/\S+\.py) -k '([^']+)'", (ROOT / "Makefile").read_text())
    assert len(chosen) >= 2
    for file, expression in chosen:
        names = re.findall(r"def (test_\w+)", (ROOT / file).read_text())
        words = set(re.findall(r"\w+", expression)) - {"and", "or", "not", "embedded", "rabbitmq"}
        assert [word for word in words if not any(word in name for name in names)] == [], file
