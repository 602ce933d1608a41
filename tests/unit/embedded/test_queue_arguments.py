"""How the arguments of a queue and the policies that apply to it are combined."""

from typing import Any

import pytest

from mqtool.broker.embedded.model.profile import PROFILES, Like
from mqtool.broker.embedded.model.queue_arguments import Options, Retry
from mqtool.codecs.field_tables import Table

DAY = 86_400_000
RETRIES: Table = {"x-delayed-retry-type": "all", "x-delayed-retry-min": 5, "x-delayed-retry-max": 9}
AT_LEAST_ONCE: Table = {
    "dead-letter-exchange": "x", "dead-letter-strategy": "at-least-once", "overflow": "reject-publish",
}  # fmt: skip


def options(arguments: Table, policy: Table | None = None, like: Like = Like.V4_3) -> Options:
    return Options.of(arguments, policy or {}, PROFILES[like])


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("message-ttl", "message_ttl"),
        ("expires", "expires"),
        ("max-length", "max_length"),
        ("max-length-bytes", "max_length_bytes"),
        ("max-priority", "max_priority"),
        ("consumer-timeout", "consumer_timeout"),
    ],
)
def test_the_smaller_number_of_an_argument_and_a_policy_applies(name: str, setting: str) -> None:
    """If an argument of a classic queue and a policy both set the same limit, such as max-length, the smaller number
    applies. A limit of 0 is the smallest limit. It does not mean that there is no limit.
    """
    for argument, policy, applies in ((5, None, 5), (None, 5, 5), (5, 7, 5), (7, 5, 5), (0, 5, 0), (5, 0, 0)):
        found = options({} if argument is None else {f"x-{name}": argument}, {} if policy is None else {name: policy})
        assert found == Options(**{"delivery_limit": 20, setting: applies})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("overflow", "overflow"),
        ("dead-letter-exchange", "dead_letter_exchange"),
        ("dead-letter-routing-key", "dead_letter_routing_key"),
    ],
)
def test_a_classic_queues_overflow_and_dead_letter_arguments_override_a_policy(name: str, setting: str) -> None:
    """If an argument of a classic queue and a policy both set the overflow behaviour, the dead-letter exchange or the
    dead-letter routing key, the argument applies.
    """
    for arguments, policy in (({f"x-{name}": "a"}, {}), ({}, {name: "a"}), ({f"x-{name}": "a"}, {name: "b"})):
        found = options({**arguments}, {**policy})
        assert found == Options(delivery_limit=20, **{setting: "a"})  # type: ignore[arg-type]
    assert options({}).overflow == "drop-head"


QUORUM: Table = {"x-queue-type": "quorum"}
STREAM: Table = {"x-queue-type": "stream"}


@pytest.mark.parametrize(
    ("argument", "policy", "applies"),
    [
        (None, None, "drop-head"),
        ("reject-publish", None, "reject-publish"),
        (None, "reject-publish", "reject-publish"),
        ("reject-publish", "drop-head", "drop-head"),
        ("drop-head", "reject-publish", "reject-publish"),
        ("reject-publish-dlx", None, "drop-head"),
        ("reject-publish", "reject-publish-dlx", "drop-head"),
    ],
)
def test_a_policy_takes_precedence_over_the_overflow_argument_of_a_quorum_queue(
    argument: str | None, policy: str | None, applies: str
) -> None:
    """If an argument of a quorum queue and a policy both set the overflow behaviour, the policy applies. The
    dead-letter strategy at-least-once has an effect only if the behaviour that applies is reject-publish. Quorum
    queues do not support reject-publish-dlx, and treat it as drop-head.
    """
    at_least_once: Table = {"x-dead-letter-exchange": "x", "x-dead-letter-strategy": "at-least-once"}
    found = options({**QUORUM, **at_least_once, "x-overflow": argument}, {"overflow": policy})
    assert (found.overflow, found.at_least_once) == (applies, applies == "reject-publish")


@pytest.mark.parametrize(
    ("like", "arguments", "policy", "applies"),
    [
        (Like.V3_10, QUORUM, 7, 7),
        (Like.V3_10, QUORUM, 3, 3),
        (Like.V3_10, QUORUM, None, 5),
        (Like.V3_10, {}, 7, 5),
        (Like.V4_0, QUORUM, 7, 5),
        (Like.V4_0, QUORUM, 3, 3),
    ],
)
def test_with_like_3_10_a_policy_overrides_the_expiry_of_a_quorum_queue(
    like: Like, arguments: Table, policy: int | None, applies: int
) -> None:
    """If a queue's x-expires differs from `expires` in a policy, the shorter time applies. With `broker up --like
    3.10`, quorum queues are an exception: the policy's time applies to them, even if it is longer.
    """
    assert options({**arguments, "x-expires": 5}, {"expires": policy}, like).expires == applies


@pytest.mark.parametrize(
    ("argument", "policy", "applies"), [(5, None, 5), (None, 5, 5), (5, 7, 7), (7, 5, 5), (0, 5, 5), (5, 0, 0)]
)
def test_a_policy_overrides_the_limits_of_a_stream(argument: int | None, policy: int | None, applies: int) -> None:
    """If an argument of a stream and a policy both set its maximum length, maximum age or segment size, the policy's
    value applies, even if it is higher.
    """
    for name, setting in (("max-length-bytes", "max_length_bytes"), ("stream-max-segment-size-bytes", "segment_bytes")):
        found = options(STREAM if argument is None else {**STREAM, f"x-{name}": argument},
                        {} if policy is None else {name: policy})  # fmt: skip
        assert getattr(found, setting) == applies
    assert options({**STREAM, "x-max-age": "1h"}, {"max-age": "1D"}).max_age == DAY
    assert options({**STREAM, "x-max-age": "1D"}, {"max-age": "1h"}).max_age == DAY // 24
    assert options({**STREAM, "x-max-age": "1D"}, {"max-length-bytes": 1}).max_age == DAY
    assert options(STREAM, {"max-age": "1D"}).max_age == DAY
    assert options(STREAM).max_age is None


@pytest.mark.parametrize(("value", "is_set"), [(True, True), (False, False), ("true", False), (None, False)])
def test_only_an_argument_sets_a_single_active_consumer(value: Any, *, is_set: bool) -> None:
    """A queue has a single active consumer only if its argument x-single-active-consumer is true. A policy cannot set
    a single active consumer.
    """
    assert options({"x-single-active-consumer": value}, {"single-active-consumer": True}).single_active is is_set


@pytest.mark.parametrize(
    ("changed", "is_set"),
    [
        ({}, True),
        ({"dead-letter-exchange": None}, False),
        ({"dead-letter-strategy": "at-most-once"}, False),
        ({"dead-letter-strategy": None}, False),
        ({"overflow": "reject-publish-dlx"}, False),
        ({"overflow": None}, False),
    ],
    ids=str,
)
def test_at_least_once_needs_a_dead_letter_exchange_and_the_overflow_reject_publish(
    changed: Table, *, is_set: bool
) -> None:
    """A queue dead-letters at least once only if the dead-letter strategy is at-least-once, the overflow behaviour is
    reject-publish, and there is a dead-letter exchange. Otherwise, it dead-letters at most once.
    """
    settings = {**AT_LEAST_ONCE, **changed}
    assert options({}, settings).at_least_once is is_set
    assert options({f"x-{name}": value for name, value in settings.items()}).at_least_once is is_set


@pytest.mark.parametrize(
    ("argument", "policy", "limit", "in_3_10"),
    [
        (None, None, 20, None),
        (30, None, 30, 30),
        (None, 30, 30, 30),
        (5, 7, 5, 5),
        (7, 5, 5, 5),
        (5, 0, 0, 0),
        (0, 5, 0, 0),
        (-1, 7, 7, -1),
        (7, -1, 7, -1),
        (-1, 0, 0, -1),
        (-1, None, None, -1),
        (None, -1, None, -1),
        (-1, -2, None, -2),
        ("5", None, 20, None),
    ],
)
def test_a_negative_delivery_limit_means_no_limit_from_4_0_on(
    argument: Any, policy: int | None, limit: int | None, in_3_10: int | None
) -> None:
    """With `broker up --like 4.0` or later, a negative delivery limit of a quorum queue means that there is no limit,
    and the default limit is 20. With `--like 3.10`, a negative number is a limit like any other, and there is no
    limit by default. If both an argument and a policy set a limit, the lower limit applies.
    """
    for like in Like:
        found = options({**QUORUM, "x-delivery-limit": argument}, {"delivery-limit": policy}, like)
        assert found.delivery_limit == (in_3_10 if like is Like.V3_10 else limit)


@pytest.mark.parametrize(
    ("arguments", "policy", "retry"),
    [
        (RETRIES, {}, Retry("all", 5, 9)),
        (RETRIES, {"delayed-retry-type": "failed", "delayed-retry-min": 4, "delayed-retry-max": 8},
         Retry("failed", 4, 8)),
        ({}, {"delayed-retry-type": "returned", "delayed-retry-min": 1}, Retry("returned", 1, 1)),
        ({**RETRIES, "x-delayed-retry-max": 0}, {}, Retry("all", 5, 5)),
        ({**RETRIES, "x-delayed-retry-max": 1}, {}, Retry("all", 5, 1)),
        ({**RETRIES, "x-delayed-retry-min": 0}, {}, None),
        ({"x-delayed-retry-type": "all", "x-delayed-retry-max": 9}, {}, None),
        ({**RETRIES, "x-delayed-retry-type": "disabled"}, {}, None),
        (RETRIES, {"delayed-retry-type": "disabled"}, None),
        ({}, {}, None),
    ],
)  # fmt: skip
def test_delayed_retries_need_a_type_and_a_minimum_delay(arguments: Table, policy: Table, retry: Retry | None) -> None:
    """With `broker up --like 4.3` or later, a quorum queue delays retries only if delayed-retry-type is `all`, `failed`
    or `returned`, and delayed-retry-min is positive. If an argument and a policy set different types, the policy's type
    applies. Without a positive delayed-retry-max, each delay is as long as delayed-retry-min.
    """
    assert options(arguments, policy).retry == retry
    assert options(arguments, policy, Like.V4_2).retry is None


@pytest.mark.parametrize(
    ("which", "failed", "delays"),
    [
        ("all", True, [5, 5, 10, 12]),
        ("all", False, [5, 5, 10, 12]),
        ("failed", True, [5, 5, 10, 12]),
        ("failed", False, [None] * 4),
        ("returned", True, [None] * 4),
        ("returned", False, [5, 5, 10, 12]),
    ],
)
def test_the_delay_of_a_retry_grows_up_to_the_maximum(which: str, delays: list[int | None], *, failed: bool) -> None:
    """The delay of a retry is delayed-retry-min times the number of failed deliveries (at least 1), but at most
    delayed-retry-max. With the delayed-retry-type `failed`, only retries after failed deliveries are delayed; with
    `returned`, only retries of messages that were returned without a failure; with `all`, both.
    """
    assert [Retry(which, 5, 12).delay(count, failed=failed) for count in range(4)] == delays


@pytest.mark.parametrize(("like", "timeout"), [(Like.V3_10, None), (Like.V4_0, 5), (Like.V4_3, 5)])
def test_queues_have_no_consumer_timeout_of_their_own_with_like_3_10(like: Like, timeout: int | None) -> None:
    """With `broker up --like 4.0` or later, an argument or a policy sets the consumer timeout of a queue. With `--like
    3.10`, the broker ignores both, as RabbitMQ 3.10 does: all queues have the same timeout.
    """
    for found in (options({"x-consumer-timeout": 5}, {}, like), options({}, {"consumer-timeout": 5}, like)):
        assert found.consumer_timeout == timeout


@pytest.mark.parametrize(
    ("limits", "fits"),
    [({}, True), ({"x-max-length": 3}, True), ({"x-max-length": 2}, False), ({"x-max-length-bytes": 30}, True),
     ({"x-max-length-bytes": 29}, False), ({"x-max-length": 3, "x-max-length-bytes": 29}, False),
     ({"x-max-length": 2, "x-max-length-bytes": 30}, False)],
    ids=str,
)  # fmt: skip
def test_a_queue_is_too_long_if_it_exceeds_one_of_its_limits(limits: Table, *, fits: bool) -> None:
    """A queue that contains 3 messages with 30 bytes in total is too long if its limit is 2 messages or 29 bytes, but
    not if its limit is 3 messages or 30 bytes.
    """
    found = options(limits)
    assert found.limited is bool(limits)
    assert found.exceeded(3, 30) is not fits


@pytest.mark.parametrize(
    ("ttl", "expiration", "lasts"),
    [(None, None, None), (5, None, 5), (None, "7", 7), (5, "7", 5), (7, "5", 5), (0, "5", 0), (5, "0", 0)],
)
def test_a_message_lives_for_the_shorter_of_its_expiration_and_its_queues_ttl(
    ttl: int | None, expiration: str | None, lasts: int | None
) -> None:
    """A message expires after its own expiration or its queue's x-message-ttl, whichever is shorter. If neither is
    set, the message never expires.
    """
    assert options({} if ttl is None else {"x-message-ttl": ttl}).time_to_live(expiration) == lasts
