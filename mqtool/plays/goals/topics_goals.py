"""Goals of the topics tutorial."""

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.seen import Seen, SeenBound
from mqtool.routing import TopicTable

_LOGS = "topic_logs"


def _match(pattern: str, key: str) -> bool:
    """Return True if a binding with this pattern matches the key."""
    table = TopicTable[str]()
    table.add(pattern, {}, pattern)
    return bool(table.match(key, {}))


def _queues(seen: Seen, key: str) -> set[str]:
    """Return the queues from which a message with this key was received, and which are still bound."""
    got = {copy.queue for each in seen.published_to(_LOGS, key) for copy in each.copies if copy.received}
    return {queue for queue in got if seen.keys_of(queue, _LOGS)}


def _known(seen: Seen) -> dict[str, SeenBound]:
    """Return the current or last bindings of each queue from which 'kern.disk' was received."""
    got = {copy.queue for each in seen.published_to(_LOGS, _TWO_WORDS) for copy in each.copies if copy.received}
    return {queue: bound for queue in got if (bound := seen.bound_before.of(queue, _LOGS)) is not None}


def _missed(seen: Seen, bound: SeenBound) -> list[str]:
    """Return those of the three keys that no publisher used while a queue was bound; empty if all were used."""
    return [
        key for key in (_TWO_WORDS, *_OTHERS) if not any(bound.covers(each) for each in seen.published_to(_LOGS, key))
    ]


_TWO_WORDS, _OTHERS = "kern.disk", ("kern", "kern.disk.full")
_PATTERN = "kern.*"


def _is_narrow(pattern: str) -> bool:
    """Return True if a binding key matches only routing keys of two words whose first word is 'kern'."""
    first, _, second = pattern.partition(".")
    return first == "kern" and bool(second) and "." not in second and second != "#"


def _star(seen: Seen) -> str:
    for queue, bound in _known(seen).items():
        others = [[each for each in seen.published_to(_LOGS, key) if bound.covers(each)] for key in _OTHERS]
        is_right = _PATTERN in bound.keys and all(map(_is_narrow, bound.keys))
        if is_right and all(others) and not any(queue in each[-1].queues for each in others):
            return f"{_PATTERN!r} matches 'kern.disk', but neither 'kern' nor 'kern.disk.full'."
    return ""


def _too_wide(seen: Seen) -> str:
    for queue in _queues(seen, _TWO_WORDS):
        for pattern in sorted(each for each in seen.keys_of(queue, _LOGS) if not _is_narrow(each)):
            matched = next((key for key in (*_OTHERS, "cron.disk") if _match(pattern, key)), None)
            if matched is not None:
                return f"{pattern!r} also matches {matched!r}."
            return f"The receiver is also bound with {pattern!r}. Start it with one pattern only."
    return ""


def _was_wide(seen: Seen) -> str:
    for queue in _queues(seen, _TWO_WORDS):
        for key in _OTHERS:
            if (published := seen.published_to(_LOGS, key)) and queue in published[-1].queues:
                return f"The receiver also got {key!r}. Now publish with all three keys again."
    return ""


def _no_pattern(seen: Seen) -> str:
    for queue in _queues(seen, _TWO_WORDS):
        if _PATTERN not in (patterns := seen.keys_of(queue, _LOGS)):
            return f"{sorted(patterns)[0]!r} matches only itself. Use a binding key that also matches 'kern.net'."
    return ""


def _key_missing(seen: Seen) -> str:
    published = {each.routing_key for each in seen.published_to(_LOGS)}
    missing = [key for key in (_TWO_WORDS, *_OTHERS) if key not in published]
    return f"Nobody has published with the key {missing[0]!r} yet." if published and missing else ""


def _before_it(seen: Seen) -> str:
    """Report a key that was used only before the receiver with the right pattern was started."""
    for bound in _known(seen).values():
        missed = _missed(seen, bound)
        if missed and not bound.until and bound.keys == {_PATTERN} and not _key_missing(seen):
            return (
                f"The message with the key {missed[0]!r} was published before this receiver was started. Publish it "
                "again."
            )
    return ""


def _gone(seen: Seen) -> str:
    got = {copy.queue for each in seen.published_to(_LOGS, _TWO_WORDS) for copy in each.copies if copy.received}
    if not got or got & seen.queues.keys() or not all(_missed(seen, each) for each in _known(seen).values()):
        return ""
    return "The receiver has ended. Let it run until all three messages are published."


_STAR = Goal(
    "star",
    "Start a receiver of 'topic_logs' with a pattern that matches all keys of two words whose first word is 'kern'. "
    "While it runs, publish with the keys 'kern', 'kern.disk' and 'kern.disk.full'. The receiver gets only "
    "'kern.disk'.",
    _star,
    (
        mistakes.not_published_to(_LOGS),
        _too_wide,
        _no_pattern,
        _key_missing,
        _was_wide,
        _before_it,
        _gone,
        mistakes.nothing_bound(_LOGS),
    ),
    (
        "Which character stands for exactly one word, and which one for any number of words?",
        "Topic exchange: * (star) can substitute for exactly one word, # (hash) for zero or more words.",
        "in one terminal:\n  mqtool receive-log topic 'kern.*'\nin another one, with each of the three keys:\n"
        "  mqtool emit-log topic kern.disk hi",
    ),
    patient=(_key_missing,),
)

_PATTERNS = {"kern.*", "*.critical"}


def _once(seen: Seen) -> str:
    for message in seen.published_to(_LOGS, "kern.critical"):
        for copy in message.copies:
            if seen.keys_of(copy.queue, _LOGS) >= _PATTERNS and copy.received:
                return (
                    f"Both patterns match 'kern.critical', and the receiver got {message} once: a queue gets one copy."
                )
    return ""


def _twice(seen: Seen) -> str:
    for message in seen.published_to(_LOGS, "kern.critical"):
        if len(message.receivers) > 1:
            return f"{message} reached {len(message.receivers)} receivers. Start a single receiver with both patterns."
    return ""


def _one_pattern(seen: Seen) -> str:
    for message in seen.published_to(_LOGS, "kern.critical"):
        for copy in message.copies:
            if len(keys := seen.keys_of(copy.queue, _LOGS)) == 1:
                return f"The receiver is bound with {sorted(keys)[0]!r} only."
    return ""


def _other_key(seen: Seen) -> str:
    other = [each for each in seen.published_to(_LOGS) if each.routing_key != "kern.critical"]
    if not other or seen.published_to(_LOGS, "kern.critical"):
        return ""
    return f"The key {other[-1].routing_key!r} does not match both patterns. Publish with 'kern.critical'."


_ONCE = Goal(
    "once",
    "Start one receiver with two patterns, 'kern.*' and '*.critical'. Publish with a key that both patterns match, "
    "'kern.critical'. How many times does the receiver get the message?",
    _once,
    (mistakes.not_published_to(_LOGS), _twice, _other_key, mistakes.nothing_bound(_LOGS), _one_pattern),
    (
        "What does an exchange deliver to: bindings, or queues?",
        "Multiple bindings: a message goes to a queue once, however many of the queue's bindings match.",
        "in one terminal:\n  mqtool receive-log topic 'kern.*' '*.critical'\nin another one:\n"
        "  mqtool emit-log topic kern.critical hi",
    ),
)

GOALS = (_STAR, _ONCE)
