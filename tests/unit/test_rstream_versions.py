"""If mqtool cannot use the installed rstream, an error names the versions to install, before the first connection."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from rstream.client import BaseClient, Client

from mqtool.errors import MqtoolError
from mqtool.streams import rstream_private
from mqtool.streams.rstream_private import StreamClient


@pytest.fixture(autouse=True)
def _checked_anew() -> Iterator[None]:
    rstream_private.check_rstream.cache_clear()
    yield
    rstream_private.check_rstream.cache_clear()


def _connect() -> None:
    StreamClient("localhost", 5552, None, 60, lambda _: None, lambda _: None)


@pytest.mark.parametrize("name", rstream_private._METHODS)
def test_a_changed_method_of_rstream_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a method of rstream's Client that mqtool calls is missing or has other parameters, mqtool's error names the
    method, and the hint says which versions of rstream to install.
    """
    _connect()
    rstream_private.check_rstream.cache_clear()
    with monkeypatch.context() as changed:
        for each in (Client, BaseClient):
            if name in vars(each):
                changed.delattr(each, name)
        with pytest.raises(MqtoolError, match=rf"rstream cannot be used: it has no Client\.{name}\(") as missing:
            _connect()
        assert missing.value.hint == "install one that mqtool works with: pip install 'rstream>=1.1,<2'"
    with monkeypatch.context() as changed:
        changed.setattr(BaseClient, name, lambda client, another: (client, another))
        with pytest.raises(MqtoolError, match=name):
            _connect()


@pytest.mark.parametrize("name", rstream_private._ATTRIBUTES)
def test_a_missing_attribute_of_rstream_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If an attribute of rstream's Client that mqtool needs is missing, mqtool's error names the attribute."""
    initialize = BaseClient.__init__

    def without(client: BaseClient, *arguments: object, **options: object) -> None:
        initialize(client, *arguments, **options)  # type: ignore[arg-type]
        delattr(client, name)

    monkeypatch.setattr(BaseClient, "__init__", without)
    with pytest.raises(MqtoolError, match=rf"rstream cannot be used: it has no Client\.{name}"):
        _connect()


def test_the_hint_names_the_versions_of_rstream_that_mqtool_requires() -> None:
    """If mqtool cannot use the installed rstream, the hint names the same range of versions as pyproject.toml."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert f"rstream{rstream_private.VERSIONS}" in project["project"]["dependencies"]
