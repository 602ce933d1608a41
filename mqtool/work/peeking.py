"""Peeking: receive the messages of a queue without acknowledging them, and requeue them in order.

How a queue requeues messages depends on its type, as measured on RabbitMQ 3.10:

    classic  always returns each message to its position.
    quorum   appends requeued messages to a list of returned messages, which it delivers before all others.
             A channel's messages are requeued in order when it closes, unless basic.cancel comes first while deliveries
             are in transit. So if peeking reads part of the list, it reads the rest, too, and requeues the messages in
             order, batch by batch.
    stream   keeps messages after they are consumed, so nothing is requeued.

A queue that is deleted with its last consumer is read with basic.get, which is slower, but safe. A quorum queue counts
how many times a message was requeued, and drops a message that exceeds the delivery limit. So if there is a limit, the
message at the head is received on its own, and checked before any others are received. A message behind it that the
queue would drop is published to the queue again instead. If a policy may have set a limit that the user cannot see, the
queue might drop each message that has been requeued before, so all of these are published again.

From RabbitMQ 4.3 on, basic.nack does not count towards the limit, but the end of a channel does; so messages are
requeued with basic.nack. A dead letter that comes from a quorum queue brings its count with it, so it may be over the
limit of the dead-letter queue when it arrives: then the queue drops it as soon as it is returned, in any way. Such
messages are published again at the end of the queue, batch by batch, and then acknowledged.
"""

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import islice
from typing import Any

from mqtool.amqp import Channel, Receiving
from mqtool.amqp.consumer import Consumer
from mqtool.delays import WAIT_SUFFIX
from mqtool.delays.wait_queues import expiration_until_due
from mqtool.errors import AccessRefused, DeclaredDifferently, Difference, MqtoolError, Unavailable
from mqtool.management import Management, path
from mqtool.message import Delivery, Message
from mqtool.offsets import FIRST, Offset
from mqtool.spelling import counted, pasteable
from mqtool.topology import Queue
from mqtool.work import history
from mqtool.work.dead_letter_declaration import adopt
from mqtool.work.queue_limits import policies_of
from mqtool.work.transfer import NotMoved, elsewhere, fits, move, name_of, wait_for

#: The maximum number of messages that a consumer can hold, AMQP's largest prefetch; the number of messages in the first
#: batch; the largest ratio of a batch to all before it; the size of later batches in bytes; the estimated overhead of a
#: message in bytes.
AT_ONCE, FIRST_BATCH, _GROWTH, _BATCH, _OVERHEAD = 65_535, 100, 10, 16 << 20, 1000
#: Seconds without a delivery after which a queue is considered read to its end, and the same for a stream.
_PATIENCE, _STREAM_PATIENCE = 5.0, 1.0
#: The default delivery limit of a quorum queue from RabbitMQ 4.0 on.
_DEFAULT_LIMIT = 20


class How(Enum):
    """How to read a queue: with basic.get, with a consumer, or as a stream.

    IN_TURN is for queues that may be quorum queues: it also reads all messages requeued earlier, to keep the order.
    """

    GET = auto()
    CONSUME = auto()
    IN_TURN = auto()
    STREAM = auto()


@dataclass(frozen=True, slots=True)
class PeekKind:
    """How to read a queue.

    Attributes:
        limit: how many times the queue requeues a message before dropping it; None for no limit.
        is_single: True if a consumer gets messages only once all earlier ones are cancelled.
        is_certain: False if the queue may have a lower limit, of 1 or more, by a policy that the user cannot see.
    """

    how: How
    limit: int | None = None
    is_single: bool = False
    is_certain: bool = True

    @property
    def lowest_limit(self) -> int | None:
        """The lowest limit that the queue may have: one that the user cannot see may be 1."""
        return self.limit if self.is_certain else min(1, 1 if self.limit is None else self.limit)


def kind_of(channel: Channel, queue: str, api: Management | None, vhost: str) -> PeekKind:
    """Find out how to read a queue.

    Args:
        api: the management API. If it is None or unavailable, AMQP is used, which does not tell a policy's limit.
    """
    channel.depth_of(queue)
    default = _DEFAULT_LIMIT if re.match(r"RabbitMQ (?!3\.)", channel.connection.broker) else None
    view: Any = None
    policies: list[Any] = []
    if api is not None:
        try:
            view = api.get(path("queues", vhost, queue))
            # The queue's own view shows a new policy, or the policy of a new queue, only some seconds later.
            policies = policies_of(api, vhost, queue, "quorum") if view.get("type") == "quorum" else []
        except (Unavailable, AccessRefused):
            view = None
    if view is None or "type" not in view:
        return _probed(channel, queue, default)
    if view["type"] == "stream":
        return PeekKind(How.STREAM)
    declared = view.get("arguments") or {}
    if view["type"] == "quorum":
        policies.append(view.get("effective_policy_definition") or {})
        limits = [declared.get("x-delivery-limit"), *(each.get("delivery-limit") for each in policies)]
        return PeekKind(How.IN_TURN, _limit(limits, default), declared.get("x-single-active-consumer") is True)
    goes = view.get("auto_delete") or declared.get("x-single-active-consumer")
    return PeekKind(How.GET if goes else How.CONSUME)


def is_before_4_3(broker: str) -> bool:
    """True unless this is RabbitMQ 4.3 or newer, whose quorum queues do not count basic.nack towards their limit."""
    version = re.match(r"RabbitMQ (\d+)\.(\d+)", broker)
    return version is None or (int(version[1]), int(version[2])) < (4, 3)


def times_requeued(delivery: Delivery, broker: str) -> int:
    """How many times a quorum queue of this broker has requeued a message, at most; from 4.3 on, its delivery count.

    From RabbitMQ 4.3 on, a nack does not count. Until a message has failed for the first time, its x-delivery-count is
    the publisher's; x-acquired-count, which counts all requeues, is always the broker's.
    """
    count, acquired = delivery.times_requeued, delivery.headers.get("x-acquired-count")
    return count if is_before_4_3(broker) or not isinstance(acquired, int) else min(count, acquired)


def _limit(said: Sequence[object], default: int | None) -> int | None:
    """Return the lowest limit in `said`, or `default` if there is none; None for no limit.

    A negative number means no limit, but only if nothing else sets one: of two, RabbitMQ 4 then applies the other one.
    """
    limits = [limit for limit in said if isinstance(limit, int)]
    return min((limit for limit in limits if limit >= 0), default=None) if limits else default


def _probed(channel: Channel, queue: str, default: int | None) -> PeekKind:
    """Use AMQP to find out how to read a queue: declare it as a durable queue, and read the broker's error.

    The error names only one setting that differs. Adopt it, and declare the queue again. A queue that was declared
    without a type has the default type of its virtual host. If the queue has just been deleted, this creates a new one.
    """
    with closing(channel.connection.channel()) as asking:
        return _declared(asking, queue, default)


def _declared(asking: Channel, queue: str, default: int | None) -> PeekKind:
    probe, adopted = Queue(queue, durable=True), set[str]()
    while True:
        try:
            asking.declare(probe, remember=False, exactly=True)
            break
        except AccessRefused:
            return PeekKind(How.GET, is_certain=False)
        except DeclaredDifferently as error:
            differs = Difference.reported_in(str(error))
        if differs is None or differs.setting in adopted:
            return PeekKind(How.IN_TURN, default, is_single=True, is_certain=False)  # as nothing is known
        adopted.add(differs.setting)
        probe = adopt(probe, differs)
        if probe.auto_delete:
            return PeekKind(How.GET)
        if probe.arguments.get("x-queue-type") == "stream":
            return PeekKind(How.STREAM)
    is_single = bool(probe.arguments.get("x-single-active-consumer"))
    try:
        as_quorum = probe._replace(arguments={**probe.arguments, "x-queue-type": "quorum"})
        asking.declare(as_quorum, remember=False, exactly=True)
    except DeclaredDifferently:
        return PeekKind(How.GET if is_single else How.CONSUME)
    limit = _limit([probe.arguments.get("x-delivery-limit")], default)
    return PeekKind(How.IN_TURN, limit, is_single, is_certain=limit is not None and limit <= 1)


def check_limit(channel: Channel, queue: str, kind: PeekKind) -> None:
    """If a queue has a delivery limit, receive and requeue its first message.

    If that one is over the limit, which happens from RabbitMQ 4.3 on, publish all that are over it again.

    Raises:
        MqtoolError: requeuing the message could exceed the limit; see peek().
    """
    over = over_limit(channel, queue, kind)
    if over is not None:
        with closing(peek(channel, queue, kind, 1)) as head:
            first = next(head, None)
        if first is not None and over.has(first):
            with closing(peek(channel, queue, kind)) as deliveries:
                for _ in deliveries:
                    pass
    elif kind.how is How.GET and not kind.is_certain:
        with closing(channel.connection.channel()) as other, closing(peek(other, queue, kind, 1)) as head:
            next(head, None)
    elif kind.limit is not None or not kind.is_certain:
        ready = channel.depth_of(queue)
        with closing(peek(channel, queue, kind, 1)) as head:
            next(head, None)
        wait_for(channel, queue, ready)  # otherwise the next message would be delivered before the first one


def peek(
    channel: Channel, queue: str, kind: PeekKind | None = None, most: int | None = None, offset: Offset = FIRST
) -> Generator[Delivery]:
    """Yield the messages that are in a queue now, oldest first, without acknowledging them.

    Close the generator to requeue the messages.

    Args:
        kind: how to read the queue; None detects it over AMQP.
        offset: where to start in a stream. A stream is read until no more messages arrive for a moment.

    Raises:
        NotFound: there is no such queue.
        Unavailable: the queue has messages, but the broker delivers none.
        MqtoolError: one or two more requeues would make the queue drop the message at its head, or could do so if its
            limit is unknown and the message cannot be published again; or, on closing, another message. With basic.get
            and an unknown limit: the message has been requeued before (from 4.3 on, twice), so it was published again.
    """
    kind = kind or kind_of(channel, queue, None, vhost="")
    if kind.how is How.STREAM:
        receiving = Receiving(idle_timeout=_STREAM_PATIENCE, offset=offset)
        yield from islice(channel.consume(Queue(queue), receiving), most)
    elif kind.how is How.GET:
        ready, broker = channel.depth_of(queue), channel.connection.broker
        safe = 0 if is_before_4_3(broker) else 1  # the lowest limit is 1, and a nack does not count
        try:
            for delivery in islice(iter(lambda: channel.get(queue), None), ready if most is None else min(most, ready)):
                if not kind.is_certain and times_requeued(delivery, broker) > safe:
                    error = _publish_again(channel, queue, delivery, is_certain=False)
                    channel.acknowledge(delivery)
                    raise error
                yield delivery
        finally:
            if safe:
                with suppress(MqtoolError):  # the connection is lost
                    channel.requeue_all()
    else:
        with looking(channel, queue, kind) as look:
            yield from look.messages(most)


@contextmanager
def looking(channel: Channel, queue: str, kind: PeekKind) -> Iterator["Look"]:
    """Yield a Look, which reads a queue and can remove messages. On exit, requeue the remaining messages.

    Raises:
        MqtoolError: on exit; see Look.give_back().
    """
    look = Look(channel, queue, kind)
    try:
        yield look
    finally:
        try:
            if kind.how is How.IN_TURN:
                look.finish_line()
        finally:
            look.give_back()


class Look:
    """Reads a queue in batches, each held by a consumer on its own channel. `count` is the number read so far."""

    def __init__(self, channel: Channel, queue: str, kind: PeekKind) -> None:
        self.count = 0
        self._channel = channel
        self._queue = queue
        self._limit = kind.lowest_limit
        self._nacks = self._limit is not None and not is_before_4_3(channel.connection.broker)
        self._is_single = kind.is_single
        self._is_certain = kind.is_certain
        self._ready = channel.depth_of(queue)
        self._has_more = True
        self._bytes = 0
        self._newest: Delivery | None = None
        self._held: dict[Channel, int] = {}
        self._consumers: dict[Channel, Consumer] = {}
        self._removed: dict[Channel, list[Delivery]] = {}
        self._last: dict[Channel, Delivery] = {}
        # With _nacks, those over the limit in the newest batch. Else, if the limit is known, without the queue's head.
        self._near_limit: list[tuple[Channel, Delivery]] = []
        self._put_last = 0
        self._on_their_way: Iterator[Delivery] = iter(())

    def messages(self, most: int | None = None) -> Iterator[Delivery]:
        """Yield messages, oldest first. Raises Unavailable and MqtoolError as peek() does."""
        wanted = self._ready if most is None else min(most, self._ready)
        if wanted and self._limit is not None:
            for head in self._take(1):
                if not self._nacks:
                    self._check_head(head, self._limit)
                yield head
        while self.count < wanted and self._has_more:
            yield from self._take(wanted - self.count)
        is_blocked = self.count < wanted and (self._is_single or not self.count)
        if is_blocked and not self._channel.connection.must_stop and (left := self._channel.depth_of(self._queue)):
            raise Unavailable(
                f"{self._queue!r} has {left:,} {'more ' * bool(self.count)}ready messages, "
                "but the broker delivers none of them",
                "its single active consumer gets them, or one with a higher priority",
            )

    def remove(self, delivery: Delivery) -> None:
        """Mark the latest delivery, so that give_back() removes it instead of requeueing it."""
        self._removed.setdefault(self._newest_channel, []).append(delivery)
        self._held[self._newest_channel] -= 1
        if self._near_limit and self._near_limit[-1][1] is delivery:
            self._near_limit.pop()

    @property
    def _newest_channel(self) -> Channel:
        return next(reversed(self._held))

    def _take(self, most: int) -> Iterator[Delivery]:
        """Yield the next batch, of at most `most` messages."""
        # A caller that stops early should not have to wait until thousands of messages are requeued.
        fits = FIRST_BATCH
        if self.count > 1:
            # Those at the limit or over it are lost with the connection, so with _nacks, a batch is a small part.
            grown = max(FIRST_BATCH, self.count // _GROWTH) if self._nacks else self.count * _GROWTH
            fits = min(_BATCH // (self._bytes // self.count), grown)
        size = max(1, min(most, self._ready - self.count, fits, AT_ONCE))
        channel, last = self._channel.connection.channel(), self.count + size
        self._held[channel] = 0
        receiving = Receiving(size, acknowledge=False, idle_timeout=_PATIENCE)  # ends early if others get the messages
        earlier = [*self._consumers.values()][-1:] if self._is_single else []
        self._consumers[channel] = channel.consumer(Queue(self._queue), receiving)
        for consumer in earlier:  # nothing is in transit to it, because its batch is complete
            consumer.cancel()
        self._on_their_way = islice(self._consumers[channel].deliveries(), size)
        yield from self._rest()
        self._has_more = last == self.count
        if self._nacks:
            self._publish_batch_again()

    def _rest(self) -> Iterator[Delivery]:
        for delivery in self._on_their_way:
            self._note(delivery)
            yield delivery

    def _note(self, delivery: Delivery) -> None:
        self.count += 1
        self._held[self._newest_channel] += 1
        self._bytes += len(delivery.body) + _OVERHEAD
        self._newest = self._last[self._newest_channel] = delivery
        if (self.count > 1 or self._nacks or not self._is_certain) and self._is_near_limit(delivery):
            self._near_limit.append((self._newest_channel, delivery))

    def _is_near_limit(self, delivery: Delivery) -> bool:
        """True if the queue drops a message when it is requeued once or twice; with _nacks, whenever it is."""
        margin = -1 if self._nacks else self._is_certain
        return self._limit is not None and self._times_requeued(delivery) >= self._limit - margin

    def _times_requeued(self, delivery: Delivery) -> int:
        return times_requeued(delivery, self._channel.connection.broker)

    def _check_head(self, head: Delivery, limit: int) -> None:
        """Check that the queue will not drop the message at its head if that message is requeued twice, now and later.
        If the limit is unknown, check that the message can be published again instead.

        Raises:
            MqtoolError: the queue would drop it. If it would do so now, the message is published again instead.
        """
        if not self._is_near_limit(head):
            return
        if not self._is_certain:
            self._check_permission(head)
            return
        self._newest = None  # do not read the other requeued messages
        if self._times_requeued(head) < limit:
            raise self._last_requeue(head)
        error = self._publish_again(head)
        self._newest_channel.stop()  # else the broker delivers the next message, which may be near the limit, too
        self._newest_channel.acknowledge(head)
        raise error

    def _check_permission(self, delivery: Delivery) -> None:
        """Raise MqtoolError if the user may not publish to the queue."""
        with closing(self._channel.connection.channel()) as trying:
            try:
                move(trying, delivery, Message(b"", "", ""))
            except NotMoved:  # no queue has an empty name
                return
            except MqtoolError as error:
                self._newest = None  # as above
                self._near_limit.clear()
                raise _not_published(self._channel, self._queue, delivery, error, is_certain=False) from error

    def _last_requeue(self, delivery: Delivery) -> MqtoolError:
        return MqtoolError(
            f"{name_of(delivery)} has been requeued {counted(self._times_requeued(delivery) + 1, 'time')}: "
            f"{self._queue!r} drops it if it is requeued once more",
            _hint(self._queue, is_certain=True),
        )

    def _publish_again(self, delivery: Delivery) -> MqtoolError:
        return _publish_again(self._channel, self._queue, delivery, is_certain=self._is_certain)

    def finish_line(self) -> None:
        """Read the messages that would otherwise change the order: the rest of the latest batch, because its consumer
        would get what the other channels requeue, and those requeued earlier, which would stay in front of this batch.
        """
        with suppress(MqtoolError):  # the connection is lost
            if len(self._held) > 1 or self._is_in_line:
                for _ in self._rest():
                    pass
            while self._is_in_line and self._has_more and self.count != self._ready:
                for _ in self._take(AT_ONCE):
                    pass

    @property
    def _is_in_line(self) -> bool:
        """True if more messages that were requeued earlier may follow the newest one."""
        if self._newest is None or not self._newest.redelivered:
            return False
        return not (self._nacks and self._is_near_limit(self._newest))  # that one was never requeued

    def _publish_batch_again(self) -> None:
        """Publish the messages of the newest batch that are over the limit again, and acknowledge them.

        Raises:
            MqtoolError: one of them was not confirmed, so the queue drops it.
        """
        if not self._near_limit:
            return
        self._consumers[self._newest_channel].cancel()  # else the broker sends more, up to the prefetch
        with closing(self._channel.connection.channel()) as publisher:
            while self._near_limit:
                channel, delivery = self._near_limit.pop(0)
                _publish_again(publisher, self._queue, delivery, is_certain=self._is_certain)
                channel.acknowledge(delivery)
                self._held[channel] -= 1
                self._put_last += 1

    def give_back(self) -> None:
        """Acknowledge the messages to remove, publish again those that the queue would drop, and requeue all others in
        order.

        Raises:
            MqtoolError: the queue would have dropped a message, or would do so at the next requeue; or the connection
                was lost, so that messages may not have been removed.
        """
        problems: list[tuple[int, MqtoolError]] = []
        failure: MqtoolError | None = None
        try:
            if self._near_limit or self._removed or self._nacks:
                for _ in self._rest():  # a consumer is cancelled only when nothing is in transit to it
                    pass
            problems += self._near_limit_problems()
            self._close_channels()
        except MqtoolError as error:
            failure = error
        finally:  # what has been published again would be doubled
            for channel, removed in self._removed.items():
                channel.acknowledge(*removed)
        if problems:
            (_, first), others = max(problems, key=lambda each: each[0]), len(problems) - 1
            more = f" ({counted(others, 'more message')} at this limit or near it)" if others else ""
            raise MqtoolError(f"{first}{more}", first.hint)
        if failure is not None and self._removed:  # the broker may not have received the acknowledgements
            raise failure

    def _near_limit_problems(self) -> Iterator[tuple[int, MqtoolError]]:
        newest = self._consumers.get(self._newest_channel) if self._nacks and self._held else None
        if newest is not None:
            newest.cancel()
            for delivery in newest.arrived():  # after a stop
                self._note(delivery)
        while self._nacks and self._near_limit:
            try:
                self._publish_batch_again()
            except MqtoolError as error:  # the others must still be published again, or requeued
                yield 0, error
        if self._put_last:
            self._channel.connection.notice(
                _words(self._queue, self._put_last, self._limit, is_certain=self._is_certain)
            )
        for channel, delivery in self._near_limit:
            yield self._times_requeued(delivery), self._check_near_limit(channel, delivery)

    def _close_channels(self) -> None:
        """Close the channels, oldest first, so that each batch is requeued behind the one before."""
        for channel, held in self._held.items():
            ready = self._channel.depth_of(self._queue)
            if channel in self._removed:
                self._consumers[channel].cancel()  # else it would get messages that other batches have requeued
                channel.acknowledge(*self._removed[channel])
            if self._nacks and held:
                self._consumers[channel].give_back([self._last[channel]])
            channel.close()
            if held and channel is not self._newest_channel:
                wait_for(self._channel, self._queue, ready + 1, _PATIENCE)

    def _check_near_limit(self, channel: Channel, delivery: Delivery) -> MqtoolError:
        """If requeuing a message would make the queue drop it, publish it again; return an error that says so."""
        if self._limit is None or self._times_requeued(delivery) < self._limit:
            return self._last_requeue(delivery)
        try:
            error = self._publish_again(delivery)
        except MqtoolError as dropped:  # the others must still be acknowledged or requeued
            return dropped
        self._removed.setdefault(channel, []).append(delivery)
        self._held[channel] -= 1
        return error


def _publish_again(channel: Channel, queue: str, delivery: Delivery, *, is_certain: bool) -> MqtoolError:
    """Publish a message to its queue again; return an error that says so. The caller acknowledges the delivery.

    Args:
        is_certain: False if the queue's delivery limit is unknown.

    Raises:
        MqtoolError: the message was not confirmed, so the queue drops it.
    """
    expiration = expiration_until_due(delivery)
    if expiration is not None:
        delivery = replace(delivery, properties={**delivery.properties, "expiration": str(expiration)})
    try:
        move(channel, delivery, _anew(delivery, queue, channel.connection.frame_max))
    except MqtoolError as error:
        raise _not_published(channel, queue, delivery, error, is_certain=is_certain) from error
    would = "would" if is_certain else "could"
    again = "" if expiration is not None else ", and its TTL, if any, starts again"
    return MqtoolError(
        f"{_at_limit(channel, queue, delivery, is_certain=is_certain)} {would} have dropped it: "
        f"it is now at the end of the queue{again}",
        _hint(queue, is_certain=is_certain),
    )


def _not_published(
    channel: Channel, queue: str, delivery: Delivery, error: MqtoolError, *, is_certain: bool
) -> MqtoolError:
    """Return the error for a message that the queue drops, or may drop, because it could not be published again."""
    drops = "drops or dead-letters" if is_certain else "may drop or dead-letter"
    return MqtoolError(
        f"{_at_limit(channel, queue, delivery, is_certain=is_certain)} {drops} it now, "
        f"because it could not be published again: {error}",
        None if is_certain else _hint(queue, is_certain=False),
    )


def _at_limit(channel: Channel, queue: str, delivery: Delivery, *, is_certain: bool) -> str:
    times, possibly = times_requeued(delivery, channel.connection.broker), "" if is_certain else "possibly "
    if not is_before_4_3(channel.connection.broker):
        return f"{name_of(delivery)} has a delivery count of {times}, {possibly}over the limit of {queue!r}, which"
    return f"{name_of(delivery)} has been requeued {counted(times, 'time')}, {possibly}the limit of {queue!r}, which"


def _hint(queue: str, *, is_certain: bool) -> str:
    if is_certain:
        return f"receive the messages, or move them: {pasteable('move --to QUEUE', queue)}"
    return "only the management API tells the limit, to a user with the 'management' tag"


def _words(queue: str, count: int, limit: int | None, *, is_certain: bool) -> str:
    """Say that messages over the limit were published again."""
    over = f"over the delivery limit of {limit}" if is_certain else "which may be over the delivery limit"
    return (
        f"{counted(count)} of {queue!r}, {over}, {'was' if count == 1 else 'were'} published again at its end, "
        "because the queue drops such messages when they are returned"
    )


class OverLimit:
    """Messages that a quorum queue drops when they are returned: from RabbitMQ 4.3 on, those over its delivery limit.

    Attributes:
        limit: the delivery limit, or the lowest one that the queue may have.
        is_single: see PeekKind.
        count: the number of messages that stays() has published again.
    """

    def __init__(self, channel: Channel, queue: str, kind: PeekKind, limit: int) -> None:
        self.limit = limit
        self.is_single = kind.is_single
        self.count = 0
        self._channel = channel
        self._queue = queue
        self._is_certain = kind.is_certain
        #: See Channel.requeue_all(): the end of the channel counts towards the limit.
        self.requeue_all = channel.requeue_all

    def is_fragile(self, delivery: Delivery) -> bool:
        """True if the message is lost with its channel: it is over the limit, or at the limit."""
        return times_requeued(delivery, self._channel.connection.broker) >= self.limit

    def has(self, delivery: Delivery) -> bool:
        """True if the message is lost if it is requeued."""
        return times_requeued(delivery, self._channel.connection.broker) > self.limit

    def stays(self, delivery: Delivery) -> bool:
        """If a message is lost if it is requeued, publish it at the end of its queue instead; return True if so.

        Raises:
            MqtoolError: it was not confirmed, so the queue drops it.
        """
        if not self.has(delivery):
            return False
        with closing(self._channel.connection.channel()) as publisher:
            _publish_again(publisher, self._queue, delivery, is_certain=self._is_certain)
        self._channel.acknowledge(delivery)
        self.count += 1
        return True

    def words(self) -> str:
        """Say how many messages stays() has published again."""
        return _words(self._queue, self.count, self.limit, is_certain=self._is_certain)


def over_limit(channel: Channel, queue: str, kind: PeekKind) -> OverLimit | None:
    """Return the messages of a queue that it drops when they are returned; None if there can be none."""
    limit = kind.lowest_limit
    if kind.how is not How.IN_TURN or limit is None or is_before_4_3(channel.connection.broker):
        return None
    return OverLimit(channel, queue, kind, limit)


def _anew(delivery: Delivery, queue: str, frame_max: int) -> Message:
    """Return the message to publish to its queue again, with its origin in its headers, if it fits.

    The broker dead-letters the messages of some wait queues with their own routing keys, which the default exchange
    would replace. Such a message is published to the exchange through which it came.
    """
    message = elsewhere(delivery, queue, "", frame_max)
    headers = message.properties.get("headers") or {}
    if delivery.exchange in _entrances(queue):
        headers |= {"CC": delivery.headers["CC"]} if "CC" in delivery.headers else {}  # keys for the dead letter, too
        properties = {**message.properties, "headers": headers}
        return replace(message, exchange=delivery.exchange, routing_key=delivery.routing_key, properties=properties)
    origin = history.origin_of(delivery)
    first = {history.EXCHANGE: origin.exchange, history.ROUTING_KEY: origin.routing_key}
    named = replace(message, properties={**message.properties, "headers": {**headers, **first}})
    return named if fits(named, frame_max) else message


def _entrances(queue: str) -> tuple[str, ...]:
    """Return the names of the exchanges that only mqtool's wait queues for an exchange are bound to, if it is one."""
    suffix = WAIT_SUFFIX.search(queue)
    return () if suffix is None or not suffix["exchange"] else (queue, queue[: suffix.end("kind")])
