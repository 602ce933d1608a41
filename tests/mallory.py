"""Attacks by a user who has rights on her own names only, made up by Hypothesis, and a virtual host for them.

Mallory owns all names that start with "mallory" or, in some attacks, with "mallory.". In their vhost, others have
queues, exchanges and messages. She declares what she may, with arguments and headers that mqtool or RabbitMQ knows,
forged by value and by type. To a stream of hers, she also writes messages over the stream protocol, whose sections no
broker checks. An administrator then runs one command, while she may delete what the command has declared. After that,
all that is not hers must be unchanged.
"""

import base64
import contextlib
import json
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, Self
from urllib.parse import quote, urlsplit, urlunsplit

import pika
from hypothesis import strategies as st
from pika import BasicProperties
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker
from pika.spec import FRAME_MAX_SIZE

from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, data_section
from mqtool.codecs.amqp10_values import Symbol
from mqtool.codecs.field_tables import CLIENT
from mqtool.delays.wait_queues import GRACE, RELAY
from mqtool.topology import DELAYED
from mqtool.work import history
from mqtool.work.conversion_plan import PLAN, ConversionPlan, Definition
from tests.brokers import TestBroker
from tests.protocol.raw_stream import OPEN, RawStream, string

#: Other users' objects: an empty queue, one with a message, one with dead letters, and the exchanges that lead there.
#: `send` declares the queue "hello", even if all of its messages have other addresses.
EMPTY, HELLO, PAYROLL, WAGES, BURIED, AUDIT, ORDERS, GRAVEYARD = (
    *("empty", "hello", "payroll", "wages", "buried", "audit", "orders", "graveyard"),
)
OTHERS = (EMPTY, HELLO, PAYROLL, WAGES, BURIED, AUDIT, ORDERS, GRAVEYARD)
#: Mallory's queues and exchanges, with the names that mqtool gives to the queues and exchanges that it declares.
HERS = (
    *("mallory", "mallory.q", "mallory.dlq", "mallory.quorum", "mallory.relay", "mallory.relayed", "mallory.delay.5m"),
    *("mallory.exchange.delay.5m", "mallory.delay.5m.more", "mallory.wait.5s", "mallory.mqtool-convert"),
    *("mallory.mqtool-convert.meanwhile", "mallory.mqtool-convert.through", "mallory.mqtool-convert.back"),
    "mallory.mqtool-convert.into",
    *("mallory.r.relay", "mallory.r.relayed"),
)
QUORUM, STREAM = "mallory.quorum", "mallory.stream"
#: What nobody but its owners may read.
SECRET = b"secret of "

names = st.sampled_from((*OTHERS, *HERS, "", "amq.topic"))
hers = st.sampled_from(HERS)


def nested(depth: int) -> dict[str, Any]:
    """Tables in tables, this many."""
    table: dict[str, Any] = {}
    for _ in range(depth - 1):
        table = {"a": table}
    return table


#: Values of any type, and the largest and deepest ones, where a name or a number is expected.
odd: st.SearchStrategy[Any] = st.sampled_from(
    (
        *(None, True, -1, 0, 256, 3000, 2**31, 2**62, -(2**63), "", "\x00", "x", "9" * 40, "x" * 300),
        *(b"\xff", Decimal("-0.5"), datetime(9999, 12, 31, tzinfo=UTC)),
        *([], {}, ["payroll"], [5, None, ["payroll"]], {"a": 1}, nested(60)),
    )
)
#: Those that JSON can express.
odd_in_json = odd.filter(lambda value: not isinstance(value, bytes | Decimal | datetime))


def mostly(usual: st.SearchStrategy[Any], otherwise: st.SearchStrategy[Any] = odd) -> st.SearchStrategy[Any]:
    """Values of the usual kind, and now and then one of another type."""
    return st.one_of(usual, usual, usual, otherwise)


lists = st.lists(names, min_size=1, max_size=2)
waits = st.sampled_from((0, 1, 1000, 300_000))
lifetimes = st.sampled_from((1, 300_000, 300_000 + GRACE, 2**32 - 1))
definitions = st.fixed_dictionaries(
    {
        "type": st.sampled_from(("classic", "classic", "quorum", "stream", "forged")),
        "durable": st.sampled_from((True, True, False)),
        "arguments": st.fixed_dictionaries(
            {}, optional={"x-dead-letter-exchange": names, "x-dead-letter-routing-key": names, "x-message-ttl": waits}
        ),
    }
)
#: A plan as `queue convert` writes it, for her own or another user's queue; or something that cannot be read as a plan.
plans = st.one_of(
    st.fixed_dictionaries(
        {
            "queue": st.sampled_from((PAYROLL, EMPTY, "mallory")),
            "source": definitions,
            "target": definitions,
            "at_once": mostly(st.just(500), odd_in_json),
        }
    ).map(json.dumps),
    st.fixed_dictionaries(
        {
            "queue": mostly(st.just("mallory"), odd_in_json),
            **dict.fromkeys(
                ("source", "target"),
                st.fixed_dictionaries(
                    {
                        "type": mostly(st.just("classic"), odd_in_json),
                        "durable": mostly(st.just(True), odd_in_json),
                        "arguments": mostly(
                            st.dictionaries(st.sampled_from(("x-message-ttl", "x-max-length", "")), odd_in_json),
                            odd_in_json,
                        ),
                    }
                ),
            ),
            "at_once": st.just(500),
        }
    ).map(json.dumps),
    st.sampled_from(("", "{}", '{"queue": "payroll"}', "[" * 500)),
)
#: Arguments with which she declares a queue. The broker refuses some of them.
queue_arguments = st.fixed_dictionaries(
    {},
    optional={
        PLAN: mostly(plans),
        RELAY: mostly(names),
        "x-message-ttl": waits,
        "x-expires": lifetimes,
        "x-dead-letter-exchange": hers,
        "x-dead-letter-routing-key": names,
        "x-queue-type": st.sampled_from(("classic", "quorum")),
        "x-max-length": waits,
    },
)
exchange_types = st.sampled_from(("direct", "fanout", "topic", "headers", DELAYED))
exchange_arguments = st.fixed_dictionaries({}, optional={"alternate-exchange": hers, "x-delayed-type": exchange_types})
deaths = st.lists(
    st.fixed_dictionaries(
        {"queue": mostly(names)},
        optional={
            "reason": mostly(st.sampled_from(("rejected", "expired"))),
            "exchange": mostly(names),
            "routing-keys": mostly(lists),
            "count": odd,
            "time": odd,
        },
    ),
    max_size=2,
)
#: What a conversion writes into the header of a message that it holds; any of it forged.
held = st.fixed_dictionaries(
    {"exchange": mostly(names), "routing_key": mostly(names)},
    optional={
        "expiration": mostly(st.just("3600000")),
        "priority": mostly(st.just(4)),
        "CC": mostly(lists),
        "BCC": mostly(lists),
        "mqtool-convert": odd,
        "packed": mostly(st.just(True)),
        **dict.fromkeys((history.EXCHANGE, history.ROUTING_KEY), mostly(names)),
    },
)
#: The headers that mqtool or RabbitMQ reads.
headers = st.fixed_dictionaries(
    {},
    optional={
        "x-death": mostly(deaths),
        "CC": mostly(lists, st.lists(odd, max_size=2)),
        "BCC": mostly(lists, st.lists(odd, max_size=2)),
        "x-delay": mostly(waits),
        "timestamp_in_ms": mostly(waits),
        "x-delivery-count": mostly(st.sampled_from((0, 1, 1000))),
        "x-acquired-count": mostly(st.sampled_from((0, 1, 1000))),
        "mqtool-convert": mostly(held),
        "mqtool-then": mostly(names),
        "mqtool-due": mostly(waits),
        history.REASON: mostly(st.sampled_from((history.REJECTED, history.EXHAUSTED))),
        history.ATTEMPTS: mostly(waits),
        history.RETURNS: mostly(waits),
        history.LAST_ERROR: mostly(names),
        history.FIRST_FAILURE: odd,
        **dict.fromkeys((history.QUEUE, history.EXCHANGE, history.ROUTING_KEY), mostly(names)),
        **dict.fromkeys(("x-first-death-queue", "x-last-death-queue", "x-last-death-exchange"), mostly(names)),
    },
)


@dataclass(frozen=True)
class Declared:
    """A queue that she declares."""

    name: str
    arguments: Mapping[str, Any]

    def do(self, channel: BlockingChannel) -> None:
        channel.queue_declare(self.name, durable=True, arguments=dict(self.arguments))


@dataclass(frozen=True)
class DeclaredExchange:
    """An exchange that she declares."""

    name: str
    type: str
    arguments: Mapping[str, Any]

    def do(self, channel: BlockingChannel) -> None:
        channel.exchange_declare(self.name, self.type, durable=True, arguments=dict(self.arguments))


@dataclass(frozen=True)
class Bound:
    """A binding from any exchange to any queue, of which the broker refuses those that are not hers."""

    source: str
    destination: str
    key: str

    def do(self, channel: BlockingChannel) -> None:
        channel.queue_bind(self.destination, self.source, self.key)


@dataclass(frozen=True)
class Published:
    """A message that she publishes. Her exchange leads to one queue of hers, chosen by the key.

    Attributes:
        room: the number of bytes that a further header leaves free in the header frame; None for no such header.
    """

    exchange: str
    key: str
    headers: Mapping[str, Any]
    properties: Mapping[str, Any] = field(default_factory=dict)
    room: int | None = None
    body: bytes = b"written by mallory"

    def numbered(self, number: int, exchange: str) -> "Published":
        """The message as it is published: with its number in its body, unless it has a body of its own."""
        body = b"%b, %d" % (self.body, number) if self.body == Published.body else self.body
        return replace(self, body=body, exchange=exchange if self.exchange == "mallory" else self.exchange)

    def do(self, channel: BlockingChannel) -> None:
        properties = BasicProperties(headers=dict(self.headers), **self.properties)
        if self.room is not None:
            properties.headers["padding"] = ""
            used = 12 + len(b"".join(properties.encode()))  # the class, the weight and the size of the body come first
            properties.headers["padding"] = "x" * (FRAME_MAX_SIZE - 8 - used - self.room)
        channel.basic_publish(self.exchange, self.key, self.body, properties)


@dataclass(frozen=True)
class Streamed:
    """A message that she writes to her stream over the stream protocol.

    Attributes:
        annotations: the message annotations, in which RabbitMQ stores the exchange and the routing key.
        properties: the properties of AMQP 1.0, by name.
        headers: the application properties.
        body: the encoded body; or, without other sections, any bytes.
    """

    annotations: Mapping[str, Any]
    properties: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    body: bytes = data_section(Published.body)

    def encode(self) -> bytes:
        claims: dict[Any, Any] = {Symbol(name): value for name, value in self.annotations.items()}
        return Amqp10Message(
            message_annotations=claims,
            properties=BareProperties(**self.properties),
            application_properties=dict(self.headers),
            body=self.body,
        ).encode()

    def write(self, client: RawStream) -> None:
        assert client.declare_publisher(1, STREAM) == 1
        client.publish(1, 1, self.encode())
        client.confirmed(1)


@dataclass(frozen=True)
class PolicySet:
    """A policy for names of hers, which the broker accepts if she has the tag `policymaker`."""

    name: str
    pattern: str
    definition: Mapping[str, Any]
    apply_to: str

    def put(self, ask: Callable[[str, str, object], object], vhost: str) -> None:
        body = {"pattern": self.pattern, "definition": self.definition, "apply-to": self.apply_to}
        ask("PUT", f"policies/{vhost}/{quote(self.name, safe='')}", body)


Step = Declared | DeclaredExchange | Bound | Published | Streamed | PolicySet
#: Whoever may set policies may have any queue dead-letter to any exchange, so these name exchanges of hers only.
policies = st.builds(
    PolicySet,
    hers,
    st.sampled_from(("^mallory", "mallory", "^mallory$", r"^mallory\.")),
    st.fixed_dictionaries(
        {},
        optional={
            "dead-letter-exchange": mostly(hers),
            "dead-letter-routing-key": mostly(names),
            "alternate-exchange": mostly(hers),
            "message-ttl": mostly(waits),
            "expires": mostly(lifetimes),
            "max-length": mostly(waits),
            "delivery-limit": mostly(waits),
            "overflow": mostly(st.sampled_from(("drop-head", "reject-publish", "reject-publish-dlx"))),
            "queue-mode": mostly(st.just("lazy")),
        },
    ),
    st.sampled_from(("all", "queues", "exchanges")),
)
properties = st.fixed_dictionaries(
    {},
    optional={
        "expiration": st.sampled_from(("0", "3600000")),
        "reply_to": names,
        "message_id": names | st.just("x" * 255),
        "priority": st.sampled_from((9, 255)),
        "correlation_id": names,
        "delivery_mode": st.sampled_from((1, 2, 0, 255)),
        "timestamp": st.sampled_from((0, 2**62)),
        **dict.fromkeys(
            ("content_type", "content_encoding", "type", "app_id"), st.sampled_from(("", "\x00", "x" * 255))
        ),
    },
)
rooms = mostly(st.none(), st.sampled_from((0, 10, 50, 100, 1000)))
#: Bodies that are, or are not, what a conversion puts there of a message with large headers.
bodies = mostly(
    st.just(Published.body),
    headers.map(CLIENT.encode_table) | st.sampled_from((b"", b"\0\0\0\x0b\1aF\0\0\0\4\1bXX", b"\xff" * 9)),
)
written = st.builds(Published, st.just("mallory"), hers, headers, properties, rooms, bodies)
#: A conversion of hers that is under way, with messages that are held, as they look.
CONVERTED = ConversionPlan("mallory", Definition("classic", True, {}), Definition("quorum", True, {}))
INTO, HELD, MEANWHILE = CONVERTED.names.into, CONVERTED.names.held, CONVERTED.names.meanwhile
#: How she begins it.
BEGUN = (
    Declared(HELD, {PLAN: CONVERTED.as_text(), "x-queue-type": "quorum"}),
    DeclaredExchange(INTO, "fanout", {"alternate-exchange": MEANWHILE}),
    Bound(INTO, HELD, ""),
)
under_way = st.lists(
    st.builds(
        Published,
        st.just(INTO),
        st.just(""),
        st.fixed_dictionaries({"mqtool-convert": held}) | headers,
        properties,
        rooms,
        bodies,
    ),
    min_size=1,
    max_size=3,
).map(lambda messages: [*BEGUN, *messages])
#: Values that the codec of AMQP 1.0 can encode, too.
odd_in_stream = odd_in_json | st.just(b"\xff")
#: What she writes to her stream. Half of the annotations claim that the message is for another user's queue.
streamed = st.builds(
    Streamed,
    st.fixed_dictionaries(
        {"x-exchange": st.sampled_from(("", ORDERS, GRAVEYARD)), "x-routing-key": st.sampled_from(OTHERS)}
    )
    | st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("x-exchange", "x-routing-key", "x-opt-to", "x-basic-expiration"), mostly(names)),
            **dict.fromkeys(("x-cc", "x-opt-cc", "x-death", "x-opt-deaths"), mostly(lists, odd_in_stream)),
            **dict.fromkeys(("x-stream-offset", "x-basic-priority", "x-basic-delivery-mode"), odd_in_stream),
        },
    ),
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(
                ("message_id", "to", "subject", "reply_to", "correlation_id"), mostly(names, odd_in_stream)
            ),
            "user_id": st.sampled_from((b"guest", b"\xff", "guest", 7)),
        },
    ),
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("CC", "BCC"), mostly(lists, odd_in_stream)),
            **dict.fromkeys((history.EXCHANGE, history.ROUTING_KEY, history.QUEUE, "x-basic-type"), mostly(names)),
            "x-stream-offset": odd_in_stream,
            "x-death": st.just([{"queue": PAYROLL, "reason": "rejected"}]),
        },
    ),
    mostly(st.just(Streamed.body), st.sampled_from((b"", b"bytes", b"\0Sw@", b"\0Su\xa0\xff", b"\0Sv\xc0\1\0"))),
)
#: A wait queue for delayed messages to an exchange of hers.
WAITING = Declared(
    "mallory.wait.5m",
    {
        "x-message-ttl": 300_000,
        "x-expires": 300_000 + GRACE,
        "x-dead-letter-exchange": "mallory",
        "x-dead-letter-routing-key": "mallory",
    },
)
declared = st.builds(Declared, hers, queue_arguments)
#: What she does: mostly, she declares a queue and publishes a message to it.
steps: st.SearchStrategy[list[Step]] = st.one_of(
    declared.flatmap(lambda queue: st.builds(lambda message: [queue, replace(message, key=queue.name)], written)),
    st.builds(lambda *each: list(each), declared),
    st.builds(lambda *each: list(each), written),
    st.builds(lambda *each: list(each), st.builds(Published, names, names, headers)),
    st.builds(lambda *each: list(each), st.builds(DeclaredExchange, hers, exchange_types, exchange_arguments)),
    st.builds(lambda *each: list(each), st.builds(Bound, names, names, names | st.just("#"))),
    st.builds(lambda *each: list(each), policies),
)


def steps_before(command: str) -> st.SearchStrategy[list[Step]]:
    """What she does before a command: half of it is what that command reads."""
    if STREAM in command:
        return messages_for(command)
    to_others = st.lists(st.sampled_from(OTHERS), min_size=1, max_size=2)
    copied = st.fixed_dictionaries({}, optional={"CC": lists, "BCC": lists}) | st.builds(dict, CC=to_others)
    to_hers = st.builds(lambda copied: [Published("mallory", "mallory", copied)] * 5, copied)
    if "convert" in command:
        forged = st.builds(lambda name, plan: [Declared(name, {PLAN: plan})], hers, plans)
        return steps | to_hers | forged | (under_way if re.search("--(resume|undo)", command) else steps)
    if "delayed" in command:
        waiting = st.fixed_dictionaries(
            {
                "x-message-ttl": st.just(300_000),
                "x-expires": st.just(300_000 + GRACE),
                "x-dead-letter-exchange": st.just("mallory"),
                "x-dead-letter-routing-key": st.sampled_from(OTHERS),
            }
        )
        forged = st.builds(
            Declared, st.sampled_from(("mallory.delay.5m", "mallory.exchange.delay.5m", "mallory.wait.5s")), waiting
        ) | st.builds(Declared, hers, st.fixed_dictionaries({RELAY: names}))
        return steps | forged.flatmap(lambda queue: written.map(lambda each: [queue, replace(each, key=queue.name)]))
    if "redrive" in command:
        key = "mallory.dlq" if "--from" not in command else "mallory"
        origin = st.one_of(
            st.sampled_from((*OTHERS, *["mallory"] * 3)).map(
                lambda queue: {"x-death": [{"queue": queue, "reason": "rejected"}]}
            ),
            st.fixed_dictionaries({"x-death": deaths}),
            st.fixed_dictionaries({history.REASON: st.just(history.REJECTED), history.QUEUE: names}),
        )
        return steps | st.builds(lambda origin: [Published("mallory", key, origin)], origin)
    if "rpc-server" in command:
        origin = st.fixed_dictionaries({history.EXCHANGE: names, history.ROUTING_KEY: names})
        asked = st.fixed_dictionaries({"reply_to": hers, "correlation_id": names})
        return steps | st.builds(lambda origin, asked: [Published("mallory", "mallory", origin, asked)], origin, asked)
    if "worker" in command:
        origin = st.fixed_dictionaries({history.EXCHANGE: names, history.ROUTING_KEY: names})
        return steps | st.builds(lambda origin: [Published("mallory", "mallory", origin)], origin)
    return steps | to_hers


#: Her permissions: each of the three on her names, or none.
rights = st.tuples(*[st.sampled_from((*["^mallory"] * 5, "^$"))] * 3)
_OWNED = ("^mallory",) * 3
#: Permissions on names that begin with "mallory.", so that the queue "mallory" belongs to somebody else.
DOTTED = (r"^mallory\.",) * 3
#: What she deletes again and again while the command runs.
deletions = st.just(["mallory.mqtool-convert"]) | st.lists(
    st.sampled_from((*[each for each in HERS if "convert" in each], "mallory.dlq", "mallory.q", "mallory")),
    min_size=1,
    max_size=3,
    unique=True,
)


@dataclass(frozen=True)
class Attack:
    """What she does before the administrator types a command.

    Attributes:
        rights: her patterns for configure, write and read.
        topic: the pattern of her topic permission to write to her exchange; None if she has no topic permission.
        tags: her tags.
        command: the administrator's command, without the options that name the broker.
        deleted: queues and exchanges that she deletes while the command runs.
    """

    rights: tuple[str, str, str]
    topic: str | None
    tags: str
    steps: Sequence[Step]
    command: str
    deleted: Sequence[str] = ()

    @property
    def only_publishes(self) -> bool:
        """True if she publishes messages and does nothing else."""
        return not self.deleted and all(isinstance(step, Published) for step in self.steps)

    @property
    def stops_nothing(self) -> bool:
        """True if she only publishes messages, some of them perhaps into a conversion that is under way."""
        return not self.deleted and all(isinstance(step, Published) or step in (*BEGUN, WAITING) for step in self.steps)

    @property
    def keeps_order(self) -> bool:
        """True if the command must leave all messages in their queues, in order."""
        return (
            re.match("mqtool (peek (?!.*receive)|dlq show|dlq ls|delayed ls|queue convert)", self.command) is not None
        )

    @property
    def exchange(self) -> str:
        """Her exchange that leads to her queues."""
        return "mallory.x" if self.rights == DOTTED else "mallory"

    @property
    def others(self) -> Sequence[str]:
        """The queues and exchanges of other users."""
        return (*OTHERS, "mallory") if self.rights == DOTTED else OTHERS


ALL = "--where 'size >= 0' --yes"
#: The administrator's commands, as typed. What they name is Mallory's, if they name anything.
COMMANDS = (
    "mqtool queue convert --resume --yes",
    "mqtool queue convert --resume mallory --yes",
    "mqtool queue convert --undo mallory --yes",
    "mqtool queue convert mallory --to quorum --yes",
    "mqtool dlq redrive mallory --yes",
    "mqtool dlq redrive any --from mallory --yes",
    "mqtool dlq drop mallory --yes",
    f"mqtool delayed now {ALL}",
    f"mqtool delayed cancel {ALL}",
    "mqtool delayed migrate mallory.relayed --to mallory.later",
    "timeout -s INT 1 mqtool delayed relay mallory.r",
    "mqtool move mallory --to mallory.q --yes",
    "mqtool receive -q mallory --idle-timeout 200ms --json > recorded; mqtool recording replay recorded --speed max",
    "mqtool receive -q mallory --idle-timeout 200ms --json > recorded; "
    "mqtool recording replay recorded --speed max --to-queue mallory.q",
    "mqtool definitions export > exported.json; mqtool definitions import exported.json --yes",
    "mqtool worker -q mallory --idle-timeout 200ms --exec 'printenv MQ_EXCHANGE MQ_ROUTING_KEY'",
    "mqtool worker -q mallory --idle-timeout 200ms --retries 1 --backoff 10ms --exec false",
    "rm -f seen; mqtool rpc-server -q mallory --idle-timeout 200ms "
    "--exec 'sh -c \"printenv MQ_EXCHANGE MQ_ROUTING_KEY | tee -a seen\"' > answered; cat seen",
    "mqtool doctor",
    *["mqtool peek mallory --json && mqtool peek mallory --json"] * 2,
    *[f"mqtool peek {QUORUM} --json && mqtool peek {QUORUM} --json"] * 2,
    "mqtool peek mallory --management http://localhost:1 && mqtool peek mallory --management http://localhost:1",
    f"mqtool peek {QUORUM} && mqtool receive -q {QUORUM} --idle-timeout 200ms",
    *["mqtool dlq show mallory && mqtool dlq show mallory"] * 2,
    "mqtool dlq ls",
    "mqtool delayed ls && mqtool delayed show",
    *(
        f"mqtool {read} {STREAM} {options} --json > recorded; mqtool {publish}"
        for read, options in (
            ("receive-stream -q", "--offset first --idle-timeout 200ms"),
            ("receive -q", "--offset first --idle-timeout 200ms"),
            ("peek", ""),
        )
        for publish in ("recording replay recorded --speed max", "send --json < recorded")
    ),
    f"mqtool receive-stream -q {STREAM} --offset first --idle-timeout 200ms --json > recorded; "
    "mqtool recording replay recorded --speed max --to-queue mallory.q",
    f"mqtool move {STREAM} --to mallory.q --yes",
    f"mqtool dlq redrive any --from {STREAM} --yes",
)
#: Those that read most claims are tried more often.
likely = st.sampled_from(
    (
        *COMMANDS,
        *[
            each
            for each in COMMANDS
            if re.search("resume --yes|convert mallory|redrive|delayed now|printenv", each)
            for _ in range(3)
        ],
    )
)
#: Commands for Mallory with DOTTED permissions. A forged delay, or plan of a conversion, for the queue "mallory" would
#: be believed, because of its name: see docs/explanation/claims.md.
DOTTED_COMMANDS = (
    *["mqtool dlq redrive mallory --yes"] * 3,
    "mqtool dlq redrive any --from mallory.q --yes",
    "mqtool queue convert mallory.q --to quorum --yes",
    "mqtool move mallory.q --to mallory.dlq --yes",
    "mqtool worker -q mallory.q --idle-timeout 200ms --retries 1 --backoff 10ms --exec false",
)
dotted_attacks = st.sampled_from(DOTTED_COMMANDS).flatmap(
    lambda command: st.builds(
        Attack,
        st.just(DOTTED),
        st.none(),
        st.just(""),
        st.lists(steps_before(command), min_size=1, max_size=3).map(
            lambda groups: [each for one in groups for each in one]
        ),
        st.just(command),
        st.just(()) | deletions,
    )
)


def messages_for(command: str) -> st.SearchStrategy[list[Step]]:
    """Messages in the queue that a command reads, with nothing else that could stop it; half claim what it believes."""
    if STREAM in command:
        return st.lists(streamed, min_size=1, max_size=3).map(
            lambda messages: [Declared(STREAM, {"x-queue-type": "stream"}), *messages]
        )
    if "delayed" in command:
        return written.map(lambda message: [WAITING, replace(message, key=WAITING.name)])
    key, read, left = "mallory", headers, rooms
    if "convert" in command:
        read |= st.fixed_dictionaries({"mqtool-convert": held})
        left = rooms | st.sampled_from((0, 10, 50))
    elif re.search("peek|dlq show|receive", command):
        read |= st.fixed_dictionaries({"x-delivery-count": odd | st.sampled_from((1, 1000))})
    if QUORUM in command:
        key = QUORUM
    elif re.search("dlq (show|redrive|drop) mallory", command):
        key = "mallory.dlq"
    plain = st.builds(Published, st.just("mallory"), st.just(key), read, properties | st.just({}), left, bodies)
    messages = st.lists(plain, min_size=1, max_size=4).map(lambda each: [*each])
    return messages | under_way if re.search("--(resume|undo)", command) else messages


messages_only = st.one_of(
    *(
        st.sampled_from([each for each in COMMANDS if re.search(words, each)])
        for words in ("convert", "peek|dlq show", "dlq|delayed|move|receive|worker|rpc|doctor")
    )
).flatmap(
    lambda command: st.builds(Attack, st.just(_OWNED), st.none(), st.just(""), messages_for(command), st.just(command))
)
attacks = (
    dotted_attacks
    | messages_only
    | likely.flatmap(
        lambda command: st.builds(
            Attack,
            rights,
            st.sampled_from((*[None] * 5, "^mallory$")),
            st.sampled_from(("", "management", "policymaker", "policymaker")),
            st.lists(steps_before(command), min_size=1, max_size=3).map(
                lambda groups: [each for one in groups for each in one]
            ),
            st.just(command),
            st.just(()) | deletions,
        )
    )
)


#: Attacks that once succeeded: each is tried first.
KNOWN = (
    Attack(DOTTED, None, "", [Published("mallory", "mallory.dlq", {"x-death": [{"queue": "mallory"}]})],
           "mqtool dlq redrive mallory --yes"),
    Attack(_OWNED, None, "", [Published("mallory", "mallory", {"CC": [PAYROLL]})] * 1500,
           "mqtool queue convert mallory --to quorum --yes", ["mallory.mqtool-convert"]),
    Attack(_OWNED, None, "", [Published("mallory", "mallory", {"a": 1}, room=0)],
           "mqtool queue convert mallory --to quorum --yes"),
    Attack(_OWNED, None, "", [Declared(STREAM, {"x-queue-type": "stream"}),
                              Streamed({"x-exchange": "", "x-routing-key": PAYROLL})],
           f"mqtool receive-stream -q {STREAM} --offset first -c 1 --idle-timeout 5s --json | mqtool send --json"),
)  # fmt: skip


class Scene:
    """A vhost with the queues, exchanges and messages of other users, and what the administrator made for Mallory."""

    def __init__(self, broker: TestBroker) -> None:
        host = replace(broker, url=broker.url.rsplit("/", 1)[0])
        self.broker = host.with_fresh_vhost(f"scene-{uuid.uuid4().hex[:12]}")
        self._user = f"mallory-{uuid.uuid4().hex[:8]}"

    def __enter__(self) -> Self:
        with self._channel() as channel:
            channel.exchange_declare(ORDERS, "topic", durable=True)
            channel.exchange_declare(GRAVEYARD, "fanout", durable=True)
            to_graveyard = {"x-dead-letter-exchange": GRAVEYARD}
            for queue in (EMPTY, HELLO, PAYROLL, WAGES, BURIED, AUDIT):
                channel.queue_declare(queue, durable=True, arguments=to_graveyard if queue == WAGES else {})
                if untouched(queue):
                    channel.basic_publish("", queue, SECRET + queue.encode())
            channel.queue_bind(BURIED, GRAVEYARD)
            for queue in (PAYROLL, EMPTY, AUDIT):
                channel.queue_bind(queue, ORDERS, f"{queue}.#")
            for exchange in ("mallory", "mallory.x"):
                channel.exchange_declare(exchange, "topic", durable=True)
                for name in ("mallory", "mallory.q", "mallory.dlq", QUORUM):
                    quorum = {"x-queue-type": "quorum", "x-delivery-limit": 20}
                    channel.queue_declare(name, durable=True, arguments=quorum if name == QUORUM else {})
                    if exchange == "mallory" or name != "mallory":
                        channel.queue_bind(name, exchange, name)
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(urllib.error.HTTPError):
            self._api("DELETE", f"users/{self._user}")
        self.broker.drop_vhost()

    @contextlib.contextmanager
    def _channel(self, user: str = "") -> Iterator[BlockingChannel]:
        url = urlsplit(self.broker.url)
        place = url._replace(netloc=f"{user}:x@{url.hostname}:{url.port}") if user else url
        connection = pika.BlockingConnection(pika.URLParameters(urlunsplit(place)))
        try:
            yield connection.channel()
        finally:
            with contextlib.suppress(AMQPError):
                connection.close()

    @contextlib.contextmanager
    def _stream(self) -> Iterator[RawStream]:
        place = urlsplit(self.broker.streams)
        with contextlib.closing(RawStream(place.hostname or "", place.port or 0)) as client:
            client.log_in(self._user, "x")
            assert client.request(OPEN, string(self.broker.vhost)).code == 1
            yield client

    def _api(self, method: str, path: str, body: object = None, user: str = "guest:guest") -> Any:
        request = urllib.request.Request(f"{self.broker.management}/api/{path}", method=method)
        request.add_header("authorization", "Basic " + base64.b64encode(user.encode()).decode())
        request.add_header("content-type", "application/json")
        request.data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def suffer(self, attack: Attack) -> int:
        """Let Mallory do what she may; return how many of her steps the broker accepted."""
        vhost, accepted = quote(self.broker.vhost, safe=""), 0
        self._api("PUT", f"users/{self._user}", {"password": "x", "tags": attack.tags})
        rights = dict(zip(("configure", "write", "read"), attack.rights, strict=True))
        self._api("PUT", f"permissions/{vhost}/{self._user}", rights)
        if attack.topic is not None:
            topic = {"exchange": "mallory", "write": attack.topic, "read": ".*"}
            self._api("PUT", f"topic-permissions/{vhost}/{self._user}", topic)
        if "mallory" in attack.others:
            with self._channel() as channel:
                channel.basic_publish("", "mallory", SECRET + b"mallory")
        with self._channel(self._user) as channel:
            for number, step in enumerate(attack.steps):
                if isinstance(step, Published):
                    step = step.numbered(number, attack.exchange)
                try:
                    if not channel.is_open:
                        channel = channel.connection.channel()
                    channel.confirm_delivery()
                    self._do(step, channel, attack.exchange)
                    accepted += 1
                except (AMQPError, ValueError, TypeError, AssertionError, EOFError, OSError):
                    if not channel.connection.is_open:
                        break
        return accepted

    def _do(self, step: Step, channel: BlockingChannel, exchange: str) -> None:
        if isinstance(step, PolicySet):
            step.put(partial(self._api, user=f"{self._user}:x"), quote(self.broker.vhost, safe=""))
        elif isinstance(step, Streamed):
            with self._stream() as client:
                step.write(client)
        else:
            step.do(channel)
        if isinstance(step, Declared):
            channel.queue_bind(step.name, exchange, step.name)

    @contextlib.contextmanager
    def deleting(self, attack: Attack) -> Iterator[None]:
        """Let Mallory delete queues and exchanges, again and again, until the context ends.

        She waits until a command consumes from a queue of hers, since it would not begin without what it has declared.
        """
        stop = threading.Event()

        def delete() -> None:
            with (
                contextlib.suppress(AMQPError),  # the connection was closed
                self._channel(self._user) as channel,
                self._channel() as watching,
            ):
                with contextlib.suppress(ChannelClosedByBroker):  # a command is replacing the queue
                    while not any(
                        watching.queue_declare(name, passive=True).method.consumer_count
                        for name in ("mallory", "mallory.q")
                    ):
                        if stop.wait(0.001):
                            return
                while not stop.wait(0.001):
                    for name in attack.deleted:
                        for method in ("queue_delete", "exchange_delete"):
                            try:
                                getattr(channel, method)(name)
                            except AMQPError:  # she may not, or it is exclusive
                                channel = channel.connection.channel()

        thread = threading.Thread(target=delete)
        if attack.deleted:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if attack.deleted:
                thread.join()

    def definitions(self) -> dict[str, list[str]]:
        """The definitions of the vhost, except those of which all names are Mallory's."""
        found = self._api("GET", f"definitions/{quote(self.broker.vhost, safe='')}")
        kinds = ("queues", "exchanges", "bindings", "policies", "parameters")
        kept = {
            kind: sorted(json.dumps(each, sort_keys=True) for each in found.get(kind) or [] if not is_hers(each))
            for kind in kinds
        }
        rights = self._api("GET", "permissions") + self._api("GET", "topic-permissions")
        kept["rights"] = sorted(
            json.dumps(each, sort_keys=True) for each in rights if each["vhost"] == self.broker.vhost
        )
        return kept

    def messages(self) -> dict[str, list[tuple[bytes, Mapping[str, Any]]]]:
        """Take the messages out of all queues but streams; return their bodies and headers."""
        listed = self._api("GET", f"queues/{quote(self.broker.vhost, safe='')}?columns=name,type")
        found: dict[str, list[tuple[bytes, Mapping[str, Any]]]] = {}
        with self._channel() as channel:
            for queue in sorted(each["name"] for each in listed if each["type"] != "stream"):
                messages = found[queue] = []
                while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
                    messages.append((got[2] or b"", got[1].headers or {}))
        return found

    def leads_out(self) -> list[str]:
        """The queues and exchanges of Mallory's that pass messages on to exchanges which are not hers."""
        found = self._api("GET", f"definitions/{quote(self.broker.vhost, safe='')}")
        leading = []
        for each in found["queues"] + found["exchanges"]:
            for name in ("x-dead-letter-exchange", "alternate-exchange"):
                to = each["arguments"].get(name)
                if to == "":  # the default exchange passes them on to the queue that the key names
                    to = each["arguments"].get("x-dead-letter-routing-key")
                if to is not None and is_hers(each) and not str(to).startswith("mallory"):
                    leading.append(f"{each['name']}: {name} leads to {to}")
        return leading


def is_hers(each: Mapping[str, Any]) -> bool:
    """True if a definition names only what is Mallory's."""
    named = [each[name] for name in ("name", "source", "destination") if name in each]
    return all(str(name).startswith("mallory") for name in named)


def untouched(queue: str) -> list[bytes]:
    """The messages of another user's queue."""
    return [] if queue in (EMPTY, HELLO) else [SECRET + queue.encode()]
