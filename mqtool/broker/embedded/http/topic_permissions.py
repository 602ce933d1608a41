"""What users may publish to topic exchanges and bind to them, by routing key: `/api/topic-permissions`."""

from collections.abc import Iterable
from typing import Any

from mqtool.broker.embedded.http.directory import bad_request, check_regular_expression, not_found
from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.users import TopicPermissions, User

Json = dict[str, Any]


def topic_permissions(users: Iterable[User], vhost: str | None = None) -> list[Json]:
    """The topic permissions of users, in one virtual host or in all."""
    return [
        {"user": user.name, "vhost": where, "exchange": exchange, "write": rights.write, "read": rights.read}
        for user in users
        for (where, exchange), rights in user.topic_permissions.items()
        if vhost in (None, where)
    ]


def put_topic_permissions(broker: Broker, vhost: str, user: User, body: Json) -> bool:
    """Set those of a user for an exchange, which need not be there; return whether there were any in the virtual host.

    Raises:
        HttpError: 400.
    """
    try:
        exchange, write, read = (str(body[name]) for name in ("exchange", "write", "read"))
    except KeyError as error:
        raise bad_request(f"key_missing: {error.args[0]}") from error
    for pattern in (write, read):
        check_regular_expression(pattern)
    existed = bool(topic_permissions([user], vhost))
    changed = {**user.topic_permissions, (vhost, exchange): TopicPermissions(write, read)}
    broker.set_topic_permissions(user.name, changed)
    return existed


def delete_topic_permissions(broker: Broker, vhost: str, user: User, exchange: str | None = None) -> None:
    """Delete those of a user for an exchange, None for all in the virtual host.

    Raises:
        HttpError: 404, there are none in the virtual host.
    """
    if not topic_permissions([user], vhost):
        raise not_found()
    kept = {
        place: rights
        for place, rights in user.topic_permissions.items()
        if place[0] != vhost or exchange not in (None, place[1])
    }
    broker.set_topic_permissions(user.name, kept)
