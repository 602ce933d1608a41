"""A client of AMQP 0-9-1 on pamqp."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Confirm, Connection, Queue, Tx
from pamqp.header import ContentHeader

from mqtool.codecs.field_tables import Table
from tests.simulation.client import Client, Gone
from tests.simulation.judge import Sent

_CAPABILITIES = {
    "authentication_failure_close": True,
    "connection.blocked": True,
    "consumer_cancel_notify": True,
    "basic.nack": True,
    "publisher_confirms": True,
}

#: Without a fault, data arrives within this many seconds.
_SURELY = 2.0


def silence_limit(heartbeat: int) -> float:
    """Return the seconds after which the broker closes a silent connection: it checks twice in each interval."""
    return heartbeat * 2.5 + 2 if heartbeat else 0


class Closed(Exception):
    """The broker closed the channel. The argument is the reply code."""


def body_of(number: int) -> bytes:
    """Return the body of a message: its number, and bytes that depend on it."""
    return b"%d " % number + bytes([number % 251]) * (number * 37 % 300)


def number_in(body: bytes, client: Client) -> int:
    """Return the number of a message; fail if its body is not what was published."""
    digits = body.partition(b" ")[0]
    number = int(digits) if digits.isdigit() else 0
    if body != body_of(number):
        client.judge.fail("messages arrive as they were sent", f"{client.name} got {body[:40]!r}…")
    return number


class Delivered:
    """A message that was delivered to a client."""

    def __init__(self, tag: int, number: int, queue: str, headers: Table, *, redelivered: bool) -> None:
        self.tag, self.number, self.queue, self.headers = tag, number, queue, headers
        self.redelivered = redelivered


class Client091(Client):
    """A connection with one channel, which is opened again if the broker closes it.

    Attributes:
        when_delivered: called with each message.
        unacked: the unsettled messages by delivery tag.
        waiting: the published messages that are not confirmed, by sequence number.
        count: how many messages it has received.
        priority: the priority of its consumer.
        idle_since: when its consumer became idle; None if it is busy or does not consume.
    """

    port = 5672

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._asked: deque[asyncio.Future[Any]] = deque()
        self._content: list[Any] = []
        self.consuming: dict[str, str] = {}
        self.when_delivered: Callable[[Delivered], None] = lambda _: None
        self.unacked: dict[int, Delivered] = {}
        self.waiting: dict[int, Sent] = {}
        self.confirmed = asyncio.Event()
        self._sequence = 0
        self.prefetch = self.priority = 0
        self.idle_since: float | None = None
        self.count = 0
        self.no_ack: set[str] = set()
        self.may_be_closed = False
        self.closed_with = 0
        self._get_from = ""

    async def log_in(self) -> None:
        self.start = self.future()
        self.send(b"AMQP\x00\x00\x09\x01")
        await self.within(self.start, "connection.start")
        properties: Any = {"capabilities": _CAPABILITIES}
        self._asked.append(tune := self.future())
        self.method(Connection.StartOk(mechanism="PLAIN", response="\0guest\0guest", client_properties=properties), 0)
        await self.within(tune, "connection.tune")
        heartbeat = self.random.choice([0, 10])
        self.side.peer.silence_limit = silence_limit(heartbeat)
        self.method(Connection.TuneOk(2047, 131_072, heartbeat), 0)
        asyncio.get_running_loop().create_task(self._beat())
        await self.call(Connection.Open(virtual_host="/"), 0)
        await self.call(Channel.Open())

    async def _beat(self) -> None:
        while self.is_open:
            await asyncio.sleep(4)
            if self.is_open:
                self.send(b"\x08\x00\x00\x00\x00\x00\x00\xce")

    def method(self, method: Frame, channel: int = 1) -> None:
        self.send(frame.marshal(method, channel))

    async def call(self, method: Frame, channel: int = 1) -> Any:
        """Send a method, and wait for its reply. Raises Gone, or Closed if the channel is closed instead."""
        self._asked.append(future := self.future())
        self.method(method, channel)
        return await self.within(future, method.name)

    async def close(self) -> None:
        """Close the connection, and wait for connection.close-ok."""
        self.leave()
        self.gives_back = True
        await self.call(Connection.Close(200, "bye", 0, 0), 0)
        self.judge.known(self.name)
        self.side.close()

    def take(self, data: bytes) -> int:
        taken = 0
        while len(data) - taken >= 7:
            end = taken + 8 + int.from_bytes(data[taken + 3 : taken + 7])
            if len(data) < end:
                break
            self._frame(frame.unmarshal(data[taken:end])[2])
            taken = end
        return taken

    def _frame(self, got: Any) -> None:  # noqa: C901 - one case per kind
        match got:
            case Connection.Start():
                self.start.set_result(got)
            case Basic.Ack() | Basic.Nack():
                self._settle(got)
            case Basic.Deliver() | Basic.GetOk() | Basic.Return():
                self._content = [got]
            case ContentHeader():
                self._content += [got, b"", got.body_size]
                self._content_part(b"")
            case ContentBody():
                self._content_part(got.value)
            case Basic.Cancel():
                self.leave()
                self.consuming.pop(got.consumer_tag, None)
                self.judge.note(self.name, "consumer cancelled by the broker")
            case Connection.Close():
                self._connection_closed(got)
            case Channel.Close():
                self._channel_closed(got)
            case Connection.Blocked() | Connection.Unblocked():
                self.judge.note(self.name, got.name)
            case Frame():
                if self._asked:
                    future = self._asked.popleft()
                    if not future.done():
                        future.set_result(got)

    def _content_part(self, data: bytes) -> None:
        method, header, body, size = self._content
        self._content[2] = body = body + data
        if len(body) < size:
            return
        if isinstance(method, Basic.Return):
            for sent in self.waiting.values():
                if sent.number == number_in(body, self):
                    self.judge.outcome(sent, "returned")
            return
        self.count += 1
        number = number_in(body, self)
        headers = header.properties.headers or {}
        queue = self._get_from if isinstance(method, Basic.GetOk) else self.consuming.get(method.consumer_tag, "")
        if not queue:  # the consumer was cancelled, and this was on its way
            queue = method.consumer_tag.partition("@")[2]
        got = Delivered(method.delivery_tag, number, queue, headers, redelivered=method.redelivered)
        who = self.name if isinstance(method, Basic.GetOk) else f"{self.name}/{method.consumer_tag}"
        self.judge.note(self.name, f"got {number} from {queue}{' again' if got.redelivered else ''}")
        self.judge.delivered(queue, number, who, redelivered=got.redelivered, is_given_back=self.gives_back)
        if queue in self.no_ack:
            self.judge.settled(queue, number, "acked", self.name, known=True)
        else:
            self.unacked[got.tag] = got
            if self.prefetch and not isinstance(method, Basic.GetOk) and len(self.unacked) > self.prefetch:
                self.judge.fail("the prefetch limit holds", f"{self.name} has {len(self.unacked)} of {self.prefetch}")
        if isinstance(method, Basic.GetOk):
            self._asked.popleft().set_result(got)
        else:
            self.idle_since = None if self.unacked else self.world.loop.time()
            self._suspect_idle_rivals(queue, number)
            self.when_delivered(got)

    def _suspect_idle_rivals(self, queue: str, number: int) -> None:
        """Check later whether an idle consumer of higher priority should have got a message instead."""
        if self.judge.kinds[queue].single_active:
            return
        started = self.world.loop.time() - _SURELY
        for rival in sorted(self.judge.consumers[queue], key=lambda each: str(each.name)):
            idle_since = rival.idle_since
            if rival.priority > self.priority and idle_since is not None and idle_since < started:
                what = (
                    f"{self.name} got message {number} from queue {queue}; {rival.name} was idle since {idle_since:.3f}"
                )
                self.world.loop.call_later(_SURELY, self._check_rival, rival, queue, idle_since, started, what)

    def _check_rival(self, rival: "Client091", queue: str, idle_since: float, started: float, what: str) -> None:
        is_still_idle = rival.idle_since == idle_since and rival in self.judge.consumers[queue]
        if is_still_idle and not self.world.was_faulty(started):
            self.judge.fail("consumers of higher priority come first", what)

    def _is_lost_commit(self, text: str) -> bool:
        """True for the errors with which RabbitMQ's versions answer a commit to a deleted or a full queue."""
        may_be_full = any(kind.refuses for kind in self.judge.kinds.values())
        if "partial tx completion" in text:
            return bool(self.judge.deleted) or may_be_full
        return bool(self.judge.deleted) and "failed to deliver message" in text

    def _connection_closed(self, got: Connection.Close) -> None:
        self.judge.note(self.name, f"connection closed: {got.reply_code} {got.reply_text}")
        self.closed_with = got.reply_code
        if not self.may_be_closed and got.reply_code != 320 and not self._is_lost_commit(got.reply_text):
            self.judge.fail("no connection is closed for another's fault", f"{self.name}: {got.reply_text}")
        self.method(Connection.CloseOk(), 0)
        self.side.close()

    def _channel_closed(self, got: Channel.Close) -> None:
        self.judge.note(self.name, f"channel closed: {got.reply_code} {got.reply_text}")
        self.closed_with = got.reply_code
        if not self.may_be_closed and got.reply_code != 404 and not self._is_lost_commit(got.reply_text):
            self.judge.fail("no channel is closed for another's fault", f"{self.name}: {got.reply_text}")
        self.method(Channel.CloseOk())
        self.leave()
        self.unacked.clear()
        self.consuming.clear()
        while self._asked:
            if not (future := self._asked.popleft()).done():
                future.set_exception(Closed(got.reply_code))

    # -- publishing

    async def confirm(self) -> None:
        await self.call(Confirm.Select())

    def publish(
        self,
        sent: Sent,
        exchange: str,
        key: str,
        *,
        mandatory: bool = False,
        headers: Table | None = None,
        expiration: str | None = None,
        counted: bool = True,
    ) -> None:
        """Publish a message. If it is `counted`, a confirm is expected for it."""
        if counted:
            self._sequence += 1
            self.waiting[self._sequence] = sent
        body = body_of(sent.number)
        properties = commands.Basic.Properties(
            delivery_mode=2 if sent.persistent else 1,
            priority=sent.priority or None,
            headers=headers or None,  # type: ignore[arg-type]
            expiration=expiration,
        )
        parts = [
            frame.marshal(Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory), 1),
            frame.marshal(ContentHeader(0, len(body), properties), 1),
            frame.marshal(ContentBody(body), 1),
        ]
        self.send(b"".join(parts))

    def _settle(self, got: Basic.Ack | Basic.Nack) -> None:
        if got.delivery_tag not in self.waiting:
            self.judge.fail("each message gets one outcome", f"{self.name}: {got.name} for tag {got.delivery_tag}")
        tags = [tag for tag in self.waiting if tag <= got.delivery_tag] if got.multiple else [got.delivery_tag]
        for tag in tags:
            sent = self.waiting.pop(tag)
            self.judge.note(self.name, f"{got.name} {sent.number}")
            self.judge.outcome(sent, "confirmed" if isinstance(got, Basic.Ack) else "refused")
        if not self.waiting:
            self.confirmed.set()

    async def all_confirmed(self) -> None:
        """Wait until all messages are confirmed, refused or returned."""
        while self.waiting:
            self.confirmed.clear()
            both = asyncio.create_task(self.confirmed.wait()), asyncio.create_task(self.lost.wait())
            try:
                await self.within(asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED), "confirms")
            finally:
                for each in both:
                    each.cancel()
            if not self.is_open:
                raise Gone

    async def transact(self, *, commit: bool, publish: Callable[[], list[Sent]]) -> None:
        """Publish in a transaction, and commit or roll it back."""
        sent = publish()
        await self.call(Tx.Commit() if commit else Tx.Rollback())
        for each in sent:
            # A full queue drops the messages of a transaction silently, as in RabbitMQ.
            if not commit:
                each.outcome = "refused"
            elif not any(self.judge.kinds[name].refuses for name in each.queues):
                each.outcome = "confirmed"
        self.judge.note(self.name, f"{'committed' if commit else 'rolled back'} {[each.number for each in sent]}")

    # -- consuming

    async def consume(self, queue: str, *, prefetch: int, no_ack: bool = False, priority: int = 0) -> None:
        self.prefetch, self.priority, self.idle_since = prefetch, priority, None
        await self.call(Basic.Qos(prefetch_count=prefetch))
        tag = f"{self.name}@{queue}"
        # One of lower priority may have to make way.
        others = self.judge.consumers[queue] - {self}
        earlier = {other for other in others if getattr(other, "priority", 0) >= priority}
        self.consuming[tag] = queue
        (self.no_ack.add if no_ack else self.no_ack.discard)(queue)
        arguments: Any = {"x-priority": priority} if priority else {}
        self.judge.earlier[queue, f"{self.name}/{tag}"] = earlier
        await self.call(Basic.Consume(queue=queue, consumer_tag=tag, no_ack=no_ack, arguments=arguments))
        self.judge.consumers[queue].add(self)
        if not self.unacked:
            self.idle_since = self.world.loop.time()

    def leave(self) -> None:
        """Note that this client may no longer be a consumer."""
        for consumers in (*self.judge.consumers.values(), *self.judge.earlier.values()):
            consumers.discard(self)

    def vanish(self, *, told: bool) -> None:
        self.leave()
        super().vanish(told=told)

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()
        super().connection_lost(exc)

    async def recover(self) -> None:
        """Have the broker requeue all unsettled messages."""
        self.gives_back = True
        await self.call(Basic.Recover(requeue=True))
        self.gives_back = False
        self.unacked.clear()
        self.judge.known(self.name)

    async def get(self, queue: str) -> Delivered | None:
        self._get_from = queue
        got = await self.call(Basic.Get(queue=queue))
        return got if isinstance(got, Delivered) else None

    def settle(self, delivered: Delivered, how: str, *, multiple: bool = False) -> None:
        """Acknowledge, reject or requeue a message; with `multiple`, all earlier ones too."""
        if delivered.tag not in self.unacked:
            return
        tags = [tag for tag in self.unacked if tag <= delivered.tag] if multiple else [delivered.tag]
        for tag in tags:
            each = self.unacked.pop(tag)
            self.judge.note(self.name, f"{how} {each.number}")
            self.judge.settled(each.queue, each.number, how, self.name, counts=not multiple)
        if not self.unacked:
            self.idle_since = self.world.loop.time()
        if how == "acked":
            self.method(Basic.Ack(delivered.tag, multiple))
        elif multiple:
            self.method(Basic.Nack(delivered.tag, multiple=True, requeue=how == "requeued"))
        else:
            self.method(Basic.Reject(delivered.tag, how == "requeued"))

    async def declare(self, queue: str, arguments: Table, *, passive: bool = False) -> int:
        """Declare a durable queue; return the number of ready messages."""
        ok = await self.call(Queue.Declare(queue=queue, durable=True, passive=passive, arguments=arguments))  # type: ignore[arg-type]
        return int(ok.message_count)
