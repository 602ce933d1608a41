"""The peers of conversations: each says operations in its protocol, and writes what it hears as lines of text."""

import re
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from pamqp import commands, frame

from mqtool.codecs.amqp10_values import Array, Described, Milliseconds, Symbol, ULong, decode, encode
from mqtool.codecs.field_tables import UInt8, UInt32, encode_property
from mqtool.message import PROPERTIES
from tests.protocol import raw_stream
from tests.protocol.raw_amqp10 import ATTACH, CLOSE, DISPOSITION, END, FLOW, RECEIVER, SENDER, TRANSFER, RawAmqp10
from tests.protocol.raw_client import RawClient, raw_frame
from tests.protocol.raw_stream import RawStream

Connect = Callable[..., Any]


class Pairs(dict[str, Any]):
    """A table in which a name can occur twice."""

    def __init__(self, *pairs: tuple[str, Any]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:
        return self._pairs


class Peer:
    """A connection of a client.

    Attributes:
        is_closed: True once the connection is closed.
        is_owed: True if something was said that the broker must answer, and nothing was heard since.
    """

    socket: Any
    is_closed = is_owed = False

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._settled: dict[int, str] = {}

    def say(self, operation: str, *arguments: Any, **named: Any) -> None:
        """Send something to the broker."""
        getattr(self, operation)(*arguments, **named)

    def cut(self) -> None:
        self.socket.close()
        self.is_closed = True

    def hear(self) -> None:
        """Read one frame."""
        before = len(self._lines) + len(self._settled)
        try:
            self._lines += self._read_one()
        except (EOFError, ConnectionError):
            self._lines.append("closed")
            self.cut()
        self.is_owed = self.is_owed and len(self._lines) + len(self._settled) == before

    def _read_one(self) -> Iterator[str]:
        raise NotImplementedError

    def heard(self) -> list[str]:
        """Return what was heard since the last call. At its end are outcomes, which the broker sends in any batches."""
        settled = [f"{what}({number})" for number, what in sorted(self._settled.items())]
        lines, self._lines, self._settled = [*self._lines, *settled], [], {}
        return lines


def _fields(fields: Any) -> str:
    """Write named values, without those that say nothing."""
    return ", ".join(f"{name}={value}" for name, value in fields if value not in ("None", "False", "''", "{}"))


# -- AMQP 0-9-1

_METHODS = {
    name.lower(): getattr(commands, name) for name in ("Basic", "Channel", "Confirm", "Exchange", "Queue", "Tx")
}
_NUMBERS = {
    "b": ">b",
    "B": ">B",
    "s": ">h",
    "u": ">H",
    "I": ">i",
    "i": ">I",
    "l": ">q",
    "L": ">q",
    "f": ">f",
    "d": ">d",
}
_NOW = 1_600_000_000


class Peer091(Peer, RawClient):
    """A connection with one channel, which is opened again once the broker has closed it.

    Methods are written as in AMQP: `basic.consume("jobs", no_ack=True)`.
    """

    def __init__(self, url: str, connect: Connect) -> None:
        Peer.__init__(self)
        RawClient.__init__(self, url, connect=connect)
        self._published = 0
        self._unconfirmed: list[int] | None = None
        self._has_channel = True

    def say(self, operation: str, *arguments: Any, **named: Any) -> None:
        if not self._has_channel:
            self.send(commands.Channel.Open())
            self._has_channel = True
        if "." not in operation:
            return super().say(operation, *arguments, **named)
        kind, name = operation.split(".")
        method = getattr(_METHODS[kind], name.title().replace("_", ""))
        named |= dict(zip((each for each in method.attributes() if each != "ticket"), arguments, strict=False))
        if operation == "confirm.select":
            self._published, self._unconfirmed = 0, []
        self.is_owed = method.synchronous
        return self.send(method(**named))

    def declare(self, name: str, kind: str = "classic", **arguments: Any) -> None:
        """Declare a durable queue with arguments `x-…`."""
        given = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
        given |= {} if kind == "classic" else {"x-queue-type": kind}
        self.say("queue.declare", name, durable=True, arguments=given)

    def publish(self, key: str, *bodies: str, exchange: str = "", mandatory: bool = False, **properties: Any) -> None:
        for body in bodies:
            flags = sum(1 << 15 - PROPERTIES.index(name) for name in properties)
            values = b"".join(encode_property(name, properties[name]) for name in PROPERTIES if name in properties)
            head = struct.pack(">HHQH", 60, 0, len(body), flags) + values
            method = commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
            data = raw_frame(3, 1, body.encode()) if body else b""
            self.socket.sendall(frame.marshal(method, 1) + raw_frame(2, 1, head) + data)
            self._published += 1
            if self._unconfirmed is not None:
                self._unconfirmed.append(self._published)
                self.is_owed = True

    def _read_frame(self) -> tuple[int, Any]:
        head = self.read(7)
        payload = self.read(struct.unpack(">I", head[3:])[0] + 1)
        return head[0], frame.unmarshal(head + payload)[2] if head[0] in (1, 8) else payload[:-1]

    def _read_one(self) -> Iterator[str]:
        method = self._read_frame()[1]
        name = re.sub("(?<=[a-z])([A-Z])", r"_\1", method.name).lower()
        if self._unconfirmed is not None and name in ("basic.ack", "basic.nack"):
            tag = method.delivery_tag
            for number in [each for each in self._unconfirmed if each == tag or (method.multiple and each <= tag)]:
                self._unconfirmed.remove(number)
                self._settled[number] = "confirmed" if name == "basic.ack" else "refused"
            return
        if name == "channel.close":
            self.send(commands.Channel.CloseOk())
            self._has_channel, self._unconfirmed = False, None
        elif name == "connection.close":
            self.send(commands.Connection.CloseOk(), 0)
            self.is_closed = True
        elif name in ("channel.open_ok", "heartbeat"):
            return
        line = f"{name}({_fields((each, repr(getattr(method, each))) for each in method.attributes())})"
        if name in ("basic.deliver", "basic.get_ok", "basic.return"):
            _, head = self._read_frame()
            body = b""
            while len(body) < struct.unpack_from(">Q", head, 4)[0]:
                body += self._read_frame()[1]
            line += f" {_text(body)} {_properties(head)}".rstrip()
        yield line


def _properties(head: bytes) -> str:
    """Write the properties in a content header, with the wire types and the order of the headers."""
    (flags,) = struct.unpack_from(">H", head, 12)
    at, found = 14, []
    for number, name in enumerate(PROPERTIES):
        if flags & 1 << 15 - number:
            letter = {"headers": "F", "delivery_mode": "B", "priority": "B", "timestamp": "T"}.get(name, "")
            text, at = _typed(letter, head, at) if letter else _short(head, at)
            found.append(f"{name}={text}")
    return ", ".join(found)


def _short(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    return _text(data[at + 1 : end]), end


def _text(data: bytes) -> str:
    return repr(data.decode("utf-8", "backslashreplace"))


def _typed(letter: str, data: bytes, at: int) -> tuple[str, int]:
    """Write a value of a table; return it with the position after it."""
    if letter in _NUMBERS:
        return f"{struct.unpack_from(_NUMBERS[letter], data, at)[0]}{letter}", at + struct.calcsize(_NUMBERS[letter])
    if letter == "T":
        (seconds,) = struct.unpack_from(">Q", data, at)
        return ("now" if seconds > _NOW else f"{seconds}T"), at + 8
    if letter in "Vt":
        return ("void", at) if letter == "V" else (str(data[at] != 0).lower(), at + 1)
    if letter == "D":
        return "{}D{}".format(*struct.unpack_from(">BI", data, at)), at + 5
    end = at + 4 + int.from_bytes(data[at : at + 4])
    at += 4
    if letter in "Sx":
        return ("x" if letter == "x" else "") + _text(data[at:end]), end
    parts = []
    while at < end:
        name, at = _short(data, at) if letter == "F" else ("", at)
        text, at = _typed(chr(data[at]), data, at + 1)
        parts.append(f"{name[1:-1]}: {text}" if name else text)
    return ("{%s}" if letter == "F" else "[%s]") % ", ".join(parts), end


# -- AMQP 1.0

_COMPOSITES = """
10 open container_id hostname max_frame_size channel_max idle_time_out
11 begin remote_channel next_outgoing_id incoming_window outgoing_window handle_max
12 attach name handle role snd_settle_mode rcv_settle_mode source target unsettled incomplete_unsettled \
initial_delivery_count max_message_size offered_capabilities desired_capabilities properties
13 flow next_incoming_id incoming_window next_outgoing_id outgoing_window handle delivery_count link_credit available \
drain echo properties
14 transfer handle delivery_id delivery_tag message_format settled more rcv_settle_mode state resume aborted batchable
15 disposition role first last settled state batchable
16 detach handle closed error
17 end error
18 close error
1d error condition description info
23 received section_number section_offset
24 accepted
25 rejected error
26 released
27 modified delivery_failed undeliverable_here message_annotations
28 source address durable expiry_policy timeout dynamic dynamic_node_properties distribution_mode filter \
default_outcome outcomes capabilities
2b delete_on_close
29 target address durable expiry_policy timeout dynamic dynamic_node_properties capabilities
70 header durable priority ttl first_acquirer delivery_count
71 delivery_annotations
72 message_annotations
73 properties message_id user_id to subject reply_to correlation_id content_type content_encoding \
absolute_expiry_time creation_time group_id group_sequence reply_to_group_id
74 application_properties
75 data
76 sequence
77 value
78 footer
"""
_NAMES: dict[Any, list[str]] = {
    int(code, 16): [name, *fields] for code, name, *fields in map(str.split, _COMPOSITES.strip().splitlines())
}
_NAMES |= {f"amqp:{names[0].replace('_', '-')}:list": names for names in [*_NAMES.values()]}
COMPOSITES = {names[0]: (code, names[1:]) for code, names in _NAMES.items() if isinstance(code, int)}
_SYMBOLS = {"expiry_policy", "content_type", "content_encoding", "condition", "distribution_mode"}
_KINDS: dict[str, type] = {
    "snd_settle_mode": UInt8,
    "rcv_settle_mode": UInt8,
    "priority": UInt8,
    "message_id": ULong,
    "correlation_id": ULong,
    "absolute_expiry_time": Milliseconds,
    "creation_time": Milliseconds,
}
#: Fields that count frames, or name what the peer has chosen.
_HIDDEN = {"next_incoming_id", "incoming_window", "next_outgoing_id", "outgoing_window", "initial_delivery_count"} | {
    "delivery_tag",
    "message_format",
    "more",
}


def composite(name: str, *arguments: Any, **fields: Any) -> Described:
    """Return a composite value of AMQP 1.0, or a section of a message, such as `header(durable=True)`."""
    code, names = COMPOSITES[name]
    if code >= 0x71 and code != 0x73:
        (value,) = arguments
        if name in ("message_annotations", "delivery_annotations", "footer"):
            value = {Symbol(key): each for key, each in value.items()}
        return Described(ULong(code), value.encode() if name == "data" else value)
    fields |= dict(zip(names, arguments, strict=False))
    values = [_coerced(each, fields.get(each)) for each in names]
    while values and values[-1] is None:
        values.pop()
    return Described(ULong(code), values)


def _coerced(name: str, value: Any) -> Any:
    if type(value) is int:
        return _KINDS.get(name, UInt32)(value)
    if name == "message_annotations" and value:
        return {Symbol(key): each for key, each in value.items()}
    if name == "filter" and value:
        return {Symbol(key): Described(Symbol(key), each) for key, each in value.items()}
    if name == "capabilities" and value:
        return Array(value)
    return Symbol(value) if name in _SYMBOLS and value is not None else value


def _written(value: Any) -> str:
    """Write a value of AMQP 1.0."""
    if isinstance(value, Described):
        name, *fields = _NAMES.get(value.descriptor, [str(value.descriptor)])
        if isinstance(value.value, list) and name not in ("sequence", "value"):
            shown = zip(fields, value.value, strict=False)
            return f"{name}({_fields((each, _written(it)) for each, it in shown if each not in _HIDDEN)})"
        return f"{name}({_written(value.value)})"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_written(key)}: {_written(each)}" for key, each in value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    kind = getattr(value, "wire_type", None)
    if kind == "symbol":
        return f":{value}"
    if kind == "$milliseconds":
        return "now" if value > _NOW * 1000 else f"{int(value)}ms"
    return repr(value) if kind in (None, "uint8", "uint32") else f"{kind}({value})"


def _sections(data: bytes) -> str:
    """Write the sections of a message, or bytes that are not one."""
    at, found = 0, []
    while at < len(data):
        value, at = decode(data, at)
        found.append(_written(value))
    return " ".join(found)


class Peer10(Peer, RawAmqp10):
    """A connection with one session, and a link for each handle."""

    def __init__(self, url: str, connect: Connect) -> None:
        Peer.__init__(self)
        RawAmqp10.__init__(self, url, connect=connect)
        self._sent = 0
        self._first: int | None = None

    def sender(self, address: str | None, handle: int = 0, **target: Any) -> None:
        self._attach(SENDER, handle, composite("source"), composite("target", address, **target))

    def receiver(self, address: str | None, handle: int = 0, *, settled: bool | None = None, **source: Any) -> None:
        self.receiving.add(handle)
        mode = None if settled is None else int(settled)
        self._attach(RECEIVER, handle, composite("source", address, **source), composite("target"), mode)

    def _attach(self, role: bool, handle: int, source: Any, target: Any, mode: int | None = None) -> None:
        count = 0 if role is SENDER else None
        fields = {"snd_settle_mode": mode, "source": source, "target": target, "initial_delivery_count": count}
        self.send(ATTACH, *composite("attach", f"link-{handle}", handle, role, **fields).value)
        self.is_owed = True

    def credit(self, credit: int, handle: int = 0, **flags: Any) -> None:
        self.flow(handle, credit, **flags)

    def transfer(self, *sections: Described, handle: int = 0, settled: bool = False) -> None:
        self.publish(self._sent, b"".join(map(encode, sections)), handle=handle, settled=settled)
        self._sent += 1
        self.is_owed = not settled

    def outcome(self, delivery: int, state: Described) -> None:
        number = UInt32((delivery + (self._first or 0)) % (1 << 32))
        self.send(DISPOSITION, RECEIVER, number, None, True, state)

    def detach(self, handle: int = 0, closed: bool = True) -> None:
        self.send(0x16, UInt32(handle), closed)

    def _read_one(self) -> Iterator[str]:
        got = self.receive()
        fields = got.fields
        if got.code == TRANSFER and fields[1] is not None:
            self._first = fields[1] if self._first is None else self._first
            fields[1] = UInt32((fields[1] - self._first) % (1 << 32))
        if got.code == DISPOSITION and fields[0] is RECEIVER and got.field(3):
            for number in range(fields[1], (fields[1] if fields[2] is None else fields[2]) + 1):
                self._settled[number] = _written(got.field(4))
            return
        if got.code == FLOW and got.field(4) is None:
            return
        if got.code in (END, CLOSE):
            self.is_closed = True
        yield f"{_written(Described(ULong(got.code), fields))} {_sections(got.payload)}".rstrip()


# -- streams

_CODES = {
    1: "ok",
    2: "no-stream",
    3: "subscription-exists",
    4: "no-subscription",
    5: "stream-exists",
    6: "stream-not-available",
    17: "precondition-failed",
    18: "no-publisher",
    19: "no-offset",
}
#: The fields of each command after its correlation id: numbers, strings (s), offsets (o), messages (m), tables (t).
_COMMANDS = {
    "declare_publisher": "Bss",
    "publish": "Bm",
    "query_publisher": "ss",
    "delete_publisher": "B",
    "subscribe": "BsoHt",
    "credit": "BH",
    "store_offset": "ssQ",
    "query_offset": "ss",
    "unsubscribe": "B",
    "create": "st",
    "delete": "s",
}
_WITHOUT_ANSWER = ("publish", "credit", "store_offset")
_STREAM_NAMES = {key: name.lower() for name, key in vars(raw_stream).items() if name.isupper() and isinstance(key, int)}
_OFFSETS = {"first": raw_stream.FIRST, "last": raw_stream.LAST, "next": raw_stream.NEXT}


class StreamPeer(Peer, RawStream):
    """A connection to the stream port, for example `subscribe(1, "orders", "first", 10, name="reader")`.

    An offset is a word or a number. `publish(1, 0, data("x"), data("y"))` uses the publishing ids 0 and 1.
    """

    def __init__(self, host: str, port: int, vhost: str, connect: Connect) -> None:
        Peer.__init__(self)
        RawStream.__init__(self, host, port, connect=connect)
        self.log_in(heartbeat=0)
        assert self.request(raw_stream.OPEN, raw_stream.string(vhost)).code == 1
        self._requests: deque[str] = deque()

    def say(self, operation: str, *arguments: Any, **named: Any) -> None:
        if operation == "cut":
            return self.cut()
        parts, values = b"", deque(arguments)
        for letter in _COMMANDS[operation]:
            if letter == "m":
                parts += self._messages(values.popleft(), *values)
            elif letter == "t":
                table = {name.replace("_", "-"): value for name, value in named.items()}
                parts += raw_stream.table(table) if table or operation == "create" else b""
            else:
                parts += _encoded(letter, values.popleft())
        key = getattr(raw_stream, operation.upper())
        self.is_owed = operation not in ("credit", "store_offset")
        return self.send(key, parts if operation in _WITHOUT_ANSWER else struct.pack(">I", 1) + parts)

    def _messages(self, first: int, *messages: Described | tuple[Described, ...]) -> bytes:
        data = struct.pack(">I", len(messages))
        for number, message in enumerate(messages, first):
            sections = [message] if isinstance(message, Described) else message
            encoded = b"".join(map(encode, sections))
            data += struct.pack(">QI", number, len(encoded)) + encoded
        return data

    def _read_one(self) -> Iterator[str]:
        got = self.next()
        key, body = got.key & 0x7FFF, got.body
        name = _STREAM_NAMES[key]
        if got.key != key:
            correlated, code = (
                struct.unpack_from(">IH", body) if name != "credit" else (0, *struct.unpack_from(">H", body))
            )
            rest = body[6:] if correlated and code == 1 else b""
            yield f"{name}({_CODES[code]}{f', {int.from_bytes(rest)}' if rest else ''})"
        elif name == "publish_confirm":
            (count,) = struct.unpack_from(">I", body, 1)
            self._settled |= dict.fromkeys(struct.unpack_from(f">{count}Q", body, 5), "confirmed")
        elif name == "publish_error":
            (count,) = struct.unpack_from(">I", body, 1)
            for number, code in struct.iter_unpack(">QH", body[5 : 5 + count * 10]):
                self._settled[number] = f"publish_error.{_CODES[code]}"
        elif name == "deliver":
            chunk = raw_stream.chunk_of(body)
            for offset, entry in enumerate(chunk.entries, chunk.first_offset):
                yield f"deliver({chunk.subscription}, {offset}) {_sections(entry)}"
        elif name == "consumer_update":
            yield f"consumer_update({body[4]}, active={bool(body[5])})"
        elif name == "metadata_update":
            yield f"metadata_update({_CODES[int.from_bytes(body[:2])]}, {body[4:].decode()!r})"
        elif name != "heartbeat":
            yield f"{name}({body.hex()})"


def _encoded(letter: str, value: Any) -> bytes:
    if letter == "s":
        return raw_stream.string(value)
    if letter == "o":
        return _OFFSETS[value] if isinstance(value, str) else raw_stream.at(value)
    return struct.pack(f">{letter}", value)
