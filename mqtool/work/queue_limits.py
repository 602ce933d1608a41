"""The policies that apply to a queue, and how many messages a queue takes before it rejects others."""

from collections.abc import Callable, Iterable

from mqtool.amqp import Channel
from mqtool.errors import AccessRefused, NotFound
from mqtool.management import Management, path
from mqtool.management.api_client import Json
from mqtool.management.overflow import rejects_beyond
from mqtool.management.policy_patterns import policy_matches
from mqtool.policy_settings import UNSUPPORTED


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
        kind = view.get("type") or "classic"
        limit = rejects_beyond(kind, view.get("arguments") or {}, policies_of(api, vhost, queue, kind))
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
            tied = strongest(api.items(path(group, vhost)), name, kind)
        except (AccessRefused, NotFound):
            return _effective(api, vhost, name)
        found += [each.get("definition") or {} for each in tied[:1]]
    return found


def _effective(api: Management, vhost: str, name: str) -> list[Json]:
    try:
        return [api.get(path("queues", vhost, name)).get("effective_policy_definition") or {}]
    except NotFound:
        return []


def strongest(policies: Iterable[Json], name: str, kind: str) -> list[Json]:
    """Return the policies of the highest priority that can apply to a queue of this name and type.

    RabbitMQ applies one of them. It does not promise which one.
    """
    matching = [each for each in policies if applies(each, name, kind)]
    highest = max((each.get("priority") or 0 for each in matching), default=0)
    return [each for each in matching if (each.get("priority") or 0) == highest]


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
