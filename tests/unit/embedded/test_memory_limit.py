"""The default memory limit of the embedded broker, and its garbage collections."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from mqtool.broker.embedded import __main__ as main
from mqtool.broker.embedded.model.ledger import default_memory_limit


def test_the_default_memory_limit_is_40_percent_of_the_containers_memory(tmp_path: Path) -> None:
    """In a container, the embedded broker's default memory limit is 40% of the container's memory, so that the broker
    blocks publishers before the kernel kills the broker.
    """
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    assert default_memory_limit([str(limit), "/nowhere"]) == 400_000
    limit.write_text("max\n")
    assert default_memory_limit([str(limit)]) > 1_000_000


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[main._LongCollections]:
    """The long garbage collections of the broker. Every collection of all objects counts as a long one."""
    monkeypatch.setattr(main, "_LONG", -1)
    gc.unfreeze()
    collections = main._LongCollections()
    yield collections
    gc.callbacks.remove(collections.collected)
    gc.unfreeze()


@pytest.mark.parametrize("end", ["emptied", "waste"])
def test_objects_that_survive_a_long_garbage_collection_are_excluded_from_later_ones(
    collections: main._LongCollections, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """If one of Python's garbage collections takes a long time because the broker contains many messages, the broker
    excludes the objects that survive this collection from later ones. It includes them again once it contains few
    messages, or once the memory of its process has grown by much more than the size of its messages.
    """
    ledger = Mock(held_bytes=1 << 30)
    memory = main._Memory(ledger, collections)
    monkeypatch.setattr(memory, "_without_messages", lambda: 0)
    gc.collect()

    async def check() -> None:
        memory.check()
        assert gc.get_freeze_count() > 10_000
        if end == "emptied":
            ledger.held_bytes = 1000
        else:
            monkeypatch.setattr(memory, "_without_messages", lambda: 1 << 30)
        memory.check()
        assert gc.get_freeze_count() == 0

    memory._unfrozen = 0
    asyncio.run(check())


def test_objects_that_survive_a_short_garbage_collection_are_not_excluded_from_later_ones(
    collections: main._LongCollections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If one of Python's garbage collections takes only a few milliseconds, the broker does not exclude the objects
    that survive this collection from later ones.
    """
    monkeypatch.setattr(main, "_LONG", 1000)
    gc.collect()
    assert gc.get_freeze_count() == 0
    assert not collections.has_frozen
