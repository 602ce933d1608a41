"""Declare, inspect, purge, delete, bind and unbind exchanges and queues; get one message."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

from pika import spec
from pika.channel import Channel as PikaChannel

from mqtool.errors import AccessRefused, DeclaredDifferently, Difference, MqtoolError, NotFound, UsageError
from mqtool.topology import Binding, Exchange, Queue

if TYPE_CHECKING:
    from pika.frame import Method

Reply = TypeVar("Reply")
#: A function that sends a method on a pika channel and registers a callback for the broker's reply.
Request = Callable[[PikaChannel, Callable[[Reply], None]], object]


class _AnyName(str):
    """A queue name that equals any other, since pika waits forever for a reply with an equal name.

    The reply bears another name if RabbitMQ's sharding plugin has replaced the exchange's name by that of a shard.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


@overload
def declare_request(thing: Queue, *, passive: bool = False) -> "Request[Method[spec.Queue.DeclareOk]]": ...
@overload
def declare_request(thing: Exchange | Queue, *, passive: bool = False) -> "Request[Method[Any]]": ...
def declare_request(thing: Exchange | Queue, *, passive: bool = False) -> "Request[Method[Any]]":
    """Build queue.declare or exchange.declare.

    Args:
        passive: only check that the exchange or queue exists.

    Raises:
        UsageError: the name has a line break, or it is not UTF-8 (the management API could no longer list it).
    """
    check_utf_8(thing.name)
    check_lines(thing.name)
    settings: dict[str, Any] = {"passive": passive, "durable": thing.durable, "auto_delete": thing.auto_delete}
    settings["arguments"] = dict(thing.arguments)
    if isinstance(thing, Queue):
        exclusive = thing.exclusive
        name = _AnyName(thing.name)
        return lambda pika, done: pika.queue_declare(name, callback=done, exclusive=exclusive, **settings)
    internal = thing.internal
    return lambda pika, done: pika.exchange_declare(
        thing.name, thing.type, internal=internal, callback=done, **settings
    )


def check_lines(*names: str) -> None:
    """Check names of queues and exchanges. RabbitMQ drops line breaks: it would use another queue or exchange.

    pika would wait forever for the reply to a declaration, since that has the other name.

    Raises:
        UsageError: a name contains a line break.
    """
    for name in names:
        if "\n" in name or "\r" in name:
            raise UsageError(f"the name {name!r} contains a line break", "names must be on one line")


def check_utf_8(name: str) -> None:
    """Check a name that a user has typed. Names that already exist on the broker may contain any bytes.

    Raises:
        UsageError: the name is not valid UTF-8.
    """
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise UsageError(f"the name {name!r} is not valid UTF-8", "only a message's body may be any bytes")


def binding_request(binding: Binding, *, verb: str = "bind") -> Request[object]:
    """Build queue.bind or exchange.bind; with verb="unbind", queue.unbind or exchange.unbind.

    Raises:
        UsageError: a name contains a line break.
    """
    check_lines(binding.source, binding.destination)
    what, *ends = ("exchange", "destination", "source") if binding.to_exchange else ("queue", "queue", "exchange")
    arguments = {
        **dict(zip(ends, (binding.destination, binding.source), strict=True)),
        "routing_key": binding.routing_key,
        "arguments": dict(binding.arguments),
    }
    return lambda pika, done: getattr(pika, f"{what}_{verb}")(**arguments, callback=done)


class Asks(Protocol):
    """A channel that can make requests."""

    def ask(self, request: Request[Reply], /, within: float | None = None) -> Reply: ...


@runtime_checkable
class LooksUp(Protocol):
    """A channel of another protocol, with its own requests for looking up queues."""

    def exists(self, queue: Queue, /) -> bool: ...
    def depth(self, queue: str, /, within: float | None = None) -> "Depth": ...
    def purge(self, queue: str, /) -> int: ...


class Depth(NamedTuple):
    """A queue's numbers of ready messages and consumers."""

    ready: int
    consumers: int


def depth(channel: Asks | LooksUp, queue: str, within: float | None = None) -> Depth:
    """Count a queue's ready messages and consumers.

    Args:
        within: the number of seconds to wait for the reply; None for no limit of its own.

    Raises:
        NotFound: the queue does not exist.
        MqtoolError: the broker has not replied in time.
    """
    if isinstance(channel, LooksUp):
        return channel.depth(queue, within)
    told = channel.ask(declare_request(Queue(queue), passive=True), within).method
    return Depth(int(told.message_count), int(told.consumer_count))


def queue_exists(channel: Asks | LooksUp, queue: Queue) -> bool:
    """True if the broker has a queue of this name."""
    return channel.exists(queue) if isinstance(channel, LooksUp) else exists(channel, queue)


def ready_after_deliveries(channel: Asks | LooksUp, queue: str) -> int:
    """Count a queue's ready messages. After 0, all messages that the queue delivered to this channel have arrived.

    A channel of RabbitMQ may reply to a request before it passes on deliveries that the queue sent it before. It passes
    them on before it replies to the next request.

    Raises:
        NotFound: the queue does not exist.
    """
    return depth(channel, queue).ready or depth(channel, queue).ready


def exists(channel: Asks, thing: Exchange | Queue) -> bool:
    """True if the broker has an exchange or a queue of this name."""
    try:
        expect(channel, thing)
    except NotFound:
        return False
    return True


def have_same_queues(one: Asks, other: Asks) -> bool | None:
    """True if two channels are on the same broker and virtual host, whatever their addresses; None if not known.

    Declares a queue on the first channel for a moment. Because it is exclusive, the other channel gets an error if it
    can see it.
    """
    try:
        name = one.ask(declare_request(Queue("", exclusive=True))).method.queue
    except MqtoolError:  # the user may not declare queues, or there are as many as the broker allows
        return None
    try:
        return exists(other, Queue(name))
    except DeclaredDifferently:
        return True
    except AccessRefused:
        return None
    finally:
        delete_queue(one, name)


def expect(channel: Asks, thing: Exchange | Queue) -> None:
    """Check that an exchange or a queue exists.

    Raises:
        NotFound: it does not exist.
    """
    channel.ask(declare_request(thing, passive=True))


def has_arguments(channel: Asks, queue: Queue) -> bool:
    """True if the broker itself uses these arguments of an existing queue. If it does not, the channel is closed.

    A client may declare a queue with two values of one argument: RabbitMQ checks the permission to use the first one,
    and uses it, but its management API shows the last one.

    The queue is declared again with a length limit that no queue can have. Of an existing queue, the broker compares
    the arguments with it in turn, so that it objects to the limit only if those before it are the same: those for
    expiry and dead letters. If somebody has just deleted the queue, nothing is declared.

    Raises:
        AccessRefused: the user may not configure the queue.
    """
    limit = "x-max-length"
    impossible = queue._replace(arguments={**queue.arguments, limit: "none"})
    try:
        channel.ask(declare_request(impossible))
    except DeclaredDifferently as error:
        return f"inequivalent arg '{limit}' for queue" in str(error)  # the rest is cut if the name is long
    except (NotFound, UsageError):  # such as "invalid arg 'x-max-length'", if the queue does not exist
        pass
    return False


def type_of_exchange(channel: Asks, name: str) -> str:
    """Return the type of an existing exchange, which the broker names in an error. The channel is then closed.

    The exchange is declared again, as one of another type and with an alternate exchange that no exchange can have. If
    somebody has just deleted it, nothing is declared.

    Raises:
        NotFound: it does not exist.
        AccessRefused: the user may not configure it.
    """
    guess = Exchange(name, arguments={"alternate-exchange": 0})
    expect(channel, guess)
    try:
        channel.ask(declare_request(guess))
    except DeclaredDifferently as error:
        differs = Difference.reported_in(str(error))
        if differs is not None and differs.setting == "type":
            return differs.theirs
    return guess.type


def delete_queue(channel: Asks, name: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
    """Delete a queue; return how many ready messages were in it. Safe to repeat.

    Raises:
        BadData: the queue has consumers and `if_unused` is set, or it has messages and `if_empty` is set.
    """

    def request(pika: PikaChannel, done: "Callable[[Method[spec.Queue.DeleteOk]], None]") -> None:
        pika.queue_delete(name, if_unused=if_unused, if_empty=if_empty, callback=done)

    return int(channel.ask(request).method.message_count)


def purge(channel: Asks | LooksUp, queue: str) -> int:
    """Remove a queue's ready messages; return how many there were.

    Raises:
        NotFound: the queue does not exist.
    """
    if isinstance(channel, LooksUp):
        return channel.purge(queue)

    def request(pika: PikaChannel, done: "Callable[[Method[spec.Queue.PurgeOk]], None]") -> None:
        pika.queue_purge(queue, callback=done)

    return int(channel.ask(request).method.message_count)


def delete_exchange(channel: Asks, name: str, *, if_unused: bool = False) -> None:
    """Delete an exchange. Safe to repeat.

    Raises:
        BadData: the exchange has bindings and `if_unused` is set.
        AccessRefused: the exchange is predeclared.
    """

    def request(pika: PikaChannel, done: Callable[[object], None]) -> None:
        pika.exchange_delete(name, if_unused=if_unused, callback=done)

    channel.ask(request)


def bind(channel: Asks, binding: Binding) -> None:
    """Bind a queue or an exchange to an exchange. Safe to repeat.

    Raises:
        NotFound: the source or the destination does not exist.
    """
    channel.ask(binding_request(binding))


def unbind(channel: Asks, binding: Binding) -> None:
    """Remove a binding, matched by key and arguments. Does nothing if there is no such binding."""
    channel.ask(binding_request(binding, verb="unbind"))


def prefetch_request(count: int) -> Request[object]:
    """Build basic.qos."""
    return lambda pika, done: pika.basic_qos(prefetch_count=count, callback=done)
