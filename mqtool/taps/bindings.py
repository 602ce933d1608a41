"""What to bind a private queue to, so that it gets a copy of what others get."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mqtool import management
from mqtool.errors import AccessRefused, NotFound, Unavailable, UsageError
from mqtool.management import Management, exchange_path, path
from mqtool.topology import DELAYED, Binding

#: Of which every queue with a matching binding gets a copy. Others, such as x-consistent-hash, choose among their
#: queues: one more would take messages from the others.
_COPYING = ("direct", "topic", "fanout", "headers", "x-recent-history", "x-jms-topic")
_PREDECLARED = {"amq.direct": "direct", "amq.fanout": "fanout", "amq.topic": "topic", "amq.headers": "headers"}
_FIREHOSE = "the broker's firehose shows it: mqtool tap {} --firehose"
_COLUMNS = ("source", "destination_type", "routing_key", "arguments")
#: Keys that a note shows.
_SHOWN = 5


class Bound(NamedTuple):
    """Bindings for the private queue, whose name is left open.

    Attributes:
        notes: what they do not show.
    """

    bindings: tuple[Binding, ...]
    notes: tuple[str, ...] = ()


def to_exchange(
    api: Callable[[], Management], vhost: str, exchange: str, keys: Iterable[str], arguments: Mapping[str, Any]
) -> Bound:
    """Bind beside the other queues of an exchange.

    Args:
        api: asked for the exchange's type, and for the keys of a direct exchange if none are given. Where there is
            none, keys are bound as they are.
        keys: binding keys; none for all that passes.
        arguments: of each binding, for an exchange that routes by headers.

    Raises:
        NotFound: there is no such exchange.
        UsageError: it has no copies to give, or no keys to go by.
    """
    named = tuple(Binding(exchange, "", key, arguments) for key in keys)
    if arguments and not named:
        named = (Binding(exchange, "", "", arguments),)
    try:
        kind = _PREDECLARED.get(exchange) or _type_of(api(), vhost, exchange)
    except NotFound:
        raise
    except (Unavailable, AccessRefused) as error:
        if named:
            return Bound(named)
        unknown = f"the type of exchange {exchange!r} is not known ({error}); if it is direct, name its keys"
        return Bound((Binding(exchange, "", "#"),), (unknown,))
    _check_copies(exchange, kind)
    if named or kind != "direct":
        return Bound(named or (Binding(exchange, "", "#" if kind != "headers" else ""),))
    found = management.bindings_from(api(), vhost, exchange, ("routing_key",))
    keys = sorted({binding["routing_key"] for binding in found})
    if not keys:
        raise UsageError(
            f"nothing is bound to the direct exchange {exchange!r}", f"name keys: mqtool tap {exchange} KEY"
        )
    return Bound(tuple(Binding(exchange, "", key) for key in keys), (_shown(exchange, keys),))


def like_queue(api: Management, vhost: str, queue: str) -> Bound:
    """Bind as a queue is bound.

    Raises:
        NotFound: there is no such queue.
        UsageError: only the default exchange leads to it, or an exchange that makes no copies.
        Unavailable, AccessRefused: the management API cannot be asked.
    """
    api.get(path("queues", vhost, queue), columns="name")  # the list would be empty for a queue that is not there
    found = [each for each in api.items(path("queues", vhost, queue, "bindings"), _COLUMNS) if each["source"]]
    if not found:
        raise UsageError(
            f"nothing but the default exchange leads to queue {queue!r}, and that has no copies to give",
            _FIREHOSE.format(f"-q {queue}"),
        )
    for exchange in {each["source"] for each in found}:
        _check_copies(exchange, _PREDECLARED.get(exchange) or _type_of(api, vhost, exchange))
    note = (
        f"not shown: what comes to {queue!r} by the default exchange or as a dead letter there; --firehose shows that"
    )
    bindings = (Binding(each["source"], "", each["routing_key"], each.get("arguments") or {}) for each in found)
    return Bound(tuple(bindings), (note,))


def _type_of(api: Management, vhost: str, exchange: str) -> str:
    found = api.get(exchange_path(vhost, exchange))
    return str(found["arguments"].get("x-delayed-type") if found["type"] == DELAYED else found["type"])


def _check_copies(exchange: str, kind: str) -> None:
    if kind not in _COPYING:
        raise UsageError(
            f"exchange {exchange!r} is of type {kind}, which divides messages among its queues: a tap would take some",
            _FIREHOSE.format(exchange),
        )


def _shown(exchange: str, keys: list[str]) -> str:
    more = f", and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
    keys_now = ", ".join(map(repr, keys[:_SHOWN])) + more
    return f"exchange {exchange!r} is direct; tapping the keys that are bound to it now: {keys_now}"
