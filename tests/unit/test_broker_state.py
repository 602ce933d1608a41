"""The state files of the brokers that `broker up` has started."""

import json
from pathlib import Path

import pytest

from mqtool.broker import state
from mqtool.errors import MqtoolError

VALID = {"name": "evil", "kind": "embedded", "url": "amqp://localhost:1", "pid": 1, "directory": "/x", "details": {}}


@pytest.mark.parametrize(
    "text",
    [
        *(json.dumps(VALID | {name: wrong}) for name, wrong in (("pid", "a"), ("directory", 5), ("details", None))),
        json.dumps(VALID | {"kind": "zzz"}),
        "[" * 100_000,
    ],
    ids=["pid", "directory", "details", "kind", "nested"],
)
def test_a_malformed_state_file_is_an_error_with_a_hint(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a broker's state file is nested too deeply, or has a value of the wrong type or an unknown kind, reading it
    raises an error that names the file, with a hint.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = state.made_directory("evil") / "broker.json"
    file.write_text(text)
    with pytest.raises(MqtoolError) as error:
        state.load("evil")
    assert str(error.value).startswith(f"cannot read {file}: ")
    assert error.value.hint == "remove it if mqtool has no broker running"
