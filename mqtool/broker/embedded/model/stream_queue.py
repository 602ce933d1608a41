"""Queues of type stream, and the reading of their logs. Reading deletes nothing: each consumer has its own offset."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TypeAlias

from mqtool.broker.embedded.model import sectioned
from mqtool.broker.embedded.model.amqp_errors import NOT_IMPLEMENTED, ConnectionException
from mqtool.broker.embedded.model.amqp_message import (
    BrokerMessage,
    ContentHeader,
    MessageProperties,
    by_name,
    encode_address,
)
from mqtool.broker.embedded.model.applied_policies import Applied
from mqtool.broker.embedded.model.backlog import BacklogEntry
from mqtool.broker.embedded.model.clock import TURN_SECONDS
from mqtool.broker.embedded.model.consumers import QueueConsumer
from mqtool.broker.embedded.model.queue import BrokerQueue, Why, cancel_links
from mqtool.broker.embedded.model.queue_arguments import INITIAL_OFFSET, OFFSET, Options
from mqtool.broker.embedded.model.sectioned import Sectioned, Sections
from mqtool.broker.embedded.model.stream_conversion import Decoded, decode, encode
from mqtool.broker.embedded.model.stream_log import SEGMENT_BYTES, Retention, StreamLog
from mqtool.broker.embedded.model.stream_segment import (
    HEADER_SIZE,
    INDEX_AT_ONCE,
    UNFILTERED,
    USER,
    ChunkFilters,
    ChunkHeader,
    Segment,
    StoredChunk,
    bits_of,
    is_sound,
    parse_header,
    read_block,
    simple_entry,
    tracking_in,
)
from mqtool.codecs.field_tables import ByteArray, Int64, Table, Timestamp, encode_table
from mqtool.duration import parse_interval
from mqtool.spelling import counted

log = logging.getLogger("mqtool.broker.embedded")


#: Returns True for the messages that an AMQP 1.0 consumer is to get.
Selector: TypeAlias = Callable[[Sections], bool]

#: The header or annotation with the filter value of a message.
_FILTER_VALUE = "x-stream-filter-value"

#: After passing over chunks of this cost in succession, a reader gives others a turn. A block costs 1, and 1 more for
#: each 4 KiB.
_COST_AT_ONCE = 64
_COST_UNIT = 4096

#: In one turn, a reader that searches for a timestamp looks at this many segments.
_SEGMENTS_AT_ONCE = 256


class StreamQueueReader:
    """Reads the log of a stream, chunk by chunk.

    Args:
        offset: the offset to start at. The whole chunk that contains this offset is read.
        filters: the wanted filter values: chunks that match none of them are skipped. None for all chunks.
        since: start at the first chunk at or after this timestamp (ms since 1970) instead. If the clock was ahead for a
            while, the chunks are out of order. As in RabbitMQ, the reader then starts at the end if the last chunk is
            older; otherwise the search begins in the last segment whose first chunk is not younger.

    Attributes:
        is_tired: True if read() has returned no chunk because it skipped or indexed many, not because it reached the
            end.
    """

    def __init__(
        self, stream: StreamLog, offset: int, filters: ChunkFilters | None = None, since: int | None = None
    ) -> None:
        self._stream = stream
        self._filters = filters
        self.is_tired = False
        if since is not None:
            last = next(stream.newest_first(), None)
            offset = stream.end if last is None or last.last_timestamp < since else stream.first_offset
        offset = max(min(offset, stream.end), stream.first_offset)
        self._segment = stream.segment_of(offset)
        self._position = 0
        self._seeking = self._seek(offset, since if offset < stream.end else None)
        self._is_placed = next(self._seeking, True)

    def read(self) -> list[StoredChunk]:
        """Read the next chunk of messages, or several small ones.

        Returns an empty list at the end of the log, or if `is_tired` becomes true.
        """
        cost, self.is_tired = 0, False
        if not self._is_placed:
            self._is_placed = next(self._seeking, True)
            if not self._is_placed:
                self.is_tired = True
                return []
        while not self._stream.deleted:
            segment, start = self._segment, self._position
            if start < segment.size and self._is_kept(segment):
                if chunks := self._read_block():
                    return chunks
            else:
                following = self._stream.segment_after(segment)
                if following is None:
                    return []
                self._segment, self._position = following, 0
            cost += 1 + max(self._position - start, 0) // _COST_UNIT
            if cost >= _COST_AT_ONCE:
                self.is_tired = True
                return []
        return []

    def _seek(self, offset: int, since: int | None) -> Iterator[bool]:
        """Find the position to start at. Yields False before each turn that takes long."""
        if since is not None:
            for number, segment in enumerate(self._stream.newest_first()):
                if number % _SEGMENTS_AT_ONCE == _SEGMENTS_AT_ONCE - 1:
                    yield False
                if not self._is_kept(segment):
                    break
                self._segment, begun = segment, segment.first_timestamp
                if begun is not None and begun <= since:
                    break
        elif offset <= self._segment.base:
            return
        segment = self._segment
        if not segment.is_indexed:
            yield False
        while not segment.is_indexed and self._is_kept(segment):
            segment.index_some(INDEX_AT_ONCE)
            yield False
        if self._is_kept(segment):
            self._position = segment.position_of(offset) if since is None else segment.position_at(since)

    def _is_kept(self, segment: Segment) -> bool:
        return not self._stream.deleted and segment is self._stream.segment_of(segment.base)

    def _read_block(self) -> list[StoredChunk]:
        segment = self._segment
        chunks: list[StoredChunk] = []
        start, block = self._position, read_block(segment.data, self._position, segment.size)
        while (header := parse_header(block, self._position - start)) is not None:
            at = self._position - start
            if at + header.length > len(block):
                break
            self._position += header.length
            if not is_sound(header, block, at):
                log.error("a damaged chunk with %s is skipped", counted(header.records))
            elif header.kind == USER and self._is_wanted(header, block, at):
                raw = block[at : at + HEADER_SIZE + header.size]
                end = header.offset + header.records
                chunks.append(StoredChunk(raw, header.offset, end, header.entries, header.timestamp))
        if self._position == start:
            log.error("the rest of a damaged segment is skipped: %s", counted(segment.size - start, "byte"))
            self._position = segment.size
        return chunks

    def _is_wanted(self, header: ChunkHeader, block: bytes, at: int) -> bool:
        return self._filters is None or self._filters.match(tracking_in(header, block, at).filter)


# The bytes before the length of a body published with AMQP 0-9-1: for bodies of up to 255 bytes, and for longer ones.
_SHORT_BODY, _LONG_BODY = b"\x00Su\xa0", b"\x00Su\xb0"

# The bytes at the start of the properties section, and before the message id, which is the first property.
_PROPERTIES, _MESSAGE_ID = b"\x00Ss\xc0", b"\xa1"


class StreamQueue(BrokerQueue):
    """A queue of type stream. Delivered messages stay in the stream and never count as unacknowledged.

    Attributes:
        log: the log with the messages.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._cursors: dict[QueueConsumer, Cursor] = {}
        # The consumers that have read everything, and those that are to be fed, in order. All others are not ready.
        self._at_end: dict[QueueConsumer, None] = {}
        self.due: OrderedDict[QueueConsumer, None] = OrderedDict()
        self._has_turn = False

    @cached_property
    def log(self) -> StreamLog:
        """The log. It is opened on first use, because a stream gets its key only after it has been created."""
        segments = self.ledger.segments(self.key)
        log = StreamLog(segments, self.clock, self.ledger, self._retention(), self.initial_offset)
        log.watch(self._pump_news)
        return log

    @property
    def initial_offset(self) -> int:
        """The offset of the first message that was published: 0, or `x-stream-initial-offset`."""
        offset = self.arguments.get(INITIAL_OFFSET)
        return offset if self.profile.initial_offsets and isinstance(offset, int) else 0

    def _retention(self) -> Retention:
        options = self.options
        return Retention(options.max_length_bytes, options.max_age, options.segment_bytes or SEGMENT_BYTES)

    def apply(self, policy: Applied) -> None:
        """Apply these policies in place of the previous ones. New limits take effect with the next segment."""
        self.policy = policy
        self.options = Options.of(self.arguments, policy.definition)
        if "log" in self.__dict__:  # the log has been opened
            self.log.retention = self._retention()

    def __len__(self) -> int:
        # A batch can claim more messages than it contains, and AMQP's counts of messages have 32 bits.
        return min(self.log.end - self.log.first_offset, (1 << 32) - 1)

    def publish(
        self,
        message: BrokerMessage,
        publisher: object = None,  # noqa: ARG002
        deliveries: int = 0,  # noqa: ARG002
    ) -> tuple[bool, bool]:
        """Append a message. Returns True (a stream accepts every message), and True if it is being written to disk."""
        self.traffic.published += 1
        if self.watcher is not None and id(message) in self.watcher.publishing:
            self.watcher.entered(self, message, self.log.next_offset)
        if self.profile.speaks_amqp10:
            data = sectioned.encode(message, self.profile)
        else:
            data = encode(message.header.properties, message.body, message.exchange, message.routing_key)
        value = message.headers.get(_FILTER_VALUE)
        bits = bits_of(value.encode(errors="surrogateescape")) if isinstance(value, str) else UNFILTERED
        self.log.append(simple_entry(data), filter_bits=bits)
        return True, self.ledger.on_disk

    def add_consumer(self, consumer: QueueConsumer) -> None:
        """Add a consumer, starting at its `x-stream-offset`."""
        super().add_consumer(consumer)
        offset, since = self._start(consumer.arguments.get(OFFSET))
        filters = wanted_filters(consumer.arguments) if self.profile.speaks_amqp10 else None
        reader = StreamQueueReader(self.log, offset, filters, since)
        self._cursors[consumer] = Cursor(self, offset, reader, consumer.selector)

    def _start(self, offset: object) -> tuple[int, int | None]:
        """Return the first offset to deliver, or a timestamp to start at, as an `x-stream-offset` says."""
        log = self.log
        if isinstance(offset, ByteArray):
            offset = offset.decode()
        match offset:
            case "first":
                return log.first_offset, None
            case "last":
                return log.last_chunk, None
            case Timestamp():
                return 0, offset * 1000
            case str() if (age := parse_interval(offset)) is not None:
                return 0, self.clock.now() - age
            case int():
                return offset, None
        return log.end, None

    def remove_consumer(self, consumer: QueueConsumer) -> None:
        self._cursors.pop(consumer, None)
        self._at_end.pop(consumer, None)
        self.due.pop(consumer, None)
        super().remove_consumer(consumer)

    def pump(self) -> None:
        """Deliver messages to the consumers that can take them: at once while that is quick, to the others in turns."""
        while (consumer := self.consumers.pop_awake()) is not None:
            self.due[consumer] = None
        if not self._has_turn:
            self._feed_some()

    def _pump_news(self) -> None:
        self.due.update(self._at_end)
        self._at_end.clear()
        self.pump()

    def _feed_some(self) -> None:
        self._has_turn = False
        elapsed = self.clock.elapsed
        until = elapsed() + TURN_SECONDS
        while self.due and elapsed() <= until:
            consumer, _ = self.due.popitem(last=False)
            self._feed(consumer)
        if self.due and not self._has_turn:
            # One turn for all: the turns of other clients must not wait behind those of thousands of consumers.
            self._has_turn = True
            self.clock.take_turn(self._feed_some)

    def _feed(self, consumer: QueueConsumer) -> None:
        cursor = self._cursors.get(consumer)
        while cursor is not None and consumer.ready():
            entry = cursor.next_entry()
            if entry is None:
                (self.due if cursor.is_tired else self._at_end)[consumer] = None
                return
            self.traffic.delivered += 1
            consumer.take(entry)

    def acknowledge(self, entry: BacklogEntry) -> None:  # noqa: ARG002
        """Count an acknowledgement. The message stays in the stream."""
        self.traffic.acknowledged += 1

    def requeue(self, entries: Iterable[BacklogEntry], why: Why = Why.RETURNED, not_before: int | None = None) -> None:  # noqa: ARG002
        """Raise ConnectionException 540: a stream does not support requeueing. Do nothing if a channel has ended."""
        if not why.is_end:
            for entry in entries:
                self.reject(entry)

    def reject(self, entry: BacklogEntry, *, failed: bool = False) -> None:  # noqa: ARG002
        """Raise ConnectionException 540: a stream does not support basic.nack and basic.reject."""
        raise self._not_supported("basic.nack and basic.reject")

    def get(self, *, no_ack: bool) -> BacklogEntry | None:  # noqa: ARG002
        """Raise ConnectionException 540: a stream does not support basic.get."""
        raise self._not_supported("basic.get")

    def purge(self) -> int:
        """Raise ConnectionException 540: a stream does not support queue.purge."""
        raise self._not_supported("queue.purge")

    def clear(self) -> None:
        """Delete all messages, for tests only. Consumers stay, and get the messages published from now on."""
        self.log.clear()
        self._cursors = {consumer: Cursor(self, self.log.next_offset) for consumer in self._cursors}
        self._pump_news()

    def _not_supported(self, what: str) -> ConnectionException:
        return ConnectionException(
            NOT_IMPLEMENTED, f"{what} not supported by stream queues queue '{self.name}' in vhost '{self.vhost}'"
        )

    def delete(self) -> int:
        """Delete the stream and cancel its consumers. As in RabbitMQ, returns 0 rather than the number of messages."""
        self.deleted = True
        for consumers in (self._cursors, self._at_end, self.due):
            consumers.clear()
        self.log.delete()
        cancel_links(self)
        return 0


class Cursor:
    """Reads a stream for one consumer.

    Args:
        offset: the offset of the first message to return; it may be beyond the end of the stream.
        reader: the reader of the chunks; by default, one that reads all chunks from `offset` on.
        selector: for an AMQP 1.0 consumer, returns True for the messages it is to get. They are returned as Sectioned,
            without the header x-stream-offset. None for an AMQP 0-9-1 consumer, which gets all messages.

    Attributes:
        is_tired: True if next_entry() has returned None because it skipped many messages in succession.
    """

    def __init__(
        self,
        stream: StreamQueue,
        offset: int,
        reader: StreamQueueReader | None = None,
        selector: Selector | None = None,
    ) -> None:
        self._stream = stream
        self._wanted = offset
        self._reader = reader or StreamQueueReader(stream.log, offset)
        self._selector = selector
        self._messages: Iterator[tuple[int, bytes]] = iter(())
        self._shape: _Shape | None = None
        self.is_tired = False

    def next_entry(self) -> BacklogEntry | None:
        """Read the next message. Returns None at the end of the stream, or if `is_tired` becomes true."""
        until, self.is_tired, elapsed = 0.0, False, self._stream.clock.elapsed
        while True:
            for offset, data in self._messages:
                if offset >= self._wanted:
                    if self._selector is None:
                        return BacklogEntry(self._message(offset, data), offset)
                    if (chosen := self._chosen(data, self._selector)) is not None:
                        return BacklogEntry(chosen, offset)
                until = until or elapsed() + TURN_SECONDS
                if elapsed() > until:
                    self.is_tired = True
                    return None
            chunks = self._reader.read()
            if not chunks:
                self.is_tired = self._reader.is_tired
                return None
            self._messages = _messages(chunks, self._wanted)

    def rest(self) -> Iterator[BacklogEntry]:
        """Yield the messages up to the end of the stream."""
        while (entry := self.next_entry()) is not None or self.is_tired:
            if entry is not None:
                yield entry

    def _chosen(self, data: bytes, selector: Selector) -> Sectioned | None:
        message = sectioned.parse_stored(data, self._stream.name, self._stream.profile)
        return message if selector(message.sections) else None

    def _message(self, offset: int, data: bytes) -> BrokerMessage:
        """Decode the message to deliver, and put its offset in the header `x-stream-offset`."""
        shape = self._shape
        if shape is not None and (message := shape.message(offset, data)) is not None:
            return message
        stream = self._stream
        decoded: Decoded | Sectioned
        if stream.profile.speaks_amqp10:
            decoded = sectioned.parse_stored(data, stream.name, stream.profile)
            if not decoded.fits:
                return decoded
        else:
            decoded = decode(data)
        key = stream.name if decoded.routing_key is None else decoded.routing_key
        shape = _Shape(decoded.properties, encode_address(decoded.exchange, key))
        if shape.add_head(data, decoded.body):
            self._shape = shape
        return shape.delivered(offset, shape.message_id, decoded.body)


def wanted_filters(arguments: Table) -> ChunkFilters | None:
    """Return the filter values that a consumer's arguments ask for; None if they do not ask for any."""
    wanted = arguments.get("x-stream-filter")
    values = [each for each in (wanted if isinstance(wanted, list) else [wanted]) if isinstance(each, str)]
    bits = [bits_of(each.encode(errors="surrogateescape")) for each in values]
    if bits and arguments.get("x-stream-match-unfiltered") is True:
        bits.append(UNFILTERED)
    return ChunkFilters(bits) if bits else None


def _messages(chunks: list[StoredChunk], wanted: int) -> Iterator[tuple[int, bytes]]:
    for chunk in chunks:
        yield from chunk.messages(wanted)


def _mark(size: int) -> bytes:
    """Return the bytes that precede a body of this size in an entry."""
    return _SHORT_BODY + bytes([size]) if size < 256 else _LONG_BODY + size.to_bytes(4)


class _Shape:
    """A template for messages that differ only in offset, message id and body: they are delivered without decoding.

    Attributes:
        message_id: the id of the message that the template was made from.
    """

    def __init__(self, properties: MessageProperties, address: bytes) -> None:
        self._address = address
        headers = by_name({**properties.headers, OFFSET: Int64(0)})
        table = encode_table(headers)
        fields = properties.fields() | {"headers": table}
        whole = MessageProperties.of(fields).encode()
        # The headers are the third property.
        end = 2 + sum(len(fields.get(name, b"")) for name in ("content_type", "content_encoding"))
        end += len(encode_table({name: value for name, value in headers.items() if name <= OFFSET}))
        self._before, self._between, self._after = whole[: end - 8], whole[end:], b""
        self.message_id = b""
        # In an entry: the bytes before the message id, and those between it and the body.
        self._first = self._second = b""
        name = fields.get("message_id", b"")
        parts = self._between.split(name) if name else []
        if len(parts) == 2:
            self.message_id = name[1:]
            self._between, self._after = parts[0] + name[:1], parts[1]

    def add_head(self, data: bytes, body: bytes) -> bool:
        """Add the start of an entry to the template. Returns False if the entry was not written over AMQP 0-9-1."""
        mark = _mark(len(body))
        start = len(data) - len(body) - len(mark)
        if start < 0 or not data.startswith(mark, start) or not data.endswith(body):
            return False
        head, name = data[:start], self.message_id
        if not name:
            self._first = head
            return True
        first, found, self._second = head.partition(_MESSAGE_ID + bytes([len(name)]) + name)
        self._first = first + found[: -len(name)]
        # The two bytes before the message id are the size of the list of properties and its number of items.
        return first[:-2].endswith(_PROPERTIES)

    def message(self, offset: int, data: bytes) -> BrokerMessage | None:
        """Build the message in an entry from this template; return None if the entry does not match."""
        start = len(self._first)
        end = start + len(self.message_id)
        if not data.startswith(self._first) or not data.startswith(self._second, end):
            return None
        before = end + len(self._second)
        for mark in (len(_SHORT_BODY) + 1, len(_LONG_BODY) + 4):
            size = len(data) - before - mark
            if size >= 0 and data.startswith(_mark(size), before) and len(_mark(size)) == mark:
                return self.delivered(offset, data[start:end], data[before + mark :])
        return None

    def delivered(self, offset: int, message_id: bytes, body: bytes) -> BrokerMessage:
        """Build a message from this template."""
        properties = b"".join((self._before, offset.to_bytes(8), self._between, message_id, self._after))
        return BrokerMessage(self._address, ContentHeader.unread(properties, len(body)), body)
