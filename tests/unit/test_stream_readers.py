"""Readers of streams that the doctor reports."""

import pytest

from mqtool.inspection.stream_readers import Places, findings


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        (Places(range(50_000), {"me": 0}), Places(range(60_000), {"me": 1000}), "is 58,999 messages behind"),
        (Places(range(50_000), {"me": 0}), Places(range(60_000), {"me": 20_000}), None),
        (Places(range(5_000), {"me": 0}), Places(range(6_000), {"me": 0}), None),  # it may just not have stored yet
        (Places(range(50_000), {"me": None}), Places(range(60_000), {"me": None}), None),
        (Places(range(0), {"me": 9}), Places(range(12, 20), {"me": 9}), "has dropped 2 messages"),
        (Places(range(0), {"me": 9}), Places(range(10, 20), {"me": 9}), None),
    ],
    ids=["falls behind", "catches up", "a few", "none stored", "misses some", "misses none"],
)
def test_readers_that_are_reported(before: Places, now: Places, found: str | None) -> None:
    """Those that fall behind by many, and those that retention has overtaken."""
    reported = [finding.what for finding in findings({("/", "s"): before}, {("/", "s"): now})]
    assert len(reported) == (found is not None)
    assert all(what.startswith(str(found)) for what in reported)
