"""Convert a queue: change its type or arguments, and keep its name, bindings and messages.

RabbitMQ cannot change a queue in place, so the messages move to another queue and back:

    1  publishers ──> (exchange) ──> (through) ──> [jobs] ──> (into) ──> [held]    `through` takes over the bindings
    2  publishers ──> (exchange) ──> (through) ──> [meanwhile]              one unbinding diverts new messages
    3                                              [jobs] is deleted and declared again
    4                                              [held], then [meanwhile] ──> (back) ──> [jobs]
    5  publishers ──> (exchange) ──> [jobs]                                 the bindings are as before

`through` has an alternate exchange that leads to `meanwhile`. So no message is ever unroutable or routed twice: a queue
gets a message only once, even along two paths, and unbinding `through` from the queue is a single step.

Others can delete `held` or the queue meanwhile. So that messages on their way there are not lost, `into` has an
alternate exchange that leads to `meanwhile`, and the alternate exchange of `back` is `into`. Only messages that return
to the queue through the default exchange have no such way out.

A conversion can be killed at any moment and continued by any client, because its state is on the broker:

    held exists                       a conversion is under way; its plan is in the argument x-mqtool-convert
    exchanges lead to `through`, but
    `through` does not lead to jobs   step 2: messages are diverted
    `back` leads to jobs              step 4: jobs has its new definition, and messages are returning

Each step can be repeated. Every run uses the same prefetch, so a quorum queue delivers all messages that a killed run
had received, in order, before any others. Up to one batch of them may be in both queues: see mover.py.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import Any

from mqtool.amqp import Channel, Connection, Receiving, administration, pika_errors
from mqtool.delays.wait_queues import YOUNG
from mqtool.errors import AccessRefused, BadData, DeclaredDifferently, InternalError, NotFound, Unavailable, UsageError
from mqtool.management import Management
from mqtool.management.api_client import Json
from mqtool.management.queue_contents import contents, unmovable
from mqtool.message import Delivery, Message
from mqtool.spelling import counted, pasteable
from mqtool.topology import Binding, Exchange, Queue
from mqtool.work.conversion_plan import (
    PLAN,
    ConversionNames,
    ConversionPlan,
    Definition,
    Prospect,
    Refusal,
    beyond_limits,
    bindings_of,
    by_policies,
    check_depth,
    dead_letters,
    of_unmovable,
    view_of,
)
from mqtool.work.exact_bindings import ExactBindings, described, is_large
from mqtool.work.held_messages import HeldMessages, check_acknowledged, check_leader, is_empty
from mqtool.work.mover import Mover, NoRoom
from mqtool.work.peeking import How, OverLimit, is_before_4_3, kind_of, over_limit, peek
from mqtool.work.queue_limits import room_in

#: Seconds to wait until a queue's consumers are gone, since a broker takes a moment to notice that a client was killed.
_PATIENCE, _LOOK = 20.0, 0.05
#: Seconds to wait for current statistics of a queue.
_STATISTICS = 60.0
#: Seconds without new messages after which nobody is expected to publish to the queue through the default exchange.
_QUIET = 3.0
#: How many times clients may subscribe to the queue, and end, before it is replaced. Each time, it is emptied again.
_VISITS = 2
#: The maximum number of attempts to empty and replace the queue, in case messages or declarations interfere.
_TRIES = 200


def left_behind(api: Management, vhost: str, queue: str) -> ConversionPlan | None:
    """Return a plan for finishing a conversion whose holding queue has been deleted; None if there is none.

    Raises:
        NotFound: the queue itself has also been deleted.
    """
    names, view = ConversionNames.of(queue), view_of(api, vhost, queue)
    meanwhile = view_of(api, vhost, names.meanwhile)
    if meanwhile is None and not bindings_of(api, vhost, names.through, exchange=True):
        return None
    if view is None:
        raise NotFound(f"queue {queue!r} does not exist", "declare it as you want it, then run this again")
    return ConversionPlan(queue, Definition.of(meanwhile or view), Definition.of(view))


def refused_by_broker(connection: Connection, plan: ConversionPlan) -> Refusal | None:
    """Ask the broker whether it would accept the new definition; return its reason if it would not.

    Declares nothing that stays: the declaration is exclusive. The broker refuses that for quorum queues and streams,
    but checks the arguments first.
    """
    trial = plan.target.named(plan.names.trial)._replace(exclusive=True)
    channel = connection.channel(strict=True)
    try:
        channel.declare(trial, remember=False)
        administration.delete_queue(channel, trial.name)
    except (AccessRefused, UsageError) as error:
        if isinstance(error, AccessRefused) or "invalid arg" in str(error):
            return Refusal(str(error).replace(trial.name, plan.queue), "see --to and --argument")
    except DeclaredDifferently:  # another run tries it now, or one was killed meanwhile: begin() deletes what it left
        return None
    finally:
        channel.close()
    return None


def hidden_messages(connection: Connection, api: Management, vhost: str, queue: str) -> Refusal | None:
    """Return a refusal if a queue holds messages that no consumer can get now, which would be lost with it."""
    with closing(connection.channel(strict=True)) as channel:

        def ready() -> int:
            _check_not_stopped(connection)
            return channel.depth_of(queue)

        is_embedded = connection.broker_to_show == "the embedded broker"
        found = contents(api, vhost, queue, ready, is_embedded=is_embedded, patience=_STATISTICS)
    return next(of_unmovable(found.delayed, found.dead_letters), None)


def undeliverable(connection: Connection, api: Management, vhost: str, plan: ConversionPlan) -> Refusal | None:
    """Return a refusal if RabbitMQ cannot deliver a message of a queue over AMQP 0-9-1, which closes the connection.

    From RabbitMQ 4.3 on, this happens with some messages that were published over AMQP 1.0. Only reading the queue
    shows it. If it has consumers, they would compete for the messages, so it is not read.
    """
    channel, queue = connection.channel(), plan.queue
    depth = administration.depth(channel, queue)
    if is_before_4_3(connection.broker) or depth.consumers or not depth.ready:
        return None
    kind = kind_of(channel, queue, api, vhost)
    try:
        if kind.how is How.IN_TURN:
            _read_first(channel, queue, min(depth.ready, 2 * plan.at_once), over_limit(channel, queue, kind))
        else:
            with closing(peek(channel, queue, kind)) as deliveries:
                for _ in deliveries:
                    pass
    except InternalError:
        what = "RabbitMQ closes the connection when it delivers its messages over AMQP 0-9-1"
        return Refusal(what, pika_errors.undeliverable(queue))
    return None


def _read_first(channel: Channel, queue: str, count: int, over: OverLimit | None) -> None:
    """Read as many messages of a quorum queue as a run prefetches, and requeue them.

    If more were requeued, a killed run would change the order: what it has received would be requeued behind the rest.
    """
    consumer = channel.consumer(Queue(queue), Receiving(count, acknowledge=False, idle_timeout=_PATIENCE))
    first = [*islice(consumer.deliveries(), count)]
    consumer.cancel()
    if over is not None and sum(map(over.stays, first)):
        channel.connection.notice(over.words())
    channel.requeue_all()


def unconfirmed(connection: Connection, definition: Definition, queue: str) -> Refusal | None:
    """Ask the broker whether a queue's dead letters go where the management API says; return a refusal if they do not.

    A conversion declares queues with these arguments. Whoever has declared the queue may have no right to write there.
    """
    if not dead_letters(definition):
        return None
    try:
        with closing(connection.channel(strict=True)) as channel:
            if administration.has_arguments(channel, definition.named(queue)):
                return None
    except AccessRefused as error:
        return Refusal(str(error), "a conversion needs this permission")
    return Refusal(
        "the broker does not confirm the dead-letter exchange and routing key that the management API shows",
        "were they declared twice, with different values? Then declare a new queue",
    )


def inexact_binding(connection: Connection, api: Management, vhost: str, found: Prospect) -> Refusal | None:
    """Find a binding of the queue that cannot be made again exactly, if any. Declares nothing that stays."""
    channel = connection.channel(strict=True)
    try:
        for view, exact in ExactBindings(channel, api, vhost, found.plan.queue).of(found.bindings):
            if exact is None:
                return _inexact(view)
    except AccessRefused as error:
        return Refusal(str(error), "a conversion needs this permission")
    except Unavailable as error:
        return Refusal(str(error), error.hint or "try again later")
    finally:
        channel.close()
    return None


def _inexact(view: Json) -> Refusal:
    unknown = "exact types and order of its arguments" if view["arguments"] else "bytes of its routing key"
    why = "its arguments are too large" if is_large(view) else f"the management API does not show the {unknown}"
    return Refusal(
        f"its binding {described(view)} would not stay the same: {why}",
        "unbind it with the client that bound it, or on the management page, and bind it again afterwards",
    )


def _rebind(channel: Channel, was: Binding, now: Binding) -> None:
    # Over AMQP: the API's JSON loses types, and its URLs cannot name the routing keys "." and "..".
    administration.bind(channel, now)
    with suppress(NotFound):  # its queue has been deleted
        administration.unbind(channel, was)


class Stopped(Exception):
    """The user asked to stop."""


@dataclass
class ConversionTally:
    """The results of a run.

    Attributes:
        held, returned: the numbers of messages moved out of the queue and back into it.
        meanwhile: the number of messages moved into the queue that were published during the conversion.
        absence: the maximum time in seconds that the queue did not exist; None if this run did not replace it.
        overtaken: the number of returned messages that newer ones may have overtaken.
        deleted: the number of messages that arrived too late to be moved, and were deleted with a quorum queue.
        doubled: the most messages that may be in the queue twice because the run before this one was interrupted.
    """

    held: int = 0
    returned: int = 0
    meanwhile: int = 0
    absence: float | None = None
    overtaken: int = 0
    deleted: int = 0
    doubled: int = 0

    @property
    def total(self) -> int:
        """The number of messages moved into the queue."""
        return self.returned + self.meanwhile


class Conversion:
    """A new or unfinished conversion of a queue. The connection must not reconnect.

    Attributes:
        tally: what this run has done so far.
        messages: converts deliveries to the messages to publish.
        has_begun: True once the plan is on the broker, so that any client can continue.

    Args:
        user: the name of the user that the connection is logged in as.
        keeps_user: True if the user may publish messages with other users' ids.
        force: cancel consumers, and replace the queue even if clients publish to it through the default exchange,
            instead of raising an error.
        young: seconds to wait after declaring a quorum queue before moving messages into it. If RabbitMQ is killed
            earlier, the queue never gets a leader again.
        quiet: seconds without new messages that the queue must have before it is replaced.
    """

    def __init__(
        self,
        connection: Connection,
        api: Management,
        vhost: str,
        plan: ConversionPlan,
        *,
        user: str,
        keeps_user: bool = False,
        force: bool = False,
        young: float = YOUNG,
        quiet: float = _QUIET,
    ) -> None:
        self.tally = ConversionTally()
        self.has_begun = False
        self._is_acknowledged = self._was_left = self._is_new = False
        self._in_order = 0  # of the messages moved from `meanwhile`, those moved before others could overtake them
        self._moving: Channel | None = None
        self._connection = connection
        self._channel = connection.channel(strict=True)
        self._api = api
        self._vhost = vhost
        self._plan = plan
        self._names = plan.names
        own_user = None if keeps_user else user
        self.messages = HeldMessages(plan.queue, self._names.into, self._names.back, own_user, connection.frame_max)
        self._force = force
        self._is_embedded = connection.broker_to_show == "the embedded broker"
        self._young = 0.0 if self._is_embedded else young
        self._quiet = quiet / 10 if self._is_embedded else quiet  # it loses only messages that are not mandatory
        self._bindings = ExactBindings(self._channel, api, vhost, plan.queue, partial(_check_not_stopped, connection))
        self._is_modern = not connection.broker.startswith("RabbitMQ 3.")

    # The steps.

    def begin(self) -> None:
        """Test whether the broker accepts the new definition, and store the plan on the broker.

        Raises:
            Unavailable: the queue has more messages now than the new definition allows, a policy would remove
                messages meanwhile, or a binding cannot be kept. Nothing was changed.
            MqtoolError: the broker refuses the new definition or does not confirm the present one, or the user lacks a
                permission. Nothing was changed.
        """
        self.lock()
        for name in (self._plan.queue, self._names.meanwhile):
            view = view_of(self._api, self._vhost, name)
            if view is not None and (refusal := unconfirmed(self._connection, Definition.of(view), name)):
                raise BadData(f"queue {name!r}: {refusal.what}", refusal.hint)
        trial = self._plan.target.named(self._names.trial)
        administration.delete_queue(self._channel, trial.name)
        try:
            self._channel.declare(trial)
        except UsageError as error:  # users know neither the trial's name nor the options of 'queue declare'
            raise UsageError(str(error).replace(trial.name, self._plan.queue), "see --to and --argument") from error
        administration.delete_queue(self._channel, trial.name)
        if not self.is_replaced():  # or else the queue and its bindings stay
            check_depth(self._plan.queue, self._plan.target)
            self._exact(bindings_of(self._api, self._vhost, self._plan.queue))
        if left_behind(self._api, self._vhost, self._plan.queue) is None:
            # An earlier conversion that was killed before its last request: messages would seem to be coming back.
            administration.delete_exchange(self._channel, self._names.back)
            _check_limits(self._channel, self._api, self._vhost, self._plan)
        self._channel.declare(self._holder(self._names.held, {PLAN: self._plan.as_text()}))
        self.has_begun = self._is_new = True

    def lock(self) -> None:
        """Make sure that no other connection works on this conversion.

        Raises:
            Unavailable: another connection works on it.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            _check_not_stopped(self._connection)
            try:
                self._channel.declare(Queue(self._names.lock, exclusive=True))
            except DeclaredDifferently as error:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"another mqtool converts {self._plan.queue!r}",
                        "if it was killed, the broker notices within a minute or two: try again then",
                    ) from error
                time.sleep(_LOOK * 10)
            else:
                return

    def stop(self) -> None:
        """Make run() raise Stopped soon. Safe to call from a signal handler."""
        self._connection.stop()
        if self._moving is not None:
            self._moving.stop()

    def remaining(self) -> int:
        """Return the number of moves that are left; each message in the queue needs two."""
        names, name = self._names, self._plan.queue
        left = [self._depth(names.held), self._depth(names.meanwhile)]
        return sum(left) if self.is_returning() else sum(left) + 2 * self._depth(name)

    def is_robbed(self) -> bool:
        """True if another client has deleted the holding queue, with its messages and the plan."""
        return view_of(self._api, self._vhost, self._names.held) is None

    def _depth(self, queue: str) -> int:
        return self._channel.depth_of(queue) if administration.exists(self._channel, Queue(queue)) else 0

    def run(self, *, undo: bool = False, leaves: bool = False) -> Iterator[int]:
        """Carry out the remaining steps; yield the size of each batch of messages when it has been moved.

        Args:
            undo: return the messages to the unchanged queue. Possible only until the queue is replaced.
            leaves: in an undo, do not move the messages that are still in the queue: they end up before the others.

        Raises:
            MqtoolError: the conversion cannot continue now. No messages are lost, and it can be run again.
        """
        self.has_begun = True
        self._set_up()
        if not self.is_returning():
            yield from self._take_out(undo=undo, leaves=leaves)
        yield from self._bring_back()
        self._clean_up()

    def is_returning(self) -> bool:
        """True if the messages are being moved back."""
        return self._leads(self._names.back) or self.is_replaced()

    def _set_up(self) -> None:
        names, channel = self._names, self._channel
        channel.declare(Exchange(names.meanwhile, "fanout", durable=True))
        source = self._plan.source
        # As in the queue, messages that expire become dead letters, and the order is the same.
        channel.declare(self._holder(names.meanwhile, dead_letters(source), source.type))
        channel.bind(Queue(names.meanwhile), Exchange(names.meanwhile))
        alternate = {"alternate-exchange": names.meanwhile}
        channel.declare(Exchange(names.through, "fanout", durable=True, arguments=alternate))
        channel.declare(Exchange(names.into, "fanout", durable=True, arguments=alternate))
        channel.bind(Queue(names.held), Exchange(names.into))
        channel.declare(Exchange(names.back, "fanout", durable=True, arguments={"alternate-exchange": names.into}))
        time.sleep(self._young)
        for holder in (names.held, names.meanwhile):
            self._check_leader(holder, "convert")

    def _take_out(self, *, undo: bool, leaves: bool) -> Iterator[int]:
        """Move all messages to the holding queue, and replace the queue with one that has the new definition."""
        name, wanted = self._plan.queue, self._plan.source if undo else self._plan.target
        uses = _Uses(self._connection, self._channel, name, self._quiet)
        for _ in range(_TRIES):
            view = view_of(self._api, self._vhost, name)
            if view is None:
                check_depth(name, wanted, is_gone=True)
            else:
                try:
                    if leaves:
                        raise BadData(f"{name!r} has messages that cannot be moved")
                    yield from self._empty(name, undo=undo)
                except BadData:
                    if not undo:
                        raise
                    self._was_left = True  # a message that cannot be moved, and those after it
                if not undo and (refusal := hidden_messages(self._connection, self._api, self._vhost, name)):
                    go_on = pasteable("queue convert --resume", name)
                    raise Unavailable(f"{name!r} cannot be replaced: {refusal.what}", f"{refusal.hint}; then: {go_on}")
                if not (undo or self._force) and not uses.are_over(is_quorum=view.get("type") == "quorum"):
                    continue
            if self._replace(wanted, view, undo=undo):
                self._channel.bind(Queue(name), Exchange(self._names.back))
                time.sleep(self._young if wanted.type == "quorum" else 0.0)
                return
        raise Unavailable(
            f"{name!r} gets messages faster than they can be moved: they come through the default exchange",
            f"stop their publishers, then: {pasteable('queue convert --resume', name)}",
        )

    def _empty(self, name: str, *, undo: bool = False) -> Iterator[int]:
        self._lead_through(undo=undo)
        if not self._is_diverted():
            divert = partial(administration.unbind, self._channel, Binding(self._names.through, name))
            yield from self._drain(name, self.messages.held, "held", divert)
        yield from self._drain(name, self.messages.held, "held")
        if not (self._force and self._is_acknowledged):  # with --force, consumers that come later are cancelled
            self._check_clients(name)
            yield from self._drain(name, self.messages.held, "held")  # those that arrived or were requeued meanwhile

    def _lead_through(self, *, undo: bool = False) -> None:
        """Move the queue's bindings to the exchange `through`, so that a single unbinding diverts all messages.

        In an undo, the queue stays, so those that cannot be made again exactly are left.
        """
        name, through = self._plan.queue, self._names.through
        direct = [each for each in bindings_of(self._api, self._vhost, name) if each["source"] != through]
        exact = self._exact(direct, undo=undo)
        if exact and not self._is_diverted():
            self._channel.bind(Queue(name), Exchange(through))
        for binding in exact:
            _rebind(self._channel, binding, replace(binding, destination=through, to_exchange=True))

    def _is_diverted(self) -> bool:
        """True if messages for the queue are being diverted to `meanwhile`."""
        through = self._names.through
        return not self._leads(through) and bool(bindings_of(self._api, self._vhost, through, exchange=True))

    def is_replaced(self) -> bool:
        """True if the queue has its new definition. It can then be undone only by another conversion."""
        view = view_of(self._api, self._vhost, self._plan.queue)
        return view is not None and Definition.of(view) == self._plan.target

    def _replace(self, wanted: Definition, view: Json | None, *, undo: bool) -> bool:
        """Delete the queue and declare it again; return False if messages or another declaration got in between."""
        name, is_quorum = self._plan.queue, view is not None and view.get("type") == "quorum"
        if undo and view is not None:
            return True
        declare = administration.declare_request(wanted.named(name))

        def replace(pika: Any, done: Any) -> None:
            if not is_quorum:
                # Does not wait: the next request follows at once. A consumer might have unacknowledged messages.
                pika.queue_delete(name, if_empty=True, if_unused=not self._force)
                declare(pika, done)
                return

            def deleted(answer: Any) -> None:
                self.tally.deleted += int(answer.method.message_count)
                declare(pika, done)

            pika.queue_delete(name, callback=deleted)  # quorum queues do not support if_empty

        began = time.monotonic()
        try:
            self._channel.ask(replace)
        except (BadData, DeclaredDifferently):
            return False
        self.tally.absence = time.monotonic() - began
        return True

    def _bring_back(self) -> Iterator[int]:
        name, names = self._plan.queue, self._names

        def stop_diverting() -> None:
            self._channel.bind(Queue(name), Exchange(names.through))
            self._in_order = self.tally.meanwhile

        self._check_leader(name, "convert --resume")
        if not self._leads(names.back):
            self._channel.bind(Queue(name), Exchange(names.back))
        if not self._leads(names.through):
            yield from self._drain(names.held, self.messages.returned, "returned")
            yield from self._drain(names.meanwhile, self.messages.returned, "meanwhile", stop_diverting)
        yield from self._drain(names.held, self.messages.returned, "returned")
        yield from self._drain(names.meanwhile, self.messages.returned, "meanwhile")

    def _clean_up(self) -> None:
        name, names, channel = self._plan.queue, self._names, self._channel
        views = bindings_of(self._api, self._vhost, names.through, exchange=True)
        for view, binding in self._bindings.of(views):
            if binding is not None:
                _rebind(channel, binding, replace(binding, destination=name, to_exchange=False))
            else:  # mqtool has bound only others to it
                self._connection.notice(
                    f"another client's binding {described(view)} to {names.through!r} cannot be moved to {name!r}, "
                    "and is deleted"
                )
        for exchange in (names.through, names.meanwhile, names.into):
            administration.delete_exchange(channel, exchange)
        for _ in self._drain(names.meanwhile, self.messages.returned, "meanwhile"):
            pass
        self.tally.overtaken = self.tally.meanwhile - self._in_order + self.tally.returned * self._was_left
        # Another client may hold messages. To ask takes seconds on RabbitMQ, so not if this run has returned all.
        has_all = self._is_new and self.tally.held == self.tally.returned and not self.tally.meanwhile
        for holder in (names.meanwhile, names.held):  # the plan is deleted with `held`
            if not is_empty(self._connection, holder):
                raise Unavailable(f"{holder!r} still has messages")
            if not has_all:
                self._check_clients(holder)
            administration.delete_queue(channel, holder)
        # Deleted last, because its binding shows that messages are being returned, even in an undo.
        administration.delete_exchange(channel, names.back)
        administration.delete_queue(channel, names.lock)

    # Parts of steps.

    def _holder(self, name: str, arguments: Mapping[str, Any], kind: str = "quorum") -> Queue:
        unlimited = {"x-delivery-limit": -1} if self._is_modern and kind == "quorum" else {}
        return Queue(name, durable=True, arguments={**arguments, **unlimited, "x-queue-type": kind})

    def _leads(self, exchange: str) -> bool:
        """True if `exchange`, one of the conversion's exchanges, is bound to the queue."""
        return any(each["source"] == exchange for each in bindings_of(self._api, self._vhost, self._plan.queue))

    def _exact(self, views: Sequence[Json], *, undo: bool = False) -> list[Binding]:
        """Return these bindings of the queue; raise Unavailable if one cannot be made again, except in an undo."""
        found = []
        for view, binding in self._bindings.of(views):
            if binding is not None:
                found.append(binding)
            elif not undo:
                what, hint, _ = _inexact(view)
                raise Unavailable(f"{self._plan.queue!r} cannot be converted: {what}", hint)
        return found

    def _drain(
        self, source: str, message_for: Any, counts: str, stop_flow: Callable[[], None] | None = None
    ) -> Iterator[int]:
        """Move all messages out of a queue; yield the size of each batch. See Mover.batches for `stop_flow`."""
        if administration.depth(self._channel, source) == (0, 0):  # one reply: a consumer that ends requeues messages
            if stop_flow is not None:
                stop_flow()
            return
        self._wait_for_clients(source)
        self._moving = channel = self._connection.channel()
        to = self._names.held if counts == "held" else self._plan.queue
        room = room_in(self._channel, self._api, self._vhost, to)
        try:
            _check_not_stopped(self._connection)  # stop() may have come while the channel opened
            mover = Mover(channel, source, self._plan.at_once, partial(self._counted, message_for), room)
            for size in mover.batches(stop_flow):
                setattr(self.tally, counts, getattr(self.tally, counts) + size)
                yield size
                if not administration.exists(self._channel, Queue(to)):  # messages went to the alternate exchange
                    raise NotFound(f"queue {to!r} was deleted during the conversion")
        except InternalError as error:
            error.hint = pika_errors.undeliverable(source)
            raise
        except NoRoom:
            # A policy cannot raise a limit that is also set by an argument: the lower one counts.
            arguments = (view_of(self._api, self._vhost, to) or {}).get("arguments") or {}
            raised = "" if "x-max-length" in arguments else " or raise the limit of its policy,"
            raise Unavailable(
                f"{to!r} is full, and messages that it had before or that were published meanwhile do not fit",
                f"consume messages from {to!r},{raised} then: {pasteable('queue convert --resume', self._plan.queue)}",
            ) from None
        finally:
            if channel.is_open:
                channel.close()
        _check_not_stopped(self._connection)

    def _counted(self, message_for: Callable[[Delivery], Message], delivery: Delivery) -> Message:
        """Return the message to publish. Count it, and say so, if an interrupted run may have published it."""
        if delivery.redelivered and not self._is_new:
            if not self.tally.doubled:  # before it is published again, since this run may be killed, too
                most, queue = counted(self._plan.at_once), self._plan.queue
                self._connection.notice(f"the last run was interrupted: up to {most} may be in {queue!r} twice")
            self.tally.doubled = min(self.tally.doubled + 1, self._plan.at_once)
        return message_for(delivery)

    def _check_leader(self, queue: str, then: str) -> None:
        view = view_of(self._api, self._vhost, queue)
        if view is not None and view.get("type") == "quorum":
            check_leader(self._connection, queue, pasteable(f"queue {then}", self._plan.queue))

    def _wait_for_clients(self, queue: str) -> None:
        """Wait until a queue has no consumers. By then, the broker has requeued the messages of killed clients.

        Raises:
            Unavailable: there are still consumers.
        """
        deadline = time.monotonic() + _PATIENCE
        notice_once = cache(self._connection.notice)
        while count := _consumers(self._channel, queue):
            if self._force and queue == self._plan.queue:
                return
            _check_not_stopped(self._connection)
            notice_once(f"waiting until {queue!r} has no consumers")
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{queue!r} has {counted(count, 'consumer')}",
                    f"stop them, then: {pasteable('queue convert --resume', self._plan.queue)}",
                )
            time.sleep(_LOOK)

    def _check_clients(self, queue: str) -> None:
        """Check that deleting a queue would lose no messages, because none are unacknowledged."""
        self._wait_for_clients(queue)
        go_on = pasteable("queue convert --resume", self._plan.queue)

        def ask() -> None:
            _check_not_stopped(self._connection)
            self._channel.depth_of(queue)

        notice, is_embedded = self._connection.notice, self._is_embedded
        check_acknowledged(self._api, self._vhost, queue, ask, go_on, notice, is_embedded=is_embedded)
        self._is_acknowledged = True


def _check_limits(channel: Channel, api: Management, vhost: str, plan: ConversionPlan) -> None:
    """Count again: messages may have come since the plan was made. A plan to convert back was not checked before."""
    view, depth = view_of(api, vhost, plan.queue) or {}, administration.depth(channel, plan.queue)
    hidden = of_unmovable(*unmovable(view, is_current=True))
    for refusal in (*hidden, *beyond_limits(api, vhost, view, plan, depth), *by_policies(api, vhost, plan)):
        raise Unavailable(f"{plan.queue!r} cannot be converted: {refusal.what}", refusal.hint)


def _check_not_stopped(connection: Connection) -> None:
    if connection.stopping:
        raise Stopped


class _Uses:
    """Watches whether clients still use a queue that has been emptied, before it is replaced."""

    def __init__(self, connection: Connection, channel: Channel, queue: str, quiet: float) -> None:
        self._connection, self._channel, self._queue, self._quiet = connection, channel, queue, quiet
        self._has_arrived, self._visits = False, 0

    def are_over(self, *, is_quorum: bool) -> bool:
        """Return True if the queue has been quiet for a while; False if it is to be emptied again.

        Args:
            is_quorum: the broker deletes the queue even if it has messages or consumers.

        Raises:
            Unavailable: clients use it again and again.
        """
        used = _first_use(self._connection, self._channel, self._queue, self._quiet)
        if used.ready and self._has_arrived:  # the first may have been requeued by a client that has just ended
            raise _published_directly(self._queue)
        self._has_arrived = self._has_arrived or used.ready > 0
        self._visits += used.consumers > 0
        if self._visits > _VISITS:
            raise _visited(self._queue)
        if used != (0, 0) or not is_quorum:
            return used == (0, 0)
        return is_empty(self._connection, self._queue) and not _consumers(self._channel, self._queue)


def _first_use(connection: Connection, channel: Channel, queue: str, within: float) -> administration.Depth:
    """Return a queue's depth as soon as it has messages or consumers; (0, 0) if it has none in this time."""
    deadline = time.monotonic() + within
    while (found := administration.depth(channel, queue)) == (0, 0):
        _check_not_stopped(connection)
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK)
    return found


def _published_directly(queue: str) -> Unavailable:
    """The error for a queue that gets messages while its bindings are diverted.

    RabbitMQ routes messages to a queue that is being deleted, and confirms them when it is gone. So they are lost, even
    if they are mandatory.
    """
    go_on = pasteable("queue convert --resume", queue)
    return Unavailable(
        f"clients publish to {queue!r} through the default exchange: messages may be lost when it is replaced",
        f"stop these clients, then: {go_on}; or, to accept the loss, add --force",
    )


def _visited(queue: str) -> Unavailable:
    go_on = pasteable("queue convert --resume", queue)
    return Unavailable(
        f"clients keep subscribing to {queue!r}: their messages would be lost when it is replaced",
        f"stop these clients, then: {go_on}; or, to accept the loss, add --force",
    )


def _consumers(channel: Channel, queue: str) -> int:
    return administration.depth(channel, queue).consumers
