"""Goals of the routing tutorial."""

from mqtool.plays.goals import mistakes
from mqtool.plays.goals.goal import Goal
from mqtool.plays.goals.seen import Seen, SeenMessage

_LOGS = "direct_logs"
_ALL = ("info", "warning", "error")


def _latest(seen: Seen) -> dict[str, SeenMessage]:
    """Return, for each severity, the latest message that reached a receiver."""
    return {each.routing_key: each for each in seen.published_to(_LOGS, *_ALL) if each.receivers}


def _all_and_errors(seen: Seen) -> str:
    latest = _latest(seen)
    if len(latest) < len(_ALL):
        return ""
    for copy in latest["error"].copies:
        others = latest["error"].queues - {copy.queue}
        everything = [queue for queue in others if seen.keys_of(queue, _LOGS) >= {*_ALL}]
        if seen.keys_of(copy.queue, _LOGS) == {"error"} and copy.received and everything:
            alone = all(
                latest[key].queues >= {everything[0]} and copy.queue not in latest[key].queues for key in _ALL[:2]
            )
            every = latest["error"].copy_in(everything[0])
            if alone and every is not None and every.received:
                first, second = seen.called(every.receiver), seen.called(copy.receiver)
                return (
                    f"{latest['error']} reached both receivers; {latest['info']} and {latest['warning']} reached only "
                    f"{first}, since {second} is bound with 'error' alone."
                )
    return ""


def _both_get_all(seen: Seen) -> str:
    info = [each for each in seen.published_to(_LOGS, "info") if len(each.receivers) > 1]
    return f"{info[-1]} ('info') reached both receivers. One of them should get only errors." if info else ""


def _one_for_errors(seen: Seen) -> str:
    errors = [each for each in seen.published_to(_LOGS, "error") if len(each.queues) == 1]
    return f"{errors[-1]} ('error') reached only one receiver, but should reach both." if errors else ""


def _severity_missing(seen: Seen) -> str:
    published = {each.routing_key for each in seen.published_to(_LOGS)}
    missing = [each for each in _ALL if each not in published]
    return f"Nobody has published with the key {missing[0]!r} yet." if published and missing else ""


_ALL_AND_ERRORS = Goal(
    "all-and-errors",
    "Start two receivers of 'direct_logs'. Let one of them get info, warning and error, and the other only error. "
    "Then publish one message of each severity while both run.",
    _all_and_errors,
    (
        mistakes.not_published_to(_LOGS),
        mistakes.useless_binding(_LOGS),
        mistakes.nothing_bound(_LOGS),
        _both_get_all,
        _severity_missing,
        _one_for_errors,
    ),
    (
        "With a fanout exchange, every queue gets every message. What would an exchange need to know to choose among "
        "them?",
        "Bindings with a binding key: a direct exchange routes to the queues whose binding key equals the routing key.",
        "in two terminals:\n  mqtool receive-log direct info warning error\n  mqtool receive-log direct error\n"
        "in a third one, with each of the three keys:\n  mqtool emit-log direct error Run",
    ),
    patient=(_severity_missing,),
)

_ERRORS = "errors"


def _corrected(seen: Seen) -> str:
    got = [copy.message for copy in seen.copies_in(_ERRORS) if copy.message.exchange == _LOGS]
    got = [each for each in got if each.routing_key == "error"]
    if not got or seen.keys_of(_ERRORS, _LOGS) != {"error"}:
        return ""
    return f"{got[-1]} reached the queue 'errors', which is bound with 'error' now, and with nothing else."


def _wrong_key_published(seen: Seen) -> str:
    wrong = seen.published_to(_LOGS, "eror")
    return f"{wrong[-1]} was published with 'eror'. The publishers are right; the binding is wrong." if wrong else ""


def _old_binding_left(seen: Seen) -> str:
    keys = seen.keys_of(_ERRORS, _LOGS)
    return "The queue 'errors' is still bound with 'eror', too." if {"error", "eror"} <= keys else ""


def _still_nothing(seen: Seen) -> str:
    lost = [each for each in seen.published_to(_LOGS, "error") if each.lost]
    return f"{lost[-1]} was published with 'error', and no queue is bound with that key." if lost else ""


def _by_hand(seen: Seen) -> str:
    direct = [each for each in seen.published_to("") if _ERRORS in each.queues]
    return f"{direct[-1]} was published to the queue itself. Publish to 'direct_logs' instead." if direct else ""


_NO_ERRORS = Goal(
    "no-errors",
    "Errors are published to 'direct_logs' with the key 'error', but the queue 'errors' gets nothing. Find out why, "
    "fix it, leave no wrong binding behind, and publish an error.",
    _corrected,
    (_wrong_key_published, _old_binding_left, _by_hand, _still_nothing, mistakes.not_published_to(_LOGS)),
    (
        "The queue is there, and so is the exchange. What is between them?",
        "A binding key has to equal the routing key, letter by letter. A binding that never matches causes no error.",
        "one after the other:\n  mqtool route direct_logs error\n  mqtool exchange bind direct_logs errors error\n"
        "  mqtool exchange unbind direct_logs errors eror\n  mqtool emit-log direct error Run",
    ),
    queues={_ERRORS: {}},
    bindings=((_LOGS, "direct", "eror", _ERRORS),),
)

GOALS = (_ALL_AND_ERRORS, _NO_ERRORS)
