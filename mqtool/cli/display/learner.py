"""What the user does on a tutorial's own broker, in the page of `tutorial run --ui`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mqtool.errors import UsageError
from mqtool.ui.actions import Actions
from mqtool.ui.page_server import Answerer, Json


class Learner:
    """What the user does on a play's own broker, between its scenes.

    Args:
        is_offered: False if the page offers nothing to run.

    Attributes:
        answers: answer the page's requests to list, preview and run actions.
        has_changed: True if the broker is no longer as the play left it.
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
        """Run commands on another broker from now on; on none, if `environment` is None."""
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
