"""Lets the user run commands on a tutorial's own broker, in the page of `tutorial run --ui`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mqtool.errors import UsageError
from mqtool.ui.actions import Actions
from mqtool.ui.page_server import Answerer, Json


class Learner:
    """Lets the user run commands on a play's own broker while the play waits between two scenes.

    Args:
        is_offered: False if the page offers no commands to run.

    Attributes:
        answers: functions that answer the page's requests to list, preview and run actions, by path.
        has_changed: True if a command of the user may have changed the broker.
    """

    def __init__(self, *, is_offered: bool) -> None:
        self._actions = Actions([], {"change", "embedded"}, environment={})
        self.answers: Mapping[str, Answerer] = {
            "/actions": self._actions.listed if is_offered else lambda _: iter(()),
            "/preview": self._actions.preview,
            "/run": self._run,
        }
        self._is_offered = is_offered
        self.has_changed = False
        self._has_broker = self._is_turn = False

    def come_to(self, environment: Mapping[str, str] | None) -> None:
        """Run later commands on the broker that these variables select; None: do not run any commands."""
        self._has_broker, self.has_changed = self._is_offered and environment is not None, False
        # The picture shows the name. Some actions have no AMQP 1.0.
        self._actions.move({**(environment or {}), "MQTOOL_CONNECTION_NAME": "you", "MQTOOL_PROTOCOL": ""})

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Context manager: let the user run commands; at the end, stop commands that are still running."""
        self._is_turn = self._has_broker
        try:
            yield
        finally:
            self._is_turn = False
            self._actions.move({})

    def _run(self, wanted: Json) -> Iterator[Json | None]:
        if not self._is_turn:
            raise UsageError("the tutorial's own commands are running", "wait for the end of the scene")
        self.has_changed |= wanted.get("action") != "route"
        yield from self._actions.run(wanted)
