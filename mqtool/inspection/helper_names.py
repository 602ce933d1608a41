"""Permissions that include the queues that mqtool makes for a queue, such as QUEUE.dlq, but not QUEUE itself."""

from collections import defaultdict
from collections.abc import Iterator

from mqtool import management
from mqtool.delays.destinations import derived_name
from mqtool.inspection.findings import Finding
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.management.policy_patterns import pattern_matches

#: The words for each right.
_VERBS = {"configure": "declare", "write": "write to"}
#: The ends of names of queues whose messages, or whose arguments, reach the queue that the name begins with.
_ENDS = ("dlq", "delay.5m", "wait.5s", "mqtool-convert")


def findings(api: Management, vhost: str | None) -> Iterator[Finding]:
    """Report such permissions, each with one queue as an example. Only an administrator may list permissions.

    Raises:
        AccessRefused: the user is not an administrator.
    """
    granted = [*management.permissions(api, vhost)]
    queues: defaultdict[str, list[str]] = defaultdict(list)
    for view in management.queues(api, vhost, ("name", "vhost")):
        queues[view["vhost"]].append(view["name"])
    known: dict[tuple[str, str], tuple[str, str] | None] = {}
    for each in granted:
        for right in _VERBS:
            place = each["vhost"], each[right]
            if place not in known:
                known[place] = _example(each[right], queues[each["vhost"]])
            if (example := known[place]) is not None:
                yield _finding(each, right, *example)
                break


def _example(pattern: str, queues: list[str]) -> tuple[str, str] | None:
    """Return a queue that a pattern does not match, and the name made from it that it does match."""
    for queue in queues:
        if pattern_matches(pattern, queue):
            continue
        for helper in (derived_name(queue, end) for end in _ENDS):
            if pattern_matches(pattern, helper):
                return queue, helper
    return None


def _finding(permission: Json, right: str, queue: str, helper: str) -> Finding:
    return Finding(
        "permission",
        f"user {permission['user']!r}",
        f"may {_VERBS[right]} {helper!r}, but not {queue!r} (pattern {permission[right]!r}): mqtool's commands move "
        "messages from the first to the second",
        "grant the queue as well, as '^NAME([.]|$)' does, or names that no queue's name is the beginning of",
        permission["vhost"],
    )
