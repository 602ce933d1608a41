"""The management node: declare, bind and look up with requests over a pair of links, which resume after a reconnection.

A request is a message with a method and a path, and its response has a status, as in HTTP.
https://www.rabbitmq.com/client-libraries/amqp-client-libraries#topology-management
"""

import math
import threading
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, TypeVar

from mqtool.amqp.administration import Depth, declare_request
from mqtool.amqp.consumer import TEMPORARY_QUEUE_LOST
from mqtool.amqp.pika_errors import RESOURCE_LOCKED
from mqtool.amqp10.link_connection import LinkConnection, new_name
from mqtool.amqp10.refusals import ClosedByBroker, Lost
from mqtool.amqp10.reopening_transport import PATIENCE
from mqtool.codecs.amqp10_frames import SETTLED, Attach, Flow, Source, Target
from mqtool.codecs.amqp10_message import VALUE, Amqp10Message, BareProperties, sections, value_section
from mqtool.codecs.amqp10_values import Symbol
from mqtool.codecs.sections import exchange_address, queue_address
from mqtool.errors import NotFound, Unavailable
from mqtool.field_values import FieldValue
from mqtool.topology import Binding, Exchange, Queue

Thing = TypeVar("Thing", bound=Exchange | Queue)

_NODE = "/management"
_NAME = "mqtool-management"
#: The most responses that the broker may send: the one to the current request, and those to requests that timed out.
_CREDIT = 100


class _Half:
    """One link of the pair. After a reconnection, the next request attaches it again."""

    is_kept = False

    def __init__(self, pair: "ManagementLink", *, receives: bool) -> None:
        self.name, self.handle, self.is_attached = _NAME, 0, False
        self._receives = receives
        self._pair = pair
        self._parts: list[bytes] = []
        self.delivery_count = 0

    def is_for(self, role: bool) -> bool:
        return role is not self._receives

    def attach(self, handle: int) -> Attach:
        self.handle, self.is_attached = handle, False
        self._parts.clear()
        return Attach(
            _NAME,
            handle,
            self._receives,
            snd_settle_mode=SETTLED,
            source=Source(_NODE, expiry_policy="link-detach"),
            target=Target(_NODE),
            initial_delivery_count=None if self._receives else 0,
            properties={Symbol("paired"): True},
        )

    def attached(self, answer: Attach) -> bool:
        self.is_attached = answer.source is not None and answer.target is not None
        self.delivery_count = answer.initial_delivery_count or 0
        return self.is_attached

    def flow(self, flow: Flow) -> None:
        """Do nothing: requests are sent one at a time, and the broker's credit always allows for one."""

    def take(self, _delivery_id: int | None, payload: bytes, *, settled: bool, more: bool) -> None:  # noqa: ARG002
        self._parts.append(payload)
        if not more:
            self.delivery_count = (self.delivery_count + 1) & 0xFFFF_FFFF
            self._pair.answered(Amqp10Message.decode(b"".join(self._parts)))
            self._parts.clear()


class ManagementLink:
    """Makes requests, from any thread, one at a time."""

    def __init__(self, links: LinkConnection) -> None:
        self._links = links
        self._halves = (_Half(self, receives=False), _Half(self, receives=True))
        self._one = threading.RLock()
        self._numbers = count(1)
        self._waits_for = ""
        self._response: tuple[int, Any] | None = None  # its status and its body

    def request(self, method: str, path: str, body: Any = None, within: float | None = None) -> Any:
        """Make a request; return the body of the response.

        Args:
            within: the number of seconds to wait for the response; None for the default.

        Raises:
            Unavailable: the broker has not replied in time.
            ClosedByBroker: the broker refuses the request.
            Lost: the connection was lost before the response arrived.
        """
        with self._one:
            sender, receiver = self._halves
            epoch = self._links.epoch
            for half in self._halves:
                self._links.attach(half)
            number = f"{next(self._numbers)}"
            self._waits_for, self._response = number, None
            properties = BareProperties(message_id=number, to=path, subject=method, reply_to="$me")
            request = Amqp10Message(properties=properties, body=value_section(body))
            with self._links.changed:
                if self._links.epoch != epoch:  # a link may have been attached on a connection that is lost
                    raise Lost
                self._links.send_flow(receiver.handle, receiver.delivery_count, _CREDIT)
            self._links.send_request(sender.handle, request.encode(), epoch, within or math.inf)
            self._links.until(lambda: self._response is not None, epoch, within or PATIENCE)
            assert self._response is not None
            status, answer = self._response
            if not 200 <= status < 300:
                raise ClosedByBroker.from_response(status, answer)
            return answer

    def answered(self, response: Amqp10Message) -> None:
        """Process a response, on the I/O thread. Drops it if nobody is waiting for it any longer.

        Raises:
            ValueError, TypeError: it cannot be decoded.
        """
        if str(response.properties.correlation_id) == self._waits_for:
            status, found = int(response.properties.subject or 0), sections(response.body)
            self._response = status, found[0].value if found and found[0].descriptor == VALUE else None


def _count(answer: Any, name: str) -> int:
    """Return a count in a response."""
    if not isinstance(answer, dict) or not isinstance(count := answer.get(name), int):
        raise Unavailable(f"the broker's answer has no {name}")
    return int(count)


class ManagedTopology:
    """The queues, exchanges and bindings of a session.

    Args:
        strict: fail if a queue or exchange exists with other settings.
        notice: called with a sentence if an existing queue or exchange is used although its settings differ.
    """

    def __init__(self, links: LinkConnection, *, strict: bool, notice: Callable[[str], None]) -> None:
        self._links = links
        self._links.set_up = self._set_up_again
        self._management = ManagementLink(links)
        self._notice = notice
        self._strict = strict
        self._accepted: set[tuple[str, str]] = set()
        self._declared: dict[tuple[str, str], Queue | Exchange] = {}
        self._bound: list[Binding] = []

    def declare(self, thing: Thing, *, remember: bool = True, exactly: bool = False) -> Thing:
        """Declare an exchange or a queue; return it with its name. See amqp.Channel.declare().

        A queue without a name gets one here, since the broker does not choose names over AMQP 1.0.
        """
        declare_request(thing)  # to check the name
        if not (isinstance(thing, Queue) and thing.exclusive):
            thing = _named(thing)
        # If the request is repeated after a loss, the broker may still have an exclusive queue of the lost connection.
        declared: Thing = self._links.retrying(lambda: self._declare(_named(thing), exactly=exactly))
        if remember:
            self._declared[_kind_and_name(declared)] = declared
        return declared

    def _declare(self, thing: Thing, *, exactly: bool = False) -> Thing:
        settings = {"durable": thing.durable, "auto_delete": thing.auto_delete, "arguments": dict(thing.arguments)}
        if isinstance(thing, Queue):
            path, settings["exclusive"] = queue_address(thing.name), thing.exclusive
        else:
            path = exchange_address(thing.name)
            settings |= {"type": thing.type, "internal": thing.internal}
        try:
            self._management.request("PUT", path, settings)
        except ClosedByBroker as refusal:
            if not refusal.is_harmless_difference or self._strict or exactly:
                raise
            if _kind_and_name(thing) not in self._accepted:
                self.accept_settings(thing)
                self._notice(str(refusal))
        return thing

    def accept_settings(self, thing: Queue | Exchange) -> None:
        """Accept any settings of an existing queue or exchange: declare() uses it as it is, without a notice."""
        self._accepted.add(_kind_and_name(thing))

    def bind(
        self,
        to: Queue | Exchange,
        exchange: Exchange,
        routing_key: str = "",
        arguments: Mapping[str, FieldValue] | None = None,
        *,
        remember: bool = True,
    ) -> None:
        """Bind a queue or an exchange to an exchange. Raises NotFound if one of them does not exist."""
        binding = Binding(exchange.name, to.name, routing_key, arguments or {}, to_exchange=isinstance(to, Exchange))
        self._links.retrying(lambda: self._bind(binding))
        if remember:
            self._bound.append(binding)

    def _bind(self, binding: Binding) -> None:
        kind = "destination_exchange" if binding.to_exchange else "destination_queue"
        body = {"source": binding.source, kind: binding.destination, "binding_key": binding.routing_key}
        self._management.request("POST", "/bindings", body | {"arguments": dict(binding.arguments)})

    def _set_up_again(self) -> str | None:
        for thing in tuple(self._declared.values()):
            try:
                self._declare(thing)
            except ClosedByBroker as refusal:
                if refusal.reply_code != RESOURCE_LOCKED or not (isinstance(thing, Queue) and thing.exclusive):
                    raise
                # The broker may notice the loss later than mqtool does, so another attempt to reconnect can succeed.
                kept = f"the broker still has queue {thing.name!r} of the lost connection"
                raise Unavailable(kept) from refusal
        for binding in tuple(self._bound):
            self._bind(binding)
        is_temporary = any(isinstance(thing, Queue) and thing.exclusive for thing in self._declared.values())
        return TEMPORARY_QUEUE_LOST if is_temporary else None

    def depth(self, queue: str, within: float | None = None) -> Depth:
        """Count a queue's ready messages and consumers; see administration.depth()."""
        told = self._links.retrying(lambda: self._management.request("GET", queue_address(queue), within=within))
        return Depth(_count(told, "message_count"), _count(told, "consumer_count"))

    def depth_of(self, queue: str) -> int:
        """The number of ready messages in a queue. Raises NotFound if it does not exist."""
        return self.depth(queue).ready

    def exists(self, queue: Queue) -> bool:
        """True if the broker has a queue of this name."""
        declare_request(queue)  # to check the name
        try:
            self.depth(queue.name)
        except NotFound:
            return False
        return True

    def purge(self, queue: str) -> int:
        """Remove a queue's ready messages; return how many there were."""
        told = self._links.retrying(lambda: self._management.request("DELETE", f"{queue_address(queue)}/messages"))
        return _count(told, "message_count")


def _named(thing: Thing) -> Thing:
    """Give a queue without a name a new one."""
    if thing.name or not isinstance(thing, Queue):
        return thing
    return thing._replace(name=new_name().replace("mqtool-", "mqtool.gen-"))


def _kind_and_name(thing: Queue | Exchange) -> tuple[str, str]:
    return type(thing).__name__, thing.name
