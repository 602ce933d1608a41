"""Compare RabbitMQ's newest release with the newest profile. CI runs it once a week: `python -m tests.newest_release`.

Each new series (such as 4.4) must have a profile within two weeks. Patch releases need none.
"""

import argparse
import json
import re
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mqtool.broker.embedded.model.profile import PROFILES

RELEASES = "https://api.github.com/repos/rabbitmq/rabbitmq-server/releases?per_page=50"
#: Days within which a new series must have a profile.
LATEST = 14


def series(version: str) -> tuple[int, ...]:
    """Return (4, 3) for 4.3.6."""
    return tuple(int(number) for number in version.split(".")[:2])


def compare(releases: Iterable[Mapping[str, Any]], today: datetime) -> tuple[str, bool]:
    """Compare releases, as GitHub lists them, with the profiles.

    Returns:
        A line that says how far behind the profiles are, and True if that is no more than LATEST days.
    """
    ours = max((each.version for each in PROFILES.values()), key=series)
    published: dict[tuple[int, ...], datetime] = {}
    for each in releases:
        version = str(each["tag_name"]).removeprefix("v")
        if re.fullmatch(r"\d+\.\d+\.\d+", version):
            at = datetime.fromisoformat(str(each["published_at"]))
            published[series(version)] = min(at, published.get(series(version), at))
    missing = sorted(each for each in published if each > series(ours))
    if not missing:
        return f"the newest profile, {ours}, is of RabbitMQ's newest series", True
    days = (today - published[missing[0]]).days
    named = ", ".join(".".join(map(str, each)) for each in missing)
    return f"no profile for RabbitMQ {named}, out for {days} days; the newest profile is {ours}", days <= LATEST


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare RabbitMQ's newest release with the newest profile.")
    parser.add_argument(
        "file", nargs="?", type=Path, help="JSON list of releases, as returned by GitHub (default: ask GitHub)"
    )
    given = parser.parse_args().file
    if given is None:
        with urllib.request.urlopen(RELEASES, timeout=60) as answer:
            text = answer.read().decode()
    else:
        text = given.read_text()
    line, is_in_time = compare(json.loads(text), datetime.now(UTC))
    print(line)
    return 0 if is_in_time else 1


if __name__ == "__main__":
    sys.exit(main())
