"""Stream readers that `doctor` reports."""

import pytest

from mqtool.inspection.queue_details import ReaderOffsets, reader_findings


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        (
            ReaderOffsets(range(50_000), {"me": 0}),
            ReaderOffsets(range(60_000), {"me": 1000}),
            "is 58,999 messages behind",
        ),
        (ReaderOffsets(range(50_000), {"me": 0}), ReaderOffsets(range(60_000), {"me": 20_000}), None),
        (
            ReaderOffsets(range(5_000), {"me": 0}),
            ReaderOffsets(range(6_000), {"me": 0}),
            None,
        ),  # may just not have stored its offset yet
        (ReaderOffsets(range(50_000), {"me": None}), ReaderOffsets(range(60_000), {"me": None}), None),
        (ReaderOffsets(range(0), {"me": 9}), ReaderOffsets(range(12, 20), {"me": 9}), "has dropped 2 messages"),
        (ReaderOffsets(range(0), {"me": 9}), ReaderOffsets(range(10, 20), {"me": 9}), None),
    ],
    ids=["falls behind", "catches up", "a few", "none stored", "misses some", "misses none"],
)
def test_stream_consumers_that_fall_behind_or_miss_messages_are_reported(
    before: ReaderOffsets, now: ReaderOffsets, found: str | None
) -> None:
    """`doctor` reports a stream consumer that is thousands of messages behind and falls further behind between two
    measurements. It also reports a stream consumer whose unread messages were deleted by retention.
    """
    reported = [finding.what for finding in reader_findings({("/", "s"): before}, {("/", "s"): now})]
    assert len(reported) == (found is not None)
    assert all(what.startswith(str(found)) for what in reported)
