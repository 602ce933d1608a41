"""Goals of the headers tutorial."""

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.seen import Seen, SeenMessage

_LOGS = "headers_logs"


def _binding_of(seen: Seen, queue: str) -> dict[str, str]:
    """Return the arguments of a queue's first binding."""
    arguments = "".join(sorted(seen.keys_of(queue, _LOGS))[:1]).split(", ")
    return dict(each.split("=", 1) for each in arguments if "=" in each)


def _matching(seen: Seen, message: SeenMessage, how: str) -> list[str]:
    """Return the receivers that got a message through a binding with this value of x-match and two or more headers."""
    found = []
    for copy in message.copies:
        binding = _binding_of(seen, copy.queue)
        if copy.received and binding.get("x-match", "all") == how and len(binding.keys() - {"x-match"}) >= 2:
            found.append(copy.receiver)
    return found


def _all_or_any(seen: Seen) -> str:
    published = seen.published_to(_LOGS)
    for both in published:
        for one in published:
            every, some = _matching(seen, both, "all"), _matching(seen, one, "any")
            if every and some and _matching(seen, both, "any") and not _matching(seen, one, "all"):
                first, second = seen.called(every[0]), seen.called(some[0])
                return (
                    f"{both} has all headers, and reached both receivers; {one} has only some of them, and reached "
                    f"{second}, not {first}."
                )
    return ""


def _same_match(seen: Seen) -> str:
    bindings = [_binding_of(seen, each.destination).get("x-match", "all") for each in seen.bound(_LOGS)]
    if len(bindings) < 2 or len({*bindings}) > 1:
        return ""
    return f"Both receivers are bound with x-match {bindings[0]!r}. One should have 'all', and the other 'any'."


def _one_header(seen: Seen) -> str:
    for each in seen.bound(_LOGS):
        if len(_binding_of(seen, each.destination).keys() - {"x-match"}) == 1:
            return "A receiver is bound with one header, so 'all' and 'any' mean the same. Bind it with two headers."
    return ""


def _other_message(seen: Seen) -> str:
    got = [each for each in seen.published_to(_LOGS) if each.receivers]
    if not got:
        return ""
    if any(_matching(seen, each, "all") for each in got):
        return "Now publish a message that has only one of the headers."
    return "Now publish a message that has all the headers."


_ALL_OR_ANY = Goal(
    "all-or-any",
    "Start two receivers of 'headers_logs' with the same two headers, such as format=pdf and type=report. One "
    "receiver must get only messages with both headers; the other must get all messages with at least one of the "
    "headers. Publish one message that both receivers get, and another that only one of them gets.",
    _all_or_any,
    (mistakes.not_published_to(_LOGS), _one_header, _same_match, mistakes.nothing_bound(_LOGS), _other_message),
    (
        "A routing key is one word or a sequence of words. What if the attributes of a message have no order?",
        "The headers exchange ignores the routing key. The binding argument x-match says 'all' (by default) or 'any'.",
        "in two terminals:\n  mqtool receive-log headers --match all format=pdf type=report\n"
        "  mqtool receive-log headers --match any format=pdf type=report\n"
        "in a third one:\n  mqtool emit-log headers -H format=pdf -H type=report both\n"
        "  mqtool emit-log headers -H format=pdf -H type=log one",
    ),
)

GOALS = (_ALL_OR_ANY,)
