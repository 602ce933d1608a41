"""`queue convert` gives a queue another type and keeps its name, bindings and messages, even if mqtool is killed."""

import contextlib
import dataclasses
import json
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pika
import pytest
from pika import spec
from pika.frame import Method

from mqtool.amqp import Channel, Connection, Receiving, administration, parse_addresses
from mqtool.amqp.consumer import Consumer
from mqtool.broker.choice import BrokerKind
from mqtool.cli.commands import queue_convert as convert_command
from mqtool.codecs.field_tables import CLIENT, ByteArray, Float32, Int8, Int32, Int64
from mqtool.drills.scene import Proxy
from mqtool.errors import BadData, MqtoolError, NotConfirmed, NotFound, Unavailable
from mqtool.management import Management
from mqtool.message import Confirmation, Delivery, Message, Undecoded
from mqtool.testing import EmbeddedBroker
from mqtool.topology import Binding, Exchange, Queue
from mqtool.work import conversion_plan, exact_bindings, held_messages, mover, queue_conversion
from mqtool.work.conversion_plan import Refusal
from mqtool.work.exact_bindings import ExactBindings
from mqtool.work.held_messages import has_leader, is_empty
from mqtool.work.queue_conversion import Conversion, ConversionTally, Stopped, inexact_binding
from tests.brokers import Restartable, TestBroker, depth, large, on_any_broker, own_broker
from tests.cli.shell import Result, Shell, wait_until
from tests.cli.test_move import taken
from tests.proxy import Tampering
from tests.unit.test_queue_limits import not_counted

COUNT = 20


class Killer(Proxy):
    """A proxy that cuts all connections instead of forwarding the n-th frame of a client.

    Attributes:
        dropped: methods that it does not forward.
    """

    def __init__(self, target_port: int, at: int | None) -> None:
        super().__init__(target_port)
        self.seen = 0
        self.at = at
        self.dropped: tuple[bytes, ...] = ()
        self.has_cut = False

    def count(self) -> None:
        """Count a frame or a request to the API; raise ConnectionError if the client is dead."""
        self.seen += 1
        if self.has_cut or self.seen == self.at:
            self.has_cut = True
            self.cut()
            raise ConnectionError

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            is_from_client = target.getpeername()[1] == self.target[1]
        except OSError:  # cut
            return
        if is_from_client:
            self._forward_frames(source, target)
        else:
            super()._forward(source, target)

    def _forward_frames(self, source: socket.socket, target: socket.socket) -> None:
        data, is_first = b"", True
        try:
            while more := source.recv(65536):
                data += more
                while len(data) >= 8:
                    size = (
                        8 if is_first else 8 + struct.unpack_from("!L", data, 3)[0]
                    )  # the protocol header comes first
                    if len(data) < size:
                        break
                    self.count()
                    if not data[:size].startswith(self.dropped, 7):
                        target.sendall(data[:size])
                    data, is_first = data[size:], False
        except OSError:
            return


class Api(Management):
    """The management API of a client that may be dead."""

    def __init__(self, broker: TestBroker, killer: Killer) -> None:
        super().__init__(broker.management, "guest", "guest")
        self._killer = killer

    def _open(self, *arguments: Any, **options: Any) -> Any:
        try:
            self._killer.count()
        except ConnectionError as error:
            raise Unavailable("killed") from error
        return super()._open(*arguments, **options)


def convert(
    broker: TestBroker,
    kill_at: int | None = None,
    *,
    undo: bool = False,
    to: str = "quorum",
    at_once: int = 3,
    quiet: float = 0.0,
) -> ConversionTally | None:
    """Begin or continue the conversion of `jobs`; None if it was killed at the n-th frame or request."""
    if kill_at is None:
        api = Management(broker.management, "guest", "guest")
        with Connection(parse_addresses(broker.url)) as connection:
            return run(connection, api, broker.vhost, undo=undo, to=to, at_once=at_once, quiet=quiet)
    with Killer(broker.port, kill_at) as killer:
        api = Api(broker, killer)
        address = parse_addresses(broker.url)[0]._replace(host="127.0.0.1", port=killer.port)
        try:
            with Connection([address]) as connection:
                return run(connection, api, broker.vhost, undo=undo, to=to, at_once=at_once, quiet=quiet)
        except MqtoolError:
            if not killer.has_cut:
                raise
            return None


def kill_conversion(broker: TestBroker, frame: int, *, undo: bool = False) -> None:
    """Kill a conversion of `jobs`, or its undo, at a frame or request; fail if it had ended, or has left nothing."""
    assert convert(broker, frame, undo=undo) is None, f"it ended before frame {frame}"
    assert definitions(broker)[0] != {"jobs"}, f"it was killed at frame {frame}, but has nothing left to do"


def run(
    connection: Connection, api: Management, vhost: str, *, undo: bool, to: str, at_once: int, quiet: float = 0.0
) -> ConversionTally:
    plan = next(iter(conversion_plan.unfinished(api, vhost).plans.values()), None)
    is_new = plan is None
    if plan is None:
        found = conversion_plan.prospect(api, vhost, "jobs", to, {}, not_counted)
        if found.plan.source == found.plan.target:
            return ConversionTally()  # it was killed after its last request
        plan = dataclasses.replace(found.plan, at_once=at_once)
    conversion = Conversion(connection, api, vhost, plan, user="guest", young=0.0, quiet=quiet)
    conversion.begin() if is_new else conversion.lock()
    for _ in conversion.run(undo=undo):
        pass
    return conversion.tally


def messages(count: int = COUNT) -> list[Message]:
    """Return messages of every kind; those with even numbers go through an exchange, the others by the queue's name."""
    found = []
    for number in range(count):
        properties: dict[str, Any] = {"delivery_mode": 2 - (number % 3 == 0)}
        if number % 4:
            properties["headers"] = {"n": number, "deep": {"list": [1, "two", None]}, "mqtool-convert": {"forged": 1}}
        if number % 5 == 0:
            properties |= {"expiration": "3600000", "priority": 4, "reply_to": "me", "content_type": "text/plain"}
        exchange, key = ("logs", f"kern.{number}") if number % 2 == 0 else ("", "jobs")
        identity = f"m-{number}" if number % 3 else None
        found.append(Message(str(number).encode(), key, exchange, properties, identity))
    return found


BINDINGS = [("logs", "kern.#", {}), ("logs", "*.critical", {}), ("files", "", {"x-match": "all", "format": "pdf"})]


def fill(broker: TestBroker, kind: str = "classic", count: int = COUNT, **more: Any) -> None:
    """Declare `jobs`, with more arguments, bound to two exchanges, with messages in it."""
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        arguments = {name.replace("_", "-"): value for name, value in more.items()}
        arguments |= {"x-queue-type": kind} if kind != "classic" else {}
        channel.declare(Queue("jobs", durable=True, arguments=arguments))
        channel.declare(Exchange("logs", "topic", durable=True))
        channel.declare(Exchange("files", "headers", durable=True))
        for exchange, key, matched in BINDINGS:
            channel.bind(Queue("jobs"), Exchange(exchange), key, matched)
        assert len(list(channel.publish(messages(count)))) == count


def definitions(broker: TestBroker) -> tuple[set[str], set[str], list[Any]]:
    """The queues, exchanges and bindings of the vhost."""
    told: Any = broker.api("GET", f"definitions/{quote(broker.vhost, safe='')}")
    bindings = [
        (each["source"], each["destination"], each["routing_key"], each["arguments"]) for each in told["bindings"]
    ]
    return (
        {each["name"] for each in told["queues"]},
        {each["name"] for each in told["exchanges"]},
        sorted(bindings, key=json.dumps),
    )


def kind_of(broker: TestBroker) -> str:
    view: Any = broker.api("GET", f"queues/{quote(broker.vhost, safe='')}/jobs")
    return str(view["type"])


def taken_once(broker: TestBroker, expected: int, doubled: int) -> list[Delivery]:
    """Empty `jobs`, and return its messages without up to `doubled` copies that a killed conversion has left."""
    found = taken(broker, "jobs", expected)
    once = list({(each.routing_key, each.body): each for each in found}.values())
    assert len(found) - len(once) <= doubled
    return once


def check_all_is_there(broker: TestBroker, count: int = COUNT, *, doubled: int = 0) -> None:
    """Assert that all messages are there, in order and as published, and that the bindings are as before.

    Args:
        doubled: the most messages that may be there twice: a batch for each kill.
    """
    found = taken_once(broker, count, doubled)
    assert [int(delivery.body) for delivery in found] == list(range(count))
    for delivery, message in zip(found, messages(count), strict=True):
        assert delivery.message_id == message.message_id
        assert delivery.routing_key == message.routing_key
        assert as_published(delivery) == message.properties
        assert delivery.exchange == "" or message.exchange
    queues, exchanges, bindings = definitions(broker)
    assert queues == {"jobs"}
    left = ("amq.", "jobs.mqtool-convert.back", "jobs.mqtool-convert.trial.")  # a kill can leave ours: they do no harm
    assert {name for name in exchanges if not name.startswith(left)} <= {"logs", "files"}
    expected = [(source, "jobs", key, matched) for source, key, matched in BINDINGS]
    back = ("jobs.mqtool-convert.back", "jobs", "", {})
    assert [each for each in bindings if each != back] == sorted(expected, key=json.dumps)


def as_published(delivery: Delivery) -> dict[str, Any]:
    kept = {name: value for name, value in delivery.properties.items() if value is not None and name != "message_id"}
    headers = {name: value for name, value in delivery.headers.items() if not name.startswith("x-")}
    kept.pop("headers", None)
    return kept | ({"headers": headers} if headers else {})


@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic"), ("classic", "stream")])
@pytest.mark.sampled(2)
def test_queue_convert_keeps_the_messages_and_their_order(broker: TestBroker, before: str, after: str) -> None:
    """`queue convert` changes a queue's type from classic to quorum, from quorum to classic, or from classic to stream,
    and moves all messages. In a converted classic or quorum queue, the messages are in the original order, and have the
    same properties and headers as before.
    """
    fill(broker, before)
    tally = convert(broker, to=after)
    assert tally is not None
    assert (tally.held, tally.returned, tally.meanwhile, tally.deleted) == (COUNT, COUNT, 0, 0)
    assert tally.absence is not None
    assert kind_of(broker) == after
    if after != "stream":
        check_all_is_there(broker)


def bind(broker: TestBroker, *keys: str, to: str = "jobs", **arguments: Any) -> None:
    """Bind `jobs` or an exchange to the exchange `files`, with routing keys and arguments."""
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        for key in keys:
            administration.bind(channel, Binding("files", to, key, arguments, to_exchange=to != "jobs"))


def bind_unknown(broker: TestBroker, count: int, to: str = "jobs") -> None:
    """Bind `jobs` or an exchange with the keys 0, 1, 2 …, and arguments whose types cannot be found out."""
    for number in range(count):
        bind(broker, str(number), to=to, value=Decimal("3.14"), number=number, text="a")


def keys_of_bindings(broker: TestBroker) -> list[str]:
    """The properties_keys of the bindings of `jobs`. Each contains a hash of the types and values of the binding's
    arguments.
    """
    views: Any = broker.api("GET", f"queues/{quote(broker.vhost, safe='')}/jobs/bindings")
    return sorted(each["properties_key"] for each in views)


def interrupt_at_unbinding(broker: TestBroker, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Convert `jobs`, but stop just before the n-th binding is removed."""
    unbind, left = administration.unbind, [None] * (count - 1)

    def interrupted(channel: administration.Asks, binding: Binding) -> None:
        if not left:
            raise Unavailable("interrupted")
        left.pop()
        unbind(channel, binding)

    with monkeypatch.context() as now:
        now.setattr(administration, "unbind", interrupted)
        with pytest.raises(Unavailable, match="interrupted"):
            convert(broker)


#: Arguments of bindings whose types the management API does not show, but which are found out.
ARGUMENTS: dict[str, Any] = {
    "void": None,
    "undefined": "undefined",
    "described bytes": "Not UTF-8, base64 is: /wA=",
    "described badly": "Not UTF-8, base64 is: ###",
    "described in letters": "Not UTF-8, base64 is: é",
    "int": Int32(5),
    "long": Int64(5),
    "double": 0.5,
    "bool": True,
    "list": [None, {"deep": [Int64(1), "text"]}],
}

#: Arguments whose types are not found out.
UNUSUAL: dict[str, Any] = {
    "bytes": ByteArray(b"\xff\x00"),
    "string that is not UTF-8": "\udcff",
    "text as bytes": ByteArray(b"undefined"),
    "time": datetime(2026, 1, 2, tzinfo=UTC),
    "byte": Int8(5),
    "float": Float32(0.5),
    "decimal": Decimal("3.14"),
    "int and long": [Int32(5), Int64(5)],
}


@pytest.mark.parametrize("undo", [False, True], ids=["completed", "undone"])
def test_queue_convert_keeps_the_types_of_binding_arguments(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, undo: bool
) -> None:
    """`queue convert` keeps the types of binding arguments, even if the conversion is interrupted and then completed or
    undone. This includes what the management API does not show, such as the type void, or whether an integer has 32 or
    64 bits.
    """
    fill(broker)
    for name, value in ARGUMENTS.items():
        bind(broker, name, **{"x-match": "all", "value": value})
    bind(broker, "small and large", one=Int32(1), two=Int64(5_000_000_000))
    bind(broker, "longs", **{name: Int64(number) for number, name in enumerate("abcd")})
    before = keys_of_bindings(broker)
    interrupt_at_unbinding(broker, monkeypatch, 9)
    assert len(keys_of_bindings(broker)) < len(before), "it had not moved a binding"
    assert convert(broker, undo=undo) is not None
    assert keys_of_bindings(broker) == before


@pytest.mark.parametrize("value", UNUSUAL.values(), ids=UNUSUAL)
def test_a_queue_with_a_binding_argument_of_an_unusual_type_is_not_converted(broker: TestBroker, value: Any) -> None:
    """If a binding has an argument of a type that the management API does not show and few clients send, such as bytes,
    a timestamp, a decimal number or an 8-bit integer, `queue convert` cannot make the same binding again. The command
    names the binding, and changes nothing.
    """
    fill(broker)
    bind(broker, "unusual", value=value)
    before = definitions(broker), keys_of_bindings(broker)
    with pytest.raises(Unavailable, match=r"'jobs' cannot be converted: its binding from 'files' \('unusual', "):
        convert(broker)
    assert (definitions(broker), keys_of_bindings(broker)) == before


@pytest.mark.parametrize("undo", [False, True], ids=["completed", "undone"])
def test_queue_convert_keeps_bindings_with_routing_keys_that_consist_of_dots(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, undo: bool
) -> None:
    """`queue convert` keeps bindings with the routing keys `.` and `..`, which a URL of the management API cannot
    contain, even if it is interrupted and then completed or undone.
    """
    fill(broker)
    for key in (".", ".."):
        bind(broker, key)
    before = keys_of_bindings(broker)
    interrupt_at_unbinding(broker, monkeypatch, 4)
    assert convert(broker, undo=undo) is not None
    assert keys_of_bindings(broker) == before


def test_a_queue_with_a_binding_that_cannot_be_kept_is_not_converted(managed: Shell, broker: TestBroker) -> None:
    """If mqtool cannot find out the types of a binding's arguments, `queue convert` cannot make the same binding
    again. With either --dry-run or --yes, the command then names the binding, says how to remove it, exits with 2,
    and changes nothing.
    """
    fill(broker)
    bind(broker, "a key", value=[Decimal("3.14")])
    before = definitions(broker), keys_of_bindings(broker)
    for confirmed in ("--dry-run", "--yes"):
        refused = managed.run("mqtool", "queue", "convert", "jobs", "--force", confirmed)
        assert (refused.code, "its binding from 'files' ('a key', {\"value\": [" in refused.stderr) == (2, True)
        assert "(unbind it with the client that bound it, or on the management page" in refused.stderr
        assert (definitions(broker), keys_of_bindings(broker)) == before
    with pytest.raises(Unavailable, match="'jobs' cannot be converted: its binding from 'files'"):
        convert(broker)
    assert (definitions(broker), keys_of_bindings(broker)) == before


def test_a_binding_that_cannot_be_made_again_does_not_stop_an_undo(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If, during a conversion, another client binds the queue with arguments that are too large, or whose types
    mqtool cannot determine, mqtool cannot make this binding again. `queue convert --undo` therefore leaves the
    binding on the queue. It restores the queue's other bindings.
    """
    fill(broker)
    before = keys_of_bindings(broker)
    interrupt_at_unbinding(broker, monkeypatch, 2)
    bind(broker, "late", value=[Decimal("3.14")])
    bind(broker, "large", value="x" * 20_000)
    assert convert(broker, undo=True) is not None
    keys = keys_of_bindings(broker)
    assert set(before) < set(keys)
    assert {key.partition("~")[0] for key in set(keys) - set(before)} == {"late", "large"}


def test_queue_convert_changes_nothing_if_the_management_api_does_not_show_new_bindings(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`queue convert` finds out the types of a binding's arguments with trial bindings. If the management API does not
    show new bindings within a few seconds, the command says so and changes nothing. The hint is to try again later.
    """
    fill(broker)
    bind(broker, "a key", value=5)
    before = definitions(broker), keys_of_bindings(broker)
    items = Management.items
    monkeypatch.setattr(exact_bindings, "_PATIENCE", 0.1)
    monkeypatch.setattr(Management, "items", lambda api, where: [] if ".trial" in where else items(api, where))
    said = "the management API does not show new bindings"
    with pytest.raises(Unavailable, match=said):
        convert(broker)
    assert refusal_for_bindings(broker) == Refusal(said, "try again later")
    assert (definitions(broker), keys_of_bindings(broker)) == before


def refusal_for_bindings(broker: TestBroker) -> Refusal | None:
    """Why the plan of a conversion of `jobs` refuses its bindings."""
    api = Management(broker.management, "guest", "guest")
    found = conversion_plan.prospect(api, broker.vhost, "jobs", "quorum", {}, not_counted)
    with Connection(parse_addresses(broker.url)) as connection:
        return inexact_binding(connection, api, broker.vhost, found)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Binding]:
    """The bindings that mqtool makes only to find out the types of arguments."""
    bind, found = administration.bind, list[Binding]()

    def noted(channel: administration.Asks, binding: Binding) -> None:
        if ".trial." in binding.destination:
            found.append(binding)
        bind(channel, binding)

    monkeypatch.setattr(administration, "bind", noted)
    return found


@pytest.mark.parametrize("undo", [False, True], ids=["completed", "undone"])
def test_another_clients_binding_to_the_temporary_exchange_does_not_stop_a_conversion(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, undo: bool
) -> None:
    """`queue convert` uses a temporary exchange. If another client binds this exchange to a different exchange during
    the conversion, and mqtool cannot determine the types of the binding's arguments, the conversion can still be
    completed or undone. The command then deletes this binding, and prints a notice about it.
    """
    fill(broker)
    bind(broker, "a key", value=5)
    before = keys_of_bindings(broker)
    interrupt_at_unbinding(broker, monkeypatch, 4)
    bind(broker, "foreign", to="jobs.mqtool-convert.through", value=[Decimal("3.14")])
    said: list[str] = []
    api = Management(broker.management, "guest", "guest")
    with Connection(parse_addresses(broker.url), notice=said.append) as connection:
        run(connection, api, broker.vhost, undo=undo, to="quorum", at_once=3)
    assert keys_of_bindings(broker) == before
    [notice] = [each for each in said if "another client's binding from 'files' ('foreign', " in each]
    assert "to 'jobs.mqtool-convert.through' cannot be moved to 'jobs', and is deleted" in notice


def test_queue_convert_refuses_a_queue_as_soon_as_one_binding_cannot_be_kept(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, trials: list[Binding]
) -> None:
    """`queue convert` finds out the types of bindings' arguments with trial bindings. Once it knows that one binding
    cannot be made again, it refuses to convert the queue, names this binding, and makes no trial bindings for the
    others.
    """
    fill(broker)
    bind_unknown(broker, 5)
    monkeypatch.setattr(exact_bindings, "_AT_ONCE", 1)
    refusal = refusal_for_bindings(broker)
    assert refusal is not None
    assert "its binding from 'files' (" in refusal.what
    assert len(trials) < 4, "it tries one of these in two ways, and a usual one before it in one"


def test_queue_convert_tries_only_once_to_find_out_the_types_of_a_bindings_arguments(
    broker: TestBroker, trials: list[Binding]
) -> None:
    """`queue convert` makes trial bindings to find out the types of a binding's arguments. If this fails, it makes no
    further trial bindings when it looks at the same binding again.
    """
    fill(broker)
    bind_unknown(broker, 2)
    api = Management(broker.management, "guest", "guest")
    views = conversion_plan.bindings_of(api, broker.vhost, "jobs")
    with Connection(parse_addresses(broker.url)) as connection:
        bindings = ExactBindings(connection.channel(), api, broker.vhost, "jobs")
        assert sorted(view["routing_key"] for view, exact in bindings.of(views) if exact is None) == ["0", "1"]
        tried = len(trials)
        assert sorted(view["routing_key"] for view, exact in bindings.of(views) if exact is None) == ["0", "1"]
    assert (tried > 0, len(trials)) == (True, tried)


def test_many_bindings_with_arguments_of_unknown_types_do_not_stop_an_undo(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, trials: list[Binding]
) -> None:
    """If, during a conversion, another client adds many bindings with arguments whose types mqtool cannot determine,
    `queue convert --undo` still restores the bindings that the queue had before. It keeps the other client's bindings
    of the queue, and deletes those of the conversion's temporary exchange. For each different set of arguments, it
    makes at most two trial bindings.
    """
    fill(broker)
    before = keys_of_bindings(broker)
    interrupt_at_unbinding(broker, monkeypatch, 2)
    bind_unknown(broker, 20)
    bind_unknown(broker, 20, to="jobs.mqtool-convert.through")
    monkeypatch.setattr(exact_bindings, "_AT_ONCE", 7)
    trials.clear()
    assert convert(broker, undo=True) is not None
    assert len(trials) <= 2 * 20 + 1  # those of `through` have the same arguments; one of the others has arguments, too
    keys = keys_of_bindings(broker)
    assert set(before) < set(keys)
    assert len(keys) == len(before) + 20


def test_queue_convert_can_be_stopped_while_it_makes_trial_bindings(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find out the types of bindings' arguments, `queue convert` makes trial bindings between a temporary exchange
    and a temporary queue. If the conversion's stop() method is called while it does so, as on Ctrl-C or SIGTERM, `queue
    convert` makes no further trial binding, and deletes the temporary exchange and queue with all trial bindings.
    """
    fill(broker)
    bind_unknown(broker, 5)
    before = definitions(broker), keys_of_bindings(broker)
    api = Management(broker.management, "guest", "guest")
    plan = conversion_plan.prospect(api, broker.vhost, "jobs", "quorum", {}, not_counted).plan
    bind_now, made = administration.bind, list[Binding]()
    with Connection(parse_addresses(broker.url)) as connection:
        conversion = Conversion(connection, api, broker.vhost, plan, user="guest")

        def stopping(channel: administration.Asks, binding: Binding) -> None:
            made.append(binding)
            bind_now(channel, binding)
            conversion.stop()

        monkeypatch.setattr(administration, "bind", stopping)
        with pytest.raises(Stopped):
            conversion.begin()
    assert len(made) == 1
    wait_until(lambda: (definitions(broker), keys_of_bindings(broker)) == before, lambda: definitions(broker))


@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic")])
@pytest.mark.usefixtures("trusting")
def test_a_queue_with_a_single_active_consumer_is_converted(broker: TestBroker, before: str, after: str) -> None:
    """`queue convert` converts a queue with x-single-active-consumer from classic to quorum or from quorum to classic,
    and keeps all messages in order, although RabbitMQ refuses basic.get for such a quorum queue.
    """
    fill(broker, before, x_single_active_consumer=True)
    assert convert(broker, to=after) is not None
    assert kind_of(broker) == after
    check_all_is_there(broker)


def test_queue_convert_consumes_to_see_if_a_quorum_queue_with_a_single_active_consumer_is_empty(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ refuses basic.get for a quorum queue with a single active consumer. To find out whether such a queue is
    empty, `queue convert` therefore consumes from it, and requeues a message that it receives, so that the queue keeps
    its order. If RabbitMQ reports that the queue has neither messages nor consumers, this report is out of date,
    because the command itself is a consumer. The command then asks again.
    """
    fill(broker, "quorum", 0, x_single_active_consumer=True)
    answers = [administration.Depth(0, 0)] * 3
    depth = administration.depth
    monkeypatch.setattr(administration, "depth", lambda *queue: answers.pop() if answers else depth(*queue))
    with Connection(parse_addresses(broker.url)) as connection:
        assert has_leader(connection, "jobs", 15.0)
        assert is_empty(connection, "jobs")
        assert answers == []
        assert len(list(connection.channel().publish(messages(2)))) == 2
        answers.append(administration.Depth(0, 0))
        assert not is_empty(connection, "jobs")
        monkeypatch.setattr(held_messages, "_LEADER", 0.0)
        monkeypatch.setattr(administration, "depth", lambda *_: administration.Depth(0, 0))
        with pytest.raises(NotConfirmed, match="quorum queue 'jobs' does not answer"):
            is_empty(connection, "jobs")
    monkeypatch.undo()
    found = taken(broker, "jobs", 2)
    assert [(each.body, each.times_requeued) for each in found] == [(b"0", 2), (b"1", 0)]


@pytest.mark.parametrize(
    ("before", "after", "warned"),
    [("quorum", "classic", True), ("classic", "quorum", False)],
    ids=["quorum to classic", "classic to quorum"],
)
def test_the_plan_of_a_conversion_says_which_messages_a_restart_will_lose(
    broker: TestBroker, before: str, after: str, warned: bool
) -> None:
    """The plan of `queue convert` from quorum to classic warns that a restart of the broker will lose messages that are
    not persistent, and names the command that shows these messages. The plan from classic to quorum has no such
    warning.
    """
    fill(broker, before, 1)
    api = Management(broker.management, "guest", "guest")
    remarks = conversion_plan.prospect(api, broker.vhost, "jobs", after, {}, not_counted).remarks
    said = [remark for remark in remarks if "loses its messages that are not persistent" in remark]
    assert bool(said) is warned
    assert all("mqtool peek jobs --where 'not delivery_mode=2'" in remark for remark in said)


@pytest.mark.own_vhost("policies stay in it")
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("quorum", "classic", "no longer applies: classic queues do not have delivery-limit"),
        ("classic", "quorum", 'now applies: {"delivery-limit": 9, "expires": 3600000}'),
    ],
)
def test_the_plan_of_a_conversion_says_which_policies_will_or_will_not_apply(
    broker: TestBroker, before: str, after: str, said: str
) -> None:
    """A policy does not apply to a queue whose type does not support all settings of the policy. The plan of `queue
    convert` therefore says which policy will no longer apply to the queue, and why, and which policy will start to
    apply.
    """
    fill(broker, before, 1)
    definition = {"delivery-limit": 9, "expires": 3_600_000}
    policy = {"pattern": "^jobs$", "definition": definition}
    broker.api("PUT", f"policies/{quote(broker.vhost, safe='')}/limits", policy)
    api = Management(broker.management, "guest", "guest")
    remarks = conversion_plan.prospect(api, broker.vhost, "jobs", after, {}, not_counted).remarks
    assert f"policy 'limits' {said}" in remarks


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for RabbitMQ's count of unacknowledged messages: it takes seconds in each run."""
    monkeypatch.setattr(queue_conversion, "check_acknowledged", lambda *_, **__: None)


@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic")])
@pytest.mark.usefixtures("trusting")
@large
def test_queue_convert_loses_nothing_however_often_it_is_killed(broker: TestBroker, before: str, after: str) -> None:
    """`queue convert` is killed repeatedly, each time one AMQP frame or management request later than before, and then
    resumed, until it completes. No message and no binding is lost.
    """
    fill(broker, before)
    kill_at = 1
    while convert(broker, kill_at, to=after) is None:
        kill_at += 1
    assert kind_of(broker) == after
    check_all_is_there(broker, doubled=3 * kill_at)


@pytest.mark.usefixtures("trusting")
@large
def test_queue_convert_loses_no_batch_however_often_it_is_killed(broker: TestBroker) -> None:
    """`queue convert`, which moves messages in batches, is killed repeatedly, each time 11 AMQP frames or management
    requests later than before, and then resumed, until it completes. None of the queue's 300 messages is lost.
    """
    count = 300
    fill(broker, count=count)
    kill_at = 1
    while convert(broker, kill_at, at_once=50) is None:
        kill_at += 11
    check_all_is_there(broker, count, doubled=50 * kill_at)


@pytest.mark.parametrize("kill_at", range(50, 270, 40), ids="killed at frame {}".format)
@pytest.mark.sampled(2)
def test_a_conversion_that_was_killed_is_completed_by_the_next_run(broker: TestBroker, kill_at: int) -> None:
    """If `queue convert` is killed, a second run completes the conversion, and no message is lost."""
    fill(broker)
    kill_conversion(broker, kill_at)
    assert convert(broker) is not None
    assert kind_of(broker) == "quorum"
    check_all_is_there(broker, doubled=3)


def test_undoing_a_conversion_restores_messages_that_were_moved_out_of_its_holding_queue(
    managed: Shell, broker: TestBroker
) -> None:
    """If `queue convert` is killed while all messages are in its holding queue, and `move` then moves them back to
    the queue that was to be converted, `queue convert --undo` restores every message as it was published.
    """
    fill(broker)
    api = Management(broker.management, "guest", "guest")
    found = conversion_plan.prospect(api, broker.vhost, "jobs", "quorum", {}, not_counted)
    with Connection(parse_addresses(broker.url)) as connection:
        conversion = Conversion(connection, api, broker.vhost, found.plan, user="guest", young=0.0, quiet=0.0)
        conversion.begin()
        steps, moved_out = conversion.run(), 0
        while moved_out < COUNT:
            moved_out += next(steps)
    wait_until(lambda: depth(broker, "jobs.mqtool-convert") == COUNT, "the messages in the holding queue")

    moved = managed.run("mqtool", "move", "jobs.mqtool-convert", "--to", "jobs", "--yes")
    assert moved.code == 0, moved.stderr
    assert convert(broker, undo=True) is not None

    check_all_is_there(broker)


def test_the_progress_bar_of_queue_convert_is_not_full_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar of `queue convert` stays below 100% until the end, even if messages are published during the
    conversion.
    """
    shown = list[float]()

    class Bar:
        def __init__(self, _done: str, fraction: Callable[[], float]) -> None:
            self.show = lambda _count: shown.append(fraction())
            self.stop = lambda: None

    monkeypatch.setattr(convert_command, "Progress", Bar)
    convert_command.advance(iter([25, 50, 25, 30]), expected=100)
    assert shown == [0.25, 0.75, 0.99, 0.99]


@on_any_broker
def test_queue_convert_stops_if_the_holding_queue_has_no_leader(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`queue convert` moves messages to a holding queue. If this queue does not answer basic.get because it has no
    leader, the command moves no message. The hint is to delete the holding queue and to run `queue convert` again.
    """
    fill(broker)
    monkeypatch.setattr(held_messages, "_LEADER", 0.3)
    with Killer(broker.port, None) as killer:
        killer.dropped = (struct.pack(">HH", 60, 70),)
        address = parse_addresses(broker.url)[0]._replace(host="127.0.0.1", port=killer.port)
        api = Management(broker.management, "guest", "guest")
        with Connection([address]) as connection, pytest.raises(Unavailable, match="has no leader") as raised:
            run(connection, api, broker.vhost, undo=False, to="quorum", at_once=3)
    assert "mqtool queue delete jobs.mqtool-convert, then mqtool queue convert jobs" in str(raised.value.hint)
    with Connection(parse_addresses(broker.url)) as connection:
        assert connection.channel().depth_of("jobs") == COUNT


@on_any_broker
def test_a_queue_with_an_unacknowledged_message_is_not_converted(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a message of the queue is unacknowledged, `queue convert` fails with an error that says how many messages
    are unacknowledged. Once the client that received the message has disconnected, a later run converts the queue with
    all its messages.
    """
    fill(broker)
    monkeypatch.setattr(held_messages, "_PATIENCE", 0.0)
    with Connection(parse_addresses(broker.url)) as client:
        client.channel().get("jobs")
        with pytest.raises(Unavailable, match="1 message of 'jobs' is unacknowledged"):
            convert(broker)
    assert convert(broker) is not None
    assert sorted(int(delivery.body) for delivery in taken(broker, "jobs", COUNT)) == list(range(COUNT))


def test_ctrl_c_ends_a_resumed_conversion_that_waits_for_acknowledgements(managed: Shell, broker: TestBroker) -> None:
    """`queue convert --resume` continues a conversion that was killed. While a message of the queue is
    unacknowledged, the command says that it is waiting. Ctrl-C then ends it with exit code 130. The queue keeps its
    old type, and the command prints how to continue.
    """
    fill(broker)
    api = Management(broker.management, "guest", "guest")
    plan = conversion_plan.prospect(api, broker.vhost, "jobs", "quorum", {}, not_counted).plan
    with Connection(parse_addresses(broker.url)) as killed:
        Conversion(killed, api, broker.vhost, plan, user="guest").begin()
    with Connection(parse_addresses(broker.url)) as client:
        client.channel().get("jobs")
        converting = managed.start("mqtool", "queue", "convert", "jobs", "--resume", "--yes")
        waiting = "waiting until the broker reports that no messages of 'jobs' are unacknowledged"
        stopped = converting.wait_for_stderr(waiting).interrupt().wait()
    assert stopped.code == 130
    assert "stopped; to continue: mqtool queue convert --resume jobs\n" in stopped.stderr
    assert kind_of(broker) == "classic"


@pytest.mark.parametrize("kill_at", range(50, 270, 40), ids="killed at frame {}".format)
@pytest.mark.parametrize("what", ["consume exclusively", "get", "set a policy"])
@pytest.mark.sampled(2)
def test_a_killed_conversion_can_be_completed_after_a_client_has_used_the_queue(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, kill_at: int, what: str
) -> None:
    """If `queue convert` is killed, and another client then reads from the queue or sets a policy for it, a later run
    of `queue convert` completes the conversion once this client has disconnected. No message is lost.
    """
    fill(broker)
    monkeypatch.setattr(held_messages, "_PATIENCE", 0.0)
    definition = {"max-length": 1000, "message-ttl": 3_600_000, "dead-letter-exchange": "amq.fanout"}
    policy = {"pattern": "^jobs$", "definition": definition, "apply-to": "queues"}
    if what == "set a policy":
        broker.api("PUT", f"policies/{quote(broker.vhost, safe='')}/before", policy)
    kill_conversion(broker, kill_at)
    client = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = client.channel()
    with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):  # the queue is being replaced
        if what == "consume exclusively":
            channel.basic_consume("jobs", lambda *_: None, exclusive=True)
        elif what == "get":
            channel.basic_get("jobs")
        else:
            broker.api("PUT", f"policies/{quote(broker.vhost, safe='')}/later", {**policy, "priority": 1})
    client.process_data_events(0)
    with contextlib.suppress(MqtoolError), monkeypatch.context() as impatient:
        impatient.setattr(queue_conversion, "_PATIENCE", 1.0)  # the client stays
        convert(broker)
    client.close()
    convert(broker)
    assert kind_of(broker) == "quorum"
    assert sorted(int(delivery.body) for delivery in taken_once(broker, COUNT, 6)) == list(range(COUNT))
    assert definitions(broker)[0] == {"jobs"}
    for name in ("before", "later") if what == "set a policy" else ():
        broker.api("DELETE", f"policies/{quote(broker.vhost, safe='')}/{name}")


def test_a_queue_with_an_exclusive_consumer_is_not_converted(managed: Shell, broker: TestBroker) -> None:
    """If a queue has an exclusive consumer, `queue convert` exits with 2 and changes nothing, even with --force."""
    fill(broker)
    client = pika.BlockingConnection(pika.URLParameters(broker.url))
    client.channel().basic_consume("jobs", lambda *_: None, exclusive=True)
    path = f"queues/{quote(broker.vhost, safe='')}/jobs"
    wait_until(lambda: broker.api("GET", path)["consumer_details"], "the consumer to be shown")  # type: ignore[index]
    refused = managed.run("mqtool", "queue", "convert", "jobs", "--yes", "--force")
    assert (refused.code, "is exclusive: nobody else can consume the messages (stop it)" in refused.stderr) == (2, True)
    taken_away = managed.run("mqtool", "receive", "-q", "jobs", "-c", "1")
    assert (taken_away.code, "a consumer is exclusive, and nobody else can consume" in taken_away.stderr) == (77, True)
    client.close()
    assert definitions(broker)[0] == {"jobs"}
    check_all_is_there(broker)


def test_a_queue_can_be_converted_back_if_the_conversion_was_killed_before_its_last_request(broker: TestBroker) -> None:
    """The last request of `queue convert` deletes a temporary exchange. If a conversion from classic to quorum was
    killed before this request, the exchange is left behind. The queue can still be converted back to classic, and keeps
    all its messages.
    """
    fill(broker)
    assert convert(broker) is not None
    names = conversion_plan.ConversionNames.of("jobs")
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(Exchange(names.back, "fanout", durable=True, arguments={"alternate-exchange": names.into}))
        channel.bind(Queue("jobs"), Exchange(names.back))
    assert convert(broker, to="classic") is not None
    assert kind_of(broker) == "classic"
    check_all_is_there(broker)


@pytest.mark.parametrize("kill_at", [50, 90, 150], ids="killed at frame {}".format)
@pytest.mark.sampled(1)
def test_a_killed_conversion_can_be_undone(broker: TestBroker, kill_at: int) -> None:
    """If `queue convert` is killed before it has replaced the queue, `queue convert --undo` restores the queue with its
    type, messages and bindings, even if the undo is also killed and run again.
    """
    fill(broker)
    kill_conversion(broker, kill_at)
    assert kind_of(broker) == "classic", "the queue has been replaced"
    kill_conversion(broker, 100, undo=True)
    assert convert(broker, undo=True) is not None
    assert kind_of(broker) == "classic"
    check_all_is_there(broker, doubled=6)


def test_messages_published_during_a_conversion_arrive_once(broker: TestBroker) -> None:
    """If a client publishes messages during `queue convert` to an exchange to which the queue is bound, each message
    arrives in the queue once, and none is returned as unroutable.
    """
    fill(broker, count=COUNT)
    stop, published = threading.Event(), COUNT

    def publish() -> None:
        nonlocal published
        with Connection(parse_addresses(broker.url)) as connection:
            channel = connection.channel()
            while not stop.wait(0.002):
                message = Message(str(published).encode(), "kern.later", "logs", {"headers": {"mqtool-convert": {}}})
                (receipt,) = channel.publish([message], mandatory=True)
                assert receipt.confirmation == "confirmed"
                published += 1

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        tally = convert(broker, at_once=100)
    finally:
        stop.set()
        publisher.join()
    assert tally is not None
    numbers = [int(delivery.body) for delivery in taken(broker, "jobs", published)]
    assert sorted(numbers) == list(range(published))
    assert tally.overtaken or numbers == sorted(numbers)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_messages_published_while_a_mover_empties_a_queue_are_moved_in_order(broker: TestBroker, kind: str) -> None:
    """`queue convert` moves messages with its class Mover, which this test uses on its own. If clients publish to a
    queue half as fast as the Mover moves the queue's messages, each message is moved once and in order. When at most 50
    messages are left, the Mover calls a function that stops clients' messages from reaching the queue, and then moves
    the rest.
    """
    published = 300

    def bodies(count: int) -> Iterator[Message]:
        yield from (Message(str(number).encode(), "jobs", "") for number in range(published, published + count))

    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(Queue("jobs", durable=True, arguments={"x-queue-type": kind}))
        channel.declare(Queue("held", durable=True, arguments={"x-queue-type": "quorum"}))
        assert len(list(channel.publish(Message(str(number).encode(), "jobs", "") for number in range(300)))) == 300
        moving = connection.channel()
        moving_to_held = mover.Mover(moving, "jobs", 100, lambda each: Message(each.body, "held", ""))
        sizes, sizes_until_stopped = list[int](), list[int]()
        for size in moving_to_held.batches(lambda: sizes_until_stopped.extend(sizes)):
            sizes.append(size)
            if not sizes_until_stopped:
                published += len(list(channel.publish(bodies(size // 2))))
        assert sum(sizes) == published
        assert published - sum(sizes_until_stopped) <= 50
    assert [int(delivery.body) for delivery in taken(broker, "held", published)] == list(range(published))


@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic")])
@pytest.mark.sampled(1)
def test_a_conversion_counts_the_messages_that_later_ones_may_have_overtaken(
    broker: TestBroker, before: str, after: str
) -> None:
    """Messages that are published during `queue convert` may overtake earlier ones. The command counts the earlier
    messages that may have been overtaken. This count is never lower than the number of messages that really were
    overtaken. If the command moves batches of 100 messages, and clients publish half as many in the same time, the
    count is at most 50.
    """
    fill(broker, before, count := 300)
    api = Management(broker.management, "guest", "guest")
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        plan = conversion_plan.prospect(api, broker.vhost, "jobs", after, {}, not_counted).plan
        plan = dataclasses.replace(plan, at_once=100)
        with Connection(parse_addresses(broker.url)) as converting:
            conversion = Conversion(converting, api, broker.vhost, plan, user="guest", young=0.0, quiet=0.0)
            conversion.begin()
            for size in conversion.run():
                later = [Message(str(count + number).encode(), "kern.x", "logs") for number in range(size // 2)]
                count += len(list(channel.publish(later, mandatory=True)))
    numbers = [int(delivery.body) for delivery in taken(broker, "jobs", count)]
    assert sorted(numbers) == list(range(count))
    behind = sum(number < newest for number, newest in zip(numbers, accumulate(numbers, max), strict=True))
    assert behind <= conversion.tally.overtaken <= 50


def test_a_conversion_deletes_no_messages_of_a_quorum_queue_that_is_slow_to_answer(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`queue convert` holds newly published messages in a temporary quorum queue. If this queue is slow to answer,
    RabbitMQ reports that it is empty although it has messages. The command then stops instead of deleting the queue,
    and the conversion can be resumed without losing a message.
    """
    fill(broker, "quorum")
    depth = administration.depth

    def depth_of_a_slow_queue(channel: Any, queue: str) -> administration.Depth:
        return administration.Depth(0, 0) if queue.endswith(".meanwhile") else depth(channel, queue)

    monkeypatch.setattr(administration, "depth", depth_of_a_slow_queue)
    api = Management(broker.management, "guest", "guest")
    with Connection(parse_addresses(broker.url)) as connection, Connection(parse_addresses(broker.url)) as converting:
        plan = conversion_plan.prospect(api, broker.vhost, "jobs", "classic", {}, not_counted).plan
        conversion = Conversion(converting, api, broker.vhost, plan, user="guest", young=0.0, quiet=0.0)
        conversion.begin()

        def run_and_publish() -> None:
            published = COUNT
            for _ in conversion.run():
                if conversion.tally.returned and published == COUNT:
                    later = Message(str(published).encode(), "kern.x", "logs")
                    published += len(list(connection.channel().publish([later], mandatory=True)))

        with pytest.raises(Unavailable, match=r"'jobs\.mqtool-convert\.meanwhile' still has messages"):
            run_and_publish()
    monkeypatch.undo()
    assert convert(broker) is not None
    bodies = [int(delivery.body) for delivery in taken(broker, "jobs", COUNT + 1)]
    assert bodies == list(range(COUNT + 1))


@pytest.mark.parametrize("by_policy", [True, False], ids=["policy", "argument"])
@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic")])
@pytest.mark.sampled(2)
def test_messages_that_do_not_fit_in_the_converted_queue_are_kept(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, before: str, after: str, by_policy: bool
) -> None:
    """If a queue has a maximum length and the overflow behaviour `reject-publish`, clients can publish more messages
    during `queue convert` than the converted queue has room for. The command then stops with an error, but no
    confirmed message is lost. Once enough messages have been consumed, the conversion can be resumed and completed.
    """
    monkeypatch.setattr(mover, "_STALLED", 0.3)
    limits = {"max-length": COUNT + 5, "overflow": "reject-publish"}
    arguments = {} if by_policy else {f"x-{name}": value for name, value in limits.items()}
    api = Management(broker.management, "guest", "guest")
    if by_policy:
        definition = {"pattern": "^jobs$", "definition": limits, "apply-to": "queues"}
        broker.api("PUT", f"policies/{quote(broker.vhost, safe='')}/limits", definition)
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        jobs = channel.declare(Queue("jobs", durable=True, arguments={"x-queue-type": before, **arguments}))
        logs = channel.declare(Exchange("logs", "topic", durable=True))
        channel.bind(jobs, logs, "kern.#")
        bodies = {str(number).encode() for number in range(3 * COUNT)}
        unsent = [Message(body, "kern.x", "logs") for body in sorted(bodies)]
        receipts = list(channel.publish(unsent[:COUNT]))
        plan = conversion_plan.prospect(api, broker.vhost, "jobs", after, {}, not_counted).plan
        with Connection(parse_addresses(broker.url)) as converting:
            conversion = Conversion(converting, api, broker.vhost, plan, user="guest", young=0.0, quiet=0.0)
            conversion.begin()

            def run_and_publish() -> None:
                for _ in conversion.run():
                    receipts.extend(channel.publish(unsent[len(receipts) :]))

            with pytest.raises(Unavailable, match="'jobs' is full"):
                run_and_publish()
        assert [receipt.confirmation for receipt in receipts] == [Confirmation.CONFIRMED] * len(bodies)
    assert kind_of(broker) == after

    consumed = {delivery.body for delivery in taken(broker, "jobs", COUNT + 5)}
    with pytest.raises(Unavailable, match="'jobs' is full"):
        convert(broker)
    consumed |= {delivery.body for delivery in taken(broker, "jobs", COUNT + 5)}
    assert convert(broker) is not None
    assert consumed | {delivery.body for delivery in taken(broker, "jobs", COUNT - 10)} == bodies


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_mover_loses_no_messages_if_the_converted_queue_fills_up_during_a_batch(
    broker: TestBroker, kind: str
) -> None:
    """`queue convert` moves messages in batches from a holding queue to the converted queue. It does so with its class
    Mover, which this test uses on its own. If publishers fill a converted queue with the overflow behaviour
    `reject-publish` just before a batch, the rejected messages stay in the holding queue. The Mover moves them once
    there is room.
    """
    arguments = {"x-queue-type": kind, "x-max-length": 10, "x-overflow": "reject-publish"}
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        held = channel.declare(Queue("held", durable=True))
        jobs = channel.declare(Queue("jobs", durable=True, arguments=arguments))
        bodies = [b"%d" % number for number in range(10)]
        assert len(list(channel.publish([Message(body, held.name) for body in bodies]))) == 10
        received = list[bytes]()

        def room_of_a_popular_queue() -> int:
            while (delivery := channel.get(jobs.name)) is not None:
                channel.acknowledge(delivery)
                received.append(delivery.body)
            wait_until(lambda: channel.depth_of(jobs.name) == 0, "an empty queue")
            if len(received) < 30:  # quorum queues accept a few more than the limit
                list(channel.publish([Message(b"live", jobs.name) for _ in range(20)]))
            return 10

        moving = connection.channel()
        back = mover.Mover(
            moving, held.name, 5, lambda each: Message(each.body, jobs.name, ""), room_of_a_popular_queue
        )
        assert sum(back.batches()) == 10
        moving.close()
    received += [delivery.body for delivery in taken(broker, jobs.name)]
    assert sorted(body for body in received if body != b"live") == bodies
    assert depth(broker, held.name) == 0


def test_a_mover_moves_messages_that_arrive_after_the_queue_is_reported_as_empty(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ may report a queue as empty before it has sent the last deliveries to a consumer. The class Mover,
    with which `queue convert` moves messages, waits for these deliveries, and so moves all messages.
    """
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        for queue in ("from", "to"):
            channel.declare(Queue(queue, durable=True))
        assert len(list(channel.publish([Message(b"%d" % number, "from") for number in range(8)]))) == 8
        requests, arrives, ready = list[str](), Consumer.arrives, administration.depth

        def counted(channel: Channel, queue: str) -> administration.Depth:
            requests.append(queue)
            return ready(channel, queue)

        monkeypatch.setattr(administration, "depth", counted)
        monkeypatch.setattr(Consumer, "arrives", lambda self, within: len(requests) > 1 and arrives(self, within))
        assert sum(mover.Mover(channel, "from", 5, lambda each: Message(each.body, "to", "")).batches()) == 8


@pytest.mark.parametrize("both", [False, True], ids=["one holding queue", "both holding queues"])
def test_messages_keep_their_routing_keys_if_the_queues_of_a_conversion_are_deleted(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    """`queue convert` declares two queues to hold messages. If a user deletes one or both of these queues before any
    message is moved, the conversion stops, and a later run completes it. All messages keep their routing keys, and none
    is copied to a queue that a CC or BCC header names.
    """
    fill(broker, count=0)
    copied = {"headers": {"CC": ["victim"], "BCC": ["victim"], "mqtool-exchange": "forged"}, "priority": 3}
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(Queue("victim", durable=True))
        sent = [Message(b"%d" % number, "kern.x", "logs", copied) for number in range(10)]
        assert len(list(channel.publish(sent))) == 10
    names = conversion_plan.ConversionNames.of("jobs")
    checked = Conversion._check_leader

    def delete_then_check(conversion: Conversion, queue: str, then: str) -> None:
        checked(conversion, queue, then)
        if queue == names.meanwhile:  # the last of the preparations
            for each in (names.held, names.meanwhile)[: 1 + both]:
                administration.delete_queue(conversion._channel, each)

    monkeypatch.setattr(Conversion, "_check_leader", delete_then_check)
    with pytest.raises(MqtoolError, match="was deleted" if not both else "no queue took messages"):
        convert(broker)
    monkeypatch.undo()
    assert depth(broker, "victim") == 0
    diverted = 0 if both else depth(broker, names.meanwhile)  # the broker itself has put a batch there
    assert both or 1 <= diverted <= 3

    api = Management(broker.management, "guest", "guest")
    plan = queue_conversion.left_behind(api, broker.vhost, "jobs")
    assert plan is not None
    with Connection(parse_addresses(broker.url)) as connection:
        conversion = Conversion(connection, api, broker.vhost, plan, user="guest", young=0.0, quiet=0.0)
        conversion.begin()
        assert sum(conversion.run()) == diverted
    if both:
        assert convert(broker) is not None
    found = taken(broker, "jobs", 10)
    assert sorted(int(delivery.body) for delivery in found) == list(range(10))
    assert {delivery.routing_key for delivery in found} == {"kern.x"}
    assert all(delivery.headers["CC"] == ["victim"] and delivery.properties["priority"] == 3 for delivery in found)
    assert all("mqtool-convert" not in delivery.headers for delivery in found)
    assert depth(broker, "victim") == 0


def test_messages_go_back_to_the_holding_queue_if_the_converted_queue_is_deleted(
    broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`queue convert` moves messages to a holding queue and then to the converted queue. If the converted queue is
    deleted during the second move, each message is in the holding queue exactly once afterwards. When the conversion is
    resumed, all messages are moved to the converted queue.
    """
    fill(broker)
    api = Management(broker.management, "guest", "guest")
    plan = dataclasses.replace(
        conversion_plan.prospect(api, broker.vhost, "jobs", "quorum", {}, not_counted).plan, at_once=COUNT
    )
    with Connection(parse_addresses(broker.url)) as connection, Connection(parse_addresses(broker.url)) as other:
        conversion = Conversion(connection, api, broker.vhost, plan, user="guest", young=0.0, quiet=0.0)
        returned = conversion.messages.returned

        def delete_then_return(delivery: Delivery) -> Message:
            administration.delete_queue(other.channel(), "jobs")
            return returned(delivery)

        monkeypatch.setattr(conversion.messages, "returned", delete_then_return)
        conversion.begin()
        # RabbitMQ returns only messages for the default exchange; the first batch may have none.
        with pytest.raises((NotConfirmed, NotFound), match=r"no queue took messages from|'jobs' was deleted"):
            list(conversion.run())
    assert depth(broker, "jobs.mqtool-convert") == COUNT
    assert convert(broker) is not None
    found = taken(broker, "jobs", COUNT)
    assert sorted(int(delivery.body) for delivery in found) == list(range(COUNT))
    assert {int(each.body): each.routing_key for each in found} == {
        int(message.body): message.routing_key for message in messages()
    }


class DirectPublisher:
    """Publishes to `jobs` by its name, mandatory, with confirms, until the context ends.

    Attributes:
        confirmed: the bodies of the messages that were confirmed and not returned.
    """

    def __init__(self, broker: TestBroker) -> None:
        self.confirmed: list[int] = []
        self._broker = broker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._publish)

    def __enter__(self) -> "DirectPublisher":
        self._thread.start()
        wait_until(lambda: self.confirmed, "a confirm")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _publish(self) -> None:
        def source() -> Iterator[Message]:
            number = COUNT
            while not self._stop.wait(0.002):
                yield Message(str(number).encode(), "jobs", "")
                number += 1

        with Connection(parse_addresses(self._broker.url)) as connection:
            for receipt in connection.channel().publish(source(), mandatory=True):
                if receipt.confirmation is Confirmation.CONFIRMED:
                    self.confirmed.append(int(receipt.message.body))


@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic")])
@pytest.mark.sampled(1)
def test_a_queue_is_not_replaced_while_clients_publish_to_it_by_its_name(
    broker: TestBroker, before: str, after: str
) -> None:
    """While clients publish to a queue through the default exchange, `queue convert` stops before it replaces the
    queue. Once the clients have stopped publishing, the conversion can be resumed, and no message is lost.
    """
    fill(broker, before)
    with DirectPublisher(broker) as publisher:
        with pytest.raises(Unavailable, match="clients publish to 'jobs' through the default exchange"):
            convert(broker, to=after, at_once=100, quiet=3.0)
        assert kind_of(broker) == before
    convert(broker, to=after, at_once=100, quiet=3.0)
    assert kind_of(broker) == after
    expected = {*range(COUNT), *publisher.confirmed}
    numbers = [int(delivery.body) for delivery in taken(broker, "jobs", len(expected))]
    assert (set(numbers), len(numbers)) == (expected, len(expected))


@on_any_broker
def test_queue_convert_refuses_a_queue_that_still_holds_dead_letters(shell: Shell, broker: TestBroker) -> None:
    """A quorum queue with at-least-once dead-lettering holds dead letters whose target is missing. They would be lost
    with the queue, so `queue convert` exits with 2 and says how many there are; --force does not help.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    strategy = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    target = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "missing"}
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("jobs", durable=True, arguments={"x-queue-type": "quorum", **strategy, **target})
        channel.confirm_delivery()
        channel.basic_publish("", "jobs", b"dead")
        method, _, _ = channel.basic_get("jobs")
        channel.basic_reject(method.delivery_tag, requeue=False)
    plan = ("mqtool", "queue", "convert", "jobs", "--to", "classic")
    refused = Result(b"", "", 0)

    def is_refused() -> bool:
        nonlocal refused
        refused = shell.run(*plan, "--dry-run")
        return "1 dead letter that it still holds would be lost" in refused.stderr

    wait_until(is_refused, "the refusal")
    assert refused.code == 2
    assert shell.run(*plan, "--force", "--yes").code == 2


@large
def test_queue_convert_dry_run_refuses_a_queue_to_which_clients_publish_by_its_name(
    shell: Shell, broker: TestBroker
) -> None:
    """If mqtool finds that clients publish to the queue through the default exchange, `queue convert --dry-run` exits
    with 2 unless --force is given. For a queue that has other bindings, mqtool can find this out only on a broker with
    rates_mode = detailed. With another rates_mode, the plan says that mqtool cannot know in advance whether there are
    such clients.
    """
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    plan = ("mqtool", "queue", "convert", "jobs", "--dry-run")
    with Connection(parse_addresses(broker.url)) as connection:
        connection.channel().declare(Queue("jobs", durable=True, arguments={"x-queue-type": "classic"}))
    with DirectPublisher(broker):
        refused = Result(b"", "", 0)

        def is_refused() -> bool:
            nonlocal refused
            refused = shell.run(*plan)
            return "published to it through the default exchange" in refused.stderr

        wait_until(is_refused, "the refusal")
        assert refused.code == 2
        assert shell.run(*plan, "--force").code == 0
        with Connection(parse_addresses(broker.url)) as connection:
            connection.channel().bind(Queue("jobs"), Exchange("amq.topic"), "kern.#")
        if Management(broker.management, "guest", "guest").get("overview")["rates_mode"] == "detailed":
            expected = 2, "published to it through the default exchange"
        else:
            expected = 0, "cannot be known in advance"
        bound = None

        def is_planned() -> bool:  # the rate comes from statistics, which pause on a busy RabbitMQ
            nonlocal bound
            bound = shell.run(*plan)
            return bound.code == expected[0] and expected[1] in bound.stderr

        wait_until(is_planned, lambda: f"{expected}, not {bound}")


@pytest.fixture
def managed(shell: Shell, broker: TestBroker) -> Shell:
    """A shell that knows the management API."""
    shell.environment["MQTOOL_MANAGEMENT_URL"] = broker.management
    return shell


@on_any_broker
@large
def test_queue_convert_converts_several_queues_and_changes_arguments(managed: Shell, broker: TestBroker) -> None:
    """`queue convert --where` converts each matching queue, and keeps its messages in order. If one of the queues
    cannot be converted, for example because it is auto-delete, the command converts the others and exits with 3. The
    option `-a NAME:=VALUE` sets an argument of a converted queue, and `-a NAME:=null` removes one.
    """

    def convert_queues(*words: str, code: int = 0) -> str:
        result = managed.run("mqtool", "queue", "convert", *words)
        assert result.code == code, result.stderr
        return result.stderr

    def view(name: str) -> tuple[str, dict[str, Any]]:
        told: Any = broker.api("GET", f"queues/{broker.vhost}/{name}")
        return told["type"], {key: value for key, value in told["arguments"].items() if key != "x-queue-type"}

    for name in ("jobs", "mails"):
        managed.run("mqtool", "queue", "declare", name, "--queue-type", "classic")
        managed.run("mqtool", "send", "-q", name, "-l", "--no-declare", stdin="1\n2\n3\n")
    managed.run("mqtool", "queue", "declare", "brief", "--queue-type", "classic", "--auto-delete")
    chosen = ("--where", "type = classic and durable")
    # The messages were published just now, so the API may show a rate.
    planned = convert_queues(*chosen, "--dry-run", "--force", code=3)
    assert "nothing was changed: --dry-run" in planned
    assert "'brief' cannot be converted: it is auto-delete" in planned
    assert ("jobs: classic -> quorum" in planned, "brief: classic" in planned) == (True, False)
    assert [view(name)[0] for name in ("jobs", "mails", "brief")] == ["classic"] * 3
    convert_queues(*chosen, "--yes", "--force", code=3)
    assert [view(name)[0] for name in ("jobs", "mails", "brief")] == ["quorum", "quorum", "classic"]
    convert_queues("jobs", "-a", "x-delivery-limit:=50", "-a", "x-max-length:=9", "--yes", "--force")
    assert view("jobs") == ("quorum", {"x-delivery-limit": 50, "x-max-length": 9})
    convert_queues("jobs", "-a", "x-delivery-limit:=null", "--yes", "--force")
    assert view("jobs") == ("quorum", {"x-max-length": 9})
    for name in ("jobs", "mails"):
        assert [delivery.body for delivery in taken(broker, name, 3)] == [b"1", b"2", b"3"]


@on_any_broker
@large
def test_queues_that_cannot_be_converted_are_named_before_any_change(managed: Shell, broker: TestBroker) -> None:
    """If none of the given queues can be converted, `queue convert` names them with the reasons, prints no plan, exits
    with 2, and changes nothing. If a given queue does not exist, the command exits with 69 and suggests a similar name.
    """
    for name, words in (
        ("done", ("--queue-type", "quorum")),
        ("old", ("--queue-type", "classic", "--argument", "x-max-priority:=5")),
        ("log", ("--queue-type", "stream")),
        ("used", ("--queue-type", "classic")),
        ("held", ("--queue-type", "classic")),
        ("short", ("--queue-type", "classic")),
        ("lazy", ("--queue-type", "classic")),
    ):
        assert managed.run("mqtool", "queue", "declare", name, *words).code == 0
    managed.run("mqtool", "send", "-q", "held", "--no-declare", "x")
    limit = ("--pattern", "^short", "--definition", '{"max-length": 5}')
    assert managed.run("mqtool", "policy", "set", "limits", *limit).code == 0
    lazy = ("--pattern", "^lazy", "--definition", '{"max-length": 5, "queue-mode": "lazy"}')
    assert managed.run("mqtool", "policy", "set", "lazy", *lazy).code == 0
    before = definitions(broker)
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(Queue("mine", exclusive=True))
        channel.consumer(Queue("used"))
        assert channel.get("held") is not None
        for name, to, said in (
            ("done", "quorum", "it is a quorum queue with these arguments already (name another type with --to"),
            ("old", "quorum", "it has x-max-priority: quorum queues do not have this argument, and treat priorities"),
            ("log", "classic", "it is a stream: its messages stay when they are read"),
            ("used", "quorum", "1 consumer would be cancelled"),
            ("held", "quorum", "unacknowledged, and would be lost (wait until"),
            ("short", "quorum", "policy 'limits' (max-length) would apply to 'short.mqtool-convert'"),
            ("lazy", "quorum", "policy 'lazy' (max-length) would apply to 'lazy.mqtool-convert.meanwhile'"),
            ("mine", "quorum", "it is exclusive, and will be deleted when its connection closes"),
        ):
            refused = managed.run("mqtool", "queue", "convert", name, "--to", to, "--yes")
            assert (refused.code, said in refused.stderr) == (2, True), refused.stderr
            assert "nothing was changed" in refused.stderr
            assert "bindings" not in refused.stderr
        both = managed.run("mqtool", "queue", "convert", "done", "used", "--to", "quorum", "--yes")
        assert (both.code, "bindings" in both.stderr) == (2, False), both.stderr
        assert "'done' cannot be converted: it is a quorum queue with these arguments already" in both.stderr
        assert "'used' cannot be converted: 1 consumer would be cancelled" in both.stderr
    refused = managed.run("mqtool", "queue", "convert", "old", "--to", "classic", "-a", "x-max-length=abc", "--yes")
    assert (refused.code, "invalid arg 'x-max-length' for queue 'old'" in refused.stderr) == (2, True), refused.stderr
    assert "(see --to and --argument)\n" in refused.stderr
    misspelt = managed.run("mqtool", "queue", "convert", "shrot")
    assert (misspelt.code, "did you mean 'short'?" in misspelt.stderr) == (69, True), misspelt.stderr
    assert definitions(broker) == before
    left_out = ("-a", "x-max-priority:=null", "--dry-run")
    assert managed.run("mqtool", "queue", "convert", "old", "--to", "quorum", *left_out).code == 0


@on_any_broker
def test_a_queue_with_a_long_name_and_a_dead_letter_exchange_can_be_converted(
    managed: Shell, broker: TestBroker
) -> None:
    """To verify the arguments of a queue with a dead-letter exchange, `queue convert` reads an error message of the
    broker. The broker truncates this message if the queue's name is long (in this test, 200 bytes). `queue convert
    --dry-run` still accepts the queue.
    """
    name = "q" * 200
    declared = ("mqtool", "queue", "declare", name, "--queue-type", "classic", "-a", "x-dead-letter-exchange=amq.topic")
    assert managed.run(*declared).code == 0
    planned = managed.run("mqtool", "queue", "convert", name, "--dry-run")
    assert (planned.code, "nothing was changed: --dry-run" in planned.stderr) == (0, True), planned.stderr


@on_any_broker
def test_queue_convert_reports_a_missing_permission_for_a_queue_with_a_dead_letter_exchange(
    managed: Shell, broker: TestBroker
) -> None:
    """If a user lacks the configure permission for a queue that has a dead-letter exchange, `queue convert --dry-run`
    says that access to this queue was refused, and exits with 2.
    """
    fill(broker, x_dead_letter_exchange="amq.topic")
    user = f"u{uuid.uuid4().hex}"
    broker.api("PUT", f"users/{user}", {"password": "secret", "tags": "monitoring"})
    try:
        rights = {"configure": r"^jobs\.", "write": ".*", "read": ".*"}
        broker.api("PUT", f"permissions/{quote(broker.vhost, safe='')}/{user}", rights)
        address = broker.url.replace("guest:guest@", f"{user}:secret@")
        planned = managed.run("mqtool", "queue", "convert", "jobs", "--dry-run", "-u", address)
    finally:
        broker.api("DELETE", f"users/{user}")
    assert planned.code == 2, planned.stderr
    assert "access to queue 'jobs'" in planned.stderr
    assert "declared twice" not in planned.stderr


def test_queue_convert_dry_run_needs_only_the_management_api(managed: Shell, broker: TestBroker) -> None:
    """`queue convert --dry-run` prints its plan even if mqtool can reach only the management API and not the AMQP port.
    The plan is also printed if an earlier run was killed and left behind the trial queue with which it had checked the
    queue's new arguments.
    """
    managed.run("mqtool", "queue", "declare", "jobs", "--queue-type", "classic")
    managed.run("mqtool", "queue", "declare", "jobs.mqtool-convert.trial", "--queue-type", "classic")
    plan = ("mqtool", "queue", "convert", "jobs", "--dry-run")
    nowhere = ("--url", f"amqp://127.0.0.1:1/{broker.vhost}", "--management", broker.management)
    for words in ((), nowhere):
        planned = managed.run(*plan, *words)
        assert (planned.code, "jobs: classic" in planned.stderr) == (0, True), planned.stderr


@pytest.mark.parametrize(
    ("to", "argument", "said"),
    [
        ("quorum", "x-max-priority:=5", "invalid arg 'x-max-priority' for queue 'jobs'"),
        ("quorum", "x-max-length=abc", "invalid arg 'x-max-length' for queue 'jobs'"),
        ("stream", "x-max-age=7Q", "invalid arg 'x-max-age' for queue 'jobs'"),
        ("classic", "x-delivery-limit:=3", "invalid arg 'x-delivery-limit' for queue 'jobs'"),
        ("quorum", "x-delivery-limit:=3", ""),
        ("stream", "x-max-age=7D", ""),
        ("classic", "x-max-priority:=5", ""),
    ],
)
@pytest.mark.sampled(3)
def test_queue_convert_dry_run_names_an_argument_that_the_broker_would_refuse(
    managed: Shell, broker: TestBroker, to: str, argument: str, said: str
) -> None:
    """If the broker would not accept an argument for the new queue type, `queue convert --dry-run` names this
    argument and exits with 2. Afterwards, the broker has the same queues, exchanges and bindings as before.
    """
    managed.run("mqtool", "queue", "declare", "jobs", "--queue-type", "classic")
    before = definitions(broker)
    planned = managed.run("mqtool", "queue", "convert", "jobs", "--to", to, "-a", argument, "--dry-run")
    assert (planned.code, said in planned.stderr) == (2 if said else 0, True), planned.stderr
    assert definitions(broker) == before


@pytest.mark.parametrize(
    ("arguments", "effect"),
    [
        (("x-max-length:=5",), "drops 25 of 30 messages: max-length is 5"),
        (("x-max-length:=5", "x-overflow=reject-publish"), "rejects 25 of 30 messages: max-length is 5"),
        (("x-max-length-bytes:=5",), "max-length-bytes is 5"),
    ],
    ids=["drop-head", "reject-publish", "bytes"],
)
def test_queue_convert_changes_nothing_if_the_messages_do_not_fit_into_the_new_queue(
    managed: Shell, broker: TestBroker, arguments: tuple[str, ...], effect: str
) -> None:
    """If a queue's messages exceed a limit in the new arguments, even if they were published just now, `queue convert`
    with --dry-run or --yes names the limit, exits with 2, and changes nothing. If the limit is max-length, the command
    also says how many messages the new queue would drop or reject.
    """
    lines = "".join(f"{number}\n" for number in range(30))
    managed.run("mqtool", "send", "-q", "jobs", "--queue-type", "classic", "-l", stdin=lines)
    before = definitions(broker)
    words = [word for argument in arguments for word in ("-a", argument)]
    for confirmed in ("--dry-run", "--yes"):
        refused = managed.run("mqtool", "queue", "convert", "jobs", "--to", "classic", *words, confirmed)
        assert (refused.code, effect in refused.stderr) == (2, True), refused.stderr
        assert "nothing was changed" in refused.stderr
    assert (definitions(broker), depth(broker, "jobs")) == (before, 30)


def test_the_plan_of_a_conversion_counts_messages_that_were_published_just_now(managed: Shell) -> None:
    """The plan of `queue convert` gives the current number of messages in the queue, although the number in the
    management API may be some seconds old.
    """
    managed.run("mqtool", "send", "-q", "jobs", "--queue-type", "classic", "-l", stdin="1\n2\n3\n")
    planned = managed.run("mqtool", "queue", "convert", "jobs", "--to", "quorum", "--force", "--dry-run")
    assert "jobs: classic -> quorum; 3 messages, no bindings" in planned.stderr


@on_any_broker
@large
def test_queue_convert_undo_does_not_convert_back_a_queue_whose_messages_would_not_fit(
    managed: Shell, broker: TestBroker
) -> None:
    """`queue convert` can remove a queue's maximum length. If it is killed after it has replaced the queue, and the
    queue then gets more messages than the old maximum, `queue convert --undo` does not convert the queue back. It
    completes the conversion, says how many messages the old maximum would drop, exits with 69, and leaves all
    messages in the queue.
    """
    api = Management(broker.management, "guest", "guest")
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(Queue("jobs", durable=True, arguments={"x-max-length": 5}))
        list(channel.publish([Message(b"x", "jobs") for _ in range(5)]))
        plan = conversion_plan.prospect(api, broker.vhost, "jobs", None, {"x-max-length": None}, not_counted).plan
        with Connection(parse_addresses(broker.url)) as converting:
            conversion = Conversion(converting, api, broker.vhost, plan, user="guest", young=0.0, quiet=0.0)
            conversion.begin()
            for _ in conversion.run():
                if conversion.tally.returned:
                    break
        list(channel.publish([Message(b"x", "jobs") for _ in range(5)]))
    undone = managed.run("mqtool", "queue", "convert", "--undo", "jobs", "--yes")
    assert (undone.code, "it drops 5 of 10 messages: max-length is 5" in undone.stderr) == (69, True), undone.stderr
    assert depth(broker, "jobs") == 10


@on_any_broker
@pytest.mark.own_vhost("policies stay in it")
def test_a_queue_is_not_converted_back_if_a_policy_would_limit_the_temporary_queue(
    managed: Shell, broker: TestBroker
) -> None:
    """If a conversion was killed after it had replaced the queue, `queue convert --undo` converts the queue back. While
    it does so, a temporary queue holds newly published messages. If a policy with a limit, such as max-length, would
    apply to this temporary queue, the command completes the conversion instead, names the policy, exits with 69, and
    leaves the messages in the queue.
    """
    policy = {"pattern": "meanwhile$", "definition": {"max-length": 5, "delivery-limit": 9}, "apply-to": "queues"}
    broker.api("PUT", f"policies/{quote(broker.vhost, safe='')}/limits", policy)
    api = Management(broker.management, "guest", "guest")
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(Queue("jobs", durable=True, arguments={"x-queue-type": "classic"}))
        list(channel.publish([Message(b"x", "jobs") for _ in range(9)]))
        there = conversion_plan.prospect(api, broker.vhost, "jobs", "quorum", {}, not_counted)
        assert there.refusals == []
        with Connection(parse_addresses(broker.url)) as killed:
            conversion = Conversion(killed, api, broker.vhost, there.plan, user="guest", young=0.0, quiet=0.0)
            conversion.begin()
            for _ in conversion.run():
                if conversion.tally.returned:
                    break
    undone = managed.run("mqtool", "queue", "convert", "--undo", "jobs", "--yes")
    limited = "policy 'limits' (delivery-limit, max-length) would apply to 'jobs.mqtool-convert.meanwhile'"
    assert (undone.code, limited in undone.stderr) == (69, True), undone.stderr
    assert (kind_of(broker), depth(broker, "jobs"), definitions(broker)[0]) == ("quorum", 9, {"jobs"})


@on_any_broker
@pytest.mark.usefixtures("trusting")
@large
def test_queue_convert_undo_converts_a_replaced_queue_back(managed: Shell, broker: TestBroker) -> None:
    """If a conversion was killed after it had replaced the queue, `queue convert --undo` converts the queue back to its
    original type, with all its messages.
    """
    fill(broker)

    def is_replaced() -> bool:
        queues: Any = broker.api("GET", f"queues/{quote(broker.vhost, safe='')}")
        return any((each["name"], each["type"]) == ("jobs", "quorum") for each in queues)

    kill_at = 1
    while not is_replaced():
        assert convert(broker, kill_at) is None
        kill_at += 1
    undone = managed.run("mqtool", "queue", "convert", "--undo", "jobs", "--yes")
    assert undone.code == 0, undone.stderr
    assert "'jobs' has already been replaced: converting it back" in undone.stderr
    assert kind_of(broker) == "classic"
    check_all_is_there(broker, doubled=3 * kill_at)


@on_any_broker
@pytest.mark.parametrize("kill_at", [120, 200], ids="killed at frame {}".format)
@pytest.mark.sampled(1)
def test_queue_convert_resume_says_that_the_holding_queue_was_deleted(
    managed: Shell, broker: TestBroker, kill_at: int
) -> None:
    """`queue convert` moves messages to a holding queue and then to the converted queue. If the command is killed,
    and a user deletes the holding queue, the messages in it are lost. `queue convert --resume` says so, keeps all
    other messages, and restores the bindings.
    """
    fill(broker)
    assert convert(broker, kill_at) is None
    bind(broker, "cannot be kept", value=[Decimal("3.14")])
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        left = channel.depth_of("jobs")
        administration.delete_queue(channel, "jobs.mqtool-convert")
        assert len(list(channel.publish([Message(b"late", "kern.late", "logs")], mandatory=True))) == 1
    resumed = managed.run("mqtool", "queue", "convert", "--resume", "jobs", "--yes")
    assert resumed.code == 0, resumed.stderr
    assert "the holding queue 'jobs.mqtool-convert' was deleted, with the messages in it" in resumed.stderr
    queues, exchanges, bindings = definitions(broker)
    assert queues == {"jobs"}
    assert {name for name in exchanges if not name.startswith("amq.")} <= {"logs", "files"}
    kept = [each for each in bindings if each[2] != "cannot be kept"]
    assert kept == sorted(((source, "jobs", key, matched) for source, key, matched in BINDINGS), key=json.dumps)
    assert len(kept) == len(bindings) - 1
    assert [delivery.body for delivery in taken(broker, "jobs", left + 1)][-1] == b"late"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [BrokerKind.EMBEDDED, BrokerKind.NODE])
@large
def test_a_conversion_can_be_resumed_after_the_broker_was_killed(lonely_shell: Shell, kind: BrokerKind) -> None:
    """If the broker is killed during `queue convert`, the command exits with 69, and its hint names --resume. `queue
    convert --resume` completes the conversion and loses no message. On the embedded broker, at most one batch of
    messages arrives twice. On RabbitMQ, any message that had been moved may arrive twice.
    """
    own_broker(kind)
    restartable, count = Restartable(kind, f"convert-{uuid.uuid4().hex[:8]}"), 20_000
    lonely_shell.environment["MQTOOL_URL"] = restartable.url
    try:
        lines = "".join(f"{number}\n" for number in range(count))
        declared = lonely_shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", "classic")
        assert declared.code == 0, declared.stderr
        sent = lonely_shell.run("mqtool", "send", "-q", "jobs", "-l", "--persistent", stdin=lines)
        assert sent.code == 0, sent.stderr
        with Connection(parse_addresses(restartable.url)) as connection:
            channel, held = connection.channel(), Queue("jobs.mqtool-convert")
            # The broker may still report the rate at which the messages were published.
            converting = lonely_shell.start("mqtool", "queue", "convert", "jobs", "--yes", "--force")
            wait_until(
                lambda: administration.exists(channel, held) and channel.depth_of(held.name) > 0,
                "messages in the holding queue",
            )
            restartable.kill()
        killed = converting.wait()
        assert killed.code == 69, killed.stderr
        assert "--resume" in killed.stderr
        restartable.start()
        # RabbitMQ needs a moment to elect leaders, and to start its API.
        resume = ("mqtool", "queue", "convert", "--resume", "--yes")
        wait_until(lambda: lonely_shell.run(*resume, timeout=400).code == 0, "the end of the conversion", patience=400)
        with Connection(parse_addresses(restartable.url)) as connection:
            channel = connection.channel()
            there = channel.depth_of("jobs")
            numbers = [int(each.body) for each in channel.consume(Queue("jobs"), Receiving(count=there))]
    finally:
        restartable.stop()
    assert set(numbers) == set(range(count))
    if kind is BrokerKind.EMBEDDED:
        assert len(numbers) <= count + 500


def deep_table(depth: int) -> bytes:
    """A value of a header that is a table in a table, this many times."""
    table = b"F\0\0\0\0"
    for _ in range(depth - 1):
        table = b"F" + struct.pack(">I", len(table) + 2) + b"\1a" + table
    return table


FORGED: dict[str, dict[str, Any]] = {
    "a routing key that is a list": {"routing_key": []},
    "a long routing key": {"routing_key": "x" * 300},
    "an exchange that is a list": {"exchange": []},
    "a priority that is text": {"priority": "high"},
    "a high priority": {"priority": 3000},
    "an expiration that is text": {"expiration": "soon"},
    "a long expiration": {"expiration": "9" * 10},
    "a CC that is a number": {"CC": 5},
}


def test_a_forged_header_does_not_stop_a_conversion(broker: TestBroker) -> None:
    """`queue convert` stores a message's exchange and properties in a header. If a publisher has forged this header
    with invalid values, such as a routing key of 300 bytes, the command still moves the message to the holding queue
    and back, unchanged.
    """
    headers = [{"mqtool-convert": {"exchange": "logs", "routing_key": "x", **forged}} for forged in FORGED.values()]
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(Queue("jobs", durable=True))
        given = [Message(b"", "jobs", "", {"headers": each}) for each in headers]
        assert len(list(channel.publish(given))) == len(given)
    assert convert(broker) is not None
    assert kind_of(broker) == "quorum"
    assert [delivery.headers for delivery in taken(broker, "jobs", len(given))] == headers
    assert definitions(broker)[0] == {"jobs"}


#: Bodies that do not begin with valid headers.
NOT_PACKED: dict[str, bytes] = {
    "nothing": b"",
    "a table that is cut short": b"\0\0\1\0\1a",
    "a damaged table in a table": b"\0\0\0\x0b\1aF\0\0\0\4\1bXX",
    "a table deeper than the broker reads": CLIENT.encode_table({"a": Undecoded(deep_table(65))}),
    "a table of more than a frame": CLIENT.encode_table({"padding": "x" * 140_000}),
    "a table that fills a frame, without room for the properties": CLIENT.encode_table({"padding": "x" * 131_036}),
    "a CC that is a number": CLIENT.encode_table({"CC": 5}),
}


def test_a_forged_claim_that_headers_are_in_the_body_does_not_stop_a_conversion(broker: TestBroker) -> None:
    """If a message's headers do not fit into a frame, `queue convert` stores them in the body, and adds a header that
    says so. A publisher can forge this header. If the body then does not begin with valid headers, the command still
    moves the message to the holding queue and back, unchanged.
    """
    headers = {"mqtool-convert": {"exchange": "logs", "routing_key": "x", "packed": True}}
    with Connection(parse_addresses(broker.url)) as connection:
        channel = connection.channel()
        channel.declare(Queue("jobs", durable=True))
        forged = {"headers": headers, "reply_to": "me"}
        given = [Message(body, "jobs", "", forged) for body in NOT_PACKED.values()]
        assert len(list(channel.publish(given))) == len(given)
    assert convert(broker) is not None
    found = taken(broker, "jobs", len(given))
    assert [(each.headers, each.body) for each in found] == [(headers, body) for body in NOT_PACKED.values()]


#: Headers that fill a frame: no header can be added to them.
FULL = {"padding": "x" * (131_072 - 8 - 14 - 17)}


def dead_lettered(broker: TestBroker, headers: dict[str, Any]) -> None:
    """Put a message into `jobs` as a dead letter, with the headers that the broker then adds."""
    with Connection(parse_addresses(broker.url)) as connection:
        channel, before = connection.channel(), depth(broker, "jobs")
        to_jobs = {"x-message-ttl": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs"}
        channel.declare(Queue("source", durable=True, arguments=to_jobs))
        assert len(list(channel.publish([Message(b"dead", "source", "", {"headers": headers})]))) == 1
        wait_until(lambda: depth(broker, "jobs") == before + 1, "the dead letter")
        administration.delete_queue(channel, "source")


@pytest.mark.parametrize(
    ("kill_at", "undo"),
    [(None, False), *((frame, undo) for frame in (50, 70, 100) for undo in (False, True))],
    ids=["not killed", *(f"killed at {frame}, {how}" for frame in (50, 70, 100) for how in ("resumed", "undone"))],
)
@pytest.mark.sampled(2)
def test_a_message_whose_headers_fill_a_frame_does_not_stop_a_conversion(
    broker: TestBroker, kill_at: int | None, undo: bool
) -> None:
    """If a message's headers fill a whole frame, which is the most that AMQP 0-9-1 allows, mqtool cannot add another
    header. `queue convert` still converts the queue. If it is killed, `queue convert --resume` completes the
    conversion, and `queue convert --undo` reverses it. In all cases, the messages are unchanged.
    """
    without_name = {"padding": FULL["padding"][:-100]}
    deepest: dict[str, Any] = {}
    for _ in range(63):  # the embedded broker accepts no deeper table
        deepest = {"a": deepest}
    given: list[dict[str, Any]] = [
        {"headers": FULL},
        {"headers": without_name, "priority": 4, "expiration": "3600000", "reply_to": "me"},
        {"headers": {**without_name, "CC": ["victim"], "mqtool-exchange": 5}},
        {"headers": {"mqtool-convert": deepest}},
        {"headers": {"a": 1}},
    ]
    fill(broker, count=0)
    with Connection(parse_addresses(broker.url)) as connection:
        sent = [
            Message(b"%d" % number, key, exchange, properties)
            for exchange, key in (("logs", "kern.x"), ("", "jobs"))
            for number, properties in enumerate(given)
        ]
        assert len(list(connection.channel().publish(sent))) == len(sent)
    if kill_at is not None:
        kill_conversion(broker, kill_at)
    assert convert(broker, undo=undo) is not None
    assert kind_of(broker) == ("classic" if undo else "quorum")
    found = taken_once(broker, len(sent), 3)
    assert [(each.routing_key, each.body, as_published(each)) for each in found] == [
        (each.routing_key, each.body, each.properties) for each in sent
    ]
    assert definitions(broker)[0] == {"jobs"}


def test_a_message_that_no_client_can_publish_stops_a_conversion(broker: TestBroker) -> None:
    """The broker adds headers to a dead letter. If the message's own headers already filled a frame, no client can
    publish the dead letter. `queue convert` then moves the messages in front of it, stops, and names the queue and
    the command that removes the dead letter. Once the dead letter has been removed, a second run completes the
    conversion. `queue convert --undo` instead restores all messages, including the dead letter, but not their order.
    """
    for undo in (True, False):
        fill(broker, count=7)
        dead_lettered(broker, FULL)
        with Connection(parse_addresses(broker.url)) as connection:
            channel = connection.channel()
            assert len(list(channel.publish([Message(b"7", "jobs", "")]))) == 1
            with pytest.raises(BadData, match="'jobs' has headers and properties of 131,") as raised:
                convert(broker)
            assert raised.value.hint == "take it out: mqtool receive -c 1 --queue=jobs"
            assert depth(broker, "jobs") == 2
            if undo:
                convert(broker, undo=True)
                assert [each.body for each in taken(broker, "jobs", 9)] == [
                    *(b"dead", b"7"),
                    *(b"%d" % number for number in range(7)),
                ]
            else:
                assert [each.body for each in channel.consume(Queue("jobs"), Receiving(count=1))] == [b"dead"]
                convert(broker)
                assert [int(each.body) for each in taken(broker, "jobs", 8)] == list(range(8))
        assert definitions(broker)[0] == {"jobs"}


@pytest.mark.parametrize(("before", "after"), [("classic", "quorum"), ("quorum", "classic")])
def test_a_queue_with_a_message_that_rabbitmq_cannot_deliver_is_not_converted(
    lonely_shell: Shell, before: str, after: str
) -> None:
    """RabbitMQ 4.3 closes the connection of an AMQP 0-9-1 consumer that is to get certain messages that were published
    over AMQP 1.0. `queue convert` reads the queue before it changes anything, refuses a queue with such a message, and
    names the command that takes the message out.
    """
    close = Method(0, spec.Connection.Close(541, "INTERNAL_ERROR", 0, 0)).marshal()
    deliver = struct.pack("!L", spec.Basic.Deliver.INDEX)

    def fail(frame: bytes) -> bytes:
        return close if frame[7:11] == deliver and b"odd" in frame else frame

    shell, convert = lonely_shell, ("mqtool", "queue", "convert", "jobs", "--to", after, "--yes")
    with EmbeddedBroker(like="4.3", management_port=0) as broker, Tampering(broker.port or 0, fail, None) as proxy:
        shell.environment["MQTOOL_MANAGEMENT_URL"] = str(broker.management_url)
        shell.environment["MQTOOL_URL"] = broker.url
        shell.run("mqtool", "queue", "declare", "jobs", "--queue-type", before)
        shell.run("mqtool", "exchange", "bind", "amq.direct", "jobs", "even", "odd")
        for key in ("even", "odd", "even"):
            assert shell.run("mqtool", "send", "-e", "amq.direct", "-r", key, "x").code == 0
        shell.environment["MQTOOL_URL"] = f"amqp://127.0.0.1:{proxy.port}"
        refused = shell.run(*convert)
        assert (refused.code, refused.stderr.count("closes the connection when it delivers")) == (2, 1), refused.stderr
        assert "take it out: mqtool receive --protocol amqp1.0 --json --queue=jobs" in refused.stderr
        assert shell.run("mqtool", "list", "queues", "name", "messages").stdout == "jobs\t3\n"
        assert "mqtool-convert" not in shell.run("mqtool", "list", "exchanges").stdout
        shell.run("mqtool", "receive", "-q", "jobs", "-c", "2", "-u", broker.url)
        converted = shell.run(*convert)
        assert (converted.code, "1 message moved" in converted.stderr) == (0, True), converted.stderr


@large
def test_messages_of_the_largest_size_are_moved_if_their_headers_leave_room(tmp_path: Path) -> None:
    """`queue convert` moves a message of the largest size that the broker accepts, even if the publisher has forged
    mqtool's own headers. The exception is a message of this size whose headers fill a frame: the conversion then stops,
    and the error names the setting max_message_size. `queue convert --undo` restores all messages.
    """
    with EmbeddedBroker(like="4.2", management_port=0) as broker:
        settings = {"MQTOOL_URL": broker.url, "MQTOOL_MANAGEMENT_URL": broker.management_url}
        with Shell(tmp_path, settings) as shell, Connection(parse_addresses(broker.url)) as connection:
            convert = ("mqtool", "queue", "convert", "jobs", "--yes", "--force")  # its publisher has only just stopped
            channel = connection.channel()
            channel.declare(Queue("jobs", durable=True))
            largest = Message(b"y" * (16 << 20), "jobs", "", {"headers": {"mqtool-convert": {"forged": 1}, "CC": []}})
            assert len(list(channel.publish([Message(b"0", "jobs"), largest, Message(b"2", "jobs")]))) == 3
            converted = shell.run(*convert)
            assert converted.code == 0, converted.stderr
            found = list(channel.consume(Queue("jobs"), Receiving(count=3)))
            assert [each.body for each in found] == [b"0", largest.body, b"2"]
            assert found[1].headers == largest.properties["headers"]

            full = Message(largest.body, "jobs", "", {"headers": FULL})
            assert len(list(channel.publish([Message(b"0", "jobs"), full, Message(b"2", "jobs")]))) == 3
            stopped = shell.run(*convert, "--to", "classic")
            assert stopped.code == 65
            assert "no message is lost; to continue: mqtool queue convert --resume jobs" in stopped.stderr
            assert "max_message_size" in stopped.stderr
            assert shell.run("mqtool", "queue", "convert", "jobs", "--undo", "--yes").code == 0
            assert {each.body[:1] for each in channel.consume(Queue("jobs"), Receiving(count=3))} == {b"0", b"y", b"2"}
