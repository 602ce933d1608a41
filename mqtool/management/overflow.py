"""What queues do with messages beyond their limits, by their arguments and policies: drop old ones, or reject new ones.

https://www.rabbitmq.com/docs/maxlength#overflow-behaviour
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mqtool.management.api_client import Json


def overflow_of(kind: str, arguments: Mapping[str, Any], policies: Sequence[Json]) -> str:
    """Return a queue's overflow behaviour: drop-head, reject-publish or reject-publish-dlx.

    An argument of a classic queue overrides policies. Policies override an argument of a quorum queue, which does not
    support reject-publish-dlx, and drops messages instead.

    Args:
        kind: the queue's type.
        arguments: the queue's arguments.
        policies: the definitions of the policy and the operator policy that apply to it, in this order.
    """
    # From RabbitMQ 4.0 on, operator policies can set the overflow behaviour, too.
    given = [each["overflow"] for each in reversed(policies) if "overflow" in each]
    own = [arguments["x-overflow"]] if "x-overflow" in arguments else []
    found = str([*given, *own, "drop-head"][0] if kind == "quorum" else [*own, *given, "drop-head"][0])
    return "drop-head" if (kind, found) == ("quorum", "reject-publish-dlx") else found


def holds_dead_letters(queue: Json) -> bool:
    """True if a queue keeps each dead letter until another queue accepts it. If none does, it is not lost.

    RabbitMQ ignores the strategy at-least-once if the queue drops messages at its limit.
    """
    arguments, policy = queue.get("arguments") or {}, queue.get("effective_policy_definition") or {}
    strategy = arguments.get("x-dead-letter-strategy", policy.get("dead-letter-strategy"))
    kind = queue.get("type") or "classic"
    return (kind, strategy, overflow_of(kind, arguments, [policy])) == ("quorum", "at-least-once", "reject-publish")


def rejects_beyond(
    kind: str, arguments: Mapping[str, Any], policies: Sequence[Json], limit: str = "max-length"
) -> int | None:
    """Return the number of messages beyond which a queue rejects others; None if it does not reject any.

    Args:
        kind, arguments, policies: see overflow_of().
        limit: "max-length-bytes" for the limit in bytes.
    """
    if not overflow_of(kind, arguments, policies).startswith("reject-publish"):
        return None
    found = [arguments.get(f"x-{limit}"), *(each.get(limit) for each in policies)]
    return min((each for each in found if isinstance(each, int)), default=None)
