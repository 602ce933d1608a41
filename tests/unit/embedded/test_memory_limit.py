"""How much memory messages may take, unless somebody says it."""

from pathlib import Path

from mqtool.broker.embedded.model.ledger import default_memory_limit


def test_a_container_has_less_memory_than_its_machine(tmp_path: Path) -> None:
    """Publishers are blocked before the kernel ends the broker."""
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    assert default_memory_limit([str(limit), "/nowhere"]) == 400_000
    limit.write_text("max\n")
    assert default_memory_limit([str(limit)]) > 1_000_000
