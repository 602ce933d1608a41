"""The panes of `tutorial run`: their layout on terminals of any size, and their charts."""

import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from mqtool.cli.display.play_lines import TypingPace, chart, figures
from mqtool.cli.display.play_panes import Panes
from mqtool.stage.terminal import Chart, QueueDepth


def screen_of(columns: int, rows: int, terminals: int, charts: int = 0, lines: int = 30) -> list[str]:
    """Return the lines on a terminal of this size while a tutorial runs."""
    console = Console(width=columns, height=rows, file=io.StringIO(), force_terminal=True, color_system=None)
    panes = Panes(TypingPace(auto=True, watched=False), screen=console)
    panes.begin("Title", (2, 9))
    names = [f"terminal {number}" for number in range(terminals)]
    panes.opened(names)
    for name in names:
        panes.typed(name, f"mqtool command of {name}")
        for number in range(lines):
            panes.printed(name, f" [x] line {number} [/red] of {name}, which is longer than a narrow pane is wide")
    panes.measured([Chart(f"chart {number}", "ms", [1.0, 2.0]) for number in range(charts)], over=False)
    panes.right("something is right")
    panes.narrate("The narrator explains.")
    with console.capture() as capture:
        console.print(panes.picture())
    return capture.get().splitlines()


@pytest.mark.parametrize(("columns", "rows"), [(76, 22), (80, 24), (120, 30), (200, 60)])
@pytest.mark.parametrize("terminals", [1, 2, 3, 4])
@pytest.mark.parametrize("charts", [0, 3])
def test_a_running_tutorial_fits_on_a_screen_of_76_columns_and_22_rows(
    columns: int, rows: int, terminals: int, charts: int
) -> None:
    """While a tutorial runs, one screen shows the command in each of the tutorial's terminals, each chart, the result
    of the latest check, and the explanation of the current step. A screen of 76 columns and 22 rows is large enough for
    this.
    """
    seen = screen_of(columns, rows, terminals, charts)
    text = "\n".join(seen)
    assert len(seen) == rows
    assert max(map(len, seen)) <= columns
    for number in range(terminals):
        assert f"╭─ terminal {number} ─" in text
        assert f"$ mqtool command of terminal {number}" in text
    assert text.count("wide") >= terminals or terminals > 2, "the last lines are whole"
    for number in range(charts):
        assert f"chart {number}: 2 ms" in text
    assert "✓ something is right" in text
    assert "The narrator explains." in text
    assert seen[0].startswith("Title  2/9 ─")


@pytest.mark.parametrize("printed", range(1, 30))
def test_a_pane_shows_its_newest_command(printed: int) -> None:
    """While a tutorial runs, each pane shows its newest command and the last line of the command's output, however long
    the output is.
    """
    console = Console(width=80, height=24, file=io.StringIO(), force_terminal=True, color_system=None)
    panes = Panes(TypingPace(auto=True, watched=False), screen=console)
    panes.begin("Title", (2, 9))
    panes.opened(["worker"])
    for command, lines in (("older", 30), ("newest", printed)):
        panes.typed("worker", f"mqtool {command}")
        for number in range(lines):
            panes.printed("worker", f"line {number} of {command}")
    with console.capture() as capture:
        console.print(panes.picture())
    seen = capture.get()
    assert "$ mqtool newest" in seen
    assert f"line {printed - 1} of newest" in seen


@example(columns=12, rows=20, terminals=1, charts=3)
@given(st.integers(10, 250), st.integers(5, 80), st.integers(1, 7), st.integers(0, 3))
def test_a_tutorials_screen_has_no_more_lines_than_the_terminal(
    columns: int, rows: int, terminals: int, charts: int
) -> None:
    """While a tutorial runs, its screen never has more lines than the terminal, whatever the size of the terminal and
    the number of panes and charts.
    """
    assert len(screen_of(columns, rows, terminals, charts, lines=5)) <= rows


values = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)


@given(values, st.integers(1, 120), st.integers(1, 8))
def test_a_chart_shows_its_maximum_and_every_value_for_which_it_has_room(
    values: list[float], width: int, height: int
) -> None:
    """In the chart of a running tutorial, the greatest value has a bar of full height. In a chart that has room for a
    column per value, every value above 0 has a visible bar. The chart never has more columns than there is room for.
    """
    rows = chart(values, width, height)
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    assert len(rows) == height
    assert len(columns) == min(width, len(values))
    if max(values) > 0:
        assert "█" * height in columns
    if len(values) <= width:
        for value, column in zip(values, columns, strict=True):
            assert (column.strip() != "") == (value > 0)


def test_the_figures_of_a_chart_are_rounded() -> None:
    """The label of a running tutorial's chart shows the latest and the greatest value, both rounded. Counts have no
    unit, and times below 10 ms have one decimal place.
    """
    assert figures(Chart("", "", [3.0, 40.0, 0.0])) == ("0", "40")
    assert figures(Chart("", "ms", [1234.4, 1.26])) == ("1.3 ms", "1,234 ms")
    assert figures(Chart("", "ms", [])) == ("0 ms", "0 ms")


def playing(columns: int, rows: int, *names: str) -> tuple[Panes, Console]:
    """Return panes with these names, in which no command has run yet."""
    console = Console(width=columns, height=rows, file=io.StringIO(), force_terminal=True, color_system=None)
    panes = Panes(TypingPace(auto=True, watched=False), screen=console)
    panes.opened(names)
    return panes, console


def drawn(panes: Panes, console: Console) -> list[str]:
    """Return the lines that are visible now."""
    with console.capture() as capture:
        console.print(panes.picture())
    return capture.get().splitlines()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40)])
def test_the_queue_is_drawn_between_the_panes_of_sender_and_receiver(columns: int, rows: int) -> None:
    """While a tutorial runs, its screen shows each message in a queue as a block. If the panes of the sender and the
    receiver are side by side, the blocks are between these panes. If the receivers' panes are in a second row, the
    blocks are between the rows.
    """
    panes, console = playing(columns, rows, "sender", "receiver")
    panes.counted([QueueDepth("hello", 2, 1)])
    (line,) = (line for line in drawn(panes, console) if "■■□" in line)
    assert re.fullmatch(r"│ +│ ■■□ +│ +│", line)
    assert len(line) == columns

    panes, console = playing(80, rows, "boss", "worker 1", "worker 2")
    panes.counted([QueueDepth("task_queue", 2, 1)])
    seen = drawn(panes, console)
    (place,) = (number for number, line in enumerate(seen) if "task_queue ■■□ 2 ready, 1 unacked" in line)
    assert ("╰" in seen[place - 1], "╭─ worker 1 ─" in seen[place + 1]) == (True, True)


def test_a_busy_pane_gets_the_lines_that_another_pane_does_not_need() -> None:
    """While a tutorial runs, a pane takes only the lines that it needs, and leaves the others to panes with more
    output. On a terminal of 80 columns and 24 rows, a sender's pane with one line of output leaves a worker's pane
    enough lines to show all five tasks that the worker has received.
    """
    panes, console = playing(80, 24, "boss", "worker 1", "worker 2")
    panes.narrate("Three lines of text. " * 10)
    panes.typed("boss", "mqtool new-task")
    panes.printed("boss", "6 confirmed in 0.0 s")
    panes.typed("worker 2", "mqtool worker")
    for task in "abcde":
        panes.printed("worker 2", f" [x] Received {task}")
        panes.printed("worker 2", " [x] Done")
    assert "\n".join(drawn(panes, console)).count("Received") == 5
