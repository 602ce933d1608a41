"""The largest legal frames and requests, and how long each blocks the event loop: python -m tests.protocol.costs.

The broker has many queues, bindings, messages, chunks and segments. A *cost* is what one client sends: a frame of some
kind, with one field as large, as long, as deeply nested or as often repeated as the protocol allows. A cost fails if a
turn (an iteration of the event loop) takes longer than LIMIT, because other clients wait, or if the broker never ends.
"""

import argparse
import base64
import gc
import json
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from pamqp import commands, frame, header
from pamqp.base import Frame

from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.embedded.http.route_table import paths
from mqtool.broker.embedded.model.amqp_message import BrokerMessage, ContentHeader
from mqtool.broker.embedded.model.exchange import BrokerExchange
from mqtool.broker.embedded.model.queue_arguments import QueueDeclaration
from mqtool.broker.embedded.model.virtual_host import VirtualHost
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, MessageHeader, data_section
from mqtool.codecs.amqp10_values import Array, Described, Symbol
from mqtool.codecs.field_tables import Int64, UInt32
from tests.hostile import nested, short, sized
from tests.protocol import hostile_amqp10 as amqp10
from tests.protocol import raw_stream
from tests.protocol.hostile_inputs import _LOGIN as STREAM_LOGIN
from tests.protocol.hostile_inputs import HELLO, METHODS
from tests.protocol.hostile_requests import BODIES
from tests.protocol.loop_watch import LIMIT, LoopWatch
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    ATTACH,
    DISPOSITION,
    FLOW,
    RECEIVER,
    RELEASED,
    SENDER,
    SOURCE,
    TARGET,
    TRANSFER,
    described,
)  # fmt: skip
from tests.protocol.raw_client import raw_frame
from tests.protocol.raw_stream import string, strings, table

#: Seconds within which the broker must have processed what one client has sent.
_PATIENCE = 120.0

_BODY_BYTES = 1_000_000
_FRAME_BYTES = 130_000


class Cost(NamedTuple):
    """What one client sends.

    Attributes:
        name: the frame, and what is large about it.
        wire: amqp, stream, amqp10 or http.
        parts: the bytes to send. Each part is sent once the broker has processed the previous one.
    """

    name: str
    wire: str
    parts: list[bytes]


# -- AMQP 0-9-1


#: The encoded entries of tables that are as large as a frame allows.
TABLES: dict[str, bytes] = {
    "many names": b"".join(short(b"%d" % n) + b"V" for n in range(_FRAME_BYTES // 8)),
    "a long list": b"\1aA" + sized(b"t\1" * (_FRAME_BYTES // 2)),
    "a long list of tables": b"\1aA" + sized((b"F" + bytes(4)) * (_FRAME_BYTES // 5)),
    "a long text": b"\1aS" + sized(b"x" * _FRAME_BYTES),
    "nested lists": b"\1a" + nested(60, b"A"),
    "too deeply nested lists": b"\1a" + nested(1500, b"A"),
    "too deeply nested tables": b"\1a" + nested(1500),
    "one name again and again": (short(b"x-max-length") + b"I" + bytes(4)) * (_FRAME_BYTES // 18),
}
_COPIES = b"".join(b"S" + sized(b"%d" % n) for n in range(_FRAME_BYTES // 10))
_DEATHS = (b"F" + sized(short(b"queue") + b"S" + sized(b"q") + short(b"reason") + b"S" + sized(b"expired"))) * 3000
#: Headers that the broker reads.
HEADERS: dict[str, bytes] = {
    **TABLES,
    "many copies": b"\2CCA" + sized(_COPIES),
    "many copies to one key": b"\2CCA" + sized((b"S" + sized(b"a.a.a")) * (_FRAME_BYTES // 10)),
    "many blind copies": b"\3BCCA" + sized(_COPIES),
    "many deaths": short(b"x-death") + b"A" + sized(_DEATHS),
}
EXCHANGES = ("", "fanout", "topic", "headers", "direct", "chain", "amq.topic")
QUEUES = ("full", "priority", "quorum", "dead", "chunks", "segments", "batches")
_EMPTY_TABLE = bytes(4)


def _method(method: Frame) -> bytes:
    return frame.marshal(method, 1)


def _with_table(method: Frame, entries: bytes) -> bytes:
    """Encode a method with this table of arguments."""
    plain = frame.marshal(type(method)(**{**_fields(method), "arguments": {}}), 1)
    return raw_frame(1, 1, plain[7:-5] + sized(entries))


def _fields(method: Frame) -> dict[str, Any]:
    return {name: getattr(method, name) for name in type(method).attributes()}


def _publish(exchange: str, key: str = "a.a.a", headers: bytes = b"", body: bytes = b"", *, rest: bytes = b"") -> bytes:
    properties = struct.pack(">HHQH", 60, 0, len(body), 1 << 13) + sized(headers)
    content = raw_frame(2, 1, properties) + (raw_frame(3, 1, body) if body else b"")
    return _method(commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)) + content + rest


def amqp_costs() -> Iterator[Cost]:  # noqa: C901 - a list
    """AMQP 0-9-1."""
    for method in METHODS:
        name = method.name
        fields = _fields(method)
        if "arguments" in fields:
            for what, entries in TABLES.items():
                yield Cost(f"{name}, arguments: {what}", "amqp", [HELLO, _with_table(method, entries)])
        for field in ("queue", "exchange", "destination", "source", "routing_key", "consumer_tag"):
            if field in fields:
                long = type(method)(**{**fields, field: "." * 127})
                yield Cost(f"{name}, long {field}", "amqp", [HELLO, _method(long)])
        yield Cost(f"{name}, many in one write", "amqp", [HELLO, _method(method) * 2000])
    for field in ("", "#", "*", "*.#"):
        pattern = ".".join([field or "a"] * (255 // (len(field or "a") + 1)))
        binding = _method(commands.Queue.Bind(queue="full", exchange="topic", routing_key=pattern))
        yield Cost(f"a message that matches {pattern[:9]}…", "amqp", [HELLO, binding, _publish("topic", "a." * 127)])
    yield from copies_costs()
    for exchange in EXCHANGES:
        for what, entries in HEADERS.items():
            yield Cost(f"publish to {exchange}, {what}", "amqp", [HELLO, _publish(exchange, headers=entries)])
        yield Cost(f"many publishes to {exchange}", "amqp", [HELLO, _publish(exchange) * 50])
        if exchange:
            deletion = _method(commands.Exchange.Delete(exchange=exchange))
            yield Cost(f"Exchange.Delete {exchange}", "amqp", [HELLO, deletion])
    begun = _method(commands.Basic.Publish(exchange="", routing_key="full"))
    begun += frame.marshal(header.ContentHeader(body_size=50_000), 1)
    yield Cost("a body in frames of one byte", "amqp", [HELLO, begun + raw_frame(3, 1, b"x") * 50_000])
    for queue in QUEUES[:-1]:
        for method in (commands.Queue.Purge(queue=queue), commands.Queue.Delete(queue=queue)):
            yield Cost(f"{method.name} {queue}", "amqp", [HELLO, _method(method)])
        first = {"x-stream-offset": "first"} if queue in QUEUES[-3:] else {}
        consume = _method(commands.Basic.Consume(queue=queue, arguments=first))
        qos = _method(commands.Basic.Qos(prefetch_count=65_535))
        yield Cost(f"Basic.Consume {queue}, no_ack", "amqp", [
            HELLO, qos + _method(commands.Basic.Consume(queue=queue, no_ack=queue not in QUEUES[-3:], arguments=first))
        ])  # fmt: skip
        for settled in (
            commands.Basic.Ack(0, multiple=True), commands.Basic.Nack(0, multiple=True, requeue=True),
            commands.Basic.Nack(0, multiple=True, requeue=False), commands.Basic.Recover(requeue=True),
            commands.Channel.Close(200, "", 0, 0), commands.Connection.Close(200, "", 0, 0),
            commands.Queue.Delete(queue=queue), commands.Basic.Cancel(consumer_tag="t"),
        ):  # fmt: skip
            end = frame.marshal(settled, 0 if isinstance(settled, commands.Connection.Close) else 1)
            parts = [HELLO, qos + consume, end + _method(commands.Basic.Qos(prefetch_count=0))]
            yield Cost(f"{settled.name} of many from {queue}", "amqp", parts)
            if "ck" in settled.name:
                transaction = _method(commands.Tx.Select()) + end + _method(commands.Tx.Commit())
                yield Cost(f"{settled.name} of many from {queue}, tx", "amqp", [HELLO, qos + consume, transaction])
    many = b"".join(
        _method(commands.Basic.Consume(queue="full", consumer_tag=str(n), nowait=True)) for n in range(3000)
    )
    yield Cost("many consumers of one queue", "amqp", [HELLO, many, _publish("", "full") * 100])
    one_each = _method(commands.Basic.Qos(prefetch_count=1)) + many
    yield Cost(
        "a channel with many busy consumers ends",
        "amqp",
        [HELLO, one_each, _method(commands.Channel.Close(200, "", 0, 0))],
    )
    yield Cost(
        "many channels", "amqp", [HELLO, b"".join(frame.marshal(commands.Channel.Open(), n) for n in range(2, 2047))]
    )
    for kind, exchange in (("publishes", "fanout"), ("copies", "fanout"), ("publishes", "dead-letters")):
        one = _publish(exchange, headers=HEADERS["many copies"] if kind == "copies" else b"")
        sent = _method(commands.Tx.Select()) + one * (100 if kind == "publishes" else 3)
        yield Cost(f"a transaction of {kind} to {exchange}", "amqp", [HELLO, sent + _method(commands.Tx.Commit())])
        yield Cost(
            f"a transaction of {kind} to {exchange}, undone", "amqp", [HELLO, sent + _method(commands.Tx.Rollback())]
        )
    exclusive = b"".join(
        _method(commands.Queue.Declare(queue=f"x{n}", exclusive=True, nowait=True)) for n in range(5000)
    )
    yield Cost("a connection with many exclusive queues ends", "amqp", [HELLO, exclusive])
    yield from dead_letter_costs()
    yield from requeue_costs()
    yield from drop_costs()
    yield from unbinding_costs()


def copies_costs() -> Iterator[Cost]:
    """AMQP 0-9-1: a message with many CC keys, routed through many bindings."""
    sent = HEADERS["many copies"]
    bound = [_method(commands.Queue.Bind(queue=f"s{n}", exchange="topic", routing_key="#")) for n in range(300)]
    yield Cost("many copies to many topic bindings", "amqp", [HELLO, b"".join(bound), _publish("topic", headers=sent)])
    for kind, key, count in (("topic", "#", 60), ("direct", "a.a.a", 900)):
        declared = [_method(commands.Exchange.Declare(exchange=f"x{n}", exchange_type=kind)) for n in range(count)]
        chained = [
            _method(commands.Exchange.Bind(destination=f"x{n + 1}", source=f"x{n}", routing_key=key))
            for n in range(count - 1)
        ]
        parts = [HELLO, b"".join(declared + chained), _publish("x0", headers=sent)]
        yield Cost(f"many copies through many {kind} exchanges", "amqp", parts)


def dead_letter_costs() -> Iterator[Cost]:
    """AMQP 0-9-1: many messages that are dead-lettered, or released by a delayed message exchange, at once."""
    dlx = {"x-dead-letter-exchange": "dead-letters"}
    expiring = _method(commands.Basic.Publish(routing_key="new"))
    expiring += raw_frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 1 << 8) + short(b"1"))
    declare, get = commands.Queue.Declare(queue="new", arguments=dlx), _method(commands.Basic.Get(queue="new"))
    filled = _method(declare) + _publish("", "new") + expiring * 20_000
    yield Cost("Basic.Get behind many expired messages", "amqp", [HELLO, filled, get + get])
    consume = _method(commands.Basic.Consume(queue="new"))
    yield Cost("Basic.Consume behind many expired messages", "amqp", [HELLO, filled, get + consume])
    limited = {**dlx, "x-queue-type": "quorum", "x-delivery-limit": 0}
    filled = _method(commands.Queue.Declare(queue="new", durable=True, arguments=limited))
    for settled in (
        commands.Channel.Close(200, "", 0, 0), commands.Basic.Recover(requeue=True),
        commands.Basic.Nack(0, multiple=True, requeue=True),
    ):  # fmt: skip
        yield Cost(
            f"{settled.name} of many that exceed the delivery limit",
            "amqp",
            [HELLO, filled + _publish("", "new") * 20_000, consume, _method(settled)],
        )
    delayed = commands.Exchange.Declare(
        exchange="new", exchange_type="x-delayed-message", arguments={"x-delayed-type": "direct"}
    )
    late = _publish("new", headers=short(b"x-delay") + b"I" + (300).to_bytes(4))
    yield Cost("many delayed messages", "amqp", [HELLO, _method(delayed) + late * 30_000])


def requeue_costs() -> Iterator[Cost]:
    """AMQP 0-9-1: half a million or a million messages that one frame requeues, from one queue or from a thousand."""
    count = 500_000
    acquired = _method(commands.Basic.Consume(queue="new"))
    for kind, settled in (
        ("classic", commands.Basic.Nack(0, multiple=True, requeue=True)),
        ("quorum", commands.Basic.Recover(requeue=True)),
        ("quorum", commands.Channel.Close(200, "", 0, 0)),
        ("classic", None),
    ):
        declared = _method(commands.Queue.Declare(queue="new", durable=True, arguments={"x-queue-type": kind}))
        name, end = ("a lost connection", b"") if settled is None else (settled.name, _method(settled))
        parts = [HELLO, declared + _publish("", "new") * count, acquired, end]
        yield Cost(f"{name} requeues half a million of a {kind} queue", "amqp", parts)
    all_of = b"".join(_method(commands.Basic.Consume(queue=f"s{n}", nowait=True)) for n in range(1000))
    parts = [HELLO, all_of, _publish("fanout") * (count // 1000), _method(commands.Basic.Recover(requeue=True))]
    yield Cost("Basic.Recover requeues half a million of a thousand queues", "amqp", parts)
    declared = _method(commands.Queue.Declare(queue="new", durable=True)) + _publish("", "new") * 1_000_000
    for tag in (0, 999_999):
        parts = [HELLO, declared, acquired, _method(commands.Basic.Nack(tag, multiple=True, requeue=True))]
        yield Cost(f"Basic.Nack with the tag {tag} requeues a million", "amqp", parts)


def drop_costs() -> Iterator[Cost]:
    """AMQP 0-9-1: half a million or more messages that are dropped at once."""
    filled = _publish("", "new") * 1_500_000
    quorum = {"x-queue-type": "quorum"}
    for name, declared, last in (
        ("Queue.Purge", commands.Queue.Declare(queue="new"), [commands.Queue.Purge(queue="new")]),
        ("Queue.Delete", commands.Queue.Declare(queue="new", durable=True, arguments=quorum),
         [commands.Queue.Delete(queue="new")]),
        ("a lost connection", commands.Queue.Declare(queue="new", exclusive=True), []),
    ):  # fmt: skip
        yield Cost(f"{name} drops 1,500,000 messages", "amqp", [HELLO, _method(declared) + filled, *map(_method, last)])
    both = b"".join(
        _method(commands.Queue.Declare(queue=name, durable=True, arguments=quorum))
        + _method(commands.Queue.Bind(queue=name, exchange="amq.fanout"))
        for name in ("new", "other")
    )
    parts = [HELLO, both, *[_publish("amq.fanout") * 50_000] * 10, _method(commands.Queue.Purge(queue="new"))]
    yield Cost("Queue.Purge drops half a million messages that lie between those of another queue", "amqp", parts)


def unbinding_costs() -> Iterator[Cost]:
    """AMQP 0-9-1: a queue or an exchange that is deleted with 200,000 bindings."""

    def bound(binding: Frame) -> bytes:
        return b"".join(_method(binding).replace(b"000000", b"%06d" % n) for n in range(200_000))

    to_queue = commands.Queue.Bind(queue="new", exchange="amq.direct", routing_key="000000", nowait=True)
    to_exchange = commands.Exchange.Bind(destination="new", source="amq.direct", routing_key="000000", nowait=True)
    from_exchange = commands.Queue.Bind(queue="s0", exchange="new", routing_key="000000", nowait=True)
    exchange, deletion = commands.Exchange.Declare(exchange="new"), commands.Exchange.Delete(exchange="new")
    consume = commands.Basic.Consume(queue="new", consumer_tag="t")
    for name, declared, binding, last in (
        ("Queue.Delete", commands.Queue.Declare(queue="new"), to_queue, [commands.Queue.Delete(queue="new")]),
        ("auto-delete", commands.Queue.Declare(queue="new", auto_delete=True), to_queue,
         [consume, commands.Basic.Cancel(consumer_tag="t")]),
        ("exclusive, a lost connection", commands.Queue.Declare(queue="new", exclusive=True), to_queue, []),
        ("Exchange.Delete, to it", exchange, to_exchange, [deletion]),
        ("Exchange.Delete, from it", exchange, from_exchange, [deletion]),
    ):  # fmt: skip
        parts = [_method(declared) + bound(binding), *map(_method, last)]
        yield Cost(f"deletion with 200,000 bindings: {name}", "amqp", [HELLO, *parts])


# -- the stream protocol


def _frame(key: int, body: bytes = b"", version: int = 1) -> bytes:
    return struct.pack(">IHH", len(body) + 4, key, version) + body


def _request(key: int, body: bytes = b"") -> bytes:
    return _frame(key, bytes(4) + body)


def stream_costs() -> Iterator[Cost]:
    """Yield costs of the stream protocol."""
    login, publisher = (
        b"".join(STREAM_LOGIN),
        _request(raw_stream.DECLARE_PUBLISHER, b"\1" + string("p") + string("plain")),
    )
    names = [f"new{n}" for n in range(_BODY_BYTES // 20)]
    numbers = {str(n): "x" for n in range(_BODY_BYTES // 12)}
    streams = ("plain", "chunks", "segments", "batches", "super", "s0", "fanout", "direct")

    def cost(name: str, *parts: bytes) -> Cost:
        return Cost(f"stream: {name}", "stream", [login + publisher, *parts])

    yield Cost(
        "stream: PeerProperties",
        "stream",
        [_request(raw_stream.PEER_PROPERTIES, table({str(n): "" for n in range(6000)}))],
    )
    for what, pairs in {"many": numbers, "one long": {"a": "x" * 32_767}}.items():
        yield cost(f"Create, {what} arguments", _request(raw_stream.CREATE, string("new") + table(pairs)))
        for stream in streams[:4]:
            given = table(
                {f"filter.{key}" if what == "many" else key: value for key, value in list(pairs.items())[:45_000]}
            )
            body = b"\1" + string(stream) + raw_stream.FIRST + struct.pack(">H", 60_000) + given
            yield cost(f"Subscribe to {stream}, {what} properties", _request(raw_stream.SUBSCRIBE, body))
    yield cost(
        "CreateSuperStream",
        _request(raw_stream.CREATE_SUPER_STREAM, string("new") + strings(*names[:8000]) * 2 + table({})),
    )
    same = strings(*names[:8000]) + strings(*["k"] * 8000) + table({})
    yield cost("CreateSuperStream, one key", _request(raw_stream.CREATE_SUPER_STREAM, string("new") + same),
               _request(raw_stream.ROUTE, string("k") + string("new")))  # fmt: skip
    yield cost("DeleteSuperStream", _request(raw_stream.DELETE_SUPER_STREAM, string("super")))
    yield cost("Metadata, names that are not there", _request(raw_stream.METADATA, strings(*names)))
    yield cost("Metadata, empty names", _request(raw_stream.METADATA, struct.pack(">I", 500_000) + bytes(1_000_000)))
    yield cost("Metadata, all names", _request(raw_stream.METADATA, strings(*(f"s{n}" for n in range(2000)), *names)))
    versions = struct.pack(">I", 170_000) + struct.pack(">HHH", 2, 1, 2) * 170_000
    yield cost("ExchangeCommandVersions", _request(raw_stream.EXCHANGE_COMMAND_VERSIONS, versions))
    for stream in streams:
        for key in (raw_stream.STREAM_STATS, raw_stream.PARTITIONS, raw_stream.DELETE, raw_stream.DELETE_SUPER_STREAM):
            yield cost(f"request {key} of {stream}", _request(key, string(stream)))
            if key == raw_stream.PARTITIONS:
                yield cost(f"many requests {key} of {stream}", _request(key, string(stream)) * 300)
        yield cost(f"Route to {stream}", *[_request(raw_stream.ROUTE, string("a.a.a") + string(stream)) * 100] * 2)
        for offset in (raw_stream.FIRST, raw_stream.LAST, raw_stream.NEXT, raw_stream.at(1 << 62), raw_stream.since(1)):
            body = (
                string(stream)
                + offset
                + struct.pack(">H", 60_000)
                + table({"single-active-consumer": "true", "name": "n"})
            )
            many = b"".join(_request(raw_stream.SUBSCRIBE, bytes([n]) + body) for n in range(256))
            yield cost(f"256 subscriptions to {stream} from {offset.hex()[:4]}", many)
    batch = struct.pack(">BHII", 0x80, 65_535, 4 * 65_535, 4 * 65_535) + bytes(4 * 65_535)
    small = struct.pack(">BHII", 0x80, 65_535, 0, 0)
    yield cost(
        "Publish, empty messages", _frame(raw_stream.PUBLISH, b"\1" + struct.pack(">I", 80_000) + bytes(12) * 80_000)
    )
    yield cost("Publish, batches", _frame(raw_stream.PUBLISH, b"\1" + struct.pack(">I", 3) + (bytes(8) + batch) * 3))
    yield cost(
        "Publish, batches of nothing",
        _frame(raw_stream.PUBLISH, b"\1" + struct.pack(">I", 50_000) + (bytes(8) + small) * 50_000),
    )
    yield cost(
        "Publish, filter values",
        _frame(raw_stream.PUBLISH, b"\1" + struct.pack(">I", 60_000) + (bytes(9) + b"\1x" + bytes(4)) * 60_000, 2),
    )
    stored = b"".join(
        _frame(raw_stream.STORE_OFFSET, string(f"r{n}") + string("segments") + bytes(8)) for n in range(50_000)
    )
    second = _request(raw_stream.DECLARE_PUBLISHER, b"\2" + string("") + string("segments"))
    yield cost("StoreOffset, many names", stored, second
               + _frame(raw_stream.PUBLISH, b"\2" + struct.pack(">IQI", 1, 1, 0)) * 20)  # fmt: skip
    producers = b"".join(
        _request(raw_stream.DECLARE_PUBLISHER, b"\2" + string(f"p{n}") + string("segments"))
        + _frame(raw_stream.PUBLISH, b"\2" + struct.pack(">IQI", 1, 1, 0))
        + _request(raw_stream.DELETE_PUBLISHER, b"\2")
        for n in range(2000)
    )
    yield cost("many producers", producers)
    body = b"\1" + string("chunks") + raw_stream.FIRST + struct.pack(">H", 1)
    credit = struct.pack(">BH", 1, 60_000)
    yield cost("Credit, many", _request(raw_stream.SUBSCRIBE, body), _frame(raw_stream.CREDIT, credit) * 10_000)


# -- AMQP 1.0


def amqp10_costs() -> Iterator[Cost]:  # noqa: C901 - a list
    """AMQP 1.0."""
    large: dict[str, Any] = {
        "map": {Symbol(str(n)): "x" for n in range(3000)},
        "list": [True] * 60_000,
        "array": Array([Symbol("a")] * 20_000),
        "text": "x" * 60_000,
    }
    start = amqp10.HELLO + amqp10.DECLARE + amqp10.LINKS

    def cost(name: str, *parts: bytes) -> Cost:
        return Cost(f"AMQP 1.0: {name}", "amqp10", [start, *parts])

    properties = BareProperties(to="/exchanges/headers/a.a.a")
    for exchange in EXCHANGES[1:]:
        for what, value in large.items():
            target = BareProperties(to=f"/exchanges/{exchange}/a.a.a")
            annotations = {Symbol("x-cc"): value if what == "list" else ["a"], Symbol("x-opt-a"): value}
            sent = _message10(annotations, target, {"a": "b"}).encode()
            yield cost(f"Transfer to {exchange}, {what}", _transfer(sent))
        copies = {Symbol("x-cc"): [str(n) for n in range(8000)]}
        sent = _message10(copies, properties, {}).encode()
        yield cost(
            f"Transfer to {exchange}, many copies", _transfer(sent.replace(b"headers", exchange.encode()[:7].ljust(7)))
        )
    named = _message10({}, properties, {str(n): "x" for n in range(5000)}).encode()
    yield cost("Transfer, many application properties", _transfer(named))
    sent = _message10({}, properties, {}).encode()
    yield cost("Transfer, many data sections", _transfer(sent + b"\x00\x53\x75\xa0\x00" * 12_000))
    pieces = b"".join(
        amqp10.performative(TRANSFER, UInt32(0), UInt32(0), b"t", UInt32(0), False, True, payload=b"\x00")
        for _ in range(30_000)
    )
    yield cost("Transfer of one byte, many", pieces)
    for state in (described(ACCEPTED), described(RELEASED), described(0x25), described(0x27, True, True, {})):
        source = [described(SOURCE, "/queues/full"), described(TARGET)]
        taken = amqp10.attach(12, RECEIVER, *source)
        taken += amqp10.performative(
            FLOW, UInt32(0), UInt32(1 << 30), UInt32(0), UInt32(1 << 30), UInt32(12), UInt32(0), UInt32(1 << 30)
        )
        disposed = amqp10.performative(DISPOSITION, RECEIVER, UInt32(0), UInt32(1 << 30), True, state)
        yield cost(f"Disposition of all, {state.descriptor}", taken, disposed)
        ranges = b"".join(
            amqp10.performative(DISPOSITION, RECEIVER, UInt32(n), UInt32(1 << 30), True, state) for n in range(3000)
        )
        yield cost(f"many Dispositions, {state.descriptor}", taken, ranges)
    grown = described(0x27, False, False, {Symbol("x-a"): [{} for _ in range(12_000)]})
    taken = amqp10.attach(12, RECEIVER, described(SOURCE, "/queues/quorum"), described(TARGET))
    taken += amqp10.performative(
        FLOW, UInt32(0), UInt32(1 << 30), UInt32(0), UInt32(1 << 30), UInt32(12), UInt32(0), UInt32(1 << 30)
    )
    disposed = amqp10.performative(DISPOSITION, RECEIVER, UInt32(0), UInt32(1 << 30), True, grown)
    yield cost("Disposition of all, many annotations", taken, disposed)
    links = b"".join(
        amqp10.attach(n, RECEIVER, described(SOURCE, "/queues/full"), described(TARGET)) for n in range(20, 250)
    )
    yield cost("many links", links)
    sql = " OR ".join(f"a = {n}" for n in range(800))
    filters = {
        "SQL": Described(Symbol("amqp:sql-filter"), sql),
        "deep SQL": Described(Symbol("amqp:sql-filter"), "(" * 2000 + "a = 1" + ")" * 2000),
        "LIKE": Described(Symbol("amqp:sql-filter"), "a LIKE '" + "%a_" * 80 + "b'"),
        "application properties": Described(
            Symbol("amqp:application-properties-filter"), {str(n): "x" for n in range(5000)}
        ),
        "filter values": Described(Symbol("rabbitmq:stream-filter"), [str(n) for n in range(8000)]),
    }
    for what, value in filters.items():
        for stream in ("chunks", "named"):
            given = {Symbol("f"): value, Symbol("o"): Described(Symbol("rabbitmq:stream-offset-spec"), "first")}
            source = described(SOURCE, f"/queues/{stream}", None, None, None, None, None, None, given)
            attached = amqp10.attach(12, RECEIVER, source, described(TARGET))
            flow = amqp10.performative(
                FLOW, UInt32(0), UInt32(1 << 30), UInt32(0), UInt32(1 << 30), UInt32(12), UInt32(0), UInt32(1 << 30)
            )
            yield cost(f"{what} on {stream}", attached + flow)
    for what, value in large.items():
        for path in ("/queues/new", "/exchanges/new", "/bindings"):
            body = {
                "arguments": {"x": value},
                "type": "fanout",
                "source": "topic",
                "destination_queue": "full",
                "binding_key": "k",
            }
            method = "POST" if path == "/bindings" else "PUT"
            yield cost(f"{method} {path}, {what}", amqp10.request(method, path, body))
    for path in (
        "/queues/full",
        "/queues/full/messages",
        "/exchanges/fanout",
        "/exchanges/topic",
        "/queues/dead/messages",
        "/queues/chunks",
    ):
        yield cost(f"DELETE {path}", amqp10.request("DELETE", path))
    for source in EXCHANGES[1:]:
        yield cost(f"GET bindings of {source}", amqp10.request("GET", f"/bindings?src={source}&dstq=full&key="))
    yield cost("many requests", amqp10.request("GET", "/queues/full") * 2000)
    lists = b"\xd0" + struct.pack(">II", 50_000, 2) + b"\xc0\x02\x01\x45" * 12_000
    yield cost("a frame with nested lists", amqp10.performative(ATTACH, "n", UInt32(60), SENDER, payload=lists))


def _message10(annotations: dict[Any, Any], properties: BareProperties, application: dict[str, Any]) -> Amqp10Message:
    return Amqp10Message(MessageHeader(), {}, annotations, properties, application, data_section(b"x"))


def _transfer(sent: bytes) -> bytes:
    """Encode a message as a delivery in as many frames as it needs."""
    size = 60_000
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    return b"".join(
        amqp10.performative(TRANSFER, UInt32(1), UInt32(0), b"t", UInt32(0), False, n < len(pieces) - 1, payload=piece)
        for n, piece in enumerate(pieces)
    )


# -- the management API

_NAMES = {
    "VHOST": "/",
    "QUEUE": "full",
    "EXCHANGE": "fanout",
    "USER": "guest",
    "TYPE": "q",
    "DESTINATION": "full",
    "POLICY": "p0",
}
#: JSON as large as a body may be.
_VALUES = {
    "nested": "[" * 400 + "]" * 400,
    "too deeply nested": "[" * (_BODY_BYTES // 2) + "]" * (_BODY_BYTES // 2),
    "many names": "{" + ",".join(f'"{n}":1' for n in range(_BODY_BYTES // 10)) + "}",
    "a long list": "[" + "1," * (_BODY_BYTES // 2 - 10) + "1]",
    "a long list of lists": "[" + "[]," * (_BODY_BYTES // 3 - 10) + "1]",
    "a long text": '"' + "x" * (_BODY_BYTES - 1000) + '"',
    "a long number": "9" * (_BODY_BYTES - 1000),
    "escapes": '"' + "\\u00e9" * (_BODY_BYTES // 6 - 1000) + '"',
}
_TOO_LARGE = r"(?i)(\pL){300}x"
_QUERIES = ("", "sort=messages&sort_reverse=true", "page=1&page_size=500&name=(a|b)*c%7B50%7D&use_regex=true",
            "page=1&page_size=500&name=.*.*.*.*z&use_regex=true",
            *(f"page=1&use_regex=true&name={quote(pattern)}" for pattern in (_TOO_LARGE, "[^x]" * 250)),
            "columns=" + ",".join(["name"] * 300),
            "lengths_age=3600&lengths_incr=1&msg_rates_age=36000000&msg_rates_incr=1")  # fmt: skip


def _http(method: str, path: str, body: str = "") -> bytes:
    login = base64.b64encode(b"guest:guest").decode()
    lines = [
        f"{method} /api/{path} HTTP/1.1",
        "host: localhost",
        f"authorization: Basic {login}",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, "connection: close", "", body]).encode()


def _definitions(count: int) -> dict[str, str]:
    """Return definitions with many objects of each kind."""
    all_of = {"configure": ".*", "write": ".*", "read": ".*"}
    bound = {"source": "topic", "vhost": "/", "destination": "full", "destination_type": "queue"}
    granted = [{"user": "guest", "vhost": "/", **all_of, "configure": f"{n}"} for n in range(count)]
    limits = {"vhost": "/", "component": "vhost-limits", "name": "limits", "value": {"max-queues": 1_000_000}}
    policy = {"vhost": "/", "definition": {"max-length": 100_000_000}}
    objects: dict[str, list[dict[str, Any]]] = {
        "queues": [{"name": f"new{n}", "vhost": "/", "durable": True, "arguments": {}} for n in range(count)],
        "exchanges": [{"name": f"new{n}", "vhost": "/", "type": "topic"} for n in range(count)],
        "bindings": [{**bound, "routing_key": f"k{n}"} for n in range(count)],
        "users": [{"name": f"u{n}", "password": "p", "tags": ""} for n in range(count)],
        "vhosts": [{"name": f"v{n}"} for n in range(count // 20)],
        "permissions": [*granted, {"user": "guest", "vhost": "/", **all_of}],
        "policies": [{**policy, "name": f"x{n}", "pattern": f"^a{n}"} for n in range(count // 10)],
        "parameters": [limits] * count,
        "operator policies": [
            {
                "vhost": "/",
                "component": "operator_policy",
                "name": f"x{n}",
                "value": {"pattern": f"^a{n}", "definition": {"max-length": 100_000_000}},
            }
            for n in range(count // 60)
        ],
        "global_parameters": [{"name": f"n{n}", "value": n} for n in range(count)],
        "topic_permissions": [
            {"user": "guest", "vhost": "/", "exchange": f"e{n}", "write": f"{n}", "read": ""} for n in range(count)
        ],
    }
    return {
        kind: json.dumps({"parameters" if kind == "operator policies" else kind: each})
        for kind, each in objects.items()
    }


def http_costs() -> Iterator[Cost]:  # noqa: C901 - a list
    """Yield costs of the management API."""
    for path, methods in paths().items():
        if path.startswith("mqtool/"):  # only for tests
            continue
        words = [_NAMES.get(word, "1" if word.isupper() else word) for word in path.split("/")]
        target = "/".join(quote(word, safe="") for word in words)
        kind = next((word for word in reversed(path.split("/")) if word in BODIES), None)
        for method in methods:
            if method == "GET" and "events" not in path:
                for query in (
                    _QUERIES if path in ("queues", "queues/VHOST", "exchanges", "connections") else _QUERIES[:1]
                ):
                    yield Cost(f"{method} {path}?{query[:60]}", "http", [_http(method, f"{target}?{query}")])
            elif method == "DELETE" and target not in ("users/guest", "permissions/%2F/guest"):
                yield Cost(f"{method} {path}", "http", [_http(method, target)])
            elif method in ("PUT", "POST") and "faults" not in path:
                if target.startswith(("users/guest", "permissions/%2F/guest", "vhosts/%2F")):
                    target += "-not"
                for what, value in _VALUES.items():
                    yield Cost(f"{method} {path}, {what}", "http", [_http(method, target, value)])
                    if kind is not None and what in ("many names", "a long list", "a long text"):
                        for name in BODIES[kind]:
                            plain = json.dumps({**BODIES[kind], name: "PLACE"}).replace('"PLACE"', value)
                            yield Cost(f"{method} {path}, {name}: {what}", "http", [_http(method, target, plain)])
    for kind, body in _definitions(6000).items():
        yield Cost(f"definitions of many {kind}", "http", [_http("POST", "definitions", body)])
    for definition in (
        {"max-length": 0},
        {"message-ttl": 0},
        {"expires": 1},
        {"max-length-bytes": 1},
        {"alternate-exchange": "x"},
    ):
        for pattern in (".*", "^full$", "^(dead|priority)$", _TOO_LARGE):
            body = json.dumps({"pattern": pattern, "definition": definition, "priority": 9})
            yield Cost(f"policy {definition} for {pattern}", "http", [_http("PUT", "policies/%2F/new", body)])
    for count, mode in ((5, "ack_requeue_true"), (100_000, "ack_requeue_true"), (100_000, "reject_requeue_false")):
        body = json.dumps({"ackmode": mode, "count": count, "encoding": "auto"})
        for queue in QUEUES:
            yield Cost(f"get {count} from {queue}, {mode}", "http", [_http("POST", f"queues/%2F/{queue}/get", body)])
    for exchange in EXCHANGES[1:]:
        for what, headers in {
            "copies": {"CC": [str(n) for n in range(12_000)]}, "headers": {str(n): n for n in range(9000)},
            "a list": {"a": [True] * 60_000}, "more than a table may have": {"a": [1] * 300_000},
        }.items():  # fmt: skip
            body = json.dumps(
                {
                    "properties": {"headers": headers},
                    "routing_key": "a.a.a",
                    "payload": "x",
                    "payload_encoding": "string",
                }
            )
            yield Cost(
                f"publish to {exchange} over HTTP, {what}",
                "http",
                [_http("POST", f"exchanges/%2F/{exchange}/publish", body)],
            )
    yield from binding_costs()
    # An overview sums up all queues, which takes about 30 ms here.
    for target, count in (("/", 2000), ("whoami", 2000), ("overview", 200), ("nodes", 2000)):
        request = _http("GET", target).replace(b"\r\nconnection: close", b"")
        yield Cost(f"many requests of {target} in one write", "http", [request * count])
    yield Cost("many headers", "http", [_http("GET", "whoami").replace(b"\r\nconn", b"\r\na:" * 3000 + b"\r\nconn")])


def binding_costs() -> Iterator[Cost]:
    """The management API: one queue with many bindings."""
    bound = {"source": "topic", "vhost": "/", "destination": "full", "destination_type": "queue"}
    parts = []
    for first in range(0, 27_000, 9000):
        body = json.dumps({"bindings": [{**bound, "routing_key": f"k{n}"} for n in range(first, first + 9000)]})
        parts.append(_http("POST", "definitions", body).replace(b"\r\nconnection: close", b""))
    path = "bindings/%2F/e/topic/q/full"
    for target in (path, f"{path}/x", "queues/%2F/full/bindings", "exchanges/%2F/topic/bindings/source"):
        yield Cost(f"GET {target}, many bindings", "http", [*parts, _http("GET", target)])
    for method, target in (("GET", "definitions"), ("DELETE", "queues/%2F/full"), ("DELETE", "exchanges/%2F/topic")):
        requests = [*parts, *(part.replace(b'"k', b'"%d' % n) for n in range(5) for part in parts)]
        yield Cost(f"{method} {target}, 160,000 bindings", "http", [*requests, _http(method, target)])
    yield Cost("DELETE one of many bindings", "http", [*parts, _http("DELETE", f"{path}/k26999")])


#: Yield the costs of each protocol.
WIRES: dict[str, Callable[[], Iterator[Cost]]] = {
    "amqp": amqp_costs, "stream": stream_costs, "amqp10": amqp10_costs, "http": http_costs,
}  # fmt: skip


# -- the broker


class World:
    """A broker with many queues, bindings, messages, chunks and segments, and clients that send costs to it.

    Args:
        like: the version of RabbitMQ.
        data_dir: a data directory; None keeps everything in memory.
        size: the number of queues, and of bindings of each exchange.
    """

    def __init__(self, like: str, data_dir: Path | None = None, size: int = 1000) -> None:
        self._broker = EmbeddedBroker(
            stream_port=0, management_port=0, like=like, data_dir=data_dir, memory_limit=1 << 40
        )
        self._size = size

    def __enter__(self) -> Self:
        gc.disable()  # how long a collection takes depends on all objects of this process
        self._broker.start()
        self._watch = LoopWatch(self._broker)
        stream_port = self._broker.stream_port
        management = urlsplit(self._broker.management_url or "").port
        self._ports = {
            "amqp": self._broker.port,
            "amqp10": self._broker.port,
            "stream": stream_port,
            "http": management,
        }
        return self

    def __exit__(self, *_: object) -> None:
        self._broker.stop()
        gc.enable()

    def longest_turn(self, cost: Cost) -> float:
        """Send the parts of a cost, and return the longest turn of the event loop, in seconds of CPU time.

        Raises:
            TimeoutError: the broker does not finish.
        """
        self._fill()
        with socket.create_connection(("127.0.0.1", self._ports[cost.wire] or 0), timeout=_PATIENCE) as client:
            reader = threading.Thread(target=_drain, args=(client,), daemon=True)
            reader.start()
            for part in cost.parts:
                with suppress(OSError):  # the broker may refuse it, and close the connection
                    client.sendall(part)
                self._settle(cost)
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            reader.join()
        self._settle(cost)
        return self._watch.take()

    def _settle(self, cost: Cost) -> None:
        if not self._watch.settle(_PATIENCE):
            raise TimeoutError(f"the broker is still busy after {_PATIENCE} s: {cost.name}")

    def _fill(self) -> None:
        """Declare and publish again what a cost has deleted, and delete what it has added."""
        is_stored = threading.Event()
        steps = self._filling(is_stored)
        while self._broker.under_test(lambda _: next(steps, is_stored)) is not is_stored:
            pass
        is_stored.wait(_PATIENCE)
        self._settle(Cost("preparation", "", []))
        self._watch.take()

    def _filling(self, is_stored: threading.Event) -> Iterator[None]:
        """Yield after each step: with a data directory on a busy machine, each takes seconds."""
        server = self._broker._server
        assert server is not None
        broker = server.broker
        if len(broker.vhosts) > 100:
            for name in [name for name in broker.vhosts if name != "/"]:
                broker.delete_vhost(name)
                yield
        if "/" not in broker.vhosts:
            broker.create_defaults()
        if broker.users["guest"].topic_permissions:
            broker.save_user(replace(broker.users["guest"], topic_permissions={}))
        # With a data directory, each segment is a file that is synced.
        yield from Contents(broker.vhosts["/"], self._size, segments=200 if broker.ledger.on_disk else 2000).fill()
        broker.ledger.after_commit(is_stored.set)


class Contents:
    """What the virtual host `/` contains."""

    def __init__(self, vhost: VirtualHost, size: int, *, segments: int) -> None:
        self._vhost, self._size, self._segments = vhost, size, segments

    def fill(self) -> Iterator[None]:  # noqa: C901 - a list
        vhost, size = self._vhost, self._size
        for kind, policies in vhost.policies.by_kind.items():
            for name in list(policies):
                vhost.policies.delete(kind, name)
        names = {*(f"s{n}" for n in range(size)), *QUEUES, "plain", "named", *(f"p{n}" for n in range(size))}
        for name in [name for name in vhost.queues if name not in names]:
            vhost.delete_queue(vhost.queues[name])
        exchanges = {*EXCHANGES[1:], "super", "dead-letters", *(f"e{n}" for n in range(size))}
        for exchange in [
            each for each in vhost.exchanges.values() if not each.predeclared and each.name not in exchanges
        ]:
            vhost.delete_exchange(exchange)
        yield
        queues = [self._queue(f"s{n}") for n in range(size)]
        for queue in queues:
            queue.purge()
        full = self._queue("full", {"x-dead-letter-exchange": "dead-letters"})
        priority = self._queue("priority", {"x-max-priority": 255})
        quorum = self._queue("quorum", {"x-queue-type": "quorum"})
        dead = self._queue("dead", {"x-dead-letter-exchange": "fanout"})
        for index, (kind, source) in enumerate(
            {
                "fanout": "fanout",
                "topic": "topic",
                "headers": "headers",
                "direct": "direct",
                "dead-letters": "fanout",
            }.items()
        ):
            if kind in vhost.exchanges and len([*vhost.exchanges[kind].bindings]) >= (
                10 if kind == "dead-letters" else size
            ):
                continue
            exchange = self._exchange(kind, source)
            for number, queue in enumerate(queues if kind != "dead-letters" else queues[:10]):
                keys = ("a.a.a", f"#.{number}.#", "a.a.a", "a.a.a", "")
                vhost.bind(exchange, queue, keys[index], {"x-match": "any", "a": [number]} if kind == "headers" else {})
        yield
        if "chain" not in vhost.exchanges or f"e{size - 1}" not in vhost.exchanges:
            last = self._exchange("chain", "fanout")
            for number in range(size):
                following = self._exchange(f"e{number}", "fanout")
                vhost.bind(last, following, "", {})
                last = following
        yield
        if "super" not in vhost.exchanges or f"p{size - 1}" not in vhost.queues:
            exchange = self._exchange("super", "direct")
            for number in range(size):
                stream = self._queue(f"p{number}", {"x-queue-type": "stream"})
                vhost.bind(exchange, stream, "a.a.a", {"x-stream-partition-order": Int64(number)})
        for queue, count in ((full, 20_000), (priority, 5000), (quorum, 5000), (dead, 300)):
            for _ in range(max(count - len(queue), 0)):
                queue.publish(_message())
        yield from self._streams()

    def _streams(self) -> Iterator[None]:
        counts = {"plain": 1, "chunks": 2000, "segments": self._segments, "batches": 5, "named": 3000}
        for name, count in counts.items():
            yield
            arguments = {"x-queue-type": "stream"}
            stream = self._queue(
                name, {**arguments, "x-stream-max-segment-size-bytes": Int64(1)} if name == "segments" else arguments
            )
            if len(stream):
                continue
            log = stream.log  # type: ignore[attr-defined]
            for _ in range(count):
                if name == "named":
                    stream.publish(_message())
                elif name == "batches":
                    data = struct.pack(">BHII", 0x80, 65_535, 4 * 65_535, 4 * 65_535) + bytes(4 * 65_535)
                    log.append(data, records=65_535)
                else:
                    log.append(b"\0\0\0\5\0\x53\x75\xa0\0")
                log.prepare()
            # All chunks together: with a data directory, each write is synced.
            log.write()
            log.commit()

    def _queue(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        found = self._vhost.queues.get(name)
        return found or self._vhost.add_queue(QueueDeclaration(name, arguments or {}))

    def _exchange(self, name: str, kind: str) -> BrokerExchange:
        if name not in self._vhost.exchanges:
            self._vhost.add_exchange(BrokerExchange(name, kind))
        return self._vhost.exchanges[name]


_HEADER = ContentHeader(
    header.ContentHeader(0, 1, commands.Basic.Properties(headers={"a": 1}, delivery_mode=2)).marshal()
)


def _message() -> BrokerMessage:
    return BrokerMessage(short(b"") + short(b"k"), _HEADER, b"x")


def _drain(client: socket.socket) -> None:
    with suppress(OSError):
        while client.recv(1 << 20):
            pass


def measure(costs: list[Cost], world: World, report: Callable[[str], object] = print) -> list[str]:
    """Return one line for each cost that blocks the event loop for longer than LIMIT."""
    found = []
    for cost in costs:
        longest = world.longest_turn(cost)
        if longest > LIMIT:
            found.append(f"{longest:.2f} s: {cost.name}")
            report(found[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", default="", help="measure only costs whose names contain this text")
    arguments = parser.parse_args()
    draw, found, count = random.Random(arguments.seed), list[str](), 0
    deadline = time.monotonic() + arguments.seconds
    while time.monotonic() < deadline:
        with (
            tempfile.TemporaryDirectory() as directory,
            World(draw.choice(["3.10", "4.3"]), draw.choice([None, Path(directory)])) as world,
        ):
            for cost in WIRES[draw.choice([*WIRES])]():
                if arguments.only in cost.name and draw.random() < 0.5:
                    found += measure([cost], world)
                    count += 1
                if time.monotonic() > deadline:
                    break
    print(f"seed {arguments.seed}: {count} costs")
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
