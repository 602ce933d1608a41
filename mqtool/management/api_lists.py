"""Functions for the lists of the management API (queues, exchanges, bindings, users, …), and for single values.

If the argument `vhost` is None, lists include all vhosts that the user may see. Errors are those of Management.get().
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mqtool.errors import AccessRefused, NotFound
from mqtool.management.api_client import PAGE_SIZE, Json, Management, exchange_path, path


def queues(
    api: Management, vhost: str | None, columns: Sequence[str] = (), *, page_size: int = PAGE_SIZE, **query: str
) -> Iterator[Json]:
    """Return queues. Their counts are from statistics, which are up to five seconds old."""
    return api.pages(_in("queues", vhost), columns, page_size=page_size, **query)


def queue_totals(api: Management, vhost: str | None, columns: Sequence[str], pattern: str = "") -> Iterator[Json]:
    """Return queues with message counts but no other statistics. This is far less work for RabbitMQ than queues().

    Counts of classic queues are current, those of quorum queues up to five seconds old; streams have none. The list is
    read in pages only if there is a name pattern: the broker sorts it again for each page.
    """
    where = _in("queues", vhost)
    if pattern:
        return api.pages(
            where, columns, disable_stats="true", enable_queue_totals="true", name=pattern, use_regex="true"
        )
    return api.items(where, columns, disable_stats="true", enable_queue_totals="true")


def counted_queues(api: Management, vhost: str, columns: Sequence[str]) -> Iterator[Json]:
    """Return queues with message counts. Reads statistics, too, only if there are streams."""
    totals = {view["name"]: view for view in queue_totals(api, vhost, columns)}
    if all("messages_ready" in view for view in totals.values()):
        yield from totals.values()
        return
    for view in queues(api, vhost, columns):
        yield view | totals.get(view["name"], {})


def exchanges(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[Json]:
    return api.pages(_in("exchanges", vhost), columns)


def bindings(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[Json]:
    """Yield bindings, including those to the default exchange. Makes one request per vhost, to keep responses small."""
    names = [vhost] if vhost is not None else [view["name"] for view in vhosts(api, ("name",))]
    for name in names:
        try:
            yield from api.items(path("bindings", name), columns)
        except (NotFound, AccessRefused):  # deleted after it was listed, or only its name may be seen
            if vhost is not None:
                raise


def bindings_from(api: Management, vhost: str, exchange: str, columns: Sequence[str] = ()) -> Iterator[Json]:
    return api.items(exchange_path(vhost, exchange, "bindings", "source"), columns)


def consumers(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[Json]:
    return api.items(_in("consumers", vhost), columns)


def connections(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[Json]:
    return api.pages(_below(vhost, "connections"), columns)


def channels(api: Management, vhost: str | None, columns: Sequence[str] = ()) -> Iterator[Json]:
    return api.pages(_below(vhost, "channels"), columns)


def vhosts(api: Management, columns: Collection[str] = ()) -> Iterator[Json]:
    """Return the virtual hosts that the user may see."""
    return api.items("vhosts", columns)


def hidden_vhosts(api: Management) -> list[str]:
    """Return the vhosts of which the user may see only the names.

    RabbitMQ shows users with the tag 'monitoring' the names of all vhosts, but queues and exchanges only of those in
    which they have permissions.
    """

    def without_exchanges() -> set[str]:
        names = {view["name"] for view in vhosts(api, ("name",))}
        return names - {view["vhost"] for view in exchanges(api, None, ("vhost",))}

    # Each vhost has exchanges, except for a moment after it is created and before it is deleted.
    found = without_exchanges()
    return sorted(found & without_exchanges()) if found else []


def users(api: Management) -> Iterator[Json]:
    """Return users, without their password hashes. Only an administrator may list them."""
    return api.items("users", ("name", "tags"))


def permissions(api: Management, vhost: str | None) -> Iterator[Json]:
    """Return permissions. Only an administrator may list them."""
    return api.items(_below(vhost, "permissions"))


def nodes(api: Management) -> Iterator[Json]:
    """Return the nodes of the cluster, with alarms and enabled plugins. The user needs the tag 'monitoring'."""
    return api.items("nodes")


def policies(api: Management, vhost: str | None, *, operator: bool = False) -> Iterator[Json]:
    return api.items(_in("operator-policies" if operator else "policies", vhost))


def shovels(api: Management, vhost: str | None) -> Iterator[Json]:
    """Return the running and the terminated shovels. The user needs the tag 'monitoring'.

    Raises:
        NotFound: the broker does not have the plugin rabbitmq_shovel_management.
    """
    return _of_vhost(api, "shovels", vhost)


def federation_links(api: Management, vhost: str | None) -> Iterator[Json]:
    """Return the links to the upstreams of federated exchanges and queues. The user needs the tag 'monitoring'.

    Raises:
        NotFound: the broker does not have the plugin rabbitmq_federation_management.
    """
    return _of_vhost(api, "federation-links", vhost)


def parameters(api: Management, vhost: str | None) -> Iterator[Json]:
    """Return the runtime parameters, such as shovels and upstreams. The user needs the tag 'policymaker'."""
    return _of_vhost(api, "parameters", vhost)


def _of_vhost(api: Management, kind: str, vhost: str | None) -> Iterator[Json]:
    """Yield items of one virtual host. Without the plugin, a path with a vhost is not answered with 404 everywhere."""
    return (each for each in api.items(kind) if vhost in (None, each.get("vhost")))


def _in(kind: str, vhost: str | None) -> str:
    return kind if vhost is None else path(kind, vhost)


def _below(vhost: str | None, kind: str) -> str:
    return kind if vhost is None else path("vhosts", vhost, kind)


def listens_on(management: Management, *ports: int) -> bool | None:
    """True if the API's broker has a listener on one of these ports; None if the API does not show this user any."""
    listeners = management.get("overview").get("listeners")
    return None if listeners is None else any(listener.get("port") in ports for listener in listeners)


def stream_port_beside(management: Management, port: int, *, tls: bool) -> int | None:
    """Return the stream port of the node that listens on an AMQP port; None if the API does not list one."""
    listeners = management.get("overview").get("listeners") or []
    nodes = {listener.get("node") for listener in listeners if listener.get("port") == port}
    protocol = "stream/ssl" if tls else "stream"
    of_node = [each for each in listeners if each.get("node") in nodes and each.get("protocol") == protocol]
    return of_node[0].get("port") if of_node else None


#: Keys of policies whose argument has another name.
_POLICY_KEYS = {
    *("consumer-timeout", "dead-letter-exchange", "dead-letter-routing-key", "delivery-limit", "max-age"),
    *("max-length", "max-length-bytes", "message-ttl", "queue-mode"),
}


def with_policy(arguments: Mapping[str, Any], policy: Mapping[str, Any]) -> Json:
    """Return an object's declared arguments and those that a policy adds. Declared arguments take precedence.

    https://www.rabbitmq.com/docs/parameters#policies
    """
    added = {f"x-{name}" if name in _POLICY_KEYS else name: value for name, value in policy.items()}
    return {**added, **arguments}


def effective_arguments(queue: Json) -> Json:
    """Return a queue's declared arguments and those that policies add."""
    return with_policy(queue.get("arguments") or {}, queue.get("effective_policy_definition") or {})


def bound_to(management: Management, vhost: str, exchange: str) -> set[str]:
    """Return the names of the queues that are bound to an exchange."""
    found = bindings_from(management, vhost, exchange, ("destination", "destination_type"))
    return {binding["destination"] for binding in found if binding["destination_type"] == "queue"}


def consumer_timeout(management: Management, vhost: str, queue: str) -> float | None:
    """Return the consumer timeout, in seconds, that a queue's arguments and policies set; None if they set none.

    The API does not report the broker's own timeout. https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
    """
    milliseconds = effective_arguments(management.get(path("queues", vhost, queue))).get("x-consumer-timeout")
    return None if milliseconds is None else milliseconds / 1000
