"""The weekly comparison of RabbitMQ's newest release with the newest profile."""

from datetime import UTC, datetime

from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.inspection.upgrade import KNOWN, Version
from tests.newest_release import compare

RELEASES = [
    {"tag_name": "v9.1.1", "published_at": "2030-02-01T10:00:00Z"},
    {"tag_name": "v9.1.0-rc.1", "published_at": "2029-01-01T10:00:00Z"},
    {"tag_name": "v9.1.0", "published_at": "2030-01-10T10:00:00Z"},
    {"tag_name": "v4.3.6", "published_at": "2026-09-14T10:00:00Z"},
]


def test_broker_up_must_accept_a_new_release_series_within_two_weeks() -> None:
    """Each week, CI compares the releases of RabbitMQ with those that `broker up --like` accepts. The comparison
    fails if a release series, such as 4.4, has been out for more than 14 days and is not accepted. Release candidates
    are ignored.
    """
    line, is_in_time = compare(RELEASES, datetime(2030, 1, 24, 12, tzinfo=UTC))
    assert (is_in_time, "RabbitMQ 9.1, out for 14 days" in line) == (True, True)
    line, is_in_time = compare(RELEASES, datetime(2030, 1, 26, 12, tzinfo=UTC))
    assert (is_in_time, "out for 16 days" in line) == (False, True)


def test_a_patch_release_passes_the_weekly_comparison() -> None:
    """Each week, CI compares the releases of RabbitMQ with those that `broker up --like` accepts. A patch release
    passes the comparison if `broker up --like` accepts its series.
    """
    newest = PROFILES[list(Like)[-1]].version.rpartition(".")[0]
    releases = [{"tag_name": f"v{newest}.99", "published_at": "2026-11-16T20:08:00Z"}]
    assert compare(releases, datetime(2030, 1, 1, tzinfo=UTC))[1]


def test_doctor_upgrade_knows_the_newest_version_that_broker_up_accepts() -> None:
    """The newest version that `doctor --upgrade` knows is the newest one that `broker up --like` accepts."""
    assert Version.of(list(Like)[-1]) == KNOWN
