"""The state files of the brokers that `broker up` has started."""

import errno
import fcntl
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
        *(json.dumps(VALID | {"kind": kind}) for kind in ("zzz", "node", "docker")),
        json.dumps(VALID | {"details": {"management": 5}}),
        json.dumps(VALID | {"url": ""}),
        "[" * 100_000,
    ],
    ids=["pid", "directory", "details", "kind", "members", "containers", "management", "url", "nested"],
)
def test_reading_a_malformed_state_file_raises_an_error_with_a_hint(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a broker's state file is malformed, for example because a value has the wrong type or the list of the
    broker's nodes is missing, reading the file raises an error with the file's name and a hint.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = state.made_directory("evil") / "broker.json"
    file.write_text(text)
    with pytest.raises(MqtoolError) as error:
        state.load("evil")
    assert str(error.value).startswith(f"cannot read {file}: ")
    assert error.value.hint == "remove it if mqtool has no broker running"


def test_locking_a_broker_keeps_the_content_of_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locking a broker does not change the content of its lock file, which may be a link to one of the user's files."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "precious").write_text("mine")
    (state.made_directory("mine") / "lock").symlink_to(tmp_path / "precious")
    with state.locked("mine"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_discarding_a_broker_keeps_a_new_broker_with_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `broker up` starts a broker while `broker rm --purge` is still deleting the files of an old broker with the
    same name, only the old broker's files are deleted.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    home = state.made_directory("mine")
    started = state.Started("mine", "embedded", "amqp://localhost:1", 0, str(home), {})
    for file in ("lock", "log", "old"):
        (home / file).touch()
    unlink = os.unlink

    def starting(path: str, **settings: Any) -> None:
        unlink(path, **settings)
        if Path(path).name == "lock":  # from now on, `broker up` does not wait
            with state.locked("mine"):
                state.save(started)
                (home / "log").write_text("new")

    monkeypatch.setattr("os.unlink", starting)
    with state.locked("mine"):
        starter_of(started).discard(started)
    assert state.load("mine") == started
    assert {path.name for path in home.iterdir()} == {"broker.json", "lock", "log"}
    assert [*home.parent.iterdir()] == [home]


def test_a_command_that_waits_for_the_lock_of_a_moved_broker_locks_a_new_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a broker's directory is moved away, together with its lock file, while a command waits for the lock, the
    command creates a new directory of the same name, and locks the new directory.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    home = state.made_directory("mine")
    flock = fcntl.flock

    def waiting(file: int, how: int) -> None:
        if not (tmp_path / "away").exists():
            home.rename(tmp_path / "away")
        flock(file, how)

    monkeypatch.setattr("fcntl.flock", waiting)
    with state.locked("mine"):
        assert (home / "lock").exists()


def test_discarding_a_broker_whose_directory_is_a_link_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a broker's directory is a symbolic link, the directory that it leads to may contain other files of the user.
    Discarding the broker (`broker rm --purge`) therefore deletes nothing, and raises an error that names both
    directories.
    """
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "thesis").touch()
    home = state.directory("mine")
    home.parent.mkdir(parents=True)
    home.symlink_to("../../big")
    started = state.Started("mine", "embedded", "amqp://localhost:1", 0, str(home), {})
    with pytest.raises(MqtoolError, match=f"{home} is a link to {tmp_path / 'big'}"):
        starter_of(started).discard(started)
    assert (home / "thesis").exists()


def test_removing_a_broker_with_its_messages_says_what_could_not_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If `mqtool broker rm --purge` cannot delete one of the broker's files, it deletes the others, and raises an
    error that names the file and the reason. The error's hint contains the command that deletes the rest.
    """
    home = tmp_path / "brokers" / "mine"
    for name in ("locked", "log"):
        (home / "embedded").mkdir(parents=True, exist_ok=True)
        (home / "embedded" / name).touch()
    unlink = os.unlink

    def refusing(path: str, **settings: Any) -> None:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        unlink(path, **settings)

    monkeypatch.setattr("os.unlink", refusing)
    started = state.Started("mine", "embedded", "amqp://localhost:1", 0, str(home), {})
    with pytest.raises(MqtoolError) as error:
        starter_of(started).discard(started)
    (left,) = tmp_path.rglob("locked")
    assert str(error.value) == f"cannot delete {left}: Operation not permitted"
    assert error.value.hint == f"delete the rest yourself: rm -r {left.parents[2]}"
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [left]
    assert not home.exists()
