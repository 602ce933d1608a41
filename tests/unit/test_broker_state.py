"""The state files of the brokers that `broker up` has started."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mqtool.broker import state
from mqtool.broker.choice import starter_of
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


def test_locking_a_broker_keeps_what_is_in_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locking a broker does not change its lock file, which may be a link to a file of the user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "precious").write_text("mine")
    (state.made_directory("mine") / "lock").symlink_to(tmp_path / "precious")
    with state.locked("mine"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_discarding_a_broker_says_what_could_not_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one of a broker's files cannot be deleted, discarding the broker deletes the others, and raises an error that
    names the file and says why, with a hint.
    """
    for name in ("locked", "log"):
        (tmp_path / "embedded").mkdir(exist_ok=True)
        (tmp_path / "embedded" / name).touch()
    unlink = os.unlink

    def refusing(path: str, **settings: Any) -> None:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, **settings)

    monkeypatch.setattr("os.unlink", refusing)
    started = state.Started("mine", "embedded", "amqp://localhost:1", 0, str(tmp_path), {})
    with pytest.raises(MqtoolError) as error:
        starter_of(started).discard(started)
    assert str(error.value) == f"cannot delete {tmp_path}/embedded/locked: Operation not permitted"
    assert error.value.hint == f"delete the rest yourself: rm -r {tmp_path}"
    assert [*tmp_path.rglob("*")] == [tmp_path / "embedded", tmp_path / "embedded" / "locked"]
