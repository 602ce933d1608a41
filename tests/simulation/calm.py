"""The end of a simulation: the faults are over, and the messages in the queues are counted and checked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pamqp.commands import Basic, Queue

from mqtool.broker.embedded.store.storage import Storage
from mqtool.codecs.field_tables import Table
from tests.simulation.client091 import Client091, Delivered

if TYPE_CHECKING:
    from tests.simulation.world import World

#: Messages expire, delays end and retries come due within this many seconds.
_CALM_SECONDS = 30.0

#: Half-open connections of all protocols are noticed within this many seconds.
_SILENCE_SECONDS = 110.0

Left = dict[str, list[tuple[int, Table, bool]]]


class Drain(Client091):
    """A client that takes all messages out of a queue. The judge does not count them as deliveries."""

    def _content_part(self, data: bytes) -> None:
        self._content[2] += data
        method, header, body, size = self._content
        if len(body) == size:
            number = int(body.partition(b" ")[0])
            headers: Any = header.properties.headers or {}
            got = Delivered(method.delivery_tag, number, "", headers, redelivered=method.redelivered)
            took = got, header.properties.priority or 0
            if isinstance(method, Basic.Deliver):
                self._delivered.put_nowait(took)
            else:
                self._asked.popleft().set_result(took)

    async def messages_of(self, name: str, count: int) -> AsyncIterator[tuple[Delivered, int]]:
        """Yield all messages of a queue, which should be `count`, with their priorities."""
        if not self.judge.kinds[name].refuses_get:
            while isinstance(got := await self.call(Basic.Get(queue=name)), tuple):
                yield got
            return
        self._delivered = asyncio.Queue[tuple[Delivered, int]]()
        await self.call(Basic.Consume(queue=name, consumer_tag=name))
        with suppress(TimeoutError):
            for _ in range(count + 1):
                yield await asyncio.wait_for(self._delivered.get(), 1)
        await self.call(Basic.Cancel(name))


async def settle_down(world: "World") -> None:
    """End all faults, wait, empty all queues, and let the judge check what was in them."""
    world.judge.note("WORLD", "calm")
    if world.server is None:
        await world.start_broker()
    world.disk.is_failing = world.disk.is_full = False
    for client in list(world.clients):
        client.vanish(told=True)
    is_anyone_silent = any(side.is_half_open and side.silence_limit for side in world.network.sides)
    await asyncio.sleep(_SILENCE_SECONDS if is_anyone_silent else _CALM_SECONDS)
    for side in [side for side in world.network.sides if side.is_half_open]:
        if side.silence_limit:
            world.judge.fail("a silent client is noticed", str(side.get_extra_info("peername")))
        world.loop.call_soon(side.lose, ConnectionResetError(104, "reset"), context=side.context)
    await asyncio.sleep(_CALM_SECONDS)
    drain = Drain(world, "drain", world.random)
    await drain.connect()
    left: Left = {}
    for name in sorted(world.judge.emptied):
        await drain.declare(name, world.kinds[name].arguments)  # it may have been deleted last
    for name, kind in world.kinds.items():
        if kind.stream:
            left[name] = await _read_stream(world, name)
        else:
            left[name] = await _drain(drain, name)
    for name, kind in world.kinds.items():
        if kind.stream:
            await drain.call(Queue.Delete(queue=name))
    await drain.close()
    world.judge.note("WORLD", f"left: { {name: len(found) for name, found in left.items()} }")
    world.judge.check(left)
    await asyncio.sleep(1)
    await _check_base(world)


async def _drain(client: Drain, name: str) -> list[tuple[int, Table, bool]]:
    try:
        announced = await client.declare(name, {}, passive=True)
    except Exception as error:
        client.judge.fail("a queue is kept", f"queue {name}: {error!r}")
        raise
    found: list[tuple[int, Table, bool]] = []
    judge, kind = client.judge, client.judge.kinds[name]
    last: dict[str, int] = {}
    lowest = 255
    tag = 0
    async for delivered, priority in client.messages_of(name, announced):
        number, tag = delivered.number, delivered.tag
        found.append((number, delivered.headers, delivered.redelivered))
        if name != "dead" and number in judge.sent:
            judge.left_over(name, number, redelivered=delivered.redelivered)
            sent = judge.sent[number]
            # A classic queue puts a requeued message back where it was.
            has_place = kind.arguments.get("x-queue-type", "classic") == "classic" or not delivered.redelivered
            if kind.is_ordered and not sent.delay and has_place:
                if last.get(sent.publisher, 0) > number:
                    judge.fail("a queue is delivered in order", f"queue {name}: {number} after {last[sent.publisher]}")
                last[sent.publisher] = number
            if kind.priorities is not None:
                if priority > lowest:
                    judge.fail("higher priorities come first", f"queue {name}: {priority} after {lowest}")
                lowest = priority
    if len(found) != announced:
        judge.fail("counts are true", f"queue {name} announced {announced} messages, and had {len(found)}")
    if tag:
        client.method(Basic.Ack(tag, multiple=True))
    return found


async def _read_stream(world: "World", name: str) -> list[tuple[int, Table, bool]]:
    from tests.simulation.stream_client import read_whole

    return [(number, {}, False) for number in await read_whole(world, name)]


async def _check_base(world: "World") -> None:
    """Check that memory and disk use are back where they were before the first message."""
    assert world.server is not None
    broker = world.server.broker
    rests: dict[str, object] = {
        "held for clients": broker.held_for_clients,
        "reply consumers": len(broker.reply_consumers),
        "alarms": dict(broker.alarms),
        "bytes held": broker.ledger.held_bytes - broker.ledger.definition_bytes,
        "unacknowledged": sum(queue.unacked for vhost in broker.vhosts.values() for queue in vhost.queues.values()),
    }
    if isinstance(broker.ledger, Storage):
        await asyncio.sleep(1)
        rests["rows"] = broker.ledger.database.db.execute("SELECT COUNT(*) FROM entry").fetchone()[0]
    if rests := {name: value for name, value in rests.items() if value}:
        world.judge.fail("memory and disk use return to their initial values", str(rests))
