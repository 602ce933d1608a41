"""Queues that reject messages when they are full: overflow reject-publish, set by an argument or by a policy.

https://www.rabbitmq.com/docs/maxlength#overflow-behaviour
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mqtool.amqp import Channel
from mqtool.errors import AccessRefused, NotFound
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.management.policy_patterns import policy_matches
from mqtool.policy_settings import UNSUPPORTED


def rejects_beyond(arguments: Mapping[str, Any], policies: Iterable[Json], limit: str = "max-length") -> int | None:
    """Return the number of messages beyond which a queue rejects others; None if it does not reject any.

    Args:
        arguments: the queue's arguments.
        policies: the definitions of the policies that apply to it.
        limit: "max-length-bytes" for the limit in bytes.
    """
    given = list(policies)
    overflow = arguments.get("x-overflow", next((each["overflow"] for each in given if "overflow" in each), ""))
    if not str(overflow).startswith("reject-publish"):
        return None
    found = [arguments.get(f"x-{limit}"), *(each.get(limit) for each in given)]
    return min((each for each in found if isinstance(each, int)), default=None)


def room_in(channel: Channel, api: Management, vhost: str, queue: str) -> Callable[[], int] | None:
    """Return a function that returns how many messages a queue takes before it rejects others.

    Returns None if the queue does not reject messages. It rejects more if others publish to it meanwhile.
    """
    limit = None
    try:
        view = api.get(path("queues", vhost, queue))
    except NotFound:
        view = {}
    if view:
        policies = policies_of(api, vhost, queue, view.get("type") or "classic")
        limit = rejects_beyond(view.get("arguments") or {}, policies)
    return None if limit is None else lambda: limit - channel.depth_of(queue)


def policies_of(api: Management, vhost: str, name: str, kind: str) -> list[Json]:
    """Return the definitions of the policy and the operator policy that apply to a queue of this name and type.

    They are read from the policies: a queue that was just declared has no `effective_policy_definition` yet, because
    RabbitMQ adds it with the queue's statistics. Only users with the tag `policymaker` can read policies; for others,
    the queue of this name tells what applies to it.
    """
    found: list[Json] = []
    for group in ("policies", "operator-policies"):
        try:
            best = strongest(api.items(path(group, vhost)), name, kind)
        except (AccessRefused, NotFound):
            return _effective(api, vhost, name)
        found += [] if best is None else [best.get("definition") or {}]
    return found


def _effective(api: Management, vhost: str, name: str) -> list[Json]:
    try:
        return [api.get(path("queues", vhost, name)).get("effective_policy_definition") or {}]
    except NotFound:
        return []


def strongest(policies: Iterable[Json], name: str, kind: str) -> Json | None:
    """Return the policy of the highest priority that applies to a queue of this name and type; None if none does."""
    matching = (each for each in policies if applies(each, name, kind))
    return max(matching, key=lambda each: each.get("priority") or 0, default=None)


def applies(policy: Json, name: str, kind: str) -> bool:
    """True if a policy's pattern matches, or if only Erlang can parse it, and the policy is for this type of queue.

    Ignores other policies, which may have a higher priority.
    """
    if policy.get("apply-to", "all") not in ("all", "queues", f"{kind}_queues", f"{kind}s"):
        return False
    return not unsupported(policy, kind) and policy_matches(policy, name) is not False


def unsupported(policy: Json, kind: str) -> list[str]:
    """Return the settings of a policy that keep it from applying to queues of this type."""
    return sorted(UNSUPPORTED.get(kind, set()) & (policy.get("definition") or {}).keys())
