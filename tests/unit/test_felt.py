"""benchmarks/felt.py reports which commands have become slower, so that CI fails."""

import sys
from pathlib import Path

import pytest

from benchmarks.felt import AGAIN, GREW, Installation, check, compare, compare_brokers, grown, instructions_in, row_of

ONE, OTHER = Installation("one", {}), Installation("other", {})


class Figures:
    """A row of `felt` whose figures are given for each installation. The last figure is used for all further runs."""

    def __init__(self, base: list[float], change: list[float]) -> None:
        self.left = {"one": base, "other": change}
        self.asked: list[str] = []

    def __call__(self, installation: Installation) -> float:
        self.asked.append(installation.python)
        left = self.left[installation.python]
        return left.pop(0) if len(left) > 1 else left[0]


def test_a_cost_has_grown_if_it_is_more_than_5_percent_higher_than_at_the_base_commit() -> None:
    """The benchmark `felt` reports that the cost of a command has grown only if the command needs over 5% more
    instructions or CPU time than at the base commit.
    """
    base = {"send x": 100.0, "help": 100.0, "list queues": 100.0}
    assert grown(base, {"send x": 105.0, "help": 105.1, "list queues": 20.0}) == ["help"]


def test_felt_marks_a_command_whose_cost_has_grown() -> None:
    """If a command seems to need over 5% more CPU time or instructions than at the base commit, the benchmark `felt`
    measures the command again. `felt` marks the command GREW if the lowest measurement still exceeds the base
    commit's lowest by more than 5%.
    """
    figures = Figures([100.0], [110.0])
    (line,) = check({"send x": figures}, ONE, OTHER)
    assert line.startswith("send x")
    assert line.endswith("1.10x  GREW")
    assert figures.asked.count("other") == 1 + AGAIN


def test_felt_does_not_mark_a_command_that_was_slower_by_chance() -> None:
    """If the cost of a command is more than 5% higher than at the base commit in the first measurement, but not in
    the second, the benchmark `felt` does not mark the command GREW.
    """
    figures = Figures([100.0], [120.0, 101.0])
    (line,) = check({"send x": figures}, ONE, OTHER)
    assert not line.endswith("GREW")
    assert figures.asked.count("other") == 2


def test_felt_repeats_a_measurement_only_if_the_cost_has_grown() -> None:
    """If the cost of a command is at most 5% higher in the first measurement than at the base commit, the benchmark
    `felt` does not measure the command again, to keep CI short.
    """
    figures = Figures([100.0], [99.0])
    assert len(list(check({"help": figures}, ONE, OTHER))) == 1
    assert sorted(figures.asked) == ["one", "other"]


def test_felt_alternates_which_checkout_it_measures_first() -> None:
    """The benchmark `felt` measures the base commit first in one run and the changed checkout first in the next, so
    that a machine that becomes slower or faster favours neither.
    """
    figures = Figures([4.0, 2.0, 3.0], [6.0, 8.0, 4.0])
    (line,) = compare({"send x": figures}, ONE, OTHER, runs=3)
    assert figures.asked == ["other", "one", "one", "other", "other", "one"]
    assert line.split() == ["send", "x", "3.0", "6.0", "2.0", "4.0", "2.00x"]


def test_a_line_of_felt_shows_the_medians_the_minima_and_their_ratio() -> None:
    """A line of the benchmark `felt` shows the median cost at the base commit and with the change, then the lowest cost
    of each, then the ratio of these lowest costs.
    """
    assert row_of("help", [10, 30, 20], [5, 5, 40]).split() == ["help", "20.0", "5.0", "10.0", "5.0", "0.50x"]


@pytest.mark.parametrize(
    ("later", "mark"), [pytest.param(6.0, GREW, id="slower each time"), pytest.param(5.1, "", id="slower by chance")]
)
def test_felt_repeats_the_measurement_of_a_broker_that_seems_slower(
    monkeypatch: pytest.MonkeyPatch, later: float, mark: str
) -> None:
    """If the embedded broker seems to need over 10% more CPU time per message than at the base commit, the benchmark
    `felt` measures the broker again. `felt` marks the broker GREW only if the lowest measurement still exceeds the
    base commit's lowest by more than 10%.
    """
    results = [6.0, *[later] * AGAIN, 5.0]

    def rounds(*_: object) -> dict[str, tuple[list[float], list[float]]]:
        return {"in": ([5.0], [results.pop(0)]), "out": ([3.0], [3.0])}

    monkeypatch.setattr("benchmarks.felt.broker_rounds", rounds)
    lines = list(compare_brokers(ONE, OTHER, "memory", judged=True))
    assert [line.endswith(GREW) for line in lines] == [bool(mark), False]


def test_a_valgrind_report_without_a_summary_raises_an_error() -> None:
    """A valgrind report without a summary raises ValueError, so that the benchmark `felt` does not report zero
    instructions for a command that it could not measure.
    """
    assert instructions_in("events: Ir\nfn=main\n0 5\nsummary: 250000000\n") == 250.0
    with pytest.raises(ValueError, match="no summary"):
        instructions_in("events: Ir\n")


def test_felt_measures_a_checkout_or_an_interpreter(tmp_path: Path) -> None:
    """The benchmark `felt` accepts a Python interpreter or a checkout of mqtool, and refuses any other path. It runs a
    checkout with the Python in the checkout's .venv, or with the current Python if there is none.
    """
    with pytest.raises(SystemExit, match="neither a checkout"):
        Installation.at(tmp_path)
    assert Installation.at(Path(sys.executable)).python == sys.executable
    (tmp_path / "mqtool").mkdir()
    (tmp_path / "mqtool/__main__.py").touch()
    bare = Installation.at(tmp_path)
    assert (bare.python, bare.environment["PYTHONPATH"]) == (sys.executable, str(tmp_path))
    own = tmp_path / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert Installation.at(tmp_path).python == str(own)


def test_felt_ignores_pythondontwritebytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark `felt` ignores the environment variable PYTHONDONTWRITEBYTECODE, so that its measurements do not
    include the compilation of mqtool's modules.
    """
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in Installation.at(Path(sys.executable)).environment
