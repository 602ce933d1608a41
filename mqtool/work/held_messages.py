"""The messages of a queue that is converted: how they are held in another queue, and returned as they were."""

from collections.abc import Mapping
from typing import Any

from mqtool.amqp import Connection, Owner
from mqtool.errors import NotConfirmed, Unavailable
from mqtool.message import Delivery, Message
from mqtool.spelling import pasteable

#: The header of a held message with what would change its way: exchange, routing key, expiration, priority, CC and BCC.
_HEADER = "mqtool-convert"
#: Properties that a held message must not have: it would expire, or overtake others.
_SETTINGS = ("expiration", "priority")
#: Headers that request copies in more queues. The broker made these copies when the message was first published.
_COPIES = ("CC", "BCC")
#: Headers that the broker adds to a delivery.
_COUNTS = ("x-delivery-count", "x-acquired-count")
#: Seconds to wait for the leader of a quorum queue.
_LEADER = 15.0


class HeldMessages:
    """Turns deliveries into the messages to publish.

    Attributes:
        users: the number of messages whose property user_id was removed.

    Args:
        queue: the queue that is converted.
        holder: the queue that holds its messages.
        back: the exchange that leads to the queue.
        user: the user to publish as, who may not set user_id to another name; None if the user may.
    """

    def __init__(self, queue: str, holder: str, back: str, user: str | None) -> None:
        self.users = 0
        self._queue = queue
        self._holder = holder
        self._back = back
        self._user = user

    def held(self, delivery: Delivery) -> Message:
        """Return the message that holds a delivery: it does not expire, overtakes no other, and makes no copies."""
        headers = {name: value for name, value in delivery.headers.items() if name not in _COUNTS}
        kept: dict[str, Any] = {"exchange": delivery.exchange, "routing_key": delivery.routing_key}
        kept |= {name: headers.pop(name) for name in _COPIES if name in headers}
        kept |= {name: value for name in _SETTINGS if (value := delivery.properties.get(name)) is not None}
        return self._message(delivery, self._holder, "", {**headers, _HEADER: kept}, {})

    def returned(self, delivery: Delivery) -> Message:
        """Return the message for the converted queue, from a held one or from one that was published meanwhile."""
        headers = {name: value for name, value in delivery.headers.items() if name not in _COUNTS}
        kept = headers.pop(_HEADER, None)
        if not isinstance(kept, dict):
            kept = {"exchange": delivery.exchange, "routing_key": delivery.routing_key}
            kept |= {name: delivery.properties.get(name) for name in _SETTINGS}
        headers |= {name: kept[name] for name in _COPIES if name in kept}
        key = kept["routing_key"]
        # By the default exchange, the message is exactly as it was. Elsewhere, another exchange keeps its routing key.
        is_direct = kept["exchange"] == "" and key == self._queue and not any(name in headers for name in _COPIES)
        return self._message(delivery, key, "" if is_direct else self._back, headers, kept)

    def _message(
        self, delivery: Delivery, key: str, exchange: str, headers: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Message:
        properties = {name: value for name, value in delivery.properties.items() if name != "message_id"}
        properties |= {"headers": headers or None, **{name: settings.get(name) for name in _SETTINGS}}
        if self._user is not None and properties.get("user_id") not in (None, self._user):
            properties["user_id"] = None
            self.users += 1
        return Message(delivery.body, key, exchange, properties, delivery.message_id)


def check_leader(connection: Connection, queue: str, then: str) -> None:
    """Check that a quorum queue answers. Without a leader, it does not, and confirms no message.

    Args:
        then: the command to go on with once the queue is deleted.

    Raises:
        Unavailable: it does not answer.
    """
    if not has_leader(connection, queue, _LEADER):
        raise Unavailable(
            f"quorum queue {queue!r} has no leader",
            "start the nodes that are down; or, if RabbitMQ was killed just after it had declared the queue, the queue "
            f"is empty, and can only be deleted: {pasteable('queue delete', queue)}, then {then}",
        )


def has_leader(connection: Owner, queue: str, within: float) -> bool:
    """Return True if a queue answers within this many seconds. Safe to call from any thread."""
    asking = connection.channel()
    try:
        if not asking.depth_of(queue):  # without a leader, it is 0
            asking.get(queue, within)
    except NotConfirmed:
        return False
    finally:
        if asking.is_open:
            asking.close()  # which requeues a message that has come meanwhile
    return True
