"""A client of the stream protocol. It uses the frames of tests/protocol."""

import asyncio
import struct
from typing import TYPE_CHECKING, Any

from mqtool.codecs.amqp10_message import Amqp10Message, body_bytes, data_section
from tests.protocol import raw_stream as raw
from tests.simulation.client import Client, Gone
from tests.simulation.client091 import body_of, number_in, silence_limit
from tests.simulation.judge import Sent

if TYPE_CHECKING:
    from tests.simulation.world import World

_RESPONSE = 0x8000
_OK = 1
_PRECONDITION_FAILED = 17
_NO_OFFSET = 19


class StreamClient(Client):
    """A connection of a publisher or a reader.

    Attributes:
        waiting: the published messages that are not confirmed, by publishing id.
        found: the messages that a reader received, with their offsets.
    """

    port = 5552

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._tuned: asyncio.Future[Any] | None = None
        self.waiting: dict[int, Sent] = {}
        self.found: list[tuple[int, int]] = []
        self.confirmed = asyncio.Event()
        self._stream = ""
        self._credit = 0
        self._next: int | None = None

    async def log_in(self) -> None:
        await self.ask(raw.PEER_PROPERTIES, raw.table({"product": "simulation"}))
        await self.ask(raw.SASL_HANDSHAKE)
        self._tuned = self.future()
        secret = b"\0guest\0guest"
        await self.ask(raw.SASL_AUTHENTICATE, raw.string("PLAIN") + struct.pack(">I", len(secret)) + secret)
        await self.within(self._tuned, "tune")
        heartbeat = self.random.choice([0, 10])
        self.side.peer.silence_limit = silence_limit(heartbeat)
        self.command(raw.TUNE | _RESPONSE, struct.pack(">II", 1_048_576, heartbeat))
        asyncio.get_running_loop().create_task(self._beat())
        await self.ask(raw.OPEN, raw.string("/"))

    async def _beat(self) -> None:
        while self.is_open:
            await asyncio.sleep(4)
            if self.is_open:
                self.command(raw.HEARTBEAT)

    def command(self, key: int, body: bytes = b"", version: int = 1) -> None:
        self.send(struct.pack(">IHH", len(body) + 4, key, version) + body)

    async def ask(self, key: int, body: bytes = b"") -> bytes:
        """Send a request. Return what follows the response code, which must be OK."""
        self._last += 1
        self._asked[self._last] = future = self.future()
        self.command(key, struct.pack(">I", self._last) + body)
        code, rest = await self.within(future, f"the response to command {key}")
        if code == _PRECONDITION_FAILED and key == raw.DECLARE_PUBLISHER:
            raise Gone  # the broker has an alarm
        if code == _NO_OFFSET and key == raw.QUERY_OFFSET:
            return b""
        if code != _OK:
            self.judge.fail("requests succeed", f"{self.name}: command {key} got code {code}")
        return bytes(rest)

    async def close(self) -> None:
        await self.ask(raw.CLOSE, struct.pack(">H", 1) + raw.string("bye"))
        self.side.close()

    def take(self, data: bytes) -> int:
        taken = 0
        while len(data) - taken >= 8:
            size, key, _ = struct.unpack_from(">IHH", data, taken)
            if len(data) - taken < size + 4:
                break
            self._command(key, data[taken + 8 : taken + size + 4])
            taken += size + 4
        return taken

    def _command(self, key: int, body: bytes) -> None:
        if key == raw.TUNE:
            assert self._tuned is not None
            self._tuned.set_result(body)
        elif key == raw.PUBLISH_CONFIRM:
            (count,) = struct.unpack_from(">I", body, 1)
            for number in struct.unpack_from(f">{count}Q", body, 5):
                self._confirm(number)
        elif key == raw.DELIVER:
            self._deliver(body)
        elif key in (raw.METADATA_UPDATE, raw.PUBLISH_ERROR):
            # The stream was deleted, and its publishers and subscriptions with it: start again with a new connection.
            self.judge.note(self.name, "the stream is gone")
            self.vanish(told=True)
        elif key & _RESPONSE:
            correlation, code = struct.unpack_from(">IH", body)
            future = self._asked.pop(correlation, None)
            if future is not None and not future.done():
                future.set_result((code, body[6:]))
        elif key == raw.CLOSE:
            self.judge.note(self.name, "closed by the broker")
            self.side.close()

    # -- publishing

    async def declare_publisher(self, stream: str, name: str) -> None:
        await self.ask(raw.DECLARE_PUBLISHER, bytes((1,)) + raw.string(name) + raw.string(stream))

    def publish(self, messages: dict[int, Sent]) -> None:
        """Publish messages, given by their publishing ids."""
        data = b""
        for number, sent in messages.items():
            body = Amqp10Message(body=data_section(body_of(sent.number))).encode()
            data += struct.pack(">QI", number, len(body)) + body
        self.waiting |= messages
        self.command(raw.PUBLISH, struct.pack(">BI", 1, len(messages)) + data)

    def _confirm(self, number: int) -> None:
        sent = self.waiting.pop(number, None)
        if sent is None:
            self.judge.fail("each message gets one outcome", f"{self.name}: confirm of publishing id {number}")
            return
        self.judge.note(self.name, f"confirmed {sent.number}")
        if sent.outcome is None:
            self.judge.outcome(sent, "confirmed")
        if not self.waiting:
            self.confirmed.set()

    async def all_confirmed(self) -> None:
        """Wait until all messages are confirmed."""
        while self.waiting:
            self.confirmed.clear()
            both = asyncio.create_task(self.confirmed.wait()), asyncio.create_task(self.lost.wait())
            try:
                await self.within(asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED), "stream confirms")
            finally:
                for each in both:
                    each.cancel()
            if not self.is_open:
                raise Gone

    # -- reading

    def store_offset(self, stream: str, reader: str, offset: int) -> None:
        self.judge.note(self.name, f"stores offset {offset} of {stream}")
        self.judge.offset_stored(stream, reader, offset, self.name)
        self.command(raw.STORE_OFFSET, raw.string(reader) + raw.string(stream) + struct.pack(">Q", offset))

    async def query_offset(self, stream: str, reader: str) -> int | None:
        """Return the stored offset of a reader; None if none is stored."""
        answer = await self.ask(raw.QUERY_OFFSET, raw.string(reader) + raw.string(stream))
        offset = int.from_bytes(answer[-8:]) if answer else None
        self.judge.note(self.name, f"stored offset of {stream}: {offset}")
        self.judge.offset_found(stream, reader, offset, self.name)
        return offset

    async def subscribe(self, stream: str, offset: bytes, credit: int) -> None:
        self._stream, self._credit, self._next = stream, credit, None
        self.found.clear()
        await self.ask(raw.SUBSCRIBE, bytes((1,)) + raw.string(stream) + offset + struct.pack(">H", credit))

    def _deliver(self, body: bytes) -> None:
        chunk = raw.chunk_of(body)
        self._credit -= 1
        if self._credit < 0:
            self.judge.fail("a subscription's credit is never exceeded", f"{self.name} on {self._stream}")
        # If a reader of a stream with retention is slow, its next messages may have been deleted.
        has_gap = self._next is not None and chunk.first_offset != self._next
        if has_gap and not self.judge.kinds[self._stream].retention:
            self.judge.fail("offsets have no gaps", f"stream {self._stream}: {chunk.first_offset}, not {self._next}")
        for index, entry in enumerate(chunk.entries):
            number = number_in(body_bytes(Amqp10Message.decode(entry).body) or b"", self)
            offset = chunk.first_offset + index
            self.judge.note(self.name, f"read {number} at {offset} of {self._stream}")
            sent = self.judge.sent.get(number)
            if sent is None or self._stream not in sent.queues:
                self.judge.fail("no message is invented", f"stream {self._stream}, offset {offset}: message {number}")
            self.judge.in_stream(self._stream, offset, number)
            self.found.append((offset, number))
        self._next = chunk.first_offset + len(chunk.entries)
        self.world.loop.call_later(self.random.random() * 0.3, self._grant)

    def _grant(self) -> None:
        if self.is_open:
            self._credit += 1
            self.command(raw.CREDIT, struct.pack(">BH", 1, 1))


async def read_whole(world: "World", stream: str) -> list[int]:
    """Read a stream from its first message to its last one."""
    client = StreamClient(world, "reader", world.random)
    await client.connect()
    for name, reader in list(world.judge.stored_offsets):
        if name == stream:
            await client.query_offset(stream, reader)
    await client.subscribe(stream, raw.FIRST, 3)
    before = -1
    while len(client.found) > before:
        before = len(client.found)
        await asyncio.sleep(3)
    await client.close()
    return [number for _, number in client.found]
