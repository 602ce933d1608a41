"""Input that no well-behaved AMQP 1.0 client sends: the bytes of whole connections, generated from a seed."""

import struct
from typing import Any

from mqtool.codecs.amqp10_message import Amqp10Message, BareProperties, MessageHeader, data_section, value_section
from mqtool.codecs.amqp10_values import Array, Milliseconds, Symbol, ULong, encode
from mqtool.codecs.field_tables import Int64, UInt8, UInt16, UInt32
from tests.protocol.hostile_inputs import Inputs
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    AMQP_HEADER,
    ATTACH,
    BEGIN,
    CLOSE,
    COORDINATOR,
    DETACH,
    DISPOSITION,
    END,
    FLOW,
    INIT,
    MODIFIED,
    OPEN,
    RECEIVED,
    RECEIVER,
    REJECTED,
    RELEASED,
    RESPONSE,
    SASL_HEADER,
    SENDER,
    SOURCE,
    TARGET,
    TRANSFER,
    described,
    message,
    raw_frame,
)


def performative(code: int, *fields: Any, channel: int = 0, kind: int = 0, payload: bytes = b"") -> bytes:
    return raw_frame(encode(described(code, *fields)) + payload, channel, kind)


def request(method: str, path: str, body: Any = None) -> bytes:
    """Encode a transfer with a request to the management node, on handle 4."""
    properties = BareProperties(message_id="1", to=path, subject=method, reply_to="$me")
    sent = Amqp10Message(properties=properties, body=value_section(body)).encode()
    return performative(TRANSFER, UInt32(4), UInt32(9), b"9", UInt32(0), True, payload=sent)


def attach(handle: int, role: bool, source: Any, target: Any, *rest: Any, mode: int | None = None) -> bytes:
    settled = None if mode is None else UInt8(mode)
    return performative(
        ATTACH, f"l{handle // 2}", UInt32(handle), role, settled, None, source, target, None, None, *rest
    )


LOGIN = SASL_HEADER + performative(INIT, Symbol("PLAIN"), b"\0guest\0guest", kind=1) + AMQP_HEADER
HELLO = LOGIN + performative(OPEN, "c", "vhost:/") + performative(BEGIN, None, UInt32(0), UInt32(100), UInt32(100))

PAIRED = (None, None, None, {Symbol("paired"): True})
US, NODE = (described(SOURCE, "$me"), described(TARGET, "$me")), "/management"
MANAGEMENT = (
    attach(4, SENDER, US[0], described(TARGET, NODE), UInt32(0), *PAIRED, mode=1)
    + attach(5, RECEIVER, described(SOURCE, NODE), US[1], None, *PAIRED, mode=1)
    + performative(FLOW, UInt32(0), UInt32(100), UInt32(0), UInt32(100), UInt32(5), UInt32(0), UInt32(50))
)  # fmt: skip
DECLARE = (
    MANAGEMENT
    + request("PUT", "/queues/q", {"arguments": {"x-queue-type": "quorum", "x-delivery-limit": Int64(2)}})
    + request("PUT", "/queues/s", {"arguments": {"x-queue-type": "stream"}})
)  # fmt: skip
#: Links 0 and 1 publish, 2 and 3 receive.
LINKS = (
    attach(0, SENDER, described(SOURCE), described(TARGET, "/queues/q"), UInt32(0))
    + attach(1, SENDER, described(SOURCE), described(TARGET), UInt32(0))
    + attach(2, RECEIVER, described(SOURCE, "/queues/q"), described(TARGET))
    + attach(3, RECEIVER, described(SOURCE, "/queues/s"), described(TARGET), mode=1)
)
RICH = Amqp10Message(
    MessageHeader(durable=True, priority=UInt8(3), ttl=UInt32(5)),
    {Symbol("x-opt-d"): Int64(1)},
    {Symbol("x-cc"): ["q", "s"], Symbol("x-opt-m"): Array([Symbol("a")])},
    BareProperties(message_id=ULong(1), to="/exchanges/amq.topic/k", creation_time=Milliseconds(1)),
    {"a": {"b": [Int64(1)]}},
    data_section(b"hello"),
).encode()
PUBLISH = performative(TRANSFER, UInt32(1), UInt32(0), b"t", UInt32(0), False, payload=RICH)
STATES = [described(ACCEPTED), described(REJECTED), described(RELEASED), described(MODIFIED, True, False, {}),
          described(MODIFIED, None, True), described(RECEIVED, UInt32(1), ULong(1)), None]  # fmt: skip
FRAMES = [
    *(performative(TRANSFER, UInt32(0), UInt32(n), b"t", UInt32(0), n % 2 == 0, payload=message()) for n in range(3)),
    PUBLISH,
    performative(TRANSFER, UInt32(0), UInt32(7), b"t", None, None, True, payload=message()),
    performative(TRANSFER, UInt32(0), None, None, None, None, None, None, None, None, True),
    *(performative(FLOW, UInt32(0), UInt32(100), UInt32(0), UInt32(100), UInt32(handle), UInt32(0), UInt32(credit),
                   None, drain, True) for handle, credit, drain in ((2, 5, None), (2, 1, True), (3, 100, True))),
    performative(FLOW, None, UInt32(0), UInt32(0), UInt32(0)),
    *(performative(DISPOSITION, RECEIVER, UInt32(0), UInt32(last), settled, state)
      for last, settled, state in zip((0, 5, (1 << 32) - 1, 0, 3, 1, 2), (True, False) * 4, STATES, strict=False)),
    performative(DETACH, UInt32(0), True),
    performative(DETACH, UInt32(2)),
    performative(END),
    performative(CLOSE),
    performative(BEGIN, None, UInt32(0), UInt32(1), UInt32(1), channel=1),
    performative(OPEN, "c", "vhost:/"),
    attach(6, SENDER, described(SOURCE), described(COORDINATOR)),
    attach(7, RECEIVER, described(SOURCE, None, None, Symbol("link-detach"), None, True, None, None, None, None, None,
                                  Symbol("rabbitmq:volatile-queue")), described(TARGET), mode=1),
    attach(8, RECEIVER, described(SOURCE, None, None, None, None, True, None, None, None, None, None,
                                  Array([Symbol("temporary-queue")])), described(TARGET)),
    request("GET", "/queues/q"),
    request("DELETE", "/queues/q/messages"),
    request("DELETE", "/queues/q"),
    request("POST", "/bindings", {"source": "amq.topic", "destination_queue": "q", "binding_key": "#", "arguments": {}},
            ),
    request("GET", "/bindings?src=amq.topic&dstq=q&key=%23"),
    raw_frame(b""),
]  # fmt: skip
VALUES = [
    *(None, True, UInt8(255), UInt16(1), UInt32((1 << 32) - 1), ULong((1 << 64) - 1), Int64(-1), b"x" * 40, "\0", ""),
    *(Symbol(""), [], [[[]]], {}, {Symbol("x"): None}, Array([Symbol("a"), Symbol("b")]), Array([]), float("nan")),
    *(Milliseconds(-1), *STATES, described(SOURCE, "/queues/q"), described(TARGET, "/queues/%00"), described(0x7F)),
]


class Amqp10Inputs(Inputs):
    """Conversations of AMQP 1.0 that are cut off, changed, repeated or shuffled, before the login or after it."""

    def _frames(self, most: int = 8) -> bytes:
        return b"".join(self.random.choices(FRAMES, k=self.random.randint(1, most)))

    def truncated(self) -> bytes:
        """A conversation that stops after a random byte."""
        whole = HELLO + DECLARE + LINKS + self._frames()
        return whole[: self.random.randrange(len(whole))]

    def odd_login(self) -> bytes:
        """A login with any mechanism and response, or the frames of a login in any order, with some bytes changed."""
        mechanism = Symbol(self.random.choice(["PLAIN", "ANONYMOUS", "EXTERNAL", "AMQPLAIN", "", "\x00" * 300]))
        response = self.random.choice([b"\0guest\0guest", b"", b"\0" * 5, self.random.randbytes(40), bytes(7000), None])
        init = performative(INIT, mechanism, response, kind=1)
        parts = [SASL_HEADER, AMQP_HEADER, init, performative(RESPONSE, b"x", kind=1), performative(OPEN, "c")]
        if self.random.random() < 0.5:
            return SASL_HEADER + init + AMQP_HEADER + self._frames()
        return self.flip(SASL_HEADER + b"".join(self.random.choices(parts, k=4)))

    def large(self) -> bytes:
        """A frame that claims to be larger than it is, or has the maximum size, before the login or after it."""
        size = self.random.choice([0, 7, 8, 8192, 8193, 131_072, 131_073, 1 << 31, (1 << 32) - 1])
        before = self.random.choice([SASL_HEADER, LOGIN, HELLO])
        words = self.random.choice([0, 1, 2, 3, 255])
        return (
            before
            + struct.pack(">IBBH", size, words, self.random.randint(0, 2), 0)
            + bytes(self.random.choice([0, 10, 8192, 131_073]))
        )

    def flipped(self) -> bytes:
        """A conversation with some bytes changed."""
        return self.flip(HELLO + DECLARE + LINKS + self._frames())

    def flipped_message(self) -> bytes:
        """A message with some bytes changed, split into two transfers."""
        sent = self.flip(RICH)
        cut = self.random.randint(0, len(sent))
        first = performative(TRANSFER, UInt32(1), UInt32(0), b"t", UInt32(0), False, True, payload=sent[:cut])
        last = performative(TRANSFER, UInt32(1), UInt32(0), b"t", UInt32(0), False, False, payload=sent[cut:])
        return HELLO + DECLARE + LINKS + first + last + self._frames()

    def shuffled(self) -> bytes:
        """Frames in any order, on sessions and links that may not exist."""
        start = self.random.choice([HELLO, HELLO + DECLARE, HELLO + LINKS, HELLO + DECLARE + LINKS])
        return start + self._frames(12)

    def odd_fields(self) -> bytes:
        """Performatives with fields of any type."""
        frames = []
        for _ in range(self.random.randint(1, 4)):
            code = self.random.choice([*range(OPEN, CLOSE + 1), SOURCE, 0x40, 0x99])
            fields = self.random.choices(VALUES, k=self.random.randint(0, 14))
            if code in (ATTACH, FLOW, TRANSFER, DISPOSITION) and self.random.random() < 0.7:
                start = {ATTACH: ("n", UInt32(9), SENDER), FLOW: (UInt32(0), *[UInt32(9)] * 3, UInt32(2)),
                         TRANSFER: (UInt32(0), UInt32(0)), DISPOSITION: (RECEIVER, UInt32(0))}[code]  # fmt: skip
                fields = [*start, *fields[len(start) :]]
            frames.append(performative(code, *fields, channel=self.random.choice((0, 0, 1, 65_535))))
        return HELLO + DECLARE + LINKS + b"".join(frames) + self._frames()

    def odd_frames(self) -> bytes:
        """A frame of any kind, channel and body."""
        body = self.random.randbytes(self.random.randint(0, 40))
        if self.random.random() < 0.7:
            body = bytes((0, 0x53, self.random.randint(0x10, 0x18))) + self.random.choice([b"\xc0", b"\xd0"]) + body
        kind, words = self.random.choice((0, 0, 0, 1, 2)), self.random.choice((2, 2, 2, 0, 3))
        return HELLO + LINKS + raw_frame(body, self.random.choice((0, 1, 63, 64)), kind, words)

    def nested(self) -> bytes:
        """Deeply nested values, and arrays that claim to have more items than bytes."""
        deep = self.random.choice([b"\x00", b"\xc0\xff\x01", b"\xd0\0\0\xff\xff\0\0\0\1", b"\xe0\xff\xff\x41"]) * 2000
        many = b"\xf0\0\0\0\x05\xff\xff\xff\xff" + self.random.choice([b"\x41", b"\x45", b"\x40", b"\xa1"])
        body = self.random.choice([deep, b"\x00\x53\x10" + deep, b"\x00\x53\x12" + many, message() + deep, many])
        transfer = b"\x00\x53\x14\xc0\x08\x05\x52\x01\x43\xa0\x00\x43\x41"
        return HELLO + LINKS + raw_frame(self.random.choice([body, transfer + body]))

    def odd_requests(self) -> bytes:
        """Requests to the management node that are almost valid."""
        path = self.random.choice(
            ["/queues/q", "/queues/%", "/exchanges/e", "/bindings", "/", "", "/auth/tokens", "x" * 999]
        )
        method = self.random.choice(["GET", "PUT", "POST", "DELETE", "", "PATCH"])
        sent = request(method, path, self.random.choice(VALUES))
        return (
            HELLO + MANAGEMENT + (self.flip(sent) if self.random.random() < 0.5 else sent) * self.random.randint(1, 12)
        )

    makers = (
        Inputs.noise, truncated, odd_login, large, flipped, flipped, flipped_message, shuffled, odd_fields, odd_fields,
        odd_frames, nested, odd_requests,
    )  # fmt: skip
