"""Shows the goals of `tutorial try` line by line, and on the page of `--ui` if there is one."""

from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

import typer

from mqtool.cli.display import output
from mqtool.cli.display.play_lines import PlayLines, TypingPace
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.trying import TrialFinding

if TYPE_CHECKING:
    from mqtool.cli.display.play_page import PlayPage

_KEYS = "Work in other terminals. Here: Enter or h: hint · r: begin this goal again · s: skip it · q: quit"
#: What each hint is called.
_HINTS = ("think", "concept", "commands")
#: Which of the hints has commands, on lines of their own.
_COMMAND = 2


class GoalLines:
    """Prints goals, hints and findings, and reads the learner's keys.

    Args:
        page: a page that shows the goals as well, if any.
    """

    def __init__(self, page: "PlayPage | None" = None) -> None:
        self._pace = TypingPace(auto=False, watched=True)
        self._lines = PlayLines(self._pace)
        self._page = page
        self._knows_keys = False

    def watching(self, title: str, story: str) -> AbstractContextManager[None]:
        """Return a context manager that shows a tutorial's goals until the `with` block ends."""
        return self._lines.watching(title, story)

    def begin(self, goal: Goal, number: int, count: int) -> None:
        """Show a goal."""
        self._lines.blank()
        self._lines.goal(f"Goal {number} of {count}: {goal.ask}")
        if self._pace.asks and not self._knows_keys:
            self._lines.note(_KEYS)
            self._knows_keys = True
        if self._page is not None:
            self._page.goal(goal.ask)

    def found(self, finding: TrialFinding) -> None:
        """Show what `try` has found on the broker, or done to it."""
        text = "\n".join(map(output.one_line, finding.text.split("\n")))
        for shown in (self._lines, self._page) if self._page is not None else (self._lines,):
            if finding.kind == "reached":
                shown.right(text)
            else:
                shown.note(f"{'!' if finding.kind == 'fault' else '·'} {text}")

    def hint(self, goal: Goal, number: int) -> None:
        """Show a hint."""
        text = goal.hints[number]
        self._lines.note(f"{_HINTS[number]}:{' ' if number < _COMMAND else chr(10)}{text}")

    def note(self, text: str) -> None:
        """Print a note."""
        self._lines.note(text)

    def end(self, what: str) -> None:
        """Say that commands in other terminals lose their connection. On a terminal, wait for Enter.

        Args:
            what: what ends now, such as a broker.
        """
        if not self._pace.asks:
            self._lines.note(f"Commands in your other terminals lose their connection now: {what}.")
            return
        self._pace.forget_keys()
        self._lines.note(f"End the commands in your other terminals (Ctrl-C), and press Enter here: {what}.")
        with suppress(KeyboardInterrupt, typer.Exit):  # Ctrl-C and q
            self._pace.wait(what)

    def key(self) -> str:
        """Return the key that was pressed since the last call; "" if no key or several keys were pressed."""
        return self._pace.lone_key().decode("ascii", "replace").lower()
