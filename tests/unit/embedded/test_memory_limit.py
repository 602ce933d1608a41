"""The default memory limit of the embedded broker."""

from pathlib import Path

from mqtool.broker.embedded.model.ledger import default_memory_limit


def test_the_memory_limit_respects_the_container(tmp_path: Path) -> None:
    """In a container, the broker's default memory limit is 40 % of the container's memory, so that the broker blocks
    publishers before the kernel kills it.
    """
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    assert default_memory_limit([str(limit), "/nowhere"]) == 400_000
    limit.write_text("max\n")
    assert default_memory_limit([str(limit)]) > 1_000_000
