"""Attaching AMQP 1.0 links: what the broker's attach frame contains, and which links it refuses."""

import asyncio
import re
from typing import Any

import pytest

from mqtool.broker.embedded.model.broker import Broker
from mqtool.broker.embedded.model.profile import Like
from mqtool.broker.embedded.model.queue import BrokerQueue
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.users import Permissions
from mqtool.codecs.amqp10_values import Array, Described, Symbol, ULong
from mqtool.codecs.field_tables import Int32, UInt8, UInt32
from tests.protocol.raw_amqp10 import (
    ATTACH,
    COORDINATOR,
    DETACH,
    END,
    RECEIVER,
    RELEASED,
    SENDER,
    SETTLED,
    SOURCE,
    TARGET,
    UNSETTLED,
    Frame,
    described,
    message,
)
from tests.unit.embedded.memory_client10 import MemoryClient10, broker_like

FIRST, SECOND = UInt8(0), UInt8(1)
DETACHED, MAP = Symbol("link-detach"), {Symbol("a"): "b"}
#: All outcomes that RabbitMQ supports.
OUTCOMES = Array(Symbol(f"amqp:{name}:list") for name in ("accepted", "rejected", "released", "modified"))
ACCEPTED, OTHER = Symbol("amqp:accepted:list"), Symbol("amqp:other:list")
NOT_IMPLEMENTED, INVALID, LOCKED = "amqp:not-implemented", "amqp:invalid-field", "amqp:resource-locked"
NOT_FOUND, REFUSED = "amqp:not-found", "amqp:unauthorized-access"


def attach(
    client: MemoryClient10,
    role: bool,
    *,
    name: str = "x",
    handle: int = 7,
    modes: tuple[UInt8 | None, UInt8 | None] = (None, None),
    source: Described | None = None,
    target: Described | None = None,
    rest: tuple[Any, ...] = (),
) -> list[Frame]:
    """Send an attach frame; by default for a link to or from the queue `q`.

    Args:
        modes: the sender's and the receiver's settle mode.
        rest: the fields from unsettled on.
    """
    source = source or described(SOURCE, *(["/queues/q"] if role is RECEIVER else []))
    target = target or described(TARGET, *(["/queues/q"] if role is SENDER else []))
    return client.send(ATTACH, name, UInt32(handle), role, *modes, source, target, *rest)


def of(source: Any = None, *, outcomes: Any = None, **fields: Any) -> Described:
    """A source with an address, and further fields."""
    names = ("durable", "expiry", "timeout", "dynamic", "node", "mode", "filter", "default")
    return described(SOURCE, source, *map(fields.get, names), outcomes, fields.get("capabilities"))


def asking_for(capability: str, **fields: Any) -> Described:
    """A dynamic source that is deleted with its link."""
    wanted: dict[str, Any] = {"expiry": DETACHED, "timeout": UInt32(0), "dynamic": True} | fields
    return of(fields.get("address"), capabilities=Array([Symbol(capability)]), **wanted)


def error(found: list[Frame]) -> tuple[str, str | None] | None:
    """The error in the detach frame, which has to be the last frame."""
    assert [frame.code for frame in found] == [ATTACH, DETACH]
    return found[-1].error


def padded(frame: Frame) -> list[Any]:
    """The fields of an attach frame, including the missing ones at its end."""
    return [frame.field(number) for number in range(14)]


def permit(broker: Broker, configure: str, write: str, read: str) -> None:
    broker.set_permissions("guest", "/", Permissions(configure, write, read))


# The broker's attach frame


def test_a_publishers_attach_frame_is_answered_with_the_same_name_and_address(client: MemoryClient10) -> None:
    """The broker answers an AMQP 1.0 publisher's attach frame with the same name, handle, sender settle mode, source
    and target. The receiver settle mode is `first`, and the max-message-size is 16 MiB, as in RabbitMQ 4.
    """
    source, target = of("here", capabilities=Symbol("queue")), described(TARGET, "/queues/q", UInt32(2))
    answer, _ = attach(client, SENDER, modes=(SETTLED, SECOND), source=source, target=target)
    assert answer.code == ATTACH
    assert padded(answer) == ["x", 7, RECEIVER, 1, 0, source, target, *[None] * 3, 16_777_216, *[None] * 3]
    assert isinstance(answer.fields[3], UInt8)


def test_a_publisher_can_attach_a_link_with_neither_a_source_nor_a_target(
    client: MemoryClient10, q: BrokerQueue
) -> None:
    """If an AMQP 1.0 publisher attaches a link with neither a source nor a target, each of its messages goes to the
    address in the message's property `to`. If it attaches a link with a target, all its messages go to this target.
    """
    answer, _ = client.send(ATTACH, "x", UInt32(7), SENDER)
    assert (answer.code, answer.fields[5:7]) == (ATTACH, [None, described(TARGET)])
    client.publish(0, message(to="/queues/q"), handle=7)
    assert len(q) == 1
    attach(client, SENDER, handle=8)
    client.publish(1, handle=8)
    assert len(q) == 2


@pytest.mark.parametrize(("mode", "sent"), [(None, 0), (UNSETTLED, 0), (SETTLED, 1), (UInt8(2), 0)])
def test_a_receivers_attach_frame_is_answered_with_the_same_name_and_addresses(
    client: MemoryClient10, q: BrokerQueue, mode: UInt8 | None, sent: int
) -> None:
    """The broker answers an AMQP 1.0 receiver's attach frame with the same name, handle, receiver settle mode, address
    and max-message-size, and with an initial delivery count of 0. The default outcome is `released`, the distribution
    mode `move`. If the client names no outcomes, the source has all outcomes that RabbitMQ supports. The broker sends
    messages settled only if the client asks for that.
    """
    source = of("/queues/q", durable=UInt32(1), filter={Symbol("no"): "filter"}, capabilities=Symbol("queue"))
    target = described(TARGET, "there")
    rest = (None, None, None, ULong(5000))
    [answer] = attach(client, RECEIVER, modes=(mode, FIRST), source=source, target=target, rest=rest)
    assert [each.no_ack for each in q.consumers] == [mode == SETTLED]
    effective = ["/queues/q", 1, *[None] * 4, "move", {}, described(RELEASED), OUTCOMES]
    expected = ["x", 7, SENDER, sent, 0, Described(ULong(SOURCE), effective), None, None, None, 0, 5000]
    assert padded(answer) == [*expected, None, None, None]


@pytest.mark.parametrize("asked", [Array([ACCEPTED]), Array(OUTCOMES[1:3])])
def test_a_link_has_only_the_outcomes_that_the_client_asks_for(client: MemoryClient10, asked: Array) -> None:
    """If an AMQP 1.0 receiver's source names outcomes, the source in the broker's attach frame names exactly the same
    outcomes. It also contains the filters that the broker applies.
    """
    offset = {Symbol("o"): Described(Symbol("rabbitmq:stream-offset-spec"), "first")}
    client.connection.broker.vhosts["/"].add_queue(QueueDeclaration("s", {"x-queue-type": "stream"}, durable=True))
    [answer] = attach(client, RECEIVER, source=of("/queues/s", filter=offset, outcomes=asked))
    assert answer.fields[5].value[7:10] == [offset, described(RELEASED), asked]


@pytest.mark.parametrize("target", [None, "/queues/q"])
def test_a_publisher_can_use_the_settle_mode_second_if_its_messages_are_settled(
    client: MemoryClient10, target: str | None
) -> None:
    """If an AMQP 1.0 publisher that sends only settled messages asks for the receiver settle mode `second`, the
    broker attaches the link, because this mode has no effect on settled messages.
    """
    found = attach(client, SENDER, modes=(SETTLED, SECOND), target=described(TARGET, target))
    assert DETACH not in [frame.code for frame in found]


def test_the_priority_and_the_timeout_of_a_consumer_are_link_properties(broker: Broker, client: MemoryClient10) -> None:
    """An AMQP 1.0 receiver sets its priority and its consumer timeout with the link properties `rabbitmq:priority` and
    `rabbitmq:consumer-timeout`. The broker ignores values that are not numbers.
    """
    queue = broker.vhosts["/"].add_queue(QueueDeclaration("qq", {"x-queue-type": "quorum"}, durable=True))
    names = [Symbol(f"rabbitmq:{name}") for name in ("priority", "consumer-timeout")]
    for handle, values in enumerate([(Int32(5), UInt32(60_000)), ("5", "60000")]):
        rest = (*[None] * 6, dict(zip(names, values, strict=True)))
        attach(client, RECEIVER, name=str(handle), handle=handle, source=of("/queues/qq"), rest=rest)
    found = {each.tag: each.arguments for each in queue.consumers}
    assert found == {"0": {"x-priority": 5, "x-consumer-timeout": 60_000}, "1": {}}


# Dynamic sources


@pytest.mark.parametrize("mode", [UNSETTLED, SETTLED])
def test_a_dynamic_source_with_the_capability_temporary_queue_creates_an_exclusive_queue(
    client: MemoryClient10, broker: Broker, mode: UInt8
) -> None:
    """An AMQP 1.0 receiver with a dynamic source and the capability `temporary-queue` gets an exclusive queue, which is
    deleted with the link. The broker's attach frame contains the address of this queue.
    """
    source = asking_for("temporary-queue", durable=UInt32(1), timeout=UInt32(9), outcomes=Array([ACCEPTED]))
    target, rest = described(TARGET, "there"), (None, None, None, ULong(5000))
    [answer] = attach(client, RECEIVER, modes=(mode, FIRST), source=source, target=target, rest=rest)
    actual = answer.fields[5].value
    assert re.fullmatch(r"/queues/amq\.dyn-memory-x-[\w-]{22}", actual[0])
    queue = broker.vhosts["/"].queues[actual[0].removeprefix("/queues/")]
    assert queue.owner is client.connection
    assert [*client.connection.exclusive_queues] == [queue]
    assert [each.no_ack for each in queue.consumers] == [mode == SETTLED]
    node = {
        Symbol("lifetime-policy"): Described(ULong(0x2B), []), Symbol("supported-dist-modes"): Array([Symbol("move")])
    }  # fmt: skip
    default = described(RELEASED)
    assert actual[1:] == [None, "link-detach", 0, True, node, Symbol("move"), None, default, Array([ACCEPTED])]
    answer.fields[5] = None
    assert padded(answer) == ["x", 7, SENDER, mode, 0, None, None, None, None, 0, 5000, None, None, None]
    client.send(DETACH, UInt32(7), True)
    assert [*broker.vhosts["/"].queues] == ["q"]


def test_a_dynamic_source_for_direct_replies_has_no_outcomes(client: MemoryClient10, broker: Broker) -> None:
    """An AMQP 1.0 receiver with a dynamic source and the capability `rabbitmq:volatile-queue` gets an address for
    direct replies. Since replies are sent settled, the source has no outcomes. No queue is created.
    """
    [answer] = attach(client, RECEIVER, modes=(SETTLED, None), source=asking_for("rabbitmq:volatile-queue"))
    actual = answer.fields[5].value
    assert actual[0].startswith("/queues/amq.rabbitmq.reply-to.")
    assert (actual[4], len(actual)) == (True, 7)
    assert [*broker.vhosts["/"].queues] == ["q"]


@pytest.mark.parametrize(("length", "is_named"), [(142, True), (143, False)])
def test_the_name_of_a_temporary_queue_leaves_out_a_long_container_id_and_link_name(
    client: MemoryClient10, length: int, is_named: bool
) -> None:
    """The name of an AMQP 1.0 receiver's temporary queue contains the connection's container id, a hyphen and the
    name of the link if these three together have fewer than 150 bytes. Otherwise, it contains neither the id nor the
    name.
    """
    [answer] = attach(client, RECEIVER, name="é" + "x" * (length - 2), source=asking_for("temporary-queue"))
    pattern = r"/queues/amq\.dyn-memory-%C3%A9x+-[\w-]{22}" if is_named else r"/queues/amq\.dyn\.gen-[\w-]{22}"
    assert re.fullmatch(pattern, answer.fields[5].value[0])


@pytest.mark.parametrize(
    ("source", "mode"),
    [
        (asking_for("temporary-queue", address="/queues/q"), SETTLED),
        (asking_for("other"), SETTLED),
        (asking_for("rabbitmq:volatile-queue"), UNSETTLED),
        (asking_for("rabbitmq:volatile-queue", expiry=Symbol("never")), SETTLED),
        (asking_for("rabbitmq:volatile-queue", timeout=UInt32(1)), SETTLED),
    ],
    ids=["with an address", "other capability", "unsettled replies", "other expiry policy", "timeout"],
)
def test_an_unsupported_dynamic_source_is_refused(client: MemoryClient10, source: Described, mode: UInt8) -> None:
    """If an AMQP 1.0 receiver has a dynamic source with an address or an unknown capability, the broker detaches the
    link with not-implemented. It does the same if the receiver asks for direct replies (the capability
    `rabbitmq:volatile-queue`) with settings that RabbitMQ does not support for these, such as a timeout.
    """
    found = attach(client, RECEIVER, modes=(mode, None), source=source)
    assert error(found) == (NOT_IMPLEMENTED, "Dynamic source not supported")


def test_a_temporary_queue_needs_permission_and_counts_towards_the_queue_limit(
    client: MemoryClient10, broker: Broker
) -> None:
    """When an AMQP 1.0 receiver asks for a temporary queue in a virtual host that has reached its queue limit, the
    broker detaches the link with precondition-failed. If the user does not have the configure permission for the
    temporary queue's name, the broker ends the session with unauthorized-access.
    """
    broker.vhosts["/"].limits = {"max-queues": 1}
    condition, text = error(attach(client, RECEIVER, source=asking_for("temporary-queue"))) or ("", "")
    assert condition == "amqp:precondition-failed"
    pattern = r"cannot declare queue 'amq\.dyn-memory-x-\S{22}': queue limit in vhost '/' \(1\) is reached"
    assert re.fullmatch(pattern, text or "")
    permit(broker, "^q$", ".*", ".*")
    [end] = attach(client, RECEIVER, source=asking_for("temporary-queue"))
    assert end.code == END
    condition, text = end.error or ("", "")
    assert condition == REFUSED
    assert re.match("configure access to queue 'amq.dyn-memory-x-", text or "")


@pytest.mark.parametrize(
    ("capability", "prefix"),
    [("temporary-queue", "amq.dyn-memory-x-"), ("rabbitmq:volatile-queue", "amq.rabbitmq.reply-to.")],
)
def test_a_dynamic_source_needs_the_read_permission(
    client: MemoryClient10, broker: Broker, capability: str, prefix: str
) -> None:
    """If an AMQP 1.0 receiver has a dynamic source, its user needs the read permission for the name that the broker
    generates for the temporary queue or for direct replies. Without this permission, the broker creates no queue and
    ends the session with unauthorized-access.
    """
    wanted: dict[str, Any] = {"modes": (SETTLED, None), "source": asking_for(capability)}
    permit(broker, ".*", "^$", f"^{re.escape(prefix)}")
    [answer] = attach(client, RECEIVER, **wanted)
    assert answer.code == ATTACH
    client.send(DETACH, UInt32(7), True)
    permit(broker, ".*", ".*", "^q$")
    [end] = attach(client, RECEIVER, **wanted)
    condition, text = end.error or ("", "")
    assert (end.code, condition) == (END, REFUSED)
    assert re.match(f"read access to queue '{re.escape(prefix)}", text or "")
    assert [*broker.vhosts["/"].queues] == ["q"]


# Refused links


@pytest.mark.parametrize(
    ("role", "given", "condition", "text"),
    [
        (SENDER, {"target": described(COORDINATOR)}, NOT_IMPLEMENTED, "Transactions not supported"),
        (SENDER, {"rest": ({b"1": None},)}, NOT_IMPLEMENTED, "Link recovery not supported"),
        (RECEIVER, {"rest": (None, True)}, NOT_IMPLEMENTED, "Link recovery not supported"),
        (SENDER, {"modes": (UNSETTLED, SECOND)}, NOT_IMPLEMENTED, "rcv-settle-mode second not supported"),
        (RECEIVER, {"modes": (None, SECOND)}, NOT_IMPLEMENTED, "rcv-settle-mode second not supported"),
        (SENDER, {"target": described(TARGET, None, None, None, None, True)},
         NOT_IMPLEMENTED, "Dynamic target not supported"),
        (SENDER, {"source": of(outcomes=Array([ACCEPTED, OTHER, Symbol("b")]))},
         NOT_IMPLEMENTED, 'Outcomes not supported: [{symbol,<<"amqp:other:list">>},{symbol,<<"b">>}]'),
        (RECEIVER, {"source": of("/queues/q", outcomes=ACCEPTED)},
         NOT_IMPLEMENTED, 'Outcomes not supported: [{symbol,<<"amqp:accepted:list">>}]'),
        (RECEIVER, {"source": of("/queues/q", outcomes=Array([OTHER]))},
         NOT_IMPLEMENTED, 'Outcomes not supported: [{symbol,<<"amqp:other:list">>}]'),
        (RECEIVER, {"source": asking_for("temporary-queue", outcomes=Array([OTHER]))},
         NOT_IMPLEMENTED, 'Outcomes not supported: [{symbol,<<"amqp:other:list">>}]'),
        (RECEIVER, {"source": described(COORDINATOR)}, INVALID, "Attach refused: source_required"),
        (RECEIVER, {"source": of()}, INVALID, "Attach refused: {bad_address,undefined}"),
        (RECEIVER, {"source": of(b"q")}, INVALID, 'Attach refused: {bad_address,{binary,<<"q">>}}'),
        (RECEIVER, {"source": of("q")}, INVALID, 'Attach refused: {amqp_address_v1_not_permitted,{utf8,<<"q">>}}'),
        (RECEIVER, {"source": of("/exchanges/x")},
         INVALID, 'Attach refused: {amqp_address_v1_not_permitted,{utf8,<<"/exchanges/x">>}}'),
        (RECEIVER, {"source": of("/queues/%")}, INVALID, 'Attach refused: {bad_address,{utf8,<<"/queues/%">>}}'),
        (RECEIVER, {"source": of("/queues/none")}, NOT_FOUND, "no queue 'none' in vhost '/'"),
        (SENDER, {"target": described(TARGET, b"q")}, INVALID, 'Attach refused: {bad_address,{binary,<<"q">>}}'),
        (SENDER, {"target": described(TARGET, "q")},
         INVALID, 'Attach refused: {amqp_address_v1_not_permitted,{utf8,<<"q">>}}'),
        (SENDER, {"target": described(TARGET, "/queues/%")},
         INVALID, 'Attach refused: {bad_address_string,<<"/queues/%">>}'),
        (SENDER, {"target": described(TARGET, "/queues/none")}, NOT_FOUND, "no queue 'none' in vhost '/'"),
        (SENDER, {"target": described(TARGET, "/exchanges/none/key")}, NOT_FOUND, "no exchange 'none' in vhost '/'"),
        (SENDER, {"target": described(TARGET, "/exchanges/amq.rabbitmq.trace")}, REFUSED,
         "forbidden to publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'"),
    ],
    ids=[
        "transactions", "unsettled deliveries", "incomplete unsettled deliveries", "second", "receiver with second",
        "dynamic target", "publisher's outcomes", "a single outcome", "receiver's outcomes", "outcomes of replies",
        "coordinator as source", "no source address", "binary source", "version 1 source", "exchange as source",
        "bad escape in source", "unknown source", "binary target", "version 1 target", "bad escape in target",
        "unknown queue", "unknown exchange", "internal exchange",
    ],
)  # fmt: skip
def test_a_link_that_is_unsupported_or_has_an_invalid_address_is_detached(
    client: MemoryClient10, role: bool, given: dict[str, Any], condition: str, text: str
) -> None:
    """If an AMQP 1.0 client attaches a link that RabbitMQ does not support, for example one for transactions or with
    a dynamic target, the broker detaches the link with the same error as RabbitMQ. It does the same if the link's
    address is invalid, or names a queue or exchange that does not exist.
    """
    assert error(attach(client, role, **given)) == (condition, text)


@pytest.mark.parametrize(
    ("role", "permissions", "text"),
    [
        (SENDER, (".*", "^$", ".*"), "write access to exchange 'amq.direct' in vhost '/' refused for user 'guest'"),
        (RECEIVER, (".*", ".*", "^$"), "read access to queue 'q' in vhost '/' refused for user 'guest'"),
    ],
    ids=["publisher", "receiver"],
)
def test_attaching_a_link_needs_a_permission(
    client: MemoryClient10, broker: Broker, role: bool, permissions: tuple[str, str, str], text: str
) -> None:
    """To attach a link, an AMQP 1.0 publisher needs write permission for the exchange of its target, and a receiver
    needs read permission for its queue. Without this permission, the broker ends the session with
    unauthorized-access.
    """
    permit(broker, *permissions)
    target = described(TARGET, "/exchanges/amq.direct" if role is SENDER else None)
    [end] = attach(client, role, target=target)
    assert (end.code, end.error) == (END, (REFUSED, text))


def test_a_receiver_cannot_use_an_exclusive_queue_of_another_connection(client: MemoryClient10, broker: Broker) -> None:
    """If an AMQP 1.0 client attaches a receiver to an exclusive queue of another connection, the broker detaches the
    link with resource-locked.
    """
    vhost, other = broker.vhosts["/"], MemoryClient10(client.loop, broker)
    vhost.add_queue(QueueDeclaration("mine", {}, owner=client.connection))
    assert [frame.code for frame in attach(client, RECEIVER, source=of("/queues/mine"))] == [ATTACH]
    text = "cannot obtain exclusive access to locked queue 'mine' in vhost '/'"
    assert error(attach(other, RECEIVER, source=of("/queues/mine"))) == (LOCKED, text)


@pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
def test_a_classic_queue_with_an_exclusive_consumer_refuses_receivers(
    client: MemoryClient10, broker: Broker, kind: str
) -> None:
    """If an AMQP 1.0 client attaches a receiver to a classic queue that has an exclusive consumer, the broker detaches
    the link with unauthorized-access. For a quorum queue or a stream, a consumer's exclusive flag has no effect.
    """
    queue: BrokerQueue = broker.vhosts["/"].add_queue(QueueDeclaration("e", {"x-queue-type": kind}, durable=True))
    attach(client, RECEIVER, source=of("/queues/e"))
    for consumer in queue.consumers:
        consumer.exclusive = True
    found = attach(client, RECEIVER, name="y", handle=8, source=of("/queues/e"))
    if kind != "classic":
        assert ATTACH in [frame.code for frame in found]
    else:
        assert error(found) == (REFUSED, "queue 'e' in vhost '/' in exclusive use")


def test_a_receiver_with_a_filter_that_its_queues_type_does_not_support_is_refused(
    client: MemoryClient10, broker: Broker
) -> None:
    """If an AMQP 1.0 receiver attaches with a filter that the type of its queue does not support, such as a stream
    filter for a classic queue, the broker detaches the link with precondition-failed.
    """
    wanted = {Symbol("f"): Described(Symbol("rabbitmq:stream-filter"), "x")}
    condition, text = error(attach(client, RECEIVER, source=of("/queues/q", filter=wanted))) or ("", "")
    assert condition == "amqp:precondition-failed"
    assert text == "invalid arg 'x-stream-filter' for queue 'q' in vhost '/' of queue type rabbit_classic_queue"


def test_a_broker_that_imitates_4_0_refuses_dynamic_sources(loop: asyncio.AbstractEventLoop) -> None:
    """An embedded broker that imitates RabbitMQ 4.0 does not support dynamic sources. If an AMQP 1.0 receiver asks for
    one, the broker ends the session with not-implemented, as RabbitMQ 4.0 does.
    """
    client = MemoryClient10(loop, broker_like(loop, Like.V4_0))
    [end] = attach(client, RECEIVER, source=asking_for("temporary-queue"))
    assert (end.code, end.error) == (END, (NOT_IMPLEMENTED, "Dynamic source not supported"))
