"""A client of AMQP 1.0. It uses the frames of tests/protocol."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from mqtool.codecs.amqp10_message import Amqp10Message, MessageHeader, body_bytes, data_section
from mqtool.codecs.amqp10_values import Described, Symbol, ULong, decode, encode
from mqtool.codecs.field_tables import UInt32
from tests.protocol.raw_amqp10 import (
    ACCEPTED,
    AMQP_HEADER,
    ATTACH,
    BEGIN,
    CLOSE,
    DETACH,
    DISPOSITION,
    END,
    FLOW,
    INIT,
    MODIFIED,
    OPEN,
    OUTCOME,
    RECEIVER,
    REJECTED,
    RELEASED,
    SASL_HEADER,
    SENDER,
    SOURCE,
    TARGET,
    TRANSFER,
    described,
    raw_frame,
)
from tests.simulation.client import Client, Gone
from tests.simulation.client091 import body_of, number_in
from tests.simulation.judge import Sent

_SERIAL = 1 << 32

#: The idle timeout that the broker announces.
_IDLE_SECONDS = 60

_CLOSE_SECONDS = 10

_DELETED = ("amqp:resource-deleted", "amqp:not-found")

_OUTCOMES = {ACCEPTED: "confirmed", RELEASED: "returned", REJECTED: "refused", MODIFIED: "returned"}
_SETTLEMENTS = {"acked": ACCEPTED, "rejected": REJECTED, "requeued": RELEASED}


class Client10(Client):
    """A connection with one session, and one link at a time.

    Attributes:
        credit: how many more messages may be sent on the sender, or received on the receiver.
        window: how many more transfers the broker accepts in the session.
        waiting: the published messages without an outcome, by delivery id.
        error: the condition with which the broker detached the link, ended the session or closed the connection.
    """

    port = 5672

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._expected: dict[int, asyncio.Future[Any]] = {}
        self._header: asyncio.Future[Any] | None = None
        self.credit = 0
        self.waiting: dict[int, Sent] = {}
        self.when_delivered: Callable[[int, int], None] = lambda *_: None
        self.error: str | None = None
        self._changed = asyncio.Event()
        self._queue = ""
        self._partial = b""
        self._count = 0
        self._sent = 0
        self._received = 0
        self._handle = 0
        self.is_sending = False
        self._theirs = 0
        self.window = 0
        self.overdrawn = False
        self._first_taken = self._limit = 0

    async def log_in(self) -> None:
        for header, before in ((SASL_HEADER, True), (AMQP_HEADER, False)):
            self._header = self.future()
            self.send(header)
            if not before:
                await self.within(self._header, "the protocol header")
                break
            mechanisms = self._expect(0x40)
            await self.within(self._header, "the protocol header")
            await self.within(mechanisms, "sasl.mechanisms")
            outcome = self._expect(OUTCOME)
            self.performative(INIT, Symbol("PLAIN"), b"\0guest\0guest", kind=1)
            await self.within(outcome, "sasl.outcome")
        await self._ask(OPEN, OPEN, self.name, "vhost:/")
        begun = await self._ask(BEGIN, BEGIN, None, UInt32(0), UInt32(2048), UInt32(2048))
        self._theirs, self.window = int(begun[1]), int(begun[2])
        # The broker checks twice in each interval, and then waits for the reply to its close.
        self.side.peer.silence_limit = _IDLE_SECONDS * 1.5 + _CLOSE_SECONDS + 2
        asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        while self.is_open:
            await asyncio.sleep(10)
            if self.is_open:
                self.send(b"\x00\x00\x00\x08\x02\x00\x00\x00")

    def performative(self, code: int, *fields: Any, kind: int = 0, payload: bytes = b"") -> None:
        self.send(raw_frame(encode(described(code, *fields)) + payload, 0, kind))

    def _expect(self, code: int) -> "asyncio.Future[Any]":
        self._expected[code] = future = self.future()
        return future

    async def _ask(self, code: int, answer: int, *fields: Any) -> list[Any]:
        future = self._expect(answer)
        self.performative(code, *fields)
        got: list[Any] = await self.within(future, f"the answer to performative {code:#x}")
        return got

    def take(self, data: bytes) -> int:
        taken = 0
        if self._header is not None and not self._header.done():
            if len(data) < 8:
                return 0
            taken = 8
            self._header.set_result(data[:8])
        while len(data) - taken >= 8:
            size, words = struct.unpack_from(">IB", data, taken)
            if len(data) - taken < size:
                break
            body = data[taken + words * 4 : taken + size]
            taken += size
            if body:
                value, end = decode(body)
                self._frame(int(value.descriptor), value.value, body[end:])
            if self._header is not None and not self._header.done():
                break
        return taken

    def _frame(self, code: int, fields: list[Any], payload: bytes) -> None:
        fields = [*fields, *[None] * 12]
        if code == FLOW:
            self._flow(fields)
        elif code == TRANSFER:
            self._transfer(fields, payload)
        elif code == DISPOSITION:
            self._disposition(fields)
        elif code in (DETACH, END, CLOSE):
            self._ended(code, fields)
        if (future := self._expected.pop(code, None)) is not None and not future.done():
            future.set_result(fields)

    def _flow(self, fields: list[Any]) -> None:
        self.window = int(fields[0] or 0) + int(fields[1]) - self._sent
        if fields[4] is not None and self.is_sending:
            taken = (int(fields[5]) - self._first_taken) % _SERIAL
            if taken > self._limit:
                self.judge.fail("credit is enforced", f"{self.name}: {taken} taken, {self._limit} allowed")
            self._limit = taken + int(fields[6])
            self.credit = (int(fields[5]) + int(fields[6]) - self._count) % _SERIAL
        self._changed.set()

    def _ended(self, code: int, fields: list[Any]) -> None:
        error = next((each.value for each in fields if isinstance(each, Described)), None)
        if error is not None:
            # The link's last flow may have crossed the detach. Like RabbitMQ, the broker then ends the session.
            has_crossed = self.error in _DELETED and str(error[0]) == "amqp:session:unattached-handle"
            self.error = str(error[0])
            self.judge.note(self.name, f"ended by the broker: {self.error}")
            is_stopping = "broker forced connection closure" in str(error[1:])
            if self.error not in _DELETED and not (is_stopping or has_crossed or self.overdrawn):
                self.judge.fail("no link is detached for another's fault", f"{self.name}: {self.error}")
        if code in (END, CLOSE) and error is not None:
            self.vanish(told=True)
        self._changed.set()

    # -- sending

    async def attach_sender(self, queue: str) -> None:
        self.is_sending, self.credit, self._count, self.error = True, 0, 0, None
        self._first_taken = self._limit = 0
        self._handle += 1
        source, target = described(SOURCE, None), described(TARGET, f"/queues/{queue}")
        name, handle = f"{self.name}-{self._handle}", UInt32(self._handle)
        await self._ask(ATTACH, ATTACH, name, handle, SENDER, None, None, source, target, None, None, UInt32(0))

    async def detach(self) -> None:
        self.gives_back = True
        if self.error is None:
            await self._ask(DETACH, DETACH, UInt32(self._handle), True)
        self.gives_back = False
        self.judge.known(self.name)

    async def close(self) -> None:
        self.gives_back = True
        await self._ask(CLOSE, CLOSE)
        self.judge.known(self.name)
        self.side.close()

    def transfer(self, sent: Sent) -> None:
        """Send a message, whether or not there is credit."""
        number = self._sent
        message = Amqp10Message(header=MessageHeader(durable=sent.persistent), body=data_section(body_of(sent.number)))
        self.waiting[number] = sent
        fields = UInt32(self._handle), UInt32(number), struct.pack(">I", number), UInt32(0), False, False
        self.performative(TRANSFER, *fields, payload=message.encode())
        self._sent += 1
        self._count += 1
        self.credit -= 1
        self.window -= 1

    async def until(self, condition: Callable[[], bool], about: str) -> None:
        """Wait until a condition holds, or the link has ended. Raises Gone if the connection is lost."""
        while not condition() and self.error is None:
            self._changed.clear()
            both = asyncio.create_task(self._changed.wait()), asyncio.create_task(self.lost.wait())
            try:
                await self.within(asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED), about)
            finally:
                for each in both:
                    each.cancel()
            if not self.is_open:
                raise Gone

    def _disposition(self, fields: list[Any]) -> None:
        role, first, last, _, state = fields[:5]
        if role is not RECEIVER:
            return
        for number in range(int(first), int(first if last is None else last) + 1):
            sent = self.waiting.pop(number, None)
            if sent is None:
                self.judge.fail("each message gets one outcome", f"{self.name}: delivery {number}")
                return
            outcome = _OUTCOMES[int(state.descriptor)]
            self.judge.note(self.name, f"{outcome} {sent.number}")
            self.judge.outcome(sent, outcome)
        self._changed.set()

    # -- receiving

    async def attach_receiver(self, queue: str, credit: int) -> None:
        self.is_sending, self._queue, self._count, self.error, self.credit = False, queue, 0, None, 0
        self._handle += 1
        source, target = described(SOURCE, f"/queues/{queue}"), described(TARGET, None)
        name, handle = f"{self.name}-{self._handle}", UInt32(self._handle)
        got = await self._ask(ATTACH, ATTACH, name, handle, RECEIVER, None, None, source, target)
        self._first_count = int(got[9] or 0)
        self.grant(credit)

    def grant(self, credit: int) -> None:
        """Give the broker credit to send this many more messages."""
        self.credit = credit
        seen = UInt32((self._theirs + self._received) % _SERIAL)
        count = UInt32((self._first_count + self._count) % _SERIAL)
        fields = seen, UInt32(2048), UInt32(self._sent), UInt32(2048), UInt32(self._handle), count, UInt32(credit)
        self.performative(FLOW, *fields, None, False, False)

    def _transfer(self, fields: list[Any], payload: bytes) -> None:
        self._received += 1
        self._partial += payload
        if fields[5]:
            return
        payload, self._partial = self._partial, b""
        message = Amqp10Message.decode(payload)
        number = number_in(body_bytes(message.body) or b"", self)
        self._count += 1
        self.credit -= 1
        queue, again = self._queue, message.header.first_acquirer is False
        self.judge.note(self.name, f"got {number} from {queue}{' again' if again else ''}")
        if self.credit < 0:
            self.judge.fail("a link's credit is never exceeded", f"{self.name} got message {number} without credit")
        who = f"{self.name}/{self._handle}"
        self.judge.delivered(queue, number, who, redelivered=again, is_given_back=self.gives_back)
        self.when_delivered(int(fields[1]), number)

    def settle(self, delivery: int, number: int, how: str) -> None:
        """Accept, reject or release a delivery."""
        self.judge.note(self.name, f"{how} {number}")
        self.judge.settled(self._queue, number, how, self.name)
        state = Described(ULong(_SETTLEMENTS[how]), [])
        self.performative(DISPOSITION, RECEIVER, UInt32(delivery), None, True, state)
