"""The messages of a queue under conversion: held in another queue, and then returned unchanged."""

import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from mqtool.amqp import Channel, Connection, Receiving, administration
from mqtool.codecs.field_tables import CLIENT, EXACT, header_size, largest_payload
from mqtool.delays import LONGEST
from mqtool.errors import GetRefused, HeadersTooLarge, NotConfirmed, Unavailable
from mqtool.management import Management
from mqtool.management.queue_contents import views
from mqtool.message import COPIES, QUEUE_HEADERS, Delivery, Message, to_publish_again
from mqtool.spelling import counted, pasteable
from mqtool.topology import Queue
from mqtool.work import history

#: A held message's header for what would affect its delivery: exchange, routing key, expiration, priority, CC and BCC,
#: and headers that would prove, once it is published again, where it was first published (work/history.py). If there is
#: no room for it, or it would nest these headers too deeply, its entry _PACKED says that all headers of the message are
#: at the start of the body, as an encoded table.
_HEADER, _PACKED = history.HELD, "packed"
#: Properties that a held message must not have, because they would make it expire or overtake others.
_SETTINGS = ("expiration", "priority")
#: CC and BCC are kept because the broker made the copies when the message was first published; and x-death, because
#: nothing proves the header of a dead letter.
_KEPT = (*COPIES, history.EXCHANGE, history.ROUTING_KEY, "x-death", _HEADER)
#: The most bytes in a header frame besides the message's own headers.
_BESIDES = 4000
#: Headers are added to a larger body only if they have to be: the broker limits its size, by default to 16 MiB.
_LARGE_BODY = 8 << 20
#: Seconds to wait for the leader of a quorum queue.
_LEADER = 15.0
#: Seconds to wait for a new count of unacknowledged messages; for any count; and for a count of 0.
_NEW, _ANY, _PATIENCE = 180.0, 30.0, 20.0


class HeldMessages:
    """Converts deliveries to the messages to publish.

    Attributes:
        users: the number of messages whose property user_id was removed.
        replies: the number of messages whose property reply_to was removed, because no client may publish it.

    Args:
        queue: the queue to convert.
        into: the exchange that is bound to the queue that holds its messages.
        back: the exchange that is bound to the queue.
        user: the user to publish as, if that user may not set user_id to another name; otherwise None.
        frame_max: the maximum size of a frame in bytes, as negotiated with the broker; 0 for no limit.
    """

    def __init__(self, queue: str, into: str, back: str, user: str | None, frame_max: int) -> None:
        self.users = self.replies = 0
        self._queue = queue
        self._into = into
        self._back = back
        self._user = user
        self._largest = largest_payload(frame_max)

    def held(self, delivery: Delivery) -> Message:
        """Return the message that holds a delivery. It does not expire, overtakes no others, and is not copied.

        Raises:
            HeadersTooLarge: the message could not be returned.
        """
        headers = _own(delivery.headers)
        if self._kept(delivery) is not None:  # it is held already
            headers = {name: value for name, value in headers.items() if name not in COPIES}
            return self._message(delivery, "", self._into, headers, {}, delivery.body)
        kept: dict[str, Any] = {"exchange": delivery.exchange, "routing_key": delivery.routing_key}
        kept |= {name: value for name in _SETTINGS if (value := delivery.properties.get(name)) is not None}
        table = self._encoded(delivery, headers)
        names_ours = len(delivery.body) <= _LARGE_BODY and any(name in headers for name in _KEPT)
        if (names_ours or self._is_large(table)) and _is_sound(table):
            packed = {_HEADER: {**kept, _PACKED: True}}
            return self._message(delivery, "", self._into, packed, {}, table + delivery.body)
        kept |= {name: headers.pop(name) for name in _KEPT if name in headers}
        return self._message(delivery, "", self._into, {**headers, _HEADER: kept}, {}, delivery.body)

    def returned(self, delivery: Delivery) -> Message:
        """Return the message to publish to the queue for a held one, or one that was published meanwhile: as it was.

        Raises:
            HeadersTooLarge: no client can publish the message.
        """
        kept = self._kept(delivery)
        if kept is None:
            settings = {**delivery.properties, "exchange": delivery.exchange, "routing_key": delivery.routing_key}
            kept = _Kept(settings, _own(delivery.headers), delivery.body)
            self._encoded(delivery, kept.headers)
        return self._back_to_queue(delivery, kept)

    def _kept(self, delivery: Delivery) -> "_Kept | None":
        """Return what held() has kept in a message; None if held() has not made the message.

        Anyone who may publish to the default exchange can forge it. The message goes to the queue in any case. A header
        with which the message could not be published is left as it is: it would stop the conversion for good.
        """
        settings, body = delivery.headers.get(_HEADER), delivery.body
        is_ours = delivery.exchange == self._into or history.is_published_again(delivery)
        if not is_ours or not isinstance(settings, dict):
            return None
        if not settings.get(_PACKED):
            headers = _own(delivery.headers) | {name: settings[name] for name in _KEPT if name in settings}
            if _HEADER not in settings:
                del headers[_HEADER]
            return _Kept(settings, headers, body) if _can_be_published(settings, headers) else None
        table = body[: self._largest]  # a longer table does not fit into a frame
        if not _is_sound(table):
            return None
        headers, end = CLIENT.decode_table(table)
        is_usable = _can_be_published(settings, headers) and self._size(delivery, end, settings) <= self._largest
        return _Kept(settings, headers, body[end:]) if is_usable else None

    def _encoded(self, delivery: Delivery, headers: Mapping[str, Any]) -> bytes:
        """Encode the headers of a message; raise HeadersTooLarge if no client can publish it with them."""
        table = CLIENT.encode_table(headers)
        if self._is_large(table) and (size := self._size(delivery, len(table), delivery.properties)) > self._largest:
            raise HeadersTooLarge(
                f"a message in {delivery.queue!r} has headers and properties of {size:,} bytes: clients can publish up "
                f"to {self._largest:,}",
                f"take it out: {pasteable('receive -c 1 --queue=', delivery.queue)}",
            )
        return table

    def _is_large(self, table: bytes) -> bool:
        return len(table) > self._largest - _BESIDES

    def _size(self, delivery: Delivery, headers: int, settings: Mapping[str, Any]) -> int:
        """Return the size of the header frame of a message with headers of this size, and these settings."""
        others = {**delivery.properties, "headers": None, **{name: settings.get(name) for name in _SETTINGS}}
        return header_size(others) + headers

    def _back_to_queue(self, delivery: Delivery, kept: "_Kept") -> Message:
        settings, headers, body = kept
        key = settings["routing_key"]
        # Published to the default exchange, the message is exactly as it was; otherwise, `back` keeps its routing key.
        is_direct = settings["exchange"] == "" and key == self._queue and headers.keys().isdisjoint(COPIES)
        return self._message(delivery, key, "" if is_direct else self._back, headers, settings, body)

    def _message(
        self,
        delivery: Delivery,
        key: str,
        exchange: str,
        headers: Mapping[str, Any],
        settings: Mapping[str, Any],
        body: bytes,
    ) -> Message:
        properties = to_publish_again(delivery.properties, "message_id")
        self.replies += ("reply_to" in delivery.properties) - ("reply_to" in properties)
        properties |= {"headers": headers or None, **{name: settings.get(name) for name in _SETTINGS}}
        if self._user is not None and properties.get("user_id") not in (None, self._user):
            properties["user_id"] = None
            self.users += 1
        return Message(body, key, exchange, properties, delivery.message_id)


class _Kept(NamedTuple):
    """What a held message keeps: its exchange, routing key, expiration and priority; its headers; and its body."""

    settings: Mapping[str, Any]
    headers: dict[str, Any]
    body: bytes


def _own(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's headers without those that the broker has added to the delivery."""
    return {name: value for name, value in headers.items() if name not in QUEUE_HEADERS}


def _is_sound(data: bytes) -> bool:
    """True if bytes begin with a table that the embedded broker would accept, too."""
    try:
        EXACT.decode_table(data)
    except ValueError:
        return False
    return True


def _can_be_published(settings: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:
    """True if the broker accepts a message with these settings and headers."""
    priority, expiration = settings.get("priority", 0), settings.get("expiration", "0")
    return (
        isinstance(settings.get("exchange"), str)
        and history.is_name(settings.get("routing_key"))
        and (type(priority) is int and 0 <= priority <= 255)
        and (history.is_name(expiration) and re.fullmatch("[+-]?[0-9]+", expiration) is not None)
        and 0 <= int(expiration) <= LONGEST
        and all(isinstance(headers.get(name, []), list) for name in COPIES)
    )


def check_leader(connection: Connection, queue: str, then: str) -> None:
    """Check that a quorum queue answers. If it has no leader, it neither answers nor confirms messages.

    Args:
        then: the command with which to continue once the queue is deleted.

    Raises:
        Unavailable: the queue does not answer.
    """
    if not has_leader(connection, queue, _LEADER):
        raise Unavailable(
            f"quorum queue {queue!r} has no leader",
            "start the nodes that are down; or, if RabbitMQ was killed just after it had declared the queue, the queue "
            f"is empty, and can only be deleted: {pasteable('queue delete', queue)}, then {then}",
        )


def has_leader(connection: Connection, queue: str, within: float) -> bool:
    """Return True if a queue answers within this many seconds. Safe to call from any thread."""
    asking = connection.channel()
    try:
        if not asking.depth_of(queue):  # it is 0 if there is no leader
            asking.get(queue, within)
    except NotConfirmed:
        return False
    except GetRefused:  # by the leader
        return True
    finally:
        if asking.is_open:
            asking.close()  # requeues a message that was received, if any
    return True


def is_empty(connection: Connection, queue: str) -> bool:
    """Return True if a queue delivers no message.

    A depth of 0 does not show that: RabbitMQ also reports it for a quorum queue that does not answer within 250 ms.

    Raises:
        NotConfirmed: the queue does not answer.
    """
    getting = connection.channel()
    try:
        return getting.get(queue, _LEADER) is None
    except GetRefused:
        return _consumer_gets_nothing(getting, queue)
    finally:
        if getting.is_open:
            getting.close()  # requeues the message, if any


def _consumer_gets_nothing(channel: Channel, queue: str) -> bool:
    """Return True if a queue has no message for a consumer of this channel. Such a consumer gets at most one."""
    consumer, deadline = channel.consumer(Queue(queue), Receiving(1, acknowledge=False)), time.monotonic() + _LEADER
    # If not even this consumer is counted, the queue has not answered.
    while (found := administration.depth(channel, queue)) == (0, 0):
        if time.monotonic() > deadline:
            raise NotConfirmed(f"quorum queue {queue!r} does not answer")
        time.sleep(0.01)
    administration.depth(channel, queue)  # a delivery arrives before this reply: see ready_after_deliveries()
    return not found.ready and not consumer.arrives(0)


def check_acknowledged(
    api: Management,
    vhost: str,
    queue: str,
    ask: Callable[[], object],
    then: str,
    notice: Callable[[str], object],
    *,
    is_embedded: bool,
    patience: float | None = None,
) -> None:
    """Wait until a queue has no unacknowledged messages, which would be lost if the queue were deleted.

    Args:
        ask, is_embedded: see queue_contents.views().
        then: the command with which to continue.
        notice: called once if the first count is not current, with a sentence for the user.
        patience: seconds to wait for a count of 0; None for the default.

    Raises:
        Unavailable: there are unacknowledged messages, or the broker does not report their number.
    """
    began = time.monotonic()
    notice_once = cache(notice)
    for view, is_current in views(api, vhost, queue, ask, is_embedded=is_embedded):
        count: Any = view.get("messages_unacknowledged")
        is_new = count is not None and is_current
        if is_new and not count:
            return
        waited = time.monotonic() - began
        if is_new and waited > (_PATIENCE if patience is None else patience):
            raise Unavailable(
                f"{counted(count)} of {queue!r} {'is' if count == 1 else 'are'} unacknowledged, and would be lost",
                f"stop the clients, then: {then}",
            )
        if waited > (_ANY if count is None else _NEW):
            raise Unavailable(
                f"the broker does not say how many messages of {queue!r} are unacknowledged, which would be lost",
                "have its management plugin collect metrics",
            )
        notice_once(f"waiting until the broker reports that no messages of {queue!r} are unacknowledged")
