"""A channel's incoming messages: `Content` assembles them from frames, and `Confirms` tracks publisher confirms."""

from collections import deque
from collections.abc import Callable, Sequence

from mqtool.broker.embedded.model.amqp_errors import (
    FRAME_ERROR,
    INTERNAL_ERROR,
    UNEXPECTED_FRAME,
    ConnectionException,
    precondition_failed,
)
from mqtool.broker.embedded.model.amqp_message import BASIC_CLASS, BrokerMessage, ContentHeader, HeaderReader
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.wire import amqp_frames as frames
from mqtool.broker.embedded.wire.amqp_frames import BETWEEN, BODY, HEADER, frame_error, malformed
from mqtool.codecs.field_tables import UnknownValue

_MANDATORY = 1
_IMMEDIATE = 2

_END = 0xCE
_BETWEEN_SIZE = BETWEEN.size


class Content:
    """Assembles a published message from its method, header and body frames.

    Args:
        profile: the RabbitMQ version to behave like.
        add_held_bytes: called with the number of bytes by which an incomplete body grows, and with a negative number
            when the body is complete or dropped.

    Attributes:
        mandatory, immediate: the flags of the latest complete publish.
    """

    def __init__(self, profile: Profile, add_held_bytes: Callable[[int], None]) -> None:
        self._profile = profile
        self._add_held_bytes = add_held_bytes
        self._headers = HeaderReader(sorts=profile.sorts_headers)
        self.mandatory = self.immediate = False
        self._method: bytes | None = None
        self._header: ContentHeader | None = None
        self._body = bytearray()
        self._missing = 0

    @property
    def due(self) -> bool:
        """True if a publish has begun but is not complete."""
        return self._method is not None

    def whole(self, data: bytes, start: int, end: int, number: int, longest: int) -> tuple[BrokerMessage, int] | None:
        """Decode a publish in one step if all of its frames have arrived and the body is a single frame.

        Args:
            data: bytes from the client; `data[start:end]` is the payload of the basic.publish.
            start, end: the bounds of the payload in `data`.
            number: the channel number.
            longest: the maximum payload size of a frame.

        Returns:
            The message and the offset after its last frame; None if the publish must be handled frame by frame.
        """
        size = len(data)
        if size < end + _BETWEEN_SIZE or self._method is not None:
            return None
        mark, kind, channel, length = BETWEEN.unpack_from(data, end)
        header_start = end + _BETWEEN_SIZE
        header_end = header_start + length
        if mark != _END or kind != HEADER or channel != number or length > longest or size < header_end + _BETWEEN_SIZE:
            return None
        mark, kind, channel, length = BETWEEN.unpack_from(data, header_end)
        body_start = header_end + _BETWEEN_SIZE
        body_end = body_start + length
        if mark != _END or kind != BODY or channel != number or not 0 < length <= longest or size <= body_end:
            return None
        try:
            header = self._headers.read(data[header_start:header_end])
            message = BrokerMessage(data[start + 6 : end - 1], header, data[body_start:body_end])
        except ValueError:
            return None
        if data[body_end] != _END or header.class_id != BASIC_CLASS or header.body_size != length:
            return None
        bits = data[end - 1]
        if bits or self.mandatory or self.immediate:
            self._set_bits(bits)
        return message, body_end + 1

    def begin(self, payload: bytes) -> None:
        """Begin a message with a basic.publish method frame; raise 505 if the previous message is incomplete."""
        self.check_complete()
        self._method = payload

    def check_complete(self) -> None:
        """Raise 505 if a publish is incomplete."""
        if self._method is not None:
            raise self._unexpected()

    def drop(self) -> None:
        """Drop an incomplete publish, if any."""
        self._method = self._header = None
        self._take_body()

    def _take_body(self) -> bytes:
        """Return the body received so far, and start an empty one."""
        self._add_held_bytes(-len(self._body))
        body, self._body = bytes(self._body), bytearray()
        return body

    def _unexpected(self) -> ConnectionException:
        if self._header is None:
            what = "expected content header for class 60, got non content header frame instead"
        else:
            what = "expected content body, got non content body frame instead"
        return ConnectionException(UNEXPECTED_FRAME, what)

    def header(self, payload: bytes) -> BrokerMessage | None:
        """Add the content header frame; return the message if it has no body."""
        if self._method is None:
            raise ConnectionException(UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        if self._header is not None:
            raise self._unexpected()
        if len(payload) < 14:
            raise malformed(FRAME_ERROR, 2, payload, "unknown_frame")
        try:
            header = self._headers.read(payload)
        except UnknownValue as error:
            raise ConnectionException(INTERNAL_ERROR) from error
        except ValueError as error:
            raise frame_error(f"cannot decode content header: {error}") from error
        if header.class_id != BASIC_CLASS:
            what = f"expected content header for class 60, got one for class {header.class_id} instead"
            raise ConnectionException(UNEXPECTED_FRAME, what)
        if header.body_size > self._profile.largest_message:
            self._method = None
            raise precondition_failed(
                f"message size {header.body_size} is larger than configured max size {self._profile.largest_message}"
            )
        self._header = header
        self._missing = header.body_size
        return None if self._missing else self._complete(b"")

    def body(self, payload: bytes) -> BrokerMessage | None:
        """Add a body frame; return the message if it is complete."""
        if self._header is None:
            self.check_complete()
            raise ConnectionException(UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        self._missing -= len(payload)
        if self._missing < 0 and self._profile.exact_body:
            raise frame_error("content body frame exceeds remaining content size")
        if self._missing < 0:
            raise self._unexpected()
        if self._body or self._missing:
            self._body += payload
            self._add_held_bytes(len(payload))
            if self._missing:
                return None
            payload = self._take_body()
        return self._complete(payload)

    def _complete(self, body: bytes) -> BrokerMessage:
        method, header = self._method, self._header
        assert method is not None
        assert header is not None
        self._method = self._header = None
        try:
            message = BrokerMessage(method[6:-1], header, body)
        except ValueError as error:
            raise frame_error("cannot decode basic.publish") from error
        self._set_bits(method[-1])
        return message

    def _set_bits(self, bits: int) -> None:
        """Set `mandatory` and `immediate` from the flags of a complete publish."""
        self.mandatory, self.immediate = bool(bits & _MANDATORY), bool(bits & _IMMEDIATE)


class Confirms:
    """The publisher confirms of one channel. Publishes are numbered from 1.

    A confirm waits until all earlier publishes are settled, so that one frame can confirm many. The ledger writes
    messages to disk in order and in groups, so no confirm has to wait long.

    Attributes:
        settled: the number of publishes that have been confirmed or nacked.
        refused: the number of those that have been nacked.
    """

    def __init__(self) -> None:
        self._published = 0
        self.settled = self.refused = 0
        # For each commit group that is not on disk yet, the number of its first publish.
        self._unstored: deque[int] = deque()
        self._group = 0
        self._refused: list[int] = []

    def __len__(self) -> int:
        """Return the number of publishes that are not settled."""
        return self._published - self.settled

    def published_one(self, *, accepted: bool, group: int = 0) -> bool:
        """Count a publish.

        Args:
            accepted: False if a queue rejected the message.
            group: the number of the commit group that the message is in, from 1; 0 if the message is not stored.

        Returns:
            True if it is the first in its group: the caller must then call committed_group() once the group is on disk.
        """
        self._published += 1
        if not accepted:
            self._refused.append(self._published)
        if not group or group == self._group:
            return False
        self._group = group
        self._unstored.append(self._published)
        return True

    def committed_group(self) -> None:
        """Mark the publishes of the oldest group as being on disk."""
        self._unstored.popleft()

    def take(self, channel: int) -> tuple[bytes, range, Sequence[int]]:
        """Settle the publishes that can be settled now.

        Returns:
            The encoded basic.ack and basic.nack frames, the numbers of the publishes, and of those that are nacked.
        """
        last = self._unstored[0] - 1 if self._unstored else self._published
        settled = range(self.settled + 1, last + 1)
        if not settled:
            return b"", settled, ()
        refused = [number for number in self._refused if number <= last]
        self._refused = self._refused[len(refused) :]
        nacked = tuple(refused)
        parts = [frames.nack(channel, number) for number in refused]
        accepted = last - self.settled - len(refused)
        self.settled = last
        self.refused += len(refused)
        if accepted:
            while refused and refused[-1] == last:
                refused.pop()
                last -= 1
            parts.append(frames.ack(channel, last, multiple=accepted > 1))
        return b"".join(parts), settled, nacked
