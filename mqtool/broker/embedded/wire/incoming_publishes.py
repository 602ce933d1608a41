"""Putting a published message together: the method, the header, and the frames of the body."""

from collections import deque

from mqtool.broker.embedded.model.amqp_errors import (
    FRAME_ERROR,
    UNEXPECTED_FRAME,
    ConnectionException,
    precondition_failed,
)
from mqtool.broker.embedded.model.amqp_message import BASIC_CLASS, ContentHeader, HeaderReader, Message
from mqtool.broker.embedded.model.profile import Profile
from mqtool.broker.embedded.wire import amqp_frames as frames
from mqtool.broker.embedded.wire.amqp_frames import BETWEEN, BODY, HEADER, frame_error, malformed

_MANDATORY = 1
_IMMEDIATE = 2

_END = 0xCE


class Content:
    """The publish whose frames are coming in on a channel, if there is one.

    Attributes:
        mandatory, immediate: what the last complete publish asked for.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._headers = HeaderReader()
        self.mandatory = self.immediate = False
        self._method: bytes | None = None
        self._header: ContentHeader | None = None
        self._body: list[bytes] = []
        self._missing = 0

    @property
    def due(self) -> bool:
        """Whether more frames of a publish are due."""
        return self._method is not None

    def whole(self, data: bytes, start: int, end: int, number: int, longest: int) -> tuple[Message, int] | None:
        """Cut a publish whose header and whole body follow, as nearly all do; None if anything is unusual or wrong.

        Args:
            start, end: where the payload of the basic.publish is.
            number: its channel.
            longest: the most octets that a frame may carry.

        Returns:
            The message, and where its last frame ends.
        """
        size = len(data)
        if size < end + BETWEEN.size:
            return None
        mark, kind, channel, length = BETWEEN.unpack_from(data, end)
        header_start = end + BETWEEN.size
        header_end = header_start + length
        if mark != _END or kind != HEADER or channel != number or length > longest or size < header_end + BETWEEN.size:
            return None
        mark, kind, channel, length = BETWEEN.unpack_from(data, header_end)
        body_start = header_end + BETWEEN.size
        body_end = body_start + length
        if mark != _END or kind != BODY or channel != number or not 0 < length <= longest or size <= body_end:
            return None
        try:
            header = self._headers.read(data[header_start:header_end])
            message = Message(data[start + 6 : end - 1], header, data[body_start:body_end])
        except ValueError:
            return None
        if data[body_end] != _END or header.class_id != BASIC_CLASS or header.body_size != length:
            return None
        self._set_bits(data[end - 1])
        return message, body_end + 1

    def begin(self, payload: bytes) -> None:
        """Take the method frame of a basic.publish.

        Raises:
            ConnectionException: 505, other content is due.
        """
        self.check_complete()
        self._method = payload

    def check_complete(self) -> None:
        """Check that no content is due.

        Raises:
            ConnectionException: 505.
        """
        if self._method is not None:
            raise self._unexpected()

    def drop(self) -> None:
        """Forget what has come in."""
        self._method = self._header = None
        self._body = []

    def _unexpected(self) -> ConnectionException:
        if self._header is None:
            what = "expected content header for class 60, got non content header frame instead"
        else:
            what = "expected content body, got non content body frame instead"
        return ConnectionException(UNEXPECTED_FRAME, what)

    def header(self, payload: bytes) -> Message | None:
        """Take a content header frame; returns the message if that completes it.

        Raises:
            ConnectionException: 505 if no content is due, 501 if it is malformed.
            ChannelException: 406, the body is too large.
        """
        if self._method is None:
            raise ConnectionException(UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        if self._header is not None:
            raise self._unexpected()
        if len(payload) < 14:
            raise malformed(FRAME_ERROR, 2, payload, "unknown_frame")
        try:
            header = self._headers.read(payload)
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

    def body(self, payload: bytes) -> Message | None:
        """Take a content body frame; returns the message if that completes it.

        Raises:
            ConnectionException: 505 if no body is due, or it is longer than was announced.
        """
        if self._header is None:
            self.check_complete()
            raise ConnectionException(UNEXPECTED_FRAME, "expected method frame, got non method frame instead")
        self._missing -= len(payload)
        if self._missing < 0 and self._profile.exact_body:
            raise frame_error("content body frame exceeds remaining content size")
        if self._missing < 0:
            raise self._unexpected()
        if self._body or self._missing:
            self._body.append(payload)
            if self._missing:
                return None
            payload, self._body = b"".join(self._body), []
        return self._complete(payload)

    def _complete(self, body: bytes) -> Message:
        method, header = self._method, self._header
        assert method is not None
        assert header is not None
        self._method = self._header = None
        try:
            message = Message(method[6:-1], header, body)
        except ValueError as error:
            raise frame_error("cannot decode basic.publish") from error
        self._set_bits(method[-1])
        return message

    def _set_bits(self, bits: int) -> None:
        """Note what a complete publish asks for."""
        self.mandatory, self.immediate = bool(bits & _MANDATORY), bool(bits & _IMMEDIATE)


class Confirms:
    """The publishes of one channel, numbered from 1.

    A confirm waits for the publishes before it, so that one frame can confirm many. Messages are stored in order and
    in groups, so nothing waits for long.

    Attributes:
        settled: the number of those that have been confirmed or refused.
    """

    def __init__(self) -> None:
        self._published = 0
        self.settled = 0
        # The first publish of each group that is on its way to the disk.
        self._on_their_way: deque[int] = deque()
        self._group = 0
        self._refused: list[int] = []

    def __len__(self) -> int:
        """The number of publishes that are not settled."""
        return self._published - self.settled

    def published_one(self, *, accepted: bool, group: int = 0) -> bool:
        """Count a publish.

        Args:
            accepted: no queue refused it.
            group: the number of the group in which it is on its way to the disk, from 1; 0 if it is not.

        Returns:
            Whether it is the first in its group; then `committed_group` is to be called for that.
        """
        self._published += 1
        if not accepted:
            self._refused.append(self._published)
        if not group or group == self._group:
            return False
        self._group = group
        self._on_their_way.append(self._published)
        return True

    def committed_group(self) -> None:
        """Count the publishes in the oldest group on its way to the disk as stored."""
        self._on_their_way.popleft()

    def take(self, channel: int) -> bytes:
        """Return the frames, for this channel number, that settle what can be settled now."""
        last = self._on_their_way[0] - 1 if self._on_their_way else self._published
        if last <= self.settled:
            return b""
        refused = [number for number in self._refused if number <= last]
        self._refused = self._refused[len(refused) :]
        parts = [frames.nack(channel, number) for number in refused]
        accepted = last - self.settled - len(refused)
        self.settled = last
        if accepted:
            while refused and refused[-1] == last:
                refused.pop()
                last -= 1
            parts.append(frames.ack(channel, last, multiple=accepted > 1))
        return b"".join(parts)
