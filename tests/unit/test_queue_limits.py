"""Limits of queues by arguments and policies: which messages a queue rejects, and what a new policy would remove."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote

import pytest

from mqtool.amqp import Channel
from mqtool.amqp.administration import Depth
from mqtool.errors import AccessRefused, NotFound
from mqtool.management import Management
from mqtool.management.overflow import overflow_of, rejects_beyond
from mqtool.work.policy_losses import Loss, losses, losses_by_clearing
from mqtool.work.queue_limits import applies, policies_of, room_in, strongest

FULL = {"x-overflow": "reject-publish"}


class FakeApi:
    """A management API with these objects, by their paths. An object that is an error is raised."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._objects = objects

    def get(self, path: str) -> Any:
        found = self._objects.get(unquote(path), NotFound("no"))
        if isinstance(found, Exception):
            raise found
        return found

    def items(self, path: str, _columns: Sequence[str] = ()) -> Any:
        return self.get(path)

    def pages(self, path: str, columns: Sequence[str], **_: object) -> Iterator[dict[str, Any]]:
        for each in self.get(path):
            yield {name: value for name, value in each.items() if name in columns}


def policy(name: str = "p", pattern: str = "", **more: Any) -> dict[str, Any]:
    """Return a policy as the management API does; its definition is what is not a part of a policy itself."""
    parts = {each: more.pop(each) for each in ("priority", "apply_to") if each in more}
    given = {"name": name, "pattern": pattern, "definition": {key.replace("_", "-"): more[key] for key in more}}
    return given | {key.replace("_", "-"): value for key, value in parts.items()}


def api_with(policies: Any = (), operator: Any = (), queues: Any = (), **more: Any) -> Management:
    views = {f"queues/v/{each['name']}": each for each in queues}
    lists = {"policies/v": policies, "operator-policies/v": operator, "queues/v": queues}
    return cast(Management, FakeApi({**views, **lists, **more}))


@pytest.mark.parametrize(
    ("arguments", "policies", "beyond"),
    [
        ({}, [], None),
        ({"x-max-length": 5}, [], None),
        ({"x-max-length": 5, "x-overflow": "drop-head"}, [], None),
        ({"x-max-length": 5, **FULL}, [], 5),
        ({"x-max-length": 5, "x-overflow": "reject-publish-dlx"}, [], 5),
        ({"x-max-length": 0, **FULL}, [], 0),
        (FULL, [], None),
        (FULL, [{"max-length": 7}], 7),
        ({"x-max-length": 5, **FULL}, [{"max-length": 7}], 5),
        ({"x-max-length": 5, **FULL}, [{"max-length": 3}], 3),
        ({"x-max-length": 5}, [{"overflow": "reject-publish"}], 5),
        ({"x-max-length": 5}, [{}, {"overflow": "reject-publish", "max-length": 2}], 2),
        ({"x-max-length": 5, "x-overflow": "drop-head"}, [{"overflow": "reject-publish"}], None),
        ({"x-max-length": 5}, [{"overflow": "drop-head"}, {"overflow": "reject-publish"}], 5),
        ({"x-max-length": "5", **FULL}, [], None),
        ({"x-max-length-bytes": 5, **FULL}, [], None),
    ],
    ids=[
        "no limit",
        "no overflow behaviour",
        "drop-head",
        "reject-publish",
        "reject-publish-dlx",
        "limit of 0",
        "overflow without a limit",
        "limit of a policy",
        "lower limit of the argument",
        "lower limit of the policy",
        "overflow of a policy",
        "two policies",
        "argument overrides the policy",
        "operator policy overrides the policy",
        "limit that is not a number",
        "limit in bytes",
    ],
)
def test_a_classic_queue_with_reject_publish_rejects_messages_beyond_its_lowest_limit(
    arguments: dict[str, Any], policies: list[dict[str, Any]], beyond: int | None
) -> None:
    """If the overflow behaviour of a classic queue is reject-publish or reject-publish-dlx, mqtool expects the queue
    to reject messages beyond the lowest of its limits on the number of messages. With any other overflow behaviour,
    or without a limit, it expects the queue to reject none. An argument that sets the behaviour overrides a policy.
    """
    assert rejects_beyond("classic", arguments, policies) == beyond


@pytest.mark.parametrize(
    ("own", "policies", "applies"),
    [
        (None, [], "drop-head"),
        ("reject-publish", [], "reject-publish"),
        ("reject-publish", [{"max-length": 5}, {"expires": 5}], "reject-publish"),
        ("reject-publish", [{"overflow": "drop-head"}], "drop-head"),
        ("drop-head", [{"overflow": "reject-publish"}], "reject-publish"),
        ("drop-head", [{"overflow": "drop-head"}, {"overflow": "reject-publish"}], "reject-publish"),
        ("reject-publish-dlx", [], "drop-head"),
        ("reject-publish", [{"overflow": "reject-publish-dlx"}], "drop-head"),
    ],
)
def test_a_policy_overrides_the_overflow_argument_of_a_quorum_queue(
    own: str | None, policies: list[dict[str, Any]], applies: str
) -> None:
    """If a policy and an argument of a quorum queue set different overflow behaviours, mqtool expects the queue to do
    what the policy says. If an operator policy sets the overflow behaviour, too, the operator policy overrides both.
    A quorum queue does not support reject-publish-dlx, so mqtool expects it to drop its oldest messages instead.
    """
    arguments = {"x-max-length": 5} if own is None else {"x-max-length": 5, "x-overflow": own}
    assert overflow_of("quorum", arguments, policies) == applies
    assert rejects_beyond("quorum", arguments, policies) == (5 if applies == "reject-publish" else None)


def test_a_queues_limits_in_messages_and_in_bytes_are_separate() -> None:
    """If a queue argument limits the number of messages and a policy limits their total size in bytes, or vice versa,
    mqtool finds the limit in bytes, and does not confuse it with the limit in messages.
    """
    by_policy = [{"max-length-bytes": 900}]
    assert rejects_beyond("classic", {"x-max-length": 5, **FULL}, by_policy, "max-length-bytes") == 900
    by_argument = {"x-max-length-bytes": 800, **FULL}
    assert rejects_beyond("classic", by_argument, [{"max-length": 5}], "max-length-bytes") == 800


@pytest.mark.parametrize(
    ("given", "kind", "is_applied"),
    [
        (policy(pattern="^q"), "classic", True),
        (policy(pattern="^x"), "classic", False),
        (policy(pattern="(?<"), "classic", True),
        (policy(apply_to="all"), "stream", True),
        (policy(apply_to="queues"), "quorum", True),
        (policy(apply_to="exchanges"), "classic", False),
        (policy(apply_to="quorum_queues"), "quorum", True),
        (policy(apply_to="quorum_queues"), "classic", False),
        (policy(apply_to="streams"), "stream", True),
        (policy(apply_to="streams"), "quorum", False),
        (policy(max_length=1, delivery_limit=1), "quorum", True),
        (policy(max_length=1, delivery_limit=1), "classic", False),
        (policy(queue_mode="lazy"), "quorum", False),
        (policy(queue_mode="lazy"), "of a plugin", True),
        (policy(max_age="1D"), "classic", False),
        (policy(max_age="1D"), "stream", True),
        (policy(max_length_bytes=1, expires=1), "stream", False),
        ({"name": "p", "pattern": ""}, "classic", True),
    ],
    ids=[
        "matching pattern",
        "other pattern",
        "pattern for Erlang",
        "all",
        "queues",
        "exchanges",
        "quorum queues",
        "quorum queues, classic queue",
        "streams",
        "streams, quorum queue",
        "delivery limit, quorum queue",
        "delivery limit, classic queue",
        "lazy, quorum queue",
        "lazy, unknown type",
        "max-age, classic queue",
        "max-age, stream",
        "expires, stream",
        "without a definition",
    ],
)
def test_a_policy_applies_to_queues_that_match_its_pattern_and_type(
    given: dict[str, Any], kind: str, is_applied: bool
) -> None:
    """mqtool expects a policy to apply to a queue if the policy's pattern matches the queue's name, its apply-to
    includes the queue's type, and this type supports all of the policy's settings. If mqtool cannot parse the
    pattern, but RabbitMQ might accept it, mqtool assumes that the pattern matches.
    """
    assert applies(given, "q", kind) is is_applied


def test_the_matching_policy_with_the_highest_priority_applies() -> None:
    """If several policies match a queue, mqtool expects the one with the highest priority to apply. It treats a
    missing priority as 0, the default. If several policies have the highest priority, mqtool assumes that any of them
    may apply.
    """
    low, none, high = policy("low", priority=-1), policy("none"), policy("high", priority=2)
    other = policy("other", "^x", priority=9)
    assert strongest([low, none], "q", "classic") == [none]
    assert strongest([none, high, low, other], "q", "classic") == [high]
    assert strongest([none, policy("one", priority=1)], "q", "classic") == [policy("one", priority=1)]
    assert strongest([other], "q", "classic") == []
    assert strongest([policy("streams", apply_to="streams", priority=5), low], "q", "classic") == [low]
    zero = policy("zero", priority=0)
    assert strongest([none, low, zero], "q", "classic") == [none, zero]


def test_the_policy_and_the_operator_policy_of_a_queue_are_found() -> None:
    """mqtool finds both the policy and the operator policy of a queue, if any. Of each kind, it chooses the matching
    one with the highest priority.
    """
    both = api_with([policy(max_length=5), policy("x", "^x", expires=1)], [policy(max_length=3, priority=1)])
    assert policies_of(both, "v", "q", "classic") == [{"max-length": 5}, {"max-length": 3}]
    assert policies_of(api_with(operator=[policy(expires=3)]), "v", "q", "classic") == [{"expires": 3}]
    assert policies_of(api_with([policy(max_length=5)]), "v", "q", "classic") == [{"max-length": 5}]
    streams = [policy(apply_to="streams", max_length=5), policy(apply_to="quorum_queues", max_length=4)]
    assert policies_of(api_with(streams), "v", "q", "quorum") == [{"max-length": 4}]
    assert policies_of(api_with([{"name": "p", "pattern": ""}]), "v", "q", "classic") == [{}]


@pytest.mark.parametrize("refusal", [AccessRefused("no"), NotFound("no")], ids=["access refused", "not found"])
def test_without_permission_to_read_policies_the_queues_effective_policy_is_used(refusal: Exception) -> None:
    """If a user has no permission to read policies, mqtool uses the effective policy that the management API reports
    for the queue itself. If the queue does not exist, mqtool assumes that there is no policy.
    """
    effective = {"name": "q", "effective_policy_definition": {"max-length": 9}}
    for lists in ({"policies": refusal}, {"policies": [policy(max_length=5)], "operator": refusal}):
        assert policies_of(api_with(**lists, queues=[effective]), "v", "q", "classic") == [{"max-length": 9}]
        assert policies_of(api_with(**lists, queues=[{"name": "q"}]), "v", "q", "classic") == [{}]
        assert policies_of(api_with(**lists), "v", "q", "classic") == []


class FakeChannel:
    """A channel on which the queue "q" has a number of messages."""

    depth = 2

    def depth_of(self, queue: str) -> int:
        assert queue == "q"
        return self.depth


def test_a_queue_that_rejects_messages_can_take_more_messages_up_to_its_limit() -> None:
    """If a queue rejects messages beyond its limit, mqtool computes how many more messages the queue can take: the
    limit minus the number of messages that are in the queue at that moment.
    """
    channel = FakeChannel()
    given = {"name": "q", "type": "quorum", "arguments": {**FULL, "x-max-length": 10}}
    streams = policy(apply_to="streams", max_length=1)
    room = room_in(cast(Channel, channel), api_with([streams], queues=[given]), "v", "q")
    assert room is not None
    assert room() == 8
    channel.depth = 9
    assert room() == 1
    by_policy = api_with([policy(max_length=4, overflow="reject-publish", apply_to="classic_queues")],
                         queues=[{"name": "q"}])  # fmt: skip
    room = room_in(cast(Channel, FakeChannel()), by_policy, "v", "q")
    assert room is not None
    assert room() == 2
    of_quorum_queues = policy(max_length=3, overflow="reject-publish", apply_to="quorum_queues")
    by_type = api_with([of_quorum_queues], queues=[{"name": "q", "type": "quorum"}])
    room = room_in(cast(Channel, FakeChannel()), by_type, "v", "q")
    assert room is not None
    assert room() == 1


def test_a_queue_that_never_rejects_messages_can_take_any_number() -> None:
    """mqtool assumes that a queue can take any number of messages if it has no limit or does not exist yet, or if it
    drops its oldest messages beyond the limit.
    """
    for queues in ([{"name": "q", "arguments": {"x-max-length": 10}}], [{"name": "q", "arguments": None}], []):
        limited = policy(max_length=4, overflow="reject-publish")
        policies = [] if queues else [limited]
        assert room_in(cast(Channel, FakeChannel()), api_with(policies, queues=queues), "v", "q") is None


def queue(ready: int = 10, **more: Any) -> dict[str, Any]:
    """Return a queue as the management API does, with messages of 10 bytes."""
    return {
        "name": "q", "type": "classic", "messages_ready": ready, "message_bytes_ready": 10 * ready,
        "consumers": 0, "arguments": {}, **more,
    }  # fmt: skip


def not_counted(_queue: str) -> None:
    """Leave the counting of a queue's messages to the management API."""


def lost(new: dict[str, Any], *queues: dict[str, Any], policies: Any = (), operator: Any = ()) -> list[Loss]:
    return losses(api_with(policies, operator, queues), "v", [new], not_counted, operator=False)


@pytest.mark.parametrize(
    ("new", "there", "loss"),
    [
        (policy(max_length=4), queue(), Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(max_length=0), queue(1), Loss("q", 1, "drops 1 of 1 message: max-length is 0")),
        (policy(max_length=1000), queue(3500),
         Loss("q", 2500, "drops 2,500 of 3,500 messages: max-length is 1,000")),
        (policy(max_length=9, dead_letter_exchange=""), queue(),
         Loss("q", 1, "dead-letters 1 of 10 messages: max-length is 9")),
        (policy(max_length=9), queue(arguments={"x-dead-letter-exchange": "dlx"}),
         Loss("q", 1, "dead-letters 1 of 10 messages: max-length is 9")),
        (policy(max_length_bytes=75), queue(),
         Loss("q", 3, "drops about 3 of 10 messages: max-length-bytes is 75")),
        (policy(max_length_bytes=0), queue(), Loss("q", 10, "drops about 10 of 10 messages: max-length-bytes is 0")),
        (policy(max_length=8, max_length_bytes=75), queue(),
         Loss("q", 3, "drops about 3 of 10 messages: max-length-bytes is 75")),
        (policy(max_length=7, max_length_bytes=75), queue(),
         Loss("q", 3, "drops 3 of 10 messages: max-length is 7")),
        (policy(max_length=4), queue(arguments={"x-max-length": 6}),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(expires=60_000), queue(),
         Loss("q", 10, "is deleted with 10 messages if it is not used for 1m", of_queue=True)),
        (policy(expires=60_000), queue(arguments={"x-expires": 60_001}),
         Loss("q", 10, "is deleted with 10 messages if it is not used for 1m", of_queue=True)),
        (policy(max_length=4, delivery_limit=3), queue(type="quorum"),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(max_length=4, apply_to="quorum_queues"), queue(type="quorum"),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(max_length=4, apply_to="classic_queues"), queue(type=None),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(expires=60_000), queue(0, messages_unacknowledged=1),
         Loss("q", 1, "is deleted with 1 message if it is not used for 1m", of_queue=True)),
        (policy(max_length=8), queue(type="quorum", messages=13),
         Loss("q", 5, "drops 5 of 10 messages: max-length is 8")),
        (policy(max_length=2), queue(type="quorum", messages=13),
         Loss("q", 10, "drops 10 of 10 messages: max-length is 2")),
        (policy(overflow="drop-head"), queue(type="quorum", arguments={"x-max-length": 4, **FULL}),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(overflow="drop-head", max_length=4), queue(type="quorum", arguments=FULL),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
    ],
    ids=[
        "some messages", "all messages", "thousands of messages", "dead letters by the policy",
        "dead letters by the argument", "bytes", "0 bytes", "more by bytes", "as many by length",
        "shorter than the argument", "expiring queue", "expires earlier than the argument", "quorum queue",
        "only quorum queues", "queue without a type", "unacknowledged message in an expiring queue",
        "messages that wait for a delayed retry count", "only ready messages are dropped",
        "policy overrides the overflow of a quorum queue", "policy sets overflow and limit of a quorum queue",
    ],
)  # fmt: skip
def test_mqtool_says_what_a_new_policy_would_remove_from_a_queue(
    new: dict[str, Any], there: dict[str, Any], loss: Loss
) -> None:
    """Before `policy set` sets a policy, it says how many messages each queue would drop or dead-letter because of the
    policy's limits, and which queues with messages would expire. If the limit is in bytes, mqtool estimates the number
    of messages from their average size.
    """
    assert lost(new, there) == [loss]


@pytest.mark.parametrize(
    ("new", "there"),
    [
        (policy(max_length=10), queue()),
        (policy(max_length_bytes=100), queue()),
        (policy(max_length=4, overflow="reject-publish"), queue(type="quorum")),
        (policy(max_length=4), queue(arguments={"x-max-length": 3})),
        (policy(max_length=4), queue(type="stream")),
        (policy(max_length=4, pattern="^x"), queue()),
        (policy(max_length=4, apply_to="exchanges"), queue()),
        (policy(message_ttl=1), queue()),
        (policy(max_length=-1), queue()),
        (policy(expires=60_000), queue(consumers=1)),
        (policy(expires=60_000), queue(0)),
        (policy(expires=60_000), queue(arguments={"x-expires": 60_000})),
        (policy(expires=60_000), queue(arguments={"x-expires": 1000})),
        (policy(expires=60_000, max_length=100), queue(arguments={"x-expires": 60_000})),
        (policy(overflow="drop-head"), queue(arguments={"x-max-length": 6})),
        (policy(overflow="drop-head"), queue(arguments={"x-max-length": 6, **FULL})),
        (policy(overflow="reject-publish", max_length=4), queue(type="quorum", arguments={"x-overflow": "drop-head"})),
        (policy(max_length=0), queue(0)),
        (policy(max_length=4, apply_to="classic_queues"), queue(type="quorum")),
        (policy(max_length=4, delivery_limit=3), queue()),
        (policy(max_length=4, queue_mode="lazy"), queue(type="quorum")),
    ],
    ids=[
        "within the length",
        "within the bytes",
        "policy rejects",
        "shorter argument",
        "stream",
        "other pattern",
        "exchanges only",
        "message TTL",
        "negative length",
        "queue with a consumer",
        "empty expiring queue",
        "same x-expires",
        "shorter x-expires",
        "same x-expires and enough room",
        "overflow only",
        "argument of a classic queue rejects",
        "policy of a quorum queue rejects",
        "empty queue",
        "classic queues only",
        "delivery limit for a classic queue",
        "lazy for a quorum queue",
    ],
)
def test_no_loss_is_reported_for_a_queue_that_a_new_policy_does_not_affect(
    new: dict[str, Any], there: dict[str, Any]
) -> None:
    """`policy set` reports no loss for a queue to which the policy would not apply, for example because the queue's
    type does not support one of the policy's settings. It also reports none for a queue that would keep its messages,
    for example because it is within the limits, or because it rejects new messages instead of dropping old ones. It
    reports no expiry of a queue with consumers.
    """
    assert lost(new, there) == []


@pytest.mark.parametrize(
    ("new", "own", "why"),
    [
        (policy(max_length_bytes=1000), {}, "max-length-bytes is 1,000"),
        (policy(max_age="90s"), {}, "max-age is 1m30s"),
        (policy(max_age="7D", max_length_bytes=9), {}, "max-length-bytes is 9, max-age is 7d"),
        (policy(max_length_bytes=1000), {"x-max-length-bytes": 1001}, "max-length-bytes is 1,000"),
        (policy(max_age="364D"), {"x-max-age": "1Y"}, "max-age is 364d"),
        (policy(max_age="29D"), {"x-max-age": "1M"}, "max-age is 29d"),
        (policy(max_age="59m"), {"x-max-age": "1h"}, "max-age is 59m"),
        (policy(max_length_bytes=1000), {"x-max-length-bytes": 1000}, None),
        (policy(max_age="365D"), {"x-max-age": "1Y"}, None),
        (policy(max_age="1D"), {"x-max-age": "1h"}, None),
        (policy(max_length_bytes=1000), {"x-max-length-bytes": 999}, None),
        (policy(stream_max_segment_size_bytes=1000), {}, None),
        (policy(max_age="1s", expires=1000), {}, None),
    ],
)  # fmt: skip
def test_a_new_or_lower_limit_may_make_a_stream_lose_its_oldest_messages(
    new: dict[str, Any], own: dict[str, Any], why: str | None
) -> None:
    """`policy set` and `policy clear` say that a stream may lose its oldest messages if its max-length-bytes or max-age
    would be new or lower than before, wherever the previous limit was set. They never say how many, because a broker
    deletes whole segments and does not report their sizes. They warn even if the broker has not counted any messages in
    the stream yet.
    """
    expected = [Loss("q", None, f"is a stream and may lose its oldest messages: {why}")] if why else []
    for stream in (queue(type="stream", arguments=own), {"name": "q", "type": "stream", "arguments": own}):
        assert lost(new, stream) == expected
        assert lost(new, stream, policies=[new]) == []
        api = api_with([policy("high", priority=1, initial_cluster_size=1), new], queues=[stream])
        assert losses_by_clearing(api, "v", "high", not_counted, operator=False) == expected


@pytest.mark.parametrize(
    ("high", "own", "why"),
    [
        (policy(max_length_bytes=1000), {"x-max-length-bytes": 999}, "max-length-bytes is 999"),
        (policy(max_age="1D"), {"x-max-age": "1h"}, "max-age is 1h"),
        (policy(max_length_bytes=1000), {"x-max-length-bytes": 1001}, None),
        (policy(max_length_bytes=1000), {}, None),
    ],
)
def test_a_stream_may_lose_messages_because_of_a_lower_argument_that_a_policy_has_overridden(
    high: dict[str, Any], own: dict[str, Any], why: str | None
) -> None:
    """If a policy sets max-length-bytes or max-age for a stream, the stream's own argument for this limit has no
    effect, even if its value is lower. The argument takes effect when the policy is cleared, or when a policy of
    higher priority without this limit replaces it. If the argument's value is lower than the policy's, mqtool says
    before either change that the stream may lose its oldest messages.
    """
    expected = [Loss("q", None, f"is a stream and may lose its oldest messages: {why}")] if why else []
    stream = queue(type="stream", arguments=own)
    assert losses_by_clearing(api_with([high], queues=[stream]), "v", "p", not_counted, operator=False) == expected
    assert lost(policy("strong", priority=1, initial_cluster_size=1), stream, policies=[high]) == expected
    limited = [policy(max_length_bytes=1, max_age="1s")]
    assert lost(policy("strong", priority=1, initial_cluster_size=1), stream, policies=[high], operator=limited) == []


def test_losses_are_reported_only_for_a_policy_that_would_apply() -> None:
    """`policy set` reports that a queue would drop messages beyond a new policy's max-length only if the policy would
    apply to the queue and lower the queue's limit. The policy would not apply if another matching policy has a higher
    priority. It would not lower the limit if the policy that it replaces, or the operator policy, has the same or a
    lower max-length.
    """
    strong, four = policy("strong", priority=5, max_length=20), policy(max_length=4)
    assert lost(four, queue(), policies=[strong]) == []
    assert lost(policy(priority=6, max_length=4), queue(), policies=[strong])[0].messages == 6
    assert lost(four, queue(12), policies=[four, policy("z", "^z", max_length=1)]) == []
    assert lost(policy(max_length=3), queue(), policies=[four])[0].messages == 7
    assert lost(four, queue(), operator=[policy("o", max_length=2)]) == []
    assert losses(api_with([strong], [], [queue()]), "v", [four], not_counted, operator=True)[0].messages == 6


UNCOUNTED = "max-length-bytes is 75, and the broker has counted no bytes of them so far"


@pytest.mark.parametrize(
    ("new", "reported", "there", "loss"),
    [
        (policy(max_length=4), {}, Depth(10, 0), Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(max_length=4), queue(5), Depth(10, 0), Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(max_length=4), queue(10), Depth(4, 0), None),
        (policy(max_length=4), queue(10), Depth(0, 0), Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(max_length=4), {}, None,
         Loss("q", None, "may lose messages; the broker does not report how many")),
        (policy(expires=60_000), {}, None,
         Loss("q", None, "may lose messages; the broker does not report how many")),
        (policy(overflow="reject-publish", max_length=4), {"type": "quorum"}, None, None),
        (policy(overflow="reject-publish", max_length=4), {}, None,
         Loss("q", None, "may lose messages; the broker does not report how many")),
        (policy(max_length_bytes=75), {}, Depth(10, 0),
         Loss("q", None, f"may drop some of 10 messages: {UNCOUNTED}")),
        (policy(max_length_bytes=75), queue(0), Depth(10, 0),
         Loss("q", None, f"may drop some of 10 messages: {UNCOUNTED}")),
        (policy(max_length_bytes=75), {"message_bytes_ready": 100}, Depth(10, 0),
         Loss("q", 3, "drops about 3 of 10 messages: max-length-bytes is 75")),
        (policy(max_length_bytes=75), queue(message_bytes_ready=0), Depth(10, 0),
         Loss("q", None, f"may drop some of 10 messages: {UNCOUNTED}")),
        (policy(max_length_bytes=75, dead_letter_exchange="d"), queue(message_bytes_ready=0), Depth(10, 0),
         Loss("q", None, f"may dead-letter some of 10 messages: {UNCOUNTED}")),
        (policy(max_length_bytes=75, max_length=4), queue(message_bytes_ready=0), Depth(10, 0),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(max_length_bytes=75), queue(5), Depth(10, 0),
         Loss("q", 3, "drops about 3 of 10 messages: max-length-bytes is 75")),
        (policy(max_length_bytes=75), queue(20), Depth(7, 0), None),
        (policy(max_length_bytes=75), {}, Depth(0, 0), None),
        (policy(expires=60_000), queue(0), Depth(10, 0),
         Loss("q", 10, "is deleted with 10 messages if it is not used for 1m", of_queue=True)),
        (policy(expires=60_000), queue(consumers=1), Depth(10, 0),
         Loss("q", 10, "is deleted with 10 messages if it is not used for 1m", of_queue=True)),
        (policy(expires=60_000), queue(), Depth(10, 1), None),
    ],
    ids=[
        "no statistics", "fewer were reported", "more were reported", "quorum queue without a leader", "nobody counted",
        "nobody counted, expiring", "nobody counted, rejecting", "nobody counted, limit before overflow",
        "bytes without statistics", "no bytes reported",
        "only bytes reported", "empty bodies", "dead letters with empty bodies", "max-length and empty bodies",
        "fewer bytes reported", "more bytes reported", "no bytes of an empty queue",
        "expiring queue", "consumer was reported", "consumer was not reported",
    ],
)  # fmt: skip
def test_policy_set_uses_the_current_number_of_messages_to_say_how_many_a_queue_would_lose(
    new: dict[str, Any], reported: dict[str, Any], there: Depth | None, loss: Loss | None
) -> None:
    """Before `policy set` sets a policy with limits, it says how many messages a queue would lose. It asks over AMQP
    how many messages the queue has, because the management API's numbers can be some seconds old or missing. If this
    number or, for a limit in bytes, the total size of the messages is not known, `policy set` says only that the
    queue may lose messages.
    """
    api = api_with(queues=[{"name": "q"} | reported])
    assert losses(api, "v", [new], lambda _: there, operator=False) == ([loss] if loss else [])


def test_policy_set_says_what_each_queue_would_lose() -> None:
    """If a new policy would apply to several queues, `policy set` counts the messages of each of them, and says what
    each queue would lose.
    """
    counts = {"few": Depth(5, 0), "many": Depth(9, 0)}
    api = api_with(queues=[{"name": name} for name in counts])
    assert losses(api, "v", [policy(max_length=4)], counts.__getitem__, operator=False) == [
        Loss("few", 1, "drops 1 of 5 messages: max-length is 4"),
        Loss("many", 5, "drops 5 of 9 messages: max-length is 4"),
    ]


LOW, HIGH = policy("low", max_length=4), policy("high", priority=9, message_ttl=1)


@pytest.mark.parametrize(
    ("now", "new", "messages"),
    [
        ([], [LOW, policy("lower", "^q", priority=1, max_length=2)], 8),
        ([], [policy("lower", "^q", priority=1, max_length=2), LOW], 8),
        ([], [HIGH, LOW], None),
        ([], [LOW, HIGH], 6),
        ([HIGH], [LOW, policy("high", priority=-1, message_ttl=1)], 6),
        ([HIGH, LOW], [policy("high", "^z", message_ttl=1)], 6),
        ([HIGH], [LOW], None),
        ([], [], None),
    ],
    ids=[
        "lowest last", "lowest first", "overridden", "overridden later", "no longer overridden", "other pattern",
        "overridden already", "none",
    ],
)  # fmt: skip
def test_policies_that_are_imported_together_can_make_a_queue_drop_messages(
    now: list[dict[str, Any]], new: list[dict[str, Any]], messages: int | None
) -> None:
    """`definitions import` sets policies one after the other. Before it does so, it says how many messages a queue
    would drop because of the lowest limit that applies to the queue at any time during the import, even if a policy
    that is imported later overrides this limit. It reports no loss for a limit that another policy overrides from the
    beginning to the end.
    """
    found = losses(api_with(now, [], [queue()]), "v", new, not_counted, operator=False)
    assert [loss.messages for loss in found] == ([messages] if messages else [])


A20, B5, TTL = policy("a", max_length=20), policy("b", max_length=5), policy("c", message_ttl=1)
TIE = "(RabbitMQ may apply any of the policies with the same priority)"


@pytest.mark.parametrize(
    ("now", "new", "there", "why"),
    [
        ([A20], policy("b", max_length=4), {"policy": "a"}, "drops 6 of 10 messages: max-length is 4"),
        ([B5], policy("a", max_length=4), {"policy": "b"}, "drops 6 of 10 messages: max-length is 4"),
        ([A20, B5], policy("a", max_length=30), {"policy": "a"}, "drops 5 of 10 messages: max-length is 5"),
        ([A20, B5], policy("c", max_length=4), {"policy": "a"}, "drops 6 of 10 messages: max-length is 4"),
        ([A20, policy("c", max_length=4)], policy("b", max_length=5), {"policy": "a"},
         "drops 6 of 10 messages: max-length is 4"),
        ([A20], policy("b", expires=60_000), {}, "is deleted with 10 messages if it is not used for 1m"),
        ([policy("a", expires=60_000)], policy("b", expires=1000), {},
         "is deleted with 10 messages if it is not used for 1s"),
        ([A20], B5, {"arguments": FULL}, "drops 5 of 10 messages when RabbitMQ restarts: max-length is 5"),
        ([A20, B5], policy("c", max_length=4), {"arguments": FULL, "policy": "a"},
         "drops 6 of 10 messages when RabbitMQ restarts: max-length is 4"),
        ([policy("a", max_age="2D")], policy("b", max_length_bytes=9), {"type": "stream"},
         "is a stream and may lose its oldest messages: max-length-bytes is 9"),
        ([policy("a", max_age="2D")], policy("b", max_age="1D"), {"type": "stream"},
         "is a stream and may lose its oldest messages: max-age is 1d"),
    ],
    ids=[
        "later name", "earlier name", "changed", "third", "between", "expires", "expires earlier", "restart",
        "third at a restart", "bytes of a stream", "age of a stream",
    ],
)  # fmt: skip
def test_policy_set_reports_the_worst_loss_if_several_policies_have_the_highest_priority(
    now: list[dict[str, Any]], new: dict[str, Any], there: dict[str, Any], why: str
) -> None:
    """If several policies with the highest priority match a queue, RabbitMQ may apply any of them. If `policy set`
    adds or changes one of these policies, it reports the largest possible loss, and adds that RabbitMQ may apply any
    of them.
    """
    full = queue(**{"messages": 10, **there})
    assert [loss.why for loss in lost(new, full, policies=now)] == [f"{why} {TIE}"]
    found = losses(api_with([], now, [full | {"operator_policy": there.get("policy"), "policy": None}]), "v", [new],
                   not_counted, operator=True)  # fmt: skip
    assert [loss.why for loss in found] == [f"{why} {TIE}"]


@pytest.mark.parametrize("named", ["a", None], ids=["named", "not named"])
@pytest.mark.parametrize(
    ("now", "new"),
    [
        ([A20], policy("b", max_length=20)),
        ([A20], policy("b", max_length=10)),
        ([A20, B5], A20),
        ([A20, B5], A20 | {"pattern": "^q"}),
        ([A20, B5], policy("c", priority=-1, max_length=1)),
        ([A20, B5], policy("c", priority=1, max_length=10)),
        ([A20, policy("b", "^z", max_length=5)], policy("c", max_length=10)),
    ],
    ids=["same limit", "enough room", "no change", "other pattern", "weaker", "stronger", "other queues"],
)
def test_policy_set_reports_no_loss_if_none_is_possible_whichever_policy_of_the_same_priority_applies(
    now: list[dict[str, Any]], new: dict[str, Any], named: str | None
) -> None:
    """If several policies with the same priority match a queue, RabbitMQ may apply any of them. `policy set` reports no
    loss if the queue is within the limits of all of them, if the new policy changes none of these limits, or if the new
    policy has a higher priority and the queue is within the new policy's limit.
    """
    assert lost(new, queue(policy=named, operator_policy="x"), policies=now) == []
    operator = {"policies": [TTL], "operator": [policy("x", max_length=20), policy("y", max_length=5)]}
    assert lost(policy("c", expires=10**16), queue(policy="c", operator_policy="x"), **operator) == []


@pytest.mark.parametrize("operator", [False, True], ids=["user", "operator"])
def test_policy_clear_asks_the_broker_which_of_several_policies_with_the_same_priority_applies(operator: bool) -> None:
    """If several policies with the highest priority match a queue, `policy clear` assumes that RabbitMQ applies the one
    that the management API names for the queue. If the API names none of them, for example because the policy is new,
    `policy clear` assumes that any of them may apply. It looks up operator policies in the same way.
    """
    key = "operator_policy" if operator else "policy"

    def dropped(cleared: str, policies: Sequence[dict[str, Any]], **there: Any) -> list[str]:
        lists = ([], policies) if operator else (policies, [])
        api = api_with(*lists, [queue(**there)])
        return [loss.why for loss in losses_by_clearing(api, "v", cleared, not_counted, operator=operator)]

    why = ["drops 5 of 10 messages: max-length is 5"]
    for policies in ([A20, B5], [B5, A20]):
        assert dropped("a", policies, **{key: "a"}) == why
        assert dropped("a", policies, **{key: "b"}) == []
        assert dropped("b", policies, **{key: "a"}) == []
        assert dropped("a", policies, **{key: None}) == why
        assert dropped("a", policies, **{key: "gone"}) == why
        assert dropped("a", policies, **{key: ["b"]}) == why
        assert dropped("a", policies, arguments={key: "b", f"x-{key}": "b"}) == why
        assert dropped("a", policies, **{"policy": "b", "operator_policy": "b", key: "a"}) == why
    # The name is up to five seconds old: a policy with a higher priority applies already.
    assert dropped("low", [policy("high", priority=1, max_length=10), policy("low")], **{key: "low"}) == []


def test_an_import_reports_a_loss_even_if_it_depends_on_which_policy_of_the_same_priority_applies() -> None:
    """If a file contains two policies with the same priority, RabbitMQ may apply either of them to a queue. Whether a
    third policy, with a higher priority and a lower max-length, makes the queue drop messages can depend on which of
    the two applied before. Even if it does, `definitions import` reports how many messages the queue would drop, and
    adds that RabbitMQ may apply any of the policies with the same priority.
    """
    tied = [policy("a", overflow="reject-publish", max_length=20), policy("b", max_length=20)]
    for order in (tied, tied[::-1]):
        for last, note in (({}, ""), ({"overflow": "reject-publish"}, f" {FIRST}")):
            new = [*order, policy("c", priority=1, max_length=4, **last)]
            found = losses(api_with(queues=[queue(messages=0)]), "v", new, lambda _: Depth(10, 0), operator=False)
            assert f"drops 6 of 10 messages: max-length is 4{note} {TIE}" in [loss.why for loss in found]


def test_only_arguments_that_begin_with_x_limit_a_queue() -> None:
    """RabbitMQ ignores a queue's argument `max-length`; only `x-max-length` is a limit. `policy set` also ignores
    arguments without `x-` when it reports what the queue would lose because of the new policy.
    """
    ignored = {"max-length": 4, "expires": 1000, "overflow": "reject-publish", "dead-letter-exchange": ""}
    assert [loss.why for loss in lost(policy(max_length=4, expires=60_000), queue(arguments=ignored))] == [
        "is deleted with 10 messages if it is not used for 1m",
        "drops 6 of 10 messages: max-length is 4",
    ]


OLD = policy("old", expires=60_000)


@pytest.mark.parametrize(
    ("now", "new", "there", "why"),
    [
        ([], [OLD, policy("high", priority=5, max_length=100)], {}, None),
        ([OLD], [policy("old", "^z"), policy("new", expires=60_000)], {}, None),
        ([], [policy("a", expires=3_600_000), policy("b", priority=1, expires=60_000)], {},
         "is deleted with 10 messages if it is not used for 1m"),
        ([], [policy("a", max_length=4), policy("b", priority=1, message_ttl=1)], {"arguments": FULL}, None),
    ],
    ids=["overridden at the end", "same as before", "other time at the end", "restart"],
)  # fmt: skip
def test_an_import_reports_expiry_only_for_limits_that_apply_once_all_policies_are_imported(
    now: list[dict[str, Any]], new: list[dict[str, Any]], there: dict[str, Any], why: str | None
) -> None:
    """`definitions import` imports policies one after the other, so some limits apply only for a moment during the
    import. In this short time, no queue expires, and RabbitMQ does not restart (a restart would make queues with
    reject-publish drop messages). The command therefore says that a queue would expire, or would drop messages at a
    restart, only because of limits that apply once all policies are imported and did not apply before.
    """
    full = queue(**{"messages": 10, **there})
    found = losses(api_with(now, [], [full]), "v", new, not_counted, operator=False)
    assert [loss.why for loss in found] == ([why] if why else [])


def test_an_import_names_the_last_of_several_limits_that_would_drop_equally_many_messages() -> None:
    """If several policies in a file would each make a queue drop the same number of messages, the warning of
    `definitions import` names only the limit of the policy that is imported last.
    """
    new = [policy("a", max_length=4), policy("b", priority=1, max_length_bytes=40)]
    found = losses(api_with(queues=[queue()]), "v", new, not_counted, operator=False)
    assert [loss.why for loss in found] == ["drops about 6 of 10 messages: max-length-bytes is 40"]


@pytest.mark.parametrize(
    ("now", "new", "why"),
    [
        ([policy("old", max_age="7D")], [policy("old", "^z"), policy("new", max_age="7D")], None),
        ([], [policy("a", max_age="10D"), policy("b", priority=1, max_age="1D", max_length_bytes=1000)],
         "max-length-bytes is 1,000, max-age is 1d"),
        ([], [policy("a", max_age="1D"), policy("b", priority=1, max_age="10D")], "max-age is 1d"),
        ([], [policy("a", max_age="1D"), policy("b", priority=1, initial_cluster_size=1)], "max-age is 1d"),
        ([policy("old", max_age="7D")], [policy("old", "^z"), policy("new", max_age="6D")], "max-age is 6d"),
    ],
    ids=["same as before", "lower at the end", "higher at the end", "none at the end", "lower than before"],
)  # fmt: skip
def test_an_import_reports_the_lowest_limits_by_which_a_stream_may_lose_messages(
    now: list[dict[str, Any]], new: list[dict[str, Any]], why: str | None
) -> None:
    """`definitions import` sets policies one after the other, so a limit of a stream may be lower for a moment during
    the import than after it. If a limit would at any time be new or lower than before the import, the command says
    that the stream may lose messages, and names the lowest value of this limit.
    """
    found = losses(api_with(now, [], [queue(type="stream")]), "v", new, not_counted, operator=False)
    assert [loss.why for loss in found] == ([f"is a stream and may lose its oldest messages: {why}"] if why else [])


def test_the_broker_is_asked_once_for_a_queues_number_of_messages_however_many_policies_are_imported() -> None:
    """To tell how many messages a queue would lose, `definitions import` asks the broker for the queue's number of
    messages. It asks only once, even if several policies would change the queue's limits. It does not ask for queues
    whose limits stay the same.
    """
    asked: list[str] = []

    def count(name: str) -> Depth:
        asked.append(name)
        return Depth(10, 0)

    new = [policy("a", max_length=9), policy("b", priority=1, max_length=8), policy("c", "^r", max_length=100)]
    same = queue(name="same", arguments={"x-max-length": 5})
    found = losses(api_with(queues=[queue(), queue(name="r"), same]), "v", new, count, operator=False)
    assert [(loss.queue, loss.messages) for loss in found] == [("q", 2), ("r", 2)]
    assert asked == ["q", "r"]


def test_no_loss_is_reported_for_a_limit_that_is_not_lower_than_before() -> None:
    """If a new policy does not lower a limit that a queue already has, `policy set` does not report that the queue
    may lose messages because of this limit, even if RabbitMQ has not counted the bytes of the queue's messages yet.
    It reports a loss if a limit is new or lower, or if the queue rejected new messages before and would now drop old
    ones.
    """
    uncounted = {"message_bytes_ready": 0, "arguments": {"x-max-length-bytes": 75}}
    assert lost(policy(max_length=10), queue(**uncounted)) == []
    assert lost(policy(max_length=10, max_length_bytes=76), queue(**uncounted)) == []
    assert lost(policy(max_length_bytes=74), queue(**uncounted))[0].messages is None
    assert lost(policy(max_length=10), queue(messages_ready=None, **uncounted))[0].messages is None
    assert lost(policy(expires=60_000, max_length=10), queue(arguments={"x-max-length": 5}))[0].of_queue
    rejecting = [policy(overflow="reject-publish")]
    assert lost(policy(message_ttl=1), queue(**uncounted), policies=rejecting)[0].messages is None


def test_no_expiry_is_reported_for_a_policy_with_an_extremely_long_expiry() -> None:
    """If a policy's `expires` is longer than any queue can stay unused, such as a number with hundreds of digits,
    mqtool treats the policy as one without an expiry.
    """
    assert lost(policy(expires=10**400), queue()) == []
    assert lost(policy(expires=60_000), queue(), policies=[policy(expires=10**400)])[0].of_queue
    assert lost(policy(expires=10**15), queue())[0].of_queue


@pytest.mark.parametrize(
    ("cleared", "there", "weaker", "loss"),
    [
        (policy(priority=1, max_length=20), queue(), policy("w", max_length=4),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(priority=1, message_ttl=1), queue(), policy("w", expires=60_000),
         Loss("q", 10, "is deleted with 10 messages if it is not used for 1m", of_queue=True)),
        (policy(overflow="reject-publish"), queue(arguments={"x-max-length": 4}), None,
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(expires=60_001), queue(type="quorum", arguments={"x-expires": 60_000}), None,
         Loss("q", 10, "is deleted with 10 messages if it is not used for 1m", of_queue=True)),
        (policy(expires=60_001), queue(arguments={"x-expires": 60_000}), None, None),
        (policy(max_length=4), queue(), None, None),
        (policy(priority=1, max_length=20), queue(), policy("w", "^z", max_length=4), None),
        (policy("other", max_length=20), queue(), policy("w", max_length=4), None),
    ],
)  # fmt: skip
def test_clearing_a_policy_can_make_a_queue_drop_messages(
    cleared: dict[str, Any], there: dict[str, Any], weaker: dict[str, Any] | None, loss: Loss | None
) -> None:
    """When a policy is cleared, the limits of another policy or of the queue's arguments can take effect. Before
    `policy clear` clears a policy, it says what each queue would lose because of these limits. If there are no such
    limits, or no policy has the given name, `policy clear` reports no loss.
    """
    api = api_with([cleared, *([weaker] if weaker else [])], [], [there])
    assert losses_by_clearing(api, "v", policy()["name"], not_counted, operator=False) == ([loss] if loss else [])


@pytest.mark.parametrize(
    "new", [policy(overflow="drop-head"), policy(message_ttl=1000)], ids=["drop-head", "no overflow behaviour"]
)
def test_replacing_a_policy_can_make_a_queue_drop_messages(new: dict[str, Any]) -> None:
    """A queue with reject-publish keeps the messages that it already has beyond the limit of its operator policy. If
    `policy set` replaces the policy that sets reject-publish with one that does not, the command says how many
    messages the queue will drop. If a new policy only removes or raises a limit, the command reports no loss.
    """
    rejects, limit = policy(overflow="reject-publish"), [policy(max_length=4)]
    assert lost(new, queue(), policies=[rejects], operator=limit) == [
        Loss("q", 6, "drops 6 of 10 messages: max-length is 4")
    ]
    assert lost(rejects, queue(), policies=[new], operator=limit) == []
    assert lost(new, queue(), policies=limit) == []
    assert lost(policy(expires=60_000), queue(), policies=[policy(expires=1000)]) == []


FIRST = "(RabbitMQ applies it before the new overflow setting)"


@pytest.mark.parametrize(
    ("new", "there", "loss"),
    [
        (policy(max_length=4), queue(), Loss("q", 6, f"drops 6 of 10 messages: max-length is 4 {FIRST}")),
        (policy(max_length_bytes=75), queue(),
         Loss("q", 3, f"drops about 3 of 10 messages: max-length-bytes is 75 {FIRST}")),
        (policy(max_length_bytes=75), queue(message_bytes_ready=0),
         Loss("q", None, f"may drop some of 10 messages: {UNCOUNTED}".replace("75", f"75 {FIRST}"))),
        (policy(max_length=4, dead_letter_exchange=""), queue(),
         Loss("q", 6, f"dead-letters 6 of 10 messages: max-length is 4 {FIRST}")),
        (policy(max_length=4), queue(type=None), Loss("q", 6, f"drops 6 of 10 messages: max-length is 4 {FIRST}")),
        (policy(max_length=4), queue(arguments={"x-overflow": "drop-head"}),
         Loss("q", 6, "drops 6 of 10 messages: max-length is 4")),
        (policy(expires=60_000), queue(),
         Loss("q", 10, "is deleted with 10 messages if it is not used for 1m", of_queue=True)),
        (policy(max_length=10), queue(), None),
        (policy(message_ttl=1), queue(arguments={"x-max-length": 4}), None),
        (policy(max_length=4), queue(type="quorum"), None),
    ],
    ids=[
        "length", "bytes", "bytes not counted", "dead letters", "unknown type", "own drop-head", "expires",
        "within the length", "same limit", "quorum",
    ],
)  # fmt: skip
def test_a_classic_queue_drops_messages_beyond_a_limit_that_comes_with_reject_publish(
    new: dict[str, Any], there: dict[str, Any], loss: Loss | None
) -> None:
    """If a policy with both a limit and reject-publish newly applies to a classic queue, RabbitMQ applies the limit
    first, so the queue drops messages. `policy set` says beforehand how many. `policy clear` also says how many if
    this policy will apply once another one is cleared. A quorum queue drops none.
    """
    expected = [loss] if loss else []
    rejects = {**new, "definition": {**new["definition"], "overflow": "reject-publish"}}
    assert lost(rejects, there) == expected
    high = policy("high", priority=1, message_ttl=1)
    cleared = losses_by_clearing(api_with([high, rejects], queues=[there]), "v", "high", not_counted, operator=False)
    assert cleared == expected


@pytest.mark.parametrize(
    ("new", "there", "messages", "why"),
    [
        (policy(max_length=4), {}, 6, "drops 6 of 10 messages when RabbitMQ restarts: max-length is 4"),
        (policy(max_length=4), {"arguments": {**FULL, "x-max-length": 5, "x-dead-letter-exchange": ""}}, 6,
         "dead-letters 6 of 10 messages when RabbitMQ restarts: max-length is 4 "
         "(quorum queues may not get these dead letters)"),
        (policy(max_length=11), {"messages": 12, "type": None}, 1,
         "drops 1 of 12 messages when RabbitMQ restarts: max-length is 11"),
        (policy(max_length_bytes=75), {"durable": True}, 3,
         "drops about 3 of 10 messages when RabbitMQ restarts: max-length-bytes is 75"),
        (policy(max_length_bytes=75), {"message_bytes_ready": 0, "messages_ready": 0, "message_bytes": 75}, 0, None),
        (policy(max_length=10), {}, 0, None),
        (policy(max_length=4), {"arguments": {**FULL, "x-max-length": 4}}, 0, None),
        (policy(max_length=4), {"arguments": {**FULL, "x-max-length": 3}}, 0, None),
        (policy(max_length=4), {"type": "quorum"}, 0, None),
        (policy(max_length=4), {"durable": False}, 0, None),
        (policy(max_length=4), {"exclusive": True}, 0, None),
    ],
    ids=[
        "length", "dead letters", "unacknowledged", "bytes", "within the bytes, all unacknowledged",
        "within the length", "same limit", "raised limit", "quorum", "transient", "exclusive",
    ],
)  # fmt: skip
def test_policy_commands_say_what_a_queue_with_reject_publish_will_drop_at_a_restart(
    new: dict[str, Any], there: dict[str, Any], messages: int | None, why: str | None
) -> None:
    """If a limit becomes lower, a classic queue with reject-publish keeps the messages that it has beyond the new
    limit, but only until RabbitMQ restarts. `policy set` and `policy clear` say how many messages, including
    unacknowledged ones, the queue will drop or dead-letter at the restart. They do not say this about a quorum queue,
    which keeps its messages, or about a transient or exclusive queue, which does not survive the restart anyway.
    """
    expected = [Loss("q", messages, why, at_restart=True)] if why else []
    full = queue(**{"arguments": FULL, "messages": 10, "message_bytes": 100, **there})
    assert lost(new, full) == expected
    high = policy("high", priority=1, message_ttl=1)
    cleared = losses_by_clearing(api_with([high, new], queues=[full]), "v", "high", not_counted, operator=False)
    assert cleared == expected


def test_a_queue_that_already_rejects_messages_drops_those_beyond_a_new_limit_at_a_restart() -> None:
    """If an earlier policy makes a classic queue reject new messages (reject-publish), and a new policy sets
    reject-publish-dlx and a limit, the queue keeps the messages that it has beyond this limit until RabbitMQ
    restarts. `policy set` says how many messages the queue will drop then. If the new policy would also make the
    queue expire, `policy set` says that, too.
    """
    new = policy(overflow="reject-publish-dlx", max_length=4, expires=60_000)
    expiring, dropping = lost(new, queue(messages=10), policies=[policy(overflow="reject-publish")])
    assert (expiring.of_queue, expiring.at_restart) == (True, False)
    assert dropping == Loss("q", 6, "drops 6 of 10 messages when RabbitMQ restarts: max-length is 4", at_restart=True)


@pytest.mark.parametrize("refusal", [AccessRefused("no"), NotFound("no")], ids=["access refused", "not found"])
def test_losses_are_counted_without_permission_to_read_policies(refusal: Exception) -> None:
    """If the user of `policy set` has no permission to read the existing policies, the command says how many messages
    the new policy would remove if there were no other policies.
    """
    assert lost(policy(max_length=4), queue(), policies=refusal, operator=refusal)[0].messages == 6


def test_the_losses_of_all_queues_are_listed() -> None:
    """`policy set` lists each queue in which the new policy would cause losses, in the order in which the broker lists
    the queues. A queue that would drop messages and would also expire is listed twice.
    """
    new = policy(max_length=4, expires=1000)
    found = lost(new, queue(name="a"), queue(2, name="b"), queue(0, name="c"), queue(type="stream"), queue(name="d"))
    assert [(loss.queue, loss.of_queue) for loss in found] == [
        ("a", True), ("a", False), ("b", True), ("d", True), ("d", False),
    ]  # fmt: skip
