"""The end of a drill, on a broker that it started or was given."""

from unittest.mock import MagicMock

import pytest

from mqtool.broker import state
from mqtool.broker.choice import BrokerKind, starter_of
from mqtool.drills.scene import DrillScene
from mqtool.errors import MqtoolError

_STARTED = state.Started("drill", "embedded", "amqp://127.0.0.1:1", 0, "/nowhere", {})


@pytest.mark.parametrize("url", [None, _STARTED.url], ids=["own broker", "given broker"])
def test_a_drill_that_fails_reports_its_error_even_if_cleaning_up_fails_too(
    url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a drill fails, and its broker then cannot be discarded or its queues cannot be deleted, the drill's own
    error is reported. If only the cleanup fails, the error of the cleanup is reported.
    """
    starter = type(starter_of(_STARTED))
    monkeypatch.setattr("mqtool.broker.state.load", lambda _name: _STARTED)
    monkeypatch.setattr(DrillScene, "_start_broker", lambda _scene: _STARTED.url)
    monkeypatch.setattr(starter, "stop", lambda *_: None)
    monkeypatch.setattr(starter, "discard", MagicMock(side_effect=MqtoolError("cannot clean up")))
    monkeypatch.setattr("mqtool.drills.scene.Connection", MagicMock(side_effect=MqtoolError("cannot clean up")))

    def scene() -> DrillScene:
        return DrillScene(BrokerKind.EMBEDDED, url, MagicMock(), MagicMock())

    with pytest.raises(MqtoolError, match="the drill failed"), scene():
        raise MqtoolError("the drill failed")
    with pytest.raises(MqtoolError, match="cannot clean up"), scene():
        pass
