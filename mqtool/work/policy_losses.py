"""What queues would lose by a new policy or definition: messages beyond a limit, and queues that would expire.

A policy's message-ttl is not among them: brokers apply it to messages that are published later.

https://www.rabbitmq.com/docs/maxlength, https://www.rabbitmq.com/docs/ttl#queue-ttl,
https://www.rabbitmq.com/docs/streams#retention
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, pairwise, product
from typing import Any, NamedTuple, TypeGuard

from mqtool import management
from mqtool.amqp.administration import Depth
from mqtool.duration import compact_duration, parse_interval
from mqtool.errors import AccessRefused, NotFound
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.management.overflow import overflow_of
from mqtool.management.policy_patterns import policy_matches
from mqtool.management.queue_contents import uncounted
from mqtool.spelling import counted
from mqtool.work.queue_limits import strongest

_COUNTS = ("messages_ready", "messages_unacknowledged", "message_bytes_ready", "consumers")
_KINDS = ("policies", "operator-policies")
#: The keys under which a queue's view names the policies that apply to it, in the order of _KINDS.
_APPLIED = ("policy", "operator_policy")
_COLUMNS = ("name", "type", "durable", "exclusive", "arguments", "messages", "message_bytes", *_COUNTS, *_APPLIED)
#: What follows a loss if it depends on which policy RabbitMQ chooses.
_TIE = " (RabbitMQ may apply any of the policies with the same priority)"
#: The settings that decide whether a queue loses messages that it has already.
_REMOVING = {"max-length", "max-length-bytes", "max-age", "expires", "overflow"}
#: Longer than any queue stays unused, in milliseconds. A policy's `expires` can have thousands of digits.
_LONGEST = 10**15

#: Counts a queue's ready messages and consumers now; None if it cannot be asked, as a queue of another connection.
#: The counts of the management API can be some seconds old, or missing.
Counts = Callable[[str], Depth | None]


class Loss(NamedTuple):
    """What a queue would lose.

    Attributes:
        messages: how many messages; None if they cannot be counted.
        why: a sentence about it.
        of_queue: True if the queue itself would be deleted.
        at_restart: True if the queue would lose them only when the broker restarts.
    """

    queue: str
    messages: int | None
    why: str
    of_queue: bool = False
    at_restart: bool = False


class _Step(NamedTuple):
    """The policies of each kind after a change, and the changed ones as they were before and as they are then."""

    after: Mapping[str, list[Json]]
    changed: list[Json]


def losses(api: Management, vhost: str, policies: Sequence[Json], count: Counts, *, operator: bool) -> list[Loss]:
    """Return what existing queues would lose if policies were set, one after the other.

    Args:
        policies: each as the API takes it, and its name.
        count: called for each queue whose limits would change.

    Raises:
        NotFound: there is no such virtual host.
        Unavailable, AccessRefused: see Management.get().
    """
    if not policies:
        return []
    kind = _KINDS[operator]
    now = {each: _policies(api, vhost, each) for each in _KINDS}
    # A queue may also lose messages if a policy replaces one because of which the queue rejects new messages instead.
    if not any(_REMOVING & each["definition"].keys() for each in (*policies, *now[kind])):
        return []
    steps: list[_Step] = []
    by_name = {each["name"]: each for each in now[kind]}
    for policy in policies:
        changed = [policy, *([by_name[policy["name"]]] if policy["name"] in by_name else [])]
        by_name = by_name | {policy["name"]: policy}
        steps.append(_Step({**now, kind: [*by_name.values()]}, changed))
    return [*_of_queues(api, vhost, now, steps, count)]


def losses_by_clearing(api: Management, vhost: str, name: str, count: Counts, *, operator: bool) -> list[Loss]:
    """Return what existing queues would lose if a policy was cleared, because other limits would then apply to them.

    Args:
        count: called for each queue whose limits would change.

    Raises:
        Unavailable, AccessRefused: see Management.get().
    """
    kind = _KINDS[operator]
    now = {each: _policies(api, vhost, each) for each in _KINDS}
    cleared = [each for each in now[kind] if each["name"] == name]
    then = {**now, kind: [each for each in now[kind] if each not in cleared]}
    return [*_of_queues(api, vhost, now, [_Step(then, cleared)], count)] if cleared else []


def losses_by_converting(
    api: Management, vhost: str, view: Json, there: int, to: str, arguments: Mapping[str, Any]
) -> list[Loss]:
    """Return what a queue would lose or reject if it was declared again, and its messages were published to it.

    Args:
        view: the queue as the management API describes it.
        there: the number of its messages.
        to: its new type. What a stream would lose is not known.
        arguments: its new arguments.

    Raises:
        Unavailable, AccessRefused: see Management.get().
    """
    now = [{each: _policies(api, vhost, each) for each in _KINDS}]
    before, after = (_possible(each, now)[0][0] for each in (view, {**view, "type": to, "arguments": arguments}))
    if not there or to == "stream":
        return []
    if not after.drops and after.length is not None and there > after.length:
        why = f"rejects {there - after.length:,} of {counted(there)}: max-length is {after.length:,}"
        return [Loss(view["name"], there - after.length, why)]
    none = before._replace(length=None, size=None)  # all messages are published again, so all limits are new to them
    return [] if before == after else [*_of_queue(view, Depth(there, 0), none, after)]


def _of_queues(
    api: Management, vhost: str, now: Mapping[str, list[Json]], steps: Sequence[_Step], count: Counts
) -> Iterator[Loss]:
    """Yield what queues would lose if the policies were changed step by step."""
    for view in management.queues(api, vhost, _COLUMNS):
        after = [
            step for step, changed in steps if any(policy_matches(each, view["name"]) is not False for each in changed)
        ]
        if after:
            limits = _possible(view, [now, *after])
            tie = _TIE if any(len(each) > 1 for each in limits[1:]) else ""
            for loss in _in_turn(view, limits, count):
                yield loss._replace(why=f"{loss.why}{tie}")


def _possible(view: Json, steps: Sequence[Mapping[str, list[Json]]]) -> list[list["_Limits"]]:
    """Return the limits that can apply to a queue now, and after each step that can change them.

    Args:
        steps: the policies of each kind, now and after each change.
    """
    by_kind = [
        _definitions(view, key, [step[kind] for step in steps]) for kind, key in zip(_KINDS, _APPLIED, strict=True)
    ]
    found = [{_Limits.of(view, given): None for given in product(*pair)} for pair in zip(*by_kind, strict=True)]
    return [[*each] for each, _ in groupby(found)]


def _definitions(view: Json, key: str, steps: Sequence[list[Json]]) -> Iterator[list[Json]]:
    """Yield the definitions of the policies of one kind that can apply to a queue, at each step; [{}] if none can.

    RabbitMQ does not promise which of several policies with the highest priority applies. Seen in 3.10, with three of
    them in each of 24 vhosts: neither the alphabet nor the order in which they were set decided, and vhosts differed.
    After a change of one of them, the same one applied as before, but once 600 policies had been added to another
    vhost, another one applied in 16 of the 24. Therefore, any of them can apply after a change of one of them.

    Args:
        key: the key under which `view` names the policy that applies now. The name can be five seconds old, so it
            decides only between policies with the highest priority.
    """
    before: Json | None = None
    found: list[Json] = []
    for policies in steps:
        strong = strongest(policies, view["name"], view.get("type") or "classic")
        tied = {each["name"]: each.get("definition") or {} for each in strong}
        if tied != before:
            named = [tied[name] for name in tied if name == view.get(key)] if before is None else []
            found, before = named or [*tied.values()] or [{}], tied
        yield found


def _in_turn(view: Json, limits: Sequence[Sequence["_Limits"]], count: Counts) -> Iterator[Loss]:
    """Yield what a queue would lose if limits applied to it one after the other.

    Messages are dropped at each step, of which the worst is reported. A queue expires, or a broker restarts, later.

    Args:
        limits: the limits of which one applies now, and those of which one applies after each step.
    """
    first, last = limits[0], limits[-1]
    if len(limits) == 1:
        return
    if view.get("type") == "stream":
        yield from _of_stream(view["name"], limits)
        return
    depth = count(view["name"])
    worst: dict[bool, Loss] = {}
    longest, shortest = _highest(each.expires for each in first), _lowest(each.expires for each in last)
    for befores, afters in pairwise(limits):
        for before, after in product(_loosest(befores), afters):
            note = ""
            if before.drops and not after.drops and view.get("type") != "quorum":
                after, note = after._replace(drops=True), " (RabbitMQ applies it before the new overflow setting)"
            before, after = before._replace(expires=longest), after._replace(expires=shortest)
            for loss in _of_queue(view, depth, before, after, note):
                worst[loss.of_queue] = max(loss, worst.get(loss.of_queue, loss), key=_messages)
    yield from worst.values()
    restarts = [loss for pair in product(_loosest(first), last) for loss in _at_restart(view, depth, *pair)]
    yield from sorted(restarts, key=_messages)[-1:]


def _messages(loss: Loss) -> int:
    return loss.messages or 0


def _policies(api: Management, vhost: str, kind: str) -> list[Json]:
    try:
        return [*api.items(path(kind, vhost))]
    except (AccessRefused, NotFound):  # the user lacks the tag 'policymaker'
        return []


class _Limits(NamedTuple):
    """A queue's limits, from its arguments and policies; None for no limit. Expiry and age are in milliseconds.

    Attributes:
        age: of a stream's messages.
        drops: True if messages beyond a limit leave the queue, and not new ones are rejected.
        dead_letters: True if these become dead letters.
    """

    length: int | None
    size: int | None
    expires: int | None
    age: int | None
    drops: bool
    dead_letters: bool

    @classmethod
    def of(cls, view: Json, by_policy: Sequence[Json]) -> "_Limits":
        """Return a queue's limits; `by_policy` are the definitions of its policy and its operator policy."""
        arguments: Mapping[str, Any] = view.get("arguments") or {}
        kind = view.get("type") or "classic"
        own = {name[2:]: value for name, value in arguments.items() if name.startswith("x-")}
        if kind == "stream":  # policies override its arguments, even lower ones
            own = {name: value for name, value in own.items() if not any(name in each for each in by_policy)}
        given = [own, *by_policy]

        def lowest(key: str, given: Sequence[Mapping[str, Any]] = given) -> int | None:
            values = [each[key] for each in given if isinstance(each.get(key), int)]
            return min((value for value in values if value >= 0), default=None)

        # In RabbitMQ 3.10, policies override an x-expires of a quorum queue, even a lower one. Later versions use the
        # lower value, by which a queue can never expire sooner than before unless it does so by 3.10's rule as well.
        expires = lowest("expires", by_policy) if kind == "quorum" else None
        expires = lowest("expires") if expires is None else expires
        ages = (parse_interval(str(each.get("max-age"))) for each in given)
        return cls(
            lowest("max-length"),
            lowest("max-length-bytes"),
            None if expires is None or expires > _LONGEST else expires,
            _lowest(ages),
            overflow_of(kind, arguments, by_policy) == "drop-head",
            any("dead-letter-exchange" in each for each in given),
        )


def _height(limit: int | None) -> float:
    return math.inf if limit is None else limit


def _lowest(limits: Iterable[int | None]) -> int | None:
    return min(limits, key=_height)


def _highest(limits: Iterable[int | None]) -> int | None:
    return max(limits, key=_height)


def _loosest(limits: Sequence[_Limits]) -> Iterator[_Limits]:
    """Yield the limits from which a queue would lose the most, if any of the given ones can apply to it before.

    They are at most two, one that drops messages and one that rejects them, so that an import of many policies with the
    same priority is quick.
    """
    for drops in (True, False):
        if alike := [each for each in limits if each.drops is drops]:
            length, size = _highest(each.length for each in alike), _highest(each.size for each in alike)
            yield alike[0]._replace(length=length, size=size)


def _is_lower(limit: int | None, before: int | None) -> TypeGuard[int]:
    """True if a limit is new, or lower than before."""
    return limit is not None and (before is None or limit < before)


def _of_stream(name: str, limits: Sequence[Sequence[_Limits]]) -> Iterator[Loss]:
    """Yield that a stream may lose messages because any of the later limits is lower than the first ones.

    A broker deletes whole segments of a stream. It reports neither their sizes nor, over AMQP, the number of messages.
    """
    now, *later = limits
    size, age = _lowest(each.size for each in chain(*later)), _lowest(each.age for each in chain(*later))
    lower = []
    if _is_lower(size, _highest(each.size for each in now)):
        lower.append(f"max-length-bytes is {size:,}")
    if _is_lower(age, _highest(each.age for each in now)):
        lower.append(f"max-age is {compact_duration(age / 1000)}")
    if lower:
        yield Loss(name, None, f"is a stream and may lose its oldest messages: {', '.join(lower)}")


def _at_restart(view: Json, depth: Depth | None, before: _Limits, after: _Limits) -> Iterator[Loss]:
    """Yield what a classic queue that rejects messages would lose when the broker restarts, because of a lower limit.

    When such a queue starts, RabbitMQ applies its limits before its overflow behaviour, and unacknowledged messages are
    ready again.
    """
    survives = view.get("type") != "quorum" and view.get("durable", True) and not view.get("exclusive")
    if not survives or before.drops or after.drops:
        return
    counted_before, size = view.get("messages") or 0, view.get("message_bytes") or 0
    there = max(counted_before, depth.ready if depth else 0)
    limits = [("max-length", before.length, after.length, after.length or 0, "")]
    if size and after.size is not None:
        limits.append(("max-length-bytes", before.size, after.size, after.size * counted_before // size, "about "))
    for name, old, limit, kept, about in limits:
        if _is_lower(limit, old) and there > kept:
            deed, lost = "dead-letters" if after.dead_letters else "drops", there - kept
            why = f"{deed} {about}{lost:,} of {counted(there)} when RabbitMQ restarts: {name} is {limit:,}"
            # In RabbitMQ 3.10, quorum queues do not get them.
            dead = " (quorum queues may not get these dead letters)" if after.dead_letters else ""
            yield Loss(view["name"], lost, f"{why}{dead}", at_restart=True)
            return


def _of_queue(view: Json, depth: Depth | None, before: _Limits, after: _Limits, first: str = "") -> Iterator[Loss]:
    """Yield what a queue would lose; `first` is said of its maximum length."""
    name, reported = view["name"], view.get("messages_ready")
    ready, consumers = depth or (reported, view.get("consumers") or 0)
    if ready == 0 and reported:  # a quorum queue without a leader says that it is empty
        ready = reported
    is_sooner = _is_lower(after.expires, before.expires)
    starts = after.drops and not before.drops
    length = after.length if starts or _is_lower(after.length, before.length) else None
    limit = after.size if starts or _is_lower(after.size, before.size) else None
    if ready is None:
        if is_sooner or (after.drops and (length, limit) != (None, None)):
            yield Loss(name, None, "may lose messages; the broker does not report how many")
        return
    others = uncounted(view)
    there = ready + (view.get("messages_unacknowledged") or 0) + others
    if there and is_sooner and after.expires is not None and not consumers:
        unused = compact_duration(after.expires / 1000)
        yield Loss(name, there, f"is deleted with {counted(there)} if it is not used for {unused}", of_queue=True)
    if not after.drops:
        return
    verb = "dead-letter" if after.dead_letters else "drop"
    beyond = 0 if length is None else min(ready, max(0, ready + others - length))
    size, in_bytes = view.get("message_bytes_ready"), 0
    if limit is not None and size:  # of as many messages as the API counted; if it has not, as there are
        in_bytes = max(0, ready - limit * (reported or ready) // size)
    if beyond and beyond >= in_bytes:
        yield Loss(name, beyond, f"{verb}s {beyond:,} of {counted(ready)}: max-length is {length:,}{first}")
    elif in_bytes:
        why = f"{verb}s about {in_bytes:,} of {counted(ready)}: max-length-bytes is {limit:,}{first}"
        yield Loss(name, in_bytes, why)
    elif limit is not None and ready and not size:  # the bodies are empty, or were published seconds ago
        why = f"max-length-bytes is {limit:,}{first}, and the broker has counted no bytes of them so far"
        yield Loss(name, None, f"may {verb} some of {counted(ready)}: {why}")
