"""An AMQP 1.0 connection for one thread, with one session and one link. See wire."""

import os
import select
import struct
import time
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, NamedTuple

from mqtool.amqp import Address, TlsFiles
from mqtool.amqp.address import connection_name
from mqtool.amqp10 import sections
from mqtool.amqp10.link_receiver import OFFSET, offset_filter
from mqtool.amqp10.refusals import ClosedByBroker, too_old
from mqtool.amqp10.transport import Transport
from mqtool.benching.wire import Take, Wire, ignore
from mqtool.codecs.amqp10_frames import (
    AMQP,
    FRAME_HEADER,
    RECEIVER,
    SENDER,
    SETTLED,
    UNSETTLED,
    Accepted,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    Source,
    Target,
    Transfer,
    decode_performative,
    encode_composite,
    frame,
    transfer_frames,
)
from mqtool.codecs.amqp10_values import Symbol
from mqtool.message import Delivery, Message
from mqtool.offsets import Offset, Start

_LOST = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error)
_HANDLE = 0
_IDS = 0xFFFF_FFFF
#: The credit for a prefetch of 0, since AMQP 1.0 does not allow unlimited credit.
_MANY = 65_535
#: The number of transfer frames that the broker may send. Each flow frame resets it.
_WINDOW = 1 << 30
#: Seconds to wait for a reply from the broker.
_PATIENCE = 20.0
#: Positions in a transfer frame: the start of the delivery ID, the end of the tag, and the start of the payload.
_ID, _AFTER_TAG, _PAYLOAD = 20, 30, 33
#: A disposition frame for one delivery: performative, role, first, last, settled, accepted.
_ACCEPT = Struct(">IBBH3sBBBBBIBIB4s")
_ACCEPT_START = (_ACCEPT.size, 2, 0, 0, b"\x00\x53\x15", 0xC0, 17, 5, 0x41, 0x70)
_ACCEPT_END = (0x41, b"\x00\x53\x24\x45")


class Template(NamedTuple):
    """A message's frames without its number and stamp, and the number of frames."""

    start: bytes
    middle: bytes
    end: bytes
    frames: int


class Amqp10Wire(Wire):
    """An AMQP 1.0 connection.

    Raises:
        ConnectionError, MqtoolError: connecting or logging in has failed.
    """

    def __init__(self, address: Address, tls: TlsFiles) -> None:
        self.now = time.monotonic_ns()
        self.credit = 0
        self.on_confirm = self.on_nack = ignore
        self._take: Take = ignore
        self._watched: dict[int, Callable[[], None]] = {}
        self._transport = Transport(address, tls.context() if address.tls else None, connection_name())
        self._name = f"{connection_name()} {os.urandom(6).hex()}"
        self._queue = ""
        self._has_begun = self._is_attached = self._is_settled = False
        # For the session: transfer frames sent and received, and how many more the broker accepts.
        self._frames_out = self._frames_in = self._room = 0
        # For the link: messages sent or received, and for a receiver, the credit that the broker has left.
        self._count = self._first_count = self._left = 0
        self._link_credit = self._frames_each = 1
        self._prefetch = self._unsettled = self._lowest = 0
        self._partial: list[bytes] = []
        self._batch: list[Delivery] = []
        if (version := str(self._transport.properties.get("version", ""))).startswith("3."):
            self._transport.close()
            raise too_old(version)
        self._send(Begin(None, 0, _WINDOW, _WINDOW, handle_max=_HANDLE))
        self._until(lambda: self._has_begun)

    def watch(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        self._watched[descriptor] = on_readable

    def wait(self, seconds: float) -> None:
        sources: list[Any] = [self._transport, *self._watched]
        readable, writable, _ = select.select(sources, sources[:1] if self._transport.unsent else [], [], seconds)
        if writable or self._transport in readable:
            while self._read(0.0):
                pass
        for descriptor, on_readable in self._watched.items():
            if descriptor in readable:
                on_readable()

    @property
    def unsent(self) -> int:
        return self._transport.unsent

    def close(self) -> None:
        self._transport.close()

    def _send(self, performative: Any) -> None:
        self._transport.send([frame(0, performative)])

    def _until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise ConnectionError("the broker does not answer")
            self._read(0.1)

    # Publishing.

    def start_publishing(self, exchange: str, routing_key: str, *, confirms: bool) -> None:  # noqa: ARG002
        self._link_credit = 0
        target = Target(sections.exchange_address(exchange, routing_key))
        self._send(Attach(self._name, _HANDLE, SENDER, UNSETTLED, None, Source(), target, initial_delivery_count=0))
        self._until(lambda: self._is_attached)

    def template(self, message: Message, stamp: int, *, persistent: bool) -> Template:
        data = sections.encode(message, persistent=persistent)
        first, *others = transfer_frames(0, _HANDLE, 0, 0, data, self._transport.frame_max, settled=False)
        stamp_at = _PAYLOAD + len(data) - len(message.body)
        end = first[stamp_at + stamp :]
        for number, each in enumerate(others, 1):  # these frames do not contain the message's number
            body = encode_composite(Transfer(_HANDLE, more=number < len(others))) + each[_PAYLOAD:]
            end += FRAME_HEADER.pack(FRAME_HEADER.size + len(body), 2, AMQP, 0) + body
        self._frames_each = max(self._frames_each, 1 + len(others))
        return Template(first[:_ID], first[_AFTER_TAG:stamp_at], end, 1 + len(others))

    def publish(self, messages: Iterable[tuple[int, Template, bytes]]) -> None:
        pieces: list[bytes] = []
        for tag, template, stamp in messages:
            number = (tag - 1 & _IDS).to_bytes(4)
            pieces += (template.start, number, b"\xa0\x04", number, template.middle, stamp, template.end)
            self._count += 1
            self._link_credit -= 1
            self._frames_out += template.frames
            self._room -= template.frames
        self._transport.send(pieces)
        self._set_credit()

    def _set_credit(self) -> None:
        self.credit = min(self._link_credit, self._room // self._frames_each)

    # Receiving.

    def consume(self, queue: str, prefetch: int, take: Take, *, auto: bool, offset: int | None) -> None:
        self._queue, self._take, self._prefetch, self._is_settled = queue, take, prefetch or _MANY, auto
        at = None if offset is None else {Symbol(OFFSET): offset_filter(Offset(Start.OFFSET, offset))}
        source, mode = Source(sections.queue_address(queue), filter=at), SETTLED if auto else UNSETTLED
        self._send(Attach(self._name, _HANDLE, RECEIVER, mode, None, source, Target()))
        self._until(lambda: self._is_attached)
        self._give_credit()

    def _give_credit(self) -> None:
        credit = self._prefetch - self._unsettled
        if self._left < credit and self._left <= self._prefetch // 2:
            self._left = credit
            self._send_flow(_HANDLE, self._first_count + self._count & _IDS, credit)

    def _send_flow(self, handle: int | None = None, count: int | None = None, credit: int | None = None) -> None:
        sent, received = self._frames_out & _IDS, self._frames_in & _IDS
        self._send(Flow(received, _WINDOW, sent, _WINDOW, handle, count, credit))

    def acknowledge(self, tags: Iterable[tuple[int, bool]]) -> None:
        frames = []
        for tag, multiple in tags:
            first = self._lowest if multiple else tag
            frames.append(_ACCEPT.pack(*_ACCEPT_START, first, 0x70, tag, *_ACCEPT_END))
            self._unsettled -= (tag - first & _IDS) + 1
            self._lowest = tag + 1 & _IDS
        self._transport.send(frames)
        self._give_credit()

    def offset_of(self, delivery: Delivery) -> int:
        return int(delivery.headers["x-stream-offset"])

    def _read(self, timeout: float) -> bool:
        """Handle the frames that have arrived. Return False if there were none."""
        try:
            bodies = self._transport.read(timeout)
            frames = [(body, *decode_performative(body)) for body in bodies]
        except _LOST as error:
            raise ConnectionError("the connection was lost") from error
        self.now = time.monotonic_ns()
        try:
            for body, told, end in frames:
                self._on_frame(told, body[end:])
        except ClosedByBroker as error:
            if error.is_temporary:
                raise ConnectionError(str(error)) from error
            raise error.translated() from error
        if batch := self._batch:
            self._batch = []
            self._take(batch)
            if self._is_settled:
                self._give_credit()
        return bool(bodies)

    def _on_frame(self, told: Any, payload: bytes) -> None:
        if isinstance(told, Transfer):
            self._on_transfer(told, payload)
        elif isinstance(told, Disposition):
            if told.role == RECEIVER:
                settled = range(told.first + 1, (told.first if told.last is None else told.last) + 2)
                (self.on_confirm if isinstance(told.state, Accepted) else self.on_nack)(settled)
        else:
            self._on_other(told)

    def _on_transfer(self, told: Transfer, payload: bytes) -> None:
        self._frames_in += 1
        if told.delivery_id is not None:
            self._number = told.delivery_id
        self._partial.append(payload)
        if told.more:
            return
        payload, self._partial = b"".join(self._partial), []
        if not self._unsettled:
            self._lowest = self._number
        self._count += 1
        self._left -= 1
        self._unsettled += not self._is_settled
        self._batch.append(sections.decode(payload, self._queue, self._number, 0, settled=bool(told.settled)))

    def _on_other(self, told: Any) -> None:
        match told:
            case Begin():
                self._has_begun = True
                self._frames_in, self._room = told.next_outgoing_id, told.incoming_window
            case Attach():
                self._is_attached = (told.source if self._prefetch else told.target) is not None
                self._first_count = told.initial_delivery_count or 0
            case Flow():
                if told.next_incoming_id is not None:
                    self._room = told.incoming_window - (self._frames_out - told.next_incoming_id & _IDS)
                if told.handle is not None and not self._prefetch:
                    self._link_credit = (told.delivery_count or 0) + (told.link_credit or 0) - self._count
                    self._set_credit()
                if told.echo:
                    self._send_flow()
            case Detach() | End() | Close():
                raise ClosedByBroker.from_error(told.error)
