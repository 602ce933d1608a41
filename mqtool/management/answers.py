"""Objects that the management API sends. Their types are checked here, so that other code need not check them."""

from typing import Any

from mqtool.errors import BadAnswer
from mqtool.management.limits import HINT

_TEXT, _NUMBER, _OBJECT, _LIST = str, (int, float), dict, list
_WORDS: dict[Any, str] = {_TEXT: "text", _NUMBER: "a number", _OBJECT: "an object", _LIST: "a list"}
_COUNTERS = ("publish", "publish_in", "deliver_get", "ack", "deliver_no_ack", "get_no_ack", "redeliver")
_LISTS_OF_TEXT = ("enabled_plugins",)
#: Keys with an object, or a list of objects or texts, that is checked, too.
_PARTS: dict[str, Any] = {
    **dict.fromkeys(("queue", "channel_details", "connection_details", "message_stats", "stats"), _OBJECT),
    **dict.fromkeys(("object_totals", "queue_totals", *(f"{name}_details" for name in _COUNTERS)), _OBJECT),
    **dict.fromkeys(("incoming", "listeners", "applications", "consumer_details", *_LISTS_OF_TEXT), _LIST),
}
#: The types of the keys that mqtool relies on. A key has the same type in all objects.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("name", "vhost", "source", "destination", "destination_type", "routing_key"), _TEXT),
    **dict.fromkeys(("type", "user", "policy", "operator_policy", "consumer_tag", "pattern", "apply-to"), _TEXT),
    "rabbitmq_version": _TEXT,
    **dict.fromkeys(("messages", "messages_ready", "messages_unacknowledged"), _NUMBER),
    **dict.fromkeys(("messages_delayed", "messages_dlx"), _NUMBER),
    **dict.fromkeys(("message_bytes", "consumers", "consumer_count", "priority", "rate", *_COUNTERS), _NUMBER),
    **dict.fromkeys(("prefetch_count", "global_prefetch_count", "filtered_count"), _NUMBER),
    **dict.fromkeys(("arguments", "definition", "effective_policy_definition", "client_properties"), _OBJECT),
    **_PARTS,
}


class ApiObject(dict[str, Any]):
    """An object of the API. Reading a key that is missing raises BadAnswer."""

    def __missing__(self, key: str) -> Any:
        raise BadAnswer(f'the management API sends an object without "{key}"', HINT)


def checked(value: Any) -> ApiObject:
    """Return an object of the API; raise BadAnswer if it is none, or one of the keys in _TYPES has another type.

    Keys in _TYPES whose value is null are left out. To Erlang, an empty object and an empty list can be the same, so
    RabbitMQ sometimes sends [] instead of {}.
    """
    if not isinstance(value, dict):
        raise BadAnswer("the management API sends something that is not an object", HINT)
    found = ApiObject(value)
    for key, each in value.items():
        kind = _TYPES.get(key)
        if kind is None or (isinstance(each, kind) and key not in _PARTS):
            continue
        if key == "queue" and isinstance(each, str) and "upstream" in value:  # the link of a federated queue
            continue
        if each is None:
            del found[key]
        elif kind is _OBJECT and each == []:
            found[key] = ApiObject()
        elif not isinstance(each, kind):
            raise BadAnswer(f'the management API sends an object whose "{key}" is not {_WORDS[kind]}', HINT)
        elif key in _LISTS_OF_TEXT:
            if not all(isinstance(part, str) for part in each):
                raise BadAnswer(f'the management API sends an object whose "{key}" is not a list of text', HINT)
        else:
            found[key] = checked(each) if kind is _OBJECT else [checked(part) for part in each]
    return found
