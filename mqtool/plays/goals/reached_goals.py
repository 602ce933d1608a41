"""Stores which goals the learner has reached, in a file in the XDG state directory."""

import json

from mqtool.broker import state
from mqtool.errors import MqtoolError
from mqtool.plays.goals.goal import Goal

_FILE = "goals.json"


def load() -> dict[str, list[str]]:
    """Return the names of the goals that were reached, by tutorial; empty if the file cannot be read."""
    try:
        known = json.loads((state.home() / _FILE).read_text())
        return {str(tutorial): [str(name) for name in names] for tutorial, names in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def add(tutorial: str, goal: Goal) -> None:
    """Record that a goal was reached.

    Raises:
        MqtoolError: the file cannot be written.
    """
    known = load()
    known[tutorial] = [*dict.fromkeys([*known.get(tutorial, []), goal.name])]
    state.make(state.home())
    try:
        (state.home() / _FILE).write_text(json.dumps(known, indent=2) + "\n")
    except OSError as error:
        raise MqtoolError(f"cannot write {state.home() / _FILE}: {error.strerror}") from error
