"""Finds operations after which clients see something else on the embedded broker than on RabbitMQ: `make differ`.

`draw()` makes a random sequence of operations from the tables below: declarations, and what clients of AMQP 0-9-1,
AMQP 1.0, the stream protocol and the management API do. `difference()` performs a sequence on both brokers. After each
operation it waits until clients of both have been told the same: the reply, the deliveries of each consumer with all
headers, and the number of messages and consumers of each queue. At the end it empties all queues. If the brokers still
differ after a time limit, or if a reply differs, `shortest()` leaves out as much as possible.

An operation is a tuple of a name, which is a method of Side, and plain values. Print it, and it can be pasted into
SEQUENCES of tests/protocol/test_differential.py.
"""

import argparse
import collections
import contextlib
import http.client
import itertools
import json
import logging
import os
import re
import select
import struct
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import datetime
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pamqp import commands, frame
from pamqp.base import Frame as Method
from pamqp.commands import Basic, Channel, Confirm, Exchange, Queue, Tx

from mqtool.broker import ports
from mqtool.broker.choice import STARTERS, BrokerKind
from mqtool.broker.embedded import EmbeddedBroker
from mqtool.broker.state import Wanted
from mqtool.codecs import field_tables
from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, MessageHeader, data_section
from mqtool.codecs.amqp10_values import Milliseconds, Symbol
from mqtool.codecs.field_tables import CLIENT, Int32, Int64L, UInt8, UInt32
from mqtool.message import PROPERTIES as NAMES
from tests.brokers import TestBroker, from_environment
from tests.protocol import raw_amqp10 as amqp10
from tests.protocol import raw_stream
from tests.protocol.raw_amqp10 import RawAmqp10, described
from tests.protocol.raw_client import RawClient

Operation = tuple[Any, ...]

#: A time that is over before the next operation, and one that never is, in milliseconds.
SOON, NEVER = 21, 600_000
#: Seconds that pass after each operation of a sequence with such a short time: up to three of them in a row.
_SOON_IS_OVER = 0.12
#: Seconds within which a broker answers, and within which both have told clients the same: at first, and to be sure.
_ANSWERS_WITHIN, _PATIENCE, _MORE_PATIENCE = 20.0, 1.0, 5.0


#: Stands for an integer whose type on the wire is `L`.
LONG = "5L"

# What operations are drawn from: choices of a value, or, in a dict, names with their choices, for a list of pairs.

QUEUES = ("a", "b", "c")
KEYS = ("a", "a", "b", "c", "k")
CLIENTS = ("p", "q", "1.0")
NUMBERS = (0, 1, 2, 3)

# Not x-max-length-bytes: the embedded broker counts bodies, but RabbitMQ also the AMQP 1.0 sections that it stores and,
# in quorum queues of 4.3, properties.
_BOTH = {
    "x-message-ttl": (0, SOON, NEVER),
    "x-max-length": (1, 2),
    "x-overflow": ("reject-publish", "drop-head"),
    "x-dead-letter-exchange": ("", "x"),
    "x-dead-letter-routing-key": ("b", "c", "k"),
    "x-single-active-consumer": (True,),
}
CLASSIC = _BOTH | {"x-max-priority": (2,), "x-overflow": ("reject-publish", "drop-head", "reject-publish-dlx")}
QUORUM = _BOTH | {
    "x-delivery-limit": (0, 1, 2),
    "x-dead-letter-strategy": ("at-least-once",),
    "x-delayed-retry-type": ("all", "failed", "returned"),
    "x-delayed-retry-min": (SOON, NEVER),
    "x-delayed-retry-max": (NEVER,),
}
HEADERS = {
    "z": (1, "text"),
    "a": (True, {"z": 1, "a": [2]}),
    "n": (LONG, 2**40),
    "CC": (["b"], ["c", "k"]),
    "BCC": (["b"], ["k"]),
    "x-death": ([{"queue": "other", "reason": "rejected", "count": 3}],),
}
PROPERTIES = {
    "delivery_mode": (1, 2),
    "priority": (0, 1, 9),
    "expiration": ("0", str(SOON), str(NEVER)),
    "correlation_id": ("7",),
    "type": ("t",),
}
HEADER_10 = {"durable": (True, False), "priority": (2, 9), "ttl": (SOON, NEVER)}
ANNOTATIONS = {"x-cc": (["b"], ["k"]), "x-note": ("text",)}
PROPERTIES_10 = {"subject": ("s",), "group_id": ("g",), "message_id": ("m",), "reply_to": ("/queues/c",)}
#: How a message is settled: the method of AMQP 0-9-1, and the outcome of AMQP 1.0.
SETTLING: dict[str, tuple[Method, Any]] = {
    "ack": (Basic.Ack(), described(amqp10.ACCEPTED)),
    "reject": (Basic.Reject(requeue=False), described(amqp10.REJECTED)),
    "nack": (Basic.Nack(requeue=False), described(amqp10.MODIFIED, False, True)),
    "reject, requeue": (Basic.Reject(requeue=True), described(amqp10.MODIFIED, True)),
    "nack, requeue": (Basic.Nack(requeue=True), described(amqp10.RELEASED)),
}
ACKMODES = ("ack_requeue_true", "ack_requeue_false", "reject_requeue_true", "reject_requeue_false")
FLAG = (False, True)

#: Operations that are one method, and what it is sent with.
METHODS: dict[str, Any] = {
    **{
        kind: lambda name, options, kind=kind: Queue.Declare(
            queue=name, durable=True, arguments={"x-queue-type": kind, **dict(options)}
        )
        for kind in ("classic", "quorum", "stream")
    },
    "exchange": lambda kind: Exchange.Declare(exchange="x", exchange_type=kind),
    "bind": lambda queue, key: Queue.Bind(queue=queue, exchange="x", routing_key=key),
    "unbind": lambda queue, key: Queue.Unbind(queue=queue, exchange="x", routing_key=key),
    "purge": lambda queue: Queue.Purge(queue=queue),
    "delete": lambda queue, if_unused, if_empty: Queue.Delete(queue=queue, if_unused=if_unused, if_empty=if_empty),
}
#: Operations that are one request to the management API: method, path and body.
REQUESTS: dict[str, Any] = {
    "http_publish": lambda exchange, key, properties: (
        *("POST", f"exchanges/V/{exchange}/publish"),
        {"routing_key": key, "payload": "http", "payload_encoding": "string", "properties": dict(properties)},
    ),
    "http_get": lambda queue, mode: (
        "POST",
        f"queues/V/{queue}/get",
        {"count": 1, "ackmode": mode, "encoding": "auto"},
    ),
    "http_purge": lambda queue: ("DELETE", f"queues/V/{queue}/contents", None),
    "http_delete": lambda queue, query: ("DELETE", f"queues/V/{queue}{query}", None),
}

#: Each operation with its weight (those that take seconds are rare), and what each of its values is drawn from.
OPERATIONS: dict[str, tuple[Any, ...]] = {
    "classic": (2, QUEUES, CLASSIC),
    "quorum": (2, QUEUES, QUORUM),
    "stream": (1, ("b", "c"), {"x-max-length-bytes": (1_000_000,)}),
    "exchange": (1, ("direct", "fanout", "topic", "headers")),
    "bind": (1, QUEUES, KEYS),
    "unbind": (1, QUEUES, KEYS),
    "purge": (1, QUEUES),
    "delete": (1, QUEUES, FLAG, FLAG),
    "publish": (14, ("", "", "x"), KEYS, HEADERS, PROPERTIES),
    "commit": (6, ("", "", "x"), KEYS, (1, 2, 3)),
    "get": (8, QUEUES, (*SETTLING, "keep")),
    "consume": (6, ("p", "q"), QUEUES, (0, 1, 2), FLAG, {"x-priority": (1, 10), "x-stream-offset": ("first", 1)}),
    "consume_exclusively": (3, ("p", "q"), QUEUES),
    "settle": (12, NUMBERS, tuple(SETTLING)),
    "cancel": (2, NUMBERS),
    "recover": (1, ("p", "q")),
    "close": (2, CLIENTS),
    "cut": (2, CLIENTS),
    "outlast": (0.1, QUEUES, FLAG),
    "send": (6, ("/queues/a", "/queues/b", "/exchanges/x/k"), HEADER_10, ANNOTATIONS, PROPERTIES_10, HEADERS),
    "attach": (4, QUEUES, (1, 2, 100), {"rabbitmq:priority": (1, 10)}),
    "stream_publish": (2, ("b", "c")),
    "stream_read": (2, ("b", "c"), (0, 1)),
    "http_publish": (3, ("amq.default", "x"), KEYS, {"priority": (1,), "expiration": (str(NEVER),)}),
    "http_get": (3, QUEUES, ACKMODES),
    "http_purge": (1, QUEUES),
    "http_delete": (1, QUEUES, ("", "?if-empty=true", "?if-unused=true")),
    "http_counts": (0.1, QUEUES),
}
#: Operations, options, properties and headers that belong together.
THEMES = (
    "x-max-length x-overflow commit http_publish",
    "x-dead-letter-exchange x-dead-letter-routing-key x-death CC BCC bind",
    "x-dead-letter-exchange x-dead-letter-routing-key x-dead-letter-strategy x-overflow purge delete http_counts",
    "x-single-active-consumer x-priority rabbitmq:priority cancel cut consume_exclusively attach",
    "x-delayed-retry-type x-delayed-retry-min x-delayed-retry-max x-max-length recover delete http_counts",
    "x-delivery-limit x-dead-letter-exchange x-dead-letter-routing-key cut outlast http_get",
    "x-message-ttl expiration ttl x-dead-letter-exchange",
    "x-max-priority priority",
    "z a n CC BCC delivery_mode correlation_id type",
    "send attach cut durable x-cc x-note subject group_id message_id reply_to z a priority",
    "stream stream_publish stream_read x-stream-offset",
    "http_publish http_get http_purge http_delete http_counts purge",
    "classic quorum exchange bind unbind purge delete",
)
#: Before, there was no AMQP 1.0 without a plugin, and a consumer could not choose its timeout.
_ONLY_SINCE = {"send": (4, 0), "attach": (4, 0), "outlast": (4, 3)}


def draw(seed: int, like: str) -> list[Operation]:
    """Return the sequence of this seed, for a version of RabbitMQ such as 4.3.

    Its operations, options and headers are those of a few themes, so that they meet.
    """
    random, version = Random(seed), tuple(map(int, like.split(".")))
    themes = " ".join(["publish get consume settle close", *random.sample(THEMES, 3)]).split()
    few = sorted({name for name in themes if name in OPERATIONS and version >= _ONLY_SINCE.get(name, (0,))})
    is_soon = random.random() < 0.2  # they wait after each operation

    def soon(value: Any) -> Any:
        return type(value)(NEVER) if value in (SOON, str(SOON)) and not is_soon else value

    def value(choices: Any) -> Any:
        if not isinstance(choices, dict):
            return random.choice(choices)
        drawn = [name for name in choices if name in themes and random.random() < 0.6]
        random.shuffle(drawn)
        if choices is HEADERS and version >= (4, 0) and "z" in drawn:
            drawn += ["z"] * (random.random() < 0.3)  # in 3.10, most operations keep duplicates
        return [(name, soon(random.choice(choices[name]))) for name in drawn]

    def operation(name: str) -> Operation:
        return (name, *map(value, OPERATIONS[name][1:]))

    kinds = ["classic", "quorum", *["stream"] * ("stream" in themes)]
    declared = [random.choice(kinds[:2]), random.choice(kinds), random.choice(kinds)]
    sequence = [(kind, queue, operation(kind)[2]) for kind, queue in zip(declared, QUEUES, strict=True)]
    if random.random() < 0.6:
        sequence += [operation("exchange"), *[operation("bind") for _ in range(random.choice((1, 2)))]]
    weights = [OPERATIONS[name][0] for name in few]
    return sequence + [operation(name) for name in random.choices(few, weights, k=random.choice((6, 12, 24)))]


# Clients


class Client091:
    """A connection with one channel, which is opened again if the broker closes it."""

    def __init__(self, side: "Side", *, confirms: bool = True) -> None:
        self.side, self.confirms, self.returned = side, confirms, 0
        self.connect()

    def connect(self) -> None:
        self.raw = RawClient(self.side.broker.url)
        self.raw.socket.settimeout(_ANSWERS_WITHIN)
        if self.confirms:
            self.call(Confirm.Select())

    def _reopened(self) -> Any:
        return self.call(Channel.Open()), self.confirms and self.call(Confirm.Select())

    def call(self, method: Method) -> Any:
        """Send a method; return its reply, or the text of the error with which the broker closes the channel."""
        self.raw.send(method)
        return self.reply()

    def reply(self) -> Any:
        while (got := self.receive()) is None:
            pass
        return got

    def receive(self) -> Any:
        """Handle a frame; return it if it is a reply."""
        got = self._frame()
        match got:
            case Basic.Deliver():
                self.side.delivered(self, got.consumer_tag, got.delivery_tag, self.content(got))
            case Basic.Return():
                self.content(got)
                self.returned = got.reply_code
            case Basic.Cancel():
                self.side.cancelled(got.consumer_tag)
            case Channel.Close():
                self.raw.send(Channel.CloseOk())
                self.side.lost(self)
                self._reopened()
                return f"{got.reply_code} {got.reply_text}"
            case commands.Connection.Close():
                self.raw.send(commands.Connection.CloseOk(), 0)
                self.raw.socket.close()
                self.connect()
                self.side.lost(self)
                return f"connection closed: {got.reply_code} {got.reply_text}"
            case Basic.GetOk():
                return got, self.content(got)
            case _:
                return got
        return None

    def _frame(self) -> Any:
        head = self.raw.read(7)
        payload = self.raw.read(int.from_bytes(head[3:]) + 1)
        return frame.unmarshal(head + payload)[2] if head[0] == 1 else payload[:-1] if head[0] < 8 else None

    def content(self, method: Any) -> str:
        """Read a message; return what is to be seen of it."""
        head, body = self._frame(), b""
        while len(body) < int.from_bytes(head[4:12]):
            body += self._frame()
        properties = field_tables.decode_properties(head[12:])
        shown = {name: value if name != "headers" else typed(value) for name, value in properties.items()}
        if field_tables.header_size(properties) != len(head):
            shown["and"] = "headers of the same name"
        again = " redelivered" if getattr(method, "redelivered", False) else ""
        return f"{body.decode(errors='replace')}{again} from {method.exchange!r} {method.routing_key!r} {shown}"

    def publish(self, exchange: str, key: str, body: bytes, headers: list[Any], properties: dict[str, Any]) -> None:
        table = b"".join(
            field_tables.encode_short_string(name) + CLIENT.encode_value(Int64L(5) if value == LONG else value)
            for name, value in headers
        )
        parts = {"headers": struct.pack(">I", len(table)) + table} if headers else {}
        parts |= {name: field_tables.encode_property(name, value) for name, value in properties.items()}
        flags = sum(1 << (15 - NAMES.index(name)) for name in parts)
        content = struct.pack(">HHQH", 60, 0, len(body), flags) + b"".join(
            parts[name] for name in NAMES if name in parts
        )
        self.raw.send(Basic.Publish(exchange=exchange, routing_key=key, mandatory=True))
        for kind, payload in ((2, content), (3, body)):
            self.raw.socket.sendall(struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce")

    def settle(self, tag: Any, how: str) -> Any:
        method = SETTLING[how][0]
        method.delivery_tag = tag
        self.raw.send(method)
        return self.call(Channel.Flow(active=True))  # its reply comes after the message was settled

    def close(self) -> Any:
        return self.call(Channel.Close(200, "", 0, 0)), self._reopened()

    def cancel(self, tag: str) -> Any:
        return self.call(Basic.Cancel(consumer_tag=tag))


class Client10:
    """A connection of AMQP 1.0 with one session, which is opened again if the broker ends it."""

    def __init__(self, side: "Side") -> None:
        self.side = side
        self.connect()

    def connect(self) -> None:
        self.raw = RawAmqp10(self.side.broker.url)
        self.raw.socket.settimeout(_ANSWERS_WITHIN)
        self.links: list[str] = []
        self.sent = 0

    def receive(self) -> Any:
        got = self.raw.receive()
        if got.code == amqp10.TRANSFER:
            self.side.delivered(self, self.links[got.fields[0]], got.fields[1], shown_10(got.payload))
        elif got.code in (amqp10.END, amqp10.CLOSE):
            self.raw.socket.close()
            self.connect()
            self.side.lost(self)
            return str(got.error)
        elif got.code == amqp10.DETACH and got.error:
            tag = self.links[got.fields[0]]
            self.raw.send(amqp10.DETACH, UInt32(got.fields[0]), True)
            return self.side.cancelled(tag) if tag else str(got.error)
        return got

    def reply(self, code: int) -> Any:
        """Return the next frame of this kind, or the text of an error."""
        while not (got := self.receive()) or (not isinstance(got, str) and got.code != code):
            pass
        return got

    def publish(self, address: str, payload: bytes) -> Any:
        handle = len(self.links)
        self.links.append("")
        self.raw.attach(amqp10.SENDER, address, handle=handle)
        for code in (amqp10.ATTACH, amqp10.FLOW):
            if isinstance(got := self.reply(code), str):
                return got
        self.raw.publish(self.sent, payload, handle=handle)
        self.sent += 1
        outcome = self.reply(amqp10.DISPOSITION)
        if not isinstance(outcome, str):
            outcome = _outcome(outcome)
            self.raw.send(amqp10.DETACH, UInt32(handle), True)
            self.reply(amqp10.DETACH)
        return outcome

    def attach(self, queue: str, tag: str, credit: int, properties: dict[str, int]) -> Any:
        handle = len(self.links)
        self.links.append(tag)
        rest = (None, None, None, {Symbol(name): Int32(value) for name, value in properties.items()})
        self.raw.attach(amqp10.RECEIVER, f"/queues/{queue}", handle=handle, rest=rest)
        if not isinstance(got := self.reply(amqp10.ATTACH), str):
            self.raw.flow(handle, credit)
            return "attached"
        return got

    def settle(self, number: Any, how: str) -> Any:
        self.raw.settle(number, SETTLING[how][1], settled=False)
        got = self.reply(amqp10.DISPOSITION)
        return got if isinstance(got, str) else _outcome(got)

    def close(self) -> Any:
        self.raw.send(amqp10.END)
        return self.reply(amqp10.END)

    def cancel(self, tag: str) -> Any:
        self.raw.send(amqp10.DETACH, UInt32(self.links.index(tag)), True)
        got = self.reply(amqp10.DETACH)
        return got if isinstance(got, str) else "detached"


def _outcome(disposition: amqp10.Frame) -> str:
    state = disposition.field(4)
    return f"{int(state.descriptor):#x} {[each for each in state.value if each is not None]}"


class StreamClient:
    """A connection of the stream protocol."""

    def __init__(self, side: "Side") -> None:
        where = urlsplit(side.broker.streams)
        self.side = side
        self.raw = raw_stream.RawStream(str(where.hostname), where.port or 5552)
        self.raw.log_in()
        assert self.raw.request(raw_stream.OPEN, raw_stream.string(side.broker.vhost)).code == 1

    def receive(self) -> Any:
        got = self.raw.next()
        if got.key != raw_stream.DELIVER:
            return None if got.key in (raw_stream.HEARTBEAT, raw_stream.METADATA_UPDATE) else f"frame {got.key}"
        chunk = raw_stream.chunk_of(got.body)
        for number, entry in enumerate(chunk.entries):
            tag, first = self.side.reading[self]
            if chunk.first_offset + number >= first:
                self.side.logs[tag].append(f"{chunk.first_offset + number}: {shown_10(entry)}")
        self.raw.send(raw_stream.CREDIT, struct.pack(">BH", 1, 1))
        return None


def typed(value: Any) -> Any:
    """Return a value with the letter of its type, unless it is text; without times."""
    if isinstance(value, dict):
        return {name: typed(each) for name, each in value.items()}
    if isinstance(value, list):
        return [typed(each) for each in value]
    if isinstance(value, datetime):
        return "some time"
    return value if isinstance(value, str) else f"{CLIENT.encode_value(value)[:1].decode()} {value}"


def shown_10(payload: bytes) -> str:
    """Return what is to be seen of an AMQP 1.0 message: the fields that are set, with their types; without times."""
    message = Amqp10Message.decode(payload)
    parts = {
        name: {key: value for key, value in section._asdict().items() if value is not None}
        for name, section in (("header", message.header), ("properties", message.properties))
    }
    parts |= {
        "annotations": message.message_annotations,
        "delivery": message.delivery_annotations,
        "application": message.application_properties,
        "footer": message.footer,
    }
    return f"{message.body!r} { {name: _typed_10(part) for name, part in parts.items() if part} }"


def _typed_10(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _typed_10(value[name]) for name in sorted(value)}
    if isinstance(value, amqp10.Described):
        return _typed_10(value.value)
    if isinstance(value, list):
        return [_typed_10(each) for each in value]
    if isinstance(value, Milliseconds | datetime):
        return "some time"
    return value if type(value) in (str, bytes, bool) else f"{type(value).__name__} {value}"


class Side:
    """One of the two brokers, and the clients of a sequence on it. Its methods are the operations."""

    def __init__(self, broker: TestBroker) -> None:
        self.broker = broker
        self.clients: dict[str, Any] = {}
        self._watch = Client091(self, confirms=False)
        self.queues: dict[str, dict[str, Any]] = {}
        self.start()

    def start(self) -> None:
        """Close the connections of the sequence before, and delete everything."""
        for each in self.clients.values():
            each.raw.socket.close()
        self.clients = {}
        for name in QUEUES:
            self._watch.call(Queue.Delete(queue=name))
        self._watch.call(Exchange.Delete(exchange="x"))
        self.queues = {}
        self.published = 0
        self.held: list[tuple[str, str, int, Any, Any, str]] = []  # queue, tag, number; client, delivery tag, message
        self.consuming: dict[str, tuple[str, Any]] = {}
        self.logs: dict[str, list[str]] = {}
        self.reading: dict[Any, tuple[str, int]] = {}
        self.ready: dict[str, Any] = {}
        self.asks_for: str | None = None

    def end(self) -> None:
        """Close all connections."""
        for each in (*self.clients.values(), self._watch):
            each.raw.socket.close()

    def client(self, name: str) -> Any:
        """Return a client, which is connected when it is first needed."""
        if name not in self.clients:
            kind = {"1.0": Client10, "streams": StreamClient}.get(name, Client091)
            self.clients[name] = kind(self)
        return self.clients[name]

    def do(self, what: Operation) -> Any:
        """Perform an operation, and return the reply. A method becomes its name and values."""
        self.asks_for = None
        try:
            reply = self._done(*what)
        except (OSError, EOFError, AssertionError) as error:
            reply = f"{type(error).__name__}: {error}"
        return _plain(reply)

    def _done(self, name: str, *values: Any) -> Any:
        if name in REQUESTS:
            reply = self._http(*REQUESTS[name](*values))
        elif name in METHODS:
            reply = self.client("p").call(METHODS[name](*values))
        else:
            return getattr(self, name)(*values)
        options = self.queues.get(values[0], {"x-queue-type": name})
        if isinstance(reply, Queue.DeclareOk):
            options = self.queues.setdefault(values[0], options | dict(values[1]))
            # RabbitMQ counts a stream's messages every few seconds, and a quorum queue's consumers in its own way.
            kind = options["x-queue-type"]
            return "declared", kind != "stream" and reply.message_count, kind == "classic" and reply.consumer_count
        if isinstance(reply, Queue.DeleteOk) or (name, reply) == ("http_delete", (204, None)):
            self.queues.pop(values[0], None)
            return "deleted" if options["x-queue-type"] == "stream" else reply
        return reply

    def state(self) -> dict[str, Any]:
        """Return what clients have been told so far, and how many messages and consumers each queue has."""
        for name, each in list(self.clients.items()):
            while select.select([each.raw.socket], [], [], 0)[0]:
                if isinstance(told := each.receive(), str | Method):
                    self.logs.setdefault(f"client {name}", []).append(str(_plain(told)))
        self.ready, watch = {}, self._watch
        counted = {name: options for name, options in self.queues.items() if options["x-queue-type"] != "stream"}
        for name in counted:
            watch.raw.send(Queue.Declare(queue=name, passive=True))
        for name, options in counted.items():
            got = watch.reply()
            is_ok, is_classic = isinstance(got, Queue.DeclareOk), options["x-queue-type"] == "classic"
            self.ready[name] = (got.message_count, is_classic and got.consumer_count) if is_ok else got
        counts = {self.asks_for: self._api_counts(self.asks_for)} if self.asks_for else {}
        return {"ready, consumers": self.ready, "deliveries": self.logs, "API": counts}

    # -- what clients are told

    def delivered(self, client: Any, tag: str, number: Any, message: str) -> None:
        log = self.logs.setdefault(tag, [])
        log.append(message)
        if tag in self.consuming:  # not with automatic acknowledgement
            self.held.append((self.consuming[tag][0], tag, len(log), client, number, message))

    def cancelled(self, tag: str) -> None:
        self.logs.setdefault(tag, []).append("cancelled by the broker")
        self.consuming.pop(tag, None)

    def lost(self, client: Any) -> None:
        self.held = [each for each in self.held if each[3] is not client]
        self.consuming = {tag: each for tag, each in self.consuming.items() if each[1] is not client}

    # -- operations

    def body(self) -> bytes:
        self.published += 1
        return b"m%d" % self.published

    def publish(self, exchange: str, key: str, headers: list[Any], properties: list[Any]) -> Any:
        client = self.client("p")
        client.returned = 0
        client.publish(exchange, key, self.body(), headers, dict(properties))
        got = client.reply()
        name = type(got).__name__ if isinstance(got, Basic.Ack | Basic.Nack) else got
        return name, client.returned

    def commit(self, exchange: str, key: str, count: int) -> Any:
        """Publish in a transaction."""
        client = self.clients["tx"] = Client091(self, confirms=False)
        client.call(Tx.Select())
        for _ in range(count):
            client.publish(exchange, key, self.body(), [], {})
        return client.call(Tx.Commit()), client.returned

    def get(self, queue: str, how: str) -> Any:
        client = self.client("p")
        got = client.call(Basic.Get(queue=queue))
        if not isinstance(got, tuple):
            return got
        method, message = got
        if how == "keep":
            self.held.append((queue, "get", self.published + len(self.held), client, method.delivery_tag, message))
        else:
            how = str(_plain(client.settle(method.delivery_tag, how)))
        return message, method.message_count, how

    def _may_consume(self, queue: str) -> bool:
        """True unless the queue has a consumer: which of several gets a message depends on times."""
        is_single = self.queues.get(queue, {}).get("x-single-active-consumer", False)
        return is_single or all(queue != other for other, _ in self.consuming.values())

    def consume(self, name: str, queue: str, prefetch: int, no_ack: bool, options: list[Any]) -> Any:
        if not self._may_consume(queue):
            return None
        is_stream = self.queues.get(queue, {}).get("x-queue-type") == "stream"
        client, tag = self.client(name), f"{name} {queue} {len(self.logs)}"
        client.call(Basic.Qos(prefetch_count=prefetch or is_stream * 100))
        arguments = {key: value for key, value in options if (key == "x-stream-offset") == is_stream}
        self.logs[tag] = []
        self.consuming[tag] = queue, client
        no_ack = no_ack and not is_stream
        got = client.call(Basic.Consume(queue=queue, consumer_tag=tag, no_ack=no_ack, arguments=arguments))
        if no_ack or not isinstance(got, Basic.ConsumeOk):
            self.consuming.pop(tag, None)
        return got

    def consume_exclusively(self, name: str, queue: str) -> Any:
        """Try to, and cancel. A queue with messages would deliver some of them before."""
        if self.ready.get(queue, (1,))[0] != 0:
            return None
        client = self.client(name)
        got = client.call(Basic.Consume(queue=queue, consumer_tag="exclusive", exclusive=True))
        return got, isinstance(got, Basic.ConsumeOk) and client.cancel("exclusive")

    def settle(self, number: int, how: str) -> Any:
        """Settle one of the messages that clients hold."""
        if not self.held:
            return None
        self.held.sort(key=lambda each: each[:3])
        each = self.held.pop(number % len(self.held))
        return each[5], each[3].settle(each[4], how)

    def cancel(self, number: int) -> Any:
        if not self.consuming:
            return None
        tag = sorted(self.consuming)[number % len(self.consuming)]
        client = self.consuming.pop(tag)[1]
        return client.cancel(tag)

    def recover(self, name: str) -> Any:
        client = self.client(name)
        self.held = [each for each in self.held if each[3] is not client]
        return client.call(Basic.Recover(requeue=True))

    def close(self, name: str) -> Any:
        """Close the channel or the session."""
        if name not in self.clients:
            return None
        client = self.clients[name]
        self.lost(client)
        return client.close()

    def cut(self, name: str) -> None:
        """Lose the connection."""
        if client := self.clients.pop(name, None):
            client.raw.socket.close()
            self.lost(client)

    def outlast(self, queue: str, is_late: bool) -> Any:
        """Take a message, and wait for the consumer timeout; perhaps acknowledge it then."""
        if self.ready.get(queue, (0,))[0] == 0 or not self._may_consume(queue):
            return None
        self.logs.pop("timeout", None)
        client = self.clients["timeout"] = Client091(self, confirms=False)
        client.call(Basic.Qos(prefetch_count=1))
        self.consuming["timeout"] = queue, client
        got = client.call(Basic.Consume(queue=queue, consumer_tag="timeout", arguments={"x-consumer-timeout": 1000}))
        while isinstance(got, Basic.ConsumeOk) and "timeout" in self.consuming:
            client.receive()
        self.consuming.pop("timeout", None)
        mine = [each for each in self.held if each[3] is client]
        late = is_late and [client.settle(each[4], "ack") for each in mine]
        self.lost(client)
        client.close()
        return got, late

    def empty(self, queue: str) -> Any:
        """Take all messages; at the end of each sequence."""
        kind = self.queues.get(queue, {})
        if kind.get("x-queue-type") == "stream":
            return self.consume("p", queue, 100, False, [("x-stream-offset", "first")])
        if "x-single-active-consumer" in kind:
            return self.consume("p", queue, 0, True, [])
        found = []
        while isinstance(got := self.client("p").call(Basic.Get(queue=queue, no_ack=True)), tuple):
            found.append(got[1])
        return [*found, got]

    def send(
        self, address: str, header: list[Any], annotations: list[Any], properties: list[Any], more: list[Any]
    ) -> Any:
        kinds = {"priority": UInt8, "ttl": UInt32, "durable": bool}
        return self.client("1.0").publish(
            address,
            Amqp10Message(
                header=MessageHeader(**{name: kinds[name](value) for name, value in header}),
                message_annotations={Symbol(name): value for name, value in annotations},
                properties=BareProperties(**dict(properties)),
                application_properties={name: value for name, value in more if isinstance(value, str | bool | int)},
                body=data_section(self.body()),
            ).encode(),
        )

    def attach(self, queue: str, credit: int, properties: list[Any]) -> Any:
        if not self._may_consume(queue) or self.queues.get(queue, {}).get("x-queue-type") == "stream":
            return None
        client, tag = self.client("1.0"), f"1.0 {queue} {len(self.logs)}"
        self.logs[tag] = []
        self.consuming[tag] = queue, client
        got = client.attach(queue, tag, credit, dict(properties))
        if got != "attached":
            self.consuming.pop(tag, None)
        return got

    def stream_publish(self, queue: str) -> Any:
        client = self.client("streams")
        if (code := client.raw.declare_publisher(1, queue)) != 1:
            return code
        client.raw.publish(1, 1, Amqp10Message(body=data_section(self.body())).encode())
        return client.raw.confirmed(1), client.raw.request(raw_stream.DELETE_PUBLISHER, b"\x01").code

    def stream_read(self, queue: str, offset: int) -> Any:
        client = self.clients[f"reader {len(self.logs)}"] = StreamClient(self)
        tag = f"stream {queue} {len(self.logs)}"
        self.logs[tag] = []
        self.reading[client] = tag, offset
        return client.raw.subscribe(1, queue, raw_stream.at(offset))

    # -- the management API

    def _http(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        where = urlsplit(self.broker.management)
        with contextlib.closing(
            http.client.HTTPConnection(str(where.hostname), where.port, _ANSWERS_WITHIN)
        ) as connection:
            headers = {"Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=", "Content-Type": "application/json"}
            path = path.replace("/V/", f"/{self.broker.vhost}/")
            connection.request(method, f"/api/{path}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = re.sub(rb'"time": *\d+', b'"time":0', answer.read())
            return answer.status, json.loads(text) if text else None

    def http_counts(self, queue: str) -> None:
        """Compare the counts of the management API, too, which RabbitMQ updates every few seconds."""
        self.asks_for = queue if self.queues.get(queue, {}).get("x-queue-type", "stream") != "stream" else None

    def _api_counts(self, queue: str) -> Any:
        status, got = self._http("GET", f"queues/V/{queue}")
        return status, {
            name: got.get(name) for name in ("messages", "messages_ready", "messages_delayed", "messages_dlx")
        }


def _plain(reply: Any) -> Any:
    """Return a reply with methods as their names and values."""
    if isinstance(reply, Method):
        return reply.name, {name: value for name, value in reply if name != "consumer_tag"}
    return type(reply)(map(_plain, reply)) if isinstance(reply, tuple | list) else reply


# Comparing


class Difference(NamedTuple):
    """What differs after an operation.

    Attributes:
        place: how many operations were performed.
        part: what differs: the reply, or a part of Side.state().
    """

    place: int
    operation: Operation
    part: str
    ours: Any
    theirs: Any

    def words(self) -> set[str]:
        """Return the words that only one of the brokers says."""
        return set(_WORD.findall(str(self.ours))) ^ set(_WORD.findall(str(self.theirs)))

    def is_like(self, other: "Difference") -> bool:
        """Return True if both may have the same cause: the brokers disagree about the same words or, if about none,
        in the same part.
        """
        mine, others = self.words(), other.words()
        return bool(mine) and mine <= others if others else not mine and self.part == other.part

    def unless_race(self, sequence: list[Operation]) -> "Difference | None":
        """Return None if only the order differs of a message that was routed to several queues, and of dead letters:
        whether one of the queues gets the message before another one's dead letters depends on times.
        """
        ours, theirs = (sorted(_MESSAGE.findall(str(side))) for side in (self.ours, self.theirs))
        return None if ours == theirs and "x-death" in str(self.ours) and _SPREADS.search(str(sequence)) else self


_WORD, _MESSAGE, _SPREADS = re.compile("[A-Za-z_-]{2,}"), re.compile("m[0-9]+|http"), re.compile("'B?CC'|'x', '")


def difference(ours: Side, theirs: Side, sequence: list[Operation], patience: float = _PATIENCE) -> Difference | None:
    """Perform the same operations on both brokers; return the first difference.

    Args:
        patience: seconds after which a difference of what clients are told is one.
    """
    sides = ours, theirs
    for side in sides:
        side.start()
    pause = _SOON_IS_OVER if str(SOON) in repr(sequence) else 0.0
    ending: list[Operation] = [("close", name) for name in CLIENTS]
    for name in QUEUES:
        ending += [("empty", name), ("delete", name, False, False)]
    for place, what in enumerate([*sequence, *ending], 1):
        replies = [side.do(what) for side in sides]
        if replies[0] != replies[1]:
            return Difference(place, what, "reply", *replies).unless_race(sequence)
        until = time.monotonic() + patience + 6 * (what[0] == "http_counts")
        time.sleep(pause)
        agreed = 0
        while agreed < 2:  # once could be by chance, before RabbitMQ begins to dead-letter, to deliver or to refuse
            states = [side.state() for side in sides]
            agreed = agreed + 1 if states[0] == states[1] else 0
            if not agreed and time.monotonic() > until:
                return Difference(place, what, *_differing(*states)).unless_race(sequence)
            time.sleep(0.005)
    return None


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, Any, Any]:
    """Return the first part that differs, and what differs in it."""
    part = next(name for name in ours if ours[name] != theirs[name])
    names = [name for name in {**ours[part], **theirs[part]} if ours[part].get(name) != theirs[part].get(name)]
    return part, *({name: side[part].get(name) for name in names} for side in (ours, theirs))


def shortest(
    ours: Side, theirs: Side, sequence: list[Operation], found: Difference
) -> tuple[list[Operation], Difference] | None:
    """Return a sequence without the operations, options and unusual values that a difference does not need, and the
    difference of this sequence. None if the difference is not there again.
    """
    best = sequence[: found.place], found

    def differs(shorter: list[Operation], patience: float = _PATIENCE) -> bool:
        nonlocal best
        again = difference(ours, theirs, shorter, patience)
        if again is None or not again.is_like(found):
            return False
        best = shorter[: again.place], again
        return True

    def leave_out(size: int) -> None:
        place = 0
        while place < len(best[0]):
            if not differs(best[0][:place] + best[0][place + size :]):
                place += size

    if not differs(sequence, _MORE_PATIENCE):
        return None
    for size in (12, 6, 3, 1):
        leave_out(size)
    for place in range(len(best[0])):
        while place < len(best[0]) and any(
            differs([*best[0][:place], simpler, *best[0][place + 1 :]]) for simpler in _simpler(best[0][place])
        ):
            pass
    leave_out(1)
    return best if differs(best[0], _MORE_PATIENCE) else None


def _simpler(what: Operation) -> Iterator[Operation]:
    """Yield an operation without one of its options, and with the first choice for one of its values."""
    for number, (value, choices) in enumerate(zip(what[1:], OPERATIONS[what[0]][1:], strict=True), 1):
        shorter = [value[:each] + value[each + 1 :] for each in range(len(value))] if isinstance(value, list) else []
        for other in shorter if isinstance(value, list) else [choices[0]]:
            if other != value:
                yield (*what[:number], other, *what[number + 1 :])


def story(sequence: list[Operation], found: Difference) -> str:
    """Return a sequence and its difference, to be read, and to be pasted."""
    lines = ["[", *(f"    {what!r}," for what in sequence), "]"]
    return "\n".join(
        [*lines, f"{found.operation}: {found.part}", f"  RabbitMQ: {found.theirs}", f"  embedded: {found.ours}"]
    )


def main() -> int:
    """Run seeds for a time, or one seed. Return 1 if there was a difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.differ", description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run only this seed")
    parser.add_argument("--embedded", nargs=3, metavar=("AMQP", "MANAGEMENT", "STREAMS"), help="URLs of a running one")
    given = parser.parse_args()
    logging.getLogger("mqtool").setLevel(logging.CRITICAL)  # errors of clients are part of what is compared
    with contextlib.ExitStack() as stack:
        rabbitmq = from_environment() or _started(stack)
        version = rabbitmq.with_fresh_vhost(name := f"differ-{uuid.uuid4().hex[:12]}").version
        like = ".".join(version.split(".")[:2])
        urls = given.embedded
        if not urls:
            own = stack.enter_context(EmbeddedBroker(management_port=0, stream_port=0, like=like))
            urls = [own.urls[kind] for kind in ("amqp", "http", "stream")]
        brokers = TestBroker("embedded", urls[0].removesuffix("/%2F"), urls[1], streams=urls[2]), rabbitmq
        sides = [Side(broker.with_fresh_vhost(name)) for broker in brokers]
        for side in sides:
            stack.callback(side.broker.drop_vhost)
            stack.callback(side.end)
        print(f"RabbitMQ {version}, and the embedded broker like {like}", flush=True)
        seeds = [given.seed] if given.seed is not None else itertools.count(given.first)
        return int(run(*sides, seeds, like, given.seconds))


def _started(stack: contextlib.ExitStack) -> TestBroker:
    """Start a private RabbitMQ node, which is stopped in the end."""
    os.environ["XDG_STATE_HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="mqtool-differ-"))
    starter = STARTERS[BrokerKind.NODE]
    started = starter.start(Wanted("differ", ports.free_port(), stream_port=0))
    stack.callback(starter.stop, started)
    management, streams = (str(started.details[name]) for name in ("management", "streams"))
    return TestBroker("rabbitmq", started.url, management, streams=streams)


def run(ours: Side, theirs: Side, seeds: Iterable[int], like: str, seconds: float) -> bool:
    """Run these seeds until the time is over, and print each difference once. Return True if there are any."""
    alike: collections.Counter[object] = collections.Counter()
    told: set[str] = set()
    began = time.monotonic()
    for number, seed in enumerate(seeds, 1):
        sequence = draw(seed, like)
        found = difference(ours, theirs, sequence)
        alike[kind := found and (found.part, frozenset(found.words()) or found.operation[0])] += 1
        # Those that differ in the same words mostly have the same cause, but not those that differ in order or number.
        is_new = found is not None and alike[kind] <= (1 if found.words() else 10)
        short = shortest(ours, theirs, sequence, found) if found and is_new else None
        if short and (text := story(*short)) not in told:
            told.add(text)
            print(f"\nseed {seed}, sequence {number}, after {time.monotonic() - began:.0f} s:\n{text}", flush=True)
        if time.monotonic() > began + seconds:
            break
    print(f"\n{number} sequences, {number - alike[None]} of them with a difference; {len(told)} different ones")
    return bool(told)


if __name__ == "__main__":
    sys.exit(main())
